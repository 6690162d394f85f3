//! Drives one log over its lives: virtual time, the disk, the crashes, and what the log says.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use highwater_shards::ids::{Offset, PartitionId, PartitionIndex, TopicId};
use highwater_shards::log::Slot;
use highwater_shards::log::disk::{DiskEvent, DiskOp, FileName, OpNo};
use highwater_shards::log::storage::{Start, Storage, StorageConfig, StorageEvent, StorageReport};
use highwater_shards::mail::LogConfig;
use highwater_shards::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::Outcome;
use super::checkers::compaction::Rules;
use super::checkers::{bounds, compaction, content, recovery, retention};
use super::config::{Config, WALL_MS};
use super::counts::Counts;
use super::disks;
use super::history::{Batch, History, State};
use super::reads::Reading;
use super::saboteur::{Fate, Sabotage, fate};
use super::shard::{Digests, Heard, View, check_rebuilt};
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
    /// Of each producer: epoch and next sequence number.
    pub producers: BTreeMap<u64, (u16, u32)>,
    /// Where a sequential reader goes on.
    pub cursor: u64,
    /// All batches of its life, if one must know.
    pub ever: Vec<Rc<Batch>>,
}

impl Partition {
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
                settings,
                configured: None,
                rules: Rules::default(),
                changes: 0,
                removed: Vec::new(),
                is_start_behind: false,
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

    fn live(&mut self) -> Verdict {
        for life in 0..self.config.lives {
            // Short lives end during recovery, long ones by a stop or with their last action.
            let steps = match self.dice.crash.below(6) {
                0 => 1 + self.dice.crash.below(60),
                1 | 2 => 1 + self.dice.crash.below(600),
                _ => 1 + self.dice.crash.below(4000),
            };
            let crash = self.draw_crash();
            self.crash_at = Some((self.counts.steps + steps, crash));
            self.start(life)?;
            self.recover()?;
            for _ in 0..self.config.actions {
                if !self.is_alive() {
                    break;
                }
                self.act()?;
            }
            if self.is_alive() && self.dice.crash.chance(self.config.stops) {
                self.heal();
                self.stop()?;
            }
            if self.is_alive() {
                let crash = self.draw_crash();
                self.die(crash);
            }
        }
        self.finish()
    }

    /// No more faults: everything is done in bounded time, a stop ends, and a start from it finds everything.
    fn finish(&mut self) -> Verdict {
        self.crash_at = None;
        self.start(self.config.lives)?;
        self.recover()?;
        for _ in 0..20 {
            self.revive()?;
            self.act()?;
        }
        self.heal();
        self.config.wrong_reads = 0;
        self.revive()?;
        self.idle()?;
        self.revive()?;
        self.take_one_each()?;
        self.revive()?;
        if self.config.fills {
            self.fill()?;
            self.revive()?;
        }
        if self.config.rots {
            return self.rot();
        }
        self.stop()?;
        let crash = self.draw_crash();
        self.die(crash);
        self.start(self.config.lives)?;
        self.recover()
    }

    /// Starts the log again if a fault of the disk ended it.
    fn revive(&mut self) -> Verdict {
        if self.is_alive() {
            return Ok(());
        }
        self.start(self.config.lives)?;
        self.recover()
    }

    /// Time without work: everything is flushed, moved and released that need not wait for more.
    fn idle(&mut self) -> Verdict {
        for p in &mut self.partitions {
            p.high_watermark = p.high_watermark.max(p.history.flushed_end());
        }
        self.pump(self.now + Duration::from_secs(20))?;
        if !self.is_alive() {
            return Ok(());
        }
        let pending = self.partitions.iter().flat_map(|p| p.history.markers()).max();
        if pending.is_some_and(|m| m > self.flushed) {
            return Err(broken(LIVENESS, format!("{pending:?} is not flushed, only {}", self.flushed)));
        }
        if let Some(reading) = self.readings.values().next() {
            return Err(broken(LIVENESS, format!("a read is not answered: {reading:?}")));
        }
        let storage = self.storage.as_ref().expect("alive");
        let live_bytes = storage.journal_stats().live_bytes;
        bounds::check_idle(&self.storage_config, &storage.stats(), self.config.partitions, live_bytes)?;
        if storage.over_backlog() {
            return Err(broken(LIVENESS, "it is over its backlog with nothing to do"));
        }
        Ok(())
    }

    pub fn is_alive(&self) -> bool {
        self.storage.is_some()
    }

    pub fn wall_ms(&self) -> i64 {
        WALL_MS + i64::try_from(self.now.as_nanos() / 1_000_000).expect("a run is short")
    }

    fn draw_crash(&mut self) -> Crash {
        if self.dice.crash.chance(self.config.power) { Crash::Power } else { Crash::Kill }
    }

    fn start(&mut self, life: u32) -> Verdict {
        self.counts.lives += 1;
        self.storage_config = self.config.storage(life);
        // A power loss may bring back files that were removed.
        let bound = self.storage_config.journal_bytes_max.max(self.disk.usage().0);
        self.journal_bytes_max = self.journal_bytes_max.max(bound);
        if self.dice.crash.chance(self.config.lost_checkpoints) {
            let how = if self.dice.crash.flip() { Lost::Missing } else { Lost::Damaged };
            self.lost_checkpoint.get_or_insert(how);
        }
        self.mark(&format!("life {life} begins, checkpoint lost: {:?}", self.lost_checkpoint));
        for p in &mut self.partitions {
            p.heard = Heard::default();
        }
        self.slots_used.clear();
        self.report = None;
        self.segment_reads = 0;
        self.is_checkpoint_read = false;
        self.is_over_debt = false;
        self.phase = Phase::Recovering;
        self.storage = Some(Storage::new(self.storage_config.clone()));
        self.drain()
    }

    /// Waits for the end of recovery and compares what it left.
    fn recover(&mut self) -> Verdict {
        let began = self.now;
        while self.is_alive() && self.report.is_none() {
            if self.now.since(began) > PATIENCE || !self.pump_once(began + PATIENCE)? {
                return Err(broken(LIVENESS, "recovery does not end"));
            }
        }
        let Some(report) = self.report.filter(|_| self.is_alive()) else {
            self.counts.crashes_in_recovery += 1;
            return Ok(());
        };
        match report.start {
            Start::New => {}
            Start::Clean => self.counts.clean_starts += 1,
            Start::Checkpoint => self.counts.checkpoint_starts += 1,
            Start::Rebuilt => self.counts.rebuilds += 1,
        }
        self.phase = Phase::Comparing;
        self.is_known &= match report.start {
            Start::New => !self.was_rebuilt,
            Start::Clean | Start::Checkpoint => true,
            Start::Rebuilt => false,
        };
        if self.rotten {
            return self.compare_rotten();
        }
        if report.damaged_logs > 0 {
            return Err(broken(recovery::NAME, format!("damage is reported: {report:?}")));
        }
        if self.was_stopped && self.lost_checkpoint.is_none() {
            let is_clean = report.start == Start::Clean || report.start == Start::New;
            if !is_clean || report.entries > 0 {
                return Err(broken(recovery::NAME, format!("after a stop: {report:?}")));
            }
        }
        if report.start == Start::Clean && self.segment_reads > 0 {
            return Err(broken(recovery::NAME, "segments were read at a clean start"));
        }
        self.was_stopped = false;
        let storage = self.storage.as_ref().expect("alive");
        let before = self.cuts.as_deref();
        let cuts =
            recovery::cuts(&self.partitions, storage, report.start, self.is_known, self.flushed, before)?;
        self.cuts = Some(cuts);
        self.compare(report.start)
    }

    /// Reads everything and finds out where the journal was cut.
    fn compare(&mut self, start: Start) -> Verdict {
        let mut cuts = self.cuts.clone().expect("found before");
        let mut why = String::new();
        for i in 0..self.partitions.len() {
            let Some(slot) = self.storage.as_ref().and_then(|s| s.slot(self.partitions[i].id)) else {
                continue;
            };
            let starts: Vec<u64> =
                cuts.iter().map(|&cut| self.partitions[i].history.outline(cut, false).start).collect();
            let least = starts.iter().copied().min().unwrap_or(0);
            let storage = self.storage.as_ref().expect("alive");
            let from = storage.start(slot).map_or(0, |s| s.0).max(least);
            let end = storage.end(slot).map_or(0, |s| s.0);
            let Some(read) = self.read_all(slot, from, end)? else { return Ok(()) };
            self.counts.batches_verified += read.len() as u64;
            let wall_ms = self.wall_ms();
            let p = &mut self.partitions[i];
            cuts.retain(|&cut| {
                let state = p.history.state_at(cut, false);
                match compare_one(p, state, from, end, &read, wall_ms) {
                    Ok(()) => true,
                    Err(what) => {
                        why = format!("{}, cut at {cut}: {what}", p.id);
                        false
                    }
                }
            });
            if cuts.is_empty() {
                return Err(broken(recovery::NAME, why));
            }
        }
        // Where several would do, the first: none of the later entries has left a trace.
        let cut = *cuts.first().expect("checked");
        self.settle(cut, start)
    }

    fn settle(&mut self, cut: u64, start: Start) -> Verdict {
        self.cuts = None;
        self.flushed = self.flushed.max(cut);
        self.last_marker = self.flushed;
        let storage = self.storage.as_mut().expect("alive");
        for p in &mut self.partitions {
            p.slot = storage.slot(p.id);
            let mut state = p.history.state_at(cut, p.slot.is_none());
            self.slots_used.extend(p.slot);
            state.known = p.heard.known;
            if let Some(slot) = p.slot {
                let found = storage.start(slot).expect("a log has a start").0;
                p.is_start_behind = found < state.start;
                state.begin_at(found);
            } else {
                state = State { drops: state.drops, ..State::default() };
            }
            p.changes += 1;
            p.high_watermark = p.high_watermark.min(state.end);
            p.history.settle(state);
            p.configured = None;
        }
        self.is_known = true;
        self.phase = Phase::Running;
        if start == Start::Rebuilt {
            self.was_rebuilt = true;
            self.partitions.iter().try_for_each(check_rebuilt)?;
        }
        for i in 0..self.partitions.len() {
            self.configure(i);
        }
        self.drain()
    }

    /// After a bit flipped: what is served was appended once, to this log, and came back whole.
    fn compare_rotten(&mut self) -> Verdict {
        for i in 0..self.partitions.len() {
            let Some(slot) = self.storage.as_ref().and_then(|s| s.slot(self.partitions[i].id)) else {
                continue;
            };
            let storage = self.storage.as_ref().expect("alive");
            let (start, end) = (storage.start(slot), storage.end(slot));
            let (Some(Offset(mut from)), Some(Offset(end))) = (start, end) else { continue };
            while from < end && self.is_alive() {
                let Some(read) = self.read_once(slot, from, end)? else { break };
                let p = &self.partitions[i];
                for bytes in &read {
                    check_rotten(p, bytes)?;
                    from = super::batches::parse(bytes).expect("checked").end;
                }
                if read.is_empty() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// One bit of what is durable flips, and the log starts again.
    fn rot(&mut self) -> Verdict {
        let crash = self.draw_crash();
        self.die(crash);
        let what = match self.dice.fault.below(4) {
            0 => format!("the journal: {}", self.disk.rot()),
            1 => format!("the checkpoint: {}", self.disk.rot_checkpoint()),
            2 => format!("{:?}", self.disk.rot_file(|f| matches!(f, FileName::Index(_)))),
            _ => format!("{:?}", self.disk.rot_file(|f| matches!(f, FileName::Segment(_)))),
        };
        self.counts.rots += 1;
        self.mark(&format!("a bit flips in {what}"));
        self.rotten = true;
        self.may_be_fatal = true;
        self.may_fail_reads = true;
        self.start(self.config.lives)?;
        self.recover()
    }

    fn stop(&mut self) -> Verdict {
        self.mark("stop");
        self.phase = Phase::Stopping;
        self.counts.stops += 1;
        let now = self.now;
        self.storage.as_mut().expect("alive").stop(now);
        self.drain()?;
        let began = self.now;
        while self.is_alive() && self.phase == Phase::Stopping {
            if self.now.since(began) > PATIENCE || !self.pump_once(began + PATIENCE)? {
                return Err(broken(LIVENESS, "a stop does not end"));
            }
        }
        if self.is_alive() {
            // A drop that a full journal could not take is lost with the stop.
            let upto = if self.was_full { self.last_marker } else { u64::MAX };
            self.partitions.iter_mut().for_each(|p| p.history.flushed(upto));
            self.flushed = self.flushed.max(self.last_marker);
            // With no room on the disk a stop leaves to the journal what is not moved.
            self.was_stopped = !self.was_full;
        }
        Ok(())
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
            if let Some(op) = storage.poll_op(self.now, &view) {
                self.submit(op)?;
                continue;
            }
            let Some(event) = storage.poll_event() else { return self.check() };
            self.on_event(event)?;
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

fn compare_one(
    p: &mut Partition,
    state: State,
    from: u64,
    end: u64,
    read: &[Bytes],
    wall_ms: i64,
) -> Result<(), String> {
    if state.end != end {
        return Err(format!("it ends at {end}, not {}", state.end));
    }
    let from = from.max(state.start);
    let skip = read.iter().take_while(|b| super::batches::parse(b).is_ok_and(|h| h.end <= from)).count();
    let read = &read[skip..];
    if p.rules.compacted {
        let now = std::mem::replace(&mut p.history.now, state);
        let result = compaction::check(p, from, end, read, true, wall_ms);
        p.history.now = now;
        return result;
    }
    let first = state.find(from);
    content::same(&state, first, read)?;
    let expected = state.batches.len() - first;
    if read.len() < expected {
        Err(format!("{} batches of {expected} are there", read.len()))
    } else {
        Ok(())
    }
}

fn check_rotten(p: &Partition, bytes: &Bytes) -> Verdict {
    let header = super::batches::parse(bytes)
        .map_err(|what| broken(content::NAME, format!("{}: served after a bit flipped: {what}", p.id)))?;
    let mut same = p.ever.iter().filter(|b| b.base == header.base && b.end == header.end);
    let is_there = if p.rules.compacted { same.next().is_some() } else { same.any(|b| b.bytes == *bytes) };
    if is_there {
        return Ok(());
    }
    let what = content::describe(bytes);
    Err(broken(
        content::NAME,
        format!("{}: served after a bit flipped: {what}, which was never appended", p.id),
    ))
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
