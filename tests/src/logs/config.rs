//! What a run of one shard's log is made of, drawn from its seed: small bounds, so that each is met often.

use std::time::Duration;

use highwater_shards::ids::ShardId;
use highwater_shards::log::journal::JournalConfig;
use highwater_shards::log::storage::StorageConfig;
use highwater_shards::mail::LogConfig;

use crate::disk::DiskConfig;
use crate::rng::Rng;

/// The wall clock when a run begins, in ms since the epoch.
pub const WALL_MS: i64 = 1_700_000_000_000;

/// How often each kind of action is taken, in relation to the others. A swarm leaves some out.
#[derive(Clone, Copy, Debug)]
pub struct Weights {
    pub append: u32,
    pub truncate: u32,
    pub start: u32,
    pub drop_log: u32,
    pub configure: u32,
    pub read: u32,
    pub find: u32,
    pub high_watermark: u32,
    pub jump: u32,
    pub fault: u32,
}

impl Weights {
    pub fn sum(&self) -> u32 {
        self.append
            + self.truncate
            + self.start
            + self.drop_log
            + self.configure
            + self.read
            + self.find
            + self.high_watermark
            + self.jump
            + self.fault
    }
}

#[derive(Clone, Debug)]
pub struct Config {
    pub seed: u64,
    pub partitions: u64,
    pub lives: u32,
    /// Actions of one life.
    pub actions: u64,
    pub disk: DiskConfig,
    pub weights: Weights,
    pub batch_bytes_max: u32,
    pub keys: u32,
    /// Of the values, mostly.
    pub value_max: u32,
    /// Logs are compacted, in thousandths.
    pub compacted: u32,
    /// Between two actions.
    pub pause: Duration,
    /// Of a jump in time.
    pub jump: Duration,
    /// A power loss rather than a killed process, in thousandths.
    pub power: u32,
    /// Lives that end with a stop rather than a crash, in thousandths.
    pub stops: u32,
    /// Starts at which the checkpoint is missing or damaged, in thousandths.
    pub lost_checkpoints: u32,
    /// Reads of segments that a wrong bit comes back with, in thousandths.
    pub wrong_reads: u32,
    /// A bit of a file flips before the last start.
    pub rots: bool,
    /// Before the end, small batches are appended one by one until the journal has been filled over and over.
    pub fills: bool,
}

impl Config {
    pub fn of_seed(seed: u64) -> Self {
        let mut r = Rng::new(seed, "log config", 0);
        let small = |r: &mut Rng, range: std::ops::Range<u64>| u32::try_from(r.range(range)).expect("small");
        let us = Duration::from_micros;
        let speed = *r.pick(&[1, 1, 1, 10]);
        let times = |r: &mut Rng, usual: u32| usual * r.pick(&[0, 1, 1, 1, 3]);
        let few = |r: &mut Rng, per_mille: u32| if r.chance(300) { per_mille } else { 0 };
        Self {
            seed,
            partitions: *r.pick(&[1, 1, 2, 3, 5, 8, 12]),
            lives: small(&mut r, 2..6),
            actions: r.range(20..140),
            disk: DiskConfig {
                write: us(10 * speed)..us(100 * speed),
                sync: us(50 * speed)..us(300 * speed),
                read: us(10 * speed)..us(80 * speed),
                prepare: us(100 * speed)..us(600 * speed),
            },
            weights: Weights {
                append: 60 * r.pick(&[1, 1, 2]),
                truncate: times(&mut r, 5),
                start: times(&mut r, 3),
                drop_log: times(&mut r, 1),
                configure: times(&mut r, 2),
                read: times(&mut r, 15),
                find: times(&mut r, 4),
                high_watermark: 12,
                jump: times(&mut r, 5),
                fault: times(&mut r, 1),
            },
            batch_bytes_max: *r.pick(&[3000, 3000, 9000]),
            keys: *r.pick(&[1, 3, 20]),
            value_max: *r.pick(&[10, 60, 400, 2000, 8000]),
            compacted: *r.pick(&[0, 0, 300, 1000]),
            pause: us(*r.pick(&[1, 50, 400, 3000])),
            jump: Duration::from_millis(*r.pick(&[10, 1000, 60_000, 3_600_000])),
            power: *r.pick(&[0, 600, 600, 1000]),
            stops: *r.pick(&[0, 150, 150, 600]),
            lost_checkpoints: few(&mut r, 300),
            wrong_reads: few(&mut r, 60),
            rots: r.chance(150),
            fills: r.chance(100),
        }
    }

    /// The bounds with which one life of the shard starts. They may differ from those of the life before.
    pub fn storage(&self, life: u32) -> StorageConfig {
        let mut r = Rng::new(self.seed, "storage config", u64::from(life));
        const KIB: u64 = 1024;
        let batch = u64::from(self.batch_bytes_max);
        // A file holds its header, and a chunk with the largest batch.
        let least = (4096 + 4096 + batch + 200).next_multiple_of(4096);
        let mut fixed = Rng::new(self.seed, "journal files", 0);
        let file_bytes = least + 4096 * *fixed.pick(&[0, 1, 4, 12]);
        let mut journal = JournalConfig::new(ShardId(0), Rng::new(self.seed, "journal", 0).draw());
        journal.file_bytes = file_bytes;
        journal.batch_bytes_max = usize::try_from(batch).expect("small");
        journal.chunk_bytes_max = *r.pick(&[4096, 8192, 16384]);
        journal.flush_interval =
            *r.pick(&[Duration::from_micros(100), Duration::from_millis(2), Duration::from_millis(50)]);
        journal.writes_in_flight_max = *r.pick(&[1, 2, 4]);
        journal.backlog_bytes_max = *r.pick(&[16, 64, 256]) * 1024;
        journal.spare_files_max = *r.pick(&[0, 1, 3]);
        let mut config = StorageConfig::new(journal);
        config.tail_bytes_max = *r.pick(&[0, 4, 16, 64]) * KIB;
        config.unmoved_bytes_soft = *r.pick(&[8, 16, 64]) * KIB;
        // Below the soft bound nothing is moved for being too much, so a batch must fit between the two.
        config.unmoved_bytes_max = config.unmoved_bytes_soft * *r.pick(&[2, 4]) + batch;
        config.checkpoint_bytes = file_bytes * *r.pick(&[1, 2, 5]);
        config.journal_bytes_max = config.checkpoint_bytes * *r.pick(&[2, 4]) + file_bytes * 4;
        config.move_bytes = *r.pick(&[1, 2 * KIB, 8 * KIB]);
        config.moves_in_flight_max = *r.pick(&[1, 2, 8]);
        config.syncs_in_flight_max = *r.pick(&[1, 2, 8]);
        config.wall_ms_at_zero = WALL_MS;
        config.reader.read_bytes = *r.pick(&[512, 4096, 16384]);
        config.reader.read_bytes_beside_writes = config.reader.read_bytes / *r.pick(&[1, 4]);
        config.reader.ahead_bytes_max = *r.pick(&[0, 16 * 1024, 256 * 1024]);
        config.reader.index_bytes_max = *r.pick(&[0, 1024, 64 * 1024]);
        config.reader.reads_in_flight_max = *r.pick(&[1, 2, 16]);
        config.reader.waiting_max = 1000;
        config
    }

    /// The settings of one log.
    pub fn log(&self, r: &mut Rng) -> LogConfig {
        let compact = r.chance(self.compacted);
        let ms = |r: &mut Rng| {
            let most = i64::try_from(self.jump.as_millis()).expect("a jump is short");
            i64::try_from(r.below(most.cast_unsigned().max(1) * 2)).expect("short") + 1
        };
        let segment_bytes =
            u32::try_from(*r.pick(&[700_u64, 1500, 4000, 4000, 16_000, 400_000])).expect("small");
        LogConfig {
            segment_bytes,
            segment_ms: if r.flip() { ms(r) } else { i64::MAX / 4 },
            delete: !compact || r.chance(300),
            compact,
            retention_ms: r.chance(300).then(|| ms(r)),
            retention_bytes: r.chance(300).then(|| r.below(20_000)),
            compaction_lag_ms: if r.flip() { 0 } else { ms(r) },
            tombstone_ms: if r.flip() { 0 } else { ms(r) },
            dirty_permille: *r.pick(&[0, 100, 500]),
        }
    }
}
