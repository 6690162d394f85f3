//! Plans new topics and new partitions: ids, replicas and settings.
//!
//! Control core, pure.

use highwater_shards::ids::TopicId;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::RngCore;

use super::*;
use crate::control::limits::{PARTITIONS_PER_REQUEST_MAX, REPLICATION_FACTOR_MAX};
use crate::control::metadata::apply::PARTITIONS_PER_TOPIC_MAX;
use crate::control::metadata::command::{CreatePartitions, CreateTopic};
use crate::control::metadata::topic_config::shorten;
use crate::control::request::{MorePartitions, NewTopic};

pub(super) fn topics(topics: &[NewTopic], basis: &mut Basis<'_>) -> Plan {
    let mut once = Once::new(topics.iter().map(|t| &t.name));
    let mut room = PARTITIONS_PER_REQUEST_MAX;
    let mut plan = Plan::empty(Kind::CreateTopics, topics.len());
    let mut pack = Pack::new(Command::CreateTopics);
    for (slot, topic) in topics.iter().enumerate() {
        let new = match once.check(&topic.name, "a topic").and_then(|()| new_topic(topic, room, basis)) {
            Ok(new) => new,
            Err(refusal) => {
                plan.refuse(slot, refusal);
                continue;
            }
        };
        let (weight, partitions) = (new.weight(), new.replicas.len());
        room -= partitions;
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

fn new_topic(topic: &NewTopic, room: usize, basis: &mut Basis<'_>) -> Result<CreateTopic, Refusal> {
    let replicas = new_replicas(topic, room, basis)?;
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
    Ok(CreateTopic {
        id: draw_topic_id(basis.entropy),
        name: topic.name.clone(),
        replicas,
        config,
        automatic: topic.automatic,
    })
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
    let placed = place(basis.image, start, count, factor).ok_or_else(|| {
        let nodes = basis.image.nodes.values().filter(|n| n.takes_replicas()).count();
        let words = match factor {
            0 => "a replication factor of 0: each partition needs a replica".to_owned(),
            _ => format!(
                "a replication factor of {factor} needs as many nodes; {nodes} of the cluster can be used"
            ),
        };
        Refusal::new(Why::InvalidReplicationFactor, words)
    })?;
    check_factor(factor)?;
    Ok(placed)
}

fn check_factor(factor: usize) -> Result<(), Refusal> {
    if factor <= REPLICATION_FACTOR_MAX {
        return Ok(());
    }
    let words = format!(
        "a replication factor of {factor}: this release places partitions on several nodes, but keeps each on one \
         node only ({REPLICATION_FACTOR_MAX})"
    );
    Err(Refusal::new(Why::InvalidReplicationFactor, words))
}

/// Replicas for `count` partitions, `factor` each, on nodes that take them: round the nodes from `start` on, so that
/// leaders and followers spread evenly. `None` when there are fewer nodes than that.
pub(super) fn place(image: &Image, start: u64, count: usize, factor: usize) -> Option<Vec<Vec<NodeId>>> {
    let nodes: Vec<NodeId> = image.nodes.values().filter(|n| n.takes_replicas()).map(|n| n.id).collect();
    if factor == 0 || factor > nodes.len() {
        return None;
    }
    let start = usize::try_from(start % nodes.len() as u64).expect("less than the number of nodes");
    let replicas =
        |partition: usize| (0..factor).map(|r| nodes[(start + partition + r) % nodes.len()]).collect();
    Some((0..count).map(replicas).collect())
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
    check_factor(first.len())?;
    Ok(sets.into_values().cloned().collect())
}

pub(super) fn partitions(topics: &[MorePartitions], basis: &mut Basis<'_>) -> Plan {
    let mut once = Once::new(topics.iter().map(|t| &t.topic));
    let mut room = PARTITIONS_PER_REQUEST_MAX;
    let mut plan = Plan::empty(Kind::CreatePartitions, topics.len());
    let mut pack = Pack::new(Command::CreatePartitions);
    for (slot, more) in topics.iter().enumerate() {
        let checked = once.check(&more.topic, "a topic").and_then(|()| more_partitions(more, room, basis));
        let more = match checked {
            Ok(more) => more,
            Err(refusal) => {
                plan.refuse(slot, refusal);
                continue;
            }
        };
        let (weight, partitions) = (more.weight(), more.replicas.len());
        room -= partitions;
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
    basis: &mut Basis<'_>,
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
    let replicas = if more.assignment.is_empty() {
        place_on_nodes(count, factor, basis)?
    } else if more.assignment.len() == count && more.assignment.iter().all(|set| set.len() == factor) {
        more.assignment.clone()
    } else {
        let words = format!("{count} new partitions with {factor} replicas each are to be assigned");
        return Err(Refusal::new(Why::InvalidAssignment, words));
    };
    let first = PartitionIndex(u32::try_from(had).expect("bounded by PARTITIONS_PER_TOPIC_MAX"));
    Ok(CreatePartitions { topic: id, first, replicas })
}
