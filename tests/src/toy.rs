//! A toy shard: the smallest machine that keeps the invariants, and that breaks one of them when it is told to. It
//! checks the checkers; nothing of it is meant to be fast.

mod journal;
mod partition;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use highwater_shards::front::{Act, Cx, Front};
use highwater_shards::ids::{ConnId, Offset, PartitionId, PartitionIndex, Revision, ShardId, TopicId};
use highwater_shards::log::disk::{DiskError, DiskEvent, DiskOp, FileName};
use highwater_shards::mail::{
    Acks, Answer, Appended, FromControl, Locate, Located, Op, PartitionError, ReadError, ReplyTo, ShardMail,
    ToControl, Token,
};
use highwater_shards::shard::{ClientInput, FatalReason, Input, Machine, Output};
use highwater_shards::time::{Instant, TimerTable};

use self::journal::{FILE, FILE_BYTES, Found, Journal, WINDOW};
use self::partition::{Partition, Waiter};
use crate::config::Config;
use crate::front::{SimFront, SimWire};
use crate::world::{Builder, Plan};

/// What the toy does wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// Answers `Acks::All` once the records are in memory.
    AcksBeforeFlush,
    /// Serves what is not durable yet.
    ServesBeyondHighWatermark,
    /// Acknowledges a batch that it did not take, now and then.
    DropsBatches,
    AnswersTwice,
    /// Forgets a waiting append, now and then.
    ForgetsToAnswer,
    /// Does not rebuild what it knows of idempotent producers.
    ForgetsProducers,
    /// Names an older high watermark, now and then.
    RegressesHighWatermark,
    TakesStaleRevisions,
    /// Trusts what it reads after a crash without making it durable.
    RecoversWithoutSync,
    /// Trusts chunks without looking at their CRC.
    RecoversWithoutCrc,
    ReadsWrongBytes,
    /// Does not flush replicated topics before it must write something else.
    NeverFlushesReplicated,
    AcceptsDamagedBatches,
    /// Lets the high watermark move while too few replicas are in sync.
    IgnoresIsr,
    /// Appends the batches of one request in the wrong order.
    ReversesBatches,
    /// Never takes up work again after a partition lost its leader.
    StaysLeaderless,
    /// Takes the last record for the one with the largest timestamp.
    TakesLastForLargest,
}

impl Bug {
    pub const ALL: [Self; 17] = [
        Self::AcksBeforeFlush,
        Self::ServesBeyondHighWatermark,
        Self::DropsBatches,
        Self::AnswersTwice,
        Self::ForgetsToAnswer,
        Self::ForgetsProducers,
        Self::RegressesHighWatermark,
        Self::TakesStaleRevisions,
        Self::RecoversWithoutSync,
        Self::RecoversWithoutCrc,
        Self::ReadsWrongBytes,
        Self::NeverFlushesReplicated,
        Self::AcceptsDamagedBatches,
        Self::IgnoresIsr,
        Self::ReversesBatches,
        Self::StaysLeaderless,
        Self::TakesLastForLargest,
    ];
}

/// Builds nodes of toy shards.
#[derive(Clone, Copy, Debug, Default)]
pub struct ToyBuilder {
    pub bug: Option<Bug>,
}

impl Builder for ToyBuilder {
    type Wire = SimWire;
    type Machine = Toy;

    fn wire(&self, _: &Config) -> SimWire {
        SimWire
    }

    fn build(&mut self, plan: Plan<'_, SimFront>) -> Toy {
        Toy::new(plan.shard, plan.front, self.bug)
    }
}

pub struct Toy {
    shard: ShardId,
    front: SimFront,
    bug: Option<Bug>,
    view: <SimFront as Front>::View,
    revision: Option<Revision>,
    sessions: BTreeMap<ConnId, <SimFront as Front>::Session>,
    acts: Vec<Act<SimFront>>,
    timers: TimerTable<(ConnId, Token)>,
    partitions: BTreeMap<PartitionId, Partition>,
    journal: Journal,
    outputs: VecDeque<Output<SimFront>>,
    stopping: bool,
    sends: u64,
}

impl Toy {
    fn new(shard: ShardId, front: SimFront, bug: Option<Bug>) -> Self {
        let mut toy = Self {
            shard,
            front,
            bug,
            view: <SimFront as Front>::View::default(),
            revision: None,
            sessions: BTreeMap::new(),
            acts: Vec::new(),
            timers: TimerTable::default(),
            partitions: BTreeMap::new(),
            journal: Journal::default(),
            outputs: VecDeque::new(),
            stopping: false,
            sends: 0,
        };
        let op = toy.journal.op();
        toy.outputs.push_back(Output::Disk(DiskOp::List { op }));
        toy
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn session(
        &mut self,
        now: Instant,
        conn: ConnId,
        call: impl FnOnce(&mut SimFront, &mut Cx<'_, SimFront>, &mut <SimFront as Front>::Session),
    ) {
        let Some(session) = self.sessions.get_mut(&conn) else { return };
        let mut cx = Cx { now, shard: self.shard, conn, view: &self.view, acts: &mut self.acts };
        call(&mut self.front, &mut cx, session);
        for act in std::mem::take(&mut self.acts) {
            self.act(now, conn, act);
        }
    }

    fn act(&mut self, now: Instant, conn: ConnId, act: Act<SimFront>) {
        match act {
            Act::Submit { shard, partition, token, op } => {
                let reply_to = ReplyTo { shard: self.shard, conn, token };
                let mail = ShardMail::Op { reply_to, partition, op };
                if shard == self.shard {
                    self.on_mail(now, mail);
                } else {
                    self.outputs.push_back(Output::Mail { to: shard, mail });
                }
            }
            Act::Ask { token, request } => {
                self.outputs.push_back(Output::Control(ToControl::Request { conn, token, request }));
            }
            Act::Send { parts } => {
                self.sends += 1;
                if self.has(Bug::AnswersTwice) && self.sends.is_multiple_of(20) {
                    self.outputs.push_back(Output::Send { conn, parts: parts.clone() });
                }
                self.outputs.push_back(Output::Send { conn, parts });
            }
            Act::SetTimer { token, at } => self.timers.set((conn, token), at),
            Act::CancelTimer { token } => self.timers.cancel((conn, token)),
            Act::Close { reason } => {
                self.outputs.push_back(Output::Close { conn, flush: true, reason });
            }
        }
    }

    fn on_mail(&mut self, now: Instant, mail: ShardMail) {
        match mail {
            ShardMail::Op { reply_to, partition, op } => {
                if let Some(answer) = self.on_op(reply_to, partition, op) {
                    self.answer(now, reply_to, answer);
                }
                self.settle(now);
            }
            ShardMail::Answer { conn, token, answer } => {
                self.session(now, conn, |front, cx, s| front.on_answer(cx, s, token, answer));
            }
        }
    }

    fn answer(&mut self, now: Instant, to: ReplyTo, answer: Answer) {
        let mail = ShardMail::Answer { conn: to.conn, token: to.token, answer };
        if to.shard == self.shard {
            self.on_mail(now, mail);
        } else {
            self.outputs.push_back(Output::Mail { to: to.shard, mail });
        }
    }

    fn on_op(&mut self, to: ReplyTo, id: PartitionId, op: Op) -> Option<Answer> {
        let bug = self.bug;
        let stopping = self.stopping;
        let partition = self.partitions.get_mut(&id).filter(|p| p.assignment.is_some());
        let refusal = match &partition {
            None => Some(PartitionError::NotOwned),
            Some(p) if p.led().is_none() => Some(PartitionError::NotLeader),
            Some(_) => None,
        };
        let Some(partition) = partition.filter(|_| refusal.is_none()) else {
            let error = refusal.unwrap_or(PartitionError::NotOwned);
            return match op {
                Op::Append { .. } => Some(Answer::Appended(Err(error))),
                Op::Read { .. } => Some(Answer::Read(Err(ReadError { error, ends: None }))),
                Op::Locate { .. } => Some(Answer::Located(Err(error))),
                Op::EpochEnd { .. } => Some(Answer::EpochEnd(Err(error))),
                Op::DeleteRecords { .. } => Some(Answer::Deleted(Err(error))),
                Op::Unwatch => None,
            };
        };
        match op {
            Op::Append { .. } if stopping => Some(Answer::Appended(Err(PartitionError::NotLeader))),
            Op::Append { acks, deadline, records } => {
                match partition.append(id, &records, acks, bug, &mut self.journal) {
                    Err(e) => Some(Answer::Appended(Err(e))),
                    Ok((base, end)) => {
                        let durable_later = acks == Acks::All && bug != Some(Bug::AcksBeforeFlush);
                        if durable_later && end > partition.high_watermark {
                            partition.waiters.push(Waiter { end, base, deadline, to });
                            return None;
                        }
                        Some(appended(base))
                    }
                }
            }
            Op::Read { offset, bytes_max, watch_below_bytes, .. } => {
                Some(Answer::Read(partition.read(to, offset.0, bytes_max, watch_below_bytes, bug)))
            }
            Op::Unwatch => {
                partition.watchers.retain(|w| *w != to);
                None
            }
            Op::Locate { at, .. } => {
                let offset = match at {
                    Locate::Earliest => Some(0),
                    Locate::Latest => Some(partition.high_watermark),
                    _ if bug == Some(Bug::TakesLastForLargest) => partition.high_watermark.checked_sub(1),
                    _ => partition.largest_timestamp(),
                };
                let located = |o| Located { offset: Offset(o), timestamp_ms: None, leader_epoch: None };
                Some(Answer::Located(Ok(offset.map(located))))
            }
            Op::EpochEnd { .. } => Some(Answer::EpochEnd(Ok(None))),
            Op::DeleteRecords { .. } => Some(Answer::Deleted(Ok(Offset::ZERO))),
        }
    }

    /// Moves high watermarks, answers what they released, and writes what waits.
    fn settle(&mut self, now: Instant) {
        let mut answers = Vec::new();
        for p in self.partitions.values_mut() {
            p.advance(self.bug);
            let hw = p.high_watermark;
            let bug = self.bug;
            p.waiters.retain(|w| {
                let forgotten = bug == Some(Bug::ForgetsToAnswer) && w.base % 13 == 5;
                let done = w.end <= hw;
                if done && !forgotten {
                    answers.push((w.to, appended(w.base)));
                } else if w.deadline <= now && !forgotten {
                    answers.push((w.to, Answer::Appended(Err(PartitionError::TimedOut))));
                    return false;
                }
                !done
            });
        }
        self.write();
        for (to, answer) in answers {
            self.answer(now, to, answer);
        }
    }

    fn wake_watchers(&mut self, now: Instant, id: PartitionId) {
        let watchers = self.partitions.get_mut(&id).map(|p| std::mem::take(&mut p.watchers));
        for to in watchers.into_iter().flatten() {
            self.answer(now, to, Answer::Readable);
        }
    }

    fn write(&mut self) {
        let j = &mut self.journal;
        if self.bug == Some(Bug::NeverFlushesReplicated) && !j.urgent && !self.stopping {
            return;
        }
        if j.ready && j.writing.is_none() && !j.pending.is_empty() {
            let op = j.op();
            let chunk = j.seal();
            let len = chunk.len() as u64;
            j.writing = Some((op, std::mem::take(&mut j.ends)));
            let write =
                DiskOp::Write { op, file: FILE, position: j.position, parts: vec![chunk], sync: true };
            self.outputs.push_back(Output::Disk(write));
            j.position += len;
        }
    }

    fn on_disk(&mut self, now: Instant, event: DiskEvent) {
        let failed = |error| Output::Fatal(FatalReason::FlushFailed { file: FILE, error });
        match event {
            DiskEvent::Listed { result: Ok(files), .. } => {
                let op = self.journal.op();
                let next = if files.is_empty() {
                    DiskOp::Prepare { op, file: FILE, size: FILE_BYTES }
                } else if self.has(Bug::RecoversWithoutSync) {
                    self.journal.read()
                } else {
                    DiskOp::Sync { op, file: FileName::Journal(FILE) }
                };
                self.outputs.push_back(Output::Disk(next));
            }
            DiskEvent::Prepared { result: Err(DiskError::NoSpace), .. } => {
                let op = self.journal.op();
                self.outputs.push_back(Output::Disk(DiskOp::Prepare { op, file: FILE, size: FILE_BYTES }));
            }
            DiskEvent::Prepared { result: Ok(()), .. } => self.recovered(),
            DiskEvent::Synced { result: Ok(()), .. } => {
                let read = self.journal.read();
                self.outputs.push_back(Output::Disk(read));
            }
            DiskEvent::Read { result: Ok(bytes), .. } => self.replay(&bytes),
            DiskEvent::Written { op, result: Ok(()) } => {
                let (expected, ends) = self.journal.writing.take().expect("a write is under way");
                assert_eq!(expected, op, "one write at a time");
                for &(id, end) in &ends {
                    if let Some(p) = self.partitions.get_mut(&id) {
                        p.flushed = p.flushed.max(end);
                    }
                }
                self.settle(now);
                for (id, _) in ends {
                    self.wake_watchers(now, id);
                }
                self.stop_when_idle();
            }
            DiskEvent::Listed { result: Err(error), .. } | DiskEvent::Read { result: Err(error), .. } => {
                self.outputs.push_back(Output::Fatal(FatalReason::RecoveryFailed { error }));
            }
            DiskEvent::Prepared { result: Err(error), .. }
            | DiskEvent::Synced { result: Err(error), .. }
            | DiskEvent::Written { result: Err(error), .. } => self.outputs.push_back(failed(error)),
            DiskEvent::Loaded { .. }
            | DiskEvent::Done { .. }
            | DiskEvent::FolderListed { .. }
            | DiskEvent::FoldersListed { .. } => unreachable!("the toy has a journal and nothing else"),
        }
    }

    /// More of the journal is there.
    fn replay(&mut self, bytes: &Bytes) {
        self.journal.found.extend_from_slice(bytes);
        loop {
            let mut batches = match self.journal.next_chunk(self.bug) {
                Found::Chunk(body) => body,
                Found::Part if bytes.len() == WINDOW as usize => {
                    let read = self.journal.read();
                    return self.outputs.push_back(Output::Disk(read));
                }
                Found::Part | Found::End => return self.recovered(),
            };
            while batches.len() > 20 {
                let topic = TopicId(batches.get_u128());
                let id = PartitionId { topic, index: PartitionIndex(batches.get_u32()) };
                let len = 12 + u32::from_be_bytes(batches[8..12].try_into().expect("four bytes")) as usize;
                if len > batches.len() {
                    break;
                }
                let batch = batches.split_to(len);
                let keep = !self.has(Bug::ForgetsProducers);
                let partition = self.partitions.entry(id).or_default();
                partition.restore(batch, keep);
                partition.flushed = partition.end;
            }
        }
    }

    fn recovered(&mut self) {
        self.journal.ready = true;
        self.journal.found = BytesMut::new();
        let partitions = self.partitions.keys().copied().collect();
        self.outputs.push_back(Output::Control(ToControl::Recovered { partitions }));
    }

    fn on_control(
        &mut self,
        now: Instant,
        message: FromControl<<SimFront as Front>::View, <SimFront as Front>::Reply>,
    ) {
        match message {
            FromControl::Delta { revision, view, assign, unassign } => {
                let stale = self.revision.is_some_and(|r| r >= revision);
                if stale && !self.has(Bug::TakesStaleRevisions) {
                    return;
                }
                self.revision = Some(revision);
                self.view = view;
                let mut answers = Vec::new();
                for id in unassign {
                    let gone = self.partitions.remove(&id).unwrap_or_default();
                    answers.extend(gone.watchers.into_iter().map(|to| (to, Answer::Readable)));
                    answers.extend(gone.waiters.into_iter().map(|w| (w.to, not_leader())));
                }
                for assignment in assign {
                    let p = self.partitions.entry(assignment.partition).or_default();
                    let epoch = p.assignment.as_ref().map(|a| a.leader_epoch);
                    if epoch != Some(assignment.leader_epoch) || assignment.leader.is_none() {
                        answers
                            .extend(std::mem::take(&mut p.waiters).into_iter().map(|w| (w.to, not_leader())));
                    }
                    let was_led = p.assignment.as_ref().is_none_or(|a| a.leader.is_some());
                    if was_led || self.bug != Some(Bug::StaysLeaderless) {
                        p.assignment = Some(assignment);
                    }
                    answers
                        .extend(std::mem::take(&mut p.watchers).into_iter().map(|to| (to, Answer::Readable)));
                }
                self.outputs.push_back(Output::Control(ToControl::Applied { revision }));
                for (to, answer) in answers {
                    self.answer(now, to, answer);
                }
                self.settle(now);
            }
            FromControl::Reply { conn, token, reply } => {
                self.session(now, conn, |front, cx, s| front.on_reply(cx, s, token, reply));
            }
            FromControl::Stats { .. }
            | FromControl::Nodes(_)
            | FromControl::IsrRefused { .. }
            | FromControl::Lease { .. } => {}
            FromControl::Stop { .. } => {
                self.stopping = true;
                self.write();
                self.stop_when_idle();
            }
        }
    }

    fn stop_when_idle(&mut self) {
        if self.stopping && self.journal.writing.is_none() && self.journal.pending.is_empty() {
            self.outputs.push_back(Output::Control(ToControl::Stopped));
        }
    }

    fn on_client(&mut self, now: Instant, input: ClientInput) {
        match input {
            ClientInput::Opened { conn, peer } => {
                let mut cx = Cx { now, shard: self.shard, conn, view: &self.view, acts: &mut self.acts };
                let session = self.front.open(&mut cx, peer);
                self.sessions.insert(conn, session);
            }
            ClientInput::Frame { conn, frame } => {
                self.session(now, conn, |front, cx, s| front.on_frame(cx, s, frame));
            }
            ClientInput::Sent { .. } => {}
            ClientInput::Closed { conn, reason: _ } => {
                self.session(now, conn, |front, cx, s| front.on_closed(cx, s));
                self.sessions.remove(&conn);
            }
        }
    }
}

impl Machine for Toy {
    type Front = SimFront;

    fn handle(&mut self, now: Instant, input: Input<SimFront>) {
        match input {
            Input::Timeout => {
                while let Some((conn, token)) = self.timers.pop_due(now) {
                    self.session(now, conn, |front, cx, s| front.on_timeout(cx, s, token));
                }
                self.settle(now);
            }
            Input::Control(message) => self.on_control(now, message),
            Input::Mail(mail) => self.on_mail(now, mail),
            Input::Client(input) => self.on_client(now, input),
            Input::Peer(_) => unreachable!("the toy has no peers"),
            Input::Disk(event) => self.on_disk(now, event),
        }
    }

    fn poll_output(&mut self) -> Option<Output<SimFront>> {
        self.outputs.pop_front()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let deadlines = self.partitions.values().flat_map(|p| p.waiters.iter().map(|w| w.deadline));
        deadlines.chain(self.timers.next()).min()
    }
}

fn appended(base: u64) -> Answer {
    Answer::Appended(Ok(Appended {
        base_offset: Offset(base),
        log_start: Offset::ZERO,
        throttle: Duration::ZERO,
    }))
}

fn not_leader() -> Answer {
    Answer::Appended(Err(PartitionError::NotLeader))
}
