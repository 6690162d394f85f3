//! Where the replicas of this node go: partitions on its shards.
//!
//! Control core, pure and deterministic.

use highwater_shards::ids::{NodeId, PartitionId, PartitionIndex, ShardId};

use super::metadata::image::{Image, Topic};

/// How many partitions each shard of this node owns.
#[derive(Debug)]
pub struct ShardLoad {
    owned: Vec<usize>,
}

impl ShardLoad {
    /// The load that the placements in `image` make. Those on shards that do not exist do not count.
    pub fn of(image: &Image, shards: u16) -> Self {
        let mut load = Self { owned: vec![0; usize::from(shards)] };
        for (_, shard) in image.local_shards() {
            if let Some(owned) = load.owned.get_mut(usize::from(shard.0)) {
                *owned += 1;
            }
        }
        load
    }

    pub fn remove(&mut self, shard: ShardId) {
        self.owned[usize::from(shard.0)] -= 1;
    }

    /// Gives each of the topic's partitions of which `node` is a replica, and which none owns, a shard: the one
    /// that has the fewest of this topic, then the fewest of all, then the lowest number.
    pub fn place(&mut self, topic: &Topic, node: NodeId, image: &Image) -> Vec<(PartitionId, ShardId)> {
        let mut of_topic = vec![0_usize; self.owned.len()];
        let mut homeless = Vec::new();
        for (index, state) in (0..).map(PartitionIndex).zip(&topic.partitions) {
            let id = topic.partition_id(index);
            match image.local_shard(id) {
                Some(shard) => of_topic[usize::from(shard.0)] += 1,
                None if state.replicas.contains(&node) => homeless.push(id),
                None => {}
            }
        }
        let mut placed = Vec::with_capacity(homeless.len());
        for id in homeless {
            let least = (0..self.owned.len()).min_by_key(|&shard| (of_topic[shard], self.owned[shard]));
            let shard = least.expect("a node has at least one shard");
            of_topic[shard] += 1;
            self.owned[shard] += 1;
            placed.push((id, ShardId(u16::try_from(shard).expect("shards are counted in 16 bits"))));
        }
        placed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use highwater_shards::ids::TopicId;

    use super::*;
    use crate::control::metadata::image::PartitionState;

    fn topic(id: u128, replicas: &[NodeId], partitions: usize) -> Topic {
        let state = PartitionState {
            leader: replicas.first().copied(),
            replicas: replicas.to_vec(),
            isr: replicas.to_vec(),
            ..PartitionState::default()
        };
        Topic {
            id: TopicId(id),
            name: format!("t{id}").into(),
            partitions: (0..partitions).map(|_| state.clone()).collect(),
            config: Arc::default(),
        }
    }

    fn owned(image: &Image, topic: &Topic, shards: u16) -> Vec<usize> {
        let mut counts = vec![0; usize::from(shards)];
        for index in 0..topic.partitions.len() {
            let id = topic.partition_id(PartitionIndex(index as u32));
            counts[usize::from(image.local_shard(id).expect("placed").0)] += 1;
        }
        counts
    }

    #[test]
    fn topics_and_the_node_as_a_whole_are_balanced_over_shards() {
        let mut image = Image::default();
        let mut load = ShardLoad::of(&image, 3);
        for id in 1..=30 {
            let topic = topic(id, &[NodeId(1)], id as usize % 7 + 1);
            image.put_topic(topic.clone());
            for (partition, shard) in load.place(&topic, NodeId(1), &image) {
                image.put_local_shard(partition, shard);
            }
            let counts = owned(&image, &topic, 3);
            let (min, max) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(max - min <= 1, "topic {id}: {counts:?}");
        }
        assert_eq!(ShardLoad::of(&image, 3).owned, load.owned);
        let (min, max) = (load.owned.iter().min().unwrap(), load.owned.iter().max().unwrap());
        assert!(max - min <= 1, "{:?}", load.owned);
    }

    #[test]
    fn partitions_of_other_nodes_get_no_shard_and_placed_ones_stay() {
        let mut image = Image::default();
        let mine = topic(1, &[NodeId(1)], 3);
        image.put_local_shard(mine.partition_id(PartitionIndex(1)), ShardId(0));
        let mut load = ShardLoad::of(&image, 2);
        assert_eq!(load.place(&topic(2, &[NodeId(9)], 4), NodeId(1), &image), []);
        let placed = load.place(&mine, NodeId(1), &image);
        let id = |index| mine.partition_id(PartitionIndex(index));
        assert_eq!(placed, [(id(0), ShardId(1)), (id(2), ShardId(0))]);
    }
}
