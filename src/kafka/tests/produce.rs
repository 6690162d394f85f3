//! Produce sessions: order, pipelining, acks, and what is refused.

use std::sync::Arc;
use std::time::Duration;

use highwater_shards::mail::{Acks, PartitionError};

use super::*;
use crate::kafka::messages::metadata::MetadataRequest;
use crate::kafka::messages::produce::{
    PartitionProduceData, ProduceRequest, ProduceResponse, TopicProduceData,
};

pub fn request(version: i16, acks: i16, partitions: &[i32]) -> ProduceRequest {
    let partition = |&index| PartitionProduceData { index, records: Some(Bytes::from_static(b"records")) };
    ProduceRequest {
        transactional_id: None,
        acks,
        timeout_ms: 1500,
        topic_data: vec![TopicProduceData {
            name: if version < 13 { "events".into() } else { Arc::default() },
            topic_id: if version < 13 { TopicId::default() } else { TOPIC },
            partition_data: partitions.iter().map(partition).collect(),
        }],
    }
}

fn codes(response: &ProduceResponse) -> Vec<i16> {
    response.responses.iter().flat_map(|t| &t.partition_responses).map(|p| p.error_code).collect()
}

#[test]
fn records_go_to_the_owning_shards_as_slices_and_are_answered_in_every_version() {
    for version in 3..=13 {
        let mut client = Client::new();
        let mut body = request(version, -1, &[0, 1, 3]);
        body.topic_data[0].partition_data[1].records = Some(Bytes::from_static(b"others"));
        let frame = request_frame(version, 77, "test", &body).slice(4..);
        let within = frame.as_ptr_range();
        client.frame(frame);
        let ops = client.take_ops();
        for (op, (index, shard)) in ops.iter().zip([(0, 0), (1, 1), (3, 1)]) {
            assert_eq!((op.partition, op.shard), (partition(index), ShardId(shard)));
            let Op::Append { acks: Acks::All, deadline, records } = &op.op else { panic!("{op:?}") };
            assert_eq!(*deadline, client.now + Duration::from_millis(1500));
            assert!(within.contains(&records.as_ptr()), "records are not copied");
            assert_eq!(&records[..], if index == 1 { &b"others"[..] } else { b"records" });
        }
        client.answer(ops[2].token, appended(30));
        client.answer(ops[0].token, appended(10));
        assert_eq!(client.sent.len(), 0, "one partition is missing");
        client.answer(ops[1].token, Answer::Appended(Err(PartitionError::NotEnoughReplicas)));
        let (correlation, response) = client.response::<ProduceRequest>(version);
        assert_eq!(correlation, 77);
        assert_eq!(codes(&response), [0, 19, 0]);
        let answered = &response.responses[0].partition_responses;
        assert_eq!(answered.iter().map(|p| p.base_offset).collect::<Vec<_>>(), [10, -1, 30]);
        assert_eq!(answered[1].error_message.is_some(), version >= 8);
        assert_eq!(client.in_flight(), 0);
    }
}

#[test]
fn pipelined_requests_are_worked_on_at_once_and_answered_in_order() {
    let mut client = Client::new();
    for correlation in 0..5 {
        client.request(9, correlation, &request(9, 1, &[correlation % 4]));
    }
    assert_eq!(client.in_flight(), 5);
    let ops = client.take_ops();
    assert_eq!(ops.len(), 5, "all of them are worked on");
    for op in ops.iter().rev().take(4) {
        client.answer(op.token, appended(0));
        assert_eq!(client.sent.len(), 0, "the oldest is not answered");
    }
    client.answer(ops[0].token, appended(0));
    let order: Vec<_> = client.frames().iter().map(|frame| decoded::<ProduceRequest>(9, frame).0).collect();
    assert_eq!(order, [0, 1, 2, 3, 4]);
}

#[test]
fn another_request_waits_for_the_produce_before_it_and_holds_up_the_one_behind() {
    let mut client = Client::new();
    client.request(9, 1, &request(9, 1, &[0]));
    client.request(12, 2, &MetadataRequest::default());
    client.request(9, 3, &request(9, 1, &[1]));
    assert_eq!((client.ops.len(), client.in_flight()), (1, 3));
    let first = client.op();
    client.answer(first.token, appended(0));
    assert_eq!(client.frames().len(), 2, "the produce and the metadata behind it");
    let second = client.op();
    client.answer(second.token, appended(0));
    assert_eq!(decoded::<ProduceRequest>(9, &client.frames()[0]).0, 3);
}

#[test]
fn what_cannot_be_appended_is_refused_partition_by_partition() {
    let mut client = Client::new();
    let mut body = request(9, -1, &[0, 9, -1, 4, 2, 3]);
    body.topic_data[0].partition_data[4].records = None;
    body.topic_data[0].partition_data[5].records = Some(Bytes::new());
    body.topic_data.push(TopicProduceData { name: "nowhere".into(), ..body.topic_data[0].clone() });
    client.request(9, 1, &body);
    let op = client.op();
    assert_eq!(op.partition, partition(0));
    client.answer(op.token, appended(5));
    let (_, response) = client.response::<ProduceRequest>(9);
    assert_eq!(codes(&response), [0, 3, 3, 6, 87, 87, 3, 3, 3, 3, 3, 3]);

    let mut by_id = request(13, -1, &[0]);
    by_id.topic_data[0].topic_id = TopicId(1);
    client.request(13, 2, &by_id);
    assert_eq!(codes(&client.response::<ProduceRequest>(13).1), [100]);
}

#[test]
fn a_whole_request_is_refused_by_its_acks_its_transaction_or_its_version() {
    let mut client = Client::new();
    client.request(9, 1, &request(9, 2, &[0, 9]));
    assert_eq!(codes(&client.response::<ProduceRequest>(9).1), [21, 21]);
    let transactional = ProduceRequest { transactional_id: Some("t".into()), ..request(9, -1, &[0]) };
    client.request(9, 2, &transactional);
    assert_eq!(codes(&client.response::<ProduceRequest>(9).1), [53]);
    for version in 0..=2 {
        client.request(version, 3, &request(version, 1, &[0]));
        assert_eq!(codes(&client.response::<ProduceRequest>(version).1), [35]);
    }
    assert!(client.ops.is_empty(), "nothing is appended");
}

#[test]
fn acks_0_is_not_answered_and_an_error_closes_the_connection_in_its_turn() {
    let mut client = Client::new();
    client.request(9, 1, &request(9, 0, &[0]));
    let op = client.op();
    assert!(matches!(op.op, Op::Append { acks: Acks::None, .. }));
    client.answer(op.token, appended(0));
    assert_eq!((client.sent.len(), client.closed, client.in_flight()), (0, None, 0));

    client.request(9, 2, &request(9, -1, &[0]));
    client.request(9, 3, &request(9, 0, &[9]));
    client.request(9, 4, &request(9, -1, &[1]));
    assert_eq!(client.closed, None, "the answer before it comes first");
    let ops = client.take_ops();
    client.answer(ops[0].token, appended(1));
    assert_eq!(decoded::<ProduceRequest>(9, &client.frames()[0]).0, 2);
    assert_eq!(client.closed, Some(CloseReason::UnansweredError));
    client.answer(ops[1].token, appended(2));
    client.request(9, 5, &request(9, -1, &[1]));
    assert!(client.sent.is_empty() && client.ops.is_empty(), "nothing is done for a closed connection");
    client.hang_up();
    assert_eq!(client.in_flight(), 0);
}

#[test]
fn an_unreadable_produce_appends_nothing_and_closes_after_the_answers_before_it() {
    let mut client = Client::new();
    client.request(9, 1, &request(9, -1, &[0]));
    let whole = request_frame(9, 2, "test", &request(9, -1, &[0, 1])).slice(4..);
    client.frame(whole.slice(..whole.len() - 2));
    let op = client.op();
    assert_eq!(client.closed, None);
    client.answer(op.token, appended(0));
    assert_eq!((client.frames().len(), client.closed), (1, Some(CloseReason::Malformed)));
}

#[test]
fn a_connection_that_closes_forgets_everything_and_late_answers_are_dropped() {
    let mut client = Client::new();
    client.request(9, 1, &request(9, -1, &[0]));
    client.request(12, 2, &MetadataRequest::default());
    let op = client.op();
    client.hang_up();
    assert_eq!(client.in_flight(), 0);
    client.answer(op.token, appended(0));
    assert!(client.sent.is_empty() && client.closed.is_none());
}

#[test]
fn tokens_keep_their_requests_apart_when_their_numbers_begin_again() {
    let mut client = Client::new();
    client.session.set_next(u64::MAX >> 20);
    for correlation in 0..3 {
        client.request(9, correlation, &request(9, 1, &[0]));
    }
    for op in client.take_ops().iter().rev() {
        client.answer(op.token, appended(0));
    }
    let order: Vec<_> = client.frames().iter().map(|frame| decoded::<ProduceRequest>(9, frame).0).collect();
    assert_eq!(order, [0, 1, 2]);
}

#[test]
fn a_flood_of_requests_behind_a_waiting_one_closes_the_connection() {
    let mut client =
        Client::with(KafkaConfig { waiting_frames_max: 3, waiting_bytes_max: 100, ..KafkaConfig::default() });
    client.request(9, 1, &request(9, -1, &[0]));
    for _ in 0..3 {
        client.request(12, 2, &MetadataRequest::default());
    }
    assert_eq!((client.in_flight(), client.closed), (4, None));
    client.request(12, 2, &MetadataRequest::default());
    assert_eq!(client.closed, Some(CloseReason::TooMany));
}

#[test]
fn the_longest_throttle_is_answered_and_the_connection_is_not_read_from_for_as_long() {
    for version in 3..=13 {
        let mut client = Client::new();
        client.request(version, 1, &request(version, -1, &[0, 1, 3]));
        for (op, ms) in client.take_ops().iter().zip([20, 300, 0]) {
            client.answer(op.token, appended_slowly(0, ms));
        }
        let (_, response) = client.response::<ProduceRequest>(version);
        assert_eq!((response.throttle_time_ms, codes(&response)), (300, vec![0, 0, 0]));
        assert_eq!(client.in_flight(), usize::MAX, "full for the shard, which stops reading");

        client.request(version, 2, &request(version, -1, &[0]));
        client.request(12, 3, &MetadataRequest::default());
        client.advance(Duration::from_millis(299));
        assert!(client.ops.is_empty() && client.sent.is_empty(), "what was read already waits");
        client.advance(Duration::from_millis(1));
        let op = client.op();
        assert_eq!(client.in_flight(), 2);
        client.answer(op.token, appended(1));
        assert_eq!((client.frames().len(), client.in_flight()), (2, 0));
        assert_eq!(client.kafka.stats().pauses, 1);
    }
}

#[test]
fn a_throttle_is_bounded_and_counts_from_each_answer_on() {
    let mut client = Client::new();
    for correlation in 0..3 {
        client.request(9, correlation, &request(9, 1, &[0]));
    }
    let ops = client.take_ops();
    client.answer(ops[0].token, appended_slowly(0, 3_600_000));
    let throttle = |frame: &Bytes| decoded::<ProduceRequest>(9, frame).1.throttle_time_ms;
    assert_eq!(throttle(&client.frames()[0]), 1000, "a second at most");
    client.advance(Duration::from_millis(900));
    client.answer(ops[1].token, appended_slowly(1, 400));
    client.answer(ops[2].token, appended_slowly(2, 10));
    assert_eq!(client.frames().iter().map(throttle).collect::<Vec<_>>(), [400, 10], "answers do not wait");
    client.advance(Duration::from_millis(399));
    assert_eq!(client.in_flight(), usize::MAX, "the longest pause counts");
    client.advance(Duration::from_millis(1));
    assert_eq!((client.in_flight(), client.timers.len()), (0, 0));
}

#[test]
fn a_producer_without_acks_is_slowed_down_too_and_may_leave_while_it_pauses() {
    let mut client = Client::new();
    client.request(9, 1, &request(9, 0, &[0]));
    let op = client.op();
    client.answer(op.token, appended_slowly(0, 50));
    assert_eq!((client.sent.len(), client.in_flight(), client.timers.len()), (0, usize::MAX, 1));
    client.hang_up();
    assert_eq!((client.in_flight(), client.timers.len()), (0, 0));
}

#[test]
fn waiting_requests_of_many_bytes_count_as_a_full_connection() {
    let mut client = Client::with(KafkaConfig { waiting_bytes_max: 10, ..KafkaConfig::default() });
    client.request(9, 1, &request(9, -1, &[0]));
    client.request(12, 2, &MetadataRequest::default());
    assert_eq!(client.in_flight(), usize::MAX);
    let op = client.op();
    client.answer(op.token, appended(0));
    assert_eq!(client.in_flight(), 0);
}

#[test]
fn a_small_produce_costs_a_handful_of_allocations() {
    let mut client = Client::new();
    let frame = request_frame(9, 1, "test", &request(9, -1, &[0])).slice(4..);
    let mut acts = Vec::with_capacity(4);
    let view = client.view.clone();
    let cost = allocation_counter::measure(|| {
        for _ in 0..100 {
            let mut cx =
                Cx { now: Instant::ZERO, shard: ShardId(0), conn: ConnId(1), view: &view, acts: &mut acts };
            client.kafka.on_frame(&mut cx, &mut client.session, frame.clone());
            let Some(Act::Submit { token, .. }) = acts.pop() else { panic!("an append") };
            let mut cx =
                Cx { now: Instant::ZERO, shard: ShardId(0), conn: ConnId(1), view: &view, acts: &mut acts };
            client.kafka.on_answer(&mut cx, &mut client.session, token, appended(0));
            assert!(matches!(acts.pop(), Some(Act::Send { .. })));
        }
    });
    assert!(cost.count_total <= 700, "{} allocations for 100 requests", cost.count_total);
}
