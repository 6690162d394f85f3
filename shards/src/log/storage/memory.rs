//! Which batches are in memory, oldest first over all logs, and how much memory that takes. Floor 1.
//!
//! Batches share the blocks that the journal wrote, with its headers and padding, and a block is free only when none of
//! its batches is held. So memory is counted as the stretch of the journal from the oldest batch to the newest.

use std::collections::VecDeque;

use crate::log::chunk::{CHUNK_HEADER_BYTES, ENTRY_HEADER_BYTES, sectors};
use crate::log::{Lsn, Slot};

/// What a batch costs beside its bytes: its places in the log's tail and here.
const BOOKKEEPING_BYTES: u64 = 128;

#[derive(Debug, Default)]
pub(super) struct Memory {
    held: VecDeque<Held>,
    /// Where the newest batch ends, counted over all that ever was.
    end: u64,
    /// The chunk of the newest entry, and where it begins.
    chunk: u64,
    chunk_at: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub slot: Slot,
    pub lsn: Lsn,
    /// Counted as `Memory::end`.
    at: u64,
}

impl Memory {
    pub fn push(&mut self, slot: Slot, lsn: Lsn, len: usize) {
        if lsn.chunk != self.chunk {
            let len = usize::try_from(self.end - self.chunk_at).unwrap_or(usize::MAX / 2);
            self.chunk_at += sectors(len) as u64;
            self.chunk = lsn.chunk;
            self.end = self.chunk_at + CHUNK_HEADER_BYTES as u64;
        }
        self.held.push_back(Held { slot, lsn, at: self.end });
        self.end += (ENTRY_HEADER_BYTES + len) as u64;
    }

    pub fn bytes(&self) -> u64 {
        let Some(oldest) = self.held.front() else { return 0 };
        self.end - oldest.at + BOOKKEEPING_BYTES * self.held.len() as u64
    }

    pub fn oldest(&self) -> Option<Held> {
        self.held.front().copied()
    }

    pub fn pop(&mut self) {
        self.held.pop_front();
        if self.held.is_empty() {
            self.held.shrink_to(1024);
        }
    }
}
