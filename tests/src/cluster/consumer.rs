//! A consumer of a cluster: reads partitions from the leader, or from any replica, waits for more, asks where a log ends,
//! and lets the judge have everything that it is told.

use std::time::Duration;

use highwater_shards::ids::{Offset, PartitionId};
use highwater_shards::mail::{Locate, PartitionError};

use super::client::{Move, Open, Scene};
use super::index_of;
use crate::checkers::{Verdict, broken, visible};
use crate::rng::Rng;
use crate::wire::{Call, ReadCall, Said};

/// More than any log of a run has.
const READ_BYTES: u32 = 1 << 26;

#[derive(Debug)]
pub struct Consumer {
    pipeline: usize,
    at: Option<(PartitionId, u64)>,
}

impl Consumer {
    pub fn new(rng: &mut Rng) -> Self {
        Self { pipeline: 1 + rng.index(3), at: None }
    }

    pub fn next_move(&mut self, scene: &mut Scene<'_>, rng: &mut Rng, open: usize) -> Move {
        let pause = rng.between(Duration::from_micros(50), Duration::from_millis(48));
        if open >= self.pipeline || scene.partitions.is_empty() || scene.healing || rng.chance(250) {
            return Move::Rest(pause);
        }
        let (partition, offset) = match self.at {
            Some(at) if !rng.chance(100) => at,
            Some((partition, offset)) if rng.flip() => (partition, rng.below(offset + 1)),
            _ => (*rng.pick(scene.partitions), 0),
        };
        let leader = scene.leader(partition, rng);
        if rng.chance(200) {
            let at = *rng.pick(&[Locate::Earliest, Locate::Latest, Locate::Latest, Locate::Latest]);
            return Move::Call(leader, Call::Locate { partition, at }, None);
        }
        self.at = Some((partition, offset));
        let from_follower = scene.config.features.follower_reads && rng.chance(300);
        let node = if from_follower {
            scene.truth.get(&partition).map_or(leader, |a| index_of(*rng.pick(&a.replicas)))
        } else {
            leader
        };
        let read = ReadCall {
            partition,
            offset: Offset(offset),
            bytes_max: *rng.pick(&[1, 200, 4096, 65_536, READ_BYTES]),
            bytes_min: *rng.pick(&[0, 1, 1, 1000]),
            wait: Duration::from_millis(*rng.pick(&[0, 1, 10, 100])),
            from_follower,
        };
        Move::Call(node, Call::Read(read), None)
    }

    pub fn hear(&mut self, open: &Open, said: Said, scene: &mut Scene<'_>) -> Verdict {
        match (&open.call, said) {
            (Call::Read(read), Said::Read(Ok(said))) => {
                let (_, next) = scene.judge.on_read(open, read, &said, scene.now)?;
                if self.at == Some((read.partition, read.offset.0)) {
                    self.at = Some((read.partition, next));
                }
                Ok(())
            }
            (Call::Read(read), Said::Read(Err(e))) => {
                let (partition, offset) = (read.partition, read.offset.0);
                if e == PartitionError::OffsetOutOfRange && !read.from_follower && offset <= open.floor {
                    let what = format!(
                        "{partition}: {offset} is out of range, though {} had been passed",
                        open.floor
                    );
                    return Err(broken(visible::NAME, what));
                }
                Ok(())
            }
            (Call::Locate { partition, at }, Said::Located(result)) => match (at, result) {
                (_, Err(_)) | (Locate::Earliest, Ok(Some(Offset(0)))) => Ok(()),
                (Locate::Latest, Ok(Some(offset))) => scene.judge.on_latest(*partition, offset.0, open.floor),
                (at, Ok(found)) => Err(broken("locate", format!("{partition}: {at:?}: {found:?}"))),
            },
            (call, said) => Err(broken("wire", format!("{call:?} was answered with {said:?}"))),
        }
    }
}
