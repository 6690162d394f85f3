//! What a replica knows of itself, for whoever watches a shard from outside: tests and simulations. Nothing is changed here.

use super::Shard;
use crate::front::Front;
use crate::ids::{LeaderEpoch, Offset, PartitionId};

/// One replica, as its shard has it. `log_start <= high_watermark <= log_end`, `flushed_end <= log_end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplicaLook {
    /// The epoch in which it leads.
    pub leads: Option<LeaderEpoch>,
    pub log_start: Offset,
    pub high_watermark: Offset,
    pub log_end: Offset,
    /// One past the last record that is on the disk.
    pub flushed_end: Offset,
}

impl<F: Front> Shard<F> {
    /// `None` before the shard was told of its partitions, and where it has no such replica.
    pub fn look(&self, partition: PartitionId) -> Option<ReplicaLook> {
        self.view.as_ref()?;
        let partition = self.partitions.get(self.storage.slot(partition)?)?;
        let ends = partition.ends();
        Some(ReplicaLook {
            leads: partition.leads(),
            log_start: partition.log_start(),
            high_watermark: partition.high_watermark(),
            log_end: ends.log,
            flushed_end: ends.flushed,
        })
    }

    /// The leader epoch of one of its records.
    pub fn epoch_of(&self, partition: PartitionId, offset: Offset) -> Option<LeaderEpoch> {
        self.partitions.get(self.storage.slot(partition)?)?.epoch_of(offset)
    }
}
