//! Reads: from memory at once, from segments when the disk has answered. Floor 1.
//!
//! What is in memory is read there; the segments are read below it only. So what a truncation has cut off is never
//! seen, even while its bytes are still in a file.

use super::log::Log;
use super::work::{Amend, Then, Work};
use super::{Found, FoundBatch, ReadFault, Storage, StorageEvent, Wanted};
use crate::ids::{Map, Offset};
use crate::log::Slot;
use crate::log::reader::{Done, SegmentRead, Stretch, TimestampRead};
use crate::log::segment::SegmentMeta;
use crate::time::Instant;

/// Times that a read is begun again because a file went away under it.
const TRIES_MAX: u8 = 32;

/// What waits for the reader, by ticket.
#[derive(Debug, Default)]
pub(super) struct Reads {
    pending: Map<u64, Pending>,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    slot: Slot,
    what: What,
    tries: u8,
}

#[derive(Clone, Copy, Debug)]
enum What {
    /// The segments are read up to here, where memory began when they were asked.
    Read(Wanted, Offset),
    Find(Find),
}

/// A search for the first batch with a record at `timestamp_ms` or later.
#[derive(Clone, Copy, Debug)]
struct Find {
    timestamp_ms: i64,
    /// The batches that end at or before this are known not to be it.
    from: Offset,
    below: Offset,
    /// The segments are searched up to here, where memory began when they were asked.
    searched: Offset,
}

/// The segments as they will be, if they are just being cut: what is behind is no longer to be seen.
fn readable(log: &Log) -> &[SegmentMeta] {
    match log.work.as_deref() {
        Some(Work::Amend(Amend { then: Then::Noted { segments, .. }, .. })) => segments,
        _ => &log.segments,
    }
}

impl Storage {
    /// The batches from the one that holds `wanted.from` on, perhaps fewer than could be had. `ticket` comes back with
    /// [`StorageEvent::Read`] if the disk must be asked; no two that wait are the same.
    pub fn read(&mut self, now: Instant, slot: Slot, wanted: Wanted, ticket: u64) -> Found {
        self.now = now;
        self.begin_read(slot, wanted, ticket, 0)
    }

    fn begin_read(&mut self, slot: Slot, wanted: Wanted, ticket: u64, tries: u8) -> Found {
        let Some(log) = self.live(slot) else { return Found::Nothing };
        let below = wanted.below.min(log.end);
        if wanted.from >= below {
            return Found::Nothing;
        }
        let tail_base = log.tail_base();
        if wanted.from >= tail_base || log.segments.is_empty() {
            let parts = log.find_in_tail(Wanted { below, ..wanted });
            return if parts.is_empty() { Found::Nothing } else { Found::Memory(parts) };
        }
        let log = self.logs[slot.0 as usize].as_deref().expect("it was just found");
        self.reader.read(SegmentRead {
            ticket,
            slot,
            partition: log.partition,
            from: wanted.from,
            below: below.min(tail_base),
            bytes_max: wanted.bytes_max,
            first_whole: wanted.first_whole,
            is_urgent: wanted.is_urgent,
            segments: readable(log),
        });
        self.reads
            .pending
            .insert(ticket, Pending { slot, what: What::Read(wanted, below.min(tail_base)), tries });
        Found::Later
    }

    /// The first batch with a record at `timestamp_ms` or later, of those that end at or before `below`. `ticket` comes
    /// back with [`StorageEvent::FoundBatch`] if the disk must be asked.
    pub fn find_timestamp(
        &mut self,
        now: Instant,
        slot: Slot,
        timestamp_ms: i64,
        below: Offset,
        ticket: u64,
    ) -> FoundBatch {
        self.now = now;
        self.begin_find(
            slot,
            Find { timestamp_ms, from: Offset::ZERO, below, searched: Offset::ZERO },
            ticket,
            0,
        )
    }

    fn begin_find(&mut self, slot: Slot, find: Find, ticket: u64, tries: u8) -> FoundBatch {
        let Some(log) = self.live(slot) else { return FoundBatch::Nothing };
        let Find { timestamp_ms, .. } = find;
        let below = find.below.min(log.end);
        let from = find.from.max(log.start);
        let in_segments = below.min(log.tail_base());
        let is_there = log.segments.iter().any(|segment| {
            segment.max_timestamp_ms >= timestamp_ms && segment.base < in_segments && segment.end > from
        });
        if !is_there || from >= in_segments {
            return self.find_in_memory(slot, timestamp_ms, below);
        }
        let log = self.logs[slot.0 as usize].as_deref().expect("it was just found");
        self.reader.find_timestamp(TimestampRead {
            ticket,
            slot,
            partition: log.partition,
            timestamp_ms,
            from,
            below: in_segments,
            segments: readable(log),
        });
        let what = What::Find(Find { searched: in_segments, ..find });
        self.reads.pending.insert(ticket, Pending { slot, what, tries });
        FoundBatch::Later
    }

    fn find_in_memory(&self, slot: Slot, timestamp_ms: i64, below: Offset) -> FoundBatch {
        let Some(log) = self.live(slot) else { return FoundBatch::Nothing };
        let from = log.tail.partition_point(|b| b.max_timestamp_ms < timestamp_ms || b.next <= log.start);
        // The largest so far may be that of a batch that has left memory.
        let found = log.tail.range(from..).find(|b| b.timestamp_ms >= timestamp_ms && b.next > log.start);
        match found {
            Some(batch) if batch.next <= below => FoundBatch::Memory(batch.bytes.clone()),
            _ => FoundBatch::Nothing,
        }
    }

    /// The largest timestamp of the batches that end at or before `below`, as far as is known without the disk: of
    /// a segment that reaches beyond `below`, that of the whole segment is taken.
    pub fn largest_timestamp(&self, slot: Slot, below: Offset) -> Option<i64> {
        let log = self.live(slot)?;
        let tail_base = log.tail_base();
        let in_segments = log
            .segments
            .iter()
            .filter(|segment| segment.base < below.min(tail_base) && segment.end > log.start)
            .map(|segment| segment.max_timestamp_ms)
            .max();
        let after = log.tail.partition_point(|batch| batch.next <= below);
        let in_memory = after.checked_sub(1).map(|at| log.tail[at].max_timestamp_ms);
        in_segments.max(in_memory)
    }

    /// Takes what the reader has done.
    pub(super) fn drain_reader(&mut self) {
        while let Some(Done { ticket, result }) = self.reader.poll_done() {
            let pending = self.reads.pending.remove(&ticket).expect("each read ends once");
            match pending.what {
                What::Read(wanted, searched) => {
                    self.on_read_done(ticket, pending, (wanted, searched), result);
                }
                What::Find(find) => self.on_find_done(ticket, pending, find, result),
            }
        }
    }

    fn on_read_done(
        &mut self,
        ticket: u64,
        pending: Pending,
        (wanted, searched): (Wanted, Offset),
        result: Result<Stretch, ReadFault>,
    ) {
        let Pending { slot, tries, .. } = pending;
        let result = match result {
            // Compaction left a gap: it goes on behind it, where memory may begin. A first batch that is taken whole
            // can only have been held back by that.
            Ok(stretch)
                if stretch.batches.is_empty()
                    && (stretch.next > wanted.from || (wanted.first_whole && searched > wanted.from)) =>
            {
                let from = if stretch.next > wanted.from { stretch.next } else { searched };
                match self.begin_read(slot, Wanted { from, ..wanted }, ticket, tries) {
                    Found::Later => return,
                    Found::Memory(parts) => Ok(parts),
                    Found::Nothing => Ok(Vec::new()),
                }
            }
            Ok(stretch) => Ok(stretch.batches),
            Err(ReadFault::Gone) if tries < TRIES_MAX && self.live(slot).is_some() => {
                match self.begin_read(slot, wanted, ticket, tries + 1) {
                    Found::Later => return,
                    Found::Memory(parts) => Ok(parts),
                    Found::Nothing => Ok(Vec::new()),
                }
            }
            Err(fault) => Err(fault),
        };
        self.events.push_back(StorageEvent::Read { ticket, result });
    }

    fn on_find_done(
        &mut self,
        ticket: u64,
        pending: Pending,
        find: Find,
        result: Result<Stretch, ReadFault>,
    ) {
        let Pending { slot, tries, .. } = pending;
        let again = match result {
            Ok(Stretch { batches, .. }) if !batches.is_empty() => Err(Ok(batches.into_iter().next())),
            // Up to there it is not. What lies behind may have left memory meanwhile.
            Ok(_) => Ok((Find { from: find.searched, ..find }, tries)),
            Err(ReadFault::Gone) if tries < TRIES_MAX && self.live(slot).is_some() => Ok((find, tries + 1)),
            Err(fault) => Err(Err(fault)),
        };
        let result = match again {
            Ok((find, tries)) => match self.begin_find(slot, find, ticket, tries) {
                FoundBatch::Later => return,
                FoundBatch::Memory(bytes) => Ok(Some(bytes)),
                FoundBatch::Nothing => Ok(None),
            },
            Err(result) => result,
        };
        self.events.push_back(StorageEvent::FoundBatch { ticket, result });
    }
}
