//! From what a client names (a topic, a partition, a broker) to where it lives, and back. Pure; reads the image only.

use std::sync::Arc;

use highwater_shards::ids::{NodeId, PartitionId, PartitionIndex, ShardId, TopicId};

use super::errors::ErrorCode;
use super::wire::{DecodeError, Reader, Version, Wire, Writer};
use crate::control::metadata::image::{Endpoint, Image, NodeInfo, PartitionState, Topic};

/// A topic as a request names it and its answer must.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TopicKey {
    Name(Arc<str>),
    Id(TopicId),
}

/// Reads a topic's name or, in versions that have ids, its id, and looks it up.
pub fn read_topic<'i>(
    r: &mut Reader<'_>,
    v: Version,
    by_id: bool,
    image: &'i Image,
) -> Result<(TopicKey, Result<&'i Topic, ErrorCode>), DecodeError> {
    if by_id {
        let id = TopicId::decode(r, v)?;
        let topic = image.topic_by_id(id).map(Arc::as_ref).ok_or(ErrorCode::UnknownTopicId);
        return Ok((TopicKey::Id(id), topic));
    }
    let name = r.required_str(v)?;
    Ok(match image.topic(name) {
        Some(topic) => (TopicKey::Name(topic.name.clone()), Ok(topic)),
        None => (TopicKey::Name(name.into()), Err(ErrorCode::UnknownTopicOrPartition)),
    })
}

/// The fewest bytes of a topic with an array of partitions, for [`Reader::count`].
pub fn topic_size_min(v: Version, by_id: bool) -> usize {
    let key = if by_id { 16 } else { String::size_min(v) };
    key + Vec::<i32>::size_min(v) + usize::from(v.flexible)
}

impl TopicKey {
    pub fn encode(&self, w: &mut Writer, v: Version) {
        match self {
            Self::Name(name) => w.str(Some(name), v),
            Self::Id(id) => w.u128(id.0),
        }
    }

    /// Bytes of its encoding, at most.
    pub fn len_max(&self) -> usize {
        match self {
            Self::Name(name) => name.len() + 5,
            Self::Id(_) => 16,
        }
    }
}

/// Where operations on a partition go when this node leads it.
pub fn route(
    image: &Image,
    node: NodeId,
    topic: &Topic,
    index: i32,
) -> Result<(ShardId, PartitionId), ErrorCode> {
    let (target, leads) = route_read(image, node, topic, index)?;
    if leads { Ok(target) } else { Err(ErrorCode::NotLeaderOrFollower) }
}

/// Where reads of a partition go when this node leads it or follows in sync, and whether it leads. What is not in sync
/// would keep its readers from records that others have.
pub fn route_read(
    image: &Image,
    node: NodeId,
    topic: &Topic,
    index: i32,
) -> Result<((ShardId, PartitionId), bool), ErrorCode> {
    let index = PartitionIndex(u32::try_from(index).map_err(|_| ErrorCode::UnknownTopicOrPartition)?);
    let state = topic.partition(index).ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let leads = state.leader == Some(node);
    let follows_in_sync = state.leader.is_some() && state.isr.contains(&node);
    if !(leads || follows_in_sync) {
        return Err(ErrorCode::NotLeaderOrFollower);
    }
    let id = topic.partition_id(index);
    let shard = image.local_shard(id).ok_or(ErrorCode::NotLeaderOrFollower)?;
    Ok(((shard, id), leads))
}

/// Who follows a partition in sync in `rack`, while its leader, `this`, is in another (KIP-392).
pub fn followers_in(image: &Image, this: NodeId, partition: PartitionId, rack: &str) -> Vec<NodeId> {
    let is_there = |node: &NodeId| {
        image.nodes.get(node).is_some_and(|info| info.is_active() && info.rack.as_deref() == Some(rack))
    };
    match image.partition(partition) {
        // In the order of preference as leader: the same one first on every request.
        Some(state) if !is_there(&this) => {
            state.replicas.iter().filter(|node| state.isr.contains(node) && is_there(node)).copied().collect()
        }
        _ => Vec::new(),
    }
}

/// Ids that one node can give its shards when it routes by core.
const SHARDS_PER_NODE: i32 = 1024;

/// The brokers that Kafka clients see: one per node, or one per shard of a node that routes by core, so that a
/// client connects straight to the core that owns a partition.
#[derive(Clone, Copy, Debug)]
pub struct Brokers<'i> {
    pub image: &'i Image,
    /// The node that answers: only its own partitions are known by shard.
    pub this: NodeId,
}

impl<'i> Brokers<'i> {
    /// All of a node's brokers: id and address.
    pub fn of(node: &'i NodeInfo) -> impl Iterator<Item = (i32, &'i Endpoint)> {
        let by_node = node.shard_clients.is_empty().then_some((wire(node.id), &node.client));
        let by_core = (0..).zip(&node.shard_clients);
        by_node.into_iter().chain(by_core.map(|(shard, at)| (shard_broker(node.id, shard), at)))
    }

    /// The broker to ask for what belongs to a node as a whole.
    pub fn id(&self, node: NodeId) -> i32 {
        match self.image.nodes.get(&node) {
            Some(info) if !info.shard_clients.is_empty() => shard_broker(node, 0),
            _ => wire(node),
        }
    }

    /// The broker that clients send changes of the metadata to, which any node takes; -1 while nobody is known.
    pub fn controller(&self) -> i32 {
        self.image.controller.filter(|&node| self.serves(node)).map_or(-1, |node| self.id(node))
    }

    /// The broker that stands for a node's replica of a partition.
    pub fn replica(&self, node: NodeId, partition: PartitionId) -> i32 {
        let shards = self.image.nodes.get(&node).map_or(0, |info| info.shard_clients.len());
        if shards == 0 {
            return wire(node);
        }
        // Which core of another node owns it is that node's own affair; any of them passes operations on.
        let shard = match self.image.local_shard(partition) {
            Some(shard) if node == self.this => usize::from(shard.0),
            _ => usize::try_from(partition.index.0).unwrap_or(0) % shards,
        };
        shard_broker(node, i32::try_from(shard).unwrap_or(0))
    }

    /// Whether clients are sent to this node.
    pub fn serves(&self, node: NodeId) -> bool {
        self.image.serves(node)
    }

    /// The leader of a partition, when clients can be sent to it.
    pub fn leader(&self, state: &PartitionState) -> Option<NodeId> {
        state.leader.filter(|&node| self.serves(node))
    }

    /// The node behind a broker id that a client sent; a node that does not exist for an unknown one.
    pub fn node(&self, broker: i32) -> Option<NodeId> {
        let by_core = NodeId(u32::try_from(broker / SHARDS_PER_NODE).ok()?);
        let by_node = NodeId(u32::try_from(broker).ok()?);
        let routes_by_core = |id| self.image.nodes.get(&id).is_some_and(|n| !n.shard_clients.is_empty());
        Some(if routes_by_core(by_core) { by_core } else { by_node })
    }
}

fn wire(node: NodeId) -> i32 {
    i32::try_from(node.0).unwrap_or(i32::MAX)
}

fn shard_broker(node: NodeId, shard: i32) -> i32 {
    wire(node).saturating_mul(SHARDS_PER_NODE).saturating_add(shard)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u32, shards: u16) -> Arc<NodeInfo> {
        let at = |port| Endpoint { host: "h".into(), port };
        Arc::new(NodeInfo {
            id: NodeId(id),
            client: at(9092),
            shard_clients: (0..shards).map(|s| at(9100 + s)).collect(),
            ..NodeInfo::default()
        })
    }

    #[test]
    fn each_shard_of_a_node_that_routes_by_core_is_a_broker() {
        let mut image = Image::default();
        image.nodes.insert(NodeId(1), node(1, 0));
        image.nodes.insert(NodeId(2), node(2, 2));
        let brokers = Brokers { image: &image, this: NodeId(2) };
        let ids =
            |id| Brokers::of(&image.nodes[&NodeId(id)]).map(|(id, at)| (id, at.port)).collect::<Vec<_>>();
        assert_eq!(ids(1), [(1, 9092)]);
        assert_eq!(ids(2), [(2048, 9100), (2049, 9101)]);
        assert_eq!((brokers.id(NodeId(1)), brokers.id(NodeId(2))), (1, 2048));
        for (broker, node) in [(1, 1), (2048, 2), (2049, 2), (7, 7)] {
            assert_eq!(brokers.node(broker), Some(NodeId(node)));
        }
        assert_eq!(brokers.node(-1), None);
    }

    #[test]
    fn a_partition_of_this_node_is_led_by_the_broker_of_its_shard() {
        let mut image = Image::default();
        image.nodes.insert(NodeId(2), node(2, 4));
        let partition = PartitionId { topic: TopicId(9), index: PartitionIndex(6) };
        image.put_local_shard(partition, ShardId(3));
        let here = Brokers { image: &image, this: NodeId(2) };
        let elsewhere = Brokers { image: &image, this: NodeId(1) };
        assert_eq!(here.replica(NodeId(2), partition), 2051);
        assert_eq!(elsewhere.replica(NodeId(2), partition), 2050);
    }
}
