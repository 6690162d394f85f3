//! Batches with keys, as the world of one shard's log makes and reads them: apart from the code under test.

use bytes::{BufMut, Bytes, BytesMut};

use crate::records::{HEADER, Stamp, crc_of, put_stamp, put_varint, seal, take_varint, u32_at};
use crate::rng::Rng;

/// A batch to be made.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub base: u64,
    pub epoch: u32,
    pub stamp: Option<Stamp>,
    pub records: Vec<Draft>,
}

/// A record to be made; `value: None` deletes its key.
#[derive(Clone, Copy, Debug)]
pub struct Draft {
    pub timestamp_ms: i64,
    pub key: Option<u32>,
    pub value_len: Option<u32>,
}

/// A record as it stands in a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    pub offset: u64,
    pub timestamp_ms: i64,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
}

/// What a batch says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub base: u64,
    /// One past its last offset.
    pub end: u64,
    pub len: usize,
    pub epoch: u32,
    pub attributes: u16,
    pub base_ms: i64,
    pub max_ms: i64,
    pub producer: [u8; 14],
    pub records: u32,
}

/// Set in a batch whose base timestamp is the time from which on its tombstones may go (KIP-534).
pub const HORIZON: u16 = 1 << 6;

/// The batch as it is stored: with its base offset and epoch.
pub fn build(recipe: &Recipe, rng: &mut Rng) -> Bytes {
    let size: usize = recipe.records.iter().map(|r| 40 + r.value_len.unwrap_or(0) as usize).sum();
    let mut out = BytesMut::with_capacity(HEADER + size);
    let base_ms = recipe.records[0].timestamp_ms;
    let max_ms = recipe.records.iter().map(|r| r.timestamp_ms).max().expect("a batch has records");
    let count = u32::try_from(recipe.records.len()).expect("a simulated batch is small");
    out.put_u64(recipe.base);
    out.put_u32(0);
    out.put_u32(recipe.epoch);
    out.put_u8(2);
    out.put_u32(0);
    out.put_u16(0);
    out.put_u32(count - 1);
    out.put_i64(base_ms);
    out.put_i64(max_ms);
    put_stamp(&mut out, recipe.stamp);
    out.put_u32(count);
    let mut r = BytesMut::new();
    for (delta, draft) in (0_i64..).zip(&recipe.records) {
        r.clear();
        r.put_u8(0);
        put_varint(&mut r, draft.timestamp_ms - base_ms);
        put_varint(&mut r, delta);
        match draft.key {
            Some(key) => {
                put_varint(&mut r, 4);
                r.put_u32(key);
            }
            None => put_varint(&mut r, -1),
        }
        match draft.value_len {
            Some(len) => {
                put_varint(&mut r, i64::from(len));
                let mut left = len as usize;
                // The head differs between batches; the rest is filled, which is fast and tells batches apart too.
                let head = rng.draw().to_le_bytes();
                let n = left.min(8);
                r.put_slice(&head[..n]);
                left -= n;
                r.put_bytes(head[0], left);
            }
            None => put_varint(&mut r, -1),
        }
        put_varint(&mut r, 0);
        put_varint(&mut out, r.len() as i64);
        out.put_slice(&r);
    }
    seal(&mut out);
    out.freeze()
}

/// Reads the header of a batch and checks its length and CRC.
pub fn parse(batch: &[u8]) -> Result<Header, &'static str> {
    if batch.len() < HEADER {
        return Err("fewer bytes than the header of a batch");
    }
    if u32_at(batch, 8) as usize + 12 != batch.len() {
        return Err("the batch does not have the length that it says");
    }
    if batch[16] != 2 {
        return Err("the batch is not of version 2");
    }
    if u32_at(batch, 17) != crc_of(&batch[21..]) {
        return Err("the CRC of the batch is wrong");
    }
    let u64_at = |at: usize| u64::from_be_bytes(batch[at..at + 8].try_into().expect("eight bytes"));
    let base = u64_at(0);
    Ok(Header {
        base,
        end: base + u64::from(u32_at(batch, 23)) + 1,
        len: batch.len(),
        epoch: u32_at(batch, 12),
        attributes: u16::from_be_bytes([batch[21], batch[22]]),
        base_ms: u64_at(27).cast_signed(),
        max_ms: u64_at(35).cast_signed(),
        producer: batch[43..57].try_into().expect("fourteen bytes"),
        records: u32_at(batch, 57),
    })
}

/// Reads the records of a batch that [`parse`] found good.
pub fn records(batch: &Bytes, header: &Header) -> Result<Vec<Record>, &'static str> {
    let mut rest = &batch[HEADER..];
    let mut out = Vec::with_capacity(header.records as usize);
    for _ in 0..header.records {
        out.push(record(batch, &mut rest, header).ok_or("a record is cut off")?);
    }
    if rest.is_empty() { Ok(out) } else { Err("bytes are left behind the last record") }
}

fn record(batch: &Bytes, rest: &mut &[u8], header: &Header) -> Option<Record> {
    take_varint(rest)?;
    *rest = rest.get(1..)?;
    let timestamp_ms = header.base_ms + take_signed(rest)?;
    let offset = header.base + take_signed(rest)?.cast_unsigned();
    let key = field(batch, rest)?;
    let value = field(batch, rest)?;
    take_varint(rest)?;
    Some(Record { offset, timestamp_ms, key, value })
}

fn take_signed(rest: &mut &[u8]) -> Option<i64> {
    let v = take_varint(rest)?;
    Some((v >> 1).cast_signed() ^ -(v & 1).cast_signed())
}

fn field(batch: &Bytes, rest: &mut &[u8]) -> Option<Option<Bytes>> {
    let len = take_signed(rest)?;
    if len < 0 {
        return Some(None);
    }
    let (taken, left) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    *rest = left;
    Some(Some(batch.slice_ref(taken)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_read_back_as_they_were_drafted() {
        let draft = |key, value_len, timestamp_ms| Draft { timestamp_ms, key, value_len };
        let recipe = Recipe {
            base: 40,
            epoch: 3,
            stamp: None,
            records: vec![draft(Some(7), Some(100), 5), draft(None, None, 3), draft(Some(1), Some(3), 9)],
        };
        let batch = build(&recipe, &mut Rng::new(1, "batch", 0));
        let header = parse(&batch).unwrap();
        assert_eq!((header.base, header.end, header.epoch, header.max_ms), (40, 43, 3, 9));
        let read = records(&batch, &header).unwrap();
        let offsets: Vec<_> = read.iter().map(|r| (r.offset, r.timestamp_ms)).collect();
        assert_eq!(offsets, [(40, 5), (41, 3), (42, 9)]);
        assert_eq!(read[0].key.as_deref(), Some(&7_u32.to_be_bytes()[..]));
        assert_eq!(read[1].value, None);
        assert_eq!(read[2].value.as_ref().map(Bytes::len), Some(3));
    }
}
