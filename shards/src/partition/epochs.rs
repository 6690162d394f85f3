//! The leader-epoch cache of one partition: where each leader's records begin. Floor 1, pure.
//!
//! Answers where an epoch ended, from which a follower or a consumer finds the point where its log and ours part
//! (KIP-101, KIP-279, KIP-320).

use crate::ids::{LeaderEpoch, Offset};
use crate::mail::EpochEnd;

/// `entries[i].start <= entries[i + 1].start`, epochs strictly ascending.
#[derive(Clone, Debug, Default)]
pub struct EpochCache {
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    epoch: LeaderEpoch,
    start: Offset,
}

impl EpochCache {
    /// Notes that records from `start` on are of `epoch`. Older or equal epochs change nothing, so that each
    /// append may call it. An epoch that began at the same offset left no record and is forgotten.
    pub fn begin(&mut self, epoch: LeaderEpoch, start: Offset) {
        if self.entries.last().is_some_and(|last| last.epoch >= epoch) {
            return;
        }
        while self.entries.last().is_some_and(|last| last.start >= start) {
            self.entries.pop();
        }
        self.entries.push(Entry { epoch, start });
    }

    /// As a checkpoint keeps it: each epoch with its first offset, ascending.
    pub fn to_list(&self) -> Vec<(LeaderEpoch, Offset)> {
        self.entries.iter().map(|e| (e.epoch, e.start)).collect()
    }

    /// Takes over what [`Self::to_list`] gave.
    pub fn from_list(list: &[(LeaderEpoch, Offset)]) -> Self {
        let mut cache = Self::default();
        for &(epoch, start) in list {
            cache.begin(epoch, start);
        }
        cache
    }

    /// Forgets the epochs that begin at `end` or after: the log ends there now.
    pub fn cut(&mut self, end: Offset) {
        while self.entries.last().is_some_and(|last| last.start >= end) {
            self.entries.pop();
        }
    }

    /// Forgets the epochs that ended at or before `start`: the log begins there now. The one that holds `start` begins
    /// with it.
    pub fn start_at(&mut self, start: Offset) {
        let after = self.entries.partition_point(|e| e.start <= start);
        if let Some(gone) = after.checked_sub(1) {
            self.entries.drain(..gone);
            self.entries[0].start = start;
        }
    }

    pub fn latest(&self) -> Option<LeaderEpoch> {
        self.entries.last().map(|e| e.epoch)
    }

    /// The epoch of the record at `offset`.
    pub fn epoch_of(&self, offset: Offset) -> Option<LeaderEpoch> {
        let after = self.entries.partition_point(|e| e.start <= offset);
        after.checked_sub(1).map(|i| self.entries[i].epoch)
    }

    /// The largest epoch that is at most `asked`, and where it ended: where the next one began, or at the log's
    /// end. `None` when all known epochs are larger.
    pub fn end_of(&self, asked: LeaderEpoch, log_end: Offset) -> Option<EpochEnd> {
        let after = self.entries.partition_point(|e| e.epoch <= asked);
        let entry = self.entries[..after].last()?;
        let end = self.entries.get(after).map_or(log_end, |next| next.start);
        Some(EpochEnd { epoch: entry.epoch, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> EpochCache {
        let mut c = EpochCache::default();
        c.begin(LeaderEpoch(1), Offset(0));
        c.begin(LeaderEpoch(3), Offset(10));
        c.begin(LeaderEpoch(3), Offset(12));
        c.begin(LeaderEpoch(6), Offset(20));
        c
    }

    #[test]
    fn an_epoch_ends_where_the_next_begins() {
        let c = cache();
        let end = |asked| c.end_of(LeaderEpoch(asked), Offset(25)).map(|e| (e.epoch.0, e.end.0));
        assert_eq!(end(0), None);
        assert_eq!(end(1), Some((1, 10)));
        assert_eq!(end(2), Some((1, 10)));
        assert_eq!(end(5), Some((3, 20)));
        assert_eq!(end(6), Some((6, 25)));
        assert_eq!(end(9), Some((6, 25)));
    }

    #[test]
    fn a_record_belongs_to_the_epoch_that_began_at_or_before_it() {
        let c = cache();
        assert_eq!(c.epoch_of(Offset(9)), Some(LeaderEpoch(1)));
        assert_eq!(c.epoch_of(Offset(10)), Some(LeaderEpoch(3)));
        assert_eq!(c.epoch_of(Offset(99)), Some(LeaderEpoch(6)));
        assert_eq!(EpochCache::default().epoch_of(Offset(0)), None);
    }

    #[test]
    fn a_cut_log_forgets_the_epochs_behind_the_cut() {
        let mut c = cache();
        c.cut(Offset(10));
        assert_eq!(c.to_list(), [(LeaderEpoch(1), Offset(0))]);
        c.begin(LeaderEpoch(4), Offset(10));
        assert_eq!(c.epoch_of(Offset(10)), Some(LeaderEpoch(4)));
    }

    #[test]
    fn a_log_that_begins_later_keeps_the_epoch_of_its_first_record() {
        let mut c = cache();
        c.start_at(Offset(15));
        assert_eq!(c.to_list(), [(LeaderEpoch(3), Offset(15)), (LeaderEpoch(6), Offset(20))]);
        c.start_at(Offset(20));
        assert_eq!(c.to_list(), [(LeaderEpoch(6), Offset(20))]);
        c.start_at(Offset(90));
        assert_eq!(c.to_list(), [(LeaderEpoch(6), Offset(90))]);
        assert_eq!(EpochCache::from_list(&c.to_list()).to_list(), c.to_list());
    }

    #[test]
    fn an_epoch_without_records_is_forgotten() {
        let mut c = cache();
        c.begin(LeaderEpoch(7), Offset(25));
        c.begin(LeaderEpoch(8), Offset(25));
        assert_eq!(c.end_of(LeaderEpoch(7), Offset(30)).map(|e| e.epoch), Some(LeaderEpoch(6)));
        assert_eq!(c.latest(), Some(LeaderEpoch(8)));
    }
}
