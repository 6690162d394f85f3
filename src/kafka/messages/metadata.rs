//! Metadata (key 3): nodes, topics, and who leads which partition.

use std::sync::Arc;

use highwater_shards::ids::TopicId;

use super::*;

messages! {
    struct MetadataRequest {
        /// Null asks for all topics; so does an empty list in version 0.
        topics: Option<Vec<MetadataRequestTopic>> = Some(Vec::new());
        allow_auto_topic_creation: bool [4..] = true;
        include_cluster_authorized_operations: bool [8..=10];
        include_topic_authorized_operations: bool [8..];
    }

    struct MetadataRequestTopic {
        topic_id: TopicId [10..];
        name: Option<String> = Some(String::new());
    }

    struct MetadataResponse {
        throttle_time_ms: i32 [3..];
        brokers: Vec<MetadataResponseBroker>;
        cluster_id: Option<Arc<str>> [2..];
        controller_id: i32 [1..] = -1;
        topics: Vec<MetadataResponseTopic>;
        cluster_authorized_operations: i32 [8..=10] = i32::MIN;
        error_code: i16 [13..];
    }

    struct MetadataResponseBroker {
        node_id: i32;
        host: String;
        port: i32;
        rack: Option<String> [1..];
    }

    struct MetadataResponseTopic {
        error_code: i16;
        /// Null only from version 12 on.
        name: Option<Arc<str>> = Some(Arc::default());
        topic_id: TopicId [10..];
        is_internal: bool [1..];
        partitions: Vec<MetadataResponsePartition>;
        topic_authorized_operations: i32 [8..] = i32::MIN;
    }

    struct MetadataResponsePartition {
        error_code: i16;
        partition_index: i32;
        leader_id: i32;
        leader_epoch: i32 [7..] = -1;
        replica_nodes: Vec<i32>;
        isr_nodes: Vec<i32>;
        offline_replicas: Vec<i32> [5..];
    }
}

calls! {
    Metadata: MetadataRequest => MetadataResponse;
}
