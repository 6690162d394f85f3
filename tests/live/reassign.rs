//! Replicas move to other nodes under load: the moves come to their end, can be called off, and lose nothing.
//!
//! `HIGHWATER_PARTITIONS` says how many partitions of each of two topics move (default 20): of one that is written to
//! meanwhile, and of one with as much in all as `HIGHWATER_MOVED_MIB` says (default 20). `HIGHWATER_CATCH_UP_LIMIT` sets
//! `cluster.replication.catch_up_bytes_per_second`. Times are printed and never fail a test.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kafka_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use kafka_protocol::messages::{
    AlterPartitionReassignmentsRequest, BrokerId, ListPartitionReassignmentsRequest,
};
use rustix::process::Signal;

use crate::cluster::{Fleet, wait_for_leader};
use crate::members::is_fenced;
use crate::node::{Home, wait_for};
use crate::records::{Producer, batch};
use crate::replication::{Stop, TOPIC, Writer, check, leader_of, metadata};
use crate::wire::{Conn, NONE, topic_name};

/// Partitions that producers write to all the time; the others hold what was written before.
const LANES: i32 = 4;
const NO_REASSIGNMENT_IN_PROGRESS: i16 = 85;
/// The topic that nobody writes to while it moves, and the size of its records, each in a batch of its own.
const BULK: &str = "bulk";
const BULK_RECORD_BYTES: usize = 256 << 10;

fn partitions() -> i32 {
    std::env::var("HIGHWATER_PARTITIONS").map_or(20, |n| n.parse().expect("a number"))
}

/// Records of each partition of [`BULK`].
fn bulk_records() -> u8 {
    let mib = std::env::var("HIGHWATER_MOVED_MIB").map_or(20, |n| n.parse().expect("a number"));
    let all = (mib << 20) / BULK_RECORD_BYTES;
    u8::try_from(all.div_ceil(usize::try_from(partitions()).unwrap())).expect("less than 64 MiB a partition")
}

/// What no other record is.
fn bulk_value(partition: i32, number: u8) -> Vec<u8> {
    let mut state = u64::from(partition.cast_unsigned()) << 8 | u64::from(number) | 1 << 40;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 16).to_le_bytes()
    });
    words.flatten().take(BULK_RECORD_BYTES).collect()
}

fn fill_bulk(clients: &[SocketAddr]) {
    for partition in 0..partitions() {
        let leader = wait_for("a leader", || leader_of(clients, BULK, partition));
        let mut conn = Conn::open(leader).unwrap();
        for number in 0..bulk_records() {
            let value = bulk_value(partition, number);
            let batch = batch(1_700_000_000_000, Producer::NOBODY, &[(None, Some(&value))]);
            conn.send_produce(BULK, partition, -1, &batch).unwrap();
        }
        for number in 0..bulk_records() {
            assert_eq!(conn.receive_produce().unwrap(), (NONE, i64::from(number)));
        }
    }
}

fn check_bulk(clients: &[SocketAddr]) {
    for partition in 0..partitions() {
        let leader = wait_for("a leader", || leader_of(clients, BULK, partition));
        let records = Conn::open(leader).unwrap().read_all(BULK, partition, 0);
        assert_eq!(records.len(), usize::from(bulk_records()), "partition {partition}");
        for (number, record) in (0..).zip(&records) {
            assert!(
                record.value == Some(bulk_value(partition, number)),
                "record {number} of partition {partition}"
            );
        }
    }
}

/// The nodes of a partition at first, and the one that has no replica of it.
fn nodes_of(partition: i32) -> ([usize; 2], usize) {
    let first = usize::try_from(partition).unwrap() % 3;
    ([first + 1, (first + 1) % 3 + 1], (first + 2) % 3 + 1)
}

fn brokers(nodes: [usize; 2]) -> Vec<BrokerId> {
    nodes.map(|node| BrokerId(i32::try_from(node).unwrap())).into()
}

/// Asks for these replicas of each partition of both topics, or for the moves to be called off; the errors, each with its
/// partition.
fn reassign(client: SocketAddr, replicas: impl Fn(i32) -> Option<[usize; 2]>) -> Vec<(i32, i16)> {
    let partitions = (0..partitions()).map(|index| {
        ReassignablePartition::default()
            .with_partition_index(index)
            .with_replicas(replicas(index).map(brokers))
    });
    let partitions: Vec<_> = partitions.collect();
    let topics = [TOPIC, BULK].map(|name| {
        ReassignableTopic::default().with_name(topic_name(name)).with_partitions(partitions.clone())
    });
    let request =
        AlterPartitionReassignmentsRequest::default().with_timeout_ms(60_000).with_topics(topics.into());
    let answer = Conn::open(client).unwrap().call(0, &request).unwrap();
    assert_eq!(answer.error_code, NONE, "{:?}", answer.error_message);
    let all = answer.responses.iter().flat_map(|topic| &topic.partitions);
    all.map(|p| (p.partition_index, p.error_code)).collect()
}

/// Partitions whose replicas are on the way.
fn moving(client: SocketAddr) -> usize {
    let request = ListPartitionReassignmentsRequest::default().with_timeout_ms(60_000).with_topics(None);
    let answer = Conn::open(client).unwrap().call(0, &request).unwrap();
    assert_eq!(answer.error_code, NONE, "{:?}", answer.error_message);
    answer.topics.iter().map(|topic| topic.partitions.len()).sum()
}

/// The replicas of each partition of both topics, once all of them are in sync.
fn replicas(client: SocketAddr) -> Vec<(i32, BTreeSet<usize>)> {
    [TOPIC, BULK].iter().flat_map(|topic| (0..).zip(replicas_of(client, topic))).collect()
}

fn replicas_of(client: SocketAddr, topic: &str) -> Vec<BTreeSet<usize>> {
    wait_for("replicas that are all in sync", || {
        let answer = metadata(client, topic).ok()?;
        let mut states: Vec<_> = answer.topics.first()?.partitions.iter().collect();
        states.sort_by_key(|state| state.partition_index);
        let set =
            |ids: &[BrokerId]| ids.iter().map(|id| usize::try_from(id.0).unwrap()).collect::<BTreeSet<_>>();
        let all = states.iter().all(|state| set(&state.isr_nodes) == set(&state.replica_nodes));
        let is_whole = all && states.len() == usize::try_from(partitions()).unwrap();
        is_whole.then(|| states.iter().map(|state| set(&state.replica_nodes)).collect())
    })
}

fn p99(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() * 99 / 100]
}

#[test]
fn replicas_move_under_load_and_moves_can_be_called_off() {
    let mut fleet = Fleet::new("moves", 3);
    if let Ok(limit) = std::env::var("HIGHWATER_CATCH_UP_LIMIT") {
        let limited = |home: Home| home.set("cluster.replication.catch_up_bytes_per_second", &limit);
        fleet.homes = fleet.homes.into_iter().map(limited).collect();
    }
    let nodes = fleet.start();
    let homes: Vec<&Home> = fleet.homes.iter().collect();
    let leader = usize::try_from(wait_for_leader(&homes)).unwrap();
    wait_for("three nodes that take replicas", || {
        (1..=3).all(|node| is_fenced(homes[leader - 1], node) == Some(false)).then_some(())
    });
    let clients: Vec<SocketAddr> = homes.iter().map(|home| home.client).collect();
    let client = clients[leader - 1];
    let replicas_first: Vec<[usize; 2]> = (0..partitions()).map(|index| nodes_of(index).0).collect();
    Conn::open(client).unwrap().create_on(TOPIC, &replicas_first, &[]);
    Conn::open(client).unwrap().create_on(BULK, &replicas_first, &[]);
    fill_bulk(&clients);
    let mut writers: Vec<Writer> = (0..partitions()).map(|lane| Writer::new(lane, client)).collect();
    // Something to move.
    for writer in &mut writers {
        let (stop, acked) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let _stop = Stop(&stop);
            scope.spawn(|| writer.write(&clients, &stop, &acked));
            wait_for("records to move", || (acked.load(Ordering::Relaxed) > 300).then_some(()));
        });
        writer.times.clear();
    }
    let (busy, _) = writers.split_at_mut(LANES as usize);
    let write_during = |busy: &mut [Writer], what: &mut dyn FnMut(&AtomicU64)| {
        let (stop, acked) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let _stop = Stop(&stop);
            for writer in busy.iter_mut() {
                let (clients, stop, acked) = (&clients, &stop, &acked);
                scope.spawn(move || writer.write(clients, stop, acked));
            }
            what(&acked);
        });
        let times: Vec<Duration> = busy.iter_mut().flat_map(|w| std::mem::take(&mut w.times)).collect();
        p99(&times)
    };
    let some_time = |acked: &AtomicU64| {
        let before = acked.load(Ordering::Relaxed);
        wait_for("records to be taken", || (acked.load(Ordering::Relaxed) > before + 10_000).then_some(()));
    };

    let before = write_during(busy, &mut |acked| some_time(acked));
    let mut took = Duration::ZERO;
    let during = write_during(busy, &mut |acked| {
        let began = Instant::now();
        let errors = reassign(client, |partition| {
            let ([_, stays], comes) = nodes_of(partition);
            Some([comes, stays])
        });
        assert!(errors.iter().all(|(_, error)| *error == NONE), "{errors:?}");
        wait_for("the moves to end", || (moving(client) == 0).then_some(()));
        took = began.elapsed();
        some_time(acked);
    });
    println!(
        "twice {} partitions with {} MiB moved in {took:.2?}; producers' p99 {before:.2?} before, {during:.2?} meanwhile",
        partitions(),
        (usize::from(bulk_records()) * usize::try_from(partitions()).unwrap() * BULK_RECORD_BYTES) >> 20,
    );
    for (partition, replicas) in replicas(client) {
        let ([_, stays], comes) = nodes_of(partition);
        assert_eq!(replicas, BTreeSet::from([comes, stays]), "partition {partition}");
    }

    // To a node that stands still nothing can be moved: those moves are surely under way when they are called off.
    let still = leader % 3 + 1;
    let is_to_still = |partition: i32| nodes_of(partition).0[0] == still;
    let node = nodes[still - 1].as_ref().unwrap();
    let known = replicas(client);
    let called_off = write_during(busy, &mut |_| {
        node.signal(Signal::STOP);
        let errors = reassign(client, |partition| Some(nodes_of(partition).0));
        assert!(errors.iter().all(|(_, error)| *error == NONE), "{errors:?}");
        assert!(moving(client) > 0);
        let errors = reassign(client, |_| None);
        node.signal(Signal::CONT);
        for (partition, error) in errors {
            let is_too_late = error == NO_REASSIGNMENT_IN_PROGRESS && !is_to_still(partition);
            assert!(error == NONE || is_too_late, "partition {partition}: error {error}");
        }
        wait_for("nothing to move any more", || (moving(client) == 0).then_some(()));
    });
    println!("producers' p99 while moves to a node that stood still were called off: {called_off:.2?}");
    for ((partition, before), (_, after)) in known.iter().zip(replicas(client)) {
        let there = BTreeSet::from(nodes_of(*partition).0);
        assert!(after == *before || (after == there && !is_to_still(*partition)), "partition {partition}");
    }
    for writer in &writers {
        check(&clients, writer.lane, writer.next, 0);
    }
    check_bulk(&clients);
}
