//! The real control plane: a [`Control`] on each node over an oracle of the metadata log, which is one order of entries
//! with one leader at a time. Nodes hear of entries late, proposals are lost, leaders of the log change when they are not
//! heard; leases are given and membership hints told as the drivers of a node do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use highwater::control::lease::{Asking, Standing, Times};
use highwater::control::liveness::{Heard, Hint, Sign};
use highwater::control::metadata::command::{
    Command, CreateTopic, ElectLeaders, ElectionKind, Entry, NewReplicas, ReassignTopic, RegisterNode,
};
use highwater::control::metadata::image::{DiskId, Endpoint, Image, Incarnation};
use highwater::control::metadata::topic_config::TopicDefaults;
use highwater::control::placement::Placement;
use highwater::control::request::{Reply, Request};
use highwater::control::{Control, ControlConfig, Input, KeepId, Output, Placements, ProposalId};
use highwater_shards::ids::{ConnId, NodeId, PartitionId, RegistrationEpoch, ShardId, TopicId};
use highwater_shards::mail::{Assignment, Durability, FromControl, PartitionConfig, ToControl, Token};
use highwater_shards::time::Instant;

use super::config::Config;
use super::plane::{Cx, Said, Told, Truth};
use super::{index_of, node_id};
use crate::checkers::{Verdict, broken};
use crate::controls::Counts;
use crate::controls::oracle::{Oracle, Origin};
use crate::wire::Metadata;

#[derive(Debug)]
pub struct Planes {
    oracle: Oracle,
    counts: Counts,
    members: Vec<Member>,
    truth: Truth,
    /// Entries that `truth` has taken in.
    truth_at: usize,
    /// How long a follower of the log waits for its leader.
    patience: Duration,
    /// When a majority last heard the leader.
    quorum_at: Instant,
    elect_at: Instant,
}

/// A node: its control plane while it lives, and what outlives it.
#[derive(Debug, Default)]
struct Member {
    life: u32,
    control: Option<Control>,
    ready: bool,
    stopping: bool,
    stopped: bool,
    /// Entries of the log that it has applied; durable.
    applied: usize,
    /// Durable.
    placements: BTreeMap<PartitionId, ShardId>,
    /// Durable: under which registration a life stopped cleanly.
    clean: Option<RegistrationEpoch>,
    /// Not answered yet.
    proposal: Option<ProposalId>,
    term: u64,
    /// When the log's leader sent what this node acknowledged last.
    heard: Instant,
    /// Others were told that it is dead.
    mourned: bool,
    timer: Option<Instant>,
}

#[derive(Clone, Debug)]
pub enum Event {
    /// The log's leader says something, and is heard or not.
    Tick,
    /// The topics are made once the nodes are there.
    Create,
    Tell {
        node: usize,
        life: u32,
        term: u64,
        leader: Option<usize>,
    },
    /// The node takes the next entry of the log.
    Deliver {
        node: usize,
        life: u32,
    },
    /// A proposal comes to the log.
    Arrive {
        origin: Origin,
        entry: Entry,
    },
    Failed {
        node: usize,
        life: u32,
        proposal: ProposalId,
    },
    Keep {
        node: usize,
        life: u32,
        id: KeepId,
        changes: Placements,
    },
    Timer {
        node: usize,
        life: u32,
    },
    /// A session's request, once more.
    Again {
        node: usize,
        life: u32,
        shard: ShardId,
        conn: ConnId,
        token: Token,
    },
    /// The node asks for its lease; that comes to the leader; and its answer.
    Ask {
        node: usize,
        life: u32,
    },
    Asked {
        node: usize,
        life: u32,
        sent: Instant,
    },
    Granted {
        node: usize,
        life: u32,
        until: Instant,
    },
    Hint {
        node: usize,
        life: u32,
        hint: Hint,
    },
}

impl Planes {
    fn leader_is_well(&self, leader: usize, cx: &Cx<'_>) -> bool {
        let reached = (0..self.members.len()).filter(|&n| is_reached(n, cx)).count();
        is_reached(leader, cx) && reached * 2 > self.members.len()
    }

    fn input(&mut self, node: usize, input: Input, cx: &mut Cx<'_>) -> Verdict {
        let clock = cx.net.clock(node, cx.now);
        let member = &mut self.members[node];
        let Some(control) = &mut member.control else { return Ok(()) };
        control.handle(clock, input);
        let mut outputs = Vec::new();
        while let Some(output) = control.poll_output() {
            outputs.push(output);
        }
        let (timer, life) = (control.poll_timeout(), member.life);
        if timer != member.timer {
            member.timer = timer;
            if let Some(at) = timer {
                cx.later.push((cx.now + at.since(clock), Event::Timer { node, life }));
            }
        }
        for output in outputs {
            self.on_output(node, output, cx)?;
        }
        Ok(())
    }

    fn on_output(&mut self, node: usize, output: Output, cx: &mut Cx<'_>) -> Verdict {
        let life = self.members[node].life;
        let soon = cx.now + cx.rng.tailed(&cx.config.net);
        match output {
            Output::Propose { proposal, entry } => {
                let last = self.members[node].proposal.replace(proposal);
                assert_eq!(last, None, "one proposal at a time");
                cx.later.push((soon, Event::Arrive { origin: (node, u64::from(life), proposal), entry }));
            }
            Output::ToShard { shard, message } => {
                let placements = &self.members[node].placements;
                if let FromControl::Delta { assign, .. } = &message
                    && let Some(early) = assign.iter().find(|a| placements.get(&a.partition) != Some(&shard))
                {
                    let what = format!("shard {shard} is told of {} before that is kept", early.partition);
                    return Err(broken("I7 revisions", what));
                }
                match message {
                    FromControl::Reply { conn, token, reply } => match reply {
                        Reply::NewProducerId(Ok((id, _))) => {
                            cx.out.push((node, shard, FromControl::Reply { conn, token, reply: id }));
                        }
                        _ => {
                            let again = Event::Again { node, life, shard, conn, token };
                            cx.later.push((cx.now + self.patience * 2, again));
                        }
                    },
                    message => cx.out.push((node, shard, translated(message, cx.config))),
                }
            }
            Output::Keep { id, changes } => {
                let at = cx.now + cx.rng.between(Duration::from_micros(100), Duration::from_millis(3));
                cx.later.push((at, Event::Keep { node, life, id, changes }));
            }
            Output::LocalReply { .. } => {}
            Output::Ready => self.members[node].ready = true,
            Output::Stopped { late, clean } => {
                if !late.is_empty() && cx.net.runs(node, cx.now) {
                    let what = format!("shards {late:?} of node {} did not stop", node_id(node));
                    return Err(broken("I11 liveness", what));
                }
                let member = &mut self.members[node];
                member.clean = clean.or(member.clean);
                member.stopped = true;
            }
            Output::Fatal(reason) => {
                return Err(broken("fatal", format!("node {}: {reason}", node_id(node))));
            }
        }
        Ok(())
    }

    fn append(&mut self, entry: Entry, origin: Option<Origin>, config: &Config) {
        self.oracle.append(entry, origin, &mut self.counts);
        let image = self.oracle.newest();
        for topic in image.topics() {
            for (index, _) in (0..).zip(topic.partitions.iter()) {
                let id = topic.partition_id(highwater_shards::ids::PartitionIndex(index));
                if let Some(a) = assignment(image, id, config) {
                    self.truth.insert(id, a);
                }
            }
        }
        self.truth_at = self.oracle.len();
    }

    fn tell_leader(&self, cx: &mut Cx<'_>) {
        let (term, leader) = (self.oracle.term, self.oracle.leader);
        for (node, member) in (0..).zip(&self.members) {
            let at = cx.now + cx.rng.tailed(&cx.config.net);
            cx.later.push((at, Event::Tell { node, life: member.life, term, leader }));
        }
    }

    fn elect(&mut self, cx: &mut Cx<'_>) {
        let able: Vec<usize> = (0..self.members.len()).filter(|&n| is_reached(n, cx)).collect();
        if able.len() * 2 <= self.members.len() {
            return;
        }
        // Whoever is to lead has everything that is committed, or gets it first.
        self.oracle.term += 1;
        self.oracle.leader = Some(*cx.rng.pick(&able));
        self.quorum_at = cx.now;
        // It has heard nobody before it led.
        self.members.iter_mut().for_each(|m| m.heard = cx.now);
        self.tell_leader(cx);
    }

    fn on_tick(&mut self, cx: &mut Cx<'_>) -> Verdict {
        cx.later.push((cx.now + self.patience / 3, Event::Tick));
        let Some(leader) = self.oracle.leader else {
            if cx.now >= self.elect_at {
                self.elect(cx);
            }
            return Ok(());
        };
        if !self.leader_is_well(leader, cx) {
            if self.quorum_at + self.patience < cx.now {
                self.oracle.leader = None;
                self.elect_at = cx.now + cx.rng.between(Duration::ZERO, self.patience);
                self.tell_leader(cx);
            }
            return Ok(());
        }
        self.quorum_at = cx.now;
        for node in 0..self.members.len() {
            if is_reached(node, cx) {
                self.members[node].heard = cx.now;
            }
        }
        self.tell_hints(cx);
        let silent = (0..).zip(&self.members).map(|(n, m)| (node_id(n), cx.now.since(m.heard)));
        let heard = Heard { patience: self.patience, silent: silent.collect() };
        self.input(leader, Input::Heard(heard), cx)?;
        let sent = cx.net.clock(leader, cx.now);
        self.lease(leader, sent, leader, cx)
            .map_or(Ok(()), |until| self.input(leader, Input::Lease { until }, cx))
    }

    /// Gossip: who was silent for long is called dead, and who speaks again is called alive.
    fn tell_hints(&mut self, cx: &mut Cx<'_>) {
        for node in 0..self.members.len() {
            let silent = cx.now.since(self.members[node].heard);
            let is_dead = silent > self.patience * 3;
            if is_dead == self.members[node].mourned {
                continue;
            }
            self.members[node].mourned = is_dead;
            let sign = if is_dead { Sign::Died } else { Sign::Joined };
            let incarnation = Incarnation(u64::from(self.members[node].life));
            let hint = Hint { node: node_id(node), incarnation, sign };
            for (to, member) in (0..).zip(&self.members) {
                let at = cx.now + cx.rng.tailed(&cx.config.net);
                cx.later.push((at, Event::Hint { node: to, life: member.life, hint }));
            }
        }
    }

    /// Until when a node that asked may lead, if the leader of the log counts on it.
    fn lease(&self, node: usize, sent: Instant, leader: usize, cx: &Cx<'_>) -> Option<Instant> {
        let epoch = self.registration(node)?;
        let times = Times::of(self.patience);
        let standing = Standing {
            node: node_id(leader),
            term: self.oracle.term,
            quorum_age: cx.now.since(self.quorum_at),
            heard_age: if node == leader { Duration::ZERO } else { cx.now.since(self.members[node].heard) },
        };
        let control = self.members[leader].control.as_ref()?;
        let asking = Asking { node: node_id(node), epoch };
        control.counts_on(times, standing, asking).then(|| times.lease_of(sent))
    }

    /// The next entry.
    fn on_deliver(&mut self, node: usize, cx: &mut Cx<'_>) -> Verdict {
        let life = self.members[node].life;
        let pause = cx.rng.between(Duration::from_micros(200), Duration::from_millis(6));
        let wait = pause + cx.net.pause_left(node, cx.now);
        cx.later.push((cx.now + wait, Event::Deliver { node, life }));
        if !cx.net.is_open(cx.net.controller(), node) || !cx.net.runs(node, cx.now) {
            return Ok(());
        }
        let applied = self.members[node].applied;
        let Some((entry, origin)) = self.oracle.entry(applied).cloned() else { return Ok(()) };
        self.members[node].applied += 1;
        let own = origin.filter(|&(at, in_life, _)| (at, in_life) == (node, u64::from(life)));
        let own = own.map(|(.., own)| own);
        if own.is_some() {
            assert_eq!(self.members[node].proposal.take(), own, "one proposal at a time");
        }
        let revision = self.oracle.image(applied + 1).revision;
        self.input(node, Input::Committed { revision, proposal: own, entry }, cx)
    }

    fn on_create(&mut self, cx: &mut Cx<'_>) {
        let nodes: Vec<NodeId> = (0..cx.config.nodes).map(node_id).collect();
        if !nodes.iter().all(|&n| self.oracle.newest().is_active(n)) {
            cx.later.push((cx.now + self.patience, Event::Create));
            return;
        }
        for (at, made) in (1..).zip(&cx.config.topics) {
            let replicas = (0..made.partitions).map(|_| {
                let first = cx.rng.index(nodes.len());
                (0..made.replicas).map(|n| nodes[(first + n) % nodes.len()]).collect()
            });
            let durability = match made.durability {
                Durability::Fsync => "fsync",
                Durability::Replicated => "replicated",
            };
            let topic = CreateTopic {
                id: TopicId(at),
                name: format!("t{at}"),
                replicas: replicas.collect(),
                config: vec![
                    ("min.insync.replicas".to_owned(), made.isr_min.to_string()),
                    ("highwater.durability".to_owned(), durability.to_owned()),
                    ("max.message.bytes".to_owned(), cx.config.batch_bytes_max.to_string()),
                ],
                automatic: false,
            };
            let entry = Entry { commands: vec![Command::CreateTopics(vec![topic])] };
            self.append(entry, None, cx.config);
        }
    }
}

/// The replica that stands there is to lead.
fn prefer_another(id: PartitionId, now: &Assignment, at: usize) -> Vec<Command> {
    let mut order = now.replicas.clone();
    order.rotate_left(at);
    let partitions = vec![NewReplicas { index: id.index, replicas: Some(order) }];
    let reassign = Command::Reassign(vec![ReassignTopic { topic: id.topic, partitions }]);
    let (kind, topics) = (ElectionKind::Preferred, vec![(id.topic, vec![id.index])]);
    vec![reassign, Command::ElectLeaders(ElectLeaders { kind, topics })]
}

/// The node runs, and it and the log's other members hear each other.
fn is_reached(node: usize, cx: &Cx<'_>) -> bool {
    let controller = cx.net.controller();
    cx.net.runs(node, cx.now) && cx.net.is_open(node, controller) && cx.net.is_open(controller, node)
}

fn assignment(image: &Image, id: PartitionId, config: &Config) -> Option<Assignment> {
    let state = image.partition(id)?;
    let made = config.topics.get(usize::try_from(id.topic.0).ok()? - 1)?;
    Some(Assignment {
        partition: id,
        leader: state.leader,
        leader_epoch: state.leader_epoch,
        partition_epoch: state.partition_epoch,
        replicas: state.replicas.clone(),
        isr: state.isr.clone(),
        config: PartitionConfig {
            durability: made.durability,
            isr_min: made.isr_min,
            batch_bytes_max: config.batch_bytes_max,
            ..PartitionConfig::default()
        },
    })
}

/// What a shard hears, with the image as the simulator's front reads it.
fn translated(message: FromControl<Arc<Image>, Reply>, config: &Config) -> Told {
    match message {
        FromControl::Delta { revision, view, assign, unassign } => {
            let local = view.local_shards();
            let partitions =
                local.filter_map(|(id, shard)| Some((id, (shard, assignment(&view, id, config)?))));
            let view = Arc::new(Metadata { revision, partitions: partitions.collect() });
            FromControl::Delta { revision, view, assign, unassign }
        }
        FromControl::Nodes(nodes) => FromControl::Nodes(nodes),
        FromControl::IsrRefused { partition, partition_epoch, refusal } => {
            FromControl::IsrRefused { partition, partition_epoch, refusal }
        }
        FromControl::Lease { until } => FromControl::Lease { until },
        FromControl::Stats { id } => FromControl::Stats { id },
        FromControl::Stop { deadline } => FromControl::Stop { deadline },
        FromControl::Reply { .. } => unreachable!("replies are translated by the caller"),
    }
}

impl Planes {
    pub fn new(config: &Config) -> Self {
        Self {
            oracle: Oracle::new(),
            counts: Counts::default(),
            members: (0..config.nodes).map(|_| Member::default()).collect(),
            truth: Truth::new(),
            truth_at: 0,
            // So that a session is about as long as a lease.
            patience: config.session / 5,
            quorum_at: Instant::ZERO,
            elect_at: Instant::ZERO,
        }
    }

    /// Makes the topics once the nodes are there, and whatever goes on by itself.
    pub fn begin(&mut self, cx: &mut Cx<'_>) {
        cx.later.push((cx.now + self.patience, Event::Tick));
        cx.later.push((cx.now + self.patience * 4, Event::Create));
    }

    /// A node begins a new life; its shards will say that they have recovered.
    pub fn start(&mut self, node: usize, cx: &mut Cx<'_>) -> Verdict {
        let member = &mut self.members[node];
        member.life = cx.net.node(node).life;
        (member.ready, member.stopping, member.stopped) = (false, false, false);
        (member.proposal, member.term, member.timer) = (None, 0, None);
        let life = member.life;
        let mut image = self.oracle.image(member.applied).clone();
        for (&partition, &shard) in &member.placements {
            image.put_local_shard(partition, shard);
        }
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&cx.rng.draw().to_le_bytes());
        let register = RegisterNode {
            node: node_id(node),
            incarnation: Incarnation(u64::from(life)),
            disk: DiskId(node as u128 + 100),
            client: Endpoint { host: format!("node-{node}"), port: 9092 },
            clean_stop: member.clean,
            ..RegisterNode::default()
        };
        let config = ControlConfig {
            register,
            shards: cx.config.shards[node],
            defaults: TopicDefaults::default(),
            placement: Placement::default(),
            seed,
        };
        member.control = Some(Control::new(config, image));
        let (term, leader) = (self.oracle.term, self.oracle.leader);
        let soon = cx.now + cx.rng.tailed(&cx.config.net);
        cx.later.push((soon, Event::Tell { node, life, term, leader }));
        cx.later.push((soon, Event::Deliver { node, life }));
        cx.later.push((soon, Event::Ask { node, life }));
        Ok(())
    }

    /// A node's life is over.
    pub fn down(&mut self, node: usize) {
        self.members[node].control = None;
        self.members[node].ready = false;
        // Others notice in their own time: the next tick finds that it does not run.
    }

    pub fn on_said(&mut self, node: usize, shard: ShardId, said: Said, cx: &mut Cx<'_>) -> Verdict {
        let message = match said {
            ToControl::Request { conn, token, .. } => {
                ToControl::Request { conn, token, request: Request::NewProducerId }
            }
            ToControl::Recovered { partitions } => ToControl::Recovered { partitions },
            ToControl::Applied { revision } => ToControl::Applied { revision },
            ToControl::AlterIsr { changes } => ToControl::AlterIsr { changes },
            ToControl::Stopped => ToControl::Stopped,
            ToControl::Dial { .. } | ToControl::Stats { .. } => return Ok(()),
        };
        self.input(node, Input::FromShard { shard, message }, cx)
    }

    pub fn on_event(&mut self, event: Event, cx: &mut Cx<'_>) -> Verdict {
        let is_for = match &event {
            Event::Tick | Event::Create | Event::Arrive { .. } | Event::Asked { .. } => None,
            Event::Tell { node, life, .. }
            | Event::Deliver { node, life }
            | Event::Failed { node, life, .. }
            | Event::Keep { node, life, .. }
            | Event::Timer { node, life }
            | Event::Again { node, life, .. }
            | Event::Ask { node, life }
            | Event::Granted { node, life, .. }
            | Event::Hint { node, life, .. } => Some((*node, *life)),
        };
        if let Some((node, life)) = is_for {
            if !cx.net.is_life(node, life) {
                return Ok(());
            }
            let pause = cx.net.pause_left(node, cx.now);
            if !pause.is_zero() {
                cx.later.push((cx.now + pause, event));
                return Ok(());
            }
        }
        let controller = cx.net.controller();
        let soon = cx.now + cx.rng.tailed(&cx.config.net);
        match event {
            Event::Tick => self.on_tick(cx),
            Event::Create => {
                self.on_create(cx);
                Ok(())
            }
            Event::Tell { node, life, term, leader } => {
                if !cx.net.is_open(controller, node) {
                    cx.later.push((cx.now + self.patience, Event::Tell { node, life, term, leader }));
                    return Ok(());
                }
                if term < self.members[node].term {
                    return Ok(());
                }
                self.members[node].term = term;
                self.input(node, Input::Leadership { term, leader: leader.map(node_id) }, cx)
            }
            Event::Deliver { node, .. } => self.on_deliver(node, cx),
            Event::Arrive { origin, entry } => {
                let (node, life, proposal) = origin;
                let Some(leader) = self.oracle.leader.filter(|&l| self.leader_is_well(l, cx)) else {
                    // Its driver tries again until somebody leads.
                    cx.later.push((cx.now + self.patience, Event::Arrive { origin, entry }));
                    return Ok(());
                };
                let life = u32::try_from(life).expect("few lives");
                if node != leader && (!cx.net.is_open(node, controller) || cx.rng.chance(20)) {
                    cx.later.push((soon, Event::Failed { node, life, proposal }));
                    return Ok(());
                }
                self.append(entry, Some(origin), cx.config);
                Ok(())
            }
            Event::Failed { node, proposal, .. } => {
                self.members[node].proposal = None;
                self.input(node, Input::ProposalFailed { proposal, reason: "lost".to_owned() }, cx)
            }
            Event::Keep { node, id, changes, .. } => {
                let placements = &mut self.members[node].placements;
                for (partition, shard) in changes {
                    match shard {
                        Some(shard) => drop(placements.insert(partition, shard)),
                        None => drop(placements.remove(&partition)),
                    }
                }
                self.input(node, Input::Kept { id }, cx)
            }
            Event::Timer { node, .. } => {
                let clock = cx.net.clock(node, cx.now);
                self.members[node].timer = None;
                let control = self.members[node].control.as_ref().expect("it is up");
                match control.poll_timeout() {
                    Some(at) if at <= clock => self.input(node, Input::Timeout, cx),
                    Some(at) => {
                        let life = self.members[node].life;
                        self.members[node].timer = Some(at);
                        cx.later.push((cx.now + at.since(clock), Event::Timer { node, life }));
                        Ok(())
                    }
                    None => Ok(()),
                }
            }
            Event::Again { node, shard, conn, token, .. } => {
                let message = ToControl::Request { conn, token, request: Request::NewProducerId };
                self.input(node, Input::FromShard { shard, message }, cx)
            }
            Event::Ask { node, life } => {
                cx.later.push((cx.now + self.patience, Event::Ask { node, life }));
                if cx.net.is_open(node, controller) {
                    let sent = cx.net.clock(node, cx.now);
                    cx.later.push((soon, Event::Asked { node, life, sent }));
                }
                Ok(())
            }
            Event::Asked { node, life, sent } => {
                let leader = self.oracle.leader.filter(|&l| l != node && is_reached(l, cx));
                if let Some(until) = leader.and_then(|leader| self.lease(node, sent, leader, cx))
                    && cx.net.is_life(node, life)
                    && cx.net.is_open(controller, node)
                {
                    cx.later.push((soon, Event::Granted { node, life, until }));
                }
                Ok(())
            }
            Event::Granted { node, until, .. } => self.input(node, Input::Lease { until }, cx),
            Event::Hint { node, hint, .. } => self.input(node, Input::Hint(hint), cx),
        }
    }

    /// An operator stops the node: its leaders go elsewhere, then its shards stop.
    pub fn stop(&mut self, node: usize, cx: &mut Cx<'_>) -> Verdict {
        self.members[node].stopping = true;
        self.input(node, Input::Stop { deadline: Duration::from_secs(1) }, cx)
    }

    /// A node that was being stopped has stopped.
    pub fn is_stopping(&self, node: usize) -> bool {
        self.members[node].stopping
    }

    pub fn has_stopped(&self, node: usize) -> bool {
        self.members[node].stopped
    }

    /// Another leader of the log, or none for a while.
    pub fn disturb(&mut self, cx: &mut Cx<'_>) -> Verdict {
        if cx.rng.flip() {
            self.oracle.leader = None;
            self.elect_at = cx.now + cx.rng.between(Duration::ZERO, self.patience * 2);
            self.tell_leader(cx);
        } else {
            self.elect(cx);
        }
        Ok(())
    }

    pub fn truth(&self) -> &Truth {
        &self.truth
    }

    /// Another one in sync leads what the node leads.
    pub fn relieve(&mut self, node: usize, cx: &mut Cx<'_>) {
        let led = self.truth.iter().filter(|(_, a)| a.leader == Some(node_id(node)));
        let next = led.map(|(&id, now)| {
            let own = now.replicas.iter().position(|&n| n == node_id(node)).unwrap_or_default();
            (id, now.replicas[(own + 1) % now.replicas.len()])
        });
        let next: Vec<_> = next.collect();
        self.hand_over(&next, cx);
    }

    /// Each partition is led by the node that is named, if that is in sync.
    pub fn hand_over(&mut self, next: &[(PartitionId, NodeId)], cx: &mut Cx<'_>) {
        let commands = next.iter().flat_map(|&(id, node)| {
            let now = &self.truth[&id];
            let at = now.replicas.iter().position(|&n| n == node).unwrap_or_default();
            prefer_another(id, now, at)
        });
        let commands: Vec<_> = commands.collect();
        if !commands.is_empty() {
            self.append(Entry { commands }, None, cx.config);
        }
    }

    /// An operator moves the replicas of a partition, or gives that up, or wants preferred leaders to lead.
    pub fn operate(&mut self, cx: &mut Cx<'_>) {
        let mut places = self.truth.iter();
        if places.len() == 0 {
            return;
        }
        let (&id, now) = places.nth(cx.rng.index(self.truth.len())).expect("within the length");
        let durable = now.config.durability == Durability::Fsync;
        let reassign = |replicas| {
            let partitions = vec![NewReplicas { index: id.index, replicas }];
            Command::Reassign(vec![ReassignTopic { topic: id.topic, partitions }])
        };
        let commands = match cx.rng.below(10) {
            0..4 => {
                // Fewer replicas than the minimum in sync would put up with less than the topic was made for.
                let same = now.replicas.len();
                let most = cx.config.nodes.min(3);
                let count = if durable { 1 + cx.rng.index(most) } else { same.min(most) };
                let mut nodes: Vec<NodeId> = (0..cx.config.nodes).map(node_id).collect();
                let chosen = (0..count).map(|_| nodes.swap_remove(cx.rng.index(nodes.len())));
                vec![reassign(Some(chosen.collect()))]
            }
            4 => vec![reassign(None)],
            _ => {
                let by = cx.rng.index(now.replicas.len());
                prefer_another(id, now, by)
            }
        };
        self.append(Entry { commands }, None, cx.config);
    }

    /// As the node knows it in this life.
    pub fn registration(&self, node: usize) -> Option<RegistrationEpoch> {
        let member = &self.members[node];
        let info = member.control.as_ref()?.image().nodes.get(&node_id(node))?;
        (info.incarnation == Incarnation(u64::from(member.life))).then_some(info.epoch)
    }

    /// Whether clients may come to the node.
    pub fn is_serving(&self, node: usize) -> bool {
        self.members[node].ready && !self.members[node].stopping
    }

    /// What has not come to rest, for a message.
    pub fn unrest(&self) -> Option<String> {
        if self.truth.is_empty() {
            return Some("the topics are not made".to_owned());
        }
        let newest = self.oracle.newest();
        if let Some(info) = newest.nodes.values().find(|info| info.fenced || info.stopping) {
            return Some(format!("node {} is fenced or stopping", info.id));
        }
        if let Some((at, _)) = (0..).zip(&self.members).find(|(_, m)| m.applied < self.oracle.len()) {
            return Some(format!("node {} has not applied the log", node_id(at)));
        }
        if self.truth.keys().any(|&id| newest.partition(id).is_some_and(|p| p.is_reassigned())) {
            return Some("replicas are being moved".to_owned());
        }
        let missing = |a: &&Assignment| {
            a.leader.is_none_or(|leader| !self.members[index_of(leader)].ready)
                || a.isr.len() < a.replicas.len()
        };
        let open = self.truth.values().find(missing);
        open.map(|a| format!("{} has the leader {:?} and the ISR {:?}", a.partition, a.leader, a.isr))
    }
}
