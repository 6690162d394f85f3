//! kill -9 under load, again and again: every acked record is there once, in order, with the right content, and what a
//! consumer has seen once it sees again.
//!
//! Each partition has a lane: one writer that keeps five batches in flight and remembers what was acked, and one reader
//! that follows the log and remembers what it saw. Even lanes use an idempotent producer and send unanswered batches
//! again after a restart, so that no record may be missing or there twice. Odd lanes never send again: what was not
//! answered may be there or not, but whole batches only.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::node::{Home, wait_for};
use crate::records::{Producer, Record, batch, read_batches};
use crate::wire::{Conn, NONE};

const TOPIC: &str = "ledger";
const LANES: i32 = 4;
const IN_FLIGHT: usize = 5;

/// SplitMix64: the same numbers from the same seed.
struct Random(u64);

impl Random {
    /// A seed from `HIGHWATER_SEED`, or a fresh one; printed, to run the same choices again.
    fn from_environment() -> Self {
        let given = std::env::var("HIGHWATER_SEED").ok().map(|seed| seed.parse().expect("a number"));
        let seed = given.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            now.subsec_nanos().into()
        });
        println!("HIGHWATER_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0) % bound
    }
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What record `seq` of a lane holds: its own name, then bytes that follow from it. Most are small, a few span several
/// sectors, so that a record torn anywhere shows.
fn value(lane: i32, seq: u64) -> Vec<u8> {
    let mut state = mix(seq ^ (u64::from(lane.cast_unsigned()) << 56));
    let filler = match state % 64 {
        0 => 40_000 + state / 64 % 60_000,
        1..=4 => 4_000 + state / 64 % 5_000,
        _ => state / 64 % 1_500,
    };
    let mut value = Vec::with_capacity(12 + usize::try_from(filler).unwrap() + 8);
    value.extend(lane.to_be_bytes());
    value.extend(seq.to_be_bytes());
    for _ in 0..filler.div_ceil(8) {
        state = mix(state.wrapping_add(1));
        value.extend(state.to_be_bytes());
    }
    value
}

/// Consecutive records that were sent as one batch.
#[derive(Clone, Copy, Debug)]
struct Sent {
    first: u64,
    count: u64,
}

struct Lane {
    number: i32,
    /// Id and epoch of the idempotent producer; `None` sends plain batches.
    producer: Option<(i64, i16)>,
    next: u64,
    /// Sent and not answered, oldest first.
    pending: VecDeque<Sent>,
    /// Sent, never answered, and never sent again.
    unknown: Vec<Sent>,
    /// Answered without an error, with the base offset of the answer.
    acked: Vec<(i64, Sent)>,
    /// What the reader saw: record numbers by offset.
    seen: BTreeMap<i64, u64>,
}

impl Lane {
    fn bytes(&self, sent: Sent) -> Vec<u8> {
        let values: Vec<Vec<u8>> =
            (sent.first..sent.first + sent.count).map(|seq| value(self.number, seq)).collect();
        let records: Vec<_> = values.iter().map(|value| (Some(&value[4..12]), Some(&value[..]))).collect();
        let producer = match self.producer {
            Some((id, epoch)) => Producer { id, epoch, sequence: i32::try_from(sent.first).unwrap() },
            None => Producer::NOBODY,
        };
        batch(1_700_000_000_000 + i64::try_from(sent.first).unwrap(), producer, &records)
    }

    /// Writes until the connection breaks, which is how a kill looks from outside.
    fn write(&mut self, addr: SocketAddr, acks: &AtomicU64) -> io::Result<()> {
        let mut conn = Conn::open(addr)?;
        if self.producer.is_none() {
            self.unknown.extend(self.pending.drain(..));
        }
        for sent in &self.pending {
            conn.send_produce(TOPIC, self.number, -1, &self.bytes(*sent))?;
        }
        loop {
            while self.pending.len() < IN_FLIGHT {
                let sent = Sent { first: self.next, count: 1 + mix(self.next) % 8 };
                self.next += sent.count;
                self.pending.push_back(sent);
                conn.send_produce(TOPIC, self.number, -1, &self.bytes(sent))?;
            }
            let (error, offset) = conn.receive_produce()?;
            let sent = self.pending.pop_front().expect("an answer follows a request");
            assert_eq!(error, NONE, "lane {}: produce of {sent:?}", self.number);
            self.acked.push((offset, sent));
            acks.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Checks what the restarted node holds against everything that this lane knows.
    fn check(&self, records: &[Record]) {
        let lane = self.number;
        let mut numbers = Vec::with_capacity(records.len());
        for (index, record) in records.iter().enumerate() {
            assert_eq!(record.offset, i64::try_from(index).unwrap(), "lane {lane}: offsets have no holes");
            let found = record.value.as_deref().expect("every record has a value");
            let number = u64::from_be_bytes(found[4..12].try_into().unwrap());
            assert!(found == value(lane, number), "lane {lane}: the content of record {number} at {index}");
            assert_eq!(record.key.as_deref(), Some(&found[4..12]), "lane {lane}: the key of record {number}");
            numbers.push(number);
        }
        let out_of_order = numbers.windows(2).find(|pair| pair[0] >= pair[1]);
        assert_eq!(out_of_order, None, "lane {lane}: records come once and in order");

        let expect = |offset: i64, number: u64, what: &str| {
            let found = usize::try_from(offset).ok().and_then(|offset| numbers.get(offset));
            assert_eq!(
                found,
                Some(&number),
                "lane {lane}: record {number}, {what} at {offset}; {} held",
                numbers.len()
            );
        };
        for (base, sent) in &self.acked {
            for (offset, number) in (*base..).zip(sent.first..sent.first + sent.count) {
                expect(offset, number, "acked");
            }
        }
        for (offset, number) in &self.seen {
            expect(*offset, *number, "seen by a consumer");
        }
        if self.producer.is_some() {
            let expected = u64::try_from(numbers.len()).unwrap();
            assert!(
                numbers.iter().copied().eq(0..expected),
                "lane {lane}: an idempotent producer leaves no holes"
            );
        }
        for sent in self.unknown.iter().chain(&self.pending) {
            let held = numbers
                .iter()
                .filter(|number| (sent.first..sent.first + sent.count).contains(number))
                .count();
            let whole = held == 0 || held == usize::try_from(sent.count).unwrap();
            assert!(whole, "lane {lane}: {held} records of the unanswered batch {sent:?}");
        }
    }
}

/// Follows a partition until the connection breaks and notes what it sees.
fn follow(addr: SocketAddr, lane: i32, mut offset: i64) -> Vec<(i64, u64)> {
    let mut seen = Vec::new();
    let Ok(mut conn) = Conn::open(addr) else { return seen };
    while let Ok(data) = conn.fetch(TOPIC, lane, offset, 500) {
        assert_eq!(data.error_code, NONE, "lane {lane}: fetch at {offset}");
        for record in read_batches(data.records.as_deref().unwrap_or_default()) {
            assert!(record.offset < data.high_watermark, "lane {lane}: shown above the high watermark");
            if record.offset >= offset {
                let found = record.value.expect("every record has a value");
                seen.push((record.offset, u64::from_be_bytes(found[4..12].try_into().unwrap())));
                offset = record.offset + 1;
            }
        }
    }
    seen
}

fn check_all(addr: SocketAddr, lanes: &[Lane]) -> usize {
    let mut conn = Conn::open(addr).unwrap();
    let mut total = 0;
    for lane in lanes {
        let records = conn.read_all(TOPIC, lane.number, 0);
        lane.check(&records);
        total += records.len();
    }
    total
}

#[test]
fn every_acked_record_is_there_once_and_in_order_after_kill_9_under_load() {
    let kills: u32 = std::env::var("HIGHWATER_KILLS").map_or(5, |kills| kills.parse().expect("a number"));
    let mut random = Random::from_environment();
    let home = Home::new("kill").small_journal().two_shards();
    let mut node = home.start();
    let mut conn = Conn::open(home.client).unwrap();
    conn.create_topic(TOPIC, LANES, &[]);
    let mut lanes: Vec<Lane> = (0..LANES)
        .map(|number| Lane {
            number,
            producer: (number % 2 == 0).then(|| conn.init_producer_id().unwrap()),
            next: 0,
            pending: VecDeque::new(),
            unknown: Vec::new(),
            acked: Vec::new(),
            seen: BTreeMap::new(),
        })
        .collect();

    for round in 1..=kills {
        let acks = AtomicU64::new(0);
        let target = 1 + random.below(400);
        std::thread::scope(|scope| {
            let threads: Vec<_> = lanes
                .iter_mut()
                .map(|lane| {
                    let from = lane.seen.last_key_value().map_or(0, |(offset, _)| offset + 1);
                    let (number, acks, addr) = (lane.number, &acks, home.client);
                    let reader = scope.spawn(move || follow(addr, number, from));
                    let writer = scope.spawn(move || {
                        lane.write(addr, acks).expect_err("a writer only ends with its connection");
                        lane
                    });
                    (reader, writer)
                })
                .collect();
            wait_for("acks before the next kill", || (acks.load(Ordering::Relaxed) >= target).then_some(()));
            node.kill();
            for (reader, writer) in threads {
                let seen = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                let lane = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                lane.seen.extend(seen);
            }
        });
        // Sometimes it is killed again while it recovers, which must change nothing.
        for _ in 0..random.below(3) {
            let recovering = home.spawn();
            std::thread::sleep(Duration::from_millis(random.below(60)));
            recovering.kill();
        }
        node = home.start();
        let total = check_all(home.client, &lanes);
        println!("kill {round} of {kills}: {target} acks before it, {total} records checked");
    }

    assert!(node.stop().success(), "a clean stop");
    let node = home.start();
    check_all(home.client, &lanes);
    drop(node);
}
