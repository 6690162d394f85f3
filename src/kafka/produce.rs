//! Produce: records to the shards that own their partitions, and one answer when all of them said what became of
//! theirs. Read and answered by hand: records are slices of the frame, and nothing is allocated per record.
//!
//! Pure; on the shard core that the connection came to.

use std::time::Duration;

use bytes::Bytes;
use highwater_shards::front::{CloseReason, Cx};
use highwater_shards::mail::{Acks, Answer, Op, PartitionError};
use highwater_shards::time::Instant;

use super::api::{ApiKey, PRODUCE_VERSION_MIN, begin_response};
use super::errors::ErrorCode;
use super::route::{TopicKey, read_topic, route, topic_size_min};
use super::session::{Header, Kafka};
use super::wire::{DecodeError, Reader};

/// One Produce request from its arrival to its answer.
#[derive(Debug)]
pub(super) struct Produce {
    header: Header,
    /// The client asked for no answer; an error closes the connection instead (R14).
    silent: bool,
    /// Each with the number of its partitions, which stand one after the other in `partitions`.
    topics: Vec<(TopicKey, usize)>,
    partitions: Vec<Partition>,
    /// Partitions without an outcome.
    waiting: usize,
    /// How long the producer is asked to pause: the longest that any of its partitions asked for.
    throttle: Duration,
}

/// The longest pause that a producer is asked for, and that its connection is not read from.
pub const THROTTLE_MAX: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Partition {
    index: i32,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Waiting,
    Appended { base_offset: i64, log_start: i64 },
    Refused { code: ErrorCode, words: Option<PartitionError> },
}

/// What the fields before the topics say for all of them.
struct Terms {
    acks: Acks,
    deadline: Instant,
    /// Refuses every partition.
    refusal: Option<ErrorCode>,
}

impl Produce {
    pub fn start(
        kafka: &Kafka,
        cx: &mut Cx<'_, Kafka>,
        header: Header,
        r: &mut Reader<'_>,
    ) -> Result<Self, DecodeError> {
        Self::read(kafka, cx, header, r).map_err(|e| e.within("ProduceRequest"))
    }

    fn read(
        kafka: &Kafka,
        cx: &mut Cx<'_, Kafka>,
        header: Header,
        r: &mut Reader<'_>,
    ) -> Result<Self, DecodeError> {
        let v = header.v;
        let by_id = v.number >= 13;
        let image = &**cx.view;
        let terms = Terms::read(&header, r)?;

        let topic_count = r.array_len(v, topic_size_min(v, by_id))?;
        let mut request = Self {
            header,
            silent: terms.acks == Acks::None && terms.refusal.is_none(),
            topics: Vec::with_capacity(topic_count),
            partitions: Vec::new(),
            waiting: 0,
            throttle: Duration::ZERO,
        };
        for _ in 0..topic_count {
            let (key, topic) = read_topic(r, v, by_id, image)?;
            let partition_count = r.array_len(v, if v.flexible { 6 } else { 8 })?;
            request.partitions.reserve(partition_count);
            for _ in 0..partition_count {
                let index = r.i32()?;
                let records = r.bytes(v)?.filter(|records| !records.is_empty());
                r.skip_tags(v)?;
                let target = match (terms.refusal, topic, records) {
                    (Some(code), _, _) | (None, Err(code), _) => Err(code),
                    (None, Ok(_), None) => Err(ErrorCode::InvalidRecord),
                    (None, Ok(topic), Some(records)) => {
                        route(image, kafka.config.node, topic, index).map(|to| (to, records))
                    }
                };
                let outcome = match target {
                    Ok(((shard, partition), records)) => {
                        let op = Op::Append { acks: terms.acks, deadline: terms.deadline, records };
                        cx.submit(shard, partition, header.token(request.partitions.len()), op);
                        request.waiting += 1;
                        Outcome::Waiting
                    }
                    Err(code) => Outcome::Refused { code, words: None },
                };
                request.partitions.push(Partition { index, outcome });
            }
            r.skip_tags(v)?;
            request.topics.push((key, partition_count));
        }
        r.skip_tags(v)?;
        Ok(request)
    }

    pub fn on_answer(&mut self, part: usize, answer: Answer) {
        let Answer::Appended(result) = answer else { unreachable!("an append is answered with its outcome") };
        let partition = &mut self.partitions[part];
        assert!(matches!(partition.outcome, Outcome::Waiting), "an append is answered once");
        partition.outcome = match result {
            Ok(done) => {
                self.throttle = self.throttle.max(done.throttle.min(THROTTLE_MAX));
                Outcome::Appended { base_offset: done.base_offset.wire(), log_start: done.log_start.wire() }
            }
            Err(error) => Outcome::Refused { code: error.into(), words: Some(error) },
        };
        self.waiting -= 1;
    }

    pub fn is_done(&self) -> bool {
        self.waiting == 0
    }

    /// How long the producer is to pause from its answer on, at most [`THROTTLE_MAX`].
    pub fn throttle(&self) -> Duration {
        self.throttle
    }

    /// The answer; none when the client wants none.
    ///
    /// # Errors
    /// When the connection is to be closed instead.
    pub fn finish(self, kafka: &mut Kafka, now: Instant) -> Result<Option<Bytes>, CloseReason> {
        kafka.stats.answered(ApiKey::Produce, now - self.header.arrived);
        let mut failed = false;
        for partition in &self.partitions {
            if let Outcome::Refused { code, .. } = partition.outcome {
                kafka.stats.error(ApiKey::Produce, code);
                failed = true;
            }
        }
        match (self.silent, failed) {
            (true, true) => Err(CloseReason::UnansweredError),
            (true, false) => Ok(None),
            (false, _) => Ok(Some(self.encode())),
        }
    }

    fn encode(&self) -> Bytes {
        let Header { v, correlation, .. } = self.header;
        // A partition takes 41 bytes at most without its words.
        let names: usize = self.topics.iter().map(|(key, _)| key.len_max() + 6).sum();
        let mut w = begin_response(ApiKey::Produce, v, correlation, 16 + names + 48 * self.partitions.len());
        let mut partitions = self.partitions.iter();
        w.long_len(Some(self.topics.len()), v);
        for (key, count) in &self.topics {
            key.encode(&mut w, v);
            w.long_len(Some(*count), v);
            for partition in partitions.by_ref().take(*count) {
                let (code, base_offset, log_start, words) = match partition.outcome {
                    Outcome::Appended { base_offset, log_start } => {
                        (ErrorCode::None, base_offset, log_start, None)
                    }
                    Outcome::Refused { code, words } => (code, -1, -1, words),
                    Outcome::Waiting => unreachable!("the request is done"),
                };
                w.i32(partition.index);
                w.i16(code.wire());
                w.i64(base_offset);
                if v.number >= 2 {
                    // Records keep their producers' timestamps.
                    w.i64(-1);
                }
                if v.number >= 5 {
                    w.i64(log_start);
                }
                if v.number >= 8 {
                    // No single records are blamed: a batch is taken or refused whole.
                    w.long_len(Some(0), v);
                    w.str(words.map(|error| error.to_string()).as_deref(), v);
                }
                w.no_tags(v);
            }
            w.no_tags(v);
        }
        if v.number >= 1 {
            let millis = self.throttle.as_micros().div_ceil(1000);
            w.i32(i32::try_from(millis).expect("a second at most"));
        }
        w.no_tags(v);
        w.finish_frame(0)
    }
}

impl Terms {
    fn read(header: &Header, r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let v = header.v;
        let too_old = v.number < PRODUCE_VERSION_MIN;
        let transactional = !too_old && r.str(v)?.is_some();
        let (acks, wrong_acks) = match r.i16()? {
            0 => (Acks::None, false),
            1 => (Acks::Leader, false),
            -1 => (Acks::All, false),
            _ => (Acks::Leader, true),
        };
        let timeout_ms = u64::try_from(r.i32()?).unwrap_or(0);
        let refusal = if too_old {
            Some(ErrorCode::UnsupportedVersion)
        } else if wrong_acks {
            Some(ErrorCode::InvalidRequiredAcks)
        } else if transactional {
            Some(ErrorCode::TransactionalIdAuthorizationFailed)
        } else {
            None
        };
        Ok(Self { acks, deadline: header.arrived + Duration::from_millis(timeout_ms), refusal })
    }
}
