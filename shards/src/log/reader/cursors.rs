//! Where answers ended, so that a reader who goes on there is known again. Floor 1, pure.

use std::collections::BTreeMap;

use super::super::disk::SegmentName;
use crate::ids::{Offset, PartitionId};

/// Cursors of one log; the one used longest ago makes room.
const PER_LOG_MAX: usize = 16;
/// Cursors of all logs.
const ALL_MAX: usize = 8192;

#[derive(Clone, Copy, Debug)]
struct Cursor {
    name: SegmentName,
    position: u64,
    used: u64,
}

/// The frame of the batch that follows an offset.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    all: BTreeMap<(PartitionId, Offset), Cursor>,
    by_use: BTreeMap<u64, (PartitionId, Offset)>,
    uses: u64,
}

impl Cursors {
    /// The frame of the first batch at or behind `next`, where a batch ended, lies in this segment at `position`.
    pub fn put(&mut self, next: Offset, name: SegmentName, position: u64) {
        let key = (name.partition, next);
        self.remove(key);
        let log = self.all.range((name.partition, Offset(0))..=(name.partition, Offset(u64::MAX)));
        let crowded_out = if log.clone().count() >= PER_LOG_MAX {
            log.min_by_key(|(_, cursor)| cursor.used).map(|(key, _)| *key)
        } else if self.all.len() >= ALL_MAX {
            self.by_use.first_key_value().map(|(_, key)| *key)
        } else {
            None
        };
        if let Some(key) = crowded_out {
            self.remove(key);
        }
        self.uses += 1;
        self.all.insert(key, Cursor { name, position, used: self.uses });
        self.by_use.insert(self.uses, key);
    }

    /// Where `name` goes on at `next`, if an answer ended there.
    pub fn find(&mut self, next: Offset, name: SegmentName) -> Option<u64> {
        let cursor = self.all.get_mut(&(name.partition, next))?;
        if cursor.name != name {
            return None;
        }
        self.by_use.remove(&cursor.used);
        self.uses += 1;
        cursor.used = self.uses;
        self.by_use.insert(self.uses, (name.partition, next));
        Some(cursor.position)
    }

    /// Whether an answer ended at `next`.
    pub fn is_known(&self, partition: PartitionId, next: Offset) -> bool {
        self.all.contains_key(&(partition, next))
    }

    /// Forgets those of `name` at `position` and behind it.
    pub fn forget(&mut self, name: SegmentName, position: u64) {
        self.forget_where(name.partition, |c| c.name == name && c.position >= position);
    }

    pub fn forget_log(&mut self, partition: PartitionId) {
        self.forget_where(partition, |_| true);
    }

    fn forget_where(&mut self, partition: PartitionId, is: impl Fn(&Cursor) -> bool) {
        let log = self.all.range((partition, Offset(0))..=(partition, Offset(u64::MAX)));
        let keys: Vec<_> = log.filter(|(_, c)| is(c)).map(|(key, _)| *key).collect();
        for key in keys {
            self.remove(key);
        }
    }

    fn remove(&mut self, key: (PartitionId, Offset)) {
        if let Some(cursor) = self.all.remove(&key) {
            self.by_use.remove(&cursor.used);
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        assert_eq!(self.all.len(), self.by_use.len());
        self.all.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{PartitionIndex, TopicId};

    fn name(index: u32) -> SegmentName {
        let partition = PartitionId { topic: TopicId(1), index: PartitionIndex(index) };
        SegmentName { partition, base: Offset(0), generation: 0 }
    }

    #[test]
    fn the_cursor_used_longest_ago_makes_room_within_its_log() {
        let mut cursors = Cursors::default();
        for i in 0..PER_LOG_MAX as u64 {
            cursors.put(Offset(i), name(1), 100 + i);
        }
        cursors.put(Offset(9), name(2), 7);
        assert_eq!(cursors.find(Offset(0), name(1)), Some(100));
        cursors.put(Offset(77), name(1), 177);
        assert_eq!(cursors.find(Offset(1), name(1)), None);
        assert_eq!(cursors.find(Offset(0), name(1)), Some(100));
        assert_eq!(cursors.find(Offset(9), name(2)), Some(7));
        assert_eq!(cursors.find(Offset(77), name(2)), None);
        cursors.forget(name(1), 110);
        assert_eq!(cursors.len(), 1 + 9, "positions 100 and 102 to 109 of the one, one of the other");
        cursors.forget_log(name(1).partition);
        assert_eq!(cursors.len(), 1);
    }

    #[test]
    fn cursors_of_many_logs_are_bounded() {
        let mut cursors = Cursors::default();
        for i in 0..ALL_MAX as u32 + 100 {
            cursors.put(Offset(1), name(i), 64);
        }
        assert_eq!(cursors.len(), ALL_MAX);
        assert_eq!(cursors.find(Offset(1), name(99)), None);
        assert_eq!(cursors.find(Offset(1), name(100)), Some(64));
    }
}
