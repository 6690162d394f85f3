//! DescribeConfigs, from the image and the node's own settings, and IncrementalAlterConfigs, by the control core.
//!
//! Pure; on the shard core that the connection came to.

use std::collections::BTreeSet;

use highwater_shards::front::Cx;
use highwater_shards::ids::NodeId;

use super::asking::Asking;
use super::changes::Asked;
use super::errors::{ErrorCode, refused};
use super::messages::cluster::{
    AlterConfigsResource, AlterConfigsResourceResponse, DescribeConfigsRequest, DescribeConfigsResource,
    DescribeConfigsResourceResult, DescribeConfigsResponse, DescribeConfigsResult, DescribeConfigsSynonym,
    IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
};
use super::route::Brokers;
use super::session::{Header, Kafka, Step};
use super::wire::{DecodeError, Reader};
use crate::control::metadata::image::Image;
use crate::control::metadata::node_config;
use crate::control::metadata::topic_config::{self, ConfigEntry, ConfigKind, ConfigSource};
use crate::control::request::{
    AlterConfig, ConfigChange, ConfigOp, ConfigResource, Refusal, Reply, Request, Why,
};

/// Kafka's numbers for what has settings.
const RESOURCE_TOPIC: i8 = 2;
const RESOURCE_BROKER: i8 = 4;

/// Kafka's number for a setting of the topic itself.
pub(super) const SOURCE_TOPIC: i8 = 1;

/// Kafka's number for where a value comes from.
pub(super) fn source(source: ConfigSource) -> i8 {
    match source {
        ConfigSource::Topic => SOURCE_TOPIC,
        ConfigSource::Node => 2,
        ConfigSource::Cluster => 3,
        ConfigSource::File => 4,
        ConfigSource::Default => 5,
    }
}

fn kind(kind: ConfigKind) -> i8 {
    match kind {
        ConfigKind::Boolean => 1,
        ConfigKind::String => 2,
        ConfigKind::Int => 3,
        ConfigKind::Long => 5,
        ConfigKind::Double => 6,
        ConfigKind::List => 7,
    }
}

pub(super) fn describe(
    kafka: &mut Kafka,
    image: &Image,
    header: &Header,
    r: &mut Reader<'_>,
) -> Result<Step, DecodeError> {
    let request: DescribeConfigsRequest = header.body(r)?;
    let mut response = DescribeConfigsResponse::default();
    // Each resource once, however often it is named: the answer is no larger than all there is.
    let mut seen = BTreeSet::new();
    for resource in &request.resources {
        if !seen.insert((resource.resource_type, resource.resource_name.as_str())) {
            continue;
        }
        let mut result = DescribeConfigsResult {
            error_message: None,
            resource_type: resource.resource_type,
            resource_name: resource.resource_name.clone(),
            ..DescribeConfigsResult::default()
        };
        match entries(kafka, image, resource) {
            Ok(entries) => {
                let keys = resource.configuration_keys.as_deref().filter(|keys| !keys.is_empty());
                result.configs = entries
                    .into_iter()
                    .filter(|(entry, _)| keys.is_none_or(|keys| keys.iter().any(|key| key == entry.name)))
                    .map(|(entry, read_only)| described(&request, entry, read_only))
                    .collect();
            }
            Err(refusal) => {
                let (code, message) = refused(refusal);
                kafka.stats.error(header.api, code);
                result.error_code = code.wire();
                result.error_message = message;
            }
        }
        response.results.push(result);
    }
    Ok(header.answer(&response))
}

fn described(
    request: &DescribeConfigsRequest,
    entry: ConfigEntry,
    read_only: bool,
) -> DescribeConfigsResourceResult {
    let source = source(entry.source);
    let synonym =
        || DescribeConfigsSynonym { name: entry.name.to_owned(), value: Some(entry.value.clone()), source };
    DescribeConfigsResourceResult {
        name: entry.name.to_owned(),
        synonyms: request.include_synonyms.then(synonym).into_iter().collect(),
        value: Some(entry.value),
        read_only,
        config_source: source,
        is_sensitive: false,
        config_type: kind(entry.kind),
        documentation: request.include_documentation.then(|| entry.doc.to_owned()),
    }
}

/// All settings of a resource, each with whether it can only be read.
fn entries(
    kafka: &Kafka,
    image: &Image,
    resource: &DescribeConfigsResource,
) -> Result<Vec<(ConfigEntry, bool)>, Refusal> {
    let changeable = |entries: Vec<ConfigEntry>| entries.into_iter().map(|entry| (entry, false)).collect();
    let defaults = &kafka.config.topic_defaults;
    let name = resource.resource_name.as_str();
    match resource.resource_type {
        RESOURCE_TOPIC => {
            let unknown = || Refusal::new(Why::UnknownTopic, "there is no topic of this name");
            let topic = image.topic(name).ok_or_else(unknown)?;
            Ok(changeable(topic_config::describe(topic, image, defaults)))
        }
        RESOURCE_BROKER if name.is_empty() => Ok(changeable(topic_config::describe_cluster(image, defaults))),
        RESOURCE_BROKER => {
            let this = kafka.config.node;
            if node(kafka, image, name)? == this {
                let dynamic =
                    image.nodes.get(&this).map(|info| node_config::describe(&info.config).collect());
                let mut entries = changeable(dynamic.unwrap_or_default());
                entries.extend(node_entries(kafka, image).into_iter().map(|entry| (entry, true)));
                entries.sort_by_key(|(entry, _)| entry.name);
                return Ok(entries);
            }
            let words = format!("this is broker {this}: ask broker {name} itself for its settings");
            Err(Refusal::new(Why::InvalidRequest, words))
        }
        other => Err(no_settings(other)),
    }
}

fn no_settings(resource_type: i8) -> Refusal {
    let words =
        format!("resource type {resource_type} has no settings here, only topics (2) and brokers (4)");
    Refusal::new(Why::InvalidRequest, words)
}

fn node(kafka: &Kafka, image: &Image, broker: &str) -> Result<NodeId, Refusal> {
    let brokers = Brokers { image, this: kafka.config.node };
    let id = broker.parse().ok().and_then(|id| brokers.node(id));
    id.ok_or_else(|| Refusal::new(Why::InvalidRequest, format!("'{broker}' is not the id of a broker")))
}

/// The node's own settings that clients and tools look for, under Kafka's names.
fn node_entries(kafka: &Kafka, image: &Image) -> Vec<ConfigEntry> {
    let config = &kafka.config;
    let entry = |name, value, kind, doc| ConfigEntry { name, value, source: ConfigSource::File, kind, doc };
    let listeners = image.nodes.get(&config.node).map_or(String::new(), |node| {
        let all: Vec<_> =
            Brokers::of(node).map(|(_, at)| format!("PLAINTEXT://{}:{}", at.host, at.port)).collect();
        all.join(",")
    });
    vec![
        entry(
            "advertised.listeners",
            listeners,
            ConfigKind::List,
            "Where clients reach this node, or each of its shards when it routes by core.",
        ),
        entry(
            "auto.create.topics.enable",
            config.auto_create_topics.to_string(),
            ConfigKind::Boolean,
            "Whether asking for the metadata of a topic that does not exist makes it.",
        ),
        entry(
            "default.replication.factor",
            config.topic_defaults.replication_factor.to_string(),
            ConfigKind::Int,
            "Replicas of a new topic's partitions when its maker does not say.",
        ),
        entry(
            "fetch.max.bytes",
            config.fetch_bytes_max.to_string(),
            ConfigKind::Int,
            "The most record bytes in one answer to a fetch, but for a single larger batch.",
        ),
        entry("node.id", config.node.to_string(), ConfigKind::Int, "The number of this node in the cluster."),
        entry(
            "num.partitions",
            config.topic_defaults.partitions.to_string(),
            ConfigKind::Int,
            "Partitions of a new topic when its maker does not say.",
        ),
        entry(
            "socket.request.max.bytes",
            config.request_bytes_max.to_string(),
            ConfigKind::Int,
            "The largest request in bytes; a larger one closes the connection.",
        ),
    ]
}

pub(super) fn alter(
    kafka: &mut Kafka,
    cx: &mut Cx<'_, Kafka>,
    header: &Header,
    r: &mut Reader<'_>,
) -> Result<Step, DecodeError> {
    let request: IncrementalAlterConfigsRequest = header.body(r)?;
    let (mut asking, mut resources) = (Asking::new(), Vec::new());
    let mut seen = BTreeSet::new();
    for resource in &request.resources {
        let result = AlterConfigsResourceResponse {
            error_code: ErrorCode::None.wire(),
            error_message: None,
            resource_type: resource.resource_type,
            resource_name: resource.resource_name.clone(),
        };
        let first = seen.insert((resource.resource_type, resource.resource_name.as_str()));
        let change = if first {
            alteration(kafka, cx.view, resource)
        } else {
            Err(Refusal::new(Why::InvalidRequest, "the resource stands more than once in the request"))
        };
        asking.put(kafka, header, result, change, &mut resources);
    }
    if resources.is_empty() {
        return Ok(header.answer(&altered(asking.known())));
    }
    cx.ask(header.whole(), Request::AlterConfigs { resources, validate_only: request.validate_only });
    Ok(Step::Ask(Asked::Configs(Box::new(asking))))
}

fn altered(responses: Vec<AlterConfigsResourceResponse>) -> IncrementalAlterConfigsResponse {
    IncrementalAlterConfigsResponse { responses, ..IncrementalAlterConfigsResponse::default() }
}

fn alteration(kafka: &Kafka, image: &Image, asked: &AlterConfigsResource) -> Result<AlterConfig, Refusal> {
    let resource = match (asked.resource_type, asked.resource_name.as_str()) {
        (RESOURCE_TOPIC, name) => ConfigResource::Topic(name.to_owned()),
        (RESOURCE_BROKER, "") => ConfigResource::Cluster,
        (RESOURCE_BROKER, broker) => ConfigResource::Node(node(kafka, image, broker)?),
        (other, _) => return Err(no_settings(other)),
    };
    let mut changes = Vec::with_capacity(asked.configs.len());
    for change in &asked.configs {
        let op = match (change.config_operation, change.value.clone()) {
            (0, Some(value)) => ConfigOp::Set(value),
            (1, _) => ConfigOp::Delete,
            (2, Some(value)) => ConfigOp::Append(value),
            (3, Some(value)) => ConfigOp::Subtract(value),
            (0 | 2 | 3, None) => {
                return Err(Refusal::new(
                    Why::InvalidRequest,
                    "a setting cannot be set to null: delete it instead",
                ));
            }
            (other, _) => {
                let words =
                    format!("{other} is no way to change a setting (0 set, 1 delete, 2 append, 3 subtract)");
                return Err(Refusal::new(Why::InvalidRequest, words));
            }
        };
        changes.push(ConfigChange { key: change.name.clone(), op });
    }
    Ok(AlterConfig { resource, changes })
}

pub(super) fn on_reply(
    kafka: &mut Kafka,
    header: &Header,
    asking: Asking<AlterConfigsResourceResponse>,
    reply: Reply,
) -> Step {
    let Reply::AlterConfigs(results) = reply else { unreachable!("the reply is that of the request's name") };
    header.answer(&altered(asking.fill(kafka, header, results, |_, _, ()| {})))
}
