//! Record batches (format version 2) as the simulated clients write and read them: a second implementation, kept
//! apart from the one under test, so that a common mistake cannot hide.
//!
//! Source of the layout: Apache Kafka, "Record Batch" in the protocol guide. All numbers are big-endian:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 8 | base offset |
//! | 8 | 4 | length of what follows |
//! | 12 | 4 | partition leader epoch |
//! | 16 | 1 | magic, 2 |
//! | 17 | 4 | CRC-32C of all that follows |
//! | 21 | 2 | attributes |
//! | 23 | 4 | last offset delta |
//! | 27 | 8 + 8 | base and largest timestamp |
//! | 43 | 8 + 2 + 4 | producer id, producer epoch, base sequence |
//! | 57 | 4 | record count |
//! | 61 | | records |

use bytes::{BufMut, Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, checksum};
use xxhash_rust::xxh3::xxh3_64;

/// The length of a batch without its records, in bytes.
pub const HEADER: usize = 61;
/// Where the part that the CRC covers begins.
const COVERED: usize = 21;

/// The number of a batch that a simulated client made; it stands at the head of the value of its records.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Uid(pub u32);

impl Uid {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// An idempotent producer's stamp on a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    pub producer: u64,
    pub epoch: u16,
    pub sequence: u32,
}

/// A batch to be built.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    pub uid: Uid,
    pub records: u32,
    /// Bytes of each record's value; at least 8 are written.
    pub value_len: u32,
    /// Of all records, in ms.
    pub timestamp: i64,
    pub stamp: Option<Stamp>,
}

/// Appends the batch to `out` and returns the hash of the part that a broker must not change.
pub fn build(recipe: &Recipe, out: &mut BytesMut) -> u64 {
    let start = out.len();
    let last_delta = i32::try_from(recipe.records - 1).expect("a simulated batch is small");
    out.put_u64(0);
    out.put_u32(0);
    out.put_i32(-1);
    out.put_u8(2);
    out.put_u32(0);
    out.put_i16(0);
    out.put_i32(last_delta);
    out.put_i64(recipe.timestamp);
    out.put_i64(recipe.timestamp);
    put_stamp(out, recipe.stamp);
    out.put_u32(recipe.records);
    for delta in 0..recipe.records {
        build_record(recipe, delta, out);
    }
    let batch = &mut out[start..];
    seal(batch);
    xxh3_64(&batch[16..])
}

pub(crate) fn put_stamp(out: &mut BytesMut, stamp: Option<Stamp>) {
    match stamp {
        Some(s) => {
            out.put_u64(s.producer);
            out.put_u16(s.epoch);
            out.put_u32(s.sequence);
        }
        None => {
            out.put_i64(-1);
            out.put_i16(-1);
            out.put_i32(-1);
        }
    }
}

/// Fills in the length and the CRC of a batch that is whole.
pub(crate) fn seal(batch: &mut [u8]) {
    let length = u32::try_from(batch.len() - 12).expect("a simulated batch is small");
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    let crc = crc_of(&batch[COVERED..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
}

fn build_record(recipe: &Recipe, delta: u32, out: &mut BytesMut) {
    let value_len = recipe.value_len.max(8) as usize;
    // attributes, timestamp delta, no key, no headers: one byte each.
    let body = 1 + 1 + varint_len(i64::from(delta)) + 1 + varint_len(value_len as i64) + value_len + 1;
    put_varint(out, body as i64);
    out.put_u8(0);
    put_varint(out, 0);
    put_varint(out, i64::from(delta));
    put_varint(out, -1);
    put_varint(out, value_len as i64);
    out.put_u32(recipe.uid.0);
    out.put_u32(delta);
    // The rest differs between batches and records, so that mixed-up bytes do not look right by chance.
    let fill = (recipe.uid.0 ^ delta.wrapping_mul(31)).to_le_bytes()[0];
    out.put_bytes(fill, value_len - 8);
    put_varint(out, 0);
}

/// One batch as a broker returned it.
#[derive(Clone, Debug)]
pub struct Batch {
    pub base_offset: u64,
    pub leader_epoch: i32,
    pub records: u32,
    pub uid: Uid,
    /// As [`build`] returned it, if nobody changed the batch.
    pub hash: u64,
    pub len: usize,
}

/// Takes the first batch out of `records`.
pub fn parse(records: &[u8]) -> Result<Batch, &'static str> {
    if records.len() < HEADER {
        return Err("fewer bytes than the header of a batch");
    }
    let len = 12 + u32_at(records, 8) as usize;
    if len < HEADER || records.len() < len {
        return Err("the batch is not whole");
    }
    let batch = &records[..len];
    if batch[16] != 2 {
        return Err("the batch is not of version 2");
    }
    if u32_at(batch, 17) != crc_of(&batch[COVERED..]) {
        return Err("the CRC of the batch is wrong");
    }
    let mut rest = &batch[HEADER..];
    take_varint(&mut rest).ok_or("the first record has no length")?;
    rest = rest.get(1..).ok_or("the first record has no attributes")?;
    for _ in 0..4 {
        take_varint(&mut rest).ok_or("the first record is cut off")?;
    }
    if rest.len() < 8 {
        return Err("the first record has no value");
    }
    Ok(Batch {
        base_offset: u64::from_be_bytes(batch[..8].try_into().expect("eight bytes")),
        leader_epoch: u32_at(batch, 12).cast_signed(),
        records: u32_at(batch, 57),
        uid: Uid(u32_at(rest, 0)),
        hash: xxh3_64(&batch[16..]),
        len,
    })
}

/// Changes a batch so that a broker must refuse it. `how` chooses the way.
pub fn damage(batch: Bytes, how: u64) -> Bytes {
    let mut bytes = BytesMut::from(&batch[..]);
    match how % 4 {
        0 => {
            let last = bytes.len() - 1;
            bytes[last] ^= 0x40;
        }
        1 => bytes[17] ^= 1,
        2 => bytes[16] = 1,
        _ => bytes.truncate(batch.len() - 1),
    }
    bytes.freeze()
}

pub(crate) fn crc_of(bytes: &[u8]) -> u32 {
    u32::try_from(checksum(CrcAlgorithm::Crc32Iscsi, bytes)).expect("a CRC of 32 bits")
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn zigzag(v: i64) -> u64 {
    ((v << 1) ^ (v >> 63)).cast_unsigned()
}

fn varint_len(v: i64) -> usize {
    let bits = 64 - (zigzag(v) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

pub(crate) fn put_varint(out: &mut BytesMut, v: i64) {
    let mut z = zigzag(v);
    while z >= 0x80 {
        out.put_u8(z.to_le_bytes()[0] | 0x80);
        z >>= 7;
    }
    out.put_u8(z.to_le_bytes()[0]);
}

pub(crate) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut v = 0;
    for shift in (0..64).step_by(7) {
        let (&b, rest) = bytes.split_first()?;
        *bytes = rest;
        v |= u64::from(b & 0x7f) << shift;
        if b & 0x80 == 0 {
            return Some(v);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        Recipe { uid: Uid(300), records: 3, value_len: 200, timestamp: 5, stamp: None }
    }

    #[test]
    fn a_batch_reads_back_as_it_was_built() {
        let mut out = BytesMut::new();
        let hash = build(&recipe(), &mut out);
        let batch = parse(&out).unwrap();
        assert_eq!(
            (batch.uid, batch.records, batch.hash, batch.len, batch.base_offset),
            (Uid(300), 3, hash, out.len(), 0)
        );
    }

    #[test]
    fn a_damaged_batch_is_not_read() {
        let mut out = BytesMut::new();
        build(&recipe(), &mut out);
        let whole = out.freeze();
        for how in 0..4 {
            parse(&damage(whole.clone(), how)).unwrap_err();
        }
    }
}
