//! What openraft sends to other nodes, over [`Network`].
//!
//! Control core. An answer that no honest node gives is an error here: openraft takes answers for true.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt as _};
use highwater_shards::ids::NodeId;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};

use super::host::{Workers, blocking};
use super::metrics::Counters;
use super::snapshot::SnapshotFile;
use super::state::WholeSnapshot;
use super::types::{Member, TypeConfig, Vote, node_id};
use super::wire::{self, Body, Chunk, ChunkAnswer};
use crate::net::{CallError, Class, Network};

/// Appends to one node that are not answered yet.
const APPENDS_IN_FLIGHT: usize = 4;
/// How long an append waits for its answer, which comes when the entries are durable over there.
const APPEND_DEADLINE: Duration = Duration::from_secs(1);
/// How long a part of a snapshot waits for its answer, before it is sent again: nothing else goes to that node meanwhile.
const CHUNK_DEADLINE: Duration = Duration::from_secs(5);
/// How often a part of a snapshot is sent again, each time after [`CHUNK_PAUSE`], before all begins anew.
const CHUNK_TRIES: u32 = 10;
/// As many when the receiver says that it is at work on it: installing may take two minutes.
const CHUNK_WAITS: u32 = 600;
const CHUNK_PAUSE: Duration = Duration::from_millis(200);

type Answer<T> = Result<T, RPCError<TypeConfig>>;
type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + 'a>>;
type BoxStream<'a, T> = std::pin::Pin<Box<dyn Stream<Item = T> + 'a>>;

/// Makes the ways to other nodes.
pub(super) struct Peers<N> {
    pub net: N,
    pub counters: Counters,
    pub workers: Rc<dyn Workers>,
}

/// The way to one node.
#[derive(Clone)]
pub(super) struct Peer<N> {
    net: N,
    counters: Counters,
    workers: Rc<dyn Workers>,
    /// `None` for a number that no node can have.
    to: Option<NodeId>,
    class: Class,
}

impl<N: Network> Peers<N> {
    fn peer(&self, to: u64, class: Class) -> Peer<N> {
        let (net, counters, workers) = (self.net.clone(), self.counters.clone(), Rc::clone(&self.workers));
        Peer { net, counters, workers, to: node_id(to), class }
    }
}

impl<N: Network> RaftNetworkFactory<TypeConfig> for Peers<N> {
    type Network = Peer<N>;

    async fn new_client(&mut self, target: u64, _node: &Member) -> Peer<N> {
        self.peer(target, Class::Append)
    }

    async fn new_heartbeat_client(&mut self, target: u64, _node: &Member) -> Peer<N> {
        self.peer(target, Class::Urgent)
    }

    async fn new_snapshot_client(&mut self, target: u64, _node: &Member) -> Peer<N> {
        self.peer(target, Class::Bulk)
    }
}

fn strange(what: &str) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::from_string(what))
}

impl<N: Network> Peer<N> {
    async fn ask<B: Body>(&self, class: Class, kind: u16, body: &B, deadline: Duration) -> Answer<B::Answer> {
        let Some(to) = self.to else { return Err(strange("a member has a number that no node can have")) };
        let answer = self.net.call(to, class, kind, wire::encode(kind, body), deadline).await;
        let bytes = answer.map_err(|error| match &error {
            CallError::Unreachable(..) | CallError::Rejected { .. } => {
                RPCError::Unreachable(Unreachable::new(&error))
            }
            _ => RPCError::Network(NetworkError::new(&error)),
        })?;
        wire::decode_answer::<B>(kind, &bytes).map_err(|error| RPCError::Network(NetworkError::new(&error)))
    }

    async fn append(
        &self,
        rpc: AppendEntriesRequest<TypeConfig>,
    ) -> Answer<AppendEntriesResponse<TypeConfig>> {
        let answer = self.ask(self.class, wire::APPEND, &rpc, APPEND_DEADLINE).await?;
        match answer {
            AppendEntriesResponse::Conflict if rpc.prev_log_id.is_none() => {
                Err(strange("a log that has nothing before it cannot conflict"))
            }
            AppendEntriesResponse::PartialSuccess(_) => Err(strange("an append is taken as a whole or not")),
            answer => Ok(answer),
        }
    }

    /// Sends all of a snapshot; the receiver's vote when it is installed.
    async fn send(&self, vote: Vote, file: &SnapshotFile) -> Result<Vote, StreamingError<TypeConfig>> {
        let transfer = u64::from(file.crc) << 32 | (file.len & 0xffff_ffff);
        let (mut offset, mut tries, mut waits) = (0, 0, 0);
        loop {
            let read = file.clone();
            let bytes = blocking(&self.workers, move || read.chunk(offset)).await;
            let bytes = bytes.map_err(|error| NetworkError::new(&error))?;
            let end = offset + bytes.len() as u64;
            let chunk = Chunk { vote, transfer, len: file.len, crc: file.crc, offset, bytes };
            let failed = match self.ask(Class::Bulk, wire::SNAPSHOT_CHUNK, &chunk, CHUNK_DEADLINE).await {
                Ok(ChunkAnswer::Next(next)) if next <= file.len && next < end + 1 && next != offset => {
                    (offset, tries, waits) = (next, if next == end { 0 } else { tries + 1 }, 0);
                    if tries < CHUNK_TRIES {
                        continue;
                    }
                    strange("the receiver asks for the same parts again and again")
                }
                Ok(ChunkAnswer::Done(vote) | ChunkAnswer::HigherVote(vote)) => return Ok(vote),
                Ok(ChunkAnswer::Failed(why)) => return Err(NetworkError::from_string(why).into()),
                Ok(ChunkAnswer::Working) if waits < CHUNK_WAITS => {
                    (tries, waits) = (0, waits + 1);
                    tokio::time::sleep(CHUNK_PAUSE).await;
                    continue;
                }
                Ok(ChunkAnswer::Working) => strange("the receiver does not come to an end with a part"),
                Ok(ChunkAnswer::Busy) => strange("the receiver is busy with another snapshot"),
                Ok(ChunkAnswer::Next(_)) => strange("the receiver asks for what was not sent"),
                Err(error) => error,
            };
            tries += 1;
            if tries >= CHUNK_TRIES {
                return Err(failed.into());
            }
            tokio::time::sleep(CHUNK_PAUSE).await;
        }
    }
}

impl<N: Network> RaftNetworkV2<TypeConfig> for Peer<N> {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Answer<AppendEntriesResponse<TypeConfig>> {
        self.append(rpc).await
    }

    /// Several appends are under way; their answers come in order, up to the first that is no success.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Answer<BoxStream<'s, Answer<StreamAppendResult<TypeConfig>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin + 'static,
    {
        let peer = self.clone();
        let answers = input.map(move |rpc| {
            let peer = peer.clone();
            async move {
                let before = rpc.prev_log_id;
                let last = rpc.entries.last().map(|entry| entry.log_id).or(before);
                Ok(peer.append(rpc).await?.into_stream_result(before, last))
            }
        });
        let answers = answers.buffered(APPENDS_IN_FLIGHT);
        let until_failure = stream::unfold(Some((answers, None)), async |state| {
            let (mut answers, taken) = state?;
            let answer = match answers.next().await? {
                // An append that overtook the one before it does not tell of the log that is there now.
                Ok(Err(StreamAppendError::Conflict(at))) if taken >= Some(at) => {
                    Err(strange("a log has lost what it has taken, or appends came out of order"))
                }
                answer => answer,
            };
            let goes_on = match &answer {
                Ok(Ok(last)) => Some((answers, taken.max(*last))),
                _ => None,
            };
            Some((answer, goes_on))
        });
        let until_failure: BoxStream<'s, _> = Box::pin(until_failure);
        Box::pin(async move { Ok(until_failure) })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Answer<VoteResponse<TypeConfig>> {
        self.ask(Class::Urgent, wire::VOTE, &rpc, option.hard_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Answer<VoteResponse<TypeConfig>> {
        self.ask(Class::Urgent, wire::PRE_VOTE, &rpc, option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: WholeSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let vote = tokio::select! {
            biased;
            closed = cancel => return Err(closed.into()),
            sent = self.send(vote, &snapshot.snapshot) => sent?,
        };
        self.counters.count(|stats| stats.snapshots_sent += 1);
        Ok(SnapshotResponse::new(vote))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Answer<TransferLeaderResponse<TypeConfig>> {
        self.ask(Class::Urgent, wire::TRANSFER_LEADER, &request, option.hard_ttl()).await
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;

    use bytes::Bytes;

    use super::super::host::Threads;
    use super::super::types::{LogEntry, LogId};
    use super::*;

    /// Answers in this order, whatever is asked.
    #[derive(Clone)]
    struct Answers(Rc<RefCell<VecDeque<AppendEntriesResponse<TypeConfig>>>>);

    impl Network for Answers {
        async fn call(
            &self,
            _to: NodeId,
            _class: Class,
            kind: u16,
            _body: Bytes,
            _deadline: Duration,
        ) -> Result<Bytes, CallError> {
            let answer = self.0.borrow_mut().pop_front().expect("no more is asked");
            Ok(wire::encode_answer::<AppendEntriesRequest<TypeConfig>>(kind, &answer))
        }
    }

    fn append(index: u64) -> AppendEntriesRequest<TypeConfig> {
        let id = |index| LogId::new_term_index(3, index);
        AppendEntriesRequest {
            vote: Vote::new_committed(3, 1),
            prev_log_id: Some(id(index - 1)),
            entries: vec![LogEntry { log_id: id(index), payload: openraft::EntryPayload::Blank }],
            leader_commit: None,
        }
    }

    #[test]
    fn an_append_that_overtook_another_does_not_take_back_what_was_taken() {
        use AppendEntriesResponse::{Conflict, Success};
        let answers = Answers(Rc::new(RefCell::new([Success, Conflict].into())));
        let peers = Peers { net: answers, counters: Counters::default(), workers: Rc::new(Threads) };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut peer = peers.peer(2, Class::Append);
            let input = stream::iter([append(8), append(9)]);
            let option = RPCOption::new(Duration::from_secs(1));
            let answers = peer.stream_append(input, option).await.unwrap();
            let answers: Vec<_> = answers.collect().await;
            assert!(matches!(answers[0], Ok(Ok(Some(id))) if id.index == 8), "{:?}", answers[0]);
            assert!(answers[1].is_err() && answers.len() == 2, "{answers:?}");
            let answers = Answers(Rc::new(RefCell::new([Conflict].into())));
            let peers = Peers { net: answers, ..peers };
            let option = RPCOption::new(Duration::from_secs(1));
            let mut peer = peers.peer(2, Class::Append);
            let answers = peer.stream_append(stream::iter([append(9)]), option).await.unwrap();
            let answers: Vec<_> = answers.collect().await;
            assert!(matches!(answers[..], [Ok(Err(StreamAppendError::Conflict(id)))] if id.index == 8));
        });
    }
}
