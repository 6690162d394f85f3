//! DescribeCluster (key 60), DescribeConfigs (32) and IncrementalAlterConfigs (44).

use std::sync::Arc;

use super::*;

messages! {
    struct DescribeClusterRequest {
        include_cluster_authorized_operations: bool;
        endpoint_type: i8 [1..] = 1;
        include_fenced_brokers: bool [2..];
    }

    struct DescribeClusterResponse {
        throttle_time_ms: i32;
        error_code: i16;
        error_message: Option<String>;
        endpoint_type: i8 [1..] = 1;
        cluster_id: Arc<str>;
        controller_id: i32 = -1;
        brokers: Vec<DescribeClusterBroker>;
        cluster_authorized_operations: i32 = i32::MIN;
    }

    struct DescribeClusterBroker {
        broker_id: i32;
        host: String;
        port: i32;
        rack: Option<String>;
        is_fenced: bool [2..];
    }

    struct DescribeConfigsRequest {
        resources: Vec<DescribeConfigsResource>;
        include_synonyms: bool;
        include_documentation: bool [3..];
    }

    struct DescribeConfigsResource {
        resource_type: i8;
        resource_name: String;
        /// Null asks for all.
        configuration_keys: Option<Vec<String>> = Some(Vec::new());
    }

    struct DescribeConfigsResponse {
        throttle_time_ms: i32;
        results: Vec<DescribeConfigsResult>;
    }

    struct DescribeConfigsResult {
        error_code: i16;
        error_message: Option<String> = Some(String::new());
        resource_type: i8;
        resource_name: String;
        configs: Vec<DescribeConfigsResourceResult>;
    }

    struct DescribeConfigsResourceResult {
        name: String;
        value: Option<String> = Some(String::new());
        read_only: bool;
        config_source: i8 = -1;
        is_sensitive: bool;
        synonyms: Vec<DescribeConfigsSynonym>;
        config_type: i8 [3..];
        documentation: Option<String> [3..] = Some(String::new());
    }

    struct DescribeConfigsSynonym {
        name: String;
        value: Option<String> = Some(String::new());
        source: i8;
    }

    struct IncrementalAlterConfigsRequest {
        resources: Vec<AlterConfigsResource>;
        validate_only: bool;
    }

    struct AlterConfigsResource {
        resource_type: i8;
        resource_name: String;
        configs: Vec<AlterableConfig>;
    }

    struct AlterableConfig {
        name: String;
        config_operation: i8;
        value: Option<String> = Some(String::new());
    }

    struct IncrementalAlterConfigsResponse {
        throttle_time_ms: i32;
        responses: Vec<AlterConfigsResourceResponse>;
    }

    struct AlterConfigsResourceResponse {
        error_code: i16;
        error_message: Option<String> = Some(String::new());
        resource_type: i8;
        resource_name: String;
    }
}

calls! {
    DescribeCluster: DescribeClusterRequest => DescribeClusterResponse;
    DescribeConfigs: DescribeConfigsRequest => DescribeConfigsResponse;
    IncrementalAlterConfigs: IncrementalAlterConfigsRequest => IncrementalAlterConfigsResponse;
}
