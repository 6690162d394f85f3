//! A producer of a cluster: plain, which sends each batch once, or idempotent, which sends a batch to whoever leads until it
//! hears that it is there.

use std::collections::BTreeMap;
use std::time::Duration;

use highwater_shards::ids::{Offset, PartitionId};
use highwater_shards::mail::{Acks, PartitionError};
use highwater_shards::time::Instant;

use super::client::{Move, Open, Scene};
use super::config::Config;
use crate::checkers::{Verdict, broken};
use crate::records::Uid;
use crate::rng::Rng;
use crate::shadow::{Lane, Wanted};
use crate::track::{OPEN_MAX, Sizes, Track, is_definite, is_fault_of_batch, timeout};
use crate::wire::{Call, Said};

/// Batches between two long rests.
const BURST_MAX: u64 = 12;
/// Between a failure and the next attempt.
const BACKOFF: Duration = Duration::from_millis(3);

#[derive(Debug)]
pub struct Producer {
    client: u64,
    /// Batches still to be made, and before the next long rest.
    budget: u32,
    burst: u32,
    pipeline: usize,
    lanes_made: u64,
    acks_leader: bool,
    idempotent: bool,
    id: Option<(u64, u16)>,
    asked: bool,
    tracks: BTreeMap<PartitionId, Track>,
}

impl Producer {
    pub fn new(client: usize, config: &Config, rng: &mut Rng) -> Self {
        let features = &config.features;
        Self {
            client: client as u64,
            budget: config.batches,
            burst: 0,
            pipeline: 1 + rng.index(OPEN_MAX),
            lanes_made: 0,
            acks_leader: features.acks_leader && rng.chance(200),
            idempotent: !(features.plain_producers && rng.chance(250)),
            id: None,
            asked: false,
            tracks: BTreeMap::new(),
        }
    }

    pub fn is_done(&self) -> bool {
        self.budget == 0 && self.tracks.values().all(Track::is_settled)
    }

    fn acks(&self) -> Acks {
        if self.acks_leader { Acks::Leader } else { Acks::All }
    }

    fn new_lane(&mut self) -> Lane {
        self.lanes_made += 1;
        Lane(self.client << 32 | self.lanes_made)
    }

    /// A call was not sent, or its answer will not come.
    pub fn lost(&mut self, call: &Call, uid: Option<Uid>, now: Instant) {
        match call {
            Call::NewProducer => self.asked = false,
            Call::Append { partition, .. } => {
                let Some(track) = self.tracks.get_mut(partition) else { return };
                if let Some(at) = uid.and_then(|uid| track.place(uid)) {
                    track.failed(at, now + BACKOFF);
                }
            }
            _ => {}
        }
    }

    pub fn next_move(&mut self, scene: &mut Scene<'_>, rng: &mut Rng, open: usize) -> Move {
        let pause = rng.between(Duration::from_micros(50), Duration::from_millis(6));
        if scene.healing {
            self.budget = 0;
        }
        if open >= self.pipeline || scene.partitions.is_empty() {
            return Move::Rest(pause);
        }
        if let Some(call) = self.again(scene, rng) {
            return call;
        }
        if self.budget == 0 || rng.chance(300) {
            return Move::Rest(pause);
        }
        if self.burst == 0 {
            self.burst = 1 + u32::try_from(rng.below(BURST_MAX)).expect("small");
            // So that there is something to be made until the faults end.
            let mean = scene.config.duration * self.burst / scene.config.batches;
            return Move::Rest(rng.between(Duration::ZERO, mean * 2));
        }
        let partition = *rng.pick(scene.partitions);
        let made = if self.idempotent {
            self.fresh(partition, scene, rng)
        } else {
            // Each batch is a lane of its own: what is sent once may be overtaken by what is sent elsewhere.
            let lane = self.new_lane();
            let (uid, records) = scene.judge.shadow.make(&wanted(partition, lane, scene, rng));
            let acks = if self.acks_leader { Acks::Leader } else { Acks::All };
            let call = Call::Append { partition, acks, timeout: timeout(rng), records };
            Some(Move::Call(scene.leader(partition, rng), call, Some(uid)))
        };
        let Some(call) = made else { return Move::Rest(pause) };
        if !matches!(call, Move::Call(_, Call::NewProducer, _)) {
            self.budget -= 1;
            self.burst -= 1;
        }
        call
    }

    /// What is to be sent again now.
    fn again(&mut self, scene: &mut Scene<'_>, rng: &mut Rng) -> Option<Move> {
        let acks = self.acks();
        for (&partition, track) in &mut self.tracks {
            let Some((uid, records)) = track.again(scene.now) else { continue };
            let call = Call::Append { partition, acks, timeout: Duration::from_millis(500), records };
            return Some(Move::Call(scene.leader(partition, rng), call, Some(uid)));
        }
        None
    }

    fn fresh(&mut self, partition: PartitionId, scene: &mut Scene<'_>, rng: &mut Rng) -> Option<Move> {
        let Some(id) = self.id else {
            let ask = !std::mem::replace(&mut self.asked, true) && !scene.serving.is_empty();
            self.asked = ask || self.asked && !scene.serving.is_empty();
            return ask.then(|| Move::Call(*rng.pick(&scene.serving), Call::NewProducer, None));
        };
        if !self.tracks.contains_key(&partition) {
            let lane = self.new_lane();
            self.tracks.insert(partition, Track::new(lane));
        }
        let acks = self.acks();
        let track = self.tracks.get_mut(&partition).expect("it is there now");
        let wanted = wanted(partition, track.lane(), scene, rng);
        let (uid, records) = track.make(id, wanted, &mut scene.judge.shadow)?;
        let call = Call::Append { partition, acks, timeout: timeout(rng), records };
        Some(Move::Call(scene.leader(partition, rng), call, Some(uid)))
    }

    pub fn hear(&mut self, open: &Open, said: Said, scene: &mut Scene<'_>) -> Verdict {
        match said {
            Said::Producer(id, epoch) => {
                self.id = Some((id.0, epoch.0));
                self.asked = false;
                Ok(())
            }
            Said::Appended(result) => self.hear_appended(open, result, scene),
            said => Err(broken("wire", format!("a producer heard {said:?}"))),
        }
    }

    fn hear_appended(
        &mut self,
        open: &Open,
        result: Result<Offset, PartitionError>,
        scene: &mut Scene<'_>,
    ) -> Verdict {
        let (Call::Append { partition, acks, .. }, Some(uid)) = (&open.call, open.uid) else {
            return Err(broken("wire", "an append nobody sent"));
        };
        scene.judge.appends += 1;
        scene.judge.refused += u64::from(result.is_err());
        if !self.idempotent {
            match result {
                Ok(base) => scene.judge.on_acked(uid, base.0, *acks == Acks::All)?,
                Err(e) if is_definite(e) => scene.judge.on_refused(uid, e)?,
                Err(_) => {}
            }
            return Ok(());
        }
        let Some(track) = self.tracks.get_mut(partition) else { return Ok(()) };
        let Some(at) = track.place(uid) else { return Ok(()) };
        match result {
            Ok(base) => {
                track.acked(at);
                scene.judge.on_acked(uid, base.0, *acks == Acks::All)
            }
            // One that led before and has not heard of its successor knows no better.
            Err(PartitionError::OutOfOrderSequence) if at == 0 && scene.judge.leads(open) => {
                // Everything before it was acknowledged, so the log has lost something. May it?
                if *acks == Acks::All {
                    let what =
                        format!("{partition}: {uid:?} does not follow what was acknowledged before it");
                    return Err(broken("I1 idempotence", what));
                }
                self.id = None;
                self.tracks.clear();
                Ok(())
            }
            Err(e) if is_fault_of_batch(e) => {
                Err(broken("I1 idempotence", format!("{partition}: {uid:?} was refused: {e}")))
            }
            Err(_) => {
                track.failed(at, scene.now + BACKOFF);
                Ok(())
            }
        }
    }
}

fn wanted(partition: PartitionId, lane: Lane, scene: &Scene<'_>, rng: &mut Rng) -> Wanted {
    let config = scene.config;
    let sizes = Sizes {
        huge: 10,
        value_max: config.value_max,
        batch_records_max: config.batch_records_max,
        batch_bytes_max: config.batch_bytes_max,
    };
    sizes.draw(partition, lane, 1, rng)
}
