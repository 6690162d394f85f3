//! A stored batch anew, with other records: what compaction writes.
//!
//! Floor 0. Base offset, last offset delta, leader epoch, producer and sequence stay, so the batch takes up the same
//! offsets and says the same of its producer.

use super::{Attributes, CRC_AT, HEADER_BYTES, OUTSIDE_CRC_BYTES, PREFIX_BYTES};

/// What changes in a batch.
#[derive(Clone, Copy, Debug)]
pub struct Rebuilt<'a> {
    pub attributes: Attributes,
    pub base_timestamp_ms: i64,
    pub max_timestamp_ms: i64,
    /// How many records `body` holds.
    pub records: u32,
    /// The records, as the attributes say that they are compressed.
    pub body: &'a [u8],
}

/// Appends `original`, one whole batch, with these changes and its CRC made right.
pub fn put_rebuilt(out: &mut Vec<u8>, original: &[u8], new: Rebuilt<'_>) {
    let start = out.len();
    let header: &[u8; HEADER_BYTES] = original.first_chunk().expect("a batch is at least its header");
    let len =
        i32::try_from(HEADER_BYTES - PREFIX_BYTES + new.body.len()).expect("a batch has less than 2 GiB");
    out.extend_from_slice(header);
    out.extend_from_slice(new.body);
    let batch = &mut out[start..];
    batch[8..12].copy_from_slice(&len.to_be_bytes());
    batch[21..23].copy_from_slice(&new.attributes.0.to_be_bytes());
    batch[27..35].copy_from_slice(&new.base_timestamp_ms.to_be_bytes());
    batch[35..43].copy_from_slice(&new.max_timestamp_ms.to_be_bytes());
    batch[57..61].copy_from_slice(&new.records.to_be_bytes());
    set_crc(batch);
}

/// Puts the right CRC into a batch that was changed.
pub(super) fn set_crc(batch: &mut [u8]) {
    let crc = crc_fast::crc32_iscsi(&batch[OUTSIDE_CRC_BYTES..]);
    batch[CRC_AT..OUTSIDE_CRC_BYTES].copy_from_slice(&crc.to_be_bytes());
}
