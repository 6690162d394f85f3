//! A shard's checkpoint: what its segments hold, and from where on the journal holds the rest. Floor 1, pure.
//!
//! Its bytes are laid out in `format.rs`: [`Encoder`] writes them log by log, [`Checkpoint::parse`] reads them.

mod format;
#[cfg(test)]
mod tests;

pub use format::{BadCheckpoint, CHECKPOINT_MAGIC, Encoder};

use super::Lsn;
use super::disk::FileNo;
use super::journal::LogPosition;
use super::segment::SegmentMeta;
use crate::ids::{LeaderEpoch, Offset, PartitionId, ProducerEpoch, ProducerId, Sequence, ShardId};

/// The content of a checkpoint file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    pub shard: ShardId,
    /// The id of the journal that it goes with.
    pub journal: u64,
    /// The life of the journal that wrote it.
    pub incarnation: u64,
    pub resume: Resume,
    /// By partition.
    pub logs: Vec<LogState>,
}

/// Where the journal is read from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resume {
    /// From the first chunk of this file, which has this sequence.
    From { file: FileNo, sequence: u64 },
    /// The shard stopped in order: the segments hold everything. The journal goes on here, with this sequence.
    Clean { end: LogPosition, sequence: u64 },
}

/// One log as the checkpoint knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogState {
    pub partition: PartitionId,
    /// The segments hold what the journal says of this log up to here, and nothing after.
    pub moved: Lsn,
    /// `high_watermark`, `epochs`, `producers` and `superseded` are as they were after this entry; `moved <= noted`.
    pub noted: Lsn,
    /// `start <= end`: what the segments hold. `start` may lie within the first of them.
    pub start: Offset,
    pub end: Offset,
    pub high_watermark: Offset,
    /// Compaction has seen everything before this.
    pub cleaned: Offset,
    /// By base.
    pub segments: Vec<SegmentMeta>,
    /// The leader epochs, each with the offset at which it began; ascending.
    pub epochs: Vec<(LeaderEpoch, Offset)>,
    pub producers: Vec<ProducerState>,
    /// What was displaced in `producers` by batches that may still be cut off, by offset.
    pub superseded: Vec<Superseded>,
}

/// What is remembered of an idempotent producer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProducerState {
    pub id: ProducerId,
    pub epoch: ProducerEpoch,
    /// Its last batches, oldest first.
    pub batches: Vec<ProducedBatch>,
}

/// What was remembered of a producer before its batch at `by`. `None`: nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superseded {
    pub id: ProducerId,
    pub by: Offset,
    pub before: Option<ProducerState>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProducedBatch {
    pub first: Sequence,
    pub last: Sequence,
    pub base: Offset,
}
