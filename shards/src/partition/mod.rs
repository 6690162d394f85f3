//! One replica of one partition: its role, its ends, and who waits for them. Floor 1, pure.
//!
//! Owned by one shard and never shared. It decides what an append or a read may do; where records lie is the log's
//! affair, and the shard carries answers.

pub mod epochs;
pub mod isr;
pub mod producers;
pub mod waiters;

use crate::batch::{BatchHeader, Batches as ProducedBatches};
use crate::ids::{LeaderEpoch, NodeId, Offset, PartitionEpoch, PartitionId};
use crate::log::checkpoint::LogState;
use crate::mail::{Assignment, Durability, EpochEnd, PartitionConfig, PartitionError, ReadEnds};
use crate::time::Instant;

use epochs::EpochCache;
use isr::{Ends, InSync};
use producers::{Check, Producers};
use waiters::Waiters;

/// What this node is to the partition.
#[derive(Debug)]
enum Role {
    /// Recovered from disk, or assigned elsewhere: serves nobody.
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
    producers: Producers,
    /// Whether a timer will call [`Partition::expire_producers`].
    producers_armed: bool,
    log_start: Offset,
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
            producers: Producers::default(),
            producers_armed: false,
            log_start: Offset::ZERO,
            ends: Ends::default(),
            high_watermark: Offset::ZERO,
            waiters: Waiters::default(),
        }
    }

    pub fn log_start(&self) -> Offset {
        self.log_start
    }

    pub fn log_end(&self) -> Offset {
        self.ends.log
    }

    pub fn ends(&self) -> Ends {
        self.ends
    }

    /// The epoch in which this replica leads.
    pub fn leads(&self) -> Option<LeaderEpoch> {
        match &self.role {
            Role::Leader(leader) => Some(leader.epoch),
            Role::None => None,
        }
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

    /// Takes over what a checkpoint, or a scan of the segments, says of the log.
    pub fn restore(&mut self, now: Instant, state: &LogState) {
        self.log_start = state.start;
        self.ends = Ends { log: state.end, flushed: state.end };
        self.high_watermark = state.high_watermark;
        self.epochs = EpochCache::from_list(&state.epochs);
        self.producers = Producers::from_list(now, &state.producers);
    }

    /// Adds to `state` what only the partition knows. The counterpart of [`Self::restore`].
    pub fn note(&self, state: &mut LogState) {
        state.high_watermark = self.high_watermark;
        state.epochs = self.epochs.to_list();
        state.producers = self.producers.to_list();
    }

    /// Takes in a batch that recovery found in the journal. With `is_noted`, the state that [`Self::restore`] took over
    /// knows of it.
    pub fn replay(&mut self, now: Instant, header: &BatchHeader, base: Offset, is_noted: bool) {
        if !is_noted {
            if let Some(epoch) = LeaderEpoch::from_wire(header.leader_epoch) {
                self.epochs.begin(epoch, base);
            }
            self.producers.record(now, header, base);
        }
        let end = base.plus(header.offsets());
        self.ends = Ends { log: end, flushed: end };
    }

    /// The log ends at `end` from now on; what was behind it is gone.
    pub fn cut(&mut self, end: Offset) {
        self.ends = Ends { log: self.ends.log.min(end), flushed: self.ends.flushed.min(end) };
        self.high_watermark = self.high_watermark.min(end);
        self.epochs.cut(end);
        self.producers.cut(end);
    }

    /// Takes in a cut that recovery found in the journal, as [`Self::replay`] does with a batch.
    pub fn replay_cut(&mut self, end: Offset, is_noted: bool) {
        if is_noted {
            self.ends = Ends { log: self.ends.log.min(end), flushed: self.ends.flushed.min(end) };
        } else {
            self.cut(end);
        }
    }

    /// The log begins at `start` from now on: records before it are gone.
    pub fn start_at(&mut self, start: Offset) {
        self.log_start = self.log_start.max(start);
        // A log that ended before goes on there, empty.
        self.ends.log = self.ends.log.max(self.log_start);
        self.ends.flushed = self.ends.flushed.max(self.log_start);
        self.high_watermark = self.high_watermark.max(self.log_start);
        self.epochs.start_at(self.log_start);
    }

    /// Recovery is over: nothing that was noted may reach beyond what was found.
    pub fn recovered(&mut self) {
        self.cut(self.ends.log);
        self.high_watermark = self.high_watermark.max(self.log_start);
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
    pub fn appended(&mut self, now: Instant, header: &BatchHeader, base: Offset) {
        assert_eq!(base, self.ends.log, "a batch is appended at the log's end");
        if header.producer.is_some() {
            self.producers.record(now, header, base);
        }
        self.ends.log = base.plus(header.offsets());
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

    /// Up to where a consumer may read from `from` on: the high watermark.
    ///
    /// # Errors
    /// [`PartitionError::OffsetOutOfRange`] outside of the log; not leading; R4 for `current_epoch`.
    pub fn readable(
        &self,
        current_epoch: Option<LeaderEpoch>,
        from: Offset,
        _from_follower: bool,
    ) -> Result<Offset, PartitionError> {
        self.check_epoch(current_epoch)?;
        // A consumer may stand between the high watermark and the log's end (after a change of leader) and waits there.
        if from < self.log_start || from > self.ends.log {
            return Err(PartitionError::OffsetOutOfRange);
        }
        Ok(self.high_watermark)
    }

    /// Where the log is to begin when the records before `before` are deleted, before the high watermark without.
    ///
    /// # Errors
    /// [`PartitionError::OffsetOutOfRange`] above the high watermark; not leading.
    pub fn delete_before(&self, before: Option<Offset>) -> Result<Offset, PartitionError> {
        self.leader()?;
        match before {
            Some(offset) if offset > self.high_watermark => Err(PartitionError::OffsetOutOfRange),
            Some(offset) => Ok(offset.max(self.log_start)),
            None => Ok(self.high_watermark.max(self.log_start)),
        }
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

    pub fn epoch_of(&self, offset: Offset) -> Option<LeaderEpoch> {
        self.epochs.epoch_of(offset)
    }

    pub fn end_of_epoch(&self, asked: LeaderEpoch) -> Option<EpochEnd> {
        self.epochs.end_of(asked, self.ends.log)
    }

    fn leader(&self) -> Result<&Leader, PartitionError> {
        match &self.role {
            Role::Leader(leader) => Ok(leader),
            Role::None => Err(PartitionError::NotLeader),
        }
    }
}
