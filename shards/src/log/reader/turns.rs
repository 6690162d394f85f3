//! The order in which waiting reads get their turn: logs one after the other, the reads of one log as they came.
//! Floor 1, pure.

use std::collections::{BTreeMap, VecDeque};

use super::super::Slot;
use super::job::JobId;

#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Logs that wait, none with an empty queue.
    waiting: BTreeMap<Slot, VecDeque<JobId>>,
    /// Each log of `waiting` once.
    order: VecDeque<Slot>,
    len: usize,
}

impl Turns {
    pub fn push(&mut self, slot: Slot, job: JobId) {
        let queue = self.waiting.entry(slot).or_default();
        if queue.is_empty() {
            self.order.push_back(slot);
        }
        queue.push_back(job);
        self.len += 1;
    }

    pub fn pop(&mut self) -> Option<JobId> {
        let slot = self.order.pop_front()?;
        let queue = self.waiting.get_mut(&slot).expect("a log in the order waits");
        let job = queue.pop_front().expect("a log that waits has a job");
        if queue.is_empty() {
            self.waiting.remove(&slot);
        } else {
            self.order.push_back(slot);
        }
        self.len -= 1;
        Some(job)
    }

    /// Takes out a job before its turn.
    pub fn remove(&mut self, slot: Slot, job: JobId) {
        let Some(queue) = self.waiting.get_mut(&slot) else { return };
        let before = queue.len();
        queue.retain(|&j| j != job);
        self.len -= before - queue.len();
        if queue.is_empty() {
            self.waiting.remove(&slot);
            self.order.retain(|&s| s != slot);
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_with_many_reads_does_not_hold_up_another() {
        let mut turns = Turns::default();
        for i in 0..5 {
            turns.push(Slot(1), JobId(i));
        }
        turns.push(Slot(2), JobId(10));
        turns.push(Slot(3), JobId(20));
        turns.push(Slot(2), JobId(11));
        turns.remove(Slot(3), JobId(20));
        turns.remove(Slot(1), JobId(1));
        assert_eq!(turns.len(), 6);
        let order: Vec<u64> = std::iter::from_fn(|| turns.pop()).map(|job| job.0).collect();
        assert_eq!(order, [0, 10, 2, 11, 3, 4]);
        assert_eq!(turns.len(), 0);
    }
}
