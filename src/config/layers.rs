//! From texts to a [`Config`]: defaults, profile, file, environment and flags, each over the one before.
//!
//! Pure: the texts are read elsewhere. All problems are reported together, each with its place, up to [`PROBLEMS_MAX`].

use std::cmp::Ordering;
use std::fmt;

use super::keys::{KEYS, Key, SECTIONS, is_secret, profile_text};
use super::shape::{Raw, shorten};
use super::yaml::{self, Node, Value};
use super::{Config, Profile};

/// Every variable that starts so must be a key's, or [`ENV_CONFIG`].
pub const ENV_PREFIX: &str = "HIGHWATER_";
/// The path of the configuration file, when no flag gives one.
pub const ENV_CONFIG: &str = "HIGHWATER_CONFIG";
/// Sets `log.level` below the variable that is made for it, because other Rust programs listen to it.
pub const ENV_RUST_LOG: &str = "RUST_LOG";
/// Problems that are reported at once; further ones show after these are mended.
pub const PROBLEMS_MAX: usize = 50;

/// The texts that a configuration is made of.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Name (for messages) and content of the file.
    pub file: Option<(String, String)>,
    /// Variables; those that do not concern the configuration are ignored.
    pub env: Vec<(String, String)>,
    pub flags: Vec<Setting>,
}

/// One key set on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// `cores.shards`
    pub path: String,
    pub value: String,
    /// As the user wrote it: `--set cores.shards=[1,2]`
    pub flag: String,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    Default,
    Profile(&'static str),
    /// The file's name and the line, counted from 1.
    File(String, usize),
    /// The variable's name.
    Environment(String),
    /// The flag as written.
    Flag(String),
}

impl Origin {
    /// The number of the layer; a higher one is applied later.
    fn layer(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::Profile(_) => 1,
            Self::File(..) => 2,
            Self::Environment(_) => 3,
            Self::Flag(_) => 4,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(f, "default"),
            Self::Profile(name) => write!(f, "profile {name}"),
            Self::File(name, line) => write!(f, "{name}, line {line}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(flag) => write!(f, "{flag}"),
        }
    }
}

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub origin: Origin,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.message)
    }
}

/// Everything that is wrong, one line each; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if i > 0 { "\n" } else { "" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// A configuration and the origin of each of its values.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub config: Config,
    /// One per key, in the order of the table.
    pub(super) origins: Vec<Origin>,
}

impl Loaded {
    /// Where the value of `path` came from; `None` for an unknown key.
    pub fn origin(&self, path: &str) -> Option<&Origin> {
        key_index(path).map(|index| &self.origins[index])
    }
}

/// Makes a configuration of its sources, or says everything that is wrong with them.
pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
    let mut reader = Reader::default();
    if let Some((name, text)) = &sources.file {
        reader.read_file(text, &|line| Origin::File(name.clone(), line));
    }
    reader.read_environment(&sources.env);
    reader.read_flags(&sources.flags);

    // The profile is chosen by the other layers but lies under them, so its keys are applied first.
    let mut chosen = Config::default();
    let profile = key_index("profile").expect("the table has it");
    for assignment in reader.assignments.iter().filter(|a| a.key == profile) {
        (KEYS[profile].set)(&mut chosen, &assignment.raw);
    }
    let rest = std::mem::take(&mut reader.assignments);
    if let Some(profile) = chosen.profile {
        reader.read_profile(profile);
    }
    reader.assignments.extend(rest);
    reader.finish()
}

/// What `--cores TEXT` and `cores: TEXT` mean, as keys and their values: `auto`, or a list whose first core is the
/// control core and whose others are shards. `None` when the text is neither.
pub fn cores_settings(text: &str) -> Option<[(&'static str, String); 3]> {
    let text = text.trim();
    let auto = || "auto".to_owned();
    if text == "auto" {
        return Some([("cores.control", auto()), ("cores.shards", auto()), ("cores.shard_count", auto())]);
    }
    let cores = super::cores::parse_cores(text)?;
    let (control, shards) = cores.split_first().filter(|(_, shards)| !shards.is_empty())?;
    let shards: Vec<String> = shards.iter().map(ToString::to_string).collect();
    Some([
        ("cores.control", control.to_string()),
        ("cores.shards", shards.join(",")),
        ("cores.shard_count", auto()),
    ])
}

const CORES_EXPECTED: &str = "a section, `auto`, or a list of at least two cores such as 0-2 (the first is the control \
                              core, the others are shards)";

fn key_index(path: &str) -> Option<usize> {
    KEYS.iter().position(|key| key.path == path)
}

/// `HIGHWATER_CLUSTER_NODE_ID` for `cluster.node_id`.
pub fn env_name(path: &str) -> String {
    format!("{ENV_PREFIX}{}", path.replace('.', "_").to_uppercase())
}

struct Assignment {
    key: usize,
    raw: Raw,
    origin: Origin,
}

#[derive(Default)]
struct Reader {
    assignments: Vec<Assignment>,
    problems: Vec<Problem>,
}

impl Reader {
    fn problem(&mut self, origin: Origin, message: String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem { origin, message });
        }
    }

    fn read_file(&mut self, text: &str, origin: &dyn Fn(usize) -> Origin) {
        match yaml::parse(text) {
            Err(e) => self.problem(origin(e.line), e.what),
            Ok(root) => self.walk("", &root, origin),
        }
    }

    fn read_profile(&mut self, profile: Profile) {
        let name = super::shape::Words::word(profile);
        self.read_file(profile_text(profile), &|_| Origin::Profile(name));
    }

    fn walk(&mut self, section: &str, node: &Node, origin: &dyn Fn(usize) -> Origin) {
        let Value::Section(entries) = &node.value else {
            let found = raw_of(node).describe();
            let message = match section {
                "" => format!("a configuration is a section of keys such as `cluster:`, found {found}"),
                _ => format!(
                    "`{section}` is a section with the keys {}; found {found}",
                    names_in(section).collect::<Vec<_>>().join(", ")
                ),
            };
            return self.problem(origin(node.line), message);
        };
        for entry in entries {
            let path = join(section, &entry.key);
            if let Some(key) = key_index(&path) {
                let raw = raw_of(&entry.value);
                self.assignments.push(Assignment { key, raw, origin: origin(entry.line) });
            } else if !SECTIONS.iter().any(|(name, _)| *name == path) {
                self.problem(origin(entry.line), unknown_key(section, &entry.key));
            } else {
                match (&entry.value.value, path.as_str()) {
                    // A section whose keys are all commented out.
                    (Value::Empty, _) => {}
                    (Value::Text(text), "cores") => self.on_cores(text, origin(entry.line)),
                    _ => self.walk(&path, &entry.value, origin),
                }
            }
        }
    }

    fn on_cores(&mut self, text: &str, origin: Origin) {
        match cores_settings(text) {
            Some(settings) => {
                for (path, value) in settings {
                    let key = key_index(path).expect("the table has it");
                    self.assignments.push(Assignment { key, raw: Raw::Text(value), origin: origin.clone() });
                }
            }
            None => {
                self.problem(origin, format!("`cores` must be {CORES_EXPECTED}, found `{}`", shorten(text)))
            }
        }
    }

    fn read_environment(&mut self, env: &[(String, String)]) {
        let rust_log = env.iter().find(|(name, value)| name == ENV_RUST_LOG && !value.trim().is_empty());
        let own = env.iter().filter(|(name, _)| name.starts_with(ENV_PREFIX) && name != ENV_CONFIG);
        for (name, value) in rust_log.into_iter().chain(own) {
            let origin = Origin::Environment(name.clone());
            if *name == env_name("cores") {
                self.on_cores(value, origin);
                continue;
            }
            let key = match name.as_str() {
                ENV_RUST_LOG => key_index("log.level"),
                _ => KEYS.iter().position(|key| env_name(key.path) == *name),
            };
            match key {
                Some(key) => {
                    let raw = if value.trim().is_empty() { Raw::Empty } else { Raw::Text(value.clone()) };
                    self.assignments.push(Assignment { key, raw, origin });
                }
                None => {
                    let names: Vec<String> =
                        KEYS.iter().map(|key| env_name(key.path)).chain([ENV_CONFIG.into()]).collect();
                    let hint = match nearest(name, names.iter().map(String::as_str)) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => "`highwater config show-default` lists the keys".into(),
                    };
                    self.problem(origin, format!("no key has this variable; {hint}"));
                }
            }
        }
    }

    fn read_flags(&mut self, flags: &[Setting]) {
        for Setting { path, value, flag } in flags {
            let origin = match is_secret(path) {
                true => Origin::Flag(shorten(&format!("--set {path}=..."))),
                false => Origin::Flag(shorten(flag)),
            };
            if path == "cores" {
                self.on_cores(value, origin);
            } else if let Some(key) = key_index(path) {
                let raw = if value.trim().is_empty() { Raw::Empty } else { Raw::Text(value.clone()) };
                self.assignments.push(Assignment { key, raw, origin });
            } else if SECTIONS.iter().any(|(name, _)| name == path) {
                let names: Vec<String> = names_in(path).map(|name| format!("{path}.{name}")).collect();
                self.problem(
                    origin,
                    format!("`{path}` is a section; set one of its keys: {}", names.join(", ")),
                );
            } else {
                let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
                let known = SECTIONS.iter().any(|(known, _)| *known == section);
                let message = match nearest(path, KEYS.iter().map(|key| key.path)) {
                    Some(near) => format!("unknown key `{}`; did you mean `{near}`?", shorten(path)),
                    None if known => unknown_key(section, name),
                    None => unknown_key("", path),
                };
                self.problem(origin, message);
            }
        }
    }

    /// Applies every assignment in order, so that the last layer wins, and checks the whole.
    fn finish(mut self) -> Result<Loaded, Problems> {
        let mut config = Config::default();
        let mut origins = vec![Origin::Default; KEYS.len()];
        for Assignment { key, raw, origin } in std::mem::take(&mut self.assignments) {
            let Key { path, set, expected, .. } = &KEYS[key];
            if set(&mut config, &raw) {
                origins[key] = origin;
            } else {
                let found = if is_secret(path) { raw.describe_secret() } else { raw.describe() };
                self.problem(origin, format!("`{path}` must be {}, found {found}", expected()));
            }
        }
        choose_shards(&mut config, &mut origins);
        // A value that was refused left the one below it in place, and that one is nobody's contradiction.
        if self.problems.is_empty() {
            for (keys, message) in config.contradictions() {
                // The later layer is the one that its author can still change.
                let blamed = keys.iter().filter_map(|path| key_index(path)).map(|key| &origins[key]).max();
                let origin = blamed.cloned().unwrap_or(Origin::Default);
                self.problem(origin, message);
            }
        }
        if self.problems.is_empty() { Ok(Loaded { config, origins }) } else { Err(Problems(self.problems)) }
    }
}

/// Naming the shards' cores and counting shards are two ways to say the same: the later layer's way stands.
fn choose_shards(config: &mut Config, origins: &mut [Origin]) {
    let list = key_index("cores.shards").expect("the table has it");
    let count = key_index("cores.shard_count").expect("the table has it");
    if config.cores.shards.is_none() || config.cores.shard_count.is_none() {
        return;
    }
    match origins[list].layer().cmp(&origins[count].layer()) {
        Ordering::Less => (config.cores.shards, origins[list]) = (None, origins[count].clone()),
        Ordering::Greater => (config.cores.shard_count, origins[count]) = (None, origins[list].clone()),
        Ordering::Equal => {}
    }
}

fn raw_of(node: &Node) -> Raw {
    match &node.value {
        Value::Empty => Raw::Empty,
        Value::Text(text) => Raw::Text(text.clone()),
        Value::Section(_) => Raw::Nested("a section"),
        Value::List(items) => {
            let texts = items.iter().map(|item| match &item.value {
                Value::Text(text) => Some(text.clone()),
                _ => None,
            });
            texts.collect::<Option<Vec<_>>>().map_or(Raw::Nested("a list of other things"), Raw::List)
        }
    }
}

fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.into() } else { format!("{section}.{name}") }
}

/// The names of the keys and sections directly in `section`.
fn names_in(section: &str) -> impl Iterator<Item = &'static str> {
    let paths = KEYS.iter().map(|key| key.path).chain(SECTIONS.iter().map(|(name, _)| *name));
    paths.filter_map(move |path| {
        let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
        (parent == section).then_some(name)
    })
}

fn unknown_key(section: &str, name: &str) -> String {
    let place = if section.is_empty() { String::new() } else { format!(" in `{section}`") };
    let near = nearest(name, names_in(section)).map(str::to_owned);
    // A key in the wrong section, perhaps misspelt as well.
    let near = near.or_else(|| {
        let elsewhere = nearest(name, KEYS.iter().map(Key::name))?;
        KEYS.iter().find(|key| key.name() == elsewhere).map(|key| key.path.to_owned())
    });
    let hint = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known there: {}", names_in(section).collect::<Vec<_>>().join(", ")),
    };
    format!("unknown key `{}`{place}; {hint}", shorten(name))
}

/// The candidate that `name` most likely stands for: the same words in another order, or few letters apart.
fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const LEN_MAX: usize = 80;
    if name.len() > LEN_MAX {
        return None;
    }
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let words = |text: &str| {
        let text = plain(text);
        let mut words: Vec<String> = text.split(['_', '.']).map(str::to_owned).collect();
        words.sort_unstable();
        words
    };
    let distance = |candidate: &str| match words(candidate) == words(name) {
        true => 0,
        false => strsim::osa_distance(&plain(name), &plain(candidate)),
    };
    let (near, letters) = candidates.map(|c| (c, distance(c))).min_by_key(|(_, letters)| *letters)?;
    (letters <= (name.len().min(near.len()) / 3).max(1)).then_some(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_a_few_letters_or_a_word_order_away() {
        let near = |name| nearest(name, KEYS.iter().map(|key| key.name()));
        assert_eq!(near("shardz"), Some("shards"));
        assert_eq!(near("data-dir"), Some("data_dir"));
        assert_eq!(near("max_request_bytes"), Some("request_bytes_max"));
        assert_eq!(near("Node_Id"), Some("node_id"));
        assert_eq!(near("frobnicate"), None);
        assert_eq!(near(&"x".repeat(100_000)), None);
    }

    #[test]
    fn keys_and_their_variables_are_unique_and_stand_in_known_sections() {
        let mut names: Vec<String> = KEYS.iter().map(|key| env_name(key.path)).collect();
        names.push(ENV_CONFIG.into());
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KEYS.len() + 1);
        for key in KEYS {
            let section = key.path.rsplit_once('.').map_or("", |(section, _)| section);
            assert!(section.is_empty() || SECTIONS.iter().any(|(name, _)| *name == section), "{}", key.path);
        }
    }
}
