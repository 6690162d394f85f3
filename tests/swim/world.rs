//! A network of members in virtual time: delays, loss, splits, and members whose process or socket is slow.
//!
//! One seed is one run. The members are the production code, or another implementation; only the driver is this file.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use highwater::control::swim::Extensions;
use highwater_shards::time::Instant;
use highwater_sim::rng::Rng;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::peer::{Did, Peer};

/// How long a member that catches up spends on each datagram.
const DRAIN: Duration = Duration::from_micros(20);

/// What all members of a world have in common.
#[derive(Clone, Debug)]
pub struct Setup {
    pub seed: u64,
    pub members: usize,
    pub alpha: u32,
    pub extensions: Extensions,
    pub loss_permille: u32,
    /// The interval of a second of the Lifeguard paper, or the defaults.
    pub paper_times: bool,
    /// A member that is blocked stands still as a whole, as a program of one thread does. Otherwise its timers go on,
    /// as in the Lifeguard paper.
    pub stands_still: bool,
}

pub struct World<P> {
    pub now: Instant,
    setup: Setup,
    rng: Rng,
    queue: BinaryHeap<Reverse<(Instant, u64, What)>>,
    count: u64,
    nodes: Vec<Node<P>>,
    /// Which members hear each other: those of one side.
    sides: Vec<u8>,
    /// Everything that was delivered and reported, in order.
    pub trace: u64,
    pub reports: Vec<Report>,
    /// Seeds that members are told: the first ones.
    seeds: usize,
}

struct Node<P> {
    member: P,
    up: bool,
    life: u32,
    /// The wake-up that is under way.
    wake: Option<Instant>,
    /// The socket is blocked until then.
    blocked: Option<Instant>,
    inbox: VecDeque<(SocketAddr, Vec<u8>)>,
    unsent: Vec<(SocketAddr, Vec<u8>)>,
    /// Datagrams are read so late, in order.
    reads_late: bool,
    last_read: Instant,
}

/// A member said something of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    pub at: Instant,
    pub by: usize,
    pub of: usize,
    pub what: Said,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Said {
    Joined,
    Suspected,
    Alive,
    Left,
    Died { by_us: bool },
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Arrive { to: usize, from: usize, bytes: Vec<u8> },
    Wake { node: usize, life: u32 },
    Unblock { node: usize, life: u32 },
    Drain { node: usize, life: u32 },
}

pub fn addr(node: usize) -> SocketAddr {
    let [a, b] = u16::try_from(node).expect("few members").to_be_bytes();
    ([10, 1, a, b], 7946).into()
}

pub fn node_of(addr: SocketAddr) -> usize {
    let std::net::IpAddr::V4(ip) = addr.ip() else { unreachable!("this world has IPv4 only") };
    let [_, _, a, b] = ip.octets();
    usize::from(u16::from_be_bytes([a, b]))
}

impl<P: Peer> World<P> {
    /// Members that know nobody yet.
    pub fn new(setup: Setup) -> Self {
        let mut world = Self {
            now: Instant::ZERO,
            rng: Rng::new(setup.seed, "swim net", 0),
            queue: BinaryHeap::new(),
            count: 0,
            nodes: Vec::new(),
            sides: vec![0; setup.members],
            trace: 0,
            reports: Vec::new(),
            seeds: 1,
            setup,
        };
        world.nodes = (0..world.setup.members).map(|n| world.node(n, 1)).collect();
        world
    }

    /// Members that all know each other, after a quiet time.
    pub fn joined(setup: Setup) -> Self {
        let mut world = Self::new(setup);
        for node in 0..world.nodes.len() {
            world.join(node);
        }
        let quiet = if world.setup.paper_times { Duration::from_secs(15) } else { Duration::from_secs(3) };
        for _ in 0..20 {
            world.run(quiet);
            if world.all_know_all() {
                world.reports.clear();
                return world;
            }
        }
        panic!("seed {}: the members do not find each other", world.setup.seed);
    }

    fn node(&self, node: usize, life: u32) -> Node<P> {
        Node {
            member: P::new(&self.setup, node, life, self.now),
            up: true,
            life,
            wake: None,
            blocked: None,
            inbox: VecDeque::new(),
            unsent: Vec::new(),
            reads_late: false,
            last_read: Instant::ZERO,
        }
    }

    pub fn join(&mut self, node: usize) {
        let seeds = (0..self.seeds).map(addr).collect();
        self.feed(node, |member, now| member.join(now, seeds));
    }

    pub fn leave(&mut self, node: usize) {
        self.feed(node, |member, now| member.leave(now));
    }

    /// Stops for good, without a word.
    pub fn crash(&mut self, node: usize) {
        self.nodes[node].up = false;
        self.nodes[node].life += 1;
    }

    /// A new life, which knows nobody.
    pub fn restart(&mut self, node: usize) {
        let life = self.nodes[node].life + 1;
        self.nodes[node] = self.node(node, life);
        self.join(node);
    }

    /// From now on datagrams are read half a second to two and a half late.
    pub fn starve(&mut self, node: usize) {
        self.nodes[node].reads_late = true;
    }

    pub fn split(&mut self, side_of: impl Fn(usize) -> u8) {
        self.sides = (0..self.nodes.len()).map(side_of).collect();
    }

    pub fn lose(&mut self, permille: u32) {
        self.setup.loss_permille = permille;
    }

    /// The member's sends and receives block for a while; its timers go on or not, as the setup has it.
    pub fn block(&mut self, node: usize, time: Duration) {
        let until = self.now + time;
        self.nodes[node].blocked = Some(until);
        let life = self.nodes[node].life;
        self.at(until, What::Unblock { node, life });
    }

    pub fn run(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    pub fn run_until(&mut self, end: Instant) {
        while self.queue.peek().is_some_and(|Reverse((at, _, _))| *at <= end) {
            let Some(Reverse((at, _, what))) = self.queue.pop() else { break };
            self.now = at;
            self.step(what);
        }
        self.now = end;
    }

    fn at(&mut self, at: Instant, what: What) {
        self.count += 1;
        self.queue.push(Reverse((at, self.count, what)));
    }

    fn step(&mut self, what: What) {
        match what {
            What::Arrive { to, from, bytes } => {
                let node = &mut self.nodes[to];
                if !node.up {
                    return;
                }
                if node.blocked.is_some() || !node.inbox.is_empty() {
                    node.inbox.push_back((addr(from), bytes));
                    return;
                }
                self.trace = xxh3_64_with_seed(&bytes, self.trace ^ self.now.as_nanos() ^ to as u64);
                self.feed(to, |member, now| member.datagram(now, addr(from), &bytes));
            }
            What::Wake { node, life } => {
                let this = &mut self.nodes[node];
                if !this.up || this.life != life || this.wake != Some(self.now) {
                    return;
                }
                this.wake = None;
                let waits = match this.blocked {
                    Some(_) => self.setup.stands_still,
                    // What arrived comes before timers: a duty of drivers of the core, which other arms do not have.
                    None => !this.inbox.is_empty() && self.setup.extensions.stall_aware,
                };
                if waits {
                    return;
                }
                self.feed(node, P::timeout);
            }
            What::Unblock { node, life } => {
                if self.nodes[node].life != life {
                    return;
                }
                self.nodes[node].blocked = None;
                for (to, bytes) in std::mem::take(&mut self.nodes[node].unsent) {
                    self.transmit(node, to, bytes);
                }
                self.at(self.now, What::Drain { node, life });
            }
            What::Drain { node, life } => {
                let this = &mut self.nodes[node];
                if !this.up || this.life != life || this.blocked.is_some() {
                    return;
                }
                if let Some((from, bytes)) = this.inbox.pop_front() {
                    self.at(self.now + DRAIN, What::Drain { node, life });
                    self.feed(node, |member, now| member.datagram(now, from, &bytes));
                } else {
                    self.feed(node, P::timeout);
                }
            }
        }
    }

    fn feed(&mut self, node: usize, call: impl FnOnce(&mut P, Instant)) {
        let now = self.now;
        let this = &mut self.nodes[node];
        if !this.up {
            return;
        }
        call(&mut this.member, now);
        let mut sends = Vec::new();
        let mut gone = false;
        while let Some(did) = this.member.poll() {
            match did {
                Did::Send { to, bytes } => sends.push((to, bytes)),
                Did::Said { of, what } => {
                    self.trace = xxh3_64_with_seed(&[what.as_byte()], self.trace ^ of as u64);
                    self.reports.push(Report { at: now, by: node, of, what });
                }
                Did::Gone => gone = true,
            }
        }
        let (blocked, life) = (this.blocked.is_some(), this.life);
        let due = this.member.poll_timeout().map(|due| due.max(now));
        if due != this.wake {
            this.wake = due;
            if let Some(due) = due {
                self.at(due, What::Wake { node, life });
            }
        }
        if blocked {
            self.nodes[node].unsent.extend(sends);
        } else {
            for (to, bytes) in sends {
                self.transmit(node, to, bytes);
            }
        }
        if gone {
            self.nodes[node].up = false;
            self.nodes[node].life += 1;
        }
    }

    fn transmit(&mut self, from: usize, to: SocketAddr, bytes: Vec<u8>) {
        let to = node_of(to);
        if self.sides[from] != self.sides[to] || self.rng.chance(self.setup.loss_permille) {
            return;
        }
        let mut at = self.now + self.rng.between(Duration::from_micros(200), Duration::from_millis(1));
        let node = &mut self.nodes[to];
        if node.reads_late {
            let late = self.rng.between(Duration::from_millis(500), Duration::from_millis(2500));
            at = (at + late).max(node.last_read);
            node.last_read = at;
        }
        self.at(at, What::Arrive { to, from, bytes });
    }

    /// What reaches a member within this time, which it does not get.
    pub fn intercept(&mut self, node: usize, time: Duration) -> Vec<(SocketAddr, Vec<u8>)> {
        self.block(node, time * 2);
        self.run(time);
        self.nodes[node].inbox.drain(..).collect()
    }

    pub fn member_mut(&mut self, node: usize) -> &mut P {
        &mut self.nodes[node].member
    }

    pub fn member(&self, node: usize) -> &P {
        &self.nodes[node].member
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn up(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].up)
    }

    /// Whether all that are up hold exactly all that are up for live.
    pub fn all_know_all(&self) -> bool {
        let up = self.up().count();
        self.up().all(|node| self.nodes[node].member.live_count() == up)
    }
}

impl Said {
    fn as_byte(self) -> u8 {
        match self {
            Self::Joined => 0,
            Self::Suspected => 1,
            Self::Alive => 2,
            Self::Left => 3,
            Self::Died { by_us } => 4 + u8::from(by_us),
        }
    }
}
