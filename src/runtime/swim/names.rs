//! Host names to ask for addresses: anew on each try, one lookup at a time, with longer and longer pauses while
//! nothing is found.
//!
//! Driver; control core. The resolver of the operating system blocks, so it runs on a thread that waits for it.

#![expect(clippy::disallowed_methods, reason = "driver: reads the clock")]

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant as Clock};

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore as _, SeedableRng as _};
use tokio::task::JoinHandle;

use crate::config::HostPort;

/// Pauses between lookups: the first, also after one that found everything, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Addresses that one name may have.
const ADDRESSES_PER_NAME_MAX: usize = 8;

pub(in crate::runtime) struct Names {
    names: Vec<Name>,
    lookup: Option<JoinHandle<Vec<Vec<SocketAddr>>>>,
    failures: u32,
    /// No lookup begins before.
    not_before: Option<Clock>,
    /// Somebody waits for addresses.
    is_asked: bool,
    rng: Xoshiro256PlusPlus,
}

struct Name {
    at: HostPort,
    /// What it was last; a name that is not found keeps that.
    found: Vec<SocketAddr>,
}

impl Names {
    pub(in crate::runtime) fn new(names: Vec<HostPort>, seed: u64) -> Self {
        let mut all = Self {
            names: Vec::new(),
            lookup: None,
            failures: 0,
            not_before: None,
            is_asked: false,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
        };
        all.replace(names);
        all
    }

    /// Other names. Those that stay keep their addresses. True if anything changed.
    pub(in crate::runtime) fn replace(&mut self, names: Vec<HostPort>) -> bool {
        if self.names.iter().map(|name| &name.at).eq(&names) {
            return false;
        }
        let old = std::mem::take(&mut self.names);
        let find = |at: HostPort| {
            let found = match at.host.parse::<IpAddr>() {
                Ok(ip) => vec![SocketAddr::new(ip, at.port)],
                Err(_) => {
                    let known = old.iter().find(|name| name.at == at);
                    known.map(|name| name.found.clone()).unwrap_or_default()
                }
            };
            Name { at, found }
        };
        self.names = names.into_iter().map(find).collect();
        // Its answer would be that for the old names.
        if let Some(lookup) = self.lookup.take() {
            lookup.abort();
        }
        self.not_before = None;
        true
    }

    /// Whether there is nothing to look up.
    pub(in crate::runtime) fn are_addresses(&self) -> bool {
        self.unresolved().next().is_none()
    }

    /// Wants addresses, which [`Self::next`] brings: at once if there are no names among them.
    pub(in crate::runtime) fn ask(&mut self) {
        self.is_asked = true;
    }

    /// The addresses that were asked for. May be dropped and called again without a loss.
    pub(in crate::runtime) async fn next(&mut self) -> Vec<SocketAddr> {
        loop {
            if let Some(lookup) = &mut self.lookup {
                let answers = lookup.await.unwrap_or_default();
                self.lookup = None;
                self.on_answers(answers);
                if !self.addresses().is_empty() {
                    self.is_asked = false;
                    return self.addresses();
                }
            }
            if !self.is_asked {
                std::future::pending::<()>().await;
            }
            if self.are_addresses() {
                self.is_asked = false;
                return self.addresses();
            }
            if let Some(at) = self.not_before {
                tokio::time::sleep_until(tokio::time::Instant::from_std(at)).await;
            }
            let names: Vec<HostPort> = self.unresolved().map(|name| name.at.clone()).collect();
            self.lookup = Some(tokio::spawn(look_up(names)));
        }
    }

    fn unresolved(&self) -> impl Iterator<Item = &Name> {
        self.names.iter().filter(|name| name.at.host.parse::<IpAddr>().is_err())
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        let mut all: Vec<SocketAddr> = Vec::new();
        for addr in self.names.iter().flat_map(|name| &name.found) {
            if !all.contains(addr) {
                all.push(*addr);
            }
        }
        all
    }

    fn on_answers(&mut self, answers: Vec<Vec<SocketAddr>>) {
        let mut answers = answers.into_iter();
        let mut missing = 0;
        for name in self.names.iter_mut().filter(|name| name.at.host.parse::<IpAddr>().is_err()) {
            match answers.next().filter(|found| !found.is_empty()) {
                Some(found) => name.found = found,
                None => missing += 1,
            }
        }
        self.failures = if missing == 0 { 0 } else { self.failures.saturating_add(1) };
        let pause = PAUSE_MIN.saturating_mul(1 << self.failures.min(10)).min(PAUSE_MAX);
        // Between half of it and all of it, so that nodes that lost their names together do not ask together.
        let nanos = u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX);
        let pause = Duration::from_nanos(nanos / 2 + self.rng.next_u64() % (nanos / 2));
        self.not_before = Some(Clock::now() + pause);
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        if let Some(lookup) = &self.lookup {
            lookup.abort();
        }
    }
}

/// The addresses of each name, none for one that is not found.
async fn look_up(names: Vec<HostPort>) -> Vec<Vec<SocketAddr>> {
    let mut all = Vec::with_capacity(names.len());
    for name in names {
        let found = tokio::net::lookup_host((name.host.as_str(), name.port)).await;
        all.push(match found {
            Ok(found) => found.take(ADDRESSES_PER_NAME_MAX).collect(),
            Err(error) => {
                tracing::debug!("{name} was not found: {error}");
                Vec::new()
            }
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(all: &[&str]) -> Vec<HostPort> {
        all.iter().map(|text| HostPort::parse(text).unwrap()).collect()
    }

    #[tokio::test]
    async fn addresses_need_no_lookup_and_names_get_one() {
        let mut all = Names::new(names(&["10.0.0.1:1", "[::1]:2"]), 1);
        all.ask();
        let want: Vec<SocketAddr> = ["10.0.0.1:1", "[::1]:2"].map(|text| text.parse().unwrap()).into();
        assert_eq!(all.next().await, want);
        assert!(all.replace(names(&["localhost:3", "10.0.0.1:1"])));
        assert!(!all.replace(names(&["localhost:3", "10.0.0.1:1"])), "the same");
        all.ask();
        let found = all.next().await;
        assert!(found.iter().any(|addr| addr.ip().is_loopback() && addr.port() == 3), "{found:?}");
        assert!(found.contains(&want[0]));
    }

    #[test]
    fn pauses_grow_while_a_name_is_missing_and_a_missing_name_keeps_its_addresses() {
        let mut all = Names::new(names(&["a.example:1", "10.0.0.1:1", "b.example:2"]), 1);
        let [a, b]: [SocketAddr; 2] = ["10.0.0.7:1", "10.0.0.8:2"].map(|text| text.parse().unwrap());
        all.on_answers(vec![vec![a], vec![b]]);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            all.on_answers(vec![Vec::new(), vec![b]]);
            pauses.push(all.not_before.unwrap().saturating_duration_since(Clock::now()));
        }
        assert!(all.addresses().contains(&a) && all.addresses().len() == 3, "{:?}", all.addresses());
        assert!(pauses[0] < Duration::from_secs(1) && pauses[11] > Duration::from_secs(10), "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= PAUSE_MAX));
        all.on_answers(vec![vec![a], vec![b]]);
        assert_eq!(all.failures, 0);
    }
}
