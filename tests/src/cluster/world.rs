//! Drives a cluster through one seed: virtual time, nodes of shards with their disks, links, clients, and the script of
//! faults; then a time to heal, then the last check. A driver of [`Shard`] like the others, except that every choice
//! comes from the seed.

mod conns;
mod faults;
mod links;
mod nodes;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use highwater_shards::ids::{ConnId, PartitionId, ShardId};
use highwater_shards::log::disk::OpNo;
use highwater_shards::mail::ShardMail;
use highwater_shards::shard::{Input, Shard};
use highwater_shards::time::Instant;

use super::auditor::Auditor;
use super::client::{Act, Client, Role, Scene};
use super::config::Config;
use super::consumer::Consumer;
use super::controls::{self, Planes};
use super::judge::Judge;
use super::links::{Link, Side};
use super::net::Net;
use super::plane::{Cx, Said, Told, Truth};
use super::producer::Producer;
use super::{Counts, Outcome};
use crate::checkers::{Verdict, broken, liveness};
use crate::disk::{Crash, SimDisk};
use crate::front::SimFront;
use crate::net::{Conn, Up};
use crate::queue::{Lane, Queue};
use crate::rng::Rng;
use crate::trace::Trace;
use crate::turn;

pub use faults::Fault;
use faults::Kind;

/// A run with more inputs and outputs than this goes round in circles.
const EVENTS_MAX: u64 = 4_000_000;
/// From the end of the faults to the end of the audit.
const HEAL_MAX: Duration = Duration::from_secs(30);

/// One shard's core, with its disk.
struct Host {
    machine: Option<Shard<SimFront>>,
    disk: SimDisk,
    inbox: VecDeque<Item>,
    waking: bool,
    /// The timeout that is scheduled, and its number; older numbers are void.
    timeout: Option<Instant>,
    timeout_number: u64,
    stalled_until: Instant,
    told: Lane,
    said: Lane,
    /// On its way to the control core, in this order also when that is paused meanwhile.
    saying: VecDeque<Said>,
    mail: Vec<Lane>,
}

type Item = turn::Item<SimFront>;

struct Node {
    hosts: Vec<Host>,
    /// At which count of inputs and outputs its life ends, and how.
    doom: Option<(u64, Crash)>,
    /// A fault of a disk, for which it may end itself.
    fatal_expected: bool,
}

enum Event {
    Wake(usize, ShardId, u32),
    Timeout(usize, ShardId, u32, u64),
    Disk(usize, ShardId, u32, OpNo),
    Mail(usize, ShardId, u32, ShardMail),
    Told(usize, ShardId, u32, Told),
    Said(usize, ShardId, u32),
    Plane(controls::Event),
    /// A connection comes to the other node, or the news that it does not.
    Dial {
        node: usize,
        shard: ShardId,
        life: u32,
        to: usize,
        to_shard: ShardId,
    },
    Opened(usize, Side),
    DialFailed {
        node: usize,
        shard: ShardId,
        life: u32,
        to: usize,
        to_shard: ShardId,
    },
    LinkTake(usize, Side),
    LinkMove(usize, Side),
    /// The end learns that the other one is gone.
    LinkOver(usize, Side),
    /// The end gives up if it has heard nothing since.
    LinkSilent(usize, Side, Instant),
    Up(ConnId, Up),
    Take(ConnId),
    Arrive(ConnId),
    Turn(usize, u64),
    Fault,
    Undo(Fault),
    Restart(usize),
    Stop(usize, u32),
    /// What the node leads another one is to lead.
    Relieve(usize),
    /// Likewise any node, again and again.
    RelieveAny,
    /// Others are to lead partitions with records under way, again and again while the network is slow.
    HandOver,
    StopOverdue(usize, u32),
    Heal,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Faults,
    Healing,
    Audit,
    Done,
}

/// Where a connection id leads.
enum Place {
    Client(ClientConn),
    Peer(usize, Side),
}

struct ClientConn {
    node: usize,
    conn: Conn,
}

struct Dice {
    wake: Rng,
    mail: Rng,
    net: Rng,
    plane: Rng,
    crash: Rng,
    machine: Rng,
    fault: Rng,
}

pub struct World {
    config: Config,
    plane: Planes,
    now: Instant,
    net: Net,
    nodes: Vec<Node>,
    queue: Queue<Event>,
    trace: Trace,
    dice: Dice,
    places: Vec<Place>,
    links: Vec<Link>,
    clients: Vec<Client>,
    judge: Judge,
    counts: Counts,
    /// Until when a fault of a kind lasts.
    going_on: BTreeMap<Kind, Instant>,
    phase: Phase,
    healed_at: Instant,
    partitions: Vec<PartitionId>,
    /// What clients know of leaders, until when.
    view: Truth,
    view_until: Instant,
    acts: Vec<Act>,
    tells: Vec<(usize, ShardId, Told)>,
    later: Vec<(Instant, controls::Event)>,
}

impl World {
    pub fn new(config: Config, print: bool) -> Self {
        let seed = config.seed;
        let dice = |purpose| Rng::new(seed, purpose, 0);
        let node = |at: usize| {
            let host = |shard: u16| Host {
                machine: None,
                disk: SimDisk::new(
                    config.disk.clone(),
                    Rng::new(seed, "disk", at as u64 * 16 + u64::from(shard)),
                ),
                inbox: VecDeque::new(),
                waking: false,
                timeout: None,
                timeout_number: 0,
                stalled_until: Instant::ZERO,
                told: Lane::default(),
                said: Lane::default(),
                saying: VecDeque::new(),
                mail: vec![Lane::default(); usize::from(config.shards[at])],
            };
            let hosts = (0..config.shards[at]).map(host).collect();
            Node { hosts, doom: None, fatal_expected: false }
        };
        let mut world = Self {
            plane: Planes::new(&config),
            now: Instant::ZERO,
            net: Net::new(config.nodes),
            nodes: (0..config.nodes).map(node).collect(),
            queue: Queue::new(dice("ties")),
            trace: Trace::new(print),
            dice: Dice {
                wake: dice("wake"),
                mail: dice("mail"),
                net: dice("net"),
                plane: dice("plane"),
                crash: dice("crash"),
                machine: dice("machine"),
                fault: dice("fault"),
            },
            places: Vec::new(),
            links: Vec::new(),
            clients: Vec::new(),
            judge: Judge::new(print),
            counts: Counts { seeds: 1, ..Counts::default() },
            going_on: BTreeMap::new(),
            phase: Phase::Faults,
            healed_at: Instant::ZERO,
            partitions: Vec::new(),
            view: Truth::new(),
            view_until: Instant::ZERO,
            acts: Vec::new(),
            tells: Vec::new(),
            later: Vec::new(),
            config,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for i in 0..self.config.producers + self.config.consumers {
            let id = self.clients.len();
            let mut rng = Rng::new(self.config.seed, "client", u64::from(i));
            let role = if i < self.config.producers {
                Role::Producer(Producer::new(id, &self.config, &mut rng))
            } else {
                Role::Consumer(Consumer::new(&mut rng))
            };
            self.add_client(Client::new(id, role, rng));
        }
        // The cluster begins in peace.
        let first =
            self.dice.fault.between(self.config.peace, self.config.peace + Duration::from_millis(120));
        self.after(first, Event::Fault);
        self.after(first + self.config.duration, Event::Heal);
        if self.config.relieve_every.is_some() {
            self.after(first, Event::RelieveAny);
        }
    }

    fn add_client(&mut self, client: Client) {
        let id = client.id;
        self.clients.push(client);
        self.after(Duration::ZERO, Event::Turn(id, 0));
    }

    /// Runs to the end: until everything is read and found right, or something is wrong.
    pub fn run(mut self) -> Outcome {
        let violation = self.run_to_the_end().err();
        self.counts.events = self.trace.events();
        self.judge.count(&mut self.counts);
        for client in &self.clients {
            if let Role::Auditor(a) = &client.role {
                self.counts.records_audited += a.records;
            }
        }
        let time = self.now.since(Instant::ZERO);
        Outcome { hash: self.trace.hash(), counts: self.counts, time, violation }
    }

    fn run_to_the_end(&mut self) -> Verdict {
        self.with_plane(|plane, cx| {
            plane.begin(cx);
            Ok(())
        })?;
        for node in 0..self.config.nodes {
            self.restart(node)?;
        }
        while self.phase != Phase::Done {
            let result = self.step();
            for line in self.judge.story.iter_mut().flat_map(|s| s.drain(..)) {
                self.trace.story(self.now, &line);
            }
            result?;
        }
        Ok(())
    }

    fn step(&mut self) -> Verdict {
        let (at, event) = self.queue.pop().expect("clients always have an appointment");
        self.now = at;
        self.dispatch(event)?;
        for node in 0..self.nodes.len() {
            if self.is_doomed(node) && self.net.node(node).up {
                let (_, crash) = self.nodes[node].doom.expect("just seen");
                self.crash(node, crash);
            }
        }
        if self.trace.events() > EVENTS_MAX {
            return Err(broken(liveness::NAME, "the nodes go round in circles"));
        }
        if self.phase != Phase::Faults && self.now > self.healed_at + HEAL_MAX {
            return Err(liveness::stuck(&self.what_is_open()));
        }
        Ok(())
    }

    fn is_doomed(&self, node: usize) -> bool {
        self.nodes[node].doom.is_some_and(|(at, _)| at <= self.trace.events())
    }

    fn dispatch(&mut self, event: Event) -> Verdict {
        match event {
            Event::Wake(n, s, life) if self.net.is_life(n, life) => return self.wake(n, s),
            Event::Timeout(n, s, life, number) if self.net.is_life(n, life) => {
                let host = self.host(n, s);
                if host.timeout_number == number {
                    host.timeout = None;
                    self.schedule_wake(n, s);
                }
            }
            Event::Disk(n, s, life, op) if self.net.is_life(n, life) => self.deliver(n, s, Item::Disk(op)),
            Event::Mail(n, s, life, mail) if self.net.is_life(n, life) => {
                self.deliver(n, s, Item::Input(Input::Mail(mail)));
            }
            Event::Told(n, s, life, told) if self.net.is_life(n, life) => {
                self.judge.on_told(n, life, &told)?;
                self.deliver(n, s, Item::Input(Input::Control(told)));
            }
            Event::Said(n, s, life) if self.net.is_life(n, life) => return self.on_said(n, s),
            Event::Wake(..)
            | Event::Timeout(..)
            | Event::Disk(..)
            | Event::Mail(..)
            | Event::Told(..)
            | Event::Said(..) => {}
            Event::Plane(event) => return self.with_plane(|plane, cx| plane.on_event(event, cx)),
            Event::Dial { node, shard, life, to, to_shard } => self.on_dial(node, shard, life, to, to_shard),
            Event::Opened(link, side) => self.on_link_opened(link, side),
            Event::DialFailed { node, shard, life, to, to_shard } => {
                self.on_dial_failed(node, shard, life, to, to_shard);
            }
            Event::LinkTake(link, side) => self.on_link_take(link, side),
            Event::LinkMove(link, side) => self.on_link_move(link, side),
            Event::LinkOver(link, side) => self.link_over(link, side),
            Event::LinkSilent(link, side, since) => self.on_link_silent(link, side, since),
            Event::Up(conn, up) => self.on_up(conn, up),
            Event::Take(conn) => self.on_take(conn),
            Event::Arrive(conn) => return self.on_arrive(conn),
            Event::Turn(client, appointment) => return self.turn(client, appointment),
            Event::Fault => return self.on_fault(),
            Event::Undo(fault) => self.undo(fault),
            Event::Restart(node) => return self.restart(node),
            Event::Stop(node, life) => {
                if self.net.is_life(node, life) && self.net.runs(node, self.now) {
                    return self.stop(node);
                }
            }
            Event::StopOverdue(node, life) => {
                if self.net.is_life(node, life) && self.net.runs(node, self.now) {
                    return Err(broken(liveness::NAME, "a node did not stop by the deadline"));
                }
            }
            Event::Relieve(node) => return self.relieve(node),
            Event::RelieveAny => return self.relieve_any(),
            Event::HandOver => return self.hand_over(),
            Event::Heal => self.heal(),
        }
        Ok(())
    }

    fn host(&mut self, node: usize, shard: ShardId) -> &mut Host {
        &mut self.nodes[node].hosts[usize::from(shard.0)]
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.queue.push(self.now + delay, event);
    }

    /// Lets the control plane do something, and carries out what it wants.
    fn with_plane(&mut self, call: impl FnOnce(&mut Planes, &mut Cx<'_>) -> Verdict) -> Verdict {
        let mut cx = Cx {
            now: self.now,
            config: &self.config,
            net: &self.net,
            rng: &mut self.dice.plane,
            out: &mut self.tells,
            later: &mut self.later,
        };
        call(&mut self.plane, &mut cx)?;
        for (at, event) in self.later.drain(..) {
            self.queue.push(at.max(self.now), Event::Plane(event));
        }
        for (node, shard, told) in std::mem::take(&mut self.tells) {
            let life = self.net.node(node).life;
            let at = self.now + self.dice.plane.tailed(&self.config.mail);
            let at = self.host(node, shard).told.arrival(at);
            self.queue.push(at, Event::Told(node, shard, life, told));
        }
        self.judge.on_truth(self.plane.truth())?;
        for node in 0..self.config.nodes {
            if self.net.node(node).up && self.plane.has_stopped(node) {
                self.stopped(node);
            }
        }
        if self.partitions.len() != self.plane.truth().len() {
            self.partitions = self.plane.truth().keys().copied().collect();
        }
        Ok(())
    }

    fn look_who_leads(&mut self) {
        if self.is_view_late() && (self.view_until <= self.now || self.view.len() < self.partitions.len()) {
            self.view.clone_from(self.plane.truth());
            let lasts = self.config.view_lasts.clone();
            self.view_until = self.now + self.dice.net.between(lasts.start, lasts.end);
        }
    }

    fn is_view_late(&self) -> bool {
        self.config.features.late_clients && self.phase == Phase::Faults
    }

    fn scene(&mut self) -> (&mut Vec<Client>, Scene<'_>) {
        let late = self.is_view_late();
        let serving = |node: usize| self.net.node(node).up && self.plane.is_serving(node);
        let scene = Scene {
            now: self.now,
            config: &self.config,
            judge: &mut self.judge,
            partitions: &self.partitions,
            truth: if late { &self.view } else { self.plane.truth() },
            serving: (0..self.config.nodes).filter(|&n| serving(n)).collect(),
            healing: self.phase != Phase::Faults,
        };
        (&mut self.clients, scene)
    }

    fn appoint(&mut self, client: usize) -> u64 {
        self.clients[client].appointment += 1;
        self.clients[client].appointment
    }

    fn turn(&mut self, client: usize, appointment: u64) -> Verdict {
        if self.clients[client].appointment != appointment {
            return Ok(());
        }
        let mut acts = std::mem::take(&mut self.acts);
        self.look_who_leads();
        let rest = {
            let (clients, mut scene) = self.scene();
            clients[client].turn(&mut scene, &mut acts)?
        };
        for act in acts.drain(..) {
            self.act(client, act);
        }
        self.acts = acts;
        let appointment = self.appoint(client);
        self.after(rest, Event::Turn(client, appointment));
        self.end_of_phase()
    }

    fn end_of_phase(&mut self) -> Verdict {
        match self.phase {
            Phase::Healing => {
                let up = (0..self.config.nodes).all(|n| self.net.node(n).up && self.plane.is_serving(n));
                if up && self.plane.unrest().is_none() && self.clients.iter().all(Client::is_done) {
                    self.trace.note(self.now, "the audit begins");
                    self.phase = Phase::Audit;
                    let id = self.clients.len();
                    let rng = Rng::new(self.config.seed, "auditor", 0);
                    self.add_client(Client::new(id, Role::Auditor(Auditor::default()), rng));
                }
            }
            Phase::Audit if self.clients.iter().all(Client::is_done) => self.phase = Phase::Done,
            Phase::Faults | Phase::Audit | Phase::Done => {}
        }
        Ok(())
    }

    /// For a message: what has not ended.
    fn what_is_open(&self) -> String {
        if let Some(down) = (0..self.config.nodes).find(|&n| !self.net.node(n).up) {
            return format!("node {} is down", super::node_id(down));
        }
        if let Some(node) = (0..self.config.nodes).find(|&n| !self.plane.is_serving(n)) {
            return format!("node {} does not serve", super::node_id(node));
        }
        if let Some(unrest) = self.plane.unrest() {
            return unrest;
        }
        match self.clients.iter().find(|c| !c.is_done()).map(|c| (c.id, &c.role)) {
            Some((_, Role::Auditor(a))) => format!("the auditor is at {}", a.place()),
            Some((id, role)) => format!("client {id} is not done: {role:?}"),
            None => "nothing is open".to_owned(),
        }
    }
}
