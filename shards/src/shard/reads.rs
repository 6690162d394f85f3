//! Reads of a shard: from memory at once, from the journal when the disk has answered.

use std::collections::VecDeque;

use bytes::Bytes;

use super::partitions::Slot;
use super::{Shard, describe};
use crate::batch;
use crate::front::Front;
use crate::ids::{LeaderEpoch, Map, Offset, PartitionId};
use crate::log::disk::DiskError;
use crate::log::journal::LogPosition;
use crate::mail::{Answer, Located, PartitionError, ReadError, ReadOut, ReplyTo};
use crate::partition::batches::{BatchRef, Found};

/// [`crate::mail::Op::Read`] with its sizes as this machine counts them.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadOp {
    pub current_epoch: Option<LeaderEpoch>,
    pub from: Offset,
    pub bytes_max: usize,
    pub first_whole: bool,
    pub watch_below_bytes: usize,
}

/// What waits for the disk, by the ticket that the journal gives back.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// Given to the journal: at most [`DISK_READS_MAX`].
    pending: Map<u64, Pending>,
    /// Waiting for their turn, with the bytes to read. At most one for each partition of each client's request.
    waiting: VecDeque<(Pending, u32)>,
    last_ticket: u64,
}

/// Reads of one shard that the disk has at a time; each takes up to a stretch of the journal or one batch of memory.
const DISK_READS_MAX: usize = 64;

#[derive(Debug)]
struct Pending {
    to: ReplyTo,
    partition: PartitionId,
    slot: Slot,
    at: LogPosition,
    batches: Vec<BatchRef>,
    then: Then,
}

#[derive(Clone, Copy, Debug)]
enum Then {
    Read(ReadOp),
    Locate(Sought),
}

/// A record to be found in a batch by its timestamp.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sought {
    AtOrAfter(i64),
    Largest,
}

/// One past the last record of what was read.
fn end_of(records: &[Bytes]) -> Option<Offset> {
    let header = batch::parse_header(records.last()?).ok()?;
    Some(header.base()?.plus(header.offsets()))
}

impl<F: Front> Shard<F> {
    pub(super) fn read(&mut self, to: ReplyTo, slot: Slot, op: ReadOp) {
        self.stats.reads += 1;
        let partition = self.partitions.get(slot).expect("the caller found its slot");
        match partition.read(op.current_epoch, op.from, op.bytes_max, op.first_whole) {
            Err(error) => {
                let ends = Some(partition.read_ends());
                self.answer(to, Answer::Read(Err(ReadError { error, ends })));
            }
            Ok(Found::Nothing) => self.finish_read(to, slot, op, Vec::new()),
            Ok(Found::Memory(parts)) => self.finish_read(to, slot, op, parts),
            Ok(Found::Disk { at, len, batches }) => {
                let partition = partition.id;
                self.read_from_disk(Pending { to, partition, slot, at, batches, then: Then::Read(op) }, len);
            }
        }
    }

    /// Answers with what was found, and watches when that is less than was asked for.
    fn finish_read(&mut self, to: ReplyTo, slot: Slot, op: ReadOp, records: Vec<Bytes>) {
        let Some(partition) = self.partitions.get_mut(slot) else {
            let error = ReadError { error: PartitionError::NotOwned, ends: None };
            self.answer(to, Answer::Read(Err(error)));
            return;
        };
        let bytes: usize = records.iter().map(Bytes::len).sum();
        let ends = partition.read_ends();
        // Only at the high watermark can more come. A read from disk may end before it, with its stretch.
        let watching =
            bytes < op.watch_below_bytes && end_of(&records).unwrap_or(op.from) >= ends.high_watermark;
        if watching {
            partition.waiters.watch(ends.high_watermark.max(op.from), to);
        }
        self.stats.bytes_read += bytes as u64;
        let out =
            ReadOut { high_watermark: ends.high_watermark, log_start: ends.log_start, records, watching };
        self.answer(to, Answer::Read(Ok(out)));
    }

    fn read_from_disk(&mut self, pending: Pending, len: u32) {
        self.stats.reads_from_disk += 1;
        self.reads.waiting.push_back((pending, len));
        self.begin_reads();
    }

    fn begin_reads(&mut self) {
        while self.reads.pending.len() < DISK_READS_MAX
            && let Some((pending, len)) = self.reads.waiting.pop_front()
        {
            self.reads.last_ticket += 1;
            let ticket = self.reads.last_ticket;
            self.journal.read(ticket, pending.at, len);
            self.reads.pending.insert(ticket, pending);
        }
    }

    pub(super) fn on_disk_read(&mut self, ticket: u64, result: Result<Bytes, DiskError>) {
        let pending = self.reads.pending.remove(&ticket).expect("the journal answers each ticket once");
        self.begin_reads();
        let Some(batches) = self.check_read(&pending, result) else {
            let error = PartitionError::StorageFailed;
            let answer = match pending.then {
                Then::Read(_) => Answer::Read(Err(ReadError { error, ends: None })),
                Then::Locate(_) => Answer::Located(Err(error)),
            };
            self.answer(pending.to, answer);
            return;
        };
        match pending.then {
            Then::Read(op) => self.finish_read(pending.to, pending.slot, op, batches),
            Then::Locate(sought) => self.finish_locate(pending.to, pending.slot, &batches[0], sought),
        }
    }

    /// Cuts the batches out of what was read. Damaged bytes are never served as good.
    fn check_read(&self, pending: &Pending, result: Result<Bytes, DiskError>) -> Option<Vec<Bytes>> {
        let whole = match result {
            Ok(bytes) => bytes,
            Err(error) => {
                let partition = describe(pending.partition, self.config.node);
                tracing::error!(%partition, file = %pending.at.file, %error, "the journal could not be read");
                return None;
            }
        };
        let mut batches = Vec::with_capacity(pending.batches.len());
        for batch in &pending.batches {
            let start = usize::try_from(batch.at.position - pending.at.position).expect("a stretch is short");
            let bytes = (start + batch.len as usize <= whole.len())
                .then(|| whole.slice(start..start + batch.len as usize));
            let good = bytes.filter(|bytes| {
                let header = batch::parse_header(bytes);
                header.is_ok_and(|h| h.base_offset == batch.base.wire() && h.len == batch.len)
                    && batch::check_crc(bytes)
            });
            let Some(good) = good else {
                let partition = describe(pending.partition, self.config.node);
                let (file, position) = (batch.at.file, batch.at.position);
                tracing::error!(%partition, offset = %batch.base, %file, position, "damaged batch in the journal");
                return None;
            };
            batches.push(good);
        }
        Some(batches)
    }

    /// Finds the record in the first committed batch that reaches `timestamp_ms`.
    pub(super) fn locate_in(&mut self, to: ReplyTo, slot: Slot, timestamp_ms: i64, sought: Sought) {
        let partition = self.partitions.get(slot).expect("the caller found its slot");
        match partition.at_timestamp(timestamp_ms) {
            None => self.answer(to, Answer::Located(Ok(None))),
            Some((_, Some(bytes))) => self.finish_locate(to, slot, &bytes, sought),
            Some((batch, None)) => {
                let (partition, at, len) = (partition.id, batch.at, batch.len);
                let then = Then::Locate(sought);
                self.read_from_disk(Pending { to, partition, slot, at, batches: vec![batch], then }, len);
            }
        }
    }

    fn finish_locate(&mut self, to: ReplyTo, slot: Slot, bytes: &[u8], sought: Sought) {
        let found = batch::parse_header(bytes).ok().and_then(|header| match sought {
            Sought::AtOrAfter(timestamp_ms) => batch::first_at_or_after(&header, bytes, timestamp_ms),
            Sought::Largest => batch::largest_timestamp(&header, bytes),
        });
        let partition = self.partitions.get(slot);
        let located = found.map(|found| Located {
            offset: found.offset,
            timestamp_ms: Some(found.timestamp_ms),
            leader_epoch: partition.and_then(|p| p.epoch_of(found.offset)),
        });
        self.answer(to, Answer::Located(Ok(located)));
    }
}
