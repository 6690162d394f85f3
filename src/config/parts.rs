//! What the parts of a node take of the configuration, in their own types and bounds.
//!
//! Pure. Every configuration that `load` accepts makes parts that accept it: that is what the bounds of the keys and
//! `contradictions` are for, and the tests here hold it.

use std::time::Duration;

use highwater_shards::ids::ShardId;
use highwater_shards::log::journal::JournalConfig;
use highwater_shards::log::storage::StorageConfig;
use highwater_shards::mail::Durability;
use highwater_shards::shard::ReplicationConfig;

use super::shape::Words as _;
use super::{Config, JOURNAL_FILES_MIN, Storage};
use crate::control::metadata::topic_config::{BATCH_BYTES_LIMIT, TopicDefaults};

/// What a journal file holds beside its largest batch, generously.
const FILE_OVERHEAD_BYTES: u64 = 64 << 10;

/// Spare journal files beside those that a checkpoint was due for: what was written while it was made.
const SPARE_FILES_MORE: u64 = 2;

impl Storage {
    /// The largest batch that any topic can be set to take: it fits one journal file.
    pub fn batch_bytes_max(&self) -> u32 {
        let by_file = self.journal_file_bytes.saturating_sub(FILE_OVERHEAD_BYTES);
        u32::try_from(by_file).map_or(BATCH_BYTES_LIMIT, |by_file| by_file.min(BATCH_BYTES_LIMIT))
    }

    /// The journal of one shard. `new_journal` is any number that clients cannot guess.
    pub fn journal(&self, shard: ShardId, new_journal: u64) -> JournalConfig {
        JournalConfig {
            file_bytes: self.journal_file_bytes,
            batch_bytes_max: self.batch_bytes_max() as usize,
            flush_interval: self.flush_interval,
            on_damage: self.recovery,
            ..JournalConfig::new(shard, new_journal)
        }
    }

    /// The log of one of so many shards. `new_journal` as for [`Self::journal`].
    pub fn of_shard(&self, shard: ShardId, shards: usize, new_journal: u64) -> StorageConfig {
        let tail_bytes = self.tail_bytes_of_shard(shards) as u64;
        let checkpoint_bytes = self.checkpoint_bytes_of_shard(shards);
        let mut journal = self.journal(shard, new_journal);
        // All that a checkpoint releases is used again: a file that is removed and made anew is zeroed first, which is
        // up to half of the journal's writes once more.
        let files = checkpoint_bytes.div_ceil(self.journal_file_bytes) + SPARE_FILES_MORE;
        journal.spare_files_max = usize::try_from(files).unwrap_or(usize::MAX);
        StorageConfig {
            tail_bytes_max: tail_bytes,
            // What was not moved cannot leave memory, so it stays within the memory for recent records.
            unmoved_bytes_soft: tail_bytes / 2,
            unmoved_bytes_max: tail_bytes.max(2 * u64::from(self.batch_bytes_max())),
            checkpoint_bytes,
            journal_bytes_max: self.journal_bytes_max_of_shard(shards),
            compaction_bytes_per_second: self.compaction_bytes_per_second_of_shard(shards),
            ..StorageConfig::new(journal)
        }
    }

    /// One shard's share of the memory for recent records.
    pub fn tail_bytes_of_shard(&self, shards: usize) -> usize {
        usize::try_from(self.tail_bytes).unwrap_or(usize::MAX) / shards.max(1)
    }

    /// The most bytes of one shard's journal files: its share, but room for [`JOURNAL_FILES_MIN`] files.
    pub fn journal_bytes_max_of_shard(&self, shards: usize) -> u64 {
        share(self.journal_bytes_max, shards).max(self.journal_file_bytes * JOURNAL_FILES_MIN)
    }

    /// Journal bytes of one shard from which on its producers are slowed down.
    pub fn journal_bytes_soft_of_shard(&self, shards: usize) -> u64 {
        self.journal_bytes_max_of_shard(shards) / 2
    }

    /// Journal bytes of one shard after which it makes a checkpoint: at least one file, as nothing less is released,
    /// and at most half of the bytes that slow producers down, so that a checkpoint has time to end.
    pub fn checkpoint_bytes_of_shard(&self, shards: usize) -> u64 {
        let soft = self.journal_bytes_soft_of_shard(shards);
        share(self.checkpoint_bytes, shards).clamp(self.journal_file_bytes, soft / 2)
    }

    /// Partition files that one shard keeps open: at least 16.
    pub fn open_files_max_of_shard(&self, shards: usize) -> usize {
        usize::try_from(self.open_files_max).unwrap_or(usize::MAX).div_ceil(shards.max(1)).max(16)
    }

    /// Bytes that one shard's compaction may read and write in a second: at least 64 KiB.
    pub fn compaction_bytes_per_second_of_shard(&self, shards: usize) -> u64 {
        share(self.compaction_bytes_per_second, shards).max(64 << 10)
    }
}

fn share(of_node: u64, shards: usize) -> u64 {
    of_node / u64::try_from(shards.max(1)).unwrap_or(u64::MAX)
}

impl Config {
    /// The replication of one of so many shards. `seed` is any number.
    pub fn replication_of_shard(&self, shards: usize, seed: u64) -> ReplicationConfig {
        let own = &self.cluster.replication;
        ReplicationConfig {
            lag_max: own.lag_max,
            stream_credit_bytes: u32::try_from(own.stream_credit_bytes).unwrap_or(u32::MAX),
            catch_up_bytes_per_second: own
                .catch_up_bytes_per_second
                .map(|all| share(all, shards).max(64 << 10)),
            seed,
            ..ReplicationConfig::default()
        }
    }

    /// What a topic gets when its creator says nothing else, in Kafka's names.
    pub fn topic_defaults(&self) -> TopicDefaults {
        let own = &self.cluster.topic_defaults;
        let mut defaults = TopicDefaults::default();
        defaults.partitions = own.partitions;
        defaults.batch_bytes_limit = self.storage.batch_bytes_max();
        let durability = match own.durability {
            Durability::Fsync => "fsync",
            Durability::Replicated => "replicated",
        };
        let millis = |time: Duration| time.as_millis().to_string();
        let unbounded = || "-1".to_owned();
        for (name, value) in [
            ("highwater.durability", durability.to_owned()),
            ("max.message.bytes", own.batch_bytes_max.to_string()),
            ("cleanup.policy", own.cleanup_policy.word().to_owned()),
            ("retention.ms", own.retention.map_or_else(unbounded, millis)),
            ("retention.bytes", own.retention_bytes.map_or_else(unbounded, |bytes| bytes.to_string())),
            ("segment.bytes", own.segment_bytes.to_string()),
            ("segment.ms", millis(own.segment_age)),
            ("delete.retention.ms", millis(own.tombstone_age)),
            ("min.compaction.lag.ms", millis(own.compaction_lag)),
            ("min.cleanable.dirty.ratio", (f64::from(own.dirty_permille) / 1000.0).to_string()),
        ] {
            defaults.set(name, &value).expect("the keys take only what the topic settings take");
        }
        defaults
    }
}

#[cfg(test)]
mod tests {
    use highwater_shards::log::journal::{Journal, JournalStart};

    use super::*;
    use crate::config::{Setting, Sources, load};
    use crate::control::metadata::image::Image;
    use crate::control::metadata::topic_config::{ConfigSource, describe_cluster};

    fn with(settings: &[(&str, &str)]) -> Option<Config> {
        let flag = |(path, value): &(&str, &str)| Setting {
            path: (*path).into(),
            value: (*value).into(),
            flag: String::new(),
        };
        load(&Sources { flags: settings.iter().map(flag).collect(), ..Sources::default() })
            .ok()
            .map(|l| l.config)
    }

    #[test]
    fn a_shard_replicates_as_its_own_defaults_say_unless_a_key_says_otherwise() {
        let replication = |settings: &[_]| with(settings).unwrap().replication_of_shard(4, 7);
        assert_eq!(replication(&[]), ReplicationConfig { seed: 7, ..ReplicationConfig::default() });
        let slow = replication(&[
            ("cluster.replication.lag_max_ms", "1500"),
            ("cluster.replication.stream_credit_bytes", "1MiB"),
            ("cluster.replication.catch_up_bytes_per_second", "40MiB"),
        ]);
        assert_eq!(slow.lag_max, Duration::from_millis(1500));
        assert_eq!(slow.stream_credit_bytes, 1 << 20);
        assert_eq!(slow.catch_up_bytes_per_second, Some(10 << 20));
        assert!(with(&[("cluster.replication.stream_credit_bytes", "2GiB")]).is_none());
    }

    #[test]
    fn what_the_configuration_accepts_the_parts_accept() {
        let mut accepted = 0;
        for file in ["1MiB", "1028KiB", "2MiB", "8MiB", "64MiB", "128MiB", "4GiB"] {
            for batch in ["1KiB", "983040", "983041", "1MiB", "4MiB", "8MiB", "100MiB"] {
                for request in ["64KiB", "100MiB", "1GiB"] {
                    let settings = [
                        ("storage.journal_file_bytes", file),
                        ("cluster.topic_defaults.batch_bytes_max", batch),
                        ("kafka.request_bytes_max", request),
                        ("storage.journal_bytes_max", "16GiB"),
                    ];
                    let Some(config) = with(&settings) else { continue };
                    accepted += 1;
                    let journal = config.storage.journal(ShardId(0), 7);
                    assert!(config.cluster.topic_defaults.batch_bytes_max <= journal.batch_bytes_max as u64);
                    Journal::new(journal, JournalStart::Begin);
                    config.topic_defaults();
                }
            }
        }
        assert!(accepted > 20, "only {accepted}: the bounds refuse what should work");
    }

    #[test]
    fn topic_settings_take_the_place_of_kafkas_defaults() {
        let keys = [
            ("cluster.topic_defaults.durability", "replicated"),
            ("cluster.topic_defaults.batch_bytes_max", "2MiB"),
            ("cluster.topic_defaults.partitions", "9"),
            ("cluster.topic_defaults.cleanup_policy", "compact,delete"),
            ("cluster.topic_defaults.retention_ms", "none"),
            ("cluster.topic_defaults.retention_bytes", "3GiB"),
            ("cluster.topic_defaults.segment_bytes", "1KiB"),
            ("cluster.topic_defaults.segment_ms", "1h"),
            ("cluster.topic_defaults.tombstone_ms", "0"),
            ("cluster.topic_defaults.compaction_lag_ms", "5min"),
            ("cluster.topic_defaults.dirty_permille", "15"),
        ];
        let mut want = TopicDefaults::default();
        want.partitions = 9;
        want.batch_bytes_limit = Config::default().storage.batch_bytes_max();
        want.set("highwater.durability", "replicated").unwrap();
        want.set("max.message.bytes", "2097152").unwrap();
        for (name, value) in [
            ("cleanup.policy", "compact,delete"),
            ("retention.ms", "-1"),
            ("retention.bytes", "3221225472"),
            ("segment.bytes", "1024"),
            ("segment.ms", "3600000"),
            ("delete.retention.ms", "0"),
            ("min.compaction.lag.ms", "300000"),
            ("min.cleanable.dirty.ratio", "0.015"),
        ] {
            want.set(name, value).unwrap();
        }
        assert_eq!(with(&keys).unwrap().topic_defaults(), want);
    }

    #[test]
    fn a_topic_without_settings_has_the_log_of_the_defaults_and_says_where_each_comes_from() {
        let sources = |config: &Config| -> Vec<_> {
            let given = describe_cluster(&Image::default(), &config.topic_defaults()).into_iter();
            given.filter(|entry| entry.source != ConfigSource::Default).map(|e| (e.name, e.source)).collect()
        };
        assert_eq!(sources(&Config::default()), [("max.message.bytes", ConfigSource::File)]);
        let config = with(&[("cluster.topic_defaults.retention_ms", "1h")]).unwrap();
        let want = [("max.message.bytes", ConfigSource::File), ("retention.ms", ConfigSource::File)];
        assert_eq!(sources(&config), want);
    }

    #[test]
    fn the_journal_is_shared_by_the_shards_and_each_has_room_for_its_files() {
        const MIB: u64 = 1 << 20;
        let storage = Config::default().storage;
        assert_eq!(storage.journal_bytes_max_of_shard(1), 2048 * MIB);
        assert_eq!(storage.journal_bytes_max_of_shard(4), 512 * MIB);
        assert_eq!(storage.journal_bytes_max_of_shard(100), 256 * MIB, "four files");
        assert_eq!(storage.journal_bytes_soft_of_shard(4), 256 * MIB);
        assert_eq!(storage.checkpoint_bytes_of_shard(2), 256 * MIB);
        assert_eq!(storage.checkpoint_bytes_of_shard(100), 64 * MIB, "one file");
        assert_eq!((storage.open_files_max_of_shard(4), storage.open_files_max_of_shard(4000)), (4096, 16));
        assert_eq!(storage.compaction_bytes_per_second_of_shard(4), 16 * MIB);
    }

    #[test]
    fn journal_bounds_that_cannot_work_are_refused() {
        let refused = |settings: &[(&str, &str)]| with(settings).is_none();
        let (max, file, checkpoint) =
            ("storage.journal_bytes_max", "storage.journal_file_bytes", "storage.checkpoint_bytes");
        assert!(refused(&[(max, "255MiB"), (checkpoint, "1MiB")]), "less than four files");
        assert!(!refused(&[(max, "256MiB"), (checkpoint, "64MiB")]));
        assert!(refused(&[(file, "1GiB")]), "the bound must grow with the files");
        assert!(refused(&[(checkpoint, "513MiB")]), "producers are slowed down before a checkpoint ends");
        assert!(!refused(&[(checkpoint, "512MiB")]));
    }

    #[test]
    fn shards_share_the_tail() {
        let config = Config::default();
        assert_eq!(config.storage.tail_bytes_of_shard(4), 64 << 20);
        assert_eq!(config.storage.tail_bytes_of_shard(0), 256 << 20);
    }
}
