//! Plans reassignments and elections, partition by partition.
//!
//! Control core, pure. What of it is possible is decided where it is applied.

use super::*;
use crate::control::metadata::command::{ElectLeaders, ElectionKind, NewReplicas, ReassignTopic};
use crate::control::request::Reassignment;

/// Bytes of a topic and of an index in a command.
const TOPIC_BYTES: usize = 22;
const INDEX_BYTES: usize = 5;

pub(super) fn reassign(partitions: &[Reassignment], basis: &Basis<'_>) -> Plan {
    let mut plan = Plan::empty(Kind::Reassign, partitions.len());
    let mut once = Once::new(partitions.iter().map(|wish| &wish.partition));
    let mut pack = Pack::new(Command::Reassign);
    for (slot, Reassignment { partition, replicas }) in partitions.iter().enumerate() {
        let topic = once.check(partition, "a partition").and_then(|()| known(&partition.topic, basis.image));
        match topic {
            Ok(topic) => {
                let new = NewReplicas { index: partition.index, replicas: replicas.clone() };
                let new = ReassignTopic { topic, partitions: vec![new] };
                let weight = new.weight();
                pack.add(&mut plan, slot, new, weight, 1);
            }
            Err(refusal) => plan.refuse(slot, refusal),
        }
    }
    pack.finish(&mut plan);
    plan
}

pub(super) fn elect(kind: ElectionKind, partitions: Option<&[PartitionRef]>, basis: &Basis<'_>) -> Plan {
    let all = match partitions {
        Some(partitions) => partitions.to_vec(),
        None => all_to_elect(kind, basis.image),
    };
    let mut plan = Plan::empty(Kind::ElectLeaders, all.len());
    let mut once = Once::new(all.iter());
    let command: fn(Vec<_>) -> Command = match kind {
        ElectionKind::Preferred => {
            |topics| Command::ElectLeaders(ElectLeaders { kind: ElectionKind::Preferred, topics })
        }
        ElectionKind::Unclean => {
            |topics| Command::ElectLeaders(ElectLeaders { kind: ElectionKind::Unclean, topics })
        }
    };
    let mut pack = Pack::new(command);
    for (slot, partition) in all.iter().enumerate() {
        match once.check(partition, "a partition").and_then(|()| known(&partition.topic, basis.image)) {
            Ok(topic) => {
                pack.add(&mut plan, slot, (topic, vec![partition.index]), TOPIC_BYTES + INDEX_BYTES, 1);
            }
            Err(refusal) => plan.refuse(slot, refusal),
        }
    }
    pack.finish(&mut plan);
    plan.partitions = all;
    plan
}

/// As many as one request may name: who asks for all asks again.
fn all_to_elect(kind: ElectionKind, image: &Image) -> Vec<PartitionRef> {
    let mut all = Vec::new();
    for topic in image.topics() {
        for (index, state) in (0..).map(PartitionIndex).zip(&topic.partitions) {
            let is_wanted = match kind {
                ElectionKind::Preferred => {
                    state.leader.is_some() && state.leader != state.replicas.first().copied()
                }
                ElectionKind::Unclean => state.leader.is_none(),
            };
            if is_wanted && all.len() < ITEMS_MAX {
                all.push(PartitionRef { topic: topic.name.to_string(), index });
            }
        }
    }
    all
}
