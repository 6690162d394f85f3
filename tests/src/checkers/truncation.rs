//! I6: no replica that is in sync truncates what is committed; and what a replica had on its disk it has in its next life.

use std::collections::{BTreeMap, BTreeSet};

use highwater_shards::ids::{NodeId, Offset, PartitionId};
use highwater_shards::mail::Assignment;

use super::{Verdict, broken};

pub const NAME: &str = "I6 truncation";

#[derive(Debug, Default)]
pub struct Truncations {
    replicas: BTreeMap<(PartitionId, NodeId), Replica>,
    /// What a node that was relieved of its replica had on its disk, it need not have again.
    left: BTreeSet<(PartitionId, NodeId)>,
    pub count: u64,
}

#[derive(Clone, Copy, Debug)]
struct Replica {
    life: u32,
    log_end: Offset,
    flushed_end: Offset,
}

/// A replica, as it was looked at.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub node: NodeId,
    pub life: u32,
    pub log_end: Offset,
    pub flushed_end: Offset,
}

impl Truncations {
    /// A node holds no replica of the partition any more.
    pub fn on_left(&mut self, partition: PartitionId, node: NodeId) {
        self.left.insert((partition, node));
        self.replicas.remove(&(partition, node));
    }

    /// `committed` is the largest high watermark of any leader so far.
    pub fn on_seen(&mut self, truth: &Assignment, committed: Offset, seen: &Seen) -> Verdict {
        let Seen { node, life, log_end, flushed_end } = *seen;
        let partition = truth.partition;
        if !truth.replicas.contains(&node) {
            return Ok(());
        }
        let last = self.replicas.insert((partition, node), Replica { life, log_end, flushed_end });
        let Some(last) = last else { return Ok(()) };
        if last.life != life {
            if log_end < last.flushed_end && !self.left.contains(&(partition, node)) {
                let what = format!(
                    "{partition}: node {node} had {} on its disk and came back with {log_end}",
                    last.flushed_end
                );
                return Err(broken(NAME, what));
            }
            return Ok(());
        }
        if log_end < last.log_end {
            self.count += 1;
            if truth.isr.contains(&node) && log_end < committed {
                let what = format!(
                    "{partition}: node {node} is in sync and truncates from {} to {log_end}, though {committed} is committed",
                    last.log_end
                );
                return Err(broken(NAME, what));
            }
        }
        Ok(())
    }
}
