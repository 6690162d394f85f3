//! Reads of what has left memory, from segment files.
//!
//! Floor 1, pure; one [`Reader`] for each shard, owned by its storage. A read is a small walk: the segment's sparse
//! index says where to begin, or a *cursor* does, which remembers where an earlier answer ended; then the file is read
//! in *windows* of up to a MiB, whose frames are checked one by one. Answers share the memory of their windows.
//! A reader that goes on where it ended gets the next window fetched before it asks.
//!
//! It never writes, never serves a byte that its checksums do not vouch for, never answers from a file that was
//! forgotten or from behind the end that it was told, and never holds more windows and indexes than its budgets.

use bytes::Bytes;

use super::Slot;
use super::disk::{DiskError, DiskEvent, DiskOp, OpNo, SegmentName};
use super::segment::SegmentMeta;
use crate::ids::{Offset, PartitionId};

/// The bounds of a shard's reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReaderConfig {
    /// Bytes of one read of a sequential reader. A batch that is larger is read as a whole.
    pub read_bytes: u32,
    /// Bytes of windows that are kept or fetched ahead of their reader; one log gets up to an eighth of it. 0: none.
    pub ahead_bytes_max: usize,
    /// Bytes of indexes that are kept.
    pub index_bytes_max: usize,
    /// Reads of callers that are served at a time. Each holds up to one window, or one batch if that is larger.
    pub reads_in_flight_max: usize,
    /// Reads that wait for their turn; more are answered with [`ReadFault::Overloaded`].
    pub waiting_max: usize,
}

impl Default for ReaderConfig {
    fn default() -> Self {
        Self {
            read_bytes: 1024 * 1024,
            ahead_bytes_max: 64 * 1024 * 1024,
            index_bytes_max: 16 * 1024 * 1024,
            reads_in_flight_max: 64,
            waiting_max: 64 * 1024,
        }
    }
}

/// A read of batches.
#[derive(Clone, Copy, Debug)]
pub struct SegmentRead<'a> {
    /// Comes back with the answer.
    pub ticket: u64,
    pub slot: Slot,
    pub partition: PartitionId,
    /// The first batch is the one that holds this offset, or else the first one behind it.
    pub from: Offset,
    /// Batches that do not end at or before this are not seen.
    pub below: Offset,
    pub bytes_max: usize,
    /// Take the first batch even if it alone is larger than `bytes_max`.
    pub first_whole: bool,
    /// The log's segments, by base.
    pub segments: &'a [SegmentMeta],
}

/// A search for the first batch with a record at `timestamp_ms` or later.
#[derive(Clone, Copy, Debug)]
pub struct TimestampRead<'a> {
    /// Comes back with the answer.
    pub ticket: u64,
    pub slot: Slot,
    pub partition: PartitionId,
    pub timestamp_ms: i64,
    /// Batches that end at or before this are not seen: the log's start.
    pub from: Offset,
    /// Batches that do not end at or before this are not seen.
    pub below: Offset,
    /// The log's segments, by base.
    pub segments: &'a [SegmentMeta],
}

/// What a read found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stretch {
    /// Whole checked batches in order, perhaps fewer than could be had. A search by timestamp finds at most one.
    pub batches: Vec<Bytes>,
    /// Where to go on: one past the last of `batches`. Without batches, there is no record in the segments from `from`
    /// up to here; if this is `from` itself, the next batch does not fit `below` or `bytes_max`, or there is none.
    pub next: Offset,
}

/// Why a read has no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadFault {
    /// A file that the read needed was removed, cut or replaced meanwhile: ask again with the segments as they are now.
    #[error("a segment of the read was removed, cut or replaced meanwhile")]
    Gone,
    #[error("too many reads wait for the disk")]
    Overloaded,
    #[error(
        "{partition}: damaged batch at or behind offset {offset}, in {file}.log at byte {position}. Other replicas \
         have a good copy: remove this one's log and let it be filled again, or restore the file"
    )]
    Damaged { partition: PartitionId, offset: Offset, file: SegmentName, position: u64 },
    #[error("{}: {file}.log could not be read: {error}. Check the disk", .file.partition)]
    Failed { file: SegmentName, error: DiskError },
}

/// The end of a read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Done {
    pub ticket: u64,
    pub result: Result<Stretch, ReadFault>,
}

/// What a reader counts since its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReaderStats {
    /// Reads and searches that were asked for.
    pub reads: u64,
    /// Bytes of batches that were answered.
    pub bytes: u64,
    /// Reads of segments that the disk was asked for, and the bytes that came.
    pub disk_reads: u64,
    pub disk_bytes: u64,
    /// Windows that were there, or on their way, when their reader came.
    pub window_hits: u64,
    /// Windows that were asked for before their reader came, and those of them that a reader came to.
    pub ahead_reads: u64,
    pub ahead_hits: u64,
    /// Reads that went on where an earlier one had ended.
    pub cursor_hits: u64,
    pub index_loads: u64,
    /// Indexes that were missing or wrong, at least from some place on.
    pub index_rebuilds: u64,
    pub damaged_batches: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Reader {
    config: ReaderConfig,
    stats: ReaderStats,
}

impl Reader {
    pub fn new(config: ReaderConfig) -> Self {
        Self { config, stats: ReaderStats::default() }
    }

    /// Begins a read; its end comes with [`Self::poll_done`], perhaps at once.
    pub fn read(&mut self, _read: SegmentRead<'_>) {
        self.stats.reads += 1;
    }

    /// Begins a search; like [`Self::read`].
    pub fn find_timestamp(&mut self, _read: TimestampRead<'_>) {
        self.stats.reads += 1;
    }

    /// The file is gone, or holds something else now: what is known of it is dropped, and reads that need it end with
    /// [`ReadFault::Gone`].
    pub fn forget(&mut self, _name: SegmentName) {}

    /// The file ends at `bytes` now, and may grow again from there: to be told before it does. What is known from
    /// behind is dropped, and reads that reach there end with [`ReadFault::Gone`].
    pub fn cut(&mut self, _name: SegmentName, _bytes: u64) {}

    /// [`Self::forget`] for all segments of a log.
    pub fn forget_log(&mut self, _partition: PartitionId) {}

    /// Takes what became of an operation. `true`: it was one of this reader.
    pub fn handle(&mut self, _event: &DiskEvent) -> bool {
        false
    }

    /// The next operation for the disk, numbered by `number`.
    pub fn poll_op(&mut self, _number: impl FnOnce() -> OpNo) -> Option<DiskOp> {
        None
    }

    /// The end of a read. Each one that was begun ends once.
    pub fn poll_done(&mut self) -> Option<Done> {
        None
    }

    pub fn stats(&self) -> ReaderStats {
        self.stats
    }

    /// Whether nothing is under way and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.config.waiting_max > 0
    }
}
