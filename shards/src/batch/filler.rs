//! Batches without records, for offsets that compaction left no batch for: a follower's log has no gaps, so it gets them
//! in their place.
//!
//! Floor 0. They say of which leader epoch the offsets are, which a gap does not: a replica that counted the gap to the
//! epoch before or behind it would tell others a wrong end of that epoch.

use bytes::{BufMut, Bytes, BytesMut};

use super::rebuild::set_crc;
use super::{HEADER_BYTES, MAGIC, PREFIX_BYTES};
use crate::ids::{LeaderEpoch, Offset};

/// Offsets that one batch can take up.
pub const FILLER_OFFSETS_MAX: u64 = 1 << 31;

/// A stored batch that takes up `offsets` offsets from `base` on and holds no record.
///
/// # Panics
/// Without offsets, or with more than [`FILLER_OFFSETS_MAX`].
pub fn filler(base: Offset, offsets: u64, epoch: LeaderEpoch) -> Bytes {
    let last = offsets.checked_sub(1).and_then(|last| i32::try_from(last).ok());
    let last = last.expect("a batch takes up at least one offset, and at most 2^31");
    let mut b = BytesMut::with_capacity(HEADER_BYTES);
    b.put_i64(base.wire());
    b.put_u32((HEADER_BYTES - PREFIX_BYTES) as u32);
    b.put_i32(epoch.wire());
    b.put_u8(MAGIC);
    b.put_u32(0);
    b.put_u16(0);
    b.put_i32(last);
    // No timestamps, no producer, no records.
    b.put_i64(-1);
    b.put_i64(-1);
    b.put_i64(-1);
    b.put_i16(-1);
    b.put_i32(-1);
    b.put_i32(0);
    set_crc(&mut b);
    b.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{check_crc, parse_header};

    #[test]
    fn filler_takes_up_its_offsets_and_nothing_else() {
        for offsets in [1, 2, 1000, FILLER_OFFSETS_MAX] {
            let batch = filler(Offset(77), offsets, LeaderEpoch(5));
            let header = parse_header(&batch).unwrap();
            assert!(check_crc(&batch));
            assert_eq!((header.base(), header.offsets()), (Some(Offset(77)), offsets));
            assert_eq!((header.records, header.leader_epoch, header.len as usize), (0, 5, batch.len()));
            assert_eq!((header.producer, header.max_timestamp_ms), (None, -1));
        }
    }
}
