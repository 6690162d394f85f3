//! A hash ring of virtual nodes (Karger et al., "Consistent Hashing and Random Trees", 1997).
//!
//! Control core, pure. Points depend on node ids alone, so a node that comes back stands where it stood.

use highwater_shards::ids::NodeId;

/// A bijection of 64 bits that spreads its input over all of them: the finalizer of splitmix64.
pub(super) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

pub(super) struct Ring {
    /// Sorted; each with the index of its node.
    points: Vec<(u64, u32)>,
    nodes: usize,
}

impl Ring {
    pub(super) fn new(ids: &[NodeId], virtual_nodes: u32) -> Self {
        let mut points = Vec::with_capacity(ids.len() * virtual_nodes as usize);
        for (node, id) in (0..).zip(ids) {
            points.extend(node_points(*id, virtual_nodes).map(|point| (point, node)));
        }
        points.sort_unstable();
        Self { points, nodes: ids.len() }
    }

    /// The order in which a walk from `point` on meets the nodes.
    pub(super) fn positions(&self, point: u64, positions: &mut [u32]) {
        positions.fill(u32::MAX);
        let start = self.points.partition_point(|(at, _)| *at < point);
        let mut met = 0;
        for (_, node) in self.points[start..].iter().chain(&self.points[..start]) {
            let position = &mut positions[*node as usize];
            if *position == u32::MAX {
                *position = met;
                met += 1;
                if met as usize == self.nodes {
                    break;
                }
            }
        }
    }
}

/// The points of one node.
fn node_points(id: NodeId, virtual_nodes: u32) -> impl Iterator<Item = u64> {
    let of_node = mix(u64::from(id.0) ^ 0x4e0d_e000_0000_0000);
    (0..u64::from(virtual_nodes)).map(move |n| mix(of_node ^ mix(n)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_meets_every_node_once_and_a_new_node_only_steps_in_between() {
        let ids: Vec<NodeId> = (0..9).map(NodeId).collect();
        let (before, after) = (Ring::new(&ids[..8], 50), Ring::new(&ids, 50));
        let (mut old, mut new) = (vec![0; 8], vec![0; 9]);
        for point in (0..500).map(mix) {
            before.positions(point, &mut old);
            after.positions(point, &mut new);
            let mut sorted = new.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..9).collect::<Vec<u32>>());
            let newcomer = new[8];
            for node in 0..8 {
                assert_eq!(new[node], old[node] + u32::from(old[node] >= newcomer));
            }
        }
    }
}
