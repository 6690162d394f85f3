//! Reassignment of replicas (KIP-455).

use super::*;

fn sets(world: &World) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let of = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect();
    let state = world.held();
    (of(&state.replicas), of(&state.adding), of(&state.removing))
}

#[test]
fn old_replicas_stay_until_all_new_ones_are_in_sync_and_leave_with_that_change() {
    let mut world = World::of(5);
    world.hold(&[1, 2, 3], &[]);
    world.reassign(Some(&[4, 5, 3])).unwrap();
    assert_eq!(sets(&world), (vec![4, 5, 3, 1, 2], vec![4, 5], vec![1, 2]));
    assert_eq!(world.seen(), seen(1, &[1, 2, 3], &[]), "nobody leads another before");
    world.wish(&[1, 2, 3, 5]).unwrap();
    assert_eq!(sets(&world), (vec![4, 5, 3, 1, 2], vec![4, 5], vec![1, 2]), "4 is missing");
    let before = world.epochs();
    world.wish(&[1, 2, 3, 4, 5]).unwrap();
    assert_eq!(sets(&world), (vec![4, 5, 3], vec![], vec![]));
    assert_eq!(world.seen(), seen(4, &[4, 5, 3], &[]), "the leader left");
    assert_eq!(world.epochs(), (before.0 + 1, before.1 + 1));
    assert_eq!(world.0.replica_count(), 3);
}

#[test]
fn cancelling_returns_to_the_replicas_from_before() {
    let mut world = World::of(4);
    world.hold(&[1, 2], &[]);
    assert_eq!(world.reassign(None), Err(Why::NoReassignment));
    world.reassign(Some(&[3, 4])).unwrap();
    world.wish(&[1, 2, 3]).unwrap();
    let before = world.epochs();
    world.reassign(None).unwrap();
    assert_eq!(sets(&world), (vec![1, 2], vec![], vec![]));
    assert_eq!(world.seen(), seen(1, &[1, 2], &[]));
    assert_eq!(world.epochs(), (before.0 + 1, before.1 + 1), "replicas left");
    assert_eq!(world.reassign(None), Err(Why::NoReassignment));
}

#[test]
fn another_target_takes_the_place_of_the_first_and_counts_from_the_replicas_before_both() {
    let mut world = World::of(5);
    world.hold(&[1, 2], &[]);
    world.reassign(Some(&[3, 2])).unwrap();
    assert_eq!(sets(&world), (vec![3, 2, 1], vec![3], vec![1]));
    world.reassign(Some(&[4, 1])).unwrap();
    assert_eq!(sets(&world), (vec![4, 1, 2], vec![4], vec![2]), "3 leaves at once");
    world.wish(&[1, 2, 4]).unwrap();
    assert_eq!((sets(&world), world.seen()), ((vec![4, 1], vec![], vec![]), seen(1, &[4, 1], &[])));
}

#[test]
fn a_reassignment_that_would_leave_nobody_in_sync_is_refused_or_waits() {
    let mut world = World::of(4);
    world.hold(&[1, 2], &[]);
    world.reassign(Some(&[3])).unwrap();
    world.fence(2);
    world.wish(&[1]).unwrap();
    world.fence(1);
    assert_eq!(sets(&world), (vec![3, 1, 2], vec![3], vec![1, 2]), "3 has not caught up");
    world.unfence(1);
    let mut world = World::of(3);
    world.hold(&[1, 2], &[]);
    world.wish(&[1]).unwrap();
    world.reassign(Some(&[2])).unwrap();
    assert_eq!(sets(&world), (vec![2, 1], vec![], vec![1]), "only 1 is in sync: it stays until 2 is");
    world.wish(&[1, 2]).unwrap();
    assert_eq!((sets(&world), world.seen()), ((vec![2], vec![], vec![]), seen(2, &[2], &[])));
    let mut world = World::of(3);
    world.hold(&[1, 2], &[]);
    world.reassign(Some(&[2, 3])).unwrap();
    let topic = TopicId(500);
    let state = world.held().clone();
    let alone = PartitionState { leader: Some(NodeId(3)), isr: ids(&[3]), ..state };
    world.0.put_partitions(topic, vec![(0, alone)]);
    assert_eq!(
        world.reassign(None),
        Err(Why::InvalidAssignment),
        "only 3 has the records, which would leave"
    );
}

#[test]
fn a_new_order_of_the_same_replicas_is_another_preference_and_nothing_else() {
    let mut world = World::of(3);
    world.hold(&[1, 2, 3], &[]);
    world.reassign(Some(&[2, 3, 1])).unwrap();
    assert_eq!((sets(&world), world.epochs()), ((vec![2, 3, 1], vec![], vec![]), (0, 1)));
    assert_eq!(world.seen(), seen(1, &[1, 2, 3], &[]));
    world.reassign(Some(&[2, 3, 1])).unwrap();
    assert_eq!(world.epochs(), (0, 1), "it is so already");
    world.elect(ElectionKind::Preferred).unwrap();
    assert_eq!(world.held().leader, Some(NodeId(2)));
}

#[test]
fn replicas_that_are_added_do_not_raise_what_is_needed_to_acknowledge() {
    let mut world = World::of(3);
    world.hold(&[1], &[("min.insync.replicas", "2")]);
    world.reassign(Some(&[1, 2, 3])).unwrap();
    assert_eq!(world.seen(), seen(1, &[1], &[]));
    world.wish(&[1, 2]).unwrap();
    world.wish(&[1]).unwrap();
    assert_eq!(world.seen(), seen(1, &[1], &[]), "1 alone acknowledges: 2 is not eligible");
    world.wish(&[1, 2, 3]).unwrap();
    world.wish(&[1]).unwrap();
    assert_eq!(world.seen(), seen(1, &[1], &[2, 3]), "from here on two are needed");
}

#[test]
fn targets_that_no_partition_can_have_are_refused() {
    let mut world = World::of(3);
    world.hold(&[1, 2], &[]);
    for target in [&[][..], &[1, 1], &[1, 9]] {
        assert_eq!(world.reassign(Some(target)), Err(Why::InvalidAssignment), "{target:?}");
    }
    let none = Capabilities { replica: false, ..Capabilities::default() };
    let diskless = RegisterNode { capabilities: none, ..RegisterNode::default() };
    world.done(Command::RegisterNode(RegisterNode {
        node: NodeId(4),
        incarnation: Incarnation(1),
        ..diskless
    }));
    assert_eq!(world.reassign(Some(&[1, 4])), Err(Why::InvalidAssignment));
    let unknown = NewReplicas { index: PartitionIndex(5), replicas: None };
    let reassign = ReassignTopic { topic: TopicId(500), partitions: vec![unknown] };
    let (_, outcome) = world.apply(Command::Reassign(vec![reassign]));
    assert!(
        matches!(&outcome, Outcome::Reassigned(r) if r[0].as_ref().is_err_and(|r| r.why == Why::UnknownTopic))
    );
}
