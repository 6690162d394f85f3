//! Who a node is, and the message that says so.
//!
//! Pure. A hello's bytes, little endian; its length and the first twelve bytes are the same in all versions:
//!
//! | at | size | what |
//! |---|---|---|
//! | 0 | 8 | magic, `HWPEERS` and a zero |
//! | 8 | 2 | the highest version that the node speaks; both use the lower one of the two |
//! | 10 | 1 | role: 1 dialer, 2 acceptor |
//! | 11 | 1 | flags: 1 it has a cluster, 2 it means one node, 4 the connection is for a stream |
//! | 12 | 4 | its node id |
//! | 16 | 4 | the node id that the dialer means to reach |
//! | 20 | 2 | of a stream: the dialer's shard |
//! | 22 | 2 | of a stream: the acceptor's shard |
//! | 24 | 8 | incarnation |
//! | 32 | 16 | disk id |
//! | 48 | 24 | cluster id, 22 characters and zeros |
//! | 72 | 32 | nonce |

use std::fmt;
use std::str::FromStr;

use highwater_shards::ids::{NodeId, ShardId};

use crate::control::metadata::image::Incarnation;

/// The version that this node speaks.
pub const VERSION: u16 = 1;
pub const HELLO_LEN: usize = 104;
pub const NONCE_LEN: usize = 32;

const MAGIC: &[u8; 8] = b"HWPEERS\0";
const CLUSTER_ID_LEN: usize = 22;
const HAS_CLUSTER: u8 = 1;
const MEANS_ONE: u8 = 2;
const FOR_STREAM: u8 = 4;

/// A data directory for all its life, drawn when it is made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct DiskId(pub u128);

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A cluster for all its life: 16 bytes as Kafka writes ids, 22 characters of base64 for URLs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId([u8; CLUSTER_ID_LEN]);

/// Not the form of a cluster id.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a cluster id: {CLUSTER_ID_LEN} letters, digits, '-' or '_' are expected")]
pub struct NotClusterId;

impl ClusterId {
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("letters, digits, '-' and '_' only")
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, NotClusterId> {
        let id: [u8; CLUSTER_ID_LEN] = bytes.try_into().map_err(|_| NotClusterId)?;
        let fits = id.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if fits { Ok(Self(id)) } else { Err(NotClusterId) }
    }
}

impl FromStr for ClusterId {
    type Err = NotClusterId;

    fn from_str(text: &str) -> Result<Self, NotClusterId> {
        Self::from_bytes(text.as_bytes())
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who a node is, in its own words; of a peer, words that it has proven the right to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerIdentity {
    pub node: NodeId,
    pub disk: DiskId,
    /// `None` while the node belongs to no cluster yet.
    pub cluster: Option<ClusterId>,
    pub incarnation: Incarnation,
    /// The highest version of the protocol that it speaks.
    pub version: u16,
}

/// What a connection is for, as its dialer says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Calls of the dialer, in authenticated frames.
    Calls,
    /// After the handshake the connection belongs to two shards, and its bytes are theirs.
    Stream {
        /// The dialer's.
        from: ShardId,
        /// The acceptor's.
        to: ShardId,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    Dialer = 1,
    Acceptor = 2,
}

/// What a received hello says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hello {
    pub identity: PeerIdentity,
    /// The node that a dialer means to reach, when it knows.
    pub to: Option<NodeId>,
    /// Of a dialer's.
    pub purpose: Purpose,
}

pub(super) fn encode(
    me: &PeerIdentity,
    role: Role,
    to: Option<NodeId>,
    purpose: Purpose,
    nonce: &[u8; NONCE_LEN],
) -> [u8; HELLO_LEN] {
    let mut hello = [0; HELLO_LEN];
    hello[..8].copy_from_slice(MAGIC);
    hello[8..10].copy_from_slice(&me.version.to_le_bytes());
    hello[10] = role as u8;
    hello[12..16].copy_from_slice(&me.node.0.to_le_bytes());
    if let Some(to) = to {
        hello[11] |= MEANS_ONE;
        hello[16..20].copy_from_slice(&to.0.to_le_bytes());
    }
    if let Purpose::Stream { from, to } = purpose {
        hello[11] |= FOR_STREAM;
        hello[20..22].copy_from_slice(&from.0.to_le_bytes());
        hello[22..24].copy_from_slice(&to.0.to_le_bytes());
    }
    hello[24..32].copy_from_slice(&me.incarnation.0.to_le_bytes());
    hello[32..48].copy_from_slice(&me.disk.0.to_le_bytes());
    if let Some(cluster) = me.cluster {
        hello[11] |= HAS_CLUSTER;
        hello[48..48 + CLUSTER_ID_LEN].copy_from_slice(&cluster.0);
    }
    hello[72..].copy_from_slice(nonce);
    hello
}

/// `None` when these are not the bytes of a hello in that role. Nothing in it is proven yet.
pub(super) fn decode(hello: &[u8; HELLO_LEN], role: Role) -> Option<Hello> {
    let flags = hello[11];
    let version = u16::from_le_bytes(array(hello, 8));
    if hello[..8] != *MAGIC || hello[10] != role as u8 || version == 0 {
        return None;
    }
    let cluster = match flags & HAS_CLUSTER {
        0 => None,
        _ => Some(ClusterId::from_bytes(&hello[48..48 + CLUSTER_ID_LEN]).ok()?),
    };
    let purpose = match flags & FOR_STREAM {
        0 => Purpose::Calls,
        _ => Purpose::Stream {
            from: ShardId(u16::from_le_bytes(array(hello, 20))),
            to: ShardId(u16::from_le_bytes(array(hello, 22))),
        },
    };
    Some(Hello {
        purpose,
        identity: PeerIdentity {
            node: NodeId(u32::from_le_bytes(array(hello, 12))),
            disk: DiskId(u128::from_le_bytes(array(hello, 32))),
            cluster,
            incarnation: Incarnation(u64::from_le_bytes(array(hello, 24))),
            version,
        },
        to: (flags & MEANS_ONE != 0).then(|| NodeId(u32::from_le_bytes(array(hello, 16)))),
    })
}

fn array<const N: usize>(bytes: &[u8; HELLO_LEN], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("N bytes")
}
