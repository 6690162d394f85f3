//! ElectLeaders (key 43), AlterPartitionReassignments (45) and ListPartitionReassignments (46).

use super::*;

messages! {
    struct ElectLeadersRequest {
        /// 0: the preferred replica; 1: anybody, where nobody leads.
        election_type: i8 [1..];
        /// Null: all partitions.
        topic_partitions: Option<Vec<TopicPartitions>> = Some(Vec::new());
        timeout_ms: i32 = 60_000;
    }

    struct TopicPartitions {
        topic: String;
        partitions: Vec<i32>;
    }

    struct ElectLeadersResponse {
        throttle_time_ms: i32;
        error_code: i16 [1..];
        replica_election_results: Vec<ReplicaElectionResult>;
    }

    struct ReplicaElectionResult {
        topic: String;
        partition_result: Vec<PartitionResult>;
    }

    struct PartitionResult {
        partition_id: i32;
        error_code: i16;
        error_message: Option<String> = Some(String::new());
    }

    struct AlterPartitionReassignmentsRequest {
        timeout_ms: i32 = 60_000;
        allow_replication_factor_change: bool [1..] = true;
        topics: Vec<ReassignableTopic>;
    }

    struct ReassignableTopic {
        name: String;
        partitions: Vec<ReassignablePartition>;
    }

    struct ReassignablePartition {
        partition_index: i32;
        /// Null cancels.
        replicas: Option<Vec<i32>>;
    }

    struct AlterPartitionReassignmentsResponse {
        throttle_time_ms: i32;
        allow_replication_factor_change: bool [1..] = true;
        error_code: i16;
        error_message: Option<String> = Some(String::new());
        responses: Vec<ReassignableTopicResponse>;
    }

    struct ReassignableTopicResponse {
        name: String;
        partitions: Vec<ReassignablePartitionResponse>;
    }

    struct ReassignablePartitionResponse {
        partition_index: i32;
        error_code: i16;
        error_message: Option<String> = Some(String::new());
    }

    struct ListPartitionReassignmentsRequest {
        timeout_ms: i32 = 60_000;
        /// Null: all that are under way.
        topics: Option<Vec<ListPartitionReassignmentsTopics>> = Some(Vec::new());
    }

    struct ListPartitionReassignmentsTopics {
        name: String;
        partition_indexes: Vec<i32>;
    }

    struct ListPartitionReassignmentsResponse {
        throttle_time_ms: i32;
        error_code: i16;
        error_message: Option<String> = Some(String::new());
        topics: Vec<OngoingTopicReassignment>;
    }

    struct OngoingTopicReassignment {
        name: String;
        partitions: Vec<OngoingPartitionReassignment>;
    }

    struct OngoingPartitionReassignment {
        partition_index: i32;
        replicas: Vec<i32>;
        adding_replicas: Vec<i32>;
        removing_replicas: Vec<i32>;
    }
}

calls! {
    ElectLeaders: ElectLeadersRequest => ElectLeadersResponse;
    AlterPartitionReassignments: AlterPartitionReassignmentsRequest => AlterPartitionReassignmentsResponse;
    ListPartitionReassignments: ListPartitionReassignmentsRequest => ListPartitionReassignmentsResponse;
}
