//! ApiVersions, Metadata and DescribeCluster: what a client asks to find its way. Answered from the shard's copy of
//! the image; only topics that are to be made on the way are asked of the control core.
//!
//! Pure; on the shard core that the connection came to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use highwater_shards::front::Cx;
use highwater_shards::ids::{PartitionIndex, TopicId};

use super::api::ApiKey;
use super::errors::ErrorCode;
use super::messages::api_versions::{ApiVersion, ApiVersionsRequest, ApiVersionsResponse};
use super::messages::cluster::{DescribeClusterBroker, DescribeClusterRequest, DescribeClusterResponse};
use super::messages::metadata::{
    MetadataRequest, MetadataRequestTopic, MetadataResponse, MetadataResponseBroker,
    MetadataResponsePartition, MetadataResponseTopic,
};
use super::route::Brokers;
use super::session::{Header, Kafka, Other, Step};
use super::wire::{DecodeError, Reader};
use crate::control::metadata::image::{Image, Topic};
use crate::control::metadata::topic_name;
use crate::control::request::{NewTopic, Refusal, Reply, Request};

/// How long a Metadata request waits for the topics that it made.
const AUTO_CREATE_TIMEOUT: Duration = Duration::from_secs(10);

/// Every operation on a topic (KIP-430), as bits by Kafka's numbers of them: there is no authorization yet.
const TOPIC_OPERATIONS: i32 = bits(&[3, 4, 5, 6, 7, 8, 10, 11]);
/// Every operation on the cluster.
const CLUSTER_OPERATIONS: i32 = bits(&[5, 7, 8, 9, 10, 11, 12]);

const fn bits(numbers: &[u32]) -> i32 {
    let mut all = 0;
    let mut at = 0;
    while at < numbers.len() {
        all |= 1 << numbers[at];
        at += 1;
    }
    all
}

pub(super) fn api_versions(header: &Header, r: &mut Reader<'_>) -> Result<Step, DecodeError> {
    let _: ApiVersionsRequest = header.body(r)?;
    let api_keys = ApiKey::ALL.iter().copied().map(version_range).collect();
    Ok(header.answer(&ApiVersionsResponse { api_keys, ..ApiVersionsResponse::default() }))
}

/// A client from the future learns which versions of ApiVersions itself there are, in the oldest encoding (KIP-511).
pub(super) fn api_versions_unsupported(kafka: &mut Kafka, header: Header) -> Step {
    kafka.stats.error(ApiKey::ApiVersions, ErrorCode::UnsupportedVersion);
    let oldest = Header { v: ApiKey::ApiVersions.version(0), ..header };
    oldest.answer(&ApiVersionsResponse {
        error_code: ErrorCode::UnsupportedVersion.wire(),
        api_keys: vec![version_range(ApiKey::ApiVersions)],
        ..ApiVersionsResponse::default()
    })
}

fn version_range(api: ApiKey) -> ApiVersion {
    ApiVersion { api_key: api.wire(), min_version: api.version_min(), max_version: api.version_max() }
}

/// A Metadata request whose missing topics are being made.
#[derive(Debug)]
pub(super) struct Waiting {
    request: MetadataRequest,
    made: Vec<String>,
}

pub(super) fn start(
    kafka: &mut Kafka,
    cx: &mut Cx<'_, Kafka>,
    header: &Header,
    r: &mut Reader<'_>,
) -> Result<Step, DecodeError> {
    let request: MetadataRequest = header.body(r)?;
    let may_create = kafka.config.auto_create_topics && request.allow_auto_topic_creation;
    let made = if may_create { missing(&request, cx.view) } else { Vec::new() };
    if made.is_empty() {
        return Ok(answer(kafka, cx.view, header, &request, &BTreeMap::new()));
    }
    let topics = made
        .iter()
        .map(|name| NewTopic { name: name.clone(), automatic: true, ..NewTopic::default() })
        .collect();
    let ask = Request::CreateTopics { topics, validate_only: false, timeout: AUTO_CREATE_TIMEOUT };
    cx.ask(header.whole(), ask);
    Ok(Step::Wait(Other::Metadata(Box::new(Waiting { request, made }))))
}

/// The topics that the request names, that do not exist, and that may.
fn missing(request: &MetadataRequest, image: &Image) -> Vec<String> {
    let names = request.topics.iter().flatten().filter(|t| t.topic_id == TopicId::default());
    let names: BTreeSet<&str> = names.filter_map(|t| t.name.as_deref()).collect();
    let creatable = |name: &&str| image.topic(name).is_none() && topic_name::check(name).is_ok();
    names.into_iter().filter(creatable).map(str::to_owned).collect()
}

pub(super) fn on_reply(
    kafka: &mut Kafka,
    image: &Image,
    header: &Header,
    waiting: Waiting,
    reply: Reply,
) -> Step {
    let Reply::CreateTopics(results) = reply else { unreachable!("the reply is that of the request's name") };
    assert_eq!(results.len(), waiting.made.len(), "one result for each topic");
    let refused =
        waiting.made.into_iter().zip(results).filter_map(|(name, result)| Some((name, result.err()?)));
    answer(kafka, image, header, &waiting.request, &refused.collect())
}

fn answer(
    kafka: &mut Kafka,
    image: &Image,
    header: &Header,
    request: &MetadataRequest,
    refused: &BTreeMap<String, Refusal>,
) -> Step {
    let brokers = Brokers { image, this: kafka.config.node };
    let operations = |asked, all| if asked { all } else { i32::MIN };
    let topic_operations = operations(request.include_topic_authorized_operations, TOPIC_OPERATIONS);
    let describe = |topic: &Topic| MetadataResponseTopic {
        name: Some(topic.name.clone()),
        topic_id: topic.id,
        partitions: (0..).take(topic.partitions.len()).map(|at| partition(brokers, topic, at)).collect(),
        topic_authorized_operations: topic_operations,
        ..MetadataResponseTopic::default()
    };
    let listed = match &request.topics {
        Some(topics) if header.v.number > 0 || !topics.is_empty() => Some(topics),
        _ => None,
    };
    let topics = match listed {
        None => image.topics().map(|topic| describe(topic)).collect(),
        // Each topic once, however often it is named: the answer is no larger than all there is.
        Some(topics) => once(topics)
            .map(|asked| match find(asked, image, refused) {
                Ok(topic) => describe(topic),
                Err(code) => {
                    kafka.stats.error(ApiKey::Metadata, code);
                    let name = asked.name.as_deref().map(Arc::from);
                    MetadataResponseTopic {
                        error_code: code.wire(),
                        name: if header.v.number >= 12 { name } else { Some(name.unwrap_or_default()) },
                        topic_id: asked.topic_id,
                        topic_authorized_operations: topic_operations,
                        ..MetadataResponseTopic::default()
                    }
                }
            })
            .collect(),
    };
    let nodes = image.nodes.values().filter(|node| !node.fenced);
    let response = MetadataResponse {
        brokers: nodes
            .flat_map(|node| {
                Brokers::of(node).map(|(node_id, at)| MetadataResponseBroker {
                    node_id,
                    host: at.host.clone(),
                    port: at.port.into(),
                    rack: node.rack.clone(),
                })
            })
            .collect(),
        cluster_id: Some(image.cluster_id.clone()),
        controller_id: brokers.controller(),
        topics,
        cluster_authorized_operations: operations(
            request.include_cluster_authorized_operations,
            CLUSTER_OPERATIONS,
        ),
        ..MetadataResponse::default()
    };
    header.answer(&response)
}

fn once(topics: &[MetadataRequestTopic]) -> impl Iterator<Item = &MetadataRequestTopic> {
    let mut seen = BTreeSet::new();
    topics.iter().filter(move |t| seen.insert((t.topic_id, t.name.as_deref())))
}

fn find<'i>(
    asked: &MetadataRequestTopic,
    image: &'i Image,
    refused: &BTreeMap<String, Refusal>,
) -> Result<&'i Topic, ErrorCode> {
    match (&asked.name, asked.topic_id) {
        (None, TopicId(0)) => Err(ErrorCode::InvalidRequest),
        (Some(name), TopicId(0)) => match (image.topic(name), refused.get(name)) {
            (Some(topic), _) => Ok(topic),
            (None, Some(refusal)) => Err(refusal.why.into()),
            (None, None) if topic_name::check(name).is_err() => Err(ErrorCode::InvalidTopic),
            (None, None) => Err(ErrorCode::UnknownTopicOrPartition),
        },
        (_, id) => image.topic_by_id(id).map(Arc::as_ref).ok_or(ErrorCode::UnknownTopicId),
    }
}

fn partition(brokers: Brokers<'_>, topic: &Topic, index: u32) -> MetadataResponsePartition {
    let id = topic.partition_id(PartitionIndex(index));
    let state = topic.partition(id.index).expect("the caller counts the partitions");
    let leader = brokers.leader(state);
    let replicas = |nodes: &[_]| nodes.iter().map(|&node| brokers.replica(node, id)).collect();
    let offline: Vec<_> = state.replicas.iter().copied().filter(|&node| !brokers.serves(node)).collect();
    MetadataResponsePartition {
        error_code: if leader.is_some() { ErrorCode::None } else { ErrorCode::LeaderNotAvailable }.wire(),
        partition_index: i32::try_from(index).unwrap_or(i32::MAX),
        leader_id: leader.map_or(-1, |node| brokers.replica(node, id)),
        leader_epoch: state.leader_epoch.wire(),
        replica_nodes: replicas(&state.replicas),
        isr_nodes: replicas(&state.isr),
        offline_replicas: replicas(&offline),
    }
}

/// What DescribeCluster calls the two kinds of servers (KIP-919).
const ENDPOINTS_OF_BROKERS: i8 = 1;

pub(super) fn describe_cluster(
    kafka: &mut Kafka,
    image: &Image,
    header: &Header,
    r: &mut Reader<'_>,
) -> Result<Step, DecodeError> {
    let request: DescribeClusterRequest = header.body(r)?;
    let brokers = Brokers { image, this: kafka.config.node };
    if request.endpoint_type != ENDPOINTS_OF_BROKERS {
        kafka.stats.error(ApiKey::DescribeCluster, ErrorCode::MismatchedEndpointType);
        return Ok(header.answer(&DescribeClusterResponse {
            error_code: ErrorCode::MismatchedEndpointType.wire(),
            error_message: Some("this is a broker: ask for the endpoints of brokers (type 1)".to_owned()),
            endpoint_type: request.endpoint_type,
            ..DescribeClusterResponse::default()
        }));
    }
    let shown = image.nodes.values().filter(|node| request.include_fenced_brokers || !node.fenced);
    Ok(header.answer(&DescribeClusterResponse {
        cluster_id: image.cluster_id.clone(),
        controller_id: brokers.controller(),
        brokers: shown
            .flat_map(|node| {
                Brokers::of(node).map(|(broker_id, at)| DescribeClusterBroker {
                    broker_id,
                    host: at.host.clone(),
                    port: at.port.into(),
                    rack: node.rack.clone(),
                    is_fenced: node.fenced,
                })
            })
            .collect(),
        cluster_authorized_operations: if request.include_cluster_authorized_operations {
            CLUSTER_OPERATIONS
        } else {
            i32::MIN
        },
        ..DescribeClusterResponse::default()
    }))
}
