//! The drivers of a node: what starts it, the loop of its control core, and the admin HTTP. No rule of any protocol
//! is decided here.

mod bell;
pub mod boot;
mod cluster;
mod control_core;
mod data_dir;
mod http;
mod loop_stats;
mod metrics;
mod reshard;
pub mod swim;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use highwater_shards::ids::ShardId;
use highwater_shards::reactor::boot::StartError;
use highwater_shards::shard::FatalReason;
use highwater_shards::stats::ShardStats;
use tokio::sync::oneshot;

use crate::control::membership::change::{Change, Changed};
use crate::control::metadata::image::Image;
use crate::control::request::{Reply, Request};
use crate::control::{ControlFatal, ControlStats};
use crate::error::{ExitStatus, Failure};
use crate::net::stats::NetStats;
use crate::raft::{RaftError, RaftStats, Status};
use crate::store::StoreError;

pub use cluster::{GossipView, KeyChange, KeySecret, MemberInfo};
pub use data_dir::DataDirError;
pub use loop_stats::LoopStats;

/// Commands that wait for the control core at most; further ones wait in their senders.
pub const COMMANDS_MAX: usize = 64;

/// What the rest of the process asks of the control core.
#[derive(Debug)]
pub enum Command {
    Request {
        request: Request,
        reply: oneshot::Sender<Reply>,
    },
    Snapshot {
        reply: oneshot::Sender<Snapshot>,
    },
    /// An operator's wish about the members of the cluster.
    Cluster {
        change: Change,
        reply: oneshot::Sender<Changed>,
    },
    /// Changes the keys of gossip on this node; the words are for whoever asked.
    Keys {
        change: KeyChange,
        reply: oneshot::Sender<Result<String, String>>,
    },
    /// A clean end: nothing new is taken, everything is flushed, connections close.
    Stop,
}

/// The node at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub ready: bool,
    pub image: Arc<Image>,
    pub control: ControlStats,
    /// How prompt the control core is.
    pub control_loop: LoopStats,
    /// Absent in tests only.
    pub raft: Option<(Status, RaftStats)>,
    /// While the node is in no cluster: what it waits for.
    pub forming: Option<String>,
    /// What the connections to other nodes count; `None` for a node that stands alone.
    pub net: Option<NetStats>,
    /// The members as gossip shows them; `None` for a node that stands alone, or is in no cluster yet.
    pub gossip: Option<GossipView>,
    /// By shard; `None` for one that did not answer in time.
    pub shards: Vec<(ShardId, Option<ShardStats>)>,
}

/// Why a node did not start, or ended otherwise than by being told to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Raft(#[from] RaftError),
    #[error(transparent)]
    Shards(#[from] StartError),
    #[error("cannot serve metrics and health on {address}: {reason}; choose another `admin.addr`, or `none`")]
    Admin { address: SocketAddr, reason: String },
    #[error("cannot listen for other nodes on {address}: {reason}; choose another `cluster.cluster_addr`")]
    Peers { address: SocketAddr, reason: String },
    #[error(
        "cannot take gossip of other nodes on UDP {address}: {reason}; choose another `cluster.swim.port`, the same on \
         all nodes, or another `cluster.cluster_addr`"
    )]
    Gossip { address: SocketAddr, reason: String },
    #[error("the secret of the cluster: {0}")]
    Secret(String),
    #[error(transparent)]
    Forming(crate::control::forming::Fatal),
    #[error(
        "this node shares cluster {cluster} with {others} other nodes: start it with `cluster.mode: cluster`, or remove the \
         others first (`highwater cluster remove`)"
    )]
    NotAlone { cluster: String, others: usize },
    #[error("the operating system did not give what the node needs: {0}")]
    Resources(String),
    #[error("shard {shard}: {reason}")]
    Shard { shard: ShardId, reason: FatalReason },
    #[error("shard {shard} ended by a bug; please report what is in the log")]
    ShardPanicked { shard: ShardId },
    #[error(transparent)]
    Control(ControlFatal),
    #[error("these shards did not stop in time, what they had not flushed may be lost: {0:?}")]
    Late(Vec<ShardId>),
    #[error(
        "the logs could not be given to another number of shards: {0}. Start with as many shards as before, or correct \
         that and start again: nothing is lost"
    )]
    Reshard(String),
    #[error(
        "{}: there are logs of partitions, but the metadata that says what they are is new: restore {} from the copy \
         that the logs belong to, or move the logs away", path.display(), crate::store::FILE_NAME
    )]
    LogsWithoutMetadata { path: PathBuf },
    #[error("the control core ended by a bug; please report what is in the log")]
    ControlPanicked,
}

impl NodeError {
    pub fn exit_status(&self) -> ExitStatus {
        match self {
            Self::DataDir(_)
            | Self::Shards(_)
            | Self::Admin { .. }
            | Self::Peers { .. }
            | Self::Gossip { .. }
            | Self::Resources(_) => ExitStatus::Environment,
            Self::Store(
                StoreError::OtherNode { .. } | StoreError::OtherCluster { .. } | StoreError::OtherLog { .. },
            )
            | Self::Control(ControlFatal::RegistrationRefused(_))
            | Self::Control(ControlFatal::Removed)
            | Self::Secret(_)
            | Self::Forming(_)
            | Self::NotAlone { .. }
            | Self::LogsWithoutMetadata { .. } => ExitStatus::Refused,
            Self::Store(_)
            | Self::Raft(_)
            | Self::Reshard(_)
            | Self::Shard { .. }
            | Self::Control(_)
            | Self::Late(_) => ExitStatus::Storage,
            Self::ShardPanicked { .. } | Self::ControlPanicked => ExitStatus::Storage,
        }
    }
}

impl From<NodeError> for Failure {
    fn from(error: NodeError) -> Self {
        Self::new(error.exit_status(), error.to_string())
    }
}
