//! CreateTopics, DeleteTopics and CreatePartitions: from the wire to typed requests of the control core and back.
//! What the wire can say and a typed request cannot is refused here; everything else is the control core's to judge.
//!
//! Pure; on the shard core that the connection came to.

use std::collections::BTreeMap;
use std::time::Duration;

use highwater_shards::front::Cx;
use highwater_shards::ids::{NodeId, PartitionIndex, TopicId};

use super::asking::Asking;
use super::changes::Asked;
use super::configs::{self, SOURCE_TOPIC};
use super::messages::admin::{
    CreatableTopic, CreatableTopicConfigs, CreatableTopicResult, CreatePartitionsRequest,
    CreatePartitionsResponse, CreatePartitionsTopic, CreatePartitionsTopicResult, CreateTopicsRequest,
    CreateTopicsResponse, DeletableTopicResult, DeleteTopicState, DeleteTopicsRequest, DeleteTopicsResponse,
};
use super::route::Brokers;
use super::session::{Header, Kafka, Step};
use super::wire::{DecodeError, Reader};
use crate::control::metadata::image::Image;
use crate::control::metadata::topic_config;
use crate::control::request::{
    CreatedTopic, DeletedTopic, MorePartitions, NewTopic, Refusal, Reply, Request, TopicRef, Why,
};

/// The answer as far as it is known.
#[derive(Debug)]
pub(super) enum Waiting {
    Create(Asking<CreatableTopicResult>),
    Delete(Asking<DeletableTopicResult>),
    Partitions(Asking<CreatePartitionsTopicResult>),
}

pub(super) fn timeout(ms: i32) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

fn invalid(why: Why, message: &str) -> Refusal {
    Refusal::new(why, message)
}

/// Which names stand more than once in a request: Kafka refuses all of them, as their order means nothing.
fn counted<'a>(names: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    counts
}

pub(super) fn create_topics(
    kafka: &mut Kafka,
    cx: &mut Cx<'_, Kafka>,
    header: &Header,
    r: &mut Reader<'_>,
) -> Result<Step, DecodeError> {
    let request: CreateTopicsRequest = header.body(r)?;
    let brokers = Brokers { image: cx.view, this: kafka.config.node };
    let counts = counted(request.topics.iter().map(|t| t.name.as_str()));
    let (mut asking, mut topics) = (Asking::new(), Vec::new());
    for topic in &request.topics {
        let result = CreatableTopicResult {
            name: topic.name.clone(),
            error_message: None,
            ..CreatableTopicResult::default()
        };
        let new = if counts[topic.name.as_str()] > 1 {
            Err(invalid(Why::InvalidRequest, "the topic stands more than once in the request"))
        } else {
            new_topic(brokers, topic)
        };
        asking.put(kafka, header, result, new, &mut topics);
    }
    if topics.is_empty() {
        return Ok(header.answer(&topics_created(asking.known())));
    }
    let ask = Request::CreateTopics {
        topics,
        validate_only: request.validate_only,
        timeout: timeout(request.timeout_ms),
    };
    cx.ask(header.whole(), ask);
    Ok(Step::Ask(Asked::Topics(Box::new(Waiting::Create(asking)))))
}

fn topics_created(topics: Vec<CreatableTopicResult>) -> CreateTopicsResponse {
    CreateTopicsResponse { topics, ..CreateTopicsResponse::default() }
}

fn new_topic(brokers: Brokers<'_>, topic: &CreatableTopic) -> Result<NewTopic, Refusal> {
    let given = topic.num_partitions != -1 || topic.replication_factor != -1;
    if given && !topic.assignments.is_empty() {
        let words = "with an assignment of replicas, the counts of partitions and replicas must be -1";
        return Err(invalid(Why::InvalidRequest, words));
    }
    let partitions = match topic.num_partitions {
        -1 => None,
        n @ 1.. => Some(n.unsigned_abs()),
        _ => {
            return Err(invalid(
                Why::InvalidPartitions,
                "a topic has at least one partition (-1: the default)",
            ));
        }
    };
    let replication_factor = match topic.replication_factor {
        -1 => None,
        n @ 1.. => Some(n.unsigned_abs()),
        _ => {
            let words = "a partition has at least one replica (-1: the default)";
            return Err(invalid(Why::InvalidReplicationFactor, words));
        }
    };
    let mut assignment = Vec::with_capacity(topic.assignments.len());
    for assigned in &topic.assignments {
        let index = u32::try_from(assigned.partition_index)
            .map_err(|_| invalid(Why::InvalidAssignment, "a partition in the assignment is negative"))?;
        assignment.push((PartitionIndex(index), replicas(brokers, &assigned.broker_ids)?));
    }
    Ok(NewTopic {
        name: topic.name.clone(),
        partitions,
        replication_factor,
        assignment,
        config: topic.configs.iter().map(|c| (c.name.clone(), c.value.clone())).collect(),
        automatic: false,
    })
}

pub(super) fn replicas(brokers: Brokers<'_>, ids: &[i32]) -> Result<Vec<NodeId>, Refusal> {
    ids.iter()
        .map(|&id| {
            brokers
                .node(id)
                .ok_or_else(|| invalid(Why::InvalidAssignment, "a broker id in the assignment is negative"))
        })
        .collect()
}

fn created(kafka: &Kafka, image: &Image, result: &mut CreatableTopicResult, topic: CreatedTopic) {
    result.topic_id = topic.id;
    result.num_partitions = i32::try_from(topic.partitions).unwrap_or(i32::MAX);
    result.replication_factor = i16::try_from(topic.replication_factor).unwrap_or(i16::MAX);
    result.configs = Some(match image.topic_by_id(topic.id) {
        Some(made) => topic_config::describe(made, image, &kafka.config.topic_defaults)
            .into_iter()
            .map(|entry| CreatableTopicConfigs {
                name: entry.name.to_owned(),
                value: Some(entry.value),
                config_source: configs::source(entry.source),
                ..CreatableTopicConfigs::default()
            })
            .collect(),
        // It was only to be checked.
        None => topic
            .config
            .into_iter()
            .map(|(name, value)| CreatableTopicConfigs {
                name,
                value: Some(value),
                config_source: SOURCE_TOPIC,
                ..CreatableTopicConfigs::default()
            })
            .collect(),
    });
}

pub(super) fn delete_topics(
    kafka: &mut Kafka,
    cx: &mut Cx<'_, Kafka>,
    header: &Header,
    r: &mut Reader<'_>,
) -> Result<Step, DecodeError> {
    let request: DeleteTopicsRequest = header.body(r)?;
    let by_name = request.topic_names.into_iter();
    let by_name = by_name.map(|name| DeleteTopicState { name: Some(name), ..DeleteTopicState::default() });
    let (mut asking, mut topics) = (Asking::new(), Vec::new());
    for DeleteTopicState { name, topic_id } in request.topics.into_iter().chain(by_name) {
        let result = DeletableTopicResult { name: name.clone(), topic_id, ..DeletableTopicResult::default() };
        let topic = match (name, topic_id) {
            (Some(name), TopicId(0)) => Ok(TopicRef::Name(name)),
            (None, TopicId(1..)) => Ok(TopicRef::Id(topic_id)),
            _ => Err(invalid(Why::InvalidRequest, "a topic is named by either its name or its id")),
        };
        asking.put(kafka, header, result, topic, &mut topics);
    }
    if topics.is_empty() {
        return Ok(header.answer(&topics_deleted(asking.known())));
    }
    cx.ask(header.whole(), Request::DeleteTopics { topics, timeout: timeout(request.timeout_ms) });
    Ok(Step::Ask(Asked::Topics(Box::new(Waiting::Delete(asking)))))
}

fn topics_deleted(responses: Vec<DeletableTopicResult>) -> DeleteTopicsResponse {
    DeleteTopicsResponse { responses, ..DeleteTopicsResponse::default() }
}

pub(super) fn create_partitions(
    kafka: &mut Kafka,
    cx: &mut Cx<'_, Kafka>,
    header: &Header,
    r: &mut Reader<'_>,
) -> Result<Step, DecodeError> {
    let request: CreatePartitionsRequest = header.body(r)?;
    let brokers = Brokers { image: cx.view, this: kafka.config.node };
    let counts = counted(request.topics.iter().map(|t| t.name.as_str()));
    let (mut asking, mut topics) = (Asking::new(), Vec::new());
    for topic in &request.topics {
        let result = CreatePartitionsTopicResult {
            name: topic.name.clone(),
            ..CreatePartitionsTopicResult::default()
        };
        let more = if counts[topic.name.as_str()] > 1 {
            Err(invalid(Why::InvalidRequest, "the topic stands more than once in the request"))
        } else {
            more_partitions(brokers, topic)
        };
        asking.put(kafka, header, result, more, &mut topics);
    }
    if topics.is_empty() {
        return Ok(header.answer(&partitions_created(asking.known())));
    }
    let ask = Request::CreatePartitions {
        topics,
        validate_only: request.validate_only,
        timeout: timeout(request.timeout_ms),
    };
    cx.ask(header.whole(), ask);
    Ok(Step::Ask(Asked::Topics(Box::new(Waiting::Partitions(asking)))))
}

fn partitions_created(results: Vec<CreatePartitionsTopicResult>) -> CreatePartitionsResponse {
    CreatePartitionsResponse { results, ..CreatePartitionsResponse::default() }
}

fn more_partitions(brokers: Brokers<'_>, topic: &CreatePartitionsTopic) -> Result<MorePartitions, Refusal> {
    let total = u32::try_from(topic.count)
        .map_err(|_| invalid(Why::InvalidPartitions, "the number of partitions is negative"))?;
    let assignments = topic.assignments.iter().flatten();
    let assignment = assignments.map(|a| replicas(brokers, &a.broker_ids)).collect::<Result<_, _>>()?;
    Ok(MorePartitions { topic: topic.name.clone(), total, assignment })
}

pub(super) fn on_reply(
    kafka: &mut Kafka,
    image: &Image,
    header: &Header,
    waiting: Waiting,
    reply: Reply,
) -> Step {
    match (waiting, reply) {
        (Waiting::Create(asking), Reply::CreateTopics(results)) => {
            let done = |kafka: &Kafka, out: &mut _, topic| created(kafka, image, out, topic);
            header.answer(&topics_created(asking.fill(kafka, header, results, done)))
        }
        (Waiting::Delete(asking), Reply::DeleteTopics(results)) => {
            let done = |_: &Kafka, out: &mut DeletableTopicResult, deleted: DeletedTopic| {
                (out.name, out.topic_id) = (Some(deleted.name), deleted.id);
            };
            header.answer(&topics_deleted(asking.fill(kafka, header, results, done)))
        }
        (Waiting::Partitions(asking), Reply::CreatePartitions(results)) => {
            header.answer(&partitions_created(asking.fill(kafka, header, results, |_, _, ()| {})))
        }
        _ => unreachable!("the reply is that of the request's name"),
    }
}
