//! The controller's look at partitions: whose leader is gone, and who is to lead instead.
//!
//! Control core of the node that leads the metadata log; pure. It decides from the image alone, so a new controller
//! that begins anew comes to the same, and it may be interrupted at any time. It elects among the in-sync replicas
//! only: nothing that was acknowledged is given up.

use highwater_shards::ids::{NodeId, PartitionIndex, TopicId};

use super::metadata::command::{AlterPartition, AlterTopic, Command, LeaderChange};
use super::metadata::image::{Image, PartitionState};

/// How far the controller has come.
#[derive(Debug, Default)]
pub struct Review {
    /// The topic to go on with; `None` when all was seen.
    next: Option<TopicId>,
}

impl Review {
    /// All partitions are to be looked at: nodes came or went, or this node has become the controller.
    pub fn restart(&mut self) {
        self.next = Some(TopicId::default());
    }

    pub fn is_due(&self) -> bool {
        self.next.is_some()
    }

    /// The next changes, in at most `bytes_max` bytes; those that do not fit come with the next call. `None` when
    /// there are none left.
    pub fn next(&mut self, image: &Image, bytes_max: usize) -> Option<Command> {
        let first = self.next?;
        let (mut topics, mut bytes) = (Vec::new(), 0);
        for topic in image.topics_from(first) {
            let mut altered = AlterTopic { topic: topic.id, partitions: Vec::new() };
            for (index, state) in (0..).map(PartitionIndex).zip(&topic.partitions) {
                let Some(change) = wanted(index, state, image) else { continue };
                if altered.partitions.is_empty() {
                    bytes += AlterTopic { topic: topic.id, partitions: Vec::new() }.weight();
                }
                bytes += change.weight();
                if bytes > bytes_max {
                    self.next = Some(topic.id);
                    topics.extend((!altered.partitions.is_empty()).then_some(altered));
                    return (!topics.is_empty()).then_some(Command::AlterPartitions(topics));
                }
                altered.partitions.push(change);
            }
            if !altered.partitions.is_empty() {
                topics.push(altered);
            }
        }
        self.next = None;
        (!topics.is_empty()).then_some(Command::AlterPartitions(topics))
    }
}

/// What is wrong about a partition, as a change that makes it right: fenced replicas are not in sync (but the last
/// ones stay, since they have the records), and who leads can.
fn wanted(index: PartitionIndex, state: &PartitionState, image: &Image) -> Option<AlterPartition> {
    let serving: Vec<NodeId> = state.isr.iter().copied().filter(|&node| image.serves(node)).collect();
    let isr = (!serving.is_empty() && serving.len() < state.isr.len()).then_some(serving);
    let in_sync = isr.as_ref().unwrap_or(&state.isr);
    let may_lead = |node: NodeId| in_sync.contains(&node) && image.can_lead(node);
    let leader = if state.leader.is_some_and(may_lead) {
        LeaderChange::Keep
    } else {
        match state.replicas.iter().copied().find(|&node| may_lead(node)) {
            Some(node) => LeaderChange::Elect(node),
            None if state.leader.is_some() => LeaderChange::Nobody,
            None => LeaderChange::Keep,
        }
    };
    (isr.is_some() || leader != LeaderChange::Keep).then(|| AlterPartition {
        index,
        expected: state.partition_epoch,
        leader,
        isr,
        ..AlterPartition::default()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use highwater_shards::ids::{LeaderEpoch, PartitionEpoch};

    use super::*;
    use crate::control::metadata::image::{Capabilities, NodeInfo, Topic};

    /// Nodes 1 to 4, of which 3 is fenced and 4 is not meant to lead.
    fn image() -> Image {
        let mut image = Image::default();
        for id in [1, 2, 3, 4].map(NodeId) {
            let capabilities = Capabilities { leader: id != NodeId(4), ..Capabilities::default() };
            let info = NodeInfo { id, fenced: id == NodeId(3), capabilities, ..NodeInfo::default() };
            image.nodes.insert(id, Arc::new(info));
        }
        image
    }

    fn state(leader: Option<u32>, replicas: &[u32], isr: &[u32]) -> PartitionState {
        let nodes = |ids: &[u32]| ids.iter().map(|&id| NodeId(id)).collect();
        PartitionState {
            leader: leader.map(NodeId),
            leader_epoch: LeaderEpoch(3),
            partition_epoch: PartitionEpoch(5),
            replicas: nodes(replicas),
            isr: nodes(isr),
            elr: Vec::new(),
        }
    }

    #[test]
    fn a_leader_is_elected_among_those_in_sync_in_the_order_of_the_assignment() {
        let image = image();
        let wanted = |leader, replicas: &[u32], isr: &[u32]| {
            let change = wanted(PartitionIndex(0), &state(leader, replicas, isr), &image)?;
            assert_eq!(change.expected, PartitionEpoch(5));
            Some((change.leader, change.isr.map(|isr| isr.iter().map(|n| n.0).collect::<Vec<_>>())))
        };
        let elect = |id| LeaderChange::Elect(NodeId(id));
        assert_eq!(wanted(Some(1), &[1, 2], &[1, 2]), None);
        assert_eq!(wanted(Some(2), &[1, 2], &[1, 2]), None, "a leader stays, preferred or not");
        assert_eq!(wanted(Some(3), &[3, 2, 1], &[1, 2, 3]), Some((elect(2), Some(vec![1, 2]))));
        assert_eq!(wanted(Some(1), &[1, 3], &[1, 3]), Some((LeaderChange::Keep, Some(vec![1]))));
        assert_eq!(wanted(Some(3), &[3, 1], &[3]), Some((LeaderChange::Nobody, None)), "1 is not in sync");
        assert_eq!(wanted(None, &[3, 1], &[3]), None, "3 is waited for");
        assert_eq!(wanted(None, &[2], &[2]), Some((elect(2), None)), "it came back");
        assert_eq!(wanted(Some(3), &[3, 4], &[3, 4]), Some((LeaderChange::Nobody, Some(vec![4]))));
        assert_eq!(wanted(Some(9), &[9, 1], &[9, 1]), Some((elect(1), Some(vec![1]))), "9 is gone");
    }

    #[test]
    fn a_review_goes_on_where_the_last_entry_was_full() {
        let mut image = image();
        for id in 1..=50 {
            let lost = state(Some(3), &[3, 1], &[3, 1]);
            let partitions = (0..id % 4).map(|_| lost.clone()).collect();
            let name = format!("t{id}").into();
            image.put_topic(Topic { id: TopicId(id), name, partitions, config: Arc::default() });
        }
        let mut review = Review::default();
        assert_eq!(review.next(&image, 1000), None, "nothing is due");
        review.restart();
        let mut commands = 0;
        while review.is_due() {
            let Some(command) = review.next(&image, 300) else { continue };
            assert!(command.weight() <= 300 + 4);
            image.try_out(&command);
            commands += 1;
        }
        assert!(commands > 5, "{commands}");
        assert!(image.topics().flat_map(|t| &t.partitions).all(|p| p.leader == Some(NodeId(1))));
    }
}
