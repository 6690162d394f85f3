//! I3: the high watermark is at most the smallest end of the replicas that are in sync, as is committed: what they have on
//! their disks under `Durability::Fsync`, what they have in memory otherwise.
//!
//! What the leader counts beyond the committed set only makes it more careful, so that the committed one is the weakest
//! thing that must hold. It is judged while the leader's epoch is the committed one: later, others may truncate.

use std::collections::BTreeMap;

use highwater_shards::ids::{LeaderEpoch, NodeId, Offset, PartitionId};
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

    pub fn on_leader(
        &self,
        truth: &Assignment,
        node: NodeId,
        epoch: LeaderEpoch,
        high_watermark: Offset,
    ) -> Verdict {
        if truth.leader != Some(node) || truth.leader_epoch != epoch {
            return Ok(());
        }
        for &member in &truth.isr {
            let end = self.ends.get(&(truth.partition, member)).copied().unwrap_or_default();
            if end < high_watermark {
                let what = format!(
                    "{}: the high watermark of node {node} in epoch {epoch} is {high_watermark}, and node {member}, \
                     which is in sync, has records up to {end}",
                    truth.partition
                );
                return Err(broken(NAME, what));
            }
        }
        Ok(())
    }
}
