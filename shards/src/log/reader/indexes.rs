//! The indexes that are kept in memory, within a budget. Floor 1, pure.
//!
//! An index grows in two ways behind what its file had: the mover tells what it wrote, and a read that goes over frames
//! which the index does not know yet adds them. So one that is missing, or was found wrong, is built anew by the reads
//! that need it, and no frame is gone over twice for that.

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::disk::SegmentName;
use super::super::segment::index::{Index, IndexBuilder, IndexEntry};
use super::super::segment::scan::{FIRST_FRAME, Frame};
use super::job::JobId;

/// What an index costs beside its entries, in bytes.
const OVERHEAD_BYTES: usize = 256;

#[derive(Debug)]
pub(super) struct Indexes {
    all: BTreeMap<SegmentName, State>,
    by_use: BTreeMap<u64, SegmentName>,
    uses: u64,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug)]
enum State {
    Loading { serial: u64, waiters: Vec<JobId> },
    Ready(Box<Known>),
}

#[derive(Debug)]
struct Known {
    index: Index,
    builder: IndexBuilder,
    /// The index and the builder know of all frames before this position, where a frame begins.
    covered: u64,
    used: u64,
    /// As counted in `Indexes::bytes`.
    charged: usize,
}

impl Known {
    fn new(index: Index) -> Self {
        let covered = index.entries().last().map_or(FIRST_FRAME, |e| e.position);
        let builder = IndexBuilder::resume(&index, i64::MIN);
        Self { index, builder, covered, used: 0, charged: 0 }
    }
}

impl Indexes {
    pub fn new(bytes_max: usize) -> Self {
        Self { all: BTreeMap::new(), by_use: BTreeMap::new(), uses: 0, bytes: 0, bytes_max }
    }

    /// The index, if it is in memory.
    pub fn get(&mut self, name: SegmentName) -> Option<&Index> {
        let State::Ready(known) = self.all.get_mut(&name)? else { return None };
        self.by_use.remove(&known.used);
        self.uses += 1;
        known.used = self.uses;
        self.by_use.insert(self.uses, name);
        Some(&known.index)
    }

    /// Has `job` wait for an index that is not in memory. `true`: nobody waited yet, so it is to be loaded.
    pub fn wait(&mut self, name: SegmentName, serial: u64, job: JobId) -> bool {
        match self.all.get_mut(&name) {
            Some(State::Loading { waiters, .. }) => {
                waiters.push(job);
                false
            }
            Some(State::Ready(_)) => unreachable!("a job waits for what is not there"),
            None => {
                self.all.insert(name, State::Loading { serial, waiters: vec![job] });
                true
            }
        }
    }

    /// Whether this load is still wanted.
    pub fn is_loading(&self, name: SegmentName, wanted: u64) -> bool {
        matches!(self.all.get(&name), Some(State::Loading { serial, .. }) if *serial == wanted)
    }

    /// Takes a loaded index; who waited for it.
    pub fn insert(&mut self, name: SegmentName, index: Index) -> Vec<JobId> {
        let known = Known::new(index);
        let before = self.all.insert(name, State::Ready(Box::new(known)));
        let Some(State::Loading { waiters, .. }) = before else {
            panic!("an index is loaded only when it is not there")
        };
        self.uses += 1;
        self.by_use.insert(self.uses, name);
        let uses = self.uses;
        self.change(name, |known| known.used = uses);
        waiters
    }

    /// The mover wrote frames in this part of the file, which got these entries.
    pub fn note_moved(
        &mut self,
        name: SegmentName,
        part: Range<u64>,
        max_timestamp_ms: i64,
        entries: &[IndexEntry],
    ) {
        self.change(name, |known| {
            // Behind a gap it would hide what a later read has yet to find there.
            if known.covered < part.start || known.covered >= part.end {
                return;
            }
            for entry in entries.iter().filter(|e| e.position >= known.covered) {
                let before = known.index.entries().last().map_or(i64::MIN, |e| e.timestamp_before_ms);
                let timestamp_before_ms = entry.timestamp_before_ms.max(before);
                known.index.push(IndexEntry { timestamp_before_ms, ..*entry });
            }
            known.covered = part.end;
            known.builder =
                IndexBuilder::resume(&known.index, max_timestamp_ms.max(known.builder.max_timestamp_ms()));
        });
    }

    /// A read went over this frame. `true`: it was new to the index.
    pub fn note_frame(&mut self, name: SegmentName, frame: &Frame) -> bool {
        let Some(State::Ready(known)) = self.all.get_mut(&name) else { return false };
        if known.covered != frame.position {
            return false;
        }
        known.covered = frame.end_position();
        let entry = known.builder.add(frame.base, frame.position, frame.header.max_timestamp_ms);
        if let Some(entry) = entry {
            self.change(name, |known| known.index.push(entry));
        }
        true
    }

    /// Forgets what the index says of `position` and what lies behind it.
    pub fn truncate(&mut self, name: SegmentName, position: u64) {
        self.change(name, |known| {
            known.index.truncate(position);
            // What lies between the last entry and here is gone over once more, for its timestamps.
            let kept = Known::new(std::mem::take(&mut known.index));
            *known = Known { used: known.used, charged: known.charged, ..kept };
        });
    }

    /// Forgets the index; a load that is under way comes to nothing.
    pub fn forget(&mut self, name: SegmentName) {
        if let Some(State::Ready(known)) = self.all.remove(&name) {
            self.by_use.remove(&known.used);
            self.bytes -= known.charged;
        }
    }

    /// The names of one log's indexes, of those that are being loaded too.
    pub fn of_log(&self, within: Range<SegmentName>) -> Vec<SegmentName> {
        self.all.range(within).map(|(name, _)| *name).collect()
    }

    /// Changes an index that is there, then keeps to the budget: the others make room.
    fn change(&mut self, name: SegmentName, change: impl FnOnce(&mut Known)) {
        let Some(State::Ready(known)) = self.all.get_mut(&name) else { return };
        change(known);
        let charge = known.index.memory_bytes() + OVERHEAD_BYTES;
        self.bytes = self.bytes - known.charged + charge;
        known.charged = charge;
        while self.bytes > self.bytes_max {
            let oldest = self.by_use.values().find(|&&other| other != name).copied();
            let Some(oldest) = oldest else { break };
            self.forget(oldest);
        }
    }

    /// In use, as the budget counts.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.all.len()
    }
}
