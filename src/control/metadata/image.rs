//! The immutable image of the cluster's committed metadata. A change makes a new image that shares almost
//! everything with the old one; shards get the new one by message and answer Metadata from it.

use std::collections::BTreeMap;
use std::sync::Arc;

use highwater_shards::ids::{
    LeaderEpoch, NodeId, PartitionEpoch, PartitionId, PartitionIndex, Revision, ShardId, TopicId,
};
use imbl::{OrdMap, Vector};

/// Everything that is committed up to `revision`, and where this node keeps its replicas.
#[derive(Clone, Debug, Default)]
pub struct Image {
    pub revision: Revision,
    pub cluster_id: Arc<str>,
    pub controller: Option<NodeId>,
    pub nodes: OrdMap<NodeId, Arc<NodeInfo>>,
    /// Cluster-wide defaults of topic settings that were set at run time, over those of the config file.
    pub cluster_config: Arc<BTreeMap<String, String>>,
    topics: OrdMap<TopicId, Arc<Topic>>,
    names: OrdMap<Arc<str>, TopicId>,
    /// Which shard of this node owns a partition: the node's own affair, kept in its local store.
    local_shards: OrdMap<PartitionId, ShardId>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeInfo {
    pub id: NodeId,
    pub rack: Option<String>,
    /// Where Kafka clients reach the node.
    pub client: Endpoint,
    /// Where clients reach each shard when the node routes by core; empty when it routes by node.
    pub shard_clients: Vec<Endpoint>,
    pub fenced: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Topic {
    pub id: TopicId,
    pub name: Arc<str>,
    /// By partition index, without gaps.
    pub partitions: Vector<PartitionState>,
    /// Settings of this topic that differ from the defaults, as they were given and checked.
    pub config: Arc<BTreeMap<String, String>>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionState {
    pub leader: Option<NodeId>,
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
    pub replicas: Vec<NodeId>,
    pub isr: Vec<NodeId>,
}

impl Topic {
    pub fn partition(&self, index: PartitionIndex) -> Option<&PartitionState> {
        self.partitions.get(usize::try_from(index.0).ok()?)
    }

    pub fn partition_id(&self, index: PartitionIndex) -> PartitionId {
        PartitionId { topic: self.id, index }
    }
}

impl Image {
    pub fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics.get(self.names.get(name)?)
    }

    pub fn topic_by_id(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.topics.get(&id)
    }

    /// All topics in the order of their names.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.names.values().filter_map(|id| self.topics.get(id))
    }

    pub fn topic_count(&self) -> usize {
        self.topics.len()
    }

    /// The shard of this node that owns its replica of the partition.
    pub fn local_shard(&self, partition: PartitionId) -> Option<ShardId> {
        self.local_shards.get(&partition).copied()
    }

    pub fn put_topic(&mut self, topic: Topic) {
        self.names.insert(topic.name.clone(), topic.id);
        self.topics.insert(topic.id, Arc::new(topic));
    }

    pub fn remove_topic(&mut self, id: TopicId) -> Option<Arc<Topic>> {
        let topic = self.topics.remove(&id)?;
        self.names.remove(&topic.name);
        Some(topic)
    }

    pub fn put_local_shard(&mut self, partition: PartitionId, shard: ShardId) {
        self.local_shards.insert(partition, shard);
    }

    pub fn remove_local_shard(&mut self, partition: PartitionId) {
        self.local_shards.remove(&partition);
    }
}
