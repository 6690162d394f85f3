//! A client of a cluster: one connection to each node that it talks to, its open calls, and what it does with them, which
//! is its [`Role`]. It asks the node that leads, as far as it knows, and now and then another one.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use highwater_shards::ids::{ConnId, PartitionId};
use highwater_shards::time::Instant;

use super::auditor::Auditor;
use super::config::Config;
use super::consumer::Consumer;
use super::index_of;
use super::judge::Judge;
use super::plane::Truth;
use super::producer::Producer;
use crate::checkers::{Verdict, Violation, answered, broken};
use crate::front::SimWire;
use crate::records::Uid;
use crate::rng::Rng;
use crate::wire::{Call, Said, Wire};

#[derive(Debug)]
pub struct Client {
    pub id: usize,
    pub role: Role,
    pub rng: Rng,
    links: BTreeMap<usize, Link>,
    next_correlation: u32,
    /// When it is to act next; older appointments are void.
    pub appointment: u64,
}

/// A connection, as its client sees it.
#[derive(Debug)]
struct Link {
    conn: ConnId,
    open: VecDeque<Open>,
    received: BytesMut,
    since: Instant,
}

/// A call that waits for its answer.
#[derive(Debug)]
pub struct Open {
    correlation: u32,
    pub call: Call,
    /// The batch of an append.
    pub uid: Option<Uid>,
    pub sent_at: Instant,
    /// What had been heard of the partition's high watermark when it was sent.
    pub floor: u64,
    /// The node that is asked.
    pub node: usize,
}

#[derive(Debug)]
pub enum Role {
    Producer(Producer),
    Consumer(Consumer),
    Auditor(Auditor),
}

/// What a client wants done.
#[derive(Debug)]
pub enum Act {
    /// To some shard of a node.
    Connect(usize, u16),
    Frame(usize, Bytes),
    Disconnect(usize),
}

/// What a client sees while it acts.
#[derive(Debug)]
pub struct Scene<'a> {
    pub now: Instant,
    pub config: &'a Config,
    pub judge: &'a mut Judge,
    pub partitions: &'a [PartitionId],
    /// As far as clients know.
    pub truth: &'a Truth,
    /// The nodes that take connections.
    pub serving: Vec<usize>,
    pub healing: bool,
}

/// What a role decides at one of its turns.
#[derive(Debug)]
pub enum Move {
    /// Ask a node.
    Call(usize, Call, Option<Uid>),
    /// Act again after this time, or when something comes.
    Rest(Duration),
}

impl Scene<'_> {
    /// The node to ask for a partition: mostly the one that leads.
    pub fn leader(&self, partition: PartitionId, rng: &mut Rng) -> usize {
        let lost = !self.healing && self.config.features.lost_clients && rng.chance(50);
        let leader = self.truth.get(&partition).and_then(|a| a.leader).filter(|_| !lost);
        leader.map_or_else(|| rng.index(self.config.nodes), index_of)
    }
}

impl Client {
    pub fn new(id: usize, role: Role, rng: Rng) -> Self {
        Self { id, role, rng, links: BTreeMap::new(), next_correlation: 0, appointment: 0 }
    }

    /// It has nothing left to do and waits for nothing.
    pub fn is_done(&self) -> bool {
        let idle = self.links.values().all(|l| l.open.is_empty());
        match &self.role {
            Role::Producer(p) => idle && p.is_done(),
            Role::Consumer(_) => true,
            Role::Auditor(a) => a.is_done(),
        }
    }

    pub fn has(&self, node: usize, conn: ConnId) -> bool {
        self.conn(node) == Some(conn)
    }

    pub fn conn(&self, node: usize) -> Option<ConnId> {
        self.links.get(&node).map(|l| l.conn)
    }

    /// The client's turn; returns when the next one is, at the latest.
    pub fn turn(&mut self, scene: &mut Scene<'_>, acts: &mut Vec<Act>) -> Result<Duration, Violation> {
        for node in scene.serving.iter().copied() {
            if !self.links.contains_key(&node) && self.rng.chance(300) {
                acts.push(Act::Connect(node, u16::try_from(self.rng.below(16)).expect("small")));
            }
        }
        for link in self.links.values() {
            if let Some(oldest) = link.open.front() {
                let waits = oldest.call.patience() + scene.config.fault_lasts.end;
                let since = oldest.sent_at.max(link.since) + waits;
                answered::on_waiting(&oldest.call, since, scene.now)?;
            }
        }
        if !scene.healing
            && scene.config.features.disconnects
            && self.rng.chance(4)
            && let Some((&node, _)) = self.links.iter().next()
        {
            acts.push(Act::Disconnect(node));
            return Ok(Duration::from_micros(100));
        }
        // At most so many calls at one turn.
        for _ in 0..8 {
            let open = self.links.values().map(|l| l.open.len()).sum();
            let next = match &mut self.role {
                Role::Producer(p) => p.next_move(scene, &mut self.rng, open),
                Role::Consumer(c) => c.next_move(scene, &mut self.rng, open),
                Role::Auditor(a) => a.next_move(scene, &mut self.rng, open),
            };
            let (node, call, uid) = match next {
                Move::Call(node, call, uid) => (node, call, uid),
                Move::Rest(time) => return Ok(time),
            };
            let Some(link) = self.links.get_mut(&node) else {
                // It cannot be asked now.
                match &mut self.role {
                    Role::Producer(p) => p.lost(&call, uid, scene.now),
                    Role::Consumer(_) => {}
                    Role::Auditor(a) => a.lost(),
                }
                return Ok(self.rng.between(Duration::from_micros(500), Duration::from_millis(3)));
            };
            let correlation = self.next_correlation;
            self.next_correlation += 1;
            let id = self.id;
            let name = super::node_id(node);
            scene
                .judge
                .tell(|| format!("client {id} sends call {correlation} to node {name}, batch {uid:?}"));
            acts.push(Act::Frame(node, SimWire.encode(&call, correlation)));
            let floor = match &call {
                Call::Read(r) => scene.judge.floor(r.partition),
                Call::Locate { partition, .. } => scene.judge.floor(*partition),
                Call::Append { .. } | Call::NewProducer => 0,
            };
            link.open.push_back(Open { correlation, call, uid, sent_at: scene.now, floor, node });
        }
        Ok(Duration::from_micros(50))
    }

    pub fn connected(&mut self, node: usize, conn: ConnId, now: Instant) {
        let link = Link { conn, open: VecDeque::new(), received: BytesMut::new(), since: now };
        self.links.insert(node, link);
    }

    /// The connection is gone, and with it the answers to its open calls.
    pub fn disconnected(&mut self, node: usize) {
        let Some(link) = self.links.remove(&node) else { return };
        for open in &link.open {
            match &mut self.role {
                Role::Producer(p) => p.lost(&open.call, open.uid, open.sent_at),
                Role::Consumer(_) => {}
                Role::Auditor(a) => a.lost(),
            }
        }
    }

    /// Bytes came; true when they held an answer, so that the client may act again.
    pub fn receive(&mut self, node: usize, bytes: &[u8], scene: &mut Scene<'_>) -> Result<bool, Violation> {
        let Some(link) = self.links.get_mut(&node) else { return Ok(false) };
        link.received.extend_from_slice(bytes);
        let mut any = false;
        loop {
            let Some(link) = self.links.get_mut(&node) else { return Ok(any) };
            let Some(frame) = take_frame(&mut link.received) else { return Ok(any) };
            any = true;
            let Some(open) = link.open.pop_front() else {
                answered::on_answer(0, None)?;
                return Ok(any);
            };
            let heard = SimWire.decode(&open.call, frame).map_err(|e| broken("wire", e))?;
            answered::on_answer(heard.correlation, Some(open.correlation))?;
            let conn = link.conn;
            if let Some(revision) = heard.revision {
                scene.judge.revisions.on_shown(conn, revision)?;
            }
            let id = self.id;
            scene.judge.tell(|| format!("client {id}: {} -> {}", open.describe(), describe(&heard.said)));
            self.hear(&open, heard.said, scene)?;
        }
    }

    fn hear(&mut self, open: &Open, said: Said, scene: &mut Scene<'_>) -> Verdict {
        match &mut self.role {
            Role::Producer(p) => p.hear(open, said, scene),
            Role::Consumer(c) => c.hear(open, said, scene),
            Role::Auditor(a) => a.hear(open, said, scene),
        }
    }
}

impl Open {
    /// Whether a replica that does not lead was asked to read.
    pub fn is_of_follower(&self, truth: &Truth) -> bool {
        let Call::Read(read) = &self.call else { return false };
        truth.get(&read.partition).is_some_and(|a| a.leader.map(index_of) != Some(self.node))
    }

    /// For the story.
    fn describe(&self) -> String {
        let what = match &self.call {
            Call::Append { partition, acks, .. } => format!("append {:?} to {partition}, {acks:?}", self.uid),
            Call::Read(r) => format!("read {} at {}", r.partition, r.offset),
            Call::Locate { partition, at } => format!("locate {at:?} of {partition}"),
            Call::NewProducer => "new producer".to_owned(),
        };
        format!("call {} to node {}, {what}", self.correlation, super::node_id(self.node))
    }
}

fn describe(said: &Said) -> String {
    match said {
        Said::Read(Ok(r)) => format!("up to {}, {} bytes", r.high_watermark, r.records.len()),
        other => format!("{other:?}"),
    }
}

fn take_frame(received: &mut BytesMut) -> Option<Bytes> {
    let len = u32::from_be_bytes(*received.first_chunk::<4>()?) as usize;
    if received.len() < 4 + len {
        return None;
    }
    received.advance(4);
    Some(received.split_to(len).freeze())
}
