//! The seam between a shard and the client protocol that is put in from above.
//!
//! Floor 2, pure. A shard keeps one session per client connection and hands it frames, answers and timeouts; the
//! session says what it wants through [`Cx`]. A session lives on the core that its connection came to and never
//! touches a partition itself: partitions are reached by operations, wherever they live.

use std::fmt::Debug;
use std::net::SocketAddr;

use bytes::Bytes;

use crate::ids::{ConnId, PartitionId, ShardId};
use crate::mail::{Answer, Op, Token};
use crate::stats::FrontStats;
use crate::time::Instant;

/// A client protocol.
pub trait Front: Sized + 'static {
    /// The state of one connection.
    type Session;
    /// The immutable image of the cluster, cheap to clone; swapped whole.
    type View: Clone + Debug + Send + 'static;
    /// What a session asks of the control core.
    type Request: Debug + Send + 'static;
    /// What the control core answers.
    type Reply: Debug + Send + 'static;

    fn open(&mut self, cx: &mut Cx<'_, Self>, peer: SocketAddr) -> Self::Session;

    /// One whole frame without its length prefix. Every frame is answered once, in order, or the connection closes.
    fn on_frame(&mut self, cx: &mut Cx<'_, Self>, session: &mut Self::Session, frame: Bytes);

    /// The answer to an operation. One whose token the session no longer waits for is dropped by it.
    fn on_answer(&mut self, cx: &mut Cx<'_, Self>, session: &mut Self::Session, token: Token, answer: Answer);

    fn on_reply(
        &mut self,
        cx: &mut Cx<'_, Self>,
        session: &mut Self::Session,
        token: Token,
        reply: Self::Reply,
    );

    /// A timer that the session set with [`Act::SetTimer`] fired.
    fn on_timeout(&mut self, cx: &mut Cx<'_, Self>, session: &mut Self::Session, token: Token);

    /// The connection is gone: end what the session still waits for (watches); nothing can be sent any more.
    fn on_closed(&mut self, cx: &mut Cx<'_, Self>, session: &mut Self::Session);

    /// Requests of this connection that were taken in and not yet answered; the shard stops reading from the
    /// connection at its bound.
    fn in_flight(&self, session: &Self::Session) -> usize;

    /// The shard of this node that owns its replica of a partition, for peers that came to another one. The default is
    /// for a node with one shard: it knows of none.
    #[expect(unused_variables, reason = "named for those who implement it")]
    fn local_shard(view: &Self::View, partition: PartitionId) -> Option<ShardId> {
        None
    }

    /// What the protocol counted on this shard since its start.
    fn stats(&self) -> FrontStats {
        FrontStats::default()
    }
}

/// What a session sees and says during one call.
#[derive(Debug)]
pub struct Cx<'a, F: Front> {
    pub now: Instant,
    pub shard: ShardId,
    pub conn: ConnId,
    pub view: &'a F::View,
    /// Done by the shard in this order after the call returns.
    pub acts: &'a mut Vec<Act<F>>,
}

/// What a session wants done.
#[derive(Debug)]
pub enum Act<F: Front> {
    Submit {
        shard: ShardId,
        partition: PartitionId,
        token: Token,
        op: Op,
    },
    Ask {
        token: Token,
        request: F::Request,
    },
    /// Bytes for the client, in parts that are written one after the other without being copied.
    Send {
        parts: Vec<Bytes>,
    },
    SetTimer {
        token: Token,
        at: Instant,
    },
    CancelTimer {
        token: Token,
    },
    /// Close once what was sent before is out (bounded by the idle timeout).
    Close {
        reason: CloseReason,
    },
}

impl<F: Front> Cx<'_, F> {
    pub fn submit(&mut self, shard: ShardId, partition: PartitionId, token: Token, op: Op) {
        self.acts.push(Act::Submit { shard, partition, token, op });
    }

    pub fn ask(&mut self, token: Token, request: F::Request) {
        self.acts.push(Act::Ask { token, request });
    }

    pub fn send(&mut self, parts: Vec<Bytes>) {
        self.acts.push(Act::Send { parts });
    }

    pub fn set_timer(&mut self, token: Token, at: Instant) {
        self.acts.push(Act::SetTimer { token, at });
    }

    pub fn cancel_timer(&mut self, token: Token) {
        self.acts.push(Act::CancelTimer { token });
    }

    pub fn close(&mut self, reason: CloseReason) {
        self.acts.push(Act::Close { reason });
    }
}

/// Why the node closed a connection; counted by reason.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum CloseReason {
    /// The peer closed it or the network broke it.
    Peer,
    /// Nothing moved for the idle timeout.
    Idle,
    /// A frame announced more than the limit, or a negative length.
    FrameTooLarge,
    /// The frame could not be read as a request.
    Malformed,
    /// A produce that asked for no answer failed, and closing is the only way to say so.
    UnansweredError,
    /// The node's bound on connections is reached.
    TooMany,
    /// The shard is stopping.
    Stopping,
    /// Of a peer: a newer connection took its place, or nothing is followed over it any more.
    Superseded,
    /// Of a peer: it belongs to a life of that node which is over.
    StalePeer,
}
