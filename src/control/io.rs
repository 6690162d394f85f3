//! What goes into [`super::Control`] and what comes out of it: the contract with its driver.

use std::sync::Arc;
use std::time::Duration;

use highwater_shards::ids::{NodeId, PartitionId, RegistrationEpoch, Revision, ShardId};
use highwater_shards::mail::{FromControl, ToControl};
use highwater_shards::time::Instant;

use super::liveness::{Heard, Hint};
use super::metadata::command::Entry;
use super::metadata::image::{Image, Incarnation};
use super::request::{Reply, Request};

/// A proposal of this node in this life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ProposalId(pub u64);

/// One write to the store of local placements.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KeepId(pub u64);

/// A request that came from this process rather than through a shard; chosen by the driver.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LocalId(pub u64);

/// Which shard is to own a partition, or that none is any more.
pub type Placements = Vec<(PartitionId, Option<ShardId>)>;

#[derive(Debug)]
pub enum Input {
    /// The instant that `poll_timeout` named has come.
    Timeout,
    FromShard {
        shard: ShardId,
        message: ToControl<Request>,
    },
    /// The next entry of the metadata log; in order, each once, whoever proposed it.
    Committed {
        revision: Revision,
        /// Set when this node proposed it in this life.
        proposal: Option<ProposalId>,
        entry: Entry,
    },
    /// The entry is not in the log and will not come.
    ProposalFailed {
        proposal: ProposalId,
        reason: String,
    },
    /// The whole image, from a snapshot that took the place of entries which this node never saw; never an older one
    /// than the node has. Placements on shards are no part of it. A proposal that is under way is still answered: with
    /// [`Input::ProposalFailed`] when it is not known whether its entry is part of the snapshot, which is the one case
    /// in which an entry may have come about nevertheless.
    Image(Box<Image>),
    /// Who leads the metadata log now, as far as this node knows; told at each change.
    Leadership {
        term: u64,
        leader: Option<NodeId>,
    },
    /// Until when this node may lead partitions without hearing more (see [`super::lease`]).
    Lease {
        until: Instant,
    },
    /// The node has come into a cluster; told once, before anything is committed.
    ClusterId(Arc<str>),
    /// The membership protocol says something of a node. It decides nothing by itself.
    Hint(Hint),
    /// Told regularly on the node that leads the metadata log, and soon after a hint of a death.
    Heard(Heard),
    /// A placement is durable.
    Kept {
        id: KeepId,
    },
    KeepFailed {
        id: KeepId,
        reason: String,
    },
    /// A request of this process.
    Local {
        id: LocalId,
        request: Request,
    },
    /// Give leaderships away, then stop all shards; ends with [`Output::Stopped`].
    Stop {
        deadline: Duration,
    },
}

#[derive(Debug)]
pub enum Output {
    /// Answered by [`Input::Committed`] or [`Input::ProposalFailed`].
    Propose {
        proposal: ProposalId,
        entry: Entry,
    },
    ToShard {
        shard: ShardId,
        message: FromControl<Arc<Image>, Reply>,
    },
    /// Make durable which shard owns a partition, or that none does any more. All of it or nothing.
    Keep {
        id: KeepId,
        changes: Vec<(PartitionId, Option<ShardId>)>,
    },
    LocalReply {
        id: LocalId,
        reply: Reply,
    },
    /// Every shard has its partitions: clients can be served. Once.
    Ready,
    /// Every shard stopped, but for those that are late. Once. With `clean`, everything of this life is flushed: make
    /// that durable, and let the next life register with it.
    Stopped {
        late: Vec<ShardId>,
        clean: Option<RegistrationEpoch>,
    },
    /// The node cannot go on.
    Fatal(ControlFatal),
}

/// Why the node cannot go on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlFatal {
    #[error("the cluster refused this node: {0}")]
    RegistrationRefused(String),
    #[error("this node was removed from the cluster")]
    Removed,
    #[error(
        "this node registered again, as incarnation {}: another process runs as this node, or its data directory was \
         copied", incarnation.0
    )]
    Superseded { incarnation: Incarnation },
    #[error(
        "shard {first} and shard {second} both hold records of partition {partition}: the files of the data \
         directory do not belong together. Restore all of them from one copy"
    )]
    HeldTwice { partition: PartitionId, first: ShardId, second: ShardId },
}
