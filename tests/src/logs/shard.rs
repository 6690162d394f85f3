//! The shard as its log sees it: what it notes for a checkpoint, and what it learns when the log is recovered.

use std::cell::RefCell;
use std::collections::BTreeSet;

use highwater_shards::batch::BatchHeader;
use highwater_shards::ids::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence};
use highwater_shards::log::checkpoint::{LogState, ProducedBatch, ProducerState};
use highwater_shards::log::storage::Noted;
use highwater_shards::log::{Lsn, Note, Slot};
use xxhash_rust::xxh3::xxh3_64;

use super::history::{Known, Producers};
use super::world::Partition;
use crate::checkers::{Verdict, broken};

const NAME: &str = "noted";

/// The producer whose last batch says how much of the history is noted: no real one.
const COUNTER: u64 = 1 << 60;

/// What the shard of this life has heard of a log, from the checkpoint and from what was replayed.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    pub is_restored: bool,
    pub is_replayed: bool,
    pub is_truncated: bool,
    /// Its end was replayed, and nothing since.
    pub is_dropped: bool,
    pub known: Known,
    pub epochs: Vec<(u32, u64)>,
    pub producers: Producers,
    pub high_watermark: u64,
}

/// What was noted once, by partition and history, as a digest.
pub type Digests = BTreeSet<(usize, Known64, u64)>;
type Known64 = u64;

/// What the log asks of its shard.
pub struct View<'a> {
    pub partitions: &'a [Partition],
    pub is_recovered: bool,
    pub digests: &'a RefCell<Digests>,
}

impl View<'_> {
    fn find(&self, slot: Slot) -> Option<(usize, &Partition)> {
        self.partitions.iter().enumerate().find(|(_, p)| p.slot == Some(slot))
    }
}

impl Noted for View<'_> {
    fn noted(&self, slot: Slot, state: &mut LogState) {
        let Some((i, p)) = self.find(slot) else { return };
        let (known, epochs, producers) = if self.is_recovered {
            (p.history.now.known, p.history.now.epochs.clone(), p.history.now.producers())
        } else {
            (p.heard.known, p.heard.epochs.clone(), p.heard.producers.clone())
        };
        state.high_watermark = Offset(p.high_watermark.max(p.heard.high_watermark));
        state.epochs = epochs.iter().map(|e| (LeaderEpoch(e.0), Offset(e.1))).collect();
        state.producers = producers
            .into_iter()
            .map(|(id, (epoch, batches))| ProducerState {
                id: ProducerId(id),
                epoch: ProducerEpoch(epoch),
                batches: batches
                    .into_iter()
                    .map(|b| ProducedBatch { first: Sequence(b.0), last: Sequence(b.1), base: Offset(b.2) })
                    .collect(),
            })
            .collect();
        let count = Sequence(known.count);
        state.producers.push(ProducerState {
            id: ProducerId(COUNTER),
            epoch: ProducerEpoch(0),
            batches: vec![ProducedBatch { first: count, last: count, base: Offset(known.hash) }],
        });
        self.digests.borrow_mut().insert((i, known.hash, digest(state)));
    }

    fn high_watermark(&self, slot: Slot) -> Offset {
        Offset(self.find(slot).map_or(0, |(_, p)| p.high_watermark))
    }
}

fn digest(state: &LogState) -> u64 {
    xxh3_64(format!("{:?}{:?}{:?}", state.high_watermark, state.epochs, state.producers).as_bytes())
}

impl Heard {
    /// `fresh` stands for the history of a log that nobody noted.
    pub fn restored(&mut self, i: usize, state: &LogState, fresh: u64, digests: &Digests) -> Verdict {
        if self.is_restored || self.is_replayed {
            return Err(broken(NAME, format!("{}: restored twice, or after an entry", state.partition)));
        }
        self.is_restored = true;
        self.high_watermark = state.high_watermark.0;
        self.epochs = state.epochs.iter().map(|e| (e.0.0, e.1.0)).collect();
        for p in state.producers.iter().filter(|p| p.id.0 != COUNTER) {
            let batches = p.batches.iter().map(|b| (b.first.0, b.last.0, b.base.0)).collect();
            self.producers.insert(p.id.0, (p.epoch.0, batches));
        }
        match state.producers.iter().find(|p| p.id.0 == COUNTER) {
            Some(p) => {
                let b = p.batches[0];
                self.known = Known { count: b.first.0, hash: b.base.0 };
                if !digests.contains(&(i, self.known.hash, digest(state))) {
                    return Err(broken(NAME, format!("{}: {state:?} was never noted", state.partition)));
                }
            }
            None if state.noted == Lsn::ZERO && state.end == Offset::ZERO => {}
            None => self.known = Known { count: 1, hash: fresh },
        }
        Ok(())
    }

    pub fn replayed_batch(&mut self, header: &BatchHeader, base: Offset, is_noted: bool) {
        self.is_replayed = true;
        self.is_dropped = false;
        if is_noted {
            return;
        }
        let epoch = header.leader_epoch.cast_unsigned();
        self.known.batch(base.0, header.len as usize, epoch, header.records, header.base_timestamp_ms);
        if self.epochs.last().is_none_or(|e| e.0 < epoch) {
            self.epochs.push((epoch, base.0));
        }
        if let (Some(p), Some(last)) = (header.producer, header.last_sequence()) {
            let known = self.producers.entry(p.id.0).or_default();
            if known.0 != p.epoch.0 {
                *known = (p.epoch.0, Vec::new());
            }
            known.1.push((p.base_sequence.0, last.0, base.0));
            if known.1.len() > 5 {
                known.1.remove(0);
            }
        }
    }

    pub fn replayed_note(&mut self, note: Note, is_noted: bool) {
        self.is_replayed = true;
        match note {
            Note::Dropped => *self = Self { is_dropped: true, ..Self::default() },
            Note::Truncated { end } if !is_noted => {
                self.is_truncated = true;
                self.known.truncated(end.0);
                self.epochs.retain(|e| e.1 < end.0);
                for (_, batches) in self.producers.values_mut() {
                    batches.retain(|b| b.2 < end.0);
                }
            }
            _ => {}
        }
    }
}

/// What a scan of the segments said of epochs and producers must hold for each batch that is there.
pub fn check_rebuilt(p: &Partition) -> Verdict {
    if p.rules.compacted {
        return Ok(());
    }
    for b in &p.history.now.batches {
        let after = p.heard.epochs.partition_point(|e| e.1 <= b.base);
        let epoch = after.checked_sub(1).map(|i| p.heard.epochs[i].0);
        if epoch != Some(b.epoch) {
            let all = &p.heard.epochs;
            return Err(broken(
                NAME,
                format!("{}: the batch at {} is of epoch {}: {all:?}", p.id, b.base, b.epoch),
            ));
        }
    }
    if p.heard.is_truncated {
        // Of a producer the last few batches are known, and all of them may have been truncated.
        return Ok(());
    }
    for (id, (epoch, batches)) in p.history.now.producers() {
        let heard = p.heard.producers.get(&id);
        if heard.is_none_or(|h| h.0 != epoch || h.1.last() != batches.last()) {
            return Err(broken(NAME, format!("{}: producer {id} last sent {batches:?}: {heard:?}", p.id)));
        }
    }
    Ok(())
}
