//! The partitions of a shard, and what operations do to them.

use std::collections::VecDeque;

use bytes::Bytes;

use super::clients::refusal;
use super::{Held, Shard, Stop, Timer};
use crate::batch::{self, BatchHeader, Limits};
use crate::front::Front;
use crate::ids::{LeaderEpoch, NodeId, Offset, PartitionId};
use crate::log::checkpoint::LogState;
use crate::log::journal::{AppendRefused, Marker, Urgency};
use crate::log::storage::Noted;
use crate::log::{Note, Slot};
use crate::mail::{
    Acks, Answer, Appended, Assignment, Durability, Locate, Located, Op, PartitionError, ReadError, ReplyTo,
};
use crate::partition::waiters::Waiter;
use crate::partition::{Admission, Assigned, Partition};
use crate::stats::{PARTITIONS_MAX, PartitionStats};
use crate::stream::Refusal;
use crate::time::Instant;

/// The replicas of this shard, in the slots of their logs.
pub(super) struct Partitions {
    node: NodeId,
    slots: Vec<Option<Box<Partition>>>,
    /// Where partitions end once a marker is flushed: ascending markers.
    flushing: VecDeque<(Marker, Slot, Offset)>,
}

impl Partitions {
    pub fn new(node: NodeId) -> Self {
        Self { node, slots: Vec::new(), flushing: VecDeque::new() }
    }

    pub fn get(&self, slot: Slot) -> Option<&Partition> {
        self.slots.get(slot.0 as usize)?.as_deref()
    }

    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut Partition> {
        self.slots.get_mut(slot.0 as usize)?.as_deref_mut()
    }

    /// The replica in `slot`, an empty one that serves nobody if there was none.
    fn get_or_new(&mut self, slot: Slot, id: PartitionId) -> &mut Partition {
        let at = slot.0 as usize;
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, || None);
        }
        self.slots[at].get_or_insert_with(|| Box::new(Partition::new(id, self.node)))
    }

    fn remove(&mut self, slot: Slot) {
        if let Some(place) = self.slots.get_mut(slot.0 as usize) {
            *place = None;
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Partition> {
        self.slots.iter().flatten().map(Box::as_ref)
    }

    pub fn taken(&self) -> impl Iterator<Item = Slot> + use<> {
        let taken = (0..).map(Slot).zip(&self.slots).filter(|(_, p)| p.is_some());
        let slots: Vec<Slot> = taken.map(|(slot, _)| slot).collect();
        slots.into_iter()
    }

    /// Notes that what the log holds up to `end` is on disk once `marker` is flushed.
    pub fn note_flushing(&mut self, marker: Marker, slot: Slot, end: Offset) {
        note_flushing(&mut self.flushing, marker, slot, end);
    }

    /// The log ends at `end` from now on: nothing behind will be on disk.
    pub fn forget_flushing(&mut self, slot: Slot, end: Offset) {
        for (_, _, flushing) in self.flushing.iter_mut().filter(|(_, s, _)| *s == slot) {
            *flushing = end.min(*flushing);
        }
    }

    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// In the order of ids.
    pub fn ids(&self) -> Vec<PartitionId> {
        let mut ids: Vec<PartitionId> = self.iter().map(|p| p.id).collect();
        ids.sort_unstable();
        ids
    }

    pub fn stats(&self) -> Vec<PartitionStats> {
        let mut known: Vec<&Partition> = self.iter().collect();
        known.sort_unstable_by_key(|p| p.id);
        let stats = |p: &Partition| PartitionStats {
            partition: p.id,
            log_start: p.log_start(),
            high_watermark: p.high_watermark(),
            log_end: p.log_end(),
        };
        known.into_iter().take(PARTITIONS_MAX).map(stats).collect()
    }
}

impl Noted for Partitions {
    fn noted(&self, slot: Slot, state: &mut LogState) {
        if let Some(partition) = self.get(slot) {
            partition.note(state);
        }
    }

    fn high_watermark(&self, slot: Slot) -> Offset {
        self.get(slot).map_or(Offset::ZERO, Partition::high_watermark)
    }
}

impl<F: Front> Shard<F> {
    pub(super) fn assign(&mut self, assignment: &Assignment) {
        let slot = self.storage.open(assignment.partition);
        self.storage.configure(slot, &assignment.config.log);
        let partition = self.partitions.get_or_new(slot, assignment.partition);
        match partition.assign(self.now, assignment) {
            Assigned::Stale => {}
            Assigned::Leading => {
                self.finish_deletions();
                self.dismiss_strangers(slot);
                self.begin_to_lead(slot);
            }
            Assigned::LeadingAnew => {
                self.unfollow(slot);
                self.refuse_waiters(slot, PartitionError::NotLeader);
                self.dismiss(slot, Refusal::FencedEpoch);
                self.begin_to_lead(slot);
            }
            // What counts as acknowledged may be another thing now.
            Assigned::Following => self.owe_ack(slot),
            Assigned::FollowingAnew => {
                self.finish_deletions();
                self.refuse_waiters(slot, PartitionError::NotLeader);
                self.wake_watchers(slot);
                self.dismiss(slot, Refusal::NotLeader);
                self.follow(slot);
            }
            Assigned::NotLeading => {
                self.finish_deletions();
                self.unfollow(slot);
                self.refuse_waiters(slot, PartitionError::NotLeader);
                self.wake_watchers(slot);
                self.dismiss(slot, Refusal::NotLeader);
            }
        }
    }

    /// After committed metadata let this replica lead, or go on.
    fn begin_to_lead(&mut self, slot: Slot) {
        self.settle(slot);
        let partition = self.partitions.get(slot).expect("it was just assigned");
        if partition.in_sync().is_some_and(|in_sync| in_sync.has_followers()) {
            self.arm_lag();
            self.reconsider(slot);
        }
    }

    /// The partition is no longer on this node: its records are deleted. A log that is stopping deletes nothing more, and
    /// what it notes of the partition in the end must be whole, for it may be here again when the next life begins;
    /// otherwise that one finds a log that nobody wants.
    pub(super) fn unassign(&mut self, id: PartitionId) {
        if self.stop != Stop::No {
            return;
        }
        let Some(slot) = self.storage.slot(id) else { return };
        self.refuse_waiters(slot, PartitionError::NotLeader);
        self.wake_watchers(slot);
        self.timers.cancel(Timer::Waiters(slot));
        self.timers.cancel(Timer::Producers(slot));
        self.unfollow(slot);
        self.dismiss(slot, Refusal::NotLeader);
        self.partitions.remove(slot);
        self.finish_deletions();
        // Refused only by a log that failed: then the next start finds a log that nobody wants.
        let _ = self.storage.drop_log(self.now, slot);
    }

    pub(super) fn restore(&mut self, slot: Slot, state: &LogState) {
        self.partitions.get_or_new(slot, state.partition).restore(self.now, state);
    }

    pub(super) fn replay(&mut self, slot: Slot, header: &BatchHeader, base: Offset, is_noted: bool) {
        // A log that is not there any more was dropped by a later entry.
        if let Some(id) = self.storage.partition(slot) {
            self.partitions.get_or_new(slot, id).replay(self.now, header, base, is_noted);
        }
    }

    pub(super) fn replay_note(&mut self, slot: Slot, note: Note, is_noted: bool) {
        match (note, self.partitions.get_mut(slot)) {
            (Note::Dropped, _) => self.partitions.remove(slot),
            (Note::Truncated { end }, Some(partition)) => {
                partition.replay_cut(end, is_noted);
            }
            (Note::Started { start }, Some(partition)) => partition.start_at(start),
            (_, None) => {}
        }
    }

    pub(super) fn on_recovered(&mut self) {
        for slot in self.partitions.taken() {
            let partition = self.partitions.get_mut(slot).expect("it is taken");
            partition.recovered();
        }
    }

    /// Does an operation on a partition of this shard and answers it, now or when what it waits for has come.
    pub(super) fn run_op(&mut self, to: ReplyTo, id: PartitionId, op: Op) {
        let Some(slot) = self.storage.slot(id).filter(|&slot| self.partitions.get(slot).is_some()) else {
            if !matches!(op, Op::Unwatch) {
                self.answer(to, refusal(&op, PartitionError::NotOwned));
            }
            return;
        };
        // What a follower would answer is committed however long it has heard nothing, but it may never hear more: its
        // readers are better off with the leader, as they are when it leaves the ISR.
        if self.is_lease_over() && !matches!(op, Op::Unwatch) {
            return self.answer(to, refusal(&op, PartitionError::NotLeader));
        }
        match op {
            Op::Append { acks, deadline, records } => {
                if let Err(error) = self.append(to, slot, acks, deadline, &records) {
                    self.stats.appends_refused += 1;
                    // Those of its batches that were appended are.
                    self.mark(slot);
                    self.answer(to, Answer::Appended(Err(error)));
                }
            }
            Op::Read {
                from_follower,
                nearer,
                current_epoch,
                offset,
                bytes_max,
                first_batch_whole,
                watch_below_bytes,
            } => {
                let wanted = super::reads::ReadOp {
                    from_follower,
                    current_epoch,
                    from: offset,
                    bytes_max: bytes_max as usize,
                    first_whole: first_batch_whole,
                    watch_below_bytes: watch_below_bytes as usize,
                };
                self.read_or_point(to, slot, wanted, &nearer);
            }
            Op::Unwatch => {
                if let Some(partition) = self.partitions.get_mut(slot) {
                    partition.waiters.unwatch(to);
                }
            }
            Op::DeleteRecords { before, deadline } => {
                if let Err(error) = self.delete_records(to, slot, before, deadline) {
                    self.answer(to, Answer::Deleted(Err(error)));
                }
            }
            Op::Locate { current_epoch, at } => self.locate(to, slot, current_epoch, at),
            Op::EpochEnd { current_epoch, epoch } => {
                let partition = self.partitions.get(slot).expect("its slot was just found");
                let result = partition.check_epoch(current_epoch).map(|()| partition.end_of_epoch(epoch));
                self.answer(to, Answer::EpochEnd(result));
            }
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
        let Partitions { slots, flushing, .. } = &mut self.partitions;
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
                    let marker = self
                        .storage
                        .append(self.now, slot, base, epoch, header, bytes, urgency)
                        // Batches before this one stay, as if the answer to them had been lost on its way. A
                        // producer that numbers its batches sends one at a time, so nothing is doubled for it.
                        .map_err(refused)?;
                    partition.appended(self.now, header, base);
                    let end = partition.log_end();
                    self.stats.records_appended += u64::from(header.records);
                    self.stats.batches_appended += 1;
                    self.stats.bytes_appended += u64::from(header.len);
                    note_flushing(flushing, marker, slot, end);
                }
                base_offset
            }
        };
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
        let throttle = self.storage.throttle();
        let appended = Appended { base_offset, log_start: partition.log_start(), throttle };
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
        if self.storage.over_backlog() {
            self.hold(Held { to, answer, deadline });
        } else {
            self.answer(to, answer);
        }
    }

    /// After the high watermark may have moved: answers the produces it passed and wakes the fetches it serves.
    pub(super) fn settle(&mut self, slot: Slot) {
        self.mark(slot);
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
        while let Some(&(marker, slot, end)) = self.partitions.flushing.front() {
            if marker > upto {
                break;
            }
            self.partitions.flushing.pop_front();
            if let Some(partition) = self.partitions.get_mut(slot) {
                partition.flushed(self.now, end);
                if partition.follower().is_some() {
                    self.owe_flushed_ack(slot);
                } else {
                    self.settle(slot);
                }
            }
        }
        self.on_deletions_flushed(upto);
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
        for slot in self.partitions.taken() {
            self.refuse_waiters(slot, error);
        }
    }

    pub(super) fn wake_all_watchers(&mut self) {
        for slot in self.partitions.taken() {
            self.wake_watchers(slot);
        }
    }

    /// What a follower flushed is news to a leader that counts flushed records only; to another one it goes with the next.
    fn owe_flushed_ack(&mut self, slot: Slot) {
        if self.partitions.get(slot).is_some_and(|p| p.durability() == Durability::Fsync) {
            self.owe_ack(slot);
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
            Locate::LargestTimestamp => return self.locate_largest(to, slot),
            Locate::Timestamp(timestamp_ms) => {
                return self.locate_at_or_after(to, slot, timestamp_ms);
            }
        };
        self.answer(to, Answer::Located(result));
    }
}

/// Successive appends to one partition in one chunk need one entry: where the last of them ends.
fn note_flushing(flushing: &mut VecDeque<(Marker, Slot, Offset)>, marker: Marker, slot: Slot, end: Offset) {
    match flushing.back_mut() {
        Some((m, s, e)) if *m == marker && *s == slot => *e = end,
        _ => flushing.push_back((marker, slot, end)),
    }
}

pub(super) fn refused(refused: AppendRefused) -> PartitionError {
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
