//! The configuration of a node: what every section means, with its units.
//!
//! A [`Config`] comes from four layers, each over the one before: built-in defaults and a profile, the file, the
//! environment, flags ([`load`]). `keys` holds the one table of all keys, and everything else (reading, suggestions,
//! the names of variables, `config show-default`) follows from it, so a key is one line there and one field here.
//! Only keys that do something exist. Pure apart from `host`, which is a driver; used once at start on the main thread.

mod cores;
mod forming;
mod host;
mod keys;
mod layers;
mod parts;
mod render;
mod secret;
mod shape;
mod yaml;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use highwater_shards::ids::NodeId;
use highwater_shards::log::journal::OnDamage;
use highwater_shards::mail::Durability;

pub use cores::{CoreError, CoreId, CorePlan, Host};
pub use forming::can_be_told;
pub use host::CoreClaims;
pub use layers::{
    ENV_CONFIG, ENV_PREFIX, Loaded, Origin, Problem, Problems, Setting, Sources, cores_settings, load,
};
pub use render::{render_effective, render_reference};
pub use secret::{SECRET_BYTES_MAX, SECRET_BYTES_MIN, Secret};
pub use shape::HostPort;
use shape::show_size;
pub use yaml::FILE_BYTES_MAX;

use crate::control::placement::Placement;

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub profile: Option<Profile>,
    pub cluster: Cluster,
    pub security: Security,
    pub cores: Cores,
    pub storage: Storage,
    pub kafka: Kafka,
    pub admin: Admin,
    pub log: Log,
}

/// Settings for a kind of host or use, embedded from `tuning/`. They take the place of defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Latency,
    Throughput,
    Dev,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// 0 to [`NODE_ID_MAX`].
    pub node_id: NodeId,
    pub mode: Mode,
    pub rack: Option<String>,
    /// What Kafka clients connect to.
    pub client_addr: SocketAddr,
    /// What clients are told to connect to, when it is not `client_addr`.
    pub client_addr_advertised: Option<HostPort>,
    /// What other nodes connect to.
    pub cluster_addr: SocketAddr,
    /// What other nodes are told to connect to, when it is not `cluster_addr`.
    pub cluster_addr_advertised: Option<HostPort>,
    /// Where the first nodes of the cluster are; in order, without repetitions.
    pub seeds: Vec<HostPort>,
    pub roles: Roles,
    pub raft: Raft,
    pub replication: Replication,
    pub swim: Swim,
    pub topic_defaults: TopicDefaults,
    /// Where replicas of new partitions go.
    pub placement: Placement,
}

/// With core-direct routing a shard is advertised as broker `node_id * 1024 + shard`, a signed 32-bit number.
pub const NODE_ID_MAX: u32 = (i32::MAX as u32 >> 10) - 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One node, which is its own cluster.
    Standalone,
    /// A node among others, which finds them by the seeds.
    Cluster,
}

/// What a node may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// Votes on metadata.
    pub voter: bool,
    /// Leads partitions.
    pub leader: bool,
    /// Keeps partitions.
    pub replica: bool,
}

impl Roles {
    pub const ALL: Self = Self { voter: true, leader: true, replica: true };
}

/// How the nodes agree on metadata.
#[derive(Debug, Clone, PartialEq)]
pub struct Raft {
    /// How many nodes vote, if there are so many; `None`: by the size of the cluster.
    pub voters: Option<u32>,
    pub heartbeat_interval: Duration,
    /// The shortest time without a heartbeat after which a node stands for election; the longest is twice that.
    pub election_timeout: Duration,
}

/// How records get from leaders to followers.
#[derive(Debug, Clone, PartialEq)]
pub struct Replication {
    /// For a replica to lack records before it is out of sync.
    pub lag_max: Duration,
    /// Record bytes on their way on one stream between shards.
    pub stream_credit_bytes: u64,
    /// Of the node, to replicas that are not in sync; `None`: what the others leave over, or more if that is too little.
    pub catch_up_bytes_per_second: Option<u64>,
}

/// How the nodes find out who of them is alive.
#[derive(Debug, Clone, PartialEq)]
pub struct Swim {
    /// The UDP port; `None`: the number of the TCP port of `cluster_addr`.
    pub port: Option<u32>,
    /// Where other nodes are told to send to; `None`: where they are told to connect to.
    pub addr_advertised: Option<SocketAddr>,
    pub ping_interval: Duration,
    pub ping_timeout: Duration,
    pub indirect_probes: u32,
    pub suspicion_multiplier: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Security {
    /// Of the two at most one is set.
    pub cluster_secret: Option<Secret>,
    pub cluster_secret_file: Option<PathBuf>,
}

impl Security {
    /// The secret itself, from the file if that is where it is; `None` when neither is set.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn secret(&self) -> Result<Option<Secret>, String> {
        match (&self.cluster_secret, &self.cluster_secret_file) {
            (Some(secret), _) => Ok(Some(secret.clone())),
            (None, Some(path)) => {
                Secret::read(path).map(Some).map_err(|why| format!("security.cluster_secret_file: {why}"))
            }
            (None, None) => Ok(None),
        }
    }
}

/// What a topic gets when its creator says nothing else.
#[derive(Debug, Clone, PartialEq)]
pub struct TopicDefaults {
    pub partitions: u32,
    /// Replicas of each partition.
    pub replication_factor: u32,
    /// In-sync replicas without which nothing is acknowledged to who asks for all of them.
    pub isr_min: u32,
    pub durability: Durability,
    /// The largest record batch that a producer may send.
    pub batch_bytes_max: u64,
    pub cleanup_policy: CleanupPolicy,
    /// How long records are kept; `None`: for ever.
    pub retention: Option<Duration>,
    /// How many bytes a partition keeps; `None`: all.
    pub retention_bytes: Option<u64>,
    /// The size and the age at which a partition's file is closed and the next one begun.
    pub segment_bytes: u64,
    pub segment_age: Duration,
    /// How long a compacted topic keeps the deletion of a key.
    pub tombstone_age: Duration,
    /// How long records of a compacted topic stay as they are.
    pub compaction_lag: Duration,
    /// The part of a compacted log, in thousandths, that must be new before it is compacted.
    pub dirty_permille: u32,
}

/// What happens to the old records of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CleanupPolicy {
    /// Removed by age and size.
    Delete,
    /// The last record of each key is kept.
    Compact,
    CompactAndDelete,
}

/// Which threads run where; [`CorePlan::resolve`] fits it to the host. `None` is `auto` throughout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cores {
    pub control: Option<CoreId>,
    pub shards: Option<Vec<CoreId>>,
    pub shard_count: Option<u32>,
    pub pin: Option<bool>,
    /// How long an idle shard looks for work before it sleeps; zero never spins.
    pub spin: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Storage {
    pub data_dir: PathBuf,
    /// The size of one journal file; each shard has several. A multiple of 4096.
    pub journal_file_bytes: u64,
    /// Recent records kept in memory, over all shards of the node.
    pub tail_bytes: u64,
    /// The longest time until records of `durability: replicated` are flushed.
    pub flush_interval: Duration,
    /// What to do at start when flushed bytes of the journal are damaged.
    pub recovery: OnDamage,
    /// Bytes of the journal, over all shards, after which it is checkpointed.
    pub checkpoint_bytes: u64,
    /// Bytes of the journal that may exist, over all shards.
    pub journal_bytes_max: u64,
    /// Files of partitions that are kept open, over all shards.
    pub open_files_max: u32,
    /// Bytes that compaction may read and write in a second, over all shards.
    pub compaction_bytes_per_second: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Kafka {
    pub auto_create_topics: bool,
    pub routing: Routing,
    /// With `routing: core`, shard `k` listens on this port + `k`.
    pub core_port_first: u32,
    /// The largest request; a longer one closes its connection before anything is allocated for it.
    pub request_bytes_max: u64,
    /// Records in one answer to a fetch; a single larger batch is answered whole.
    pub fetch_bytes_max: u64,
    /// Connections of one shard; more are closed on accept.
    pub connections_max: u32,
    pub connection_idle: Duration,
    /// Answers that wait in one connection for a slow reader; at the bound its requests are no longer read.
    pub unsent_bytes_max: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    /// One address for the node; a request hops to the owning core.
    Node,
    /// Every shard has its own port and is a broker of its own to clients.
    Core,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Admin {
    /// `/metrics`, `/healthz` and `/readyz` over HTTP; `None` switches them off.
    pub addr: Option<SocketAddr>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    pub format: LogFormat,
    /// A level, or `target=level` pairs separated by commas.
    pub level: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Human,
    Json,
}

impl Default for Config {
    fn default() -> Self {
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            profile: None,
            cluster: Cluster {
                node_id: NodeId(1),
                mode: Mode::Standalone,
                rack: None,
                client_addr: local(9092),
                client_addr_advertised: None,
                cluster_addr: local(9093),
                cluster_addr_advertised: None,
                seeds: Vec::new(),
                roles: Roles::ALL,
                raft: Raft {
                    voters: None,
                    heartbeat_interval: Duration::from_millis(75),
                    election_timeout: Duration::from_millis(300),
                },
                replication: Replication {
                    lag_max: Duration::from_secs(10),
                    stream_credit_bytes: 16 << 20,
                    catch_up_bytes_per_second: None,
                },
                swim: Swim {
                    port: None,
                    addr_advertised: None,
                    ping_interval: Duration::from_millis(100),
                    ping_timeout: Duration::from_millis(50),
                    indirect_probes: 3,
                    suspicion_multiplier: 3,
                },
                topic_defaults: TopicDefaults {
                    partitions: 4,
                    replication_factor: 1,
                    isr_min: 1,
                    durability: Durability::Fsync,
                    batch_bytes_max: 4 << 20,
                    cleanup_policy: CleanupPolicy::Delete,
                    retention: Some(Duration::from_secs(7 * 86_400)),
                    retention_bytes: None,
                    segment_bytes: 1 << 30,
                    segment_age: Duration::from_secs(7 * 86_400),
                    tombstone_age: Duration::from_secs(86_400),
                    compaction_lag: Duration::ZERO,
                    dirty_permille: 500,
                },
                placement: Placement::default(),
            },
            security: Security { cluster_secret: None, cluster_secret_file: None },
            cores: Cores { control: None, shards: None, shard_count: None, pin: None, spin: None },
            storage: Storage {
                data_dir: PathBuf::from("./highwater-data"),
                journal_file_bytes: 64 << 20,
                tail_bytes: 256 << 20,
                flush_interval: Duration::from_millis(50),
                recovery: OnDamage::Refuse,
                checkpoint_bytes: 512 << 20,
                journal_bytes_max: 2 << 30,
                open_files_max: 16_384,
                compaction_bytes_per_second: 64 << 20,
            },
            kafka: Kafka {
                auto_create_topics: true,
                routing: Routing::Node,
                core_port_first: 19092,
                request_bytes_max: 100 << 20,
                fetch_bytes_max: 55 << 20,
                connections_max: 10_000,
                connection_idle: Duration::from_secs(600),
                unsent_bytes_max: 16 << 20,
            },
            admin: Admin { addr: Some(local(9094)) },
            log: Log { format: LogFormat::Human, level: "info".into() },
        }
    }
}

impl Cluster {
    /// What clients are told: the advertised address, or the one that is bound.
    pub fn advertised(&self) -> HostPort {
        self.client_addr_advertised.clone().unwrap_or_else(|| host_port(self.client_addr))
    }

    /// What other nodes are told: the advertised address, or the one that is bound.
    pub fn cluster_advertised(&self) -> HostPort {
        self.cluster_addr_advertised.clone().unwrap_or_else(|| host_port(self.cluster_addr))
    }

    /// Where this node binds its socket for gossip.
    pub fn swim_addr(&self) -> SocketAddr {
        SocketAddr::new(self.cluster_addr.ip(), self.swim_port().unwrap_or(self.cluster_addr.port()))
    }

    /// What other nodes are told of it; a host name is still to be resolved.
    pub fn swim_advertised(&self) -> HostPort {
        match self.swim.addr_advertised {
            Some(addr) => host_port(addr),
            None => self.swim_of(&self.cluster_advertised()),
        }
    }

    /// Where the node gossips that other nodes connect to here.
    pub fn swim_of(&self, node: &HostPort) -> HostPort {
        HostPort { host: node.host.clone(), port: self.swim_port().unwrap_or(node.port) }
    }

    fn swim_port(&self) -> Option<u16> {
        self.swim.port.map(|port| u16::try_from(port).expect("the key takes ports only"))
    }
}

fn host_port(addr: SocketAddr) -> HostPort {
    HostPort { host: addr.ip().to_string(), port: addr.port() }
}

impl Config {
    /// What single values cannot show: keys that contradict each other. Each entry names the keys and says why.
    fn contradictions(&self) -> Vec<(&'static [&'static str], String)> {
        let mut out: Vec<(&'static [&'static str], String)> = Vec::new();
        let (cluster, kafka, cores) = (&self.cluster, &self.kafka, &self.cores);
        if cluster.client_addr.ip().is_unspecified() && cluster.client_addr_advertised.is_none() {
            out.push((
                &["cluster.client_addr", "cluster.client_addr_advertised"],
                format!(
                    "`cluster.client_addr: {}` listens on every address of this host, so say which one clients should \
                     connect to: `cluster.client_addr_advertised: HOST:{}`",
                    cluster.client_addr,
                    cluster.client_addr.port()
                ),
            ));
        }
        if cores.shards.is_some() && cores.shard_count.is_some() {
            out.push((
                &["cores.shards", "cores.shard_count"],
                "`cores.shards` and `cores.shard_count` are two ways to say the same: keep one of them"
                    .into(),
            ));
        }
        let batch_bytes_max = cluster.topic_defaults.batch_bytes_max;
        if batch_bytes_max + REQUEST_OVERHEAD_BYTES > kafka.request_bytes_max {
            out.push((
                &["kafka.request_bytes_max", "cluster.topic_defaults.batch_bytes_max"],
                "`kafka.request_bytes_max` must exceed `cluster.topic_defaults.batch_bytes_max` by at least 64KiB, or \
                 the largest batch could never arrive"
                    .into(),
            ));
        }
        if batch_bytes_max > u64::from(self.storage.batch_bytes_max()) {
            out.push((
                &["storage.journal_file_bytes", "cluster.topic_defaults.batch_bytes_max"],
                "`storage.journal_file_bytes` must exceed `cluster.topic_defaults.batch_bytes_max` by at least 64KiB: a \
                 batch is never split over two files"
                    .into(),
            ));
        }
        let files_bytes = self.storage.journal_file_bytes * JOURNAL_FILES_MIN;
        // With many shards their shares may be smaller than that: then each has its four files all the same.
        if self.storage.journal_bytes_max < files_bytes {
            out.push((
                &["storage.journal_bytes_max", "storage.journal_file_bytes"],
                format!(
                    "`storage.journal_bytes_max` must leave room for {JOURNAL_FILES_MIN} files of \
                     `storage.journal_file_bytes`: at least {}",
                    show_size(files_bytes)
                ),
            ));
        }
        if self.storage.checkpoint_bytes > self.storage.journal_bytes_max / 4 {
            out.push((
                &["storage.checkpoint_bytes", "storage.journal_bytes_max"],
                "`storage.checkpoint_bytes` must be at most a quarter of `storage.journal_bytes_max`: from half of it \
                 on producers are slowed down, and a checkpoint should have ended by then"
                    .into(),
            ));
        }
        let core_ports = kafka.core_port_first..kafka.core_port_first + SHARDS_MAX;
        let on_core_ports =
            |addr: SocketAddr| kafka.routing == Routing::Core && core_ports.contains(&u32::from(addr.port()));
        if let Some(admin) = self.admin.addr.filter(|admin| overlap_ip(admin.ip(), cluster.client_addr.ip()))
        {
            if admin.port() == cluster.client_addr.port() {
                out.push((
                    &["admin.addr", "cluster.client_addr"],
                    format!("`admin.addr` and `cluster.client_addr` both take port {}", admin.port()),
                ));
            }
            if on_core_ports(admin) {
                out.push((
                    &["kafka.core_port_first", "admin.addr"],
                    format!(
                        "the {SHARDS_MAX} ports from `kafka.core_port_first: {}` contain that of `admin.addr` ({admin})",
                        kafka.core_port_first
                    ),
                ));
            }
        }
        if on_core_ports(cluster.client_addr) {
            out.push((
                &["kafka.core_port_first", "cluster.client_addr"],
                format!(
                    "the {SHARDS_MAX} ports from `kafka.core_port_first: {}` contain that of `cluster.client_addr` ({})",
                    kafka.core_port_first, cluster.client_addr
                ),
            ));
        }
        self.cluster_contradictions(&mut out);
        out
    }
}

/// Journal files that a shard needs at least: one that is written, the next one, and two that a checkpoint is about.
pub const JOURNAL_FILES_MIN: u64 = 4;
/// A request's header and the parts of a Produce around its batch, generously.
const REQUEST_OVERHEAD_BYTES: u64 = 64 << 10;
/// Shards of one node: the step between the broker ids of two nodes with `routing: core`.
pub const SHARDS_MAX: u32 = 1024;

fn overlap_ip(a: IpAddr, b: IpAddr) -> bool {
    a == b || a.is_unspecified() || b.is_unspecified()
}

#[cfg(test)]
mod tests;
