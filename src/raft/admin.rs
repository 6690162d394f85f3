//! The group's membership and state, and changes of them.
//!
//! Control core. Changes are the leader's to make: on another node they say who leads.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use highwater_shards::ids::NodeId;
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ClientWriteError, InitializeError, RaftError};
use openraft::{ChangeMembers, Instant as _};

use super::Raft;
use super::types::{DiskId, Member, TypeConfig, node_id, raft_id};

/// Entries that a learner may lack to become a voter.
const PROMOTE_LAG_MAX: u64 = 1000;
/// How often waiting looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Why a change of the group did not come about.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    #[error("this node does not lead the metadata; {}", match leader {
        Some(leader) => format!("node {leader} does"),
        None => "there is no leader now, try again".to_owned(),
    })]
    NotLeader { leader: Option<NodeId> },
    #[error("there is a cluster already")]
    Initialized,
    #[error("node {0} is no member of the cluster")]
    UnknownNode(NodeId),
    #[error("the disk of node {node} was replaced: remove the node, then join under a new id")]
    DiskReplaced { node: NodeId },
    #[error("node {0} lags behind: it becomes a voter once it has caught up")]
    Lags(NodeId),
    #[error("node {0} is the last voter")]
    LastVoter(NodeId),
    #[error("node {0} did not take over in time")]
    NotTransferred(NodeId),
    #[error("the members cannot change: {0}")]
    Refused(String),
    #[error("the metadata log has ended on this node: {0}")]
    Ended(String),
}

/// How far a node has the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// The last index that it is known to have in common with the leader.
    pub matched: Option<u64>,
}

/// The group as this node sees it. Indexes are of the Raft log, not revisions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    pub node: NodeId,
    pub term: u64,
    pub leader: Option<NodeId>,
    pub voters: BTreeSet<NodeId>,
    pub learners: BTreeSet<NodeId>,
    pub members: BTreeMap<NodeId, Member>,
    /// A change of the voters is not finished: the old and the new ones count.
    pub is_joint: bool,
    /// On the leader only.
    pub progress: BTreeMap<NodeId, Progress>,
    /// On the leader only: how long ago that was sent which a member answered last; absent for one that has not yet.
    pub silent: BTreeMap<NodeId, Duration>,
    /// Another node that led and spoke to this one last, and how long ago that was.
    pub predecessor: Option<(NodeId, Duration)>,
    /// On the leader only: how long ago that was sent which a majority of voters answered last.
    pub quorum_age: Option<Duration>,
    pub last_log: Option<u64>,
    pub committed: Option<u64>,
    pub applied: Option<u64>,
    pub snapshot: Option<u64>,
    /// Entries up to this one are in the snapshot only.
    pub purged: Option<u64>,
}

impl AdminError {
    pub(super) fn of_write(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> Self {
        match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
                Self::NotLeader { leader: to.leader_id.and_then(node_id) }
            }
            RaftError::APIError(error) => Self::Refused(error.to_string()),
            RaftError::Fatal(error) => Self::Ended(error.to_string()),
        }
    }
}

impl Raft {
    /// Founds the cluster. All founders may do so at the same moment, with the same members.
    ///
    /// # Errors
    /// When there is a cluster already.
    pub async fn initialize(&self, members: &BTreeMap<NodeId, Member>) -> Result<(), AdminError> {
        let members: BTreeMap<u64, Member> =
            members.iter().map(|(node, member)| (raft_id(*node), member.clone())).collect();
        match self.0.group.initialize(members).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Err(AdminError::Initialized),
            Err(RaftError::APIError(error)) => Err(AdminError::Refused(error.to_string())),
            Err(RaftError::Fatal(error)) => Err(AdminError::Ended(error.to_string())),
        }
    }

    /// Whether this node is or was part of a cluster.
    pub async fn is_initialized(&self) -> Result<bool, AdminError> {
        self.0.group.is_initialized().await.map_err(|error| AdminError::Ended(error.to_string()))
    }

    /// Adds a node that gets the log and has no vote. Nothing changes when it is a member with this disk already.
    pub async fn add_learner(&self, node: NodeId, member: Member) -> Result<(), AdminError> {
        self.check_disk(node, member.disk)?;
        let id = raft_id(node);
        if self.status().members.get(&node) == Some(&member) {
            return Ok(());
        }
        self.0.group.add_learner(id, member, false).await.map(drop).map_err(AdminError::of_write)
    }

    /// A node that comes with this disk: may it be the member of that id?
    ///
    /// # Errors
    /// When the member of that id has another disk.
    pub fn check_disk(&self, node: NodeId, disk: DiskId) -> Result<(), AdminError> {
        match self.status().members.get(&node) {
            Some(known) if known.disk != disk => Err(AdminError::DiskReplaced { node }),
            _ => Ok(()),
        }
    }

    /// Makes a learner that has caught up a voter.
    pub async fn promote(&self, node: NodeId) -> Result<(), AdminError> {
        let status = self.leading_status()?;
        if !status.members.contains_key(&node) {
            return Err(AdminError::UnknownNode(node));
        }
        let matched = status.progress.get(&node).and_then(|progress| progress.matched);
        if matched.is_none_or(|matched| matched + PROMOTE_LAG_MAX < status.last_log.unwrap_or(0)) {
            return Err(AdminError::Lags(node));
        }
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([raft_id(node)])), true).await
    }

    /// Exactly these vote from now on, the others are learners. All of them are members.
    pub async fn set_voters(&self, voters: &BTreeSet<NodeId>) -> Result<(), AdminError> {
        let ids = voters.iter().map(|node| raft_id(*node)).collect();
        self.change(ChangeMembers::ReplaceAllVoters(ids), true).await
    }

    /// A member is elsewhere now, on the same disk.
    pub async fn move_member(&self, node: NodeId, member: Member) -> Result<(), AdminError> {
        self.check_disk(node, member.disk)?;
        self.change(ChangeMembers::SetNodes(BTreeMap::from([(raft_id(node), member)])), true).await
    }

    /// Takes a node's vote away; it stays a learner.
    pub async fn demote(&self, node: NodeId) -> Result<(), AdminError> {
        self.check_removable(node)?;
        self.change(ChangeMembers::RemoveVoters(BTreeSet::from([raft_id(node)])), true).await
    }

    /// Removes a node from the group.
    pub async fn remove(&self, node: NodeId) -> Result<(), AdminError> {
        self.check_removable(node)?;
        let ids = BTreeSet::from([raft_id(node)]);
        let change = match self.status().voters.contains(&node) {
            true => ChangeMembers::RemoveVoters(ids),
            false => ChangeMembers::RemoveNodes(ids),
        };
        self.change(change, false).await
    }

    fn check_removable(&self, node: NodeId) -> Result<(), AdminError> {
        let status = self.leading_status()?;
        if !status.members.contains_key(&node) {
            return Err(AdminError::UnknownNode(node));
        }
        match status.voters == BTreeSet::from([node]) {
            true => Err(AdminError::LastVoter(node)),
            false => Ok(()),
        }
    }

    async fn change(&self, change: ChangeMembers<u64, Member>, retain: bool) -> Result<(), AdminError> {
        self.0.group.change_membership(change, retain).await.map(drop).map_err(AdminError::of_write)
    }

    /// Hands leadership to a voter, and waits until it leads.
    ///
    /// # Errors
    /// When this node does not lead, `to` is no voter, or it does not take over within `deadline`.
    pub async fn transfer_leader(&self, to: NodeId, deadline: Duration) -> Result<(), AdminError> {
        let status = self.leading_status()?;
        if !status.voters.contains(&to) {
            return Err(AdminError::UnknownNode(to));
        }
        if to == self.0.node {
            return Ok(());
        }
        let ended = |error: openraft::errors::Fatal<TypeConfig>| AdminError::Ended(error.to_string());
        self.0.group.trigger().transfer_leader(raft_id(to)).await.map_err(ended)?;
        let transferred = async {
            while self.status().leader != Some(to) {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        let in_time = tokio::time::timeout(deadline, transferred).await;
        in_time.map_err(|_| AdminError::NotTransferred(to))
    }

    fn leading_status(&self) -> Result<Status, AdminError> {
        let status = self.status();
        match status.leader == Some(self.0.node) {
            true => Ok(status),
            false => Err(AdminError::NotLeader { leader: status.leader }),
        }
    }

    pub fn status(&self) -> Status {
        let metrics = self.0.group.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let index = |id: &Option<super::types::LogId>| id.map(|id| id.index);
        let progress = metrics.replication.iter().flatten().filter_map(|(id, matched)| {
            Some((node_id(*id)?, Progress { matched: matched.map(|id| id.index) }))
        });
        let silent = metrics.heartbeat.iter().flatten().filter_map(|(id, heard)| {
            let heard = heard.as_ref()?;
            Some((node_id(*id)?, std::ops::Deref::deref(heard).elapsed()))
        });
        let heard = self.0.server.heard.get();
        let members = membership.nodes().filter_map(|(id, member)| Some((node_id(*id)?, member.clone())));
        Status {
            node: self.0.node,
            term: metrics.current_term,
            leader: metrics.current_leader.and_then(node_id),
            voters: membership.voter_ids().filter_map(node_id).collect(),
            learners: membership.learner_ids().filter_map(node_id).collect(),
            members: members.collect(),
            is_joint: membership.get_joint_config().len() > 1,
            progress: progress.collect(),
            silent: silent.collect(),
            predecessor: heard.leader.map(|leader| (leader, heard.at.elapsed())),
            quorum_age: metrics.last_quorum_acked.as_ref().map(|sent| std::ops::Deref::deref(sent).elapsed()),
            last_log: metrics.last_log_index,
            committed: index(&metrics.local_committed),
            applied: index(&metrics.last_applied),
            snapshot: index(&metrics.snapshot),
            purged: index(&metrics.purged),
        }
    }
}
