use std::sync::Arc;

use super::*;
use crate::control::metadata::image::{Capabilities, NodeInfo};

#[test]
fn replicas_go_round_the_nodes_that_take_them() {
    let mut image = Image::default();
    for id in [1, 2, 3, 4, 5].map(NodeId) {
        let capabilities = Capabilities { replica: id != NodeId(5), ..Capabilities::default() };
        let info = NodeInfo { id, fenced: id == NodeId(4), capabilities, ..NodeInfo::default() };
        image.nodes.insert(id, Arc::new(info));
    }
    let sets = create::place(&image, 1, 3, 2).unwrap();
    assert_eq!(sets, [[2, 3], [3, 1], [1, 2]].map(|set| set.map(NodeId).to_vec()));
    assert_eq!(create::place(&image, 0, 1, 4), None);
    assert_eq!(create::place(&image, 0, 1, 0), None);
}
