//! What nodes say to each other about forming a cluster and about its members, as bytes.
//!
//! Pure. Every body is in an envelope; what a peer sent is bounded and checked before anyone acts on it.

use highwater_shards::ids::NodeId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::identity::{ClusterId, Founders, Member};
use super::{HOST_BYTES_MAX, SEEDS_MAX, Who};
use crate::control::metadata::envelope::{EnvelopeError, Schema, open, seal};
use crate::control::metadata::image::{DiskId, Endpoint};

/// "Who are you": an empty call, answered with a [`Who`].
pub const CALL_WHO: u16 = 0x0201;
/// "Let me join": a [`Joining`] of the caller, answered with a [`JoinAnswer`].
pub const CALL_JOIN: u16 = 0x0202;
/// The same, passed on to the leader by the node that it came to.
pub const CALL_JOIN_FORWARDED: u16 = 0x0203;

/// Bytes of any of these bodies at most.
pub const BODY_MAX: usize = 16 * 1024;

const WHO: Schema = Schema { name: "answer to who is there", kind: 0x0201, schema: 1 };
const JOINING: Schema = Schema { name: "request to join", kind: 0x0202, schema: 1 };
const ANSWER: Schema = Schema { name: "answer to a request to join", kind: 0x0203, schema: 1 };

/// A node that wants into the cluster, or is in it and says where it is now. Asking again changes nothing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Joining {
    pub member: Member,
    /// Whether it may vote.
    pub voter: bool,
    /// `None` from a node that is in no cluster yet.
    pub cluster: Option<ClusterId>,
}

/// New variants are added at the end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum JoinAnswer {
    /// The node is a member, under this very disk.
    Welcome { cluster: ClusterId, founders: Founders },
    /// For the time being: no leader, another change is under way.
    NotNow(String),
    /// It will not become a member, however often it asks.
    Refused(Refused),
}

/// Why a node will not become a member. New variants are added at the end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    #[error(
        "the disk of node {node} was replaced: the cluster knows it with another one. Remove the node (`highwater cluster \
         remove {node}`), then start it under an id that was never used"
    )]
    DiskReplaced { node: NodeId, known: DiskId },
    #[error(
        "node {node} was removed from the cluster: start it with an empty data directory under an id that was never used"
    )]
    Removed { node: NodeId },
    #[error(
        "this node belongs to cluster {theirs}, the other one to {ours}: check `cluster.seeds`, or whose data directory this is"
    )]
    OtherCluster { ours: ClusterId, theirs: ClusterId },
    #[error("the cluster has {max} nodes already, which is its limit")]
    Full { max: usize },
}

/// Why a peer's body is not acted on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    #[error("{0} bytes, above the limit of {BODY_MAX}")]
    TooLong(usize),
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    #[error("a value is out of its bounds: {0}")]
    Bounds(&'static str),
}

pub fn encode_who(who: &Who) -> Vec<u8> {
    seal(WHO, who)
}

/// # Errors
/// When the bytes are not an answer that a node would give.
pub fn decode_who(bytes: &[u8]) -> Result<Who, WireError> {
    let who: Who = body(WHO, bytes)?;
    let seeds = who.seeds.len() <= SEEDS_MAX && who.seeds.iter().all(is_endpoint);
    check(seeds, "seeds")?;
    check(is_endpoint(&who.member.at), "address")?;
    if let super::Standing::Formed { cluster, founders } = &who.standing {
        check_founders(*cluster, founders)?;
    }
    Ok(who)
}

pub fn encode_joining(joining: &Joining) -> Vec<u8> {
    seal(JOINING, joining)
}

/// # Errors
/// When the bytes are not a request that a node would make.
pub fn decode_joining(bytes: &[u8]) -> Result<Joining, WireError> {
    let joining: Joining = body(JOINING, bytes)?;
    check(is_endpoint(&joining.member.at), "address")?;
    Ok(joining)
}

pub fn encode_join_answer(answer: &JoinAnswer) -> Vec<u8> {
    seal(ANSWER, answer)
}

/// # Errors
/// When the bytes are not an answer that a node would give.
pub fn decode_join_answer(bytes: &[u8]) -> Result<JoinAnswer, WireError> {
    let answer: JoinAnswer = body(ANSWER, bytes)?;
    if let JoinAnswer::Welcome { cluster, founders } = &answer {
        check_founders(*cluster, founders)?;
    }
    Ok(answer)
}

fn body<T: DeserializeOwned>(schema: Schema, bytes: &[u8]) -> Result<T, WireError> {
    if bytes.len() > BODY_MAX {
        return Err(WireError::TooLong(bytes.len()));
    }
    Ok(open(schema, bytes)?)
}

fn check(fits: bool, what: &'static str) -> Result<(), WireError> {
    if fits { Ok(()) } else { Err(WireError::Bounds(what)) }
}

fn check_founders(cluster: ClusterId, founders: &Founders) -> Result<(), WireError> {
    check(
        founders.is_valid() && founders.members().iter().all(|member| is_endpoint(&member.at)),
        "founders",
    )?;
    // A node alone is a cluster by itself without having founded one.
    check(founders.members().is_empty() || founders.cluster_id() == cluster, "cluster id")
}

fn is_endpoint(at: &Endpoint) -> bool {
    (1..=HOST_BYTES_MAX).contains(&at.host.len())
        && at.port != 0
        && at.host.chars().all(|c| c.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::super::{Digest, Standing};
    use super::*;

    fn at(host: &str) -> Endpoint {
        Endpoint { host: host.into(), port: 9093 }
    }

    fn who(standing: Standing) -> Who {
        let member = Member { node: NodeId(7), disk: DiskId(u128::MAX / 3), at: at("n7") };
        Who { member, seeds: vec![at("n7"), at("::1")], standing }
    }

    fn bodies() -> Vec<Who> {
        let founders =
            Founders::new(vec![Member { node: NodeId(1), disk: DiskId(1), at: at("n1") }]).unwrap();
        vec![
            who(Standing::Fresh { proposes: None }),
            who(Standing::Fresh { proposes: Some(Digest(9)) }),
            who(Standing::Formed { cluster: founders.cluster_id(), founders }),
        ]
    }

    #[test]
    fn bodies_come_back_from_their_bytes() {
        for body in bodies() {
            assert_eq!(decode_who(&encode_who(&body)), Ok(body));
        }
        let joining =
            Joining { member: bodies()[0].member.clone(), voter: true, cluster: Some(ClusterId(5)) };
        assert_eq!(decode_joining(&encode_joining(&joining)), Ok(joining));
        for answer in [
            JoinAnswer::Welcome { cluster: ClusterId(1), founders: Founders::default() },
            JoinAnswer::NotNow("no leader".into()),
            JoinAnswer::Refused(Refused::DiskReplaced { node: NodeId(1), known: DiskId(2) }),
            JoinAnswer::Refused(Refused::Removed { node: NodeId(1) }),
            JoinAnswer::Refused(Refused::OtherCluster { ours: ClusterId(1), theirs: ClusterId(2) }),
            JoinAnswer::Refused(Refused::Full { max: 9 }),
        ] {
            assert_eq!(decode_join_answer(&encode_join_answer(&answer)), Ok(answer));
        }
    }

    #[test]
    fn cut_altered_and_foreign_bodies_are_refused() {
        for body in bodies() {
            let bytes = encode_who(&body);
            for len in 0..bytes.len() {
                assert!(decode_who(&bytes[..len]).is_err());
            }
            for bit in 0..bytes.len() * 8 {
                let mut altered = bytes.clone();
                altered[bit / 8] ^= 1 << (bit % 8);
                assert!(decode_who(&altered).is_err(), "bit {bit}");
            }
            assert!(decode_joining(&bytes).is_err() && decode_join_answer(&bytes).is_err());
        }
        assert_eq!(decode_who(&vec![0; BODY_MAX + 1]), Err(WireError::TooLong(BODY_MAX + 1)));
    }

    #[test]
    fn values_out_of_their_bounds_are_refused() {
        let mut many = bodies()[0].clone();
        many.seeds = (0..10).map(|n| at(&format!("n{n}"))).collect();
        assert_eq!(decode_who(&encode_who(&many)), Err(WireError::Bounds("seeds")));
        for host in ["", "a b", "a\n", &"x".repeat(300)] {
            let mut odd = bodies()[0].clone();
            odd.member.at.host = host.into();
            assert_eq!(decode_who(&encode_who(&odd)), Err(WireError::Bounds("address")), "{host:?}");
        }
    }
}
