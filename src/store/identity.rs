//! Who the node is, as its data directory says.

use highwater_shards::ids::NodeId;
use serde::{Deserialize, Serialize};

use crate::control::metadata::envelope::Schema;
use crate::control::metadata::image::Incarnation;
use crate::raft::DiskId;

pub(super) const IDENTITY: Schema = Schema { name: "node identity", kind: 3, schema: 2 };

/// A file format: a new field is a new schema.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    pub cluster_id: String,
    pub node: NodeId,
    /// Of the current life; grows by one at each start, before anything else is done.
    pub incarnation: Incarnation,
    /// The disk that the Raft log of this data directory was made for.
    pub disk: DiskId,
}

/// 16 bytes as Kafka writes ids: base64 with the alphabet for URLs, without padding.
pub(super) fn cluster_id(entropy: [u8; 16]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bits = u128::from_be_bytes(entropy);
    // 22 digits of 6 bits hold 132: the last one has four zero bits behind its two.
    let digit = |at: u32| match at {
        21 => (bits << 4) & 63,
        _ => (bits >> (122 - 6 * at)) & 63,
    };
    (0..22).map(|at| char::from(ALPHABET[usize::try_from(digit(at)).expect("6 bits")])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_ids_are_written_as_kafka_writes_them() {
        assert_eq!(cluster_id([0; 16]), "AAAAAAAAAAAAAAAAAAAAAA");
        assert_eq!(cluster_id([0xff; 16]), "_____________________w");
        assert_eq!(cluster_id(*b"0123456789abcdef"), "MDEyMzQ1Njc4OWFiY2RlZg");
    }
}
