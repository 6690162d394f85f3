//! What a replica does while it follows: where it stands, what it takes, where it cuts its log. Floor 1, pure.
//!
//! It cuts by leader epochs and never at its high watermark, which may lie before records that are committed
//! (KAFKA-6361, KIP-101).

use super::{Partition, Role};
use crate::batch::BatchHeader;
use crate::ids::{LeaderEpoch, NodeId, Offset};
use crate::stream::Ends;
use crate::time::Instant;

/// A follower of one leader epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Follower {
    pub leader: NodeId,
    pub epoch: LeaderEpoch,
    /// As is committed.
    pub in_sync: bool,
}

/// Why a leader's batch is not what comes next (R22).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Misfit {
    #[error("it is of another leader epoch than is followed")]
    OtherEpoch,
    #[error("a batch begins at {found}, and the log ends at {end}")]
    Offset { found: i64, end: Offset },
    #[error("a batch is of leader epoch {found}, and {last} to {followed} is possible")]
    BatchEpoch { found: i32, last: LeaderEpoch, followed: LeaderEpoch },
}

/// How a log is made to meet its leader's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mend {
    /// It ends here from now on.
    Cut { end: Offset },
    /// It begins here, empty.
    Anew { start: Offset },
}

/// What a leader's word of its ends means for a follower.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Learnt {
    /// The high watermark moved.
    pub moved: bool,
    /// Records before this are to go, as they did on the leader (R24).
    pub start: Option<Offset>,
}

impl Partition {
    pub fn follower(&self) -> Option<&Follower> {
        match &self.role {
            Role::Follower(follower) => Some(follower),
            Role::Leader(_) | Role::None => None,
        }
    }

    /// Where the log ends, and the epoch of its last record.
    pub fn position(&self) -> (Offset, Option<LeaderEpoch>) {
        let end = self.ends.log;
        let last = (end > self.log_start).then(|| self.epochs.epoch_of(Offset(end.0 - 1)));
        (end, last.flatten())
    }

    /// R20: where the log is cut when the leader says that its largest epoch up to ours is `epoch` and ends at `end`.
    pub fn mend_diverging(&self, epoch: LeaderEpoch, end: Offset) -> Mend {
        let own = self.epochs.end_of(epoch, self.ends.log);
        let end = match own {
            Some(own) if own.epoch == epoch => own.end.min(end),
            // The leader's epoch is unknown here: what follows the one before it goes, and the leader is asked again.
            Some(own) => own.end,
            // All that is here is of later epochs than the leader had then.
            None => self.log_start,
        };
        Mend::Cut { end: end.clamp(self.log_start, self.ends.log) }
    }

    /// R24: how the log meets one that goes from `start` to `end` and either begins behind this one's end, or ends
    /// before it, or shares no epoch with it.
    pub fn mend_out_of_range(&self, start: Offset, end: Offset) -> Mend {
        if self.ends.log == self.log_start && self.ends.log > end {
            return Mend::Cut { end };
        }
        Mend::Anew { start: start.max(self.log_start) }
    }

    /// Whether a leader's batch is what comes next. Its base offset, which lies before the log's end only for the first
    /// batch of an empty log that begins within it, as the leader's does since records were deleted: then the log is cut
    /// there first.
    ///
    /// # Errors
    /// It does not fit; see [`Misfit`].
    pub fn fits(&self, epoch: LeaderEpoch, header: &BatchHeader) -> Result<(Offset, LeaderEpoch), Misfit> {
        let follower = self.follower().ok_or(Misfit::OtherEpoch)?;
        if follower.epoch != epoch {
            return Err(Misfit::OtherEpoch);
        }
        let base = header
            .base()
            .filter(|&base| base == self.ends.log || self.begins_within(base, header))
            .ok_or(Misfit::Offset { found: header.base_offset, end: self.ends.log })?;
        let last = self.epochs.latest().unwrap_or_default();
        let batch_epoch = LeaderEpoch::from_wire(header.leader_epoch)
            .filter(|&found| found >= last && found <= follower.epoch)
            .ok_or(Misfit::BatchEpoch { found: header.leader_epoch, last, followed: follower.epoch })?;
        Ok((base, batch_epoch))
    }

    fn begins_within(&self, base: Offset, header: &BatchHeader) -> bool {
        let end = self.ends.log;
        end == self.log_start && base < end && end < base.plus(header.offsets())
    }

    /// Notes a leader's batch that the journal took at the log's end.
    pub fn replicated(&mut self, now: Instant, header: &BatchHeader, base: Offset, epoch: LeaderEpoch) {
        assert_eq!(base, self.ends.log, "a batch is appended at the log's end");
        self.epochs.begin(epoch, base);
        if header.producer.is_some() {
            self.producers.record(now, header, base, self.settled());
        }
        self.ends.log = base.plus(header.offsets());
    }

    /// R17: the high watermark is the leader's, within this log. It does not go back with a new leader that knows of less:
    /// what an earlier one said to be committed is.
    pub fn learn(&mut self, epoch: LeaderEpoch, ends: Ends) -> Learnt {
        if self.follower().is_none_or(|follower| follower.epoch != epoch) {
            return Learnt::default();
        }
        let before = self.high_watermark;
        let told = ends.high_watermark.clamp(self.log_start, self.ends.log);
        self.high_watermark = before.max(told);
        let start = ends.log_start.min(self.high_watermark);
        Learnt { moved: self.high_watermark > before, start: (start > self.log_start).then_some(start) }
    }
}
