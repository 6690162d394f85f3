//! The log of one shard: all its partitions' batches, from the journal to their segments and back to readers.
//!
//! Floor 1, pure; owned by its shard. It reads no clock and touches no file; it asks the disk for operations and is told
//! what became of them. It never says that something is durable before the journal did, never moves what is not, and
//! never lets go of a journal file that holds what the segments may lose.
//!
//! The way of a batch: appended to the journal and kept in memory (`log.rs`, `memory.rs`); flushed; *moved*, that is
//! put into its log's newest segment (`moves.rs`, `work.rs`); free to leave memory, and read from the segment then
//! (`reads.rs`); made durable there by a *checkpoint* (`checkpoints.rs`), after which the journal forgets it.
//!
//! ```text
//! checkpointed <= moved <= flushed <= appended      for each log, in places of the journal
//! replay point <= the first entry of any log that is not checkpointed
//! segment and folder synced -> log encoded -> `noted` flushed -> checkpoint replaced -> journal files released
//! note flushed -> files cut or removed -> later batches put
//! ```

mod api;
mod checkpoints;
mod compaction;
mod log;
mod memory;
mod moves;
mod reads;
mod rebuild;
mod recovery;
mod retention;
mod running;
mod settle;
#[cfg(test)]
mod tests;
mod work;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

pub use super::reader::ReadFault;
pub use api::{Found, FoundBatch, Noted, Owned, Start, StorageConfig, StorageEvent, StorageReport, Wanted};

use super::FatalReason;
use super::disk::{DiskEvent, DiskOp, FileName, OpNo, SegmentName};
use super::journal::{AppendRefused, Journal, Marker, OPS_FROM, Urgency};
use super::reader::Reader;
use super::{Lsn, Note, Slot};
use crate::batch::BatchHeader;
use crate::ids::{LeaderEpoch, Map, Offset, PartitionId};
use crate::mail::LogConfig;
use crate::stats::{JournalStats, StorageStats};
use crate::time::Instant;

use checkpoints::Checkpoints;
use compaction::Compactions;
use log::{Log, TailBatch};
use memory::Memory;
use reads::Reads;
use recovery::Recovery;
use work::Work;

/// See the module's documentation.
#[derive(Debug)]
pub struct Storage {
    config: StorageConfig,
    phase: Phase,
    now: Instant,
    /// By slot. One that was dropped stays until its folder is removed.
    logs: Vec<Option<Box<Log>>>,
    /// Without those that were dropped.
    by_id: Map<PartitionId, Slot>,
    /// There once the checkpoint was read.
    journal: Option<Box<Journal>>,
    memory: Memory,
    /// Of all logs.
    unmoved_bytes: u64,
    /// An append was refused for them.
    is_pressed: bool,
    /// Every chunk up to this is durable.
    flushed: u64,
    /// Logs that have something to be moved and nothing under way, by their first such entry.
    waiting: BTreeSet<(Lsn, Slot)>,
    /// The other logs with something to be moved.
    busy: BTreeSet<(Lsn, Slot)>,
    /// Logs that are worth a move once the chunk is durable.
    ripe: VecDeque<(u64, Slot)>,
    /// Logs whose folders are still to be tidied.
    untidy: VecDeque<Slot>,
    /// Whether the life before ended in order, so that folders are as they were left.
    is_clean_start: bool,
    /// Logs whose files can only be judged once the journal was replayed.
    parked: Vec<Slot>,
    /// Partitions whose folder is being removed, each with the log that waits for it.
    removing: BTreeMap<PartitionId, Removing>,
    /// Partitions that were dropped, until the journal knows nothing of it any more.
    tombs: BTreeMap<PartitionId, Lsn>,
    /// Logs that were dropped while the journal took no note.
    undropped: VecDeque<Slot>,
    /// Pieces of work that the disk has.
    works: usize,
    under_way: Map<OpNo, UnderWay>,
    last_op: u64,
    ops: VecDeque<DiskOp>,
    events: VecDeque<StorageEvent>,
    checkpoints: Checkpoints,
    compactions: Compactions,
    /// First segments that expire, by when; ms since the epoch.
    expiries: BTreeSet<(i64, Slot)>,
    /// Logs that may be larger than they should.
    oversized: VecDeque<Slot>,
    reader: Reader,
    reads: Reads,
    /// After an operation that failed for lack of room: nothing more is put until then.
    no_space_until: Option<Instant>,
    refused_as_full: bool,
    stop: Stop,
    counts: StorageStats,
}

#[derive(Debug)]
enum Phase {
    /// Finding out what there is.
    Recovering(Box<Recovery>),
    Running,
    Stopped,
    Failed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stop {
    No,
    /// The journal is to be told of logs that were dropped while it took no note.
    Dropping,
    /// The journal is being flushed.
    Flushing,
    /// The rest is being moved and checkpointed.
    Settling,
}

/// A folder that is to be removed.
#[derive(Default, Debug)]
struct Removing {
    /// Dropped logs of the partition, oldest first, which is removed first; `None`: one of an earlier life.
    logs: VecDeque<Option<Slot>>,
    /// The log that took their place.
    waits: Option<Slot>,
}

/// What an operation that the disk has is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum UnderWay {
    /// Data of a log's work.
    Put(Slot),
    /// An index; losing it costs nothing but time.
    PutIndex(Slot),
    List(Slot),
    Read(Slot),
    Amend(Slot, FileName),
    RemoveFolder(Slot),
    /// That it is gone is made to last.
    SyncGone(Slot),
    /// A folder that no log has.
    RemoveGhost(PartitionId),
    SyncGhost(PartitionId),
    /// A file that no log has.
    RemoveOld(SegmentName),
    SyncFile(Slot, FileName),
    SyncFolder(Slot),
    Replace,
    Recovery,
}

/// How long nothing is put after the disk had no room.
const NO_SPACE_RETRY: Duration = Duration::from_secs(1);
/// The longest that producers are asked to wait.
const THROTTLE_MAX: Duration = Duration::from_secs(1);

impl Storage {
    /// A log that begins with recovery: the first operation reads the checkpoint.
    pub fn new(config: StorageConfig) -> Self {
        assert!(config.unmoved_bytes_soft <= config.unmoved_bytes_max, "the soft bound comes first");
        assert!(
            config.moves_in_flight_max > 0 && config.syncs_in_flight_max > 0,
            "a bound of 0 lets nothing pass"
        );
        Self {
            phase: Phase::Recovering(Box::default()),
            now: Instant::ZERO,
            logs: Vec::new(),
            by_id: Map::default(),
            journal: None,
            memory: Memory::default(),
            unmoved_bytes: 0,
            is_pressed: false,
            flushed: 0,
            waiting: BTreeSet::new(),
            busy: BTreeSet::new(),
            ripe: VecDeque::new(),
            untidy: VecDeque::new(),
            is_clean_start: false,
            parked: Vec::new(),
            removing: BTreeMap::new(),
            tombs: BTreeMap::new(),
            undropped: VecDeque::new(),
            works: 0,
            under_way: Map::default(),
            last_op: 0,
            ops: VecDeque::new(),
            events: VecDeque::new(),
            checkpoints: Checkpoints::default(),
            compactions: Compactions::new(config.compaction_bytes_per_second),
            expiries: BTreeSet::new(),
            oversized: VecDeque::new(),
            reader: Reader::new(config.reader),
            reads: Reads::default(),
            no_space_until: None,
            refused_as_full: false,
            stop: Stop::No,
            counts: StorageStats::default(),
            config,
        }
    }

    pub fn slot(&self, partition: PartitionId) -> Option<Slot> {
        self.by_id.get(&partition).copied()
    }

    /// The log of the partition; an empty one is made if there is none.
    pub fn open(&mut self, partition: PartitionId) -> Slot {
        match self.slot(partition) {
            Some(slot) => slot,
            None => {
                let last = self.journal.as_ref().map_or(Lsn::ZERO, |journal| journal.last_lsn());
                self.add(Log::new(partition, last))
            }
        }
    }

    fn add(&mut self, log: Log) -> Slot {
        let slot = Slot(u32::try_from(self.logs.len()).expect("fewer than 2^32 logs in one life"));
        self.by_id.insert(log.partition, slot);
        self.logs.push(Some(Box::new(log)));
        slot
    }

    pub fn partition(&self, slot: Slot) -> Option<PartitionId> {
        self.live(slot).map(|log| log.partition)
    }

    /// All logs, in the order in which they were opened.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        (0..).map(Slot).take(self.logs.len()).filter(|&slot| self.live(slot).is_some())
    }

    /// A log that was not dropped.
    fn live(&self, slot: Slot) -> Option<&Log> {
        let log = self.logs.get(slot.0 as usize)?.as_deref();
        log.filter(|log| log.dropped.is_none() && !log.is_hidden)
    }

    fn log(&self, slot: Slot) -> Option<&Log> {
        self.logs.get(slot.0 as usize)?.as_deref()
    }

    fn log_mut(&mut self, slot: Slot) -> Option<&mut Log> {
        self.logs.get_mut(slot.0 as usize)?.as_deref_mut()
    }

    pub fn configure(&mut self, slot: Slot, config: &LogConfig) {
        if self.live(slot).is_none() {
            return;
        }
        let log = self.log_mut(slot).expect("it was just found");
        let is_other = log.config != *config;
        log.config = *config;
        if is_other {
            self.on_compaction_configured(slot);
            self.reconsider(slot);
        }
        self.note_expiry(slot);
        self.oversized.push_back(slot);
    }

    /// Appends one whole batch that was validated, with `base` and `epoch` put into it. `base` is the log's end.
    ///
    /// # Errors
    /// Nothing was appended; see [`AppendRefused`].
    #[expect(clippy::too_many_arguments, reason = "one append is one call")]
    pub fn append(
        &mut self,
        now: Instant,
        slot: Slot,
        base: Offset,
        epoch: LeaderEpoch,
        header: &BatchHeader,
        batch: &[u8],
        urgency: Urgency,
    ) -> Result<Marker, AppendRefused> {
        self.now = now;
        let len = batch.len() as u64;
        let log = self.live(slot).ok_or(AppendRefused::NotReady)?;
        let partition = log.partition;
        // A log of the same partition that was dropped before is gone in the journal first.
        self.write_drops()?;
        self.check_debt(len)?;
        let journal = self.journal.as_mut().ok_or(AppendRefused::NotReady)?;
        let placed = journal.append(now, partition, base, epoch, batch, urgency)?;
        let batch = TailBatch {
            base,
            next: base.plus(header.offsets()),
            max_timestamp_ms: header.max_timestamp_ms,
            timestamp_ms: header.max_timestamp_ms,
            lsn: placed.lsn,
            bytes: placed.bytes,
        };
        self.keep(slot, batch);
        Ok(placed.marker)
    }

    /// Takes a batch that is in the journal into the log and into memory.
    fn keep(&mut self, slot: Slot, batch: TailBatch) {
        let (lsn, len) = (batch.lsn, batch.bytes.len());
        let move_bytes = self.config.move_bytes;
        let log = self.log_mut(slot).expect("the caller found it");
        log.push(batch);
        let is_ripe = log.is_worth_a_move(move_bytes) && !log.is_ripe;
        log.is_ripe |= is_ripe;
        let is_new = log.key.is_none();
        let is_first = log.segments.is_empty() && log.expiry_ms.is_none() && log.config.delete;
        if is_ripe {
            self.ripe.push_back((lsn.chunk, slot));
        }
        if is_new {
            self.rekey(slot);
        }
        if is_first {
            self.note_expiry(slot);
        }
        self.memory.push(slot, lsn, len);
        self.unmoved_bytes += len as u64;
        self.evict();
    }

    /// Refuses what would take the bytes that only the journal holds over their bounds.
    fn check_debt(&mut self, len: u64) -> Result<(), AppendRefused> {
        let journal = self.journal.as_ref().ok_or(AppendRefused::NotReady)?;
        let has_room = self.unmoved_bytes == 0 || self.unmoved_bytes + len <= self.config.unmoved_bytes_max;
        self.is_pressed = !has_room;
        if has_room && journal.live_bytes() < self.config.journal_bytes_max && !self.checkpoints.is_needed() {
            return Ok(());
        }
        if self.no_space_until.is_some() {
            self.refused_as_full = true;
            return Err(AppendRefused::Full);
        }
        Err(AppendRefused::Overloaded)
    }

    /// Lets the log end at `end`, which is where a batch ends; what is behind is gone.
    ///
    /// # Errors
    /// Nothing has changed; see [`AppendRefused`].
    pub fn truncate(&mut self, now: Instant, slot: Slot, end: Offset) -> Result<Marker, AppendRefused> {
        self.note(now, slot, Note::Truncated { end })
    }

    /// Lets the log start at `start`; the records before are gone. If it ends before that, it is empty from then on
    /// and goes on at `start`.
    ///
    /// # Errors
    /// Nothing has changed; see [`AppendRefused`].
    pub fn advance_start(
        &mut self,
        now: Instant,
        slot: Slot,
        start: Offset,
    ) -> Result<Marker, AppendRefused> {
        self.note(now, slot, Note::Started { start })
    }

    /// The log is gone, with its files. The slot finds nothing from here on, and the partition can be opened anew.
    /// While the journal has no room the note is kept until it has.
    ///
    /// # Errors
    /// Only when the shard is stopping, failed, or not recovered: then the log is as it was.
    pub fn drop_log(&mut self, now: Instant, slot: Slot) -> Result<(), AppendRefused> {
        if !self.is_running() || self.stop != Stop::No || self.live(slot).is_none() {
            return Err(AppendRefused::NotReady);
        }
        match self.note(now, slot, Note::Dropped) {
            Ok(_) => {}
            Err(_) => {
                // Nothing of it is read or appended to any more, but to the journal it is not gone yet.
                let log = self.log_mut(slot).expect("it is live");
                log.is_hidden = true;
                let partition = log.partition;
                self.by_id.remove(&partition);
                self.undropped.push_back(slot);
            }
        }
        Ok(())
    }

    fn note(&mut self, now: Instant, slot: Slot, note: Note) -> Result<Marker, AppendRefused> {
        self.now = now;
        self.write_drops()?;
        let log = self.live(slot).ok_or(AppendRefused::NotReady)?;
        let partition = log.partition;
        let journal = self.journal.as_mut().ok_or(AppendRefused::NotReady)?;
        let noted = journal.note(now, partition, note, Urgency::Sync)?;
        self.take_note(slot, noted.lsn, note);
        Ok(noted.marker)
    }

    /// Takes a note that is in the journal into the log.
    fn take_note(&mut self, slot: Slot, lsn: Lsn, note: Note) {
        let log = self.log_mut(slot).expect("the caller found it");
        let partition = log.partition;
        let gone = log.note(lsn, note);
        log.is_ripe = true;
        if note == Note::Dropped && matches!(log.work.as_deref(), Some(Work::Wait)) {
            log.work = None;
        }
        let was_checkpointed = log.checkpointed;
        self.unmoved_bytes -= gone;
        self.ripe.push_back((lsn.chunk, slot));
        self.rekey(slot);
        if note == Note::Dropped {
            if self.by_id.get(&partition) == Some(&slot) {
                self.by_id.remove(&partition);
            }
            self.tombs.insert(partition, lsn);
            self.removing.entry(partition).or_default().logs.push_back(Some(slot));
            self.reader.forget_log(partition);
            self.checkpoints.on_dropped(partition, was_checkpointed);
            self.forget_expiry(slot);
            self.compactions.on_dropped(slot);
        }
        self.evict();
    }

    pub fn start(&self, slot: Slot) -> Option<Offset> {
        self.live(slot).map(|log| log.start)
    }

    pub fn end(&self, slot: Slot) -> Option<Offset> {
        self.live(slot).map(|log| log.end)
    }

    /// What is before it survives a crash. `start <= flushed_end <= end`.
    pub fn flushed_end(&self, slot: Slot) -> Option<Offset> {
        let log = self.live(slot)?;
        let flushed = log.tail.partition_point(|batch| batch.lsn.chunk <= self.flushed);
        Some(log.tail.get(flushed).map_or(log.end, |batch| batch.base))
    }

    /// How long producers should wait with their next request.
    pub fn throttle(&self) -> Duration {
        let live = self.journal.as_ref().map_or(0, |journal| journal.live_bytes());
        let share = |bytes: u64, soft: u64, max: u64| {
            if bytes <= soft { 0.0 } else { (bytes - soft) as f64 / (max - soft).max(1) as f64 }
        };
        let (soft, max) = (self.config.unmoved_bytes_soft, self.config.unmoved_bytes_max);
        // From the soft bound on moves hurry, and what can wait does: only when that is not enough, producers wait too.
        let unmoved = share(self.unmoved_bytes, soft + (max - soft) / 4, max);
        let journal = share(live, self.config.journal_bytes_max / 2, self.config.journal_bytes_max);
        THROTTLE_MAX.mul_f64(unmoved.max(journal).min(1.0))
    }

    /// Whether what can wait may be appended: nobody who cannot has to wait for it, neither for the journal nor for what
    /// is to be moved out of it.
    pub fn has_slack(&self) -> bool {
        let Some(journal) = &self.journal else { return false };
        let unflushed_max = self.config.journal.backlog_bytes_max as u64 / 8;
        !self.is_pressed
            && self.unmoved_bytes <= self.config.unmoved_bytes_soft
            && journal.live_bytes() <= self.config.journal_bytes_max / 8 * 3
            && journal.stats().unflushed_bytes <= unflushed_max
    }

    /// Whether answers to lazy appends should wait for [`StorageEvent::BacklogCleared`].
    pub fn over_backlog(&self) -> bool {
        self.journal.as_ref().is_some_and(|journal| journal.over_backlog())
    }

    pub fn journal_stats(&self) -> JournalStats {
        let Some(journal) = &self.journal else { return JournalStats::default() };
        JournalStats { tail_bytes: self.memory.bytes(), live_bytes: journal.live_bytes(), ..journal.stats() }
    }

    pub fn stats(&self) -> StorageStats {
        let reader = self.reader.stats();
        StorageStats {
            unmoved_bytes: self.unmoved_bytes,
            read_ahead_hits: reader.ahead_hits,
            urgent_reads: reader.urgent_reads,
            damaged_batches: reader.damaged_batches,
            ..self.counts
        }
    }

    fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }

    /// Nothing is done any more, and late answers of the disk change nothing.
    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Stopped | Phase::Failed)
    }

    fn is_recovering(&self) -> bool {
        matches!(self.phase, Phase::Recovering(_))
    }

    fn wall_ms(&self) -> i64 {
        let ms = i64::try_from(self.now.as_nanos() / 1_000_000).unwrap_or(i64::MAX);
        self.config.wall_ms_at_zero.saturating_add(ms)
    }

    fn next_op(&mut self) -> OpNo {
        self.last_op += 1;
        assert!(self.last_op < OPS_FROM.0, "the numbers above are the journal's");
        OpNo(self.last_op)
    }

    fn ask(&mut self, what: UnderWay, op: impl FnOnce(OpNo) -> DiskOp) {
        let number = self.next_op();
        self.under_way.insert(number, what);
        self.ops.push_back(op(number));
    }

    fn fail(&mut self, reason: FatalReason) {
        if matches!(self.phase, Phase::Failed) {
            return;
        }
        tracing::error!(%reason, "the log failed");
        self.phase = Phase::Failed;
        self.ops.clear();
        self.events.push_back(StorageEvent::Fatal(reason));
    }

    /// Takes what became of an operation.
    pub fn handle(&mut self, now: Instant, event: DiskEvent) {
        self.now = now;
        if self.is_over() {
            return;
        }
        if !matches!(event, DiskEvent::Read { .. }) {
            self.reader.on_written(now);
        }
        if event.op() >= OPS_FROM {
            if let Some(journal) = &mut self.journal {
                journal.handle(now, event);
            }
        } else if let Some(what) = self.under_way.remove(&event.op()) {
            self.on_done(what, event);
        } else if !self.compactions.handle(&event) {
            self.reader.handle(now, &event);
        }
        self.go_on();
    }

    /// Takes note that the instant of `poll_timeout` came; what follows from it comes out of `poll_op`.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        if self.is_over() {
            return;
        }
        if let Some(journal) = &mut self.journal {
            journal.handle_timeout(now);
        }
        self.go_on();
    }

    /// What happened, in order.
    pub fn poll_event(&mut self) -> Option<StorageEvent> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        if self.is_over() {
            return None;
        }
        self.pump();
        self.events.pop_front()
    }
}
