//! What commands do to the nodes of the cluster.
//!
//! Control core, pure and deterministic.

use std::sync::Arc;

use highwater_shards::ids::{NodeId, PartitionId, PartitionIndex};

use super::invalid;
use crate::control::metadata::command::{RegisterAlone, RegisterNode, SettingChange};
use crate::control::metadata::delta::Delta;
use crate::control::metadata::image::{
    Capabilities, DiskId, Endpoint, FeatureLevel, Image, Incarnation, NodeInfo, RegistrationEpoch, Topic,
};
use crate::control::metadata::node_config;
use crate::control::request::{Refusal, Why};

/// Nodes that a cluster has at most.
pub const NODES_MAX: usize = 1024;

impl Image {
    pub(super) fn register_alone(&mut self, old: &RegisterAlone, delta: &mut Delta) -> Result<(), Refusal> {
        self.check_incarnation(old.node, old.incarnation)?;
        let info = NodeInfo {
            id: old.node,
            incarnation: old.incarnation,
            epoch: RegistrationEpoch(self.revision.0),
            disk: DiskId(0),
            capabilities: Capabilities::default(),
            rack: old.rack.clone(),
            client: old.client.clone(),
            shard_clients: old.shard_clients.clone(),
            cluster: Endpoint::default(),
            shard_peers: Vec::new(),
            feature_level: FeatureLevel::FIRST,
            fenced: false,
            config: Arc::default(),
        };
        self.nodes.insert(old.node, Arc::new(info));
        delta.nodes.insert(old.node);
        self.renew_leaderships(old.node, Some(old.node), delta);
        Ok(())
    }

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
            // The first release knew nothing of disks.
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
            config,
        };
        self.nodes.insert(id, Arc::new(info));
        delta.nodes.insert(id);
        // The earlier life's half-done work is not gone on with.
        delta.staged |= self.take_staged(id).is_some();
        self.renew_leaderships(id, None, delta);
        Ok(())
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

    /// A restart ends the node's leaderships: what it had not flushed is gone, and clients notice by the epoch (R1).
    fn renew_leaderships(&mut self, node: NodeId, leader: Option<NodeId>, delta: &mut Delta) {
        let led: Vec<Arc<Topic>> = self
            .topics_from(Default::default())
            .filter(|t| t.partitions.iter().any(|p| p.leader == Some(node)))
            .cloned()
            .collect();
        for topic in led {
            let mut topic = Topic::clone(&topic);
            for (index, state) in (0..).map(PartitionIndex).zip(topic.partitions.iter_mut()) {
                if state.leader == Some(node) {
                    state.leader = leader;
                    state.leader_epoch.0 += 1;
                    state.partition_epoch.0 += 1;
                    delta.changed.insert(PartitionId { topic: topic.id, index });
                }
            }
            self.put_topic(topic);
        }
    }

    pub(super) fn set_fenced(
        &mut self,
        node: NodeId,
        epoch: RegistrationEpoch,
        fenced: bool,
        delta: &mut Delta,
    ) -> Result<(), Refusal> {
        let known = self.known_node(node)?;
        if known.epoch != epoch {
            let words = format!("node {node} registered again since: its epoch is {}", known.epoch.0);
            return Err(Refusal::new(Why::Conflict, words));
        }
        if known.fenced != fenced {
            let info = NodeInfo { fenced, ..NodeInfo::clone(known) };
            self.nodes.insert(node, Arc::new(info));
            delta.nodes.insert(node);
        }
        Ok(())
    }

    pub(super) fn remove_node(&mut self, node: NodeId, delta: &mut Delta) -> Result<(), Refusal> {
        self.known_node(node)?;
        let held = |t: &Arc<Topic>| t.partitions.iter().filter(|p| p.replicas.contains(&node)).count();
        let replicas: usize = self.topics_from(Default::default()).map(held).sum();
        if replicas > 0 {
            let words = format!("node {node} holds {replicas} replicas: move them to other nodes first");
            return Err(Refusal::new(Why::NodeInUse, words));
        }
        self.nodes.remove(&node);
        delta.nodes.insert(node);
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

    fn known_node(&self, node: NodeId) -> Result<&Arc<NodeInfo>, Refusal> {
        let unknown = || Refusal::new(Why::UnknownNode, format!("node {node} is not in the cluster"));
        self.nodes.get(&node).ok_or_else(unknown)
    }
}
