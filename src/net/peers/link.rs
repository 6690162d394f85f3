//! The way to one peer: the calls that wait, the connection once there is one, and what happens when it breaks.
//!
//! Runs on the control core's thread. It dials when there is something to say. Every call ends: with an answer, at its
//! deadline, or with the connection; a call made while the peer is known to be away fails at once.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::RngCore;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::connection::{self, Ended, Handler, Liveness, Pipe};
use super::{Config, Limits};
use crate::net::auth::DiskId;
use crate::net::auth::session::Keys;
use crate::net::frame::{FrameError, Header, Message, Type};
use crate::net::outbox::Outgoing;
use crate::net::stats::{PeerCounters, add};
use crate::net::{BODY_MAX, CallError, Class, REFUSAL_MAX};

/// A connection that lived so long was a good one: after it the next is tried at once.
const GOOD: Duration = Duration::from_secs(1);

pub(super) struct Link {
    pub pipe: Pipe,
    pub counters: Rc<PeerCounters>,
    /// Of the peer at the other end, while there is one.
    pub disk: Cell<Option<DiskId>>,
    limits: Limits,
    idle_max: Duration,
    state: RefCell<State>,
}

struct State {
    /// While it lies in the future, calls fail at once, for this reason.
    away: Option<(Instant, String)>,
    failures: u32,
    pending: BTreeMap<u64, Pending>,
    /// Of `pending`, by class.
    calls: [usize; 3],
    call_next: u64,
    last_call: Instant,
}

struct Pending {
    class: Class,
    reply: oneshot::Sender<Result<Bytes, CallError>>,
}

impl Link {
    pub fn new(config: &Config, counters: Rc<PeerCounters>) -> Self {
        Self {
            pipe: Pipe::new(config.limits.queued_bytes_max),
            counters,
            disk: Cell::new(None),
            limits: config.limits.clone(),
            idle_max: config.idle_max,
            state: RefCell::new(State {
                away: None,
                failures: 0,
                pending: BTreeMap::new(),
                calls: [0; 3],
                call_next: 0,
                last_call: Instant::now(),
            }),
        }
    }

    pub async fn call(
        &self,
        class: Class,
        kind: u16,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, CallError> {
        let began = Instant::now();
        let result = self.call_uncounted(class, kind, body, deadline).await;
        self.counters.called(class, began.elapsed(), result.as_ref().err());
        result
    }

    async fn call_uncounted(
        &self,
        class: Class,
        kind: u16,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, CallError> {
        let (reply, answer) = oneshot::channel();
        let call = self.enter(class, kind, body, reply)?;
        let _given_up = GivenUp { link: self, class, call };
        self.pipe.bell.notify_one();
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(CallError::Unreachable("the connection was given up".to_owned())),
            Err(_) => Err(CallError::TimedOut),
        }
    }

    fn enter(
        &self,
        class: Class,
        kind: u16,
        body: Bytes,
        reply: oneshot::Sender<Result<Bytes, CallError>>,
    ) -> Result<u64, CallError> {
        if body.len() > BODY_MAX {
            return Err(CallError::TooLarge { len: body.len(), max: BODY_MAX });
        }
        let mut state = self.state.borrow_mut();
        let now = Instant::now();
        if let Some((_, why)) = state.away.as_ref().filter(|(until, _)| *until > now) {
            return Err(CallError::Unreachable(why.clone()));
        }
        if state.calls[class as usize] >= self.limits.calls_max {
            return Err(CallError::Full);
        }
        let call = state.call_next;
        let outgoing = Outgoing { what: Type::Call, class, kind, call, body };
        self.pipe.outbox.borrow_mut().push(outgoing).map_err(|_| CallError::Full)?;
        state.call_next += 1;
        state.calls[class as usize] += 1;
        state.last_call = now;
        state.pending.insert(call, Pending { class, reply });
        Ok(call)
    }

    /// Waits until there is something to say.
    pub async fn work(&self) {
        while self.pipe.outbox.borrow().is_empty() {
            self.pipe.bell.notified().await;
        }
    }

    /// Carries calls and answers until the connection ends; then all calls have ended too.
    pub async fn run(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        keys: Keys,
        liveness: Liveness,
    ) -> Ended {
        add(&self.counters.dialed, 1);
        self.counters.connections.set(self.counters.connections.get() + 1);
        // Also when this future is dropped.
        let _closed = Closed(&self.counters);
        let ended =
            connection::run(stream, keys, &self.pipe, &self.counters, liveness, &mut Caller(self)).await;
        self.fail_all(&ended.to_string());
        ended
    }

    /// An attempt to connect failed: all calls that wait fail, and new ones do for a while.
    pub fn failed(&self, why: String, backoff: &Backoff, random: &mut Xoshiro256PlusPlus) {
        add(&self.counters.dial_failures, 1);
        self.fail_all(&why);
        self.rest(why, backoff, random);
    }

    /// New calls fail for a while.
    fn rest(&self, why: String, backoff: &Backoff, random: &mut Xoshiro256PlusPlus) {
        let mut state = self.state.borrow_mut();
        let pause = backoff.pause(state.failures, random);
        state.failures = state.failures.saturating_add(1);
        state.away = Some((Instant::now() + pause, why));
    }

    /// A connection ended. After one that did not last, new calls fail for a while: who accepts and closes is not to be
    /// dialed for each call.
    pub fn ended(&self, lasted: Duration, why: &str, backoff: &Backoff, random: &mut Xoshiro256PlusPlus) {
        if lasted >= GOOD {
            self.state.borrow_mut().failures = 0;
        } else {
            self.rest(why.to_owned(), backoff, random);
        }
    }

    /// The peer was heard of: the next call tries at once.
    pub fn heard_of(&self) {
        let mut state = self.state.borrow_mut();
        state.away = None;
        state.failures = 0;
    }

    /// Ends all calls. Nothing of them is sent any more.
    pub fn fail_all(&self, why: &str) {
        self.pipe.outbox.borrow_mut().clear();
        let mut state = self.state.borrow_mut();
        state.calls = [0; 3];
        for (_, pending) in std::mem::take(&mut state.pending) {
            // Who called may have gone.
            let _ = pending.reply.send(Err(CallError::Unreachable(why.to_owned())));
        }
    }
}

/// Takes a call back when nobody waits for it any more.
struct GivenUp<'a> {
    link: &'a Link,
    class: Class,
    call: u64,
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        let mut state = self.link.state.borrow_mut();
        if state.pending.remove(&self.call).is_some() {
            state.calls[self.class as usize] -= 1;
            self.link.pipe.outbox.borrow_mut().cancel(self.class, self.call);
        }
    }
}

/// Counts a connection as closed.
pub(super) struct Closed<'a>(pub &'a PeerCounters);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
    }
}

/// The end of a connection that called.
struct Caller<'a>(&'a Link);

impl Handler for Caller<'_> {
    fn wanted(&mut self, header: &Header) -> bool {
        let fits = header.what != Type::Refusal || header.body_len <= REFUSAL_MAX;
        fits && self.0.state.borrow().pending.contains_key(&header.call)
    }

    fn on_message(&mut self, message: Message) -> Result<(), FrameError> {
        let is_answer = match message.what {
            Type::Answer => true,
            Type::Refusal => false,
            _ => return Err(FrameError::Unknown),
        };
        let Some(body) = message.body else { return Ok(()) };
        let mut state = self.0.state.borrow_mut();
        let Some(pending) = state.pending.remove(&message.call) else { return Ok(()) };
        state.calls[pending.class as usize] -= 1;
        let answer = if is_answer {
            Ok(body)
        } else {
            Err(CallError::Refused(String::from_utf8_lossy(&body).into_owned()))
        };
        // Who called may have gone.
        let _ = pending.reply.send(answer);
        Ok(())
    }

    fn is_idle(&self) -> bool {
        let state = self.0.state.borrow();
        state.pending.is_empty() && state.last_call.elapsed() >= self.0.idle_max
    }
}

/// How long to leave a peer alone after failed attempts: doubling, and half of it at random, so that those whom one
/// failure cut off do not all come back at the same moment.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub first: Duration,
    pub max: Duration,
}

impl Backoff {
    fn pause(&self, failures: u32, random: &mut Xoshiro256PlusPlus) -> Duration {
        let full = self.first.saturating_mul(1 << failures.min(20)).min(self.max);
        let nanos = u64::try_from(full.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(nanos / 2 + random.next_u64() % (nanos / 2 + 1))
    }
}
