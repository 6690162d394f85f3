//! What one run is made of: sizes, speeds and faults, drawn from its seed.

use std::ops::Range;
use std::time::Duration;

use crate::disk::{Crash, DiskConfig};
use crate::faults::Fault;
use crate::features::features;
use crate::rng::Rng;

/// How long a shard's core may be away.
pub const STALL_MAX: Duration = Duration::from_millis(30);

/// Everything that shapes a run besides the code under test.
#[derive(Clone, Debug)]
pub struct Config {
    pub seed: u64,
    pub shards: u16,
    pub topics: u32,
    pub partitions_per_topic: u32,
    pub producers: u32,
    pub consumers: u32,
    /// Batches that each producer makes before the faults end.
    pub batches: u32,
    /// How long the faults last, in virtual time.
    pub duration: Duration,
    /// Between two faults of the node.
    pub fault_every: Range<Duration>,
    pub disk: DiskConfig,
    /// How long a slow disk's operations take, as a multiple.
    pub slow_factor: u32,
    /// From one shard to another, and between the control core and a shard.
    pub mail: Range<Duration>,
    /// Between a client and its shard, one way.
    pub net: Range<Duration>,
    /// From an input's arrival to the turn of the loop that takes it.
    pub wake: Range<Duration>,
    /// What the kernel holds for a client that does not read, in bytes.
    pub socket_bytes: usize,
    /// Of a journal file.
    pub file_bytes: u64,
    /// Of one batch; a topic setting.
    pub batch_bytes_max: u32,
    /// Of `durability: replicated`.
    pub flush_interval: Duration,
    /// Record values are up to so many bytes.
    pub value_max: u32,
    pub batch_records_max: u32,
    pub features: Features,
    /// Faults of a directed run, besides those that the features allow.
    pub script: Vec<(Duration, Fault)>,
    /// The node ends when so many inputs and outputs were counted.
    pub crash_at: Option<(u64, Crash)>,
    /// At the end of each life one bit that was durable flips.
    pub rot: bool,
}

features! {
    /// The power goes.
    power_loss,
    /// The process dies, the disk stays.
    kill,
    /// The node is stopped as an operator does.
    clean_stop,
    slow_disk,
    /// New journal files find no room.
    disk_full,
    /// A write, a flush or a read fails.
    disk_errors,
    /// Clients go away in the middle of a request.
    disconnects,
    /// Clients stop reading for a while.
    paused_clients,
    /// Batches that a broker must refuse.
    damaged_batches,
    /// Several batches in one append.
    multi_batches,
    idempotent,
    acks_none,
    acks_leader,
    replicated,
    /// Topics come and go.
    topics,
    /// The leader epoch grows without another change.
    epochs,
    /// The partition has no leader for a while.
    leaderless,
    /// Too few in-sync replicas for a while.
    isr_min,
    /// Another replica, which never answers, is in the ISR for a while.
    isr_wide,
    /// Old changes of the metadata arrive again.
    stale_deltas,
    /// A shard's core is taken away for a while.
    stalls,
    /// Tiny journal files.
    small_files,
}

impl Config {
    /// The longest that it takes until the answer to a read that need not wait has arrived, with so many bytes.
    pub fn read_max(&self, bytes: usize) -> Duration {
        // Everything takes up to ten times as long as usual, now and then.
        let longest = |range: &Range<Duration>| range.end * 10;
        let may_be_slow = self.features.slow_disk || self.script.iter().any(|f| f.1 == Fault::SlowDisk);
        let slow = if may_be_slow { self.slow_factor } else { 1 };
        let pieces = u32::try_from(bytes / self.socket_bytes).unwrap_or(u32::MAX) + 1;
        let stall = if self.features.stalls { STALL_MAX * 3 } else { Duration::ZERO };
        // There, a watch that ends, a second read, and back; each hop ends with a wait for the core.
        let hops = (longest(&self.mail) + longest(&self.wake)) * 6 + longest(&self.wake) * pieces;
        hops + longest(&self.net) * (pieces + 1) + longest(&self.disk.read) * 2 * slow + stall
    }
}

impl Config {
    /// The mixture that a seed stands for: every feature is on.
    pub fn of_seed(seed: u64) -> Self {
        Self::with(seed, Features::ALL)
    }

    /// A random mixture of features; what some of them hide, others show.
    pub fn swarm(seed: u64) -> Self {
        Self::with(seed, Features::swarm(&mut Rng::new(seed, "features", 0)))
    }

    pub fn with(seed: u64, features: Features) -> Self {
        let mut r = Rng::new(seed, "config", 0);
        let small = |r: &mut Rng, range: Range<u64>| u32::try_from(r.range(range)).expect("small");
        let us = Duration::from_micros;
        let fast_disk = r.chance(700);
        let speed = if fast_disk { 1 } else { 10 };
        let file_kib = if features.small_files { *r.pick(&[64, 128, 256]) } else { 1024 };
        Self {
            seed,
            shards: u16::try_from(r.range(1..4)).expect("small"),
            topics: small(&mut r, 1..4),
            partitions_per_topic: small(&mut r, 1..4),
            producers: small(&mut r, 1..5),
            consumers: small(&mut r, 1..4),
            batches: small(&mut r, 20..200),
            duration: Duration::from_millis(r.range(100..1200)),
            fault_every: Duration::from_millis(2)..Duration::from_millis(r.range(20..100)),
            disk: DiskConfig {
                write: us(20 * speed)..us(150 * speed),
                sync: us(80 * speed)..us(400 * speed),
                read: us(10 * speed)..us(100 * speed),
                prepare: us(300 * speed)..us(3000 * speed),
            },
            slow_factor: small(&mut r, 3..20),
            mail: us(0)..us(r.range(1..100)),
            net: us(5)..us(r.range(20..300)),
            wake: us(0)..us(r.range(2..60)),
            socket_bytes: *r.pick(&[1024, 8 * 1024, 64 * 1024]),
            file_bytes: u64::from(file_kib) * 1024,
            batch_bytes_max: file_kib * 1024 / 4,
            flush_interval: Duration::from_millis(r.range(1..30)),
            value_max: *r.pick(&[16, 100, 1000, 6000]),
            batch_records_max: *r.pick(&[1, 3, 10]),
            features,
            script: Vec::new(),
            crash_at: None,
            rot: false,
        }
    }
}
