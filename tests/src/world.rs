//! The world: virtual time, one node of shards, its disks, the mail between its shards, its clients and the script
//! of faults. A driver of [`Machine`] like the others, except that every choice comes from the seed.

mod conns;
mod faults;

use std::collections::VecDeque;
use std::time::Duration;

use highwater_shards::front::Front;
use highwater_shards::ids::{ConnId, PartitionId, ShardId};
use highwater_shards::log::disk::OpNo;
use highwater_shards::mail::{FromControl, ShardMail, ToControl};
use highwater_shards::shard::{ClientInput, FatalReason, Input, Machine, Output};
use highwater_shards::time::Instant;

use crate::auditor::Auditor;
use crate::checkers::{Checkers, Verdict, Violation, broken, liveness};
use crate::client::{Act, Client, Role, Scene};
use crate::config::Config;
use crate::consumer::Consumer;
use crate::control::{Control, Tell};
use crate::disk::{Crash, SimDisk};
use crate::faults::{Fault, Script};
use crate::net::{Conn, Up};
use crate::producer::Producer;
use crate::queue::{Lane, Queue};
use crate::rng::Rng;
use crate::shadow::Boot;
use crate::trace::Trace;
use crate::turn::{self, Item};
use crate::wire::Wire;

/// A run with more inputs and outputs than this goes round in circles.
const EVENTS_MAX: u64 = 3_000_000;

/// Makes the machines of a node: what is under test.
pub trait Builder: 'static {
    type Wire: Wire;
    type Machine: Machine<Front = FrontOf<Self>>;

    fn wire(&self, config: &Config) -> Self::Wire;

    fn build(&mut self, plan: Plan<'_, FrontOf<Self>>) -> Self::Machine;
}

pub type FrontOf<B> = <<B as Builder>::Wire as Wire>::Front;

/// What a machine is told at its start.
#[derive(Debug)]
pub struct Plan<'a, F> {
    pub config: &'a Config,
    pub shard: ShardId,
    pub boot: Boot,
    /// Of the machine's own randomness.
    pub seed: u64,
    pub front: F,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub hash: u64,
    /// Inputs and outputs of all machines.
    pub events: u64,
    pub boots: Boot,
    /// Batches that producers made.
    pub batches: usize,
    /// Records that the final audit read.
    pub records: u64,
    pub time: Duration,
    pub violation: Option<Violation>,
}

/// One shard's core, with its disk.
struct Host<B: Builder> {
    machine: Option<B::Machine>,
    disk: SimDisk,
    inbox: VecDeque<Item<FrontOf<B>>>,
    waking: bool,
    /// The timeout that is scheduled, and its number; older numbers are void.
    timeout: Option<Instant>,
    timeout_number: u64,
    stalled_until: Instant,
    from_control: Lane,
    to_control: Lane,
    mail: Vec<Lane>,
}

enum Event<F: Front> {
    Wake(ShardId, Boot),
    Timeout(ShardId, Boot, u64),
    Disk(ShardId, Boot, OpNo),
    Mail(ShardId, Boot, ShardMail),
    FromControl(ShardId, Boot, FromControl<F::View, F::Reply>),
    ToControl(ShardId, Boot, ToControl<F::Request>),
    Up(ConnId, Up),
    /// The kernel takes bytes of a shard.
    Take(ConnId),
    /// Bytes, or the end, reach a client.
    Arrive(ConnId),
    Turn(usize, u64),
    Fault,
    Inflict(Fault),
    Undo(Fault),
    Restart,
    StopOverdue(Boot),
    Heal,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Faults,
    Healing,
    Audit,
    Done,
}

/// Streams of randomness, one a purpose.
struct Dice {
    wake: Rng,
    mail: Rng,
    net: Rng,
    control: Rng,
    crash: Rng,
    machine: Rng,
    fault: Rng,
}

pub struct World<B: Builder> {
    config: Config,
    builder: B,
    wire: B::Wire,
    now: Instant,
    /// When the node's present life began; its clock starts at zero then.
    born: Instant,
    boot: Boot,
    up: bool,
    queue: Queue<Event<FrontOf<B>>>,
    trace: Trace,
    dice: Dice,
    hosts: Vec<Host<B>>,
    conns: Vec<Conn>,
    clients: Vec<Client>,
    control: Control,
    checkers: Checkers,
    phase: Phase,
    script: Script,
    partitions: Vec<PartitionId>,
    ready: Vec<ShardId>,
    acts: Vec<Act>,
    tells: Vec<Tell<B::Wire>>,
}

impl<B: Builder> World<B> {
    pub fn new(config: Config, builder: B, print: bool) -> Self {
        let seed = config.seed;
        let dice = |purpose| Rng::new(seed, purpose, 0);
        let wire = builder.wire(&config);
        let hosts = (0..config.shards).map(|i| Host {
            machine: None,
            disk: SimDisk::new(config.disk.clone(), Rng::new(seed, "disk", u64::from(i))),
            inbox: VecDeque::new(),
            waking: false,
            timeout: None,
            timeout_number: 0,
            stalled_until: Instant::ZERO,
            from_control: Lane::default(),
            to_control: Lane::default(),
            mail: vec![Lane::default(); usize::from(config.shards)],
        });
        let mut world = Self {
            hosts: hosts.collect(),
            control: Control::new(config.shards),
            script: Script::new(&config),
            builder,
            wire,
            now: Instant::ZERO,
            born: Instant::ZERO,
            boot: 0,
            up: false,
            queue: Queue::new(dice("ties")),
            trace: Trace::new(print),
            dice: Dice {
                wake: dice("wake"),
                mail: dice("mail"),
                net: dice("net"),
                control: dice("control"),
                crash: dice("crash"),
                machine: dice("machine"),
                fault: dice("fault"),
            },
            conns: Vec::new(),
            clients: Vec::new(),
            checkers: Checkers { story: print.then(Vec::new), ..Checkers::default() },
            phase: Phase::Faults,
            partitions: Vec::new(),
            ready: Vec::new(),
            acts: Vec::new(),
            tells: Vec::new(),
            config,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for _ in 0..self.config.topics {
            self.create_topic();
        }
        for i in 0..self.config.producers + self.config.consumers {
            let id = self.clients.len();
            let mut rng = Rng::new(self.config.seed, "client", u64::from(i));
            let features = &self.config.features;
            let role = if i < self.config.producers {
                let idempotent = features.idempotent && rng.flip();
                let acks_leader = features.acks_leader && rng.chance(250);
                Role::Producer(Producer::new(id, self.config.batches, idempotent, acks_leader, &mut rng))
            } else {
                Role::Consumer(Consumer::new(&mut rng))
            };
            self.add_client(Client::new(id, role, rng));
        }
        let first = self.dice.fault.between(self.config.fault_every.start, self.config.fault_every.end);
        self.after(first, Event::Fault);
        for (at, fault) in self.config.script.clone() {
            self.after(at, Event::Inflict(fault));
        }
        self.after(self.config.duration, Event::Heal);
        self.restart();
    }

    fn add_client(&mut self, client: Client) {
        let id = client.id;
        self.clients.push(client);
        self.after(Duration::ZERO, Event::Turn(id, 0));
    }

    /// Runs to the end: until everything is read and found right, or something is wrong.
    pub fn run(mut self) -> Outcome {
        let mut violation = None;
        while self.phase != Phase::Done {
            if let Err(v) = self.step() {
                violation = Some(v);
                break;
            }
        }
        let records = self.clients.iter().map(|c| match &c.role {
            Role::Auditor(a) => a.records,
            Role::Producer(_) | Role::Consumer(_) => 0,
        });
        Outcome {
            hash: self.trace.hash(),
            events: self.trace.events(),
            boots: self.boot,
            batches: self.checkers.shadow.len(),
            records: records.sum(),
            time: self.now.since(Instant::ZERO),
            violation,
        }
    }

    fn step(&mut self) -> Verdict {
        let (at, event) = self.queue.pop().expect("clients always have an appointment");
        self.now = at;
        let verdict = self.dispatch(event);
        for line in self.checkers.story.iter_mut().flat_map(|s| s.drain(..)) {
            self.trace.story(at, &line);
        }
        verdict?;
        if self.script.crash_is_due(self.trace.events()) && self.up {
            let power = self.script.next_crash();
            self.crash(power);
        }
        if self.trace.events() > EVENTS_MAX {
            return Err(broken(liveness::NAME, "the node goes round in circles"));
        }
        if self.now > Instant::ZERO + self.config.duration + liveness::BOUND {
            return Err(liveness::stuck(&self.what_is_open()));
        }
        Ok(())
    }

    fn dispatch(&mut self, event: Event<FrontOf<B>>) -> Verdict {
        match event {
            Event::Wake(shard, boot) if boot == self.boot && self.up => self.wake(shard),
            Event::Timeout(shard, boot, number) if boot == self.boot && self.up => {
                let host = self.host(shard);
                if host.timeout_number == number {
                    host.timeout = None;
                    self.schedule_wake(shard);
                }
                Ok(())
            }
            Event::Disk(shard, boot, op) if boot == self.boot && self.up => {
                self.deliver(shard, Item::Disk(op));
                Ok(())
            }
            Event::Mail(shard, boot, mail) if boot == self.boot && self.up => {
                self.deliver(shard, Item::Input(Input::Mail(mail)));
                Ok(())
            }
            Event::FromControl(shard, boot, message) if boot == self.boot && self.up => {
                self.deliver(shard, Item::Input(Input::Control(message)));
                Ok(())
            }
            Event::ToControl(shard, boot, message) if boot == self.boot && self.up => {
                self.on_to_control(shard, message)
            }
            Event::Wake(..)
            | Event::Timeout(..)
            | Event::Disk(..)
            | Event::Mail(..)
            | Event::FromControl(..)
            | Event::ToControl(..) => Ok(()),
            Event::Up(conn, up) => {
                self.on_up(conn, up);
                Ok(())
            }
            Event::Take(conn) => {
                self.on_take(conn);
                Ok(())
            }
            Event::Arrive(conn) => self.on_arrive(conn),
            Event::Turn(client, appointment) => self.turn(client, appointment),
            Event::Fault => {
                self.on_fault();
                Ok(())
            }
            Event::Inflict(fault) => {
                if self.up {
                    self.trace.note(self.now, &format!("fault: {fault:?}"));
                    self.inflict(fault);
                }
                Ok(())
            }
            Event::Undo(fault) => {
                self.undo(fault);
                Ok(())
            }
            Event::Restart => {
                if !self.up {
                    self.restart();
                }
                Ok(())
            }
            Event::StopOverdue(boot) if boot == self.boot && self.up => {
                Err(broken(liveness::NAME, "the node did not stop by the deadline"))
            }
            Event::StopOverdue(_) => Ok(()),
            Event::Heal => {
                self.heal();
                Ok(())
            }
        }
    }

    fn host(&mut self, shard: ShardId) -> &mut Host<B> {
        &mut self.hosts[usize::from(shard.0)]
    }

    fn conn(&mut self, id: ConnId) -> &mut Conn {
        &mut self.conns[usize::try_from(id.0).expect("connections are counted from 0")]
    }

    fn after(&mut self, delay: Duration, event: Event<FrontOf<B>>) {
        self.queue.push(self.now + delay, event);
    }

    /// The node's own clock.
    fn clock(&self) -> Instant {
        Instant::ZERO + self.now.since(self.born)
    }

    fn deliver(&mut self, shard: ShardId, item: Item<FrontOf<B>>) {
        self.host(shard).inbox.push_back(item);
        self.schedule_wake(shard);
    }

    fn schedule_wake(&mut self, shard: ShardId) {
        let delay = self.dice.wake.tailed(&self.config.wake);
        let (now, boot) = (self.now, self.boot);
        let host = self.host(shard);
        if !std::mem::replace(&mut host.waking, true) {
            let at = (now + delay).max(host.stalled_until);
            self.queue.push(at, Event::Wake(shard, boot));
        }
    }

    /// One turn of a shard's loop: a batch of inputs, then all outputs.
    fn wake(&mut self, shard: ShardId) -> Verdict {
        let clock = self.clock();
        let host = &mut self.hosts[usize::from(shard.0)];
        host.waking = false;
        let machine = host.machine.as_mut().expect("the node is up");
        let (trace, now) = (&mut self.trace, self.now);
        turn::take(machine, &mut host.disk, &mut host.inbox, clock, &mut self.dice.wake, |input| {
            trace.input(now, shard, input);
        });
        self.drain(shard)?;
        if self.up {
            self.after_drain(shard, clock);
        }
        Ok(())
    }

    fn drain(&mut self, shard: ShardId) -> Verdict {
        loop {
            // The power may go between two outputs: those behind never leave the core.
            if self.script.crash_is_due(self.trace.events()) {
                return Ok(());
            }
            let machine = self.host(shard).machine.as_mut();
            let Some(output) = machine.expect("the node is up").poll_output() else { return Ok(()) };
            self.trace.output(self.now, shard, &output);
            self.on_output(shard, output)?;
            if !self.up {
                return Ok(());
            }
        }
    }

    fn after_drain(&mut self, shard: ShardId, clock: Instant) {
        let (now, boot) = (self.now, self.boot);
        let host = self.host(shard);
        let wanted = host.machine.as_ref().expect("the node is up").poll_timeout();
        let more = !host.inbox.is_empty();
        if wanted != host.timeout {
            host.timeout = wanted;
            host.timeout_number += 1;
            let number = host.timeout_number;
            if let Some(at) = wanted {
                self.queue.push(now + at.since(clock), Event::Timeout(shard, boot, number));
            }
        }
        if more {
            self.schedule_wake(shard);
        }
    }

    fn on_output(&mut self, shard: ShardId, output: Output<FrontOf<B>>) -> Verdict {
        let boot = self.boot;
        match output {
            Output::Control(message) => {
                let at = self.now + self.dice.control.tailed(&self.config.mail);
                let at = self.host(shard).to_control.arrival(at);
                self.queue.push(at, Event::ToControl(shard, boot, message));
            }
            Output::Mail { to, mail } => {
                let at = self.now + self.dice.mail.tailed(&self.config.mail);
                let at = self.host(shard).mail[usize::from(to.0)].arrival(at);
                self.queue.push(at, Event::Mail(to, boot, mail));
            }
            Output::Send { conn, parts } => {
                if self.conn(conn).open {
                    self.conn(conn).send(parts);
                    self.pump(conn);
                }
            }
            Output::Receive { conn, on } => {
                let c = &mut self.conns[usize::try_from(conn.0).expect("counted from 0")];
                let frames = if c.open { c.receive(on, &mut self.dice.net) } else { VecDeque::new() };
                for frame in frames {
                    self.deliver(shard, Item::Input(Input::Client(ClientInput::Frame { conn, frame })));
                }
            }
            Output::Close { conn, flush, reason } => {
                if self.conn(conn).open
                    && let Some(reason) = self.conn(conn).close(flush, reason)
                {
                    self.closed_by_shard(conn, reason);
                }
            }
            Output::Disk(op) => {
                let submitted = self.host(shard).disk.submit(op);
                let (op, latency) = submitted.map_err(|e| broken("disk contract", e))?;
                self.after(latency, Event::Disk(shard, boot, op));
            }
            Output::Fatal(FatalReason::JournalDamaged { .. }) if self.config.rot => {
                // It refuses to serve what it knows to be incomplete; a run has nothing more to show.
                self.trace.note(self.now, "the node refuses to start");
                self.phase = Phase::Done;
                self.up = false;
            }
            Output::Fatal(reason) => {
                if !self.script.expects(&reason) {
                    return Err(broken("fatal", format!("shard {shard} gave up without a fault: {reason}")));
                }
                self.trace.note(self.now, "the node ends itself");
                self.crash(Crash::Power);
            }
        }
        Ok(())
    }

    fn on_to_control(
        &mut self,
        shard: ShardId,
        message: ToControl<<FrontOf<B> as Front>::Request>,
    ) -> Verdict {
        self.control.handle(&self.wire, shard, message, &mut self.checkers, &mut self.tells)?;
        self.tell();
        if self.control.all_stopped() {
            self.stopped();
        }
        Ok(())
    }

    /// Sends what the control core said.
    fn tell(&mut self) {
        for (shard, message) in std::mem::take(&mut self.tells) {
            let at = self.now + self.dice.control.tailed(&self.config.mail);
            let boot = self.boot;
            let at = self.host(shard).from_control.arrival(at);
            self.queue.push(at, Event::FromControl(shard, boot, message));
        }
        self.partitions.clear();
        self.partitions.extend(self.control.partitions());
    }

    fn appoint(&mut self, client: usize) -> u64 {
        self.clients[client].appointment += 1;
        self.clients[client].appointment
    }

    fn scene(&mut self) -> (&mut Vec<Client>, &B::Wire, Scene<'_>) {
        self.ready.clear();
        if self.up {
            let shards = (0..self.config.shards).map(ShardId);
            self.ready.extend(shards.filter(|&s| self.control.is_ready(s)));
        }
        let scene = Scene {
            now: self.now,
            config: &self.config,
            checkers: &mut self.checkers,
            partitions: &self.partitions,
            ready: &self.ready,
            healing: self.phase != Phase::Faults,
        };
        (&mut self.clients, &self.wire, scene)
    }

    fn turn(&mut self, client: usize, appointment: u64) -> Verdict {
        if self.clients[client].appointment != appointment {
            return Ok(());
        }
        let mut acts = std::mem::take(&mut self.acts);
        let rest = {
            let (clients, wire, mut scene) = self.scene();
            clients[client].turn(wire, &mut scene, &mut acts)?
        };
        for act in acts.drain(..) {
            self.act(client, act);
        }
        self.acts = acts;
        let appointment = self.appoint(client);
        self.after(rest, Event::Turn(client, appointment));
        self.end_of_phase();
        Ok(())
    }

    fn restart(&mut self) {
        self.boot += 1;
        self.up = true;
        self.born = self.now;
        self.trace.note(self.now, "the node starts");
        self.checkers.on_boot(self.boot);
        self.control.boot(&mut self.dice.control);
        for i in 0..self.config.shards {
            let plan = Plan {
                config: &self.config,
                shard: ShardId(i),
                boot: self.boot,
                seed: self.dice.machine.draw(),
                front: self.wire.front(),
            };
            let machine = self.builder.build(plan);
            self.host(ShardId(i)).machine = Some(machine);
            self.schedule_wake(ShardId(i));
        }
    }

    /// The node ends without a word.
    fn crash(&mut self, crash: Crash) {
        self.trace
            .note(self.now, if crash == Crash::Power { "the power goes" } else { "the process is killed" });
        let within = self.script.flush_within(&self.config, self.now);
        self.checkers.on_crash(self.now, within);
        self.node_down(crash);
    }

    fn stopped(&mut self) {
        self.trace.note(self.now, "the node has stopped");
        self.checkers.on_clean_stop();
        let crash = if self.dice.crash.flip() { Crash::Power } else { Crash::Kill };
        self.node_down(crash);
    }

    fn node_down(&mut self, crash: Crash) {
        self.up = false;
        self.script.node_down();
        for host in &mut self.hosts {
            host.machine = None;
            host.inbox.clear();
            host.waking = false;
            host.timeout = None;
            host.timeout_number += 1;
            host.stalled_until = Instant::ZERO;
            host.disk.faults.fail_next_write = false;
            host.disk.faults.fail_next_read = false;
            host.disk.crash(crash);
            if self.config.rot {
                host.disk.rot();
            }
        }
        for i in 0..self.conns.len() {
            if !self.conns[i].closed {
                self.conns[i].cut_off(&mut self.dice.crash);
                self.pump(ConnId(i as u64));
            }
        }
        let pause = self.dice.crash.between(Duration::from_millis(1), Duration::from_millis(10));
        self.after(pause, Event::Restart);
    }

    fn end_of_phase(&mut self) {
        match self.phase {
            Phase::Healing => {
                let settled = self.up && self.control.all_ready();
                if settled && self.clients.iter().all(Client::is_done) {
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
    }

    /// For a message: what has not ended.
    fn what_is_open(&self) -> String {
        if !self.up || !self.control.all_ready() {
            return "the node is not ready".to_owned();
        }
        match self.clients.iter().find(|c| !c.is_done()).map(|c| (c.id, &c.role)) {
            Some((_, Role::Auditor(a))) => format!("the auditor is at {}", a.place()),
            Some((id, _)) => format!("client {id} has open calls"),
            None => "nothing is open".to_owned(),
        }
    }
}
