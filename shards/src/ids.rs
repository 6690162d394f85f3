//! Identities and positions as types of their own, so that no two of them can be swapped by mistake.
//!
//! Floor 0. Wire sentinels such as -1 do not exist here: absence is an `Option`.

use std::fmt;

/// A hash map with a fixed, seedless hash: its iteration order is a function of its history, so a simulation
/// repeats. For keys that this system makes itself; a client cannot choose them to collide.
pub type Map<K, V> = hashbrown::HashMap<K, V, rustc_hash::FxBuildHasher>;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// The position of a record in its partition; counts from 0.
    Offset(u64)
}
number! {
    /// The term of one leader of one partition. Grows by one at each election, never on an ISR change.
    LeaderEpoch(u32)
}
number! {
    /// The version of one partition's registration: grows by one at each change of it (ISR, leader, replicas).
    PartitionEpoch(u32)
}
number! {
    /// A node of the cluster; what Kafka calls a broker id.
    NodeId(u32)
}
number! {
    /// A shard (data core) of this node, counted from 0.
    ShardId(u16)
}
number! {
    /// The number of a partition within its topic, counted from 0.
    PartitionIndex(u32)
}
number! {
    /// A position in the log of metadata changes. What a shard was told last; it only grows.
    Revision(u64)
}
number! {
    /// One registration of a node: the revision that made it, so that it grows over the whole cluster and what was
    /// meant for an earlier life of the node is refused.
    RegistrationEpoch(u64)
}
number! {
    /// An idempotent producer.
    ProducerId(u64)
}
number! {
    /// One life of an idempotent producer.
    ProducerEpoch(u16)
}
number! {
    /// The number of a record within one (producer, partition); wraps after `i32::MAX` to 0.
    Sequence(u32)
}
number! {
    /// A client connection of one shard. Never used twice within one life of the shard.
    ConnId(u64)
}

impl Offset {
    pub const ZERO: Self = Self(0);

    /// The offset `n` records further on.
    #[must_use]
    pub fn plus(self, n: u64) -> Self {
        Self(self.0 + n)
    }

    /// As the wire shows it.
    pub fn wire(self) -> i64 {
        i64::try_from(self.0).expect("an offset counts appended records and stays far below 2^63")
    }

    /// From the wire, where a negative value has another meaning or none.
    pub fn from_wire(wire: i64) -> Option<Self> {
        u64::try_from(wire).ok().map(Self)
    }
}

impl LeaderEpoch {
    /// As the wire shows it.
    pub fn wire(self) -> i32 {
        i32::try_from(self.0).expect("a leader epoch counts elections and stays below 2^31")
    }

    /// From the wire, where -1 says "not known".
    pub fn from_wire(wire: i32) -> Option<Self> {
        u32::try_from(wire).ok().map(Self)
    }
}

/// A topic for all its life: a name used again after deletion gets a new id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct TopicId(pub u128);

impl TopicId {
    /// As it stands on the wire and in files.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
}

impl fmt::Display for TopicId {
    /// The form of a UUID: 8-4-4-4-12 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v = self.0;
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            v >> 96,
            (v >> 80) & 0xffff,
            (v >> 64) & 0xffff,
            (v >> 48) & 0xffff,
            v & 0xffff_ffff_ffff
        )
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One partition of one topic, anywhere in the cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PartitionId {
    pub topic: TopicId,
    pub index: PartitionIndex,
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_id_survives_its_bytes_and_reads_as_a_uuid() {
        let id = TopicId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!(TopicId::from_bytes(id.to_bytes()), id);
        assert_eq!(id.to_string(), "01234567-89ab-cdef-0123-456789abcdef");
    }

    #[test]
    fn negative_wire_values_are_absence() {
        assert_eq!(Offset::from_wire(-1), None);
        assert_eq!(Offset::from_wire(7), Some(Offset(7)));
        assert_eq!(LeaderEpoch::from_wire(-1), None);
    }
}
