//! The journal's bytes: file header, chunk header and entries, written and checked.
//!
//! Floor 1, pure functions over bytes. All numbers are big-endian; a chunk begins at a multiple of [`SECTOR`].
//!
//! A journal file is 64 bytes of header, zeros to the first [`SECTOR`], then chunks one behind the
//! other. A file's first chunk is written together with its header.
//!
//! File header:
//!
//! | at | bytes | field |
//! |---:|---:|---|
//! | 0 | 4 | magic `HWJF` |
//! | 4 | 4 | CRC-32C of the header with this field zero |
//! | 8 | 4 | format version; covers chunks and entries too |
//! | 12 | 4 | shard |
//! | 16 | 8 | journal id, drawn once when the journal was begun |
//! | 24 | 8 | file number |
//! | 32 | 8 | number of the oldest file that was needed when this one was begun |
//! | 40 | 8 | sequence of the file's first chunk |
//! | 48 | 8 | incarnation: which life of the journal began the file |
//! | 56 | 8 | zero |
//!
//! Chunk header, then its entries, then zeros up to a multiple of [`SECTOR`]:
//!
//! | at | bytes | field |
//! |---:|---:|---|
//! | 0 | 4 | magic `HWJC` |
//! | 4 | 4 | CRC-32C of the header with this field zero |
//! | 8 | 4 | bytes of all entries |
//! | 12 | 4 | number of entries |
//! | 16 | 4 | CRC of the last entry; the chunk's seed without entries |
//! | 20 | 4 | position in the file, in sectors |
//! | 24 | 8 | journal id |
//! | 32 | 8 | incarnation: which life of the journal wrote it |
//! | 40 | 8 | sequence: consecutive over all chunks of the journal, from 1 |
//! | 48 | 8 | highest sequence that was known durable when this chunk was written |
//! | 56 | 8 | file number |
//!
//! Entry:
//!
//! | at | bytes | field |
//! |---:|---:|---|
//! | 0 | 4 | CRC-32C of the entry's covered bytes with, in this field, the CRC of the entry before |
//! | 4 | 1 | kind: 1 a record batch, 2 truncated, 3 started, 4 dropped |
//! | 5 | 3 | zero |
//! | 8 | 4 | bytes of the body |
//! | 12 | 4 | partition index |
//! | 16 | 16 | topic id |
//! | 32 | | the body |
//!
//! The body of a record batch is the batch, base offset and leader epoch as they were given. The covered bytes are the
//! entry header and the batch's first 21 bytes, which its own CRC does not cover, and that CRC itself; the batch's CRC
//! covers the rest. So writing makes no second pass over record bytes, and nothing stays uncovered.
//!
//! The body of a note is 8 bytes, all of them covered: the log's new end (truncated), its new start (started), zero
//! (dropped).
//!
//! Each entry CRC starts from the one before and the chunk's header holds the last: a chunk whose header reached the
//! disk but whose entries are those of an earlier life does not pass.
//!
//! A file that is no longer needed is given a higher number and written anew over its old bytes: what names another
//! file than the one it lies in, as every file header and chunk header does, is a leftover and means nothing.

use bytes::{BufMut, BytesMut};

use super::Note;
use super::disk::{FileNo, SECTOR};
use crate::batch::{self, BatchHeader, OUTSIDE_CRC_BYTES};
use crate::ids::{Offset, PartitionId, PartitionIndex, ShardId, TopicId};

pub(super) const CHUNK_HEADER_BYTES: usize = 64;
/// What an entry adds to its body.
pub(super) const ENTRY_HEADER_BYTES: usize = 32;

/// An entry that is a note.
pub(super) const NOTE_BYTES: usize = ENTRY_HEADER_BYTES + 8;

const VERSION: u32 = 2;
pub(super) const FILE_MAGIC: u32 = u32::from_be_bytes(*b"HWJF");
const CHUNK_MAGIC: u32 = u32::from_be_bytes(*b"HWJC");
const KIND_BATCH: u8 = 1;
const KIND_TRUNCATED: u8 = 2;
const KIND_STARTED: u8 = 3;
const KIND_DROPPED: u8 = 4;
/// The bytes at the start of a batch's entry that its CRC covers.
const BATCH_COVERED_BYTES: usize = ENTRY_HEADER_BYTES + OUTSIDE_CRC_BYTES;

/// The next multiple of [`SECTOR`].
pub(super) fn sectors(bytes: usize) -> usize {
    bytes.next_multiple_of(SECTOR)
}

fn field<const N: usize>(header: &[u8; 64], at: usize) -> [u8; N] {
    header[at..at + N].try_into().expect("the fields lie within the header")
}

fn u32_at(header: &[u8; 64], at: usize) -> u32 {
    u32::from_be_bytes(field(header, at))
}

fn u64_at(header: &[u8; 64], at: usize) -> u64 {
    u64::from_be_bytes(field(header, at))
}

/// The CRC of a header whose own CRC field is taken as zero.
fn header_crc(header: &[u8; 64]) -> u32 {
    let mut zeroed = *header;
    zeroed[4..8].fill(0);
    crc_fast::crc32_iscsi(&zeroed)
}

/// Which file of which journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FileHeader {
    pub shard: ShardId,
    pub journal: u64,
    pub file: FileNo,
    /// Files before it were not needed any more when this one was begun; `oldest <= file`.
    pub oldest: FileNo,
    /// Sequence and incarnation of the file's first chunk.
    pub first: u64,
    pub incarnation: u64,
}

/// Why a file header is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BadFileHeader {
    Damaged,
    /// It is whole, of a format that is not known here.
    Version(u32),
}

impl FileHeader {
    /// Writes the header and the zeros behind it: one [`SECTOR`].
    pub fn put(&self, out: &mut BytesMut) {
        let start = out.len();
        out.put_u32(FILE_MAGIC);
        out.put_u32(0);
        out.put_u32(VERSION);
        out.put_u32(u32::from(self.shard.0));
        out.put_u64(self.journal);
        out.put_u64(self.file.0);
        out.put_u64(self.oldest.0);
        out.put_u64(self.first);
        out.put_u64(self.incarnation);
        out.put_bytes(0, SECTOR - (out.len() - start));
        let header = out[start..].first_chunk_mut().expect("a sector was written");
        let crc = header_crc(header);
        header[4..8].copy_from_slice(&crc.to_be_bytes());
    }

    pub fn parse(sector: &[u8]) -> Result<Self, BadFileHeader> {
        let h: &[u8; 64] = sector.first_chunk().ok_or(BadFileHeader::Damaged)?;
        if u32_at(h, 0) != FILE_MAGIC || u32_at(h, 4) != header_crc(h) {
            return Err(BadFileHeader::Damaged);
        }
        let version = u32_at(h, 8);
        if version != VERSION {
            return Err(BadFileHeader::Version(version));
        }
        let shard = u16::try_from(u32_at(h, 12)).map_err(|_| BadFileHeader::Damaged)?;
        Ok(Self {
            shard: ShardId(shard),
            journal: u64_at(h, 16),
            file: FileNo(u64_at(h, 24)),
            oldest: FileNo(u64_at(h, 32)),
            first: u64_at(h, 40),
            incarnation: u64_at(h, 48),
        })
    }
}

/// What stands before the entries of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ChunkHeader {
    pub payload_len: u32,
    pub entries: u32,
    pub last_crc: u32,
    /// In bytes; a multiple of [`SECTOR`].
    pub position: u64,
    pub journal: u64,
    pub incarnation: u64,
    pub sequence: u64,
    pub flushed: u64,
    pub file: FileNo,
}

impl ChunkHeader {
    pub fn write(&self, out: &mut [u8; CHUNK_HEADER_BYTES]) {
        let sector = u32::try_from(self.position / SECTOR as u64)
            .expect("the size of a file is checked when the journal is made");
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        for word in [CHUNK_MAGIC, 0, self.payload_len, self.entries, self.last_crc, sector] {
            put(&word.to_be_bytes());
        }
        for long in [self.journal, self.incarnation, self.sequence, self.flushed, self.file.0] {
            put(&long.to_be_bytes());
        }
        let crc = header_crc(out);
        out[4..8].copy_from_slice(&crc.to_be_bytes());
    }

    /// `None` unless a whole header with a right CRC is there.
    pub fn parse(sector: &[u8]) -> Option<Self> {
        let h: &[u8; 64] = sector.first_chunk()?;
        if u32_at(h, 0) != CHUNK_MAGIC || u32_at(h, 4) != header_crc(h) {
            return None;
        }
        Some(Self {
            payload_len: u32_at(h, 8),
            entries: u32_at(h, 12),
            last_crc: u32_at(h, 16),
            position: u64::from(u32_at(h, 20)) * SECTOR as u64,
            journal: u64_at(h, 24),
            incarnation: u64_at(h, 32),
            sequence: u64_at(h, 40),
            flushed: u64_at(h, 48),
            file: FileNo(u64_at(h, 56)),
        })
    }

    /// Bytes of the chunk with header and padding.
    pub fn len(&self) -> usize {
        sectors(CHUNK_HEADER_BYTES + self.payload_len as usize)
    }

    /// What the first entry's CRC starts from: no other chunk has the same.
    pub fn seed(incarnation: u64, sequence: u64) -> u32 {
        let mut name = [0; 16];
        name[..8].copy_from_slice(&incarnation.to_be_bytes());
        name[8..].copy_from_slice(&sequence.to_be_bytes());
        crc_fast::crc32_iscsi(&name)
    }
}

/// Writes the header of a batch's entry; the batch of `len` bytes goes behind it, then [`close_batch`].
pub(super) fn put_batch_header(out: &mut BytesMut, before: u32, partition: PartitionId, len: u32) {
    put_entry_header(out, before, KIND_BATCH, partition, len);
}

/// Puts the CRC into the written entry of a batch, and says it: what the next entry starts from.
pub(super) fn close_batch(entry: &mut [u8]) -> u32 {
    close_entry(entry, BATCH_COVERED_BYTES)
}

/// Writes the whole entry of a note ([`NOTE_BYTES`]) into `out`, which holds nothing else, and says its CRC.
pub(super) fn put_note(out: &mut BytesMut, before: u32, partition: PartitionId, note: Note) -> u32 {
    let (kind, offset) = match note {
        Note::Truncated { end } => (KIND_TRUNCATED, end.0),
        Note::Started { start } => (KIND_STARTED, start.0),
        Note::Dropped => (KIND_DROPPED, 0),
    };
    put_entry_header(out, before, kind, partition, (NOTE_BYTES - ENTRY_HEADER_BYTES) as u32);
    out.put_u64(offset);
    close_entry(out, NOTE_BYTES)
}

fn put_entry_header(out: &mut BytesMut, before: u32, kind: u8, partition: PartitionId, len: u32) {
    let mut h = [0; ENTRY_HEADER_BYTES];
    h[..4].copy_from_slice(&before.to_be_bytes());
    h[4] = kind;
    h[8..12].copy_from_slice(&len.to_be_bytes());
    h[12..16].copy_from_slice(&partition.index.0.to_be_bytes());
    h[16..].copy_from_slice(&partition.topic.to_bytes());
    out.put_slice(&h);
}

fn close_entry(entry: &mut [u8], covered: usize) -> u32 {
    let crc = crc_fast::crc32_iscsi(&entry[..covered]);
    entry[..4].copy_from_slice(&crc.to_be_bytes());
    crc
}

/// One entry of a chunk that was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub partition: PartitionId,
    pub body: Body,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Body {
    Batch {
        header: BatchHeader,
        /// Where the batch begins within the chunk.
        at: usize,
    },
    Note(Note),
}

/// Reads and checks all entries of `chunk`, the whole bytes of the chunk that `header` heads, into `entries`. False
/// unless every one of them is whole, in its place, and right to the last bit.
pub(super) fn read_entries(header: &ChunkHeader, chunk: &[u8], entries: &mut Vec<Entry>) -> bool {
    entries.clear();
    let payload_len = header.payload_len as usize;
    let Some(payload) = chunk.get(CHUNK_HEADER_BYTES..CHUNK_HEADER_BYTES + payload_len) else {
        return false;
    };
    let mut crc = ChunkHeader::seed(header.incarnation, header.sequence);
    let mut at = 0;
    while at < payload_len {
        let Some((entry, len)) = read_entry(&payload[at..], CHUNK_HEADER_BYTES + at, &mut crc) else {
            return false;
        };
        entries.push(entry);
        at += len;
    }
    crc == header.last_crc && entries.len() == header.entries as usize
}

/// Reads the entry at the front of `bytes`, which lies at `at` in its chunk; also says its length. `crc` is that of
/// the entry before, and becomes that of this one.
fn read_entry(bytes: &[u8], at: usize, crc: &mut u32) -> Option<(Entry, usize)> {
    let h: &[u8; ENTRY_HEADER_BYTES] = bytes.first_chunk()?;
    let word = |at: usize| u32::from_be_bytes(h[at..at + 4].try_into().expect("four bytes"));
    let (stored, kind, len) = (word(0), h[4], word(8) as usize);
    let covered_len = if kind == KIND_BATCH { BATCH_COVERED_BYTES } else { NOTE_BYTES };
    let mut covered = [0; BATCH_COVERED_BYTES];
    let covered = &mut covered[..covered_len];
    covered.copy_from_slice(bytes.get(..covered_len)?);
    covered[..4].copy_from_slice(&crc.to_be_bytes());
    *crc = crc_fast::crc32_iscsi(covered);
    if stored != *crc || h[5..8] != [0; 3] {
        return None;
    }
    let body = bytes[ENTRY_HEADER_BYTES..].get(..len)?;
    let body = match kind {
        KIND_BATCH => {
            let header = batch::parse_header(body).ok()?;
            if header.len as usize != len || header.base().is_none() || !batch::check_crc(body) {
                return None;
            }
            Body::Batch { header, at: at + ENTRY_HEADER_BYTES }
        }
        _ => {
            let offset = Offset(u64::from_be_bytes(body.try_into().ok()?));
            Body::Note(match kind {
                KIND_TRUNCATED => Note::Truncated { end: offset },
                KIND_STARTED => Note::Started { start: offset },
                KIND_DROPPED if offset.0 == 0 => Note::Dropped,
                _ => return None,
            })
        }
    };
    let partition = PartitionId {
        topic: TopicId::from_bytes(h[16..].try_into().expect("sixteen bytes")),
        index: PartitionIndex(word(12)),
    };
    Some((Entry { partition, body }, ENTRY_HEADER_BYTES + len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::BatchBuilder;
    use crate::ids::{LeaderEpoch, Offset};

    const NOTES: [Note; 3] =
        [Note::Truncated { end: Offset(77) }, Note::Started { start: Offset(u64::MAX) }, Note::Dropped];

    fn read(header: &ChunkHeader, bytes: &[u8]) -> Option<Vec<Entry>> {
        let mut entries = Vec::new();
        read_entries(header, bytes, &mut entries).then_some(entries)
    }

    fn chunk() -> (ChunkHeader, Vec<u8>) {
        chunk_of(0)
    }

    /// Chunks that differ in their records only.
    fn chunk_of(value: u8) -> (ChunkHeader, Vec<u8>) {
        let mut out = BytesMut::new();
        let mut crc = ChunkHeader::seed(3, 9);
        for i in 0..3_u64 {
            let batch = BatchBuilder::new().record(1, None, Some(&[value + i as u8; 10])).build();
            let partition = PartitionId { topic: TopicId(7), index: PartitionIndex(i as u32) };
            let mut entry = BytesMut::new();
            put_batch_header(&mut entry, crc, partition, batch.len() as u32);
            batch::put_patched(&mut entry, &batch, Offset(i), LeaderEpoch(1));
            crc = close_batch(&mut entry);
            out.extend_from_slice(&entry);
        }
        for (i, note) in NOTES.into_iter().enumerate() {
            let partition = PartitionId { topic: TopicId(7), index: PartitionIndex(3 + i as u32) };
            let mut entry = BytesMut::new();
            crc = put_note(&mut entry, crc, partition, note);
            assert_eq!(entry.len(), NOTE_BYTES);
            out.extend_from_slice(&entry);
        }
        let header = ChunkHeader {
            payload_len: out.len() as u32,
            entries: 6,
            last_crc: crc,
            position: 8192,
            journal: 5,
            incarnation: 3,
            sequence: 9,
            flushed: 8,
            file: FileNo(2),
        };
        let mut bytes = vec![0; CHUNK_HEADER_BYTES];
        header.write(bytes.first_chunk_mut().unwrap());
        bytes.extend_from_slice(&out);
        bytes.resize(header.len(), 0);
        (header, bytes)
    }

    #[test]
    fn headers_survive_their_bytes() {
        let (header, bytes) = chunk();
        assert_eq!(ChunkHeader::parse(&bytes), Some(header));
        let file = FileHeader {
            shard: ShardId(3),
            journal: 1 << 60,
            file: FileNo(u64::MAX),
            oldest: FileNo(1 << 50),
            first: 1 << 40,
            incarnation: 1 << 30,
        };
        let mut sector = BytesMut::new();
        file.put(&mut sector);
        assert_eq!(sector.len(), SECTOR);
        assert_eq!(FileHeader::parse(&sector), Ok(file));
    }

    #[test]
    fn file_of_another_version_is_told_from_a_damaged_one() {
        let mut sector = BytesMut::new();
        let header = FileHeader {
            shard: ShardId(3),
            journal: 1,
            file: FileNo(1),
            oldest: FileNo(0),
            first: 9,
            incarnation: 1,
        };
        header.put(&mut sector);
        sector[11] = 9;
        assert_eq!(FileHeader::parse(&sector), Err(BadFileHeader::Damaged));
        let h: &mut [u8; 64] = sector.first_chunk_mut().unwrap();
        let crc = header_crc(h);
        h[4..8].copy_from_slice(&crc.to_be_bytes());
        assert_eq!(FileHeader::parse(&sector), Err(BadFileHeader::Version(9)));
    }

    #[test]
    fn entries_are_read_back_with_their_places() {
        let (header, bytes) = chunk();
        let entries = read(&header, &bytes).unwrap();
        assert_eq!(entries.len(), 6);
        for (i, e) in entries.iter().enumerate() {
            assert_eq!(e.partition.index.0 as usize, i);
            match e.body {
                Body::Batch { header, at } => {
                    assert_eq!(header.base(), Some(Offset(i as u64)));
                    assert_eq!(batch::parse_header(&bytes[at..]), Ok(header));
                }
                Body::Note(note) => assert_eq!(note, NOTES[i - 3]),
            }
        }
    }

    #[test]
    fn every_bit_flip_before_the_padding_is_noticed() {
        let (good, bytes) = chunk();
        let end = CHUNK_HEADER_BYTES + good.payload_len as usize;
        for at in 0..end {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                let read = ChunkHeader::parse(&bad).and_then(|h| read(&h, &bad));
                assert_eq!(read, None, "byte {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn entries_of_another_life_do_not_pass_under_a_new_header() {
        let (header, mut bytes) = chunk();
        let newer = ChunkHeader { incarnation: 4, ..header };
        newer.write(bytes.first_chunk_mut().unwrap());
        assert!(ChunkHeader::parse(&bytes).is_some());
        assert_eq!(read(&newer, &bytes), None);
    }

    #[test]
    fn entries_of_another_write_do_not_pass_under_a_header_with_the_same_numbers() {
        let (header, mut bytes) = chunk_of(0);
        let (other, other_bytes) = chunk_of(100);
        assert_eq!(ChunkHeader { last_crc: 0, ..header }, ChunkHeader { last_crc: 0, ..other });
        bytes[CHUNK_HEADER_BYTES..].copy_from_slice(&other_bytes[CHUNK_HEADER_BYTES..]);
        assert!(read(&other, &bytes).is_some());
        assert_eq!(read(&header, &bytes), None);
    }

    #[test]
    fn hostile_lengths_under_a_right_header_crc_are_refused() {
        let (header, bytes) = chunk();
        for (payload_len, entries) in [(0, 3), (header.payload_len, u32::MAX), (u32::MAX, 3), (1, 0), (90, 1)]
        {
            assert_eq!(read(&ChunkHeader { payload_len, entries, ..header }, &bytes), None);
        }
    }
}
