//! What the control core hands to a shard's driver: messages for the shard, and connections to shards of other nodes.
//!
//! Connections between shards are made by the control core, over the one port on which nodes reach each other: it
//! resolves names, dials or accepts, and has both ends prove who they are. Only then the socket comes here, and from then
//! on it is the shard's alone. So a data core never waits for a name, and never meets a stranger.

use std::fmt;
use std::os::fd::OwnedFd;

use crate::front::Front;
use crate::ids::{NodeId, RegistrationEpoch, ShardId};
use crate::mail::FromControl;

/// What the control core tells a shard of this front.
pub type ToShard<F> = FromControl<<F as Front>::View, <F as Front>::Reply>;

/// Control core to the driver of a shard, in order.
pub enum ToDriver<F: Front> {
    Control(ToShard<F>),
    Adopt(Adopted),
    /// A connection that the shard asked for could not be had.
    DialFailed {
        node: NodeId,
        shard: ShardId,
    },
}

impl<F: Front> fmt::Debug for ToDriver<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control(message) => message.fmt(f),
            Self::Adopt(adopted) => adopted.fmt(f),
            Self::DialFailed { node, shard } => write!(f, "no connection to shard {shard} of node {node}"),
        }
    }
}

/// A connection to a shard of another node, after both ends have proven who they are. See
/// [`crate::shard::PeerInput::Opened`] for its fields.
#[derive(Debug)]
pub struct Adopted {
    /// A stream socket whose next bytes, in both directions, are those of the shards. Blocking or not: the driver sets it
    /// up as it needs it.
    pub socket: OwnedFd,
    pub node: NodeId,
    pub remote_shard: ShardId,
    pub epoch: RegistrationEpoch,
    pub dialed: bool,
}
