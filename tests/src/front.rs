//! The simulator's own client protocol: one operation a frame, typed, trivial. It exists to drive shards without a
//! real protocol in the way; it keeps the promises that [`Front`] asks for.
//!
//! A session answers in the order of the frames. A read that finds too little watches its partition, and reads
//! once more when the partition is readable or the wait is over.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use highwater_shards::front::{CloseReason, Cx, Front};
use highwater_shards::ids::{
    Offset, PartitionId, PartitionIndex, ProducerEpoch, ProducerId, Revision, ShardId, TopicId,
};
use highwater_shards::mail::{Acks, Answer, Locate, Op, PartitionError, Token};

use crate::wire::{Call, Heard, Metadata, ReadCall, ReadSaid, Said, Wire};

/// [`Wire`] over [`SimFront`].
#[derive(Clone, Copy, Debug, Default)]
pub struct SimWire;

#[derive(Clone, Copy, Debug, Default)]
pub struct SimFront;

/// What one connection waits for, oldest first.
#[derive(Debug, Default)]
pub struct SimSession {
    slots: VecDeque<Slot>,
    /// The token of the next operation; the slots have the ones before it, without gaps but for those of acks 0.
    next_token: u64,
}

#[derive(Debug)]
struct Slot {
    token: Token,
    correlation: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Not answered by anyone, and never answered to the client unless it fails.
    Unanswered,
    Asked,
    Watching(ReadCall, ReadState),
    Ready(Reply),
}

/// An answer that waits for those before it.
#[derive(Debug)]
struct Reply {
    /// All but the records; the revision is filled in when it is sent.
    head: BytesMut,
    records: Vec<Bytes>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ReadState {
    First,
    Watching,
    Last,
}

const APPEND: u8 = 1;
const READ: u8 = 2;
const LOCATE: u8 = 3;
const NEW_PRODUCER: u8 = 4;

impl Wire for SimWire {
    type Front = SimFront;

    fn front(&self) -> SimFront {
        SimFront
    }

    fn view(&self, metadata: &Arc<Metadata>) -> Arc<Metadata> {
        metadata.clone()
    }

    fn answer(&self, (): (), producer: ProducerId) -> ProducerId {
        producer
    }

    fn encode(&self, call: &Call, correlation: u32) -> Bytes {
        let mut out = BytesMut::with_capacity(96);
        out.put_u32(correlation);
        match call {
            Call::Append { partition, acks, timeout, records } => {
                out.reserve(records.len());
                out.put_u8(APPEND);
                put_partition(&mut out, *partition);
                out.put_u8(match acks {
                    Acks::None => 0,
                    Acks::Leader => 1,
                    Acks::All => 2,
                });
                put_duration(&mut out, *timeout);
                out.put_slice(records);
            }
            Call::Read(read) => {
                out.put_u8(READ);
                put_partition(&mut out, read.partition);
                out.put_u64(read.offset.0);
                out.put_u32(read.bytes_max);
                out.put_u32(read.bytes_min);
                put_duration(&mut out, read.wait);
                out.put_u8(u8::from(read.from_follower));
            }
            Call::Locate { partition, at } => {
                out.put_u8(LOCATE);
                put_partition(&mut out, *partition);
                let (kind, timestamp) = match at {
                    Locate::Earliest => (0, 0),
                    Locate::Latest => (1, 0),
                    Locate::LargestTimestamp => (2, 0),
                    Locate::Timestamp(t) => (3, *t),
                };
                out.put_u8(kind);
                out.put_i64(timestamp);
            }
            Call::NewProducer => out.put_u8(NEW_PRODUCER),
        }
        out.freeze()
    }

    fn decode(&self, _: &Call, mut frame: Bytes) -> Result<Heard, String> {
        if frame.len() < 14 {
            return Err(format!("an answer of {} bytes", frame.len()));
        }
        let correlation = frame.get_u32();
        let revision = Some(Revision(frame.get_u64()));
        let kind = frame.get_u8();
        let error = error_of(frame.get_u8());
        let said = match (kind, error) {
            (APPEND, Some(e)) => Said::Appended(Err(e)),
            (READ, Some(e)) => Said::Read(Err(e)),
            (LOCATE, Some(e)) => Said::Located(Err(e)),
            (APPEND, None) => Said::Appended(Ok(Offset(frame.get_u64()))),
            (READ, None) => Said::Read(Ok(ReadSaid {
                high_watermark: Offset(frame.get_u64()),
                log_start: Offset(frame.get_u64()),
                records: frame,
            })),
            (LOCATE, None) => Said::Located(Ok((frame.get_u8() == 1).then(|| Offset(frame.get_u64())))),
            (NEW_PRODUCER, None) => Said::Producer(ProducerId(frame.get_u64()), ProducerEpoch(0)),
            (kind, error) => return Err(format!("an answer of kind {kind}, error {error:?}")),
        };
        Ok(Heard { correlation, revision, said })
    }
}

impl Front for SimFront {
    type Session = SimSession;
    type View = Arc<Metadata>;
    type Request = ();
    type Reply = ProducerId;

    fn open(&mut self, _: &mut Cx<'_, Self>, _: SocketAddr) -> SimSession {
        SimSession::default()
    }

    fn on_frame(&mut self, cx: &mut Cx<'_, Self>, session: &mut SimSession, mut frame: Bytes) {
        if frame.len() < 5 {
            return cx.close(CloseReason::Malformed);
        }
        let correlation = frame.get_u32();
        let kind = frame.get_u8();
        let token = Token(session.next_token);
        session.next_token += 1;
        let mut slot = Slot { token, correlation, state: State::Asked };
        if kind == NEW_PRODUCER {
            cx.ask(token, ());
            session.slots.push_back(slot);
            return;
        }
        if frame.len() < 20 {
            return cx.close(CloseReason::Malformed);
        }
        let topic = TopicId(frame.get_u128());
        let partition = PartitionId { topic, index: PartitionIndex(frame.get_u32()) };
        let Some(op) = read_op(cx, &mut slot, partition, kind, &mut frame) else {
            return cx.close(CloseReason::Malformed);
        };
        let Some(&(shard, _)) = cx.view.partitions.get(&partition) else {
            if matches!(slot.state, State::Unanswered) {
                return cx.close(CloseReason::UnansweredError);
            }
            slot.state = State::Ready(refusal(correlation, kind, PartitionError::NotOwned));
            session.slots.push_back(slot);
            return session.flush(cx);
        };
        if let State::Watching(read, _) = slot.state
            && !read.wait.is_zero()
        {
            cx.set_timer(token, cx.now + read.wait);
        }
        cx.submit(shard, partition, token, op);
        session.slots.push_back(slot);
    }

    fn on_answer(&mut self, cx: &mut Cx<'_, Self>, session: &mut SimSession, token: Token, answer: Answer) {
        let Some(at) = session.find(token) else { return };
        let slot = &mut session.slots[at];
        let correlation = slot.correlation;
        let reply = match answer {
            Answer::Appended(result) => {
                if matches!(slot.state, State::Unanswered) {
                    session.slots.remove(at);
                    if result.is_err() {
                        cx.close(CloseReason::UnansweredError);
                    }
                    return session.flush(cx);
                }
                match result {
                    Ok(done) => {
                        answered(correlation, APPEND, |out| out.put_u64(done.base_offset.0), Vec::new())
                    }
                    Err(e) => refusal(correlation, APPEND, e),
                }
            }
            Answer::Read(result) => {
                let State::Watching(read, state) = &mut slot.state else { return };
                match result {
                    Ok(done) if done.watching && *state == ReadState::First => {
                        *state = ReadState::Watching;
                        return;
                    }
                    Ok(done) => {
                        if done.watching {
                            // The wait was over while this answer was on its way.
                            unwatch(cx, read.partition, token);
                        }
                        cx.cancel_timer(token);
                        let ends = |out: &mut BytesMut| {
                            out.put_u64(done.high_watermark.0);
                            out.put_u64(done.log_start.0);
                        };
                        answered(correlation, READ, ends, done.records)
                    }
                    Err(e) => {
                        if !read.wait.is_zero() {
                            cx.cancel_timer(token);
                        }
                        refusal(correlation, READ, e.error)
                    }
                }
            }
            Answer::Readable => return session.read_again(cx, at),
            Answer::Located(result) => match result {
                Ok(found) => {
                    let body = |out: &mut BytesMut| {
                        out.put_u8(u8::from(found.is_some()));
                        out.put_u64(found.map_or(0, |f| f.offset.0));
                    };
                    answered(correlation, LOCATE, body, Vec::new())
                }
                Err(e) => refusal(correlation, LOCATE, e),
            },
            Answer::EpochEnd(_) | Answer::Deleted(_) => return,
        };
        session.slots[at].state = State::Ready(reply);
        session.flush(cx);
    }

    fn on_reply(&mut self, cx: &mut Cx<'_, Self>, session: &mut SimSession, token: Token, reply: ProducerId) {
        let Some(at) = session.find(token) else { return };
        let correlation = session.slots[at].correlation;
        let reply = answered(correlation, NEW_PRODUCER, |out| out.put_u64(reply.0), Vec::new());
        session.slots[at].state = State::Ready(reply);
        session.flush(cx);
    }

    fn on_timeout(&mut self, cx: &mut Cx<'_, Self>, session: &mut SimSession, token: Token) {
        if let Some(at) = session.find(token) {
            if let State::Watching(read, ReadState::Watching) = session.slots[at].state {
                unwatch(cx, read.partition, token);
            }
            session.read_again(cx, at);
        }
    }

    fn on_closed(&mut self, cx: &mut Cx<'_, Self>, session: &mut SimSession) {
        for slot in session.slots.drain(..) {
            if let State::Watching(read, ReadState::Watching | ReadState::First) = slot.state {
                unwatch(cx, read.partition, slot.token);
            }
        }
    }

    fn in_flight(&self, session: &SimSession) -> usize {
        session.slots.len()
    }

    fn local_shard(view: &Arc<Metadata>, partition: PartitionId) -> Option<ShardId> {
        view.partitions.get(&partition).map(|p| p.0)
    }
}

impl SimSession {
    fn find(&self, token: Token) -> Option<usize> {
        self.slots.binary_search_by_key(&token, |s| s.token).ok()
    }

    /// The partition has more, or the wait is over: the next answer is the last one.
    fn read_again(&mut self, cx: &mut Cx<'_, SimFront>, at: usize) {
        let slot = &mut self.slots[at];
        let State::Watching(read, state) = &mut slot.state else { return };
        // In `First` the answer is still on its way and ends the read, unless it says that it watches.
        if *state == ReadState::Last {
            return;
        }
        let was = std::mem::replace(state, ReadState::Last);
        if was == ReadState::First {
            return;
        }
        let (read, token) = (*read, slot.token);
        match cx.view.partitions.get(&read.partition) {
            Some(&(shard, _)) => cx.submit(shard, read.partition, token, read_once(&read, 0)),
            None => {
                cx.cancel_timer(token);
                let reply = refusal(slot.correlation, READ, PartitionError::NotOwned);
                slot.state = State::Ready(reply);
                self.flush(cx);
            }
        }
    }

    /// Sends what is ready, in order.
    fn flush(&mut self, cx: &mut Cx<'_, SimFront>) {
        loop {
            // What is never answered does not hold up what is.
            let waiting = self.slots.iter().position(|s| !matches!(s.state, State::Unanswered));
            let Some(at) = waiting else { return };
            if !matches!(self.slots[at].state, State::Ready(_)) {
                return;
            }
            let slot = self.slots.remove(at).expect("its place was just found");
            if let State::Ready(Reply { mut head, records }) = slot.state {
                head[8..16].copy_from_slice(&cx.view.revision.0.to_be_bytes());
                let mut parts = vec![head.freeze()];
                parts.extend(records);
                cx.send(parts);
            }
        }
    }
}

fn read_op(
    cx: &Cx<'_, SimFront>,
    slot: &mut Slot,
    partition: PartitionId,
    kind: u8,
    frame: &mut Bytes,
) -> Option<Op> {
    match kind {
        APPEND if frame.len() >= 9 => {
            let acks = match frame.get_u8() {
                0 => Acks::None,
                1 => Acks::Leader,
                2 => Acks::All,
                _ => return None,
            };
            if acks == Acks::None {
                slot.state = State::Unanswered;
            }
            let deadline = cx.now + Duration::from_nanos(frame.get_u64());
            Some(Op::Append { acks, deadline, records: frame.split_off(0) })
        }
        READ if frame.len() == 25 => {
            let read = ReadCall {
                partition,
                offset: Offset(frame.get_u64()),
                bytes_max: frame.get_u32(),
                bytes_min: frame.get_u32(),
                wait: Duration::from_nanos(frame.get_u64()),
                from_follower: frame.get_u8() != 0,
            };
            slot.state = State::Watching(read, ReadState::First);
            Some(read_once(&read, if read.wait.is_zero() { 0 } else { read.bytes_min }))
        }
        LOCATE if frame.len() == 9 => {
            let at = match (frame.get_u8(), frame.get_i64()) {
                (0, _) => Locate::Earliest,
                (1, _) => Locate::Latest,
                (2, _) => Locate::LargestTimestamp,
                (3, t) => Locate::Timestamp(t),
                _ => return None,
            };
            Some(Op::Locate { current_epoch: None, at })
        }
        _ => None,
    }
}

fn unwatch(cx: &mut Cx<'_, SimFront>, partition: PartitionId, token: Token) {
    if let Some(&(shard, _)) = cx.view.partitions.get(&partition) {
        cx.submit(shard, partition, token, Op::Unwatch);
    }
}

fn read_once(read: &ReadCall, watch_below_bytes: u32) -> Op {
    Op::Read {
        from_follower: read.from_follower,
        nearer: Vec::new(),
        current_epoch: None,
        offset: read.offset,
        bytes_max: read.bytes_max,
        first_batch_whole: true,
        watch_below_bytes,
    }
}

fn answered(correlation: u32, kind: u8, body: impl FnOnce(&mut BytesMut), records: Vec<Bytes>) -> Reply {
    let mut out = BytesMut::with_capacity(48);
    out.put_u32(0);
    out.put_u32(correlation);
    out.put_u64(0);
    out.put_u8(kind);
    out.put_u8(0);
    body(&mut out);
    let len = out.len() - 4 + records.iter().map(Bytes::len).sum::<usize>();
    out[..4].copy_from_slice(&u32::try_from(len).expect("a simulated answer is small").to_be_bytes());
    Reply { head: out, records }
}

fn refusal(correlation: u32, kind: u8, error: PartitionError) -> Reply {
    let mut out = BytesMut::with_capacity(18);
    out.put_u32(14);
    out.put_u32(correlation);
    out.put_u64(0);
    out.put_u8(kind);
    out.put_u8(code_of(error));
    Reply { head: out, records: Vec::new() }
}

/// Every error; its place, counted from 1, is its code.
const ERRORS: [PartitionError; 18] = [
    PartitionError::NotOwned,
    PartitionError::NotLeader,
    PartitionError::FencedLeaderEpoch,
    PartitionError::UnknownLeaderEpoch,
    PartitionError::OffsetOutOfRange,
    PartitionError::OffsetNotAvailable,
    PartitionError::CorruptBatch,
    PartitionError::InvalidBatch,
    PartitionError::UnsupportedFormat,
    PartitionError::BatchTooLarge,
    PartitionError::OutOfOrderSequence,
    PartitionError::InvalidProducerEpoch,
    PartitionError::NotEnoughReplicas,
    PartitionError::NotEnoughReplicasAfterAppend,
    PartitionError::TimedOut,
    PartitionError::StorageFull,
    PartitionError::Overloaded,
    PartitionError::StorageFailed,
];

fn code_of(error: PartitionError) -> u8 {
    let at = ERRORS.iter().position(|&e| e == error).expect("ERRORS has every error");
    u8::try_from(at + 1).expect("a small table")
}

fn error_of(code: u8) -> Option<PartitionError> {
    ERRORS.get(usize::from(code).checked_sub(1)?).copied()
}

fn put_partition(out: &mut BytesMut, partition: PartitionId) {
    out.put_u128(partition.topic.0);
    out.put_u32(partition.index.0);
}

fn put_duration(out: &mut BytesMut, d: Duration) {
    out.put_u64(u64::try_from(d.as_nanos()).expect("a simulated wait is short"));
}
