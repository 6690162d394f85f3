//! A member of the simulated network: the production code, or another implementation beside it.

use std::net::SocketAddr;
use std::time::Duration;

use highwater::control::swim::{Entropy, Event, Input, Keyring, Membership, Output, Status, SwimConfig};
use highwater_shards::time::Instant;
use highwater_sim::rng::Rng;

use crate::world::{Said, Setup, addr};

/// What a member asks of its driver, and what it says of others.
pub enum Did {
    Send {
        to: SocketAddr,
        bytes: Vec<u8>,
    },
    Said {
        of: usize,
        what: Said,
    },
    /// It has left.
    Gone,
}

pub trait Peer: Sized {
    fn new(setup: &Setup, node: usize, life: u32, now: Instant) -> Self;

    fn join(&mut self, now: Instant, seeds: Vec<SocketAddr>);

    fn leave(&mut self, now: Instant);

    fn datagram(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]);

    fn timeout(&mut self, now: Instant);

    /// Drained after each of the calls above.
    fn poll(&mut self) -> Option<Did>;

    fn poll_timeout(&self) -> Option<Instant>;

    /// Members held for live, itself among them.
    fn live_count(&self) -> usize;

    fn holds_dead(&self, of: usize) -> bool;

    /// How many members it holds for dead.
    fn dead_count(&self) -> usize;

    /// Datagrams and bytes that it sent.
    fn sent(&self) -> (u64, u64);
}

/// The cluster of all members, and the secret of its key 1.
pub const CLUSTER: &str = "experiment";
pub const SECRET: [u8; 32] = [7; 32];

pub struct Ours {
    pub member: Membership,
}

fn name(node: usize) -> String {
    format!("node-{node}")
}

fn of_name(name: &str) -> usize {
    name.strip_prefix("node-").and_then(|n| n.parse().ok()).expect("names are made here")
}

impl Peer for Ours {
    fn new(setup: &Setup, node: usize, life: u32, now: Instant) -> Self {
        let mut config = SwimConfig::new(&name(node), addr(node));
        if setup.paper_times {
            config = config.with_paper_times();
        }
        config.suspicion_multiplier = setup.alpha;
        config.extensions = setup.extensions;
        config.boot_count = life;
        let mut draw = Rng::new(setup.seed, "swim member", node as u64 + (u64::from(life) << 32));
        let mut entropy = [0; 32];
        entropy.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&draw.draw().to_le_bytes()));
        let keys = Keyring::new(CLUSTER, 1, &SECRET).expect("a good secret");
        let member = Membership::new(config, keys, &Entropy(entropy), now).expect("a good configuration");
        Self { member }
    }

    fn join(&mut self, now: Instant, seeds: Vec<SocketAddr>) {
        self.member.handle(now, Input::Join { seeds });
    }

    fn leave(&mut self, now: Instant) {
        self.member.handle(now, Input::Leave);
    }

    fn datagram(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        self.member.handle(now, Input::Datagram { from, bytes });
    }

    fn timeout(&mut self, now: Instant) {
        self.member.handle(now, Input::Timeout);
    }

    fn poll(&mut self) -> Option<Did> {
        loop {
            let said = match self.member.poll_output()? {
                Output::Send { to, bytes } => return Some(Did::Send { to, bytes: bytes.to_vec() }),
                Output::Gone => return Some(Did::Gone),
                Output::Event(event) => said(&event),
                _ => None,
            };
            if let Some((of, what)) = said {
                return Some(Did::Said { of, what });
            }
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.member.poll_timeout()
    }

    fn live_count(&self) -> usize {
        self.member.live_count()
    }

    fn holds_dead(&self, of: usize) -> bool {
        let name = name(of);
        self.member.members().any(|member| **member.name == *name && member.status == Status::Dead)
    }

    fn dead_count(&self) -> usize {
        self.member.members().filter(|member| member.status == Status::Dead).count()
    }

    fn sent(&self) -> (u64, u64) {
        let stats = self.member.stats();
        (stats.datagrams_sent, stats.bytes_sent)
    }
}

fn said(event: &Event) -> Option<(usize, Said)> {
    Some(match event {
        Event::Joined { name, .. } => (of_name(name), Said::Joined),
        Event::Suspected { name, .. } => (of_name(name), Said::Suspected),
        Event::Alive { name, .. } => (of_name(name), Said::Alive),
        Event::Left { name, .. } => (of_name(name), Said::Left),
        Event::Died { name, by_us, .. } => (of_name(name), Said::Died { by_us: *by_us }),
        _ => return None,
    })
}

/// The suspicion time of plain SWIM: alpha * log10(members) intervals of a second.
pub fn suspicion_time(setup: &Setup) -> Duration {
    Duration::from_secs_f64(f64::from(setup.alpha) * (setup.members as f64).log10().max(1.0))
}
