//! A toy shard: the smallest machine that keeps the invariants, and that breaks one of them when it is told to. It
//! checks the checkers; nothing of it is meant to be fast.
//!
//! Its journal is one file of chunks, each written with `sync` after the one before is durable. A chunk is magic,
//! number, length and CRC, then batches, each behind its partition's id.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, checksum};
use highwater_shards::front::{Act, Cx, Front};
use highwater_shards::ids::{ConnId, Offset, PartitionId, PartitionIndex, Revision, ShardId, TopicId};
use highwater_shards::log::disk::{DiskError, DiskEvent, DiskOp, FileNo, OpNo, SECTOR};
use highwater_shards::mail::{
    Acks, Answer, Appended, Assignment, Durability, FromControl, Locate, Located, Op, PartitionError,
    ReadEnds, ReadError, ReadOut, ReplyTo, ShardMail, ToControl, Token,
};
use highwater_shards::shard::{ClientInput, FatalReason, Input, Machine, Output};
use highwater_shards::time::{Instant, TimerTable};

use crate::config::Config;
use crate::front::{SimFront, SimWire};
use crate::records;
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
}

impl Bug {
    pub const ALL: [Self; 16] = [
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

const FILE: FileNo = FileNo(1);
const FILE_BYTES: u64 = 64 << 20;
const MAGIC: u32 = 0x746f_795f;
const CHUNK_HEADER: usize = 20;
/// What recovery reads at once, in bytes.
const WINDOW: u32 = 64 * 1024;

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

#[derive(Debug, Default)]
struct Partition {
    assignment: Option<Assignment>,
    log: Vec<Stored>,
    end: u64,
    flushed: u64,
    high_watermark: u64,
    waiters: Vec<Waiter>,
    watchers: Vec<ReplyTo>,
    producers: BTreeMap<u64, VecDeque<Remembered>>,
}

#[derive(Debug)]
struct Stored {
    base: u64,
    records: u32,
    bytes: Bytes,
}

#[derive(Debug)]
struct Waiter {
    end: u64,
    base: u64,
    deadline: Instant,
    to: ReplyTo,
}

#[derive(Clone, Copy, Debug)]
struct Remembered {
    sequence: u32,
    next: u32,
    base: u64,
}

#[derive(Debug, Default)]
struct Journal {
    ops: u64,
    position: u64,
    chunk: u64,
    ready: bool,
    writing: Option<(OpNo, Vec<(PartitionId, u64)>)>,
    pending: BytesMut,
    /// Where each partition's log ends once `pending` is durable.
    ends: Vec<(PartitionId, u64)>,
    /// `pending` has something that is to be flushed now.
    urgent: bool,
    found: BytesMut,
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
                    _ => partition.high_watermark.checked_sub(1),
                };
                let located = |o| Located { offset: Offset(o), timestamp_ms: None, leader_epoch: None };
                Some(Answer::Located(Ok(offset.map(located))))
            }
            Op::EpochEnd { .. } => Some(Answer::EpochEnd(Ok(None))),
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
                    DiskOp::Sync { op, file: FILE }
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
            FromControl::Stats { .. } => {}
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

impl Partition {
    fn led(&self) -> Option<&Assignment> {
        self.assignment.as_ref().filter(|a| a.leader.is_some())
    }

    fn too_few(&self) -> bool {
        let few = |a: &Assignment| a.isr.len() < a.replicas.len().min(a.config.isr_min as usize);
        self.led().is_some_and(few)
    }

    fn append(
        &mut self,
        id: PartitionId,
        records: &Bytes,
        acks: Acks,
        bug: Option<Bug>,
        journal: &mut Journal,
    ) -> Result<(u64, u64), PartitionError> {
        if acks == Acks::All && self.too_few() && bug != Some(Bug::IgnoresIsr) {
            return Err(PartitionError::NotEnoughReplicas);
        }
        let mut batches = Vec::new();
        let mut rest = records.clone();
        while !rest.is_empty() {
            let len = match records::parse(&rest) {
                Ok(batch) => batch.len,
                Err(_) if bug == Some(Bug::AcceptsDamagedBatches) && rest.len() > 12 => rest.len(),
                Err(_) => return Err(PartitionError::CorruptBatch),
            };
            batches.push(rest.split_to(len));
        }
        if bug == Some(Bug::ReversesBatches) {
            batches.reverse();
        }
        let base = self.end;
        if let Some(stamp) = stamp(&batches[0]) {
            let known = self.producers.get(&stamp.0);
            if let Some(r) = known.and_then(|k| k.iter().find(|r| r.sequence == stamp.1)) {
                return Ok((r.base, r.base + u64::from(r.next - r.sequence)));
            }
            if known.and_then(|k| k.back()).is_some_and(|r| r.next != stamp.1) {
                return Err(PartitionError::OutOfOrderSequence);
            }
        }
        if bug == Some(Bug::DropsBatches) && base % 50 == 11 {
            return Ok((base, base));
        }
        let epoch = self.led().map_or(0, |a| a.leader_epoch.0);
        let durability = self.led().map_or(Durability::Fsync, |a| a.config.durability);
        for batch in batches {
            let mut bytes = BytesMut::from(&batch[..]);
            bytes[..8].copy_from_slice(&self.end.to_be_bytes());
            bytes[12..16].copy_from_slice(&epoch.to_be_bytes());
            let bytes = bytes.freeze();
            journal.pending.put_u128(id.topic.0);
            journal.pending.put_u32(id.index.0);
            journal.pending.put_slice(&bytes);
            self.restore(bytes, true);
        }
        journal.urgent |= durability == Durability::Fsync;
        journal.ends.push((id, self.end));
        self.advance(bug);
        Ok((base, self.end))
    }

    /// Takes a batch as it stands in the log.
    fn restore(&mut self, bytes: Bytes, keep_producers: bool) {
        let records = u32::from_be_bytes(bytes[57..61].try_into().expect("four bytes")).min(1 << 20);
        let base = self.end;
        if let Some((producer, sequence)) = stamp(&bytes).filter(|_| keep_producers) {
            let known = self.producers.entry(producer).or_default();
            known.push_back(Remembered { sequence, next: sequence + records, base });
            if known.len() > 5 {
                known.pop_front();
            }
        }
        self.end += u64::from(records);
        self.log.push(Stored { base, records, bytes });
    }

    fn advance(&mut self, bug: Option<Bug>) {
        let Some(a) = self.led() else { return };
        let ignores = bug == Some(Bug::IgnoresIsr);
        if (a.isr.len() > 1 || self.too_few()) && !ignores {
            return;
        }
        let safe = match a.config.durability {
            Durability::Fsync => self.flushed,
            Durability::Replicated => self.end,
        };
        self.high_watermark = self.high_watermark.max(safe);
    }

    fn read(
        &mut self,
        to: ReplyTo,
        offset: u64,
        bytes_max: u32,
        watch_below: u32,
        bug: Option<Bug>,
    ) -> Result<ReadOut, ReadError> {
        let mut hw = self.high_watermark;
        match bug {
            Some(Bug::ServesBeyondHighWatermark) => hw = self.end,
            Some(Bug::RegressesHighWatermark) if hw % 16 == 9 => {
                hw = hw.saturating_sub(3).max(offset.min(hw))
            }
            _ => {}
        }
        let ends = Some(ReadEnds { high_watermark: Offset(hw), log_start: Offset::ZERO });
        if offset > hw {
            return Err(ReadError { error: PartitionError::OffsetOutOfRange, ends });
        }
        let from = self.log.partition_point(|s| s.base + u64::from(s.records) <= offset);
        let mut records = Vec::new();
        let mut bytes = 0;
        for stored in &self.log[from..] {
            let fits = records.is_empty() || bytes + stored.bytes.len() <= bytes_max as usize;
            if stored.base + u64::from(stored.records) > hw || !fits {
                break;
            }
            bytes += stored.bytes.len();
            let mut part = stored.bytes.clone();
            if bug == Some(Bug::ReadsWrongBytes) && stored.base % 32 == 7 {
                let mut wrong = BytesMut::from(&part[..]);
                let last = wrong.len() - 2;
                wrong[last] ^= 1;
                part = wrong.freeze();
            }
            records.push(part);
        }
        let watching = bytes < watch_below as usize;
        if watching {
            self.watchers.push(to);
        }
        Ok(ReadOut { high_watermark: Offset(hw), log_start: Offset::ZERO, records, watching })
    }
}

impl Journal {
    fn op(&mut self) -> OpNo {
        self.ops += 1;
        OpNo(self.ops)
    }

    fn read(&mut self) -> DiskOp {
        let position = self.position + self.found.len() as u64;
        DiskOp::Read { op: self.op(), file: FILE, position, len: WINDOW }
    }

    /// Makes a chunk of what is pending, in whole sectors at an address that direct I/O takes.
    fn seal(&mut self) -> Bytes {
        self.urgent = false;
        let body = std::mem::take(&mut self.pending).freeze();
        let len = (CHUNK_HEADER + body.len()).next_multiple_of(SECTOR);
        let mut buffer = vec![0; len + SECTOR];
        let start = buffer.as_ptr().align_offset(SECTOR);
        let mut chunk = &mut buffer[start..start + len];
        let crc = crc_of(self.chunk, &body);
        chunk.put_u32(MAGIC);
        chunk.put_u64(self.chunk);
        chunk.put_u32(u32::try_from(body.len()).expect("a chunk is small"));
        chunk.put_u32(crc);
        chunk.put_slice(&body);
        self.chunk += 1;
        Bytes::from(buffer).slice(start..start + len)
    }

    /// Takes the next chunk out of what was read.
    fn next_chunk(&mut self, bug: Option<Bug>) -> Found {
        let Some(mut header) = self.found.get(..CHUNK_HEADER) else { return Found::Part };
        let sound = header.get_u32() == MAGIC && header.get_u64() == self.chunk;
        let (len, crc) = (header.get_u32() as usize, header.get_u32());
        if !sound || len as u64 > FILE_BYTES {
            return Found::End;
        }
        let whole = (CHUNK_HEADER + len).next_multiple_of(SECTOR);
        if self.found.len() < whole {
            return Found::Part;
        }
        let body = Bytes::copy_from_slice(&self.found[CHUNK_HEADER..CHUNK_HEADER + len]);
        if crc_of(self.chunk, &body) != crc && bug != Some(Bug::RecoversWithoutCrc) {
            return Found::End;
        }
        self.found.advance(whole);
        self.position += whole as u64;
        self.chunk += 1;
        Found::Chunk(body)
    }
}

/// What stands at the place where the journal was read to.
enum Found {
    Chunk(Bytes),
    /// Not enough was read.
    Part,
    End,
}

fn stamp(batch: &[u8]) -> Option<(u64, u32)> {
    let producer = i64::from_be_bytes(batch[43..51].try_into().expect("eight bytes"));
    let sequence = u32::from_be_bytes(batch[53..57].try_into().expect("four bytes"));
    u64::try_from(producer).ok().map(|p| (p, sequence))
}

fn crc_of(number: u64, body: &[u8]) -> u32 {
    let crc = u32::try_from(checksum(CrcAlgorithm::Crc32Iscsi, body)).expect("a CRC of 32 bits");
    crc ^ number.to_le_bytes()[0] as u32
}

fn appended(base: u64) -> Answer {
    Answer::Appended(Ok(Appended { base_offset: Offset(base), log_start: Offset::ZERO }))
}

fn not_leader() -> Answer {
    Answer::Appended(Err(PartitionError::NotLeader))
}
