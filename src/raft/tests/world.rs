//! Three nodes in one process over a network that delays, loses and cuts, on disks in memory.
//!
//! Time is tokio's paused one: it goes on only when nothing is left to do. The log's threads are real, so a task of
//! each world keeps the runtime busy while any of them has a write that somebody waits for.

#![expect(clippy::disallowed_types, reason = "the control core and the log's thread share a disk")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
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

use super::super::host::{Backend, File, Folder};
use super::super::*;
use crate::control::metadata::command::RegisterNode;
use crate::net::{CallError, Class};

/// No scenario takes so long in virtual time unless something is stuck.
pub(super) const STUCK: Duration = Duration::from_secs(120);

/// A file that outlives the database on it.
#[derive(Clone, Debug, Default)]
pub(super) struct MemoryDisk(Arc<RwLock<Vec<u8>>>, pub Arc<AtomicBool>);

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
        let mut file = self.0.write().unwrap();
        let end = file.len().max(at + data.len());
        file.resize(end, 0);
        file[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn try_lock_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<bool, BackendError> {
        Err(BackendError::Unsupported)
    }
}

/// The network between the nodes.
#[derive(Clone)]
pub(super) struct Hub(pub Rc<RefCell<HubState>>);

pub(super) struct HubState {
    pub running: BTreeMap<NodeId, Raft>,
    /// What goes from the first to the second is lost.
    pub cut: BTreeSet<(NodeId, NodeId)>,
    /// Of 1000 calls, and of 1000 answers.
    pub lost: u32,
    /// Of 1000 answers to proposals.
    pub lost_answers: u32,
    /// The next answer to a part of a snapshot is lost.
    pub loses_chunk: bool,
    pub delay_ms_max: u64,
    /// When the last message of a class arrives: one class keeps its order.
    pub arrives: BTreeMap<(NodeId, NodeId, Class), Instant>,
    pub random: Xoshiro256PlusPlus,
}

impl HubState {
    pub fn loses(&mut self, from: NodeId, to: NodeId) -> bool {
        self.cut.contains(&(from, to)) || self.random.next_u32() % 1000 < self.lost
    }

    pub fn arrival(&mut self, from: NodeId, to: NodeId, class: Class) -> Instant {
        let delay = Duration::from_millis(self.random.next_u64() % (self.delay_ms_max + 1));
        let last = self.arrives.entry((from, to, class)).or_insert_with(Instant::now);
        *last = (*last).max(Instant::now() + delay);
        *last
    }
}

/// One node's way into the network.
#[derive(Clone)]
pub(super) struct Line {
    pub me: NodeId,
    pub hub: Hub,
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
            let lost = match kind {
                PROPOSE => hub.random.next_u32() % 1000 < hub.lost_answers,
                SNAPSHOT_CHUNK => std::mem::take(&mut hub.loses_chunk),
                _ => false,
            };
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
pub(super) struct Seen {
    pub image: Image,
    pub committed: Vec<ProposalId>,
    pub failed: Vec<(ProposalId, String)>,
    pub installed: u64,
    pub failure: Option<RaftError>,
    pub terms: Vec<u64>,
}

pub(super) struct Node {
    pub disk: MemoryDisk,
    /// These two fail when `disk` does.
    pub records: MemoryDisk,
    pub journal: MemoryDisk,
    pub folder: PathBuf,
    /// There is no space for snapshots.
    pub full: Arc<AtomicBool>,
    pub incarnation: u64,
    pub raft: Option<Raft>,
    pub seen: Rc<RefCell<Seen>>,
    pub proposals: u64,
}

impl Node {
    pub fn folder(&self) -> Arc<dyn Folder> {
        Arc::new(Mixed {
            files: Directory::make(&self.folder).unwrap(),
            disk: self.disk.clone(),
            records: self.records.clone(),
            journal: self.journal.clone(),
            full: Arc::clone(&self.full),
        })
    }
}

/// Snapshots in the file system, and the log in memory.
#[derive(Debug)]
struct Mixed {
    /// There is no space for snapshots.
    full: Arc<AtomicBool>,
    pub files: Directory,
    pub disk: MemoryDisk,
    pub records: MemoryDisk,
    pub journal: MemoryDisk,
}

impl Folder for Mixed {
    fn path(&self) -> &Path {
        self.files.path()
    }

    fn backend(&self, name: &str) -> Result<Backend, redb::DatabaseError> {
        let disk = if name.ends_with("-ahead") { &self.records } else { &self.disk };
        Ok(Backend(Box::new(disk.clone())))
    }

    fn exists(&self, _name: &str) -> io::Result<bool> {
        Ok(true)
    }

    fn direct(&self, _name: &str) -> io::Result<Backend> {
        Ok(Backend(Box::new(self.journal.clone())))
    }

    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn File>>> {
        self.files.open(name)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        if self.full.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.files.create(name)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.files.rename(from, to)
    }

    fn sync(&self) -> io::Result<()> {
        self.files.sync()
    }
}

pub(super) struct World {
    pub hub: Hub,
    pub nodes: BTreeMap<NodeId, Node>,
    pub root: PathBuf,
    pub config: RaftConfig,
}

pub(super) const A: NodeId = NodeId(1);
pub(super) const B: NodeId = NodeId(2);
pub(super) const C: NodeId = NodeId(3);
pub(super) const D: NodeId = NodeId(4);

pub(super) fn member(node: NodeId) -> Member {
    Member { disk: DiskId(u128::from(node.0)), cluster_addr: format!("node-{node}:9093") }
}

/// Runs a test in virtual time.
pub(super) fn run(test: impl AsyncFnOnce()) {
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
    pub fn new(seed: u64) -> Self {
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
            loses_chunk: false,
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
    pub async fn of_three(seed: u64) -> Self {
        let mut world = Self::new(seed);
        for node in [A, B, C] {
            world.start(node).await;
        }
        world.found(&[A, B, C]).await;
        world.leader().await;
        world
    }

    pub async fn start(&mut self, node: NodeId) {
        let folder = self.root.join(node.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        let disk = MemoryDisk::default();
        let fresh = Node {
            records: MemoryDisk(Arc::default(), Arc::clone(&disk.1)),
            journal: MemoryDisk(Arc::default(), Arc::clone(&disk.1)),
            disk,
            folder,
            full: Arc::default(),
            incarnation: 0,
            raft: None,
            seen: Rc::default(),
            proposals: 0,
        };
        let state = self.nodes.entry(node).or_insert(fresh);
        assert!(state.raft.is_none(), "it runs already");
        state.incarnation += 1;
        let opened = open_in(state.folder(), member(node).disk).unwrap();
        let config = RaftConfig { node, incarnation: Incarnation(state.incarnation), ..self.config.clone() };
        let line = Line { me: node, hub: self.hub.clone() };
        state.seen = Rc::new(RefCell::new(Seen { image: opened.image, ..Seen::default() }));
        let (raft, events) = Raft::start(config, opened.storage, line).await.unwrap();
        tokio::task::spawn_local(control_loop(Rc::clone(&state.seen), events));
        self.hub.0.borrow_mut().running.insert(node, raft.clone());
        state.raft = Some(raft);
    }

    /// All that run but this one.
    pub fn others(&self, node: NodeId) -> Vec<NodeId> {
        self.running().into_iter().filter(|other| *other != node).collect()
    }

    pub async fn found(&self, nodes: &[NodeId]) {
        let members: BTreeMap<NodeId, Member> = nodes.iter().map(|&node| (node, member(node))).collect();
        let all = nodes.iter().map(|node| self.raft(*node).initialize(&members));
        for result in join_all(all).await {
            assert!(matches!(result, Ok(()) | Err(AdminError::Initialized)), "{result:?}");
        }
    }

    /// Nothing gets out any more, then the node is gone.
    pub async fn kill(&mut self, node: NodeId) {
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

    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.hub.0.borrow_mut().cut.insert((from, to));
    }

    pub fn heal(&self, from: NodeId, to: NodeId) {
        self.hub.0.borrow_mut().cut.remove(&(from, to));
    }

    pub fn cut_both(&self, a: NodeId, b: NodeId) {
        self.cut(a, b);
        self.cut(b, a);
    }

    pub fn heal_all(&self) {
        self.hub.0.borrow_mut().cut.clear();
    }

    pub fn raft(&self, node: NodeId) -> &Raft {
        self.nodes[&node].raft.as_ref().expect("it runs")
    }

    pub fn running(&self) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, state)| state.raft.is_some()).map(|(node, _)| *node).collect()
    }

    pub fn seen(&self, node: NodeId) -> std::cell::Ref<'_, Seen> {
        self.nodes[&node].seen.borrow()
    }

    pub async fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
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
    pub async fn leader_of(&self, nodes: &[NodeId]) -> NodeId {
        let agreed = |world: &Self| {
            let leaders: BTreeSet<_> = nodes.iter().map(|node| world.raft(*node).status().leader).collect();
            let leader = leaders.first().copied().flatten().filter(|leader| nodes.contains(leader));
            (leaders.len() == 1).then_some(leader).flatten()
        };
        self.until("no leader", |world| agreed(world).is_some()).await;
        agreed(self).expect("it was just there")
    }

    pub async fn leader(&self) -> NodeId {
        self.leader_of(&self.running()).await
    }

    pub fn follower(&self, leader: NodeId) -> NodeId {
        self.running().into_iter().find(|node| *node != leader).expect("there are others")
    }

    pub fn give(&mut self, node: NodeId, entry: &Entry) -> ProposalId {
        let state = self.nodes.get_mut(&node).unwrap();
        state.proposals += 1;
        let id = ProposalId(state.proposals);
        state.raft.as_ref().expect("it runs").propose(id, entry);
        id
    }

    /// Proposes a change and waits until it is applied where it was proposed.
    pub async fn commit(&mut self, node: NodeId, entry: &Entry) {
        let id = self.give(node, entry);
        self.until("a proposal", |world| world.seen(node).committed.contains(&id)).await;
    }

    /// One producer id: how many were taken counts how often this was applied.
    pub async fn count(&mut self, node: NodeId) {
        self.commit(node, &take_one()).await;
    }

    /// All that run have applied the same, and so much.
    pub async fn same(&self, taken: u64) {
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

    pub async fn end(mut self) {
        for node in self.running() {
            self.kill(node).await;
        }
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

pub(super) fn register() -> Entry {
    let command = RegisterNode { node: A, incarnation: Incarnation(1), ..RegisterNode::default() };
    Entry { commands: vec![Command::RegisterNode(command)] }
}

pub(super) fn take_one() -> Entry {
    Entry { commands: vec![Command::ReserveProducerIds { node: A, count: 1 }] }
}
