//! Whether a follower that is behind comes closer to the end of its leader's log, and how urgent it is that it does.
//! Floor 1, pure.
//!
//! What nobody waits for gives way to what producers wait for. Alone, that rule would leave a follower behind for as long
//! as producers take all that the disks and cores can do, and the partition with one replica less. So who gets closer
//! too slowly for [`LOOK_EVERY`] is served with more urgency, a step at a time, and who gets closer fast with less.

use std::time::Duration;

use crate::ids::Offset;
use crate::time::Instant;

/// So long a follower is watched before its urgency changes.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The most urgent: sixteen times as much is under way as at ease.
const URGENCY_MAX: u8 = 4;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chase {
    urgency: u8,
    /// When it was looked at last, where the follower was then, and where the log ended.
    seen: Option<(Instant, Offset, Offset)>,
    /// It has been sent all that there was, since then.
    was_at_end: bool,
}

impl Chase {
    /// The follower is sent what lies between `next` and `end`.
    pub fn look(&mut self, now: Instant, next: Offset, end: Offset) {
        let Some((at, next_before, end_before)) = self.seen else {
            self.seen = Some((now, next, end));
            return;
        };
        if now < at + LOOK_EVERY {
            return;
        }
        self.seen = Some((now, next, end));
        let [sent, grown, left] = [(next_before, next), (end_before, end), (next, end)]
            .map(|(from, to)| to.0.saturating_sub(from.0));
        // One that is almost there has only to come as close as it takes to be in sync.
        let (is_slow, is_far) = (sent < grown + grown / 4, left > grown / 4);
        if std::mem::take(&mut self.was_at_end) || sent > grown * 2 {
            self.urgency = self.urgency.saturating_sub(1);
        } else if is_slow && is_far {
            self.urgency = (self.urgency + 1).min(URGENCY_MAX);
        }
    }

    /// It was sent all that there is.
    pub fn reached_end(&mut self) {
        self.was_at_end = true;
    }

    pub fn is_urgent(&self) -> bool {
        self.urgency > 0
    }

    /// What of `bytes` at ease is right now.
    pub fn scale(&self, bytes: usize) -> usize {
        bytes.saturating_mul(1 << self.urgency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The urgency after each second in which so many records were appended and sent, to a follower that is 1,000 behind.
    fn urgencies(seconds: &[(u64, u64)]) -> Vec<u8> {
        let (mut next, mut end) = (0, 1000);
        let mut chase = Chase::default();
        chase.look(Instant::ZERO, Offset(next), Offset(end));
        let seconds = seconds.iter().zip(1..);
        seconds
            .map(|(&(grown, sent), second)| {
                (next, end) = (next + sent, end + grown);
                chase.look(Instant::ZERO + LOOK_EVERY * second, Offset(next), Offset(end));
                chase.urgency
            })
            .collect()
    }

    #[test]
    fn who_does_not_come_closer_is_served_with_more_and_more_urgency() {
        assert_eq!(urgencies(&[(100, 10); 6]), [1, 2, 3, 4, 4, 4]);
        assert_eq!(urgencies(&[(100, 124), (100, 124)]), [1, 2]);
    }

    #[test]
    fn who_comes_closer_is_not_hurried_and_who_does_so_fast_makes_room() {
        assert_eq!(urgencies(&[(100, 126); 3]), [0, 0, 0]);
        assert_eq!(urgencies(&[(0, 1); 3]), [0, 0, 0], "a log that does not grow is caught up with one day");
        assert_eq!(
            urgencies(&[(100, 0), (100, 0), (50, 80), (50, 101), (50, 101), (50, 101)]),
            [1, 2, 2, 1, 0, 0]
        );
    }

    #[test]
    fn who_is_almost_there_stays_as_urgent_as_it_is() {
        assert_eq!(urgencies(&[(4000, 100), (4000, 7950), (4000, 4000), (4000, 3990)]), [1, 1, 1, 1]);
    }

    #[test]
    fn who_was_sent_all_there_is_makes_room() {
        let mut chase = Chase { urgency: 2, ..Chase::default() };
        let mut look = |second, is_at_end| {
            if is_at_end {
                chase.reached_end();
            }
            chase.look(Instant::ZERO + LOOK_EVERY * second, Offset(0), Offset(u64::from(second) * 100));
            chase.urgency
        };
        assert_eq!([(0, false), (1, true), (2, true), (3, false)].map(|(s, is)| look(s, is)), [2, 1, 0, 1]);
    }

    #[test]
    fn it_is_not_judged_before_its_time() {
        let mut chase = Chase::default();
        for ms in [0, 500, 999] {
            chase.look(Instant::ZERO + Duration::from_millis(ms), Offset(0), Offset(ms));
        }
        assert!(!chase.is_urgent());
        chase.look(Instant::ZERO + LOOK_EVERY, Offset(0), Offset(1000));
        assert!(chase.is_urgent());
        assert_eq!((chase.scale(512), chase.scale(usize::MAX)), (1024, usize::MAX));
    }
}
