//! CreateTopics (key 19), DeleteTopics (20) and CreatePartitions (37).

use highwater_shards::ids::TopicId;

use super::*;

messages! {
    struct CreateTopicsRequest {
        topics: Vec<CreatableTopic>;
        timeout_ms: i32 = 60_000;
        validate_only: bool [1..];
    }

    struct CreatableTopic {
        name: String;
        num_partitions: i32;
        replication_factor: i16;
        assignments: Vec<CreatableReplicaAssignment>;
        configs: Vec<CreatableTopicConfig>;
    }

    struct CreatableReplicaAssignment {
        partition_index: i32;
        broker_ids: Vec<i32>;
    }

    struct CreatableTopicConfig {
        name: String;
        value: Option<String> = Some(String::new());
    }

    struct CreateTopicsResponse {
        throttle_time_ms: i32 [2..];
        topics: Vec<CreatableTopicResult>;
    }

    struct CreatableTopicResult {
        name: String;
        topic_id: TopicId [7..];
        error_code: i16;
        error_message: Option<String> [1..] = Some(String::new());
        topic_config_error_code: i16 [5..], tag 0;
        num_partitions: i32 [5..] = -1;
        replication_factor: i16 [5..] = -1;
        configs: Option<Vec<CreatableTopicConfigs>> [5..] = Some(Vec::new());
    }

    struct CreatableTopicConfigs {
        name: String;
        value: Option<String> = Some(String::new());
        read_only: bool;
        config_source: i8 = -1;
        is_sensitive: bool;
    }

    struct DeleteTopicsRequest {
        topics: Vec<DeleteTopicState> [6..];
        topic_names: Vec<String> [..=5];
        timeout_ms: i32;
    }

    struct DeleteTopicState {
        name: Option<String>;
        topic_id: TopicId;
    }

    struct DeleteTopicsResponse {
        throttle_time_ms: i32 [1..];
        responses: Vec<DeletableTopicResult>;
    }

    struct DeletableTopicResult {
        /// Null only from version 6 on.
        name: Option<String> = Some(String::new());
        topic_id: TopicId [6..];
        error_code: i16;
        error_message: Option<String> [5..];
    }

    struct CreatePartitionsRequest {
        topics: Vec<CreatePartitionsTopic>;
        timeout_ms: i32;
        validate_only: bool;
    }

    struct CreatePartitionsTopic {
        name: String;
        count: i32;
        assignments: Option<Vec<CreatePartitionsAssignment>> = Some(Vec::new());
    }

    struct CreatePartitionsAssignment {
        broker_ids: Vec<i32>;
    }

    struct CreatePartitionsResponse {
        throttle_time_ms: i32;
        results: Vec<CreatePartitionsTopicResult>;
    }

    struct CreatePartitionsTopicResult {
        name: String;
        error_code: i16;
        error_message: Option<String>;
    }
}

calls! {
    CreateTopics: CreateTopicsRequest => CreateTopicsResponse;
    DeleteTopics: DeleteTopicsRequest => DeleteTopicsResponse;
    CreatePartitions: CreatePartitionsRequest => CreatePartitionsResponse;
}
