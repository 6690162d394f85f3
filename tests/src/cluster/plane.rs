//! What passes between the control planes of a cluster, their shards and their world.

use std::collections::BTreeMap;
use std::sync::Arc;

use highwater_shards::ids::{PartitionId, ProducerId, ShardId};
use highwater_shards::mail::{Assignment, FromControl, ToControl};
use highwater_shards::time::Instant;

use super::config::Config;
use super::controls::Event;
use super::net::Net;
use crate::rng::Rng;
use crate::wire::Metadata;

/// What a shard hears.
pub type Told = FromControl<Arc<Metadata>, ProducerId>;
/// What a shard says.
pub type Said = ToControl<()>;

/// What is committed, whoever knows of it.
pub type Truth = BTreeMap<PartitionId, Assignment>;

/// The world as the control planes see it, and what they want done.
#[derive(Debug)]
pub struct Cx<'a> {
    pub now: Instant,
    pub config: &'a Config,
    pub net: &'a Net,
    pub rng: &'a mut Rng,
    /// For a shard of a node.
    pub out: &'a mut Vec<(usize, ShardId, Told)>,
    pub later: &'a mut Vec<(Instant, Event)>,
}
