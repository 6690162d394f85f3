//! The shard over a disk that does what it is told when it is told: operations come as mail from another shard.
//! Several of them, wired to each other, are in the files below.

mod catching_up;
mod cluster;
mod elections;
mod in_sync;
mod random;
mod streams;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::batch::BatchBuilder;
use crate::front::{CloseReason, Cx};
use crate::ids::{LeaderEpoch, Offset, PartitionEpoch, PartitionIndex, RegistrationEpoch, TopicId};
use crate::log::disk::{DiskError, DiskEvent, DiskOp, FileName};
use crate::log::journal::JournalConfig;
use crate::log::storage::StorageConfig;
use crate::mail::{Acks, Assignment, Durability, Locate, Op, PartitionConfig, ReadOut};

/// A front whose sessions echo a frame, and close on an empty one.
struct Echo;

impl Front for Echo {
    type Session = ();
    type View = ();
    type Request = ();
    type Reply = ();

    /// A hundred partitions of a topic go to each shard.
    fn local_shard(_: &(), partition: PartitionId) -> Option<ShardId> {
        Some(ShardId(u16::try_from(partition.index.0 / 100).ok()?))
    }

    fn open(&mut self, _: &mut Cx<'_, Self>, _: SocketAddr) {}

    fn on_frame(&mut self, cx: &mut Cx<'_, Self>, (): &mut (), frame: Bytes) {
        if frame.is_empty() { cx.close(CloseReason::Malformed) } else { cx.send(vec![frame]) }
    }

    fn on_answer(&mut self, _: &mut Cx<'_, Self>, (): &mut (), _: Token, _: Answer) {}
    fn on_reply(&mut self, _: &mut Cx<'_, Self>, (): &mut (), _: Token, (): ()) {}
    fn on_timeout(&mut self, _: &mut Cx<'_, Self>, (): &mut (), _: Token) {}
    fn on_closed(&mut self, _: &mut Cx<'_, Self>, (): &mut ()) {}

    fn in_flight(&self, (): &()) -> usize {
        0
    }
}

const NODE: NodeId = NodeId(1);
const OTHER_SHARD: ShardId = ShardId(9);

fn partition(index: u32) -> PartitionId {
    PartitionId { topic: TopicId(7), index: PartitionIndex(index) }
}

/// A shard, its disk, and what it said.
struct Rig {
    shard: Shard<Echo>,
    now: Instant,
    files: BTreeMap<FileName, Vec<u8>>,
    /// Writes and syncs that wait for `run_disk`; everything else is done at once.
    slow: VecDeque<DiskOp>,
    answers: Vec<(u64, Answer)>,
    outputs: Vec<Output<Echo>>,
    tokens: u64,
    revision: u64,
}

impl Rig {
    fn new() -> Self {
        Self::over(BTreeMap::new(), u64::MAX)
    }

    fn over(files: BTreeMap<FileName, Vec<u8>>, tail_bytes_max: u64) -> Self {
        Self::of(NODE, ShardId(0), files, tail_bytes_max, ReplicationConfig::default())
    }

    fn of(
        node: NodeId,
        shard: ShardId,
        files: BTreeMap<FileName, Vec<u8>>,
        tail_bytes_max: u64,
        replication: ReplicationConfig,
    ) -> Self {
        let journal = JournalConfig {
            file_bytes: 1024 * 1024,
            batch_bytes_max: 512 * 1024,
            chunk_bytes_max: 128 * 1024,
            flush_interval: Duration::from_millis(10),
            ..JournalConfig::new(shard, 1)
        };
        let config = ShardConfig {
            node,
            shard,
            storage: StorageConfig {
                tail_bytes_max,
                unmoved_bytes_soft: tail_bytes_max.min(1 << 20),
                ..StorageConfig::new(journal)
            },
            unsent_bytes_max: 100,
            in_flight_max: 4,
            remote_ops_max: 4,
            replication,
        };
        let mut rig = Self {
            shard: Shard::new(config, Echo),
            now: Instant::from_nanos(1),
            files,
            slow: VecDeque::new(),
            answers: vec![],
            outputs: vec![],
            tokens: 0,
            revision: 0,
        };
        rig.drain();
        rig
    }

    fn handle(&mut self, input: Input<Echo>) {
        self.shard.handle(self.now, input);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.shard.poll_output() {
            match output {
                Output::Disk(
                    op @ (DiskOp::Write { .. } | DiskOp::Sync { file: FileName::Journal(_), .. }),
                ) => self.slow.push_back(op),
                Output::Disk(op) => {
                    let event = self.do_disk(op);
                    self.shard.handle(self.now, Input::Disk(event));
                }
                Output::Mail { to, mail: ShardMail::Answer { token, answer, .. } } => {
                    assert_eq!(to, OTHER_SHARD);
                    self.answers.push((token.0, answer));
                }
                other => self.outputs.push(other),
            }
        }
    }

    fn do_disk(&mut self, op: DiskOp) -> DiskEvent {
        do_disk(&mut self.files, op)
    }

    /// Lets the disk do all it was told, and what follows from it.
    fn run_disk(&mut self) {
        while let Some(op) = self.slow.pop_front() {
            let event = self.do_disk(op);
            self.handle(Input::Disk(event));
        }
    }

    fn after(&mut self, time: Duration) {
        self.now = self.now + time;
        self.handle(Input::Timeout);
    }

    fn assign(&mut self, index: u32, leader: Option<NodeId>, epoch: u32, config: PartitionConfig) {
        self.revision += 1;
        let assignment = Assignment {
            partition: partition(index),
            leader,
            leader_epoch: LeaderEpoch(epoch),
            partition_epoch: PartitionEpoch(epoch),
            replicas: vec![NODE],
            isr: vec![NODE],
            config,
        };
        self.delta(vec![assignment], vec![]);
    }

    fn delta(&mut self, assign: Vec<Assignment>, unassign: Vec<PartitionId>) {
        let revision = Revision(self.revision);
        self.handle(Input::Control(FromControl::Delta { revision, view: (), assign, unassign }));
    }

    fn op(&mut self, index: u32, op: Op) -> u64 {
        self.tokens += 1;
        let token = Token(self.tokens);
        assert!(self.answer(self.tokens).is_none(), "tokens are new");
        let reply_to = ReplyTo { shard: OTHER_SHARD, conn: ConnId(1), token };
        self.handle(Input::Mail(ShardMail::Op { reply_to, partition: partition(index), op }));
        self.tokens
    }

    fn append(&mut self, index: u32, acks: Acks, records: Bytes) -> u64 {
        let deadline = self.now + Duration::from_secs(30);
        self.op(index, Op::Append { acks, deadline, records })
    }

    fn answer(&mut self, token: u64) -> Option<Answer> {
        let at = self.answers.iter().position(|(t, _)| *t == token)?;
        Some(self.answers.remove(at).1)
    }

    fn base(&mut self, token: u64) -> Option<u64> {
        match self.answer(token)? {
            Answer::Appended(result) => Some(result.expect("the append succeeds").base_offset.0),
            other => panic!("an append was answered with {other:?}"),
        }
    }

    fn error(&mut self, token: u64) -> Option<PartitionError> {
        match self.answer(token)? {
            Answer::Appended(Err(error))
            | Answer::Located(Err(error))
            | Answer::EpochEnd(Err(error))
            | Answer::Deleted(Err(error)) => Some(error),
            Answer::Read(Err(error)) => Some(error.error),
            _ => None,
        }
    }

    fn read(&mut self, index: u32, offset: u64, watch_below_bytes: u32) -> (u64, Option<ReadOut>) {
        let token = self.op(index, read(offset, watch_below_bytes));
        match self.answer(token) {
            Some(Answer::Read(Ok(out))) => (token, Some(out)),
            None => (token, None),
            other => panic!("a read was answered with {other:?}"),
        }
    }

    fn applied(&self) -> Vec<u64> {
        let applied = |o: &Output<Echo>| match o {
            Output::Control(ToControl::Applied { revision }) => Some(revision.0),
            _ => None,
        };
        self.outputs.iter().filter_map(applied).collect()
    }
}

fn do_disk(files: &mut BTreeMap<FileName, Vec<u8>>, op: DiskOp) -> DiskEvent {
    let of_segments = |file: &FileName| match file {
        FileName::Segment(name) | FileName::Index(name) => Some(name.partition),
        _ => None,
    };
    match op {
        DiskOp::List { op } => {
            let journal = |(file, data): (&FileName, &Vec<u8>)| match file {
                FileName::Journal(no) => Some((*no, data.len() as u64)),
                _ => None,
            };
            DiskEvent::Listed { op, result: Ok(files.iter().filter_map(journal).collect()) }
        }
        DiskOp::Prepare { op, file, size } => {
            files.insert(FileName::Journal(file), vec![0; size as usize]);
            DiskEvent::Prepared { op, result: Ok(()) }
        }
        DiskOp::Recycle { op, from, to } => {
            let data = files.remove(&FileName::Journal(from)).expect("a journal file");
            files.insert(FileName::Journal(to), data);
            DiskEvent::Prepared { op, result: Ok(()) }
        }
        DiskOp::Write { op, file, position, parts, .. } => {
            put(files, FileName::Journal(file), position, &parts);
            DiskEvent::Written { op, result: Ok(()) }
        }
        DiskOp::Put { op, file, position, parts } => {
            put(files, file, position, &parts);
            DiskEvent::Written { op, result: Ok(()) }
        }
        DiskOp::Sync { op, .. } => DiskEvent::Synced { op, result: Ok(()) },
        DiskOp::Read { op, file, position, len } => {
            let Some(data) = files.get(&file) else {
                return DiskEvent::Read { op, result: Err(DiskError::Missing) };
            };
            let from = (position as usize).min(data.len());
            let to = (from + len as usize).min(data.len());
            DiskEvent::Read { op, result: Ok(Bytes::copy_from_slice(&data[from..to])) }
        }
        DiskOp::Replace { op, file, parts } => {
            files.insert(file, parts.concat());
            DiskEvent::Done { op, result: Ok(()) }
        }
        DiskOp::Load { op, file } => {
            let result = Ok(files.get(&file).map(|data| Bytes::copy_from_slice(data)));
            DiskEvent::Loaded { op, result }
        }
        DiskOp::Cut { op, file, len } => {
            if let Some(data) = files.get_mut(&file) {
                data.truncate(len as usize);
            }
            DiskEvent::Done { op, result: Ok(()) }
        }
        DiskOp::Remove { op, file } => {
            files.remove(&file);
            DiskEvent::Done { op, result: Ok(()) }
        }
        DiskOp::RemoveFolder { op, partition } => {
            files.retain(|file, _| of_segments(file) != Some(partition));
            DiskEvent::Done { op, result: Ok(()) }
        }
        DiskOp::SyncFolder { op, .. } => DiskEvent::Synced { op, result: Ok(()) },
        DiskOp::ListFolder { op, partition } => {
            let files = files.iter().filter(|(file, _)| of_segments(file) == Some(partition));
            let result = Ok(files.map(|(file, data)| (*file, data.len() as u64)).collect());
            DiskEvent::FolderListed { op, result }
        }
        DiskOp::ListFolders { op } => {
            let mut folders: Vec<PartitionId> = files.keys().filter_map(of_segments).collect();
            folders.dedup();
            DiskEvent::FoldersListed { op, result: Ok(folders) }
        }
    }
}

fn put(files: &mut BTreeMap<FileName, Vec<u8>>, file: FileName, position: u64, parts: &[Bytes]) {
    let data = files.entry(file).or_default();
    let bytes = parts.concat();
    let end = position as usize + bytes.len();
    data.resize(data.len().max(end), 0);
    data[position as usize..end].copy_from_slice(&bytes);
}

fn read(offset: u64, watch_below_bytes: u32) -> Op {
    Op::Read {
        from_follower: false,
        nearer: Vec::new(),
        current_epoch: None,
        offset: Offset(offset),
        bytes_max: 1 << 20,
        first_batch_whole: true,
        watch_below_bytes,
    }
}

fn replicated() -> PartitionConfig {
    PartitionConfig { durability: Durability::Replicated, ..PartitionConfig::default() }
}

fn batch(value: &str) -> Bytes {
    BatchBuilder::new().record(1000, None, Some(value.as_bytes())).build()
}

fn led(config: PartitionConfig) -> Rig {
    let mut rig = Rig::new();
    rig.run_disk();
    rig.assign(0, Some(NODE), 1, config);
    rig
}

fn bytes_of(out: &ReadOut) -> Vec<u8> {
    out.records.concat()
}

#[test]
fn acks_all_under_fsync_waits_for_the_flush_and_so_do_readers() {
    let mut rig = led(PartitionConfig::default());
    let (watch, out) = rig.read(0, 0, 1);
    assert!(out.expect("answered at once").watching);
    let token = rig.append(0, Acks::All, batch("a"));
    assert!(rig.answer(token).is_none() && rig.answer(watch).is_none(), "nothing is told before the flush");
    assert!(rig.read(0, 0, 0).1.expect("answered").records.is_empty(), "nothing is visible before the flush");
    rig.run_disk();
    assert_eq!(rig.base(token), Some(0));
    assert!(matches!(rig.answer(watch), Some(Answer::Readable)));
    assert_eq!(rig.read(0, 0, 0).1.expect("answered").high_watermark, Offset(1));
}

#[test]
fn acks_leader_is_answered_before_the_flush() {
    let mut rig = led(PartitionConfig::default());
    let token = rig.append(0, Acks::Leader, batch("a"));
    assert_eq!(rig.base(token), Some(0));
}

#[test]
fn replicated_answers_from_memory_and_flushes_within_the_interval() {
    let mut rig = led(replicated());
    let token = rig.append(0, Acks::All, batch("a"));
    assert_eq!(rig.base(token), Some(0));
    assert!(rig.slow.is_empty(), "nothing is written at once");
    assert_eq!(rig.read(0, 0, 0).1.expect("answered").high_watermark, Offset(1));
    rig.after(Duration::from_millis(10));
    assert!(!rig.slow.is_empty(), "the interval has passed");
}

#[test]
fn one_flush_answers_every_partition_of_the_batch() {
    let mut rig = led(PartitionConfig::default());
    rig.assign(1, Some(NODE), 1, PartitionConfig::default());
    let first = rig.append(0, Acks::All, batch("a"));
    let writes = rig.slow.len();
    let others: Vec<u64> = (0..5).map(|i| rig.append(i % 2, Acks::All, batch("b"))).collect();
    assert_eq!(rig.slow.len(), writes, "appends wait while a flush is under way");
    let op = rig.slow.pop_front().expect("one write");
    let event = rig.do_disk(op);
    rig.handle(Input::Disk(event));
    assert_eq!(rig.base(first), Some(0));
    assert_eq!(rig.slow.len(), 1, "one write for all that waited");
    rig.run_disk();
    assert!(others.into_iter().all(|token| rig.base(token).is_some()));
}

#[test]
fn records_survive_a_restart_with_offsets_and_epochs() {
    let mut rig = led(PartitionConfig::default());
    rig.append(0, Acks::All, batch("a"));
    rig.run_disk();
    rig.assign(0, Some(NODE), 2, PartitionConfig::default());
    rig.append(0, Acks::All, batch("b"));
    rig.run_disk();
    let before = bytes_of(&rig.read(0, 0, 0).1.expect("answered"));
    let mut rig = Rig::over(rig.files, u64::MAX);
    rig.run_disk();
    rig.assign(0, Some(NODE), 3, PartitionConfig::default());
    let out = rig.read(0, 0, 0).1.expect("answered");
    assert_eq!((out.high_watermark, bytes_of(&out)), (Offset(2), before));
    let token = rig.op(0, Op::EpochEnd { current_epoch: None, epoch: LeaderEpoch(1) });
    let Some(Answer::EpochEnd(Ok(Some(end)))) = rig.answer(token) else { panic!("epoch 1 is known") };
    assert_eq!((end.epoch, end.end), (LeaderEpoch(1), Offset(1)));
}

#[test]
fn what_left_memory_is_read_from_its_segment() {
    let mut rig = Rig::over(BTreeMap::new(), 0);
    rig.run_disk();
    rig.assign(0, Some(NODE), 1, PartitionConfig::default());
    for i in 0..20 {
        rig.append(0, Acks::All, batch(&format!("value {i}")));
        rig.run_disk();
    }
    let out = rig.read(0, 7, 0).1.expect("the disk answers at once here");
    assert_eq!(out.records.len(), 13);
    assert!(bytes_of(&out).windows(7).any(|w| w == b"value 7"));
    let token = rig.op(0, Op::Locate { current_epoch: None, at: Locate::Timestamp(1000) });
    let Some(Answer::Located(Ok(Some(located)))) = rig.answer(token) else { panic!("found") };
    assert_eq!((located.offset, located.timestamp_ms), (Offset(0), Some(1000)));
}

#[test]
fn largest_timestamp_is_that_of_the_records_that_are_left() {
    for tail_bytes_max in [0, u64::MAX] {
        let mut rig = Rig::over(BTreeMap::new(), tail_bytes_max);
        rig.run_disk();
        rig.assign(0, Some(NODE), 1, PartitionConfig::default());
        let largest = |rig: &mut Rig| {
            let token = rig.op(0, Op::Locate { current_epoch: None, at: Locate::LargestTimestamp });
            match rig.answer(token) {
                Some(Answer::Located(Ok(found))) => found.map(|f| (f.offset.0, f.timestamp_ms)),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(largest(&mut rig), None);
        for timestamp_ms in [i64::MAX, 10, 1_700_000_000_000, 30, 1_700_000_000_000, 20] {
            rig.append(0, Acks::All, BatchBuilder::new().record(timestamp_ms, None, None).build());
            rig.run_disk();
        }
        // What is not committed does not count.
        rig.append(0, Acks::All, BatchBuilder::new().record(i64::MAX - 1, None, None).build());
        for (start, expected) in
            [(0, (0, i64::MAX)), (1, (2, 1_700_000_000_000)), (3, (4, 1_700_000_000_000)), (5, (5, 20))]
        {
            let deadline = rig.now + Duration::from_secs(1);
            rig.op(0, Op::DeleteRecords { before: Some(Offset(start)), deadline });
            let (offset, timestamp_ms) = expected;
            assert_eq!(largest(&mut rig), Some((offset, Some(timestamp_ms))), "{start} {tail_bytes_max}");
        }
        rig.run_disk();
        assert_eq!(largest(&mut rig), Some((6, Some(i64::MAX - 1))), "now it is");
    }
}

#[test]
fn a_damaged_batch_on_disk_is_refused_and_not_served() {
    let mut rig = Rig::over(BTreeMap::new(), 0);
    rig.run_disk();
    rig.assign(0, Some(NODE), 1, PartitionConfig::default());
    rig.append(0, Acks::All, batch("precious"));
    rig.run_disk();
    for data in rig.files.values_mut() {
        if let Some(at) = data.windows(8).position(|w| w == b"precious") {
            data[at] ^= 1;
        }
    }
    let token = rig.op(0, read(0, 0));
    assert_eq!(rig.error(token), Some(PartitionError::StorageFailed));
}

#[test]
fn a_deposed_leader_refuses_who_waits_and_wakes_who_watches() {
    let mut rig = led(PartitionConfig::default());
    let (watch, _) = rig.read(0, 0, 1);
    let token = rig.append(0, Acks::All, batch("a"));
    rig.assign(0, Some(NodeId(2)), 2, PartitionConfig::default());
    assert_eq!(rig.error(token), Some(PartitionError::NotLeader));
    assert!(matches!(rig.answer(watch), Some(Answer::Readable)));
    let token = rig.op(0, read(0, 0));
    assert_eq!(rig.error(token), Some(PartitionError::NotLeader));
}

#[test]
fn an_ack_is_bound_to_the_epoch_of_its_append() {
    let mut rig = led(PartitionConfig::default());
    let token = rig.append(0, Acks::All, batch("a"));
    rig.assign(0, Some(NODE), 2, PartitionConfig::default());
    assert_eq!(rig.error(token), Some(PartitionError::NotLeader));
}

#[test]
fn epochs_of_requests_are_fenced_both_ways() {
    let mut rig = led(PartitionConfig::default());
    rig.assign(0, Some(NODE), 5, PartitionConfig::default());
    for (asked, error) in [(4, PartitionError::FencedLeaderEpoch), (6, PartitionError::UnknownLeaderEpoch)] {
        let token = rig.op(0, Op::Locate { current_epoch: Some(LeaderEpoch(asked)), at: Locate::Latest });
        assert_eq!(rig.error(token), Some(error));
    }
}

#[test]
fn a_stale_delta_or_assignment_changes_nothing() {
    let mut rig = led(PartitionConfig::default());
    rig.assign(0, Some(NODE), 5, PartitionConfig::default());
    rig.revision = 1;
    rig.delta(vec![], vec![partition(0)]);
    assert_eq!(rig.applied(), [1, 2], "an old revision is dropped without a word");
    rig.assign(0, None, 6, PartitionConfig::default());
    rig.revision = 10;
    rig.assign(0, Some(NODE), 4, PartitionConfig::default());
    let token = rig.op(0, read(0, 0));
    assert_eq!(rig.error(token), None, "a lower partition epoch is refused");
}

#[test]
fn a_produce_that_the_disk_keeps_waiting_times_out() {
    let mut rig = led(PartitionConfig::default());
    let token = rig.append(0, Acks::All, batch("a"));
    rig.after(Duration::from_secs(29));
    assert!(rig.answer(token).is_none());
    rig.after(Duration::from_secs(1));
    assert_eq!(rig.error(token), Some(PartitionError::TimedOut));
}

#[test]
fn offsets_outside_the_log_are_refused_with_its_ends() {
    let mut rig = led(PartitionConfig::default());
    rig.append(0, Acks::All, batch("a"));
    rig.run_disk();
    let token = rig.op(0, read(2, 0));
    let Some(Answer::Read(Err(error))) = rig.answer(token) else { panic!("refused") };
    assert_eq!(error.error, PartitionError::OffsetOutOfRange);
    assert_eq!(error.ends.map(|e| e.high_watermark), Some(Offset(1)));
}

#[test]
fn an_operation_on_a_partition_of_another_shard_is_refused() {
    let mut rig = led(PartitionConfig::default());
    let token = rig.append(3, Acks::All, batch("a"));
    assert_eq!(rig.error(token), Some(PartitionError::NotOwned));
}

#[test]
fn a_failed_flush_ends_the_shard_and_acks_nothing() {
    let mut rig = led(PartitionConfig::default());
    let token = rig.append(0, Acks::All, batch("a"));
    let Some(DiskOp::Write { op, .. }) = rig.slow.pop_front() else { panic!("a write") };
    rig.handle(Input::Disk(DiskEvent::Written { op, result: Err(DiskError::Io(5)) }));
    assert!(rig.answer(token).is_none());
    assert!(rig.outputs.iter().any(|o| matches!(o, Output::Fatal(FatalReason::FlushFailed { .. }))));
}

#[test]
fn a_client_that_does_not_read_is_not_read_from() {
    let mut rig = led(PartitionConfig::default());
    let conn = ConnId(1);
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    rig.handle(Input::Client(ClientInput::Opened { conn, peer }));
    for _ in 0..3 {
        rig.handle(Input::Client(ClientInput::Frame { conn, frame: Bytes::from(vec![1; 60]) }));
    }
    let sent = |rig: &Rig| rig.outputs.iter().filter(|o| matches!(o, Output::Send { .. })).count();
    assert_eq!(sent(&rig), 2, "120 bytes are out, the bound is 100");
    assert!(matches!(rig.outputs.last(), Some(Output::Receive { on: false, .. })));
    rig.handle(Input::Client(ClientInput::Sent { conn, bytes: 120 }));
    assert_eq!(sent(&rig), 3, "the frame that waited is worked on");
    assert!(matches!(rig.outputs.last(), Some(Output::Receive { on: true, .. })));
}

#[test]
fn frames_wait_for_the_first_image() {
    let mut rig = Rig::new();
    rig.run_disk();
    let conn = ConnId(1);
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    rig.handle(Input::Client(ClientInput::Opened { conn, peer }));
    rig.handle(Input::Client(ClientInput::Frame { conn, frame: Bytes::from_static(b"x") }));
    assert!(!rig.outputs.iter().any(|o| matches!(o, Output::Send { .. })));
    rig.assign(0, Some(NODE), 1, PartitionConfig::default());
    assert!(rig.outputs.iter().any(|o| matches!(o, Output::Send { .. })));
}

#[test]
fn a_stop_flushes_answers_and_closes_before_it_is_confirmed() {
    let mut rig = led(replicated());
    let conn = ConnId(1);
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    rig.handle(Input::Client(ClientInput::Opened { conn, peer }));
    let token = rig.append(0, Acks::All, batch("a"));
    assert_eq!(rig.base(token), Some(0));
    rig.handle(Input::Control(FromControl::Stop { deadline: Duration::from_secs(5) }));
    let stopped = |rig: &Rig| rig.outputs.iter().any(|o| matches!(o, Output::Control(ToControl::Stopped)));
    assert!(!stopped(&rig), "the record is not on disk yet");
    rig.run_disk();
    assert!(rig.outputs.iter().any(|o| matches!(o, Output::Close { flush: true, .. })));
    assert!(!stopped(&rig), "the connection is open");
    rig.handle(Input::Client(ClientInput::Closed { conn, reason: CloseReason::Stopping }));
    assert!(stopped(&rig));
    let mut rig = Rig::over(rig.files, u64::MAX);
    rig.run_disk();
    rig.assign(0, Some(NODE), 2, replicated());
    assert_eq!(rig.read(0, 0, 0).1.expect("answered").high_watermark, Offset(1));
}

#[test]
fn what_is_taken_away_while_the_shard_stops_is_whole_in_its_next_life() {
    let mut rig = led(PartitionConfig::default());
    rig.append(0, Acks::All, batch("a"));
    rig.run_disk();
    rig.handle(Input::Control(FromControl::Stop { deadline: Duration::from_secs(5) }));
    rig.revision += 1;
    rig.delta(vec![], vec![partition(0)]);
    rig.run_disk();
    assert!(rig.outputs.iter().any(|o| matches!(o, Output::Control(ToControl::Stopped))));
    let mut rig = Rig::over(rig.files, u64::MAX);
    rig.run_disk();
    rig.assign(0, Some(NODE), 2, PartitionConfig::default());
    assert_eq!(rig.read(0, 0, 0).1.expect("answered").high_watermark, Offset(1));
    let token = rig.op(0, Op::EpochEnd { current_epoch: None, epoch: LeaderEpoch(1) });
    let Some(Answer::EpochEnd(Ok(Some(end)))) = rig.answer(token) else { panic!("epoch 1 is known") };
    assert_eq!((end.epoch, end.end), (LeaderEpoch(1), Offset(1)));
}

#[test]
fn a_removed_partition_answers_who_waited_and_its_name_can_be_used_again() {
    let mut rig = led(PartitionConfig::default());
    let token = rig.append(0, Acks::All, batch("a"));
    rig.revision += 1;
    rig.delta(vec![], vec![partition(0)]);
    assert_eq!(rig.error(token), Some(PartitionError::NotLeader));
    rig.run_disk();
    rig.assign(1, Some(NODE), 1, PartitionConfig::default());
    let token = rig.append(1, Acks::All, batch("b"));
    rig.run_disk();
    assert_eq!(rig.base(token), Some(0));
}
