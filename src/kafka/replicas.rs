//! AlterPartitionReassignments, ListPartitionReassignments and ElectLeaders: where replicas are to be, how far that has
//! come, and who is to lead (KIP-455, KIP-460).
//!
//! Pure; on the shard core that the connection came to. Changes go to the control core partition by partition; what is
//! under way is answered from the image.

use highwater_shards::front::Cx;
use highwater_shards::ids::PartitionIndex;

use super::admin::{replicas, timeout};
use super::asking::{Asking, Element};
use super::errors::{ErrorCode, refused};
use super::messages::replicas::{
    AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse, ElectLeadersRequest,
    ElectLeadersResponse, ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse,
    OngoingPartitionReassignment, OngoingTopicReassignment, PartitionResult, ReassignablePartition,
    ReassignablePartitionResponse, ReassignableTopicResponse, ReplicaElectionResult,
};
use super::route::Brokers;
use super::session::{Header, Kafka, Other, Step};
use super::wire::{DecodeError, Reader};
use crate::control::metadata::image::{Image, PartitionState, Topic};
use crate::control::request::{ElectionKind, PartitionRef, Reassignment, Refusal, Reply, Request, Why};

/// The answer as far as it is known.
#[derive(Debug)]
pub(super) enum Waiting {
    Reassign {
        asking: Asking<OfPartition>,
        allow_replication_factor_change: bool,
    },
    Elect(Asking<OfPartition>),
    /// Whatever there is to elect: which partitions that are comes with the reply.
    ElectAll,
}

/// What became of one partition. Those of one topic that stand in a row are one element of the answer.
#[derive(Debug, Default)]
pub(super) struct OfPartition {
    topic: String,
    index: i32,
    error_code: i16,
    error_message: Option<String>,
}

impl Element for OfPartition {
    fn error(&mut self) -> (&mut i16, &mut Option<String>) {
        (&mut self.error_code, &mut self.error_message)
    }
}

fn by_topic<T, P>(
    all: Vec<OfPartition>,
    topic: impl Fn(String) -> T,
    push: impl Fn(&mut T, P),
    partition: impl Fn(OfPartition) -> P,
) -> Vec<T> {
    let (mut out, mut last): (Vec<T>, Option<String>) = (Vec::new(), None);
    for of in all {
        if last.as_ref() != Some(&of.topic) {
            last = Some(of.topic.clone());
            out.push(topic(of.topic.clone()));
        }
        push(out.last_mut().expect("one was just pushed"), partition(of));
    }
    out
}

fn partition_ref(topic: &str, index: i32) -> Result<PartitionRef, Refusal> {
    let index = u32::try_from(index)
        .map_err(|_| Refusal::new(Why::UnknownTopic, "the number of a partition is negative"))?;
    Ok(PartitionRef { topic: topic.to_owned(), index: PartitionIndex(index) })
}

pub(super) fn reassign(
    kafka: &mut Kafka,
    cx: &mut Cx<'_, Kafka>,
    header: &Header,
    r: &mut Reader<'_>,
) -> Result<Step, DecodeError> {
    let request: AlterPartitionReassignmentsRequest = header.body(r)?;
    let allow_replication_factor_change = request.allow_replication_factor_change;
    let brokers = Brokers { image: cx.view, this: kafka.config.node };
    let (mut asking, mut partitions) = (Asking::new(), Vec::new());
    for topic in &request.topics {
        for wish in &topic.partitions {
            let of = OfPartition {
                topic: topic.name.clone(),
                index: wish.partition_index,
                ..OfPartition::default()
            };
            let wished = reassignment(brokers, &topic.name, wish, allow_replication_factor_change);
            asking.put(kafka, header, of, wished, &mut partitions);
        }
    }
    if partitions.is_empty() {
        return Ok(header.answer(&reassigned(asking.known(), allow_replication_factor_change)));
    }
    cx.ask(header.whole(), Request::Reassign { partitions, timeout: timeout(request.timeout_ms) });
    let waiting = Waiting::Reassign { asking, allow_replication_factor_change };
    Ok(Step::Wait(Other::Replicas(Box::new(waiting))))
}

fn reassignment(
    brokers: Brokers<'_>,
    topic: &str,
    wish: &ReassignablePartition,
    allow_replication_factor_change: bool,
) -> Result<Reassignment, Refusal> {
    let partition = partition_ref(topic, wish.partition_index)?;
    let replicas = wish.replicas.as_ref().map(|ids| replicas(brokers, ids)).transpose()?;
    let state = brokers.image.topic(topic).and_then(|topic| topic.partition(partition.index));
    if let (Some(state), Some(replicas), false) = (state, &replicas, allow_replication_factor_change)
        && replicas.len() != state.replicas.len() - state.adding.len()
    {
        let words = "the replication factor would change, which the request does not allow";
        return Err(Refusal::new(Why::InvalidReplicationFactor, words));
    }
    Ok(Reassignment { partition, replicas })
}

fn reassigned(
    all: Vec<OfPartition>,
    allow_replication_factor_change: bool,
) -> AlterPartitionReassignmentsResponse {
    let responses = by_topic(
        all,
        |name| ReassignableTopicResponse { name, ..ReassignableTopicResponse::default() },
        |topic, partition| topic.partitions.push(partition),
        |of| ReassignablePartitionResponse {
            partition_index: of.index,
            error_code: of.error_code,
            error_message: of.error_message,
        },
    );
    AlterPartitionReassignmentsResponse {
        allow_replication_factor_change,
        error_message: None,
        responses,
        ..AlterPartitionReassignmentsResponse::default()
    }
}

pub(super) fn elect(
    kafka: &mut Kafka,
    cx: &mut Cx<'_, Kafka>,
    header: &Header,
    r: &mut Reader<'_>,
) -> Result<Step, DecodeError> {
    let request: ElectLeadersRequest = header.body(r)?;
    let timeout = timeout(request.timeout_ms);
    let kind = match request.election_type {
        0 => ElectionKind::Preferred,
        1 => ElectionKind::Unclean,
        _ => {
            let error_code = ErrorCode::InvalidRequest.wire();
            return Ok(header.answer(&ElectLeadersResponse { error_code, ..ElectLeadersResponse::default() }));
        }
    };
    let Some(topics) = request.topic_partitions else {
        cx.ask(header.whole(), Request::ElectLeaders { kind, partitions: None, timeout });
        return Ok(Step::Wait(Other::Replicas(Box::new(Waiting::ElectAll))));
    };
    let (mut asking, mut partitions) = (Asking::new(), Vec::new());
    for topic in &topics {
        for &index in &topic.partitions {
            let of = OfPartition { topic: topic.topic.clone(), index, ..OfPartition::default() };
            asking.put(kafka, header, of, partition_ref(&topic.topic, index), &mut partitions);
        }
    }
    if partitions.is_empty() {
        return Ok(header.answer(&elected(asking.known())));
    }
    cx.ask(header.whole(), Request::ElectLeaders { kind, partitions: Some(partitions), timeout });
    Ok(Step::Wait(Other::Replicas(Box::new(Waiting::Elect(asking)))))
}

fn elected(all: Vec<OfPartition>) -> ElectLeadersResponse {
    let results = by_topic(
        all,
        |topic| ReplicaElectionResult { topic, ..ReplicaElectionResult::default() },
        |topic, partition| topic.partition_result.push(partition),
        |of| PartitionResult {
            partition_id: of.index,
            error_code: of.error_code,
            error_message: of.error_message,
        },
    );
    ElectLeadersResponse { replica_election_results: results, ..ElectLeadersResponse::default() }
}

pub(super) fn on_reply(kafka: &mut Kafka, header: &Header, waiting: Waiting, reply: Reply) -> Step {
    match (waiting, reply) {
        (Waiting::Reassign { asking, allow_replication_factor_change }, Reply::Reassign(results)) => {
            let all = asking.fill(kafka, header, results, |_, _, ()| {});
            header.answer(&reassigned(all, allow_replication_factor_change))
        }
        (_, Reply::ElectLeaders(Err(refusal))) => {
            let (code, _) = refused(refusal);
            kafka.stats.error(header.api, code);
            let error_code = code.wire();
            header.answer(&ElectLeadersResponse { error_code, ..ElectLeadersResponse::default() })
        }
        (Waiting::Elect(asking), Reply::ElectLeaders(Ok(results))) => {
            let results = results.into_iter().map(|(_, result)| result).collect();
            header.answer(&elected(asking.fill(kafka, header, results, |_, _, ()| {})))
        }
        (Waiting::ElectAll, Reply::ElectLeaders(Ok(results))) => {
            let (mut asking, mut asked, mut known) = (Asking::new(), Vec::new(), Vec::new());
            for (partition, result) in results {
                let index = i32::try_from(partition.index.0).unwrap_or(i32::MAX);
                let of = OfPartition { topic: partition.topic, index, ..OfPartition::default() };
                asking.put(kafka, header, of, Ok(()), &mut asked);
                known.push(result);
            }
            header.answer(&elected(asking.fill(kafka, header, known, |_, _, ()| {})))
        }
        _ => unreachable!("the reply is that of the request's name"),
    }
}

pub(super) fn list(
    kafka: &Kafka,
    image: &Image,
    header: &Header,
    r: &mut Reader<'_>,
) -> Result<Step, DecodeError> {
    let request: ListPartitionReassignmentsRequest = header.body(r)?;
    let brokers = Brokers { image, this: kafka.config.node };
    let mut topics = Vec::new();
    let mut add = |topic: &Topic, indexes: &mut dyn Iterator<Item = PartitionIndex>| {
        let partitions: Vec<_> = indexes
            .filter_map(|index| Some((index, topic.partition(index)?)))
            .filter(|(_, state)| state.is_reassigned())
            .map(|(index, state)| ongoing(brokers, topic, index, state))
            .collect();
        if !partitions.is_empty() {
            topics.push(OngoingTopicReassignment { name: topic.name.to_string(), partitions });
        }
    };
    match request.topics {
        Some(asked) => {
            for asked in asked {
                if let Some(topic) = image.topic(&asked.name) {
                    let indexes = asked.partition_indexes.iter();
                    let indexes = indexes.filter_map(|&index| u32::try_from(index).ok().map(PartitionIndex));
                    add(topic, &mut { indexes });
                }
            }
        }
        None => image
            .topics()
            .for_each(|topic| add(topic, &mut (0..).map(PartitionIndex).take(topic.partitions.len()))),
    }
    Ok(header.answer(&ListPartitionReassignmentsResponse {
        error_message: None,
        topics,
        ..ListPartitionReassignmentsResponse::default()
    }))
}

fn ongoing(
    brokers: Brokers<'_>,
    topic: &Topic,
    index: PartitionIndex,
    state: &PartitionState,
) -> OngoingPartitionReassignment {
    let id = topic.partition_id(index);
    let of = |nodes: &[_]| nodes.iter().map(|&node| brokers.replica(node, id)).collect();
    OngoingPartitionReassignment {
        partition_index: i32::try_from(index.0).unwrap_or(i32::MAX),
        replicas: of(&state.replicas),
        adding_replicas: of(&state.adding),
        removing_replicas: of(&state.removing),
    }
}
