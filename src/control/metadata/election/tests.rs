use super::*;

fn ids(nodes: &[u32]) -> Vec<NodeId> {
    nodes.iter().map(|&node| NodeId(node)).collect()
}

#[test]
fn what_is_as_it_should_be_stays_as_it_is() {
    let mut nodes = OrdMap::new();
    for id in [1, 2].map(NodeId) {
        nodes.insert(id, Arc::new(NodeInfo { id, ..NodeInfo::default() }));
    }
    let rules = Rules { isr_min: 2, unclean: true, nodes: &nodes };
    let state = PartitionState {
        leader: Some(NodeId(2)),
        replicas: ids(&[1, 2]),
        isr: ids(&[2]),
        elr: ids(&[1]),
        ..PartitionState::default()
    };
    assert_eq!(settle(&state, Target::of(&state), &rules), None);
    let preferred = Target { elect: Elect::Preferred, ..Target::of(&state) };
    assert_eq!(settle(&state, preferred, &rules), None, "1 is not in sync");
    let unclean = Target { elect: Elect::Unclean, ..Target::of(&state) };
    assert_eq!(settle(&state, unclean, &rules), None, "somebody leads");
    let both = settle(&state, Target { isr: ids(&[1, 2]), ..Target::of(&state) }, &rules).unwrap();
    assert_eq!((both.leader, both.elr), (Some(NodeId(2)), ids(&[])));
}

#[test]
fn whoever_was_alone_in_sync_is_remembered_although_nobody_led() {
    let mut nodes = OrdMap::new();
    let follower = crate::control::metadata::image::Capabilities { leader: false, ..Default::default() };
    nodes.insert(
        NodeId(1),
        Arc::new(NodeInfo { id: NodeId(1), capabilities: follower, ..NodeInfo::default() }),
    );
    let rules = Rules { isr_min: 1, unclean: false, nodes: &nodes };
    let state = PartitionState { replicas: ids(&[1, 2]), isr: ids(&[1]), ..PartitionState::default() };
    let lost = Target { lost: Some(NodeId(1)), ..Target::of(&state).without(NodeId(1)) };
    let state = settle(&state, lost, &rules).unwrap();
    assert_eq!((state.isr, state.elr, state.last_leader), (ids(&[]), ids(&[]), Some(NodeId(1))));
}
