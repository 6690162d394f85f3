//! I3: the high watermark is at most the smallest end of the replicas that are in sync, as is committed: what they have on
//! their disks under `Durability::Fsync`, what they have in memory otherwise. And so each replica that is in sync has
//! everything that any leader ever took for committed.
//!
//! What the leader counts beyond the committed set only makes it more careful, so that the committed one is the weakest
//! thing that must hold.

use std::collections::BTreeMap;

use highwater_shards::ids::{NodeId, Offset, PartitionId};
use highwater_shards::mail::{Assignment, Durability};

use super::{Verdict, broken};

pub const NAME: &str = "I3 maximal ISR";

#[derive(Debug, Default)]
pub struct MaximalIsr {
    ends: BTreeMap<(PartitionId, NodeId), Offset>,
}

impl MaximalIsr {
    /// How far a replica has come, in memory and on its disk.
    pub fn on_ends(&mut self, truth: &Assignment, node: NodeId, log_end: Offset, flushed_end: Offset) {
        let end = match truth.config.durability {
            Durability::Fsync => flushed_end,
            Durability::Replicated => log_end,
        };
        self.ends.insert((truth.partition, node), end);
    }

    /// A node holds no replica of the partition any more.
    pub fn on_left(&mut self, partition: PartitionId, node: NodeId) {
        self.ends.remove(&(partition, node));
    }

    /// `committed` is the largest high watermark of any leader so far.
    pub fn check(&self, truth: &Assignment, committed: Offset) -> Verdict {
        for &member in &truth.isr {
            let end = self.ends.get(&(truth.partition, member)).copied().unwrap_or_default();
            if end < committed {
                let what = format!(
                    "{}: a high watermark is {committed}, and node {member}, which is in sync in epoch {}, version {}, \
                     has records up to {end}",
                    truth.partition, truth.leader_epoch, truth.partition_epoch
                );
                return Err(broken(NAME, what));
            }
        }
        Ok(())
    }
}
