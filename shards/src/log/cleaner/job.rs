//! One compaction as it runs: two passes over the segments, one operation on the disk at a time.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

use super::super::disk::{DiskEvent, DiskOp, FileName, OpNo, SegmentName};
use super::super::segment::SegmentMeta;
use super::super::segment::format::{BadHeader, SEGMENT_HEADER_BYTES, Seed, SegmentHeader};
use super::super::segment::scan::{Check, FIRST_FRAME, Frame, Scanned, Scanner};
use super::keys::KeyMap;
use super::output::{Output, Todo};
use super::stay::{Fate, Rule, Scratch, records};
use super::{Damage, Done, Failure, GENERATION_MAX, Job, Outcome};
use crate::batch::parse_header;
use crate::ids::{Map, Offset, PartitionId, ProducerId};

/// A running job; see the description of `cleaner`.
///
/// Drive it so: after `new`, each `credit`, each `handle` and `cancel`, call `poll_op` until it says `None`. Then
/// either an operation is under way, or there is an `outcome`, or it `wants_credit`: then nothing moves until the owner
/// gives some, at its own pace. Work on the CPU is done within `poll_op`, one window at a time; credit pays for it too.
#[derive(Debug)]
pub struct Cleaning {
    partition: PartitionId,
    /// Those of the job; once the map is made, those that it reaches.
    segments: Vec<SegmentMeta>,
    segment_bytes: u64,
    window_bytes: usize,
    /// The base of the newest batch of each producer.
    producers: Map<ProducerId, Offset>,
    rule: Rule,
    phase: Phase,
    source: Source,
    /// Which segments become one.
    groups: VecDeque<Range<usize>>,
    output: Option<Output>,
    /// What this job made, to be removed if it fails.
    made: Vec<SegmentName>,
    todo: VecDeque<Todo>,
    under_way: Option<UnderWay>,
    is_cancelled: bool,
    scratch: Scratch,
    /// A batch stayed whole though it may hold older values of any key.
    is_behind_whole: bool,
    /// Below zero it owes.
    credit: i64,
    /// How many bytes may be worked on before the owner has its turn.
    turn: usize,
    done: Done,
    outcome: Option<Outcome>,
}

#[derive(Debug)]
enum Phase {
    /// The first pass. `has_batch`: one of the dirty part is in the map as a whole.
    Map { has_batch: bool },
    /// The second one.
    Copy,
    /// All is written; what is left is to make it durable.
    Finish,
    /// The files of the job are removed.
    Remove(Failure),
}

/// Where a pass is.
#[derive(Debug)]
struct Source {
    segment: usize,
    /// Of the next frame; 0: the segment's header was not read yet.
    position: u64,
    /// What was read, and from where on.
    window: Bytes,
    window_at: u64,
    /// The largest frame so far that did not fit a window: later ones are made so large.
    need: usize,
    /// One past the last batch.
    end: Offset,
}

impl Source {
    fn at(segment: usize) -> Self {
        Self { segment, position: 0, window: Bytes::new(), window_at: 0, need: 0, end: Offset::ZERO }
    }

    fn next_segment(&mut self) {
        *self = Self { need: self.need, end: self.end, ..Self::at(self.segment + 1) };
    }
}

#[derive(Debug)]
struct UnderWay {
    op: OpNo,
    file: Option<FileName>,
    /// How many bytes a read must bring.
    expected: u32,
}

/// What comes next in a pass.
enum Next {
    Batch(Frame, Bytes),
    Read { len: usize },
    SegmentEnd,
    Damaged(Damage),
}

impl Cleaning {
    pub fn new(job: Job) -> Self {
        let Job { partition, mut segments, dirty_from, upto, limits, .. } = job;
        assert!(segments.is_sorted_by(|a, b| a.end <= b.base), "the segments come in order");
        let is_free = |s: &&SegmentMeta| s.end <= upto && s.generation < GENERATION_MAX;
        segments.truncate(segments.iter().take_while(is_free).count());
        let first = segments.iter().position(|s| s.end > dirty_from);
        let dirty_bytes: u64 = segments[first.unwrap_or(segments.len())..].iter().map(|s| s.bytes).sum();
        // Compressed records take a few bytes at least, plain ones more: a small log needs no large map.
        let map_bytes = usize::try_from(dirty_bytes.saturating_mul(12)).unwrap_or(usize::MAX);
        let mut producers = Map::default();
        for producer in &job.producers {
            if let Some(newest) = producer.batches.iter().rev().find(|b| b.base < upto) {
                producers.insert(producer.id, newest.base);
            }
        }
        let rule = Rule {
            keys: KeyMap::new(map_bytes.min(limits.map_bytes_max), job.seed),
            dirty: dirty_from..segments.last().map_or(dirty_from, |s| s.end),
            now_ms: job.now_ms,
            tombstone_ms: job.tombstone_ms,
            decompressed_bytes_max: limits.decompressed_bytes_max,
            batch_bytes_max: limits.batch_bytes_max,
        };
        let done = Done {
            replaced: Vec::new(),
            by: Vec::new(),
            cleaned: dirty_from,
            bytes_in: 0,
            bytes_out: 0,
            records_in: 0,
            records_out: 0,
            kept_whole: 0,
        };
        Self {
            partition,
            segments,
            segment_bytes: job.segment_bytes,
            window_bytes: limits.window_bytes.max(SEGMENT_HEADER_BYTES),
            producers,
            rule,
            phase: Phase::Map { has_batch: false },
            source: Source::at(first.unwrap_or(0)),
            groups: VecDeque::new(),
            output: None,
            made: Vec::new(),
            todo: VecDeque::new(),
            under_way: None,
            is_cancelled: false,
            scratch: Scratch::default(),
            is_behind_whole: false,
            credit: 0,
            turn: 0,
            done,
            outcome: first.is_none().then_some(Outcome::Nothing),
        }
    }

    /// The next operation, numbered by `next`; at most one is under way at a time.
    pub fn poll_op(&mut self, next: &mut dyn FnMut() -> OpNo) -> Option<DiskOp> {
        if self.under_way.is_some() {
            return None;
        }
        while self.outcome.is_none() {
            let is_removing = matches!(self.phase, Phase::Remove(_));
            if self.credit <= 0 && !is_removing {
                return None;
            }
            if let Some(todo) = self.todo.pop_front() {
                self.pay(todo.bytes());
                let expected = if let Todo::Read { len, .. } = todo { len } else { 0 };
                let op = next();
                self.under_way = Some(UnderWay { op, file: todo.file(), expected });
                return Some(todo.into_op(op));
            }
            if self.turn == 0 && !is_removing {
                return None;
            }
            self.work();
        }
        None
    }

    /// Takes what became of its operation. `false`: it is none of this job's, and nothing happened.
    ///
    /// # Panics
    /// If the event is of another kind than the operation: the driver's bug.
    pub fn handle(&mut self, event: &DiskEvent) -> bool {
        let Some(under_way) = self.under_way.take_if(|u| u.op == event.op()) else { return false };
        self.turn = self.window_bytes;
        let result = match event {
            DiskEvent::Read { result, .. } => result.clone().map(|bytes| self.on_window(&under_way, bytes)),
            DiskEvent::Written { result, .. }
            | DiskEvent::Synced { result, .. }
            | DiskEvent::Done { result, .. } => *result,
            other => panic!("{other:?} answers none of a compaction's operations"),
        };
        // A file that cannot be removed is in no checkpoint: the next start deletes it.
        if matches!(self.phase, Phase::Remove(_)) {
            return true;
        }
        match (result, under_way.file) {
            _ if self.is_cancelled => self.fail(Failure::Cancelled),
            (Err(error), file) => {
                let file = file.unwrap_or(FileName::Segment(self.name(self.source_segment())));
                self.fail(Failure::Disk { file, error });
            }
            (Ok(()), _) => {}
        }
        true
    }

    /// Lets it read, write and unpack so many bytes more, and gives it a turn. What one window costs beyond that is
    /// owed.
    pub fn credit(&mut self, bytes: u64) {
        self.credit = self.credit.saturating_add_unsigned(bytes);
        self.turn = self.window_bytes;
    }

    /// Whether it has used up its credit.
    pub fn owes(&self) -> bool {
        self.credit <= 0
    }

    /// Whether it waits for [`Self::credit`], and for nothing else: of 0 bytes if it only gave up its turn.
    pub fn wants_credit(&self) -> bool {
        self.outcome.is_none()
            && self.under_way.is_none()
            && !matches!(self.phase, Phase::Remove(_))
            && (self.credit <= 0 || self.turn == 0)
    }

    /// Gives the job up: its files are removed, then it has failed as cancelled. Nothing changes if it has ended or
    /// failed already.
    pub fn cancel(&mut self) {
        if self.outcome.is_some() || matches!(self.phase, Phase::Remove(_)) {
            return;
        }
        if self.under_way.is_some() {
            self.is_cancelled = true;
        } else {
            self.fail(Failure::Cancelled);
        }
    }

    /// How it ended; from then on it asks for nothing.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    fn name(&self, segment: SegmentMeta) -> SegmentName {
        SegmentName { partition: self.partition, base: segment.base, generation: segment.generation }
    }

    fn source_segment(&self) -> SegmentMeta {
        let last = self.segments.len() - 1;
        self.segments[self.source.segment.min(last)]
    }

    fn pay(&mut self, bytes: u64) {
        self.credit = self.credit.saturating_sub_unsigned(bytes);
    }

    fn on_window(&mut self, under_way: &UnderWay, bytes: Bytes) {
        self.source.window_at = self.source.position;
        let is_short = bytes.len() < under_way.expected as usize;
        self.source.window = bytes;
        if is_short && !self.is_cancelled && !matches!(self.phase, Phase::Remove(_)) {
            self.damaged(Damage::Short);
        }
    }

    /// A piece of work: one batch, or what lies between two.
    fn work(&mut self) {
        match &self.phase {
            Phase::Finish => {
                self.outcome = Some(Outcome::Done(self.done.clone()));
                return;
            }
            Phase::Remove(failure) => {
                self.outcome = Some(Outcome::Failed(failure.clone()));
                return;
            }
            Phase::Map { .. } | Phase::Copy => {}
        }
        match self.next() {
            Next::Read { len } => {
                let segment = self.source_segment();
                let left = segment.bytes - self.source.position;
                let len = u32::try_from(left.min(len as u64)).expect("a batch has less than 2 GiB");
                let file = FileName::Segment(self.name(segment));
                self.todo.push_back(Todo::Read { file, position: self.source.position, len });
            }
            Next::Damaged(what) => self.damaged(what),
            Next::Batch(frame, batch) => {
                if let Phase::Map { has_batch } = self.phase {
                    self.map(&frame, &batch, has_batch);
                } else {
                    self.copy(&frame, &batch);
                }
                let unpacked = self.scratch.unpacked_bytes();
                self.pay(unpacked as u64);
                self.turn = self.turn.saturating_sub(batch.len() + unpacked);
            }
            Next::SegmentEnd => self.on_segment_end(),
        }
    }

    /// Goes to the next batch; its bytes share the window's memory.
    fn next(&mut self) -> Next {
        let segment = self.source_segment();
        let name = self.name(segment);
        let source = &mut self.source;
        let len = source.need.max(self.window_bytes);
        if source.position == 0 {
            if segment.bytes < SEGMENT_HEADER_BYTES as u64 {
                return Next::Damaged(BadHeader::Short.into());
            }
            if source.window.is_empty() {
                return Next::Read { len };
            }
            if let Err(bad) = SegmentHeader::parse_of(&name, &source.window) {
                return Next::Damaged(bad.into());
            }
            source.position = FIRST_FRAME;
        }
        let skip = usize::try_from(source.position - source.window_at).expect("within the window");
        let window = source.window.slice(skip..);
        let seed = Seed::of_segment(&name);
        match Scanner::new(seed, Check::All, &window, source.position, segment.bytes).scan() {
            Scanned::End => Next::SegmentEnd,
            Scanned::Incomplete { need } => {
                source.need = source.need.max(need);
                Next::Read { len: source.need.max(self.window_bytes) }
            }
            Scanned::Bad(bad) => Next::Damaged(bad.into()),
            Scanned::Frame(frame) => {
                if frame.base < source.end.max(segment.base) || frame.end() > segment.end {
                    return Next::Damaged(Damage::Order);
                }
                source.position = frame.end_position();
                source.end = frame.end();
                let batch = window.slice(frame.batch.clone());
                Next::Batch(frame, batch)
            }
        }
    }

    fn on_segment_end(&mut self) {
        self.source.next_segment();
        let is_last = self.source.segment == self.segments.len();
        if matches!(self.phase, Phase::Map { .. }) {
            if is_last {
                self.begin_copy(self.rule.dirty.end);
            }
            return;
        }
        if self.groups.front().is_some_and(|group| group.end == self.source.segment) {
            self.groups.pop_front();
            if let Some(output) = self.output.take() {
                let segment = output.close(&mut self.todo);
                self.done.bytes_out += segment.bytes;
                self.done.by.push(segment);
            }
        }
        if is_last {
            if !self.done.by.is_empty() {
                self.todo.push_back(Todo::SyncFolder(self.partition));
            }
            self.phase = Phase::Finish;
        }
    }

    /// First pass: notes the keys of a batch.
    fn map(&mut self, frame: &Frame, batch: &[u8], has_batch: bool) {
        self.scratch.clear();
        if frame.end() <= self.rule.dirty.start || frame.header.attributes.is_control() {
            return;
        }
        let bytes_max = self.rule.decompressed_bytes_max;
        let Ok(records) = records(&frame.header, batch, bytes_max, self.scratch.unpacked_mut()) else {
            return;
        };
        // Only a batch that clients can read as a whole takes the place of older records.
        if records.clone().any(|record| record.is_err()) {
            return;
        }
        let mut is_full = false;
        for record in records.flatten() {
            let offset = frame.base.plus(u64::from(record.offset_delta));
            let Some(key) = record.key else { continue };
            if self.rule.keys.note(key, offset) {
                continue;
            }
            // The dirty part ends before this batch. Those of its keys that are in the map do no harm there: their
            // newest records stay in this batch, and older ones may go.
            if has_batch {
                return self.begin_copy(frame.base);
            }
            // One batch with more keys than the map holds: records of the others stay.
            is_full = true;
        }
        if is_full {
            self.begin_copy(frame.end());
        } else {
            self.phase = Phase::Map { has_batch: true };
        }
    }

    /// Begins the second pass, over all segments that begin before `end`.
    fn begin_copy(&mut self, end: Offset) {
        self.rule.dirty.end = end;
        self.segments.retain(|s| s.base < end);
        self.phase = Phase::Copy;
        self.source = Source { need: self.source.need, ..Source::at(0) };
        self.done.cleaned = end;
        self.done.replaced = self.segments.iter().map(|s| self.name(*s)).collect();
        self.done.bytes_in = self.segments.iter().map(|s| s.bytes).sum();
        let mut bytes = 0;
        for (i, segment) in self.segments.iter().enumerate() {
            match self.groups.back_mut() {
                Some(group) if bytes + segment.bytes <= self.segment_bytes => {
                    group.end = i + 1;
                    bytes += segment.bytes;
                }
                _ => {
                    self.groups.push_back(i..i + 1);
                    bytes = segment.bytes;
                }
            }
        }
    }

    /// Second pass: writes what stays of a batch.
    fn copy(&mut self, frame: &Frame, batch: &[u8]) {
        let group = self.groups.front().expect("a segment that is read belongs to a group").clone();
        let is_last = self.source.segment + 1 == group.end
            && frame.end_position() == self.segments[self.source.segment].bytes;
        let is_remembered =
            frame.header.producer.is_some_and(|p| self.producers.get(&p.id) == Some(&frame.base));
        let header_stays = is_last || is_remembered;
        let fate = self.rule.fate(frame, batch, header_stays, self.is_behind_whole, &mut self.scratch);
        self.done.records_in += u64::from(frame.header.records);
        let (records, is_new) = match fate {
            Fate::Gone => return,
            Fate::AsItIs => (frame.header.records, false),
            Fate::Whole => {
                self.is_behind_whole = true;
                self.done.kept_whole += 1;
                (frame.header.records, false)
            }
            Fate::Anew { records } => (records, true),
        };
        self.done.records_out += u64::from(records);
        let output = self.output.get_or_insert_with(|| {
            let segments = &self.segments[group];
            let newest = segments.iter().map(|s| s.generation).max().expect("a group has a segment");
            let name =
                SegmentName { partition: self.partition, base: segments[0].base, generation: newest + 1 };
            self.made.push(name);
            Output::new(name, segments[0].begun_ms, &mut self.todo)
        });
        if is_new {
            let header = parse_header(&self.scratch.batch).expect("it was just made");
            output.add(&self.scratch.batch, frame.base, frame.end(), header.max_timestamp_ms);
        } else {
            output.add(batch, frame.base, frame.end(), frame.header.max_timestamp_ms);
        }
        if output.buffered_bytes() >= self.window_bytes {
            output.flush(&mut self.todo);
        }
    }

    fn damaged(&mut self, what: Damage) {
        let file = FileName::Segment(self.name(self.source_segment()));
        let position = match what {
            Damage::Header(_) => 0,
            Damage::Short => self.source.position + self.source.window.len() as u64,
            _ => self.source.position,
        };
        self.fail(Failure::Damaged { file, position, what });
    }

    fn fail(&mut self, failure: Failure) {
        self.todo.clear();
        self.output = None;
        self.source.window = Bytes::new();
        for &name in &self.made {
            self.todo.push_back(Todo::Remove(FileName::Segment(name)));
            self.todo.push_back(Todo::Remove(FileName::Index(name)));
        }
        self.phase = Phase::Remove(failure);
    }
}
