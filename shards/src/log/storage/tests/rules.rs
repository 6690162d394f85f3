//! One rule each.

use super::rig::Rig;
use crate::log::journal::Urgency;
use crate::log::storage::Start;

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
