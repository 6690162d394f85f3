//! What one run of a cluster is made of: sizes, speeds, times and faults, drawn from its seed.

use std::ops::Range;
use std::time::Duration;

use highwater_shards::mail::Durability;

use crate::disk::DiskConfig;
use crate::features::features;
use crate::rng::Rng;

/// Everything that shapes a run besides the code under test.
#[derive(Clone, Debug)]
pub struct Config {
    pub seed: u64,
    pub nodes: usize,
    /// Of each node.
    pub shards: Vec<u16>,
    pub topics: Vec<Topic>,
    pub producers: u32,
    pub consumers: u32,
    /// Batches that each producer makes before the faults end.
    pub batches: u32,
    /// How long the cluster is left alone at first, at least.
    pub peace: Duration,
    /// How long the faults last, in virtual time.
    pub duration: Duration,
    /// Between two faults.
    pub fault_every: Range<Duration>,
    /// How long a pause, a cut or a disk's bad day lasts, and how long a node is down.
    pub fault_lasts: Range<Duration>,
    /// Between two times that a node is relieved of all that it leads, where that goes on all the time.
    pub relieve_every: Option<Range<Duration>>,
    /// Three kinds of faults, or more, each time.
    pub storm: bool,
    pub disk: DiskConfig,
    pub slow_factor: u32,
    /// From one shard to another of a node, and between its control core and its shards.
    pub mail: Range<Duration>,
    /// Between nodes, and between clients and nodes, one way.
    pub net: Range<Duration>,
    /// What shards of different nodes send to each other, one way.
    pub streams: Range<Duration>,
    /// From an input's arrival to the turn of the loop that takes it.
    pub wake: Range<Duration>,
    /// What the kernels hold of one connection in one direction, in bytes.
    pub socket_bytes: usize,
    /// How long an end of a connection waits for one that is silent.
    pub silence: Range<Duration>,
    /// A node that the controller has not heard for so long is fenced.
    pub session: Duration,
    pub lag_max: Duration,
    /// How long clients go by what they know of leaders.
    pub view_lasts: Range<Duration>,
    pub file_bytes: u64,
    pub batch_bytes_max: u32,
    pub flush_interval: Duration,
    pub value_max: u32,
    pub batch_records_max: u32,
    pub features: Features,
}

/// A topic, made when the cluster begins.
#[derive(Clone, Copy, Debug)]
pub struct Topic {
    pub partitions: u32,
    pub replicas: usize,
    pub isr_min: u32,
    pub durability: Durability,
}

features! {
    /// A process dies, its disk stays as it is.
    kill,
    /// A node loses power.
    power_loss,
    /// All nodes lose power at once.
    blackout,
    /// An operator stops a node.
    clean_stop,
    /// A node does not run while time passes.
    pause,
    /// One shard's core is taken away for a moment.
    stall,
    /// Nothing comes from one node to another.
    cut_one_way,
    cut_both_ways,
    /// A node hears nobody, or is not heard by anybody, or both.
    isolate,
    /// A node and the controller do not hear each other, one way or both.
    cut_control,
    /// Connections break.
    broken_links,
    /// What one node sends to another takes long, or what all nodes send to each other.
    slow_links,
    slow_disk,
    full_disk,
    /// A write or a read fails, which ends the process.
    disk_errors,
    /// The controller changes.
    controllers,
    /// An operator moves replicas, or wants preferred leaders to lead.
    moves,
    /// Clients go away in the middle of a request.
    disconnects,
    /// Clients ask nodes that do not lead.
    lost_clients,
    /// Clients do not know at once who leads.
    late_clients,
    acks_leader,
    /// Producers that send each batch once.
    plain_producers,
    /// Topics that are acknowledged from memory.
    replicated,
    small_files,
    /// Consumers read from any replica.
    follower_reads,
    /// Little credit for what replicates, little room for what is unsent.
    small_windows,
}

impl Config {
    /// Odd seeds are swarms: a random mixture of features, so that some show what others hide.
    pub fn of_seed(seed: u64) -> Self {
        let all = seed.is_multiple_of(2);
        let features =
            if all { Features::ALL } else { Features::swarm(&mut Rng::new(seed, "cluster features", 0)) };
        Self::with(seed, features)
    }

    pub fn with(seed: u64, features: Features) -> Self {
        let mut r = Rng::new(seed, "cluster config", 0);
        let r = &mut r;
        let small = |r: &mut Rng, range: Range<u64>| u32::try_from(r.range(range)).expect("small");
        let (us, ms) = (Duration::from_micros, Duration::from_millis);
        let nodes = *r.pick(&[2, 3, 3, 3, 3, 4, 5]);
        let shards = (0..nodes).map(|_| *r.pick(&[1, 1, 2, 3])).collect();
        // With `Replicated`, fewer nodes than the minimum of in-sync replicas may lose what they had not flushed at
        // once: the topics of such a run have as many replicas as there are nodes.
        let replicated = features.replicated && r.chance(300);
        let topic = |r: &mut Rng| {
            let replicas = if r.chance(700) { nodes.min(3) } else { 1 + r.index(nodes.min(3)) };
            let isr_min = if replicas > 1 && r.chance(700) { 2 } else { 1 };
            let durable = !replicated || isr_min < 2 || r.flip();
            let durability = if durable { Durability::Fsync } else { Durability::Replicated };
            Topic { partitions: small(r, 1..6), replicas, isr_min, durability }
        };
        let topics = (0..r.range(1..3)).map(|_| topic(r)).collect();
        let speed = if r.chance(800) { 1 } else { 8 };
        let file_kib = if features.small_files { *r.pick(&[64, 128, 256]) } else { 1024 };
        let lasts = ms(r.range(120..1500));
        // Of a leader's lease, about: time runs at the pace of the control planes, which know no millisecond.
        let session = ms(r.range(60..300));
        Self {
            seed,
            nodes,
            shards,
            topics,
            producers: small(r, 1..4),
            consumers: small(r, 1..3),
            batches: small(r, 20..120),
            peace: ms(1000),
            duration: ms(r.range(1200..7200)),
            fault_every: ms(12)..ms(r.range(120..900)),
            fault_lasts: ms(6)..lasts,
            relieve_every: (features.moves && r.chance(300)).then(|| ms(5)..ms(r.range(20..200))),
            storm: r.chance(150),
            disk: DiskConfig {
                write: us(20 * speed)..us(150 * speed),
                sync: us(80 * speed)..us(400 * speed),
                read: us(10 * speed)..us(100 * speed),
                prepare: us(300 * speed)..us(3000 * speed),
            },
            slow_factor: small(r, 3..20),
            mail: us(0)..us(r.range(1..100)),
            net: us(10)..us(r.range(30..1500)),
            streams: us(10)..us(if r.chance(400) { r.range(2000..25_000) } else { r.range(30..1500) }),
            wake: us(0)..us(r.range(2..60)),
            socket_bytes: *r.pick(&[1024, 8 * 1024, 64 * 1024]),
            silence: ms(60)..ms(r.range(120..1200)),
            session,
            // A leader that does not know yet that it is none serves at most for a session: no one who has outlasted it
            // may be left behind before.
            view_lasts: ms(1)..ms(r.range(10..400)),
            lag_max: session * 5 / 4 + ms(r.range(0..300)),
            file_bytes: file_kib * 1024,
            batch_bytes_max: u32::try_from(file_kib * 1024 / 4).expect("small"),
            flush_interval: ms(r.range(1..30)),
            value_max: *r.pick(&[16, 100, 1000, 6000]),
            batch_records_max: *r.pick(&[1, 3, 10]),
            features,
        }
    }

    /// Whether nodes that lose what they had not flushed must be few at a time.
    pub fn is_frugal(&self) -> bool {
        self.topics.iter().any(|t| t.durability == Durability::Replicated)
    }
}
