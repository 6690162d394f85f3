//! The log of a shard as a state machine over [`disk`] operations: floor 1, pure.
//!
//! [`journal`] is what the shard calls; below it lie the running journal, recovery, the layout of the bytes, and the
//! memory that batches are copied into.

mod block;
pub mod checkpoint;
mod chunk;
pub mod disk;
mod files;
pub mod inspect;
pub mod journal;
mod recovery;
pub mod segment;
mod writer;

use disk::{DiskError, FileNo};

use crate::ids::Offset;

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
}
