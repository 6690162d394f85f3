//! Time as an argument: an instant that drivers read and pure code only compares, and a table of timers.
//!
//! Floor 0. Nothing here reads a clock.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::Hash;
use std::ops::{Add, Sub};
use std::time::Duration;

use crate::ids::Map;

/// Nanoseconds of a monotonic clock, since a point that the driver chose (its start).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

impl Instant {
    pub const ZERO: Self = Self(0);

    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time since `earlier`, zero when that is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.since(earlier)
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", Duration::from_nanos(self.0))
    }
}

/// Deadlines by key, at most one per key. Costs nothing while no deadline is due: there is no tick.
///
/// Two keys due at one instant fire in the order of the keys, so that a simulation repeats.
#[derive(Debug)]
pub struct TimerTable<K> {
    by_key: Map<K, Instant>,
    by_time: BTreeSet<(Instant, K)>,
}

impl<K> Default for TimerTable<K> {
    fn default() -> Self {
        Self { by_key: Map::default(), by_time: BTreeSet::new() }
    }
}

impl<K: Copy + Ord + Hash> TimerTable<K> {
    /// Sets or moves the deadline of `key`.
    pub fn set(&mut self, key: K, at: Instant) {
        if let Some(old) = self.by_key.insert(key, at) {
            self.by_time.remove(&(old, key));
        }
        self.by_time.insert((at, key));
    }

    /// Sets the deadline of `key` unless it has an earlier one.
    pub fn set_at_latest(&mut self, key: K, at: Instant) {
        if self.by_key.get(&key).is_none_or(|old| *old > at) {
            self.set(key, at);
        }
    }

    /// Forgets the deadline of `key`, if it has one.
    pub fn cancel(&mut self, key: K) {
        if let Some(old) = self.by_key.remove(&key) {
            self.by_time.remove(&(old, key));
        }
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|&(at, _)| at)
    }

    /// Takes out one key whose deadline is at or before `now`; call again until it says `None`.
    pub fn pop_due(&mut self, now: Instant) -> Option<K> {
        let &(at, key) = self.by_time.first()?;
        if at > now {
            return None;
        }
        self.by_time.pop_first();
        self.by_key.remove(&key);
        Some(key)
    }

    pub fn len(&self) -> usize {
        self.by_time.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_time.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_fire_in_order_and_once() {
        let mut t = TimerTable::default();
        t.set('b', Instant::from_nanos(2));
        t.set('a', Instant::from_nanos(2));
        t.set('c', Instant::from_nanos(1));
        t.set('c', Instant::from_nanos(9));
        t.set('d', Instant::from_nanos(1));
        t.cancel('d');
        assert_eq!(t.next(), Some(Instant::from_nanos(2)));
        assert_eq!(t.pop_due(Instant::from_nanos(1)), None);
        assert_eq!(t.pop_due(Instant::from_nanos(5)), Some('a'));
        assert_eq!(t.pop_due(Instant::from_nanos(5)), Some('b'));
        assert_eq!(t.pop_due(Instant::from_nanos(5)), None);
        assert_eq!(t.pop_due(Instant::from_nanos(9)), Some('c'));
        assert!(t.is_empty() && t.next().is_none());
    }
}
