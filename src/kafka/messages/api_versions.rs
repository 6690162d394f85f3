//! ApiVersions (key 18): what the node understands.

use super::*;

messages! {
    struct ApiVersionsRequest {
        client_software_name: String [3..];
        client_software_version: String [3..];
    }

    struct ApiVersionsResponse {
        error_code: i16;
        api_keys: Vec<ApiVersion>;
        throttle_time_ms: i32 [1..];
        supported_features: Vec<SupportedFeatureKey> [3..], tag 0;
        finalized_features_epoch: i64 [3..] = -1, tag 1;
        finalized_features: Vec<FinalizedFeatureKey> [3..], tag 2;
        zk_migration_ready: bool [3..], tag 3;
    }

    struct ApiVersion {
        api_key: i16;
        min_version: i16;
        max_version: i16;
    }

    struct SupportedFeatureKey {
        name: String [3..];
        min_version: i16 [3..];
        max_version: i16 [3..];
    }

    struct FinalizedFeatureKey {
        name: String [3..];
        max_version_level: i16 [3..];
        min_version_level: i16 [3..];
    }
}

calls! {
    ApiVersions: ApiVersionsRequest => ApiVersionsResponse;
}
