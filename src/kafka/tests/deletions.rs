//! DeleteRecords sessions: where a deletion goes, what is refused on the way, and what the answer says.

use std::sync::Arc;
use std::time::Duration;

use highwater_shards::mail::PartitionError;

use super::*;
use crate::kafka::messages::offsets::{
    DeleteRecordsPartition, DeleteRecordsRequest, DeleteRecordsResponse, DeleteRecordsTopic,
};

/// One topic, and the partitions with the offsets before which to delete.
fn request(topic: &str, partitions: &[(i32, i64)]) -> DeleteRecordsRequest {
    let partition = |&(partition_index, offset)| DeleteRecordsPartition { partition_index, offset };
    DeleteRecordsRequest {
        topics: vec![DeleteRecordsTopic {
            name: topic.into(),
            partitions: partitions.iter().map(partition).collect(),
        }],
        timeout_ms: 700,
    }
}

/// Index, error and low watermark of each partition.
fn told(response: &DeleteRecordsResponse) -> Vec<(i32, i16, i64)> {
    let partitions = response.topics.iter().flat_map(|t| &t.partitions);
    partitions.map(|p| (p.partition_index, p.error_code, p.low_watermark)).collect()
}

#[test]
fn deletions_go_to_the_owning_shards_and_are_answered_together_in_every_version() {
    for version in versions(ApiKey::DeleteRecords) {
        let mut client = Client::new();
        client.advance(Duration::from_secs(3));
        client.request(version, 5, &request("events", &[(0, 10), (1, -1), (3, 0)]));
        let ops = client.take_ops();
        let wanted = [(0, 0, Some(Offset(10))), (1, 1, None), (3, 1, Some(Offset(0)))];
        assert_eq!(ops.len(), wanted.len());
        for (op, (index, shard, offset)) in ops.iter().zip(wanted) {
            assert_eq!((op.partition, op.shard), (partition(index), ShardId(shard)));
            let Op::DeleteRecords { before, deadline } = op.op else { panic!("{op:?}") };
            assert_eq!((before, deadline), (offset, client.now + Duration::from_millis(700)));
        }
        client.answer(ops[2].token, Answer::Deleted(Err(PartitionError::TimedOut)));
        client.answer(ops[1].token, Answer::Deleted(Ok(Offset(77))));
        assert!(client.sent.is_empty(), "one partition is missing");
        client.answer(ops[0].token, Answer::Deleted(Ok(Offset(10))));
        let (correlation, response) = client.response::<DeleteRecordsRequest>(version);
        assert_eq!(correlation, 5);
        assert_eq!(told(&response), [(0, 0, 10), (1, 0, 77), (3, 7, -1)]);
        assert_eq!(client.in_flight(), 0);
    }
}

#[test]
fn what_cannot_be_deleted_is_refused_partition_by_partition() {
    let mut client = Client::new();
    let mut body = request("events", &[(0, -2), (9, 1), (-1, 1), (4, 1), (1, i64::MAX), (2, 5)]);
    body.topics.push(DeleteRecordsTopic { name: "nowhere".into(), ..body.topics[0].clone() });
    body.topics[1].partitions.truncate(1);
    client.request(2, 1, &body);
    let ops = client.take_ops();
    assert_eq!(ops.iter().map(|op| op.partition).collect::<Vec<_>>(), [partition(1), partition(2)]);
    client.answer(ops[0].token, Answer::Deleted(Err(PartitionError::OffsetOutOfRange)));
    client.answer(ops[1].token, Answer::Deleted(Err(PartitionError::NotLeader)));
    let (_, response) = client.response::<DeleteRecordsRequest>(2);
    let codes: Vec<_> = told(&response).iter().map(|&(_, code, low)| (code, low)).collect();
    assert_eq!(codes, [(1, -1), (3, -1), (3, -1), (6, -1), (1, -1), (6, -1), (3, -1)]);

    client.request(0, 2, &DeleteRecordsRequest::default());
    assert!(client.response::<DeleteRecordsRequest>(0).1.topics.is_empty());
}

#[test]
fn records_of_a_topic_that_is_only_compacted_are_not_deleted() {
    for (policy, code) in [("compact", 44), ("delete", 0), ("compact,delete", 0)] {
        let mut client = Client::new();
        let mut image = image();
        let old = Topic::clone(image.topic("events").unwrap());
        let config = BTreeMap::from([("cleanup.policy".to_owned(), policy.to_owned())]);
        image.put_topic(Topic { config: Arc::new(config), ..old });
        client.view = Arc::new(image);
        client.request(2, 1, &request("events", &[(0, 3)]));
        for op in client.take_ops() {
            client.answer(op.token, Answer::Deleted(Ok(Offset(3))));
        }
        let (_, response) = client.response::<DeleteRecordsRequest>(2);
        assert_eq!(told(&response), [(0, code, if code == 0 { 3 } else { -1 })], "{policy}");
    }
}
