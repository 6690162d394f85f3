//! What nodes, settings and elections do to partitions: each change of one goes through [`settle`].
//!
//! Control core, pure and deterministic. One command changes as many partitions as it has to: it costs a look at every
//! partition of the cluster, a few ms at its largest, and no more than its own bytes in the log.

use std::sync::Arc;

use highwater_shards::ids::{NodeId, PartitionId, PartitionIndex, TopicId};
use imbl::OrdMap;

use crate::control::metadata::command::{ElectLeaders, ElectionKind};
use crate::control::metadata::delta::Delta;
use crate::control::metadata::election::{Elect, Rules, Target, settle};
use crate::control::metadata::image::{Image, NodeInfo, PartitionState, Topic};
use crate::control::metadata::topic_config::{self, Settings};
use crate::control::request::{Refusal, Why};

/// What the nodes of the image and a topic's settings mean for its partitions.
pub(super) fn rules(nodes: &OrdMap<NodeId, Arc<NodeInfo>>, settings: Settings) -> Rules<'_> {
    Rules { isr_min: settings.isr_min, unclean: settings.unclean, nodes }
}

impl Image {
    pub(super) fn settings_of(&self, topic: &Topic) -> Settings {
        topic_config::settings(&topic.config, self)
    }

    /// Changes the partitions for which `aim` has a target, over all topics.
    pub(super) fn change_partitions(
        &mut self,
        delta: &mut Delta,
        aim: impl Fn(&PartitionState, Settings) -> Option<Target>,
    ) {
        let ids: Vec<TopicId> = self.topics_from(TopicId::default()).map(|topic| topic.id).collect();
        for id in ids {
            self.change_topic(id, delta, &aim);
        }
    }

    fn change_topic(
        &mut self,
        id: TopicId,
        delta: &mut Delta,
        aim: impl Fn(&PartitionState, Settings) -> Option<Target>,
    ) {
        let topic = self.topic_by_id(id).expect("the caller saw it");
        let settings = self.settings_of(topic);
        let rules = rules(&self.nodes, settings);
        let mut changed = Vec::new();
        for (at, state) in topic.partitions.iter().enumerate() {
            let new = aim(state, settings).and_then(|target| settle(state, target, &rules));
            changed.extend(new.map(|new| (at, new)));
        }
        if !changed.is_empty() {
            let index =
                |at: usize| PartitionIndex(u32::try_from(at).expect("bounded by PARTITIONS_PER_TOPIC_MAX"));
            delta.changed.extend(changed.iter().map(|(at, _)| PartitionId { topic: id, index: index(*at) }));
            self.put_partitions(id, changed);
        }
    }

    /// Makes this the state of a partition that is there.
    pub(super) fn put_state(&mut self, id: PartitionId, state: PartitionState, delta: &mut Delta) {
        let at = usize::try_from(id.index.0).expect("an index of a partition fits");
        self.put_partitions(id.topic, vec![(at, state)]);
        delta.changed.insert(id);
    }

    pub(super) fn known_partition(&self, id: PartitionId) -> Result<(&PartitionState, Rules<'_>), Refusal> {
        let unknown = || Refusal::new(Why::UnknownTopic, format!("there is no partition {id}"));
        let topic = self.topic_by_id(id.topic).ok_or_else(unknown)?;
        let state = topic.partition(id.index).ok_or_else(unknown)?;
        Ok((state, rules(&self.nodes, self.settings_of(topic))))
    }

    /// The settings of the topic are others than `before`. Another minimum of in-sync replicas ends what earlier ones
    /// were eligible for (R28), except where nobody is in sync: nothing was acknowledged there since, and they are all
    /// there is. Where unclean elections are allowed now, they are held.
    pub(super) fn on_settings_changed(&mut self, topic: TopicId, before: Settings, delta: &mut Delta) {
        let now = self.settings_of(self.topic_by_id(topic).expect("its settings changed"));
        if now.isr_min != before.isr_min {
            let mut cleared = Vec::new();
            for (at, state) in self.topic_by_id(topic).expect("it is there").partitions.iter().enumerate() {
                if !state.elr.is_empty() && !state.isr.is_empty() {
                    let mut state = PartitionState { elr: Vec::new(), ..state.clone() };
                    state.partition_epoch.0 += 1;
                    cleared.push((at, state));
                }
            }
            // All partitions of a topic whose settings changed are named in the delta by the caller or here.
            let index =
                |at: usize| PartitionIndex(u32::try_from(at).expect("bounded by PARTITIONS_PER_TOPIC_MAX"));
            delta.changed.extend(cleared.iter().map(|(at, _)| PartitionId { topic, index: index(*at) }));
            self.put_partitions(topic, cleared);
        }
        if now.unclean && !before.unclean {
            self.change_topic(topic, delta, |state, _| state.leader.is_none().then(|| Target::of(state)));
        }
    }

    pub(super) fn elect_leaders(
        &mut self,
        elect: &ElectLeaders,
        delta: &mut Delta,
    ) -> Vec<Result<(), Refusal>> {
        let mut results = Vec::new();
        for (topic, indexes) in &elect.topics {
            for index in indexes {
                let id = PartitionId { topic: *topic, index: *index };
                results.push(self.elect_leader(elect.kind, id, delta));
            }
        }
        results
    }

    fn elect_leader(
        &mut self,
        kind: ElectionKind,
        id: PartitionId,
        delta: &mut Delta,
    ) -> Result<(), Refusal> {
        let (state, rules) = self.known_partition(id)?;
        let not_needed = || {
            let words = format!("partition {id} is led by the node that the election would choose");
            Err(Refusal::new(Why::ElectionNotNeeded, words))
        };
        let target = Target::of(state);
        let target = match kind {
            ElectionKind::Preferred if state.leader == state.replicas.first().copied() => {
                return not_needed();
            }
            ElectionKind::Preferred => Target { elect: Elect::Preferred, ..target },
            ElectionKind::Unclean if state.leader.is_some() => return not_needed(),
            ElectionKind::Unclean => Target { elect: Elect::Unclean, ..target },
        };
        let new = settle(state, target, &rules);
        let elected = new.as_ref().and_then(|new| new.leader);
        match (kind, new) {
            (ElectionKind::Preferred, Some(new)) if elected == new.replicas.first().copied() => {
                self.put_state(id, new, delta);
                Ok(())
            }
            (ElectionKind::Preferred, _) => {
                let words =
                    format!("the preferred leader of partition {id} is not in sync, or cannot lead now");
                Err(Refusal::new(Why::PreferredLeaderNotAvailable, words))
            }
            (ElectionKind::Unclean, Some(new)) if elected.is_some() => {
                self.put_state(id, new, delta);
                Ok(())
            }
            (ElectionKind::Unclean, _) => {
                let words = format!("no node that holds partition {id} can lead now");
                Err(Refusal::new(Why::EligibleLeadersNotAvailable, words))
            }
        }
    }
}
