//! Reads of a shard: from memory at once, from segments when the disk has answered.

use bytes::Bytes;

use super::{Shard, describe};
use crate::batch;
use crate::front::Front;
use crate::ids::{LeaderEpoch, Map, Offset};
use crate::log::Slot;
use crate::log::reader::ReadFault;
use crate::log::storage::{Found, FoundBatch, Wanted};
use crate::mail::{Answer, Located, PartitionError, ReadError, ReadOut, ReplyTo};

/// [`crate::mail::Op::Read`] with its sizes as this machine counts them.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadOp {
    pub current_epoch: Option<LeaderEpoch>,
    pub from: Offset,
    pub bytes_max: usize,
    pub first_whole: bool,
    pub watch_below_bytes: usize,
}

/// What waits for the disk, by the ticket that the log gives back. At most one for each partition of each client's
/// request.
#[derive(Debug, Default)]
pub(super) struct Reads {
    pending: Map<u64, Pending>,
    last_ticket: u64,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    to: ReplyTo,
    slot: Slot,
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

impl Reads {
    /// The ticket that the next read would be given.
    fn next_ticket(&self) -> u64 {
        self.last_ticket + 1
    }

    fn wait(&mut self, pending: Pending) {
        self.last_ticket += 1;
        self.pending.insert(self.last_ticket, pending);
    }
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
        let below = match partition.readable(op.current_epoch, op.from) {
            Ok(below) => below,
            Err(error) => {
                let ends = Some(partition.read_ends());
                self.answer(to, Answer::Read(Err(ReadError { error, ends })));
                return;
            }
        };
        let wanted = Wanted { from: op.from, below, bytes_max: op.bytes_max, first_whole: op.first_whole };
        match self.storage.read(self.now, slot, wanted, self.reads.next_ticket()) {
            Found::Nothing => self.finish_read(to, slot, op, Vec::new()),
            Found::Memory(parts) => self.finish_read(to, slot, op, parts),
            Found::Later => {
                self.stats.reads_from_disk += 1;
                self.reads.wait(Pending { to, slot, then: Then::Read(op) });
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
        // Only at the high watermark can more come. A read from disk may end before it.
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

    /// Takes what the log read from disk.
    pub(super) fn on_read(&mut self, ticket: u64, result: Result<Vec<Bytes>, ReadFault>) {
        let pending = self.reads.pending.remove(&ticket).expect("the log answers each ticket once");
        let Pending { to, slot, then } = pending;
        match (result, then) {
            (Ok(records), Then::Read(op)) => self.finish_read(to, slot, op, records),
            (Ok(records), Then::Locate(sought)) => self.finish_locate(to, slot, records.first(), sought),
            // What was to be read is gone since: the same request finds out what there is now.
            (Err(ReadFault::Gone), Then::Read(op)) if self.partitions.get(slot).is_some() => {
                self.read(to, slot, op);
            }
            (Err(ReadFault::Gone), Then::Locate(sought)) if self.partitions.get(slot).is_some() => {
                self.locate_in(to, slot, sought);
            }
            (Err(failed), then) => {
                if let Some(partition) = self.partitions.get(slot) {
                    let partition = describe(partition.id, self.config.node);
                    tracing::error!(%partition, %failed, "the log could not be read");
                }
                let error = match failed {
                    ReadFault::Gone => PartitionError::NotOwned,
                    _ => PartitionError::StorageFailed,
                };
                self.answer(
                    to,
                    match then {
                        Then::Read(_) => Answer::Read(Err(ReadError { error, ends: None })),
                        Then::Locate(_) => Answer::Located(Err(error)),
                    },
                );
            }
        }
    }

    /// Finds the record that is sought in the first committed batch that can hold it.
    pub(super) fn locate_in(&mut self, to: ReplyTo, slot: Slot, sought: Sought) {
        let below = self.partitions.get(slot).expect("the caller found its slot").high_watermark();
        let timestamp_ms = match sought {
            Sought::AtOrAfter(timestamp_ms) => Some(timestamp_ms),
            Sought::Largest => self.storage.largest_timestamp(slot, below),
        };
        let ticket = self.reads.next_ticket();
        let found = timestamp_ms.map_or(FoundBatch::Nothing, |timestamp_ms| {
            self.storage.find_timestamp(self.now, slot, timestamp_ms, below, ticket)
        });
        match found {
            FoundBatch::Nothing => self.answer(to, Answer::Located(Ok(None))),
            FoundBatch::Memory(bytes) => self.finish_locate(to, slot, Some(&bytes), sought),
            FoundBatch::Later => {
                self.stats.reads_from_disk += 1;
                self.reads.wait(Pending { to, slot, then: Then::Locate(sought) });
            }
        }
    }

    fn finish_locate(&mut self, to: ReplyTo, slot: Slot, bytes: Option<&Bytes>, sought: Sought) {
        let header = bytes.and_then(|bytes| batch::parse_header(bytes).ok().zip(Some(bytes)));
        let found = header.and_then(|(header, bytes)| match sought {
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
