//! What the node counts, in the text form of Prometheus (version 0.0.4).
//!
//! Driver, for the process's own numbers; rendering is a function of a [`Snapshot`]. Families are tables here: a
//! counter is one line. At most [`PARTITIONS_MAX`] partitions are listed one by one, whatever the node holds.

mod peers;
mod replication;

use std::fmt::{Display, Write as _};
use std::time::Duration;

use hdrhistogram::{Counter, Histogram};
use highwater_shards::ids::ShardId;
use highwater_shards::stats::{PARTITIONS_MAX, PartitionStats, RequestStats, ShardStats};

use super::http::members;
use super::{GossipView, LoopStats, Snapshot};
use crate::control::ControlStats;
use crate::control::metadata::image::Image;
use crate::control::swim::{self, Reject};
use crate::raft::{RaftStats, Status};

/// Upper bounds of the buckets of latencies, in nanoseconds, with their names in seconds.
const BUCKETS: [(u64, &str); 18] = [
    (25_000, "0.000025"),
    (50_000, "0.00005"),
    (100_000, "0.0001"),
    (250_000, "0.00025"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (2_500_000, "0.0025"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (25_000_000, "0.025"),
    (50_000_000, "0.05"),
    (100_000_000, "0.1"),
    (250_000_000, "0.25"),
    (500_000_000, "0.5"),
    (1_000_000_000, "1"),
    (2_500_000_000, "2.5"),
    (5_000_000_000, "5"),
    (10_000_000_000, "10"),
];

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A family with one number per source.
struct Family<S> {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    value: fn(&S) -> u64,
}

const fn counter<S>(name: &'static str, help: &'static str, value: fn(&S) -> u64) -> Family<S> {
    Family { name, kind: Kind::Counter, help, value }
}

const fn gauge<S>(name: &'static str, help: &'static str, value: fn(&S) -> u64) -> Family<S> {
    Family { name, kind: Kind::Gauge, help, value }
}

const CONTROL: [Family<ControlStats>; 11] = [
    counter("control_requests_total", "Requests to the control core.", |s| s.requests),
    gauge("control_requests_waiting", "Requests that the control core has not answered yet.", |s| {
        s.requests_waiting
    }),
    counter("control_requests_timed_out_total", "Requests whose time was up before they were done.", |s| {
        s.requests_timed_out
    }),
    counter("metadata_proposals_total", "Entries proposed to the metadata log.", |s| s.proposals),
    counter("metadata_proposals_failed_total", "Entries that did not get into the metadata log.", |s| {
        s.proposals_failed
    }),
    counter("metadata_commits_total", "Entries of the metadata log applied since the start.", |s| s.commits),
    counter(
        "nodes_fenced_by_controller_total",
        "Times that this node, as the controller, took another for dead.",
        |s| s.fences,
    ),
    counter(
        "leader_elections_total",
        "Partitions of the cluster that got another leader, or the same one anew, as this node heard.",
        |s| s.elections,
    ),
    counter(
        "unclean_leader_elections_total",
        "Those of them whose leader may lack records that were acknowledged.",
        |s| s.elections_unclean,
    ),
    gauge("metadata_term", "The term of the metadata log.", |s| s.term),
    gauge("metadata_has_leader", "1 while this node knows who leads the metadata log.", |s| {
        u64::from(s.leader.is_some())
    }),
];

const IMAGE: [Family<Image>; 6] = [
    gauge("metadata_revision", "The last applied entry of the metadata log.", |i| i.revision.0),
    gauge("nodes", "Nodes of the cluster.", |i| i.nodes.len() as u64),
    gauge("nodes_fenced", "Nodes that are starting, or are taken for dead.", |i| {
        i.nodes.values().filter(|node| node.fenced).count() as u64
    }),
    gauge("partitions_without_leader", "Partitions that nobody leads.", |i| i.leaderless_count() as u64),
    gauge("topics", "Topics of the cluster.", |i| i.topic_count() as u64),
    gauge("partitions", "Partitions of the cluster.", |i| i.partition_count() as u64),
];

const RAFT_STATUS: [Family<Status>; 9] = [
    gauge("raft_term", "The term of the metadata's Raft group.", |s| s.term),
    gauge("raft_leader", "The node that leads the metadata; 0 when none is known.", |s| {
        s.leader.map_or(0, |leader| u64::from(leader.0))
    }),
    gauge("raft_is_leader", "Whether this node leads the metadata.", |s| u64::from(s.leader == Some(s.node))),
    gauge("raft_voters", "Voters of the Raft group.", |s| s.voters.len() as u64),
    gauge("raft_learners", "Learners of the Raft group.", |s| s.learners.len() as u64),
    gauge("raft_last_index", "The last index of the Raft log.", |s| s.last_log.unwrap_or(0)),
    gauge("raft_committed_index", "The last index that this node knows to be committed.", |s| {
        s.committed.unwrap_or(0)
    }),
    gauge("raft_applied_index", "The last index that this node has applied.", |s| s.applied.unwrap_or(0)),
    gauge("raft_snapshot_index", "The last index that the snapshot holds.", |s| s.snapshot.unwrap_or(0)),
];

const RAFT: [Family<RaftStats>; 12] = [
    counter("raft_proposals_repeated_total", "Attempts beyond the first of a proposal.", |s| {
        s.proposals_repeated
    }),
    counter("raft_forwarded_total", "Proposals of other nodes that this one took in as leader.", |s| {
        s.forwarded
    }),
    counter("raft_duplicates_total", "Entries that were in the log already, and had no effect.", |s| {
        s.duplicates
    }),
    counter("raft_applied_total", "Entries of the Raft log applied since the start.", |s| s.applied),
    counter("raft_snapshots_built_total", "Snapshots of the metadata built.", |s| s.snapshots_built),
    counter("raft_snapshots_installed_total", "Snapshots of the metadata installed.", |s| {
        s.snapshots_installed
    }),
    counter("raft_snapshots_sent_total", "Snapshots of the metadata sent to other nodes.", |s| {
        s.snapshots_sent
    }),
    counter("raft_calls_refused_total", "Calls of other nodes that were refused.", |s| s.calls_refused),
    counter("raft_written_entries_total", "Entries written to the Raft log.", |s| s.entries_written),
    counter("raft_flushes_total", "Flushes of the Raft log.", |s| s.flushes),
    counter("raft_disk_full_total", "Writes of the Raft log that met a full disk.", |s| s.disk_full),
    counter("raft_proposals_failed_total", "Proposals that did not get into the Raft log.", |s| {
        s.proposals_failed
    }),
];

const GOSSIP: [Family<GossipView>; 20] = [
    gauge("gossip_local_health", "How far this node doubts itself: 0 is healthy, 8 is the worst.", |g| {
        u64::from(g.local_health)
    }),
    counter("gossip_probes_total", "Members asked whether they are there.", |g| g.stats.probes),
    counter("gossip_probes_failed_total", "Probes that nobody answered.", |g| g.stats.probes_failed),
    counter("gossip_probes_void_total", "Probes that do not count, as this node was stalled.", |g| {
        g.stats.probes_void
    }),
    counter("gossip_acks_total", "Probes that were answered.", |g| g.stats.acks),
    counter("gossip_nacks_total", "Words of other members that they had no answer either.", |g| {
        g.stats.nacks
    }),
    counter("gossip_indirect_probes_total", "Times that others were asked to probe a member.", |g| {
        g.stats.indirect_probes
    }),
    counter("gossip_relays_total", "Probes that this node did for others.", |g| g.stats.relays),
    counter("gossip_suspicions_total", "Times that a member came under suspicion.", |g| g.stats.suspicions),
    counter("gossip_confirmations_total", "Suspicions that another member confirmed.", |g| {
        g.stats.confirmations
    }),
    counter("gossip_refutations_total", "Times that this node objected to being suspected.", |g| {
        g.stats.refutations
    }),
    counter("gossip_deaths_total", "Members that became dead, as this node sees it.", |g| g.stats.deaths),
    counter("gossip_syncs_total", "Comparisons of the whole table with another member's.", |g| g.stats.syncs),
    counter("gossip_members_refused_total", "New members not taken in because of a bound.", |g| {
        g.stats.members_refused
    }),
    counter("gossip_received_datagrams_total", "Datagrams received.", |g| g.stats.datagrams_received),
    counter("gossip_received_bytes_total", "Bytes of datagrams received.", |g| g.stats.bytes_received),
    counter("gossip_sent_datagrams_total", "Datagrams sent.", |g| g.stats.datagrams_sent),
    counter("gossip_sent_bytes_total", "Bytes of datagrams sent.", |g| g.stats.bytes_sent),
    counter("gossip_dropped_datagrams_total", "Datagrams dropped because too many waited.", |g| {
        g.stats.datagrams_dropped
    }),
    counter("gossip_send_failures_total", "Datagrams that the operating system did not take.", |g| {
        g.send_failures
    }),
];

const MEMBER_STATUSES: [swim::Status; 4] =
    [swim::Status::Alive, swim::Status::Suspect, swim::Status::Dead, swim::Status::Left];

/// A family of latencies.
type Latency<S> = (&'static str, &'static str, fn(&S) -> &Histogram<u64>);

const RAFT_LATENCIES: [Latency<RaftStats>; 4] = [
    ("highwater_raft_proposal_seconds", "From a proposal to its being applied here.", |s| &s.proposal_nanos),
    ("highwater_raft_append_seconds", "From an append to the Raft log to its being durable.", |s| {
        &s.append_nanos
    }),
    ("highwater_raft_vote_seconds", "From a vote to its being durable.", |s| &s.vote_nanos),
    ("highwater_raft_flush_seconds", "Transactions of the Raft log, each with its flush.", |s| {
        &s.flush_nanos
    }),
];

const LOOP_LATENCIES: [Latency<LoopStats>; 2] = [
    (
        "highwater_control_lag_seconds",
        "How much later than it was due a timer of the control core ran.",
        |s| &s.lag_nanos,
    ),
    (
        "highwater_control_delta_seconds",
        "From a committed entry at the control core to a shard's word that it acts on it.",
        |s| &s.delta_nanos,
    ),
];

const SHARD: [Family<ShardStats>; 36] = [
    gauge("connections", "Open client connections.", |s| s.connections),
    counter("connections_opened_total", "Client connections accepted.", |s| s.connections_opened),
    counter("frames_total", "Requests received from clients.", |s| s.frames),
    counter("received_bytes_total", "Bytes of requests received.", |s| s.bytes_received),
    counter("sent_bytes_total", "Bytes of answers sent.", |s| s.bytes_sent),
    counter("appended_records_total", "Records appended.", |s| s.records_appended),
    counter("appended_bytes_total", "Bytes of record batches appended.", |s| s.bytes_appended),
    counter("appended_batches_total", "Record batches appended.", |s| s.batches_appended),
    counter("appends_refused_total", "Appends that were refused.", |s| s.appends_refused),
    counter("appends_throttled_total", "Appends whose producer was asked to pause.", |s| s.appends_throttled),
    counter("reads_total", "Reads of partitions.", |s| s.reads),
    counter("read_bytes_total", "Bytes of record batches read.", |s| s.bytes_read),
    counter("disk_reads_total", "Reads that went to the disk, beyond the records in memory.", |s| {
        s.reads_from_disk
    }),
    counter("reads_pointed_total", "Reads answered with the name of a replica in the client's rack.", |s| {
        s.reads_pointed
    }),
    counter("mail_sent_total", "Operations and answers sent to other shards.", |s| s.mail_sent),
    gauge("shard_partitions", "Partitions that the shard owns.", |s| s.partitions_total),
    gauge("journal_files", "Files of the journal.", |s| s.journal.files),
    counter("journal_chunks_total", "Chunks written to the journal, each with one write.", |s| {
        s.journal.chunks_written
    }),
    counter("journal_written_bytes_total", "Bytes written to the journal.", |s| s.journal.bytes_written),
    counter("journal_syncs_total", "Flushes of the journal.", |s| s.journal.syncs),
    gauge("journal_unflushed_bytes", "Bytes appended and not yet durable.", |s| s.journal.unflushed_bytes),
    gauge("tail_bytes", "Bytes of records held in memory for readers.", |s| s.journal.tail_bytes),
    gauge("journal_live_bytes", "Bytes of the journal that a start after a crash would read.", |s| {
        s.journal.live_bytes
    }),
    gauge("unmoved_bytes", "Bytes of records that only the journal holds on disk.", |s| {
        s.storage.unmoved_bytes
    }),
    gauge("segments", "Segments of the shard's partitions.", |s| s.storage.segments),
    gauge("segment_bytes", "Bytes of the segments of the shard's partitions.", |s| s.storage.segment_bytes),
    counter("checkpoints_total", "Checkpoints of the journal.", |s| s.storage.checkpoints),
    counter("segments_deleted_total", "Segments deleted by retention or by clients.", |s| {
        s.storage.segments_deleted
    }),
    counter("compactions_total", "Compactions that ended.", |s| s.storage.compactions),
    counter("compaction_read_bytes_total", "Bytes of segments that compactions read.", |s| {
        s.storage.compaction_bytes_in
    }),
    counter("compaction_written_bytes_total", "Bytes of segments that compactions wrote.", |s| {
        s.storage.compaction_bytes_out
    }),
    counter("read_ahead_hits_total", "Reads of segments whose bytes had been read ahead.", |s| {
        s.storage.read_ahead_hits
    }),
    counter("urgent_reads_total", "Reads of segments that did not give way to writes.", |s| {
        s.storage.urgent_reads
    }),
    counter("damaged_batches_total", "Batches of segments that failed a check when they were read.", |s| {
        s.storage.damaged_batches
    }),
    counter("malformed_requests_total", "Requests that could not be read, or that are not supported.", |s| {
        s.front.malformed
    }),
    counter(
        "client_pauses_total",
        "Times that a connection was not read from because its producer was asked to pause.",
        |s| s.front.pauses,
    ),
];

/// Which of [`RequestStats::latency`]'s bounds, of 2^i microseconds, are shown: steps of four
/// are enough for so many series.
const REQUEST_BUCKETS: [usize; 10] = [6, 8, 10, 12, 14, 16, 18, 20, 22, 24];

const PARTITION: [Family<PartitionStats>; 3] = [
    gauge("partition_log_start_offset", "The first offset that can be read.", |p| p.log_start.0),
    gauge("partition_high_watermark", "The offset below which consumers read.", |p| p.high_watermark.0),
    gauge("partition_log_end_offset", "The offset of the next record.", |p| p.log_end.0),
];

/// All families of the node.
pub(super) fn render(snapshot: &Snapshot, process: &ProcessStats) -> String {
    let mut out = Exposition::default();
    out.family("highwater_build_info", Kind::Gauge, "The version of the node; always 1.");
    out.sample("highwater_build_info", &[("version", &env!("CARGO_PKG_VERSION"))], 1);
    out.family("highwater_ready", Kind::Gauge, "Whether clients can be served.");
    out.sample("highwater_ready", &[], u8::from(snapshot.ready));
    process.render(&mut out);
    for family in &CONTROL {
        out.whole(family, &snapshot.control);
    }
    for (name, help, recorded) in LOOP_LATENCIES {
        out.family(name, Kind::Histogram, help);
        out.histogram(name, None, Some(recorded(&snapshot.control_loop)));
    }
    for family in &IMAGE {
        out.whole(family, &snapshot.image);
    }
    if let Some((status, stats)) = &snapshot.raft {
        raft(&mut out, status, stats);
    }
    if let Some(net) = &snapshot.net {
        peers::render(&mut out, net);
    }
    if let Some(view) = &snapshot.gossip {
        gossip(&mut out, view);
    }
    shards(&mut out, snapshot);
    partitions(&mut out, snapshot);
    out.text
}

fn raft(out: &mut Exposition, status: &Status, stats: &RaftStats) {
    for family in &RAFT_STATUS {
        out.whole(family, status);
    }
    let name = "highwater_raft_lag_entries";
    out.family(name, Kind::Gauge, "Entries that a member lacks of the leader's log; told by the leader.");
    for (node, progress) in &status.progress {
        let next = |index: Option<u64>| index.map_or(0, |index| index + 1);
        let lag = next(status.last_log).saturating_sub(next(progress.matched));
        out.sample(name, &[("node", node)], lag);
    }
    for family in &RAFT {
        out.whole(family, stats);
    }
    for (name, help, recorded) in RAFT_LATENCIES {
        out.family(name, Kind::Histogram, help);
        out.histogram(name, None, Some(recorded(stats)));
    }
}

fn gossip(out: &mut Exposition, view: &GossipView) {
    let name = "highwater_members";
    out.family(name, Kind::Gauge, "Members as this node sees them, itself included, by status.");
    for status in MEMBER_STATUSES {
        let count = view.members.iter().filter(|member| member.status == status).count();
        out.sample(name, &[("status", &members::word(status))], count);
    }
    for family in &GOSSIP {
        out.whole(family, view);
    }
    let name = "highwater_gossip_rejected_datagrams_total";
    out.family(name, Kind::Counter, "Datagrams that were not taken in, by reason.");
    for (reject, count) in Reject::ALL.iter().zip(view.stats.rejected) {
        out.sample(name, &[("reason", &members::reason(*reject))], count);
    }
    let name = "highwater_gossip_key_datagrams_total";
    out.family(name, Kind::Counter, "Authentic datagrams received, by the key that they came under.");
    for (key, received) in &view.keys {
        out.sample(name, &[("key", key)], received);
    }
}

fn shards(out: &mut Exposition, snapshot: &Snapshot) {
    let name = "highwater_shard_up";
    out.family(
        name,
        Kind::Gauge,
        "Whether the shard answered in time. One that did not has no other numbers.",
    );
    for (shard, stats) in &snapshot.shards {
        out.sample(name, &[("shard", shard)], u8::from(stats.is_some()));
    }
    let up: Vec<(ShardId, &ShardStats)> =
        snapshot.shards.iter().filter_map(|(shard, stats)| Some((*shard, stats.as_ref()?))).collect();
    for family in &SHARD {
        let name = out.head(family);
        for (shard, stats) in &up {
            out.sample(&name, &[("shard", shard)], (family.value)(stats));
        }
    }
    replication::render(out, &up);
    let name = "highwater_connections_closed_total";
    out.family(name, Kind::Counter, "Client connections closed, by reason.");
    for (shard, stats) in &up {
        for (reason, count) in &stats.connections_closed {
            out.sample(name, &[("shard", shard), ("reason", reason)], count);
        }
    }
    let name = "highwater_reactor_events_total";
    out.family(name, Kind::Counter, "What the shard's loop over io_uring did, by event.");
    for (shard, stats) in &up {
        for (event, count) in &stats.driver {
            out.sample(name, &[("shard", shard), ("event", event)], count);
        }
    }
    let name = "highwater_request_errors_total";
    out.family(
        name,
        Kind::Counter,
        "Errors answered, one for each partition, topic or resource that had one.",
    );
    for (shard, stats) in &up {
        for request in &stats.front.requests {
            for (error, count) in &request.errors {
                out.sample(name, &[("shard", shard), ("api", &request.name), ("error", error)], count);
            }
        }
    }
    let name = "highwater_request_seconds";
    out.family(name, Kind::Histogram, "From the arrival of a request to its answer.");
    for (shard, stats) in &up {
        for request in &stats.front.requests {
            out.request(name, *shard, request);
        }
    }
    let name = "highwater_append_seconds";
    out.family(name, Kind::Histogram, "From the arrival of an append at its partition to its answer.");
    for (shard, stats) in &up {
        out.histogram(name, Some(*shard), stats.append_latency.as_ref());
    }
    let name = "highwater_flush_seconds";
    out.family(name, Kind::Histogram, "From handing a synced write to the disk to its completion.");
    for (shard, stats) in &up {
        out.histogram(name, Some(*shard), stats.flush_latency.as_ref());
    }
}

fn partitions(out: &mut Exposition, snapshot: &Snapshot) {
    let listed: Vec<(&str, &PartitionStats)> = snapshot
        .shards
        .iter()
        .filter_map(|(_, stats)| stats.as_ref())
        .flat_map(|stats| &stats.partitions)
        // One whose topic was deleted a moment ago has no name any more.
        .filter_map(|stats| Some((&*snapshot.image.topic_by_id(stats.partition.topic)?.name, stats)))
        .take(PARTITIONS_MAX)
        .collect();
    for family in &PARTITION {
        let name = out.head(family);
        for (topic, stats) in &listed {
            let labels: [(&str, &dyn Display); 2] = [("topic", topic), ("partition", &stats.partition.index)];
            out.sample(&name, &labels, (family.value)(stats));
        }
    }
}

/// What the operating system says of the process, under the names that every exporter uses.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ProcessStats {
    cpu_seconds: f64,
    resident_bytes: u64,
    open_fds: u64,
}

impl ProcessStats {
    /// Zero for what cannot be read.
    pub fn read() -> Self {
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let pages = std::fs::read_to_string("/proc/self/statm").ok();
        let pages = pages.and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
        let fds = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        Self {
            cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
            resident_bytes: pages.unwrap_or(0) * rustix::param::page_size() as u64,
            open_fds: fds as u64,
        }
    }

    fn render(&self, out: &mut Exposition) {
        let mut one = |name, kind, help, value: &dyn Display| {
            out.family(name, kind, help);
            out.sample(name, &[], value);
        };
        one("process_cpu_seconds_total", Kind::Counter, "Processor time of the process.", &self.cpu_seconds);
        one("process_resident_memory_bytes", Kind::Gauge, "Memory of the process.", &self.resident_bytes);
        one("process_open_fds", Kind::Gauge, "Open file descriptors of the process.", &self.open_fds);
    }
}

/// Text in the making.
#[derive(Default)]
struct Exposition {
    text: String,
}

impl Exposition {
    fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    /// The head of a family of a table, and its whole name.
    fn head<S>(&mut self, family: &Family<S>) -> String {
        let name = format!("highwater_{}", family.name);
        self.family(&name, family.kind, family.help);
        name
    }

    /// A family with a single sample.
    fn whole<S>(&mut self, family: &Family<S>, source: &S) {
        let name = self.head(family);
        self.sample(&name, &[], (family.value)(source));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        self.text.push_str(name);
        for (at, (label, shown)) in labels.iter().enumerate() {
            let open = if at == 0 { '{' } else { ',' };
            self.line(format_args!("{open}{label}=\""));
            for c in shown.to_string().chars() {
                match c {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    c => self.text.push(c),
                }
            }
            self.text.push('"');
        }
        let close = if labels.is_empty() { "" } else { "}" };
        self.line(format_args!("{close} {value}\n"));
    }

    /// The buckets, sum and count of latencies, of one shard or of the node, recorded in nanoseconds.
    fn histogram(&mut self, name: &str, shard: Option<ShardId>, recorded: Option<&Histogram<u64>>) {
        let Some(recorded) = recorded else { return };
        let source = shard.as_ref().map(|shard| ("shard", shard as &dyn Display));
        self.latencies(name, &source.into_iter().collect::<Vec<_>>(), recorded, 1);
    }

    /// The buckets, sum and count of latencies, recorded in units of so many nanoseconds.
    fn latencies<N: Counter>(
        &mut self,
        name: &str,
        labels: &[Label<'_>],
        recorded: &Histogram<N>,
        unit_nanos: u64,
    ) {
        let bucket = format!("{name}_bucket");
        let mut values = recorded.iter_recorded().peekable();
        let mut below = 0;
        for (bound, shown) in BUCKETS {
            let is_below = |value: u64| value.saturating_mul(unit_nanos) <= bound;
            while let Some(value) = values.next_if(|value| is_below(value.value_iterated_to())) {
                below += value.count_at_value().as_u64();
            }
            self.sample(&bucket, &with_bound(labels, &shown), below);
        }
        self.sample(&bucket, &with_bound(labels, &"+Inf"), recorded.len());
        let sum = recorded.mean() * recorded.len() as f64 * unit_nanos as f64 / 1e9;
        self.sample(&format!("{name}_sum"), labels, sum);
        self.sample(&format!("{name}_count"), labels, recorded.len());
    }

    /// The buckets, sum and count of one kind of request.
    fn request(&mut self, name: &str, shard: ShardId, stats: &RequestStats) {
        let bucket = format!("{name}_bucket");
        let api = stats.name;
        for power in REQUEST_BUCKETS {
            let bound = Duration::from_micros(1 << power).as_secs_f64();
            let below: u64 = stats.latency[..=power].iter().sum();
            self.sample(&bucket, &[("shard", &shard), ("api", &api), ("le", &bound)], below);
        }
        self.sample(&bucket, &[("shard", &shard), ("api", &api), ("le", &"+Inf")], stats.requests);
        let labels: [(&str, &dyn Display); 2] = [("shard", &shard), ("api", &api)];
        self.sample(&format!("{name}_sum"), &labels, stats.latency_sum.as_secs_f64());
        self.sample(&format!("{name}_count"), &labels, stats.requests);
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        self.text.write_fmt(text).expect("a string takes everything");
    }
}

type Label<'a> = (&'static str, &'a dyn Display);

fn with_bound<'a>(labels: &[Label<'a>], bound: &'a dyn Display) -> Vec<Label<'a>> {
    labels.iter().copied().chain([("le", bound)]).collect()
}

#[cfg(test)]
mod tests;
