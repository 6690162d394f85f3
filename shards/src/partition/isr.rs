//! Which replicas must have a record before it counts, how far each has come, and who leaves and enters. Floor 1, pure.
//!
//! The leader's own replica is one among the others: with one replica the high watermark goes through the same
//! rule as with three (R11).
//!
//! What is committed only the cluster's metadata decides. A wish for another set of in-sync replicas counts where that is
//! the safe side: who is to enter holds the high watermark back at once, who is to leave does so until that is committed
//! (the *maximal* set, KIP-497). One wish is under way at a time (R6); it ends with the next committed change, or when it is
//! known never to have been taken (R10).

use std::time::Duration;

use crate::ids::{NodeId, Offset, PartitionEpoch, RegistrationEpoch};
use crate::mail::Durability;
use crate::time::Instant;

/// How long after a refused wish the next one waits.
const REFUSED_WAIT: Duration = Duration::from_millis(200);

/// How far one replica has come: `flushed <= log`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ends {
    /// One past the last record in the replica's memory.
    pub log: Offset,
    /// One past the last record that is on the replica's disk.
    pub flushed: Offset,
}

impl Ends {
    /// The end that counts as acknowledged.
    pub fn of(&self, durability: Durability) -> Offset {
        match durability {
            Durability::Fsync => self.flushed,
            Durability::Replicated => self.log,
        }
    }
}

/// What is known of a node beside what it says of a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    pub epoch: RegistrationEpoch,
    /// Neither fenced nor stopping.
    pub eligible: bool,
}

/// What someone who wants to enter must have reached, and what a follower is measured by.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    pub high_watermark: Offset,
    /// Where the leader's epoch began.
    pub epoch_start: Offset,
    pub log_end: Offset,
    pub durability: Durability,
}

/// The replicas of one partition as its leader sees them, for one leader epoch.
#[derive(Clone, Debug)]
pub struct InSync {
    this: NodeId,
    replicas: Vec<Replica>,
    wish: Option<PartitionEpoch>,
    /// No wish before this.
    wait_until: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Replica {
    node: NodeId,
    /// In the committed set.
    in_sync: bool,
    /// In the wished set; `in_sync` while there is no wish.
    wished: bool,
    /// In this epoch, in the life that `registration` is. An older epoch's tail may still be truncated, and what an earlier
    /// life had may be lost, so it starts from nothing.
    ends: Ends,
    log_start: Offset,
    registration: Option<RegistrationEpoch>,
    /// When it last had all that the leader had then; `None`: never in this epoch.
    caught_up: Option<Instant>,
    /// When it was last heard of, and where the leader's log ended then.
    heard: Option<(Instant, Offset)>,
}

impl Replica {
    fn counts(&self) -> bool {
        self.in_sync || self.wished
    }

    /// R5. `self` is not the leader.
    fn is_caught_up(&self, now: Instant, log_end: Offset, lag_max: Duration) -> bool {
        self.ends.log == log_end || self.caught_up.is_some_and(|at| now - at <= lag_max)
    }
}

impl InSync {
    /// At the beginning of an epoch (R3): who is in sync has been so just now, the others never were.
    pub fn new(this: NodeId, now: Instant, replicas: &[NodeId], isr: &[NodeId]) -> Self {
        let replica = |&node: &NodeId| {
            let in_sync = isr.contains(&node);
            Replica {
                node,
                in_sync,
                wished: in_sync,
                ends: Ends::default(),
                log_start: Offset::ZERO,
                registration: None,
                caught_up: in_sync.then_some(now),
                heard: None,
            }
        };
        let replicas = replicas.iter().map(replica).collect();
        Self { this, replicas, wish: None, wait_until: Instant::ZERO }
    }

    /// Takes over a committed change of the same epoch; progress of replicas that stay is kept. Whether a wish ended
    /// with it.
    pub fn on_committed(
        &mut self,
        now: Instant,
        partition_epoch: PartitionEpoch,
        replicas: &[NodeId],
        isr: &[NodeId],
    ) -> bool {
        let ended = self.wish.is_some_and(|upon| partition_epoch > upon);
        if ended {
            self.wish = None;
        }
        let mut next = Self::new(self.this, now, replicas, isr);
        for replica in &mut next.replicas {
            let Some(known) = self.replicas.iter().find(|known| known.node == replica.node) else {
                replica.caught_up = None;
                continue;
            };
            let wished = if self.wish.is_some() { known.wished } else { replica.in_sync };
            *replica = Replica { in_sync: replica.in_sync, wished, ..*known };
        }
        self.replicas = next.replicas;
        ended
    }

    pub fn ends(&self, node: NodeId) -> Option<Ends> {
        self.replicas.iter().find(|r| r.node == node).map(|r| r.ends)
    }

    pub fn is_replica(&self, node: NodeId) -> bool {
        self.replicas.iter().any(|r| r.node == node)
    }

    /// Whether the replica holds the high watermark back.
    pub fn counts(&self, node: NodeId) -> bool {
        self.replicas.iter().any(|r| r.node == node && r.counts())
    }

    /// Whether there is any other replica.
    pub fn has_followers(&self) -> bool {
        self.replicas.iter().any(|r| r.node != self.this)
    }

    /// Whether the replica is of a later life than `registration`.
    pub fn is_stale(&self, node: NodeId, registration: RegistrationEpoch) -> bool {
        self.replicas.iter().any(|r| r.node == node && r.registration > Some(registration))
    }

    fn get_mut(&mut self, node: NodeId) -> Option<&mut Replica> {
        self.replicas.iter_mut().find(|r| r.node == node)
    }

    /// Notes the leader's own progress. Followers that had all of its log until now were caught up until now: without
    /// polling, that is when it is known that they were.
    pub fn on_local(&mut self, now: Instant, ends: Ends) {
        assert!(ends.flushed <= ends.log, "a replica cannot have flushed what it does not have");
        let this = self.this;
        let Some(own) = self.get_mut(this) else { return };
        let before = std::mem::replace(&mut own.ends, ends).log;
        if before < ends.log && self.replicas.len() > 1 {
            for replica in self.replicas.iter_mut().filter(|r| r.node != this && r.ends.log == before) {
                if replica.registration.is_some() {
                    replica.caught_up = Some(now);
                }
            }
        }
    }

    /// Notes that a follower's log meets the leader's and ends at `log`. What was known of it before does not count: it may
    /// be another life of it (KIP-903), and what it has flushed of this log is still to be said.
    pub fn on_subscribed(&mut self, node: NodeId, registration: RegistrationEpoch, log: Offset) {
        if let Some(replica) = self.get_mut(node) {
            replica.ends = Ends { log, flushed: Offset::ZERO };
            replica.log_start = Offset::ZERO;
            replica.registration = Some(registration);
        }
    }

    /// Notes how far a follower has come (R5). Ends never go back within a subscription.
    pub fn on_progress(
        &mut self,
        now: Instant,
        node: NodeId,
        registration: RegistrationEpoch,
        ends: Ends,
        log_start: Offset,
    ) {
        assert!(ends.flushed <= ends.log, "a replica cannot have flushed what it does not have");
        let log_end = self.ends(self.this).unwrap_or_default().log;
        let Some(replica) = self.get_mut(node).filter(|r| r.registration == Some(registration)) else {
            return;
        };
        replica.ends.log = replica.ends.log.max(ends.log);
        replica.ends.flushed = replica.ends.flushed.max(ends.flushed);
        replica.log_start = replica.log_start.max(log_start);
        if ends.log >= log_end {
            replica.caught_up = Some(now);
        } else if let Some((at, end_then)) = replica.heard
            && ends.log >= end_then
        {
            replica.caught_up = replica.caught_up.max(Some(at));
        }
        replica.heard = Some((now, log_end));
    }

    /// Forgets what earlier lives of a node said: it is registered anew since.
    pub fn forget_before(&mut self, node: NodeId, registration: RegistrationEpoch) {
        if let Some(replica) = self.get_mut(node)
            && replica.registration.is_some_and(|known| known < registration)
        {
            replica.ends = Ends::default();
            replica.log_start = Offset::ZERO;
            replica.registration = None;
            replica.heard = None;
        }
    }

    /// How many replicas are in sync, as is committed.
    pub fn len(&self) -> usize {
        self.replicas.iter().filter(|r| r.in_sync).count()
    }

    /// Whether no replica is in sync; then nothing can be committed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn replicas(&self) -> usize {
        self.replicas.len()
    }

    /// `configured`, but never more than there are replicas.
    fn quorum(&self, configured: u32) -> usize {
        usize::try_from(configured).unwrap_or(usize::MAX).min(self.replicas.len()).max(1)
    }

    /// Whether enough replicas are in sync, as is committed, to take records and to commit them (R11, R12).
    pub fn has_quorum(&self, configured: u32) -> bool {
        self.len() >= self.quorum(configured)
    }

    /// Whether so many have what is committed now (R13).
    pub fn has_maximal_quorum(&self, configured: u32) -> bool {
        self.replicas.iter().filter(|r| r.counts()).count() >= self.quorum(configured)
    }

    /// The end that every replica which counts has reached, in memory or on disk as `durability` asks.
    pub fn common_end(&self, durability: Durability) -> Option<Offset> {
        self.replicas.iter().filter(|r| r.counts()).map(|r| r.ends.of(durability)).min()
    }

    /// Where a follower's log ends that is in sync, as is committed, and holds `offset` or ends there; `None` of any other.
    pub fn end_of_holder(&self, node: NodeId, offset: Offset) -> Option<Offset> {
        let replica = self.replicas.iter().find(|r| r.node == node && r.node != self.this)?;
        let is_known = replica.in_sync && replica.registration.is_some();
        (is_known && replica.log_start <= offset && offset <= replica.ends.log).then_some(replica.ends.log)
    }

    /// Whether every replica that counts begins its log at `start` or later.
    pub fn all_start_at(&self, start: Offset) -> bool {
        self.replicas.iter().all(|r| r.node == self.this || !r.counts() || r.log_start >= start)
    }

    /// Another set of in-sync replicas, if it should be another one: without those who lag when `lag_max` is given, with
    /// those who reach the bar (R7). It is under way from now on.
    pub fn wish(
        &mut self,
        now: Instant,
        partition_epoch: PartitionEpoch,
        lag_max: Option<Duration>,
        bar: Bar,
        standing: impl Fn(NodeId) -> Option<Standing>,
    ) -> Option<Vec<(NodeId, RegistrationEpoch)>> {
        if self.wish.is_some() || now < self.wait_until {
            return None;
        }
        let this = self.this;
        let stays = |r: &Replica| {
            r.node == this || lag_max.is_none_or(|lag_max| r.is_caught_up(now, bar.log_end, lag_max))
        };
        let enters = |r: &Replica| {
            let reached = r.ends.of(bar.durability);
            reached >= bar.high_watermark
                && reached >= bar.epoch_start
                && r.registration.is_some()
                && standing(r.node).is_some_and(|node| node.eligible && Some(node.epoch) == r.registration)
        };
        let wished = |r: &Replica| if r.in_sync { stays(r) } else { enters(r) };
        if self.replicas.iter().all(|r| wished(r) == r.in_sync) {
            return None;
        }
        let mut isr = Vec::with_capacity(self.replicas.len());
        for replica in self.replicas.iter().filter(|r| wished(r)) {
            // One that was not heard of in this epoch is in the committed set: as it is registered.
            let epoch = replica.registration.or_else(|| standing(replica.node).map(|node| node.epoch));
            isr.push((replica.node, epoch.unwrap_or_default()));
        }
        for replica in &mut self.replicas {
            replica.wished = isr.iter().any(|&(node, _)| node == replica.node);
        }
        self.wish = Some(partition_epoch);
        Some(isr)
    }

    /// The wish that was decided upon `partition_epoch` was definitely not taken: what is committed holds (R10).
    pub fn on_refused(&mut self, now: Instant, partition_epoch: PartitionEpoch) {
        if self.wish == Some(partition_epoch) {
            self.wish = None;
            self.wait_until = now + REFUSED_WAIT;
            for replica in &mut self.replicas {
                replica.wished = replica.in_sync;
            }
        }
    }

    /// How many records the slowest in-sync follower lacks, and for how long it was not caught up.
    pub fn lag(&self, now: Instant, log_end: Offset) -> (u64, Duration) {
        let behind =
            self.replicas.iter().filter(|r| r.in_sync && r.node != self.this && r.ends.log < log_end);
        behind.fold((0, Duration::ZERO), |(records, time), r| {
            let since = r.caught_up.map_or(Duration::ZERO, |at| now - at);
            (records.max(log_end.0 - r.ends.log.0), time.max(since))
        })
    }
}

#[cfg(test)]
mod tests;
