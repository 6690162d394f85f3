//! The immutable image of the cluster's committed metadata. A change makes a new image that shares almost
//! everything with the old one; shards get the new one by message and answer Metadata from it.

use std::collections::BTreeMap;
use std::sync::Arc;

use highwater_shards::ids::{
    LeaderEpoch, NodeId, PartitionEpoch, PartitionId, PartitionIndex, ProducerId, Revision, ShardId, TopicId,
};
use imbl::{OrdMap, Vector};
use serde::{Deserialize, Serialize};

/// One life of a node: grows by one at each of its starts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

/// Everything that is committed up to `revision`, and where this node keeps its replicas.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Image {
    pub revision: Revision,
    pub cluster_id: Arc<str>,
    pub controller: Option<NodeId>,
    pub nodes: OrdMap<NodeId, Arc<NodeInfo>>,
    /// Cluster-wide defaults of topic settings that were set at run time, over those of the config file.
    pub cluster_config: Arc<BTreeMap<String, String>>,
    /// The first producer id that no block was reserved from yet.
    pub producer_id_next: ProducerId,
    topics: OrdMap<TopicId, Arc<Topic>>,
    names: OrdMap<Arc<str>, TopicId>,
    /// Topics whose names hold '.' or '_', by their names with '_' for both: metric names cannot tell them apart.
    blurred: OrdMap<Arc<str>, TopicId>,
    /// Over all topics.
    partitions: usize,
    /// Over all partitions.
    replicas: usize,
    /// Which shard of this node owns a partition: the node's own affair, kept in its local store.
    local_shards: OrdMap<PartitionId, ShardId>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeInfo {
    pub id: NodeId,
    pub incarnation: Incarnation,
    pub rack: Option<String>,
    /// Where Kafka clients reach the node.
    pub client: Endpoint,
    /// Where clients reach each shard when the node routes by core; empty when it routes by node.
    pub shard_clients: Vec<Endpoint>,
    pub fenced: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
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

    fn replica_count(&self) -> usize {
        self.partitions.iter().map(|p| p.replicas.len()).sum()
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

    /// Partitions over all topics.
    pub fn partition_count(&self) -> usize {
        self.partitions
    }

    /// Replicas over all partitions.
    pub fn replica_count(&self) -> usize {
        self.replicas
    }

    pub fn partition(&self, id: PartitionId) -> Option<&PartitionState> {
        self.topics.get(&id.topic)?.partition(id.index)
    }

    /// The topic that has this name or one that differs from it in '.' and '_' only.
    pub fn topic_like(&self, name: &str) -> Option<&Arc<Topic>> {
        match blur(name) {
            Some(blurred) => self.topics.get(self.blurred.get(blurred.as_str())?),
            None => self.topic(name),
        }
    }

    /// Adds the topic, or puts it in the place of the one with its id.
    pub fn put_topic(&mut self, topic: Topic) {
        self.remove_topic(topic.id);
        self.partitions += topic.partitions.len();
        self.replicas += topic.replica_count();
        self.names.insert(topic.name.clone(), topic.id);
        if let Some(blurred) = blur(&topic.name) {
            self.blurred.insert(blurred.into(), topic.id);
        }
        self.topics.insert(topic.id, Arc::new(topic));
    }

    pub fn remove_topic(&mut self, id: TopicId) -> Option<Arc<Topic>> {
        let topic = self.topics.remove(&id)?;
        self.names.remove(&topic.name);
        if let Some(blurred) = blur(&topic.name) {
            self.blurred.remove(blurred.as_str());
        }
        self.partitions -= topic.partitions.len();
        self.replicas -= topic.replica_count();
        Some(topic)
    }

    pub fn put_local_shard(&mut self, partition: PartitionId, shard: ShardId) {
        self.local_shards.insert(partition, shard);
    }

    pub fn remove_local_shard(&mut self, partition: PartitionId) {
        self.local_shards.remove(&partition);
    }

    /// Where this node keeps its replicas.
    pub fn local_shards(&self) -> impl Iterator<Item = (PartitionId, ShardId)> + '_ {
        self.local_shards.iter().map(|(&partition, &shard)| (partition, shard))
    }
}

/// The name with '_' for '.', when it holds either.
fn blur(name: &str) -> Option<String> {
    name.contains(['.', '_']).then(|| name.replace('.', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(id: u128, name: &str, partitions: usize) -> Topic {
        let state = PartitionState {
            leader: Some(NodeId(1)),
            leader_epoch: LeaderEpoch(0),
            partition_epoch: PartitionEpoch(0),
            replicas: vec![NodeId(1)],
            isr: vec![NodeId(1)],
        };
        Topic {
            id: TopicId(id),
            name: name.into(),
            partitions: (0..partitions).map(|_| state.clone()).collect(),
            config: Arc::default(),
        }
    }

    #[test]
    fn names_that_differ_in_dots_and_underscores_only_are_found_as_alike() {
        let mut image = Image::default();
        image.put_topic(topic(1, "a.b", 1));
        image.put_topic(topic(2, "plain", 1));
        assert_eq!(image.topic_like("a_b").map(|t| t.id), Some(TopicId(1)));
        assert_eq!(image.topic_like("a.b").map(|t| t.id), Some(TopicId(1)));
        assert_eq!(image.topic_like("plain").map(|t| t.id), Some(TopicId(2)));
        assert_eq!(image.topic_like("ab"), None);
        image.remove_topic(TopicId(1));
        assert_eq!(image.topic_like("a_b"), None);
    }

    #[test]
    fn partitions_are_counted_through_puts_and_removals() {
        let mut image = Image::default();
        image.put_topic(topic(1, "a", 3));
        image.put_topic(topic(1, "a", 5));
        image.put_topic(topic(2, "b", 1));
        assert_eq!((image.partition_count(), image.replica_count()), (6, 6));
        image.remove_topic(TopicId(1));
        assert_eq!((image.partition_count(), image.replica_count(), image.topic_count()), (1, 1, 1));
    }
}
