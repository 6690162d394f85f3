//! Epochs and wishes for other in-sync replicas: R1, R9, R26 and R28.

use super::*;

#[test]
fn r1_every_change_is_a_new_partition_epoch_and_only_a_new_leader_or_a_replica_that_leaves_a_new_leader_epoch()
 {
    let mut world = World::of(4);
    world.hold(&[1, 2, 3], &[]);
    assert_eq!(world.epochs(), (0, 0));
    world.wish(&[1, 2]).unwrap();
    assert_eq!(world.epochs(), (0, 1), "a shrink");
    world.wish(&[1, 2, 3]).unwrap();
    assert_eq!(world.epochs(), (0, 2), "an expansion");
    world.fence(3);
    assert_eq!(world.epochs(), (0, 3), "a follower is lost");
    world.fence(1);
    assert_eq!(world.epochs(), (1, 4), "the leader is lost, another is elected");
    world.fence(2);
    assert_eq!((world.epochs(), world.held().leader), ((2, 5), None), "nobody leads");
    world.unfence(2);
    assert_eq!(world.epochs(), (3, 6), "elected again");
    world.reassign(Some(&[2, 3, 4, 1])).unwrap();
    assert_eq!(world.epochs(), (3, 7), "a replica joins");
    world.reassign(None).unwrap();
    assert_eq!(world.epochs(), (4, 8), "it leaves");
}

#[test]
fn r9_a_wish_is_taken_from_the_leader_as_it_is_and_with_members_as_they_are() {
    let mut world = World::of(4);
    world.hold(&[1, 2, 3], &[]);
    world.wish(&[1]).unwrap();
    world.fence(1);
    world.unfence(1);
    world.elect(ElectionKind::Preferred).unwrap_err();
    let now = world.epochs();
    assert_eq!(world.seen(), seen(1, &[1], &[]));
    assert_eq!(world.wish_of(1, (now.0 + 1, now.1), &[1, 2]), Err(Why::NoController), "of the future");
    assert_eq!(world.wish_of(1, (now.0, now.1 + 1), &[1, 2]), Err(Why::NoController));
    assert_eq!(world.wish_of(1, (now.0 - 1, now.1), &[1, 2]), Err(Why::FencedLeaderEpoch));
    assert_eq!(world.wish_of(2, now, &[1, 2]), Err(Why::InvalidRequest), "2 does not lead");
    assert_eq!(
        world.wish_of(1, (now.0, now.1 - 1), &[1, 2]),
        Err(Why::Conflict),
        "decided on an older state"
    );
    assert_eq!(world.wish(&[2]), Err(Why::InvalidRequest), "without the leader");
    assert_eq!(world.wish(&[1, 4]), Err(Why::InvalidRequest), "4 is no replica");
    assert_eq!(world.wish(&[1, 2, 2]), Err(Why::InvalidRequest), "twice");
    world.fence(2);
    assert_eq!(world.wish(&[1, 2]), Err(Why::IneligibleNode), "2 is fenced");
    world.unfence(2);
    world.stop(3);
    assert_eq!(world.wish(&[1, 3]), Err(Why::IneligibleNode), "3 is stopping (KIP-841)");
    assert_eq!(world.wish(&[1, 2]), Ok(()));
    assert_eq!(world.seen(), seen(1, &[1, 2], &[]));
}

#[test]
fn r9_a_member_that_registered_anew_since_it_was_heard_is_not_in_sync_by_what_was_heard() {
    let mut world = World::of(2);
    world.hold(&[1, 2], &[]);
    world.wish(&[1]).unwrap();
    let heard = world.epoch(2);
    world.restart(2, true);
    world.unfence(2);
    let (leader_epoch, partition_epoch) = world.epochs();
    let with = |node: u32, sender: RegistrationEpoch, epoch| AlterIsr {
        node: NodeId(node),
        epoch: sender,
        topics: vec![IsrOfTopic {
            topic: HELD.topic,
            partitions: vec![NewIsr {
                index: HELD.index,
                leader_epoch: LeaderEpoch(leader_epoch),
                partition_epoch: PartitionEpoch(partition_epoch),
                isr: vec![(ME, sender), (NodeId(2), epoch)],
            }],
        }],
    };
    let (me, now) = (world.epoch(1), world.epoch(2));
    assert_eq!(world.alter(with(1, me, heard)), Err(Why::IneligibleNode), "KIP-903");
    assert_eq!(
        world.alter(with(1, RegistrationEpoch(me.0 + 1), now)),
        Err(Why::Conflict),
        "another life of 1"
    );
    assert_eq!(world.alter(with(1, me, now)), Ok(()));
}

#[test]
fn r26_too_few_in_sync_leave_those_before_them_eligible_and_enough_end_that() {
    let mut world = World::of(4);
    world.hold(&[1, 2, 3], &[("min.insync.replicas", "2")]);
    world.wish(&[1, 2]).unwrap();
    assert_eq!(world.seen(), seen(1, &[1, 2], &[]), "enough are in sync: 3 is not eligible");
    world.wish(&[1]).unwrap();
    assert_eq!(world.seen(), seen(1, &[1], &[2]));
    world.wish(&[1, 3]).unwrap();
    assert_eq!(world.seen(), seen(1, &[1, 3], &[]), "what is acknowledged now 2 may lack");
    world.fence(3);
    world.fence(1);
    assert_eq!(world.seen(), seen(0, &[], &[1, 3]), "in the order of the assignment");
}

#[test]
fn r26_more_in_sync_than_there_are_replicas_means_all_of_them() {
    let mut world = World::of(2);
    world.hold(&[1, 2], &[("min.insync.replicas", "5")]);
    world.wish(&[1]).unwrap();
    assert_eq!(world.seen(), seen(1, &[1], &[2]));
    world.wish(&[1, 2]).unwrap();
    assert_eq!(world.seen(), seen(1, &[1, 2], &[]));
}

#[test]
fn r28_another_minimum_ends_what_was_eligible_unless_nobody_is_in_sync() {
    let eligible = |config: bool| {
        let mut world = World::of(3);
        let own = [("min.insync.replicas", "2")];
        world.hold(&[1, 2, 3], if config { &own } else { &[] });
        if !config {
            world.apply(Command::SetClusterConfig(vec![set("min.insync.replicas", "2")]));
        }
        world.wish(&[1, 2]).unwrap();
        world.wish(&[1]).unwrap();
        assert_eq!(world.seen(), seen(1, &[1], &[2]));
        world
    };
    let mut world = eligible(true);
    let before = world.epochs();
    world.configure("min.insync.replicas", "3");
    assert_eq!(world.seen(), seen(1, &[1], &[]));
    assert_eq!(world.epochs(), (before.0, before.1 + 1));
    let mut world = eligible(false);
    let (delta, _) = world.apply(Command::SetClusterConfig(vec![set("min.insync.replicas", "1")]));
    assert_eq!((world.seen(), delta.changed), (seen(1, &[1], &[]), BTreeSet::from([HELD])));
    let mut world = eligible(true);
    world.configure("retention.ms", "77");
    assert_eq!(world.seen(), seen(1, &[1], &[2]), "another setting");
    world.fence(2);
    world.fence(1);
    world.configure("min.insync.replicas", "1");
    assert_eq!(
        world.seen(),
        seen(0, &[], &[1, 2]),
        "there is nobody else, and nothing was acknowledged since"
    );
}

#[test]
fn a_wish_that_changes_nothing_is_a_fact_too_and_ends_recovery() {
    let mut world = World::of(2);
    world.hold(&[1, 2], &[("unclean.leader.election.enable", "true")]);
    world.wish(&[1]).unwrap();
    world.fence(1);
    assert_eq!(world.seen(), seen(2, &[2], &[]));
    assert!(world.held().recovering);
    let before = world.epochs();
    world.wish(&[2]).unwrap();
    assert_eq!(world.epochs(), (before.0, before.1 + 1), "the leader waits for it");
    assert!(!world.held().recovering);
}
