//! A producer: plain, which sends each batch once, or idempotent, which sends a batch again until it hears that it
//! is there.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use highwater_shards::ids::{ConnId, PartitionId};
use highwater_shards::mail::{Acks, PartitionError};
use highwater_shards::time::Instant;

use crate::checkers::{Verdict, broken};
use crate::client::{Move, Open, Scene, Tag};
use crate::records::{self, Stamp, Uid};
use crate::rng::Rng;
use crate::shadow::{Boot, Lane, Wanted};
use crate::wire::{Call, Said};

/// A broker remembers so many batches of a producer at a partition.
const OPEN_MAX: usize = 5;
/// Batches of one multi-batch append, at most.
const MULTI_MAX: u64 = 4;

/// Between a failure and the next attempt.
const BACKOFF: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub struct Producer {
    client: u64,
    /// Batches still to be made.
    budget: u32,
    pipeline: usize,
    lanes_made: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Plain { lane: Lane },
    Idempotent(Idempotent),
}

#[derive(Debug, Default)]
struct Idempotent {
    id: Option<(u64, u16)>,
    asked: bool,
    acks_leader: bool,
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
    /// The node knows this producer by a batch that it acknowledged. Until then it takes any sequence for the first,
    /// so that a second open batch could overtake a first one that failed.
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
    pub fn new(client: usize, budget: u32, idempotent: bool, acks_leader: bool, rng: &mut Rng) -> Self {
        let kind = if idempotent {
            Kind::Idempotent(Idempotent { acks_leader, ..Idempotent::default() })
        } else {
            Kind::Plain { lane: Lane(0) }
        };
        let pipeline = 1 + rng.index(OPEN_MAX);
        Self { client: client as u64, budget, pipeline, lanes_made: 0, kind }
    }

    pub fn is_done(&self) -> bool {
        let settled = match &self.kind {
            Kind::Plain { .. } => true,
            Kind::Idempotent(i) => i.tracks.values().all(|t| t.unacked.is_empty()),
        };
        self.budget == 0 && settled
    }

    pub fn connected(&mut self, _: ConnId) {
        let lane = self.new_lane();
        if let Kind::Plain { lane: l } = &mut self.kind {
            *l = lane;
        }
    }

    pub fn disconnected(&mut self) {
        if let Kind::Idempotent(i) = &mut self.kind {
            i.asked = false;
            for track in i.tracks.values_mut() {
                track.stalled |= !track.unacked.is_empty();
                track.unacked.iter_mut().for_each(|u| u.in_flight = false);
            }
        }
    }

    /// An answer will not come any more. Its batches may be in the log or not.
    pub fn lost(&mut self, _: &Tag) {}

    fn new_lane(&mut self) -> Lane {
        self.lanes_made += 1;
        Lane(self.client << 32 | self.lanes_made)
    }

    pub fn next_move(&mut self, scene: &mut Scene<'_>, rng: &mut Rng, open: usize) -> Move {
        let pause = rng.between(Duration::from_micros(50), Duration::from_micros(1500));
        if scene.healing {
            self.budget = 0;
        }
        if open >= self.pipeline || scene.partitions.is_empty() {
            return Move::Rest(pause);
        }
        if let Kind::Idempotent(i) = &mut self.kind {
            // What was deleted will never be acknowledged.
            i.tracks.retain(|p, _| scene.partitions.contains(p));
            if let Some(call) = i.again(scene) {
                return call;
            }
        }
        if self.budget == 0 || rng.chance(300) {
            return Move::Rest(pause);
        }
        let partition = *rng.pick(scene.partitions);
        let next_lane = Lane(self.client << 32 | (self.lanes_made + 1));
        let made = match &mut self.kind {
            Kind::Plain { lane } => Some(plain(*lane, partition, scene, rng)),
            Kind::Idempotent(i) => i.fresh(partition, next_lane, scene, rng),
        };
        self.lanes_made += 1;
        let Some(call) = made else { return Move::Rest(pause) };
        if !matches!(call, Move::Call(Call::NewProducer, _)) {
            self.budget -= 1;
        }
        call
    }

    pub fn hear(&mut self, open: &Open, said: Said, boot: Boot, scene: &mut Scene<'_>) -> Verdict {
        match (said, &mut self.kind) {
            (Said::Producer(id, epoch), Kind::Idempotent(i)) => {
                i.id = Some((id.0, epoch.0));
                i.asked = false;
                Ok(())
            }
            (Said::Appended(result), Kind::Plain { .. }) => hear_plain(open, result, boot, scene),
            (Said::Appended(result), Kind::Idempotent(i)) => i.hear(open, result, boot, scene),
            (said, _) => Err(broken("wire", format!("a producer heard {said:?}"))),
        }
    }
}

fn wanted(partition: PartitionId, lane: Lane, scene: &Scene<'_>, rng: &mut Rng) -> Wanted {
    let huge = rng.chance(15);
    let value_max = if huge { 40_000 } else { scene.config.value_max };
    let records = u32::try_from(rng.range(1..u64::from(scene.config.batch_records_max) + 1)).expect("small");
    // A record has about twenty bytes besides its value.
    let fits = (scene.config.batch_bytes_max - 100) / records - 20;
    let value_max = u64::from(value_max.min(fits));
    Wanted {
        partition,
        lane,
        boot: scene.checkers.boot,
        records,
        value_len: u32::try_from(rng.range(8..value_max + 1)).expect("small"),
        stamp: None,
        frozen: scene.checkers.visible.freeze(partition),
    }
}

fn timeout(rng: &mut Rng) -> Duration {
    Duration::from_millis(*rng.pick(&[5, 50, 500, 2000]))
}

fn plain(lane: Lane, partition: PartitionId, scene: &mut Scene<'_>, rng: &mut Rng) -> Move {
    let features = scene.config.features;
    let acks = match rng.below(4) {
        0 if features.acks_none => Acks::None,
        1 if features.acks_leader => Acks::Leader,
        _ => Acks::All,
    };
    let count = if features.multi_batches && rng.chance(150) { rng.range(2..MULTI_MAX + 1) } else { 1 };
    let mut uids = Vec::new();
    let mut records = BytesMut::new();
    for _ in 0..count {
        let wanted = wanted(partition, lane, scene, rng);
        let (uid, batch) = scene.checkers.shadow.make(&wanted);
        uids.push(uid);
        records.extend_from_slice(&batch);
    }
    let mut records = records.freeze();
    if features.damaged_batches && rng.chance(30) {
        // Damaging one batch must keep out the others of its append too.
        records = records::damage(records, rng.draw());
        uids.iter().for_each(|&u| scene.checkers.shadow.of_mut(u).refused = true);
    }
    Move::Call(Call::Append { partition, acks, timeout: timeout(rng), records }, Tag { uids })
}

fn hear_plain(
    open: &Open,
    result: Result<highwater_shards::ids::Offset, PartitionError>,
    boot: Boot,
    scene: &mut Scene<'_>,
) -> Verdict {
    let Call::Append { acks, .. } = &open.call else { return Err(broken("wire", "an append nobody sent")) };
    match result {
        Ok(base) => {
            let mut at = base.0;
            for &uid in &open.tag.uids {
                let sent = scene.checkers.shadow.of(uid);
                if sent.refused {
                    return Err(broken("content", format!("{uid:?} is damaged and was accepted")));
                }
                let records = u64::from(sent.records);
                scene.checkers.on_acked(uid, at, *acks == Acks::All, boot, scene.now)?;
                at += records;
            }
        }
        Err(e) if is_definite(e, open.tag.uids.len()) => {
            for &uid in &open.tag.uids {
                let sent = scene.checkers.shadow.of_mut(uid);
                if sent.base.is_some() {
                    return Err(broken("content", format!("{uid:?} is in the log and was refused: {e}")));
                }
                sent.refused = true;
            }
        }
        Err(_) => {}
    }
    Ok(())
}

/// Whether the error says that nothing of so many batches was appended.
fn is_definite(e: PartitionError, batches: usize) -> bool {
    use PartitionError as E;
    // A shard that runs full in the middle of an append keeps the batches before.
    let in_part = batches > 1 && matches!(e, E::Overloaded | E::StorageFull);
    !in_part
        && !matches!(
            e,
            E::TimedOut | E::NotEnoughReplicasAfterAppend | E::NotLeader | E::NotOwned | E::StorageFailed
        )
}

impl Idempotent {
    /// What is to be sent again now.
    fn again(&mut self, scene: &mut Scene<'_>) -> Option<Move> {
        let boot = scene.checkers.boot;
        let acks = if self.acks_leader { Acks::Leader } else { Acks::All };
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
            scene.checkers.shadow.of_mut(next.uid).last_boot = boot;
            let timeout = Duration::from_millis(500);
            let call = Call::Append { partition, acks, timeout, records: next.records.clone() };
            return Some(Move::Call(call, Tag { uids: vec![next.uid] }));
        }
        None
    }

    fn fresh(
        &mut self,
        partition: PartitionId,
        lane: Lane,
        scene: &mut Scene<'_>,
        rng: &mut Rng,
    ) -> Option<Move> {
        let Some((producer, epoch)) = self.id else {
            let ask = !std::mem::replace(&mut self.asked, true);
            return ask.then(|| Move::Call(Call::NewProducer, Tag::default()));
        };
        let empty = || Track {
            lane,
            sequence: 0,
            made: 0,
            unacked: VecDeque::new(),
            known: false,
            stalled: false,
            again_at: Instant::ZERO,
        };
        let track = self.tracks.entry(partition).or_insert_with(empty);
        let open_max = if track.known { OPEN_MAX } else { 1 };
        // The oldest open batch must be among those that the node remembers, whatever became of the ones since.
        let span = track.unacked.front().map_or(0, |u| track.made - u.index);
        if track.stalled || span >= open_max {
            return None;
        }
        let mut wanted = wanted(partition, track.lane, scene, rng);
        wanted.stamp = Some(Stamp { producer, epoch, sequence: track.sequence });
        track.sequence += wanted.records;
        let (uid, records) = scene.checkers.shadow.make(&wanted);
        let index = track.made;
        track.made += 1;
        track.unacked.push_back(Unacked { index, uid, records: records.clone(), in_flight: true });
        let acks = if self.acks_leader { Acks::Leader } else { Acks::All };
        let call = Call::Append { partition, acks, timeout: timeout(rng), records };
        Some(Move::Call(call, Tag { uids: vec![uid] }))
    }

    fn hear(
        &mut self,
        open: &Open,
        result: Result<highwater_shards::ids::Offset, PartitionError>,
        boot: Boot,
        scene: &mut Scene<'_>,
    ) -> Verdict {
        let Call::Append { partition, acks, .. } = &open.call else {
            return Err(broken("wire", "an append nobody sent"));
        };
        let uid = open.tag.uids[0];
        let Some(track) = self.tracks.get_mut(partition) else { return Ok(()) };
        let Some(at) = track.unacked.iter().position(|u| u.uid == uid) else { return Ok(()) };
        match result {
            Ok(base) => {
                track.unacked.remove(at);
                track.known = true;
                scene.checkers.on_acked(uid, base.0, *acks == Acks::All, boot, scene.now)
            }
            Err(PartitionError::OutOfOrderSequence) if at == 0 => {
                // Everything before it was acknowledged, so the log has lost something. May it?
                let fsync = scene.checkers.acked.is_fsync(*partition);
                if fsync && *acks == Acks::All {
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

/// Errors that a sound batch of a sound producer never meets.
fn is_fault_of_batch(e: PartitionError) -> bool {
    use PartitionError as E;
    matches!(
        e,
        E::CorruptBatch | E::InvalidBatch | E::UnsupportedFormat | E::BatchTooLarge | E::InvalidProducerEpoch
    )
}
