//! Starts a node: data directory, store, metadata log, listeners, shards, control core, in this order; a failure at any
//! step leaves nothing running. The control core then finds its cluster. Driver; runs on the thread that starts the node.

#![expect(clippy::disallowed_methods, reason = "driver: reads the wall clock")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use highwater_shards::ids::ShardId;
use highwater_shards::log::storage::{Owned, StorageConfig};
use highwater_shards::reactor::boot::{Listen, ShardSetup, Shards, start};
use highwater_shards::reactor::uring::{KernelUse, LinkConfig, Spin};
use highwater_shards::shard::{Shard, ShardConfig};
use tokio::sync::{mpsc, oneshot, watch};

use super::cluster::{GossipSetup, PeersSetup, Setup};
use super::control_core::{self, ControlCore};
use super::data_dir::DataDir;
use super::reshard::reshard;
use super::{COMMANDS_MAX, Command, NodeError};
use crate::config::{Config, CorePlan, HostPort, Mode, Routing};
use crate::control::forming::{ClusterId, Founders, Member};
use crate::control::metadata::command::RegisterNode;
use crate::control::metadata::image::{self, Capabilities, Endpoint, Image};
use crate::control::{Control, ControlConfig};
use crate::kafka::{Kafka, KafkaConfig};
use crate::net::auth::Secret;
use crate::raft::{self, DiskId, RaftConfig};
use crate::store::{self, Identity, StoreConfig};

/// Requests of one connection that are worked on at once.
const IN_FLIGHT_MAX: usize = 256;
/// Operations of one shard at other shards that are not answered yet.
const REMOTE_OPS_MAX: usize = 65_536;

/// Where a started node listens.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Addresses {
    /// For Kafka clients, shared by all shards.
    pub clients: Option<SocketAddr>,
    /// With core-direct routing, of each shard.
    pub shards: Vec<SocketAddr>,
    /// For other nodes.
    pub peers: Option<SocketAddr>,
    pub admin: Option<SocketAddr>,
}

/// A node whose control core is at work; it is ready when `ready` says so.
#[derive(Debug)]
pub struct Node {
    pub addresses: Addresses,
    pub commands: mpsc::Sender<Command>,
    /// Becomes true once. Its sender is gone when the node has ended.
    pub ready: watch::Receiver<bool>,
    pub control: JoinHandle<Result<(), NodeError>>,
}

/// Starts a node with the threads where `plan` says.
///
/// # Errors
/// What failed first; nothing is left running.
pub fn boot(config: &Config, plan: &CorePlan) -> Result<Node, NodeError> {
    let data_dir = DataDir::hold(&config.storage.data_dir)?;
    let shard_count = u16::try_from(plan.shards.len()).expect("the plan is bounded by its keys");
    let found = store::open(&store_config(config)?)?;
    let path = config.storage.data_dir.clone();
    if found.identity.is_none() && data_dir.has_logs().map_err(|e| NodeError::Resources(e.to_string()))? {
        return Err(NodeError::LogsWithoutMetadata { path });
    }
    let disk = DiskId(u128::from_ne_bytes(entropy()?));
    let raft::Opened { storage, mut image } = raft::open(&path.join(raft::FOLDER), disk)?;
    let (events_sender, events) = mpsc::unbounded_channel();
    // The store has a bounded number of events to tell: one for each thing that it was given.
    let opened = found.begin(storage.disk(), storage.is_new(), move |event| {
        let _ = events_sender.send(event);
    })?;
    for (partition, shard) in opened.placements {
        image.put_local_shard(partition, shard);
    }
    if image.cluster_id.is_empty() {
        image.cluster_id = opened.identity.cluster_id.as_str().into();
    }
    reshard(config, &data_dir, &image, shard_count)?;
    let admin = config.admin.addr.map(listen_admin).transpose()?;
    let peers = match config.cluster.mode {
        Mode::Standalone => None,
        Mode::Cluster => Some(listen_peers(config)?),
    };
    let shards = start(shard_setups(config, plan, &data_dir, &image)?)?;
    let addresses = Addresses {
        peers: peers.as_ref().and_then(|peers| peers.listener.local_addr().ok()),
        ..addresses_of(&shards, config, admin.as_ref())
    };
    let cluster = cluster_setup(config, &opened.identity, storage, peers, shard_count)?;
    let roles = config.cluster.roles;
    let register = RegisterNode {
        node: config.cluster.node_id,
        incarnation: opened.identity.incarnation,
        rack: config.cluster.rack.clone(),
        client: advertised(config, addresses.clients),
        shard_clients: addresses
            .shards
            .iter()
            .map(|at| Endpoint { host: config.cluster.advertised().host, port: at.port() })
            .collect(),
        disk: image::DiskId(opened.identity.disk.0),
        capabilities: Capabilities { voter: roles.voter, leader: roles.leader, replica: roles.replica },
        cluster: cluster.member.at.clone(),
        clean_stop: opened.identity.clean_stop,
        ..RegisterNode::default()
    };
    let control = Control::new(
        ControlConfig {
            register,
            shards: shard_count,
            defaults: config.topic_defaults(),
            placement: config.cluster.placement,
            seed: entropy()?,
        },
        image,
    );
    let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
    let (ready_sender, ready) = watch::channel(false);
    let core = ControlCore {
        control,
        shards,
        store: opened.store,
        identity: opened.identity,
        store_events: events,
        commands: inbox,
        ready: ready_sender,
        data_dir,
    };
    let core_id = plan.control.map(|core| usize::from(core.0));
    let admin = admin.map(|listener| (listener, commands.clone()));
    let control = std::thread::Builder::new()
        .name("control".into())
        .spawn(move || control_core::run(core, cluster, core_id, admin))
        .map_err(|error| NodeError::Resources(error.to_string()))?;
    Ok(Node { addresses, commands, ready, control })
}

/// Asks the control core for something and waits for it; `None` when the node has ended.
pub async fn ask<T>(
    commands: &mpsc::Sender<Command>,
    command: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    commands.send(command(reply)).await.ok()?;
    answer.await.ok()
}

fn store_config(config: &Config) -> Result<StoreConfig, NodeError> {
    Ok(StoreConfig {
        data_dir: config.storage.data_dir.clone(),
        node: config.cluster.node_id,
        cluster_id: None,
        entropy: entropy()?,
        forms: config.cluster.mode == Mode::Cluster,
    })
}

/// What this node brings into its cluster. One that stands alone is its cluster's only founder.
fn cluster_setup(
    config: &Config,
    identity: &Identity,
    storage: raft::Storage,
    peers: Option<PeersSetup>,
    shards: u16,
) -> Result<Setup, NodeError> {
    let cluster = &config.cluster;
    let endpoint = |at: &HostPort| Endpoint { host: at.host.clone(), port: at.port };
    let at = peers.as_ref().map(|_| endpoint(&cluster.cluster_advertised())).unwrap_or_default();
    let member = Member { node: identity.node, disk: image::DiskId(identity.disk.0), at };
    let formed = match identity.cluster_id.parse::<ClusterId>() {
        Ok(id) if identity.founders.members().is_empty() && peers.is_none() => {
            Some((id, Founders::new(vec![member.clone()]).expect("one has no id twice")))
        }
        Ok(id) => Some((id, identity.founders.clone())),
        Err(_) if identity.cluster_id.is_empty() => None,
        Err(error) => return Err(NodeError::Resources(error.to_string())),
    };
    let raft = RaftConfig {
        heartbeat: cluster.raft.heartbeat_interval,
        election_min: cluster.raft.election_timeout,
        election_max: cluster.raft.election_timeout * 2,
        seed: u64::from_ne_bytes(entropy()?),
        ..RaftConfig::new(identity.node, identity.incarnation)
    };
    Ok(Setup {
        member,
        incarnation: identity.incarnation,
        may_vote: cluster.roles.voter,
        seeds: cluster.seeds.iter().map(endpoint).collect(),
        voters: cluster.raft.voters,
        raft,
        storage,
        peers,
        formed,
        shards,
        seed: u64::from_ne_bytes(entropy()?),
    })
}

fn listen_peers(config: &Config) -> Result<PeersSetup, NodeError> {
    let address = config.cluster.cluster_addr;
    let failed = |error: std::io::Error| NodeError::Peers { address, reason: error.to_string() };
    let secret = config.security.secret().map_err(NodeError::Secret)?;
    let secret = secret
        .ok_or_else(|| NodeError::Secret("a node of a cluster needs `security.cluster_secret`".into()))?;
    let secret = Secret::new(secret.bytes()).map_err(|error| NodeError::Secret(error.to_string()))?;
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = config.cluster.swim_addr();
    let socket = super::swim::bind(address)
        .map_err(|error| NodeError::Gossip { address, reason: error.to_string() })?;
    let advertised = config.cluster.swim_advertised();
    let data_dir = config.storage.data_dir.clone();
    let gossip = GossipSetup { socket, advertised, config: config.cluster.swim.clone(), data_dir };
    Ok(PeersSetup { secret, listener, gossip })
}

pub(super) fn entropy<const N: usize>() -> Result<[u8; N], NodeError> {
    let mut bytes = [0; N];
    let drawn = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    match drawn {
        Ok(n) if n == N => Ok(bytes),
        Ok(_) => Err(NodeError::Resources("too little entropy".into())),
        Err(error) => Err(NodeError::Resources(format!("no entropy: {error}"))),
    }
}

fn listen_admin(address: SocketAddr) -> Result<std::net::TcpListener, NodeError> {
    let failed = |error: std::io::Error| NodeError::Admin { address, reason: error.to_string() };
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

pub(super) fn shard_setups(
    config: &Config,
    plan: &CorePlan,
    data_dir: &DataDir,
    image: &Image,
) -> Result<Vec<ShardSetup<Shard<Kafka>>>, NodeError> {
    let kafka = &config.kafka;
    let bounded = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
    let link = LinkConfig {
        frame_bytes_max: bounded(kafka.request_bytes_max),
        connections_max: kafka.connections_max,
        connection_idle: kafka.connection_idle,
        ..LinkConfig::default()
    };
    let spin = match config.cores.spin {
        None => Spin::Auto,
        Some(time) => Spin::Micros(u32::try_from(time.as_micros()).unwrap_or(u32::MAX)),
    };
    let front = KafkaConfig {
        node: config.cluster.node_id,
        auto_create_topics: kafka.auto_create_topics,
        topic_defaults: config.topic_defaults(),
        request_bytes_max: usize::try_from(kafka.request_bytes_max).unwrap_or(usize::MAX),
        fetch_bytes_max: bounded(kafka.fetch_bytes_max),
        ..KafkaConfig::default()
    };
    let count = plan.shards.len();
    let mut owned = vec![BTreeSet::new(); count];
    for (partition, shard) in image.local_shards() {
        if let Some(owned) = owned.get_mut(usize::from(shard.0)) {
            owned.insert(partition);
        }
    }
    let mut setups = Vec::with_capacity(count);
    for ((number, core), owned) in (0..).zip(&plan.shards).zip(owned) {
        let shard = ShardId(number);
        let shard_config = ShardConfig {
            node: config.cluster.node_id,
            shard,
            storage: StorageConfig {
                wall_ms_at_zero: wall_ms(),
                owned: Owned::Listed(Arc::new(owned)),
                ..config.storage.of_shard(shard, count, u64::from_ne_bytes(entropy()?))
            },
            unsent_bytes_max: usize::try_from(kafka.unsent_bytes_max).unwrap_or(usize::MAX),
            in_flight_max: IN_FLIGHT_MAX,
            remote_ops_max: REMOTE_OPS_MAX,
            replication: config.replication_of_shard(count, u64::from_ne_bytes(entropy()?)),
        };
        let front = front.clone();
        setups.push(ShardSetup {
            shard,
            core: core.map(|core| usize::from(core.0)),
            journal_dir: data_dir.journal_of(shard),
            partitions_dir: data_dir.partitions(),
            open_files_max: config.storage.open_files_max_of_shard(count),
            listen: listeners(config, number),
            link,
            spin,
            kernel_use: KernelUse::default(),
            make: Box::new(move || Shard::new(shard_config, Kafka::new(front))),
        });
    }
    Ok(setups)
}

/// The wall clock, in ms since the epoch. A shard's own clock begins at about the same moment.
fn wall_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn listeners(config: &Config, shard: u16) -> Vec<Listen> {
    let shared = Listen::Shared(config.cluster.client_addr);
    match config.kafka.routing {
        Routing::Node => vec![shared],
        Routing::Core => {
            let port = config.kafka.core_port_first + u32::from(shard);
            let port = u16::try_from(port).expect("the keys leave room for all shards' ports");
            vec![shared, Listen::Own(SocketAddr::new(config.cluster.client_addr.ip(), port))]
        }
    }
}

fn addresses_of(shards: &Shards<Kafka>, config: &Config, admin: Option<&std::net::TcpListener>) -> Addresses {
    let own = |listens: &Vec<SocketAddr>| listens.get(1).copied();
    Addresses {
        clients: shards.addresses.first().and_then(|listens| listens.first()).copied(),
        shards: match config.kafka.routing {
            Routing::Node => Vec::new(),
            Routing::Core => shards.addresses.iter().filter_map(own).collect(),
        },
        peers: None,
        admin: admin.and_then(|listener| listener.local_addr().ok()),
    }
}

/// What clients are told: the configured name, or where the node really listens (a port 0 became a real one).
fn advertised(config: &Config, bound: Option<SocketAddr>) -> Endpoint {
    let told = config.cluster.advertised();
    let port = match (told.port, bound) {
        (0, Some(bound)) => bound.port(),
        (port, _) => port,
    };
    Endpoint { host: told.host, port }
}
