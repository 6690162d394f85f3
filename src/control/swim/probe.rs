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

/// Suspects that are passed over in one turn.
const PASSED_OVER_MAX: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Probes {
    current: Option<Probe>,
    /// Who is probed next, out of turn, if it still is a suspect then.
    second_opinion: Option<(Slot, Id)>,
    /// The end of the current interval, when the next probe begins.
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
    /// When others are asked.
    ask_at: Instant,
    asked: bool,
    relays: u32,
    /// Relays that should say at least that they could not reach it.
    nacks_missing: u32,
    acked: bool,
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

impl Relay {
    fn due(&self) -> Instant {
        self.nack_at.unwrap_or(self.ends_at)
    }
}

impl Probes {
    pub(super) fn due(&self) -> Option<Instant> {
        let ask_at = self.current.as_ref().filter(|probe| !probe.acked && !probe.asked);
        [ask_at.map(|probe| probe.ask_at), self.next_at, self.relays_due].into_iter().flatten().min()
    }

    pub(super) fn postpone(&mut self, by: Duration) {
        if let Some(probe) = &mut self.current {
            probe.ask_at = probe.ask_at + by;
            probe.void |= !probe.acked;
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
        self.current = None;
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
        if self.probes.current.as_ref().is_some_and(|p| !p.acked && !p.asked && p.ask_at <= now) {
            self.ask_others();
        }
        if self.probes.next_at.is_some_and(|at| at <= now) {
            self.judge_probe(now);
            self.start_probe(now);
        }
        if self.probes.relays_due.is_some_and(|due| due <= now) {
            self.run_relays(now);
        }
    }

    fn start_probe(&mut self, now: Instant) {
        self.probes.next_at = None;
        let out_of_turn = self.probes.second_opinion.take().filter(|(slot, id)| {
            self.members.same(*slot, *id) && self.members.get(*slot).status == Status::Suspect
        });
        let Some(slot) = out_of_turn.map(|(slot, _)| slot).or_else(|| self.next_in_turn()) else { return };
        let nonce = self.probes.next_nonce();
        self.probes.next_at = Some(now + self.health.scaled(self.config.ping_interval));
        self.probes.current = Some(Probe {
            slot,
            id: self.members.get(slot).id,
            nonce,
            ask_at: now + self.health.scaled(self.config.ping_timeout),
            asked: false,
            relays: 0,
            nacks_missing: 0,
            acked: false,
            void: false,
        });
        self.stats.probes += 1;
        self.send(Peer::Member(slot), Message::Ping { nonce, view: self.members.view() }, true);
    }

    /// The next one to probe. Suspects whom no further accuser could harm more are told so and passed over: the turn is
    /// better spent on others.
    fn next_in_turn(&mut self) -> Option<Slot> {
        let limits = self.limits();
        for _ in 0..PASSED_OVER_MAX.min(self.members.others().len()) {
            let slot = self.members.next_target(&mut self.rng)?;
            let suspicion = self.members.get(slot).suspicion.as_ref();
            let passed = self.config.extensions.second_opinion
                && suspicion.is_some_and(|suspicion| suspicion.is_confirmed(&limits));
            if !passed {
                return Some(slot);
            }
            self.send(Peer::Member(slot), Message::Gossip, true);
        }
        self.members.next_target(&mut self.rng)
    }

    /// Others accuse a member: perhaps it is this one that looks for itself.
    pub(super) fn consider_second_opinion(&mut self, slot: Slot) {
        if self.config.extensions.second_opinion
            && self.probes.second_opinion.is_none()
            && below(&mut self.rng, self.members.live()) < SECOND_OPINIONS
        {
            self.probes.second_opinion = Some((slot, self.members.get(slot).id));
        }
    }

    /// The direct answer is late: others try.
    fn ask_others(&mut self) {
        let Some(probe) = &mut self.probes.current else { return };
        probe.asked = true;
        let (target, nonce, slot) = (probe.id, probe.nonce, probe.slot);
        let mut picked = std::mem::take(&mut self.picked);
        let (fair, members) = (self.config.extensions.fair_health, &self.members);
        let unfit = |other| other == slot || fair && members.get(other).status == Status::Suspect;
        members.pick(self.config.indirect_probes, &mut self.rng, unfit, &mut picked);
        for relay in &picked {
            self.stats.indirect_probes += 1;
            self.send(Peer::Member(*relay), Message::PingRequest { nonce, target }, true);
        }
        if let Some(probe) = &mut self.probes.current {
            probe.relays = u32::try_from(picked.len()).expect("a handful of relays");
            probe.nacks_missing = probe.relays;
        }
        self.picked = picked;
    }

    /// The interval is over: what became of its probe.
    fn judge_probe(&mut self, now: Instant) {
        let Some(probe) = self.probes.current.take() else { return };
        if probe.acked {
            return;
        }
        if probe.void {
            self.stats.probes_void += 1;
            return;
        }
        if !self.members.same(probe.slot, probe.id) || !self.members.get(probe.slot).status.is_live() {
            return;
        }
        self.stats.probes_failed += 1;
        if self.config.extensions.local_health {
            self.health.worse(self.blame(&probe));
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
        if let Some(probe) = &mut self.probes.current
            && probe.nonce == nonce
            && (probe.id == from || probe.asked)
        {
            if !std::mem::replace(&mut probe.acked, true) {
                self.stats.acks += 1;
                self.health.better();
            }
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
        if let Some(probe) = &mut self.probes.current
            && probe.nonce == nonce
            && probe.asked
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
