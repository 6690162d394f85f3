//! The foca crate as a member of the same network, for comparison.
//!
//! It is set up as its documentation has it for a local network, with the probe interval, gossip and suspicion time of
//! the other arms, and rejoins by itself when it learns that it was declared down. It has neither authentication nor a
//! clock: timers come back when they are due, as its contract has it.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use foca::{Config, Foca, Identity, NoCustomBroadcast, Notification, PostcardCodec, Runtime, State, Timer};
use highwater_shards::time::Instant;
use highwater_sim::rng::Rng;
use serde::{Deserialize, Serialize};

use crate::peer::{Did, Peer, suspicion_time};
use crate::world::{Said, Setup, addr, node_of};

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Id {
    node: u16,
    /// Of two with one address the higher one counts.
    life: u32,
}

impl Identity for Id {
    type Addr = u16;

    fn renew(&self) -> Option<Self> {
        Some(Self { life: self.life + 1, ..*self })
    }

    fn addr(&self) -> u16 {
        self.node
    }

    fn win_addr_conflict(&self, other: &Self) -> bool {
        self.life > other.life
    }
}

struct Entropy(Rng);

impl rand::TryRng for Entropy {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok((self.0.draw() >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.0.draw())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.0.draw().to_le_bytes()[..part.len()]);
        }
        Ok(())
    }
}

/// What it said during one call.
#[derive(Default)]
struct Heard {
    now: Instant,
    /// Its own timer on a suspect ran out.
    by_us: bool,
    sent: (u64, u64),
    did: VecDeque<Did>,
    timers: BTreeMap<(Instant, u64), Timer<Id>>,
    count: u64,
}

impl Runtime<Id> for &mut Heard {
    fn notify(&mut self, notification: Notification<'_, Id>) {
        let (id, what) = match notification {
            Notification::MemberUp(id) => (id, Said::Joined),
            Notification::MemberDown(id) => (id, Said::Died { by_us: self.by_us }),
            _ => return,
        };
        self.did.push_back(Did::Said { of: usize::from(id.node), what });
    }

    fn send_to(&mut self, to: Id, bytes: &[u8]) {
        self.sent = (self.sent.0 + 1, self.sent.1 + bytes.len() as u64);
        self.did.push_back(Did::Send { to: addr(usize::from(to.node)), bytes: bytes.to_vec() });
    }

    fn submit_after(&mut self, timer: Timer<Id>, after: Duration) {
        self.count += 1;
        self.timers.insert((self.now + after, self.count), timer);
    }
}

pub struct Theirs {
    foca: Foca<Id, PostcardCodec, Entropy, NoCustomBroadcast>,
    heard: Heard,
    seeds: Vec<Id>,
}

impl Peer for Theirs {
    fn new(setup: &Setup, node: usize, life: u32, now: Instant) -> Self {
        let members = u32::try_from(setup.members).ok().and_then(NonZeroU32::new).expect("a few members");
        let mut config = Config::new_lan(members);
        config.suspect_to_down_after = suspicion_time(setup);
        let id = Id { node: u16::try_from(node).expect("few members"), life: life << 16 };
        let entropy = Entropy(Rng::new(setup.seed, "foca member", node as u64 + (u64::from(life) << 32)));
        let foca = Foca::new(id, config, entropy, PostcardCodec);
        Self { foca, heard: Heard { now, ..Heard::default() }, seeds: Vec::new() }
    }

    fn join(&mut self, now: Instant, seeds: Vec<SocketAddr>) {
        self.heard.now = now;
        let of =
            |seed: &SocketAddr| Id { node: u16::try_from(node_of(*seed)).expect("few members"), life: 0 };
        self.seeds = seeds.iter().map(of).collect();
        for seed in &self.seeds {
            let _ = self.foca.announce(*seed, &mut self.heard);
        }
    }

    fn leave(&mut self, now: Instant) {
        self.heard.now = now;
        let _ = self.foca.leave_cluster(&mut self.heard);
        self.heard.did.push_back(Did::Gone);
    }

    fn datagram(&mut self, now: Instant, _: SocketAddr, bytes: &[u8]) {
        self.heard.now = now;
        let _ = self.foca.handle_data(bytes, &mut self.heard);
    }

    fn timeout(&mut self, now: Instant) {
        self.heard.now = now;
        while let Some(entry) = self.heard.timers.first_entry().filter(|entry| entry.key().0 <= now) {
            let timer = entry.remove();
            self.heard.by_us = matches!(timer, Timer::ChangeSuspectToDown { .. });
            let _ = self.foca.handle_timer(timer, &mut self.heard);
            self.heard.by_us = false;
        }
    }

    fn poll(&mut self) -> Option<Did> {
        self.heard.did.pop_front()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.heard.timers.first_key_value().map(|((at, _), _)| *at)
    }

    fn live_count(&self) -> usize {
        self.foca.iter_members().count() + 1
    }

    fn holds_dead(&self, of: usize) -> bool {
        let mut known = self.foca.iter_membership_state();
        known.any(|member| usize::from(member.id().node) == of && member.state() == State::Down)
    }

    fn dead_count(&self) -> usize {
        self.foca.iter_membership_state().filter(|member| member.state() == State::Down).count()
    }

    fn sent(&self) -> (u64, u64) {
        self.heard.sent
    }
}
