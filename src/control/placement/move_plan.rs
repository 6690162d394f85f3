//! What a plan would do, to be shown before it is done and to be done in steps.
//!
//! Control core, pure data. Nodes only gain or only lose replicas within one plan, so no part of it that is carried
//! out in order exceeds a capacity that the whole keeps.

use std::fmt;

use highwater_shards::ids::{NodeId, PartitionId};
use serde::{Deserialize, Serialize};

use super::Change;

/// Partitions that [`MovePlan`]'s `Display` lists at most; the others are counted.
const SHOWN_MAX: usize = 20;

/// The changes that a join, a leave or a replacement asks for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MovePlan {
    pub change: Change,
    /// Replicas over all partitions before the change.
    pub replicas: u64,
    /// Replicas on leaving nodes for which no other node has room: their partitions have fewer afterwards.
    pub shortfall: u64,
    /// Every node that has or had replicas, by id.
    pub nodes: Vec<NodeChange>,
    /// Partitions that change: those that move replicas first, then those that only change their leader.
    pub partitions: Vec<PartitionChange>,
}

/// What a plan does to one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeChange {
    pub node: NodeId,
    pub replicas_before: u32,
    pub replicas_after: u32,
    pub leaders_before: u32,
    pub leaders_after: u32,
}

/// Replicas of one partition, the preferred leader first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PartitionChange {
    pub partition: PartitionId,
    pub before: Vec<NodeId>,
    pub after: Vec<NodeId>,
}

impl PartitionChange {
    /// Replicas that must be copied.
    pub fn moves(&self) -> usize {
        self.after.iter().filter(|node| !self.before.contains(node)).count()
    }

    /// Whether another node becomes the preferred leader.
    pub fn changes_leader(&self) -> bool {
        self.before.first() != self.after.first()
    }
}

impl MovePlan {
    /// Replicas that must be copied.
    pub fn moves(&self) -> usize {
        self.partitions.iter().map(PartitionChange::moves).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    /// The plan in steps of at most `moves_max` copies each. A partition's change is not split: one that needs more
    /// copies than that is a step of its own.
    pub fn batches(&self, moves_max: usize) -> impl Iterator<Item = &[PartitionChange]> {
        let mut rest = &self.partitions[..];
        std::iter::from_fn(move || {
            let mut moves = 0;
            let fitting = rest.iter().take_while(|change| {
                moves += change.moves();
                moves <= moves_max
            });
            let len = fitting.count().max(1).min(rest.len());
            let (batch, others) = rest.split_at(len);
            rest = others;
            (!batch.is_empty()).then_some(batch)
        })
    }
}

impl fmt::Display for MovePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.change {
            Change::Join(ids) => write!(f, "{} joins: ", List(ids))?,
            Change::Leave(ids) => write!(f, "{} leaves: ", List(ids))?,
            Change::Replace { dead, with } => write!(f, "node {with} replaces node {dead}: ")?,
        }
        let moves = self.moves();
        let permille = (moves as u64 * 1000).checked_div(self.replicas).unwrap_or(0);
        let leaders = self.partitions.iter().filter(|change| change.changes_leader()).count();
        writeln!(
            f,
            "{moves} of {} replicas move ({}.{} %), {leaders} partitions change their leader",
            self.replicas,
            permille / 10,
            permille % 10
        )?;
        if self.shortfall > 0 {
            writeln!(
                f,
                "NO ROOM for {} replicas: raise the bounds of nodes or add nodes, or their partitions stay short",
                self.shortfall
            )?;
        }
        writeln!(f, "{:>10}  {:>22}  {:>22}", "node", "replicas", "leaders")?;
        for node in &self.nodes {
            let replicas = Step(node.replicas_before, node.replicas_after).to_string();
            let leaders = Step(node.leaders_before, node.leaders_after).to_string();
            writeln!(f, "{:>10}  {replicas:>22}  {leaders:>22}", node.node.0)?;
        }
        for change in self.partitions.iter().take(SHOWN_MAX) {
            let show = |nodes: &[NodeId]| nodes.iter().map(|n| n.to_string()).collect::<Vec<_>>().join(",");
            writeln!(f, "  {}  [{}] -> [{}]", change.partition, show(&change.before), show(&change.after))?;
        }
        if let Some(more) = self.partitions.len().checked_sub(SHOWN_MAX + 1) {
            writeln!(f, "  and {} more partitions", more + 1)?;
        }
        Ok(())
    }
}

/// Nodes in words: "node 4", "nodes 4, 5".
struct List<'a>(&'a [NodeId]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.len() == 1 { "node " } else { "nodes " })?;
        for (n, id) in self.0.iter().enumerate() {
            write!(f, "{}{id}", if n == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// A number before and after, with the difference.
struct Step(u32, u32);

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(before, after) = *self;
        write!(f, "{before} -> {after} ({:+})", i64::from(after) - i64::from(before))
    }
}
