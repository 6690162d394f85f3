//! FindCoordinator (key 10): which broker runs a consumer group or a transaction.

use super::*;

messages! {
    struct FindCoordinatorRequest {
        key: String [..=3];
        key_type: i8 [1..];
        coordinator_keys: Vec<String> [4..];
    }

    struct FindCoordinatorResponse {
        throttle_time_ms: i32 [1..];
        error_code: i16 [..=3];
        error_message: Option<String> [1..=3] = Some(String::new());
        node_id: i32 [..=3];
        host: String [..=3];
        port: i32 [..=3];
        coordinators: Vec<Coordinator> [4..];
    }

    struct Coordinator {
        key: String [4..];
        node_id: i32 [4..];
        host: String [4..];
        port: i32 [4..];
        error_code: i16 [4..];
        error_message: Option<String> [4..] = Some(String::new());
    }
}

calls! {
    FindCoordinator: FindCoordinatorRequest => FindCoordinatorResponse;
}
