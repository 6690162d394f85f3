//! One node of the world: its control plane while it lives, and what outlives it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use highwater::control::metadata::command::RegisterNode;
use highwater::control::metadata::image::{DiskId, Endpoint, Image, Incarnation};
use highwater::control::metadata::topic_config::TopicDefaults;
use highwater::control::placement::{Placement, Strategy};
use highwater::control::request::Reply;
use highwater::control::{Control, ControlConfig, ProposalId};
use highwater_shards::ids::{NodeId, PartitionId, RegistrationEpoch, Revision, ShardId};
use highwater_shards::mail::{Assignment, FromControl, PeerNode};

use crate::rng::Rng;

pub const SHARDS: u16 = 2;
const STRATEGIES: [Strategy; 3] = [Strategy::RoundRobin, Strategy::ConsistentHash, Strategy::LeastLoaded];

/// What a shard hears.
pub type Told = FromControl<Arc<Image>, Reply>;

#[derive(Debug)]
pub struct Node {
    pub id: NodeId,
    /// Grows with each start.
    pub life: u64,
    /// `None` while it is down.
    pub control: Option<Control>,
    pub ready: bool,
    /// Entries of the log that it has applied; durable.
    pub applied: usize,
    /// Durable, as are the partitions of each shard.
    pub placements: BTreeMap<PartitionId, ShardId>,
    pub shards: [FakeShard; SHARDS as usize],
    /// The proposal that was not answered yet.
    pub proposal: Option<ProposalId>,
    /// A snapshot came in between.
    pub in_doubt: bool,
    /// The latest term that it heard of.
    pub term: u64,
    /// What the last life that stopped cleanly left on its disk.
    pub clean: Option<RegistrationEpoch>,
    /// It was told to stop.
    pub stopping: bool,
}

/// A shard that does what it is told, when it comes to it.
#[derive(Debug, Default)]
pub struct FakeShard {
    pub told: VecDeque<Told>,
    pub revision: Revision,
    /// What it owns in this life, and what its disk holds.
    pub owned: BTreeMap<PartitionId, Assignment>,
    pub nodes: Vec<PeerNode>,
    pub held: Vec<PartitionId>,
}

impl Node {
    pub fn new(id: NodeId) -> Self {
        Self {
            id,
            life: 0,
            control: None,
            ready: false,
            applied: 0,
            placements: BTreeMap::new(),
            shards: Default::default(),
            proposal: None,
            in_doubt: false,
            term: 0,
            clean: None,
            stopping: false,
        }
    }

    /// A new life on what the disk holds; `image` is that of the entries that it has applied.
    pub fn start(&mut self, mut image: Image, rng: &mut Rng) {
        self.life += 1;
        (self.ready, self.proposal, self.in_doubt, self.term) = (false, None, false, 0);
        self.stopping = false;
        for shard in &mut self.shards {
            shard.told.clear();
            shard.owned.clear();
            shard.nodes.clear();
            shard.revision = Revision(0);
        }
        for (&partition, &shard) in &self.placements {
            image.put_local_shard(partition, shard);
        }
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&rng.draw().to_le_bytes());
        let register = RegisterNode {
            node: self.id,
            incarnation: Incarnation(self.life),
            disk: DiskId(u128::from(self.id.0) + 100),
            client: Endpoint { host: format!("node-{}", self.id), port: 9092 },
            clean_stop: self.clean,
            ..RegisterNode::default()
        };
        let config = ControlConfig {
            register,
            shards: SHARDS,
            defaults: TopicDefaults::default(),
            placement: Placement { strategy: *rng.pick(&STRATEGIES), ..Placement::default() },
            seed,
        };
        self.control = Some(Control::new(config, image));
    }

    pub fn kill(&mut self) {
        self.control = None;
        self.ready = false;
    }
}
