//! What a node asks of others on its way into a cluster: who is there, and to let it join.
//!
//! Driver; control core. Every question runs in a task with a deadline and tells what came of it exactly once.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use highwater_shards::ids::NodeId;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Cluster, State, Told};
use crate::control::forming::wire::{
    CALL_JOIN, CALL_WHO, JoinAnswer, Joining, decode_join_answer, decode_who, encode_joining,
};
use crate::control::forming::{self, ADDRESSES_MAX, CallId, Heard, Member, Rejection};
use crate::control::metadata::image::Endpoint;
use crate::net::auth::Refusal;
use crate::net::peers::Peers;
use crate::net::{CallError, Class};
use crate::raft::Raft;

/// For a name to be resolved, and for one address to answer: together less than a round may take.
const RESOLVE_TIME_MAX: Duration = Duration::from_secs(2);
const ASK_TIME_MAX: Duration = Duration::from_secs(2);
/// For a request to join, which may wait for an election.
const JOIN_TIME_MAX: Duration = Duration::from_secs(12);
/// Between two attempts of a node of a cluster to say that it is there.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);

impl Cluster {
    /// Asks whoever is behind a seed's name now.
    pub(super) fn ask(&self, call: CallId, seed: Endpoint) {
        let (Some(peers), me, tell) = (self.peers.clone(), self.member.clone(), self.tell.clone()) else {
            return;
        };
        tokio::task::spawn_local(async move {
            let from = ask_all(&peers, &me, &seed).await;
            // The node may have stopped.
            let _ = tell.send(Told::Heard { call, from }).await;
        });
    }

    pub(super) fn ask_to_join(&self, call: CallId, node: NodeId, at: Endpoint) {
        let Some(peers) = self.peers.clone() else { return };
        let (joining, tell) = (self.joining(), self.tell.clone());
        tokio::task::spawn_local(async move {
            let answer = ask_to_join(&peers, &joining, Some(node), &at).await;
            let _ = tell.send(Told::JoinAnswered { call, answer }).await;
        });
    }

    fn joining(&self) -> Joining {
        let cluster = match &self.state {
            State::Running(running) => Some(running.cluster),
            _ => None,
        };
        Joining { member: self.member.clone(), voter: self.may_vote, cluster }
    }

    /// Tells the cluster that this node is there, and where: its address may be another one than before, and it may
    /// have been removed while it was away.
    pub(super) fn announce(&self) {
        let (Some(peers), State::Running(running)) = (self.peers.clone(), &self.state) else { return };
        let (joining, raft, seeds) = (self.joining(), running.raft.clone(), self.seeds.clone());
        tokio::task::spawn_local(announce(peers, joining, raft, seeds, self.tell.clone()));
    }
}

async fn announce(
    peers: Peers,
    joining: Joining,
    raft: Raft,
    seeds: Vec<Endpoint>,
    tell: mpsc::Sender<Told>,
) {
    let me = joining.member.node;
    for attempt in 0usize.. {
        let status = raft.status();
        // The leader sees to itself.
        if status.leader == Some(me) || tell.is_closed() {
            return;
        }
        let members = status.members.iter().filter(|(node, _)| **node != me);
        let known = members
            .filter_map(|(node, member)| Some((Some(*node), super::calls::endpoint(&member.cluster_addr)?)));
        let seeds = seeds.iter().filter(|seed| **seed != joining.member.at).map(|seed| (None, seed.clone()));
        let targets: Vec<(Option<NodeId>, Endpoint)> = known.chain(seeds).collect();
        if let Some((node, at)) = targets.get(attempt % targets.len().max(1))
            && let Ok(answer @ (JoinAnswer::Welcome { .. } | JoinAnswer::Refused(_))) =
                ask_to_join(&peers, &joining, *node, at).await
        {
            let _ = tell.send(Told::Announced(answer)).await;
            return;
        }
        tokio::time::sleep(ANNOUNCE_EVERY).await;
    }
}

/// One answer for each address that the name has.
async fn ask_all(peers: &Peers, me: &Member, seed: &Endpoint) -> Result<Vec<Heard>, String> {
    let lookup = tokio::net::lookup_host((seed.host.as_str(), seed.port));
    let mut addresses: Vec<SocketAddr> = match tokio::time::timeout(RESOLVE_TIME_MAX, lookup).await {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(e)) => return Err(format!("the name cannot be resolved: {e}")),
        Err(_) => return Err("the name could not be resolved in time".into()),
    };
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(ADDRESSES_MAX);
    let mut questions = JoinSet::new();
    for address in addresses {
        let (peers, me) = (peers.clone(), me.clone());
        questions.spawn_local(async move { ask_one(&peers, &me, address).await });
    }
    let mut heard = Vec::new();
    while let Some(answer) = questions.join_next().await {
        heard.push(match answer {
            // Which of its addresses it was is of interest for a name only.
            Ok(Heard::Failed(why)) => Heard::Failed(without_prefix(&why, &forming::show(seed))),
            Ok(answer) => answer,
            Err(e) => Heard::Failed(e.to_string()),
        });
    }
    Ok(heard)
}

fn without_prefix(text: &str, prefix: &str) -> String {
    text.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(text).to_owned()
}

async fn ask_one(peers: &Peers, me: &Member, address: SocketAddr) -> Heard {
    let at = Endpoint { host: address.ip().to_string(), port: address.port() };
    let asked = peers.call_endpoint(&at, Class::Urgent, CALL_WHO, Bytes::new(), ASK_TIME_MAX).await;
    let (peer, body) = match asked {
        Ok(answered) => answered,
        Err(CallError::Rejected { refusal: Refusal::SameNodeId, .. }) => {
            return Heard::Rejected(Rejection::SameNodeId);
        }
        Err(CallError::Rejected { refusal: Refusal::OtherDisk, .. }) => {
            return Heard::Rejected(Rejection::DiskReplaced);
        }
        // The words begin with the address.
        Err(CallError::Unreachable(why)) => return Heard::Failed(why),
        Err(error) => return Heard::Failed(error.to_string()),
    };
    if (peer.node, peer.disk.0) == (me.node, me.disk.0) {
        return Heard::Myself;
    }
    match decode_who(&body) {
        Ok(who) if (who.member.node, who.member.disk.0) == (peer.node, peer.disk.0) => {
            Heard::Who(Box::new(who))
        }
        Ok(who) => Heard::Failed(format!("node {} calls itself node {}", peer.node, who.member.node)),
        Err(error) => Heard::Failed(format!("node {} cannot be understood: {error}", peer.node)),
    }
}

/// Asks the node at this address, which has to be `node` when that is known.
async fn ask_to_join(
    peers: &Peers,
    joining: &Joining,
    node: Option<NodeId>,
    at: &Endpoint,
) -> Result<JoinAnswer, String> {
    let body = Bytes::from(encode_joining(joining));
    let (peer, answer) = peers
        .call_endpoint(at, Class::Urgent, CALL_JOIN, body, JOIN_TIME_MAX)
        .await
        .map_err(|e| e.to_string())?;
    if node.is_some_and(|node| node != peer.node) {
        return Err(format!("node {} answers there", peer.node));
    }
    decode_join_answer(&answer).map_err(|e| e.to_string())
}
