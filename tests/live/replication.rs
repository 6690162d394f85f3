//! Records on three nodes: replicated, served by another node when one dies, and none lost or shown that later vanishes,
//! under kill -9, pauses, clean restarts and cut links while producers and consumers go on.
//!
//! `HIGHWATER_TORTURE_SECONDS` says how long the faults last (default 20). Links are cut where the system lets us make
//! network namespaces; elsewhere the other faults remain.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{CreateTopicsRequest, MetadataRequest, MetadataResponse};
use rustix::process::Signal;

use crate::cluster::{Fleet, wait_for_leader};
use crate::network::Network;
use crate::node::{Home, Node, PATIENCE, wait_for};
use crate::partitions;
use crate::records::{Producer, Record, batch, read_batches};
use crate::wire::{Conn, NONE, topic_configs, topic_name};

pub const TOPIC: &str = "ledger";
const LANES: i32 = 4;
/// In runs longer than this many seconds writers pause between batches, so that the records of hours fit on the disk.
const LONG: u64 = 60;
const PACE: Duration = Duration::from_millis(5);

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What record `seq` of a lane holds.
fn value(lane: i32, seq: u64) -> Vec<u8> {
    let len = 12 + usize::try_from(mix(seq) % 700).unwrap();
    let mut value = Vec::with_capacity(len + 8);
    value.extend(lane.to_be_bytes());
    value.extend(seq.to_be_bytes());
    let mut state = mix(seq ^ (u64::from(lane.cast_unsigned()) << 40));
    while value.len() < len {
        state = mix(state.wrapping_add(1));
        value.extend(state.to_be_bytes());
    }
    value
}

/// The number of a record, after a look at its content.
pub fn number(lane: i32, record: &Record) -> u64 {
    let found = record.value.as_deref().expect("every record has a value");
    let number = u64::from_be_bytes(found[4..12].try_into().unwrap());
    assert!(found == value(lane, number), "lane {lane}: the content of record {number} at {}", record.offset);
    number
}

pub fn metadata(addr: SocketAddr, topic: &str) -> io::Result<MetadataResponse> {
    let topics = vec![MetadataRequestTopic::default().with_name(Some(topic_name(topic)))];
    let request = MetadataRequest::default().with_topics(Some(topics)).with_allow_auto_topic_creation(false);
    Conn::open(addr)?.call(8, &request)
}

/// Where the leader of a partition serves clients, by the first node that answers.
pub fn leader_of(clients: &[SocketAddr], topic: &str, partition: i32) -> Option<SocketAddr> {
    clients.iter().find_map(|client| {
        let answer = metadata(*client, topic).ok()?;
        let state = answer.topics.first()?.partitions.iter().find(|p| p.partition_index == partition)?;
        let broker = answer.brokers.iter().find(|broker| broker.node_id == state.leader_id)?;
        format!("{}:{}", broker.host.as_str(), broker.port).parse().ok()
    })
}

/// Nodes in the ISR of each partition.
pub fn isr_sizes(client: SocketAddr, topic: &str) -> Vec<usize> {
    let Ok(answer) = metadata(client, topic) else { return Vec::new() };
    let Some(topic) = answer.topics.first() else { return Vec::new() };
    topic.partitions.iter().map(|partition| partition.isr_nodes.len()).collect()
}

/// Waits until all replicas of all partitions of the topic are in sync, three of each, as this node sees it.
pub fn wait_in_sync(client: SocketAddr, topic: &str, partitions: i32) {
    wait_for("all replicas in sync", || {
        let sizes = isr_sizes(client, topic);
        (sizes.len() == usize::try_from(partitions).unwrap() && sizes.iter().all(|n| *n == 3)).then_some(())
    });
}

pub fn create(client: SocketAddr, name: &str, partitions: i32) {
    let topic = CreatableTopic::default()
        .with_name(topic_name(name))
        .with_num_partitions(partitions)
        .with_replication_factor(3)
        .with_configs(topic_configs(&[("min.insync.replicas", "2")]));
    let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(60_000);
    // INVALID_REPLICATION_FACTOR: a node has not caught up with its own registration yet.
    wait_for("three nodes that take replicas", || {
        let answer = Conn::open(client).unwrap().call(5, &request).unwrap();
        let (error, words) = (answer.topics[0].error_code, &answer.topics[0].error_message);
        assert!([NONE, 38].contains(&error), "create {name}: {words:?}");
        (error == NONE).then_some(())
    });
    wait_in_sync(client, name, partitions);
}

/// Ends the threads of a test when it is dropped: also when the test fails, which would else wait for them.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One partition's writer: an idempotent producer with one batch in flight, which it sends until it is acked.
pub struct Writer {
    pub lane: i32,
    producer: (i64, i16),
    pub next: u64,
    /// From the first attempt of each batch to its ack.
    pub times: Vec<Duration>,
}

impl Writer {
    pub fn new(lane: i32, client: SocketAddr) -> Self {
        let producer = Conn::open(client).unwrap().init_producer_id().unwrap();
        Self { lane, producer, next: 0, times: Vec::new() }
    }

    fn bytes(&self, count: u64) -> Vec<u8> {
        let values: Vec<Vec<u8>> = (self.next..self.next + count).map(|seq| value(self.lane, seq)).collect();
        let records: Vec<_> = values.iter().map(|value| (Some(&value[4..12]), Some(&value[..]))).collect();
        let (id, epoch) = self.producer;
        let sequence = i32::try_from(self.next).unwrap();
        batch(1_700_000_000_000, Producer { id, epoch, sequence }, &records)
    }

    /// Writes until `stop`, then returns once the last batch is acked.
    pub fn write(&mut self, clients: &[SocketAddr], stop: &AtomicBool, acked: &AtomicU64) {
        let pace = (seconds() > LONG).then_some(PACE);
        let mut conn: Option<Conn> = None;
        while !stop.load(Ordering::Relaxed) {
            let count = 1 + mix(self.next) % 20;
            let bytes = self.bytes(count);
            let began = Instant::now();
            loop {
                assert!(
                    began.elapsed() < Duration::from_secs(120),
                    "lane {}: nobody takes a batch",
                    self.lane
                );
                if conn.is_none() {
                    let leader = leader_of(clients, TOPIC, self.lane);
                    conn = leader.and_then(|leader| Conn::open(leader).ok());
                }
                let Some(open) = &mut conn else {
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                };
                match open.produce(TOPIC, self.lane, &bytes) {
                    Ok((NONE, _)) => break,
                    Ok((error, _)) => {
                        // OUT_OF_ORDER_SEQUENCE comes from a leader that was cut off and has not heard of the next one,
                        // too. If something acked is gone it comes for ever. INVALID_PRODUCER_EPOCH: it came twice.
                        assert_ne!(error, 47, "lane {}: at {}", self.lane, self.next);
                        conn = None;
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    Err(_) => conn = None,
                }
            }
            self.times.push(began.elapsed());
            if let Some(pace) = pace {
                std::thread::sleep(pace);
            }
            self.next += count;
            acked.fetch_add(count, Ordering::Relaxed);
        }
    }
}

/// Follows a partition until `stop`: each record once, in order, with its content. How many it saw.
fn read(lane: i32, clients: &[SocketAddr], stop: &AtomicBool) -> u64 {
    let (mut offset, mut next) = (0, 0);
    let mut conn: Option<Conn> = None;
    while !stop.load(Ordering::Relaxed) {
        if conn.is_none() {
            conn = leader_of(clients, TOPIC, lane).and_then(|leader| Conn::open(leader).ok());
        }
        let Some(open) = &mut conn else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        match open.fetch(TOPIC, lane, offset, 200) {
            Ok(data) if data.error_code == NONE => {
                for record in read_batches(data.records.as_deref().unwrap_or_default()) {
                    assert!(
                        record.offset < data.high_watermark,
                        "lane {lane}: shown above the high watermark"
                    );
                    if record.offset >= offset {
                        assert_eq!(
                            number(lane, &record),
                            next,
                            "lane {lane}: what comes at {}",
                            record.offset
                        );
                        (offset, next) = (record.offset + 1, next + 1);
                    }
                }
            }
            // OFFSET_OUT_OF_RANGE: what was shown has vanished.
            Ok(data) => {
                assert_ne!(data.error_code, 1, "lane {lane}: {offset} was shown, and is gone");
                conn = None;
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(_) => conn = None,
        }
    }
    next
}

/// Every record of the partition as its leader has it. A leader that has just been elected shows what was acked only
/// when its followers have told it that they hold it.
pub fn check(clients: &[SocketAddr], lane: i32, acked: u64, seen: u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let conn = leader_of(clients, TOPIC, lane).and_then(|leader| Conn::open(leader).ok());
        let held = conn.and_then(|mut conn| conn.try_read_all(TOPIC, lane, 0).ok()).map(|records| {
            for (next, record) in (0..).zip(&records) {
                assert_eq!(number(lane, record), next, "lane {lane}: what is at {}", record.offset);
            }
            records.len() as u64
        });
        if held.is_some_and(|held| held >= acked.max(seen)) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "lane {lane}: {acked} records were acked, {seen} shown; the leader has {held:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn seconds() -> u64 {
    std::env::var("HIGHWATER_TORTURE_SECONDS").map_or(20, |s| s.parse().expect("a number"))
}

/// Three nodes that come and go.
struct Cluster {
    // Nodes end before their homes are removed, and those before the network.
    nodes: Vec<Option<Node>>,
    homes: Vec<Home>,
    network: Option<Network>,
}

impl Cluster {
    /// With a topic of which each node holds a replica.
    fn start(name: &str, network: Option<Network>) -> Self {
        let homes = match &network {
            Some(network) => partitions::homes(network, name),
            None => Fleet::new(name, 3).homes,
        };
        let mut cluster = Self { nodes: vec![None, None, None], homes, network };
        (0..3).for_each(|which| cluster.spawn(which));
        wait_for_leader(&cluster.homes.iter().collect::<Vec<&Home>>());
        create(cluster.homes[0].client, TOPIC, LANES);
        cluster
    }

    fn spawn(&mut self, which: usize) {
        let home = &self.homes[which];
        self.nodes[which] = Some(match &self.network {
            Some(network) => network.inside(which + 1, || home.spawn()),
            None => home.spawn(),
        });
    }

    fn take(&mut self, which: usize) -> Node {
        self.nodes[which].take().expect("all run")
    }

    fn clients(&self) -> Vec<SocketAddr> {
        self.homes.iter().map(|home| home.client).collect()
    }
}

/// Lets writers and readers of all lanes go on while `faults` runs, and checks what is there after it on every node.
fn under_load(cluster: &mut Cluster, faults: impl FnOnce(&mut Cluster)) {
    let clients = cluster.clients();
    let mut writers: Vec<Writer> = (0..LANES).map(|lane| Writer::new(lane, clients[0])).collect();
    let (stop, acked) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut seen = BTreeMap::new();
    std::thread::scope(|scope| {
        let (clients, stop, acked) = (&clients[..], &stop, &acked);
        let readers: Vec<_> = (0..LANES).map(|lane| scope.spawn(move || read(lane, clients, stop))).collect();
        let threads: Vec<_> =
            writers.iter_mut().map(|w| scope.spawn(move || w.write(clients, stop, acked))).collect();
        let guard = Stop(stop);
        faults(cluster);
        let before = acked.load(Ordering::Relaxed);
        wait_for("the load to go on after the faults", || {
            (acked.load(Ordering::Relaxed) > before + 200).then_some(())
        });
        drop(guard);
        for thread in threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        for (lane, reader) in (0..).zip(readers) {
            seen.insert(lane, reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
    });
    let slowest = writers.iter().flat_map(|writer| &writer.times).max().copied().unwrap_or_default();
    println!("{} records acked, the slowest ack after {slowest:.2?}", acked.load(Ordering::Relaxed));
    wait_in_sync(clients[0], TOPIC, LANES);
    // Each node in its turn is one of the two that are left, so that each replica is read.
    for away in 0..clients.len() {
        for writer in &writers {
            check(&clients, writer.lane, writer.next, seen[&writer.lane]);
        }
        cluster.take(away).kill();
        let left: Vec<SocketAddr> =
            clients.iter().enumerate().filter(|(i, _)| *i != away).map(|(_, client)| *client).collect();
        for writer in &writers {
            wait_for("a leader elsewhere", || {
                leader_of(&left, TOPIC, writer.lane).filter(|leader| *leader != clients[away])
            });
            check(&left, writer.lane, writer.next, seen[&writer.lane]);
        }
        cluster.spawn(away);
        wait_in_sync(left[0], TOPIC, LANES);
    }
}

#[test]
fn records_survive_the_loss_of_any_node_and_are_served_by_another() {
    let mut cluster = Cluster::start("replicas", None);
    under_load(&mut cluster, |_| std::thread::sleep(Duration::from_secs(1)));
}

#[test]
fn nothing_acked_is_lost_and_nothing_shown_vanishes_under_kills_pauses_restarts_and_cut_links() {
    let mut cluster = Cluster::start("torture", Network::try_new(3));
    let mut state = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(1, |time| u64::from(time.subsec_nanos()));
    under_load(&mut cluster, |cluster| {
        let kinds = if cluster.network.is_some() { 6 } else { 4 };
        let mut faults = [0; 6];
        let end = Instant::now() + Duration::from_secs(seconds());
        while Instant::now() < end {
            state = mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15));
            let which = usize::try_from(state % 3).unwrap();
            let other = (which + 1) % 3;
            let pause = Duration::from_millis(state >> 8 & 0xfff);
            let kind = usize::try_from((state >> 32) % kinds).unwrap();
            faults[kind] += 1;
            match kind {
                0 | 1 => {
                    cluster.take(which).kill();
                    std::thread::sleep(pause);
                    cluster.spawn(which);
                }
                2 => {
                    let node = cluster.nodes[which].as_ref().expect("all run");
                    node.signal(Signal::STOP);
                    std::thread::sleep(pause);
                    node.signal(Signal::CONT);
                }
                3 => {
                    let ended = cluster.take(which).stop();
                    // A process that was only just started does not handle signals yet.
                    let at_once = ended.signal() == Some(Signal::TERM.as_raw());
                    assert!(ended.success() || at_once, "a clean stop: {ended}");
                    cluster.spawn(which);
                }
                // A link, or a node cut off from both others; in one direction, or in both.
                _ => {
                    let network = cluster.network.as_mut().expect("links are cut where there are some");
                    let others = if kind == 4 { vec![other] } else { vec![other, (which + 2) % 3] };
                    for other in others {
                        match state >> 41 & 3 {
                            0 => network.drop_between(which + 1, other + 1),
                            1 => network.drop_between(other + 1, which + 1),
                            _ => network.cut(which + 1, other + 1),
                        }
                    }
                    std::thread::sleep(pause * 2);
                    network.heal();
                }
            }
            // Half the time the next fault comes before all is well again.
            if state >> 40 & 1 == 0 {
                wait_in_sync(cluster.homes[other].client, TOPIC, LANES);
            } else {
                std::thread::sleep(pause / 2);
            }
        }
        println!(
            "{} kills, {} pauses, {} clean restarts, {} cut links, {} nodes cut off",
            faults[0] + faults[1],
            faults[2],
            faults[3],
            faults[4],
            faults[5]
        );
    });
}
