//! The image as it is stored, so that a start does not replay the metadata log from its beginning.
//!
//! Control core, pure. The types here are a file format: a new field is a new schema number. Where partitions lie on this node's shards is not part of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use highwater_shards::ids::{LeaderEpoch, NodeId, PartitionEpoch, ProducerId, Revision, TopicId};
use serde::{Deserialize, Serialize};

use super::envelope::{self, EnvelopeError, Schema};
use super::image::{
    Capabilities, DiskId, Endpoint, FeatureLevel, Image, Incarnation, NodeInfo, PartitionState,
    RegistrationEpoch, Staged, Topic,
};

const SNAPSHOT: Schema = Schema { name: "metadata snapshot", kind: 2, schema: 3 };

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
    stopping: bool,
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
    last_leader: Option<NodeId>,
    recovering: bool,
    adding: Vec<NodeId>,
    removing: Vec<NodeId>,
}

#[derive(Serialize, Deserialize)]
struct StoredStage {
    by: NodeId,
    topic: TopicId,
    replicas: Vec<Vec<NodeId>>,
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
        stopping: node.stopping,
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
                last_leader: p.last_leader,
                recovering: p.recovering,
                adding: p.adding.clone(),
                removing: p.removing.clone(),
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
    let snapshot: Snapshot = envelope::open(SNAPSHOT, bytes)?;
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
            stopping: node.stopping,
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
            last_leader: p.last_leader,
            recovering: p.recovering,
            adding: p.adding,
            removing: p.removing,
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
