//! When to spin before parking. Owned by one shard core.
//!
//! Waking a parked core costs about as much as [`BUDGET`] on both sides together, so a core that spins for that long
//! and then parks never pays more than twice what the best choice would have cost (the argument of Karlin et al.,
//! "Competitive randomized algorithms for nonuniform problems", for its deterministic part). Under `Auto` a core does
//! that only while it pays: it collects a credit for each park that turned out shorter than the budget, loses one for
//! each longer park, and spins once it has as many as a spin is priced at. A spin in vain takes all credits and
//! doubles the price, one that found work lowers the price by a quarter. So an idle shard never spins, one that just
//! had work stops at the first spin in vain, and one whose clients run on its own core, where a spin only keeps them
//! from answering, all but gives it up. A spin that lost its core to another thread says that the host has more to
//! run than cores; then there is none for [`PAUSE`].

use std::time::Duration;

use crate::time::Instant;

/// How long a shard spins before it parks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Spin {
    /// As long as it pays, see the head of this file; not at all when the process has no core to spare.
    #[default]
    Auto,
    /// Always so long; 0 forbids it.
    Micros(u32),
}

const BUDGET: Duration = Duration::from_micros(50);
/// Bounds of a spin's price, in credits.
const PRICE_MIN: u16 = 4;
const PRICE_MAX: u16 = 1024;

/// Two looks at the clock that lie further apart than this were not taken in a row.
const LOST_CORE: Duration = Duration::from_micros(200);

/// Without spinning after another thread took the core.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Spinner {
    spin: Spin,
    /// Whether there are cores enough for `Auto` at all.
    spare_core: bool,
    /// At most `price`.
    credit: u16,
    price: u16,
    paused_until: Instant,
    pub spins: u64,
    pub found: u64,
}

impl Spinner {
    pub fn new(spin: Spin, spare_core: bool) -> Self {
        Self {
            spin,
            spare_core,
            credit: 0,
            price: PRICE_MIN,
            paused_until: Instant::ZERO,
            spins: 0,
            found: 0,
        }
    }

    /// How long to spin now; zero: park.
    pub fn budget(&self, now: Instant) -> Duration {
        match self.spin {
            Spin::Micros(us) => Duration::from_micros(us.into()),
            Spin::Auto if !self.spare_core || self.credit < self.price || now < self.paused_until => {
                Duration::ZERO
            }
            Spin::Auto => BUDGET,
        }
    }

    /// Spins until `found` says so or `budget` is over. Returns whether it was found.
    pub fn spin(
        &mut self,
        budget: Duration,
        clock: impl Fn() -> Instant,
        mut found: impl FnMut() -> bool,
    ) -> bool {
        self.spins += 1;
        let start = clock();
        let mut last = start;
        loop {
            if found() {
                self.found += 1;
                self.price = (self.price / 4 * 3).max(PRICE_MIN);
                self.credit = self.price;
                return true;
            }
            std::hint::spin_loop();
            let now = clock();
            if now - last > LOST_CORE {
                self.credit = 0;
                self.paused_until = now + PAUSE;
                return false;
            }
            if now - start >= budget {
                self.credit = 0;
                self.price = (self.price * 2).min(PRICE_MAX);
                return false;
            }
            last = now;
        }
    }

    /// After a park: how long it lasted.
    pub fn parked(&mut self, time: Duration) {
        self.credit =
            if time < BUDGET { (self.credit + 1).min(self.price) } else { self.credit.saturating_sub(1) };
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn clock(step: Duration) -> impl Fn() -> Instant {
        let now = Cell::new(Instant::from_nanos(1));
        move || {
            now.set(now.get() + step);
            now.get()
        }
    }

    const NOW: Instant = Instant::from_nanos(2_000_000_000);

    fn busy() -> Spinner {
        let mut s = Spinner::new(Spin::Auto, true);
        (0..20).for_each(|_| s.parked(Duration::from_micros(10)));
        s
    }

    #[test]
    fn an_idle_shard_never_spins_and_a_busy_one_stops_soon() {
        let mut s = Spinner::new(Spin::Auto, true);
        assert_eq!(s.budget(NOW), Duration::ZERO);
        for _ in 0..100 {
            s.parked(Duration::from_millis(1));
            assert_eq!(s.budget(NOW), Duration::ZERO);
        }
        let mut s = busy();
        let mut in_vain = 0;
        while s.budget(NOW) > Duration::ZERO {
            assert!(!s.spin(BUDGET, clock(Duration::from_micros(1)), || false));
            s.parked(Duration::from_millis(1));
            in_vain += 1;
        }
        assert_eq!(in_vain, 1);
    }

    #[test]
    fn spins_that_are_always_in_vain_become_rare_and_pay_again_when_they_find_work() {
        let mut s = Spinner::new(Spin::Auto, true);
        let mut in_vain = 0;
        for _ in 0..10_000 {
            if s.budget(NOW) > Duration::ZERO {
                assert!(!s.spin(BUDGET, clock(Duration::from_micros(1)), || false));
                in_vain += 1;
            }
            s.parked(Duration::from_micros(10));
        }
        assert!((8..=20).contains(&in_vain), "{in_vain}");
        (0..PRICE_MAX).for_each(|_| s.parked(Duration::from_micros(10)));
        assert!(s.spin(BUDGET, clock(Duration::from_micros(1)), || true));
        for _ in 0..20 {
            assert_eq!(s.budget(NOW), BUDGET);
            assert!(s.spin(BUDGET, clock(Duration::from_micros(1)), || true));
        }
        assert_eq!(s.price, PRICE_MIN);
    }

    #[test]
    fn spinning_goes_on_while_it_finds_work() {
        let mut s = busy();
        for _ in 0..100 {
            assert_eq!(s.budget(NOW), BUDGET);
            assert!(s.spin(BUDGET, clock(Duration::from_micros(1)), || true));
        }
    }

    #[test]
    fn losing_the_core_while_spinning_forbids_it_for_a_while() {
        let mut s = busy();
        assert!(!s.spin(BUDGET, clock(Duration::from_millis(3)), || false));
        (0..20).for_each(|_| s.parked(Duration::from_micros(10)));
        assert_eq!(s.budget(Instant::from_nanos(7_000_000)), Duration::ZERO);
        assert_eq!(s.budget(NOW), BUDGET);
    }

    #[test]
    fn auto_needs_a_spare_core_and_a_fixed_time_does_not() {
        let mut s = Spinner::new(Spin::Auto, false);
        (0..20).for_each(|_| s.parked(Duration::from_micros(10)));
        assert_eq!(s.budget(NOW), Duration::ZERO);
        assert_eq!(Spinner::new(Spin::Micros(7), false).budget(NOW), Duration::from_micros(7));
        assert_eq!(Spinner::new(Spin::Micros(0), true).budget(NOW), Duration::ZERO);
    }
}
