//! I2 of a cluster: the high watermark never regresses within a leader epoch; and over all epochs, whoever says where the
//! committed records end says no less than anybody had heard before it was asked.

use std::collections::BTreeMap;

use highwater_shards::ids::{LeaderEpoch, NodeId, Offset, PartitionId};

use super::{Verdict, broken};

pub const NAME: &str = "I2 high watermark";

#[derive(Debug, Default)]
pub struct Watermarks {
    /// Of the leader of an epoch, as its shard has it.
    epochs: BTreeMap<PartitionId, (LeaderEpoch, Offset)>,
    /// The largest of any leader: what is committed.
    committed: BTreeMap<PartitionId, Offset>,
    /// The largest that a client heard.
    heard: BTreeMap<PartitionId, u64>,
}

impl Watermarks {
    pub fn on_leader(
        &mut self,
        partition: PartitionId,
        node: NodeId,
        epoch: LeaderEpoch,
        high_watermark: Offset,
    ) -> Verdict {
        let last = self.epochs.entry(partition).or_insert((epoch, high_watermark));
        if last.0 == epoch && high_watermark < last.1 {
            let what = format!(
                "{partition}: on node {node} it went from {} to {high_watermark} within epoch {epoch}",
                last.1
            );
            return Err(broken(NAME, what));
        }
        if last.0 <= epoch {
            *last = (epoch, high_watermark);
        }
        let committed = self.committed.entry(partition).or_default();
        *committed = high_watermark.max(*committed);
        Ok(())
    }

    pub fn committed(&self, partition: PartitionId) -> Offset {
        self.committed.get(&partition).copied().unwrap_or_default()
    }

    /// Somebody heard that everything before `end` is committed.
    pub fn heard(&mut self, partition: PartitionId, end: u64) {
        let heard = self.heard.entry(partition).or_default();
        *heard = end.max(*heard);
    }

    pub fn floor(&self, partition: PartitionId) -> u64 {
        self.heard.get(&partition).copied().unwrap_or_default()
    }

    /// A leader named the end of what is committed; `floor` had been heard when it was asked.
    pub fn on_latest(&mut self, partition: PartitionId, offset: u64, floor: u64) -> Verdict {
        if offset < floor {
            let what = format!("{partition}: the end is {offset}, though {floor} had been heard before");
            return Err(broken(NAME, what));
        }
        self.heard(partition, offset);
        Ok(())
    }
}
