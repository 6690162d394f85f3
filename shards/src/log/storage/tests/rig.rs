//! A log over the model disk, and beside it the history of what was done, by which it is checked after a crash.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::model::Disk;
use crate::batch::{self, BatchBuilder};
use crate::ids::{LeaderEpoch, Offset, PartitionId, PartitionIndex, ShardId, TopicId};
use crate::log::checkpoint::LogState;
use crate::log::journal::{AppendRefused, JournalConfig, Urgency};
use crate::log::random::Random;
use crate::log::storage::{Found, Noted, Storage, StorageConfig, StorageEvent, StorageReport, Wanted};
use crate::log::{FatalReason, Note, Slot};
use crate::mail::LogConfig;
use crate::time::Instant;

/// Nothing but what a test of the log needs.
pub struct Known(pub BTreeMap<Slot, Offset>);

impl Noted for Known {
    fn noted(&self, slot: Slot, state: &mut LogState) {
        state.high_watermark = self.high_watermark(slot);
    }

    fn high_watermark(&self, slot: Slot) -> Offset {
        self.0.get(&slot).copied().unwrap_or_default()
    }
}

#[derive(Clone, Debug)]
pub enum Effect {
    Batch { base: Offset, next: Offset, bytes: Bytes },
    Note(Note),
}

/// What a log is after some of its history.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Content {
    pub start: Offset,
    pub end: Offset,
    pub batches: Vec<(Offset, Offset, Bytes)>,
}

impl Content {
    fn apply(&mut self, effect: &Effect) {
        match effect {
            Effect::Batch { base, next, bytes } => {
                assert_eq!(self.end, *base);
                self.batches.push((*base, *next, bytes.clone()));
                self.end = *next;
            }
            Effect::Note(Note::Truncated { end }) => {
                self.batches.retain(|(_, next, _)| next <= end);
                self.end = self.end.min(*end);
                self.start = self.start.min(self.end);
            }
            Effect::Note(Note::Started { start }) => {
                if *start > self.end {
                    self.end = *start;
                }
                self.start = self.start.max(*start);
                let start = self.start;
                self.batches.retain(|(_, next, _)| *next > start);
            }
            Effect::Note(Note::Dropped) => *self = Self::default(),
        }
    }
}

pub struct Rig {
    pub config: StorageConfig,
    pub log_config: LogConfig,
    pub storage: Storage,
    pub disk: Disk,
    pub now: Instant,
    pub random: Random,
    pub known: Known,
    /// Everything that was done, with its chunk.
    pub history: Vec<(u64, PartitionId, Effect)>,
    pub flushed: u64,
    pub report: Option<StorageReport>,
    pub fatal: Option<FatalReason>,
    pub stopped: bool,
    pub reads: BTreeMap<u64, Vec<Bytes>>,
    pub ticket: u64,
    pub started: Vec<(Slot, Offset)>,
    /// The high watermark stays where it was.
    pub withheld: bool,
    /// Planted: what was appended passes for flushed.
    pub trusts_unflushed: bool,
}

pub fn partition(index: u32) -> PartitionId {
    PartitionId { topic: TopicId(77), index: PartitionIndex(index) }
}

pub fn small_config() -> StorageConfig {
    let journal = JournalConfig {
        file_bytes: 128 * 1024,
        batch_bytes_max: 24 * 1024,
        chunk_bytes_max: 32 * 1024,
        ..JournalConfig::new(ShardId(0), 99)
    };
    StorageConfig {
        tail_bytes_max: 64 * 1024,
        unmoved_bytes_soft: 64 * 1024,
        unmoved_bytes_max: 512 * 1024,
        checkpoint_bytes: 96 * 1024,
        move_bytes: 6 * 1024,
        moves_in_flight_max: 4,
        syncs_in_flight_max: 3,
        wall_ms_at_zero: 1_000_000_000,
        ..StorageConfig::new(journal)
    }
}

impl Rig {
    pub fn new(seed: u64) -> Self {
        Self::with(small_config(), seed)
    }

    pub fn with(config: StorageConfig, seed: u64) -> Self {
        Self {
            storage: Storage::new(config.clone()),
            config,
            log_config: LogConfig { segment_bytes: 24 * 1024, retention_ms: None, ..LogConfig::default() },
            disk: Disk::default(),
            now: Instant::ZERO,
            random: Random(seed),
            known: Known(BTreeMap::new()),
            history: Vec::new(),
            flushed: 0,
            report: None,
            fatal: None,
            stopped: false,
            reads: BTreeMap::new(),
            ticket: 0,
            started: Vec::new(),
            withheld: false,
            trusts_unflushed: false,
        }
    }

    /// Starts, recovers, and lets everything come to rest.
    pub fn started(seed: u64) -> Self {
        let mut rig = Self::new(seed);
        rig.recover();
        rig
    }

    pub fn wait(&mut self, ms: u64) {
        self.now = self.now + Duration::from_millis(ms);
        if self.storage.poll_timeout().is_some_and(|at| at <= self.now) {
            self.storage.handle_timeout(self.now);
        }
    }

    /// Drains events and operations.
    pub fn drain(&mut self) {
        loop {
            let mut is_done = true;
            while let Some(event) = self.storage.poll_event() {
                is_done = false;
                self.on_event(event);
            }
            for slot in self.storage.slots().collect::<Vec<_>>() {
                let end = if self.withheld { Offset::ZERO } else { self.storage.end(slot).unwrap() };
                self.known.0.insert(slot, end);
            }
            if self.trusts_unflushed {
                self.storage.flushed = self.storage.flushed.max(self.last_chunk());
            }
            while let Some(op) = self.storage.poll_op(self.now, &self.known) {
                is_done = false;
                self.disk.submit(op);
            }
            // What the last call brought about.
            if let Some(event) = self.storage.poll_event() {
                is_done = false;
                self.on_event(event);
            }
            if is_done {
                if self.storage.poll_timeout().is_some_and(|at| at <= self.now) && self.fatal.is_none() {
                    self.storage.handle_timeout(self.now);
                    continue;
                }
                return;
            }
        }
    }

    fn on_event(&mut self, event: StorageEvent) {
        match event {
            StorageEvent::Restored { slot, .. } => self.storage.configure(slot, &self.log_config),
            StorageEvent::Recovered(report) => {
                self.report = Some(*report);
                let upto = self.storage.flushed;
                assert!(upto >= self.flushed, "what was flushed is there: {upto} of {}", self.flushed);
                // Chunks behind it count from there again.
                self.history.retain(|(chunk, ..)| *chunk <= upto);
                self.flushed = upto;
            }
            StorageEvent::Flushed { upto } => self.flushed = upto.0,
            StorageEvent::Started { slot, start } => {
                let log = self.storage.log(slot).unwrap();
                let effect = Effect::Note(Note::Started { start });
                self.history.push((log.last.chunk, log.partition, effect));
                self.started.push((slot, start));
            }
            StorageEvent::Read { ticket, result } => {
                self.reads.insert(ticket, result.expect("what is read is good"));
            }
            StorageEvent::FoundBatch { ticket, result } => {
                let found = result.expect("what is read is good").into_iter().collect();
                self.reads.insert(ticket, found);
            }
            StorageEvent::Stopped => self.stopped = true,
            StorageEvent::Fatal(reason) => self.fatal = Some(reason),
            StorageEvent::ReplayedBatch { .. }
            | StorageEvent::ReplayedNote { .. }
            | StorageEvent::BacklogCleared
            | StorageEvent::Room => {}
        }
    }

    /// Ends one operation that is under way.
    pub fn complete_one(&mut self) -> bool {
        self.drain();
        if self.disk.in_flight.is_empty() {
            return false;
        }
        let index = self.random.below(self.disk.in_flight.len());
        let event = self.disk.complete(index);
        self.storage.handle(self.now, event);
        self.drain();
        true
    }

    pub fn settle(&mut self) {
        while self.complete_one() {}
    }

    /// Settles, with time for lazy flushes.
    pub fn rest(&mut self) {
        for _ in 0..4 {
            self.settle();
            self.wait(60);
        }
        self.settle();
    }

    pub fn recover(&mut self) {
        self.settle();
        assert!(self.report.is_some() || self.fatal.is_some(), "recovery ends");
    }

    pub fn open(&mut self, index: u32) -> Slot {
        let slot = self.storage.open(partition(index));
        self.storage.configure(slot, &self.log_config);
        slot
    }

    pub fn append(&mut self, index: u32, len: usize, urgency: Urgency) -> Result<(), AppendRefused> {
        self.append_at(index, len, urgency, 1)
    }

    pub fn append_at(
        &mut self,
        index: u32,
        len: usize,
        urgency: Urgency,
        timestamp_ms: i64,
    ) -> Result<(), AppendRefused> {
        let slot = self.open(index);
        let base = self.storage.end(slot).unwrap();
        let mut value = vec![0; len];
        let fill = self.random.next();
        value.iter_mut().for_each(|byte| *byte = fill as u8);
        let records = 1 + self.random.below(3);
        let mut builder = BatchBuilder::new();
        for _ in 0..records {
            builder = builder.record(timestamp_ms, None, Some(&value));
        }
        let bytes = builder.build();
        let header = batch::parse_header(&bytes).unwrap();
        let epoch = LeaderEpoch(1);
        let marker = self.storage.append(self.now, slot, base, epoch, &header, &bytes, urgency)?;
        let mut patched = BytesMut::new();
        batch::put_patched(&mut patched, &bytes, base, epoch);
        let next = base.plus(header.offsets());
        let effect = Effect::Batch { base, next, bytes: patched.freeze() };
        self.history.push((marker.0, partition(index), effect));
        Ok(())
    }

    pub fn truncate(&mut self, index: u32, end: Offset) {
        let Some(slot) = self.storage.slot(partition(index)) else { return };
        if let Ok(marker) = self.storage.truncate(self.now, slot, end) {
            self.history.push((marker.0, partition(index), Effect::Note(Note::Truncated { end })));
        }
    }

    pub fn advance_start(&mut self, index: u32, start: Offset) {
        let Some(slot) = self.storage.slot(partition(index)) else { return };
        if let Ok(marker) = self.storage.advance_start(self.now, slot, start) {
            self.history.push((marker.0, partition(index), Effect::Note(Note::Started { start })));
        }
    }

    pub fn drop_log(&mut self, index: u32) {
        let Some(slot) = self.storage.slot(partition(index)) else { return };
        if self.storage.drop_log(self.now, slot).is_ok() {
            let chunk = self.storage.log(slot).unwrap().last.chunk;
            self.history.push((chunk, partition(index), Effect::Note(Note::Dropped)));
        }
    }

    /// Every log as it is after everything up to this chunk.
    pub fn contents(&self, upto: u64) -> BTreeMap<PartitionId, Content> {
        let mut logs: BTreeMap<PartitionId, Content> = BTreeMap::new();
        for (chunk, partition, effect) in &self.history {
            if *chunk <= upto {
                logs.entry(*partition).or_default().apply(effect);
            }
        }
        logs
    }

    pub fn content(&self, index: u32) -> Content {
        self.contents(u64::MAX).remove(&partition(index)).unwrap_or_default()
    }

    pub fn last_chunk(&self) -> u64 {
        self.history.iter().map(|(chunk, ..)| *chunk).max().unwrap_or(0)
    }

    /// Ends the process, or the machine, and begins another life.
    pub fn crash(&mut self, with_power: bool) {
        self.disk.crash(&mut self.random, with_power);
        self.restart();
    }

    pub fn restart(&mut self) {
        self.storage = Storage::new(self.config.clone());
        self.report = None;
        self.fatal = None;
        self.stopped = false;
        self.reads.clear();
        self.known.0.clear();
        self.now = Instant::ZERO;
    }

    pub fn stop(&mut self) {
        self.storage.stop(self.now);
        self.settle();
        assert!(self.stopped, "{:?}", self.storage);
    }

    /// Reads a log from `from` to its end.
    pub fn read_all(&mut self, slot: Slot, from: Offset) -> Vec<Bytes> {
        let (mut at, end) = (from, self.storage.end(slot).unwrap());
        let mut all = Vec::new();
        while at < end {
            self.ticket += 1;
            let ticket = self.ticket;
            let wanted =
                Wanted { from: at, below: end, bytes_max: 10_000, first_whole: true, is_urgent: false };
            let parts = match self.storage.read(self.now, slot, wanted, ticket) {
                Found::Memory(parts) => parts,
                Found::Nothing => panic!("nothing at {at} of {slot:?}, which ends at {end}"),
                Found::Later => {
                    while !self.reads.contains_key(&ticket) {
                        let more = self.complete_one();
                        assert!(more || self.reads.contains_key(&ticket), "a read ends: {:?}", self.fatal);
                        assert_eq!(self.fatal, None);
                    }
                    self.reads.remove(&ticket).unwrap()
                }
            };
            assert!(!parts.is_empty(), "nothing at {at} of {slot:?}, which ends at {end}");
            for part in parts {
                let header = batch::parse_header(&part).unwrap();
                let base = header.base().unwrap();
                assert!(at < base.plus(header.offsets()), "batch at {base} for {at}");
                at = base.plus(header.offsets());
                all.push(part);
            }
        }
        all
    }

    /// Checks every log's ends and bytes against the history up to the end.
    pub fn check_contents(&mut self) {
        for (partition, content) in self.contents(u64::MAX) {
            let Some(slot) = self.storage.slot(partition) else {
                assert_eq!(content, Content::default(), "{partition} is gone");
                continue;
            };
            assert_eq!(self.storage.start(slot), Some(content.start), "{partition}");
            assert_eq!(self.storage.end(slot), Some(content.end), "{partition}");
            let got = self.read_all(slot, content.start);
            let expected: Vec<Bytes> = content.batches.into_iter().map(|(.., bytes)| bytes).collect();
            assert_eq!(got.len(), expected.len(), "{partition}");
            assert!(got == expected, "{partition}: other bytes");
        }
    }

    /// After a recovery: finds how much of the history survived, which is all that was flushed at least.
    pub fn check_recovered(&mut self) {
        assert_eq!(self.fatal, None);
        let recovered: BTreeMap<PartitionId, (Offset, Offset)> = self
            .storage
            .slots()
            .map(|slot| {
                let ends = (self.storage.start(slot).unwrap(), self.storage.end(slot).unwrap());
                (self.storage.partition(slot).unwrap(), ends)
            })
            .filter(|(_, ends)| *ends != (Offset::ZERO, Offset::ZERO))
            .collect();
        let expected: BTreeMap<PartitionId, (Offset, Offset)> = self
            .contents(u64::MAX)
            .iter()
            .map(|(&partition, content)| (partition, (content.start, content.end)))
            .filter(|(_, ends)| *ends != (Offset::ZERO, Offset::ZERO))
            .collect();
        assert_eq!(recovered, expected, "recovered up to {}", self.flushed);
        self.check_contents();
    }
}
