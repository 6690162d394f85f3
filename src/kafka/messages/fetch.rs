//! Fetch (key 1) as tables, for clients and tests. The node itself reads and answers it by hand, so that record
//! bytes are sent from where they lie.

use std::sync::Arc;

use bytes::Bytes;
use highwater_shards::ids::TopicId;

use super::produce::{LeaderIdAndEpoch, NodeEndpoint};
use super::*;
use crate::kafka::wire::Uuid;

messages! {
    struct FetchRequest {
        cluster_id: Option<String> [12..], tag 0;
        replica_id: i32 [..=14] = -1;
        replica_state: ReplicaState [15..], tag 1;
        max_wait_ms: i32;
        min_bytes: i32;
        max_bytes: i32 = i32::MAX;
        isolation_level: i8;
        session_id: i32 [7..];
        session_epoch: i32 [7..] = -1;
        topics: Vec<FetchTopic>;
        forgotten_topics_data: Vec<ForgottenTopic> [7..];
        rack_id: String [11..];
    }

    struct ReplicaState {
        replica_id: i32 = -1;
        replica_epoch: i64 = -1;
    }

    struct FetchTopic {
        topic: Arc<str> [..=12];
        topic_id: TopicId [13..];
        partitions: Vec<FetchPartition>;
    }

    struct FetchPartition {
        partition: i32;
        current_leader_epoch: i32 [9..] = -1;
        fetch_offset: i64;
        last_fetched_epoch: i32 [12..] = -1;
        log_start_offset: i64 [5..] = -1;
        partition_max_bytes: i32;
        replica_directory_id: Uuid [17..], tag 0;
        high_watermark: i64 [18..] = i64::MAX, tag 1;
    }

    struct ForgottenTopic {
        topic: Arc<str> [7..=12];
        topic_id: TopicId [13..];
        partitions: Vec<i32> [7..];
    }

    struct FetchResponse {
        throttle_time_ms: i32;
        error_code: i16 [7..];
        session_id: i32 [7..];
        responses: Vec<FetchableTopicResponse>;
        node_endpoints: Vec<NodeEndpoint> [16..], tag 0;
    }

    struct FetchableTopicResponse {
        topic: Arc<str> [..=12];
        topic_id: TopicId [13..];
        partitions: Vec<PartitionData>;
    }

    struct PartitionData {
        partition_index: i32;
        error_code: i16;
        high_watermark: i64;
        last_stable_offset: i64 = -1;
        log_start_offset: i64 [5..] = -1;
        diverging_epoch: EpochEndOffset [12..], tag 0;
        current_leader: LeaderIdAndEpoch [12..], tag 1;
        snapshot_id: SnapshotId [12..], tag 2;
        aborted_transactions: Option<Vec<AbortedTransaction>> = Some(Vec::new());
        preferred_read_replica: i32 [11..] = -1;
        records: Option<Bytes>;
    }

    struct EpochEndOffset {
        epoch: i32 = -1;
        end_offset: i64 = -1;
    }

    struct SnapshotId {
        end_offset: i64 = -1;
        epoch: i32 = -1;
    }

    struct AbortedTransaction {
        producer_id: i64;
        first_offset: i64;
    }
}

calls! {
    Fetch: FetchRequest => FetchResponse;
}
