//! The bodies of the calls between nodes of the group.
//!
//! Pure. Wire formats: a new field is a new schema. Bodies are in postcard's encoding, within an envelope with its
//! checksum: an append is mostly the opaque bytes of its entries, which every encoding copies alike. Public for who
//! looks at what travels: the simulator's checkers.

use bytes::Bytes;
use highwater_shards::ids::NodeId;
pub use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, TransferLeaderResponse, VoteRequest,
    VoteResponse,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::types::{Payload, TypeConfig, Vote};
use crate::control::metadata::envelope::{self, EnvelopeError, Schema};

/// What a call asks for.
pub const APPEND: u16 = 0x0101;
pub const VOTE: u16 = 0x0102;
pub const PRE_VOTE: u16 = 0x0103;
pub const SNAPSHOT_CHUNK: u16 = 0x0104;
pub const TRANSFER_LEADER: u16 = 0x0105;
pub const PROPOSE: u16 = 0x0301;

/// Added to the kind of a question for that of its answer.
const ANSWER: u16 = 0x0080;

/// A body that travels.
pub trait Body: Serialize + DeserializeOwned {
    const NAME: &'static str;
    type Answer: Serialize + DeserializeOwned;
}

impl Body for AppendEntriesRequest<TypeConfig> {
    const NAME: &'static str = "append";
    type Answer = AppendEntriesResponse<TypeConfig>;
}

impl Body for VoteRequest<TypeConfig> {
    const NAME: &'static str = "vote";
    type Answer = VoteResponse<TypeConfig>;
}

impl Body for TransferLeaderRequest<TypeConfig> {
    const NAME: &'static str = "leader transfer";
    type Answer = TransferLeaderResponse<TypeConfig>;
}

impl Body for Chunk {
    const NAME: &'static str = "snapshot chunk";
    type Answer = ChunkAnswer;
}

impl Body for Propose {
    const NAME: &'static str = "proposal";
    type Answer = ProposeAnswer;
}

/// A part of a snapshot.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Chunk {
    pub vote: Vote,
    /// Tells the sender's transfers apart.
    pub transfer: u64,
    /// Of the whole snapshot.
    pub len: u64,
    /// CRC-32C of the whole snapshot.
    pub crc: u32,
    pub offset: u64,
    pub bytes: Bytes,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum ChunkAnswer {
    /// Send what stands here.
    Next(u64),
    /// The last part was this one: the snapshot is installed, or was not needed. With the receiver's vote.
    Done(Vote),
    /// The receiver has a later vote than the sender's.
    HigherVote(Vote),
    /// Another snapshot is being received or installed.
    Busy,
    /// What came is damaged, or cannot be stored.
    Failed(String),
    /// A part of the same transfer is being stored, or all of it installed: ask again.
    Working,
}

/// A proposal for the leader. It has to be tagged.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Propose(pub Payload);

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ProposeAnswer {
    /// It is in the log and was applied by the leader.
    Applied,
    /// It did not come into the log by this call: the answerer does not lead. Who does, as far as it knows.
    NotLeader(Option<NodeId>),
    /// It did not come into the log by this call, for this reason; again later.
    NotTaken(String),
    /// It may be in the log or not.
    Unknown,
}

fn schema<B: Body>(kind: u16) -> Schema {
    Schema { name: B::NAME, kind, schema: 1 }
}

pub fn encode<B: Body>(kind: u16, body: &B) -> Bytes {
    envelope::seal(schema::<B>(kind), body).into()
}

pub fn decode<B: Body>(kind: u16, bytes: &[u8]) -> Result<B, EnvelopeError> {
    envelope::open(schema::<B>(kind), bytes)
}

pub fn encode_answer<B: Body>(kind: u16, answer: &B::Answer) -> Bytes {
    envelope::seal(schema::<B>(kind | ANSWER), answer).into()
}

pub fn decode_answer<B: Body>(kind: u16, bytes: &[u8]) -> Result<B::Answer, EnvelopeError> {
    envelope::open(schema::<B>(kind | ANSWER), bytes)
}
