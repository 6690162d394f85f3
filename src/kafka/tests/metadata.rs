//! Everything that is answered from the image or by the control core, and questions to partitions about offsets.

use highwater_shards::ids::{ProducerEpoch, ProducerId};
use highwater_shards::mail::{EpochEnd, Locate, Located, PartitionError};

use super::*;
use crate::control::request::{
    AlterConfig, ConfigChange, ConfigOp, ConfigResource, CreatedTopic, DeletedTopic, MorePartitions,
    NewTopic, Refusal, TopicRef, Why,
};
use crate::kafka::messages::admin::{
    CreatableTopic, CreatePartitionsRequest, CreatePartitionsTopic, CreateTopicsRequest, DeleteTopicState,
    DeleteTopicsRequest,
};
use crate::kafka::messages::api_versions::ApiVersionsRequest;
use crate::kafka::messages::cluster::{
    AlterConfigsResource, AlterableConfig, DescribeClusterRequest, DescribeConfigsRequest,
    DescribeConfigsResource, IncrementalAlterConfigsRequest,
};
use crate::kafka::messages::coordinator::FindCoordinatorRequest;
use crate::kafka::messages::metadata::{MetadataRequest, MetadataRequestTopic, MetadataResponse};
use crate::kafka::messages::offsets::{
    InitProducerIdRequest, ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic,
    OffsetForLeaderEpochRequest, OffsetForLeaderPartition, OffsetForLeaderTopic,
};

fn named(name: &str) -> MetadataRequestTopic {
    MetadataRequestTopic { name: Some(name.into()), ..MetadataRequestTopic::default() }
}

fn about(topics: Vec<MetadataRequestTopic>) -> MetadataRequest {
    MetadataRequest { topics: Some(topics), allow_auto_topic_creation: false, ..MetadataRequest::default() }
}

fn topics(response: &MetadataResponse) -> Vec<(Option<&str>, i16, usize)> {
    response.topics.iter().map(|t| (t.name.as_deref(), t.error_code, t.partitions.len())).collect()
}

#[test]
fn api_versions_lists_every_api_in_every_version() {
    for version in versions(ApiKey::ApiVersions) {
        let mut client = Client::new();
        client.request(version, 9, &ApiVersionsRequest::default());
        let (correlation, response) = client.response::<ApiVersionsRequest>(version);
        assert_eq!((correlation, response.error_code, response.api_keys.len()), (9, 0, ApiKey::ALL.len()));
        let produce = &response.api_keys[0];
        assert_eq!((produce.api_key, produce.min_version, produce.max_version), (0, 0, 13));
    }
}

#[test]
fn an_unknown_version_of_api_versions_is_answered_in_the_oldest_encoding() {
    let mut client = Client::new();
    // Key 18, version 99, correlation 7, and a header that nobody knows yet.
    client.frame(Bytes::from_static(&[0, 18, 0, 99, 0, 0, 0, 7, 0xff, 0xff, 0xff]));
    let answer = client.frames().remove(0);
    assert_eq!(&answer[..], [0, 0, 0, 7, 0, 35, 0, 0, 0, 1, 0, 18, 0, 0, 0, 4]);
    client.request(3, 8, &ApiVersionsRequest::default());
    assert_eq!(client.frames().len(), 1, "the connection goes on");
}

#[test]
fn unknown_apis_and_versions_close_the_connection() {
    for (key, version) in [(1, 3), (1, 19), (2, 0), (3, 14), (3, -1), (8, 2), (71, 0), (-1, 0), (9999, 0)] {
        let mut client = Client::new();
        let [key, version] = [i16::to_be_bytes(key), i16::to_be_bytes(version)].map(Vec::from);
        client.frame([key, version, vec![0, 0, 0, 1, 0xff, 0xff, 0, 0]].concat().into());
        assert_eq!((client.closed, client.sent.len()), (Some(CloseReason::Malformed), 0));
    }
}

#[test]
fn metadata_lists_brokers_and_topics_in_every_version() {
    for version in versions(ApiKey::Metadata) {
        let mut client = Client::new();
        let all = MetadataRequest {
            topics: (version > 0).then_some(()).map_or(Some(Vec::new()), |()| None),
            ..MetadataRequest::default()
        };
        client.request(version, 1, &all);
        let (_, response) = client.response::<MetadataRequest>(version);
        assert_eq!(response.brokers.iter().map(|b| b.node_id).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(topics(&response), [(Some("events"), 0, 5)]);
        let topic = &response.topics[0];
        assert_eq!(topic.topic_id, if version < 10 { TopicId(0) } else { TOPIC });
        assert_eq!(topic.partitions.iter().map(|p| p.leader_id).collect::<Vec<_>>(), [1, 1, 1, 1, 2]);

        client.request(
            version,
            2,
            &about(vec![named("events"), named("nowhere"), named("a b"), named("events")]),
        );
        if version < 4 {
            // Those versions cannot forbid it.
            let (token, ask) = client.asks.remove(0);
            assert!(matches!(ask, Request::CreateTopics { topics, .. } if topics.len() == 1));
            client.reply(token, Reply::CreateTopics(vec![Err(Refusal::new(Why::LimitReached, "full"))]));
        }
        let (_, response) = client.response::<MetadataRequest>(version);
        let refused = if version < 4 { 44 } else { 3 };
        assert_eq!(
            topics(&response),
            [(Some("events"), 0, 5), (Some("nowhere"), refused, 0), (Some("a b"), 17, 0)]
        );
    }
}

#[test]
fn metadata_finds_topics_by_their_ids() {
    for version in 10..=13 {
        let mut client = Client::new();
        let by_id = |id| MetadataRequestTopic { topic_id: TopicId(id), name: None };
        client.request(version, 1, &about(vec![by_id(TOPIC.0), by_id(5), by_id(0)]));
        let (_, response) = client.response::<MetadataRequest>(version);
        let nobody = (version < 12).then_some("");
        assert_eq!(topics(&response), [(Some("events"), 0, 5), (nobody, 100, 0), (nobody, 42, 0)]);
    }
}

#[test]
fn metadata_makes_missing_topics_and_answers_from_the_new_image() {
    let mut client = Client::new();
    let body = MetadataRequest {
        topics: Some(vec![named("new"), named("new"), named("."), named("events")]),
        ..MetadataRequest::default()
    };
    client.request(12, 1, &body);
    let (token, ask) = client.asks.remove(0);
    let Request::CreateTopics { topics: asked, validate_only: false, .. } = ask else { panic!("{ask:?}") };
    assert_eq!(asked, [NewTopic { name: "new".into(), automatic: true, ..NewTopic::default() }]);
    assert_eq!(client.in_flight(), 1);
    add_topic(Arc::make_mut(&mut client.view), TopicId(9), "new", 2);
    let made = CreatedTopic { id: TopicId(9), partitions: 2, replication_factor: 1, config: vec![] };
    client.reply(token, Reply::CreateTopics(vec![Ok(made)]));
    let (_, response) = client.response::<MetadataRequest>(12);
    assert_eq!(topics(&response), [(Some("new"), 0, 2), (Some("."), 17, 0), (Some("events"), 0, 5)]);

    let mut strict = Client::with(KafkaConfig { auto_create_topics: false, ..KafkaConfig::default() });
    strict.request(12, 1, &body);
    assert!(strict.asks.is_empty());
    assert_eq!(topics(&strict.response::<MetadataRequest>(12).1)[0], (Some("new"), 3, 0));
}

#[test]
fn a_partition_whose_leader_is_gone_says_so() {
    let mut client = Client::new();
    let mut gone = NodeInfo::clone(&client.view.nodes[&NodeId(2)]);
    gone.fenced = true;
    Arc::make_mut(&mut client.view).nodes.insert(NodeId(2), Arc::new(gone));
    client.request(12, 1, &about(vec![named("events")]));
    let (_, response) = client.response::<MetadataRequest>(12);
    assert_eq!(response.brokers.len(), 1);
    let last = &response.topics[0].partitions[4];
    assert_eq!((last.error_code, last.leader_id), (5, -1));
    assert_eq!((&last.replica_nodes[..], &last.offline_replicas[..]), (&[2][..], &[2][..]));
}

#[test]
fn the_controller_is_another_node_or_unknown_when_that_is_gone() {
    let mut client = Client::new();
    Arc::make_mut(&mut client.view).controller = Some(NodeId(2));
    let mut controllers = |view: fn(&mut Image)| {
        view(Arc::make_mut(&mut client.view));
        client.request(12, 1, &about(vec![]));
        let known = client.response::<MetadataRequest>(12).1.controller_id;
        client.request(1, 1, &DescribeClusterRequest::default());
        (known, client.response::<DescribeClusterRequest>(1).1.controller_id)
    };
    assert_eq!(controllers(|_| {}), (2, 2));
    let fence = |image: &mut Image| {
        let gone = NodeInfo { fenced: true, ..NodeInfo::clone(&image.nodes[&NodeId(2)]) };
        image.nodes.insert(NodeId(2), Arc::new(gone));
    };
    assert_eq!(controllers(fence), (-1, -1));
}

#[test]
fn without_a_leader_of_the_metadata_clients_are_told_to_try_again() {
    let mut client = Client::new();
    let refusal = || Refusal::new(Why::NoController, "nobody leads");
    let topic = CreatableTopic {
        name: "new".into(),
        num_partitions: 1,
        replication_factor: 1,
        ..CreatableTopic::default()
    };
    client.request(7, 1, &CreateTopicsRequest { topics: vec![topic], ..CreateTopicsRequest::default() });
    let (token, _) = client.asks.remove(0);
    client.reply(token, Reply::CreateTopics(vec![Err(refusal())]));
    assert_eq!(client.response::<CreateTopicsRequest>(7).1.topics[0].error_code, 41);
    client.request(4, 2, &InitProducerIdRequest::default());
    let (token, _) = client.asks.remove(0);
    client.reply(token, Reply::NewProducerId(Err(refusal())));
    let (_, response) = client.response::<InitProducerIdRequest>(4);
    assert_eq!(response.error_code, 14, "every client asks again after this one");
}

#[test]
fn operations_are_listed_only_when_asked_for() {
    let mut client = Client::new();
    let body = MetadataRequest {
        include_cluster_authorized_operations: true,
        include_topic_authorized_operations: true,
        ..about(vec![named("events")])
    };
    client.request(8, 1, &body);
    let (_, response) = client.response::<MetadataRequest>(8);
    assert_eq!(
        (response.cluster_authorized_operations, response.topics[0].topic_authorized_operations),
        (8096, 3576)
    );
    client.request(8, 1, &about(vec![named("events")]));
    let (_, response) = client.response::<MetadataRequest>(8);
    assert_eq!(response.cluster_authorized_operations, i32::MIN);
    assert_eq!(response.topics[0].topic_authorized_operations, i32::MIN);
}

#[test]
fn describe_cluster_shows_brokers_in_every_version() {
    for version in versions(ApiKey::DescribeCluster) {
        let mut client = Client::new();
        client.request(version, 1, &DescribeClusterRequest::default());
        let (_, response) = client.response::<DescribeClusterRequest>(version);
        assert_eq!(
            (&*response.cluster_id, response.controller_id, response.brokers.len()),
            ("test-cluster", 1, 2)
        );
    }
    let mut client = Client::new();
    client.request(1, 1, &DescribeClusterRequest { endpoint_type: 2, ..DescribeClusterRequest::default() });
    assert_eq!(client.response::<DescribeClusterRequest>(1).1.error_code, 114);
}

#[test]
fn topics_are_created_as_asked_in_every_version() {
    let new = |name: &str, partitions, replicas| CreatableTopic {
        name: name.into(),
        num_partitions: partitions,
        replication_factor: replicas,
        ..CreatableTopic::default()
    };
    for version in versions(ApiKey::CreateTopics) {
        let mut client = Client::new();
        let body = CreateTopicsRequest {
            topics: vec![
                new("a", 3, 1),
                new("twice", 1, 1),
                new("b", -1, -1),
                new("c", 0, 1),
                new("d", 1, 0),
                new("twice", 1, 1),
                new("e", 1, 1),
            ],
            timeout_ms: 7000,
            validate_only: version >= 1,
        };
        client.request(version, 1, &body);
        let (token, ask) = client.asks.remove(0);
        let Request::CreateTopics { topics, validate_only, timeout } = ask else { panic!("{ask:?}") };
        assert_eq!((validate_only, timeout), (version >= 1, Duration::from_secs(7)));
        let asked: Vec<_> =
            topics.iter().map(|t| (t.name.as_str(), t.partitions, t.replication_factor)).collect();
        assert_eq!(asked, [("a", Some(3), Some(1)), ("b", None, None), ("e", Some(1), Some(1))]);
        let made = |id| CreatedTopic {
            id: TopicId(id),
            partitions: 3,
            replication_factor: 1,
            config: vec![("retention.ms".into(), "5".into())],
        };
        let exists = Refusal::new(Why::TopicExists, "topic 'b' exists");
        client.reply(token, Reply::CreateTopics(vec![Ok(made(70)), Err(exists), Ok(made(71))]));
        let (_, response) = client.response::<CreateTopicsRequest>(version);
        let codes: Vec<_> = response.topics.iter().map(|t| t.error_code).collect();
        assert_eq!(codes, [0, 42, 36, 37, 38, 42, 0]);
        if version >= 5 {
            assert_eq!(response.topics[0].num_partitions, 3);
            assert_eq!(response.topics[0].configs.as_ref().unwrap()[0].config_source, 1);
        }
        if version >= 7 {
            assert_eq!(response.topics[6].topic_id, TopicId(71));
        }
    }
}

#[test]
fn topics_are_deleted_by_name_or_id_in_every_version() {
    for version in versions(ApiKey::DeleteTopics) {
        let mut client = Client::new();
        let state =
            |name: Option<&str>, id| DeleteTopicState { name: name.map(Into::into), topic_id: TopicId(id) };
        let body = DeleteTopicsRequest {
            topics: vec![state(Some("events"), 0), state(None, 0), state(None, 8), state(Some("x"), 8)],
            topic_names: vec!["events".into(), "nowhere".into()],
            timeout_ms: 100,
        };
        client.request(version, 1, &body);
        let (token, ask) = client.asks.remove(0);
        let Request::DeleteTopics { topics, .. } = ask else { panic!("{ask:?}") };
        let second = if version < 6 { TopicRef::Name("nowhere".into()) } else { TopicRef::Id(TopicId(8)) };
        assert_eq!(topics, [TopicRef::Name("events".into()), second]);
        let deleted = DeletedTopic { id: TOPIC, name: "events".into() };
        let unknown =
            Refusal::new(if version < 6 { Why::UnknownTopic } else { Why::UnknownTopicId }, "no such topic");
        client.reply(token, Reply::DeleteTopics(vec![Ok(deleted), Err(unknown)]));
        let (_, response) = client.response::<DeleteTopicsRequest>(version);
        let codes: Vec<_> = response.responses.iter().map(|t| t.error_code).collect();
        if version < 6 {
            assert_eq!(codes, [0, 3]);
        } else {
            assert_eq!(codes, [0, 42, 100, 42]);
            assert_eq!(response.responses[0].topic_id, TOPIC);
        }
    }
}

#[test]
fn partitions_are_added_in_every_version() {
    for version in versions(ApiKey::CreatePartitions) {
        let mut client = Client::new();
        let more = |name: &str, count| CreatePartitionsTopic { name: name.into(), count, assignments: None };
        let body = CreatePartitionsRequest {
            topics: vec![more("events", 8), more("x", -3)],
            timeout_ms: 100,
            validate_only: false,
        };
        client.request(version, 1, &body);
        let (token, ask) = client.asks.remove(0);
        let Request::CreatePartitions { topics, .. } = ask else { panic!("{ask:?}") };
        assert_eq!(topics, [MorePartitions { topic: "events".into(), total: 8, assignment: vec![] }]);
        client.reply(token, Reply::CreatePartitions(vec![Ok(())]));
        let (_, response) = client.response::<CreatePartitionsRequest>(version);
        assert_eq!(response.results.iter().map(|t| t.error_code).collect::<Vec<_>>(), [0, 37]);
    }
}

#[test]
fn settings_of_topics_and_brokers_are_described_in_every_version() {
    for version in versions(ApiKey::DescribeConfigs) {
        let mut client = Client::new();
        let resource = |resource_type, name: &str, keys: Option<&[&str]>| DescribeConfigsResource {
            resource_type,
            resource_name: name.into(),
            configuration_keys: keys.map(|keys| keys.iter().map(|&k| k.into()).collect()),
        };
        let body = DescribeConfigsRequest {
            resources: vec![
                resource(2, "events", Some(&["retention.ms"])),
                resource(2, "nowhere", None),
                resource(4, "1", None),
                resource(4, "2", None),
                resource(4, "x", None),
                resource(8, "1", None),
                resource(2, "events", None),
                resource(4, "", None),
            ],
            include_synonyms: true,
            include_documentation: true,
        };
        client.request(version, 1, &body);
        let (_, response) = client.response::<DescribeConfigsRequest>(version);
        let shown: Vec<_> = response.results.iter().map(|r| (r.error_code, r.configs.len())).collect();
        let all = shown[6].1;
        assert!(all > 5);
        assert_eq!(
            shown,
            [(0, 1), (3, 0), (0, 9), (42, 0), (42, 0), (42, 0), (0, all)],
            "each resource once"
        );
        let retention = &response.results[0].configs[0];
        assert_eq!(
            (&*retention.name, retention.config_source, retention.synonyms.len()),
            ("retention.ms", 5, 1)
        );
        let changeable = response.results[2].configs.iter().filter(|c| !c.read_only);
        let changeable: Vec<_> = changeable.map(|c| &*c.name).collect();
        assert_eq!(changeable, ["follower.replication.throttled.rate", "leader.replication.throttled.rate"]);
    }
}

#[test]
fn settings_are_altered_by_the_control_core_in_every_version() {
    for version in versions(ApiKey::IncrementalAlterConfigs) {
        let mut client = Client::new();
        let change = |name: &str, op, value: Option<&str>| AlterableConfig {
            name: name.into(),
            config_operation: op,
            value: value.map(Into::into),
        };
        let resource = |resource_type, name: &str, configs| AlterConfigsResource {
            resource_type,
            resource_name: name.into(),
            configs,
        };
        let body = IncrementalAlterConfigsRequest {
            resources: vec![
                resource(2, "events", vec![change("a", 0, Some("1")), change("b", 1, None)]),
                resource(2, "events", vec![]),
                resource(4, "", vec![change("c", 2, Some("x"))]),
                resource(4, "2", vec![change("d", 3, Some("y"))]),
                resource(2, "null", vec![change("a", 0, None)]),
                resource(2, "odd", vec![change("a", 9, Some("1"))]),
                resource(16, "", vec![]),
            ],
            validate_only: true,
        };
        client.request(version, 1, &body);
        let (token, ask) = client.asks.remove(0);
        let Request::AlterConfigs { resources, validate_only: true } = ask else { panic!("{ask:?}") };
        let set = |key: &str, op| ConfigChange { key: key.into(), op };
        assert_eq!(
            resources,
            [
                AlterConfig {
                    resource: ConfigResource::Topic("events".into()),
                    changes: vec![set("a", ConfigOp::Set("1".into())), set("b", ConfigOp::Delete)],
                },
                AlterConfig {
                    resource: ConfigResource::Cluster,
                    changes: vec![set("c", ConfigOp::Append("x".into()))],
                },
                AlterConfig {
                    resource: ConfigResource::Node(NodeId(2)),
                    changes: vec![set("d", ConfigOp::Subtract("y".into()))],
                },
            ]
        );
        let bad = Refusal::new(Why::InvalidConfig, "c is not a list");
        client.reply(token, Reply::AlterConfigs(vec![Ok(()), Err(bad), Ok(())]));
        let (_, response) = client.response::<IncrementalAlterConfigsRequest>(version);
        let codes: Vec<_> = response.responses.iter().map(|r| r.error_code).collect();
        assert_eq!(codes, [0, 42, 40, 0, 42, 42, 42]);
    }
}

#[test]
fn producers_get_ids_in_every_version_and_transactions_are_refused_for_good() {
    for version in versions(ApiKey::InitProducerId) {
        let mut client = Client::new();
        client.request(version, 1, &InitProducerIdRequest::default());
        let (token, ask) = client.asks.remove(0);
        assert_eq!(ask, Request::NewProducerId);
        client.reply(token, Reply::NewProducerId(Ok((ProducerId(4000), ProducerEpoch(0)))));
        let (_, response) = client.response::<InitProducerIdRequest>(version);
        assert_eq!((response.error_code, response.producer_id, response.producer_epoch), (0, 4000, 0));
        let transactional =
            InitProducerIdRequest { transactional_id: Some("t".into()), ..InitProducerIdRequest::default() };
        client.request(version, 2, &transactional);
        assert_eq!(client.response::<InitProducerIdRequest>(version).1.error_code, 53);
    }
}

#[test]
fn nobody_coordinates_groups_or_transactions_in_any_version() {
    for version in versions(ApiKey::FindCoordinator) {
        for (key_type, code) in [(0, 15), (1, 53), (2, 42)].into_iter().take(if version == 0 { 1 } else { 3 })
        {
            let mut client = Client::new();
            let body = FindCoordinatorRequest {
                key: "g".into(),
                key_type,
                coordinator_keys: vec!["g".into(), "h".into()],
            };
            client.request(version, 1, &body);
            let (_, response) = client.response::<FindCoordinatorRequest>(version);
            let codes: Vec<_> = response.coordinators.iter().map(|c| c.error_code).collect();
            assert_eq!(codes, if version < 4 { vec![] } else { vec![code; 2] });
            assert_eq!(response.error_code, if version < 4 { code } else { 0 });
        }
    }
}

#[test]
fn offsets_are_located_in_every_version() {
    for version in versions(ApiKey::ListOffsets) {
        let mut client = Client::new();
        let asked = |partition_index, timestamp| ListOffsetsPartition {
            partition_index,
            timestamp,
            current_leader_epoch: if version < 4 { -1 } else { 3 },
        };
        let partitions = [(0, -1), (1, -2), (2, 1000), (3, -3), (0, -4), (1, -5), (2, -6), (9, -1), (4, -1)];
        let body = ListOffsetsRequest {
            replica_id: -1,
            topics: vec![ListOffsetsTopic {
                name: "events".into(),
                partitions: partitions.map(|(p, at)| asked(p, at)).to_vec(),
            }],
            ..ListOffsetsRequest::default()
        };
        client.request(version, 1, &body);
        let ops = client.take_ops();
        let places: Vec<_> = ops
            .iter()
            .map(|op| match op.op {
                Op::Locate { current_epoch, at } => {
                    assert_eq!(current_epoch, (version >= 4).then_some(LeaderEpoch(3)));
                    at
                }
                _ => panic!("{op:?}"),
            })
            .collect();
        let expected = [Locate::Latest, Locate::Earliest, Locate::Timestamp(1000), Locate::LargestTimestamp];
        assert_eq!(places[..4], expected);
        assert_eq!(places[4..], [Locate::Earliest]);
        let located = |offset, timestamp_ms| {
            let leader_epoch = Some(LeaderEpoch(2));
            Answer::Located(Ok(Some(Located { offset: Offset(offset), timestamp_ms, leader_epoch })))
        };
        client.answer(ops[4].token, located(1, None));
        client.answer(ops[2].token, Answer::Located(Ok(None)));
        client.answer(ops[0].token, located(50, None));
        client.answer(ops[3].token, located(44, Some(1234)));
        assert_eq!(client.sent.len(), 0);
        client.answer(ops[1].token, Answer::Located(Err(PartitionError::OffsetNotAvailable)));
        let (_, response) = client.response::<ListOffsetsRequest>(version);
        let out = &response.topics[0].partitions;
        let codes: Vec<_> = out.iter().map(|p| p.error_code).collect();
        assert_eq!(codes, [0, if version < 5 { 5 } else { 78 }, 0, 0, 0, 0, 35, 3, 6]);
        let offsets: Vec<_> = out.iter().map(|p| p.offset).collect();
        assert_eq!(offsets, [50, -1, -1, 44, 1, -1, -1, -1, -1]);
        assert_eq!((out[3].timestamp, out[0].timestamp), (1234, -1));
    }
}

#[test]
fn ends_of_epochs_are_answered_in_every_version() {
    for version in versions(ApiKey::OffsetForLeaderEpoch) {
        let mut client = Client::new();
        let asked = |partition, leader_epoch| OffsetForLeaderPartition {
            partition,
            current_leader_epoch: 3,
            leader_epoch,
        };
        let body = OffsetForLeaderEpochRequest {
            topics: vec![OffsetForLeaderTopic {
                topic: "events".into(),
                partitions: vec![asked(0, 2), asked(1, 1), asked(2, -1), asked(9, 0), asked(3, 0)],
            }],
            ..OffsetForLeaderEpochRequest::default()
        };
        client.request(version, 1, &body);
        let ops = client.take_ops();
        assert!(matches!(
            ops[0].op,
            Op::EpochEnd { current_epoch: Some(LeaderEpoch(3)), epoch: LeaderEpoch(2) }
        ));
        client.answer(
            ops[0].token,
            Answer::EpochEnd(Ok(Some(EpochEnd { epoch: LeaderEpoch(1), end: Offset(40) }))),
        );
        client.answer(ops[1].token, Answer::EpochEnd(Ok(None)));
        client.answer(ops[2].token, Answer::EpochEnd(Err(PartitionError::UnknownLeaderEpoch)));
        let (_, response) = client.response::<OffsetForLeaderEpochRequest>(version);
        let out: Vec<_> = response.topics[0]
            .partitions
            .iter()
            .map(|p| (p.error_code, p.leader_epoch, p.end_offset))
            .collect();
        assert_eq!(out, [(0, 1, 40), (0, -1, -1), (0, -1, -1), (3, -1, -1), (75, -1, -1)]);
    }
}

#[test]
fn errors_and_answers_are_counted_by_api() {
    let mut client = Client::new();
    client.request(12, 1, &about(vec![named("nowhere"), named("elsewhere")]));
    client.request(3, 1, &ApiVersionsRequest::default());
    client.frame(Bytes::from_static(&[1, 2]));
    let stats = client.kafka.stats();
    let requests: Vec<_> = stats.requests.iter().map(|s| (s.name, s.requests, s.errors.clone())).collect();
    assert_eq!(requests, [("Metadata", 1, vec![("UnknownTopicOrPartition", 2)]), ("ApiVersions", 1, vec![])]);
    assert_eq!((stats.malformed, stats.pauses), (1, 0));
}
