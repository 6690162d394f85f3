//! A journal on the model disk, and what it must hold.

use std::collections::BTreeMap;

use bytes::BytesMut;

use super::super::*;
use super::model::Disk;
use crate::batch::{BatchBuilder, put_patched};
use crate::ids::{PartitionIndex, TopicId};
use crate::log::chunk::ChunkHeader;
use crate::log::random::Random;

pub const SEC: u64 = SECTOR as u64;

pub fn config() -> JournalConfig {
    JournalConfig {
        file_bytes: 16 * SEC,
        batch_bytes_max: 5 * SECTOR,
        chunk_bytes_max: 2 * SECTOR,
        flush_interval: Duration::from_millis(10),
        backlog_bytes_max: 1 << 20,
        ..JournalConfig::new(ShardId(3), 0xfeed)
    }
}

/// What was appended and not cut off since: a batch, or a note, which has no bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Logged {
    pub partition: PartitionId,
    pub lsn: Lsn,
    pub base: u64,
    pub bytes: Bytes,
    pub note: Option<Note>,
}

/// A checkpoint that is durable.
#[derive(Clone, Copy, Debug)]
pub struct Saved {
    pub resume: Resume,
    pub journal: u64,
    pub incarnation: u64,
}

impl Saved {
    /// Of the first chunk that is replayed from it.
    fn sequence(self) -> u64 {
        match self.resume {
            Resume::From { sequence, .. } | Resume::Clean { sequence, .. } => sequence,
        }
    }
}

impl std::fmt::Debug for Logged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { partition, lsn, base, bytes, note } = self;
        write!(f, "{} {base} ({} bytes, {note:?}, {}.{})", partition.index, bytes.len(), lsn.chunk, lsn.entry)
    }
}

/// A journal on a model disk, and what it must hold.
pub struct Rig {
    pub config: JournalConfig,
    pub now: Instant,
    pub journal: Journal,
    pub disk: Disk,
    pub log: Vec<Logged>,
    /// Where the chunks are that were written, by sequence.
    pub chunk_at: BTreeMap<u64, LogPosition>,
    pub saved: Option<Saved>,
    /// Of the next life: the checkpoint is missing.
    pub is_checkpoint_lost: bool,
    /// The oldest chunk that was not released.
    pub released: u64,
    /// Bytes that were read in this life.
    pub read_bytes: u64,
    /// Chunks of `log` of this life, with the length of `log` at their end.
    pub markers: Vec<(Marker, usize)>,
    /// So many of `log` were reported flushed, or replayed as such.
    pub flushed: usize,
    pub replayed: Vec<Logged>,
    pub report: Option<RecoveryReport>,
    pub fatal: Option<FatalReason>,
    pub others: Vec<JournalEvent>,
    pub appended: u64,
    /// Batches differ in their first bytes only; otherwise no two of their sectors are alike.
    pub alike: bool,
}

impl Rig {
    pub fn new(config: JournalConfig) -> Self {
        Self::on(config, Disk::default())
    }

    pub fn on(config: JournalConfig, disk: Disk) -> Self {
        Self {
            config,
            now: Instant::ZERO,
            journal: Journal::new(config, JournalStart::Begin),
            disk,
            log: Vec::new(),
            chunk_at: BTreeMap::new(),
            saved: None,
            is_checkpoint_lost: false,
            released: 0,
            read_bytes: 0,
            markers: Vec::new(),
            flushed: 0,
            replayed: Vec::new(),
            report: None,
            fatal: None,
            others: Vec::new(),
            appended: 0,
            alike: false,
        }
    }

    /// A journal that is running, with its two files prepared.
    pub fn running() -> Self {
        let mut rig = Self::new(config());
        rig.run();
        assert!(rig.report.is_some());
        rig
    }

    pub fn batch(&mut self, len: usize) -> Bytes {
        self.appended += 1;
        let mut value: Vec<_> = self.appended.to_be_bytes().into_iter().cycle().take(len).collect();
        if self.alike {
            value[8.min(len)..].fill(b'.');
        }
        BatchBuilder::new().record(1, None, Some(&value)).build()
    }

    pub fn append(&mut self, len: usize, urgency: Urgency) -> Result<Marker, AppendRefused> {
        let batch = self.batch(len);
        self.append_batch(&batch, urgency)
    }

    pub fn append_batch(&mut self, batch: &Bytes, urgency: Urgency) -> Result<Marker, AppendRefused> {
        let base = self.appended * 10;
        let epoch = LeaderEpoch(4);
        let partition = self.partition();
        let placed = self.journal.append(self.now, partition, Offset(base), epoch, batch, urgency)?;
        let mut patched = BytesMut::new();
        put_patched(&mut patched, batch, Offset(base), epoch);
        assert_eq!(placed.bytes, patched);
        let lsn = placed.lsn;
        self.logged(Logged { partition, lsn, base, bytes: placed.bytes, note: None }, placed.marker);
        Ok(placed.marker)
    }

    fn partition(&self) -> PartitionId {
        PartitionId { topic: TopicId(9), index: PartitionIndex((self.appended % 3) as u32) }
    }

    pub fn note(&mut self, note: Note, urgency: Urgency) -> Result<Marker, AppendRefused> {
        self.appended += 1;
        let partition = self.partition();
        let Noted { marker, lsn } = self.journal.note(self.now, partition, note, urgency)?;
        self.logged(Logged { partition, lsn, base: 0, bytes: Bytes::new(), note: Some(note) }, marker);
        Ok(marker)
    }

    fn logged(&mut self, logged: Logged, marker: Marker) {
        assert_eq!((marker.0, self.journal.last_lsn()), (logged.lsn.chunk, logged.lsn));
        assert!(self.log.last().is_none_or(|last| last.lsn < logged.lsn));
        self.log.push(logged);
        match self.markers.last_mut() {
            Some((last, upto)) if *last == marker => *upto = self.log.len(),
            last => {
                assert!(last.is_none_or(|(last, _)| *last < marker));
                self.markers.push((marker, self.log.len()));
            }
        }
    }

    /// Where the chunk of an entry was written.
    pub fn at(&self, entry: usize) -> LogPosition {
        self.chunk_at[&self.log[entry].lsn.chunk]
    }

    /// A checkpoint by which everything before `lsn` is in segments is durable.
    pub fn save(&mut self, lsn: Lsn) -> Resume {
        let resume = self.journal.resume_from(lsn).unwrap();
        self.save_resume(resume);
        resume
    }

    /// A checkpoint from any place behind the last one on.
    pub fn save_somewhere(&mut self, random: &mut Random) {
        let from = self.saved.map_or(0, Saved::sequence);
        let from = self.log.partition_point(|l| l.lsn.chunk < from);
        let lsn = self.log.get(from + random.below(self.log.len() - from + 1)).map(|l| l.lsn);
        self.save(lsn.unwrap_or(self.journal.last_lsn()));
    }

    fn save_resume(&mut self, resume: Resume) {
        let (journal, incarnation) = (self.journal.journal_id(), self.journal.incarnation());
        self.saved = Some(Saved { resume, journal, incarnation });
    }

    /// The files that the checkpoint does not need are given up.
    pub fn release(&mut self) {
        let saved = self.saved.expect("a checkpoint was made");
        self.journal.release(saved.resume);
        self.released = self.released.max(saved.sequence());
    }

    /// Ends in order, with everything in segments.
    pub fn stop_clean(&mut self) {
        self.stop();
        let (end, sequence) = self.journal.end().unwrap();
        self.save_resume(Resume::Clean { end, sequence });
        assert_eq!(self.flushed, self.log.len());
    }

    pub fn sync(&mut self, len: usize) -> Marker {
        self.append(len, Urgency::Sync).unwrap()
    }

    pub fn lazy(&mut self, len: usize) -> Marker {
        self.append(len, Urgency::Lazy).unwrap()
    }

    pub fn drain_events(&mut self) {
        while let Some(event) = self.journal.poll_event() {
            assert!(self.fatal.is_none(), "{event:?} after the end");
            match event {
                JournalEvent::Replayed { partition, header, base, lsn, bytes } => {
                    assert!(self.report.is_none());
                    assert_eq!(header.len as usize, bytes.len());
                    self.replayed.push(Logged { partition, lsn, base: base.0, bytes, note: None });
                }
                JournalEvent::ReplayedNote { partition, note, lsn } => {
                    assert!(self.report.is_none());
                    let bytes = Bytes::new();
                    self.replayed.push(Logged { partition, lsn, base: 0, bytes, note: Some(note) });
                }
                JournalEvent::Recovered(report) => self.report = Some(report),
                JournalEvent::Flushed { upto } => {
                    let upto = self
                        .markers
                        .iter()
                        .rev()
                        .find(|&&(m, _)| m <= upto)
                        .map_or(self.flushed, |&(_, n)| n);
                    assert!(upto >= self.flushed);
                    self.flushed = upto;
                }
                JournalEvent::Fatal(reason) => self.fatal = Some(reason),
                other => self.others.push(other),
            }
        }
    }

    /// Drains events and hands operations to the disk.
    pub fn poll(&mut self) {
        self.drain_events();
        while let Some(op) = self.journal.poll_op(self.now) {
            self.observe(&op);
            self.disk.submit(op);
        }
        self.drain_events();
        if let Some(at) = self.journal.poll_timeout() {
            let busy = at <= self.now;
            // A deadline that has passed without anything to do would make the driver spin.
            assert!(!busy || !self.disk.in_flight.is_empty(), "due at {at:?}, now {:?}", self.now);
        }
    }

    fn observe(&mut self, op: &DiskOp) {
        match op {
            DiskOp::Read { len, .. } => self.read_bytes += u64::from(*len),
            DiskOp::Write { file, position, parts, .. } => {
                let sector: Vec<u8> = parts.iter().flatten().copied().take(2 * SECTOR).collect();
                let lead = if &sector[..4] == b"HWJF" { SECTOR } else { 0 };
                let header = ChunkHeader::parse(&sector[lead..]).expect("each write is of one chunk");
                let at = LogPosition { file: *file, position: position + lead as u64 };
                assert_eq!((header.file, header.position), (at.file, at.position));
                self.chunk_at.insert(header.sequence, at);
            }
            _ => {}
        }
    }

    pub fn give(&mut self, event: DiskEvent) {
        self.journal.handle(self.now, event);
        self.drain_events();
    }

    /// Ends the operation at `index` of those in flight.
    pub fn complete(&mut self, index: usize) {
        let event = self.disk.complete(index);
        self.give(event);
    }

    /// Runs until nothing is left to do at this instant.
    pub fn run(&mut self) {
        self.poll();
        while !self.disk.in_flight.is_empty() {
            self.complete(0);
            self.poll();
        }
    }

    pub fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.journal.handle_timeout(self.now);
        self.poll();
    }

    /// The operations in flight in short: their kind, with `+` for a write with sync.
    pub fn doing(&self) -> String {
        let mut kinds: Vec<_> = self
            .disk
            .in_flight
            .iter()
            .map(|f| match &f.op {
                DiskOp::List { .. } => "list",
                DiskOp::Prepare { .. } => "prepare",
                DiskOp::Recycle { .. } => "recycle",
                DiskOp::Remove { .. } => "remove",
                DiskOp::Write { sync: false, .. } => "write",
                DiskOp::Write { sync: true, .. } => "write+",
                DiskOp::Sync { .. } => "sync",
                DiskOp::Read { .. } => "read",
                _ => "other",
            })
            .collect();
        kinds.sort_unstable();
        kinds.join(" ")
    }

    /// Ends the first operation in flight of this kind.
    pub fn complete_kind(&mut self, kind: &str) {
        let index = self.index_of(kind);
        self.complete(index);
        self.poll();
    }

    pub fn index_of(&self, kind: &str) -> usize {
        let is = |op: &DiskOp| match op {
            DiskOp::List { .. } => kind == "list",
            DiskOp::Prepare { .. } => kind == "prepare",
            DiskOp::Recycle { .. } => kind == "recycle",
            DiskOp::Remove { .. } => kind == "remove",
            DiskOp::Write { sync, .. } => kind == if *sync { "write+" } else { "write" },
            DiskOp::Sync { .. } => kind == "sync",
            DiskOp::Read { .. } => kind == "read",
            _ => false,
        };
        self.disk
            .in_flight
            .iter()
            .position(|f| is(&f.op))
            .unwrap_or_else(|| panic!("no {kind}: {}", self.doing()))
    }

    /// The next life of the journal on the same disk; recovers with no trouble.
    pub fn restart(&mut self) {
        self.begin_life();
        self.run();
        assert_eq!(self.fatal, None);
        self.settle_life();
    }

    pub fn begin_life(&mut self) {
        assert!(self.disk.in_flight.is_empty());
        let saved = self.saved.filter(|_| !self.is_checkpoint_lost);
        // Files before the checkpoint are given up by the life that begins with it.
        self.released = self.released.max(saved.map_or(0, Saved::sequence));
        let start = saved.map_or(JournalStart::Begin, |Saved { resume, journal, incarnation }| {
            JournalStart::At { resume, journal, incarnation }
        });
        self.journal = Journal::new(self.config, start);
        self.read_bytes = 0;
        self.markers.clear();
        self.replayed.clear();
        self.report = None;
        self.fatal = None;
        self.others.clear();
    }

    /// After recovery: what was replayed is what was appended from the checkpoint on, and holds all that was flushed.
    /// Without a checkpoint it may begin earlier, but not behind what was released.
    pub fn settle_life(&mut self) {
        let report = self.report.unwrap();
        let first_of = |sequence| self.log.partition_point(|l| l.lsn.chunk < sequence);
        let begin = match (self.saved, self.replayed.first()) {
            (Some(saved), _) if !self.is_checkpoint_lost => first_of(saved.sequence()),
            (_, Some(first)) => first_of(first.lsn.chunk),
            (_, None) => first_of(self.released).max(self.flushed),
        };
        assert!(!self.is_checkpoint_lost || begin <= first_of(self.released).max(self.flushed));
        let n = begin + self.replayed.len();
        assert!(n >= self.flushed, "{n} replayed, {} were flushed", self.flushed);
        assert!(n <= self.log.len(), "{n} replayed, {} were appended", self.log.len());
        for (replayed, logged) in self.replayed.iter().zip(&self.log[begin..]) {
            assert_eq!(replayed, logged);
        }
        assert_eq!((report.batches + report.notes) as usize, self.replayed.len());
        if let Some(saved) = self.saved {
            assert_eq!(self.journal.journal_id(), saved.journal);
            assert!(self.is_checkpoint_lost || self.journal.incarnation() > saved.incarnation);
        }
        self.log.truncate(n);
        self.flushed = n;
    }

    pub fn lose_power(&mut self, seed: u64) {
        self.disk.lose_power(&mut Random(seed));
    }

    /// All in-flight writes are lost.
    pub fn lose_in_flight(&mut self) {
        self.disk.in_flight.clear();
    }

    pub fn stop(&mut self) {
        self.journal.stop();
        self.run();
        assert!(matches!(self.others.last(), Some(JournalEvent::Stopped)), "{:?}", self.others);
    }
}

pub fn big() -> JournalConfig {
    JournalConfig { file_bytes: 4 << 20, chunk_bytes_max: 1 << 20, ..config() }
}
