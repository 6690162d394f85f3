//! What the leaders of this node wish for their in-sync replicas, on its way through the metadata log.
//!
//! Control core, pure. Wishes that come while an entry is under way share the next one, one for each partition: the
//! latest. What is true comes back to the shard with the image; told directly is only what definitely will not be (R10).

use std::collections::BTreeMap;

use highwater_shards::ids::{NodeId, PartitionId, RegistrationEpoch};
use highwater_shards::mail::{FromControl, IsrChange, IsrRefusal};

use super::Control;
use crate::control::io::Output;
use crate::control::metadata::command::{AlterIsr, Command, IsrOfTopic, NewIsr};
use crate::control::metadata::image::Image;
use crate::control::request::{Refusal, Why};

/// Bounded by the partitions of this node: one wish each waits, and one is under way.
#[derive(Debug, Default)]
pub(super) struct IsrWishes {
    waiting: BTreeMap<PartitionId, IsrChange>,
    /// In the order of the command.
    proposed: Vec<IsrChange>,
}

impl IsrWishes {
    pub(super) fn wish(&mut self, change: IsrChange) {
        let is_newer = |had: &IsrChange| {
            (had.leader_epoch, had.partition_epoch) > (change.leader_epoch, change.partition_epoch)
        };
        if !self.waiting.get(&change.partition).is_some_and(is_newer) {
            self.waiting.insert(change.partition, change);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// As many as there is room for. Those that the image is past already are dropped: what is true is on its way.
    pub(super) fn command(
        &mut self,
        node: NodeId,
        epoch: RegistrationEpoch,
        image: &Image,
        bytes_max: usize,
    ) -> Option<Command> {
        assert!(self.proposed.is_empty(), "one proposal is under way at a time");
        let mut alter = AlterIsr { node, epoch, topics: Vec::new() };
        let mut bytes = 22;
        while let Some(first) = self.waiting.first_entry() {
            let wish = first.get();
            let PartitionId { topic, index } = wish.partition;
            let is_past = image.partition(wish.partition).is_none_or(|state| {
                (state.leader_epoch, state.partition_epoch) > (wish.leader_epoch, wish.partition_epoch)
            });
            if is_past {
                first.remove();
                continue;
            }
            let new = NewIsr {
                index,
                leader_epoch: wish.leader_epoch,
                partition_epoch: wish.partition_epoch,
                isr: wish.isr.clone(),
            };
            let is_same_topic = alter.topics.last().is_some_and(|last| last.topic == topic);
            bytes += new.weight() + if is_same_topic { 0 } else { IsrOfTopic::WEIGHT };
            if bytes > bytes_max {
                break;
            }
            if !is_same_topic {
                alter.topics.push(IsrOfTopic { topic, partitions: Vec::new() });
            }
            alter.topics.last_mut().expect("one was just pushed").partitions.push(new);
            self.proposed.push(first.remove());
        }
        (!alter.topics.is_empty()).then_some(Command::AlterIsr(alter))
    }

    /// The entry did not come about: all of it is wished again, unless something newer is.
    pub(super) fn on_failed(&mut self) {
        for change in std::mem::take(&mut self.proposed) {
            self.waiting.entry(change.partition).or_insert(change);
        }
    }
}

impl Control {
    pub(super) fn on_isr_altered(&mut self, results: Vec<Result<(), Refusal>>) {
        let proposed = std::mem::take(&mut self.isr_wishes.proposed);
        assert_eq!(proposed.len(), results.len(), "one result for each wish");
        for (change, result) in proposed.into_iter().zip(results) {
            let Err(refusal) = result else { continue };
            tracing::debug!("the in-sync replicas of {} stay: {refusal}", change.partition);
            if refusal.why == Why::IneligibleNode {
                self.refuse_isr(&change, IsrRefusal::Ineligible);
            }
        }
    }

    pub(super) fn on_isr_wishes(&mut self, changes: Vec<IsrChange>) {
        for change in changes {
            self.isr_wishes.wish(change);
        }
    }

    fn refuse_isr(&mut self, change: &IsrChange, refusal: IsrRefusal) {
        let IsrChange { partition, partition_epoch, .. } = *change;
        if let Some(shard) = self.image.local_shard(partition) {
            let message = FromControl::IsrRefused { partition, partition_epoch, refusal };
            self.outputs.push_back(Output::ToShard { shard, message });
        }
    }
}
