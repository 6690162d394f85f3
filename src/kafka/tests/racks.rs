//! Fetches of clients that name their rack (KIP-392): who is sent where, and what a follower answers.

use super::fetch::request;
use super::*;
use crate::kafka::messages::fetch::{FetchRequest, PartitionData};

/// Partition 0 is led by this node, in rack "a", and followed by nodes 2 and 3 in "b" and 4 in "c"; partition 4 is led by
/// node 2 and followed here.
fn client() -> Client {
    let mut image = image();
    for (id, rack) in [(1, Some("a")), (2, Some("b")), (3, Some("b")), (4, Some("c")), (5, None)] {
        let info = NodeInfo { id: NodeId(id), rack: rack.map(str::to_owned), ..NodeInfo::default() };
        image.nodes.insert(NodeId(id), Arc::new(info));
    }
    let replicas = |of: &[u32]| of.iter().map(|&id| NodeId(id)).collect::<Vec<_>>();
    let state = |of: &[u32]| PartitionState {
        leader: Some(NodeId(of[0])),
        leader_epoch: LeaderEpoch(3),
        replicas: replicas(of),
        isr: replicas(of),
        ..PartitionState::default()
    };
    image.put_partitions(TOPIC, vec![(0, state(&[1, 3, 2, 4, 5])), (4, state(&[2, 1]))]);
    image.put_local_shard(partition(4), ShardId(0));
    let mut client = Client::new();
    client.view = Arc::new(image);
    client
}

fn fetch(rack: &str, index: i32) -> FetchRequest {
    FetchRequest { rack_id: rack.into(), ..request(12, &[(index, 7)]) }
}

/// Changes what the client's node knows.
fn commit(client: &mut Client, change: impl FnOnce(&mut Image)) {
    change(Arc::make_mut(&mut client.view));
}

fn ask(client: &mut Client, body: &FetchRequest) -> (bool, Vec<u32>) {
    client.request(12, 1, body);
    let ops = client.take_ops();
    let Op::Read { from_follower, nearer, .. } = &ops[0].op else { panic!("{ops:?}") };
    client.answer(ops[0].token, read_out(9, &[b"x"], false));
    client.sent.clear();
    (*from_follower, nearer.iter().map(|node| node.0).collect())
}

fn answered(client: &mut Client, version: i16) -> PartitionData {
    client.response::<FetchRequest>(version).1.responses[0].partitions[0].clone()
}

#[test]
fn the_leader_is_asked_for_an_in_sync_follower_in_the_clients_rack() {
    let mut client = client();
    assert_eq!(ask(&mut client, &fetch("b", 0)), (false, vec![3, 2]));
    assert_eq!(ask(&mut client, &fetch("c", 0)), (false, vec![4]));
    for elsewhere in ["a", "nowhere", ""] {
        assert_eq!(ask(&mut client, &fetch(elsewhere, 0)), (false, vec![]), "{elsewhere:?}");
    }
    // Node 3 is fenced, node 2 about to end: neither is one to go to.
    commit(&mut client, |image| Arc::make_mut(image.nodes.get_mut(&NodeId(3)).unwrap()).fenced = true);
    assert_eq!(ask(&mut client, &fetch("b", 0)), (false, vec![2]));
    commit(&mut client, |image| Arc::make_mut(image.nodes.get_mut(&NodeId(2)).unwrap()).stopping = true);
    assert_eq!(ask(&mut client, &fetch("b", 0)), (false, vec![]));
    // Nor is one that lags.
    let mut state = client.view.partition(partition(0)).unwrap().clone();
    state.isr = vec![NodeId(1)];
    commit(&mut client, |image| image.put_partitions(TOPIC, vec![(0, state)]));
    assert_eq!(ask(&mut client, &fetch("c", 0)), (false, vec![]));
}

#[test]
fn a_client_is_told_at_once_where_to_read_instead() {
    for version in 11..=versions(ApiKey::Fetch).end() - 1 {
        let mut client = client();
        let mut body = request(version, &[(0, 7), (1, 0)]);
        body.rack_id = "b".into();
        client.request(version, 1, &body);
        let ops = client.take_ops();
        client.answer(ops[1].token, read_out(0, &[], true));
        let out = ReadOut { high_watermark: Offset(9), nearer: Some(NodeId(3)), ..ReadOut::default() };
        client.answer(ops[0].token, Answer::Read(Ok(out)));
        let unwatch = client.op();
        assert!(matches!(unwatch.op, Op::Unwatch) && unwatch.partition == partition(1));
        let data = answered(&mut client, version);
        assert_eq!((data.error_code, data.preferred_read_replica, data.high_watermark), (0, 3, 9));
        assert_eq!(data.records.as_deref(), Some(&b""[..]));
        assert!(client.timers.is_empty(), "nothing is waited for");
    }
}

#[test]
fn a_follower_that_is_in_sync_answers_those_who_name_a_rack() {
    let mut client = client();
    for rack in ["a", "b"] {
        assert_eq!(ask(&mut client, &fetch(rack, 4)), (true, vec![]));
    }
    client.request(12, 1, &fetch("", 4));
    assert_eq!(answered(&mut client, 12).error_code, 6);
    client.request(10, 1, &request(10, &[(4, 7)]));
    assert_eq!(answered(&mut client, 10).error_code, 6, "older versions know of no racks");
    let mut state = client.view.partition(partition(4)).unwrap().clone();
    state.isr = vec![NodeId(2)];
    commit(&mut client, |image| image.put_partitions(TOPIC, vec![(4, state)]));
    client.request(12, 1, &fetch("a", 4));
    assert_eq!(answered(&mut client, 12).error_code, 6);
    assert!(client.ops.is_empty());
}

#[test]
fn a_follower_that_has_not_come_so_far_sends_nobody_to_look_for_a_place() {
    let mut client = client();
    client.request(12, 1, &fetch("a", 4));
    let op = client.op();
    let error = highwater_shards::mail::PartitionError::OffsetNotAvailable;
    let refused = highwater_shards::mail::ReadError { error, ends: None };
    client.answer(op.token, Answer::Read(Err(refused)));
    assert_eq!(answered(&mut client, 12).error_code, 78);
}
