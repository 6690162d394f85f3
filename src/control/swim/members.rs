//! The table of members: by id, in the order of probing, and as hashes by which two tables are compared.
//!
//! Control core, pure. This member itself stands in it, first.

use std::collections::VecDeque;
use std::net::SocketAddr;

use highwater_shards::ids::Map;
use highwater_shards::time::Instant;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::RngCore as _;

use super::member::{Id, Member, RelayAllowance, Session, Slot, Status};
use super::wire::{BUCKETS, Record};
use super::{MEMBERS_MAX, RETIRED_MAX};

#[derive(Debug)]
pub(super) struct Members {
    slots: Vec<Option<Member>>,
    free: Vec<Slot>,
    by_id: Map<Id, Slot>,
    /// Live members but this one, in the order of probing.
    order: Vec<Slot>,
    /// The place in the order of the next one to probe.
    next: usize,
    /// Sums of the digests of live members.
    hashes: [u32; BUCKETS],
    /// Those that are dead or left, the oldest first; some are no more.
    tombstones: VecDeque<(Instant, Slot, Id)>,
    /// How many are dead or left.
    gone: usize,
    /// Boots of forgotten members.
    retired: VecDeque<u64>,
}

impl Members {
    pub(super) fn new(own: Member) -> Self {
        let mut members = Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_id: Map::default(),
            order: Vec::new(),
            next: 0,
            hashes: [0; BUCKETS],
            tombstones: VecDeque::new(),
            gone: 0,
            retired: VecDeque::new(),
        };
        members.by_id.insert(own.id, Slot::SELF);
        members.add_hash(&own);
        members.slots.push(Some(own));
        members
    }

    pub(super) fn find(&self, id: Id) -> Option<Slot> {
        self.by_id.get(&id).copied()
    }

    pub(super) fn get(&self, slot: Slot) -> &Member {
        self.slots[slot.index()].as_ref().expect("slots of members that are no more are not kept")
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> &mut Member {
        self.slots[slot.index()].as_mut().expect("slots of members that are no more are not kept")
    }

    /// The member at this slot, if it still is the one with this id.
    pub(super) fn same(&self, slot: Slot, id: Id) -> bool {
        self.slots.get(slot.index()).and_then(Option::as_ref).is_some_and(|member| member.id == id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &Member)> {
        (0..).map(Slot).zip(&self.slots).filter_map(|(slot, member)| Some((slot, member.as_ref()?)))
    }

    /// Live members, this one included.
    pub(super) fn live(&self) -> usize {
        self.order.len() + 1
    }

    /// Live members but this one.
    pub(super) fn others(&self) -> &[Slot] {
        &self.order
    }

    /// Dead or left.
    pub(super) fn gone(&self) -> usize {
        self.gone
    }

    pub(super) fn hashes(&self) -> impl Iterator<Item = u32> + '_ {
        self.hashes.iter().copied()
    }

    /// All hashes in one.
    pub(super) fn view(&self) -> u32 {
        self.hashes.iter().fold(0, |sum: u32, hash| sum.wrapping_add(*hash))
    }

    pub(super) fn bucket(id: Id) -> usize {
        (id.0 % BUCKETS as u64) as usize
    }

    fn add_hash(&mut self, member: &Member) {
        let hash = &mut self.hashes[Self::bucket(member.id)];
        *hash = hash.wrapping_add(member.digest() as u32);
    }

    fn take_hash(&mut self, slot: Slot) {
        let (bucket, digest) = (Self::bucket(self.get(slot).id), self.get(slot).digest() as u32);
        self.hashes[bucket] = self.hashes[bucket].wrapping_sub(digest);
    }

    /// Changes what counts for comparing tables: incarnation and status.
    pub(super) fn change(&mut self, slot: Slot, now: Instant, change: impl FnOnce(&mut Member)) {
        let was = self.get(slot).status;
        if was.is_live() {
            self.take_hash(slot);
        }
        let member = self.get_mut(slot);
        change(member);
        let (is, id) = (member.status, member.id);
        if is != was {
            member.since = now;
        }
        if is.is_live() {
            let digest = self.get(slot).digest() as u32;
            let hash = &mut self.hashes[Self::bucket(id)];
            *hash = hash.wrapping_add(digest);
        }
        if slot == Slot::SELF {
            return;
        }
        match (was.is_live(), is.is_live()) {
            (true, false) => {
                self.leave_order(slot);
                self.gone += 1;
                self.tombstones.push_back((now, slot, id));
            }
            (false, true) => {
                self.gone -= 1;
                self.order.push(slot);
            }
            _ => {}
        }
    }

    fn leave_order(&mut self, slot: Slot) {
        let place = self.order.iter().position(|other| *other == slot);
        let place = place.expect("every live member but this one stands in the order");
        self.order.remove(place);
        if place < self.next {
            self.next -= 1;
        }
    }

    /// A new live member, at a random place in the order. `None` when the table is full of live ones.
    pub(super) fn add(
        &mut self,
        now: Instant,
        record: &Record<'_>,
        rng: &mut Xoshiro256PlusPlus,
    ) -> Option<Slot> {
        if self.by_id.len() >= MEMBERS_MAX && !self.forget_oldest() {
            return None;
        }
        let id = Id::of(record.name);
        let member = Member {
            id,
            name: record.name.into(),
            addr: record.addr,
            metadata: record.metadata.into(),
            boot: record.boot,
            incarnation: record.incarnation,
            status: Status::Alive,
            since: now,
            suspicion: None,
            session: Session { doubted: self.is_retired(record.boot), ..Session::default() },
            told: None,
            relays: RelayAllowance::default(),
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            Slot(u32::try_from(self.slots.len() - 1).expect("the table is bounded"))
        });
        self.add_hash(&member);
        self.slots[slot.index()] = Some(member);
        self.by_id.insert(id, slot);
        self.order.push(slot);
        let (last, place) = (self.order.len() - 1, below(rng, self.order.len()));
        self.order.swap(last, place);
        Some(slot)
    }

    pub(super) fn is_retired(&self, boot: u64) -> bool {
        self.retired.contains(&boot)
    }

    /// Forgets tombstones from before this time; calls back with the slot of each.
    pub(super) fn forget_before(&mut self, before: Instant, mut forgotten: impl FnMut(Slot)) {
        while let Some((since, slot, id)) = self.tombstones.front().copied() {
            if since >= before {
                return;
            }
            self.tombstones.pop_front();
            if self.is_tombstone(since, slot, id) {
                self.forget(slot);
                forgotten(slot);
            }
        }
    }

    /// The time of the oldest tombstone, or an earlier one.
    pub(super) fn oldest_tombstone(&self) -> Option<Instant> {
        self.tombstones.front().map(|(since, _, _)| *since)
    }

    fn is_tombstone(&self, since: Instant, slot: Slot, id: Id) -> bool {
        self.same(slot, id) && !self.get(slot).status.is_live() && self.get(slot).since <= since
    }

    fn forget_oldest(&mut self) -> bool {
        while let Some((since, slot, id)) = self.tombstones.pop_front() {
            if self.is_tombstone(since, slot, id) {
                self.forget(slot);
                return true;
            }
        }
        false
    }

    fn forget(&mut self, slot: Slot) {
        let member = self.slots[slot.index()].take().expect("a tombstone stands in the table");
        self.by_id.remove(&member.id);
        self.free.push(slot);
        self.gone -= 1;
        if self.retired.len() >= RETIRED_MAX {
            self.retired.pop_front();
        }
        self.retired.push_back(member.boot);
    }

    /// The next one to probe. Each round goes through all in another order.
    pub(super) fn next_target(&mut self, rng: &mut Xoshiro256PlusPlus) -> Option<Slot> {
        if self.next >= self.order.len() {
            self.next = 0;
            for last in (1..self.order.len()).rev() {
                let place = below(rng, last + 1);
                self.order.swap(last, place);
            }
        }
        let slot = *self.order.get(self.next)?;
        self.next += 1;
        Some(slot)
    }

    /// Up to `count` random live members but this one, and none for which `not` holds.
    pub(super) fn pick(
        &self,
        count: usize,
        rng: &mut Xoshiro256PlusPlus,
        not: impl Fn(Slot) -> bool,
        picked: &mut Vec<Slot>,
    ) {
        picked.clear();
        let others = &self.order;
        // A few draws find enough in a large table; in a small one all are gone through from a random place on.
        if others.len() > 4 * count {
            for _ in 0..4 * count {
                let slot = others[below(rng, others.len())];
                if picked.len() < count && !picked.contains(&slot) && !not(slot) {
                    picked.push(slot);
                }
            }
            return;
        }
        let mut rest: [Slot; 64] = [Slot::SELF; 64];
        let mut len = 0;
        for slot in others.iter().take(rest.len()).filter(|slot| !not(**slot)) {
            rest[len] = *slot;
            len += 1;
        }
        while picked.len() < count && len > 0 {
            let place = below(rng, len);
            picked.push(rest[place]);
            len -= 1;
            rest[place] = rest[len];
        }
    }

    /// A random dead member (not one that left) that died no earlier than `since`.
    pub(super) fn random_dead(&self, since: Instant, rng: &mut Xoshiro256PlusPlus) -> Option<Slot> {
        if self.gone == 0 {
            return None;
        }
        let dead = |slot: Slot, id: Id| {
            self.same(slot, id) && self.get(slot).status == Status::Dead && self.get(slot).since >= since
        };
        let young = self.tombstones.partition_point(|(at, _, _)| *at < since);
        let len = self.tombstones.len() - young;
        let start = below(rng, len);
        let places = (start..len).chain(0..start).map(|place| self.tombstones[young + place]);
        places.map(|(_, slot, id)| (slot, id)).find(|(slot, id)| dead(*slot, *id)).map(|(slot, _)| slot)
    }

    /// Whether a live member has this address.
    pub(super) fn lives_at(&self, addr: SocketAddr) -> bool {
        self.iter().any(|(_, member)| member.addr == addr && member.status.is_live())
    }
}

/// Uniform below `n`; 0 when that is 0.
pub(super) fn below(rng: &mut Xoshiro256PlusPlus, n: usize) -> usize {
    let wide = u128::from(rng.next_u64()) * n as u128;
    (wide >> 64) as usize
}
