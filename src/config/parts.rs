//! What the parts of a node take of the configuration, in their own types and bounds.
//!
//! Pure. Every configuration that `load` accepts makes parts that accept it: that is what the bounds of the keys and
//! `contradictions` are for, and the tests here hold it.

use highwater_shards::ids::ShardId;
use highwater_shards::log::journal::JournalConfig;
use highwater_shards::mail::Durability;

use super::{Config, JOURNAL_FILES_MIN, Storage};
use crate::control::metadata::topic_config::{BATCH_BYTES_LIMIT, TopicDefaults};

/// What a journal file holds beside its largest batch, generously.
const FILE_OVERHEAD_BYTES: u64 = 64 << 10;

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
        for (name, value) in
            [("highwater.durability", durability), ("max.message.bytes", &own.batch_bytes_max.to_string())]
        {
            defaults.set(name, value).expect("the keys take only what the topic settings take");
        }
        defaults
    }
}

#[cfg(test)]
mod tests {
    use highwater_shards::log::journal::{Journal, JournalStart};

    use super::*;
    use crate::config::{Setting, Sources, load};

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
    fn what_the_configuration_accepts_the_parts_accept() {
        let mut accepted = 0;
        for file in ["1MiB", "1028KiB", "2MiB", "8MiB", "64MiB", "128MiB", "4GiB"] {
            for batch in ["1KiB", "983040", "983041", "1MiB", "4MiB", "8MiB", "100MiB"] {
                for request in ["64KiB", "100MiB", "1GiB"] {
                    let settings = [
                        ("storage.journal_file_bytes", file),
                        ("cluster.topic_defaults.batch_bytes_max", batch),
                        ("kafka.request_bytes_max", request),
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
        ];
        let mut want = TopicDefaults::default();
        want.partitions = 9;
        want.batch_bytes_limit = Config::default().storage.batch_bytes_max();
        want.set("highwater.durability", "replicated").unwrap();
        want.set("max.message.bytes", "2097152").unwrap();
        assert_eq!(with(&keys).unwrap().topic_defaults(), want);
    }

    #[test]
    fn shards_share_the_tail() {
        let config = Config::default();
        assert_eq!(config.storage.tail_bytes_of_shard(4), 64 << 20);
        assert_eq!(config.storage.tail_bytes_of_shard(0), 256 << 20);
    }
}
