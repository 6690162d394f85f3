//! What the node keeps of the control plane: its identity, the committed metadata log with a snapshot, and where its
//! partitions lie on its shards.
//!
//! Driver. A thread of its own writes and flushes, so that no flush holds up the control core; everything that waits
//! for the disk at one moment is made durable by one flush. The metadata log is behind [`MetadataLog`], the seam that
//! a replicated log takes over; identity and placements are the node's own in any case.

mod db;
pub(crate) mod error;
mod identity;
mod thread;

#[cfg(test)]
pub(crate) mod crash_disk;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use self::error::StoreError;
pub use self::identity::Identity;
pub use self::thread::{Store, StoreEvent, open};
use crate::control::metadata::command::Entry;
use crate::control::metadata::image::Image;
use crate::control::{KeepId, Placements, ProposalId};
use highwater_shards::ids::NodeId;

/// The file of the store within the data directory.
pub const FILE_NAME: &str = "metadata.redb";

/// The log of metadata changes. Entries come back, committed and in order, as events of the store that implements it,
/// whichever node proposed them.
pub trait MetadataLog {
    /// Takes the entry in; exactly one event tells what became of it.
    fn propose(&mut self, proposal: ProposalId, entry: Entry);

    /// Whether enough entries stand behind the last snapshot for another one.
    fn wants_snapshot(&self) -> bool;

    /// `image` takes the place of the entries that made it. It is the image at a committed revision.
    fn snapshot(&mut self, image: Image);
}

/// What only this node knows of itself.
pub trait LocalStore {
    /// Makes the placements durable, all or nothing; exactly one event tells what became of it.
    fn keep(&mut self, id: KeepId, changes: Placements);
}

/// Whose store it is.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    pub data_dir: PathBuf,
    pub node: NodeId,
    /// `None`: what the store says; a new store gets a random one.
    pub cluster_id: Option<String>,
    /// For the cluster id of a new store.
    pub entropy: [u8; 16],
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
    /// All that is committed, with the placements.
    pub image: Image,
    pub store: Store,
}
