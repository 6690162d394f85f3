//! What a replica does while it leads: who may follow from where, how far followers are, what counts as committed.
//! Floor 1, pure.

use std::time::Duration;

use super::isr::{Bar, Ends, InSync, Standing};
use super::{Partition, Role};
use crate::ids::{LeaderEpoch, NodeId, Offset, RegistrationEpoch};
use crate::mail::{Assignment, IsrChange, PartitionError};
use crate::stream::{Refusal, Subscribe};
use crate::time::Instant;

/// A leadership: one leader epoch of this replica.
#[derive(Debug)]
pub(super) struct Leader {
    pub epoch: LeaderEpoch,
    /// Where this epoch's records begin (R3). Until the high watermark reaches it, the end of the log that
    /// consumers may see is not known (R16).
    pub epoch_start: Offset,
    pub in_sync: InSync,
}

/// What becomes of a wish to follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Followed {
    /// Records follow from the asked offset on.
    Accepted {
        epoch: LeaderEpoch,
    },
    /// The logs part at or before `end`, where `epoch` ends here (R19).
    Diverging {
        epoch: LeaderEpoch,
        end: Offset,
    },
    Refused(Refusal),
}

impl Partition {
    pub(super) fn lead(&mut self, now: Instant, assignment: &Assignment) {
        let epoch = assignment.leader_epoch;
        self.epochs.begin(epoch, self.ends.log);
        let mut in_sync = InSync::new(self.node, now, &assignment.replicas, &assignment.isr);
        in_sync.on_local(now, self.ends);
        self.role = Role::Leader(Leader { epoch, epoch_start: self.ends.log, in_sync });
    }

    /// Whether a replica that stands there may follow, and from where. One that may counts as having come so far, in
    /// this life; any other answer changes nothing that is known of it (R21).
    pub fn follow(&mut self, node: NodeId, registration: RegistrationEpoch, asked: &Subscribe) -> Followed {
        let Role::Leader(leader) = &mut self.role else { return Followed::Refused(Refusal::NotLeader) };
        if asked.leader_epoch < leader.epoch {
            return Followed::Refused(Refusal::FencedEpoch);
        }
        if asked.leader_epoch > leader.epoch {
            return Followed::Refused(Refusal::UnknownEpoch);
        }
        if node == self.node
            || !leader.in_sync.is_replica(node)
            || leader.in_sync.is_stale(node, registration)
        {
            return Followed::Refused(Refusal::NotReplica);
        }
        let out_of_range =
            Followed::Refused(Refusal::OutOfRange { start: self.log_start, end: self.ends.log });
        if asked.offset < self.log_start {
            return out_of_range;
        }
        if let Some(last_epoch) = asked.last_epoch {
            // All records that are here are of later epochs: nothing of the follower's log can be of this one.
            let Some(known) = self.epochs.end_of(last_epoch, self.ends.log) else { return out_of_range };
            if known.epoch < last_epoch || known.end < asked.offset {
                return Followed::Diverging { epoch: known.epoch, end: known.end };
            }
        } else if asked.offset > self.ends.log {
            return out_of_range;
        }
        leader.in_sync.on_subscribed(node, registration, asked.offset);
        Followed::Accepted { epoch: leader.epoch }
    }

    /// Notes how far a follower has come. The high watermark may have moved.
    pub fn on_follower_progress(
        &mut self,
        now: Instant,
        node: NodeId,
        registration: RegistrationEpoch,
        ends: Ends,
        log_start: Offset,
    ) {
        if let Role::Leader(leader) = &mut self.role {
            leader.in_sync.on_progress(now, node, registration, ends, log_start);
            self.advance_high_watermark();
        }
    }

    /// Forgets what earlier lives of a node said.
    pub fn forget_before(&mut self, node: NodeId, registration: RegistrationEpoch) {
        if let Role::Leader(leader) = &mut self.role {
            leader.in_sync.forget_before(node, registration);
        }
    }

    /// Another set of in-sync replicas, if there should be one; it is under way from now on. `lag_max` is given when
    /// followers that lag are to be looked for.
    pub fn wish(
        &mut self,
        now: Instant,
        lag_max: Option<Duration>,
        standing: impl Fn(NodeId) -> Option<Standing>,
    ) -> Option<IsrChange> {
        let bar = self.bar();
        let Role::Leader(leader) = &mut self.role else { return None };
        let bar = Bar { epoch_start: leader.epoch_start, ..bar };
        let isr = leader.in_sync.wish(now, self.partition_epoch, lag_max, bar, standing)?;
        Some(IsrChange {
            partition: self.id,
            leader_epoch: leader.epoch,
            partition_epoch: self.partition_epoch,
            isr,
        })
    }

    fn bar(&self) -> Bar {
        Bar {
            high_watermark: self.high_watermark,
            epoch_start: Offset::ZERO,
            log_end: self.ends.log,
            durability: self.config.durability,
        }
    }

    /// A wish was definitely not taken. The high watermark may have moved.
    pub fn on_wish_refused(&mut self, now: Instant, partition_epoch: crate::ids::PartitionEpoch) {
        if let Role::Leader(leader) = &mut self.role {
            leader.in_sync.on_refused(now, partition_epoch);
            self.advance_high_watermark();
        }
    }

    /// R11: the high watermark follows the slowest in-sync replica, never back, and stands still while too few
    /// are in sync.
    pub(super) fn advance_high_watermark(&mut self) {
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
        self.in_sync().is_some_and(|in_sync| in_sync.has_maximal_quorum(self.config.isr_min))
    }

    /// Of a leader.
    pub fn in_sync(&self) -> Option<&InSync> {
        match &self.role {
            Role::Leader(leader) => Some(&leader.in_sync),
            Role::Follower(_) | Role::None => None,
        }
    }

    /// Of the `candidates`, the follower to read from `from` on instead of this leader (KIP-392): one in sync whose log holds
    /// that offset. Of several the one that has most; a follower that lags would send its readers back for nothing.
    pub fn nearer(&self, candidates: &[NodeId], from: Offset) -> Option<NodeId> {
        let in_sync = self.in_sync()?;
        let found = candidates.iter().filter_map(|&node| Some((in_sync.end_of_holder(node, from)?, node)));
        // The first of equals.
        found.rev().max_by_key(|&(end, _)| end).map(|(_, node)| node)
    }

    /// Whether fewer replicas are in sync than producers ask for.
    pub fn is_under_min(&self) -> bool {
        self.in_sync().is_some_and(|in_sync| !in_sync.has_quorum(self.config.isr_min))
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

    pub(super) fn leader(&self) -> Result<&Leader, PartitionError> {
        match &self.role {
            Role::Leader(leader) => Ok(leader),
            Role::Follower(_) | Role::None => Err(PartitionError::NotLeader),
        }
    }

    pub fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }
}
