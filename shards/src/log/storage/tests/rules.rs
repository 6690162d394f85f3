//! One rule each.

use super::model::Random;
use super::rig::{Rig, partition, small_config};
use crate::ids::Offset;
use crate::log::disk::FileName;
use crate::log::journal::Urgency;
use crate::log::storage::Start;
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
