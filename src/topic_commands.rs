//! `highwater topic create|list|describe|delete|delete-records`: the topics of a running node, over the Kafka protocol.
//!
//! A driver on the main thread of a process without shards. It works with any node that speaks the protocol. Every
//! topic of a command is tried; what worked is printed before the command fails for what did not.

mod client;
mod delete_records;
pub(crate) mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::time::Duration;

use highwater_shards::ids::TopicId;
use serde_json::{Value, json};

use crate::cli::{CreateArgs, DeleteArgs, DescribeArgs, NodeArgs, TopicCommand};
use crate::error::{ExitStatus, Failure};
use crate::kafka::messages::admin::{
    CreatableTopic, CreatableTopicConfig, CreateTopicsRequest, DeleteTopicState, DeleteTopicsRequest,
};
use crate::kafka::messages::cluster::{DescribeConfigsRequest, DescribeConfigsResource};
use crate::kafka::messages::metadata::{
    MetadataRequest, MetadataRequestTopic, MetadataResponse, MetadataResponseTopic,
};
use crate::kafka::messages::offsets::{
    DeleteRecordsRequest, ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic,
};
use client::Client;
use table::{Align, Table, printable};

const TOPIC_EXISTS: i16 = 36;
const UNKNOWN_TOPIC: i16 = 3;
/// The wire's number for topics among the things that have settings.
const RESOURCE_TOPIC: i8 = 2;
/// The wire's number for a setting that was given to the topic itself.
const SOURCE_TOPIC: i8 = 1;
/// The wire's stand-in timestamps for the first and the next offset.
const EARLIEST: i64 = -2;
const LATEST: i64 = -1;

impl TopicCommand {
    /// Carries the command out against the node that it names; `out` is standard output.
    pub fn run(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let node = self.node();
        let mut client = Client::connect(&node.bootstrap, node.timeout())?;
        let mut offsets_of = |leader: &Leader, request: &ListOffsetsRequest| {
            let mut client = Client::connect(&leader.address, node.timeout())?;
            client.call(1, request)
        };
        match self {
            Self::Create(args) => create(&mut client, args, out),
            Self::List(args) => list(&mut client, args, out),
            Self::Describe(args) => describe(&mut client, args, &mut offsets_of, out),
            Self::Delete(args) => delete(&mut client, args, out),
            Self::DeleteRecords(args) => {
                let mut ask = |leader: &Leader, request: &DeleteRecordsRequest| {
                    let mut client = Client::connect(&leader.address, node.timeout())?;
                    client.call(0, request)
                };
                delete_records::delete_records(&mut client, args, &mut ask, out)
            }
        }
    }
}

impl NodeArgs {
    fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_s.into())
    }

    fn timeout_ms(&self) -> i32 {
        i32::try_from(self.timeout().as_millis()).unwrap_or(i32::MAX)
    }
}

fn create<S: Read + Write>(
    client: &mut Client<S>,
    args: &CreateArgs,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let configs: Vec<CreatableTopicConfig> = args
        .config
        .iter()
        .map(|(name, value)| CreatableTopicConfig { name: name.clone(), value: Some(value.clone()) })
        .collect();
    let topic = |name: &String| CreatableTopic {
        name: name.clone(),
        num_partitions: args.partitions.map_or(-1, |n| i32::try_from(n).unwrap_or(i32::MAX)),
        replication_factor: args.replication_factor.unwrap_or(-1),
        configs: configs.clone(),
        ..CreatableTopic::default()
    };
    let request = CreateTopicsRequest {
        topics: args.names.iter().map(topic).collect(),
        timeout_ms: args.node.timeout_ms(),
        validate_only: false,
    };
    // From version 4 on a node takes -1 for its own defaults.
    let answer = client.call(4, &request)?;
    let mut outcome = Outcome::new(args.node.json);
    for topic in &answer.topics {
        let name = printable(&topic.name);
        match topic.error_code {
            0 => outcome.done(
                format!("created {name}{}", counted(topic.num_partitions, "partition", ": ")),
                json!({
                    "name": topic.name, "created": true, "topic_id": topic.topic_id.to_string(),
                    "partitions": known(topic.num_partitions), "replication_factor": known(topic.replication_factor.into()),
                }),
            ),
            TOPIC_EXISTS if args.if_not_exists => {
                outcome.done(format!("{name} exists already"), json!({"name": topic.name, "created": false}));
            }
            code => outcome.failed(&name, code, topic.error_message.as_deref()),
        }
    }
    outcome.finish(&args.names, answer.topics.len(), out)
}

fn delete<S: Read + Write>(
    client: &mut Client<S>,
    args: &DeleteArgs,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let by_state =
        |name: &String| DeleteTopicState { name: Some(name.clone()), topic_id: TopicId::default() };
    let request = DeleteTopicsRequest {
        topics: args.names.iter().map(by_state).collect(),
        topic_names: args.names.clone(),
        timeout_ms: args.node.timeout_ms(),
    };
    let answer = client.call(1, &request)?;
    let mut outcome = Outcome::new(args.node.json);
    for topic in &answer.responses {
        let raw = topic.name.clone().unwrap_or_default();
        let name = printable(&raw);
        match topic.error_code {
            0 => outcome.done(format!("deleted {name}"), json!({"name": raw, "deleted": true})),
            UNKNOWN_TOPIC if args.if_exists => {
                outcome.done(format!("{name} does not exist"), json!({"name": raw, "deleted": false}));
            }
            code => outcome.failed(&name, code, topic.error_message.as_deref()),
        }
    }
    outcome.finish(&args.names, answer.responses.len(), out)
}

/// The metadata of the named topics, or of all. Asking never creates a topic.
fn metadata<S: Read + Write>(
    client: &mut Client<S>,
    names: Option<&[String]>,
) -> Result<MetadataResponse, Failure> {
    let topic =
        |name: &String| MetadataRequestTopic { name: Some(name.clone()), topic_id: TopicId::default() };
    let request = MetadataRequest {
        topics: names.map(|names| names.iter().map(topic).collect()),
        allow_auto_topic_creation: false,
        ..MetadataRequest::default()
    };
    // Before version 4 a node would create what it is asked about.
    client.call(4, &request)
}

fn list<S: Read + Write>(
    client: &mut Client<S>,
    args: &NodeArgs,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut answer = metadata(client, None)?;
    answer.topics.sort_by(|a, b| a.name.cmp(&b.name));
    let replicas =
        |topic: &MetadataResponseTopic| topic.partitions.first().map_or(0, |p| p.replica_nodes.len());
    if args.json {
        let topics: Vec<Value> = answer
            .topics
            .iter()
            .map(|topic| {
                json!({
                    "name": name_of(topic), "topic_id": topic.topic_id.to_string(),
                    "partitions": topic.partitions.len(), "replication_factor": replicas(topic),
                })
            })
            .collect();
        return print(out, &pretty(&topics.into()));
    }
    if answer.topics.is_empty() {
        return print(out, "no topics; create one with `highwater topic create NAME`\n");
    }
    let mut table =
        Table::new(&[("TOPIC", Align::Left), ("PARTITIONS", Align::Right), ("REPLICAS", Align::Right)]);
    for topic in &answer.topics {
        let cells =
            [printable(name_of(topic)), topic.partitions.len().to_string(), replicas(topic).to_string()];
        table.row(cells);
    }
    print(out, &table.render(""))
}

/// A node that leads partitions, and where it listens.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Leader {
    id: i32,
    address: String,
}

/// First and next offset of partitions, by topic and partition index.
type Offsets = BTreeMap<(String, i32), (Option<i64>, Option<i64>)>;

/// Asks one leader for offsets.
type AskOffsets<'a> =
    &'a mut dyn FnMut(
        &Leader,
        &ListOffsetsRequest,
    ) -> Result<crate::kafka::messages::offsets::ListOffsetsResponse, Failure>;

fn describe<S: Read + Write>(
    client: &mut Client<S>,
    args: &DescribeArgs,
    ask: AskOffsets<'_>,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let answer = metadata(client, Some(&args.names))?;
    let offsets = offsets(&answer, ask);
    let mut configs = topic_configs(client, &args.names)?;
    let mut outcome = Outcome::new(args.node.json);
    for topic in &answer.topics {
        let name = name_of(topic);
        if topic.error_code != 0 {
            outcome.failed(&printable(name), topic.error_code, None);
            continue;
        }
        let config = configs.remove(name).unwrap_or_default();
        outcome.done(describe_text(topic, &config, &offsets), describe_json(topic, &config, &offsets));
    }
    outcome.finish(&args.names, answer.topics.len(), out)
}

/// Everyone who may lead partitions.
fn leaders(metadata: &MetadataResponse) -> impl Iterator<Item = Leader> {
    metadata.brokers.iter().map(|broker| {
        let host = &broker.host;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        Leader { id: broker.node_id, address: format!("{host}:{}", broker.port) }
    })
}

/// Offsets need the leader of each partition. A leader that does not answer leaves its partitions out: the rest of the
/// description is still worth printing.
fn offsets(metadata: &MetadataResponse, ask: AskOffsets<'_>) -> Offsets {
    let mut found = Offsets::new();
    for leader in leaders(metadata) {
        for timestamp in [EARLIEST, LATEST] {
            let topics: Vec<ListOffsetsTopic> = metadata
                .topics
                .iter()
                .map(|topic| {
                    let led =
                        topic.partitions.iter().filter(|p| p.leader_id == leader.id && p.error_code == 0);
                    let partition = |index| ListOffsetsPartition {
                        partition_index: index,
                        timestamp,
                        ..Default::default()
                    };
                    ListOffsetsTopic {
                        name: name_of(topic).into(),
                        partitions: led.map(|p| partition(p.partition_index)).collect(),
                    }
                })
                .filter(|topic| !topic.partitions.is_empty())
                .collect();
            if topics.is_empty() {
                break;
            }
            let request = ListOffsetsRequest { replica_id: -1, topics, ..ListOffsetsRequest::default() };
            let Ok(answer) = ask(&leader, &request) else { break };
            for topic in answer.topics {
                for p in topic.partitions.iter().filter(|p| p.error_code == 0) {
                    let entry = found.entry((topic.name.clone(), p.partition_index)).or_default();
                    *(if timestamp == EARLIEST { &mut entry.0 } else { &mut entry.1 }) = Some(p.offset);
                }
            }
        }
    }
    found
}

/// The settings that were given to each topic itself, by topic.
fn topic_configs<S: Read + Write>(
    client: &mut Client<S>,
    names: &[String],
) -> Result<BTreeMap<String, BTreeMap<String, String>>, Failure> {
    let resource = |name: &String| DescribeConfigsResource {
        resource_type: RESOURCE_TOPIC,
        resource_name: name.clone(),
        configuration_keys: None,
    };
    let request = DescribeConfigsRequest {
        resources: names.iter().map(resource).collect(),
        ..DescribeConfigsRequest::default()
    };
    let answer = client.call(1, &request)?;
    let own = answer.results.into_iter().map(|result| {
        let given = result.configs.into_iter().filter(|config| config.config_source == SOURCE_TOPIC);
        (result.resource_name, given.map(|config| (config.name, config.value.unwrap_or_default())).collect())
    });
    Ok(own.collect())
}

fn describe_text(
    topic: &MetadataResponseTopic,
    config: &BTreeMap<String, String>,
    offsets: &Offsets,
) -> String {
    let columns = [
        ("PARTITION", Align::Right),
        ("LEADER", Align::Right),
        ("EPOCH", Align::Right),
        ("REPLICAS", Align::Left),
        ("IN SYNC", Align::Left),
        ("START", Align::Right),
        ("END", Align::Right),
    ];
    let mut table = Table::new(&columns);
    let nodes = |ids: &[i32]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let number = |value: Option<i64>| value.map_or_else(|| "-".into(), |value| value.to_string());
    for p in sorted(topic) {
        let (start, end) = offset_of(topic, p.partition_index, offsets);
        let leader = known(p.leader_id);
        table.row([
            p.partition_index.to_string(),
            if leader.is_null() { "none".into() } else { leader.to_string() },
            number((p.leader_epoch >= 0).then_some(p.leader_epoch.into())),
            nodes(&p.replica_nodes),
            nodes(&p.isr_nodes),
            number(start),
            number(end),
        ]);
    }
    let count = i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX);
    let mut text = format!(
        "{}{}, id {}\n",
        printable(name_of(topic)),
        counted(count, "partition", ": "),
        topic.topic_id
    );
    for (name, value) in config {
        text.push_str(&format!("  {}={}\n", printable(name), printable(value)));
    }
    text.push_str(table.render("  ").trim_end_matches('\n'));
    text
}

fn describe_json(
    topic: &MetadataResponseTopic,
    config: &BTreeMap<String, String>,
    offsets: &Offsets,
) -> Value {
    let partitions: Vec<Value> = sorted(topic)
        .into_iter()
        .map(|p| {
            let (start, end) = offset_of(topic, p.partition_index, offsets);
            json!({
                "partition": p.partition_index, "leader": known(p.leader_id), "leader_epoch": known(p.leader_epoch),
                "replicas": p.replica_nodes, "in_sync": p.isr_nodes, "start_offset": start, "end_offset": end,
            })
        })
        .collect();
    json!({
        "name": name_of(topic), "topic_id": topic.topic_id.to_string(), "config": config, "partitions": partitions,
    })
}

fn sorted(
    topic: &MetadataResponseTopic,
) -> Vec<&crate::kafka::messages::metadata::MetadataResponsePartition> {
    let mut partitions: Vec<_> = topic.partitions.iter().collect();
    partitions.sort_by_key(|p| p.partition_index);
    partitions
}

fn offset_of(topic: &MetadataResponseTopic, partition: i32, offsets: &Offsets) -> (Option<i64>, Option<i64>) {
    offsets.get(&(name_of(topic).to_owned(), partition)).copied().unwrap_or_default()
}

fn name_of(topic: &MetadataResponseTopic) -> &str {
    topic.name.as_deref().unwrap_or_default()
}

/// The wire says -1 for what it does not know.
fn known(value: i32) -> Value {
    if value < 0 { Value::Null } else { value.into() }
}

/// `: 4 partitions`, or nothing when the number is not known.
fn counted(count: i32, noun: &str, before: &str) -> String {
    match count {
        1 => format!("{before}1 {noun}"),
        _ if count < 0 => String::new(),
        _ => format!("{before}{count} {noun}s"),
    }
}

/// What became of each topic of a command.
struct Outcome {
    json: bool,
    lines: Vec<String>,
    values: Vec<Value>,
    failures: Vec<String>,
}

impl Outcome {
    fn new(json: bool) -> Self {
        Self { json, lines: Vec::new(), values: Vec::new(), failures: Vec::new() }
    }

    fn done(&mut self, line: String, value: Value) {
        self.lines.push(line);
        self.values.push(value);
    }

    fn failed(&mut self, name: &str, code: i16, message: Option<&str>) {
        let why = match message.filter(|message| !message.is_empty()) {
            Some(message) => printable(message),
            None => words_of(code),
        };
        self.failures.push(format!("{name}: {why}"));
    }

    /// Prints what worked, then fails for the rest.
    fn finish(mut self, asked: &[String], answered: usize, out: &mut dyn Write) -> Result<(), Failure> {
        if self.json {
            print(out, &pretty(&self.values.into()))?;
        } else if !self.lines.is_empty() {
            print(out, &(self.lines.join("\n") + "\n"))?;
        }
        if answered < asked.len() {
            self.failures.push(format!("the node answered for {answered} of {} topics", asked.len()));
        }
        match self.failures.as_slice() {
            [] => Ok(()),
            failures => Err(Failure::new(ExitStatus::Refused, failures.join("\n"))),
        }
    }
}

/// What an error code of the protocol means, for nodes that send no message with it.
fn words_of(code: i16) -> String {
    let words = match code {
        3 => "there is no such topic; `highwater topic list` shows all",
        5 => "no leader is known at the moment; try again",
        6 => "the node does not lead it any more; try again",
        7 => "the node did not finish in time; look at it with `highwater topic list` before trying again",
        17 => "not a topic name: letters, digits, `.`, `_` and `-`, at most 249",
        29 => "not allowed for this client",
        36 => "the topic exists already",
        37 => "not a number of partitions that the node accepts",
        38 => "not a number of replicas that the node has nodes for",
        40 => "a setting in --config is unknown or out of bounds",
        41 => "the node is not the controller; try again",
        44 => "a policy of the node forbids it",
        _ => return format!("the node answered with error {code}"),
    };
    words.into()
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Prints to standard output. Nobody reading the rest (`| head`) is no failure.
fn print(out: &mut dyn Write, text: &str) -> Result<(), Failure> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(ExitStatus::Environment, format!("standard output cannot be written: {e}")))
        }
        _ => Ok(()),
    }
}
