//! Placing, group commit, files, backlog, stop.

use super::super::*;
use super::model::op_no;
use super::rig::*;

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
        let at = rig.at(rig.log.len() - 1);
        assert!(at.position >= SEC && at.position + 2 * SEC <= 16 * SEC);
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
    for _ in 0..13 {
        rig.sync(3000);
        rig.run();
    }
    for _ in 0..4 {
        rig.sync(5000);
    }
    rig.poll();
    let mut syncs = Vec::new();
    while !rig.disk.in_flight.is_empty() {
        if let DiskOp::Sync { file, .. } = rig.disk.in_flight[0].op {
            assert!(rig.flushed < 17);
            syncs.push(file);
        }
        rig.complete(0);
        rig.poll();
    }
    assert_eq!(rig.flushed, 17);
    assert_eq!((rig.at(13).file, rig.at(16).file), (FileNo(0), FileNo(1)));
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
    assert_eq!(rig.at(rig.log.len() - 1).file, FileNo(1));
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
        Some(RecoveryReport {
            files: 2,
            chunks: 2,
            batches: 1,
            bytes: rig.report.unwrap().bytes,
            notes: 0,
            cut: None
        })
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
