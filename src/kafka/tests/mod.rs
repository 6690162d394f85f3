//! Sessions driven without sockets: a client that sends frames, and shards and a control core that the test plays.

mod changes;
mod deletions;
mod fetch;
mod frames;
mod hostile;
mod metadata;
mod model;
mod produce;
mod racks;
mod replicas;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use highwater_shards::front::{Act, CloseReason, Cx, Front};
use highwater_shards::ids::{
    ConnId, LeaderEpoch, NodeId, Offset, PartitionEpoch, PartitionId, PartitionIndex, ShardId, TopicId,
};
use highwater_shards::mail::{Answer, Appended, Op, ReadOut, Token};
use highwater_shards::time::Instant;

use super::api::{ApiKey, Call, decode_response, request_frame};
use super::session::{Kafka, KafkaConfig, Session};
use crate::control::metadata::image::{Endpoint, Image, NodeInfo, PartitionState, Topic};
use crate::control::request::{Reply, Request};

/// An operation that a session submitted.
#[derive(Debug)]
pub struct Submitted {
    pub shard: ShardId,
    pub partition: PartitionId,
    pub token: Token,
    pub op: Op,
}

/// One connection and everything around it.
pub struct Client {
    pub kafka: Kafka,
    pub session: Session,
    pub view: Arc<Image>,
    pub now: Instant,
    /// Operations in the order of their submission, taken out by the test.
    pub ops: Vec<Submitted>,
    pub asks: Vec<(Token, Request)>,
    pub timers: BTreeMap<Token, Instant>,
    /// Every `Act::Send`, its parts kept apart.
    pub sent: Vec<Vec<Bytes>>,
    pub closed: Option<CloseReason>,
}

pub const TOPIC: TopicId = TopicId(0xabcd);
/// Partitions of the topic "events": partition p lives on shard p % 2, but the last is led by another node.
pub const PARTITIONS: u32 = 5;

pub fn image() -> Image {
    let mut image = Image::default();
    image.cluster_id = "test-cluster".into();
    image.controller = Some(NodeId(1));
    for id in 1..=2 {
        let client = Endpoint { host: format!("host-{id}"), port: 9092 };
        image.nodes.insert(NodeId(id), Arc::new(NodeInfo { id: NodeId(id), client, ..NodeInfo::default() }));
    }
    add_topic(&mut image, TOPIC, "events", PARTITIONS);
    image
}

pub fn add_topic(image: &mut Image, id: TopicId, name: &str, partitions: u32) {
    let leader = |p| if p == 4 { NodeId(2) } else { NodeId(1) };
    let state = |p| PartitionState {
        leader: Some(leader(p)),
        leader_epoch: LeaderEpoch(3),
        partition_epoch: PartitionEpoch(0),
        replicas: vec![leader(p)],
        isr: vec![leader(p)],
        ..PartitionState::default()
    };
    let partitions: imbl::Vector<_> = (0..partitions).map(state).collect();
    for p in (0..).take(partitions.len()).filter(|&p| leader(p) == NodeId(1)) {
        let id = PartitionId { topic: id, index: PartitionIndex(p) };
        image.put_local_shard(id, ShardId(u16::from(p % 2 == 1)));
    }
    image.put_topic(Topic { id, name: name.into(), partitions, config: Arc::default() });
}

impl Client {
    pub fn new() -> Self {
        Self::with(KafkaConfig::default())
    }

    pub fn with(config: KafkaConfig) -> Self {
        let mut kafka = Kafka::new(config);
        let view = Arc::new(image());
        let mut acts = Vec::new();
        let mut cx =
            Cx { now: Instant::ZERO, shard: ShardId(0), conn: ConnId(1), view: &view, acts: &mut acts };
        let session = kafka.open(&mut cx, "127.0.0.1:5000".parse().unwrap());
        Self {
            kafka,
            session,
            view,
            now: Instant::ZERO,
            ops: Vec::new(),
            asks: Vec::new(),
            timers: BTreeMap::new(),
            sent: Vec::new(),
            closed: None,
        }
    }

    fn call(&mut self, f: impl FnOnce(&mut Kafka, &mut Cx<'_, Kafka>, &mut Session)) {
        let mut acts = Vec::new();
        let mut cx =
            Cx { now: self.now, shard: ShardId(0), conn: ConnId(1), view: &self.view, acts: &mut acts };
        f(&mut self.kafka, &mut cx, &mut self.session);
        for act in acts {
            match act {
                Act::Submit { shard, partition, token, op } => {
                    self.ops.push(Submitted { shard, partition, token, op });
                }
                Act::Ask { token, request } => self.asks.push((token, request)),
                Act::Send { parts } => {
                    assert!(self.closed.is_none(), "nothing is sent after the close");
                    self.sent.push(parts);
                }
                Act::SetTimer { token, at } => {
                    self.timers.insert(token, at);
                }
                Act::CancelTimer { token } => {
                    self.timers.remove(&token).expect("a timer that is cancelled was set");
                }
                Act::Close { reason } => {
                    assert!(self.closed.is_none(), "a connection is closed once");
                    self.closed = Some(reason);
                }
            }
        }
    }

    /// A frame without its length.
    pub fn frame(&mut self, frame: Bytes) {
        self.call(|kafka, cx, session| kafka.on_frame(cx, session, frame));
    }

    pub fn request<C: Call>(&mut self, version: i16, correlation: i32, body: &C) {
        self.frame(request_frame(version, correlation, "test", body).slice(4..));
    }

    pub fn answer(&mut self, token: Token, answer: Answer) {
        self.call(|kafka, cx, session| kafka.on_answer(cx, session, token, answer));
    }

    pub fn reply(&mut self, token: Token, reply: Reply) {
        self.call(|kafka, cx, session| kafka.on_reply(cx, session, token, reply));
    }

    /// Moves time on and fires the timers that are due.
    pub fn advance(&mut self, by: Duration) {
        self.now = self.now + by;
        while let Some((&token, _)) = self.timers.iter().find(|&(_, &at)| at <= self.now) {
            self.timers.remove(&token);
            self.call(|kafka, cx, session| kafka.on_timeout(cx, session, token));
        }
    }

    pub fn hang_up(&mut self) {
        self.call(|kafka, cx, session| kafka.on_closed(cx, session));
    }

    pub fn in_flight(&self) -> usize {
        self.kafka.in_flight(&self.session)
    }

    /// Takes the answers that were sent so far, each checked for its length and without it.
    pub fn frames(&mut self) -> Vec<Bytes> {
        let sent = self.sent.drain(..);
        sent.map(|parts| {
            let whole = Bytes::from(parts.concat());
            let len = i32::from_be_bytes(*whole.first_chunk().unwrap());
            assert_eq!(usize::try_from(len).unwrap(), whole.len() - 4, "the length in front");
            whole.slice(4..)
        })
        .collect()
    }

    /// Takes the one answer that was sent.
    pub fn response<C: Call>(&mut self, version: i16) -> (i32, C::Response) {
        let frames = self.frames();
        assert_eq!(frames.len(), 1, "one answer: {frames:?}");
        decoded::<C>(version, &frames[0])
    }

    /// Takes the operations that were submitted so far.
    pub fn take_ops(&mut self) -> Vec<Submitted> {
        std::mem::take(&mut self.ops)
    }

    /// Takes the one operation that was submitted.
    pub fn op(&mut self) -> Submitted {
        let mut ops = self.take_ops();
        assert_eq!(ops.len(), 1, "one operation: {ops:?}");
        ops.remove(0)
    }
}

/// Decodes an answer and checks that it is what its own table would have written.
pub fn decoded<C: Call>(version: i16, frame: &Bytes) -> (i32, C::Response) {
    let (correlation, response) = decode_response::<C>(version, frame).unwrap();
    let again = super::api::response_frame(C::API, C::API.version(version), correlation, &response);
    assert_eq!(again.slice(4..), frame, "{:?} {version}: the answer is not canonical", C::API);
    (correlation, response)
}

pub fn partition(index: u32) -> PartitionId {
    PartitionId { topic: TOPIC, index: PartitionIndex(index) }
}

pub fn appended(base_offset: u64) -> Answer {
    appended_slowly(base_offset, 0)
}

/// The same from a shard that asks the producer to pause.
pub fn appended_slowly(base_offset: u64, throttle_ms: u64) -> Answer {
    Answer::Appended(Ok(Appended {
        base_offset: Offset(base_offset),
        log_start: Offset(0),
        throttle: Duration::from_millis(throttle_ms),
    }))
}

pub fn read_out(high_watermark: u64, records: &[&'static [u8]], watching: bool) -> Answer {
    Answer::Read(Ok(ReadOut {
        high_watermark: Offset(high_watermark),
        log_start: Offset(0),
        records: records.iter().map(|r| Bytes::from_static(r)).collect(),
        watching,
        nearer: None,
    }))
}

pub fn versions(api: ApiKey) -> std::ops::RangeInclusive<i16> {
    api.version_min()..=api.version_max()
}
