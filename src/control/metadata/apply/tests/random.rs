//! Random commands: one image everywhere, and partitions that are what they have to be.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};

use super::*;
use crate::control::placement::Load;

const UNCLEAN: &str = "unclean.leader.election.enable";
const DURABILITY: &str = "highwater.durability";

#[test]
fn a_command_weighs_at_least_its_bytes() {
    for seed in 0..300 {
        let mut random = Random(Xoshiro256PlusPlus::seed_from_u64(seed));
        let command = random.command(&Image::default());
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
        let name = ["min.insync.replicas", "retention.ms", "cleanup.policy", "nonsense", UNCLEAN, DURABILITY];
        let name = name[self.below(6) as usize].to_owned();
        let op = match self.below(4) {
            0 if name == UNCLEAN => SettingOp::Set(["false", "true"][self.below(2) as usize].into()),
            0 if name == DURABILITY => SettingOp::Set(["fsync", "replicated"][self.below(2) as usize].into()),
            0 => SettingOp::Set(self.below(4).to_string()),
            1 => SettingOp::Unset,
            2 => SettingOp::Append("delete".into()),
            _ => SettingOp::Subtract("delete".into()),
        };
        SettingChange { name, op }
    }

    fn node(&mut self) -> NodeId {
        NodeId(self.below(4))
    }

    /// Now and then with a node in it twice.
    fn replica_set(&mut self) -> Vec<NodeId> {
        let (first, len) = (self.below(4), 1 + self.below(4));
        let mut set: Vec<NodeId> = (0..len).map(|at| NodeId((first + at) % 4)).collect();
        if self.below(20) == 0 {
            set.push(self.node());
        }
        set
    }

    fn replicas(&mut self) -> Vec<Vec<NodeId>> {
        (0..self.below(5)).map(|_| self.replica_set()).collect()
    }

    /// Mostly what a leader would wish, with a slip now and then.
    fn alter_isr(&mut self, image: &Image) -> Command {
        let topic = self.topic_id();
        let index = PartitionIndex(self.below(3));
        let state = image.partition(PartitionId { topic, index }).cloned().unwrap_or_default();
        let epoch = |node: NodeId| image.nodes.get(&node).map(|info| info.epoch).unwrap_or_default();
        let sender = state.leader.filter(|_| self.below(10) > 0).unwrap_or_else(|| self.node());
        let mut isr: Vec<NodeId> = state.replicas.iter().copied().filter(|_| self.below(2) == 0).collect();
        if self.below(10) > 0 && !isr.contains(&sender) {
            isr.push(sender);
        }
        let slip = |random: &mut Self, epoch: u32| match random.below(12) {
            0 => epoch + 1,
            1 => epoch.saturating_sub(1),
            _ => epoch,
        };
        let new = NewIsr {
            index,
            leader_epoch: LeaderEpoch(slip(self, state.leader_epoch.0)),
            partition_epoch: PartitionEpoch(slip(self, state.partition_epoch.0)),
            isr: isr.into_iter().map(|node| (node, epoch(node))).collect(),
        };
        let topics = vec![IsrOfTopic { topic, partitions: vec![new] }];
        Command::AlterIsr(AlterIsr { node: sender, epoch: epoch(sender), topics })
    }

    fn command(&mut self, image: &Image) -> Command {
        match self.below(20) {
            7 | 14 | 15 => {
                let node = self.node();
                // Mostly the life that there is.
                let epoch = image
                    .nodes
                    .get(&node)
                    .filter(|_| self.below(8) > 0)
                    .map(|info| info.epoch)
                    .unwrap_or_default();
                match self.below(7) {
                    0 | 1 => Command::FenceNode { node, epoch },
                    2 => Command::StopNode { node, epoch },
                    _ => Command::UnfenceNode { node, epoch },
                }
            }
            8 => Command::TakeControl { node: NodeId(self.below(5)), term: u64::from(self.below(60)) },
            9 => Command::RemoveNode { node: self.node(), force: self.below(2) == 0 },
            10 | 11 | 16 | 17 => self.alter_isr(image),
            18 => {
                let kind = if self.below(2) == 0 { ElectionKind::Preferred } else { ElectionKind::Unclean };
                let topics = (0..self.below(3)).map(|_| {
                    (self.topic_id(), (0..self.below(3)).map(|_| PartitionIndex(self.below(4))).collect())
                });
                Command::ElectLeaders(ElectLeaders { kind, topics: topics.collect() })
            }
            19 => {
                let partition = |random: &mut Self| NewReplicas {
                    index: PartitionIndex(random.below(3)),
                    replicas: (random.below(4) > 0).then(|| random.replica_set()),
                };
                let topic = |random: &mut Self| ReassignTopic {
                    topic: random.topic_id(),
                    partitions: (0..random.below(3)).map(|_| partition(random)).collect(),
                };
                Command::Reassign((0..1 + self.below(3)).map(|_| topic(self)).collect())
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
            0 => {
                let node = self.node();
                let Command::RegisterNode(new) = register(node, u64::from(self.below(100))) else {
                    unreachable!()
                };
                let known = image.nodes.get(&node).map(|info| info.epoch);
                Command::RegisterNode(RegisterNode {
                    clean_stop: known.filter(|_| self.below(2) == 0),
                    ..new
                })
            }
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

/// What every partition is, whatever happened.
fn check_state(id: PartitionId, state: &PartitionState, image: &Image) {
    let is_set = |nodes: &[NodeId]| (0..nodes.len()).all(|at| !nodes[..at].contains(&nodes[at]));
    let within = |nodes: &[NodeId]| nodes.iter().all(|node| state.replicas.contains(node));
    for nodes in [&state.replicas, &state.isr, &state.elr, &state.adding, &state.removing] {
        assert!(is_set(nodes) && within(nodes), "{id}: {state:?}");
    }
    assert!(!state.replicas.is_empty());
    assert!(
        !state.isr.iter().any(|node| state.elr.contains(node)),
        "{id}: both in sync and eligible: {state:?}"
    );
    assert!(!state.adding.iter().any(|node| state.removing.contains(node)), "{id}: {state:?}");
    assert!(state.replicas.iter().all(|node| image.nodes.contains_key(node)), "{id}: {state:?}");
    assert!(state.isr.iter().all(|node| image.serves(*node)), "{id}: a fenced node is in sync: {state:?}");
    let settings = topic_config::settings(&image.topic_by_id(id.topic).unwrap().config, image);
    let had = state.replicas.len() - state.adding.len();
    let enough = settings.isr_min.min(had).max(1);
    // What a change of the settings alone left of it is looked at with the next change of the partition.
    assert!(
        state.elr.is_empty() || state.isr.len() < enough,
        "{id}: eligible beside enough in sync: {state:?}"
    );
    match state.leader {
        Some(leader) => {
            assert!(state.isr.contains(&leader) && state.last_leader.is_none(), "{id}: {state:?}");
            assert!(image.serves(leader), "{id}: a fenced node leads: {state:?}");
        }
        None => {
            let could = |node: &&NodeId| image.can_lead(**node);
            assert!(!state.isr.iter().any(|node| image.can_lead(*node)), "{id}: {state:?}");
            let eligible = state.isr.is_empty() && state.elr.iter().any(|node| image.can_lead(*node));
            assert!(!eligible, "{id}: an eligible node is there and does not lead: {state:?}");
            assert!(!settings.unclean || state.replicas.iter().find(could).is_none(), "{id}: {state:?}");
        }
    }
}

/// What one entry may make of a partition.
fn check_step(
    id: PartitionId,
    old: Option<&PartitionState>,
    new: &PartitionState,
    before: &Image,
    after: &Image,
    config: &BTreeMap<String, String>,
) {
    let Some(old) = old.filter(|old| *old != new) else { return };
    assert!(new.partition_epoch > old.partition_epoch, "{id}: changed within an epoch: {old:?} {new:?}");
    assert!(new.leader_epoch >= old.leader_epoch, "{id}: {old:?} {new:?}");
    let has_left = old.replicas.iter().any(|node| !new.replicas.contains(node));
    if new.leader != old.leader || has_left {
        assert!(new.leader_epoch > old.leader_epoch, "{id}: {old:?} {new:?}");
    }
    // A reassignment never gives the last copies of acknowledged records away.
    if has_left && old.removing.iter().any(|node| !new.replicas.contains(node)) && new.leader.is_some() {
        assert!(!new.isr.is_empty());
    }
    if new.partition_epoch.0 == old.partition_epoch.0 + 1
        && let (Some(leader), false) = (new.leader, new.recovering)
    {
        // Not by an unclean election: so it was in sync or eligible, or came in sync by this very change.
        let had = old.isr.contains(&leader) || old.elr.contains(&leader);
        let settings = topic_config::settings(config, after);
        assert!(
            had || old.leader.is_some() || settings.unclean,
            "{id}: {old:?} {new:?} at {}",
            before.revision
        );
    }
}

#[test]
fn random_entries_give_one_image_and_deltas_name_exactly_what_changed() {
    let (mut changes_seen, mut elections) = (0, 0);
    for seed in 0..200 {
        let mut random = Random(Xoshiro256PlusPlus::seed_from_u64(seed));
        let (mut first, mut second) = (Image::default(), Image::default());
        let mut leaders: BTreeMap<(PartitionId, LeaderEpoch), NodeId> = BTreeMap::new();
        for revision in 1..140 {
            let commands = match revision {
                1 => (0..4)
                    .flat_map(|node| {
                        let (node, epoch) = (NodeId(node), RegistrationEpoch(1));
                        [register(node, 1), Command::UnfenceNode { node, epoch }]
                    })
                    .collect(),
                _ => (0..random.below(4)).map(|_| random.command(&first)).collect(),
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
            let sets = after.values().map(|(state, _)| &state.replicas[..]);
            let counted: Load = sets.collect();
            let mut kept = Load::default();
            first.loads().for_each(|(node, load)| kept.put(node, load));
            assert_eq!(kept, counted, "seed {seed}");
            changes_seen += differing.len() + gone.len();
            for (id, (state, config)) in &after {
                let old_state = before.get(id).map(|(state, _)| state);
                check_state(*id, state, &first);
                check_step(*id, old_state, state, &old, &first, config);
                if let Some(leader) = state.leader {
                    let led = leaders.entry((*id, state.leader_epoch)).or_insert(leader);
                    assert_eq!(*led, leader, "seed {seed}: two leaders of {id} in one epoch");
                    elections += usize::from(old_state.is_none_or(|old| old.leader != state.leader));
                }
            }
            leaders.retain(|(id, _), _| after.contains_key(id));

            let again = snapshot::decode(&snapshot::encode(&first)).expect("a snapshot can be read");
            assert_eq!(again, first, "seed {seed}");
        }
    }
    assert!(
        changes_seen > 5000 && elections > 2000,
        "they do something: {changes_seen} changes, {elections} elections"
    );
}
