//! Registrations, fencing and removal of nodes: R30 and R31.

use super::*;

#[test]
fn a_node_comes_fenced_and_only_this_life_of_it_is_unfenced() {
    let mut world = World::new();
    let (delta, _) = world.apply(register(NodeId(2), 1));
    assert_eq!(delta.nodes, BTreeSet::from([NodeId(2)]));
    let first = world.0.nodes[&NodeId(2)].epoch;
    assert!(world.0.nodes[&NodeId(2)].fenced);
    world.apply(register(NodeId(2), 2));
    let second = world.0.nodes[&NodeId(2)].epoch;
    assert!(second > first, "the epoch grows with each registration");
    let (delta, outcome) = world.apply(Command::UnfenceNode { node: NodeId(2), epoch: first });
    assert!(delta.is_empty() && matches!(outcome, Outcome::Fenced(Err(Refusal { why: Why::Conflict, .. }))));
    world.apply(Command::UnfenceNode { node: NodeId(2), epoch: second });
    assert!(world.0.serves(NodeId(2)));
    let (delta, _) = world.apply(Command::UnfenceNode { node: NodeId(2), epoch: second });
    assert!(delta.is_empty(), "it is unfenced already");
    world.apply(Command::FenceNode { node: NodeId(2), epoch: second });
    assert!(!world.0.serves(NodeId(2)));
    let (_, outcome) = world.apply(Command::FenceNode { node: NodeId(9), epoch: second });
    assert!(matches!(outcome, Outcome::Fenced(Err(Refusal { why: Why::UnknownNode, .. }))));
}

#[test]
fn another_disk_and_an_old_release_are_refused() {
    let mut world = World::new();
    let node = |incarnation, disk, level| {
        Command::RegisterNode(RegisterNode {
            node: NodeId(2),
            incarnation: Incarnation(incarnation),
            disk: DiskId(disk),
            feature_level: FeatureLevel(level),
            ..RegisterNode::default()
        })
    };
    let mut why = |command| match world.apply(command).1 {
        Outcome::Registered(result) | Outcome::FeatureLevelSet(result) => result.err().map(|r| r.why),
        other => panic!("{other:?}"),
    };
    assert_eq!(why(node(1, 0, 1)), None);
    assert_eq!(why(node(2, 7, 1)), None, "one that stood alone knew nothing of disks");
    assert_eq!(why(node(3, 8, 1)), Some(Why::DuplicateNode));
    assert_eq!(why(node(3, 0, 1)), Some(Why::DuplicateNode));
    assert_eq!(why(Command::SetFeatureLevel(FeatureLevel(2))), Some(Why::InvalidRequest), "node 1 cannot");
    assert_eq!(why(Command::SetFeatureLevel(FeatureLevel(0))), Some(Why::InvalidRequest), "never back");
    assert_eq!(why(node(3, 7, 0)), Some(Why::InvalidRequest), "older than the cluster's level");
    assert_eq!(why(node(3, 7, 2)), None);
}

#[test]
fn r30_a_second_process_as_a_node_that_lives_is_refused_with_words() {
    let mut world = World::of(2);
    let as_2 = |incarnation, disk| RegisterNode {
        node: NodeId(2),
        incarnation: Incarnation(incarnation),
        disk: DiskId(disk),
        ..RegisterNode::default()
    };
    world.done(Command::RegisterNode(as_2(2, 7)));
    world.unfence(2);
    for (new, words) in [(as_2(2, 7), "another process runs as this node"), (as_2(9, 8), "disk of node 2")] {
        let before = world.0.nodes.clone();
        let (delta, outcome) = world.apply(Command::RegisterNode(new));
        let Outcome::Registered(Err(refusal)) = outcome else { panic!("{outcome:?}") };
        assert_eq!(refusal.why, Why::DuplicateNode);
        assert!(refusal.message.contains(words), "{refusal}");
        assert!(delta.is_empty() && world.0.nodes == before);
    }
}

#[test]
fn r30_a_new_life_gets_a_new_epoch_starts_fenced_and_leads_nothing_of_the_last() {
    let mut world = World::of(3);
    world.hold(&[2, 1, 3], &[]);
    let (first, before) = (world.epoch(2), world.epochs());
    world.restart(2, true);
    assert!(world.epoch(2) > first && world.0.nodes[&NodeId(2)].fenced);
    assert_eq!(world.seen(), seen(1, &[1, 3], &[]));
    assert_eq!(world.epochs(), (before.0 + 1, before.1 + 1));
    for command in [
        Command::FenceNode { node: NodeId(2), epoch: first },
        Command::UnfenceNode { node: NodeId(2), epoch: first },
        Command::StopNode { node: NodeId(2), epoch: first },
    ] {
        let (delta, outcome) = world.apply(command);
        assert!(
            matches!(outcome, Outcome::Fenced(Err(Refusal { why: Why::Conflict, .. }))),
            "of the life before"
        );
        assert!(delta.is_empty());
    }
    world.unfence(2);
    assert_eq!(world.seen(), seen(1, &[1, 3], &[]), "it has to catch up");
}

fn remove(world: &mut World, node: u32, force: bool) -> Result<(), Refusal> {
    match world.apply(Command::RemoveNode { node: NodeId(node), force }).1 {
        Outcome::NodeRemoved(result) => result,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_node_leaves_only_without_replicas() {
    let mut world = World::of(3);
    world.hold(&[2, 1], &[]);
    world.apply(Command::TakeControl { node: NodeId(2), term: 3 });
    assert_eq!(remove(&mut world, 2, false).unwrap_err().why, Why::NodeInUse);
    world.reassign(Some(&[1, 3])).unwrap();
    assert_eq!(remove(&mut world, 2, false).unwrap_err().why, Why::NodeInUse, "3 is not in sync yet");
    world.wish(&[2, 1, 3]).unwrap();
    assert_eq!(remove(&mut world, 2, false), Ok(()));
    assert_eq!((world.0.controller, world.0.controller_term), (None, 3));
    assert_eq!(world.seen(), seen(1, &[1, 3], &[]));
    assert_eq!(remove(&mut world, 2, false).unwrap_err().why, Why::UnknownNode);
}

#[test]
fn force_drops_the_replicas_of_a_node_where_others_remain_and_never_the_only_one() {
    let mut world = World::of(3);
    world.hold(&[2, 1, 3], &[]);
    let only = CreateTopic { replicas: vec![ids(&[2])], ..new_topic(7, "only", 1) };
    world.create(only).unwrap();
    let refusal = remove(&mut world, 2, true).unwrap_err();
    assert!(
        refusal.why == Why::NodeInUse && refusal.message.contains("only replica of 1 partition"),
        "{refusal}"
    );
    world.apply(Command::DeleteTopics(vec![TopicId(7)]));
    let before = world.epochs();
    assert_eq!(remove(&mut world, 2, true), Ok(()));
    assert_eq!(world.seen(), seen(1, &[1, 3], &[]));
    assert_eq!((world.held().replicas.clone(), world.epochs()), (ids(&[1, 3]), (before.0 + 1, before.1 + 1)));
    assert_eq!(world.0.replica_count(), 2);
}
