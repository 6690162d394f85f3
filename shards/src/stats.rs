//! What a shard counts about itself. Floor 0: values only; the control core asks for a snapshot by message, so
//! that no counter is shared between cores.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::ids::{Offset, PartitionId};

/// A snapshot of one shard's counters since its start.
#[derive(Clone, Debug, Default)]
pub struct ShardStats {
    pub connections: u64,
    pub connections_opened: u64,
    /// Closed connections by [`crate::front::CloseReason`], named in snake case.
    pub connections_closed: Vec<(&'static str, u64)>,
    pub frames: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub records_appended: u64,
    pub bytes_appended: u64,
    pub batches_appended: u64,
    pub appends_refused: u64,
    /// Appends whose producer was asked to pause.
    pub appends_throttled: u64,
    pub reads: u64,
    pub bytes_read: u64,
    pub reads_from_disk: u64,
    /// Reads that were answered with the name of a nearer replica.
    pub reads_pointed: u64,
    pub mail_sent: u64,
    pub replication: ReplicationStats,
    pub journal: JournalStats,
    pub storage: StorageStats,
    pub front: FrontStats,
    /// The driver's counters: loop turns, enters, wake-ups, completion overflows and the like, by name.
    pub driver: Vec<(&'static str, u64)>,
    /// From the arrival of an append at its partition to its answer, in nanoseconds.
    pub append_latency: Option<Histogram<u64>>,
    /// From handing a synced write to the disk to its event, in nanoseconds.
    pub flush_latency: Option<Histogram<u64>>,
    /// At most [`PARTITIONS_MAX`] partitions, those with the smallest ids.
    pub partitions: Vec<PartitionStats>,
    pub partitions_total: u64,
}

/// Partitions that a snapshot lists one by one.
pub const PARTITIONS_MAX: usize = 1000;

/// Following and being followed. The first group says how it is now, the others count since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReplicationStats {
    pub leading: u64,
    pub following: u64,
    /// Of this shard's, those without a leader.
    pub offline: u64,
    /// Led here, with fewer replicas in sync than there are.
    pub under_replicated: u64,
    /// Led here, with fewer in sync than producers ask for.
    pub under_min_isr: u64,
    /// What the slowest in-sync follower of the slowest partition lacks, and for how long.
    pub lag_records_max: u64,
    pub lag_max: Duration,
    /// Open streams to followers, and to leaders.
    pub streams_out: u64,
    pub streams_in: u64,

    pub dials: u64,
    pub dials_failed: u64,
    /// Streams to leaders that ended without having been asked to.
    pub streams_broken: u64,
    /// Record bytes sent to followers, those of them to followers that were not in sync, and those of these to followers
    /// that did not come closer on what is left over.
    pub bytes_out: u64,
    pub bytes_out_catch_up: u64,
    pub bytes_out_urgent: u64,
    /// Record bytes taken over from leaders.
    pub bytes_in: u64,
    pub subscriptions: u64,
    pub subscriptions_refused: u64,

    /// Wishes for smaller and for larger sets of in-sync replicas, and refused ones.
    pub isr_shrinks: u64,
    pub isr_expands: u64,
    pub isr_refused: u64,
    /// Logs of followers that were cut to meet their leader's, and those that were cut below the high watermark that they
    /// knew: after an unclean election, or a loss beyond what the durability promises.
    pub truncations: u64,
    pub truncations_below_high_watermark: u64,
    /// Batches of a leader that did not fit and were not taken.
    pub misfits: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct JournalStats {
    pub files: u64,
    pub chunks_written: u64,
    pub bytes_written: u64,
    pub syncs: u64,
    /// Bytes appended and not yet durable.
    pub unflushed_bytes: u64,
    /// Record bytes held in memory for readers.
    pub tail_bytes: u64,
    /// Bytes of the journal from the replay point to its end: what a crash now would have to read again.
    pub live_bytes: u64,
}

/// The logs behind the journal.
#[derive(Clone, Copy, Debug, Default)]
pub struct StorageStats {
    pub segments: u64,
    pub segment_bytes: u64,
    /// Record bytes that only the journal holds on disk.
    pub unmoved_bytes: u64,
    pub checkpoints: u64,
    /// Deleted as too old or too large a log, or because a client deleted all their records.
    pub segments_deleted: u64,
    pub compactions: u64,
    /// Bytes that compactions read, and bytes they wrote in their place.
    pub compaction_bytes_in: u64,
    pub compaction_bytes_out: u64,
    /// Reads of segments whose bytes had been read ahead.
    pub read_ahead_hits: u64,
    /// Reads of segments that did not give way to writes.
    pub urgent_reads: u64,
    /// Batches in segments that failed a check when they were read.
    pub damaged_batches: u64,
}

/// What the client protocol counts.
#[derive(Clone, Debug, Default)]
pub struct FrontStats {
    /// Of every kind of request that came at least once.
    pub requests: Vec<RequestStats>,
    /// Frames that could not be read as a request.
    pub malformed: u64,
    /// Connections that were not read from for a while, because their producers were asked to pause.
    pub pauses: u64,
}

/// Buckets of [`RequestStats::latency`].
pub const LATENCY_BUCKETS: usize = 32;

/// The counters of one kind of request.
#[derive(Clone, Debug, Default)]
pub struct RequestStats {
    /// As the protocol calls it.
    pub name: &'static str,
    /// Requests that were answered (or, when no answer is wanted, done).
    pub requests: u64,
    /// Those whose time from the arrival of the frame to the answer was below 2^i microseconds and not below
    /// 2^(i-1), by i; the last bucket has no upper bound.
    pub latency: [u64; LATENCY_BUCKETS],
    pub latency_sum: Duration,
    /// Errors that were answered, by the protocol's name of them: one for each partition, topic or the like.
    pub errors: Vec<(&'static str, u64)>,
}

#[derive(Clone, Copy, Debug)]
pub struct PartitionStats {
    pub partition: PartitionId,
    pub log_start: Offset,
    pub high_watermark: Offset,
    pub log_end: Offset,
}
