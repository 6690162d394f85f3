//! What cores say to each other: operations on a partition and their answers, and what the control core tells.
//!
//! Floor 0. An operation goes to the shard that owns the partition, as a call when that is the shard the client
//! came to, as mail otherwise; it is the same value either way. Record bytes travel as shared [`Bytes`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::ids::{
    ConnId, LeaderEpoch, NodeId, Offset, PartitionEpoch, PartitionId, RegistrationEpoch, Revision, ShardId,
};
use crate::time::Instant;

/// Chosen by a session for each thing that it waits for; comes back with the answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u64);

/// Where the answer to an operation goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReplyTo {
    pub shard: ShardId,
    pub conn: ConnId,
    pub token: Token,
}

/// When a produce request is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Acks {
    /// Never; the answer only tells the session of an error.
    None,
    /// Once the leader has appended.
    Leader,
    /// Once the high watermark passed it.
    All,
}

/// One operation on one partition.
#[derive(Clone, Debug)]
pub enum Op {
    /// Appends one or more record batches, which were checked all before the first is appended. When the journal has
    /// no room for a later one the answer is that error, and those before it stay, as after an answer that was lost.
    /// A producer that numbers its batches sends one at a time.
    Append {
        acks: Acks,
        /// When an `Acks::All` that still waits is answered with [`PartitionError::TimedOut`].
        deadline: Instant,
        records: Bytes,
    },
    /// Reads whole batches from the one that holds `offset` on, below the high watermark.
    Read {
        /// A replica that follows may answer too, up to the high watermark that it knows (KIP-392). Otherwise only the
        /// leader does.
        from_follower: bool,
        /// Followers that the client would rather read from. A leader that knows one of them to have what is asked for
        /// answers with its name, in [`ReadOut::nearer`], and with no records.
        nearer: Vec<NodeId>,
        /// What the client believes the leader epoch to be (R4).
        current_epoch: Option<LeaderEpoch>,
        offset: Offset,
        bytes_max: u32,
        /// Return the first batch even when it alone is larger than `bytes_max`.
        first_batch_whole: bool,
        /// When fewer bytes than this are there, watch the partition: [`Answer::Readable`] follows once, with
        /// the same token, when more can be read or the partition can no longer be read here. 0: never watch.
        watch_below_bytes: u32,
    },
    /// Ends the watch that a read with the same token began. Not answered.
    Unwatch,
    Locate {
        current_epoch: Option<LeaderEpoch>,
        at: Locate,
    },
    /// Where `epoch`, or the largest one below it, ended (KIP-101).
    EpochEnd {
        current_epoch: Option<LeaderEpoch>,
        epoch: LeaderEpoch,
    },
    /// Deletes the records before an offset; on the leader only. Deleted is deleted when the answer comes: no reader
    /// sees them again, whatever fails later.
    DeleteRecords {
        /// `None`: all that consumers can read, up to the high watermark. One above the high watermark is refused
        /// with [`PartitionError::OffsetOutOfRange`]; one below the log's start changes nothing and is no error.
        before: Option<Offset>,
        /// When the answer is [`PartitionError::TimedOut`] if it is not known to be durable yet.
        deadline: Instant,
    },
}

/// What to look for in a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Locate {
    Earliest,
    /// The high watermark: what a consumer that starts "at the end" will read first.
    Latest,
    /// The first committed record with the largest timestamp.
    LargestTimestamp,
    /// The first record with this timestamp, in ms since the epoch, or a later one.
    Timestamp(i64),
}

/// The answer to an [`Op`]. `Op::Append` with `Acks::None` is answered too, so that the session can close on error.
#[derive(Clone, Debug)]
pub enum Answer {
    Appended(Result<Appended, PartitionError>),
    Read(Result<ReadOut, ReadError>),
    Readable,
    Located(Result<Option<Located>, PartitionError>),
    EpochEnd(Result<Option<EpochEnd>, PartitionError>),
    /// The log's start after a deletion.
    Deleted(Result<Offset, PartitionError>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    pub base_offset: Offset,
    pub log_start: Offset,
    /// How long the producer is asked to pause, so that the disk keeps up. Mostly zero.
    pub throttle: Duration,
}

#[derive(Clone, Debug, Default)]
pub struct ReadOut {
    pub high_watermark: Offset,
    pub log_start: Offset,
    /// Whole record batches in order; each part is one or more of them.
    pub records: Vec<Bytes>,
    /// Whether [`Answer::Readable`] will follow.
    pub watching: bool,
    /// Where to read instead (KIP-392): an in-sync follower whose log holds the offset.
    pub nearer: Option<NodeId>,
}

/// A refused read; the ends let a client find its place again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadError {
    pub error: PartitionError,
    pub ends: Option<ReadEnds>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadEnds {
    pub high_watermark: Offset,
    pub log_start: Offset,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Located {
    pub offset: Offset,
    /// Milliseconds since the epoch; `None` for the ends of the log.
    pub timestamp_ms: Option<i64>,
    pub leader_epoch: Option<LeaderEpoch>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EpochEnd {
    pub epoch: LeaderEpoch,
    pub end: Offset,
}

/// Why a partition refused. The client protocol maps each to its own code, in one place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PartitionError {
    #[error("this shard does not own the partition")]
    NotOwned,
    #[error("this node does not lead the partition")]
    NotLeader,
    #[error("the leader epoch is older than the partition's")]
    FencedLeaderEpoch,
    #[error("the leader epoch is newer than the partition's")]
    UnknownLeaderEpoch,
    #[error("the offset lies outside the log")]
    OffsetOutOfRange,
    #[error("the high watermark of this epoch is not known yet")]
    OffsetNotAvailable,
    #[error("the batch is damaged (length or CRC)")]
    CorruptBatch,
    #[error("the batch breaks a rule of its format or of idempotent producers")]
    InvalidBatch,
    #[error("only record batches of format version 2 are accepted")]
    UnsupportedFormat,
    #[error("the topic is compacted, and a record of the batch has no key")]
    KeyMissing,
    #[error("the batch is larger than the topic allows")]
    BatchTooLarge,
    #[error("the sequence number does not follow the producer's last one")]
    OutOfOrderSequence,
    #[error("a newer life of this producer exists")]
    InvalidProducerEpoch,
    #[error("too few replicas are in sync")]
    NotEnoughReplicas,
    #[error("too few replicas were in sync once the records were appended")]
    NotEnoughReplicasAfterAppend,
    #[error("the deadline passed before enough replicas had the records")]
    TimedOut,
    #[error("the disk has no room for the journal; free space, the node goes on by itself")]
    StorageFull,
    #[error("the shard's queue of unwritten records is full; try again")]
    Overloaded,
    #[error("the log could not be read")]
    StorageFailed,
}

/// How far an acked record has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// Flushed to disk on every in-sync replica.
    #[default]
    Fsync,
    /// In the memory of every in-sync replica, flushed at most `flush_interval` later.
    Replicated,
}

/// One partition as the cluster's committed metadata has it, told to the shard that owns its local replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assignment {
    pub partition: PartitionId,
    pub leader: Option<NodeId>,
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
    pub replicas: Vec<NodeId>,
    pub isr: Vec<NodeId>,
    pub config: PartitionConfig,
}

/// The topic settings that a partition acts on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartitionConfig {
    pub durability: Durability,
    /// In-sync replicas without which `Acks::All` is refused; more than there are replicas means all of them.
    pub isr_min: u32,
    pub batch_bytes_max: u32,
    pub log: LogConfig,
}

impl Default for PartitionConfig {
    fn default() -> Self {
        Self {
            durability: Durability::Fsync,
            isr_min: 1,
            batch_bytes_max: 1024 * 1024 + 12,
            log: LogConfig::default(),
        }
    }
}

/// How long a log keeps its records, and in what files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogConfig {
    /// A segment of this size, or of this age, is closed and the next one begun.
    pub segment_bytes: u32,
    pub segment_ms: i64,
    /// Old segments are deleted by time and size.
    pub delete: bool,
    /// Of a key only the last record is kept.
    pub compact: bool,
    /// Segments whose newest record is older than this are deleted; `None`: never for their age.
    pub retention_ms: Option<i64>,
    /// The oldest segments are deleted as long as the others have this size; `None`: never for the size.
    pub retention_bytes: Option<u64>,
    /// Records that are younger are not compacted.
    pub compaction_lag_ms: i64,
    /// How long a compacted log keeps the deletion of a key.
    pub tombstone_ms: i64,
    /// Compaction begins when so much of the log has not been compacted, in thousandths.
    pub dirty_permille: u32,
}

impl Default for LogConfig {
    fn default() -> Self {
        const HOUR_MS: i64 = 60 * 60 * 1000;
        Self {
            segment_bytes: 1024 * 1024 * 1024,
            segment_ms: 7 * 24 * HOUR_MS,
            delete: true,
            compact: false,
            retention_ms: Some(7 * 24 * HOUR_MS),
            retention_bytes: None,
            compaction_lag_ms: 0,
            tombstone_ms: 24 * HOUR_MS,
            dirty_permille: 500,
        }
    }
}

/// A node of the cluster, as shards need to know it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerNode {
    pub node: NodeId,
    pub epoch: RegistrationEpoch,
    /// Whether its replicas may join an ISR: it is neither fenced nor stopping (R7).
    pub eligible: bool,
}

/// A leader's wish for another ISR, as an intent: what is true comes back as an [`Assignment`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IsrChange {
    pub partition: PartitionId,
    pub leader_epoch: LeaderEpoch,
    /// What the wish was decided upon; refused when the partition is past it.
    pub partition_epoch: PartitionEpoch,
    /// With the registration under which each was heard of.
    pub isr: Vec<(NodeId, RegistrationEpoch)>,
}

/// Why an [`IsrChange`] was definitely not taken (R9, R10). Anything less definite is never told: the leader goes on
/// counting the wished ISR until an [`Assignment`] comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IsrRefusal {
    /// A member of it is fenced, stopping or registered anew.
    Ineligible,
    /// It was never proposed.
    NotAttempted,
}

/// Control core to shard, in the order of revisions. `V` is the immutable image that sessions answer from,
/// `R` what answers a session's request.
#[derive(Clone, Debug)]
pub enum FromControl<V, R> {
    /// One committed change: the new image and what it means for this shard's partitions. Confirmed with
    /// [`ToControl::Applied`]. A revision that is not above the last one is dropped.
    Delta {
        revision: Revision,
        view: V,
        assign: Vec<Assignment>,
        unassign: Vec<PartitionId>,
    },
    Reply {
        conn: ConnId,
        token: Token,
        reply: R,
    },
    /// All nodes of the cluster, whenever one of them changed; before the delta whose assignments name them.
    Nodes(Arc<[PeerNode]>),
    IsrRefused {
        partition: PartitionId,
        partition_epoch: PartitionEpoch,
        refusal: IsrRefusal,
    },
    /// Until when this node may lead without hearing more: past it, the shard refuses as one that does not lead.
    Lease {
        until: Instant,
    },
    /// Asks for [`ToControl::Stats`].
    Stats {
        id: u64,
    },
    /// No new connections or records; flush; then [`ToControl::Stopped`].
    Stop {
        deadline: Duration,
    },
}

/// Shard to control core. `Q` is a session's request.
#[derive(Debug)]
pub enum ToControl<Q> {
    /// The journal is recovered; the shard can be assigned partitions.
    Recovered {
        partitions: Vec<PartitionId>,
    },
    Applied {
        revision: Revision,
    },
    Request {
        conn: ConnId,
        token: Token,
        request: Q,
    },
    AlterIsr {
        changes: Vec<IsrChange>,
    },
    /// Asks for a connection to that shard of that node. It is made, authenticated and handed to this shard's driver,
    /// which tells of it with [`crate::shard::PeerInput::Opened`], or of its failure with
    /// [`crate::shard::PeerInput::DialFailed`]: one of them, once. The shard asks again by itself, later each time.
    Dial {
        node: NodeId,
        shard: ShardId,
    },
    Stats {
        id: u64,
        stats: Box<crate::stats::ShardStats>,
    },
    Stopped,
}

/// Shard to shard.
#[derive(Clone, Debug)]
pub enum ShardMail {
    Op { reply_to: ReplyTo, partition: PartitionId, op: Op },
    Answer { conn: ConnId, token: Token, answer: Answer },
}
