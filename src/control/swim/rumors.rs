//! What is said of members: what it changes here, and how it is passed on.
//!
//! Control core, pure. An accusation counts only for the incarnation that is known: an older one is answered, a newer
//! one is asked about, because whoever could invent it could outrank all that the accused will ever say.

use std::time::Duration;

use highwater_shards::time::Instant;

use super::auth::{self, Reject};
use super::events::Event;
use super::keyring::TAG_BYTES;
use super::member::{Id, Incarnation, Slot, Status};
use super::members::below;
use super::membership::{Membership, Peer, nanos};
use super::outbox::Notice;
use super::queue::Entry;
use super::suspicion::Suspicion;
use super::wire::{self, Message, News, Reader, Record};
use super::{NEW_PER_DATAGRAM_MAX, NEW_PER_SECOND_MAX};

/// News that are passed over because they do not fit, before a datagram is sent as it is.
const MISFITS_MAX: usize = 4;

/// How many new members may still be taken in: a bucket that refills.
#[derive(Debug)]
pub(super) struct Allowance {
    left: u32,
    since: Instant,
}

impl Allowance {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: NEW_PER_SECOND_MAX, since: now }
    }

    pub(super) fn left(&mut self, now: Instant) -> u32 {
        let each = Duration::from_secs(1) / NEW_PER_SECOND_MAX;
        let more = nanos(now.since(self.since)) / nanos(each);
        if u64::from(self.left) + more >= u64::from(NEW_PER_SECOND_MAX) {
            self.left = NEW_PER_SECOND_MAX;
            self.since = now;
        } else {
            self.left += more as u32;
            self.since = self.since + each * more as u32;
        }
        self.left
    }

    fn take(&mut self, now: Instant) -> bool {
        let some = self.left(now) > 0;
        self.left -= u32::from(some);
        some
    }
}

/// What one datagram did beside changing the table.
#[derive(Default)]
struct Effects {
    new_members: usize,
    accused: bool,
    pulled: bool,
}

impl Membership {
    /// Takes in what a peer says. `merge`: it passes on its table, it does not accuse.
    pub(super) fn on_news(
        &mut self,
        now: Instant,
        peer: Peer,
        news: Reader<'_>,
        merge: bool,
    ) -> Result<(), Reject> {
        let mut effects = Effects::default();
        let mut result = Ok(());
        for item in news {
            match item {
                Ok(News::Record(record)) => self.on_record(now, &record, merge, &mut effects),
                Ok(News::Suspect { id, incarnation, accuser }) => {
                    self.on_accusation(now, peer, (id, incarnation), accuser, Status::Suspect, &mut effects);
                }
                Ok(News::Dead { id, incarnation, accuser }) => {
                    self.on_accusation(now, peer, (id, incarnation), accuser, Status::Dead, &mut effects);
                }
                Ok(News::Left { id, incarnation }) => {
                    self.on_accusation(now, peer, (id, incarnation), id, Status::Left, &mut effects);
                }
                Err(_) => {
                    result = Err(Reject::Malformed);
                    break;
                }
            }
        }
        if effects.accused {
            self.refute(now);
            // Whoever still believes it hears the objection at once.
            if matches!(peer, Peer::Member(_)) {
                self.send(peer, Message::Gossip, true);
            }
        }
        result
    }

    fn on_record(&mut self, now: Instant, record: &Record<'_>, merge: bool, effects: &mut Effects) {
        let id = Id::of(record.name);
        if id == self.id {
            self.on_record_of_self(now, record, effects);
            return;
        }
        let Some(slot) = self.members.find(id) else {
            self.on_new(now, record, merge, effects);
            return;
        };
        let member = self.members.get(slot);
        if *member.name != *record.name {
            return;
        }
        let (known, status) = (member.incarnation, member.status);
        if record.incarnation > known {
            self.renew(now, slot, record, merge);
        } else if record.incarnation == known && record.boot == member.boot {
            match (status, record.status) {
                (Status::Alive, Status::Suspect) => self.suspect(now, slot, None),
                (Status::Alive | Status::Suspect, Status::Left) => self.mark_left(now, slot),
                // Others hold it for alive. If it is, it will say so when it hears that it counts as dead here.
                (Status::Dead, Status::Alive | Status::Suspect) if merge => self.tell_dead(now, slot, false),
                _ => {}
            }
        }
    }

    fn on_record_of_self(&mut self, now: Instant, record: &Record<'_>, effects: &mut Effects) {
        let own = self.members.get(Slot::SELF);
        if self.leaving || record.incarnation < own.incarnation {
            return;
        }
        if record.boot == own.boot {
            effects.accused |= record.status != Status::Alive && record.incarnation == own.incarnation;
            return;
        }
        // The count of our starts was lost: another life of this name outranks this one.
        let life = record.incarnation;
        let above = match life.boot_count.checked_add(1) {
            Some(boot_count) => Incarnation { boot_count, refutation: 0 },
            None => life.refuted(),
        };
        self.members.change(Slot::SELF, now, |own| own.incarnation = above);
        self.spread_self(now);
    }

    fn on_new(&mut self, now: Instant, record: &Record<'_>, merge: bool, effects: &mut Effects) {
        if record.status == Status::Left || self.leaving {
            return;
        }
        effects.new_members += 1;
        if effects.new_members > NEW_PER_DATAGRAM_MAX || !self.allowance.take(now) {
            self.stats.members_refused += 1;
            return;
        }
        let Some(slot) = self.members.add(now, record, &mut self.rng) else {
            self.stats.members_refused += 1;
            return;
        };
        self.begin_session(slot);
        self.joined_event(slot);
        self.pass_on(now, slot, merge);
        self.arm_probes(now);
        if record.status == Status::Suspect {
            self.suspect(now, slot, None);
        }
    }

    /// What one table lacked, others find by comparing too: it need not be told around.
    fn pass_on(&mut self, now: Instant, slot: Slot, merge: bool) {
        if merge {
            // Older news of it are out of date all the same.
            if self.queue.contains(slot) {
                self.queue.put(slot);
            }
            return;
        }
        self.queue.put(slot);
        self.arm_gossip(now);
    }

    /// The session of a member that is new or began a new life.
    fn begin_session(&mut self, slot: Slot) {
        let (id, boot) = (self.members.get(slot).id, self.members.get(slot).boot);
        let doubted = self.members.is_retired(boot);
        let proven = self.hello.adopt(id, boot);
        self.members.get_mut(slot).session = proven.unwrap_or_else(|| self.hello.new_session(doubted));
    }

    /// A later incarnation of a known member.
    fn renew(&mut self, now: Instant, slot: Slot, record: &Record<'_>, merge: bool) {
        let member = self.members.get(slot);
        let (was, other_life) = (member.status, member.boot != record.boot);
        let changed = *member.metadata != *record.metadata || member.addr != record.addr;
        // Without the extension, a suspicion that is under way goes on over a refutation that was not seen.
        let goes_on = was == Status::Suspect
            && record.status == Status::Suspect
            && !other_life
            && !self.config.extensions.fresh_timer;
        if was == Status::Suspect && !goes_on {
            self.end_suspicion(slot);
        }
        self.members.change(slot, now, |member| {
            member.incarnation = record.incarnation;
            member.addr = record.addr;
            member.boot = record.boot;
            if changed {
                member.metadata = record.metadata.into();
            }
            if !goes_on {
                member.status = Status::Alive;
            }
        });
        if other_life {
            self.begin_session(slot);
        }
        if !was.is_live() || other_life {
            self.joined_event(slot);
        } else {
            if was == Status::Suspect && !goes_on {
                let (name, incarnation) = self.named(slot);
                self.event(Event::Alive { name, incarnation });
            }
            if changed {
                let member = self.members.get(slot);
                let (name, incarnation) = (member.name.clone(), member.incarnation);
                let (addr, metadata) = (member.addr, member.metadata.clone());
                self.event(Event::MetadataChanged { name, addr, incarnation, metadata });
            }
        }
        self.pass_on(now, slot, merge);
        self.arm_probes(now);
        match record.status {
            Status::Suspect if !goes_on => self.suspect(now, slot, None),
            Status::Left => self.mark_left(now, slot),
            _ => {}
        }
    }

    /// Someone says that a member is suspect, dead, or has left.
    fn on_accusation(
        &mut self,
        now: Instant,
        peer: Peer,
        (id, incarnation): (Id, Incarnation),
        accuser: Id,
        status: Status,
        effects: &mut Effects,
    ) {
        if id == self.id {
            let own = self.members.get(Slot::SELF).incarnation;
            if self.leaving {
                return;
            }
            effects.accused |= incarnation == own;
            if incarnation < own && self.config.extensions.reassert {
                self.reassert(now, Slot::SELF);
            }
            return;
        }
        let Some(slot) = self.members.find(id) else { return };
        let (known, is) = (self.members.get(slot).incarnation, self.members.get(slot).status);
        if incarnation > known {
            if !std::mem::replace(&mut effects.pulled, true) {
                self.pull(peer, &[id]);
            }
            return;
        }
        if incarnation < known {
            if is.is_live() && self.config.extensions.reassert {
                self.reassert(now, slot);
            }
            return;
        }
        match status {
            Status::Left => self.mark_left(now, slot),
            Status::Suspect if is.is_live() => {
                self.suspect(now, slot, Some(accuser));
                if is == Status::Alive {
                    self.consider_second_opinion(now, slot);
                }
            }
            Status::Dead if is.is_live() => self.mark_dead(now, slot, false),
            _ => {}
        }
    }

    /// Says once more that the member lives, unless that is waiting to be said anyway.
    fn reassert(&mut self, now: Instant, slot: Slot) {
        if !self.queue.contains(slot) {
            self.stats.reassertions += 1;
            self.queue.put(slot);
            self.arm_gossip(now);
        }
    }

    /// Suspects a live member, or confirms that. No accuser: the suspicion was found in another one's table, which
    /// confirms nothing.
    pub(super) fn suspect(&mut self, now: Instant, slot: Slot, accuser: Option<Id>) {
        // Nobody accuses itself.
        let accuser = accuser
            .filter(|id| *id != self.members.get(slot).id)
            .filter(|id| self.members.find(*id).is_some_and(|slot| self.members.get(slot).status.is_live()));
        let limits = self.limits();
        let member = self.members.get_mut(slot);
        if let Some(suspicion) = &mut member.suspicion {
            let Some(accuser) = accuser else { return };
            if suspicion.confirm(accuser, &limits) {
                let deadline = suspicion.deadline;
                self.stats.confirmations += 1;
                self.note_deadline(deadline);
                self.queue.put(slot);
                self.arm_gossip(now);
            }
            return;
        }
        let suspicion = Suspicion::new(now, accuser.unwrap_or(Id::NOBODY), &limits);
        let deadline = suspicion.deadline;
        member.suspicion = Some(Box::new(suspicion));
        self.members.change(slot, now, |member| member.status = Status::Suspect);
        self.suspects.push(slot);
        self.note_deadline(deadline);
        self.stats.suspicions += 1;
        let (name, incarnation) = self.named(slot);
        self.event(Event::Suspected { name, incarnation });
        self.queue.put(slot);
        self.arm_gossip(now);
    }

    fn note_deadline(&mut self, deadline: Instant) {
        self.suspects_due = Some(self.suspects_due.map_or(deadline, |due| due.min(deadline)));
    }

    fn end_suspicion(&mut self, slot: Slot) {
        self.members.get_mut(slot).suspicion = None;
        self.suspects.retain(|other| *other != slot);
    }

    fn mark_dead(&mut self, now: Instant, slot: Slot, by_us: bool) {
        self.end_suspicion(slot);
        self.members.change(slot, now, |member| member.status = Status::Dead);
        self.stats.deaths += 1;
        let (name, incarnation) = self.named(slot);
        self.event(Event::Died { name, incarnation, by_us });
        self.queue.put(slot);
        self.arm_gossip(now);
        if self.reconnect_due.is_none() && !self.leaving {
            self.reconnect_due = Some(now + self.jittered(self.config.reconnect_interval));
        }
    }

    fn mark_left(&mut self, now: Instant, slot: Slot) {
        let was = self.members.get(slot).status;
        if was == Status::Left {
            return;
        }
        self.end_suspicion(slot);
        self.members.change(slot, now, |member| member.status = Status::Left);
        if was.is_live() {
            let (name, incarnation) = self.named(slot);
            self.event(Event::Left { name, incarnation });
        }
        self.queue.put(slot);
        self.arm_gossip(now);
    }

    pub(super) fn run_suspicions(&mut self, now: Instant) {
        if self.suspects_due.is_none_or(|due| due > now) {
            return;
        }
        let deadline = |members: &super::members::Members, slot: Slot| {
            members.get(slot).suspicion.as_ref().map(|suspicion| suspicion.deadline)
        };
        let mut at = 0;
        while let Some(slot) = self.suspects.get(at).copied() {
            // The dead leave the list.
            if deadline(&self.members, slot).is_some_and(|deadline| deadline <= now) {
                self.mark_dead(now, slot, true);
            } else {
                at += 1;
            }
        }
        self.suspects_due = self.suspects.iter().filter_map(|slot| deadline(&self.members, *slot)).min();
    }

    /// An authentic datagram came straight from this member.
    pub(super) fn on_sign_of_life(&mut self, now: Instant, slot: Slot) {
        match self.members.get(slot).status {
            Status::Suspect if self.config.extensions.evidence_veto => {
                let limits = self.limits();
                let suspicion = self.members.get_mut(slot).suspicion.as_mut();
                let counts = suspicion.expect("a suspect has a suspicion").veto(now, &limits);
                self.stats.vetoes += u64::from(counts);
            }
            Status::Dead => self.tell_dead(now, slot, false),
            _ => {}
        }
    }

    /// Tells a dead member that it counts as dead, so that it can object if it lives.
    pub(super) fn tell_dead(&mut self, now: Instant, slot: Slot, again: bool) {
        let member = self.members.get(slot);
        if !again && member.told.is_some_and(|told| now.since(told) < self.config.ping_interval) {
            return;
        }
        self.members.get_mut(slot).told = Some(now);
        auth::begin(&mut self.packet);
        Message::Gossip.write(&mut self.packet);
        wire::put_dead(&mut self.packet, self.members.get(slot), self.id);
        self.send_packet(Peer::Member(slot));
    }

    pub(super) fn run_reconnect(&mut self, now: Instant) {
        if self.reconnect_due.is_none_or(|due| due > now) {
            return;
        }
        self.reconnect_due = None;
        if let Some(slot) = self.members.random_dead(Instant::ZERO, &mut self.rng) {
            self.tell_dead(now, slot, true);
            self.reconnect_due = Some(now + self.jittered(self.config.reconnect_interval));
        }
    }

    fn refute(&mut self, now: Instant) {
        self.members.change(Slot::SELF, now, |own| own.incarnation = own.incarnation.refuted());
        self.stats.refutations += 1;
        if self.config.extensions.local_health {
            self.health.worse(1);
        }
        self.spread_self(now);
    }

    fn named(&self, slot: Slot) -> (std::sync::Arc<str>, Incarnation) {
        let member = self.members.get(slot);
        (member.name.clone(), member.incarnation)
    }

    fn joined_event(&mut self, slot: Slot) {
        let member = self.members.get(slot);
        let (name, incarnation) = (member.name.clone(), member.incarnation);
        let (addr, metadata) = (member.addr, member.metadata.clone());
        self.event(Event::Joined { name, addr, incarnation, metadata });
    }

    pub(super) fn arm_gossip(&mut self, now: Instant) {
        if self.gossip_due.is_none() && !self.members.others().is_empty() {
            let interval = usize::try_from(nanos(self.config.gossip_interval)).unwrap_or(usize::MAX);
            let phase = Duration::from_nanos(below(&mut self.rng, interval) as u64);
            self.gossip_due = Some(now + phase);
        }
    }

    pub(super) fn run_gossip(&mut self, now: Instant) {
        if self.gossip_due.is_none_or(|due| due > now) {
            return;
        }
        self.gossip_due = None;
        if self.queue.is_empty() || self.members.others().is_empty() {
            if self.leaving {
                self.outbox.notify(Notice::Gone);
            }
            return;
        }
        let mut picked = std::mem::take(&mut self.picked);
        self.members.pick(self.config.gossip_fanout, &mut self.rng, |_| false, &mut picked);
        // The recently dead get their share, so that those that live hear what is said of them.
        let young = now.as_nanos().saturating_sub(nanos(self.config.gossip_to_dead));
        for slot in &mut picked {
            let all = self.members.others().len() + self.members.gone();
            if below(&mut self.rng, all) >= self.members.others().len()
                && let Some(dead) = self.members.random_dead(Instant::from_nanos(young), &mut self.rng)
            {
                *slot = dead;
            }
        }
        for slot in &picked {
            self.send(Peer::Member(*slot), Message::Gossip, true);
        }
        self.picked = picked;
        self.gossip_due = Some(now + self.config.gossip_interval);
    }

    /// Fills the datagram up with news: first what is held against its receiver, then what was sent least.
    pub(super) fn add_news(&mut self, peer: Peer, packet: &mut Vec<u8>) {
        let most = self.config.datagram_bytes_max - TAG_BYTES;
        if let Peer::Member(slot) = peer {
            let member = self.members.get(slot);
            match (member.status, &member.suspicion) {
                (Status::Suspect, Some(suspicion)) if self.config.extensions.buddy => {
                    wire::put_suspect(packet, member, suspicion.accuser());
                }
                (Status::Dead, _) => wire::put_dead(packet, member, self.id),
                _ => {}
            }
        }
        if self.queue.is_empty() {
            return;
        }
        let limit = self.config.retransmit_multiplier * (self.members.live().ilog10() + 1);
        let mut taken: [Option<Entry>; 64] = [None; 64];
        let (mut count, mut misfits, mut records) = (0, 0, 0);
        while count < taken.len() && misfits < MISFITS_MAX && records < NEW_PER_DATAGRAM_MAX {
            let Some(mut entry) = self.queue.pop() else { break };
            let mark = packet.len();
            records += usize::from(self.put_news(entry.slot, packet));
            if packet.len() > most {
                packet.truncate(mark);
                misfits += 1;
            } else {
                entry.sent += 1;
            }
            taken[count] = Some(entry);
            count += 1;
        }
        for entry in taken.into_iter().flatten().filter(|entry| entry.sent < limit) {
            self.queue.put_back(entry);
        }
    }

    /// What there is to say of a member; whether that may be a new member to others.
    fn put_news(&self, slot: Slot, packet: &mut Vec<u8>) -> bool {
        let member = self.members.get(slot);
        match (member.status, &member.suspicion) {
            (Status::Alive, _) => {
                wire::put_record(packet, member, Status::Alive);
                return true;
            }
            (Status::Suspect, Some(suspicion)) => wire::put_suspect(packet, member, suspicion.accuser()),
            (Status::Suspect, None) => unreachable!("a suspect has a suspicion"),
            (Status::Dead, _) => wire::put_dead(packet, member, self.id),
            (Status::Left, _) => wire::put_left(packet, member),
        }
        false
    }
}
