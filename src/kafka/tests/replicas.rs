//! Reassignments and elections, as clients ask for them.

use super::*;
use crate::control::request::{ElectionKind, PartitionRef, Reassignment, Refusal, Why};
use crate::kafka::messages::replicas::{
    AlterPartitionReassignmentsRequest, ElectLeadersRequest, ListPartitionReassignmentsRequest,
    ListPartitionReassignmentsTopics, OngoingPartitionReassignment, ReassignablePartition, ReassignableTopic,
    TopicPartitions,
};

fn wish(partition_index: i32, replicas: Option<&[i32]>) -> ReassignablePartition {
    ReassignablePartition { partition_index, replicas: replicas.map(<[i32]>::to_vec) }
}

fn part(topic: &str, index: u32) -> PartitionRef {
    PartitionRef { topic: topic.into(), index: PartitionIndex(index) }
}

#[test]
fn reassignments_are_asked_for_partition_by_partition_and_answered_by_topic() {
    for version in versions(ApiKey::AlterPartitionReassignments) {
        let mut client = Client::new();
        let topic = |name: &str, partitions| ReassignableTopic { name: name.into(), partitions };
        let body = AlterPartitionReassignmentsRequest {
            timeout_ms: 7000,
            topics: vec![
                topic("events", vec![wish(0, Some(&[2, 1])), wish(-1, None), wish(1, Some(&[-1]))]),
                topic("none", vec![wish(0, None)]),
            ],
            ..AlterPartitionReassignmentsRequest::default()
        };
        client.request(version, 1, &body);
        let (token, asked) = client.asks.remove(0);
        let both = Some(vec![NodeId(2), NodeId(1)]);
        let partitions = vec![
            Reassignment { partition: part("events", 0), replicas: both },
            Reassignment { partition: part("none", 0), replicas: None },
        ];
        assert_eq!(asked, Request::Reassign { partitions, timeout: Duration::from_secs(7) });
        let refusal = Refusal::new(Why::NoReassignment, "nothing to cancel");
        client.reply(token, Reply::Reassign(vec![Ok(()), Err(refusal)]));
        let (_, response) = client.response::<AlterPartitionReassignmentsRequest>(version);
        let seen: Vec<(&str, Vec<(i32, i16)>)> = response
            .responses
            .iter()
            .map(|t| (&*t.name, t.partitions.iter().map(|p| (p.partition_index, p.error_code)).collect()))
            .collect();
        assert_eq!(seen, [("events", vec![(0, 0), (-1, 3), (1, 39)]), ("none", vec![(0, 85)])]);
    }
}

#[test]
fn a_replication_factor_changes_only_when_the_request_allows_it() {
    let mut client = Client::new();
    let partitions = vec![wish(0, Some(&[1, 2])), wish(1, Some(&[2]))];
    let body = AlterPartitionReassignmentsRequest {
        allow_replication_factor_change: false,
        topics: vec![ReassignableTopic { name: "events".into(), partitions }],
        ..AlterPartitionReassignmentsRequest::default()
    };
    client.request(1, 1, &body);
    let (token, asked) = client.asks.remove(0);
    assert!(matches!(asked, Request::Reassign { partitions, .. } if partitions.len() == 1));
    client.reply(token, Reply::Reassign(vec![Ok(())]));
    let (_, response) = client.response::<AlterPartitionReassignmentsRequest>(1);
    let codes: Vec<i16> = response.responses[0].partitions.iter().map(|p| p.error_code).collect();
    assert_eq!(codes, [38, 0]);
}

#[test]
fn reassignments_under_way_are_listed_with_who_comes_and_who_goes() {
    let mut client = Client::new();
    let mut image = image();
    let state = PartitionState {
        replicas: [2, 1].map(NodeId).to_vec(),
        isr: vec![NodeId(1)],
        leader: Some(NodeId(1)),
        adding: vec![NodeId(2)],
        removing: vec![NodeId(1)],
        ..PartitionState::default()
    };
    image.put_partitions(TOPIC, vec![(3, state)]);
    client.view = Arc::new(image);
    let ongoing = OngoingPartitionReassignment {
        partition_index: 3,
        replicas: vec![2, 1],
        adding_replicas: vec![2],
        removing_replicas: vec![1],
    };
    let about = |partition_indexes: Vec<i32>| {
        Some(vec![ListPartitionReassignmentsTopics { name: "events".into(), partition_indexes }])
    };
    for (topics, expected) in
        [(None, 1), (about(vec![0, 3, -1, 99]), 1), (about(vec![0]), 0), (Some(vec![]), 0)]
    {
        let body =
            ListPartitionReassignmentsRequest { topics, ..ListPartitionReassignmentsRequest::default() };
        client.request(0, 1, &body);
        let (_, response) = client.response::<ListPartitionReassignmentsRequest>(0);
        assert_eq!((response.error_code, response.topics.len()), (0, expected));
        if expected == 1 {
            assert_eq!(response.topics[0].partitions, [ongoing.clone()]);
        }
    }
}

#[test]
fn elections_are_asked_for_by_kind_and_of_all_partitions_the_answer_says_which() {
    for version in versions(ApiKey::ElectLeaders) {
        let mut client = Client::new();
        let topics = vec![TopicPartitions { topic: "events".into(), partitions: vec![4, 0] }];
        let body = ElectLeadersRequest { topic_partitions: Some(topics), ..ElectLeadersRequest::default() };
        client.request(version, 1, &body);
        let (token, asked) = client.asks.remove(0);
        let partitions = vec![part("events", 4), part("events", 0)];
        let timeout = Duration::from_secs(60);
        let kind = ElectionKind::Preferred;
        assert_eq!(asked, Request::ElectLeaders { kind, partitions: Some(partitions), timeout });
        let refusal = || Refusal::new(Why::PreferredLeaderNotAvailable, "it is fenced");
        let results = vec![(part("events", 4), Err(refusal())), (part("events", 0), Ok(()))];
        client.reply(token, Reply::ElectLeaders(Ok(results)));
        let (_, response) = client.response::<ElectLeadersRequest>(version);
        let codes = |results: &[crate::kafka::messages::replicas::PartitionResult]| -> Vec<(i32, i16)> {
            results.iter().map(|p| (p.partition_id, p.error_code)).collect()
        };
        assert_eq!(codes(&response.replica_election_results[0].partition_result), [(4, 80), (0, 0)]);
        let all = ElectLeadersRequest { topic_partitions: None, ..ElectLeadersRequest::default() };
        client.request(version, 2, &all);
        let (token, asked) = client.asks.remove(0);
        assert!(matches!(asked, Request::ElectLeaders { partitions: None, .. }));
        let results = vec![(part("a", 1), Ok(())), (part("b", 2), Err(refusal()))];
        client.reply(token, Reply::ElectLeaders(Ok(results)));
        let (_, response) = client.response::<ElectLeadersRequest>(version);
        let topics: Vec<&str> = response.replica_election_results.iter().map(|t| &*t.topic).collect();
        assert_eq!(topics, ["a", "b"]);
    }
    let mut client = Client::new();
    client.request(2, 1, &ElectLeadersRequest { election_type: 7, ..ElectLeadersRequest::default() });
    assert_eq!(client.response::<ElectLeadersRequest>(2).1.error_code, 42);
}
