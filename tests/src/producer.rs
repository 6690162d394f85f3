//! A producer: plain, which sends each batch once, or idempotent, which sends a batch again until it hears that it
//! is there.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::BytesMut;
use highwater_shards::ids::{ConnId, PartitionId};
use highwater_shards::mail::{Acks, PartitionError};

use crate::checkers::{Verdict, broken};
use crate::client::{Move, Open, Scene, Tag};
use crate::records;
use crate::rng::Rng;
use crate::shadow::{Boot, Lane, Wanted};
use crate::track::{self, OPEN_MAX, Sizes, Track, is_fault_of_batch, timeout};
use crate::wire::{Call, Said};

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
            Kind::Idempotent(i) => i.tracks.values().all(Track::is_settled),
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
            i.tracks.values_mut().for_each(Track::all_lost);
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
    let config = scene.config;
    let sizes = Sizes {
        huge: 15,
        value_max: config.value_max,
        batch_records_max: config.batch_records_max,
        batch_bytes_max: config.batch_bytes_max,
    };
    let frozen = scene.checkers.visible.freeze(partition);
    Wanted { frozen, ..sizes.draw(partition, lane, scene.checkers.boot, rng) }
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
    // A shard that runs full in the middle of an append keeps the batches before.
    let in_part = batches > 1 && matches!(e, PartitionError::Overloaded | PartitionError::StorageFull);
    !in_part && track::is_definite(e)
}

impl Idempotent {
    /// What is to be sent again now.
    fn again(&mut self, scene: &mut Scene<'_>) -> Option<Move> {
        let boot = scene.checkers.boot;
        let acks = if self.acks_leader { Acks::Leader } else { Acks::All };
        for (&partition, track) in &mut self.tracks {
            let Some((uid, records)) = track.again(scene.now) else { continue };
            scene.checkers.shadow.of_mut(uid).last_boot = boot;
            let call = Call::Append { partition, acks, timeout: Duration::from_millis(500), records };
            return Some(Move::Call(call, Tag { uids: vec![uid] }));
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
        let Some(id) = self.id else {
            let ask = !std::mem::replace(&mut self.asked, true);
            return ask.then(|| Move::Call(Call::NewProducer, Tag::default()));
        };
        let track = self.tracks.entry(partition).or_insert_with(|| Track::new(lane));
        let wanted = wanted(partition, track.lane(), scene, rng);
        let (uid, records) = track.make(id, wanted, &mut scene.checkers.shadow)?;
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
        let Some(at) = track.place(uid) else { return Ok(()) };
        match result {
            Ok(base) => {
                track.acked(at);
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
                track.failed(at, scene.now + BACKOFF);
                Ok(())
            }
        }
    }
}
