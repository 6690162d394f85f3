//! The image as it is stored, so that a start does not replay the metadata log from its beginning.
//!
//! Control core, pure. The types here are a file format: a new field is a new schema number, with an upgrade from
//! the old one. Where partitions lie on this node's shards is not part of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use highwater_shards::ids::{LeaderEpoch, NodeId, PartitionEpoch, ProducerId, Revision, TopicId};
use serde::{Deserialize, Serialize};

use super::envelope::{self, EnvelopeError, Schema};
use super::image::{Endpoint, Image, Incarnation, NodeInfo, PartitionState, Topic};

const SNAPSHOT: Schema = Schema { name: "metadata snapshot", kind: 2, schema: 1 };

#[derive(Serialize, Deserialize)]
struct Snapshot {
    revision: Revision,
    cluster_id: String,
    controller: Option<NodeId>,
    nodes: Vec<Node>,
    cluster_config: BTreeMap<String, String>,
    producer_id_next: ProducerId,
    topics: Vec<StoredTopic>,
}

#[derive(Serialize, Deserialize)]
struct Node {
    id: NodeId,
    incarnation: Incarnation,
    rack: Option<String>,
    client: Endpoint,
    shard_clients: Vec<Endpoint>,
    fenced: bool,
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
}

/// The image in an envelope.
pub fn encode(image: &Image) -> Vec<u8> {
    let nodes = image.nodes.values().map(|node| Node {
        id: node.id,
        incarnation: node.incarnation,
        rack: node.rack.clone(),
        client: node.client.clone(),
        shard_clients: node.shard_clients.clone(),
        fenced: node.fenced,
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
            })
            .collect(),
    });
    let snapshot = Snapshot {
        revision: image.revision,
        cluster_id: image.cluster_id.to_string(),
        controller: image.controller,
        nodes: nodes.collect(),
        cluster_config: BTreeMap::clone(&image.cluster_config),
        producer_id_next: image.producer_id_next,
        topics: topics.collect(),
    };
    envelope::seal(SNAPSHOT, &snapshot)
}

/// The image from what [`encode`] made, without placements on shards.
pub fn decode(bytes: &[u8]) -> Result<Image, EnvelopeError> {
    let snapshot: Snapshot = envelope::open(SNAPSHOT, bytes)?;
    let mut image = Image::default();
    image.revision = snapshot.revision;
    image.cluster_id = snapshot.cluster_id.into();
    image.controller = snapshot.controller;
    image.cluster_config = Arc::new(snapshot.cluster_config);
    image.producer_id_next = snapshot.producer_id_next;
    for node in snapshot.nodes {
        let info = NodeInfo {
            id: node.id,
            incarnation: node.incarnation,
            rack: node.rack,
            client: node.client,
            shard_clients: node.shard_clients,
            fenced: node.fenced,
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
        });
        image.put_topic(Topic {
            id: topic.id,
            name: topic.name.into(),
            partitions: partitions.collect(),
            config: Arc::new(topic.config),
        });
    }
    Ok(image)
}
