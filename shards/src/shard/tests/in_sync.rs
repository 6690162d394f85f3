//! What counts as committed, and who is in sync.

use super::cluster::*;
use super::*;
use crate::mail::IsrRefusal;

fn quorum(isr_min: u32) -> PartitionConfig {
    PartitionConfig { isr_min, ..PartitionConfig::default() }
}

fn led_by_a(config: PartitionConfig) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.assign(0, A, 1, &[A, B, C], config);
    cluster
}

#[test]
fn r11_a_record_is_committed_when_every_in_sync_replica_has_flushed_it() {
    let mut cluster = led_by_a(quorum(2));
    cluster.slow_disks = [A, B, C].into();
    let token = cluster.append(A, 0, "a");
    for node in [A, B, C] {
        assert_eq!(cluster.ends(node, 0), (0, 0, 1), "{node} has it before any disk has");
    }
    for node in [A, B] {
        assert_eq!(cluster.base(A, token), None);
        cluster.slow_disks.remove(&node);
        cluster.run();
    }
    assert_eq!(cluster.ends(A, 0).1, 0, "one disk is missing");
    cluster.slow_disks.clear();
    cluster.run();
    assert_eq!(cluster.base(A, token), Some(0));
    cluster.assert_same(0, 1);
}

#[test]
fn r11_where_replication_is_durability_memory_counts() {
    let mut cluster = led_by_a(PartitionConfig { isr_min: 2, ..replicated() });
    cluster.slow_disks = [A, B, C].into();
    let token = cluster.append(A, 0, "a");
    assert_eq!(cluster.base(A, token), Some(0));
    cluster.held.insert((C, A));
    let token = cluster.append(A, 0, "b");
    assert_eq!(cluster.base(A, token), None, "one acknowledgement is missing");
    cluster.held.clear();
    cluster.run();
    assert_eq!(cluster.base(A, token), Some(1));
}

#[test]
fn r11_the_high_watermark_stands_still_while_too_few_are_in_sync() {
    let mut cluster = led_by_a(quorum(2));
    cluster.append(A, 0, "a");
    cluster.assign(0, A, 1, &[A], quorum(2));
    let token = cluster.rig(A).append(0, Acks::Leader, batch("b"));
    cluster.run();
    assert_eq!(cluster.base(A, token), Some(1), "who does not ask for more gets it");
    assert_eq!(cluster.ends(A, 0), (0, 1, 2));
    cluster.assign(0, A, 1, &[A, B], quorum(2));
    assert_eq!(cluster.ends(A, 0), (0, 2, 2));
}

#[test]
fn r12_too_few_in_sync_replicas_refuse_and_nothing_is_appended() {
    let mut cluster = led_by_a(quorum(2));
    cluster.assign(0, A, 1, &[A], quorum(2));
    let token = cluster.append(A, 0, "a");
    assert_eq!(cluster.error(A, token), Some(PartitionError::NotEnoughReplicas));
    assert_eq!(cluster.ends(A, 0), (0, 0, 0));
}

#[test]
fn r13_a_produce_that_waits_for_a_silent_follower_times_out() {
    let mut cluster = led_by_a(quorum(2));
    cluster.cut_off(C);
    cluster.cut_off(B);
    let token = cluster.append(A, 0, "a");
    cluster.after(Duration::from_secs(29));
    assert_eq!(cluster.error(A, token), None);
    cluster.after(Duration::from_secs(1));
    assert_eq!(cluster.error(A, token), Some(PartitionError::TimedOut));
}

#[test]
fn r16_consumers_read_below_the_high_watermark_on_the_leader() {
    let mut cluster = led_by_a(quorum(2));
    cluster.append(A, 0, "a");
    cluster.held.insert((B, A));
    cluster.append(A, 0, "b");
    let (watch, out) = cluster.rig(A).read(0, 0, 1 << 20);
    let out = out.expect("answered");
    assert_eq!((out.high_watermark, out.records.len()), (Offset(1), 1));
    cluster.held.clear();
    cluster.run();
    assert!(matches!(cluster.rig(A).answer(watch), Some(Answer::Readable)));
}

#[test]
fn r16_the_end_is_not_known_before_the_high_watermark_reaches_the_epoch() {
    let mut cluster = led_by_a(quorum(2));
    cluster.append(A, 0, "a");
    cluster.held = [(B, A), (C, A)].into();
    cluster.append(A, 0, "b");
    cluster.assign_only(0, B, 2, &[B, C], quorum(2), &[B]);
    let token = cluster.rig(B).op(0, Op::Locate { current_epoch: None, at: Locate::Latest });
    assert_eq!(cluster.error(B, token), Some(PartitionError::OffsetNotAvailable));
    cluster.held.clear();
    cluster.tell(0, C);
    cluster.tell(0, A);
    cluster.settle();
    let token = cluster.rig(B).op(0, Op::Locate { current_epoch: None, at: Locate::Latest });
    let Some(Answer::Located(Ok(Some(located)))) = cluster.rig(B).answer(token) else { panic!("known now") };
    assert_eq!(located.offset, Offset(2));
}

#[test]
fn r06_a_lagging_follower_leaves_and_its_leaving_counts_once_it_is_committed() {
    let mut cluster = led_by_a(quorum(2));
    cluster.cut_off(C);
    let token = cluster.append(A, 0, "a");
    cluster.after(Duration::from_secs(9));
    assert_eq!(cluster.wished(), [], "it lags for less than the bound");
    cluster.after(Duration::from_secs(7));
    assert_eq!(cluster.wished(), [A, B]);
    assert_eq!(cluster.wishes.len(), 1);
    assert_eq!(cluster.base(A, token), None, "a shrink that is not committed does not count");
    cluster.after(Duration::from_secs(10));
    let another = cluster.append(A, 0, "b");
    assert_eq!((cluster.base(A, token), cluster.base(A, another)), (None, None));
    assert_eq!(cluster.wishes.len(), 1, "one change is under way");
    cluster.commit_wish(0);
    assert_eq!(cluster.base(A, token), Some(0));
    assert_eq!(cluster.stats(A).under_replicated, 1);
}

#[test]
fn r07_a_follower_that_has_caught_up_enters_and_holds_the_high_watermark_back_at_once() {
    let mut cluster = Cluster::new();
    cluster.cut_off(C);
    cluster.assign(0, A, 1, &[A, B], quorum(2));
    cluster.append_each(A, 0, 0..20, |i| format!("{i}"));
    cluster.cut_off.clear();
    cluster.settle();
    assert_eq!(cluster.ends(C, 0).2, 20);
    assert_eq!(cluster.wished(), [A, B, C]);
    cluster.held.insert((C, A));
    let token = cluster.append(A, 0, "x");
    assert_eq!(cluster.base(A, token), None, "who is to enter counts already");
    cluster.held.clear();
    cluster.run();
    assert_eq!(cluster.base(A, token), Some(20));
    cluster.commit_wish(0);
    cluster.assert_same(0, 21);
    assert_eq!(cluster.stats(A).under_replicated, 0);
}

#[test]
fn r07_a_fenced_node_enters_when_it_is_not_fenced_any_more() {
    let mut cluster = Cluster::new();
    cluster.fenced.insert(C);
    cluster.tell_nodes();
    cluster.assign(0, A, 1, &[A, B], quorum(2));
    cluster.append(A, 0, "a");
    cluster.settle();
    assert_eq!(cluster.ends(C, 0).2, 1, "it follows");
    assert_eq!(cluster.wished(), []);
    cluster.fenced.clear();
    cluster.tell_nodes();
    assert_eq!(cluster.wished(), [A, B, C]);
}

#[test]
fn r07_an_idle_follower_below_the_epoch_start_does_not_enter() {
    // KAFKA-7128: the high watermark of a new leader may lie below what the epoch before committed.
    let mut cluster = led_by_a(PartitionConfig { isr_min: 1, ..PartitionConfig::default() });
    cluster.append(A, 0, "a");
    cluster.settle();
    cluster.fence(C);
    cluster.assign(0, A, 1, &[A, B], quorum(1));
    cluster.held = [(A, C)].into();
    // Committed on A and B as A knows, but B never hears that it is.
    cluster.append(A, 0, "b");
    assert_eq!((cluster.ends(A, 0).1, cluster.ends(B, 0)), (2, (0, 1, 2)));
    cluster.slow_disks.insert(B);
    cluster.assign_only(0, B, 2, &[B, A], quorum(1), &[B, C]);
    // C gets the record and has not flushed it.
    cluster.slow_disks.insert(C);
    cluster.held.clear();
    cluster.fenced.clear();
    cluster.tell_nodes();
    assert_eq!((cluster.ends(B, 0), cluster.ends(C, 0).2), ((0, 1, 2), 2));
    assert_eq!(cluster.wished(), [], "it has all that B knows to be committed, and not all that is");
    cluster.held.clear();
    cluster.slow_disks.clear();
    cluster.tell(0, A);
    cluster.settle();
    assert_eq!(cluster.wished(), [A, B, C]);
}

#[test]
fn r10_a_refused_expand_does_not_count_any_more_and_is_tried_again() {
    let mut cluster = Cluster::new();
    cluster.assign(0, A, 1, &[A, B], quorum(2));
    assert_eq!(cluster.wished(), [A, B, C]);
    cluster.held.insert((C, A));
    let token = cluster.append(A, 0, "a");
    assert_eq!(cluster.base(A, token), None);
    cluster.refuse_wish(0, IsrRefusal::Ineligible);
    assert_eq!(cluster.base(A, token), Some(0));
    assert_eq!(cluster.wishes.len(), 0, "not at once");
    cluster.held.clear();
    cluster.after(Duration::from_secs(1));
    cluster.append(A, 0, "b");
    assert_eq!(cluster.wished(), [A, B, C]);
}

#[test]
fn a_restarted_follower_is_counted_by_what_it_has_in_this_life() {
    let config = PartitionConfig { isr_min: 2, ..replicated() };
    let mut cluster = led_by_a(config);
    cluster.append(A, 0, "a");
    cluster.after(Duration::from_secs(1));
    // What comes now is in memory only when the node dies.
    cluster.slow_disks.insert(B);
    cluster.append(A, 0, "b");
    assert_eq!(cluster.ends(A, 0).1, 2);
    let files = cluster.kill(B);
    cluster.slow_disks.clear();
    cluster.restart(B, files);
    let token = cluster.append(A, 0, "c");
    assert_eq!(cluster.base(A, token), None, "B does not even follow yet");
    cluster.tell(0, B);
    assert_eq!(cluster.ends(B, 0).2, 1, "the second record was lost");
    cluster.held.insert((A, B));
    cluster.run();
    assert_eq!(cluster.base(A, token), None);
    cluster.held.clear();
    cluster.settle();
    assert_eq!(cluster.base(A, token), Some(2));
    cluster.assert_same(0, 3);
}

#[test]
fn a_restarted_follower_enters_with_what_it_has_in_this_life() {
    let mut cluster = led_by_a(quorum(2));
    cluster.append(A, 0, "a");
    cluster.settle();
    // The disk of B loses what it has flushed from here on.
    let files = cluster.rig(B).files.clone();
    let token = cluster.append(A, 0, "b");
    assert_eq!(cluster.base(A, token), Some(1));
    cluster.kill(B);
    cluster.restart(B, files);
    cluster.slow_disks.insert(B);
    cluster.assign(0, A, 1, &[A, C], quorum(2));
    cluster.settle();
    cluster.append(A, 0, "c");
    assert_eq!(cluster.ends(B, 0).2, 3, "it has all of it in memory");
    assert_eq!(cluster.wished(), [], "and on its disk less than is committed");
    cluster.slow_disks.clear();
    cluster.settle();
    assert_eq!(cluster.wished(), [A, B, C]);
}

#[test]
fn acknowledgements_of_an_earlier_life_that_come_late_count_for_nothing() {
    let mut cluster = led_by_a(quorum(3));
    cluster.append(A, 0, "a");
    cluster.held.insert((B, A));
    let token = cluster.append(A, 0, "b");
    // The registration of a later life is known before the end of this one is.
    cluster.lives.insert(B, RegistrationEpoch(2));
    cluster.tell_nodes();
    cluster.held.clear();
    cluster.run();
    assert_eq!(cluster.base(A, token), None);
    assert!(!cluster.replica(A, 0).in_sync().unwrap().is_stale(C, RegistrationEpoch(1)));
}

#[test]
fn nothing_is_said_of_an_idle_partition() {
    let mut cluster = led_by_a(quorum(2));
    cluster.append(A, 0, "a");
    cluster.settle();
    let before = cluster.frames;
    cluster.after(Duration::from_secs(600));
    assert_eq!(cluster.frames, before);
    assert_eq!(cluster.wished(), []);
}

#[test]
fn a_node_without_a_lease_answers_as_one_that_does_not_lead() {
    let mut cluster = led_by_a(quorum(2));
    cluster.append(A, 0, "a");
    let until = cluster.now() + Duration::from_secs(5);
    cluster.rig(A).handle(Input::Control(FromControl::Lease { until }));
    cluster.held.insert((B, A));
    let waiting = cluster.append(A, 0, "b");
    let (watch, _) = cluster.rig(A).read(0, 2, 1);
    cluster.after(Duration::from_secs(5));
    assert_eq!(cluster.error(A, waiting), Some(PartitionError::NotLeader));
    assert!(matches!(cluster.rig(A).answer(watch), Some(Answer::Readable)));
    for op in [read(0, 0), Op::Locate { current_epoch: None, at: Locate::Latest }] {
        let token = cluster.rig(A).op(0, op);
        assert_eq!(cluster.error(A, token), Some(PartitionError::NotLeader));
    }
    let until = cluster.now() + Duration::from_secs(5);
    cluster.rig(A).handle(Input::Control(FromControl::Lease { until }));
    cluster.held.clear();
    let token = cluster.append(A, 0, "c");
    assert_eq!(cluster.base(A, token), Some(2));
}
