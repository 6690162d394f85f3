//! Comparing tables with others, page by page, until they agree.
//!
//! Control core, pure. Every ping and ack carries one hash of the sender's table. Where two differ, one sends the
//! hashes of 64 parts, the other lists the members of the parts that differ, and the first asks for what it lacks and
//! sends what the other lacks. Deaths are not passed on that way: whoever holds a member for dead tells it so.

use std::time::Duration;

use highwater_shards::time::Instant;

use super::NEW_PER_DATAGRAM_MAX;
use super::auth;
use super::keyring::TAG_BYTES;
use super::member::{Id, Slot, Status};
use super::members::{Members, below};
use super::membership::{Membership, Peer};
use super::wire::{self, BUCKETS, Message, Numbers, PAGE_ENTRY_BYTES, PAGE_FIXED_BYTES, PULL_FIXED_BYTES};

/// Pages in answer to one list of hashes.
const PAGES_MAX: usize = 4;
/// Datagrams of records in answer to one page or pull.
const RECORD_DATAGRAMS_MAX: usize = 10;
/// News spread on their own: while some wait, a difference is looked into only after so many intervals.
const PATIENCE_INTERVALS: u32 = 10;
const FEW_NEWS: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Sync {
    due: Option<Instant>,
    /// With whom; anyone if it is gone.
    with: Option<Id>,
    last: Option<Instant>,
}

impl Sync {
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    pub(super) fn postpone(&mut self, by: Duration) {
        self.due = self.due.map(|due| due + by);
    }
}

impl Membership {
    /// A peer's table has this hash.
    pub(super) fn compare_views(&mut self, now: Instant, peer: Peer, view: u32) {
        if view == self.members.view() || self.sync.due.is_some() || self.leaving {
            return;
        }
        // A few news will have spread before pages could; many at once are faster found by comparing.
        let patience = match self.queue.len() {
            0 => 0,
            1..FEW_NEWS => PATIENCE_INTERVALS,
            _ => 1,
        };
        let patience = self.config.ping_interval * patience;
        if self.sync.last.is_some_and(|last| now.since(last) < patience) {
            return;
        }
        let (id, _) = self.name_of(peer);
        self.arm_sync(now, Some(id));
    }

    pub(super) fn arm_sync(&mut self, now: Instant, with: Option<Id>) {
        if self.sync.due.is_none() {
            self.sync.with = with;
            self.sync.due = Some(now + self.jittered(self.config.ping_interval / 2));
        }
    }

    pub(super) fn run_sync(&mut self, now: Instant) {
        if self.sync.due.is_none_or(|due| due > now) {
            return;
        }
        self.sync.due = None;
        let others = self.members.others();
        if others.is_empty() {
            return;
        }
        let named = self.sync.with.and_then(|id| self.members.find(id));
        let slot = match named.filter(|slot| self.members.get(*slot).status.is_live()) {
            Some(slot) => slot,
            None => others[below(&mut self.rng, others.len())],
        };
        self.start_sync(now, Peer::Member(slot));
    }

    pub(super) fn start_sync(&mut self, now: Instant, peer: Peer) {
        self.sync.last = Some(now);
        self.stats.syncs += 1;
        let mut bytes = Vec::with_capacity(BUCKETS * 4);
        wire::hashes_bytes(self.members.hashes(), &mut bytes);
        self.send(peer, Message::Hashes(wire::list(&bytes)), false);
    }

    /// Lists the members of the parts that differ, from a random part on, so that a bound on pages leaves out others
    /// each time.
    pub(super) fn on_hashes(&mut self, peer: Peer, theirs: Numbers<'_, 4>) {
        let mut differing = [false; BUCKETS];
        for (bucket, (ours, theirs)) in self.members.hashes().zip(theirs.hashes()).enumerate() {
            differing[bucket] = ours != theirs;
        }
        if !differing.contains(&true) {
            return;
        }
        let first = below(&mut self.rng, BUCKETS);
        let mut entries: Vec<(usize, Id, super::Incarnation)> = self
            .members
            .iter()
            .filter(|(_, member)| member.status.is_live() && differing[Members::bucket(member.id)])
            .map(|(_, member)| {
                let place = (Members::bucket(member.id) + BUCKETS - first) % BUCKETS;
                (place, member.id, member.incarnation)
            })
            .collect();
        entries.sort_unstable();
        let room = (self.config.datagram_bytes_max - PAGE_FIXED_BYTES) / PAGE_ENTRY_BYTES;
        let (mut bytes, mut mask, mut pages) = (Vec::new(), 0_u64, 0);
        for place in (0..BUCKETS).filter(|place| differing[(place + first) % BUCKETS]) {
            let start = entries.partition_point(|entry| entry.0 < place);
            let end = entries.partition_point(|entry| entry.0 <= place);
            if bytes.len() / PAGE_ENTRY_BYTES + (end - start) > room && mask != 0 {
                self.send(peer, Message::Page { buckets: mask, entries: wire::list(&bytes) }, false);
                (mask, pages) = (0, pages + 1);
                bytes.clear();
                if pages == PAGES_MAX {
                    return;
                }
            }
            // A part that is too large for a page is listed in part, and then not said to be whole.
            let listed = (end - start).min(room);
            if listed == end - start {
                mask |= 1 << ((place + first) % BUCKETS);
            }
            for (_, id, incarnation) in &entries[start..start + listed] {
                wire::put_entry(&mut bytes, *id, *incarnation);
            }
            if mask == 0 {
                self.send(peer, Message::Page { buckets: 0, entries: wire::list(&bytes) }, false);
                pages += 1;
                bytes.clear();
                if pages == PAGES_MAX {
                    return;
                }
            }
        }
        if mask != 0 {
            self.send(peer, Message::Page { buckets: mask, entries: wire::list(&bytes) }, false);
        }
    }

    pub(super) fn on_page(&mut self, now: Instant, peer: Peer, buckets: u64, entries: Numbers<'_, 16>) {
        let most = (self.config.datagram_bytes_max - PULL_FIXED_BYTES) / 8;
        let most = most.min(NEW_PER_DATAGRAM_MAX * RECORD_DATAGRAMS_MAX);
        let mut new_left = self.allowance.left(now) as usize;
        let (mut lacking, mut owed, mut listed) = (Vec::new(), Vec::new(), Vec::new());
        let mut refused = false;
        for (id, incarnation) in entries.entries() {
            listed.push(id);
            let Some(slot) = self.members.find(id) else {
                if new_left > 0 && lacking.len() < most {
                    new_left -= 1;
                    lacking.push(id);
                } else {
                    refused = true;
                }
                continue;
            };
            let member = self.members.get(slot);
            if incarnation > member.incarnation {
                if lacking.len() < most {
                    lacking.push(id);
                }
            } else if incarnation < member.incarnation {
                if member.status != Status::Dead {
                    owed.push(slot);
                }
            } else if member.status == Status::Left {
                owed.push(slot);
            } else if member.status == Status::Dead {
                // The peer holds it for alive; if it is, it will say so.
                self.tell_dead(now, slot, false);
            }
        }
        listed.sort_unstable();
        for (slot, member) in self.members.iter() {
            let whole = buckets >> Members::bucket(member.id) & 1 == 1;
            if whole && member.status.is_live() && listed.binary_search(&member.id).is_err() {
                owed.push(slot);
            }
        }
        self.send_records(peer, &owed);
        if !lacking.is_empty() {
            self.pull(peer, &lacking);
        }
        if (!lacking.is_empty() || refused) && self.sync.due.is_none() {
            // There is more to learn, from anyone.
            self.sync.with = None;
            self.sync.due = Some(now + self.jittered(self.config.ping_interval / 4));
        }
    }

    /// Asks the peer for records.
    pub(super) fn pull(&mut self, peer: Peer, ids: &[Id]) {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.0.to_le_bytes()).collect();
        self.send(peer, Message::Pull(wire::list(&bytes)), false);
    }

    pub(super) fn on_pull(&mut self, peer: Peer, ids: Numbers<'_, 8>) {
        let slots: Vec<Slot> = ids.ids().filter_map(|id| self.members.find(id)).collect();
        self.send_records(peer, &slots);
    }

    fn send_records(&mut self, peer: Peer, slots: &[Slot]) {
        let most = self.config.datagram_bytes_max - TAG_BYTES;
        let mut slots =
            slots.iter().filter(|slot| self.members.get(**slot).status != Status::Dead).peekable();
        let mut packets: Vec<Vec<u8>> = Vec::new();
        while slots.peek().is_some() && packets.len() < RECORD_DATAGRAMS_MAX {
            let mut packet = Vec::with_capacity(most);
            auth::begin(&mut packet);
            Message::Records.write(&mut packet);
            let mut records = 0;
            while let Some(slot) = slots.peek() {
                let (member, mark) = (self.members.get(**slot), packet.len());
                wire::put_record(&mut packet, member, member.status);
                if packet.len() > most || records == NEW_PER_DATAGRAM_MAX {
                    packet.truncate(mark);
                    break;
                }
                records += 1;
                slots.next();
            }
            packets.push(packet);
        }
        for packet in packets {
            self.packet = packet;
            self.send_packet(peer);
        }
    }
}
