//! [`Wire`] over the real Kafka front: the client's end, written by hand in one version of each request, so that
//! the codec under test has no part in it.
//!
//! Produce 7, Fetch 11, ListOffsets 7 (the first with the largest timestamp; it is "flexible"), InitProducerId 0.
//! Source: the protocol guide of Apache Kafka.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use highwater::control::metadata::image::{Image, PartitionState, Topic};
use highwater::control::request::{Refusal, Reply, Request, Why};
use highwater::kafka::{Kafka, KafkaConfig};
use highwater_shards::ids::{Offset, PartitionId, ProducerEpoch, ProducerId, TopicId};
use highwater_shards::mail::{Acks, Locate, PartitionError};

use crate::control::SELF;
use crate::wire::{Call, Heard, Metadata, ReadSaid, Said, Wire};

#[derive(Clone, Debug)]
pub struct KafkaWire {
    config: KafkaConfig,
}

impl KafkaWire {
    pub fn new(waiting_bytes_max: usize) -> Self {
        let config = KafkaConfig {
            node: SELF,
            auto_create_topics: false,
            waiting_bytes_max,
            ..KafkaConfig::default()
        };
        Self { config }
    }
}

const PRODUCE: (i16, i16) = (0, 7);
const FETCH: (i16, i16) = (1, 11);
const LIST_OFFSETS: (i16, i16) = (2, 7);
const INIT_PRODUCER_ID: (i16, i16) = (22, 0);

impl Wire for KafkaWire {
    type Front = Kafka;

    fn front(&self) -> Kafka {
        Kafka::new(self.config.clone())
    }

    fn view(&self, metadata: &Arc<Metadata>) -> Arc<Image> {
        let mut topics: BTreeMap<TopicId, Vec<PartitionState>> = BTreeMap::new();
        let mut image = Image::default();
        image.revision = metadata.revision;
        for (id, (shard, a)) in &metadata.partitions {
            image.put_local_shard(*id, *shard);
            topics.entry(id.topic).or_default().push(PartitionState {
                leader: a.leader,
                leader_epoch: a.leader_epoch,
                partition_epoch: a.partition_epoch,
                replicas: a.replicas.clone(),
                isr: a.isr.clone(),
                ..PartitionState::default()
            });
        }
        for (id, partitions) in topics {
            let partitions = partitions.into_iter().collect();
            image.put_topic(Topic { id, name: name(id).into(), partitions, config: Arc::default() });
        }
        Arc::new(image)
    }

    fn answer(&self, request: Request, producer: ProducerId) -> Reply {
        let refusal = || Refusal::new(Why::InvalidRequest, "the simulated control core has no such thing");
        match request {
            Request::NewProducerId => Reply::NewProducerId(Ok((producer, ProducerEpoch(0)))),
            Request::CreateTopics { topics, .. } => {
                Reply::CreateTopics(topics.iter().map(|_| Err(refusal())).collect())
            }
            Request::DeleteTopics { topics, .. } => {
                Reply::DeleteTopics(topics.iter().map(|_| Err(refusal())).collect())
            }
            Request::CreatePartitions { topics, .. } => {
                Reply::CreatePartitions(topics.iter().map(|_| Err(refusal())).collect())
            }
            Request::AlterConfigs { resources, .. } => {
                Reply::AlterConfigs(resources.iter().map(|_| Err(refusal())).collect())
            }
            Request::ChangeNode { .. } => Reply::ChangeNode(Err(refusal())),
            Request::Reassign { partitions, .. } => {
                Reply::Reassign(partitions.iter().map(|_| Err(refusal())).collect())
            }
            Request::ElectLeaders { .. } => Reply::ElectLeaders(Err(refusal())),
            Request::SetFeatureLevel { .. } => Reply::SetFeatureLevel(Err(refusal())),
        }
    }

    fn encode(&self, call: &Call, correlation: u32) -> Bytes {
        let mut out = BytesMut::with_capacity(128);
        match call {
            Call::Append { partition, acks, timeout, records } => {
                header(&mut out, PRODUCE, correlation);
                out.put_i16(-1);
                out.put_i16(match acks {
                    Acks::None => 0,
                    Acks::Leader => 1,
                    Acks::All => -1,
                });
                out.put_i32(millis(*timeout));
                one_partition(&mut out, *partition);
                out.put_i32(length(records.len()));
                out.put_slice(records);
            }
            Call::Read(read) => {
                header(&mut out, FETCH, correlation);
                out.put_i32(-1);
                out.put_i32(millis(read.wait));
                out.put_u32(read.bytes_min);
                out.put_i32(i32::MAX);
                out.put_i8(0);
                out.put_i32(0);
                out.put_i32(-1);
                one_partition(&mut out, read.partition);
                out.put_i32(-1);
                out.put_i64(read.offset.wire());
                out.put_i64(-1);
                out.put_u32(read.bytes_max);
                out.put_i32(0);
                string(&mut out, "");
            }
            Call::Locate { partition, at } => {
                header(&mut out, LIST_OFFSETS, correlation);
                out.put_u8(0);
                out.put_i32(-1);
                out.put_i8(0);
                out.put_u8(2);
                let name = name(partition.topic);
                out.put_u8(u8::try_from(name.len() + 1).expect("names are short"));
                out.put_slice(name.as_bytes());
                out.put_u8(2);
                out.put_u32(partition.index.0);
                out.put_i32(-1);
                out.put_i64(match at {
                    Locate::Latest => -1,
                    Locate::Earliest => -2,
                    Locate::LargestTimestamp => -3,
                    Locate::Timestamp(t) => *t,
                });
                out.put_slice(&[0, 0, 0]);
            }
            Call::NewProducer => {
                header(&mut out, INIT_PRODUCER_ID, correlation);
                out.put_i16(-1);
                out.put_i32(60_000);
            }
        }
        out.freeze()
    }

    fn decode(&self, call: &Call, mut frame: Bytes) -> Result<Heard, String> {
        let short = |_| format!("a short answer to {call:?}");
        let b = &mut frame;
        let correlation = b.try_get_u32().map_err(short)?;
        let said = match call {
            Call::Append { .. } => produced(b),
            Call::Read(_) => fetched(b),
            Call::Locate { .. } => located(b),
            Call::NewProducer => new_producer(b),
        };
        let said = said.map_err(short)??;
        if !frame.is_empty() {
            return Err(format!("{} bytes behind the answer to {call:?}", frame.len()));
        }
        Ok(Heard { correlation, revision: None, said })
    }
}

/// Not long enough, or not what was expected.
type Decoded = Result<Result<Said, String>, bytes::TryGetError>;

fn produced(b: &mut Bytes) -> Decoded {
    expect_one_partition(b)?;
    let error = b.try_get_i16()?;
    let base = b.try_get_i64()?;
    let (_append_time, _log_start, _throttle) = (b.try_get_i64()?, b.try_get_i64()?, b.try_get_i32()?);
    Ok(refused(error).map(|e| Said::Appended(e.map_or_else(|| offset(base), Err))))
}

fn fetched(b: &mut Bytes) -> Decoded {
    let (_throttle, whole, _session) = (b.try_get_i32()?, b.try_get_i16()?, b.try_get_i32()?);
    if whole != 0 {
        return Ok(Err(format!("a fetch was refused as a whole: {whole}")));
    }
    expect_one_partition(b)?;
    let error = b.try_get_i16()?;
    let (high_watermark, stable, log_start) = (b.try_get_i64()?, b.try_get_i64()?, b.try_get_i64()?);
    let (_aborted, _replica, len) = (b.try_get_i32()?, b.try_get_i32()?, b.try_get_i32()?);
    let records = b.split_to(usize::try_from(len).unwrap_or(0).min(b.len()));
    let error = match refused(error) {
        Ok(error) => error,
        Err(e) => return Ok(Err(e)),
    };
    if let Some(error) = error {
        return Ok(Ok(Said::Read(Err(error))));
    }
    if stable != high_watermark {
        return Ok(Err(format!(
            "the last stable offset is {stable} and the high watermark {high_watermark}"
        )));
    }
    let ends = offset(high_watermark).and_then(|h| offset(log_start).map(|l| (h, l)));
    Ok(Ok(Said::Read(ends.map(|(high_watermark, log_start)| ReadSaid {
        high_watermark,
        log_start,
        records,
    }))))
}

fn located(b: &mut Bytes) -> Decoded {
    let (_tags, _throttle, _topics) = (b.try_get_u8()?, b.try_get_i32()?, b.try_get_u8()?);
    let name = usize::from(b.try_get_u8()?).saturating_sub(1).min(b.len());
    b.advance(name);
    let (_partitions, _index) = (b.try_get_u8()?, b.try_get_i32()?);
    let error = b.try_get_i16()?;
    let (_timestamp, at, _epoch) = (b.try_get_i64()?, b.try_get_i64()?, b.try_get_i32()?);
    let (_, _, _) = (b.try_get_u8()?, b.try_get_u8()?, b.try_get_u8()?);
    let found = Offset::from_wire(at);
    Ok(refused(error).map(|e| Said::Located(e.map_or(Ok(found), Err))))
}

fn new_producer(b: &mut Bytes) -> Decoded {
    let (_throttle, error) = (b.try_get_i32()?, b.try_get_i16()?);
    let (id, epoch) = (b.try_get_u64()?, b.try_get_u16()?);
    if error != 0 {
        return Ok(Err(format!("no producer id: {error}")));
    }
    Ok(Ok(Said::Producer(ProducerId(id), ProducerEpoch(epoch))))
}

/// One topic, one partition: the counts, the name and the index.
fn expect_one_partition(b: &mut Bytes) -> Result<(), bytes::TryGetError> {
    let _topics = b.try_get_i32()?;
    let name = usize::try_from(b.try_get_i16()?).unwrap_or(0).min(b.len());
    b.advance(name);
    let (_partitions, _index) = (b.try_get_i32()?, b.try_get_i32()?);
    Ok(())
}

fn offset(wire: i64) -> Result<Offset, PartitionError> {
    // A success with no offset is no success.
    Offset::from_wire(wire).ok_or(PartitionError::StorageFailed)
}

/// The error that a code stands for; where several have one code, the one that promises least.
fn refused(code: i16) -> Result<Option<PartitionError>, String> {
    use PartitionError as E;
    Ok(Some(match code {
        0 => return Ok(None),
        1 => E::OffsetOutOfRange,
        2 => E::CorruptBatch,
        3 => E::NotOwned,
        6 => E::NotLeader,
        7 => E::TimedOut,
        10 => E::BatchTooLarge,
        19 => E::NotEnoughReplicas,
        20 => E::NotEnoughReplicasAfterAppend,
        43 => E::UnsupportedFormat,
        45 => E::OutOfOrderSequence,
        47 => E::InvalidProducerEpoch,
        56 => E::StorageFailed,
        74 => E::FencedLeaderEpoch,
        75 => E::UnknownLeaderEpoch,
        78 => E::OffsetNotAvailable,
        87 => E::InvalidBatch,
        other => return Err(format!("error {other}")),
    }))
}

fn name(topic: TopicId) -> String {
    format!("topic-{}", topic.0)
}

fn header(out: &mut BytesMut, (key, version): (i16, i16), correlation: u32) {
    out.put_i16(key);
    out.put_i16(version);
    out.put_u32(correlation);
    string(out, "simulated");
}

fn one_partition(out: &mut BytesMut, partition: PartitionId) {
    out.put_i32(1);
    string(out, &name(partition.topic));
    out.put_i32(1);
    out.put_u32(partition.index.0);
}

fn string(out: &mut BytesMut, s: &str) {
    out.put_i16(i16::try_from(s.len()).expect("names are short"));
    out.put_slice(s.as_bytes());
}

fn length(n: usize) -> i32 {
    i32::try_from(n).expect("simulated records are small")
}

fn millis(d: Duration) -> i32 {
    i32::try_from(d.as_millis()).expect("simulated waits are short")
}
