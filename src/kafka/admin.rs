//! CreateTopics, DeleteTopics and CreatePartitions: from the wire to typed requests of the control core and back.
//! What the wire can say and a typed request cannot is refused here; everything else is the control core's to judge.
//!
//! Pure; on the shard core that the connection came to.

use std::collections::BTreeMap;
use std::time::Duration;

use highwater_shards::front::Cx;
use highwater_shards::ids::{NodeId, PartitionIndex, TopicId};

use super::configs::{self, SOURCE_TOPIC};
use super::errors::{ErrorCode, refused};
use super::messages::admin::{
    CreatableTopic, CreatableTopicConfigs, CreatableTopicResult, CreatePartitionsRequest,
    CreatePartitionsResponse, CreatePartitionsTopic, CreatePartitionsTopicResult, CreateTopicsRequest,
    CreateTopicsResponse, DeletableTopicResult, DeleteTopicState, DeleteTopicsRequest, DeleteTopicsResponse,
};
use super::route::Brokers;
use super::session::{Header, Kafka, Other, Step};
use super::wire::{DecodeError, Reader};
use crate::control::metadata::image::Image;
use crate::control::metadata::topic_config;
use crate::control::request::{
    CreatedTopic, MorePartitions, NewTopic, Refusal, Reply, Request, TopicRef, Why,
};

/// The answer as far as it is known; `asked` are the places in it that the control core is to fill, in order.
#[derive(Debug)]
pub(super) enum Waiting {
    Create { response: CreateTopicsResponse, asked: Vec<usize> },
    Delete { response: DeleteTopicsResponse, asked: Vec<usize> },
    Partitions { response: CreatePartitionsResponse, asked: Vec<usize> },
}

fn timeout(ms: i32) -> Duration {
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
    let mut response = CreateTopicsResponse::default();
    let (mut topics, mut asked) = (Vec::new(), Vec::new());
    for topic in &request.topics {
        let mut result = CreatableTopicResult {
            name: topic.name.clone(),
            error_message: None,
            ..CreatableTopicResult::default()
        };
        let new = if counts[topic.name.as_str()] > 1 {
            Err(invalid(Why::InvalidRequest, "the topic stands more than once in the request"))
        } else {
            new_topic(brokers, topic)
        };
        match new {
            Ok(new) => {
                topics.push(new);
                asked.push(response.topics.len());
            }
            Err(refusal) => refuse_topic(kafka, header, &mut result, refusal),
        }
        response.topics.push(result);
    }
    if topics.is_empty() {
        return Ok(header.answer(&response));
    }
    let ask = Request::CreateTopics {
        topics,
        validate_only: request.validate_only,
        timeout: timeout(request.timeout_ms),
    };
    cx.ask(header.whole(), ask);
    Ok(Step::Wait(Other::Topics(Box::new(Waiting::Create { response, asked }))))
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

fn replicas(brokers: Brokers<'_>, ids: &[i32]) -> Result<Vec<NodeId>, Refusal> {
    ids.iter()
        .map(|&id| {
            brokers
                .node(id)
                .ok_or_else(|| invalid(Why::InvalidAssignment, "a broker id in the assignment is negative"))
        })
        .collect()
}

fn refuse_topic(kafka: &mut Kafka, header: &Header, result: &mut CreatableTopicResult, refusal: Refusal) {
    let (code, message) = refused(refusal);
    kafka.stats.error(header.api, code);
    result.error_code = code.wire();
    result.error_message = message;
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
    _: &mut Kafka,
    cx: &mut Cx<'_, Kafka>,
    header: &Header,
    r: &mut Reader<'_>,
) -> Result<Step, DecodeError> {
    let request: DeleteTopicsRequest = header.body(r)?;
    let by_name = request.topic_names.into_iter();
    let by_name = by_name.map(|name| DeleteTopicState { name: Some(name), ..DeleteTopicState::default() });
    let mut response = DeleteTopicsResponse::default();
    let (mut topics, mut asked) = (Vec::new(), Vec::new());
    for DeleteTopicState { name, topic_id } in request.topics.into_iter().chain(by_name) {
        let mut result =
            DeletableTopicResult { name: name.clone(), topic_id, ..DeletableTopicResult::default() };
        match (name, topic_id) {
            (Some(name), TopicId(0)) => {
                topics.push(TopicRef::Name(name));
                asked.push(response.responses.len());
            }
            (None, TopicId(1..)) => {
                topics.push(TopicRef::Id(topic_id));
                asked.push(response.responses.len());
            }
            _ => {
                result.error_code = ErrorCode::InvalidRequest.wire();
                result.error_message = Some("a topic is named by either its name or its id".to_owned());
            }
        }
        response.responses.push(result);
    }
    if topics.is_empty() {
        return Ok(header.answer(&response));
    }
    cx.ask(header.whole(), Request::DeleteTopics { topics, timeout: timeout(request.timeout_ms) });
    Ok(Step::Wait(Other::Topics(Box::new(Waiting::Delete { response, asked }))))
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
    let mut response = CreatePartitionsResponse::default();
    let (mut topics, mut asked) = (Vec::new(), Vec::new());
    for topic in &request.topics {
        let mut result = CreatePartitionsTopicResult {
            name: topic.name.clone(),
            ..CreatePartitionsTopicResult::default()
        };
        let more = if counts[topic.name.as_str()] > 1 {
            Err(invalid(Why::InvalidRequest, "the topic stands more than once in the request"))
        } else {
            more_partitions(brokers, topic)
        };
        match more {
            Ok(more) => {
                topics.push(more);
                asked.push(response.results.len());
            }
            Err(refusal) => refuse_partitions(kafka, header, &mut result, refusal),
        }
        response.results.push(result);
    }
    if topics.is_empty() {
        return Ok(header.answer(&response));
    }
    let ask = Request::CreatePartitions {
        topics,
        validate_only: request.validate_only,
        timeout: timeout(request.timeout_ms),
    };
    cx.ask(header.whole(), ask);
    Ok(Step::Wait(Other::Topics(Box::new(Waiting::Partitions { response, asked }))))
}

fn more_partitions(brokers: Brokers<'_>, topic: &CreatePartitionsTopic) -> Result<MorePartitions, Refusal> {
    let total = u32::try_from(topic.count)
        .map_err(|_| invalid(Why::InvalidPartitions, "the number of partitions is negative"))?;
    let assignments = topic.assignments.iter().flatten();
    let assignment = assignments.map(|a| replicas(brokers, &a.broker_ids)).collect::<Result<_, _>>()?;
    Ok(MorePartitions { topic: topic.name.clone(), total, assignment })
}

fn refuse_partitions(
    kafka: &mut Kafka,
    header: &Header,
    result: &mut CreatePartitionsTopicResult,
    refusal: Refusal,
) {
    let (code, message) = refused(refusal);
    kafka.stats.error(header.api, code);
    result.error_code = code.wire();
    result.error_message = message;
}

pub(super) fn on_reply(
    kafka: &mut Kafka,
    image: &Image,
    header: &Header,
    waiting: Waiting,
    reply: Reply,
) -> Step {
    match (waiting, reply) {
        (Waiting::Create { mut response, asked }, Reply::CreateTopics(results)) => {
            for (at, result) in paired(asked, results) {
                match result {
                    Ok(topic) => created(kafka, image, &mut response.topics[at], topic),
                    Err(refusal) => refuse_topic(kafka, header, &mut response.topics[at], refusal),
                }
            }
            header.answer(&response)
        }
        (Waiting::Delete { mut response, asked }, Reply::DeleteTopics(results)) => {
            for (at, result) in paired(asked, results) {
                let out = &mut response.responses[at];
                match result {
                    Ok(deleted) => (out.name, out.topic_id) = (Some(deleted.name), deleted.id),
                    Err(refusal) => {
                        let (code, message) = refused(refusal);
                        kafka.stats.error(header.api, code);
                        (out.error_code, out.error_message) = (code.wire(), message);
                    }
                }
            }
            header.answer(&response)
        }
        (Waiting::Partitions { mut response, asked }, Reply::CreatePartitions(results)) => {
            for (at, result) in paired(asked, results) {
                if let Err(refusal) = result {
                    refuse_partitions(kafka, header, &mut response.results[at], refusal);
                }
            }
            header.answer(&response)
        }
        _ => unreachable!("the reply is that of the request's name"),
    }
}

/// Each result with its place in the answer.
pub(super) fn paired<T>(asked: Vec<usize>, results: Vec<T>) -> impl Iterator<Item = (usize, T)> {
    assert_eq!(asked.len(), results.len(), "one result for each topic or resource");
    asked.into_iter().zip(results)
}
