//! What one entry of the metadata log changed, by name; the values are in the image.
//!
//! Control core, pure.

use std::collections::BTreeSet;

use highwater_shards::ids::{NodeId, PartitionId, Revision};

/// The change from the image at `from` to the image at `to`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Delta {
    pub from: Revision,
    pub to: Revision,
    /// Nodes that registered, were fenced or unfenced, changed their settings, or are gone.
    pub nodes: BTreeSet<NodeId>,
    /// Partitions that are new, or whose leader, epochs, replicas or topic settings changed.
    pub changed: BTreeSet<PartitionId>,
    /// Partitions that are gone with their topics.
    pub removed: BTreeSet<PartitionId>,
    /// The controller or the feature level is another one.
    pub cluster: bool,
    /// Something was laid ready that nobody sees yet.
    pub staged: bool,
    /// Cluster-wide defaults changed, which may change what any partition acts on.
    pub cluster_config: bool,
}

impl Delta {
    /// Whether nothing changed but the revision.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
            && self.changed.is_empty()
            && self.removed.is_empty()
            && !(self.cluster || self.staged || self.cluster_config)
    }
}
