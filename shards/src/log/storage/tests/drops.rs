//! Partitions that are dropped while the journal takes no note of it.

use super::rig::{Rig, partition};
use crate::ids::Offset;
use crate::log::disk::FileName;
use crate::log::journal::{AppendRefused, Urgency};
use crate::log::storage::Start;

/// A life that ends with a stop and a partition 0 whose drop only the checkpoint tells of.
fn stopped_with_an_untold_drop(seed: u64) -> Rig {
    let mut rig = Rig::started(seed);
    for _ in 0..10 {
        rig.append(0, 3_000, Urgency::Sync).unwrap();
        rig.rest();
    }
    rig.disk.is_full = true;
    let refused = (0..2_000).find_map(|_| {
        let refused = rig.append(1, 5_000, Urgency::Sync).err();
        rig.settle();
        rig.wait(10);
        refused
    });
    assert_eq!(refused, Some(AppendRefused::Full));
    rig.drop_log(0);
    assert_eq!((rig.storage.slot(partition(0)), rig.storage.undropped.len()), (None, 1));
    // The disk has room again, which the journal finds out in a while only.
    rig.disk.is_full = false;
    rig.stop_untold();
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
        rig.disk.files.remove(&FileName::Checkpoint);
        rig.crash(true);
        rig.recover();
        assert_eq!(rig.report.unwrap().start, Start::Rebuilt);
        rig.check_recovered();
    }
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
        rig.disk.files.remove(&FileName::Checkpoint);
        rig.crash(true);
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
