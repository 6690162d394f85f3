//! A segment's bytes: its header, and the frame header in front of each batch.
//!
//! Floor 1, pure functions over bytes. All numbers are big-endian. A segment file is its header, then frames one behind
//! the other without padding; `scan.rs` reads them.
//!
//! Header; an index file (`index.rs`) begins with the same one under its own magic, and without `begun`:
//!
//! | at | bytes | field |
//! |---:|---:|---|
//! | 0 | 4 | magic `HWSG` |
//! | 4 | 4 | CRC-32C of the header with this field zero |
//! | 8 | 4 | format version; covers frames too |
//! | 12 | 4 | partition index |
//! | 16 | 16 | topic id |
//! | 32 | 8 | base offset |
//! | 40 | 4 | generation |
//! | 44 | 4 | zero |
//! | 48 | 8 | when the segment's first batch was appended, ms since the epoch |
//! | 56 | 8 | zero |
//!
//! Frame:
//!
//! | at | bytes | field |
//! |---:|---:|---|
//! | 0 | 4 | CRC-32C of the segment's [`Seed`], the length below and the batch's header of 61 bytes |
//! | 4 | 4 | bytes of the batch |
//! | 8 | | the batch as it came, with its base offset and leader epoch |
//!
//! The frame's CRC covers the batch's whole header, of which the batch's own CRC leaves out the first 21 bytes: so a
//! reader that looks for an offset can trust headers alone and pass over records unread, and between the two CRCs no
//! bit stays uncovered. The seed is made of the segment's name: a frame that lies in another file, or in a later
//! generation of this one, does not pass.

use bytes::BufMut;

use crate::batch::HEADER_BYTES;
use crate::ids::{Offset, PartitionId, PartitionIndex, TopicId};
use crate::log::disk::SegmentName;

/// Where the first frame of a segment begins.
pub const SEGMENT_HEADER_BYTES: usize = 64;
/// What a frame adds to its batch.
pub const FRAME_HEADER_BYTES: usize = 8;
/// What must be there of a frame for its header, and that of its batch, to be checked.
pub const FRAME_PREFIX_BYTES: usize = FRAME_HEADER_BYTES + HEADER_BYTES;
/// The first bytes of a segment file.
pub const SEGMENT_MAGIC: [u8; 4] = *b"HWSG";

const VERSION: u32 = 1;
/// Where the bytes that name the segment lie in its header.
const NAME_AT: std::ops::Range<usize> = 12..44;

/// What the CRCs of one file's frames or entries start from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seed(u32);

impl Seed {
    /// Of the frames of a segment.
    pub fn of_segment(name: &SegmentName) -> Self {
        Self::of(SEGMENT_MAGIC, name)
    }

    pub(super) fn of(magic: [u8; 4], name: &SegmentName) -> Self {
        let header = unsealed(magic, name, 0);
        let mut named = [0; 4 + NAME_AT.end - NAME_AT.start];
        named[..4].copy_from_slice(&magic);
        named[4..].copy_from_slice(&header[NAME_AT]);
        Self(crc_fast::crc32_iscsi(&named))
    }

    pub(super) fn to_bytes(self) -> [u8; 4] {
        self.0.to_be_bytes()
    }
}

/// What a segment file says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    pub name: SegmentName,
    /// When the first batch was appended, in ms since the epoch.
    pub begun_ms: i64,
}

/// Why bytes are not the header of a segment, an index or a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadHeader {
    #[error("the file is shorter than its header")]
    Short,
    #[error("the file does not begin like one of its kind")]
    Magic,
    #[error("the header is damaged: its CRC is wrong")]
    Crc,
    #[error(
        "written in format {0}, which this release does not read; use the release that wrote it or a newer one"
    )]
    Version(u32),
    #[error("the header has a value that none has")]
    Value,
    #[error("the header is that of another file")]
    OtherFile,
}

impl SegmentHeader {
    pub fn to_bytes(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        put(SEGMENT_MAGIC, &self.name, self.begun_ms)
    }

    /// Reads the header that `bytes` start with.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadHeader> {
        let (name, begun_ms) = parse(SEGMENT_MAGIC, bytes)?;
        Ok(Self { name, begun_ms })
    }

    /// [`Self::parse`] for a file whose name is known: the header must say the same.
    pub fn parse_of(name: &SegmentName, bytes: &[u8]) -> Result<Self, BadHeader> {
        let header = Self::parse(bytes)?;
        if header.name == *name { Ok(header) } else { Err(BadHeader::OtherFile) }
    }
}

/// The frame header that stands before `batch`, one whole stored batch.
pub fn frame_header(seed: Seed, batch: &[u8]) -> [u8; FRAME_HEADER_BYTES] {
    let header = batch.first_chunk().expect("a batch is at least its header");
    let len = u32::try_from(batch.len()).expect("the length of a batch fits 31 bits");
    let mut out = [0; FRAME_HEADER_BYTES];
    out[..4].copy_from_slice(&frame_crc(seed, len, header).to_be_bytes());
    out[4..].copy_from_slice(&len.to_be_bytes());
    out
}

/// Appends [`frame_header`] to `out`.
pub fn put_frame_header(out: &mut impl BufMut, seed: Seed, batch: &[u8]) {
    out.put_slice(&frame_header(seed, batch));
}

pub(super) fn frame_crc(seed: Seed, len: u32, header: &[u8; HEADER_BYTES]) -> u32 {
    let mut covered = [0; 8 + HEADER_BYTES];
    covered[..4].copy_from_slice(&seed.to_bytes());
    covered[4..8].copy_from_slice(&len.to_be_bytes());
    covered[8..].copy_from_slice(header);
    crc_fast::crc32_iscsi(&covered)
}

/// A header without its CRC.
fn unsealed(magic: [u8; 4], name: &SegmentName, begun_ms: i64) -> [u8; SEGMENT_HEADER_BYTES] {
    let mut h = [0; SEGMENT_HEADER_BYTES];
    h[..4].copy_from_slice(&magic);
    h[8..12].copy_from_slice(&VERSION.to_be_bytes());
    h[12..16].copy_from_slice(&name.partition.index.0.to_be_bytes());
    h[16..32].copy_from_slice(&name.partition.topic.to_bytes());
    h[32..40].copy_from_slice(&name.base.0.to_be_bytes());
    h[40..44].copy_from_slice(&name.generation.to_be_bytes());
    h[48..56].copy_from_slice(&begun_ms.to_be_bytes());
    h
}

pub(super) fn put(magic: [u8; 4], name: &SegmentName, begun_ms: i64) -> [u8; SEGMENT_HEADER_BYTES] {
    let mut h = unsealed(magic, name, begun_ms);
    let crc = crc_fast::crc32_iscsi(&h);
    h[4..8].copy_from_slice(&crc.to_be_bytes());
    h
}

/// The name and `begun_ms` that a header says.
pub(super) fn parse(magic: [u8; 4], bytes: &[u8]) -> Result<(SegmentName, i64), BadHeader> {
    let mut h: [u8; SEGMENT_HEADER_BYTES] = *bytes.first_chunk().ok_or(BadHeader::Short)?;
    if h[..4] != magic {
        return Err(BadHeader::Magic);
    }
    let stored = u32::from_be_bytes(field(&h, 4));
    h[4..8].fill(0);
    if stored != crc_fast::crc32_iscsi(&h) {
        return Err(BadHeader::Crc);
    }
    let version = u32::from_be_bytes(field(&h, 8));
    if version != VERSION {
        return Err(BadHeader::Version(version));
    }
    let partition = PartitionId {
        topic: TopicId::from_bytes(field(&h, 16)),
        index: PartitionIndex(u32::from_be_bytes(field(&h, 12))),
    };
    let base = Offset::from_wire(i64::from_be_bytes(field(&h, 32))).ok_or(BadHeader::Value)?;
    if field(&h, 44) != [0; 4] || field(&h, 56) != [0; 8] {
        return Err(BadHeader::Value);
    }
    let name = SegmentName { partition, base, generation: u32::from_be_bytes(field(&h, 40)) };
    Ok((name, i64::from_be_bytes(field(&h, 48))))
}

fn field<const N: usize>(header: &[u8; SEGMENT_HEADER_BYTES], at: usize) -> [u8; N] {
    header[at..at + N].try_into().expect("the fields lie within the header")
}
