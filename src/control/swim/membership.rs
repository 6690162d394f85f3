//! [`Membership`]: the state of one member, and where its inputs go.
//!
//! Control core, pure.

use std::net::SocketAddr;
use std::time::Duration;

use highwater_shards::time::Instant;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng as _;
use siphasher::sip::SipHasher24;

use super::METADATA_BYTES_MAX;
use super::auth::{self, Reject, To};
use super::config::{ConfigError, SwimConfig};
use super::events::{Event, Input, MemberView, Output, SwimStats};
use super::health::Health;
use super::hello::Hello;
use super::keyring::Keyring;
use super::member::{Id, Incarnation, Member, RelayAllowance, Session, Slot, Status};
use super::members::Members;
use super::outbox::{Notice, Outbox};
use super::probe::Probes;
use super::queue::Queue;
use super::rumors::Allowance;
use super::silence::Silence;
use super::suspicion::Limits;
use super::sync::Sync;
use super::wire::{self, CHALLENGE_BYTES, Message};

/// Random bytes that nobody else knows: the only source of chance in a [`Membership`].
pub struct Entropy(pub [u8; 32]);

impl Entropy {
    /// A number for one purpose, from which neither the others nor the bytes can be found.
    fn derive(&self, purpose: u8) -> u64 {
        let (key, rest) = self.0.split_at(16);
        let key: &[u8; 16] = key.try_into().expect("half of 32 bytes");
        let mut text = [0; 17];
        text[0] = purpose;
        text[1..].copy_from_slice(rest);
        SipHasher24::new_with_key(key).hash(&text)
    }
}

/// One member of a cluster: see the module.
pub struct Membership {
    pub(super) config: SwimConfig,
    pub(super) keys: Keyring,
    pub(super) id: Id,
    pub(super) boot: u64,
    pub(super) rng: Xoshiro256PlusPlus,
    pub(super) members: Members,
    pub(super) queue: Queue,
    pub(super) outbox: Outbox,
    pub(super) health: Health,
    pub(super) probes: Probes,
    pub(super) hello: Hello,
    pub(super) sync: Sync,
    pub(super) allowance: Allowance,
    pub(super) silence: Silence,
    /// Suspects, with the earliest deadline among them or an earlier time.
    pub(super) suspects: Vec<Slot>,
    pub(super) suspects_due: Option<Instant>,
    pub(super) gossip_due: Option<Instant>,
    pub(super) reconnect_due: Option<Instant>,
    pub(super) leaving: bool,
    pub(super) stats: SwimStats,
    /// The datagram that is being written.
    pub(super) packet: Vec<u8>,
    pub(super) picked: Vec<Slot>,
}

/// Where a datagram goes: to a member, or to a peer that only proved who it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Peer {
    Member(Slot),
    Greeted(usize),
}

impl Membership {
    /// A member that is alone until it is told to join others. `now` is the driver's clock, as in all inputs.
    pub fn new(
        config: SwimConfig,
        keys: Keyring,
        entropy: &Entropy,
        now: Instant,
    ) -> Result<Self, ConfigError> {
        config.check()?;
        let own = Member {
            id: Id::of(&config.name),
            name: config.name.as_str().into(),
            addr: config.addr,
            metadata: config.metadata.as_slice().into(),
            boot: entropy.derive(1),
            incarnation: Incarnation { boot_count: config.boot_count, refutation: 0 },
            status: Status::Alive,
            since: now,
            suspicion: None,
            session: Session::default(),
            told: None,
            relays: RelayAllowance::default(),
        };
        let challenges = [entropy.derive(2), entropy.derive(3)];
        Ok(Self {
            keys,
            id: own.id,
            boot: own.boot,
            rng: Xoshiro256PlusPlus::seed_from_u64(entropy.derive(4)),
            members: Members::new(own),
            queue: Queue::default(),
            outbox: Outbox::default(),
            health: Health::default(),
            probes: Probes::default(),
            hello: Hello::new(challenges),
            sync: Sync::default(),
            allowance: Allowance::new(now),
            silence: Silence::new(now),
            suspects: Vec::new(),
            suspects_due: None,
            gossip_due: None,
            reconnect_due: None,
            leaving: false,
            stats: SwimStats::default(),
            packet: Vec::with_capacity(config.datagram_bytes_max),
            picked: Vec::new(),
            config,
        })
    }

    pub fn handle(&mut self, now: Instant, input: Input<'_>) {
        self.notice_stall(now);
        self.notice_silence(now);
        match input {
            Input::Datagram { from, bytes } => self.handle_datagram(now, from, bytes),
            Input::Timeout => self.on_timeout(now),
            Input::Join { seeds } => self.join(now, seeds),
            Input::Leave => self.leave(now),
            Input::Metadata(metadata) => self.set_metadata(now, &metadata),
        }
    }

    /// What is to be done, until it says `None`.
    pub fn poll_output(&mut self) -> Option<Output<'_>> {
        self.outbox.poll()
    }

    /// When [`Input::Timeout`] is due next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let tombstone = self.members.oldest_tombstone().map(|oldest| oldest + self.config.tombstone_age);
        self.due().into_iter().chain(tombstone).min()
    }

    /// The earliest of the timers that judge others or serve them.
    fn due(&self) -> Option<Instant> {
        [
            self.probes.due(),
            self.suspects_due,
            self.gossip_due,
            self.reconnect_due,
            self.hello.due(),
            self.sync.due(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// All members that are known, this one first; the dead and those that left for a while.
    pub fn members(&self) -> impl Iterator<Item = MemberView<'_>> {
        self.members.iter().map(|(_, member)| MemberView {
            name: &member.name,
            addr: member.addr,
            status: member.status,
            incarnation: member.incarnation,
            metadata: &member.metadata,
        })
    }

    /// Live members, this one included.
    pub fn live_count(&self) -> usize {
        self.members.live()
    }

    /// The keys, to be changed at run time.
    pub fn keyring(&mut self) -> &mut Keyring {
        &mut self.keys
    }

    /// Each key with the number of authentic datagrams that arrived under it, the one in use first.
    pub fn keys(&self) -> impl Iterator<Item = (u8, u64)> + '_ {
        self.keys.received()
    }

    /// 0 is healthy, 8 is the worst.
    pub fn local_health(&self) -> u32 {
        self.health.value()
    }

    pub fn stats(&self) -> &SwimStats {
        &self.stats
    }

    fn handle_datagram(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        self.stats.datagrams_received += 1;
        self.stats.bytes_received += bytes.len() as u64;
        if let Err(reject) = self.take_in(now, from, bytes) {
            self.stats.rejected[reject as usize] += 1;
        }
    }

    fn take_in(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) -> Result<(), Reject> {
        let max = self.config.datagram_bytes_max;
        let opened = auth::open(&mut self.keys, self.id, self.boot, max, bytes)?;
        if opened.to_any {
            return self.on_join(now, from, &opened, bytes.len());
        }
        if opened.from == self.id {
            return Err(Reject::UnknownBoot);
        }
        let Some(peer) = self.session_of(&opened)? else {
            return self.on_stranger(now, from, &opened, bytes.len());
        };
        self.on_body(now, peer, opened.body)
    }

    /// Whose session the datagram belongs to, if it has one. A number that came before is refused.
    fn session_of(&mut self, opened: &auth::Opened<'_>) -> Result<Option<Peer>, Reject> {
        let slot = self.members.find(opened.from).filter(|slot| {
            let member = self.members.get(*slot);
            member.boot == opened.from_boot && !member.session.doubted
        });
        let (peer, session) = match slot {
            Some(slot) => (Peer::Member(slot), &mut self.members.get_mut(slot).session),
            None => match self.hello.greeted(opened.from, opened.from_boot) {
                Some(at) => (Peer::Greeted(at), self.hello.session(at)),
                None => return Ok(None),
            },
        };
        if !session.window.accept(opened.number) {
            return Err(Reject::Replay);
        }
        session.heard = true;
        Ok(Some(peer))
    }

    /// What a peer says that is authentic and came for the first time.
    pub(super) fn on_body(&mut self, now: Instant, peer: Peer, body: &[u8]) -> Result<(), Reject> {
        let (message, news) = wire::read(body).map_err(|_| Reject::Malformed)?;
        if let Peer::Member(slot) = peer {
            self.silence.hear(now);
            self.on_sign_of_life(now, slot);
        }
        // Accusations of this member come first in a datagram: the answer to the message then carries the objection.
        let merge = matches!(message, Message::Records);
        let (id, boot) = self.name_of(peer);
        let greeted = matches!(peer, Peer::Greeted(_));
        self.on_news(now, peer, news, merge)?;
        // Taking the news in may have made a member of the peer, or have shown that another life of it is the later.
        let Some(peer) = self.settled(peer, id, boot) else { return Ok(()) };
        if greeted && matches!((peer, message), (Peer::Member(_), Message::Records)) {
            // The seed has welcomed us.
            self.start_sync(now, peer);
        }
        match message {
            Message::Ping { nonce, view } => {
                self.send(peer, Message::Ack { nonce, view: self.members.view() }, true);
                self.compare_views(now, peer, view);
            }
            Message::Ack { nonce, view } => {
                self.on_ack(peer, nonce);
                self.compare_views(now, peer, view);
            }
            Message::PingRequest { nonce, target } => self.on_ping_request(now, peer, nonce, target)?,
            Message::Nack { nonce } => self.on_nack(peer, nonce),
            Message::Gossip | Message::Records => {}
            Message::Join { .. } => return Err(Reject::Unasked),
            Message::Challenge { challenge, .. } => {
                self.send_echo(peer, challenge);
                // Whatever it was sent meanwhile did not count.
                self.arm_sync(now, Some(id));
            }
            Message::Echo { .. } => self.welcome(peer),
            Message::Hashes(hashes) => self.on_hashes(peer, hashes),
            Message::Page { buckets, entries } => self.on_page(now, peer, buckets, entries),
            Message::Pull(ids) => self.on_pull(peer, ids),
        }
        Ok(())
    }

    fn on_timeout(&mut self, now: Instant) {
        self.run_suspicions(now);
        self.run_probes(now);
        self.run_gossip(now);
        self.run_reconnect(now);
        self.run_hello(now);
        self.run_sync(now);
        if let Some(before) = now.as_nanos().checked_sub(nanos(self.config.tombstone_age)) {
            let queue = &mut self.queue;
            let before = Instant::from_nanos(before + 1);
            self.members.forget_before(before, |slot| queue.remove(slot));
        }
    }

    /// A process that was stalled (stopped, starved, blocked) cannot tell from silence who is dead: the time that it
    /// missed does not count.
    fn notice_stall(&mut self, now: Instant) {
        if !self.config.extensions.stall_aware {
            return;
        }
        let Some(due) = self.due() else { return };
        let late = now.since(due);
        if late <= self.config.ping_timeout / 2 {
            return;
        }
        self.probes.postpone(late);
        self.silence.postpone(late);
        self.postpone_suspicions(late);
        for due in [&mut self.gossip_due, &mut self.reconnect_due] {
            *due = due.map(|at| at + late);
        }
        self.hello.postpone(late);
        self.sync.postpone(late);
    }

    pub(super) fn postpone_suspicions(&mut self, by: Duration) {
        for slot in &self.suspects {
            if let Some(suspicion) = &mut self.members.get_mut(*slot).suspicion {
                suspicion.postpone(by);
            }
        }
        self.suspects_due = self.suspects_due.map(|at| at + by);
    }

    /// Writes a datagram to the peer, with news of others if there is room and `news` allows it.
    pub(super) fn send(&mut self, peer: Peer, message: Message<'_>, news: bool) {
        let mut packet = std::mem::take(&mut self.packet);
        auth::begin(&mut packet);
        message.write(&mut packet);
        if news {
            self.add_news(peer, &mut packet);
        }
        self.packet = packet;
        self.send_packet(peer);
    }

    /// Seals the datagram that was written, and sends it.
    pub(super) fn send_packet(&mut self, peer: Peer) {
        let (id, boot, addr, session) = match peer {
            Peer::Member(slot) => {
                let member = self.members.get_mut(slot);
                (member.id, member.boot, member.addr, &mut member.session)
            }
            Peer::Greeted(at) => self.hello.peer(at),
        };
        session.sent += 1;
        let number = session.sent;
        if !session.heard {
            // It may not know us: there must be room for its challenge.
            let least = CHALLENGE_BYTES - super::keyring::TAG_BYTES;
            if self.packet.len() < least {
                self.packet.resize(least, 0);
            }
        }
        self.seal_and_push(To::One { id, boot, number }, addr);
    }

    pub(super) fn seal_and_push(&mut self, to: To, addr: SocketAddr) {
        auth::seal(&self.keys, self.id, self.boot, to, &mut self.packet);
        assert!(self.packet.len() <= self.config.datagram_bytes_max, "what is written is bounded");
        if self.outbox.send(addr, &self.packet) {
            self.stats.datagrams_sent += 1;
            self.stats.bytes_sent += self.packet.len() as u64;
        } else {
            self.stats.datagrams_dropped += 1;
        }
    }

    pub(super) fn event(&mut self, event: Event) {
        self.outbox.notify(Notice::Event(event));
    }

    /// The bounds of a suspicion in the cluster as it is.
    pub(super) fn limits(&self) -> Limits {
        Limits::new(&self.config, self.members.live())
    }

    /// News of this member itself.
    pub(super) fn spread_self(&mut self, now: Instant) {
        self.queue.put(Slot::SELF);
        self.arm_gossip(now);
    }

    fn set_metadata(&mut self, now: Instant, metadata: &[u8]) {
        if metadata.len() > METADATA_BYTES_MAX || *self.members.get(Slot::SELF).metadata == *metadata {
            return;
        }
        self.members.change(Slot::SELF, now, |own| {
            own.metadata = metadata.into();
            own.incarnation = own.incarnation.refuted();
        });
        self.spread_self(now);
    }

    fn leave(&mut self, now: Instant) {
        if std::mem::replace(&mut self.leaving, true) {
            return;
        }
        self.members.change(Slot::SELF, now, |own| own.status = Status::Left);
        self.probes.stop();
        self.hello.stop();
        self.reconnect_due = None;
        if self.members.others().is_empty() {
            self.outbox.notify(Notice::Gone);
            return;
        }
        self.spread_self(now);
        // In a small cluster everyone hears it from the leaver itself.
        let mut picked = std::mem::take(&mut self.picked);
        self.members.pick(LEAVE_TOLD_MAX, &mut self.rng, |_| false, &mut picked);
        for slot in &picked {
            self.send(Peer::Member(*slot), Message::Gossip, true);
        }
        self.picked = picked;
    }
}

/// Members that a leaver tells directly.
const LEAVE_TOLD_MAX: usize = 16;

pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
