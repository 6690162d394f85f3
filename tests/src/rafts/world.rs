//! Drives the nodes through one seed: a time of work and faults, then a time to heal, then the last check.
//!
//! Time is tokio's paused one: it goes on when no task of any node can do anything, to the next timer or event.
//! Everything runs on one thread, and the order in which nodes come to run is drawn, so a run follows from its seed.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use highwater::control::ProposalId;
use highwater::control::metadata::command::{Command, Entry, RegisterNode};
use highwater::control::metadata::image::Incarnation;
use highwater::net::CallError;
use highwater::raft::{Member, RaftConfig, Status};
use highwater_shards::ids::{NodeId, Revision};
use tokio::sync::oneshot;

use super::checkers::Checkers;
use super::checkers::history::{Number, entry_of};
use super::net::{Answer, Call, Hub, Mood, Reply};
use super::node::{Life, Node, Order, Seen, Setup, member};
use super::saboteur::{self, Sabotage};
use super::{Counts, Outcome};
use crate::checkers::{Verdict, Violation, broken};
use crate::rng::Rng;

/// With faults.
const WORK: Duration = Duration::from_secs(25);
/// From the last fault to every node having applied the same, proposals included.
const HEAL: Duration = Duration::from_secs(60);
/// While it heals: how often is looked whether it has.
const LOOK: Duration = Duration::from_millis(250);
/// Proposals of one life that are not settled, at most.
const PROPOSALS_MAX: u32 = 4;
/// Times that the nodes are run at most; more is a loop.
const STEPS_MAX: u64 = 5_000_000;

#[derive(Debug)]
pub enum Event {
    Call(Call),
    Reply(Reply),
    /// Nobody waits for this any more.
    Forget(oneshot::Sender<Answer>),
    Start(usize),
    Found(usize),
    Ask,
    Administer,
    Fault,
    GoOn {
        node: usize,
        life: u64,
    },
    SpaceAgain(usize),
    Calm,
    Heal,
    Look,
}

pub struct World {
    hub: Rc<RefCell<Hub>>,
    nodes: Vec<Node>,
    setups: Vec<Setup>,
    founders: BTreeMap<NodeId, Member>,
    rng: Rng,
    order: Rng,
    checkers: Checkers,
    counts: Counts,
    sabotage: Option<Sabotage>,
    next_number: Number,
    seed: u64,
    /// Moods beyond this are not drawn.
    worst: Mood,
    healing: Option<Healing>,
    violation: Option<Violation>,
    steps: u64,
}

/// The last proposals, one of each node, once it heals.
#[derive(Debug, Default)]
struct Healing {
    since: Duration,
    given: BTreeMap<NodeId, Number>,
    done: BTreeSet<NodeId>,
}

impl World {
    pub fn new(seed: u64, sabotage: Option<Sabotage>, print: bool) -> Self {
        let mut rng = Rng::new(seed, "rafts", 0);
        let founders: u32 = *rng.pick(&[1, 3, 3, 3, 4, 5]);
        let learners = u32::from(rng.chance(300));
        let ids = (1..=founders + learners).map(NodeId);
        let nodes: Vec<Node> = ids.clone().map(|id| Node::new(id, seed)).collect();
        let (snapshot_every, keep_entries) = (rng.range(4..50), rng.range(0..15));
        let disk_max = *rng.pick(&[2, 5, 20, 60]);
        let crashes = rng.chance(500);
        let ends_after_vote = if crashes { *rng.pick(&[0, 100, 300]) } else { 0 };
        let ends_after_append = if crashes { *rng.pick(&[0, 0, 5]) } else { 0 };
        let setups = ids.map(|id| {
            // Clocks go at different speeds.
            let speed = u32::try_from(rng.range(92..109)).expect("a small number");
            let time = |ms: u64| Duration::from_millis(ms) * speed / 100;
            let raft = RaftConfig {
                heartbeat: time(100),
                election_min: time(300),
                election_max: time(600),
                snapshot_every,
                keep_entries,
                ..RaftConfig::new(id, Incarnation(1))
            };
            let usual = Duration::from_millis(1)..Duration::from_millis(disk_max);
            Setup { raft, usual, ends_after_vote, ends_after_append, sabotage }
        });
        let setups = setups.collect();
        let worst = Mood {
            lost: *rng.pick(&[0, 50, 200, 400]),
            delay_max: Duration::from_millis(*rng.pick(&[3, 30, 100, 400])),
            ordered: rng.flip(),
        };
        Self {
            hub: Rc::new(RefCell::new(Hub::new(seed, print))),
            nodes,
            setups,
            founders: (1..=founders).map(NodeId).map(|id| (id, member(id))).collect(),
            rng,
            order: Rng::new(seed, "raft order", 0),
            checkers: Checkers::default(),
            counts: Counts::default(),
            sabotage,
            next_number: 1,
            seed,
            worst,
            healing: None,
            violation: None,
            steps: 0,
        }
    }

    pub async fn run(mut self) -> Outcome {
        for node in 0..self.nodes.len() {
            // Most start together, some an age later.
            let late = if self.rng.chance(150) { 10_000 } else { 300 };
            let at = Duration::from_millis(self.rng.below(late));
            self.after(at, Event::Start(node));
        }
        self.hub.borrow_mut().mood.ordered = self.worst.ordered;
        self.after(Duration::from_millis(500), Event::Ask);
        self.after(Duration::from_millis(1500), Event::Fault);
        self.after(Duration::from_secs(2), Event::Administer);
        self.after(WORK, Event::Heal);
        while self.violation.is_none() {
            let event = self.next_event().await;
            let Some(event) = event else { break };
            let is_over = matches!(event, Event::Look) && self.healed();
            if let Err(violation) = self.on_event(event) {
                self.violation = Some(violation);
            }
            if is_over {
                break;
            }
        }
        self.end()
    }

    fn end(mut self) -> Outcome {
        let hub = self.hub.borrow();
        let disks = self.nodes.iter().map(|node| node.disk.hash());
        let hash = disks.fold(hub.hash, |hash, disk| hash.rotate_left(7) ^ disk);
        for node in &self.nodes {
            let [ops, _, lost] = node.disk.counts();
            self.counts.disk_operations += ops;
            self.counts.sectors_lost += lost;
        }
        self.counts.calls = hub.calls;
        self.counts.messages_lost = hub.lost;
        self.counts.terms = self.checkers.leaders.terms();
        self.counts.votes = self.checkers.votes.count();
        self.counts.log_entries = self.checkers.entries.count();
        self.counts.committed = self.checkers.history.count();
        let time = Duration::from_nanos(hub.now().as_nanos());
        Outcome { hash, counts: self.counts, time, violation: self.violation.clone() }
    }

    fn after(&self, delay: Duration, event: Event) {
        self.hub.borrow_mut().after(delay, event);
    }

    /// Runs the nodes until something else happens; `None` when an invariant is broken by then.
    async fn next_event(&mut self) -> Option<Event> {
        let mut alarm = pin!(tokio::time::sleep(Duration::ZERO));
        poll_fn(|cx| {
            self.run_nodes(cx);
            if self.violation.is_some() {
                return Poll::Ready(None);
            }
            let mut hub = self.hub.borrow_mut();
            let at = hub.queue.next_at().expect("there is always something to come");
            let at = hub.alarm(at);
            if alarm.deadline() != at {
                alarm.as_mut().reset(at);
            }
            match alarm.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(hub.queue.pop().map(|(_, event)| event)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Runs each node once, in a drawn order, and takes in what it tells.
    fn run_nodes(&mut self, cx: &mut Context<'_>) {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            self.violation = Some(broken("loop", "the nodes do not come to rest"));
            return;
        }
        let first = self.order.index(self.nodes.len());
        for n in 0..self.nodes.len() {
            let at = (first + n) % self.nodes.len();
            let Some(life) = &mut self.nodes[at].life else { continue };
            if life.stalled {
                continue;
            }
            // A life never ends by itself: what it ends with is told.
            let _ = Pin::new(&mut life.tasks).poll(cx);
            let seen: Vec<Seen> = life.seen.borrow_mut().drain(..).collect();
            for seen in seen {
                if let Err(violation) = self.on_seen(at, seen) {
                    self.violation = Some(violation);
                    return;
                }
            }
            if self.nodes[at].life.as_ref().is_some_and(|life| !life.disk.is_powered()) {
                self.on_crashed(at);
            }
        }
    }

    /// The power of a node has gone.
    fn on_crashed(&mut self, at: usize) {
        self.nodes[at].life = None;
        self.counts.crashes += 1;
        if let Some(healing) = &mut self.healing {
            healing.given.remove(&self.nodes[at].id);
        }
        self.hub.borrow_mut().note(&format!("** node {} has lost its power", self.nodes[at].id), &[]);
        let pause = match self.healing.is_some() || self.rng.flip() {
            true => Duration::from_millis(self.rng.range(1..100)),
            false => Duration::from_millis(self.rng.range(100..6000)),
        };
        self.after(pause, Event::Start(at));
    }

    fn on_seen(&mut self, at: usize, seen: Seen) -> Verdict {
        let id = self.nodes[at].id;
        let note = format!("   node {id}: {}", seen.words());
        self.hub.borrow_mut().note(&note, &[]);
        match seen {
            Seen::Opened { image, entries } => {
                self.checkers.on_entries(None, &entries)?;
                if image.revision > Revision(0) {
                    self.checkers.history.image(id, &image)?;
                }
                Ok(())
            }
            Seen::Committed { revision, proposal, entry, image } => {
                self.counts.applied += 1;
                self.checkers.history.applied(id, revision, &entry, &image)?;
                let Some(number) = proposal.map(number_of) else { return Ok(()) };
                self.settled(at);
                self.counts.proposals_done += 1;
                if let Some(healing) = &mut self.healing
                    && healing.given.get(&id) == Some(&number)
                {
                    healing.done.insert(id);
                }
                match is_numbered(number) {
                    true => self.checkers.history.done(number),
                    false => Ok(()),
                }
            }
            Seen::Installed(image) => {
                self.counts.snapshots_installed += 1;
                self.checkers.history.image(id, &image)
            }
            Seen::ProposalFailed { proposal, reason } => {
                self.settled(at);
                let number = number_of(proposal);
                let passed_over = reason.contains("it was applied");
                if let Some(healing) = &mut self.healing
                    && healing.given.get(&id) == Some(&number)
                {
                    if passed_over {
                        healing.done.insert(id);
                    } else {
                        healing.given.remove(&id);
                    }
                }
                if passed_over {
                    self.counts.proposals_passed_over += 1;
                    return Ok(());
                }
                self.counts.proposals_failed += 1;
                match is_numbered(number) {
                    true => self.checkers.history.failed(number),
                    false => Ok(()),
                }
            }
            Seen::Leadership { term, leader: Some(leader) } => self.checkers.leaders.told(term, leader),
            Seen::Leadership { .. } => Ok(()),
            Seen::Administered => {
                self.counts.administered += 1;
                Ok(())
            }
            Seen::NoSpace => {
                // It is started again, as by who looks after it.
                if let Some(life) = &self.nodes[at].life {
                    life.disk.crash();
                }
                Ok(())
            }
            Seen::Ended(why) => Err(broken("lives", format!("node {id} cannot go on: {why}"))),
        }
    }

    fn settled(&mut self, at: usize) {
        if let Some(life) = &mut self.nodes[at].life {
            life.proposals = life.proposals.saturating_sub(1);
        }
    }

    fn on_event(&mut self, event: Event) -> Verdict {
        match event {
            Event::Call(call) => self.on_call(call)?,
            Event::Reply(reply) => self.on_reply(reply)?,
            Event::Forget(_) => {}
            Event::Start(at) => self.start(at),
            Event::Found(at) => self.found(at),
            Event::Ask => self.ask(),
            Event::Administer => self.administer(),
            Event::Fault => self.fault(),
            Event::GoOn { node, life } => {
                if self.nodes[node].lives == life
                    && let Some(life) = &mut self.nodes[node].life
                {
                    life.stalled = false;
                }
            }
            Event::SpaceAgain(node) => self.nodes[node].disk.set_full(false),
            Event::Calm => self.calm(),
            Event::Heal => self.heal(),
            Event::Look => self.look()?,
        }
        Ok(())
    }

    fn on_call(&mut self, mut call: Call) -> Verdict {
        let taken = saboteur::on_call(self.sabotage, &mut self.rng, &mut call);
        self.checkers.on_call(&call)?;
        if let Some(answer) = taken {
            self.hub.borrow_mut().send_reply(Reply { call, answer });
            return Ok(());
        }
        let at = self.at(call.to);
        match &self.nodes[at].life {
            // A life that comes to its end takes nothing in.
            Some(life) => drop(life.calls.send(call)),
            None => {
                let answer = Err(CallError::Unreachable(format!("node {} is down", call.to)));
                self.hub.borrow_mut().send_reply(Reply { call, answer });
            }
        }
        Ok(())
    }

    fn on_reply(&mut self, mut reply: Reply) -> Verdict {
        saboteur::on_reply(self.sabotage, &mut reply);
        self.checkers.on_reply(&reply)?;
        // Who asked may have given up, or be gone.
        drop(reply.call.reply.send(reply.answer));
        Ok(())
    }

    fn at(&self, node: NodeId) -> usize {
        self.nodes.iter().position(|n| n.id == node).expect("only nodes of this world are called")
    }

    fn start(&mut self, at: usize) {
        if self.nodes[at].life.is_some() {
            return;
        }
        let lives = self.nodes[at].lives + 1;
        let id = self.nodes[at].id;
        let seed = self.rng.draw();
        self.setups[at].raft.seed = seed;
        if self.sabotage != Some(Sabotage::LivesAlike) {
            self.setups[at].raft.incarnation = Incarnation(lives);
        }
        let rng = Rng::new(self.seed, "raft life", lives << 32 | u64::from(id.0));
        self.nodes[at].start(&self.setups[at], &self.hub, rng);
        self.counts.lives += 1;
        self.hub.borrow_mut().note(&format!("** node {id} begins life {lives}"), &[]);
        if self.healing.is_none() && self.rng.chance(200) {
            let ops = self.rng.range(1..400);
            self.nodes[at].disk.crash_after(ops);
        }
        // The first thing that a node does is to register.
        let register = RegisterNode { node: id, incarnation: Incarnation(lives), ..RegisterNode::default() };
        let entry = Entry { commands: vec![Command::RegisterNode(register)] };
        self.order(at, Order::Propose { proposal: ProposalId(REGISTRATION), entry });
        if self.founders.contains_key(&id) {
            self.found(at);
        }
    }

    /// Founders do so again and again until there is a cluster.
    fn found(&mut self, at: usize) {
        let id = self.nodes[at].id;
        if self.status(at).is_some_and(|status| !status.voters.is_empty()) {
            return;
        }
        let mut founders = self.founders.clone();
        if self.sabotage == Some(Sabotage::FoundedTwice) && id == NodeId(1) {
            founders.retain(|node, _| *node == id);
        }
        self.order(at, Order::Found(founders));
        let again = Duration::from_millis(self.rng.range(200..1000));
        self.after(again, Event::Found(at));
    }

    fn order(&mut self, at: usize, order: Order) {
        if let Some(life) = &mut self.nodes[at].life {
            if matches!(order, Order::Propose { .. }) {
                life.proposals += 1;
            }
            // A life that comes to its end obeys nobody.
            let _ = life.orders.send(order);
        }
    }

    fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|at| self.nodes[*at].life.is_some()).collect()
    }

    fn status(&self, at: usize) -> Option<Status> {
        Some(self.nodes[at].life.as_ref()?.raft.get()?.status())
    }

    /// Proposes something somewhere.
    fn ask(&mut self) {
        if self.healing.is_some() {
            return;
        }
        let running = self.running();
        if !running.is_empty() {
            let at = *self.rng.pick(&running);
            let waits = self.nodes[at].life.as_ref().map_or(0, |life| life.proposals);
            if waits < PROPOSALS_MAX {
                self.propose(at);
            }
        }
        let again = Duration::from_millis(self.rng.range(5..120));
        self.after(again, Event::Ask);
    }

    fn propose(&mut self, at: usize) -> Number {
        let number = self.next_number;
        self.next_number += 1;
        let entry = entry_of(self.nodes[at].id, number);
        self.order(at, Order::Propose { proposal: ProposalId(u64::from(number)), entry });
        number
    }

    /// Moves leadership, or changes who votes, or makes the log long.
    fn administer(&mut self) {
        if self.healing.is_some() {
            return;
        }
        let nodes: Vec<NodeId> = self.nodes.iter().map(|node| node.id).collect();
        let to = *self.rng.pick(&nodes);
        let running = self.running();
        let leader = running.iter().copied().find(|at| {
            let id = self.nodes[*at].id;
            self.status(*at).is_some_and(|status| status.leader == Some(id))
        });
        if let Some(leader) = leader {
            let order = match self.rng.below(8) {
                0 | 1 => Order::Transfer(to),
                2 => Order::Demote(to),
                3 | 4 => Order::Promote(to),
                5 => Order::Learner(to),
                _ => Order::Probe { entries: self.rng.range(1..200), bytes: self.rng.index(2000) },
            };
            self.order(leader, order);
        }
        let again = Duration::from_millis(self.rng.range(100..4000));
        self.after(again, Event::Administer);
    }

    fn fault(&mut self) {
        if self.healing.is_some() {
            return;
        }
        let at = self.rng.index(self.nodes.len());
        let other = self.rng.index(self.nodes.len());
        let (one, two) = (self.nodes[at].id, self.nodes[other].id);
        match self.rng.below(12) {
            0 => {
                if let Some(life) = &self.nodes[at].life {
                    life.disk.crash();
                    self.on_crashed(at);
                }
            }
            1 | 2 => {
                let ops = match self.rng.flip() {
                    true => self.rng.range(1..20),
                    false => self.rng.range(1..400),
                };
                self.nodes[at].disk.crash_after(ops);
            }
            3 => drop(self.hub.borrow_mut().cut.insert((one, two))),
            4 => {
                let mut hub = self.hub.borrow_mut();
                hub.cut.insert((one, two));
                hub.cut.insert((two, one));
            }
            5 => {
                // Two sides that do not hear each other.
                let side = self.rng.draw();
                let nodes: Vec<(u64, NodeId)> =
                    (0..).zip(&self.nodes).map(|(n, node)| (side >> n & 1, node.id)).collect();
                let mut hub = self.hub.borrow_mut();
                for (a, one) in &nodes {
                    let others = nodes.iter().filter(|(b, _)| a != b);
                    hub.cut.extend(others.map(|(_, other)| (*one, *other)));
                }
            }
            6 => {
                let mood = Mood {
                    lost: u32::try_from(self.rng.below(u64::from(self.worst.lost) + 1)).expect("below 1000"),
                    delay_max: self.rng.between(Duration::ZERO, self.worst.delay_max),
                    ordered: self.worst.ordered,
                };
                self.hub.borrow_mut().mood = mood;
            }
            7 | 8 => {
                let lives = self.nodes[at].lives;
                let pause = Duration::from_millis(self.rng.range(20..3000));
                if let Some(life) = &mut self.nodes[at].life {
                    life.stalled = true;
                    self.counts.stalls += 1;
                    self.after(pause, Event::GoOn { node: at, life: lives });
                }
            }
            9 => {
                self.nodes[at].disk.set_full(true);
                self.counts.full_disks += 1;
                let pause = Duration::from_millis(self.rng.range(50..4000));
                self.after(pause, Event::SpaceAgain(at));
            }
            _ => self.calm(),
        }
        let again = Duration::from_millis(self.rng.range(50..2500));
        self.after(again, Event::Fault);
    }

    fn calm(&mut self) {
        let mut hub = self.hub.borrow_mut();
        hub.cut.clear();
        hub.mood = Mood { ordered: self.worst.ordered, ..Mood::CALM };
    }

    /// The end of all faults.
    fn heal(&mut self) {
        self.calm();
        self.hub.borrow_mut().note("** it heals", &[]);
        if self.sabotage == Some(Sabotage::NeverHealed) {
            let (first, last) = (self.nodes[0].id, self.nodes[self.nodes.len() - 1].id);
            self.hub.borrow_mut().cut.extend([(first, last), (last, first)]);
        }
        let since = Duration::from_nanos(self.hub.borrow().now().as_nanos());
        self.healing = Some(Healing { since, ..Healing::default() });
        for at in 0..self.nodes.len() {
            self.nodes[at].disk.set_full(false);
            self.nodes[at].disk.crash_never();
            self.setups[at].ends_after_vote = 0;
            self.setups[at].ends_after_append = 0;
            match &mut self.nodes[at].life {
                Some(life) => {
                    life.stalled = false;
                    life.calm.set(true);
                }
                None => self.start(at),
            }
        }
        self.after(LOOK, Event::Look);
    }

    /// The members, as the last leader has them.
    fn members(&self) -> BTreeSet<usize> {
        let leading = self.running().into_iter().filter_map(|at| {
            let status = self.status(at)?;
            (status.leader == Some(self.nodes[at].id)).then_some(status)
        });
        match leading.max_by_key(|status| status.term) {
            Some(status) => status.members.keys().map(|node| self.at(*node)).collect(),
            None => BTreeSet::new(),
        }
    }

    fn look(&mut self) -> Verdict {
        let members = self.members();
        let healing = self.healing.as_ref().expect("one looks while it heals");
        let since = healing.since;
        // What is proposed to a node that is down never was; one that starts is asked the next time.
        let is_missing = |node: &Node| node.life.is_some() && !healing.given.contains_key(&node.id);
        let missing: Vec<usize> = members.into_iter().filter(|at| is_missing(&self.nodes[*at])).collect();
        for at in missing {
            let number = self.propose(at);
            let id = self.nodes[at].id;
            self.healing.as_mut().expect("it heals").given.insert(id, number);
        }
        let now = Duration::from_nanos(self.hub.borrow().now().as_nanos());
        if now > since + HEAL {
            let said = self.running().into_iter().filter_map(|at| self.status(at));
            let said: Vec<String> = said
                .map(|s| {
                    format!(
                        "node {} in term {} follows {:?}, log {:?}, committed {:?}, applied {:?}",
                        s.node, s.term, s.leader, s.last_log, s.committed, s.applied
                    )
                })
                .collect();
            let what = format!("{HEAL:?} after the last fault it has not converged: {}", said.join("; "));
            return Err(broken("I11 convergence", what));
        }
        self.after(LOOK, Event::Look);
        Ok(())
    }

    /// Whether every member has applied all that anybody has, and settled a proposal since the last fault.
    fn healed(&self) -> bool {
        let members = self.members();
        let Some(healing) = &self.healing else { return false };
        let newest = self.checkers.history.newest();
        let applied = |at: &usize| {
            let life: Option<&Life> = self.nodes[*at].life.as_ref();
            healing.done.contains(&self.nodes[*at].id)
                && life.is_some_and(|life| life.revision.get() == newest)
        };
        !members.is_empty() && members.iter().all(applied)
    }
}

/// Registrations are no numbered proposals.
const REGISTRATION: u64 = 0;

fn number_of(proposal: ProposalId) -> Number {
    Number::try_from(proposal.0).expect("a run has few proposals")
}

fn is_numbered(number: Number) -> bool {
    u64::from(number) != REGISTRATION
}
