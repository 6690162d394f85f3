//! A consumer: reads partitions from wherever it likes, waits for more, asks where a log begins and ends, and lets
//! the checkers judge everything that it is told.

use std::time::Duration;

use highwater_shards::ids::{Offset, PartitionId};
use highwater_shards::mail::{Locate, PartitionError};

use crate::checkers::{ReadSeen, Verdict, answered, broken, visible};
use crate::client::{Move, Open, Scene, Tag};
use crate::rng::Rng;
use crate::shadow::Boot;
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
        let pause = rng.between(Duration::from_micros(50), Duration::from_millis(3));
        if open >= self.pipeline || scene.partitions.is_empty() || scene.healing || rng.chance(250) {
            return Move::Rest(pause);
        }
        let (partition, offset) = match self.at {
            Some(at) if scene.partitions.contains(&at.0) && !rng.chance(100) => at,
            Some((partition, offset)) if scene.partitions.contains(&partition) && rng.flip() => {
                (partition, rng.below(offset + 1))
            }
            _ => (*rng.pick(scene.partitions), 0),
        };
        if rng.chance(150) {
            let at = *rng.pick(&[Locate::Earliest, Locate::Latest, Locate::Latest, Locate::LargestTimestamp]);
            return Move::Call(Call::Locate { partition, at }, Tag::default());
        }
        self.at = Some((partition, offset));
        let read = ReadCall {
            partition,
            offset: Offset(offset),
            bytes_max: *rng.pick(&[1, 200, 4096, 65_536, READ_BYTES]),
            bytes_min: *rng.pick(&[0, 1, 1, 1000, 100_000]),
            wait: Duration::from_millis(*rng.pick(&[0, 1, 10, 100])),
            from_follower: false,
        };
        Move::Call(Call::Read(read), Tag::default())
    }

    pub fn hear(&mut self, open: &Open, said: Said, boot: Boot, scene: &mut Scene<'_>) -> Verdict {
        match (&open.call, said) {
            (Call::Read(read), Said::Read(result)) => {
                let next = hear_read(open, read, result, boot, scene)?;
                if self.at == Some((read.partition, read.offset.0)) {
                    self.at = next.map(|offset| (read.partition, offset));
                }
                Ok(())
            }
            (Call::Locate { partition, at }, Said::Located(result)) => {
                hear_located(open, *partition, *at, result, boot, scene)
            }
            (call, said) => Err(broken("wire", format!("{call:?} was answered with {said:?}"))),
        }
    }
}

/// Where to read on, unless the place is lost.
fn hear_read(
    open: &Open,
    read: &ReadCall,
    result: Result<crate::wire::ReadSaid, PartitionError>,
    boot: Boot,
    scene: &mut Scene<'_>,
) -> Result<Option<u64>, crate::checkers::Violation> {
    let (partition, offset) = (read.partition, read.offset.0);
    match result {
        Ok(said) => {
            let seen = ReadSeen { partition, offset, boot, floor: open.floor, now: scene.now };
            let (_, next) = scene.checkers.on_read(&seen, &said)?;
            if open.undisturbed && read.bytes_min > 0 && boot == scene.checkers.boot {
                check_awake(open, read, said.records.len(), scene)?;
            }
            Ok(Some(next))
        }
        Err(PartitionError::OffsetOutOfRange) => {
            let least = scene.checkers.high_watermark.least(partition, open.floor);
            if offset <= least {
                let what = format!("{partition}: {offset} is out of range, though {least} had been passed");
                return Err(broken(visible::NAME, what));
            }
            Ok(None)
        }
        Err(_) => Ok(None),
    }
}

/// A read that waits for so many bytes ends soon after they are there, not when its time is up.
fn check_awake(open: &Open, read: &ReadCall, bytes: usize, scene: &Scene<'_>) -> Verdict {
    let c = &scene.checkers;
    let enough = match read.bytes_min {
        1 => Some(read.offset.0 + 1),
        // What does not fit the answer may keep it short.
        min if read.bytes_max >= READ_BYTES => {
            c.acked.end_of_read(&c.shadow, read.partition, read.offset.0, min, c.boot)
        }
        _ => None,
    };
    let heard = enough.and_then(|end| c.high_watermark.heard_above(read.partition, end - 1));
    let Some(there) = heard.map(|at| at.max(open.sent_at)) else { return Ok(()) };
    let waited = scene.now.since(there);
    if waited > scene.config.read_max(bytes) {
        let (partition, offset) = (read.partition, read.offset);
        let what = format!("{partition}: a read at {offset} slept on for {waited:?} though there was enough");
        return Err(broken(answered::NAME, what));
    }
    Ok(())
}

fn hear_located(
    open: &Open,
    partition: PartitionId,
    at: Locate,
    result: Result<Option<Offset>, PartitionError>,
    boot: Boot,
    scene: &mut Scene<'_>,
) -> Verdict {
    let wrong = |what: String| Err(broken("locate", format!("{partition}: {at:?}: {what}")));
    match (at, result) {
        (_, Err(_)) => Ok(()),
        (Locate::Earliest, Ok(Some(Offset(0)))) => Ok(()),
        (Locate::Latest, Ok(Some(offset))) => {
            let present = scene.checkers.boot;
            let marks = &mut scene.checkers.high_watermark;
            marks.on_seen(partition, offset.0, open.floor, boot, present, scene.now)
        }
        (Locate::Earliest | Locate::Latest, Ok(found)) => wrong(format!("{found:?}")),
        (Locate::LargestTimestamp, Ok(found)) => {
            let least = scene.checkers.high_watermark.least(partition, open.floor);
            let present = scene.checkers.boot;
            let Some(offset) = found else {
                return if least > 0 {
                    wrong("nothing, though there are records".to_owned())
                } else {
                    Ok(())
                };
            };
            if boot == present
                && let Some(better) = scene.checkers.acked.is_not_largest(partition, offset.0, least, boot)
            {
                return wrong(format!("{offset}, though {better:?} is larger or stands before it"));
            }
            let marks = &mut scene.checkers.high_watermark;
            marks.passed(partition, offset.0 + 1, boot, present, scene.now);
            Ok(())
        }
        (Locate::Timestamp(_), Ok(_)) => Ok(()),
    }
}
