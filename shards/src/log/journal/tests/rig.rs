//! A journal on the model disk, and what it must hold.

use bytes::BytesMut;

use super::super::*;
use super::model::{Disk, Random};
use crate::batch::{BatchBuilder, put_patched};
use crate::ids::{PartitionIndex, TopicId};

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

/// What was appended and not cut off since.
#[derive(Clone, PartialEq, Eq)]
pub struct Logged {
    pub partition: PartitionId,
    pub base: u64,
    pub bytes: Bytes,
    pub at: LogPosition,
}

impl std::fmt::Debug for Logged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} ({} bytes at {:?})", self.partition.index, self.base, self.bytes.len(), self.at)
    }
}

/// A journal on a model disk, and what it must hold.
pub struct Rig {
    pub config: JournalConfig,
    pub now: Instant,
    pub journal: Journal,
    pub disk: Disk,
    pub log: Vec<Logged>,
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
        let partition = PartitionId { topic: TopicId(9), index: PartitionIndex((self.appended % 3) as u32) };
        let base = self.appended * 10;
        let epoch = LeaderEpoch(4);
        let placed = self.journal.append(self.now, partition, Offset(base), epoch, batch, urgency)?;
        let mut patched = BytesMut::new();
        put_patched(&mut patched, batch, Offset(base), epoch);
        assert_eq!(placed.bytes, patched);
        self.log.push(Logged { partition, base, bytes: placed.bytes, at: placed.at });
        match self.markers.last_mut() {
            Some((marker, upto)) if *marker == placed.marker => *upto = self.log.len(),
            last => {
                assert!(last.is_none_or(|(marker, _)| *marker < placed.marker));
                self.markers.push((placed.marker, self.log.len()));
            }
        }
        Ok(placed.marker)
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
                JournalEvent::Replayed { partition, header, base, at, bytes, .. } => {
                    assert!(self.report.is_none());
                    assert_eq!(header.len as usize, bytes.len());
                    self.replayed.push(Logged { partition, base: base.0, bytes, at });
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
            self.disk.submit(op);
        }
        self.drain_events();
        if let Some(at) = self.journal.poll_timeout() {
            let busy = at <= self.now;
            // A deadline that has passed without anything to do would make the driver spin.
            assert!(!busy || !self.disk.in_flight.is_empty(), "due at {at:?}, now {:?}", self.now);
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
        self.journal = Journal::new(self.config, JournalStart::Begin);
        self.markers.clear();
        self.replayed.clear();
        self.report = None;
        self.fatal = None;
        self.others.clear();
    }

    /// After recovery: what was replayed is a prefix of what was appended, and holds all that was flushed.
    pub fn settle_life(&mut self) {
        assert!(self.report.is_some());
        let n = self.replayed.len();
        assert!(n >= self.flushed, "{n} replayed, {} were flushed", self.flushed);
        assert!(n <= self.log.len(), "{n} replayed, {} were appended", self.log.len());
        for (replayed, logged) in self.replayed.iter().zip(&self.log) {
            assert_eq!(replayed, logged);
        }
        assert_eq!(self.report.unwrap().batches as usize, n);
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
