//! Of each key the offset of its newest record, within a fixed piece of memory.

use siphasher::sip128::{Hash128, SipHasher13};

use crate::ids::Offset;

/// The hash's two halves, and one past the offset; 0 there is a free slot.
type Slot = [u64; 3];

/// Maps a key, by a keyed 128-bit hash that clients cannot make collide (SipHash-1-3), to an offset. Open addressing
/// with linear probing; the memory is taken once, as zeros, and touched only where keys fall.
#[derive(Debug)]
pub(super) struct KeyMap {
    hasher: SipHasher13,
    slots: Vec<Slot>,
    used: usize,
    used_max: usize,
}

impl KeyMap {
    /// For as many keys as fit three quarters of `bytes`; at least one.
    pub fn new(bytes: usize, seed: u64) -> Self {
        let slots = (bytes / size_of::<Slot>()).max(2);
        Self {
            hasher: SipHasher13::new_with_keys(seed, seed.rotate_left(32) ^ 0x6b65_7973),
            slots: vec![[0; 3]; slots],
            used: 0,
            used_max: (slots / 4 * 3).max(1),
        }
    }

    /// Where the key is, or else where it would go.
    fn find(&self, key: &[u8]) -> (usize, Hash128) {
        let hash = self.hasher.hash(key);
        let slots = self.slots.len();
        let mut at = ((u128::from(hash.h1) * slots as u128) >> 64) as usize;
        // It ends: a quarter of the slots stays free, and one at least.
        while self.slots[at][2] != 0 && self.slots[at][..2] != [hash.h1, hash.h2] {
            at = if at + 1 == slots { 0 } else { at + 1 };
        }
        (at, hash)
    }

    /// Notes the newest record of `key`; offsets come in ascending order. `false`: the map is full and the key is not in
    /// it.
    pub fn note(&mut self, key: &[u8], offset: Offset) -> bool {
        let (at, hash) = self.find(key);
        if self.slots[at][2] == 0 {
            if self.used == self.used_max {
                return false;
            }
            self.used += 1;
        }
        self.slots[at] = [hash.h1, hash.h2, offset.0 + 1];
        true
    }

    /// The newest record of `key`.
    pub fn newest(&self, key: &[u8]) -> Option<Offset> {
        let (at, _) = self.find(key);
        self.slots[at][2].checked_sub(1).map(Offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_map_keeps_its_keys_current_and_takes_no_more() {
        let mut map = KeyMap::new(100 * 24, 7);
        for i in 0..75_u64 {
            assert!(map.note(&i.to_be_bytes(), Offset(i)), "{i}");
        }
        assert!(!map.note(b"one more", Offset(75)));
        assert!(map.note(&3_u64.to_be_bytes(), Offset(76)));
        assert_eq!(map.newest(b"one more"), None);
        for i in 0..75_u64 {
            assert_eq!(map.newest(&i.to_be_bytes()), Some(Offset(if i == 3 { 76 } else { i })));
        }
    }

    #[test]
    fn smallest_map_holds_one_key() {
        let mut map = KeyMap::new(0, 7);
        assert!(map.note(b"", Offset(0)));
        assert!(!map.note(b"b", Offset(1)));
        assert_eq!((map.newest(b""), map.newest(b"b")), (Some(Offset(0)), None));
    }
}
