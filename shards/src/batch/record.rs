//! The records within a batch, uncompressed or unpacked, walked without being copied.
//!
//! A record is: length (varint), attributes (1 byte), timestamp delta (varlong), offset delta (varint), key length
//! (varint, -1 for none) and key, value length and value likewise, number of headers (varint), and for each header
//! a key (length varint, not negative) and a value like a record's. Varints are zigzag-coded.

use bytes::BufMut;

use super::{BatchError, BatchHeader};

const BAD: BatchError = BatchError::Invalid("a record's lengths do not fit");

/// What is left to read of a record or of the records of a batch. Everything says `None` when it does not fit.
#[derive(Clone, Copy)]
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    /// A zigzag varint of at most `BITS` bits.
    #[inline(always)]
    fn varint<const BITS: u32>(&mut self) -> Option<i64> {
        let (&first, left) = self.0.split_first()?;
        if first < 0x80 {
            self.0 = left;
            return Some(unzigzag(u64::from(first)));
        }
        let (&second, left) = left.split_first()?;
        if second < 0x80 {
            self.0 = left;
            return Some(unzigzag(u64::from(first & 0x7f) | u64::from(second) << 7));
        }
        self.varint_long::<BITS>()
    }

    fn varint_long<const BITS: u32>(&mut self) -> Option<i64> {
        let mut value = 0_u64;
        let bytes_max = BITS.div_ceil(7) as usize;
        for (i, &byte) in self.0.iter().take(bytes_max).enumerate() {
            let shift = 7 * i as u32;
            let bits = u64::from(byte & 0x7f);
            if shift + 7 > BITS && bits >> (BITS - shift) != 0 {
                return None;
            }
            value |= bits << shift;
            if byte < 0x80 {
                self.0 = &self.0[i + 1..];
                return Some(unzigzag(value));
            }
        }
        None
    }

    #[inline(always)]
    fn take(&mut self, len: i64) -> Option<&'a [u8]> {
        let (taken, left) = self.0.split_at_checked(usize::try_from(len).ok()?)?;
        self.0 = left;
        Some(taken)
    }

    /// Bytes behind their length, of which -1 says that there are none.
    fn nullable(&mut self) -> Option<Option<&'a [u8]>> {
        match self.varint::<32>()? {
            -1 => Some(None),
            len => self.take(len).map(Some),
        }
    }

    /// Skips bytes behind their length, of which -1 says that there are none.
    #[inline(always)]
    fn skip_nullable(&mut self) -> Option<()> {
        match self.varint::<32>()? {
            -1 => Some(()),
            len => self.take(len).map(drop),
        }
    }

    /// The next record's timestamp and offset deltas; the cursor that is returned stands before its key.
    #[inline(always)]
    fn record(&mut self) -> Option<(i64, i64, Cursor<'a>)> {
        let len = self.varint::<32>()?;
        let mut record = Cursor(self.take(len)?);
        record.take(1)?;
        let timestamp_delta = record.varint::<64>()?;
        let offset_delta = record.varint::<32>()?;
        Some((timestamp_delta, offset_delta, record))
    }

    /// The rest of a record, from its key on: it must be used up exactly. Says whether there is a key.
    #[inline(always)]
    fn check_fields(mut self) -> Option<bool> {
        let key_len = self.varint::<32>()?;
        let has_key = key_len != -1;
        if has_key {
            self.take(key_len)?;
        }
        self.skip_nullable()?;
        // Each header takes at least two bytes, so a large number of them ends with the record's bytes.
        let headers = self.varint::<32>()?;
        if headers < 0 {
            return None;
        }
        for _ in 0..headers {
            let key_len = self.varint::<32>()?;
            self.take(key_len)?;
            self.skip_nullable()?;
        }
        self.0.is_empty().then_some(has_key)
    }
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

/// Whether `records` are exactly `count` well-formed records with the offset deltas 0, 1, and so on, each with a key if
/// `keys_required`.
pub(super) fn check_all(records: &[u8], count: u32, keys_required: bool) -> Result<(), BatchError> {
    let mut left = Cursor(records);
    let mut key_missing = false;
    for expected in 0..count {
        let (_, offset_delta, fields) = left.record().ok_or(BAD)?;
        if offset_delta != i64::from(expected) {
            return Err(BatchError::Invalid("the records' offsets are not consecutive"));
        }
        key_missing |= !fields.check_fields().ok_or(BAD)?;
    }
    if !left.0.is_empty() {
        return Err(BAD);
    }
    if keys_required && key_missing { Err(BatchError::KeyMissing) } else { Ok(()) }
}

/// Offset deltas and timestamps of the records, up to the first that cannot be read.
pub(super) fn timestamps(records: &[u8], header: &BatchHeader) -> impl Iterator<Item = (u32, i64)> {
    let mut left = Cursor(records);
    let base_ms = header.base_timestamp_ms;
    (0..header.records).map_while(move |_| {
        let (timestamp_delta, offset_delta, _) = left.record()?;
        Some((u32::try_from(offset_delta).ok()?, base_ms.wrapping_add(timestamp_delta)))
    })
}

/// One record where it lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// From the batch's base offset.
    pub offset_delta: u32,
    /// From the batch's base timestamp, in ms; the sum wraps as it does in Java.
    pub timestamp_delta_ms: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    /// All of it, with the length in front.
    pub bytes: &'a [u8],
    attributes: u8,
    /// From the key's length on, with the headers.
    fields: &'a [u8],
}

impl Record<'_> {
    /// Appends the record with another timestamp delta.
    pub fn put_with_timestamp_delta(&self, out: &mut Vec<u8>, timestamp_delta_ms: i64) {
        let offset_delta = i64::from(self.offset_delta);
        let len = 1 + varint_bytes(timestamp_delta_ms) + varint_bytes(offset_delta) + self.fields.len();
        put_varint(out, len as i64);
        out.push(self.attributes);
        put_varint(out, timestamp_delta_ms);
        put_varint(out, offset_delta);
        out.extend_from_slice(self.fields);
    }
}

/// The records of a stored batch, which compaction may have left gaps in.
///
/// Says an error, and then nothing more, unless the bytes are exactly as many well-formed records as the header says,
/// with offset deltas that ascend up to at most the batch's last.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    left: &'a [u8],
    count: u32,
    /// The least offset delta of the next record.
    next_delta: u32,
    last_delta: u32,
}

impl<'a> Records<'a> {
    /// `records` is what follows the header, unpacked.
    pub fn new(header: &BatchHeader, records: &'a [u8]) -> Self {
        Self { left: records, count: header.records, next_delta: 0, last_delta: header.last_offset_delta }
    }

    fn read(&mut self) -> Result<Record<'a>, BatchError> {
        let mut left = Cursor(self.left);
        let (timestamp_delta_ms, offset_delta, fields) = left.record().ok_or(BAD)?;
        fields.check_fields().ok_or(BAD)?;
        let offset_delta = u32::try_from(offset_delta)
            .ok()
            .filter(|delta| (self.next_delta..=self.last_delta).contains(delta))
            .ok_or(BatchError::Invalid("the records' offsets do not ascend within the batch"))?;
        let bytes = &self.left[..self.left.len() - left.0.len()];
        // Behind the length, whatever varint it is.
        let mut body = Cursor(bytes);
        body.varint::<32>().ok_or(BAD)?;
        let mut nullables = fields;
        let record = Record {
            offset_delta,
            timestamp_delta_ms,
            key: nullables.nullable().ok_or(BAD)?,
            value: nullables.nullable().ok_or(BAD)?,
            bytes,
            attributes: *body.0.first().ok_or(BAD)?,
            fields: fields.0,
        };
        self.left = left.0;
        self.next_delta = offset_delta + 1;
        Ok(record)
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.count == 0 {
            // The error is said once.
            let left = std::mem::take(&mut self.left);
            return (!left.is_empty()).then_some(Err(BAD));
        }
        let read = self.read();
        if read.is_ok() {
            self.count -= 1;
        } else {
            self.count = 0;
            self.left = &[];
        }
        Some(read)
    }
}

fn varint_bytes(value: i64) -> usize {
    (u64::BITS - (zigzag(value) | 1).leading_zeros()).div_ceil(7) as usize
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

pub(super) fn put_varint(out: &mut impl BufMut, value: i64) {
    let mut left = zigzag(value);
    while left >= 0x80 {
        out.put_u8(left as u8 | 0x80);
        left >>= 7;
    }
    out.put_u8(left as u8);
}
