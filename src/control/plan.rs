//! Turns a request into commands for the metadata log, and what became of them into the reply.
//!
//! Control core, pure. A plan is made against the image that its commands will meet, so that most refusals are
//! found here and never reach the log. What is too large for one entry becomes several steps.

mod create;
mod partitions;

use std::collections::{BTreeMap, VecDeque};

use highwater_shards::ids::{NodeId, PartitionIndex, TopicId};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::limits::{ITEMS_MAX, STEP_BYTES_MAX, STEP_PARTITIONS_MAX};
use super::metadata::apply::Outcome;
use super::metadata::command::{Command, SetTopicConfig, SettingChange, SettingOp, Stage, replica_set};
use super::metadata::image::{FeatureLevel, Image};
use super::metadata::topic_config::{InvalidSetting, TopicDefaults};
use super::placement::Placement;
use super::request::{
    AlterConfig, ConfigChange, ConfigOp, ConfigResource, CreatedTopic, DeletedTopic, NodeChange,
    PartitionRef, Refusal, Reply, Request, TopicRef, Why,
};

/// What a plan is made from.
pub struct Basis<'a> {
    pub image: &'a Image,
    pub defaults: &'a TopicDefaults,
    pub placement: &'a Placement,
    /// For topic ids.
    pub entropy: &'a mut Xoshiro256PlusPlus,
    /// The node that proposes.
    pub node: NodeId,
}

/// A request on its way through the log.
#[derive(Debug)]
pub struct Plan {
    kind: Kind,
    /// One per item of the request: what became of it, once that is known.
    slots: Vec<Option<Result<Done, Refusal>>>,
    /// Items that were refused for what an entry under way is to come to.
    tentative: Vec<usize>,
    /// Which partitions they are, where the request need not say so.
    partitions: Vec<PartitionRef>,
    /// What is still to be proposed, in this order.
    steps: VecDeque<Step>,
}

/// A command, and the items of the request that its outcome is for, in its order.
#[derive(Debug)]
pub struct Step {
    pub command: Command,
    pub slots: Vec<usize>,
    /// Bytes that it adds to an entry, at most.
    pub weight: usize,
    /// Partitions that it makes.
    pub partitions: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    CreateTopics,
    DeleteTopics,
    CreatePartitions,
    AlterConfigs,
    ChangeNode,
    Reassign,
    ElectLeaders,
    SetFeatureLevel,
}

#[derive(Debug)]
enum Done {
    Created(CreatedTopic),
    Deleted(DeletedTopic),
    Changed,
}

impl Plan {
    /// `None` for requests that need no command of their own.
    pub fn new(request: &Request, basis: &mut Basis<'_>) -> Option<Self> {
        match request {
            Request::CreateTopics { topics, .. } => Some(create::topics(topics, basis)),
            Request::DeleteTopics { topics, .. } => Some(delete_topics(topics, basis)),
            Request::CreatePartitions { topics, .. } => Some(create::partitions(topics, basis)),
            Request::AlterConfigs { resources, .. } => Some(alter_configs(resources, basis)),
            Request::ChangeNode { node, change, .. } => Some(change_node(*node, *change, basis)),
            Request::Reassign { partitions, .. } => Some(partitions::reassign(partitions, basis)),
            Request::ElectLeaders { kind, partitions, .. } => {
                Some(partitions::elect(*kind, partitions.as_deref(), basis))
            }
            Request::SetFeatureLevel { level, .. } => {
                let mut plan = Self::empty(Kind::SetFeatureLevel, 1);
                plan.push(Command::SetFeatureLevel(FeatureLevel(*level)), vec![0], 0);
                Some(plan)
            }
            Request::NewProducerId => None,
        }
    }

    fn empty(kind: Kind, items: usize) -> Self {
        let slots = (0..items).map(|_| None).collect();
        Self { kind, slots, tentative: Vec::new(), partitions: Vec::new(), steps: VecDeque::new() }
    }

    fn push(&mut self, command: Command, slots: Vec<usize>, partitions: usize) {
        let weight = command.weight();
        self.steps.push_back(Step { command, slots, weight, partitions });
    }

    fn refuse(&mut self, slot: usize, refusal: Refusal) {
        self.slots[slot] = Some(Err(refusal));
    }

    /// The next thing to propose. What was refused meanwhile is left out.
    pub fn next_step(&mut self) -> Option<&Step> {
        while let Some(step) = self.steps.front()
            && step.slots.iter().all(|&slot| self.slots[slot].is_some())
        {
            self.steps.pop_front();
        }
        self.steps.front()
    }

    pub fn take_step(&mut self) -> Option<Step> {
        self.next_step()?;
        self.steps.pop_front()
    }

    /// Puts back the last steps that were taken, as they change something after all, or may.
    pub fn put_back(&mut self, held: Vec<(Step, Outcome)>) {
        for (step, _) in held.into_iter().rev() {
            self.steps.push_front(step);
        }
    }

    /// Notes what became of a step.
    pub fn fill(&mut self, slots: &[usize], outcome: Outcome) {
        fn all<T>(results: Vec<Result<T, Refusal>>, done: impl Fn(T) -> Done) -> Vec<Result<Done, Refusal>> {
            results.into_iter().map(|result| result.map(&done)).collect()
        }
        let results = match outcome {
            Outcome::Created(results) => all(results, Done::Created),
            Outcome::Deleted(results) => all(results, Done::Deleted),
            Outcome::Grown(results)
            | Outcome::TopicConfigSet(results)
            | Outcome::Elected(results)
            | Outcome::Reassigned(results) => all(results, |()| Done::Changed),
            Outcome::ClusterConfigSet(result)
            | Outcome::NodeConfigSet(result)
            | Outcome::Fenced(result)
            | Outcome::NodeRemoved(result)
            | Outcome::FeatureLevelSet(result) => all(vec![result], |()| Done::Changed),
            // The topic comes with a later step, unless it cannot come about any more.
            Outcome::Staged(Ok(())) => return,
            Outcome::Staged(Err(refusal)) => vec![Err(refusal)],
            other => unreachable!("no step of a plan has the outcome {other:?}"),
        };
        assert_eq!(results.len(), slots.len(), "one result for each item of the step");
        for (&slot, result) in slots.iter().zip(results) {
            self.slots[slot].get_or_insert(result);
        }
    }

    /// The image that the plan was made against is that of an entry under way: what is refused so far is so only if
    /// the entry comes to what it was drafted to.
    pub fn rely_on_entry(&mut self) {
        self.tentative = (0..self.slots.len()).filter(|&slot| self.slots[slot].is_some()).collect();
    }

    /// The entry came to that.
    pub fn confirm(&mut self) {
        self.tentative.clear();
    }

    /// It did not: what relied on it is refused with this instead.
    pub fn retract(&mut self, refusal: &Refusal) {
        for slot in self.tentative.drain(..) {
            self.slots[slot] = Some(Err(refusal.clone()));
        }
    }

    /// Refuses all that nothing is known of yet.
    pub fn give_up(&mut self, refusal: &Refusal) {
        self.retract(refusal);
        self.steps.clear();
        for slot in &mut self.slots {
            slot.get_or_insert_with(|| Err(refusal.clone()));
        }
    }

    pub fn is_complete(&self) -> bool {
        self.slots.iter().all(Option::is_some)
    }

    /// The reply of a complete plan.
    pub fn reply(self) -> Reply {
        let kind = self.kind;
        let results = self.slots.into_iter().map(|slot| slot.expect("the plan is complete"));
        match kind {
            Kind::CreateTopics => Reply::CreateTopics(collect(results, |done| match done {
                Done::Created(topic) => topic,
                other => unreachable!("creating a topic does not come to {other:?}"),
            })),
            Kind::DeleteTopics => Reply::DeleteTopics(collect(results, |done| match done {
                Done::Deleted(topic) => topic,
                other => unreachable!("deleting a topic does not come to {other:?}"),
            })),
            Kind::CreatePartitions => Reply::CreatePartitions(collect(results, |_| ())),
            Kind::AlterConfigs => Reply::AlterConfigs(collect(results, |_| ())),
            Kind::ChangeNode => Reply::ChangeNode(only(results)),
            Kind::Reassign => Reply::Reassign(collect(results, |_| ())),
            Kind::ElectLeaders => {
                let results = collect(results, |_| ());
                Reply::ElectLeaders(Ok(self.partitions.into_iter().zip(results).collect()))
            }
            Kind::SetFeatureLevel => Reply::SetFeatureLevel(only(results)),
        }
    }

    /// Lays all but the last few of the replica sets ready; gives back how many those are, and the rest.
    fn stage(
        &mut self,
        by: NodeId,
        topic: TopicId,
        slot: usize,
        replicas: Vec<Vec<NodeId>>,
    ) -> (u32, Vec<Vec<NodeId>>) {
        let (mut at, mut part, mut bytes) = (0, Vec::new(), 0);
        for set in replicas {
            let weight = replica_set(&set);
            if part.len() >= STEP_PARTITIONS_MAX || bytes + weight > STEP_BYTES_MAX {
                let count = part.len();
                let stage = Stage { by, topic, at, replicas: std::mem::take(&mut part) };
                self.push(Command::Stage(stage), vec![slot], count);
                at += u32::try_from(count).expect("bounded by STEP_PARTITIONS_MAX");
                bytes = 0;
            }
            bytes += weight;
            part.push(set);
        }
        (at, part)
    }
}

fn collect<T>(
    results: impl Iterator<Item = Result<Done, Refusal>>,
    map: impl Fn(Done) -> T,
) -> Vec<Result<T, Refusal>> {
    results.map(|result| result.map(&map)).collect()
}

fn only(mut results: impl Iterator<Item = Result<Done, Refusal>>) -> Result<(), Refusal> {
    results.next().expect("such a request has one item").map(|_| ())
}

/// Items of one kind on their way into commands, each command small enough for an entry.
struct Pack<T> {
    command: fn(Vec<T>) -> Command,
    items: Vec<T>,
    slots: Vec<usize>,
    bytes: usize,
    partitions: usize,
}

impl<T> Pack<T> {
    fn new(command: fn(Vec<T>) -> Command) -> Self {
        Self { command, items: Vec::new(), slots: Vec::new(), bytes: 0, partitions: 0 }
    }

    fn add(&mut self, plan: &mut Plan, slot: usize, item: T, bytes: usize, partitions: usize) {
        if self.bytes + bytes > STEP_BYTES_MAX || self.partitions + partitions > STEP_PARTITIONS_MAX {
            self.finish(plan);
        }
        self.items.push(item);
        self.slots.push(slot);
        self.bytes += bytes;
        self.partitions += partitions;
    }

    fn finish(&mut self, plan: &mut Plan) {
        if !self.items.is_empty() {
            let command = (self.command)(std::mem::take(&mut self.items));
            plan.push(command, std::mem::take(&mut self.slots), self.partitions);
        }
        (self.bytes, self.partitions) = (0, 0);
    }
}

/// The reply that refuses all of the request.
pub fn refuse(request: &Request, refusal: &Refusal) -> Reply {
    fn all<T>(len: usize, refusal: &Refusal) -> Vec<Result<T, Refusal>> {
        (0..len).map(|_| Err(refusal.clone())).collect()
    }
    match request {
        Request::CreateTopics { topics, .. } => Reply::CreateTopics(all(topics.len(), refusal)),
        Request::DeleteTopics { topics, .. } => Reply::DeleteTopics(all(topics.len(), refusal)),
        Request::CreatePartitions { topics, .. } => Reply::CreatePartitions(all(topics.len(), refusal)),
        Request::AlterConfigs { resources, .. } => Reply::AlterConfigs(all(resources.len(), refusal)),
        Request::ChangeNode { .. } => Reply::ChangeNode(Err(refusal.clone())),
        Request::Reassign { partitions, .. } => Reply::Reassign(all(partitions.len(), refusal)),
        Request::ElectLeaders { partitions, .. } => {
            let all = partitions.as_ref().ok_or_else(|| refusal.clone());
            Reply::ElectLeaders(
                all.map(|all| all.iter().map(|p| (p.clone(), Err(refusal.clone()))).collect()),
            )
        }
        Request::SetFeatureLevel { .. } => Reply::SetFeatureLevel(Err(refusal.clone())),
        Request::NewProducerId => Reply::NewProducerId(Err(refusal.clone())),
    }
}

/// Whether the request only wants to know what would become of it.
pub fn validate_only(request: &Request) -> bool {
    match request {
        Request::CreateTopics { validate_only, .. }
        | Request::CreatePartitions { validate_only, .. }
        | Request::AlterConfigs { validate_only, .. } => *validate_only,
        Request::DeleteTopics { .. }
        | Request::ChangeNode { .. }
        | Request::Reassign { .. }
        | Request::ElectLeaders { .. }
        | Request::SetFeatureLevel { .. }
        | Request::NewProducerId => false,
    }
}

/// Refuses what stands more than once in a request, and what stands beyond its bound.
struct Once<'a, K> {
    seen: BTreeMap<&'a K, u32>,
    taken: usize,
}

impl<'a, K: Ord> Once<'a, K> {
    fn new(keys: impl Iterator<Item = &'a K>) -> Self {
        let mut seen = BTreeMap::new();
        for key in keys {
            *seen.entry(key).or_default() += 1;
        }
        Self { seen, taken: 0 }
    }

    fn check(&mut self, key: &'a K, words: &str) -> Result<(), Refusal> {
        self.taken += 1;
        if self.taken > ITEMS_MAX {
            let words = format!("more than {ITEMS_MAX} items in one request: split it");
            return Err(Refusal::new(Why::LimitReached, words));
        }
        if self.seen[key] > 1 {
            return Err(Refusal::new(Why::InvalidRequest, format!("{words} stands twice in one request")));
        }
        Ok(())
    }
}

fn delete_topics(topics: &[TopicRef], basis: &Basis<'_>) -> Plan {
    let ids: Vec<Result<TopicId, Refusal>> = topics.iter().map(|topic| resolve(topic, basis.image)).collect();
    let mut once = Once::new(ids.iter().filter_map(|id| id.as_ref().ok()));
    let mut plan = Plan::empty(Kind::DeleteTopics, topics.len());
    let mut pack = Pack::new(Command::DeleteTopics);
    for (slot, id) in ids.iter().enumerate() {
        let checked =
            id.as_ref().map_err(Clone::clone).and_then(|id| once.check(id, "a topic").map(|()| *id));
        match checked {
            Ok(id) => {
                let partitions = basis.image.topic_by_id(id).map_or(0, |t| t.partitions.len());
                pack.add(&mut plan, slot, id, 19, partitions);
            }
            Err(refusal) => plan.refuse(slot, refusal),
        }
    }
    pack.finish(&mut plan);
    plan
}

fn resolve(topic: &TopicRef, image: &Image) -> Result<TopicId, Refusal> {
    match topic {
        TopicRef::Name(name) => known(name, image),
        TopicRef::Id(id) if image.topic_by_id(*id).is_some() => Ok(*id),
        TopicRef::Id(id) => Err(Refusal::new(Why::UnknownTopicId, format!("no topic has the id {id}"))),
    }
}

fn known(name: &str, image: &Image) -> Result<TopicId, Refusal> {
    match image.topic(name) {
        Some(topic) => Ok(topic.id),
        None => Err(Refusal::new(Why::UnknownTopic, "there is no topic of this name")),
    }
}

fn alter_configs(resources: &[AlterConfig], basis: &Basis<'_>) -> Plan {
    let mut once = Once::new(resources.iter().map(|r| &r.resource));
    let mut plan = Plan::empty(Kind::AlterConfigs, resources.len());
    let mut pack = Pack::new(Command::SetTopicConfig);
    for (slot, AlterConfig { resource, changes: asked }) in resources.iter().enumerate() {
        let changes = || asked.iter().map(|c| SettingChange { name: c.key.clone(), op: op(&c.op) }).collect();
        let checked = once.check(resource, "a resource").and_then(|()| match resource {
            ConfigResource::Topic(name) => {
                check_values(asked, basis)?;
                let set = SetTopicConfig { topic: known(name, basis.image)?, changes: changes() };
                let weight = set.weight();
                pack.add(&mut plan, slot, set, weight, 0);
                Ok(())
            }
            ConfigResource::Cluster => {
                check_values(asked, basis)?;
                plan.push(Command::SetClusterConfig(changes()), vec![slot], 0);
                Ok(())
            }
            ConfigResource::Node(node) => {
                plan.push(Command::SetNodeConfig { node: *node, changes: changes() }, vec![slot], 0);
                Ok(())
            }
        });
        if let Err(refusal) = checked {
            plan.refuse(slot, refusal);
        }
    }
    pack.finish(&mut plan);
    plan
}

/// What only this node can refuse; the rest is checked when the change is applied.
fn check_values(changes: &[ConfigChange], basis: &Basis<'_>) -> Result<(), Refusal> {
    for change in changes {
        if let ConfigOp::Set(value) = &change.op {
            basis.defaults.check(&change.key, value).map_err(|invalid| invalid_config(&invalid))?;
        }
    }
    Ok(())
}

fn invalid_config(invalid: &InvalidSetting) -> Refusal {
    Refusal::new(Why::InvalidConfig, invalid.to_string())
}

fn op(op: &ConfigOp) -> SettingOp {
    match op {
        ConfigOp::Set(value) => SettingOp::Set(value.clone()),
        ConfigOp::Delete => SettingOp::Unset,
        ConfigOp::Append(items) => SettingOp::Append(items.clone()),
        ConfigOp::Subtract(items) => SettingOp::Subtract(items.clone()),
    }
}

fn change_node(node: NodeId, change: NodeChange, basis: &Basis<'_>) -> Plan {
    let mut plan = Plan::empty(Kind::ChangeNode, 1);
    match (basis.image.nodes.get(&node), change) {
        (None, _) => {
            let words = format!("node {node} is not in the cluster");
            plan.refuse(0, Refusal::new(Why::UnknownNode, words));
        }
        (Some(info), NodeChange::Fence) => {
            plan.push(Command::FenceNode { node, epoch: info.epoch }, vec![0], 0);
        }
        (Some(_), NodeChange::Remove | NodeChange::RemoveByForce) => {
            let force = change == NodeChange::RemoveByForce;
            plan.push(Command::RemoveNode { node, force }, vec![0], 0);
        }
    }
    plan
}
