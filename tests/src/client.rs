//! A client: one connection at a time, its open calls, and what it does with it, which is its [`Role`].

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use highwater_shards::ids::{ConnId, PartitionId, ShardId};
use highwater_shards::time::Instant;

use crate::auditor::Auditor;
use crate::checkers::high_watermark::Floor;
use crate::checkers::{Checkers, Verdict, answered, broken};
use crate::config::Config;
use crate::consumer::Consumer;
use crate::producer::Producer;
use crate::records::Uid;
use crate::rng::Rng;
use crate::shadow::Boot;
use crate::wire::{Call, Heard, Said, Wire};

/// The longest frame that a client takes; a longer one is a bug of the node.
const FRAME_MAX: usize = 64 * 1024 * 1024;

#[derive(Debug)]
pub struct Client {
    pub id: usize,
    pub role: Role,
    pub rng: Rng,
    pub link: Option<Link>,
    next_correlation: u32,
    /// When it is to act next; older appointments are void.
    pub appointment: u64,
}

/// A connection, as its client sees it.
#[derive(Debug)]
pub struct Link {
    pub conn: ConnId,
    pub boot: Boot,
    /// The shard has it open.
    open: VecDeque<Open>,
    received: BytesMut,
    /// It reads what comes.
    pub reading: bool,
    reading_since: Instant,
}

/// A call that waits for its answer.
#[derive(Debug)]
pub struct Open {
    correlation: u32,
    pub call: Call,
    pub tag: Tag,
    pub sent_at: Instant,
    pub floor: Floor,
    /// Nothing else was open, and the client has read ever since.
    pub undisturbed: bool,
}

/// What a role remembers with a call.
#[derive(Clone, Debug, Default)]
pub struct Tag {
    /// The batches of an append, in order.
    pub uids: Vec<Uid>,
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
    Connect(ShardId),
    Frame(Bytes),
    Disconnect,
    Reading(bool),
}

/// What a client sees while it acts.
#[derive(Debug)]
pub struct Scene<'a> {
    pub now: Instant,
    pub config: &'a Config,
    pub checkers: &'a mut Checkers,
    /// The partitions that there are.
    pub partitions: &'a [PartitionId],
    /// The shards that take connections.
    pub ready: &'a [ShardId],
    /// The faults are over.
    pub healing: bool,
}

/// What a role decides at one of its turns.
#[derive(Debug)]
pub enum Move {
    Call(Call, Tag),
    /// Act again after this time, or when something comes.
    Rest(Duration),
}

impl Client {
    pub fn new(id: usize, role: Role, rng: Rng) -> Self {
        Self { id, role, rng, link: None, next_correlation: 0, appointment: 0 }
    }

    /// It has nothing left to do and waits for nothing.
    pub fn is_done(&self) -> bool {
        let idle = self.link.as_ref().is_none_or(|l| l.open.is_empty());
        match &self.role {
            Role::Producer(p) => idle && p.is_done(),
            Role::Consumer(_) => true,
            Role::Auditor(a) => a.is_done(),
        }
    }

    /// The client's turn; returns when the next one is, at the latest.
    pub fn turn<W: Wire>(
        &mut self,
        wire: &W,
        scene: &mut Scene<'_>,
        acts: &mut Vec<Act>,
    ) -> Result<Duration, crate::checkers::Violation> {
        let Some(link) = &mut self.link else {
            if !scene.ready.is_empty() {
                acts.push(Act::Connect(*self.rng.pick(scene.ready)));
            }
            return Ok(self.rng.between(Duration::from_micros(200), Duration::from_millis(3)));
        };
        if let Some(oldest) = link.open.front().filter(|_| link.reading) {
            answered::on_waiting(&oldest.call, oldest.sent_at.max(link.reading_since), scene.now)?;
        }
        let features = &scene.config.features;
        if !scene.healing && features.disconnects && self.rng.chance(5) {
            acts.push(Act::Disconnect);
            return Ok(Duration::from_micros(100));
        }
        if !scene.healing && features.paused_clients && link.reading && self.rng.chance(8) {
            link.reading = false;
            link.open.iter_mut().for_each(|o| o.undisturbed = false);
            acts.push(Act::Reading(false));
        } else if !link.reading && (scene.healing || self.rng.chance(60)) {
            link.reading = true;
            link.reading_since = scene.now;
            acts.push(Act::Reading(true));
        }
        loop {
            let link = self.link.as_mut().expect("checked above");
            let open = link.open.len();
            let next = match &mut self.role {
                Role::Producer(p) => p.next_move(scene, &mut self.rng, open),
                Role::Consumer(c) => c.next_move(scene, &mut self.rng, open),
                Role::Auditor(a) => a.next_move(scene, open),
            };
            let (call, tag) = match next {
                Move::Call(call, tag) => (call, tag),
                Move::Rest(time) => return Ok(time),
            };
            let correlation = self.next_correlation;
            self.next_correlation += 1;
            let id = self.id;
            scene.checkers.tell(|| format!("client {id} sends call {correlation}, batches {:?}", tag.uids));
            acts.push(Act::Frame(wire.encode(&call, correlation)));
            if call.is_answered() {
                let floor = match &call {
                    Call::Read(r) => scene.checkers.high_watermark.floor(r.partition),
                    Call::Locate { partition, .. } => scene.checkers.high_watermark.floor(*partition),
                    Call::Append { .. } | Call::NewProducer => Floor::default(),
                };
                let undisturbed = link.open.is_empty() && link.reading;
                link.open.push_back(Open { correlation, call, tag, sent_at: scene.now, floor, undisturbed });
            }
        }
    }

    pub fn connected(&mut self, conn: ConnId, boot: Boot, now: Instant) {
        self.link = Some(Link {
            conn,
            boot,
            open: VecDeque::new(),
            received: BytesMut::new(),
            reading: true,
            reading_since: now,
        });
        if let Role::Producer(p) = &mut self.role {
            p.connected(conn);
        }
    }

    /// The connection is gone, and with it the answers to its open calls.
    pub fn disconnected(&mut self) {
        if let Some(link) = self.link.take() {
            for open in &link.open {
                match &mut self.role {
                    Role::Producer(p) => p.lost(&open.tag),
                    Role::Consumer(_) => {}
                    Role::Auditor(a) => a.lost(),
                }
            }
            if let Role::Producer(p) = &mut self.role {
                p.disconnected();
            }
        }
    }

    /// Bytes came; true when they held an answer, so that the client may act again.
    pub fn receive<W: Wire>(
        &mut self,
        wire: &W,
        bytes: &[u8],
        scene: &mut Scene<'_>,
    ) -> Result<bool, crate::checkers::Violation> {
        let Some(link) = &mut self.link else { return Ok(false) };
        link.received.extend_from_slice(bytes);
        let mut any = false;
        loop {
            let link = self.link.as_mut().expect("checked above");
            let Some(frame) = take_frame(&mut link.received)? else { return Ok(any) };
            any = true;
            let Some(open) = link.open.pop_front() else {
                let heard = wire.decode(&Call::NewProducer, frame).map_or(0, |h| h.correlation);
                answered::on_answer(heard, None)?;
                return Ok(any);
            };
            let heard = wire.decode(&open.call, frame).map_err(|e| broken("wire", e))?;
            answered::on_answer(heard.correlation, Some(open.correlation))?;
            if let Some(revision) = heard.revision {
                scene.checkers.revisions.on_shown(link.conn, revision)?;
            }
            let boot = link.boot;
            let id = self.id;
            scene.checkers.tell(|| format!("client {id}: {} -> {}", open.describe(), describe(&heard.said)));
            self.hear(&open, heard, boot, scene)?;
        }
    }

    fn hear(&mut self, open: &Open, heard: Heard, boot: Boot, scene: &mut Scene<'_>) -> Verdict {
        match &mut self.role {
            Role::Producer(p) => p.hear(open, heard.said, boot, scene),
            Role::Consumer(c) => c.hear(open, heard.said, boot, scene),
            Role::Auditor(a) => a.hear(open, heard.said, boot, scene),
        }
    }
}

impl Open {
    /// For the story.
    fn describe(&self) -> String {
        let what = match &self.call {
            Call::Append { partition, acks, .. } => {
                format!("append {:?} to {partition}, {acks:?}", self.tag.uids)
            }
            Call::Read(r) => format!("read {} at {}", r.partition, r.offset),
            Call::Locate { partition, at } => format!("locate {at:?} of {partition}"),
            Call::NewProducer => "new producer".to_owned(),
        };
        format!("call {}, {what}", self.correlation)
    }
}

fn describe(said: &Said) -> String {
    match said {
        Said::Read(Ok(r)) => format!("up to {}, {} bytes", r.high_watermark, r.records.len()),
        other => format!("{other:?}"),
    }
}

fn take_frame(received: &mut BytesMut) -> Result<Option<Bytes>, crate::checkers::Violation> {
    let Some(prefix) = received.first_chunk::<4>() else { return Ok(None) };
    let len = u32::from_be_bytes(*prefix) as usize;
    if len > FRAME_MAX {
        return Err(broken("wire", format!("a frame of {len} bytes")));
    }
    if received.len() < 4 + len {
        return Ok(None);
    }
    received.advance(4);
    Ok(Some(received.split_to(len).freeze()))
}
