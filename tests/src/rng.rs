//! Randomness as streams: one seed, and a stream of its own for each purpose, so that a draw added in one place
//! does not shift the draws of the others.
//!
//! The generator is xoshiro256++ (Blackman, Vigna: <https://prng.di.unimi.it/>), seeded through splitmix64. Only
//! integers are drawn: floating-point functions differ between platforms, and a seed must not.

use std::ops::Range;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// One stream of random numbers.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The stream of `seed` for one purpose. `index` tells apart the users of one purpose (shards, clients).
    pub fn new(seed: u64, purpose: &str, index: u64) -> Self {
        let mut x = xxh3_64_with_seed(purpose.as_bytes(), seed) ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let state = std::array::from_fn(|_| {
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = x;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        });
        Self { state }
    }

    pub fn draw(&mut self) -> u64 {
        let s = &mut self.state;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// Uniform in `0..n`; 0 when `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        let wide = u128::from(self.draw()) * u128::from(n);
        u64::try_from(wide >> 64).expect("the high half of a 128-bit product has 64 bits")
    }

    /// Uniform in the range; its start when it is empty.
    pub fn range(&mut self, range: Range<u64>) -> u64 {
        range.start + self.below(range.end.saturating_sub(range.start))
    }

    /// An index into something of `len` items.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("below a usize")
    }

    /// True so many times in a thousand.
    pub fn chance(&mut self, per_mille: u32) -> bool {
        self.below(1000) < u64::from(per_mille)
    }

    pub fn flip(&mut self) -> bool {
        self.draw() & 1 == 1
    }

    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.index(items.len())]
    }

    /// Uniform between the two, in nanoseconds.
    pub fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let (a, b) = (nanos(least), nanos(most));
        Duration::from_nanos(self.range(a..b.max(a) + 1))
    }

    /// Mostly within `usual`, now and then up to ten times its end: a long but bounded tail.
    pub fn tailed(&mut self, usual: &Range<Duration>) -> Duration {
        let d = self.between(usual.start, usual.end);
        if self.chance(40) { d + self.between(Duration::ZERO, usual.end * 9) } else { d }
    }
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_of_one_seed_differ_and_repeat() {
        let three = |seed, purpose, index| {
            let mut r = Rng::new(seed, purpose, index);
            [r.draw(), r.draw(), r.draw()]
        };
        assert_eq!(three(1, "disk", 0), three(1, "disk", 0));
        assert_ne!(three(1, "disk", 0), three(1, "disk", 1));
        assert_ne!(three(1, "disk", 0), three(1, "mail", 0));
        assert_ne!(three(1, "disk", 0), three(2, "disk", 0));
    }

    #[test]
    fn draws_stay_in_their_bounds() {
        let mut r = Rng::new(7, "bounds", 0);
        for _ in 0..10_000 {
            assert!(r.below(3) < 3);
            assert!((5..8).contains(&r.range(5..8)));
            let d = r.between(Duration::from_nanos(2), Duration::from_nanos(4));
            assert!((2..=4).contains(&d.as_nanos()));
        }
        assert_eq!(r.below(0), 0);
        assert_eq!(r.range(9..9), 9);
    }
}
