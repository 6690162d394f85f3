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
const DURABILITY: &str = "highwater.durability";
const BATCH_BYTES: &str = "max.message.bytes";
const ISR_MIN: &str = "min.insync.replicas";

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
    /// Puts `value` over the built-in default of the setting.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), InvalidSetting> {
        self.check(name, value)?;
        self.settings.insert(name.to_owned(), value.to_owned());
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
    #[error("topic setting '{name}' is known to Kafka but not supported here")]
    Unsupported { name: String },
    #[error("topic setting '{name}' cannot be '{value}': {rule}")]
    Value { name: &'static str, value: String, rule: String },
    #[error(
        "topic setting '{name}' is not a list: it can be set or deleted, not appended to or subtracted from"
    )]
    NotAList { name: &'static str },
    #[error("topic setting '{name}' is changed more than once in one request")]
    Twice { name: String },
}

/// Where the value of a setting comes from; the first of these that has one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConfigSource {
    Topic,
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
        name: "cleanup.policy",
        kind: ConfigKind::List,
        default: "delete",
        allowed: Allowed::ListOf(&["delete"]),
        doc: "What happens to old records. Only 'delete': topics are not compacted.",
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
        name: "retention.bytes",
        kind: ConfigKind::Long,
        default: "-1",
        allowed: Allowed::Number { min: -1, max: i64::MAX },
        doc: "Kept and shown only: records are not deleted by size. -1 means no bound.",
    },
    Setting {
        name: "retention.ms",
        kind: ConfigKind::Long,
        default: "-1",
        allowed: Allowed::Number { min: -1, max: i64::MAX },
        doc: "Kept and shown only: records are not deleted by age. -1 means no bound.",
    },
    Setting {
        name: "segment.bytes",
        kind: ConfigKind::Int,
        default: "1073741824",
        allowed: Allowed::Number { min: 1024 * 1024, max: i32::MAX as i64 },
        doc: "Kept and shown only: the log of a partition is not cut into segments.",
    },
    Setting {
        name: "segment.ms",
        kind: ConfigKind::Long,
        default: "604800000",
        allowed: Allowed::Number { min: 1, max: i64::MAX },
        doc: "Kept and shown only: the log of a partition is not cut into segments.",
    },
    Setting {
        name: "unclean.leader.election.enable",
        kind: ConfigKind::Boolean,
        default: "false",
        allowed: Allowed::Only {
            value: "false",
            instead: "a replica that may lack acknowledged records is never made leader",
        },
        doc: "A replica that may lack acknowledged records is never made leader ('false').",
    },
];

/// Kafka's other topic settings: refused, with words that tell them from a typing error. Sorted.
const UNSUPPORTED: &[&str] = &[
    "delete.retention.ms",
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
    "min.cleanable.dirty.ratio",
    "min.compaction.lag.ms",
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

/// What the partitions of the topic act on.
pub fn partition_config(topic: &Topic, image: &Image, defaults: &TopicDefaults) -> PartitionConfig {
    let value = |name| {
        let setting = setting(name).expect("the constants name settings of the table");
        value(setting, Some(topic), image, defaults).0
    };
    // Values were checked when they were set. One that a later version of the table refuses counts as unset.
    PartitionConfig {
        durability: match value(DURABILITY) {
            "replicated" => Durability::Replicated,
            _ => Durability::Fsync,
        },
        isr_min: value(ISR_MIN).parse().unwrap_or(1),
        batch_bytes_max: value(BATCH_BYTES)
            .parse()
            .unwrap_or(BATCH_BYTES_DEFAULT)
            .min(defaults.batch_bytes_limit),
        log: LogConfig::default(),
    }
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
    } else if let Some(set) = defaults.settings.get(setting.name) {
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
fn shorten(text: &str) -> String {
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
        let own = topic(&[(ISR_MIN, "5")]);
        let seen = |topic: &Topic, image: &Image, defaults: &TopicDefaults| {
            let all = describe(topic, image, defaults);
            let entry = all.into_iter().find(|e| e.name == ISR_MIN).expect("in the table");
            assert_eq!(entry.value, partition_config(topic, image, defaults).isr_min.to_string());
            (entry.value, entry.source)
        };
        assert_eq!(seen(&plain, &image, &defaults), ("1".into(), ConfigSource::Default));
        defaults.set(ISR_MIN, "2").unwrap();
        assert_eq!(seen(&plain, &image, &defaults), ("2".into(), ConfigSource::File));
        image.cluster_config = Arc::new(BTreeMap::from([(ISR_MIN.into(), "3".into())]));
        assert_eq!(seen(&plain, &image, &defaults), ("3".into(), ConfigSource::Cluster));
        assert_eq!(seen(&own, &image, &defaults), ("5".into(), ConfigSource::Topic));
        assert_eq!(describe_cluster(&image, &defaults).len(), SETTINGS.len());
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
            ("cleanup.policy", "compact", "list of delete"),
            ("cleanup.policy", "delete,compact", "list of delete"),
            ("cleanup.policy", "", "not empty"),
            ("compression.type", "zstd", "only 'producer'"),
            ("unclean.leader.election.enable", "true", "only 'false'"),
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
    fn lists_are_appended_to_and_subtracted_from() {
        let none = BTreeMap::new();
        let appended = change(&none, &[set("cleanup.policy", SettingOp::Append("delete".into()))], built_in);
        assert_eq!(appended.unwrap()["cleanup.policy"], "delete");
        let emptied = change(&none, &[set("cleanup.policy", SettingOp::Subtract("delete".into()))], built_in);
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
