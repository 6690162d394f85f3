//! Both ends of the handshake as values that take the other's messages and give the next one, and the rules by which
//! one proven node refuses another.
//!
//! Pure. Nothing is allocated before the other end's proof holds.

use highwater_shards::ids::NodeId;
use hmac::Mac;

use super::hello::{self, Hello, PeerIdentity, Purpose, Role};
use super::session::{self, Keys, TAG_LEN};
use super::{DiskId, HELLO_LEN, NONCE_LEN, PROOF_OF_ACCEPTOR, PROOF_OF_DIALER, Secret};
use crate::control::metadata::image::Incarnation;

pub const PROOF_LEN: usize = 32;
/// The code and three zeros, then the acceptor's proof.
pub const VERDICT_LEN: usize = CODE_LEN + PROOF_LEN;
/// The code and three zeros, then the tag.
pub const OPEN_LEN: usize = CODE_LEN + TAG_LEN;
const CODE_LEN: usize = 4;
const WELCOME: u8 = 0;

/// What an end of a handshake knows of the other one beforehand.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Known {
    /// The disk that the node is known by.
    pub disk: Option<DiskId>,
    /// The life in which the cluster's metadata has it.
    pub registered: Option<Incarnation>,
}

pub type Knows<'a> = &'a dyn Fn(NodeId) -> Known;

/// Why the handshake came to nothing: who is there has proven nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    #[error("not a Highwater node, or its protocol is unknown here")]
    NotAPeer,
    #[error("it does not know this cluster's secret: compare the secrets of both nodes")]
    WrongSecret,
    #[error(
        "it closed the connection instead of an answer to this node's proof: compare the secrets of both nodes"
    )]
    NoVerdict,
    #[error("it did not finish the handshake")]
    Unfinished,
}

impl HandshakeError {
    /// As metrics call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotAPeer => "not a peer",
            Self::WrongSecret => "wrong secret",
            Self::NoVerdict => "no verdict",
            Self::Unfinished => "unfinished",
        }
    }
}

/// Why a node that has proven the secret is refused all the same. The numbers are the protocol's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum Refusal {
    OtherCluster = 1,
    WrongNode = 2,
    OtherDisk = 3,
    SameNodeId = 4,
    TooManyConnections = 5,
    /// Of a stream: the metadata at one end does not have the other in its present life.
    NotRegistered = 6,
    /// Of a stream: the acceptor has no such shard.
    NoSuchShard = 7,
    /// A reason that only a newer version knows.
    Unknown = 255,
}

impl Refusal {
    fn from_code(code: u8) -> Option<Self> {
        match code {
            WELCOME => None,
            1 => Some(Self::OtherCluster),
            2 => Some(Self::WrongNode),
            3 => Some(Self::OtherDisk),
            4 => Some(Self::SameNodeId),
            5 => Some(Self::TooManyConnections),
            6 => Some(Self::NotRegistered),
            7 => Some(Self::NoSuchShard),
            _ => Some(Self::Unknown),
        }
    }

    /// As metrics call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::OtherCluster => "other cluster",
            Self::WrongNode => "wrong node",
            Self::OtherDisk => "other disk",
            Self::SameNodeId => "same node id",
            Self::TooManyConnections => "too many connections",
            Self::NotRegistered => "not registered",
            Self::NoSuchShard => "no such shard",
            Self::Unknown => "unknown",
        }
    }

    /// Whether it passes by itself, with nothing for people to do: metadata that one node has and the other not yet.
    pub fn is_passing(self) -> bool {
        matches!(self, Self::TooManyConnections | Self::NotRegistered | Self::NoSuchShard)
    }
}

/// How a handshake between two nodes that know the secret ended.
pub struct Judged {
    pub peer: PeerIdentity,
    pub keys: Keys,
    pub purpose: Purpose,
    /// `None`: both may talk.
    pub refusal: Option<Refusal>,
    me: PeerIdentity,
    /// The node that the dialer meant to reach.
    meant: Option<NodeId>,
    dialed: bool,
}

impl Judged {
    /// Takes the dialer's last message, at the acceptor. What the acceptor refused stays refused.
    pub fn opened(&mut self, open: &[u8; OPEN_LEN]) -> Result<(), HandshakeError> {
        let (code, tag) = open.split_at(CODE_LEN);
        self.keys.receive.verify(code, tag).map_err(|_| HandshakeError::WrongSecret)?;
        self.refusal = self.refusal.or(Refusal::from_code(code[0]));
        Ok(())
    }

    /// For people: why the two do not talk, and what to do about it. `None` when they do.
    pub fn why(&self) -> Option<String> {
        let (me, node, disk) = (self.me.node, self.peer.node, self.peer.disk);
        let cluster = |of: &PeerIdentity| of.cluster.map_or("none".to_owned(), |id| id.to_string());
        Some(match self.refusal? {
            Refusal::OtherCluster => format!(
                "node {node} belongs to cluster {} and this node {me} to cluster {}: check `cluster.seeds` and the \
                 addresses of both; a node moves to another cluster with an empty data directory only",
                cluster(&self.peer),
                cluster(&self.me)
            ),
            Refusal::WrongNode => {
                let meant = self.meant.map_or("another node".to_owned(), |meant| format!("node {meant}"));
                let (caller, reached) = if self.dialed { (me, node) } else { (node, me) };
                format!(
                    "node {caller} called {meant} and reached node {reached}: check `cluster.node_id` and \
                     `cluster.cluster_addr` of both"
                )
            }
            Refusal::OtherDisk => format!(
                "the disk of node {node} (or that of this node {me}) was replaced: remove the node, then join under \
                 a new id (node {node} has disk {disk}, this node {})",
                self.me.disk
            ),
            Refusal::SameNodeId => format!(
                "two nodes have the id {node}, one with disk {disk} and this one with {}: give one of them another \
                 `cluster.node_id`",
                self.me.disk
            ),
            Refusal::TooManyConnections => {
                let acceptor = if self.dialed { node } else { me };
                format!("node {acceptor} has no room for another connection from there; it is tried again")
            }
            Refusal::NotRegistered => format!(
                "node {node} and this node {me} do not have each other, as they are now, in their metadata; it is tried \
                 again"
            ),
            Refusal::NoSuchShard => {
                let acceptor = if self.dialed { node } else { me };
                format!("node {acceptor} has no such shard as is asked for; it is tried again")
            }
            Refusal::Unknown => {
                format!("node {node} refuses for a reason that only a newer version of Highwater knows")
            }
        })
    }
}

/// The rules that both ends apply to each other.
fn judge(
    me: &PeerIdentity,
    peer: &PeerIdentity,
    meant: Option<NodeId>,
    acceptor: NodeId,
    purpose: Purpose,
    knows: Knows<'_>,
) -> Option<Refusal> {
    let known = knows(peer.node);
    if let (Some(mine), Some(its)) = (me.cluster, peer.cluster)
        && mine != its
    {
        return Some(Refusal::OtherCluster);
    }
    if meant.is_some_and(|meant| meant != acceptor) {
        return Some(Refusal::WrongNode);
    }
    // A node may well call its own address: that is how it finds itself among the seeds.
    if me.node == peer.node && me.disk != peer.disk {
        return Some(Refusal::SameNodeId);
    }
    if known.disk.is_some_and(|disk| disk != peer.disk) {
        return Some(Refusal::OtherDisk);
    }
    let is_stream = matches!(purpose, Purpose::Stream { .. });
    let are_of_one = me.cluster.is_some() && me.cluster == peer.cluster && me.node != peer.node;
    if is_stream && !(are_of_one && known.registered == Some(peer.incarnation)) {
        return Some(Refusal::NotRegistered);
    }
    None
}

/// The end that opened the connection.
pub struct Dialer {
    me: PeerIdentity,
    to: Option<NodeId>,
    purpose: Purpose,
    mine: [u8; HELLO_LEN],
    its: [u8; HELLO_LEN],
    proof: [u8; PROOF_LEN],
    peer: Option<PeerIdentity>,
}

impl Dialer {
    /// `to` is the node that it means to reach, when it knows. `nonce` is fresh entropy, used once.
    pub fn new(me: PeerIdentity, to: Option<NodeId>, purpose: Purpose, nonce: &[u8; NONCE_LEN]) -> Self {
        let mine = hello::encode(&me, Role::Dialer, to, purpose, nonce);
        Self { me, to, purpose, mine, its: [0; HELLO_LEN], proof: [0; PROOF_LEN], peer: None }
    }

    /// The first message.
    pub fn hello(&self) -> &[u8; HELLO_LEN] {
        &self.mine
    }

    /// Takes the acceptor's hello and gives this end's proof.
    pub fn prove(
        &mut self,
        secret: &Secret,
        its: &[u8; HELLO_LEN],
    ) -> Result<[u8; PROOF_LEN], HandshakeError> {
        let hello = hello::decode(its, Role::Acceptor).ok_or(HandshakeError::NotAPeer)?;
        self.its = *its;
        self.peer = Some(hello.identity);
        let mac = secret.over(PROOF_OF_DIALER, &self.mine, &self.its);
        self.proof = mac.finalize().into_bytes().into();
        Ok(self.proof)
    }

    /// Takes the acceptor's verdict. With the result comes the last message, which is to be sent in any case: it tells
    /// the acceptor how this end judged.
    ///
    /// # Panics
    /// When no proof was given before.
    pub fn finish(
        self,
        secret: &Secret,
        verdict: &[u8; VERDICT_LEN],
        knows: Knows<'_>,
    ) -> Result<(Judged, [u8; OPEN_LEN]), HandshakeError> {
        let peer = self.peer.expect("the proof comes before the verdict");
        let (code, its_proof) = verdict.split_at(CODE_LEN);
        let mut mac = secret.over(PROOF_OF_ACCEPTOR, &self.mine, &self.its);
        mac.update(&self.proof);
        mac.update(code);
        mac.verify_slice(its_proof).map_err(|_| HandshakeError::WrongSecret)?;
        let mut keys = session::keys(secret, &self.mine, &self.its, &self.proof, its_proof, true);
        let own = judge(&self.me, &peer, self.to, peer.node, self.purpose, knows);
        let mut open = [0; OPEN_LEN];
        open[0] = own.map_or(WELCOME, |refusal| refusal as u8);
        let tag = keys.send.sign(&open[..CODE_LEN]);
        open[CODE_LEN..].copy_from_slice(&tag);
        let refusal = own.or(Refusal::from_code(code[0]));
        let Self { me, to: meant, purpose, .. } = self;
        Ok((Judged { peer, keys, purpose, refusal, me, meant, dialed: true }, open))
    }
}

/// The end that the connection came to.
pub struct Acceptor {
    mine: [u8; HELLO_LEN],
    its: [u8; HELLO_LEN],
}

impl Acceptor {
    /// Takes the dialer's hello. `nonce` is fresh entropy, used once.
    pub fn new(
        me: &PeerIdentity,
        its: &[u8; HELLO_LEN],
        nonce: &[u8; NONCE_LEN],
    ) -> Result<Self, HandshakeError> {
        hello::decode(its, Role::Dialer).ok_or(HandshakeError::NotAPeer)?;
        Ok(Self { mine: hello::encode(me, Role::Acceptor, None, Purpose::Calls, nonce), its: *its })
    }

    /// What the dialer wants the connection for. Not proven yet.
    pub fn purpose(&self) -> Purpose {
        hello::decode(&self.its, Role::Dialer).expect("it was decoded once already").purpose
    }

    /// The second message.
    pub fn hello(&self) -> &[u8; HELLO_LEN] {
        &self.mine
    }

    /// Takes the dialer's proof, and gives the verdict, which is to be sent in any case. `obstacle` is why this
    /// node could not take the connection from anybody.
    pub fn verdict(
        &self,
        secret: &Secret,
        proof: &[u8; PROOF_LEN],
        knows: Knows<'_>,
        obstacle: Option<Refusal>,
    ) -> Result<(Judged, [u8; VERDICT_LEN]), HandshakeError> {
        let mac = secret.over(PROOF_OF_DIALER, &self.its, &self.mine);
        mac.verify_slice(proof).map_err(|_| HandshakeError::WrongSecret)?;
        let me = hello::decode(&self.mine, Role::Acceptor).expect("made by this node").identity;
        let Hello { identity: peer, to, purpose } =
            hello::decode(&self.its, Role::Dialer).expect("it was decoded once already");
        let refusal = judge(&me, &peer, to, me.node, purpose, knows).or(obstacle);
        let mut verdict = [0; VERDICT_LEN];
        verdict[0] = refusal.map_or(WELCOME, |refusal| refusal as u8);
        let mut mac = secret.over(PROOF_OF_ACCEPTOR, &self.its, &self.mine);
        mac.update(proof);
        mac.update(&verdict[..CODE_LEN]);
        verdict[CODE_LEN..].copy_from_slice(&mac.finalize().into_bytes());
        let keys = session::keys(secret, &self.its, &self.mine, proof, &verdict[CODE_LEN..], false);
        Ok((Judged { peer, keys, purpose, refusal, me, meant: to, dialed: false }, verdict))
    }
}
