//! What an earlier life left: the checkpoint, then the journal's entries behind it. Floor 1.
//!
//! From the checkpoint each log is restored as its segments hold it; no segment is read. Of the journal's entries a log
//! takes those behind what its segments hold, which must fit without a gap.
//!
//! Where the checkpoint is missing or damaged, logs are rebuilt from their segments (`rebuild.rs`). What these hold may
//! be older or newer than the journal's beginning, and of what no checkpoint covered some may be lost. But the journal
//! has everything from its beginning on. So a log is cut where its first entry in the journal belongs, and takes all
//! from there.
//!
//! What a log misses may be gone by what follows, when it was truncated, deleted or dropped later on. So whether that is
//! damage is judged at the journal's end.

use std::collections::{BTreeMap, BTreeSet};
use std::vec;

use bytes::Bytes;

use super::log::{IndexState, Log, TailBatch, Tidy};
use super::rebuild::Rebuild;
use super::{Phase, Start, Storage, StorageEvent, StorageReport, UnderWay};
use crate::batch::BatchHeader;
use crate::ids::{Offset, PartitionId};
use crate::log::checkpoint::{BadCheckpoint, Checkpoint, LogState, Resume};
use crate::log::disk::{DiskEvent, DiskOp, FileName};
use crate::log::journal::{Journal, JournalStart, OnDamage, RecoveryReport};
use crate::log::{FatalReason, Lsn, Note, Slot};

/// Logs that are restored in one turn.
const LOGS_PER_TURN: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Recovery {
    stage: Stage,
    start: Start,
    /// By slot: what of each log was noted up to where.
    noted: Vec<Lsn>,
    /// Rebuilt logs of which the journal had a batch.
    met: BTreeSet<Slot>,
    /// Partitions that are gone as the checkpoint says, and of which the journal had no note of that so far.
    told: BTreeSet<PartitionId>,
    /// Where logs miss batches, ascending.
    holes: BTreeMap<Slot, Vec<Hole>>,
    entries: u64,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Begin,
    Loading,
    Restoring(vec::IntoIter<LogState>, JournalStart),
    Rebuilding(Box<Rebuild>),
    Journal,
}

/// What a log should hold from `end` to `next` is not there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hole {
    pub end: Offset,
    pub next: Offset,
}

impl Recovery {
    pub fn hole(&mut self, slot: Slot, hole: Hole) {
        self.holes.entry(slot).or_default().push(hole);
    }

    /// A log lost its end: what was missing there is missing no more.
    fn mend(&mut self, slot: Slot, note: Note) {
        let Some(holes) = self.holes.get_mut(&slot) else { return };
        match note {
            Note::Truncated { end } => {
                holes.retain(|hole| hole.end < end);
                holes.iter_mut().for_each(|hole| hole.next = hole.next.min(end));
            }
            Note::Dropped => holes.clear(),
            Note::Started { .. } => {}
        }
    }

    pub fn may_move(&self) -> bool {
        matches!(self.stage, Stage::Journal)
    }

    /// Whether logs were put together from their segments, and may still turn out to be damaged.
    pub fn is_rebuilding(&self) -> bool {
        self.start == Start::Rebuilt
    }
}

impl Storage {
    fn recovery(&mut self) -> Option<&mut Recovery> {
        match &mut self.phase {
            Phase::Recovering(recovery) => Some(recovery),
            _ => None,
        }
    }

    pub(super) fn step_recovery(&mut self) {
        let Some(recovery) = self.recovery() else { return };
        match &mut recovery.stage {
            Stage::Begin => {
                recovery.stage = Stage::Loading;
                self.ask(UnderWay::Recovery, |op| DiskOp::Load { op, file: FileName::Checkpoint });
            }
            Stage::Restoring(logs, start) => {
                let start = *start;
                let some: Vec<LogState> = logs.by_ref().take(LOGS_PER_TURN).collect();
                let is_done = some.len() < LOGS_PER_TURN;
                for state in some {
                    self.restore(state, Vec::new());
                }
                if is_done {
                    self.begin_journal(start);
                } else if self.events.is_empty() {
                    // They were all of partitions that are gone: there is nothing to be told.
                    self.step_recovery();
                }
            }
            Stage::Rebuilding(_) => self.step_rebuild(),
            Stage::Loading | Stage::Journal => {}
        }
    }

    pub(super) fn on_recovery_event(&mut self, event: DiskEvent) {
        let Some(recovery) = self.recovery() else { return };
        match (&mut recovery.stage, event) {
            (Stage::Loading, DiskEvent::Loaded { result: Ok(None), .. }) => self.begin_rebuild(Start::New),
            (Stage::Loading, DiskEvent::Loaded { result: Ok(Some(bytes)), .. }) => self.on_loaded(&bytes),
            (Stage::Loading, DiskEvent::Loaded { result: Err(error), .. }) => {
                self.fail(FatalReason::CheckpointUnread { error });
            }
            (Stage::Rebuilding(_), event) => self.on_rebuild_event(event),
            (stage, event) => unreachable!("{event:?} answers nothing of {stage:?}"),
        }
    }

    fn on_loaded(&mut self, bytes: &[u8]) {
        let shard = self.config.journal.shard;
        let checkpoint = match Checkpoint::parse(bytes) {
            Ok(checkpoint) if checkpoint.shard == shard => checkpoint,
            Ok(checkpoint) => {
                tracing::error!(%shard, found = %checkpoint.shard, "the checkpoint is that of another shard");
                return self.begin_rebuild(Start::Rebuilt);
            }
            Err(BadCheckpoint::Version(version)) => {
                return self.fail(FatalReason::CheckpointFormat { version });
            }
            Err(bad) => {
                tracing::error!(%shard, %bad, "the checkpoint is damaged; rebuilding the logs from their segments");
                return self.begin_rebuild(Start::Rebuilt);
            }
        };
        let Checkpoint { journal, incarnation, resume, logs, .. } = checkpoint;
        let recovery = self.recovery().expect("the checkpoint is read in recovery");
        recovery.start = match resume {
            Resume::Clean { .. } => Start::Clean,
            Resume::From { .. } => Start::Checkpoint,
        };
        let start = JournalStart::At { resume, journal, incarnation };
        recovery.stage = Stage::Restoring(logs.into_iter(), start);
    }

    fn begin_rebuild(&mut self, start: Start) {
        let rebuild = Rebuild::default();
        let recovery = self.recovery().expect("rebuilding is recovering");
        recovery.start = start;
        recovery.stage = Stage::Rebuilding(Box::new(rebuild));
        self.ask(UnderWay::Recovery, |op| DiskOp::ListFolders { op });
    }

    pub(super) fn rebuild(&mut self) -> Option<&mut Rebuild> {
        match &mut self.recovery()?.stage {
            Stage::Rebuilding(rebuild) => Some(rebuild),
            _ => None,
        }
    }

    /// Segments were found, or a journal that goes on from what was deleted: it is not a new log that begins.
    pub(super) fn is_rebuilt(&mut self) {
        self.recovery().expect("rebuilding is recovering").start = Start::Rebuilt;
    }

    pub(super) fn begin_journal(&mut self, start: JournalStart) {
        self.recovery().expect("the journal is begun in recovery").stage = Stage::Journal;
        self.journal = Some(Box::new(Journal::new(self.config.journal, start)));
    }

    /// Makes a log as its segments hold it.
    pub(super) fn restore(&mut self, mut state: LogState, holes: Vec<Hole>) {
        if is_tomb(&state) {
            self.tombs.insert(state.partition, state.moved);
            self.recovery().expect("logs are restored in recovery").told.insert(state.partition);
            return;
        }
        let mut log = Log::new(state.partition, state.moved);
        log.start = state.start;
        log.end = state.end;
        log.moved.start = state.start;
        log.moved.end = state.end;
        log.cleaned = state.cleaned;
        log.segments = std::mem::take(&mut state.segments);
        log.recount();
        let is_rebuilt = self.rebuild().is_some();
        log.is_growing = !is_rebuilt && log.segments.last().is_some_and(|last| last.generation == 0);
        log.index = IndexState::Unknown;
        log.tidy = if is_rebuilt { Tidy::Unknown } else { Tidy::AsLeft };
        if is_rebuilt {
            // Whether the disk has it for good is not known.
            log.unsynced_from = log.segments.first().map(|segment| segment.base);
            log.folder_unsynced = true;
        }
        self.counts.segments += log.segments.len() as u64;
        self.counts.segment_bytes += log.segment_bytes;
        let slot = self.add(log);
        self.note_expiry(slot);
        let recovery = self.recovery().expect("logs are restored in recovery");
        recovery.noted.resize(slot.0 as usize + 1, Lsn::ZERO);
        recovery.noted[slot.0 as usize] = state.noted;
        if !holes.is_empty() {
            recovery.holes.insert(slot, holes);
        }
        self.events.push_back(StorageEvent::Restored { slot, state: Box::new(state) });
    }

    /// The log that an entry of the journal belongs to, if it is not known to be older than what there is.
    fn replayed_log(&mut self, partition: PartitionId, lsn: Lsn) -> Option<Slot> {
        if let Some(slot) = self.slot(partition) {
            let log = self.log(slot).expect("a log that is found by its partition is there");
            return (lsn > log.moved.lsn).then_some(slot);
        }
        let gone = self.tombs.get(&partition).copied().unwrap_or(Lsn::ZERO);
        (lsn > gone).then(|| {
            let slot = self.add(Log::new(partition, gone));
            if let Some(recovery) = self.recovery() {
                recovery.noted.resize(slot.0 as usize + 1, Lsn::ZERO);
            }
            slot
        })
    }

    pub(super) fn replay_batch(
        &mut self,
        partition: PartitionId,
        header: &BatchHeader,
        base: Offset,
        lsn: Lsn,
        bytes: Bytes,
    ) {
        self.note_durable();
        let Some(slot) = self.replayed_log(partition, lsn) else { return };
        let is_first = self.meet(slot, base, lsn);
        let log = self.log(slot).expect("it was just found");
        let (end, next) = (log.end, base.plus(header.offsets()));
        let is_unknown = is_first && log.segments.is_empty() && log.end == Offset::ZERO;
        // What compaction took at a segment's end is no hole: the segment was cut there by an earlier rebuilding.
        let is_gap = is_first && log.segments.last().is_some_and(|last| last.generation > 0);
        let recovery = self.recovery().expect("entries are replayed in recovery");
        let is_noted = recovery.noted.get(slot.0 as usize).is_some_and(|&noted| lsn <= noted);
        if base < end {
            recovery.hole(slot, Hole { end: base, next: end });
            return;
        }
        if base > end && !is_unknown && !is_gap {
            recovery.hole(slot, Hole { end, next: base });
        }
        self.log_mut(slot).expect("it was just found").end = base;
        let recovery = self.recovery().expect("entries are replayed in recovery");
        recovery.entries += 1;
        let timestamp_ms = header.max_timestamp_ms;
        self.keep(slot, TailBatch { base, next, max_timestamp_ms: timestamp_ms, timestamp_ms, lsn, bytes });
        self.events.push_back(StorageEvent::ReplayedBatch { slot, header: *header, base, is_noted });
        if base > end && is_unknown {
            // Of a log without segments nothing is known from before: it starts here.
            self.is_rebuilt();
            let log = self.log_mut(slot).expect("it was just found");
            (log.start, log.moved.start, log.moved.end) = (base, base, base);
            let note = Note::Started { start: base };
            self.events.push_back(StorageEvent::ReplayedNote { slot, note, is_noted });
        }
    }

    /// Cuts a rebuilt log where its first batch in the journal belongs. Whether it was rebuilt, and this is the first.
    fn meet(&mut self, slot: Slot, base: Offset, lsn: Lsn) -> bool {
        let recovery = self.recovery().expect("entries are replayed in recovery");
        // Without a checkpoint and without segments it looks new until the journal shows that it is not.
        if !matches!(recovery.start, Start::Rebuilt | Start::New) || !recovery.met.insert(slot) {
            return false;
        }
        let log = self.log(slot).expect("the caller found it");
        if log.end <= base {
            return true;
        }
        let before = match lsn.entry.checked_sub(1) {
            Some(entry) => Lsn { entry, ..lsn },
            None => Lsn { chunk: lsn.chunk - 1, entry: u32::MAX },
        };
        let before = before.max(log.last);
        tracing::info!(
            partition = %log.partition, end = %log.end, %base,
            "the rebuilt log is cut where the journal goes on"
        );
        let note = Note::Truncated { end: base };
        self.take_note(slot, before, note);
        self.recovery().expect("entries are replayed in recovery").mend(slot, note);
        self.events.push_back(StorageEvent::ReplayedNote { slot, note, is_noted: false });
        true
    }

    pub(super) fn replay_note(&mut self, partition: PartitionId, note: Note, lsn: Lsn) {
        self.note_durable();
        if note == Note::Dropped {
            // It may be the end of an earlier log of the partition.
            let is_news = self.tombs.get(&partition).is_none_or(|&gone| gone <= lsn);
            if is_news {
                self.recovery().expect("entries are replayed in recovery").told.remove(&partition);
            }
            if self.slot(partition).is_none() {
                if is_news {
                    self.tombs.insert(partition, lsn);
                }
                return;
            }
        }
        let Some(slot) = self.replayed_log(partition, lsn) else { return };
        let recovery = self.recovery().expect("entries are replayed in recovery");
        let is_noted = recovery.noted.get(slot.0 as usize).is_some_and(|&noted| lsn <= noted);
        recovery.mend(slot, note);
        recovery.entries += 1;
        self.take_note(slot, lsn, note);
        self.events.push_back(StorageEvent::ReplayedNote { slot, note, is_noted });
    }

    /// What of the replayed is known to be durable may be moved. A batch that is moved and then lost from the journal would
    /// be found by a start without a checkpoint, as one that is durable.
    fn note_durable(&mut self) {
        let durable = self.journal.as_ref().map_or(0, |journal| journal.replayed_durably());
        self.flushed = self.flushed.max(durable);
    }

    pub(super) fn on_journal_recovered(&mut self, report: RecoveryReport) {
        let Phase::Recovering(recovery) = std::mem::replace(&mut self.phase, Phase::Running) else {
            unreachable!("the journal is recovered once");
        };
        let Recovery { start, holes, entries, told, .. } = *recovery;
        let Some(damaged) = self.judge(&holes) else { return };
        self.is_clean_start = start == Start::Clean && report.chunks == 0;
        let start = if start == Start::Clean && !self.is_clean_start { Start::Checkpoint } else { start };
        self.refresh_flushed();
        self.unpark();
        if report.cut.is_some_and(|cut| cut.damaged) {
            self.forget_lost_places();
        }
        if !self.is_clean_start {
            self.untidy = self.slots().collect();
        }
        {
            let ghosts: Vec<PartitionId> =
                self.tombs.keys().copied().filter(|partition| self.is_ghost(partition)).collect();
            for partition in ghosts {
                if told.contains(&partition) {
                    self.drop_again(partition);
                    continue;
                }
                self.removing.entry(partition).or_default().logs.push_back(None);
                let what = UnderWay::RemoveGhost(partition);
                self.ask(what, |op| DiskOp::RemoveFolder { op, partition });
            }
        }
        // Without room they are written as soon as there is some.
        let _ = self.write_drops();
        for &(slot, end) in &damaged {
            let note = Note::Truncated { end };
            if self.note(self.now, slot, note).is_ok() {
                self.events.push_back(StorageEvent::ReplayedNote { slot, note, is_noted: false });
            }
        }
        let report = StorageReport {
            start,
            logs: self.by_id.len() as u64,
            segments: self.counts.segments,
            entries,
            damaged_logs: damaged.len() as u64,
            journal: report,
        };
        self.events.push_back(StorageEvent::Recovered(Box::new(report)));
    }

    /// Whether the partition is gone since an earlier life, which may have left its folder.
    fn is_ghost(&self, partition: &PartitionId) -> bool {
        self.slot(*partition).is_none() && !self.removing.contains_key(partition)
    }

    /// The journal may know nothing of the partition's end, since it had no room for the note: a start without the
    /// checkpoint would find the log as it was, and take what a later one has for its continuation. So the note is written
    /// before anything else is appended, and the folder goes when it is durable.
    fn drop_again(&mut self, partition: PartitionId) {
        let gone = self.tombs.get(&partition).copied().unwrap_or(Lsn::ZERO);
        let slot = self.add(Log::new(partition, gone));
        self.by_id.remove(&partition);
        self.log_mut(slot).expect("it was just added").is_hidden = true;
        self.undropped.push_back(slot);
    }

    /// The journal lost its end, as configured, and numbers its entries from there again.
    fn forget_lost_places(&mut self) {
        let last = self.journal.as_ref().expect("it was just recovered").last_lsn();
        for log in self.logs.iter_mut().flatten() {
            log.moved.lsn = log.moved.lsn.min(last);
            log.last = log.last.min(last);
        }
        for lsn in self.tombs.values_mut() {
            *lsn = (*lsn).min(last);
        }
        self.checkpoints.need();
    }

    fn refresh_flushed(&mut self) {
        let journal = self.journal.as_ref().expect("it was just recovered");
        // All that was replayed is durable; the chunk that is open holds nothing of it.
        let last = journal.last_lsn();
        let sealed = if last.entry == u32::MAX { last.chunk } else { last.chunk - 1 };
        self.flushed = self.flushed.max(sealed);
    }

    /// Where logs are to be cut because of what they miss; each one is logged. `None`: that is refused.
    fn judge(&mut self, holes: &BTreeMap<Slot, Vec<Hole>>) -> Option<Vec<(Slot, Offset)>> {
        let mut damaged = Vec::new();
        for (&slot, holes) in holes {
            let Some(log) = self.live(slot) else { continue };
            // What is missing before the log's start was deleted.
            let Some(&hole) = holes.iter().find(|hole| hole.next > log.start) else { continue };
            let damage =
                FatalReason::LogDamaged { partition: log.partition, end: hole.end, found: hole.next };
            match self.config.journal.on_damage {
                OnDamage::Refuse => {
                    self.fail(damage);
                    return None;
                }
                OnDamage::Truncate => {
                    tracing::error!(%damage, "going on without the lost records, as configured");
                    damaged.push((slot, hole.end));
                }
            }
        }
        Some(damaged)
    }
}

/// Whether nothing is known of it but that everything up to `moved` is over.
fn is_tomb(state: &LogState) -> bool {
    state.segments.is_empty()
        && state.end == Offset::ZERO
        && state.noted == state.moved
        && state.high_watermark == Offset::ZERO
        && state.epochs.is_empty()
        && state.producers.is_empty()
}
