//! Plans new topics and new partitions: ids, replicas and settings.
//!
//! Control core, pure.

use highwater_shards::ids::TopicId;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::RngCore;

use super::*;
use crate::control::limits::PARTITIONS_PER_REQUEST_MAX;
use crate::control::metadata::apply::PARTITIONS_PER_TOPIC_MAX;
use crate::control::metadata::command::{CreatePartitions, CreateTopic};
use crate::control::metadata::topic_config::shorten;
use crate::control::placement::{Load, NewPartitions, NodeView, PlacementError};
use crate::control::request::{MorePartitions, NewTopic};

pub(super) fn topics(topics: &[NewTopic], basis: &mut Basis<'_>) -> Plan {
    let mut once = Once::new(topics.iter().map(|t| &t.name));
    let mut room = PARTITIONS_PER_REQUEST_MAX;
    let mut plan = Plan::empty(Kind::CreateTopics, topics.len());
    let mut pack = Pack::new(Command::CreateTopics);
    let mut site = Site::new(basis.image);
    for (slot, topic) in topics.iter().enumerate() {
        let new = match once.check(&topic.name, "a topic").and_then(|()| new_topic(topic, room, basis, &site))
        {
            Ok(new) => new,
            Err(refusal) => {
                plan.refuse(slot, refusal);
                continue;
            }
        };
        let (weight, partitions) = (new.weight(), new.replicas.len());
        room -= partitions;
        site.add(&new.replicas);
        if weight <= STEP_BYTES_MAX && partitions <= STEP_PARTITIONS_MAX {
            pack.add(&mut plan, slot, new, weight, partitions);
            continue;
        }
        pack.finish(&mut plan);
        match basis.image.check_new_name(&new.name, new.automatic) {
            Ok(None) => {
                let (staged, replicas) = plan.stage(basis.node, new.id, slot, new.replicas);
                let partitions = replicas.len();
                let topic = CreateTopic { replicas, ..new };
                plan.push(Command::CreateStaged { by: basis.node, staged, topic }, vec![slot], partitions);
            }
            Ok(Some(known)) => plan.slots[slot] = Some(Ok(Done::Created(known))),
            Err(refusal) => plan.refuse(slot, refusal),
        }
    }
    pack.finish(&mut plan);
    plan
}

fn new_topic(
    topic: &NewTopic,
    room: usize,
    basis: &mut Basis<'_>,
    site: &Site,
) -> Result<CreateTopic, Refusal> {
    let id = draw_topic_id(basis.entropy);
    let replicas = new_replicas(topic, id, room, basis, site)?;
    let mut config: Vec<(String, String)> = Vec::new();
    for (name, value) in &topic.config {
        let Some(value) = value else {
            let name = shorten(name);
            let words = format!("topic setting '{name}' has no value: leave it out to get the default");
            return Err(Refusal::new(Why::InvalidConfig, words));
        };
        basis.defaults.check(name, value).map_err(|invalid| invalid_config(&invalid))?;
        if config.iter().any(|(earlier, _)| earlier == name) {
            let twice = InvalidSetting::Twice { name: shorten(name) };
            return Err(Refusal::new(Why::InvalidRequest, twice.to_string()));
        }
        config.push((name.clone(), value.clone()));
    }
    Ok(CreateTopic { id, name: topic.name.clone(), replicas, config, automatic: topic.automatic })
}

/// A random id in the form of a version 4 UUID, so that it is neither of Kafka's reserved ones.
fn draw_topic_id(entropy: &mut Xoshiro256PlusPlus) -> TopicId {
    let random = (u128::from(entropy.next_u64()) << 64) | u128::from(entropy.next_u64());
    let version = (random & !(0xf << 76)) | (0x4 << 76);
    TopicId((version & !(0x3 << 62)) | (0x2 << 62))
}

fn new_replicas(
    topic: &NewTopic,
    id: TopicId,
    room: usize,
    basis: &Basis<'_>,
    site: &Site,
) -> Result<Vec<Vec<NodeId>>, Refusal> {
    if !topic.assignment.is_empty() {
        return assigned_replicas(topic, room);
    }
    let count = topic.partitions.unwrap_or(basis.defaults.partitions);
    if count == 0 {
        return Err(Refusal::new(Why::InvalidPartitions, "a topic needs at least one partition"));
    }
    let count = within(usize::try_from(count).unwrap_or(usize::MAX), room)?;
    let factor = usize::from(topic.replication_factor.unwrap_or(basis.defaults.replication_factor));
    site.place(basis.placement, &NewPartitions { topic: id, first: PartitionIndex(0), count, factor })
}

/// The nodes that take replicas, and what they hold when the request's topics are there.
struct Site {
    nodes: Vec<NodeView>,
    load: Load,
}

impl Site {
    fn new(image: &Image) -> Self {
        let nodes = image.nodes.values().filter(|node| node.takes_replicas());
        let nodes = nodes.map(|node| NodeView { rack: node.rack.clone(), ..NodeView::new(node.id) });
        let mut load = Load::default();
        for (node, held) in image.loads() {
            load.put(node, held);
        }
        Self { nodes: nodes.collect(), load }
    }

    fn place(&self, placement: &Placement, new: &NewPartitions) -> Result<Vec<Vec<NodeId>>, Refusal> {
        placement.place(&self.nodes, &self.load, new).map_err(|error| {
            let why = match error {
                PlacementError::NoReplicas | PlacementError::TooFewNodes { .. } => {
                    Why::InvalidReplicationFactor
                }
                PlacementError::NoRoom { .. } | PlacementError::TooManyNodes => Why::LimitReached,
                _ => Why::InvalidRequest,
            };
            Refusal::new(why, error.to_string())
        })
    }

    fn add(&mut self, replicas: &[Vec<NodeId>]) {
        replicas.iter().for_each(|set| self.load.add(set));
    }
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

pub(super) fn partitions(topics: &[MorePartitions], basis: &mut Basis<'_>) -> Plan {
    let mut once = Once::new(topics.iter().map(|t| &t.topic));
    let mut room = PARTITIONS_PER_REQUEST_MAX;
    let mut plan = Plan::empty(Kind::CreatePartitions, topics.len());
    let mut pack = Pack::new(Command::CreatePartitions);
    let mut site = Site::new(basis.image);
    for (slot, more) in topics.iter().enumerate() {
        let checked =
            once.check(&more.topic, "a topic").and_then(|()| more_partitions(more, room, basis, &site));
        let more = match checked {
            Ok(more) => more,
            Err(refusal) => {
                plan.refuse(slot, refusal);
                continue;
            }
        };
        let (weight, partitions) = (more.weight(), more.replicas.len());
        room -= partitions;
        site.add(&more.replicas);
        if weight <= STEP_BYTES_MAX && partitions <= STEP_PARTITIONS_MAX {
            pack.add(&mut plan, slot, more, weight, partitions);
            continue;
        }
        pack.finish(&mut plan);
        let (staged, replicas) = plan.stage(basis.node, more.topic, slot, more.replicas);
        let partitions = replicas.len();
        let more = CreatePartitions { replicas, ..more };
        plan.push(Command::GrowStaged { by: basis.node, staged, more }, vec![slot], partitions);
    }
    pack.finish(&mut plan);
    plan
}

fn more_partitions(
    more: &MorePartitions,
    room: usize,
    basis: &Basis<'_>,
    site: &Site,
) -> Result<CreatePartitions, Refusal> {
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
    let first = PartitionIndex(u32::try_from(had).expect("bounded by PARTITIONS_PER_TOPIC_MAX"));
    let replicas = if more.assignment.is_empty() {
        site.place(basis.placement, &NewPartitions { topic: id, first, count, factor })?
    } else if more.assignment.len() == count && more.assignment.iter().all(|set| set.len() == factor) {
        more.assignment.clone()
    } else {
        let words = format!("{count} new partitions with {factor} replicas each are to be assigned");
        return Err(Refusal::new(Why::InvalidAssignment, words));
    };
    Ok(CreatePartitions { topic: id, first, replicas })
}
