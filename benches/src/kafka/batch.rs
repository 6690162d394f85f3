//! A record batch (magic 2) built once, and the reader that walks fetched ones.
//!
//! Byte layout: <https://kafka.apache.org/documentation/#recordbatch>.

use crc_fast::{CrcAlgorithm, checksum_combine, crc32_iscsi};

/// Bytes of a batch before its first record.
pub const HEADER_BYTES: usize = 61;
const LENGTH_AT: usize = 8;
const MAGIC_AT: usize = 16;
pub const CRC_AT: usize = 17;
/// The checksum covers everything from the attributes on.
pub const ATTRIBUTES_AT: usize = 21;
const LAST_OFFSET_DELTA_AT: usize = 23;
pub const SEQUENCE_AT: usize = 53;
const COUNT_AT: usize = 57;

/// The stamp at the start of a batch's first value: run id, then due time in nanoseconds, both big-endian `u64`.
pub const STAMP_BYTES: usize = 16;

/// What a batch carries.
#[derive(Clone, Copy, Debug)]
pub struct BatchSpec {
    pub records: usize,
    /// Bytes of each value.
    pub value_bytes: usize,
    pub timestamp_ms: i64,
    /// -1 without idempotence.
    pub producer_id: i64,
    pub producer_epoch: i16,
}

pub struct Batch {
    pub bytes: Vec<u8>,
    /// Where the first record's value begins.
    pub first_value_at: usize,
}

/// Builds a batch of records without keys whose values are noise: nothing on the way should profit from repetition.
pub fn build(spec: &BatchSpec) -> Batch {
    assert!(spec.records > 0);
    let mut bytes = Vec::with_capacity(HEADER_BYTES + spec.records * (spec.value_bytes + 16));
    bytes.extend_from_slice(&0i64.to_be_bytes());
    bytes.extend_from_slice(&0i32.to_be_bytes());
    bytes.extend_from_slice(&(-1i32).to_be_bytes());
    bytes.push(2);
    bytes.extend_from_slice(&0u32.to_be_bytes());
    bytes.extend_from_slice(&0i16.to_be_bytes());
    bytes.extend_from_slice(&(spec.records as i32 - 1).to_be_bytes());
    bytes.extend_from_slice(&spec.timestamp_ms.to_be_bytes());
    bytes.extend_from_slice(&spec.timestamp_ms.to_be_bytes());
    bytes.extend_from_slice(&spec.producer_id.to_be_bytes());
    bytes.extend_from_slice(&spec.producer_epoch.to_be_bytes());
    bytes.extend_from_slice(&(if spec.producer_id < 0 { -1i32 } else { 0 }).to_be_bytes());
    bytes.extend_from_slice(&(spec.records as i32).to_be_bytes());
    assert_eq!(bytes.len(), HEADER_BYTES);

    let mut noise = Noise(0x9E37_79B9_7F4A_7C15);
    let mut first_value_at = 0;
    let mut body = Vec::with_capacity(spec.value_bytes + 16);
    for offset_delta in 0..spec.records {
        body.clear();
        body.push(0);
        put_varint(&mut body, 0);
        put_varint(&mut body, offset_delta as i64);
        put_varint(&mut body, -1);
        put_varint(&mut body, spec.value_bytes as i64);
        let value_at = body.len();
        noise.fill(&mut body, spec.value_bytes);
        put_varint(&mut body, 0);
        put_varint(&mut bytes, body.len() as i64);
        if offset_delta == 0 {
            first_value_at = bytes.len() + value_at;
        }
        bytes.extend_from_slice(&body);
    }
    let length = (bytes.len() - LENGTH_AT - 4) as i32;
    bytes[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&length.to_be_bytes());
    let crc = crc32_iscsi(&bytes[ATTRIBUTES_AT..]);
    bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
    Batch { bytes, first_value_at }
}

/// The checksum of `changed` followed by an unchanged tail, without reading the tail again.
pub fn crc_of_changed(changed: &[u8], tail_crc: u32, tail_bytes: usize) -> u32 {
    let head = u64::from(crc32_iscsi(changed));
    checksum_combine(CrcAlgorithm::Crc32Iscsi, head, u64::from(tail_crc), tail_bytes as u64) as u32
}

fn put_varint(out: &mut Vec<u8>, value: i64) {
    let mut zigzag = ((value << 1) ^ (value >> 63)) as u64;
    while zigzag >= 0x80 {
        out.push(zigzag as u8 | 0x80);
        zigzag >>= 7;
    }
    out.push(zigzag as u8);
}

/// Xorshift: reproducible, and random enough that no compression finds anything.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, out: &mut Vec<u8>, bytes: usize) {
        let end = out.len() + bytes;
        while out.len() < end {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            let word = self.0.to_le_bytes();
            let room = (end - out.len()).min(8);
            out.extend_from_slice(&word[..room]);
        }
    }
}

/// One batch of a fetch answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub base_offset: i64,
    pub last_offset: i64,
    pub records: u64,
    /// Bytes of the whole batch.
    pub bytes: usize,
    /// Run id and due time, when the first value is long enough to hold a stamp and the batch is not compressed.
    pub stamp: Option<(u64, u64)>,
}

/// Whole batches at the start of `records`; a cut one at the end is left out, as brokers cut there.
pub fn walk(records: &[u8]) -> impl Iterator<Item = Seen> + '_ {
    let mut rest = records;
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<HEADER_BYTES>()?;
        let length = i32::from_be_bytes(field(header, LENGTH_AT));
        let total = usize::try_from(length).ok()?.checked_add(LENGTH_AT + 4)?;
        if header[MAGIC_AT] != 2 || total < HEADER_BYTES || total > rest.len() {
            return None;
        }
        let base_offset = i64::from_be_bytes(field(header, 0));
        let attributes = u16::from_be_bytes(field(header, ATTRIBUTES_AT));
        let last_delta = i32::from_be_bytes(field(header, LAST_OFFSET_DELTA_AT));
        let count = i32::from_be_bytes(field(header, COUNT_AT));
        let (batch, after) = rest.split_at(total);
        rest = after;
        let is_plain = attributes & 0b111 == 0;
        Some(Seen {
            base_offset,
            last_offset: base_offset.saturating_add(i64::from(last_delta)),
            records: u64::try_from(count).unwrap_or(0),
            bytes: total,
            stamp: if is_plain { stamp_of(&batch[HEADER_BYTES..]) } else { None },
        })
    })
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a fixed field lies within the header")
}

fn stamp_of(mut record: &[u8]) -> Option<(u64, u64)> {
    take_varint(&mut record)?;
    record = record.get(1..)?;
    take_varint(&mut record)?;
    take_varint(&mut record)?;
    let key_bytes = take_varint(&mut record)?;
    record = record.get(usize::try_from(key_bytes).unwrap_or(0)..)?;
    if take_varint(&mut record)? < STAMP_BYTES as i64 {
        return None;
    }
    let stamp = record.first_chunk::<STAMP_BYTES>()?;
    Some((u64::from_be_bytes(field(stamp, 0)), u64::from_be_bytes(field(stamp, 8))))
}

fn take_varint(bytes: &mut &[u8]) -> Option<i64> {
    let mut zigzag = 0u64;
    for shift in (0..70).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        zigzag |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte < 0x80 {
            return Some((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::records::RecordBatchDecoder;

    fn spec(records: usize, value_bytes: usize) -> BatchSpec {
        BatchSpec {
            records,
            value_bytes,
            timestamp_ms: 1_700_000_000_000,
            producer_id: -1,
            producer_epoch: -1,
        }
    }

    #[test]
    fn the_generated_codec_reads_our_batches() {
        for (records, value_bytes) in [(1, 0), (1, 1024), (3, 100), (1000, 70)] {
            let batch = build(&spec(records, value_bytes));
            let mut bytes = bytes::Bytes::from(batch.bytes);
            let set = RecordBatchDecoder::decode(&mut bytes).unwrap();
            assert_eq!(set.records.len(), records);
            assert!(set.records.iter().all(|r| r.value.as_ref().map_or(0, bytes::Bytes::len) == value_bytes));
            assert_eq!(set.records[records - 1].offset, records as i64 - 1);
        }
    }

    #[test]
    fn walking_finds_batches_and_stamps_and_stops_at_a_cut_one() {
        let mut first = build(&spec(3, 100));
        let at = first.first_value_at;
        first.bytes[at..at + 8].copy_from_slice(&77u64.to_be_bytes());
        first.bytes[at + 8..at + 16].copy_from_slice(&88u64.to_be_bytes());
        let second = build(&spec(2, 4));
        let mut log = first.bytes.clone();
        log.extend_from_slice(&second.bytes);
        log.extend_from_slice(&second.bytes[..50]);
        let seen: Vec<Seen> = walk(&log).collect();
        assert_eq!(seen.len(), 2);
        assert_eq!((seen[0].records, seen[0].last_offset, seen[0].stamp), (3, 2, Some((77, 88))));
        assert_eq!((seen[1].records, seen[1].stamp), (2, None));
        for cut in 0..log.len() {
            let _ = walk(&log[..cut]).count();
        }
    }

    #[test]
    fn the_checksum_of_a_changed_head_equals_the_checksum_of_the_whole() {
        let batch = build(&spec(100, 1000));
        let covered = &batch.bytes[ATTRIBUTES_AT..];
        let (head, tail) = covered.split_at(60);
        assert_eq!(crc_of_changed(head, crc32_iscsi(tail), tail.len()), crc32_iscsi(covered));
    }
}
