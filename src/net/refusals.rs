//! Refused connections, counted by reason and told to the log at a bounded rate: one line for an address and minute.
//!
//! Pure: the time is an argument.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Between two lines about one address.
const QUIET: Duration = Duration::from_secs(60);
/// Addresses that are kept apart; all further ones share a line.
const ADDRESSES_MAX: usize = 1024;

/// Whom a line is about. Ports of inbound connections mean nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Who {
    Inbound(IpAddr),
    Outbound(SocketAddr),
    /// Everybody for whom there was no room.
    Rest,
}

#[derive(Default)]
pub struct Refusals {
    by_reason: BTreeMap<&'static str, u64>,
    quiet: BTreeMap<Who, Quiet>,
}

struct Quiet {
    until: Duration,
    untold: u64,
}

impl Refusals {
    /// Counts a refusal that is not to be logged.
    pub fn count(&mut self, reason: &'static str) {
        *self.by_reason.entry(reason).or_default() += 1;
    }

    /// Counts a refusal. When it is to be logged, returns how many before it were not. `now` counts from any fixed point.
    pub fn note(&mut self, now: Duration, who: Who, reason: &'static str) -> Option<u64> {
        self.count(reason);
        let mut who = who;
        if !self.quiet.contains_key(&who) && self.quiet.len() >= ADDRESSES_MAX {
            self.quiet.retain(|_, quiet| quiet.until > now);
            if self.quiet.len() >= ADDRESSES_MAX {
                who = Who::Rest;
            }
        }
        match self.quiet.get_mut(&who) {
            Some(quiet) if quiet.until > now => {
                quiet.untold += 1;
                None
            }
            Some(quiet) => {
                quiet.until = now + QUIET;
                Some(std::mem::take(&mut quiet.untold))
            }
            None => {
                self.quiet.insert(who, Quiet { until: now + QUIET, untold: 0 });
                Some(0)
            }
        }
    }

    /// By reason, in the order of their names.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        self.by_reason.iter().map(|(reason, count)| (*reason, *count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(n: u32) -> Who {
        Who::Inbound(IpAddr::from(n.to_be_bytes()))
    }

    #[test]
    fn an_address_gets_one_line_a_minute_with_the_count_of_what_was_not_told() {
        let mut refusals = Refusals::default();
        let at = Duration::from_secs;
        assert_eq!(refusals.note(at(0), from(1), "a"), Some(0));
        for second in 0..59 {
            assert_eq!(refusals.note(at(second), from(1), "b"), None);
        }
        assert_eq!(refusals.note(at(1), from(2), "a"), Some(0), "another address has its own line");
        assert_eq!(refusals.note(at(60), from(1), "a"), Some(59));
        assert_eq!(refusals.note(at(120), from(1), "a"), Some(0));
        assert_eq!(refusals.counts(), [("a", 4), ("b", 59)]);
    }

    #[test]
    fn more_addresses_than_are_kept_apart_share_a_line_and_take_no_memory() {
        let mut refusals = Refusals::default();
        let lines = (0..100_000).filter(|n| refusals.note(Duration::ZERO, from(*n), "a").is_some()).count();
        assert_eq!(lines, ADDRESSES_MAX + 1);
        assert_eq!(refusals.quiet.len(), ADDRESSES_MAX + 1);
        let later = Duration::from_secs(61);
        assert_eq!(refusals.note(later, from(200_000), "a"), Some(0));
        assert_eq!(refusals.quiet.len(), 1, "the old ones made room");
    }
}
