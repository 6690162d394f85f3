//! The commands against a scripted node: answers are encoded by the codec, requests are decoded by it.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::delete_records::delete_records;
use super::*;
use crate::cli::{Before, DeleteRecordsArgs, Target};
use crate::kafka::api::{ApiKey, Call, Head, response_frame};
use crate::kafka::messages::admin::{
    CreatableTopicResult, CreateTopicsResponse, DeletableTopicResult, DeleteTopicsResponse,
};
use crate::kafka::messages::api_versions::{ApiVersion, ApiVersionsResponse};
use crate::kafka::messages::cluster::{
    DescribeConfigsResourceResult, DescribeConfigsResponse, DescribeConfigsResult,
};
use crate::kafka::messages::metadata::{MetadataResponseBroker, MetadataResponsePartition};
use crate::kafka::messages::offsets::{
    DeleteRecordsPartition, DeleteRecordsPartitionResult, DeleteRecordsResponse, DeleteRecordsTopicResult,
    ListOffsetsPartitionResponse, ListOffsetsResponse, ListOffsetsTopicResponse,
};
use crate::kafka::wire::Reader;

/// A node that gives prepared answers, one per request.
#[derive(Default)]
struct Scripted {
    answers: VecDeque<Vec<u8>>,
    requests: Vec<Vec<u8>>,
    reading: io::Cursor<Vec<u8>>,
}

impl Scripted {
    /// A node that offers every version of this crate's own table.
    fn node() -> Self {
        Self::offering(ApiKey::ALL.iter().map(|api| (*api, api.version_max())))
    }

    fn offering(apis: impl Iterator<Item = (ApiKey, i16)>) -> Self {
        let api_keys = apis
            .map(|(api, max_version)| ApiVersion {
                api_key: api.wire(),
                min_version: api.version_min(),
                max_version,
            })
            .collect();
        let hello = ApiVersionsResponse { api_keys, ..Default::default() };
        Self::default().then::<crate::kafka::messages::api_versions::ApiVersionsRequest>(0, 1, &hello)
    }

    fn then<C: Call>(mut self, version: i16, correlation: i32, answer: &C::Response) -> Self {
        self.answers.push_back(response_frame(C::API, C::API.version(version), correlation, answer).to_vec());
        self
    }

    /// The answer to request `correlation` in the newest version.
    fn newest<C: Call>(self, correlation: i32, answer: &C::Response) -> Self {
        self.then::<C>(C::API.version_max(), correlation, answer)
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.answers.push_back(bytes.into());
        self
    }

    fn client(self) -> Client<Self> {
        Client::start(self, "test:1").unwrap_or_else(|failure| panic!("{failure}"))
    }
}

impl Read for Scripted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reading.read(buffer)
    }
}

impl Write for Scripted {
    fn write(&mut self, request: &[u8]) -> io::Result<usize> {
        self.requests.push(request.into());
        self.reading = io::Cursor::new(self.answers.pop_front().unwrap_or_default());
        Ok(request.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The request in `sent`, which must be a `C` of the newest version.
fn request<C: Call>(sent: &[u8]) -> C {
    let frame = Bytes::copy_from_slice(&sent[4..]);
    let mut r = Reader::new(&frame);
    let head = Head::decode(&mut r).unwrap();
    assert_eq!((head.api_key, head.version), (C::API.wire(), C::API.version_max()));
    let v = C::API.version(head.version);
    Head::decode_rest(&mut r, v).unwrap();
    C::decode(&mut r, v).unwrap()
}

fn node_args(json: bool) -> NodeArgs {
    NodeArgs { bootstrap: "test:1".into(), json, timeout_s: 30 }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn run(command: impl FnOnce(&mut dyn Write) -> Result<(), Failure>) -> (String, Result<(), Failure>) {
    let mut out = Vec::new();
    let result = command(&mut out);
    (String::from_utf8(out).unwrap(), result)
}

fn create_args(topics: &[&str], if_not_exists: bool) -> CreateArgs {
    CreateArgs {
        names: names(topics),
        partitions: Some(3),
        replication_factor: None,
        config: vec![("max.message.bytes".into(), "1000".into())],
        if_not_exists,
        node: node_args(false),
    }
}

fn created(topics: &[(&str, i16)]) -> CreateTopicsResponse {
    let result = |(name, error_code): &(&str, i16)| CreatableTopicResult {
        name: (*name).into(),
        error_code: *error_code,
        error_message: None,
        num_partitions: 3,
        ..Default::default()
    };
    CreateTopicsResponse { topics: topics.iter().map(result).collect(), ..Default::default() }
}

#[test]
fn create_sends_partitions_and_settings_and_prints_each_topic() {
    let mut client =
        Scripted::node().newest::<CreateTopicsRequest>(2, &created(&[("a", 0), ("b", 0)])).client();
    let (out, result) = run(|out| create(&mut client, &create_args(&["a", "b"], false), out));
    assert_eq!((out.as_str(), result), ("created a: 3 partitions\ncreated b: 3 partitions\n", Ok(())));
    let sent: CreateTopicsRequest = request(&client.into_stream().requests[1]);
    assert_eq!(sent.topics.len(), 2);
    assert_eq!((sent.topics[0].num_partitions, sent.topics[0].replication_factor), (3, -1));
    assert_eq!(sent.topics[1].configs[0].value.as_deref(), Some("1000"));
    assert_eq!(sent.timeout_ms, 30_000);

    let mut client = Scripted::node().newest::<CreateTopicsRequest>(2, &created(&[("a", 0)])).client();
    let args = CreateArgs { replication_factor: Some(2), ..create_args(&["a"], false) };
    assert_eq!(run(|out| create(&mut client, &args, out)).1, Ok(()));
    let sent: CreateTopicsRequest = request(&client.into_stream().requests[1]);
    assert_eq!(sent.topics[0].replication_factor, 2);
}

#[test]
fn what_worked_is_printed_before_the_command_fails_for_the_rest() {
    let answer = created(&[("a", 0), ("b", TOPIC_EXISTS)]);
    let mut client = Scripted::node().newest::<CreateTopicsRequest>(2, &answer).client();
    let (out, result) = run(|out| create(&mut client, &create_args(&["a", "b"], false), out));
    assert_eq!(out, "created a: 3 partitions\n");
    assert_eq!(result, Err(Failure::new(ExitStatus::Refused, "b: the topic exists already")));

    let mut client = Scripted::node().newest::<CreateTopicsRequest>(2, &answer).client();
    let (out, result) = run(|out| create(&mut client, &create_args(&["a", "b"], true), out));
    assert_eq!((out.as_str(), result), ("created a: 3 partitions\nb exists already\n", Ok(())));
}

#[test]
fn an_answer_that_leaves_a_topic_out_is_no_success() {
    let mut client = Scripted::node().newest::<CreateTopicsRequest>(2, &created(&[("a", 0)])).client();
    let (_, result) = run(|out| create(&mut client, &create_args(&["a", "b"], false), out));
    assert_eq!(result.unwrap_err().message, "the node answered for 1 of 2 topics");
}

#[test]
fn delete_tells_missing_topics_from_deleted_ones() {
    let result = |name: &str, error_code| DeletableTopicResult {
        name: Some(name.into()),
        error_code,
        ..Default::default()
    };
    let answer = DeleteTopicsResponse {
        responses: vec![result("a", 0), result("b", UNKNOWN_TOPIC)],
        ..Default::default()
    };
    for (if_exists, want) in [(true, Ok(())), (false, Err(ExitStatus::Refused))] {
        let mut client = Scripted::node().newest::<DeleteTopicsRequest>(2, &answer).client();
        let args = DeleteArgs { names: names(&["a", "b"]), if_exists, node: node_args(false) };
        let (out, result) = run(|out| delete(&mut client, &args, out));
        assert!(out.starts_with("deleted a\n"), "{out}");
        assert_eq!(result.map_err(|failure| failure.status), want);
    }
}

fn two_topics() -> MetadataResponse {
    let partition = |index, leader_id| MetadataResponsePartition {
        partition_index: index,
        leader_id,
        leader_epoch: 5,
        replica_nodes: vec![1],
        isr_nodes: vec![1],
        ..Default::default()
    };
    let topic = |name: &str, partitions| MetadataResponseTopic {
        name: Some(Arc::from(name)),
        partitions,
        ..Default::default()
    };
    MetadataResponse {
        brokers: vec![MetadataResponseBroker { node_id: 1, host: "::1".into(), port: 9092, rack: None }],
        topics: vec![
            topic("zebra", vec![partition(1, 1), partition(0, -1)]),
            topic("ant", vec![partition(0, 1)]),
        ],
        ..Default::default()
    }
}

#[test]
fn list_sorts_topics_and_never_creates_any() {
    let mut client = Scripted::node().newest::<MetadataRequest>(2, &two_topics()).client();
    let (out, result) = run(|out| list(&mut client, &node_args(false), out));
    assert_eq!(result, Ok(()));
    assert_eq!(
        out,
        "TOPIC  PARTITIONS  REPLICAS\nant             1         1\nzebra           2         1\n"
    );
    let sent: MetadataRequest = request(&client.into_stream().requests[1]);
    assert_eq!((sent.topics, sent.allow_auto_topic_creation), (None, false));

    let mut client = Scripted::node().newest::<MetadataRequest>(2, &MetadataResponse::default()).client();
    let (out, _) = run(|out| list(&mut client, &node_args(false), out));
    assert!(out.contains("highwater topic create"), "{out}");
    let mut client = Scripted::node().newest::<MetadataRequest>(2, &MetadataResponse::default()).client();
    assert_eq!(run(|out| list(&mut client, &node_args(true), out)).0, "[]\n");
}

fn zebra() -> Scripted {
    let mut metadata = two_topics();
    metadata.topics.truncate(1);
    let config = |name: &str, source| DescribeConfigsResourceResult {
        name: name.into(),
        value: Some("7".into()),
        config_source: source,
        ..Default::default()
    };
    let configs = DescribeConfigsResponse {
        results: vec![DescribeConfigsResult {
            resource_type: RESOURCE_TOPIC,
            resource_name: "zebra".into(),
            configs: vec![config("given", SOURCE_TOPIC), config("default", 5)],
            ..Default::default()
        }],
        ..Default::default()
    };
    Scripted::node().newest::<MetadataRequest>(2, &metadata).newest::<DescribeConfigsRequest>(3, &configs)
}

fn describe_zebra(json: bool, ask: AskOffsets<'_>) -> (String, Result<(), Failure>) {
    let args = DescribeArgs { names: names(&["zebra"]), node: node_args(json) };
    let mut client = zebra().client();
    run(|out| describe(&mut client, &args, ask, out))
}

#[test]
fn describe_asks_each_leader_for_the_offsets_of_what_it_leads() {
    let mut asked = Vec::new();
    let mut ask = |leader: &Leader, request: &ListOffsetsRequest| {
        let p = &request.topics[0].partitions;
        asked.push((leader.address.clone(), p.len(), p[0].timestamp));
        let partition =
            |offset| ListOffsetsPartitionResponse { partition_index: 1, offset, ..Default::default() };
        let offset = if p[0].timestamp == EARLIEST { 10 } else { 42 };
        let topic = ListOffsetsTopicResponse { name: "zebra".into(), partitions: vec![partition(offset)] };
        Ok(ListOffsetsResponse { topics: vec![topic], ..Default::default() })
    };
    let (out, result) = describe_zebra(false, &mut ask);
    assert_eq!(result, Ok(()));
    assert_eq!(asked, [("[::1]:9092".to_owned(), 1, EARLIEST), ("[::1]:9092".to_owned(), 1, LATEST)]);
    assert_eq!(
        out,
        "zebra: 2 partitions, id 00000000-0000-0000-0000-000000000000\n  given=7\n  \
         PARTITION  LEADER  EPOCH  REPLICAS  IN SYNC  START  END\n          \
         0    none      5  1         1            -    -\n          \
         1       1      5  1         1           10   42\n"
    );
}

#[test]
fn describe_goes_on_without_the_offsets_of_a_silent_leader() {
    let mut ask = |_: &Leader, _: &ListOffsetsRequest| Err(Failure::new(ExitStatus::Unreachable, "silent"));
    let (out, result) = describe_zebra(true, &mut ask);
    assert_eq!(result, Ok(()));
    let value: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(value[0]["config"], json!({"given": "7"}));
    assert_eq!(value[0]["partitions"][0]["leader"], Value::Null);
    assert_eq!(value[0]["partitions"][1]["leader"], json!(1));
    assert_eq!(value[0]["partitions"][1]["end_offset"], Value::Null);
}

#[test]
fn an_older_node_is_asked_in_its_own_version_or_not_at_all() {
    let offer = |create, metadata| {
        Scripted::offering([(ApiKey::CreateTopics, create), (ApiKey::Metadata, metadata)].into_iter())
    };
    let mut client = offer(5, 5).then::<CreateTopicsRequest>(5, 2, &created(&[("a", 0)])).client();
    assert_eq!(run(|out| create(&mut client, &create_args(&["a"], false), out)).1, Ok(()));
    let mut client = offer(3, 3).client();
    for failure in [
        run(|out| create(&mut client, &create_args(&["a"], false), out)).1,
        run(|out| list(&mut client, &node_args(false), out)).1,
    ] {
        assert!(failure.unwrap_err().message.contains("from version 4 on"));
    }
}

#[test]
fn what_is_no_node_is_called_so() {
    let start = |node: Scripted| Client::start(node, "test:1").map(|_| ()).unwrap_err();
    for (node, want) in [
        (
            Scripted::default().raw(b"HTTP/1.1 400 Bad Request\r\n"),
            "an answer of 1213486160 bytes was announced",
        ),
        (Scripted::default().raw(&[0xff; 64]), "an answer of -1 bytes was announced"),
        (Scripted::default().raw(&[0, 0, 0, 3, 1, 2, 3]), "does not speak Kafka's protocol"),
        (Scripted::default().raw(b""), "test:1 closed the connection; is it the client port of a node?"),
        (Scripted::default().raw(&[0, 0, 0, 64, 1]), "test:1 closed the connection"),
    ] {
        let failure = start(node);
        assert_eq!(failure.status, ExitStatus::Unreachable);
        assert!(failure.message.contains(want), "{failure}");
    }
    let answer = ApiVersionsResponse::default();
    let other =
        Scripted::default().then::<crate::kafka::messages::api_versions::ApiVersionsRequest>(0, 9, &answer);
    assert!(start(other).message.contains("answer 9 came for request 1"));
}

#[test]
fn a_closed_port_and_a_bad_address_say_what_to_do() {
    // Bound and let go: nothing listens there now.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let failure = Client::connect(&address, Duration::from_secs(5)).unwrap_err();
    assert_eq!(failure.status, ExitStatus::Unreachable);
    assert_eq!(failure.message, format!("no node listens on {address}; start one with `highwater`"));
    let failure = Client::connect("localhost", Duration::from_secs(5)).unwrap_err();
    assert_eq!(failure.status, ExitStatus::Usage);
    assert!(
        Client::connect(" , ", Duration::from_secs(5)).unwrap_err().message.contains("--bootstrap is empty")
    );
}

fn delete_records_args(targets: &[(&str, Option<i32>)], before: Before, json: bool) -> DeleteRecordsArgs {
    let target = |&(topic, partition): &(&str, Option<i32>)| Target { topic: topic.into(), partition };
    DeleteRecordsArgs { targets: targets.iter().map(target).collect(), before, node: node_args(json) }
}

/// Nodes 1 and 2, and a topic whose partitions they lead in turn; the last has no leader.
fn two_leaders(topic: &str, partitions: i32) -> MetadataResponse {
    let broker =
        |node_id| MetadataResponseBroker { node_id, host: format!("h{node_id}"), port: 9, rack: None };
    let partition = |index| MetadataResponsePartition {
        partition_index: index,
        leader_id: if index == partitions - 1 { -1 } else { index % 2 + 1 },
        ..Default::default()
    };
    MetadataResponse {
        brokers: vec![broker(1), broker(2)],
        topics: vec![MetadataResponseTopic {
            name: Some(topic.into()),
            partitions: (0..partitions).map(partition).collect(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

#[test]
fn records_are_deleted_at_the_leader_of_each_partition() {
    let mut client = Scripted::node().newest::<MetadataRequest>(2, &two_leaders("a", 4)).client();
    let mut asked = Vec::new();
    let mut ask = |leader: &Leader, request: &DeleteRecordsRequest| {
        let of = |p: &DeleteRecordsPartition| (p.partition_index, p.offset);
        let partitions: Vec<_> = request.topics[0].partitions.iter().map(of).collect();
        asked.push((leader.address.clone(), partitions.clone(), request.timeout_ms));
        let told = |&(partition_index, low): &(i32, i64)| DeleteRecordsPartitionResult {
            partition_index,
            low_watermark: low,
            error_code: if partition_index == 2 { 1 } else { 0 },
        };
        let partitions = partitions.iter().map(told).collect();
        Ok(DeleteRecordsResponse {
            topics: vec![DeleteRecordsTopicResult { name: "a".into(), partitions }],
            ..Default::default()
        })
    };
    let args = delete_records_args(&[("a", None)], Before::Offset(70), false);
    let (out, result) = run(|out| delete_records(&mut client, &args, &mut ask, out));
    assert_eq!(out, "a:0 starts at 70\na:1 starts at 70\n");
    let failure = result.unwrap_err();
    assert_eq!(failure.status, ExitStatus::Refused);
    assert_eq!(
        failure.message,
        "a:3: no leader is known at the moment; try again\n\
         a:2: there is no such offset: it lies beyond the last record that can be read"
    );
    assert_eq!(
        asked,
        [("h1:9".into(), vec![(0, 70), (2, 70)], 30_000), ("h2:9".into(), vec![(1, 70)], 30_000)]
    );
}

#[test]
fn partitions_that_do_not_exist_or_get_no_answer_fail_by_name() {
    let mut client = Scripted::node().newest::<MetadataRequest>(2, &two_leaders("a", 4)).client();
    let mut ask = |leader: &Leader, request: &DeleteRecordsRequest| {
        assert_eq!(request.topics[0].partitions[0].offset, -1, "the high watermark");
        match leader.id {
            1 => Ok(DeleteRecordsResponse::default()),
            _ => Err(Failure::new(ExitStatus::Unreachable, "gone")),
        }
    };
    let targets = [("a", Some(0)), ("a", Some(1)), ("a", Some(9)), ("b", None)];
    let args = delete_records_args(&targets, Before::Latest, true);
    let (out, result) = run(|out| delete_records(&mut client, &args, &mut ask, out));
    assert_eq!(out, "[]\n");
    let message = result.unwrap_err().message;
    for words in
        ["a:0: the node did not say", "a:1: gone", "a:9: the topic has 4 partitions", "b: there is no such"]
    {
        assert!(message.contains(words), "{words} in {message}");
    }
}
