//! I2 of a cluster: the high watermark never regresses within a leader epoch; and whoever leads says, of where the
//! committed records end, no less than anybody had heard before it was asked in its epoch or an earlier one. What is
//! committed later is unknown to a leader that has not heard of its successor: its lease lets it answer for a while.

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
    /// The largest that a client heard, for each epoch that was the latest then: nobody speaks out of a later one.
    heard: BTreeMap<(PartitionId, LeaderEpoch), u64>,
    /// The latest epoch in which a node was seen to lead.
    led: BTreeMap<(PartitionId, NodeId), LeaderEpoch>,
}

impl Watermarks {
    pub fn on_leader(
        &mut self,
        partition: PartitionId,
        node: NodeId,
        epoch: LeaderEpoch,
        high_watermark: Offset,
    ) -> Verdict {
        self.led.insert((partition, node), epoch);
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

    /// Somebody heard that everything before `end` is committed; the latest epoch is `epoch`.
    pub fn heard(&mut self, partition: PartitionId, epoch: LeaderEpoch, end: u64) {
        let heard = self.heard.entry((partition, epoch)).or_default();
        *heard = end.max(*heard);
    }

    /// The latest epoch in which the node was seen to lead.
    pub fn led(&self, partition: PartitionId, node: NodeId) -> Option<LeaderEpoch> {
        self.led.get(&(partition, node)).copied()
    }

    /// What the node knows to be committed, should it lead and be asked now.
    pub fn floor(&self, partition: PartitionId, node: NodeId) -> u64 {
        let Some(led) = self.led(partition, node) else { return 0 };
        let up_to = (partition, LeaderEpoch(0))..=(partition, led);
        self.heard.range(up_to).map(|(_, &end)| end).max().unwrap_or_default()
    }

    /// A leader named the end of what is committed; `floor` had been heard when it was asked.
    pub fn on_latest(
        &mut self,
        partition: PartitionId,
        epoch: LeaderEpoch,
        offset: u64,
        floor: u64,
    ) -> Verdict {
        if offset < floor {
            let what = format!("{partition}: the end is {offset}, though {floor} had been heard before");
            return Err(broken(NAME, what));
        }
        self.heard(partition, epoch, offset);
        Ok(())
    }
}
