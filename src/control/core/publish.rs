//! What the control core tells the shards: at the start all that belongs to them, then what each entry changes.
//!
//! Control core, pure. A shard hears of a partition only once it is durable that it belongs there; changes that wait
//! for that, or for shards that have not applied earlier ones, are gathered into one, so that what waits is bounded by
//! what there is and every shard sees revisions in order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use highwater_shards::ids::{PartitionId, PartitionIndex, Revision, ShardId};
use highwater_shards::mail::{Assignment, FromControl, PartitionConfig, PeerNode};

use super::{Control, Phase};
use crate::control::io::{ControlFatal, KeepId, Output, Placements};
use crate::control::limits::DELTAS_MAX;
use crate::control::metadata::delta::Delta;
use crate::control::metadata::image::{Image, Topic};
use crate::control::metadata::topic_config::{TopicDefaults, partition_config};
use crate::control::shard_load::ShardLoad;

/// Changes that become known to the shards together.
#[derive(Debug)]
struct Batch {
    view: Arc<Image>,
    assign: BTreeSet<PartitionId>,
    /// A log that nobody wants may lie on several shards.
    unassign: BTreeSet<(PartitionId, ShardId)>,
    /// Placements that have to be durable before.
    keep: Placements,
}

impl Batch {
    /// Takes in a later batch. A log that is given up is not taken again in the same message, so a batch that does
    /// both comes back.
    fn merge(&mut self, later: Self) -> Result<(), Self> {
        if self.unassign.iter().any(|(id, _)| later.assign.contains(id)) {
            return Err(later);
        }
        for (id, shard) in later.unassign {
            self.assign.remove(&id);
            self.unassign.insert((id, shard));
        }
        self.assign.extend(later.assign);
        self.keep.extend(later.keep);
        self.view = later.view;
        Ok(())
    }
}

/// What the shards were told and are to be told.
#[derive(Debug, Default)]
pub(super) struct Publications {
    /// Waits for its placements to be kept.
    keeping: Option<(KeepId, Batch)>,
    keep_next: u64,
    /// Told after that, in this order.
    waiting: VecDeque<Batch>,
    /// Told, and not applied by all shards.
    told: VecDeque<Revision>,
    /// What the shards know of the nodes.
    nodes: Option<Arc<[PeerNode]>>,
    /// The last that was told.
    told_last: Revision,
}

impl Publications {
    pub(super) fn on_applied(&mut self, applied: Revision) {
        while self.told.front().is_some_and(|first| *first <= applied) {
            self.told.pop_front();
        }
    }

    /// Up to where the shards were told.
    pub(super) fn told_last(&self) -> Revision {
        self.told_last
    }

    /// Partitions whose changes were not told yet.
    pub(super) fn changes_waiting(&self) -> usize {
        let keeping = self.keeping.iter().map(|(_, batch)| batch);
        keeping.chain(&self.waiting).map(|batch| batch.assign.len() + batch.unassign.len()).sum()
    }
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
        let ready_to_assign = self.phase == Phase::Starting
            && self.is_registered
            && self.shards.iter().all(|s| s.recovered.is_some());
        if !ready_to_assign {
            return;
        }
        let Reconciled { mut changes, strays } = match self.reconcile() {
            Ok(reconciled) => reconciled,
            Err(reason) => return self.fatal(reason),
        };
        self.load = ShardLoad::of(&self.image, self.config.shards);
        self.place_all(&mut changes);
        self.phase = Phase::Assigning { revision: self.image.revision };
        let all = self.image.local_shards().map(|(id, _)| id).collect();
        self.push_publication(all, strays.into_iter().collect(), changes);
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
            let is_here = self.belongs_here(partition);
            if !is_here || (owner.0 >= self.config.shards && !held.contains_key(&partition)) {
                self.image.remove_local_shard(partition);
                changes.push((partition, None));
            }
        }
        let mut strays = Vec::new();
        for (partition, shards) in held {
            if !self.belongs_here(partition) {
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

    fn belongs_here(&self, partition: PartitionId) -> bool {
        self.image.partition(partition).is_some_and(|p| p.replicas.contains(&self.node()))
    }

    /// Gives those of the topic's partitions a shard that belong here and have none.
    fn place(&mut self, topic: &Topic, changes: &mut Placements) {
        for (partition, shard) in self.load.place(topic, self.node(), &self.image) {
            self.image.put_local_shard(partition, shard);
            changes.push((partition, Some(shard)));
        }
    }

    fn place_all(&mut self, changes: &mut Placements) {
        let topics: Vec<Arc<Topic>> = self.image.topics().cloned().collect();
        for topic in &topics {
            self.place(topic, changes);
        }
    }

    /// Takes away the shard of a partition that is not here any more.
    fn displace(&mut self, partition: PartitionId, out: &mut Moved) {
        if let Some(shard) = self.image.local_shard(partition) {
            self.image.remove_local_shard(partition);
            self.load.remove(shard);
            out.changes.push((partition, None));
            out.unassign.insert((partition, shard));
        }
    }

    /// Tells the shards what an entry changed.
    pub(super) fn publish(&mut self, old: &Image, delta: &Delta) {
        let mut moved = Moved::default();
        for &partition in &delta.removed {
            self.displace(partition, &mut moved);
        }
        // Topics with partitions that have no shard yet.
        let mut touched = BTreeSet::new();
        for &partition in &delta.changed {
            if !self.belongs_here(partition) {
                self.displace(partition, &mut moved);
            } else if self.image.local_shard(partition).is_none() {
                touched.insert(partition.topic);
            }
        }
        for id in touched {
            let topic = self.image.topic_by_id(id).expect("changed partitions are in the image").clone();
            self.place(&topic, &mut moved.changes);
        }
        let is_local = |id: &PartitionId| self.image.local_shard(*id).is_some();
        let mut assign: BTreeSet<PartitionId> = delta.changed.iter().copied().filter(is_local).collect();
        if delta.cluster_config {
            assign.extend(self.reconfigured(old));
        }
        self.push_publication(assign, moved.unassign, moved.changes);
    }

    /// The placements of the image before, for one that came as a whole.
    pub(super) fn take_over_placements(&mut self, old: &Image) {
        self.image.clear_local_shards();
        for (partition, shard) in old.local_shards() {
            self.image.put_local_shard(partition, shard);
        }
    }

    /// Tells the shards everything, since what changed is not known.
    pub(super) fn publish_all(&mut self, old: &Image) {
        let mut moved = Moved::default();
        for (partition, _) in old.local_shards() {
            if !self.belongs_here(partition) {
                self.displace(partition, &mut moved);
            }
        }
        self.place_all(&mut moved.changes);
        let all = self.image.local_shards().map(|(id, _)| id).collect();
        self.push_publication(all, moved.unassign, moved.changes);
    }

    /// Partitions of this node that act on other settings than in `old`.
    fn reconfigured(&self, old: &Image) -> Vec<PartitionId> {
        let mut out = Vec::new();
        for topic in self.image.topics() {
            let defaults = &self.config.defaults;
            if partition_config(topic, &self.image, defaults) != partition_config(topic, old, defaults) {
                let ids = (0..).map(PartitionIndex).take(topic.partitions.len());
                let ids = ids.map(|index| topic.partition_id(index));
                out.extend(ids.filter(|id| self.image.local_shard(*id).is_some()));
            }
        }
        out
    }

    fn push_publication(
        &mut self,
        assign: BTreeSet<PartitionId>,
        unassign: BTreeSet<(PartitionId, ShardId)>,
        keep: Placements,
    ) {
        let batch = Batch { view: Arc::new(self.image.clone()), assign, unassign, keep };
        let later = match self.publications.waiting.back_mut() {
            Some(last) => last.merge(batch).err(),
            None => Some(batch),
        };
        self.publications.waiting.extend(later);
        self.send_publications();
    }

    pub(super) fn on_kept(&mut self, id: KeepId) {
        let (kept, batch) = self.publications.keeping.take().expect("only what was to be kept is kept");
        assert_eq!(kept, id, "one placement is written at a time");
        self.tell(batch);
        self.send_publications();
    }

    pub(super) fn on_keep_failed(&mut self, id: KeepId, reason: &str) {
        let keeping = self.publications.keeping.as_ref().map(|(id, _)| *id);
        assert_eq!(keeping, Some(id), "one placement is written at a time");
        tracing::warn!("where partitions belong could not be stored, trying again: {reason}");
    }

    pub(super) fn keep_again(&mut self) {
        if let Some((_, batch)) = self.publications.keeping.take() {
            self.keep(batch);
        }
    }

    fn keep(&mut self, batch: Batch) {
        let id = KeepId(self.publications.keep_next);
        self.publications.keep_next += 1;
        self.outputs.push_back(Output::Keep { id, changes: batch.keep.clone() });
        self.publications.keeping = Some((id, batch));
    }

    pub(super) fn send_publications(&mut self) {
        while self.publications.keeping.is_none()
            && self.publications.told.len() < DELTAS_MAX
            && let Some(batch) = self.publications.waiting.pop_front()
        {
            if batch.keep.is_empty() {
                self.tell(batch);
            } else {
                self.keep(batch);
            }
        }
    }

    fn tell(&mut self, batch: Batch) {
        let Batch { view, assign, unassign, .. } = batch;
        let shards = usize::from(self.config.shards);
        let mut assigns = vec![Vec::new(); shards];
        let mut unassigns = vec![Vec::new(); shards];
        let mut maker = AssignmentMaker { image: &view, defaults: &self.config.defaults, last: None };
        for partition in assign {
            let shard = view.local_shard(partition).expect("only partitions of this node are assigned");
            assigns[usize::from(shard.0)].push(maker.make(partition));
        }
        for (partition, shard) in unassign {
            unassigns[usize::from(shard.0)].push(partition);
        }
        self.tell_nodes(&view);
        let revision = view.revision;
        self.publications.told.push_back(revision);
        self.publications.told_last = revision;
        for ((shard, assign), unassign) in self.shard_ids().zip(assigns).zip(unassigns) {
            let message = FromControl::Delta { revision, view: view.clone(), assign, unassign };
            self.outputs.push_back(Output::ToShard { shard, message });
        }
    }
}

impl Control {
    /// Before the change whose assignments name them.
    fn tell_nodes(&mut self, view: &Image) {
        let nodes: Arc<[PeerNode]> = view
            .nodes
            .values()
            .map(|info| PeerNode { node: info.id, epoch: info.epoch, eligible: info.is_active() })
            .collect();
        if self.publications.nodes.as_ref() == Some(&nodes) {
            return;
        }
        self.publications.nodes = Some(nodes.clone());
        for shard in self.shard_ids() {
            let message = FromControl::Nodes(nodes.clone());
            self.outputs.push_back(Output::ToShard { shard, message });
        }
    }
}

/// Placements that an entry undoes.
#[derive(Debug, Default)]
struct Moved {
    changes: Placements,
    unassign: BTreeSet<(PartitionId, ShardId)>,
}

/// Makes assignments, and looks at the settings of a topic once for all its partitions that come in a row.
pub(super) struct AssignmentMaker<'a> {
    pub(super) image: &'a Image,
    pub(super) defaults: &'a TopicDefaults,
    pub(super) last: Option<(&'a Arc<Topic>, PartitionConfig)>,
}

impl AssignmentMaker<'_> {
    pub(super) fn make(&mut self, partition: PartitionId) -> Assignment {
        let (topic, config) = match self.last {
            Some(last) if last.0.id == partition.topic => last,
            _ => {
                let topic = self.image.topic_by_id(partition.topic);
                let topic = topic.expect("only partitions of the image are assigned");
                (topic, partition_config(topic, self.image, self.defaults))
            }
        };
        self.last = Some((topic, config));
        let state = topic.partition(partition.index).expect("only partitions of the image are assigned");
        Assignment {
            partition,
            leader: state.leader,
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
            replicas: state.replicas.clone(),
            isr: state.isr.clone(),
            // While replicas are added, these do not raise what is needed of those that were there.
            config: match (state.adding.len(), state.replicas.len()) {
                (0, _) => config,
                (adding, all) => {
                    let had = u32::try_from(all - adding).expect("bounded by REPLICAS_MAX");
                    PartitionConfig { isr_min: config.isr_min.min(had).max(1), ..config }
                }
            },
        }
    }
}
