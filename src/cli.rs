//! The command line: arguments, help, and the `config` commands.
//!
//! Runs on the main thread before any core starts. `main` parses with [`Cli::parse`] and carries out the [`Command`];
//! a bare `highwater` is `highwater serve`.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::config::{
    CoreClaims, CorePlan, ENV_CONFIG, Host, Loaded, Setting, Sources, load, render_effective,
    render_reference,
};
use crate::error::{ExitStatus, Failure};

/// One byte more than a configuration may have, so that a longer file is seen to be longer.
const READ_BYTES_MAX: u64 = crate::config::FILE_BYTES_MAX as u64 + 1;

#[derive(Debug, Parser)]
#[command(
    name = "highwater",
    version,
    about = "A coordination and replication engine for brokers, which Kafka clients can talk to.",
    long_about = "A coordination and replication engine for brokers, which Kafka clients can talk to.\n\n\
                  Without a command it starts a standalone node on built-in defaults: data in ./highwater-data, Kafka \
                  clients on 127.0.0.1:9092, metrics on 127.0.0.1:9094, one shard on each core but the first.",
    after_help = help_end(),
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    #[command(flatten)]
    serve: ServeArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a node (the default command)
    #[command(after_help = SERVE_HELP)]
    Serve(ServeArgs),
    /// Check a configuration, or print the one with all defaults
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Create, list, describe or delete topics of a running node, or delete records
    #[command(subcommand, after_help = TOPIC_HELP)]
    Topic(TopicCommand),
    /// See who is in the cluster, and change it
    #[command(subcommand, after_help = CLUSTER_HELP)]
    Cluster(ClusterCommand),
    /// See which nodes are alive, as one node sees it, or change its keys of gossip
    #[command(args_conflicts_with_subcommands = true, after_help = MEMBERS_HELP)]
    Members(MembersArgs),
    /// Look into the files of the log
    #[command(subcommand)]
    Log(LogCommand),
    /// Things for development on one's own machine
    #[command(subcommand)]
    Dev(DevCommand),
}

#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show the nodes, who votes and who leads
    Status(AdminArgs),
    /// Let a node that waits for a cluster join the one that another node is in
    Join(JoinArgs),
    /// Take a node out of the cluster, and wait until it is out
    Remove(RemoveArgs),
    /// Let another node lead the metadata
    TransferLeader(TransferArgs),
}

impl ClusterCommand {
    pub fn admin(&self) -> &AdminArgs {
        match self {
            Self::Status(admin) => admin,
            Self::Join(args) => &args.admin,
            Self::Remove(args) => &args.admin,
            Self::TransferLeader(args) => &args.admin,
        }
    }
}

/// Which node to ask over its admin HTTP, and how to print its answer.
#[derive(Debug, Args)]
pub struct AdminArgs {
    /// Where the node serves metrics and health, its `admin.addr`; changes are taken from its own host only
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9094")]
    pub admin: String,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
    /// Seconds to wait for the node
    #[arg(long = "timeout", value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub timeout_s: u32,
}

#[derive(Debug, Args)]
pub struct JoinArgs {
    /// Where a node of the cluster listens for other nodes, its `cluster.cluster_addr`
    #[arg(value_name = "HOST:PORT", value_parser = host_port)]
    pub through: String,
    #[command(flatten)]
    pub admin: AdminArgs,
}

#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The id of the node
    #[arg(value_name = "NODE")]
    pub node: u32,
    /// Remove a dead node although it holds replicas: they are given up wherever others remain
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub admin: AdminArgs,
}

#[derive(Debug, Args)]
pub struct TransferArgs {
    /// The node that shall lead [default: the voter that is least behind]
    #[arg(long, value_name = "NODE")]
    pub to: Option<u32>,
    #[command(flatten)]
    pub admin: AdminArgs,
}

#[derive(Debug, Args)]
pub struct MembersArgs {
    #[command(flatten)]
    pub admin: AdminArgs,
    #[command(subcommand)]
    pub command: Option<MembersCommand>,
}

#[derive(Debug, Subcommand)]
pub enum MembersCommand {
    /// See or change the keys under which this one node gossips
    #[command(subcommand)]
    Keys(KeysCommand),
}

#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Show the keys, which one is in use, and how much arrived under each
    List(AdminArgs),
    /// Accept datagrams under a further key too
    Install(InstallArgs),
    /// Send under a key that is installed
    Use(KeyArgs),
    /// Refuse datagrams under a key that is not in use
    Remove(KeyArgs),
}

#[derive(Debug, Args)]
pub struct InstallArgs {
    /// A file that holds the secret and nothing else, 16 bytes or more
    #[arg(value_name = "SECRET_FILE")]
    pub secret_file: PathBuf,
    #[command(flatten)]
    pub admin: AdminArgs,
}

#[derive(Debug, Args)]
pub struct KeyArgs {
    /// The number of the key, as `list` shows it
    #[arg(value_name = "KEY")]
    pub key: u8,
    #[command(flatten)]
    pub admin: AdminArgs,
}

#[derive(Debug, Subcommand)]
pub enum DevCommand {
    /// Run a cluster of small nodes on this machine until Ctrl-C
    #[command(after_help = DEV_HELP)]
    Cluster(DevClusterArgs),
}

#[derive(Debug, Args)]
pub struct DevClusterArgs {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub nodes: u16,
    /// Where the nodes keep their data and the secret that they share
    #[arg(long, value_name = "DIR", default_value = "./highwater-dev")]
    pub data_dir: PathBuf,
    /// Of node 1: Kafka clients on this port, other nodes on the next, metrics on the one after; node 2 ten ports on
    #[arg(long, value_name = "PORT", default_value_t = 9092, value_parser = clap::value_parser!(u16).range(1024..=65_000))]
    pub port: u16,
    /// Set any key on all nodes, such as log.level=warn; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_and_value)]
    pub set: Vec<(String, String)>,
}

#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Print what journal, segment, index and checkpoint files hold, and verify every bit of it
    #[command(after_help = INSPECT_HELP)]
    Inspect(InspectArgs),
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A file, told by what it begins with, or a folder: a data directory, a journal's or a partition's
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// List every batch too; of an index its entries, of a checkpoint its logs
    #[arg(long)]
    pub batches: bool,
    /// Print JSON instead of text, one object a line
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum TopicCommand {
    /// Create topics
    Create(CreateArgs),
    /// List all topics
    List(NodeArgs),
    /// Show partitions, leaders, offsets and settings of topics
    Describe(DescribeArgs),
    /// Delete topics and everything in them
    Delete(DeleteArgs),
    /// Delete the records before an offset
    DeleteRecords(DeleteRecordsArgs),
}

impl TopicCommand {
    pub fn node(&self) -> &NodeArgs {
        match self {
            Self::Create(args) => &args.node,
            Self::List(node) => node,
            Self::Describe(args) => &args.node,
            Self::Delete(args) => &args.node,
            Self::DeleteRecords(args) => &args.node,
        }
    }
}

/// Which node to ask, and how to print its answer.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// Where a node listens for Kafka clients; of several, separated by commas, the first that answers
    #[arg(long, short, value_name = "HOST:PORT", default_value = "127.0.0.1:9092")]
    pub bootstrap: String,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
    /// Seconds to wait for the node at each step
    #[arg(long = "timeout", value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub timeout_s: u32,
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Names of the topics: letters, digits, `.`, `_` and `-`
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// How many partitions [default: what the node is configured to, cluster.topic_defaults.partitions]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i32::MAX as i64))]
    pub partitions: Option<u32>,
    /// How many replicas of each partition [default: what the node is configured to, cluster.topic_defaults.replication_factor]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(i16).range(1..))]
    pub replication_factor: Option<i16>,
    /// A setting of the topics, such as max.message.bytes=1048576; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_and_value)]
    pub config: Vec<(String, String)>,
    /// Succeed for topics that exist already
    #[arg(long)]
    pub if_not_exists: bool,
    #[command(flatten)]
    pub node: NodeArgs,
}

#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// Names of the topics
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    #[command(flatten)]
    pub node: NodeArgs,
}

#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Names of the topics
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// Succeed for topics that do not exist
    #[arg(long)]
    pub if_exists: bool,
    #[command(flatten)]
    pub node: NodeArgs,
}

#[derive(Debug, Args)]
pub struct DeleteRecordsArgs {
    /// Topics, or single partitions of them
    #[arg(required = true, value_name = "TOPIC[:PARTITION]", value_parser = target)]
    pub targets: Vec<Target>,
    /// The first offset to keep, or `latest`: delete all that consumers can read now
    #[arg(long, value_name = "OFFSET|latest", value_parser = before)]
    pub before: Before,
    #[command(flatten)]
    pub node: NodeArgs,
}

/// A topic, or one partition of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub topic: String,
    pub partition: Option<i32>,
}

/// Where the records that are kept begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    Latest,
    /// Not negative.
    Offset(i64),
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every error of a configuration, or the effective one with the origin of each value
    ///
    /// Reads the same layers as `serve`: defaults, profile, file, HIGHWATER_* variables, flags. Also fits the cores to
    /// this host.
    Check(CheckArgs),
    /// Print a commented configuration with every key at its default
    ShowDefault,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The file to check; without it, what `highwater` alone would use
    file: Option<PathBuf>,
    /// Leave out whether the cores exist on this host
    #[arg(long)]
    any_host: bool,
    #[command(flatten)]
    overrides: Overrides,
}

#[derive(Debug, Args, Default)]
pub struct ServeArgs {
    /// The configuration file (YAML); the variable HIGHWATER_CONFIG names it too
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
}

/// Flags that set keys, over everything else.
#[derive(Debug, Args, Default)]
pub struct Overrides {
    /// Where the node keeps its data [default: ./highwater-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// IP address and port for Kafka clients [default: 127.0.0.1:9092]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// HOST:PORT that clients are told to connect to [default: that of --listen]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// IP address and port for metrics and health, or `none` [default: 127.0.0.1:9094]
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
    /// `auto`, or cores such as 0-2: the first is the control core, the others are shards [default: auto]
    #[arg(long, value_name = "CORES")]
    cores: Option<String>,
    /// Settings for a kind of host in place of the defaults: latency, throughput or dev
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Set any key, such as kafka.auto_create_topics=false; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_and_value)]
    set: Vec<(String, String)>,
}

const SERVE_HELP: &str = "\
Examples:
  highwater serve --config /etc/highwater.yaml
  highwater serve --data-dir /var/lib/highwater --listen 0.0.0.0:9092 --advertise broker1.example:9092
  highwater serve --cores 0-3 --set storage.tail_bytes=1GiB
  HIGHWATER_CORES_SHARDS=1,2 highwater serve

Later layers win: built-in defaults, the profile, the file, HIGHWATER_* variables, flags.
`highwater config show-default` prints every key. SIGINT and SIGTERM stop the node cleanly.
";

const TOPIC_HELP: &str = "\
Examples:
  highwater topic create orders --partitions 8 --replication-factor 3
  highwater topic create audit --config max.message.bytes=1048576 --if-not-exists
  highwater topic list --bootstrap broker1.example:9092 --json
  highwater topic describe orders
  highwater topic delete orders audit
  highwater topic delete-records orders:3 --before 250000
  highwater topic delete-records orders --before latest
";

const CLUSTER_HELP: &str = "\
Examples:
  highwater cluster status
  highwater cluster status --admin 10.0.0.2:9094 --json
  highwater cluster remove 3
  highwater cluster remove 3 --force
  highwater cluster transfer-leader --to 2

A new node needs no command: with the `cluster.seeds` of the others it joins by itself.
";

const MEMBERS_HELP: &str = "\
Examples:
  highwater members
  highwater members --admin 10.0.0.2:9094 --json
  highwater members keys list
  highwater members keys install ./new-secret

A key is changed on one node at a time, from its own host. To change it for a cluster without a gap, run each step on every
node before the next one: `install` the new secret, `use` its key, and `remove` the old key once `list` shows that nothing
arrives under it. What is installed lasts until the node stops; it starts with the key of the cluster's secret.
";

const DEV_HELP: &str = "\
Examples:
  highwater dev cluster
  highwater dev cluster --nodes 5 --data-dir /tmp/hw --set log.level=warn

A node that ends is not started again: the others are stopped, and the exit status is that of the node.
";

const INSPECT_HELP: &str = "\
Examples:
  highwater log inspect ./highwater-data
  highwater log inspect ./highwater-data/journal-0 --batches
  highwater log inspect ./highwater-data/partitions/<topic id>-0/00000000000000000000-000000.log --json

It only reads, takes no lock, and may run beside a node. A running node writes on and deletes while this reads: then the
tail of a file may look torn, and a file may be gone. What is not right is printed with file, position and reason:
`damaged` ends with exit status 6; `torn` is what a crash may leave behind what was promised, and is cut off at start.
";

fn help_end() -> String {
    format!(
        "Examples:\n  \
         highwater                                  start a node here and now\n  \
         highwater --profile dev --data-dir /tmp/hw start a small one\n  \
         highwater config show-default > hw.yaml    write down every key\n  \
         highwater config check hw.yaml             is it right, and where does each value come from\n  \
         highwater serve --config hw.yaml           start a node with it\n  \
         highwater topic create orders              make a topic on the node that runs here\n  \
         highwater dev cluster                      run three nodes here\n\n\
         Exit status:\n{}",
        ExitStatus::table()
    )
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().into(), value.into())),
        _ => Err("expected KEY=VALUE, such as cores.shards=[1,2]".into()),
    }
}

fn host_port(text: &str) -> Result<String, String> {
    match crate::config::HostPort::parse(text) {
        Some(at) => Ok(at.to_string()),
        None => Err("expected HOST:PORT, such as n1.example:9093".into()),
    }
}

fn target(text: &str) -> Result<Target, String> {
    let (topic, partition) = match text.split_once(':') {
        Some((topic, partition)) => (topic, partition.parse::<i32>().map(Some)),
        None => (text, Ok(None)),
    };
    match partition {
        Ok(partition @ (None | Some(0..))) if !topic.is_empty() => {
            Ok(Target { topic: topic.into(), partition })
        }
        _ => Err("expected a topic, or a topic and the number of a partition, such as orders:3".into()),
    }
}

fn before(text: &str) -> Result<Before, String> {
    if text == "latest" {
        return Ok(Before::Latest);
    }
    let offset = text.parse().ok().filter(|offset: &i64| *offset >= 0);
    offset.map(Before::Offset).ok_or_else(|| "expected an offset from 0 on, or `latest`".into())
}

impl Cli {
    /// Reads the arguments of the process. On `--help`, `--version` and usage errors it prints and ends the process,
    /// with [`ExitStatus::Ok`] or [`ExitStatus::Usage`].
    pub fn parse() -> Command {
        <Self as Parser>::parse().into_command()
    }

    fn into_command(self) -> Command {
        self.command.unwrap_or(Command::Serve(self.serve))
    }
}

impl ServeArgs {
    /// The configuration of the node from all layers of this process.
    pub fn load(&self) -> Result<Loaded, Failure> {
        self.overrides.load(self.config.as_deref())
    }
}

impl Overrides {
    fn settings(&self) -> Vec<Setting> {
        let named = [
            ("--data-dir", "storage.data_dir", &self.data_dir),
            ("--listen", "cluster.client_addr", &self.listen),
            ("--advertise", "cluster.client_addr_advertised", &self.advertise),
            ("--admin", "admin.addr", &self.admin),
            ("--cores", "cores", &self.cores),
            ("--profile", "profile", &self.profile),
        ];
        let named = named.into_iter().filter_map(|(flag, path, value)| {
            let value = value.clone()?;
            Some(Setting { path: path.into(), flag: format!("{flag} {value}"), value })
        });
        let set = self.set.iter().map(|(path, value)| Setting {
            path: path.clone(),
            value: value.clone(),
            flag: format!("--set {path}={value}"),
        });
        named.chain(set).collect()
    }

    fn load(&self, file: Option<&Path>) -> Result<Loaded, Failure> {
        let from_env = std::env::var_os(ENV_CONFIG).filter(|path| !path.is_empty()).map(PathBuf::from);
        let file = file.map(Path::to_owned).or(from_env);
        let env = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()));
        let sources = Sources {
            file: file.as_deref().map(read_file).transpose()?,
            env: env.collect(),
            flags: self.settings(),
        };
        load(&sources).map_err(|problems| Failure::new(ExitStatus::Refused, problems.to_string()))
    }
}

/// The file's name as given and its text.
fn read_file(path: &Path) -> Result<(String, String), Failure> {
    let name = path.display().to_string();
    let refuse = |why: String| Failure::new(ExitStatus::Refused, format!("{name}: {why}"));
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(READ_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(|e| refuse(format!("the configuration file cannot be read: {e}")))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        refuse(format!("line {line} is not UTF-8 text"))
    })?;
    Ok((name, text))
}

/// Fits the `cores` section to this host, and claims the cores that are pinned for as long as the claims live.
pub fn plan_cores(loaded: &Loaded) -> Result<(CorePlan, CoreClaims), Failure> {
    let (host, mut claims) = Host::detect();
    let plan = CorePlan::resolve(&loaded.config.cores, &host)
        .map_err(|e| Failure::new(ExitStatus::Environment, e.to_string()))?;
    claims.keep(&plan);
    Ok((plan, claims))
}

impl ConfigCommand {
    /// Carries the command out; the result is what goes to standard output.
    pub fn run(&self) -> Result<String, Failure> {
        match self {
            Self::ShowDefault => Ok(render_reference()),
            Self::Check(args) => {
                let loaded = args.overrides.load(args.file.as_deref())?;
                let mut out = render_effective(&loaded);
                if !args.any_host {
                    let (plan, _) = plan_cores(&loaded)?;
                    out.push_str(&format!("\n# On this host: {plan}.\n"));
                }
                Ok(out)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn command(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split_whitespace()).map(Cli::into_command)
    }

    fn serve(line: &str) -> ServeArgs {
        match command(line).unwrap() {
            Command::Serve(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_bare_call_serves_and_takes_the_flags_of_serve() {
        assert!(serve("highwater").overrides.settings().is_empty());
        for line in ["highwater --cores 0-2 -c x.yaml", "highwater serve --cores 0-2 -c x.yaml"] {
            let args = serve(line);
            assert_eq!(args.config.as_deref(), Some(Path::new("x.yaml")));
            assert_eq!(args.overrides.settings()[0].flag, "--cores 0-2");
        }
        assert!(command("highwater --cores 0-2 config show-default").is_err());
    }

    #[test]
    fn every_flag_sets_a_key_that_exists() {
        let args = serve(
            "highwater --data-dir d --listen 0.0.0.0:1 --advertise h:2 --admin none --cores auto --profile dev \
             --set kafka.connections_max=7 --set log.level=warn,a=debug",
        );
        let loaded = load(&Sources { flags: args.overrides.settings(), ..Sources::default() })
            .unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(loaded.config.storage.data_dir, PathBuf::from("d"));
        assert_eq!(loaded.config.cluster.advertised().to_string(), "h:2");
        assert_eq!(loaded.config.admin.addr, None);
        assert_eq!(loaded.config.kafka.connections_max, 7);
        assert_eq!(loaded.config.log.level, "warn,a=debug");
        assert!(command("highwater --set kafka.connections_max").is_err());
    }

    #[test]
    fn topic_commands_need_names_and_know_the_local_node() {
        let Command::Topic(list) = command("highwater topic list").unwrap() else { panic!("not topic") };
        assert_eq!((list.node().bootstrap.as_str(), list.node().timeout_s), ("127.0.0.1:9092", 30));
        for bad in [
            "highwater topic create",
            "highwater topic create a --partitions 0",
            "highwater topic create a --config novalue",
            "highwater topic delete",
            "highwater topic delete-records a",
            "highwater topic delete-records --before 5",
            "highwater topic delete-records a:x --before 5",
            "highwater topic delete-records a:-1 --before 5",
            "highwater topic delete-records :1 --before 5",
            "highwater topic delete-records a --before=-5",
            "highwater topic delete-records a --before soon",
            "highwater topic list --timeout 0",
        ] {
            assert_eq!(command(bad).unwrap_err().exit_code(), ExitStatus::Usage as i32, "{bad}");
        }
    }

    #[test]
    fn cluster_commands_know_the_local_node_and_refuse_odd_targets() {
        let Command::Cluster(command) = command("highwater cluster status").unwrap() else {
            panic!("not cluster")
        };
        assert_eq!((command.admin().admin.as_str(), command.admin().timeout_s), ("127.0.0.1:9094", 30));
        for bad in [
            "highwater cluster join",
            "highwater cluster join n1",
            "highwater cluster remove",
            "highwater cluster remove -1",
            "highwater cluster transfer-leader 2",
            "highwater dev cluster --nodes 0",
            "highwater dev cluster --set novalue",
        ] {
            assert_eq!(
                super::tests::command(bad).unwrap_err().exit_code(),
                ExitStatus::Usage as i32,
                "{bad}"
            );
        }
    }

    #[test]
    fn records_are_deleted_of_topics_or_of_single_partitions() {
        let line = "highwater topic delete-records orders audit:3 --before latest";
        let Ok(Command::Topic(TopicCommand::DeleteRecords(args))) = command(line) else { panic!("{line}") };
        let target = |topic: &str, partition| Target { topic: topic.into(), partition };
        assert_eq!(args.targets, [target("orders", None), target("audit", Some(3))]);
        assert_eq!((args.before, before("250")), (Before::Latest, Ok(Before::Offset(250))));
    }

    #[test]
    fn help_names_examples_defaults_and_every_exit_status() {
        let help = Cli::command().render_long_help().to_string();
        for status in ExitStatus::ALL {
            assert!(help.contains(status.meaning()), "{status:?}");
        }
        assert!(help.contains("Examples:") && help.contains("127.0.0.1:9092"), "{help}");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let failure = read_file(Path::new("/nonexistent/hw.yaml")).unwrap_err();
        assert_eq!(failure.status, ExitStatus::Refused);
        assert!(failure.message.starts_with("/nonexistent/hw.yaml: the configuration file cannot be read"));
    }
}
