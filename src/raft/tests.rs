//! Three nodes in one process over a network that delays, loses and cuts, on disks in memory.
//!
//! Time is tokio's paused one: it goes on only when nothing is left to do. The log's threads are real, so a task of
//! each world keeps the runtime busy while any of them has a write that somebody waits for.

#![expect(clippy::disallowed_types, reason = "the control core and the log's thread share a disk")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use futures_util::future::join_all;
use highwater_shards::ids::ProducerId;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};
use redb::{BackendError, StorageBackend};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::types::{Tag, Vote};
use super::wire::Propose;
use super::*;
use crate::control::metadata::command::RegisterNode;
use crate::net::{CallError, Class};

/// No scenario takes so long in virtual time unless something is stuck.
const STUCK: Duration = Duration::from_secs(120);

/// A file that outlives the database on it.
#[derive(Clone, Debug, Default)]
struct MemoryDisk(Arc<RwLock<Vec<u8>>>, Arc<AtomicBool>);

impl StorageBackend for MemoryDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.read().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        out.copy_from_slice(&self.0.read().unwrap()[at..at + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.write().unwrap().resize(usize::try_from(len).unwrap(), 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        match self.1.load(Ordering::Relaxed) {
            true => Err(io::Error::other("the disk is gone")),
            false => Ok(()),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        self.0.write().unwrap()[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn try_lock_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<bool, BackendError> {
        Err(BackendError::Unsupported)
    }
}

/// The network between the nodes.
#[derive(Clone)]
struct Hub(Rc<RefCell<HubState>>);

struct HubState {
    running: BTreeMap<NodeId, Raft>,
    /// What goes from the first to the second is lost.
    cut: BTreeSet<(NodeId, NodeId)>,
    /// Of 1000 calls, and of 1000 answers.
    lost: u32,
    /// Of 1000 answers to proposals.
    lost_answers: u32,
    delay_ms_max: u64,
    /// When the last message of a class arrives: one class keeps its order.
    arrives: BTreeMap<(NodeId, NodeId, Class), Instant>,
    random: Xoshiro256PlusPlus,
}

impl HubState {
    fn loses(&mut self, from: NodeId, to: NodeId) -> bool {
        self.cut.contains(&(from, to)) || self.random.next_u32() % 1000 < self.lost
    }

    fn arrival(&mut self, from: NodeId, to: NodeId, class: Class) -> Instant {
        let delay = Duration::from_millis(self.random.next_u64() % (self.delay_ms_max + 1));
        let last = self.arrives.entry((from, to, class)).or_insert_with(Instant::now);
        *last = (*last).max(Instant::now() + delay);
        *last
    }
}

/// One node's way into the network.
#[derive(Clone)]
struct Line {
    me: NodeId,
    hub: Hub,
}

impl Network for Line {
    async fn call(
        &self,
        to: NodeId,
        class: Class,
        kind: u16,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, CallError> {
        let until = Instant::now() + deadline;
        let lost = async |until| {
            sleep_until(until).await;
            Err(CallError::TimedOut)
        };
        let (goes, arrival) = {
            let mut hub = self.hub.0.borrow_mut();
            (!hub.loses(self.me, to), hub.arrival(self.me, to, class))
        };
        if !goes {
            return lost(until).await;
        }
        sleep_until(arrival).await;
        let Some(raft) = self.hub.0.borrow().running.get(&to).cloned() else {
            return Err(CallError::Unreachable(format!("node {to} is not running")));
        };
        let (call, answer) = Incoming::new(self.me, kind, body);
        raft.on_call(call);
        let Ok(answer) = tokio::time::timeout_at(until, answer).await else {
            return Err(CallError::TimedOut);
        };
        let (comes, arrival) = {
            let mut hub = self.hub.0.borrow_mut();
            let lost = kind == PROPOSE && hub.random.next_u32() % 1000 < hub.lost_answers;
            (!lost && !hub.loses(to, self.me), hub.arrival(to, self.me, class))
        };
        if !comes {
            return lost(until).await;
        }
        sleep_until(arrival).await;
        match answer {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(why)) => Err(CallError::Refused(why)),
            Err(_) => Err(CallError::Refused("dropped".into())),
        }
    }
}

/// What a node's control loop has seen.
#[derive(Default)]
struct Seen {
    image: Image,
    committed: Vec<ProposalId>,
    failed: Vec<(ProposalId, String)>,
    installed: u64,
    failure: Option<RaftError>,
    terms: Vec<u64>,
}

struct Node {
    disk: MemoryDisk,
    folder: PathBuf,
    incarnation: u64,
    raft: Option<Raft>,
    seen: Rc<RefCell<Seen>>,
    proposals: u64,
}

struct World {
    hub: Hub,
    nodes: BTreeMap<NodeId, Node>,
    root: PathBuf,
    config: RaftConfig,
}

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);
const D: NodeId = NodeId(4);

fn member(node: NodeId) -> Member {
    Member { disk: DiskId(u128::from(node.0)), cluster_addr: format!("node-{node}:9093") }
}

/// Runs a test in virtual time.
fn run(test: impl AsyncFnOnce()) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, test());
}

async fn control_loop(seen: Rc<RefCell<Seen>>, mut events: mpsc::Receiver<Event>) {
    while let Some(event) = events.recv().await {
        let mut seen = seen.borrow_mut();
        match event {
            Event::Input(Input::Committed { revision, proposal, entry }) => {
                seen.image.apply(revision, &entry);
                seen.committed.extend(proposal);
            }
            Event::Input(Input::ProposalFailed { proposal, reason }) => seen.failed.push((proposal, reason)),
            Event::Input(Input::Image(image)) => {
                assert!(image.revision >= seen.image.revision, "an image never goes back");
                seen.image = *image;
                seen.installed += 1;
            }
            Event::Input(Input::Leadership { term, .. }) => seen.terms.push(term),
            Event::WantImage { revision, reply } => {
                assert_eq!(revision, seen.image.revision);
                let _ = reply.send(Box::new(seen.image.clone()));
            }
            Event::Failed(error) => seen.failure = Some(error),
            other => panic!("{other:?}"),
        }
    }
}

impl World {
    fn new(seed: u64) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("highwater-raft-{}-{number}", std::process::id()));
        // Left over by a test process of that number that was killed.
        let _ = std::fs::remove_dir_all(&root);
        let hub = Hub(Rc::new(RefCell::new(HubState {
            running: BTreeMap::new(),
            cut: BTreeSet::new(),
            lost: 0,
            lost_answers: 0,
            delay_ms_max: 3,
            arrives: BTreeMap::new(),
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
        })));
        let busy = hub.clone();
        tokio::task::spawn_local(async move {
            loop {
                let writing = busy.0.borrow().running.values().any(|raft| raft.0.log.is_writing());
                match writing {
                    true => tokio::task::yield_now().await,
                    false => sleep(Duration::from_millis(1)).await,
                }
            }
        });
        let config = RaftConfig::new(A, Incarnation(1));
        Self { hub, nodes: BTreeMap::new(), root, config }
    }

    /// Three nodes that have founded a cluster and have a leader.
    async fn of_three(seed: u64) -> Self {
        let mut world = Self::new(seed);
        for node in [A, B, C] {
            world.start(node).await;
        }
        world.found(&[A, B, C]).await;
        world.leader().await;
        world
    }

    async fn start(&mut self, node: NodeId) {
        let folder = self.root.join(node.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        let fresh = Node {
            disk: MemoryDisk::default(),
            folder,
            incarnation: 0,
            raft: None,
            seen: Rc::default(),
            proposals: 0,
        };
        let state = self.nodes.entry(node).or_insert(fresh);
        assert!(state.raft.is_none(), "it runs already");
        state.incarnation += 1;
        let disk = state.disk.clone();
        let opener = Box::new(move |builder: &redb::Builder| builder.create_with_backend(disk.clone()));
        let opened = open_with(&state.folder, opener, member(node).disk).unwrap();
        let config = RaftConfig { node, incarnation: Incarnation(state.incarnation), ..self.config.clone() };
        let line = Line { me: node, hub: self.hub.clone() };
        state.seen = Rc::new(RefCell::new(Seen { image: opened.image, ..Seen::default() }));
        let (raft, events) = Raft::start(config, opened.storage, line).await.unwrap();
        tokio::task::spawn_local(control_loop(Rc::clone(&state.seen), events));
        self.hub.0.borrow_mut().running.insert(node, raft.clone());
        state.raft = Some(raft);
    }

    async fn found(&self, nodes: &[NodeId]) {
        let members: BTreeMap<NodeId, Member> = nodes.iter().map(|&node| (node, member(node))).collect();
        let all = nodes.iter().map(|node| self.raft(*node).initialize(&members));
        for result in join_all(all).await {
            assert!(matches!(result, Ok(()) | Err(AdminError::Initialized)), "{result:?}");
        }
    }

    /// Nothing gets out any more, then the node is gone.
    async fn kill(&mut self, node: NodeId) {
        self.hub.0.borrow_mut().running.remove(&node);
        let others: Vec<NodeId> = self.nodes.keys().copied().filter(|other| *other != node).collect();
        for &other in &others {
            self.cut(node, other);
        }
        let raft = self.nodes.get_mut(&node).unwrap().raft.take().expect("it runs");
        raft.shutdown().await;
        drop(raft);
        // What the group's tasks hold is dropped when they have come to their ends.
        sleep(Duration::from_millis(50)).await;
        for &other in &others {
            self.heal(node, other);
        }
    }

    fn cut(&self, from: NodeId, to: NodeId) {
        self.hub.0.borrow_mut().cut.insert((from, to));
    }

    fn heal(&self, from: NodeId, to: NodeId) {
        self.hub.0.borrow_mut().cut.remove(&(from, to));
    }

    fn cut_both(&self, a: NodeId, b: NodeId) {
        self.cut(a, b);
        self.cut(b, a);
    }

    fn heal_all(&self) {
        self.hub.0.borrow_mut().cut.clear();
    }

    fn raft(&self, node: NodeId) -> &Raft {
        self.nodes[&node].raft.as_ref().expect("it runs")
    }

    fn running(&self) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, state)| state.raft.is_some()).map(|(node, _)| *node).collect()
    }

    fn seen(&self, node: NodeId) -> std::cell::Ref<'_, Seen> {
        self.nodes[&node].seen.borrow()
    }

    async fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let waited = timeout(STUCK, async {
            while !holds(self) {
                for node in self.running() {
                    assert!(self.seen(node).failure.is_none(), "{node}: {:?}", self.seen(node).failure);
                }
                sleep(Duration::from_millis(10)).await;
            }
        });
        if waited.await.is_err() {
            for node in self.running() {
                println!("{:?}", self.raft(node).status());
            }
            panic!("stuck: {what}");
        }
    }

    /// Who leads in the eyes of all of them.
    async fn leader_of(&self, nodes: &[NodeId]) -> NodeId {
        let agreed = |world: &Self| {
            let leaders: BTreeSet<_> = nodes.iter().map(|node| world.raft(*node).status().leader).collect();
            let leader = leaders.first().copied().flatten().filter(|leader| nodes.contains(leader));
            (leaders.len() == 1).then_some(leader).flatten()
        };
        self.until("no leader", |world| agreed(world).is_some()).await;
        agreed(self).expect("it was just there")
    }

    async fn leader(&self) -> NodeId {
        self.leader_of(&self.running()).await
    }

    fn follower(&self, leader: NodeId) -> NodeId {
        self.running().into_iter().find(|node| *node != leader).expect("there are others")
    }

    fn give(&mut self, node: NodeId, entry: &Entry) -> ProposalId {
        let state = self.nodes.get_mut(&node).unwrap();
        state.proposals += 1;
        let id = ProposalId(state.proposals);
        state.raft.as_ref().expect("it runs").propose(id, entry);
        id
    }

    /// Proposes a change and waits until it is applied where it was proposed.
    async fn commit(&mut self, node: NodeId, entry: &Entry) {
        let id = self.give(node, entry);
        self.until("a proposal", |world| world.seen(node).committed.contains(&id)).await;
    }

    /// One producer id: how many were taken counts how often this was applied.
    async fn count(&mut self, node: NodeId) {
        self.commit(node, &take_one()).await;
    }

    /// All that run have applied the same, and so much.
    async fn same(&self, taken: u64) {
        self.until("the nodes differ", |world| {
            world.running().iter().all(|node| world.seen(*node).image.producer_id_next == ProducerId(taken))
        })
        .await;
        let nodes = self.running();
        self.until("the revisions differ", |world| {
            let revisions: BTreeSet<_> = nodes.iter().map(|node| world.seen(*node).image.revision).collect();
            revisions.len() == 1
        })
        .await;
        for pair in nodes.windows(2) {
            assert_eq!(self.seen(pair[0]).image, self.seen(pair[1]).image);
        }
    }

    async fn end(mut self) {
        for node in self.running() {
            self.kill(node).await;
        }
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

fn register() -> Entry {
    let command = RegisterNode { node: A, incarnation: Incarnation(1), ..RegisterNode::default() };
    Entry { commands: vec![Command::RegisterNode(command)] }
}

fn take_one() -> Entry {
    Entry { commands: vec![Command::ReserveProducerIds { node: A, count: 1 }] }
}

#[test]
fn three_nodes_founded_at_once_elect_one_leader_and_apply_the_same() {
    run(async || {
        let mut world = World::of_three(1).await;
        let leader = world.leader().await;
        world.commit(leader, &register()).await;
        for node in [A, B, C] {
            world.count(node).await;
        }
        world.same(3).await;
        let status = world.raft(leader).status();
        assert_eq!(status.voters, BTreeSet::from([A, B, C]));
        assert_eq!(status.members[&B], member(B));
        let follower = world.follower(leader);
        world
            .until("progress", |world| {
                let status = world.raft(leader).status();
                status.progress[&follower].matched == status.last_log
            })
            .await;
        let stats = world.raft(leader).stats();
        assert!(stats.forwarded >= 2 && !stats.proposal_nanos.is_empty() && stats.flushes > 0);
        world.end().await;
    });
}

#[test]
fn killed_leaders_are_replaced_and_nothing_committed_is_lost() {
    run(async || {
        let mut world = World::of_three(2).await;
        let leader = world.leader().await;
        world.commit(leader, &register()).await;
        let mut taken = 0;
        for _ in 0..8 {
            let leader = world.leader().await;
            let term = world.raft(leader).status().term;
            world.count(leader).await;
            world.kill(leader).await;
            let killed = Instant::now();
            let next = world.leader().await;
            assert!(world.raft(next).status().term > term);
            assert!(killed.elapsed() < Duration::from_millis(1500), "{:?}", killed.elapsed());
            world.count(next).await;
            world.start(leader).await;
            taken += 2;
            world.same(taken).await;
        }
        world.end().await;
    });
}

#[test]
fn a_node_far_behind_catches_up_by_a_snapshot() {
    run(async || {
        let mut world = World::of_three(3).await;
        let leader = world.leader().await;
        world.commit(leader, &register()).await;
        let behind = world.follower(leader);
        world.same(0).await;
        world.kill(behind).await;
        let leader = world.leader().await;
        for _ in 0..50 {
            let probes = (0..2000).map(|n| world.raft(leader).probe(Bytes::from(vec![n as u8; 20])));
            for result in join_all(probes).await {
                result.unwrap();
            }
            world.count(leader).await;
        }
        let status = world.raft(leader).status();
        assert!(status.last_log > Some(100_000) && status.purged > Some(80_000), "{status:?}");
        world.start(behind).await;
        world.same(50).await;
        assert!(world.seen(behind).installed >= 1);
        assert!(world.raft(behind).stats().snapshots_installed >= 1);
        assert!(world.raft(leader).stats().snapshots_sent >= 1);
        // And it goes on from there after another start.
        world.count(behind).await;
        world.kill(behind).await;
        world.start(behind).await;
        assert!(
            world.seen(behind).image.producer_id_next >= ProducerId(50),
            "from the snapshot, before any leader"
        );
        world.same(51).await;
        world.end().await;
    });
}

#[test]
fn a_leader_that_one_follower_does_not_reach_goes_on_leading() {
    run(async || {
        let mut world = World::of_three(4).await;
        let leader = world.leader().await;
        world.commit(leader, &register()).await;
        let (near, far) =
            (world.follower(leader), world.running().into_iter().rfind(|n| *n != leader).unwrap());
        assert_ne!(near, far);
        let term = world.raft(leader).status().term;
        world.cut_both(leader, far);
        for _ in 0..20 {
            sleep(Duration::from_millis(500)).await;
            world.count(leader).await;
        }
        assert_eq!(
            world.raft(leader).status().term,
            term,
            "votes of the one that hears nothing disturb nobody"
        );
        assert_eq!(world.raft(near).status().leader, Some(leader));
        world.heal_all();
        world.same(20).await;
        assert_eq!(world.raft(far).status().term, term);
        world.end().await;
    });
}

#[test]
fn a_leader_that_hears_no_answers_gives_way() {
    run(async || {
        let mut world = World::of_three(5).await;
        let leader = world.leader().await;
        world.commit(leader, &register()).await;
        let others: Vec<NodeId> = world.running().into_iter().filter(|node| *node != leader).collect();
        // Its heartbeats go on keeping the others from electing one of them, were it not to go quiet.
        for &other in &others {
            world.cut(other, leader);
        }
        let next = world.leader_of(&others).await;
        world.count(next).await;
        world.heal_all();
        world.count(leader).await;
        world.same(2).await;
        world.end().await;
    });
}

#[test]
fn a_minority_takes_no_changes_and_heals_by_itself() {
    run(async || {
        let mut world = World::of_three(6).await;
        let old = world.leader().await;
        world.commit(old, &register()).await;
        let others: Vec<NodeId> = world.running().into_iter().filter(|node| *node != old).collect();
        for &other in &others {
            world.cut_both(old, other);
        }
        let next = world.leader_of(&others).await;
        sleep(Duration::from_secs(2)).await;
        let refused = world.give(old, &take_one());
        world.until("a refusal", |world| world.seen(old).failed.iter().any(|(id, _)| *id == refused)).await;
        let reason = world.seen(old).failed[0].1.clone();
        assert!(reason.contains("leader"), "{reason}");
        world.count(next).await;
        assert_eq!(world.seen(old).image.producer_id_next, ProducerId(0));
        world.heal_all();
        world.count(old).await;
        world.same(2).await;
        world.end().await;
    });
}

#[test]
fn proposals_of_a_follower_are_applied_once_when_answers_are_lost() {
    run(async || {
        let mut world = World::of_three(7).await;
        let leader = world.leader().await;
        world.commit(leader, &register()).await;
        world.hub.0.borrow_mut().lost_answers = 500;
        world.hub.0.borrow_mut().lost = 50;
        let follower = world.follower(leader);
        let mut taken = 0;
        for round in 0..40 {
            world.count(follower).await;
            taken += 1;
            if round % 10 == 4 {
                // What the follower asks comes through; neither answers nor entries come back for a while.
                let leader = world.leader().await;
                let id = world.give(follower, &take_one());
                taken += 1;
                world.cut(leader, follower);
                sleep(Duration::from_secs(13)).await;
                world.heal_all();
                world
                    .until("a proposal in doubt", |world| world.seen(follower).committed.contains(&id))
                    .await;
            }
            if round % 10 == 9 {
                // Leaders come and go meanwhile.
                let leader = world.raft(follower).status().leader.unwrap_or(follower);
                let id = world.give(follower, &take_one());
                taken += 1;
                if leader != follower {
                    world.kill(leader).await;
                    world.start(leader).await;
                }
                world
                    .until("a proposal in doubt", |world| world.seen(follower).committed.contains(&id))
                    .await;
            }
        }
        world.hub.0.borrow_mut().lost_answers = 0;
        world.hub.0.borrow_mut().lost = 0;
        world.same(taken).await;
        let stats = world.raft(follower).stats();
        assert!(stats.proposals_repeated > 0, "some answers were lost");
        let duplicates: u64 = world.running().iter().map(|node| world.raft(*node).stats().duplicates).sum();
        assert!(duplicates > 0, "some proposals came twice into the log");
        {
            let seen = world.seen(follower);
            let once: BTreeSet<ProposalId> = seen.committed.iter().copied().collect();
            assert_eq!(once.len(), seen.committed.len(), "each is told once");
            assert!(seen.failed.is_empty());
        }
        world.end().await;
    });
}

#[test]
fn leadership_moves_where_it_is_told() {
    run(async || {
        let mut world = World::of_three(8).await;
        let mut leader = world.leader().await;
        world.commit(leader, &register()).await;
        let moves: Vec<NodeId> = world.running().into_iter().filter(|node| *node != leader).collect();
        for to in moves {
            assert!(matches!(
                world.raft(to).transfer_leader(leader, STUCK).await,
                Err(AdminError::NotLeader { .. })
            ));
            let begun = Instant::now();
            world.raft(leader).transfer_leader(to, Duration::from_secs(10)).await.unwrap();
            assert!(begun.elapsed() < Duration::from_millis(300), "{:?}", begun.elapsed());
            leader = world.leader().await;
            assert_eq!(leader, to);
            world.count(leader).await;
        }
        world.same(2).await;
        world.end().await;
    });
}

#[test]
fn members_come_and_go() {
    run(async || {
        let mut world = World::of_three(9).await;
        let leader = world.leader().await;
        world.commit(leader, &register()).await;
        world.start(D).await;
        let follower = world.follower(leader);
        let refused = world.raft(follower).add_learner(D, member(D)).await;
        assert_eq!(refused, Err(AdminError::NotLeader { leader: Some(leader) }));
        world.raft(leader).add_learner(D, member(D)).await.unwrap();
        world.raft(leader).add_learner(D, member(D)).await.unwrap();
        let replaced = Member { disk: DiskId(99), ..member(D) };
        let refused = world.raft(leader).add_learner(D, replaced).await.unwrap_err();
        assert_eq!(refused, AdminError::DiskReplaced { node: D });
        assert!(refused.to_string().contains("remove the node, then join under a new id"));
        world.count(D).await;
        world.raft(leader).promote(D).await.unwrap();
        assert_eq!(world.raft(leader).status().voters, BTreeSet::from([A, B, C, D]));
        world.raft(leader).demote(follower).await.unwrap();
        assert_eq!(world.raft(leader).status().learners, BTreeSet::from([follower]));
        world.raft(leader).remove(follower).await.unwrap();
        let status = world.raft(leader).status();
        assert!(!status.members.contains_key(&follower), "{status:?}");
        assert_eq!(world.raft(leader).remove(follower).await, Err(AdminError::UnknownNode(follower)));
        world.kill(follower).await;
        world.count(D).await;
        world.same(2).await;
        // The leader itself can be removed as well; another one takes over.
        world.raft(leader).remove(leader).await.unwrap();
        let rest: Vec<NodeId> = world.running().into_iter().filter(|node| *node != leader).collect();
        let next = world.leader_of(&rest).await;
        world.kill(leader).await;
        world.count(next).await;
        world.same(3).await;
        world.end().await;
    });
}

#[test]
fn a_sole_voter_leads_at_once_and_starts_from_snapshot_and_log() {
    run(async || {
        let mut world = World::new(10);
        world.config.snapshot_every = 50;
        world.config.keep_entries = 10;
        world.start(A).await;
        world.found(&[A]).await;
        world.commit(A, &register()).await;
        for life in 1..5 {
            for _ in 0..30 {
                world.count(A).await;
            }
            world.kill(A).await;
            let begun = Instant::now();
            world.start(A).await;
            assert!(world.seen(A).image.producer_id_next >= ProducerId(30 * life - 1), "all that was known");
            world.leader().await;
            world.same(30 * life).await;
            assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
        }
        let status = world.raft(A).status();
        assert!(status.snapshot > Some(50), "{status:?}");
        world.end().await;
    });
}

#[test]
fn a_log_without_the_snapshot_it_relies_on_is_refused() {
    run(async || {
        let mut world = World::new(11);
        world.config.snapshot_every = 50;
        world.config.keep_entries = 10;
        world.start(A).await;
        world.found(&[A]).await;
        world.commit(A, &register()).await;
        for _ in 0..400 {
            world.count(A).await;
        }
        world.kill(A).await;
        let state = &world.nodes[&A];
        std::fs::remove_file(state.folder.join("snapshot")).unwrap();
        let disk = state.disk.clone();
        let opener = Box::new(move |builder: &redb::Builder| builder.create_with_backend(disk.clone()));
        let refused = open_with(&state.folder, opener, member(A).disk).err().expect("refused");
        assert!(refused.to_string().contains("snapshot"), "{refused}");
        world.end().await;
    });
}

#[test]
fn a_node_whose_disk_fails_stops_and_the_others_go_on() {
    run(async || {
        let mut world = World::of_three(13).await;
        let leader = world.leader().await;
        world.commit(leader, &register()).await;
        world.nodes[&leader].disk.1.store(true, Ordering::Relaxed);
        world.give(leader, &take_one());
        let stopped = timeout(STUCK, async {
            while world.seen(leader).failure.is_none() {
                sleep(Duration::from_millis(10)).await;
            }
        });
        stopped.await.expect("it says that it cannot go on");
        let reason = world.seen(leader).failure.as_ref().map(ToString::to_string).unwrap();
        assert!(reason.contains("the disk is gone"), "{reason}");
        world.kill(leader).await;
        let next = world.leader().await;
        world.count(next).await;
        world.end().await;
    });
}

#[test]
fn a_node_that_speaks_for_another_is_refused() {
    run(async || {
        let mut world = World::of_three(12).await;
        let leader = world.leader().await;
        world.commit(leader, &register()).await;
        let follower = world.follower(leader);
        let term = world.raft(leader).status().term;
        let ask = async |from: NodeId, kind: u16, body: Bytes| {
            let (call, answer) = Incoming::new(from, kind, body);
            world.raft(follower).on_call(call);
            answer.await.unwrap().map(drop)
        };
        let vote = |node: NodeId, term: u64| openraft::raft::VoteRequest::<TypeConfig> {
            vote: Vote::new(term, raft_id(node)),
            last_log_id: None,
            leadership_transfer: true,
        };
        let forged = ask(A, VOTE, wire::encode(VOTE, &vote(B, term + 9))).await.unwrap_err();
        assert!(forged.contains("node 1 speaks for node 2"), "{forged}");
        let append = |node: NodeId, first: u64| openraft::raft::AppendEntriesRequest::<TypeConfig> {
            vote: Vote::new_committed(term + 9, raft_id(node)),
            prev_log_id: None,
            entries: vec![types::LogEntry {
                log_id: types::LogId::new_term_index(1, first),
                payload: openraft::EntryPayload::Blank,
            }],
            leader_commit: None,
        };
        assert!(ask(A, APPEND, wire::encode(APPEND, &append(B, 0))).await.is_err());
        let gap = ask(A, APPEND, wire::encode(APPEND, &append(A, 7))).await.unwrap_err();
        assert!(gap.contains("cannot follow"), "{gap}");
        let tag = Some(Tag { node: B, incarnation: 1, sequence: 1 });
        let propose = Propose(Payload::Entry { tag, body: Bytes::new() });
        assert!(ask(A, PROPOSE, wire::encode(PROPOSE, &propose)).await.is_err());
        assert!(ask(A, 0x01ff, Bytes::new()).await.is_err());
        assert!(ask(A, VOTE, Bytes::from_static(b"junk")).await.is_err());
        assert_eq!(world.raft(follower).status().term, term, "nothing of it came to openraft");
        assert_eq!(world.raft(follower).stats().calls_refused, 6);
        world.end().await;
    });
}

#[test]
fn changes_come_through_a_network_that_delays_loses_and_cuts() {
    for seed in 100..106 {
        run(async || {
            let mut world = World::of_three(seed).await;
            let leader = world.leader().await;
            world.commit(leader, &register()).await;
            world.hub.0.borrow_mut().lost = 60;
            world.hub.0.borrow_mut().delay_ms_max = 40;
            let mut given: BTreeMap<NodeId, Vec<ProposalId>> = BTreeMap::new();
            for _ in 0..30 {
                let draw = world.hub.0.borrow_mut().random.next_u32();
                let pair = [(A, B), (B, C), (A, C)][(draw % 3) as usize];
                match draw % 7 {
                    0 => world.cut_both(pair.0, pair.1),
                    1 => world.cut(pair.0, pair.1),
                    2 | 3 => world.heal_all(),
                    _ => {}
                }
                let node = [A, B, C][(draw / 8 % 3) as usize];
                let id = world.give(node, &take_one());
                given.entry(node).or_default().push(id);
                sleep(Duration::from_millis(u64::from(draw / 64 % 2000))).await;
            }
            world.heal_all();
            world.hub.0.borrow_mut().lost = 0;
            world
                .until("answers to all", |world| {
                    given.iter().all(|(node, ids)| {
                        let seen = world.seen(*node);
                        let settled =
                            |id| seen.committed.contains(id) != seen.failed.iter().any(|(f, _)| f == id);
                        ids.iter().all(settled)
                    })
                })
                .await;
            let committed = given.iter().map(|(node, ids)| {
                ids.iter().filter(|id| world.seen(*node).committed.contains(id)).count() as u64
            });
            let committed = committed.sum();
            world.same(committed).await;
            world.end().await;
        });
    }
}
