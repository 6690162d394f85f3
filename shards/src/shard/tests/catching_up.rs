//! Followers that are far behind: records from segments, starts that moved, offsets that are no more.

use super::cluster::*;
use super::*;

fn quorum(isr_min: u32) -> PartitionConfig {
    PartitionConfig { isr_min, ..PartitionConfig::default() }
}

/// A leads with B in sync; C was never there and nothing is in memory.
fn without_c(records: u32, replication: ReplicationConfig) -> Cluster {
    let mut cluster = Cluster::with(replication, 0);
    cluster.cut_off(C);
    cluster.assign(0, A, 1, &[A, B], quorum(2));
    cluster.append_each(A, 0, 0..records, |i| format!("value {i} {}", "x".repeat(1000)));
    cluster
}

fn delete_before(cluster: &mut Cluster, node: NodeId, before: u64) {
    let deadline = cluster.now() + Duration::from_secs(10);
    let token = cluster.rig(node).op(0, Op::DeleteRecords { before: Some(Offset(before)), deadline });
    cluster.run();
    assert!(cluster.rig(node).answer(token).is_none(), "in-sync followers do not know of it yet");
    cluster.settle();
    let answer = cluster.rig(node).answer(token);
    assert!(matches!(answer, Some(Answer::Deleted(Ok(start))) if start == Offset(before)), "{answer:?}");
}

#[test]
fn a_new_follower_gets_the_log_from_segments_and_enters() {
    let mut cluster = without_c(200, ReplicationConfig { turn_bytes: 10_000, ..Default::default() });
    cluster.cut_off.clear();
    cluster.settle();
    assert_eq!(cluster.ends(C, 0).2, 200);
    assert_eq!(cluster.wished(), [A, B, C]);
    cluster.commit_wish(0);
    cluster.settle();
    assert_eq!(cluster.ends(C, 0), (0, 200, 200));
    assert!(cluster.stats(A).bytes_out_catch_up > 200_000);
}

#[test]
fn catch_up_traffic_keeps_its_rate_and_does_not_hold_up_who_is_in_sync() {
    let config =
        ReplicationConfig { turn_bytes: 4000, catch_up_bytes_per_second: Some(20_000), ..Default::default() };
    let mut cluster = without_c(200, config);
    cluster.cut_off.clear();
    let pass = |cluster: &mut Cluster, seconds: u64| {
        for _ in 0..seconds * 50 {
            let now = cluster.now() + Duration::from_millis(20);
            cluster.at(now);
        }
    };
    pass(&mut cluster, 5);
    let got = cluster.ends(C, 0).2;
    assert!((50..150).contains(&got), "{got} records of about 1100 bytes in 5 s at 20,000 B/s");
    let token = cluster.append(A, 0, "now");
    assert_eq!(cluster.base(A, token), Some(200));
    pass(&mut cluster, 10);
    assert_eq!(cluster.ends(C, 0).2, 201);
}

/// A leads two partitions; of the first one C is not in sync.
fn c_is_in_sync_with_one_of_two(replication: ReplicationConfig) -> Cluster {
    let mut cluster = Cluster::with(replication, u64::MAX);
    // Who is fenced follows, and does not come into sync again.
    cluster.fence(C);
    cluster.assign(0, A, 1, &[A, B], quorum(2));
    cluster.assign(1, A, 1, &[A, B, C], quorum(2));
    cluster.settle();
    cluster
}

fn append_many(cluster: &mut Cluster, index: u32, records: u32, bytes: usize) {
    for _ in 0..records {
        cluster.rig(A).append(index, Acks::Leader, batch(&"x".repeat(bytes)));
        cluster.run();
    }
}

#[test]
fn who_is_behind_gets_little_at_a_time_and_others_do_not_wait_for_it() {
    let config = ReplicationConfig { stream_credit_bytes: 80_000, turn_bytes: 4000, ..Default::default() };
    let mut cluster = c_is_in_sync_with_one_of_two(config);
    // What C is sent is under way for ever.
    cluster.held = [(A, C)].into();
    append_many(&mut cluster, 0, 100, 1000);
    let sent = cluster.stats(A).bytes_out_catch_up;
    assert!((6000..16_000).contains(&sent), "{sent} bytes, of a credit of 80,000");
    let before = cluster.stats(A).bytes_out;
    append_many(&mut cluster, 1, 10, 3000);
    let others = cluster.stats(A).bytes_out - before;
    assert!(others >= 2 * 10 * 3000, "{others} bytes for B and C, which are in sync");
    // A turn now and then all the same, as long as half of the credit is left.
    for _ in 0..20 {
        let now = cluster.now() + Duration::from_millis(50);
        cluster.at(now);
    }
    let more = cluster.stats(A).bytes_out_catch_up - sent;
    assert!((0..8000).contains(&more), "{more} more: the others use half of the credit");
    cluster.held.clear();
    cluster.settle();
    assert_eq!((cluster.ends(C, 0).2, cluster.ends(C, 1).2), (100, 10));
}

#[test]
fn a_follower_whose_log_is_busy_lets_the_leader_wait_with_what_nobody_waits_for() {
    let config = ReplicationConfig { catch_up_in_flight_max: usize::MAX, ..Default::default() };
    let mut cluster = c_is_in_sync_with_one_of_two(config);
    cluster.slow_disks.insert(C);
    append_many(&mut cluster, 0, 150, 400_000);
    let got = cluster.ends(C, 0).2;
    assert!((5..12).contains(&got), "{got} records of 400 kB, of 150 that its log would take");
    // It goes on, slowly: who is behind is never forgotten.
    for _ in 0..4 {
        let now = cluster.now() + Duration::from_millis(60);
        cluster.at(now);
    }
    let more = cluster.ends(C, 0).2 - got;
    assert!((3..12).contains(&more), "{more} more in 240 ms, a turn each 50 ms");
    // What is waited for is not held up.
    let before = cluster.ends(C, 1).2;
    append_many(&mut cluster, 1, 10, 400_000);
    assert_eq!(cluster.ends(C, 1).2, before + 10);
    cluster.slow_disks.clear();
    for _ in 0..100 {
        let now = cluster.now() + Duration::from_millis(20);
        cluster.at(now);
    }
    assert_eq!(cluster.ends(C, 0).2, 150);
}

#[test]
fn little_lies_in_a_journal_of_what_nobody_waits_for() {
    for (durability, most) in [(Durability::Fsync, 12_000), (Durability::Replicated, u64::MAX)] {
        let config = ReplicationConfig { catch_up_in_flight_max: 8000, ..Default::default() };
        let mut cluster = Cluster::with(config, u64::MAX);
        cluster.fence(C);
        let config = PartitionConfig { durability, ..quorum(2) };
        cluster.assign(0, A, 1, &[A, B], config);
        cluster.settle();
        cluster.slow_disks.insert(C);
        append_many(&mut cluster, 0, 100, 1000);
        let sent = cluster.stats(A).bytes_out_catch_up;
        assert!((8000..=most).contains(&sent), "{durability:?}: {sent} bytes that C has not flushed");
        // It acknowledges a new start, and with it where its log ends, flushed or not.
        delete_before(&mut cluster, A, 1);
        let (more, turns) = (cluster.stats(A).bytes_out_catch_up - sent, 20);
        assert!(more <= turns * sent / 8, "{durability:?}: {more} more bytes, after {sent} in eight records");
        cluster.slow_disks.clear();
        cluster.run();
        assert_eq!(cluster.ends(C, 0).2, 100, "{durability:?}: it goes on as C flushes, without a timer");
    }
}

#[test]
fn what_is_under_way_to_a_follower_that_was_lost_leaves_room_for_others() {
    let config = ReplicationConfig { catch_up_in_flight_max: 8000, ..Default::default() };
    let mut cluster = Cluster::with(config, u64::MAX);
    cluster.fence(C);
    cluster.assign(0, A, 1, &[A, B], quorum(2));
    cluster.assign(1, A, 1, &[A, B], quorum(2));
    cluster.settle();
    cluster.slow_disks.insert(C);
    append_many(&mut cluster, 0, 20, 1000);
    let sent = cluster.stats(A).bytes_out_catch_up;
    append_many(&mut cluster, 1, 20, 1000);
    assert_eq!(cluster.stats(A).bytes_out_catch_up, sent, "the room is used up");
    // In a new epoch the subscription is another one.
    cluster.assign(0, B, 2, &[A, B], quorum(2));
    append_many(&mut cluster, 1, 20, 1000);
    assert!(cluster.stats(A).bytes_out_catch_up >= sent + 8000);
}

#[test]
fn who_does_not_come_closer_gets_more_until_it_does() {
    for (limit, is_hurried) in [(None, true), (Some(60_000), false)] {
        let config = ReplicationConfig {
            catch_up_in_flight_max: 8000,
            catch_up_bytes_per_second: limit,
            ..Default::default()
        };
        let mut cluster = Cluster::with(config, 0);
        cluster.fence(C);
        cluster.assign(0, A, 1, &[A, B], quorum(2));
        cluster.settle();
        let second = |cluster: &mut Cluster, records| {
            let before = cluster.stats(A).bytes_out_catch_up;
            append_many(cluster, 0, records, 1000);
            for _ in 0..50 {
                let now = cluster.now() + Duration::from_millis(20);
                cluster.at(now);
            }
            cluster.stats(A).bytes_out_catch_up - before
        };
        // Nothing that C gets is flushed: it has a turn now and then, and 200 records are more than those bring.
        cluster.slow_disks.insert(C);
        second(&mut cluster, 200);
        let first = second(&mut cluster, 200);
        for _ in 0..5 {
            second(&mut cluster, 200);
        }
        let last = second(&mut cluster, 200);
        assert_eq!(last > first * 3, is_hurried, "{first}, then {last} bytes in a second");
        assert_eq!(cluster.stats(A).bytes_out_urgent > 0, is_hurried);
        let urgent_reads = cluster.rig(A).shard.storage.stats().urgent_reads;
        assert_eq!(urgent_reads > 0, is_hurried, "the disk hurries too");
        // Hardly anything is appended any more: there is no hurry.
        cluster.slow_disks.clear();
        for _ in 0..60 {
            second(&mut cluster, 1);
        }
        assert_eq!(cluster.ends(C, 0).2, 8 * 200 + 60);
        let before = cluster.stats(A).bytes_out_urgent;
        cluster.slow_disks.insert(C);
        second(&mut cluster, 200);
        assert_eq!(cluster.stats(A).bytes_out_urgent, before);
    }
}

#[test]
fn r24_followers_begin_their_logs_where_the_leader_does() {
    let mut cluster = Cluster::new();
    cluster.assign(0, A, 1, &[A, B, C], quorum(2));
    cluster.append_each(A, 0, 0..5, |i| format!("{i}"));
    cluster.settle();
    delete_before(&mut cluster, A, 3);
    cluster.settle();
    for node in [A, B, C] {
        assert_eq!(cluster.ends(node, 0), (3, 5, 5), "{node}");
    }
}

#[test]
fn r24_a_follower_whose_log_ends_before_the_leaders_begins_anew() {
    let mut cluster = without_c(20, ReplicationConfig::default());
    cluster.fence(C);
    cluster.cut_off.clear();
    cluster.settle();
    assert_eq!(cluster.ends(C, 0).2, 20);
    cluster.cut_off(C);
    cluster.append_each(A, 0, 0..20, |_| "more".into());
    delete_before(&mut cluster, A, 30);
    cluster.cut_off.clear();
    cluster.settle();
    assert_eq!(cluster.ends(C, 0), (30, 40, 40));
}

#[test]
fn r24_a_log_that_begins_within_a_batch_is_followed_from_that_batch() {
    let mut cluster = Cluster::new();
    cluster.cut_off(C);
    cluster.assign(0, A, 1, &[A, B], quorum(2));
    for _ in 0..3 {
        let mut records = BatchBuilder::new();
        for i in 0..10 {
            records = records.record(i, None, Some(b"v"));
        }
        cluster.rig(A).append(0, Acks::All, records.build());
        cluster.run();
    }
    delete_before(&mut cluster, A, 15);
    cluster.cut_off.clear();
    cluster.settle();
    assert_eq!(cluster.ends(C, 0), (15, 30, 30));
    assert_eq!(cluster.stats(C).misfits, 0);
    let out = cluster.rig(A).read(0, 15, 0).1.expect("answered");
    assert_eq!(out.records.len(), 2);
}

#[test]
fn offsets_that_compaction_took_reach_followers_as_batches_without_records() {
    let mut cluster = Cluster::with(ReplicationConfig::default(), 0);
    cluster.cut_off(C);
    let mut config = quorum(2);
    config.log.compact = true;
    config.log.delete = false;
    config.log.segment_bytes = 4096;
    config.log.dirty_permille = 1;
    cluster.assign(0, A, 1, &[A, B], config);
    for i in 0..100 {
        let records = BatchBuilder::new().record(i, Some(b"key"), Some(&[7; 200])).build();
        cluster.rig(A).append(0, Acks::All, records);
        cluster.run();
    }
    cluster.assign(0, A, 2, &[A, B], config);
    for i in 0..20 {
        let records = BatchBuilder::new().record(i, Some(b"other"), Some(&[7; 200])).build();
        cluster.rig(A).append(0, Acks::All, records);
        cluster.run();
    }
    cluster.after(Duration::from_secs(120));
    assert!(cluster.rigs[&on(A)].shard.storage.stats().compactions > 0, "the log has gaps");
    let sent = cluster.bytes;
    cluster.cut_off.clear();
    cluster.settle();
    assert_eq!(cluster.ends(C, 0).2, 120);
    assert_eq!(cluster.stats(C).misfits, 0);
    assert!(cluster.bytes - sent < 120 * 250, "what compaction took was not sent");
    for epoch in [1, 2] {
        let end = |node| cluster.replica(node, 0).end_of_epoch(LeaderEpoch(epoch));
        assert_eq!(end(C), end(A), "epoch {epoch}");
    }
    // Its journal and segments are sound to the next life.
    let files = cluster.kill(C);
    cluster.restart(C, files);
    cluster.tell(0, C);
    cluster.settle();
    assert_eq!(cluster.ends(C, 0).2, 120);
}

#[test]
fn consumers_may_read_from_a_follower_up_to_the_high_watermark_that_it_knows() {
    let mut cluster = Cluster::new();
    cluster.assign(0, A, 1, &[A, B, C], quorum(2));
    cluster.append(A, 0, "a");
    cluster.settle();
    let any = |offset, epoch| match read(offset, 1) {
        Op::Read { offset, bytes_max, first_batch_whole, watch_below_bytes, .. } => Op::Read {
            from_follower: true,
            nearer: Vec::new(),
            current_epoch: epoch,
            offset,
            bytes_max,
            first_batch_whole,
            watch_below_bytes,
        },
        _ => unreachable!(),
    };
    let token = cluster.rig(B).op(0, any(0, Some(LeaderEpoch(1))));
    let Some(Answer::Read(Ok(out))) = cluster.rig(B).answer(token) else { panic!("it is answered") };
    assert_eq!((out.high_watermark, out.records.len()), (Offset(1), 1));
    let watch = cluster.rig(B).op(0, any(1, None));
    assert!(matches!(cluster.rig(B).answer(watch), Some(Answer::Read(Ok(out))) if out.watching));
    cluster.append(A, 0, "b");
    cluster.settle();
    assert!(matches!(cluster.rig(B).answer(watch), Some(Answer::Readable)));
    for (op, error) in [
        (any(9, None), PartitionError::OffsetNotAvailable),
        (any(0, Some(LeaderEpoch(2))), PartitionError::UnknownLeaderEpoch),
        (any(0, Some(LeaderEpoch(0))), PartitionError::FencedLeaderEpoch),
        (read(0, 0), PartitionError::NotLeader),
        (Op::Locate { current_epoch: None, at: Locate::Latest }, PartitionError::NotLeader),
    ] {
        let token = cluster.rig(B).op(0, op);
        assert_eq!(cluster.error(B, token), Some(error));
    }
    let token = cluster.append(B, 0, "c");
    assert_eq!(cluster.error(B, token), Some(PartitionError::NotLeader));
    // What it has and does not know to be committed is waited for.
    cluster.slow_disks.insert(C);
    cluster.append(A, 0, "d");
    assert_eq!(cluster.ends(B, 0), (0, 2, 3));
    let ahead = cluster.rig(B).op(0, any(3, None));
    assert!(
        matches!(cluster.rig(B).answer(ahead), Some(Answer::Read(Ok(out))) if out.watching && out.records.is_empty())
    );
    cluster.slow_disks.clear();
    cluster.settle();
    assert!(cluster.rig(B).answer(ahead).is_none(), "what it stands before is not there yet");
    cluster.append(A, 0, "e");
    cluster.settle();
    assert!(matches!(cluster.rig(B).answer(ahead), Some(Answer::Readable)));
    // Records that the leader deleted are gone here too.
    delete_before(&mut cluster, A, 2);
    cluster.settle();
    let token = cluster.rig(B).op(0, any(1, None));
    assert_eq!(cluster.error(B, token), Some(PartitionError::OffsetOutOfRange));
    // One that may be cut off from everybody sends its readers away, and who waits is woken to be told.
    let watch = cluster.rig(B).op(0, any(4, None));
    assert!(matches!(cluster.rig(B).answer(watch), Some(Answer::Read(Ok(out))) if out.watching));
    let until = cluster.now() + Duration::from_secs(1);
    cluster.rig(B).handle(Input::Control(FromControl::Lease { until }));
    cluster.at(until);
    assert!(matches!(cluster.rig(B).answer(watch), Some(Answer::Readable)));
    let token = cluster.rig(B).op(0, any(3, None));
    assert_eq!(cluster.error(B, token), Some(PartitionError::NotLeader));
}

#[test]
fn the_leader_names_a_nearer_follower_that_holds_what_is_asked_for() {
    let mut cluster = Cluster::new();
    cluster.assign(0, A, 1, &[A, B], quorum(2));
    for value in ["a", "b"] {
        cluster.append(A, 0, value);
    }
    cluster.settle();
    let ask = |cluster: &mut Cluster, at: u64, among: &[NodeId]| {
        let mut op = read(at, 1);
        let Op::Read { nearer, watch_below_bytes, .. } = &mut op else { unreachable!() };
        (*nearer, *watch_below_bytes) = (among.to_vec(), 1);
        let token = cluster.rig(A).op(0, op);
        match cluster.rig(A).answer(token) {
            Some(Answer::Read(Ok(out))) => Ok((out.nearer, out.records.len(), out.watching)),
            Some(Answer::Read(Err(refused))) => Err(refused.error),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(ask(&mut cluster, 0, &[C, B]), Ok((Some(B), 0, false)), "C is not in sync");
    assert_eq!(ask(&mut cluster, 2, &[B]), Ok((Some(B), 0, false)), "it waits there, not here");
    assert_eq!(ask(&mut cluster, 0, &[C]), Ok((None, 2, false)));
    assert_eq!(ask(&mut cluster, 0, &[]), Ok((None, 2, false)));
    assert_eq!(ask(&mut cluster, 0, &[A]), Ok((None, 2, false)), "nobody is sent to where they are");
    assert_eq!(ask(&mut cluster, 3, &[B]), Err(PartitionError::OffsetOutOfRange));
    // After its return nothing is known of what it holds, until it has said so.
    cluster.cut_off(B);
    let files = cluster.kill(B);
    cluster.restart(B, files);
    assert_eq!(ask(&mut cluster, 0, &[B]), Ok((None, 2, false)));
}
