//! How nodes talk to each other: calls with answers, between peers that have proven who they are.
//!
//! Driver; everything here runs on the control core's thread, inside a `LocalSet`. This file is the seam: those who call
//! ([`Network`]) and those who answer ([`Incoming`]) know nothing of sockets, so that a test puts a network of its own
//! in its place, and TLS or QUIC come in below. No rule of any protocol above is decided here.

pub mod auth;
pub mod body;
mod frame;
mod outbox;
pub mod peers;
mod refusals;
pub mod stats;

use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use highwater_shards::ids::NodeId;
use tokio::sync::oneshot;

use auth::{PeerIdentity, Refusal};

/// Bytes of one body at most, a call's or an answer's. What is larger is cut by its sender.
pub const BODY_MAX: usize = 8 * 1024 * 1024;
/// Bytes of the reason of a refusal at most; what is longer is cut.
pub const REFUSAL_MAX: usize = 512;

/// How urgent a call is: each class has its own queue, and a higher one is never held up by a lower one's bytes for
/// longer than one chunk of 64 KiB at most.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Class {
    /// Votes and heartbeats.
    Urgent,
    Append,
    /// Snapshots.
    Bulk,
}

impl Class {
    /// From the most urgent down.
    pub const ALL: [Self; 3] = [Self::Urgent, Self::Append, Self::Bulk];

    pub fn name(self) -> &'static str {
        match self {
            Self::Urgent => "urgent",
            Self::Append => "append",
            Self::Bulk => "bulk",
        }
    }
}

/// Calls to other nodes. Used on one thread; its futures need not be `Send`. A clone is another handle of the same
/// network.
pub trait Network: Clone + 'static {
    /// Calls a node and waits for its answer, for `deadline` at most. Whoever drops the future gives the call up; the
    /// peer may have run it all the same.
    fn call(
        &self,
        to: NodeId,
        class: Class,
        kind: u16,
        body: Bytes,
        deadline: Duration,
    ) -> impl Future<Output = Result<Bytes, CallError>>;
}

/// Why a call has no answer. Only [`CallError::Refused`] says that the peer saw it; after all others it may or may not
/// have run, except where the variant says that it did not.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// Both ends have proven who they are, and one of them refused to go on. It was not sent.
    #[error("{why}")]
    Rejected { refusal: Refusal, why: String },
    #[error("no answer in time")]
    TimedOut,
    /// It was not sent.
    #[error("a body of {len} bytes, above the limit of {max}: cut it into several calls")]
    TooLarge { len: usize, max: usize },
    /// It was not sent.
    #[error("too many calls wait for this peer already; try again later")]
    Full,
    #[error("refused by the peer: {0}")]
    Refused(String),
}

/// A call of a peer whose identity was proven. Dropping it without an answer answers "refused".
pub struct Incoming {
    pub from: NodeId,
    pub kind: u16,
    pub body: Bytes,
    peer: Option<Rc<PeerIdentity>>,
    reply: Option<Reply>,
}

/// Where an answer, or the reason of a refusal, goes.
type Reply = Box<dyn FnOnce(Result<Bytes, String>)>;

impl Incoming {
    /// A call, and where its answer comes out; for a [`Network`] within one process.
    pub fn new(from: NodeId, kind: u16, body: Bytes) -> (Self, oneshot::Receiver<Result<Bytes, String>>) {
        let (reply, answered) = oneshot::channel();
        let reply: Reply = Box::new(move |answer| {
            // Who called may have gone.
            let _ = reply.send(answer);
        });
        (Self { from, kind, body, peer: None, reply: Some(reply) }, answered)
    }

    /// Everything that the peer has proven about itself; `None` within one process.
    pub fn peer(&self) -> Option<&PeerIdentity> {
        self.peer.as_deref()
    }

    pub fn answer(mut self, body: Bytes) {
        self.finish(Ok(body));
    }

    /// `why` is for people; the caller gets it as [`CallError::Refused`].
    pub fn refuse(mut self, why: &str) {
        self.finish(Err(why.to_owned()));
    }

    fn finish(&mut self, answer: Result<Bytes, String>) {
        if let Some(reply) = self.reply.take() {
            reply(answer);
        }
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, kind, body, .. } = self;
        write!(f, "call {kind:#06x} of node {from}, {} bytes", body.len())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.finish(Err("the call was dropped without an answer".to_owned()));
    }
}
