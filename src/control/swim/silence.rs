//! When nobody at all is heard, that says more of this member than of the others.
//!
//! Control core, pure. A member whose network is gone, or whose reads hang while its timers run, would accuse all others
//! and in the end hold them for dead. While it hears from nobody it judges nobody instead, but not for ever: whoever
//! remains of a cluster that crashed has to find that out. With one other member only there is nobody else to hear, so
//! then this is no sign of anything.

use std::time::Duration;

use highwater_shards::time::Instant;

use super::membership::Membership;

/// Intervals between pings without a datagram that are nothing unusual.
const USUAL_INTERVALS: u32 = 2;

#[derive(Debug)]
pub(super) struct Silence {
    /// When a datagram of a member came last.
    heard: Instant,
    /// Until when suspicions were made to wait.
    waited: Instant,
}

impl Silence {
    pub(super) fn new(now: Instant) -> Self {
        Self { heard: now, waited: now }
    }

    pub(super) fn hear(&mut self, now: Instant) {
        self.heard = now;
    }

    /// Time that did not count passed.
    pub(super) fn postpone(&mut self, by: Duration) {
        self.heard = self.heard + by;
        self.waited = self.waited + by;
    }

    /// How much longer suspicions have to wait, when silence counts from `usual` after the last datagram for `most`.
    fn wait(&mut self, now: Instant, usual: Duration, most: Duration) -> Duration {
        let start = self.heard + usual;
        let from = self.waited.max(start);
        let to = now.min(start + most);
        if to <= from {
            return Duration::ZERO;
        }
        self.waited = to;
        to.since(from)
    }
}

impl Membership {
    /// Whether nothing was heard since this time, and it is too early to conclude that nobody is there.
    pub(super) fn is_silent_since(&self, then: Instant, now: Instant) -> bool {
        let heard = self.silence.heard;
        self.counts_silence() && heard < then && now < heard + self.usual_silence() + self.longest_silence()
    }

    /// Suspicions wait for the time of a silence.
    pub(super) fn notice_silence(&mut self, now: Instant) {
        if !self.counts_silence() {
            return;
        }
        let (usual, most) = (self.usual_silence(), self.longest_silence());
        let by = self.silence.wait(now, usual, most);
        if by > Duration::ZERO {
            self.postpone_suspicions(by);
        }
    }

    fn counts_silence(&self) -> bool {
        self.config.extensions.silence_aware && self.members.others().len() >= 2
    }

    fn usual_silence(&self) -> Duration {
        self.config.ping_interval * USUAL_INTERVALS
    }

    /// As long as a suspicion that nobody shares.
    fn longest_silence(&self) -> Duration {
        self.limits().timeout(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_waited_once_from_the_usual_on_and_not_beyond_the_bound() {
        let at = |seconds: u64| Instant::ZERO + Duration::from_secs(seconds);
        let wait = |silence: &mut Silence, now: u64| {
            silence.wait(at(now), Duration::from_secs(2), Duration::from_secs(10)).as_secs()
        };
        let mut silence = Silence::new(at(5));
        let waits: Vec<u64> = [5, 7, 8, 8, 12, 30, 40].iter().map(|now| wait(&mut silence, *now)).collect();
        assert_eq!(waits, [0, 0, 1, 0, 4, 5, 0]);
        silence.hear(at(40));
        assert_eq!([wait(&mut silence, 41), wait(&mut silence, 45)], [0, 3]);
    }
}
