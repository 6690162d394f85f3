//! Connections between shards of different nodes: what a shard asks for is dialed, what others dial is let in, and both
//! are handed to the shard's driver.
//!
//! Driver; control core. Who may talk to whom is decided by the handshake, from the registrations of the image, which it
//! is told of here. A shard that asked hears of every attempt once; it is the one that tries again.

use highwater_shards::ids::{NodeId, ShardId};
use highwater_shards::reactor::handover::{Adopted, ToDriver};

use super::{Cluster, Effect, Told};
use crate::control::metadata::image::{Image, NodeInfo};
use crate::kafka::Kafka;
use crate::net::peers::{Registration, Stream};

/// Connections that one shard may have asked for and not got yet; what it asks beyond that fails at once.
pub(super) const DIALS_MAX: usize = 1024;

impl Cluster {
    /// Tells the peers which nodes are registered, and how.
    pub fn learn(&mut self, image: &Image) {
        let Some(peers) = &self.peers else { return };
        let nodes = || {
            let registration =
                |info: &NodeInfo| Registration { incarnation: info.incarnation, epoch: info.epoch };
            image.nodes.values().map(move |info| (info.id, registration(info)))
        };
        if !nodes().eq(self.registered.iter().copied()) {
            self.registered = nodes().collect();
            peers.set_registered(nodes());
        }
    }

    /// A shard of this node asks for a connection to one of another.
    pub fn dial(&self, from: ShardId, node: NodeId, shard: ShardId, image: &Image) -> Option<Effect> {
        let failed = || Some(to_driver(from, ToDriver::DialFailed { node, shard }));
        let (Some(peers), Some(info)) = (&self.peers, image.nodes.get(&node)) else { return failed() };
        let slot = self.dials.get(usize::from(from.0)).and_then(|dials| dials.take(DIALS_MAX));
        let Some(slot) = slot.filter(|_| node != self.member.node) else { return failed() };
        let (peers, at, tell) = (peers.clone(), info.cluster.clone(), self.tell.clone());
        tokio::task::spawn_local(async move {
            let stream = peers.open_stream(from, node, shard, &at).await;
            if let Err(error) = &stream {
                tracing::debug!(%from, "no stream to shard {shard} of node {node}: {error}");
            }
            // The node may have stopped.
            let _ = tell.send(Told::Dialed { from, node, shard, stream: stream.ok() }).await;
            drop(slot);
        });
        None
    }
}

pub(super) fn on_dialed(from: ShardId, node: NodeId, shard: ShardId, stream: Option<Stream>) -> Effect {
    match stream {
        Some(stream) => on_stream(stream),
        None => to_driver(from, ToDriver::DialFailed { node, shard }),
    }
}

pub(super) fn on_stream(stream: Stream) -> Effect {
    let Stream { socket, node, epoch, local_shard, remote_shard, dialed } = stream;
    to_driver(local_shard, ToDriver::Adopt(Adopted { socket, node, remote_shard, epoch, dialed }))
}

fn to_driver(shard: ShardId, message: ToDriver<Kafka>) -> Effect {
    Effect::ToDriver { shard, message }
}

#[cfg(test)]
mod tests;
