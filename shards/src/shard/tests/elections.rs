//! Leaders that come and go: fencing, logs that part, and what must not be lost on the way.

use super::cluster::*;
use super::*;
use crate::batch::BatchProducer;
use crate::ids::{ProducerEpoch, ProducerId, Sequence};
use crate::stream::{Encoder, Ends, Handle};

fn quorum(isr_min: u32) -> PartitionConfig {
    PartitionConfig { isr_min, ..PartitionConfig::default() }
}

fn led_by_a() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.assign(0, A, 1, &[A, B, C], quorum(2));
    cluster
}

#[test]
fn r15_a_deposed_leader_refuses_who_waits_and_its_followers_leave_it() {
    let mut cluster = led_by_a();
    cluster.held = [(B, A), (C, A)].into();
    let token = cluster.append(A, 0, "a");
    cluster.assign_only(0, B, 2, &[B, C], quorum(2), &[A]);
    assert_eq!(cluster.error(A, token), Some(PartitionError::NotLeader));
    cluster.held.clear();
    cluster.run();
    assert_eq!(cluster.replica(A, 0).high_watermark(), Offset(0), "late acknowledgements move nothing");
    cluster.tell(0, B);
    cluster.tell(0, C);
    cluster.assert_same(0, 1);
}

#[test]
fn r15_acknowledgements_of_the_epoch_before_do_not_commit_in_this_one() {
    let mut cluster = led_by_a();
    cluster.held = [(B, A), (C, A)].into();
    cluster.append(A, 0, "a");
    // The same leader in a new epoch; followers do not know yet.
    cluster.assign_only(0, A, 2, &[A, B, C], quorum(2), &[A]);
    cluster.held.clear();
    cluster.run();
    assert_eq!(cluster.ends(A, 0), (0, 0, 1));
    cluster.tell(0, B);
    cluster.tell(0, C);
    cluster.settle();
    assert_eq!(cluster.ends(A, 0), (0, 1, 1));
}

#[test]
fn r19_r20_a_deposed_leader_cuts_what_nobody_had_and_takes_what_is_true() {
    let mut cluster = led_by_a();
    cluster.append(A, 0, "common");
    cluster.held = [(A, B), (A, C)].into();
    // What is cut was not even flushed yet.
    cluster.slow_disks.insert(A);
    cluster.append(A, 0, "lost 1");
    cluster.append(A, 0, "lost 2");
    cluster.assign_only(0, B, 2, &[B, C], quorum(2), &[B, C]);
    cluster.held.clear();
    cluster.cut_off(A);
    cluster.settle();
    let token = cluster.append(B, 0, "true");
    assert_eq!(cluster.base(B, token), Some(1));
    assert_eq!(cluster.ends(A, 0).2, 3);
    cluster.cut_off.clear();
    cluster.tell(0, A);
    cluster.settle();
    assert_eq!(cluster.ends(A, 0).2, 2);
    cluster.slow_disks.clear();
    cluster.assert_same(0, 2);
    assert!(!String::from_utf8_lossy(&cluster.log(A, 0)).contains("lost"));
    assert_eq!((cluster.stats(A).truncations, cluster.stats(A).truncations_below_high_watermark), (1, 0));
}

#[test]
fn r20_several_rounds_find_where_logs_of_many_epochs_part() {
    let mut cluster = led_by_a();
    cluster.append(A, 0, "common");
    // A and B lead in turn and nobody hears of what they append.
    for (epoch, leader) in [(2, A), (3, B), (4, A), (5, B), (6, A)] {
        cluster.held = [(A, B), (A, C), (B, A), (B, C)].into();
        cluster.assign_only(0, leader, epoch, &[leader], quorum(1), &[leader]);
        for i in 0..epoch {
            cluster.append(leader, 0, &format!("{leader} {epoch} {i}"));
        }
    }
    assert_eq!((cluster.ends(A, 0).2, cluster.ends(B, 0).2), (13, 9));
    cluster.held.clear();
    for node in [A, B, C] {
        cluster.break_streams(node);
    }
    cluster.assign(0, B, 7, &[B], quorum(1));
    cluster.assert_same(0, 9);
    assert_eq!(cluster.stats(C).truncations, 0);
    assert!(
        cluster.stats(A).truncations_below_high_watermark > 0,
        "two elections were unclean, and it is counted"
    );
}

#[test]
fn r20_truncation_goes_by_epochs_and_not_by_the_high_watermark() {
    // KAFKA-6361: B has a committed record that it does not know to be committed, and restarts.
    let mut cluster = led_by_a();
    cluster.append(A, 0, "a");
    cluster.settle();
    cluster.fence(C);
    cluster.held.insert((A, C));
    cluster.assign(0, A, 1, &[A, B], quorum(2));
    let token = cluster.append(A, 0, "b");
    assert_eq!(cluster.base(A, token), Some(1));
    let files = cluster.kill(B);
    cluster.restart(B, files);
    cluster.held.insert((A, B));
    cluster.tell(0, B);
    assert_eq!(cluster.ends(B, 0).2, 2);
    // A dies before B hears a word of it.
    cluster.kill(A);
    cluster.held.clear();
    cluster.assign_only(0, B, 2, &[B], quorum(1), &[B, C]);
    cluster.settle();
    assert_eq!((cluster.ends(B, 0), cluster.ends(C, 0)), ((0, 2, 2), (0, 2, 2)));
}

#[test]
fn r21_an_answer_that_logs_part_moves_neither_the_high_watermark_nor_progress() {
    // KAFKA-14704 and KAFKA-13141.
    let mut cluster = led_by_a();
    cluster.append(A, 0, "common");
    cluster.settle();
    cluster.held = [(A, B), (A, C)].into();
    cluster.append(A, 0, "lost");
    cluster.assign_only(0, B, 2, &[A, B, C], quorum(1), &[B, C]);
    cluster.held = [(B, A)].into();
    cluster.break_streams(A);
    cluster.append(B, 0, "true");
    let before = cluster.ends(A, 0);
    cluster.tell(0, A);
    cluster.settle();
    assert_eq!(cluster.ends(A, 0), before, "the answer is on its way");
    let of_a = cluster.replica(B, 0).in_sync().unwrap().ends(A).unwrap();
    assert_eq!(of_a.log, Offset(0), "that its log parts from ours is no progress");
    assert_eq!(cluster.ends(B, 0).1, 1, "A is in sync and has said nothing that counts");
    cluster.held.clear();
    cluster.assert_same(0, 2);
}

/// All have one record; A has appended another, which is on its way to both others. Their streams stay whatever becomes of
/// the partition, for another one.
fn with_a_late_record() -> Cluster {
    let mut cluster = led_by_a();
    cluster.assign(1, A, 1, &[A, B, C], quorum(2));
    cluster.append(A, 0, "common");
    cluster.settle();
    cluster.held = [(A, B), (A, C)].into();
    cluster.append(A, 0, "late");
    cluster
}

#[test]
fn r22_records_that_come_late_are_dropped() {
    // KAFKA-18991: what was sent for one epoch arrives in another.
    let mut cluster = with_a_late_record();
    cluster.assign_only(0, C, 2, &[B, C], quorum(2), &[B, C]);
    cluster.held.remove(&(A, C));
    cluster.run();
    cluster.held.clear();
    cluster.settle();
    assert_eq!((cluster.ends(B, 0).2, cluster.ends(C, 0).2), (1, 1));
    let token = cluster.append(C, 0, "true");
    assert_eq!(cluster.base(C, token), Some(1));
    cluster.tell(0, A);
    cluster.assert_same(0, 2);
}

#[test]
fn r22_records_that_come_late_from_the_same_leader_are_dropped() {
    // B hears of nothing; A is deposed and elected again, without what it had appended.
    let mut cluster = with_a_late_record();
    cluster.assign_only(0, C, 2, &[B, C], quorum(2), &[A, C]);
    cluster.held.remove(&(A, C));
    cluster.settle();
    assert_eq!(cluster.ends(A, 0).2, 1, "it was cut");
    cluster.assign_only(0, A, 3, &[A, C], quorum(2), &[A, B, C]);
    let token = cluster.append(A, 0, "true");
    cluster.held.clear();
    cluster.settle();
    assert_eq!(cluster.base(A, token), Some(1));
    cluster.assert_same(0, 2);
    assert!(!String::from_utf8_lossy(&cluster.log(B, 0)).contains("late"));
    assert_eq!(
        (cluster.stats(B).misfits, cluster.stats(B).truncations),
        (0, 0),
        "nor was it taken for a while"
    );
}

/// Gives `node` records that its leader never sent, under its own subscription. Whether they were taken.
fn forge(cluster: &mut Cluster, node: NodeId, leader_epoch: u32, base: u64, batch_epoch: u32) -> bool {
    let end = cluster.ends(node, 0).2;
    let (&conn, _) =
        cluster.wires.iter().find(|(_, w)| (w.dialer.0, w.acceptor.0) == (node, A)).expect("it follows A");
    let mut stored = bytes::BytesMut::new();
    crate::batch::put_patched(&mut stored, &batch("forged"), Offset(base), LeaderEpoch(batch_epoch));
    let misfits = cluster.stats(node).misfits;
    // Handles count from 1, and only the last one is in use.
    for handle in 1..20 {
        let ends = Ends { high_watermark: Offset(0), log_start: Offset(0) };
        let mut encoder = Encoder::default();
        encoder.records(Handle(handle), LeaderEpoch(leader_epoch), ends, vec![stored.clone().freeze()]);
        let frame = Bytes::from(encoder.take().unwrap().concat()).slice(4..);
        cluster.rig(node).handle(Input::Peer(PeerInput::Frame { conn, frame }));
    }
    let is_taken = cluster.ends(node, 0).2 > end;
    assert!(is_taken || cluster.stats(node).misfits > misfits || leader_epoch != 3);
    is_taken
}

#[test]
fn r22_batches_of_a_wrong_offset_or_an_epoch_above_the_followed_one_are_refused() {
    // KAFKA-18723.
    for (leader_epoch, base, batch_epoch, fits) in [
        (3, 1, 4, false),
        (3, 2, 3, false),
        (3, 0, 3, false),
        (2, 1, 2, false),
        (4, 1, 3, false),
        (3, 1, 2, false),
        (3, 1, 3, true),
    ] {
        let mut cluster = led_by_a();
        cluster.assign(0, A, 3, &[A, B, C], quorum(2));
        cluster.append(A, 0, "a");
        let what = (leader_epoch, base, batch_epoch);
        assert_eq!(forge(&mut cluster, B, leader_epoch, base, batch_epoch), fits, "{what:?}");
        if !fits {
            cluster.settle();
            cluster.append(A, 0, "b");
            cluster.assert_same(0, 2);
        }
    }
}

#[test]
fn r04_subscriptions_of_other_epochs_are_refused_until_both_sides_know() {
    let mut cluster = led_by_a();
    cluster.append(A, 0, "a");
    // C is told of the next epoch first, then only the leader is.
    cluster.assign_only(0, A, 2, &[A, B, C], quorum(2), &[C]);
    cluster.settle();
    assert!(cluster.stats(A).subscriptions_refused > 0);
    assert_eq!(cluster.stats(C).misfits, 0);
    cluster.tell(0, A);
    cluster.settle();
    let token = cluster.append(A, 0, "b");
    assert_eq!(cluster.base(A, token), None, "B asks for an epoch that is over");
    cluster.tell(0, B);
    cluster.settle();
    assert_eq!(cluster.base(A, token), Some(1));
    cluster.assert_same(0, 2);
}

#[test]
fn r17_a_follower_knows_the_leaders_high_watermark_within_its_own_log_and_keeps_it() {
    let mut cluster = led_by_a();
    cluster.append(A, 0, "a");
    cluster.append(A, 0, "b");
    cluster.settle();
    assert_eq!(cluster.ends(B, 0).1, 2);
    // The next leader knows of less at first.
    cluster.held = [(A, C)].into();
    cluster.append(A, 0, "c");
    cluster.held.clear();
    cluster.assign(0, C, 2, &[A, B, C], quorum(2));
    assert_eq!(cluster.ends(B, 0).1, 2);
    cluster.assert_same(0, 2);
}

#[test]
fn producers_are_known_to_the_next_leader() {
    let mut cluster = led_by_a();
    let producer = BatchProducer { id: ProducerId(7), epoch: ProducerEpoch(0), base_sequence: Sequence(0) };
    let numbered = BatchBuilder::new().producer(producer).record(1, None, Some(b"x")).build();
    let token = cluster.rig(A).append(0, Acks::All, numbered.clone());
    cluster.run();
    assert_eq!(cluster.base(A, token), Some(0));
    cluster.assign(0, B, 2, &[A, B, C], quorum(2));
    let token = cluster.rig(B).append(0, Acks::All, numbered);
    cluster.settle();
    assert_eq!(cluster.base(B, token), Some(0), "a repetition is known as one");
    cluster.assert_same(0, 1);
}

#[test]
fn r24_a_leader_that_lost_everything_is_followed_all_the_same() {
    let mut cluster = led_by_a();
    cluster.append_each(A, 0, 0..5, |i| format!("{i}"));
    cluster.settle();
    cluster.kill(C);
    cluster.restart(C, BTreeMap::new());
    cluster.assign(0, C, 2, &[C], quorum(1));
    cluster.append(C, 0, "new");
    cluster.assert_same(0, 1);
}
