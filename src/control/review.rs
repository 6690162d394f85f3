//! The controller's look at partitions: which are led by another than the preferred one of their replicas, although
//! that one is in sync and can lead (R29).
//!
//! Control core of the node that leads the metadata log; pure. Everything that cannot wait is decided where an entry is
//! applied; this evens the load out again after nodes were away. It decides from the image alone, so a new controller
//! comes to the same, and it may be interrupted at any time.

use highwater_shards::ids::{PartitionIndex, TopicId};

use super::metadata::command::{Command, ElectLeaders, ElectionKind};
use super::metadata::image::{Image, PartitionState};

/// How far the controller has come.
#[derive(Debug, Default)]
pub struct Review {
    /// The topic to go on with; `None` when all was seen.
    next: Option<TopicId>,
}

impl Review {
    /// All partitions are to be looked at.
    pub fn restart(&mut self) {
        self.next = Some(TopicId::default());
    }

    pub fn stop(&mut self) {
        self.next = None;
    }

    pub fn is_due(&self) -> bool {
        self.next.is_some()
    }

    /// The next elections, in at most `bytes_max` bytes; those that do not fit come with the next call. `None` when
    /// there are none left.
    pub fn next(&mut self, image: &Image, bytes_max: usize) -> Option<Command> {
        const TOPIC_BYTES: usize = 22;
        const INDEX_BYTES: usize = 5;
        let first = self.next.take()?;
        let (mut topics, mut bytes) = (Vec::new(), 8);
        for topic in image.topics_from(first) {
            let states = (0..).map(PartitionIndex).zip(&topic.partitions);
            let wanted = states.filter(|(_, state)| is_wanted(state, image)).map(|(index, _)| index);
            let room = bytes_max.saturating_sub(bytes + TOPIC_BYTES) / INDEX_BYTES;
            // What was elected is not wanted any more, so a topic that is begun again goes on where it ended.
            let mut indexes: Vec<PartitionIndex> = wanted.take(room + 1).collect();
            let is_full = indexes.len() > room;
            indexes.truncate(room);
            if !indexes.is_empty() {
                bytes += TOPIC_BYTES + INDEX_BYTES * indexes.len();
                topics.push((topic.id, indexes));
            }
            if is_full {
                self.next = Some(topic.id);
                break;
            }
        }
        (!topics.is_empty())
            .then_some(Command::ElectLeaders(ElectLeaders { kind: ElectionKind::Preferred, topics }))
    }
}

/// Whether the preferred replica could lead and does not.
fn is_wanted(state: &PartitionState, image: &Image) -> bool {
    let preferred = state.replicas.first().copied();
    preferred.is_some_and(|node| {
        state.leader.is_some()
            && state.leader != preferred
            && state.isr.contains(&node)
            && image.can_lead(node)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use highwater_shards::ids::NodeId;

    use super::*;
    use crate::control::metadata::image::{NodeInfo, Topic};

    #[test]
    fn preferred_leaders_are_elected_where_they_are_in_sync_and_can_lead_in_entries_of_a_bounded_size() {
        let mut image = Image::default();
        for id in [1, 2, 3].map(NodeId) {
            let info = NodeInfo { id, fenced: id == NodeId(3), ..NodeInfo::default() };
            image.nodes.insert(id, Arc::new(info));
        }
        let led_by_2 = |replicas: &[u32], isr: &[u32]| PartitionState {
            leader: Some(NodeId(2)),
            replicas: replicas.iter().map(|&id| NodeId(id)).collect(),
            isr: isr.iter().map(|&id| NodeId(id)).collect(),
            ..PartitionState::default()
        };
        for id in 1..=50 {
            let partitions = [
                led_by_2(&[1, 2], &[1, 2]),
                led_by_2(&[1, 2], &[2]),
                led_by_2(&[2, 1], &[1, 2]),
                led_by_2(&[3, 2], &[3, 2]),
            ];
            let partitions = partitions.into_iter().cycle().take(id % 9).collect();
            let name = format!("t{id}").into();
            image.put_topic(Topic { id: TopicId(id as u128), name, partitions, config: Arc::default() });
        }
        let mut review = Review::default();
        assert_eq!(review.next(&image, 1000), None, "nothing is due");
        review.restart();
        let mut commands = 0;
        while review.is_due() {
            let Some(command) = review.next(&image, 100) else { continue };
            assert!(command.weight() <= 100, "{}", command.weight());
            image.try_out(&command);
            commands += 1;
        }
        assert!(commands > 10, "{commands}");
        for (at, state) in image.topics().flat_map(|t| t.partitions.iter().enumerate()) {
            assert_eq!(state.leader, Some(NodeId(if at % 4 == 0 { 1 } else { 2 })));
            assert_eq!(state.leader_epoch.0, u32::from(at % 4 == 0));
        }
    }
}
