//! A producer of a cluster: plain, which sends each batch once, or idempotent, which sends a batch to whoever leads until it
//! hears that it is there.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use highwater_shards::ids::{Offset, PartitionId};
use highwater_shards::mail::{Acks, PartitionError};
use highwater_shards::time::Instant;

use super::client::{Move, Open, Scene};
use super::config::Config;
use crate::checkers::{Verdict, broken};
use crate::records::{Stamp, Uid};
use crate::rng::Rng;
use crate::shadow::{Lane, Wanted};
use crate::wire::{Call, Said};

/// A broker remembers so many batches of a producer at a partition.
const OPEN_MAX: usize = 5;
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

/// What an idempotent producer has going with one partition.
#[derive(Debug)]
struct Track {
    lane: Lane,
    sequence: u32,
    /// Batches made.
    made: usize,
    unacked: VecDeque<Unacked>,
    /// The partition knows this producer by a batch that it acknowledged. Until then it takes any sequence for the
    /// first, so that a second open batch could overtake a first one that failed.
    known: bool,
    /// Something failed: nothing new until all that was sent is answered, then everything again.
    stalled: bool,
    /// Nothing is sent again before this.
    again_at: Instant,
}

#[derive(Debug)]
struct Unacked {
    /// How many batches were made before it.
    index: usize,
    uid: Uid,
    records: Bytes,
    in_flight: bool,
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
        self.budget == 0 && self.tracks.values().all(|t| t.unacked.is_empty())
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
                for unacked in track.unacked.iter_mut().filter(|u| Some(u.uid) == uid) {
                    unacked.in_flight = false;
                    track.stalled = true;
                    track.again_at = track.again_at.max(now + BACKOFF);
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
            if !track.stalled || track.again_at > scene.now {
                continue;
            }
            let sent = track.unacked.iter().take_while(|u| u.in_flight).count();
            if sent < track.unacked.len() && track.unacked.iter().skip(sent).any(|u| u.in_flight) {
                continue;
            }
            track.stalled = sent + 1 < track.unacked.len();
            let Some(next) = track.unacked.get_mut(sent) else { continue };
            next.in_flight = true;
            let timeout = Duration::from_millis(500);
            let call = Call::Append { partition, acks, timeout, records: next.records.clone() };
            return Some(Move::Call(scene.leader(partition, rng), call, Some(next.uid)));
        }
        None
    }

    fn fresh(&mut self, partition: PartitionId, scene: &mut Scene<'_>, rng: &mut Rng) -> Option<Move> {
        let Some((producer, epoch)) = self.id else {
            let ask = !std::mem::replace(&mut self.asked, true) && !scene.serving.is_empty();
            self.asked = ask || self.asked && !scene.serving.is_empty();
            return ask.then(|| Move::Call(*rng.pick(&scene.serving), Call::NewProducer, None));
        };
        if !self.tracks.contains_key(&partition) {
            let lane = self.new_lane();
            let track = Track {
                lane,
                sequence: 0,
                made: 0,
                unacked: VecDeque::new(),
                known: false,
                stalled: false,
                again_at: Instant::ZERO,
            };
            self.tracks.insert(partition, track);
        }
        let acks = self.acks();
        let track = self.tracks.get_mut(&partition).expect("it is there now");
        let open_max = if track.known { OPEN_MAX } else { 1 };
        // The oldest open batch must be among those that the node remembers, whatever became of the ones since.
        let span = track.unacked.front().map_or(0, |u| track.made - u.index);
        if track.stalled || span >= open_max {
            return None;
        }
        let mut wanted = wanted(partition, track.lane, scene, rng);
        wanted.stamp = Some(Stamp { producer, epoch, sequence: track.sequence });
        track.sequence += wanted.records;
        let (uid, records) = scene.judge.shadow.make(&wanted);
        let index = track.made;
        track.made += 1;
        track.unacked.push_back(Unacked { index, uid, records: records.clone(), in_flight: true });
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
        let Some(at) = track.unacked.iter().position(|u| u.uid == uid) else { return Ok(()) };
        match result {
            Ok(base) => {
                track.unacked.remove(at);
                track.known = true;
                scene.judge.on_acked(uid, base.0, *acks == Acks::All)
            }
            Err(PartitionError::OutOfOrderSequence) if at == 0 => {
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
                track.unacked[at].in_flight = false;
                track.stalled = true;
                track.again_at = scene.now + BACKOFF;
                Ok(())
            }
        }
    }
}

pub fn wanted(partition: PartitionId, lane: Lane, scene: &Scene<'_>, rng: &mut Rng) -> Wanted {
    let config = scene.config;
    let huge = rng.chance(10);
    let value_max = if huge { 40_000 } else { config.value_max };
    let records = u32::try_from(rng.range(1..u64::from(config.batch_records_max) + 1)).expect("small");
    // A record has about twenty bytes besides its value.
    let fits = (config.batch_bytes_max - 100) / records - 20;
    let value_max = u64::from(value_max.min(fits));
    Wanted {
        partition,
        lane,
        boot: 1,
        records,
        value_len: u32::try_from(rng.range(8..value_max + 1)).expect("small"),
        stamp: None,
        frozen: None,
    }
}

fn timeout(rng: &mut Rng) -> Duration {
    Duration::from_millis(*rng.pick(&[5, 50, 500, 2000]))
}

/// Whether the error says that nothing was appended.
fn is_definite(e: PartitionError) -> bool {
    use PartitionError as E;
    !matches!(
        e,
        E::TimedOut | E::NotEnoughReplicasAfterAppend | E::NotLeader | E::NotOwned | E::StorageFailed
    )
}

/// Errors that a sound batch of a sound producer never meets.
fn is_fault_of_batch(e: PartitionError) -> bool {
    use PartitionError as E;
    matches!(
        e,
        E::CorruptBatch | E::InvalidBatch | E::UnsupportedFormat | E::BatchTooLarge | E::InvalidProducerEpoch
    )
}
