//! Measures the membership protocol in virtual time: the goals of its design, and the grids of the Lifeguard paper.
//!
//! | goal | command |
//! |---|---|
//! | 1 the same seed is the same run; the paper's medians | `trace`; `crash --alpha 5 --arm lifeguard` |
//! | 2 detection of crashes | `crash` |
//! | 3 interval grid | `grid` and `grid --still 1`, beside `grid --arm lifeguard` and `grid --arm swim` |
//! | 4 starved members | `starve` |
//! | 5 loss alone | `quiet` |
//! | 6 joins at once | `joins` |
//! | 7 idle bytes | `idle` |
//! | 8 cost of a datagram | `cost` |
//! | 9 split | `split` |
//! | 10 scale-down | `leave` |
//! | 11 restart of all | `restart` |
//! | the paper's table beside ours | `paper --out FOLDER`; a short subset that fails when the order of the arms does not hold: `paper --short 1` |
//! | what an extension is worth | `--arm unfair`, `alone` or `deaf` |
//! | the foca crate beside ours | `--arm foca` with `crash`, `grid`, `starve`, `quiet`, `joins`, `idle` or `split` |

#![expect(
    clippy::disallowed_methods,
    reason = "driver: reads the clock for the costs of handling a datagram"
)]

mod foca_peer;
mod paper;
mod peer;
mod runs;
mod stats;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use highwater::control::swim::{Extensions, Keyring, forge};

use crate::foca_peer::Theirs;
use crate::peer::{Ours, Peer};
use crate::runs::{ANOMALOUS, LENGTHS_MS, PAPER_MEMBERS, PAUSES_MS, paper};
use crate::stats::permille;

const USAGE: &str = "\
Measures the membership protocol in virtual time.

  highwater-swim COMMAND [--seeds N] [--jobs N] [--alpha A] [--arm ARM] [--loss PERMILLE] [--members N]
                         [--anomalous N] [--first SEED] [--still 1] [--out FOLDER] [--short 1]

  crash     members stop; first and full detection, over all counts of anomalous members
  grid      members block again and again; false deaths (the paper's interval runs)
  starve    members read late, one crashes; false deaths and detection, at 0 to 5 % loss
  quiet     nothing happens but loss; false deaths
  joins     all join through one seed at once
  idle      bytes and datagrams of a quiet cluster
  split     two halves for ten minutes
  leave     seven of ten leave
  restart   all restart within a second
  trace     the same seed twice
  cost      time that a member of many spends on a datagram
  paper     the interval runs of every arm beside the Lifeguard paper's; fails when the order of the arms is another

  Seeds count from --first on. A blocked member's timers go on, as in the paper; with --still 1 they stand still with it,
  as in a program of one thread. In a paper table both are shown.
  ARM is swim, probe, suspicion, buddy, lifeguard, unfair, alone, deaf, all (default) or foca, the crate of that name
";

struct Args {
    command: String,
    seeds: Option<u64>,
    /// The first of them.
    first: u64,
    jobs: usize,
    alpha: Option<u32>,
    arm: Extensions,
    /// A blocked member stands still as a whole.
    still: bool,
    loss: Option<u32>,
    members: Option<usize>,
    anomalous: Option<usize>,
    /// Of the foca crate instead of ours.
    foca: bool,
    /// Where a table is written.
    out: Option<PathBuf>,
    /// A few cells of the grid only.
    short: bool,
}

fn parse() -> Result<Args, String> {
    let mut words = std::env::args().skip(1);
    let command = words.next().ok_or("a command is missing")?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let arm = Extensions::ALL;
    let mut args = Args {
        command,
        seeds: None,
        first: 0,
        jobs,
        alpha: None,
        arm,
        still: false,
        loss: None,
        members: None,
        anomalous: None,
        foca: false,
        out: None,
        short: false,
    };
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} wants a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{word} wants a number, not {value}"));
        let small = || u32::try_from(number()?).map_err(|_| format!("{value} is too large"));
        match word.as_str() {
            "--seeds" => args.seeds = Some(number()?),
            "--first" => args.first = number()?,
            "--still" => args.still = number()? > 0,
            "--jobs" => args.jobs = small()? as usize,
            "--alpha" => args.alpha = Some(small()?),
            "--loss" => args.loss = Some(small()?),
            "--members" => args.members = Some(small()? as usize),
            "--anomalous" => args.anomalous = Some(small()? as usize),
            "--arm" if value == "foca" => args.foca = true,
            "--arm" => args.arm = arm_of(&value)?,
            "--out" => args.out = Some(value.into()),
            "--short" => args.short = number()? > 0,
            _ => return Err(format!("{word} is unknown")),
        }
    }
    Ok(args)
}

impl Args {
    /// The run of the seed that is so many after the first.
    fn setup(&self, seed: u64, members: usize, alpha: u32) -> world::Setup {
        let setup = paper(self.first + seed, members, alpha, self.arm);
        world::Setup { stands_still: self.still, ..setup }
    }
}

fn arm_of(name: &str) -> Result<Extensions, String> {
    let swim = Extensions::SWIM;
    Ok(match name {
        "swim" => swim,
        "probe" => Extensions { local_health: true, ..swim },
        "suspicion" => Extensions { dynamic_suspicion: true, ..swim },
        "buddy" => Extensions { buddy: true, ..swim },
        "lifeguard" => Extensions::LIFEGUARD,
        "unfair" => Extensions { fair_health: false, ..Extensions::ALL },
        "alone" => Extensions { second_opinion: false, ..Extensions::ALL },
        "deaf" => Extensions { silence_aware: false, ..Extensions::ALL },
        "all" => Extensions::ALL,
        _ => return Err(format!("{name} is no arm")),
    })
}

fn main() -> ExitCode {
    let args = match parse() {
        Ok(args) => args,
        Err(e) => {
            eprintln!("{e}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let known = match args.command.as_str() {
        "trace" => trace(&args),
        "cost" => cost(&args),
        "paper" => return paper_table(&args),
        _ if args.foca => run::<Theirs>(&args),
        _ => run::<Ours>(&args),
    };
    if known.is_none() {
        eprintln!("{} is no command\n\n{USAGE}", args.command);
        return ExitCode::from(2);
    }
    ExitCode::SUCCESS
}

/// `None`: there is no such command.
fn run<P: Peer>(args: &Args) -> Option<()> {
    match args.command.as_str() {
        "crash" => crash::<P>(args),
        "grid" => grid::<P>(args),
        "starve" => starve::<P>(args),
        "quiet" => quiet::<P>(args),
        "joins" => joins::<P>(args),
        "idle" => idle::<P>(args),
        "split" => split::<P>(args),
        "leave" => leave::<P>(args),
        "restart" => restart::<P>(args),
        _ => return None,
    }
    Some(())
}

fn crash<P: Peer>(args: &Args) {
    let (alpha, members) = (args.alpha.unwrap_or(3), args.members.unwrap_or(PAPER_MEMBERS));
    let each = args.seeds.unwrap_or(5);
    let (mut first, mut full, mut wrong, mut crashed) = (Vec::new(), Vec::new(), 0, 0);
    for count in ANOMALOUS.into_iter().filter(|count| count * 4 <= members) {
        let runs =
            stats::seeds(each, args.jobs, |seed| runs::crash::<P>(args.setup(seed, members, alpha), count));
        let mut all: Vec<Duration> = runs.iter().flat_map(|run| run.full.iter().copied()).collect();
        let [p50, p99] = [500, 990].map(|part| permille(&mut all, part));
        println!("  {count:2} crashed: full detection p50 {p50:.2} s, p99 {p99:.2} s");
        for run in runs {
            first.extend(run.first);
            full.extend(run.full);
            wrong += run.false_deaths;
            crashed += count;
        }
    }
    println!(
        "crash: alpha {alpha}, {members} members, {each} seeds for each of {ANOMALOUS:?} crashed: {crashed} crashes, \
         {} detected everywhere, {wrong} false deaths",
        full.len()
    );
    for (words, times) in [("first", &mut first), ("full", &mut full)] {
        let [p50, p99, p999] = [500, 990, 999].map(|part| permille(times, part));
        println!("  {words:5} detection: p50 {p50:.2} s, p99 {p99:.2} s, p99.9 {p999:.2} s");
    }
}

fn grid<P: Peer>(args: &Args) {
    let (alpha, members) = (args.alpha.unwrap_or(3), args.members.unwrap_or(PAPER_MEMBERS));
    let each = args.seeds.unwrap_or(1);
    let mut cells = Vec::new();
    for count in ANOMALOUS.into_iter().filter(|count| args.anomalous.is_none_or(|only| only == *count)) {
        for length in LENGTHS_MS {
            cells.extend(PAUSES_MS.map(|pause| (count, length, pause)));
        }
    }
    let all = cells.len() as u64 * each;
    let runs = stats::seeds(all, args.jobs, |run| {
        let (count, length, pause) = cells[(run % cells.len() as u64) as usize];
        let setup = args.setup(run / cells.len() as u64, members, alpha);
        runs::interval::<P>(setup, count, Duration::from_millis(length), Duration::from_millis(pause))
    });
    for (at, (count, length, pause)) in cells.iter().enumerate() {
        let any: usize = runs.iter().skip(at).step_by(cells.len()).map(|run| run.wrong.any).sum();
        if any > 0 {
            println!("  {count} blocked for {length} ms, {pause} ms apart: {any} false deaths");
        }
    }
    let sum = |part: fn(&runs::IntervalRun) -> u64| runs.iter().map(part).sum::<u64>();
    println!(
        "grid: alpha {alpha}, {members} members, {} cells x {each} seeds: false deaths {} at the origin, {} in all, {} at \
         healthy members; {} datagrams, {} bytes",
        cells.len(),
        sum(|run| run.wrong.at_origin as u64),
        sum(|run| run.wrong.any as u64),
        sum(|run| run.wrong.at_healthy as u64),
        sum(|run| run.datagrams),
        sum(|run| run.bytes),
    );
}

fn starve<P: Peer>(args: &Args) {
    let alpha = args.alpha.unwrap_or(4);
    let each = args.seeds.unwrap_or(50);
    let losses = args.loss.map_or(vec![0, 10, 20, 30, 40, 50], |loss| vec![loss]);
    for loss_permille in losses {
        let runs = stats::seeds(each, args.jobs, |seed| {
            let setup = args.setup(seed, args.members.unwrap_or(50), alpha);
            runs::starve::<P>(runs_setup(setup, loss_permille))
        });
        let per_run = |sum: usize| sum as f64 / each as f64;
        let mut times: Vec<Duration> = runs.iter().filter_map(|run| run.detection).collect();
        println!(
            "starve: alpha {alpha}, loss {loss_permille} permille, {each} seeds: false deaths a run {:.3} healthy + {:.3} \
             starved members ({:.2} transitions); detected everywhere {} times, p50 {:.2} s",
            per_run(runs.iter().map(|run| run.healthy).sum()),
            per_run(runs.iter().map(|run| run.starved).sum()),
            per_run(runs.iter().map(|run| run.transitions).sum()),
            times.len(),
            permille(&mut times, 500),
        );
    }
}

fn runs_setup(setup: world::Setup, loss_permille: u32) -> world::Setup {
    world::Setup { loss_permille, ..setup }
}

fn quiet<P: Peer>(args: &Args) {
    let (members, each) = (args.members.unwrap_or(PAPER_MEMBERS), args.seeds.unwrap_or(1000));
    let (alpha, loss) = (args.alpha.unwrap_or(3), args.loss.unwrap_or(50));
    let runs = stats::seeds(each, args.jobs, |seed| {
        runs::quiet::<P>(runs_setup(args.setup(seed, members, alpha), loss))
    });
    println!(
        "quiet: alpha {alpha}, {members} members, loss {loss} permille, {each} seeds of 60 s: {} false deaths",
        runs.iter().sum::<usize>()
    );
}

fn joins<P: Peer>(args: &Args) {
    let (members, each) = (args.members.unwrap_or(1000), args.seeds.unwrap_or(3));
    let most = Duration::from_secs(60);
    let runs = stats::seeds(each, args.jobs, |seed| runs::joins::<P>(args.setup(seed, members, 3), most));
    let mut times: Vec<Duration> = runs.iter().flatten().flatten().copied().collect();
    println!(
        "joins: {members} members through one seed, {each} seeds: {} of {} know all; p50 {:.2} s, p99 {:.2} s, last {:.2} s",
        times.len(),
        members as u64 * each,
        permille(&mut times, 500),
        permille(&mut times, 990),
        permille(&mut times, 1000)
    );
}

fn idle<P: Peer>(args: &Args) {
    let (members, each) = (args.members.unwrap_or(PAPER_MEMBERS), args.seeds.unwrap_or(3));
    let runs = stats::seeds(each, args.jobs, |seed| runs::idle::<P>(args.setup(seed, members, 3)));
    for (seed, (bytes, datagrams)) in runs.into_iter().enumerate() {
        println!(
            "idle: {members} members, seed {seed}: {bytes:.1} B and {datagrams:.2} datagrams a second and member"
        );
    }
}

fn split<P: Peer>(args: &Args) {
    let (members, each) = (args.members.unwrap_or(PAPER_MEMBERS), args.seeds.unwrap_or(5));
    let runs = stats::seeds(each, args.jobs, |seed| runs::split::<P>(args.setup(seed, members, 3)));
    let mut times: Vec<Duration> = runs.into_iter().flatten().collect();
    println!(
        "split: {members} members in halves for 600 s, {each} seeds: {} merged; p50 {:.1} s, last {:.1} s after healing",
        times.len(),
        permille(&mut times, 500),
        permille(&mut times, 1000)
    );
}

fn leave<P: Peer>(args: &Args) {
    let each = args.seeds.unwrap_or(1000);
    let loss = args.loss.unwrap_or(0);
    let runs = stats::seeds(each, args.jobs, |seed| {
        runs::scale_down::<P>(runs_setup(args.setup(seed, 10, 3), loss))
    });
    println!(
        "leave: 7 of 10, loss {loss} permille, {each} seeds: {} deaths of leavers; the others agree in {}",
        runs.iter().map(|run| run.0).sum::<usize>(),
        runs.iter().filter(|run| run.1).count()
    );
}

fn restart<P: Peer>(args: &Args) {
    let (members, each) = (args.members.unwrap_or(1000), args.seeds.unwrap_or(1));
    let runs = stats::seeds(each, args.jobs, |seed| runs::restart_all::<P>(args.setup(seed, members, 3)));
    for (seed, (dead, lacking)) in runs.into_iter().enumerate() {
        println!(
            "restart: {members} members, seed {seed}: after 30 s {dead} live members are held for dead, {lacking} members \
             do not know all"
        );
    }
}

fn trace(args: &Args) -> Option<()> {
    let each = args.seeds.unwrap_or(5);
    let members = args.members.unwrap_or(PAPER_MEMBERS);
    let run = |seed| runs::crash::<Ours>(args.setup(seed, members, 3), 4).trace;
    let runs = stats::seeds(each, args.jobs, |seed| (run(seed), run(seed)));
    let same = runs.iter().filter(|(a, b)| a == b).count();
    println!(
        "trace: {members} members, {each} seeds run twice: {same} with the same hash, the first {:016x}",
        runs[0].0
    );
    Some(())
}

/// What it takes to open a ping, to answer it and to seal the answer: two MACs are in it. One of the same length is
/// timed alone, and taken off twice.
fn cost(args: &Args) -> Option<()> {
    let members = args.members.unwrap_or(1000);
    let mut world = world::World::<Ours>::joined(args.setup(args.seeds.unwrap_or(0), members, 3));
    world.run(Duration::from_secs(120));
    let keys = Keyring::new(peer::CLUSTER, 1, &peer::SECRET).expect("a good secret");
    let (mut times, mut macs, mut rest) = (Vec::new(), Vec::new(), Vec::new());
    for node in 1..members.min(400) {
        let datagrams = world.intercept(node, Duration::from_secs(3));
        let now = world.now;
        let member = world.member_mut(node);
        for (from, bytes) in datagrams.iter().filter(|(_, bytes)| bytes[26] == 1) {
            let start = std::time::Instant::now();
            member.datagram(now, *from, bytes);
            let time = start.elapsed();
            while member.poll().is_some() {}
            let mut copy = bytes.clone();
            let start = std::time::Instant::now();
            forge::reseal(&keys, &member.member, &mut copy);
            let mac = start.elapsed();
            assert_eq!(copy, *bytes, "the same key");
            times.push(time);
            macs.push(mac);
            rest.push(time.saturating_sub(mac * 2));
        }
    }
    println!("cost: {members} members, {} pings", times.len());
    for (what, times) in
        [("two MACs included", &mut times), ("one MAC", &mut macs), ("without MACs", &mut rest)]
    {
        let [p50, p99] = [500, 990].map(|part| permille(times, part) * 1e6);
        println!("  {what}: p50 {p50:.2} us, p99 {p99:.2} us");
    }
    Some(())
}

/// The cells of `paper --short`: long anomalies of many members, where even few runs tell the arms apart.
const SHORT: [(usize, u64, u64); 3] = [(16, 8192, 64), (24, 2048, 16), (32, 32768, 1024)];

fn paper_table(args: &Args) -> ExitCode {
    let (alpha, members) = (args.alpha.unwrap_or(5), args.members.unwrap_or(PAPER_MEMBERS));
    let each = args.seeds.unwrap_or(1);
    let mut cells = Vec::new();
    for count in ANOMALOUS.into_iter().filter(|count| args.anomalous.is_none_or(|only| only == *count)) {
        for length in LENGTHS_MS {
            cells.extend(PAUSES_MS.map(|pause| (count, length, pause)));
        }
    }
    if args.short {
        cells = SHORT.into();
    }
    let mut rows = Vec::new();
    for arm in paper::arms() {
        let runs = stats::seeds(cells.len() as u64 * each, args.jobs, |run| {
            let (count, length, pause) = cells[(run % cells.len() as u64) as usize];
            let (length, pause) = (Duration::from_millis(length), Duration::from_millis(pause));
            let extensions = arm.extensions.unwrap_or(Extensions::SWIM);
            let setup = args.setup(run / cells.len() as u64, members, alpha);
            let setup = world::Setup { extensions, stands_still: arm.stands_still, ..setup };
            match arm.extensions {
                Some(_) => runs::interval::<Ours>(setup, count, length, pause),
                None => runs::interval::<Theirs>(setup, count, length, pause),
            }
        });
        rows.push((arm, paper::Sums::of(&runs)));
    }
    println!("interval runs: alpha {alpha}, {members} members, {} cells x {each} seeds", cells.len());
    print!("{}", paper::text(&rows));
    if let Some(folder) = &args.out {
        let write = |name, what| std::fs::write(folder.join(name), what);
        let written = std::fs::create_dir_all(folder)
            .and_then(|()| write("paper.csv", paper::csv(&rows)))
            .and_then(|()| write("paper.svg", paper::svg(&rows)));
        if let Err(e) = written {
            eprintln!("the table could not be written to {}: {e}", folder.display());
            return ExitCode::FAILURE;
        }
    }
    match paper::order(&rows) {
        Ok(()) => ExitCode::SUCCESS,
        Err(wrong) => {
            eprintln!("{wrong}");
            ExitCode::FAILURE
        }
    }
}
