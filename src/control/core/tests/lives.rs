//! Starts, restarts, leaders of the log that come and go, and the end of a node.

use super::*;
use crate::control::limits::STOP_GRACE;

#[test]
fn shards_hear_of_partitions_once_the_node_is_registered_and_all_have_recovered() {
    let mut world = World::start(2, Disk::default());
    world.shard_says(0, ToControl::Recovered { partitions: Vec::new() });
    world.commit();
    assert!(world.shards.iter().all(|s| s.told.is_empty()), "one shard has not recovered");
    world.shard_says(1, ToControl::Recovered { partitions: Vec::new() });
    assert!(world.shards.iter().all(|s| s.told.len() == 2), "the nodes, and the partitions");
    assert!(world.step(0) && world.step(0));
    assert!(!world.ready, "one shard has not applied");
    assert!(world.step(1) && world.step(1));
    assert!(!world.ready && world.control.image().nodes[&ME].fenced, "the node is still fenced");
    world.run();
    assert!(world.ready && world.control.is_ready());
    world.check_shards();
}

#[test]
fn a_restart_keeps_placements_and_begins_a_new_epoch() {
    let mut world = World::serving(2);
    world.ask(1, create(&["a"], 5));
    world.run();
    let before: Vec<_> = world.disk.image.local_shards().collect();
    let mut world = World::start(3, world.disk);
    let held = before.iter().filter(|(_, s)| *s == ShardId(1)).map(|(p, _)| *p).collect();
    world.shard_says(0, ToControl::Recovered { partitions: Vec::new() });
    world.shard_says(1, ToControl::Recovered { partitions: held });
    world.shard_says(2, ToControl::Recovered { partitions: Vec::new() });
    world.run();
    assert!(world.ready);
    world.check_shards();
    assert_eq!(world.disk.image.local_shards().collect::<Vec<_>>(), before);
    assert!(world.shards.iter().flat_map(|s| s.owned.values()).all(|a| {
        // It lost the lead with its last life, and was elected again.
        (a.leader, a.leader_epoch) == (Some(ME), LeaderEpoch(2))
    }));
    assert_eq!(world.owned(), [3, 2, 0]);
}

#[test]
fn records_in_a_journal_decide_where_a_partition_without_placement_belongs() {
    let mut world = World::serving(2);
    world.ask(1, create(&["a"], 2));
    world.commit();
    let disk = world.disk.clone();
    assert_eq!(disk.image.local_shards().count(), 0, "it stopped before placements were kept");
    let id = disk.image.topic("a").unwrap().id;
    let partition = |index| PartitionId { topic: id, index: PartitionIndex(index) };
    let stray = PartitionId { topic: TopicId(99), index: PartitionIndex(0) };
    let mut world = World::start(2, disk);
    world.shard_says(0, ToControl::Recovered { partitions: vec![stray] });
    world.shard_says(1, ToControl::Recovered { partitions: vec![partition(0)] });
    world.run();
    assert!(world.ready);
    world.check_shards();
    assert_eq!(world.disk.image.local_shard(partition(0)), Some(ShardId(1)));
    assert_eq!(world.disk.image.local_shard(partition(1)), Some(ShardId(0)));
    assert_eq!(world.disk.image.local_shard(stray), None);
    assert_eq!(world.shards[0].unassigned, [stray], "the records of a deleted topic are given up");
}

#[test]
fn records_of_one_partition_on_two_shards_stop_the_node() {
    let mut world = World::serving(2);
    world.ask(1, create(&["a"], 1));
    world.run();
    let (partition, _) = world.disk.image.local_shards().next().unwrap();
    let mut other = World::start(2, world.disk);
    other.shard_says(0, ToControl::Recovered { partitions: vec![partition] });
    other.shard_says(1, ToControl::Recovered { partitions: vec![partition] });
    other.run();
    let twice = ControlFatal::HeldTwice { partition, first: ShardId(0), second: ShardId(1) };
    assert_eq!(other.fatal, Some(twice));
    assert!(!other.ready);
}

#[test]
fn with_another_number_of_shards_partitions_belong_where_their_records_went() {
    let mut world = World::serving(3);
    world.ask(1, create(&["a"], 6));
    world.run();
    let all: Vec<_> = world.disk.image.local_shards().map(|(id, _)| id).collect();
    // Five of them have records, which went to other shards; the sixth has none.
    let mut world = World::start(2, world.disk);
    world.shard_says(0, ToControl::Recovered { partitions: all[..2].to_vec() });
    world.shard_says(1, ToControl::Recovered { partitions: all[2..5].to_vec() });
    world.run();
    assert!(world.ready);
    world.check_shards();
    let owner = |world: &World, i: usize| world.disk.image.local_shard(all[i]).unwrap().0;
    assert_eq!((0..5).map(|i| owner(&world, i)).collect::<Vec<_>>(), [0, 0, 1, 1, 1]);
    assert!(owner(&world, 5) < 2);
}

#[test]
fn a_second_process_as_this_node_is_refused() {
    let mut world = World::serving(1);
    world.disk.lives = 0;
    let mut world = World::start(1, world.disk);
    world.recover_empty();
    world.run();
    assert!(matches!(world.fatal, Some(ControlFatal::RegistrationRefused(_))), "{:?}", world.fatal);
}

#[test]
fn stopping_waits_for_every_shard_and_names_the_late_ones() {
    let mut world = World::serving(2);
    world.input(Input::Stop { deadline: SECOND });
    world.ask(1, create(&["a"], 1));
    assert_eq!(refusals(&world.reply(1).unwrap()), [Some(Why::TimedOut)]);
    world.run();
    assert!(world.shards.iter().all(|s| s.stopping));
    world.shard_says(0, ToControl::Stopped);
    assert_eq!(world.stopped, None);
    world.shard_says(1, ToControl::Stopped);
    assert_eq!(world.stopped, Some((vec![], true)));

    let mut world = World::serving(2);
    world.input(Input::Stop { deadline: SECOND });
    world.shard_says(0, ToControl::Stopped);
    world.pass(SECOND + STOP_GRACE);
    assert_eq!(world.stopped, Some((vec![ShardId(1)], false)), "what it did not flush is gone");
}

#[test]
fn a_node_that_stops_before_its_shards_have_partitions_tells_them_of_none() {
    let mut world = World::serving(1);
    world.ask(1, create(&["a"], 1));
    world.run();
    let mut world = World::start(1, world.disk);
    world.input(Input::Stop { deadline: SECOND });
    world.commit();
    assert_eq!(world.shards[0].told.len(), 1);
    assert!(matches!(world.shards[0].told[0], FromControl::Stop { .. }), "until then an earlier life leads");
}

#[test]
fn without_a_leader_requests_are_refused_in_time_and_served_again_with_one() {
    let mut world = World::serving(1);
    world.input(Input::Leadership { term: 2, leader: None });
    world.ask(1, create(&["a"], 1));
    assert!(world.proposals.is_empty() && world.local.is_empty(), "an election may end soon");
    world.pass(LEADER_WAIT);
    assert_eq!(refusals(&world.reply(1).unwrap()), [Some(Why::NoController)]);
    world.ask(2, create(&["a"], 1));
    assert_eq!(refusals(&world.reply(2).unwrap()), [Some(Why::NoController)], "at once by now");
    world.input(Input::Leadership { term: 3, leader: Some(NodeId(2)) });
    world.ask(3, create(&["a"], 1));
    world.run();
    assert_eq!(refusals(&world.reply(3).unwrap()), [None]);
    assert_eq!(world.control.image().controller, Some(ME), "2 did not say yet that it leads");
    let (proposal, _) = {
        world.ask(4, create(&["b"], 1));
        world.proposals.pop_front().unwrap()
    };
    world.input(Input::ProposalFailed { proposal, reason: "the leader is gone".into() });
    assert_eq!(refusals(&world.reply(4).unwrap()), [Some(Why::NoController)]);
}

#[test]
fn a_registration_that_failed_is_tried_again_with_growing_pauses() {
    let mut world = World::start(1, Disk::default());
    world.recover_empty();
    for _ in 0..8 {
        let (proposal, entry) = world.proposals.pop_front().unwrap();
        assert!(matches!(entry.commands[0], Command::RegisterNode(_)));
        world.input(Input::ProposalFailed { proposal, reason: "no leader".into() });
        assert!(world.proposals.is_empty(), "not at once");
        world.pass(RETRY_MAX + RETRY_MAX);
    }
    world.run();
    assert!(world.ready && world.fatal.is_none());
}

#[test]
fn a_fenced_node_comes_back_by_itself_and_a_removed_one_ends() {
    let mut world = World::serving(1);
    world.ask(1, create(&["a"], 2));
    world.run();
    let fence = Request::ChangeNode { node: ME, change: NodeChange::Fence, timeout: SECOND };
    world.ask(2, fence);
    world.commit();
    assert!(world.control.image().nodes[&ME].fenced);
    assert_eq!(world.control.image().leaderless_count(), 2, "its leaderships ended with the same entry");
    world.run();
    assert_eq!(refusals(&world.reply(2).unwrap()), [None]);
    assert!(world.control.image().serves(ME));
    assert_eq!(world.control.image().leaderless_count(), 0);
    world.check_shards();

    let remove = || Request::ChangeNode { node: ME, change: NodeChange::Remove, timeout: SECOND };
    world.ask(3, remove());
    assert_eq!(refusals(&world.reply(3).unwrap()), [Some(Why::NodeInUse)]);
    world.ask(4, delete("a"));
    world.run();
    world.ask(5, remove());
    world.run();
    assert_eq!(world.fatal, Some(ControlFatal::Removed));
}

#[test]
fn an_installed_image_is_told_as_a_whole_and_leaves_what_is_not_known_open() {
    let mut world = World::serving(2);
    world.ask(1, create(&["gone", "stays"], 4));
    world.run();
    world.ask(2, create(&["asked"], 1));
    let (proposal, _) = world.proposals.pop_front().unwrap();
    let mut image = world.disk.image.clone();
    image.clear_local_shards();
    let gone = image.topic("gone").unwrap().id;
    let more = CreateTopic {
        id: TopicId(77),
        name: "new".into(),
        replicas: vec![vec![ME], vec![NodeId(2)]],
        ..CreateTopic::default()
    };
    let node = RegisterNode { node: NodeId(2), incarnation: Incarnation(1), ..RegisterNode::default() };
    let commands = vec![
        Command::DeleteTopics(vec![gone]),
        Command::RegisterNode(node),
        Command::CreateTopics(vec![more]),
    ];
    for _ in 0..3 {
        image.apply(Revision(image.revision.0 + 1), &Entry::default());
    }
    image.apply(Revision(image.revision.0 + 1), &Entry { commands });
    let placed: Vec<_> = world.disk.image.local_shards().collect();
    world.disk.image = image.clone();
    for (partition, shard) in placed {
        world.disk.image.put_local_shard(partition, shard);
    }
    world.input(Input::Image(Box::new(image)));
    world.input(Input::ProposalFailed { proposal, reason: "covered by a snapshot".into() });
    assert_eq!(refusals(&world.reply(2).unwrap()), [Some(Why::TimedOut)], "it may have come about");
    world.run();
    assert_eq!(world.owned().iter().sum::<usize>(), 5, "four that stay, one that is new");
    for (shard, state) in (0..).map(ShardId).zip(&world.shards) {
        assert_eq!(state.view.as_deref(), Some(world.control.image()));
        assert!(state.owned.keys().all(|id| world.control.image().local_shard(*id) == Some(shard)));
    }
}
