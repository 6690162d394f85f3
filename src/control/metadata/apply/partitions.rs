//! What [`AlterPartition`] does: a checked change of leader, in-sync replicas and assignment.
//!
//! Control core, pure and deterministic. Which change is wanted is decided elsewhere; here only what no partition may
//! ever be is refused.

use highwater_shards::ids::{NodeId, PartitionId, TopicId};

use crate::control::metadata::command::{AlterPartition, LeaderChange};
use crate::control::metadata::delta::Delta;
use crate::control::metadata::image::Image;
use crate::control::request::{Refusal, Why};

impl Image {
    pub(super) fn alter_partition(
        &mut self,
        topic: TopicId,
        change: &AlterPartition,
        delta: &mut Delta,
    ) -> Result<(), Refusal> {
        let id = PartitionId { topic, index: change.index };
        let unknown = || Refusal::new(Why::UnknownTopicId, format!("there is no partition {id}"));
        let old = self.partition(id).ok_or_else(unknown)?;
        if old.partition_epoch != change.expected {
            let words = format!(
                "partition {id} is at epoch {}, the change was meant for {}",
                old.partition_epoch, change.expected
            );
            return Err(Refusal::new(Why::Conflict, words));
        }
        let mut new = old.clone();
        new.partition_epoch.0 += 1;
        if let Some(replicas) = &change.replicas {
            self.check_replicas(replicas)?;
            new.replicas.clone_from(replicas);
        }
        if let Some(isr) = &change.isr {
            new.isr.clone_from(isr);
        }
        if let Some(elr) = &change.elr {
            new.elr.clone_from(elr);
        }
        match change.leader {
            LeaderChange::Keep => {}
            LeaderChange::Elect(node) if !self.can_lead(node) => {
                let words =
                    format!("node {node} cannot lead partition {id}: it is fenced, gone, or not meant to");
                return Err(Refusal::new(Why::IneligibleNode, words));
            }
            LeaderChange::Elect(node) => new.leader = Some(node),
            LeaderChange::Nobody => new.leader = None,
        }
        let has_left = old.replicas.iter().any(|node| !new.replicas.contains(node));
        if has_left || change.leader != LeaderChange::Keep {
            new.leader_epoch.0 += 1;
        }
        check_sets(id, &new.replicas, &new.isr, &new.elr)?;
        if let Some(leader) = new.leader
            && !new.isr.contains(&leader)
        {
            let words = format!("node {leader} cannot lead partition {id} without being in sync");
            return Err(Refusal::new(Why::InvalidRequest, words));
        }
        let joins = |node: &&NodeId| !old.isr.contains(node) && !self.serves(**node);
        if let Some(node) = new.isr.iter().find(joins) {
            let words = format!("node {node} is fenced: it cannot come in sync with partition {id}");
            return Err(Refusal::new(Why::IneligibleNode, words));
        }
        self.put_partition(id, new);
        delta.changed.insert(id);
        Ok(())
    }
}

/// In-sync and eligible replicas are replicas, each once, and no node is both.
fn check_sets(id: PartitionId, replicas: &[NodeId], isr: &[NodeId], elr: &[NodeId]) -> Result<(), Refusal> {
    let refuse = |words: String| Err(Refusal::new(Why::InvalidRequest, words));
    for (at, node) in isr.iter().enumerate() {
        if !replicas.contains(node) || isr[..at].contains(node) {
            return refuse(format!(
                "node {node} cannot be in sync (twice) with partition {id}, which it does not hold"
            ));
        }
    }
    for (at, node) in elr.iter().enumerate() {
        if !replicas.contains(node) || isr.contains(node) || elr[..at].contains(node) {
            return refuse(format!(
                "node {node} cannot be an eligible leader of partition {id}: it holds none, or is in sync"
            ));
        }
    }
    Ok(())
}
