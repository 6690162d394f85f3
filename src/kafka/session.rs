//! One client connection: which request is worked on, which ones wait, and in which order answers leave.
//!
//! Pure; lives on the shard core that the connection came to. It never touches a partition: operations go to the
//! owning shard by [`Cx::submit`], and what changes metadata goes to the control core by [`Cx::ask`].
//!
//! Produce requests are worked on as they arrive, however many were not answered yet, and are answered in order. So are
//! changes of metadata, within the bounds of `changes.rs`: the control core keeps their order. Any other request is taken
//! up when everything before it is answered, as Kafka does it: a client that pipelines sees the effects of its own
//! requests, and a connection holds at most one long answer at a time.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use highwater_shards::front::{CloseReason, Cx, Front};
use highwater_shards::ids::{NodeId, PartitionId, ShardId};
use highwater_shards::mail::{Answer, Token};
use highwater_shards::stats::FrontStats;
use highwater_shards::time::Instant;

use super::api::{self, ApiKey, Call, Head};
use super::changes::{Asked, Changes, is_change};
use super::fetch::Fetch;
use super::gather::Gathering;
use super::messages::offsets::{DeleteRecordsRequest, ListOffsetsRequest, OffsetForLeaderEpochRequest};
use super::produce::Produce;
use super::stats::Stats;
use super::wire::{DecodeError, Reader, Version, Wire};
use super::{admin, configs, coordinator, metadata, producer_ids, replicas};
use crate::control::metadata::topic_config::TopicDefaults;
use crate::control::request::{Reply, Request};

/// What the client protocol of one node is told at its start.
#[derive(Clone, Debug)]
pub struct KafkaConfig {
    pub node: NodeId,
    /// Whether a Metadata request makes the topics that it names and that do not exist.
    pub auto_create_topics: bool,
    pub topic_defaults: TopicDefaults,
    /// The largest frame, in bytes; the driver cuts frames by the same bound.
    pub request_bytes_max: usize,
    /// The most record bytes in one Fetch answer, but for a single larger batch.
    pub fetch_bytes_max: u32,
    /// Frames of one connection that wait for the requests before them: one more closes the connection. The shard
    /// stops reading at a lower bound of its own, so only a client that floods one read gets here.
    pub waiting_frames_max: usize,
    /// Bytes of such frames from which on the connection counts as full, see [`Front::in_flight`].
    pub waiting_bytes_max: usize,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            node: NodeId(1),
            auto_create_topics: true,
            topic_defaults: TopicDefaults::default(),
            request_bytes_max: 100 * 1024 * 1024,
            fetch_bytes_max: 55 * 1024 * 1024,
            waiting_frames_max: 4096,
            waiting_bytes_max: 1024 * 1024,
        }
    }
}

/// The Kafka protocol of one shard.
#[derive(Debug)]
pub struct Kafka {
    pub(super) config: KafkaConfig,
    pub(super) stats: Stats,
}

impl Kafka {
    pub fn new(config: KafkaConfig) -> Self {
        Self { config, stats: Stats::default() }
    }
}

/// The state of one connection.
#[derive(Debug)]
pub struct Session {
    peer: SocketAddr,
    /// Of the next request that is taken up; the one before it is `other`, or the newest of `produces` or `changes`.
    next: u64,
    /// Taken up and not answered, oldest first. Only one of `produces`, `changes` and `other` is not empty.
    produces: VecDeque<Produce>,
    changes: Changes,
    other: Option<(Header, Other)>,
    /// Not taken up yet.
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
    /// Until then nothing more of this client is taken up: its producer was asked to pause (KIP-219).
    paused_until: Option<Instant>,
    /// A request could not be read: nothing after it is taken up, and the connection is closed once those before it
    /// are answered.
    ends: bool,
    /// The close was asked for: nothing more is done for this client.
    closed: bool,
}

/// A request that waits for something and that no other one is taken up beside.
#[derive(Debug)]
pub(super) enum Other {
    Fetch(Box<Fetch>),
    Offsets(Box<Gathering<ListOffsetsRequest>>),
    EpochEnds(Box<Gathering<OffsetForLeaderEpochRequest>>),
    Deletions(Box<Gathering<DeleteRecordsRequest>>),
    Metadata(Box<metadata::Waiting>),
    Replicas(Box<replicas::Waiting>),
    ProducerId,
}

/// What became of a request that was taken up.
#[derive(Debug)]
pub(super) enum Step {
    Answer(Vec<Bytes>),
    Ask(Asked),
    Wait(Other),
}

/// What is known of a request before its body is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub api: ApiKey,
    pub v: Version,
    pub correlation: i32,
    pub number: u64,
    /// Of the frame.
    pub bytes: usize,
    pub arrived: Instant,
}

/// Bits of a token that name a part of a request; the others are the request's number.
const PART_BITS: u32 = 20;
const PART_MASK: u64 = (1 << PART_BITS) - 1;
/// Numbers of requests count up to this and begin again, as tokens hold no more bits of them.
const NUMBER_MASK: u64 = u64::MAX >> PART_BITS;
/// The part that stands for the request as a whole; no request has so many parts
/// ([`super::wire::ELEMENTS_MAX`]).
const WHOLE: u64 = PART_MASK;
/// The timer that ends a pause; no part of a request has this number either.
const PAUSE_OVER: Token = Token(PART_MASK - 1);

impl Header {
    /// The token of the request's `part`-th partition.
    pub fn token(&self, part: usize) -> Token {
        Token(self.number << PART_BITS | (part as u64 & PART_MASK))
    }

    /// The token of the request as a whole.
    pub fn whole(&self) -> Token {
        Token(self.number << PART_BITS | WHOLE)
    }

    /// The answer, as one piece.
    pub fn answer(&self, body: &impl Wire) -> Step {
        Step::Answer(vec![api::response_frame(self.api, self.v, self.correlation, body)])
    }

    /// Reads the body of a request from what is left of the frame.
    pub fn body<C: Call>(&self, r: &mut Reader<'_>) -> Result<C, DecodeError> {
        C::decode(r, self.v)
    }
}

/// The request number and the part that a token names.
fn parts_of(token: Token) -> (u64, usize) {
    (token.0 >> PART_BITS, usize::try_from(token.0 & PART_MASK).expect("20 bits"))
}

/// Why a request is not taken up.
enum Unreadable {
    Malformed(DecodeError),
    Unsupported { api_key: i16, version: i16 },
}

impl From<DecodeError> for Unreadable {
    fn from(error: DecodeError) -> Self {
        Self::Malformed(error)
    }
}

impl Front for Kafka {
    type Session = Session;
    type View = std::sync::Arc<crate::control::metadata::image::Image>;
    type Request = Request;
    type Reply = Reply;

    fn local_shard(view: &Self::View, partition: PartitionId) -> Option<ShardId> {
        view.local_shard(partition)
    }

    fn open(&mut self, _: &mut Cx<'_, Self>, peer: SocketAddr) -> Session {
        Session {
            peer,
            next: 0,
            produces: VecDeque::new(),
            changes: Changes::default(),
            other: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            paused_until: None,
            ends: false,
            closed: false,
        }
    }

    fn on_frame(&mut self, cx: &mut Cx<'_, Self>, session: &mut Session, frame: Bytes) {
        if session.closed || session.ends {
            return;
        }
        if session.waiting.is_empty() && session.can_take_up(&frame) {
            self.take_up(cx, session, &frame);
            self.advance(cx, session);
        } else if session.waiting.len() < self.config.waiting_frames_max {
            session.waiting_bytes += frame.len();
            session.waiting.push_back(frame);
        } else {
            session.close(cx, CloseReason::TooMany);
        }
    }

    fn on_answer(&mut self, cx: &mut Cx<'_, Self>, session: &mut Session, token: Token, answer: Answer) {
        let (number, part) = parts_of(token);
        if session.closed {
            return;
        }
        if let Some(produce) = session.produce(number) {
            produce.on_answer(part, answer);
        } else if let Some((header, other)) = session.other_numbered(number) {
            let header = *header;
            let answer = match other {
                Other::Fetch(fetch) => fetch.on_answer(self, cx, &header, part, answer),
                Other::Offsets(offsets) => offsets.on_answer(self, &header, part, answer),
                Other::EpochEnds(ends) => ends.on_answer(self, &header, part, answer),
                Other::Deletions(deletions) => deletions.on_answer(self, &header, part, answer),
                Other::Metadata(_) | Other::Replicas(_) | Other::ProducerId => None,
            };
            self.answer_other(cx, session, answer);
        }
        self.advance(cx, session);
    }

    fn on_reply(&mut self, cx: &mut Cx<'_, Self>, session: &mut Session, token: Token, reply: Reply) {
        let (number, _) = parts_of(token);
        if session.closed {
            return;
        }
        if session.other_numbered(number).is_none() {
            if session.changes.on_reply(self, cx.view, number, reply) {
                self.advance(cx, session);
            }
            return;
        }
        let Some((header, other)) = session.other.take() else { return };
        let step = match other {
            Other::Metadata(waiting) => metadata::on_reply(self, cx.view, &header, *waiting, reply),
            Other::Replicas(waiting) => replicas::on_reply(self, &header, *waiting, reply),
            Other::ProducerId => producer_ids::on_reply(self, &header, reply),
            waits_for_shards @ (Other::Fetch(_)
            | Other::Offsets(_)
            | Other::EpochEnds(_)
            | Other::Deletions(_)) => Step::Wait(waits_for_shards),
        };
        self.settle(cx, session, &header, step);
        self.advance(cx, session);
    }

    fn on_timeout(&mut self, cx: &mut Cx<'_, Self>, session: &mut Session, token: Token) {
        if token == PAUSE_OVER {
            session.paused_until = None;
            if !session.closed {
                self.advance(cx, session);
            }
            return;
        }
        let (number, _) = parts_of(token);
        if session.closed {
            return;
        }
        if let Some((header, Other::Fetch(fetch))) = session.other_numbered(number) {
            let header = *header;
            let answer = fetch.on_timeout(self, cx, &header);
            self.answer_other(cx, session, answer);
            self.advance(cx, session);
        }
    }

    fn on_closed(&mut self, cx: &mut Cx<'_, Self>, session: &mut Session) {
        session.closed = true;
        if session.paused_until.take().is_some() {
            cx.cancel_timer(PAUSE_OVER);
        }
        if let Some((header, Other::Fetch(mut fetch))) = session.other.take() {
            fetch.end(cx, &header);
        }
        session.produces.clear();
        session.changes = Changes::default();
        session.waiting.clear();
        session.waiting_bytes = 0;
    }

    fn in_flight(&self, session: &Session) -> usize {
        if session.ends
            || session.paused_until.is_some()
            || session.waiting_bytes > self.config.waiting_bytes_max
        {
            return usize::MAX;
        }
        let taken_up = session.produces.len() + session.changes.len() + usize::from(session.other.is_some());
        taken_up + session.waiting.len()
    }

    fn stats(&self) -> FrontStats {
        self.stats.snapshot()
    }
}

impl Kafka {
    /// Sends what can be answered now, and takes up the requests that waited for it.
    fn advance(&mut self, cx: &mut Cx<'_, Self>, session: &mut Session) {
        loop {
            while session.produces.front().is_some_and(Produce::is_done) {
                let produce = session.produces.pop_front().expect("there is a front");
                if !produce.throttle().is_zero() {
                    session.pause(cx, produce.throttle());
                    self.stats.pauses += 1;
                }
                match produce.finish(self, cx.now) {
                    Ok(Some(answer)) => cx.send(vec![answer]),
                    Ok(None) => {}
                    Err(reason) => return session.close(cx, reason),
                }
            }
            while let Some(answer) = session.changes.pop_answered(self, cx.now) {
                cx.send(answer);
            }
            if session.ends && session.produces.is_empty() && session.changes.is_empty() && !session.closed {
                return session.close(cx, CloseReason::Malformed);
            }
            if session.closed || !session.waiting.front().is_some_and(|frame| session.can_take_up(frame)) {
                return;
            }
            let frame = session.waiting.pop_front().expect("there is a front");
            session.waiting_bytes -= frame.len();
            self.take_up(cx, session, &frame);
        }
    }

    /// Starts the work on a request. One that cannot be read to its end does nothing but close the connection.
    fn take_up(&mut self, cx: &mut Cx<'_, Self>, session: &mut Session, frame: &Bytes) {
        let acts_before = cx.acts.len();
        let Err(why) = self.try_take_up(cx, session, frame) else { return };
        cx.acts.truncate(acts_before);
        self.stats.malformed += 1;
        match why {
            Unreadable::Malformed(error) => {
                tracing::debug!(peer = %session.peer, %error, "closing: a request cannot be read");
            }
            Unreadable::Unsupported { api_key, version } => {
                tracing::debug!(peer = %session.peer, api_key, version, "closing: API or version not supported");
            }
        }
        session.ends = true;
        session.waiting.clear();
        session.waiting_bytes = 0;
        self.advance(cx, session);
    }

    fn try_take_up(
        &mut self,
        cx: &mut Cx<'_, Self>,
        session: &mut Session,
        frame: &Bytes,
    ) -> Result<(), Unreadable> {
        let r = &mut Reader::new(frame);
        let Head { api_key, version, correlation } = Head::decode(r)?;
        let api = ApiKey::from_wire(api_key).ok_or(Unreadable::Unsupported { api_key, version })?;
        let header = Header {
            api,
            v: api.version(version),
            correlation,
            number: session.next,
            bytes: frame.len(),
            arrived: cx.now,
        };
        if !api.supports(version) {
            if api != ApiKey::ApiVersions {
                return Err(Unreadable::Unsupported { api_key, version });
            }
            let step = metadata::api_versions_unsupported(self, header);
            self.settle(cx, session, &header, step);
            return Ok(());
        }
        Head::decode_rest(r, header.v)?;
        if api == ApiKey::Produce {
            let produce = Produce::start(self, cx, header, r)?;
            session.produces.push_back(produce);
            session.count();
            return Ok(());
        }
        let step = match api {
            ApiKey::Produce => unreachable!("taken up above"),
            ApiKey::Fetch => Fetch::start(self, cx, &header, r)?,
            ApiKey::ListOffsets => Gathering::<ListOffsetsRequest>::start(self, cx, &header, r)?,
            ApiKey::OffsetForLeaderEpoch => {
                Gathering::<OffsetForLeaderEpochRequest>::start(self, cx, &header, r)?
            }
            ApiKey::DeleteRecords => Gathering::<DeleteRecordsRequest>::start(self, cx, &header, r)?,
            ApiKey::Metadata => metadata::start(self, cx, &header, r)?,
            ApiKey::FindCoordinator => coordinator::find(self, &header, r)?,
            ApiKey::ApiVersions => metadata::api_versions(&header, r)?,
            ApiKey::DescribeCluster => metadata::describe_cluster(self, cx.view, &header, r)?,
            ApiKey::CreateTopics => admin::create_topics(self, cx, &header, r)?,
            ApiKey::DeleteTopics => admin::delete_topics(self, cx, &header, r)?,
            ApiKey::CreatePartitions => admin::create_partitions(self, cx, &header, r)?,
            ApiKey::ElectLeaders => replicas::elect(self, cx, &header, r)?,
            ApiKey::AlterPartitionReassignments => replicas::reassign(self, cx, &header, r)?,
            ApiKey::ListPartitionReassignments => replicas::list(self, cx.view, &header, r)?,
            ApiKey::DescribeConfigs => configs::describe(self, cx.view, &header, r)?,
            ApiKey::IncrementalAlterConfigs => configs::alter(self, cx, &header, r)?,
            ApiKey::InitProducerId => producer_ids::start(self, cx, &header, r)?,
        };
        session.count();
        self.settle(cx, session, &header, step);
        Ok(())
    }

    fn settle(&mut self, cx: &mut Cx<'_, Self>, session: &mut Session, header: &Header, step: Step) {
        match step {
            Step::Answer(parts) if session.changes.is_empty() => {
                self.stats.answered(header.api, cx.now - header.arrived);
                cx.send(parts);
            }
            Step::Answer(parts) => session.changes.push_answered(*header, parts),
            Step::Ask(asked) => session.changes.push_asked(*header, asked),
            Step::Wait(other) => session.other = Some((*header, other)),
        }
    }

    /// Sends the answer to `session.other`, when there is one now.
    fn answer_other(&mut self, cx: &mut Cx<'_, Self>, session: &mut Session, answer: Option<Vec<Bytes>>) {
        let Some(parts) = answer else { return };
        let Some((header, _)) = session.other.take() else { return };
        self.settle(cx, session, &header, Step::Answer(parts));
    }
}

impl Session {
    /// Whether nothing before this request keeps it from being worked on.
    fn can_take_up(&self, frame: &Bytes) -> bool {
        if self.ends || self.paused_until.is_some() || self.other.is_some() {
            return false;
        }
        if self.produces.is_empty() && self.changes.is_empty() {
            return true;
        }
        let Some(api) = frame.first_chunk().and_then(|key| ApiKey::from_wire(i16::from_be_bytes(*key)))
        else {
            return false;
        };
        match api {
            ApiKey::Produce => self.changes.is_empty(),
            api => is_change(api) && self.produces.is_empty() && !self.changes.is_full(),
        }
    }

    /// Stops taking requests up, the one way to slow down a client that does not pause by itself.
    fn pause(&mut self, cx: &mut Cx<'_, Kafka>, pause: Duration) {
        let until = cx.now + pause;
        if self.paused_until.is_none_or(|at| at < until) {
            self.paused_until = Some(until);
            cx.set_timer(PAUSE_OVER, until);
        }
    }

    /// One more request was taken up.
    fn count(&mut self) {
        self.next = (self.next + 1) & NUMBER_MASK;
    }

    #[cfg(test)]
    pub(super) fn set_next(&mut self, number: u64) {
        self.next = number;
    }

    fn produce(&mut self, number: u64) -> Option<&mut Produce> {
        if self.other.is_some() {
            return None;
        }
        let age = usize::try_from(self.next.wrapping_sub(number) & NUMBER_MASK).ok()?;
        let at = self.produces.len().checked_sub(age)?;
        self.produces.get_mut(at)
    }

    fn other_numbered(&mut self, number: u64) -> Option<&mut (Header, Other)> {
        self.other.as_mut().filter(|(header, _)| header.number == number)
    }

    fn close(&mut self, cx: &mut Cx<'_, Kafka>, reason: CloseReason) {
        self.closed = true;
        cx.close(reason);
    }
}
