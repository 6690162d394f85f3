//! Record batches of Kafka's format version 2, read and checked where they lie.
//!
//! Floor 0. On the path of a record from its producer to its consumers nothing here copies record bytes, decompresses
//! them or keeps them; the one copy that a produced batch makes is [`put_patched`], into the journal's block. Only a
//! search by time looks into one batch's records, and compaction, which writes batches anew: [`Records`], [`codec`],
//! [`put_rebuilt`].
//!
//! | at | bytes | field | |
//! |---:|---:|---|---|
//! | 0 | 8 | base offset | set by the leader: outside the CRC |
//! | 8 | 4 | length of what follows | |
//! | 12 | 4 | partition leader epoch | set by the leader: outside the CRC |
//! | 16 | 1 | magic, 2 | |
//! | 17 | 4 | CRC-32C of all that follows | |
//! | 21 | 2 | [`Attributes`] | |
//! | 23 | 4 | last offset delta | |
//! | 27 | 8 | base timestamp, ms | that of the first record as it was produced; the delete horizon if that bit is set |
//! | 35 | 8 | max timestamp, ms | |
//! | 43 | 8 | producer id, -1 for none | |
//! | 51 | 2 | producer epoch | |
//! | 53 | 4 | base sequence | |
//! | 57 | 4 | number of records | |
//! | 61 | | records, compressed as one if at all | see `record.rs` |
//!
//! All numbers are big-endian. Source: Apache Kafka, `DefaultRecordBatch`, and KIP-98.

mod builder;
pub mod codec;
mod filler;
mod found;
mod rebuild;
mod record;
#[cfg(test)]
mod tests;

use bytes::{BufMut, BytesMut};

pub use builder::BatchBuilder;
use codec::CodecError;
pub use filler::{FILLER_OFFSETS_MAX, filler};
pub use found::{Found, first_at_or_after, largest_timestamp};
pub use rebuild::{Rebuilt, put_rebuilt};
pub use record::{Record, Records};

use crate::ids::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence};
use crate::mail::PartitionError;

/// The bytes of a batch before its records.
pub const HEADER_BYTES: usize = 61;
/// The base offset and the length: what the length field does not count.
pub const PREFIX_BYTES: usize = 12;
/// The bytes at a batch's start that its own CRC does not vouch for: offset, length, epoch, magic and the CRC.
pub const OUTSIDE_CRC_BYTES: usize = 21;
/// How much of a batch [`put_patched`] writes anew: base offset, length and leader epoch.
pub const PATCHED_PREFIX_BYTES: usize = 16;
/// Batches that one produced record set may hold. Real clients send one.
pub const RECORD_SET_BATCHES_MAX: usize = 1024;
/// Bytes of compressed records, unpacked, that a compacted topic takes in one record set, and that compaction looks at
/// in one batch.
pub const UNPACKED_BYTES_MAX: usize = 32 * 1024 * 1024;

const MAGIC_AT: usize = 16;
const CRC_AT: usize = 17;
const MAGIC: u8 = 2;

/// How the records of a batch are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

/// The attribute bits of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Attributes(pub u16);

impl Attributes {
    const CODEC: u16 = 0x07;
    const LOG_APPEND_TIME: u16 = 0x08;
    const TRANSACTIONAL: u16 = 0x10;
    const CONTROL: u16 = 0x20;
    const DELETE_HORIZON: u16 = 0x40;
    /// Bits that a producer has no business to set: the delete horizon of a compacted log, and undefined ones.
    const NOT_FOR_PRODUCERS: u16 = 0xffc0;

    /// `None` for a codec that the format does not define.
    pub fn compression(self) -> Option<Compression> {
        Some(match self.0 & Self::CODEC {
            0 => Compression::None,
            1 => Compression::Gzip,
            2 => Compression::Snappy,
            3 => Compression::Lz4,
            4 => Compression::Zstd,
            _ => return None,
        })
    }

    pub fn timestamp_type(self) -> TimestampType {
        if self.0 & Self::LOG_APPEND_TIME == 0 { TimestampType::Create } else { TimestampType::LogAppend }
    }

    pub fn is_transactional(self) -> bool {
        self.0 & Self::TRANSACTIONAL != 0
    }

    pub fn is_control(self) -> bool {
        self.0 & Self::CONTROL != 0
    }

    /// Whether the base timestamp is the batch's delete horizon (KIP-534).
    pub fn has_delete_horizon(self) -> bool {
        self.0 & Self::DELETE_HORIZON != 0
    }

    #[must_use]
    pub fn with_delete_horizon(self) -> Self {
        Self(self.0 | Self::DELETE_HORIZON)
    }

    /// Those of a batch without records: not compressed, no delete horizon.
    #[must_use]
    pub fn without_records(self) -> Self {
        Self(self.0 & !(Self::CODEC | Self::DELETE_HORIZON))
    }
}

/// Whose clock a batch's timestamps come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimestampType {
    Create,
    LogAppend,
}

/// What an idempotent producer says of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchProducer {
    pub id: ProducerId,
    pub epoch: ProducerEpoch,
    pub base_sequence: Sequence,
}

/// The header of one batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchHeader {
    /// As it stands in the bytes: a producer sends 0, a stored batch has its real one.
    pub base_offset: i64,
    /// Bytes of the whole batch with its 12-byte prefix; at least [`HEADER_BYTES`].
    pub len: u32,
    /// As it stands in the bytes; a producer sends -1.
    pub leader_epoch: i32,
    pub attributes: Attributes,
    pub last_offset_delta: u32,
    /// -1: no timestamp.
    pub base_timestamp_ms: i64,
    /// -1: no timestamp.
    pub max_timestamp_ms: i64,
    pub producer: Option<BatchProducer>,
    pub records: u32,
}

impl BatchHeader {
    /// Offsets that the batch takes up.
    pub fn offsets(&self) -> u64 {
        u64::from(self.last_offset_delta) + 1
    }

    /// The base offset of a stored batch. `None`: it is negative, so the bytes are no stored batch.
    pub fn base(&self) -> Option<Offset> {
        Offset::from_wire(self.base_offset)
    }

    /// When the records without a value, of a batch that was compacted, may go; in ms since the epoch.
    pub fn delete_horizon_ms(&self) -> Option<i64> {
        self.attributes.has_delete_horizon().then_some(self.base_timestamp_ms)
    }

    /// Whether the base timestamp is that of the record at the base offset: compaction took nothing from the batch.
    fn is_as_produced(&self) -> bool {
        !self.attributes.has_delete_horizon() && u64::from(self.records) == self.offsets()
    }

    /// The sequence number of the batch's last record; numbers wrap after `i32::MAX` to 0.
    pub fn last_sequence(&self) -> Option<Sequence> {
        let producer = self.producer?;
        Some(Sequence(producer.base_sequence.0.wrapping_add(self.last_offset_delta) & i32::MAX as u32))
    }
}

/// Why bytes are not a batch that may be stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    #[error("the bytes end within a batch, or a length or CRC is wrong")]
    Corrupt,
    #[error("record format {0} is not accepted, only format 2")]
    UnsupportedFormat(u8),
    #[error("the batch has {len} bytes, more than the {limit} that the topic allows")]
    TooLarge { len: u32, limit: u32 },
    #[error("the batch breaks its format: {0}")]
    Invalid(&'static str),
    #[error("a record has no key, which the topic asks for")]
    KeyMissing,
}

impl From<BatchError> for PartitionError {
    fn from(error: BatchError) -> Self {
        match error {
            BatchError::Corrupt => Self::CorruptBatch,
            BatchError::UnsupportedFormat(_) => Self::UnsupportedFormat,
            BatchError::TooLarge { .. } => Self::BatchTooLarge,
            BatchError::Invalid(_) => Self::InvalidBatch,
            BatchError::KeyMissing => Self::KeyMissing,
        }
    }
}

fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the fields lie within the header")
}

/// Reads the header of the batch that `bytes` start with. Only the header must be there; that the rest is, and
/// that its CRC is right, is for the caller to check.
pub fn parse_header(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
    // Formats 0 and 1 are shorter, but have their magic in the same place.
    let magic = *bytes.get(MAGIC_AT).ok_or(BatchError::Corrupt)?;
    if magic < MAGIC {
        return Err(BatchError::UnsupportedFormat(magic));
    }
    if magic > MAGIC {
        return Err(BatchError::Corrupt);
    }
    let h: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(BatchError::Corrupt)?;
    let after_prefix = u32::from_be_bytes(field(h, 8));
    if after_prefix < (HEADER_BYTES - PREFIX_BYTES) as u32 || after_prefix > i32::MAX as u32 {
        return Err(BatchError::Corrupt);
    }
    let not_negative = |value: i32, what| u32::try_from(value).map_err(|_| BatchError::Invalid(what));
    let producer = match i64::from_be_bytes(field(h, 43)) {
        -1 => None,
        id => Some(BatchProducer {
            id: ProducerId(u64::try_from(id).map_err(|_| BatchError::Invalid("negative producer id"))?),
            epoch: ProducerEpoch(
                u16::try_from(i16::from_be_bytes(field(h, 51)))
                    .map_err(|_| BatchError::Invalid("negative producer epoch"))?,
            ),
            base_sequence: Sequence(not_negative(
                i32::from_be_bytes(field(h, 53)),
                "negative base sequence",
            )?),
        }),
    };
    Ok(BatchHeader {
        base_offset: i64::from_be_bytes(field(h, 0)),
        len: after_prefix + PREFIX_BYTES as u32,
        leader_epoch: i32::from_be_bytes(field(h, 12)),
        attributes: Attributes(u16::from_be_bytes(field(h, 21))),
        last_offset_delta: not_negative(i32::from_be_bytes(field(h, 23)), "negative last offset delta")?,
        base_timestamp_ms: i64::from_be_bytes(field(h, 27)),
        max_timestamp_ms: i64::from_be_bytes(field(h, 35)),
        producer,
        records: not_negative(i32::from_be_bytes(field(h, 57)), "negative number of records")?,
    })
}

/// Whether the CRC of the one whole batch in `bytes` is right.
pub fn check_crc(bytes: &[u8]) -> bool {
    let (Some(stored), Some(covered)) =
        (bytes.get(CRC_AT..OUTSIDE_CRC_BYTES), bytes.get(OUTSIDE_CRC_BYTES..))
    else {
        return false;
    };
    stored == crc_fast::crc32_iscsi(covered).to_be_bytes()
}

/// What a topic allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    pub batch_bytes_max: u32,
    /// Every record must have a key, as in a compacted topic. Compressed batches are unpacked to see it.
    pub keys_required: bool,
}

/// The batches of one produced record set: at least one. Allocates only for the second and further ones.
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    records: &'a [u8],
    first: BatchHeader,
    rest: Vec<BatchHeader>,
}

impl<'a> Batches<'a> {
    /// Each batch's header and bytes, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&BatchHeader, &'a [u8])> {
        let mut left = self.records;
        std::iter::once(&self.first).chain(&self.rest).map(move |header| {
            let (batch, after) = left.split_at(header.len as usize);
            left = after;
            (header, batch)
        })
    }

    pub fn first(&self) -> &BatchHeader {
        &self.first
    }

    /// How many batches; never 0.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        1 + self.rest.len()
    }

    /// Bytes of all batches together.
    pub fn bytes(&self) -> usize {
        self.records.len()
    }

    /// Records of all batches together.
    pub fn offsets(&self) -> u64 {
        self.first.offsets() + self.rest.iter().map(BatchHeader::offsets).sum::<u64>()
    }

    /// The batch of an idempotent producer: then it is the only one (a set is checked as one or not at all).
    pub fn idempotent(&self) -> Option<&BatchHeader> {
        self.first.producer.is_some().then_some(&self.first)
    }
}

/// Checks a produced record set as a whole: every batch is whole, of format 2 with a right CRC, within the limits,
/// with legal attributes, and its records are numbered 0 to n-1. Compressed records are looked at only where keys are
/// required; all of a set together may then have [`UNPACKED_BYTES_MAX`].
///
/// Control and transactional batches are refused. A batch of an idempotent producer must come alone and with base
/// offset 0.
pub fn validate_produced(records: &[u8], limits: Limits) -> Result<Batches<'_>, BatchError> {
    if records.is_empty() {
        return Err(BatchError::Invalid("no batch"));
    }
    let mut unpacked_bytes_max = UNPACKED_BYTES_MAX;
    let first = validate_one(records, limits, &mut unpacked_bytes_max)?;
    let mut left = &records[first.len as usize..];
    let mut batches = Batches { records, first, rest: Vec::new() };
    while !left.is_empty() {
        if batches.len() == RECORD_SET_BATCHES_MAX {
            return Err(BatchError::Invalid("too many batches in one record set"));
        }
        let header = validate_one(left, limits, &mut unpacked_bytes_max)?;
        if header.producer.is_some() || batches.first.producer.is_some() {
            return Err(BatchError::Invalid("a batch of an idempotent producer must come alone"));
        }
        left = &left[header.len as usize..];
        batches.rest.push(header);
    }
    Ok(batches)
}

/// Checks the batch that `bytes` start with; what is unpacked for it is taken from `unpacked_bytes_max`.
fn validate_one(
    bytes: &[u8],
    limits: Limits,
    unpacked_bytes_max: &mut usize,
) -> Result<BatchHeader, BatchError> {
    let header = parse_header(bytes)?;
    let batch = bytes.get(..header.len as usize).ok_or(BatchError::Corrupt)?;
    if header.len > limits.batch_bytes_max {
        return Err(BatchError::TooLarge { len: header.len, limit: limits.batch_bytes_max });
    }
    // The CRC first: what it does not vouch for is not worth a finer answer.
    if !check_crc(batch) {
        return Err(BatchError::Corrupt);
    }
    let invalid = |what| Err(BatchError::Invalid(what));
    let attributes = header.attributes;
    if attributes.0 & Attributes::NOT_FOR_PRODUCERS != 0 {
        return invalid("attribute bits that a producer may not set");
    }
    let Some(compression) = attributes.compression() else {
        return invalid("unknown compression codec");
    };
    if attributes.is_control() {
        return invalid("control batch from a client");
    }
    if attributes.is_transactional() {
        return invalid("transactions are not supported");
    }
    if attributes.timestamp_type() == TimestampType::LogAppend {
        return invalid("log append time from a client");
    }
    if u64::from(header.records) != header.offsets() {
        return invalid("number of records is not last offset delta + 1");
    }
    if header.base_timestamp_ms < -1 || header.max_timestamp_ms < -1 {
        return invalid("negative timestamp");
    }
    if header.producer.is_some() && header.base_offset != 0 {
        return invalid("base offset of a produced batch is not 0");
    }
    let records = &batch[HEADER_BYTES..];
    if compression == Compression::None {
        record::check_all(records, header.records, limits.keys_required)?;
    } else if limits.keys_required {
        let mut unpacked = Vec::new();
        match codec::decompress(compression, records, *unpacked_bytes_max, &mut unpacked) {
            Ok(()) => {}
            Err(CodecError::TooLarge { .. }) => {
                return invalid("unpacked, the records are larger than a compacted topic takes");
            }
            Err(CodecError::Malformed | CodecError::Pack) => {
                return invalid("the records are not what their codec writes");
            }
        }
        *unpacked_bytes_max -= unpacked.len();
        record::check_all(&unpacked, header.records, true)?;
    }
    Ok(header)
}

/// Writes `batch` to `out` with `base` and `epoch` in place of its own: both lie outside its CRC.
///
/// `batch` is one whole batch; shorter than its header is a bug of the caller.
pub fn put_patched(out: &mut BytesMut, batch: &[u8], base: Offset, epoch: LeaderEpoch) {
    assert!(batch.len() >= HEADER_BYTES, "a batch is at least its header");
    let mut prefix = [0; PATCHED_PREFIX_BYTES];
    prefix[..8].copy_from_slice(&base.wire().to_be_bytes());
    prefix[8..12].copy_from_slice(&batch[8..12]);
    prefix[12..].copy_from_slice(&epoch.wire().to_be_bytes());
    out.put_slice(&prefix);
    out.put_slice(&batch[PATCHED_PREFIX_BYTES..]);
}

/// The records of a stored `batch`: where they lie, or if they are compressed in `unpacked`, whose content is replaced;
/// at most `unpacked_bytes_max` bytes of them.
///
/// `batch` is at least its header; shorter is a bug of the caller.
pub fn plain_records<'a>(
    header: &BatchHeader,
    batch: &'a [u8],
    unpacked_bytes_max: usize,
    unpacked: &'a mut Vec<u8>,
) -> Result<&'a [u8], CodecError> {
    unpacked.clear();
    let records = &batch[HEADER_BYTES..];
    match header.attributes.compression().ok_or(CodecError::Malformed)? {
        Compression::None => Ok(records),
        codec => {
            codec::decompress(codec, records, unpacked_bytes_max, unpacked)?;
            Ok(unpacked)
        }
    }
}
