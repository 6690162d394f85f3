//! Control calls on blocking connections: versions, topics, leaders, producer ids, offsets.
//!
//! Nothing here is on the measured path. Answers come from the server under test, so their size is bounded, and every
//! call has a time limit.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{
    ApiVersionsRequest, BrokerId, CreateTopicsRequest, InitProducerIdRequest, ListOffsetsRequest,
    MetadataRequest, RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{
    Decodable, HeaderVersion, Request, StrBytes, encode_request_header_into_buffer,
};

use super::error_name;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// For lookups in the middle of a run, which hold up the client thread.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);
const TOPIC_READY_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_PAUSE: Duration = Duration::from_millis(50);
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The versions of control calls that this client uses, all before the flexible encodings and topic ids.
const METADATA: (i16, i16) = (1, 8);
const CREATE_TOPICS: (i16, i16) = (2, 4);
const INIT_PRODUCER_ID: (i16, i16) = (0, 1);
const LIST_OFFSETS: (i16, i16) = (1, 5);

/// One connection for control calls.
pub struct Client {
    stream: TcpStream,
    pub address: SocketAddr,
    client_id: StrBytes,
    next_correlation: i32,
    /// API key to the server's range.
    versions: BTreeMap<i16, (i16, i16)>,
}

impl Client {
    /// Connects to the first server of the list that answers ApiVersions.
    pub fn connect(brokers: &[String], client_id: &str, timeout: Duration) -> Result<Client> {
        let mut last = anyhow!("no broker address was given");
        for broker in brokers {
            let addresses = match broker.to_socket_addrs() {
                Ok(addresses) => addresses,
                Err(error) => {
                    last = anyhow!("`{broker}` is no address of the form HOST:PORT ({error})");
                    continue;
                }
            };
            for address in addresses {
                match Client::open(address, client_id, timeout) {
                    Ok(client) => return Ok(client),
                    Err(error) => {
                        last = error.context(format!("no Kafka-compatible broker answers at {address}"))
                    }
                }
            }
        }
        Err(last)
    }

    fn open(address: SocketAddr, client_id: &str, timeout: Duration) -> Result<Client> {
        let stream = TcpStream::connect_timeout(&address, timeout.min(CONNECT_TIMEOUT))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let client_id = StrBytes::from_string(client_id.to_owned());
        let mut client =
            Client { stream, address, client_id, next_correlation: 0, versions: BTreeMap::new() };
        // Version 0 is the one that every broker has.
        let answer = client.call(&ApiVersionsRequest::default(), 0)?;
        check(answer.error_code, "ApiVersions")?;
        client.versions =
            answer.api_keys.iter().map(|api| (api.api_key, (api.min_version, api.max_version))).collect();
        Ok(client)
    }

    /// The highest version that both sides have.
    pub fn version(&self, api_key: i16, ours: (i16, i16), name: &str) -> Result<i16> {
        let Some((min, max)) = self.versions.get(&api_key) else {
            bail!("the broker at {} does not offer {name}", self.address);
        };
        let version = ours.1.min(*max);
        if version < ours.0.max(*min) {
            bail!(
                "the broker at {} offers {name} {min}..{max}, this client {}..{}",
                self.address,
                ours.0,
                ours.1
            );
        }
        Ok(version)
    }

    pub fn offers(&self, api_key: i16) -> bool {
        self.versions.contains_key(&api_key)
    }

    fn call<R: Request>(&mut self, request: &R, version: i16) -> Result<R::Response> {
        self.next_correlation += 1;
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.next_correlation)
            .with_client_id(Some(self.client_id.clone()));
        let mut body = BytesMut::new();
        encode_request_header_into_buffer(&mut body, &header)?;
        request.encode(&mut body, version)?;
        let mut frame = (body.len() as i32).to_be_bytes().to_vec();
        frame.extend_from_slice(&body);
        self.stream.write_all(&frame)?;
        let mut prefix = [0; 4];
        self.stream.read_exact(&mut prefix)?;
        let length = usize::try_from(i32::from_be_bytes(prefix)).unwrap_or(usize::MAX);
        if length > ANSWER_BYTES_MAX {
            bail!("the broker at {} announced an answer of {length} bytes", self.address);
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer)?;
        let mut answer = Bytes::from(answer);
        let header = ResponseHeader::decode(&mut answer, R::Response::header_version(version))?;
        if header.correlation_id != self.next_correlation {
            bail!("the broker at {} answered another request", self.address);
        }
        let response = R::Response::decode(&mut answer, version)?;
        if answer.has_remaining() {
            bail!("the broker at {} sent {} bytes behind its answer", self.address, answer.remaining());
        }
        Ok(response)
    }

    /// Partition to leader address, and the controller's address; `None` while the topic does not exist.
    fn topic(&mut self, topic: &str, may_create: bool) -> Result<Option<Layout>> {
        let version = self.version(MetadataRequest::KEY, METADATA, "Metadata")?;
        let wanted = MetadataRequestTopic::default().with_name(Some(topic_name(topic)));
        let request = MetadataRequest::default()
            .with_topics(Some(vec![wanted]))
            .with_allow_auto_topic_creation(may_create || version < 4);
        let answer = self.call(&request, version)?;
        let mut addresses = BTreeMap::new();
        for broker in &answer.brokers {
            let port = u16::try_from(broker.port).context("the broker advertises a port that is none")?;
            let address = (broker.host.as_str(), port)
                .to_socket_addrs()
                .with_context(|| {
                    format!("the broker advertises `{}:{port}`, which does not resolve", broker.host)
                })?
                .next();
            addresses.extend(address.map(|address| (broker.node_id, address)));
        }
        let controller = addresses.get(&answer.controller_id).copied();
        let Some(found) = answer.topics.first() else { bail!("the broker left the topic out of its answer") };
        match found.error_code {
            0 | 5 => {}
            3 => return Ok(None),
            code => check(code, "Metadata")?,
        }
        let leaders = found
            .partitions
            .iter()
            .map(|partition| (partition.partition_index, addresses.get(&partition.leader_id).copied()))
            .collect();
        Ok(Some(Layout { leaders, controller }))
    }

    /// A fresh producer id and epoch.
    pub fn init_producer_id(&mut self) -> Result<(i64, i16)> {
        let version = self.version(InitProducerIdRequest::KEY, INIT_PRODUCER_ID, "InitProducerId")?;
        let request =
            InitProducerIdRequest::default().with_transactional_id(None).with_transaction_timeout_ms(60_000);
        let deadline = Instant::now() + CALL_TIMEOUT;
        loop {
            let answer = self.call(&request, version)?;
            match answer.error_code {
                // The coordinator is loading or elsewhere: it will come.
                14..=16 if Instant::now() < deadline => std::thread::sleep(POLL_PAUSE),
                code => {
                    check(code, "InitProducerId")?;
                    return Ok((answer.producer_id.0, answer.producer_epoch));
                }
            }
        }
    }

    /// Offsets of partitions that this server leads: -1 asks for the end, -2 for the start.
    fn offsets(&mut self, topic: &str, partitions: &[i32], timestamp: i64) -> Result<Vec<(i32, i64)>> {
        let version = self.version(ListOffsetsRequest::KEY, LIST_OFFSETS, "ListOffsets")?;
        let asked = partitions
            .iter()
            .map(|index| {
                ListOffsetsPartition::default()
                    .with_partition_index(*index)
                    .with_current_leader_epoch(-1)
                    .with_timestamp(timestamp)
            })
            .collect();
        let asked = ListOffsetsTopic::default().with_name(topic_name(topic)).with_partitions(asked);
        let request = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![asked]);
        let answer = self.call(&request, version)?;
        let mut offsets = Vec::new();
        for partition in answer.topics.iter().flat_map(|topic| &topic.partitions) {
            check(partition.error_code, "ListOffsets")?;
            offsets.push((partition.partition_index, partition.offset));
        }
        Ok(offsets)
    }
}

fn topic_name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}

fn check(code: i16, call: &str) -> Result<()> {
    if code == 0 { Ok(()) } else { bail!("{call} was answered with {}", error_name(code)) }
}

struct Layout {
    leaders: BTreeMap<i32, Option<SocketAddr>>,
    controller: Option<SocketAddr>,
}

/// What a run's topic should be like if it has to be created.
#[derive(Clone, Debug)]
pub struct TopicSpec {
    pub name: String,
    pub partitions: i32,
    pub replication: i16,
    pub configs: Vec<(String, String)>,
}

/// Knows how to find the leaders of one topic's partitions, from any of the bootstrap brokers.
#[derive(Clone, Debug)]
pub struct Directory {
    pub brokers: Vec<String>,
    pub client_id: String,
    pub topic: String,
}

impl Directory {
    pub fn connect(&self) -> Result<Client> {
        Client::connect(&self.brokers, &self.client_id, CALL_TIMEOUT)
    }

    /// Creates the topic unless it exists and waits until every partition has a leader. Returns the leaders, and
    /// whether it was created.
    pub fn ensure_topic(&self, spec: &TopicSpec) -> Result<(BTreeMap<i32, SocketAddr>, bool)> {
        let mut client = self.connect()?;
        let mut is_created = false;
        let deadline = Instant::now() + TOPIC_READY_TIMEOUT;
        loop {
            let may_create = !client.offers(CreateTopicsRequest::KEY);
            match client.topic(&spec.name, may_create)? {
                None if is_created || may_create => {}
                None => {
                    let controller = client.topic(&spec.name, false)?.and_then(|layout| layout.controller);
                    is_created = self.create_topic(spec, controller)?;
                }
                Some(layout) => {
                    let leaders: BTreeMap<i32, SocketAddr> = layout
                        .leaders
                        .iter()
                        .filter_map(|(partition, leader)| leader.map(|leader| (*partition, leader)))
                        .collect();
                    if !leaders.is_empty() && leaders.len() == layout.leaders.len() {
                        return Ok((leaders, is_created));
                    }
                }
            }
            if Instant::now() >= deadline {
                bail!(
                    "topic `{}` has no leader for every partition after {TOPIC_READY_TIMEOUT:?}",
                    spec.name
                );
            }
            std::thread::sleep(POLL_PAUSE);
        }
    }

    fn create_topic(&self, spec: &TopicSpec, controller: Option<SocketAddr>) -> Result<bool> {
        let mut client = match controller {
            Some(address) => Client::open(address, &self.client_id, CALL_TIMEOUT)?,
            None => self.connect()?,
        };
        let version = client.version(CreateTopicsRequest::KEY, CREATE_TOPICS, "CreateTopics")?;
        // Before version 4 a broker has no default to leave it to.
        let replication = if version < 4 && spec.replication < 0 { 1 } else { spec.replication };
        let configs = spec
            .configs
            .iter()
            .map(|(key, value)| {
                CreatableTopicConfig::default()
                    .with_name(StrBytes::from_string(key.clone()))
                    .with_value(Some(StrBytes::from_string(value.clone())))
            })
            .collect();
        let topic = CreatableTopic::default()
            .with_name(topic_name(&spec.name))
            .with_num_partitions(spec.partitions)
            .with_replication_factor(replication)
            .with_configs(configs);
        let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(15_000);
        let answer = client.call(&request, version)?;
        let Some(result) = answer.topics.first() else {
            bail!("CreateTopics was answered without the topic")
        };
        match result.error_code {
            0 => Ok(true),
            // Somebody else was faster.
            36 => Ok(false),
            // Another node is the controller by now; the caller asks again.
            41 => Ok(false),
            code => {
                let detail = result.error_message.as_ref().map_or("", |message| message.as_str());
                bail!("topic `{}` could not be created: {} {detail}", spec.name, error_name(code));
            }
        }
    }

    /// For a connection that was lost: where its partition is led now.
    pub fn leader_address(&self, partition: i32) -> io::Result<SocketAddr> {
        let found = Client::connect(&self.brokers, &self.client_id, LOOKUP_TIMEOUT)
            .and_then(|mut client| client.topic(&self.topic, false))
            .map_err(|error| io::Error::other(format!("{error:#}")))?;
        found.and_then(|layout| layout.leaders.get(&partition).copied().flatten()).ok_or_else(|| {
            io::Error::other(format!("partition {partition} of `{}` has no leader", self.topic))
        })
    }

    /// The present leaders of all partitions that have one.
    pub fn leaders(&self) -> Result<BTreeMap<i32, SocketAddr>> {
        let layout = self.connect()?.topic(&self.topic, false)?;
        let layout = layout.with_context(|| format!("topic `{}` is gone", self.topic))?;
        Ok(layout.leaders.into_iter().filter_map(|(partition, leader)| Some((partition, leader?))).collect())
    }

    /// The start (`Edge::Start`) or end of every partition, asked of its leader.
    pub fn offsets(&self, leaders: &BTreeMap<i32, SocketAddr>, edge: Edge) -> Result<BTreeMap<i32, i64>> {
        let mut by_leader: BTreeMap<SocketAddr, Vec<i32>> = BTreeMap::new();
        for (partition, leader) in leaders {
            by_leader.entry(*leader).or_default().push(*partition);
        }
        let timestamp = match edge {
            Edge::Start => -2,
            Edge::End => -1,
        };
        let mut offsets = BTreeMap::new();
        for (leader, partitions) in by_leader {
            let mut client = Client::open(leader, &self.client_id, CALL_TIMEOUT)
                .with_context(|| format!("the leader at {leader} does not answer"))?;
            offsets.extend(client.offsets(&self.topic, &partitions, timestamp)?);
        }
        if let Some(missing) = leaders.keys().find(|partition| !offsets.contains_key(partition)) {
            bail!("ListOffsets was answered without partition {missing}");
        }
        Ok(offsets)
    }

    #[cfg(test)]
    pub fn for_tests() -> Directory {
        Directory { brokers: Vec::new(), client_id: "test".into(), topic: "orders".into() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    Start,
    End,
}
