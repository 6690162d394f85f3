//! Compaction as a shard runs it: which log is next, at what pace, and what becomes of its files. Floor 1.
//!
//! One job at a time, over segments that are closed. It only reads them and makes new files beside them, so moves of
//! the same log go on; a note that changes the list of segments cancels the job and waits for its end, and so does the
//! removal of the folder. Files that were replaced stay until a checkpoint does not name them (`checkpoints.rs`).
//!
//! A log is looked at when one of its segments is closed, when its settings change, when a note took effect on its
//! segments, and when the first record that is too young has come of age; these times are kept in one ordered set, so
//! a log in which nothing happens costs nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::checkpoints::state_of;
use super::{Noted, Stop, Storage, UnderWay};
use crate::ids::Offset;
use crate::log::cleaner::{Cleaning, Done, Due, Failure, Job, Outcome, Sealed, due};
use crate::log::disk::{DiskError, DiskEvent, FileName, OpNo, SegmentName};
use crate::log::segment::SegmentMeta;
use crate::log::{Note, Slot};
use crate::time::Instant;

/// How much a job may read, unpack and write before the core turns to its other work. What one window costs beyond
/// that is owed.
const SLICE_BYTES: u64 = 256 * 1024;
/// Unused bandwidth is kept for so many parts of a second.
const BURST_PER_SECOND: u64 = 10;
/// When a log is looked at again whose records may still be truncated.
const AGAIN_MS: i64 = 10_000;
/// When a log is looked at again whose job the disk failed.
const RETRY_MS: i64 = 60_000;
/// Logs that are looked at in one turn.
const LOOKS_PER_TURN: usize = 256;

#[derive(Debug)]
pub(super) struct Compactions {
    job: Option<Running>,
    /// Logs to be looked at, by when; ms since the epoch.
    later: BTreeSet<(i64, Slot)>,
    /// Logs that are due, those with the largest dirty part first.
    ready: BTreeSet<(Reverse<u32>, Slot)>,
    /// Where the logs of these two stand.
    places: BTreeMap<Slot, Place>,
    /// Logs with a damaged segment: left alone as long as they have it.
    damaged: BTreeMap<Slot, SegmentName>,
    /// Logs whose work waits for the end of the job, or until old files are removed.
    held: Vec<Slot>,
    bandwidth: Bandwidth,
    /// The job had its share of this turn of the core.
    is_turn_over: bool,
}

#[derive(Debug)]
struct Running {
    slot: Slot,
    cleaning: Box<Cleaning>,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Later(i64),
    Ready(Reverse<u32>),
}

/// What a look at a log finds.
enum Look {
    Due(Due),
    Later(i64),
    /// Something must happen first, which brings it back.
    Nothing,
}

/// A token bucket.
#[derive(Debug)]
struct Bandwidth {
    per_second: u64,
    tokens: u64,
    refilled: Instant,
}

const SECOND: u128 = Duration::from_secs(1).as_nanos();

impl Bandwidth {
    fn refill(&mut self, now: Instant) {
        let nanos = now.since(self.refilled).as_nanos();
        let gained = u64::try_from(nanos * u128::from(self.per_second) / SECOND).unwrap_or(u64::MAX);
        let max = (self.per_second / BURST_PER_SECOND).max(SLICE_BYTES);
        if self.tokens.saturating_add(gained) >= max {
            self.tokens = max;
            self.refilled = now;
            return;
        }
        self.tokens += gained;
        // What is left of the time counts the next time, so that frequent calls lose nothing.
        self.refilled = self.refilled + self.time_for(gained, false);
    }

    /// How long so many bytes take to come.
    fn time_for(&self, bytes: u64, is_rounded_up: bool) -> Duration {
        let nanos = u128::from(bytes) * SECOND;
        let per_second = u128::from(self.per_second);
        let nanos = if is_rounded_up { nanos.div_ceil(per_second) } else { nanos / per_second };
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn take_slice(&mut self, now: Instant) -> bool {
        self.refill(now);
        let is_there = self.tokens >= SLICE_BYTES;
        if is_there {
            self.tokens -= SLICE_BYTES;
        }
        is_there
    }

    /// When a slice is there.
    fn slice_at(&self) -> Instant {
        self.refilled + self.time_for(SLICE_BYTES.saturating_sub(self.tokens), true)
    }
}

impl Compactions {
    pub fn new(bytes_per_second: u64) -> Self {
        assert!(bytes_per_second > 0, "without bandwidth no job ends");
        Self {
            job: None,
            later: BTreeSet::new(),
            ready: BTreeSet::new(),
            places: BTreeMap::new(),
            damaged: BTreeMap::new(),
            held: Vec::new(),
            bandwidth: Bandwidth { per_second: bytes_per_second, tokens: 0, refilled: Instant::ZERO },
            is_turn_over: false,
        }
    }

    /// Whether a job runs.
    pub fn is_busy(&self) -> bool {
        self.job.is_some()
    }

    /// Takes what became of an operation. `true`: it was the job's.
    pub fn handle(&mut self, event: &DiskEvent) -> bool {
        self.job.as_mut().is_some_and(|job| job.cleaning.handle(event))
    }

    pub fn begin_turn(&mut self) {
        self.is_turn_over = false;
    }

    /// The log is no more. A job of it goes on until the folder is to be removed.
    pub fn on_dropped(&mut self, slot: Slot) {
        self.forget(slot);
        self.damaged.remove(&slot);
    }

    fn forget(&mut self, slot: Slot) {
        match self.places.remove(&slot) {
            Some(Place::Later(at)) => self.later.remove(&(at, slot)),
            Some(Place::Ready(dirty)) => self.ready.remove(&(dirty, slot)),
            None => false,
        };
    }

    fn put_later(&mut self, slot: Slot, at_ms: i64) {
        self.forget(slot);
        self.later.insert((at_ms, slot));
        self.places.insert(slot, Place::Later(at_ms));
    }

    fn put(&mut self, slot: Slot, look: &Look) {
        match look {
            Look::Due(due) => {
                self.forget(slot);
                let dirty = Reverse(due.dirty_permille);
                self.ready.insert((dirty, slot));
                self.places.insert(slot, Place::Ready(dirty));
            }
            Look::Later(at_ms) => self.put_later(slot, *at_ms),
            Look::Nothing => self.forget(slot),
        }
    }
}

impl Storage {
    /// The log is looked at in this turn or the next.
    pub(super) fn compact_soon(&mut self, slot: Slot) {
        match self.live(slot) {
            Some(log) if log.config.compact => self.compactions.put_later(slot, i64::MIN),
            _ => self.compactions.forget(slot),
        }
    }

    pub(super) fn on_compaction_configured(&mut self, slot: Slot) {
        self.compactions.damaged.remove(&slot);
        self.compact_soon(slot);
        let is_unwanted = self.live(slot).is_some_and(|log| !log.config.compact);
        if is_unwanted && self.compactions.job.as_ref().is_some_and(|job| job.slot == slot) {
            self.cancel_compaction();
        }
    }

    /// Neither in recovery, nor without room on the disk, nor at a stop.
    fn may_compact(&self) -> bool {
        self.is_running() && self.stop == Stop::No && self.no_space_until.is_none()
    }

    /// When the job has bandwidth again, or a log is to be looked at.
    pub(super) fn compaction_due(&self) -> Option<Instant> {
        if !self.may_compact() {
            return None;
        }
        if let Some(job) = &self.compactions.job {
            let owes = job.cleaning.owes();
            let at = if owes { self.compactions.bandwidth.slice_at() } else { self.now };
            return job.cleaning.wants_credit().then_some(at);
        }
        if !self.compactions.ready.is_empty() {
            return Some(self.now);
        }
        let &(at, _) = self.compactions.later.first()?;
        let ms = u64::try_from(at.saturating_sub(self.config.wall_ms_at_zero)).unwrap_or(0);
        Some(Instant::ZERO + Duration::from_millis(ms))
    }

    /// A log is to be looked at that was not when this turn began.
    pub(super) fn has_new_looks(&self) -> bool {
        let is_new = |(at, _): &(i64, Slot)| *at == i64::MIN;
        self.may_compact()
            && !self.compactions.is_busy()
            && self.compactions.later.first().is_some_and(is_new)
    }

    /// Goes on with the job, or begins one.
    pub(super) fn step_compaction(&mut self, noted: &dyn Noted) {
        if !self.is_running() {
            return;
        }
        if self.may_compact() {
            if self.compactions.job.is_none() {
                self.look_at_logs(noted);
                self.begin_compaction(noted);
            }
            self.pay_compaction();
        }
        self.poll_compaction();
    }

    fn look_at_logs(&mut self, noted: &dyn Noted) {
        let now_ms = self.wall_ms();
        for _ in 0..LOOKS_PER_TURN {
            let Some(&(at, slot)) = self.compactions.later.first() else { return };
            if at > now_ms {
                return;
            }
            let look = self.look_at(slot, noted, now_ms);
            self.compactions.put(slot, &look);
        }
    }

    fn look_at(&self, slot: Slot, noted: &dyn Noted, now_ms: i64) -> Look {
        let Some(log) = self.live(slot) else { return Look::Nothing };
        // A list of the folder takes files that it does not know for left over, and a note may change the segments.
        if !log.config.compact || !log.notes.is_empty() || !self.is_tidy(log) {
            return Look::Nothing;
        }
        let damaged = self.compactions.damaged.get(&slot);
        if damaged.is_some_and(|&damaged| log.segments.iter().any(|segment| log.name(segment) == damaged)) {
            return Look::Nothing;
        }
        let segments = &log.segments[..log.segments.len() - usize::from(log.is_growing)];
        let stable = noted.high_watermark(slot).min(log.end);
        if let Some(due) = due(Sealed { segments, cleaned: log.cleaned, stable }, &log.config, now_ms) {
            return Look::Due(due);
        }
        match next_look(segments, log.cleaned, stable, log.config.compaction_lag_ms, now_ms) {
            Some(at_ms) => Look::Later(at_ms),
            None => Look::Nothing,
        }
    }

    fn begin_compaction(&mut self, noted: &dyn Noted) {
        let now_ms = self.wall_ms();
        while let Some(&(_, slot)) = self.compactions.ready.first() {
            let look = self.look_at(slot, noted, now_ms);
            let Look::Due(due) = look else {
                self.compactions.put(slot, &look);
                continue;
            };
            self.compactions.forget(slot);
            let log = self.log(slot).expect("a log that is due is there");
            let mut state = state_of(log);
            let mut segments = std::mem::take(&mut state.segments);
            segments.truncate(due.segments);
            state.noted = log.last.max(state.moved);
            noted.noted(slot, &mut state);
            let config = log.config;
            let (partition, segment_count) = (log.partition, segments.len());
            let journal = self.journal.as_ref().expect("a running log has a journal");
            let job = Job {
                partition,
                segments,
                dirty_from: due.dirty_from,
                upto: due.upto,
                producers: state.producers,
                tombstone_ms: config.tombstone_ms,
                now_ms,
                segment_bytes: u64::from(config.segment_bytes),
                // Clients know nothing of the journal's number.
                seed: journal.journal_id(),
                limits: self.config.cleaner,
            };
            tracing::debug!(
                %partition, segments = segment_count, upto = %due.upto, dirty_permille = due.dirty_permille,
                "compacting"
            );
            self.compactions.job = Some(Running { slot, cleaning: Box::new(Cleaning::new(job)) });
            return;
        }
    }

    /// Lets the job go on, once in a turn of the core.
    fn pay_compaction(&mut self) {
        let Compactions { job: Some(job), bandwidth, is_turn_over, .. } = &mut self.compactions else {
            return;
        };
        if *is_turn_over || !job.cleaning.wants_credit() {
            return;
        }
        let bytes = if job.cleaning.owes() { SLICE_BYTES } else { 0 };
        if bytes > 0 && !bandwidth.take_slice(self.now) {
            return;
        }
        job.cleaning.credit(bytes);
        *is_turn_over = true;
    }

    /// Takes the job's next operation, or its outcome.
    fn poll_compaction(&mut self) {
        let Some(job) = &mut self.compactions.job else { return };
        let last = &mut self.last_op;
        let op = job.cleaning.poll_op(&mut || {
            *last += 1;
            OpNo(*last)
        });
        self.ops.extend(op);
        if job.cleaning.outcome().is_none() {
            return;
        }
        let Running { slot, cleaning } = self.compactions.job.take().expect("it was just seen");
        match cleaning.outcome().expect("it was just seen") {
            Outcome::Done(done) => self.on_compacted(slot, done),
            Outcome::Nothing => {}
            Outcome::Failed(failure) => self.on_compaction_failed(slot, failure),
        }
        self.resume_held();
    }

    /// The new segments take the place of the old ones.
    fn on_compacted(&mut self, slot: Slot, done: &Done) {
        let now = self.now;
        let Some(log) = self.logs[slot.0 as usize].as_deref_mut() else { return };
        if log.dropped.is_some() {
            // The new files go with the folder.
            return;
        }
        let count = done.replaced.len();
        let is_as_before = log.segments.len() >= count
            && log.segments.iter().zip(&done.replaced).all(|(segment, &old)| log.name(segment) == old);
        assert!(is_as_before, "segments do not change under a job");
        let before = (log.segments.len(), log.segment_bytes);
        let ends: Vec<Offset> = log.segments[..count].iter().map(|segment| segment.end).collect();
        log.segments.splice(..count, done.by.iter().copied());
        log.recount();
        log.cleaned = done.cleaned;
        // Else consumers would be given what was compacted away for as long as memory has it.
        log.evict_compacted(done.cleaned);
        let after = (log.segments.len(), log.segment_bytes);
        let partition = log.partition;
        for (&name, &end) in done.replaced.iter().zip(&ends) {
            self.reader.forget(name);
            self.checkpoints.doom(now, name, end);
        }
        self.counts.segments = self.counts.segments + after.0 as u64 - before.0 as u64;
        self.counts.segment_bytes = self.counts.segment_bytes + after.1 - before.1;
        self.counts.compactions += 1;
        self.counts.compaction_bytes_in += done.bytes_in;
        self.counts.compaction_bytes_out += done.bytes_out;
        let Done { cleaned, bytes_in, bytes_out, records_in, records_out, kept_whole, .. } = *done;
        tracing::debug!(
            %partition, %cleaned, bytes_in, bytes_out, records_in, records_out, kept_whole, "compacted"
        );
        self.note_expiry(slot);
        self.compact_soon(slot);
    }

    fn on_compaction_failed(&mut self, slot: Slot, failure: &Failure) {
        let retry_ms = self.wall_ms().saturating_add(RETRY_MS);
        let Some(log) = self.log_mut(slot).filter(|log| log.dropped.is_none()) else { return };
        // Files came and went.
        log.folder_unsynced = true;
        let partition = log.partition;
        match failure {
            Failure::Cancelled => self.compact_soon(slot),
            Failure::Damaged { file, position, .. } => {
                tracing::error!(%partition, %file, position, %failure, "a log cannot be compacted");
                if let FileName::Segment(name) = *file {
                    self.compactions.damaged.insert(slot, name);
                }
            }
            Failure::Disk { file, error: DiskError::NoSpace } => {
                self.on_no_space(file);
                self.compactions.put_later(slot, retry_ms);
            }
            Failure::Disk { .. } => {
                tracing::error!(%partition, %failure, "a log was not compacted; trying again in a minute");
                self.compactions.put_later(slot, retry_ms);
            }
        }
    }

    /// The job's files are removed, then it ends.
    pub(super) fn cancel_compaction(&mut self) {
        if let Some(job) = &mut self.compactions.job {
            job.cleaning.cancel();
            self.poll_compaction();
        }
    }

    /// Whether the note takes away segments, or parts of one. A truncation always counts: it may free names of files
    /// that wait to be removed.
    pub(super) fn changes_segments(&self, slot: Slot, note: Note) -> bool {
        match note {
            Note::Started { start } => {
                let first = self.log(slot).and_then(|log| log.segments.first());
                first.is_some_and(|first| first.end <= start)
            }
            Note::Truncated { .. } | Note::Dropped => true,
        }
    }

    /// Whether a change of the log's files must wait for a job of it that runs, which is cancelled, or for files of it
    /// that are being removed. The log's work goes on by itself then.
    pub(super) fn waits_for_compaction(&mut self, slot: Slot) -> bool {
        let Some(log) = self.log(slot) else { return false };
        let partition = log.partition;
        let is_running = self.compactions.job.as_ref().is_some_and(|job| job.slot == slot);
        let is_removing = self.under_way.values().any(|what| is_removal(what, Some(partition)));
        if !is_running && !is_removing {
            return false;
        }
        self.wait(slot);
        self.compactions.held.push(slot);
        if is_running {
            self.cancel_compaction();
        }
        true
    }

    fn resume_held(&mut self) {
        for slot in std::mem::take(&mut self.compactions.held) {
            self.resume_work(slot);
        }
    }

    /// A file that a compaction has replaced is gone.
    pub(super) fn on_old_removed(&mut self, name: SegmentName) {
        if let Some(slot) = self.slot(name.partition)
            && let Some(log) = self.log_mut(slot)
        {
            // It may come back after a loss of power; a clean checkpoint waits until it cannot.
            log.folder_unsynced = true;
        }
        if !self.under_way.values().any(|what| is_removal(what, Some(name.partition))) {
            self.resume_held();
        }
    }

    /// Whether a job, or the removal of files, is still to end before a stop can.
    pub(super) fn is_cleaning_up(&self) -> bool {
        self.compactions.is_busy() || self.under_way.values().any(|what| is_removal(what, None))
    }
}

fn is_removal(what: &UnderWay, of: Option<crate::ids::PartitionId>) -> bool {
    matches!(what, UnderWay::RemoveOld(name) if of.is_none_or(|partition| name.partition == partition))
}

/// When the log may be due that is not now; `None` if a segment must be closed first.
fn next_look(
    sealed: &[SegmentMeta],
    cleaned: Offset,
    stable: Offset,
    lag_ms: i64,
    now_ms: i64,
) -> Option<i64> {
    let mut dirty = sealed.iter().filter(|segment| segment.end > cleaned);
    let young_ms = now_ms.saturating_sub(lag_ms);
    let blocks = dirty.find(|s| s.end > stable || (lag_ms > 0 && s.max_timestamp_ms > young_ms))?;
    if blocks.end > stable {
        return Some(now_ms.saturating_add(AGAIN_MS));
    }
    Some(blocks.max_timestamp_ms.saturating_add(lag_ms).max(now_ms + 1))
}
