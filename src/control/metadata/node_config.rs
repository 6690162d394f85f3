//! The settings of a node that can be changed while it runs: what there is and what values are allowed.
//!
//! Control core, pure; client sessions describe them from here too.

use std::collections::BTreeMap;

use super::command::{SettingChange, SettingOp};
use super::topic_config::{ConfigEntry, ConfigKind, ConfigSource, InvalidSetting, shorten};

struct Setting {
    name: &'static str,
    doc: &'static str,
}

/// Kafka's tools set these on every broker before they move partitions. Bytes per second; `-1` is without limit.
const SETTINGS: [Setting; 2] = [
    Setting {
        name: "follower.replication.throttled.rate",
        doc: "Bytes per second at most that replicas of this node which catch up take in; -1: no limit. Kept for \
              Kafka's tools, and nothing else: cluster.replication.catch_up_bytes_per_second is the limit.",
    },
    Setting {
        name: "leader.replication.throttled.rate",
        doc: "Bytes per second at most that this node sends to replicas which catch up; -1: no limit. Kept for \
              Kafka's tools, and nothing else: cluster.replication.catch_up_bytes_per_second is the limit.",
    },
];

const DEFAULT: &str = "-1";

fn setting(name: &str) -> Result<&'static Setting, InvalidSetting> {
    let found = SETTINGS.iter().find(|s| s.name == name);
    found.ok_or_else(|| InvalidSetting::NotOfNode { name: shorten(name) })
}

/// `current` with `changes` made to it; all of them or none.
///
/// # Errors
/// When a setting is unknown, stands twice, or may not have the value.
pub fn change(
    current: &BTreeMap<String, String>,
    changes: &[SettingChange],
) -> Result<BTreeMap<String, String>, InvalidSetting> {
    let mut out = current.clone();
    for (at, SettingChange { name, op }) in changes.iter().enumerate() {
        let setting = setting(name)?;
        if changes[..at].iter().any(|earlier| earlier.name == *name) {
            return Err(InvalidSetting::Twice { name: shorten(name) });
        }
        match op {
            SettingOp::Unset => {
                out.remove(setting.name);
            }
            SettingOp::Append(_) | SettingOp::Subtract(_) => {
                return Err(InvalidSetting::NotAList { name: setting.name });
            }
            SettingOp::Set(value) => {
                let number = value.parse::<i64>().ok().filter(|n| *n >= -1 && *n != 0);
                let number = number.ok_or_else(|| InvalidSetting::Value {
                    name: setting.name,
                    value: shorten(value),
                    rule: "it is -1, or a number from 1 on".to_owned(),
                })?;
                out.insert(setting.name.to_owned(), number.to_string());
            }
        }
    }
    Ok(out)
}

/// All of them, sorted by name.
pub fn describe(config: &BTreeMap<String, String>) -> impl Iterator<Item = ConfigEntry> + '_ {
    SETTINGS.iter().map(|setting| {
        let own = config.get(setting.name);
        ConfigEntry {
            name: setting.name,
            value: own.cloned().unwrap_or_else(|| DEFAULT.to_owned()),
            source: if own.is_some() { ConfigSource::Node } else { ConfigSource::Default },
            kind: ConfigKind::Long,
            doc: setting.doc,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_set_once_or_not_at_all() {
        let rate = |name: &str, op| SettingChange { name: name.into(), op };
        let set = |value: &str| SettingOp::Set(value.into());
        let name = "leader.replication.throttled.rate";
        let config = change(&BTreeMap::new(), &[rate(name, set("0050"))]).unwrap();
        assert_eq!(config[name], "50");
        assert_eq!(change(&config, &[rate(name, SettingOp::Unset)]), Ok(BTreeMap::new()));
        for bad in ["", "x", "0", "-2", "9223372036854775808"] {
            assert!(change(&config, &[rate(name, set(bad))]).is_err(), "{bad}");
        }
        assert!(change(&config, &[rate("retention.ms", set("5"))]).is_err());
        assert!(change(&config, &[rate(name, set("5")), rate(name, set("5"))]).is_err());
        assert!(change(&config, &[rate(name, SettingOp::Append("5".into()))]).is_err());
        let described: Vec<_> = describe(&config).map(|e| (e.name, e.value)).collect();
        assert_eq!(described[1], (name, "50".to_owned()));
        assert_eq!(described[0].1, "-1");
    }
}
