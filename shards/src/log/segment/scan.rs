//! Reads the frames of a segment where they lie, from any frame's position on.
//!
//! Floor 1, pure; copies nothing and allocates nothing. [`Scanner`] goes over a window: bytes of the segment from a
//! known position on, as one read brought them. It hands out whole frames, says how many bytes it lacks, or why what
//! lies there is no frame. What it checks is one frame at a time; [`Order`] checks that frames follow each other as
//! they must, for who reads a segment from its beginning.
//!
//! A position that an index gave is only a hint. If the first frame there is bad, the index may be wrong and the
//! segment whole: who reads then begins again behind the segment's header.

use std::ops::Range;

use super::format::{FRAME_HEADER_BYTES, FRAME_PREFIX_BYTES, SEGMENT_HEADER_BYTES, Seed, frame_crc};
use crate::batch::{self, BatchHeader, HEADER_BYTES};
use crate::ids::{LeaderEpoch, Offset};
use crate::log::disk::SegmentName;

/// How much of a frame is checked before it is handed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    /// Frame and batch header: what [`Frame`] says is right. The records may lie outside the window and are not
    /// looked at; [`Frame::check_records`] follows before they are served.
    Headers,
    /// Every bit; the batch lies in the window as a whole.
    All,
}

/// One frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Of the frame in its segment.
    pub position: u64,
    pub header: BatchHeader,
    pub base: Offset,
    pub epoch: LeaderEpoch,
    /// Where the batch lies in the window; its end may lie behind that of the window under [`Check::Headers`].
    pub batch: Range<usize>,
}

impl Frame {
    /// Where the next frame begins.
    pub fn end_position(&self) -> u64 {
        self.position + FRAME_HEADER_BYTES as u64 + u64::from(self.header.len)
    }

    /// One past the batch's last offset.
    pub fn end(&self) -> Offset {
        self.base.plus(self.header.offsets())
    }

    /// Whether the batch lies in the window of this length.
    pub fn is_within(&self, window: &[u8]) -> bool {
        self.batch.end <= window.len()
    }

    /// Checks the batch's own CRC, after [`Check::Headers`]. `window` is the scanner's, and holds all of the batch.
    pub fn check_records(&self, window: &[u8]) -> Result<(), BadFrame> {
        let batch = window.get(self.batch.clone()).ok_or(BadFrame::CutShort)?;
        if batch::check_crc(batch) { Ok(()) } else { Err(BadFrame::Records) }
    }
}

/// What lies at the scanner's position.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Scanned {
    /// The scanner stands behind it.
    Frame(Frame),
    /// The segment ends here.
    End,
    /// The window ends: go on with one that begins at [`Scanner::position`] and holds at least `need` bytes.
    Incomplete { need: usize },
    /// No frame. The scanner stays where it is.
    Bad(BadFrame),
}

/// Why bytes are no frame, or not the one that belongs there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadFrame {
    #[error("the segment ends within a frame")]
    CutShort,
    #[error("nothing but zeros where a frame should be")]
    Zeros,
    #[error("no frame header of this segment: its CRC is wrong")]
    Crc,
    #[error("the frame holds no stored batch")]
    Batch,
    #[error("the records are damaged: the batch's CRC is wrong")]
    Records,
    #[error("a batch at offset {found} where {expected} should be")]
    Offset { expected: Offset, found: Offset },
    #[error("a batch of leader epoch {found} behind one of epoch {last}")]
    Epoch { last: LeaderEpoch, found: LeaderEpoch },
}

/// Goes over the frames in a window of one segment.
#[derive(Clone, Debug)]
pub struct Scanner<'a> {
    seed: Seed,
    check: Check,
    window: &'a [u8],
    window_at: u64,
    position: u64,
    end: u64,
}

impl<'a> Scanner<'a> {
    /// `window` is what the segment holds from `position` on, a frame's position; the segment has `end` bytes, of
    /// which the window may hold more (they are not looked at) or fewer.
    pub fn new(seed: Seed, check: Check, window: &'a [u8], position: u64, end: u64) -> Self {
        Self { seed, check, window, window_at: position, position, end }
    }

    /// Where the next frame begins in the segment; behind the window if the last one reached beyond it.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next frame.
    pub fn scan(&mut self) -> Scanned {
        if self.position >= self.end {
            return Scanned::End;
        }
        let left = self.end - self.position;
        if left < FRAME_PREFIX_BYTES as u64 {
            return Scanned::Bad(BadFrame::CutShort);
        }
        let skipped = usize::try_from(self.position - self.window_at).unwrap_or(usize::MAX);
        let bytes = self.window.get(skipped..).unwrap_or_default();
        let Some(prefix) = bytes.first_chunk::<FRAME_PREFIX_BYTES>() else {
            return Scanned::Incomplete { need: FRAME_PREFIX_BYTES };
        };
        let (base, epoch, header) = match read_prefix(self.seed, prefix) {
            Ok(read) => read,
            Err(bad) => return Scanned::Bad(bad),
        };
        let frame_bytes = FRAME_HEADER_BYTES + header.len as usize;
        if frame_bytes as u64 > left {
            return Scanned::Bad(BadFrame::CutShort);
        }
        let batch = skipped + FRAME_HEADER_BYTES..skipped + frame_bytes;
        let frame = Frame { position: self.position, header, base, epoch, batch };
        if self.check == Check::All {
            if !frame.is_within(self.window) {
                return Scanned::Incomplete { need: frame_bytes };
            }
            if let Err(bad) = frame.check_records(self.window) {
                return Scanned::Bad(bad);
            }
        }
        self.position = frame.end_position();
        Scanned::Frame(frame)
    }

    /// The first frame from here on that ends behind `offset`: the one that holds it, or, where compaction left a gap,
    /// the one behind the gap.
    pub fn scan_to(&mut self, offset: Offset) -> Scanned {
        loop {
            match self.scan() {
                Scanned::Frame(frame) if frame.end() <= offset => {}
                other => return other,
            }
        }
    }
}

/// Checks the headers of the frame that `prefix` begins.
fn read_prefix(
    seed: Seed,
    prefix: &[u8; FRAME_PREFIX_BYTES],
) -> Result<(Offset, LeaderEpoch, BatchHeader), BadFrame> {
    let stored = u32::from_be_bytes(prefix[..4].try_into().expect("four bytes"));
    let len = u32::from_be_bytes(prefix[4..8].try_into().expect("four bytes"));
    let header: &[u8; HEADER_BYTES] =
        prefix[FRAME_HEADER_BYTES..].try_into().expect("the rest is the header");
    if stored != frame_crc(seed, len, header) {
        let is_zero = prefix.iter().all(|&byte| byte == 0);
        return Err(if is_zero { BadFrame::Zeros } else { BadFrame::Crc });
    }
    let header = batch::parse_header(header).map_err(|_| BadFrame::Batch)?;
    let base = header.base().ok_or(BadFrame::Batch)?;
    let epoch = LeaderEpoch::from_wire(header.leader_epoch).ok_or(BadFrame::Batch)?;
    if header.len != len || header.last_offset_delta > i32::MAX as u32 {
        return Err(BadFrame::Batch);
    }
    // Its last offset is one too.
    if base.0.checked_add(header.offsets()).is_none_or(|end| i64::try_from(end).is_err()) {
        return Err(BadFrame::Batch);
    }
    Ok((base, epoch, header))
}

/// Whether the frames of a segment, read from its beginning, follow each other as they must: from the segment's base
/// on, without a gap unless it was compacted, and of leader epochs that never fall.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    gaps: bool,
    end: Offset,
    epoch: LeaderEpoch,
}

impl Order {
    pub fn new(name: &SegmentName) -> Self {
        Self { gaps: name.generation > 0, end: name.base, epoch: LeaderEpoch(0) }
    }

    /// Takes the next frame.
    pub fn check(&mut self, frame: &Frame) -> Result<(), BadFrame> {
        if frame.base < self.end || (frame.base > self.end && !self.gaps) {
            return Err(BadFrame::Offset { expected: self.end, found: frame.base });
        }
        if frame.epoch < self.epoch {
            return Err(BadFrame::Epoch { last: self.epoch, found: frame.epoch });
        }
        self.end = frame.end();
        self.epoch = frame.epoch;
        Ok(())
    }

    /// One past the last offset that was taken; the segment's base before the first.
    pub fn end(&self) -> Offset {
        self.end
    }

    /// Of the last frame that was taken.
    pub fn epoch(&self) -> LeaderEpoch {
        self.epoch
    }
}

/// Where the first frame of every segment begins.
pub const FIRST_FRAME: u64 = SEGMENT_HEADER_BYTES as u64;
