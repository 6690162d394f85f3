//! ListOffsets (key 2), DeleteRecords (21), InitProducerId (22) and OffsetForLeaderEpoch (23).

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

    struct DeleteRecordsRequest {
        topics: Vec<DeleteRecordsTopic>;
        timeout_ms: i32;
    }

    struct DeleteRecordsTopic {
        name: String;
        partitions: Vec<DeleteRecordsPartition>;
    }

    struct DeleteRecordsPartition {
        partition_index: i32;
        /// -1 asks for the high watermark.
        offset: i64;
    }

    struct DeleteRecordsResponse {
        throttle_time_ms: i32;
        topics: Vec<DeleteRecordsTopicResult>;
    }

    struct DeleteRecordsTopicResult {
        name: String;
        partitions: Vec<DeleteRecordsPartitionResult>;
    }

    struct DeleteRecordsPartitionResult {
        partition_index: i32;
        /// The first offset that is left; -1 with an error.
        low_watermark: i64 = -1;
        error_code: i16;
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
    DeleteRecords: DeleteRecordsRequest => DeleteRecordsResponse;
    InitProducerId: InitProducerIdRequest => InitProducerIdResponse;
}
