//! The bytes of a checkpoint file. Floor 1, pure.
//!
//! A header, one record for each log in any order, and a trailer that ends the file. Fixed numbers are big-endian.
//!
//! Header:
//!
//! | at | bytes | field |
//! |---:|---:|---|
//! | 0 | 4 | magic `HWCP` |
//! | 4 | 4 | CRC-32C of the header with this field zero |
//! | 8 | 4 | format version; covers records and trailer too |
//! | 12 | 4 | shard |
//! | 16 | 8 | journal id |
//! | 24 | 8 | incarnation |
//!
//! Record:
//!
//! | at | bytes | field |
//! |---:|---:|---|
//! | 0 | 4 | CRC-32C of the record with, in this field, the CRC of the record before; the first's: that of the header |
//! | 4 | 4 | bytes of what follows |
//! | 8 | 16 | topic id |
//! | 24 | | the other fields of [`LogState`] as varints, in their order |
//!
//! Trailer:
//!
//! | at | bytes | field |
//! |---:|---:|---|
//! | 0 | 4 | CRC-32C of the trailer with, in this field, the CRC of the last record |
//! | 4 | 4 | number of records |
//! | 8 | 4 | kind of [`Resume`]: 1 from a file, 2 after a clean stop |
//! | 12 | 8 | file number |
//! | 20 | 8 | position in the file; 0 for kind 1 |
//! | 28 | 8 | sequence |
//!
//! Each CRC starts from the one before, so the trailer's vouches for every record, for their number and their order:
//! a file that is cut short, or pieced together from two, does not pass.
//!
//! A varint has 7 bits to a byte, the lowest first, and the high bit in every byte but the last; a signed number is
//! zigzag coded. Numbers that ascend are written as the difference to the one before. In the order of the record:
//! partition index; `moved` (chunk, entry); `noted` (chunk less that of `moved`, entry); start; end less start; high
//! watermark; cleaned; segments (number, then of each: base less that of the one before, end less base, generation,
//! bytes, max timestamp and begun, both signed); epochs (number, then of each: epoch and start less those before);
//! producers (number, then of each: id, epoch, number of batches, of each of those: first, last, base); superseded
//! (number, then of each: `by` less that of the one before, and the producer before; epoch 0 and no batches if it was unknown).

use bytes::{BufMut, Bytes, BytesMut};

use super::{Checkpoint, LogState, ProducedBatch, ProducerState, Resume, Superseded};
use crate::ids::{
    LeaderEpoch, Offset, PartitionId, PartitionIndex, ProducerEpoch, ProducerId, Sequence, ShardId, TopicId,
};
use crate::log::Lsn;
use crate::log::disk::FileNo;
use crate::log::journal::LogPosition;
use crate::log::segment::SegmentMeta;

/// The first bytes of a checkpoint file.
pub const CHECKPOINT_MAGIC: [u8; 4] = *b"HWCP";
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 32;
/// Before a record's varints.
const RECORD_HEADER_BYTES: usize = 24;
/// Of which the record's length does not count so many.
const RECORD_PREFIX_BYTES: usize = 8;
const TRAILER_BYTES: usize = 36;
const FROM: u32 = 1;
const CLEAN: u32 = 2;
/// Encoded records are handed on in parts of about this size, so that growing never copies what is there.
const PART_BYTES: usize = 256 * 1024;

/// Writes a checkpoint log by log, so that the work can be spread over many turns.
#[derive(Debug)]
pub struct Encoder {
    full: Vec<Bytes>,
    part: BytesMut,
    bytes: usize,
    crc: u32,
    records: u32,
}

impl Encoder {
    /// As in [`Checkpoint`].
    pub fn new(shard: ShardId, journal: u64, incarnation: u64) -> Self {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&CHECKPOINT_MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_be_bytes());
        header[12..16].copy_from_slice(&u32::from(shard.0).to_be_bytes());
        header[16..24].copy_from_slice(&journal.to_be_bytes());
        header[24..].copy_from_slice(&incarnation.to_be_bytes());
        let crc = crc_fast::crc32_iscsi(&header);
        header[4..8].copy_from_slice(&crc.to_be_bytes());
        let part = BytesMut::from(&header[..]);
        Self { full: Vec::new(), part, bytes: HEADER_BYTES, crc, records: 0 }
    }

    /// Adds a log; each is added once, in any order.
    pub fn log(&mut self, log: &LogState) {
        let start = self.part.len();
        self.part.put_u32(self.crc);
        self.part.put_u32(0);
        put_log(&mut self.part, log);
        let record = &mut self.part[start..];
        let len = u32::try_from(record.len() - RECORD_PREFIX_BYTES).expect("the state of one log is small");
        record[4..8].copy_from_slice(&len.to_be_bytes());
        self.crc = crc_fast::crc32_iscsi(record);
        record[..4].copy_from_slice(&self.crc.to_be_bytes());
        self.bytes += record.len();
        self.records += 1;
        if self.part.len() >= PART_BYTES {
            self.full.push(self.part.split().freeze());
        }
    }

    /// Bytes so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The file, in parts of which one follows the other.
    pub fn finish(mut self, resume: Resume) -> Vec<Bytes> {
        let (kind, file, position, sequence) = match resume {
            Resume::From { file, sequence } => (FROM, file, 0, sequence),
            Resume::Clean { end, sequence } => (CLEAN, end.file, end.position, sequence),
        };
        let mut t = [0; TRAILER_BYTES];
        t[..4].copy_from_slice(&self.crc.to_be_bytes());
        t[4..8].copy_from_slice(&self.records.to_be_bytes());
        t[8..12].copy_from_slice(&kind.to_be_bytes());
        t[12..20].copy_from_slice(&file.0.to_be_bytes());
        t[20..28].copy_from_slice(&position.to_be_bytes());
        t[28..].copy_from_slice(&sequence.to_be_bytes());
        let crc = crc_fast::crc32_iscsi(&t);
        t[..4].copy_from_slice(&crc.to_be_bytes());
        self.part.put_slice(&t);
        self.full.push(self.part.freeze());
        self.full
    }
}

fn put_log(out: &mut BytesMut, log: &LogState) {
    assert!(log.moved <= log.noted, "what is noted is as of a later entry than what was moved");
    assert!(log.start <= log.end, "a log ends where it starts, or behind");
    out.put_slice(&log.partition.topic.to_bytes());
    put_varint(out, log.partition.index.0.into());
    put_varint(out, log.moved.chunk);
    put_varint(out, log.moved.entry.into());
    put_varint(out, log.noted.chunk - log.moved.chunk);
    put_varint(out, log.noted.entry.into());
    put_varint(out, log.start.0);
    put_varint(out, log.end.0 - log.start.0);
    put_varint(out, log.high_watermark.0);
    put_varint(out, log.cleaned.0);
    put_varint(out, log.segments.len() as u64);
    let mut before = Offset::ZERO;
    for segment in &log.segments {
        assert!(before <= segment.base && segment.base <= segment.end, "segments ascend");
        put_varint(out, segment.base.0 - before.0);
        put_varint(out, segment.end.0 - segment.base.0);
        put_varint(out, segment.generation.into());
        put_varint(out, segment.bytes);
        put_signed(out, segment.max_timestamp_ms);
        put_signed(out, segment.begun_ms);
        before = segment.base;
    }
    put_varint(out, log.epochs.len() as u64);
    let (mut epoch_before, mut before) = (LeaderEpoch(0), Offset::ZERO);
    for &(epoch, start) in &log.epochs {
        assert!(epoch_before <= epoch && before <= start, "epochs ascend");
        put_varint(out, (epoch.0 - epoch_before.0).into());
        put_varint(out, start.0 - before.0);
        (epoch_before, before) = (epoch, start);
    }
    put_varint(out, log.producers.len() as u64);
    for producer in &log.producers {
        put_producer(out, producer.id, producer.epoch, &producer.batches);
    }
    put_varint(out, log.superseded.len() as u64);
    let mut before = Offset::ZERO;
    for superseded in &log.superseded {
        assert!(before <= superseded.by, "what is superseded ascends");
        put_varint(out, superseded.by.0 - before.0);
        let (epoch, batches) =
            superseded.before.as_ref().map_or((ProducerEpoch(0), &[][..]), |p| (p.epoch, &p.batches));
        put_producer(out, superseded.id, epoch, batches);
        before = superseded.by;
    }
}

fn put_producer(out: &mut BytesMut, id: ProducerId, epoch: ProducerEpoch, batches: &[ProducedBatch]) {
    put_varint(out, id.0);
    put_varint(out, epoch.0.into());
    put_varint(out, batches.len() as u64);
    for batch in batches {
        put_varint(out, batch.first.0.into());
        put_varint(out, batch.last.0.into());
        put_varint(out, batch.base.0);
    }
}

fn put_varint(out: &mut BytesMut, value: u64) {
    let mut left = value;
    while left >= 0x80 {
        out.put_u8(left as u8 | 0x80);
        left >>= 7;
    }
    out.put_u8(left as u8);
}

fn put_signed(out: &mut BytesMut, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)).cast_unsigned());
}

/// Why bytes are not a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadCheckpoint {
    #[error("the file is shorter than its header and its end")]
    Short,
    #[error("the file does not begin like a checkpoint")]
    Magic,
    #[error(
        "written in format {0}, which this release does not read; use the release that wrote it or a newer one"
    )]
    Version(u32),
    #[error("damaged or cut short at byte {0}: a CRC is wrong")]
    Crc(u64),
    #[error("at byte {position}: {what}")]
    Value { position: u64, what: &'static str },
}

impl Checkpoint {
    /// The whole file, in parts of which one follows the other.
    pub fn encode(&self) -> Vec<Bytes> {
        let mut encoder = Encoder::new(self.shard, self.journal, self.incarnation);
        for log in &self.logs {
            encoder.log(log);
        }
        encoder.finish(self.resume)
    }

    /// Reads a whole file; `logs` come sorted by partition. What it allocates is bounded by a small multiple of the
    /// file's length.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadCheckpoint> {
        if bytes.len() < CHECKPOINT_MAGIC.len() {
            return Err(BadCheckpoint::Short);
        }
        if !bytes.starts_with(&CHECKPOINT_MAGIC) {
            return Err(BadCheckpoint::Magic);
        }
        let trailer_at = bytes.len().checked_sub(TRAILER_BYTES).filter(|at| *at >= HEADER_BYTES);
        let (before, trailer) = bytes.split_at(trailer_at.ok_or(BadCheckpoint::Short)?);
        let (header, mut left) = before.split_at(HEADER_BYTES);
        let mut crc = check(header, 4, 0).ok_or(BadCheckpoint::Crc(0))?;
        let version = u32_at(header, 8);
        if version != VERSION {
            return Err(BadCheckpoint::Version(version));
        }
        let mut logs = Vec::new();
        while !left.is_empty() {
            let position = (before.len() - left.len()) as u64;
            let bad = BadCheckpoint::Crc(position);
            let prefix = left.get(..RECORD_PREFIX_BYTES).ok_or(bad)?;
            let len = RECORD_PREFIX_BYTES + u32_at(prefix, 4) as usize;
            let (record, after) = left.split_at_checked(len).ok_or(bad)?;
            crc = check(record, 0, crc).ok_or(bad)?;
            let log = parse_log(record).map_err(|what| BadCheckpoint::Value { position, what })?;
            logs.push(log);
            left = after;
        }
        let position = before.len() as u64;
        check(trailer, 0, crc).ok_or(BadCheckpoint::Crc(position))?;
        let value = |what| BadCheckpoint::Value { position, what };
        if u32_at(trailer, 4) as usize != logs.len() {
            return Err(value("the number of logs is another one than counted"));
        }
        logs.sort_unstable_by_key(|log| log.partition);
        if logs.windows(2).any(|pair| pair[0].partition == pair[1].partition) {
            return Err(value("a partition is there twice"));
        }
        let (file, at, sequence) = (FileNo(u64_at(trailer, 12)), u64_at(trailer, 20), u64_at(trailer, 28));
        let resume = match (u32_at(trailer, 8), at) {
            (FROM, 0) => Resume::From { file, sequence },
            (CLEAN, position) => Resume::Clean { end: LogPosition { file, position }, sequence },
            _ => return Err(value("where to resume is none of the kinds")),
        };
        let shard = u16::try_from(u32_at(header, 12))
            .map_err(|_| BadCheckpoint::Value { position: 0, what: "no shard has such a number" })?;
        let (journal, incarnation) = (u64_at(header, 16), u64_at(header, 24));
        Ok(Self { shard: ShardId(shard), journal, incarnation, resume, logs })
    }
}

/// The CRC of `bytes` with `before` in its field at `at`, if it is the one that stands there.
fn check(bytes: &[u8], at: usize, before: u32) -> Option<u32> {
    let digest_of = |parts: [&[u8]; 3]| {
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        for part in parts {
            digest.update(part);
        }
        u32::try_from(digest.finalize()).expect("a CRC of 32 bits")
    };
    let crc = digest_of([&bytes[..at], &before.to_be_bytes(), &bytes[at + 4..]]);
    (crc == u32_at(bytes, at)).then_some(crc)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Reads the record whose CRC was right. Its numbers are checked all the same.
fn parse_log(record: &[u8]) -> Result<LogState, &'static str> {
    let Some(topic) = record[RECORD_PREFIX_BYTES..].first_chunk() else {
        return Err("a record shorter than a topic id");
    };
    let mut r = Reader { left: &record[RECORD_HEADER_BYTES..] };
    let topic = TopicId::from_bytes(*topic);
    let partition = PartitionId { topic, index: PartitionIndex(r.small()?) };
    let moved = Lsn { chunk: r.varint()?, entry: r.small()? };
    let noted = Lsn { chunk: r.ascending(moved.chunk)?, entry: r.small()? };
    if noted < moved {
        return Err("what is noted is older than what was moved");
    }
    let start = r.offset(Offset::ZERO)?;
    let end = r.offset(start)?;
    let high_watermark = r.offset(Offset::ZERO)?;
    let cleaned = r.offset(Offset::ZERO)?;
    let segments = r.segments()?;
    let epochs = r.epochs()?;
    let producers = r.list(3, Reader::producer)?;
    let superseded = r.superseded()?;
    if !r.left.is_empty() {
        return Err("a record longer than what it holds");
    }
    Ok(LogState {
        partition,
        moved,
        noted,
        start,
        end,
        high_watermark,
        cleaned,
        segments,
        epochs,
        producers,
        superseded,
    })
}

/// Takes varints off the front.
struct Reader<'a> {
    left: &'a [u8],
}

impl Reader<'_> {
    fn varint(&mut self) -> Result<u64, &'static str> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.left.split_first().ok_or("a number is cut short")?;
            self.left = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                // One value has one form, so that what was read is what would be written.
                return if byte == 0 && shift > 0 { Err("a number is padded") } else { Ok(value) };
            }
        }
        Err("a number is too long")
    }

    fn signed(&mut self) -> Result<i64, &'static str> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    fn small<T: TryFrom<u64>>(&mut self) -> Result<T, &'static str> {
        T::try_from(self.varint()?).map_err(|_| "a number is too large")
    }

    fn ascending(&mut self, before: u64) -> Result<u64, &'static str> {
        before.checked_add(self.varint()?).ok_or("a number is too large")
    }

    fn offset(&mut self, before: Offset) -> Result<Offset, &'static str> {
        let offset = self.ascending(before.0)?;
        if i64::try_from(offset).is_ok() { Ok(Offset(offset)) } else { Err("an offset is too large") }
    }

    /// As many items as are said to follow, of which each has at least `bytes_min`.
    fn list<T>(
        &mut self,
        bytes_min: usize,
        mut item: impl FnMut(&mut Self) -> Result<T, &'static str>,
    ) -> Result<Vec<T>, &'static str> {
        let count: usize = self.small()?;
        if count > self.left.len() / bytes_min {
            return Err("a list is longer than its record");
        }
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn segments(&mut self) -> Result<Vec<SegmentMeta>, &'static str> {
        let mut before = Offset::ZERO;
        self.list(6, |r| {
            let base = r.offset(before)?;
            before = base;
            Ok(SegmentMeta {
                base,
                end: r.offset(base)?,
                generation: r.small()?,
                bytes: r.varint()?,
                max_timestamp_ms: r.signed()?,
                begun_ms: r.signed()?,
            })
        })
    }

    fn epochs(&mut self) -> Result<Vec<(LeaderEpoch, Offset)>, &'static str> {
        let mut last = (0, Offset::ZERO);
        self.list(2, |r| {
            let epoch = r.ascending(last.0)?;
            last = (epoch, r.offset(last.1)?);
            let wire = i32::try_from(epoch).map_err(|_| "an epoch is too large")?;
            Ok((LeaderEpoch(wire.cast_unsigned()), last.1))
        })
    }

    fn producer(&mut self) -> Result<ProducerState, &'static str> {
        let (id, epoch) = (ProducerId(self.varint()?), ProducerEpoch(self.small()?));
        let batches = self.list(3, |r| {
            Ok(ProducedBatch {
                first: Sequence(r.small()?),
                last: Sequence(r.small()?),
                base: r.offset(Offset::ZERO)?,
            })
        })?;
        Ok(ProducerState { id, epoch, batches })
    }

    fn superseded(&mut self) -> Result<Vec<Superseded>, &'static str> {
        let mut last = Offset::ZERO;
        self.list(4, |r| {
            let by = r.offset(last)?;
            last = by;
            let before = r.producer()?;
            let id = before.id;
            if before.batches.is_empty() && before.epoch != ProducerEpoch(0) {
                return Err("a producer that was unknown has an epoch");
            }
            Ok(Superseded { id, by, before: Some(before).filter(|before| !before.batches.is_empty()) })
        })
    }
}
