//! The node among others: its peers, its way into a cluster, the metadata log, and on the log's leader who its members
//! are. A node that stands alone is the same without peers.
//!
//! Driver; control core, inside the `LocalSet` of its runtime. What is asked of other nodes runs in tasks of its own,
//! and comes back as [`Told`]; nothing here waits for a peer.

mod asking;
mod calls;
mod gossip;
mod lease;
mod members;
mod streams;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use highwater_shards::ids::{NodeId, ShardId};
use highwater_shards::reactor::handover::ToDriver;
use highwater_shards::time::Instant;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Interval, MissedTickBehavior};
use zeroize::Zeroizing;

use self::gossip::Gossip;
pub(in crate::runtime) use self::gossip::GossipSetup;
pub use self::gossip::{GossipView, KeyChange, KeySecret, MemberInfo};
use self::lease::Leases;
use self::members::Members;
use super::NodeError;
use crate::control::forming::wire::JoinAnswer;
use crate::control::forming::{
    self, CallId, ClusterId, Forming, FormingConfig, Founders, Heard, Member, Output, Standing, Who,
};
use crate::control::lease::{Asking, Standing as LeaseStanding, Times};
use crate::control::liveness::{Hint, Sign};
use crate::control::membership::change::{Change, Changed, Unchanged};
use crate::control::metadata::command::Entry;
use crate::control::metadata::image::{Endpoint, Image, Incarnation};
use crate::control::request::{Reply, Request};
use crate::control::{self, ProposalId};
use crate::kafka::Kafka;
use crate::net::auth::{DiskId as NetDiskId, PeerIdentity, Secret, VERSION};
use crate::net::peers::{Peers, Registration, Stream};
use crate::net::stats::NetStats;
use crate::net::{self, Incoming};
use crate::raft::{self, AdminError, Alone, Raft, RaftConfig, RaftError, RaftStats, Status};

/// How often the members are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// What tasks have told and nobody has taken yet, at most. Tasks wait then; there are few.
const TOLD_MAX: usize = 256;

/// What a node brings into its cluster.
pub(in crate::runtime) struct Setup {
    /// Its address is the advertised one.
    pub member: Member,
    pub incarnation: Incarnation,
    pub may_vote: bool,
    pub seeds: Vec<Endpoint>,
    /// How many nodes should vote; `None`: by the size of the cluster.
    pub voters: Option<u32>,
    pub raft: RaftConfig,
    pub storage: raft::Storage,
    /// `None` for a node that stands alone.
    pub peers: Option<PeersSetup>,
    /// The cluster that it is in, and who founded that.
    pub formed: Option<(ClusterId, Founders)>,
    /// Of this node.
    pub shards: u16,
    pub seed: u64,
}

/// How other nodes reach this one.
pub(in crate::runtime) struct PeersSetup {
    pub secret: Secret,
    pub listener: std::net::TcpListener,
    pub gossip: GossipSetup,
}

pub(in crate::runtime) struct Cluster {
    member: Member,
    may_vote: bool,
    /// Sorted.
    seeds: Vec<Endpoint>,
    voters: Option<u32>,
    peers: Option<Peers>,
    calls: Option<mpsc::Receiver<Incoming>>,
    /// From shards of other nodes.
    streams: Option<mpsc::Receiver<Stream>>,
    /// By shard, connections that it asked for.
    dials: Vec<Slots>,
    /// What the peers were told of the image's nodes.
    registered: Vec<(NodeId, Registration)>,
    state: State,
    /// What this node waits for while it is in no cluster.
    waits_for: String,
    tell: mpsc::Sender<Told>,
    told: mpsc::Receiver<Told>,
    pin: Pin,
}

enum State {
    Forming {
        forming: Box<Forming>,
        start: Start,
    },
    /// The cluster is being written down.
    Keeping {
        cluster: ClusterId,
        founders: Founders,
        start: Start,
    },
    Running(Box<Running>),
    Over,
}

/// What the metadata log begins with.
struct Start {
    config: RaftConfig,
    storage: raft::Storage,
    gossip: Option<GossipStart>,
}

/// What gossip begins with: the number and the bytes of its key too.
struct GossipStart {
    setup: GossipSetup,
    incarnation: Incarnation,
    key: (u8, Zeroizing<[u8; 32]>),
}

struct Running {
    raft: Raft,
    events: mpsc::Receiver<raft::Event>,
    cluster: ClusterId,
    founders: Founders,
    members: Members,
    tick: Interval,
    gossip: Option<Gossip>,
    leases: Leases,
}

/// The core that the control thread is pinned to, and where else its process may run.
#[derive(Clone)]
pub(in crate::runtime) struct Pin {
    pub to: Option<usize>,
    pub anywhere: rustix::thread::CpuSet,
}

impl Pin {
    /// Threads that are started from here on may run anywhere.
    fn loosen(&self) {
        if self.to.is_some() {
            // Where that is not allowed such a thread takes turns with the control core, which is slower and works.
            let _ = rustix::thread::sched_setaffinity(None, &self.anywhere);
        }
    }

    /// The thread stays on its core.
    ///
    /// # Errors
    /// When the core cannot be had.
    pub fn hold(&self) -> Result<(), NodeError> {
        let Some(core) = self.to else { return Ok(()) };
        let mut set = rustix::thread::CpuSet::new();
        set.set(core);
        rustix::thread::sched_setaffinity(None, &set).map_err(|e| {
            NodeError::Resources(format!("the control core cannot be pinned to core {core}: {e}"))
        })
    }
}

/// What [`Cluster::next`] waited for.
pub(in crate::runtime) enum Happened {
    Raft(Option<raft::Event>),
    Call(Incoming),
    Stream(Stream),
    Told(Told),
    Hint(Hint),
    Timer,
    Look,
}

/// What a task has found out.
pub(in crate::runtime) enum Told {
    Heard {
        call: CallId,
        from: Result<Vec<Heard>, String>,
    },
    JoinAnswered {
        call: CallId,
        answer: Result<JoinAnswer, String>,
    },
    /// What became of a connection that a shard asked for.
    Dialed {
        from: ShardId,
        node: NodeId,
        shard: ShardId,
        stream: Option<Stream>,
    },
    /// A formed node told the cluster that it is there, and where.
    Announced(JoinAnswer),
    /// A change of the members is through, or has failed.
    StepDone {
        generation: u64,
        result: Result<(), String>,
    },
    /// The node is out of the image and may be taken out of the log's members.
    MayLeave(NodeId),
    /// The leader of the log counts on this node, which asked then.
    Leased {
        asked: Instant,
    },
}

/// What the control loop has to do.
pub(in crate::runtime) enum Effect {
    Input(control::Input),
    /// Send a clone of the image.
    WantImage(oneshot::Sender<Box<Image>>),
    /// Make durable which cluster the node is in; then [`Cluster::on_kept`].
    Keep {
        cluster: ClusterId,
        founders: Founders,
    },
    Request {
        request: Request,
        reply: oneshot::Sender<Reply>,
    },
    /// Tell a node whether this one, which leads the log, counts on it.
    Lease {
        call: Incoming,
        asking: Asking,
        standing: LeaseStanding,
        times: Times,
    },
    /// This node leads the log and asks itself.
    LeaseOfLeader {
        asking: Asking,
        standing: LeaseStanding,
        times: Times,
        now: Instant,
    },
    ToDriver {
        shard: ShardId,
        message: ToDriver<Kafka>,
    },
}

/// The cluster as this node sees it, for people and metrics.
#[derive(Clone, Debug, Default)]
pub struct ClusterView {
    /// While the node is in no cluster: what it waits for.
    pub forming: Option<String>,
    pub raft: Option<(Status, RaftStats)>,
    /// `None` for a node that stands alone.
    pub net: Option<NetStats>,
    /// `None` for a node that stands alone, or is in no cluster yet.
    pub gossip: Option<GossipView>,
}

/// Who answers a wish for a change gets the answer here.
pub(in crate::runtime) type OnChanged = Box<dyn FnOnce(Changed)>;

impl Cluster {
    /// Opens the peers' door. The metadata log starts with [`Self::begin`].
    pub fn new(setup: Setup, pin: Pin) -> Result<Self, NodeError> {
        let Setup {
            member,
            incarnation,
            may_vote,
            mut seeds,
            voters,
            raft,
            storage,
            peers,
            formed,
            shards,
            seed,
        } = setup;
        seeds.sort_unstable_by(|a, b| (&a.host, a.port).cmp(&(&b.host, b.port)));
        let (mut handle, mut calls, mut streams, mut gossip) = (None, None, None, None);
        if let Some(PeersSetup { secret, listener, gossip: setup }) = peers {
            gossip = Some(GossipStart { setup, incarnation, key: secret.gossip_key() });
            let listener = tokio::net::TcpListener::from_std(listener)
                .map_err(|e| NodeError::Resources(e.to_string()))?;
            let me = PeerIdentity {
                node: member.node,
                disk: NetDiskId(member.disk.0),
                cluster: None,
                incarnation,
                version: VERSION,
            };
            let config = net::peers::Config { seed, ..net::peers::Config::default() };
            let (peers, incoming) = Peers::start(config, secret, me, Some(listener));
            streams = Some(peers.take_streams(shards));
            (handle, calls) = (Some(peers), Some(incoming));
        }
        let (tell, told) = mpsc::channel(TOLD_MAX);
        let start = Start { config: raft, storage, gossip };
        let state = match formed {
            Some((cluster, founders)) => State::Keeping { cluster, founders, start },
            None => {
                let config = FormingConfig { member: member.clone(), seeds: seeds.clone(), seed };
                State::Forming { forming: Box::new(Forming::new(config)), start }
            }
        };
        Ok(Self {
            member,
            may_vote,
            seeds,
            voters,
            peers: handle,
            calls,
            streams,
            dials: (0..shards).map(|_| Slots::default()).collect(),
            registered: Vec::new(),
            state,
            waits_for: "it has just started".into(),
            tell,
            told,
            pin,
        })
    }

    /// A node that is in a cluster starts its metadata log; one that is not begins to look for one.
    pub async fn begin(&mut self) -> Result<Vec<Effect>, NodeError> {
        match &self.state {
            State::Keeping { .. } => self.start_log().await,
            _ => Ok(Vec::new()),
        }
    }

    /// What comes next of peers, log, timers and tasks. May be dropped and called again without a loss.
    pub async fn next(&mut self, now: impl Fn() -> Instant) -> Happened {
        let Self { calls, streams, told, state, .. } = self;
        let call = next_of(calls);
        let stream = next_of(streams);
        let told = async { told.recv().await.expect("this node holds a sender itself") };
        match state {
            State::Running(running) => tokio::select! {
                event = running.events.recv() => Happened::Raft(event),
                call = call => Happened::Call(call),
                stream = stream => Happened::Stream(stream),
                told = told => Happened::Told(told),
                hint = heard_by(&mut running.gossip) => Happened::Hint(hint),
                _ = running.tick.tick() => Happened::Look,
            },
            State::Forming { forming, .. } => {
                let wait = forming.poll_timeout().map(|at| at.since(now()));
                let timer = async {
                    match wait {
                        Some(wait) => tokio::time::sleep(wait).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    call = call => Happened::Call(call),
                    stream = stream => Happened::Stream(stream),
                    told = told => Happened::Told(told),
                    () = timer => Happened::Timer,
                }
            }
            State::Keeping { .. } | State::Over => tokio::select! {
                call = call => Happened::Call(call),
                stream = stream => Happened::Stream(stream),
                told = told => Happened::Told(told),
            },
        }
    }

    pub fn handle(
        &mut self,
        now: Instant,
        happened: Happened,
        image: &Image,
    ) -> Result<Vec<Effect>, NodeError> {
        match happened {
            Happened::Raft(Some(event)) => {
                let is_elected = matches!(&event, raft::Event::Input(control::Input::Leadership { .. }));
                let mut effects = self.on_raft(event)?;
                // The last lease came from another: it is not to run out while the next one is waited for. And who led
                // before may be known to be dead.
                if is_elected {
                    effects.extend(self.look(image));
                    effects.extend(self.renew_lease(now, image));
                }
                Ok(effects)
            }
            Happened::Raft(None) => Err(NodeError::Raft(RaftError::Fatal("its tasks have ended".into()))),
            Happened::Call(call) => self.on_call(now, call, image),
            Happened::Stream(stream) => Ok(vec![streams::on_stream(stream)]),
            Happened::Told(told) => self.on_told(now, told),
            Happened::Timer => self.form(now, forming::Input::Timeout),
            Happened::Hint(hint) => Ok(self.on_hint(hint, image)),
            Happened::Look => {
                let mut effects = self.look(image);
                // One that stands alone has a lease for good.
                if self.peers.is_some() {
                    effects.extend(self.renew_lease(now, image));
                }
                Ok(effects)
            }
        }
    }

    fn on_raft(&mut self, event: raft::Event) -> Result<Vec<Effect>, NodeError> {
        match event {
            raft::Event::Input(input) => Ok(vec![Effect::Input(input)]),
            raft::Event::WantImage { reply, .. } => Ok(vec![Effect::WantImage(reply)]),
            raft::Event::Failed(error) => Err(NodeError::Raft(error)),
        }
    }

    fn on_told(&mut self, now: Instant, told: Told) -> Result<Vec<Effect>, NodeError> {
        match told {
            Told::Heard { call, from } => self.form(now, forming::Input::Heard { call, from }),
            Told::JoinAnswered { call, answer } => {
                self.form(now, forming::Input::JoinAnswered { call, answer })
            }
            Told::Dialed { from, node, shard, stream } => {
                Ok(vec![streams::on_dialed(from, node, shard, stream)])
            }
            Told::Announced(answer) => match (answer, &self.state) {
                (JoinAnswer::Refused(why), State::Running(running)) => {
                    Err(NodeError::Forming(forming::Fatal::Refused { cluster: running.cluster, why }))
                }
                _ => Ok(Vec::new()),
            },
            Told::StepDone { generation, result } => {
                if let State::Running(running) = &mut self.state {
                    running.members.on_step_done(generation, result);
                }
                Ok(Vec::new())
            }
            Told::MayLeave(node) => {
                if let State::Running(running) = &mut self.state {
                    running.members.leave(node);
                }
                Ok(Vec::new())
            }
            Told::Leased { asked } => Ok(self.on_leased(asked).into_iter().collect()),
        }
    }

    /// One input of the state machine, and what it wants.
    fn form(&mut self, now: Instant, input: forming::Input) -> Result<Vec<Effect>, NodeError> {
        let State::Forming { forming, .. } = &mut self.state else { return Ok(Vec::new()) };
        forming.handle(now, input);
        let outputs: Vec<Output> = std::iter::from_fn(|| forming.poll_output()).collect();
        let mut effects = Vec::new();
        for output in outputs {
            match output {
                Output::Ask { call, seed } => self.ask(call, seed),
                Output::Join { call, node, at, cluster } => {
                    tracing::info!("joining cluster {cluster} through node {node} at {}", forming::show(&at));
                    self.ask_to_join(call, node, at);
                }
                Output::Waiting(what) => {
                    tracing::warn!("in no cluster yet: {what}");
                    self.waits_for = what;
                }
                Output::Found { cluster, founders } => {
                    tracing::info!(
                        "founding cluster {cluster} together with all {} seeds",
                        founders.members().len()
                    );
                    effects.push(self.keep(cluster, founders));
                }
                Output::Joined { cluster, founders } => {
                    tracing::info!("joined cluster {cluster}");
                    effects.push(self.keep(cluster, founders));
                }
                Output::Fatal(fatal) => return Err(NodeError::Forming(fatal)),
            }
        }
        Ok(effects)
    }

    fn keep(&mut self, cluster: ClusterId, founders: Founders) -> Effect {
        let State::Forming { start, .. } = std::mem::replace(&mut self.state, State::Over) else {
            unreachable!("only who forms comes into a cluster")
        };
        self.state = State::Keeping { cluster, founders: founders.clone(), start };
        Effect::Keep { cluster, founders }
    }

    /// The cluster that the node is in is durable: its metadata log starts.
    pub async fn on_kept(&mut self) -> Result<Vec<Effect>, NodeError> {
        self.start_log().await
    }

    async fn start_log(&mut self) -> Result<Vec<Effect>, NodeError> {
        let State::Keeping { cluster, founders, start } = std::mem::replace(&mut self.state, State::Over)
        else {
            unreachable!("the log starts once, when the cluster is known")
        };
        let Start { config, storage, gossip } = start;
        let patience = config.election_min;
        let is_new = storage.is_new();
        self.pin.loosen();
        let started = match &self.peers {
            Some(peers) => {
                peers.set_cluster(cluster.to_string().parse().expect("one form for both"));
                for founder in founders.members() {
                    peers.set_peer(founder.node, founder.at.clone());
                }
                Raft::start(config, storage, peers.clone()).await
            }
            None => Raft::start(config, storage, Alone).await,
        };
        self.pin.hold()?;
        let (raft, events) = started?;
        // Who is not among the founders gets the log from its leader.
        if is_new && founders.get(self.member.node).is_some_and(|founder| founder.disk == self.member.disk) {
            let members = founders.members().iter().map(|member| (member.node, calls::raft_member(member)));
            match raft.initialize(&members.collect()).await {
                Ok(()) | Err(AdminError::Initialized) => {}
                Err(error) => return Err(NodeError::Raft(RaftError::Fatal(error.to_string()))),
            }
        }
        let status = raft.status();
        let others = status.members.keys().filter(|node| **node != self.member.node).count();
        if self.peers.is_none() && others > 0 {
            return Err(NodeError::NotAlone { cluster: cluster.to_string(), others });
        }
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let members = Members::new(self.member.clone(), self.voters, patience, self.tell.clone());
        let gossip = gossip.map(|start| {
            let GossipStart { setup, incarnation, key } = start;
            let seeds = &self.seeds;
            Gossip::start(setup, self.member.node, incarnation, cluster, key, seeds)
        });
        let gossip = gossip.transpose()?;
        let leases = Leases::new(patience);
        let running = Running { raft, events, cluster, founders, members, tick, gossip, leases };
        self.state = State::Running(Box::new(running));
        self.announce();
        Ok(vec![Effect::Input(control::Input::ClusterId(cluster.to_string().into()))])
    }

    /// Only a node that knows of a leader proposes, so there is a log.
    pub fn propose(&self, proposal: ProposalId, entry: &Entry) {
        match &self.state {
            State::Running(running) => running.raft.propose(proposal, entry),
            _ => unreachable!("nobody leads a log that has not started"),
        }
    }

    /// An operator's wish, given to this node.
    pub fn change(
        &mut self,
        now: Instant,
        change: Change,
        image: &Image,
        reply: OnChanged,
    ) -> Result<Vec<Effect>, NodeError> {
        let mut effects = Vec::new();
        match (&mut self.state, &self.peers, change) {
            (_, None, _) => {
                reply(Err(Unchanged::refused("this node stands alone: `cluster.mode: standalone`")))
            }
            (State::Forming { .. }, _, Change::JoinThrough(at)) => {
                reply(Ok(format!(
                    "asking {}; `highwater cluster status` tells when this node is in",
                    forming::show(&at)
                )));
                effects = self.form(now, forming::Input::JoinThrough(at))?;
            }
            (State::Forming { .. } | State::Keeping { .. } | State::Over, ..) => {
                reply(Err(Unchanged::not_now("this node is in no cluster yet")));
            }
            (State::Running(running), _, Change::JoinThrough(_)) => {
                reply(Err(Unchanged::refused(format!(
                    "this node is in cluster {} already",
                    running.cluster
                ))));
            }
            (State::Running(running), Some(peers), change) => {
                let leader = running.raft.status().leader;
                match leader {
                    Some(leader) if leader == self.member.node => {
                        effects = running.members.change(&running.raft, image, change, reply);
                    }
                    Some(leader) => calls::forward_change(peers.clone(), leader, change, reply),
                    None => reply(Err(Unchanged::not_now("nobody leads the metadata at the moment"))),
                }
            }
        }
        Ok(effects)
    }

    /// A regular look at the members: where they are, and on the leader who should be one.
    fn look(&mut self, image: &Image) -> Vec<Effect> {
        let State::Running(running) = &mut self.state else { return Vec::new() };
        if let Some(gossip) = &mut running.gossip {
            gossip.know(image);
        }
        running.members.look(&running.raft, self.peers.as_ref(), image)
    }

    /// What this node hears of another by gossip. After a death the leader looks at once whether it hears that node; and
    /// if it is the leader that died, the others do not wait until they miss it.
    fn on_hint(&mut self, hint: Hint, image: &Image) -> Vec<Effect> {
        let mut effects = vec![Effect::Input(control::Input::Hint(hint))];
        if matches!(hint.sign, Sign::Died | Sign::Left) {
            if let State::Running(running) = &self.state {
                running.members.on_gone(&running.raft, hint.node);
            }
            effects.extend(self.look(image));
        }
        effects
    }

    /// Changes the keys of gossip on this node alone.
    pub fn change_keys(&mut self, change: KeyChange) -> Result<String, String> {
        if self.peers.is_none() {
            return Err("this node stands alone: `cluster.mode: standalone`".into());
        }
        let State::Running(running) = &mut self.state else {
            return Err("this node is in no cluster yet".into());
        };
        running.gossip.as_mut().expect("a node with peers gossips").change_keys(change)
    }

    /// The node is told to stop: another one may lead at once, rather than after an election.
    pub fn on_stop(&mut self) {
        if let State::Running(running) = &mut self.state {
            running.members.hand_over(&running.raft);
        }
    }

    /// The node has stopped: nobody has to wait until it is missed.
    pub fn leave(&mut self) {
        if let State::Running(running) = &mut self.state
            && let Some(gossip) = &mut running.gossip
        {
            gossip.leave();
        }
    }

    fn who(&self) -> Option<Who> {
        match &self.state {
            State::Forming { forming, .. } => Some(forming.who()),
            State::Running(running) => Some(Who {
                member: self.member.clone(),
                seeds: self.seeds.clone(),
                standing: Standing::Formed { cluster: running.cluster, founders: running.founders.clone() },
            }),
            State::Keeping { .. } | State::Over => None,
        }
    }

    pub fn view(&self) -> ClusterView {
        let net = self.peers.as_ref().map(Peers::stats);
        match &self.state {
            State::Running(running) => ClusterView {
                forming: None,
                raft: Some((running.raft.status(), running.raft.stats())),
                net,
                gossip: running.gossip.as_ref().map(Gossip::view),
            },
            _ => ClusterView { forming: Some(self.waits_for.clone()), net, ..ClusterView::default() },
        }
    }

    /// Ends the log and the peers. What is still applied has nobody to go to.
    pub async fn shutdown(mut self) {
        if let State::Running(running) = std::mem::replace(&mut self.state, State::Over) {
            let Running { raft, mut events, .. } = *running;
            let ended = async {
                while events.recv().await.is_some() {}
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = raft.shutdown() => {}
                () = ended => {}
            }
        }
        if let Some(peers) = &self.peers {
            peers.close();
        }
    }
}

/// What comes next there; nothing ever comes where nothing is, or from one who has gone.
async fn next_of<T>(from: &mut Option<mpsc::Receiver<T>>) -> T {
    if let Some(from) = from
        && let Some(next) = from.recv().await
    {
        return next;
    }
    std::future::pending().await
}

/// The next hint; none ever without gossip.
async fn heard_by(gossip: &mut Option<Gossip>) -> Hint {
    match gossip {
        Some(gossip) => gossip.next().await,
        None => std::future::pending().await,
    }
}

/// Tasks that are counted, so that there are never too many.
#[derive(Clone, Default)]
struct Slots(Rc<Cell<usize>>);

struct Slot(Rc<Cell<usize>>);

impl Slots {
    fn take(&self, max: usize) -> Option<Slot> {
        if self.0.get() >= max {
            return None;
        }
        self.0.set(self.0.get() + 1);
        Some(Slot(Rc::clone(&self.0)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
