//! The table of all keys: name, shape, the field it sets, and its documentation.
//!
//! This is the only list. A key that is not here is unknown, and `config show-default` prints exactly this.

use std::marker::PhantomData;
use std::time::Duration;

use super::shape::*;
use super::{
    CleanupPolicy, Config, Durability, LogFormat, Mode, NODE_ID_MAX, OnDamage, Profile, Roles, Routing,
    SECRET_BYTES_MAX, SECRET_BYTES_MIN, SHARDS_MAX, Secret,
};
use crate::control::metadata::topic_config::{BATCH_BYTES_LIMIT, SEGMENT_BYTES_MIN};
use crate::control::placement::{Strategy, VIRTUAL_NODES_MAX};

/// One key of the configuration.
pub struct Key {
    /// Section and name, joined by dots.
    pub path: &'static str,
    /// Sentences for the reference file, one line each.
    pub doc: &'static [&'static str],
    /// The words after "must be".
    pub expected: fn() -> String,
    /// Sets the field; false when the value is not of the key's shape.
    pub set: fn(&mut Config, &Raw) -> bool,
    /// The field's value as YAML on one line.
    pub show: fn(&Config) -> String,
}

impl Key {
    /// The last part of the path.
    pub fn name(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or(self.path)
    }
}

macro_rules! key {
    ($path:literal, $shape:expr, |$c:ident| $field:expr, [$($doc:literal),+ $(,)?]) => {
        Key {
            path: $path,
            doc: &[$($doc),+],
            expected: || $shape.expected(),
            set: |$c, raw| match $shape.read(raw) {
                Some(value) => {
                    $field = value;
                    true
                }
                None => false,
            },
            show: |$c| $shape.show(&$field),
        }
    };
}

const fn words<T>() -> OneOf<T> {
    OneOf(PhantomData)
}

const fn ms(min: u64, max: u64) -> Time {
    Time { unit: TimeUnit::Ms, min: Duration::from_millis(min), max: Duration::from_millis(max) }
}

const fn us(min: u64, max: u64) -> Time {
    Time { unit: TimeUnit::Us, min: Duration::from_micros(min), max: Duration::from_micros(max) }
}

const fn size(min: u64, max: u64, step: u64) -> Size {
    Size { min, max, step }
}

const fn count(what: &'static str, min: u32, max: u32) -> Count {
    Count { what, min, max }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// A hundred years in milliseconds: as good as for ever.
const CENTURY_MS: u64 = 36_525 * 86_400_000;

/// What each section is for, in the order of the file.
pub const SECTIONS: &[(&str, &str)] = &[
    ("cluster", "Who this node is and what it serves."),
    ("cluster.raft", "How the nodes agree on who they are, on topics and on settings."),
    ("cluster.replication", "How records get from the leader of a partition to its other replicas."),
    (
        "cluster.swim",
        "How the nodes find out who of them is alive, by gossip over UDP; times should be the same on all nodes.",
    ),
    ("cluster.topic_defaults", "What a topic gets when its creator says nothing else."),
    ("cluster.placement", "Where the replicas of new partitions go."),
    ("security", "How nodes prove to each other that they belong together."),
    (
        "cores",
        "Threads and CPU cores. `cores: auto` is short for `auto` throughout, `cores: 0-3` for control on 0, shards on 1-3.",
    ),
    ("storage", "Where and how records are kept."),
    ("kafka", "The listener for Kafka clients."),
    ("admin", "Metrics and health over HTTP."),
    ("log", "What the node prints about itself, on standard error."),
];

/// All keys, in the order of the file: a section's own keys stand together.
pub static KEYS: &[Key] = &[
    key!(
        "profile",
        Or("none", words::<Profile>()),
        |c| c.profile,
        [
            "Settings for a kind of host, in place of the defaults below:",
            "`latency` (dedicated cores), `throughput` (large batches), `dev` (small, beside other work).",
        ]
    ),
    key!(
        "cluster.node_id",
        count("a number", 0, NODE_ID_MAX),
        |c| c.cluster.node_id.0,
        ["The id that clients see as the broker's. It must not change once the node has data.",]
    ),
    key!(
        "cluster.mode",
        words::<Mode>(),
        |c| c.cluster.mode,
        [
            "`standalone`: one node, which is its own cluster. `cluster`: a node among others, found by `seeds`.",
        ]
    ),
    key!(
        "cluster.rack",
        Or("none", Text { what: "a text", len_max: 255 }),
        |c| c.cluster.rack,
        [
            "The failure domain of this node. Replicas are spread over racks, and consumers that name theirs (client.rack)",
            "read from a replica there that is in sync.",
        ]
    ),
    key!("cluster.client_addr", Addr, |c| c.cluster.client_addr, ["IP address and port for Kafka clients."]),
    key!(
        "cluster.client_addr_advertised",
        Or("auto", Advertised),
        |c| c.cluster.client_addr_advertised,
        [
            "HOST:PORT that clients are told to connect to. `auto`: the same as client_addr.",
            "Needed when client_addr is 0.0.0.0 or [::], or behind address translation.",
        ]
    ),
    key!(
        "cluster.cluster_addr",
        Addr,
        |c| c.cluster.cluster_addr,
        ["With `mode: cluster`: IP address and port for the other nodes.",]
    ),
    key!(
        "cluster.cluster_addr_advertised",
        Or("auto", Advertised),
        |c| c.cluster.cluster_addr_advertised,
        [
            "HOST:PORT that other nodes are told to connect to. `auto`: the same as cluster_addr.",
            "Needed when cluster_addr is 0.0.0.0 or [::], or behind address translation.",
        ]
    ),
    key!(
        "cluster.seeds",
        HostPorts { what: "hosts", count_max: SEEDS_MAX },
        |c| c.cluster.seeds,
        [
            "The first nodes, such as [n1.example:9093, n2.example:9093, n3.example:9093]; the same on all nodes.",
            "Together they found the cluster, once all of them run, and vote in it. Later nodes join through any of them.",
        ]
    ),
    key!(
        "cluster.roles",
        RolesShape,
        |c| c.cluster.roles,
        [
            "What this node may become: `voter` (agrees on metadata), `replica-eligible` (keeps partitions),",
            "`leader-eligible` (leads partitions that it keeps).",
        ]
    ),
    key!(
        "cluster.raft.voters",
        Or("auto", count("a number", 1, SEEDS_MAX_U32)),
        |c| c.cluster.raft.voters,
        [
            "How many nodes vote on metadata, when there are so many; half of them, rounded down, may fail together.",
            "`auto`: 3 in clusters of up to 4 nodes, 5 in larger ones.",
        ]
    ),
    key!(
        "cluster.raft.heartbeat_interval_ms",
        ms(10, 10_000),
        |c| c.cluster.raft.heartbeat_interval,
        ["How often the leader says that it is there.",]
    ),
    key!(
        "cluster.raft.election_timeout_ms",
        ms(50, 60_000),
        |c| c.cluster.raft.election_timeout,
        [
            "How long a leader must be silent, at least, before another stands; each wait is drawn from once to twice that.",
            "A new leader stands within four times that. The same on all nodes.",
        ]
    ),
    key!(
        "cluster.replication.lag_max_ms",
        ms(500, 600_000),
        |c| c.cluster.replication.lag_max,
        [
            "How long a replica may lack records of its leader's log before the leader has it taken out of the in-sync",
            "replicas; a produce with `acks=all` waits for a silent one as long.",
        ]
    ),
    key!(
        "cluster.replication.stream_credit_bytes",
        size(MIB, GIB, 1),
        |c| c.cluster.replication.stream_credit_bytes,
        [
            "Record bytes that may be on their way from one shard to one that follows it. More fills longer distances and",
            "takes more memory: so much for each shard that a shard follows.",
        ]
    ),
    key!(
        "cluster.replication.catch_up_bytes_per_second",
        Or("none", size(MIB, 1024 * GIB, 1)),
        |c| c.cluster.replication.catch_up_bytes_per_second,
        [
            "How fast replicas that are not in sync may read from this node, shared by the shards.",
            "`none`: as fast as those in sync leave room for, and faster while they do not come closer to the end.",
        ]
    ),
    key!(
        "cluster.swim.port",
        Or("auto", count("a port", 1, 65_535)),
        |c| c.cluster.swim.port,
        [
            "The UDP port, at the address of cluster_addr; the same on all nodes, unless it is `auto`: then each node takes",
            "the number of its TCP port for the other nodes.",
        ]
    ),
    key!(
        "cluster.swim.addr_advertised",
        Or("auto", Addr),
        |c| c.cluster.swim.addr_advertised,
        [
            "IP address and UDP port that other nodes are told to send to. `auto`: that of cluster_addr_advertised, whose",
            "host name is resolved at each start. Needed when that name means something else here than elsewhere.",
        ]
    ),
    key!(
        "cluster.swim.ping_interval_ms",
        ms(20, 60_000),
        |c| c.cluster.swim.ping_interval,
        [
            "Each node asks one other in each interval whether it is there. A crash is known to all after about five of",
            "them in a small cluster.",
        ]
    ),
    key!(
        "cluster.swim.ping_timeout_ms",
        ms(5, 30_000),
        |c| c.cluster.swim.ping_timeout,
        [
            "How long it waits for the answer before it asks others to try. Above the usual round trip, below the interval.",
        ]
    ),
    key!(
        "cluster.swim.indirect_probes",
        count("a number", 0, 16),
        |c| c.cluster.swim.indirect_probes,
        ["How many others it asks.",]
    ),
    key!(
        "cluster.swim.suspicion_multiplier",
        count("a number", 1, 100),
        |c| c.cluster.swim.suspicion_multiplier,
        [
            "How long a silent node is suspected, and can object, before it counts as dead: this many intervals when others",
            "confirm it, times the logarithm to base 10 of the number of nodes; longer when nobody does.",
        ]
    ),
    key!(
        "cluster.topic_defaults.partitions",
        count("a number", 1, 10_000),
        |c| c.cluster.topic_defaults.partitions,
        ["Partitions of a topic.",]
    ),
    key!(
        "cluster.topic_defaults.replication_factor",
        count("a number", 1, 32),
        |c| c.cluster.topic_defaults.replication_factor,
        ["Replicas of each partition of a topic: as many nodes have to be there when it is made.",]
    ),
    key!(
        "cluster.topic_defaults.min_insync_replicas",
        count("a number", 1, 32),
        |c| c.cluster.topic_defaults.isr_min,
        [
            "In-sync replicas without which a produce with acks=all is refused. The first node to lead the cluster's metadata",
            "makes this and `durability` defaults of the whole cluster; change them there from then on.",
        ]
    ),
    key!(
        "cluster.topic_defaults.durability",
        words::<Durability>(),
        |c| c.cluster.topic_defaults.durability,
        [
            "`fsync`: a record is acknowledged when it is on disk.",
            "`replicated`: when it is in memory; a power cut may lose what came within storage.flush_interval_ms.",
        ]
    ),
    key!(
        "cluster.topic_defaults.batch_bytes_max",
        size(KIB, BATCH_BYTES_LIMIT as u64, 1),
        |c| c.cluster.topic_defaults.batch_bytes_max,
        ["The largest record batch a producer may send.",]
    ),
    key!(
        "cluster.topic_defaults.cleanup_policy",
        words::<CleanupPolicy>(),
        |c| c.cluster.topic_defaults.cleanup_policy,
        [
            "What happens to old records (Kafka's cleanup.policy): `delete` removes them by age and size, `compact` keeps",
            "the last record of each key, `compact,delete` does both.",
        ]
    ),
    key!(
        "cluster.topic_defaults.retention_ms",
        Or("none", ms(0, CENTURY_MS)),
        |c| c.cluster.topic_defaults.retention,
        ["How long records are kept, such as 7d (retention.ms). `none`: for ever.",]
    ),
    key!(
        "cluster.topic_defaults.retention_bytes",
        Or("none", size(0, i64::MAX as u64, 1)),
        |c| c.cluster.topic_defaults.retention_bytes,
        ["How many bytes each partition keeps (retention.bytes). `none`: all.",]
    ),
    key!(
        "cluster.topic_defaults.segment_bytes",
        size(SEGMENT_BYTES_MIN as u64, i32::MAX as u64, 1),
        |c| c.cluster.topic_defaults.segment_bytes,
        ["The size of the files that hold a partition (segment.bytes); records are deleted by whole files.",]
    ),
    key!(
        "cluster.topic_defaults.segment_ms",
        ms(1, CENTURY_MS),
        |c| c.cluster.topic_defaults.segment_age,
        ["The age at which such a file is closed and the next one begun, however small (segment.ms).",]
    ),
    key!(
        "cluster.topic_defaults.tombstone_ms",
        ms(0, CENTURY_MS),
        |c| c.cluster.topic_defaults.tombstone_age,
        ["How long a compacted topic keeps the deletion of a key (delete.retention.ms).",]
    ),
    key!(
        "cluster.topic_defaults.compaction_lag_ms",
        ms(0, CENTURY_MS),
        |c| c.cluster.topic_defaults.compaction_lag,
        ["How long records of a compacted topic stay as they are (min.compaction.lag.ms).",]
    ),
    key!(
        "cluster.topic_defaults.dirty_permille",
        count("a number", 0, 1000),
        |c| c.cluster.topic_defaults.dirty_permille,
        [
            "How much of a compacted log, in thousandths, must be new before it is compacted again",
            "(min.cleanable.dirty.ratio).",
        ]
    ),
    key!(
        "cluster.placement.strategy",
        words::<Strategy>(),
        |c| c.cluster.placement.strategy,
        [
            "`round_robin`: each topic evenly over all nodes. `least_loaded`: on the nodes with the fewest replicas.",
            "`consistent_hash`: near a partition's point on a hash ring, with loads kept near the mean.",
        ]
    ),
    key!(
        "cluster.placement.virtual_nodes",
        count("a number", 1, VIRTUAL_NODES_MAX),
        |c| c.cluster.placement.virtual_nodes,
        ["Points of each node on the ring of `consistent_hash`.",]
    ),
    key!(
        "cluster.placement.rack_aware",
        Flag,
        |c| c.cluster.placement.rack_aware,
        ["Whether the replicas of a partition are spread over racks (cluster.rack), with any strategy.",]
    ),
    key!(
        "security.cluster_secret",
        Or("none", SecretText),
        |c| c.security.cluster_secret,
        [
            "What all nodes of the cluster share and nobody else knows, 16 bytes or more. Never shown. A flag or a variable",
            "can be seen by others on the host: cluster_secret_file is the better way.",
        ]
    ),
    key!(
        "security.cluster_secret_file",
        Or("none", FilePath),
        |c| c.security.cluster_secret_file,
        ["A file that holds the secret and nothing else, such as `head -c 32 /dev/urandom | base64` prints.",]
    ),
    key!(
        "cores.control",
        Or("auto", OneCore),
        |c| c.cores.control,
        ["The core of the control thread. `auto`: the first one this process may use.",]
    ),
    key!(
        "cores.shards",
        Or("auto", CoreList),
        |c| c.cores.shards,
        ["The cores of the shards, such as [1, 2]: one shard runs on each. `auto`: all the others.",]
    ),
    key!(
        "cores.shard_count",
        Or("auto", count("a number", 1, SHARDS_MAX)),
        |c| c.cores.shard_count,
        ["How many shards, when cores.shards does not name them. `auto`: one per core.",]
    ),
    key!(
        "cores.pin",
        Or("auto", Flag),
        |c| c.cores.pin,
        [
            "Whether threads are pinned to their cores. `auto`: when cores are named, or when each thread has a core to",
            "itself, no CPU quota applies and no other node is pinned on this host.",
        ]
    ),
    key!(
        "cores.spin_us",
        Or("auto", us(0, 10_000)),
        |c| c.cores.spin,
        [
            "Microseconds an idle shard looks for work before it sleeps. 0 never spins; `auto` spins only while that",
            "recently found work.",
        ]
    ),
    key!(
        "storage.data_dir",
        FilePath,
        |c| c.storage.data_dir,
        ["The folder with everything this node stores. Created when missing; only one node may use it.",]
    ),
    key!(
        "storage.journal_file_bytes",
        size(MIB, 4 * GIB, 4096),
        |c| c.storage.journal_file_bytes,
        ["The size of one journal file. Each shard writes its own files with zeros ahead of their use.",]
    ),
    key!(
        "storage.tail_bytes",
        size(MIB, 1024 * GIB, 1),
        |c| c.storage.tail_bytes,
        [
            "Memory for recent records, which consumers read without touching the disk; shared equally by the shards.",
        ]
    ),
    key!(
        "storage.flush_interval_ms",
        ms(1, 60_000),
        |c| c.storage.flush_interval,
        ["The longest time until records of `durability: replicated` are flushed.",]
    ),
    key!(
        "storage.recovery",
        words::<OnDamage>(),
        |c| c.storage.recovery,
        [
            "What to do when acknowledged bytes of the journal are damaged at start: `stop`, so that they can be restored,",
            "or `truncate`, which gives up what follows the damage. A torn write at the end is cut either way.",
        ]
    ),
    key!(
        "storage.checkpoint_bytes",
        size(MIB, 1024 * GIB, 1),
        |c| c.storage.checkpoint_bytes,
        [
            "How much is written to the journal between two checkpoints, which release its files; shared by the shards.",
            "More costs disk and a longer start after a crash; less makes more, smaller flushes of partition files.",
        ]
    ),
    key!(
        "storage.journal_bytes_max",
        size(4 * MIB, 16 * 1024 * GIB, 1),
        |c| c.storage.journal_bytes_max,
        [
            "The most disk that the journal takes, shared by the shards; each has room for 4 files at least.",
            "From half of it on producers are slowed down, at the bound they are refused until the disk catches up.",
        ]
    ),
    key!(
        "storage.open_files_max",
        count("a number", 64, 1_000_000),
        |c| c.storage.open_files_max,
        [
            "Files of partitions that are kept open, shared by the shards. More partitions than that work: files are",
            "closed and opened again as needed.",
        ]
    ),
    key!(
        "storage.compaction_bytes_per_second",
        size(MIB, 1024 * GIB, 1),
        |c| c.storage.compaction_bytes_per_second,
        ["How fast the compaction of topics may read and write, shared by the shards.",]
    ),
    key!(
        "kafka.auto_create_topics",
        Flag,
        |c| c.kafka.auto_create_topics,
        ["Whether a topic is created when a client first asks for it.",]
    ),
    key!(
        "kafka.routing",
        words::<Routing>(),
        |c| c.kafka.routing,
        [
            "`node`: one address for the node. `core`: every shard listens on a port of its own and clients connect",
            "straight to the core that owns a partition.",
        ]
    ),
    key!(
        "kafka.core_port_first",
        count("a port", 1, 65_535 - SHARDS_MAX),
        |c| c.kafka.core_port_first,
        ["With `routing: core`, shard 0 listens on this port, shard 1 on the next, and so on.",]
    ),
    key!(
        "kafka.request_bytes_max",
        size(64 * KIB, GIB, 1),
        |c| c.kafka.request_bytes_max,
        ["The largest request. A connection that announces a longer one is closed.",]
    ),
    key!(
        "kafka.fetch_bytes_max",
        size(KIB, GIB, 1),
        |c| c.kafka.fetch_bytes_max,
        ["The most record bytes in one answer to a fetch; a single larger batch is answered whole.",]
    ),
    key!(
        "kafka.connections_max",
        count("a number", 1, 1_000_000),
        |c| c.kafka.connections_max,
        ["Connections per shard. Further ones are closed at once.",]
    ),
    key!(
        "kafka.connection_idle_ms",
        ms(1_000, 7 * 86_400_000),
        |c| c.kafka.connection_idle,
        ["A connection on which no byte moved for so long, in either direction, is closed.",]
    ),
    key!(
        "kafka.unsent_bytes_max",
        size(64 * KIB, GIB, 1),
        |c| c.kafka.unsent_bytes_max,
        [
            "Answers that may wait in one connection for a slow reader. At the bound its requests are no longer read.",
        ]
    ),
    key!(
        "admin.addr",
        Or("none", Addr),
        |c| c.admin.addr,
        ["IP address and port of /metrics, /healthz and /readyz. `none` switches them off.",]
    ),
    key!("log.format", words::<LogFormat>(), |c| c.log.format, ["`human` or `json` (one object per line)."]),
    key!(
        "log.level",
        LogLevel,
        |c| c.log.level,
        [
            "error, warn, info, debug, trace or off; or per module, such as `info,highwater::kafka=debug`.",
            "The variable RUST_LOG sets it too.",
        ]
    ),
];

impl Words for Profile {
    const ALL: &'static [(&'static str, Self)] =
        &[("latency", Self::Latency), ("throughput", Self::Throughput), ("dev", Self::Dev)];
}

impl Words for Durability {
    const ALL: &'static [(&'static str, Self)] = &[("fsync", Self::Fsync), ("replicated", Self::Replicated)];
}

impl Words for Strategy {
    const ALL: &'static [(&'static str, Self)] = &[
        ("round_robin", Self::RoundRobin),
        ("least_loaded", Self::LeastLoaded),
        ("consistent_hash", Self::ConsistentHash),
    ];
}

impl Words for CleanupPolicy {
    const ALL: &'static [(&'static str, Self)] =
        &[("delete", Self::Delete), ("compact", Self::Compact), ("compact,delete", Self::CompactAndDelete)];
}

impl Words for OnDamage {
    const ALL: &'static [(&'static str, Self)] = &[("stop", Self::Refuse), ("truncate", Self::Truncate)];
}

impl Words for Routing {
    const ALL: &'static [(&'static str, Self)] = &[("node", Self::Node), ("core", Self::Core)];
}

impl Words for LogFormat {
    const ALL: &'static [(&'static str, Self)] = &[("human", Self::Human), ("json", Self::Json)];
}

/// The file of a profile. Its keys take the place of defaults.
pub fn profile_text(profile: Profile) -> &'static str {
    match profile {
        Profile::Latency => include_str!("../../tuning/latency.yaml"),
        Profile::Throughput => include_str!("../../tuning/throughput.yaml"),
        Profile::Dev => include_str!("../../tuning/dev.yaml"),
    }
}

/// Seeds all become voters, and more of those only make agreement slower.
const SEEDS_MAX: usize = 9;
const SEEDS_MAX_U32: u32 = SEEDS_MAX as u32;

impl Words for Mode {
    const ALL: &'static [(&'static str, Self)] =
        &[("standalone", Self::Standalone), ("cluster", Self::Cluster)];
}

/// Words that say what a node may become, each at most once.
struct RolesShape;

const VOTER: &str = "voter";
const LEADER: &str = "leader-eligible";
const REPLICA: &str = "replica-eligible";

impl Shape for RolesShape {
    type Value = Roles;

    fn expected(&self) -> String {
        format!("a list with one or more of {VOTER}, {REPLICA}, and {LEADER} (which needs {REPLICA} too)")
    }

    fn read(&self, raw: &Raw) -> Option<Roles> {
        let mut roles = Roles { voter: false, leader: false, replica: false };
        for word in raw.items()? {
            let role = match word {
                VOTER => &mut roles.voter,
                LEADER => &mut roles.leader,
                REPLICA => &mut roles.replica,
                _ => return None,
            };
            if std::mem::replace(role, true) {
                return None;
            }
        }
        (roles.voter || roles.replica).then_some(roles).filter(|roles| roles.replica || !roles.leader)
    }

    fn show(&self, value: &Roles) -> String {
        let words = [(value.voter, VOTER), (value.leader, LEADER), (value.replica, REPLICA)];
        let words: Vec<&str> = words.iter().filter(|(set, _)| *set).map(|(_, word)| *word).collect();
        format!("[{}]", words.join(", "))
    }
}

/// The secret of the cluster: read, never shown.
struct SecretText;

impl Shape for SecretText {
    type Value = Secret;

    fn expected(&self) -> String {
        format!("a text of {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes")
    }

    fn read(&self, raw: &Raw) -> Option<Secret> {
        // What `show` writes is too short to be taken for a secret.
        Secret::new(raw.text()?.as_bytes())
    }

    fn show(&self, _: &Secret) -> String {
        SECRET_HIDDEN.into()
    }
}

/// Stands in everything printed where the secret is.
const SECRET_HIDDEN: &str = "(hidden)";

/// Whether a value given for `path` must not be repeated; a misspelt key counts too.
pub fn is_secret(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    (path.starts_with("security") || path.contains("secr")) && !path.ends_with("_file")
}

/// A level for everything, or for modules by name.
struct LogLevel;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

impl Shape for LogLevel {
    type Value = String;

    fn expected(&self) -> String {
        "error, warn, info, debug, trace or off, or pairs such as `info,highwater::kafka=debug`".into()
    }

    fn read(&self, raw: &Raw) -> Option<String> {
        let Raw::Text(text) = raw else { return None };
        let level = |text: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(text));
        let target = |text: &str| {
            !text.is_empty()
                && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-'))
        };
        let valid = |part: &str| match part.split_once('=') {
            Some((name, value)) => target(name) && level(value),
            None => level(part),
        };
        let text = text.trim();
        (text.len() <= 1024 && text.split(',').all(|part| valid(part.trim()))).then(|| text.replace(' ', ""))
    }

    fn show(&self, value: &String) -> String {
        quote(value)
    }
}
