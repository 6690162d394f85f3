//! Turns a request into commands for the metadata log, and what became of them into the reply.
//!
//! Control core, pure. A plan is made against the image that its commands will meet, so that most refusals are
//! found here and never reach the log.

use std::collections::BTreeMap;

use highwater_shards::ids::{NodeId, PartitionIndex, TopicId};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::RngCore;

use super::limits::{ITEMS_MAX, PARTITIONS_PER_REQUEST_MAX};
use super::metadata::apply::{Outcome, PARTITIONS_PER_TOPIC_MAX};
use super::metadata::command::{
    Command, CreatePartitions, CreateTopic, SetTopicConfig, SettingChange, SettingOp,
};
use super::metadata::image::Image;
use super::metadata::topic_config::{InvalidSetting, TopicDefaults};
use super::request::{
    AlterConfig, ConfigChange, ConfigOp, ConfigResource, MorePartitions, NewTopic, Refusal, Reply, Request,
    TopicRef, Why,
};
use super::shard_load::spread_over_nodes;

/// What a plan is made from.
pub struct Basis<'a> {
    pub image: &'a Image,
    pub defaults: &'a TopicDefaults,
    /// For topic ids.
    pub entropy: &'a mut Xoshiro256PlusPlus,
}

/// A request on its way through the log.
#[derive(Debug)]
pub struct Plan {
    kind: Kind,
    /// One per item of the request.
    slots: Vec<Slot>,
    pub commands: Vec<Command>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    CreateTopics,
    DeleteTopics,
    CreatePartitions,
    AlterConfigs,
}

/// What becomes of one item of a request.
#[derive(Debug)]
enum Slot {
    Refused(Refusal),
    /// The result of the item with this number, of the plan's command with that number.
    Item {
        command: usize,
        item: usize,
    },
}

type Slots<T> = Vec<Result<T, Refusal>>;

impl Plan {
    /// `None` for requests that need no command of their own.
    pub fn new(request: &Request, basis: &mut Basis<'_>) -> Option<Self> {
        match request {
            Request::CreateTopics { topics, .. } => Some(create_topics(topics, basis)),
            Request::DeleteTopics { topics, .. } => Some(delete_topics(topics, basis)),
            Request::CreatePartitions { topics, .. } => Some(create_partitions(topics, basis)),
            Request::AlterConfigs { resources, .. } => Some(alter_configs(resources, basis)),
            Request::NewProducerId => None,
        }
    }

    /// The reply, from the outcomes of the plan's commands.
    pub fn reply(self, outcomes: &[Outcome]) -> Reply {
        match self.kind {
            Kind::CreateTopics => {
                Reply::CreateTopics(self.collect(|command, item| match &outcomes[command] {
                    Outcome::Created(results) => results[item].clone(),
                    other => unreachable!("topics are created by a command of that kind, not {other:?}"),
                }))
            }
            Kind::DeleteTopics => {
                Reply::DeleteTopics(self.collect(|command, item| match &outcomes[command] {
                    Outcome::Deleted(results) => results[item].clone(),
                    other => unreachable!("topics are deleted by a command of that kind, not {other:?}"),
                }))
            }
            Kind::CreatePartitions => {
                Reply::CreatePartitions(self.collect(|command, item| match &outcomes[command] {
                    Outcome::Grown(results) => results[item].clone(),
                    other => unreachable!("partitions are created by a command of that kind, not {other:?}"),
                }))
            }
            Kind::AlterConfigs => {
                Reply::AlterConfigs(self.collect(|command, item| match &outcomes[command] {
                    Outcome::TopicConfigSet(results) => results[item].clone(),
                    Outcome::ClusterConfigSet(result) => result.clone(),
                    other => unreachable!("settings are changed by commands of that kind, not {other:?}"),
                }))
            }
        }
    }

    fn collect<T>(self, result: impl Fn(usize, usize) -> Result<T, Refusal>) -> Slots<T> {
        let slots = self.slots.into_iter();
        slots
            .map(|slot| match slot {
                Slot::Refused(refusal) => Err(refusal),
                Slot::Item { command, item } => result(command, item),
            })
            .collect()
    }

    /// A plan of at most one command, from what each item of the request wants of it.
    fn of<T>(kind: Kind, items: Slots<T>, command: impl FnOnce(Vec<T>) -> Command) -> Self {
        let mut wanted = Vec::with_capacity(items.len());
        let mut slots = Vec::with_capacity(items.len());
        for item in items {
            match item {
                Ok(item) => {
                    slots.push(Slot::Item { command: 0, item: wanted.len() });
                    wanted.push(item);
                }
                Err(refusal) => slots.push(Slot::Refused(refusal)),
            }
        }
        let commands = if wanted.is_empty() { Vec::new() } else { vec![command(wanted)] };
        Self { kind, slots, commands }
    }
}

/// The reply that refuses all of the request.
pub fn refuse(request: &Request, refusal: &Refusal) -> Reply {
    fn all<T>(len: usize, refusal: &Refusal) -> Slots<T> {
        (0..len).map(|_| Err(refusal.clone())).collect()
    }
    match request {
        Request::CreateTopics { topics, .. } => Reply::CreateTopics(all(topics.len(), refusal)),
        Request::DeleteTopics { topics, .. } => Reply::DeleteTopics(all(topics.len(), refusal)),
        Request::CreatePartitions { topics, .. } => Reply::CreatePartitions(all(topics.len(), refusal)),
        Request::AlterConfigs { resources, .. } => Reply::AlterConfigs(all(resources.len(), refusal)),
        Request::NewProducerId => Reply::NewProducerId(Err(refusal.clone())),
    }
}

/// Whether the request only wants to know what would become of it.
pub fn validate_only(request: &Request) -> bool {
    match request {
        Request::CreateTopics { validate_only, .. }
        | Request::CreatePartitions { validate_only, .. }
        | Request::AlterConfigs { validate_only, .. } => *validate_only,
        Request::DeleteTopics { .. } | Request::NewProducerId => false,
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

fn create_topics(topics: &[NewTopic], basis: &mut Basis<'_>) -> Plan {
    let mut once = Once::new(topics.iter().map(|t| &t.name));
    let mut room = PARTITIONS_PER_REQUEST_MAX;
    let items = topics.iter().map(|topic| {
        once.check(&topic.name, "a topic")?;
        let replicas = new_replicas(topic, room, basis)?;
        room -= replicas.len();
        let config = topic.config.iter().map(|(name, value)| match value {
            Some(value) => {
                basis.defaults.check(name, value).map_err(|invalid| invalid_config(&invalid))?;
                Ok((name.clone(), value.clone()))
            }
            None => {
                let words = format!("topic setting '{name}' has no value: leave it out to get the default");
                Err(Refusal::new(Why::InvalidConfig, words))
            }
        });
        Ok(CreateTopic {
            id: draw_topic_id(basis.entropy),
            name: topic.name.clone(),
            replicas,
            config: config.collect::<Result<_, _>>()?,
            automatic: topic.automatic,
        })
    });
    Plan::of(Kind::CreateTopics, items.collect(), Command::CreateTopics)
}

/// A random id in the form of a version 4 UUID, so that it is neither of Kafka's reserved ones.
fn draw_topic_id(entropy: &mut Xoshiro256PlusPlus) -> TopicId {
    let random = (u128::from(entropy.next_u64()) << 64) | u128::from(entropy.next_u64());
    let version = (random & !(0xf << 76)) | (0x4 << 76);
    TopicId((version & !(0x3 << 62)) | (0x2 << 62))
}

fn new_replicas(topic: &NewTopic, room: usize, basis: &mut Basis<'_>) -> Result<Vec<Vec<NodeId>>, Refusal> {
    if !topic.assignment.is_empty() {
        return assigned_replicas(topic, room);
    }
    let count = topic.partitions.unwrap_or(basis.defaults.partitions);
    if count == 0 {
        return Err(Refusal::new(Why::InvalidPartitions, "a topic needs at least one partition"));
    }
    let count = within(usize::try_from(count).unwrap_or(usize::MAX), room)?;
    let factor = topic.replication_factor.unwrap_or(basis.defaults.replication_factor);
    place_on_nodes(count, usize::from(factor), basis)
}

fn place_on_nodes(count: usize, factor: usize, basis: &mut Basis<'_>) -> Result<Vec<Vec<NodeId>>, Refusal> {
    let start = basis.entropy.next_u64();
    spread_over_nodes(basis.image, start, count, factor).ok_or_else(|| {
        let nodes = basis.image.nodes.values().filter(|n| !n.fenced).count();
        let words = match factor {
            0 => "a replication factor of 0: each partition needs a replica".to_owned(),
            _ => format!("a replication factor of {factor} needs as many nodes; {nodes} are in the cluster"),
        };
        Refusal::new(Why::InvalidReplicationFactor, words)
    })
}

fn within(count: usize, room: usize) -> Result<usize, Refusal> {
    if count > PARTITIONS_PER_TOPIC_MAX {
        let words = format!("a topic has at most {PARTITIONS_PER_TOPIC_MAX} partitions, not {count}");
        return Err(Refusal::new(Why::LimitReached, words));
    }
    if count > room {
        let words = format!("more than {PARTITIONS_PER_REQUEST_MAX} new partitions in one request: split it");
        return Err(Refusal::new(Why::LimitReached, words));
    }
    Ok(count)
}

fn assigned_replicas(topic: &NewTopic, room: usize) -> Result<Vec<Vec<NodeId>>, Refusal> {
    let count = within(topic.assignment.len(), room)?;
    let asked = topic.partitions.map(|n| usize::try_from(n) == Ok(count));
    let first = &topic.assignment[0].1;
    let factor = topic.replication_factor.map(|n| usize::from(n) == first.len());
    if asked == Some(false) || factor == Some(false) {
        let words = "the assignment contradicts the number of partitions or the replication factor";
        return Err(Refusal::new(Why::InvalidRequest, words));
    }
    let mut sets: BTreeMap<PartitionIndex, &Vec<NodeId>> = BTreeMap::new();
    for (index, replicas) in &topic.assignment {
        if sets.insert(*index, replicas).is_some() {
            let words = format!("partition {index} is assigned twice");
            return Err(Refusal::new(Why::InvalidAssignment, words));
        }
        if replicas.len() != first.len() {
            let words = "all partitions of a topic are created with the same number of replicas";
            return Err(Refusal::new(Why::InvalidAssignment, words));
        }
    }
    if !sets.keys().zip(0..).all(|(index, expected)| index.0 == expected) {
        let words = "the assignment has gaps: partitions are numbered from 0 on";
        return Err(Refusal::new(Why::InvalidAssignment, words));
    }
    Ok(sets.into_values().cloned().collect())
}

fn delete_topics(topics: &[TopicRef], basis: &Basis<'_>) -> Plan {
    let ids: Slots<TopicId> = topics.iter().map(|topic| resolve(topic, basis.image)).collect();
    let mut once = Once::new(ids.iter().filter_map(|id| id.as_ref().ok()));
    let items = ids.iter().map(|id| match id {
        Ok(id) => once.check(id, "a topic").map(|()| *id),
        Err(refusal) => Err(refusal.clone()),
    });
    Plan::of(Kind::DeleteTopics, items.collect(), Command::DeleteTopics)
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

fn create_partitions(topics: &[MorePartitions], basis: &mut Basis<'_>) -> Plan {
    let mut once = Once::new(topics.iter().map(|t| &t.topic));
    let mut room = PARTITIONS_PER_REQUEST_MAX;
    let items = topics.iter().map(|more| {
        once.check(&more.topic, "a topic")?;
        let id = known(&more.topic, basis.image)?;
        let topic = basis.image.topic_by_id(id).expect("it was found by its name").clone();
        let had = topic.partitions.len();
        let total = usize::try_from(more.total).unwrap_or(usize::MAX);
        let Some(count) = total.checked_sub(had).filter(|&count| count > 0) else {
            let words = format!("topic '{}' has {had} partitions already; {total} is not more", topic.name);
            return Err(Refusal::new(Why::InvalidPartitions, words));
        };
        let count = within(count, room)?;
        let factor = topic.partitions.head().map_or(1, |p| p.replicas.len());
        let replicas = if more.assignment.is_empty() {
            place_on_nodes(count, factor, basis)?
        } else if more.assignment.len() == count && more.assignment.iter().all(|set| set.len() == factor) {
            more.assignment.clone()
        } else {
            let words = format!("{count} new partitions with {factor} replicas each are to be assigned");
            return Err(Refusal::new(Why::InvalidAssignment, words));
        };
        room -= count;
        let first = PartitionIndex(u32::try_from(had).expect("bounded by PARTITIONS_PER_TOPIC_MAX"));
        Ok(CreatePartitions { topic: id, first, replicas })
    });
    Plan::of(Kind::CreatePartitions, items.collect(), Command::CreatePartitions)
}

fn alter_configs(resources: &[AlterConfig], basis: &Basis<'_>) -> Plan {
    let mut once = Once::new(resources.iter().map(|r| &r.resource));
    let mut topics = Vec::new();
    let mut cluster = None;
    let mut slots = Vec::with_capacity(resources.len());
    for AlterConfig { resource, changes: asked } in resources {
        let changes = || asked.iter().map(|c| SettingChange { name: c.key.clone(), op: op(&c.op) }).collect();
        let checked = once.check(resource, "a resource").and_then(|()| check_values(asked, basis));
        let slot = checked.and_then(|()| match resource {
            ConfigResource::Topic(name) => {
                topics.push(SetTopicConfig { topic: known(name, basis.image)?, changes: changes() });
                Ok(Slot::Item { command: 0, item: topics.len() - 1 })
            }
            ConfigResource::Cluster => {
                cluster = Some(changes());
                Ok(Slot::Item { command: 1, item: 0 })
            }
            ConfigResource::Node(_) => Err(Refusal::new(
                Why::InvalidConfig,
                "a single node has no settings that change while it runs: set the default of the cluster \
                 (empty name), or use its config file",
            )),
        });
        slots.push(slot.unwrap_or_else(Slot::Refused));
    }
    let mut commands = Vec::new();
    let topics_first = !topics.is_empty();
    if topics_first {
        commands.push(Command::SetTopicConfig(topics));
    }
    if let Some(changes) = cluster {
        commands.push(Command::SetClusterConfig(changes));
    }
    if !topics_first {
        for slot in &mut slots {
            if let Slot::Item { command, .. } = slot {
                *command = 0;
            }
        }
    }
    Plan { kind: Kind::AlterConfigs, slots, commands }
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
