//! I4 of a cluster, as it goes along: where the committed records end, every replica that is in sync has the record that the
//! leader committed there, which its epoch tells (logs that agree in the offset and the epoch of a record agree in all that is
//! before it). What clients and the audit see of that is [`super::committed`]'s.

use std::collections::BTreeMap;

use highwater_shards::ids::{LeaderEpoch, NodeId, Offset, PartitionId};
use highwater_shards::mail::Assignment;

use super::{Verdict, broken};

pub const NAME: &str = "I4 agreement";

#[derive(Debug, Default)]
pub struct Agreement {
    /// The largest high watermark of any leader, and the epoch of the record before it.
    last: BTreeMap<PartitionId, (Offset, LeaderEpoch)>,
}

impl Agreement {
    /// A leader has committed everything before `high_watermark`; `epoch` is that of the last record of it.
    pub fn on_committed(&mut self, partition: PartitionId, high_watermark: Offset, epoch: LeaderEpoch) {
        let last = self.last.entry(partition).or_insert((high_watermark, epoch));
        if last.0 < high_watermark {
            *last = (high_watermark, epoch);
        }
    }

    /// Where the committed records of the partition end, if it has any.
    pub fn end(&self, partition: PartitionId) -> Option<Offset> {
        self.last.get(&partition).map(|last| last.0)
    }

    /// A replica, with the epoch of its record before [`Self::end`].
    pub fn check(&self, truth: &Assignment, node: NodeId, found: Option<LeaderEpoch>) -> Verdict {
        let Some(&(end, epoch)) = self.last.get(&truth.partition) else { return Ok(()) };
        if found != Some(epoch) && truth.isr.contains(&node) {
            let what = format!(
                "{}: the record before {end} is committed and of epoch {epoch}; node {node}, which is in sync in epoch {}, \
                 version {}, has one of epoch {found:?} there",
                truth.partition, truth.leader_epoch, truth.partition_epoch
            );
            return Err(broken(NAME, what));
        }
        Ok(())
    }
}
