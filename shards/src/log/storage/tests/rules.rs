//! One rule each.

use std::time::Duration;

use super::rig::{Rig, partition, small_config};
use crate::ids::Offset;
use crate::log::FatalReason;
use crate::log::disk::{DiskError, DiskOp, FileName};
use crate::log::journal::{AppendRefused, OnDamage, Urgency};
use crate::log::random::Random;
use crate::log::storage::{FoundBatch, Start, StorageConfig};
use crate::mail::LogConfig;

#[test]
fn batches_are_moved_checkpointed_and_read_back() {
    let mut rig = Rig::started(1);
    for i in 0..200 {
        rig.append(i % 3, 900, Urgency::Sync).unwrap();
        rig.settle();
    }
    rig.rest();
    assert!(rig.storage.stats().checkpoints > 0);
    rig.check_contents();
    rig.crash(true);
    rig.recover();
    rig.check_recovered();
    assert_eq!(rig.report.unwrap().start, Start::Checkpoint);
}

#[test]
fn clean_stop_is_followed_by_a_start_that_reads_no_segment() {
    let mut rig = Rig::started(2);
    for i in 0..50 {
        rig.append(i % 3, 900, Urgency::Lazy).unwrap();
    }
    rig.stop();
    rig.restart();
    let reads = rig.disk.segment_reads;
    rig.recover();
    assert_eq!(rig.report.unwrap().start, Start::Clean);
    assert_eq!(rig.disk.segment_reads, reads);
    rig.check_contents();
}

#[test]
fn stop_at_each_operation_of_a_recovery_ends_it_and_leaves_everything_for_the_next_start() {
    for steps in 0.. {
        let mut rig = Rig::started(steps);
        for i in 0..60 {
            rig.append(i % 3, 3000, Urgency::Sync).unwrap();
        }
        rig.settle();
        rig.crash(true);
        let mut left = steps;
        while left > 0 && rig.report.is_none() {
            assert!(rig.complete_one(), "a recovery ends");
            left -= 1;
        }
        let is_over = rig.report.is_some();
        rig.stop();
        assert_eq!(rig.storage.poll_timeout(), None);
        rig.crash(true);
        rig.recover();
        rig.check_recovered();
        if is_over {
            assert!(steps > 10, "it is stopped at many moments");
            return;
        }
    }
}

#[test]
fn crash_at_each_operation_of_a_short_history_loses_nothing_that_was_flushed() {
    for with_power in [false, true] {
        for steps in 0.. {
            let mut rig = Rig::started(steps);
            let mut left = steps;
            let mut is_over = false;
            'history: {
                for i in 0..60 {
                    let _ = rig.append((i % 2) as u32, 3000, Urgency::Sync);
                    if i == 30 {
                        let batches = rig.content(0).batches;
                        rig.truncate(0, batches[batches.len() - 5].1);
                    }
                    if i == 40 {
                        let start = rig.content(1).batches[4].1;
                        rig.advance_start(1, start);
                    }
                    if i == 50 {
                        rig.drop_log(0);
                    }
                    for _ in 0..4 {
                        if left == 0 {
                            break 'history;
                        }
                        left -= u64::from(rig.complete_one());
                    }
                }
                is_over = true;
            }
            rig.crash(with_power);
            rig.recover();
            rig.check_recovered();
            if is_over {
                break;
            }
        }
    }
}

/// A life in which the journal's writes never end, as long as `trusts` what is not flushed.
fn life_without_flushes(trusts: bool) {
    let mut rig = Rig::started(13);
    rig.append(0, 3000, Urgency::Sync).unwrap();
    rig.rest();
    rig.trusts_unflushed = trusts;
    for i in 0..30 {
        let _ = rig.append(i % 2, 6000, Urgency::Sync);
        rig.drain();
        while let Some(index) =
            rig.disk.in_flight.iter().position(|(op, _)| !matches!(op, DiskOp::Write { .. }))
        {
            let event = rig.disk.complete(index);
            rig.storage.handle(rig.now, event);
            rig.drain();
        }
    }
    rig.disk.in_flight.clear();
    rig.trusts_unflushed = false;
    rig.crash(true);
    rig.recover();
    rig.check_recovered();
}

#[test]
fn planted_moves_and_notes_beyond_what_is_flushed_are_caught() {
    life_without_flushes(false);
    assert!(std::panic::catch_unwind(|| life_without_flushes(true)).is_err());
}

#[test]
fn full_disk_slows_then_refuses_and_goes_on_by_itself_when_there_is_room() {
    let mut rig = Rig::started(3);
    rig.append(0, 5000, Urgency::Sync).unwrap();
    rig.rest();
    rig.disk.is_full = true;
    let mut refused = None;
    for _ in 0..2000 {
        if let Err(reason) = rig.append(0, 5000, Urgency::Sync) {
            refused = Some(reason);
            break;
        }
        rig.settle();
        rig.wait(10);
    }
    assert_eq!(refused, Some(AppendRefused::Full));
    assert_eq!(rig.fatal, None);
    rig.check_contents();
    rig.disk.is_full = false;
    for _ in 0..10 {
        rig.wait(1000);
        rig.settle();
    }
    rig.append(0, 5000, Urgency::Sync).unwrap();
    rig.rest();
    rig.check_contents();
}

#[test]
fn throttle_grows_from_the_soft_bound_to_the_hard_one() {
    let mut config = small_config();
    config.unmoved_bytes_max = 256 * 1024;
    let mut rig = Rig::with(config, 4);
    rig.recover();
    let mut last = Duration::ZERO;
    let refused = loop {
        assert!(rig.storage.throttle() >= last);
        last = rig.storage.throttle();
        if let Err(reason) = rig.append(0, 5000, Urgency::Sync) {
            break reason;
        }
    };
    assert_eq!(refused, AppendRefused::Overloaded);
    assert!(last > Duration::from_millis(800), "{last:?}");
    rig.rest();
    assert_eq!(rig.storage.throttle(), Duration::ZERO);
}

#[test]
fn failed_write_or_sync_of_a_segment_ends_the_shard() {
    for is_wanted in [
        |op: &DiskOp| matches!(op, DiskOp::Put { .. }),
        |op: &DiskOp| matches!(op, DiskOp::Sync { file: FileName::Segment(_), .. }),
    ] {
        let mut rig = Rig::started(5);
        while rig.fatal.is_none() {
            let _ = rig.append(0, 5000, Urgency::Sync);
            rig.drain();
            match rig.disk.in_flight.iter().position(|(op, _)| is_wanted(op)) {
                Some(index) => {
                    let event = rig.disk.fail(index, DiskError::Io(5));
                    rig.storage.handle(rig.now, event);
                    rig.drain();
                }
                None => {
                    rig.complete_one();
                }
            }
        }
        assert!(matches!(rig.fatal, Some(FatalReason::SegmentFailed { .. })), "{:?}", rig.fatal);
        rig.crash(true);
        rig.recover();
        rig.check_recovered();
    }
}

#[test]
fn failed_checkpoint_for_lack_of_room_leaves_the_one_before() {
    let mut rig = Rig::started(6);
    let mut failures = 0;
    for i in 0..200 {
        let _ = rig.append(i % 3, 3000, Urgency::Sync);
        rig.drain();
        let is_replaced = |op: &DiskOp| matches!(op, DiskOp::Replace { .. } | DiskOp::SyncFolder { .. });
        if failures < 5
            && let Some(index) = rig.disk.in_flight.iter().position(|(op, _)| is_replaced(op))
        {
            failures += 1;
            let event = rig.disk.fail(index, DiskError::NoSpace);
            rig.storage.handle(rig.now, event);
        }
        rig.complete_one();
        rig.complete_one();
        rig.wait(300);
    }
    assert_eq!((failures, rig.fatal.clone()), (5, None));
    rig.rest();
    assert!(rig.storage.stats().checkpoints > 0);
    rig.crash(true);
    rig.recover();
    rig.check_recovered();
}

#[test]
fn old_segments_go_by_time_once_the_high_watermark_passed_them() {
    let mut rig = Rig::new(7);
    rig.log_config.retention_ms = Some(10_000);
    rig.recover();
    let wall = rig.config.wall_ms_at_zero;
    for i in 0..40_i64 {
        rig.append_at(0, 3000, Urgency::Sync, wall + i * 100).unwrap();
        rig.rest();
    }
    let files = |rig: &Rig| rig.disk.files.keys().filter(|f| matches!(f, FileName::Segment(_))).count();
    let before = files(&rig);
    rig.withheld = true;
    rig.wait(15_000);
    rig.rest();
    assert_eq!((rig.started.len(), files(&rig)), (0, before));
    rig.withheld = false;
    rig.wait(20_000);
    rig.rest();
    let slot = rig.storage.slot(partition(0)).unwrap();
    let (start, end) = (rig.storage.start(slot).unwrap(), rig.storage.end(slot).unwrap());
    assert!(start > Offset::ZERO && start <= end, "{start} of {end}");
    assert!(files(&rig) < before);
    rig.check_contents();
    rig.crash(true);
    rig.recover();
    rig.check_recovered();
}

#[test]
fn oldest_segments_go_by_size() {
    let mut rig = Rig::new(8);
    rig.log_config.retention_bytes = Some(60_000);
    rig.recover();
    for _ in 0..100 {
        rig.append(0, 3000, Urgency::Sync).unwrap();
        rig.rest();
    }
    let bytes = rig.storage.stats().segment_bytes;
    assert!((60_000..60_000 + 2 * 24 * 1024).contains(&bytes), "{bytes}");
    rig.check_contents();
}

#[test]
fn lost_checkpoint_is_made_up_for_by_segments_and_journal() {
    for is_damaged in [false, true] {
        let mut rig = Rig::started(9);
        for i in 0..150 {
            rig.append(i % 3, 2000, Urgency::Sync).unwrap();
            rig.settle();
        }
        rig.rest();
        rig.crash(true);
        match is_damaged {
            true => rig.disk.files.get_mut(&FileName::Checkpoint).unwrap().content[70] ^= 1,
            false => drop(rig.disk.files.remove(&FileName::Checkpoint)),
        }
        rig.recover();
        rig.check_recovered();
        assert_eq!(rig.report.unwrap().start, Start::Rebuilt);
        rig.append(0, 100, Urgency::Sync).unwrap();
        rig.stop();
        rig.restart();
        rig.recover();
        rig.check_contents();
    }
}

#[test]
fn missing_records_are_refused_or_cut_off_as_configured() {
    for on_damage in [OnDamage::Refuse, OnDamage::Truncate] {
        let mut rig = Rig::started(10);
        for _ in 0..150 {
            rig.append(0, 2000, Urgency::Sync).unwrap();
            rig.settle();
        }
        rig.rest();
        rig.crash(true);
        rig.disk.files.remove(&FileName::Checkpoint);
        let segments: Vec<FileName> =
            rig.disk.files.keys().copied().filter(|f| matches!(f, FileName::Segment(_))).collect();
        rig.disk.files.remove(&segments[3]);
        rig.config.journal.on_damage = on_damage;
        rig.restart();
        rig.settle();
        let FileName::Segment(lost) = segments[3] else { unreachable!("a segment was lost") };
        match on_damage {
            OnDamage::Refuse => assert!(
                matches!(rig.fatal, Some(FatalReason::LogDamaged { end, .. }) if end == lost.base),
                "{:?}",
                rig.fatal
            ),
            OnDamage::Truncate => {
                assert_eq!(rig.report.unwrap().damaged_logs, 1);
                let slot = rig.storage.slot(partition(0)).unwrap();
                assert_eq!(rig.storage.end(slot), Some(lost.base));
            }
        }
    }
}

#[test]
fn log_that_was_emptied_stays_so_without_a_checkpoint() {
    for seed in 0..20 {
        let mut rig = Rig::started(seed);
        for _ in 0..3 {
            rig.append(0, 3_000, Urgency::Sync).unwrap();
            rig.rest();
        }
        let slot = rig.storage.slot(partition(0)).unwrap();
        rig.truncate(0, Offset::ZERO);
        rig.rest();
        assert!(rig.storage.log(slot).unwrap().segments.is_empty());
        // The journal lets go of the note.
        for _ in 0..200 {
            rig.append(1, 3_000, Urgency::Sync).unwrap();
            rig.settle();
        }
        rig.rest();
        rig.disk.crash(&mut Random(seed), true);
        rig.disk.files.remove(&FileName::Checkpoint);
        rig.restart();
        rig.recover();
        assert_eq!(rig.report.unwrap().start, Start::Rebuilt);
        assert_eq!(rig.fatal, None);
        let end = rig.storage.slot(partition(0)).and_then(|slot| rig.storage.end(slot));
        assert_eq!(end.unwrap_or_default(), Offset::ZERO, "seed {seed}");
    }
}

#[test]
fn dropped_partition_leaves_no_file_and_can_be_opened_anew() {
    let mut rig = Rig::started(11);
    for _ in 0..30 {
        rig.append(0, 2000, Urgency::Sync).unwrap();
    }
    rig.rest();
    rig.drop_log(0);
    assert_eq!(rig.storage.slot(partition(0)), None);
    rig.append(0, 100, Urgency::Sync).unwrap();
    rig.rest();
    rig.check_contents();
    rig.drop_log(0);
    rig.rest();
    assert!(!rig.disk.files.keys().any(|f| matches!(f, FileName::Segment(_))));
    rig.stop();
    rig.restart();
    rig.recover();
    assert_eq!(rig.storage.slots().count(), 0);
}

#[test]
fn records_are_found_by_time_in_segments_and_in_memory() {
    let mut rig = Rig::started(12);
    for i in 0..100 {
        rig.append_at(0, 2000, Urgency::Sync, 1000 + i).unwrap();
        rig.settle();
    }
    rig.rest();
    let slot = rig.storage.slot(partition(0)).unwrap();
    let end = rig.storage.end(slot).unwrap();
    let batches = rig.content(0).batches;
    for i in [0, 1, 50, 98, 99] {
        rig.ticket += 1;
        let ticket = rig.ticket;
        let found = match rig.storage.find_timestamp(rig.now, slot, 1000 + i as i64, end, ticket) {
            FoundBatch::Memory(bytes) => bytes,
            FoundBatch::Later => {
                rig.settle();
                rig.reads.remove(&ticket).unwrap().remove(0)
            }
            FoundBatch::Nothing => panic!("{i} is there"),
        };
        assert_eq!(found, batches[i].2);
    }
    assert_eq!(rig.storage.largest_timestamp(slot, end), Some(1099));
    let none = rig.storage.find_timestamp(rig.now, slot, 1100, end, 9999);
    assert!(matches!(none, FoundBatch::Nothing));
}

#[test]
fn idle_log_takes_less_than_a_kibibyte() {
    assert!(
        size_of::<crate::log::storage::log::Log>() < 700,
        "{}",
        size_of::<crate::log::storage::log::Log>()
    );
}

#[test]
fn records_that_never_fill_a_move_are_deleted_when_they_are_old() {
    let mut rig = Rig::with(small_config(), 3);
    rig.log_config = LogConfig { delete: true, retention_ms: Some(5_000), ..LogConfig::default() };
    rig.recover();
    let wall_ms = rig.config.wall_ms_at_zero;
    rig.append_at(0, 100, Urgency::Sync, wall_ms).unwrap();
    rig.rest();
    let slot = rig.storage.slot(partition(0)).unwrap();
    let end = rig.storage.end(slot).unwrap();
    rig.wait(4_000);
    rig.rest();
    assert_eq!(rig.storage.start(slot), Some(Offset::ZERO), "it is not old yet");
    for _ in 0..4 {
        rig.wait(5_000);
        rig.rest();
    }
    assert_eq!(rig.storage.start(slot), Some(end));
    assert_eq!(rig.started, [(slot, end)]);
}

#[test]
fn log_without_segments_goes_on_where_the_journal_does_when_the_checkpoint_is_lost() {
    for seed in 0..4 {
        let mut rig = Rig::started(seed);
        for _ in 0..3 {
            rig.append(0, 3_000, Urgency::Sync).unwrap();
        }
        rig.rest();
        let end = rig.content(0).end;
        rig.advance_start(0, end);
        rig.rest();
        // The journal lets go of the note, and nothing else is left that has segments.
        for _ in 0..200 {
            rig.append(1, 3_000, Urgency::Sync).unwrap();
            rig.settle();
        }
        rig.drop_log(1);
        rig.rest();
        rig.append(0, 300, Urgency::Sync).unwrap();
        rig.drain();
        // It is flushed and not moved.
        while let Some(index) =
            rig.disk.in_flight.iter().position(|(op, _)| matches!(op, DiskOp::Write { .. }))
        {
            let event = rig.disk.complete(index);
            rig.storage.handle(rig.now, event);
            rig.drain();
        }
        assert_eq!(rig.flushed, rig.last_chunk());
        assert!(!rig.disk.files.keys().any(|file| matches!(file, FileName::Segment(_))));
        rig.crash(true);
        rig.disk.files.remove(&FileName::Checkpoint);
        rig.recover();
        rig.check_recovered();
        assert_eq!(rig.report.unwrap().start, Start::Rebuilt);
    }
}

#[test]
fn what_came_while_a_checkpoint_was_made_is_released_when_little_more_comes() {
    let mut config = small_config();
    config.journal.file_bytes = 64 * 1024;
    let checkpoint_bytes = config.checkpoint_bytes;
    let mut rig = Rig::with(config, 5);
    rig.recover();
    let is_replace = |op: &DiskOp| matches!(op, DiskOp::Replace { .. });
    while !rig.disk.in_flight.iter().any(|(op, _)| is_replace(op)) {
        rig.append(0, 3_000, Urgency::Sync).unwrap();
        rig.complete_one();
    }
    for _ in 0..70 {
        rig.append(0, 3_000, Urgency::Sync).unwrap();
        rig.drain();
        while let Some(index) = rig.disk.in_flight.iter().position(|(op, _)| !is_replace(op)) {
            let event = rig.disk.complete(index);
            rig.storage.handle(rig.now, event);
            rig.drain();
        }
    }
    rig.rest();
    let live = rig.storage.journal_stats().live_bytes;
    assert!(live > checkpoint_bytes + 64 * 1024, "{live}");
    let checkpoints = rig.storage.stats().checkpoints;
    for _ in 0..20 {
        rig.wait(1_000);
        rig.settle();
    }
    let live = rig.storage.journal_stats().live_bytes;
    assert!(live < checkpoint_bytes, "{live}");
    // One is enough, and then there is nothing to wake up for.
    assert_eq!(rig.storage.stats().checkpoints, checkpoints + 1);
    assert_eq!(rig.storage.poll_timeout(), None);
}

#[test]
fn files_that_a_killed_life_removed_do_not_come_back_after_the_next_checkpoint() {
    let is_replace = |op: &DiskOp| matches!(op, DiskOp::Replace { .. });
    for seed in 0..20 {
        let mut rig = Rig::started(seed);
        while rig.storage.stats().checkpoints == 0 {
            rig.append(0, 3_000, Urgency::Sync).unwrap();
            rig.complete_one();
        }
        // Segments that were synced for a checkpoint that never came.
        while !rig.disk.in_flight.iter().any(|(op, _)| is_replace(op)) {
            rig.append(0, 3_000, Urgency::Sync).unwrap();
            rig.complete_one();
            rig.complete_one();
        }
        rig.crash(false);
        rig.log_config.segment_bytes = 1 << 20;
        // The next life removes them, and comes no further.
        let comes_later = |op: &DiskOp| {
            matches!(op, DiskOp::Put { .. } | DiskOp::SyncFolder { .. } | DiskOp::Replace { .. })
        };
        rig.drain();
        while let Some(index) = rig.disk.in_flight.iter().position(|(op, _)| !comes_later(op)) {
            let event = rig.disk.complete(index);
            rig.storage.handle(rig.now, event);
            rig.drain();
        }
        assert!(rig.report.is_some());
        rig.crash(false);
        rig.recover();
        // What they held goes into one large segment, and the journal forgets it.
        for _ in 0..200 {
            rig.append(1, 3_000, Urgency::Sync).unwrap();
            rig.settle();
        }
        rig.rest();
        rig.crash(true);
        rig.disk.files.remove(&FileName::Checkpoint);
        rig.recover();
        rig.check_recovered();
    }
}

#[test]
fn nothing_is_moved_in_recovery_that_the_power_may_take_from_the_journal() {
    let mut rig = Rig::started(1);
    for _ in 0..3 {
        rig.append(0, 7_000, Urgency::Sync).unwrap();
    }
    rig.drain();
    // The process ends when the disk has the write, and before anything says so.
    let index = rig.disk.in_flight.iter().position(|(op, _)| matches!(op, DiskOp::Write { .. })).unwrap();
    let _ = rig.disk.complete(index);
    rig.crash(false);
    let is_journal_sync = |op: &DiskOp| matches!(op, DiskOp::Sync { file: FileName::Journal(_), .. });
    rig.drain();
    while let Some(index) = rig.disk.in_flight.iter().position(|(op, _)| !is_journal_sync(op)) {
        assert!(!matches!(rig.disk.in_flight[index].0, DiskOp::Put { .. }), "a move comes too early");
        let event = rig.disk.complete(index);
        rig.storage.handle(rig.now, event);
        rig.drain();
    }
    assert!(rig.report.is_none() && !rig.disk.in_flight.is_empty());
    rig.rest();
    rig.check_recovered();
    assert!(rig.disk.files.keys().any(|file| matches!(file, FileName::Segment(_))));
}

#[test]
fn checkpoint_leaves_the_disk_to_the_journal_until_that_needs_the_room() {
    let is_sync = |op: &DiskOp| {
        matches!(
            op,
            DiskOp::SyncFolder { .. } | DiskOp::Sync { file: FileName::Segment(_) | FileName::Index(_), .. }
        )
    };
    // The most syncs that were under way at once, in a life with room for so many bytes in the journal.
    let most_syncs = |journal_bytes_max: u64| {
        let mut rig = Rig::with(StorageConfig { journal_bytes_max, ..small_config() }, 31);
        rig.recover();
        let mut most = 0;
        for i in 0..200 {
            rig.append(i % 20, 3000, Urgency::Sync).unwrap();
            while rig.complete_one() {
                most = most.max(rig.disk.in_flight.iter().filter(|(op, _)| is_sync(op)).count());
            }
        }
        assert!(rig.storage.stats().checkpoints > 0);
        rig.check_contents();
        most
    };
    assert_eq!(most_syncs(64 * 1024 * 1024), 2);
    assert_eq!(most_syncs(320 * 1024), small_config().syncs_in_flight_max);
}

#[test]
fn few_moves_are_in_flight_at_a_time_until_they_are_behind() {
    let most_in_flight = |unmoved_bytes_soft: u64| {
        let config = StorageConfig {
            moves_in_flight_max: 8,
            unmoved_bytes_soft,
            unmoved_bytes_max: 1 << 20,
            tail_bytes_max: 1 << 20,
            checkpoint_bytes: 1 << 30,
            ..small_config()
        };
        let mut rig = Rig::with(config, 5);
        rig.recover();
        for index in 0..12 {
            rig.append(index, 7000, Urgency::Sync).unwrap();
        }
        let mut most = 0;
        while rig.complete_one() {
            most = most.max(rig.storage.works);
        }
        rig.check_contents();
        most
    };
    assert_eq!(most_in_flight(1 << 20), 4);
    assert_eq!(most_in_flight(0), 8);
}
