//! Memory that appended batches are copied into once, and from which both the disk and readers are served.
//!
//! Floor 1. A block is one allocation of about a MiB; pieces are split off its front in order, and each piece is
//! shared from then on. What was split off between two calls of [`Blocks::begin`] lies at one stretch, from an
//! address that is a multiple of [`SECTOR`].

use std::collections::VecDeque;

use bytes::{BufMut, BytesMut};

use super::disk::SECTOR;

/// The size of a block, unless one batch needs more.
pub(super) const BLOCK_BYTES: usize = 1024 * 1024;
/// A new chunk is not begun in a block that has less left than this: chunks would become small.
const BLOCK_REST_MIN: usize = 64 * 1024;
/// Used-up blocks that are remembered, to be filled again once no one reads them: their pages are mapped already,
/// which is worth more than the copy into them.
const USED_MAX: usize = 1024;
/// Of those, so many may be there that no one reads any more; what is above is given back by and by.
const FREE_MAX: usize = 32;
/// How many of the oldest are asked whether they are free: one that is read for long must not hold up the others.
const ASKED_MAX: usize = 4;

/// The block that is being filled, and used-up ones.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    current: BytesMut,
    /// What `current` was asked for.
    current_bytes: usize,
    /// The empty ends of used-up blocks, oldest first; each keeps its block from being freed.
    used: VecDeque<BytesMut>,
}

impl Blocks {
    /// Makes room for a chunk of at least `len_min` bytes and says how many it may have, at most `len_max`. All
    /// three are multiples of [`SECTOR`].
    pub fn begin(&mut self, len_min: usize, len_max: usize) -> usize {
        assert!(self.current.is_empty(), "the chunk before was sealed");
        let rest = self.current.capacity();
        if rest < len_min || rest < len_max.min(BLOCK_REST_MIN) {
            self.change(len_min.max(BLOCK_BYTES));
        }
        let room = self.current.capacity() / SECTOR * SECTOR;
        assert!(room >= len_min, "a block has the room that was asked of it");
        room.min(len_max)
    }

    /// The bytes that were written and not split off yet.
    pub fn current(&mut self) -> &mut BytesMut {
        &mut self.current
    }

    fn change(&mut self, bytes: usize) {
        let used_up = std::mem::take(&mut self.current);
        // One that a large batch made is given back: it would hold its memory for chunks of a MiB.
        if self.current_bytes == BLOCK_BYTES {
            self.used.push_back(used_up);
        }
        if self.used.len() > USED_MAX {
            self.used.pop_front();
        }
        let mut next = match bytes {
            BLOCK_BYTES => self.take_free(),
            _ => None,
        };
        if self.used.len() > FREE_MAX {
            drop(self.take_free());
        }
        let next = next.get_or_insert_with(|| BytesMut::with_capacity(bytes + SECTOR));
        let unaligned = next.as_ptr().align_offset(SECTOR);
        next.put_bytes(0, unaligned);
        // What is split off here is the front that no chunk uses.
        drop(next.split());
        self.current = std::mem::take(next);
        self.current_bytes = bytes;
    }

    /// A used-up block that no one reads any more.
    fn take_free(&mut self) -> Option<BytesMut> {
        let asked = self.used.len().min(ASKED_MAX);
        let free = (0..asked).find(|&i| self.used[i].try_reclaim(BLOCK_BYTES + SECTOR))?;
        self.used.remove(free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_begins_at_a_sector_and_has_its_room() {
        let mut blocks = Blocks::default();
        let mut held = Vec::new();
        for i in 0..500_usize {
            let len = SECTOR * (1 + i % 50);
            let room = blocks.begin(len, 1 << 20);
            assert!(room >= len && room.is_multiple_of(SECTOR));
            let b = blocks.current();
            assert_eq!(b.as_ptr().align_offset(SECTOR), 0);
            b.put_bytes(i as u8, len);
            held.push((i as u8, b.split().freeze()));
            if i % 3 == 0 {
                held.remove(held.len() / 2);
            }
        }
        // Blocks that were filled again did not disturb what is still read.
        for (byte, bytes) in held {
            assert!(bytes.iter().all(|&b| b == byte));
        }
    }

    #[test]
    fn block_without_readers_is_filled_again() {
        let mut blocks = Blocks::default();
        let mut addresses = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            blocks.begin(BLOCK_BYTES / 2, BLOCK_BYTES / 2);
            let b = blocks.current();
            b.put_bytes(1, BLOCK_BYTES / 2);
            addresses.insert(b.split().freeze().as_ptr() as usize);
        }
        assert!(addresses.len() <= 4, "{}", addresses.len());
    }

    #[test]
    fn batch_larger_than_a_block_gets_one_of_its_own() {
        let mut blocks = Blocks::default();
        assert_eq!(blocks.begin(5 << 20, 5 << 20), 5 << 20);
        blocks.current().put_bytes(1, 5 << 20);
        drop(blocks.current().split());
        assert!(blocks.begin(SECTOR, 1 << 20) <= 1 << 20);
    }
}
