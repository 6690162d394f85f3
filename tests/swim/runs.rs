//! The runs of the experiment, each a function of its seed: crash, interval, starve, quiet, joins, split, scale-down,
//! restart.

use std::time::Duration;

use highwater::control::swim::Extensions;
use highwater_shards::time::Instant;
use highwater_sim::rng::Rng;

use crate::peer::Peer;
use crate::world::{Said, Setup, World};

/// Members of the paper's runs.
pub const PAPER_MEMBERS: usize = 128;
/// How many members are anomalous together.
pub const ANOMALOUS: [usize; 9] = [1, 4, 8, 12, 16, 20, 24, 28, 32];
/// How long an anomaly lasts.
pub const LENGTHS_MS: [u64; 5] = [128, 512, 2048, 8192, 32768];
/// The time between two anomalies.
pub const PAUSES_MS: [u64; 8] = [1, 4, 16, 64, 256, 1024, 4096, 16384];

pub fn paper(seed: u64, members: usize, alpha: u32, extensions: Extensions) -> Setup {
    Setup { seed, members, alpha, extensions, loss_permille: 0, paper_times: true, stands_still: false }
}

/// What became of members that died.
#[derive(Clone, Debug, Default)]
pub struct Detection {
    /// Of each: until the first member held it for dead, and until all did.
    pub first: Vec<Duration>,
    pub full: Vec<Duration>,
    /// Live members that someone held for dead.
    pub false_deaths: usize,
    pub trace: u64,
}

/// So many members stop at one time, for good.
pub fn crash<P: Peer>(setup: Setup, crashed: usize) -> Detection {
    let mut draw = Rng::new(setup.seed, "swim crash", crashed as u64);
    let mut world = World::<P>::joined(setup);
    let mut dead: Vec<usize> = Vec::new();
    while dead.len() < crashed {
        let node = 1 + draw.index(world.len() - 1);
        if !dead.contains(&node) {
            dead.push(node);
        }
    }
    // Probes of different members are at different points of their interval.
    world.run(Duration::from_nanos(draw.below(1_000_000_000)));
    let start = world.now;
    dead.iter().for_each(|node| world.crash(*node));
    let healthy: Vec<usize> = world.up().collect();
    world.run(Duration::from_secs(120));
    let mut detection = Detection { trace: world.trace, ..Detection::default() };
    for node in &dead {
        let reports = world.reports.iter().filter(|r| r.of == *node && matches!(r.what, Said::Died { .. }));
        let times: Vec<Instant> = reports.map(|report| report.at).collect();
        if let Some(first) = times.iter().min() {
            detection.first.push(first.since(start));
        }
        if healthy.iter().all(|by| world.member(*by).holds_dead(*node)) {
            detection.full.push(times.iter().max().map_or(Duration::ZERO, |last| last.since(start)));
        }
    }
    detection.false_deaths = false_deaths(&world, |of| !dead.contains(&of), |_| true).any;
    detection
}

/// False deaths of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct False {
    /// A member's own timer ran out on a healthy one.
    pub at_origin: usize,
    /// Any member held a healthy one for dead.
    pub any: usize,
    /// Those of `any` that stood with a healthy member.
    pub at_healthy: usize,
}

fn false_deaths<P>(world: &World<P>, of: impl Fn(usize) -> bool, healthy: impl Fn(usize) -> bool) -> False {
    let mut count = False::default();
    for report in &world.reports {
        if let Said::Died { by_us } = report.what
            && of(report.of)
        {
            count.any += 1;
            count.at_origin += usize::from(by_us);
            count.at_healthy += usize::from(healthy(report.by));
        }
    }
    count
}

#[derive(Clone, Copy, Debug, Default)]
pub struct IntervalRun {
    pub wrong: False,
    pub datagrams: u64,
    pub bytes: u64,
}

/// Some members are blocked again and again, all at once, for two minutes at least.
pub fn interval<P: Peer>(setup: Setup, anomalous: usize, length: Duration, pause: Duration) -> IntervalRun {
    let mut world = World::<P>::joined(setup);
    let blocked = 1..=anomalous;
    let end = world.now + Duration::from_secs(120);
    while world.now < end {
        for node in blocked.clone() {
            world.block(node, length);
        }
        world.run(length + pause);
    }
    let wrong = false_deaths(&world, |of| !blocked.contains(&of), |by| !blocked.contains(&by));
    let mut run = IntervalRun { wrong, ..IntervalRun::default() };
    for node in 0..world.len() {
        let (datagrams, bytes) = world.member(node).sent();
        run.datagrams += datagrams;
        run.bytes += bytes;
    }
    run
}

#[derive(Clone, Copy, Debug, Default)]
pub struct StarveRun {
    /// Live members that died, that are starved and that are not.
    pub starved: usize,
    pub healthy: usize,
    /// How often any member held them for dead.
    pub transitions: usize,
    pub detection: Option<Duration>,
}

/// Fifty members, of which five read late; another one crashes after a minute.
pub fn starve<P: Peer>(setup: Setup) -> StarveRun {
    let loss = setup.loss_permille;
    let mut world = World::<P>::joined(Setup { loss_permille: 0, ..setup });
    world.lose(loss);
    let starved = 1..=5;
    starved.clone().for_each(|node| world.starve(node));
    world.run(Duration::from_secs(60));
    let start = world.now;
    let crashed = 10;
    world.crash(crashed);
    world.run(Duration::from_secs(60));
    let mut run = StarveRun::default();
    for of in (0..world.len()).filter(|of| *of != crashed) {
        let died = world.reports.iter().any(|r| r.of == of && matches!(r.what, Said::Died { by_us: true }));
        let count = if starved.contains(&of) { &mut run.starved } else { &mut run.healthy };
        *count += usize::from(died);
    }
    run.transitions = false_deaths(&world, |of| of != crashed, |_| true).any;
    let healthy = world.up().filter(|by| !starved.contains(by));
    let last = |by: usize| {
        let mut reports = world.reports.iter();
        reports.find(|r| r.by == by && r.of == crashed && matches!(r.what, Said::Died { .. })).map(|r| r.at)
    };
    let times: Option<Vec<Instant>> = healthy.map(last).collect();
    run.detection = times.and_then(|times| times.into_iter().max()).map(|at| at.since(start));
    run
}

/// Nothing happens for a minute but loss; how many deaths there are all the same.
pub fn quiet<P: Peer>(setup: Setup) -> usize {
    let loss = setup.loss_permille;
    let mut world = World::<P>::joined(Setup { loss_permille: 0, ..setup });
    world.lose(loss);
    world.run(Duration::from_secs(60));
    false_deaths(&world, |_| true, |_| true).any
}

/// All join through one seed at once; when each knew all others, or nothing within the time.
pub fn joins<P: Peer>(setup: Setup, most: Duration) -> Vec<Option<Duration>> {
    let mut world = World::<P>::new(setup);
    for node in 0..world.len() {
        world.join(node);
    }
    know_all(&mut world, most)
}

fn know_all<P: Peer>(world: &mut World<P>, most: Duration) -> Vec<Option<Duration>> {
    let (start, all) = (world.now, world.len());
    let mut known = vec![None; all];
    while known.iter().any(Option::is_none) && world.now.since(start) < most {
        world.run(Duration::from_millis(20));
        for (node, known) in known.iter_mut().enumerate() {
            if known.is_none() && world.member(node).live_count() == all {
                *known = Some(world.now.since(start));
            }
        }
    }
    known
}

/// Bytes and datagrams that a member of a quiet cluster sends in a second.
pub fn idle<P: Peer>(setup: Setup) -> (f64, f64) {
    let mut world = World::<P>::joined(setup);
    world.run(Duration::from_secs(60));
    let sum = |world: &World<P>| {
        (0..world.len()).fold((0, 0), |(bytes, datagrams), node| {
            let sent = world.member(node).sent();
            (bytes + sent.1, datagrams + sent.0)
        })
    };
    let before = sum(&world);
    world.run(Duration::from_secs(60));
    let after = sum(&world);
    let each = (world.len() * 60) as f64;
    ((after.0 - before.0) as f64 / each, (after.1 - before.1) as f64 / each)
}

/// Two halves do not hear each other for ten minutes; how long until all know all again.
pub fn split<P: Peer>(setup: Setup) -> Option<Duration> {
    let half = setup.members / 2;
    let mut world = World::<P>::joined(setup);
    world.split(|node| u8::from(node >= half));
    world.run(Duration::from_secs(600));
    world.split(|_| 0);
    let healed = world.now;
    while world.now.since(healed) < Duration::from_secs(120) {
        world.run(Duration::from_millis(100));
        if world.all_know_all() {
            return Some(world.now.since(healed));
        }
    }
    None
}

/// Seven of ten leave, a second apart. Returns how often a leaver was held for dead, and whether the others agree.
pub fn scale_down<P: Peer>(setup: Setup) -> (usize, bool) {
    let mut world = World::<P>::joined(setup);
    for node in 3..10 {
        world.leave(node);
        world.run(Duration::from_secs(1));
    }
    world.run(Duration::from_secs(60));
    let deaths = false_deaths(&world, |of| of >= 3, |_| true).any;
    (deaths, world.all_know_all() && world.up().count() == 3)
}

/// All restart within a second. Returns who is held for dead after half a minute though it lives, and how many members
/// do not know all.
pub fn restart_all<P: Peer>(setup: Setup) -> (usize, usize) {
    let mut draw = Rng::new(setup.seed, "swim restart", 0);
    let mut world = World::<P>::joined(setup);
    let mut times: Vec<(u64, usize)> =
        (0..world.len()).map(|node| (draw.below(1_000_000_000), node)).collect();
    times.sort_unstable();
    let start = world.now;
    for (at, node) in times {
        world.run_until(start + Duration::from_nanos(at));
        world.restart(node);
    }
    world.run(Duration::from_secs(30));
    let dead = (0..world.len()).map(|by| world.member(by).dead_count()).sum();
    let all = world.len();
    let lacking = (0..all).filter(|by| world.member(*by).live_count() != all).count();
    (dead, lacking)
}
