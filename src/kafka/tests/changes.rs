//! Changes of metadata that a client pipelines: taken up at once, answered in order, and alone.

use std::collections::VecDeque;

use super::model::Model;
use super::*;
use crate::control::request::{Refusal, Why};
use crate::kafka::changes::{CHANGES_BYTES_MAX, CHANGES_MAX};
use crate::kafka::messages::admin::{DeleteTopicState, DeleteTopicsRequest};
use crate::kafka::messages::api_versions::ApiVersionsRequest;
use crate::kafka::messages::cluster::{AlterConfigsResource, IncrementalAlterConfigsRequest};
use crate::kafka::messages::tests::Random;

/// A change of the settings of a topic, or of a resource that has none and is refused at once.
fn alteration(resource_type: i8, name: &str) -> IncrementalAlterConfigsRequest {
    let resource =
        AlterConfigsResource { resource_type, resource_name: name.into(), ..AlterConfigsResource::default() };
    IncrementalAlterConfigsRequest { resources: vec![resource], ..IncrementalAlterConfigsRequest::default() }
}

fn altered(result: Result<(), Why>) -> Reply {
    Reply::AlterConfigs(vec![result.map_err(|why| Refusal::new(why, "words"))])
}

/// Correlations of the answers that were sent, and their codes.
fn answers(client: &mut Client) -> Vec<(i32, i16)> {
    let frames = client.frames();
    let decoded = frames.iter().map(|frame| decoded::<IncrementalAlterConfigsRequest>(1, frame));
    decoded.map(|(correlation, response)| (correlation, response.responses[0].error_code)).collect()
}

#[test]
fn changes_are_asked_for_at_once_and_answered_in_order() {
    let mut client = Client::new();
    for correlation in 0..3 {
        client.request(1, correlation, &alteration(2, "events"));
    }
    assert_eq!((client.asks.len(), client.in_flight()), (3, 3));
    let tokens: Vec<_> = client.asks.iter().map(|(token, _)| *token).collect();
    client.reply(tokens[2], altered(Ok(())));
    client.reply(tokens[1], altered(Err(Why::TimedOut)));
    assert!(client.sent.is_empty(), "the first is not answered");
    client.reply(tokens[0], altered(Ok(())));
    assert_eq!(answers(&mut client), [(0, 0), (1, 7), (2, 0)]);
    assert_eq!(client.in_flight(), 0);
}

#[test]
fn what_is_refused_at_once_waits_for_the_changes_before_it() {
    let mut client = Client::new();
    client.request(1, 0, &alteration(2, "events"));
    client.request(1, 1, &alteration(99, "what"));
    client.request(1, 2, &alteration(2, "events"));
    assert_eq!((client.asks.len(), client.sent.len()), (2, 0));
    let (second, first) = (client.asks[1].0, client.asks[0].0);
    client.reply(second, altered(Ok(())));
    client.reply(first, altered(Ok(())));
    assert_eq!(answers(&mut client), [(0, 0), (1, 42), (2, 0)]);
}

#[test]
fn other_requests_see_the_effects_of_changes_and_changes_those_of_others() {
    let mut client = Client::new();
    client.request(1, 0, &alteration(2, "events"));
    client.request(3, 1, &ApiVersionsRequest::default());
    client.request(1, 2, &alteration(2, "events"));
    client.request(9, 3, &super::produce::request(9, -1, &[0]));
    client.request(1, 4, &alteration(2, "events"));
    assert_eq!((client.asks.len(), client.sent.len(), client.in_flight()), (1, 0, 5));
    let (token, _) = client.asks.remove(0);
    client.reply(token, altered(Ok(())));
    assert_eq!(
        (client.sent.len(), client.asks.len(), client.ops.len()),
        (2, 1, 0),
        "as far as the next change"
    );
    let (token, _) = client.asks.remove(0);
    client.reply(token, altered(Ok(())));
    assert_eq!((client.sent.len(), client.asks.len()), (3, 0), "as far as the records");
    let token = client.op().token;
    client.answer(token, appended(0));
    assert_eq!((client.sent.len(), client.asks.len()), (4, 1));
}

#[test]
fn a_connection_has_a_bounded_number_and_size_of_changes_under_way() {
    let mut client = Client::new();
    for correlation in 0..100 {
        client.request(1, correlation, &alteration(2, "events"));
    }
    assert_eq!((client.asks.len(), client.in_flight()), (CHANGES_MAX, 100));
    let token = client.asks[0].0;
    client.reply(token, altered(Ok(())));
    assert_eq!(client.asks.len(), CHANGES_MAX + 1);

    let mut client = Client::new();
    let topic =
        |n: usize| DeleteTopicState { name: Some(format!("{n:0200}")), ..DeleteTopicState::default() };
    let large = DeleteTopicsRequest { topics: (0..200).map(topic).collect(), ..Default::default() };
    for correlation in 0..10 {
        client.request(6, correlation, &large);
    }
    let frame_bytes = request_frame(6, 0, "test", &large).len() - 4;
    assert_eq!(client.asks.len(), CHANGES_BYTES_MAX.div_ceil(frame_bytes));
    for correlation in 0..10 {
        let Some((token, Request::DeleteTopics { topics, .. })) =
            (!client.asks.is_empty()).then(|| client.asks.remove(0))
        else {
            panic!("one is asked for whenever one is answered")
        };
        let refused = topics.iter().map(|_| Err(Refusal::new(Why::UnknownTopic, "no")));
        client.reply(token, Reply::DeleteTopics(refused.collect()));
        assert_eq!(client.response::<DeleteTopicsRequest>(6).0, correlation);
    }
}

#[test]
fn an_unreadable_change_closes_after_the_answers_before_it() {
    let mut client = Client::new();
    client.request(1, 0, &alteration(2, "events"));
    client.request(1, 1, &alteration(2, "events"));
    let cut = request_frame(1, 2, "test", &alteration(2, "events"));
    client.frame(cut.slice(4..cut.len() - 3));
    client.request(1, 3, &alteration(2, "events"));
    assert_eq!((client.asks.len(), client.closed), (2, None));
    assert_eq!(client.in_flight(), usize::MAX, "nothing more is read");
    let tokens: Vec<_> = client.asks.iter().map(|(token, _)| *token).collect();
    client.reply(tokens[0], altered(Ok(())));
    assert_eq!(client.closed, None);
    client.reply(tokens[1], altered(Ok(())));
    assert_eq!(client.closed, Some(CloseReason::Malformed));
    assert_eq!(answers(&mut client), [(0, 0), (1, 0)]);
}

#[test]
fn a_reply_after_the_end_of_the_connection_does_nothing() {
    let mut client = Client::new();
    client.request(1, 0, &alteration(2, "events"));
    client.hang_up();
    let token = client.asks[0].0;
    client.reply(token, altered(Ok(())));
    assert!(client.sent.is_empty());
}

/// Changes, records and questions on one connection, answered from inside in random order.
#[test]
fn all_is_answered_in_order_whatever_comes_when() {
    for seed in 0..300 {
        let mut model = Model::new(seed);
        let mut random = Random(seed.wrapping_mul(31));
        let mut expected = VecDeque::new();
        let mut sent = 0;
        for correlation in 0..200 {
            match random.below(6) {
                0 => model.client.request(3, correlation, &ApiVersionsRequest::default()),
                1 => model.client.request(9, correlation, &super::produce::request(9, -1, &[0, 1])),
                2 => model.client.request(1, correlation, &alteration(99, "what")),
                _ => model.client.request(1, correlation, &alteration(2, "events")),
            }
            expected.push_back(correlation);
            for _ in 0..random.below(4) {
                match random.below(4) {
                    0 => model.run_ops(),
                    1 => _ = model.deliver(),
                    2 => _ = model.reply(),
                    _ => model.client.advance(Duration::from_millis(random.below(40) as u64)),
                }
            }
            for frame in model.client.frames() {
                let correlation = i32::from_be_bytes(*frame.first_chunk().unwrap());
                assert_eq!(expected.pop_front(), Some(correlation), "seed {seed}");
                sent += 1;
            }
        }
        for _ in 0..200 {
            model.settle();
            model.client.advance(Duration::from_secs(1));
        }
        sent += model.client.frames().len();
        assert_eq!((sent, model.client.in_flight(), model.client.closed), (200, 0, None), "seed {seed}");
        model.check_idle();
    }
}
