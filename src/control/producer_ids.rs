//! Hands out producer ids from blocks that the metadata log reserved for this node.
//!
//! Control core, pure. What is left of a block at a restart is never given out, so that no id is given twice.

use std::collections::VecDeque;
use std::ops::Range;

use highwater_shards::ids::ProducerId;

use super::metadata::command::PRODUCER_ID_BLOCK;

/// Ids in hand below which another block is reserved, so that clients seldom wait for the log.
const LOW: u64 = 250;

#[derive(Debug, Default)]
pub struct ProducerIds {
    blocks: VecDeque<Range<u64>>,
    reserving: bool,
}

impl ProducerIds {
    /// An id that nobody was given before, when one is in hand.
    pub fn take(&mut self) -> Option<ProducerId> {
        let block = self.blocks.front_mut()?;
        let id = block.next().expect("empty blocks are removed");
        if block.is_empty() {
            self.blocks.pop_front();
        }
        Some(ProducerId(id))
    }

    /// Whether a block is to be reserved now, when so many ids are waited for.
    pub fn wants_block(&self, waiting: usize) -> bool {
        let in_hand: u64 = self.blocks.iter().map(|b| b.end - b.start).sum();
        !self.reserving && in_hand < LOW + waiting as u64
    }

    pub fn on_reserving(&mut self) {
        self.reserving = true;
    }

    /// The proposal is through; `first` is absent when it failed.
    pub fn on_reserved(&mut self, first: Option<ProducerId>) {
        self.reserving = false;
        if let Some(ProducerId(first)) = first {
            self.blocks.push_back(first..first + u64::from(PRODUCER_ID_BLOCK));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_block_is_wanted_before_the_last_one_runs_out() {
        let mut ids = ProducerIds::default();
        assert!(ids.wants_block(0) && ids.take().is_none());
        ids.on_reserving();
        assert!(!ids.wants_block(5), "one reservation at a time");
        ids.on_reserved(Some(ProducerId(3000)));
        let first: Vec<u64> = (0..751).filter_map(|_| ids.take()).map(|id| id.0).collect();
        assert_eq!(first, (3000..3751).collect::<Vec<_>>());
        assert!(ids.wants_block(0) && ids.take().is_some());
        ids.on_reserving();
        ids.on_reserved(None);
        assert!(ids.wants_block(0), "a failed reservation is tried again");
        ids.on_reserved(Some(ProducerId(9000)));
        let rest: Vec<u64> = std::iter::from_fn(|| ids.take()).map(|id| id.0).collect();
        assert_eq!(rest, (3752..4000).chain(9000..10_000).collect::<Vec<_>>());
    }
}
