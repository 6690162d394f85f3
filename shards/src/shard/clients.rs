//! Client connections of a shard: sessions, their acts, and backpressure on those who do not read.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use bytes::Bytes;

use super::{ClientInput, Output, Shard, Stop, Timer};
use crate::front::{Act, CloseReason, Cx, Front};
use crate::ids::{ConnId, Map, PartitionId, ShardId};
use crate::mail::{Answer, Op, PartitionError, ReadError, ReplyTo, ShardMail, ToControl, Token};

pub(super) struct Clients<F: Front> {
    by_id: Map<ConnId, Client<F>>,
    closed: BTreeMap<CloseReason, u64>,
    /// Kept for its allocation: what a session did during one call.
    acts: Vec<Act<F>>,
}

struct Client<F: Front> {
    peer: SocketAddr,
    /// Made with the first image; until then frames wait.
    session: Option<F::Session>,
    unsent_bytes: usize,
    /// Frames that came while the client had to wait; at most what the driver had cut when it was told to stop.
    waiting: VecDeque<Bytes>,
    receiving: bool,
    closing: bool,
}

impl<F: Front> Default for Clients<F> {
    fn default() -> Self {
        Self { by_id: Map::default(), closed: BTreeMap::new(), acts: Vec::new() }
    }
}

impl<F: Front> Clients<F> {
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// In a fixed order, so that a simulation repeats.
    pub fn ids(&self) -> Vec<ConnId> {
        let mut ids: Vec<ConnId> = self.by_id.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    pub fn closed_by_reason(&self) -> Vec<(&'static str, u64)> {
        self.closed.iter().map(|(reason, n)| (reason_name(*reason), *n)).collect()
    }
}

fn reason_name(reason: CloseReason) -> &'static str {
    match reason {
        CloseReason::Peer => "peer",
        CloseReason::Idle => "idle",
        CloseReason::FrameTooLarge => "frame_too_large",
        CloseReason::Malformed => "malformed",
        CloseReason::UnansweredError => "unanswered_error",
        CloseReason::TooMany => "too_many",
        CloseReason::Stopping => "stopping",
        CloseReason::Superseded => "superseded",
        CloseReason::StalePeer => "stale_peer",
    }
}

impl<F: Front> Shard<F> {
    pub(super) fn on_client(&mut self, input: ClientInput) {
        match input {
            ClientInput::Opened { conn, peer } => self.on_opened(conn, peer),
            ClientInput::Frame { conn, frame } => self.on_frame(conn, frame),
            ClientInput::Sent { conn, bytes } => {
                self.stats.bytes_sent += bytes as u64;
                if let Some(client) = self.clients.by_id.get_mut(&conn) {
                    assert!(bytes <= client.unsent_bytes, "no more can have been sent than was given");
                    client.unsent_bytes -= bytes;
                    self.go_on(conn);
                }
            }
            ClientInput::Closed { conn, reason } => self.on_closed(conn, reason),
        }
    }

    fn on_opened(&mut self, conn: ConnId, peer: SocketAddr) {
        self.stats.connections_opened += 1;
        let client = Client {
            peer,
            session: None,
            unsent_bytes: 0,
            waiting: VecDeque::new(),
            receiving: true,
            closing: self.stop != Stop::No,
        };
        let old = self.clients.by_id.insert(conn, client);
        assert!(old.is_none(), "a connection id is never used twice");
        if self.stop == Stop::No {
            self.open_session(conn);
        } else {
            self.outputs.push_back(Output::Close { conn, flush: false, reason: CloseReason::Stopping });
        }
    }

    fn open_session(&mut self, conn: ConnId) {
        let (Some(client), Some(view)) = (self.clients.by_id.get_mut(&conn), &self.view) else { return };
        if client.session.is_none() && !client.closing {
            let mut acts = std::mem::take(&mut self.clients.acts);
            let mut cx = Cx { now: self.now, shard: self.config.shard, conn, view, acts: &mut acts };
            client.session = Some(self.front.open(&mut cx, client.peer));
            self.run_acts(conn, acts);
        }
    }

    fn on_frame(&mut self, conn: ConnId, frame: Bytes) {
        self.stats.frames += 1;
        self.stats.bytes_received += frame.len() as u64 + 4;
        let Some(client) = self.clients.by_id.get_mut(&conn) else { return };
        if client.closing {
            return;
        }
        client.waiting.push_back(frame);
        self.go_on(conn);
    }

    /// Works on frames that wait as long as the client may have more in flight, and tells the driver to stop or
    /// go on receiving.
    fn go_on(&mut self, conn: ConnId) {
        loop {
            let may = self.may_take(conn);
            let Some(client) = self.clients.by_id.get_mut(&conn) else { return };
            if may && let Some(frame) = client.waiting.pop_front() {
                self.with_session(conn, |front, cx, session| front.on_frame(cx, session, frame));
                continue;
            }
            if client.receiving != may && !client.closing {
                client.receiving = may;
                self.outputs.push_back(Output::Receive { conn, on: may });
            }
            return;
        }
    }

    fn may_take(&self, conn: ConnId) -> bool {
        let Some(client) = self.clients.by_id.get(&conn) else { return false };
        let Some(session) = &client.session else { return false };
        self.stop == Stop::No
            && !client.closing
            && client.unsent_bytes <= self.config.unsent_bytes_max
            && self.front.in_flight(session) < self.config.in_flight_max
    }

    fn on_closed(&mut self, conn: ConnId, reason: CloseReason) {
        if !self.clients.by_id.contains_key(&conn) {
            return;
        }
        *self.clients.closed.entry(reason).or_default() += 1;
        self.with_session(conn, |front, cx, session| front.on_closed(cx, session));
        self.clients.by_id.remove(&conn);
        self.finish_stop();
    }

    pub(super) fn on_reply(&mut self, conn: ConnId, token: Token, reply: F::Reply) {
        self.with_session(conn, |front, cx, session| front.on_reply(cx, session, token, reply));
        self.go_on(conn);
    }

    pub(super) fn on_session_timeout(&mut self, conn: ConnId, token: Token) {
        self.with_session(conn, |front, cx, session| front.on_timeout(cx, session, token));
        self.go_on(conn);
    }

    /// Hands answers to their sessions until none is left. Each answer makes a session do a bounded number of
    /// further operations, so this ends.
    pub(super) fn deliver(&mut self) {
        while let Some((conn, token, answer)) = self.answers.pop_front() {
            self.with_session(conn, |front, cx, session| front.on_answer(cx, session, token, answer));
            self.go_on(conn);
        }
    }

    /// With the first image sessions are made, and the frames that waited for it are worked on.
    pub(super) fn wake_waiting_clients(&mut self) {
        let waiting = |c: &Client<F>| c.session.is_none();
        let mut conns: Vec<ConnId> =
            self.clients.by_id.iter().filter(|(_, c)| waiting(c)).map(|(id, _)| *id).collect();
        conns.sort_unstable();
        for conn in conns {
            self.open_session(conn);
            self.go_on(conn);
        }
    }

    pub(super) fn pause_all_clients(&mut self) {
        for conn in self.clients.ids() {
            self.go_on(conn);
        }
    }

    fn with_session(&mut self, conn: ConnId, call: impl FnOnce(&mut F, &mut Cx<'_, F>, &mut F::Session)) {
        let Some(client) = self.clients.by_id.get_mut(&conn) else { return };
        let (Some(session), Some(view)) = (&mut client.session, &self.view) else { return };
        let mut acts = std::mem::take(&mut self.clients.acts);
        let mut cx = Cx { now: self.now, shard: self.config.shard, conn, view, acts: &mut acts };
        call(&mut self.front, &mut cx, session);
        self.run_acts(conn, acts);
    }

    fn run_acts(&mut self, conn: ConnId, mut acts: Vec<Act<F>>) {
        for act in acts.drain(..) {
            match act {
                Act::Submit { shard, partition, token, op } => self.submit(conn, shard, partition, token, op),
                Act::Ask { token, request } => {
                    self.outputs.push_back(Output::Control(ToControl::Request { conn, token, request }));
                }
                Act::Send { parts } => self.send(conn, parts),
                Act::SetTimer { token, at } => self.timers.set(Timer::Session(conn, token), at),
                Act::CancelTimer { token } => self.timers.cancel(Timer::Session(conn, token)),
                Act::Close { reason } => self.close(conn, reason),
            }
        }
        self.clients.acts = acts;
    }

    /// Closes every connection, after what was sent is out when `flush` says so.
    pub(super) fn close_all(&mut self, flush: bool) {
        for conn in self.clients.ids() {
            if let Some(client) = self.clients.by_id.get_mut(&conn) {
                client.closing = true;
                client.waiting.clear();
            }
            self.outputs.push_back(Output::Close { conn, flush, reason: CloseReason::Stopping });
        }
    }

    fn send(&mut self, conn: ConnId, parts: Vec<Bytes>) {
        let Some(client) = self.clients.by_id.get_mut(&conn) else { return };
        if !client.closing {
            client.unsent_bytes += parts.iter().map(Bytes::len).sum::<usize>();
            self.outputs.push_back(Output::Send { conn, parts });
        }
    }

    fn close(&mut self, conn: ConnId, reason: CloseReason) {
        let Some(client) = self.clients.by_id.get_mut(&conn) else { return };
        if !client.closing {
            client.closing = true;
            client.waiting.clear();
            self.outputs.push_back(Output::Close { conn, flush: true, reason });
        }
    }

    fn submit(&mut self, conn: ConnId, shard: ShardId, partition: PartitionId, token: Token, op: Op) {
        let reply_to = ReplyTo { shard: self.config.shard, conn, token };
        if shard == self.config.shard {
            self.run_op(reply_to, partition, op);
            return;
        }
        // An unwatch is not answered, so it does not count.
        if !matches!(op, Op::Unwatch) {
            if self.remote_ops >= self.config.remote_ops_max {
                self.answers.push_back((conn, token, refusal(&op, PartitionError::Overloaded)));
                return;
            }
            self.remote_ops += 1;
        }
        self.stats.mail_sent += 1;
        self.outputs.push_back(Output::Mail { to: shard, mail: ShardMail::Op { reply_to, partition, op } });
    }
}

/// The answer of the operation's own kind that says no.
pub(super) fn refusal(op: &Op, error: PartitionError) -> Answer {
    match op {
        Op::Append { .. } => Answer::Appended(Err(error)),
        Op::Read { .. } => Answer::Read(Err(ReadError { error, ends: None })),
        Op::Locate { .. } => Answer::Located(Err(error)),
        Op::EpochEnd { .. } => Answer::EpochEnd(Err(error)),
        Op::DeleteRecords { .. } => Answer::Deleted(Err(error)),
        Op::Unwatch => unreachable!("an unwatch is not answered"),
    }
}
