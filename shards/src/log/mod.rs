//! The log of a shard as a state machine over [`disk`] operations: floor 1, pure.
//!
//! [`journal`] is what the shard calls; below it lie the running journal, recovery, the layout of the bytes, and the
//! memory that batches are copied into.

mod block;
pub mod checkpoint;
mod chunk;
pub mod cleaner;
pub mod disk;
mod files;
pub mod inspect;
pub mod journal;
#[cfg(test)]
mod random;
pub mod reader;
mod recovery;
pub mod segment;
pub mod storage;
mod writer;

use disk::{DiskError, FileName, FileNo};

use crate::ids::{Offset, PartitionId};

/// A log's place in its shard. Never used again for another one, so a late reference finds nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(pub u32);

/// The place of an entry in the order of the journal: the chunk's sequence, then the entry's number in the chunk, from
/// 0. [`Lsn::ZERO`] lies before every entry, since chunks count from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Lsn {
    pub chunk: u64,
    pub entry: u32,
}

impl Lsn {
    pub const ZERO: Self = Self { chunk: 0, entry: 0 };
}

/// What the journal holds of a log beside its batches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Note {
    /// The log ends at this offset from here on; what was behind it is gone.
    Truncated { end: Offset },
    /// Records before this offset are gone.
    Started { start: Offset },
    /// The log is gone, with all that was in it.
    Dropped,
}

/// Why a shard cannot go on; ends the process with an exit status of its own.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FatalReason {
    #[error(
        "journal {file}: write or flush failed: {error}. Nothing more can be promised on this disk; records \
         acknowledged before are safe. Check the disk, then restart"
    )]
    FlushFailed { file: FileNo, error: DiskError },
    #[error(
        "journal: the files could not be listed or read at start: {error}. Check the disk and its rights"
    )]
    RecoveryFailed { error: DiskError },
    #[error(
        "journal {file}: damaged at byte {position}, which had been flushed (chunk {sequence}): acknowledged \
         records would be lost. Restore the file from a copy, or start with `storage.recovery: truncate` to \
         accept the loss of what follows"
    )]
    JournalDamaged { file: FileNo, position: u64, sequence: u64 },
    #[error(
        "journal {file}: written in format {version}, which this release does not read. Start the release that \
         wrote it, or a newer one"
    )]
    JournalFormat { file: FileNo, version: u32 },
    #[error(
        "{file}: {error}. What was written to it may be lost on this disk; the journal still has it. Check the disk, \
         then restart: recovery writes it anew"
    )]
    SegmentFailed { file: FileName, error: DiskError },
    #[error(
        "partition {partition}: its folder could not be listed or synced: {error}. The journal still has what was \
         written there. Check the disk and its rights, then restart"
    )]
    FolderFailed { partition: PartitionId, error: DiskError },
    #[error(
        "{file}: damaged at byte {position}: {what}. Records that the checkpoint counts on are missing. Restore the \
         file from a copy, or delete the partition's folder and the shard's checkpoint to rebuild from what is left"
    )]
    SegmentDamaged { file: FileName, position: u64, what: &'static str },
    #[error(
        "partition {partition}: ends at offset {end}, and the journal goes on at {found}: acknowledged records would \
         be lost. Restore the partition's folder from a copy, or start with `storage.recovery: truncate` to accept \
         the loss of what follows"
    )]
    LogDamaged { partition: PartitionId, end: Offset, found: Offset },
    #[error(
        "checkpoint: could not be replaced: {error}. The one before and the journal still have everything. Check the \
         disk, then restart"
    )]
    CheckpointFailed { error: DiskError },
    #[error("checkpoint: could not be read: {error}. Check the disk and its rights")]
    CheckpointUnread { error: DiskError },
    #[error(
        "checkpoint: written in format {version}, which this release does not read. Start the release that wrote it, \
         or a newer one"
    )]
    CheckpointFormat { version: u32 },
    #[error(
        "{file}: written in format {version}, which this release does not read. Start the release that wrote it, or \
         a newer one"
    )]
    SegmentFormat { file: FileName, version: u32 },
}
