//! What openraft is told of our types, and the entries of the Raft log.
//!
//! Control core. The serialized types are file and wire formats: variants and fields are only ever added at the end.

use std::fmt;

use bytes::Bytes;
use highwater_shards::ids::NodeId;
use serde::{Deserialize, Serialize};

openraft::declare_raft_types!(
    /// One group over all nodes. The leader id is the term alone, so that a term is a fencing epoch.
    pub TypeConfig:
        D = Payload,
        R = (),
        NodeId = u64,
        Node = Member,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = super::runtime::Runtime,
);

pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
pub use openraft::EntryPayload;

pub type LogEntry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;

/// Drawn at random when a data directory is made, and never changed: a node whose disk was wiped comes with another
/// one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiskId(pub u128);

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A node of the group, as its membership holds it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Member {
    pub disk: DiskId,
    /// Where its peers reach it, as host:port.
    pub cluster_addr: String,
}

/// Whose proposal it is, so that one that came twice is applied once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tag {
    pub node: NodeId,
    /// The proposer's life.
    pub incarnation: u64,
    /// Grows by one with each proposal of this life. The next one is not sent before this one is known to be applied.
    pub sequence: u64,
}

/// What an entry of the log carries.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Payload {
    /// A change of the metadata: an encoded [`crate::control::metadata::command::Entry`].
    Entry { tag: Option<Tag>, body: Bytes },
    /// Bytes of a measurement, applied as nothing.
    Probe(Bytes),
}

impl Payload {
    /// The size of what it carries, in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Entry { body, .. } | Self::Probe(body) => body.len(),
        }
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry { tag: Some(tag), body } => write!(
                f,
                "entry {} of node {} in life {}, {} bytes",
                tag.sequence,
                tag.node,
                tag.incarnation,
                body.len()
            ),
            Self::Entry { tag: None, body } => write!(f, "entry, {} bytes", body.len()),
            Self::Probe(body) => write!(f, "probe, {} bytes", body.len()),
        }
    }
}

/// The Raft group's name for a node.
pub(super) fn raft_id(node: NodeId) -> u64 {
    u64::from(node.0)
}

/// The node that the Raft group calls so; `None` for a number that no node can have.
pub(super) fn node_id(id: u64) -> Option<NodeId> {
    u32::try_from(id).ok().map(NodeId)
}
