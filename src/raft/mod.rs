//! The Raft group of the metadata: openraft on redb, behind proposals in and committed entries out.
//!
//! Driver; control core, in a `LocalSet` of its tokio runtime. Threads of their own: the log's, which writes and
//! flushes it, and the runtime's blocking ones for snapshots. What the rest of the node knows of Raft is [`Raft`],
//! [`Event`] and [`crate::net`].
//!
//! In the data directory: `raft/log.redb` with votes and entries, `raft/snapshot` with the image up to a place in the
//! log. The state itself is in memory: the image, which belongs to the control loop, and what lies around it.

mod admin;
pub mod host;
mod log;
mod machine;
mod metrics;
mod peer;
mod propose;
mod runtime;
mod serve;
mod snapshot;
mod state;
pub mod types;
mod watch;
pub mod wire;

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use highwater_shards::ids::{NodeId, Revision};
use openraft::async_runtime::WatchReceiver as _;
use openraft::{Config, Instant as _, SnapshotPolicy};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::AbortHandle;

pub use self::admin::{AdminError, Progress, Status};
use self::host::{Folder, Threads, Workers};
pub use self::log::Contents;
use self::log::{LogReader, OpenLog};
use self::machine::{Applied, Machine};
use self::metrics::Counters;
pub use self::metrics::RaftStats;
use self::peer::Peers;
use self::propose::{Ask, Proposer};
use self::serve::{Heard, Server, Slot};
use self::snapshot::SnapshotFile;
use self::state::{Shared, StateMachine};
pub use self::types::{DiskId, Member};
use self::types::{Payload, TypeConfig, node_id, raft_id};
use crate::control::metadata::command::{Command, Entry};
use crate::control::metadata::image::{Image, Incarnation};
use crate::control::{Input, ProposalId};
use crate::net::{CallError, Class, Incoming, Network};
use crate::store::error::Failure;
use crate::store::folder::Directory;
use crate::store::{StoreError, ahead};

pub use self::wire::{APPEND, PRE_VOTE, PROPOSE, SNAPSHOT_CHUNK, TRANSFER_LEADER, VOTE};

type Group = openraft::Raft<TypeConfig, StateMachine>;

/// The folder within the data directory.
pub const FOLDER: &str = "raft";

/// Events that wait for the control loop at most; with so many, nothing more is applied.
const EVENTS_MAX: usize = 1024;
/// Proposals that wait for the one under way at most; one more fails. The control loop has one at a time.
const PROPOSALS_MAX: usize = 64;
/// An entry that is larger is refused: it would hold up votes and heartbeats.
pub const ENTRY_BYTES_MAX: usize = 1024 * 1024;
/// A leader that did not speak for so many of the longest election timeouts is none.
const SILENCE_FACTOR: u32 = 2;
/// How often a node tries to succeed a leader that is said to be dead; it waits for a heartbeat's time in between.
const SUCCESSION_TRIES: u32 = 10;
/// Nodes that try it after each other, within a heartbeat's time.
const SUCCESSION_TURNS: u32 = 4;

/// How the group of this node works. The times must be alike on all nodes.
#[derive(Clone, Debug)]
pub struct RaftConfig {
    pub node: NodeId,
    /// Above those of all earlier lives: proposals carry it.
    pub incarnation: Incarnation,
    pub heartbeat: Duration,
    /// How long a follower waits for its leader before it asks for votes: `election_max`, and then a time between the
    /// two, drawn by lot.
    pub election_min: Duration,
    pub election_max: Duration,
    /// A snapshot is built after so many entries.
    pub snapshot_every: u64,
    /// Entries that stay in the log although a snapshot holds them, for nodes that were away for a short time.
    pub keep_entries: u64,
    /// For election timeouts. Nodes of one group have different ones.
    pub seed: u64,
}

impl RaftConfig {
    pub fn new(node: NodeId, incarnation: Incarnation) -> Self {
        Self {
            node,
            incarnation,
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(300),
            election_max: Duration::from_millis(600),
            snapshot_every: 10_000,
            keep_entries: 5_000,
            seed: u64::from(node.0) << 32 ^ incarnation.0,
        }
    }

    fn openraft(&self) -> Result<Config, openraft::ConfigError> {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let config = Config {
            cluster_name: "highwater".into(),
            heartbeat_interval: ms(self.heartbeat),
            election_timeout_min: ms(self.election_min),
            election_timeout_max: ms(self.election_max),
            enable_pre_vote: Some(true),
            // A leader that a majority does not answer goes quiet, so that others can be elected.
            quorum_loss_probe_interval: Some(2 * ms(self.election_max) + ms(self.election_min)),
            // Leading again without a vote is only safe when the state is never older than what was read of it.
            enable_leader_restore: Some(false),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            max_in_snapshot_log_to_keep: self.keep_entries,
            replication_lag_threshold: self.snapshot_every + self.keep_entries,
            purge_batch_size: 256,
            max_payload_entries: 1024,
            // Parts have deadlines of their own.
            install_snapshot_timeout: 3_600_000,
            backoff: "50ms 100ms 200ms ...1s".into(),
            ..Config::default()
        };
        config.validate()
    }
}

/// What the control loop is told, in order.
#[derive(Debug)]
pub enum Event {
    /// [`Input::Committed`], [`Input::ProposalFailed`], [`Input::Image`] or [`Input::Leadership`].
    Input(Input),
    /// Send a clone of the image, which is at this revision now.
    WantImage { revision: Revision, reply: oneshot::Sender<Box<Image>> },
    /// The group has stopped on this node: the node has to stop.
    Failed(RaftError),
}

/// Why the group cannot go on.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RaftError {
    #[error("the metadata log cannot go on: {0}")]
    Fatal(String),
    #[error("the times of `cluster.raft` do not go together: {0}")]
    Config(String),
    #[error("the thread of the metadata log cannot start: {0}")]
    Thread(String),
}

/// What an opened Raft folder holds.
pub struct Opened {
    pub storage: Storage,
    /// All that is known to be committed, without placements on shards. What follows comes as events.
    pub image: Image,
}

/// The log and the snapshot, to be given to [`Raft::start`].
pub struct Storage {
    folder: Arc<dyn Folder>,
    log: OpenLog,
    machine: Machine,
    snapshot: Option<SnapshotFile>,
}

impl Storage {
    /// The disk that the log was made for.
    pub fn disk(&self) -> DiskId {
        self.log.disk()
    }

    /// All entries of the log, for who looks at it before it runs.
    ///
    /// # Errors
    /// When one is missing or damaged.
    pub fn entries(&self) -> Result<Vec<types::LogEntry>, StoreError> {
        let (mut entries, range) = (Vec::new(), self.log.range());
        let mut next = range.start;
        while next < range.end {
            entries.extend(self.log.read(next..range.end)?);
            next = range.start + entries.len() as u64;
        }
        Ok(entries)
    }

    /// Whether this node has neither voted nor stored anything yet.
    pub fn is_new(&self) -> bool {
        self.log.is_new() && self.snapshot.is_none()
    }
}

/// Opens the Raft folder, or makes it, for `disk`. One that is there keeps the disk id that it was made for.
///
/// # Errors
/// When it is damaged, in use or of another version.
pub fn open(folder: &Path, disk: DiskId) -> Result<Opened, StoreError> {
    let failed =
        |error: std::io::Error| StoreError::Io { file: folder.to_owned(), reason: error.to_string() };
    let directory = Arc::new(Directory::make(folder).map_err(failed)?);
    let opened = open_in(Arc::clone(&directory) as Arc<dyn Folder>, disk)?;
    directory.sync_parent().map_err(failed)?;
    Ok(opened)
}

/// As [`open`], in a folder of any kind.
///
/// # Errors
/// As [`open`].
pub fn open_in(folder: Arc<dyn Folder>, disk: DiskId) -> Result<Opened, StoreError> {
    let file = folder.path().join(log::FILE_NAME);
    let failed = |error: std::io::Error| Failure::Redb(redb::Error::Io(error)).at(&file);
    let journal = folder.direct(log::JOURNAL_NAME).map_err(failed)?;
    let databases = Arc::clone(&folder);
    let opener = Box::new(move |builder: &redb::Builder| ahead::create(builder, &*databases, log::FILE_NAME));
    let journal_bytes = folder.journal_bytes();
    let place = log::Place { file: file.clone(), opener, journal, journal_bytes };
    let log = OpenLog::open(place, disk)?;
    let snapshot = snapshot::open(&*folder)?;
    // New names are only there after a crash once they are durable.
    folder.sync().map_err(failed)?;
    let content = snapshot.as_ref().and_then(|snapshot| snapshot.content.clone());
    let snapshot::Content { mut machine, mut image } = content.map(Arc::unwrap_or_clone).unwrap_or_default();
    let damaged = |reason: String| StoreError::Damaged { file: file.clone(), reason };
    if log.purged() > machine.applied {
        return Err(damaged("the snapshot that its first entries went into is missing".into()));
    }
    let committed = log.committed();
    while machine.applied < committed {
        let first = machine.applied.map_or(0, |id| id.index + 1);
        let end = committed.map_or(0, |id| id.index + 1);
        for entry in log.read(first..end)? {
            let applied = machine.apply(&entry).map_err(|error| damaged(error.to_string()))?;
            if let Applied::Change { revision, entry, .. } = applied {
                image.apply(revision, &entry);
            }
        }
    }
    Ok(Opened { storage: Storage { folder, log, machine, snapshot }, image })
}

/// The handle to the group. Clones are the same group; [`Raft::shutdown`] ends it.
#[derive(Clone)]
pub struct Raft(Rc<Inner>);

struct Inner {
    node: NodeId,
    heartbeat: Duration,
    group: Group,
    log: LogReader,
    shared: Rc<Shared>,
    counters: Counters,
    asks: mpsc::Sender<Ask>,
    server: Rc<Server>,
    tasks: Vec<AbortHandle>,
}

impl Raft {
    /// Starts the group on this node. To be called within a `LocalSet`.
    ///
    /// # Errors
    /// When the configuration does not hold together, or the log cannot be read or written.
    pub async fn start(
        config: RaftConfig,
        storage: Storage,
        net: impl Network,
    ) -> Result<(Self, mpsc::Receiver<Event>), RaftError> {
        Self::start_with(config, storage, net, Rc::new(Threads)).await
    }

    /// As [`Raft::start`], with these to wait for the disk.
    ///
    /// # Errors
    /// As [`Raft::start`].
    pub async fn start_with(
        config: RaftConfig,
        storage: Storage,
        net: impl Network,
        workers: Rc<dyn Workers>,
    ) -> Result<(Self, mpsc::Receiver<Event>), RaftError> {
        runtime::seed(config.seed);
        let openraft = config.openraft().map_err(|error| RaftError::Config(error.to_string()))?;
        let Storage { folder, log, machine, snapshot } = storage;
        let counters = Counters::default();
        let log =
            log.start(counters.clone(), &*workers).map_err(|error| RaftError::Thread(error.to_string()))?;
        let reader = log.reader();
        let (events, inbox) = mpsc::channel(EVENTS_MAX);
        let current = snapshot.map(|mut file| {
            let content = file.content.take().expect("an opened snapshot was read");
            openraft::Snapshot { meta: content.machine.meta(), snapshot: file }
        });
        let shared =
            Shared::new((folder, Rc::clone(&workers)), events.clone(), counters.clone(), machine, current);
        let shared = Rc::new(shared);
        let peers = Peers { net: net.clone(), counters: counters.clone(), workers };
        let machine = StateMachine::new(Rc::clone(&shared));
        let id = raft_id(config.node);
        let group = Group::new(id, Arc::new(openraft), peers, log, machine).await;
        let group = group.map_err(|error| RaftError::Fatal(error.to_string()))?;
        let heard = Rc::new(Cell::new(Heard::now(None)));
        let silence = SILENCE_FACTOR * config.election_max;
        let server = Server {
            group: group.clone(),
            log: reader.clone(),
            shared: Rc::clone(&shared),
            counters: counters.clone(),
            calls: Cell::new(0),
            heard: Rc::clone(&heard),
            receiving: Mutex::new(Slot::default()),
            working: Cell::new(None),
        };
        let (asks, asked) = mpsc::channel(PROPOSALS_MAX);
        let proposer = Proposer {
            node: config.node,
            incarnation: config.incarnation.0,
            group: group.clone(),
            net,
            shared: Rc::clone(&shared),
            counters: counters.clone(),
        };
        let snapshots = (group.clone(), Rc::clone(&shared));
        let tasks = [
            tokio::task::spawn_local(proposer.run(asked)),
            tokio::task::spawn_local(watch(group.clone(), events, heard, silence)),
            tokio::task::spawn_local(async move {
                let (group, shared) = snapshots;
                loop {
                    shared.snapshot_due.notified().await;
                    // A group that has ended needs none.
                    let _ = group.trigger().snapshot().await;
                }
            }),
        ];
        let tasks = tasks.iter().map(|task| task.abort_handle()).collect();
        let inner = Inner {
            node: config.node,
            heartbeat: config.heartbeat,
            group,
            log: reader,
            shared,
            counters,
            asks,
            server: Rc::new(server),
            tasks,
        };
        let raft = Self(Rc::new(inner));
        raft.elect_sole_voter().await;
        Ok((raft, inbox))
    }

    /// A sole voter has nobody to wait for.
    async fn elect_sole_voter(&self) {
        let me = raft_id(self.0.node);
        let is_sole = move |state: &openraft::RaftState<TypeConfig>| {
            state.membership_state.effective().voter_ids().eq([me])
        };
        if let Ok(true) = self.0.group.with_raft_state(is_sole).await {
            // A group that has ended says so by an event.
            let _ = self.0.group.trigger().elect(false).await;
        }
    }

    /// The leader is said to be dead: this node asks for votes as soon as what it gave that leader has run out, rather
    /// than after the time drawn by lot that follows. It first asks who would vote, so a leader whom a majority hears
    /// is not disturbed. Nodes that do this at the same moment should have different turns, counted from 0.
    pub async fn succeed(&self, gone: NodeId, turn: u32) {
        tokio::time::sleep(self.0.heartbeat * turn.min(SUCCESSION_TURNS - 1) / SUCCESSION_TURNS).await;
        for _ in 0..SUCCESSION_TRIES {
            // A group that has ended says so by an event.
            if self.status().leader != Some(gone) || self.0.group.trigger().elect(true).await.is_err() {
                return;
            }
            tokio::time::sleep(self.0.heartbeat).await;
        }
    }

    /// Proposes a change. Exactly one event tells what became of it.
    pub fn propose(&self, proposal: ProposalId, entry: &Entry) {
        self.0.counters.count(|stats| stats.proposals += 1);
        let forever = entry.commands.iter().any(|command| matches!(command, Command::RegisterNode(_)));
        let body = Bytes::from(entry.encode());
        if body.len() > ENTRY_BYTES_MAX {
            let reason = format!("a change of {} bytes is too large, ask for less at once", body.len());
            return self.fail(proposal, reason);
        }
        if self.0.log.is_full() && !forever {
            return self.fail(proposal, "no space left for the metadata".into());
        }
        let ask = Ask { proposal, body, forever, since: clock() };
        if self.0.asks.try_send(ask).is_err() {
            self.fail(proposal, format!("{PROPOSALS_MAX} changes wait already"));
        }
    }

    fn fail(&self, proposal: ProposalId, reason: String) {
        self.0.counters.count(|stats| stats.proposals_failed += 1);
        let events = self.0.shared.events.clone();
        tokio::task::spawn_local(async move {
            // Without a control loop nobody waits for it.
            let _ = events.send(Event::Input(Input::ProposalFailed { proposal, reason })).await;
        });
    }

    /// Writes bytes of a measurement; they are replicated and applied as nothing. Many may be under way.
    ///
    /// # Errors
    /// When this node does not lead.
    pub async fn probe(&self, bytes: Bytes) -> Result<(), AdminError> {
        self.0.group.client_write(Payload::Probe(bytes)).await.map(drop).map_err(AdminError::of_write)
    }

    /// Works on a call of the kinds 0x01xx and [`PROPOSE`], and refuses others.
    pub fn on_call(&self, call: Incoming) {
        self.0.server.on_call(call);
    }

    /// Counters and distributions since the start.
    pub fn stats(&self) -> RaftStats {
        self.0.counters.stats()
    }

    /// Ends the group on this node; everything that was written is durable then.
    pub async fn shutdown(&self) {
        self.0.tasks.iter().for_each(AbortHandle::abort);
        // A core that panicked has ended too, and said why.
        let _ = self.0.group.shutdown().await;
    }
}

/// The network of a node that has no peers.
#[derive(Clone, Copy, Debug)]
pub struct Alone;

impl Network for Alone {
    async fn call(
        &self,
        to: NodeId,
        _class: Class,
        _kind: u16,
        _body: Bytes,
        _deadline: Duration,
    ) -> Result<Bytes, CallError> {
        Err(CallError::Unreachable(format!("node {to}: this node stands alone")))
    }
}

/// Tells who leads, and the end. A node that is the only member and leads has nobody to keep time with: its clock is
/// stopped, so that it is quiet while nothing happens.
///
/// Where pre-votes fail, openraft names a leader that is gone for as long as no other is elected. So one that did not
/// speak to this node for `silence` is none here; nor is this node one when no majority spoke to it for that long.
async fn watch(group: Group, events: mpsc::Sender<Event>, heard: Rc<Cell<Heard>>, silence: Duration) {
    let mut metrics = group.server_metrics();
    let mut told = None;
    loop {
        let (term, named, me, alone, needs_others) = {
            let now = metrics.borrow_and_update();
            let leads = now.current_leader == Some(now.id);
            let alone = leads && now.membership_config.nodes().count() == 1;
            let needs_others = leads && now.membership_config.membership().voter_ids().count() > 1;
            (now.vote.leader_id.term, leader_in(&now.vote, now.current_leader), now.id, alone, needs_others)
        };
        group.runtime_config().tick(!alone);
        let follows = named.is_some_and(|named| named != me);
        let unheard = if needs_others {
            // One that was just elected has heard of a majority.
            let acked = group.metrics().borrow_watched().last_quorum_acked;
            acked.map_or(Duration::ZERO, |at| at.into_inner().elapsed())
        } else {
            heard.get().at.elapsed()
        };
        let is_silent = (follows || needs_others) && unheard >= silence;
        let leader = named.filter(|_| !is_silent).and_then(node_id);
        if told != Some((term, leader)) {
            told = Some((term, leader));
            match leader {
                Some(leader) => tracing::info!(term, %leader, "the metadata has a leader"),
                None if needs_others => tracing::warn!(term, "this node leads, and hears of no majority"),
                None if is_silent => tracing::warn!(term, "the leader of the metadata is silent"),
                None => tracing::debug!(term, "no leader of the metadata is known"),
            }
            if events.send(Event::Input(Input::Leadership { term, leader })).await.is_err() {
                return;
            }
        }
        let look_again = async {
            match is_silent {
                _ if !follows && !needs_others => std::future::pending().await,
                true => tokio::time::sleep(silence / 4).await,
                false => tokio::time::sleep(silence - unheard).await,
            }
        };
        tokio::select! {
            biased;
            changed = metrics.changed() => if changed.is_err() {
                break;
            },
            () = look_again => {}
        }
    }
    let metrics = group.metrics();
    let ended = metrics.borrow_watched().running_state.clone();
    let reason = ended.err().map_or_else(|| "it has stopped".into(), |error| error.to_string());
    // Without a control loop nobody has to stop.
    let _ = events.send(Event::Failed(RaftError::Fatal(reason))).await;
}

#[expect(clippy::disallowed_methods, reason = "driver: measures how long proposals take")]
fn clock() -> std::time::Instant {
    std::time::Instant::now()
}

/// Who leads in the term of this vote. openraft names a leader as soon as it hears of it, and gives the vote that is
/// durable, which until the new one is may be that of an earlier term.
fn leader_in(vote: &types::Vote, named: Option<u64>) -> Option<u64> {
    named.filter(|named| vote.committed && vote.leader_id.voted_for == *named)
}
