//! Reads of a shard: from memory at once, from segments when the disk has answered.

use bytes::Bytes;

use super::peers::StreamRead;
use super::search::Search;
use super::{Shard, describe};
use crate::batch;
use crate::front::Front;
use crate::ids::{LeaderEpoch, Map, NodeId, Offset};
use crate::log::Slot;
use crate::log::reader::ReadFault;
use crate::log::storage::{Found, FoundBatch, Wanted};
use crate::mail::{Answer, Located, PartitionError, ReadEnds, ReadError, ReadOut, ReplyTo};

/// [`crate::mail::Op::Read`] with its sizes as this machine counts them.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadOp {
    pub from_follower: bool,
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

#[derive(Clone, Debug)]
struct Pending {
    slot: Slot,
    then: Then,
}

#[derive(Clone, Debug)]
enum Then {
    Read(ReplyTo, ReadOp),
    Search(ReplyTo, Search),
    Stream(StreamRead),
}

impl Reads {
    /// The ticket that the next read would be given.
    pub fn next_ticket(&self) -> u64 {
        self.last_ticket + 1
    }

    /// A follower's stream waits for the next read.
    pub fn wait_for_stream(&mut self, slot: Slot, read: StreamRead) {
        self.wait(Pending { slot, then: Then::Stream(read) });
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
    /// Reads, or says which of the `nearer` followers can be read from instead.
    pub(super) fn read_or_point(&mut self, to: ReplyTo, slot: Slot, op: ReadOp, nearer: &[NodeId]) {
        let partition = self.partitions.get(slot).expect("the caller found its slot");
        let is_readable = || partition.readable(op.current_epoch, op.from, false).is_ok();
        let nearer = partition.nearer(nearer, op.from).filter(|_| is_readable());
        if nearer.is_none() {
            return self.read(to, slot, op);
        }
        self.stats.reads_pointed += 1;
        let ReadEnds { high_watermark, log_start } = partition.read_ends();
        let out = ReadOut { high_watermark, log_start, nearer, ..ReadOut::default() };
        self.answer(to, Answer::Read(Ok(out)));
    }

    pub(super) fn read(&mut self, to: ReplyTo, slot: Slot, op: ReadOp) {
        self.stats.reads += 1;
        let partition = self.partitions.get(slot).expect("the caller found its slot");
        let below = match partition.readable(op.current_epoch, op.from, op.from_follower) {
            Ok(below) => below,
            Err(error) => {
                let ends = Some(partition.read_ends());
                self.answer(to, Answer::Read(Err(ReadError { error, ends })));
                return;
            }
        };
        let wanted = Wanted {
            from: op.from,
            below,
            bytes_max: op.bytes_max,
            first_whole: op.first_whole,
            is_urgent: false,
        };
        match self.storage.read(self.now, slot, wanted, self.reads.next_ticket()) {
            Found::Nothing => self.finish_read(to, slot, op, Vec::new()),
            Found::Memory(parts) => self.finish_read(to, slot, op, parts),
            Found::Later => {
                self.stats.reads_from_disk += 1;
                self.reads.wait(Pending { slot, then: Then::Read(to, op) });
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
        let ReadEnds { high_watermark, log_start } = ends;
        let out = ReadOut { high_watermark, log_start, records, watching, nearer: None };
        self.answer(to, Answer::Read(Ok(out)));
    }

    /// Takes what the log read from disk.
    pub(super) fn on_read(&mut self, ticket: u64, result: Result<Vec<Bytes>, ReadFault>) {
        let pending = self.reads.pending.remove(&ticket).expect("the log answers each ticket once");
        let Pending { slot, then } = pending;
        match (result, then) {
            (result, Then::Stream(read)) => self.on_stream_read(read, result),
            (Ok(records), Then::Read(to, op)) => self.finish_read(to, slot, op, records),
            (Ok(records), Then::Search(to, mut search)) => {
                search.take(records.into_iter().next());
                self.search(to, slot, search);
            }
            // What was to be read is gone since: the same request finds out what there is now.
            (Err(ReadFault::Gone), Then::Read(to, op)) if self.partitions.get(slot).is_some() => {
                self.read(to, slot, op);
            }
            (Err(ReadFault::Gone), Then::Search(to, search)) if self.partitions.get(slot).is_some() => {
                self.search(to, slot, search);
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
                match then {
                    Then::Read(to, _) => self.answer(to, Answer::Read(Err(ReadError { error, ends: None }))),
                    Then::Search(to, _) => self.answer(to, Answer::Located(Err(error))),
                    Then::Stream(_) => unreachable!("answered above"),
                }
            }
        }
    }

    /// Finds the first committed record of this timestamp or a later one.
    pub(super) fn locate_at_or_after(&mut self, to: ReplyTo, slot: Slot, timestamp_ms: i64) {
        let below = self.partitions.get(slot).expect("the caller found its slot").high_watermark();
        self.search(to, slot, Search::first_at_or_after(timestamp_ms, below));
    }

    /// Finds the first committed record with the largest timestamp.
    pub(super) fn locate_largest(&mut self, to: ReplyTo, slot: Slot) {
        let below = self.partitions.get(slot).expect("the caller found its slot").high_watermark();
        match self.storage.largest_timestamp(slot, below) {
            Some(upto_ms) => self.search(to, slot, Search::largest(upto_ms, below)),
            None => self.answer(to, Answer::Located(Ok(None))),
        }
    }

    /// Goes on with a search, as far as memory can answer.
    fn search(&mut self, to: ReplyTo, slot: Slot, mut search: Search) {
        while let Some(timestamp_ms) = search.question() {
            let ticket = self.reads.next_ticket();
            match self.storage.find_timestamp(self.now, slot, timestamp_ms, search.below, ticket) {
                FoundBatch::Nothing => search.take(None),
                FoundBatch::Memory(bytes) => search.take(Some(bytes)),
                FoundBatch::Later => {
                    self.stats.reads_from_disk += 1;
                    self.reads.wait(Pending { slot, then: Then::Search(to, search) });
                    return;
                }
            }
        }
        let partition = self.partitions.get(slot);
        let log_start = partition.map_or(Offset::ZERO, |p| p.log_start());
        let located = search.found(log_start).map(|found| Located {
            offset: found.offset,
            timestamp_ms: Some(found.timestamp_ms),
            leader_epoch: partition.and_then(|p| p.epoch_of(found.offset)),
        });
        self.answer(to, Answer::Located(Ok(located)));
    }
}
