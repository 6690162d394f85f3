//! What goes into a shard and what comes out of it: the contract between [`super::Shard`] and its drivers.
//!
//! A driver reads completions, turns them into a batch of inputs, hands each to `handle`, then drains
//! `poll_output` and sleeps until the next completion or `poll_timeout`. The simulator is such a driver.

use std::net::SocketAddr;

use bytes::Bytes;

use crate::front::{CloseReason, Front};
use crate::ids::{ConnId, NodeId, RegistrationEpoch, ShardId};
pub use crate::log::FatalReason;
use crate::log::disk::{DiskEvent, DiskOp};
use crate::mail::{FromControl, ShardMail, ToControl};

#[derive(Debug)]
pub enum Input<F: Front> {
    /// The instant that `poll_timeout` named has come.
    Timeout,
    Control(FromControl<F::View, F::Reply>),
    Mail(ShardMail),
    Client(ClientInput),
    Peer(PeerInput),
    Disk(DiskEvent),
}

/// Events of client connections. The driver owns sockets and cuts the byte stream into frames
/// ([`crate::frame`]).
#[derive(Debug)]
pub enum ClientInput {
    Opened {
        conn: ConnId,
        peer: SocketAddr,
    },
    /// One frame without its length prefix.
    Frame {
        conn: ConnId,
        frame: Bytes,
    },
    /// So many bytes of earlier `Output::Send`s were taken by the kernel.
    Sent {
        conn: ConnId,
        bytes: usize,
    },
    /// The connection is gone, for whatever reason, asked for or not; exactly once per `Opened`, and nothing
    /// of this connection comes after it.
    Closed {
        conn: ConnId,
        reason: CloseReason,
    },
}

/// Events of connections between shards of different nodes, and of the wish for one.
///
/// The driver cuts these streams into frames as it does those of clients ([`crate::frame`]), with
/// [`crate::stream::FRAME_BYTES_MAX`] as the limit. Their ids are of the same space as those of clients, and the outputs
/// are the same. A connection comes to a shard only once it is authenticated, so that strangers never reach a data
/// core.
#[derive(Debug)]
pub enum PeerInput {
    Opened {
        conn: ConnId,
        node: NodeId,
        /// The shard at the other end.
        remote_shard: ShardId,
        /// The registration of the other node, as it proved it when the connection was made: its own when it dialed, that
        /// of the node that took the connection otherwise.
        epoch: RegistrationEpoch,
        /// Whether this shard asked for it ([`ToControl::Dial`]): then this one follows and the other leads.
        dialed: bool,
    },
    /// One frame without its length prefix.
    Frame { conn: ConnId, frame: Bytes },
    /// So many bytes of earlier `Output::Send`s were taken by the kernel.
    Sent { conn: ConnId, bytes: usize },
    /// The connection is gone, for whatever reason, asked for or not; exactly once per `Opened`, and nothing of this
    /// connection comes after it.
    Closed { conn: ConnId, reason: CloseReason },
    /// What [`ToControl::Dial`] asked for could not be had now.
    DialFailed { node: NodeId, shard: ShardId },
}

/// To the driver.
#[derive(Debug)]
pub enum Output<F: Front> {
    Control(ToControl<F::Request>),
    Mail {
        to: ShardId,
        mail: ShardMail,
    },
    /// In order, each part once, to a client or a peer. Confirmed by [`ClientInput::Sent`] or [`PeerInput::Sent`], in
    /// pieces as it goes. Length prefixes are in the parts.
    Send {
        conn: ConnId,
        parts: Vec<Bytes>,
    },
    /// Stop (or go on) taking bytes from this connection. Frames that were cut already may still be delivered.
    Receive {
        conn: ConnId,
        on: bool,
    },
    /// Close: at once when `flush` is false, otherwise after what was sent is out.
    /// [`ClientInput::Closed`] or [`PeerInput::Closed`] follows.
    Close {
        conn: ConnId,
        flush: bool,
        reason: CloseReason,
    },
    Disk(DiskOp),
    /// The shard cannot go on. The driver ends the process with this message; nothing more is answered.
    Fatal(FatalReason),
}
