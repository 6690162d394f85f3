//! One replica of one partition: its role, its ends, and who waits for them. Floor 1, pure.
//!
//! Owned by one shard and never shared. It decides what an append or a read may do; where records lie is the log's
//! affair, and the shard carries answers. What it does as leader is in `leader.rs`, as follower in `follower.rs`.

pub mod epochs;
pub mod follower;
pub mod isr;
pub mod leader;
pub mod producers;
pub mod waiters;

use crate::batch::{BatchHeader, Batches as ProducedBatches};
use crate::ids::{ConnId, LeaderEpoch, NodeId, Offset, PartitionEpoch, PartitionId};
use crate::log::checkpoint::LogState;
use crate::mail::{Assignment, Durability, EpochEnd, PartitionConfig, PartitionError, ReadEnds};
use crate::stream::Handle;
use crate::time::Instant;

use epochs::EpochCache;
use follower::Follower;
use isr::Ends;
use leader::Leader;
use producers::{Check, Producers};
use waiters::Waiters;

/// What this node is to the partition.
#[derive(Debug)]
enum Role {
    /// Recovered from disk, assigned elsewhere, or without a leader: serves nobody.
    None,
    Leader(Leader),
    Follower(Follower),
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
    pub audience: Audience,
}

/// The streams on which this replica's followers are told of what it appends. Empty unless it leads.
#[derive(Debug, Default)]
pub struct Audience {
    /// At most one of each node.
    pub members: Vec<Member>,
    /// Whether they are about to be told.
    pub is_marked: bool,
}

/// One subscription.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    pub node: NodeId,
    pub conn: ConnId,
    pub handle: Handle,
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
    /// This replica follows, as it did before.
    Following,
    /// This replica follows from now on, in a new epoch. Who waited for its leadership must be told (R15).
    FollowingAnew,
    /// This replica neither leads nor follows: who waits must be told (R15).
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
            audience: Audience::default(),
        }
    }

    pub fn log_start(&self) -> Offset {
        self.log_start
    }

    pub fn log_end(&self) -> Offset {
        self.ends.log
    }

    /// The epoch in which this replica leads.
    pub fn leads(&self) -> Option<LeaderEpoch> {
        match &self.role {
            Role::Leader(leader) => Some(leader.epoch),
            Role::None | Role::Follower(_) => None,
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
    pub fn assign(&mut self, now: Instant, assignment: &Assignment) -> Assigned {
        assert_eq!(assignment.partition, self.id, "an assignment went to another partition");
        if assignment.partition_epoch < self.partition_epoch {
            return Assigned::Stale;
        }
        self.partition_epoch = assignment.partition_epoch;
        self.config = assignment.config;
        if assignment.leader != Some(self.node) {
            return self.assign_follower(assignment);
        }
        let assigned = match &mut self.role {
            Role::Leader(leader) if leader.epoch == assignment.leader_epoch => {
                leader.in_sync.on_committed(
                    now,
                    assignment.partition_epoch,
                    &assignment.replicas,
                    &assignment.isr,
                );
                Assigned::Leading
            }
            _ => {
                self.lead(now, assignment);
                Assigned::LeadingAnew
            }
        };
        self.advance_high_watermark();
        assigned
    }

    fn assign_follower(&mut self, assignment: &Assignment) -> Assigned {
        // An epoch in which this replica led and appended nothing is none that its log knows.
        self.epochs.cut(self.ends.log);
        let Some(leader) = assignment.leader.filter(|_| assignment.replicas.contains(&self.node)) else {
            self.role = Role::None;
            return Assigned::NotLeading;
        };
        let epoch = assignment.leader_epoch;
        let in_sync = assignment.isr.contains(&self.node);
        let before = std::mem::replace(&mut self.role, Role::Follower(Follower { leader, epoch, in_sync }));
        match before {
            Role::Follower(known) if known.leader == leader && known.epoch == epoch => Assigned::Following,
            _ => Assigned::FollowingAnew,
        }
    }

    /// Takes over what a checkpoint, or a scan of the segments, says of the log.
    pub fn restore(&mut self, now: Instant, state: &LogState) {
        self.log_start = state.start;
        self.ends = Ends { log: state.end, flushed: state.end };
        self.high_watermark = state.high_watermark;
        self.epochs = EpochCache::from_list(&state.epochs);
        self.producers = Producers::from_list(now, &state.producers, &state.superseded);
    }

    /// Adds to `state` what only the partition knows. The counterpart of [`Self::restore`].
    pub fn note(&self, state: &mut LogState) {
        state.high_watermark = self.high_watermark;
        state.epochs = self.epochs.to_list();
        state.producers = self.producers.to_list();
        state.superseded = self.producers.superseded(self.settled());
    }

    /// Takes in a batch that recovery found in the journal. With `is_noted`, the state that [`Self::restore`] took over
    /// knows of it.
    pub fn replay(&mut self, now: Instant, header: &BatchHeader, base: Offset, is_noted: bool) {
        if !is_noted {
            // A checkpoint that was made while this replica led knows that epoch, though no record may have come of it.
            self.epochs.cut(base);
            if let Some(epoch) = LeaderEpoch::from_wire(header.leader_epoch) {
                self.epochs.begin(epoch, base);
            }
            self.producers.record(now, header, base, Offset::ZERO);
        }
        let end = base.plus(header.offsets());
        self.ends = Ends { log: end, flushed: end };
    }

    /// Neither a crash nor a leader takes away what is before it, unless an election was unclean.
    fn settled(&self) -> Offset {
        self.high_watermark.min(self.ends.flushed)
    }

    /// The log ends at `end` from now on; what was behind it is gone.
    pub fn cut(&mut self, end: Offset) {
        self.ends = Ends { log: self.ends.log.min(end), flushed: self.ends.flushed.min(end) };
        self.log_start = self.log_start.min(end);
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
            self.producers.record(now, header, base, self.settled());
        }
        self.ends.log = base.plus(header.offsets());
        self.on_local_progress(now);
    }

    /// Notes that everything before `end` is on this node's disk.
    pub fn flushed(&mut self, now: Instant, end: Offset) {
        assert!(end <= self.ends.log, "only what was appended can have been flushed");
        self.ends.flushed = self.ends.flushed.max(end);
        self.on_local_progress(now);
    }

    fn on_local_progress(&mut self, now: Instant) {
        if let Role::Leader(leader) = &mut self.role {
            leader.in_sync.on_local(now, self.ends);
        }
        self.advance_high_watermark();
    }

    /// Up to where a consumer may read from `from` on: the high watermark. A follower says so only to those who ask for
    /// any replica (KIP-392).
    ///
    /// What a follower shows stays: its log is cut at the end of a leader epoch, and every leader has all that was committed
    /// before it led, so no cut goes below a high watermark that was told, unless an unclean election gave records up. A
    /// reader behind such a cut learns so from the leader, which alone knows where the log ends.
    ///
    /// # Errors
    /// [`PartitionError::OffsetOutOfRange`] outside of the log, [`PartitionError::OffsetNotAvailable`] behind the end of
    /// a follower's; not leading; R4 for `current_epoch`.
    pub fn readable(
        &self,
        current_epoch: Option<LeaderEpoch>,
        from: Offset,
        from_follower: bool,
    ) -> Result<Offset, PartitionError> {
        let epoch = match self.follower() {
            Some(follower) if from_follower => follower.epoch,
            _ => self.leader()?.epoch,
        };
        compare_epochs(current_epoch, epoch)?;
        // A consumer may stand between the high watermark and the log's end (after a change of leader) and waits there.
        if from < self.log_start {
            return Err(PartitionError::OffsetOutOfRange);
        }
        if from > self.ends.log {
            // The leader may have what a follower does not have yet.
            let is_follower = self.follower().is_some();
            return Err(match is_follower {
                true => PartitionError::OffsetNotAvailable,
                false => PartitionError::OffsetOutOfRange,
            });
        }
        Ok(self.high_watermark)
    }

    pub fn read_ends(&self) -> ReadEnds {
        ReadEnds { high_watermark: self.high_watermark, log_start: self.log_start() }
    }

    pub fn ends(&self) -> Ends {
        self.ends
    }

    /// R4, and that this replica leads.
    pub fn check_epoch(&self, current: Option<LeaderEpoch>) -> Result<(), PartitionError> {
        compare_epochs(current, self.leader()?.epoch)
    }

    pub fn epoch_of(&self, offset: Offset) -> Option<LeaderEpoch> {
        self.epochs.epoch_of(offset)
    }

    pub fn end_of_epoch(&self, asked: LeaderEpoch) -> Option<EpochEnd> {
        self.epochs.end_of(asked, self.ends.log)
    }
}

/// R4.
fn compare_epochs(asked: Option<LeaderEpoch>, known: LeaderEpoch) -> Result<(), PartitionError> {
    match asked {
        Some(asked) if asked < known => Err(PartitionError::FencedLeaderEpoch),
        Some(asked) if asked > known => Err(PartitionError::UnknownLeaderEpoch),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
