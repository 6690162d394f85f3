//! ListOffsets, OffsetForLeaderEpoch and DeleteRecords: what they ask of partitions and how they show the answers.
//!
//! Pure; on the shard core that the connection came to.

use std::time::Duration;

use highwater_shards::ids::{LeaderEpoch, Offset};
use highwater_shards::mail::{Answer, Locate, Op, PartitionError};

use super::errors::ErrorCode;
use super::gather::{Gather, Gathering, Place};
use super::messages::offsets::{
    DeleteRecordsPartition, DeleteRecordsPartitionResult, DeleteRecordsRequest, DeleteRecordsResponse,
    DeleteRecordsTopicResult, EpochEndOffset, ListOffsetsPartition, ListOffsetsPartitionResponse,
    ListOffsetsRequest, ListOffsetsResponse, ListOffsetsTopicResponse, OffsetForLeaderEpochRequest,
    OffsetForLeaderEpochResponse, OffsetForLeaderPartition, OffsetForLeaderTopicResult,
};
use super::session::{Header, Other};
use crate::control::metadata::topic_config::partition_config;

/// What ListOffsets calls the ends of a log and other places that are no timestamps.
mod place {
    pub const LATEST: i64 = -1;
    pub const EARLIEST: i64 = -2;
    pub const LARGEST_TIMESTAMP: i64 = -3;
    /// The first record on the node's own disk (KIP-405): all of them are.
    pub const EARLIEST_LOCAL: i64 = -4;
    /// The last record that was moved to remote storage: there is none.
    pub const LATEST_TIERED: i64 = -5;
}

/// From this version on a client knows [`ErrorCode::OffsetNotAvailable`].
const OFFSET_NOT_AVAILABLE_FROM: i16 = 5;

impl Gather for ListOffsetsRequest {
    type Asked = ListOffsetsPartition;
    type Told = ListOffsetsPartitionResponse;

    const WAIT: fn(Box<Gathering<Self>>) -> Other = Other::Offsets;

    fn take_topics(&mut self) -> impl Iterator<Item = (String, Vec<Self::Asked>)> {
        self.topics.drain(..).map(|topic| (topic.name, topic.partitions))
    }

    fn index(asked: &Self::Asked) -> i32 {
        asked.partition_index
    }

    fn question(&self, _: Place<'_>, asked: &Self::Asked) -> Result<Option<Op>, ErrorCode> {
        let at = match asked.timestamp {
            place::LATEST => Locate::Latest,
            place::EARLIEST | place::EARLIEST_LOCAL => Locate::Earliest,
            place::LARGEST_TIMESTAMP => Locate::LargestTimestamp,
            place::LATEST_TIERED => return Ok(None),
            timestamp @ 0.. => Locate::Timestamp(timestamp),
            _ => return Err(ErrorCode::UnsupportedVersion),
        };
        let current_epoch = LeaderEpoch::from_wire(asked.current_leader_epoch);
        Ok(Some(Op::Locate { current_epoch, at }))
    }

    fn told(index: i32) -> Self::Told {
        Self::Told { partition_index: index, ..Self::Told::default() }
    }

    fn error_code(told: &mut Self::Told) -> &mut i16 {
        &mut told.error_code
    }

    fn fill(told: &mut Self::Told, header: &Header, answer: Answer) -> Result<(), ErrorCode> {
        let Answer::Located(result) = answer else {
            unreachable!("a question for a place is answered with it")
        };
        match result {
            Ok(Some(found)) => {
                told.offset = found.offset.wire();
                told.timestamp = found.timestamp_ms.unwrap_or(-1);
                told.leader_epoch = found.leader_epoch.map_or(-1, LeaderEpoch::wire);
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(PartitionError::OffsetNotAvailable) if header.v.number < OFFSET_NOT_AVAILABLE_FROM => {
                Err(ErrorCode::LeaderNotAvailable)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn response(topics: impl Iterator<Item = (String, Vec<Self::Told>)>) -> ListOffsetsResponse {
        let topics = topics.map(|(name, partitions)| ListOffsetsTopicResponse { name, partitions });
        ListOffsetsResponse { topics: topics.collect(), ..ListOffsetsResponse::default() }
    }
}

impl Gather for OffsetForLeaderEpochRequest {
    type Asked = OffsetForLeaderPartition;
    type Told = EpochEndOffset;

    const WAIT: fn(Box<Gathering<Self>>) -> Other = Other::EpochEnds;

    fn take_topics(&mut self) -> impl Iterator<Item = (String, Vec<Self::Asked>)> {
        self.topics.drain(..).map(|topic| (topic.topic, topic.partitions))
    }

    fn index(asked: &Self::Asked) -> i32 {
        asked.partition
    }

    fn question(&self, _: Place<'_>, asked: &Self::Asked) -> Result<Option<Op>, ErrorCode> {
        let current_epoch = LeaderEpoch::from_wire(asked.current_leader_epoch);
        // No epoch has an unknown number: not an error, and no end.
        let epoch = LeaderEpoch::from_wire(asked.leader_epoch);
        Ok(epoch.map(|epoch| Op::EpochEnd { current_epoch, epoch }))
    }

    fn told(index: i32) -> Self::Told {
        Self::Told { partition: index, ..Self::Told::default() }
    }

    fn error_code(told: &mut Self::Told) -> &mut i16 {
        &mut told.error_code
    }

    fn fill(told: &mut Self::Told, _: &Header, answer: Answer) -> Result<(), ErrorCode> {
        let Answer::EpochEnd(result) = answer else {
            unreachable!("a question for an epoch is answered with it")
        };
        if let Some(end) = result? {
            told.leader_epoch = end.epoch.wire();
            told.end_offset = end.end.wire();
        }
        Ok(())
    }

    fn response(topics: impl Iterator<Item = (String, Vec<Self::Told>)>) -> OffsetForLeaderEpochResponse {
        let topics = topics.map(|(topic, partitions)| OffsetForLeaderTopicResult { topic, partitions });
        OffsetForLeaderEpochResponse { topics: topics.collect(), ..OffsetForLeaderEpochResponse::default() }
    }
}

/// What DeleteRecords calls the high watermark.
const HIGH_WATERMARK: i64 = -1;

impl Gather for DeleteRecordsRequest {
    type Asked = DeleteRecordsPartition;
    type Told = DeleteRecordsPartitionResult;

    const WAIT: fn(Box<Gathering<Self>>) -> Other = Other::Deletions;

    fn take_topics(&mut self) -> impl Iterator<Item = (String, Vec<Self::Asked>)> {
        self.topics.drain(..).map(|topic| (topic.name, topic.partitions))
    }

    fn index(asked: &Self::Asked) -> i32 {
        asked.partition_index
    }

    fn question(&self, at: Place<'_>, asked: &Self::Asked) -> Result<Option<Op>, ErrorCode> {
        // A topic that is only compacted promises to keep the last record of every key.
        if !partition_config(at.topic, at.image, &at.kafka.config.topic_defaults).log.delete {
            return Err(ErrorCode::PolicyViolation);
        }
        let before = match asked.offset {
            HIGH_WATERMARK => None,
            offset => Some(Offset::from_wire(offset).ok_or(ErrorCode::OffsetOutOfRange)?),
        };
        let timeout = Duration::from_millis(u64::try_from(self.timeout_ms).unwrap_or(0));
        Ok(Some(Op::DeleteRecords { before, deadline: at.header.arrived + timeout }))
    }

    fn told(index: i32) -> Self::Told {
        Self::Told { partition_index: index, ..Self::Told::default() }
    }

    fn error_code(told: &mut Self::Told) -> &mut i16 {
        &mut told.error_code
    }

    fn fill(told: &mut Self::Told, _: &Header, answer: Answer) -> Result<(), ErrorCode> {
        let Answer::Deleted(result) = answer else {
            unreachable!("a deletion is answered with the log's start")
        };
        told.low_watermark = result?.wire();
        Ok(())
    }

    fn response(topics: impl Iterator<Item = (String, Vec<Self::Told>)>) -> DeleteRecordsResponse {
        let topics = topics.map(|(name, partitions)| DeleteRecordsTopicResult { name, partitions });
        DeleteRecordsResponse { topics: topics.collect(), ..DeleteRecordsResponse::default() }
    }
}
