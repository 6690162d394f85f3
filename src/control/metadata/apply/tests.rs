mod bytes;
mod elections;
mod isr;
mod nodes;
mod random;
mod reassignments;

use std::collections::BTreeSet;

use super::*;
use crate::control::metadata::command::{
    AlterIsr, ElectLeaders, ElectionKind, IsrOfTopic, NewIsr, NewReplicas, ReassignTopic, RegisterNode,
    SettingOp,
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

/// What clients and replicas go by: the leader, who is in sync, who is eligible.
type Seen = (Option<u32>, Vec<u32>, Vec<u32>);

fn seen(leader: u32, isr: &[u32], elr: &[u32]) -> Seen {
    ((leader > 0).then_some(leader), isr.to_vec(), elr.to_vec())
}

fn ids(nodes: &[u32]) -> Vec<NodeId> {
    nodes.iter().map(|&node| NodeId(node)).collect()
}

/// The partition of [`World::hold`].
const HELD: PartitionId = PartitionId { topic: TopicId(500), index: PartitionIndex(0) };

impl World {
    /// Nodes 1 to `nodes` serve.
    fn of(nodes: u32) -> Self {
        let mut world = Self::new();
        (2..=nodes).for_each(|node| world.join(NodeId(node), 1));
        world
    }

    /// Makes the partition [`HELD`].
    fn hold(&mut self, replicas: &[u32], config: &[(&str, &str)]) {
        let config = config.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let topic = CreateTopic { replicas: vec![ids(replicas)], config, ..new_topic(500, "held", 1) };
        self.create(topic).unwrap();
    }

    fn held(&self) -> &PartitionState {
        self.0.partition(HELD).unwrap()
    }

    fn seen(&self) -> Seen {
        let state = self.held();
        let of = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect();
        (state.leader.map(|node| node.0), of(&state.isr), of(&state.elr))
    }

    /// The leader epoch and the partition epoch.
    fn epochs(&self) -> (u32, u32) {
        (self.held().leader_epoch.0, self.held().partition_epoch.0)
    }

    fn epoch(&self, node: u32) -> RegistrationEpoch {
        self.0.nodes[&NodeId(node)].epoch
    }

    fn done(&mut self, command: Command) {
        let (_, outcome) = self.apply(command);
        assert!(
            matches!(
                outcome,
                Outcome::Fenced(Ok(())) | Outcome::Registered(Ok(())) | Outcome::NodeRemoved(Ok(()))
            ),
            "{outcome:?}"
        );
    }

    fn fence(&mut self, node: u32) {
        let epoch = self.epoch(node);
        self.done(Command::FenceNode { node: NodeId(node), epoch });
    }

    fn unfence(&mut self, node: u32) {
        let epoch = self.epoch(node);
        self.done(Command::UnfenceNode { node: NodeId(node), epoch });
    }

    fn stop(&mut self, node: u32) {
        let epoch = self.epoch(node);
        self.done(Command::StopNode { node: NodeId(node), epoch });
    }

    /// The node begins its next life, fenced.
    fn restart(&mut self, node: u32, is_clean: bool) {
        let known = self.0.nodes[&NodeId(node)].clone();
        let Command::RegisterNode(new) = register(known.id, known.incarnation.0 + 1) else { unreachable!() };
        let clean_stop = is_clean.then_some(known.epoch);
        self.done(Command::RegisterNode(RegisterNode { clean_stop, ..new }));
    }

    /// The leader wishes for these in sync, as of now.
    fn wish(&mut self, isr: &[u32]) -> Result<(), Why> {
        let leader = self.held().leader.expect("somebody leads").0;
        let epochs = self.epochs();
        self.wish_of(leader, epochs, isr)
    }

    fn wish_of(&mut self, sender: u32, epochs: (u32, u32), isr: &[u32]) -> Result<(), Why> {
        let isr = isr.iter().map(|&node| {
            (NodeId(node), self.0.nodes.get(&NodeId(node)).map_or_else(Default::default, |n| n.epoch))
        });
        let new = NewIsr {
            index: HELD.index,
            leader_epoch: LeaderEpoch(epochs.0),
            partition_epoch: PartitionEpoch(epochs.1),
            isr: isr.collect(),
        };
        let epoch = self.epoch(sender);
        self.alter(AlterIsr {
            node: NodeId(sender),
            epoch,
            topics: vec![IsrOfTopic { topic: HELD.topic, partitions: vec![new] }],
        })
    }

    fn alter(&mut self, alter: AlterIsr) -> Result<(), Why> {
        let before = self.0.clone();
        let (delta, outcome) = self.apply(Command::AlterIsr(alter));
        let Outcome::IsrAltered(mut results) = outcome else { panic!("{outcome:?}") };
        let result = results.remove(0).map_err(|refusal| refusal.why);
        assert_eq!(result.is_ok(), delta.changed.contains(&HELD));
        assert!(result.is_ok() || before.partition(HELD) == self.0.partition(HELD));
        result
    }

    fn configure(&mut self, name: &str, value: &str) {
        let set = SetTopicConfig { topic: HELD.topic, changes: vec![set(name, value)] };
        let (delta, outcome) = self.apply(Command::SetTopicConfig(vec![set]));
        assert_eq!(outcome, Outcome::TopicConfigSet(vec![Ok(())]));
        assert!(delta.changed.contains(&HELD));
    }

    fn elect(&mut self, kind: ElectionKind) -> Result<(), Why> {
        let topics = vec![(HELD.topic, vec![HELD.index])];
        match self.apply(Command::ElectLeaders(ElectLeaders { kind, topics })).1 {
            Outcome::Elected(mut results) => results.remove(0).map_err(|refusal| refusal.why),
            other => panic!("{other:?}"),
        }
    }

    fn reassign(&mut self, replicas: Option<&[u32]>) -> Result<(), Why> {
        let new = NewReplicas { index: HELD.index, replicas: replicas.map(ids) };
        match self
            .apply(Command::Reassign(vec![ReassignTopic { topic: HELD.topic, partitions: vec![new] }]))
            .1
        {
            Outcome::Reassigned(mut results) => results.remove(0).map_err(|refusal| refusal.why),
            other => panic!("{other:?}"),
        }
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
#[should_panic(expected = "one after the other")]
fn a_gap_in_the_log_is_a_bug_and_stops_the_node() {
    Image::default().apply(Revision(2), &Entry::default());
}
