//! What follows from the end of an operation for the log that it belongs to. Floor 1.

use std::collections::VecDeque;

use bytes::Bytes;

use super::log::{GrowingIndex, IndexState, Noticed, Tidy};
use super::moves::SEEK_BYTES;
use super::work::{Amend, Amendment, Growth, Move, Seek, Then, Work};
use super::{NO_SPACE_RETRY, Phase, Storage, UnderWay};
use crate::ids::{Offset, PartitionId};
use crate::log::disk::{DiskError, DiskEvent, DiskOp, FileName, SegmentName};
use crate::log::segment::SegmentMeta;
use crate::log::segment::format::{SEGMENT_HEADER_BYTES, Seed};
use crate::log::segment::index::Index;
use crate::log::segment::scan::{Check, Scanned, Scanner};
use crate::log::{FatalReason, Note, Slot};

impl Storage {
    pub(super) fn on_work_event(&mut self, what: UnderWay, event: DiskEvent) {
        match (what, event) {
            (UnderWay::Put(slot), DiskEvent::Written { result, .. }) => self.on_put(slot, result),
            (UnderWay::PutIndex(slot), DiskEvent::Written { result, .. }) => self.on_put_index(slot, result),
            (UnderWay::List(slot), DiskEvent::FolderListed { result, .. }) => self.on_listed(slot, result),
            (UnderWay::Read(slot), DiskEvent::Read { result, .. }) => self.on_read(slot, result),
            (UnderWay::Amend(slot, file), DiskEvent::Done { result, .. }) => {
                self.on_amended(slot, file, result);
            }
            (UnderWay::RemoveFolder(slot), DiskEvent::Done { result, .. }) => {
                self.on_folder_removed(slot, result);
            }
            (UnderWay::SyncGone(slot), DiskEvent::Synced { .. }) => self.on_gone(slot),
            (what, event) => unreachable!("{event:?} answers no operation of {what:?}"),
        }
    }

    fn work_mut(&mut self, slot: Slot) -> &mut Work {
        let log = self.log_mut(slot).expect("a log with work is kept");
        log.work.as_deref_mut().expect("an operation belongs to a piece of work")
    }

    /// Ends a piece of work; the next one is begun when it is due.
    fn take_work(&mut self, slot: Slot) -> Work {
        self.works -= 1;
        let log = self.log_mut(slot).expect("a log with work is kept");
        *log.work.take().expect("a piece of work ends once")
    }

    /// Queues the log again if there is more to do.
    pub(super) fn reconsider(&mut self, slot: Slot) {
        self.rekey(slot);
        let move_bytes = self.config.move_bytes;
        let Some(log) = self.log_mut(slot) else { return };
        let due = match (log.dropped, log.notes.back()) {
            (Some(dropped), _) => Some(dropped),
            (None, Some(noticed)) => Some(noticed.lsn),
            (None, None) if log.is_worth_a_move(move_bytes) => Some(log.last),
            _ => None,
        };
        if let Some(lsn) = due
            && !log.is_ripe
        {
            log.is_ripe = true;
            self.ripe.push_back((lsn.chunk, slot));
        }
    }

    /// The disk has no room: what was begun is begun again in a while. The journal still has everything.
    pub(super) fn on_no_space(&mut self, file: &dyn std::fmt::Display) {
        if self.no_space_until.is_none() {
            tracing::error!(
                shard = %self.config.journal.shard, %file,
                "no space left to move records to; trying again every second"
            );
        }
        self.no_space_until = Some(self.now + NO_SPACE_RETRY);
    }

    fn on_put(&mut self, slot: Slot, result: Result<(), DiskError>) {
        let Work::Move(work) = self.work_mut(slot) else { unreachable!("a put belongs to a move") };
        work.failed = result.err();
        work.under_way -= 1;
        self.end_move(slot);
    }

    fn on_put_index(&mut self, slot: Slot, result: Result<(), DiskError>) {
        let Work::Move(work) = self.work_mut(slot) else { unreachable!("a put belongs to a move") };
        work.under_way -= 1;
        if let Err(error) = result {
            tracing::warn!(%error, "index entries were not written; the index will have a gap");
        }
        self.end_move(slot);
    }

    fn end_move(&mut self, slot: Slot) {
        let Work::Move(Move { under_way: 0, .. }) = self.work_mut(slot) else { return };
        let Work::Move(work) = self.take_work(slot) else { unreachable!("it was just seen") };
        let log = self.log_mut(slot).expect("a log with work is kept");
        let name = log.name(&work.segment);
        match work.failed {
            Some(DiskError::NoSpace) => {
                let file = FileName::Segment(name);
                let kept = log.segments.last().filter(|_| !work.is_new).map(|last| last.bytes);
                let leftover = kept.map_or(Amendment::Remove(file), |bytes| Amendment::Cut(file, bytes));
                log.leftover = Some(Box::new(leftover));
                log.folder_unsynced |= work.is_new;
                self.on_no_space(&file);
                self.reconsider(slot);
                return;
            }
            Some(error) => {
                self.fail(FatalReason::SegmentFailed { file: FileName::Segment(name), error });
                return;
            }
            None => {}
        }
        let before = log.segment_bytes;
        if work.is_new {
            log.segments.push(work.segment);
            log.segment_bytes += work.segment.bytes;
            log.is_growing = true;
            log.folder_unsynced = true;
        } else {
            let last = log.segments.last_mut().expect("a segment grew");
            log.segment_bytes += work.segment.bytes - last.bytes;
            *last = work.segment;
        }
        log.index = IndexState::Known(work.index);
        log.moved.lsn = work.upto;
        log.moved.end = work.end;
        let from = log.unsynced_from.map_or(work.segment.base, |from| from.min(work.segment.base));
        log.unsynced_from = Some(from);
        let bytes = log.moved_upto(work.upto);
        let grown = log.segment_bytes - before;
        let is_large = log.config.delete
            && log.config.retention_bytes.is_some_and(|max| log.segment_bytes > max)
            && work.is_new;
        if is_large {
            self.oversized.push_back(slot);
        }
        self.unmoved_bytes -= bytes;
        self.counts.segments += u64::from(work.is_new);
        self.counts.segment_bytes += grown;
        self.note_expiry(slot);
        if work.is_new {
            self.compact_soon(slot);
        }
        self.evict();
        self.reconsider(slot);
    }

    /// Removes what is in the log's folder and not of the log, and cuts what is too long.
    fn on_listed(&mut self, slot: Slot, result: Result<Vec<(FileName, u64)>, DiskError>) {
        let _ = self.take_work(slot);
        let log = self.log(slot).expect("a log with work is kept");
        let partition = log.partition;
        let files = match result {
            Ok(files) => files,
            Err(error) => return self.fail(FatalReason::FolderFailed { partition, error }),
        };
        let known = |name: &SegmentName| {
            let at = log.segments.binary_search_by_key(&name.base, |segment| segment.base).ok()?;
            Some(at).filter(|&at| log.segments[at].generation == name.generation)
        };
        let mut todo = VecDeque::new();
        let mut is_there = vec![false; log.segments.len()];
        for (file, bytes) in files {
            let (FileName::Segment(name) | FileName::Index(name)) = file else { continue };
            let Some(at) = known(&name) else {
                // If the log turns out to be damaged, it is all that is left of it.
                if matches!(&self.phase, Phase::Recovering(recovery) if recovery.is_rebuilding()) {
                    return self.park(slot);
                }
                tracing::info!(%file, bytes, "removing a file that an earlier life left behind");
                todo.push_back(Amendment::Remove(file));
                continue;
            };
            let kept = log.segments[at].bytes;
            if matches!(file, FileName::Index(_)) {
                continue;
            }
            is_there[at] = bytes >= kept;
            if bytes > kept {
                tracing::info!(%file, bytes, kept, "cutting off what an earlier life did not checkpoint");
                todo.push_back(Amendment::Cut(file, kept));
            }
        }
        let lacking = is_there.iter().position(|is_there| !is_there).map(|at| log.segments[at]);
        if let Some(segment) = lacking {
            if !self.is_cut_again(slot, segment.end) {
                if self.is_recovering() {
                    return self.park(slot);
                }
                let file = FileName::Segment(log.name(&segment));
                let what = "it is missing or ends too early";
                return self.fail(FatalReason::SegmentDamaged { file, position: segment.bytes, what });
            }
            // Nothing is put behind what is not there.
            self.log_mut(slot).expect("it was just found").is_growing = false;
        }
        // Whoever rebuilds the log without a checkpoint must not find again what is removed here, nor what an earlier life
        // removed that was killed: that is not listed, and a loss of power brings it back.
        self.log_mut(slot).expect("it was just found").folder_unsynced = true;
        if self.amend(slot, &[], todo, Then::Tidied) {
            self.reconsider(slot);
        }
    }

    fn on_read(&mut self, slot: Slot, result: Result<Bytes, DiskError>) {
        match self.work_mut(slot) {
            Work::LoadIndex => self.on_index_loaded(slot, result),
            Work::Seek(seek) if !seek.is_index_loaded => self.on_seek_index(slot, result),
            Work::Seek(_) => self.on_seek_window(slot, result),
            other => unreachable!("nothing is read for {other:?}"),
        }
    }

    fn on_index_loaded(&mut self, slot: Slot, result: Result<Bytes, DiskError>) {
        let _ = self.take_work(slot);
        let log = self.log(slot).expect("a log with work is kept");
        let segment = *log.segments.last().expect("a segment grows");
        let name = log.name(&segment);
        let bytes = result.unwrap_or_default();
        let loaded = Index::load(&name, &bytes, segment.bytes);
        let mut growing = GrowingIndex::resume(&loaded.index, &segment);
        growing.bytes = loaded.good_bytes;
        // Whatever is behind belongs to what was cut off: found later, it would lead astray.
        let mut todo = VecDeque::new();
        if bytes.len() as u64 > loaded.good_bytes {
            todo.push_back(Amendment::Cut(FileName::Index(name), loaded.good_bytes));
            self.reader.forget(name);
        }
        if self.amend(slot, &[], todo, Then::IndexLoaded(growing)) {
            self.reconsider(slot);
        }
    }

    fn on_seek_index(&mut self, slot: Slot, result: Result<Bytes, DiskError>) {
        let log = self.log(slot).expect("a log with work is kept");
        let Some(Work::Seek(seek)) = log.work.as_deref() else { unreachable!("the caller saw it") };
        let segment = log.segments[seek.at];
        let index = Index::load(&log.name(&segment), &result.unwrap_or_default(), segment.bytes).index;
        let position = index.position_for(seek.end);
        let Work::Seek(seek) = self.work_mut(slot) else { unreachable!("it was just seen") };
        seek.is_index_loaded = true;
        seek.hint = index.entries().iter().find(|entry| entry.position == position).map(|e| e.offset);
        seek.position = position;
        seek.index = index;
        self.seek_on(slot);
    }

    fn seek_on(&mut self, slot: Slot) {
        let log = self.log(slot).expect("a log with work is kept");
        let Some(Work::Seek(seek)) = log.work.as_deref() else { unreachable!("the caller saw it") };
        let segment = log.segments[seek.at];
        let file = FileName::Segment(log.name(&segment));
        let position = seek.position;
        let left = usize::try_from(segment.bytes.saturating_sub(position)).unwrap_or(usize::MAX);
        let len = u32::try_from(SEEK_BYTES.max(seek.need).min(left)).unwrap_or(u32::MAX);
        self.ask(UnderWay::Read(slot), |op| DiskOp::Read { op, file, position, len });
    }

    fn on_seek_window(&mut self, slot: Slot, result: Result<Bytes, DiskError>) {
        let log = self.log(slot).expect("a log with work is kept");
        let Some(Work::Seek(seek)) = log.work.as_deref() else { unreachable!("the caller saw it") };
        let segment = log.segments[seek.at];
        let name = log.name(&segment);
        let file = FileName::Segment(name);
        let is_there = result.is_ok();
        let window = match result {
            Ok(window) => window,
            Err(DiskError::Missing) => Bytes::new(),
            Err(error) => return self.fail(FatalReason::SegmentFailed { file, error }),
        };
        let asked = SEEK_BYTES.max(seek.need) as u64;
        let is_cut_short = (window.len() as u64) < asked.min(segment.bytes - seek.position);
        let mut scanner =
            Scanner::new(Seed::of_segment(&name), Check::Headers, &window, seek.position, segment.bytes);
        let (end, hint, seek_from) = (seek.end, seek.hint, seek.position);
        let (mut reached, mut is_misled) = (seek.reached, false);
        let found = loop {
            match scanner.scan() {
                Scanned::Frame(frame) if reached.is_none() && hint.is_some_and(|hint| hint != frame.base) => {
                    is_misled = true;
                    break Scanned::Frame(frame);
                }
                Scanned::Frame(frame) if frame.end() <= end => reached = Some(frame.end()),
                other => break other,
            }
        };
        let position = scanner.position();
        let ends_between = is_there && seek_from + window.len() as u64 == position;
        match found {
            _ if is_misled => self.seek_without_hint(slot),
            Scanned::Frame(frame) => self.cut_segment(slot, frame.position, segment, frame.base.min(end)),
            Scanned::Incomplete { need } if !is_cut_short => {
                let Work::Seek(seek) = self.work_mut(slot) else { unreachable!("it was just seen") };
                seek.reached = reached;
                seek.position = position;
                seek.need = need;
                self.seek_on(slot);
            }
            // An earlier life cut it here already; what it put behind is not whole.
            _ if reached == Some(end) => self.cut_segment(slot, position, segment, end),
            _ if hint.is_some() => self.seek_without_hint(slot),
            // Compaction took what ended there. Such a segment was durable as a whole before it came into use, and nothing
            // but truncations shortened it since: a file that ends between two batches was cut by one, maybe by this.
            Scanned::End | Scanned::Incomplete { .. } if segment.generation > 0 && ends_between => {
                self.cut_segment(slot, position, segment, end);
            }
            // An earlier life cut deeper, by a note that is still to come here: that one finds its place.
            _ if self.is_cut_again(slot, end) => self.cut_loosely(slot, position),
            _ if self.is_recovering() => {
                let _ = self.take_work(slot);
                self.park(slot);
            }
            _ => self.fail(FatalReason::SegmentDamaged { file, position, what: "no batch is there" }),
        }
    }

    /// Whether a note that is still to take effect takes away what lies before `end`, or some of it: in the life before
    /// it may have done so already.
    pub(super) fn is_cut_again(&self, slot: Slot, end: Offset) -> bool {
        let takes_away = |noticed: &Noticed| match noticed.note {
            Note::Truncated { end: cut } => cut < end,
            Note::Started { start } => start >= end,
            Note::Dropped => true,
        };
        self.log(slot).is_some_and(|log| log.notes.iter().any(takes_away))
    }

    /// The log goes on once all of the journal was replayed.
    pub(super) fn park(&mut self, slot: Slot) {
        self.wait(slot);
        self.parked.push(slot);
    }

    /// The log does nothing until its work is resumed.
    pub(super) fn wait(&mut self, slot: Slot) {
        self.log_mut(slot).expect("the caller found it").work = Some(Box::new(Work::Wait));
        self.rekey(slot);
    }

    /// The journal was replayed.
    pub(super) fn unpark(&mut self) {
        for slot in std::mem::take(&mut self.parked) {
            self.resume_work(slot);
        }
    }

    /// A log that waited goes on.
    pub(super) fn resume_work(&mut self, slot: Slot) {
        let Some(log) = self.log_mut(slot) else { return };
        if matches!(log.work.as_deref(), Some(Work::Wait)) {
            log.work = None;
            if !log.is_ripe {
                log.is_ripe = true;
                self.ripe.push_front((0, slot));
            }
            self.rekey(slot);
        }
    }

    /// The index led astray: the segment is searched from its beginning.
    fn seek_without_hint(&mut self, slot: Slot) {
        let Work::Seek(seek) = self.work_mut(slot) else { unreachable!("the caller saw it") };
        seek.hint = None;
        seek.reached = None;
        seek.need = 0;
        seek.position = SEGMENT_HEADER_BYTES as u64;
        seek.index = Index::default();
        self.seek_on(slot);
    }

    /// The place was found: the segment ends at `position` from now on, and those behind it go.
    fn cut_segment(&mut self, slot: Slot, position: u64, segment: SegmentMeta, segment_end: Offset) {
        let Work::Seek(seek) = self.take_work(slot) else { unreachable!("the caller saw it") };
        let Seek { lsn, end, at, mut index, .. } = *seek;
        let log = self.log(slot).expect("a log with work is kept");
        let name = log.name(&segment);
        let mut segments = log.segments.clone();
        let removed: Vec<SegmentMeta> = segments.drain(at + 1..).collect();
        let cut = segments.last_mut().expect("the segment that is cut stays");
        cut.bytes = position;
        cut.end = segment_end;
        index.truncate(position);
        let growing = GrowingIndex::resume(&index, cut);
        let index_bytes = growing.bytes;
        let start = log.moved.start.min(end);
        let todo = VecDeque::from([
            Amendment::Cut(FileName::Segment(name), position),
            Amendment::Cut(FileName::Index(name), index_bytes),
        ]);
        self.reader.cut(name, position);
        let then = Then::Noted { lsn, segments, start, end, grows: Growth::Cut(growing) };
        self.amend(slot, &removed, todo, then);
    }

    /// The segment does not have the place any more: a note that is still to come took away more in an earlier life.
    /// It will again, so nothing is put into this segment.
    fn cut_loosely(&mut self, slot: Slot, position: u64) {
        let Work::Seek(seek) = self.take_work(slot) else { unreachable!("the caller saw it") };
        let Seek { lsn, end, at, .. } = *seek;
        let log = self.logs[slot.0 as usize].as_deref().expect("a log with work is kept");
        let mut segments = log.segments.clone();
        let is_taken_whole = log.notes.iter().any(|noticed| match noticed.note {
            Note::Started { start } => start >= end,
            Note::Dropped => true,
            Note::Truncated { .. } => false,
        });
        let removed: Vec<SegmentMeta> = segments.drain(at + usize::from(!is_taken_whole)..).collect();
        if !is_taken_whole {
            let name = log.name(&segments[at]);
            segments[at].bytes = position;
            segments[at].end = end;
            self.reader.forget(name);
        }
        let start = log.moved.start.min(end);
        let then = Then::Noted { lsn, segments, start, end, grows: Growth::Closed };
        if self.amend(slot, &removed, VecDeque::new(), then) {
            self.reconsider(slot);
        }
    }

    fn on_amended(&mut self, slot: Slot, file: FileName, result: Result<(), DiskError>) {
        let Work::Amend(amend) = self.work_mut(slot) else { unreachable!("it belongs to an amendment") };
        amend.under_way -= 1;
        if let Err(error) = result {
            amend.failed = Some((file, error));
        }
        if !amend.is_done() {
            self.go_on_amending(slot);
            return;
        }
        let Work::Amend(Amend { failed, then, .. }) = self.take_work(slot) else {
            unreachable!("it was just seen");
        };
        match failed {
            Some((file, DiskError::NoSpace)) => self.on_no_space(&file),
            Some((file, error)) => {
                self.fail(FatalReason::SegmentFailed { file, error });
                return;
            }
            None => self.amended(slot, then),
        }
        self.reconsider(slot);
    }

    /// What was to be true once files were amended is.
    pub(super) fn amended(&mut self, slot: Slot, then: Then) {
        let is_clean = self.is_clean_start;
        if let Then::Noted { segments, .. } = &then {
            self.tell_reader(slot, segments);
        }
        let log = self.log_mut(slot).expect("the caller found it");
        match then {
            Then::Tidied => {
                log.tidy = Tidy::Tidied;
                self.compact_soon(slot);
            }
            Then::Cleared => log.leftover = None,
            Then::IndexLoaded(index) => {
                log.index = IndexState::Known(index);
                // Of a life that was cut off, what the file held before may still come back.
                log.index_unsynced |= !is_clean;
            }
            Then::Noted { lsn, segments, start, end, grows } => {
                let noticed = log.notes.pop_front().expect("the note waits until it takes effect");
                assert_eq!(noticed.lsn, lsn, "notes take effect in order");
                log.changes = log.changes.wrapping_add(1);
                let before = (log.segments.len(), log.segment_bytes);
                let last = log.segments.last().map(|segment| segment.base);
                log.folder_unsynced |= log.segments.len() != segments.len();
                log.is_growing &= segments.last().map(|segment| segment.base) == last;
                log.segments = segments;
                log.recount();
                log.moved.lsn = lsn;
                log.moved.start = start;
                log.moved.end = end;
                log.cleaned = log.cleaned.min(end);
                match grows {
                    Growth::AsBefore => {}
                    Growth::Closed => log.is_growing = false,
                    Growth::Cut(index) => {
                        let cut = *log.segments.last().expect("the segment that was cut is there");
                        log.is_growing = cut.generation == 0;
                        log.index = IndexState::Known(index);
                        log.index_unsynced = true;
                        let from = log.unsynced_from.map_or(cut.base, |from| from.min(cut.base));
                        log.unsynced_from = Some(from);
                    }
                }
                if !log.is_growing {
                    log.index = IndexState::Unknown;
                }
                let after = (log.segments.len(), log.segment_bytes);
                self.counts.segments -= (before.0 - after.0) as u64;
                self.counts.segment_bytes = self.counts.segment_bytes + after.1 - before.1;
                self.note_expiry(slot);
                self.compact_soon(slot);
                // The sizes and ages that count for retention are other ones now.
                self.oversized.push_back(slot);
            }
        }
    }

    /// Lets the reader forget what it may have read of files while they were being removed or cut.
    fn tell_reader(&mut self, slot: Slot, segments: &[SegmentMeta]) {
        let log = self.logs[slot.0 as usize].as_deref().expect("the caller found it");
        for old in &log.segments {
            let new = segments.iter().find(|new| new.base == old.base && new.generation == old.generation);
            match new {
                None => self.reader.forget(log.name(old)),
                Some(new) if new.bytes < old.bytes => self.reader.cut(log.name(old), new.bytes),
                Some(_) => {}
            }
        }
    }

    fn on_folder_removed(&mut self, slot: Slot, result: Result<(), DiskError>) {
        let partition = self.log(slot).expect("a log with work is kept").partition;
        if let Err(error) = result {
            tracing::warn!(%partition, %error, "the folder of a deleted partition was not removed; it is left");
        }
        self.ask(UnderWay::SyncGone(slot), |op| DiskOp::SyncFolder { op, partition });
    }

    /// The folder is gone and stays so, unless that failed: then a start without a checkpoint may find it again.
    fn on_gone(&mut self, slot: Slot) {
        let _ = self.take_work(slot);
        if let Some(key) = self.log_mut(slot).and_then(|log| log.key.take()) {
            self.waiting.remove(&(key, slot));
            self.busy.remove(&(key, slot));
        }
        let log = self.logs[slot.0 as usize].take().expect("a log with work is kept");
        self.counts.segments -= log.segments.len() as u64;
        self.counts.segment_bytes -= log.segment_bytes;
        self.counts.segments_deleted += log.segments.len() as u64;
        self.folder_removed(log.partition);
    }

    /// A log that was opened for the same partition meanwhile can go on.
    pub(super) fn folder_removed(&mut self, partition: PartitionId) {
        let Some(removing) = self.removing.get_mut(&partition) else { return };
        removing.logs.pop_front();
        let next = match removing.logs.front() {
            Some(&next) => next,
            None => self.removing.remove(&partition).and_then(|removing| removing.waits),
        };
        if let Some(slot) = next {
            self.resume_work(slot);
        }
    }
}
