//! A run against a broker: topic, connections, worker threads, and the books at the end.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::cli::{Acks, ConsumeArgs, From, ProduceArgs, RunArgs, TargetArgs};
use crate::collect::{CpuProbe, Outcome, collect};
use crate::kafka::batch::{BatchSpec, STAMP_BYTES};
use crate::kafka::client::{Directory, Edge, TopicSpec};
use crate::kafka::fetch::{self, FetchSpec, FetchWire, Position};
use crate::kafka::produce::{self, Payload, ProduceSpec, ProduceWire};
use crate::load::lane::Lane;
use crate::load::recorder::{Note, Recorder, Role, Window};
use crate::load::schedule::{Pace, Schedule};
use crate::load::worker::{FinishLine, Plan, Worker};
use crate::load::{RunClock, Wire};
use crate::report::summary::{LogGrowth, Mode, RunConfig, Summary};
use crate::report::{Files, note};

const INBOX_BYTES: usize = 64 << 10;
const FETCH_MAX_WAIT_MS: i32 = 500;
/// The log's end is what consumers may see, which follows an acks=1 append after a moment.
const GROWTH_PATIENCE: Duration = Duration::from_secs(3);
/// With --spin: how long before a due time sleeping ends. A wake-up can be this late.
const SPIN_NS: u64 = 100_000;
const CONNECTIONS_MAX: usize = 20_000;
const IN_FLIGHT_MAX: usize = 1 << 20;

/// One connection's share of the topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    pub leader: SocketAddr,
    pub partitions: Vec<i32>,
}

/// Deals partitions out to connections: every connection has one leader, and every partition at least one connection if
/// there are as many connections as leaders. The second value names partitions that got none.
pub fn deal(leaders: &BTreeMap<i32, SocketAddr>, connections: usize) -> (Vec<Share>, Vec<i32>) {
    let mut by_leader: BTreeMap<SocketAddr, Vec<i32>> = BTreeMap::new();
    for (partition, leader) in leaders {
        by_leader.entry(*leader).or_default().push(*partition);
    }
    // One partition of each leader, then the next of each: the first connections reach all leaders.
    let rounds = by_leader.values().map(Vec::len).max().unwrap_or(0);
    let order: Vec<(i32, SocketAddr)> = (0..rounds)
        .flat_map(|round| {
            by_leader
                .iter()
                .filter_map(move |(leader, of)| of.get(round).map(|partition| (*partition, *leader)))
        })
        .collect();
    let mut shares: Vec<Share> = (0..connections)
        .map(|i| order[i % order.len()])
        .map(|(partition, leader)| Share { leader, partitions: vec![partition] })
        .collect();
    let mut left_out = Vec::new();
    for (partition, leader) in order.into_iter().skip(connections) {
        match shares.iter_mut().filter(|s| s.leader == leader).min_by_key(|s| s.partitions.len()) {
            Some(share) => share.partitions.push(partition),
            None => left_out.push(partition),
        }
    }
    (shares, left_out)
}

/// What both kinds of runs need to know about the topic.
struct Prepared {
    directory: Directory,
    leaders: BTreeMap<i32, SocketAddr>,
}

fn prepare(target: &TargetArgs) -> Result<Prepared> {
    let directory = Directory {
        brokers: target.brokers.clone(),
        client_id: target.client_id.clone(),
        topic: target.topic.clone(),
    };
    let spec = TopicSpec {
        name: target.topic.clone(),
        partitions: target.partitions.unwrap_or(1),
        replication: target.replication,
        configs: target.topic_config.clone(),
    };
    let (mut leaders, is_created) = directory.ensure_topic(&spec)?;
    if !is_created && !target.topic_config.is_empty() {
        note(&format!("topic `{}` exists, so --topic-config was not applied to it", target.topic));
    }
    if let Some(wanted) = target.partitions {
        if (leaders.len() as i64) < i64::from(wanted) {
            bail!("topic `{}` has {} partitions, not the {wanted} asked for", target.topic, leaders.len());
        }
        leaders.retain(|partition, _| *partition < wanted);
    }
    Ok(Prepared { directory, leaders })
}

fn connect(shares: &[Share]) -> Result<Vec<TcpStream>> {
    let open = |share: &Share| {
        TcpStream::connect_timeout(&share.leader, Duration::from_secs(3))
            .with_context(|| format!("the leader of partition {} at {}", share.partitions[0], share.leader))
    };
    shares.iter().map(open).collect()
}

fn window(run: &RunArgs) -> Window {
    let start_ns = run.warmup.as_nanos() as u64;
    let duration = match (run.duration, run.records) {
        (Some(duration), _) => Some(duration),
        (None, Some(_)) => None,
        (None, None) => Some(Duration::from_secs(10)),
    };
    Window { start_ns, end_ns: duration.map_or(u64::MAX, |duration| start_ns + duration.as_nanos() as u64) }
}

fn check_run(run: &RunArgs) -> Result<()> {
    if run.connections == 0 || run.connections > CONNECTIONS_MAX {
        bail!("--connections must be 1 to {CONNECTIONS_MAX}");
    }
    if run.threads == 0 || run.threads > run.connections {
        bail!("--threads must be 1 to the number of connections");
    }
    Ok(())
}

/// Starts one thread per group of lanes.
struct Crew<'a> {
    plan: &'a Plan,
    notes: &'a Sender<Note>,
    roles: Vec<Role>,
    threads: Vec<std::thread::JoinHandle<Vec<TcpStream>>>,
}

impl Crew<'_> {
    fn start<W: Wire + Send + 'static>(
        &mut self,
        plan: Plan,
        lanes: Vec<Lane<W>>,
        role: Role,
        in_flight: usize,
    ) {
        let worker = self.roles.len();
        self.roles.push(role);
        let recorder = Recorder::new(worker, role, plan.window, self.notes.clone());
        let body = move || Worker::new(plan, lanes, recorder).run(in_flight);
        let name = format!("bench-{worker}");
        self.threads
            .push(std::thread::Builder::new().name(name).spawn(body).expect("a thread can be started"));
    }

    /// Splits lanes over threads, and rate and quota with them.
    fn start_all<W: Wire + Send + 'static>(
        &mut self,
        lanes: Vec<Lane<W>>,
        threads: usize,
        requests_per_second: Option<f64>,
        in_flight: usize,
    ) {
        let total = lanes.len();
        let mut groups: Vec<Vec<Lane<W>>> = (0..threads).map(|_| Vec::new()).collect();
        for (i, lane) in lanes.into_iter().enumerate() {
            groups[i % threads].push(lane);
        }
        let mut quota_left = self.plan.quota;
        for (i, group) in groups.into_iter().enumerate() {
            let mut plan = self.plan.clone();
            if let Some(rate) = requests_per_second {
                plan.pace = Pace::Open(Schedule::new(rate, group.len(), total, i));
            }
            if let Some(left) = quota_left {
                let part = left / (threads - i) as u64;
                plan.quota = Some(part);
                quota_left = Some(left - part);
            }
            plan.records_max = plan.records_max.map(|records| records.div_ceil(threads as u64));
            self.start(plan, group, Role::Answers, in_flight);
        }
    }
}

pub fn produce(args: &ProduceArgs, mode: Mode) -> Result<Summary> {
    check_run(&args.run)?;
    if args.batch == 0 || args.in_flight == 0 || args.in_flight > IN_FLIGHT_MAX {
        bail!("--batch must be at least 1, and --in-flight 1 to {IN_FLIGHT_MAX}");
    }
    if args.batch.saturating_mul(args.record_size.saturating_add(16)) > 1 << 30 {
        bail!("a batch of {} records of {} bytes is over 1 GiB", args.batch, args.record_size);
    }
    if args.idempotent && args.acks != Acks::All {
        bail!("--idempotent needs --acks all");
    }
    let is_e2e = mode == Mode::EndToEnd;
    if is_e2e && args.record_size < STAMP_BYTES {
        bail!("end to end needs a --record-size of at least {STAMP_BYTES} bytes for the time stamp");
    }
    let Prepared { directory, leaders } = prepare(&args.target)?;
    let (shares, left_out) = deal(&leaders, args.run.connections);
    if !left_out.is_empty() {
        note(&format!(
            "no connection reaches the leaders of partitions {left_out:?}: they get no load (use more --connections)"
        ));
    }
    let mut client = directory.connect()?;
    let version = client.version(produce::API_KEY, produce::VERSIONS, "Produce")?;
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let run_id = since_epoch.as_nanos() as u64 ^ (u64::from(std::process::id()) << 48);
    let spec = ProduceSpec {
        version,
        client_id: args.target.client_id.clone(),
        topic: args.target.topic.clone(),
        acks: args.acks.wire(),
        timeout_ms: args.run.timeout.as_millis().clamp(1, 60_000) as i32,
        batch: BatchSpec {
            records: args.batch,
            value_bytes: args.record_size,
            timestamp_ms: since_epoch.as_millis() as i64,
            producer_id: -1,
            producer_epoch: -1,
        },
        stamp_run_id: is_e2e.then_some(run_id),
    };
    let payload = Payload::new(&spec);
    let mut lanes = Vec::new();
    for (index, (share, stream)) in shares.iter().zip(connect(&shares)?).enumerate() {
        let mut own = spec.clone();
        if args.idempotent {
            (own.batch.producer_id, own.batch.producer_epoch) = client.init_producer_id()?;
        }
        let wire = ProduceWire::new(directory.clone(), own, payload.clone(), &share.partitions);
        lanes.push(Lane::new(index / args.run.threads, wire, stream, args.in_flight, INBOX_BYTES));
    }
    let ends_before = directory.offsets(&leaders, Edge::End)?;
    let consumer = match is_e2e {
        true => Some(consumer_lanes(args, &directory, &leaders, &ends_before, run_id)?),
        false => None,
    };
    let mut probe = CpuProbe::new(args.run.server_pid, args.run.idle)?;
    let config = RunConfig::of_produce(args, mode, version, leaders.len());
    let files = Files::open(&args.output, &config)?;

    let window = window(&args.run);
    let finish_line = is_e2e.then(|| Arc::new(FinishLine::default()));
    let requests = args.run.records.map(|records| (records / args.batch as f64).ceil() as u64);
    let plan = Plan {
        clock: RunClock::start(),
        window,
        drain_ns: args.run.drain.as_nanos() as u64,
        timeout_ns: args.run.timeout.as_nanos() as u64,
        pace: Pace::Closed,
        quota: requests,
        records_max: None,
        records_per_request: args.batch as u64,
        bytes_per_request: (args.batch * args.record_size) as u64,
        finish_line: None,
        abort: Arc::default(),
        spin_ns: if args.spin { SPIN_NS } else { 0 },
    };
    let (notes, seen) = channel();
    let mut crew = Crew { plan: &plan, notes: &notes, roles: Vec::new(), threads: Vec::new() };
    if let Some(lanes) = consumer {
        let plan = Plan { pace: Pace::Closed, quota: None, finish_line: finish_line.clone(), ..plan.clone() };
        crew.start(plan, lanes, Role::Arrivals, 1);
    }
    let rate = args.rate.map(|records| records / args.batch as f64);
    crew.start_all(lanes, args.run.threads, rate, args.in_flight);
    let (roles, threads) = (crew.roles, crew.threads);
    drop(notes);
    let mut outcome = collect(&seen, &roles, &plan, finish_line.as_deref(), &mut probe, files)?;
    let _open: Vec<_> =
        threads.into_iter().map(|thread| thread.join().expect("a worker thread panicked")).collect();
    let growth = watch_growth(&directory, &leaders, &ends_before, &outcome);
    Ok(Summary::new(config, &mut outcome, growth))
}

/// The consumer of an end-to-end run: one connection per leader, from the present end of the log.
fn consumer_lanes(
    args: &ProduceArgs,
    directory: &Directory,
    leaders: &BTreeMap<i32, SocketAddr>,
    ends: &BTreeMap<i32, i64>,
    run_id: u64,
) -> Result<Vec<Lane<FetchWire>>> {
    let version = directory.connect()?.version(fetch::API_KEY, fetch::VERSIONS, "Fetch")?;
    let spec = FetchSpec {
        version,
        client_id: args.target.client_id.clone(),
        topic: args.target.topic.clone(),
        max_wait_ms: FETCH_MAX_WAIT_MS,
        min_bytes: 1,
        max_bytes: wire_bytes(args.fetch_size),
        partition_max_bytes: wire_bytes(args.fetch_size),
        stamp_run_id: Some(run_id),
    };
    let mut by_leader: BTreeMap<SocketAddr, Vec<i32>> = BTreeMap::new();
    for (partition, leader) in leaders {
        by_leader.entry(*leader).or_default().push(*partition);
    }
    let shares: Vec<Share> =
        by_leader.into_iter().map(|(leader, partitions)| Share { leader, partitions }).collect();
    let streams = connect(&shares)?;
    let lane = |(index, (share, stream)): (usize, (&Share, TcpStream))| {
        let position = |partition: &i32| Position {
            partition: *partition,
            next_offset: ends[partition],
            end_offset: i64::MAX,
        };
        let positions = share.partitions.iter().map(position).collect();
        let wire = FetchWire::new(directory.clone(), spec.clone(), positions);
        Lane::new(index, wire, stream, 1, args.fetch_size + INBOX_BYTES)
    };
    Ok(shares.iter().zip(streams).enumerate().map(lane).collect())
}

fn wire_bytes(bytes: usize) -> i32 {
    i32::try_from(bytes).unwrap_or(i32::MAX)
}

/// Compares what was acknowledged with what the log holds more than before.
fn watch_growth(
    directory: &Directory,
    leaders: &BTreeMap<i32, SocketAddr>,
    before: &BTreeMap<i32, i64>,
    outcome: &Outcome,
) -> Option<LogGrowth> {
    let start = std::time::Instant::now();
    loop {
        // Leadership may have moved during the run.
        let mut now = directory.leaders().ok()?;
        now.retain(|partition, _| leaders.contains_key(partition));
        let after = directory.offsets(&now, Edge::End).ok()?;
        let grown: i64 = after.iter().map(|(partition, end)| end - before[partition]).sum();
        let growth = LogGrowth { records: grown, acked: outcome.acked };
        if grown >= outcome.acked as i64 || start.elapsed() > GROWTH_PATIENCE {
            return Some(growth);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub fn consume(args: &ConsumeArgs) -> Result<Summary> {
    check_run(&args.run)?;
    let Prepared { directory, leaders } = prepare(&args.target)?;
    let (shares, left_out) = deal(&leaders, args.run.connections);
    if !left_out.is_empty() {
        note(&format!("no connection reaches the leaders of partitions {left_out:?}: they are not read"));
    }
    let version = directory.connect()?.version(fetch::API_KEY, fetch::VERSIONS, "Fetch")?;
    let starts = directory.offsets(&leaders, Edge::Start)?;
    let ends = directory.offsets(&leaders, Edge::End)?;
    let is_bounded = args.from == From::Earliest && !args.follow;
    if is_bounded && starts == ends {
        bail!("topic `{}` is empty: produce to it first, or use --follow", args.target.topic);
    }
    let spec = FetchSpec {
        version,
        client_id: args.target.client_id.clone(),
        topic: args.target.topic.clone(),
        max_wait_ms: args.max_wait.as_millis() as i32,
        min_bytes: wire_bytes(args.min_bytes),
        max_bytes: wire_bytes(args.fetch_size),
        partition_max_bytes: wire_bytes(args.fetch_size),
        stamp_run_id: None,
    };
    let mut lanes = Vec::new();
    for (index, (share, stream)) in shares.iter().zip(connect(&shares)?).enumerate() {
        let position = |partition: &i32| Position {
            partition: *partition,
            next_offset: if args.from == From::Earliest { starts[partition] } else { ends[partition] },
            end_offset: if is_bounded { ends[partition] } else { i64::MAX },
        };
        let positions = share.partitions.iter().map(position).collect();
        let wire = FetchWire::new(directory.clone(), spec.clone(), positions);
        lanes.push(Lane::new(index / args.run.threads, wire, stream, 1, args.fetch_size + INBOX_BYTES));
    }
    let mut probe = CpuProbe::new(args.run.server_pid, args.run.idle)?;
    let mut config = RunConfig::of_consume(args, version, leaders.len());
    let mut window = window(&args.run);
    if is_bounded {
        // The log is read once; a warm-up would eat what is to be measured.
        window.end_ns = args.run.duration.map_or(u64::MAX, |duration| duration.as_nanos() as u64);
        window.start_ns = 0;
        config.warmup_s = 0.0;
    }
    let files = Files::open(&args.output, &config)?;
    let plan = Plan {
        clock: RunClock::start(),
        window,
        drain_ns: args.run.drain.as_nanos() as u64,
        timeout_ns: args.run.timeout.as_nanos() as u64,
        pace: Pace::Closed,
        quota: None,
        records_max: args.run.records.map(|records| records.ceil() as u64),
        records_per_request: 0,
        bytes_per_request: 0,
        finish_line: None,
        abort: Arc::default(),
        spin_ns: 0,
    };
    let (notes, seen) = channel();
    let mut crew = Crew { plan: &plan, notes: &notes, roles: Vec::new(), threads: Vec::new() };
    crew.start_all(lanes, args.run.threads, None, 1);
    let (roles, threads) = (crew.roles, crew.threads);
    drop(notes);
    let mut outcome = collect(&seen, &roles, &plan, None, &mut probe, files)?;
    for thread in threads {
        thread.join().expect("a worker thread panicked");
    }
    Ok(Summary::new(config, &mut outcome, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaders(of: &[u16]) -> BTreeMap<i32, SocketAddr> {
        of.iter().enumerate().map(|(i, port)| (i as i32, SocketAddr::from(([127, 0, 0, 1], *port)))).collect()
    }

    #[test]
    fn connections_spread_over_leaders_before_they_repeat_one() {
        let (shares, left_out) = deal(&leaders(&[1, 1, 2, 2]), 2);
        assert_eq!(shares.iter().map(|s| s.leader.port()).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(shares.iter().map(|s| s.partitions.clone()).collect::<Vec<_>>(), [vec![0, 1], vec![2, 3]]);
        assert!(left_out.is_empty());
    }

    #[test]
    fn more_connections_than_partitions_share_them() {
        let (shares, _) = deal(&leaders(&[1, 2]), 5);
        let ports: Vec<u16> = shares.iter().map(|s| s.leader.port()).collect();
        assert_eq!(ports, [1, 2, 1, 2, 1]);
        assert!(shares.iter().all(|s| s.partitions.len() == 1));
    }

    #[test]
    fn partitions_that_no_connection_reaches_are_named() {
        let (shares, left_out) = deal(&leaders(&[1, 2, 1]), 1);
        assert_eq!(shares[0].partitions, [0, 2]);
        assert_eq!(left_out, [1]);
    }
}
