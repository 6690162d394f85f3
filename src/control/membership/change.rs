//! What an operator asks of a cluster's members, and the answer; also as bytes, for the node that leads.
//!
//! Pure.

use highwater_shards::ids::NodeId;
use serde::{Deserialize, Serialize};

use crate::control::metadata::envelope::{EnvelopeError, Schema, open, seal};
use crate::control::metadata::image::Endpoint;

/// A [`Change`] for the leader, answered with a [`Changed`].
pub const CALL_CHANGE: u16 = 0x0302;

const CHANGE: Schema = Schema { name: "change of the members", kind: 0x0302, schema: 1 };
const CHANGED: Schema = Schema { name: "answer to a change of the members", kind: 0x0303, schema: 1 };

/// Asking for the same again does no harm. New variants are added at the end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Change {
    /// Of a node that is in no cluster: join the one that this node is in.
    JoinThrough(Endpoint),
    /// Take the node out; it goes step by step, and whoever wants to know asks until it is gone.
    Remove(NodeId),
    /// Let this voter lead, or any other than the one that leads.
    TransferLeader(Option<NodeId>),
    /// As `Remove`, of a node that is dead: replicas that it holds go with it where others remain.
    RemoveByForce(NodeId),
}

/// What has been done, in words; or why nothing was.
pub type Changed = Result<String, Unchanged>;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{why}")]
pub struct Unchanged {
    pub why: String,
    /// It may work later: no leader, another change under way.
    pub try_again: bool,
}

impl Unchanged {
    pub fn refused(why: impl Into<String>) -> Self {
        Self { why: why.into(), try_again: false }
    }

    pub fn not_now(why: impl Into<String>) -> Self {
        Self { why: why.into(), try_again: true }
    }
}

pub fn encode_change(change: &Change) -> Vec<u8> {
    seal(CHANGE, change)
}

/// # Errors
/// When the bytes are not a change.
pub fn decode_change(bytes: &[u8]) -> Result<Change, EnvelopeError> {
    open(CHANGE, bytes)
}

pub fn encode_changed(changed: &Changed) -> Vec<u8> {
    seal(CHANGED, changed)
}

/// # Errors
/// When the bytes are not an answer to a change.
pub fn decode_changed(bytes: &[u8]) -> Result<Changed, EnvelopeError> {
    open(CHANGED, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_and_their_answers_come_back_from_bytes() {
        let through = Endpoint { host: "n1".into(), port: 9093 };
        for change in [
            Change::JoinThrough(through),
            Change::Remove(NodeId(7)),
            Change::RemoveByForce(NodeId(7)),
            Change::TransferLeader(None),
            Change::TransferLeader(Some(NodeId(0))),
        ] {
            let bytes = encode_change(&change);
            assert_eq!(decode_change(&bytes), Ok(change));
            assert!(decode_changed(&bytes).is_err());
        }
        for changed in [Ok("done".to_owned()), Err(Unchanged::refused("no")), Err(Unchanged::not_now("wait"))]
        {
            assert_eq!(decode_changed(&encode_changed(&changed)), Ok(changed));
        }
    }
}
