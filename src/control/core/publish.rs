//! What the control core tells the shards: at the start all that belongs to them, then what each entry changes.
//!
//! Control core, pure. A shard hears of a partition only once it is durable that it belongs there; changes that wait
//! for that hold up the later ones, so that every shard sees all revisions in order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use highwater_shards::ids::{PartitionId, PartitionIndex, Revision, ShardId};
use highwater_shards::mail::{Assignment, FromControl};

use super::{Control, Phase};
use crate::control::io::{ControlFatal, KeepId, Output, Placements};
use crate::control::metadata::delta::Delta;
use crate::control::metadata::image::{Image, Topic};
use crate::control::metadata::topic_config::partition_config;
use crate::control::shard_load::ShardLoad;

#[derive(Debug)]
pub(super) struct Publication {
    revision: Revision,
    view: Arc<Image>,
    assign: Vec<Vec<Assignment>>,
    unassign: Vec<Vec<PartitionId>>,
    /// Placements that are not durable yet; kept once this publication is the first, so that writes to the store
    /// do not overtake each other when one has to be tried again.
    keep: Placements,
}

/// What the comparison of placements with what the shards hold came to.
struct Reconciled {
    changes: Placements,
    /// Logs that belong to no replica of this node.
    strays: Vec<(PartitionId, ShardId)>,
}

impl Control {
    /// The first that the shards hear: all of their partitions.
    pub(super) fn assign_when_all_recovered(&mut self) {
        let ready_to_assign = self.phase == Phase::Starting { registered: true }
            && self.shards.iter().all(|s| s.recovered.is_some());
        if !ready_to_assign {
            return;
        }
        let Reconciled { mut changes, strays } = match self.reconcile() {
            Ok(reconciled) => reconciled,
            Err(reason) => return self.fatal(reason),
        };
        self.load = ShardLoad::of(&self.image, self.config.shards);
        let topics: Vec<Arc<Topic>> = self.image.topics().cloned().collect();
        for topic in &topics {
            self.place(topic, &mut changes);
        }
        self.phase = Phase::Assigning { revision: self.image.revision };
        let all: BTreeSet<PartitionId> = self.image.local_shards().map(|(id, _)| id).collect();
        self.push_publication(&all, strays, changes);
    }

    /// Compares where partitions belong with what the shards hold. Records decide: they outlive a placement that was
    /// lost before it was stored, and move to other shards when the node starts with more or fewer of them. Logs of
    /// partitions that are not here any more (their topics were deleted) are given up.
    fn reconcile(&mut self) -> Result<Reconciled, ControlFatal> {
        let mut changes = Vec::new();
        let mut held: BTreeMap<PartitionId, Vec<ShardId>> = BTreeMap::new();
        for (shard, state) in (0..).map(ShardId).zip(&mut self.shards) {
            for partition in state.recovered.take().expect("the caller saw that all recovered") {
                held.entry(partition).or_default().push(shard);
            }
        }
        let placed: Vec<_> = self.image.local_shards().collect();
        for (partition, owner) in placed {
            let is_here = self.image.partition(partition).is_some();
            if !is_here || (owner.0 >= self.config.shards && !held.contains_key(&partition)) {
                self.image.remove_local_shard(partition);
                changes.push((partition, None));
            }
        }
        let mut strays = Vec::new();
        for (partition, shards) in held {
            if !self.image.partition(partition).is_some_and(|p| p.replicas.contains(&self.node())) {
                strays.extend(shards.into_iter().map(|shard| (partition, shard)));
                continue;
            }
            if let [first, second, ..] = shards[..] {
                return Err(ControlFatal::HeldTwice { partition, first, second });
            }
            if self.image.local_shard(partition) != Some(shards[0]) {
                self.image.put_local_shard(partition, shards[0]);
                changes.push((partition, Some(shards[0])));
            }
        }
        if !strays.is_empty() {
            let count = strays.len();
            tracing::info!(
                "deleting the records of {count} partitions that this node has no replica of any more"
            );
        }
        Ok(Reconciled { changes, strays })
    }

    /// Gives those of the topic's partitions a shard that belong here and have none.
    fn place(&mut self, topic: &Topic, changes: &mut Placements) {
        for (partition, shard) in self.load.place(topic, self.node(), &self.image) {
            self.image.put_local_shard(partition, shard);
            changes.push((partition, Some(shard)));
        }
    }

    /// Tells the shards what an entry changed.
    pub(super) fn publish(&mut self, old: &Image, delta: &Delta) {
        let mut changes = Vec::new();
        let mut unassign = Vec::new();
        for &partition in &delta.removed {
            if let Some(shard) = self.image.local_shard(partition) {
                self.image.remove_local_shard(partition);
                self.load.remove(shard);
                changes.push((partition, None));
                unassign.push((partition, shard));
            }
        }
        let touched: BTreeSet<_> = delta.changed.iter().map(|id| id.topic).collect();
        for id in touched {
            let topic = self.image.topic_by_id(id).expect("changed partitions are in the image").clone();
            self.place(&topic, &mut changes);
        }
        let mut assign = delta.changed.clone();
        if delta.cluster_config {
            assign.extend(self.reconfigured(old));
        }
        self.push_publication(&assign, unassign, changes);
    }

    /// Partitions of this node that act on other settings than in `old`.
    fn reconfigured(&self, old: &Image) -> Vec<PartitionId> {
        let mut out = Vec::new();
        for topic in self.image.topics() {
            let defaults = &self.config.defaults;
            if partition_config(topic, &self.image, defaults) != partition_config(topic, old, defaults) {
                let ids = (0..).map(PartitionIndex).zip(&topic.partitions);
                out.extend(ids.map(|(index, _)| topic.partition_id(index)));
            }
        }
        out
    }

    fn push_publication(
        &mut self,
        assign: &BTreeSet<PartitionId>,
        unassign: Vec<(PartitionId, ShardId)>,
        changes: Placements,
    ) {
        let shards = usize::from(self.config.shards);
        let mut publication = Publication {
            revision: self.image.revision,
            view: Arc::new(self.image.clone()),
            assign: vec![Vec::new(); shards],
            unassign: vec![Vec::new(); shards],
            keep: changes,
        };
        for &partition in assign {
            if let Some(shard) = self.image.local_shard(partition) {
                publication.assign[usize::from(shard.0)].push(self.assignment(partition));
            }
        }
        for (partition, shard) in unassign {
            publication.unassign[usize::from(shard.0)].push(partition);
        }
        self.publications.push_back(publication);
        self.send_publications();
    }

    pub(super) fn assignment(&self, partition: PartitionId) -> Assignment {
        let topic =
            self.image.topic_by_id(partition.topic).expect("only partitions of the image are assigned");
        let state = topic.partition(partition.index).expect("only partitions of the image are assigned");
        Assignment {
            partition,
            leader: state.leader,
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
            replicas: state.replicas.clone(),
            isr: state.isr.clone(),
            config: partition_config(topic, &self.image, &self.config.defaults),
        }
    }

    pub(super) fn on_kept(&mut self, id: KeepId) {
        assert_eq!(self.keeping.take(), Some(id), "one placement is written at a time");
        self.publications.front_mut().expect("what is kept is for a publication").keep.clear();
        self.send_publications();
    }

    pub(super) fn send_publications(&mut self) {
        while self.publications.front().is_some_and(|first| first.keep.is_empty()) {
            let first = self.publications.pop_front().expect("it was just seen");
            let Publication { revision, view, assign, unassign, .. } = first;
            for ((shard, assign), unassign) in self.shard_ids().zip(assign).zip(unassign) {
                let message = FromControl::Delta { revision, view: view.clone(), assign, unassign };
                self.outputs.push_back(Output::ToShard { shard, message });
            }
        }
        if let Some(first) = self.publications.front()
            && self.keeping.is_none()
        {
            let id = self.keep_next;
            self.keep_next.0 += 1;
            self.keeping = Some(id);
            self.outputs.push_back(Output::Keep { id, changes: first.keep.clone() });
        }
    }
}
