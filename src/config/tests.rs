//! The configuration as a whole: layers, refusals, and what is printed.

use super::keys::{KEYS, profile_text};
use super::layers::{ENV_CONFIG, ENV_RUST_LOG, PROBLEMS_MAX, env_name};
use super::shape::Words as _;
use super::*;

fn from_file(text: &str) -> Sources {
    Sources { file: Some(("highwater.yaml".into(), text.into())), ..Sources::default() }
}

fn flag(path: &str, value: &str) -> Setting {
    Setting { path: path.into(), value: value.into(), flag: format!("--set {path}={value}") }
}

fn env(name: &str, value: &str) -> (String, String) {
    (name.into(), value.into())
}

fn accepted(text: &str) -> Config {
    load(&from_file(text)).unwrap_or_else(|problems| panic!("{problems}")).config
}

fn refused(text: &str) -> String {
    load(&from_file(text)).expect_err(text).to_string()
}

#[test]
fn nothing_given_is_the_default() {
    let loaded = load(&Sources::default()).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert!(KEYS.iter().all(|key| loaded.origin(key.path) == Some(&Origin::Default)));
}

#[test]
fn a_file_sets_every_kind_of_value() {
    let config = accepted(
        "cluster:\n  node_id: 7\n  rack: r1\n  client_addr: 0.0.0.0:9092\n  client_addr_advertised: b.example:9192\n  \
         topic_defaults: {partitions: 12, durability: replicated}\ncores: {control: 0, shards: [1, 2], spin_us: 20us}\n\
         storage:\n  data_dir: '/var/lib/high water'\n  journal_file_bytes: 1GiB\n  journal_bytes_max: 8GiB\n  flush_interval_ms: 1.5s\n\
         kafka:\n  auto_create_topics: false\nadmin: {addr: none}\nlog: {format: json, level: 'warn,highwater=debug'}\n",
    );
    assert_eq!(config.cluster.node_id, NodeId(7));
    assert_eq!(config.cluster.rack.as_deref(), Some("r1"));
    assert_eq!(config.cluster.advertised().to_string(), "b.example:9192");
    assert_eq!(config.cluster.topic_defaults.partitions, 12);
    assert_eq!(config.cluster.topic_defaults.durability, Durability::Replicated);
    assert_eq!(config.cores.control, Some(CoreId(0)));
    assert_eq!(config.cores.shards, Some(vec![CoreId(1), CoreId(2)]));
    assert_eq!(config.cores.spin, Some(Duration::from_micros(20)));
    assert_eq!(config.storage.data_dir, PathBuf::from("/var/lib/high water"));
    assert_eq!(config.storage.journal_file_bytes, 1 << 30);
    assert_eq!(config.storage.journal_bytes_max, 8 << 30);
    assert_eq!(config.storage.flush_interval, Duration::from_millis(1500));
    assert!(!config.kafka.auto_create_topics);
    assert_eq!(config.admin.addr, None);
    assert_eq!(config.log, Log { format: LogFormat::Json, level: "warn,highwater=debug".into() });
}

#[test]
fn later_layers_win_and_each_value_knows_its_origin() {
    let sources = Sources {
        env: vec![
            env("HIGHWATER_KAFKA_CONNECTIONS_MAX", "30"),
            env("HIGHWATER_CORES_SHARDS", "1,2"),
            env("HIGHWATER_PROFILE", "dev"),
            env("PATH", "/bin"),
            env(ENV_CONFIG, "highwater.yaml"),
        ],
        flags: vec![
            flag("kafka.connections_max", "40"),
            flag("cores.shards", "[1,2]"),
            flag("cores.shards", "3"),
        ],
        ..from_file(
            "cluster: {node_id: 2}\nkafka:\n  connections_max: 20\n  connection_idle_ms: 1s\nstorage: {tail_bytes: 1GiB}\n",
        )
    };
    let loaded = load(&sources).unwrap();
    let origin = |path| loaded.origin(path).unwrap().to_string();
    assert_eq!(loaded.config.kafka.connections_max, 40);
    assert_eq!(origin("kafka.connections_max"), "--set kafka.connections_max=40");
    assert_eq!(loaded.config.cores.shards, Some(vec![CoreId(3)]), "of two flags the last counts");
    assert_eq!(
        loaded.config.cores.shard_count, None,
        "the flag names shards, so the profile's count is gone"
    );
    assert_eq!(origin("cluster.node_id"), "highwater.yaml, line 1");
    assert_eq!(origin("kafka.connection_idle_ms"), "highwater.yaml, line 4");
    assert_eq!(loaded.config.storage.tail_bytes, 1 << 30, "the file is over the profile");
    assert_eq!(loaded.config.storage.journal_file_bytes, 16 << 20);
    assert_eq!(origin("storage.journal_file_bytes"), "profile dev");
    assert_eq!(origin("profile"), "environment HIGHWATER_PROFILE");
    assert_eq!(origin("storage.data_dir"), "default");
}

#[test]
fn every_key_can_be_set_by_its_variable_and_by_a_flag() {
    for key in KEYS {
        let mut value = (key.show)(&Config::default());
        if value == "none" && key.path == "profile" {
            value = "dev".into();
        }
        let value = value.trim_matches('\'');
        let by_env = Sources { env: vec![env(&env_name(key.path), value)], ..Sources::default() };
        let by_flag = Sources { flags: vec![flag(key.path, value)], ..Sources::default() };
        for (sources, layer) in [(by_env, "environment "), (by_flag, "--set ")] {
            let loaded = load(&sources).unwrap_or_else(|problems| panic!("{}: {problems}", key.path));
            let origin = loaded.origin(key.path).unwrap().to_string();
            assert!(origin.starts_with(layer), "{}: {origin}", key.path);
        }
    }
}

#[test]
fn every_key_sets_its_own_field_and_no_other() {
    const SAMPLES: [&str; 21] = [
        "false",
        "7",
        "2000",
        "20000",
        "3MiB",
        "128MiB",
        "dev",
        "core",
        "json",
        "debug",
        "truncate",
        "compact",
        "replicated",
        "[3]",
        "10.0.0.1:1",
        "some/where",
        "r1",
        "cluster",
        "[voter]",
        "sixteen bytes or more",
        "least_loaded",
    ];
    let defaults = Config::default();
    for key in KEYS {
        let changed = SAMPLES.iter().find_map(|sample| {
            let mut config = defaults.clone();
            let set = (key.set)(&mut config, &super::shape::Raw::Text((*sample).into()));
            (set && (key.show)(&config) != (key.show)(&defaults)).then_some(config)
        });
        let changed = changed.unwrap_or_else(|| panic!("no sample changes {}", key.path));
        for other in KEYS.iter().filter(|other| other.path != key.path) {
            assert_eq!((other.show)(&changed), (other.show)(&defaults), "{} sets {}", key.path, other.path);
        }
    }
}

#[test]
fn an_unknown_key_names_its_line_and_the_nearest_key() {
    assert_eq!(
        refused("# one\n\ncores:\n  control: 0\n\n  # two\n  shardz: [1]\n"),
        "highwater.yaml, line 7: unknown key `shardz` in `cores`; did you mean `shards`?"
    );
    assert_eq!(refused("kafak: {}\n"), "highwater.yaml, line 1: unknown key `kafak`; did you mean `kafka`?");
    assert_eq!(
        refused("kafka:\n  max_request_bytes: 1MiB\n"),
        "highwater.yaml, line 2: unknown key `max_request_bytes` in `kafka`; did you mean `request_bytes_max`?"
    );
    assert_eq!(
        refused("kafka: {tail_bytes: 1GiB}\n"),
        "highwater.yaml, line 1: unknown key `tail_bytes` in `kafka`; did you mean `storage.tail_bytes`?"
    );
    assert_eq!(
        refused("storage: {durabilty: fsync}\n"),
        "highwater.yaml, line 1: unknown key `durabilty` in `storage`; did you mean `cluster.topic_defaults.durability`?"
    );
    assert_eq!(
        refused("cores: {quux: 1}\n"),
        "highwater.yaml, line 1: unknown key `quux` in `cores`; known there: control, shards, shard_count, pin, spin_us"
    );
}

#[test]
fn unknown_variables_and_flags_are_refused_with_a_suggestion() {
    let sources = Sources {
        env: vec![env("HIGHWATER_CORES_SHARDZ", "1"), env("HIGHWATER_QUUX", "1")],
        flags: vec![flag("core.shards", "1"), flag("storage", "x")],
        ..Sources::default()
    };
    let problems = load(&sources).unwrap_err().to_string();
    let lines: Vec<&str> = problems.lines().collect();
    assert_eq!(
        lines[0],
        "environment HIGHWATER_CORES_SHARDZ: no key has this variable; did you mean `HIGHWATER_CORES_SHARDS`?"
    );
    assert!(lines[1].starts_with("environment HIGHWATER_QUUX: no key has this variable"), "{}", lines[1]);
    assert_eq!(lines[2], "--set core.shards=1: unknown key `core.shards`; did you mean `cores.shards`?");
    assert!(
        lines[3].contains("`storage` is a section; set one of its keys: storage.data_dir"),
        "{}",
        lines[3]
    );
}

#[test]
fn a_value_of_the_wrong_shape_names_line_key_and_shape() {
    for (text, want) in [
        (
            "cores:\n  control: [1]\n",
            "line 2: `cores.control` must be `auto` or a core number, found the list [1]",
        ),
        (
            "cluster: {node_id: x}\n",
            "line 1: `cluster.node_id` must be a number from 0 to 2097150, found `x`",
        ),
        ("kafka:\n  routing: both\n", "line 2: `kafka.routing` must be `node` or `core`, found `both`"),
        ("kafka:\n  auto_create_topics: yes\n", "must be true or false, found `yes`"),
        ("kafka:\n  auto_create_topics:\n", "must be true or false, found nothing"),
        (
            "storage: {journal_file_bytes: 1000001}\n",
            "from 1MiB to 4GiB and a multiple of 4KiB, found `1000001`",
        ),
        (
            "cluster: {client_addr: localhost:9092}\n",
            "an IP address and port such as 127.0.0.1:9092, found `localhost",
        ),
        ("cluster: {client_addr: 127.0.0.1:0}\n", "an IP address and port"),
        ("cores: {shards: {a: 1}}\n", "found a section"),
        ("cores: {shards: [[1]]}\n", "found a list of other things"),
        ("cores: {shards: []}\n", "found the list []"),
        ("storage: 7\n", "line 1: `storage` is a section with the keys data_dir, journal_file_bytes"),
        ("- a\n", "line 1: a configuration is a section of keys such as `cluster:`, found the list [a]"),
        ("cores: many\n", "`cores` must be a section, `auto`, or a list of at least two cores"),
        ("log: {level: chatty}\n", "`log.level` must be error, warn, info, debug, trace or off"),
        ("profile: fast\n", "`profile` must be `none` or `latency` or `throughput` or `dev`, found `fast`"),
    ] {
        let why = refused(text);
        assert!(why.starts_with("highwater.yaml, line") && why.contains(want), "{text}: {why}");
    }
}

#[test]
fn all_problems_are_reported_together_within_a_bound() {
    let why = refused("a: 1\nkafka: {routing: x}\nb: 2\n");
    assert_eq!(why.lines().count(), 3);
    let many: String = (0..500).map(|i| format!("zz{i}: 1\n")).collect();
    assert_eq!(refused(&many).lines().count(), PROBLEMS_MAX);
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    for (text, want) in [
        (
            "cluster: {client_addr: 0.0.0.0:9092}\n",
            "line 1: `cluster.client_addr: 0.0.0.0:9092` listens on every address",
        ),
        (
            "cores:\n  shards: [1]\n  shard_count: 1\n",
            "line 3: `cores.shards` and `cores.shard_count` are two ways",
        ),
        ("kafka: {request_bytes_max: 1MiB}\n", "must exceed `cluster.topic_defaults.batch_bytes_max`"),
        ("storage: {journal_file_bytes: 4MiB}\n", "must exceed `cluster.topic_defaults.batch_bytes_max` by"),
        ("admin: {addr: 127.0.0.1:9092}\n", "both take port 9092"),
        ("kafka: {routing: core, core_port_first: 9000}\n", "contain that of `admin.addr`"),
    ] {
        let why = refused(text);
        assert!(why.contains(want), "{text}: {why}");
    }
    accepted("kafka: {core_port_first: 9000}\n");
    accepted("admin: {addr: 127.0.0.2:9092}\n");
}

#[test]
fn cores_has_a_short_form_everywhere() {
    let auto = accepted("cores: auto\n").cores;
    assert_eq!((auto.control, auto.shards), (None, None));
    let by_env = Sources { env: vec![env("HIGHWATER_CORES", "0-2")], ..Sources::default() };
    let by_flag = Sources { flags: vec![flag("cores", "0-2")], ..Sources::default() };
    for sources in [from_file("cores: 0-2\n"), by_env, by_flag] {
        let cores = load(&sources).unwrap().config.cores;
        assert_eq!(cores.control, Some(CoreId(0)));
        assert_eq!(cores.shards, Some(vec![CoreId(1), CoreId(2)]));
    }
    let over =
        Sources { flags: vec![flag("cores", "auto")], ..from_file("cores: {control: 0, shards: [1, 2]}\n") };
    assert_eq!(
        load(&over).unwrap().config.cores,
        Config::default().cores,
        "a flag takes the file's names back"
    );
}

#[test]
fn rust_log_sets_the_level_below_its_own_variable() {
    let level =
        |env: Vec<(String, String)>| load(&Sources { env, ..Sources::default() }).unwrap().config.log.level;
    assert_eq!(level(vec![env(ENV_RUST_LOG, "debug")]), "debug");
    assert_eq!(level(vec![env(ENV_RUST_LOG, "")]), "info");
    assert_eq!(level(vec![env("HIGHWATER_LOG_LEVEL", "warn"), env(ENV_RUST_LOG, "debug")]), "warn");
}

#[test]
fn the_reference_is_complete_documented_and_equal_to_the_defaults() {
    let text = render_reference();
    let loaded = load(&from_file(&text)).unwrap_or_else(|problems| panic!("{problems}\n{text}"));
    assert_eq!(loaded.config, Config::default());
    for key in KEYS {
        assert!(
            matches!(loaded.origin(key.path), Some(Origin::File(..))),
            "{} is not in the reference",
            key.path
        );
        assert!(key.doc.iter().all(|line| line.len() <= 115 && !line.is_empty()), "{}", key.path);
    }
    assert!(text.lines().all(|line| line.chars().count() <= 125), "{text}");
}

#[test]
fn the_effective_configuration_reads_back_to_itself() {
    let text = "cluster: {rack: 'a: b', client_addr: '[::1]:9092'}\ncores: {shards: [2, 5], pin: false}\nprofile: dev\n";
    let loaded = load(&from_file(text)).unwrap();
    let rendered = render_effective(&loaded);
    let again = load(&from_file(&rendered)).unwrap_or_else(|problems| panic!("{problems}\n{rendered}"));
    assert_eq!(again.config, loaded.config);
    assert!(
        rendered.contains("shards: [2, 5]") && rendered.contains("# highwater.yaml, line 2"),
        "{rendered}"
    );
    assert!(rendered.contains("# profile dev") && rendered.contains("# default"), "{rendered}");
}

#[test]
fn every_profile_parses_and_each_of_its_keys_changes_something() {
    for (name, profile) in Profile::ALL {
        let loaded = load(&Sources { flags: vec![flag("profile", name)], ..Sources::default() })
            .unwrap_or_else(|problems| panic!("{name}: {problems}"));
        assert_eq!(loaded.config.profile, Some(*profile));
        let from_profile: Vec<_> =
            KEYS.iter().filter(|key| loaded.origin(key.path) == Some(&Origin::Profile(name))).collect();
        assert!(!from_profile.is_empty(), "{name} sets nothing");
        for key in from_profile {
            assert_ne!((key.show)(&loaded.config), (key.show)(&Config::default()), "{name}: {}", key.path);
        }
        assert!(profile_text(*profile).starts_with(&format!("# Profile `{name}`")));
    }
}

#[test]
fn hostile_files_are_refused_quickly() {
    let laughs = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n";
    assert!(refused(laughs).contains("anchors"));
    assert!(refused(&format!("cores: {}", "[".repeat(20))).contains("nest deeper"));
    assert!(refused(&format!("cores: {}", "[".repeat(200_000))).contains("line 1"));
    assert!(refused(&"x".repeat(300_000)).contains("at most 256 KiB"));
    assert!(
        refused(&format!("{}: 1\n", "k".repeat(1000))).len() < 200,
        "a message does not repeat a long key"
    );
}
