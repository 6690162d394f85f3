//! What a reassignment does (KIP-455): replicas that are to come are added and catch up, those that are to go leave once
//! all the new ones are in sync; until then it can be changed or cancelled.
//!
//! Control core, pure and deterministic. How it goes on when replicas come in sync is [`settle`]'s.

use highwater_shards::ids::{NodeId, PartitionId, TopicId};

use super::REPLICAS_PER_NODE_MAX;
use crate::control::metadata::command::NewReplicas;
use crate::control::metadata::delta::Delta;
use crate::control::metadata::election::{Target, settle};
use crate::control::metadata::image::{Image, PartitionState};
use crate::control::request::{Refusal, Why};

impl Image {
    pub(super) fn reassign(
        &mut self,
        topic: TopicId,
        new: &NewReplicas,
        delta: &mut Delta,
    ) -> Result<(), Refusal> {
        let id = PartitionId { topic, index: new.index };
        let (old, rules) = self.known_partition(id)?;
        let had = original(old);
        let target = match &new.replicas {
            Some(replicas) => replicas.clone(),
            None if old.is_reassigned() => had.clone(),
            None => {
                let words = format!("partition {id} is not being reassigned");
                return Err(Refusal::new(Why::NoReassignment, words));
            }
        };
        if new.replicas.is_some() {
            self.check_reassigned(old, &target)?;
        }
        let minus = |all: &[NodeId], less: &[NodeId]| -> Vec<NodeId> {
            all.iter().copied().filter(|node| !less.contains(node)).collect()
        };
        let (adding, removing) = (minus(&target, &had), minus(&had, &target));
        let replicas: Vec<NodeId> = target.iter().chain(&removing).copied().collect();
        // Nodes that an earlier reassignment was adding go at once: nothing counts on them.
        let aim = Target { isr: minus(&old.isr, &minus(&old.replicas, &replicas)), ..Target::of(old) };
        if aim.isr.is_empty() && !old.isr.is_empty() {
            let words = format!(
                "all replicas of partition {id} that are in sync would leave: wait until one that stays is in sync"
            );
            return Err(Refusal::new(Why::InvalidAssignment, words));
        }
        let aim = Target { replicas, adding, removing, ..aim };
        if let Some(state) = settle(old, aim, &rules) {
            self.put_state(id, state, delta);
        }
        Ok(())
    }

    fn check_reassigned(&self, old: &PartitionState, target: &[NodeId]) -> Result<(), Refusal> {
        self.check_replicas(target)?;
        let new = |node: &&NodeId| !old.replicas.contains(node);
        for node in target.iter().filter(new) {
            if !self.nodes[node].capabilities.replica {
                let words = format!("node {node} is not meant to hold replicas");
                return Err(Refusal::new(Why::InvalidAssignment, words));
            }
        }
        let (more, room) = (target.iter().filter(new).count(), REPLICAS_PER_NODE_MAX * self.nodes.len());
        if self.replica_count() + more > room {
            let words = format!(
                "the cluster has {} replicas of at most {room} ({REPLICAS_PER_NODE_MAX} a node)",
                self.replica_count()
            );
            return Err(Refusal::new(Why::LimitReached, words));
        }
        Ok(())
    }
}

/// The replicas from before the reassignment, if there is one.
fn original(state: &PartitionState) -> Vec<NodeId> {
    state.replicas.iter().copied().filter(|node| !state.adding.contains(node)).collect()
}
