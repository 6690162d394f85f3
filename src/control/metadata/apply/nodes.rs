//! What commands do to the nodes of the cluster.
//!
//! Control core, pure and deterministic.

use std::sync::Arc;

use highwater_shards::ids::{NodeId, TopicId};
use highwater_shards::mail::Durability;

use super::invalid;
use crate::control::metadata::command::{RegisterNode, SettingChange};
use crate::control::metadata::delta::Delta;
use crate::control::metadata::election::Target;
use crate::control::metadata::image::{
    DiskId, FeatureLevel, Image, Incarnation, NodeInfo, PartitionState, RegistrationEpoch,
};
use crate::control::metadata::node_config;
use crate::control::request::{Refusal, Why};

/// Nodes that a cluster has at most.
pub const NODES_MAX: usize = 1024;

impl Image {
    pub(super) fn register_node(&mut self, new: &RegisterNode, delta: &mut Delta) -> Result<(), Refusal> {
        let id = new.node;
        if new.feature_level < self.feature_level {
            let words = format!(
                "the cluster writes formats of level {}, this release of Highwater reads up to {}: use a newer one",
                self.feature_level.0, new.feature_level.0
            );
            return Err(Refusal::new(Why::InvalidRequest, words));
        }
        let config = match self.nodes.get(&id) {
            // A node that stands alone may know nothing of disks.
            Some(known) if known.disk != new.disk && known.disk != DiskId(0) => {
                let words =
                    format!("the disk of node {id} was replaced: remove the node, then join under a new id");
                return Err(Refusal::new(Why::DuplicateNode, words));
            }
            Some(known) => known.config.clone(),
            None if self.nodes.len() >= NODES_MAX => {
                let words = format!("the cluster has {NODES_MAX} nodes, which is its limit");
                return Err(Refusal::new(Why::LimitReached, words));
            }
            None => Arc::default(),
        };
        self.check_incarnation(id, new.incarnation)?;
        let is_clean = self.nodes.get(&id).is_none_or(|known| new.clean_stop == Some(known.epoch));
        let info = NodeInfo {
            id,
            incarnation: new.incarnation,
            epoch: RegistrationEpoch(self.revision.0),
            disk: new.disk,
            capabilities: new.capabilities,
            rack: new.rack.clone(),
            client: new.client.clone(),
            shard_clients: new.shard_clients.clone(),
            cluster: new.cluster.clone(),
            shard_peers: new.shard_peers.clone(),
            feature_level: new.feature_level,
            fenced: true,
            stopping: false,
            config,
        };
        self.nodes.insert(id, Arc::new(info));
        delta.nodes.insert(id);
        // The earlier life's half-done work is not gone on with.
        delta.staged |= self.take_staged(id).is_some();
        self.drop_life(id, is_clean, delta);
        Ok(())
    }

    /// The node's earlier life is over: it leads nothing and is in sync with nothing. What it acknowledged it still has,
    /// unless it did not stop cleanly and had acknowledged what it had not flushed (R27): topics that acknowledge only
    /// what is flushed (`highwater.durability=fsync`) count on it after any crash.
    fn drop_life(&mut self, node: NodeId, is_clean: bool, delta: &mut Delta) {
        self.change_partitions(delta, |state, settings| {
            let lost = !is_clean && settings.durability == Durability::Replicated;
            let concerns = state.isr.contains(&node) || (lost && state.elr.contains(&node));
            concerns.then(|| Target { lost: lost.then_some(node), ..Target::of(state).without(node) })
        });
    }

    fn check_incarnation(&self, id: NodeId, incarnation: Incarnation) -> Result<(), Refusal> {
        match self.nodes.get(&id) {
            Some(known) if known.incarnation >= incarnation => Err(Refusal::new(
                Why::DuplicateNode,
                format!(
                    "node {id} registered before as incarnation {}, which {} does not follow: another process \
                     runs as this node, or its data directory is an old copy",
                    known.incarnation.0, incarnation.0
                ),
            )),
            _ => Ok(()),
        }
    }

    /// R32.
    pub(super) fn fence_node(
        &mut self,
        node: NodeId,
        epoch: RegistrationEpoch,
        delta: &mut Delta,
    ) -> Result<(), Refusal> {
        let known = self.known_life(node, epoch)?;
        if !known.fenced {
            let info = NodeInfo { fenced: true, ..NodeInfo::clone(known) };
            self.put_node(info, delta);
            self.change_partitions(delta, |state, _| {
                state.isr.contains(&node).then(|| Target::of(state).without(node))
            });
        }
        Ok(())
    }

    pub(super) fn unfence_node(
        &mut self,
        node: NodeId,
        epoch: RegistrationEpoch,
        delta: &mut Delta,
    ) -> Result<(), Refusal> {
        let known = self.known_life(node, epoch)?;
        if known.stopping {
            return Err(Refusal::new(Why::Conflict, format!("node {node} has begun to stop")));
        }
        if known.fenced {
            let info = NodeInfo { fenced: false, ..NodeInfo::clone(known) };
            self.put_node(info, delta);
            self.change_partitions(delta, |state, _| {
                let waits = state.leader.is_none() && state.replicas.contains(&node);
                waits.then(|| Target::of(state))
            });
        }
        Ok(())
    }

    pub(super) fn stop_node(
        &mut self,
        node: NodeId,
        epoch: RegistrationEpoch,
        delta: &mut Delta,
    ) -> Result<(), Refusal> {
        let known = self.known_life(node, epoch)?;
        if known.stopping {
            return Ok(());
        }
        let info = NodeInfo { stopping: true, ..NodeInfo::clone(known) };
        self.put_node(info, delta);
        let nodes = self.nodes.clone();
        let can_lead = |other: &NodeId| nodes.get(other).is_some_and(|info| info.can_lead());
        self.change_partitions(delta, |state, _| {
            let moves = state.isr.contains(&node) && state.isr.iter().any(can_lead);
            moves.then(|| Target::of(state).without(node))
        });
        Ok(())
    }

    pub(super) fn remove_node(
        &mut self,
        node: NodeId,
        force: bool,
        delta: &mut Delta,
    ) -> Result<(), Refusal> {
        self.known_node(node)?;
        let replicas = self.loads().find(|(holder, _)| *holder == node).map_or(0, |(_, load)| load.replicas);
        if replicas > 0 && !force {
            let words = format!(
                "node {node} holds {replicas} replicas: reassign them to other nodes first, or force the removal to drop \
                 those that are not the only ones"
            );
            return Err(Refusal::new(Why::NodeInUse, words));
        }
        let only = |state: &&PartitionState| state.replicas == [node];
        let alone = match replicas {
            0 => 0,
            _ => self.topics_from(TopicId::default()).flat_map(|t| &t.partitions).filter(only).count(),
        };
        if alone > 0 {
            let words = format!(
                "node {node} holds the only replica of {alone} partitions: reassign them, or delete their topics"
            );
            return Err(Refusal::new(Why::NodeInUse, words));
        }
        self.nodes.remove(&node);
        delta.nodes.insert(node);
        if replicas > 0 {
            self.change_partitions(delta, |state, _| {
                let is_other = |other: &NodeId| *other != node;
                state.replicas.contains(&node).then(|| {
                    let mut target = Target::of(state).without(node);
                    for set in [&mut target.replicas, &mut target.adding, &mut target.removing] {
                        set.retain(is_other);
                    }
                    target
                })
            });
        }
        delta.staged |= self.take_staged(node).is_some();
        if self.controller == Some(node) {
            self.controller = None;
            delta.cluster = true;
        }
        Ok(())
    }

    pub(super) fn take_control(&mut self, node: NodeId, term: u64, delta: &mut Delta) -> Result<(), Refusal> {
        self.known_node(node)?;
        let is_same = self.controller == Some(node) && self.controller_term == term;
        // Of one term there is one leader only; a standalone node of the first release had no terms.
        if term < self.controller_term || (term == self.controller_term && !is_same) {
            let words = format!("the metadata log has come to term {}", self.controller_term);
            return Err(Refusal::new(Why::Conflict, words));
        }
        if !is_same {
            self.controller = Some(node);
            self.controller_term = term;
            delta.cluster = true;
        }
        Ok(())
    }

    pub(super) fn set_feature_level(
        &mut self,
        level: FeatureLevel,
        delta: &mut Delta,
    ) -> Result<(), Refusal> {
        if level < self.feature_level {
            let words = format!("the feature level is {} and never goes back", self.feature_level.0);
            return Err(Refusal::new(Why::InvalidRequest, words));
        }
        if let Some(old) = self.nodes.values().find(|node| node.feature_level < level) {
            let words = format!(
                "node {} reads formats up to level {} only: give it a newer release first",
                old.id, old.feature_level.0
            );
            return Err(Refusal::new(Why::InvalidRequest, words));
        }
        if level != self.feature_level {
            self.feature_level = level;
            delta.cluster = true;
        }
        Ok(())
    }

    pub(super) fn set_node_config(
        &mut self,
        node: NodeId,
        changes: &[SettingChange],
        delta: &mut Delta,
    ) -> Result<(), Refusal> {
        let known = self.known_node(node)?;
        let config = node_config::change(&known.config, changes).map_err(invalid)?;
        if config != *known.config {
            let info = NodeInfo { config: Arc::new(config), ..NodeInfo::clone(known) };
            self.nodes.insert(node, Arc::new(info));
            delta.nodes.insert(node);
        }
        Ok(())
    }

    /// The node in this of its lives.
    fn known_life(&self, node: NodeId, epoch: RegistrationEpoch) -> Result<&Arc<NodeInfo>, Refusal> {
        let known = self.known_node(node)?;
        if known.epoch != epoch {
            let words = format!("node {node} registered again since: its epoch is {}", known.epoch.0);
            return Err(Refusal::new(Why::Conflict, words));
        }
        Ok(known)
    }

    fn put_node(&mut self, info: NodeInfo, delta: &mut Delta) {
        delta.nodes.insert(info.id);
        self.nodes.insert(info.id, Arc::new(info));
    }

    fn known_node(&self, node: NodeId) -> Result<&Arc<NodeInfo>, Refusal> {
        let unknown = || Refusal::new(Why::UnknownNode, format!("node {node} is not in the cluster"));
        self.nodes.get(&node).ok_or_else(unknown)
    }
}
