//! Runs simulations: one seed, or many on all cores, until one fails.

#![expect(clippy::disallowed_methods, reason = "driver: reads the clock to say how fast it was")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use highwater_sim::args::{self, Words, number};
use highwater_sim::checkers::Violation;
use highwater_sim::cluster;
use highwater_sim::controls;
use highwater_sim::logs;
use highwater_sim::rafts;
use highwater_sim::run::{Job, Node};
use highwater_sim::world::Outcome;

const USAGE: &str = "\
Runs the simulator. Every failure names the seed and the command that runs it again.

  --seed N       one seed
  --seeds A..B   the seeds from A up to and without B
  --count N      so many seeds, from 0 or from --seed on
  --swarm W      on: each seed switches every feature on or off at random; off: all are on
                 (default: on for odd seeds)
  --node W       sim: real shards behind the simulator's protocol; kafka: behind Kafka's; toy: a toy shard;
                 log: the log of one shard alone; control: several control planes over an oracle of the
                 metadata log; raft: the Raft group of the metadata, on openraft and redb; cluster: nodes that
                 replicate, with all their shards and control planes
                 (default: sim for two seeds, kafka for the next two, and so on)
  --jobs N       so many at a time (default: all cores)
  --trace        print every event (one seed only)
";

#[derive(Clone, Debug)]
struct Args {
    first: u64,
    end: u64,
    swarm: Option<bool>,
    node: Option<Node>,
    alone: Option<Alone>,
    jobs: usize,
    trace: bool,
}

/// A world of its own.
#[derive(Clone, Copy, Debug)]
enum Alone {
    /// The log of one shard.
    Log,
    /// Several control planes.
    Control,
    /// The Raft group of the metadata.
    Raft,
    /// Nodes that replicate.
    Cluster,
}

impl Alone {
    const ALL: [Self; 4] = [Self::Log, Self::Control, Self::Raft, Self::Cluster];

    fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Control => "control",
            Self::Raft => "raft",
            Self::Cluster => "cluster",
        }
    }

    fn run(self, seed: u64, print: bool) -> Ran {
        match self {
            Self::Log => {
                let logs::Outcome { hash, time, violation, counts } = logs::run(seed, None, print);
                Ran { hash, time, violation, counts: counts.named().collect() }
            }
            Self::Control => {
                let controls::Outcome { hash, time, violation, counts } = controls::run(seed, print);
                Ran { hash, time, violation, counts: counts.named().to_vec() }
            }
            Self::Raft => {
                let rafts::Outcome { hash, time, violation, counts } = rafts::run(seed, None, print);
                Ran { hash, time, violation, counts: counts.named() }
            }
            Self::Cluster => {
                let cluster::Outcome { hash, time, violation, counts, .. } = cluster::run(seed, print);
                Ran { hash, time, violation, counts: counts.named().collect() }
            }
        }
    }
}

/// How a run of such a world ended.
struct Ran {
    hash: u64,
    time: std::time::Duration,
    violation: Option<Violation>,
    counts: Vec<(&'static str, u64)>,
}

fn parse() -> Result<Args, String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut args = Args { first: 0, end: 1, swarm: None, node: None, alone: None, jobs: cores, trace: false };
    let mut count = None;
    let mut words = Words::new(std::env::args().skip(1));
    while let Some(option) = words.option() {
        match option {
            "--seed" => {
                args.first = words.number()?;
                args.end = args.first + 1;
            }
            "--seeds" => {
                let range = words.value()?;
                let (a, b) = range.split_once("..").ok_or("--seeds wants A..B")?;
                (args.first, args.end) = (number(a)?, number(b)?);
            }
            "--count" => count = Some(words.number::<u64>()?),
            "--jobs" => args.jobs = words.number::<usize>()?.max(1),
            "--swarm" => {
                args.swarm = Some(match words.value()?.as_str() {
                    "on" => true,
                    "off" => false,
                    other => return Err(format!("--swarm is on or off, not {other}")),
                });
            }
            "--node" => {
                let name = words.value()?;
                args.alone = Alone::ALL.into_iter().find(|alone| alone.name() == name);
                if args.alone.is_some() {
                    continue;
                }
                let node = Node::ALL.into_iter().find(|n| n.name() == name);
                args.node = Some(node.ok_or_else(|| format!("{name} is no node"))?);
            }
            "--trace" => args.trace = true,
            _ => return words.unknown(),
        }
    }
    if let Some(count) = count {
        args.end = args.first + count;
    }
    if args.trace && args.end != args.first + 1 {
        return Err("--trace is for one seed".to_owned());
    }
    Ok(args)
}

impl Args {
    fn job(&self, seed: u64) -> Job {
        let usual = Job::of_seed(seed);
        Job { seed, swarm: self.swarm.unwrap_or(usual.swarm), node: self.node.unwrap_or(usual.node) }
    }
}

fn main() -> ExitCode {
    let args = match parse() {
        Ok(args) => args,
        Err(e) => return args::refuse(&e, USAGE),
    };
    // A panic of a machine ends the process before anything could be said, so its seed is said first.
    let usual = std::panic::take_hook();
    let alone = args.alone;
    std::panic::set_hook(Box::new(move |panic| {
        if let Some(name) = std::thread::current().name() {
            eprintln!("panic in a thread that ran {name}");
        }
        RUNNING.with(|job| {
            if let Some(job) = job.get() {
                eprintln!("seed {} panicked; run it again: {job}", job.seed);
            }
        });
        ALONE_RUNNING.with(|seed| {
            if let (Some(seed), Some(alone)) = (seed.get(), alone) {
                eprintln!("seed {seed} panicked; run it again: {}", again(seed, alone));
            }
        });
        usual(panic);
    }));
    let began = std::time::Instant::now();
    if let Some(alone) = args.alone {
        return many_alone(&args, alone, began);
    }
    if args.end == args.first + 1 { one(&args) } else { many(&args, began) }
}

thread_local! {
    static RUNNING: std::cell::Cell<Option<Job>> = const { std::cell::Cell::new(None) };
    static ALONE_RUNNING: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
}

fn one(args: &Args) -> ExitCode {
    let job = args.job(args.first);
    RUNNING.set(Some(job));
    println!("features: {}", job.config().features.names().join(" "));
    let o = job.run(args.trace);
    println!(
        "seed {}: hash {:016x}, {} inputs and outputs, {} lives, {} batches, {} records audited, {:?} of virtual time",
        job.seed, o.hash, o.events, o.boots, o.batches, o.records, o.time
    );
    report(job, &o)
}

fn report(job: Job, outcome: &Outcome) -> ExitCode {
    match &outcome.violation {
        None => ExitCode::SUCCESS,
        Some(v) => {
            println!("FAILED seed {}: {v}\n  run it again: {job}", job.seed);
            ExitCode::FAILURE
        }
    }
}

fn many(args: &Args, began: std::time::Instant) -> ExitCode {
    let next = AtomicU64::new(args.first);
    let failed = AtomicBool::new(false);
    let totals = std::array::from_fn::<_, 4, _>(|_| AtomicU64::new(0));
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..args.jobs {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= args.end {
                        return;
                    }
                    let job = args.job(seed);
                    RUNNING.set(Some(job));
                    let outcome = job.run(args.trace);
                    let counts =
                        [outcome.events, outcome.boots.into(), outcome.batches as u64, outcome.records];
                    for (total, count) in totals.iter().zip(counts) {
                        total.fetch_add(count, Ordering::Relaxed);
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                    if report(job, &outcome) != ExitCode::SUCCESS {
                        failed.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let [events, lives, batches, records] = totals.map(AtomicU64::into_inner);
    println!(
        "{} seeds in {:.1} s: {events} inputs and outputs, {lives} lives, {batches} batches, {records} records audited",
        done.into_inner(),
        began.elapsed().as_secs_f64()
    );
    if failed.into_inner() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The command that runs a seed of a world of its own again.
fn again(seed: u64, alone: Alone) -> String {
    let node = alone.name();
    format!("cargo run --release --bin highwater-sim -- --node {node} --seed {seed} --trace")
}

fn many_alone(args: &Args, alone: Alone, began: std::time::Instant) -> ExitCode {
    let next = AtomicU64::new(args.first);
    let failed = AtomicBool::new(false);
    let run = || {
        let (mut counts, mut done) = (Vec::new(), 0_u64);
        while !failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= args.end {
                break;
            }
            ALONE_RUNNING.set(Some(seed));
            let ran = alone.run(seed, args.trace);
            add(&mut counts, &ran.counts);
            done += 1;
            if args.end == args.first + 1 {
                println!("seed {seed}: hash {:016x}, {:?} of virtual time", ran.hash, ran.time);
            }
            if let Some(v) = &ran.violation {
                failed.store(true, Ordering::Relaxed);
                println!("FAILED seed {seed}: {v}\n  run it again: {}", again(seed, alone));
            }
        }
        (counts, done)
    };
    let (counts, done) = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..args.jobs).map(|_| scope.spawn(run)).collect();
        let mut all = (Vec::new(), 0);
        for worker in workers {
            let (counts, done) = worker.join().expect("a panic ends the process");
            add(&mut all.0, &counts);
            all.1 += done;
        }
        all
    });
    println!("{done} seeds of --node {} in {:.1} s", alone.name(), began.elapsed().as_secs_f64());
    for (name, count) in counts {
        println!("  {count:>12} {}", name.replace('_', " "));
    }
    if failed.into_inner() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Counts of the same names, in the same order; none are none yet.
fn add(all: &mut Vec<(&'static str, u64)>, more: &[(&'static str, u64)]) {
    if all.is_empty() {
        all.extend_from_slice(more);
    } else {
        all.iter_mut().zip(more).for_each(|(sum, (_, count))| sum.1 += count);
    }
}
