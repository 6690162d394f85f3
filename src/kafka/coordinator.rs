//! FindCoordinator: says that there is no coordinator, for groups and for transactions.
//!
//! Pure; on the shard core that the connection came to. It is advertised nevertheless, and has to be: librdkafka
//! takes this API for the sign that a broker understands lz4, and sends lz4 uncompressed without it.

use super::api::ApiKey;
use super::errors::ErrorCode;
use super::messages::coordinator::{Coordinator, FindCoordinatorRequest, FindCoordinatorResponse};
use super::session::{Header, Kafka, Step};
use super::wire::{DecodeError, Reader};

/// What FindCoordinator calls the kinds of things that have coordinators.
const KEY_GROUP: i8 = 0;
const KEY_TRANSACTION: i8 = 1;

pub(super) fn find(kafka: &mut Kafka, header: &Header, r: &mut Reader<'_>) -> Result<Step, DecodeError> {
    let request: FindCoordinatorRequest = header.body(r)?;
    let (code, words) = match request.key_type {
        // Clients ask again later and go on with what needs no group: a consumer with partitions of its own choice
        // names a group too, and a final error would end it.
        KEY_GROUP => (ErrorCode::CoordinatorNotAvailable, "this node runs no consumer groups"),
        KEY_TRANSACTION => (ErrorCode::TransactionalIdAuthorizationFailed, "this node runs no transactions"),
        _ => (ErrorCode::InvalidRequest, "coordinators are those of groups (0) and transactions (1)"),
    };
    kafka.stats.error(ApiKey::FindCoordinator, code);
    let nobody = |key| Coordinator {
        key,
        node_id: -1,
        port: -1,
        error_code: code.wire(),
        error_message: Some(words.to_owned()),
        ..Coordinator::default()
    };
    Ok(header.answer(&FindCoordinatorResponse {
        error_code: code.wire(),
        error_message: Some(words.to_owned()),
        node_id: -1,
        port: -1,
        coordinators: request.coordinator_keys.into_iter().map(nobody).collect(),
        ..FindCoordinatorResponse::default()
    }))
}
