//! What will happen, by virtual time. Events of one instant happen in a random order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use highwater_shards::time::Instant;

use crate::rng::Rng;

#[derive(Debug)]
pub struct Queue<E> {
    heap: BinaryHeap<Reverse<(Instant, u32, u32)>>,
    /// Events stand here so that the heap moves small items only.
    slots: Vec<Option<E>>,
    free: Vec<u32>,
    rng: Rng,
}

impl<E> Queue<E> {
    pub fn new(rng: Rng) -> Self {
        Self { heap: BinaryHeap::new(), slots: Vec::new(), free: Vec::new(), rng }
    }

    pub fn push(&mut self, at: Instant, event: E) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).expect("a run has few events under way")
        });
        self.slots[slot as usize] = Some(event);
        let tie = u32::try_from(self.rng.draw() >> 32).expect("32 bits");
        self.heap.push(Reverse((at, tie, slot)));
    }

    /// When the next one happens.
    pub fn next_at(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, ..))| *at)
    }

    pub fn pop(&mut self) -> Option<(Instant, E)> {
        let Reverse((at, _, slot)) = self.heap.pop()?;
        self.free.push(slot);
        let event = self.slots[slot as usize].take().expect("a slot in the heap is filled");
        Some((at, event))
    }
}

/// The order of one path: what is sent later arrives later.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lane {
    last: Instant,
}

impl Lane {
    /// When something arrives that would arrive at `at` if nothing were before it.
    pub fn arrival(&mut self, at: Instant) -> Instant {
        let after = Instant::from_nanos(self.last.as_nanos() + 1);
        self.last = at.max(after);
        self.last
    }
}
