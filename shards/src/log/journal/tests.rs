use bytes::BytesMut;

use super::model::{Disk, Random, op_no};
use super::*;
use crate::batch::{BatchBuilder, put_patched};
use crate::ids::{PartitionIndex, TopicId};

const SEC: u64 = SECTOR as u64;

fn config() -> JournalConfig {
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
struct Logged {
    partition: PartitionId,
    base: u64,
    bytes: Bytes,
    at: LogPosition,
}

impl std::fmt::Debug for Logged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} ({} bytes at {:?})", self.partition.index, self.base, self.bytes.len(), self.at)
    }
}

/// A journal on a model disk, and what it must hold.
struct Rig {
    config: JournalConfig,
    now: Instant,
    journal: Journal,
    disk: Disk,
    log: Vec<Logged>,
    /// Chunks of `log` of this life, with the length of `log` at their end.
    markers: Vec<(Marker, usize)>,
    /// So many of `log` were reported flushed, or replayed as such.
    flushed: usize,
    replayed: Vec<Logged>,
    report: Option<RecoveryReport>,
    fatal: Option<FatalReason>,
    others: Vec<JournalEvent>,
    appended: u64,
    /// Batches differ in their first bytes only; otherwise no two of their sectors are alike.
    alike: bool,
}

impl Rig {
    fn new(config: JournalConfig) -> Self {
        Self::on(config, Disk::default())
    }

    fn on(config: JournalConfig, disk: Disk) -> Self {
        Self {
            config,
            now: Instant::ZERO,
            journal: Journal::new(config),
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
    fn running() -> Self {
        let mut rig = Self::new(config());
        rig.run();
        assert!(rig.report.is_some());
        rig
    }

    fn batch(&mut self, len: usize) -> Bytes {
        self.appended += 1;
        let mut value: Vec<_> = self.appended.to_be_bytes().into_iter().cycle().take(len).collect();
        if self.alike {
            value[8.min(len)..].fill(b'.');
        }
        BatchBuilder::new().record(1, None, Some(&value)).build()
    }

    fn append(&mut self, len: usize, urgency: Urgency) -> Result<Marker, AppendRefused> {
        let batch = self.batch(len);
        self.append_batch(&batch, urgency)
    }

    fn append_batch(&mut self, batch: &Bytes, urgency: Urgency) -> Result<Marker, AppendRefused> {
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

    fn sync(&mut self, len: usize) -> Marker {
        self.append(len, Urgency::Sync).unwrap()
    }

    fn lazy(&mut self, len: usize) -> Marker {
        self.append(len, Urgency::Lazy).unwrap()
    }

    fn drain_events(&mut self) {
        while let Some(event) = self.journal.poll_event() {
            assert!(self.fatal.is_none(), "{event:?} after the end");
            match event {
                JournalEvent::Replayed { partition, header, base, at, bytes } => {
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
    fn poll(&mut self) {
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

    fn give(&mut self, event: DiskEvent) {
        self.journal.handle(self.now, event);
        self.drain_events();
    }

    /// Ends the operation at `index` of those in flight.
    fn complete(&mut self, index: usize) {
        let event = self.disk.complete(index);
        self.give(event);
    }

    /// Runs until nothing is left to do at this instant.
    fn run(&mut self) {
        self.poll();
        while !self.disk.in_flight.is_empty() {
            self.complete(0);
            self.poll();
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.journal.handle_timeout(self.now);
        self.poll();
    }

    /// The operations in flight in short: their kind, with `+` for a write with sync.
    fn doing(&self) -> String {
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
            })
            .collect();
        kinds.sort_unstable();
        kinds.join(" ")
    }

    /// Ends the first operation in flight of this kind.
    fn complete_kind(&mut self, kind: &str) {
        let index = self.index_of(kind);
        self.complete(index);
        self.poll();
    }

    fn index_of(&self, kind: &str) -> usize {
        let is = |op: &DiskOp| match op {
            DiskOp::List { .. } => kind == "list",
            DiskOp::Prepare { .. } => kind == "prepare",
            DiskOp::Write { sync, .. } => kind == if *sync { "write+" } else { "write" },
            DiskOp::Sync { .. } => kind == "sync",
            DiskOp::Read { .. } => kind == "read",
        };
        self.disk
            .in_flight
            .iter()
            .position(|f| is(&f.op))
            .unwrap_or_else(|| panic!("no {kind}: {}", self.doing()))
    }

    /// The next life of the journal on the same disk; recovers with no trouble.
    fn restart(&mut self) {
        self.begin_life();
        self.run();
        assert_eq!(self.fatal, None);
        self.settle_life();
    }

    fn begin_life(&mut self) {
        assert!(self.disk.in_flight.is_empty());
        self.journal = Journal::new(self.config);
        self.markers.clear();
        self.replayed.clear();
        self.report = None;
        self.fatal = None;
        self.others.clear();
    }

    /// After recovery: what was replayed is a prefix of what was appended, and holds all that was flushed.
    fn settle_life(&mut self) {
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

    fn lose_power(&mut self, seed: u64) {
        self.disk.lose_power(&mut Random(seed));
    }

    /// All in-flight writes are lost.
    fn lose_in_flight(&mut self) {
        self.disk.in_flight.clear();
    }

    fn stop(&mut self) {
        self.journal.stop();
        self.run();
        assert!(matches!(self.others.last(), Some(JournalEvent::Stopped)), "{:?}", self.others);
    }
}

#[test]
fn sync_append_is_one_synced_write_and_flushed_after_it() {
    let mut rig = Rig::running();
    rig.sync(100);
    rig.poll();
    assert_eq!((rig.doing().as_str(), rig.flushed), ("write+", 0));
    rig.complete_kind("write+");
    assert_eq!((rig.doing().as_str(), rig.flushed), ("", 1));
    assert_eq!(rig.journal.stats().unflushed_bytes, 0);
}

#[test]
fn what_comes_during_a_group_commit_makes_up_the_next() {
    let mut rig = Rig::running();
    let first = rig.sync(100);
    rig.poll();
    for _ in 0..5 {
        assert_eq!(rig.sync(100), Marker(first.0 + 1));
        rig.poll();
    }
    assert_eq!(rig.doing(), "write+");
    rig.complete_kind("write+");
    assert_eq!((rig.doing().as_str(), rig.flushed), ("write+", 1));
    rig.complete_kind("write+");
    assert_eq!(rig.flushed, 6);
}

#[test]
fn group_of_several_chunks_is_written_plainly_and_synced_once() {
    let mut rig = Rig::running();
    for _ in 0..3 {
        rig.sync(5000);
    }
    rig.poll();
    assert_eq!(rig.doing(), "write write write");
    // A chunk sealed by its size while the group is on its way belongs to the next group.
    rig.sync(5000);
    rig.sync(5000);
    rig.poll();
    for _ in 0..3 {
        let in_order = rig.disk.in_flight.iter().map(|f| op_no(&f.op)).min().unwrap();
        let index = rig.disk.in_flight.iter().position(|f| op_no(&f.op) == in_order).unwrap();
        rig.complete(index);
        rig.poll();
    }
    assert_eq!((rig.doing().as_str(), rig.flushed), ("sync write", 0));
    rig.complete_kind("sync");
    assert_eq!(rig.flushed, 3);
    rig.run();
    assert_eq!(rig.flushed, 5);
}

#[test]
fn steady_urgent_appends_do_not_starve_the_sync() {
    let mut rig = Rig::running();
    for _ in 0..2 {
        rig.sync(5000);
    }
    for _ in 0..20 {
        rig.sync(100);
        rig.poll();
        if !rig.disk.in_flight.is_empty() {
            rig.complete(0);
            rig.poll();
        }
    }
    assert!(rig.flushed >= 10, "{}", rig.flushed);
}

#[test]
fn lazy_bytes_wait_for_the_interval_and_are_then_written_with_sync() {
    let mut rig = Rig::running();
    rig.lazy(100);
    rig.poll();
    rig.pass(Duration::from_millis(4));
    rig.lazy(100);
    rig.poll();
    assert_eq!(rig.journal.poll_timeout(), Some(Instant::from_nanos(10_000_000)));
    assert_eq!(rig.doing(), "");
    rig.pass(Duration::from_millis(6));
    assert_eq!(rig.doing(), "write+");
    assert_eq!(rig.journal.poll_timeout(), None);
    rig.complete_kind("write+");
    assert_eq!(rig.flushed, 2);
}

fn big() -> JournalConfig {
    JournalConfig { file_bytes: 4 << 20, chunk_bytes_max: 1 << 20, ..config() }
}

#[test]
fn many_lazy_bytes_are_written_early_and_synced_when_due() {
    let mut rig = Rig::new(big());
    rig.run();
    for _ in 0..20 {
        rig.lazy(16_000);
    }
    rig.poll();
    assert_eq!(rig.doing(), "write");
    rig.complete_kind("write");
    rig.lazy(100);
    rig.poll();
    assert_eq!((rig.doing().as_str(), rig.flushed), ("", 0));
    rig.pass(Duration::from_millis(10));
    // The written chunk is synced while the rest is written with sync.
    assert_eq!(rig.doing(), "sync write+");
    rig.complete_kind("write+");
    assert_eq!(rig.flushed, 0);
    rig.complete_kind("sync");
    assert_eq!(rig.flushed, 21);
}

#[test]
fn lazy_writes_in_flight_are_bounded() {
    let mut rig = Rig::new(JournalConfig { writes_in_flight_max: 2, backlog_bytes_max: 1 << 24, ..big() });
    rig.run();
    for _ in 0..100 {
        rig.lazy(16_000);
        rig.poll();
    }
    assert_eq!(rig.doing(), "write write");
}

#[test]
fn urgent_append_behind_unsynced_chunks_is_flushed_only_with_them() {
    let mut rig = Rig::new(big());
    rig.run();
    for _ in 0..20 {
        rig.lazy(16_000);
    }
    rig.poll();
    rig.sync(100);
    rig.poll();
    assert_eq!(rig.doing(), "write write+");
    rig.complete_kind("write+");
    assert_eq!((rig.doing().as_str(), rig.flushed), ("write", 0));
    rig.complete_kind("write");
    assert_eq!((rig.doing().as_str(), rig.flushed), ("sync", 0));
    rig.complete_kind("sync");
    assert_eq!(rig.flushed, 21);
}

#[test]
fn log_goes_on_in_the_next_file_and_a_spare_is_kept_ahead() {
    let mut rig = Rig::running();
    assert_eq!(rig.journal.stats().files, 2);
    let mut files = Vec::new();
    for _ in 0..40 {
        rig.sync(5000);
        rig.run();
        let at = rig.log.last().unwrap().at;
        assert!(at.position >= SEC && at.position + 5000 <= 16 * SEC);
        files.push(at.file.0);
    }
    assert_eq!(rig.flushed, 40);
    assert!(files.is_sorted());
    let last = *files.last().unwrap();
    assert_eq!(last, 5);
    assert_eq!(rig.journal.stats().files, last + 2);
    rig.lose_power(1);
    rig.restart();
    assert_eq!(rig.flushed, 40);
}

#[test]
fn group_over_two_files_is_flushed_when_both_are_synced() {
    let mut rig = Rig::running();
    for _ in 0..14 {
        rig.sync(3000);
        rig.run();
    }
    for _ in 0..4 {
        rig.sync(5000);
    }
    rig.poll();
    let files: Vec<_> = rig.log[14..].iter().map(|l| l.at.file.0).collect();
    assert!(files.contains(&0) || files[0] == 1, "{files:?}");
    let mut syncs = Vec::new();
    while !rig.disk.in_flight.is_empty() {
        if let DiskOp::Sync { file, .. } = rig.disk.in_flight[0].op {
            assert!(rig.flushed < 18);
            syncs.push(file.0);
        }
        rig.complete(0);
        rig.poll();
    }
    assert_eq!(rig.flushed, 18);
    assert!(!syncs.is_empty());
}

#[test]
fn batch_larger_than_a_chunk_gets_a_chunk_of_its_own() {
    let mut rig = Rig::running();
    let a = rig.sync(100);
    let b = rig.sync(4 * SECTOR);
    let c = rig.sync(100);
    assert!(a < b && b <= c);
    rig.run();
    assert_eq!(rig.flushed, 3);
    rig.lose_power(0);
    rig.restart();
    assert_eq!(rig.flushed, 3);
}

#[test]
fn appends_are_refused_while_the_disk_is_full_and_taken_again_after() {
    let mut rig = Rig::running();
    rig.disk.is_full = true;
    let refused = loop {
        match rig.append(5000, Urgency::Sync) {
            Ok(_) => rig.run(),
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused, AppendRefused::Full);
    // The spare of the beginning was used up first.
    assert_eq!(rig.log.last().unwrap().at.file, FileNo(1));
    assert_eq!(rig.flushed, rig.log.len());
    assert_eq!(rig.doing(), "");
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.doing(), "prepare");
    rig.run();
    assert_eq!(rig.append(5000, Urgency::Sync), Err(AppendRefused::Full));
    rig.disk.is_full = false;
    rig.pass(Duration::from_millis(999));
    assert_eq!(rig.doing(), "");
    rig.pass(Duration::from_millis(1));
    rig.run();
    assert!(matches!(rig.others[..], [JournalEvent::Room]));
    rig.sync(5000);
    rig.run();
    assert_eq!(rig.flushed, rig.log.len());
}

#[test]
fn late_file_is_waited_for_in_memory_up_to_a_bound() {
    let mut rig = Rig::new(JournalConfig { backlog_bytes_max: 64 * 1024, ..config() });
    rig.run();
    // Everything but the next spare proceeds.
    let refused = loop {
        match rig.append(5000, Urgency::Sync) {
            Ok(_) => rig.poll(),
            Err(refused) => break refused,
        }
        while let Some(i) = rig.disk.in_flight.iter().position(|f| !matches!(f.op, DiskOp::Prepare { .. })) {
            rig.complete(i);
            rig.poll();
        }
    };
    assert_eq!(refused, AppendRefused::Overloaded);
    assert!(rig.journal.stats().unflushed_bytes <= 2 * 64 * 1024);
    assert!(rig.journal.stats().unflushed_bytes > 64 * 1024);
    assert_eq!(rig.doing(), "prepare");
    rig.run();
    assert_eq!(rig.flushed, rig.log.len());
    rig.sync(5000);
    rig.lose_in_flight();
    rig.lose_power(0);
    rig.restart();
}

#[test]
fn failed_write_and_failed_sync_end_the_journal_at_once() {
    for kind in ["write+", "write", "sync"] {
        let mut rig = Rig::running();
        rig.sync(100);
        rig.run();
        for _ in 0..if kind == "write+" { 1 } else { 3 } {
            rig.sync(5000);
        }
        rig.poll();
        if kind == "sync" {
            while rig.doing() != "sync" {
                rig.complete(0);
                rig.poll();
            }
        }
        let index = rig.index_of(kind);
        let event = rig.disk.fail(index, DiskError::Io(5));
        rig.give(event);
        assert_eq!(
            rig.fatal,
            Some(FatalReason::FlushFailed { file: FileNo(0), error: DiskError::Io(5) }),
            "{kind}"
        );
        // Nothing follows, whatever the other operations say.
        rig.run();
        assert_eq!(rig.flushed, 1);
        assert_eq!(rig.append(100, Urgency::Sync), Err(AppendRefused::NotReady));
    }
}

#[test]
fn backlog_flushes_at_once_and_clears_at_half() {
    let mut rig = Rig::new(JournalConfig { backlog_bytes_max: 20_000, ..config() });
    rig.run();
    rig.lazy(9000);
    rig.lazy(9000);
    rig.poll();
    assert!(!rig.journal.over_backlog());
    rig.lazy(9000);
    assert!(rig.journal.over_backlog());
    rig.run();
    assert!(!rig.journal.over_backlog());
    assert_eq!(rig.flushed, 3);
    assert!(matches!(rig.others[..], [JournalEvent::BacklogCleared]));
}

#[test]
fn stop_makes_all_durable_and_says_so_on_disk() {
    let mut rig = Rig::running();
    rig.lazy(100);
    rig.poll();
    rig.journal.stop();
    assert_eq!(rig.append(100, Urgency::Sync), Err(AppendRefused::NotReady));
    rig.run();
    assert!(matches!(rig.others[..], [JournalEvent::Stopped]));
    assert_eq!(rig.flushed, 1);
    rig.lose_power(0);
    rig.restart();
    assert_eq!(
        rig.report,
        Some(RecoveryReport { files: 2, chunks: 2, batches: 1, bytes: rig.report.unwrap().bytes, cut: None })
    );
    // Nothing new: nothing to say.
    rig.stop();
    rig.restart();
    assert_eq!(rig.report.unwrap().chunks, 2);
}

#[test]
fn stop_does_not_wait_for_a_file_that_it_does_not_need() {
    let mut rig = Rig::new(config());
    rig.disk.is_full = true;
    rig.run();
    assert!(rig.report.is_some());
    assert_eq!(rig.append(100, Urgency::Sync), Err(AppendRefused::Full));
    rig.stop();
}

#[test]
fn reads_give_the_bytes_or_an_error_when_the_file_is_short() {
    let mut rig = Rig::running();
    rig.sync(500);
    rig.run();
    let logged = rig.log[0].clone();
    rig.journal.read(7, logged.at, logged.bytes.len() as u32);
    rig.journal.read(8, LogPosition { file: FileNo(0), position: 16 * SEC - 10 }, 11);
    rig.run();
    assert!(
        matches!(&rig.others[0], JournalEvent::Read { ticket: 7, result: Ok(bytes) } if *bytes == logged.bytes)
    );
    assert!(matches!(rig.others[1], JournalEvent::Read { ticket: 8, result: Err(CUT_SHORT) }));
    rig.journal.read(9, logged.at, 10);
    rig.poll();
    let event = rig.disk.fail(0, DiskError::Io(1));
    rig.give(event);
    assert!(matches!(rig.others[2], JournalEvent::Read { ticket: 9, result: Err(DiskError::Io(1)) }));
    assert_eq!(rig.fatal, None);
}

#[test]
fn recovery_that_cannot_list_or_read_is_fatal() {
    for reads in 0..3 {
        let mut rig = Rig::running();
        rig.sync(500);
        rig.stop();
        rig.begin_life();
        rig.poll();
        for _ in 0..reads {
            rig.complete(0);
            rig.poll();
        }
        let event = rig.disk.fail(0, DiskError::Io(5));
        rig.give(event);
        assert_eq!(rig.fatal, Some(FatalReason::RecoveryFailed { error: DiskError::Io(5) }));
    }
}

#[test]
fn file_of_a_newer_format_is_refused_not_cut() {
    let mut rig = Rig::running();
    rig.sync(500);
    rig.stop();
    let raw = rig.disk.raw(0);
    raw[8..12].copy_from_slice(&9_u32.to_be_bytes());
    raw[4..8].fill(0);
    let crc = crc_fast::crc32_iscsi(&raw[..64]);
    raw[4..8].copy_from_slice(&crc.to_be_bytes());
    rig.begin_life();
    rig.run();
    assert_eq!(rig.fatal, Some(FatalReason::JournalFormat { file: FileNo(0), version: 9 }));
}

#[test]
fn recovery_reads_little_at_a_time_and_waits_for_its_events_to_be_taken() {
    let mut rig = Rig::new(big());
    rig.run();
    for _ in 0..200 {
        rig.sync(16_000);
        rig.run();
    }
    rig.stop();
    rig.begin_life();
    let mut replayed = 0;
    loop {
        let Some(op) = rig.journal.poll_op(rig.now) else { break };
        if let DiskOp::Read { len, .. } = op {
            assert!(len <= 1 << 20);
        }
        rig.disk.submit(op);
        let event = rig.disk.complete(0);
        rig.journal.handle(rig.now, event);
        if rig.journal.events.iter().any(|e| matches!(e, JournalEvent::Replayed { .. })) {
            assert!(rig.journal.poll_op(rig.now).is_none());
        }
        let mut events = 0;
        let mut recovered = false;
        while let Some(event) = rig.journal.poll_event() {
            events += 1;
            replayed += u64::from(matches!(event, JournalEvent::Replayed { .. }));
            recovered |= matches!(event, JournalEvent::Recovered(_));
        }
        assert!(events <= 70, "{events}");
        if recovered {
            break;
        }
    }
    assert_eq!(replayed, 200);
}

/// A journal of `n` chunks with one batch each, all of them durable, and where the chunks begin.
fn chunks(n: usize, len: usize) -> (Rig, Vec<LogPosition>) {
    let mut rig = Rig::running();
    for _ in 0..n {
        rig.sync(len);
        rig.run();
    }
    let header = (CHUNK_HEADER_BYTES + ENTRY_HEADER_BYTES) as u64;
    let at = rig.log.iter().map(|l| LogPosition { position: l.at.position - header, ..l.at }).collect();
    (rig, at)
}

#[test]
fn torn_chunk_is_cut_as_a_whole_and_reported() {
    let (mut rig, _) = chunks(3, 1000);
    for _ in 0..3 {
        rig.sync(2000);
    }
    rig.poll();
    assert_eq!(rig.doing(), "write+");
    // The write comes through but for its last sector.
    rig.complete(0);
    let torn = LogPosition { position: 4 * SEC, ..rig.log[3].at };
    rig.disk.raw(0)[5 * SECTOR..6 * SECTOR].fill(0);
    rig.flushed = 3;
    rig.restart();
    assert_eq!(rig.replayed.len(), 3);
    let cut = rig.report.unwrap().cut.unwrap();
    assert_eq!((cut.file, cut.position), (torn.file, torn.position));
    assert_eq!((cut.reason, cut.bytes_after, cut.damaged), (CutReason::Entry, SEC, false));
    // The log goes on there.
    rig.sync(100);
    rig.run();
    rig.lose_power(0);
    rig.restart();
    assert_eq!((rig.flushed, rig.report.unwrap().cut), (4, None));
}

/// Three durable chunks of one sector; then, in the same life, two more in flight, of which the disk holds only
/// the second.
fn gap() -> Rig {
    let mut rig = Rig::new(JournalConfig { chunk_bytes_max: SECTOR, ..config() });
    rig.run();
    for _ in 0..3 {
        rig.sync(3000);
        rig.run();
    }
    rig.sync(3000);
    rig.sync(3000);
    rig.poll();
    assert_eq!(rig.doing(), "write write");
    let later = rig.disk.in_flight.iter().map(|f| op_no(&f.op)).max().unwrap();
    let index = rig.disk.in_flight.iter().position(|f| op_no(&f.op) == later).unwrap();
    rig.complete(index);
    rig.lose_in_flight();
    rig.disk.settle();
    rig
}

#[test]
fn chunk_behind_a_gap_never_comes_back() {
    let mut rig = gap();
    rig.restart();
    assert_eq!(rig.replayed.len(), 3);
    assert_eq!(rig.report.unwrap().cut.unwrap().reason, CutReason::Missing);
    // The gap was filled by this life's first chunk, of exactly the lost one's size and sequence.
    rig.disk.settle();
    rig.restart();
    assert_eq!(rig.replayed.len(), 3);
    assert_eq!(rig.report.unwrap().cut.unwrap().reason, CutReason::EarlierLife);
    rig.sync(3000);
    rig.run();
    rig.lose_power(1);
    rig.restart();
    assert_eq!((rig.replayed.len(), rig.report.unwrap().cut), (4, None));
}

#[test]
fn chunk_behind_a_gap_never_comes_back_after_two_crashes_in_a_row() {
    let mut rig = gap();
    // Two lives that end before their first chunk is durable, the second in the middle of its writing.
    for life in 0..2 {
        rig.begin_life();
        rig.poll();
        while rig.report.is_none() {
            rig.complete(0);
            rig.poll();
        }
        rig.settle_life();
        assert_eq!(rig.replayed.len(), 3);
        rig.sync(3000);
        rig.poll();
        // What is appended waits for it.
        assert_eq!(rig.doing(), "write+");
        if life == 0 {
            rig.lose_in_flight();
        }
        rig.lose_power(2);
    }
    rig.restart();
    assert_eq!(rig.replayed.len(), 3);
    rig.sync(3000);
    rig.run();
    rig.lose_power(3);
    rig.restart();
    assert_eq!(rig.replayed.len(), 4);
}

#[test]
fn entries_of_a_lost_chunk_never_come_back_under_the_header_of_a_later_one() {
    let mut rig = Rig::running();
    rig.sync(100);
    rig.run();
    // Life 1: the chunk's second sector reaches the disk, its header does not.
    rig.sync(6000);
    rig.poll();
    rig.complete(0);
    let start = 2 * SECTOR;
    rig.disk.raw(0)[start..start + SECTOR].fill(0);
    rig.flushed = 1;
    rig.restart();
    assert_eq!(rig.replayed.len(), 1);
    // Life 2, which saw no newer incarnation than life 1 did: the header does, the second sector does not.
    let old = rig.disk.raw(0)[start + SECTOR..start + 2 * SECTOR].to_vec();
    rig.sync(6000);
    rig.poll();
    rig.complete(0);
    rig.disk.raw(0)[start + SECTOR..start + 2 * SECTOR].copy_from_slice(&old);
    rig.flushed = 1;
    rig.restart();
    assert_eq!(rig.replayed.len(), 1);
}

#[test]
fn torn_chunk_is_not_made_whole_by_equal_bytes_of_a_later_one() {
    let mut rig = Rig::running();
    rig.alike = true;
    rig.sync(100);
    rig.run();
    // Life 1: of the chunk the first sector reaches the disk, the second does not.
    rig.sync(6000);
    rig.poll();
    rig.complete(0);
    rig.disk.raw(0)[3 * SECTOR..].fill(0);
    rig.flushed = 1;
    rig.restart();
    assert_eq!(rig.replayed.len(), 1);
    // Life 2 writes another batch, whose bytes are the same from the second sector on, and only that arrives.
    rig.sync(6000);
    rig.poll();
    while !rig.disk.in_flight.is_empty() {
        let before = rig.disk.raw(0).clone();
        let op = rig.disk.in_flight[0].op.clone();
        rig.complete(0);
        if let DiskOp::Write { position, parts, .. } = op
            && parts.iter().map(Bytes::len).sum::<usize>() > SECTOR
        {
            let first = position as usize..position as usize + SECTOR;
            rig.disk.raw(0)[first.clone()].copy_from_slice(&before[first]);
            break;
        }
        rig.poll();
    }
    rig.lose_in_flight();
    rig.flushed = 1;
    rig.restart();
    assert_eq!(rig.replayed.len(), 1);
}

#[test]
fn file_behind_a_cut_is_used_again_and_its_chunks_never_come_back() {
    let mut rig = Rig::new(JournalConfig { chunk_bytes_max: SECTOR, ..config() });
    rig.run();
    // File 0 has room for 15 chunks of a sector.
    for _ in 0..14 {
        rig.sync(3000);
        rig.run();
    }
    for _ in 0..4 {
        rig.sync(3000);
    }
    rig.poll();
    assert_eq!(rig.log[15].at.file, FileNo(1));
    rig.complete(0);
    rig.run();
    // The 15th chunk is lost, those in file 1 are not; no one had been told.
    rig.disk.raw(0)[15 * SECTOR..].fill(0);
    rig.flushed = 14;
    rig.restart();
    assert_eq!(rig.replayed.len(), 14);
    let cut = rig.report.unwrap().cut.unwrap();
    assert_eq!((cut.file, cut.position, cut.reason), (FileNo(0), 15 * SEC, CutReason::Sequence));
    assert!(!cut.damaged);
    // Into file 1, over what lies there.
    rig.sync(3000);
    rig.run();
    rig.lose_power(5);
    rig.restart();
    assert_eq!(rig.replayed.len(), 15);
    rig.sync(3000);
    rig.run();
    rig.lose_power(6);
    rig.restart();
    assert_eq!(rig.replayed.len(), 16);
    assert_eq!((rig.log[14].at.file, rig.log[15].at.file), (FileNo(1), FileNo(1)));
}

#[test]
fn header_of_a_file_without_chunks_is_written_again() {
    let mut rig = Rig::running();
    rig.sync(3000);
    rig.poll();
    rig.complete(0);
    // Only the file's header is there, and it was never synced.
    rig.disk.raw(0)[SECTOR..].fill(0);
    rig.flushed = 0;
    rig.restart();
    assert_eq!(rig.replayed.len(), 0);
    rig.sync(3000);
    rig.poll();
    let DiskOp::Write { position, .. } = rig.disk.in_flight[0].op else { panic!("{}", rig.doing()) };
    assert_eq!(position, 0);
}

#[test]
fn chunks_that_were_never_synced_are_synced_before_they_count() {
    let mut rig = Rig::new(big());
    rig.run();
    for _ in 0..20 {
        rig.lazy(16_000);
    }
    rig.poll();
    rig.complete_kind("write");
    // The process is killed; the machine runs on until the next life has recovered, and then loses power.
    rig.disk.kill(&mut Random(1));
    rig.restart();
    assert_eq!(rig.flushed, 20);
    for seed in 0..20 {
        let disk = rig.disk.clone();
        rig.lose_power(seed);
        rig.restart();
        assert_eq!(rig.flushed, 20);
        rig.disk = disk;
    }
}

#[test]
fn damage_to_flushed_chunks_is_refused_and_named() {
    let (mut rig, at) = chunks(5, 1000);
    rig.disk.raw(0)[at[2].position as usize + 200] ^= 1;
    rig.begin_life();
    rig.run();
    let LogPosition { file, position } = at[2];
    assert_eq!(rig.fatal, Some(FatalReason::JournalDamaged { file, position, sequence: 3 }));
    // No operation follows, so that nothing is overwritten.
    assert_eq!(rig.doing(), "");
}

#[test]
fn damage_is_cut_off_when_so_configured_and_stays_so() {
    let (mut rig, at) = chunks(5, 1000);
    rig.disk.raw(0)[at[2].position as usize + 200] ^= 1;
    rig.config.on_damage = OnDamage::Truncate;
    rig.flushed = 2;
    rig.restart();
    assert_eq!(rig.replayed.len(), 2);
    assert!(rig.report.unwrap().cut.unwrap().damaged);
    rig.sync(1000);
    rig.run();
    // What the lost life promised binds no later one.
    rig.config.on_damage = OnDamage::Refuse;
    rig.lose_power(1);
    rig.restart();
    assert_eq!(rig.replayed.len(), 3);
    assert!(!rig.report.unwrap().cut.unwrap().damaged);
}

#[test]
fn missing_file_is_damage() {
    for missing in [0, 1] {
        let (mut rig, at) = chunks(40, 3000);
        assert!(at[39].file.0 > 1);
        rig.disk.files.remove(&FileNo(missing));
        rig.begin_life();
        rig.run();
        assert!(matches!(rig.fatal, Some(FatalReason::JournalDamaged { .. })), "{:?}", rig.fatal);
    }
}

#[test]
fn damaged_file_header_is_damage() {
    let (mut rig, _) = chunks(40, 3000);
    for file in [0, 1] {
        rig.disk.raw(file)[30] ^= 1;
        rig.begin_life();
        rig.run();
        assert!(
            matches!(rig.fatal, Some(FatalReason::JournalDamaged { position, .. }) if position == 0 || file == 1)
        );
        rig.disk.raw(file)[30] ^= 1;
    }
    rig.restart();
}

#[test]
fn record_bytes_that_imitate_a_chunk_prove_nothing() {
    let (mut rig, _) = chunks(3, 1000);
    // A client that knows the format, but not the journal's id, sends a chunk header that will lie on a sector.
    let fake = crate::log::chunk::ChunkHeader {
        payload_len: 0,
        entries: 0,
        last_crc: 0,
        position: 5 * SEC,
        journal: 0,
        incarnation: u64::MAX - 1,
        sequence: u64::MAX - 1,
        flushed: u64::MAX - 1,
        file: FileNo(0),
    };
    let mut header = [0; CHUNK_HEADER_BYTES];
    fake.write(&mut header);
    let mut batch = BytesMut::from(&rig.batch(6000)[..]);
    let in_batch = SECTOR - CHUNK_HEADER_BYTES - ENTRY_HEADER_BYTES;
    batch[in_batch..in_batch + header.len()].copy_from_slice(&header);
    rig.append_batch(&batch.freeze(), Urgency::Sync).unwrap();
    rig.poll();
    rig.complete(0);
    assert_eq!(rig.disk.raw(0)[5 * SECTOR..5 * SECTOR + 64], header);
    // The chunk that holds it is torn.
    rig.disk.raw(0)[4 * SECTOR..5 * SECTOR].fill(0);
    rig.flushed = 3;
    rig.restart();
    assert_eq!(rig.replayed.len(), 3);
    rig.sync(100);
    rig.run();
    rig.restart();
    assert_eq!(rig.replayed.len(), 4);
}

#[test]
fn spare_of_another_size_is_prepared_again() {
    let (mut rig, _) = chunks(3, 1000);
    rig.stop();
    rig.config.file_bytes = 32 * SEC;
    rig.restart();
    for _ in 0..30 {
        rig.sync(5000);
        rig.run();
    }
    let sizes: Vec<_> = rig.disk.files.values().map(|f| f.content().len() / SECTOR).collect();
    assert_eq!(sizes[..3], [16, 32, 32]);
    rig.restart();
    assert_eq!(rig.flushed, 33);
}

/// Every bit of every byte of a closed journal: with it flipped, recovery replays all batches as they were (the
/// byte means nothing) or refuses. Cut at its end without being closed: it may drop the last chunk, no more.
#[test]
fn every_flipped_byte_is_noticed_or_means_nothing() {
    for closed in [true, false] {
        let mut rig = Rig::new(JournalConfig { file_bytes: 8 * SEC, ..config() });
        rig.run();
        for i in 0..7 {
            rig.sync(40 + 700 * i);
            rig.sync(30);
            rig.run();
        }
        if closed {
            rig.stop();
        }
        rig.disk.settle();
        let (log, disk) = (rig.log.clone(), rig.disk.clone());
        let last_chunk = *rig.markers.iter().rev().nth(1).map(|(_, n)| n).unwrap();
        let (mut refused, mut cut, mut same) = (0, 0, 0);
        for (&file, content) in &disk.files {
            let content = content.content();
            let used = content.iter().rposition(|&b| b != 0).map_or(0, |n| n + 100);
            for at in 0..used {
                rig.disk = disk.clone();
                rig.disk.raw(file.0)[at] ^= 1 << (at % 8);
                rig.begin_life();
                // Only recovery itself: nothing is prepared after it.
                while rig.report.is_none() && rig.fatal.is_none() {
                    let op = rig.journal.poll_op(rig.now).unwrap();
                    rig.disk.submit(op);
                    rig.complete(0);
                }
                let n = rig.replayed.len();
                assert_eq!(rig.replayed[..], log[..n], "{file} {at}");
                match (rig.fatal, n == log.len()) {
                    (Some(FatalReason::JournalDamaged { .. } | FatalReason::JournalFormat { .. }), _) => {
                        refused += 1
                    }
                    (None, true) => same += 1,
                    (None, false) if !closed && n == last_chunk => cut += 1,
                    other => panic!("{other:?}: {n} batches, {file} byte {at}"),
                }
                rig.fatal = None;
            }
        }
        assert!(refused > 10_000 && same > 1000 && (cut > 0) != closed, "{refused} {same} {cut}");
    }
}

/// Lives of random appends, completions, stops and crashes; see [`Rig::settle_life`] for what must hold.
fn random_lives(seed: u64) -> (usize, usize, usize) {
    let mut random = Random(seed);
    let len_fixed = random.one_in(2).then(|| 20 + random.below(6000));
    let config = JournalConfig {
        file_bytes: (10 + random.below(20)) as u64 * SEC,
        chunk_bytes_max: SECTOR * (1 + random.below(4)),
        writes_in_flight_max: 1 + random.below(4),
        backlog_bytes_max: 5000 + random.below(100_000),
        ..config()
    };
    let mut rig = Rig::new(config);
    rig.alike = random.one_in(2);
    if random.one_in(2) {
        rig.run();
    }
    let (mut lost, mut cuts, mut total) = (0, 0, 0);
    let lives = 3 + random.below(6);
    for _ in 0..lives {
        let steps = random.below(120);
        let mut stopping = false;
        for _ in 0..steps {
            match random.below(10) {
                0..=3 => {
                    let len = len_fixed.unwrap_or_else(|| 20 + random.below(18_000));
                    let urgency = if random.one_in(2) { Urgency::Sync } else { Urgency::Lazy };
                    let _ = rig.append(len, urgency);
                }
                4 => rig.pass(Duration::from_millis(random.below(15) as u64)),
                5 if random.one_in(40) => rig.disk.is_full = !rig.disk.is_full,
                5 if random.one_in(20) && rig.report.is_some() => {
                    rig.journal.stop();
                    stopping = true;
                }
                5 if rig.report.is_some() && rig.flushed > 0 => {
                    let logged = rig.log[random.below(rig.flushed)].clone();
                    rig.journal.read(logged.base, logged.at, logged.bytes.len() as u32);
                }
                6 => rig.poll(),
                _ if !rig.disk.in_flight.is_empty() => {
                    let index = random.below(rig.disk.in_flight.len());
                    rig.complete(index);
                    if random.one_in(2) {
                        rig.poll();
                    }
                }
                _ => rig.poll(),
            }
        }
        if random.one_in(4) && rig.report.is_some() {
            // Without a crash everything becomes durable in bounded time.
            rig.disk.is_full = false;
            for _ in 0..3 {
                rig.run();
                rig.pass(Duration::from_secs(2));
            }
            rig.run();
            assert_eq!(rig.flushed, rig.log.len(), "seed {seed}");
            assert_eq!(rig.journal.stats().unflushed_bytes * u64::from(!stopping), 0);
            assert!(!stopping || rig.others.iter().any(|e| matches!(e, JournalEvent::Stopped)));
        }
        for other in &rig.others {
            if let JournalEvent::Read { ticket, result } = other {
                let logged = rig.log.iter().find(|l| l.base == *ticket).unwrap();
                assert_eq!(result.as_ref().unwrap(), &logged.bytes, "seed {seed}");
            }
        }
        assert_eq!(rig.fatal, None, "seed {seed}");
        if random.one_in(2) {
            rig.disk.lose_power(&mut random);
        } else {
            rig.disk.kill(&mut random);
        }
        rig.disk.is_full = false;
        if std::env::var("TRACE").is_ok() {
            eprintln!(
                "end of life: {:?} flushed {} of {:?}",
                rig.report,
                rig.flushed,
                rig.log.iter().map(|l| (l.base, l.at)).collect::<Vec<_>>()
            );
        }
        rig.begin_life();
        // Some recoveries are crashed into.
        if random.one_in(3) {
            for _ in 0..random.below(6) {
                rig.poll();
                if !rig.disk.in_flight.is_empty() {
                    rig.complete(0);
                }
            }
            rig.disk.lose_power(&mut random);
            rig.begin_life();
        }
        let before = rig.log.len();
        rig.poll();
        while rig.report.is_none() {
            assert_eq!(rig.fatal, None, "seed {seed}");
            rig.complete(0);
            rig.poll();
        }
        rig.settle_life();
        lost += before - rig.log.len();
        cuts += usize::from(rig.report.unwrap().cut.is_some());
        total += rig.log.len();
        rig.replayed.clear();
    }
    (lost, cuts, total)
}

#[test]
fn random_crashes_lose_nothing_flushed_and_bring_nothing_back() {
    let seeds = std::env::var("JOURNAL_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(2000);
    let (mut lost, mut cuts, mut total) = (0, 0, 0);
    let first = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    for seed in first..seeds {
        let outcome = std::panic::catch_unwind(|| random_lives(seed));
        let Ok((l, c, t)) = outcome else { panic!("seed {seed}") };
        lost += l;
        cuts += c;
        total += t;
    }
    // The runs must have been hard enough to mean something.
    assert!(
        lost > seeds as usize && cuts > seeds as usize / 2 && total > 10 * seeds as usize,
        "{lost} {cuts} {total}"
    );
}
