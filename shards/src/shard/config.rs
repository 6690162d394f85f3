//! What replication between shards may take and how long it waits. Values only.

use std::time::Duration;

/// The bounds and times of a shard's replication.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplicationConfig {
    /// A follower that has not had all of the leader's log for so long leaves the in-sync replicas. Kafka waits 30 s;
    /// here a produce that waits for a silent follower shall end with its own timeout of 30 s to spare, and streams
    /// without polling say sooner that a follower stopped than fetches do.
    pub lag_max: Duration,
    /// Record bytes that a leader may have under way to this shard on one stream. A batch that is larger than what is left
    /// is sent as long as something is left.
    pub stream_credit_bytes: u32,
    /// Bytes sent on one stream and not yet taken by the kernel, beyond which nothing more is sent on it.
    pub unsent_bytes_max: usize,
    /// Record bytes of one partition that are sent before the next one has its turn.
    pub turn_bytes: usize,
    /// Record bytes that followers which are not in sync have been sent over one stream and not acknowledged, flushed
    /// where the partition waits for flushes: what lies in a follower's journal before a record that a producer waits
    /// for. At so many no turn of theirs follows, but for the one now and then that nobody is denied. A turn is a quarter
    /// of it, or `turn_bytes` if that is less. For a follower that does not come closer to the end, it becomes up to
    /// sixteen times as much.
    pub catch_up_in_flight_max: usize,
    /// Reads of segments that one stream has under way.
    pub reads_in_flight_max: usize,
    /// Record bytes in a second that followers which are not in sync get from this shard, over all streams. `None`: what
    /// the in-sync ones leave over, and more while they do not come closer to the end.
    pub catch_up_bytes_per_second: Option<u64>,
    /// How long the news of a high watermark waits for records to go with.
    pub watermark_delay: Duration,
    /// The first wait before a connection, or a subscription that was refused, is tried again; doubled each time up to
    /// `retry_max`, and each time up to half of it less at random.
    pub retry_min: Duration,
    pub retry_max: Duration,
    /// Where the randomness of retries begins.
    pub seed: u64,
}

impl Default for ReplicationConfig {
    fn default() -> Self {
        Self {
            lag_max: Duration::from_secs(10),
            stream_credit_bytes: 16 * 1024 * 1024,
            unsent_bytes_max: 4 * 1024 * 1024,
            turn_bytes: 512 * 1024,
            catch_up_in_flight_max: 512 * 1024,
            reads_in_flight_max: 4,
            catch_up_bytes_per_second: None,
            watermark_delay: Duration::from_millis(5),
            retry_min: Duration::from_millis(10),
            retry_max: Duration::from_secs(1),
            seed: 0,
        }
    }
}
