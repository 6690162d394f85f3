//! The checkpoint of one shard, from its beginning to the release of the journal. Floor 1.
//!
//! 1. *Moving*: every entry up to the target, which is what was flushed at the beginning, is moved.
//! 2. *Syncing*: log by log, its segments and its folder are synced as far as they changed, then it is encoded as it was
//!    when its syncs were asked for. Moves go on meanwhile.
//! 3. *Flushing*: the journal is flushed up to the latest entry that an encoded log knows of.
//! 4. *Replacing*: the file takes the place of the one before. Only then the journal lets go of files.
//!
//! A clean one, at a stop, is the same with everything as the target.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::log::Log;
use super::work::Work;
use super::{Noted, Stop, Storage, UnderWay};
use crate::ids::{Offset, PartitionId};
use crate::log::checkpoint::{Encoder, LogState, Resume};
use crate::log::disk::{DiskError, DiskEvent, DiskOp, FileName, SegmentName};
use crate::log::segment::SegmentMeta;
use crate::log::{FatalReason, Lsn, Slot};
use crate::time::Instant;

/// Logs that are looked at in one turn.
const LOGS_PER_TURN: usize = 256;
/// Syncs of one checkpoint that are under way while nothing presses. The disk serves what it is asked for in turn: beside
/// 32 of them a flush of the journal took five times as long as alone, beside 2 one and a half times (10,000 files).
const SYNCS_AT_EASE: usize = 2;
/// How long after a checkpoint the next one waits that releases less than the bound on what a start reads may ask for:
/// what came while the last one was made, when little more comes.
const REST_MAX: Duration = Duration::from_secs(5);
/// How long the files of compacted segments wait for a checkpoint before one is made for their sake.
const DOOMED_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    state: State,
    /// Of the one under way, or of the last one; from 1.
    number: u64,
    /// What the journal held when the last one was there.
    live_then: u64,
    /// What was flushed when the last one began.
    flushed_then: u64,
    /// When the last one was there.
    ended: Instant,
    /// When one is due for the sake of what is left above the bound and can be released.
    rest_at: Option<Instant>,
    /// The one under way began when nothing was left to come.
    is_last: bool,
    /// Nothing is appended before there is one.
    is_needed: bool,
    /// The clean one is there.
    is_clean: bool,
    /// Partitions that were dropped after they were encoded by the one under way: a new log of theirs is not encoded.
    replaced: BTreeSet<PartitionId>,
    /// Files of compacted segments that stand in the checkpoint that is there, and in no log any more.
    doomed: Vec<Doomed>,
    /// Those of them that the one under way does not name.
    removable: Vec<Doomed>,
    /// Since when the oldest of the doomed ones is.
    doomed_since: Option<Instant>,
}

/// A file that waits to be removed: what it was of a log.
#[derive(Clone, Copy, Debug)]
struct Doomed {
    name: SegmentName,
    end: Offset,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    Moving {
        target: Lsn,
    },
    Syncing(Box<Syncing>),
    Flushing(Encoded),
    Replacing(Resume),
}

#[derive(Debug)]
struct Syncing {
    replay_from: Lsn,
    encoder: Encoder,
    noted: Lsn,
    /// The next log to look at.
    next: usize,
    /// Logs whose syncs are under way.
    open: BTreeMap<Slot, Open>,
    /// Syncs that are to be asked for.
    todo: VecDeque<UnderWay>,
    under_way: usize,
    /// How many may be, as of the last turn.
    syncs_max: usize,
    failed: bool,
}

/// A log as it was when its syncs were asked for.
#[derive(Debug)]
struct Open {
    state: LogState,
    left: usize,
    /// See [`Log::changes`].
    changes: u32,
}

#[derive(Debug)]
struct Encoded {
    replay_from: Lsn,
    encoder: Encoder,
    noted: Lsn,
}

impl Checkpoints {
    /// Up to where moves do not wait.
    pub fn target(&self) -> Option<Lsn> {
        match self.state {
            State::Moving { target } => Some(target),
            _ => None,
        }
    }

    /// The journal lost entries that the checkpoint counts on: their places must not be taken for theirs.
    pub fn need(&mut self) {
        self.is_needed = true;
    }

    pub fn is_needed(&self) -> bool {
        self.is_needed
    }

    pub fn is_clean(&self) -> bool {
        self.is_clean
    }

    /// A log of the partition was dropped; `checkpointed` is the last checkpoint that it was encoded by.
    pub fn on_dropped(&mut self, partition: PartitionId, checkpointed: u64) {
        if checkpointed == self.number && !matches!(self.state, State::Idle) {
            self.replaced.insert(partition);
        }
        // They go with their folder, which may be made anew.
        self.doomed.retain(|old| old.name.partition != partition);
        self.removable.retain(|old| old.name.partition != partition);
    }

    /// A segment that is in no log any more, and ended there, may be removed once a checkpoint does not name it.
    pub fn doom(&mut self, now: Instant, name: SegmentName, end: Offset) {
        self.doomed.push(Doomed { name, end });
        self.doomed_since.get_or_insert(now);
    }

    /// Files of the partition that wait to be removed, as far as a note takes away all that they held, so that a start from
    /// the checkpoint that names them does without. Those behind the log's end must not be in the way of files of the same
    /// names. Those before its start are to be gone for good with the ones that replaced them, before the journal forgets
    /// the note: one that came back would show a start, and behind it a hole, to a start without a checkpoint.
    pub fn take_doomed(
        &mut self,
        partition: PartitionId,
        (start, end): (Offset, Offset),
    ) -> impl Iterator<Item = FileName> {
        let mut taken = Vec::new();
        for names in [&mut self.doomed, &mut self.removable] {
            let is_taken = |old: &mut Doomed| {
                old.name.partition == partition && (old.name.base >= end || old.end <= start)
            };
            taken.extend(names.extract_if(.., is_taken).map(|old| old.name));
        }
        taken.into_iter().flat_map(|name| [FileName::Segment(name), FileName::Index(name)])
    }

    /// When a checkpoint is due for the sake of files that wait to be removed.
    fn doom_due(&self) -> Option<Instant> {
        self.doomed_since.filter(|_| !self.doomed.is_empty()).map(|since| since + DOOMED_MAX)
    }
}

impl Storage {
    /// Goes on with the checkpoint, or begins one when it is due.
    pub(super) fn step_checkpoint(&mut self, noted: &dyn Noted) {
        if matches!(self.checkpoints.state, State::Idle) {
            self.begin_checkpoint();
        }
        if let State::Moving { target } = self.checkpoints.state {
            let first = self.first_unmoved();
            if first.is_none_or(|first| first > target) && self.may_sync() {
                self.begin_syncs(first);
            }
        }
        if matches!(self.checkpoints.state, State::Syncing(_)) {
            self.step_syncs(noted);
        }
        if let State::Flushing(Encoded { noted, .. }) = &self.checkpoints.state
            && noted.chunk <= self.flushed
        {
            self.replace_checkpoint();
        }
    }

    fn begin_checkpoint(&mut self) {
        let live = self.journal.as_ref().map_or(0, |journal| journal.live_bytes());
        let bytes = self.config.checkpoint_bytes;
        // Of less than a file behind the bound, none may be there to be released.
        let releasable = bytes + self.config.journal.file_bytes;
        let is_above = live >= releasable && self.flushed > self.checkpoints.flushed_then;
        let rest_at = is_above.then(|| self.checkpoints.ended + REST_MAX);
        self.checkpoints.rest_at = rest_at;
        // Whole files are released: what is left of the last one may be nearly enough by itself.
        let is_near_end = live >= self.config.journal_bytes_max / 2;
        let is_due = self.checkpoints.is_needed
            || (live >= bytes && live >= self.checkpoints.live_then.saturating_add(bytes / 4))
            || (is_near_end && self.flushed > self.checkpoints.flushed_then)
            || rest_at.is_some_and(|at| at <= self.now)
            || self.checkpoints.doom_due().is_some_and(|at| at <= self.now);
        let is_settling = self.stop == Stop::Settling && !self.checkpoints.is_clean;
        let may = (self.stop == Stop::No && is_due) || (is_settling && !self.is_cleaning_up());
        if !may || self.no_space_until.is_some() {
            return;
        }
        // After a clean one no folder is looked through: what waits to be removed goes before.
        let is_last = is_settling && self.checkpoints.doomed.is_empty();
        // After a stop nothing is left to be flushed.
        let target = match is_last {
            true => Lsn { chunk: u64::MAX, entry: u32::MAX },
            false => Lsn { chunk: self.flushed, entry: u32::MAX },
        };
        self.checkpoints.is_last = is_last;
        self.checkpoints.flushed_then = self.flushed;
        self.checkpoints.number += 1;
        self.checkpoints.replaced.clear();
        self.checkpoints.rest_at = None;
        self.checkpoints.state = State::Moving { target };
    }

    /// A clean checkpoint says that folders are as they should be, too.
    fn may_sync(&self) -> bool {
        !self.checkpoints.is_last || (self.untidy.is_empty() && self.works == 0 && self.removing.is_empty())
    }

    /// When a checkpoint begins that no entry brings about.
    pub(super) fn checkpoint_due(&self) -> Option<Instant> {
        let may = self.is_running() && self.stop == Stop::No && self.no_space_until.is_none();
        if !may || !matches!(self.checkpoints.state, State::Idle) {
            return None;
        }
        [self.checkpoints.doom_due(), self.checkpoints.rest_at].into_iter().flatten().min()
    }

    fn begin_syncs(&mut self, first: Option<Lsn>) {
        let journal = self.journal.as_ref().expect("a running log has a journal");
        // Every entry from here on may be missing in some log's segments; none before is.
        let next = Lsn { entry: journal.last_lsn().entry.saturating_add(1), ..journal.last_lsn() };
        let encoder = Encoder::new(self.config.journal.shard, journal.journal_id(), journal.incarnation());
        self.checkpoints.state = State::Syncing(Box::new(Syncing {
            replay_from: first.unwrap_or(next),
            encoder,
            noted: Lsn::ZERO,
            next: 0,
            open: BTreeMap::new(),
            todo: VecDeque::new(),
            under_way: 0,
            syncs_max: 0,
            failed: false,
        }));
        self.checkpoints.removable.append(&mut self.checkpoints.doomed);
        self.checkpoints.doomed_since = None;
    }

    /// How many syncs may be under way: few, so that the journal has the disk, until it waits for the checkpoint itself.
    fn syncs_max(&self) -> usize {
        let live = self.journal.as_ref().map_or(0, |journal| journal.live_bytes());
        // Well before producers are slowed, which is from half of it on.
        let is_pressed = self.stop != Stop::No || live >= self.config.journal_bytes_max / 8 * 3;
        let max = self.config.syncs_in_flight_max;
        if is_pressed { max } else { max.min(SYNCS_AT_EASE) }
    }

    fn step_syncs(&mut self, noted: &dyn Noted) {
        let State::Syncing(mut syncing) = std::mem::take(&mut self.checkpoints.state) else {
            unreachable!("the caller saw it");
        };
        syncing.syncs_max = self.syncs_max();
        let mut turns = LOGS_PER_TURN;
        loop {
            self.ask_syncs(&mut syncing);
            let done = syncing.open.iter().find(|(_, open)| open.left == 0).map(|(&slot, _)| slot);
            if let Some(slot) = done {
                let open = syncing.open.remove(&slot).expect("it was just found");
                self.encode(&mut syncing, noted, slot, open.state);
                continue;
            }
            let is_full = syncing.open.len() >= syncing.syncs_max;
            if is_full || turns == 0 || syncing.failed || syncing.next >= self.logs.len() {
                break;
            }
            turns -= 1;
            let slot = Slot(u32::try_from(syncing.next).expect("slots are 32 bits"));
            syncing.next += 1;
            self.open_log(&mut syncing, slot);
        }
        self.checkpoints.state = match syncing.open.is_empty() && syncing.under_way == 0 {
            true if syncing.failed => State::Idle,
            true if syncing.next >= self.logs.len() => {
                let Syncing { replay_from, mut encoder, mut noted, .. } = *syncing;
                self.encode_tombs(&mut encoder, &mut noted);
                State::Flushing(Encoded { replay_from, encoder, noted })
            }
            _ => State::Syncing(syncing),
        };
    }

    /// Whether the checkpoint goes on by itself with the next turn.
    pub(super) fn checkpoint_has_turn(&self) -> bool {
        match &self.checkpoints.state {
            State::Syncing(s) => !s.failed && s.next < self.logs.len() && s.open.len() < s.syncs_max,
            _ => false,
        }
    }

    /// Notes a log as its segments are now, and what must be synced before that is true after a crash.
    fn open_log(&mut self, syncing: &mut Syncing, slot: Slot) {
        let Some(log) = self.logs[slot.0 as usize].as_deref_mut() else { return };
        let is_replaced = self.checkpoints.replaced.contains(&log.partition);
        if log.is_hidden && log.dropped.is_none() {
            // Gone, which the journal does not know: everything of it up to here is over.
            self.tombs.insert(log.partition, log.last);
        }
        // Of a log that was truncated to nothing the segments must be gone for good before the journal lets go of why.
        let is_blank = log.is_blank() && !log.folder_unsynced;
        if log.dropped.is_some() || log.is_hidden || is_replaced || is_blank {
            return;
        }
        log.checkpointed = self.checkpoints.number;
        let state = state_of(log);
        let mut left = 0;
        if let Some(from) = log.unsynced_from.take() {
            for segment in log.segments.iter().rev().take_while(|segment| segment.base >= from) {
                syncing.todo.push_back(UnderWay::SyncFile(slot, FileName::Segment(log.name(segment))));
                left += 1;
            }
        }
        if std::mem::take(&mut log.index_unsynced)
            && let Some(last) = log.segments.last()
        {
            syncing.todo.push_back(UnderWay::SyncFile(slot, FileName::Index(log.name(last))));
            left += 1;
        }
        if std::mem::take(&mut log.folder_unsynced) {
            syncing.todo.push_back(UnderWay::SyncFolder(slot));
            left += 1;
        }
        let changes = log.changes;
        syncing.open.insert(slot, Open { state, left, changes });
    }

    fn ask_syncs(&mut self, syncing: &mut Syncing) {
        while syncing.under_way < syncing.syncs_max
            && let Some(what) = syncing.todo.pop_front()
        {
            syncing.under_way += 1;
            match what {
                UnderWay::SyncFile(_, file) => self.ask(what, |op| DiskOp::Sync { op, file }),
                UnderWay::SyncFolder(slot) => {
                    let open = syncing.open.get(&slot).expect("its syncs are not done");
                    let partition = open.state.partition;
                    self.ask(what, |op| DiskOp::SyncFolder { op, partition });
                }
                other => unreachable!("{other:?} is no sync"),
            }
        }
    }

    fn encode(&mut self, syncing: &mut Syncing, noted: &dyn Noted, slot: Slot, mut state: LogState) {
        match self.log(slot) {
            Some(log) if log.is_hidden && log.dropped.is_none() => {
                let (partition, last) = (log.partition, log.last);
                self.tombs.insert(partition, last);
                self.log_mut(slot).expect("it was just found").checkpointed = 0;
                return;
            }
            // Only its folder was to be synced.
            Some(log) if log.is_blank() && state.end == Offset::ZERO && state.segments.is_empty() => {
                self.log_mut(slot).expect("it was just found").checkpointed = 0;
                return;
            }
            Some(log) => {
                state.noted = log.last.max(state.moved);
                // Without a log the shard has nothing to note; that it is gone is durable first, then.
                if log.dropped.is_none() {
                    noted.noted(slot, &mut state);
                }
            }
            // It was dropped, and the journal has the note.
            None => state.noted = state.moved,
        }
        syncing.noted = syncing.noted.max(state.noted);
        syncing.encoder.log(&state);
    }

    /// Partitions that are gone, and of which the journal may still hold entries. They stand there as logs of which
    /// nothing is known but that it is so up to this entry.
    fn encode_tombs(&mut self, encoder: &mut Encoder, noted: &mut Lsn) {
        let number = self.checkpoints.number;
        let unnoted = self.undropped.iter().filter_map(|&slot| self.log(slot));
        let unnoted: BTreeSet<PartitionId> = unnoted.map(|log| log.partition).collect();
        for (&partition, &lsn) in &self.tombs {
            // Behind a clean end nothing is replayed: only what the journal was not told need be said there.
            if self.checkpoints.is_last && !unnoted.contains(&partition) {
                continue;
            }
            let log = self.by_id.get(&partition).and_then(|&slot| self.log(slot));
            let is_encoded = log.is_some_and(|log| log.checkpointed == number)
                || self.checkpoints.replaced.contains(&partition);
            if !is_encoded {
                encoder.log(&tomb(partition, lsn));
                *noted = (*noted).max(lsn);
            }
        }
    }

    fn replace_checkpoint(&mut self) {
        let State::Flushing(encoded) = std::mem::take(&mut self.checkpoints.state) else {
            unreachable!("the caller saw it");
        };
        let journal = self.journal.as_ref().expect("a running log has a journal");
        let resume = match self.checkpoints.is_last {
            true => journal.end().map(|(end, sequence)| Resume::Clean { end, sequence }),
            false => journal.resume_from(encoded.replay_from),
        };
        let Some(resume) = resume else { return };
        let parts = encoded.encoder.finish(resume);
        self.checkpoints.state = State::Replacing(resume);
        self.ask(UnderWay::Replace, |op| DiskOp::Replace { op, file: FileName::Checkpoint, parts });
    }

    pub(super) fn on_checkpoint_event(&mut self, what: UnderWay, event: DiskEvent) {
        match (what, event) {
            (UnderWay::SyncFile(slot, file), DiskEvent::Synced { result, .. }) => {
                self.on_synced(slot, Some(file), result);
            }
            (
                UnderWay::SyncFolder(slot),
                DiskEvent::Synced { result, .. } | DiskEvent::Done { result, .. },
            ) => {
                self.on_synced(slot, None, result);
            }
            (UnderWay::Replace, DiskEvent::Done { result, .. }) => self.on_replaced(result),
            (what, event) => unreachable!("{event:?} answers no operation of {what:?}"),
        }
    }

    fn on_synced(&mut self, slot: Slot, file: Option<FileName>, result: Result<(), DiskError>) {
        let State::Syncing(syncing) = &mut self.checkpoints.state else {
            unreachable!("a sync belongs to a checkpoint");
        };
        syncing.under_way -= 1;
        let mut changes = None;
        if !syncing.failed {
            let open = syncing.open.get_mut(&slot).expect("its syncs are not done");
            open.left -= 1;
            changes = Some(open.changes);
        }
        let Err(error) = result else { return };
        let Some(log) = self.log(slot) else { return };
        let partition = log.partition;
        let is_changing = matches!(log.work.as_deref(), Some(Work::Amend(_) | Work::RemoveFolder))
            || changes.is_none_or(|changes| changes != log.changes);
        let is_gone = is_changing
            || match file {
                // Without entries it has no index.
                Some(FileName::Index(_)) => true,
                Some(FileName::Segment(name)) => {
                    let segment = log.segments.iter().find(|segment| log.name(segment) == name);
                    segment.is_none_or(|segment| self.is_cut_again(slot, segment.end))
                }
                _ => log.dropped.is_some() || log.segments.is_empty(),
            };
        match (file, error) {
            // Removed meanwhile, by a note that the journal has.
            (_, DiskError::Missing) if is_gone => {}
            (None, DiskError::NoSpace) => {
                self.give_up_syncs();
                if let Some(log) = self.log_mut(slot) {
                    log.folder_unsynced = true;
                }
                self.on_no_space(&partition);
            }
            (None, error) => self.fail(FatalReason::FolderFailed { partition, error }),
            (Some(file), error) => self.fail(FatalReason::SegmentFailed { file, error }),
        }
    }

    /// The checkpoint is not made. What it had not synced yet is synced by the next one.
    fn give_up_syncs(&mut self) {
        let State::Syncing(syncing) = &mut self.checkpoints.state else { return };
        syncing.failed = true;
        syncing.todo.clear();
        for slot in std::mem::take(&mut syncing.open).into_keys() {
            let Some(log) = self.logs[slot.0 as usize].as_deref_mut() else { continue };
            log.unsynced_from = log.segments.first().map(|segment| segment.base);
            log.index_unsynced = true;
            log.folder_unsynced = true;
        }
        self.keep_doomed();
    }

    /// The checkpoint that would not have named these files was not made.
    fn keep_doomed(&mut self) {
        let mut removable = std::mem::take(&mut self.checkpoints.removable);
        self.checkpoints.doomed.append(&mut removable);
        self.checkpoints.doomed_since.get_or_insert(self.now);
        // The next one is due as soon as there is room.
        self.checkpoints.live_then = 0;
    }

    fn on_replaced(&mut self, result: Result<(), DiskError>) {
        let State::Replacing(resume) = std::mem::take(&mut self.checkpoints.state) else {
            unreachable!("one checkpoint at a time");
        };
        match result {
            Ok(()) => {}
            Err(DiskError::NoSpace) => {
                // The one before still stands, and the journal has what it does not.
                self.on_no_space(&FileName::Checkpoint);
                self.keep_doomed();
                return;
            }
            Err(error) => return self.fail(FatalReason::CheckpointFailed { error }),
        }
        self.counts.checkpoints += 1;
        self.checkpoints.is_clean = self.checkpoints.is_last;
        self.checkpoints.is_needed = false;
        let journal = self.journal.as_mut().expect("a running log has a journal");
        journal.release(resume);
        self.checkpoints.live_then = journal.live_bytes();
        self.checkpoints.ended = self.now;
        let first_chunk = match resume {
            Resume::From { sequence, .. } | Resume::Clean { sequence, .. } => sequence,
        };
        let removing = &self.removing;
        self.tombs.retain(|partition, lsn| lsn.chunk >= first_chunk || removing.contains_key(partition));
        for Doomed { name, .. } in std::mem::take(&mut self.checkpoints.removable) {
            self.reader.forget(name);
            for file in [FileName::Segment(name), FileName::Index(name)] {
                self.ask(UnderWay::RemoveOld(name), |op| DiskOp::Remove { op, file });
            }
        }
    }
}

/// What the segments of a log hold.
pub(super) fn state_of(log: &Log) -> LogState {
    LogState {
        partition: log.partition,
        moved: log.moved.lsn,
        noted: log.moved.lsn,
        start: log.moved.start,
        end: log.moved.end,
        high_watermark: Offset::ZERO,
        cleaned: log.cleaned,
        segments: log.segments.clone(),
        epochs: Vec::new(),
        producers: Vec::new(),
        superseded: Vec::new(),
    }
}

fn tomb(partition: PartitionId, lsn: Lsn) -> LogState {
    LogState {
        partition,
        moved: lsn,
        noted: lsn,
        start: Offset::ZERO,
        end: Offset::ZERO,
        high_watermark: Offset::ZERO,
        cleaned: Offset::ZERO,
        segments: Vec::<SegmentMeta>::new(),
        epochs: Vec::new(),
        producers: Vec::new(),
        superseded: Vec::new(),
    }
}
