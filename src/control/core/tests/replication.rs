//! Wishes for in-sync replicas, leases, preferred leaders, and the stop of a node among others.

use highwater_shards::mail::IsrChange;

use super::fencing::OTHER;
use super::*;
use crate::control::limits::{BALANCE_EVERY, DEPART_MAX, LEAVE_MAX, LINGER};
use crate::control::metadata::command::{ElectLeaders, ElectionKind};
use crate::control::metadata::image::RegistrationEpoch;

impl World {
    /// Partitions of one topic on both nodes, which this node leads; told to its one shard.
    fn shared(partitions: usize) -> Self {
        let mut world = Self::of_two();
        let topic = CreateTopic {
            id: TopicId(7),
            name: "t".into(),
            replicas: vec![vec![ME, OTHER]; partitions],
            ..CreateTopic::default()
        };
        world.commit_elsewhere(vec![Command::CreateTopics(vec![topic])]);
        world
    }

    fn epoch_of(&self, node: NodeId) -> RegistrationEpoch {
        self.control.image().nodes[&node].epoch
    }

    fn wish(&self, index: u32, isr: &[NodeId]) -> IsrChange {
        let partition = PartitionId { topic: TopicId(7), index: PartitionIndex(index) };
        let state = self.control.image().partition(partition).unwrap();
        IsrChange {
            partition,
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
            isr: isr.iter().map(|&node| (node, self.epoch_of(node))).collect(),
        }
    }

    fn isr(&self, index: u32) -> Vec<NodeId> {
        let partition = PartitionId { topic: TopicId(7), index: PartitionIndex(index) };
        self.control.image().partition(partition).unwrap().isr.clone()
    }
}

#[test]
fn wishes_share_an_entry_and_of_one_partition_the_last_one_counts() {
    let mut world = World::shared(500);
    let first = vec![world.wish(0, &[ME])];
    world.shard_says(0, ToControl::AlterIsr { changes: first });
    assert_eq!(world.proposals.len(), 1);
    let late: Vec<_> = (1..500).map(|index| world.wish(index, &[ME])).collect();
    world.shard_says(0, ToControl::AlterIsr { changes: late.clone() });
    world.shard_says(0, ToControl::AlterIsr { changes: vec![world.wish(1, &[ME, OTHER])] });
    world.commit();
    let (_, entry) = world.proposals.front().expect("the second entry");
    assert!(
        matches!(&entry.commands[..], [Command::AlterIsr(alter)] if alter.topics[0].partitions.len() == 499)
    );
    world.run();
    assert_eq!((world.isr(0), world.isr(1), world.isr(499)), (vec![ME], vec![ME, OTHER], vec![ME]));
    assert_eq!(world.shards[0].refused, [], "what is taken comes back as an assignment");
    world.check_shards();
    // What the image is past needs no entry.
    world.shard_says(0, ToControl::AlterIsr { changes: late });
    assert!(world.proposals.is_empty());
}

#[test]
fn r10_only_a_member_that_cannot_be_in_sync_is_refused_directly() {
    let mut world = World::shared(2);
    world.shard_says(0, ToControl::AlterIsr { changes: vec![world.wish(0, &[ME]), world.wish(1, &[ME])] });
    world.run();
    let wishes = vec![world.wish(0, &[ME, OTHER]), world.wish(1, &[ME])];
    let epoch = world.epoch_of(OTHER);
    world.shard_says(0, ToControl::AlterIsr { changes: wishes });
    // Another node's entries come first: the one fences a member, the other changes what the wish was decided on.
    let fence = Command::FenceNode { node: OTHER, epoch };
    let moved = IsrChange { isr: vec![(ME, world.epoch_of(ME))], ..world.wish(1, &[ME]) };
    let alter = crate::control::metadata::command::AlterIsr {
        node: ME,
        epoch: world.epoch_of(ME),
        topics: vec![crate::control::metadata::command::IsrOfTopic {
            topic: TopicId(7),
            partitions: vec![crate::control::metadata::command::NewIsr {
                index: PartitionIndex(1),
                leader_epoch: moved.leader_epoch,
                partition_epoch: moved.partition_epoch,
                isr: moved.isr,
            }],
        }],
    };
    let own = world.proposals.pop_front().unwrap();
    world.commit_elsewhere(vec![fence, Command::AlterIsr(alter)]);
    world.proposals.push_front(own);
    world.run();
    let refused = PartitionId { topic: TopicId(7), index: PartitionIndex(0) };
    assert_eq!(world.shards[0].refused, [(refused, IsrRefusal::Ineligible)]);
    world.check_shards();
}

#[test]
fn a_wish_whose_entry_was_lost_is_proposed_again() {
    let mut world = World::shared(1);
    world.shard_says(0, ToControl::AlterIsr { changes: vec![world.wish(0, &[ME])] });
    let (proposal, _) = world.proposals.pop_front().unwrap();
    world.input(Input::ProposalFailed { proposal, reason: "lost".into() });
    assert!(world.proposals.is_empty() && world.shards[0].refused.is_empty());
    world.pass(RETRY_MAX + RETRY_MAX);
    world.run();
    assert_eq!(world.isr(0), [ME]);
}

#[test]
fn a_thousand_partitions_of_a_dead_node_are_led_by_others_after_one_entry() {
    let mut world = World::of_two();
    let topic = CreateTopic {
        id: TopicId(7),
        name: "t".into(),
        replicas: vec![vec![OTHER, ME]; 1000],
        ..CreateTopic::default()
    };
    world.commit_elsewhere(vec![Command::CreateTopics(vec![topic])]);
    let before = world.disk.image.revision;
    let request = Request::ChangeNode { node: OTHER, change: NodeChange::Fence, timeout: SECOND };
    world.ask(1, request);
    world.run();
    assert_eq!(world.disk.image.revision.0, before.0 + 1);
    assert!(world.shards[0].owned.values().all(|a| a.leader == Some(ME) && a.isr == [ME]));
    assert_eq!(world.shards[0].owned.len(), 1000);
    world.check_shards();
}

#[test]
fn shards_hear_which_nodes_are_eligible() {
    let mut world = World::shared(1);
    let eligible =
        |world: &World| -> Vec<bool> { world.shards[0].nodes.iter().map(|n| n.eligible).collect() };
    assert_eq!(eligible(&world), [true, true]);
    let epoch = world.epoch_of(OTHER);
    world.commit_elsewhere(vec![Command::StopNode { node: OTHER, epoch }]);
    assert_eq!(eligible(&world), [true, false]);
    assert_eq!(world.shards[0].nodes[1].epoch, epoch);
}

#[test]
fn r29_the_controller_gives_partitions_back_to_their_preferred_leaders_after_a_while() {
    let mut world = World::of_two();
    let topic = CreateTopic {
        id: TopicId(7),
        name: "t".into(),
        replicas: vec![vec![OTHER, ME]],
        ..CreateTopic::default()
    };
    world.commit_elsewhere(vec![Command::CreateTopics(vec![topic])]);
    let epoch = world.epoch_of(OTHER);
    world.commit_elsewhere(vec![Command::FenceNode { node: OTHER, epoch }]);
    world.commit_elsewhere(vec![Command::UnfenceNode { node: OTHER, epoch }]);
    world.pass(BALANCE_EVERY);
    assert!(world.proposals.is_empty(), "it is not in sync yet");
    world.shard_says(0, ToControl::AlterIsr { changes: vec![world.wish(0, &[ME, OTHER])] });
    world.run();
    world.pass(BALANCE_EVERY);
    let (_, entry) = world.proposals.front().expect("an election");
    let kind = ElectionKind::Preferred;
    let topics = vec![(TopicId(7), vec![PartitionIndex(0)])];
    assert_eq!(entry.commands, [Command::ElectLeaders(ElectLeaders { kind, topics })]);
    world.run();
    assert_eq!(world.control.image().topic("t").unwrap().partitions[0].leader, Some(OTHER));
    world.pass(BALANCE_EVERY);
    assert!(world.proposals.is_empty(), "all is well");
    world.input(Input::Leadership { term: 2, leader: Some(OTHER) });
    assert_eq!(world.control.poll_timeout(), None, "it is another node's affair");
}

#[test]
fn a_node_that_stops_gives_its_leaderships_away_first_and_is_fenced_as_soon_as_it_has_stopped() {
    let mut world = World::shared(3);
    world.input(Input::Stop { deadline: SECOND });
    world.ask(1, create(&["a"], 1));
    assert_eq!(refusals(&world.reply(1).unwrap()), [Some(Why::TimedOut)]);
    assert!(!world.shards[0].stopping);
    world.commit();
    let leaders = |world: &World| -> Vec<Option<NodeId>> {
        world.control.image().topics().flat_map(|t| &t.partitions).map(|p| p.leader).collect()
    };
    assert_eq!(leaders(&world), [Some(OTHER); 3]);
    assert!(world.control.image().serves(ME) && !world.control.image().is_active(ME));
    assert!(
        !world.shards[0].told.iter().any(|m| matches!(m, FromControl::Stop { .. })),
        "the shard has to hear it"
    );
    world.run();
    world.pass(LINGER - Duration::from_millis(1));
    assert!(!world.shards[0].stopping, "clients still hear from it who leads");
    world.pass(Duration::from_millis(1));
    world.run();
    assert!(world.shards[0].stopping && world.stopped.is_none());
    assert!(world.shards[0].owned.values().all(|a| a.leader == Some(OTHER)));
    assert!(world.proposals.is_empty(), "it is not fenced before it has flushed");
    world.shard_says(0, ToControl::Stopped);
    assert_eq!(world.stopped, None);
    world.run();
    assert!(!world.control.image().serves(ME));
    assert_eq!(world.stopped, Some((vec![], true)));
}

#[test]
fn a_node_that_stops_waits_for_the_log_only_so_long() {
    let mut world = World::shared(1);
    world.input(Input::Leadership { term: 2, leader: None });
    world.input(Input::Stop { deadline: SECOND });
    world.pass(LEAVE_MAX - Duration::from_millis(1));
    world.step(0);
    assert!(!world.shards[0].stopping);
    world.pass(Duration::from_millis(1));
    world.run();
    assert!(world.shards[0].stopping);
    world.shard_says(0, ToControl::Stopped);
    assert_eq!(world.stopped, None);
    world.pass(DEPART_MAX);
    assert_eq!(world.stopped, Some((vec![], true)), "the others will miss it; its records are whole");
}

#[test]
fn a_clean_stop_is_told_with_the_registration_that_it_was_under() {
    let mut world = World::shared(1);
    let epoch = world.epoch_of(ME);
    world.input(Input::Stop { deadline: SECOND });
    world.run();
    world.pass(LINGER);
    world.run();
    world.shard_says(0, ToControl::Stopped);
    let mut clean = None;
    while let Some((proposal, entry)) = world.proposals.pop_front() {
        let revision = Revision(world.disk.image.revision.0 + 1);
        world.disk.image.apply(revision, &entry);
        world.control.handle(world.now, Input::Committed { revision, proposal: Some(proposal), entry });
        while let Some(output) = world.control.poll_output() {
            if let Output::Stopped { clean: told, .. } = output {
                clean = told;
            }
        }
    }
    assert_eq!(clean, Some(epoch));
}

#[test]
fn r31_a_node_is_unfenced_only_once_its_shards_have_what_came_with_its_registration() {
    let mut world = World::start(2, Disk::default());
    world.recover_empty();
    world.commit();
    assert!(world.control.image().nodes[&ME].fenced && world.proposals.is_empty());
    world.step(0);
    assert!(world.proposals.is_empty(), "one of two shards");
    while world.step(1) {}
    while world.step(0) {}
    let (_, entry) = world.proposals.front().expect("it unfences itself");
    assert!(matches!(entry.commands[..], [Command::UnfenceNode { node: ME, .. }]), "{entry:?}");
}

#[test]
fn a_lease_goes_to_every_shard_once_that_has_partitions_and_none_to_those_that_stop() {
    let mut world = World::start(2, Disk::default());
    let until = world.now + SECOND;
    // One that stands alone gets its only lease before its shards have recovered.
    world.input(Input::Lease { until });
    assert!(world.shards.iter().all(|shard| shard.told.is_empty()));
    world.recover_empty();
    world.run();
    assert!(world.shards.iter().all(|shard| shard.lease == Some(until)));
    world.input(Input::Stop { deadline: SECOND });
    world.input(Input::Lease { until: until + SECOND });
    world.run();
    assert!(world.shards.iter().all(|shard| shard.lease == Some(until)));
}

#[test]
fn what_the_controllers_file_says_of_what_counts_is_the_clusters_unless_that_says_something() {
    let isr_min = "min.insync.replicas";
    for (known, want) in [(None, "2"), (Some("3"), "3")] {
        let mut disk = Disk::default();
        if let Some(known) = known {
            let change = crate::control::metadata::command::SettingChange {
                name: isr_min.into(),
                op: crate::control::metadata::command::SettingOp::Set(known.into()),
            };
            let entry = Entry { commands: vec![Command::SetClusterConfig(vec![change])] };
            disk.image.apply(Revision(1), &entry);
        }
        let mut defaults = TopicDefaults::default();
        defaults.set(isr_min, "2").unwrap();
        let mut world = World::start_with(1, disk, defaults);
        world.recover_empty();
        world.run();
        assert_eq!(world.control.image().cluster_config[isr_min], want);
    }
}
