//! The settings of a member, with their bounds.
//!
//! Control core, pure data.

use std::net::SocketAddr;
use std::time::Duration;

use super::wire::{ALIVE_FIXED_BYTES, PING_BYTES};
use super::{DATAGRAM_BYTES_MAX, METADATA_BYTES_MAX, NAME_BYTES_MAX};

/// How a member behaves. All members of a cluster should agree on the times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwimConfig {
    /// Unique in the cluster, 1 to 64 bytes.
    pub name: String,
    /// Where others reach this member; never a wildcard.
    pub addr: SocketAddr,
    /// Bytes that all members get to know, at most 512.
    pub metadata: Vec<u8>,
    /// How many times this member has started, counted durably by whoever starts it: a life outranks all earlier ones.
    pub boot_count: u32,
    /// One member is probed in each interval.
    pub ping_interval: Duration,
    /// How long a probe waits for its direct answer, before others are asked to try. Less than the interval.
    pub ping_timeout: Duration,
    /// Members that are asked to try when a probe gets no direct answer.
    pub indirect_probes: usize,
    /// The shortest suspicion is this, times the logarithm to base 10 of the members (at least 1), times the interval.
    pub suspicion_multiplier: u32,
    /// The longest suspicion is this times the shortest.
    pub suspicion_max_multiplier: u32,
    /// Accusers beside the first that make a suspicion the shortest.
    pub suspicion_confirmations: u32,
    /// How often waiting news are sent to some members.
    pub gossip_interval: Duration,
    /// To how many members.
    pub gossip_fanout: usize,
    /// News are sent on this many times the decimal digits of the number of members.
    pub retransmit_multiplier: u32,
    /// The dead get news for so long, so that they can object.
    pub gossip_to_dead: Duration,
    /// How often one of the dead is asked whether it lives.
    pub reconnect_interval: Duration,
    /// How often seeds are asked that are no members (much more often while there are no other members).
    pub seed_interval: Duration,
    /// How long the dead and those that left are remembered.
    pub tombstone_age: Duration,
    /// The largest datagram, at most 1400 bytes.
    pub datagram_bytes_max: usize,
    pub extensions: Extensions,
}

/// What goes beyond SWIM. Production has all of it on; experiments switch parts off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extensions {
    /// Lifeguard: who fails at probing slows down, and takes the fault for its own first.
    pub local_health: bool,
    /// Lifeguard: suspicions are long unless others confirm them.
    pub dynamic_suspicion: bool,
    /// Lifeguard: a suspect is told first.
    pub buddy: bool,
    /// A suspicion of a later incarnation than the one under way starts anew.
    pub fresh_timer: bool,
    /// Who hears an outdated accusation says that the member lives.
    pub reassert: bool,
    /// A datagram from the suspect itself starts its timer anew.
    pub evidence_veto: bool,
    /// A failed probe is no fault of one's own when most relays say that they failed too, and less of one when others
    /// accuse the member as well; and suspects are not asked to probe for others. When many members crash at once,
    /// those that live keep their pace.
    pub fair_health: bool,
    /// A few of those that hear of a suspicion probe the suspect next, out of turn: whoever crashed is confirmed by
    /// others soon, and who lives hears of it and answers.
    pub second_opinion: bool,
    /// Time in which this process was stalled counts neither for probes nor for suspicions.
    pub stall_aware: bool,
    /// Who hears from nobody at all takes that for its own fault: it accuses nobody, and its suspicions wait, up to a
    /// bound.
    pub silence_aware: bool,
}

impl Extensions {
    pub const SWIM: Self = Self {
        local_health: false,
        dynamic_suspicion: false,
        buddy: false,
        fresh_timer: false,
        reassert: false,
        evidence_veto: false,
        fair_health: false,
        second_opinion: false,
        stall_aware: false,
        silence_aware: false,
    };
    pub const LIFEGUARD: Self =
        Self { local_health: true, dynamic_suspicion: true, buddy: true, ..Self::SWIM };
    pub const ALL: Self = Self {
        fresh_timer: true,
        reassert: true,
        evidence_veto: true,
        fair_health: true,
        second_opinion: true,
        stall_aware: true,
        silence_aware: true,
        ..Self::LIFEGUARD
    };
}

impl SwimConfig {
    /// The defaults: a crash is known everywhere within a second or two in a small cluster.
    pub fn new(name: &str, addr: SocketAddr) -> Self {
        Self {
            name: name.into(),
            addr,
            metadata: Vec::new(),
            boot_count: 1,
            ping_interval: Duration::from_millis(100),
            ping_timeout: Duration::from_millis(50),
            indirect_probes: 3,
            suspicion_multiplier: 3,
            suspicion_max_multiplier: 6,
            suspicion_confirmations: 3,
            gossip_interval: Duration::from_millis(20),
            gossip_fanout: 3,
            retransmit_multiplier: 4,
            gossip_to_dead: Duration::from_secs(30),
            reconnect_interval: Duration::from_secs(10),
            seed_interval: Duration::from_secs(30),
            tombstone_age: Duration::from_secs(1800),
            datagram_bytes_max: DATAGRAM_BYTES_MAX,
            extensions: Extensions::ALL,
        }
    }

    /// The times of the Lifeguard paper: an interval of a second, for comparisons with it.
    #[must_use]
    pub fn with_paper_times(mut self) -> Self {
        self.ping_interval = Duration::from_secs(1);
        self.ping_timeout = Duration::from_millis(500);
        self.gossip_interval = Duration::from_millis(200);
        self
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX {
            return Err(ConfigError::Name(self.name.len()));
        }
        if self.metadata.len() > METADATA_BYTES_MAX {
            return Err(ConfigError::Metadata(self.metadata.len()));
        }
        if self.addr.ip().is_unspecified() || self.addr.port() == 0 {
            return Err(ConfigError::Address(self.addr));
        }
        if self.ping_timeout.is_zero() || self.ping_timeout >= self.ping_interval {
            return Err(ConfigError::Times(self.ping_timeout, self.ping_interval));
        }
        if self.gossip_interval.is_zero() {
            return Err(ConfigError::Gossip);
        }
        // Any member's record must fit beside the header of a probe, or news of it could never travel.
        let least = PING_BYTES + ALIVE_FIXED_BYTES + NAME_BYTES_MAX + METADATA_BYTES_MAX;
        if !(least..=DATAGRAM_BYTES_MAX).contains(&self.datagram_bytes_max) {
            return Err(ConfigError::Datagram(self.datagram_bytes_max, least));
        }
        Ok(())
    }
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    #[error("a name has 1 to {NAME_BYTES_MAX} bytes, not {0}")]
    Name(usize),
    #[error("metadata has at most {METADATA_BYTES_MAX} bytes, not {0}")]
    Metadata(usize),
    #[error("{0} cannot be told to others: give the address and port at which they reach this member")]
    Address(SocketAddr),
    #[error(
        "the time to answer a ping, {0:?}, must be above zero and below the interval between pings, {1:?}"
    )]
    Times(Duration, Duration),
    #[error("the interval of gossip must be above zero")]
    Gossip,
    #[error(
        "datagrams of {0} bytes: the bound must be {1} to {DATAGRAM_BYTES_MAX}, so that any member's record fits"
    )]
    Datagram(usize, usize),
}
