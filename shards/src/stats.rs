//! What a shard counts about itself. Floor 0: values only; the control core asks for a snapshot by message, so
//! that no counter is shared between cores.

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
    pub reads: u64,
    pub bytes_read: u64,
    pub reads_from_disk: u64,
    pub mail_sent: u64,
    pub journal: JournalStats,
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
}

#[derive(Clone, Copy, Debug)]
pub struct PartitionStats {
    pub partition: PartitionId,
    pub log_start: Offset,
    pub high_watermark: Offset,
    pub log_end: Offset,
}
