//! What must hold of control planes, whatever happens to them.
//!
//! - *images*: at one revision, every node has the image that the log makes
//! - *revisions*: what a shard is told only grows, and what it is assigned was kept for it before (I7)
//! - *leaders*: one life of one node leads in a leader epoch (I5)
//! - *answers*: each request is answered once; what was acknowledged is in the log, what was refused for want of a
//!   controller or of storage is not, and no producer id is given twice (I9)

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use highwater::control::metadata::image::Image;
use highwater::control::request::{Reply, Request, Why};
use highwater_shards::ids::{LeaderEpoch, NodeId, PartitionId, ProducerId, TopicId};
use highwater_shards::mail::Assignment;

use super::Counts;
use super::oracle::Oracle;
use crate::checkers::{Verdict, broken};

#[derive(Debug, Default)]
pub struct Checkers {
    /// Which life of which node led in an epoch.
    leaders: BTreeMap<(PartitionId, LeaderEpoch), (NodeId, u64)>,
    producers: BTreeSet<ProducerId>,
    /// Acknowledged creations, growths and deletions, to be found in the log.
    created: Vec<(String, TopicId)>,
    deleted: Vec<TopicId>,
    /// Names of topics whose creation was refused for good.
    refused: Vec<String>,
}

impl Checkers {
    pub fn image(&self, node: NodeId, image: &Image, oracle: &Oracle) -> Verdict {
        let entries = usize::try_from(image.revision.0).expect("a run has few entries");
        let mut plain = image.clone();
        plain.clear_local_shards();
        if plain == *oracle.image(entries) {
            return Ok(());
        }
        let what = format!("node {node} has another image at {} than the log makes", image.revision);
        Err(broken("images", what))
    }

    /// A shard of the node takes an assignment in.
    pub fn assigned(&mut self, node: NodeId, life: u64, assignment: &Assignment) -> Verdict {
        if assignment.leader != Some(node) {
            return Ok(());
        }
        let key = (assignment.partition, assignment.leader_epoch);
        let first = *self.leaders.entry(key).or_insert((node, life));
        if first == (node, life) {
            return Ok(());
        }
        let what = format!(
            "node {node} in life {life} leads {} in epoch {}, in which node {} in life {} led",
            key.0, key.1, first.0, first.1
        );
        Err(broken("I5 leaders", what))
    }

    /// A node answered a request.
    pub fn answered(&mut self, request: &Request, reply: Reply, counts: &mut Counts) -> Verdict {
        match (request, reply) {
            (Request::NewProducerId, Reply::NewProducerId(Ok((id, _)))) => {
                counts.producer_ids += 1;
                if !self.producers.insert(id) {
                    return Err(broken("I9 answers", format!("producer id {id} was given twice")));
                }
            }
            (Request::CreateTopics { topics, validate_only: false, .. }, Reply::CreateTopics(results)) => {
                for (topic, result) in topics.iter().zip(results) {
                    match result {
                        Ok(created) => {
                            counts.done += 1;
                            self.created.push((topic.name.clone(), created.id));
                        }
                        Err(refusal) => {
                            note(refusal.why, counts);
                            if matches!(refusal.why, Why::NoController | Why::StorageFailed) {
                                self.refused.push(topic.name.clone());
                            }
                        }
                    }
                }
            }
            (_, Reply::DeleteTopics(results)) => {
                for result in results {
                    match result {
                        Ok(deleted) => {
                            counts.done += 1;
                            self.deleted.push(deleted.id);
                        }
                        Err(refusal) => note(refusal.why, counts),
                    }
                }
            }
            (_, Reply::CreateTopics(_)) => {}
            (
                _,
                Reply::CreatePartitions(results) | Reply::AlterConfigs(results) | Reply::Reassign(results),
            ) => {
                for result in results {
                    match result {
                        Ok(()) => counts.done += 1,
                        Err(refusal) => note(refusal.why, counts),
                    }
                }
            }
            (_, Reply::ChangeNode(result) | Reply::SetFeatureLevel(result)) => match result {
                Ok(()) => counts.done += 1,
                Err(refusal) => note(refusal.why, counts),
            },
            (_, Reply::ElectLeaders(results)) => match results {
                Ok(results) => {
                    for (_, result) in results {
                        match result {
                            Ok(()) => counts.done += 1,
                            Err(refusal) => note(refusal.why, counts),
                        }
                    }
                }
                Err(refusal) => note(refusal.why, counts),
            },
            (_, Reply::NewProducerId(result)) => {
                if let Err(refusal) = result {
                    note(refusal.why, counts);
                }
            }
        }
        Ok(())
    }

    /// Holds everything that was answered against the log.
    pub fn end(&self, oracle: &Oracle) -> Verdict {
        let mut made: BTreeMap<TopicId, Arc<str>> = BTreeMap::new();
        for entries in 0..=oracle.len() {
            let image = oracle.image(entries);
            made.extend(image.topics().map(|t| (t.id, t.name.clone())));
        }
        for (name, id) in &self.created {
            if made.get(id).is_none_or(|made| **made != **name) {
                let what = format!("the creation of topic {name} was acknowledged, and is not in the log");
                return Err(broken("I9 answers", what));
            }
        }
        let names: BTreeSet<&str> = made.values().map(AsRef::as_ref).collect();
        for name in &self.refused {
            if names.contains(name.as_str()) {
                let what = format!("the creation of topic {name} was refused for good, and is in the log");
                return Err(broken("I9 answers", what));
            }
        }
        for id in &self.deleted {
            if !made.contains_key(id) || oracle.newest().topic_by_id(*id).is_some() {
                return Err(broken("I9 answers", format!("the deletion of topic {id} came undone")));
            }
        }
        Ok(())
    }
}

fn note(why: Why, counts: &mut Counts) {
    match why {
        Why::NoController => counts.no_controller += 1,
        Why::TimedOut => counts.timed_out += 1,
        _ => counts.refused += 1,
    }
}
