//! One read on its walk through segments: where it begins, which frames it passes over, what it gathers. Floor 1, pure.
//!
//! A walk goes as far as what is in memory allows, and says what it lacks. It takes no position on trust. A frame that
//! an index leads to must be there and have the offset that the index says; if not, the walk begins one entry earlier,
//! and finds out on the way whether the index is wrong (it is forgotten from there on) or the frame is damaged (it is
//! kept, and leads to what lies behind the damage). If that fails too, the index is forgotten as a whole. Frames must
//! follow each other without overlaps, and without gaps where nothing was compacted.

use bytes::Bytes;

use super::super::disk::SegmentName;
use super::super::segment::SegmentMeta;
use super::super::segment::format::{FRAME_PREFIX_BYTES, Seed};
use super::super::segment::index::{INTERVAL_BYTES, IndexEntry};
use super::super::segment::scan::{BadFrame, Check, FIRST_FRAME, Frame, Scanned, Scanner};
use super::cursors::Cursors;
use super::indexes::Indexes;
use super::windows::{Found, Place, Windows};
use super::{ReadFault, ReaderStats, Stretch};
use crate::ids::{Offset, PartitionId};
use crate::log::Slot;

/// Never used again for another job.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct JobId(pub u64);

/// Segments that one read goes through at most.
pub(super) const SEGMENTS_MAX: usize = 4;
/// A segment that is no longer is gone over from its beginning, rather than loading its index.
const UNINDEXED_BYTES_MAX: u64 = 2 * INTERVAL_BYTES;
/// At the end of what the segments hold, less than this is not fetched ahead: it is still growing.
const AHEAD_BYTES_MIN: u64 = INTERVAL_BYTES;

/// What is known of the files.
#[derive(Debug)]
pub(super) struct Known {
    /// Bytes of one read of a sequential reader now, and of one that is urgent.
    pub read_bytes: u32,
    pub urgent_read_bytes: u32,
    pub windows: Windows,
    pub indexes: Indexes,
    pub cursors: Cursors,
    pub stats: ReaderStats,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Goal {
    Read { bytes_max: usize, first_whole: bool, is_urgent: bool },
    Timestamp(i64),
}

#[derive(Debug)]
pub(super) struct Job {
    pub ticket: u64,
    pub slot: Slot,
    pub partition: PartitionId,
    pub goal: Goal,
    pub from: Offset,
    pub below: Offset,
    /// Those that may hold what is sought, at most [`SEGMENTS_MAX`].
    pub segments: Vec<SegmentMeta>,
    /// There are no others that may.
    has_all: bool,
    /// It has its turn: it may ask the disk.
    pub is_active: bool,
    /// The one of `segments` that it is in.
    at: usize,
    /// The next frame there; `None`: to be found.
    position: Option<u64>,
    /// Bytes that are needed from there on.
    need: usize,
    /// Where the index led to; not looked at yet.
    hint: Option<IndexEntry>,
    /// Where the index led to, but there was no such frame.
    doubted: Option<IndexEntry>,
    /// How often it began anew because a hint was bad.
    restarts: u32,
    /// Where the frame before ended, if that is known.
    end_before: Option<Offset>,
    /// It goes on where an earlier one ended.
    is_sequential: bool,
    /// It has been through a window without an end.
    is_long: bool,
    /// The window that it looked at last.
    held: Option<Held>,
    batches: Vec<Bytes>,
    bytes: usize,
    next: Offset,
}

#[derive(Clone, Debug)]
struct Held {
    place: Place,
    bytes: Bytes,
    /// The file ended before the bytes that were asked for.
    is_short: bool,
}

/// How far a walk came.
#[derive(Debug)]
pub(super) enum Walk {
    Done(Result<Stretch, ReadFault>),
    /// It needs this many bytes from there on, and nobody has asked for them.
    Window(Place, u32),
    /// It needs a window that begins there and is on its way.
    Coming(Place),
    /// It needs the index of this segment of so many bytes.
    Index(SegmentName),
}

/// How it goes on from a window.
enum Next {
    Elsewhere,
    End,
    Damaged(u64, BadFrame),
}

impl Job {
    pub fn new(
        (ticket, slot, partition): (u64, Slot, PartitionId),
        goal: Goal,
        from: Offset,
        below: Offset,
        segments: &[SegmentMeta],
    ) -> Self {
        let first = segments.partition_point(|s| s.end <= from);
        let wanted = segments[first..].iter().take_while(|s| s.base < below);
        let mut wanted = wanted.filter(|s| {
            let is_older = matches!(goal, Goal::Timestamp(ms) if s.max_timestamp_ms < ms);
            s.end > from && !is_older
        });
        Self {
            ticket,
            slot,
            partition,
            goal,
            from,
            below,
            segments: wanted.by_ref().take(SEGMENTS_MAX).copied().collect(),
            has_all: wanted.next().is_none(),
            is_active: false,
            at: 0,
            position: None,
            need: FRAME_PREFIX_BYTES,
            hint: None,
            doubted: None,
            restarts: 0,
            end_before: None,
            is_sequential: false,
            is_long: false,
            held: None,
            batches: Vec::new(),
            bytes: 0,
            next: from,
        }
    }

    pub fn name(&self, segment: &SegmentMeta) -> SegmentName {
        SegmentName { partition: self.partition, base: segment.base, generation: segment.generation }
    }

    /// Whether it may look at this file.
    pub fn needs(&self, name: SegmentName) -> bool {
        self.partition == name.partition && self.segments.iter().any(|s| self.name(s) == name)
    }

    pub fn segment_bytes(&self, name: SegmentName) -> u64 {
        self.segments.iter().find(|s| self.name(s) == name).map_or(0, |s| s.bytes)
    }

    /// Whether what it needs does not give way to writes.
    pub fn is_urgent(&self) -> bool {
        matches!(self.goal, Goal::Read { is_urgent: true, .. })
    }

    /// Takes a window that it waited for.
    pub fn take(&mut self, place: Place, bytes: Bytes, is_short: bool) {
        self.held = Some(Held { place, bytes, is_short });
    }

    /// Lets go of the memory that it holds while it waits for its turn.
    pub fn rest(&mut self) {
        self.held = None;
    }

    /// Goes as far as it can.
    pub fn walk(&mut self, known: &mut Known) -> Walk {
        loop {
            let Some(segment) = self.segments.get(self.at).copied() else {
                if self.has_all && self.batches.is_empty() {
                    self.next = self.next.max(self.below);
                }
                return self.done(known);
            };
            let name = self.name(&segment);
            let position = match self.position {
                Some(position) => position,
                None => match self.locate(known, &segment) {
                    Some(position) => position,
                    None => return Walk::Index(name),
                },
            };
            self.position = Some(position);
            if self.is_through() {
                return self.done(known);
            }
            if position >= segment.bytes {
                if segment.generation == 0 && self.end_before.is_some_and(|end| end != segment.end) {
                    return self.damaged(known, &segment, position, BadFrame::CutShort);
                }
                if !self.batches.is_empty() && self.at + 1 == self.segments.len() {
                    return self.done(known);
                }
                self.next_segment(&segment);
                continue;
            }
            let left = segment.bytes - position;
            let need = self.need.min(usize::try_from(left).unwrap_or(usize::MAX));
            let held = match self.window(known, (name, position), need) {
                Ok(held) => held,
                Err(Found::Coming(place)) if self.batches.is_empty() => return Walk::Coming(place),
                Err(_) if self.batches.is_empty() => {
                    let held = self.held.as_ref().filter(|h| h.place.0 == name && h.place.1 <= position);
                    if held.is_some_and(|h| h.is_short) {
                        return self.damaged(known, &segment, position, BadFrame::CutShort);
                    }
                    let len = u64::from(self.window_len(known)).max(need as u64).min(left);
                    let len = u32::try_from(len).expect("a batch has at most 2^31 bytes");
                    return Walk::Window((name, position), len);
                }
                // What is there is answered now; the next read waits for the rest.
                Err(_) => return self.done(known),
            };
            match self.scan(known, &segment, position, &held) {
                Next::Elsewhere => {
                    known.windows.spend(held.place);
                    self.is_long = true;
                }
                Next::End => return self.done(known),
                Next::Damaged(position, bad) => return self.damaged(known, &segment, position, bad),
            }
        }
    }

    /// What is to be fetched before it is asked for, after a read that went on where another had ended.
    pub fn ahead(&self, known: &mut Known) -> Option<(Place, u32)> {
        let Goal::Read { bytes_max, .. } = self.goal else { return None };
        if !self.is_sequential || self.bytes == 0 || self.next >= self.below {
            return None;
        }
        let segment = self.segments.get(self.at)?;
        let mut place = (self.name(segment), self.position.unwrap_or(FIRST_FRAME));
        let mut end = segment.bytes;
        let mut through = None;
        if let Some(held) = self.held.as_ref().filter(|h| h.place.0 == place.0 && h.place.1 <= place.1) {
            let skipped = usize::try_from(place.1 - held.place.1).unwrap_or(usize::MAX);
            let rest = held.bytes.get(skipped..).unwrap_or_default();
            // The next read ends within this window.
            if rest.len() > bytes_max {
                return None;
            }
            let boundary = last_boundary(Seed::of_segment(&place.0), rest, place.1, end);
            if boundary == place.1 {
                known.windows.spend(held.place);
            }
            through = Some(held.place);
            place.1 = boundary;
        }
        if place.1 >= end {
            let segment = self.segments.get(self.at + 1)?;
            place = (self.name(segment), FIRST_FRAME);
            end = segment.bytes;
        }
        let left = end.saturating_sub(place.1);
        let read_bytes = u64::from(self.read_bytes(known));
        if left < AHEAD_BYTES_MIN.min(read_bytes) || known.windows.has(place, through) {
            return None;
        }
        let len = read_bytes.min(left);
        Some((place, u32::try_from(len).expect("no more than a window")))
    }

    /// Where to begin in a segment. `None`: its index is needed for that.
    fn locate(&mut self, known: &mut Known, segment: &SegmentMeta) -> Option<u64> {
        let name = self.name(segment);
        self.end_before = None;
        self.hint = None;
        self.need = FRAME_PREFIX_BYTES;
        if matches!(self.goal, Goal::Read { .. }) && self.from > segment.base {
            if let Some(position) = known.cursors.find(self.from, name) {
                known.stats.cursor_hits += 1;
                self.is_sequential = true;
                self.end_before = Some(self.from);
                return Some(position);
            }
        } else if matches!(self.goal, Goal::Read { .. }) {
            if self.at == 0 && known.cursors.is_known(self.partition, self.from) {
                known.stats.cursor_hits += 1;
                self.is_sequential = true;
            }
            self.end_before = Some(segment.base);
            return Some(FIRST_FRAME);
        }
        let found = match known.indexes.get(name) {
            // An index that led astray twice, and was dropped since, would do so again.
            _ if self.restarts > 1 => None,
            Some(index) => {
                let entries = index.entries();
                let mut count = entries.partition_point(|e| e.offset <= self.from);
                if let Goal::Timestamp(timestamp_ms) = self.goal {
                    let older = entries.partition_point(|e| e.timestamp_before_ms < timestamp_ms);
                    // What lies behind the end of the search need not be there.
                    count = count.max(older).min(entries.partition_point(|e| e.offset < self.below));
                }
                if let Some(doubted) = self.doubted {
                    count = count.min(entries.partition_point(|e| e.position < doubted.position));
                }
                count.checked_sub(1).map(|last| entries[last])
            }
            None if segment.bytes <= UNINDEXED_BYTES_MAX => None,
            None => return None,
        };
        self.hint = found.filter(|entry| entry.position < segment.bytes);
        if self.hint.is_none() {
            self.end_before = Some(segment.base);
        }
        Some(self.hint.map_or(FIRST_FRAME, |entry| entry.position))
    }

    /// Whether it came to the end of what it may look at. A life before may have cut the file there already, by a
    /// truncation that has yet to take effect in this one, so nothing behind it is expected or judged.
    fn is_through(&mut self) -> bool {
        let is_through = self.end_before.is_some_and(|end| end >= self.below);
        if is_through && self.batches.is_empty() {
            self.next = self.next.max(self.below);
        }
        is_through
    }

    fn next_segment(&mut self, segment: &SegmentMeta) {
        if self.batches.is_empty() {
            self.next = self.next.max(segment.end.min(self.below));
        }
        self.at += 1;
        self.position = None;
        self.doubted = None;
        self.restarts = 0;
    }

    /// The bytes from `place` on, at least `need` of them.
    fn window(&mut self, known: &mut Known, place: Place, need: usize) -> Result<Held, Found> {
        if let Some(held) = &self.held
            && held.place.0 == place.0
            && held.place.1 <= place.1
            && held.place.1 + held.bytes.len() as u64 >= place.1 + need as u64
        {
            return Ok(held.clone());
        }
        match known.windows.find(place, need) {
            Found::Here(begins_at, bytes) => {
                known.stats.window_hits += 1;
                let held = Held { place: (place.0, begins_at), bytes, is_short: false };
                self.held = Some(held.clone());
                Ok(held)
            }
            other => Err(other),
        }
    }

    /// Bytes of one read of a sequential reader.
    fn read_bytes(&self, known: &Known) -> u32 {
        if self.is_urgent() { known.urgent_read_bytes } else { known.read_bytes }
    }

    /// How much to read at once.
    fn window_len(&self, known: &Known) -> u32 {
        if self.is_sequential || self.is_long {
            return self.read_bytes(known);
        }
        // The index leads to a place so far in front.
        let wanted = match self.goal {
            Goal::Read { bytes_max, .. } => (bytes_max as u64).saturating_add(INTERVAL_BYTES),
            Goal::Timestamp(_) => 2 * INTERVAL_BYTES,
        };
        u32::try_from(wanted).unwrap_or(u32::MAX).min(self.read_bytes(known))
    }

    /// Goes over the frames of a window.
    fn scan(&mut self, known: &mut Known, segment: &SegmentMeta, position: u64, held: &Held) -> Next {
        let name = self.name(segment);
        let skipped = usize::try_from(position - held.place.1).expect("the window holds the position");
        let window = held.bytes.slice(skipped..);
        let mut scanner =
            Scanner::new(Seed::of_segment(&name), Check::Headers, &window, position, segment.bytes);
        loop {
            let position = scanner.position();
            self.position = Some(position);
            self.need = FRAME_PREFIX_BYTES;
            if self.is_through() {
                return Next::End;
            }
            let frame = match scanner.scan() {
                Scanned::Frame(frame) => frame,
                Scanned::End => return Next::Elsewhere,
                Scanned::Incomplete { need } => {
                    self.need = need;
                    return Next::Elsewhere;
                }
                Scanned::Bad(_) if self.hint.is_some() => return self.begin_anew(known, name),
                Scanned::Bad(bad) => return Next::Damaged(position, bad),
            };
            if let Some(hint) = self.hint {
                if hint.offset != frame.base {
                    return self.begin_anew(known, name);
                }
                self.hint = None;
            }
            if let Some(expected) = self.end_before
                && (frame.base < expected || (frame.base > expected && segment.generation == 0))
            {
                return Next::Damaged(position, BadFrame::Offset { expected, found: frame.base });
            }
            let is_before = frame.end() <= self.from
                || matches!(self.goal, Goal::Timestamp(ms) if frame.header.max_timestamp_ms < ms);
            self.settle_doubt(known, name, &frame, is_before);
            known.indexes.note_frame(name, &frame);
            if is_before && frame.end() <= self.below {
                self.end_before = Some(frame.end());
                continue;
            }
            if frame.end() > self.below || !self.fits(&frame) {
                if frame.base >= self.below && self.batches.is_empty() {
                    // Compaction left a gap up to there, and memory may hold what follows.
                    self.next = self.next.max(self.below);
                }
                return Next::End;
            }
            if !frame.is_within(&window) {
                self.need = usize::try_from(frame.end_position() - position).expect("a frame fits memory");
                return Next::Elsewhere;
            }
            if let Err(bad) = frame.check_records(&window) {
                return Next::Damaged(position, bad);
            }
            self.end_before = Some(frame.end());
            self.next = frame.end();
            self.position = Some(frame.end_position());
            self.bytes += frame.batch.len();
            self.batches.push(window.slice(frame.batch));
            if matches!(self.goal, Goal::Timestamp(_)) {
                return Next::End;
            }
        }
    }

    fn fits(&self, frame: &Frame) -> bool {
        match self.goal {
            Goal::Read { bytes_max, first_whole, .. } => {
                self.bytes.saturating_add(frame.header.len as usize) <= bytes_max
                    || (first_whole && self.batches.is_empty())
            }
            Goal::Timestamp(_) => true,
        }
    }

    /// The index led to no frame, or to another one than it says.
    fn begin_anew(&mut self, known: &mut Known, name: SegmentName) -> Next {
        self.restarts += 1;
        self.doubted = self.hint.take();
        if self.restarts > 1 {
            known.stats.index_rebuilds += 1;
            tracing::warn!(partition = %name.partition, index = %name, "the index is wrong; it is built anew");
            known.indexes.truncate(name, 0);
            self.doubted = None;
        }
        self.position = None;
        Next::Elsewhere
    }

    /// Where a frame lies that the index led to in vain tells whether the index was wrong.
    fn settle_doubt(&mut self, known: &mut Known, name: SegmentName, frame: &Frame, is_before: bool) {
        let Some(doubted) = self.doubted else { return };
        let is_right = frame.position == doubted.position && frame.base == doubted.offset;
        // What the entry says lies before it cannot be what is sought.
        if !is_right && frame.position < doubted.position && is_before {
            return;
        }
        self.doubted = None;
        if !is_right {
            known.stats.index_rebuilds += 1;
            let position = doubted.position;
            tracing::warn!(partition = %name.partition, index = %name, position, "the index is wrong from here on");
            known.indexes.truncate(name, position);
        }
    }

    fn done(&mut self, known: &mut Known) -> Walk {
        if let (Some(segment), Goal::Read { .. }, false) =
            (self.segments.get(self.at), self.goal, self.batches.is_empty())
        {
            known.cursors.put(self.next, self.name(segment), self.position.unwrap_or(FIRST_FRAME));
        }
        known.stats.bytes += self.bytes as u64;
        Walk::Done(Ok(Stretch { batches: std::mem::take(&mut self.batches), next: self.next }))
    }

    /// Batches before the damage are answered; the read that begins with it tells of it.
    fn damaged(&mut self, known: &mut Known, segment: &SegmentMeta, position: u64, reason: BadFrame) -> Walk {
        self.position = Some(position);
        if !self.batches.is_empty() {
            return self.done(known);
        }
        known.stats.damaged_batches += 1;
        let (partition, file) = (self.partition, self.name(segment));
        let offset = self.end_before.unwrap_or(segment.base);
        tracing::error!(%partition, %offset, file = %format_args!("{file}.log"), position, %reason, "damaged batch in a segment");
        Walk::Done(Err(ReadFault::Damaged { partition, offset, file, position }))
    }
}

/// The last position in `window`, which begins at `position`, where a frame begins that does not lie in it as a whole;
/// or where something is damaged.
fn last_boundary(seed: Seed, window: &[u8], position: u64, end: u64) -> u64 {
    let mut scanner = Scanner::new(seed, Check::Headers, window, position, end);
    loop {
        let position = scanner.position();
        match scanner.scan() {
            Scanned::Frame(frame) if frame.is_within(window) => {}
            Scanned::End => return end,
            Scanned::Frame(_) | Scanned::Incomplete { .. } | Scanned::Bad(_) => return position,
        }
    }
}
