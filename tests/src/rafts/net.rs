//! The network between the nodes: calls that come late, in order or not, or never, and answers that do as well.
//!
//! What a node sends is put here and outlives it; the world takes out what arrives. What a node that has lost its power
//! sends in its last moment is nothing.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use highwater::net::{CallError, Class, Network};
use highwater_shards::ids::NodeId;
use highwater_shards::time::Instant;
use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::disk::Disk;
use super::world::Event;
use crate::queue::Queue;
use crate::rng::Rng;

/// What came of a call.
pub type Answer = Result<Bytes, CallError>;

/// A call under way.
#[derive(Debug)]
pub struct Call {
    pub from: NodeId,
    pub to: NodeId,
    pub class: Class,
    pub kind: u16,
    pub body: Bytes,
    pub reply: oneshot::Sender<Answer>,
}

/// An answer under way, with the call that it answers.
#[derive(Debug)]
pub struct Reply {
    pub call: Call,
    pub answer: Answer,
}

/// How the network is now.
#[derive(Clone, Copy, Debug)]
pub struct Mood {
    /// Of 1000 calls, and of 1000 answers.
    pub lost: u32,
    pub delay_max: Duration,
    /// Whether what one node sends another in one class arrives in the order in which it was sent.
    pub ordered: bool,
}

impl Mood {
    pub const CALM: Self = Self { lost: 0, delay_max: Duration::from_millis(3), ordered: true };
}

/// What happens, and the network within it.
#[derive(Debug)]
pub struct Hub {
    pub queue: Queue<Event>,
    pub mood: Mood,
    /// What goes from the first to the second is lost.
    pub cut: BTreeSet<(NodeId, NodeId)>,
    /// When the last message of a class arrives.
    arrives: BTreeMap<(NodeId, NodeId, Class), Instant>,
    began: tokio::time::Instant,
    rng: Rng,
    pub hash: u64,
    pub calls: u64,
    pub lost: u64,
    print: bool,
}

impl Hub {
    pub fn new(seed: u64, print: bool) -> Self {
        Self {
            queue: Queue::new(Rng::new(seed, "raft queue", 0)),
            mood: Mood::CALM,
            cut: BTreeSet::new(),
            arrives: BTreeMap::new(),
            began: tokio::time::Instant::now(),
            rng: Rng::new(seed, "raft network", 0),
            hash: 0,
            calls: 0,
            lost: 0,
            print,
        }
    }

    pub fn now(&self) -> Instant {
        let passed = self.began.elapsed().as_nanos();
        Instant::from_nanos(u64::try_from(passed).expect("a run is short"))
    }

    /// When that is for the runtime.
    pub fn alarm(&self, at: Instant) -> tokio::time::Instant {
        self.began + Duration::from_nanos(at.as_nanos())
    }

    pub fn after(&mut self, delay: Duration, event: Event) {
        let at = Instant::from_nanos(self.now().as_nanos() + nanos(delay));
        self.queue.push(at, event);
    }

    /// A part of the trace: what happened, in words that tell runs apart.
    pub fn note(&mut self, what: &str, bytes: &[u8]) {
        let now = self.now();
        self.hash = xxh3_64_with_seed(what.as_bytes(), self.hash ^ now.as_nanos());
        self.hash = xxh3_64_with_seed(bytes, self.hash);
        if self.print {
            println!("{:>10} ms  {what}", now.as_nanos() / 1_000_000);
        }
    }

    pub fn send_call(&mut self, call: Call) {
        self.calls += 1;
        let way = (call.from, call.to, call.class);
        self.note(&format!("{} -> {} call {:#06x}", call.from, call.to, call.kind), &call.body);
        self.send(way, Event::Call(call));
    }

    pub fn send_reply(&mut self, reply: Reply) {
        let Call { from, to, class, kind, .. } = reply.call;
        let (what, bytes): (_, &[u8]) = match &reply.answer {
            Ok(bytes) => ("answer".to_owned(), bytes),
            Err(error) => (error.to_string(), &[]),
        };
        self.note(&format!("{to} -> {from} {kind:#06x}: {what}"), bytes);
        self.send((to, from, class), Event::Reply(reply));
    }

    /// What is lost is dropped: who waits for it waits until its deadline.
    fn send(&mut self, way: (NodeId, NodeId, Class), event: Event) {
        if self.cut.contains(&(way.0, way.1)) || self.rng.chance(self.mood.lost) {
            self.lost += 1;
            self.queue_lost(event);
            return;
        }
        let delay = self.rng.between(Duration::ZERO, self.mood.delay_max);
        let mut at = Instant::from_nanos(self.now().as_nanos() + nanos(delay));
        if self.mood.ordered {
            let last = self.arrives.entry(way).or_insert(Instant::ZERO);
            at = at.max(Instant::from_nanos(last.as_nanos() + 1));
            *last = at;
        }
        self.queue.push(at, event);
    }

    /// Keeps the way back open for as long as anybody waits, so that loss is silence.
    fn queue_lost(&mut self, event: Event) {
        const LONG: Duration = Duration::from_secs(300);
        let reply = match event {
            Event::Call(call) => call.reply,
            Event::Reply(reply) => reply.call.reply,
            _ => return,
        };
        self.after(LONG, Event::Forget(reply));
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).expect("a delay is short")
}

/// One life's way into the network.
#[derive(Clone)]
pub struct Line {
    pub me: NodeId,
    pub disk: Disk,
    pub hub: Rc<RefCell<Hub>>,
}

impl Network for Line {
    async fn call(&self, to: NodeId, class: Class, kind: u16, body: Bytes, deadline: Duration) -> Answer {
        let (reply, answer) = oneshot::channel();
        if self.disk.is_powered() {
            self.hub.borrow_mut().send_call(Call { from: self.me, to, class, kind, body, reply });
        }
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(CallError::Unreachable("nobody is left to answer".into())),
            Err(_) => Err(CallError::TimedOut),
        }
    }
}
