//! Drives the control planes through one seed: a time of work and faults, then a time to heal, then the last check.

use std::collections::BTreeMap;
use std::time::Duration;

use highwater::control::metadata::command::{Command, CreateTopic, Entry};
use highwater::control::metadata::image::Image;
use highwater::control::request::{
    AlterConfig, ConfigChange, ConfigOp, ConfigResource, ElectionKind, MorePartitions, NewTopic, NodeChange,
    PartitionRef, Reassignment, Request, TopicRef,
};
use highwater::control::{Input, KeepId, LocalId, Output, Placements, ProposalId};
use highwater_shards::ids::{NodeId, PartitionIndex, ShardId, TopicId};
use highwater_shards::mail::{FromControl, IsrChange, ToControl};
use highwater_shards::time::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::checkers::Checkers;
use super::node::{Node, SHARDS};
use super::oracle::{ENTRY_BYTES_MAX, Oracle, Origin};
use super::{Counts, Outcome, partitions};
use crate::checkers::{Verdict, Violation, broken};
use crate::queue::Queue;
use crate::rng::Rng;

const NODES: usize = 3;
/// With faults, and to heal afterwards: longer than the longest request and every backoff.
const WORK: Duration = Duration::from_secs(40);
const HEAL: Duration = Duration::from_secs(60);
const REST_MAX: Duration = Duration::from_secs(20);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(8);
/// Inputs of one run at most; more is a loop.
const STEPS_MAX: u64 = 2_000_000;

#[derive(Debug)]
enum Event {
    /// The workload asks something, somewhere.
    Ask,
    /// Something goes wrong, or right again.
    Fault,
    /// Leaders find that followers lag, or have caught up.
    Wish {
        node: usize,
        life: u64,
    },
    Start {
        node: usize,
    },
    /// The node takes the next entry, or a snapshot.
    Deliver {
        node: usize,
        life: u64,
    },
    /// A proposal comes to the leader.
    Arrive {
        origin: Origin,
        entry: Entry,
    },
    Failed {
        node: usize,
        life: u64,
        proposal: ProposalId,
    },
    Tell {
        node: usize,
        life: u64,
        term: u64,
        leader: Option<usize>,
    },
    Shard {
        node: usize,
        life: u64,
        shard: ShardId,
    },
    Keep {
        node: usize,
        life: u64,
        id: KeepId,
        changes: Placements,
        fails: bool,
    },
    Timer {
        node: usize,
        life: u64,
    },
}

#[derive(Debug)]
pub struct World {
    rng: Rng,
    queue: Queue<Event>,
    now: Instant,
    oracle: Oracle,
    nodes: Vec<Node>,
    /// Not answered yet: by number, on which node and in which of its lives.
    asked: BTreeMap<u64, (usize, u64, Request)>,
    asked_next: u64,
    checkers: Checkers,
    counts: Counts,
    healing: bool,
    steps: u64,
    hash: u64,
    print: bool,
}

impl World {
    pub fn new(seed: u64, print: bool) -> Self {
        let mut world = Self {
            rng: Rng::new(seed, "controls", 0),
            queue: Queue::new(Rng::new(seed, "controls queue", 0)),
            now: Instant::ZERO,
            oracle: Oracle::new(),
            nodes: (1..).take(NODES).map(|id| Node::new(NodeId(id))).collect(),
            asked: BTreeMap::new(),
            asked_next: 0,
            checkers: Checkers::default(),
            counts: Counts::default(),
            healing: false,
            steps: 0,
            hash: 0,
            print,
        };
        for node in 0..NODES {
            world.after(500, Event::Start { node });
        }
        world.elect();
        world.after(1000, Event::Ask);
        world.after(3000, Event::Fault);
        world
    }

    pub fn run(mut self) -> Outcome {
        let violation = self.run_to_the_end().err();
        let time = Duration::from_nanos(self.now.as_nanos());
        Outcome { hash: self.hash, counts: self.counts, time, violation }
    }

    fn run_to_the_end(&mut self) -> Result<(), Violation> {
        while let Some((at, event)) = self.queue.pop() {
            self.now = at;
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return Err(broken("I11 liveness", "the nodes never come to rest"));
            }
            if self.now > Instant::ZERO + WORK && !self.healing {
                self.heal();
            }
            let end = Instant::ZERO + WORK + HEAL;
            // What is begun at the very end is let finish.
            if self.now > end + REST_MAX || (self.now > end && self.is_at_rest()) {
                break;
            }
            self.note(&event);
            self.on_event(event)?;
        }
        self.end()
    }

    /// Every node has applied all there is, and so have its shards.
    fn is_at_rest(&self) -> bool {
        self.nodes.iter().all(|node| {
            let newest = self.oracle.newest().revision;
            node.applied == self.oracle.len()
                && node.proposal.is_none()
                && node.shards.iter().all(|shard| shard.told.is_empty() && shard.revision == newest)
        })
    }

    fn note(&mut self, event: &Event) {
        // The debug form of a large entry would be most of a run's time.
        let words = match event {
            Event::Arrive { origin, entry } if !self.print => format!("{origin:?} {}", entry.commands.len()),
            Event::Keep { node, id, changes, .. } if !self.print => {
                format!("{node} {id:?} {}", changes.len())
            }
            event => format!("{event:?}"),
        };
        self.hash = xxh3_64_with_seed(words.as_bytes(), self.hash ^ self.now.as_nanos());
        if self.print {
            println!("{} {}", self.now.as_nanos(), words.chars().take(400).collect::<String>());
        }
    }

    /// Within `ms_max` milliseconds.
    fn after(&mut self, ms_max: u64, event: Event) {
        let delay = self.rng.between(Duration::from_micros(10), Duration::from_millis(ms_max));
        self.queue.push(self.now + delay, event);
    }

    /// The present life of a node, when it is up.
    fn is_up(&self, node: usize, life: u64) -> bool {
        self.nodes[node].life == life && self.nodes[node].control.is_some()
    }

    fn on_event(&mut self, event: Event) -> Verdict {
        match event {
            Event::Ask => self.on_ask(),
            Event::Fault => self.on_fault(),
            Event::Start { node } => self.on_start(node),
            Event::Wish { node, life } if self.is_up(node, life) => self.on_wish(node),
            Event::Deliver { node, life } if self.is_up(node, life) => self.on_deliver(node),
            Event::Arrive { origin, entry } => self.on_arrive(origin, entry),
            Event::Failed { node, life, proposal } if self.is_up(node, life) => {
                self.nodes[node].proposal = None;
                self.input(node, Input::ProposalFailed { proposal, reason: "lost".to_owned() })
            }
            Event::Tell { node, life, term, leader } if self.is_up(node, life) => {
                if term < self.nodes[node].term {
                    return Ok(());
                }
                self.nodes[node].term = term;
                let leader = leader.map(|at| self.nodes[at].id);
                self.input(node, Input::Leadership { term, leader })
            }
            Event::Shard { node, life, shard } if self.is_up(node, life) => self.on_shard(node, shard),
            Event::Keep { node, life, id, changes, fails } if self.is_up(node, life) => {
                if fails {
                    return self.input(node, Input::KeepFailed { id, reason: "disk full".to_owned() });
                }
                for (partition, shard) in changes {
                    match shard {
                        Some(shard) => drop(self.nodes[node].placements.insert(partition, shard)),
                        None => drop(self.nodes[node].placements.remove(&partition)),
                    }
                }
                self.input(node, Input::Kept { id })
            }
            Event::Timer { node, life } if self.is_up(node, life) => {
                let control = self.nodes[node].control.as_ref().expect("it is up");
                if control.poll_timeout().is_some_and(|at| at <= self.now) {
                    return self.input(node, Input::Timeout);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn input(&mut self, node: usize, input: Input) -> Verdict {
        let Some(control) = &mut self.nodes[node].control else { return Ok(()) };
        control.handle(self.now, input);
        let mut outputs = Vec::new();
        while let Some(output) = control.poll_output() {
            outputs.push(output);
        }
        let timer = control.poll_timeout();
        let life = self.nodes[node].life;
        for output in outputs {
            self.on_output(node, output)?;
        }
        if let Some(at) = timer {
            self.queue.push(at.max(self.now), Event::Timer { node, life });
        }
        Ok(())
    }

    fn on_output(&mut self, node: usize, output: Output) -> Verdict {
        let life = self.nodes[node].life;
        match output {
            Output::Propose { proposal, entry } => {
                let bytes = entry.encode();
                if bytes.len() > ENTRY_BYTES_MAX {
                    return Err(broken("bounds", format!("an entry has {} bytes", bytes.len())));
                }
                if Entry::decode(&bytes).as_ref() != Ok(&entry) {
                    return Err(broken("bounds", "an entry does not survive its encoding"));
                }
                assert_eq!(self.nodes[node].proposal.replace(proposal), None, "one proposal at a time");
                self.nodes[node].in_doubt = false;
                self.after(20, Event::Arrive { origin: (node, life, proposal), entry });
            }
            Output::ToShard { shard, message } => {
                let placements = &self.nodes[node].placements;
                if let FromControl::Delta { assign, .. } = &message
                    && let Some(early) = assign.iter().find(|a| placements.get(&a.partition) != Some(&shard))
                {
                    let what = format!("shard {shard} is told of {} before that is kept", early.partition);
                    return Err(broken("I7 revisions", what));
                }
                self.nodes[node].shards[usize::from(shard.0)].told.push_back(message);
                self.after(5, Event::Shard { node, life, shard });
            }
            Output::Keep { id, changes } => {
                let fails = !self.healing && self.rng.chance(50);
                self.after(10, Event::Keep { node, life, id, changes, fails });
            }
            Output::LocalReply { id, reply } => {
                let Some((_, _, request)) = self.asked.remove(&id.0) else {
                    return Err(broken("I9 answers", format!("request {} was answered twice", id.0)));
                };
                self.checkers.answered(&request, reply, &mut self.counts)?;
            }
            Output::Ready => self.nodes[node].ready = true,
            Output::Stopped { late, clean } => {
                if !late.is_empty() {
                    return Err(broken(
                        "I11 liveness",
                        format!("shards {late:?} of node {node} did not stop"),
                    ));
                }
                self.nodes[node].clean = clean.or(self.nodes[node].clean);
                self.go(node);
            }
            Output::Fatal(reason) => {
                return Err(broken("fatal", format!("node {}: {reason}", self.nodes[node].id)));
            }
        }
        Ok(())
    }

    fn on_start(&mut self, node: usize) -> Verdict {
        if self.nodes[node].control.is_some() {
            return Ok(());
        }
        self.counts.lives += 1;
        let image = self.oracle.image(self.nodes[node].applied).clone();
        self.nodes[node].start(image, &mut self.rng);
        let life = self.nodes[node].life;
        let (term, leader) = (self.oracle.term, self.oracle.leader);
        self.after(200, Event::Tell { node, life, term, leader });
        self.after(50, Event::Deliver { node, life });
        self.after(500, Event::Wish { node, life });
        for shard in 0..SHARDS {
            let partitions = self.nodes[node].shards[usize::from(shard)].held.clone();
            let message = ToControl::Recovered { partitions };
            self.input(node, Input::FromShard { shard: ShardId(shard), message })?;
        }
        // The one that was elected for good was about to stop.
        if self.healing && self.oracle.leader.is_none() {
            self.elect();
        }
        Ok(())
    }

    /// The next entry, or a snapshot when that is not to be had any more; sometimes nothing for a while.
    fn on_deliver(&mut self, node: usize) -> Verdict {
        let (id, life, applied) = (self.nodes[node].id, self.nodes[node].life, self.nodes[node].applied);
        let pause = if !self.healing && self.rng.chance(5) { 4000 } else { 10 };
        self.after(pause, Event::Deliver { node, life });
        if applied < self.oracle.compacted {
            self.counts.snapshots += 1;
            self.nodes[node].applied = self.oracle.compacted;
            let image = self.oracle.image(self.oracle.compacted).clone();
            self.input(node, Input::Image(Box::new(image)))?;
            // Whether the snapshot holds the proposal's entry is not known to the node.
            let covered = |entry: usize| {
                let origin = self.oracle.entry(entry).and_then(|(_, origin)| *origin);
                self.nodes[node].proposal.is_some_and(|own| origin == Some((node, life, own)))
            };
            if let Some(proposal) = self.nodes[node].proposal
                && (applied..self.oracle.compacted).any(covered)
            {
                self.counts.proposals_in_doubt += 1;
                self.after(50, Event::Failed { node, life, proposal });
            }
        } else if let Some((entry, origin)) = self.oracle.entry(applied).cloned() {
            self.nodes[node].applied += 1;
            let own = origin.filter(|&(at, in_life, _)| (at, in_life) == (node, life)).map(|(.., own)| own);
            if own.is_some() {
                assert_eq!(self.nodes[node].proposal.take(), own, "one proposal at a time");
            }
            let revision = self.oracle.image(applied + 1).revision;
            self.input(node, Input::Committed { revision, proposal: own, entry })?;
        } else {
            return Ok(());
        }
        let Some(control) = &self.nodes[node].control else { return Ok(()) };
        self.checkers.image(id, control.image(), &self.oracle)
    }

    fn on_arrive(&mut self, origin: Origin, entry: Entry) -> Verdict {
        let (node, life, proposal) = origin;
        if self.oracle.leader.is_none() {
            // Its driver tries again until somebody leads.
            self.after(500, Event::Arrive { origin, entry });
            return Ok(());
        }
        if !self.healing && self.rng.chance(60) {
            self.counts.proposals_lost += 1;
            self.after(50, Event::Failed { node, life, proposal });
            return Ok(());
        }
        self.append(entry, Some(origin))
    }

    fn on_shard(&mut self, node: usize, shard: ShardId) -> Verdict {
        let (id, life) = (self.nodes[node].id, self.nodes[node].life);
        let at = usize::from(shard.0);
        let Some(message) = self.nodes[node].shards[at].told.pop_front() else { return Ok(()) };
        let state = &mut self.nodes[node].shards[at];
        let (revision, view, assign, unassign) = match message {
            FromControl::Delta { revision, view, assign, unassign } => (revision, view, assign, unassign),
            FromControl::Nodes(nodes) => {
                state.nodes = nodes.to_vec();
                return Ok(());
            }
            FromControl::IsrRefused { .. } => {
                self.counts.isr_refused += 1;
                return Ok(());
            }
            FromControl::Stop { .. } => {
                return self.input(node, Input::FromShard { shard, message: ToControl::Stopped });
            }
            _ => return Ok(()),
        };
        if revision <= state.revision || view.revision != revision {
            let what = format!("shard {shard} of node {id} is told {revision} after {}", state.revision);
            return Err(broken("I7 revisions", what));
        }
        state.revision = revision;
        for assignment in &assign {
            let unknown = |member: &&NodeId| !state.nodes.iter().any(|peer| peer.node == **member);
            if let Some(unknown) = assignment.isr.iter().find(unknown) {
                let what =
                    format!("shard {shard} of node {id} has not heard of node {unknown}, which is in sync");
                return Err(broken("I7 revisions", what));
            }
            state.owned.insert(assignment.partition, assignment.clone());
            self.checkers.assigned(id, life, assignment)?;
        }
        for partition in unassign {
            state.owned.remove(&partition);
        }
        // Some partitions have records, and these are found at the next start.
        state.held = state.owned.keys().copied().filter(|p| p.index.0 % 3 != 1).collect();
        self.input(node, Input::FromShard { shard, message: ToControl::Applied { revision } })
    }

    /// Some of the partitions that the node leads get others in sync; while the world heals, all of them all.
    fn on_wish(&mut self, node: usize) -> Verdict {
        let (id, life) = (self.nodes[node].id, self.nodes[node].life);
        self.after(400, Event::Wish { node, life });
        for shard in 0..SHARDS {
            let state = &self.nodes[node].shards[usize::from(shard)];
            let epoch =
                |node: NodeId| state.nodes.iter().find(|peer| peer.node == node).map(|peer| peer.epoch);
            let eligible = |node: NodeId| state.nodes.iter().any(|peer| peer.node == node && peer.eligible);
            let mut changes = Vec::new();
            for assignment in state.owned.values().filter(|a| a.leader == Some(id) && a.replicas.len() > 1) {
                if !self.healing && !self.rng.chance(200) {
                    continue;
                }
                // Now and then with somebody who cannot be in sync, which it has not heard yet.
                let slips = !self.healing && self.rng.chance(50);
                let mut joins = |member: NodeId| {
                    member == id || ((eligible(member) || slips) && (self.healing || self.rng.chance(600)))
                };
                let mut isr: Vec<NodeId> = assignment.replicas.clone();
                isr.retain(|member| joins(*member));
                let mut sorted = assignment.isr.clone();
                sorted.sort_unstable();
                let mut wanted = isr.clone();
                wanted.sort_unstable();
                if wanted != sorted {
                    changes.push(IsrChange {
                        partition: assignment.partition,
                        leader_epoch: assignment.leader_epoch,
                        partition_epoch: assignment.partition_epoch,
                        isr: isr.into_iter().map(|node| (node, epoch(node).unwrap_or_default())).collect(),
                    });
                }
            }
            if !changes.is_empty() {
                let message = ToControl::AlterIsr { changes };
                self.input(node, Input::FromShard { shard: ShardId(shard), message })?;
            }
        }
        Ok(())
    }

    /// The process of the node is gone, whatever the reason; it starts again a little later.
    fn go(&mut self, node: usize) {
        self.nodes[node].kill();
        // Nobody answers for it any more.
        self.asked.retain(|_, (at, ..)| *at != node);
        if self.oracle.leader == Some(node) {
            self.oracle.leader = None;
            self.tell_leader();
            if self.healing {
                self.elect();
            }
        }
        self.after(6000, Event::Start { node });
    }

    fn on_ask(&mut self) -> Verdict {
        if self.healing {
            return Ok(());
        }
        self.after(150, Event::Ask);
        let node = self.rng.index(NODES);
        if self.nodes[node].control.is_none() {
            return Ok(());
        }
        let request = self.request();
        let no = self.asked_next;
        self.asked_next += 1;
        self.asked.insert(no, (node, self.nodes[node].life, request.clone()));
        self.input(node, Input::Local { id: LocalId(no), request })
    }

    fn request(&mut self) -> Request {
        let known: Vec<(TopicId, String, usize)> =
            self.oracle.newest().topics().map(|t| (t.id, t.name.to_string(), t.partitions.len())).collect();
        let timeout = REQUEST_TIMEOUT;
        match self.rng.below(12) {
            kind @ 3..=6 if !known.is_empty() => {
                let (id, name, partitions) = self.rng.pick(&known).clone();
                match kind {
                    3 => Request::DeleteTopics { topics: vec![TopicRef::Id(id)], timeout },
                    4 => {
                        let total = u32::try_from(partitions).expect("few") + 1;
                        let more = MorePartitions { topic: name, total, assignment: Vec::new() };
                        Request::CreatePartitions { topics: vec![more], validate_only: false, timeout }
                    }
                    _ => {
                        let value = (1 + self.rng.below(3)).to_string();
                        let change =
                            ConfigChange { key: "min.insync.replicas".to_owned(), op: ConfigOp::Set(value) };
                        let resource = match kind {
                            5 => ConfigResource::Topic(name),
                            _ => ConfigResource::Cluster,
                        };
                        let resources = vec![AlterConfig { resource, changes: vec![change] }];
                        Request::AlterConfigs { resources, validate_only: false }
                    }
                }
            }
            7 | 8 => Request::NewProducerId,
            10 => {
                let all: Vec<(String, u32, usize)> = self
                    .oracle
                    .newest()
                    .topics()
                    .flat_map(|t| {
                        (0..)
                            .zip(&t.partitions)
                            .map(|(p, state)| (t.name.to_string(), p, state.replicas.len()))
                    })
                    .filter(|(.., replicas)| *replicas > 1)
                    .collect();
                if all.is_empty() {
                    return Request::NewProducerId;
                }
                let some: Vec<PartitionRef> = (0..3)
                    .map(|_| self.rng.pick(&all).clone())
                    .map(|(topic, index, _)| PartitionRef { topic, index: PartitionIndex(index) })
                    .collect();
                if self.rng.chance(300) {
                    let kind = ElectionKind::Preferred;
                    return Request::ElectLeaders { kind, partitions: None, timeout };
                }
                let reassigned = |partition: PartitionRef, world: &mut Self| {
                    let (first, count) = (world.rng.index(NODES), 1 + world.rng.index(NODES));
                    let node = |at: usize| NodeId(1 + u32::try_from((first + at) % NODES).expect("few"));
                    let replicas = world.rng.chance(700).then(|| (0..count).map(node).collect());
                    Reassignment { partition, replicas }
                };
                let partitions = some.into_iter().map(|partition| reassigned(partition, self)).collect();
                Request::Reassign { partitions, timeout }
            }
            9 if self.rng.chance(300) => {
                let node = NodeId(1 + u32::try_from(self.rng.below(4)).expect("few"));
                Request::ChangeNode { node, change: NodeChange::Fence, timeout }
            }
            _ => {
                // A name of its own for each, so that the log says which request made a topic.
                let many = self.rng.chance(40);
                let topic = |world: &mut Self, at: u64| NewTopic {
                    name: format!("t{}-{at}", world.asked_next),
                    partitions: Some(if many {
                        2500
                    } else {
                        1 + u32::try_from(world.rng.below(6)).expect("few")
                    }),
                    ..NewTopic::default()
                };
                let count = if many { 1 } else { 1 + self.rng.below(3) };
                let topics = (0..count).map(|at| topic(self, at)).collect();
                let validate_only = self.rng.chance(50);
                Request::CreateTopics { topics, validate_only, timeout }
            }
        }
    }

    fn on_fault(&mut self) -> Verdict {
        if self.healing {
            return Ok(());
        }
        self.after(2500, Event::Fault);
        match self.rng.below(10) {
            0 | 1 => {
                let node = self.rng.index(NODES);
                self.go(node);
            }
            2 | 3 => {
                let node = self.rng.index(NODES);
                if !std::mem::replace(&mut self.nodes[node].stopping, true) {
                    if self.oracle.leader == Some(node) {
                        self.elect();
                    }
                    return self.input(node, Input::Stop { deadline: Duration::from_secs(1) });
                }
            }
            4 | 5 => self.elect(),
            6 => {
                self.oracle.leader = None;
                self.tell_leader();
            }
            7 | 8 => self.oracle.compacted = self.oracle.len(),
            _ => return self.create_replicated(),
        }
        Ok(())
    }

    fn append(&mut self, entry: Entry, origin: Option<Origin>) -> Verdict {
        let mut old = self.oracle.newest().clone();
        for command in &entry.commands {
            let mut new = old.clone();
            new.try_out(command);
            partitions::check(&old, &new)?;
            old = new;
        }
        self.oracle.append(entry, origin, &mut self.counts);
        Ok(())
    }

    /// Topics of several replicas, some on nodes that are fenced.
    fn create_replicated(&mut self) -> Verdict {
        let nodes: Vec<NodeId> = self.oracle.newest().nodes.keys().copied().collect();
        if nodes.is_empty() {
            return Ok(());
        }
        let replicas = |world: &mut Self| {
            let first = world.rng.index(nodes.len());
            let factor = 1 + world.rng.index(nodes.len());
            (0..factor).map(|at| nodes[(first + at) % nodes.len()]).collect()
        };
        let topic = CreateTopic {
            id: TopicId(u128::from(self.rng.draw()) | 1 << 100),
            name: format!("r{}", self.oracle.len()),
            replicas: (0..3).map(|_| replicas(self)).collect(),
            ..CreateTopic::default()
        };
        self.append(Entry { commands: vec![Command::CreateTopics(vec![topic])] }, None)
    }

    fn elect(&mut self) {
        self.counts.leaders += 1;
        let up: Vec<usize> = (0..NODES).filter(|&n| self.nodes[n].control.is_some()).collect();
        self.oracle.term += 1;
        self.oracle.leader = if up.is_empty() { None } else { Some(*self.rng.pick(&up)) };
        self.tell_leader();
    }

    fn tell_leader(&mut self) {
        let (term, leader) = (self.oracle.term, self.oracle.leader);
        for node in 0..NODES {
            let life = self.nodes[node].life;
            self.after(300, Event::Tell { node, life, term, leader });
        }
    }

    /// No more faults: all nodes come up, and one leads.
    fn heal(&mut self) {
        self.healing = true;
        for node in 0..NODES {
            if self.nodes[node].control.is_none() {
                let started = self.on_start(node);
                assert!(started.is_ok(), "a start alone breaks nothing: {started:?}");
            }
        }
        self.elect();
    }

    /// I11: everything has converged, and what was said is true.
    fn end(&mut self) -> Verdict {
        let newest = self.oracle.newest();
        let late = |what: String| Err(broken("I11 liveness", what));
        if let Some((no, (node, _, request))) = self.asked.iter().next() {
            return late(format!("node {node} never answered request {no}: {request:?}"));
        }
        for node in &self.nodes {
            let image = node.control.as_ref().map(|c| c.image());
            if !node.ready || image.is_none_or(|image| image.revision != newest.revision) {
                return late(format!("node {} did not come back", node.id));
            }
            self.checkers.image(node.id, image.expect("it is up"), &self.oracle)?;
            self.check_shards(node, image.expect("it is up"))?;
        }
        if newest.nodes.values().any(|info| info.fenced) || newest.nodes.len() != NODES {
            return late("a node that is up is still fenced".to_owned());
        }
        let leader = self.oracle.leader.map(|at| self.nodes[at].id);
        if newest.controller != leader {
            return late(format!("the controller is {:?}, the leader {leader:?}", newest.controller));
        }
        if newest.leaderless_count() > 0 {
            return late(format!("{} partitions have no leader", newest.leaderless_count()));
        }
        self.checkers.end(&self.oracle)
    }

    /// The shards own what the image has for this node, with the leaders it has.
    fn check_shards(&self, node: &Node, image: &Image) -> Verdict {
        let mut owned = 0;
        for (shard, state) in (0..).map(ShardId).zip(&node.shards) {
            for (&partition, assignment) in &state.owned {
                owned += 1;
                let known = image.partition(partition).map(|p| (p.leader, p.partition_epoch));
                let is = (assignment.leader, assignment.partition_epoch);
                if image.local_shard(partition) != Some(shard) || known != Some(is) {
                    let what = format!("shard {shard} of node {} has an old view of {partition}", node.id);
                    return Err(broken("I11 liveness", what));
                }
            }
        }
        let here = |t: &std::sync::Arc<highwater::control::metadata::image::Topic>| {
            t.partitions.iter().filter(|p| p.replicas.contains(&node.id)).count()
        };
        let expected: usize = image.topics().map(here).sum();
        if owned != expected {
            let what = format!("the shards of node {} own {owned} partitions of {expected}", node.id);
            return Err(broken("I11 liveness", what));
        }
        Ok(())
    }
}
