//! The image as it is stored, so that a start does not replay the metadata log from its beginning.
//!
//! Control core, pure. The types here are a file format: a new field is a new schema number, with an upgrade from
//! the old one. Where partitions lie on this node's shards is not part of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use highwater_shards::ids::{LeaderEpoch, NodeId, PartitionEpoch, ProducerId, Revision, TopicId};
use serde::{Deserialize, Serialize};

use super::envelope::{self, EnvelopeError, Schema};
use super::image::{
    Capabilities, DiskId, Endpoint, FeatureLevel, Image, Incarnation, NodeInfo, PartitionState,
    RegistrationEpoch, Staged, Topic,
};

const SNAPSHOT: Schema = Schema { name: "metadata snapshot", kind: 2, schema: 2 };

#[derive(Serialize, Deserialize)]
struct Snapshot {
    revision: Revision,
    cluster_id: String,
    controller: Option<NodeId>,
    controller_term: u64,
    feature_level: FeatureLevel,
    nodes: Vec<Node>,
    cluster_config: BTreeMap<String, String>,
    producer_id_next: ProducerId,
    topics: Vec<StoredTopic>,
    staged: Vec<StoredStage>,
}

#[derive(Serialize, Deserialize)]
struct Node {
    id: NodeId,
    incarnation: Incarnation,
    epoch: RegistrationEpoch,
    disk: DiskId,
    capabilities: Capabilities,
    rack: Option<String>,
    client: Endpoint,
    shard_clients: Vec<Endpoint>,
    cluster: Endpoint,
    shard_peers: Vec<u16>,
    feature_level: FeatureLevel,
    fenced: bool,
    config: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct StoredTopic {
    id: TopicId,
    name: String,
    config: BTreeMap<String, String>,
    partitions: Vec<StoredPartition>,
}

#[derive(Serialize, Deserialize)]
struct StoredPartition {
    leader: Option<NodeId>,
    leader_epoch: LeaderEpoch,
    partition_epoch: PartitionEpoch,
    replicas: Vec<NodeId>,
    isr: Vec<NodeId>,
    elr: Vec<NodeId>,
}

#[derive(Serialize, Deserialize)]
struct StoredStage {
    by: NodeId,
    topic: TopicId,
    replicas: Vec<Vec<NodeId>>,
}

/// What the first release stored.
mod first {
    use super::*;

    pub const SCHEMA: u16 = 1;

    #[derive(Serialize, Deserialize)]
    pub struct Snapshot {
        pub revision: Revision,
        pub cluster_id: String,
        pub controller: Option<NodeId>,
        pub nodes: Vec<Node>,
        pub cluster_config: BTreeMap<String, String>,
        pub producer_id_next: ProducerId,
        pub topics: Vec<Topic>,
    }

    #[derive(Serialize, Deserialize)]
    pub struct Node {
        pub id: NodeId,
        pub incarnation: Incarnation,
        pub rack: Option<String>,
        pub client: Endpoint,
        pub shard_clients: Vec<Endpoint>,
        pub fenced: bool,
    }

    #[derive(Serialize, Deserialize)]
    pub struct Topic {
        pub id: TopicId,
        pub name: String,
        pub config: BTreeMap<String, String>,
        pub partitions: Vec<Partition>,
    }

    #[derive(Serialize, Deserialize)]
    pub struct Partition {
        pub leader: Option<NodeId>,
        pub leader_epoch: LeaderEpoch,
        pub partition_epoch: PartitionEpoch,
        pub replicas: Vec<NodeId>,
        pub isr: Vec<NodeId>,
    }
}

impl From<first::Snapshot> for Snapshot {
    fn from(old: first::Snapshot) -> Self {
        let node = |node: first::Node| Node {
            id: node.id,
            incarnation: node.incarnation,
            epoch: RegistrationEpoch(0),
            disk: DiskId(0),
            capabilities: Capabilities::default(),
            rack: node.rack,
            client: node.client,
            shard_clients: node.shard_clients,
            cluster: Endpoint::default(),
            shard_peers: Vec::new(),
            feature_level: FeatureLevel::FIRST,
            fenced: node.fenced,
            config: BTreeMap::new(),
        };
        let partition = |partition: first::Partition| StoredPartition {
            leader: partition.leader,
            leader_epoch: partition.leader_epoch,
            partition_epoch: partition.partition_epoch,
            replicas: partition.replicas,
            isr: partition.isr,
            elr: Vec::new(),
        };
        let topic = |topic: first::Topic| StoredTopic {
            id: topic.id,
            name: topic.name,
            config: topic.config,
            partitions: topic.partitions.into_iter().map(partition).collect(),
        };
        Self {
            revision: old.revision,
            cluster_id: old.cluster_id,
            controller: old.controller,
            controller_term: 0,
            feature_level: FeatureLevel::FIRST,
            nodes: old.nodes.into_iter().map(node).collect(),
            cluster_config: old.cluster_config,
            producer_id_next: old.producer_id_next,
            topics: old.topics.into_iter().map(topic).collect(),
            staged: Vec::new(),
        }
    }
}

/// The image in an envelope.
pub fn encode(image: &Image) -> Vec<u8> {
    let nodes = image.nodes.values().map(|node| Node {
        id: node.id,
        incarnation: node.incarnation,
        epoch: node.epoch,
        disk: node.disk,
        capabilities: node.capabilities,
        rack: node.rack.clone(),
        client: node.client.clone(),
        shard_clients: node.shard_clients.clone(),
        cluster: node.cluster.clone(),
        shard_peers: node.shard_peers.clone(),
        feature_level: node.feature_level,
        fenced: node.fenced,
        config: BTreeMap::clone(&node.config),
    });
    let topics = image.topics().map(|topic| StoredTopic {
        id: topic.id,
        name: topic.name.to_string(),
        config: BTreeMap::clone(&topic.config),
        partitions: topic
            .partitions
            .iter()
            .map(|p| StoredPartition {
                leader: p.leader,
                leader_epoch: p.leader_epoch,
                partition_epoch: p.partition_epoch,
                replicas: p.replicas.clone(),
                isr: p.isr.clone(),
                elr: p.elr.clone(),
            })
            .collect(),
    });
    let staged = image.all_staged().map(|(by, staged)| StoredStage {
        by,
        topic: staged.topic,
        replicas: staged.replicas.iter().cloned().collect(),
    });
    let snapshot = Snapshot {
        revision: image.revision,
        cluster_id: image.cluster_id.to_string(),
        controller: image.controller,
        controller_term: image.controller_term,
        feature_level: image.feature_level,
        nodes: nodes.collect(),
        cluster_config: BTreeMap::clone(&image.cluster_config),
        producer_id_next: image.producer_id_next,
        topics: topics.collect(),
        staged: staged.collect(),
    };
    envelope::seal(SNAPSHOT, &snapshot)
}

/// The image from what [`encode`] made, without placements on shards.
pub fn decode(bytes: &[u8]) -> Result<Image, EnvelopeError> {
    let snapshot: Snapshot =
        envelope::open_or_upgrade(SNAPSHOT, first::SCHEMA, |old: first::Snapshot| old.into(), bytes)?;
    let mut image = Image::default();
    image.revision = snapshot.revision;
    image.cluster_id = snapshot.cluster_id.into();
    image.controller = snapshot.controller;
    image.controller_term = snapshot.controller_term;
    image.feature_level = snapshot.feature_level;
    image.cluster_config = Arc::new(snapshot.cluster_config);
    image.producer_id_next = snapshot.producer_id_next;
    for node in snapshot.nodes {
        let info = NodeInfo {
            id: node.id,
            incarnation: node.incarnation,
            epoch: node.epoch,
            disk: node.disk,
            capabilities: node.capabilities,
            rack: node.rack,
            client: node.client,
            shard_clients: node.shard_clients,
            cluster: node.cluster,
            shard_peers: node.shard_peers,
            feature_level: node.feature_level,
            fenced: node.fenced,
            config: Arc::new(node.config),
        };
        image.nodes.insert(info.id, Arc::new(info));
    }
    for topic in snapshot.topics {
        let partitions = topic.partitions.into_iter().map(|p| PartitionState {
            leader: p.leader,
            leader_epoch: p.leader_epoch,
            partition_epoch: p.partition_epoch,
            replicas: p.replicas,
            isr: p.isr,
            elr: p.elr,
        });
        image.put_topic(Topic {
            id: topic.id,
            name: topic.name.into(),
            partitions: partitions.collect(),
            config: Arc::new(topic.config),
        });
    }
    for stage in snapshot.staged {
        let staged = Staged { topic: stage.topic, replicas: stage.replicas.into_iter().collect() };
        image.put_staged(stage.by, staged);
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_of_the_first_release_becomes_an_image_of_today() {
        let here = Endpoint { host: "h".into(), port: 9092 };
        let old = first::Snapshot {
            revision: Revision(7),
            cluster_id: "c".into(),
            controller: Some(NodeId(1)),
            nodes: vec![first::Node {
                id: NodeId(1),
                incarnation: Incarnation(3),
                rack: Some("r".into()),
                client: here.clone(),
                shard_clients: vec![here],
                fenced: false,
            }],
            cluster_config: BTreeMap::new(),
            producer_id_next: ProducerId(2000),
            topics: vec![first::Topic {
                id: TopicId(9),
                name: "a".into(),
                config: BTreeMap::new(),
                partitions: vec![first::Partition {
                    leader: Some(NodeId(1)),
                    leader_epoch: LeaderEpoch(2),
                    partition_epoch: PartitionEpoch(2),
                    replicas: vec![NodeId(1)],
                    isr: vec![NodeId(1)],
                }],
            }],
        };
        let bytes = envelope::seal(Schema { schema: first::SCHEMA, ..SNAPSHOT }, &old);
        // The body as the first release wrote it: bytes in data directories must stay readable.
        let body = [
            7, 1, b'c', 1, 1, 1, 1, 3, 1, 1, b'r', 1, b'h', 0x84, 0x47, 1, 1, b'h', 0x84, 0x47, 0, 0, 0xd0,
            0xf, 1, 9, 1, b'a', 0, 1, 1, 1, 2, 2, 1, 1, 1, 1,
        ];
        assert_eq!(bytes[16..], body);
        let image = decode(&bytes).expect("an old snapshot can be read");
        assert_eq!((image.revision, image.feature_level), (Revision(7), FeatureLevel::FIRST));
        let node = &image.nodes[&NodeId(1)];
        assert_eq!((node.incarnation, node.fenced, node.disk), (Incarnation(3), false, DiskId(0)));
        let state = image.topic("a").unwrap().partitions[0].clone();
        assert_eq!((state.leader_epoch, state.elr), (LeaderEpoch(2), Vec::new()));
        assert_eq!(decode(&encode(&image)), Ok(image));
    }
}
