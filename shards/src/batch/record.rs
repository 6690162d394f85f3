//! The records within an uncompressed batch, walked without being copied.
//!
//! A record is: length (varint), attributes (1 byte), timestamp delta (varlong), offset delta (varint), key length
//! (varint, -1 for none) and key, value length and value likewise, number of headers (varint), and for each header
//! a key (length varint, not negative) and a value like a record's. Varints are zigzag-coded.

use super::{BatchError, BatchHeader};

const BAD: BatchError = BatchError::Invalid("a record's lengths do not fit");

/// What is left to read of a record or of the records of a batch.
#[derive(Clone, Copy)]
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    /// A zigzag varint of at most `BITS` bits.
    #[inline]
    fn varint<const BITS: u32>(&mut self) -> Result<i64, BatchError> {
        let &first = self.0.first().ok_or(BAD)?;
        if first < 0x80 {
            self.0 = &self.0[1..];
            return Ok(unzigzag(u64::from(first)));
        }
        self.varint_long::<BITS>()
    }

    fn varint_long<const BITS: u32>(&mut self) -> Result<i64, BatchError> {
        let mut value = 0_u64;
        let bytes_max = BITS.div_ceil(7) as usize;
        for (i, &byte) in self.0.iter().take(bytes_max).enumerate() {
            let shift = 7 * i as u32;
            let bits = u64::from(byte & 0x7f);
            if shift + 7 > BITS && bits >> (BITS - shift) != 0 {
                return Err(BAD);
            }
            value |= bits << shift;
            if byte < 0x80 {
                self.0 = &self.0[i + 1..];
                return Ok(unzigzag(value));
            }
        }
        Err(BAD)
    }

    #[inline]
    fn take(&mut self, len: i64) -> Result<&'a [u8], BatchError> {
        let len = usize::try_from(len).map_err(|_| BAD)?;
        let (taken, left) = self.0.split_at_checked(len).ok_or(BAD)?;
        self.0 = left;
        Ok(taken)
    }

    /// Skips bytes behind their length, of which -1 says that there are none.
    #[inline]
    fn skip_nullable(&mut self) -> Result<(), BatchError> {
        match self.varint::<32>()? {
            -1 => Ok(()),
            len => self.take(len).map(drop),
        }
    }

    /// The next record's timestamp and offset deltas; the cursor that is returned stands before its key.
    #[inline]
    fn record(&mut self) -> Result<(i64, i64, Cursor<'a>), BatchError> {
        let len = self.varint::<32>()?;
        let mut record = Cursor(self.take(len)?);
        record.take(1)?;
        let timestamp_delta = record.varint::<64>()?;
        let offset_delta = record.varint::<32>()?;
        Ok((timestamp_delta, offset_delta, record))
    }
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

/// Whether `records` are exactly `count` well-formed records with the offset deltas 0, 1, and so on.
pub(super) fn check_all(records: &[u8], count: u32) -> Result<(), BatchError> {
    let mut left = Cursor(records);
    for expected in 0..count {
        let (_, offset_delta, mut record) = left.record()?;
        if offset_delta != i64::from(expected) {
            return Err(BatchError::Invalid("the records' offsets are not consecutive"));
        }
        record.skip_nullable()?;
        record.skip_nullable()?;
        // Each header takes at least two bytes, so a large number of them ends with the record's bytes.
        let headers = record.varint::<32>()?;
        if headers < 0 {
            return Err(BAD);
        }
        for _ in 0..headers {
            let key_len = record.varint::<32>()?;
            record.take(key_len)?;
            record.skip_nullable()?;
        }
        if !record.0.is_empty() {
            return Err(BAD);
        }
    }
    if left.0.is_empty() { Ok(()) } else { Err(BAD) }
}

/// Offset deltas and timestamps of the records, up to the first that cannot be read.
pub(super) fn timestamps(records: &[u8], header: &BatchHeader) -> impl Iterator<Item = (u32, i64)> {
    let mut left = Cursor(records);
    let base_ms = header.base_timestamp_ms;
    (0..header.records).map_while(move |delta| {
        let (timestamp_delta, ..) = left.record().ok()?;
        Some((delta, base_ms.saturating_add(timestamp_delta)))
    })
}
