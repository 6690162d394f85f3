//! Streams between shards: opened here, over the same port and by the same handshake as calls, and then given away as
//! bare sockets.
//!
//! Runs on the control core's thread. A stream is let in only from a node that the committed metadata has in its present
//! life, and is opened only to such a one; so each end knows under which registration the other one speaks. Once given
//! away, this node's control core holds nothing of it: who wants it closed when a node is registered anew is the shard.
//!
//! Nothing that comes behind the handshake is lost: its messages have fixed sizes and are read from the bare socket to
//! their last byte and no further, so what a quick peer sends behind them stays in the kernel for the shard.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use highwater_shards::ids::{NodeId, RegistrationEpoch, ShardId};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};

use super::{CallError, Inner, Peers};
use crate::control::metadata::image::{Endpoint, Incarnation};
use crate::net::auth::{Judged, Purpose, Refusal};
use crate::net::stats::add;

/// Streams from others that wait to be given to their shards; a further one is refused and comes again.
pub const ACCEPTED_MAX: usize = 256;
/// Streams to one node that are being opened at one time; further ones wait within their own time.
const DIALS_PER_NODE_MAX: usize = 32;

/// A node as the cluster's metadata has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Registration {
    pub incarnation: Incarnation,
    pub epoch: RegistrationEpoch,
}

/// A connection between a shard of this node and one of another, ready to be spoken on.
#[derive(Debug)]
pub struct Stream {
    /// Does not block.
    pub socket: OwnedFd,
    pub node: NodeId,
    /// Under which the metadata of this node has the other, in the life in which it has proven itself.
    pub epoch: RegistrationEpoch,
    pub local_shard: ShardId,
    pub remote_shard: ShardId,
    /// Whether this node opened it.
    pub dialed: bool,
}

#[derive(Default)]
pub(super) struct Streams {
    registered: BTreeMap<NodeId, Registration>,
    taker: Option<Taker>,
    /// Places among those that are being opened, of nodes where there are some.
    dials: BTreeMap<NodeId, Rc<Semaphore>>,
}

/// Who takes streams from others.
struct Taker {
    shards: u16,
    accepted: mpsc::Sender<Stream>,
}

impl Peers {
    /// From now on streams to this node's shards, numbered from 0, are let in and come out here.
    pub fn take_streams(&self, shards: u16) -> mpsc::Receiver<Stream> {
        let (accepted, streams) = mpsc::channel(ACCEPTED_MAX);
        self.inner.streams.borrow_mut().taker = Some(Taker { shards, accepted });
        streams
    }

    /// The nodes of the cluster as its metadata has them now; all others are strangers to streams.
    pub fn set_registered(&self, nodes: impl Iterator<Item = (NodeId, Registration)>) {
        self.inner.streams.borrow_mut().registered = nodes.collect();
    }

    /// Opens a stream from a shard of this node to one of another, in bounded time.
    ///
    /// # Errors
    /// When the node is not there, or refuses, or is not registered here.
    pub async fn open_stream(
        &self,
        from: ShardId,
        to: NodeId,
        shard: ShardId,
        at: &Endpoint,
    ) -> Result<Stream, CallError> {
        let inner = &self.inner;
        let counters = inner.counters_of(to);
        let opened =
            tokio::time::timeout(inner.config.stream_timeout, inner.open_stream(from, to, shard, at));
        let opened = opened.await.unwrap_or(Err(CallError::TimedOut));
        add(if opened.is_ok() { &counters.streams_dialed } else { &counters.streams_failed }, 1);
        opened
    }
}

impl Inner {
    async fn open_stream(
        &self,
        from: ShardId,
        to: NodeId,
        shard: ShardId,
        at: &Endpoint,
    ) -> Result<Stream, CallError> {
        let places = {
            let dials = &mut self.streams.borrow_mut().dials;
            dials.retain(|_, places| Rc::strong_count(places) > 1);
            Rc::clone(dials.entry(to).or_insert_with(|| Rc::new(Semaphore::new(DIALS_PER_NODE_MAX))))
        };
        let _place = places.acquire().await.expect("nobody closes it");
        let purpose = Purpose::Stream { from, to: shard };
        let (stream, judged, _) = match self.dial(at, Some(to), purpose).await {
            Ok(dialed) => dialed,
            Err(error) => return Err(self.undialed(at, &error)),
        };
        let broken = |error: std::io::Error| CallError::Unreachable(error.to_string());
        let epoch = self.registered_as(to, judged.peer.incarnation);
        let epoch = epoch.ok_or_else(|| CallError::Unreachable("the node was registered anew".into()))?;
        let socket = stream.into_std().map_err(broken)?.into();
        Ok(Stream { socket, node: to, epoch, local_shard: from, remote_shard: shard, dialed: true })
    }

    /// The life in which the metadata has a node.
    pub(super) fn registered(&self, node: NodeId) -> Option<Incarnation> {
        self.streams.borrow().registered.get(&node).map(|registered| registered.incarnation)
    }

    fn registered_as(&self, node: NodeId, incarnation: Incarnation) -> Option<RegistrationEpoch> {
        let streams = self.streams.borrow();
        let registered = streams.registered.get(&node)?;
        (registered.incarnation == incarnation).then_some(registered.epoch)
    }

    /// Why no stream to this shard can be taken from anybody.
    pub(super) fn stream_obstacle(&self, to: ShardId) -> Option<Refusal> {
        match &self.streams.borrow().taker {
            Some(taker) if to.0 < taker.shards => {
                (taker.accepted.capacity() == 0).then_some(Refusal::TooManyConnections)
            }
            _ => Some(Refusal::NoSuchShard),
        }
    }

    /// Gives a stream from another node away. What changed since the verdict closes it.
    pub(super) fn give_stream(&self, socket: TcpStream, from: IpAddr, judged: &Judged) {
        let Purpose::Stream { from: remote_shard, to: local_shard } = judged.purpose else {
            unreachable!("only streams are given away")
        };
        let node = judged.peer.node;
        let given = || {
            let epoch = self.registered_as(node, judged.peer.incarnation)?;
            let socket = socket.into_std().ok()?.into();
            let stream = Stream { socket, node, epoch, local_shard, remote_shard, dialed: false };
            let streams = self.streams.borrow();
            streams.taker.as_ref()?.accepted.try_send(stream).ok()
        };
        match given() {
            Some(()) => add(&self.counters_of(node).streams_accepted, 1),
            None => tracing::debug!(%node, %from, "a stream was closed again as it came"),
        }
    }

    /// No more streams from others.
    pub(super) fn refuse_streams(&self) {
        self.streams.borrow_mut().taker = None;
    }
}
