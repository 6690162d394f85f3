//! What shards count as they follow and are followed, by shard: a table like those of the other families.
//!
//! A partition is counted by the shard that leads it, so that sums over all nodes are right; those that nobody leads are
//! counted by every shard with a replica, and once in `highwater_partitions_without_leader`.

use highwater_shards::ids::ShardId;
use highwater_shards::stats::{ReplicationStats, ShardStats};

use super::{Exposition, Family, Kind, counter, gauge};

const REPLICATION: [Family<ReplicationStats>; 23] = [
    gauge("partitions_led", "Partitions that the shard leads.", |r| r.leading),
    gauge("partitions_followed", "Partitions that the shard follows.", |r| r.following),
    gauge("partitions_offline", "Partitions with a replica on the shard that nobody leads.", |r| r.offline),
    gauge("partitions_under_replicated", "Partitions led here with a replica that is not in sync.", |r| {
        r.under_replicated
    }),
    gauge(
        "partitions_under_min_isr",
        "Partitions led here with fewer replicas in sync than acks=all needs.",
        |r| r.under_min_isr,
    ),
    gauge(
        "replication_lag_records",
        "Records that the slowest in-sync replica lacks, of the partition led here where that is most.",
        |r| r.lag_records_max,
    ),
    gauge("replication_streams_out", "Open streams to shards that follow.", |r| r.streams_out),
    gauge("replication_streams_in", "Open streams to shards that are followed.", |r| r.streams_in),
    counter("replication_sent_bytes_total", "Bytes of record batches sent to followers.", |r| r.bytes_out),
    counter(
        "replication_catch_up_bytes_total",
        "Bytes of record batches sent to followers that were not in sync.",
        |r| r.bytes_out_catch_up,
    ),
    counter(
        "replication_urgent_bytes_total",
        "Bytes of record batches sent, ahead of their turn, to followers that did not come closer to the end.",
        |r| r.bytes_out_urgent,
    ),
    counter("replication_received_bytes_total", "Bytes of record batches taken over from leaders.", |r| {
        r.bytes_in
    }),
    counter("replication_dials_total", "Streams to leaders that were asked for.", |r| r.dials),
    counter("replication_dial_failures_total", "Streams to leaders that could not be made.", |r| {
        r.dials_failed
    }),
    counter("replication_streams_broken_total", "Streams to leaders that broke, to be made again.", |r| {
        r.streams_broken
    }),
    counter("replication_subscriptions_total", "Times that a replica began to be followed from here.", |r| {
        r.subscriptions
    }),
    counter("replication_subscriptions_refused_total", "Wishes to follow that were refused.", |r| {
        r.subscriptions_refused
    }),
    counter("isr_shrinks_total", "Wishes of the shard to take replicas out of an ISR.", |r| r.isr_shrinks),
    counter("isr_expands_total", "Wishes of the shard to take replicas into an ISR.", |r| r.isr_expands),
    counter("isr_changes_refused_total", "Wishes for another ISR that were refused.", |r| r.isr_refused),
    counter("replication_truncations_total", "Logs that were cut to meet their leader's.", |r| r.truncations),
    counter(
        "replication_truncations_below_high_watermark_total",
        "Logs that were cut below what was known to be committed: records were lost.",
        |r| r.truncations_below_high_watermark,
    ),
    counter("replication_misfits_total", "Batches of a leader that did not fit and were not taken.", |r| {
        r.misfits
    }),
];

pub(super) fn render(out: &mut Exposition, up: &[(ShardId, &ShardStats)]) {
    let name = "highwater_replication_lag_seconds";
    out.family(name, Kind::Gauge, "For how long the in-sync replica that lags most has done so.");
    for (shard, stats) in up {
        out.sample(name, &[("shard", shard)], stats.replication.lag_max.as_secs_f64());
    }
    for family in &REPLICATION {
        let name = out.head(family);
        for (shard, stats) in up {
            out.sample(&name, &[("shard", shard)], (family.value)(&stats.replication));
        }
    }
}
