//! Produce (key 0) as tables, for clients and tests. The node itself reads and answers it by hand, without copying
//! records and without a structure per topic.

use std::sync::Arc;

use bytes::Bytes;
use highwater_shards::ids::TopicId;

use super::*;

messages! {
    struct ProduceRequest {
        transactional_id: Option<String> [3..];
        acks: i16;
        timeout_ms: i32;
        topic_data: Vec<TopicProduceData>;
    }

    struct TopicProduceData {
        name: Arc<str> [..=12];
        topic_id: TopicId [13..];
        partition_data: Vec<PartitionProduceData>;
    }

    struct PartitionProduceData {
        index: i32;
        records: Option<Bytes>;
    }

    struct ProduceResponse {
        responses: Vec<TopicProduceResponse>;
        throttle_time_ms: i32 [1..];
        node_endpoints: Vec<NodeEndpoint> [10..], tag 0;
    }

    struct TopicProduceResponse {
        name: Arc<str> [..=12];
        topic_id: TopicId [13..];
        partition_responses: Vec<PartitionProduceResponse>;
    }

    struct PartitionProduceResponse {
        index: i32;
        error_code: i16;
        base_offset: i64;
        log_append_time_ms: i64 [2..] = -1;
        log_start_offset: i64 [5..] = -1;
        record_errors: Vec<BatchIndexAndErrorMessage> [8..];
        error_message: Option<String> [8..];
        current_leader: LeaderIdAndEpoch [10..], tag 0;
    }

    struct BatchIndexAndErrorMessage {
        batch_index: i32 [8..];
        batch_index_error_message: Option<String> [8..];
    }

    struct LeaderIdAndEpoch {
        leader_id: i32 = -1;
        leader_epoch: i32 = -1;
    }

    struct NodeEndpoint {
        node_id: i32;
        host: String;
        port: i32;
        rack: Option<String>;
    }
}

calls! {
    Produce: ProduceRequest => ProduceResponse;
}
