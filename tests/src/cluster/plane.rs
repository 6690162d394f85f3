//! The control plane of a cluster as its world needs it: it hears what shards say, and says what they hear. There are
//! a scripted one ([`super::keeper`]) and the real one ([`super::controls`]).

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use highwater_shards::ids::{PartitionId, ProducerId, RegistrationEpoch, ShardId};
use highwater_shards::mail::{Assignment, FromControl, ToControl};
use highwater_shards::time::Instant;

use super::config::Config;
use super::net::Net;
use crate::checkers::Verdict;
use crate::rng::Rng;
use crate::wire::Metadata;

/// What a shard hears.
pub type Told = FromControl<Arc<Metadata>, ProducerId>;
/// What a shard says.
pub type Said = ToControl<()>;

/// What is committed, whoever knows of it.
pub type Truth = BTreeMap<PartitionId, Assignment>;

/// The world as a control plane sees it, and what it wants done.
#[derive(Debug)]
pub struct Cx<'a, E> {
    pub now: Instant,
    pub config: &'a Config,
    pub net: &'a Net,
    pub rng: &'a mut Rng,
    /// For a shard of a node.
    pub out: &'a mut Vec<(usize, ShardId, Told)>,
    pub later: &'a mut Vec<(Instant, E)>,
}

pub trait Plane: Sized {
    type Event: Debug;

    fn new(config: &Config) -> Self;

    /// Makes the topics, and whatever goes on by itself.
    fn begin(&mut self, cx: &mut Cx<'_, Self::Event>);

    /// A node begins a new life; its shards will say that they have recovered.
    fn start(&mut self, node: usize, cx: &mut Cx<'_, Self::Event>) -> Verdict;

    /// A node's life is over.
    fn down(&mut self, node: usize);

    fn on_said(&mut self, node: usize, shard: ShardId, said: Said, cx: &mut Cx<'_, Self::Event>) -> Verdict;

    fn on_event(&mut self, event: Self::Event, cx: &mut Cx<'_, Self::Event>) -> Verdict;

    /// An operator stops the node: its leaders go elsewhere, then its shards stop.
    fn stop(&mut self, node: usize, cx: &mut Cx<'_, Self::Event>) -> Verdict;

    /// A node that was being stopped has stopped.
    fn has_stopped(&self, node: usize) -> bool;

    /// Another controller, or another leader without need.
    fn disturb(&mut self, cx: &mut Cx<'_, Self::Event>) -> Verdict;

    /// The faults are over.
    fn heal(&mut self, cx: &mut Cx<'_, Self::Event>) -> Verdict;

    fn truth(&self) -> &Truth;

    /// As the node knows it in this life.
    fn registration(&self, node: usize) -> Option<RegistrationEpoch>;

    /// Whether clients may come to the node.
    fn is_serving(&self, node: usize) -> bool;

    /// What has not come to rest, for a message.
    fn unrest(&self) -> Option<String>;
}
