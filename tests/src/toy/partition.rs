//! The toy's partition: a log in memory, and who waits for it.

use std::collections::{BTreeMap, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use highwater_shards::ids::{Offset, PartitionId};
use highwater_shards::mail::{
    Acks, Assignment, Durability, PartitionError, ReadEnds, ReadError, ReadOut, ReplyTo,
};
use highwater_shards::time::Instant;

use super::Bug;
use super::journal::Journal;
use crate::records;

#[derive(Debug, Default)]
pub(super) struct Partition {
    pub(super) assignment: Option<Assignment>,
    pub(super) log: Vec<Stored>,
    pub(super) end: u64,
    pub(super) flushed: u64,
    pub(super) high_watermark: u64,
    pub(super) waiters: Vec<Waiter>,
    pub(super) watchers: Vec<ReplyTo>,
    pub(super) producers: BTreeMap<u64, VecDeque<Remembered>>,
}

#[derive(Debug)]
pub(super) struct Stored {
    pub(super) base: u64,
    pub(super) records: u32,
    pub(super) bytes: Bytes,
}

#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) end: u64,
    pub(super) base: u64,
    pub(super) deadline: Instant,
    pub(super) to: ReplyTo,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Remembered {
    pub(super) sequence: u32,
    pub(super) next: u32,
    pub(super) base: u64,
}

impl Partition {
    pub(super) fn led(&self) -> Option<&Assignment> {
        self.assignment.as_ref().filter(|a| a.leader.is_some())
    }

    pub(super) fn too_few(&self) -> bool {
        let few = |a: &Assignment| a.isr.len() < a.replicas.len().min(a.config.isr_min as usize);
        self.led().is_some_and(few)
    }

    pub(super) fn append(
        &mut self,
        id: PartitionId,
        records: &Bytes,
        acks: Acks,
        bug: Option<Bug>,
        journal: &mut Journal,
    ) -> Result<(u64, u64), PartitionError> {
        if acks == Acks::All && self.too_few() && bug != Some(Bug::IgnoresIsr) {
            return Err(PartitionError::NotEnoughReplicas);
        }
        let mut batches = Vec::new();
        let mut rest = records.clone();
        while !rest.is_empty() {
            let len = match records::parse(&rest) {
                Ok(batch) => batch.len,
                Err(_) if bug == Some(Bug::AcceptsDamagedBatches) && rest.len() > 12 => rest.len(),
                Err(_) => return Err(PartitionError::CorruptBatch),
            };
            batches.push(rest.split_to(len));
        }
        if bug == Some(Bug::ReversesBatches) {
            batches.reverse();
        }
        let base = self.end;
        if let Some(stamp) = stamp(&batches[0]) {
            let known = self.producers.get(&stamp.0);
            if let Some(r) = known.and_then(|k| k.iter().find(|r| r.sequence == stamp.1)) {
                return Ok((r.base, r.base + u64::from(r.next - r.sequence)));
            }
            if known.and_then(|k| k.back()).is_some_and(|r| r.next != stamp.1) {
                return Err(PartitionError::OutOfOrderSequence);
            }
        }
        if bug == Some(Bug::DropsBatches) && base % 50 == 11 {
            return Ok((base, base));
        }
        let epoch = self.led().map_or(0, |a| a.leader_epoch.0);
        let durability = self.led().map_or(Durability::Fsync, |a| a.config.durability);
        for batch in batches {
            let mut bytes = BytesMut::from(&batch[..]);
            bytes[..8].copy_from_slice(&self.end.to_be_bytes());
            bytes[12..16].copy_from_slice(&epoch.to_be_bytes());
            let bytes = bytes.freeze();
            journal.pending.put_u128(id.topic.0);
            journal.pending.put_u32(id.index.0);
            journal.pending.put_slice(&bytes);
            self.restore(bytes, true);
        }
        journal.urgent |= durability == Durability::Fsync;
        journal.ends.push((id, self.end));
        self.advance(bug);
        Ok((base, self.end))
    }

    /// Takes a batch as it stands in the log.
    pub(super) fn restore(&mut self, bytes: Bytes, keep_producers: bool) {
        let records = u32::from_be_bytes(bytes[57..61].try_into().expect("four bytes")).min(1 << 20);
        let base = self.end;
        if let Some((producer, sequence)) = stamp(&bytes).filter(|_| keep_producers) {
            let known = self.producers.entry(producer).or_default();
            known.push_back(Remembered { sequence, next: sequence + records, base });
            if known.len() > 5 {
                known.pop_front();
            }
        }
        self.end += u64::from(records);
        self.log.push(Stored { base, records, bytes });
    }

    pub(super) fn advance(&mut self, bug: Option<Bug>) {
        let Some(a) = self.led() else { return };
        let ignores = bug == Some(Bug::IgnoresIsr);
        if (a.isr.len() > 1 || self.too_few()) && !ignores {
            return;
        }
        let safe = match a.config.durability {
            Durability::Fsync => self.flushed,
            Durability::Replicated => self.end,
        };
        self.high_watermark = self.high_watermark.max(safe);
    }

    /// The first record of the batch with the largest timestamp below the high watermark.
    pub(super) fn largest_timestamp(&self) -> Option<u64> {
        let visible = self.log.iter().take_while(|s| s.base + u64::from(s.records) <= self.high_watermark);
        let largest = visible.max_by_key(|s| s.bytes.get(35..43).map(<[u8]>::to_vec));
        largest.map(|s| s.base)
    }

    pub(super) fn read(
        &mut self,
        to: ReplyTo,
        offset: u64,
        bytes_max: u32,
        watch_below: u32,
        bug: Option<Bug>,
    ) -> Result<ReadOut, ReadError> {
        let mut hw = self.high_watermark;
        match bug {
            Some(Bug::ServesBeyondHighWatermark) => hw = self.end,
            Some(Bug::RegressesHighWatermark) if hw % 16 == 9 => {
                hw = hw.saturating_sub(3).max(offset.min(hw))
            }
            _ => {}
        }
        let ends = Some(ReadEnds { high_watermark: Offset(hw), log_start: Offset::ZERO });
        if offset > hw {
            return Err(ReadError { error: PartitionError::OffsetOutOfRange, ends });
        }
        let from = self.log.partition_point(|s| s.base + u64::from(s.records) <= offset);
        let mut records = Vec::new();
        let mut bytes = 0;
        for stored in &self.log[from..] {
            let fits = records.is_empty() || bytes + stored.bytes.len() <= bytes_max as usize;
            if stored.base + u64::from(stored.records) > hw || !fits {
                break;
            }
            bytes += stored.bytes.len();
            let mut part = stored.bytes.clone();
            if bug == Some(Bug::ReadsWrongBytes) && stored.base % 32 == 7 {
                let mut wrong = BytesMut::from(&part[..]);
                let last = wrong.len() - 2;
                wrong[last] ^= 1;
                part = wrong.freeze();
            }
            records.push(part);
        }
        let watching = bytes < watch_below as usize;
        if watching {
            self.watchers.push(to);
        }
        Ok(ReadOut { high_watermark: Offset(hw), log_start: Offset::ZERO, records, watching, nearer: None })
    }
}

fn stamp(batch: &[u8]) -> Option<(u64, u32)> {
    let producer = i64::from_be_bytes(batch[43..51].try_into().expect("eight bytes"));
    let sequence = u32::from_be_bytes(batch[53..57].try_into().expect("four bytes"));
    u64::try_from(producer).ok().map(|p| (p, sequence))
}
