//! Streams: which there are, how they end and begin again, and what they may hold.

use super::cluster::*;
use super::*;

fn quorum(isr_min: u32) -> PartitionConfig {
    PartitionConfig { isr_min, ..PartitionConfig::default() }
}

fn led_by_a() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.assign(0, A, 1, &[A, B, C], quorum(2));
    cluster
}

fn between(cluster: &Cluster, dialer: At, acceptor: At) -> Vec<ConnId> {
    let same = |w: &Wire| (w.dialer, w.acceptor) == (dialer, acceptor);
    cluster.wires.iter().filter(|(_, w)| same(w)).map(|(conn, _)| *conn).collect()
}

#[test]
fn all_partitions_of_a_pair_of_shards_share_one_stream_and_one_frame() {
    let mut cluster = Cluster::new();
    for index in 0..10 {
        cluster.assign(index, A, 1, &[A, B, C], quorum(2));
    }
    assert_eq!(cluster.wires.len(), 2, "B and C follow A");
    cluster.settle();
    // A batch of inputs: frames are made when outputs are polled.
    let now = cluster.now();
    let deadline = now + Duration::from_secs(1);
    let rig = cluster.rig(A);
    for index in 0..10 {
        let reply_to = ReplyTo { shard: OTHER_SHARD, conn: ConnId(1), token: Token(1000 + u64::from(index)) };
        let op = Op::Append { acks: Acks::All, deadline, records: batch("a") };
        rig.shard.handle(now, Input::Mail(ShardMail::Op { reply_to, partition: partition(index), op }));
    }
    rig.drain();
    let sends = rig.outputs.iter().filter(|o| matches!(o, Output::Send { .. })).count();
    assert_eq!(sends, 2, "one frame for each follower");
    let frames = cluster.frames;
    cluster.run();
    assert!(
        cluster.frames - frames <= 2 + 2 * 2,
        "and acknowledgements of each: {}",
        cluster.frames - frames
    );
    for index in 0..10 {
        cluster.assert_same(index, 1);
    }
}

#[test]
fn a_follower_finds_the_shard_that_owns_the_partition() {
    let mut cluster = Cluster::new();
    for node in [A, B, C] {
        cluster.start((node, ShardId(1)), BTreeMap::new());
    }
    cluster.tell_nodes();
    cluster.assign(0, A, 1, &[A, B, C], quorum(2));
    cluster.assign(100, A, 1, &[A, B, C], quorum(2));
    cluster.settle();
    let at = |node| (node, ShardId(1));
    assert_eq!(cluster.wires.len(), 4, "streams to the shard that was asked first are closed again");
    assert_eq!(between(&cluster, at(B), at(A)).len(), 1);
    let rig = cluster.rigs.get_mut(&at(A)).unwrap();
    let token = rig.append(100, Acks::All, batch("a"));
    cluster.run();
    assert_eq!(cluster.rigs.get_mut(&at(A)).unwrap().base(token), Some(0));
    cluster.assert_same(100, 1);
}

#[test]
fn a_broken_stream_is_made_again_and_goes_on_where_the_log_ends() {
    let mut cluster = led_by_a();
    for round in 0..5 {
        cluster.held.insert((A, B));
        cluster.append(A, 0, &format!("{round}"));
        cluster.break_streams(B);
        cluster.held.clear();
        let token = cluster.append(A, 0, &format!("{round} too"));
        cluster.settle();
        assert!(cluster.base(A, token).is_some());
    }
    cluster.assert_same(0, 10);
    assert_eq!(cluster.stats(B).misfits, 0);
    assert_eq!(cluster.stats(B).streams_broken, 5);
}

#[test]
fn a_node_that_cannot_be_reached_is_dialed_ever_more_seldom() {
    let mut cluster = Cluster::new();
    cluster.cut_off(A);
    cluster.assign(0, A, 1, &[A, B, C], quorum(2));
    cluster.after(Duration::from_secs(60));
    let dials = cluster.stats(B).dials;
    assert!((30..200).contains(&dials), "{dials} dials in a minute with a bound of 1 s");
    cluster.cut_off.clear();
    cluster.after(Duration::from_secs(2));
    let token = cluster.append(A, 0, "a");
    assert_eq!(cluster.base(A, token), Some(0));
}

#[test]
fn of_two_streams_the_newer_wins() {
    let mut cluster = led_by_a();
    let older = between(&cluster, on(B), on(A));
    let newer = cluster.connect(on(B), on(A));
    cluster.settle();
    assert_eq!(between(&cluster, on(B), on(A)), [newer]);
    assert!(!older.contains(&newer));
    let token = cluster.append(A, 0, "a");
    assert_eq!(cluster.base(A, token), Some(0));
    cluster.assert_same(0, 1);
}

#[test]
fn a_stream_of_a_life_that_is_over_is_closed() {
    let mut cluster = led_by_a();
    cluster.lives.insert(B, RegistrationEpoch(5));
    cluster.tell_nodes();
    cluster.lives.insert(B, RegistrationEpoch(4));
    cluster.connect(on(B), on(A));
    cluster.run();
    let left = between(&cluster, on(B), on(A));
    assert!(left.is_empty(), "{left:?}");
    cluster.lives.insert(B, RegistrationEpoch(5));
    cluster.settle();
    assert_eq!(between(&cluster, on(B), on(A)).len(), 1);
}

#[test]
fn a_follower_that_takes_nothing_holds_a_bounded_part_of_the_log() {
    let replication = ReplicationConfig {
        unsent_bytes_max: 20_000,
        stream_credit_bytes: 30_000,
        turn_bytes: 5_000,
        ..Default::default()
    };
    let mut cluster = Cluster::with(replication, u64::MAX);
    cluster.assign(0, A, 1, &[A, B, C], PartitionConfig { isr_min: 1, ..replicated() });
    cluster.settle();
    // The network takes what A sends, and nobody hears it: the credit bounds it.
    cluster.held = [(A, B), (A, C)].into();
    let before = cluster.bytes;
    for _ in 0..200 {
        cluster.rig(A).append(0, Acks::Leader, batch(&"x".repeat(1000)));
    }
    cluster.run();
    let sent = cluster.bytes - before;
    assert!((50_000..90_000).contains(&sent), "{sent} bytes on two streams");
    cluster.held.clear();
    cluster.assert_same(0, 200);
    // Nor does the network: what is unsent bounds it.
    cluster.stuck.insert(A);
    let before = cluster.bytes;
    for _ in 0..200 {
        cluster.rig(A).append(0, Acks::Leader, batch(&"x".repeat(1000)));
    }
    cluster.run();
    let sent = cluster.bytes - before;
    assert!((30_000..70_000).contains(&sent), "{sent} bytes on two streams");
}

#[test]
fn a_follower_whose_log_is_full_stalls_the_stream_and_loses_nothing() {
    let mut cluster = led_by_a();
    cluster.slow_disks.insert(B);
    cluster.assign(0, A, 1, &[A, C], quorum(2));
    for _ in 0..700 {
        cluster.rig(A).append(0, Acks::All, batch(&"x".repeat(400_000)));
        cluster.run();
    }
    let (b, a) = (cluster.ends(B, 0).2, cluster.ends(A, 0).2);
    assert_eq!(a, 700);
    assert!(b < a, "{b} of {a}: the journal refuses at some point");
    cluster.slow_disks.clear();
    cluster.settle();
    assert_eq!(cluster.ends(B, 0).2, 700);
    assert_eq!(cluster.stats(B).misfits, 0);
}

#[test]
fn bytes_that_are_no_messages_end_the_stream_and_nothing_else() {
    let mut cluster = led_by_a();
    for (dialer, acceptor, to) in [(B, A, A), (B, A, B)] {
        let conn = between(&cluster, on(dialer), on(acceptor))[0];
        let frame = Bytes::from_static(b"\xffGET / HTTP/1.1");
        cluster.rig(to).handle(Input::Peer(PeerInput::Frame { conn, frame }));
        cluster.settle();
        assert!(!cluster.wires.contains_key(&conn));
        assert_eq!(between(&cluster, on(B), on(A)).len(), 1, "it is made again");
    }
    let token = cluster.append(A, 0, "a");
    assert_eq!(cluster.base(A, token), Some(0));
}

#[test]
fn a_stop_sends_followers_away_and_ends_with_the_last_stream() {
    let mut cluster = led_by_a();
    cluster.assign(1, B, 1, &[A, B, C], quorum(2));
    cluster.append(A, 0, "a");
    cluster.slow_disks.insert(A);
    cluster.rig(A).append(0, Acks::Leader, batch("b"));
    cluster.rig(A).handle(Input::Control(FromControl::Stop { deadline: Duration::from_secs(5) }));
    let rig = cluster.rig(A);
    let position = |rig: &Rig, what: fn(&Output<Echo>) -> bool| rig.outputs.iter().position(what);
    assert!(position(rig, |o| matches!(o, Output::Control(ToControl::Stopped))).is_none());
    rig.run_disk();
    let closes = rig.outputs.iter().filter(|o| matches!(o, Output::Close { .. })).count();
    assert_eq!(closes, 3, "two followers and one leader");
    assert!(
        position(rig, |o| matches!(o, Output::Control(ToControl::Stopped))).is_none(),
        "streams are open"
    );
    let conns: Vec<ConnId> = cluster.wires.keys().copied().collect();
    for conn in conns {
        let reason = CloseReason::Stopping;
        cluster.rig(A).handle(Input::Peer(PeerInput::Closed { conn, reason }));
    }
    assert!(
        position(cluster.rig(A), |o| matches!(o, Output::Control(ToControl::Stopped))).is_some(),
        "it has stopped"
    );
}

#[test]
fn a_partition_that_is_taken_away_is_neither_followed_nor_led() {
    let mut cluster = led_by_a();
    cluster.append(A, 0, "a");
    for node in [B, A] {
        let rig = cluster.rig(node);
        rig.revision += 1000;
        rig.delta(vec![], vec![partition(0)]);
        cluster.settle();
    }
    assert!(between(&cluster, on(B), on(A)).is_empty());
    let stats = cluster.stats(A);
    assert_eq!((stats.leading, stats.following), (0, 0));
}
