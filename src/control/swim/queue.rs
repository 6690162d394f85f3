//! News that wait to be sent on: at most one of each member, the least sent first, of those the newest.
//!
//! Control core, pure. A binary heap that knows where each member stands in it, so that putting, replacing and
//! taking cost O(log n) and nothing is allocated once it has grown.

use std::cmp::Reverse;

use super::member::Slot;

#[derive(Debug, Default)]
pub(super) struct Queue {
    heap: Vec<Entry>,
    /// By slot: its place in the heap.
    places: Vec<u32>,
    /// Grows with each news.
    age: u64,
}

/// News of one member. Compared by its key: the smallest goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub sent: u32,
    newness: Reverse<u64>,
    pub slot: Slot,
}

const NOWHERE: u32 = u32::MAX;

impl Entry {
    fn key(&self) -> (u32, Reverse<u64>) {
        (self.sent, self.newness)
    }
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    pub(super) fn contains(&self, slot: Slot) -> bool {
        self.places.get(slot.index()).is_some_and(|place| *place != NOWHERE)
    }

    /// There are news of this member; they take the place of older ones.
    pub(super) fn put(&mut self, slot: Slot) {
        self.remove(slot);
        self.age += 1;
        self.put_back(Entry { sent: 0, newness: Reverse(self.age), slot });
    }

    /// What was popped goes back, with its count.
    pub(super) fn put_back(&mut self, entry: Entry) {
        assert!(!self.contains(entry.slot), "a member has one entry");
        if self.places.len() <= entry.slot.index() {
            self.places.resize(entry.slot.index() + 1, NOWHERE);
        }
        self.heap.push(entry);
        self.up(self.heap.len() - 1);
    }

    pub(super) fn pop(&mut self) -> Option<Entry> {
        let first = *self.heap.first()?;
        self.remove(first.slot);
        Some(first)
    }

    pub(super) fn remove(&mut self, slot: Slot) {
        if !self.contains(slot) {
            return;
        }
        let place = std::mem::replace(&mut self.places[slot.index()], NOWHERE) as usize;
        self.heap.swap_remove(place);
        if place < self.heap.len() {
            self.up(place);
            self.down(self.places[self.heap[place].slot.index()] as usize);
        }
    }

    fn up(&mut self, mut place: usize) {
        while place > 0 && self.heap[place].key() < self.heap[(place - 1) / 2].key() {
            self.swap(place, (place - 1) / 2);
            place = (place - 1) / 2;
        }
        self.note(place);
    }

    fn down(&mut self, mut place: usize) {
        loop {
            let children = (2 * place + 1..=2 * place + 2).filter(|child| *child < self.heap.len());
            let Some(child) = children.min_by_key(|child| self.heap[*child].key()) else { break };
            if self.heap[place].key() <= self.heap[child].key() {
                break;
            }
            self.swap(place, child);
            place = child;
        }
        self.note(place);
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.note(a);
        self.note(b);
    }

    fn note(&mut self, place: usize) {
        if let Some(entry) = self.heap.get(place) {
            self.places[entry.slot.index()] = u32::try_from(place).expect("fewer entries than members");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::swim::member::mix;

    #[test]
    fn the_least_sent_and_then_the_newest_come_first_whatever_was_removed() {
        for seed in 0..200 {
            let (mut draw, mut queue) = (seed, Queue::default());
            let mut model: Vec<(u32, Reverse<u64>, u32)> = Vec::new();
            for age in 1..60 {
                draw = mix(draw);
                let slot = (draw % 12) as u32;
                match draw >> 60 {
                    0..8 => {
                        queue.put(Slot(slot));
                        let age = queue.age;
                        model.retain(|entry| entry.2 != slot);
                        model.push((0, Reverse(age), slot));
                    }
                    8..11 => {
                        queue.remove(Slot(slot));
                        model.retain(|entry| entry.2 != slot);
                    }
                    _ => {
                        model.sort_unstable();
                        let popped = queue.pop();
                        assert_eq!(popped.map(|e| e.slot.0), model.first().map(|e| e.2), "{seed} at {age}");
                        if let Some(mut entry) = popped {
                            entry.sent += 1;
                            queue.put_back(entry);
                            model[0].0 += 1;
                        }
                    }
                }
            }
        }
    }
}
