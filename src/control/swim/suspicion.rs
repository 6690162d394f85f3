//! How long a suspicion lasts: long while one member alone holds it, short when others confirm it (Lifeguard's
//! local health aware suspicion).
//!
//! Control core, pure. Logarithms are in fixed point, so that a simulation repeats on every platform.

use std::time::Duration;

use highwater_shards::time::Instant;

use super::config::SwimConfig;
use super::member::Id;

/// Accusers that are remembered, the first included.
const ACCUSERS_MAX: usize = 8;
/// How often a suspect's own datagrams start its timer anew: one that sends but does not receive must not stay a
/// suspect for ever.
const VETOES_MAX: u8 = 10;

#[derive(Debug)]
pub(super) struct Suspicion {
    started: Instant,
    accusers: [Id; ACCUSERS_MAX],
    count: usize,
    vetoes: u8,
    pub deadline: Instant,
}

impl Suspicion {
    /// `accuser` is nobody when the suspicion was found by comparing tables.
    pub(super) fn new(now: Instant, accuser: Id, limits: &Limits) -> Self {
        let mut accusers = [Id::NOBODY; ACCUSERS_MAX];
        accusers[0] = accuser;
        Self { started: now, accusers, count: 1, vetoes: 0, deadline: now + limits.timeout(0) }
    }

    /// Whether this accuser is a new one that counts.
    pub(super) fn confirm(&mut self, accuser: Id, limits: &Limits) -> bool {
        let confirmations = self.count - 1;
        let most = (limits.confirmations as usize).min(ACCUSERS_MAX - 1);
        if confirmations >= most || self.accusers[..self.count].contains(&accuser) {
            return false;
        }
        self.accusers[self.count] = accuser;
        self.count += 1;
        self.deadline = self.started + limits.timeout(self.count - 1);
        true
    }

    /// Who accused it last: what is told to others.
    pub(super) fn accuser(&self) -> Id {
        self.accusers[self.count - 1]
    }

    /// Whether it is as short as it gets.
    pub(super) fn is_confirmed(&self, limits: &Limits) -> bool {
        self.count > limits.confirmations as usize
    }

    /// Whether this member is among its accusers.
    pub(super) fn is_by(&self, accuser: Id) -> bool {
        self.accusers[..self.count].contains(&accuser)
    }

    /// Whether a member other than this one accuses it.
    pub(super) fn is_shared(&self, own: Id) -> bool {
        self.accusers[..self.count].iter().any(|accuser| *accuser != own && *accuser != Id::NOBODY)
    }

    /// The suspect gave a sign of life; whether that still counts.
    pub(super) fn veto(&mut self, now: Instant, limits: &Limits) -> bool {
        if self.vetoes >= VETOES_MAX {
            return false;
        }
        self.vetoes += 1;
        self.started = now;
        self.deadline = now + limits.timeout(self.count - 1);
        true
    }

    /// Time that did not count passed.
    pub(super) fn postpone(&mut self, by: Duration) {
        self.started = self.started + by;
        self.deadline = self.deadline + by;
    }
}

/// The bounds of a suspicion in a cluster of a certain size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    least: Duration,
    most: Duration,
    confirmations: u32,
}

impl Limits {
    /// `members` counts this one too.
    pub(super) fn new(config: &SwimConfig, members: usize) -> Self {
        let members = u32::try_from(members).unwrap_or(u32::MAX).max(1);
        let log10 = (log2(members) * 65536 / log2(10)).max(65536);
        let interval = u64::try_from(config.ping_interval.as_nanos()).unwrap_or(u64::MAX);
        let factor = u128::from(config.suspicion_multiplier) * u128::from(log10);
        let least = u64::try_from((u128::from(interval) * factor) >> 16).unwrap_or(u64::MAX);
        let least = Duration::from_nanos(least);
        // The accused and the first accuser cannot confirm.
        let others = members.saturating_sub(2);
        let dynamic = config.extensions.dynamic_suspicion;
        let confirmations = if dynamic { config.suspicion_confirmations.min(others) } else { 0 };
        let factor = if confirmations == 0 { 1 } else { config.suspicion_max_multiplier.max(1) };
        Self { least, most: least.saturating_mul(factor), confirmations }
    }

    /// `max(Min, Max - (Max - Min) * log(C + 1) / log(K + 1))`
    pub(super) fn timeout(&self, confirmations: usize) -> Duration {
        if self.confirmations == 0 {
            return self.least;
        }
        let confirmations = u32::try_from(confirmations).unwrap_or(u32::MAX).min(self.confirmations);
        let range = u64::try_from((self.most - self.least).as_nanos()).unwrap_or(u64::MAX);
        let part = u128::from(log2(confirmations + 1)) << 16;
        let part = part / u128::from(log2(self.confirmations + 1));
        let less = u64::try_from((u128::from(range) * part) >> 16).unwrap_or(u64::MAX);
        (self.most - Duration::from_nanos(less)).max(self.least)
    }
}

/// The logarithm to base 2 with 16 binary places; 0 for 0.
fn log2(n: u32) -> u64 {
    let Some(whole) = n.checked_ilog2() else { return 0 };
    // The mantissa with 31 places, in [1, 2): squaring it yields one place after the other.
    let mut mantissa = (u64::from(n) << 31) >> whole;
    let mut log = u64::from(whole);
    for _ in 0..16 {
        mantissa = (mantissa * mantissa) >> 31;
        log <<= 1;
        if mantissa >= 1 << 32 {
            mantissa >>= 1;
            log |= 1;
        }
    }
    log
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paper(alpha: u32) -> SwimConfig {
        let config = SwimConfig::new("a", ([10, 0, 0, 1], 1).into()).with_paper_times();
        SwimConfig { suspicion_multiplier: alpha, ..config }
    }

    #[test]
    fn logarithms_are_right_to_four_digits() {
        for n in [1_u32, 2, 3, 4, 7, 10, 128, 1000, 4096] {
            let exact = f64::from(n).log2();
            assert!((log2(n) as f64 / 65536.0 - exact).abs() < 1e-4, "{n}");
        }
    }

    #[test]
    fn a_suspicion_gets_shorter_with_each_confirmation_as_in_the_paper() {
        let limits = Limits::new(&paper(5), 128);
        let seconds: Vec<f64> = (0..=4).map(|c| limits.timeout(c).as_secs_f64()).collect();
        let least = 5.0 * 128_f64.log10();
        for (c, is) in seconds.iter().enumerate() {
            let part = ((c.min(3) + 1) as f64).log2() / 2.0;
            let want = (6.0 * least - 5.0 * least * part).max(least);
            assert!((is - want).abs() < 0.01, "{c}: {is} instead of {want}");
        }
    }

    #[test]
    fn two_members_wait_the_shortest_time_since_nobody_can_confirm() {
        assert_eq!(Limits::new(&paper(3), 2).timeout(0), Duration::from_secs(3));
    }

    #[test]
    fn an_accuser_counts_once_and_a_sign_of_life_a_bounded_number_of_times() {
        let limits = Limits::new(&paper(3), 128);
        let mut suspicion = Suspicion::new(Instant::ZERO, Id(1), &limits);
        assert!(!suspicion.confirm(Id(1), &limits));
        assert!(suspicion.confirm(Id(2), &limits) && !suspicion.confirm(Id(2), &limits));
        assert!(suspicion.confirm(Id(3), &limits) && suspicion.confirm(Id(4), &limits));
        assert!(!suspicion.confirm(Id(5), &limits), "three confirmations are all that count");
        assert_eq!(suspicion.deadline, Instant::ZERO + limits.timeout(3));
        let vetoes = (0..100).filter(|_| suspicion.veto(Instant::ZERO, &limits)).count();
        assert_eq!(vetoes, 10);
    }
}
