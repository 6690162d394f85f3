//! The log of one shard without a network: how fast it takes batches durably, and gives them back.
//!
//! `cargo run --release -p highwater-shards --example log -- dir=PATH [batch=1MiB] [record=1KiB] [logs=1] [seconds=10]
//! [window=8MiB] [core=1]`. `dir` is made, filled and removed. Appends keep `window` bytes on their way to the disk,
//! batches going to the logs in turn; a batch counts when the journal has flushed it, while everything before it is
//! moved to segments behind. Then everything is read from the first record on, as a consumer does that starts at the
//! beginning: every batch is checked. Put `highwater-bench floor disk` or fio beside it.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock and makes folders")]

mod no_front;

use std::collections::{BTreeMap, VecDeque};

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use highwater_shards::batch::{BatchBuilder, BatchHeader, parse_header};
use highwater_shards::ids::{LeaderEpoch, Offset, PartitionId, PartitionIndex, ShardId, TopicId};
use highwater_shards::log::Slot;
use highwater_shards::log::checkpoint::LogState;
use highwater_shards::log::journal::{AppendRefused, JournalConfig, Marker, Urgency};
use highwater_shards::log::storage::{Found, Noted, Storage, StorageConfig, StorageEvent, Wanted};
use highwater_shards::mail::ToControl;
use highwater_shards::reactor::boot::{ShardExit, ShardSetup, start};
use highwater_shards::reactor::uring::{KernelUse, LinkConfig, Spin};
use highwater_shards::shard::{Input, Machine, Output};
use highwater_shards::time::Instant;
use no_front::NoFront;

/// Nobody leads, nobody produces: there is nothing to note, and everything is committed.
struct Nothing;

impl Noted for Nothing {
    fn noted(&self, _: Slot, _: &mut LogState) {}

    fn high_watermark(&self, _: Slot) -> Offset {
        Offset(u64::MAX)
    }
}

#[derive(Clone)]
struct Plan {
    dir: PathBuf,
    batch: usize,
    record: usize,
    logs: u32,
    seconds: u64,
    window: usize,
    core: Option<usize>,
}

struct Bench {
    plan: Plan,
    storage: Storage,
    now: Instant,
    batch: Bytes,
    header: BatchHeader,
    logs: Vec<Slot>,
    phase: Phase,
    /// Appended and not flushed: when, and how many bytes.
    waiting: VecDeque<(Marker, Instant, usize)>,
    waiting_bytes: usize,
    flushed_bytes: u64,
    refused: u64,
    latency: Histogram<u64>,
    read: BTreeMap<usize, Offset>,
    read_bytes: u64,
    from_memory: u64,
    stopped: bool,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Phase {
    Starting,
    Appending { since: Instant },
    Reading { since: Instant, log: usize, is_waiting: bool },
    Stopping { since: Instant },
}

impl Bench {
    fn new(plan: Plan) -> Self {
        let value = vec![b'x'; plan.record];
        let mut builder = BatchBuilder::new();
        for _ in 0..(plan.batch / (plan.record + 10)).max(1) {
            builder = builder.record(0, None, Some(&value));
        }
        let batch = builder.build();
        let journal = JournalConfig {
            batch_bytes_max: (32 << 20).max(batch.len()),
            ..JournalConfig::new(ShardId(0), 0x5eed_5eed)
        };
        Self {
            storage: Storage::new(StorageConfig::new(journal)),
            now: Instant::ZERO,
            header: parse_header(&batch).expect("a batch as it was built"),
            batch,
            logs: Vec::new(),
            phase: Phase::Starting,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            flushed_bytes: 0,
            refused: 0,
            latency: Histogram::new_with_bounds(1, 600_000_000, 3).expect("bounds as they may be"),
            read: BTreeMap::new(),
            read_bytes: 0,
            from_memory: 0,
            stopped: false,
            plan,
        }
    }

    fn on_event(&mut self, event: StorageEvent) {
        match event {
            StorageEvent::Recovered(_) => {
                for index in (0..self.plan.logs).map(PartitionIndex) {
                    self.logs.push(self.storage.open(PartitionId { topic: TopicId(1), index }));
                }
                self.phase = Phase::Appending { since: self.now };
            }
            StorageEvent::Flushed { upto } => {
                while let Some(&(marker, since, bytes)) = self.waiting.front()
                    && marker <= upto
                {
                    self.waiting.pop_front();
                    self.waiting_bytes -= bytes;
                    self.flushed_bytes += bytes as u64;
                    self.latency.saturating_record(as_micros(self.now - since));
                }
            }
            StorageEvent::Read { result, .. } => {
                let records = result.expect("what was written can be read");
                self.take(&records);
                if let Phase::Reading { is_waiting, .. } = &mut self.phase {
                    *is_waiting = false;
                }
            }
            StorageEvent::Stopped => {
                if let Phase::Stopping { since } = self.phase {
                    println!("stop         everything in segments after {:?}", self.now - since);
                }
                self.stopped = true;
            }
            StorageEvent::Fatal(reason) => panic!("{reason}"),
            _ => {}
        }
    }

    fn take(&mut self, records: &[Bytes]) {
        let Phase::Reading { log, .. } = self.phase else { return };
        let last = records.last().map(|batch| parse_header(batch).expect("checked by the log"));
        if let Some(last) = last {
            self.read.insert(log, last.base().expect("a stored batch").plus(last.offsets()));
        }
        self.read_bytes += records.iter().map(|batch| batch.len() as u64).sum::<u64>();
    }

    /// Goes on with the phase as far as can be without waiting.
    fn go_on(&mut self) {
        let length = Duration::from_secs(self.plan.seconds);
        match self.phase {
            Phase::Appending { since } if self.now - since < length => self.append(),
            Phase::Appending { since } if self.waiting.is_empty() => {
                let rate = self.flushed_bytes as f64 / (self.now - since).as_secs_f64();
                let quantile = |q| self.latency.value_at_quantile(q);
                println!(
                    "append       {:8.0} MB/s  {:8.0} batches/s  p50 {} us  p99 {} us  p99.9 {} us  refused {}",
                    rate / 1e6,
                    rate / self.batch.len() as f64,
                    quantile(0.5),
                    quantile(0.99),
                    quantile(0.999),
                    self.refused,
                );
                self.phase = Phase::Reading { since: self.now, log: 0, is_waiting: false };
                self.go_on();
            }
            Phase::Reading { since, log, .. } if log == self.logs.len() => {
                let rate = self.read_bytes as f64 / (self.now - since).as_secs_f64();
                println!(
                    "read         {:8.0} MB/s  {} MB, of them {} MB from memory",
                    rate / 1e6,
                    self.read_bytes / 1_000_000,
                    self.from_memory / 1_000_000
                );
                self.phase = Phase::Stopping { since: self.now };
                self.storage.stop(self.now);
            }
            Phase::Reading { is_waiting: false, .. } => self.read_on(),
            _ => {}
        }
    }

    fn append(&mut self) {
        while self.waiting_bytes < self.plan.window {
            let turn = usize::try_from(self.latency.len()).unwrap_or(0) + self.waiting.len();
            let slot = self.logs[turn % self.logs.len()];
            let base = self.storage.end(slot).expect("the log is open");
            let appended = self.storage.append(
                self.now,
                slot,
                base,
                LeaderEpoch(1),
                &self.header,
                &self.batch,
                Urgency::Sync,
            );
            match appended {
                Ok(marker) => {
                    self.waiting.push_back((marker, self.now, self.batch.len()));
                    self.waiting_bytes += self.batch.len();
                }
                Err(AppendRefused::Full) => panic!("the disk is full"),
                Err(_) => {
                    self.refused += 1;
                    return;
                }
            }
        }
    }

    fn read_on(&mut self) {
        while let Phase::Reading { since, log, is_waiting: false } = self.phase
            && log < self.logs.len()
        {
            let slot = self.logs[log];
            let from = self.read.get(&log).copied().unwrap_or(Offset::ZERO);
            let below = self.storage.end(slot).expect("the log is open");
            let wanted = Wanted { from, below, bytes_max: 1 << 20, first_whole: true, is_urgent: false };
            match self.storage.read(self.now, slot, wanted, 1) {
                Found::Memory(records) => {
                    let before = self.read_bytes;
                    self.take(&records);
                    self.from_memory += self.read_bytes - before;
                }
                Found::Later => self.phase = Phase::Reading { since, log, is_waiting: true },
                Found::Nothing => {
                    assert_eq!(from, below, "everything is read");
                    self.phase = Phase::Reading { since, log: log + 1, is_waiting: false };
                }
            }
        }
        if let Phase::Reading { log, .. } = self.phase
            && log == self.logs.len()
        {
            self.go_on();
        }
    }
}

impl Machine for Bench {
    type Front = NoFront;

    fn handle(&mut self, now: Instant, input: Input<NoFront>) {
        self.now = now;
        match input {
            Input::Disk(event) => self.storage.handle(now, event),
            Input::Timeout => self.storage.handle_timeout(now),
            _ => {}
        }
        while let Some(event) = self.storage.poll_event() {
            self.on_event(event);
        }
        self.go_on();
    }

    fn poll_output(&mut self) -> Option<Output<NoFront>> {
        if let Some(op) = self.storage.poll_op(self.now, &Nothing) {
            return Some(Output::Disk(op));
        }
        while let Some(event) = self.storage.poll_event() {
            self.on_event(event);
        }
        std::mem::take(&mut self.stopped).then(|| Output::Control(ToControl::Stopped))
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.storage.poll_timeout()
    }
}

fn as_micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn bytes(text: &str) -> usize {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_alphabetic()).unwrap_or(text.len()));
    let unit = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        other => panic!("{other} is no unit: B, KiB, MiB or GiB"),
    };
    number.parse::<usize>().expect("a number of bytes") * unit
}

fn main() {
    let mut given: BTreeMap<String, String> = BTreeMap::new();
    for argument in std::env::args().skip(1) {
        let (key, value) = argument.split_once('=').expect("arguments are KEY=VALUE");
        given.insert(key.to_owned(), value.to_owned());
    }
    let mut take = |key: &str, default: &str| given.remove(key).unwrap_or_else(|| default.to_owned());
    let plan = Plan {
        dir: PathBuf::from(take("dir", "")),
        batch: bytes(&take("batch", "1MiB")),
        record: bytes(&take("record", "1KiB")),
        logs: take("logs", "1").parse().expect("a number of logs"),
        seconds: take("seconds", "10").parse().expect("whole seconds"),
        window: bytes(&take("window", "8MiB")),
        core: take("core", "").parse().ok(),
    };
    assert!(given.is_empty(), "unknown arguments: {:?}", given.keys());
    assert!(!plan.dir.as_os_str().is_empty(), "dir=PATH says where to write; it is made and removed");
    std::fs::create_dir(&plan.dir).expect("the folder can be made, and was not there before");
    let dir = plan.dir.clone();
    let setup = ShardSetup {
        shard: ShardId(0),
        core: plan.core,
        journal_dir: dir.join("journal-0"),
        partitions_dir: dir.join("partitions"),
        open_files_max: 1024,
        listen: Vec::new(),
        link: LinkConfig::default(),
        spin: Spin::Auto,
        kernel_use: KernelUse::default(),
        make: Box::new(move || Bench::new(plan)),
    };
    let shards = start(vec![setup]).expect("the shard starts");
    let ends = shards.join();
    std::fs::remove_dir_all(&dir).expect("the folder can be removed");
    assert!(ends.iter().all(|(_, how)| *how == ShardExit::Stopped), "{ends:?}");
}
