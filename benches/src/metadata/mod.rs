//! Changes of metadata: how many settings of topics a cluster takes in a second, and how long one takes. Beside it, an
//! etcd under the same client: Put over gRPC.
//!
//! Both are about 200 B of replicated log entry each, and are answered when a majority has them on disk.

mod alter;
mod etcd;

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::alter::AlterWire;
use self::etcd::EtcdWire;
use crate::cli::MetadataArgs;
use crate::floor::FloorRow;
use crate::kafka::client::{Directory, TopicSpec};
use crate::load::lane::Lane;
use crate::load::recorder::{Interval, Note, Phase, Recorder, Role, Window};
use crate::load::schedule::Pace;
use crate::load::worker::{Plan, Worker};
use crate::load::{RunClock, Wire};
use crate::report::note;

const INBOX_BYTES: usize = 64 << 10;
const CONNECTIONS_MAX: usize = 10_000;
const IN_FLIGHT_MAX: usize = 4096;
const TIMEOUT_NS: u64 = 30_000_000_000;
const DRAIN_NS: u64 = 1_000_000_000;
const CLIENT_ID: &str = "highwater-bench";

/// Connection `n` changes the settings of a topic of its own, or the value of a key of its own.
pub fn measure(args: &MetadataArgs) -> Result<FloorRow> {
    if !(1..=CONNECTIONS_MAX).contains(&args.connections) || !(1..=IN_FLIGHT_MAX).contains(&args.in_flight) {
        bail!("--connections must be 1 to {CONNECTIONS_MAX}, --in-flight 1 to {IN_FLIGHT_MAX}");
    }
    let servers = if args.etcd.is_empty() { &args.brokers } else { &args.etcd };
    let addresses = servers.iter().map(|server| resolve(server)).collect::<Result<Vec<_>>>()?;
    let address_of = |index: usize| addresses[index % addresses.len()];
    let shape = match (args.connections, args.in_flight) {
        (1, 1) => "one client".to_owned(),
        (connections, in_flight) => format!("{connections} x {in_flight} in flight"),
    };
    if args.etcd.is_empty() {
        let topics: Vec<String> = (0..args.connections).map(|n| format!("bench-metadata-{n}")).collect();
        ensure_topics(args, &topics)?;
        let wires = (0..).zip(&topics).map(|(n, topic)| AlterWire::new(address_of(n), topic, CLIENT_ID));
        run(args, wires.collect(), format!("settings of topics, {shape}"))
    } else {
        let wires = (0..args.connections).map(|n| EtcdWire::new(address_of(n), &format!("bench-{n}")));
        run(args, wires.collect(), format!("etcd puts, {shape}"))
    }
}

fn resolve(server: &str) -> Result<SocketAddr> {
    let mut found = server.to_socket_addrs().with_context(|| format!("`{server}` is no HOST:PORT"))?;
    found.next().with_context(|| format!("`{server}` has no address"))
}

fn ensure_topics(args: &MetadataArgs, topics: &[String]) -> Result<()> {
    for topic in topics {
        let directory =
            Directory { brokers: args.brokers.clone(), client_id: CLIENT_ID.into(), topic: topic.clone() };
        let spec = TopicSpec { name: topic.clone(), partitions: 1, replication: 1, configs: Vec::new() };
        directory.ensure_topic(&spec)?;
    }
    Ok(())
}

fn run<W: Wire + Send + 'static>(args: &MetadataArgs, mut wires: Vec<W>, name: String) -> Result<FloorRow> {
    let mut lanes = Vec::new();
    for (index, mut wire) in wires.drain(..).enumerate() {
        let address = wire.locate()?;
        let stream = TcpStream::connect(address).with_context(|| format!("nobody answers at {address}"))?;
        stream.set_nodelay(true)?;
        lanes.push(Lane::new(index, wire, stream, args.in_flight, INBOX_BYTES));
    }
    let start_ns = args.warmup.as_nanos() as u64;
    let window = Window { start_ns, end_ns: start_ns + args.duration.as_nanos() as u64 };
    let plan = Plan {
        clock: RunClock::start(),
        window,
        drain_ns: DRAIN_NS,
        timeout_ns: TIMEOUT_NS,
        pace: Pace::Closed,
        quota: None,
        records_max: None,
        records_per_request: 1,
        bytes_per_request: 0,
        finish_line: None,
        abort: Arc::default(),
        spin_ns: 0,
    };
    let (notes, seen) = channel();
    let worker = Worker::new(plan, lanes, Recorder::new(0, Role::Answers, window, notes));
    let in_flight = args.in_flight;
    let thread = std::thread::spawn(move || worker.run(in_flight));
    let mut total = Interval::empty(Role::Answers, Phase::Measured, 0, 0);
    for seen in seen.iter() {
        match seen {
            Note::Interval { interval, .. } if interval.phase == Phase::Measured => total.add(&interval),
            Note::Finished { result: Err(reason), .. } => bail!("the run stopped: {reason}"),
            _ => {}
        }
    }
    thread.join().expect("the worker thread panicked");
    let troubles = &total.troubles;
    if *troubles != crate::load::recorder::Troubles::default() {
        note(&format!("troubles: {troubles:?}"));
    }
    if troubles.failed + troubles.unanswered > 0 {
        bail!("{} requests were refused and {} not answered", troubles.failed, troubles.unanswered);
    }
    let rate = total.requests as f64 / Duration::as_secs_f64(&args.duration);
    Ok(FloorRow::new(name, rate, total.bytes as f64 / args.duration.as_secs_f64())
        .with_latency(&total.latencies))
}
