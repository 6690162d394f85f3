//! Drives one log over its lives: virtual time, the disk, the crashes, and what the log says.

mod lives;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use highwater_shards::ids::{Offset, PartitionId, PartitionIndex, TopicId};
use highwater_shards::log::Slot;
use highwater_shards::log::disk::{DiskEvent, DiskOp, FileName, OpNo};
use highwater_shards::log::storage::{Storage, StorageConfig, StorageEvent, StorageReport};
use highwater_shards::mail::LogConfig;
use highwater_shards::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::Outcome;
use super::checkers::compaction::Rules;
use super::checkers::{bounds, content, recovery, retention};
use super::config::{Config, WALL_MS};
use super::counts::Counts;
use super::disks;
use super::history::{Batch, History};
use super::reads::Reading;
use super::saboteur::{Fate, Sabotage, fate};
use super::shard::{Digests, Heard, View};
use crate::checkers::{Verdict, Violation, broken};
use crate::disk::{Crash, DiskFaults, SimDisk};
use crate::rng::Rng;

pub const LIVENESS: &str = "liveness";
/// How long anything may take that must come to an end.
const PATIENCE: Duration = Duration::from_secs(120);
/// A turn that gives more operations and events goes round in circles.
const TURN_MAX: u32 = 100_000;

/// One partition, with its log of this life.
#[derive(Debug)]
pub struct Partition {
    pub id: PartitionId,
    pub slot: Option<Slot>,
    pub history: History,
    pub heard: Heard,
    /// Of the next batches.
    pub epoch: u32,
    /// `<=` what no crash can take.
    pub high_watermark: u64,
    /// What it was of logs that were dropped, by the drops before: a crash may bring them back.
    pub dropped: BTreeMap<u32, u64>,
    /// As the topic is configured.
    pub settings: LogConfig,
    /// As the log of this life was told.
    pub configured: Option<LogConfig>,
    pub rules: Rules,
    /// Truncations, starts and drops: what ends the meaning of a read that is under way.
    pub changes: u64,
    /// What those took away, by their number.
    pub removed: Vec<(u64, Rc<Batch>)>,
    /// The log starts before where it is to start, since it was rebuilt.
    pub is_start_behind: bool,
    /// It did so at some recovery, and none since has found it where it is to be.
    pub may_start_behind: bool,
    /// Of each producer: epoch and next sequence number.
    pub producers: BTreeMap<u64, (u16, u32)>,
    /// Where a sequential reader goes on.
    pub cursor: u64,
    /// All batches of its life, if one must know.
    pub ever: Vec<Rc<Batch>>,
}

impl Partition {
    /// Up to where the log that `history.now` is of was stable at some time.
    pub fn stable(&self) -> u64 {
        self.dropped.get(&self.history.now.drops).copied().unwrap_or(self.high_watermark)
    }

    /// The log is about to lose what lies outside of `start..end`.
    pub fn lose(&mut self, start: u64, end: u64) {
        self.changes += 1;
        let gone = self.history.now.batches.iter().filter(|b| b.end <= start || b.base >= end);
        self.removed.extend(gone.map(|b| (self.changes, Rc::clone(b))));
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Down,
    Recovering,
    /// Recovered, but not yet compared with what must be there.
    Comparing,
    Running,
    Stopping,
}

enum Due {
    Disk(OpNo),
    Event(DiskEvent),
    /// What a saboteur held back.
    Late(DiskOp),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lost {
    Missing,
    Damaged,
}

/// Streams of randomness, one a purpose.
pub struct Dice {
    pub act: Rng,
    pub batch: Rng,
    pub read: Rng,
    pub fault: Rng,
    crash: Rng,
    tie: Rng,
}

pub struct World {
    pub config: Config,
    pub storage_config: StorageConfig,
    pub storage: Option<Storage>,
    pub phase: Phase,
    pub now: Instant,
    pub disk: SimDisk,
    due: BTreeMap<(Instant, u64, u64), Due>,
    dues: u64,
    pub partitions: Vec<Partition>,
    digests: RefCell<Digests>,
    /// Everything up to this marker was said to be flushed.
    pub flushed: u64,
    pub last_marker: u64,
    /// Where the journal may have been cut at the last recovery, if what that left was not found out.
    cuts: Option<Vec<u64>>,
    /// What the logs note of their history goes back to their beginning.
    is_known: bool,
    /// What a log's history is counted from is not its beginning any more.
    was_rebuilt: bool,
    report: Option<StorageReport>,
    was_stopped: bool,
    lost_checkpoint: Option<Lost>,
    crash_at: Option<(u64, Crash)>,
    /// Reads of segments, and of checkpoints, that are under way.
    disk_reads: BTreeSet<OpNo>,
    loads: BTreeSet<OpNo>,
    segment_reads: u64,
    /// Logs are restored from a checkpoint in this life.
    is_checkpoint_read: bool,
    is_over_debt: bool,
    /// Counted in this life.
    compactions: u64,
    journal_bytes_max: u64,
    /// A fault of the disk in this life explains that the log gives up.
    pub may_be_fatal: bool,
    /// Reads of this life may fail, or find damage.
    pub may_fail_reads: bool,
    pub was_full: bool,
    pub full_until: Option<Instant>,
    pub slow_until: Option<Instant>,
    /// A file rotted: only what is served is checked.
    rotten: bool,
    /// Batches are as small as they can be.
    pub is_tiny: bool,
    pub readings: BTreeMap<u64, Reading>,
    pub tickets: u64,
    pub dice: Dice,
    sabotage: Option<Sabotage>,
    sabotaged: u64,
    told: BTreeSet<OpNo>,
    pub slots_used: BTreeSet<Slot>,
    pub counts: Counts,
    hash: u64,
    print: bool,
}

impl World {
    pub fn new(config: Config, sabotage: Option<Sabotage>, print: bool) -> Self {
        let rng = |purpose| Rng::new(config.seed, purpose, 0);
        let mut settings = rng("log settings");
        let partitions = (0..config.partitions).map(|i| {
            let index = PartitionIndex(u32::try_from(i).expect("few partitions"));
            let settings = config.log(&mut settings);
            Partition {
                id: PartitionId { topic: TopicId(u128::from(config.seed) << 64 | u128::from(i / 4)), index },
                slot: None,
                history: History::default(),
                heard: Heard::default(),
                epoch: 0,
                high_watermark: 0,
                dropped: BTreeMap::new(),
                settings,
                configured: None,
                rules: Rules::default(),
                changes: 0,
                removed: Vec::new(),
                is_start_behind: false,
                may_start_behind: false,
                producers: BTreeMap::new(),
                cursor: 0,
                ever: Vec::new(),
            }
        });
        Self {
            partitions: partitions.collect(),
            storage_config: config.storage(0),
            storage: None,
            phase: Phase::Down,
            now: Instant::ZERO,
            disk: SimDisk::new(config.disk.clone(), rng("disk")),
            due: BTreeMap::new(),
            dues: 0,
            digests: RefCell::default(),
            flushed: 0,
            last_marker: 0,
            cuts: None,
            is_known: true,
            was_rebuilt: false,
            report: None,
            was_stopped: false,
            lost_checkpoint: None,
            crash_at: None,
            disk_reads: BTreeSet::new(),
            loads: BTreeSet::new(),
            segment_reads: 0,
            is_checkpoint_read: false,
            is_over_debt: false,
            compactions: 0,
            journal_bytes_max: 0,
            may_be_fatal: false,
            may_fail_reads: false,
            was_full: false,
            full_until: None,
            slow_until: None,
            rotten: false,
            is_tiny: false,
            readings: BTreeMap::new(),
            tickets: 0,
            dice: Dice {
                act: rng("act"),
                batch: rng("batch"),
                read: rng("read"),
                fault: rng("fault"),
                crash: rng("crash"),
                tie: rng("tie"),
            },
            sabotage,
            sabotaged: 0,
            told: BTreeSet::new(),
            slots_used: BTreeSet::new(),
            counts: Counts::default(),
            hash: 0,
            print,
            config,
        }
    }

    pub fn run(mut self) -> Outcome {
        let violation = self.live().err();
        if let Some(v) = &violation {
            self.tell(|| format!("VIOLATION {v}"));
        }
        Outcome { hash: self.hash, counts: self.counts, time: self.now.since(Instant::ZERO), violation }
    }

    pub fn is_alive(&self) -> bool {
        self.storage.is_some()
    }

    pub fn wall_ms(&self) -> i64 {
        WALL_MS + i64::try_from(self.now.as_nanos() / 1_000_000).expect("a run is short")
    }

    pub fn heal(&mut self) {
        self.disk.faults = DiskFaults::default();
        self.full_until = None;
        self.slow_until = None;
        self.crash_at = None;
    }

    /// The process is gone.
    pub fn die(&mut self, crash: Crash) {
        self.mark(&format!("{crash:?}"));
        match crash {
            Crash::Kill => self.counts.kills += 1,
            Crash::Power => self.counts.power_losses += 1,
        }
        self.storage = None;
        self.phase = Phase::Down;
        self.disk.crash(crash);
        self.disk.faults = DiskFaults::default();
        self.due.clear();
        self.told.clear();
        self.disk_reads.clear();
        self.loads.clear();
        self.readings.clear();
        (self.full_until, self.slow_until) = (None, None);
        (self.may_be_fatal, self.may_fail_reads, self.was_full) = (false, false, false);
        for p in &mut self.partitions {
            p.slot = None;
            p.removed.clear();
            p.cursor = 0;
        }
    }

    /// Lets time pass.
    pub fn pump(&mut self, until: Instant) -> Verdict {
        while self.is_alive() && self.pump_once(until)? {}
        if self.is_alive() {
            self.now = self.now.max(until);
        }
        Ok(())
    }

    /// Does what comes next, if it comes before `until`.
    pub fn pump_once(&mut self, until: Instant) -> Result<bool, Violation> {
        let Some(storage) = &mut self.storage else { return Ok(false) };
        let timeout = storage.poll_timeout();
        let due = self.due.first_key_value().map(|(&(at, ..), _)| at);
        let Some(next) = timeout.into_iter().chain(due).min().filter(|next| *next <= until) else {
            return Ok(false);
        };
        self.now = self.now.max(next);
        if timeout.is_some_and(|t| t <= self.now) {
            storage.handle_timeout(self.now);
            self.step();
            self.drain()?;
            let again = self.storage.as_ref().and_then(Storage::poll_timeout);
            if again.is_some_and(|t| t <= self.now) && due.is_none_or(|d| d > self.now) {
                return Err(broken(LIVENESS, format!("at {:?} it wants to be woken at {again:?}", self.now)));
            }
            return Ok(true);
        }
        // Several ends at once are handled before operations are asked for.
        let turns = if self.dice.tie.chance(200) { 4 } else { 1 };
        for _ in 0..turns {
            let Some(entry) = self.due.first_entry().filter(|e| e.key().0 <= next) else { break };
            let due = entry.remove();
            self.on_due(due)?;
        }
        self.drain()?;
        Ok(true)
    }

    fn on_due(&mut self, due: Due) -> Verdict {
        self.step();
        if !self.is_alive() {
            return Ok(());
        }
        let event = match due {
            Due::Disk(op) => {
                let event = self.disk.complete(op);
                if self.told.remove(&op) {
                    return Ok(());
                }
                self.spoil(event)
            }
            Due::Event(event) => event,
            Due::Late(op) => return self.submit_to_disk(op),
        };
        self.tell(|| format!("<- {}", disks::event_in_words(&event)));
        self.mix(event.op().0);
        let now = self.now;
        self.storage.as_mut().expect("alive").handle(now, event);
        Ok(())
    }

    /// Damage between the disk and the log.
    fn spoil(&mut self, event: DiskEvent) -> DiskEvent {
        match event {
            DiskEvent::Loaded { op, result: Ok(Some(bytes)) } if self.loads.remove(&op) => {
                let result = match self.lost_checkpoint {
                    None => Some(bytes),
                    Some(Lost::Missing) => None,
                    Some(Lost::Damaged) => Some(self.flip(&bytes)),
                };
                self.is_checkpoint_read = self.lost_checkpoint.is_none() && !self.rotten;
                DiskEvent::Loaded { op, result: Ok(result) }
            }
            DiskEvent::Read { op, result: Ok(bytes) } if self.disk_reads.remove(&op) => {
                let is_wrong = self.phase == Phase::Running
                    && !bytes.is_empty()
                    && self.dice.fault.chance(self.config.wrong_reads);
                if !is_wrong {
                    return DiskEvent::Read { op, result: Ok(bytes) };
                }
                self.may_fail_reads = true;
                self.may_be_fatal = true;
                self.tell(|| format!("{op:?}: a bit is wrong"));
                DiskEvent::Read { op, result: Ok(self.flip(&bytes)) }
            }
            DiskEvent::Done { op, result: Ok(()) } if self.loads.remove(&op) => {
                self.lost_checkpoint = None;
                DiskEvent::Done { op, result: Ok(()) }
            }
            other => other,
        }
    }

    fn flip(&mut self, bytes: &Bytes) -> Bytes {
        let mut wrong = BytesMut::from(&bytes[..]);
        let at = self.dice.fault.index(wrong.len());
        wrong[at] ^= 1 << self.dice.fault.index(8);
        wrong.freeze()
    }

    /// Counts something that happened on the disk, and dies if it is time.
    fn step(&mut self) {
        self.counts.steps += 1;
        if self.is_alive()
            && let Some((_, crash)) = self.crash_at.filter(|(at, _)| *at <= self.counts.steps)
        {
            self.crash_at = None;
            self.die(crash);
        }
    }

    /// Takes all that the log has to say and to ask.
    pub fn drain(&mut self) -> Verdict {
        for _ in 0..TURN_MAX {
            let Some(storage) = &mut self.storage else { return Ok(()) };
            if let Some(event) = storage.poll_event() {
                self.on_event(event)?;
                continue;
            }
            let is_recovered = matches!(self.phase, Phase::Running | Phase::Stopping);
            let view = View { partitions: &self.partitions, is_recovered, digests: &self.digests };
            let op = storage.poll_op(self.now, &view);
            // What retention announced with that may already be on its way to the disk with the operation, at which the
            // log may die.
            let mut is_any = false;
            while let Some(event) = self.storage.as_mut().and_then(Storage::poll_event) {
                is_any = true;
                self.on_event(event)?;
            }
            match op {
                Some(op) => self.submit(op)?,
                None if is_any => {}
                None => return self.check(),
            }
        }
        Err(broken(LIVENESS, "a turn does not end"))
    }

    fn submit(&mut self, op: DiskOp) -> Verdict {
        self.tell(|| format!("-> {}", disks::op_in_words(&op)));
        self.mix(disks::op_in_numbers(&op));
        disks::count(&op, &mut self.counts);
        match &op {
            DiskOp::Read { op, file: FileName::Segment(_) | FileName::Index(_), .. } => {
                self.segment_reads += 1;
                self.disk_reads.insert(*op);
            }
            DiskOp::Load { op, .. } | DiskOp::Replace { op, .. } => {
                self.loads.insert(*op);
            }
            _ => {}
        }
        self.sabotaged += 1;
        match fate(self.sabotage, op, self.sabotaged) {
            Fate::Done(op) => self.submit_to_disk(op)?,
            Fate::Lost(event) => self.push(Duration::from_micros(1), Due::Event(event)),
            Fate::Early(event, op) => {
                self.told.insert(event.op());
                self.push(Duration::from_micros(1), Due::Event(event));
                self.push(Duration::from_millis(40), Due::Late(op));
            }
        }
        self.step();
        Ok(())
    }

    fn submit_to_disk(&mut self, op: DiskOp) -> Verdict {
        let words = disks::op_in_words(&op);
        match self.disk.submit(op) {
            Ok((no, after)) => {
                self.push(after, Due::Disk(no));
                Ok(())
            }
            Err(what) => Err(broken("disk contract", format!("{words}: {what}"))),
        }
    }

    fn push(&mut self, after: Duration, due: Due) {
        self.dues += 1;
        let tie = self.dice.tie.draw();
        self.due.insert((self.now + after, tie, self.dues), due);
    }

    fn on_event(&mut self, event: StorageEvent) -> Verdict {
        self.tell(|| format!("   {}", in_words(&event)));
        match event {
            StorageEvent::Restored { slot, state } => {
                let fresh = xxh3_64(format!("{}{}", self.counts.lives, state.partition).as_bytes()) >> 2;
                let i = self.index(state.partition)?;
                let p = &mut self.partitions[i];
                p.slot = Some(slot);
                p.heard.restored(i, &state, fresh, &self.digests.borrow())
            }
            StorageEvent::ReplayedBatch { slot, header, base, is_noted } => {
                let Some(i) = self.of_replayed(slot)? else { return Ok(()) };
                let p = &mut self.partitions[i];
                p.slot = Some(slot);
                p.heard.replayed_batch(&header, base, is_noted);
                Ok(())
            }
            StorageEvent::ReplayedNote { slot, note, is_noted } => {
                let Some(i) = self.of_replayed(slot)? else { return Ok(()) };
                let p = &mut self.partitions[i];
                p.slot = Some(slot);
                p.heard.replayed_note(note, is_noted);
                if note == highwater_shards::log::Note::Dropped {
                    p.slot = None;
                }
                Ok(())
            }
            StorageEvent::Recovered(report) => {
                self.report = Some(*report);
                Ok(())
            }
            StorageEvent::Flushed { upto } => self.on_flushed(upto.0),
            StorageEvent::BacklogCleared | StorageEvent::Room => Ok(()),
            StorageEvent::Started { slot, start } => self.on_started(slot, start.0),
            StorageEvent::Read { ticket, result } => self.on_read(ticket, result),
            StorageEvent::FoundBatch { ticket, result } => self.on_found(ticket, result),
            StorageEvent::Stopped if self.phase == Phase::Stopping => {
                self.phase = Phase::Down;
                Ok(())
            }
            StorageEvent::Stopped => Err(broken(LIVENESS, "it stopped without being asked to")),
            StorageEvent::Fatal(reason) => {
                if !self.may_be_fatal {
                    return Err(broken("fatal", reason.to_string()));
                }
                self.counts.fatals += 1;
                let crash = self.draw_crash();
                self.die(crash);
                Ok(())
            }
        }
    }

    fn index(&self, partition: PartitionId) -> Result<usize, Violation> {
        let i = self.partitions.iter().position(|p| p.id == partition);
        i.ok_or_else(|| broken(recovery::NAME, format!("{partition} is restored, and nobody knows it")))
    }

    fn of_slot(&self, slot: Slot) -> Result<usize, Violation> {
        if let Some(i) = self.partitions.iter().position(|p| p.slot == Some(slot)) {
            return Ok(i);
        }
        match self.storage.as_ref().and_then(|s| s.partition(slot)) {
            Some(partition) => self.index(partition),
            None => Err(broken(recovery::NAME, format!("{slot:?} is replayed and has no partition"))),
        }
    }

    /// Nothing for a log that an entry behind this one dropped.
    fn of_replayed(&self, slot: Slot) -> Result<Option<usize>, Violation> {
        if let Some(i) = self.partitions.iter().position(|p| p.slot == Some(slot)) {
            return Ok(Some(i));
        }
        let partition = self.storage.as_ref().and_then(|s| s.partition(slot));
        partition.map(|partition| self.index(partition)).transpose()
    }

    fn on_flushed(&mut self, upto: u64) -> Verdict {
        if upto < self.flushed {
            return Err(broken(recovery::NAME, format!("flushed up to {upto} after {}", self.flushed)));
        }
        // What recovery itself flushes is compared when it is over.
        if matches!(self.phase, Phase::Running | Phase::Stopping) {
            self.flushed = upto;
            for p in &mut self.partitions {
                p.history.flushed(upto);
            }
        }
        Ok(())
    }

    fn on_started(&mut self, slot: Slot, start: u64) -> Verdict {
        let wall_ms = self.wall_ms();
        let i = self.of_slot(slot)?;
        let p = &mut self.partitions[i];
        if p.is_start_behind && start <= p.history.now.start {
            return Ok(());
        }
        self.counts.retained += 1;
        retention::check(p, start, wall_ms)?;
        p.lose(start, u64::MAX);
        p.history.retained(start);
        Ok(())
    }

    /// What can be compared at any time.
    fn check(&mut self) -> Verdict {
        let Some(storage) = &self.storage else { return Ok(()) };
        let stats = storage.stats();
        self.counts.compactions += stats.compactions - self.compactions;
        self.compactions = stats.compactions;
        let is_rebuilding = self.phase == Phase::Recovering && !self.is_checkpoint_read;
        if !is_rebuilding && !self.is_over_debt {
            bounds::check(&self.storage_config, &stats, self.phase)?;
        }
        // What recovery took in is moved when it is over.
        self.is_over_debt = (self.is_over_debt || self.phase == Phase::Recovering)
            && stats.unmoved_bytes > self.storage_config.unmoved_bytes_max;
        bounds::check_journal(&self.storage_config, self.journal_bytes_max, self.disk.usage().0)?;
        if self.phase != Phase::Running {
            return Ok(());
        }
        for p in &self.partitions {
            let Some(slot) = p.slot else { continue };
            let now = &p.history.now;
            let (start, end) = (storage.start(slot), storage.end(slot));
            if end != Some(Offset(now.end)) || start != Some(Offset(now.start)) && !p.is_start_behind {
                let expected = (now.start, now.end);
                return Err(broken(content::NAME, format!("{}: {start:?}..{end:?}, not {expected:?}", p.id)));
            }
            let (flushed, expected) = (storage.flushed_end(slot), p.history.flushed_end());
            if flushed != Some(Offset(expected)) {
                return Err(broken(
                    content::NAME,
                    format!("{}: flushed up to {flushed:?}, not {expected}", p.id),
                ));
            }
        }
        Ok(())
    }

    fn mix(&mut self, word: u64) {
        self.hash =
            (self.hash.rotate_left(5) ^ word ^ self.now.as_nanos()).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    /// Something that the world did.
    pub fn mark(&mut self, what: &str) {
        self.mix(xxh3_64(what.as_bytes()));
        self.tell(|| format!("** {what}"));
    }

    pub fn tell(&self, what: impl FnOnce() -> String) {
        if self.print {
            let ms = self.now.as_nanos() / 1_000;
            println!("{:>10}.{:03} ms {:>6}  {}", ms / 1000, ms % 1000, self.counts.steps, what());
        }
    }
}

fn in_words(event: &StorageEvent) -> String {
    match event {
        StorageEvent::Read { ticket, result: Ok(read) } => format!("Read {ticket}: {} batches", read.len()),
        StorageEvent::FoundBatch { ticket, result: Ok(found) } => {
            format!("FoundBatch {ticket}: {:?}", found.as_ref().map(|b| content::describe(b)))
        }
        other => format!("{other:?}"),
    }
}
