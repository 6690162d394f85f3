//! Changes to the cluster's metadata, as they stand in the metadata log.
//!
//! Control core, pure. These types are a file format: variants and fields are only ever added at the end, and a
//! change of meaning is a new variant. Everything that a command needs is inside it (entropy, placements), so that
//! applying it gives the same image everywhere and at every replay.

use highwater_shards::ids::{LeaderEpoch, NodeId, PartitionEpoch, PartitionIndex, TopicId};
use serde::{Deserialize, Serialize};

use super::envelope::{self, EnvelopeError, Schema};
use super::image::{Capabilities, DiskId, Endpoint, FeatureLevel, Incarnation, RegistrationEpoch};

/// Producer ids that one [`Command::ReserveProducerIds`] takes.
pub const PRODUCER_ID_BLOCK: u32 = 1000;

/// One entry of the metadata log: commands that become visible together.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Entry {
    pub commands: Vec<Command>,
}

const ENTRY: Schema = Schema { name: "metadata log entry", kind: 1, schema: 2 };

impl Entry {
    /// The entry as it is stored, in an envelope.
    pub fn encode(&self) -> Vec<u8> {
        envelope::seal(ENTRY, self)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        envelope::open(ENTRY, bytes)
    }
}

/// One change. Items of a list succeed or fail one by one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Command {
    CreateTopics(Vec<CreateTopic>),
    DeleteTopics(Vec<TopicId>),
    CreatePartitions(Vec<CreatePartitions>),
    SetTopicConfig(Vec<SetTopicConfig>),
    /// Cluster-wide defaults of topic settings. All or nothing.
    SetClusterConfig(Vec<SettingChange>),
    /// The next `count` producer ids belong to `node`, which hands them out.
    ReserveProducerIds {
        node: NodeId,
        count: u32,
    },
    /// A node has started. It is fenced until [`Command::UnfenceNode`] and in sync with nothing: a new life never
    /// leads in an epoch of an earlier one.
    RegisterNode(RegisterNode),
    /// The node is taken for dead, or has stopped: it leads nothing and is in sync with nothing, and others are elected
    /// in the same breath, for however many partitions (R32).
    FenceNode {
        node: NodeId,
        epoch: RegistrationEpoch,
    },
    /// The node caught up and serves. Partitions that nobody could lead may have a leader by that.
    UnfenceNode {
        node: NodeId,
        epoch: RegistrationEpoch,
    },
    /// The node is about to stop: wherever another one in sync can lead, it neither leads nor is in sync any more.
    /// What nobody else can lead it leads until it is fenced.
    StopNode {
        node: NodeId,
        epoch: RegistrationEpoch,
    },
    /// The node is no longer part of the cluster. Refused while replicas are on it, unless it is forced: then its
    /// replicas are dropped where others remain, and it is refused where it has the only one.
    RemoveNode {
        node: NodeId,
        force: bool,
    },
    /// `node` leads the metadata log in `term`, and is the controller from here on.
    TakeControl {
        node: NodeId,
        term: u64,
    },
    /// Formats of this level may be written from here on. Only upwards, and refused while a node cannot read them.
    SetFeatureLevel(FeatureLevel),
    /// All or nothing.
    SetNodeConfig {
        node: NodeId,
        changes: Vec<SettingChange>,
    },
    /// A leader's wishes for other in-sync replicas.
    AlterIsr(AlterIsr),
    ElectLeaders(ElectLeaders),
    /// Begins, changes or cancels the reassignment of replicas (KIP-455).
    Reassign(Vec<ReassignTopic>),
    /// Lays replica sets ready for a topic that is too large for one entry. Nobody sees them before a
    /// [`Command::CreateStaged`] or [`Command::GrowStaged`] of the same node takes them.
    Stage(Stage),
    /// Creates a topic from the replica sets that `by` laid ready (`staged` of them), followed by those in `topic`.
    CreateStaged {
        by: NodeId,
        staged: u32,
        topic: CreateTopic,
    },
    /// As [`Command::CreateStaged`], for more partitions of a topic.
    GrowStaged {
        by: NodeId,
        staged: u32,
        more: CreatePartitions,
    },
}

/// See [`Command::RegisterNode`]. The fields are those of [`super::image::NodeInfo`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RegisterNode {
    pub node: NodeId,
    /// Above that of any earlier life on this disk.
    pub incarnation: Incarnation,
    pub disk: DiskId,
    pub capabilities: Capabilities,
    pub rack: Option<String>,
    pub client: Endpoint,
    pub shard_clients: Vec<Endpoint>,
    pub cluster: Endpoint,
    pub shard_peers: Vec<u16>,
    pub feature_level: FeatureLevel,
    /// The registration under which the node's last life flushed everything and stopped, when it did: with any other
    /// it may have lost what was not flushed (R27).
    pub clean_stop: Option<RegistrationEpoch>,
}

/// See [`Command::AlterIsr`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct AlterIsr {
    /// Who leads the partitions, in this of its lives.
    pub node: NodeId,
    pub epoch: RegistrationEpoch,
    pub topics: Vec<IsrOfTopic>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct IsrOfTopic {
    pub topic: TopicId,
    pub partitions: Vec<NewIsr>,
}

/// Refused when the partition is not at these epochs any more, or a member is not what it was (R9).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NewIsr {
    pub index: PartitionIndex,
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
    /// With the registration under which the leader heard each.
    pub isr: Vec<(NodeId, RegistrationEpoch)>,
}

/// See [`Command::ElectLeaders`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ElectLeaders {
    pub kind: ElectionKind,
    pub topics: Vec<(TopicId, Vec<PartitionIndex>)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum ElectionKind {
    /// The first replica, if it is in sync.
    #[default]
    Preferred,
    /// Where nobody leads, anybody who can: what only others have is given up.
    Unclean,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ReassignTopic {
    pub topic: TopicId,
    pub partitions: Vec<NewReplicas>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NewReplicas {
    pub index: PartitionIndex,
    /// In the order of preference; `None`: those that it had before it was reassigned.
    pub replicas: Option<Vec<NodeId>>,
}

/// See [`Command::Stage`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Stage {
    pub by: NodeId,
    pub topic: TopicId,
    /// How many are laid ready already; 0 begins anew, whatever was there.
    pub at: u32,
    pub replicas: Vec<Vec<NodeId>>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CreateTopic {
    /// Drawn by the proposer.
    pub id: TopicId,
    pub name: String,
    /// The replicas of each partition; the first of each leads.
    pub replicas: Vec<Vec<NodeId>>,
    pub config: Vec<(String, String)>,
    /// An existing topic of this name is a success.
    pub automatic: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CreatePartitions {
    pub topic: TopicId,
    /// The index of the first one of `replicas`: how many partitions the topic has to have before.
    pub first: PartitionIndex,
    pub replicas: Vec<Vec<NodeId>>,
}

/// All of `changes` or, when one of them is refused, none.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SetTopicConfig {
    pub topic: TopicId,
    pub changes: Vec<SettingChange>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SettingChange {
    pub name: String,
    pub op: SettingOp,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SettingOp {
    Set(String),
    /// Back to the default.
    Unset,
    /// Adds to a list what it does not hold yet; comma separated.
    Append(String),
    /// Takes out of a list what it holds; comma separated.
    Subtract(String),
}

impl Command {
    /// The bytes that it takes in an entry, or somewhat more; for bounds.
    pub fn weight(&self) -> usize {
        4 + match self {
            Self::CreateTopics(topics) => topics.iter().map(CreateTopic::weight).sum(),
            Self::DeleteTopics(ids) => 19 * ids.len(),
            Self::CreatePartitions(all) => all.iter().map(CreatePartitions::weight).sum(),
            Self::SetTopicConfig(all) => all.iter().map(SetTopicConfig::weight).sum(),
            Self::SetClusterConfig(all) => changes(all),
            Self::RegisterNode(r) => {
                let endpoints = endpoints(&r.shard_clients)
                    + endpoints(std::slice::from_ref(&r.client))
                    + endpoints(std::slice::from_ref(&r.cluster));
                endpoints + text(r.rack.as_ref()) + 3 * r.shard_peers.len() + 76
            }
            Self::SetNodeConfig { changes: all, .. } => 5 + changes(all),
            Self::AlterIsr(alter) => 18 + alter.topics.iter().map(IsrOfTopic::weight).sum::<usize>(),
            Self::ElectLeaders(elect) => {
                4 + elect.topics.iter().map(|(_, indexes)| 22 + 5 * indexes.len()).sum::<usize>()
            }
            Self::Reassign(topics) => topics.iter().map(ReassignTopic::weight).sum(),
            Self::Stage(stage) => 32 + replica_sets(&stage.replicas),
            Self::CreateStaged { topic, .. } => 10 + topic.weight(),
            Self::GrowStaged { more, .. } => 10 + more.weight(),
            Self::ReserveProducerIds { .. }
            | Self::FenceNode { .. }
            | Self::UnfenceNode { .. }
            | Self::StopNode { .. }
            | Self::RemoveNode { .. }
            | Self::TakeControl { .. }
            | Self::SetFeatureLevel(_) => 16,
        }
    }
}

impl CreateTopic {
    pub fn weight(&self) -> usize {
        let config: usize = self.config.iter().map(|(k, v)| k.len() + v.len() + 6).sum();
        26 + self.name.len() + replica_sets(&self.replicas) + config
    }
}

impl CreatePartitions {
    pub fn weight(&self) -> usize {
        27 + replica_sets(&self.replicas)
    }
}

impl SetTopicConfig {
    pub fn weight(&self) -> usize {
        22 + changes(&self.changes)
    }
}

impl IsrOfTopic {
    /// Without partitions.
    pub const WEIGHT: usize = 22;

    pub fn weight(&self) -> usize {
        Self::WEIGHT + self.partitions.iter().map(NewIsr::weight).sum::<usize>()
    }
}

impl NewIsr {
    pub fn weight(&self) -> usize {
        let members = self.isr.iter().map(|(node, epoch)| varint(node.0) + long_varint(epoch.0));
        16 + members.sum::<usize>()
    }
}

impl ReassignTopic {
    pub fn weight(&self) -> usize {
        let set = |new: &NewReplicas| 7 + new.replicas.as_ref().map_or(0, |replicas| replica_set(replicas));
        22 + self.partitions.iter().map(set).sum::<usize>()
    }
}

/// Bytes of the variable-length encoding of a number.
fn varint(number: u32) -> usize {
    match number {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 5,
    }
}

fn long_varint(number: u64) -> usize {
    match u32::try_from(number) {
        Ok(number) => varint(number),
        Err(_) => 10,
    }
}

pub fn replica_set(nodes: &[NodeId]) -> usize {
    1 + nodes.iter().map(|node| varint(node.0)).sum::<usize>()
}

fn replica_sets(sets: &[Vec<NodeId>]) -> usize {
    3 + sets.iter().map(|set| replica_set(set)).sum::<usize>()
}

fn changes(changes: &[SettingChange]) -> usize {
    3 + changes.iter().map(|c| c.name.len() + c.op.operand().len() + 8).sum::<usize>()
}

fn endpoints(endpoints: &[Endpoint]) -> usize {
    3 + endpoints.iter().map(|e| e.host.len() + 8).sum::<usize>()
}

fn text(text: Option<&String>) -> usize {
    4 + text.map_or(0, String::len)
}

impl SettingOp {
    fn operand(&self) -> &str {
        match self {
            Self::Set(v) | Self::Append(v) | Self::Subtract(v) => v,
            Self::Unset => "",
        }
    }
}
