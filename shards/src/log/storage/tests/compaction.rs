//! Compaction under the log: crashes at every operation, reads, notes that come while a job runs.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};

use super::rig::{Effect, Rig, partition, small_config};
use crate::batch::{self, BatchBuilder, HEADER_BYTES, Records};
use crate::ids::{LeaderEpoch, Offset, PartitionId};
use crate::log::Slot;
use crate::log::cleaner::CleanerLimits;
use crate::log::disk::{DiskOp, FileName, SegmentName};
use crate::log::journal::Urgency;
use crate::log::random::Random;
use crate::log::storage::{Found, Start, StorageConfig, Wanted};
use crate::mail::LogConfig;

const KEYS: usize = 12;

/// What is read of a record.
type Read = (Offset, Option<Bytes>, Option<Bytes>);

fn config() -> StorageConfig {
    let small = small_config();
    StorageConfig {
        move_bytes: 1024,
        tail_bytes_max: 8 * 1024,
        cleaner: CleanerLimits { window_bytes: 1024, ..small.cleaner },
        ..small
    }
}

fn compacted() -> LogConfig {
    LogConfig {
        segment_bytes: 3 * 1024,
        delete: false,
        compact: true,
        retention_ms: None,
        dirty_permille: 300,
        ..LogConfig::default()
    }
}

fn rig(seed: u64) -> Rig {
    let mut rig = Rig::with(config(), seed);
    rig.log_config = compacted();
    rig
}

fn started(seed: u64) -> Rig {
    let mut rig = rig(seed);
    rig.recover();
    // So that there is bandwidth.
    rig.wait(1000);
    rig
}

/// Appends a batch of records with keys.
fn put(rig: &mut Rig, index: u32, len: usize) {
    let slot = rig.open(index);
    let base = rig.storage.end(slot).unwrap();
    let mut builder = BatchBuilder::new();
    for _ in 0..1 + rig.random.below(3) {
        let key = format!("key {}", rig.random.below(KEYS));
        let value = vec![rig.random.next() as u8; len];
        builder = builder.record(1, Some(key.as_bytes()), Some(&value));
    }
    let bytes = builder.build();
    let header = batch::parse_header(&bytes).unwrap();
    let epoch = LeaderEpoch(1);
    let appended = rig.storage.append(rig.now, slot, base, epoch, &header, &bytes, Urgency::Sync);
    let Ok(marker) = appended else { return };
    let mut patched = BytesMut::new();
    batch::put_patched(&mut patched, &bytes, base, epoch);
    let effect = Effect::Batch { base, next: base.plus(header.offsets()), bytes: patched.freeze() };
    rig.history.push((marker.0, partition(index), effect));
}

fn records_of(batches: &[Bytes]) -> Vec<Read> {
    let mut all = Vec::new();
    for bytes in batches {
        let header = batch::parse_header(bytes).unwrap();
        assert!(batch::check_crc(bytes));
        for record in Records::new(&header, &bytes[HEADER_BYTES..]) {
            let record = record.unwrap();
            let offset = header.base().unwrap().plus(u64::from(record.offset_delta));
            let copy = |part: Option<&[u8]>| part.map(Bytes::copy_from_slice);
            all.push((offset, copy(record.key), copy(record.value)));
        }
    }
    all
}

fn newest(records: &[Read]) -> BTreeMap<Bytes, Read> {
    records.iter().filter_map(|read| Some((read.1.clone()?, read.clone()))).collect()
}

/// Every record that is read was appended, and of each key the newest one is read.
fn check_log(rig: &mut Rig, index: u32, is_cut: bool) {
    let content = rig.content(index);
    let Some(slot) = rig.storage.slot(partition(index)) else {
        assert_eq!(content.end, Offset::ZERO);
        return;
    };
    assert_eq!(rig.storage.start(slot), Some(content.start));
    assert_eq!(rig.storage.end(slot), Some(content.end));
    let batches: Vec<Bytes> = content.batches.iter().map(|(.., bytes)| bytes.clone()).collect();
    let appended = records_of(&batches);
    let got = records_of(&rig.read_all(slot, content.start));
    let known: BTreeMap<Offset, &Read> = appended.iter().map(|read| (read.0, read)).collect();
    assert!(got.is_sorted_by_key(|read| read.0), "offsets ascend");
    for read in &got {
        assert_eq!(known.get(&read.0), Some(&read), "what is read was appended");
    }
    if !is_cut {
        // What lies before the start may be read or not.
        let visible = |reads: &[Read]| {
            let newest = newest(reads);
            newest.into_iter().filter(|(_, read)| read.0 >= content.start).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(visible(&got), visible(&appended), "of each key the newest is read");
    }
}

fn check_all(rig: &mut Rig, cut: &BTreeSet<PartitionId>) {
    assert_eq!(rig.fatal, None);
    for index in 0..3 {
        let is_cut = cut.contains(&partition(index));
        check_log(rig, index, is_cut);
    }
}

/// Steps of the disk until it was given so many operations. `false`: that many.
fn step(rig: &mut Rig, count: usize, done_max: u64) -> bool {
    for _ in 0..count {
        if rig.disk.done >= done_max {
            return false;
        }
        if !rig.complete_one() {
            break;
        }
    }
    true
}

/// A small history, as far as it comes within so many operations of the disk. `true`: to its end.
fn script(rig: &mut Rig, done_max: u64, after: &dyn Fn(&mut Rig)) -> bool {
    for i in 0..60 {
        put(rig, u32::from(i % 5 == 0), 150);
        rig.wait(1);
        if !step(rig, 7, done_max) {
            return false;
        }
        after(rig);
        if i == 45 {
            let slot = rig.open(0);
            let start = Offset(rig.storage.end(slot).unwrap().0 / 2);
            rig.advance_start(0, start);
        }
    }
    let is_whole = step(rig, usize::MAX, done_max);
    after(rig);
    is_whole
}

/// Crashes after each number of operations. How many there were.
fn crash_everywhere(seed: u64, stride: u64, after: &dyn Fn(&mut Rig)) -> u64 {
    let mut at = 1;
    loop {
        let mut rig = started(seed);
        rig.config.checkpoint_bytes = 24 * 1024;
        let is_whole = script(&mut rig, at, after);
        let compactions = rig.storage.stats().compactions;
        rig.crash(at % 2 == 0);
        rig.recover();
        check_all(&mut rig, &BTreeSet::new());
        // It goes on from there.
        rig.wait(1000);
        for _ in 0..12 {
            put(&mut rig, 0, 150);
            rig.settle();
        }
        check_all(&mut rig, &BTreeSet::new());
        if is_whole {
            assert!(compactions > 2, "{compactions} compactions");
            return at;
        }
        at += stride;
    }
}

#[test]
fn crash_at_every_operation_keeps_the_newest_of_each_key() {
    let ops = crash_everywhere(1, 1, &|_| {});
    assert!(ops > 300, "{ops} operations");
    crash_everywhere(2, 3, &|_| {});
}

/// Removes what a compaction has replaced, before a checkpoint says so.
fn remove_too_early(rig: &mut Rig) {
    let files: Vec<SegmentName> = rig
        .disk
        .files
        .keys()
        .filter_map(|file| match file {
            FileName::Segment(name) => Some(*name),
            _ => None,
        })
        .collect();
    for name in files {
        let Some(slot) = rig.storage.slot(name.partition) else { continue };
        let segments = &rig.storage.log(slot).unwrap().segments;
        let is_replaced = segments.iter().any(|segment| {
            segment.base <= name.base && name.base < segment.end && segment.generation > name.generation
        });
        if is_replaced {
            rig.disk.files.remove(&FileName::Segment(name));
            rig.disk.files.remove(&FileName::Index(name));
        }
    }
}

#[test]
fn planted_removal_before_the_checkpoint_is_caught() {
    let caught = std::panic::catch_unwind(|| crash_everywhere(1, 1, &remove_too_early));
    assert!(caught.is_err());
}

fn job_is_running(rig: &Rig) -> bool {
    rig.storage.compactions.is_busy()
}

/// A log with so many closed segments and a job that has begun to write.
fn with_running_job(seed: u64) -> (Rig, Slot) {
    let mut rig = started(seed);
    rig.log_config.compact = false;
    for _ in 0..60 {
        put(&mut rig, 0, 150);
        rig.settle();
    }
    rig.log_config.compact = true;
    let slot = rig.open(0);
    rig.wait(1000);
    while !rig.disk.in_flight.iter().any(|(op, _)| is_put_of_generation(op, 1)) {
        assert!(rig.complete_one(), "the job writes");
    }
    assert!(job_is_running(&rig));
    (rig, slot)
}

fn is_put_of_generation(op: &DiskOp, generation: u32) -> bool {
    matches!(op, DiskOp::Put { file: FileName::Segment(name), .. } if name.generation == generation)
}

fn files_of(rig: &Rig, index: u32) -> Vec<FileName> {
    let of = |file: &&FileName| match file {
        FileName::Segment(name) | FileName::Index(name) => name.partition == partition(index),
        _ => false,
    };
    rig.disk.files.keys().filter(of).copied().collect()
}

/// The files of the log are those of its segments, but for those that wait for a checkpoint.
fn segments_on_disk(rig: &Rig, index: u32) -> Vec<SegmentName> {
    let segment = |file| if let FileName::Segment(name) = file { Some(name) } else { None };
    files_of(rig, index).into_iter().filter_map(segment).collect()
}

fn segments_in_memory(rig: &Rig, slot: Slot) -> Vec<SegmentName> {
    let log = rig.storage.log(slot).unwrap();
    log.segments.iter().map(|segment| log.name(segment)).collect()
}

#[test]
fn reads_before_during_and_after_a_job_find_the_newest_of_each_key() {
    let (mut rig, slot) = with_running_job(3);
    let before = rig.storage.stats();
    // Begun in the old segments, ended in the new ones.
    let wanted =
        Wanted { from: Offset(0), below: Offset(20), bytes_max: 1, first_whole: true, is_urgent: false };
    let mut tickets = Vec::new();
    for ticket in 1000..1010 {
        assert!(matches!(rig.storage.read(rig.now, slot, wanted, ticket), Found::Later));
        tickets.push(ticket);
    }
    check_log(&mut rig, 0, false);
    rig.settle();
    for ticket in tickets {
        assert!(!rig.reads[&ticket].is_empty());
    }
    let after = rig.storage.stats();
    assert_eq!(after.compactions, before.compactions + 1);
    assert!(after.compaction_bytes_out < after.compaction_bytes_in / 2, "{after:?}");
    assert!(after.segment_bytes < before.segment_bytes);
    assert_eq!(after.segments, segments_in_memory(&rig, slot).len() as u64);
    check_log(&mut rig, 0, false);
}

#[test]
fn replaced_files_go_with_a_checkpoint_that_comes_within_a_minute() {
    let (mut rig, slot) = with_running_job(4);
    rig.settle();
    assert!(segments_on_disk(&rig, 0).len() > segments_in_memory(&rig, slot).len());
    let checkpoints = rig.storage.stats().checkpoints;
    rig.wait(61_000);
    rig.settle();
    assert_eq!(rig.storage.stats().checkpoints, checkpoints + 1);
    assert_eq!(segments_on_disk(&rig, 0), segments_in_memory(&rig, slot));
    assert_eq!(rig.storage.poll_timeout(), None, "an idle log wants no time");
}

#[test]
fn replaced_files_before_the_start_go_with_those_that_replaced_them() {
    let (mut rig, slot) = with_running_job(4);
    rig.settle();
    let segments = segments_in_memory(&rig, slot);
    let old = |rig: &Rig, start: Offset| {
        let old = |name: &&SegmentName| name.generation == 0 && name.base < start;
        segments_on_disk(rig, 0).iter().filter(old).count()
    };
    let (next, end) = (segments[1].base, rig.storage.end(slot).unwrap());
    assert!(old(&rig, next) > 0 && old(&rig, end) > old(&rig, next));
    let checkpoints = rig.storage.stats().checkpoints;
    // What replaced the others may still be read, by the files of the checkpoint that is there.
    for start in [next, end] {
        rig.advance_start(0, start);
        rig.settle();
        assert_eq!(old(&rig, start), 0);
        assert!(start == end || old(&rig, end) > 0);
    }
    assert_eq!(rig.storage.stats().checkpoints, checkpoints, "it did not wait for one");
    assert!(segments_on_disk(&rig, 0).is_empty());
    rig.crash(true);
    rig.recover();
    check_log(&mut rig, 0, false);
}

#[test]
fn start_within_a_segment_leaves_a_job_and_the_replaced_files_alone() {
    for seed in 0..10 {
        let (mut rig, slot) = with_running_job(seed);
        rig.settle();
        while !rig.disk.in_flight.iter().any(|(op, _)| is_put_of_generation(op, 2)) {
            put(&mut rig, 0, 150);
            rig.wait(100);
            for _ in 0..3 {
                rig.complete_one();
            }
        }
        let first = rig.storage.log(slot).unwrap().segments[0];
        rig.advance_start(0, Offset(first.end.0 - 1));
        rig.settle();
        check_log(&mut rig, 0, false);
        rig.crash(seed % 2 == 0);
        rig.recover();
        check_log(&mut rig, 0, false);
    }
}

#[test]
fn stop_leaves_no_replaced_file_and_no_half_made_one() {
    for settles in [false, true] {
        let (mut rig, slot) = with_running_job(5);
        if settles {
            rig.settle();
        }
        rig.stop();
        assert_eq!(segments_on_disk(&rig, 0), segments_in_memory(&rig, slot));
        // The loss of power brings nothing back.
        rig.flushed = rig.flushed.max(rig.last_chunk());
        rig.crash(true);
        rig.recover();
        assert_eq!(rig.report.unwrap().start, Start::Clean);
        let slot = rig.storage.slot(partition(0)).unwrap();
        assert_eq!(segments_on_disk(&rig, 0), segments_in_memory(&rig, slot));
        check_log(&mut rig, 0, false);
    }
}

#[test]
fn dropped_log_waits_for_its_job_and_can_be_made_anew() {
    for seed in 0..20 {
        let (mut rig, _) = with_running_job(seed);
        rig.drop_log(0);
        put(&mut rig, 0, 150);
        rig.settle();
        assert!(!job_is_running(&rig));
        for _ in 0..30 {
            put(&mut rig, 0, 150);
            rig.settle();
        }
        rig.wait(61_000);
        rig.settle();
        let slot = rig.storage.slot(partition(0)).unwrap();
        assert_eq!(segments_on_disk(&rig, 0), segments_in_memory(&rig, slot));
        check_log(&mut rig, 0, false);
        rig.crash(seed % 2 == 0);
        rig.recover();
        check_log(&mut rig, 0, false);
    }
}

#[test]
fn delete_records_and_truncation_wait_for_the_job() {
    for seed in 0..20 {
        let (mut rig, slot) = with_running_job(seed);
        let end = rig.storage.end(slot).unwrap();
        let is_cut = seed % 2 == 0;
        if is_cut {
            let content = rig.content(0);
            let (base, ..) = content.batches[content.batches.len() / 2];
            rig.truncate(0, base);
        } else {
            rig.advance_start(0, Offset(end.0 / 2));
        }
        rig.settle();
        rig.wait(100);
        check_log(&mut rig, 0, is_cut);
        for _ in 0..30 {
            put(&mut rig, 0, 150);
            rig.settle();
        }
        rig.wait(61_000);
        rig.settle();
        assert_eq!(segments_on_disk(&rig, 0), segments_in_memory(&rig, slot), "seed {seed}");
        assert!(rig.storage.stats().compactions > 0);
        check_log(&mut rig, 0, is_cut);
        rig.crash(true);
        rig.recover();
        check_log(&mut rig, 0, is_cut);
    }
}

#[test]
fn truncations_find_their_place_where_compaction_left_nothing() {
    let mut tried = 0;
    for seed in 0..20 {
        let (mut rig, slot) = with_running_job(seed);
        rig.settle();
        let content = rig.content(0);
        let first = rig.read_all(slot, content.start)[0].clone();
        let first = batch::parse_header(&first).unwrap().base().unwrap();
        let ends: Vec<Offset> =
            content.batches.iter().map(|batch| batch.1).filter(|end| *end < first).collect();
        let [next, .., last] = ends[..] else { continue };
        tried += 1;
        // The second one finds a segment without batches; so does a start that replays both.
        for end in [last, next] {
            rig.truncate(0, end);
            rig.settle();
            assert_eq!((rig.fatal.clone(), rig.storage.end(slot)), (None, Some(end)), "seed {seed}");
        }
        rig.crash(seed % 2 == 0);
        rig.recover();
        assert_eq!(rig.fatal, None);
        check_log(&mut rig, 0, true);
        put(&mut rig, 0, 150);
        rig.settle();
        check_log(&mut rig, 0, true);
    }
    assert!(tried > 5, "{tried}");
}

#[test]
fn log_that_is_rebuilt_takes_the_later_generation() {
    for seed in 0..20 {
        let (mut rig, _) = with_running_job(seed);
        // Both generations are there, or the new one is half-made.
        if seed % 2 == 0 {
            rig.settle();
        }
        rig.disk.files.remove(&FileName::Checkpoint);
        rig.disk.crash(&mut Random(seed), false);
        rig.restart();
        rig.recover();
        assert_eq!(rig.report.unwrap().start, Start::Rebuilt);
        check_log(&mut rig, 0, false);
        rig.settle();
        let slot = rig.storage.slot(partition(0)).unwrap();
        assert_eq!(segments_on_disk(&rig, 0), segments_in_memory(&rig, slot));
    }
}

#[test]
fn what_compaction_took_at_the_end_of_a_rebuilt_log_is_no_hole() {
    let mut gaps = 0;
    for seed in 0..30 {
        let mut config = config();
        config.journal.file_bytes = 32 * 1024;
        config.checkpoint_bytes = 48 * 1024;
        let mut rig = Rig::with(config, seed);
        rig.log_config = LogConfig { compact: false, ..compacted() };
        rig.recover();
        for _ in 0..60 {
            put(&mut rig, 0, 150);
            rig.settle();
        }
        rig.log_config.compact = true;
        rig.open(0);
        rig.wait(1000);
        rig.settle();
        // The first start cuts a compacted segment where the journal begins, the second one finds what it left.
        for life in 0..2 {
            rig.disk.files.remove(&FileName::Checkpoint);
            rig.disk.crash(&mut Random(seed), false);
            rig.restart();
            while rig.report.is_none() && rig.complete_one() {}
            assert_eq!((rig.fatal.clone(), rig.report.unwrap().start), (None, Start::Rebuilt), "seed {seed}");
            let slot = rig.storage.slot(partition(0)).unwrap();
            let log = rig.storage.log(slot).unwrap();
            let last = log.segments.last().filter(|last| life == 1 && last.generation > 0);
            gaps += u64::from(last.is_some_and(|last| last.end < log.tail_base()));
            if life == 0 {
                // It ends before anything is put behind the cut.
                let is_cutting = |rig: &Rig| {
                    let is_cut = |op: &DiskOp| matches!(op, DiskOp::Cut { file: FileName::Segment(_), .. });
                    rig.disk.in_flight.iter().any(|(op, _)| is_cut(op))
                };
                while !is_cutting(&rig) && rig.complete_one() {}
                while is_cutting(&rig) && rig.complete_one() {}
                continue;
            }
            rig.settle();
            check_log(&mut rig, 0, false);
        }
    }
    assert!(gaps > 0, "no segment ended in a gap");
}

#[test]
fn damaged_segment_is_left_alone_until_the_settings_change() {
    let mut rig = started(6);
    rig.log_config.compact = false;
    for _ in 0..60 {
        put(&mut rig, 0, 150);
        rig.settle();
    }
    let slot = rig.open(0);
    let name = segments_in_memory(&rig, slot)[0];
    rig.disk.files.get_mut(&FileName::Segment(name)).unwrap().content[200] ^= 1;
    rig.log_config.compact = true;
    let slot = rig.open(0);
    rig.wait(1000);
    rig.settle();
    let reads = rig.disk.segment_reads;
    assert!(reads > 0);
    rig.wait(1000);
    rig.settle();
    assert_eq!(rig.disk.segment_reads, reads);
    assert_eq!(rig.storage.stats().compactions, 0);
    assert!(rig.storage.log(slot).unwrap().segments[0].generation == 0);
    // Whole again, and the settings change.
    rig.disk.files.get_mut(&FileName::Segment(name)).unwrap().content[200] ^= 1;
    rig.log_config.tombstone_ms += 1;
    rig.open(0);
    rig.wait(1000);
    rig.settle();
    assert_eq!(rig.storage.stats().compactions, 1);
}

#[test]
fn job_keeps_to_its_bandwidth() {
    let mut rig = Rig::with(StorageConfig { compaction_bytes_per_second: 1024, ..config() }, 7);
    rig.log_config = LogConfig { compact: false, ..compacted() };
    rig.recover();
    for _ in 0..60 {
        put(&mut rig, 0, 150);
        rig.settle();
    }
    rig.log_config = compacted();
    rig.open(0);
    rig.settle();
    assert!(job_is_running(&rig));
    let at = rig.storage.poll_timeout().unwrap();
    // The first slice of 256 KiB at 1 KiB a second; the clock stands near zero.
    assert!((255..=256).contains(&at.since(rig.now).as_secs()), "{at:?}");
    rig.wait(200_000);
    rig.settle();
    assert!(job_is_running(&rig));
    rig.wait(57_000);
    rig.settle();
    assert!(!job_is_running(&rig));
    check_log(&mut rig, 0, false);
}

#[test]
fn young_records_are_compacted_when_they_have_come_of_age() {
    let mut rig = started(8);
    let lag_ms = 3_600_000;
    rig.log_config.compaction_lag_ms = lag_ms;
    // Records of 1970 are old, and the clock of the test begins a while after.
    rig.config.wall_ms_at_zero = 0;
    rig.restart();
    rig.recover();
    for _ in 0..60 {
        put(&mut rig, 0, 150);
        rig.settle();
    }
    let first = rig.storage.poll_timeout().expect("a look is due");
    assert_eq!(first.as_nanos(), (lag_ms as u64 + 1) * 1_000_000);
    rig.wait(lag_ms as u64);
    rig.settle();
    assert_eq!(rig.storage.stats().compactions, 0);
    rig.wait(1);
    rig.settle();
    assert_eq!(rig.storage.stats().compactions, 1);
}

#[test]
fn small_segments_are_closed_and_compacted_though_moves_are_large() {
    let config = StorageConfig {
        move_bytes: 1 << 20,
        tail_bytes_max: 1 << 20,
        unmoved_bytes_soft: 1 << 20,
        unmoved_bytes_max: 2 << 20,
        checkpoint_bytes: 1 << 30,
        ..config()
    };
    let mut rig = Rig::with(config, 9);
    rig.log_config = compacted();
    rig.recover();
    rig.wait(1000);
    for _ in 0..60 {
        put(&mut rig, 0, 150);
        rig.settle();
    }
    assert!(rig.storage.stats().compactions > 0);
    check_log(&mut rig, 0, false);
}

#[test]
fn what_was_compacted_away_is_not_read_from_memory() {
    let mut rig = Rig::with(StorageConfig { tail_bytes_max: 1 << 20, ..config() }, 10);
    rig.log_config = compacted();
    rig.recover();
    rig.wait(1000);
    for _ in 0..60 {
        put(&mut rig, 0, 150);
        rig.settle();
    }
    assert!(rig.storage.stats().compactions > 0);
    let slot = rig.open(0);
    let batches: Vec<Bytes> = rig.content(0).batches.into_iter().map(|(.., bytes)| bytes).collect();
    let (appended, got) = (records_of(&batches).len(), records_of(&rig.read_all(slot, Offset::ZERO)).len());
    assert!(got < appended, "all {appended} records are read though some were compacted away");
    check_log(&mut rig, 0, false);
}

/// One life of random work.
fn live(rig: &mut Rig, cut: &mut BTreeSet<PartitionId>, steps: usize) {
    for _ in 0..steps {
        let index = rig.random.below(3) as u32;
        match rig.random.below(60) {
            0..=19 => {
                let len = rig.random.below(400);
                put(rig, index, len);
            }
            20 => {
                let content = rig.content(index);
                let back = rig.random.below(4);
                if let Some(at) = content.batches.len().checked_sub(1 + back)
                    && content.batches[at].0 >= content.start
                {
                    let end = content.batches[at].0;
                    // What was compacted may be cut here, unlike in a cluster: older values do not come back.
                    cut.insert(partition(index));
                    rig.truncate(index, end);
                }
            }
            21 => {
                let content = rig.content(index);
                let span = (content.end.0 - content.start.0) as usize;
                let start = content.start.plus(rig.random.below(span / 2 + 1) as u64);
                if start > content.start {
                    rig.advance_start(index, start);
                }
            }
            22 if rig.random.one_in(4) => {
                rig.drop_log(index);
            }
            23 | 24 => {
                let ms = rig.random.below(80) as u64;
                rig.wait(ms);
            }
            25 if rig.random.one_in(3) => rig.wait(61_000),
            26 => {
                rig.log_config.compact ^= rig.random.one_in(3);
                rig.open(index);
            }
            _ => {
                rig.complete_one();
            }
        }
        assert_eq!(rig.fatal, None);
    }
}

fn random_lives(seed: u64) -> u64 {
    let mut rig = rig(seed);
    let mut cut = BTreeSet::new();
    let mut compactions = 0;
    for _ in 0..8 {
        rig.recover();
        check_all(&mut rig, &cut);
        rig.wait(1000);
        let steps = 100 + rig.random.below(900);
        live(&mut rig, &mut cut, steps);
        if rig.random.one_in(2) {
            check_all(&mut rig, &cut);
        }
        compactions += rig.storage.stats().compactions;
        let with_power = rig.random.one_in(2);
        if rig.random.one_in(4) {
            rig.stop();
            rig.flushed = rig.flushed.max(rig.last_chunk());
        }
        rig.crash(with_power);
    }
    compactions
}

#[test]
fn random_histories_with_compaction_survive_crashes() {
    let seeds = std::env::var("HIGHWATER_STORAGE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let mut compactions = 0;
    for seed in 0..seeds {
        match std::panic::catch_unwind(|| random_lives(seed)) {
            Ok(count) => compactions += count,
            Err(panic) => {
                eprintln!("seed {seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(compactions > seeds, "{compactions} compactions");
}
