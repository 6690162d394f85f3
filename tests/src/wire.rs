//! The client protocol as the simulator needs it: what a client says and hears, whatever bytes carry it.
//!
//! A second protocol is put in by a second [`Wire`]; the workload and the checkers stay as they are.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use highwater_shards::front::Front;
use highwater_shards::ids::{Offset, PartitionId, ProducerEpoch, ProducerId, Revision, ShardId};
use highwater_shards::mail::{Acks, Assignment, Locate, PartitionError};

/// What a client asks of the node.
#[derive(Clone, Debug)]
pub enum Call {
    Append {
        partition: PartitionId,
        acks: Acks,
        timeout: Duration,
        records: Bytes,
    },
    Read(ReadCall),
    Locate {
        partition: PartitionId,
        at: Locate,
    },
    /// An idempotent producer's id and epoch.
    NewProducer,
}

#[derive(Clone, Copy, Debug)]
pub struct ReadCall {
    pub partition: PartitionId,
    pub offset: Offset,
    pub bytes_max: u32,
    /// Wait until so many bytes are there.
    pub bytes_min: u32,
    pub wait: Duration,
    /// Whether a replica that follows may answer, where the protocol can say so.
    pub from_follower: bool,
}

impl Call {
    /// Whether the node answers at all.
    pub fn is_answered(&self) -> bool {
        !matches!(self, Self::Append { acks: Acks::None, .. })
    }

    /// The longest time that the call itself allows the node to take.
    pub fn patience(&self) -> Duration {
        match self {
            Self::Append { timeout, .. } => *timeout,
            Self::Read(read) => read.wait,
            Self::Locate { .. } | Self::NewProducer => Duration::ZERO,
        }
    }
}

/// What a client hears: the answer to the oldest call of its connection that is to be answered.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Of the call that this answers, as the client numbered it.
    pub correlation: u32,
    /// Of the image that the session saw, where the protocol shows it.
    pub revision: Option<Revision>,
    pub said: Said,
}

#[derive(Clone, Debug)]
pub enum Said {
    Appended(Result<Offset, PartitionError>),
    Read(Result<ReadSaid, PartitionError>),
    Located(Result<Option<Offset>, PartitionError>),
    Producer(ProducerId, ProducerEpoch),
}

#[derive(Clone, Debug)]
pub struct ReadSaid {
    pub high_watermark: Offset,
    pub log_start: Offset,
    /// Whole record batches, one after the other.
    pub records: Bytes,
}

/// The committed metadata, as the scripted control core has it.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    pub revision: Revision,
    pub partitions: BTreeMap<PartitionId, (ShardId, Assignment)>,
}

/// One client protocol: its front in the shards, and the client's end of it.
pub trait Wire: 'static {
    type Front: Front;

    fn front(&self) -> Self::Front;

    fn view(&self, metadata: &Arc<Metadata>) -> <Self::Front as Front>::View;

    /// Answers what a session asked of the control core. `producer` is an id that nobody had before.
    fn answer(
        &self,
        request: <Self::Front as Front>::Request,
        producer: ProducerId,
    ) -> <Self::Front as Front>::Reply;

    /// One frame without its length prefix.
    fn encode(&self, call: &Call, correlation: u32) -> Bytes;

    /// Reads one frame without its length prefix, the answer to `call`.
    fn decode(&self, call: &Call, frame: Bytes) -> Result<Heard, String>;
}
