//! Fetch sessions: long polls, bounds on bytes, watches, and what is refused.

use std::time::Duration;

use highwater_shards::mail::{PartitionError, ReadEnds, ReadError};

use super::*;
use crate::kafka::messages::fetch::{FetchPartition, FetchRequest, FetchResponse, FetchTopic, PartitionData};

pub fn request(version: i16, partitions: &[(i32, i64)]) -> FetchRequest {
    let partition = |&(partition, fetch_offset)| FetchPartition {
        partition,
        fetch_offset,
        partition_max_bytes: 1000,
        ..FetchPartition::default()
    };
    FetchRequest {
        max_wait_ms: 500,
        min_bytes: 1,
        max_bytes: 10_000,
        session_epoch: if version < 7 { -1 } else { 0 },
        topics: vec![FetchTopic {
            topic: if version < 13 { "events".into() } else { Arc::default() },
            topic_id: if version < 13 { TopicId::default() } else { TOPIC },
            partitions: partitions.iter().map(partition).collect(),
        }],
        ..FetchRequest::default()
    }
}

fn partitions(response: &FetchResponse) -> Vec<&PartitionData> {
    response.responses.iter().flat_map(|t| &t.partitions).collect()
}

fn records(response: &FetchResponse) -> Vec<&[u8]> {
    partitions(response).into_iter().map(|p| p.records.as_deref().unwrap()).collect()
}

fn read_of(op: &Submitted) -> (u32, bool, u32) {
    let Op::Read { bytes_max, first_batch_whole, watch_below_bytes, .. } = op.op else { panic!("{op:?}") };
    (bytes_max, first_batch_whole, watch_below_bytes)
}

#[test]
fn records_are_sent_from_where_they_lie_in_every_version() {
    static FIRST: &[u8] = b"first batches";
    static SECOND: &[u8] = b"more";
    for version in versions(ApiKey::Fetch) {
        let mut client = Client::new();
        let mut body = request(version, &[(0, 7), (1, 0)]);
        body.isolation_level = i8::from(version % 2 == 0);
        client.request(version, 5, &body);
        let ops = client.take_ops();
        let Op::Read { offset: Offset(7), current_epoch: None, .. } = ops[0].op else { panic!("{ops:?}") };
        client.answer(ops[0].token, read_out(12, &[FIRST, SECOND], false));
        assert_eq!(client.sent.len(), 0);
        client.answer(ops[1].token, read_out(0, &[], true));
        for record in [FIRST, SECOND] {
            let part = client.sent[0].iter().find(|part| part.len() == record.len());
            assert!(part.is_some_and(|part| part.as_ptr() == record.as_ptr()), "records are not copied");
        }
        let (correlation, response) = client.response::<FetchRequest>(version);
        assert_eq!((correlation, response.error_code, response.session_id), (5, 0, 0));
        assert_eq!(records(&response), [&b"first batchesmore"[..], b""]);
        let first = partitions(&response)[0];
        assert_eq!((first.high_watermark, first.last_stable_offset, first.error_code), (12, 12, 0));
        assert_eq!(first.aborted_transactions, (version % 2 == 0).then(Vec::new));
        let unwatch = client.op();
        assert!(matches!(unwatch.op, Op::Unwatch));
        assert_eq!((unwatch.token, unwatch.partition), (ops[1].token, partition(1)));
        assert_eq!((client.in_flight(), client.timers.len()), (0, 0));
    }
}

#[test]
fn a_fetch_waits_for_its_first_byte() {
    let mut client = Client::new();
    client.request(12, 1, &request(12, &[(0, 0), (1, 0)]));
    let ops = client.take_ops();
    client.answer(ops[0].token, read_out(0, &[], true));
    assert!(client.timers.is_empty(), "a read is still out");
    client.answer(ops[1].token, read_out(0, &[], true));
    assert_eq!(client.timers.len(), 1);
    client.advance(Duration::from_millis(499));
    client.answer(ops[1].token, Answer::Readable);
    let again = client.op();
    assert_eq!((again.partition, again.token), (partition(1), ops[1].token));
    client.answer(again.token, read_out(1, &[b"x"], false));
    assert_eq!(records(&client.response::<FetchRequest>(12).1), [&b""[..], b"x"]);
    assert!(client.timers.is_empty(), "the timer is cancelled");
    let unwatch = client.op();
    assert!(matches!(unwatch.op, Op::Unwatch) && unwatch.partition == partition(0));
    client.answer(ops[0].token, Answer::Readable);
    assert!(client.ops.is_empty() && client.sent.is_empty(), "a late word of an ended watch is dropped");
}

#[test]
fn a_fetch_answers_with_what_there_is_when_the_wait_is_over() {
    let mut client = Client::new();
    let body = FetchRequest { min_bytes: 100, ..request(12, &[(0, 0), (1, 0)]) };
    client.request(12, 1, &body);
    let ops = client.take_ops();
    assert_eq!(read_of(&ops[0]).2, 100);
    client.answer(ops[0].token, read_out(1, &[b"few"], true));
    client.answer(ops[1].token, read_out(0, &[], true));
    client.advance(Duration::from_millis(500));
    assert_eq!(records(&client.response::<FetchRequest>(12).1), [&b"few"[..], b""]);
    assert_eq!(client.take_ops().iter().filter(|op| matches!(op.op, Op::Unwatch)).count(), 2);
}

#[test]
fn bytes_of_all_partitions_together_reach_min_bytes() {
    let mut client = Client::new();
    let body = FetchRequest { min_bytes: 8, ..request(12, &[(0, 0), (1, 0)]) };
    client.request(12, 1, &body);
    let ops = client.take_ops();
    client.answer(ops[0].token, read_out(1, &[b"12345"], true));
    client.answer(ops[1].token, read_out(1, &[b"1"], true));
    client.answer(ops[1].token, Answer::Readable);
    let again = client.op();
    client.answer(again.token, read_out(2, &[b"1", b"23"], true));
    assert_eq!(records(&client.response::<FetchRequest>(12).1), [&b"12345"[..], b"123"]);
}

#[test]
fn a_fetch_that_may_not_wait_watches_nothing() {
    for (max_wait_ms, min_bytes) in [(0, 1), (500, 0), (-1, 1), (500, -1)] {
        let mut client = Client::new();
        client.request(12, 1, &FetchRequest { max_wait_ms, min_bytes, ..request(12, &[(0, 0)]) });
        let op = client.op();
        assert_eq!(read_of(&op).2, 0);
        client.answer(op.token, read_out(0, &[], false));
        assert_eq!(client.frames().len(), 1);
    }
}

#[test]
fn an_error_ends_the_wait_of_the_others() {
    let mut client = Client::new();
    client.request(12, 1, &request(12, &[(0, 0), (1, 0), (2, 0)]));
    let ops = client.take_ops();
    client.answer(ops[0].token, read_out(0, &[], true));
    let ends = Some(ReadEnds { high_watermark: Offset(9), log_start: Offset(4) });
    client
        .answer(ops[1].token, Answer::Read(Err(ReadError { error: PartitionError::OffsetOutOfRange, ends })));
    assert_eq!(client.sent.len(), 0, "what is being read is waited for");
    client.answer(ops[2].token, read_out(0, &[], true));
    let (_, response) = client.response::<FetchRequest>(12);
    let out = partitions(&response);
    assert_eq!(out.iter().map(|p| p.error_code).collect::<Vec<_>>(), [0, 1, 0]);
    assert_eq!((out[1].high_watermark, out[1].log_start_offset), (9, 4));
    assert_eq!(client.take_ops().len(), 2, "both watches end");
}

#[test]
fn a_partition_that_leaves_this_shard_ends_the_wait_with_an_error() {
    let mut client = Client::new();
    client.request(12, 1, &request(12, &[(0, 0)]));
    let op = client.op();
    client.answer(op.token, read_out(0, &[], true));
    client.answer(op.token, Answer::Readable);
    let again = client.op();
    let moved = ReadError { error: PartitionError::NotOwned, ends: None };
    client.answer(again.token, Answer::Read(Err(moved)));
    assert_eq!(partitions(&client.response::<FetchRequest>(12).1)[0].error_code, 6);
    assert!(client.timers.is_empty());
}

#[test]
fn what_cannot_be_read_is_refused_partition_by_partition() {
    for version in versions(ApiKey::Fetch) {
        let mut client = Client::new();
        let mut body = request(version, &[(9, 0), (-1, 0), (4, 0), (0, -1)]);
        body.topics.push(FetchTopic {
            topic: if version < 13 { "nowhere".into() } else { Arc::default() },
            topic_id: if version < 13 { TopicId::default() } else { TopicId(1) },
            ..body.topics[0].clone()
        });
        client.request(version, 1, &body);
        let (_, response) = client.response::<FetchRequest>(version);
        let codes: Vec<_> = partitions(&response).iter().map(|p| p.error_code).collect();
        let unknown = if version < 13 { 3 } else { 100 };
        assert_eq!(codes, [3, 3, 6, 1, unknown, unknown, unknown, unknown]);
        assert!(client.ops.is_empty());
    }
}

#[test]
fn fetch_sessions_are_never_made() {
    for version in 7..=18 {
        let mut client = Client::new();
        for (session_id, session_epoch) in [(5, 1), (0, 1), (5, i32::MAX)] {
            client.request(
                version,
                1,
                &FetchRequest { session_id, session_epoch, ..request(version, &[(0, 0)]) },
            );
            let (_, response) = client.response::<FetchRequest>(version);
            assert_eq!((response.error_code, response.session_id, response.responses.len()), (70, 0, 0));
        }
        // Both name all their partitions: the last request of a session, and the first.
        for (session_id, session_epoch) in [(5, -1), (0, 0), (0, -1)] {
            client.request(
                version,
                1,
                &FetchRequest { session_id, session_epoch, ..request(version, &[(0, 0)]) },
            );
            let op = client.op();
            client.answer(op.token, read_out(1, &[b"x"], false));
            let (_, response) = client.response::<FetchRequest>(version);
            assert_eq!((response.error_code, response.session_id), (0, 0));
        }
    }
}

#[test]
fn the_bound_on_the_answer_is_shared_out_in_order_and_unused_parts_go_on() {
    let mut client = Client::new();
    let body = FetchRequest { max_bytes: 1500, ..request(12, &[(0, 0), (1, 0), (2, 0), (3, 0)]) };
    client.request(12, 1, &body);
    let ops = client.take_ops();
    assert_eq!(ops.iter().map(|op| read_of(op).0).collect::<Vec<_>>(), [1000, 500]);
    assert_eq!(ops.iter().map(|op| read_of(op).1).collect::<Vec<_>>(), [true, false]);
    client.answer(ops[0].token, read_out(9, &[b"0123456789"], false));
    let third = client.op();
    assert_eq!(read_of(&third), (990, false, 1));
    client.answer(ops[1].token, read_out(0, &[], true));
    let fourth = client.op();
    assert_eq!(read_of(&fourth).0, 500);
    client.answer(third.token, read_out(1, &[b"x"], false));
    client.answer(fourth.token, read_out(0, &[], true));
    assert_eq!(records(&client.response::<FetchRequest>(12).1), [&b"0123456789"[..], b"", b"x", b""]);
}

#[test]
fn partitions_behind_a_full_answer_are_asked_for_their_ends_only() {
    let mut client = Client::new();
    let body = FetchRequest { max_bytes: 4, ..request(12, &[(0, 0), (1, 0)]) };
    client.request(12, 1, &body);
    let first = client.op();
    assert_eq!(read_of(&first), (4, true, 1));
    client.answer(first.token, read_out(9, &[b"larger than that"], false));
    let second = client.op();
    assert_eq!(read_of(&second), (0, false, 1));
    client.answer(second.token, read_out(6, &[], true));
    let (_, response) = client.response::<FetchRequest>(12);
    assert_eq!(records(&response), [&b"larger than that"[..], b""]);
    assert_eq!(partitions(&response)[1].high_watermark, 6);
}

#[test]
fn a_batch_larger_than_the_bounds_is_returned_when_nothing_else_is() {
    let mut client = Client::new();
    client.request(12, 1, &request(12, &[(0, 3), (1, 3), (2, 3)]));
    let ops = client.take_ops();
    assert_eq!(ops.iter().map(|op| read_of(op).1).collect::<Vec<_>>(), [true, false, false]);
    client.answer(ops[0].token, read_out(3, &[], true));
    // The first two partitions have nothing new; the third has a batch of more than 1000 bytes.
    client.answer(ops[1].token, read_out(3, &[], true));
    client.answer(ops[2].token, read_out(4, &[], true));
    let again = client.take_ops();
    assert!(matches!(again[0].op, Op::Unwatch) && again[0].partition == partition(2));
    assert_eq!((again[1].partition, read_of(&again[1]).1), (partition(2), true));
    let large: &'static [u8] = &[7; 5000];
    client.answer(again[1].token, read_out(4, &[large], false));
    assert_eq!(records(&client.response::<FetchRequest>(12).1), [&b""[..], b"", large]);
}

#[test]
fn a_read_that_returns_nothing_even_so_is_not_repeated_for_ever() {
    let mut client = Client::new();
    client.request(12, 1, &request(12, &[(0, 3)]));
    let op = client.op();
    client.answer(op.token, read_out(9, &[], true));
    assert_eq!(records(&client.response::<FetchRequest>(12).1), [b""]);
}

#[test]
fn the_nodes_own_bound_on_an_answer_holds() {
    let mut client = Client::with(KafkaConfig { fetch_bytes_max: 700, ..KafkaConfig::default() });
    client.request(12, 1, &request(12, &[(0, 0)]));
    assert_eq!(read_of(&client.op()).0, 700);
}

#[test]
fn the_epoch_that_a_client_believes_in_is_passed_on() {
    let mut client = Client::new();
    let mut body = request(12, &[(0, 0)]);
    body.topics[0].partitions[0].current_leader_epoch = 2;
    client.request(12, 1, &body);
    let op = client.op();
    assert!(matches!(op.op, Op::Read { current_epoch: Some(LeaderEpoch(2)), .. }));
    let fenced = ReadError { error: PartitionError::FencedLeaderEpoch, ends: None };
    client.answer(op.token, Answer::Read(Err(fenced)));
    assert_eq!(partitions(&client.response::<FetchRequest>(12).1)[0].error_code, 74);
}

#[test]
fn a_connection_that_closes_ends_its_watches_and_timer() {
    let mut client = Client::new();
    client.request(12, 1, &request(12, &[(0, 0), (1, 0)]));
    let ops = client.take_ops();
    client.answer(ops[0].token, read_out(0, &[], true));
    client.hang_up();
    let ended: Vec<_> = client.take_ops().iter().map(|op| (op.token, matches!(op.op, Op::Unwatch))).collect();
    assert_eq!(ended, [(ops[0].token, true), (ops[1].token, true)], "a read that is out may begin a watch");
    assert_eq!(client.in_flight(), 0);

    let mut client = Client::new();
    client.request(12, 1, &request(12, &[(0, 0)]));
    let op = client.op();
    client.answer(op.token, read_out(0, &[], true));
    assert_eq!(client.timers.len(), 1);
    client.hang_up();
    assert!(client.timers.is_empty());
}

#[test]
fn a_fetch_of_nothing_is_answered_at_once() {
    let mut client = Client::new();
    client.request(12, 1, &FetchRequest { topics: Vec::new(), ..request(12, &[]) });
    assert_eq!(client.response::<FetchRequest>(12).1.responses.len(), 0);
}

#[test]
fn a_poll_behind_a_long_poll_waits_for_it() {
    let mut client = Client::new();
    client.request(12, 1, &request(12, &[(0, 0)]));
    client.request(12, 2, &request(12, &[(1, 0)]));
    let first = client.op();
    client.answer(first.token, read_out(0, &[], true));
    assert_eq!((client.ops.len(), client.in_flight()), (0, 2));
    client.advance(Duration::from_millis(500));
    assert_eq!(decoded::<FetchRequest>(12, &client.frames()[0]).0, 1);
    assert!(client.take_ops().iter().any(|op| op.partition == partition(1)));
}
