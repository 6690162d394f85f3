//! ListOffsets and OffsetForLeaderEpoch: one question to each partition's shard, one answer when all have spoken.
//!
//! Pure; on the shard core that the connection came to.

use bytes::Bytes;
use highwater_shards::front::Cx;
use highwater_shards::ids::LeaderEpoch;
use highwater_shards::mail::{Answer, Locate, Op, PartitionError};

use super::api::{ApiKey, response_frame};
use super::errors::ErrorCode;
use super::messages::offsets::{
    EpochEndOffset, ListOffsetsPartition, ListOffsetsPartitionResponse, ListOffsetsRequest,
    ListOffsetsResponse, ListOffsetsTopicResponse, OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse,
    OffsetForLeaderTopicResult,
};
use super::route::route_by_name;
use super::session::{Header, Kafka, Other, Step};
use super::wire::{DecodeError, Reader, Wire};

/// The answer as it fills up, and where each part of the request stands in it.
#[derive(Debug)]
pub(super) struct Gathering<Response> {
    response: Response,
    /// Topic and partition in the response, by part.
    places: Vec<(usize, usize)>,
    /// Parts without an answer.
    waiting: usize,
}

pub(super) type Offsets = Gathering<ListOffsetsResponse>;
pub(super) type EpochEnds = Gathering<OffsetForLeaderEpochResponse>;

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

impl Offsets {
    pub fn start(
        kafka: &mut Kafka,
        cx: &mut Cx<'_, Kafka>,
        header: &Header,
        r: &mut Reader<'_>,
    ) -> Result<Step, DecodeError> {
        let request: ListOffsetsRequest = header.body(r)?;
        let mut gathering = Self { response: ListOffsetsResponse::default(), places: Vec::new(), waiting: 0 };
        for topic in request.topics {
            let mut partitions = Vec::with_capacity(topic.partitions.len());
            for asked in topic.partitions {
                let error_code = match gathering.ask(kafka, cx, header, &topic.name, &asked) {
                    Ok(()) => ErrorCode::None,
                    Err(code) => {
                        kafka.stats.error(ApiKey::ListOffsets, code);
                        code
                    }
                };
                gathering.places.push((gathering.response.topics.len(), partitions.len()));
                partitions.push(ListOffsetsPartitionResponse {
                    partition_index: asked.partition_index,
                    error_code: error_code.wire(),
                    ..ListOffsetsPartitionResponse::default()
                });
            }
            gathering.response.topics.push(ListOffsetsTopicResponse { name: topic.name, partitions });
        }
        Ok(if gathering.waiting == 0 {
            header.answer(&gathering.response)
        } else {
            Step::Wait(Other::Offsets(Box::new(gathering)))
        })
    }

    fn ask(
        &mut self,
        kafka: &Kafka,
        cx: &mut Cx<'_, Kafka>,
        header: &Header,
        topic: &str,
        asked: &ListOffsetsPartition,
    ) -> Result<(), ErrorCode> {
        let (shard, partition) = route_by_name(cx.view, kafka.config.node, topic, asked.partition_index)?;
        let at = match asked.timestamp {
            place::LATEST => Locate::Latest,
            place::EARLIEST | place::EARLIEST_LOCAL => Locate::Earliest,
            place::LARGEST_TIMESTAMP => Locate::LargestTimestamp,
            // Nowhere, and that is not an error.
            place::LATEST_TIERED => return Ok(()),
            timestamp @ 0.. => Locate::Timestamp(timestamp),
            _ => return Err(ErrorCode::UnsupportedVersion),
        };
        let current_epoch = LeaderEpoch::from_wire(asked.current_leader_epoch);
        cx.submit(shard, partition, header.token(self.places.len()), Op::Locate { current_epoch, at });
        self.waiting += 1;
        Ok(())
    }

    pub fn on_answer(
        &mut self,
        kafka: &mut Kafka,
        header: &Header,
        part: usize,
        answer: Answer,
    ) -> Option<Vec<Bytes>> {
        let Answer::Located(result) = answer else {
            unreachable!("a question for a place is answered with it")
        };
        let (topic, partition) = self.places[part];
        let out = &mut self.response.topics[topic].partitions[partition];
        match result {
            Ok(Some(found)) => {
                out.offset = found.offset.wire();
                out.timestamp = found.timestamp_ms.unwrap_or(-1);
                out.leader_epoch = found.leader_epoch.map_or(-1, LeaderEpoch::wire);
            }
            Ok(None) => {}
            Err(error) => {
                let unknown = error == PartitionError::OffsetNotAvailable
                    && header.v.number < OFFSET_NOT_AVAILABLE_FROM;
                let code = if unknown { ErrorCode::LeaderNotAvailable } else { error.into() };
                kafka.stats.error(ApiKey::ListOffsets, code);
                out.error_code = code.wire();
            }
        }
        self.answered(header)
    }
}

impl EpochEnds {
    pub fn start(
        kafka: &mut Kafka,
        cx: &mut Cx<'_, Kafka>,
        header: &Header,
        r: &mut Reader<'_>,
    ) -> Result<Step, DecodeError> {
        let request: OffsetForLeaderEpochRequest = header.body(r)?;
        let mut gathering =
            Self { response: OffsetForLeaderEpochResponse::default(), places: Vec::new(), waiting: 0 };
        for topic in request.topics {
            let mut partitions = Vec::with_capacity(topic.partitions.len());
            for asked in topic.partitions {
                let target = route_by_name(cx.view, kafka.config.node, &topic.topic, asked.partition);
                let error_code = match (target, LeaderEpoch::from_wire(asked.leader_epoch)) {
                    (Ok((shard, partition)), Some(epoch)) => {
                        let current_epoch = LeaderEpoch::from_wire(asked.current_leader_epoch);
                        let token = header.token(gathering.places.len());
                        cx.submit(shard, partition, token, Op::EpochEnd { current_epoch, epoch });
                        gathering.waiting += 1;
                        ErrorCode::None
                    }
                    // No epoch has an unknown number: not an error, and no end.
                    (Ok(_), None) => ErrorCode::None,
                    (Err(code), _) => code,
                };
                kafka.stats.error(ApiKey::OffsetForLeaderEpoch, error_code);
                gathering.places.push((gathering.response.topics.len(), partitions.len()));
                partitions.push(EpochEndOffset {
                    partition: asked.partition,
                    error_code: error_code.wire(),
                    ..EpochEndOffset::default()
                });
            }
            gathering.response.topics.push(OffsetForLeaderTopicResult { topic: topic.topic, partitions });
        }
        Ok(if gathering.waiting == 0 {
            header.answer(&gathering.response)
        } else {
            Step::Wait(Other::EpochEnds(Box::new(gathering)))
        })
    }

    pub fn on_answer(
        &mut self,
        kafka: &mut Kafka,
        header: &Header,
        part: usize,
        answer: Answer,
    ) -> Option<Vec<Bytes>> {
        let Answer::EpochEnd(result) = answer else {
            unreachable!("a question for an epoch is answered with it")
        };
        let (topic, partition) = self.places[part];
        let out = &mut self.response.topics[topic].partitions[partition];
        match result {
            Ok(Some(end)) => {
                out.leader_epoch = end.epoch.wire();
                out.end_offset = end.end.wire();
            }
            Ok(None) => {}
            Err(error) => {
                let code = ErrorCode::from(error);
                kafka.stats.error(ApiKey::OffsetForLeaderEpoch, code);
                out.error_code = code.wire();
            }
        }
        self.answered(header)
    }
}

impl<Response: Wire> Gathering<Response> {
    /// One more part was answered; the whole answer when it was the last.
    fn answered(&mut self, header: &Header) -> Option<Vec<Bytes>> {
        self.waiting -= 1;
        (self.waiting == 0)
            .then(|| vec![response_frame(header.api, header.v, header.correlation, &self.response)])
    }
}
