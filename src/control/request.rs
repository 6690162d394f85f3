//! What a client session (or an embedder, or the admin HTTP) asks of the control core, and what it answers.
//! Typed: the wire encoding stays on the shard that the client came to.

use std::time::Duration;

use highwater_shards::ids::{NodeId, PartitionIndex, ProducerEpoch, ProducerId, TopicId};

pub use super::metadata::command::ElectionKind;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    CreateTopics {
        topics: Vec<NewTopic>,
        validate_only: bool,
        timeout: Duration,
    },
    DeleteTopics {
        topics: Vec<TopicRef>,
        timeout: Duration,
    },
    CreatePartitions {
        topics: Vec<MorePartitions>,
        validate_only: bool,
        timeout: Duration,
    },
    AlterConfigs {
        resources: Vec<AlterConfig>,
        validate_only: bool,
    },
    /// A producer id that nobody was given before, at epoch 0.
    NewProducerId,
    /// An operator's, or a failure detector's.
    ChangeNode {
        node: NodeId,
        change: NodeChange,
        timeout: Duration,
    },
    /// Begins, changes or cancels reassignments; partition by partition.
    Reassign {
        partitions: Vec<Reassignment>,
        timeout: Duration,
    },
    ElectLeaders {
        kind: ElectionKind,
        /// `None`: all partitions for which there is something to elect.
        partitions: Option<Vec<PartitionRef>>,
        timeout: Duration,
    },
    /// Formats of this level may be written from here on; never back.
    SetFeatureLevel {
        level: u16,
        timeout: Duration,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeChange {
    /// It is taken for dead: it leads nothing any more, until it comes back by itself.
    Fence,
    /// It leaves the cluster; refused while it holds replicas.
    Remove,
    /// It leaves the cluster, and its replicas are dropped; refused where it holds the only one.
    RemoveByForce,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PartitionRef {
    pub topic: String,
    pub index: PartitionIndex,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reassignment {
    pub partition: PartitionRef,
    /// In the order of preference; `None` cancels.
    pub replicas: Option<Vec<NodeId>>,
}

/// Answers the request of the same name. Topics and resources stand in the order of the request. An answer to a
/// change comes only once every shard of this node has applied it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    CreateTopics(Vec<Result<CreatedTopic, Refusal>>),
    DeleteTopics(Vec<Result<DeletedTopic, Refusal>>),
    CreatePartitions(Vec<Result<(), Refusal>>),
    AlterConfigs(Vec<Result<(), Refusal>>),
    NewProducerId(Result<(ProducerId, ProducerEpoch), Refusal>),
    ChangeNode(Result<(), Refusal>),
    Reassign(Vec<Result<(), Refusal>>),
    /// Of each partition that was asked for, or of each that there was something to elect for. Refused as a whole only
    /// when none was named.
    ElectLeaders(Result<Vec<(PartitionRef, Result<(), Refusal>)>, Refusal>),
    SetFeatureLevel(Result<(), Refusal>),
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NewTopic {
    pub name: String,
    /// `None`: the configured default. With `assignment`, its length.
    pub partitions: Option<u32>,
    /// `None`: the configured default.
    pub replication_factor: Option<u16>,
    /// Replicas of each partition, chosen by the client; empty: the node places them.
    pub assignment: Vec<(PartitionIndex, Vec<NodeId>)>,
    pub config: Vec<(String, Option<String>)>,
    /// Made because a client asked for its metadata: an existing topic is a success then.
    pub automatic: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreatedTopic {
    pub id: TopicId,
    pub partitions: u32,
    pub replication_factor: u16,
    /// The settings given for this topic (not the defaults).
    pub config: Vec<(String, String)>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TopicRef {
    Name(String),
    Id(TopicId),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeletedTopic {
    pub id: TopicId,
    pub name: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MorePartitions {
    pub topic: String,
    /// How many the topic shall have in all.
    pub total: u32,
    /// Replicas of each new partition; empty: the node places them.
    pub assignment: Vec<Vec<NodeId>>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AlterConfig {
    pub resource: ConfigResource,
    pub changes: Vec<ConfigChange>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ConfigResource {
    Topic(String),
    /// Cluster-wide defaults (Kafka: broker resource with an empty name).
    Cluster,
    Node(NodeId),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigChange {
    pub key: String,
    pub op: ConfigOp,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ConfigOp {
    Set(String),
    Delete,
    Append(String),
    Subtract(String),
}

/// Why the control core refused, with words for the user.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub why: Why,
    pub message: String,
}

/// The kinds of refusal. The client protocol maps each to its own code, in one place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Why {
    TopicExists,
    UnknownTopic,
    UnknownTopicId,
    InvalidTopicName,
    InvalidPartitions,
    InvalidReplicationFactor,
    InvalidAssignment,
    InvalidConfig,
    InvalidRequest,
    /// A named bound of the node was reached (topics, partitions); the message says which.
    LimitReached,
    TimedOut,
    /// The metadata store refused or failed.
    StorageFailed,
    /// Nobody leads the metadata log, or the one who did could not take the change: it did not come about.
    NoController,
    /// Decided on an older state of things than there is by now: look again, then try again.
    Conflict,
    /// A node that may not have this part: fenced, or not meant for it.
    IneligibleNode,
    UnknownNode,
    /// Another process, another disk or an earlier life of the node.
    DuplicateNode,
    /// The node still holds replicas.
    NodeInUse,
    /// The partition has a newer leader.
    FencedLeaderEpoch,
    /// There is no reassignment to cancel.
    NoReassignment,
    ElectionNotNeeded,
    PreferredLeaderNotAvailable,
    EligibleLeadersNotAvailable,
}

impl Refusal {
    pub fn new(why: Why, message: impl Into<String>) -> Self {
        Self { why, message: message.into() }
    }
}
