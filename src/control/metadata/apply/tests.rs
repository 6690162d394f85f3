use std::collections::BTreeSet;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};

use super::*;
use crate::control::metadata::command::{
    AlterPartition, AlterTopic, LeaderChange, RegisterAlone, RegisterNode, SettingOp,
};
use crate::control::metadata::image::{
    Capabilities, DiskId, Endpoint, FeatureLevel, Incarnation, RegistrationEpoch,
};
use crate::control::metadata::snapshot;

const ME: NodeId = NodeId(1);

fn register(node: NodeId, incarnation: u64) -> Command {
    Command::RegisterNode(RegisterNode {
        node,
        incarnation: Incarnation(incarnation),
        client: Endpoint { host: "127.0.0.1".into(), port: 9092 },
        ..RegisterNode::default()
    })
}

fn new_topic(id: u128, name: &str, partitions: usize) -> CreateTopic {
    CreateTopic {
        id: TopicId(id),
        name: name.into(),
        replicas: vec![vec![ME]; partitions],
        ..CreateTopic::default()
    }
}

fn set(name: &str, value: &str) -> SettingChange {
    SettingChange { name: name.into(), op: SettingOp::Set(value.into()) }
}

/// An image with node 1 in it, and a way to apply one command.
struct World(Image);

impl World {
    fn new() -> Self {
        let mut world = Self(Image::default());
        world.join(ME, 1);
        world
    }

    /// Registers the node and lets it serve.
    fn join(&mut self, node: NodeId, incarnation: u64) {
        self.apply(register(node, incarnation));
        let epoch = self.0.nodes[&node].epoch;
        let (_, outcome) = self.apply(Command::UnfenceNode { node, epoch });
        assert_eq!(outcome, Outcome::Fenced(Ok(())));
    }

    fn apply(&mut self, command: Command) -> (Delta, Outcome) {
        let next = Revision(self.0.revision.0 + 1);
        let (delta, mut outcomes) = self.0.apply(next, &Entry { commands: vec![command] });
        (delta, outcomes.remove(0))
    }

    fn create(&mut self, topic: CreateTopic) -> Result<CreatedTopic, Refusal> {
        match self.apply(Command::CreateTopics(vec![topic])).1 {
            Outcome::Created(mut results) => results.remove(0),
            other => panic!("{other:?}"),
        }
    }

    fn why(&mut self, topic: CreateTopic) -> Why {
        let before = self.0.clone();
        let why = self.create(topic).unwrap_err().why;
        assert_eq!(self.0.topic_count(), before.topic_count(), "a refused topic leaves nothing behind");
        why
    }
}

#[test]
fn a_topic_starts_led_by_its_first_replica_at_epoch_zero() {
    let mut world = World::new();
    world.join(NodeId(2), 1);
    let mut topic = new_topic(7, "a", 2);
    topic.replicas = vec![vec![NodeId(2), ME], vec![ME, NodeId(2)]];
    topic.config = vec![("min.insync.replicas".into(), "2".into())];
    let created = world.create(topic).unwrap();
    assert_eq!((created.partitions, created.replication_factor), (2, 2));
    assert_eq!(created.config, [("min.insync.replicas".to_owned(), "2".to_owned())]);
    let state = world.0.topic("a").unwrap().partition(PartitionIndex(0)).unwrap().clone();
    assert_eq!((state.leader, state.leader_epoch), (Some(NodeId(2)), LeaderEpoch(0)));
    assert_eq!(state.isr, state.replicas);
}

#[test]
fn a_restart_ends_the_leaderships_of_the_node_and_only_those() {
    let mut world = World::new();
    world.join(NodeId(2), 1);
    let mut topic = new_topic(7, "a", 2);
    topic.replicas = vec![vec![ME, NodeId(2)], vec![NodeId(2), ME]];
    world.create(topic).unwrap();
    let (delta, outcome) = world.apply(register(ME, 2));
    assert_eq!(outcome, Outcome::Registered(Ok(())));
    let id = |index| PartitionId { topic: TopicId(7), index: PartitionIndex(index) };
    assert_eq!(delta.changed, BTreeSet::from([id(0)]));
    assert_eq!(delta.nodes, BTreeSet::from([ME]));
    let epochs = |index| {
        let state = world.0.partition(id(index)).unwrap();
        (state.leader, state.leader_epoch, state.partition_epoch)
    };
    assert_eq!(epochs(0), (None, LeaderEpoch(1), PartitionEpoch(1)));
    assert_eq!(epochs(1), (Some(NodeId(2)), LeaderEpoch(0), PartitionEpoch(0)));
    assert_eq!(world.0.leaderless_count(), 1);
}

#[test]
fn an_old_incarnation_is_refused() {
    let mut world = World::new();
    world.apply(register(ME, 5));
    for stale in [4, 5] {
        let (delta, outcome) = world.apply(register(ME, stale));
        assert!(matches!(outcome, Outcome::Registered(Err(_))), "{stale}");
        assert!(delta.is_empty());
    }
}

#[test]
fn topics_that_break_a_rule_are_refused_with_its_kind() {
    let mut world = World::new();
    world.create(new_topic(7, "a.b", 1)).unwrap();
    let with_config = |name: &str, value: &str| CreateTopic {
        config: vec![(name.into(), value.into())],
        ..new_topic(8, "x", 1)
    };
    let with_replicas = |replicas| CreateTopic { replicas: vec![replicas], ..new_topic(8, "x", 1) };
    assert_eq!(world.why(new_topic(8, "a.b", 1)), Why::TopicExists);
    assert_eq!(world.why(new_topic(8, "a_b", 1)), Why::InvalidTopicName);
    assert_eq!(world.why(new_topic(8, "a b", 1)), Why::InvalidTopicName);
    assert_eq!(world.why(new_topic(7, "c", 1)), Why::InvalidRequest);
    assert_eq!(world.why(new_topic(0, "c", 1)), Why::InvalidRequest);
    assert_eq!(world.why(new_topic(8, "c", 0)), Why::InvalidPartitions);
    assert_eq!(world.why(new_topic(8, "c", PARTITIONS_PER_TOPIC_MAX + 1)), Why::LimitReached);
    assert_eq!(world.why(with_replicas(vec![])), Why::InvalidAssignment);
    assert_eq!(world.why(with_replicas(vec![NodeId(9)])), Why::InvalidAssignment);
    assert_eq!(world.why(with_replicas(vec![ME, ME])), Why::InvalidAssignment);
    assert_eq!(world.why(with_config("no.such", "1")), Why::InvalidConfig);
    assert_eq!(world.why(with_config("cleanup.policy", "compacted")), Why::InvalidConfig);
    let twice = CreateTopic {
        config: vec![("retention.ms".into(), "1".into()), ("retention.ms".into(), "2".into())],
        ..new_topic(8, "x", 1)
    };
    assert_eq!(world.why(twice), Why::InvalidRequest);
}

#[test]
fn an_automatic_creation_of_an_existing_topic_succeeds_with_what_is_there() {
    let mut world = World::new();
    world.create(new_topic(7, "a", 3)).unwrap();
    let again = CreateTopic { automatic: true, ..new_topic(8, "a", 1) };
    let answer = world.create(again).unwrap();
    assert_eq!((answer.id, answer.partitions), (TopicId(7), 3));
    assert_eq!(world.0.topic_count(), 1);
}

#[test]
fn a_deleted_topic_is_gone_and_its_name_is_free() {
    let mut world = World::new();
    world.create(new_topic(7, "a", 2)).unwrap();
    let (delta, outcome) = world.apply(Command::DeleteTopics(vec![TopicId(7), TopicId(7)]));
    assert_eq!(delta.removed.len(), 2);
    let Outcome::Deleted(results) = outcome else { panic!("{outcome:?}") };
    assert_eq!(results[0], Ok(DeletedTopic { id: TopicId(7), name: "a".into() }));
    assert_eq!(results[1].as_ref().unwrap_err().why, Why::UnknownTopicId);
    assert_eq!(world.0.partition_count(), 0);
    world.create(new_topic(8, "a", 1)).unwrap();
}

#[test]
fn partitions_are_only_added_and_only_right_after_the_ones_there() {
    let mut world = World::new();
    world.create(new_topic(7, "a", 2)).unwrap();
    let mut grow = |first, count| {
        let more = CreatePartitions {
            topic: TopicId(7),
            first: PartitionIndex(first),
            replicas: vec![vec![ME]; count],
        };
        match world.apply(Command::CreatePartitions(vec![more])) {
            (delta, Outcome::Grown(mut results)) => results.remove(0).map(|()| delta),
            (_, other) => panic!("{other:?}"),
        }
    };
    let delta = grow(2, 3).unwrap();
    let indexes: Vec<u32> = delta.changed.iter().map(|id| id.index.0).collect();
    assert_eq!(indexes, [2, 3, 4]);
    for (first, count) in [(2, 1), (6, 1), (5, 0)] {
        assert_eq!(grow(first, count).unwrap_err().why, Why::InvalidPartitions, "{first}+{count}");
    }
    assert_eq!(grow(5, PARTITIONS_PER_TOPIC_MAX).unwrap_err().why, Why::LimitReached);
    assert_eq!(world.0.topic("a").unwrap().partitions.len(), 5);
}

#[test]
fn settings_change_together_and_name_the_partitions_they_touch() {
    let mut world = World::new();
    world.create(new_topic(7, "a", 2)).unwrap();
    let mut change = |changes: Vec<SettingChange>| match world
        .apply(Command::SetTopicConfig(vec![SetTopicConfig { topic: TopicId(7), changes }]))
    {
        (delta, Outcome::TopicConfigSet(mut results)) => (delta, results.remove(0)),
        (_, other) => panic!("{other:?}"),
    };
    let (delta, result) = change(vec![set("retention.ms", "5"), set("min.insync.replicas", "2")]);
    assert_eq!((delta.changed.len(), result), (2, Ok(())));
    let (delta, _) = change(vec![set("retention.ms", "5")]);
    assert!(delta.is_empty(), "what is set already changes nothing");
    let (delta, result) = change(vec![set("retention.ms", "6"), set("min.insync.replicas", "0")]);
    assert!(delta.is_empty());
    assert_eq!(result.unwrap_err().why, Why::InvalidConfig);
    assert_eq!(world.0.topic("a").unwrap().config["retention.ms"], "5");
}

#[test]
fn cluster_settings_are_all_or_nothing() {
    let mut world = World::new();
    let (delta, outcome) = world.apply(Command::SetClusterConfig(vec![set("min.insync.replicas", "2")]));
    assert_eq!((delta.cluster_config, outcome), (true, Outcome::ClusterConfigSet(Ok(()))));
    let bad = vec![set("min.insync.replicas", "3"), set("nonsense", "1")];
    let (delta, outcome) = world.apply(Command::SetClusterConfig(bad));
    assert!(delta.is_empty() && matches!(outcome, Outcome::ClusterConfigSet(Err(_))));
    assert_eq!(world.0.cluster_config["min.insync.replicas"], "2");
}

#[test]
fn blocks_of_producer_ids_never_overlap() {
    let mut world = World::new();
    let mut reserve = |node, count| match world.apply(Command::ReserveProducerIds { node, count }).1 {
        Outcome::ProducerIds(result) => result,
        other => panic!("{other:?}"),
    };
    assert_eq!(reserve(ME, 1000), Ok(ProducerId(0)));
    assert_eq!(reserve(ME, 10), Ok(ProducerId(1000)));
    assert_eq!(reserve(ME, 1000), Ok(ProducerId(1010)));
    for (node, count) in [(NodeId(9), 1), (ME, 0), (ME, PRODUCER_ID_BLOCK + 1)] {
        assert_eq!(reserve(node, count).unwrap_err().why, Why::InvalidRequest);
    }
    world.0.producer_id_next = ProducerId(i64::MAX as u64);
    let full = world.apply(Command::ReserveProducerIds { node: ME, count: 1 }).1;
    assert!(matches!(full, Outcome::ProducerIds(Err(Refusal { why: Why::LimitReached, .. }))));
}

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
    assert_eq!(why(node(2, 7, 1)), None, "the first release knew nothing of disks");
    assert_eq!(why(node(3, 8, 1)), Some(Why::DuplicateNode));
    assert_eq!(why(node(3, 0, 1)), Some(Why::DuplicateNode));
    assert_eq!(why(Command::SetFeatureLevel(FeatureLevel(2))), Some(Why::InvalidRequest), "node 1 cannot");
    assert_eq!(why(Command::SetFeatureLevel(FeatureLevel(0))), Some(Why::InvalidRequest), "never back");
    assert_eq!(why(node(3, 7, 0)), Some(Why::InvalidRequest), "older than the cluster's level");
    assert_eq!(why(node(3, 7, 2)), None);
}

#[test]
fn a_node_leaves_only_without_replicas() {
    let mut world = World::new();
    world.join(NodeId(2), 1);
    let on = |node| CreateTopic { replicas: vec![vec![node]], ..new_topic(7, "a", 1) };
    world.create(on(NodeId(2))).unwrap();
    world.apply(Command::TakeControl { node: NodeId(2), term: 3 });
    let remove = |world: &mut World| match world.apply(Command::RemoveNode { node: NodeId(2) }).1 {
        Outcome::NodeRemoved(result) => result.map_err(|r| r.why),
        other => panic!("{other:?}"),
    };
    assert_eq!(remove(&mut world), Err(Why::NodeInUse));
    world.apply(Command::DeleteTopics(vec![TopicId(7)]));
    assert_eq!(remove(&mut world), Ok(()));
    assert_eq!((world.0.controller, world.0.controller_term), (None, 3));
    assert_eq!(remove(&mut world), Err(Why::UnknownNode));
}

#[test]
fn the_controller_is_that_of_the_latest_term() {
    let mut world = World::new();
    world.join(NodeId(2), 1);
    let mut take = |node, term| match world.apply(Command::TakeControl { node, term }).1 {
        Outcome::ControlTaken(result) => (result.is_ok(), world.0.controller),
        other => panic!("{other:?}"),
    };
    assert_eq!(take(ME, 4), (true, Some(ME)));
    assert_eq!(take(NodeId(2), 4), (false, Some(ME)), "a term has one leader");
    assert_eq!(take(NodeId(2), 3), (false, Some(ME)));
    assert_eq!(take(ME, 4), (true, Some(ME)));
    assert_eq!(take(NodeId(2), 5), (true, Some(NodeId(2))));
    assert_eq!(take(NodeId(9), 6), (false, Some(NodeId(2))));
}

#[test]
fn a_partition_changes_only_from_the_epoch_it_is_at_and_only_to_what_it_may_be() {
    let mut world = World::new();
    world.join(NodeId(2), 1);
    world.apply(register(NodeId(3), 1));
    let topic = CreateTopic { replicas: vec![vec![ME, NodeId(2), NodeId(3)]], ..new_topic(7, "a", 1) };
    world.create(topic).unwrap();
    let id = PartitionId { topic: TopicId(7), index: PartitionIndex(0) };
    let mut alter = |change: AlterPartition| {
        let topics = vec![AlterTopic { topic: TopicId(7), partitions: vec![change] }];
        let before = world.0.partition(id).cloned();
        let (delta, outcome) = world.apply(Command::AlterPartitions(topics));
        let Outcome::Altered(mut results) = outcome else { panic!("{outcome:?}") };
        let state = world.0.partition(id).unwrap().clone();
        match results.remove(0) {
            Ok(()) => {
                assert_eq!(delta.changed, BTreeSet::from([id]));
                Ok((state.leader_epoch.0, state.partition_epoch.0))
            }
            Err(refusal) => {
                assert!(delta.is_empty() && before == Some(state));
                Err(refusal.why)
            }
        }
    };
    let at = |epoch| AlterPartition { expected: PartitionEpoch(epoch), ..AlterPartition::default() };
    let nodes = |ids: &[u32]| Some(ids.iter().map(|&id| NodeId(id)).collect::<Vec<_>>());
    let elect = |id| LeaderChange::Elect(NodeId(id));
    assert_eq!(alter(at(1)), Err(Why::Conflict));
    assert_eq!(alter(AlterPartition { index: PartitionIndex(1), ..at(0) }), Err(Why::UnknownTopicId));
    // A shrink alone is no new leadership (R1).
    assert_eq!(alter(AlterPartition { isr: nodes(&[1, 2]), elr: nodes(&[3]), ..at(0) }), Ok((0, 1)));
    assert_eq!(
        alter(AlterPartition { isr: nodes(&[1, 2, 3]), ..at(1) }),
        Err(Why::InvalidRequest),
        "3 is both"
    );
    let back = AlterPartition { isr: nodes(&[1, 2, 3]), elr: nodes(&[]), ..at(1) };
    assert_eq!(alter(back), Err(Why::IneligibleNode), "3 is fenced");
    assert_eq!(alter(AlterPartition { isr: nodes(&[2]), ..at(1) }), Err(Why::InvalidRequest), "1 leads");
    assert_eq!(alter(AlterPartition { isr: nodes(&[1, 4]), ..at(1) }), Err(Why::InvalidRequest));
    assert_eq!(alter(AlterPartition { isr: nodes(&[1, 1]), ..at(1) }), Err(Why::InvalidRequest));
    assert_eq!(alter(AlterPartition { leader: elect(3), ..at(1) }), Err(Why::IneligibleNode));
    assert_eq!(alter(AlterPartition { leader: elect(2), isr: nodes(&[2]), ..at(1) }), Ok((1, 2)));
    assert_eq!(alter(AlterPartition { leader: elect(1), ..at(2) }), Err(Why::InvalidRequest), "not in sync");
    assert_eq!(alter(AlterPartition { leader: LeaderChange::Nobody, ..at(2) }), Ok((2, 3)));
    assert_eq!(alter(AlterPartition { leader: elect(2), ..at(3) }), Ok((3, 4)));
    // A replica that leaves ends the leadership too; one that joins does not.
    let moved = AlterPartition { replicas: nodes(&[1, 2]), elr: nodes(&[]), ..at(4) };
    assert_eq!(alter(moved), Ok((4, 5)));
    assert_eq!(alter(AlterPartition { replicas: nodes(&[1, 2, 3]), ..at(5) }), Ok((4, 6)));
    assert_eq!(alter(AlterPartition { replicas: nodes(&[1, 2, 9]), ..at(6) }), Err(Why::InvalidAssignment));
    assert_eq!(
        alter(AlterPartition { replicas: nodes(&[1, 3]), ..at(6) }),
        Err(Why::InvalidRequest),
        "2 leads"
    );
    assert_eq!((world.0.leaderless_count(), world.0.replica_count()), (0, 3));
}

#[test]
fn a_large_topic_is_laid_ready_unseen_and_comes_at_once() {
    let mut world = World::new();
    let stage =
        |at, count| Command::Stage(Stage { by: ME, topic: TopicId(7), at, replicas: vec![vec![ME]; count] });
    let create = |staged, count| Command::CreateStaged { by: ME, staged, topic: new_topic(7, "a", count) };
    let why = |outcome| match outcome {
        Outcome::Staged(result) => result.err().map(|r| r.why),
        Outcome::Created(mut results) => results.remove(0).err().map(|r| r.why),
        Outcome::Grown(mut results) => results.remove(0).err().map(|r| r.why),
        other => panic!("{other:?}"),
    };
    assert_eq!(why(world.apply(stage(5, 1)).1), Some(Why::Conflict), "nothing was laid ready before it");
    let (delta, outcome) = world.apply(stage(0, 1000));
    assert!(why(outcome).is_none() && delta.changed.is_empty() && !delta.is_empty());
    assert_eq!((world.0.topic_count(), world.0.partition_count()), (0, 0));
    assert_eq!(why(world.apply(stage(999, 1)).1), Some(Why::Conflict));
    world.apply(stage(0, 1000));
    assert_eq!(why(world.apply(stage(1000, 500)).1), None);
    let again = snapshot::decode(&snapshot::encode(&world.0)).expect("a snapshot can be read");
    assert_eq!(again, world.0, "what is laid ready outlives a snapshot");
    let (delta, outcome) = world.apply(create(1500, 7));
    assert!(why(outcome).is_none());
    assert_eq!((delta.changed.len(), world.0.partition_count()), (1507, 1507));
    assert_eq!(why(world.apply(create(1500, 7)).1), Some(Why::Conflict), "it was taken");
    world.apply(stage(0, 10));
    let more = CreatePartitions { topic: TopicId(7), first: PartitionIndex(1507), replicas: vec![vec![ME]] };
    let grow = Command::GrowStaged { by: ME, staged: 10, more };
    assert_eq!(why(world.apply(grow).1), None);
    assert_eq!(world.0.partition_count(), 1518);
    world.apply(stage(0, 10));
    world.apply(register(ME, 2));
    assert!(world.0.staged(ME).is_none(), "a new life does not go on with it");
    assert_eq!(why(world.apply(stage(0, PARTITIONS_PER_TOPIC_MAX + 1)).1), Some(Why::LimitReached));
}

#[test]
fn settings_of_a_node_outlive_its_registration() {
    let mut world = World::new();
    let name = "leader.replication.throttled.rate";
    let change = |node, value| Command::SetNodeConfig { node, changes: vec![set(name, value)] };
    let (delta, outcome) = world.apply(change(ME, "100"));
    assert_eq!((delta.nodes.len(), outcome), (1, Outcome::NodeConfigSet(Ok(()))));
    assert!(matches!(world.apply(change(ME, "x")).1, Outcome::NodeConfigSet(Err(_))));
    assert!(matches!(world.apply(change(NodeId(5), "1")).1, Outcome::NodeConfigSet(Err(_))));
    world.apply(register(ME, 2));
    assert_eq!(world.0.nodes[&ME].config[name], "100");
}

#[test]
fn a_command_weighs_at_least_its_bytes() {
    for seed in 0..300 {
        let mut random = Random(Xoshiro256PlusPlus::seed_from_u64(seed));
        let command = random.command();
        let weight = command.weight();
        let entry = Entry { commands: vec![command] };
        let bytes = entry.encode().len() - 16;
        assert!(bytes <= weight + 4, "{bytes} bytes, said to be {weight}: {entry:?}");
    }
}

/// A stream of random commands, many of which are refused.
struct Random(Xoshiro256PlusPlus);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        self.0.next_u32() % n
    }

    fn topic_id(&mut self) -> TopicId {
        TopicId(u128::from(self.below(12)))
    }

    fn change(&mut self) -> SettingChange {
        let name = ["min.insync.replicas", "retention.ms", "cleanup.policy", "nonsense"];
        let name = name[self.below(4) as usize].to_owned();
        let op = match self.below(4) {
            0 => SettingOp::Set(self.below(4).to_string()),
            1 => SettingOp::Unset,
            2 => SettingOp::Append("delete".into()),
            _ => SettingOp::Subtract("delete".into()),
        };
        SettingChange { name, op }
    }

    fn replicas(&mut self) -> Vec<Vec<NodeId>> {
        let mut sets = Vec::new();
        for _ in 0..self.below(5) {
            let len = 1 + self.below(5) / 4;
            sets.push((0..len).map(|_| NodeId(self.below(4))).collect());
        }
        sets
    }

    fn command(&mut self) -> Command {
        match self.below(14) {
            7 => {
                let (node, epoch) = (NodeId(self.below(4)), RegistrationEpoch(u64::from(self.below(8))));
                match self.below(3) {
                    0 => Command::FenceNode { node, epoch },
                    _ => Command::UnfenceNode { node, epoch },
                }
            }
            8 => Command::TakeControl { node: NodeId(self.below(5)), term: u64::from(self.below(60)) },
            9 => Command::RemoveNode { node: NodeId(self.below(4)) },
            10 | 11 => {
                let nodes = |random: &mut Self| {
                    let any = random.below(2) == 0;
                    any.then(|| (0..random.below(4)).map(|_| NodeId(random.below(4))).collect())
                };
                let partition = |random: &mut Self| AlterPartition {
                    index: PartitionIndex(random.below(3)),
                    expected: PartitionEpoch(random.below(2)),
                    leader: match random.below(4) {
                        0 | 1 => LeaderChange::Keep,
                        2 => LeaderChange::Elect(NodeId(random.below(4))),
                        _ => LeaderChange::Nobody,
                    },
                    isr: nodes(random),
                    elr: nodes(random),
                    replicas: nodes(random),
                };
                let topic = |random: &mut Self| AlterTopic {
                    topic: random.topic_id(),
                    partitions: (0..random.below(3)).map(|_| partition(random)).collect(),
                };
                Command::AlterPartitions((0..self.below(4)).map(|_| topic(self)).collect())
            }
            12 => Command::Stage(Stage {
                by: NodeId(self.below(4)),
                topic: self.topic_id(),
                at: self.below(3),
                replicas: self.replicas(),
            }),
            13 => {
                let topic = CreateTopic {
                    id: self.topic_id(),
                    name: ["a", "b", "h"][self.below(3) as usize].into(),
                    replicas: self.replicas(),
                    ..CreateTopic::default()
                };
                Command::CreateStaged { by: NodeId(self.below(4)), staged: self.below(3), topic }
            }
            0 => register(NodeId(self.below(4)), u64::from(self.below(100))),
            1 | 2 => Command::CreateTopics(
                (0..self.below(4))
                    .map(|_| CreateTopic {
                        id: self.topic_id(),
                        name: ["a", "b", "c.d", "c_d", "e", "f.", "g"][self.below(7) as usize].into(),
                        replicas: self.replicas(),
                        config: Vec::new(),
                        automatic: self.below(2) == 0,
                    })
                    .collect(),
            ),
            3 => Command::DeleteTopics((0..self.below(3)).map(|_| self.topic_id()).collect()),
            4 => Command::CreatePartitions(vec![CreatePartitions {
                topic: self.topic_id(),
                first: PartitionIndex(self.below(6)),
                replicas: self.replicas(),
            }]),
            5 => Command::SetTopicConfig(vec![SetTopicConfig {
                topic: self.topic_id(),
                changes: (0..self.below(3)).map(|_| self.change()).collect(),
            }]),
            _ if self.below(2) == 0 => Command::SetClusterConfig(vec![self.change()]),
            _ => Command::ReserveProducerIds { node: NodeId(self.below(4)), count: self.below(2000) },
        }
    }
}

fn all_partitions(image: &Image) -> BTreeMap<PartitionId, (PartitionState, Arc<BTreeMap<String, String>>)> {
    let mut all = BTreeMap::new();
    for topic in image.topics() {
        for (index, state) in (0..).zip(&topic.partitions) {
            let id = topic.partition_id(PartitionIndex(index));
            all.insert(id, (state.clone(), topic.config.clone()));
        }
    }
    all
}

#[test]
fn random_entries_give_one_image_and_deltas_name_exactly_what_changed() {
    let mut changes_seen = 0;
    for seed in 0..200 {
        let mut random = Random(Xoshiro256PlusPlus::seed_from_u64(seed));
        let (mut first, mut second) = (Image::default(), Image::default());
        for revision in 1..140 {
            let commands = match revision {
                1 => (0..4)
                    .flat_map(|node| {
                        let (node, epoch) = (NodeId(node), RegistrationEpoch(1));
                        [register(node, 1), Command::UnfenceNode { node, epoch }]
                    })
                    .collect(),
                _ => (0..random.below(4)).map(|_| random.command()).collect(),
            };
            let entry = Entry { commands };
            let stored = Entry::decode(&entry.encode()).expect("what was encoded can be decoded");
            assert_eq!(stored, entry);
            let old = first.clone();
            let (delta, outcomes) = first.apply(Revision(revision), &entry);
            assert_eq!(second.apply(Revision(revision), &stored), (delta.clone(), outcomes.clone()));
            assert_eq!(first, second, "seed {seed}");
            assert_eq!(outcomes.len(), entry.commands.len());

            let (before, after) = (all_partitions(&old), all_partitions(&first));
            assert_eq!(first.partition_count(), after.len());
            let gone: BTreeSet<_> = before.keys().filter(|id| !after.contains_key(id)).copied().collect();
            let differ = |id: &&PartitionId| before.get(id) != after.get(id);
            let differing: BTreeSet<_> = after.keys().filter(differ).copied().collect();
            assert!(delta.removed.is_superset(&gone), "seed {seed}");
            assert!(delta.removed.iter().all(|id| !after.contains_key(id) || delta.changed.contains(id)));
            assert!(delta.changed.is_superset(&differing), "seed {seed}");
            assert!(delta.changed.iter().all(|id| after.contains_key(id)), "seed {seed}");
            // A setting can be changed and changed back in one entry.
            assert!(delta.cluster_config || old.cluster_config == first.cluster_config, "seed {seed}");
            let nodes_differ = |id: &NodeId| old.nodes.get(id) != first.nodes.get(id);
            let known = old.nodes.keys().chain(first.nodes.keys());
            assert!(known.filter(|&id| nodes_differ(id)).all(|id| delta.nodes.contains(id)), "seed {seed}");
            let leaderless = after.values().filter(|(state, _)| state.leader.is_none()).count();
            assert_eq!(first.leaderless_count(), leaderless, "seed {seed}");
            changes_seen += differing.len() + gone.len();

            let again = snapshot::decode(&snapshot::encode(&first)).expect("a snapshot can be read");
            assert_eq!(again, first, "seed {seed}");
        }
    }
    assert!(changes_seen > 5000, "the random commands do something: {changes_seen}");
}

#[test]
#[should_panic(expected = "one after the other")]
fn a_gap_in_the_log_is_a_bug_and_stops_the_node() {
    Image::default().apply(Revision(2), &Entry::default());
}

#[test]
fn stored_entries_keep_their_bytes() {
    let alone = RegisterAlone {
        node: ME,
        incarnation: Incarnation(3),
        rack: None,
        client: Endpoint { host: "127.0.0.1".into(), port: 9092 },
        shard_clients: Vec::new(),
    };
    let entry = Entry {
        commands: vec![
            Command::RegisterAlone(alone),
            Command::CreateTopics(vec![new_topic(7, "a", 1)]),
            Command::DeleteTopics(vec![TopicId(7)]),
            Command::SetTopicConfig(vec![SetTopicConfig {
                topic: TopicId(7),
                changes: vec![set("retention.ms", "5")],
            }]),
            Command::ReserveProducerIds { node: ME, count: 1000 },
        ],
    };
    // The body of an entry as the first release wrote it: bytes in data directories must stay readable.
    let body = [
        5, 0, 1, 3, 0, 9, b'1', b'2', b'7', b'.', b'0', b'.', b'0', b'.', b'1', 0x84, 0x47, 0, 1, 1, 7, 1,
        b'a', 1, 1, 1, 0, 0, 2, 1, 7, 4, 1, 7, 1, 12, b'r', b'e', b't', b'e', b'n', b't', b'i', b'o', b'n',
        b'.', b'm', b's', 0, 1, b'5', 6, 1, 0xe8, 7,
    ];
    assert_eq!(entry.encode()[16..], body);
}

#[test]
fn stored_entries_of_several_nodes_keep_their_bytes() {
    let here = |port| Endpoint { host: "h".into(), port };
    let node = NodeId(2);
    let epoch = RegistrationEpoch(9);
    let change = AlterPartition {
        index: PartitionIndex(1),
        expected: PartitionEpoch(3),
        leader: LeaderChange::Elect(ME),
        isr: Some(vec![ME]),
        elr: None,
        replicas: Some(vec![ME, node]),
    };
    let entry = Entry {
        commands: vec![
            Command::RegisterNode(RegisterNode {
                node,
                incarnation: Incarnation(3),
                disk: DiskId(200),
                capabilities: Capabilities { voter: false, ..Capabilities::default() },
                rack: None,
                client: here(1),
                shard_clients: Vec::new(),
                cluster: here(2),
                shard_peers: vec![5],
                feature_level: FeatureLevel(1),
            }),
            Command::FenceNode { node, epoch },
            Command::UnfenceNode { node, epoch },
            Command::RemoveNode { node },
            Command::TakeControl { node, term: 4 },
            Command::SetFeatureLevel(FeatureLevel(1)),
            Command::SetNodeConfig {
                node,
                changes: vec![SettingChange { name: "x".into(), op: SettingOp::Unset }],
            },
            Command::AlterPartitions(vec![AlterTopic { topic: TopicId(7), partitions: vec![change] }]),
            Command::Stage(Stage { by: node, topic: TopicId(7), at: 0, replicas: vec![vec![ME]] }),
            Command::CreateStaged { by: node, staged: 1, topic: new_topic(7, "a", 1) },
            Command::GrowStaged {
                by: node,
                staged: 1,
                more: CreatePartitions { topic: TopicId(7), first: PartitionIndex(1), replicas: Vec::new() },
            },
        ],
    };
    // Bytes in data directories must stay readable.
    let body = [
        11, 7, 2, 3, 0xc8, 1, 0, 1, 1, 0, 1, b'h', 1, 0, 1, b'h', 2, 1, 5, 1, 8, 2, 9, 9, 2, 9, 10, 2, 11, 2,
        4, 12, 1, 13, 2, 1, 1, b'x', 1, 14, 1, 7, 1, 1, 3, 1, 1, 1, 1, 1, 0, 1, 2, 1, 2, 15, 2, 7, 0, 1, 1,
        1, 16, 2, 1, 7, 1, b'a', 1, 1, 1, 0, 0, 17, 2, 1, 7, 1, 0,
    ];
    assert_eq!(entry.encode()[16..], body);
}
