//! Who leads: R25, R27, R29, and the stops of nodes (R32).

use super::*;

#[test]
fn r25_the_leader_stays_and_otherwise_the_first_in_sync_in_the_order_of_the_assignment_leads() {
    let mut world = World::of(4);
    world.hold(&[3, 1, 2, 4], &[]);
    assert_eq!(world.seen(), seen(3, &[3, 1, 2, 4], &[]));
    world.fence(4);
    assert_eq!(world.seen(), seen(3, &[3, 1, 2], &[]), "the leader stays");
    world.wish(&[2, 3]).unwrap();
    world.fence(3);
    assert_eq!(world.seen(), seen(2, &[2], &[]), "1 comes first, and is not in sync");
    world.unfence(3);
    assert_eq!(world.seen(), seen(2, &[2], &[]), "the leader stays, preferred or not");
}

#[test]
fn r25_when_nobody_is_in_sync_an_eligible_one_leads() {
    let mut world = World::of(3);
    world.hold(&[1, 2, 3], &[("min.insync.replicas", "2")]);
    world.wish(&[1, 2]).unwrap();
    world.wish(&[1]).unwrap();
    world.fence(2);
    world.fence(1);
    assert_eq!(world.seen(), seen(0, &[], &[1, 2]));
    assert_eq!(world.held().last_leader, Some(ME));
    world.fence(3);
    world.unfence(3);
    assert_eq!(world.seen(), seen(0, &[], &[1, 2]), "3 may lack acknowledged records");
    world.unfence(2);
    assert_eq!(world.seen(), seen(2, &[2], &[1]));
    assert!(!world.held().recovering && world.held().last_leader.is_none());
    world.unfence(1);
    assert_eq!(world.seen(), seen(2, &[2], &[1]), "it has to catch up first");
}

#[test]
fn r25_as_long_as_somebody_is_in_sync_nobody_leads_who_is_only_eligible() {
    let mut world = World::of(2);
    let follower = RegisterNode {
        node: NodeId(3),
        incarnation: Incarnation(1),
        capabilities: Capabilities { leader: false, ..Capabilities::default() },
        ..RegisterNode::default()
    };
    world.done(Command::RegisterNode(follower));
    world.unfence(3);
    world.hold(&[1, 2, 3], &[("min.insync.replicas", "3")]);
    world.wish(&[1, 3]).unwrap();
    assert_eq!(world.seen(), seen(1, &[1, 3], &[2]));
    world.fence(1);
    assert_eq!(world.seen(), seen(0, &[3], &[1, 2]), "3 is in sync, and not meant to lead");
}

/// One that acknowledges before it flushes: 1 led alone, and comes back without what it had not flushed.
fn lost_alone(unclean: &str) -> World {
    let mut world = World::of(2);
    let config = [("highwater.durability", "replicated"), ("unclean.leader.election.enable", unclean)];
    world.hold(&[1, 2], &config);
    world.wish(&[1]).unwrap();
    world.fence(2);
    world.restart(1, false);
    world
}

#[test]
fn r25_when_nobody_is_in_sync_or_eligible_the_last_leader_leads_and_recovers() {
    let mut world = lost_alone("false");
    assert_eq!((world.seen(), world.held().last_leader), (seen(0, &[], &[]), Some(ME)));
    world.unfence(2);
    assert_eq!(world.seen(), seen(0, &[], &[]), "2 was not in sync");
    world.unfence(1);
    assert_eq!(world.seen(), seen(1, &[1], &[]));
    assert!(world.held().recovering && world.held().last_leader.is_none());
    world.wish(&[1, 2]).unwrap();
    assert!(!world.held().recovering);
}

#[test]
fn kafka_19522_a_last_leader_that_is_fenced_is_not_elected() {
    let mut world = lost_alone("false");
    world.unfence(2);
    world.configure("retention.ms", "5");
    world.fence(2);
    assert_eq!(world.seen(), seen(0, &[], &[]), "1 is fenced yet");
    assert_eq!(world.elect(ElectionKind::Unclean), Err(Why::EligibleLeadersNotAvailable));
    assert_eq!(world.held().leader, None);
}

#[test]
fn r25_anybody_leads_only_where_the_topic_allows_it() {
    let mut world = lost_alone("true");
    world.unfence(2);
    assert_eq!(world.seen(), seen(2, &[2], &[]));
    assert!(world.held().recovering);
    let mut world = lost_alone("false");
    world.unfence(2);
    assert_eq!(world.held().leader, None);
    world.configure("unclean.leader.election.enable", "true");
    assert_eq!(world.seen(), seen(2, &[2], &[]), "from the moment on at which it does");
    let mut world = lost_alone("false");
    world.unfence(2);
    world.apply(Command::SetClusterConfig(vec![set("unclean.leader.election.enable", "true")]));
    assert_eq!(world.held().leader, None, "the topic says something else itself");
}

#[test]
fn an_unclean_election_on_demand_asks_no_topic_and_ends_what_was_eligible() {
    let mut world = World::of(3);
    world.hold(&[1, 2, 3], &[("min.insync.replicas", "2")]);
    assert_eq!(world.elect(ElectionKind::Unclean), Err(Why::ElectionNotNeeded));
    world.wish(&[1]).unwrap();
    [1, 2].into_iter().for_each(|node| world.fence(node));
    world.fence(3);
    assert_eq!(world.elect(ElectionKind::Unclean), Err(Why::EligibleLeadersNotAvailable));
    world.unfence(3);
    assert_eq!(world.seen(), seen(3, &[3], &[1, 2]), "it was in sync when too few became so");
    assert!(!world.held().recovering);
    let mut world = World::of(3);
    world.hold(&[1, 2, 3], &[]);
    world.wish(&[1]).unwrap();
    world.fence(1);
    assert_eq!(world.seen(), seen(0, &[], &[1]));
    assert_eq!(world.elect(ElectionKind::Unclean), Ok(()));
    assert_eq!(world.seen(), seen(2, &[2], &[]), "what 1 has and 2 lacks is given up");
    assert!(world.held().recovering);
    world.unfence(1);
    assert_eq!(world.seen(), seen(2, &[2], &[]));
}

#[test]
fn r27_a_node_that_did_not_stop_cleanly_is_neither_in_sync_nor_eligible() {
    let replicated = ("highwater.durability", "replicated");
    for is_clean in [true, false] {
        let mut world = World::of(3);
        world.hold(&[1, 2, 3], &[replicated, ("min.insync.replicas", "2")]);
        world.wish(&[1, 2]).unwrap();
        world.wish(&[1]).unwrap();
        world.restart(2, is_clean);
        assert_eq!(world.seen(), seen(1, &[1], if is_clean { &[2] } else { &[] }), "eligible before");
        world.restart(1, is_clean);
        let elr: &[u32] = if is_clean { &[1, 2] } else { &[] };
        assert_eq!(world.seen(), seen(0, &[], elr), "the last one in sync");
        assert_eq!(world.held().last_leader, Some(ME));
        world.unfence(2);
        assert_eq!(world.held().leader, is_clean.then_some(NodeId(2)));
        world.unfence(1);
        assert_eq!(world.held().leader, Some(NodeId(if is_clean { 2 } else { 1 })));
        assert_eq!(world.held().recovering, !is_clean);
    }
}

#[test]
fn r27_the_word_of_an_earlier_life_than_the_last_is_none() {
    let mut world = World::of(2);
    world.hold(&[1, 2], &[("highwater.durability", "replicated"), ("min.insync.replicas", "2")]);
    let first = world.epoch(2);
    world.restart(2, true);
    assert_eq!(world.seen(), seen(1, &[1], &[2]));
    let Command::RegisterNode(new) = register(NodeId(2), 3) else { unreachable!() };
    world.done(Command::RegisterNode(RegisterNode { clean_stop: Some(first), ..new }));
    assert_eq!(world.seen(), seen(1, &[1], &[]));
}

#[test]
fn r27_what_was_flushed_before_it_was_acknowledged_outlives_any_stop() {
    let mut world = World::of(3);
    world.hold(&[1, 2, 3], &[("min.insync.replicas", "2")]);
    (1..=3).for_each(|node| world.restart(node, false));
    assert_eq!(world.seen(), seen(0, &[], &[2, 3]), "1 was the first to go, when enough others were in sync");
    world.unfence(1);
    assert_eq!(world.held().leader, None);
    world.unfence(2);
    assert_eq!(world.seen(), seen(2, &[2], &[3]));
    let mut world = World::of(1);
    world.hold(&[1], &[]);
    world.restart(1, false);
    assert_eq!(world.seen(), seen(0, &[], &[1]));
    world.unfence(1);
    assert_eq!(world.seen(), seen(1, &[1], &[]));
    assert!(!world.held().recovering);
}

#[test]
fn r29_the_preferred_replica_leads_on_demand_when_it_is_in_sync_and_can() {
    let mut world = World::of(3);
    world.hold(&[1, 2, 3], &[]);
    assert_eq!(world.elect(ElectionKind::Preferred), Err(Why::ElectionNotNeeded));
    world.fence(1);
    assert_eq!(world.elect(ElectionKind::Preferred), Err(Why::PreferredLeaderNotAvailable), "fenced");
    world.unfence(1);
    assert_eq!(world.elect(ElectionKind::Preferred), Err(Why::PreferredLeaderNotAvailable), "not in sync");
    world.wish(&[1, 2, 3]).unwrap();
    let before = world.epochs();
    assert_eq!(world.elect(ElectionKind::Preferred), Ok(()));
    assert_eq!(world.seen(), seen(1, &[1, 2, 3], &[]));
    assert_eq!(world.epochs(), (before.0 + 1, before.1 + 1));
}

#[test]
fn r32_one_small_command_takes_a_node_out_of_all_isrs_and_leaderships_at_once() {
    let mut world = World::of(3);
    for topic in 0..10 {
        let replicas = (0..1000_u32).map(|p| ids(&[1 + p % 3, 1 + (p + 1) % 3, 1 + (p + 2) % 3])).collect();
        let name = format!("t{topic}");
        world.create(CreateTopic { replicas, ..new_topic(100 + topic, &name, 1) }).unwrap();
    }
    let fence = Command::FenceNode { node: NodeId(2), epoch: world.epoch(2) };
    assert!(Entry { commands: vec![fence.clone()] }.encode().len() < 40);
    let (delta, _) = world.apply(fence);
    assert_eq!(delta.changed.len(), 10_000);
    let all = || world.0.topics().flat_map(|topic| &topic.partitions);
    assert!(all().all(|p| p.leader.is_some_and(|leader| p.isr.contains(&leader))));
    assert!(all().all(|p| p.isr.len() == 2 && !p.isr.contains(&NodeId(2))));
    assert!(
        all().all(|p| (p.leader_epoch.0 == 1) == (p.replicas[0] == NodeId(2)) && p.partition_epoch.0 == 1)
    );
    assert_eq!(world.0.leaderless_count(), 0);
}

#[test]
fn r32_a_node_that_stops_leads_and_is_in_sync_only_where_nobody_else_can_lead() {
    let mut world = World::of(3);
    world.hold(&[1, 2, 3], &[]);
    let alone = CreateTopic { replicas: vec![ids(&[1])], ..new_topic(7, "alone", 1) };
    world.create(alone).unwrap();
    world.stop(1);
    assert_eq!(world.seen(), seen(2, &[2, 3], &[]));
    let alone = PartitionId { topic: TopicId(7), index: PartitionIndex(0) };
    assert_eq!(world.0.partition(alone).unwrap().leader, Some(ME), "as long as it is there");
    assert!(world.0.serves(ME) && !world.0.is_active(ME));
    let epoch = world.epoch(1);
    let (_, outcome) = world.apply(Command::UnfenceNode { node: ME, epoch });
    assert!(matches!(outcome, Outcome::Fenced(Err(_))), "there is no way back but a new life");
    world.stop(1);
    world.fence(1);
    let state = world.0.partition(alone).unwrap();
    assert_eq!((state.leader, &state.isr, &state.elr), (None, &ids(&[]), &ids(&[1])));
    world.restart(1, true);
    world.unfence(1);
    assert_eq!(world.0.partition(alone).unwrap().leader, Some(ME));
    assert!(world.0.is_active(ME));
}

#[test]
fn a_node_that_stops_goes_on_leading_alone_until_another_comes_in_sync() {
    let mut world = World::of(3);
    world.hold(&[1, 2, 3], &[]);
    world.wish(&[1]).unwrap();
    world.stop(1);
    world.fence(3);
    assert_eq!(world.seen(), seen(1, &[1], &[]));
    world.wish(&[1, 2]).unwrap();
    assert_eq!(world.seen(), seen(2, &[1, 2], &[]));
    world.fence(1);
    assert_eq!(world.seen(), seen(2, &[2], &[]));
}

#[test]
fn a_new_topic_counts_only_nodes_that_are_there_and_none_of_the_others_lacks_anything() {
    let mut world = World::of(3);
    world.fence(2);
    world.hold(&[2, 1, 3], &[("min.insync.replicas", "3")]);
    assert_eq!(world.seen(), seen(1, &[1, 3], &[2]));
    assert_eq!(world.epochs(), (0, 0));
    let topic = CreateTopic { replicas: vec![ids(&[2])], ..new_topic(7, "absent", 1) };
    world.create(topic).unwrap();
    let state = world.0.topic("absent").unwrap().partitions[0].clone();
    assert_eq!((state.leader, state.elr), (None, ids(&[2])));
    world.unfence(2);
    assert_eq!(world.0.topic("absent").unwrap().partitions[0].leader, Some(NodeId(2)));
}
