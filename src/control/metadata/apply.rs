//! Applies one entry of the metadata log to the image.
//!
//! Control core, pure and deterministic: the same entries give the same image on every node and at every replay,
//! so nothing here looks at this node's config file, time or placement of partitions on its shards.

mod isr;
mod nodes;
mod partitions;
mod reassign;

use std::collections::BTreeMap;
use std::sync::Arc;

use highwater_shards::ids::{
    LeaderEpoch, NodeId, PartitionEpoch, PartitionId, PartitionIndex, ProducerId, Revision, TopicId,
};

use self::partitions::rules;
use super::command::{
    Command, CreatePartitions, CreateTopic, Entry, PRODUCER_ID_BLOCK, SetTopicConfig, SettingChange, Stage,
};
use super::delta::Delta;
use super::election::{Target, settle};
use super::image::{Image, PartitionState, Staged, Topic};
use super::topic_config::{self, InvalidSetting, Settings, TopicDefaults};
use super::topic_name;
use crate::control::request::{CreatedTopic, DeletedTopic, Refusal, Why};

/// Topics that a cluster has at most.
pub const TOPICS_MAX: usize = 100_000;
/// Replicas that a node has at most, on average over the nodes of the cluster.
pub const REPLICAS_PER_NODE_MAX: usize = 100_000;
/// Partitions that one topic has at most.
pub const PARTITIONS_PER_TOPIC_MAX: usize = 10_000;
/// Replicas that one partition has at most.
pub const REPLICAS_MAX: usize = 32;

/// What one command came to; lists stand in the order of the command's items.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    Registered(Result<(), Refusal>),
    Created(Vec<Result<CreatedTopic, Refusal>>),
    Deleted(Vec<Result<DeletedTopic, Refusal>>),
    Grown(Vec<Result<(), Refusal>>),
    TopicConfigSet(Vec<Result<(), Refusal>>),
    ClusterConfigSet(Result<(), Refusal>),
    /// The first of the reserved ids.
    ProducerIds(Result<ProducerId, Refusal>),
    /// Of [`Command::FenceNode`], [`Command::UnfenceNode`] and [`Command::StopNode`].
    Fenced(Result<(), Refusal>),
    NodeRemoved(Result<(), Refusal>),
    ControlTaken(Result<(), Refusal>),
    FeatureLevelSet(Result<(), Refusal>),
    NodeConfigSet(Result<(), Refusal>),
    /// One for each partition, over all topics of the command.
    IsrAltered(Vec<Result<(), Refusal>>),
    /// As above.
    Elected(Vec<Result<(), Refusal>>),
    /// As above.
    Reassigned(Vec<Result<(), Refusal>>),
    Staged(Result<(), Refusal>),
}

impl Image {
    /// Makes this the image at `revision`, and says what changed and what became of each command.
    ///
    /// # Panics
    /// When `revision` does not follow the image's: an entry was lost or came twice.
    pub fn apply(&mut self, revision: Revision, entry: &Entry) -> (Delta, Vec<Outcome>) {
        assert_eq!(revision.0, self.revision.0 + 1, "metadata entries are applied one after the other");
        let mut delta = Delta { from: self.revision, to: revision, ..Delta::default() };
        self.revision = revision;
        let outcomes = entry.commands.iter().map(|command| self.apply_command(command, &mut delta)).collect();
        // A topic can be made and deleted in one entry: what is gone is not named as changed.
        delta.changed.retain(|&id| self.partition(id).is_some());
        (delta, outcomes)
    }

    /// Does what the command would do as the first of the next entry, without being at another revision: for a draft.
    pub fn try_out(&mut self, command: &Command) -> (Delta, Outcome) {
        let mut delta = Delta { from: self.revision, to: self.revision, ..Delta::default() };
        let outcome = self.apply_command(command, &mut delta);
        (delta, outcome)
    }

    fn apply_command(&mut self, command: &Command, delta: &mut Delta) -> Outcome {
        match command {
            Command::RegisterNode(node) => Outcome::Registered(self.register_node(node, delta)),
            Command::FenceNode { node, epoch } => Outcome::Fenced(self.fence_node(*node, *epoch, delta)),
            Command::UnfenceNode { node, epoch } => Outcome::Fenced(self.unfence_node(*node, *epoch, delta)),
            Command::StopNode { node, epoch } => Outcome::Fenced(self.stop_node(*node, *epoch, delta)),
            Command::RemoveNode { node, force } => {
                Outcome::NodeRemoved(self.remove_node(*node, *force, delta))
            }
            Command::TakeControl { node, term } => {
                Outcome::ControlTaken(self.take_control(*node, *term, delta))
            }
            Command::SetFeatureLevel(level) => {
                Outcome::FeatureLevelSet(self.set_feature_level(*level, delta))
            }
            Command::SetNodeConfig { node, changes } => {
                Outcome::NodeConfigSet(self.set_node_config(*node, changes, delta))
            }
            Command::AlterIsr(alter) => Outcome::IsrAltered(self.alter_isr(alter, delta)),
            Command::ElectLeaders(elect) => Outcome::Elected(self.elect_leaders(elect, delta)),
            Command::Reassign(topics) => Outcome::Reassigned(
                topics
                    .iter()
                    .flat_map(|topic| topic.partitions.iter().map(|new| (topic.topic, new)))
                    .map(|(topic, new)| self.reassign(topic, new, delta))
                    .collect(),
            ),
            Command::Stage(stage) => Outcome::Staged(self.stage(stage, delta)),
            Command::CreateStaged { by, staged, topic } => Outcome::Created(vec![
                self.take_staged_sets(*by, topic.id, *staged, &topic.replicas, delta)
                    .and_then(|sets| self.create_topic(topic, &sets, delta)),
            ]),
            Command::GrowStaged { by, staged, more } => Outcome::Grown(vec![
                self.take_staged_sets(*by, more.topic, *staged, &more.replicas, delta)
                    .and_then(|sets| self.create_partitions(more, &sets, delta)),
            ]),
            Command::CreateTopics(topics) => Outcome::Created(
                topics.iter().map(|topic| self.create_topic(topic, &topic.replicas, delta)).collect(),
            ),
            Command::DeleteTopics(ids) => {
                Outcome::Deleted(ids.iter().map(|&id| self.delete_topic(id, delta)).collect())
            }
            Command::CreatePartitions(all) => Outcome::Grown(
                all.iter().map(|more| self.create_partitions(more, &more.replicas, delta)).collect(),
            ),
            Command::SetTopicConfig(all) => {
                Outcome::TopicConfigSet(all.iter().map(|set| self.set_topic_config(set, delta)).collect())
            }
            Command::SetClusterConfig(changes) => {
                Outcome::ClusterConfigSet(self.set_cluster_config(changes, delta))
            }
            Command::ReserveProducerIds { node, count } => {
                Outcome::ProducerIds(self.reserve_producer_ids(*node, *count))
            }
        }
    }

    /// Whether a topic of this name can be made: with `automatic`, one that exists already is as good.
    ///
    /// # Errors
    /// With what is wrong about the name, or [`Why::TopicExists`].
    pub fn check_new_name(&self, name: &str, automatic: bool) -> Result<Option<CreatedTopic>, Refusal> {
        topic_name::check(name)?;
        let Some(known) = self.topic_like(name) else { return Ok(None) };
        if *known.name != *name {
            let words = format!(
                "topic '{name}' collides with '{}': they differ in '.' and '_' only, which metric names cannot tell \
                 apart",
                known.name
            );
            return Err(Refusal::new(Why::InvalidTopicName, words));
        }
        if automatic {
            return Ok(Some(created(known)));
        }
        Err(Refusal::new(Why::TopicExists, format!("topic '{name}' exists already")))
    }

    fn create_topic(
        &mut self,
        new: &CreateTopic,
        replicas: &[Vec<NodeId>],
        delta: &mut Delta,
    ) -> Result<CreatedTopic, Refusal> {
        if let Some(known) = self.check_new_name(&new.name, new.automatic)? {
            return Ok(known);
        }
        if new.id == TopicId::default() || self.topic_by_id(new.id).is_some() {
            return Err(Refusal::new(Why::InvalidRequest, format!("the topic id {} cannot be used", new.id)));
        }
        if self.topic_count() >= TOPICS_MAX {
            let words = format!("the cluster has {TOPICS_MAX} topics, which is its limit");
            return Err(Refusal::new(Why::LimitReached, words));
        }
        if replicas.is_empty() {
            return Err(Refusal::new(Why::InvalidPartitions, "a topic needs at least one partition"));
        }
        self.check_growth(0, replicas)?;
        let mut config = BTreeMap::new();
        for (name, value) in &new.config {
            topic_config::check(name, value).map_err(invalid)?;
            if config.insert(name.clone(), value.clone()).is_some() {
                return Err(invalid(InvalidSetting::Twice { name: name.clone() }));
            }
        }
        let settings = topic_config::settings(&config, self);
        let topic = Topic {
            id: new.id,
            name: new.name.as_str().into(),
            partitions: replicas.iter().map(|replicas| self.first_state(replicas, settings)).collect(),
            config: Arc::new(config),
        };
        let answer = created(&topic);
        delta.changed.extend(partition_ids(&topic, 0));
        self.put_topic(topic);
        Ok(answer)
    }

    fn stage(&mut self, stage: &Stage, delta: &mut Delta) -> Result<(), Refusal> {
        if !self.nodes.contains_key(&stage.by) {
            return Err(Refusal::new(
                Why::InvalidRequest,
                format!("node {} is not in the cluster", stage.by),
            ));
        }
        let mut staged = match (stage.at, self.take_staged(stage.by)) {
            (0, _) | (_, None) => Staged { topic: stage.topic, ..Staged::default() },
            (_, Some(staged)) => Staged::clone(&staged),
        };
        delta.staged = true;
        let at = usize::try_from(stage.at).unwrap_or(usize::MAX);
        if staged.topic != stage.topic || staged.replicas.len() != at {
            return Err(lost_stage());
        }
        if at + stage.replicas.len() > PARTITIONS_PER_TOPIC_MAX {
            let words = format!("a topic has at most {PARTITIONS_PER_TOPIC_MAX} partitions");
            return Err(Refusal::new(Why::LimitReached, words));
        }
        for replicas in &stage.replicas {
            self.check_replicas(replicas)?;
        }
        staged.replicas.extend(stage.replicas.iter().cloned());
        self.put_staged(stage.by, staged);
        Ok(())
    }

    /// What `by` laid ready for the topic, followed by `rest`. Nothing of `by` lies ready any more.
    fn take_staged_sets(
        &mut self,
        by: NodeId,
        topic: TopicId,
        expected: u32,
        rest: &[Vec<NodeId>],
        delta: &mut Delta,
    ) -> Result<Vec<Vec<NodeId>>, Refusal> {
        let staged = self.take_staged(by).ok_or_else(lost_stage)?;
        delta.staged = true;
        if staged.topic != topic || u32::try_from(staged.replicas.len()) != Ok(expected) {
            return Err(lost_stage());
        }
        Ok(staged.replicas.iter().chain(rest).cloned().collect())
    }

    fn delete_topic(&mut self, id: TopicId, delta: &mut Delta) -> Result<DeletedTopic, Refusal> {
        let Some(topic) = self.remove_topic(id) else {
            return Err(unknown(id));
        };
        delta.removed.extend(partition_ids(&topic, 0));
        Ok(DeletedTopic { id, name: topic.name.to_string() })
    }

    fn create_partitions(
        &mut self,
        more: &CreatePartitions,
        replicas: &[Vec<NodeId>],
        delta: &mut Delta,
    ) -> Result<(), Refusal> {
        let topic = self.topic_by_id(more.topic).ok_or_else(|| unknown(more.topic))?.clone();
        let had = topic.partitions.len();
        if usize::try_from(more.first.0) != Ok(had) || replicas.is_empty() {
            let words =
                format!("topic '{}' has {had} partitions; more can be added, none taken away", topic.name);
            return Err(Refusal::new(Why::InvalidPartitions, words));
        }
        self.check_growth(had, replicas)?;
        let mut topic = Topic::clone(&topic);
        let settings = topic_config::settings(&topic.config, self);
        topic.partitions.extend(replicas.iter().map(|replicas| self.first_state(replicas, settings)));
        delta.changed.extend(partition_ids(&topic, had));
        self.put_topic(topic);
        Ok(())
    }

    /// Whether a topic that has `had` partitions can get these.
    fn check_growth(&self, had: usize, new: &[Vec<NodeId>]) -> Result<(), Refusal> {
        if had + new.len() > PARTITIONS_PER_TOPIC_MAX {
            let words = format!("a topic has at most {PARTITIONS_PER_TOPIC_MAX} partitions");
            return Err(Refusal::new(Why::LimitReached, words));
        }
        let room = REPLICAS_PER_NODE_MAX * self.nodes.len();
        let wanted: usize = new.iter().map(Vec::len).sum();
        if self.replica_count() + wanted > room {
            let words = format!(
                "the cluster has {} replicas of at most {room} ({REPLICAS_PER_NODE_MAX} a node): no room for \
                 {wanted} more",
                self.replica_count(),
            );
            return Err(Refusal::new(Why::LimitReached, words));
        }
        for replicas in new {
            self.check_replicas(replicas)?;
        }
        Ok(())
    }

    fn check_replicas(&self, replicas: &[NodeId]) -> Result<(), Refusal> {
        let refuse = |words: String| Err(Refusal::new(Why::InvalidAssignment, words));
        if replicas.is_empty() || replicas.len() > REPLICAS_MAX {
            return refuse(format!("a partition has 1 to {REPLICAS_MAX} replicas, not {}", replicas.len()));
        }
        for (at, node) in replicas.iter().enumerate() {
            if !self.nodes.contains_key(node) {
                return refuse(format!("node {node} is not in the cluster"));
            }
            // A set is small: comparing each with each beats making a tree.
            if replicas[..at].contains(node) {
                return refuse(format!("node {node} cannot hold two replicas of one partition"));
            }
        }
        Ok(())
    }

    /// A new partition is led by the first of its replicas that can. All of them have its records, which are none.
    fn first_state(&self, replicas: &[NodeId], settings: Settings) -> PartitionState {
        let all =
            PartitionState { replicas: replicas.to_vec(), isr: replicas.to_vec(), ..Default::default() };
        let mut target = Target::of(&all);
        target.isr.retain(|&node| self.is_active(node));
        let nodes = &self.nodes;
        let settled = settle(&all, target, &rules(nodes, settings)).unwrap_or(all);
        PartitionState { leader_epoch: LeaderEpoch(0), partition_epoch: PartitionEpoch(0), ..settled }
    }

    fn set_topic_config(&mut self, set: &SetTopicConfig, delta: &mut Delta) -> Result<(), Refusal> {
        let topic = self.topic_by_id(set.topic).ok_or_else(|| unknown(set.topic))?.clone();
        let config = topic_config::change(&topic.config, &set.changes, |name| self.inherited_anywhere(name))
            .map_err(invalid)?;
        if config != *topic.config {
            let before = topic_config::settings(&topic.config, self);
            delta.changed.extend(partition_ids(&topic, 0));
            // What is not held twice is changed where it is.
            drop(topic);
            self.put_topic_config(set.topic, config);
            self.on_settings_changed(set.topic, before, delta);
        }
        Ok(())
    }

    fn set_cluster_config(&mut self, changes: &[SettingChange], delta: &mut Delta) -> Result<(), Refusal> {
        let unset = Image::default();
        let config =
            topic_config::change(&self.cluster_config, changes, |name| unset.inherited_anywhere(name))
                .map_err(invalid)?;
        if config != *self.cluster_config {
            let before: Vec<(TopicId, Settings)> = self
                .topics_from(TopicId::default())
                .map(|topic| (topic.id, self.settings_of(topic)))
                .collect();
            self.cluster_config = Arc::new(config);
            delta.cluster_config = true;
            for (topic, before) in before {
                self.on_settings_changed(topic, before, delta);
            }
        }
        Ok(())
    }

    /// A value that every node sees alike: config files may differ from node to node.
    fn inherited_anywhere(&self, name: &'static str) -> String {
        topic_config::inherited(name, self, &TopicDefaults::default())
    }

    fn reserve_producer_ids(&mut self, node: NodeId, count: u32) -> Result<ProducerId, Refusal> {
        if !self.nodes.contains_key(&node) {
            return Err(Refusal::new(Why::InvalidRequest, format!("node {node} is not in the cluster")));
        }
        if count == 0 || count > PRODUCER_ID_BLOCK {
            let words = format!("a block has 1 to {PRODUCER_ID_BLOCK} producer ids, not {count}");
            return Err(Refusal::new(Why::InvalidRequest, words));
        }
        let first = self.producer_id_next;
        let next = first.0 + u64::from(count);
        if i64::try_from(next).is_err() {
            return Err(Refusal::new(Why::LimitReached, "all producer ids were given out"));
        }
        self.producer_id_next = ProducerId(next);
        Ok(first)
    }
}

fn lost_stage() -> Refusal {
    Refusal::new(Why::Conflict, "what was prepared for the topic is not there any more: try again")
}

fn partition_ids(topic: &Topic, from: usize) -> impl Iterator<Item = PartitionId> + '_ {
    let count = u32::try_from(topic.partitions.len()).expect("bounded by PARTITIONS_PER_TOPIC_MAX");
    let from = u32::try_from(from).expect("not above the count");
    (from..count).map(|index| topic.partition_id(PartitionIndex(index)))
}

fn created(topic: &Topic) -> CreatedTopic {
    let replicas = topic.partitions.head().map_or(0, |p| p.replicas.len());
    CreatedTopic {
        id: topic.id,
        partitions: u32::try_from(topic.partitions.len()).expect("bounded by PARTITIONS_PER_TOPIC_MAX"),
        replication_factor: u16::try_from(replicas).expect("bounded by REPLICAS_MAX"),
        config: topic.config.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
    }
}

fn unknown(id: TopicId) -> Refusal {
    Refusal::new(Why::UnknownTopicId, format!("no topic has the id {id}"))
}

fn invalid(setting: InvalidSetting) -> Refusal {
    let why = match setting {
        InvalidSetting::Twice { .. } => Why::InvalidRequest,
        _ => Why::InvalidConfig,
    };
    Refusal::new(why, setting.to_string())
}

#[cfg(test)]
mod tests;
