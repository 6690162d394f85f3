//! A log with gaps as one without: what followers are sent for offsets that compaction left without a batch.
//!
//! They get batches without records in their place, of the epochs that the leader's log knows. So followers' logs have no
//! gaps, their journals and segments may go on taking one for damage, and every replica tells the same ends of epochs: one
//! that counted a gap to the epoch before or behind it would accept a follower there whose log parts from its own.

use bytes::Bytes;

use crate::batch::{self, FILLER_OFFSETS_MAX};
use crate::ids::{LeaderEpoch, Offset};
use crate::partition::Partition;

/// Batches without records from `from` up to `to`, of the epochs that the log knows.
fn fill(partition: &Partition, mut from: Offset, to: Offset, epoch: LeaderEpoch, parts: &mut Vec<Bytes>) {
    while from < to {
        let known = partition.epoch_of(from).unwrap_or(epoch);
        let end = partition.end_of_epoch(known).map_or(to, |known| known.end);
        let end = if end > from { end.min(to) } else { to };
        let offsets = (end.0 - from.0).min(FILLER_OFFSETS_MAX);
        parts.push(batch::filler(from, offsets, known));
        from = from.plus(offsets);
    }
}

/// The batches as a log without gaps has them from `next` on, and where they end. `None`: they are no stored batches.
pub(super) fn without_gaps(
    partition: &Partition,
    mut next: Offset,
    batches: Vec<Bytes>,
) -> Option<(Vec<Bytes>, Offset)> {
    let mut parts = Vec::with_capacity(batches.len());
    for part in batches {
        let (mut kept, mut at) = (0, 0);
        while at < part.len() {
            let header = batch::parse_header(&part[at..]).ok()?;
            let base = header.base()?;
            if base > next {
                if at > kept {
                    parts.push(part.slice(kept..at));
                    kept = at;
                }
                let epoch = LeaderEpoch::from_wire(header.leader_epoch)?;
                fill(partition, next, base, epoch, &mut parts);
            }
            next = base.plus(header.offsets());
            at += header.len as usize;
        }
        parts.push(part.slice(kept..));
    }
    Some((parts, next))
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::batch::{BatchBuilder, parse_header, put_patched};
    use crate::ids::{NodeId, PartitionId};
    use crate::log::checkpoint::LogState;
    use crate::time::Instant;

    /// A batch of two records.
    fn stored(base: u64, epoch: u32) -> Bytes {
        let mut out = BytesMut::new();
        let batch = BatchBuilder::new().record(1, None, None).record(2, None, None).build();
        put_patched(&mut out, &batch, Offset(base), LeaderEpoch(epoch));
        out.freeze()
    }

    /// The bases, ends, epochs and numbers of records of batches.
    fn seen(parts: &[Bytes]) -> Vec<(u64, u64, i32, u32)> {
        let of = |part: &Bytes| {
            let header = parse_header(part).unwrap();
            assert!(batch::check_crc(&part[..header.len as usize]));
            let base = header.base().unwrap();
            (base.0, base.plus(header.offsets()).0, header.leader_epoch, header.records)
        };
        parts.iter().map(of).collect()
    }

    #[test]
    fn gaps_are_filled_with_batches_of_the_epochs_that_the_log_knows() {
        let mut partition = Partition::new(PartitionId::default(), NodeId(1));
        let state = LogState {
            partition: PartitionId::default(),
            moved: crate::log::Lsn::ZERO,
            noted: crate::log::Lsn::ZERO,
            start: Offset(0),
            end: Offset(60),
            high_watermark: Offset(60),
            cleaned: Offset(0),
            segments: Vec::new(),
            epochs: vec![
                (LeaderEpoch(1), Offset(0)),
                (LeaderEpoch(3), Offset(20)),
                (LeaderEpoch(4), Offset(30)),
            ],
            producers: Vec::new(),
            superseded: Vec::new(),
        };
        partition.restore(Instant::ZERO, &state);
        let both = Bytes::from([stored(40, 4), stored(50, 4)].concat());
        let batches = vec![stored(10, 1), stored(12, 1), both];
        let (parts, next) = without_gaps(&partition, Offset(8), batches).unwrap();
        let expected = [
            (8, 10, 1, 0),
            (10, 12, 1, 2),
            (12, 14, 1, 2),
            (14, 20, 1, 0),
            (20, 30, 3, 0),
            (30, 40, 4, 0),
            (40, 42, 4, 2),
            (42, 50, 4, 0),
            (50, 52, 4, 2),
        ];
        assert_eq!((seen(&parts), next), (expected.to_vec(), Offset(52)));
    }

    #[test]
    fn batches_without_gaps_are_sent_as_they_lie() {
        let partition = Partition::new(PartitionId::default(), NodeId(1));
        let batches = vec![stored(10, 1), stored(12, 1)];
        let (parts, next) = without_gaps(&partition, Offset(11), batches.clone()).unwrap();
        assert_eq!(next, Offset(14));
        assert!(parts.iter().zip(&batches).all(|(part, batch)| part.as_ptr() == batch.as_ptr()));
        assert!(without_gaps(&partition, Offset(0), vec![Bytes::from_static(b"damage")]).is_none());
    }
}
