//! What other nodes ask of this one: who it is, to let them join, to change the members; and the log's own calls.
//!
//! Driver; control core. Calls of the log are taken from nodes of this cluster alone, so a node that is in no cluster
//! yet neither votes nor stores anything.

use std::time::Duration;

use bytes::Bytes;
use highwater_shards::ids::NodeId;
use highwater_shards::time::Instant;

use super::lease::on_asking;
use super::{Cluster, Effect, OnChanged, Running, State};
use crate::config::HostPort;
use crate::control::forming::wire::{
    CALL_JOIN, CALL_JOIN_FORWARDED, CALL_WHO, JoinAnswer, Joining, decode_joining, encode_join_answer,
    encode_who,
};
use crate::control::forming::{self, Member, show};
use crate::control::lease::CALL_LEASE;
use crate::control::membership::change::{
    CALL_CHANGE, Change, Unchanged, decode_change, decode_changed, encode_change, encode_changed,
};
use crate::control::membership::{Admission, admit};
use crate::control::metadata::image::{Endpoint, Image};
use crate::net::peers::Peers;
use crate::net::{Class, Incoming, Network as _};
use crate::raft;
use crate::runtime::NodeError;

/// For the leader to answer a request that was passed on to it; it may have to wait for a change under way.
const FORWARD_TIME_MAX: Duration = Duration::from_secs(10);

impl Cluster {
    pub(super) fn on_call(
        &mut self,
        now: Instant,
        call: Incoming,
        image: &Image,
    ) -> Result<Vec<Effect>, NodeError> {
        match call.kind {
            CALL_WHO => {
                let from = call.from;
                match self.who() {
                    Some(who) => call.answer(encode_who(&who).into()),
                    None => call.refuse("this node is just coming into a cluster"),
                }
                return self.form(now, forming::Input::AskedBy(from));
            }
            CALL_JOIN | CALL_JOIN_FORWARDED => self.on_joining(call, image),
            _ => {
                let State::Running(running) = &mut self.state else {
                    call.refuse("this node is in no cluster yet");
                    return Ok(Vec::new());
                };
                if !is_of(running, &call) {
                    call.refuse("the caller is not in this node's cluster");
                } else if call.kind == CALL_CHANGE {
                    return Ok(on_change(running, call, image));
                } else if call.kind == CALL_LEASE {
                    return Ok(on_asking(running, call));
                } else {
                    running.raft.on_call(call);
                }
            }
        }
        Ok(Vec::new())
    }

    fn on_joining(&mut self, call: Incoming, image: &Image) {
        let joining = match decode_joining(&call.body) {
            Ok(joining) => joining,
            Err(error) => return call.refuse(&error.to_string()),
        };
        let State::Running(running) = &mut self.state else {
            return answer(call, &JoinAnswer::NotNow("that node is in no cluster itself yet".into()));
        };
        let is_forwarded = call.kind == CALL_JOIN_FORWARDED;
        let speaks_for_itself = call
            .peer()
            .is_none_or(|peer| (peer.node, peer.disk.0) == (joining.member.node, joining.member.disk.0));
        if is_forwarded && !is_of(running, &call) {
            return call.refuse("the caller is not in this node's cluster");
        }
        if !is_forwarded && !speaks_for_itself {
            return call.refuse("the caller wants another node to join");
        }
        let status = running.raft.status();
        match status.leader {
            Some(leader) if leader == self.member.node => self.on_joining_at_leader(call, joining, image),
            Some(leader) if !is_forwarded => {
                let Some(peers) = self.peers.clone() else { return call.refuse("this node stands alone") };
                tokio::task::spawn_local(async move {
                    let body = call.body.clone();
                    let class = Class::Urgent;
                    match peers.call(leader, class, CALL_JOIN_FORWARDED, body, FORWARD_TIME_MAX).await {
                        Ok(said) => call.answer(said),
                        Err(error) => {
                            let why = format!("node {leader}, which leads the metadata: {error}");
                            answer(call, &JoinAnswer::NotNow(why));
                        }
                    }
                });
            }
            // Whoever is a member already needs no leader to be told so; it may be what the log waits for to have one.
            None if status
                .members
                .get(&joining.member.node)
                .is_some_and(|m| m.disk.0 == joining.member.disk.0) =>
            {
                answer(call, &welcome(running));
            }
            _ => answer(call, &JoinAnswer::NotNow("nobody leads the metadata at the moment".into())),
        }
    }

    fn on_joining_at_leader(&mut self, call: Incoming, joining: Joining, image: &Image) {
        let State::Running(running) = &mut self.state else { return };
        let view = running.members.view(&running.raft, image);
        let admission = admit(running.cluster, &view.nodes, |_| false, &joining);
        let welcome = welcome(running);
        let member = match admission {
            Admission::Known => return answer(call, &welcome),
            Admission::Refuse(why) => {
                tracing::warn!(
                    "node {} at {} is refused: {why}",
                    joining.member.node,
                    show(&joining.member.at)
                );
                return answer(call, &JoinAnswer::Refused(why));
            }
            Admission::Add(member) | Admission::Move(member) => member,
        };
        let is_new = !view.nodes.contains_key(&member.node);
        if let Some(peers) = &self.peers {
            peers.set_peer(member.node, member.at.clone());
        }
        let raft = running.raft.clone();
        tokio::task::spawn_local(async move {
            let (node, at) = (member.node, show(&member.at));
            let added = match is_new {
                true => raft.add_learner(node, raft_member(&member)).await,
                false => raft.move_member(node, raft_member(&member)).await,
            };
            match added {
                Ok(()) => {
                    tracing::info!("node {node} {} at {at}", if is_new { "has joined" } else { "is now" });
                    answer(call, &welcome);
                }
                Err(error) => answer(call, &JoinAnswer::NotNow(error.to_string())),
            }
        });
    }
}

fn on_change(running: &mut Running, call: Incoming, image: &Image) -> Vec<Effect> {
    let change = match decode_change(&call.body) {
        Ok(change @ (Change::Remove(_) | Change::RemoveByForce(_) | Change::TransferLeader(_))) => change,
        Ok(Change::JoinThrough(_)) => {
            call.refuse("that is asked of the node that joins");
            return Vec::new();
        }
        Err(error) => {
            call.refuse(&error.to_string());
            return Vec::new();
        }
    };
    let status = running.raft.status();
    let reply: OnChanged = Box::new(move |changed| call.answer(encode_changed(&changed).into()));
    if status.leader != Some(status.node) {
        reply(Err(Unchanged::not_now("the leader of the metadata has just changed")));
        return Vec::new();
    }
    running.members.change(&running.raft, image, change, reply)
}

/// Passes an operator's wish on to the leader.
pub(super) fn forward_change(peers: Peers, leader: NodeId, change: Change, reply: OnChanged) {
    tokio::task::spawn_local(async move {
        let body = Bytes::from(encode_change(&change));
        let said = peers.call(leader, Class::Urgent, CALL_CHANGE, body, FORWARD_TIME_MAX).await;
        reply(match said {
            Ok(bytes) => {
                decode_changed(&bytes).unwrap_or_else(|error| Err(Unchanged::refused(error.to_string())))
            }
            Err(error) => Err(Unchanged::not_now(format!(
                "node {leader}, which leads the metadata, does not answer: {error}"
            ))),
        });
    });
}

fn is_of(running: &Running, call: &Incoming) -> bool {
    let ours = running.cluster.to_string();
    call.peer().is_some_and(|peer| peer.cluster.is_some_and(|theirs| theirs.as_str() == ours))
}

fn welcome(running: &Running) -> JoinAnswer {
    JoinAnswer::Welcome { cluster: running.cluster, founders: running.founders.clone() }
}

fn answer(call: Incoming, answer: &JoinAnswer) {
    call.answer(encode_join_answer(answer).into());
}

pub(super) fn raft_member(member: &Member) -> raft::Member {
    raft::Member { disk: raft::DiskId(member.disk.0), cluster_addr: show(&member.at) }
}

/// The address of a member; `None` for one that has none, as a node that stands alone.
pub(super) fn endpoint(cluster_addr: &str) -> Option<Endpoint> {
    HostPort::parse(cluster_addr).map(|at| Endpoint { host: at.host, port: at.port })
}
