//! Deletions of records that clients ask for: durable before they are answered.

use std::collections::VecDeque;

use super::partitions::refused;
use super::{Shard, Timer};
use crate::front::Front;
use crate::ids::Offset;
use crate::log::Slot;
use crate::log::journal::Marker;
use crate::mail::{Answer, PartitionError, ReplyTo};
use crate::time::Instant;

/// A deletion of records that is answered once the journal has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deletion {
    marker: Marker,
    to: ReplyTo,
    start: Offset,
    deadline: Instant,
}

impl<F: Front> Shard<F> {
    /// Deletes the records before an offset; answered once that is durable.
    pub(super) fn delete_records(
        &mut self,
        to: ReplyTo,
        slot: Slot,
        before: Option<Offset>,
        deadline: Instant,
    ) -> Result<(), PartitionError> {
        let partition = self.partitions.get_mut(slot).expect("the caller found its slot");
        let start = partition.delete_before(before)?;
        if start == partition.log_start() {
            self.answer(to, Answer::Deleted(Ok(start)));
            return Ok(());
        }
        let marker = self.storage.advance_start(self.now, slot, start).map_err(refused)?;
        partition.start_at(start);
        self.mark(slot);
        self.deletions.push_back(Deletion { marker, to, start, deadline });
        if self.deletions.len() == 1 {
            self.timers.set(Timer::Deletions, deadline);
        }
        Ok(())
    }

    pub(super) fn finish_deletions(&mut self, upto: Marker) {
        if self.deletions.is_empty() {
            return;
        }
        while self.deletions.front().is_some_and(|d| d.marker <= upto) {
            let done = self.deletions.pop_front().expect("one is there");
            self.answer(done.to, Answer::Deleted(Ok(done.start)));
        }
        self.arm_deletions();
    }

    /// The records are gone all the same once the disk has caught up; only the answer is given up.
    pub(super) fn expire_deletions(&mut self) {
        let now = self.now;
        let (expired, waiting): (VecDeque<_>, _) =
            std::mem::take(&mut self.deletions).into_iter().partition(|d: &Deletion| d.deadline <= now);
        self.deletions = waiting;
        for late in expired {
            self.answer(late.to, Answer::Deleted(Err(PartitionError::TimedOut)));
        }
        self.arm_deletions();
    }

    fn arm_deletions(&mut self) {
        match self.deletions.iter().map(|d| d.deadline).min() {
            Some(due) => self.timers.set(Timer::Deletions, due),
            None => self.timers.cancel(Timer::Deletions),
        }
    }
}
