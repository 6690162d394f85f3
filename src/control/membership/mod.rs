//! Who votes: what the leader of the metadata log should change next about its members.
//!
//! Control core of the leader, pure. [`next`] looks at the members as they are and names one change, or none when
//! nothing is to be done; the driver makes it and comes again. It is a function of its arguments, so a new leader goes
//! on where the old one stopped. It never names a set of voters of which no majority is there.
//!
//! Rules, in this order of weight: who is asked to leave, leaves; a dead voter gives its place to a node that is there;
//! the number of voters is odd, since an even one tolerates no more failures than the odd one below it; otherwise
//! nobody's vote changes.

pub mod change;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use highwater_shards::ids::NodeId;

use super::forming::wire::{Joining, Refused};
use super::forming::{ClusterId, Member};
use super::metadata::image::{DiskId, Endpoint};

/// Nodes of a cluster, voters or not.
pub const NODES_MAX: usize = 1024;
/// A node that was not heard for so long is dead: its vote may go to another.
pub const DEAD_AFTER: Duration = Duration::from_secs(30);
/// A vote is given only to a node that was heard so recently ...
pub const HEARD_WITHIN: Duration = Duration::from_secs(3);
/// ... and whose log is at most so many entries behind.
pub const BEHIND_MAX: u64 = 1000;
/// Up to so many nodes 3 of them vote, 5 in a larger cluster, when nothing else is configured.
const SMALL_CLUSTER: usize = 4;

/// A member of the metadata log, as its leader sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    pub disk: DiskId,
    pub at: Endpoint,
    pub rack: Option<String>,
    /// Otherwise it follows the log without a vote.
    pub votes: bool,
    /// Its role allows it.
    pub may_vote: bool,
    /// Entries that it does not have yet; `None` while that is not known.
    pub behind: Option<u64>,
    /// Since it was heard last; zero for the leader itself.
    pub silent: Duration,
}

impl Node {
    fn is_alive(&self) -> bool {
        self.silent < DEAD_AFTER
    }

    fn can_be_promoted(&self) -> bool {
        self.may_vote && self.silent < HEARD_WITHIN && self.behind.is_some_and(|behind| behind <= BEHIND_MAX)
    }
}

/// The members of the metadata log and what is wished for them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// The leader, which is a member.
    pub leader: NodeId,
    pub nodes: BTreeMap<NodeId, Node>,
    /// A change of the members is not finished yet, and somebody is at it.
    pub is_changing: bool,
    /// A change was begun and left by an earlier leader: two sets of voters count.
    pub is_joint: bool,
    /// How many nodes should vote; `None`: by the size of the cluster.
    pub voters: Option<u32>,
    /// Who shall leave the cluster.
    pub leaving: BTreeSet<NodeId>,
}

/// One change of the members.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Exactly these vote from now on; the others follow without a vote. One change of the log's membership.
    SetVoters(BTreeSet<NodeId>),
    /// The leader is to leave and gives the lead to this voter first.
    TransferLeader(NodeId),
    /// Takes a node without a vote out of the cluster.
    Remove(NodeId),
}

/// Why a node cannot be removed, or cannot lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Obstacle {
    #[error("node {0} is not in the cluster; `highwater cluster status` shows who is")]
    NotAMember(NodeId),
    #[error(
        "node {0} is the only one that may vote on metadata; start another one with the role `voter` first"
    )]
    LastVoter(NodeId),
    #[error("without node {0} too few of the voters would be there: bring the others back first")]
    NoMajority(NodeId),
    #[error("node {0} does not vote on metadata, so it cannot lead; choose a voter")]
    NoVoter(NodeId),
    #[error("node {0} was not heard lately, so it cannot take the lead; choose another voter")]
    Silent(NodeId),
}

impl View {
    fn voters(&self) -> BTreeSet<NodeId> {
        self.nodes.iter().filter(|(_, node)| node.votes).map(|(id, _)| *id).collect()
    }

    /// How many should vote, if there are so many.
    fn goal(&self) -> usize {
        let staying = self.nodes.keys().filter(|id| !self.leaving.contains(id)).count();
        match self.voters {
            Some(voters) => usize::try_from(voters).unwrap_or(usize::MAX).max(1),
            None if staying <= SMALL_CLUSTER => 3,
            None => 5,
        }
    }

    fn has_majority(&self, voters: &BTreeSet<NodeId>) -> bool {
        let alive = voters.iter().filter(|id| self.nodes.get(id).is_some_and(Node::is_alive)).count();
        alive * 2 > voters.len()
    }

    /// Whether the node can be removed; when it can, put it among `leaving` until it is gone.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn check_removal(&self, node: NodeId) -> Result<(), Obstacle> {
        if !self.nodes.contains_key(&node) {
            return Err(Obstacle::NotAMember(node));
        }
        let mut without = self.clone();
        without.leaving.insert(node);
        let voters = without.ideal_voters();
        match voters.is_empty() {
            true => Err(Obstacle::LastVoter(node)),
            false if !self.has_majority(&voters) || !self.has_majority(&self.voters()) => {
                Err(Obstacle::NoMajority(node))
            }
            false => Ok(()),
        }
    }

    /// Whether the node can take the lead.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn check_transfer(&self, node: NodeId) -> Result<(), Obstacle> {
        match self.nodes.get(&node) {
            None => Err(Obstacle::NotAMember(node)),
            Some(member) if !member.votes => Err(Obstacle::NoVoter(node)),
            Some(member) if member.silent >= HEARD_WITHIN => Err(Obstacle::Silent(node)),
            Some(_) => Ok(()),
        }
    }

    /// Whom the leader gives the lead to when nobody in particular is asked for: the voter that is least behind.
    pub fn successor(&self) -> Option<NodeId> {
        let others = self.nodes.iter().filter(|(id, node)| {
            **id != self.leader && node.votes && node.silent < HEARD_WITHIN && !self.leaving.contains(id)
        });
        others.min_by_key(|(id, node)| (node.behind.unwrap_or(u64::MAX), **id)).map(|(id, _)| *id)
    }

    /// Who should vote, were it all up to now. Empty when nobody may.
    fn ideal_voters(&self) -> BTreeSet<NodeId> {
        let goal = self.goal();
        let staying = || self.nodes.iter().filter(|(id, node)| node.may_vote && !self.leaving.contains(id));
        // The leader keeps its vote, and after it those that have theirs.
        let mut alive: Vec<NodeId> =
            staying().filter(|(_, node)| node.votes && node.is_alive()).map(|(id, _)| *id).collect();
        alive.sort_by_key(|id| (*id != self.leader, *id));
        let with_vote = alive.len();
        let mut spare: Vec<NodeId> =
            staying().filter(|(_, node)| !node.votes && node.can_be_promoted()).map(|(id, _)| *id).collect();
        alive.truncate(goal);
        while alive.len() < goal && !spare.is_empty() {
            // A rack without a voter first: then one rack's failure takes fewer of them.
            let rack_is_new = |id: &NodeId| {
                let rack = &self.nodes[id].rack;
                rack.is_some() && !alive.iter().any(|voter| self.nodes[voter].rack == *rack)
            };
            let at = spare.iter().position(rack_is_new).unwrap_or(0);
            alive.push(spare.remove(at));
        }
        let mut voters: BTreeSet<NodeId> = alive.iter().copied().collect();
        if voters.len().is_multiple_of(2) {
            let dead = staying().find(|(_, node)| node.votes && !node.is_alive()).map(|(id, _)| *id);
            match dead {
                // It may come back, and until then it costs nothing.
                Some(dead) if voters.len() < goal && voters.len() <= with_vote => drop(voters.insert(dead)),
                // Two keep everything twice, though neither may fail; that is better than one alone. Of four, one is of no use.
                _ if voters.len() == 2 && with_vote >= 2 => {}
                _ => drop(alive.pop().map(|last| voters.remove(&last))),
            }
        }
        voters
    }
}

/// What to change now; `None` when all is well, or when the last change is not finished.
pub fn next(view: &View) -> Option<Step> {
    assert!(view.nodes.contains_key(&view.leader), "a leader is a member of its own log");
    if view.is_changing {
        return None;
    }
    let now = view.voters();
    if !view.has_majority(&now) {
        return None;
    }
    if view.leaving.contains(&view.leader) {
        // While nobody else votes, another one is given a vote first.
        if let Some(successor) = view.successor() {
            return Some(Step::TransferLeader(successor));
        }
    }
    let mut voters = view.ideal_voters();
    if view.nodes[&view.leader].votes && !voters.contains(&view.leader) {
        // It can only hand over to a voter, and is taken out by that one.
        voters.insert(view.leader);
    }
    if (voters != now || view.is_joint) && !voters.is_empty() && view.has_majority(&voters) {
        return Some(Step::SetVoters(voters));
    }
    let gone = view.leaving.iter().find(|id| view.nodes.get(id).is_some_and(|node| !node.votes));
    gone.map(|id| Step::Remove(*id))
}

/// What to do about a node that wants to join, or says where it is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Admission {
    /// It is a member already, and just there.
    Known,
    /// Add it to the log's members, without a vote.
    Add(Member),
    /// It is a member, at another address than before.
    Move(Member),
    Refuse(Refused),
}

/// `was_removed`: ids that had been in the cluster and are not any more.
pub fn admit(
    cluster: ClusterId,
    nodes: &BTreeMap<NodeId, Node>,
    was_removed: impl Fn(NodeId) -> bool,
    joining: &Joining,
) -> Admission {
    let member = &joining.member;
    let node = member.node;
    if let Some(theirs) = joining.cluster.filter(|theirs| *theirs != cluster) {
        return Admission::Refuse(Refused::OtherCluster { ours: cluster, theirs });
    }
    match nodes.get(&node) {
        Some(known) if known.disk != member.disk => {
            Admission::Refuse(Refused::DiskReplaced { node, known: known.disk })
        }
        Some(known) if known.at != member.at => Admission::Move(member.clone()),
        Some(_) => Admission::Known,
        // One that knows this cluster as its own was a member once.
        None if was_removed(node) || joining.cluster.is_some() => {
            Admission::Refuse(Refused::Removed { node })
        }
        None if nodes.len() >= NODES_MAX => Admission::Refuse(Refused::Full { max: NODES_MAX }),
        None => Admission::Add(member.clone()),
    }
}

#[cfg(test)]
mod tests;
