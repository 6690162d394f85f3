//! The partitions of a shard, and what operations do to them.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::clients::refusal;
use super::reads::Sought;
use super::{Held, Shard, Timer};
use crate::batch::{self, BatchHeader, Limits};
use crate::front::Front;
use crate::ids::{LeaderEpoch, Map, NodeId, Offset, PartitionId};
use crate::log::journal::{AppendRefused, LogPosition, Marker, Urgency};
use crate::mail::{
    Acks, Answer, Appended, Assignment, Durability, Locate, Located, Op, PartitionError, ReadError, ReplyTo,
};
use crate::partition::batches::BatchRef;
use crate::partition::waiters::Waiter;
use crate::partition::{Admission, Assigned, Partition};
use crate::stats::{PARTITIONS_MAX, PartitionStats};
use crate::time::Instant;

/// A partition's place in this shard. Never used again for another one, so a late reference finds nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Slot(u32);

pub(super) struct Partitions {
    node: NodeId,
    slots: Vec<Option<Box<Partition>>>,
    by_id: Map<PartitionId, Slot>,
    tail: Tail,
    /// Where partitions end once a marker is flushed: ascending markers.
    flushing: VecDeque<(Marker, Slot, Offset)>,
    /// Everything up to this marker is on disk.
    flushed: Marker,
}

/// The marker of batches that recovery read from disk.
const ON_DISK: Marker = Marker(0);

/// The batches in memory, oldest first over all partitions.
///
/// Memory is counted as the stretch of the journal from the oldest batch to the newest: batches share the blocks that
/// the journal wrote, padding included, and a block is free only when none of its batches is held.
#[derive(Default)]
struct Tail {
    entries: VecDeque<TailEntry>,
    /// Where the newest batch ends, in bytes of all journal files one after the other.
    end: u64,
}

#[derive(Clone, Copy)]
struct TailEntry {
    slot: Slot,
    /// Counted as `Tail::end`.
    at: u64,
    /// Once this is flushed the batch can be read from disk, and may leave memory.
    marker: Marker,
}

impl Tail {
    fn push(&mut self, slot: Slot, batch: &BatchRef, file_bytes: u64, marker: Marker) {
        let at = batch.at.file.0 * file_bytes + batch.at.position;
        self.entries.push_back(TailEntry { slot, at, marker });
        self.end = at + u64::from(batch.len);
    }

    fn bytes(&self) -> u64 {
        self.entries.front().map_or(0, |oldest| self.end.saturating_sub(oldest.at))
    }
}

impl Partitions {
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            slots: Vec::new(),
            by_id: Map::default(),
            tail: Tail::default(),
            flushing: VecDeque::new(),
            flushed: ON_DISK,
        }
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn tail_bytes(&self) -> u64 {
        self.tail.bytes()
    }

    /// In the order of ids.
    pub fn ids(&self) -> impl Iterator<Item = PartitionId> + use<> {
        let mut ids: Vec<PartitionId> = self.by_id.keys().copied().collect();
        ids.sort_unstable();
        ids.into_iter()
    }

    pub fn slot(&self, id: PartitionId) -> Option<Slot> {
        self.by_id.get(&id).copied()
    }

    pub fn get(&self, slot: Slot) -> Option<&Partition> {
        self.slots.get(slot.0 as usize)?.as_deref()
    }

    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut Partition> {
        self.slots.get_mut(slot.0 as usize)?.as_deref_mut()
    }

    fn slot_or_new(&mut self, id: PartitionId) -> Slot {
        if let Some(slot) = self.slot(id) {
            return slot;
        }
        let slot = Slot(u32::try_from(self.slots.len()).expect("fewer than 2^32 partitions in one life"));
        self.slots.push(Some(Box::new(Partition::new(id, self.node))));
        self.by_id.insert(id, slot);
        slot
    }

    fn remove(&mut self, id: PartitionId) -> Option<Box<Partition>> {
        let slot = self.by_id.remove(&id)?;
        self.slots[slot.0 as usize].take()
    }

    /// Lets go of the oldest batches until the tail fits. What is not on disk yet stays.
    fn evict(&mut self, bytes_max: usize) {
        while self.tail.bytes() > bytes_max as u64
            && let Some(oldest) = self.tail.entries.front().copied()
            && oldest.marker <= self.flushed
        {
            self.tail.entries.pop_front();
            if let Some(partition) = self.get_mut(oldest.slot) {
                partition.evict_oldest();
            }
        }
    }

    pub fn stats(&self) -> Vec<PartitionStats> {
        let stats = |p: &Partition| PartitionStats {
            partition: p.id,
            log_start: p.log_start(),
            high_watermark: p.high_watermark(),
            log_end: p.log_end(),
        };
        let known = self.ids().filter_map(|id| self.get(self.slot(id)?));
        known.take(PARTITIONS_MAX).map(stats).collect()
    }
}

impl<F: Front> Shard<F> {
    pub(super) fn assign(&mut self, assignment: &Assignment) {
        let slot = self.partitions.slot_or_new(assignment.partition);
        let partition = self.partitions.get_mut(slot).expect("the slot was just found or made");
        match partition.assign(assignment) {
            Assigned::Stale => {}
            Assigned::Leading => self.settle(slot),
            Assigned::LeadingAnew => {
                self.refuse_waiters(slot, PartitionError::NotLeader);
                self.settle(slot);
            }
            Assigned::NotLeading => {
                self.refuse_waiters(slot, PartitionError::NotLeader);
                self.wake_watchers(slot);
            }
        }
    }

    /// The partition is no longer on this node. Its batches stay in the journal until its files are released.
    pub(super) fn unassign(&mut self, id: PartitionId) {
        let Some(slot) = self.partitions.slot(id) else { return };
        self.refuse_waiters(slot, PartitionError::NotLeader);
        self.wake_watchers(slot);
        self.timers.cancel(Timer::Waiters(slot));
        self.timers.cancel(Timer::Producers(slot));
        let partition = self.partitions.remove(id).expect("its slot was just found");
        // Its entries in the tail free nothing but their own accounting from here on.
        drop(partition);
    }

    pub(super) fn replay(
        &mut self,
        id: PartitionId,
        header: &BatchHeader,
        base: Offset,
        at: LogPosition,
        bytes: Bytes,
    ) {
        let slot = self.partitions.slot_or_new(id);
        let batch = batch_ref(header, base, at);
        let partition = self.partitions.get_mut(slot).expect("the slot was just found or made");
        partition.replay(self.now, batch, header, bytes);
        self.partitions.tail.push(slot, &batch, self.config.journal.file_bytes, ON_DISK);
        self.partitions.evict(self.config.tail_bytes_max);
    }

    /// Does an operation on a partition of this shard and answers it, now or when what it waits for has come.
    pub(super) fn run_op(&mut self, to: ReplyTo, id: PartitionId, op: Op) {
        let Some(slot) = self.partitions.slot(id) else {
            if !matches!(op, Op::Unwatch) {
                self.answer(to, refusal(&op, PartitionError::NotOwned));
            }
            return;
        };
        match op {
            Op::Append { acks, deadline, records } => {
                if let Err(error) = self.append(to, slot, acks, deadline, &records) {
                    self.stats.appends_refused += 1;
                    self.answer(to, Answer::Appended(Err(error)));
                }
            }
            Op::Read { current_epoch, offset, bytes_max, first_batch_whole, watch_below_bytes } => {
                let wanted = super::reads::ReadOp {
                    current_epoch,
                    from: offset,
                    bytes_max: bytes_max as usize,
                    first_whole: first_batch_whole,
                    watch_below_bytes: watch_below_bytes as usize,
                };
                self.read(to, slot, wanted);
            }
            Op::Unwatch => {
                if let Some(partition) = self.partitions.get_mut(slot) {
                    partition.waiters.unwatch(to);
                }
            }
            Op::Locate { current_epoch, at } => self.locate(to, slot, current_epoch, at),
            Op::EpochEnd { current_epoch, epoch } => {
                let partition = self.partitions.get(slot).expect("its slot was just found");
                let result = partition.check_epoch(current_epoch).map(|()| partition.end_of_epoch(epoch));
                self.answer(to, Answer::EpochEnd(result));
            }
            Op::DeleteRecords { .. } => self.answer(to, Answer::Deleted(Err(PartitionError::StorageFailed))),
        }
    }

    fn append(
        &mut self,
        to: ReplyTo,
        slot: Slot,
        acks: Acks,
        deadline: Instant,
        records: &Bytes,
    ) -> Result<(), PartitionError> {
        let Partitions { slots, tail, flushing, .. } = &mut self.partitions;
        let partition = slots[slot.0 as usize].as_deref_mut().expect("the caller found its slot");
        let batch_bytes_max = partition.config().batch_bytes_max.min(self.config.batch_bytes_max());
        let limits = Limits { batch_bytes_max, keys_required: partition.config().log.compact };
        let batches = batch::validate_produced(records, limits)?;
        let base_offset = match partition.admit(&batches, acks == Acks::All)? {
            Admission::Duplicate { base_offset, end } => {
                self.acknowledge(to, slot, acks, deadline, base_offset, end);
                return Ok(());
            }
            Admission::New { epoch } => {
                let id = partition.id;
                let urgency = match partition.durability() {
                    Durability::Fsync => Urgency::Sync,
                    Durability::Replicated => Urgency::Lazy,
                };
                if batches.idempotent().is_some()
                    && let Some(at) = partition.arm_producers(self.now)
                {
                    self.timers.set(Timer::Producers(slot), at);
                }
                let base_offset = partition.log_end();
                for (header, bytes) in batches.iter() {
                    let base = partition.log_end();
                    let placed = self
                        .journal
                        .append(self.now, id, base, epoch, bytes, urgency)
                        // Batches before this one stay, as if the answer to them had been lost on its way. A
                        // producer that numbers its batches sends one at a time, so nothing is doubled for it.
                        .map_err(refused)?;
                    let batch = batch_ref(header, base, placed.at);
                    partition.appended(self.now, batch, header, placed.bytes);
                    let end = partition.log_end();
                    self.stats.records_appended += u64::from(header.records);
                    self.stats.batches_appended += 1;
                    self.stats.bytes_appended += u64::from(batch.len);
                    tail.push(slot, &batch, self.config.journal.file_bytes, placed.marker);
                    note_flushing(flushing, placed.marker, slot, end);
                }
                base_offset
            }
        };
        self.partitions.evict(self.config.tail_bytes_max);
        let end = self.partitions.get(slot).expect("the caller found its slot").log_end();
        self.acknowledge(to, slot, acks, deadline, base_offset, end);
        self.settle(slot);
        Ok(())
    }

    /// Answers an append that is in the log, at once or when the high watermark has passed its end.
    fn acknowledge(
        &mut self,
        to: ReplyTo,
        slot: Slot,
        acks: Acks,
        deadline: Instant,
        base_offset: Offset,
        end: Offset,
    ) {
        let partition = self.partitions.get_mut(slot).expect("the caller found its slot");
        let appended = Appended { base_offset, log_start: partition.log_start(), throttle: Duration::ZERO };
        if acks == Acks::All && partition.high_watermark() < end {
            let waiter = Waiter { end, deadline, since: self.now, reply_to: to, appended };
            if let Some(at) = partition.waiters.wait(waiter) {
                self.timers.set(Timer::Waiters(slot), at);
            }
            return;
        }
        self.answer_appended(to, self.now, deadline, appended);
    }

    fn answer_appended(&mut self, to: ReplyTo, since: Instant, deadline: Instant, appended: Appended) {
        let nanos = u64::try_from((self.now - since).as_nanos()).unwrap_or(u64::MAX);
        if let Some(histogram) = &mut self.stats.append_latency {
            histogram.saturating_record(nanos);
        }
        let answer = Answer::Appended(Ok(appended));
        if self.journal.over_backlog() {
            self.hold(Held { to, answer, deadline });
        } else {
            self.answer(to, answer);
        }
    }

    /// After the high watermark may have moved: answers the produces it passed and wakes the fetches it serves.
    fn settle(&mut self, slot: Slot) {
        let Some(partition) = self.partitions.get_mut(slot) else { return };
        let high_watermark = partition.high_watermark();
        let enough = partition.has_quorum();
        let mut released = Vec::new();
        while let Some(waiter) = partition.waiters.release(high_watermark) {
            released.push(waiter);
        }
        let mut readers = Vec::new();
        partition.waiters.readable(high_watermark, |to| readers.push(to));
        for waiter in released {
            if enough {
                self.answer_appended(waiter.reply_to, waiter.since, waiter.deadline, waiter.appended);
            } else {
                let error = PartitionError::NotEnoughReplicasAfterAppend;
                self.answer(waiter.reply_to, Answer::Appended(Err(error)));
            }
        }
        for reader in readers {
            self.answer(reader, Answer::Readable);
        }
    }

    pub(super) fn on_flushed(&mut self, upto: Marker) {
        self.partitions.flushed = upto;
        while let Some(&(marker, slot, end)) = self.partitions.flushing.front() {
            if marker > upto {
                break;
            }
            self.partitions.flushing.pop_front();
            if let Some(partition) = self.partitions.get_mut(slot) {
                partition.flushed(end);
                self.settle(slot);
            }
        }
        self.partitions.evict(self.config.tail_bytes_max);
    }

    pub(super) fn expire_waiters(&mut self, slot: Slot) {
        let now = self.now;
        let Some(partition) = self.partitions.get_mut(slot) else { return };
        let mut expired = Vec::new();
        if let Some(next) = partition.waiters.expire(now, |waiter| expired.push(waiter.reply_to)) {
            self.timers.set(Timer::Waiters(slot), next);
        }
        for to in expired {
            self.answer(to, Answer::Appended(Err(PartitionError::TimedOut)));
        }
    }

    pub(super) fn expire_producers(&mut self, slot: Slot) {
        let now = self.now;
        if let Some(next) =
            self.partitions.get_mut(slot).and_then(|partition| partition.expire_producers(now))
        {
            self.timers.set(Timer::Producers(slot), next);
        }
    }

    fn refuse_waiters(&mut self, slot: Slot, error: PartitionError) {
        let Some(partition) = self.partitions.get_mut(slot) else { return };
        for waiter in partition.waiters.take_produces() {
            self.answer(waiter.reply_to, Answer::Appended(Err(error)));
        }
    }

    fn wake_watchers(&mut self, slot: Slot) {
        let Some(partition) = self.partitions.get_mut(slot) else { return };
        for to in partition.waiters.take_watches() {
            self.answer(to, Answer::Readable);
        }
    }

    pub(super) fn refuse_all_waiters(&mut self, error: PartitionError) {
        for id in self.partitions.ids() {
            if let Some(slot) = self.partitions.slot(id) {
                self.refuse_waiters(slot, error);
            }
        }
    }

    fn locate(&mut self, to: ReplyTo, slot: Slot, current_epoch: Option<LeaderEpoch>, at: Locate) {
        let partition = self.partitions.get(slot).expect("the caller found its slot");
        if let Err(error) = partition.check_epoch(current_epoch) {
            self.answer(to, Answer::Located(Err(error)));
            return;
        }
        let end_of_log =
            |offset| Located { offset, timestamp_ms: None, leader_epoch: partition.epoch_of(offset) };
        let result = match at {
            Locate::Earliest => Ok(Some(end_of_log(partition.log_start()))),
            Locate::Latest => partition.latest().map(|offset| Some(end_of_log(offset))),
            Locate::LargestTimestamp => match partition.largest_timestamp() {
                Some(timestamp_ms) => return self.locate_in(to, slot, timestamp_ms, Sought::Largest),
                None => Ok(None),
            },
            Locate::Timestamp(timestamp_ms) => {
                return self.locate_in(to, slot, timestamp_ms, Sought::AtOrAfter(timestamp_ms));
            }
        };
        self.answer(to, Answer::Located(result));
    }
}

fn batch_ref(header: &BatchHeader, base: Offset, at: LogPosition) -> BatchRef {
    let next = base.plus(u64::from(header.last_offset_delta) + 1);
    BatchRef { base, next, at, len: header.len, max_timestamp_ms: header.max_timestamp_ms }
}

/// Successive appends to one partition in one chunk need one entry: where the last of them ends.
fn note_flushing(flushing: &mut VecDeque<(Marker, Slot, Offset)>, marker: Marker, slot: Slot, end: Offset) {
    match flushing.back_mut() {
        Some((m, s, e)) if *m == marker && *s == slot => *e = end,
        _ => flushing.push_back((marker, slot, end)),
    }
}

fn refused(refused: AppendRefused) -> PartitionError {
    match refused {
        AppendRefused::Full => PartitionError::StorageFull,
        AppendRefused::Overloaded | AppendRefused::NotReady => PartitionError::Overloaded,
    }
}

impl From<PartitionError> for ReadError {
    fn from(error: PartitionError) -> Self {
        Self { error, ends: None }
    }
}
