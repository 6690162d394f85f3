//! Shards and a control core that answer whatever a session asks, in an order that is random between shards, and
//! the books that must balance: every watch ends, every fetch is answered once and within its bounds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use highwater_shards::ids::{ProducerEpoch, ProducerId};
use highwater_shards::mail::{PartitionError, ReadError};

use super::*;
use crate::control::request::{CreatedTopic, DeletedTopic, Refusal, TopicRef, Why};
use crate::kafka::messages::fetch::FetchRequest;
use crate::kafka::messages::produce::ProduceRequest;
use crate::kafka::messages::tests::Random;

pub struct Model {
    pub client: Client,
    random: Random,
    /// Sizes of the batches in each partition's log; a batch is one offset.
    logs: BTreeMap<PartitionId, Vec<usize>>,
    /// Answers on their way, in order for each shard.
    mail: BTreeMap<ShardId, VecDeque<(Token, Answer)>>,
    watches: BTreeSet<(PartitionId, Token)>,
}

impl Model {
    pub fn new(seed: u64) -> Self {
        Self {
            client: Client::new(),
            random: Random(seed),
            logs: BTreeMap::new(),
            mail: BTreeMap::new(),
            watches: BTreeSet::new(),
        }
    }

    /// A new connection to the same shards.
    pub fn reconnect(&mut self) {
        self.client = Client::new();
    }

    /// Lets the shards and the control core do all that was asked of them.
    pub fn settle(&mut self) {
        loop {
            self.run_ops();
            if self.reply() {
                continue;
            }
            if !self.deliver() {
                return;
            }
        }
    }

    /// The control core answers some request; false when there is none.
    pub fn reply(&mut self) -> bool {
        if self.client.asks.is_empty() {
            return false;
        }
        let at = self.random.below(self.client.asks.len());
        let (token, request) = self.client.asks.remove(at);
        self.client.reply(token, reply(request));
        true
    }

    /// Shards take the operations in.
    pub fn run_ops(&mut self) {
        for Submitted { shard, partition, token, op } in self.client.take_ops() {
            let answer = self.run(partition, token, op);
            self.mail.entry(shard).or_default().extend(answer.map(|answer| (token, answer)));
        }
    }

    /// One answer of some shard arrives; false when there is none.
    pub fn deliver(&mut self) -> bool {
        let busy: Vec<_> = self.mail.iter().filter(|(_, mail)| !mail.is_empty()).map(|(&s, _)| s).collect();
        if busy.is_empty() {
            return false;
        }
        let shard = busy[self.random.below(busy.len())];
        let (token, answer) = self.mail.get_mut(&shard).unwrap().pop_front().unwrap();
        self.client.answer(token, answer);
        true
    }

    fn run(&mut self, partition: PartitionId, token: Token, op: Op) -> Option<Answer> {
        let log = self.logs.entry(partition).or_default();
        Some(match op {
            Op::Append { records, .. } => {
                let base = log.len() as u64;
                self.append(partition, records.len());
                appended_slowly(base, [0, 0, 0, 1, 40, 3000][self.random.below(6)])
            }
            Op::Read { offset, bytes_max, first_batch_whole, watch_below_bytes, .. } => {
                let end = log.len();
                let from = usize::try_from(offset.0).unwrap_or(usize::MAX);
                if from > end {
                    let error = PartitionError::OffsetOutOfRange;
                    return Some(Answer::Read(Err(ReadError { error, ends: None })));
                }
                let mut bytes = 0;
                let mut records = Vec::new();
                for &size in &log[from..] {
                    let whole = first_batch_whole && records.is_empty();
                    if bytes + size > bytes_max as usize && !whole {
                        break;
                    }
                    bytes += size;
                    records.push(Bytes::from(vec![0x55; size]));
                }
                let watching = bytes < watch_below_bytes as usize;
                if watching {
                    assert!(self.watches.insert((partition, token)), "one watch at a time for a token");
                }
                let (high_watermark, log_start) = (Offset(end as u64), Offset(0));
                Answer::Read(Ok(ReadOut { high_watermark, log_start, records, watching, nearer: None }))
            }
            Op::Unwatch => {
                self.watches.remove(&(partition, token));
                return None;
            }
            Op::Locate { .. } => Answer::Located(Ok(None)),
            Op::EpochEnd { .. } => Answer::EpochEnd(Ok(None)),
            Op::DeleteRecords { before, .. } => {
                Answer::Deleted(Ok(before.unwrap_or(Offset(log.len() as u64))))
            }
        })
    }

    /// Somebody appends a batch: watchers are told.
    pub fn append(&mut self, partition: PartitionId, size: usize) {
        self.logs.entry(partition).or_default().push(size);
        let told: Vec<_> = self.watches.iter().filter(|(p, _)| *p == partition).copied().collect();
        for watch in told {
            self.watches.remove(&watch);
            let shard = ShardId(u16::from(partition.index.0 % 2 == 1));
            self.mail.entry(shard).or_default().push_back((watch.1, Answer::Readable));
        }
    }

    /// When nothing is in flight, nothing is left behind.
    pub fn check_idle(&mut self) {
        self.run_ops();
        assert!(self.watches.is_empty(), "watches are left: {:?}", self.watches);
        assert!(self.client.timers.is_empty(), "timers are left: {:?}", self.client.timers);
    }
}

fn reply(request: Request) -> Reply {
    let refusal = || Refusal::new(Why::UnknownTopic, "not here");
    match request {
        Request::CreateTopics { topics, .. } => Reply::CreateTopics(
            topics
                .into_iter()
                .map(|t| match t.name.len() % 2 {
                    0 => Ok(CreatedTopic {
                        id: TopicId(4),
                        partitions: 1,
                        replication_factor: 1,
                        config: Vec::new(),
                    }),
                    _ => Err(refusal()),
                })
                .collect(),
        ),
        Request::DeleteTopics { topics, .. } => Reply::DeleteTopics(
            topics
                .into_iter()
                .map(|t| match t {
                    TopicRef::Name(name) => Ok(DeletedTopic { id: TopicId(4), name }),
                    TopicRef::Id(_) => Err(refusal()),
                })
                .collect(),
        ),
        Request::CreatePartitions { topics, .. } => {
            Reply::CreatePartitions(topics.iter().map(|_| Ok(())).collect())
        }
        Request::AlterConfigs { resources, .. } => {
            Reply::AlterConfigs(resources.iter().map(|_| Err(refusal())).collect())
        }
        Request::Reassign { partitions, .. } => Reply::Reassign(
            partitions.iter().map(|p| p.replicas.as_ref().map(drop).ok_or_else(refusal)).collect(),
        ),
        Request::ElectLeaders { partitions, .. } => {
            let all = partitions.unwrap_or_default();
            Reply::ElectLeaders(Ok(all.into_iter().map(|partition| (partition, Err(refusal()))).collect()))
        }
        Request::NewProducerId => Reply::NewProducerId(Ok((ProducerId(1), ProducerEpoch(0)))),
        Request::ChangeNode { .. } | Request::SetFeatureLevel { .. } => {
            panic!("Kafka's protocol has nothing that asks for this")
        }
    }
}

/// Many fetches and produces on one connection, with appends, answers and time in random order.
#[test]
fn fetches_are_answered_once_in_order_and_within_their_bounds() {
    for seed in 0..300 {
        let mut model = Model::new(seed);
        let mut random = Random(seed.wrapping_mul(77));
        let mut expected = VecDeque::new();
        let mut asked = Vec::new();
        for step in 0..400 {
            match random.below(8) {
                0 if expected.len() < 6 => {
                    let partitions: Vec<_> = (0..=random.below(4))
                        .map(|_| (random.below(4) as i32, random.below(3) as i64))
                        .collect();
                    let body = FetchRequest {
                        min_bytes: [0, 1, 1, 50, 5000][random.below(5)],
                        max_bytes: [1, 100, 400, 10_000][random.below(4)],
                        max_wait_ms: [0, 10, 500][random.below(3)],
                        ..super::fetch::request(12, &partitions)
                    };
                    model.client.request(12, step, &body);
                    asked.push((step, body.max_bytes as usize));
                    expected.push_back((step, true));
                }
                1 if expected.len() < 6 => {
                    model.client.request(9, step, &super::produce::request(9, -1, &[random.below(4) as i32]));
                    expected.push_back((step, false));
                }
                2 => model.client.advance(Duration::from_millis(random.below(40) as u64)),
                3 => {
                    let size = [10, 90, 300, 2000][random.below(4)];
                    model.append(partition(random.below(4) as u32), size);
                }
                4 | 5 => model.run_ops(),
                _ => {
                    model.deliver();
                }
            }
            for frame in model.client.frames() {
                let (correlation, fetch) = expected.pop_front().expect("an answer to a request");
                if fetch {
                    let (answered, response) = decoded::<FetchRequest>(12, &frame);
                    assert_eq!(answered, correlation);
                    check_bounds(&response, asked.iter().find(|(c, _)| *c == correlation).unwrap().1);
                } else {
                    assert_eq!(decoded::<ProduceRequest>(9, &frame).0, correlation);
                }
            }
        }
        // In the end time passes and everything is answered.
        for _ in 0..20 {
            model.settle();
            model.client.advance(Duration::from_millis(500));
        }
        model.settle();
        expected.drain(..model.client.frames().len());
        assert!(expected.is_empty(), "seed {seed}: {expected:?} were not answered");
        assert_eq!(model.client.in_flight(), 0);
        model.check_idle();
    }
}

/// At most `bytes_max` in all, unless there is but one batch.
fn check_bounds(response: &crate::kafka::messages::fetch::FetchResponse, bytes_max: usize) {
    let sizes =
        response.responses.iter().flat_map(|t| &t.partitions).map(|p| p.records.as_ref().unwrap().len());
    let sizes: Vec<_> = sizes.filter(|&size| size > 0).collect();
    let single = sizes.len() == 1 && [10, 90, 300, 2000, 7].contains(&sizes[0]);
    assert!(sizes.iter().sum::<usize>() <= bytes_max || single, "{sizes:?} of at most {bytes_max}");
}
