//! The members of the metadata log on the node that leads it: who votes, who leaves, who is dead; and on every node the
//! peers' addresses.
//!
//! Driver; control core. What to do is decided by [`crate::control::membership`]; this file gathers what it looks at and
//! carries its steps out, one at a time.

#![expect(clippy::disallowed_methods, reason = "driver: reads the clock")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant as Clock};

use highwater_shards::ids::NodeId;
use tokio::sync::{mpsc, oneshot};

use super::calls::{endpoint, raft_member};
use super::{Effect, OnChanged, Slots, Told};
use crate::control;
use crate::control::forming::Member;
use crate::control::liveness::Heard;
use crate::control::membership::change::{Change, Unchanged};
use crate::control::membership::{self, Node, Obstacle, Step, View};
use crate::control::metadata::image::{DiskId, Image};
use crate::control::request::{NodeChange, Reply, Request, Why};
use crate::net::auth::DiskId as NetDiskId;
use crate::net::peers::Peers;
use crate::raft::{self, Raft, Status};

const TRANSFER_TIME_MAX: Duration = Duration::from_secs(5);
/// For the handing over of the lead when this node stops.
const HAND_OVER_TIME_MAX: Duration = Duration::from_secs(2);
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
/// Wishes of operators that are worked on at once.
const CHANGES_MAX: usize = 16;

pub(super) struct Members {
    me: Member,
    voters: Option<u32>,
    /// How long a follower waits for its leader.
    patience: Duration,
    tell: mpsc::Sender<Told>,
    /// What the peers were told of last.
    known: BTreeMap<NodeId, raft::Member>,
    /// Since when this node leads, and in which term.
    leading: Option<(u64, Clock)>,
    /// Grows when this node begins or ends to lead, so that what was begun before does not count.
    generation: u64,
    is_changing: bool,
    leaving: BTreeSet<NodeId>,
    changes: Slots,
}

impl Members {
    pub(super) fn new(me: Member, voters: Option<u32>, patience: Duration, tell: mpsc::Sender<Told>) -> Self {
        Self {
            me,
            voters,
            patience,
            tell,
            known: BTreeMap::new(),
            leading: None,
            generation: 0,
            is_changing: false,
            leaving: BTreeSet::new(),
            changes: Slots::default(),
        }
    }

    /// The members as the policy wants to see them.
    pub(super) fn view(&self, raft: &Raft, image: &Image) -> View {
        self.view_of(&raft.status(), image)
    }

    fn view_of(&self, status: &Status, image: &Image) -> View {
        let leading = self.leading.map_or(Duration::ZERO, |(_, since)| since.elapsed());
        let last = status.last_log.unwrap_or(0);
        let node = |(id, member): (&NodeId, &raft::Member)| {
            let info = image.nodes.get(id);
            let is_me = *id == status.node;
            let matched = status.progress.get(id).and_then(|progress| progress.matched);
            let unheard = || {
                let led =
                    status.predecessor.filter(|(node, _)| node == id).map_or(leading, |(_, silent)| silent);
                silence_of_unheard(leading, led, self.patience)
            };
            let node = Node {
                disk: DiskId(member.disk.0),
                at: endpoint(&member.cluster_addr).unwrap_or_default(),
                rack: info.and_then(|info| info.rack.clone()),
                votes: status.voters.contains(id),
                // A founder votes before it has registered; nobody else does.
                may_vote: info.map_or(status.voters.contains(id), |info| info.capabilities.voter),
                behind: if is_me { Some(0) } else { matched.map(|matched| last.saturating_sub(matched)) },
                silent: if is_me {
                    Duration::ZERO
                } else {
                    status.silent.get(id).copied().unwrap_or_else(unheard)
                },
            };
            (*id, node)
        };
        View {
            leader: status.node,
            nodes: status.members.iter().map(node).collect(),
            is_changing: self.is_changing,
            is_joint: status.is_joint,
            voters: self.voters,
            leaving: self.leaving.clone(),
        }
    }

    pub(super) fn look(&mut self, raft: &Raft, peers: Option<&Peers>, image: &Image) -> Vec<Effect> {
        let status = raft.status();
        if let Some(peers) = peers {
            self.tell_peers(peers, &status);
        }
        if status.leader != Some(status.node) {
            if self.leading.take().is_some() {
                self.begin_anew();
            }
            return Vec::new();
        }
        if self.leading.is_none_or(|(term, _)| term != status.term) {
            self.leading = Some((status.term, Clock::now()));
            self.begin_anew();
        }
        if peers.is_none() {
            return Vec::new();
        }
        let view = self.view_of(&status, image);
        self.leaving.retain(|node| view.nodes.contains_key(node));
        let here = status.members.get(&self.me.node);
        if !self.is_changing && here.is_some_and(|here| *here != raft_member(&self.me)) {
            let (raft, me) = (raft.clone(), self.me.clone());
            self.carry_out("tell where this node is", async move {
                raft.move_member(me.node, raft_member(&me)).await
            });
        } else if let Some(step) = membership::next(&view) {
            self.take(raft, step);
        }
        vec![self.heard(&view)]
    }

    /// Gossip says that this node is gone. If it leads the log, another one should.
    pub(super) fn on_gone(&self, raft: &Raft, gone: NodeId) {
        let status = raft.status();
        let heirs = status.voters.iter().filter(|node| **node != gone);
        if status.leader == Some(gone)
            && let Some(turn) = heirs.into_iter().position(|node| *node == status.node)
        {
            let (raft, turn) = (raft.clone(), u32::try_from(turn).unwrap_or(u32::MAX));
            tokio::task::spawn_local(async move { raft.succeed(gone, turn).await });
        }
    }

    fn begin_anew(&mut self) {
        self.generation += 1;
        self.is_changing = false;
        self.leaving.clear();
    }

    fn tell_peers(&mut self, peers: &Peers, status: &Status) {
        if self.known == status.members {
            return;
        }
        for (node, member) in &status.members {
            if self.known.get(node) != Some(member) {
                if let Some(at) = endpoint(&member.cluster_addr) {
                    peers.set_peer(*node, at);
                }
                peers.set_disk(*node, NetDiskId(member.disk.0));
            }
        }
        for node in self.known.keys().filter(|node| !status.members.contains_key(node)) {
            peers.remove_peer(*node);
            peers.forget_disk(*node);
        }
        self.known.clone_from(&status.members);
    }

    fn take(&mut self, raft: &Raft, step: Step) {
        let raft = raft.clone();
        match step {
            Step::SetVoters(voters) => {
                let what = format!("let exactly these nodes vote: {}", list(&voters));
                self.carry_out(&what, async move { raft.set_voters(&voters).await });
            }
            Step::Remove(node) => {
                let what = format!("take node {node} out of the metadata log");
                self.carry_out(&what, async move { raft.remove(node).await });
            }
            Step::TransferLeader(to) => {
                let what = format!("let node {to} lead");
                self.carry_out(&what, async move { raft.transfer_leader(to, TRANSFER_TIME_MAX).await });
            }
        }
    }

    fn carry_out(&mut self, what: &str, step: impl Future<Output = Result<(), raft::AdminError>> + 'static) {
        tracing::info!("members of the metadata log: {what}");
        self.is_changing = true;
        let (generation, tell) = (self.generation, self.tell.clone());
        tokio::task::spawn_local(async move {
            let result = step.await.map_err(|error| error.to_string());
            // The node may have stopped.
            let _ = tell.send(Told::StepDone { generation, result }).await;
        });
    }

    pub(super) fn on_step_done(&mut self, generation: u64, result: Result<(), String>) {
        if let Err(error) = result {
            tracing::warn!(
                "members of the metadata log: that did not come about, it is tried again: {error}"
            );
        }
        if generation == self.generation {
            self.is_changing = false;
        }
    }

    /// The node is out of the image.
    pub(super) fn leave(&mut self, node: NodeId) {
        if self.leading.is_some() {
            self.leaving.insert(node);
        }
    }

    /// Whom this node hears, as the leader.
    fn heard(&self, view: &View) -> Effect {
        let silent = view.nodes.iter().map(|(node, seen)| (*node, seen.silent)).collect();
        Effect::Input(control::Input::Heard(Heard { patience: self.patience, silent }))
    }

    /// Carries out what an operator asked of the leader.
    pub(super) fn change(
        &mut self,
        raft: &Raft,
        image: &Image,
        change: Change,
        reply: OnChanged,
    ) -> Vec<Effect> {
        let view = self.view(raft, image);
        match change {
            Change::JoinThrough(_) => reply(Err(Unchanged::refused("this node is in a cluster already"))),
            Change::TransferLeader(to) => self.transfer(raft, &view, to, reply),
            Change::Remove(node) => {
                return self.remove(raft, &view, image, node, NodeChange::Remove, reply);
            }
            Change::RemoveByForce(node) if image.serves(node) => {
                let why = format!("node {node} is running: only a dead one is removed by force");
                reply(Err(Unchanged::refused(why)));
            }
            Change::RemoveByForce(node) => {
                return self.remove(raft, &view, image, node, NodeChange::RemoveByForce, reply);
            }
        }
        Vec::new()
    }

    fn transfer(&mut self, raft: &Raft, view: &View, to: Option<NodeId>, reply: OnChanged) {
        let Some(to) = to.or_else(|| view.successor()) else {
            return reply(Err(Unchanged::refused("there is no other voter that could lead")));
        };
        if to == view.leader {
            return reply(Ok(format!("node {to} leads already")));
        }
        if let Err(obstacle) = view.check_transfer(to) {
            return reply(Err(Unchanged::refused(obstacle.to_string())));
        }
        let Some(slot) = self.changes.take(CHANGES_MAX) else {
            return reply(Err(Unchanged::not_now("too many changes are under way")));
        };
        let raft = raft.clone();
        tokio::task::spawn_local(async move {
            let done = raft.transfer_leader(to, TRANSFER_TIME_MAX).await;
            drop(slot);
            reply(match done {
                Ok(()) => Ok(format!("node {to} leads")),
                Err(error) => Err(Unchanged::not_now(error.to_string())),
            });
        });
    }

    /// First the node goes out of the image, which may refuse that, then out of the log's members.
    fn remove(
        &mut self,
        raft: &Raft,
        view: &View,
        image: &Image,
        node: NodeId,
        how: NodeChange,
        reply: OnChanged,
    ) -> Vec<Effect> {
        let is_in_image = image.nodes.contains_key(&node);
        match view.check_removal(node) {
            Ok(()) => {}
            Err(Obstacle::NotAMember(_)) if is_in_image => {}
            Err(obstacle) => {
                reply(Err(Unchanged::refused(obstacle.to_string())));
                return Vec::new();
            }
        }
        if node == view.leader {
            let hand_over = view.successor();
            match hand_over {
                Some(to) if !self.is_changing => self.take(raft, Step::TransferLeader(to)),
                _ => {}
            }
            let why = format!("node {node} leads the metadata and hands that over first");
            reply(Err(Unchanged::not_now(why)));
            return Vec::new();
        }
        let done = format!("node {node} leaves the cluster");
        if !is_in_image {
            self.leaving.insert(node);
            reply(Ok(done));
            return Vec::new();
        }
        let Some(slot) = self.changes.take(CHANGES_MAX) else {
            reply(Err(Unchanged::not_now("too many changes are under way")));
            return Vec::new();
        };
        let (asked, answered) = oneshot::channel();
        let tell = self.tell.clone();
        tokio::task::spawn_local(async move {
            let _slot = slot;
            let refusal = match answered.await {
                Ok(Reply::ChangeNode(Ok(()))) => None,
                Ok(Reply::ChangeNode(Err(refusal))) => Some(refusal),
                Ok(_) | Err(_) => return reply(Err(Unchanged::not_now("the node is stopping"))),
            };
            match refusal {
                None => {
                    let _ = tell.send(Told::MayLeave(node)).await;
                    reply(Ok(done));
                }
                Some(refusal) => {
                    let try_again = matches!(refusal.why, Why::NoController | Why::TimedOut);
                    reply(Err(Unchanged { why: refusal.message, try_again }));
                }
            }
        });
        vec![request(node, how, asked)]
    }

    /// This node stops: if it leads, another one should.
    pub(super) fn hand_over(&self, raft: &Raft) {
        let status = raft.status();
        let others = status.voters.iter().filter(|node| **node != status.node);
        let matched = |node: &&NodeId| status.progress.get(node).and_then(|progress| progress.matched);
        if status.leader == Some(status.node)
            && let Some(to) = others.max_by_key(matched).copied()
        {
            let raft = raft.clone();
            tokio::task::spawn_local(async move {
                // Without it the others elect somebody a little later.
                let _ = raft.transfer_leader(to, HAND_OVER_TIME_MAX).await;
            });
        }
    }
}

/// How long a leader has not heard a node that has not answered it yet. It leads for `leading`; if that node led before,
/// it spoke to this one `led` ago. That counts as far as what others say of the node is believed after it, and no
/// further: after a time without any leader, whoever led last is to get his chance to answer.
fn silence_of_unheard(leading: Duration, led: Duration, patience: Duration) -> Duration {
    leading + led.saturating_sub(leading).min(patience)
}

fn request(node: NodeId, change: NodeChange, reply: oneshot::Sender<Reply>) -> Effect {
    Effect::Request { request: Request::ChangeNode { node, change, timeout: REQUEST_TIME_MAX }, reply }
}

fn list(nodes: &BTreeSet<NodeId>) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::silence_of_unheard;
    use std::time::Duration;

    #[test]
    fn who_led_before_counts_as_silent_at_once_but_not_for_as_long_as_nobody_led() {
        let ms = Duration::from_millis;
        let of = |leading, led| silence_of_unheard(ms(leading), ms(led), ms(300));
        assert_eq!(of(5, 605), ms(305), "a killed leader: silent for long enough to believe that it is dead");
        assert_eq!(of(5, 90_005), ms(305), "all were stopped for long: it may answer yet");
        assert_eq!(of(4000, 94_000), ms(4300), "it had its chance");
        assert_eq!(of(700, 100), ms(700), "it led, was deposed, and follows");
        assert_eq!(of(700, 700), ms(700), "another node than the one that led");
    }
}
