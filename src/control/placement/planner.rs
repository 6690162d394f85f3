//! Plans the least moves for a change of the nodes.
//!
//! Control core, pure. A plan starts from where replicas are, not from where a fresh placement would put them: that
//! is what keeps it small.

use std::collections::{BTreeMap, BinaryHeap};

use highwater_shards::ids::{Map, NodeId, TopicId};

use super::board::Board;
use super::ring::mix;
use super::{
    Change, Load, MovePlan, NodeChange, NodeView, Order, PartitionChange, Placed, Placement, PlacementError,
    Strategy, leaders, point,
};

pub(super) fn plan(
    placement: &Placement,
    nodes: &[NodeView],
    partitions: &[Placed],
    change: &Change,
) -> Result<MovePlan, PlacementError> {
    let mut work = Work::new(placement, nodes, partitions)?;
    let mut shortfall = 0;
    match change {
        Change::Join(ids) => {
            let known = |id: &NodeId| work.board.index(*id).ok_or(PlacementError::UnknownNode(*id));
            let newcomers: Vec<usize> = ids.iter().map(known).collect::<Result<_, _>>()?;
            for newcomer in &newcomers {
                work.fill(*newcomer, &newcomers);
            }
        }
        Change::Leave(ids) => shortfall = work.clear(ids, None)?,
        Change::Replace { dead, with } => {
            let with = work.board.index(*with).ok_or(PlacementError::UnknownNode(*with))?;
            shortfall = work.clear(&[*dead], Some(with))?;
        }
    }
    work.even_out_leaders();
    Ok(work.into_plan(change, shortfall))
}

struct Work<'a> {
    strategy: Strategy,
    board: Board,
    order: Order,
    partitions: &'a [Placed],
    /// By partition: its nodes. Indices from the board's length on are nodes that take no replicas.
    sets: Vec<Vec<usize>>,
    outside: Vec<NodeId>,
    /// By partition: the number of its topic.
    topics: Vec<usize>,
    /// By topic: its replicas.
    topic_replicas: Vec<usize>,
    /// By topic and node: replicas of the topic on it.
    topic_load: Map<(usize, usize), u32>,
}

impl<'a> Work<'a> {
    fn new(
        placement: &Placement,
        nodes: &[NodeView],
        partitions: &'a [Placed],
    ) -> Result<Self, PlacementError> {
        let load: Load = partitions.iter().map(|p| &p.replicas[..]).collect();
        let board = placement.board(nodes, &load)?;
        let mut outside: Vec<NodeId> = Vec::new();
        let mut numbers: BTreeMap<TopicId, usize> = BTreeMap::new();
        let (mut topics, mut topic_replicas) = (Vec::with_capacity(partitions.len()), Vec::new());
        let mut topic_load = Map::default();
        let mut sets = Vec::with_capacity(partitions.len());
        for placed in partitions {
            let next = numbers.len();
            let topic = *numbers.entry(placed.partition.topic).or_insert(next);
            if topic == next {
                topic_replicas.push(0);
            }
            topic_replicas[topic] += placed.replicas.len();
            topics.push(topic);
            let mut set = Vec::with_capacity(placed.replicas.len());
            for id in &placed.replicas {
                let node = board.index(*id).unwrap_or_else(|| {
                    let known = outside.iter().position(|other| other == id);
                    board.len()
                        + known.unwrap_or_else(|| {
                            outside.push(*id);
                            outside.len() - 1
                        })
                });
                if set.contains(&node) {
                    return Err(PlacementError::ReplicaTwice(placed.partition, *id));
                }
                *topic_load.entry((topic, node)).or_default() += 1;
                set.push(node);
            }
            sets.push(set);
        }
        Ok(Self {
            strategy: placement.strategy,
            order: placement.order(&board, 0),
            board,
            partitions,
            sets,
            outside,
            topics,
            topic_replicas,
            topic_load,
        })
    }

    /// Moves everything away from nodes that are no more, to `with` where that is given and possible. Returns the
    /// number of replicas for which there was no node.
    fn clear(&mut self, ids: &[NodeId], with: Option<usize>) -> Result<u64, PlacementError> {
        if let Some(id) = ids.iter().find(|id| self.board.index(**id).is_some()) {
            return Err(PlacementError::StillThere(*id));
        }
        let nodes = self.board.len();
        let gone: Vec<usize> =
            (nodes..).zip(&self.outside).filter(|(_, id)| ids.contains(id)).map(|(node, _)| node).collect();
        let homeless: usize =
            self.sets.iter().map(|set| set.iter().filter(|n| gone.contains(n)).count()).sum();
        let total = self.board.total() + homeless as u64;
        let mut positions = vec![0; nodes];
        let mut shortfall = 0;
        for partition in 0..self.sets.len() {
            while let Some(slot) = self.sets[partition].iter().position(|node| gone.contains(node)) {
                let left = self.sets[partition].remove(slot);
                let set = &self.sets[partition];
                let home = match with {
                    Some(with) if self.board.has_room(with) && !set.contains(&with) => Some(with),
                    _ => self.home(partition, total, &mut positions),
                };
                let Some(home) = home else {
                    shortfall += 1;
                    continue;
                };
                self.board.take(home);
                self.count_move(partition, left, home);
                // A substitute inherits the rank among the replicas; another node is the last to lead, as it has
                // nothing yet.
                let slot = if Some(home) == with { slot } else { self.sets[partition].len() };
                self.sets[partition].insert(slot, home);
            }
        }
        Ok(shortfall)
    }

    /// The node for one more replica of the partition, as the strategy wants it.
    fn home(&self, partition: usize, total: u64, positions: &mut [u32]) -> Option<usize> {
        let id = self.partitions[partition].partition;
        self.order.positions(id.topic, u64::from(id.index.0), positions);
        let topic = self.topics[partition];
        let of_topic = |node: usize| self.topic_load.get(&(topic, node)).copied().unwrap_or(0);
        let rank = |node: usize| {
            let load = self.board.load(node);
            let tier = match self.strategy {
                Strategy::RoundRobin => (of_topic(node), load),
                Strategy::LeastLoaded => (load, of_topic(node)),
                Strategy::ConsistentHash => (self.board.band(node, total), 0),
            };
            (tier, positions[node])
        };
        self.board.pick(&self.sets[partition], rank, |_| true)
    }

    /// Gives a node its share, one replica at a time from the fullest node that can part with one.
    fn fill(&mut self, newcomer: usize, newcomers: &[usize]) {
        let share = self.board.total() / self.board.len() as u64;
        let mut offers = self.offers(newcomer, newcomers);
        let mut fullest: BinaryHeap<(u32, std::cmp::Reverse<usize>)> = (0..self.board.len())
            .filter(|node| !newcomers.contains(node))
            .map(|node| (self.board.load(node), std::cmp::Reverse(node)))
            .collect();
        while u64::from(self.board.load(newcomer)) < share && self.board.has_room(newcomer) {
            let Some((load, std::cmp::Reverse(donor))) = fullest.pop() else { return };
            if load <= self.board.load(newcomer) + 1 {
                return;
            }
            // A donor with nothing to offer is not asked again.
            let Some(partition) = self.next_offer(&mut offers[donor], newcomer) else { continue };
            let slot = self.sets[partition].iter().position(|node| *node == donor);
            // The newcomer inherits the rank among the replicas, and so about its share of the leaders.
            self.sets[partition][slot.expect("an offer is of a replica that is there")] = newcomer;
            self.board.give(donor);
            self.board.take(newcomer);
            self.count_move(partition, donor, newcomer);
            fullest.push((self.board.load(donor), std::cmp::Reverse(donor)));
        }
    }

    /// By donor: what it can give to the newcomer without making a spread over racks worse.
    fn offers(&self, newcomer: usize, newcomers: &[usize]) -> Vec<Offers> {
        let mut offers: Vec<Offers> = (0..self.board.len()).map(|_| Offers::default()).collect();
        let mut positions = vec![0; self.board.len()];
        for (partition, set) in self.sets.iter().enumerate() {
            if set.contains(&newcomer) {
                continue;
            }
            let id = self.partitions[partition].partition;
            if self.strategy == Strategy::ConsistentHash {
                self.order.positions(id.topic, u64::from(id.index.0), &mut positions);
            }
            let beside = self.board.in_rack_of(newcomer, set);
            for &donor in set.iter().filter(|node| **node < self.board.len() && !newcomers.contains(node)) {
                let same = self.board.in_rack_of(newcomer, &[donor]);
                let (before, after) = (self.board.in_rack_of(donor, set).saturating_sub(1), beside - same);
                if after > before {
                    continue;
                }
                let wish = match self.strategy {
                    Strategy::ConsistentHash => i64::from(positions[newcomer]) - i64::from(positions[donor]),
                    // Any order will do that does not favour some indices of every topic.
                    Strategy::RoundRobin | Strategy::LeastLoaded => {
                        (mix(point(id.topic, u64::from(id.index.0)) ^ newcomer as u64) >> 1) as i64
                    }
                };
                offers[donor].first.push((after as i64 - before as i64, wish, partition));
            }
        }
        for offers in &mut offers {
            // The best is taken from the end.
            offers.first.sort_unstable_by(|a, b| b.cmp(a));
        }
        offers
    }

    fn next_offer(&self, offers: &mut Offers, newcomer: usize) -> Option<usize> {
        while let Some((_, _, partition)) = offers.first.pop() {
            if self.sets[partition].contains(&newcomer) {
                continue;
            }
            let topic = self.topics[partition];
            let has = self.topic_load.get(&(topic, newcomer)).map_or(0, |load| *load as usize);
            let share = self.topic_replicas[topic].div_ceil(self.board.len());
            if self.strategy == Strategy::ConsistentHash || has < share {
                return Some(partition);
            }
            offers.later.push(partition);
        }
        loop {
            let partition = offers.later.pop()?;
            if !self.sets[partition].contains(&newcomer) {
                return Some(partition);
            }
        }
    }

    fn count_move(&mut self, partition: usize, from: usize, to: usize) {
        let topic = self.topics[partition];
        if let Some(load) = self.topic_load.get_mut(&(topic, from)) {
            *load -= 1;
        }
        *self.topic_load.entry((topic, to)).or_default() += 1;
    }

    /// Evens out leaders among the nodes that take replicas. Partitions that another node leads stay with it.
    fn even_out_leaders(&mut self) {
        let nodes = self.board.len();
        let mut leads = vec![0; nodes];
        let led: Vec<usize> = (0..self.sets.len())
            .filter(|p| self.sets[*p].first().is_some_and(|leader| *leader < nodes))
            .collect();
        let mut sets = Vec::with_capacity(led.len());
        for partition in &led {
            let set: Vec<usize> =
                self.sets[*partition].iter().copied().filter(|node| *node < nodes).collect();
            leads[set[0]] += 1;
            sets.push(set);
        }
        leaders::even_out(&mut sets, &mut leads);
        for (partition, even) in led.into_iter().zip(sets) {
            let set = &mut self.sets[partition];
            let slot = set.iter().position(|node| *node == even[0]).expect("the leader is one of the set");
            set.swap(0, slot);
        }
    }

    fn into_plan(self, change: &Change, shortfall: u64) -> MovePlan {
        let mut nodes: BTreeMap<NodeId, NodeChange> = BTreeMap::new();
        let mut entry = |id: NodeId, count: &dyn Fn(&mut NodeChange)| {
            let empty = NodeChange {
                node: id,
                replicas_before: 0,
                replicas_after: 0,
                leaders_before: 0,
                leaders_after: 0,
            };
            count(nodes.entry(id).or_insert(empty));
        };
        self.board.all_ids().iter().for_each(|id| entry(*id, &|_| {}));
        let (mut moving, mut leading, mut replicas) = (Vec::new(), Vec::new(), 0);
        for (placed, set) in self.partitions.iter().zip(&self.sets) {
            let inside = |node: usize| node < self.board.len();
            let id = |node: usize| {
                if inside(node) { self.board.all_ids()[node] } else { self.outside[node - self.board.len()] }
            };
            let after: Vec<NodeId> = set.iter().map(|node| id(*node)).collect();
            replicas += placed.replicas.len() as u64;
            for (slot, node) in placed.replicas.iter().enumerate() {
                entry(*node, &|change| {
                    change.replicas_before += 1;
                    change.leaders_before += u32::from(slot == 0);
                });
            }
            for (slot, node) in after.iter().enumerate() {
                entry(*node, &|change| {
                    change.replicas_after += 1;
                    change.leaders_after += u32::from(slot == 0);
                });
            }
            if after != placed.replicas {
                let change =
                    PartitionChange { partition: placed.partition, before: placed.replicas.clone(), after };
                let list = if change.moves() > 0 { &mut moving } else { &mut leading };
                list.push(change);
            }
        }
        moving.append(&mut leading);
        MovePlan {
            change: change.clone(),
            replicas,
            shortfall,
            nodes: nodes.into_values().collect(),
            partitions: moving,
        }
    }
}

/// What one node can give to a newcomer: the best at the end.
#[derive(Default)]
struct Offers {
    /// With what it does to the spread over racks and how much the strategy wishes it; less is better.
    first: Vec<(i64, i64, usize)>,
    /// Those of topics of which the newcomer has its share.
    later: Vec<usize>,
}
