//! One member: who it is, which life of it we know, and how it stands with us.
//!
//! Control core, pure.

use std::net::SocketAddr;
use std::sync::Arc;

use highwater_shards::time::Instant;
use siphasher::sip::SipHasher13;

use super::auth::Window;
use super::suspicion::Suspicion;

/// What a member says of itself is ordered by this: a start outranks all earlier lives, and within a life each
/// objection to an accusation outranks what was said before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Incarnation {
    pub boot_count: u32,
    pub refutation: u32,
}

impl Incarnation {
    pub(super) fn packed(self) -> u64 {
        (u64::from(self.boot_count) << 32) | u64::from(self.refutation)
    }

    pub(super) fn unpack(packed: u64) -> Self {
        Self { boot_count: (packed >> 32) as u32, refutation: packed as u32 }
    }

    /// The next one of the same life. The last one stays: wrapping would hand the name to its oldest life.
    pub(super) fn refuted(self) -> Self {
        Self { refutation: self.refutation.saturating_add(1), ..self }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Status {
    Alive,
    Suspect,
    Dead,
    Left,
}

impl Status {
    /// Counted as a member: alive until proven otherwise.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }
}

/// A member's name in 64 bits, the same on every node. 0 is nobody's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Id(pub u64);

impl Id {
    pub(super) const NOBODY: Self = Self(0);

    pub(super) fn of(name: &str) -> Self {
        Self(
            SipHasher13::new_with_keys(0x6869_6768_7761_7465, 0x7273_7769_6d2d_6964)
                .hash(name.as_bytes())
                .max(1),
        )
    }
}

/// Where a member stands in the table, as long as it stands there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Slot(pub u32);

impl Slot {
    /// This member itself.
    pub(super) const SELF: Self = Self(0);

    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug)]
pub(super) struct Member {
    pub id: Id,
    pub name: Arc<str>,
    pub addr: SocketAddr,
    pub metadata: Arc<[u8]>,
    /// Drawn at each start: what authenticates this life's datagrams.
    pub boot: u64,
    pub incarnation: Incarnation,
    pub status: Status,
    /// When it got this status.
    pub since: Instant,
    /// While it is a suspect.
    pub suspicion: Option<Box<Suspicion>>,
    pub session: Session,
    /// When it was told directly that it counts as dead.
    pub told: Option<Instant>,
    pub relays: RelayAllowance,
}

/// Datagrams between this process and one boot of a peer.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// The number of the last datagram sent.
    pub sent: u64,
    pub window: Window,
    /// It answered, so it knows us: what we send needs no room for a challenge.
    pub heard: bool,
    /// It was forgotten once and must prove that it is not a recording.
    pub doubted: bool,
}

/// Indirect probes that a member may ask for in this second.
#[derive(Debug, Default)]
pub(super) struct RelayAllowance {
    pub since: Instant,
    pub used: u8,
}

impl Member {
    /// What the table of live members is compared by.
    pub(super) fn digest(&self) -> u64 {
        mix(self.id.0 ^ mix(self.incarnation.packed()))
    }
}

/// The finalizer of splitmix64: a bijection that spreads its input over all bits.
pub(super) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_takes_at_most_400_bytes() {
        // Beside the member: its name and metadata with their counts, its places in the index (at most 7/8 full, half
        // full at worst), in the order of probing, in the queue and in the list of the free.
        let shared = 2 * (2 * 8) + 24;
        let places = 2 * (size_of::<(Id, Slot)>() + 1) + 4 + 24 + 4;
        let bytes = size_of::<Option<Member>>() + shared + places;
        assert!(bytes <= 400, "{bytes}");
    }
}
