//! What other nodes ask of this one.
//!
//! Control core. A call must come from the node that it names, or it is refused; what no honest node sends is refused
//! before openraft sees it. Whether the caller is a member is not asked: a node that lags may not know yet.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use highwater_shards::ids::NodeId;
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use openraft::storage::Snapshot;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Group;
use super::host::blocking;
use super::log::LogReader;
use super::metrics::Counters;
use super::snapshot::{Receiving, SNAPSHOT_BYTES_MAX};
use super::state::Shared;
use super::types::{Payload, TypeConfig, Vote, node_id, raft_id};
use super::wire::{self, Body, Chunk, ChunkAnswer, Propose, ProposeAnswer};
use crate::net::Incoming;

/// Calls that are worked on at once; one more is refused, and the caller tries again.
const CALLS_MAX: usize = 1024;
/// Entries that a proposer may be behind; one that is further back is told to wait, so that what comes of its
/// proposal reaches it as an entry and not within a snapshot. Far below what logs keep.
const PROPOSER_LAG_MAX: u64 = 1000;

pub(super) struct Server {
    pub group: Group,
    pub log: LogReader,
    pub shared: Rc<Shared>,
    pub counters: Counters,
    pub calls: Cell<usize>,
    pub heard: Rc<Cell<Heard>>,
    pub receiving: Mutex<Slot>,
    /// While that is locked: the transfer that it works on.
    pub working: Cell<Option<(NodeId, u64)>>,
}

/// The one snapshot that comes in.
#[derive(Default)]
pub(super) struct Slot {
    current: Option<(NodeId, u64, Receiving)>,
    /// The last one that was done with, should the answer have been lost.
    done: Option<(NodeId, u64, Vote)>,
}

/// The leader that last spoke to this node, and when; at first nobody, when the node started.
#[derive(Clone, Copy)]
pub(super) struct Heard {
    pub leader: Option<NodeId>,
    pub at: Instant,
}

impl Heard {
    pub fn now(leader: Option<NodeId>) -> Self {
        Self { leader, at: Instant::now() }
    }
}

impl Server {
    /// Works on a call in a task of its own.
    pub fn on_call(self: &Rc<Self>, call: Incoming) {
        if self.calls.get() >= CALLS_MAX {
            return self.refuse(call, "too many calls at once");
        }
        self.calls.set(self.calls.get() + 1);
        let server = Rc::clone(self);
        tokio::task::spawn_local(async move {
            match server.answer_to(&call).await {
                Ok(answer) => call.answer(answer),
                Err(why) => server.refuse(call, &why),
            }
            server.calls.set(server.calls.get() - 1);
        });
    }

    fn refuse(&self, call: Incoming, why: &str) {
        self.counters.count(|stats| stats.calls_refused += 1);
        call.refuse(why);
    }

    async fn answer_to(&self, call: &Incoming) -> Result<Bytes, String> {
        match call.kind {
            wire::APPEND => {
                let rpc: AppendEntriesRequest<TypeConfig> = decode(call)?;
                of(call.from, &rpc.vote, true)?;
                check_append(&rpc)?;
                self.heard.set(Heard::now(Some(call.from)));
                let answer = self.group.append_entries(rpc).await.map_err(|error| error.to_string())?;
                Ok(wire::encode_answer::<AppendEntriesRequest<TypeConfig>>(call.kind, &answer))
            }
            wire::VOTE | wire::PRE_VOTE => {
                let rpc: VoteRequest<TypeConfig> = decode(call)?;
                of(call.from, &rpc.vote, false)?;
                let answer = match call.kind {
                    wire::VOTE => self.group.vote(rpc).await,
                    _ => self.group.pre_vote(rpc).await,
                };
                let answer = answer.map_err(|error| error.to_string())?;
                Ok(wire::encode_answer::<VoteRequest<TypeConfig>>(call.kind, &answer))
            }
            wire::TRANSFER_LEADER => {
                let rpc: TransferLeaderRequest<TypeConfig> = decode(call)?;
                of(call.from, rpc.from_leader(), true)?;
                let answer =
                    self.group.handle_transfer_leader(rpc).await.map_err(|error| error.to_string())?;
                Ok(wire::encode_answer::<TransferLeaderRequest<TypeConfig>>(call.kind, &answer))
            }
            wire::SNAPSHOT_CHUNK => {
                let chunk: Chunk = decode(call)?;
                of(call.from, &chunk.vote, true)?;
                self.heard.set(Heard::now(Some(call.from)));
                let answer = self.on_chunk(call.from, chunk).await;
                Ok(wire::encode_answer::<Chunk>(call.kind, &answer))
            }
            wire::PROPOSE => {
                let Propose(payload) = decode(call)?;
                match &payload {
                    Payload::Entry { tag: Some(tag), .. } if tag.node == call.from => {}
                    _ => return Err(format!("node {} proposes for another node", call.from)),
                }
                let answer = self.on_propose(call.from, payload).await;
                Ok(wire::encode_answer::<Propose>(call.kind, &answer))
            }
            kind => Err(format!("no such call: {kind:#06x}")),
        }
    }

    async fn on_chunk(&self, from: NodeId, chunk: Chunk) -> ChunkAnswer {
        if let Some(mine) = self.log.vote()
            && mine > chunk.vote
        {
            return ChunkAnswer::HigherVote(mine);
        }
        if chunk.len > SNAPSHOT_BYTES_MAX {
            return ChunkAnswer::Failed(format!("a snapshot of {} bytes is too large", chunk.len));
        }
        let transfer = Some((from, chunk.transfer));
        let Ok(mut slot) = self.receiving.try_lock() else {
            return if self.working.get() == transfer { ChunkAnswer::Working } else { ChunkAnswer::Busy };
        };
        self.working.set(transfer);
        let end = chunk.offset + chunk.bytes.len() as u64;
        if let Some((node, transfer, vote)) = slot.done
            && (node, transfer, end) == (from, chunk.transfer, chunk.len)
        {
            return ChunkAnswer::Done(vote);
        }
        let current =
            slot.current.take_if(|(node, transfer, _)| (*node, *transfer) == (from, chunk.transfer));
        let mut receiving = match current {
            Some((_, _, receiving)) if chunk.offset == receiving.received => receiving,
            Some((_, _, receiving)) if chunk.offset > 0 => {
                let next = receiving.received;
                slot.current = Some((from, chunk.transfer, receiving));
                return ChunkAnswer::Next(next);
            }
            _ if chunk.offset > 0 => return ChunkAnswer::Next(0),
            _ => {
                let (folder, len, crc) = (Arc::clone(&self.shared.folder), chunk.len, chunk.crc);
                let begin = move || Receiving::begin(&*folder, len, crc);
                match blocking(&self.shared.workers, begin).await {
                    Ok(receiving) => receiving,
                    Err(error) => return ChunkAnswer::Failed(error.to_string()),
                }
            }
        };
        let add = move || receiving.add(&chunk.bytes).map(|()| receiving);
        let stored = blocking(&self.shared.workers, add).await;
        let receiving = match stored {
            Ok(receiving) if receiving.is_whole() => receiving,
            Ok(receiving) => {
                let next = receiving.received;
                slot.current = Some((from, chunk.transfer, receiving));
                return ChunkAnswer::Next(next);
            }
            Err(error) => return ChunkAnswer::Failed(error.to_string()),
        };
        let file = match blocking(&self.shared.workers, move || receiving.finish()).await {
            Ok(file) => file,
            Err(error) => return ChunkAnswer::Failed(error.to_string()),
        };
        let content = file.content.as_ref().expect("what was received was read");
        let snapshot = Snapshot { meta: content.machine.meta(), snapshot: file.clone() };
        // No other one is received until this one has its place, or was not wanted.
        match self.group.install_full_snapshot(chunk.vote, snapshot).await {
            Ok(answer) => {
                slot.done = Some((from, chunk.transfer, answer.vote));
                ChunkAnswer::Done(answer.vote)
            }
            Err(error) => ChunkAnswer::Failed(error.to_string()),
        }
    }

    async fn on_propose(&self, from: NodeId, payload: Payload) -> ProposeAnswer {
        if self.log.is_full() {
            return ProposeAnswer::NotTaken("the leader's disk is full".into());
        }
        {
            let metrics = self.group.metrics();
            let metrics = metrics.borrow_watched();
            if let Some(replication) = &metrics.replication {
                let Some(matched) = replication.get(&raft_id(from)) else {
                    return ProposeAnswer::NotTaken("the proposer is no member of the cluster".into());
                };
                let matched = matched.map_or(0, |id| id.index);
                if metrics.last_log_index.unwrap_or(0) > matched + PROPOSER_LAG_MAX {
                    return ProposeAnswer::NotTaken("the proposer has to catch up first".into());
                }
            }
        }
        self.counters.count(|stats| stats.forwarded += 1);
        match self.group.client_write(payload).await {
            Ok(_) => ProposeAnswer::Applied,
            Err(error) => answer_of(error),
        }
    }
}

/// What a failed write means for the proposal.
pub(super) fn answer_of(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> ProposeAnswer {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(leader)) => {
            ProposeAnswer::NotLeader(leader.leader_id.and_then(node_id))
        }
        // Truncated here, it may still be committed elsewhere.
        _ => ProposeAnswer::Unknown,
    }
}

fn decode<B: Body>(call: &Incoming) -> Result<B, String> {
    wire::decode(call.kind, &call.body).map_err(|error| error.to_string())
}

/// The vote must be one of the caller.
fn of(from: NodeId, vote: &Vote, committed: bool) -> Result<(), String> {
    if vote.leader_id.voted_for != raft_id(from) {
        return Err(format!("node {from} speaks for node {}", vote.leader_id.voted_for));
    }
    match vote.committed == committed {
        true => Ok(()),
        false => Err("the vote is of the wrong kind".into()),
    }
}

fn check_append(rpc: &AppendEntriesRequest<TypeConfig>) -> Result<(), String> {
    let mut before = rpc.prev_log_id;
    for entry in &rpc.entries {
        let follows = before.is_none_or(|before| {
            entry.log_id.index == before.index + 1 && entry.log_id.leader_id >= before.leader_id
        });
        let first = before.is_some() || entry.log_id.index == 0;
        if !follows || !first || entry.log_id.leader_id.term > rpc.vote.leader_id.term {
            return Err(format!("entry {} cannot follow what it is said to follow", entry.log_id));
        }
        before = Some(entry.log_id);
    }
    Ok(())
}
