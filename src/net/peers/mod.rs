//! Peers over TCP: an address book, a [`Link`] to each peer and lane, and the door through which others come.
//!
//! Runs on the control core's thread, inside a `LocalSet`; nothing in here is `Send`. A connection carries calls one way,
//! from who dialed; or, once both ends have proven who they are, it is given away to the shards ([`streams`]). Urgent and append calls share one connection to a peer, bulk has another, so that what a snapshot has
//! in flight delays no heartbeat.

mod accept;
mod connection;
mod handshake;
mod link;
mod streams;
mod tcp;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use highwater_shards::ids::NodeId;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::auth::{ClusterId, DiskId, HandshakeError, Judged, Known, PeerIdentity, Purpose, Refusal, Secret};
use super::refusals::{Refusals, Who};
use super::stats::{NetStats, PeerCounters, add};
use super::{CallError, Class, Incoming, Network};
use crate::control::metadata::image::Endpoint;
use accept::Inbound;
use connection::{Ended, Liveness};
use handshake::Own;
use link::Link;
use streams::Streams;

pub use link::Backoff;
pub use streams::{ACCEPTED_MAX, Registration, Stream};

/// Peers whose numbers are kept. More than a cluster has, so that node ids made up by whoever knows the secret do not
/// fill the memory.
const COUNTED_MAX: usize = 1024;

/// As metrics call a connection that was closed for what came over it.
const BAD_FRAME: &str = "bad frame";

/// What bounds the peers' memory and sockets.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Calls of one class to one peer that wait for their answers.
    pub calls_max: usize,
    /// Bytes that wait to be sent to one peer, by class. One body finds room whatever its length.
    pub queued_bytes_max: [usize; 3],
    /// Calls of others that wait to be taken by this node.
    pub incoming_max: usize,
    /// Bytes of calls of others that this node has not answered, over all peers.
    pub incoming_bytes_max: usize,
    /// Connections from others that have proven who they are.
    pub inbound_max: usize,
    pub inbound_per_address_max: usize,
    /// Connections from others that have not; a new one takes the place of the oldest.
    pub unproven_max: usize,
    pub unproven_per_address_max: usize,
    /// Calls to addresses, and questions who is there, at one time.
    pub one_off_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: usize = 1 << 20;
        Self {
            calls_max: 1024,
            queued_bytes_max: [4 * MIB, 32 * MIB, 64 * MIB],
            incoming_max: 4096,
            incoming_bytes_max: 256 * MIB,
            inbound_max: 1024,
            inbound_per_address_max: 256,
            unproven_max: 1024,
            unproven_per_address_max: 256,
            one_off_max: 32,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Config {
    pub limits: Limits,
    /// For name, connection and handshake together.
    pub connect_timeout: Duration,
    /// For the opening of a stream between shards, with the wait for others to the same node.
    pub stream_timeout: Duration,
    /// For a stranger to prove who it is.
    pub handshake_timeout: Duration,
    /// The dialer asks whether the other end is there after so much silence,
    pub ping_after: Duration,
    /// and gives the connection up after so much. The other end waits twice as long.
    pub silence_max: Duration,
    /// A connection without a call for so long is closed.
    pub idle_max: Duration,
    pub backoff: Backoff,
    /// Of the jitter.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            connect_timeout: Duration::from_secs(3),
            stream_timeout: Duration::from_secs(2),
            handshake_timeout: Duration::from_secs(3),
            ping_after: Duration::from_secs(2),
            silence_max: Duration::from_secs(6),
            idle_max: Duration::from_secs(60),
            backoff: Backoff { first: Duration::from_millis(50), max: Duration::from_millis(500) },
            seed: 0,
        }
    }
}

/// A connection of a peer: calls of these classes share it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Lane {
    Fast,
    Bulk,
}

impl From<Class> for Lane {
    fn from(class: Class) -> Self {
        match class {
            Class::Urgent | Class::Append => Self::Fast,
            Class::Bulk => Self::Bulk,
        }
    }
}

/// All peers of this node. A clone is another handle.
#[derive(Clone)]
pub struct Peers {
    inner: Rc<Inner>,
}

struct Inner {
    config: Config,
    secret: Secret,
    me: Cell<PeerIdentity>,
    addresses: RefCell<BTreeMap<NodeId, Endpoint>>,
    /// The disk that a node is known by in the committed image.
    disks: RefCell<BTreeMap<NodeId, DiskId>>,
    links: RefCell<BTreeMap<(NodeId, Lane), Kept>>,
    inbound: RefCell<Inbound>,
    streams: RefCell<Streams>,
    incoming: mpsc::Sender<Incoming>,
    incoming_bytes: Rc<Cell<usize>>,
    one_offs: Cell<usize>,
    counters: RefCell<BTreeMap<NodeId, Rc<PeerCounters>>>,
    refusals: RefCell<Refusals>,
    random: RefCell<Xoshiro256PlusPlus>,
    started: Instant,
    door: Cell<Option<AbortHandle>>,
}

/// A link, and the task that dials for it.
struct Kept {
    link: Rc<Link>,
    task: AbortHandle,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("no connection in time")]
    TimedOut,
    #[error("{error}")]
    Handshake { at: SocketAddr, error: HandshakeError },
    #[error("{why}")]
    Refused { at: SocketAddr, refusal: Refusal, why: String },
}

impl Peers {
    /// Starts on the current `LocalSet`. Calls of others come out of the receiver. Without a listener nobody can call
    /// this node, and it can call others all the same.
    pub fn start(
        config: Config,
        secret: Secret,
        me: PeerIdentity,
        listener: Option<TcpListener>,
    ) -> (Self, mpsc::Receiver<Incoming>) {
        let (incoming, receiver) = mpsc::channel(config.limits.incoming_max);
        let inner = Rc::new(Inner {
            secret,
            me: Cell::new(me),
            addresses: RefCell::default(),
            disks: RefCell::default(),
            links: RefCell::default(),
            inbound: RefCell::default(),
            streams: RefCell::default(),
            incoming,
            incoming_bytes: Rc::default(),
            one_offs: Cell::new(0),
            counters: RefCell::default(),
            refusals: RefCell::default(),
            random: RefCell::new(Xoshiro256PlusPlus::seed_from_u64(config.seed)),
            started: Instant::now(),
            door: Cell::new(None),
            config,
        });
        if let Some(listener) = listener {
            let door = tokio::task::spawn_local(accept::serve(Rc::clone(&inner), listener));
            inner.door.set(Some(door.abort_handle()));
        }
        (Self { inner }, receiver)
    }

    /// Where a peer is. An other address than before ends the calls that are on their way to the old one.
    pub fn set_peer(&self, node: NodeId, at: Endpoint) {
        let before = self.inner.addresses.borrow_mut().insert(node, at.clone());
        if before.is_some_and(|before| before != at) {
            self.inner.close_links(|of, _| of == node, "the address of the node has changed");
        }
    }

    pub fn remove_peer(&self, node: NodeId) {
        self.inner.addresses.borrow_mut().remove(&node);
        self.inner.close_links(|of, _| of == node, "the node was removed");
        self.inner.counters.borrow_mut().remove(&node);
    }

    /// The disk that a node is known by: who comes with another one under its id is refused, and put out if it is in.
    pub fn set_disk(&self, node: NodeId, disk: DiskId) {
        if self.inner.disks.borrow_mut().insert(node, disk) != Some(disk) {
            let is_other = |link: &Link| link.disk.get().is_some_and(|its| its != disk);
            self.inner.close_links(|of, link| of == node && is_other(link), "the node has another disk");
            self.inner.inbound.borrow_mut().close(|peer| peer.node == node && peer.disk != disk);
        }
    }

    pub fn forget_disk(&self, node: NodeId) {
        self.inner.disks.borrow_mut().remove(&node);
    }

    /// This node belongs to a cluster from now on. All connections are made anew, so that everybody learns it; calls on
    /// their way end as unreachable.
    pub fn set_cluster(&self, cluster: ClusterId) {
        let me = self.inner.me.get();
        if me.cluster != Some(cluster) {
            self.inner.me.set(PeerIdentity { cluster: Some(cluster), ..me });
            self.inner.close_links(|_, _| true, "this node has become part of a cluster");
            self.inner.inbound.borrow_mut().close_all();
        }
    }

    pub fn me(&self) -> PeerIdentity {
        self.inner.me.get()
    }

    /// Asks who is at an address. Its owner proves it, and this node proves itself.
    pub async fn probe(&self, at: &Endpoint, deadline: Duration) -> Result<PeerIdentity, CallError> {
        let probe = async {
            let _one = self.inner.one_off()?;
            let (_, judged, _) =
                self.inner.dial(at, None, Purpose::Calls).await.map_err(|e| self.inner.undialed(at, &e))?;
            Ok(judged.peer)
        };
        tokio::time::timeout(deadline, probe).await.unwrap_or(Err(CallError::TimedOut))
    }

    /// Calls whoever is at an address, and says who it was. On a connection of its own.
    pub async fn call_endpoint(
        &self,
        at: &Endpoint,
        class: Class,
        kind: u16,
        body: Bytes,
        deadline: Duration,
    ) -> Result<(PeerIdentity, Bytes), CallError> {
        let call = async {
            let inner = &self.inner;
            let _one = inner.one_off()?;
            let (stream, judged, _) =
                inner.dial(at, None, Purpose::Calls).await.map_err(|e| inner.undialed(at, &e))?;
            let Judged { peer, keys, .. } = *judged;
            let link = Link::new(&inner.config, Rc::default());
            tokio::select! {
                biased;
                answer = link.call(class, kind, body, deadline) => answer.map(|answer| (peer, answer)),
                ended = link.run(stream, keys, inner.dialers_liveness()) => {
                    Err(CallError::Unreachable(ended.to_string()))
                }
            }
        };
        tokio::time::timeout(deadline, call).await.unwrap_or(Err(CallError::TimedOut))
    }

    /// Ends everything: connections, calls on their way, and the door.
    pub fn close(&self) {
        if let Some(door) = self.inner.door.take() {
            door.abort();
        }
        self.inner.addresses.borrow_mut().clear();
        self.inner.close_links(|_, _| true, "this node is stopping");
        self.inner.refuse_streams();
        self.inner.inbound.borrow_mut().close_all();
    }

    pub fn stats(&self) -> NetStats {
        let inner = &self.inner;
        let (inbound, unproven) = inner.inbound.borrow().counts();
        NetStats {
            peers: inner.counters.borrow().iter().map(|(node, counters)| counters.read(*node)).collect(),
            refusals: inner.refusals.borrow().counts(),
            inbound,
            unproven,
            incoming_bytes: inner.incoming_bytes.get() as u64,
        }
    }
}

impl Network for Peers {
    async fn call(
        &self,
        to: NodeId,
        class: Class,
        kind: u16,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, CallError> {
        let link = self
            .inner
            .link(to, class.into())
            .ok_or_else(|| CallError::Unreachable(format!("no address of node {to} is known")))?;
        link.call(class, kind, body, deadline).await
    }
}

/// A place among the calls to addresses.
struct OneOff<'a>(&'a Cell<usize>);

impl Drop for OneOff<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Inner {
    fn link(self: &Rc<Self>, to: NodeId, lane: Lane) -> Option<Rc<Link>> {
        if let Some(kept) = self.links.borrow().get(&(to, lane)) {
            return Some(Rc::clone(&kept.link));
        }
        let at = self.addresses.borrow().get(&to)?.clone();
        let link = Rc::new(Link::new(&self.config, self.counters_of(to)));
        let task = tokio::task::spawn_local(Rc::clone(self).keep_linked(to, at, Rc::clone(&link)));
        self.links
            .borrow_mut()
            .insert((to, lane), Kept { link: Rc::clone(&link), task: task.abort_handle() });
        Some(link)
    }

    fn close_links(&self, of: impl Fn(NodeId, &Link) -> bool, why: &str) {
        let closes = |((node, _), kept): (&(NodeId, Lane), &Kept)| of(*node, &kept.link);
        let closed: Vec<_> =
            self.links.borrow().iter().filter(|entry| closes(*entry)).map(|(at, _)| *at).collect();
        for at in closed {
            let kept = self.links.borrow_mut().remove(&at);
            if let Some(Kept { link, task }) = kept {
                task.abort();
                link.fail_all(why);
            }
        }
    }

    /// Dials whenever there is something to say and no connection.
    async fn keep_linked(self: Rc<Self>, to: NodeId, at: Endpoint, link: Rc<Link>) {
        let mut was_linked = false;
        loop {
            link.work().await;
            match self.dial(&at, Some(to), Purpose::Calls).await {
                Ok((stream, judged, address)) => {
                    if std::mem::replace(&mut was_linked, true) {
                        add(&link.counters.reconnects, 1);
                    }
                    link.disk.set(Some(judged.peer.disk));
                    let began = Instant::now();
                    let ended = link.run(stream, judged.keys, self.dialers_liveness()).await;
                    link.disk.set(None);
                    let why = format!("node {to} at {address}: {ended}");
                    tracing::debug!("connection ended: {why}");
                    if matches!(ended, Ended::Frame(_)) {
                        self.note_refusal(Who::Outbound(address), BAD_FRAME, &why);
                    }
                    if !matches!(ended, Ended::Idle) {
                        link.ended(
                            began.elapsed(),
                            &why,
                            &self.config.backoff,
                            &mut self.random.borrow_mut(),
                        );
                    }
                }
                Err(error) => {
                    let why = format!("node {to} at {}:{}: {error}", at.host, at.port);
                    self.note_undialed(&why, &error);
                    link.failed(why, &self.config.backoff, &mut self.random.borrow_mut());
                }
            }
        }
    }

    /// Connects and shakes hands. What comes back may be talked to.
    async fn dial(
        &self,
        at: &Endpoint,
        to: Option<NodeId>,
        purpose: Purpose,
    ) -> Result<(TcpStream, Box<Judged>, SocketAddr), DialError> {
        let limit = self.config.connect_timeout;
        let dial = async {
            let (mut stream, at) = tcp::connect(at, limit).await?;
            tcp::set_up(&stream, purpose)?;
            let me = self.me.get();
            let own = Own { secret: &self.secret, me, knows: &|node| self.known(node) };
            let judged = handshake::dial(&mut stream, &own, to, purpose, &handshake::nonce()?)
                .await
                .map_err(|error| DialError::Handshake { at, error })?;
            match (judged.refusal, judged.why()) {
                (Some(refusal), Some(why)) => Err(DialError::Refused { at, refusal, why }),
                _ => Ok((stream, judged, at)),
            }
        };
        tokio::time::timeout(limit, dial).await.unwrap_or(Err(DialError::TimedOut))
    }

    fn undialed(&self, at: &Endpoint, error: &DialError) -> CallError {
        let why = format!("{}:{}: {error}", at.host, at.port);
        self.note_undialed(&why, error);
        match error {
            DialError::Refused { refusal, .. } => CallError::Rejected { refusal: *refusal, why },
            _ => CallError::Unreachable(why),
        }
    }

    fn note_undialed(&self, why: &str, error: &DialError) {
        let (at, reason) = match error {
            // Peers come and go: whoever calls says it if it matters.
            DialError::Io(_) | DialError::TimedOut => return tracing::debug!("{why}"),
            DialError::Handshake { at, error } => (at, error.name()),
            DialError::Refused { at, refusal, .. } => (at, refusal.name()),
        };
        match error {
            DialError::Refused { refusal, .. } if refusal.is_passing() => self.count_refusal(reason, why),
            _ => self.note_refusal(Who::Outbound(*at), reason, why),
        }
    }

    /// Counts what passes by itself.
    fn count_refusal(&self, reason: &'static str, why: &str) {
        self.refusals.borrow_mut().count(reason);
        tracing::debug!("a connection was refused: {why}");
    }

    fn note_refusal(&self, who: Who, reason: &'static str, why: &str) {
        if let Some(untold) = self.refusals.borrow_mut().note(self.started.elapsed(), who, reason) {
            tracing::warn!(untold, "a connection was refused: {why}");
        }
    }

    fn known(&self, node: NodeId) -> Known {
        Known { disk: self.disks.borrow().get(&node).copied(), registered: self.registered(node) }
    }

    fn counters_of(&self, node: NodeId) -> Rc<PeerCounters> {
        let mut counters = self.counters.borrow_mut();
        if counters.len() >= COUNTED_MAX && !counters.contains_key(&node) {
            return Rc::default();
        }
        Rc::clone(counters.entry(node).or_default())
    }

    fn one_off(&self) -> Result<OneOff<'_>, CallError> {
        if self.one_offs.get() >= self.config.limits.one_off_max {
            return Err(CallError::Full);
        }
        self.one_offs.set(self.one_offs.get() + 1);
        Ok(OneOff(&self.one_offs))
    }

    fn dialers_liveness(&self) -> Liveness {
        Liveness { ping_after: Some(self.config.ping_after), silence_max: self.config.silence_max }
    }
}
