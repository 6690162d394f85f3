//! Probing: one member in each interval, directly first, then through others; and probing for others.
//!
//! Control core, pure.

use std::time::Duration;

use highwater_shards::time::Instant;

use super::auth::Reject;
use super::member::{Id, Slot, Status};
use super::members::below;
use super::membership::{Membership, Peer, nanos};
use super::wire::Message;
use super::{RELAYS_MAX, RELAYS_PER_SECOND_MAX};

/// Members that probe a suspect out of turn, on average over the cluster.
const SECOND_OPINIONS: usize = 6;
/// Probes out of turn that one member has under way at most.
const OUT_OF_TURN_MAX: usize = 4;

/// Suspects that are passed over in one turn.
const PASSED_OVER_MAX: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Probes {
    /// At most one in turn and [`OUT_OF_TURN_MAX`] others. One that was answered is no longer among them.
    under_way: Vec<Probe>,
    /// When the next probe in turn begins; the one before ends at that time.
    next_at: Option<Instant>,
    nonce: u32,
    relays: Vec<Relay>,
    /// The earliest time of a relay, or an earlier one.
    relays_due: Option<Instant>,
}

#[derive(Debug)]
struct Probe {
    slot: Slot,
    id: Id,
    nonce: u32,
    in_turn: bool,
    began: Instant,
    /// When others are asked; `None` once they were.
    ask_at: Option<Instant>,
    ends_at: Instant,
    relays: u32,
    /// Relays that should say at least that they could not reach it.
    nacks_missing: u32,
    /// This process was stalled meanwhile, so silence means nothing.
    void: bool,
}

/// A probe for another member.
#[derive(Debug)]
struct Relay {
    nonce: u32,
    target: Id,
    requester: Slot,
    requester_id: Id,
    requester_nonce: u32,
    nack_at: Option<Instant>,
    ends_at: Instant,
}

impl Probe {
    fn due(&self) -> Instant {
        self.ask_at.unwrap_or(self.ends_at)
    }
}

impl Relay {
    fn due(&self) -> Instant {
        self.nack_at.unwrap_or(self.ends_at)
    }
}

impl Probes {
    pub(super) fn due(&self) -> Option<Instant> {
        let probes = self.under_way.iter().map(Probe::due).min();
        [probes, self.next_at, self.relays_due].into_iter().flatten().min()
    }

    pub(super) fn postpone(&mut self, by: Duration) {
        for probe in &mut self.under_way {
            probe.ask_at = probe.ask_at.map(|at| at + by);
            probe.ends_at = probe.ends_at + by;
            probe.void = true;
        }
        for relay in &mut self.relays {
            relay.nack_at = relay.nack_at.map(|at| at + by);
            relay.ends_at = relay.ends_at + by;
        }
        for due in [&mut self.next_at, &mut self.relays_due] {
            *due = due.map(|at| at + by);
        }
    }

    pub(super) fn stop(&mut self) {
        self.under_way.clear();
        self.next_at = None;
    }

    fn next_nonce(&mut self) -> u32 {
        self.nonce = self.nonce.wrapping_add(1);
        self.nonce
    }
}

impl Membership {
    /// There is someone to probe.
    pub(super) fn arm_probes(&mut self, now: Instant) {
        if self.probes.next_at.is_none() && !self.leaving {
            let interval = usize::try_from(nanos(self.config.ping_interval)).unwrap_or(usize::MAX);
            let phase = Duration::from_nanos(below(&mut self.rng, interval) as u64);
            self.probes.next_at = Some(now + phase);
        }
    }

    pub(super) fn run_probes(&mut self, now: Instant) {
        for at in 0..self.probes.under_way.len() {
            if self.probes.under_way[at].ask_at.is_some_and(|ask_at| ask_at <= now) {
                self.ask_others(at);
            }
        }
        let mut at = 0;
        while let Some(probe) = self.probes.under_way.get(at) {
            if probe.ends_at <= now {
                let probe = self.probes.under_way.remove(at);
                self.judge_probe(now, &probe);
            } else {
                at += 1;
            }
        }
        if self.probes.next_at.is_some_and(|at| at <= now) {
            self.probes.next_at = None;
            if let Some(slot) = self.next_in_turn() {
                self.probes.next_at = Some(self.start_probe(now, slot, true));
            }
        }
        if self.probes.relays_due.is_some_and(|due| due <= now) {
            self.run_relays(now);
        }
    }

    /// Returns when the probe ends.
    fn start_probe(&mut self, now: Instant, slot: Slot, in_turn: bool) -> Instant {
        let nonce = self.probes.next_nonce();
        let ends_at = now + self.health.scaled(self.config.ping_interval);
        self.probes.under_way.push(Probe {
            slot,
            id: self.members.get(slot).id,
            nonce,
            in_turn,
            began: now,
            ask_at: Some(now + self.health.scaled(self.config.ping_timeout)),
            ends_at,
            relays: 0,
            nacks_missing: 0,
            void: false,
        });
        self.stats.probes += 1;
        self.send(Peer::Member(slot), Message::Ping { nonce, view: self.members.view() }, true);
        ends_at
    }

    /// The next one to probe. Suspects whom this member cannot harm more, because it has accused them or enough others
    /// have, are told so and passed over: the turn is better spent on others.
    fn next_in_turn(&mut self) -> Option<Slot> {
        let limits = self.limits();
        for _ in 0..PASSED_OVER_MAX.min(self.members.others().len()) {
            let slot = self.members.next_target(&mut self.rng)?;
            let suspicion = self.members.get(slot).suspicion.as_ref();
            let passed = self.config.extensions.second_opinion
                && suspicion.is_some_and(|held| held.is_confirmed(&limits) || held.is_by(self.id));
            if !passed {
                return Some(slot);
            }
            self.send(Peer::Member(slot), Message::Gossip, true);
        }
        self.members.next_target(&mut self.rng)
    }

    /// Others accuse a member: perhaps it is this one that looks for itself.
    pub(super) fn consider_second_opinion(&mut self, now: Instant, slot: Slot) {
        let probes = &self.probes.under_way;
        if self.config.extensions.second_opinion
            && !self.leaving
            && probes.iter().filter(|probe| !probe.in_turn).count() < OUT_OF_TURN_MAX
            && !probes.iter().any(|probe| probe.slot == slot)
            && below(&mut self.rng, self.members.live()) < SECOND_OPINIONS
        {
            self.start_probe(now, slot, false);
        }
    }

    /// The direct answer is late: others try.
    fn ask_others(&mut self, at: usize) {
        let probe = &mut self.probes.under_way[at];
        probe.ask_at = None;
        let (target, nonce, slot) = (probe.id, probe.nonce, probe.slot);
        let mut picked = std::mem::take(&mut self.picked);
        let (fair, members) = (self.config.extensions.fair_health, &self.members);
        let unfit = |other| other == slot || fair && members.get(other).status == Status::Suspect;
        members.pick(self.config.indirect_probes, &mut self.rng, unfit, &mut picked);
        for relay in &picked {
            self.stats.indirect_probes += 1;
            self.send(Peer::Member(*relay), Message::PingRequest { nonce, target }, true);
        }
        let probe = &mut self.probes.under_way[at];
        probe.relays = u32::try_from(picked.len()).expect("a handful of relays");
        probe.nacks_missing = probe.relays;
        self.picked = picked;
    }

    /// The probe is over without an answer.
    fn judge_probe(&mut self, now: Instant, probe: &Probe) {
        let silent = self.is_silent_since(probe.began, now);
        if probe.void || silent {
            self.stats.probes_void += 1;
            if silent && self.config.extensions.local_health {
                self.health.worse(1);
            }
            return;
        }
        if !self.members.same(probe.slot, probe.id) || !self.members.get(probe.slot).status.is_live() {
            return;
        }
        self.stats.probes_failed += 1;
        if self.config.extensions.local_health {
            self.health.worse(self.blame(probe));
        }
        self.suspect(now, probe.slot, Some(self.id));
    }

    /// How much of a probe's failure is one's own fault: one for the failure, and one for each relay that should have
    /// said at least that it failed too.
    fn blame(&self, probe: &Probe) -> u32 {
        let suspicion = self.members.get(probe.slot).suspicion.as_ref();
        let shared = suspicion.is_some_and(|suspicion| suspicion.is_shared(self.id));
        // Who hears from most of its relays is heard and hears.
        let heard = probe.nacks_missing * 2 < probe.relays;
        match self.config.extensions.fair_health {
            true if heard => 0,
            true if shared => probe.nacks_missing,
            _ => probe.nacks_missing + 1,
        }
    }

    pub(super) fn on_ack(&mut self, peer: Peer, nonce: u32) {
        let (from, _) = self.name_of(peer);
        let mut probes = self.probes.under_way.iter();
        let answered =
            probes.position(|probe| probe.nonce == nonce && (probe.id == from || probe.ask_at.is_none()));
        if let Some(at) = answered {
            self.probes.under_way.remove(at);
            self.stats.acks += 1;
            self.health.better();
            return;
        }
        let relays = &mut self.probes.relays;
        let Some(at) = relays.iter().position(|relay| relay.nonce == nonce && relay.target == from) else {
            return;
        };
        let relay = relays.swap_remove(at);
        if self.members.same(relay.requester, relay.requester_id) {
            let ack = Message::Ack { nonce: relay.requester_nonce, view: self.members.view() };
            self.send(Peer::Member(relay.requester), ack, true);
        }
    }

    pub(super) fn on_nack(&mut self, peer: Peer, nonce: u32) {
        let mut probes = self.probes.under_way.iter_mut();
        if let Some(probe) = probes.find(|probe| probe.nonce == nonce && probe.ask_at.is_none())
            && matches!(peer, Peer::Member(_))
        {
            probe.nacks_missing = probe.nacks_missing.saturating_sub(1);
            self.stats.nacks += 1;
        }
    }

    /// A member asks for a probe of another one, which it cannot reach.
    pub(super) fn on_ping_request(
        &mut self,
        now: Instant,
        peer: Peer,
        nonce: u32,
        target: Id,
    ) -> Result<(), Reject> {
        let Peer::Member(requester) = peer else { return Err(Reject::Relay) };
        let second = Duration::from_secs(1);
        let member = self.members.get_mut(requester);
        let allowance = &mut member.relays;
        if now.since(allowance.since) >= second {
            allowance.since = now;
            allowance.used = 0;
        }
        if !member.status.is_live() || allowance.used >= RELAYS_PER_SECOND_MAX {
            return Err(Reject::Relay);
        }
        allowance.used += 1;
        let requester_id = member.id;
        if target == self.id {
            self.send(peer, Message::Ack { nonce, view: self.members.view() }, true);
            return Ok(());
        }
        let slot = self.members.find(target).filter(|slot| self.members.get(*slot).status.is_live());
        let Some(slot) = slot else { return Err(Reject::Relay) };
        if self.probes.relays.len() >= RELAYS_MAX {
            return Err(Reject::Relay);
        }
        let own_nonce = self.probes.next_nonce();
        // Even the shortest wait of a requester leaves time for a nack sent now.
        let nack_at = now + (self.config.ping_interval - self.config.ping_timeout) * 4 / 5;
        self.probes.relays.push(Relay {
            nonce: own_nonce,
            target,
            requester,
            requester_id,
            requester_nonce: nonce,
            nack_at: Some(nack_at),
            ends_at: now + self.config.ping_interval * 9,
        });
        self.probes.relays_due = Some(self.probes.relays_due.map_or(nack_at, |due| due.min(nack_at)));
        self.stats.relays += 1;
        self.send(Peer::Member(slot), Message::Ping { nonce: own_nonce, view: self.members.view() }, false);
        Ok(())
    }

    fn run_relays(&mut self, now: Instant) {
        let mut at = 0;
        while let Some(relay) = self.probes.relays.get_mut(at) {
            if relay.nack_at.is_some_and(|nack_at| nack_at <= now) {
                relay.nack_at = None;
                let (requester, id, nonce) = (relay.requester, relay.requester_id, relay.requester_nonce);
                if self.members.same(requester, id) {
                    self.send(Peer::Member(requester), Message::Nack { nonce }, true);
                }
            }
            if self.probes.relays[at].ends_at <= now {
                self.probes.relays.swap_remove(at);
            } else {
                at += 1;
            }
        }
        self.probes.relays_due = self.probes.relays.iter().map(Relay::due).min();
    }
}
