//! What the disk does for one log at a time, and the bytes of a move. Floor 1, pure functions of a log.
//!
//! A log has at most one piece of work under way, so that puts, cuts and removals of its files happen in the order of
//! its entries. A piece takes effect in memory when all of it was done; until then the log is as before, so a piece that
//! failed for lack of room is simply begun again.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

use super::log::{GrowingIndex, IndexState, Log};
use crate::ids::Offset;
use crate::log::Lsn;
use crate::log::disk::{DiskError, FileName, PUT_PARTS_MAX, SegmentName};
use crate::log::segment::SegmentMeta;
use crate::log::segment::format::{
    FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES, Seed, SegmentHeader, frame_header,
};
use crate::log::segment::index::{
    INDEX_ENTRY_BYTES, INDEX_HEADER_BYTES, Index, IndexBuilder, IndexSeed, NO_TIMESTAMP, index_header,
};

/// Batches of at least so many bytes are given to the disk where they lie; smaller ones are copied together.
const PART_BYTES_MIN: usize = 4096;
/// One put has no more bytes than this, unless one batch alone has.
const PUT_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Index entries are put when there are so many, and when the segment is closed.
const INDEX_PUT_ENTRIES: usize = 16;
/// Removals and cuts of one log that the disk has at a time.
const AMENDS_MAX: usize = 16;

/// A piece of work of one log, as far as it has come.
#[derive(Debug)]
pub(super) enum Work {
    /// Batches are put at the end of the growing segment, or of a new one.
    Move(Move),
    /// The folder is being listed.
    List,
    /// The index of the growing segment is being read.
    LoadIndex,
    /// The place where a segment is to be cut is being looked for.
    Seek(Box<Seek>),
    /// Files are being removed and cut.
    Amend(Amend),
    /// The folder is being removed.
    RemoveFolder,
    /// The folder of an earlier log of the same partition must be gone first. The disk has nothing of it.
    Wait,
}

#[derive(Debug)]
pub(super) struct Move {
    /// Of the last batch.
    pub upto: Lsn,
    pub end: Offset,
    /// The segment as it will be.
    pub segment: SegmentMeta,
    pub is_new: bool,
    pub index: GrowingIndex,
    /// Puts that the disk has.
    pub under_way: usize,
    pub failed: Option<DiskError>,
}

/// The way to the first frame that ends behind `end`.
#[derive(Debug)]
pub(super) struct Seek {
    /// Of the note.
    pub lsn: Lsn,
    pub end: Offset,
    /// The segment that is to be cut, by its place.
    pub at: usize,
    pub index: Index,
    /// The next window is read from here on.
    pub position: u64,
    pub need: usize,
    /// The search began at a place that the index gave, for the batch with this base.
    pub hint: Option<Offset>,
    /// Where the last frame ends that was seen.
    pub reached: Option<Offset>,
    pub is_index_loaded: bool,
}

#[derive(Debug)]
pub(super) struct Amend {
    pub todo: VecDeque<Amendment>,
    pub under_way: usize,
    pub failed: Option<(FileName, DiskError)>,
    pub then: Then,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Amendment {
    Remove(FileName),
    Cut(FileName, u64),
}

/// What is true once files were amended.
#[derive(Debug)]
pub(super) enum Then {
    Tidied,
    /// What a failed put left is gone.
    Cleared,
    IndexLoaded(GrowingIndex),
    /// A note took effect.
    Noted {
        lsn: Lsn,
        segments: Vec<SegmentMeta>,
        start: Offset,
        end: Offset,
        grows: Growth,
    },
}

/// Whether the last segment may grow once a note took effect.
#[derive(Debug)]
pub(super) enum Growth {
    /// If it is the one that did.
    AsBefore,
    /// It was cut.
    Cut(GrowingIndex),
    /// What it holds is not all in order; a later note takes that away.
    Closed,
}

impl Amend {
    pub fn new(todo: VecDeque<Amendment>, then: Then) -> Self {
        Self { todo, under_way: 0, failed: None, then }
    }

    pub fn next(&mut self) -> Option<Amendment> {
        if self.under_way >= AMENDS_MAX || self.failed.is_some() {
            return None;
        }
        let next = self.todo.pop_front()?;
        self.under_way += 1;
        Some(next)
    }

    pub fn is_done(&self) -> bool {
        self.under_way == 0 && (self.todo.is_empty() || self.failed.is_some())
    }
}

/// One file's put.
#[derive(Debug)]
pub(super) struct Put {
    pub file: FileName,
    pub position: u64,
    pub parts: Vec<Bytes>,
}

/// What a move writes.
#[derive(Debug)]
pub(super) struct Puts {
    pub data: Put,
    /// Of the segment, and of the one before that is closed with it.
    pub indexes: Vec<Put>,
}

/// Up to where a move may go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Every chunk up to this is durable.
    pub flushed: u64,
    /// Now, in ms since the epoch.
    pub wall_ms: i64,
}

/// Frames of small batches in one buffer, those of large ones as parts of their own.
#[derive(Default)]
struct Gather {
    parts: Vec<Bytes>,
    buffer: BytesMut,
}

impl Gather {
    fn frame(&mut self, seed: Seed, batch: &Bytes) {
        self.buffer.put_slice(&frame_header(seed, batch));
        if batch.len() < PART_BYTES_MIN {
            self.buffer.put_slice(batch);
        } else {
            self.parts.push(self.buffer.split().freeze());
            self.parts.push(batch.clone());
        }
    }

    /// Whether another frame and the rest of the buffer fit one put.
    fn has_room(&self) -> bool {
        self.parts.len() + 3 <= PUT_PARTS_MAX
    }

    fn finish(mut self) -> Vec<Bytes> {
        if !self.buffer.is_empty() {
            self.parts.push(self.buffer.freeze());
        }
        self.parts
    }
}

/// The next move of a log whose index is known, if a batch is there that may be moved.
pub(super) fn prepare_move(log: &Log, limits: Limits) -> Option<(Move, Puts)> {
    let note = log.notes.front().map(|note| note.lsn);
    let mut batches = log
        .tail
        .range(log.tail_moved..)
        .take_while(|b| b.lsn.chunk <= limits.flushed && note.is_none_or(|note| b.lsn < note))
        .peekable();
    let first = batches.peek()?;
    let frame_bytes = |batch: &Bytes| (FRAME_HEADER_BYTES + batch.len()) as u64;
    let growing = log.segments.last().copied().filter(|last| {
        log.is_growing
            && last.end == first.base
            && last.bytes + frame_bytes(&first.bytes) <= u64::from(log.config.segment_bytes)
            && limits.wall_ms.saturating_sub(last.begun_ms) < log.config.segment_ms
    });
    let is_new = growing.is_none();
    let mut index = match (&log.index, is_new) {
        (IndexState::Known(index), false) => index.clone(),
        _ => GrowingIndex::default(),
    };
    let mut segment = growing.unwrap_or(SegmentMeta {
        base: first.base,
        end: first.base,
        generation: 0,
        bytes: SEGMENT_HEADER_BYTES as u64,
        max_timestamp_ms: NO_TIMESTAMP,
        begun_ms: limits.wall_ms,
    });
    let name = log.name(&segment);
    let seed = Seed::of_segment(&name);
    let mut gather = Gather::default();
    let position = if is_new {
        gather.buffer.put_slice(&SegmentHeader { name, begun_ms: segment.begun_ms }.to_bytes());
        0
    } else {
        segment.bytes
    };
    let (mut upto, mut bytes, mut count) = (first.lsn, 0, 0_usize);
    for batch in batches {
        let frame = frame_bytes(&batch.bytes);
        let fits = gather.has_room()
            && batch.base == segment.end
            && bytes + frame <= PUT_BYTES_MAX
            && segment.bytes + frame <= u64::from(log.config.segment_bytes);
        if count > 0 && !fits {
            break;
        }
        if let Some(entry) = index.builder.add(batch.base, segment.bytes, batch.timestamp_ms) {
            index.pending.push(entry);
        }
        gather.frame(seed, &batch.bytes);
        segment.bytes += frame;
        segment.end = batch.next;
        segment.max_timestamp_ms = segment.max_timestamp_ms.max(batch.timestamp_ms);
        upto = batch.lsn;
        bytes += frame;
        count += 1;
    }
    let mut indexes = Vec::new();
    if index.pending.len() >= INDEX_PUT_ENTRIES {
        indexes.extend(put_index(&mut index, name));
    }
    if is_new
        && let (IndexState::Known(closed), Some(last), true) =
            (&log.index, log.segments.last(), log.is_growing)
    {
        indexes.extend(put_index(&mut closed.clone(), log.name(last)));
    }
    let data = Put { file: FileName::Segment(name), position, parts: gather.finish() };
    let under_way = 1 + indexes.len();
    let end = segment.end;
    let work = Move { upto, end, segment, is_new, index, under_way, failed: None };
    Some((work, Puts { data, indexes }))
}

/// The put of the entries that are not in the index file yet.
pub(super) fn put_index(index: &mut GrowingIndex, name: SegmentName) -> Option<Put> {
    if index.pending.is_empty() {
        return None;
    }
    let mut out = BytesMut::with_capacity(INDEX_HEADER_BYTES + index.pending.len() * INDEX_ENTRY_BYTES);
    let position = index.bytes;
    if position == 0 {
        out.put_slice(&index_header(&name));
    }
    let seed = IndexSeed::of(&name);
    for entry in index.pending.drain(..) {
        entry.put(&mut out, seed);
    }
    index.bytes = position + out.len() as u64;
    Some(Put { file: FileName::Index(name), position, parts: vec![out.freeze()] })
}

impl GrowingIndex {
    /// Goes on behind what was found in an index file.
    pub fn resume(index: &Index, segment: &SegmentMeta) -> Self {
        let builder = IndexBuilder::resume(index, segment.max_timestamp_ms);
        let bytes = if index.entries().is_empty() { 0 } else { index.file_bytes() };
        Self { builder, bytes, pending: Vec::new() }
    }
}

impl Seek {
    /// Looks for `end` in the segment at this place.
    pub fn new(lsn: Lsn, end: Offset, at: usize) -> Self {
        Self {
            lsn,
            end,
            at,
            index: Index::default(),
            position: SEGMENT_HEADER_BYTES as u64,
            need: 0,
            hint: None,
            reached: None,
            is_index_loaded: false,
        }
    }
}
