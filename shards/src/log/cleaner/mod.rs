//! Compaction of one log: of each key the newest record stays. Floor 1, pure; the storage of the owning shard runs one
//! [`Cleaning`] at a time for a log and does what it asks for on the disk.
//!
//! A job takes sealed segments, whole, in two passes. The first reads the *dirty* part, what no job has seen yet, and
//! notes for each key, as a hash of 128 bits, the offset of its newest record; the memory for this is bounded, and
//! where it is full the dirty part ends. The second reads all segments up to there and writes what stays to new ones,
//! of the next generation, small neighbours together. The files of the log are only read. Until the owner has swapped
//! the segments and a checkpoint names the new ones, a crash leaves the log as it was.
//!
//! What stays:
//! - A record that is the newest of its key, or behind the dirty part, or whose key is not in the map, and one without
//!   a key.
//! - A record without a value, the deletion of its key, goes once its *delete horizon* has passed. The job that first
//!   keeps it while removing what it deletes sets the horizon of its batch to now + `tombstone_ms`: attribute bit 6,
//!   and the base timestamp is the horizon, so that the records' timestamp deltas count from there (KIP-534). A batch
//!   has one horizon, set once.
//! - Control batches; and batches that are whole but whose records cannot be read here (see [`Done::kept_whole`]). As
//!   these may hold values of any key, no horizon is set behind one.
//! - Of a batch none of whose records stay, the header, if it is the newest that a producer is remembered by, or the last
//!   of a new segment, so that a log read from its start tells the state of producers and its end. Its timestamps
//!   are -1, so that no search by time ends there (Kafka keeps the largest).
//!
//! A batch keeps its base offset, last offset delta, leader epoch, producer, and sequence; one in which nothing changes
//! is copied as it is. So offsets never change, and batches may have gaps between and within them.
//!
//! The header of a new segment is written when all else of it is durable: a file with a good header is whole. One with
//! zeros there is half-made, and no part of any log. Who has to find out without a checkpoint which segments a log has
//! takes, of those with good headers, the one of the larger generation where two overlap: a new segment's last batch
//! is the last batch of those that it stands for, so it covers them wholly.
//!
//! Transactions are no matter here: the data plane accepts none, and records are not looked up in aborted ones.
//!
//! Source: Apache Kafka, log cleaner; KIP-534.

mod due;
mod job;
mod keys;
mod output;
mod stay;
#[cfg(test)]
mod tests;

pub use due::{Due, Sealed, due};
pub use job::Cleaning;

use super::checkpoint::ProducerState;
use super::disk::{DiskError, FileName, SegmentName};
use super::segment::SegmentMeta;
use super::segment::format::BadHeader;
use super::segment::scan::BadFrame;
use crate::batch::UNPACKED_BYTES_MAX;
use crate::ids::{Offset, PartitionId};

/// A segment of this generation is not compacted again: file names have no room for more.
pub const GENERATION_MAX: u32 = 999_999;

/// What a job may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CleanerLimits {
    /// Memory for the keys of one job: 24 bytes a key, at most three quarters of it in use.
    pub map_bytes_max: usize,
    /// How much is read at once, and worked on at once: a window, or one batch if it is larger.
    pub window_bytes: usize,
    /// Records of a batch beyond this, decompressed, are not looked at: the batch stays whole.
    pub decompressed_bytes_max: usize,
    /// A batch that would grow beyond this, since its records were compressed better before, stays whole. Not below
    /// what the journal takes.
    pub batch_bytes_max: usize,
}

impl Default for CleanerLimits {
    fn default() -> Self {
        const MIB: usize = 1024 * 1024;
        Self {
            map_bytes_max: 16 * MIB,
            window_bytes: 256 * 1024,
            decompressed_bytes_max: UNPACKED_BYTES_MAX,
            batch_bytes_max: 16 * MIB,
        }
    }
}

/// One compaction of one log.
#[derive(Clone, Debug)]
pub struct Job {
    pub partition: PartitionId,
    /// Sealed ones, oldest first, without one left out.
    pub segments: Vec<SegmentMeta>,
    /// The dirty part begins here: jobs before have seen what is before.
    pub dirty_from: Offset,
    /// Segments that end behind it are not touched.
    pub upto: Offset,
    /// The producers that are remembered. Of each the newest batch before `upto` stays, if only as a header.
    pub producers: Vec<ProducerState>,
    pub tombstone_ms: i64,
    /// The wall clock, in ms since the epoch.
    pub now_ms: i64,
    /// Small neighbours are put together up to this size.
    pub segment_bytes: u64,
    /// Keeps a client from making keys whose hashes collide: any number that clients do not know.
    pub seed: u64,
    pub limits: CleanerLimits,
}

/// How a job ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The new segments are durable, with their indexes and names. The owner swaps them for the old ones.
    Done(Done),
    /// There was nothing to do.
    Nothing,
    /// The log is as it was; the files of this job are removed.
    Failed(Failure),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Done {
    /// The old segments: the first of the log and those that follow it, by base.
    pub replaced: Vec<SegmentName>,
    /// What stands for them, by base. Fewer, or none if they held no batch.
    pub by: Vec<SegmentMeta>,
    /// The dirty part begins here now.
    pub cleaned: Offset,
    /// Of the old segments.
    pub bytes_in: u64,
    /// Of the new ones.
    pub bytes_out: u64,
    pub records_in: u64,
    pub records_out: u64,
    /// Batches whose records could not be read, or that would have grown too large. Their content is a client's
    /// doing: they are served as they came.
    pub kept_whole: u64,
}

/// Why a job ended early.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    #[error(
        "{file}: damaged at byte {position}: {what}. The log is not compacted until the file is whole again: let \
         this replica be rebuilt from another one, or delete the records up to there"
    )]
    Damaged { file: FileName, position: u64, what: Damage },
    #[error("{file}: {error}; the log stays as it was")]
    Disk { file: FileName, error: DiskError },
    #[error("cancelled by the log's owner")]
    Cancelled,
}

/// What is wrong with a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    #[error(transparent)]
    Header(#[from] BadHeader),
    #[error(transparent)]
    Frame(#[from] BadFrame),
    #[error("the file ends before its segment does")]
    Short,
    #[error("a batch that begins before the one in front of it ends")]
    Order,
}
