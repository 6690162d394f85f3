//! What two shards of different nodes say to each other while one follows partitions that the other leads: messages and
//! their bytes. Floor 1, pure; it knows nothing of partitions' states.
//!
//! A stream is one connection, made by the follower. A frame ([`crate::frame`]) is messages one after the other, each its
//! kind (one byte) and its fields (big-endian); a stream begins with a frame of each side whose only message is its
//! [`Hello`]. Subscriptions have handles, which the follower chooses and never uses twice on a stream, so that what
//! belongs to one that is over is known by its handle and dropped (R22).
//!
//! ```text
//! Hello        0   magic u32, version u16, batch_bytes_max u32
//! Subscribe    1   handle u32, topic u128, partition u32, leader_epoch u32, offset u64, last_epoch i32 (-1: none)
//! Unsubscribe  2   handle u32
//! Ack          3   handle u32, log_start u64, log_end u64, flushed_end u64
//! Credit       4   bytes u32
//! Accepted    16   handle u32, leader_epoch u32, high_watermark u64, log_start u64
//! Diverging   17   handle u32, epoch u32, end u64
//! Refused     18   handle u32, reason u8, a u64, b u64
//! Records     19   handle u32, leader_epoch u32, high_watermark u64, log_start u64, len u32, so many bytes of batches
//! Watermark   20   handle u32, high_watermark u64, log_start u64
//! ```
//!
//! Decoding allocates nothing: messages are read one by one where they lie, and record bytes share the frame's memory.
//! Nothing that a peer sends can make it panic.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

use bytes::Bytes;

use crate::ids::{LeaderEpoch, Offset, PartitionId, ShardId};

pub use decode::{Message, Messages};
pub use encode::Encoder;

/// The largest frame that a peer may send: a driver's limit. Shards keep theirs far smaller, unless one batch alone is
/// larger.
pub const FRAME_BYTES_MAX: u32 = 128 * 1024 * 1024;

/// A frame that has come to so many bytes is sent; the next message begins another one.
pub const FRAME_BYTES_WANTED: usize = 1024 * 1024;

/// The version of this protocol. A peer of another one is refused.
pub const VERSION: u16 = 1;

/// The first bytes of a stream.
const MAGIC: u32 = 0x4857_5253;

/// The follower's name for one subscription of one stream.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Handle(pub u32);

/// The first message of either side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    pub version: u16,
    /// The largest batch that the node stores: the same all over a cluster, or a follower could not keep what a leader took.
    pub batch_bytes_max: u32,
}

/// Where a follower stands with a partition (the fetch of R19).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Subscribe {
    pub handle: Handle,
    pub partition: PartitionId,
    pub leader_epoch: LeaderEpoch,
    /// The end of the follower's log, where records are to go on.
    pub offset: Offset,
    /// Of the last record of the follower's log; `None` without records.
    pub last_epoch: Option<LeaderEpoch>,
}

/// How far a follower has come with a subscription.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ack {
    pub handle: Handle,
    /// `log_start <= log_end`, `flushed_end <= log_end`.
    pub log_start: Offset,
    pub log_end: Offset,
    pub flushed_end: Offset,
}

/// Follower to leader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FromFollower {
    Hello(Hello),
    Subscribe(Subscribe),
    Unsubscribe {
        handle: Handle,
    },
    Ack(Ack),
    /// So many more record bytes may be sent.
    Credit {
        bytes: u32,
    },
}

/// Why there is no such subscription.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The node does not lead the partition, or not any more, or not yet.
    NotLeader,
    /// The follower's leader epoch is over.
    FencedEpoch,
    /// The follower knows of a leader epoch that the leader does not know yet.
    UnknownEpoch,
    /// The leader does not know the follower as a replica, or not in this life.
    NotReplica,
    /// Not now: the node stops, may not lead for the moment, or could not read its log.
    Unavailable,
    /// Another shard of the same node owns the partition.
    Moved { shard: ShardId },
    /// The follower's log does not meet the leader's.
    OutOfRange { start: Offset, end: Offset },
}

/// What a leader says of a partition beside its records: `log_start <= high_watermark`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends {
    pub high_watermark: Offset,
    pub log_start: Offset,
}

/// Leader to follower.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FromLeader {
    Hello(Hello),
    /// Records follow from the subscription's offset on.
    Accepted {
        handle: Handle,
        leader_epoch: LeaderEpoch,
        ends: Ends,
    },
    /// The logs part at or before where the largest common epoch ends; there is no subscription (R19-R21).
    Diverging {
        handle: Handle,
        epoch: LeaderEpoch,
        end: Offset,
    },
    /// There is no subscription, or it is over.
    Refused {
        handle: Handle,
        reason: Refusal,
    },
    Records {
        handle: Handle,
        leader_epoch: LeaderEpoch,
        ends: Ends,
        /// Whole batches as the leader stores them, in order and without a gap.
        batches: Bytes,
    },
    Watermark {
        handle: Handle,
        ends: Ends,
    },
}

/// A peer does not speak this protocol; its connection is to be closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    #[error("the frame ends within a message")]
    CutShort,
    #[error("message kind {0} is unknown, or none of this side")]
    UnknownKind(u8),
    #[error("refusal {0} is unknown")]
    UnknownRefusal(u8),
    #[error("the stream does not begin as one of shards does")]
    NotAStream,
    #[error(
        "the peer speaks version {0} of this protocol, and this node {VERSION}; run the same release on all nodes"
    )]
    Version(u16),
    #[error("a value of the message cannot be: {0}")]
    Impossible(&'static str),
}
