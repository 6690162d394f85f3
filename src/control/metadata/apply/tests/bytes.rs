//! The bytes of entries, which lie in data directories and have to stay readable.

use super::*;

#[test]
fn stored_entries_keep_their_bytes() {
    let here = |port| Endpoint { host: "h".into(), port };
    let (node, epoch) = (NodeId(2), RegistrationEpoch(9));
    let new_isr = NewIsr {
        index: PartitionIndex(1),
        leader_epoch: LeaderEpoch(3),
        partition_epoch: PartitionEpoch(4),
        isr: vec![(ME, RegistrationEpoch(5)), (node, epoch)],
    };
    let commands = [
        Command::CreateTopics(vec![new_topic(7, "a", 1)]),
        Command::DeleteTopics(vec![TopicId(7)]),
        Command::CreatePartitions(vec![CreatePartitions {
            topic: TopicId(7),
            first: PartitionIndex(1),
            replicas: vec![vec![ME]],
        }]),
        Command::SetTopicConfig(vec![SetTopicConfig {
            topic: TopicId(7),
            changes: vec![set("retention.ms", "5")],
        }]),
        Command::SetClusterConfig(vec![set("x", "5")]),
        Command::ReserveProducerIds { node: ME, count: 1000 },
        Command::RegisterNode(RegisterNode {
            node,
            incarnation: Incarnation(3),
            disk: DiskId(200),
            capabilities: Capabilities { voter: false, ..Capabilities::default() },
            rack: None,
            client: here(1),
            shard_clients: Vec::new(),
            cluster: here(2),
            shard_peers: vec![5],
            feature_level: FeatureLevel(1),
            clean_stop: Some(epoch),
        }),
        Command::FenceNode { node, epoch },
        Command::UnfenceNode { node, epoch },
        Command::StopNode { node, epoch },
        Command::RemoveNode { node, force: true },
        Command::TakeControl { node, term: 4 },
        Command::SetFeatureLevel(FeatureLevel(1)),
        Command::SetNodeConfig {
            node,
            changes: vec![SettingChange { name: "x".into(), op: SettingOp::Unset }],
        },
        Command::AlterIsr(AlterIsr {
            node: ME,
            epoch,
            topics: vec![IsrOfTopic { topic: TopicId(7), partitions: vec![new_isr] }],
        }),
        Command::ElectLeaders(ElectLeaders {
            kind: ElectionKind::Unclean,
            topics: vec![(TopicId(7), vec![PartitionIndex(1)])],
        }),
        Command::Reassign(vec![ReassignTopic {
            topic: TopicId(7),
            partitions: vec![NewReplicas { index: PartitionIndex(1), replicas: Some(ids(&[1, 2])) }],
        }]),
        Command::Stage(Stage { by: node, topic: TopicId(7), at: 0, replicas: vec![vec![ME]] }),
        Command::CreateStaged { by: node, staged: 1, topic: new_topic(7, "a", 1) },
        Command::GrowStaged {
            by: node,
            staged: 1,
            more: CreatePartitions { topic: TopicId(7), first: PartitionIndex(1), replicas: Vec::new() },
        },
    ];
    let bodies: [&[u8]; 20] = [
        &[1, 0, 1, 7, 1, b'a', 1, 1, 1, 0, 0],
        &[1, 1, 1, 7],
        &[1, 2, 1, 7, 1, 1, 1, 1],
        &[
            1, 3, 1, 7, 1, 12, b'r', b'e', b't', b'e', b'n', b't', b'i', b'o', b'n', b'.', b'm', b's', 0, 1,
            b'5',
        ],
        &[1, 4, 1, 1, b'x', 0, 1, b'5'],
        &[1, 5, 1, 0xe8, 7],
        &[1, 6, 2, 3, 0xc8, 1, 0, 1, 1, 0, 1, b'h', 1, 0, 1, b'h', 2, 1, 5, 1, 1, 9],
        &[1, 7, 2, 9],
        &[1, 8, 2, 9],
        &[1, 9, 2, 9],
        &[1, 10, 2, 1],
        &[1, 11, 2, 4],
        &[1, 12, 1],
        &[1, 13, 2, 1, 1, b'x', 1],
        &[1, 14, 1, 9, 1, 7, 1, 1, 3, 4, 2, 1, 5, 2, 9],
        &[1, 15, 1, 1, 7, 1, 1],
        &[1, 16, 1, 7, 1, 1, 1, 2, 1, 2],
        &[1, 17, 2, 7, 0, 1, 1, 1],
        &[1, 18, 2, 1, 7, 1, b'a', 1, 1, 1, 0, 0],
        &[1, 19, 2, 1, 7, 1, 0],
    ];
    for (command, body) in commands.into_iter().zip(bodies) {
        let entry = Entry { commands: vec![command] };
        assert_eq!(&entry.encode()[16..], body, "{entry:?}");
    }
}
