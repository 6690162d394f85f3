//! What becomes of a partition when its replicas, or the nodes that hold them, change: who is in sync, who is eligible
//! to lead although it is not (KIP-966), who leads, and which epochs that begins (kafka.md R1, R25 to R28; KIP-455).
//!
//! Control core, pure: a function of the old state, of what is aimed at, and of what the committed image says. Every
//! change of a partition goes through [`settle`], so what holds of a partition holds whoever changed it:
//!
//! - `isr` and `elr` are replicas, each once, and no node is both; whoever leads is in sync
//! - as long as fewer than `isr_min` are in sync nothing is acknowledged, so whoever was in sync before stays eligible
//! - a new leader, no leader, and a replica that leaves are a new leader epoch; any change is a new partition epoch

use std::sync::Arc;

use highwater_shards::ids::NodeId;
use imbl::OrdMap;

use super::image::{NodeInfo, PartitionState};

/// What a change aims at. What follows from it is [`settle`]'s.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    pub replicas: Vec<NodeId>,
    pub adding: Vec<NodeId>,
    pub removing: Vec<NodeId>,
    /// Those of them that are not replicas are left out.
    pub isr: Vec<NodeId>,
    /// Lost what it may have acknowledged: not eligible any more.
    pub lost: Option<NodeId>,
    pub elect: Elect,
}

impl Target {
    /// Everything as it is, and somebody to lead if nobody does.
    pub fn of(state: &PartitionState) -> Self {
        Self {
            replicas: state.replicas.clone(),
            adding: state.adding.clone(),
            removing: state.removing.clone(),
            isr: state.isr.clone(),
            lost: None,
            elect: Elect::IfNeeded,
        }
    }

    /// Without the node in sync.
    #[must_use]
    pub fn without(mut self, node: NodeId) -> Self {
        self.isr.retain(|member| *member != node);
        self
    }
}

/// Whether somebody else may lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Elect {
    /// Only when the leader cannot.
    IfNeeded,
    /// The first replica, when it is in sync and can.
    Preferred,
    /// As a last resort any replica that can, whatever the topic says: an operator asks for it.
    Unclean,
}

/// What the image says about the partition's topic and nodes.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    pub isr_min: usize,
    /// The topic allows that a replica leads which may lack acknowledged records.
    pub unclean: bool,
    pub nodes: &'a OrdMap<NodeId, Arc<NodeInfo>>,
}

/// Whether a node can lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fitness {
    /// It is gone, fenced, or not meant to lead.
    Unfit,
    /// It is about to stop: what nobody else can lead it goes on with, and begins nothing.
    Leaving,
    Fit,
}

/// The state that follows from `old` when `target` is aimed at; `None` when that changes nothing.
pub fn settle(old: &PartitionState, target: Target, rules: &Rules<'_>) -> Option<PartitionState> {
    let Target { replicas, adding, removing, isr, lost, elect } = target;
    let mut new = PartitionState { replicas, adding, removing, isr, ..old.clone() };
    new.isr.retain(|node| new.replicas.contains(node));
    complete_reassignment(&mut new);
    find_eligible(old, &mut new, lost, rules);
    new.leader = None;
    match choose(old, &new, elect, rules) {
        Some(Choice::Clean(leader)) => {
            new.leader = Some(leader);
            if !new.isr.contains(&leader) {
                new.isr = vec![leader];
                new.elr.retain(|node| *node != leader);
            }
            new.recovering &= old.leader == Some(leader);
        }
        Some(Choice::Last(leader) | Choice::Unclean(leader)) => {
            new.leader = Some(leader);
            // What the others have is measured by another log than its own: they have to catch up with it.
            (new.isr, new.elr) = (vec![leader], Vec::new());
            new.recovering = true;
        }
        None => {}
    }
    if new.isr.len() >= rules.effective_min(&new) {
        new.elr.clear();
    }
    if new.leader.is_some() {
        new.last_leader = None;
    } else if new.isr.is_empty() && !old.isr.is_empty() {
        // Whoever led alone has everything that was acknowledged, should it come back with it.
        let alone = || (old.isr.len() == 1).then(|| old.isr[0]);
        new.last_leader = old.leader.or_else(alone);
    }
    if let Some(last) = new.last_leader
        && !new.replicas.contains(&last)
    {
        new.last_leader = None;
    }
    if new == *old {
        return None;
    }
    new.partition_epoch.0 += 1;
    let has_left = old.replicas.iter().any(|node| !new.replicas.contains(node));
    if has_left || new.leader != old.leader {
        new.leader_epoch.0 += 1;
    }
    Some(new)
}

impl Rules<'_> {
    fn fitness(&self, node: NodeId) -> Fitness {
        match self.nodes.get(&node) {
            Some(info) if info.can_lead() => Fitness::Fit,
            Some(info) if !info.fenced && info.capabilities.leader => Fitness::Leaving,
            _ => Fitness::Unfit,
        }
    }

    /// How many have to be in sync for records to be acknowledged: replicas that are only being added do not raise it.
    pub fn effective_min(&self, state: &PartitionState) -> usize {
        self.isr_min.min(state.replicas.len() - state.adding.len()).max(1)
    }
}

/// Replicas that are to go leave once all that are to come are in sync, and somebody who stays is.
fn complete_reassignment(new: &mut PartitionState) {
    let all_in_sync = new.adding.iter().all(|node| new.isr.contains(node));
    let stays = |node: &NodeId| !new.removing.contains(node);
    let is_under_way = !(new.adding.is_empty() && new.removing.is_empty());
    if is_under_way && all_in_sync && (new.removing.is_empty() || new.isr.iter().any(stays)) {
        let removing = std::mem::take(&mut new.removing);
        new.replicas.retain(|node| !removing.contains(node));
        new.isr.retain(|node| !removing.contains(node));
        new.adding.clear();
    }
}

/// R26. In the order of the assignment.
fn find_eligible(old: &PartitionState, new: &mut PartitionState, lost: Option<NodeId>, rules: &Rules<'_>) {
    if new.isr.len() >= rules.effective_min(new) {
        new.elr.clear();
        return;
    }
    let was = |node: &NodeId| old.isr.contains(node) || old.elr.contains(node);
    let is = |node: &&NodeId| was(node) && !new.isr.contains(node) && lost != Some(**node);
    new.elr = new.replicas.iter().filter(is).copied().collect();
}

enum Choice {
    Clean(NodeId),
    /// The last leader, although it may have lost something.
    Last(NodeId),
    Unclean(NodeId),
}

/// R25, with the eligible already found.
fn choose(old: &PartitionState, new: &PartitionState, elect: Elect, rules: &Rules<'_>) -> Option<Choice> {
    let can = |node: &NodeId| rules.fitness(*node) == Fitness::Fit;
    let in_sync = |node: &NodeId| new.isr.contains(node) && can(node);
    let preferred = new.replicas.first().filter(|first| elect == Elect::Preferred && in_sync(first));
    let stays = old.leader.as_ref().filter(|leader| in_sync(leader));
    if let Some(leader) = preferred.or(stays) {
        return Some(Choice::Clean(*leader));
    }
    let mut replicas = new.replicas.iter();
    let eligible = |node: &&NodeId| match new.isr.is_empty() {
        true => new.elr.contains(node) && can(node),
        false => in_sync(node),
    };
    if let Some(leader) = replicas.find(eligible) {
        return Some(Choice::Clean(*leader));
    }
    let goes_on = |leader: &NodeId| new.isr.contains(leader) && rules.fitness(*leader) != Fitness::Unfit;
    if let Some(leader) = old.leader.filter(goes_on) {
        return Some(Choice::Clean(leader));
    }
    if new.isr.is_empty() && new.elr.is_empty() {
        // One that has just lost its part of it leads again only once its new life serves.
        let last = new.last_leader.filter(|last| new.replicas.contains(last) && can(last));
        if let Some(leader) = last {
            return Some(Choice::Last(leader));
        }
    }
    if rules.unclean || elect == Elect::Unclean {
        return new.replicas.iter().find(|node| can(node)).map(|node| Choice::Unclean(*node));
    }
    None
}

#[cfg(test)]
mod tests;
