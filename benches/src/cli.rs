//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::units::{parse_count, parse_duration, parse_key_value, parse_size};

/// Measure any broker that speaks the Kafka protocol, and the machine under it.
///
/// With --rate the load is open loop: requests are due on a fixed schedule, and latency counts from the moment a request
/// was due, whether or not it could be sent then (no coordinated omission). Without --rate it is closed loop: every
/// connection keeps --in-flight requests going.
#[derive(Debug, Parser)]
#[command(name = "highwater-bench", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Produce; latency from due time to acknowledgement
    Produce(ProduceArgs),
    /// Produce and consume; latency from due time to the record's arrival at the consumer
    #[command(visible_alias = "end-to-end")]
    E2e(ProduceArgs),
    /// Consume what a topic holds; latency of each fetch that brought records
    Consume(ConsumeArgs),
    /// Change settings of topics, as fast as the cluster agrees on them; or put values into an etcd
    Metadata(MetadataArgs),
    /// What the machine itself can do: disk, TCP, a bare echo server
    #[command(subcommand)]
    Floor(Floor),
    /// Draw one page from the summary.json files of several runs
    Compare(CompareArgs),
    /// The other process of a floor measurement
    #[command(subcommand, hide = true)]
    Peer(Peer),
}

#[derive(Clone, Debug, Args)]
pub struct TargetArgs {
    /// Bootstrap brokers, HOST:PORT, comma-separated
    #[arg(long, short = 'b', default_value = "127.0.0.1:9092", value_delimiter = ',')]
    pub brokers: Vec<String>,
    /// Topic; created when missing
    #[arg(long, short = 't', default_value = "bench")]
    pub topic: String,
    /// Partitions to use (default: all of an existing topic, 1 of a new one)
    #[arg(long, short = 'p')]
    pub partitions: Option<i32>,
    /// Replication factor of a new topic (-1: the broker's default)
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    pub replication: i16,
    /// Setting of a new topic, e.g. highwater.durability=replicated (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_key_value)]
    pub topic_config: Vec<(String, String)>,
    #[arg(long, default_value = "highwater-bench")]
    pub client_id: String,
}

#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Connections, each to the leader of its partition
    #[arg(long, short = 'c', default_value_t = 1)]
    pub connections: usize,
    /// Client threads that serve the connections
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Length of the measured window [default: 10s, or until --records are done]
    #[arg(long, short = 'd', value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Stop after this many records in the measured window
    #[arg(long, short = 'n', value_parser = parse_count)]
    pub records: Option<f64>,
    /// Load before the measured window
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    pub warmup: Duration,
    /// How long a request may take, retries included
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// How long outstanding answers are waited for after the window
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    pub drain: Duration,
    /// Process to account CPU to: the broker's, on this machine
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
    /// With --server-pid: how long to watch the idle broker before the load
    #[arg(long, default_value = "2s", value_parser = parse_duration)]
    pub idle: Duration,
}

#[derive(Clone, Debug, Args)]
pub struct OutputArgs {
    /// Folder for latency.hlog, summary.json and report.html [default: ./bench-results/TIME]
    #[arg(long, short = 'o', conflicts_with = "no_files")]
    pub out: Option<PathBuf>,
    /// Write no files
    #[arg(long)]
    pub no_files: bool,
    /// Name of this run, in its page and in comparisons
    #[arg(long)]
    pub label: Option<String>,
    /// Print the summary as JSON on standard output, everything else on standard error
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Acks {
    #[value(name = "0")]
    None,
    #[value(name = "1")]
    Leader,
    #[value(name = "all", alias = "-1")]
    All,
}

impl Acks {
    pub fn wire(self) -> i16 {
        match self {
            Acks::None => 0,
            Acks::Leader => 1,
            Acks::All => -1,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Acks::None => "0",
            Acks::Leader => "1",
            Acks::All => "all",
        }
    }
}

#[derive(Clone, Debug, Args)]
pub struct ProduceArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    /// Open loop: records per second over all connections (50000, 50k, 1.5M)
    #[arg(long, short = 'r', value_parser = parse_count)]
    pub rate: Option<f64>,
    /// Open loop: poll for the last 100 us before a request is due, for exact send times at the cost of CPU
    #[arg(long, requires = "rate")]
    pub spin: bool,
    /// Bytes of each record's value
    #[arg(long, short = 's', default_value = "1KiB", value_parser = parse_size)]
    pub record_size: usize,
    /// Records per batch; a request carries one batch
    #[arg(long, short = 'B', default_value_t = 1)]
    pub batch: usize,
    /// Requests in flight per connection
    #[arg(long, short = 'w', default_value_t = 1)]
    pub in_flight: usize,
    #[arg(long, short = 'a', default_value = "all", value_enum, allow_hyphen_values = true)]
    pub acks: Acks,
    /// Produce with sequence numbers, each connection as a producer of its own
    #[arg(long)]
    pub idempotent: bool,
    /// End to end: bytes that the consumer asks for at once
    #[arg(long, default_value = "4MiB", value_parser = parse_size)]
    pub fetch_size: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum From {
    /// Everything that is there now
    Earliest,
    /// Only what comes from now on
    Latest,
}

#[derive(Clone, Debug, Args)]
pub struct ConsumeArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    /// Where to begin; `earliest` ends at the end that the log had at the start, unless --follow
    #[arg(long, default_value = "earliest", value_enum)]
    pub from: From,
    /// Go on at the end of the log and wait for more
    #[arg(long)]
    pub follow: bool,
    /// Bytes asked for at once, per partition and in all
    #[arg(long, default_value = "4MiB", value_parser = parse_size)]
    pub fetch_size: usize,
    /// The broker answers when it has this many bytes
    #[arg(long, default_value = "1", value_parser = parse_size)]
    pub min_bytes: usize,
    /// Or after this time
    #[arg(long, default_value = "500ms", value_parser = parse_duration)]
    pub max_wait: Duration,
}

#[derive(Clone, Debug, Args)]
pub struct MetadataArgs {
    /// Brokers, HOST:PORT, comma-separated; connections go to each in turn
    #[arg(long, short = 'b', default_value = "127.0.0.1:9092", value_delimiter = ',')]
    pub brokers: Vec<String>,
    /// Servers of an etcd, HOST:PORT, comma-separated: puts of 200 B over gRPC instead
    #[arg(long, value_delimiter = ',', conflicts_with = "brokers")]
    pub etcd: Vec<String>,
    /// Connections, each with a topic of its own
    #[arg(long, short = 'c', default_value_t = 1)]
    pub connections: usize,
    /// Requests in flight per connection
    #[arg(long, short = 'w', default_value_t = 1)]
    pub in_flight: usize,
    #[arg(long, short = 'd', default_value = "10s", value_parser = parse_duration)]
    pub duration: Duration,
    /// Load before the measured window
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    pub warmup: Duration,
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
    /// summary.json of each run
    #[arg(required = true)]
    pub summaries: Vec<PathBuf>,
    #[arg(long, short = 'o', default_value = "compare.html")]
    pub out: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum Floor {
    /// Write and fdatasync into a pre-written file, with O_DIRECT and through the page cache
    Disk {
        /// Folder on the disk to measure
        #[arg(long)]
        dir: PathBuf,
        #[arg(long, default_value = "4KiB", value_parser = parse_size)]
        size: usize,
        /// Size of the pre-written file
        #[arg(long, default_value = "64MiB", value_parser = parse_size)]
        file_size: usize,
        #[arg(long, short = 'd', default_value = "3s", value_parser = parse_duration)]
        duration: Duration,
        #[arg(long)]
        json: bool,
    },
    /// Bare TCP ping-pong between two processes with blocking sockets
    Tcp {
        #[arg(long, default_value = "1KiB", value_parser = parse_size)]
        size: usize,
        /// Bytes of the answer [default: --size]
        #[arg(long, value_parser = parse_size)]
        reply_size: Option<usize>,
        #[arg(long, short = 'd', default_value = "3s", value_parser = parse_duration)]
        duration: Duration,
        #[arg(long)]
        json: bool,
    },
    /// One-way TCP rate between two processes, like iperf3
    Stream {
        /// Bytes of each write
        #[arg(long, default_values = ["64KiB", "128KiB", "1MiB"], value_parser = parse_size, value_delimiter = ',')]
        write_size: Vec<usize>,
        #[arg(long, short = 'd', default_value = "2s", value_parser = parse_duration)]
        duration: Duration,
        #[arg(long)]
        json: bool,
    },
    /// A tokio echo server under this client's load shapes, with the server's CPU per message
    Echo {
        #[arg(long, value_enum, default_values = ["ping-pong", "pipelined", "pipelined-1k", "conns64"], value_delimiter = ',')]
        shape: Vec<EchoShape>,
        /// Messages in flight in the pipelined shapes
        #[arg(long, default_value_t = 256)]
        window: usize,
        /// Bytes of each message, instead of the shape's own
        #[arg(long, value_parser = parse_size)]
        size: Option<usize>,
        #[arg(long, short = 'd', default_value = "3s", value_parser = parse_duration)]
        duration: Duration,
        #[arg(long)]
        json: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EchoShape {
    /// One connection, one message of 100 B in flight
    PingPong,
    /// One connection, --window messages of 100 B in flight
    Pipelined,
    /// One connection, --window messages of 1 KiB in flight
    #[value(name = "pipelined-1k")]
    Pipelined1k,
    /// 64 connections, each with one message of 100 B in flight
    Conns64,
}

#[derive(Debug, Subcommand)]
pub enum Peer {
    /// Answers every `size` bytes with `reply_size` bytes, on one blocking connection
    PingPong { size: usize, reply_size: usize },
    /// Reads one blocking connection to its end, then answers with the byte count
    Sink,
    /// A tokio current_thread echo server for any number of connections
    Echo,
}
