//! One replica of one partition: its role, its ends, and who waits for them. Floor 1, pure.
//!
//! Owned by one shard and never shared. It decides what an append or a read may do; bytes are placed by the
//! journal, and the shard carries answers.

pub mod batches;
pub mod epochs;
pub mod isr;
pub mod producers;
pub mod waiters;

use bytes::Bytes;

use crate::batch::{BatchHeader, Batches as ProducedBatches};
use crate::ids::{LeaderEpoch, NodeId, Offset, PartitionEpoch, PartitionId};
use crate::mail::{Assignment, Durability, EpochEnd, PartitionConfig, PartitionError, ReadEnds};
use crate::time::Instant;

use batches::{BatchRef, Batches, Found, Wanted};
use epochs::EpochCache;
use isr::{Ends, InSync};
use producers::{Check, Producers};
use waiters::Waiters;

/// What this node is to the partition.
#[derive(Debug)]
enum Role {
    /// Recovered from the journal, or assigned elsewhere: serves nobody.
    None,
    Leader(Leader),
}

/// A leadership: one leader epoch of this replica.
#[derive(Debug)]
struct Leader {
    epoch: LeaderEpoch,
    /// Where this epoch's records begin (R3). Until the high watermark reaches it, the end of the log that
    /// consumers may see is not known (R16).
    epoch_start: Offset,
    in_sync: InSync,
}

/// `log_start <= high_watermark <= log_end`, `flushed_end <= log_end`; under `Durability::Fsync` the high
/// watermark is also at most `flushed_end`.
#[derive(Debug)]
pub struct Partition {
    pub id: PartitionId,
    node: NodeId,
    role: Role,
    partition_epoch: PartitionEpoch,
    config: PartitionConfig,
    epochs: EpochCache,
    batches: Batches,
    producers: Producers,
    /// Whether a timer will call [`Partition::expire_producers`].
    producers_armed: bool,
    ends: Ends,
    high_watermark: Offset,
    pub waiters: Waiters,
}

/// What became of an [`Assignment`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Assigned {
    /// Older than what the partition knows: nothing changed (R2).
    Stale,
    /// This replica leads, in the epoch in which it led before.
    Leading,
    /// This replica leads from now on, in a new epoch. Who waited for the last one must be told (R15).
    LeadingAnew,
    /// This replica does not lead (any more): who waits must be told (R15).
    NotLeading,
}

/// What a checked append is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// To be appended at the log's end, under this epoch.
    New { epoch: LeaderEpoch },
    /// Appended before, as the producer did not know: not again. It ends at `end`.
    Duplicate { base_offset: Offset, end: Offset },
}

impl Partition {
    /// An empty replica that serves nobody until it is assigned.
    pub fn new(id: PartitionId, node: NodeId) -> Self {
        Self {
            id,
            node,
            role: Role::None,
            partition_epoch: PartitionEpoch::default(),
            config: PartitionConfig::default(),
            epochs: EpochCache::default(),
            batches: Batches::default(),
            producers: Producers::default(),
            producers_armed: false,
            ends: Ends::default(),
            high_watermark: Offset::ZERO,
            waiters: Waiters::default(),
        }
    }

    pub fn log_start(&self) -> Offset {
        self.batches.start().unwrap_or(self.ends.log)
    }

    pub fn log_end(&self) -> Offset {
        self.ends.log
    }

    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    pub fn durability(&self) -> Durability {
        self.config.durability
    }

    pub fn config(&self) -> &PartitionConfig {
        &self.config
    }

    /// Takes over committed metadata. The log is not touched here.
    pub fn assign(&mut self, assignment: &Assignment) -> Assigned {
        assert_eq!(assignment.partition, self.id, "an assignment went to another partition");
        if assignment.partition_epoch < self.partition_epoch {
            return Assigned::Stale;
        }
        self.partition_epoch = assignment.partition_epoch;
        self.config = assignment.config;
        if assignment.leader != Some(self.node) {
            self.role = Role::None;
            return Assigned::NotLeading;
        }
        let assigned = match &mut self.role {
            Role::Leader(leader) if leader.epoch == assignment.leader_epoch => {
                leader.in_sync.on_committed(&assignment.replicas, &assignment.isr);
                Assigned::Leading
            }
            _ => {
                self.lead(assignment);
                Assigned::LeadingAnew
            }
        };
        self.advance_high_watermark();
        assigned
    }

    fn lead(&mut self, assignment: &Assignment) {
        let epoch = assignment.leader_epoch;
        self.epochs.begin(epoch, self.ends.log);
        let mut in_sync = InSync::new(&assignment.replicas, &assignment.isr);
        in_sync.on_progress(self.node, self.ends);
        self.role = Role::Leader(Leader { epoch, epoch_start: self.ends.log, in_sync });
    }

    /// Takes in a batch that recovery found in the journal.
    pub fn replay(&mut self, now: Instant, batch: BatchRef, header: &BatchHeader, bytes: Bytes) {
        if let Some(epoch) = LeaderEpoch::from_wire(header.leader_epoch) {
            self.epochs.begin(epoch, batch.base);
        }
        self.producers.record(now, header, batch.base);
        self.batches.push(batch, bytes);
        self.ends = Ends { log: batch.next, flushed: batch.next };
    }

    /// Whether these batches may be appended now, all of them.
    ///
    /// # Errors
    /// [`PartitionError::NotLeader`], [`PartitionError::NotEnoughReplicas`] (R12), and what the rules of
    /// idempotent producers refuse.
    pub fn admit(
        &self,
        batches: &ProducedBatches<'_>,
        needs_quorum: bool,
    ) -> Result<Admission, PartitionError> {
        let leader = self.leader()?;
        if needs_quorum && !leader.in_sync.has_quorum(self.config.isr_min) {
            return Err(PartitionError::NotEnoughReplicas);
        }
        for (header, _) in batches.iter() {
            match self.producers.check(header)? {
                Check::New => {}
                Check::Duplicate { base_offset } => {
                    let end = base_offset.plus(u64::from(header.records));
                    return Ok(Admission::Duplicate { base_offset, end });
                }
            }
        }
        Ok(Admission::New { epoch: leader.epoch })
    }

    /// Before an idempotent append: when to call [`Partition::expire_producers`], if no timer is set for it yet.
    pub fn arm_producers(&mut self, now: Instant) -> Option<Instant> {
        let first = !std::mem::replace(&mut self.producers_armed, true);
        first.then(|| self.producers.next_expiry().unwrap_or(now + producers::EXPIRY))
    }

    /// Forgets producers that were idle too long, and says when to look again.
    pub fn expire_producers(&mut self, now: Instant) -> Option<Instant> {
        self.producers.expire(now);
        let next = self.producers.next_expiry();
        self.producers_armed = next.is_some();
        next
    }

    /// Notes a batch that the journal took at the log's end.
    pub fn appended(&mut self, now: Instant, batch: BatchRef, header: &BatchHeader, bytes: Bytes) {
        assert_eq!(batch.base, self.ends.log, "a batch is appended at the log's end");
        if header.producer.is_some() {
            self.producers.record(now, header, batch.base);
        }
        self.ends.log = batch.next;
        self.batches.push(batch, bytes);
        self.on_local_progress();
    }

    /// Notes that everything before `end` is on this node's disk.
    pub fn flushed(&mut self, end: Offset) {
        assert!(end <= self.ends.log, "only what was appended can have been flushed");
        self.ends.flushed = self.ends.flushed.max(end);
        self.on_local_progress();
    }

    fn on_local_progress(&mut self) {
        if let Role::Leader(leader) = &mut self.role {
            leader.in_sync.on_progress(self.node, self.ends);
        }
        self.advance_high_watermark();
    }

    /// R11: the high watermark follows the slowest in-sync replica, never back, and stands still while too few
    /// are in sync.
    fn advance_high_watermark(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        if !leader.in_sync.has_quorum(self.config.isr_min) {
            return;
        }
        if let Some(end) = leader.in_sync.common_end(self.config.durability) {
            self.high_watermark = self.high_watermark.max(end);
        }
    }

    /// Whether enough replicas are in sync for what was appended to count as committed (R13).
    pub fn has_quorum(&self) -> bool {
        matches!(&self.role, Role::Leader(leader) if leader.in_sync.has_quorum(self.config.isr_min))
    }

    /// Whole batches below the high watermark from the one that holds `from` on.
    ///
    /// # Errors
    /// [`PartitionError::OffsetOutOfRange`] outside of the log; not leading; R4 for `current_epoch`.
    pub fn read(
        &self,
        current_epoch: Option<LeaderEpoch>,
        from: Offset,
        bytes_max: usize,
        first_whole: bool,
    ) -> Result<Found, PartitionError> {
        self.check_epoch(current_epoch)?;
        // A consumer may stand between the high watermark and the log's end (after a change of leader) and waits there.
        if from < self.log_start() || from > self.ends.log {
            return Err(PartitionError::OffsetOutOfRange);
        }
        Ok(self.batches.find(Wanted { from, below: self.high_watermark, bytes_max, first_whole }))
    }

    pub fn read_ends(&self) -> ReadEnds {
        ReadEnds { high_watermark: self.high_watermark, log_start: self.log_start() }
    }

    /// R4, and that this replica leads.
    pub fn check_epoch(&self, current: Option<LeaderEpoch>) -> Result<(), PartitionError> {
        let epoch = self.leader()?.epoch;
        match current {
            Some(asked) if asked < epoch => Err(PartitionError::FencedLeaderEpoch),
            Some(asked) if asked > epoch => Err(PartitionError::UnknownLeaderEpoch),
            _ => Ok(()),
        }
    }

    /// The end of the log that consumers may see.
    ///
    /// # Errors
    /// [`PartitionError::OffsetNotAvailable`] while the high watermark has not reached this epoch (R16).
    pub fn latest(&self) -> Result<Offset, PartitionError> {
        let leader = self.leader()?;
        if self.high_watermark < leader.epoch_start {
            return Err(PartitionError::OffsetNotAvailable);
        }
        Ok(self.high_watermark)
    }

    /// The first committed batch with a record at `timestamp_ms` or later, with its bytes if they are in memory.
    pub fn at_timestamp(&self, timestamp_ms: i64) -> Option<(BatchRef, Option<Bytes>)> {
        self.batches.at_timestamp(timestamp_ms).filter(|(batch, _)| batch.next <= self.high_watermark)
    }

    /// The largest timestamp of the committed records.
    pub fn largest_timestamp(&self) -> Option<i64> {
        self.batches.largest_timestamp(self.high_watermark)
    }

    pub fn epoch_of(&self, offset: Offset) -> Option<LeaderEpoch> {
        self.epochs.epoch_of(offset)
    }

    pub fn end_of_epoch(&self, asked: LeaderEpoch) -> Option<EpochEnd> {
        self.epochs.end_of(asked, self.ends.log)
    }

    /// Lets go of the oldest batch in memory.
    pub fn evict_oldest(&mut self) {
        self.batches.evict_oldest();
    }

    fn leader(&self) -> Result<&Leader, PartitionError> {
        match &self.role {
            Role::Leader(leader) => Ok(leader),
            Role::None => Err(PartitionError::NotLeader),
        }
    }
}
