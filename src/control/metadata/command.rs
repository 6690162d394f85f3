//! Changes to the cluster's metadata, as they stand in the metadata log.
//!
//! Control core, pure. These types are a file format: variants and fields are only ever added at the end, and a
//! change of meaning is a new variant. Everything that a command needs is inside it (entropy, placements), so that
//! applying it gives the same image everywhere and at every replay.

use highwater_shards::ids::{NodeId, PartitionIndex, TopicId};
use serde::{Deserialize, Serialize};

use super::envelope::{self, EnvelopeError, Schema};
use super::image::{Endpoint, Incarnation};

/// Producer ids that one [`Command::ReserveProducerIds`] takes.
pub const PRODUCER_ID_BLOCK: u32 = 1000;

/// One entry of the metadata log: commands that become visible together.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Entry {
    pub commands: Vec<Command>,
}

const ENTRY: Schema = Schema { name: "metadata log entry", kind: 1, schema: 1 };

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
    /// A node has started: its addresses, and a new leadership of everything that it leads.
    RegisterNode(RegisterNode),
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
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RegisterNode {
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub rack: Option<String>,
    pub client: Endpoint,
    pub shard_clients: Vec<Endpoint>,
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
    /// Roughly the bytes that it takes in an entry; for bounds, not exact.
    pub fn weight(&self) -> usize {
        let replicas = |sets: &[Vec<NodeId>]| sets.iter().map(|set| 1 + 2 * set.len()).sum::<usize>();
        let changes = |changes: &[SettingChange]| {
            changes.iter().map(|c| c.name.len() + c.op.operand().len() + 4).sum::<usize>()
        };
        4 + match self {
            Self::RegisterNode(r) => {
                let endpoints: usize = r.shard_clients.iter().map(|e| e.host.len() + 4).sum();
                32 + r.rack.as_ref().map_or(0, String::len) + r.client.host.len() + endpoints
            }
            Self::CreateTopics(topics) => topics
                .iter()
                .map(|t| {
                    let config: usize = t.config.iter().map(|(k, v)| k.len() + v.len() + 4).sum();
                    24 + t.name.len() + replicas(&t.replicas) + config
                })
                .sum(),
            Self::DeleteTopics(ids) => 19 * ids.len(),
            Self::CreatePartitions(all) => all.iter().map(|c| 24 + replicas(&c.replicas)).sum(),
            Self::SetTopicConfig(all) => all.iter().map(|c| 20 + changes(&c.changes)).sum(),
            Self::SetClusterConfig(all) => changes(all),
            Self::ReserveProducerIds { .. } => 8,
        }
    }
}

impl SettingOp {
    fn operand(&self) -> &str {
        match self {
            Self::Set(v) | Self::Append(v) | Self::Subtract(v) => v,
            Self::Unset => "",
        }
    }
}
