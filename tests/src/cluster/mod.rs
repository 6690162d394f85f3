//! The world of a whole cluster: several nodes of real shards that replicate to each other over a simulated network, each
//! shard with its simulated disk, under a control plane, with clients that follow the leaders.
//!
//! - [`world`] drives it all; [`net`] says who hears whom, [`links`] are the connections between shards of nodes
//! - [`controls`] are the control planes; [`plane`] is what passes between them and the world
//! - [`client`] with [`producer`], [`consumer`] and [`auditor`] is the workload
//! - [`judge`] holds what clients heard and what replicas are against the invariants

pub mod auditor;
pub mod client;
pub mod config;
pub mod consumer;
pub mod controls;
pub mod judge;
pub mod links;
pub mod net;
pub mod plane;
pub mod producer;
pub mod world;

use std::time::Duration;

use highwater_shards::ids::NodeId;

use crate::checkers::Violation;
use crate::counts::counts;

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub hash: u64,
    pub counts: Counts,
    pub time: Duration,
    pub violation: Option<Violation>,
}

counts! {
    seeds,
    seeds_with_three_faults_at_once,
    events,
    lives,
    kills,
    power_losses,
    stops,
    pauses,
    cuts,
    broken_links,
    slow_links,
    slow_networks,
    bad_disks,
    disturbances,
    moves,
    links,
    dials_failed,
    leaderships,
    shrinks,
    expansions,
    truncations,
    batches,
    acked_batches,
    refused_appends,
    records_read,
    follower_reads,
    records_audited,
}

/// Nodes are counted from 1, their places from 0.
pub fn node_id(place: usize) -> NodeId {
    NodeId(u32::try_from(place).expect("few nodes") + 1)
}

pub fn index_of(node: NodeId) -> usize {
    node.0 as usize - 1
}

/// Runs one seed. With `print`, every event is told.
pub fn run(seed: u64, print: bool) -> Outcome {
    world::World::new(config::Config::of_seed(seed), print).run()
}
