//! Which log is worked on next, and how a piece of work begins. Floor 1.
//!
//! A log is moved when it has enough flushed bytes, when a note of it is flushed, when all logs together have more
//! unmoved bytes than they should (those with the oldest entries first), or when a checkpoint waits for it.

use std::collections::VecDeque;

use super::log::{GrowingIndex, IndexState, Log, Noticed, Tidy};
use super::work::{Amend, Amendment, Growth, Limits, Seek, Then, Work, prepare_move};
use super::{Phase, Stop, Storage, UnderWay};
use crate::ids::Offset;
use crate::log::disk::{DiskOp, FileName};
use crate::log::segment::SegmentMeta;
use crate::log::segment::format::SEGMENT_HEADER_BYTES;
use crate::log::segment::index::{INDEX_ENTRY_BYTES, INDEX_HEADER_BYTES, INTERVAL_BYTES};
use crate::log::{Lsn, Note, Slot};

/// How much of a segment is read at once to find a place in it.
pub(super) const SEEK_BYTES: usize = 256 * 1024;
/// Pieces of work in flight while they are not behind: more would only stand before what is waited for, at the disk and
/// on this core.
const WORKS_AT_EASE: usize = 4;

impl Storage {
    /// Notes where the log stands in the order of unmoved work.
    pub(super) fn rekey(&mut self, slot: Slot) {
        let Some(log) = self.logs.get_mut(slot.0 as usize).and_then(|log| log.as_deref_mut()) else {
            return;
        };
        if let Some(old) = log.key.take() {
            self.waiting.remove(&(old, slot));
            self.busy.remove(&(old, slot));
        }
        log.key = log.first_unmoved();
        if let Some(key) = log.key {
            let set = if log.work.is_some() { &mut self.busy } else { &mut self.waiting };
            set.insert((key, slot));
        }
    }

    /// The first entry of any log that the segments do not know.
    pub(super) fn first_unmoved(&self) -> Option<Lsn> {
        [self.waiting.first(), self.busy.first()].into_iter().flatten().map(|&(lsn, _)| lsn).min()
    }

    /// Whether segments may change.
    pub(super) fn can_move(&self) -> bool {
        match &self.phase {
            Phase::Recovering(recovery) => recovery.may_move(),
            Phase::Running => true,
            Phase::Stopped | Phase::Failed => false,
        }
    }

    /// Begins as many pieces of work as there may be.
    pub(super) fn begin_works(&mut self) {
        if self.no_space_until.is_some() || !self.can_move() {
            return;
        }
        while self.works < self.works_max() && !matches!(self.phase, Phase::Failed) {
            let Some(slot) = self.next_to_work_on() else { return };
            self.begin(slot);
        }
    }

    fn works_max(&self) -> usize {
        let max = self.config.moves_in_flight_max;
        if self.is_behind() || self.is_recovering() { max } else { max.min(WORKS_AT_EASE) }
    }

    /// Whether more is unmoved than should be.
    fn is_behind(&self) -> bool {
        self.is_pressed
            || self.unmoved_bytes > self.config.unmoved_bytes_soft
            || self.memory.bytes() > self.config.tail_bytes_max
            || self.stop == Stop::Settling
    }

    fn next_to_work_on(&mut self) -> Option<Slot> {
        while let Some(&(chunk, slot)) = self.ripe.front() {
            if chunk > self.flushed {
                break;
            }
            self.ripe.pop_front();
            let Some(log) = self.log_mut(slot) else { continue };
            log.is_ripe = false;
            if log.work.is_none() {
                return Some(slot);
            }
        }
        let is_behind = self.is_behind();
        let target = self.checkpoints.target();
        if let Some(&(lsn, slot)) = self.waiting.first()
            && lsn.chunk <= self.flushed
            && (is_behind || target.is_some_and(|target| lsn <= target))
        {
            return Some(slot);
        }
        while let Some(slot) = self.untidy.pop_front() {
            if self.live(slot).is_some_and(|log| !self.is_tidy(log) && log.work.is_none()) {
                return Some(slot);
            }
        }
        None
    }

    pub(super) fn is_tidy(&self, log: &Log) -> bool {
        match log.tidy {
            Tidy::Tidied => true,
            Tidy::AsLeft => self.is_clean_start,
            Tidy::Unknown => false,
        }
    }

    /// Begins the next piece of work of a log that has none, if there is one.
    fn begin(&mut self, slot: Slot) {
        while self.begin_one(slot) {}
        self.rekey(slot);
    }

    /// `true`: something was done that needed no disk, and there may be more.
    fn begin_one(&mut self, slot: Slot) -> bool {
        let flushed = self.flushed;
        let limits = Limits { flushed, wall_ms: self.wall_ms() };
        let Some(log) = self.log(slot) else { return false };
        let partition = log.partition;
        // A note that is replayed may be one of a log that turns out to be damaged; what is cut off or removed cannot be had
        // back.
        if self.is_recovering() && (log.dropped.is_some() || log.starts_with_note()) {
            self.park(slot);
            return false;
        }
        if let Some(dropped) = log.dropped {
            let removing = self.removing.get(&partition).expect("a dropped log is to be removed");
            if removing.logs.front() != Some(&Some(slot)) {
                // One that was dropped before it may still be worked on.
                self.log_mut(slot).expect("it was just found").work = Some(Box::new(Work::Wait));
            } else if dropped.chunk <= flushed && !self.waits_for_compaction(slot) {
                self.set_work(slot, Work::RemoveFolder);
                self.ask(UnderWay::RemoveFolder(slot), |op| DiskOp::RemoveFolder { op, partition });
            }
            return false;
        }
        if self.removing.contains_key(&partition) {
            self.removing.get_mut(&partition).expect("it was just found").waits = Some(slot);
            self.log_mut(slot).expect("it was just found").work = Some(Box::new(Work::Wait));
            return false;
        }
        if !self.is_tidy(log) {
            self.set_work(slot, Work::List);
            self.ask(UnderWay::List(slot), |op| DiskOp::ListFolder { op, partition });
            return false;
        }
        if let Some(leftover) = &log.leftover {
            let todo = VecDeque::from([**leftover]);
            return self.amend(slot, &[], todo, Then::Cleared);
        }
        let batch = log.tail.get(log.tail_moved).map(|batch| batch.lsn);
        if let Some(&noticed) = log.notes.front()
            && log.starts_with_note()
        {
            return noticed.lsn.chunk <= flushed && self.begin_note(slot, noticed);
        }
        if batch.is_none_or(|batch| batch.chunk > flushed) {
            return false;
        }
        if log.is_growing && matches!(log.index, IndexState::Unknown) {
            return self.begin_load_index(slot);
        }
        self.begin_move(slot, limits);
        false
    }

    fn set_work(&mut self, slot: Slot, work: Work) {
        let log = self.log_mut(slot).expect("the caller found it");
        assert!(log.work.is_none(), "one piece of work of a log at a time");
        log.work = Some(Box::new(work));
        self.works += 1;
    }

    fn begin_move(&mut self, slot: Slot, limits: Limits) {
        let log = self.log(slot).expect("the caller found it");
        let Some((work, puts)) = prepare_move(log, limits) else { return };
        self.set_work(slot, Work::Move(work));
        let data = puts.data;
        self.ask(UnderWay::Put(slot), |op| DiskOp::Put {
            op,
            file: data.file,
            position: data.position,
            parts: data.parts,
        });
        for put in puts.indexes {
            self.ask(UnderWay::PutIndex(slot), |op| DiskOp::Put {
                op,
                file: put.file,
                position: put.position,
                parts: put.parts,
            });
        }
    }

    /// `true`: there is nothing to load.
    fn begin_load_index(&mut self, slot: Slot) -> bool {
        let is_clean = self.is_clean_start;
        let log = self.log_mut(slot).expect("the caller found it");
        let segment = *log.segments.last().expect("a segment grows");
        let has_entries = segment.bytes > SEGMENT_HEADER_BYTES as u64 + INTERVAL_BYTES;
        if is_clean && log.tidy == Tidy::AsLeft && !has_entries {
            let index = GrowingIndex::resume(&Default::default(), &segment);
            log.index = IndexState::Known(index);
            return true;
        }
        let file = FileName::Index(log.name(&segment));
        self.set_work(slot, Work::LoadIndex);
        let len = index_bytes_max(&segment);
        self.ask(UnderWay::Read(slot), |op| DiskOp::Read { op, file, position: 0, len });
        false
    }

    /// Lets a flushed note take effect. `true`: it did at once.
    fn begin_note(&mut self, slot: Slot, noticed: Noticed) -> bool {
        let Noticed { lsn, note } = noticed;
        if self.changes_segments(slot, note) && self.waits_for_compaction(slot) {
            return false;
        }
        let log = self.log(slot).expect("the caller found it");
        let (start, end) = (log.moved.start, log.moved.end);
        let mut segments = log.segments.clone();
        let mut removed = Vec::new();
        let (start, end) = match note {
            Note::Started { start: new } => {
                let kept = segments.partition_point(|segment| segment.end <= new && new > start);
                removed.extend(segments.drain(..kept));
                (start.max(new), end.max(new))
            }
            Note::Truncated { end: new } => {
                let kept = segments.partition_point(|segment| segment.base < new);
                removed.extend(segments.drain(kept..));
                if let Some(last) = segments.last()
                    && last.end > new
                {
                    let file = FileName::Index(log.name(last));
                    let len = index_bytes_max(last);
                    let seek = Seek::new(lsn, new, segments.len() - 1);
                    self.set_work(slot, Work::Seek(Box::new(seek)));
                    self.ask(UnderWay::Read(slot), |op| DiskOp::Read { op, file, position: 0, len });
                    return false;
                }
                (start.min(new), end.min(new))
            }
            Note::Dropped => unreachable!("a dropped log is not worked on but to be removed"),
        };
        let then = Then::Noted { lsn, segments, start, end, grows: Growth::AsBefore };
        self.amend(slot, &removed, VecDeque::new(), then)
    }

    /// Removes files of a log and amends others. `true`: there were none, and what was to follow has.
    pub(super) fn amend(
        &mut self,
        slot: Slot,
        removed: &[SegmentMeta],
        mut todo: VecDeque<Amendment>,
        then: Then,
    ) -> bool {
        let log = self.logs[slot.0 as usize].as_deref().expect("the caller found it");
        for name in removed.iter().map(|segment| log.name(segment)) {
            self.reader.forget(name);
            todo.push_back(Amendment::Remove(FileName::Segment(name)));
            todo.push_back(Amendment::Remove(FileName::Index(name)));
        }
        if let &Then::Noted { end, .. } = &then {
            // Of this note: what an earlier one took away, the checkpoint that is there may count on again. One that takes
            // no segment does not wait for a compaction's end, and none of the old files is uncovered by it.
            let start = match log.notes.front() {
                Some(Noticed { note: Note::Started { start }, .. }) if !removed.is_empty() => *start,
                _ => Offset::ZERO,
            };
            todo.extend(self.checkpoints.take_doomed(log.partition, (start, end)).map(Amendment::Remove));
        }
        if todo.is_empty() {
            self.amended(slot, then);
            return true;
        }
        self.counts.segments_deleted += removed.len() as u64;
        self.set_work(slot, Work::Amend(Amend::new(todo, then)));
        self.go_on_amending(slot);
        false
    }

    pub(super) fn go_on_amending(&mut self, slot: Slot) {
        loop {
            let log = self.log_mut(slot).expect("a log with work is kept");
            let Some(Work::Amend(amend)) = log.work.as_deref_mut() else {
                unreachable!("the caller found this work");
            };
            let Some(next) = amend.next() else { return };
            match next {
                Amendment::Remove(file) => {
                    self.ask(UnderWay::Amend(slot, file), |op| DiskOp::Remove { op, file });
                }
                Amendment::Cut(file, len) => {
                    self.ask(UnderWay::Amend(slot, file), |op| DiskOp::Cut { op, file, len });
                }
            }
        }
    }

    /// Lets go of memory beyond the budget, as far as it was moved.
    pub(super) fn evict(&mut self) {
        while self.memory.bytes() > self.config.tail_bytes_max
            && let Some(oldest) = self.memory.oldest()
        {
            let is_free = self.log_mut(oldest.slot).is_none_or(|log| log.evict(oldest.lsn).is_some());
            if !is_free {
                return;
            }
            self.memory.pop();
        }
    }
}

/// The longest that the index of a segment can be.
pub(super) fn index_bytes_max(segment: &SegmentMeta) -> u32 {
    let entries = segment.bytes / INTERVAL_BYTES + 1;
    let bytes = INDEX_HEADER_BYTES as u64 + entries * INDEX_ENTRY_BYTES as u64;
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
