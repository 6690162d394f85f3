//! A node that leads many partitions is killed or stopped: others take them over, and lose nothing.
//!
//! `HIGHWATER_PARTITIONS` says how many (default 60). Times are printed and never fail a test.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Instant;

use kafka_protocol::messages::ProduceRequest;

use crate::cluster::{Fleet, cluster, wait_for_leader};
use crate::members::{is_fenced, status};
use crate::node::{Home, Node, wait_for};
use crate::records::{Producer, batch};
use crate::replication::{metadata, wait_in_sync};
use crate::wire::{Conn, NONE, produce_request};

const TOPIC: &str = "many";
/// Entries of the metadata log that a failover may take, however many partitions it touches.
const PROPOSALS_MAX: u64 = 5;
const VERSION: i16 = 8;

fn partitions() -> i32 {
    std::env::var("HIGHWATER_PARTITIONS").map_or(60, |n| n.parse().expect("a number"))
}

/// Makes a topic of which `first` leads every partition, and waits until all replicas are in sync.
fn create(client: SocketAddr, first: usize) {
    let (one, other) = (first % 3 + 1, (first + 1) % 3 + 1);
    // The two others take turns, so that each leads half of the partitions afterwards.
    let replicas = |index| if index % 2 == 0 { [first, one, other] } else { [first, other, one] };
    let replicas: Vec<[usize; 3]> = (0..partitions()).map(replicas).collect();
    Conn::open(client).unwrap().create_on(TOPIC, &replicas, &[("min.insync.replicas", "2")]);
    wait_in_sync(client, TOPIC, partitions());
}

/// Partitions by the address of their leader, as this node sees it.
fn leaders(client: SocketAddr) -> BTreeMap<SocketAddr, Vec<i32>> {
    let mut leaders: BTreeMap<SocketAddr, Vec<i32>> = BTreeMap::new();
    let Ok(answer) = metadata(client, TOPIC) else { return leaders };
    for partition in answer.topics.iter().flat_map(|topic| &topic.partitions) {
        if let Some(broker) = answer.brokers.iter().find(|broker| broker.node_id == partition.leader_id) {
            let addr = format!("{}:{}", broker.host.as_str(), broker.port).parse().unwrap();
            leaders.entry(addr).or_default().push(partition.partition_index);
        }
    }
    leaders
}

/// Produces one record to every partition, again and again until it is acknowledged; when each one was.
fn produce_everywhere(ask: SocketAddr, value: &[u8]) -> Vec<Instant> {
    let bytes = batch(1_700_000_000_000, Producer::NOBODY, &[(None, Some(value))]);
    let mut left: BTreeSet<i32> = (0..partitions()).collect();
    let mut conns: BTreeMap<SocketAddr, Conn> = BTreeMap::new();
    let mut acked = Vec::new();
    wait_for("every partition to take a record", || {
        for (leader, mut of) in leaders(ask) {
            of.retain(|partition| left.contains(partition));
            let conn = match conns.entry(leader) {
                Entry::Occupied(conn) => conn.into_mut(),
                Entry::Vacant(place) => match Conn::open(leader) {
                    Ok(conn) => place.insert(conn),
                    Err(_) => continue,
                },
            };
            let sent = of.iter().try_for_each(|partition| {
                conn.send(VERSION, &produce_request(TOPIC, *partition, -1, &bytes))
            });
            let answered = sent.and_then(|()| {
                of.iter().try_for_each(|partition| {
                    let answer = conn.receive::<ProduceRequest>(VERSION)?;
                    if answer.responses[0].partition_responses[0].error_code == NONE {
                        left.remove(partition);
                        acked.push(Instant::now());
                    }
                    Ok(())
                })
            });
            if answered.is_err() {
                conns.remove(&leader);
            }
        }
        left.is_empty().then_some(())
    });
    acked
}

struct Cluster {
    nodes: Vec<Option<Node>>,
    fleet: Fleet,
    victim: usize,
    leader: usize,
}

impl Cluster {
    /// Three nodes. The victim leads all partitions of the topic; it is a node that leads the metadata, or another.
    fn start(name: &str, is_metadata_leader: bool) -> Self {
        let fleet = Fleet::new(name, 3);
        let nodes = fleet.start();
        let homes: Vec<&Home> = fleet.homes.iter().collect();
        let leader = usize::try_from(wait_for_leader(&homes)).unwrap();
        wait_for("three nodes that take replicas", || {
            (1..=3).all(|node| is_fenced(homes[leader - 1], node) == Some(false)).then_some(())
        });
        let victim = if is_metadata_leader { leader } else { leader % 3 + 1 };
        create(homes[leader - 1].client, victim);
        Self { nodes, fleet, victim, leader }
    }

    fn home(&self, node: usize) -> &Home {
        &self.fleet.homes[node - 1]
    }

    fn revision(&self, node: usize) -> u64 {
        cluster(self.home(node)).unwrap()["revision"].as_u64().unwrap()
    }
}

fn tell(what: &str, since: Instant, mut acked: Vec<Instant>) {
    acked.sort();
    let after = |share: usize| acked[(acked.len() - 1) * share / 100] - since;
    println!(
        "{what}: {} partitions writable again: the first after {:.2?}, half after {:.2?}, 99 % after {:.2?}, all \
         after {:.2?}",
        acked.len(),
        after(0),
        after(50),
        after(99),
        after(100)
    );
}

fn kill_who_leads_all(is_metadata_leader: bool) {
    let mut cluster = Cluster::start("failover", is_metadata_leader);
    let victim = cluster.victim;
    let survivor = victim % 3 + 1;
    let client = cluster.home(survivor).client;
    produce_everywhere(client, b"before");
    let before = cluster.revision(survivor);
    cluster.nodes[victim - 1].take().unwrap().kill();
    let killed = Instant::now();
    let (detected, acked) = std::thread::scope(|scope| {
        let detected = scope.spawn(|| {
            wait_for("the death to be seen", || {
                (status(cluster.home(survivor), victim).as_deref() == Some("dead")).then(Instant::now)
            })
        });
        let acked = produce_everywhere(client, b"after");
        (detected.join().unwrap(), acked)
    });
    let proposals = cluster.revision(survivor) - before;
    let whose =
        if is_metadata_leader { "a node that also led the metadata" } else { "a follower of the metadata" };
    println!("kill -9 of {whose}: seen dead after {:.2?}, {proposals} proposals", detected - killed);
    tell("since the kill", killed, acked);
    assert!(proposals <= PROPOSALS_MAX, "{proposals} proposals for one node");
    for (leader, of) in leaders(client) {
        let mut conn = Conn::open(leader).unwrap();
        for partition in of {
            let held = wait_for("the records to be shown", || {
                conn.try_read_all(TOPIC, partition, 0).ok().filter(|records| records.len() >= 2)
            });
            assert_eq!(held[0].value.as_deref(), Some(&b"before"[..]));
        }
    }
}

#[test]
fn partitions_of_a_killed_node_are_led_by_others() {
    kill_who_leads_all(false);
}

#[test]
fn partitions_of_a_killed_node_that_led_the_metadata_are_led_by_others() {
    kill_who_leads_all(true);
}

#[test]
fn a_node_that_is_told_to_stop_hands_its_partitions_over_before_it_ends() {
    let mut cluster = Cluster::start("handover", false);
    let victim = cluster.victim;
    let client = cluster.home(cluster.leader).client;
    produce_everywhere(client, b"before");
    let before = cluster.revision(cluster.leader);
    let node = cluster.nodes[victim - 1].as_mut().unwrap();
    node.terminate();
    let began = Instant::now();
    let acked = produce_everywhere(client, b"meanwhile");
    tell("since SIGTERM", began, acked);
    assert!(cluster.nodes[victim - 1].as_mut().unwrap().wait_exit().success());
    let proposals = cluster.revision(cluster.leader) - before;
    println!("ended after {:.2?}, {proposals} proposals", began.elapsed());
    assert!(proposals <= PROPOSALS_MAX, "{proposals} proposals for one node");
    assert!(!leaders(client).contains_key(&cluster.home(victim).client), "it leads nothing any more");
    cluster.nodes[victim - 1] = Some(cluster.home(victim).spawn());
    wait_in_sync(client, TOPIC, partitions());
    println!("all replicas in sync {:.2?} after SIGTERM", began.elapsed());
}
