use super::*;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);
const LIFE: RegistrationEpoch = RegistrationEpoch(7);
const LAG_MAX: Duration = Duration::from_secs(10);
const UPON: PartitionEpoch = PartitionEpoch(4);

fn at(secs: u64) -> Instant {
    Instant::ZERO + Duration::from_secs(secs)
}

fn ends(log: u64, flushed: u64) -> Ends {
    Ends { log: Offset(log), flushed: Offset(flushed) }
}

fn in_sync(isr: &[NodeId]) -> InSync {
    InSync::new(A, at(0), &[A, B, C], isr)
}

/// `node` subscribes where `log` says and acknowledges it.
fn reach(isr: &mut InSync, now: Instant, node: NodeId, log: u64, flushed: u64) {
    if isr.ends(node) == Some(Ends::default()) {
        isr.on_subscribed(node, LIFE, Offset(0));
    }
    isr.on_progress(now, node, LIFE, ends(log, flushed), Offset(0));
}

fn bar(high_watermark: u64, epoch_start: u64, log_end: u64) -> Bar {
    Bar {
        high_watermark: Offset(high_watermark),
        epoch_start: Offset(epoch_start),
        log_end: Offset(log_end),
        durability: Durability::Fsync,
    }
}

fn standing(_: NodeId) -> Option<Standing> {
    Some(Standing { epoch: LIFE, eligible: true })
}

fn nodes(isr: Option<Vec<(NodeId, RegistrationEpoch)>>) -> Option<Vec<NodeId>> {
    Some(isr?.into_iter().map(|(node, _)| node).collect())
}

#[test]
fn common_end_is_the_slowest_in_sync_replica_by_durability() {
    let mut isr = in_sync(&[A, B]);
    isr.on_local(at(0), ends(10, 4));
    reach(&mut isr, at(0), B, 7, 6);
    reach(&mut isr, at(0), C, 1, 1);
    assert_eq!(isr.common_end(Durability::Replicated), Some(Offset(7)));
    assert_eq!(isr.common_end(Durability::Fsync), Some(Offset(4)));
}

#[test]
fn a_replica_not_heard_of_in_this_epoch_holds_the_end_back() {
    let mut isr = in_sync(&[A, B]);
    isr.on_local(at(0), ends(10, 10));
    assert_eq!(isr.common_end(Durability::Fsync), Some(Offset(0)));
}

#[test]
fn quorum_never_asks_for_more_replicas_than_exist() {
    assert!(InSync::new(A, at(0), &[A], &[A]).has_quorum(2));
    assert!(!in_sync(&[A]).has_quorum(2));
    assert!(
        !InSync::new(A, at(0), &[A], &[]).has_quorum(0),
        "without any in-sync replica nothing is committed"
    );
}

#[test]
fn progress_survives_a_committed_change() {
    let mut isr = in_sync(&[A, B]);
    isr.on_local(at(0), ends(5, 5));
    isr.on_committed(at(1), UPON, &[A, B], &[A]);
    assert_eq!(isr.common_end(Durability::Fsync), Some(Offset(5)));
}

#[test]
fn r05_caught_up_is_the_whole_log_now_or_at_most_the_lag_ago() {
    let mut isr = in_sync(&[A, B]);
    isr.on_local(at(0), ends(10, 10));
    reach(&mut isr, at(1), B, 10, 10);
    // An idle partition: nobody says anything for an hour, then a record comes.
    isr.on_local(at(3600), ends(11, 11));
    assert_eq!(isr.wish(at(3610), UPON, Some(LAG_MAX), bar(10, 0, 11), standing), None);
    let shrunk = isr.wish(at(3611), UPON, Some(LAG_MAX), bar(10, 0, 11), standing);
    assert_eq!(nodes(shrunk), Some(vec![A]));
}

#[test]
fn r05_a_follower_that_always_had_what_there_was_at_its_last_word_stays() {
    let mut isr = in_sync(&[A, B]);
    isr.on_subscribed(B, LIFE, Offset(0));
    // It is always one behind, but each time it has what there was the time before.
    for second in 1..60 {
        isr.on_local(at(second), ends(second, second));
        isr.on_progress(at(second), B, LIFE, ends(second - 1, second - 1), Offset(0));
    }
    assert_eq!(isr.wish(at(60), UPON, Some(LAG_MAX), bar(50, 0, 59), standing), None);
    // One that takes in less than is appended is not saved by that.
    for second in 60..90 {
        isr.on_local(at(second), ends(second * 10, second));
        isr.on_progress(at(second), B, LIFE, ends(second, second), Offset(0));
    }
    assert_eq!(nodes(isr.wish(at(90), UPON, Some(LAG_MAX), bar(50, 0, 890), standing)), Some(vec![A]));
}

#[test]
fn r06_one_change_is_under_way_at_a_time() {
    let mut isr = in_sync(&[A, B]);
    isr.on_local(at(0), ends(5, 5));
    reach(&mut isr, at(1), C, 5, 5);
    assert_eq!(nodes(isr.wish(at(1), UPON, None, bar(0, 0, 5), standing)), Some(vec![A, B, C]));
    assert_eq!(isr.wish(at(100), UPON, Some(LAG_MAX), bar(0, 0, 5), standing), None);
    isr.on_committed(at(100), PartitionEpoch(5), &[A, B, C], &[A, B, C]);
    let shrunk = isr.wish(at(100), PartitionEpoch(5), Some(LAG_MAX), bar(0, 0, 5), standing);
    assert_eq!(nodes(shrunk), Some(vec![A, C]));
}

#[test]
fn r07_a_replica_below_the_high_watermark_or_the_epoch_start_does_not_enter() {
    for (start, high_watermark, enters) in [(0, 6, false), (6, 0, false), (5, 5, true)] {
        let mut isr = in_sync(&[A, B]);
        isr.on_local(at(0), ends(9, 9));
        reach(&mut isr, at(1), C, 5, 5);
        let wish = isr.wish(at(1), UPON, None, bar(high_watermark, start, 9), standing);
        assert_eq!(wish.is_some(), enters, "epoch start {start}, high watermark {high_watermark}");
    }
}

#[test]
fn r07_what_is_not_flushed_does_not_let_enter_where_flushed_records_count() {
    let mut isr = in_sync(&[A, B]);
    isr.on_local(at(0), ends(9, 9));
    reach(&mut isr, at(1), C, 9, 4);
    assert_eq!(isr.wish(at(1), UPON, None, bar(5, 0, 9), standing), None);
    reach(&mut isr, at(1), C, 9, 5);
    assert!(isr.wish(at(1), UPON, None, bar(5, 0, 9), standing).is_some());
}

#[test]
fn r07_a_fenced_stopping_or_reregistered_node_does_not_enter() {
    let mut isr = in_sync(&[A, B]);
    reach(&mut isr, at(1), C, 0, 0);
    let fenced = |_| Some(Standing { epoch: LIFE, eligible: false });
    assert_eq!(isr.wish(at(1), UPON, None, bar(0, 0, 0), fenced), None);
    let anew = |_| Some(Standing { epoch: RegistrationEpoch(8), eligible: true });
    assert_eq!(isr.wish(at(1), UPON, None, bar(0, 0, 0), anew), None);
    assert_eq!(isr.wish(at(1), UPON, None, bar(0, 0, 0), |_| None), None);
    assert!(isr.wish(at(1), UPON, None, bar(0, 0, 0), standing).is_some());
}

#[test]
fn r08_a_pending_expand_counts_at_once_and_a_pending_shrink_when_it_is_committed() {
    let mut isr = in_sync(&[A, B]);
    isr.on_local(at(0), ends(9, 9));
    reach(&mut isr, at(0), B, 2, 2);
    reach(&mut isr, at(20), C, 5, 5);
    assert_eq!(isr.common_end(Durability::Fsync), Some(Offset(2)));
    let wish = isr.wish(at(20), UPON, Some(LAG_MAX), bar(2, 0, 9), standing);
    assert_eq!(nodes(wish), Some(vec![A, C]));
    reach(&mut isr, at(20), B, 9, 9);
    assert_eq!(isr.common_end(Durability::Fsync), Some(Offset(5)), "who is to enter counts");
    assert!(isr.counts(B), "who is to leave counts still");
    isr.on_committed(at(21), PartitionEpoch(5), &[A, B, C], &[A, C]);
    assert!(!isr.counts(B) && isr.counts(C));
}

#[test]
fn r10_only_a_definite_refusal_ends_a_wish_without_news() {
    let mut isr = in_sync(&[A, B]);
    isr.on_local(at(0), ends(9, 9));
    reach(&mut isr, at(1), B, 9, 9);
    reach(&mut isr, at(1), C, 5, 5);
    assert!(isr.wish(at(1), UPON, None, bar(0, 0, 9), standing).is_some());
    isr.on_refused(at(1), PartitionEpoch(3));
    assert_eq!(isr.common_end(Durability::Fsync), Some(Offset(5)), "that was another wish");
    isr.on_committed(at(1), UPON, &[A, B, C], &[A, B]);
    assert_eq!(isr.common_end(Durability::Fsync), Some(Offset(5)), "the same metadata again is no news");
    isr.on_refused(at(1), UPON);
    assert_eq!(isr.common_end(Durability::Fsync), Some(Offset(9)));
    assert_eq!(isr.wish(at(1), UPON, None, bar(0, 0, 9), standing), None, "not again at once");
    assert!(isr.wish(at(2), UPON, None, bar(0, 0, 9), standing).is_some());
}

#[test]
fn a_restarted_replica_is_not_counted_by_its_earlier_progress() {
    let mut isr = in_sync(&[A, B]);
    isr.on_local(at(0), ends(9, 9));
    reach(&mut isr, at(1), B, 9, 9);
    assert_eq!(isr.common_end(Durability::Fsync), Some(Offset(9)));
    isr.forget_before(B, LIFE);
    assert_eq!(isr.common_end(Durability::Fsync), Some(Offset(9)), "that is the life it speaks of");
    isr.forget_before(B, RegistrationEpoch(8));
    assert_eq!(isr.common_end(Durability::Fsync), Some(Offset(0)));
    isr.on_progress(at(2), B, LIFE, ends(9, 9), Offset(0));
    assert_eq!(isr.common_end(Durability::Fsync), Some(Offset(0)), "a late word of the life before");
    isr.on_subscribed(B, RegistrationEpoch(8), Offset(6));
    isr.on_progress(at(3), B, RegistrationEpoch(8), ends(6, 6), Offset(0));
    assert_eq!(isr.common_end(Durability::Fsync), Some(Offset(6)));
    assert!(isr.is_stale(B, LIFE));
}
