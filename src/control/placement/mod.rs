//! Where the replicas of partitions go on the nodes of the cluster: a strategy for new partitions, and plans of the
//! least moves for when nodes join, leave or die.
//!
//! Control core, pure and deterministic: the same nodes, load and request give the same answer. It knows nothing of
//! the image, so it can be used on its own:
//!
//! ```
//! use highwater::control::placement::{Change, Load, NewPartitions, NodeView, Placement, Strategy};
//! use highwater_shards::ids::{NodeId, PartitionId, PartitionIndex, TopicId};
//!
//! let node = |id: u32, rack: &str| NodeView { rack: Some(rack.into()), ..NodeView::new(NodeId(id)) };
//! let mut nodes = vec![node(1, "a"), node(2, "b"), node(3, "c"), node(4, "a")];
//! let placement = Placement { strategy: Strategy::LeastLoaded, ..Placement::default() };
//!
//! // Eight partitions of three replicas; the first of each list is the preferred leader.
//! let new = NewPartitions { topic: TopicId(7), first: PartitionIndex(0), count: 8, factor: 3 };
//! let sets = placement.place(&nodes, &Load::default(), &new)?;
//! assert!(sets.iter().all(|set| set.len() == 3));
//!
//! // A fifth node joins: the plan moves its share to it, and nothing else.
//! nodes.push(node(5, "b"));
//! let partitions: Vec<_> = (0..)
//!     .map(|index| PartitionId { topic: TopicId(7), index: PartitionIndex(index) })
//!     .zip(sets)
//!     .map(Into::into)
//!     .collect();
//! let plan = placement.plan(&nodes, &partitions, &Change::Join(vec![NodeId(5)]))?;
//! println!("{plan}");
//! assert!(plan.moves() <= 8 * 3 / 5);
//!
//! // Then it is carried out a few moves at a time.
//! for batch in plan.batches(2) {
//!     assert!(batch.iter().map(|change| change.moves()).sum::<usize>() <= 2);
//! }
//! # Ok::<(), highwater::control::placement::PlacementError>(())
//! ```
//!
//! What holds, in this order: no node holds two replicas of a partition; no node exceeds its capacity; with
//! `rack_aware`, the replicas of a partition are spread over as many racks as can be; the strategy's own wishes.

mod board;
mod leaders;
mod move_plan;
mod planner;
mod ring;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use highwater_shards::ids::{NodeId, PartitionId, PartitionIndex, TopicId};
use serde::{Deserialize, Serialize};

use self::board::Board;
pub use self::move_plan::{MovePlan, NodeChange, PartitionChange};
use self::ring::{Ring, mix};

/// Points of each node on the ring, when nothing else is said.
pub const VIRTUAL_NODES: u32 = 150;
/// Points of each node on the ring at most: more costs time and evens nothing out.
pub const VIRTUAL_NODES_MAX: u32 = 4096;
/// Nodes that are placed on at most.
pub const NODES_MAX: usize = 4096;
/// From so many replicas per node on, [`Strategy::ConsistentHash`] keeps every node within 15 % of the mean, where
/// capacities and racks leave it the choice. With fewer, one replica more or less is too large a part of the mean.
pub const EVEN_FROM_REPLICAS_PER_NODE: usize = 40;

/// How new replicas find their nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Every topic evenly over all nodes, whatever else they hold: no node is hot because of one topic.
    #[default]
    RoundRobin,
    /// By a hash ring with bounded load (Karger et al. 1997; Mirrokni, Thorup, Zadimoghaddam 2018): a partition stays
    /// near its point on the ring, however nodes come and go, and loads stay within a band around the mean.
    ConsistentHash,
    /// Always on the nodes with the fewest replicas in all: evens out the cluster as topics are made.
    LeastLoaded,
}

/// A strategy with its settings and the rack constraint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Placement {
    pub strategy: Strategy,
    /// Points of each node on the ring of [`Strategy::ConsistentHash`]; 1 to [`VIRTUAL_NODES_MAX`].
    pub virtual_nodes: u32,
    /// Whether replicas of a partition are spread over racks. A node without a rack is a rack of its own.
    pub rack_aware: bool,
}

impl Default for Placement {
    fn default() -> Self {
        Self { strategy: Strategy::default(), virtual_nodes: VIRTUAL_NODES, rack_aware: true }
    }
}

/// A node that replicas can be placed on: it is not fenced, not shutting down, and takes replicas.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeView {
    pub id: NodeId,
    pub rack: Option<String>,
    /// The most replicas that the node may hold; `None`: no bound.
    pub replicas_max: Option<u32>,
}

impl NodeView {
    /// A node without rack and bound.
    pub fn new(id: NodeId) -> Self {
        Self { id, rack: None, replicas_max: None }
    }
}

/// What nodes hold already.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Load {
    nodes: BTreeMap<NodeId, NodeLoad>,
}

/// Replicas on one node. `leaders <= replicas`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NodeLoad {
    pub replicas: u32,
    /// Partitions of which it is the preferred leader.
    pub leaders: u32,
}

impl Load {
    /// Counts one partition's replicas, the preferred leader first.
    pub fn add(&mut self, replicas: &[NodeId]) {
        for (slot, node) in replicas.iter().enumerate() {
            let load = self.nodes.entry(*node).or_default();
            load.replicas += 1;
            load.leaders += u32::from(slot == 0);
        }
    }

    pub fn of(&self, node: NodeId) -> NodeLoad {
        self.nodes.get(&node).copied().unwrap_or_default()
    }

    /// Partitions over all nodes.
    fn partitions(&self) -> u64 {
        self.nodes.values().map(|load| u64::from(load.leaders)).sum()
    }
}

impl<'a> FromIterator<&'a [NodeId]> for Load {
    fn from_iter<I: IntoIterator<Item = &'a [NodeId]>>(sets: I) -> Self {
        let mut load = Self::default();
        sets.into_iter().for_each(|set| load.add(set));
        load
    }
}

/// Partitions to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewPartitions {
    pub topic: TopicId,
    /// The index of the first of them: 0 for a new topic.
    pub first: PartitionIndex,
    pub count: usize,
    /// Replicas of each.
    pub factor: usize,
}

/// One partition and where it is, the preferred leader first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Placed {
    pub partition: PartitionId,
    pub replicas: Vec<NodeId>,
}

impl From<(PartitionId, Vec<NodeId>)> for Placed {
    fn from((partition, replicas): (PartitionId, Vec<NodeId>)) -> Self {
        Self { partition, replicas }
    }
}

/// Why a plan is made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// These nodes take their share of what is there.
    Join(Vec<NodeId>),
    /// What these nodes hold goes to others: they are dead, or shall be taken away.
    Leave(Vec<NodeId>),
    /// `with` takes the place of `dead`.
    Replace { dead: NodeId, with: NodeId },
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlacementError {
    #[error("a partition needs at least one replica")]
    NoReplicas,
    #[error(
        "{factor} replicas need {factor} nodes, and {nodes} can take replicas: start more, or ask for fewer"
    )]
    TooFewNodes { factor: usize, nodes: usize },
    #[error(
        "{wanted} more replicas exceed the capacity of the nodes, which have room for {room} on distinct nodes: raise \
         their bound or add nodes"
    )]
    NoRoom { wanted: u64, room: u64 },
    #[error("more than {NODES_MAX} nodes cannot be placed on")]
    TooManyNodes,
    #[error("node {0} stands twice in the list of nodes")]
    NodeTwice(NodeId),
    #[error("node {0} joins, but is not among the nodes that take replicas")]
    UnknownNode(NodeId),
    #[error("node {0} leaves, but is still among the nodes that take replicas")]
    StillThere(NodeId),
    #[error("partition {0} has node {1} twice among its replicas")]
    ReplicaTwice(PartitionId, NodeId),
    #[error("`virtual_nodes` must be 1 to {VIRTUAL_NODES_MAX}, not {0}")]
    VirtualNodes(u32),
}

impl Placement {
    /// Nodes for new partitions: for each of them `factor` distinct ones, the preferred leader first.
    ///
    /// Leaders are as even as the sets allow: over this topic with [`Strategy::RoundRobin`], in all with the others.
    pub fn place(
        &self,
        nodes: &[NodeView],
        load: &Load,
        new: &NewPartitions,
    ) -> Result<Vec<Vec<NodeId>>, PlacementError> {
        let mut board = self.board(nodes, load)?;
        let factor = new.factor;
        if factor == 0 {
            return Err(PlacementError::NoReplicas);
        }
        if factor > nodes.len() {
            return Err(PlacementError::TooFewNodes { factor, nodes: nodes.len() });
        }
        board.check_room(new.count, factor)?;
        let order = self.order(&board, load.partitions());
        let total = board.total() + (new.count * factor) as u64;
        let mut sets = Vec::with_capacity(new.count);
        let mut positions = vec![0; nodes.len()];
        let mut dealt = vec![0_u32; nodes.len()];
        for n in 0..new.count {
            let index = u64::from(new.first.0) + n as u64;
            order.positions(new.topic, index, &mut positions);
            let must = board.must_take(new.count - n, factor);
            let mut set = Vec::with_capacity(factor);
            for slot in 0..factor {
                let tier = |node: usize| match self.strategy {
                    Strategy::RoundRobin => (dealt[node], 0),
                    Strategy::LeastLoaded => (board.load(node), dealt[node]),
                    Strategy::ConsistentHash => (board.band(node, total), 0),
                };
                let only = must.narrows(&board, &set, factor - slot);
                let node = board.pick(&set, |node| (tier(node), positions[node]), only);
                let node = node.expect("there is room on as many nodes as needed: it was checked");
                board.take(node);
                dealt[node] += 1;
                set.push(node);
            }
            sets.push(set);
        }
        let mut leads = match self.strategy {
            Strategy::RoundRobin => vec![0; nodes.len()],
            Strategy::ConsistentHash | Strategy::LeastLoaded => board.leaders(),
        };
        leaders::choose(&mut sets, &mut leads);
        leaders::even_out(&mut sets, &mut leads);
        Ok(sets.iter().map(|set| board.ids(set)).collect())
    }

    /// The least moves for a change of the nodes. `nodes` are those after the change.
    ///
    /// - `Join`: the new nodes get their share of the replicas from the fullest nodes; nothing else moves. No
    ///   partition's spread over racks gets worse, and the ones with a bad spread move first.
    /// - `Leave`: exactly the replicas of nodes that are no more are moved. What fits nowhere is a shortfall of the plan.
    /// - `Replace`: they all move to the one node, except where it cannot take them.
    ///
    /// Then preferred leaders are evened out, which moves no data.
    pub fn plan(
        &self,
        nodes: &[NodeView],
        partitions: &[Placed],
        change: &Change,
    ) -> Result<MovePlan, PlacementError> {
        planner::plan(self, nodes, partitions, change)
    }

    fn board(&self, nodes: &[NodeView], load: &Load) -> Result<Board, PlacementError> {
        if !(1..=VIRTUAL_NODES_MAX).contains(&self.virtual_nodes) {
            return Err(PlacementError::VirtualNodes(self.virtual_nodes));
        }
        Board::new(nodes, load, self.rack_aware)
    }

    /// `turn` is where the round stands: so many partitions were dealt.
    fn order(&self, board: &Board, turn: u64) -> Order {
        match self.strategy {
            Strategy::ConsistentHash => Order::Ring(Ring::new(board.all_ids(), self.virtual_nodes)),
            Strategy::RoundRobin | Strategy::LeastLoaded => {
                Order::Rounds { nodes: board.racks_in_turn(), turn }
            }
        }
    }
}

/// In which order a partition prefers nodes that are otherwise alike.
enum Order {
    /// Nodes in turn; followers are one step further from their leader in each round, so that the followers of one
    /// leader are not always the same (as Kafka does it).
    Rounds {
        nodes: Vec<usize>,
        turn: u64,
    },
    Ring(Ring),
}

impl Order {
    /// The position of each node in the order of this partition; all of them are different.
    fn positions(&self, topic: TopicId, index: u64, positions: &mut [u32]) {
        match self {
            Self::Ring(ring) => ring.positions(point(topic, index), positions),
            Self::Rounds { nodes, turn } => {
                let count = nodes.len() as u64;
                let turn = turn.wrapping_add(index);
                let (round, leader) = (turn / count, turn % count);
                let at = |n: u64| nodes[usize::try_from(n % count).expect("less than the number of nodes")];
                positions[at(leader)] = 0;
                for (position, step) in (1..count).zip(1_u32..) {
                    let follower = leader + 1 + (round + position - 1) % (count - 1);
                    positions[at(follower)] = step;
                }
            }
        }
    }
}

/// Where a partition stands on the ring.
fn point(topic: TopicId, index: u64) -> u64 {
    let [high, low] = [(topic.0 >> 64) as u64, topic.0 as u64];
    mix(mix(mix(high) ^ low) ^ index)
}
