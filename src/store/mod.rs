//! What the node keeps of itself: its identity, and where its partitions lie on its shards. The metadata of the
//! cluster is in the Raft log, which is another database.
//!
//! Driver. A thread of its own writes and flushes, so that no flush holds up the control core; everything that waits
//! for the disk at one moment is made durable by one flush.

pub(crate) mod ahead;
mod db;
pub(crate) mod direct;
pub(crate) mod error;
pub(crate) mod folder;
mod identity;
mod thread;

#[cfg(test)]
pub(crate) mod crash_disk;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use self::error::StoreError;
pub use self::identity::Identity;
pub use self::thread::{Found, Store, StoreEvent, open};
use highwater_shards::ids::{NodeId, PartitionId, ShardId};

/// The file of the store within the data directory.
pub const FILE_NAME: &str = "metadata.redb";

/// Whose store it is.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    pub data_dir: PathBuf,
    pub node: NodeId,
    /// `None`: what the store says; a new store gets a random one.
    pub cluster_id: Option<String>,
    /// For the cluster id of a node that founds its cluster alone.
    pub entropy: [u8; 16],
    /// The node comes into a cluster with others: until then it is in none.
    pub forms: bool,
}

impl StoreConfig {
    pub fn file(&self) -> PathBuf {
        file_in(&self.data_dir)
    }
}

fn file_in(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE_NAME)
}

/// What an opened store held.
#[derive(Debug)]
pub struct Opened {
    /// With an incarnation that no earlier life had.
    pub identity: Identity,
    /// Which shard each partition belongs to.
    pub placements: Vec<(PartitionId, ShardId)>,
    pub store: Store,
}
