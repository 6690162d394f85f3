//! Finds a record of a stored batch by its timestamp. Floor 0, pure.
//!
//! Compressed records are unpacked for it, up to [`UNPACKED_BYTES_MAX`]. Where that cannot be done, or where no record
//! has the timestamp that the header promises, the answer is a record from which on a reader misses nothing.

use super::{BatchHeader, UNPACKED_BYTES_MAX, plain_records, record};
use crate::ids::Offset;

/// Where in a batch something was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    pub offset: Offset,
    pub timestamp_ms: i64,
}

/// The first record of the stored `batch` at or behind `from` whose timestamp is at least `timestamp_ms`. `None`: the
/// header says that there is none, or compaction left no record.
///
/// If none is found, the answer is the first record at or behind `from`, with the timestamp of the batch's first
/// record, or the batch's largest if compaction changed it.
pub fn first_at_or_after(
    header: &BatchHeader,
    batch: &[u8],
    from: Offset,
    timestamp_ms: i64,
) -> Option<Found> {
    if header.max_timestamp_ms < timestamp_ms || header.records == 0 {
        return None;
    }
    let base = header.base()?;
    let first_ms = if header.is_as_produced() { header.base_timestamp_ms } else { header.max_timestamp_ms };
    let first = Found { offset: base.max(from), timestamp_ms: first_ms };
    if header.is_as_produced() && first_ms >= timestamp_ms && from <= base {
        return Some(first);
    }
    let mut unpacked = Vec::new();
    let found =
        timestamps(header, batch, from, &mut unpacked)?.find(|found| found.timestamp_ms >= timestamp_ms);
    Some(found.unwrap_or(first))
}

/// The first record of the stored `batch` with the largest timestamp of those at or behind `from`; `None` without
/// records. If they cannot be unpacked, it is the last one.
pub fn largest_timestamp(header: &BatchHeader, batch: &[u8], from: Offset) -> Option<Found> {
    if header.records == 0 {
        return None;
    }
    let base = header.base()?;
    let last =
        Found { offset: base.plus(header.last_offset_delta.into()), timestamp_ms: header.max_timestamp_ms };
    let mut unpacked = Vec::new();
    let found = timestamps(header, batch, from, &mut unpacked)?
        .reduce(|best, found| if found.timestamp_ms > best.timestamp_ms { found } else { best });
    Some(found.unwrap_or(last))
}

/// The records at or behind `from`; none if they cannot be unpacked.
fn timestamps<'a>(
    header: &'a BatchHeader,
    batch: &'a [u8],
    from: Offset,
    unpacked: &'a mut Vec<u8>,
) -> Option<impl Iterator<Item = Found> + 'a> {
    let base = header.base()?;
    let records = plain_records(header, batch, UNPACKED_BYTES_MAX, unpacked).unwrap_or_default();
    let all = record::timestamps(records, header);
    let found = all.map(move |(delta, timestamp_ms)| Found { offset: base.plus(delta.into()), timestamp_ms });
    Some(found.filter(move |found| found.offset >= from))
}
