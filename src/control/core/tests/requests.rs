//! Requests: what they come to, when they are answered, and what is refused.

use super::*;

#[test]
fn a_request_is_answered_once_every_shard_has_applied_it() {
    let mut world = World::serving(2);
    world.shard_says(0, ToControl::Request { conn: ConnId(5), token: Token(6), request: create(&["a"], 3) });
    world.commit();
    assert!(world.shards.iter().all(|s| s.told.is_empty()), "the placement is not kept yet");
    world.keep();
    world.step(0);
    assert!(world.shards[0].told.is_empty(), "shard 1 has not applied");
    world.step(1);
    world.step(0);
    let [(conn, token, Reply::CreateTopics(slots))] = &world.shards[0].replies[..] else {
        panic!("one reply of that kind")
    };
    assert_eq!((*conn, *token), (ConnId(5), Token(6)));
    assert_eq!(slots[0].as_ref().map(|t| t.partitions), Ok(3));
    world.check_shards();
    assert_eq!(world.owned(), [2, 1]);
}

#[test]
fn what_is_asked_during_a_proposal_shares_the_next_one() {
    let mut world = World::serving(1);
    for id in 0..10 {
        world.ask(id, create(&[&format!("t{id}")], 1));
    }
    assert_eq!(world.proposals.len(), 1);
    world.commit();
    assert_eq!(world.proposals.len(), 1);
    assert_eq!(world.proposals[0].1.commands.len(), 9);
    world.run();
    assert_eq!(world.local.len(), 10);
    assert_eq!(world.control.image().topic_count(), 10);
}

#[test]
fn an_entry_waits_for_those_who_were_just_answered_as_long_as_they_come_back() {
    let mut world = World::serving(1);
    let mut next = 0;
    let mut ask = |world: &mut World, count: usize| {
        for _ in 0..count {
            world.ask(next, create(&[&format!("t{next}")], 1));
            next += 1;
        }
    };
    let entry = |world: &World| world.proposals.front().map(|(_, entry)| entry.commands.len());
    ask(&mut world, 1);
    ask(&mut world, 16);
    world.commit();
    assert_eq!(entry(&world), Some(16), "one client alone is not waited for");
    ask(&mut world, 16);
    world.commit();
    assert_eq!(entry(&world), None, "16 may come back to the 16 that wait");
    ask(&mut world, 7);
    assert_eq!(entry(&world), None);
    ask(&mut world, 1);
    assert_eq!(entry(&world), Some(24));
    ask(&mut world, 8);
    world.commit();
    // Nobody comes back: after a moment what waits is proposed, and the next entry does not wait.
    assert_eq!(entry(&world), None);
    world.pass(GATHER_MAX);
    assert_eq!(entry(&world), Some(8));
    ask(&mut world, 8);
    world.commit();
    assert_eq!(entry(&world), Some(8));
    ask(&mut world, 8);
    world.commit();
    assert_eq!(entry(&world), None, "one is tried again");
    // What the node wants by itself does not wait, and takes along what does.
    world.ask(100, Request::NewProducerId);
    while world.reply(100).is_some() {
        world.ask(100, Request::NewProducerId);
    }
    assert_eq!(entry(&world), Some(9));
    world.run();
    world.check_shards();
}

#[test]
fn requests_in_one_entry_see_each_other() {
    let mut world = World::serving(1);
    world.ask(0, create(&["first"], 1));
    world.ask(1, create(&["a"], 1));
    world.ask(2, create(&["a"], 1));
    world.ask(3, delete("a"));
    world.run();
    let mut why = |id| refusals(&world.reply(id).expect("answered"));
    assert_eq!(why(1), [None]);
    assert_eq!(why(2), [Some(Why::TopicExists)]);
    assert_eq!(why(3), [None]);
    world.check_shards();
}

#[test]
fn refused_and_validated_requests_never_reach_the_log() {
    let mut world = World::serving(1);
    let validate = Request::CreateTopics {
        topics: vec![
            NewTopic { name: "good".into(), ..NewTopic::default() },
            NewTopic { name: "bad name".into(), ..NewTopic::default() },
        ],
        validate_only: true,
        timeout: SECOND,
    };
    world.ask(1, validate);
    world.ask(2, delete("nope"));
    world.ask(3, alter(ConfigResource::Node(ME), "retention.ms", ConfigOp::Delete));
    assert!(world.proposals.is_empty());
    assert_eq!(refusals(&world.reply(1).unwrap()), [None, Some(Why::InvalidTopicName)]);
    assert_eq!(refusals(&world.reply(2).unwrap()), [Some(Why::UnknownTopic)]);
    assert_eq!(refusals(&world.reply(3).unwrap()), [Some(Why::InvalidConfig)]);
    assert_eq!(world.control.image().topic_count(), 0);
}

#[test]
fn an_automatic_creation_waits_until_the_one_under_way_is_applied() {
    let mut world = World::serving(1);
    let automatic = || Request::CreateTopics {
        topics: vec![NewTopic { name: "a".into(), automatic: true, ..NewTopic::default() }],
        validate_only: false,
        timeout: SECOND,
    };
    world.ask(1, automatic());
    world.ask(2, automatic());
    world.commit();
    world.keep();
    assert!(world.proposals.is_empty(), "the second one changes nothing");
    assert!(world.local.is_empty());
    world.run();
    let Some(Reply::CreateTopics(first)) = world.reply(1) else { panic!("answered") };
    let Some(Reply::CreateTopics(second)) = world.reply(2) else { panic!("answered") };
    assert_eq!(first, second);
    assert_eq!(first[0].as_ref().map(|t| t.partitions), Ok(4));
}

#[test]
fn requests_that_break_a_rule_are_refused_with_its_kind() {
    let mut world = World::serving(1);
    let mut why = |topic: NewTopic| {
        let topics = vec![topic];
        world.ask(1, Request::CreateTopics { topics, validate_only: false, timeout: SECOND });
        refusals(&world.reply(1).expect("answered at once"))[0]
    };
    let topic = || NewTopic { name: "a".into(), ..NewTopic::default() };
    assert_eq!(why(NewTopic { partitions: Some(0), ..topic() }), Some(Why::InvalidPartitions));
    assert_eq!(why(NewTopic { partitions: Some(u32::MAX), ..topic() }), Some(Why::LimitReached));
    assert_eq!(why(NewTopic { replication_factor: Some(2), ..topic() }), Some(Why::InvalidReplicationFactor));
    assert_eq!(why(NewTopic { replication_factor: Some(0), ..topic() }), Some(Why::InvalidReplicationFactor));
    assert_eq!(
        why(NewTopic { config: vec![("retention.ms".into(), None)], ..topic() }),
        Some(Why::InvalidConfig)
    );
    let assigned = |sets: &[(u32, &[u32])]| NewTopic {
        assignment: sets
            .iter()
            .map(|(index, set)| (PartitionIndex(*index), set.iter().map(|&n| NodeId(n)).collect()))
            .collect(),
        ..topic()
    };
    assert_eq!(why(assigned(&[(0, &[1]), (0, &[1])])), Some(Why::InvalidAssignment));
    assert_eq!(why(assigned(&[(0, &[1]), (2, &[1])])), Some(Why::InvalidAssignment));
    assert_eq!(why(assigned(&[(0, &[7])])), Some(Why::InvalidAssignment));
    assert_eq!(why(assigned(&[(0, &[1]), (1, &[1, 1])])), Some(Why::InvalidAssignment));
    assert_eq!(why(assigned(&[(0, &[])])), Some(Why::InvalidAssignment));
    let contradicting = NewTopic { partitions: Some(2), ..assigned(&[(0, &[1])]) };
    assert_eq!(why(contradicting), Some(Why::InvalidRequest));
}

#[test]
fn what_stands_twice_in_a_request_is_refused_both_times() {
    let mut world = World::serving(1);
    world.ask(1, create(&["a", "b", "a"], 1));
    world.run();
    let twice = Some(Why::InvalidRequest);
    assert_eq!(refusals(&world.reply(1).unwrap()), [twice, None, twice]);
    let id = world.control.image().topic("b").unwrap().id;
    let topics = vec![TopicRef::Id(id), TopicRef::Name("b".into()), TopicRef::Id(TopicId(9))];
    world.ask(2, Request::DeleteTopics { topics, timeout: SECOND });
    assert_eq!(refusals(&world.reply(2).unwrap()), [twice, twice, Some(Why::UnknownTopicId)]);
}

#[test]
fn partitions_are_added_and_placed_beside_the_old_ones() {
    let mut world = World::serving(2);
    world.ask(1, create(&["a"], 1));
    world.run();
    let mut grow = |total| {
        let more = MorePartitions { topic: "a".into(), total, assignment: Vec::new() };
        let request = Request::CreatePartitions { topics: vec![more], validate_only: false, timeout: SECOND };
        world.ask(2, request);
        world.run();
        world.check_shards();
        (refusals(&world.reply(2).unwrap())[0], world.owned())
    };
    assert_eq!(grow(4), (None, vec![2, 2]));
    assert_eq!(grow(4), (Some(Why::InvalidPartitions), vec![2, 2]));
    assert_eq!(grow(u32::MAX), (Some(Why::LimitReached), vec![2, 2]));
}

#[test]
fn deleted_topics_leave_their_shards_and_the_store() {
    let mut world = World::serving(2);
    world.ask(1, create(&["a", "b"], 3));
    world.run();
    world.ask(2, delete("a"));
    world.run();
    assert_eq!(refusals(&world.reply(2).unwrap()), [None]);
    world.check_shards();
    assert_eq!(world.disk.image.local_shards().count(), 3);
}

#[test]
fn a_cluster_setting_reaches_the_partitions_that_have_no_own_one() {
    let mut world = World::serving(1);
    world.ask(1, create(&["own", "inherits"], 1));
    world.run();
    world
        .ask(2, alter(ConfigResource::Topic("own".into()), "min.insync.replicas", ConfigOp::Set("7".into())));
    world.run();
    world.ask(3, alter(ConfigResource::Cluster, "min.insync.replicas", ConfigOp::Set("3".into())));
    world.commit();
    let Some(FromControl::Delta { assign, .. }) = world.shards[0].told.front() else { panic!("a delta") };
    assert_eq!(assign.len(), 1, "only what changes is told");
    world.run();
    world.check_shards();
    let mut isr_min: Vec<u32> = world.shards[0].owned.values().map(|a| a.config.isr_min).collect();
    isr_min.sort_unstable();
    assert_eq!(isr_min, [3, 7]);
}

#[test]
fn both_kinds_of_resources_can_be_altered_in_one_request() {
    let mut world = World::serving(1);
    world.ask(1, create(&["a"], 1));
    world.run();
    let resource = |resource, key: &str| AlterConfig {
        resource,
        changes: vec![ConfigChange { key: key.into(), op: ConfigOp::Set("5".into()) }],
    };
    let resources = vec![
        resource(ConfigResource::Cluster, "retention.ms"),
        resource(ConfigResource::Topic("a".into()), "retention.ms"),
        resource(ConfigResource::Topic("b".into()), "retention.ms"),
    ];
    world.ask(2, Request::AlterConfigs { resources, validate_only: false });
    world.run();
    assert_eq!(refusals(&world.reply(2).unwrap()), [None, None, Some(Why::UnknownTopic)]);
    world.ask(3, alter(ConfigResource::Cluster, "segment.ms", ConfigOp::Set("0".into())));
    world.run();
    assert_eq!(refusals(&world.reply(3).unwrap()), [Some(Why::InvalidConfig)]);
}

#[test]
fn a_request_whose_time_is_up_is_answered_once_with_that() {
    let mut world = World::serving(1);
    world.ask(1, create(&["a"], 1));
    world.ask(2, create(&["b"], 1));
    world.pass(9 * SECOND);
    assert!(world.local.is_empty());
    world.pass(2 * SECOND);
    assert_eq!(refusals(&world.reply(1).unwrap()), [Some(Why::TimedOut)]);
    assert_eq!(refusals(&world.reply(2).unwrap()), [Some(Why::TimedOut)]);
    world.run();
    assert!(world.local.is_empty(), "no second answer");
    assert_eq!(world.control.image().topic_count(), 1, "what was proposed still comes about");
    assert_eq!(world.control.poll_timeout(), None);
}

#[test]
fn requests_beyond_the_bound_are_refused_at_once() {
    let mut world = World::serving(1);
    for id in 0..=REQUESTS_MAX as u64 {
        world.ask(id, delete("nope"));
        world.local.clear();
        world.ask(id, create(&[&format!("t{id}")], 1));
    }
    assert_eq!(world.control.stats().requests_waiting, REQUESTS_MAX as u64);
    assert_eq!(refusals(&world.reply(REQUESTS_MAX as u64).unwrap()), [Some(Why::TimedOut)]);
    world.run();
    // The last of them are waited for in vain.
    world.pass(GATHER_MAX);
    world.run();
    assert_eq!(world.local.len(), REQUESTS_MAX);
    world.check_shards();
}

#[test]
fn a_failed_proposal_refuses_its_requests_and_the_next_one_goes_on() {
    let mut world = World::serving(1);
    world.ask(1, create(&["a"], 1));
    let (proposal, _) = world.proposals.pop_front().unwrap();
    world.ask(2, create(&["b"], 1));
    world.input(Input::ProposalFailed { proposal, reason: "disk full".into() });
    assert_eq!(refusals(&world.reply(1).unwrap()), [Some(Why::StorageFailed)]);
    world.run();
    assert_eq!(refusals(&world.reply(2).unwrap()), [None]);
    world.check_shards();
}

/// A world where `x` is deleted by an entry under way, and a second request to delete it was refused for that.
fn relying_on_an_entry() -> World {
    let mut world = World::serving(1);
    world.ask(0, create(&["x", "y"], 1));
    world.run();
    world.ask(0, create(&["first"], 1));
    world.ask(1, delete("x"));
    let topics = ["x", "y"].map(|name| TopicRef::Name(name.into())).to_vec();
    world.ask(2, Request::DeleteTopics { topics, timeout: 10 * SECOND });
    world.commit();
    assert_eq!(world.proposals[0].1.commands.len(), 2);
    world
}

#[test]
fn a_refusal_that_relies_on_an_entry_is_void_when_the_entry_fails() {
    let mut world = relying_on_an_entry();
    let (proposal, _) = world.proposals.pop_front().unwrap();
    world.input(Input::ProposalFailed { proposal, reason: "disk full".into() });
    assert_eq!(refusals(&world.reply(2).unwrap()), [Some(Why::StorageFailed); 2], "`x` is there");
    world.run();
    world.check_shards();
}

#[test]
fn a_refusal_that_relies_on_an_entry_is_void_when_the_time_is_up_before() {
    let mut world = relying_on_an_entry();
    world.pass(11 * SECOND);
    assert_eq!(refusals(&world.reply(2).unwrap()), [Some(Why::TimedOut); 2], "`x` may be there");
    world.run();
    world.check_shards();
}

#[test]
fn a_refusal_that_relies_on_an_entry_is_void_when_the_entry_comes_to_something_else() {
    let mut world = relying_on_an_entry();
    // Another `x` is there by the time that the entry wants to delete it.
    let x = world.control.image().topic("x").unwrap().id;
    let other =
        CreateTopic { id: TopicId(9), name: "x".into(), replicas: vec![vec![ME]], ..CreateTopic::default() };
    world.commit_of_another(vec![Command::DeleteTopics(vec![x]), Command::CreateTopics(vec![other])]);
    world.run();
    assert_eq!(refusals(&world.reply(2).unwrap()), [Some(Why::NoController), None], "`x` is there");
    world.check_shards();
}

#[test]
fn parts_that_were_done_stay_done_when_a_later_entry_comes_to_something_else() {
    let mut world = World::serving(1);
    world.ask(0, create(&["x", "y"], 1));
    world.run();
    let more = |name: &str| MorePartitions { topic: name.into(), total: 1001, assignment: Vec::new() };
    let topics = vec![more("x"), more("y")];
    world.ask(1, Request::CreatePartitions { topics, validate_only: false, timeout: 10 * SECOND });
    // So many that the next entry reserves more of them.
    for id in 100..2100 {
        world.ask(id, Request::NewProducerId);
    }
    let y = world.control.image().topic("y").unwrap().id;
    world.commit_of_another(vec![Command::DeleteTopics(vec![y])]);
    world.commit();
    assert_eq!(world.control.image().topic("x").unwrap().partitions.len(), 1001);
    assert!(matches!(world.proposals[0].1.commands[..], [Command::ReserveProducerIds { .. }]));
    world.commit_of_another(vec![Command::ReserveProducerIds { node: ME, count: 7 }]);
    world.run();
    assert_eq!(refusals(&world.reply(1).unwrap()), [None, Some(Why::UnknownTopicId)]);
    world.check_shards();
}

#[test]
fn a_placement_that_could_not_be_kept_is_kept_later() {
    let mut world = World::serving(1);
    world.ask(1, create(&["a"], 1));
    world.commit();
    let (id, _) = world.keeps.pop_front().unwrap();
    world.input(Input::KeepFailed { id, reason: "disk full".into() });
    world.ask(2, alter(ConfigResource::Topic("a".into()), "retention.ms", ConfigOp::Set("5".into())));
    world.commit();
    assert!(world.shards[0].told.is_empty(), "later changes do not overtake");
    world.pass(SECOND);
    world.run();
    assert_eq!(refusals(&world.reply(1).unwrap()), [None]);
    world.check_shards();
}
