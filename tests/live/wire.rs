//! A small blocking Kafka client for tests: requests encoded by the `kafka-protocol` crate, answers decoded by it, and
//! raw frames for everything that no real client would send.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use bytes::{Buf as _, Bytes, BytesMut};
use kafka_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    BrokerId, CreateTopicsRequest, FetchRequest, FetchResponse, InitProducerIdRequest, ListOffsetsRequest,
    ProduceRequest, ProduceResponse, RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};

use crate::node::{PATIENCE, wait_for};
use crate::records::{Record, read_batches};

pub const NONE: i16 = 0;
pub const OFFSET_OUT_OF_RANGE: i16 = 1;
pub const CORRUPT_MESSAGE: i16 = 2;
pub const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
pub const MESSAGE_TOO_LARGE: i16 = 10;
pub const INVALID_TOPIC: i16 = 17;
pub const INVALID_REQUIRED_ACKS: i16 = 21;
pub const UNSUPPORTED_VERSION: i16 = 35;
pub const INVALID_REQUEST: i16 = 42;
pub const UNSUPPORTED_FOR_MESSAGE_FORMAT: i16 = 43;
pub const OUT_OF_ORDER_SEQUENCE: i16 = 45;
pub const INVALID_RECORD: i16 = 87;

pub const PRODUCE_VERSION: i16 = 9;
pub const FETCH_VERSION: i16 = 12;

pub fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

/// One connection. Every read has [`PATIENCE`] before it fails.
pub struct Conn {
    stream: TcpStream,
    correlation: i32,
}

impl Conn {
    pub fn open(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, correlation: 0 })
    }

    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Another handle to the same connection, to read on one thread and write on another.
    pub fn split(&self) -> io::Result<Self> {
        Ok(Self { stream: self.stream.try_clone()?, correlation: self.correlation })
    }

    /// The bytes of one request with its length prefix.
    pub fn frame<R: Request>(&mut self, version: i16, request: &R) -> Bytes {
        self.correlation += 1;
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation)
            .with_client_id(Some(StrBytes::from_static_str("live-tests")));
        let mut frame = BytesMut::zeroed(4);
        header.encode(&mut frame, R::header_version(version)).unwrap();
        request.encode(&mut frame, version).unwrap();
        let length = i32::try_from(frame.len() - 4).unwrap();
        frame[..4].copy_from_slice(&length.to_be_bytes());
        frame.freeze()
    }

    pub fn send<R: Request>(&mut self, version: i16, request: &R) -> io::Result<()> {
        let frame = self.frame(version, request);
        self.stream.write_all(&frame)
    }

    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// One answer without its length prefix; `UnexpectedEof` when the node closed the connection instead.
    pub fn read_frame(&mut self) -> io::Result<Bytes> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let length = usize::try_from(i32::from_be_bytes(length)).expect("an answer has a length");
        assert!(length <= 256 << 20, "the node announced an answer of {length} bytes");
        let mut frame = vec![0; length];
        self.stream.read_exact(&mut frame)?;
        Ok(frame.into())
    }

    /// The answer to a request of type `R` that was sent in `version`; answers come in the order of the requests.
    pub fn receive<R: Request>(&mut self, version: i16) -> io::Result<R::Response> {
        let mut frame = self.read_frame()?;
        ResponseHeader::decode(&mut frame, R::Response::header_version(version)).unwrap();
        let response = R::Response::decode(&mut frame, version).unwrap();
        assert!(!frame.has_remaining(), "{} bytes after the answer to API {}", frame.remaining(), R::KEY);
        Ok(response)
    }

    pub fn call<R: Request>(&mut self, version: i16, request: &R) -> io::Result<R::Response> {
        self.send(version, request)?;
        self.receive::<R>(version)
    }

    /// Whether the node closes this connection without answering.
    pub fn is_closed_unanswered(&mut self) -> bool {
        match self.stream.read(&mut [0; 1]) {
            Ok(0) => true,
            Ok(_) => false,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => false,
            Err(_) => true,
        }
    }

    /// Creates a topic and waits until its partitions serve. `configs` are names and values.
    pub fn create_topic(&mut self, name: &str, partitions: i32, configs: &[(&str, &str)]) {
        let topic = CreatableTopic::default()
            .with_name(topic_name(name))
            .with_num_partitions(partitions)
            .with_replication_factor(1)
            .with_configs(topic_configs(configs));
        let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(60_000);
        let answer = self.call(5, &request).unwrap();
        assert_eq!(answer.topics[0].error_code, NONE, "create {name}: {:?}", answer.topics[0].error_message);
        for partition in 0..partitions {
            wait_for("a new partition to serve", || {
                (self.list_offset(name, partition, LATEST).unwrap().0 == NONE).then_some(())
            });
        }
    }

    /// Creates a topic with these nodes as replicas of each partition, the first of them its leader.
    pub fn create_on<const N: usize>(
        &mut self,
        name: &str,
        replicas: &[[usize; N]],
        configs: &[(&str, &str)],
    ) {
        let assignments = (0..).zip(replicas).map(|(index, nodes)| {
            CreatableReplicaAssignment::default()
                .with_partition_index(index)
                .with_broker_ids(nodes.map(|node| BrokerId(i32::try_from(node).unwrap())).into())
        });
        let topic = CreatableTopic::default()
            .with_name(topic_name(name))
            .with_num_partitions(-1)
            .with_replication_factor(-1)
            .with_assignments(assignments.collect())
            .with_configs(topic_configs(configs));
        let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(60_000);
        let answer = self.call(5, &request).unwrap();
        assert_eq!(answer.topics[0].error_code, NONE, "{name}: {:?}", answer.topics[0].error_message);
    }

    /// The error and offset that ListOffsets gives for a timestamp, [`EARLIEST`] or [`LATEST`].
    pub fn list_offset(&mut self, topic: &str, partition: i32, timestamp: i64) -> io::Result<(i16, i64)> {
        let partition = ListOffsetsPartition::default()
            .with_partition_index(partition)
            .with_current_leader_epoch(-1)
            .with_timestamp(timestamp);
        let topic = ListOffsetsTopic::default().with_name(topic_name(topic)).with_partitions(vec![partition]);
        let request = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic]);
        let answer = self.call(5, &request)?;
        let partition = &answer.topics[0].partitions[0];
        Ok((partition.error_code, partition.offset))
    }

    pub fn init_producer_id(&mut self) -> io::Result<(i64, i16)> {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(None)
            .with_transaction_timeout_ms(60_000)
            .with_producer_id((-1).into())
            .with_producer_epoch(-1);
        let answer = self.call(4, &request)?;
        assert_eq!(answer.error_code, NONE);
        Ok((answer.producer_id.0, answer.producer_epoch))
    }

    /// The error and base offset of one produced batch.
    pub fn produce(&mut self, topic: &str, partition: i32, batch: &[u8]) -> io::Result<(i16, i64)> {
        self.send_produce(topic, partition, -1, batch)?;
        self.receive_produce()
    }

    pub fn send_produce(&mut self, topic: &str, partition: i32, acks: i16, batch: &[u8]) -> io::Result<()> {
        self.send(PRODUCE_VERSION, &produce_request(topic, partition, acks, batch))
    }

    pub fn receive_produce(&mut self) -> io::Result<(i16, i64)> {
        let answer: ProduceResponse = self.receive::<ProduceRequest>(PRODUCE_VERSION)?;
        let partition = &answer.responses[0].partition_responses[0];
        Ok((partition.error_code, partition.base_offset))
    }

    /// What one fetch of one partition gives, after at most `wait_ms`.
    pub fn fetch(
        &mut self,
        topic: &str,
        partition: i32,
        offset: i64,
        wait_ms: i32,
    ) -> io::Result<PartitionData> {
        let request = fetch_request(topic, partition, offset, wait_ms, 8 << 20);
        let answer: FetchResponse = self.call(FETCH_VERSION, &request)?;
        assert_eq!(answer.error_code, NONE);
        Ok(answer.responses[0].partitions[0].clone())
    }

    /// Every record of a partition from `offset` to its high watermark.
    pub fn read_all(&mut self, topic: &str, partition: i32, offset: i64) -> Vec<Record> {
        self.try_read_all(topic, partition, offset).unwrap()
    }

    /// The same, where the partition may just now move to another leader.
    pub fn try_read_all(&mut self, topic: &str, partition: i32, mut offset: i64) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        loop {
            let data = self.fetch(topic, partition, offset, 0)?;
            if data.error_code != NONE {
                let said = format!("fetch of {topic}-{partition} at {offset}: error {}", data.error_code);
                return Err(io::Error::other(said));
            }
            let read = read_batches(data.records.as_deref().unwrap_or_default());
            // The first batch may begin before the offset that was asked for.
            let fresh = read.into_iter().filter(|record| record.offset >= offset);
            let before = records.len();
            records.extend(fresh);
            offset = records.last().map_or(offset, |record: &Record| record.offset + 1);
            if offset >= data.high_watermark {
                return Ok(records);
            }
            assert!(
                records.len() > before,
                "{topic}-{partition}: nothing at {offset} below {}",
                data.high_watermark
            );
        }
    }
}

/// Settings of a new topic, from names and values.
pub fn topic_configs(configs: &[(&str, &str)]) -> Vec<CreatableTopicConfig> {
    let config = |(key, value): &(&str, &str)| {
        CreatableTopicConfig::default()
            .with_name(StrBytes::from_string((*key).into()))
            .with_value(Some(StrBytes::from_string((*value).into())))
    };
    configs.iter().map(config).collect()
}

/// ListOffsets timestamps with a meaning of their own.
pub const LATEST: i64 = -1;
pub const EARLIEST: i64 = -2;

pub fn produce_request(topic: &str, partition: i32, acks: i16, batch: &[u8]) -> ProduceRequest {
    let partition = PartitionProduceData::default()
        .with_index(partition)
        .with_records(Some(Bytes::copy_from_slice(batch)));
    let topic = TopicProduceData::default().with_name(topic_name(topic)).with_partition_data(vec![partition]);
    ProduceRequest::default().with_acks(acks).with_timeout_ms(60_000).with_topic_data(vec![topic])
}

pub fn fetch_request(topic: &str, partition: i32, offset: i64, wait_ms: i32, max_bytes: i32) -> FetchRequest {
    let partition = FetchPartition::default()
        .with_partition(partition)
        .with_current_leader_epoch(-1)
        .with_fetch_offset(offset)
        .with_last_fetched_epoch(-1)
        .with_log_start_offset(-1)
        .with_partition_max_bytes(max_bytes);
    let topic = FetchTopic::default().with_topic(topic_name(topic)).with_partitions(vec![partition]);
    FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_wait_ms(wait_ms)
        .with_min_bytes(1)
        .with_max_bytes(max_bytes)
        .with_session_epoch(-1)
        .with_topics(vec![topic])
}
