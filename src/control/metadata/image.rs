//! The immutable image of the cluster's committed metadata. A change makes a new image that shares almost
//! everything with the old one; shards get the new one by message and answer Metadata from it.

use std::collections::BTreeMap;
use std::sync::Arc;

pub use highwater_shards::ids::RegistrationEpoch;
use highwater_shards::ids::{
    LeaderEpoch, NodeId, PartitionEpoch, PartitionId, PartitionIndex, ProducerId, Revision, ShardId, TopicId,
};
use imbl::{OrdMap, Vector};
use serde::{Deserialize, Serialize};

use crate::control::placement::NodeLoad;

/// One life of a node: grows by one at each of its starts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

/// Drawn at random when a data directory is made: a node that comes back with another one has lost what it held.
/// 0 in metadata of releases that did not draw one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiskId(pub u128);

/// Which formats may be written: one that an older release cannot read only once every node can.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FeatureLevel(pub u16);

impl FeatureLevel {
    /// The first one, at which every cluster begins.
    pub const FIRST: Self = Self(1);
    /// The highest one that this release can read and write.
    pub const HIGHEST: Self = Self(1);
}

impl Default for FeatureLevel {
    fn default() -> Self {
        Self::FIRST
    }
}

/// What a node may be used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Capabilities {
    /// To vote on metadata.
    pub voter: bool,
    /// To lead partitions.
    pub leader: bool,
    /// To hold replicas.
    pub replica: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self { voter: true, leader: true, replica: true }
    }
}

/// Everything that is committed up to `revision`, and where this node keeps its replicas.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Image {
    pub revision: Revision,
    pub cluster_id: Arc<str>,
    /// The node that leads the metadata log, as it said in that log itself.
    pub controller: Option<NodeId>,
    /// The term of the metadata log in which it said so.
    pub controller_term: u64,
    pub feature_level: FeatureLevel,
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
    /// Partitions without a leader.
    leaderless: usize,
    /// What each node holds, without those that hold nothing.
    loads: OrdMap<NodeId, NodeLoad>,
    /// Replica sets that a node laid ready for a topic which is too large for one entry of the log; at most one topic
    /// per node.
    staged: OrdMap<NodeId, Arc<Staged>>,
    /// Which shard of this node owns a partition: the node's own affair, kept in its local store.
    local_shards: OrdMap<PartitionId, ShardId>,
}

/// A node of the cluster, as it registered last.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeInfo {
    pub id: NodeId,
    pub incarnation: Incarnation,
    pub epoch: RegistrationEpoch,
    pub disk: DiskId,
    pub capabilities: Capabilities,
    pub rack: Option<String>,
    /// Where Kafka clients reach the node.
    pub client: Endpoint,
    /// Where clients reach each shard when the node routes by core; empty when it routes by node.
    pub shard_clients: Vec<Endpoint>,
    /// Where the control cores of other nodes reach this one.
    pub cluster: Endpoint,
    /// The ports at the host of `cluster` on which other nodes reach each shard.
    pub shard_peers: Vec<u16>,
    /// The highest level that the node can read and write.
    pub feature_level: FeatureLevel,
    /// Neither leads partitions nor gets new ones, and clients are not sent to it: until it caught up after a start,
    /// and when it is taken for dead.
    pub fenced: bool,
    /// It is about to end: it gives its leaderships away, is in sync with nothing and gets nothing new.
    pub stopping: bool,
    /// Settings of this node that were set at run time.
    pub config: Arc<BTreeMap<String, String>>,
}

impl NodeInfo {
    /// Whether new replicas may be placed on it.
    pub fn takes_replicas(&self) -> bool {
        self.is_active() && self.capabilities.replica
    }

    /// Whether it can be elected.
    pub fn can_lead(&self) -> bool {
        self.is_active() && self.capabilities.leader
    }

    /// Whether its replicas can be in sync.
    pub fn is_active(&self) -> bool {
        !self.fenced && !self.stopping
    }
}

/// See [`Image::staged`].
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Staged {
    pub topic: TopicId,
    pub replicas: Vector<Vec<NodeId>>,
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

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PartitionState {
    pub leader: Option<NodeId>,
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
    /// In the order of preference as leader.
    pub replicas: Vec<NodeId>,
    /// In sync; a subset of `replicas` that holds the leader.
    pub isr: Vec<NodeId>,
    /// Eligible to lead although not in sync (KIP-966); a subset of `replicas` apart from `isr`.
    pub elr: Vec<NodeId>,
    /// Who led when the last one in sync was lost; `None` while somebody leads.
    pub last_leader: Option<NodeId>,
    /// Whoever leads may lack acknowledged records, and has not spoken yet.
    pub recovering: bool,
    /// While replicas are reassigned: those that are to come and catch up. A subset of `replicas`.
    pub adding: Vec<NodeId>,
    /// Those that are to go once all others are there. A subset of `replicas` apart from `adding`.
    pub removing: Vec<NodeId>,
}

impl PartitionState {
    pub fn is_reassigned(&self) -> bool {
        !(self.adding.is_empty() && self.removing.is_empty())
    }
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

    fn loads(&self) -> BTreeMap<NodeId, NodeLoad> {
        loads_of(self.partitions.iter())
    }

    fn leaderless_count(&self) -> usize {
        self.partitions.iter().filter(|p| p.leader.is_none()).count()
    }
}

impl Image {
    pub fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics.get(self.names.get(name)?)
    }

    pub fn topic_by_id(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.topics.get(&id)
    }

    /// Whether the node's replicas can be in sync.
    pub fn is_active(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|info| info.is_active())
    }

    /// Whether the node is in the cluster and not fenced.
    pub fn serves(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|info| !info.fenced)
    }

    /// Whether the node can be elected.
    pub fn can_lead(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|info| info.can_lead())
    }

    /// Topics in the order of their ids, from this one on.
    pub fn topics_from(&self, first: TopicId) -> impl Iterator<Item = &Arc<Topic>> {
        self.topics.range(first..).map(|(_, topic)| topic)
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

    /// Partitions that have no leader.
    pub fn leaderless_count(&self) -> usize {
        self.leaderless
    }

    /// What the node laid ready.
    pub fn staged(&self, by: NodeId) -> Option<&Arc<Staged>> {
        self.staged.get(&by)
    }

    pub fn put_staged(&mut self, by: NodeId, staged: Staged) {
        self.staged.insert(by, Arc::new(staged));
    }

    pub fn take_staged(&mut self, by: NodeId) -> Option<Arc<Staged>> {
        self.staged.remove(&by)
    }

    pub fn all_staged(&self) -> impl Iterator<Item = (NodeId, &Arc<Staged>)> {
        self.staged.iter().map(|(&by, staged)| (by, staged))
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

    /// Gives the topic, which has to be there, these settings. Unlike [`Self::put_topic`] it touches nothing else.
    pub fn put_topic_config(&mut self, id: TopicId, config: BTreeMap<String, String>) {
        let topic = self.topics.get_mut(&id).expect("the topic is there");
        Arc::make_mut(topic).config = Arc::new(config);
    }

    /// Adds the topic, or puts it in the place of the one with its id.
    pub fn put_topic(&mut self, topic: Topic) {
        self.remove_topic(topic.id);
        self.partitions += topic.partitions.len();
        self.replicas += topic.replica_count();
        self.leaderless += topic.leaderless_count();
        self.add_loads(&topic.loads());
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
        self.leaderless -= topic.leaderless_count();
        self.subtract_loads(&topic.loads());
        Some(topic)
    }

    /// Puts states in the place of those of partitions that are there, each by its place in the topic. Unlike
    /// [`Self::put_topic`] it looks at no other partition.
    pub fn put_partitions(&mut self, topic: TopicId, states: Vec<(usize, PartitionState)>) {
        let topic = Arc::make_mut(self.topics.get_mut(&topic).expect("the topic is there"));
        let (mut more, mut less) = (BTreeMap::new(), BTreeMap::new());
        for (at, state) in states {
            let old = topic.partitions.get_mut(at).expect("the partition is there");
            self.replicas = self.replicas + state.replicas.len() - old.replicas.len();
            self.leaderless =
                self.leaderless + usize::from(state.leader.is_none()) - usize::from(old.leader.is_none());
            if old.replicas != state.replicas {
                count_loads(&mut more, &state);
                count_loads(&mut less, old);
            }
            *old = state;
        }
        self.add_loads(&more);
        self.subtract_loads(&less);
    }

    /// What each node holds; those that hold nothing are left out.
    pub fn loads(&self) -> impl Iterator<Item = (NodeId, NodeLoad)> + '_ {
        self.loads.iter().map(|(&node, &load)| (node, load))
    }

    fn add_loads(&mut self, more: &BTreeMap<NodeId, NodeLoad>) {
        for (&node, more) in more {
            let load = self.loads.entry(node).or_default();
            load.replicas += more.replicas;
            load.leaders += more.leaders;
        }
    }

    fn subtract_loads(&mut self, less: &BTreeMap<NodeId, NodeLoad>) {
        for (node, less) in less {
            let load = self.loads.get_mut(node).expect("what is taken away was counted");
            load.replicas -= less.replicas;
            load.leaders -= less.leaders;
            if load.replicas == 0 {
                self.loads.remove(node);
            }
        }
    }

    pub fn put_local_shard(&mut self, partition: PartitionId, shard: ShardId) {
        self.local_shards.insert(partition, shard);
    }

    pub fn remove_local_shard(&mut self, partition: PartitionId) {
        self.local_shards.remove(&partition);
    }

    pub fn clear_local_shards(&mut self) {
        self.local_shards.clear();
    }

    /// Where this node keeps its replicas.
    pub fn local_shards(&self) -> impl Iterator<Item = (PartitionId, ShardId)> + '_ {
        self.local_shards.iter().map(|(&partition, &shard)| (partition, shard))
    }
}

fn loads_of<'a>(partitions: impl Iterator<Item = &'a PartitionState>) -> BTreeMap<NodeId, NodeLoad> {
    let mut loads: BTreeMap<NodeId, NodeLoad> = BTreeMap::new();
    partitions.for_each(|partition| count_loads(&mut loads, partition));
    loads
}

fn count_loads(loads: &mut BTreeMap<NodeId, NodeLoad>, partition: &PartitionState) {
    for (slot, &node) in partition.replicas.iter().enumerate() {
        let load = loads.entry(node).or_default();
        load.replicas += 1;
        // The first replica is the preferred leader.
        load.leaders += u32::from(slot == 0);
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
            replicas: vec![NodeId(1)],
            isr: vec![NodeId(1)],
            ..PartitionState::default()
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
