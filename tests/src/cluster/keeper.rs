//! A scripted control plane: one oracle that registers and fences nodes, elects leaders from the in-sync replicas in the
//! order of the assignment, and takes wishes for another ISR by rule R9. Each node has an agent that follows the oracle's
//! log, keeps up its session and carries what shards say.
//!
//! It is what shards are held against when the real control plane shall not be in the way, and it says nothing of how
//! that one comes to its decisions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use highwater_shards::ids::{
    LeaderEpoch, NodeId, PartitionEpoch, PartitionId, PartitionIndex, ProducerId, RegistrationEpoch,
    Revision, ShardId, TopicId,
};
use highwater_shards::mail::{
    Assignment, FromControl, IsrChange, IsrRefusal, PartitionConfig, PeerNode, ToControl,
};
use highwater_shards::time::Instant;

use super::config::Config;
use super::plane::{Cx, Plane, Said, Truth};
use super::{index_of, node_id};
use crate::checkers::Verdict;
use crate::wire::Metadata;

/// Between two signs of life of a node.
const BEAT: Duration = Duration::from_millis(5);
/// Before something that did not get through is tried again.
const AGAIN: Duration = Duration::from_millis(4);

type In<'a> = Cx<'a, Event>;

#[derive(Debug)]
pub struct Keeper {
    truth: Truth,
    /// One for each revision, from 1 on.
    log: Vec<Entry>,
    members: Vec<Member>,
    agents: Vec<Agent>,
    producers_made: u64,
    /// Nobody answers before this.
    away_until: Instant,
}

/// One committed change.
#[derive(Clone, Debug)]
struct Entry {
    changed: Vec<Assignment>,
    /// All nodes, when one of them changed.
    nodes: Option<Arc<[PeerNode]>>,
}

/// A node as the oracle knows it.
#[derive(Clone, Copy, Debug, Default)]
struct Member {
    /// The life that is registered.
    life: u32,
    epoch: Option<RegistrationEpoch>,
    fenced: bool,
    stopping: bool,
    heard: Instant,
}

/// A node's own part, in its present life.
#[derive(Debug, Default)]
struct Agent {
    life: u32,
    recovered: BTreeSet<ShardId>,
    applied: BTreeMap<ShardId, Revision>,
    stopped: BTreeSet<ShardId>,
    /// Entries of the log that it knows.
    known: usize,
    epoch: Option<RegistrationEpoch>,
    /// What the entries made of this node's partitions.
    image: Truth,
    nodes: Option<Arc<[PeerNode]>>,
    /// Until its shards were told for the first time.
    told: bool,
    wishes: BTreeMap<PartitionId, IsrChange>,
    is_stopping: bool,
}

#[derive(Clone, Debug)]
pub enum Event {
    /// The agent registers, or shows that it lives.
    Beat {
        node: usize,
        life: u32,
    },
    /// That comes to the oracle; it was sent at a time of the node's clock.
    Heard {
        node: usize,
        life: u32,
        known: usize,
        sent: Instant,
        stopping: bool,
    },
    /// And its answer to the agent.
    Leased {
        node: usize,
        life: u32,
        until: Instant,
    },
    /// The agent takes what is new in the log.
    Follow {
        node: usize,
        life: u32,
    },
    /// The agent sends a wish, again until something comes of it.
    Wish {
        node: usize,
        life: u32,
        partition: PartitionId,
    },
    Wished {
        node: usize,
        life: u32,
        change: IsrChange,
    },
    Refused {
        node: usize,
        life: u32,
        change: IsrChange,
        refusal: IsrRefusal,
    },
    /// The oracle looks who was not heard.
    Watch,
}

impl Keeper {
    /// Commits changes of partitions, and says who the nodes are when `nodes` says so.
    fn commit(&mut self, changed: Vec<Assignment>, nodes: bool, cx: &mut In<'_>) {
        for a in &changed {
            self.truth.insert(a.partition, a.clone());
        }
        let nodes = nodes.then(|| {
            let peers = (0..).zip(&self.members).filter_map(|(at, m)| {
                Some(PeerNode { node: node_id(at), epoch: m.epoch?, eligible: !m.fenced && !m.stopping })
            });
            peers.collect()
        });
        self.log.push(Entry { changed, nodes });
        for (node, agent) in (0..).zip(&self.agents) {
            let at = cx.now + cx.rng.tailed(&cx.config.net);
            cx.later.push((at, Event::Follow { node, life: agent.life }));
        }
    }

    fn may_lead(&self, node: NodeId) -> bool {
        let m = &self.members[index_of(node)];
        !m.fenced && !m.stopping && m.epoch.is_some()
    }

    /// Takes a node out of every ISR that has another member, and elects where a leader is missing. The changes.
    fn without(&self, gone: Option<NodeId>) -> Vec<Assignment> {
        let mut changed = Vec::new();
        for a in self.truth.values() {
            let mut next = a.clone();
            if let Some(gone) = gone {
                if next.isr.len() > 1 {
                    next.isr.retain(|&n| n != gone);
                }
                if next.leader == Some(gone) {
                    next.leader = None;
                }
            }
            if next.leader.is_none() {
                next.leader =
                    next.replicas.iter().copied().find(|n| next.isr.contains(n) && self.may_lead(*n));
            }
            if next.leader != a.leader {
                next.leader_epoch.0 += 1;
            }
            if next != *a {
                next.partition_epoch.0 += 1;
                changed.push(next);
            }
        }
        changed
    }

    fn on_heard(&mut self, node: usize, life: u32, known: usize, stopping: bool, cx: &mut In<'_>) {
        let m = &mut self.members[node];
        if life < m.life {
            return;
        }
        m.heard = cx.now;
        if life > m.life {
            let epoch = RegistrationEpoch(self.log.len() as u64 + 1);
            *m = Member { life, epoch: Some(epoch), fenced: true, stopping: false, heard: cx.now };
            // What it held in memory is gone, and what was said of it before with it.
            let changed = self.without(Some(node_id(node)));
            self.commit(changed, true, cx);
        } else if stopping && !m.stopping {
            m.stopping = true;
            let changed = self.without(Some(node_id(node)));
            self.commit(changed, true, cx);
        } else if m.fenced && known as u64 >= m.epoch.expect("it is registered").0 {
            m.fenced = false;
            let changed = self.without(None);
            self.commit(changed, true, cx);
        }
    }

    fn on_watch(&mut self, cx: &mut In<'_>) {
        cx.later.push((cx.now + Duration::from_millis(7), Event::Watch));
        if cx.now < self.away_until {
            return;
        }
        for node in 0..self.members.len() {
            let m = &mut self.members[node];
            if m.epoch.is_some() && !m.fenced && m.heard + cx.config.session < cx.now {
                m.fenced = true;
                let changed = self.without(Some(node_id(node)));
                self.commit(changed, true, cx);
            }
        }
    }

    /// R9.
    fn on_wished(&mut self, node: usize, life: u32, change: IsrChange, cx: &mut In<'_>) {
        let sender = node_id(node);
        let Some(a) = self.truth.get(&change.partition) else { return };
        let is_stale = a.leader != Some(sender)
            || a.leader_epoch != change.leader_epoch
            || a.partition_epoch != change.partition_epoch;
        // Whoever is behind hears of it by the log.
        if is_stale || self.members[node].life != life {
            return;
        }
        let is_sound = change.isr.iter().all(|(n, _)| a.replicas.contains(n))
            && change.isr.iter().any(|&(n, _)| n == sender);
        assert!(is_sound, "{sender} wishes what no leader may: {change:?} upon {a:?}");
        let eligible = |(n, epoch): &(NodeId, RegistrationEpoch)| {
            let m = &self.members[index_of(*n)];
            !m.fenced && !m.stopping && m.epoch == Some(*epoch)
        };
        if !change.isr.iter().all(eligible) {
            let at = cx.now + cx.rng.tailed(&cx.config.net);
            let refusal = IsrRefusal::Ineligible;
            cx.later.push((at, Event::Refused { node, life, change, refusal }));
            return;
        }
        let mut next = a.clone();
        next.isr = next.replicas.iter().copied().filter(|n| change.isr.iter().any(|c| c.0 == *n)).collect();
        next.partition_epoch.0 += 1;
        self.commit(vec![next], false, cx);
    }

    fn on_follow(&mut self, node: usize, cx: &mut In<'_>) {
        let life = self.agents[node].life;
        if !cx.net.is_open(cx.net.controller(), node) || !cx.net.runs(node, cx.now) {
            let at = cx.now + AGAIN + cx.net.pause_left(node, cx.now);
            if self.agents[node].known < self.log.len() {
                cx.later.push((at, Event::Follow { node, life }));
            }
            return;
        }
        while self.agents[node].known < self.log.len() {
            let known = self.agents[node].known;
            let entry = self.log[known].clone();
            let m = self.members[node];
            let agent = &mut self.agents[node];
            agent.known += 1;
            let mine = |a: &&Assignment| a.replicas.contains(&node_id(node));
            let changed: Vec<_> = entry.changed.iter().filter(mine).cloned().collect();
            agent.image.extend(changed.iter().map(|a| (a.partition, a.clone())));
            if entry.nodes.is_some() {
                agent.nodes.clone_from(&entry.nodes);
            }
            for a in &changed {
                agent.wishes.retain(|p, w| *p != a.partition || w.partition_epoch >= a.partition_epoch);
            }
            let registered = m.life == life && m.epoch == Some(RegistrationEpoch(agent.known as u64));
            if registered {
                agent.epoch = m.epoch;
            }
            if agent.told {
                let revision = Revision(agent.known as u64);
                for shard in 0..cx.config.shards[node] {
                    let at = ShardId(shard);
                    if let Some(nodes) = &entry.nodes {
                        cx.out.push((node, at, FromControl::Nodes(nodes.clone())));
                    }
                    let assign =
                        changed.iter().filter(|a| owner(cx.config, node, a.partition) == at).cloned();
                    let delta = FromControl::Delta {
                        revision,
                        view: self.agents[node].view(revision, cx.config, node),
                        assign: assign.collect(),
                        unassign: Vec::new(),
                    };
                    cx.out.push((node, at, delta));
                }
            } else {
                self.tell_all(node, cx);
            }
        }
    }

    /// Once a node's shards have recovered and its registration is known, they hear everything.
    fn tell_all(&mut self, node: usize, cx: &mut In<'_>) {
        let shards = cx.config.shards[node];
        let agent = &mut self.agents[node];
        if agent.told || agent.epoch.is_none() || agent.recovered.len() < usize::from(shards) {
            return;
        }
        agent.told = true;
        let revision = Revision(agent.known as u64);
        for shard in (0..shards).map(ShardId) {
            if let Some(nodes) = &agent.nodes {
                cx.out.push((node, shard, FromControl::Nodes(nodes.clone())));
            }
            let mine = agent.image.values().filter(|a| owner(cx.config, node, a.partition) == shard);
            let view = agent.view(revision, cx.config, node);
            let assign = mine.cloned().collect();
            cx.out.push((node, shard, FromControl::Delta { revision, view, assign, unassign: Vec::new() }));
        }
    }
}

impl Agent {
    fn view(&self, revision: Revision, config: &Config, node: usize) -> Arc<Metadata> {
        let partitions = self.image.iter().map(|(&p, a)| (p, (owner(config, node, p), a.clone())));
        Arc::new(Metadata { revision, partitions: partitions.collect() })
    }
}

/// Which shard of a node owns its replica.
fn owner(config: &Config, node: usize, partition: PartitionId) -> ShardId {
    let mixed = u64::from(partition.index.0) + partition.topic.0 as u64 * 7 + node as u64 * 3 + config.seed;
    ShardId(u16::try_from(mixed % u64::from(config.shards[node])).expect("few shards"))
}

impl Plane for Keeper {
    type Event = Event;

    fn new(config: &Config) -> Self {
        Self {
            truth: Truth::new(),
            log: Vec::new(),
            members: vec![Member::default(); config.nodes],
            agents: (0..config.nodes).map(|_| Agent::default()).collect(),
            producers_made: 0,
            away_until: Instant::ZERO,
        }
    }

    fn begin(&mut self, cx: &mut In<'_>) {
        let mut changed = Vec::new();
        for (topic, made) in (1..).map(TopicId).zip(&cx.config.topics) {
            for index in (0..made.partitions).map(PartitionIndex) {
                let first = cx.rng.index(cx.config.nodes);
                let replicas: Vec<_> =
                    (0..made.replicas).map(|n| node_id((first + n) % cx.config.nodes)).collect();
                changed.push(Assignment {
                    partition: PartitionId { topic, index },
                    leader: None,
                    leader_epoch: LeaderEpoch(0),
                    partition_epoch: PartitionEpoch(0),
                    isr: replicas.clone(),
                    replicas,
                    config: PartitionConfig {
                        durability: made.durability,
                        isr_min: made.isr_min,
                        batch_bytes_max: cx.config.batch_bytes_max,
                        ..PartitionConfig::default()
                    },
                });
            }
        }
        self.commit(changed, false, cx);
        cx.later.push((cx.now, Event::Watch));
    }

    fn start(&mut self, node: usize, cx: &mut In<'_>) -> Verdict {
        let life = cx.net.node(node).life;
        // What the node knew is durable.
        let old = std::mem::take(&mut self.agents[node]);
        let Agent { known, image, nodes, .. } = old;
        self.agents[node] = Agent { life, known, image, nodes, ..Agent::default() };
        cx.later.push((cx.now, Event::Beat { node, life }));
        cx.later.push((cx.now + AGAIN, Event::Follow { node, life }));
        Ok(())
    }

    fn down(&mut self, _: usize) {}

    fn on_said(&mut self, node: usize, shard: ShardId, said: Said, cx: &mut In<'_>) -> Verdict {
        let agent = &mut self.agents[node];
        let life = agent.life;
        match said {
            ToControl::Recovered { .. } => {
                agent.recovered.insert(shard);
                self.tell_all(node, cx);
            }
            ToControl::Applied { revision } => {
                agent.applied.insert(shard, revision);
            }
            ToControl::Request { conn, token, .. } => {
                self.producers_made += 1;
                let reply = ProducerId(self.producers_made);
                cx.out.push((node, shard, FromControl::Reply { conn, token, reply }));
            }
            ToControl::AlterIsr { changes } => {
                for change in changes {
                    let partition = change.partition;
                    agent.wishes.insert(partition, change);
                    cx.later.push((cx.now, Event::Wish { node, life, partition }));
                }
            }
            ToControl::Stopped => {
                agent.stopped.insert(shard);
            }
            ToControl::Dial { .. } | ToControl::Stats { .. } => {}
        }
        Ok(())
    }

    fn on_event(&mut self, event: Event, cx: &mut In<'_>) -> Verdict {
        let controller = cx.net.controller();
        let (away, arrival) = (cx.now < self.away_until, cx.now + cx.rng.tailed(&cx.config.net));
        match event {
            Event::Beat { node, life } if cx.net.is_life(node, life) => {
                let pause = cx.net.pause_left(node, cx.now);
                cx.later.push((cx.now + BEAT + pause, Event::Beat { node, life }));
                if pause.is_zero() && cx.net.is_open(node, controller) {
                    let agent = &self.agents[node];
                    let (known, sent) = (agent.known, cx.net.clock(node, cx.now));
                    let stopping = agent.is_stopping;
                    cx.later.push((arrival, Event::Heard { node, life, known, sent, stopping }));
                }
            }
            Event::Heard { node, life, known, sent, stopping } if !away => {
                self.on_heard(node, life, known, stopping, cx);
                let m = &self.members[node];
                if m.life == life && !m.fenced && cx.net.is_open(controller, node) {
                    let until = sent + cx.config.session;
                    cx.later.push((arrival, Event::Leased { node, life, until }));
                }
            }
            Event::Leased { node, life, until } if cx.net.is_life(node, life) => {
                let pause = cx.net.pause_left(node, cx.now);
                if !pause.is_zero() {
                    cx.later.push((cx.now + pause, Event::Leased { node, life, until }));
                } else if self.agents[node].told {
                    for shard in (0..cx.config.shards[node]).map(ShardId) {
                        cx.out.push((node, shard, FromControl::Lease { until }));
                    }
                }
            }
            Event::Follow { node, life } if cx.net.is_life(node, life) => self.on_follow(node, cx),
            Event::Wish { node, life, partition } if cx.net.is_life(node, life) => {
                let Some(change) = self.agents[node].wishes.get(&partition).cloned() else { return Ok(()) };
                let pause = cx.net.pause_left(node, cx.now);
                cx.later.push((cx.now + AGAIN * 5 + pause, Event::Wish { node, life, partition }));
                if !pause.is_zero() {
                } else if cx.net.is_open(node, controller) {
                    cx.later.push((arrival, Event::Wished { node, life, change }));
                } else if cx.rng.chance(100) {
                    // It was never sent before, or this would not be known.
                }
            }
            Event::Wished { node, life, change } if !away => self.on_wished(node, life, change, cx),
            Event::Refused { node, life, change, refusal } if cx.net.is_life(node, life) => {
                if !cx.net.is_open(controller, node) || !cx.net.runs(node, cx.now) {
                    // The wish is sent again, and refused again.
                    return Ok(());
                }
                let agent = &mut self.agents[node];
                if agent.wishes.get(&change.partition) == Some(&change) {
                    agent.wishes.remove(&change.partition);
                    let shard = owner(cx.config, node, change.partition);
                    let told = FromControl::IsrRefused {
                        partition: change.partition,
                        partition_epoch: change.partition_epoch,
                        refusal,
                    };
                    cx.out.push((node, shard, told));
                }
            }
            Event::Watch => self.on_watch(cx),
            _ => {}
        }
        Ok(())
    }

    fn stop(&mut self, node: usize, cx: &mut In<'_>) -> Verdict {
        let agent = &mut self.agents[node];
        if !agent.told || agent.is_stopping {
            return Ok(());
        }
        agent.is_stopping = true;
        // It does not wait for others to take over: a stop must be safe at any time.
        let deadline = Duration::from_secs(1);
        for shard in (0..cx.config.shards[node]).map(ShardId) {
            cx.out.push((node, shard, FromControl::Stop { deadline }));
        }
        Ok(())
    }

    fn has_stopped(&self, node: usize) -> bool {
        let agent = &self.agents[node];
        agent.life > 0
            && agent.is_stopping
            && !agent.stopped.is_empty()
            && agent.stopped.len() == agent.recovered.len()
    }

    fn disturb(&mut self, cx: &mut In<'_>) -> Verdict {
        if cx.rng.chance(200) {
            self.away_until = cx.now + cx.rng.between(cx.config.fault_lasts.start, cx.config.fault_lasts.end);
            // Nobody is fenced for what was not heard meanwhile.
            let heard = self.away_until;
            self.members.iter_mut().for_each(|m| m.heard = m.heard.max(heard));
            return Ok(());
        }
        let mut movable = Vec::new();
        for a in self.truth.values() {
            let other = |n: &&NodeId| Some(**n) != a.leader && self.may_lead(**n);
            movable.extend(a.isr.iter().filter(other).map(|&n| (a.partition, n)));
        }
        if movable.is_empty() {
            return Ok(());
        }
        let &(partition, to) = cx.rng.pick(&movable);
        let mut next = self.truth[&partition].clone();
        next.leader = Some(to);
        next.leader_epoch.0 += 1;
        next.partition_epoch.0 += 1;
        self.commit(vec![next], false, cx);
        Ok(())
    }

    fn heal(&mut self, cx: &mut In<'_>) -> Verdict {
        self.away_until = cx.now;
        Ok(())
    }

    fn truth(&self) -> &Truth {
        &self.truth
    }

    fn registration(&self, node: usize) -> Option<RegistrationEpoch> {
        self.agents[node].epoch
    }

    fn is_serving(&self, node: usize) -> bool {
        let agent = &self.agents[node];
        agent.told && !agent.is_stopping && agent.applied.len() == agent.recovered.len()
    }

    fn unrest(&self) -> Option<String> {
        if let Some((node, _)) = (0..).zip(&self.members).find(|(_, m)| m.fenced || m.stopping) {
            return Some(format!("node {} is fenced", node_id(node)));
        }
        let missing = |a: &&Assignment| a.leader.is_none() || a.isr.len() < a.replicas.len();
        let open = self.truth.values().find(missing);
        open.map(|a| format!("{} has the ISR {:?} of {:?}", a.partition, a.isr, a.replicas))
    }
}
