//! The trace of a run: a hash over every input and output of every machine, and on request the events in words.
//!
//! Two runs of one seed must have the same hash; where they differ, something outside the seed was read.

use std::fmt::Write as _;

use bytes::Bytes;
use highwater_shards::front::Front;
use highwater_shards::ids::{PartitionId, ShardId};
use highwater_shards::log::disk::{DiskEvent, DiskOp, FileName, SegmentName};
use highwater_shards::mail::{Answer, FromControl, Op, ShardMail, ToControl};
use highwater_shards::shard::{ClientInput, Input, Output, PeerInput};
use highwater_shards::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    events: u64,
    print: bool,
    line: String,
}

impl Trace {
    pub fn new(print: bool) -> Self {
        Self { print, ..Self::default() }
    }

    /// Over everything so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Inputs and outputs so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    pub fn input<F: Front>(&mut self, now: Instant, shard: ShardId, input: &Input<F>) {
        self.begin(now, shard, "<-");
        match input {
            Input::Timeout => self.word("timeout", &[]),
            Input::Control(m) => self.told_shard(m),
            Input::Mail(m) => self.mail(m),
            Input::Client(c) => match c {
                ClientInput::Opened { conn, .. } => self.word("opened", &[conn.0]),
                ClientInput::Frame { conn, frame } => {
                    self.word("frame", &[conn.0]);
                    self.bytes(frame);
                }
                ClientInput::Sent { conn, bytes } => self.word("sent", &[conn.0, *bytes as u64]),
                ClientInput::Closed { conn, reason } => self.word("closed", &[conn.0, *reason as u64]),
            },
            Input::Peer(p) => match p {
                PeerInput::Opened { conn, node, epoch, .. } => {
                    self.word("peer opened", &[conn.0, u64::from(node.0), epoch.0]);
                }
                PeerInput::Frame { conn, frame } => {
                    self.word("peer frame", &[conn.0]);
                    self.bytes(frame);
                }
                PeerInput::Sent { conn, bytes } => self.word("peer sent", &[conn.0, *bytes as u64]),
                PeerInput::Closed { conn, reason } => self.word("peer closed", &[conn.0, *reason as u64]),
                PeerInput::DialFailed { node, shard } => {
                    self.word("dial failed", &[u64::from(node.0), u64::from(shard.0)]);
                }
            },
            Input::Disk(event) => self.disk_event(event),
        }
        self.end();
    }

    pub fn output<F: Front>(&mut self, now: Instant, shard: ShardId, output: &Output<F>) {
        self.begin(now, shard, "->");
        match output {
            Output::Control(m) => self.told_control(m),
            Output::Mail { to, mail } => {
                self.word("to shard", &[u64::from(to.0)]);
                self.mail(mail);
            }
            Output::Send { conn, parts } => {
                self.word("send", &[conn.0]);
                parts.iter().for_each(|p| self.bytes(p));
            }
            Output::Receive { conn, on } => self.word("receive", &[conn.0, u64::from(*on)]),
            Output::Close { conn, flush, reason } => {
                self.word("close", &[conn.0, u64::from(*flush), *reason as u64]);
            }
            Output::Disk(op) => self.disk_op(op),
            Output::Fatal(reason) => {
                self.word("fatal", &[]);
                self.text(&reason.to_string());
            }
        }
        self.end();
    }

    /// Something that the world did, such as a crash.
    pub fn note(&mut self, now: Instant, what: &str) {
        self.mix(now.as_nanos());
        self.mix(xxh3_64(what.as_bytes()));
        if self.print {
            println!("{:>13.6} ms  ** {what}", millis(now));
        }
    }

    /// Something that is no part of the run's identity.
    pub fn story(&self, now: Instant, line: &str) {
        println!("{:>13.6} ms     {line}", millis(now));
    }

    fn begin(&mut self, now: Instant, shard: ShardId, arrow: &str) {
        self.events += 1;
        self.mix(now.as_nanos());
        self.mix(u64::from(shard.0) << 8 | u64::from(arrow.as_bytes()[0]));
        if self.print {
            self.line.clear();
            let _ = write!(self.line, "{:>13.6} ms  shard {shard} {arrow}", millis(now));
        }
    }

    fn end(&self) {
        if self.print {
            println!("{}", self.line);
        }
    }

    fn mix(&mut self, x: u64) {
        self.hash = (self.hash.rotate_left(5) ^ x).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.hash ^= self.hash >> 29;
    }

    fn word(&mut self, word: &'static str, numbers: &[u64]) {
        self.mix(word.len() as u64 ^ u64::from(word.as_bytes()[0]) << 8);
        for &n in numbers {
            self.mix(n);
        }
        if self.print {
            let _ = write!(self.line, " {word}");
            for n in numbers {
                let _ = write!(self.line, " {n}");
            }
        }
    }

    fn text(&mut self, text: &str) {
        self.mix(xxh3_64(text.as_bytes()));
        if self.print {
            let _ = write!(self.line, " {text}");
        }
    }

    fn bytes(&mut self, bytes: &Bytes) {
        let hash = xxh3_64(bytes);
        self.mix(hash);
        if self.print {
            let _ = write!(self.line, " [{} bytes {:04x}]", bytes.len(), hash >> 48);
        }
    }

    fn partition(&mut self, id: PartitionId) {
        self.mix(id.topic.0 as u64 ^ (id.topic.0 >> 64) as u64);
        self.mix(u64::from(id.index.0));
        if self.print {
            let _ = write!(self.line, " {:x}/{}", id.topic.0, id.index);
        }
    }

    fn told_shard<V, R: std::fmt::Debug>(&mut self, m: &FromControl<V, R>) {
        match m {
            FromControl::Delta { revision, assign, unassign, .. } => {
                self.word("delta", &[revision.0]);
                for a in assign {
                    self.partition(a.partition);
                    let leader = a.leader.map_or(0, |l| u64::from(l.0));
                    let epochs = [u64::from(a.leader_epoch.0), u64::from(a.partition_epoch.0)];
                    self.word("epochs", &epochs);
                    let isr = [leader, a.isr.len() as u64, u64::from(a.config.isr_min)];
                    self.word("leader, isr, min", &isr);
                }
                for &p in unassign {
                    self.word("unassign", &[]);
                    self.partition(p);
                }
            }
            FromControl::Reply { conn, token, reply } => {
                self.word("reply", &[conn.0, token.0]);
                self.text(&format!("{reply:?}"));
            }
            FromControl::Nodes(nodes) => self.text(&format!("nodes {nodes:?}")),
            FromControl::IsrRefused { partition, partition_epoch, refusal } => {
                self.partition(*partition);
                self.text(&format!("isr refused at {partition_epoch}: {refusal:?}"));
            }
            FromControl::Lease { until } => self.text(&format!("lease until {until:?}")),
            FromControl::Stats { id } => self.word("stats", &[*id]),
            FromControl::Stop { .. } => self.word("stop", &[]),
        }
    }

    fn told_control<Q: std::fmt::Debug>(&mut self, m: &ToControl<Q>) {
        match m {
            ToControl::Recovered { partitions } => {
                self.word("recovered", &[]);
                partitions.iter().for_each(|&p| self.partition(p));
            }
            ToControl::Applied { revision } => self.word("applied", &[revision.0]),
            ToControl::Request { conn, token, request } => {
                self.word("request", &[conn.0, token.0]);
                self.text(&format!("{request:?}"));
            }
            ToControl::AlterIsr { changes } => self.text(&format!("alter {changes:?}")),
            ToControl::Dial { node, shard } => self.word("dial", &[u64::from(node.0), u64::from(shard.0)]),
            ToControl::Stats { id, .. } => self.word("stats", &[*id]),
            ToControl::Stopped => self.word("stopped", &[]),
        }
    }

    fn mail(&mut self, m: &ShardMail) {
        match m {
            ShardMail::Op { reply_to, partition, op } => {
                self.word("op for", &[u64::from(reply_to.shard.0), reply_to.conn.0, reply_to.token.0]);
                self.partition(*partition);
                match op {
                    Op::Append { records, .. } => {
                        self.word("append", &[]);
                        self.bytes(records);
                    }
                    Op::Read { offset, bytes_max, watch_below_bytes, .. } => {
                        self.word("read", &[offset.0, u64::from(*bytes_max), u64::from(*watch_below_bytes)]);
                    }
                    Op::Unwatch => self.word("unwatch", &[]),
                    Op::Locate { .. } => self.word("locate", &[]),
                    Op::EpochEnd { epoch, .. } => self.word("epoch end", &[u64::from(epoch.0)]),
                    Op::DeleteRecords { before, .. } => {
                        self.word("delete", &[before.map_or(u64::MAX, |before| before.0)]);
                    }
                }
            }
            ShardMail::Answer { conn, token, answer } => {
                self.word("answer", &[conn.0, token.0]);
                match answer {
                    Answer::Appended(Ok(a)) => self.word("appended", &[a.base_offset.0]),
                    Answer::Appended(Err(e)) => self.text(&e.to_string()),
                    Answer::Read(Ok(r)) => {
                        self.word("read", &[r.high_watermark.0, r.log_start.0, u64::from(r.watching)]);
                        r.records.iter().for_each(|p| self.bytes(p));
                    }
                    Answer::Read(Err(e)) => self.text(&e.error.to_string()),
                    Answer::Readable => self.word("readable", &[]),
                    Answer::Located(Ok(l)) => self.word("located", &[l.map_or(u64::MAX, |l| l.offset.0)]),
                    Answer::Located(Err(e)) | Answer::EpochEnd(Err(e)) | Answer::Deleted(Err(e)) => {
                        self.text(&e.to_string())
                    }
                    Answer::Deleted(Ok(start)) => self.word("deleted", &[start.0]),
                    Answer::EpochEnd(Ok(e)) => self.word("epoch end", &[e.map_or(u64::MAX, |e| e.end.0)]),
                }
            }
        }
    }

    fn disk_op(&mut self, op: &DiskOp) {
        match op {
            DiskOp::List { op } => self.word("disk list", &[op.0]),
            DiskOp::Prepare { op, file, size } => self.word("disk prepare", &[op.0, file.0, *size]),
            DiskOp::Recycle { op, from, to } => self.word("disk recycle", &[op.0, from.0, to.0]),
            DiskOp::Write { op, file, position, parts, sync } => {
                self.word("disk write", &[op.0, file.0, *position, u64::from(*sync)]);
                parts.iter().for_each(|p| self.bytes(p));
            }
            DiskOp::Put { op, file, position, parts } => {
                self.word("disk put", &[op.0, *position]);
                self.file(*file);
                parts.iter().for_each(|p| self.bytes(p));
            }
            DiskOp::Sync { op, file } => {
                self.word("disk sync", &[op.0]);
                self.file(*file);
            }
            DiskOp::SyncFolder { op, partition } => {
                self.word("disk sync folder", &[op.0]);
                self.partition(*partition);
            }
            DiskOp::Read { op, file, position, len } => {
                self.word("disk read", &[op.0, *position, u64::from(*len)]);
                self.file(*file);
            }
            DiskOp::Replace { op, file, parts } => {
                self.word("disk replace", &[op.0]);
                self.file(*file);
                parts.iter().for_each(|p| self.bytes(p));
            }
            DiskOp::Load { op, file } => {
                self.word("disk load", &[op.0]);
                self.file(*file);
            }
            DiskOp::Cut { op, file, len } => {
                self.word("disk cut", &[op.0, *len]);
                self.file(*file);
            }
            DiskOp::Remove { op, file } => {
                self.word("disk remove", &[op.0]);
                self.file(*file);
            }
            DiskOp::RemoveFolder { op, partition } => {
                self.word("disk remove folder", &[op.0]);
                self.partition(*partition);
            }
            DiskOp::ListFolder { op, partition } => {
                self.word("disk list folder", &[op.0]);
                self.partition(*partition);
            }
            DiskOp::ListFolders { op } => self.word("disk list folders", &[op.0]),
        }
    }

    fn file(&mut self, file: FileName) {
        match file {
            FileName::Journal(file) => self.word("journal", &[file.0]),
            FileName::Checkpoint => self.word("checkpoint", &[]),
            FileName::Segment(name) => self.segment("segment", name),
            FileName::Index(name) => self.segment("index", name),
        }
    }

    fn segment(&mut self, word: &'static str, name: SegmentName) {
        self.word(word, &[name.base.0, u64::from(name.generation)]);
        self.partition(name.partition);
    }

    fn disk_event(&mut self, event: &DiskEvent) {
        let error = match event {
            DiskEvent::Listed { op, result } => {
                self.word("disk listed", &[op.0]);
                for &(file, size) in result.iter().flatten() {
                    self.word("file", &[file.0, size]);
                }
                result.as_ref().err()
            }
            DiskEvent::Prepared { op, result } => {
                self.word("disk prepared", &[op.0]);
                result.as_ref().err()
            }
            DiskEvent::Written { op, result } => {
                self.word("disk written", &[op.0]);
                result.as_ref().err()
            }
            DiskEvent::Synced { op, result } => {
                self.word("disk synced", &[op.0]);
                result.as_ref().err()
            }
            DiskEvent::Read { op, result } => {
                self.word("disk has read", &[op.0]);
                if let Ok(bytes) = result {
                    self.bytes(bytes);
                }
                result.as_ref().err()
            }
            DiskEvent::Loaded { op, result } => {
                self.word("disk loaded", &[op.0]);
                if let Ok(Some(bytes)) = result {
                    self.bytes(bytes);
                }
                result.as_ref().err()
            }
            DiskEvent::Done { op, result } => {
                self.word("disk done", &[op.0]);
                result.as_ref().err()
            }
            DiskEvent::FolderListed { op, result } => {
                self.word("disk folder listed", &[op.0]);
                for &(file, size) in result.iter().flatten() {
                    self.word("file", &[size]);
                    self.file(file);
                }
                result.as_ref().err()
            }
            DiskEvent::FoldersListed { op, result } => {
                self.word("disk folders listed", &[op.0]);
                result.iter().flatten().for_each(|&p| self.partition(p));
                result.as_ref().err()
            }
        };
        if let Some(e) = error {
            self.text(&e.to_string());
        }
    }
}

fn millis(now: Instant) -> f64 {
    now.since(Instant::ZERO).as_secs_f64() * 1000.0
}
