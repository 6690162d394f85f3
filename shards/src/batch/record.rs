//! The records within an uncompressed batch, walked without being copied.
//!
//! A record is: length (varint), attributes (1 byte), timestamp delta (varlong), offset delta (varint), key length
//! (varint, -1 for none) and key, value length and value likewise, number of headers (varint), and for each header
//! a key (length varint, not negative) and a value like a record's. Varints are zigzag-coded.

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
    (0..header.records).map_while(move |delta| {
        let (timestamp_delta, ..) = left.record()?;
        Some((delta, base_ms.saturating_add(timestamp_delta)))
    })
}
