use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use highwater_shards::ids::{NodeId, Offset, PartitionId, PartitionIndex, TopicId};
use highwater_shards::stats::{FrontStats, ReplicationStats, StorageStats};

use super::super::MemberInfo;
use super::*;
use crate::control::metadata::image::{PartitionState, Topic};
use crate::control::swim::SwimStats;
use crate::net::stats::{ClassStats, NetStats, PeerStats};
use crate::raft::Progress;

fn topic(id: u128, name: &str) -> Topic {
    let state = PartitionState {
        leader: Some(NodeId(1)),
        replicas: vec![NodeId(1)],
        isr: vec![NodeId(1)],
        ..PartitionState::default()
    };
    Topic {
        id: TopicId(id),
        name: name.into(),
        partitions: std::iter::once(state).collect(),
        config: Arc::default(),
    }
}

fn partition(topic: u128, index: u32) -> PartitionStats {
    PartitionStats {
        partition: PartitionId { topic: TopicId(topic), index: PartitionIndex(index) },
        log_start: Offset(1),
        high_watermark: Offset(20),
        log_end: Offset(21),
    }
}

fn latencies(nanos: &[u64]) -> Option<Histogram<u64>> {
    let mut recorded = Histogram::new_with_bounds(100, 60_000_000_000, 2).unwrap();
    for &n in nanos {
        recorded.record(n).unwrap();
    }
    Some(recorded)
}

/// Requests that took so many microseconds, one of them with an error.
fn requests(name: &'static str, micros: &[u64]) -> RequestStats {
    let mut stats =
        RequestStats { name, errors: vec![("NotLeaderOrFollower", 1)], ..RequestStats::default() };
    for &n in micros {
        stats.requests += 1;
        stats.latency[(u64::BITS - n.leading_zeros()).min(31) as usize] += 1;
        stats.latency_sum += Duration::from_micros(n);
    }
    stats
}

fn member(name: &str) -> MemberInfo {
    MemberInfo {
        name: name.into(),
        addr: ([10, 0, 0, 1], 9093).into(),
        status: if name == "1" { swim::Status::Alive } else { swim::Status::Dead },
        incarnation: swim::Incarnation::default(),
        version: String::new(),
    }
}

#[test]
fn gossip_is_counted_by_status_reason_and_key() {
    let samples = parse(&render(&snapshot(), &ProcessStats::default()));
    for (series, want) in [
        ("highwater_members{status=\"alive\"}", 1.0),
        ("highwater_members{status=\"dead\"}", 1.0),
        ("highwater_members{status=\"left\"}", 0.0),
        ("highwater_gossip_probes_total", 70.0),
        ("highwater_gossip_rejected_datagrams_total{reason=\"tag\"}", 5.0),
        ("highwater_gossip_key_datagrams_total{key=\"4\"}", 3.0),
    ] {
        assert_eq!(samples.get(series), Some(&want), "{series}");
    }
}

fn snapshot() -> Snapshot {
    let mut image = Image::default();
    image.put_topic(topic(1, "orders"));
    image.put_topic(topic(2, "odd\"name\\\n"));
    let stats = ShardStats {
        connections: 3,
        connections_closed: vec![("peer", 5), ("idle", 0)],
        driver: vec![("turns", 77)],
        records_appended: 1234,
        reads_pointed: 6,
        replication: ReplicationStats {
            leading: 5,
            offline: 1,
            under_replicated: 3,
            under_min_isr: 2,
            lag_records_max: 41,
            lag_max: Duration::from_millis(1500),
            bytes_in: 1000,
            bytes_out: 2000,
            streams_broken: 7,
            isr_shrinks: 8,
            isr_expands: 9,
            ..ReplicationStats::default()
        },
        storage: StorageStats { segments: 12, compaction_bytes_out: 34, ..StorageStats::default() },
        front: FrontStats {
            requests: vec![requests("Produce", &[5, 63, 64, 1023, 1 << 30])],
            ..FrontStats::default()
        },
        append_latency: latencies(&[30_000, 30_000, 700_000, 20_000_000_000]),
        flush_latency: latencies(&[]),
        partitions: vec![partition(1, 0), partition(2, 0), partition(99, 0)],
        ..ShardStats::default()
    };
    Snapshot {
        ready: true,
        image: Arc::new(image),
        raft: None,
        forming: None,
        net: None,
        control_loop: LoopStats::default(),
        gossip: Some(GossipView {
            members: ["1", "2"].map(member).into(),
            stats: SwimStats { probes: 70, rejected: [0, 0, 0, 5, 0, 0, 0, 0, 0], ..SwimStats::default() },
            keys: vec![(17, 60), (4, 3)],
            ..GossipView::default()
        }),
        control: ControlStats { requests: 9, elections: 4, elections_unclean: 1, ..ControlStats::default() },
        shards: vec![(ShardId(0), Some(stats)), (ShardId(1), None)],
    }
}

/// Checks the text against the rules of the format, and gives its samples.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    let mut done: BTreeSet<&str> = BTreeSet::new();
    let mut helped = "";
    let mut current = "";
    let mut samples = BTreeMap::new();
    assert!(text.ends_with('\n') && !text.contains("\n\n"));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help has words");
            assert!(help.ends_with('.'), "{line}");
            helped = name;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type has a kind");
            assert_eq!(name, helped, "help stands before type");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(types.insert(name, kind).is_none(), "{name} has two heads");
            done.insert(current);
            current = name;
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
            let name = series.split('{').next().unwrap();
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
            let family = match types[current] {
                "histogram" => ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|end| name.strip_suffix(end))
                    .expect("a histogram's sample"),
                _ => name,
            };
            assert_eq!(family, current, "samples stand under their head");
            assert!(!done.contains(family));
            if let Some(labels) = series.strip_prefix(name).filter(|labels| !labels.is_empty()) {
                check_labels(labels);
            }
            let value: f64 = value.parse().expect("a number");
            assert!(samples.insert(series.to_owned(), value).is_none(), "{series} stands twice");
        }
    }
    samples
}

fn check_labels(labels: &str) {
    let mut rest = labels.strip_prefix('{').and_then(|l| l.strip_suffix('}')).expect("braces");
    while !rest.is_empty() {
        let (name, value) = rest.split_once("=\"").expect("a label has a value");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase()), "{labels}");
        let mut escaped = false;
        let end = value.find(|c| {
            let is_end = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            is_end
        });
        rest = &value[end.expect("a closing quote") + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

#[test]
fn the_text_keeps_the_rules_of_its_format() {
    let samples = parse(&render(&snapshot(), &ProcessStats::read()));
    let value = |series: &str| samples.get(series).copied();
    assert_eq!(value("highwater_ready"), Some(1.0));
    assert_eq!(value("highwater_topics"), Some(2.0));
    assert_eq!(value("highwater_control_requests_total"), Some(9.0));
    assert_eq!(value("highwater_connections{shard=\"0\"}"), Some(3.0));
    assert_eq!(value("highwater_connections_closed_total{shard=\"0\",reason=\"peer\"}"), Some(5.0));
    assert_eq!(value("highwater_appended_records_total{shard=\"0\"}"), Some(1234.0));
    assert_eq!(value("highwater_reactor_events_total{shard=\"0\",event=\"turns\"}"), Some(77.0));
    assert!(value("process_resident_memory_bytes").unwrap() > 1e6);
    assert!(value("process_open_fds").unwrap() > 2.0);
}

#[test]
fn replication_is_counted_by_shard_and_elections_by_node() {
    let samples = parse(&render(&snapshot(), &ProcessStats::default()));
    for (family, want) in [
        ("partitions_led", 5.0),
        ("partitions_offline", 1.0),
        ("partitions_under_replicated", 3.0),
        ("partitions_under_min_isr", 2.0),
        ("replication_lag_records", 41.0),
        ("replication_lag_seconds", 1.5),
        ("replication_received_bytes_total", 1000.0),
        ("replication_sent_bytes_total", 2000.0),
        ("replication_streams_broken_total", 7.0),
        ("isr_shrinks_total", 8.0),
        ("isr_expands_total", 9.0),
        ("reads_pointed_total", 6.0),
    ] {
        let series = format!("highwater_{family}{{shard=\"0\"}}");
        assert_eq!(samples.get(&series), Some(&want), "{series}");
    }
    assert_eq!(samples["highwater_leader_elections_total"], 4.0);
    assert_eq!(samples["highwater_unclean_leader_elections_total"], 1.0);
}

#[test]
fn a_shard_that_did_not_answer_is_down_and_has_no_other_numbers() {
    let samples = parse(&render(&snapshot(), &ProcessStats::default()));
    let of_shard_1: Vec<_> = samples.keys().filter(|series| series.contains("shard=\"1\"")).collect();
    assert_eq!(of_shard_1, ["highwater_shard_up{shard=\"1\"}"]);
    assert_eq!(samples["highwater_shard_up{shard=\"1\"}"], 0.0);
    assert_eq!(samples["highwater_shard_up{shard=\"0\"}"], 1.0);
}

#[test]
fn latencies_are_counted_up_through_their_buckets() {
    let samples = parse(&render(&snapshot(), &ProcessStats::default()));
    let at = |le: &str| samples[&format!("highwater_append_seconds_bucket{{shard=\"0\",le=\"{le}\"}}")];
    assert_eq!((at("0.000025"), at("0.00005"), at("0.0005"), at("0.001")), (0.0, 2.0, 2.0, 3.0));
    assert_eq!((at("10"), at("+Inf")), (3.0, 4.0));
    assert_eq!(samples["highwater_append_seconds_count{shard=\"0\"}"], 4.0);
    let sum = samples["highwater_append_seconds_sum{shard=\"0\"}"];
    assert!((sum - 20.000_76).abs() < 0.3, "{sum}");
    assert_eq!(samples["highwater_flush_seconds_bucket{shard=\"0\",le=\"+Inf\"}"], 0.0);
}

#[test]
fn requests_are_counted_by_api() {
    let samples = parse(&render(&snapshot(), &ProcessStats::default()));
    let name = "highwater_request_seconds";
    let at = |le: &str| samples[&format!("{name}_bucket{{shard=\"0\",api=\"Produce\",le=\"{le}\"}}")];
    assert_eq!((at("0.000064"), at("0.000256"), at("0.001024")), (2.0, 3.0, 4.0));
    assert_eq!((at("16.777216"), at("+Inf")), (4.0, 5.0));
    assert_eq!(samples[&format!("{name}_count{{shard=\"0\",api=\"Produce\"}}")], 5.0);
    assert!((samples[&format!("{name}_sum{{shard=\"0\",api=\"Produce\"}}")] - 1_073.742_979).abs() < 1e-6);
    let errors = "highwater_request_errors_total{shard=\"0\",api=\"Produce\",error=\"NotLeaderOrFollower\"}";
    assert_eq!(samples[errors], 1.0);
    assert_eq!(samples["highwater_segments{shard=\"0\"}"], 12.0);
    assert_eq!(samples["highwater_compaction_written_bytes_total{shard=\"0\"}"], 34.0);
}

#[test]
fn partitions_are_named_by_topic_with_odd_names_escaped() {
    let samples = parse(&render(&snapshot(), &ProcessStats::default()));
    let name = "highwater_partition_high_watermark";
    assert_eq!(samples[&format!("{name}{{topic=\"orders\",partition=\"0\"}}")], 20.0);
    assert_eq!(samples[&format!("{name}{{topic=\"odd\\\"name\\\\\\n\",partition=\"0\"}}")], 20.0);
    assert_eq!(samples.keys().filter(|series| series.starts_with(name)).count(), 2);
}

#[test]
fn the_partitions_listed_are_bounded() {
    let mut snapshot = snapshot();
    let many = |from: u32| ShardStats {
        partitions: (from..from + 1000).map(|index| partition(1, index)).collect(),
        ..ShardStats::default()
    };
    snapshot.shards = vec![(ShardId(0), Some(many(0))), (ShardId(1), Some(many(1000)))];
    let samples = parse(&render(&snapshot, &ProcessStats::default()));
    let listed = samples.keys().filter(|s| s.starts_with("highwater_partition_log_end_offset"));
    assert_eq!(listed.count(), PARTITIONS_MAX);
}

#[test]
fn the_raft_group_is_told_of_with_the_lag_of_each_member() {
    let mut snapshot = snapshot();
    let status = Status {
        node: NodeId(1),
        term: 7,
        leader: Some(NodeId(1)),
        voters: BTreeSet::from([NodeId(1), NodeId(2)]),
        learners: BTreeSet::new(),
        members: BTreeMap::new(),
        progress: BTreeMap::from([
            (NodeId(1), Progress { matched: Some(9) }),
            (NodeId(2), Progress { matched: None }),
        ]),
        last_log: Some(9),
        committed: Some(8),
        applied: Some(8),
        snapshot: None,
        purged: None,
        is_joint: false,
        silent: BTreeMap::new(),
        predecessor: None,
        quorum_age: None,
    };
    let mut stats = RaftStats { flushes: 3, ..RaftStats::default() };
    stats.vote_nanos.record(2_000_000).unwrap();
    snapshot.raft = Some((status, stats));
    let samples = parse(&render(&snapshot, &ProcessStats::default()));
    assert_eq!(samples["highwater_raft_term"], 7.0);
    assert_eq!(samples["highwater_raft_is_leader"], 1.0);
    assert_eq!(samples["highwater_raft_lag_entries{node=\"1\"}"], 0.0);
    assert_eq!(samples["highwater_raft_lag_entries{node=\"2\"}"], 10.0);
    assert_eq!(samples["highwater_raft_flushes_total"], 3.0);
    assert_eq!(samples["highwater_raft_vote_seconds_bucket{le=\"0.001\"}"], 0.0);
    assert_eq!(samples["highwater_raft_vote_seconds_bucket{le=\"0.0025\"}"], 1.0);
    assert_eq!(samples["highwater_raft_vote_seconds_count"], 1.0);
}

#[test]
fn each_peer_is_told_of_with_its_calls_and_streams() {
    let mut snapshot = snapshot();
    let latency_us = [100, 200, 30_000_000].into_iter().fold(None, |recorded, micros| {
        let mut recorded =
            recorded.unwrap_or_else(|| Histogram::<u32>::new_with_bounds(1, 60_000_000, 2).unwrap());
        recorded.record(micros).unwrap();
        Some(recorded)
    });
    let append = ClassStats { latency_us, timed_out: 4, ..ClassStats::default() };
    let peer = PeerStats {
        node: NodeId(2),
        bytes_in: 11,
        bytes_out: 12,
        frames_in: 13,
        frames_out: 14,
        connections: 3,
        dialed: 2,
        reconnects: 1,
        dial_failures: 5,
        streams_dialed: 6,
        streams_accepted: 7,
        streams_failed: 8,
        classes: [ClassStats::default(), append, ClassStats::default()],
    };
    snapshot.net = Some(NetStats {
        peers: vec![peer],
        refusals: vec![("wrong secret", 9)],
        inbound: 1,
        unproven: 10,
        incoming_bytes: 77,
    });
    let samples = parse(&render(&snapshot, &ProcessStats::default()));
    let of = |name: &str| samples[&format!("highwater_peer_{name}{{node=\"2\"}}")];
    assert_eq!((of("received_bytes_total"), of("sent_frames_total"), of("connections")), (11.0, 14.0, 3.0));
    let streams = ["streams_dialed_total", "streams_accepted_total", "stream_failures_total"].map(of);
    assert_eq!(streams, [6.0, 7.0, 8.0]);
    assert_eq!(samples["highwater_peer_refusals_total{reason=\"wrong secret\"}"], 9.0);
    assert_eq!(samples["highwater_peer_connections_unproven"], 10.0);
    let call = |name: &str, more: &str| {
        samples[&format!("highwater_peer_call_{name}{{node=\"2\",class=\"append\"{more}}}")]
    };
    assert_eq!(call("failures_total", ",reason=\"timed out\""), 4.0);
    let below = |le: &str| call("seconds_bucket", &format!(",le=\"{le}\""));
    assert_eq!((below("0.00005"), below("0.00025"), below("10"), below("+Inf")), (0.0, 2.0, 2.0, 3.0));
    assert_eq!(call("seconds_count", ""), 3.0);
    assert!((call("seconds_sum", "") - 30.0).abs() < 0.3);
}
