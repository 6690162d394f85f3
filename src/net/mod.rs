//! Calls between nodes whose identity was proven.
//!
//! Driver. What travels is a kind and a body: 0x01xx is Raft, 0x02xx forming and joining, 0x03xx proposals and
//! administration.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use highwater_shards::ids::NodeId;
use tokio::sync::oneshot;

/// How urgent a call is: each class has its own queue, and a higher one is never held up by a lower one's bytes for
/// longer than one chunk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Class {
    /// Votes and heartbeats.
    Urgent,
    Append,
    /// Snapshots.
    Bulk,
}

/// Why a call has no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    #[error("node {0} cannot be reached: {1}")]
    Unreachable(NodeId, String),
    #[error("no answer in time")]
    TimedOut,
    #[error("the body is too large")]
    TooLarge,
    #[error("refused: {0}")]
    Refused(String),
}

/// Calls other nodes. Used on one thread; futures need not be `Send`.
pub trait Network: Clone + 'static {
    fn call(
        &self,
        to: NodeId,
        class: Class,
        kind: u16,
        body: Bytes,
        deadline: Duration,
    ) -> impl Future<Output = Result<Bytes, CallError>>;
}

/// A call of a peer whose identity was proven. Dropping it without an answer answers "refused".
#[derive(Debug)]
pub struct Incoming {
    pub from: NodeId,
    pub kind: u16,
    pub body: Bytes,
    reply: oneshot::Sender<Result<Bytes, String>>,
}

impl Incoming {
    /// A call and where its answer comes.
    pub fn new(from: NodeId, kind: u16, body: Bytes) -> (Self, oneshot::Receiver<Result<Bytes, String>>) {
        let (reply, answer) = oneshot::channel();
        (Self { from, kind, body, reply }, answer)
    }

    pub fn answer(self, body: Bytes) {
        // Who asked may have gone.
        let _ = self.reply.send(Ok(body));
    }

    pub fn refuse(self, why: &str) {
        let _ = self.reply.send(Err(why.to_owned()));
    }
}
