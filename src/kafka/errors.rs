//! Kafka's error codes, and the one place where the node's own errors become them.
//!
//! Pure. Which code a refusal gets decides what clients do: most retry after the retriable ones
//! ([`ErrorCode::RequestTimedOut`], [`ErrorCode::NotLeaderOrFollower`], [`ErrorCode::KafkaStorageError`] …) and give
//! up at the others.

use highwater_shards::mail::PartitionError;

use crate::control::request::{Refusal, Why};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// What Kafka's protocol guide lists under "Error Codes", as far as this node says it.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        #[repr(i16)]
        pub enum ErrorCode {
            $($(#[$doc])* $name = $code,)*
        }

        impl ErrorCode {
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            pub const fn wire(self) -> i16 {
                self as i16
            }

            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
        }
    };
}

codes! {
    UnknownServerError = -1,
    #[default]
    None = 0,
    OffsetOutOfRange = 1,
    CorruptMessage = 2,
    UnknownTopicOrPartition = 3,
    LeaderNotAvailable = 5,
    NotLeaderOrFollower = 6,
    RequestTimedOut = 7,
    MessageTooLarge = 10,
    CoordinatorLoadInProgress = 14,
    CoordinatorNotAvailable = 15,
    InvalidTopic = 17,
    NotEnoughReplicas = 19,
    NotEnoughReplicasAfterAppend = 20,
    InvalidRequiredAcks = 21,
    UnsupportedVersion = 35,
    TopicAlreadyExists = 36,
    InvalidPartitions = 37,
    InvalidReplicationFactor = 38,
    InvalidReplicaAssignment = 39,
    InvalidConfig = 40,
    NotController = 41,
    InvalidRequest = 42,
    UnsupportedForMessageFormat = 43,
    PolicyViolation = 44,
    OutOfOrderSequenceNumber = 45,
    InvalidProducerEpoch = 47,
    TransactionalIdAuthorizationFailed = 53,
    KafkaStorageError = 56,
    FetchSessionIdNotFound = 70,
    FencedLeaderEpoch = 74,
    UnknownLeaderEpoch = 75,
    OffsetNotAvailable = 78,
    PreferredLeaderNotAvailable = 80,
    EligibleLeadersNotAvailable = 83,
    ElectionNotNeeded = 84,
    NoReassignmentInProgress = 85,
    InvalidRecord = 87,
    InvalidUpdateVersion = 95,
    UnknownTopicId = 100,
    DuplicateBrokerRegistration = 101,
    BrokerIdNotRegistered = 102,
    IneligibleReplica = 107,
    MismatchedEndpointType = 114,
}

impl From<PartitionError> for ErrorCode {
    fn from(error: PartitionError) -> Self {
        match error {
            PartitionError::NotOwned | PartitionError::NotLeader => Self::NotLeaderOrFollower,
            PartitionError::FencedLeaderEpoch => Self::FencedLeaderEpoch,
            PartitionError::UnknownLeaderEpoch => Self::UnknownLeaderEpoch,
            PartitionError::OffsetOutOfRange => Self::OffsetOutOfRange,
            PartitionError::OffsetNotAvailable => Self::OffsetNotAvailable,
            PartitionError::CorruptBatch => Self::CorruptMessage,
            PartitionError::InvalidBatch | PartitionError::KeyMissing => Self::InvalidRecord,
            PartitionError::UnsupportedFormat => Self::UnsupportedForMessageFormat,
            PartitionError::BatchTooLarge => Self::MessageTooLarge,
            PartitionError::OutOfOrderSequence => Self::OutOfOrderSequenceNumber,
            PartitionError::InvalidProducerEpoch => Self::InvalidProducerEpoch,
            PartitionError::NotEnoughReplicas => Self::NotEnoughReplicas,
            PartitionError::NotEnoughReplicasAfterAppend => Self::NotEnoughReplicasAfterAppend,
            // An overloaded shard takes it later: clients retry after a timeout, in order.
            PartitionError::TimedOut | PartitionError::Overloaded => Self::RequestTimedOut,
            PartitionError::StorageFull | PartitionError::StorageFailed => Self::KafkaStorageError,
            _ => Self::UnknownServerError,
        }
    }
}

impl From<Why> for ErrorCode {
    fn from(why: Why) -> Self {
        match why {
            Why::TopicExists => Self::TopicAlreadyExists,
            Why::UnknownTopic => Self::UnknownTopicOrPartition,
            Why::UnknownTopicId => Self::UnknownTopicId,
            Why::InvalidTopicName => Self::InvalidTopic,
            Why::InvalidPartitions => Self::InvalidPartitions,
            Why::InvalidReplicationFactor => Self::InvalidReplicationFactor,
            Why::InvalidAssignment => Self::InvalidReplicaAssignment,
            Why::InvalidConfig => Self::InvalidConfig,
            Why::InvalidRequest => Self::InvalidRequest,
            Why::LimitReached => Self::PolicyViolation,
            Why::TimedOut => Self::RequestTimedOut,
            Why::StorageFailed => Self::KafkaStorageError,
            Why::NoController => Self::NotController,
            Why::Conflict => Self::InvalidUpdateVersion,
            Why::IneligibleNode => Self::IneligibleReplica,
            Why::UnknownNode => Self::BrokerIdNotRegistered,
            Why::DuplicateNode => Self::DuplicateBrokerRegistration,
            Why::NodeInUse => Self::InvalidRequest,
            Why::FencedLeaderEpoch => Self::FencedLeaderEpoch,
            Why::NoReassignment => Self::NoReassignmentInProgress,
            Why::ElectionNotNeeded => Self::ElectionNotNeeded,
            Why::PreferredLeaderNotAvailable => Self::PreferredLeaderNotAvailable,
            Why::EligibleLeadersNotAvailable => Self::EligibleLeadersNotAvailable,
        }
    }
}

/// Bytes of an error message; the words of a refusal can quote what a client sent.
const MESSAGE_BYTES_MAX: usize = 1000;

/// A refusal as the wire shows it.
pub fn refused(refusal: Refusal) -> (ErrorCode, Option<String>) {
    let mut message = refusal.message;
    if message.len() > MESSAGE_BYTES_MAX {
        let cut = (0..=MESSAGE_BYTES_MAX).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
        message.truncate(cut);
    }
    (refusal.why.into(), Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_kafkas_own_list() {
        for code in ErrorCode::ALL {
            let Some(theirs) = kafka_protocol::ResponseError::try_from_code(code.wire()) else {
                assert_eq!(*code, ErrorCode::None);
                continue;
            };
            assert_eq!(format!("{theirs:?}").replace("Exception", ""), code.name());
        }
        assert_eq!(ErrorCode::from(PartitionError::Overloaded).wire(), 7);
        assert_eq!(ErrorCode::from(PartitionError::NotOwned).wire(), 6);
    }

    #[test]
    fn long_words_are_cut_at_a_character() {
        let (code, message) = refused(Refusal::new(Why::InvalidConfig, "ü".repeat(501)));
        assert_eq!((code, message), (ErrorCode::InvalidConfig, Some("ü".repeat(500))));
    }
}
