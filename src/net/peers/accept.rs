//! The door: connections from others, first unproven, then proven, each kind within its bounds; and the end of a
//! connection that answers.
//!
//! Runs on the control core's thread. Strangers are many and cheap: a task of a few hundred bytes each, no timer, and the
//! oldest makes room for the newest. They take nothing from those who have proven who they are.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::connection::{self, Handler, Liveness, Pipe};
use super::handshake;
use super::link::Closed;
use super::{Inner, tcp};
use crate::net::auth::{Acceptor, HandshakeError, Judged, PeerIdentity, Purpose, Refusal};
use crate::net::frame::{FrameError, Header, Message, Type};
use crate::net::outbox::Outgoing;
use crate::net::refusals::Who;
use crate::net::{BODY_MAX, Class, Incoming, REFUSAL_MAX};

/// After a failed accept (mostly: no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections from others.
#[derive(Default)]
pub(super) struct Inbound {
    next: u64,
    /// By age: the oldest has the smallest number.
    pub(super) unproven: BTreeMap<u64, Unproven>,
    proven: BTreeMap<u64, Proven>,
    by_address: BTreeMap<IpAddr, Count>,
}

pub(super) struct Unproven {
    from: IpAddr,
    until: Instant,
    task: AbortHandle,
}

struct Proven {
    from: IpAddr,
    peer: Rc<PeerIdentity>,
    task: AbortHandle,
}

#[derive(Clone, Copy, Default)]
struct Count {
    unproven: usize,
    proven: usize,
}

impl Inbound {
    /// Proven ones and others.
    pub fn counts(&self) -> (u64, u64) {
        (self.proven.len() as u64, self.unproven.len() as u64)
    }

    /// Closes the connections of these peers.
    pub fn close(&mut self, of: impl Fn(&PeerIdentity) -> bool) {
        let closed: Vec<u64> = self.proven.iter().filter(|(_, p)| of(&p.peer)).map(|(id, _)| *id).collect();
        for id in closed {
            self.remove_proven(id);
        }
    }

    pub fn close_all(&mut self) {
        self.close(|_| true);
        while let Some((&id, _)) = self.unproven.first_key_value() {
            self.remove_unproven(id);
        }
    }

    fn count(&self, from: IpAddr) -> Count {
        self.by_address.get(&from).copied().unwrap_or_default()
    }

    fn recount(&mut self, from: IpAddr, change: impl FnOnce(&mut Count)) {
        let count = self.by_address.entry(from).or_default();
        change(count);
        if count.unproven == 0 && count.proven == 0 {
            self.by_address.remove(&from);
        }
    }

    /// Ends the task too; a task that removes itself has nothing left to do.
    fn remove_unproven(&mut self, id: u64) -> Option<IpAddr> {
        let Unproven { from, task, .. } = self.unproven.remove(&id)?;
        task.abort();
        self.recount(from, |count| count.unproven -= 1);
        Some(from)
    }

    fn remove_proven(&mut self, id: u64) {
        if let Some(Proven { from, task, .. }) = self.proven.remove(&id) {
            task.abort();
            self.recount(from, |count| count.proven -= 1);
        }
    }

    /// The oldest of an address, or of all.
    fn oldest(&self, of: Option<IpAddr>) -> Option<u64> {
        self.unproven.iter().find(|(_, u)| of.is_none_or(|of| of == u.from)).map(|(id, _)| *id)
    }
}

/// Takes connections until it is aborted.
pub(super) async fn serve(inner: Rc<Inner>, listener: TcpListener) {
    loop {
        let overdue = inner.inbound.borrow().unproven.first_key_value().map(|(id, u)| (*id, u.until));
        let too_late = async {
            match overdue {
                Some((id, until)) => {
                    tokio::time::sleep_until(until).await;
                    id
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            id = too_late => inner.evict(Some(id), "handshake timeout", "it did not prove who it is in time"),
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => inner.let_in(stream, from.ip().to_canonical()),
                Err(error) => {
                    tracing::warn!(%error, "a connection of a peer could not be accepted");
                    // Its file descriptor may be what is missing.
                    let oldest = inner.inbound.borrow().oldest(None);
                    inner.evict(oldest, "no file descriptor", "this process has no file descriptors left");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

impl Inner {
    fn let_in(self: &Rc<Self>, stream: TcpStream, from: IpAddr) {
        let limits = &self.config.limits;
        let crowded = |limit| format!("{limit} connections wait for their handshake already");
        let count = self.inbound.borrow().count(from);
        if count.unproven >= limits.unproven_per_address_max {
            let oldest = self.inbound.borrow().oldest(Some(from));
            self.evict(oldest, "crowded out", &crowded(limits.unproven_per_address_max));
        } else if self.inbound.borrow().unproven.len() >= limits.unproven_max {
            let oldest = self.inbound.borrow().oldest(None);
            self.evict(oldest, "crowded out", &crowded(limits.unproven_max));
        }
        let mut inbound = self.inbound.borrow_mut();
        let id = inbound.next;
        inbound.next += 1;
        let task = tokio::task::spawn_local(greet(Rc::clone(self), stream, from, id)).abort_handle();
        let until = Instant::now() + self.config.handshake_timeout;
        inbound.unproven.insert(id, Unproven { from, until, task });
        inbound.recount(from, |count| count.unproven += 1);
    }

    fn evict(&self, unproven: Option<u64>, reason: &'static str, why: &str) {
        let evicted = unproven.and_then(|id| self.inbound.borrow_mut().remove_unproven(id));
        if let Some(from) = evicted {
            self.note_inbound(from, reason, why);
        }
    }

    fn note_inbound(&self, from: IpAddr, reason: &'static str, why: &str) {
        self.note_refusal(Who::Inbound(from), reason, &format!("from {from}: {why}"));
    }

    /// Why a connection for this can be taken from nobody.
    fn obstacle(&self, from: IpAddr, purpose: Purpose) -> Option<Refusal> {
        if let Purpose::Stream { to, .. } = purpose {
            return self.stream_obstacle(to);
        }
        let inbound = self.inbound.borrow();
        let limits = &self.config.limits;
        let has_room = inbound.proven.len() < limits.inbound_max
            && inbound.count(from).proven < limits.inbound_per_address_max;
        (!has_room).then_some(Refusal::TooManyConnections)
    }
}

/// The handshake with a stranger. Its future is what a stranger costs.
async fn greet(inner: Rc<Inner>, mut stream: TcpStream, from: IpAddr, id: u64) {
    let hear = |hello: &_| {
        // Drawn only now: who connects and says nothing costs no entropy.
        let nonce = handshake::nonce().map_err(|_| HandshakeError::Unfinished)?;
        Acceptor::new(&inner.me.get(), hello, &nonce)
    };
    let judge = |acceptor: &Acceptor, proof: &_| {
        let obstacle = inner.obstacle(from, acceptor.purpose());
        acceptor.verdict(&inner.secret, proof, &|node| inner.known(node), obstacle)
    };
    let result = handshake::accept(&mut stream, hear, judge).await;
    match result {
        Err(error) => inner.note_inbound(from, error.name(), &error.to_string()),
        Ok(judged) => match (judged.refusal, judged.why()) {
            (Some(refusal), Some(why)) if refusal.is_passing() => {
                inner.count_refusal(refusal.name(), &format!("from {from}: {why}"));
            }
            (Some(refusal), Some(why)) => inner.note_inbound(from, refusal.name(), &why),
            _ => welcome(&inner, stream, from, id, judged),
        },
    }
    // Last, because it aborts this task.
    inner.inbound.borrow_mut().remove_unproven(id);
}

fn welcome(inner: &Rc<Inner>, stream: TcpStream, from: IpAddr, id: u64, judged: Box<Judged>) {
    if let Err(error) = tcp::set_up(&stream, judged.purpose) {
        return tracing::debug!(%from, "a peer's connection broke at once: {error}");
    }
    let peer = Rc::new(judged.peer);
    for ((node, _), kept) in &*inner.links.borrow() {
        if *node == peer.node {
            kept.link.heard_of();
        }
    }
    if judged.purpose != Purpose::Calls {
        return inner.give_stream(stream, from, &judged);
    }
    let mut inbound = inner.inbound.borrow_mut();
    let task = tokio::task::spawn_local(answer(Rc::clone(inner), stream, id, Rc::clone(&peer), judged))
        .abort_handle();
    inbound.proven.insert(id, Proven { from, peer, task });
    inbound.recount(from, |count| count.proven += 1);
}

/// Answers a peer's calls until its connection ends.
async fn answer(inner: Rc<Inner>, stream: TcpStream, id: u64, peer: Rc<PeerIdentity>, judged: Box<Judged>) {
    let node = peer.node;
    let counters = inner.counters_of(node);
    counters.connections.set(counters.connections.get() + 1);
    let closed = Closed(&counters);
    let pipe = Rc::new(Pipe::new(inner.config.limits.queued_bytes_max));
    let mut answerer = Answerer {
        peer,
        pipe: Rc::clone(&pipe),
        open: [const { Cell::new(0) }; 3].into(),
        charges: Default::default(),
        inner: Rc::clone(&inner),
    };
    let liveness = Liveness { ping_after: None, silence_max: inner.config.silence_max * 2 };
    let ended = connection::run(stream, judged.keys, &pipe, &counters, liveness, &mut answerer).await;
    tracing::debug!(peer = %node, "connection of a peer ended: {ended}");
    if let connection::Ended::Frame(error) = ended {
        let from = inner.inbound.borrow().proven.get(&id).map(|proven| proven.from);
        if let Some(from) = from {
            inner.note_inbound(from, super::BAD_FRAME, &format!("node {node}: {error}"));
        }
    }
    drop(closed);
    inner.inbound.borrow_mut().remove_proven(id);
}

/// Bytes of calls that count as held by this node, as long as this lives.
struct Charge {
    bytes: usize,
    of: Rc<Cell<usize>>,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.of.set(self.of.get() - self.bytes);
    }
}

/// The end of a connection that is called.
struct Answerer {
    inner: Rc<Inner>,
    peer: Rc<PeerIdentity>,
    pipe: Rc<Pipe>,
    /// Calls that are not answered, by class.
    open: Rc<[Cell<usize>; 3]>,
    /// For the bodies that are being put together, by class.
    charges: [Option<Charge>; 3],
}

impl Handler for Answerer {
    fn wanted(&mut self, header: &Header) -> bool {
        let limits = &self.inner.config.limits;
        let held = &self.inner.incoming_bytes;
        let class = header.class as usize;
        let room = held.get() + header.body_len <= limits.incoming_bytes_max
            && self.open[class].get() < limits.calls_max;
        if room && header.what == Type::Call {
            held.set(held.get() + header.body_len);
            self.charges[class] = Some(Charge { bytes: header.body_len, of: Rc::clone(held) });
        }
        room
    }

    fn on_message(&mut self, message: Message) -> Result<(), FrameError> {
        let Message { what: Type::Call, class, kind, call, body } = message else {
            return Err(FrameError::Unknown);
        };
        let charge = self.charges[class as usize].take();
        let Some(body) = body else {
            put(
                &self.pipe,
                class,
                kind,
                call,
                Err("the node has too many calls to answer; try again later".to_owned()),
            );
            return Ok(());
        };
        let pipe: Weak<Pipe> = Rc::downgrade(&self.pipe);
        let open = Rc::clone(&self.open);
        open[class as usize].set(open[class as usize].get() + 1);
        let reply = Box::new(move |answer| {
            drop(charge);
            open[class as usize].set(open[class as usize].get() - 1);
            // Without the connection nobody waits.
            if let Some(pipe) = pipe.upgrade() {
                put(&pipe, class, kind, call, answer);
            }
        });
        let peer = Some(Rc::clone(&self.peer));
        let incoming = Incoming { from: self.peer.node, kind, body, peer, reply: Some(reply) };
        match self.inner.incoming.try_send(incoming) {
            Ok(()) => {}
            Err(TrySendError::Full(incoming)) => {
                incoming.refuse("the node has too many calls to answer; try again later");
            }
            Err(TrySendError::Closed(incoming)) => incoming.refuse("the node is stopping"),
        }
        Ok(())
    }

    fn is_idle(&self) -> bool {
        false
    }
}

/// Sends an answer, or the reason of a refusal.
fn put(pipe: &Pipe, class: Class, kind: u16, call: u64, answer: Result<Bytes, String>) {
    let refusal = |why: &str| {
        let end = (0..=why.len().min(REFUSAL_MAX)).rfind(|end| why.is_char_boundary(*end)).unwrap_or(0);
        let body = Bytes::copy_from_slice(&why.as_bytes()[..end]);
        Outgoing { what: Type::Refusal, class, kind, call, body }
    };
    let outgoing = match answer {
        Ok(body) if body.len() > BODY_MAX => refusal("the answer is too large"),
        Ok(body) => Outgoing { what: Type::Answer, class, kind, call, body },
        Err(why) => refusal(&why),
    };
    let mut outbox = pipe.outbox.borrow_mut();
    let put = outbox.push(outgoing).or_else(|_| outbox.push(refusal("the answers before it are not taken")));
    if put.is_err() {
        pipe.overrun.set(true);
    }
    pipe.bell.notify_one();
}
