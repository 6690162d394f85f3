//! Fetch: reads from the shards that own the partitions, and one answer when there are bytes enough, something is
//! wrong, or the client has waited as long as it wants to. Record bytes are sent from where they lie.
//!
//! A client that names its rack (KIP-392) is sent to an in-sync follower there, when the leader is in another rack and
//! knows that the follower's log holds what is asked for. There any follower in sync answers it, up to the high watermark
//! that it knows; whatever a follower refuses, clients ask the leader for. Who names no rack reads from leaders only.
//!
//! Pure; on the shard core that the connection came to. There are no fetch sessions (KIP-227): every request names
//! all of its partitions and every answer says so.
//!
//! The client's bound on the whole answer is shared out in the order of the partitions: a read is given what is
//! left of it, and gives back what it did not use. Partitions for which nothing is left are read for zero bytes,
//! which tells their ends and errors. A batch larger than the bounds is returned whole when otherwise nothing
//! would be, so that a consumer always gets on.

use std::time::Duration;

use bytes::Bytes;
use highwater_shards::front::Cx;
use highwater_shards::ids::{LeaderEpoch, NodeId, Offset, PartitionId, ShardId};
use highwater_shards::mail::{Answer, Op, ReadError, ReadOut};
use highwater_shards::time::Instant;

use super::api::{ApiKey, begin_response};
use super::errors::ErrorCode;
use super::messages::fetch::ForgottenTopic;
use super::route::{Brokers, TopicKey, followers_in, read_topic, route_read, topic_size_min};
use super::session::{Header, Kafka, Other, Step};
use super::wire::{DecodeError, Reader, Version, Wire, Writer};
use crate::control::metadata::image::Image;

/// One Fetch request from its arrival to its answer.
#[derive(Debug)]
pub(super) struct Fetch {
    /// Each with the number of its partitions, which stand one after the other in `partitions`.
    topics: Vec<(TopicKey, usize)>,
    partitions: Vec<Partition>,
    read_committed: bool,
    bytes_min: usize,
    /// `None`: answer with what there is.
    deadline: Option<Instant>,
    timer_set: bool,
    /// The first partition that no read was submitted for yet.
    next: usize,
    /// Of the bound on the whole answer: not held, and not given to a read that is out.
    budget: usize,
    /// Record bytes held for the answer.
    held: usize,
    reading: usize,
    watching: usize,
    /// Some partition has an error, or records that did not fit: waiting for more would be of no use.
    complete: bool,
}

#[derive(Debug)]
struct Partition {
    index: i32,
    offset: i64,
    current_epoch: Option<LeaderEpoch>,
    bytes_max: usize,
    /// Part of the budget that its read may use.
    granted: usize,
    /// Its last read was to return the first batch whole, however large.
    forced: bool,
    target: Option<(ShardId, PartitionId)>,
    /// This node follows; otherwise it leads.
    follows: bool,
    /// Of the leader only: where the client would rather read.
    nearer: Vec<NodeId>,
    state: State,
    error: ErrorCode,
    /// Where to read instead.
    preferred: Option<NodeId>,
    high_watermark: i64,
    log_start: i64,
    records: Vec<Bytes>,
    held: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Idle,
    Reading,
    Watching,
}

impl Fetch {
    pub fn start(
        kafka: &mut Kafka,
        cx: &mut Cx<'_, Kafka>,
        header: &Header,
        r: &mut Reader<'_>,
    ) -> Result<Step, DecodeError> {
        let read = Self::read(kafka, cx, header, r).map_err(|e| e.within("FetchRequest"))?;
        let Some(mut fetch) = read else {
            kafka.stats.error(ApiKey::Fetch, ErrorCode::FetchSessionIdNotFound);
            return Ok(Step::Answer(vec![without_partitions(header, ErrorCode::FetchSessionIdNotFound)]));
        };
        Ok(match fetch.proceed(kafka, cx, header) {
            Some(answer) => Step::Answer(answer),
            None => Step::Wait(Other::Fetch(Box::new(fetch))),
        })
    }

    /// Reads the request; `None` when it belongs to a fetch session.
    fn read(
        kafka: &Kafka,
        cx: &Cx<'_, Kafka>,
        header: &Header,
        r: &mut Reader<'_>,
    ) -> Result<Option<Self>, DecodeError> {
        let v = header.v;
        let by_id = v.number >= 13;
        if v.number <= 14 {
            let _replica_id = r.i32()?;
        }
        let wait = Duration::from_millis(u64::try_from(r.i32()?).unwrap_or(0));
        let bytes_min = non_negative(r.i32()?);
        let bytes_max = non_negative(r.i32()?);
        let read_committed = r.i8()? == 1;
        let mut in_session = false;
        if v.number >= 7 {
            let _session_id = r.i32()?;
            // Epochs 0 and -1 begin and end a session: both name all their partitions.
            in_session = r.i32()? > 0;
        }
        let topic_count = r.array_len(v, topic_size_min(v, by_id))?;
        let mut fetch = Self {
            topics: Vec::with_capacity(topic_count),
            partitions: Vec::new(),
            read_committed,
            bytes_min,
            deadline: (!wait.is_zero() && bytes_min > 0).then(|| header.arrived + wait),
            timer_set: false,
            next: 0,
            budget: bytes_max.min(usize::try_from(kafka.config.fetch_bytes_max).unwrap_or(usize::MAX)),
            held: 0,
            reading: 0,
            watching: 0,
            complete: false,
        };
        for _ in 0..topic_count {
            let (key, topic) = read_topic(r, v, by_id, cx.view)?;
            let count = r.array_len(v, partition_size_min(v))?;
            fetch.partitions.reserve(count);
            for _ in 0..count {
                let mut partition = Partition::read(r, v)?;
                let target =
                    topic.and_then(|topic| route_read(cx.view, kafka.config.node, topic, partition.index));
                match target {
                    Ok(_) if partition.offset < 0 => partition.error = ErrorCode::OffsetOutOfRange,
                    Ok((target, leads)) => (partition.target, partition.follows) = (Some(target), !leads),
                    Err(code) => partition.error = code,
                }
                fetch.complete |= partition.error != ErrorCode::None;
                fetch.partitions.push(partition);
            }
            r.skip_tags(v)?;
            fetch.topics.push((key, count));
        }
        if v.number >= 7 {
            Vec::<ForgottenTopic>::decode(r, v)?;
        }
        let rack = if v.number >= 11 { r.required_str(v)? } else { "" };
        r.skip_tags(v)?;
        fetch.choose_replicas(kafka.config.node, cx.view, rack);
        Ok((!in_session).then_some(fetch))
    }

    /// Once the client's rack is known, which stands behind the partitions.
    fn choose_replicas(&mut self, this: NodeId, image: &Image, rack: &str) {
        for partition in &mut self.partitions {
            let Some((_, id)) = partition.target else { continue };
            if rack.is_empty() && partition.follows {
                partition.target = None;
                partition.error = ErrorCode::NotLeaderOrFollower;
                self.complete = true;
            } else if !(rack.is_empty() || partition.follows) {
                partition.nearer = followers_in(image, this, id, rack);
            }
        }
    }

    pub fn on_answer(
        &mut self,
        kafka: &mut Kafka,
        cx: &mut Cx<'_, Kafka>,
        header: &Header,
        part: usize,
        answer: Answer,
    ) -> Option<Vec<Bytes>> {
        match answer {
            Answer::Read(result) => self.on_read(part, result),
            Answer::Readable => {
                let partition = &mut self.partitions[part];
                if partition.state != State::Watching {
                    // Was under way when the watch ended.
                    return None;
                }
                partition.state = State::Idle;
                self.watching -= 1;
                self.submit(cx, header, part);
            }
            _ => unreachable!("a read is answered with what was read"),
        }
        self.proceed(kafka, cx, header)
    }

    fn on_read(&mut self, part: usize, result: Result<ReadOut, ReadError>) {
        let partition = &mut self.partitions[part];
        assert!(partition.state == State::Reading, "a read is answered once");
        partition.state = State::Idle;
        self.reading -= 1;
        self.budget += partition.granted;
        partition.granted = 0;
        match result {
            Ok(out) => {
                partition.held = out.records.iter().map(Bytes::len).sum();
                partition.records = out.records;
                partition.high_watermark = out.high_watermark.wire();
                partition.log_start = out.log_start.wire();
                partition.preferred = out.nearer;
                self.complete |= out.nearer.is_some();
                self.held += partition.held;
                // A first batch that came whole may be larger than what was granted.
                self.budget = self.budget.saturating_sub(partition.held);
                if out.watching {
                    partition.state = State::Watching;
                    self.watching += 1;
                }
            }
            Err(ReadError { error, ends }) => {
                partition.error = error.into();
                if let Some(ends) = ends {
                    partition.high_watermark = ends.high_watermark.wire();
                    partition.log_start = ends.log_start.wire();
                }
                self.complete = true;
            }
        }
    }

    pub fn on_timeout(
        &mut self,
        kafka: &mut Kafka,
        cx: &mut Cx<'_, Kafka>,
        header: &Header,
    ) -> Option<Vec<Bytes>> {
        self.timer_set = false;
        self.deadline = None;
        self.proceed(kafka, cx, header)
    }

    /// Submits the reads that there is budget for; the answer once nothing is left to wait for.
    fn proceed(&mut self, kafka: &mut Kafka, cx: &mut Cx<'_, Kafka>, header: &Header) -> Option<Vec<Bytes>> {
        while self.next < self.partitions.len() {
            if self.partitions[self.next].target.is_none() {
                self.next += 1;
                continue;
            }
            // Reads that are out may give back some of the budget.
            if self.budget == 0 && self.reading > 0 {
                return None;
            }
            self.next += 1;
            self.submit(cx, header, self.next - 1);
        }
        if self.reading > 0 {
            return None;
        }
        if let Some(part) = self.partitions.iter().position(Partition::has_more_than_fits) {
            self.complete = true;
            if self.held == 0 && !self.partitions[part].forced {
                self.force(cx, header, part);
                return None;
            }
        }
        let wait = self.deadline.filter(|&at| cx.now < at && self.watching > 0);
        if let Some(at) = wait.filter(|_| !self.complete && self.held < self.bytes_min) {
            if !self.timer_set {
                self.timer_set = true;
                cx.set_timer(header.whole(), at);
            }
            return None;
        }
        self.end(cx, header);
        for partition in &self.partitions {
            kafka.stats.error(ApiKey::Fetch, partition.error);
        }
        let brokers = Brokers { image: cx.view, this: kafka.config.node };
        Some(self.encode(header, brokers))
    }

    /// Reads a partition, anew if it was read before.
    fn submit(&mut self, cx: &mut Cx<'_, Kafka>, header: &Header, part: usize) {
        let partition = &mut self.partitions[part];
        let Some((shard, id)) = partition.target else { return };
        self.held -= partition.held;
        self.budget += partition.held;
        partition.held = 0;
        partition.records.clear();
        partition.granted = partition.bytes_max.min(self.budget);
        // Nothing came before it and nothing may: this is the first partition that can have records.
        partition.forced = self.reading == 0 && self.held == 0;
        self.budget -= partition.granted;
        partition.state = State::Reading;
        self.reading += 1;
        let watch_below =
            if self.deadline.is_some() { self.bytes_min.min(partition.granted.max(1)) } else { 0 };
        let op = Op::Read {
            from_follower: partition.follows,
            nearer: partition.nearer.clone(),
            current_epoch: partition.current_epoch,
            offset: Offset::from_wire(partition.offset).expect("negative offsets have no target"),
            bytes_max: u32::try_from(partition.granted).unwrap_or(u32::MAX),
            first_batch_whole: partition.forced,
            watch_below_bytes: u32::try_from(watch_below).unwrap_or(u32::MAX),
        };
        cx.submit(shard, id, header.token(part), op);
    }

    /// Reads a partition again whose next batch is larger than the bounds.
    fn force(&mut self, cx: &mut Cx<'_, Kafka>, header: &Header, part: usize) {
        let partition = &mut self.partitions[part];
        if partition.state == State::Watching {
            partition.state = State::Idle;
            self.watching -= 1;
            if let Some((shard, id)) = partition.target {
                cx.submit(shard, id, header.token(part), Op::Unwatch);
            }
        }
        self.submit(cx, header, part);
    }

    /// Ends what the shards and the timer still do for this request.
    pub fn end(&mut self, cx: &mut Cx<'_, Kafka>, header: &Header) {
        for (part, partition) in self.partitions.iter_mut().enumerate() {
            // A read that is out may be about to begin a watch; ending it is harmless if it does not.
            if let (State::Watching | State::Reading, Some((shard, id))) = (partition.state, partition.target)
            {
                cx.submit(shard, id, header.token(part), Op::Unwatch);
                partition.state = State::Idle;
            }
        }
        self.watching = 0;
        if std::mem::take(&mut self.timer_set) {
            cx.cancel_timer(header.whole());
        }
    }

    fn encode(&mut self, header: &Header, brokers: Brokers<'_>) -> Vec<Bytes> {
        let v = header.v;
        let names: usize = self.topics.iter().map(|(key, _)| key.len_max() + 6).sum();
        let mut answer = Parts::new(header, 32 + names + 52 * self.partitions.len());
        answer.w.i32(0);
        if v.number >= 7 {
            answer.w.i16(ErrorCode::None.wire());
            answer.w.i32(0);
        }
        let mut partitions = self.partitions.iter_mut();
        answer.w.long_len(Some(self.topics.len()), v);
        for (key, count) in &self.topics {
            key.encode(&mut answer.w, v);
            answer.w.long_len(Some(*count), v);
            for partition in partitions.by_ref().take(*count) {
                let w = &mut answer.w;
                w.i32(partition.index);
                w.i16(partition.error.wire());
                w.i64(partition.high_watermark);
                // Without transactions everything below the high watermark is stable.
                w.i64(partition.high_watermark);
                if v.number >= 5 {
                    w.i64(partition.log_start);
                }
                w.long_len(self.read_committed.then_some(0), v);
                if v.number >= 11 {
                    let preferred = partition.preferred.zip(partition.target);
                    w.i32(preferred.map_or(-1, |(node, (_, id))| brokers.replica(node, id)));
                }
                w.long_len(Some(partition.held), v);
                answer.records(std::mem::take(&mut partition.records), partition.held);
                answer.w.no_tags(v);
            }
            answer.w.no_tags(v);
        }
        answer.w.no_tags(v);
        answer.finish()
    }
}

impl Partition {
    fn read(r: &mut Reader<'_>, v: Version) -> Result<Self, DecodeError> {
        let index = r.i32()?;
        let current_epoch = if v.number >= 9 { LeaderEpoch::from_wire(r.i32()?) } else { None };
        let offset = r.i64()?;
        if v.number >= 12 {
            let _last_fetched_epoch = r.i32()?;
        }
        if v.number >= 5 {
            let _log_start_of_a_follower = r.i64()?;
        }
        let bytes_max = non_negative(r.i32()?);
        r.skip_tags(v)?;
        Ok(Self {
            index,
            offset,
            current_epoch,
            bytes_max,
            granted: 0,
            forced: false,
            target: None,
            follows: false,
            nearer: Vec::new(),
            state: State::Idle,
            error: ErrorCode::None,
            preferred: None,
            high_watermark: -1,
            log_start: -1,
            records: Vec::new(),
            held: 0,
        })
    }

    /// Whether there are records, but the first batch of them is larger than what was granted.
    fn has_more_than_fits(&self) -> bool {
        let is_read_here = self.error == ErrorCode::None && self.preferred.is_none();
        is_read_here && self.held == 0 && self.offset < self.high_watermark
    }
}

fn partition_size_min(v: Version) -> usize {
    let by_version = [(5, 8), (9, 4), (12, 4)];
    let added: usize =
        by_version.iter().filter(|&&(since, _)| v.number >= since).map(|&(_, size)| size).sum();
    4 + 8 + 4 + added + usize::from(v.flexible)
}

fn non_negative(wire: i32) -> usize {
    usize::try_from(wire).unwrap_or(0)
}

/// An answer of its own fields alone.
fn without_partitions(header: &Header, code: ErrorCode) -> Bytes {
    let mut w = begin_response(ApiKey::Fetch, header.v, header.correlation, 32);
    w.i32(0);
    w.i16(code.wire());
    w.i32(0);
    w.long_len(Some(0), header.v);
    w.no_tags(header.v);
    w.finish_frame(0)
}

/// An answer in parts: one buffer for everything but the records, and where they belong in it.
struct Parts {
    w: Writer,
    records: Vec<(usize, Vec<Bytes>)>,
    records_len: usize,
}

impl Parts {
    fn new(header: &Header, capacity: usize) -> Self {
        let w = begin_response(ApiKey::Fetch, header.v, header.correlation, capacity);
        Self { w, records: Vec::new(), records_len: 0 }
    }

    fn records(&mut self, records: Vec<Bytes>, len: usize) {
        if len > 0 {
            self.records.push((self.w.len(), records));
            self.records_len += len;
        }
    }

    fn finish(self) -> Vec<Bytes> {
        let fields = self.w.finish_frame(self.records_len);
        let record_parts: usize = self.records.iter().map(|(_, records)| records.len()).sum();
        let mut parts = Vec::with_capacity(self.records.len() + record_parts + 1);
        let mut from = 0;
        for (to, records) in self.records {
            parts.push(fields.slice(from..to));
            parts.extend(records.into_iter().filter(|part| !part.is_empty()));
            from = to;
        }
        if from < fields.len() {
            parts.push(fields.slice(from..));
        }
        parts
    }
}
