//! The settings of a topic: what there is, what values are allowed, and what a partition makes of them.
//!
//! Control core, pure; client sessions describe settings from here too. A setting is accepted only when this node
//! acts on it, when the value asked for is what the node does anyway, or when its `doc` says that it is only kept.

use std::collections::BTreeMap;

use highwater_shards::mail::{Durability, LogConfig, PartitionConfig};

use super::command::{SettingChange, SettingOp};
use super::image::{Image, Topic};

/// The largest record batch that a topic can be set to take anywhere, in bytes.
pub const BATCH_BYTES_LIMIT: u32 = 512 * 1024 * 1024;

const BATCH_BYTES_DEFAULT: u32 = 1024 * 1024 + 12;
const CLEANUP_POLICY: &str = "cleanup.policy";
const TOMBSTONE_MS: &str = "delete.retention.ms";
const DURABILITY: &str = "highwater.durability";
const BATCH_BYTES: &str = "max.message.bytes";
const DIRTY_RATIO: &str = "min.cleanable.dirty.ratio";
const COMPACTION_LAG_MS: &str = "min.compaction.lag.ms";
const ISR_MIN: &str = "min.insync.replicas";
const RETENTION_BYTES: &str = "retention.bytes";
const RETENTION_MS: &str = "retention.ms";
const SEGMENT_BYTES: &str = "segment.bytes";
const SEGMENT_MS: &str = "segment.ms";
const UNCLEAN: &str = "unclean.leader.election.enable";

/// What decides which replicas count: every node has to see these alike, so the defaults of a node's own config file do
/// not act. The controller proposes those of its file as defaults of the cluster, unless it has some.
pub const CLUSTER_WIDE: [&str; 3] = [DURABILITY, ISR_MIN, UNCLEAN];

/// The smallest segment that a topic can be set to have, in bytes. Kafka's tools and tests set small ones to see old
/// records go; a batch that is larger gets a segment of its own.
pub const SEGMENT_BYTES_MIN: u32 = 1024;

/// What a topic gets that says nothing itself; from the config file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TopicDefaults {
    pub partitions: u32,
    pub replication_factor: u16,
    /// The largest record batch that this node's journal and its request limit leave room for, in bytes.
    pub batch_bytes_limit: u32,
    settings: BTreeMap<String, String>,
}

impl Default for TopicDefaults {
    fn default() -> Self {
        Self {
            partitions: 4,
            replication_factor: 1,
            batch_bytes_limit: BATCH_BYTES_LIMIT,
            settings: BTreeMap::new(),
        }
    }
}

impl TopicDefaults {
    /// Puts `value` over the built-in default of the setting. One that is the built-in default counts as that.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), InvalidSetting> {
        self.check(name, value)?;
        if setting(name)?.default == value {
            self.settings.remove(name);
        } else {
            self.settings.insert(name.to_owned(), value.to_owned());
        }
        Ok(())
    }

    /// Like [`check`], and whether this node can do what the value asks for.
    pub fn check(&self, name: &str, value: &str) -> Result<(), InvalidSetting> {
        check(name, value)?;
        let limit = self.batch_bytes_limit;
        if name == BATCH_BYTES && value.parse::<u32>().is_ok_and(|bytes| bytes > limit) {
            let rule = format!("this node's journal files and request limit leave room for {limit} bytes");
            return Err(InvalidSetting::Value { name: BATCH_BYTES, value: value.to_owned(), rule });
        }
        Ok(())
    }
}

/// Why a setting is refused, in words for the user.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSetting {
    #[error("unknown topic setting '{name}'")]
    Unknown { name: String },
    #[error(
        "a node has no setting '{name}' that can change while it runs: set the default of the cluster (empty name), or use its config file"
    )]
    NotOfNode { name: String },
    #[error("topic setting '{name}' is known to Kafka but not supported here")]
    Unsupported { name: String },
    #[error("setting '{name}' cannot be '{value}': {rule}")]
    Value { name: &'static str, value: String, rule: String },
    #[error("setting '{name}' is not a list: it can be set or deleted, not appended to or subtracted from")]
    NotAList { name: &'static str },
    #[error("setting '{name}' is changed more than once in one request")]
    Twice { name: String },
}

/// Where the value of a setting comes from; the first of these that has one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConfigSource {
    Topic,
    /// Set for this node at run time.
    Node,
    /// Set for the whole cluster at run time.
    Cluster,
    /// The node's config file.
    File,
    Default,
}

/// The type of a setting's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConfigKind {
    Boolean,
    String,
    Int,
    Long,
    Double,
    List,
}

/// One setting as a client is shown it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigEntry {
    pub name: &'static str,
    pub value: String,
    pub source: ConfigSource,
    pub kind: ConfigKind,
    pub doc: &'static str,
}

/// What values a setting takes.
#[derive(Debug)]
enum Allowed {
    /// Both ends included.
    Number {
        min: i64,
        max: i64,
    },
    /// A decimal number from 0 to 1.
    Fraction,
    OneOf(&'static [&'static str]),
    /// A list of these, not empty.
    ListOf(&'static [&'static str]),
    /// What the node does anyway; `instead` says why not another value.
    Only {
        value: &'static str,
        instead: &'static str,
    },
}

#[derive(Debug)]
struct Setting {
    name: &'static str,
    kind: ConfigKind,
    default: &'static str,
    allowed: Allowed,
    doc: &'static str,
}

/// Sorted by name.
const SETTINGS: &[Setting] = &[
    Setting {
        name: CLEANUP_POLICY,
        kind: ConfigKind::List,
        default: "delete",
        allowed: Allowed::ListOf(&["compact", "delete"]),
        doc: "What happens to old records: 'delete' removes them by age and size, 'compact' keeps the last record of \
              each key, and both together do both. A compacted topic takes only records with keys.",
    },
    Setting {
        name: "compression.type",
        kind: ConfigKind::String,
        default: "producer",
        allowed: Allowed::Only {
            value: "producer",
            instead: "batches are stored as the producer compressed them",
        },
        doc: "Batches are stored as the producer compressed them ('producer').",
    },
    Setting {
        name: TOMBSTONE_MS,
        kind: ConfigKind::Long,
        default: "86400000",
        allowed: Allowed::Number { min: 0, max: i64::MAX },
        doc: "How long a compacted topic keeps the deletion of a key, in ms: a consumer that reads all of it within \
              that time sees every deletion.",
    },
    Setting {
        name: DURABILITY,
        kind: ConfigKind::String,
        default: "fsync",
        allowed: Allowed::OneOf(&["fsync", "replicated"]),
        doc: "What an acknowledged record has survived: 'fsync' is on the disk of every in-sync replica; \
              'replicated' is in the memory of every in-sync replica and on disk a flush interval later.",
    },
    Setting {
        name: BATCH_BYTES,
        kind: ConfigKind::Int,
        default: "1048588",
        allowed: Allowed::Number { min: 0, max: BATCH_BYTES_LIMIT as i64 },
        doc: "The largest record batch that the topic takes, in bytes, as it is sent (compressed).",
    },
    Setting {
        name: "message.timestamp.type",
        kind: ConfigKind::String,
        default: "CreateTime",
        allowed: Allowed::Only {
            value: "CreateTime",
            instead: "records keep the timestamps that their producers gave them",
        },
        doc: "Records keep the timestamps that their producers gave them ('CreateTime').",
    },
    Setting {
        name: DIRTY_RATIO,
        kind: ConfigKind::Double,
        default: "0.5",
        allowed: Allowed::Fraction,
        doc: "The log of a compacted topic is compacted when the part of it that never was is at least so large.",
    },
    Setting {
        name: COMPACTION_LAG_MS,
        kind: ConfigKind::Long,
        default: "0",
        allowed: Allowed::Number { min: 0, max: i64::MAX },
        doc: "Records of a compacted topic stay as they are for so long, in ms.",
    },
    Setting {
        name: ISR_MIN,
        kind: ConfigKind::Int,
        default: "1",
        allowed: Allowed::Number { min: 1, max: i32::MAX as i64 },
        doc: "In-sync replicas without which a produce with acks=all is refused; more than the topic has \
              replicas means all of them.",
    },
    Setting {
        name: "preallocate",
        kind: ConfigKind::Boolean,
        default: "false",
        allowed: Allowed::OneOf(&["false", "true"]),
        doc: "Accepted and without effect: journal files are always allocated ahead.",
    },
    Setting {
        name: RETENTION_BYTES,
        kind: ConfigKind::Long,
        default: "-1",
        allowed: Allowed::Number { min: -1, max: i64::MAX },
        doc: "With the policy 'delete', the oldest segments of a partition are removed as long as the others have so \
              many bytes. -1 means no bound.",
    },
    Setting {
        name: RETENTION_MS,
        kind: ConfigKind::Long,
        default: "604800000",
        allowed: Allowed::Number { min: -1, max: i64::MAX },
        doc: "With the policy 'delete', a segment is removed when its newest record is older than this, in ms. -1 \
              means no bound.",
    },
    Setting {
        name: SEGMENT_BYTES,
        kind: ConfigKind::Int,
        default: "1073741824",
        allowed: Allowed::Number { min: SEGMENT_BYTES_MIN as i64, max: i32::MAX as i64 },
        doc: "The size of the files that hold a partition. Records are deleted and compacted by whole files.",
    },
    Setting {
        name: SEGMENT_MS,
        kind: ConfigKind::Long,
        default: "604800000",
        allowed: Allowed::Number { min: 1, max: i64::MAX },
        doc: "The age, in ms, at which the file that a partition is written to is closed and the next one begun, \
              however small it is.",
    },
    Setting {
        name: UNCLEAN,
        kind: ConfigKind::Boolean,
        default: "false",
        allowed: Allowed::OneOf(&["false", "true"]),
        doc: "Whether a replica that may lack acknowledged records is made leader when no other can be: 'true' gives them \
              up for being there.",
    },
];

/// Kafka's other topic settings: refused, with words that tell them from a typing error. Sorted.
const UNSUPPORTED: &[&str] = &[
    "file.delete.delay.ms",
    "flush.messages",
    "flush.ms",
    "follower.replication.throttled.replicas",
    "index.interval.bytes",
    "leader.replication.throttled.replicas",
    "local.retention.bytes",
    "local.retention.ms",
    "max.compaction.lag.ms",
    "message.downconversion.enable",
    "message.format.version",
    "message.timestamp.after.max.ms",
    "message.timestamp.before.max.ms",
    "message.timestamp.difference.max.ms",
    "remote.log.copy.disable",
    "remote.log.delete.on.disable",
    "remote.storage.enable",
    "segment.index.bytes",
    "segment.jitter.ms",
];

/// Whether the setting exists and may have this value.
pub fn check(name: &str, value: &str) -> Result<(), InvalidSetting> {
    setting(name)?.check(value)
}

/// `current` with `changes` made to it. `inherited` gives the value that a setting has without an own one, for
/// changes to lists.
pub fn change(
    current: &BTreeMap<String, String>,
    changes: &[SettingChange],
    inherited: impl Fn(&'static str) -> String,
) -> Result<BTreeMap<String, String>, InvalidSetting> {
    let mut seen: Vec<&str> = changes.iter().map(|c| c.name.as_str()).collect();
    seen.sort_unstable();
    if let Some(pair) = seen.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(InvalidSetting::Twice { name: shorten(pair[0]) });
    }
    let mut out = current.clone();
    for SettingChange { name, op } in changes {
        let setting = setting(name)?;
        let value = match op {
            SettingOp::Unset => {
                out.remove(setting.name);
                continue;
            }
            SettingOp::Set(value) => value.clone(),
            SettingOp::Append(items) | SettingOp::Subtract(items) => {
                if setting.kind != ConfigKind::List {
                    return Err(InvalidSetting::NotAList { name: setting.name });
                }
                let old = out.get(setting.name).cloned().unwrap_or_else(|| inherited(setting.name));
                let mut list: Vec<&str> = items_of(&old).collect();
                for item in items_of(items) {
                    match op {
                        SettingOp::Append(_) if !list.contains(&item) => list.push(item),
                        SettingOp::Subtract(_) => list.retain(|had| *had != item),
                        _ => {}
                    }
                }
                list.join(",")
            }
        };
        setting.check(&value)?;
        out.insert(setting.name.to_owned(), value);
    }
    Ok(out)
}

/// All settings of the topic, sorted by name.
pub fn describe(topic: &Topic, image: &Image, defaults: &TopicDefaults) -> Vec<ConfigEntry> {
    SETTINGS.iter().map(|setting| entry(setting, Some(topic), image, defaults)).collect()
}

/// All settings as a topic gets them that says nothing itself, sorted by name.
pub fn describe_cluster(image: &Image, defaults: &TopicDefaults) -> Vec<ConfigEntry> {
    SETTINGS.iter().map(|setting| entry(setting, None, image, defaults)).collect()
}

/// What a topic without an own value gets for the setting `name`.
pub fn inherited(name: &'static str, image: &Image, defaults: &TopicDefaults) -> String {
    value(setting(name).expect("callers pass names from the table"), None, image, defaults).0.to_owned()
}

/// What decides which replicas of a topic count, the same on every node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    pub isr_min: usize,
    pub unclean: bool,
    pub durability: Durability,
}

/// Those of a topic whose own settings are `config`.
pub fn settings(config: &BTreeMap<String, String>, image: &Image) -> Settings {
    let value = |name| {
        let own = config.get(name).or_else(|| image.cluster_config.get(name));
        own.map_or_else(
            || setting(name).expect("the constants name settings of the table").default,
            String::as_str,
        )
    };
    Settings {
        isr_min: value(ISR_MIN).parse().unwrap_or(1),
        unclean: value(UNCLEAN) == "true",
        durability: durability(value(DURABILITY)),
    }
}

fn durability(value: &str) -> Durability {
    match value {
        "replicated" => Durability::Replicated,
        _ => Durability::Fsync,
    }
}

/// Settings of [`CLUSTER_WIDE`] that the config file sets and the cluster does not, with their values.
pub fn not_cluster_wide_yet<'a>(
    image: &'a Image,
    defaults: &'a TopicDefaults,
) -> impl Iterator<Item = (&'static str, &'a str)> {
    CLUSTER_WIDE.into_iter().filter_map(|name| {
        let value = defaults.settings.get(name)?;
        (!image.cluster_config.contains_key(name)).then_some((name, value.as_str()))
    })
}

/// What the partitions of the topic act on.
pub fn partition_config(topic: &Topic, image: &Image, defaults: &TopicDefaults) -> PartitionConfig {
    let value = |name| {
        let setting = setting(name).expect("the constants name settings of the table");
        value(setting, Some(topic), image, defaults).0
    };
    // Values were checked when they were set. One that a later version of the table refuses counts as unset.
    PartitionConfig {
        durability: durability(value(DURABILITY)),
        isr_min: value(ISR_MIN).parse().unwrap_or(1),
        batch_bytes_max: value(BATCH_BYTES)
            .parse()
            .unwrap_or(BATCH_BYTES_DEFAULT)
            .min(defaults.batch_bytes_limit),
        log: log_config(value),
    }
}

/// `value` gives the text of a setting.
fn log_config<'a>(value: impl Fn(&'static str) -> &'a str) -> LogConfig {
    let default = LogConfig::default();
    let millis = |name, unset: i64| value(name).parse().unwrap_or(unset);
    let policy = |word| items_of(value(CLEANUP_POLICY)).any(|item| item == word);
    LogConfig {
        segment_bytes: value(SEGMENT_BYTES).parse().unwrap_or(default.segment_bytes),
        segment_ms: millis(SEGMENT_MS, default.segment_ms),
        delete: policy("delete"),
        compact: policy("compact"),
        retention_ms: value(RETENTION_MS).parse().map_or(default.retention_ms, |ms: i64| {
            // -1 is the only negative value that is allowed.
            (ms >= 0).then_some(ms)
        }),
        retention_bytes: value(RETENTION_BYTES).parse().ok(),
        compaction_lag_ms: millis(COMPACTION_LAG_MS, default.compaction_lag_ms),
        tombstone_ms: millis(TOMBSTONE_MS, default.tombstone_ms),
        dirty_permille: fraction(value(DIRTY_RATIO))
            .map_or(default.dirty_permille, |ratio| (ratio * 1000.0).round() as u32),
    }
}

/// A number from 0 to 1.
fn fraction(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number| (0.0..=1.0).contains(number))
}

fn setting(name: &str) -> Result<&'static Setting, InvalidSetting> {
    match SETTINGS.binary_search_by(|s| s.name.cmp(name)) {
        Ok(at) => Ok(&SETTINGS[at]),
        Err(_) if UNSUPPORTED.binary_search(&name).is_ok() => {
            Err(InvalidSetting::Unsupported { name: name.to_owned() })
        }
        Err(_) => Err(InvalidSetting::Unknown { name: shorten(name) }),
    }
}

fn value<'a>(
    setting: &Setting,
    topic: Option<&'a Topic>,
    image: &'a Image,
    defaults: &'a TopicDefaults,
) -> (&'a str, ConfigSource) {
    if let Some(own) = topic.and_then(|t| t.config.get(setting.name)) {
        (own, ConfigSource::Topic)
    } else if let Some(set) = image.cluster_config.get(setting.name) {
        (set, ConfigSource::Cluster)
    } else if let Some(set) = defaults.settings.get(setting.name)
        && !CLUSTER_WIDE.contains(&setting.name)
    {
        (set, ConfigSource::File)
    } else {
        (setting.default, ConfigSource::Default)
    }
}

fn entry(
    setting: &'static Setting,
    topic: Option<&Topic>,
    image: &Image,
    defaults: &TopicDefaults,
) -> ConfigEntry {
    let (value, source) = value(setting, topic, image, defaults);
    ConfigEntry { name: setting.name, value: value.to_owned(), source, kind: setting.kind, doc: setting.doc }
}

fn items_of(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|item| !item.is_empty())
}

impl Setting {
    fn check(&self, value: &str) -> Result<(), InvalidSetting> {
        let rule = match self.allowed {
            Allowed::Number { min, max } => match value.parse::<i64>() {
                Ok(number) if (min..=max).contains(&number) => return Ok(()),
                _ if max == i64::MAX => format!("it is a whole number from {min} on"),
                _ => format!("it is a whole number from {min} to {max}"),
            },
            Allowed::Fraction if fraction(value).is_some() => return Ok(()),
            Allowed::Fraction => "it is a number from 0 to 1".to_owned(),
            Allowed::OneOf(values) if values.contains(&value) => return Ok(()),
            Allowed::OneOf(values) => format!("it is one of {}", values.join(", ")),
            Allowed::ListOf(values) => {
                let mut items = items_of(value).peekable();
                if items.peek().is_some() && items.all(|item| values.contains(&item)) {
                    return Ok(());
                }
                format!("it is a list of {}, not empty", values.join(", "))
            }
            Allowed::Only { value: only, .. } if value == only => return Ok(()),
            Allowed::Only { value, instead } => format!("only '{value}' is supported, as {instead}"),
        };
        Err(InvalidSetting::Value { name: self.name, value: shorten(value), rule })
    }
}

/// As much of a user's text as an error message shows.
pub(crate) fn shorten(text: &str) -> String {
    const SHOWN_MAX: usize = 80;
    match text.char_indices().nth(SHOWN_MAX) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use highwater_shards::ids::TopicId;
    use imbl::Vector;

    use super::*;

    fn topic(config: &[(&str, &str)]) -> Topic {
        let config = config.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        Topic { id: TopicId(1), name: "t".into(), partitions: Vector::new(), config: Arc::new(config) }
    }

    fn set(name: &str, op: SettingOp) -> SettingChange {
        SettingChange { name: name.into(), op }
    }

    fn built_in(name: &'static str) -> String {
        inherited(name, &Image::default(), &TopicDefaults::default())
    }

    #[test]
    fn tables_are_sorted_and_defaults_are_allowed() {
        assert!(SETTINGS.windows(2).all(|pair| pair[0].name < pair[1].name));
        assert!(UNSUPPORTED.windows(2).all(|pair| pair[0] < pair[1]));
        for setting in SETTINGS {
            assert_eq!(setting.check(setting.default), Ok(()), "{}", setting.name);
            assert!(UNSUPPORTED.binary_search(&setting.name).is_err(), "{}", setting.name);
        }
        let from_table = partition_config(&topic(&[]), &Image::default(), &TopicDefaults::default());
        assert_eq!(from_table, PartitionConfig::default());
    }

    #[test]
    fn the_nearest_source_of_a_value_wins() {
        let mut defaults = TopicDefaults::default();
        let mut image = Image::default();
        let plain = topic(&[]);
        let own = topic(&[(TOMBSTONE_MS, "5")]);
        let seen = |topic: &Topic, image: &Image, defaults: &TopicDefaults| {
            let all = describe(topic, image, defaults);
            let entry = all.into_iter().find(|e| e.name == TOMBSTONE_MS).expect("in the table");
            assert_eq!(entry.value, partition_config(topic, image, defaults).log.tombstone_ms.to_string());
            (entry.value, entry.source)
        };
        assert_eq!(seen(&plain, &image, &defaults), ("86400000".into(), ConfigSource::Default));
        defaults.set(TOMBSTONE_MS, "2").unwrap();
        assert_eq!(seen(&plain, &image, &defaults), ("2".into(), ConfigSource::File));
        image.cluster_config = Arc::new(BTreeMap::from([(TOMBSTONE_MS.into(), "3".into())]));
        assert_eq!(seen(&plain, &image, &defaults), ("3".into(), ConfigSource::Cluster));
        assert_eq!(seen(&own, &image, &defaults), ("5".into(), ConfigSource::Topic));
        assert_eq!(describe_cluster(&image, &defaults).len(), SETTINGS.len());
    }

    #[test]
    fn a_nodes_own_file_decides_nothing_about_which_replicas_count() {
        let (mut defaults, mut image) = (TopicDefaults::default(), Image::default());
        let values = [(DURABILITY, "replicated"), (ISR_MIN, "2"), (UNCLEAN, "true")];
        for (name, value) in values {
            defaults.set(name, value).unwrap();
        }
        let plain = topic(&[]);
        let acts = partition_config(&plain, &image, &defaults);
        assert_eq!((acts.isr_min, acts.durability), (1, Durability::Fsync));
        let by_log = settings(&plain.config, &image);
        assert_eq!((by_log.isr_min, by_log.durability, by_log.unclean), (1, Durability::Fsync, false));
        assert_eq!(not_cluster_wide_yet(&image, &defaults).collect::<Vec<_>>(), values);
        let set = values.into_iter().skip(1).map(|(name, value)| (name.to_owned(), value.to_owned()));
        image.cluster_config = Arc::new(set.collect());
        assert_eq!(not_cluster_wide_yet(&image, &defaults).collect::<Vec<_>>(), values[..1]);
        assert_eq!(partition_config(&plain, &image, &defaults).isr_min, 2);
        assert!(settings(&plain.config, &image).unclean);
    }

    #[test]
    fn no_batch_may_be_larger_than_the_node_has_room_for() {
        let defaults = TopicDefaults { batch_bytes_limit: 1000, ..TopicDefaults::default() };
        assert!(defaults.check(BATCH_BYTES, "1000").is_ok());
        assert!(defaults.check(BATCH_BYTES, "1001").unwrap_err().to_string().contains("1000 bytes"));
        let set_elsewhere = topic(&[(BATCH_BYTES, "5000")]);
        assert_eq!(partition_config(&set_elsewhere, &Image::default(), &defaults).batch_bytes_max, 1000);
    }

    #[test]
    fn values_outside_the_rule_are_refused_with_words() {
        for (name, value, words) in [
            (ISR_MIN, "0", "whole number from 1"),
            (ISR_MIN, "two", "whole number"),
            (BATCH_BYTES, "-1", "whole number from 0"),
            (BATCH_BYTES, "99999999999999999999", "whole number"),
            (CLEANUP_POLICY, "compacted", "list of compact, delete"),
            (CLEANUP_POLICY, "delete,keep", "list of compact, delete"),
            (CLEANUP_POLICY, "", "not empty"),
            (DIRTY_RATIO, "1.01", "from 0 to 1"),
            (DIRTY_RATIO, "-0.1", "from 0 to 1"),
            (DIRTY_RATIO, "NaN", "from 0 to 1"),
            (DIRTY_RATIO, "half", "from 0 to 1"),
            (SEGMENT_BYTES, "1023", "from 1024 to"),
            (SEGMENT_BYTES, "2147483648", "from 1024 to"),
            (SEGMENT_MS, "0", "from 1 on"),
            (RETENTION_MS, "-2", "from -1 on"),
            (RETENTION_BYTES, "-2", "from -1 on"),
            (TOMBSTONE_MS, "-1", "from 0 on"),
            (COMPACTION_LAG_MS, "-1", "from 0 on"),
            ("max.compaction.lag.ms", "1", "not supported here"),
            ("compression.type", "zstd", "only 'producer'"),
            (UNCLEAN, "maybe", "one of false, true"),
            (DURABILITY, "maybe", "one of fsync, replicated"),
            ("flush.ms", "1", "not supported here"),
            ("retention.m", "1", "unknown topic setting"),
        ] {
            let message = check(name, value).unwrap_err().to_string();
            assert!(message.contains(words) && message.contains(name), "{name}={value}: {message}");
        }
        let long = check(DURABILITY, &"x".repeat(10_000)).unwrap_err().to_string();
        assert!(long.len() < 300, "a message does not repeat all of a hostile value");
    }

    #[test]
    fn partitions_act_on_every_setting_of_the_log() {
        let log = |settings: &[(&str, &str)]| {
            for (name, value) in settings {
                assert_eq!(check(name, value), Ok(()), "{name}={value}");
            }
            partition_config(&topic(settings), &Image::default(), &TopicDefaults::default()).log
        };
        let all = log(&[
            (CLEANUP_POLICY, " compact , delete"),
            (TOMBSTONE_MS, "0"),
            (DIRTY_RATIO, "0.0375"),
            (COMPACTION_LAG_MS, "9000"),
            (RETENTION_BYTES, "0"),
            (RETENTION_MS, "9223372036854775807"),
            (SEGMENT_BYTES, "1024"),
            (SEGMENT_MS, "1"),
        ]);
        let want = LogConfig {
            segment_bytes: 1024,
            segment_ms: 1,
            delete: true,
            compact: true,
            retention_ms: Some(i64::MAX),
            retention_bytes: Some(0),
            compaction_lag_ms: 9000,
            tombstone_ms: 0,
            dirty_permille: 38,
        };
        assert_eq!(all, want);
        let unbounded = log(&[(RETENTION_MS, "-1"), (RETENTION_BYTES, "-1"), (CLEANUP_POLICY, "compact")]);
        let want = LogConfig { retention_ms: None, delete: false, compact: true, ..LogConfig::default() };
        assert_eq!(unbounded, want);
        for (ratio, permille) in [("0", 0), ("1", 1000), ("1e-1", 100), (".5", 500)] {
            assert_eq!(log(&[(DIRTY_RATIO, ratio)]).dirty_permille, permille);
        }
    }

    #[test]
    fn lists_are_appended_to_and_subtracted_from() {
        let none = BTreeMap::new();
        let policy = |old: &BTreeMap<_, _>, op| change(old, &[set(CLEANUP_POLICY, op)], built_in);
        let same = policy(&none, SettingOp::Append("delete".into())).unwrap();
        assert_eq!(same[CLEANUP_POLICY], "delete");
        let both = policy(&none, SettingOp::Append("compact".into())).unwrap();
        assert_eq!(both[CLEANUP_POLICY], "delete,compact");
        let one = policy(&both, SettingOp::Subtract("delete".into())).unwrap();
        assert_eq!(one[CLEANUP_POLICY], "compact");
        let emptied = policy(&none, SettingOp::Subtract("delete".into()));
        assert!(matches!(emptied, Err(InvalidSetting::Value { .. })));
        let number = change(&none, &[set(ISR_MIN, SettingOp::Append("2".into()))], built_in);
        assert_eq!(number, Err(InvalidSetting::NotAList { name: ISR_MIN }));
    }

    #[test]
    fn changes_are_made_together_or_not_at_all() {
        let old = BTreeMap::from([(ISR_MIN.to_owned(), "2".to_owned())]);
        let both = [set(ISR_MIN, SettingOp::Unset), set("retention.ms", SettingOp::Set("5".into()))];
        let new = change(&old, &both, built_in).unwrap();
        assert_eq!(new, BTreeMap::from([("retention.ms".to_owned(), "5".to_owned())]));
        let twice = [set(ISR_MIN, SettingOp::Unset), set(ISR_MIN, SettingOp::Set("1".into()))];
        assert!(matches!(change(&old, &twice, built_in), Err(InvalidSetting::Twice { .. })));
        let one_bad =
            [set("retention.ms", SettingOp::Set("5".into())), set(ISR_MIN, SettingOp::Set("0".into()))];
        assert!(change(&old, &one_bad, built_in).is_err());
    }
}
