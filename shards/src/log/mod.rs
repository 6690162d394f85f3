//! The log of a shard as a state machine over [`disk`] operations: floor 1, pure.
//!
//! [`journal`] is what the shard calls; below it lie the running journal, recovery, the layout of the bytes, and the
//! memory that batches are copied into.

mod block;
mod chunk;
pub mod disk;
pub mod journal;
mod recovery;
mod writer;

use disk::{DiskError, FileNo};

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
