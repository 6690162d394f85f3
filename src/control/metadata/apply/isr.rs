//! What [`AlterIsr`] does: a leader's wishes for other in-sync replicas, each taken or refused for what it is (R9).
//!
//! Control core, pure and deterministic.

use highwater_shards::ids::{PartitionId, TopicId};

use crate::control::metadata::command::{AlterIsr, NewIsr};
use crate::control::metadata::delta::Delta;
use crate::control::metadata::election::{Target, settle};
use crate::control::metadata::image::{Image, PartitionState};
use crate::control::request::{Refusal, Why};

impl Image {
    /// One result for each partition, in the order of the command.
    pub(super) fn alter_isr(&mut self, alter: &AlterIsr, delta: &mut Delta) -> Vec<Result<(), Refusal>> {
        let mut results = Vec::new();
        for of in &alter.topics {
            for new in &of.partitions {
                results.push(self.alter_one(alter, of.topic, new, delta));
            }
        }
        results
    }

    fn alter_one(
        &mut self,
        alter: &AlterIsr,
        topic: TopicId,
        wish: &NewIsr,
        delta: &mut Delta,
    ) -> Result<(), Refusal> {
        let id = PartitionId { topic, index: wish.index };
        let (old, rules) = self.known_partition(id)?;
        self.check_isr(alter, id, old, wish)?;
        // A leader that speaks has recovered.
        let spoken = PartitionState { recovering: false, ..old.clone() };
        let target = Target { isr: in_order(old, wish), ..Target::of(&spoken) };
        let new = settle(&spoken, target, &rules).unwrap_or_else(|| {
            // The leader waits for the fact, although there is nothing new about it.
            let mut same = spoken;
            same.partition_epoch.0 += 1;
            same
        });
        self.put_state(id, new, delta);
        Ok(())
    }

    fn check_isr(
        &self,
        alter: &AlterIsr,
        id: PartitionId,
        old: &PartitionState,
        wish: &NewIsr,
    ) -> Result<(), Refusal> {
        let refuse = |why: Why, words: String| Err(Refusal::new(why, words));
        let sender = alter.node;
        if self.nodes.get(&sender).is_none_or(|info| info.epoch != alter.epoch) {
            return refuse(Why::Conflict, format!("node {sender} registered again since, or is gone"));
        }
        if wish.leader_epoch > old.leader_epoch || wish.partition_epoch > old.partition_epoch {
            let words = format!(
                "partition {id} is at leader epoch {} and epoch {} only: who wishes knows more than the log",
                old.leader_epoch, old.partition_epoch
            );
            return refuse(Why::NoController, words);
        }
        if wish.leader_epoch < old.leader_epoch {
            let words = format!("partition {id} is at leader epoch {}", old.leader_epoch);
            return refuse(Why::FencedLeaderEpoch, words);
        }
        if old.leader != Some(sender) {
            return refuse(Why::InvalidRequest, format!("node {sender} does not lead partition {id}"));
        }
        if wish.partition_epoch < old.partition_epoch {
            let words = format!(
                "partition {id} is at epoch {}, the change was meant for {}",
                old.partition_epoch, wish.partition_epoch
            );
            return refuse(Why::Conflict, words);
        }
        for (at, (node, _)) in wish.isr.iter().enumerate() {
            if !old.replicas.contains(node) || wish.isr[..at].iter().any(|(earlier, _)| earlier == node) {
                let words = format!("node {node} cannot be in sync (twice) with partition {id}");
                return refuse(Why::InvalidRequest, words);
            }
        }
        if !wish.isr.iter().any(|(node, _)| *node == sender) {
            let words = format!("node {sender} leads partition {id} and is in sync with itself");
            return refuse(Why::InvalidRequest, words);
        }
        for (node, epoch) in &wish.isr {
            // A leader that stops leads on what nobody else can: it is in sync as long as it does.
            let eligible = |info: &&std::sync::Arc<_>| is_eligible(info, *epoch, *node == sender);
            if self.nodes.get(node).filter(eligible).is_none() {
                let words = format!(
                    "node {node} cannot be in sync with partition {id}: it is fenced, stopping, gone or registered anew"
                );
                return refuse(Why::IneligibleNode, words);
            }
        }
        Ok(())
    }
}

fn is_eligible(
    info: &crate::control::metadata::image::NodeInfo,
    epoch: highwater_shards::ids::RegistrationEpoch,
    leads: bool,
) -> bool {
    info.epoch == epoch && !info.fenced && (leads || !info.stopping)
}

/// The members in the order of the assignment, so that equal sets are equal.
fn in_order(old: &PartitionState, wish: &NewIsr) -> Vec<highwater_shards::ids::NodeId> {
    let wished = |node: &highwater_shards::ids::NodeId| wish.isr.iter().any(|(member, _)| member == node);
    old.replicas.iter().copied().filter(|node| wished(node)).collect()
}
