//! What the log of a shard takes and gives: its bounds, its events, its answers. Floor 1, pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use crate::batch::BatchHeader;
use crate::ids::{Offset, PartitionId};
use crate::log::checkpoint::LogState;
use crate::log::cleaner::CleanerLimits;
use crate::log::journal::{JournalConfig, Marker, RecoveryReport};
use crate::log::reader::{ReadFault, ReaderConfig};
use crate::log::{FatalReason, Note, Slot};

/// The bounds of one shard's log.
#[derive(Clone, Debug)]
pub struct StorageConfig {
    pub journal: JournalConfig,
    /// Memory that appended batches take up, with what the journal wrote around them. What is above leaves memory,
    /// oldest first, once it was moved.
    pub tail_bytes_max: u64,
    /// From so many bytes of batches not yet moved on, the oldest are moved at once and producers are slowed.
    pub unmoved_bytes_soft: u64,
    /// At so many, appends are refused and recovery pauses until moves have caught up.
    pub unmoved_bytes_max: u64,
    /// A checkpoint begins when the journal has grown by so many bytes since the one before.
    pub checkpoint_bytes: u64,
    /// The journal's bytes that no checkpoint made needless: producers are slowed from half of it on, and refused at it.
    pub journal_bytes_max: u64,
    /// A log is moved when it has so many flushed bytes, or enough for a segment.
    pub move_bytes: u64,
    /// While moves are behind; fewer otherwise.
    pub moves_in_flight_max: usize,
    pub syncs_in_flight_max: usize,
    /// The wall clock, in ms since the epoch, at [`crate::time::Instant::ZERO`].
    pub wall_ms_at_zero: i64,
    pub reader: ReaderConfig,
    /// What one compaction may use.
    pub cleaner: CleanerLimits,
    /// What compactions may read, unpack and write in a second; at least 1.
    pub compaction_bytes_per_second: u64,
    /// Whose folders are read when the checkpoint is missing.
    pub owned: Owned,
}

impl StorageConfig {
    pub fn new(journal: JournalConfig) -> Self {
        const MIB: u64 = 1024 * 1024;
        let cleaner = CleanerLimits { batch_bytes_max: journal.batch_bytes_max, ..CleanerLimits::default() };
        Self {
            journal,
            tail_bytes_max: 256 * MIB,
            unmoved_bytes_soft: 128 * MIB,
            unmoved_bytes_max: 512 * MIB,
            checkpoint_bytes: 256 * MIB,
            journal_bytes_max: 2048 * MIB,
            move_bytes: MIB,
            moves_in_flight_max: 32,
            syncs_in_flight_max: 32,
            wall_ms_at_zero: 0,
            reader: ReaderConfig::default(),
            cleaner,
            compaction_bytes_per_second: 64 * MIB,
            owned: Owned::All,
        }
    }
}

/// Which partitions of the node are those of this shard.
#[derive(Clone, Debug)]
pub enum Owned {
    All,
    Listed(Arc<BTreeSet<PartitionId>>),
}

impl Owned {
    pub fn owns(&self, partition: PartitionId) -> bool {
        match self {
            Self::All => true,
            Self::Listed(listed) => listed.contains(&partition),
        }
    }
}

/// What the shard knows of its logs beside their batches. Asked while operations are polled.
pub trait Noted {
    /// Fills in `high_watermark`, `epochs` and `producers` as they are after the log's last entry.
    fn noted(&self, slot: Slot, state: &mut LogState);

    /// Up to where retention may delete, and compaction may come.
    fn high_watermark(&self, slot: Slot) -> Offset;
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
    /// The disk is read without giving way to what is written.
    pub is_urgent: bool,
}

/// What a read found.
#[derive(Debug)]
pub enum Found {
    /// Whole batches in order.
    Memory(Vec<Bytes>),
    /// [`StorageEvent::Read`] follows, with the same ticket.
    Later,
    Nothing,
}

/// What a search for one batch found.
#[derive(Debug)]
pub enum FoundBatch {
    Memory(Bytes),
    /// [`StorageEvent::FoundBatch`] follows, with the same ticket.
    Later,
    Nothing,
}

/// What happened, in order.
#[derive(Clone, Debug)]
pub enum StorageEvent {
    /// A log of an earlier life, as its segments hold it. Entries of the journal follow, then [`Self::Recovered`].
    Restored { slot: Slot, state: Box<LogState> },
    /// An entry of an earlier life was taken into the log. With `is_noted`, the log's epochs, producers and high
    /// watermark know of it already.
    ReplayedBatch { slot: Slot, header: BatchHeader, base: Offset, is_noted: bool },
    /// Likewise. After [`Note::Dropped`] the slot is no more.
    ReplayedNote { slot: Slot, note: Note, is_noted: bool },
    /// Logs can be opened and appended to.
    Recovered(Box<StorageReport>),
    /// Every entry up to this marker is durable.
    Flushed { upto: Marker },
    /// [`super::Storage::over_backlog`] became false.
    BacklogCleared,
    /// Appends were refused as `Full`; there is room again.
    Room,
    /// Retention moved the log's start.
    Started { slot: Slot, start: Offset },
    /// Whole batches in order, at least one unless none is there to be read.
    Read { ticket: u64, result: Result<Vec<Bytes>, ReadFault> },
    /// The first batch that was looked for; `None` if there is none.
    FoundBatch { ticket: u64, result: Result<Option<Bytes>, ReadFault> },
    /// Everything is durable after [`super::Storage::stop`].
    Stopped,
    /// The log cannot go on; nothing follows.
    Fatal(FatalReason),
}

/// From what a log was recovered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Start {
    /// Nothing was there.
    #[default]
    New,
    /// A checkpoint that was made at a stop, and nothing after it.
    Clean,
    /// A checkpoint, then the journal.
    Checkpoint,
    /// All segments, then the journal.
    Rebuilt,
}

/// What recovery found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StorageReport {
    pub start: Start,
    pub logs: u64,
    pub segments: u64,
    /// Entries of the journal that the logs did not have.
    pub entries: u64,
    /// Logs that lost acknowledged records ([`crate::log::journal::OnDamage::Truncate`]).
    pub damaged_logs: u64,
    pub journal: RecoveryReport,
}
