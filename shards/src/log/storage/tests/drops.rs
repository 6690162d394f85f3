//! Partitions that are dropped while the journal takes no note of it.

use super::rig::{Rig, partition, small_config};
use crate::ids::Offset;
use crate::log::disk::{DiskOp, FileName};
use crate::log::journal::{AppendRefused, Urgency};
use crate::log::storage::{Start, StorageConfig};

/// A life that ends with a stop and a partition 0 whose drop only the checkpoint tells of.
fn stopped_with_an_untold_drop(seed: u64) -> Rig {
    // No checkpoint comes between, which would find the disk full.
    let mut rig = Rig::with(StorageConfig { checkpoint_bytes: 1 << 20, ..small_config() }, seed);
    rig.recover();
    let mut rig = with_an_untold_drop(rig);
    rig.stop_untold();
    rig
}

/// Partition 0 is dropped, and the journal has not found out yet that there is room for the note.
fn with_an_untold_drop(mut rig: Rig) -> Rig {
    for _ in 0..10 {
        rig.append(0, 3_000, Urgency::Sync).unwrap();
        rig.rest();
    }
    rig.disk.is_full = true;
    // Notes that change nothing, until there is no room for another one.
    let slot = rig.open(1);
    let end = Offset::ZERO;
    let refused = (0..2_000).find_map(|_| {
        let refused = rig.storage.truncate(rig.now, slot, end).err();
        rig.settle();
        refused
    });
    assert_eq!(refused, Some(AppendRefused::Full));
    rig.drop_log(0);
    assert_eq!((rig.storage.slot(partition(0)), rig.storage.undropped.len()), (None, 1));
    // The disk has room again, which the journal finds out in a while only.
    rig.disk.is_full = false;
    rig
}

impl Rig {
    fn stop_untold(&mut self) {
        self.storage.stop(self.now);
        for _ in 0..20 {
            self.settle();
            self.wait(1_000);
        }
        assert!(self.stopped, "{:?}", self.storage);
    }

    fn files_of(&self, index: u32) -> usize {
        let is_its =
            |file: &&FileName| matches!(file, FileName::Segment(name) if name.partition == partition(index));
        self.disk.files.keys().filter(is_its).count()
    }
}

#[test]
fn drop_that_only_the_checkpoint_tells_holds_when_that_is_lost_later() {
    for seed in 0..4 {
        let mut rig = stopped_with_an_untold_drop(seed);
        rig.restart();
        rig.recover();
        assert_eq!(rig.report.unwrap().start, Start::Clean);
        assert_eq!(rig.storage.slot(partition(0)), None);
        rig.rest();
        assert_eq!(rig.files_of(0), 0, "its folder is gone");
        for _ in 0..3 {
            rig.append(0, 2_000, Urgency::Sync).unwrap();
        }
        rig.rest();
        rig.crash(true);
        rig.disk.files.remove(&FileName::Checkpoint);
        rig.recover();
        rig.check_recovered();
    }
}

#[test]
fn drop_that_only_the_checkpoint_tells_is_not_taken_for_an_earlier_one() {
    let mut rig = Rig::started(5);
    rig.append(0, 3_000, Urgency::Sync).unwrap();
    rig.rest();
    rig.drop_log(0);
    rig.rest();
    let mut rig = with_an_untold_drop(rig);
    let checkpoints = rig.storage.stats().checkpoints;
    rig.storage.checkpoints.need();
    while rig.storage.stats().checkpoints == checkpoints {
        rig.drain();
        // The journal gets no file that it could write the note to.
        let makes_file = |op: &DiskOp| matches!(op, DiskOp::Prepare { .. } | DiskOp::Recycle { .. });
        match rig.disk.in_flight.iter().position(|(op, _)| !makes_file(op)) {
            Some(index) => {
                let event = rig.disk.complete(index);
                rig.storage.handle(rig.now, event);
            }
            None => rig.wait(1_000),
        }
    }
    assert_eq!(rig.storage.undropped.len(), 1);
    rig.flushed = 0;
    rig.crash(true);
    rig.recover();
    // The first one is replayed, and the second one still holds.
    assert_eq!((rig.fatal.clone(), rig.report.unwrap().start), (None, Start::Checkpoint));
    assert_eq!(rig.storage.slot(partition(0)), None);
}

#[test]
fn folder_of_an_untold_drop_stays_until_the_journal_has_the_note() {
    for steps in 0..60 {
        let mut rig = stopped_with_an_untold_drop(7);
        let before = rig.files_of(0);
        rig.restart();
        rig.recover();
        for _ in 0..steps {
            rig.complete_one();
        }
        if rig.files_of(0) < before {
            let slot = rig.storage.logs.iter().flatten().find(|log| log.partition == partition(0));
            let told = slot.map(|log| log.dropped.expect("the journal was told").chunk);
            assert!(told.is_none_or(|chunk| chunk <= rig.storage.flushed));
        }
        // Whenever the power and the checkpoint go, the log is as it was, or gone.
        rig.crash(true);
        rig.disk.files.remove(&FileName::Checkpoint);
        rig.recover();
        assert_eq!(rig.fatal, None, "after {steps} operations");
        if let Some(slot) = rig.storage.slot(partition(0)) {
            let end = rig.storage.end(slot).unwrap();
            assert!(end == Offset::ZERO || rig.read_all(slot, Offset::ZERO).len() == 10);
        }
    }
}

#[test]
fn drop_that_the_journal_knows_is_not_told_again_after_a_clean_stop() {
    let mut rig = Rig::started(3);
    rig.append(0, 3_000, Urgency::Sync).unwrap();
    rig.append(1, 3_000, Urgency::Sync).unwrap();
    rig.rest();
    rig.drop_log(0);
    rig.rest();
    rig.stop();
    rig.restart();
    rig.recover();
    rig.rest();
    assert_eq!(rig.report.unwrap().start, Start::Clean);
    assert!(rig.storage.tombs.is_empty());
}
