//! A segment's sparse index: where in the segment to begin for an offset or a timestamp.
//!
//! Floor 1, pure. The index is a hint: it may end early or be missing, which only makes a reader begin further in
//! front; what is found at a position is checked as any frame is, and an index that leads to no frame is built anew.
//!
//! An index file is a header as that of its segment (`format.rs`) with the magic `HWIX` and `begun` zero, then entries
//! one behind the other, strictly ascending:
//!
//! | at | bytes | field |
//! |---:|---:|---|
//! | 0 | 4 | CRC-32C of the seed and the rest of the entry |
//! | 4 | 8 | base offset of a batch |
//! | 12 | 8 | position of its frame in the segment |
//! | 20 | 8 | largest timestamp of the batches before it in the segment, ms; -1 for none |
//!
//! There is one about every [`INTERVAL_BYTES`] of the segment, none for the first batch. Each CRC starts from a seed
//! made of the segment's name, so that an entry of another segment, or of another generation, does not pass.

use bytes::BufMut;

use super::format::{self, BadHeader, SEGMENT_HEADER_BYTES, Seed};
use super::scan::FIRST_FRAME;
use crate::ids::Offset;
use crate::log::disk::SegmentName;

/// Where the first entry of an index file begins.
pub const INDEX_HEADER_BYTES: usize = SEGMENT_HEADER_BYTES;
pub const INDEX_ENTRY_BYTES: usize = 28;
/// An entry is made for the first batch that begins so far behind the one of the last entry.
pub const INTERVAL_BYTES: u64 = 64 * 1024;
/// The first bytes of an index file.
pub const INDEX_MAGIC: [u8; 4] = *b"HWIX";
/// What stands for "no timestamp".
pub const NO_TIMESTAMP: i64 = -1;

/// One batch of the segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexEntry {
    /// Its base.
    pub offset: Offset,
    /// Of its frame.
    pub position: u64,
    /// The largest timestamp of all batches before it in the segment, in ms; [`NO_TIMESTAMP`] for none. Never falls
    /// from entry to entry.
    pub timestamp_before_ms: i64,
}

/// The header of an index file.
pub fn index_header(name: &SegmentName) -> [u8; INDEX_HEADER_BYTES] {
    format::put(INDEX_MAGIC, name, 0)
}

/// The name of the segment that an index file says to belong to.
pub fn parse_index_header(bytes: &[u8]) -> Result<SegmentName, BadHeader> {
    let (name, zero) = format::parse(INDEX_MAGIC, bytes)?;
    if zero == 0 { Ok(name) } else { Err(BadHeader::Value) }
}

/// What the entries of an index file start from; made once per file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexSeed(Seed);

impl IndexSeed {
    pub fn of(name: &SegmentName) -> Self {
        Self(Seed::of(INDEX_MAGIC, name))
    }
}

impl IndexEntry {
    pub fn to_bytes(&self, seed: IndexSeed) -> [u8; INDEX_ENTRY_BYTES] {
        let mut e = [0; INDEX_ENTRY_BYTES];
        e[..4].copy_from_slice(&seed.0.to_bytes());
        e[4..12].copy_from_slice(&self.offset.0.to_be_bytes());
        e[12..20].copy_from_slice(&self.position.to_be_bytes());
        e[20..].copy_from_slice(&self.timestamp_before_ms.to_be_bytes());
        let crc = crc_fast::crc32_iscsi(&e);
        e[..4].copy_from_slice(&crc.to_be_bytes());
        e
    }

    /// Appends [`Self::to_bytes`] to `out`.
    pub fn put(&self, out: &mut impl BufMut, seed: IndexSeed) {
        out.put_slice(&self.to_bytes(seed));
    }

    /// `None` unless its CRC is right.
    fn parse(seed: IndexSeed, bytes: &[u8; INDEX_ENTRY_BYTES]) -> Option<Self> {
        let long = |at: usize| bytes[at..at + 8].try_into().expect("the fields lie within the entry");
        let entry = Self {
            offset: Offset(u64::from_be_bytes(long(4))),
            position: u64::from_be_bytes(long(12)),
            timestamp_before_ms: i64::from_be_bytes(long(20)),
        };
        (entry.to_bytes(seed) == *bytes).then_some(entry)
    }
}

/// Chooses which batches of a growing segment get an entry.
#[derive(Clone, Copy, Debug)]
pub struct IndexBuilder {
    /// Of the last entry, or of the first frame.
    indexed_at: u64,
    max_timestamp_ms: i64,
}

impl Default for IndexBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl IndexBuilder {
    /// For a segment without a batch.
    pub fn new() -> Self {
        Self { indexed_at: FIRST_FRAME, max_timestamp_ms: NO_TIMESTAMP }
    }

    /// Goes on behind `index`. `max_timestamp_ms` is that of the segment so far; too large a one, as after a
    /// truncation, only makes readers by timestamp begin further in front.
    pub fn resume(index: &Index, max_timestamp_ms: i64) -> Self {
        let last = index.entries.last();
        let before = last.map_or(NO_TIMESTAMP, |e| e.timestamp_before_ms);
        Self {
            indexed_at: last.map_or(FIRST_FRAME, |e| e.position),
            max_timestamp_ms: max_timestamp_ms.max(before),
        }
    }

    /// Takes the next batch of the segment: its base, the position of its frame and its max timestamp. Its entry, if
    /// it gets one.
    pub fn add(&mut self, base: Offset, position: u64, max_timestamp_ms: i64) -> Option<IndexEntry> {
        let entry = IndexEntry { offset: base, position, timestamp_before_ms: self.max_timestamp_ms };
        self.max_timestamp_ms = self.max_timestamp_ms.max(max_timestamp_ms);
        if position.saturating_sub(self.indexed_at) < INTERVAL_BYTES {
            return None;
        }
        self.indexed_at = position;
        Some(entry)
    }

    /// The largest timestamp of all batches so far; [`NO_TIMESTAMP`] without one.
    pub fn max_timestamp_ms(&self) -> i64 {
        self.max_timestamp_ms
    }
}

/// The index of one segment in memory: 24 bytes an entry.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Index {
    /// Strictly ascending by offset and by position.
    entries: Vec<IndexEntry>,
}

/// What was found in an index file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadedIndex {
    pub index: Index,
    /// How much of the file is good, with its header: where the next entry goes once the file is cut here.
    pub good_bytes: u64,
    /// Why the rest of the file is not.
    pub bad: Option<BadIndex>,
}

/// Why an index file, or the rest of it, is of no use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadIndex {
    #[error(transparent)]
    Header(#[from] BadHeader),
    #[error("the file ends within an entry")]
    CutShort,
    #[error("no entry of this index: its CRC is wrong")]
    Crc,
    #[error("an entry that does not ascend")]
    Order,
    #[error("an entry for what lies behind the segment's end")]
    Beyond,
}

impl Index {
    /// Reads an index file, as far as it is good, for a segment of `segment_bytes`.
    pub fn load(name: &SegmentName, bytes: &[u8], segment_bytes: u64) -> LoadedIndex {
        let header = parse_index_header(bytes)
            .and_then(|found| if found == *name { Ok(()) } else { Err(BadHeader::OtherFile) });
        if let Err(bad) = header {
            return LoadedIndex { index: Self::default(), good_bytes: 0, bad: Some(bad.into()) };
        }
        let seed = IndexSeed::of(name);
        let (entries, rest) = bytes[INDEX_HEADER_BYTES..].as_chunks();
        let mut index = Self { entries: Vec::with_capacity(entries.len()) };
        let mut bad = None;
        for entry in entries {
            match IndexEntry::parse(seed, entry) {
                None => bad = Some(BadIndex::Crc),
                Some(entry) if entry.position >= segment_bytes => bad = Some(BadIndex::Beyond),
                Some(entry) if !index.follows(name.base, &entry) => bad = Some(BadIndex::Order),
                Some(entry) => index.entries.push(entry),
            }
            if bad.is_some() {
                break;
            }
        }
        if bad.is_none() && !rest.is_empty() {
            bad = Some(BadIndex::CutShort);
        }
        let good_bytes = (INDEX_HEADER_BYTES + index.entries.len() * INDEX_ENTRY_BYTES) as u64;
        LoadedIndex { index, good_bytes, bad }
    }

    fn follows(&self, segment_base: Offset, entry: &IndexEntry) -> bool {
        let offset_fits = i64::try_from(entry.offset.0).is_ok();
        offset_fits
            && match self.entries.last() {
                Some(last) => {
                    entry.offset > last.offset
                        && entry.position > last.position
                        && entry.timestamp_before_ms >= last.timestamp_before_ms
                }
                None => entry.offset > segment_base && entry.position > FIRST_FRAME,
            }
    }

    /// Adds an entry that an [`IndexBuilder`] made; it lies behind all that are there.
    pub fn push(&mut self, entry: IndexEntry) {
        let ascends = self.entries.last().is_none_or(|last| {
            last.offset < entry.offset
                && last.position < entry.position
                && last.timestamp_before_ms <= entry.timestamp_before_ms
        });
        assert!(ascends, "entries ascend: {:?} before {entry:?}", self.entries.last());
        self.entries.push(entry);
    }

    pub fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// Where to begin for the batch that holds `offset`: no later batch holds it.
    pub fn position_for(&self, offset: Offset) -> u64 {
        self.before(|e| e.offset <= offset)
    }

    /// Where to begin for the first batch with a timestamp of at least `timestamp_ms`: none before has one.
    pub fn position_for_timestamp(&self, timestamp_ms: i64) -> u64 {
        self.before(|e| e.timestamp_before_ms < timestamp_ms)
    }

    /// The position of the last entry for which `is` holds, as it does for all before; else of the first frame.
    fn before(&self, is: impl Fn(&IndexEntry) -> bool) -> u64 {
        match self.entries.partition_point(is) {
            0 => FIRST_FRAME,
            n => self.entries[n - 1].position,
        }
    }

    /// How much of a segment of `segment_bytes` lies behind the last entry. Much more than [`INTERVAL_BYTES`] plus the
    /// largest batch tells that entries are missing.
    pub fn bytes_behind(&self, segment_bytes: u64) -> u64 {
        segment_bytes.saturating_sub(self.entries.last().map_or(FIRST_FRAME, |e| e.position))
    }

    /// Forgets what lies at `position` of the segment and behind it.
    pub fn truncate(&mut self, position: u64) {
        let kept = self.entries.partition_point(|e| e.position < position);
        self.entries.truncate(kept);
    }

    /// How long its file is.
    pub fn file_bytes(&self) -> u64 {
        (INDEX_HEADER_BYTES + self.entries.len() * INDEX_ENTRY_BYTES) as u64
    }

    /// The whole file.
    pub fn put_file(&self, out: &mut impl BufMut, name: &SegmentName) {
        out.put_slice(&index_header(name));
        let seed = IndexSeed::of(name);
        for entry in &self.entries {
            entry.put(out, seed);
        }
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.entries.capacity() * size_of::<IndexEntry>()
    }
}
