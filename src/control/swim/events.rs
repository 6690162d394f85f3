//! What goes into a [`Membership`](super::Membership) and what comes out of it.
//!
//! Control core, pure data.

use std::net::SocketAddr;
use std::sync::Arc;

use super::auth::REJECTS;
use super::member::{Incarnation, Status};

#[derive(Debug)]
pub enum Input<'a> {
    /// A datagram arrived. Hand in all that wait before [`Input::Timeout`].
    Datagram { from: SocketAddr, bytes: &'a [u8] },
    /// The time that `poll_timeout` named has come.
    Timeout,
    /// Find a cluster through these addresses, and go on trying. Replaces earlier seeds.
    Join { seeds: Vec<SocketAddr> },
    /// Say goodbye. [`Output::Gone`] follows when the others should know.
    Leave,
    /// New metadata of this member, at most 512 bytes; longer ones are ignored.
    Metadata(Vec<u8>),
}

#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output<'a> {
    Send {
        to: SocketAddr,
        bytes: &'a [u8],
    },
    Event(Event),
    /// Seeds are about to be asked again: resolve their names anew and hand in [`Input::Join`], if they have names.
    ResolveSeeds,
    /// This member has left; its socket may be closed.
    Gone,
}

/// A member's state changed, as far as this member knows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// New, back from the dead, or in a new life.
    Joined {
        name: Arc<str>,
        addr: SocketAddr,
        incarnation: Incarnation,
        metadata: Arc<[u8]>,
    },
    Suspected {
        name: Arc<str>,
        incarnation: Incarnation,
    },
    /// A suspect objected.
    Alive {
        name: Arc<str>,
        incarnation: Incarnation,
    },
    /// It said so itself.
    Left {
        name: Arc<str>,
        incarnation: Incarnation,
    },
    /// `by_us`: our own timer expired, others are not yet known to agree.
    Died {
        name: Arc<str>,
        incarnation: Incarnation,
        by_us: bool,
    },
    MetadataChanged {
        name: Arc<str>,
        addr: SocketAddr,
        incarnation: Incarnation,
        metadata: Arc<[u8]>,
    },
}

/// One member, as this member knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberView<'a> {
    pub name: &'a Arc<str>,
    pub addr: SocketAddr,
    pub status: Status,
    pub incarnation: Incarnation,
    pub metadata: &'a Arc<[u8]>,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwimStats {
    pub probes: u64,
    pub probes_failed: u64,
    /// Probes whose outcome says nothing, because this process was stalled.
    pub probes_void: u64,
    pub acks: u64,
    pub nacks: u64,
    pub indirect_probes: u64,
    pub relays: u64,
    pub suspicions: u64,
    pub confirmations: u64,
    pub refutations: u64,
    pub vetoes: u64,
    pub reassertions: u64,
    pub deaths: u64,
    pub syncs: u64,
    pub challenges: u64,
    /// New members that were not taken in because of a bound.
    pub members_refused: u64,
    pub datagrams_received: u64,
    pub bytes_received: u64,
    pub datagrams_sent: u64,
    pub bytes_sent: u64,
    pub datagrams_dropped: u64,
    /// By reason, in the order of [`Reject::ALL`](super::Reject::ALL).
    pub rejected: [u64; REJECTS],
}
