//! What an idempotent producer has going with one partition: batches in their order, sent again until they are acknowledged;
//! and what a producer makes of errors and draws at random.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use highwater_shards::ids::PartitionId;
use highwater_shards::mail::PartitionError;
use highwater_shards::time::Instant;

use crate::records::{Stamp, Uid};
use crate::rng::Rng;
use crate::shadow::{Boot, Lane, Shadow, Wanted};

/// A broker remembers so many batches of a producer at a partition.
pub const OPEN_MAX: usize = 5;

#[derive(Debug)]
pub struct Track {
    lane: Lane,
    sequence: u32,
    /// Batches made.
    made: usize,
    unacked: VecDeque<Unacked>,
    /// The partition knows this producer by a batch that it acknowledged. Until then it takes any sequence for the
    /// first, so that a second open batch could overtake a first one that failed.
    known: bool,
    /// Something failed: nothing new until all that was sent is answered, then everything again.
    stalled: bool,
    /// Nothing is sent again before this.
    again_at: Instant,
}

#[derive(Debug)]
struct Unacked {
    /// How many batches were made before it.
    index: usize,
    uid: Uid,
    records: Bytes,
    in_flight: bool,
}

impl Track {
    pub fn new(lane: Lane) -> Self {
        Self {
            lane,
            sequence: 0,
            made: 0,
            unacked: VecDeque::new(),
            known: false,
            stalled: false,
            again_at: Instant::ZERO,
        }
    }

    pub fn lane(&self) -> Lane {
        self.lane
    }

    /// Everything is acknowledged.
    pub fn is_settled(&self) -> bool {
        self.unacked.is_empty()
    }

    /// What is to be sent again now.
    pub fn again(&mut self, now: Instant) -> Option<(Uid, Bytes)> {
        if !self.stalled || self.again_at > now {
            return None;
        }
        let sent = self.unacked.iter().take_while(|u| u.in_flight).count();
        if self.unacked.iter().skip(sent).any(|u| u.in_flight) {
            return None;
        }
        self.stalled = sent + 1 < self.unacked.len();
        let next = self.unacked.get_mut(sent)?;
        next.in_flight = true;
        Some((next.uid, next.records.clone()))
    }

    /// The next batch, unless too many are open.
    pub fn make(
        &mut self,
        (producer, epoch): (u64, u16),
        mut wanted: Wanted,
        shadow: &mut Shadow,
    ) -> Option<(Uid, Bytes)> {
        let open_max = if self.known { OPEN_MAX } else { 1 };
        // The oldest open batch must be among those that the node remembers, whatever became of the ones since.
        let span = self.unacked.front().map_or(0, |u| self.made - u.index);
        if self.stalled || span >= open_max {
            return None;
        }
        wanted.stamp = Some(Stamp { producer, epoch, sequence: self.sequence });
        self.sequence += wanted.records;
        let (uid, records) = shadow.make(&wanted);
        let index = self.made;
        self.made += 1;
        self.unacked.push_back(Unacked { index, uid, records: records.clone(), in_flight: true });
        Some((uid, records))
    }

    /// The place of a batch among those that are not acknowledged.
    pub fn place(&self, uid: Uid) -> Option<usize> {
        self.unacked.iter().position(|u| u.uid == uid)
    }

    /// The batch that stands there is acknowledged.
    pub fn acked(&mut self, at: usize) {
        self.unacked.remove(at);
        self.known = true;
    }

    /// It was not, and is sent again from then on.
    pub fn failed(&mut self, at: usize, again_at: Instant) {
        self.unacked[at].in_flight = false;
        self.stalled = true;
        self.again_at = self.again_at.max(again_at);
    }

    /// No answer will come any more.
    pub fn all_lost(&mut self) {
        self.stalled |= !self.unacked.is_empty();
        self.unacked.iter_mut().for_each(|u| u.in_flight = false);
    }
}

/// The sizes of batches.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// In thousandths: a record that is much larger than usual.
    pub huge: u32,
    pub value_max: u32,
    pub batch_records_max: u32,
    pub batch_bytes_max: u32,
}

impl Sizes {
    pub fn draw(&self, partition: PartitionId, lane: Lane, boot: Boot, rng: &mut Rng) -> Wanted {
        let value_max = if rng.chance(self.huge) { 40_000 } else { self.value_max };
        let records = u32::try_from(rng.range(1..u64::from(self.batch_records_max) + 1)).expect("small");
        // A record has about twenty bytes besides its value.
        let fits = (self.batch_bytes_max - 100) / records - 20;
        let value_max = u64::from(value_max.min(fits));
        let value_len = u32::try_from(rng.range(8..value_max + 1)).expect("small");
        Wanted { partition, lane, boot, records, value_len, stamp: None, frozen: None }
    }
}

pub fn timeout(rng: &mut Rng) -> Duration {
    Duration::from_millis(*rng.pick(&[5, 50, 500, 2000]))
}

/// Whether the error says that nothing was appended.
pub fn is_definite(e: PartitionError) -> bool {
    use PartitionError as E;
    !matches!(
        e,
        E::TimedOut | E::NotEnoughReplicasAfterAppend | E::NotLeader | E::NotOwned | E::StorageFailed
    )
}

/// Errors that a sound batch of a sound producer never meets.
pub fn is_fault_of_batch(e: PartitionError) -> bool {
    use PartitionError as E;
    matches!(
        e,
        E::CorruptBatch | E::InvalidBatch | E::UnsupportedFormat | E::BatchTooLarge | E::InvalidProducerEpoch
    )
}
