//! I5: at most one leader acts in an epoch: one life of one node.

use std::collections::BTreeMap;

use highwater_shards::ids::{LeaderEpoch, NodeId, PartitionId};

use super::{Verdict, broken};

pub const NAME: &str = "I5 leaders";

#[derive(Debug, Default)]
pub struct Leaders {
    by_epoch: BTreeMap<(PartitionId, LeaderEpoch), (NodeId, u32)>,
}

impl Leaders {
    pub fn on_leader(
        &mut self,
        partition: PartitionId,
        epoch: LeaderEpoch,
        node: NodeId,
        life: u32,
    ) -> Verdict {
        let first = *self.by_epoch.entry((partition, epoch)).or_insert((node, life));
        if first != (node, life) {
            let what = format!(
                "{partition}: node {node} in life {life} leads in epoch {epoch}, in which node {} in life {} led",
                first.0, first.1
            );
            return Err(broken(NAME, what));
        }
        Ok(())
    }

    /// Leaderships so far.
    pub fn len(&self) -> usize {
        self.by_epoch.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_epoch.is_empty()
    }
}
