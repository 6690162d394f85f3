//! What one partition remembers of its idempotent producers: enough to tell a repeated batch from a new one and
//! from one that came out of order.
//!
//! Floor 1, pure; owned by the partition's shard. It never looks at records, only at batch headers. A checkpoint keeps
//! it, and the batches behind that bring it up to date when recovery replays them. What a batch that may still be cut off
//! displaced is kept until it cannot be any more, so that a cut leaves what the rest of the log says, however often the
//! log is cut. Source: KIP-98, KIP-360, and Apache Kafka's `ProducerStateManager`, which reads the log again instead.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::batch::{BatchHeader, BatchProducer};
use crate::ids::{Offset, ProducerEpoch, ProducerId, Sequence};
use crate::log::checkpoint::{ProducedBatch, ProducerState, Superseded};
use crate::mail::PartitionError;
use crate::time::Instant;

/// Batches of one producer that are recognised when they come again: as many as a client has in flight.
pub const BATCHES_KEPT: usize = 5;
/// A producer that sent nothing for so long is forgotten.
pub const EXPIRY: Duration = Duration::from_secs(24 * 60 * 60);
/// Producers that one partition keeps; beyond it the one idle longest is forgotten. About 200 bytes each.
pub const PRODUCERS_MAX: usize = 10_000;
/// Batches that a cut takes back exactly, about 120 bytes each. Below them it knows what producers send next, and no more.
pub const UNDO_MAX: usize = 1_024;

/// Idleness is only noted this exactly, so that a busy producer is not moved in the order for every batch.
const IDLE_GRAIN: Duration = Duration::from_secs(1);

/// What a batch is to the partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    /// Append it.
    New,
    /// It is in the log already, from this offset on: append nothing and answer as the first time.
    Duplicate { base_offset: Offset },
}

/// The idempotent producers of one partition.
#[derive(Debug)]
pub struct Producers {
    // Ordered, not hashed: clients choose the ids that they send.
    by_id: BTreeMap<ProducerId, Producer>,
    /// Each producer once, by when it was last noted as active (its `noted`).
    by_idleness: BTreeSet<(Instant, ProducerId)>,
    /// What the last batches displaced, by offset.
    undo: VecDeque<Undo>,
    producers_max: usize,
}

/// What was known of a producer before the batch at `base_offset`.
#[derive(Clone, Copy, Debug)]
struct Undo {
    base_offset: Offset,
    id: ProducerId,
    before: Option<Producer>,
}

#[derive(Clone, Copy, Debug)]
struct Producer {
    epoch: ProducerEpoch,
    noted: Instant,
    /// The last ones, oldest first; only the first `kept` are meant; at least one.
    batches: [Kept; BATCHES_KEPT],
    kept: usize,
}

#[derive(Clone, Copy, Default, Debug)]
struct Kept {
    first: Sequence,
    last: Sequence,
    base_offset: Offset,
}

impl Default for Producers {
    fn default() -> Self {
        Self::new(PRODUCERS_MAX)
    }
}

impl Producers {
    /// Keeps at most `producers_max` producers, at least one.
    pub fn new(producers_max: usize) -> Self {
        assert!(producers_max > 0, "a partition keeps at least the producer that it heard of last");
        Self { by_id: BTreeMap::new(), by_idleness: BTreeSet::new(), undo: VecDeque::new(), producers_max }
    }

    /// What a produced batch is. Changes nothing, so that an append can still be refused for another reason;
    /// [`Self::record`] follows when it was appended.
    ///
    /// A record set with a batch of an idempotent producer holds no other batch ([`crate::batch`] sees to it), so
    /// that checking its one batch is checking the whole append.
    ///
    /// # Errors
    /// `InvalidProducerEpoch` when a newer life of the producer is known; `OutOfOrderSequence` when the batch does
    /// not follow the producer's last one and is not one of its last [`BATCHES_KEPT`] either.
    pub fn check(&self, header: &BatchHeader) -> Result<Check, PartitionError> {
        let Some((batch, last_sequence)) = header.producer.zip(header.last_sequence()) else {
            return Ok(Check::New);
        };
        // Of a producer that was never heard of, or forgotten, any sequence is the first.
        let Some(known) = self.by_id.get(&batch.id) else {
            return Ok(Check::New);
        };
        if batch.epoch < known.epoch {
            return Err(PartitionError::InvalidProducerEpoch);
        }
        let expected = if batch.epoch > known.epoch {
            Sequence(0)
        } else {
            let kept = &known.batches[..known.kept];
            if let Some(same) =
                kept.iter().rev().find(|k| k.first == batch.base_sequence && k.last == last_sequence)
            {
                return Ok(Check::Duplicate { base_offset: same.base_offset });
            }
            let last = kept.last().expect("a known producer has sent at least one batch");
            after(last.last)
        };
        if batch.base_sequence == expected { Ok(Check::New) } else { Err(PartitionError::OutOfOrderSequence) }
    }

    /// Notes a batch that was appended at `base_offset`, by this node as leader (after [`Self::check`]), by a
    /// leader that this node follows, or in an earlier life of this node. It is not checked again: the leader did.
    /// No cut goes below `settled`.
    pub fn record(&mut self, now: Instant, header: &BatchHeader, base_offset: Offset, settled: Offset) {
        let Some((BatchProducer { id, epoch, base_sequence }, last)) =
            header.producer.zip(header.last_sequence())
        else {
            return;
        };
        self.settle(settled);
        if self.undo.len() == UNDO_MAX {
            self.undo.pop_front();
        }
        self.undo.push_back(Undo { base_offset, id, before: self.by_id.get(&id).copied() });
        let batch = Kept { first: base_sequence, last, base_offset };
        if let Some(known) = self.by_id.get_mut(&id) {
            if known.epoch != epoch {
                known.epoch = epoch;
                known.kept = 0;
            }
            known.push(batch);
            if now - known.noted >= IDLE_GRAIN {
                self.by_idleness.remove(&(known.noted, id));
                self.by_idleness.insert((now, id));
                known.noted = now;
            }
            return;
        }
        if self.by_id.len() == self.producers_max {
            self.forget_idlest();
        }
        let mut producer = Producer { epoch, noted: now, batches: Default::default(), kept: 0 };
        producer.push(batch);
        self.by_id.insert(id, producer);
        self.by_idleness.insert((now, id));
    }

    fn settle(&mut self, settled: Offset) {
        while self.undo.front().is_some_and(|undo| undo.base_offset < settled) {
            self.undo.pop_front();
        }
    }

    /// As a checkpoint keeps it, by id.
    pub fn to_list(&self) -> Vec<ProducerState> {
        self.by_id.iter().map(|(&id, producer)| producer.state(id)).collect()
    }

    /// What batches displaced that a cut may still reach, which goes no lower than `settled`; by offset.
    pub fn superseded(&self, settled: Offset) -> Vec<Superseded> {
        let superseded = |undo: &Undo| Superseded {
            id: undo.id,
            by: undo.base_offset,
            before: undo.before.map(|producer| producer.state(undo.id)),
        };
        self.undo.iter().filter(|undo| undo.base_offset >= settled).map(superseded).collect()
    }

    /// Takes over what [`Self::to_list`] and [`Self::superseded`] gave. How long each was idle is not known any more: from
    /// now on.
    pub fn from_list(now: Instant, list: &[ProducerState], superseded: &[Superseded]) -> Self {
        let mut producers = Self::default();
        for state in list.iter().take(producers.producers_max) {
            let known = Producer::from_state(now, state);
            if let Some(producer) = known
                && producers.by_id.insert(state.id, producer).is_none()
            {
                producers.by_idleness.insert((now, state.id));
            }
        }
        let undo = superseded.iter().map(|Superseded { id, by, before }| Undo {
            base_offset: *by,
            id: *id,
            before: before.as_ref().and_then(|state| Producer::from_state(now, state)),
        });
        producers.undo = undo.take(UNDO_MAX).collect();
        producers
    }

    /// Forgets the batches at or behind `end`: the log ends there now. Of a producer that began there nothing is left.
    ///
    /// Where that goes further back than was kept, the batches that come next are those that were cut off: a client
    /// repeats no more batches than are kept, but taking a later one of them for the first would lose the others.
    pub fn cut(&mut self, end: Offset) {
        while let Some(undo) = self.undo.pop_back() {
            if undo.base_offset < end {
                self.undo.push_back(undo);
                break;
            }
            self.put_back(undo);
        }
        let Self { by_id, by_idleness, .. } = self;
        by_id.retain(|&id, producer| {
            let next = producer.cut(end);
            if let Some(next) = next.filter(|next| next.first != Sequence(0) && !next.is_none())
                && let Some(before) = end.0.checked_sub(1)
                && producer.kept == 0
            {
                producer.push(Kept::none_before(next.first, Offset(before)));
            }
            if producer.kept == 0 {
                by_idleness.remove(&(producer.noted, id));
            }
            producer.kept > 0
        });
    }

    /// The producer is again what it was. One that was forgotten since stays so.
    fn put_back(&mut self, undo: Undo) {
        let Some(known) = self.by_id.get_mut(&undo.id) else { return };
        match undo.before {
            Some(before) => *known = Producer { noted: known.noted, ..before },
            None => {
                self.by_idleness.remove(&(known.noted, undo.id));
                self.by_id.remove(&undo.id);
            }
        }
    }

    /// Forgets the producers that sent nothing for [`EXPIRY`], to within a second.
    pub fn expire(&mut self, now: Instant) {
        while self.by_idleness.first().is_some_and(|&(noted, _)| now - noted >= EXPIRY) {
            self.forget_idlest();
        }
    }

    /// When [`Self::expire`] will next have something to forget, at the earliest.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.by_idleness.first().map(|&(noted, _)| noted + EXPIRY)
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    fn forget_idlest(&mut self) {
        let (_, id) = self.by_idleness.pop_first().expect("called when there is a producer");
        let forgotten = self.by_id.remove(&id);
        assert!(forgotten.is_some(), "both maps hold the same producers");
    }
}

impl Producer {
    /// `None`: nothing is known of a producer without a batch.
    fn from_state(now: Instant, state: &ProducerState) -> Option<Self> {
        let mut producer = Self { epoch: state.epoch, noted: now, batches: Default::default(), kept: 0 };
        for batch in &state.batches {
            producer.push(Kept { first: batch.first, last: batch.last, base_offset: batch.base });
        }
        (producer.kept > 0).then_some(producer)
    }

    fn state(&self, id: ProducerId) -> ProducerState {
        let kept = self.batches[..self.kept].iter();
        let batches =
            kept.map(|k| ProducedBatch { first: k.first, last: k.last, base: k.base_offset }).collect();
        ProducerState { id, epoch: self.epoch, batches }
    }

    /// Forgets the batches at or behind `end`. The first of them.
    fn cut(&mut self, end: Offset) -> Option<Kept> {
        let mut first = None;
        while self.kept > 0 && self.batches[self.kept - 1].base_offset >= end {
            self.kept -= 1;
            first = Some(self.batches[self.kept]);
        }
        first
    }

    fn push(&mut self, batch: Kept) {
        self.kept -= usize::from(self.kept == 1 && self.batches[0].is_none());
        if self.kept == BATCHES_KEPT {
            self.batches.rotate_left(1);
            self.batches[BATCHES_KEPT - 1] = batch;
        } else {
            self.batches[self.kept] = batch;
            self.kept += 1;
        }
    }
}

impl Kept {
    /// No batch, but the knowledge that the producer's next one begins with `next`. No batch is taken for its duplicate.
    fn none_before(next: Sequence, base_offset: Offset) -> Self {
        Self { first: next, last: before(next), base_offset }
    }

    fn is_none(&self) -> bool {
        self.last == before(self.first)
    }
}

/// The opposite of [`after`].
fn before(sequence: Sequence) -> Sequence {
    Sequence(sequence.0.wrapping_sub(1) & i32::MAX as u32)
}

/// The sequence number that follows; `i32::MAX` is followed by 0.
fn after(sequence: Sequence) -> Sequence {
    Sequence(sequence.0.wrapping_add(1) & i32::MAX as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchBuilder, parse_header};

    fn at(secs: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(secs)
    }

    /// The header of a batch of `records` records.
    fn batch(id: u64, epoch: u16, sequence: u32, records: u32) -> BatchHeader {
        let producer = BatchProducer {
            id: ProducerId(id),
            epoch: ProducerEpoch(epoch),
            base_sequence: Sequence(sequence),
        };
        let mut b = BatchBuilder::new().producer(producer);
        for _ in 0..records {
            b = b.record(0, None, Some(b"v"));
        }
        parse_header(&b.build()).unwrap()
    }

    fn append(p: &mut Producers, header: &BatchHeader, base: u64) {
        assert_eq!(p.check(header), Ok(Check::New));
        p.record(at(0), header, Offset(base), Offset(base));
    }

    fn duplicate(base: u64) -> Result<Check, PartitionError> {
        Ok(Check::Duplicate { base_offset: Offset(base) })
    }

    #[test]
    fn batch_without_producer_is_always_new_and_leaves_no_state() {
        let mut p = Producers::default();
        let header = parse_header(&BatchBuilder::new().record(0, None, None).build()).unwrap();
        append(&mut p, &header, 0);
        assert!(p.is_empty());
    }

    #[test]
    fn unknown_producer_may_begin_at_any_sequence() {
        let mut p = Producers::default();
        append(&mut p, &batch(1, 3, 77, 2), 10);
        assert_eq!(p.check(&batch(1, 3, 79, 1)), Ok(Check::New));
    }

    #[test]
    fn check_alone_changes_nothing() {
        let p = Producers::default();
        assert_eq!(p.check(&batch(1, 0, 0, 1)), Ok(Check::New));
        assert_eq!(p.check(&batch(1, 0, 0, 1)), Ok(Check::New));
    }

    #[test]
    fn same_batch_again_is_answered_with_its_first_offset() {
        let mut p = Producers::default();
        append(&mut p, &batch(1, 0, 0, 3), 100);
        append(&mut p, &batch(2, 0, 0, 3), 103);
        assert_eq!(p.check(&batch(1, 0, 0, 3)), duplicate(100));
        assert_eq!(p.check(&batch(2, 0, 0, 3)), duplicate(103));
    }

    #[test]
    fn only_exactly_equal_sequences_are_a_duplicate() {
        let mut p = Producers::default();
        append(&mut p, &batch(1, 0, 0, 3), 100);
        assert_eq!(p.check(&batch(1, 0, 0, 2)), Err(PartitionError::OutOfOrderSequence));
        assert_eq!(p.check(&batch(1, 0, 1, 2)), Err(PartitionError::OutOfOrderSequence));
        assert_eq!(p.check(&batch(1, 0, 0, 4)), Err(PartitionError::OutOfOrderSequence));
    }

    #[test]
    fn last_five_batches_are_recognised_and_no_more() {
        let mut p = Producers::default();
        for i in 0..6 {
            append(&mut p, &batch(1, 0, i * 2, 2), u64::from(i) * 2);
        }
        assert_eq!(p.check(&batch(1, 0, 0, 2)), Err(PartitionError::OutOfOrderSequence));
        for i in 1..6 {
            assert_eq!(p.check(&batch(1, 0, i * 2, 2)), duplicate(u64::from(i) * 2));
        }
    }

    #[test]
    fn gap_and_step_back_are_out_of_order() {
        let mut p = Producers::default();
        append(&mut p, &batch(1, 0, 0, 5), 0);
        assert_eq!(p.check(&batch(1, 0, 6, 1)), Err(PartitionError::OutOfOrderSequence));
        assert_eq!(p.check(&batch(1, 0, 4, 1)), Err(PartitionError::OutOfOrderSequence));
        assert_eq!(p.check(&batch(1, 0, 5, 1)), Ok(Check::New));
    }

    #[test]
    fn sequence_wraps_after_i32_max() {
        let max = i32::MAX as u32;
        let mut p = Producers::default();
        append(&mut p, &batch(1, 0, max - 1, 2), 0);
        append(&mut p, &batch(1, 0, 0, 1), 2);

        // And within one batch.
        append(&mut p, &batch(2, 0, max, 3), 3);
        assert_eq!(p.check(&batch(2, 0, max, 3)), duplicate(3));
        assert_eq!(p.check(&batch(2, 0, 2, 1)), Ok(Check::New));
        assert_eq!(p.check(&batch(2, 0, 1, 1)), Err(PartitionError::OutOfOrderSequence));
    }

    #[test]
    fn older_epoch_is_refused_even_with_the_right_sequence() {
        let mut p = Producers::default();
        append(&mut p, &batch(1, 5, 0, 1), 0);
        assert_eq!(p.check(&batch(1, 4, 1, 1)), Err(PartitionError::InvalidProducerEpoch));
        assert_eq!(p.check(&batch(1, 4, 0, 1)), Err(PartitionError::InvalidProducerEpoch));
    }

    #[test]
    fn newer_epoch_begins_at_zero_and_forgets_the_older_batches() {
        let mut p = Producers::default();
        append(&mut p, &batch(1, 0, 0, 1), 0);
        assert_eq!(p.check(&batch(1, 1, 1, 1)), Err(PartitionError::OutOfOrderSequence));
        append(&mut p, &batch(1, 1, 0, 1), 1);
        assert_eq!(p.check(&batch(1, 1, 0, 1)), duplicate(1));
        assert_eq!(p.check(&batch(1, 0, 0, 1)), Err(PartitionError::InvalidProducerEpoch));
    }

    #[test]
    fn idle_producer_is_forgotten_after_a_day_and_a_busy_one_is_not() {
        let mut p = Producers::default();
        p.record(at(0), &batch(1, 0, 0, 1), Offset(0), Offset::ZERO);
        p.record(at(0), &batch(2, 0, 0, 1), Offset(1), Offset::ZERO);
        p.record(at(3600), &batch(2, 0, 1, 1), Offset(2), Offset::ZERO);
        assert_eq!(p.next_expiry(), Some(at(86_400)));
        p.expire(at(86_399));
        assert_eq!(p.len(), 2);
        p.expire(at(86_400));
        assert_eq!(p.len(), 1);
        assert_eq!(p.check(&batch(1, 0, 9, 1)), Ok(Check::New));
        assert_eq!(p.check(&batch(2, 0, 1, 1)), duplicate(2));
        assert_eq!(p.next_expiry(), Some(at(90_000)));
    }

    #[test]
    fn beyond_the_bound_the_producer_idle_longest_is_forgotten() {
        let mut p = Producers::new(2);
        p.record(at(0), &batch(1, 0, 0, 1), Offset(0), Offset::ZERO);
        p.record(at(10), &batch(2, 0, 0, 1), Offset(1), Offset::ZERO);
        p.record(at(20), &batch(1, 0, 1, 1), Offset(2), Offset::ZERO);
        p.record(at(30), &batch(3, 0, 0, 1), Offset(3), Offset::ZERO);
        assert_eq!(p.len(), 2);
        assert_eq!(p.check(&batch(1, 0, 1, 1)), duplicate(2));
        assert_eq!(p.check(&batch(3, 0, 0, 1)), duplicate(3));
        assert_eq!(p.check(&batch(2, 0, 9, 1)), Ok(Check::New));
    }

    #[test]
    fn state_that_a_checkpoint_kept_knows_the_same_batches() {
        let mut p = Producers::default();
        for i in 0..8 {
            append(&mut p, &batch(1, 0, i * 2, 2), u64::from(i) * 10);
        }
        append(&mut p, &batch(9, 4, 77, 1), 90);
        let kept = Producers::from_list(at(1), &p.to_list(), &[]);
        assert_eq!(kept.to_list(), p.to_list());
        for sequence in 0..20 {
            let probe = batch(1, 0, sequence, 2);
            assert_eq!(kept.check(&probe), p.check(&probe));
        }
    }

    #[test]
    fn a_cut_log_takes_back_what_was_behind_the_cut() {
        let mut p = Producers::default();
        for i in 0..4 {
            append(&mut p, &batch(1, 0, i * 2, 2), u64::from(i) * 10);
        }
        append(&mut p, &batch(2, 0, 0, 1), 40);
        p.cut(Offset(20));
        assert_eq!(p.check(&batch(1, 0, 2, 2)), duplicate(10));
        assert_eq!(p.check(&batch(1, 0, 4, 2)), Ok(Check::New));
        assert_eq!(p.check(&batch(1, 0, 6, 2)), Err(PartitionError::OutOfOrderSequence));
        assert_eq!(p.len(), 1, "of producer 2 nothing is left");
        p.expire(at(1) + EXPIRY);
        assert!(p.is_empty());
    }

    #[test]
    fn of_a_producer_of_which_no_kept_batch_is_left_the_next_one_is_known() {
        let mut p = Producers::default();
        for i in 0..7 {
            append(&mut p, &batch(1, 0, i * 2, 2), u64::from(i) * 2);
        }
        // They are far from the log's end by now.
        let mut p = Producers::from_list(at(0), &p.to_list(), &[]);
        p.cut(Offset(4));
        for p in [&mut Producers::from_list(at(0), &p.to_list(), &[]), &mut p] {
            assert_eq!(p.check(&batch(1, 0, 6, 2)), Err(PartitionError::OutOfOrderSequence));
            assert_eq!(p.check(&batch(1, 0, 2, 2)), Err(PartitionError::OutOfOrderSequence));
            p.cut(Offset(4));
            for i in 2..7 {
                append(p, &batch(1, 0, i * 2, 2), u64::from(i) * 2);
            }
            assert_eq!(p.check(&batch(1, 0, 4, 2)), duplicate(4));
            p.cut(Offset(4));
            assert_eq!(p.check(&batch(1, 0, 6, 2)), Err(PartitionError::OutOfOrderSequence));
            p.cut(Offset(3));
            assert!(p.is_empty(), "what is left is not known any more");
        }
    }

    #[test]
    fn a_log_that_is_cut_again_and_again_leaves_what_its_rest_says() {
        let mut live = Producers::default();
        let mut log = Vec::new();
        for i in 0..40_u32 {
            // Two producers; one begins anew on the way, and one is new.
            let id = if i < 30 || i % 2 == 0 { 1 } else { 2 };
            let (epoch, sequence) = match (id, i) {
                (1, ..20) => (0, i * 2),
                (1, _) => (
                    1,
                    log.iter().filter(|(h, _): &&(BatchHeader, _)| h.producer.unwrap().epoch.0 == 1).count()
                        as u32
                        * 2,
                ),
                _ => (0, (i - 31) / 2 * 2),
            };
            let header = batch(id, epoch, sequence, 2);
            live.record(at(0), &header, Offset(u64::from(i) * 2), Offset(4));
            log.push((header, Offset(u64::from(i) * 2)));
        }
        let mut kept = Producers::from_list(at(1), &live.to_list(), &live.superseded(Offset(4)));
        for end in [80, 79, 70, 62, 60, 50, 41, 40, 38, 20, 12, 6, 4] {
            let mut left = Producers::default();
            for (header, base) in log.iter().filter(|(_, base)| base.0 < end) {
                left.record(at(0), header, *base, Offset::ZERO);
            }
            live.cut(Offset(end));
            kept.cut(Offset(end));
            assert_eq!(live.to_list(), left.to_list(), "{end}");
            assert_eq!(kept.to_list(), left.to_list(), "{end}, from a checkpoint");
            assert_eq!(live.by_idleness.len(), live.len());
        }
    }

    #[test]
    fn what_no_cut_can_reach_is_not_kept() {
        let mut p = Producers::default();
        for i in 0..100 {
            p.record(at(0), &batch(1, 0, i * 2, 2), Offset(u64::from(i) * 2), Offset(u64::from(i)));
        }
        assert_eq!(p.undo.len(), 50);
        assert_eq!(p.superseded(Offset(190)).len(), 5);
        for i in 100..5_000 {
            p.record(at(0), &batch(1, 0, i * 2, 2), Offset(u64::from(i) * 2), Offset::ZERO);
        }
        assert_eq!(p.undo.len(), UNDO_MAX);
    }

    #[test]
    fn state_rebuilt_from_the_log_equals_the_one_that_was_lost() {
        let mut live = Producers::default();
        let mut appended = Vec::new();
        for i in 0..20 {
            let epoch = if i < 8 { 0 } else { 1 };
            let header = batch(1, epoch, (i % 8) * 2, 2);
            if live.check(&header) == Ok(Check::New) {
                live.record(at(0), &header, Offset(u64::from(i) * 2), Offset::ZERO);
                appended.push((header, Offset(u64::from(i) * 2)));
            }
        }
        let mut rebuilt = Producers::default();
        for (header, base) in &appended {
            rebuilt.record(at(5), header, *base, Offset::ZERO);
        }
        assert!(appended.len() >= 16);
        for epoch in 0..3 {
            for sequence in 0..20 {
                let probe = batch(1, epoch, sequence, 2);
                assert_eq!(rebuilt.check(&probe), live.check(&probe));
            }
        }
    }
}
