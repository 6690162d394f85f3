//! ListOffsets (key 2), OffsetForLeaderEpoch (23) and InitProducerId (22).

use super::*;

messages! {
    struct ListOffsetsRequest {
        replica_id: i32;
        isolation_level: i8 [2..];
        topics: Vec<ListOffsetsTopic>;
        timeout_ms: i32 [10..];
    }

    struct ListOffsetsTopic {
        name: String;
        partitions: Vec<ListOffsetsPartition>;
    }

    struct ListOffsetsPartition {
        partition_index: i32;
        current_leader_epoch: i32 [4..] = -1;
        timestamp: i64;
    }

    struct ListOffsetsResponse {
        throttle_time_ms: i32 [2..];
        topics: Vec<ListOffsetsTopicResponse>;
    }

    struct ListOffsetsTopicResponse {
        name: String;
        partitions: Vec<ListOffsetsPartitionResponse>;
    }

    struct ListOffsetsPartitionResponse {
        partition_index: i32;
        error_code: i16;
        timestamp: i64 = -1;
        offset: i64 = -1;
        leader_epoch: i32 [4..] = -1;
    }

    struct OffsetForLeaderEpochRequest {
        replica_id: i32 [3..] = -2;
        topics: Vec<OffsetForLeaderTopic>;
    }

    struct OffsetForLeaderTopic {
        topic: String;
        partitions: Vec<OffsetForLeaderPartition>;
    }

    struct OffsetForLeaderPartition {
        partition: i32;
        current_leader_epoch: i32 = -1;
        leader_epoch: i32;
    }

    struct OffsetForLeaderEpochResponse {
        throttle_time_ms: i32;
        topics: Vec<OffsetForLeaderTopicResult>;
    }

    struct OffsetForLeaderTopicResult {
        topic: String;
        partitions: Vec<EpochEndOffset>;
    }

    struct EpochEndOffset {
        error_code: i16;
        partition: i32;
        leader_epoch: i32 = -1;
        end_offset: i64 = -1;
    }

    struct InitProducerIdRequest {
        transactional_id: Option<String>;
        transaction_timeout_ms: i32;
        producer_id: i64 [3..] = -1;
        producer_epoch: i16 [3..] = -1;
    }

    struct InitProducerIdResponse {
        throttle_time_ms: i32;
        error_code: i16;
        producer_id: i64 = -1;
        producer_epoch: i16;
    }
}

calls! {
    ListOffsets: ListOffsetsRequest => ListOffsetsResponse;
    OffsetForLeaderEpoch: OffsetForLeaderEpochRequest => OffsetForLeaderEpochResponse;
    InitProducerId: InitProducerIdRequest => InitProducerIdResponse;
}
