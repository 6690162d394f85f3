//! Where the batches of one partition are: all of them by journal position, the newest also in memory.
//! Floor 1, pure.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::ids::Offset;
use crate::log::journal::LogPosition;

/// One batch of the log.
#[derive(Clone, Copy, Debug)]
pub struct BatchRef {
    pub base: Offset,
    /// One past the batch's last record.
    pub next: Offset,
    pub at: LogPosition,
    /// In bytes, with its header.
    pub len: u32,
    /// The largest timestamp of this batch and all before it, so that the list can be searched by it.
    pub max_timestamp_ms: i64,
}

/// The batches of one log, without gaps: each begins where the one before ends.
#[derive(Debug, Default)]
pub struct Batches {
    all: VecDeque<BatchRef>,
    /// The bytes of the last `tail.len()` batches of `all`.
    tail: VecDeque<Bytes>,
}

/// Where batches to be read are.
#[derive(Debug)]
pub enum Found {
    /// In memory: whole batches in order.
    Memory(Vec<Bytes>),
    /// On disk: one stretch of one journal file that holds these batches, and perhaps other things between them.
    Disk {
        at: LogPosition,
        len: u32,
        batches: Vec<BatchRef>,
    },
    Nothing,
}

/// What a read wants.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The first batch is the one that holds this offset.
    pub from: Offset,
    /// Batches that do not end at or before this are not seen.
    pub below: Offset,
    pub bytes_max: usize,
    /// Take the first batch even if it alone is larger than `bytes_max`.
    pub first_whole: bool,
}

/// Bytes of the journal that one read may take in to gather batches of one partition.
const STRETCH_BYTES_MAX: u64 = 1024 * 1024;
/// Foreign bytes between two batches beyond which a second read is cheaper.
const GAP_BYTES_MAX: u64 = 32 * 1024;

impl Batches {
    pub fn push(&mut self, batch: BatchRef, bytes: Bytes) {
        assert_eq!(batch.base, self.end().unwrap_or(batch.base), "a log has no gaps");
        assert!(batch.base < batch.next, "a batch holds a record");
        let before = self.all.back().map_or(i64::MIN, |b| b.max_timestamp_ms);
        let max_timestamp_ms = batch.max_timestamp_ms.max(before);
        self.all.push_back(BatchRef { max_timestamp_ms, ..batch });
        self.tail.push_back(bytes);
    }

    /// Lets go of the oldest batch in memory; it is read from disk from then on.
    pub fn evict_oldest(&mut self) {
        self.tail.pop_front();
    }

    pub fn start(&self) -> Option<Offset> {
        self.all.front().map(|b| b.base)
    }

    pub fn end(&self) -> Option<Offset> {
        self.all.back().map(|b| b.next)
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub fn find(&self, wanted: Wanted) -> Found {
        let first = self.all.partition_point(|b| b.next <= wanted.from);
        let on_disk = self.all.len() - self.tail.len();
        if first >= on_disk {
            self.find_in_memory(first, wanted)
        } else {
            self.find_on_disk(first, on_disk, wanted)
        }
    }

    /// The first batch with a record at `timestamp_ms` or later.
    pub fn at_timestamp(&self, timestamp_ms: i64) -> Option<(BatchRef, Option<Bytes>)> {
        let i = self.all.partition_point(|b| b.max_timestamp_ms < timestamp_ms);
        let batch = *self.all.get(i)?;
        let on_disk = self.all.len() - self.tail.len();
        let bytes = i.checked_sub(on_disk).and_then(|t| self.tail.get(t)).cloned();
        Some((batch, bytes))
    }

    /// The largest timestamp of the batches that end at or before `below`.
    pub fn largest_timestamp(&self, below: Offset) -> Option<i64> {
        let after = self.all.partition_point(|b| b.next <= below);
        after.checked_sub(1).map(|i| self.all[i].max_timestamp_ms)
    }

    fn find_in_memory(&self, first: usize, wanted: Wanted) -> Found {
        let on_disk = self.all.len() - self.tail.len();
        let mut parts = Vec::new();
        let mut bytes = 0;
        for (batch, part) in self.all.range(first..).zip(self.tail.range(first - on_disk..)) {
            if batch.next > wanted.below || !fits(&mut bytes, batch, wanted, parts.is_empty()) {
                break;
            }
            parts.push(part.clone());
        }
        if parts.is_empty() { Found::Nothing } else { Found::Memory(parts) }
    }

    fn find_on_disk(&self, first: usize, on_disk: usize, wanted: Wanted) -> Found {
        let mut batches: Vec<BatchRef> = Vec::new();
        let mut bytes = 0;
        for batch in self.all.range(first..on_disk) {
            if batch.next > wanted.below
                || !batches.last().is_none_or(|last| adjoins(batches[0].at, last, batch))
                || !fits(&mut bytes, batch, wanted, batches.is_empty())
            {
                break;
            }
            batches.push(*batch);
        }
        let (Some(head), Some(last)) = (batches.first(), batches.last()) else { return Found::Nothing };
        let len = last.at.position + u64::from(last.len) - head.at.position;
        let len = u32::try_from(len).expect("a stretch is one batch or at most STRETCH_BYTES_MAX long");
        Found::Disk { at: head.at, len, batches }
    }
}

fn fits(bytes: &mut usize, batch: &BatchRef, wanted: Wanted, first: bool) -> bool {
    *bytes += batch.len as usize;
    *bytes <= wanted.bytes_max || (first && wanted.first_whole)
}

/// Whether `next` can be read together with what lies from `head` to the end of `last`.
fn adjoins(head: LogPosition, last: &BatchRef, next: &BatchRef) -> bool {
    let last_end = last.at.position + u64::from(last.len);
    next.at.file == last.at.file
        && next.at.position >= last_end
        && next.at.position - last_end <= GAP_BYTES_MAX
        && next.at.position + u64::from(next.len) - head.position <= STRETCH_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::disk::FileNo;

    /// Five batches of two records and 100 bytes each, 1 KiB apart; the last two in memory.
    fn five() -> Batches {
        let mut b = Batches::default();
        for i in 0..5u64 {
            let at = LogPosition { file: FileNo(1), position: 4096 + i * 1024 };
            let timestamp = [10, 40, 20, 50, 30][i as usize];
            let batch = BatchRef {
                base: Offset(i * 2),
                next: Offset(i * 2 + 2),
                at,
                len: 100,
                max_timestamp_ms: timestamp,
            };
            b.push(batch, Bytes::from(vec![i as u8; 100]));
        }
        (0..3).for_each(|_| b.evict_oldest());
        b
    }

    fn wanted(from: u64, below: u64, bytes_max: usize, first_whole: bool) -> Wanted {
        Wanted { from: Offset(from), below: Offset(below), bytes_max, first_whole }
    }

    #[test]
    fn a_read_begins_with_the_batch_that_holds_the_offset() {
        let Found::Memory(parts) = five().find(wanted(7, 10, 1000, false)) else { panic!("in memory") };
        assert_eq!(parts.iter().map(|p| p[0]).collect::<Vec<_>>(), [3, 4]);
    }

    #[test]
    fn no_batch_is_read_that_the_bound_cuts() {
        assert!(matches!(five().find(wanted(6, 7, 1000, true)), Found::Nothing));
        let Found::Memory(parts) = five().find(wanted(6, 9, 1000, false)) else { panic!("in memory") };
        assert_eq!(parts.len(), 1);
    }

    #[test]
    fn only_the_first_batch_may_exceed_the_limit_and_only_when_asked() {
        assert!(matches!(five().find(wanted(6, 10, 50, false)), Found::Nothing));
        let Found::Memory(parts) = five().find(wanted(6, 10, 50, true)) else { panic!("in memory") };
        assert_eq!(parts.len(), 1);
    }

    #[test]
    fn what_left_memory_is_found_on_disk_in_one_stretch() {
        let Found::Disk { at, len, batches } = five().find(wanted(1, 10, 1000, false)) else {
            panic!("on disk")
        };
        assert_eq!((at.position, len), (4096, 2 * 1024 + 100));
        assert_eq!(batches.len(), 3);
    }

    #[test]
    fn a_stretch_ends_with_its_file() {
        let mut b = Batches::default();
        for i in 0..2 {
            let at = LogPosition { file: FileNo(i), position: 4096 };
            let batch = BatchRef { base: Offset(i), next: Offset(i + 1), at, len: 100, max_timestamp_ms: 0 };
            b.push(batch, Bytes::new());
            b.evict_oldest();
        }
        let Found::Disk { batches, .. } = b.find(wanted(0, 2, 1000, false)) else { panic!("on disk") };
        assert_eq!(batches.len(), 1);
    }

    #[test]
    fn timestamps_find_the_first_batch_that_reaches_them() {
        let b = five();
        let found = |t| b.at_timestamp(t).map(|(batch, bytes)| (batch.base.0, bytes.is_some()));
        assert_eq!(found(5), Some((0, false)));
        assert_eq!(found(41), Some((6, true)));
        assert_eq!(found(51), None);
        assert_eq!(b.largest_timestamp(Offset(6)), Some(40));
        assert_eq!(b.largest_timestamp(Offset(1)), None);
    }
}
