use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};

use super::*;
use crate::control::metadata::command::SettingOp;
use crate::control::metadata::image::{Endpoint, Incarnation};
use crate::control::metadata::snapshot;

const ME: NodeId = NodeId(1);

fn register(node: NodeId, incarnation: u64) -> Command {
    Command::RegisterNode(RegisterNode {
        node,
        incarnation: Incarnation(incarnation),
        rack: None,
        client: Endpoint { host: "127.0.0.1".into(), port: 9092 },
        shard_clients: Vec::new(),
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
        world.apply(register(ME, 1));
        world
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
    world.apply(register(NodeId(2), 1));
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
fn a_restart_renews_the_epochs_of_what_the_node_leads_and_only_of_that() {
    let mut world = World::new();
    world.apply(register(NodeId(2), 1));
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
        (state.leader_epoch, state.partition_epoch)
    };
    assert_eq!(epochs(0), (LeaderEpoch(1), PartitionEpoch(1)));
    assert_eq!(epochs(1), (LeaderEpoch(0), PartitionEpoch(0)));
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
        match self.below(7) {
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
        for revision in 1..60 {
            let commands = match revision {
                1 => (0..4).map(|node| register(NodeId(node), 1)).collect(),
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
            assert_eq!(delta.cluster_config, old.cluster_config != first.cluster_config, "seed {seed}");
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
    let entry = Entry {
        commands: vec![
            register(ME, 3),
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
