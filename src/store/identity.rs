//! Who the node is, as its data directory says.

use highwater_shards::ids::NodeId;
use serde::{Deserialize, Serialize};

use crate::control::forming::{ClusterId, Founders};
use crate::control::metadata::envelope::Schema;
use crate::control::metadata::image::{Incarnation, RegistrationEpoch};
use crate::raft::DiskId;

pub(super) const IDENTITY: Schema = Schema { name: "node identity", kind: 3, schema: 3 };

/// A file format: a new field is a new schema.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// Empty while the node is in no cluster.
    pub cluster_id: String,
    pub node: NodeId,
    /// Of the current life; grows by one at each start, before anything else is done.
    pub incarnation: Incarnation,
    /// The disk that the Raft log of this data directory was made for.
    pub disk: DiskId,
    /// Who founded the cluster; empty when this node did so alone.
    pub founders: Founders,
    /// Written last by a life that flushed everything and stopped: its registration (R27). It counts while that is the
    /// node's last one. A later life changes no records before it is registered itself, so one that ends before that,
    /// however it ends, leaves this as it is.
    pub clean_stop: Option<RegistrationEpoch>,
}

/// The id of a cluster that a node founds alone.
pub(super) fn cluster_id(entropy: [u8; 16]) -> String {
    ClusterId(u128::from_be_bytes(entropy)).to_string()
}
