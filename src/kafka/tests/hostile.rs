//! What no client should send: hostile lengths, truncated and random frames. A session answers, refuses or closes;
//! it never panics and never allocates more than a small multiple of what was sent.

use super::model::Model;
use super::*;
use crate::kafka::messages::tests::{Arbitrary, Random};
use crate::kafka::messages::{admin, api_versions, cluster, coordinator, fetch, metadata, offsets, produce};

/// A whole frame of every API in every version.
fn every_request(random: &mut Random) -> Vec<(ApiKey, i16, Bytes)> {
    fn of<C: Call + Arbitrary>(random: &mut Random, all: &mut Vec<(ApiKey, i16, Bytes)>) {
        for version in versions(C::API) {
            let body = C::arbitrary(random, C::API.version(version));
            all.push((C::API, version, request_frame(version, 7, "client", &body).slice(4..)));
        }
    }
    let mut all = Vec::new();
    of::<produce::ProduceRequest>(random, &mut all);
    of::<fetch::FetchRequest>(random, &mut all);
    of::<offsets::ListOffsetsRequest>(random, &mut all);
    of::<coordinator::FindCoordinatorRequest>(random, &mut all);
    of::<metadata::MetadataRequest>(random, &mut all);
    of::<api_versions::ApiVersionsRequest>(random, &mut all);
    of::<admin::CreateTopicsRequest>(random, &mut all);
    of::<admin::DeleteTopicsRequest>(random, &mut all);
    of::<offsets::DeleteRecordsRequest>(random, &mut all);
    of::<offsets::InitProducerIdRequest>(random, &mut all);
    of::<offsets::OffsetForLeaderEpochRequest>(random, &mut all);
    of::<cluster::DescribeConfigsRequest>(random, &mut all);
    of::<admin::CreatePartitionsRequest>(random, &mut all);
    of::<cluster::IncrementalAlterConfigsRequest>(random, &mut all);
    of::<cluster::DescribeClusterRequest>(random, &mut all);
    // And the ones that name what exists, which take the longer way.
    for version in 0..=13 {
        let body = super::produce::request(version, -1, &[0, 1, 2]);
        all.push((ApiKey::Produce, version, request_frame(version, 7, "client", &body).slice(4..)));
    }
    for version in versions(ApiKey::Fetch) {
        let body = super::fetch::request(version, &[(0, 0), (1, 5)]);
        all.push((ApiKey::Fetch, version, request_frame(version, 7, "client", &body).slice(4..)));
    }
    all
}

#[test]
fn every_request_cut_short_closes_the_connection_and_does_nothing_else() {
    for seed in 0..3 {
        for (api, version, frame) in every_request(&mut Random(seed)) {
            for cut in 0..frame.len() {
                let mut client = Client::new();
                client.frame(frame.slice(..cut));
                assert_eq!(client.closed, Some(CloseReason::Malformed), "{api:?} {version} cut at {cut}");
                assert!(client.ops.is_empty() && client.asks.is_empty() && client.sent.is_empty());
                assert!(client.timers.is_empty());
            }
        }
    }
}

/// Bytes that one small frame may make a session allocate: nothing of what a length merely declares.
const ALLOCATED_MAX: u64 = 64 * 1024;

#[test]
fn a_hostile_length_in_any_place_allocates_nothing_to_speak_of() {
    let lengths: [&[u8]; 4] = [
        &[0x7f, 0xff, 0xff, 0xff],
        &[0x7f, 0xff],
        &[0xff, 0xff, 0xff, 0xff, 0x0f],
        &[0xff, 0xff, 0xff, 0x7f],
    ];
    for (api, version, frame) in every_request(&mut Random(1)) {
        // The answers to real questions are larger than that; it is the reading that is measured.
        let answers = matches!(api, ApiKey::Metadata | ApiKey::DescribeConfigs);
        for at in 8..frame.len() {
            for length in lengths {
                let mut hostile = frame.to_vec();
                let end = frame.len().min(at + length.len());
                hostile[at..end].copy_from_slice(&length[..end - at]);
                let mut client = Client::new();
                let hostile = Bytes::from(hostile);
                let cost = allocation_counter::measure(|| client.frame(hostile));
                assert!(
                    cost.bytes_max < ALLOCATED_MAX * if answers { 4 } else { 1 },
                    "{api:?} {version} at {at}: {} bytes",
                    cost.bytes_max
                );
                client.hang_up();
            }
        }
    }
}

#[test]
fn a_frame_full_of_elements_unfolds_into_a_bounded_multiple() {
    let v = ApiKey::Metadata.version(9);
    let mut body = crate::kafka::wire::Writer::frame(0);
    // Three million topics of two bytes: a name of no bytes, and no tags.
    body.varint(3_000_001);
    body.raw(&[1, 0].repeat(3_000_000));
    body.raw(&[1, 0, 0, 0]);
    let mut frame = request_frame(9, 1, "", &metadata::MetadataRequest::default()).slice(4..15).to_vec();
    assert!(v.flexible);
    frame.extend_from_slice(&body.finish_frame(0)[4..]);
    let mut client = Client::new();
    let frame = Bytes::from(frame);
    let cost = allocation_counter::measure(|| client.frame(frame));
    assert_eq!(client.closed, Some(CloseReason::Malformed));
    assert!(cost.bytes_max < ALLOCATED_MAX, "{} bytes", cost.bytes_max);
}

#[test]
fn naming_one_topic_a_hundred_thousand_times_shows_it_once() {
    let topic = metadata::MetadataRequestTopic { name: Some("events".into()), ..Default::default() };
    let mut client = Client::new();
    let body = metadata::MetadataRequest { topics: Some(vec![topic; 100_000]), ..Default::default() };
    client.request(12, 1, &body);
    assert_eq!(client.response::<metadata::MetadataRequest>(12).1.topics.len(), 1);
    let resource = cluster::DescribeConfigsResource {
        resource_type: 2,
        resource_name: "events".into(),
        configuration_keys: None,
    };
    client.request(
        4,
        1,
        &cluster::DescribeConfigsRequest { resources: vec![resource; 100_000], ..Default::default() },
    );
    assert_eq!(client.response::<cluster::DescribeConfigsRequest>(4).1.results.len(), 1);
}

#[test]
fn random_and_damaged_frames_are_answered_or_close_the_connection() {
    let mut random = Random(42);
    let requests = every_request(&mut random);
    let mut model = Model::new(7);
    for round in 0..100_000 {
        let frame = if round % 4 == 0 {
            let len = random.below(64);
            (0..len).map(|_| random.next().to_le_bytes()[0]).collect()
        } else {
            let mut frame = requests[random.below(requests.len())].2.to_vec();
            for _ in 0..random.below(4) {
                let at = random.below(frame.len());
                frame[at] = random.next().to_le_bytes()[0];
            }
            frame
        };
        model.client.frame(frame.into());
        model.settle();
        if model.client.closed.is_some() {
            model.client.hang_up();
            model.check_idle();
            model.reconnect();
        } else {
            // A fetch may have asked for a wait of weeks.
            model.client.advance(Duration::from_secs(1 << 22));
            model.settle();
            assert_eq!(model.client.in_flight(), 0, "round {round}: a request was not answered");
            model.check_idle();
        }
        model.client.sent.clear();
    }
}
