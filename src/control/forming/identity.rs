//! Who the nodes are before there is a cluster, and what a cluster is called.
//!
//! Pure. A node is its id together with its disk: an id with another disk behind it has lost what it had promised.

use std::fmt;
use std::hash::Hasher as _;
use std::str::FromStr;

use highwater_shards::ids::NodeId;
use serde::{Deserialize, Serialize};
use siphasher::sip128::{Hasher128 as _, SipHasher24};

use crate::control::metadata::image::{DiskId, Endpoint};

/// Of 128 bits, written as Kafka writes ids: 22 characters of base64 with the alphabet for URLs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub u128);

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const DIGITS: usize = 22;
/// 22 digits of 6 bits hold 132: the last one has four zero bits behind its two.
const SPARE_BITS: u32 = 4;

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = (self.0 << SPARE_BITS) & 63;
        let digits = (0..21).map(|at| (self.0 >> (122 - 6 * at)) & 63).chain([last]);
        let text: String =
            digits.map(|digit| char::from(ALPHABET[usize::try_from(digit).expect("6 bits")])).collect();
        f.write_str(&text)
    }
}

/// A text is not the id of a cluster.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is not the id of a cluster: 22 letters, digits, `-` and `_`")]
pub struct NotAClusterId(pub String);

impl FromStr for ClusterId {
    type Err = NotAClusterId;

    fn from_str(text: &str) -> Result<Self, NotAClusterId> {
        let wrong = || NotAClusterId(text.chars().take(32).collect());
        let mut bits: u128 = 0;
        if text.len() != DIGITS {
            return Err(wrong());
        }
        for (at, byte) in text.bytes().enumerate() {
            let digit = ALPHABET.iter().position(|known| *known == byte).ok_or_else(wrong)?;
            let digit = u128::try_from(digit).expect("below 64");
            bits = if at == DIGITS - 1 { (bits << 2) | (digit >> SPARE_BITS) } else { (bits << 6) | digit };
        }
        // One text for one id: the spare bits are zero.
        let id = Self(bits);
        if id.to_string() == text { Ok(id) } else { Err(wrong()) }
    }
}

/// One node of the first membership.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Member {
    pub node: NodeId,
    pub disk: DiskId,
    /// What other nodes connect to.
    pub at: Endpoint,
}

/// The members that found a cluster, in the order of their ids; no id twice.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Founders(Vec<Member>);

impl Founders {
    /// `None` when an id stands twice.
    pub fn new(mut members: Vec<Member>) -> Option<Self> {
        members.sort_unstable_by_key(|member| member.node);
        let unique = members.windows(2).all(|pair| pair[0].node != pair[1].node);
        unique.then_some(Self(members))
    }

    /// Whether they may have come from a peer: few, sorted, no id twice.
    pub fn is_valid(&self) -> bool {
        self.0.len() <= super::SEEDS_MAX && self.0.windows(2).all(|pair| pair[0].node < pair[1].node)
    }

    pub fn members(&self) -> &[Member] {
        &self.0
    }

    pub fn get(&self, node: NodeId) -> Option<&Member> {
        self.0.iter().find(|member| member.node == node)
    }

    /// The id of the cluster that exactly these disks found, whoever computes it.
    pub fn cluster_id(&self) -> ClusterId {
        ClusterId(self.hash(b"highwater-cluster", |_, _| {}))
    }

    /// Stands for these members with their addresses, which are part of what the log of a new cluster begins with.
    pub fn digest(&self) -> Digest {
        Digest(self.hash(b"highwater-founders", |hasher, member| {
            let host = member.at.host.as_bytes();
            hasher.write(&u64::try_from(host.len()).expect("a host name is short").to_be_bytes());
            hasher.write(host);
            hasher.write(&member.at.port.to_be_bytes());
        }))
    }

    /// Disk ids are random, so that 128 bits without a secret do: who can choose one knows the cluster's secret.
    fn hash(&self, purpose: &[u8], more: impl Fn(&mut SipHasher24, &Member)) -> u128 {
        let mut hasher = SipHasher24::new();
        hasher.write(purpose);
        for member in &self.0 {
            hasher.write(&member.node.0.to_be_bytes());
            hasher.write(&member.disk.0.to_be_bytes());
            more(&mut hasher, member);
        }
        hasher.finish128().as_u128()
    }
}

/// See [`Founders::digest`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(pub u128);

/// `host:port`, with brackets around an IPv6 address.
pub fn show(at: &Endpoint) -> String {
    match at.host.contains(':') {
        true => format!("[{}]:{}", at.host, at.port),
        false => format!("{}:{}", at.host, at.port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(node: u32, disk: u128) -> Member {
        Member {
            node: NodeId(node),
            disk: DiskId(disk),
            at: Endpoint { host: format!("n{node}"), port: 9093 },
        }
    }

    #[test]
    fn cluster_ids_are_written_as_kafka_writes_them_and_read_back() {
        assert_eq!(ClusterId(0).to_string(), "AAAAAAAAAAAAAAAAAAAAAA");
        assert_eq!(ClusterId(u128::MAX).to_string(), "_____________________w");
        assert_eq!(
            ClusterId(u128::from_be_bytes(*b"0123456789abcdef")).to_string(),
            "MDEyMzQ1Njc4OWFiY2RlZg"
        );
        for id in [0, 1, u128::MAX, 1 << 127, 0x0123_4567_89ab_cdef] {
            assert_eq!(ClusterId(id).to_string().parse(), Ok(ClusterId(id)));
        }
        for bad in ["", "AAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAAAB", "AAAAAAAAAAAAAAAAAAAA=A"] {
            assert!(bad.parse::<ClusterId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_cluster_id_follows_from_the_disks_alone_whatever_their_order() {
        let id = |members: &[Member]| Founders::new(members.to_vec()).unwrap().cluster_id();
        let (a, b) = (member(1, 10), member(2, 20));
        assert_eq!(id(&[a.clone(), b.clone()]), id(&[b.clone(), a.clone()]));
        let moved = Member { at: Endpoint { host: "x".into(), port: 1 }, ..b.clone() };
        assert_eq!(id(&[a.clone(), b.clone()]), id(&[a.clone(), moved.clone()]));
        assert_ne!(id(&[a.clone(), b.clone()]), id(&[a.clone(), member(2, 21)]));
        let digest = |members: &[Member]| Founders::new(members.to_vec()).unwrap().digest();
        assert_ne!(digest(&[a.clone(), b.clone()]), digest(&[a.clone(), moved]));
        assert_eq!(Founders::new(vec![a.clone(), member(1, 11)]), None);
        // A new release must call a cluster by the same name.
        assert_eq!(id(&[a, b]).to_string(), "wFIKNcAsu8HcoUwHhr5vUA");
    }

    #[test]
    fn founders_of_a_peer_are_checked() {
        assert!(Founders(vec![member(1, 1), member(2, 2)]).is_valid());
        assert!(!Founders(vec![member(2, 1), member(1, 2)]).is_valid());
        assert!(!Founders(vec![member(1, 1), member(1, 2)]).is_valid());
        assert!(!Founders((0..10).map(|n| member(n, 1)).collect()).is_valid());
    }
}
