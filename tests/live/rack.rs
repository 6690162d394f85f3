//! A consumer that names its rack (KIP-392) reads from the follower there, through that follower's death and return.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kafka_protocol::messages::FetchResponse;
use kafka_protocol::protocol::StrBytes;

use crate::cluster::{Fleet, wait_for_leader};
use crate::node::{Home, wait_for};
use crate::records::read_batches;
use crate::replication::{Stop, TOPIC, Writer, create, isr_sizes, leader_of, metadata, number};
use crate::wire::{Conn, FETCH_VERSION, NONE, fetch_request};

const LANE: i32 = 0;

/// Reads one partition as clients do: from the leader, until that names another replica; and from the leader again, when
/// that replica does not answer or refuses.
struct Reader<'a> {
    rack: &'static str,
    clients: &'a [SocketAddr],
    at: Option<(SocketAddr, Conn)>,
    offset: i64,
    /// Records by who gave them.
    from: BTreeMap<SocketAddr, u64>,
}

impl Reader<'_> {
    fn go_to(&mut self, addr: Option<SocketAddr>) {
        self.at = addr.and_then(|addr| Some((addr, Conn::open(addr).ok()?)));
    }

    fn step(&mut self) {
        let Some((addr, conn)) = &mut self.at else {
            self.go_to(leader_of(self.clients, TOPIC, LANE));
            return;
        };
        let request = fetch_request(TOPIC, LANE, self.offset, 100, 1 << 20)
            .with_rack_id(StrBytes::from_static_str(self.rack));
        let answer: Result<FetchResponse, _> = conn.call(FETCH_VERSION, &request);
        let Ok(answer) = answer else {
            self.at = None;
            return;
        };
        let data = &answer.responses[0].partitions[0];
        assert_ne!(data.error_code, 1, "{} was shown, and is gone", self.offset);
        if data.error_code != NONE {
            self.at = None;
            return;
        }
        let records = read_batches(data.records.as_deref().unwrap_or_default());
        if data.preferred_read_replica.0 >= 0 {
            assert!(records.is_empty(), "records and another place to read them from");
            let nearer = address(self.clients, data.preferred_read_replica.0);
            self.go_to(nearer);
            return;
        }
        let from = self.offset;
        for record in records.into_iter().filter(|record| record.offset >= from) {
            assert!(record.offset < data.high_watermark, "shown above the high watermark");
            assert_eq!(number(LANE, &record), self.offset.cast_unsigned(), "what comes at {}", self.offset);
            self.offset = record.offset + 1;
            *self.from.entry(*addr).or_default() += 1;
        }
    }

    /// Reads on until so many more records came from there.
    fn read_from(&mut self, addr: SocketAddr, more: u64) {
        let goal = self.count(addr) + more;
        wait_for("records from the replica", || {
            self.step();
            (self.count(addr) >= goal).then_some(())
        });
    }

    fn count(&self, addr: SocketAddr) -> u64 {
        self.from.get(&addr).copied().unwrap_or_default()
    }
}

fn address(clients: &[SocketAddr], broker: i32) -> Option<SocketAddr> {
    let answer = clients.iter().find_map(|client| metadata(*client, TOPIC).ok())?;
    let broker = answer.brokers.iter().find(|known| known.node_id.0 == broker)?;
    format!("{}:{}", broker.host.as_str(), broker.port).parse().ok()
}

#[test]
fn a_consumer_reads_from_the_follower_in_its_rack_and_goes_on_when_that_dies() {
    const RACKS: [&str; 3] = ["a", "b", "c"];
    let mut fleet = Fleet::new("rack", 3);
    fleet.homes =
        fleet.homes.into_iter().zip(RACKS).map(|(home, rack)| home.set("cluster.rack", rack)).collect();
    let mut nodes = fleet.start();
    let homes: Vec<&Home> = fleet.homes.iter().collect();
    wait_for_leader(&homes);
    let clients: Vec<SocketAddr> = homes.iter().map(|home| home.client).collect();
    create(clients[0], TOPIC, 1);
    let leader = leader_of(&clients, TOPIC, LANE).unwrap();
    let near = clients.iter().position(|client| *client != leader).unwrap();
    let (stop, acked) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let stop_writer = Stop(&stop);
        let writer = scope.spawn(|| Writer::new(LANE, leader).write(&clients, &stop, &acked));
        let from = BTreeMap::new();
        let mut reader = Reader { rack: RACKS[near], clients: &clients, at: None, offset: 0, from };
        reader.read_from(clients[near], 2000);
        assert_eq!(reader.from.len(), 1, "all that it read came from its rack");

        nodes[near].take().unwrap().kill();
        reader.read_from(leader, 500);
        nodes[near] = Some(homes[near].spawn());
        wait_for("the replica to be in sync again", || {
            reader.step();
            (isr_sizes(leader, TOPIC) == [3]).then_some(())
        });
        reader.read_from(clients[near], 500);

        drop(stop_writer);
        writer.join().unwrap();
        let end = i64::try_from(acked.load(Ordering::Relaxed)).unwrap();
        wait_for("everything that was acked", || {
            reader.step();
            (reader.offset >= end).then_some(())
        });
        println!("{} records, by who gave them: {:?}; the leader is {leader}", reader.offset, reader.from);
    });
}
