//! Wishes for other in-sync replicas: when they are decided, and what becomes of them.

use super::super::{Shard, Timer};
use crate::front::Front;
use crate::ids::{PartitionEpoch, PartitionId};
use crate::log::Slot;
use crate::mail::{IsrChange, IsrRefusal};
use crate::time::Instant;

impl<F: Front> Shard<F> {
    /// Whether this replica's set of in-sync replicas should be another one, for a follower that enters.
    pub(in super::super) fn reconsider(&mut self, slot: Slot) {
        self.wish(slot, false);
    }

    fn wish(&mut self, slot: Slot, look_for_lag: bool) {
        let Some(partition) = self.partitions.get_mut(slot) else { return };
        let nodes = &self.peers.nodes;
        let before = partition.in_sync().map_or(0, |in_sync| in_sync.len());
        let lag_max = look_for_lag.then_some(self.config.replication.lag_max);
        if let Some(change) = partition.wish(self.now, lag_max, |node| nodes.get(&node).copied()) {
            let IsrChange { partition: id, isr, .. } = &change;
            tracing::info!(partition = %id, ?isr, "another set of in-sync replicas is asked for");
            self.peers.stats.isr_shrinks += u64::from(isr.len() < before);
            self.peers.stats.isr_expands += u64::from(isr.len() > before);
            self.peers.wishes.push(change);
        }
    }

    /// After the nodes changed: progress of lives that are over is forgotten, and who could not enter may now.
    pub(super) fn reconsider_all(&mut self) {
        for slot in self.partitions.taken() {
            let partition = self.partitions.get_mut(slot).expect("it is taken");
            if partition.in_sync().is_some_and(|in_sync| in_sync.has_followers()) {
                for (&node, standing) in &self.peers.nodes {
                    partition.forget_before(node, standing.epoch);
                }
                self.reconsider(slot);
            }
        }
    }

    /// A wish was definitely not taken.
    pub(in super::super) fn on_isr_refused(
        &mut self,
        id: PartitionId,
        partition_epoch: PartitionEpoch,
        refusal: IsrRefusal,
    ) {
        self.peers.stats.isr_refused += 1;
        tracing::info!(partition = %id, ?refusal, "the wish for other in-sync replicas was refused");
        let Some(slot) = self.storage.slot(id) else { return };
        if let Some(partition) = self.partitions.get_mut(slot) {
            partition.on_wish_refused(self.now, partition_epoch);
            self.settle(slot);
        }
    }

    /// Sees to it that lagging followers are looked for while there may be some.
    pub(in super::super) fn arm_lag(&mut self) {
        if !std::mem::replace(&mut self.peers.is_lag_armed, true) {
            self.timers.set(Timer::Lag, self.next_lag());
        }
    }

    fn next_lag(&self) -> Instant {
        self.now + self.config.replication.lag_max / 2
    }

    /// R6: every half of the longest lag. Also the occasion for what was refused before.
    pub(in super::super) fn check_lag(&mut self) {
        let mut any = false;
        for slot in self.partitions.taken() {
            let has_followers =
                |p: &crate::partition::Partition| p.in_sync().is_some_and(|i| i.has_followers());
            if self.partitions.get(slot).is_some_and(has_followers) {
                any = true;
                self.wish(slot, true);
            }
        }
        self.peers.is_lag_armed = any;
        if any {
            self.timers.set(Timer::Lag, self.next_lag());
        }
    }
}
