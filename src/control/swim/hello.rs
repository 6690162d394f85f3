//! How strangers prove who they are: the challenge that a new boot echoes, and the seeds that are asked for a cluster.
//!
//! Control core, pure. A challenge is a function of the stranger, a secret of this process and the time, so nothing is
//! kept for those who never answer it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use highwater_shards::ids::Map;
use highwater_shards::time::Instant;
use siphasher::sip128::{Hasher128 as _, SipHasher24};

use super::auth::{self, Opened, Reject, To, Window};
use super::keyring::TAG_BYTES;
use super::member::{Id, Session, Slot, Status};
use super::members::below;
use super::membership::{Membership, Peer, nanos};
use super::outbox::Notice;
use super::wire::{self, CHALLENGE_BYTES, JOIN_BYTES, Message};
use super::{GREETED_MAX, SEEDS_MAX};

/// A challenge is good for this time, and for the rest of the one before.
const CHALLENGE_PERIOD: Duration = Duration::from_secs(10);
/// Boots that proved themselves within two such times; more must wait.
const PROVEN_MAX: usize = 8192;

#[derive(Debug)]
pub(super) struct Hello {
    key: [u64; 2],
    seeds: Vec<SocketAddr>,
    /// Nonces of joins that no seed answered yet, the latest last.
    asked: Vec<u128>,
    due: Option<Instant>,
    /// The number of the last datagram to a stranger: numbers of a session go on from there.
    number: u64,
    nonces: u64,
    greeted: Vec<Greeted>,
    greetings: u64,
    /// Boots that echoed a challenge that is still good: its period, and the number of the echo. A recorded echo has
    /// no later number.
    proven: Map<(Id, u64), (u64, u64)>,
}

/// A peer that proved itself and is no member (yet).
#[derive(Debug)]
struct Greeted {
    id: Id,
    boot: u64,
    addr: SocketAddr,
    session: Session,
    /// Which greeting it was: the oldest gives way.
    greeting: u64,
}

impl Hello {
    pub(super) fn new(key: [u64; 2]) -> Self {
        Self {
            key,
            seeds: Vec::new(),
            asked: Vec::new(),
            due: None,
            number: 0,
            nonces: 0,
            greeted: Vec::new(),
            greetings: 0,
            proven: Map::default(),
        }
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    pub(super) fn postpone(&mut self, by: Duration) {
        self.due = self.due.map(|due| due + by);
    }

    pub(super) fn stop(&mut self) {
        self.seeds.clear();
        self.due = None;
    }

    pub(super) fn greeted(&self, id: Id, boot: u64) -> Option<usize> {
        self.greeted.iter().position(|peer| peer.id == id && peer.boot == boot)
    }

    pub(super) fn session(&mut self, at: usize) -> &mut Session {
        &mut self.greeted[at].session
    }

    pub(super) fn peer(&mut self, at: usize) -> (Id, u64, SocketAddr, &mut Session) {
        let peer = &mut self.greeted[at];
        (peer.id, peer.boot, peer.addr, &mut peer.session)
    }

    /// The session of a boot that has become a member's: the one that it proved itself in, or a new one.
    pub(super) fn adopt(&mut self, id: Id, boot: u64) -> Option<Session> {
        self.greeted(id, boot).map(|at| self.greeted.swap_remove(at).session)
    }

    pub(super) fn new_session(&self, doubted: bool) -> Session {
        Session { sent: self.number, doubted, ..Session::default() }
    }

    fn greet(&mut self, opened: &Opened<'_>, addr: SocketAddr) -> usize {
        if let Some(at) = self.greeted(opened.from, opened.from_boot) {
            self.greeted.swap_remove(at);
        }
        if self.greeted.len() >= GREETED_MAX {
            let oldest = (0..self.greeted.len()).min_by_key(|at| self.greeted[*at].greeting);
            self.greeted.swap_remove(oldest.expect("the list is full"));
        }
        self.greetings += 1;
        let window = Window::from(opened.number);
        self.greeted.push(Greeted {
            id: opened.from,
            boot: opened.from_boot,
            addr,
            session: Session { sent: self.number, window, heard: true, doubted: false },
            greeting: self.greetings,
        });
        self.greeted.len() - 1
    }

    /// Whether this echo proves that the boot lives: it answers a challenge that is good, and comes for the first time.
    fn accept_echo(&mut self, now: Instant, opened: &Opened<'_>, addr: SocketAddr, challenge: u128) -> bool {
        let period = period(now);
        let mut good = [period, period.saturating_sub(1)].into_iter();
        if !good.any(|period| self.challenge(period, opened, addr) == challenge) {
            return false;
        }
        let boot = (opened.from, opened.from_boot);
        if self.proven.get(&boot).is_some_and(|(_, number)| *number >= opened.number) {
            return false;
        }
        if self.proven.len() >= PROVEN_MAX {
            self.proven.retain(|_, (of, _)| *of + 1 >= period);
            if self.proven.len() >= PROVEN_MAX {
                return false;
            }
        }
        self.proven.insert(boot, (period, opened.number));
        true
    }

    fn random(&self, purpose: u8, parts: &[u64]) -> u128 {
        let mut hasher = SipHasher24::new_with_keys(self.key[0], self.key[1]);
        std::hash::Hasher::write_u8(&mut hasher, purpose);
        parts.iter().for_each(|part| std::hash::Hasher::write_u64(&mut hasher, *part));
        hasher.finish128().as_u128()
    }

    fn challenge(&self, period: u64, opened: &Opened<'_>, addr: SocketAddr) -> u128 {
        let ip = match addr.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let ip = u128::from(ip);
        let port = u64::from(addr.port());
        self.random(1, &[period, opened.from.0, opened.from_boot, ip as u64, (ip >> 64) as u64, port])
    }
}

fn period(now: Instant) -> u64 {
    now.as_nanos() / nanos(CHALLENGE_PERIOD)
}

impl Membership {
    pub(super) fn join(&mut self, now: Instant, mut seeds: Vec<SocketAddr>) {
        if self.leaving {
            return;
        }
        seeds.truncate(SEEDS_MAX);
        self.hello.seeds = seeds;
        // An answer to `ResolveSeeds` only brings other addresses for the next try.
        if self.hello.due.is_none() {
            self.ask_seeds(now);
        }
    }

    pub(super) fn run_hello(&mut self, now: Instant) {
        if self.hello.due.is_some_and(|due| due <= now) {
            self.outbox.notify(Notice::ResolveSeeds);
            self.ask_seeds(now);
        }
    }

    fn ask_seeds(&mut self, now: Instant) {
        self.hello.due = None;
        if self.hello.seeds.is_empty() {
            return;
        }
        let own = self.members.get(Slot::SELF).addr;
        for at in 0..self.hello.seeds.len() {
            let seed = self.hello.seeds[at];
            if seed == own || self.members.lives_at(seed) {
                continue;
            }
            self.hello.nonces += 1;
            let nonce = self.hello.random(2, &[self.hello.nonces]);
            if self.hello.asked.len() >= 2 * SEEDS_MAX {
                self.hello.asked.remove(0);
            }
            self.hello.asked.push(nonce);
            auth::begin(&mut self.packet);
            Message::Join { nonce }.write(&mut self.packet);
            // The answer is no longer than this, so that nobody can use it to flood a third one.
            self.packet.resize(JOIN_BYTES - TAG_BYTES, 0);
            self.seal_and_push(To::Any, seed);
        }
        let alone = self.members.others().is_empty();
        let usual = if alone { self.config.ping_interval } else { self.config.seed_interval };
        self.hello.due = Some(now + self.jittered(usual));
    }

    /// A time between half of this and all of it.
    pub(super) fn jittered(&mut self, time: Duration) -> Duration {
        let nanos = usize::try_from(nanos(time)).unwrap_or(usize::MAX);
        Duration::from_nanos((nanos / 2 + below(&mut self.rng, nanos / 2 + 1)) as u64)
    }

    /// Someone asks whoever listens for a way into the cluster.
    pub(super) fn on_join(
        &mut self,
        now: Instant,
        from: SocketAddr,
        opened: &Opened<'_>,
        len: usize,
    ) -> Result<(), Reject> {
        let (message, mut rest) = wire::read(opened.body).map_err(|_| Reject::Malformed)?;
        let Message::Join { nonce } = message else { return Err(Reject::Malformed) };
        if rest.next().is_some() || len < JOIN_BYTES {
            return Err(Reject::Malformed);
        }
        if opened.from == self.id || self.leaving {
            return Err(Reject::Unasked);
        }
        self.challenge(now, from, opened, Some(nonce));
        Ok(())
    }

    /// An authentic datagram from a boot that is not known: what it says counts only once it has proved that it is
    /// no recording.
    pub(super) fn on_stranger(
        &mut self,
        now: Instant,
        from: SocketAddr,
        opened: &Opened<'_>,
        len: usize,
    ) -> Result<(), Reject> {
        if self.leaving {
            return Err(Reject::UnknownBoot);
        }
        let (message, _) = wire::read(opened.body).map_err(|_| Reject::Malformed)?;
        match message {
            Message::Challenge { answers: Some(nonce), challenge } => {
                let Some(at) = self.hello.asked.iter().position(|asked| *asked == nonce) else {
                    return Err(Reject::Unasked);
                };
                self.hello.asked.remove(at);
                let peer = Peer::Greeted(self.hello.greet(opened, from));
                self.send_echo(peer, challenge);
                Ok(())
            }
            Message::Challenge { .. } => Err(Reject::Unasked),
            Message::Echo { challenge } => {
                if !self.hello.accept_echo(now, opened, from, challenge) {
                    return Err(Reject::Unasked);
                }
                if let Some(slot) = self.members.find(opened.from) {
                    let member = self.members.get_mut(slot);
                    if member.boot == opened.from_boot {
                        // A member that was forgotten once: its session begins here.
                        member.session.doubted = false;
                        member.session.heard = true;
                        member.session.window = Window::from(opened.number);
                        return self.on_body(now, Peer::Member(slot), opened.body);
                    }
                }
                let at = self.hello.greet(opened, from);
                self.on_body(now, Peer::Greeted(at), opened.body)
            }
            _ => {
                if len >= CHALLENGE_BYTES {
                    self.challenge(now, from, opened, None);
                }
                Err(Reject::UnknownBoot)
            }
        }
    }

    fn challenge(&mut self, now: Instant, from: SocketAddr, opened: &Opened<'_>, answers: Option<u128>) {
        let challenge = self.hello.challenge(period(now), opened, from);
        let (id, boot) = (opened.from, opened.from_boot);
        let known = self.members.find(id).filter(|slot| self.members.get(*slot).boot == boot);
        let sent = match (known, self.hello.greeted(id, boot)) {
            (Some(slot), _) => &mut self.members.get_mut(slot).session.sent,
            (None, Some(at)) => &mut self.hello.greeted[at].session.sent,
            (None, None) => &mut self.hello.number,
        };
        *sent += 1;
        let number = *sent;
        auth::begin(&mut self.packet);
        Message::Challenge { answers, challenge }.write(&mut self.packet);
        self.stats.challenges += 1;
        self.seal_and_push(To::One { id, boot, number }, from);
    }

    /// Proves that this boot lives, and introduces this member.
    pub(super) fn send_echo(&mut self, peer: Peer, challenge: u128) {
        if self.leaving {
            return;
        }
        auth::begin(&mut self.packet);
        Message::Echo { challenge }.write(&mut self.packet);
        wire::put_record(&mut self.packet, self.members.get(Slot::SELF), Status::Alive);
        self.send_packet(peer);
    }

    /// Introduces this member to one that proved itself. If we know a later life of it, it gets to know that too.
    pub(super) fn welcome(&mut self, peer: Peer) {
        auth::begin(&mut self.packet);
        Message::Records.write(&mut self.packet);
        if self.leaving {
            return;
        }
        wire::put_record(&mut self.packet, self.members.get(Slot::SELF), Status::Alive);
        if let Peer::Greeted(at) = peer
            && let Some(slot) = self.members.find(self.hello.greeted[at].id)
        {
            wire::put_record(&mut self.packet, self.members.get(slot), Status::Alive);
        }
        self.send_packet(peer);
    }

    /// The peer as it is called after its news were taken in.
    pub(super) fn settled(&self, peer: Peer, id: Id, boot: u64) -> Option<Peer> {
        match peer {
            Peer::Member(slot) => self.members.same(slot, id).then_some(peer),
            Peer::Greeted(_) => {
                let member = self.members.find(id).filter(|slot| self.members.get(*slot).boot == boot);
                let greeted = || self.hello.greeted(id, boot).map(Peer::Greeted);
                member.map(Peer::Member).or_else(greeted)
            }
        }
    }

    pub(super) fn name_of(&mut self, peer: Peer) -> (Id, u64) {
        match peer {
            Peer::Member(slot) => (self.members.get(slot).id, self.members.get(slot).boot),
            Peer::Greeted(at) => (self.hello.greeted[at].id, self.hello.greeted[at].boot),
        }
    }
}
