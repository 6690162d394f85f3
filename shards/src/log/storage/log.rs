//! One log: what its segments hold, what of it is in memory, and what the segments do not know yet.
//!
//! Floor 1; owned by its shard's storage. It asks the disk for nothing: it says what there is to do and takes what was
//! done. An idle log is this struct and its list of segments, nothing more.

use std::collections::VecDeque;

use bytes::Bytes;

use super::work::{Amendment, Work};
use crate::ids::{Offset, PartitionId};
use crate::log::disk::SegmentName;
use crate::log::segment::SegmentMeta;
use crate::log::segment::index::{IndexBuilder, IndexEntry};
use crate::log::{Lsn, Note};
use crate::mail::LogConfig;

#[derive(Debug)]
pub(super) struct Log {
    pub partition: PartitionId,
    pub config: LogConfig,
    /// `start <= end`, as the journal has them.
    pub start: Offset,
    pub end: Offset,
    /// Of the last entry; before the first one, of the journal's last entry when the log was made.
    pub last: Lsn,
    /// The newest batches, without a gap up to `end`. Every batch that was not moved is here.
    pub tail: VecDeque<TailBatch>,
    /// So many at the front of `tail` are in the segments too.
    pub tail_moved: usize,
    /// What the segments do not know yet; ascending. `segments.lsn < notes[i].lsn`.
    pub notes: VecDeque<Noticed>,
    /// Of the batches in `tail` that were not moved.
    pub unmoved_bytes: u64,
    pub moved: Moved,
    /// By base. What they hold is what `moved` says.
    pub segments: Vec<SegmentMeta>,
    /// Bytes of all segments.
    pub segment_bytes: u64,
    /// Whether the last segment may grow.
    pub is_growing: bool,
    /// Of the segment that grows.
    pub index: IndexState,
    /// Compaction has seen everything before this.
    pub cleaned: Offset,
    /// Segments from this base on have bytes that no sync covers.
    pub unsynced_from: Option<Offset>,
    /// The index of the growing segment was cut, and no sync covers it.
    pub index_unsynced: bool,
    /// Files came or went since the folder was synced.
    pub folder_unsynced: bool,
    pub tidy: Tidy,
    /// A put failed, and may have left some of its bytes: to be taken away before anything else.
    pub leftover: Option<Box<Amendment>>,
    /// What the disk does for this log; one thing at a time, since all of it is ordered.
    pub work: Option<Box<Work>>,
    /// Where it stands in the order of unmoved work: `first_unmoved` as it was noted there.
    pub key: Option<Lsn>,
    /// Whether it waits in the queue of logs that are worth a move.
    pub is_ripe: bool,
    /// When its first segment expires, as it was noted; ms since the epoch.
    pub expiry_ms: Option<i64>,
    /// Of its `Dropped` note. Nothing of it is to be found from then on.
    pub dropped: Option<Lsn>,
    /// Dropped, which the journal could not be told yet.
    pub is_hidden: bool,
    /// Counts the notes that took effect on its files.
    pub changes: u32,
    /// The checkpoint that it was written into last, by number.
    pub checkpointed: u64,
}

/// A batch in memory.
#[derive(Clone, Debug)]
pub(super) struct TailBatch {
    pub base: Offset,
    /// One past its last record.
    pub next: Offset,
    /// The largest timestamp of this batch and of those before it in memory, so that it can be searched by.
    pub max_timestamp_ms: i64,
    /// Of this batch alone.
    pub timestamp_ms: i64,
    pub lsn: Lsn,
    pub bytes: Bytes,
}

/// A note that the segments do not know yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noticed {
    pub lsn: Lsn,
    pub note: Note,
}

/// What the segments hold: the effects of all entries up to `lsn`, and nothing after.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moved {
    pub lsn: Lsn,
    /// `start <= end`.
    pub start: Offset,
    pub end: Offset,
}

/// What is known of the index file of the segment that grows.
#[derive(Clone, Debug)]
pub(super) enum IndexState {
    /// To be read before the segment grows.
    Unknown,
    Known(GrowingIndex),
}

#[derive(Clone, Debug, Default)]
pub(super) struct GrowingIndex {
    pub builder: IndexBuilder,
    /// How long the file is; 0: there is none.
    pub bytes: u64,
    /// Entries that are not in the file yet.
    pub pending: Vec<IndexEntry>,
}

/// Whether the log's folder holds nothing but the log's segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tidy {
    /// If the shard's last life ended in order.
    AsLeft,
    /// To be listed before anything is put there.
    Unknown,
    Tidied,
}

impl Log {
    /// An empty log that has no entry up to `last`.
    pub fn new(partition: PartitionId, last: Lsn) -> Self {
        Self {
            partition,
            // Until it is said how long records are kept, they are.
            config: LogConfig { delete: false, ..LogConfig::default() },
            start: Offset::ZERO,
            end: Offset::ZERO,
            last,
            tail: VecDeque::new(),
            tail_moved: 0,
            notes: VecDeque::new(),
            unmoved_bytes: 0,
            moved: Moved { lsn: last, start: Offset::ZERO, end: Offset::ZERO },
            segments: Vec::new(),
            segment_bytes: 0,
            is_growing: false,
            index: IndexState::Unknown,
            cleaned: Offset::ZERO,
            unsynced_from: None,
            index_unsynced: false,
            folder_unsynced: false,
            tidy: Tidy::Unknown,
            leftover: None,
            work: None,
            key: None,
            is_ripe: false,
            expiry_ms: None,
            dropped: None,
            is_hidden: false,
            changes: 0,
            checkpointed: 0,
        }
    }

    pub fn name(&self, segment: &SegmentMeta) -> SegmentName {
        SegmentName { partition: self.partition, base: segment.base, generation: segment.generation }
    }

    /// Whether nothing was ever said of it.
    pub fn is_blank(&self) -> bool {
        self.end == Offset::ZERO
            && self.last == self.moved.lsn
            && self.segments.is_empty()
            && self.notes.is_empty()
            && self.cleaned == Offset::ZERO
    }

    /// Whether it has so many unmoved bytes, or enough for a segment: small segments are to be closed in time, as
    /// only those can be compacted or go.
    pub fn is_worth_a_move(&self, move_bytes: u64) -> bool {
        self.unmoved_bytes >= move_bytes.min(u64::from(self.config.segment_bytes))
    }

    /// The first entry that the segments do not know.
    pub fn first_unmoved(&self) -> Option<Lsn> {
        // Nothing of a dropped log is moved any more; the note itself is what counts.
        if self.dropped.is_some() {
            return self.dropped;
        }
        let batch = self.tail.get(self.tail_moved).map(|batch| batch.lsn);
        let note = self.notes.front().map(|note| note.lsn);
        [batch, note].into_iter().flatten().min()
    }

    /// Whether a note is the first entry that the segments do not know.
    pub fn starts_with_note(&self) -> bool {
        let batch = self.tail.get(self.tail_moved).map(|batch| batch.lsn);
        self.notes.front().is_some_and(|note| batch.is_none_or(|batch| note.lsn < batch))
    }

    /// Where what is in memory begins; the segments are read below it only, since what they hold from there on may
    /// have been truncated.
    pub fn tail_base(&self) -> Offset {
        self.tail.front().map_or(self.end, |batch| batch.base)
    }

    pub fn push(&mut self, batch: TailBatch) {
        assert_eq!(batch.base, self.end, "a log has no gaps");
        assert!(batch.base < batch.next, "a batch holds a record");
        assert!(batch.lsn > self.last, "entries of a log ascend");
        let before = self.tail.back().map_or(i64::MIN, |b| b.max_timestamp_ms);
        self.end = batch.next;
        self.last = batch.lsn;
        self.unmoved_bytes += batch.bytes.len() as u64;
        self.tail.push_back(TailBatch { max_timestamp_ms: batch.timestamp_ms.max(before), ..batch });
    }

    /// Takes a note. Returns the bytes of unmoved batches that are gone with it.
    pub fn note(&mut self, lsn: Lsn, note: Note) -> u64 {
        assert!(lsn >= self.last, "entries of a log ascend");
        self.last = lsn;
        self.notes.push_back(Noticed { lsn, note });
        let before = self.unmoved_bytes;
        match note {
            Note::Truncated { end } => self.cut_tail(end),
            Note::Started { start } => {
                if start > self.end {
                    self.cut_tail(Offset::ZERO);
                    self.end = start;
                }
                self.start = self.start.max(start);
            }
            Note::Dropped => {
                self.cut_tail(Offset::ZERO);
                self.dropped = Some(lsn);
            }
        }
        before - self.unmoved_bytes
    }

    /// Drops what is in memory at or behind `end`.
    fn cut_tail(&mut self, end: Offset) {
        let kept = self.tail.partition_point(|batch| batch.next <= end);
        for batch in self.tail.drain(kept..).skip(self.tail_moved.saturating_sub(kept)) {
            self.unmoved_bytes -= batch.bytes.len() as u64;
        }
        self.tail_moved = self.tail_moved.min(kept);
        self.end = self.end.min(end);
        self.start = self.start.min(self.end);
    }

    /// Takes note that the batches up to `lsn` were moved. Returns their bytes, of those that are still there.
    pub fn moved_upto(&mut self, lsn: Lsn) -> u64 {
        let moved = self.tail.partition_point(|batch| batch.lsn <= lsn).max(self.tail_moved);
        let bytes = self.tail.range(self.tail_moved..moved).map(|batch| batch.bytes.len() as u64).sum();
        self.tail_moved = moved;
        self.unmoved_bytes -= bytes;
        bytes
    }

    /// Lets go of the batch at the front of the tail if it is this one. `None`: it was not moved yet.
    pub fn evict(&mut self, lsn: Lsn) -> Option<()> {
        match self.tail.front() {
            Some(front) if front.lsn == lsn => {
                if self.tail_moved == 0 {
                    return None;
                }
                self.tail_moved -= 1;
                self.tail.pop_front();
                if self.tail.is_empty() {
                    self.tail.shrink_to_fit();
                }
                Some(())
            }
            // It was truncated.
            _ => Some(()),
        }
    }

    /// Lets go of the batches in memory that end at or before `end` and were moved: the segments hold what is left of
    /// them. The budget of memory counts them until it is their turn.
    pub fn evict_compacted(&mut self, end: Offset) {
        let count = self.tail.partition_point(|batch| batch.next <= end).min(self.tail_moved);
        self.tail.drain(..count);
        self.tail_moved -= count;
    }

    /// Of the batches that end at or before `below` in memory, those from the one that holds `from` on.
    pub fn find_in_tail(&self, wanted: super::Wanted) -> Vec<Bytes> {
        let first = self.tail.partition_point(|batch| batch.next <= wanted.from);
        let mut parts = Vec::new();
        let mut bytes = 0;
        for batch in self.tail.range(first..) {
            bytes += batch.bytes.len();
            let fits = bytes <= wanted.bytes_max || (parts.is_empty() && wanted.first_whole);
            if batch.next > wanted.below || !fits {
                break;
            }
            parts.push(batch.bytes.clone());
        }
        parts
    }

    pub fn recount(&mut self) {
        self.segment_bytes = self.segments.iter().map(|s| s.bytes).sum();
    }
}
