//! The nodes while replicas are placed on them: what each holds, what it may hold, and in which rack it stands.
//!
//! Control core, pure. Nodes are small indices here, in the order of their ids.

use std::collections::BTreeMap;

use highwater_shards::ids::NodeId;

use super::{Load, NODES_MAX, NodeView, PlacementError};

pub(super) struct Board {
    ids: Vec<NodeId>,
    /// By node: the number of its rack.
    racks: Vec<usize>,
    rack_count: usize,
    rack_aware: bool,
    load: Vec<u32>,
    leaders: Vec<u32>,
    /// By node: what it may still take. `u32::MAX` is no bound.
    room: Vec<u32>,
    bounded: bool,
    total: u64,
}

impl Board {
    pub(super) fn new(nodes: &[NodeView], load: &Load, rack_aware: bool) -> Result<Self, PlacementError> {
        if nodes.len() > NODES_MAX {
            return Err(PlacementError::TooManyNodes);
        }
        let mut sorted: Vec<&NodeView> = nodes.iter().collect();
        sorted.sort_unstable_by_key(|node| node.id);
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(PlacementError::NodeTwice(pair[0].id));
        }
        let mut by_name = BTreeMap::new();
        let mut rack_count = 0;
        let racks = sorted.iter().map(|node| {
            let next = rack_count;
            let rack = node.rack.as_deref().map_or(next, |name| *by_name.entry(name).or_insert(next));
            rack_count += usize::from(rack == next);
            rack
        });
        let racks = racks.collect();
        let loads: Vec<_> = sorted.iter().map(|node| load.of(node.id)).collect();
        let room = sorted.iter().zip(&loads).map(|(node, load)| {
            node.replicas_max.map_or(u32::MAX, |max| max.saturating_sub(load.replicas).min(u32::MAX - 1))
        });
        Ok(Self {
            ids: sorted.iter().map(|node| node.id).collect(),
            racks,
            rack_count,
            rack_aware,
            room: room.collect(),
            bounded: nodes.iter().any(|node| node.replicas_max.is_some()),
            total: loads.iter().map(|load| u64::from(load.replicas)).sum(),
            load: loads.iter().map(|load| load.replicas).collect(),
            leaders: loads.iter().map(|load| load.leaders).collect(),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn all_ids(&self) -> &[NodeId] {
        &self.ids
    }

    pub(super) fn ids(&self, set: &[usize]) -> Vec<NodeId> {
        set.iter().map(|node| self.ids[*node]).collect()
    }

    pub(super) fn index(&self, id: NodeId) -> Option<usize> {
        self.ids.binary_search(&id).ok()
    }

    pub(super) fn load(&self, node: usize) -> u32 {
        self.load[node]
    }

    pub(super) fn leaders(&self) -> Vec<u32> {
        self.leaders.clone()
    }

    /// Replicas over all nodes.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn has_room(&self, node: usize) -> bool {
        self.room[node] > 0
    }

    /// One more replica for the node.
    pub(super) fn take(&mut self, node: usize) {
        assert!(self.has_room(node), "a node is given no more than it has room for");
        if self.room[node] != u32::MAX {
            self.room[node] -= 1;
        }
        self.load[node] += 1;
        self.total += 1;
    }

    /// One replica fewer.
    pub(super) fn give(&mut self, node: usize) {
        if self.room[node] != u32::MAX {
            self.room[node] += 1;
        }
        self.load[node] -= 1;
        self.total -= 1;
    }

    /// How many of the set stand in the node's rack: 0 when racks do not count. Indices of no node stand in none.
    pub(super) fn in_rack_of(&self, node: usize, set: &[usize]) -> usize {
        if !self.rack_aware {
            return 0;
        }
        let rack = self.racks[node];
        set.iter().filter(|other| self.racks.get(**other) == Some(&rack)).count()
    }

    /// The node for one more replica beside `set`: of the least used racks, the one with the least rank. `only`
    /// leaves some out.
    pub(super) fn pick<R: Ord>(
        &self,
        set: &[usize],
        rank: impl Fn(usize) -> R,
        only: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        (0..self.len())
            .filter(|node| self.has_room(*node) && !set.contains(node) && only(*node))
            .min_by_key(|node| (self.in_rack_of(*node, set), rank(*node)))
    }

    /// Where the node's load stands in the band around the mean: 0 below it, 1 within, from 2 on above.
    ///
    /// The band is 10 % to each side, and one replica below: the mean now counts below, since all nodes are empty
    /// first, and the mean of all `total` replicas above.
    pub(super) fn band(&self, node: usize, total: u64) -> u32 {
        let (load, nodes) = (u64::from(self.load[node]), self.len() as u64);
        if (load + 1) * 10 * nodes < 9 * self.total {
            return 0;
        }
        let most = (11 * total).div_ceil(10 * nodes);
        if load < most { 1 } else { 2 + self.load[node] }
    }

    /// All nodes such that neighbours stand in different racks, as far as that goes.
    pub(super) fn racks_in_turn(&self) -> Vec<usize> {
        let mut in_rack = vec![0; self.rack_count];
        let mut nodes: Vec<(usize, usize, usize)> = Vec::with_capacity(self.len());
        for (node, rack) in self.racks.iter().enumerate() {
            nodes.push((in_rack[*rack], *rack, node));
            in_rack[*rack] += 1;
        }
        if self.rack_aware {
            nodes.sort_unstable();
        }
        nodes.into_iter().map(|(_, _, node)| node).collect()
    }

    /// Whether `count` partitions of `factor` replicas each fit on distinct nodes.
    pub(super) fn check_room(&self, count: usize, factor: usize) -> Result<(), PlacementError> {
        if !self.bounded {
            return Ok(());
        }
        let room: u64 = self.room.iter().map(|room| u64::from(*room).min(count as u64)).sum();
        let wanted = count as u64 * factor as u64;
        if room < wanted { Err(PlacementError::NoRoom { wanted, room }) } else { Ok(()) }
    }

    /// Which nodes or racks the next of `left` partitions must take, so that the others still fit.
    ///
    /// Partitions fit as long as the room that they can use, each unit's bounded by their number, is `factor` times
    /// their number. What exceeds that is slack, and each unit with room for all of them that is passed over takes
    /// one from it.
    pub(super) fn must_take(&self, left: usize, factor: usize) -> MustTake {
        if !self.bounded {
            return MustTake { of: Of::None, count: 0 };
        }
        let (left, factor) = (left as u64, factor as u64);
        let node_room: Vec<u64> = self.room.iter().map(|room| u64::from(*room)).collect();
        if self.rack_aware && self.rack_count as u64 >= factor {
            let mut rack_room = vec![0_u64; self.rack_count];
            for (rack, room) in self.racks.iter().zip(&node_room) {
                rack_room[*rack] += room;
            }
            if let Some((large, count)) = large(&rack_room, left, factor) {
                return MustTake { of: Of::Racks(large), count };
            }
        }
        match large(&node_room, left, factor) {
            Some((large, count)) => MustTake { of: Of::Nodes(large), count },
            None => MustTake { of: Of::None, count: 0 },
        }
    }
}

/// The units with room for all partitions, and how many of them cannot be passed over; `None` when not all
/// partitions fit.
fn large(room: &[u64], left: u64, factor: u64) -> Option<(Vec<bool>, usize)> {
    let usable: u64 = room.iter().map(|room| (*room).min(left)).sum();
    let slack = usable.checked_sub(left * factor)?;
    let large: Vec<bool> = room.iter().map(|room| *room >= left).collect();
    let count = large.iter().filter(|large| **large).count() as u64;
    Some((large, usize::try_from(count.saturating_sub(slack)).expect("at most the number of units")))
}

pub(super) struct MustTake {
    of: Of,
    count: usize,
}

enum Of {
    None,
    Nodes(Vec<bool>),
    Racks(Vec<bool>),
}

impl MustTake {
    /// The nodes that remain for the next of `left` replicas beside `set`.
    pub(super) fn narrows<'a>(
        &'a self,
        board: &'a Board,
        set: &[usize],
        left: usize,
    ) -> impl Fn(usize) -> bool + 'a {
        let large = |node: usize| match &self.of {
            Of::None => false,
            Of::Nodes(large) => large[node],
            Of::Racks(large) => large[board.racks[node]],
        };
        let taken = set.iter().filter(|node| large(**node)).count();
        let narrow = self.count.saturating_sub(taken) >= left;
        move |node| !narrow || large(node)
    }
}
