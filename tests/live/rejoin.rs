//! A node that was killed comes back and is in sync again while producers go on as fast as they can.
//!
//! `HIGHWATER_CONNECTIONS` says how many of them there are (default 3), and `HIGHWATER_MISSED_MIB` how much the node misses
//! (default 16). Times are printed and never fail a test.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::cluster::{Fleet, wait_for_leader};
use crate::node::{Home, wait_for};
use crate::records::{Producer, batch};
use crate::replication::{Stop, create, leader_of, wait_in_sync};
use crate::wire::{Conn, NONE};

const TOPIC: &str = "busy";
const PARTITIONS: usize = 3;
const RECORD_BYTES: usize = 64 << 10;

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |n| n.parse().expect("a number"))
}

/// Produces the same record again and again until `stop`, and counts those that are acknowledged.
fn produce(clients: &[SocketAddr], partition: i32, bytes: &[u8], stop: &AtomicBool, acked: &AtomicU64) {
    let mut conn: Option<Conn> = None;
    while !stop.load(Ordering::Relaxed) {
        if conn.is_none() {
            conn = leader_of(clients, TOPIC, partition).and_then(|leader| Conn::open(leader).ok());
        }
        if let Some(Ok((NONE, _))) = conn.as_mut().map(|conn| conn.produce(TOPIC, partition, bytes)) {
            acked.fetch_add(1, Ordering::Relaxed);
        } else {
            conn = None;
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_killed_node_is_in_sync_again_while_producers_go_on() {
    let fleet = Fleet::new("rejoin", 3);
    let mut nodes = fleet.start();
    let homes: Vec<&Home> = fleet.homes.iter().collect();
    let leader = usize::try_from(wait_for_leader(&homes)).unwrap();
    let victim = leader % 3 + 1;
    let clients: Vec<SocketAddr> = homes.iter().map(|home| home.client).collect();
    let client = clients[leader - 1];
    create(client, TOPIC, PARTITIONS.try_into().unwrap());
    // Of a kind that nothing packs into less.
    let value: Vec<u8> = (1..=RECORD_BYTES).map(|i| (i * i % 251 * i % 241) as u8).collect();
    let bytes = batch(1_700_000_000_000, Producer::NOBODY, &[(None, Some(&value))]);
    let (stop, acked) = (AtomicBool::new(false), [const { AtomicU64::new(0) }; PARTITIONS]);
    let all = || acked.iter().map(|acked| acked.load(Ordering::Relaxed)).sum::<u64>();
    let wait_for_more = |mib: usize| {
        let enough = all() + (mib << 20).div_ceil(RECORD_BYTES) as u64;
        wait_for("records to be taken", || (all() >= enough).then_some(()));
    };
    let mb_per_s =
        |records: u64, took: Duration| (records as f64 * RECORD_BYTES as f64) / 1e6 / took.as_secs_f64();
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        for connection in 0..number("HIGHWATER_CONNECTIONS", 3) {
            let partition = connection % PARTITIONS;
            let (clients, bytes, stop, acked) = (&clients, &bytes, &stop, &acked[partition]);
            scope.spawn(move || produce(clients, partition.try_into().unwrap(), bytes, stop, acked));
        }
        wait_for_more(number("HIGHWATER_MISSED_MIB", 16));
        nodes[victim - 1].take().unwrap().kill();
        wait_for_more(number("HIGHWATER_MISSED_MIB", 16));
        nodes[victim - 1] = Some(homes[victim - 1].spawn());
        let (began, before) = (Instant::now(), all());
        wait_in_sync(client, TOPIC, PARTITIONS.try_into().unwrap());
        let (took, during) = (began.elapsed(), all() - before);
        println!("in sync again {took:.2?} after its start, beside {:.0} MB/s", mb_per_s(during, took));
        let (began, before) = (Instant::now(), all());
        wait_for_more(number("HIGHWATER_MISSED_MIB", 16));
        println!("then {:.0} MB/s", mb_per_s(all() - before, began.elapsed()));
    });
    for (partition, acked) in (0..).zip(&acked) {
        let leader = wait_for("a leader", || leader_of(&clients, TOPIC, partition));
        let end = Conn::open(leader).unwrap().list_offset(TOPIC, partition, -1).unwrap();
        assert!(
            end.0 == NONE && end.1 >= acked.load(Ordering::Relaxed) as i64,
            "partition {partition}: {end:?}"
        );
    }
}
