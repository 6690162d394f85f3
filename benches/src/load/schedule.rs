//! When requests are due. The open-loop schedule is fixed before the run and never waits for an answer: a request that
//! the server (or this client) holds up keeps its due time, and its latency shows the wait.

/// Open loop: the n-th request of this worker is due at `first_ns + n * period`.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    first_ns: u64,
    /// The period is `numerator / denominator` nanoseconds; a fraction, so that the rate does not drift.
    numerator: u128,
    denominator: u128,
}

impl Schedule {
    /// `rate` requests per second over all workers, of which this one has `share` of `lanes` connections; `phase` spreads
    /// the workers' first requests over one period.
    pub fn new(rate: f64, share: usize, lanes: usize, phase: usize) -> Schedule {
        assert!(rate > 0.0 && share > 0 && share <= lanes);
        // A thousandth of a request per second is the finest rate; enough for one request in a quarter of an hour.
        let milli_rate = ((rate * 1e3) as u128).max(1);
        let numerator = 1_000_000_000_000 * lanes as u128;
        let denominator = milli_rate * share as u128;
        let first_ns = (1_000_000_000_000 / milli_rate * phase as u128) as u64;
        Schedule { first_ns, numerator, denominator }
    }

    pub fn due_ns(&self, n: u64) -> u64 {
        self.first_ns + (u128::from(n) * self.numerator / self.denominator) as u64
    }
}

/// Who decides when the next request goes out.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// A connection sends when it has less in flight than it may.
    Closed,
    /// The schedule does.
    Open(Schedule),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_odd_rate_does_not_drift() {
        let schedule = Schedule::new(333.333, 1, 1, 0);
        assert_eq!(schedule.due_ns(0), 0);
        let drift = schedule.due_ns(333_333).abs_diff(1_000_000_000_000);
        assert!(drift < 10, "off by {drift} ns after 1000 s");
    }

    #[test]
    fn workers_share_the_rate_by_their_connections() {
        let (a, b) = (Schedule::new(1000.0, 3, 4, 0), Schedule::new(1000.0, 1, 4, 1));
        let due = |s: &Schedule| (0..10_000).take_while(|n| s.due_ns(*n) < 1_000_000_000).count();
        assert_eq!(due(&a), 750);
        assert_eq!(due(&b), 250);
    }
}
