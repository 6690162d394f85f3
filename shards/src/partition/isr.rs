//! Which replicas must have a record before it counts, and how far each has come. Floor 1, pure.
//!
//! The leader's own replica is one among the others: with one replica the high watermark goes through the same
//! rule as with three (R11).

use crate::ids::{NodeId, Offset};
use crate::mail::Durability;

/// How far one replica has come: `flushed <= log`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ends {
    /// One past the last record in the replica's memory.
    pub log: Offset,
    /// One past the last record that is on the replica's disk.
    pub flushed: Offset,
}

/// The replicas of one partition as its leader sees them, for one leader epoch.
#[derive(Clone, Debug)]
pub struct InSync {
    replicas: Vec<Replica>,
}

#[derive(Clone, Copy, Debug)]
struct Replica {
    node: NodeId,
    in_sync: bool,
    /// In this epoch. An older epoch's tail may still be truncated, so it starts from nothing.
    ends: Ends,
}

impl InSync {
    pub fn new(replicas: &[NodeId], isr: &[NodeId]) -> Self {
        let replicas = replicas
            .iter()
            .map(|&node| Replica { node, in_sync: isr.contains(&node), ends: Ends::default() })
            .collect();
        Self { replicas }
    }

    /// Takes over a committed change of the same epoch; progress of replicas that stay is kept.
    pub fn on_committed(&mut self, replicas: &[NodeId], isr: &[NodeId]) {
        let mut next = Self::new(replicas, isr);
        for replica in &mut next.replicas {
            replica.ends = self.ends(replica.node).unwrap_or_default();
        }
        *self = next;
    }

    pub fn ends(&self, node: NodeId) -> Option<Ends> {
        self.replicas.iter().find(|r| r.node == node).map(|r| r.ends)
    }

    /// Notes that `node` has come to `ends`. Ends never go back within an epoch.
    pub fn on_progress(&mut self, node: NodeId, ends: Ends) {
        assert!(ends.flushed <= ends.log, "a replica cannot have flushed what it does not have");
        if let Some(replica) = self.replicas.iter_mut().find(|r| r.node == node) {
            replica.ends.log = replica.ends.log.max(ends.log);
            replica.ends.flushed = replica.ends.flushed.max(ends.flushed);
        }
    }

    /// How many replicas are in sync.
    pub fn len(&self) -> usize {
        self.replicas.iter().filter(|r| r.in_sync).count()
    }

    /// Whether no replica is in sync; then nothing can be committed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether enough replicas are in sync to commit: `configured`, but never more than there are replicas.
    pub fn has_quorum(&self, configured: u32) -> bool {
        let wanted = usize::try_from(configured).unwrap_or(usize::MAX).min(self.replicas.len());
        self.len() >= wanted.max(1)
    }

    /// The end that every in-sync replica has reached, in memory or on disk as `durability` asks.
    pub fn common_end(&self, durability: Durability) -> Option<Offset> {
        let end = |r: &Replica| match durability {
            Durability::Fsync => r.ends.flushed,
            Durability::Replicated => r.ends.log,
        };
        self.replicas.iter().filter(|r| r.in_sync).map(end).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);

    fn ends(log: u64, flushed: u64) -> Ends {
        Ends { log: Offset(log), flushed: Offset(flushed) }
    }

    #[test]
    fn common_end_is_the_slowest_in_sync_replica_by_durability() {
        let mut isr = InSync::new(&[A, B, C], &[A, B]);
        isr.on_progress(A, ends(10, 4));
        isr.on_progress(B, ends(7, 6));
        isr.on_progress(C, ends(1, 1));
        assert_eq!(isr.common_end(Durability::Replicated), Some(Offset(7)));
        assert_eq!(isr.common_end(Durability::Fsync), Some(Offset(4)));
    }

    #[test]
    fn a_replica_not_heard_of_in_this_epoch_holds_the_end_back() {
        let mut isr = InSync::new(&[A, B], &[A, B]);
        isr.on_progress(A, ends(10, 10));
        assert_eq!(isr.common_end(Durability::Fsync), Some(Offset(0)));
    }

    #[test]
    fn quorum_never_asks_for_more_replicas_than_exist() {
        assert!(InSync::new(&[A], &[A]).has_quorum(2));
        assert!(!InSync::new(&[A, B, C], &[A]).has_quorum(2));
        assert!(!InSync::new(&[A], &[]).has_quorum(0), "without any in-sync replica nothing is committed");
    }

    #[test]
    fn progress_survives_a_committed_change_and_never_goes_back() {
        let mut isr = InSync::new(&[A, B], &[A, B]);
        isr.on_progress(A, ends(5, 5));
        isr.on_committed(&[A, B], &[A]);
        isr.on_progress(A, ends(3, 3));
        assert_eq!(isr.common_end(Durability::Fsync), Some(Offset(5)));
    }
}
