//! The script of faults: what happens to the node from outside, and what may follow from it.

use std::time::Duration;

use highwater_shards::ids::{PartitionId, ShardId, TopicId};
use highwater_shards::shard::FatalReason;
use highwater_shards::time::Instant;

use crate::config::{Config, STALL_MAX};
use crate::control::Change;
use crate::disk::Crash;
use crate::rng::Rng;

/// Topics that there are at least and at most while topics come and go.
const TOPICS_MIN: usize = 1;
const TOPICS_MAX: usize = 6;
/// How long a slow disk's operations may still be under way after it has recovered.
const SLOW_AFTERMATH: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    Crash(Crash),
    Stop,
    SlowDisk,
    FullDisk,
    FailWrite(ShardId),
    FailRead(ShardId),
    CreateTopic,
    DeleteTopic(TopicId),
    Change(PartitionId, Change),
    StaleDelta,
    Stall(ShardId),
}

#[derive(Debug)]
pub struct Script {
    /// At which count of inputs and outputs the node ends, and how.
    crash: Option<(u64, Crash)>,
    fatal_expected: bool,
    slow: bool,
    slow_ended: Option<Instant>,
    /// New files found no room, so that what is in memory could not be flushed.
    full: bool,
    full_in_this_life: bool,
    kinds: Vec<Kind>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Power,
    Kill,
    Stop,
    SlowDisk,
    FullDisk,
    DiskError,
    Topics,
    Epoch,
    Leaderless,
    IsrMin,
    IsrWide,
    StaleDelta,
    Stall,
}

impl Script {
    pub fn new(config: &Config) -> Self {
        let f = &config.features;
        let all = [
            (f.power_loss, Kind::Power),
            (f.power_loss, Kind::Power),
            (f.kill, Kind::Kill),
            (f.clean_stop, Kind::Stop),
            (f.slow_disk, Kind::SlowDisk),
            (f.disk_full, Kind::FullDisk),
            (f.disk_errors, Kind::DiskError),
            (f.topics, Kind::Topics),
            (f.epochs, Kind::Epoch),
            (f.leaderless, Kind::Leaderless),
            (f.isr_min, Kind::IsrMin),
            (f.isr_wide, Kind::IsrWide),
            (f.stale_deltas, Kind::StaleDelta),
            (f.stalls, Kind::Stall),
        ];
        let kinds = all.into_iter().filter(|k| k.0).map(|k| k.1).collect();
        Self {
            crash: config.crash_at,
            fatal_expected: false,
            slow: false,
            slow_ended: None,
            full: false,
            full_in_this_life: false,
            kinds,
        }
    }

    pub fn draw(&self, config: &Config, rng: &mut Rng, partitions: &[PartitionId]) -> Option<Fault> {
        if self.kinds.is_empty() {
            return None;
        }
        let shard = ShardId(u16::try_from(rng.below(u64::from(config.shards))).expect("few shards"));
        let partition = (!partitions.is_empty()).then(|| *rng.pick(partitions));
        let change = |change| partition.map(|p| Fault::Change(p, change));
        match *rng.pick(&self.kinds) {
            Kind::Power => Some(Fault::Crash(Crash::Power)),
            Kind::Kill => Some(Fault::Crash(Crash::Kill)),
            Kind::Stop => Some(Fault::Stop),
            Kind::SlowDisk => Some(Fault::SlowDisk),
            Kind::FullDisk => Some(Fault::FullDisk),
            Kind::DiskError if rng.flip() => Some(Fault::FailWrite(shard)),
            Kind::DiskError => Some(Fault::FailRead(shard)),
            Kind::Topics => {
                let mut topics: Vec<_> = partitions.iter().map(|p| p.topic).collect();
                topics.dedup();
                let delete = topics.len() >= TOPICS_MAX || topics.len() > TOPICS_MIN && rng.flip();
                Some(if delete { Fault::DeleteTopic(*rng.pick(&topics)) } else { Fault::CreateTopic })
            }
            Kind::Epoch => change(Change::BumpEpoch),
            Kind::Leaderless => change(Change::LoseLeader),
            Kind::IsrMin => change(Change::RaiseIsrMin),
            Kind::IsrWide => change(Change::WidenIsr),
            Kind::StaleDelta => Some(Fault::StaleDelta),
            Kind::Stall => Some(Fault::Stall(shard)),
        }
    }

    pub fn crash_after(&mut self, events: u64, crash: Crash) {
        self.crash.get_or_insert((events, crash));
    }

    pub fn crash_is_due(&self, events: u64) -> bool {
        self.crash.is_some_and(|(at, _)| at <= events)
    }

    /// How the crash that is due is to be.
    pub fn next_crash(&mut self) -> Crash {
        self.crash.take().map_or(Crash::Power, |c| c.1)
    }

    pub fn expect_fatal(&mut self) {
        self.fatal_expected = true;
    }

    /// Whether a fault of the disk explains that the node ends itself. Nothing explains a damaged journal: a power
    /// loss takes what is not durable, and what was is never damaged.
    pub fn expects(&self, reason: &FatalReason) -> bool {
        use FatalReason as R;
        self.fatal_expected
            && matches!(
                reason,
                R::FlushFailed { .. }
                    | R::RecoveryFailed { .. }
                    | R::SegmentFailed { .. }
                    | R::FolderFailed { .. }
                    | R::CheckpointFailed { .. }
                    | R::CheckpointUnread { .. }
            )
    }

    pub fn full(&mut self, full: bool) {
        self.full = full;
        self.full_in_this_life |= full;
    }

    pub fn node_down(&mut self) {
        self.full_in_this_life = self.full;
        self.crash = None;
        self.fatal_expected = false;
    }

    pub fn slow_since(&mut self, _: Instant) {
        self.slow = true;
    }

    pub fn slow_until(&mut self, now: Instant) {
        self.slow = false;
        self.slow_ended = Some(now);
    }

    /// How long before a crash at `now` the records of a replicated topic must have been flushed: the topic's
    /// promise, and as long as disk and core may have taken for one flush behind another and a new file. Nothing is
    /// promised while the disk is full.
    pub fn flush_within(&self, config: &Config, now: Instant) -> Option<Duration> {
        if self.full_in_this_life {
            return None;
        }
        let lately_slow = self.slow_ended.is_some_and(|t| now.since(t) < SLOW_AFTERMATH);
        let factor = if self.slow || lately_slow { config.slow_factor } else { 1 };
        let flush = config.disk.flush_max(factor) * 3 + config.disk.prepare.end * 10 * factor;
        let stall = if config.features.stalls { STALL_MAX } else { Duration::ZERO };
        Some(config.flush_interval + flush + stall + config.wake.end * 40)
    }

    pub fn heal(&mut self) {
        self.crash = None;
        self.full = false;
        self.kinds.clear();
    }
}
