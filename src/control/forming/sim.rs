//! Nodes on their way into a cluster, in virtual time: random starts, lost and late messages, crashes, wiped disks.
//!
//! The checker: no two disks that still exist are ever in different clusters, all know the same founders, nobody founds
//! before every seed has been there, and once the faults stop everybody comes in, but for those whose disks were
//! replaced. A saboteur lies between node and network, so that the checker is seen to bite.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::control::metadata::image::DiskId;

/// What is done to the messages on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Planted {
    Nothing,
    /// Everybody seems to propose what the asker would like to hear: founding after one round.
    AgreeAtOnce,
    /// A node asks only those seeds that it found at its first look.
    FewerSeeds,
    /// A node that is in a cluster answers as if it was in none, and agreeably.
    FormedLooksFresh,
}

#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub seeds: usize,
    pub joiners: usize,
    /// Of 1000 messages.
    pub lost: u64,
    /// The last node starts this late.
    pub late: Duration,
    pub crashes: usize,
    pub wipes: usize,
    /// Everything happens within the second in which the cluster forms.
    pub hot: bool,
    pub planted: Planted,
}

#[derive(Debug)]
enum Event {
    Start(usize),
    Crash(usize),
    Wipe(usize),
    Wake { node: usize, life: u64 },
    AskArrives { from: usize, life: u64, call: CallId, to: usize },
    AskReturns { to: usize, life: u64, call: CallId, heard: Heard },
    JoinArrives { from: usize, life: u64, call: CallId, to: usize, member: Member },
    JoinReturns { to: usize, life: u64, call: CallId, answer: Result<JoinAnswer, String> },
}

struct Node {
    member: Member,
    seeds: Vec<Endpoint>,
    started: bool,
    life: u64,
    up: bool,
    forming: Option<Forming>,
    /// Durable, of the disk that the member names.
    formed: Option<(ClusterId, Founders)>,
    /// How its last life ended.
    fatal: Option<(Instant, Fatal)>,
    /// Questions that the driver still waits for, and whom they went to.
    open: BTreeMap<CallId, usize>,
    /// The one timer of the driver.
    wake: Option<Instant>,
    waited: Vec<(Instant, String)>,
}

pub(super) struct World {
    now: Instant,
    rng: Xoshiro256PlusPlus,
    plan: Plan,
    queue: BTreeMap<(Instant, u64), Event>,
    queued: u64,
    nodes: Vec<Node>,
    disks: u128,
    quiet: bool,
    /// Who joined which cluster by its leader's word.
    joined: BTreeMap<(ClusterId, NodeId), DiskId>,
    pub foundings: BTreeSet<ClusterId>,
}

fn address(node: usize) -> Endpoint {
    Endpoint { host: format!("n{node}"), port: 9093 }
}

const SECOND: Duration = Duration::from_secs(1);

impl World {
    pub(super) fn new(seed: u64, plan: Plan) -> Self {
        let rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut world = Self {
            now: Instant::ZERO,
            rng,
            queue: BTreeMap::new(),
            queued: 0,
            nodes: Vec::new(),
            disks: 0,
            quiet: false,
            joined: BTreeMap::new(),
            foundings: BTreeSet::new(),
            plan,
        };
        let seeds: Vec<Endpoint> = (0..world.plan.seeds).map(address).collect();
        let count = world.plan.seeds + world.plan.joiners;
        for node in 0..count {
            world.disks += 1;
            let id = NodeId(u32::try_from(node).unwrap());
            let member = Member { node: id, disk: DiskId(world.disks), at: address(node) };
            let seeds = seeds.clone();
            world.nodes.push(Node {
                member,
                seeds,
                started: false,
                life: 0,
                up: false,
                forming: None,
                formed: None,
                fatal: None,
                open: BTreeMap::new(),
                wake: None,
                waited: Vec::new(),
            });
            let late = if node + 1 == world.plan.seeds { world.plan.late } else { Duration::ZERO };
            let span = if world.plan.hot { SECOND / 4 } else { 2 * SECOND };
            let at = world.below(span) + late;
            world.at(at, Event::Start(node));
        }
        // Some in the thick of it, some later.
        let late = world.plan.late;
        for fault in 0..world.plan.crashes + world.plan.wipes {
            let node = world.pick(count);
            let span = if world.plan.hot { 3 * SECOND / 2 } else { 8 * SECOND };
            let at = world.below(span) + if world.pick(2) == 0 { late } else { Duration::ZERO };
            let is_founder = node < world.plan.seeds;
            // A leader's word cannot be kept by a cluster that has lost all of its founders' disks.
            let wipe = fault < world.plan.wipes && (world.plan.joiners == 0 || !is_founder);
            world.at(at, if wipe { Event::Wipe(node) } else { Event::Crash(node) });
        }
        world
    }

    fn pick(&mut self, n: usize) -> usize {
        usize::try_from(self.rng.next_u64() % u64::try_from(n).unwrap()).unwrap()
    }

    fn below(&mut self, max: Duration) -> Duration {
        Duration::from_nanos(self.rng.next_u64() % u64::try_from(max.as_nanos()).unwrap())
    }

    fn down_max(&self) -> Duration {
        if self.plan.hot { SECOND / 5 } else { 3 * SECOND }
    }

    fn at(&mut self, after: Duration, event: Event) {
        self.queued += 1;
        self.queue.insert((self.now + after, self.queued), event);
    }

    /// How long a message takes; `None` when it is lost.
    fn delay(&mut self) -> Option<Duration> {
        let lost = self.rng.next_u64() % 1000 < self.plan.lost;
        let delay = match self.pick(10) {
            0 if !self.quiet => self.below(2 * SECOND),
            1..6 if self.plan.hot && !self.quiet => self.below(3 * SECOND / 10),
            _ => self.below(Duration::from_millis(20)),
        };
        (self.quiet || !lost).then_some(delay)
    }

    /// Runs with faults, then without them, and says what is wrong.
    pub(super) fn run(&mut self) -> Result<(), String> {
        let faults_end = Instant::ZERO + self.plan.late + 12 * SECOND;
        self.run_until(faults_end)?;
        self.quiet = true;
        for node in 0..self.nodes.len() {
            self.at(Duration::ZERO, Event::Start(node));
        }
        self.run_until(faults_end + 60 * SECOND)?;
        for node in &self.nodes {
            let now = self.now;
            let lately = node.fatal.as_ref().filter(|(at, _)| now.since(*at) < 10 * SECOND);
            let replaced = matches!(
                lately,
                Some((
                    _,
                    Fatal::DiskReplaced { .. } | Fatal::Refused { why: Refused::DiskReplaced { .. }, .. }
                ))
            );
            if node.formed.is_none() && !replaced {
                return Err(format!(
                    "node {} is in no cluster at the end: {:?}, last said {:?}",
                    node.member.node,
                    node.fatal,
                    node.waited.last()
                ));
            }
        }
        match self.nodes.iter().any(|node| node.formed.is_some()) {
            true => Ok(()),
            false => Err("there is no cluster at the end".into()),
        }
    }

    fn run_until(&mut self, end: Instant) -> Result<(), String> {
        let mut steps = 0;
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            self.now = entry.key().0;
            let event = entry.remove();
            self.step(event)?;
            self.check()?;
            steps += 1;
            if steps > 1_000_000 {
                return Err("too many steps".into());
            }
        }
        self.now = end;
        Ok(())
    }

    fn step(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Start(node) => self.start(node),
            Event::Crash(node) => {
                self.stop(node);
                let after = self.below(self.down_max());
                self.at(after, Event::Start(node));
                Ok(())
            }
            Event::Wipe(node) => {
                self.stop(node);
                self.disks += 1;
                self.nodes[node].member.disk = DiskId(self.disks);
                self.nodes[node].formed = None;
                self.nodes[node].fatal = None;
                let after = self.below(self.down_max());
                self.at(after, Event::Start(node));
                Ok(())
            }
            Event::Wake { node, life }
                if self.alive(node, life) && self.nodes[node].wake == Some(self.now) =>
            {
                self.nodes[node].wake = None;
                self.input(node, Input::Timeout)
            }
            Event::AskArrives { from, life, call, to } => {
                if self.nodes[to].up {
                    let from = self.nodes[from].member.node;
                    self.input(to, Input::AskedBy(from))?;
                }
                if self.nodes[to].up
                    && let Some(who) = self.who(to)
                    && let Some(delay) = self.delay()
                {
                    let heard = Heard::Who(Box::new(who));
                    self.at(delay, Event::AskReturns { to: from, life, call, heard });
                } else if self.nodes[from].open.contains_key(&call) && !self.nodes[to].up {
                    let heard = Heard::Failed("connection refused".into());
                    self.at(Duration::from_millis(1), Event::AskReturns { to: from, life, call, heard });
                }
                Ok(())
            }
            Event::AskReturns { to, life, call, heard } if self.alive(to, life) => {
                self.on_answer(to, call, heard)
            }
            Event::JoinArrives { from, life, call, to, member } => {
                if let Some(answer) = self.join(to, &member)
                    && let Some(delay) = self.delay()
                {
                    self.at(delay, Event::JoinReturns { to: from, life, call, answer: Ok(answer) });
                }
                Ok(())
            }
            Event::JoinReturns { to, life, call, answer } if self.alive(to, life) => {
                match self.nodes[to].open.remove(&call) {
                    Some(_) => self.input(to, Input::JoinAnswered { call, answer }),
                    None => Ok(()),
                }
            }
            Event::Wake { .. } | Event::AskReturns { .. } | Event::JoinReturns { .. } => Ok(()),
        }
    }

    fn alive(&self, node: usize, life: u64) -> bool {
        self.nodes[node].up && self.nodes[node].life == life
    }

    fn start(&mut self, node: usize) -> Result<(), String> {
        if self.nodes[node].up {
            return Ok(());
        }
        let seed = self.rng.next_u64();
        let up: BTreeSet<usize> = (0..self.nodes.len()).filter(|other| self.nodes[*other].up).collect();
        let fewer = self.plan.planted == Planted::FewerSeeds;
        let it = &mut self.nodes[node];
        it.up = true;
        it.started = true;
        it.life += 1;
        it.wake = None;
        it.open.clear();
        it.forming = it.formed.is_none().then(|| {
            let seeds = it.seeds.iter().enumerate();
            let seeds = seeds.filter(|(seed, _)| !fewer || *seed == node || up.contains(seed));
            let seeds = seeds.map(|(_, seed)| seed.clone()).collect();
            Forming::new(FormingConfig { member: it.member.clone(), seeds, seed })
        });
        if it.forming.is_some() { self.input(node, Input::Timeout) } else { Ok(()) }
    }

    fn stop(&mut self, node: usize) {
        self.nodes[node].up = false;
        self.nodes[node].forming = None;
    }

    fn who(&self, node: usize) -> Option<Who> {
        let it = &self.nodes[node];
        let formed = it.formed.clone().map(|(cluster, founders)| Who {
            member: it.member.clone(),
            seeds: it.seeds.clone(),
            standing: Standing::Formed { cluster, founders },
        });
        formed.or_else(|| Some(it.forming.as_ref()?.who()))
    }

    fn on_answer(&mut self, to: usize, call: CallId, mut heard: Heard) -> Result<(), String> {
        let it = &mut self.nodes[to];
        if it.open.remove(&call).is_none() {
            return Ok(());
        }
        if self.plan.planted == Planted::AgreeAtOnce
            && let (Heard::Who(who), Some(forming)) = (&mut heard, &it.forming)
            && let (Standing::Fresh { proposes }, Standing::Fresh { proposes: mine }) =
                (&mut who.standing, forming.who().standing)
        {
            *proposes = mine;
        }
        if self.plan.planted == Planted::FormedLooksFresh
            && let (Heard::Who(who), Some(forming)) = (&mut heard, &it.forming)
        {
            who.standing = forming.who().standing;
        }
        if self.plan.planted == Planted::FewerSeeds
            && let (Heard::Who(who), Some(forming)) = (&mut heard, &it.forming)
        {
            who.seeds = forming.who().seeds;
        }
        self.input(to, Input::Heard { call, from: Ok(vec![heard]) })
    }

    fn input(&mut self, node: usize, input: Input) -> Result<(), String> {
        let now = self.now;
        let Some(forming) = &mut self.nodes[node].forming else { return Ok(()) };
        forming.handle(now, input);
        let mut outputs = Vec::new();
        while let Some(output) = forming.poll_output() {
            outputs.push(output);
        }
        let life = self.nodes[node].life;
        let timeout = self.nodes[node].forming.as_ref().and_then(Forming::poll_timeout);
        if let Some(at) = timeout.filter(|at| self.nodes[node].wake != Some(*at)) {
            self.nodes[node].wake = Some(at);
            self.at(at.since(now), Event::Wake { node, life });
        }
        for output in outputs {
            self.output(node, life, output)?;
        }
        Ok(())
    }

    fn output(&mut self, node: usize, life: u64, output: Output) -> Result<(), String> {
        match output {
            Output::Ask { call, seed } => {
                let to = (0..self.nodes.len()).find(|to| address(*to) == seed).expect("a known name");
                self.nodes[node].open.insert(call, to);
                if let Some(delay) = self.delay() {
                    self.at(delay, Event::AskArrives { from: node, life, call, to });
                }
                let heard = Heard::Failed("no answer in time".into());
                self.at(SECOND, Event::AskReturns { to: node, life, call, heard });
                Ok(())
            }
            Output::Join { call, node: to, .. } => {
                let to = usize::try_from(to.0).unwrap();
                self.nodes[node].open.insert(call, to);
                let member = self.nodes[node].member.clone();
                if let Some(delay) = self.delay() {
                    self.at(delay, Event::JoinArrives { from: node, life, call, to, member });
                }
                let answer = Err("no answer in time".into());
                self.at(3 * SECOND, Event::JoinReturns { to: node, life, call, answer });
                Ok(())
            }
            Output::Found { cluster, founders } => {
                self.foundings.insert(cluster);
                if let Some(absent) = self.nodes[..self.plan.seeds].iter().find(|seed| !seed.started) {
                    return Err(format!("founded before {} was there", show(&absent.member.at)));
                }
                if founders.get(self.nodes[node].member.node) != Some(&self.nodes[node].member) {
                    return Err(format!("{} founded a cluster without itself", show(&address(node))));
                }
                self.come_in(node, cluster, founders);
                Ok(())
            }
            Output::Joined { cluster, founders } => {
                self.come_in(node, cluster, founders);
                Ok(())
            }
            Output::Waiting(what) => {
                self.nodes[node].waited.push((self.now, what));
                Ok(())
            }
            Output::Fatal(fatal) => {
                self.stop(node);
                self.nodes[node].fatal = Some((self.now, fatal));
                // A supervisor starts it again.
                self.at(5 * SECOND, Event::Start(node));
                Ok(())
            }
        }
    }

    fn come_in(&mut self, node: usize, cluster: ClusterId, founders: Founders) {
        self.nodes[node].formed = Some((cluster, founders));
        self.nodes[node].forming = None;
    }

    /// What a node answers to who wants to join: a cluster takes members while most of its founders run.
    fn join(&mut self, at: usize, member: &Member) -> Option<JoinAnswer> {
        let (cluster, founders) = self.nodes[at].formed.clone().filter(|_| self.nodes[at].up)?;
        let running = |founder: &&Member| {
            let it = &self.nodes[usize::try_from(founder.node.0).unwrap()];
            it.up && it.member.disk == founder.disk && it.formed.is_some()
        };
        let all = founders.members();
        let has_leader = all.iter().filter(running).count() * 2 > all.len();
        let founder = founders.get(member.node).map(|founder| founder.disk);
        let known = founder.or_else(|| self.joined.get(&(cluster, member.node)).copied());
        Some(match known {
            Some(known) if known == member.disk => JoinAnswer::Welcome { cluster, founders },
            Some(known) => JoinAnswer::Refused(Refused::DiskReplaced { node: member.node, known }),
            None if has_leader => {
                self.joined.insert((cluster, member.node), member.disk);
                JoinAnswer::Welcome { cluster, founders }
            }
            None => JoinAnswer::NotNow("no leader".into()),
        })
    }

    fn check(&self) -> Result<(), String> {
        let mut formed = self.nodes.iter().filter_map(|node| Some((node, node.formed.as_ref()?)));
        let Some((first, theirs)) = formed.next() else { return Ok(()) };
        match formed.find(|(_, other)| *other != theirs) {
            Some((second, _)) => Err(format!(
                "two clusters: node {} in {:?}, node {} in {:?}",
                first.member.node, first.formed, second.member.node, second.formed
            )),
            None => Ok(()),
        }
    }

    pub(super) fn all_formed(&self) -> bool {
        self.nodes.iter().all(|node| node.formed.is_some())
    }

    /// What each node said that it waits for.
    pub(super) fn waited(&self, node: usize) -> &[(Instant, String)] {
        &self.nodes[node].waited
    }
}

pub(super) fn random_plan(seed: u64, planted: Planted) -> Plan {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed ^ 0x5eed);
    let mut pick = |n: u64| rng.next_u64() % n;
    let small = |n: u64| usize::try_from(n).unwrap();
    let hot = pick(2) == 0;
    Plan {
        hot,
        seeds: small(3 + pick(3)) - usize::from(pick(8) == 0) * 2,
        joiners: if pick(3) == 0 { small(1 + pick(2)) } else { 0 },
        lost: [0, 20, 100, 300][small(pick(4))],
        late: if pick(10) == 0 { Duration::from_secs(60) } else { Duration::ZERO },
        crashes: small(pick(4)),
        wipes: small(pick(if hot { 9 } else { 5 })),
        planted,
    }
}

/// Nothing goes wrong but that the last seed is late.
fn calm(seeds: usize, joiners: usize, late: Duration) -> Plan {
    Plan { seeds, joiners, lost: 0, late, crashes: 0, wipes: 0, hot: false, planted: Planted::Nothing }
}

fn run(seed: u64, planted: Planted) -> Result<(), String> {
    World::new(seed, random_plan(seed, planted)).run()
}

#[test]
fn random_faults_never_found_a_second_cluster() {
    for seed in 0..4_000 {
        run(seed, Planted::Nothing).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn the_checker_sees_planted_bugs() {
    for planted in [Planted::AgreeAtOnce, Planted::FormedLooksFresh, Planted::FewerSeeds] {
        let bitten = (0..20_000).find(|seed| run(*seed, planted).is_err());
        assert!(bitten.is_some(), "{planted:?} goes unseen");
    }
}

#[test]
fn nodes_that_start_together_form_in_no_time() {
    for seed in 0..200 {
        let plan = calm(3, 0, Duration::ZERO);
        let mut world = World::new(seed, plan);
        world.quiet = true;
        let last = world.queue.keys().map(|(at, _)| *at).max().unwrap();
        world.run_until(last + Duration::from_millis(1000)).unwrap();
        assert!(world.all_formed() && world.foundings.len() == 1, "seed {seed}");
    }
}

#[test]
fn a_seed_that_starts_an_hour_late_is_waited_for_and_named() {
    let hour = Duration::from_secs(3600);
    let mut world = World::new(7, calm(3, 1, hour));
    world.run_until(Instant::ZERO + hour).unwrap();
    assert!(world.foundings.is_empty());
    for node in 0..2 {
        let waited = world.waited(node);
        let named = |(_, what): &&(Instant, String)| {
            what.contains("2 of 3 seeds are ready") && what.contains("n2:9093: connection refused")
        };
        let named = waited.iter().filter(named).count();
        assert!(named > waited.len() / 2, "{named} of {}, {:?}", waited.len(), waited.last());
        assert!((600..1500).contains(&waited.len()), "said {} times in an hour", waited.len());
    }
    let (_, joiner) = world.waited(3).last().unwrap();
    assert!(joiner.contains("no seed is in a cluster yet, and this node (n3:9093) is not among"), "{joiner}");
    world.run().unwrap();
    assert!(world.all_formed() && world.foundings.len() == 1);
}
