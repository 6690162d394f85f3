//! What the simulated producers sent and were told: the other half of every comparison that the checkers make.

use bytes::{Bytes, BytesMut};
use highwater_shards::ids::PartitionId;

use crate::records::{self, Recipe, Stamp, Uid};

/// Which life of the node, counted from 1.
pub type Boot = u32;

/// Batches that must stand in the log in the order of their numbers: those of one producer life, or of one
/// connection of a producer that does not retry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Lane(pub u64);

/// One batch that a producer made.
#[derive(Clone, Debug)]
pub struct Sent {
    pub partition: PartitionId,
    pub lane: Lane,
    pub records: u32,
    pub bytes: u32,
    /// Of the part that the node must not change.
    pub hash: u64,
    /// The lives of the node in which it was sent first and last.
    pub first_boot: Boot,
    pub last_boot: Boot,
    /// The node said that it is not in the log.
    pub refused: bool,
    /// It was sent while nothing new could become visible, in that many-th freeze of its partition.
    pub frozen: Option<u32>,
    /// Where it stands in the log as far as is known.
    pub base: Option<u64>,
}

/// All batches of a run, by their [`Uid`].
#[derive(Debug, Default)]
pub struct Shadow {
    sent: Vec<Sent>,
}

/// A batch to be made.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub partition: PartitionId,
    pub lane: Lane,
    pub boot: Boot,
    pub records: u32,
    pub value_len: u32,
    pub stamp: Option<Stamp>,
    pub frozen: Option<u32>,
}

impl Wanted {
    /// One small record of an auditor, the number `no` of its: it is in a lane of its own, behind those of all clients.
    pub fn last(partition: PartitionId, no: u64, boot: Boot) -> Self {
        let lane = Lane(u64::from(u32::MAX) << 32 | no);
        Self { partition, lane, boot, records: 1, value_len: 8, stamp: None, frozen: None }
    }
}

impl Shadow {
    /// Makes a batch that no other is like.
    pub fn make(&mut self, wanted: &Wanted) -> (Uid, Bytes) {
        let uid = Uid(u32::try_from(self.sent.len()).expect("a run makes fewer than 2^32 batches"));
        let mut bytes =
            BytesMut::with_capacity(100 + wanted.records as usize * (wanted.value_len as usize + 16));
        let recipe = Recipe {
            uid,
            records: wanted.records,
            value_len: wanted.value_len,
            timestamp: i64::from(uid.0) + 1_000_000,
            stamp: wanted.stamp,
        };
        let hash = records::build(&recipe, &mut bytes);
        self.sent.push(Sent {
            partition: wanted.partition,
            lane: wanted.lane,
            records: wanted.records,
            bytes: u32::try_from(bytes.len()).expect("a simulated batch is small"),
            hash,
            first_boot: wanted.boot,
            last_boot: wanted.boot,
            refused: false,
            frozen: wanted.frozen,
            base: None,
        });
        (uid, bytes.freeze())
    }

    pub fn get(&self, uid: Uid) -> Option<&Sent> {
        self.sent.get(uid.index())
    }

    pub fn of(&self, uid: Uid) -> &Sent {
        &self.sent[uid.index()]
    }

    pub fn of_mut(&mut self, uid: Uid) -> &mut Sent {
        &mut self.sent[uid.index()]
    }

    /// Batches made so far.
    pub fn len(&self) -> usize {
        self.sent.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }
}
