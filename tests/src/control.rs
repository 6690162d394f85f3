//! A scripted control core: the oracle of the metadata. It assigns partitions, answers sessions, and changes its
//! mind when the script of faults says so. What it committed survives every crash.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use highwater_shards::front::Front;
use highwater_shards::ids::{
    LeaderEpoch, NodeId, PartitionEpoch, PartitionId, PartitionIndex, ProducerId, Revision, ShardId, TopicId,
};
use highwater_shards::mail::{Assignment, Durability, FromControl, PartitionConfig, ToControl};

use crate::checkers::{Checkers, Verdict};
use crate::rng::Rng;
use crate::wire::{Metadata, Wire};

/// The node under test.
pub const SELF: NodeId = NodeId(1);
/// A replica that never answers.
pub const OTHER: NodeId = NodeId(2);

/// A message for a shard.
pub type Tell<W> =
    (ShardId, FromControl<<<W as Wire>::Front as Front>::View, <<W as Wire>::Front as Front>::Reply>);

#[derive(Debug)]
pub struct Control {
    pub metadata: Arc<Metadata>,
    /// Of each partition: what the shard may not have heard yet.
    states: BTreeMap<PartitionId, State>,
    shards: Vec<ShardState>,
    topics_made: u32,
    producers_made: u64,
    stopping: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// When the partition was last changed.
    changed: Revision,
    /// As the metadata has it, nothing new can pass the high watermark.
    frozen: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct ShardState {
    recovered: bool,
    ready: bool,
    stopped: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewTopic {
    pub partitions: u32,
    pub durability: Durability,
    pub batch_bytes_max: u32,
}

/// What the script may do to a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    BumpEpoch,
    LoseLeader,
    RaiseIsrMin,
    WidenIsr,
    /// Led by this node, alone in sync, one replica enough.
    Heal,
}

impl Control {
    pub fn new(shards: u16) -> Self {
        Self {
            metadata: Arc::default(),
            states: BTreeMap::new(),
            shards: vec![ShardState::default(); usize::from(shards)],
            topics_made: 0,
            producers_made: 0,
            stopping: false,
        }
    }

    pub fn partitions(&self) -> impl Iterator<Item = PartitionId> {
        self.metadata.partitions.keys().copied()
    }

    /// Whether clients may come to the shard: it has its partitions, and the node is not stopping.
    pub fn is_ready(&self, shard: ShardId) -> bool {
        self.shards[usize::from(shard.0)].ready && !self.stopping
    }

    pub fn all_ready(&self) -> bool {
        !self.stopping && self.shards.iter().all(|s| s.ready)
    }

    pub fn all_stopped(&self) -> bool {
        self.stopping && self.shards.iter().all(|s| s.stopped)
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// A new life of the node. Some partitions come back under a new leader epoch, as after an election.
    pub fn boot(&mut self, rng: &mut Rng) {
        self.stopping = false;
        self.shards.fill(ShardState::default());
        let lucky: Vec<_> = self.partitions().filter(|_| rng.flip()).collect();
        if !lucky.is_empty() {
            let metadata = Arc::make_mut(&mut self.metadata);
            metadata.revision.0 += 1;
            for id in lucky {
                let (_, a) = metadata.partitions.get_mut(&id).expect("listed above");
                a.leader_epoch.0 += 1;
                a.partition_epoch.0 += 1;
            }
        }
    }

    pub fn stop<W: Wire>(&mut self, deadline: Duration, out: &mut Vec<Tell<W>>) {
        self.stopping = true;
        out.extend(self.shard_ids().map(|s| (s, FromControl::Stop { deadline })));
    }

    fn shard_ids(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..u16::try_from(self.shards.len()).expect("few shards")).map(ShardId)
    }

    pub fn handle<W: Wire>(
        &mut self,
        wire: &W,
        shard: ShardId,
        message: ToControl<<W::Front as Front>::Request>,
        checkers: &mut Checkers,
        out: &mut Vec<Tell<W>>,
    ) -> Verdict {
        let state = &mut self.shards[usize::from(shard.0)];
        match message {
            ToControl::Recovered { partitions } => {
                state.recovered = true;
                let mut assign = Vec::new();
                for (owner, a) in self.metadata.partitions.values() {
                    if *owner == shard {
                        assign.push(a.clone());
                    }
                }
                let known = |p: &PartitionId| self.metadata.partitions.contains_key(p);
                let unassign = partitions.into_iter().filter(|p| !known(p)).collect();
                let revision = self.metadata.revision;
                let view = wire.view(&self.metadata);
                out.push((shard, FromControl::Delta { revision, view, assign, unassign }));
            }
            ToControl::Applied { revision } => {
                checkers.revisions.on_applied(shard, revision)?;
                state.ready = true;
                for (id, s) in &self.states {
                    let owner = self.metadata.partitions.get(id).map(|p| p.0);
                    if owner == Some(shard) && s.changed <= revision {
                        checkers.high_watermark.set_withheld(*id, s.frozen);
                        if s.frozen {
                            checkers.visible.begin_freeze(*id);
                        }
                    }
                }
            }
            ToControl::Request { conn, token, request } => {
                self.producers_made += 1;
                let reply = wire.answer(request, ProducerId(self.producers_made));
                out.push((shard, FromControl::Reply { conn, token, reply }));
            }
            ToControl::Stats { .. } | ToControl::AlterIsr { .. } | ToControl::Dial { .. } => {}
            ToControl::Stopped => state.stopped = true,
        }
        Ok(())
    }

    pub fn create_topic<W: Wire>(
        &mut self,
        wire: &W,
        new: NewTopic,
        rng: &mut Rng,
        checkers: &mut Checkers,
        out: &mut Vec<Tell<W>>,
    ) {
        self.topics_made += 1;
        let topic = TopicId(u128::from(self.topics_made));
        let metadata = Arc::make_mut(&mut self.metadata);
        metadata.revision.0 += 1;
        let mut changed = Vec::new();
        for index in (0..new.partitions).map(PartitionIndex) {
            let partition = PartitionId { topic, index };
            let assignment = Assignment {
                partition,
                leader: Some(SELF),
                leader_epoch: LeaderEpoch(0),
                partition_epoch: PartitionEpoch(0),
                replicas: vec![SELF, OTHER],
                isr: vec![SELF],
                config: PartitionConfig {
                    durability: new.durability,
                    isr_min: 1,
                    batch_bytes_max: new.batch_bytes_max,
                    ..PartitionConfig::default()
                },
            };
            let shard = *rng.pick(&(0..self.shards.len()).collect::<Vec<_>>());
            let shard = ShardId(u16::try_from(shard).expect("few shards"));
            metadata.partitions.insert(partition, (shard, assignment));
            let state = State { changed: metadata.revision, frozen: false };
            self.states.insert(partition, state);
            checkers.add_partition(partition, new.durability);
            changed.push(partition);
        }
        self.publish(wire, &changed, &[], out);
    }

    pub fn delete_topic<W: Wire>(&mut self, wire: &W, topic: TopicId, out: &mut Vec<Tell<W>>) {
        let gone: Vec<_> = self.partitions().filter(|p| p.topic == topic).collect();
        let metadata = Arc::make_mut(&mut self.metadata);
        metadata.revision.0 += 1;
        let mut unassign = Vec::new();
        for id in gone {
            let (shard, _) = metadata.partitions.remove(&id).expect("listed above");
            self.states.remove(&id);
            unassign.push((shard, id));
        }
        self.publish(wire, &[], &unassign, out);
    }

    pub fn change<W: Wire>(
        &mut self,
        wire: &W,
        id: PartitionId,
        change: Change,
        checkers: &mut Checkers,
        out: &mut Vec<Tell<W>>,
    ) {
        let metadata = Arc::make_mut(&mut self.metadata);
        metadata.revision.0 += 1;
        let (_, a) = metadata.partitions.get_mut(&id).expect("the script changes what there is");
        a.partition_epoch.0 += 1;
        match change {
            Change::BumpEpoch => a.leader_epoch.0 += 1,
            Change::LoseLeader => {
                a.leader = None;
                a.leader_epoch.0 += 1;
            }
            Change::RaiseIsrMin => a.config.isr_min = 2,
            Change::WidenIsr => a.isr = vec![SELF, OTHER],
            Change::Heal => {
                if a.leader.is_none() {
                    a.leader_epoch.0 += 1;
                }
                a.leader = Some(SELF);
                a.isr = vec![SELF];
                a.config.isr_min = 1;
            }
        }
        let frozen = a.isr.len() > 1 || a.config.isr_min > 1;
        self.states.insert(id, State { changed: metadata.revision, frozen });
        if frozen {
            checkers.high_watermark.set_withheld(id, true);
        } else {
            checkers.visible.end_freeze(id);
        }
        self.publish(wire, &[id], &[], out);
    }

    /// A change that every shard has heard long ago comes again, and it says that nothing is assigned.
    pub fn repeat_old<W: Wire>(&self, wire: &W, rng: &mut Rng, out: &mut Vec<Tell<W>>) {
        let revision = Revision(rng.below(self.metadata.revision.0) + 1);
        let old = Arc::new(Metadata { revision, partitions: BTreeMap::new() });
        for shard in self.shard_ids().filter(|s| self.is_ready(*s)) {
            let unassign = self.partitions().collect();
            let view = wire.view(&old);
            out.push((shard, FromControl::Delta { revision, view, assign: Vec::new(), unassign }));
        }
    }

    /// Tells every shard that recovered; the others hear it all once they have.
    fn publish<W: Wire>(
        &self,
        wire: &W,
        changed: &[PartitionId],
        gone: &[(ShardId, PartitionId)],
        out: &mut Vec<Tell<W>>,
    ) {
        for shard in self.shard_ids() {
            if !self.shards[usize::from(shard.0)].recovered {
                continue;
            }
            let assigned = changed.iter().map(|id| &self.metadata.partitions[id]);
            let assign = assigned.filter(|(s, _)| *s == shard).map(|(_, a)| a.clone()).collect();
            let unassign = gone.iter().filter(|(s, _)| *s == shard).map(|(_, id)| *id).collect();
            let revision = self.metadata.revision;
            let view = wire.view(&self.metadata);
            out.push((shard, FromControl::Delta { revision, view, assign, unassign }));
        }
    }
}
