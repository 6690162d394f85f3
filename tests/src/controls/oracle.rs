//! The metadata log as it would come out of consensus: one order of entries, each committed the moment it is there.
//! Which node hears of it when is the world's affair.

use highwater::control::ProposalId;
use highwater::control::metadata::command::{Command, Entry};
use highwater::control::metadata::image::Image;
use highwater_shards::ids::{PartitionId, Revision};

use super::Counts;

/// Bytes of an entry, with its envelope, that no proposal may exceed.
pub const ENTRY_BYTES_MAX: usize = 64 * 1024 + 16;

/// Who proposed an entry: the number of a node, its life, and the proposal.
pub type Origin = (usize, u64, ProposalId);

#[derive(Debug)]
pub struct Oracle {
    pub term: u64,
    /// By the number of the node.
    pub leader: Option<usize>,
    entries: Vec<(Entry, Option<Origin>)>,
    /// What the entries make, by revision: `images[0]` is empty.
    images: Vec<Image>,
    /// Entries up to here are only to be had as a snapshot.
    pub compacted: usize,
}

impl Oracle {
    pub fn new() -> Self {
        let mut image = Image::default();
        image.cluster_id = "simulated".into();
        Self { term: 0, leader: None, entries: Vec::new(), images: vec![image], compacted: 0 }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The image after so many entries.
    pub fn image(&self, entries: usize) -> &Image {
        &self.images[entries]
    }

    pub fn newest(&self) -> &Image {
        self.images.last().expect("the empty one is always there")
    }

    pub fn append(&mut self, entry: Entry, origin: Option<Origin>, counts: &mut Counts) {
        let mut image = self.newest().clone();
        let (delta, _) = image.apply(Revision(image.revision.0 + 1), &entry);
        counts.entries += 1;
        let old = self.newest();
        let moved = |id: &&PartitionId| {
            old.partition(**id).is_some_and(|p| p.leader != image.partition(**id).and_then(|p| p.leader))
        };
        counts.leaders_changed += delta.changed.iter().filter(moved).count() as u64;
        for command in &entry.commands {
            match command {
                Command::Stage(_) => counts.staged += 1,
                Command::FenceNode { .. } => counts.fenced += 1,
                Command::StopNode { .. } => counts.stops += 1,
                Command::ElectLeaders(_) => counts.elections += 1,
                Command::AlterIsr(alter) => {
                    counts.isr_wishes += alter.topics.iter().map(|t| t.partitions.len() as u64).sum::<u64>();
                }
                Command::Reassign(_) => counts.reassignments += 1,
                _ => {}
            }
        }
        self.images.push(image);
        self.entries.push((entry, origin));
    }

    /// The entry after so many, with who proposed it.
    pub fn entry(&self, after: usize) -> Option<&(Entry, Option<Origin>)> {
        self.entries.get(after)
    }
}

impl Default for Oracle {
    fn default() -> Self {
        Self::new()
    }
}
