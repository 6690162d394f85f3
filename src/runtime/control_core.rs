//! The loop of the control core: what comes from shards, store, clock and the rest of the process goes into
//! [`Control`], and what it says goes out. One thread, a tokio `current_thread` runtime; the metadata log
//! flushes on a thread of its own, so that no disk holds this loop up.

#![expect(clippy::disallowed_methods, reason = "driver: reads the clock")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use highwater_shards::ids::{RegistrationEpoch, Revision, ShardId};
use highwater_shards::mail::{FromControl, ToControl};
use highwater_shards::reactor::boot::{ShardExit, Shards};
use highwater_shards::reactor::clock;
use highwater_shards::reactor::handover::ToDriver;
use highwater_shards::reactor::mailbox::Full;
use highwater_shards::stats::ShardStats;
use highwater_shards::time::Instant;
use tokio::sync::{mpsc, oneshot, watch};

use super::bell::Bell;
use super::cluster::{Cluster, ClusterView, Effect, Pin, Setup};
use super::data_dir::DataDir;
use super::loop_stats::Watch;
use super::{Command, NodeError, Snapshot};
use crate::control::request::{Reply, Request};
use crate::control::{Control, Input, LocalId, Output};
use crate::kafka::Kafka;
use crate::store::{Identity, Store, StoreEvent};

/// How long a stop waits for shards to flush and for clients to take their answers.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// How long a snapshot waits for a shard's counters.
const STATS_DEADLINE: Duration = Duration::from_secs(2);
/// Messages that are taken from one shard before the others get their turn.
const BATCH_MAX: usize = 256;
/// Messages that wait for a shard's ring, beyond which it gets no further connections to other nodes' shards.
const STREAMS_BACKLOG_MAX: usize = 1024;
/// When to try again to hand a message to a shard whose ring was full.
const RING_RETRY: Duration = Duration::from_millis(1);

/// Everything that the control core's thread owns.
pub(super) struct ControlCore {
    pub control: Control,
    pub shards: Shards<Kafka>,
    pub store: Store,
    pub identity: Identity,
    pub store_events: mpsc::UnboundedReceiver<StoreEvent>,
    pub commands: mpsc::Receiver<Command>,
    pub ready: watch::Sender<bool>,
    /// Held until the node has ended.
    pub data_dir: DataDir,
}

/// Runs the control core until the node has stopped or cannot go on.
pub(super) fn run(
    core: ControlCore,
    setup: Setup,
    pin_to: Option<usize>,
    admin: Option<(std::net::TcpListener, mpsc::Sender<Command>)>,
) -> Result<(), NodeError> {
    let failed = |error: &dyn std::fmt::Display| NodeError::Resources(error.to_string());
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let anywhere = rustix::thread::sched_getaffinity(None).map_err(|error| failed(&error))?;
    let pin = Pin { to: pin_to, anywhere };
    // A thread begins where its maker is: those that wait for the disk are not to do so on the control core.
    builder.on_thread_start(move || {
        // Where it is not allowed, such a thread takes turns with the control core, which is slower and works.
        let _ = rustix::thread::sched_setaffinity(None, &anywhere);
    });
    let runtime = builder.enable_all().build().map_err(|error| failed(&error))?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        pin.hold()?;
        let cluster = Cluster::new(setup, pin)?;
        if let Some((listener, commands)) = admin {
            let listener = tokio::net::TcpListener::from_std(listener).map_err(|error| failed(&error))?;
            tokio::spawn(super::http::serve(listener, commands));
        }
        Loop::new(core, cluster)?.run().await
    })
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A snapshot that waits for the shards' counters.
struct Asked {
    id: u64,
    deadline: Instant,
    shards: Vec<(ShardId, Option<ShardStats>)>,
    reply: oneshot::Sender<Snapshot>,
}

struct Loop {
    core: ControlCore,
    cluster: Cluster,
    bell: Bell,
    /// Of the image that the peers know of.
    learned: Option<Revision>,
    /// By shard: messages that its ring had no room for, in order. Control bounds what it has to say at a time.
    backlog: Vec<VecDeque<ToDriver<Kafka>>>,
    waiting: VecDeque<(LocalId, oneshot::Sender<Reply>)>,
    local_next: u64,
    asked: Vec<Asked>,
    asked_next: u64,
    /// Set when the node has stopped: the shards that did not in time, or under which registration all did.
    stopped: Option<(Vec<ShardId>, Option<RegistrationEpoch>)>,
    watch: Watch,
}

impl Loop {
    fn new(core: ControlCore, cluster: Cluster) -> Result<Self, NodeError> {
        let bell =
            Bell::new(Arc::clone(&core.shards.doorbell)).map_err(|e| NodeError::Resources(e.to_string()))?;
        let backlog = core.shards.links.iter().map(|_| VecDeque::new()).collect();
        let watch = Watch::start(core.shards.links.len());
        Ok(Self {
            core,
            cluster,
            bell,
            learned: None,
            backlog,
            waiting: VecDeque::new(),
            local_next: 0,
            asked: Vec::new(),
            asked_next: 0,
            stopped: None,
            watch,
        })
    }

    fn now(&self) -> Instant {
        clock::now()
    }

    async fn run(mut self) -> Result<(), NodeError> {
        self.drain_outputs()?;
        let effects = self.cluster.begin().await?;
        self.carry_out(effects)?;
        loop {
            self.watch.on_turn();
            self.take_from_shards()?;
            self.retry_backlog();
            self.answer_snapshots();
            if self.core.control.poll_timeout().is_some_and(|at| at <= self.now()) {
                self.handle(Input::Timeout)?;
            }
            if let Some((late, clean)) = self.stopped.take() {
                return self.end(late, clean).await;
            }
            let may_sleep = self.core.shards.may_sleep();
            self.wait(may_sleep).await?;
        }
    }

    /// Waits for whatever comes first. While shards have more to say it does not sleep, but store, commands and HTTP
    /// get their turn, however busy the shards are.
    async fn wait(&mut self, may_sleep: bool) -> Result<(), NodeError> {
        let wake_at = self.wake_at();
        let until = wake_at.map(|at| tokio::time::Instant::now() + at.since(self.now()));
        let timeout = async {
            match until {
                _ if !may_sleep => tokio::task::yield_now().await,
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.bell.rung() => self.core.shards.doorbell.up(),
            event = self.core.store_events.recv() => {
                self.core.shards.doorbell.up();
                if let Some(event) = event {
                    self.on_store(event).await?;
                }
            }
            happened = self.cluster.next(clock::now) => {
                self.core.shards.doorbell.up();
                let now = clock::now();
                let effects = self.cluster.handle(now, happened, self.core.control.image())?;
                self.carry_out(effects)?;
            }
            command = self.core.commands.recv() => {
                self.core.shards.doorbell.up();
                self.on_command(command.unwrap_or(Command::Stop))?;
            }
            () = timeout => self.core.shards.doorbell.up(),
        }
        Ok(())
    }

    fn wake_at(&self) -> Option<Instant> {
        let retry = self.backlog.iter().any(|b| !b.is_empty()).then(|| self.now() + RING_RETRY);
        let stats = self.asked.iter().map(|a| a.deadline).min();
        [self.core.control.poll_timeout(), retry, stats].into_iter().flatten().min()
    }

    fn take_from_shards(&mut self) -> Result<(), NodeError> {
        for shard in 0..self.core.shards.links.len() {
            for _ in 0..BATCH_MAX {
                let Some(message) = self.core.shards.links[shard].recv() else { break };
                let shard = self.core.shards.links[shard].shard;
                match message {
                    ToControl::Stats { id, stats } => self.on_stats(shard, id, *stats),
                    ToControl::Dial { node, shard: remote } => {
                        let effect = self.cluster.dial(shard, node, remote, self.core.control.image());
                        self.carry_out(effect.into_iter().collect())?;
                    }
                    message => self.handle(Input::FromShard { shard, message })?,
                }
            }
        }
        while let Some((shard, exit)) = self.core.shards.try_exit() {
            match exit {
                ShardExit::Stopped => {}
                ShardExit::Fatal(reason) => return Err(NodeError::Shard { shard, reason }),
                ShardExit::Panicked => return Err(NodeError::ShardPanicked { shard }),
            }
        }
        Ok(())
    }

    fn handle(&mut self, input: Input) -> Result<(), NodeError> {
        let now = self.now();
        match &input {
            Input::Committed { revision, .. } => self.watch.on_committed(*revision, now),
            Input::FromShard { shard, message: ToControl::Applied { revision } } => {
                self.watch.on_applied(usize::from(shard.0), *revision, now);
            }
            _ => {}
        }
        self.core.control.handle(now, input);
        // Before the shards are told of the same image, and may ask for connections to its nodes.
        let image = self.core.control.image();
        if self.learned != Some(image.revision) {
            self.learned = Some(image.revision);
            self.cluster.learn(image);
        }
        self.drain_outputs()
    }

    fn drain_outputs(&mut self) -> Result<(), NodeError> {
        while let Some(output) = self.core.control.poll_output() {
            match output {
                Output::Propose { proposal, entry } => self.cluster.propose(proposal, &entry),
                Output::Keep { id, changes } => self.core.store.keep(id, changes),
                Output::ToShard { shard, message } => self.tell(shard, ToDriver::Control(message)),
                Output::LocalReply { id, reply } => {
                    if let Some(at) = self.waiting.iter().position(|(waiting, _)| *waiting == id)
                        && let Some((_, asker)) = self.waiting.remove(at)
                    {
                        // Who asked may have gone.
                        let _ = asker.send(reply);
                    }
                }
                Output::Ready => {
                    self.core.ready.send_replace(true);
                }
                Output::Stopped { late, clean } => self.stopped = Some((late, clean)),
                Output::Fatal(reason) => return Err(NodeError::Control(reason)),
            }
        }
        Ok(())
    }

    fn tell(&mut self, shard: ShardId, message: ToDriver<Kafka>) {
        let at = usize::from(shard.0);
        if self.backlog[at].is_empty() {
            match self.core.shards.links[at].hand_over(message) {
                Ok(()) => {}
                Err(Full(message)) => self.backlog[at].push_back(message),
            }
        } else {
            self.backlog[at].push_back(message);
        }
    }

    /// Hands over what became of a connection. A shard that takes nothing for long gets no more of them: one that it asked
    /// for has failed, others are closed and come again.
    fn hand_over(&mut self, shard: ShardId, message: ToDriver<Kafka>) {
        let is_far_behind = self.backlog[usize::from(shard.0)].len() >= STREAMS_BACKLOG_MAX;
        match message {
            ToDriver::Adopt(adopted) if is_far_behind => {
                if adopted.dialed {
                    let (node, remote) = (adopted.node, adopted.remote_shard);
                    self.tell(shard, ToDriver::DialFailed { node, shard: remote });
                }
            }
            message => self.tell(shard, message),
        }
    }

    fn retry_backlog(&mut self) {
        for (link, backlog) in self.core.shards.links.iter().zip(&mut self.backlog) {
            while let Some(message) = backlog.pop_front() {
                if let Err(Full(message)) = link.hand_over(message) {
                    backlog.push_front(message);
                    break;
                }
            }
        }
    }

    async fn on_store(&mut self, event: StoreEvent) -> Result<(), NodeError> {
        match event {
            StoreEvent::Input(input) => self.handle(input),
            StoreEvent::ClusterKept => {
                let effects = self.cluster.on_kept().await?;
                self.carry_out(effects)
            }
            StoreEvent::Failed(error) => Err(NodeError::Store(error)),
        }
    }

    /// Does what the cluster wants.
    fn carry_out(&mut self, effects: Vec<Effect>) -> Result<(), NodeError> {
        for effect in effects {
            match effect {
                Effect::Input(input) => self.handle(input)?,
                Effect::WantImage(reply) => {
                    // A log that has ended does not wait for it.
                    let _ = reply.send(Box::new(self.core.control.image().clone()));
                }
                Effect::Keep { cluster, founders } => {
                    let identity = &mut self.core.identity;
                    (identity.cluster_id, identity.founders) = (cluster.to_string(), founders);
                    self.core.store.keep_cluster(identity.clone());
                }
                Effect::Request { request, reply } => self.on_request(request, reply)?,
                Effect::ToDriver { shard, message } => self.hand_over(shard, message),
                Effect::Lease { call, asking, standing, times } => {
                    let counts = self.core.control.counts_on(times, standing, asking);
                    call.answer(Bytes::from_static(if counts { &[1] } else { &[0] }));
                }
                Effect::LeaseOfLeader { asking, standing, times, now } => {
                    if self.core.control.counts_on(times, standing, asking) {
                        let sent = now.as_nanos().saturating_sub(nanos(standing.quorum_age));
                        self.handle(Input::Lease { until: times.lease_of(Instant::from_nanos(sent)) })?;
                    }
                }
            }
        }
        Ok(())
    }

    fn on_request(&mut self, request: Request, reply: oneshot::Sender<Reply>) -> Result<(), NodeError> {
        self.local_next += 1;
        let id = LocalId(self.local_next);
        self.waiting.push_back((id, reply));
        self.handle(Input::Local { id, request })
    }

    fn on_command(&mut self, command: Command) -> Result<(), NodeError> {
        match command {
            Command::Request { request, reply } => self.on_request(request, reply),
            Command::Snapshot { reply } => {
                self.ask_stats(reply);
                Ok(())
            }
            Command::Cluster { change, reply } => {
                let reply = Box::new(move |changed| {
                    // Who asked may have gone.
                    let _ = reply.send(changed);
                });
                let effects = self.cluster.change(self.now(), change, self.core.control.image(), reply)?;
                self.carry_out(effects)
            }
            Command::Keys { change, reply } => {
                // Who asked may have gone.
                let _ = reply.send(self.cluster.change_keys(change));
                Ok(())
            }
            Command::Stop => {
                self.cluster.on_stop();
                self.handle(Input::Stop { deadline: STOP_DEADLINE })
            }
        }
    }

    fn ask_stats(&mut self, reply: oneshot::Sender<Snapshot>) {
        self.asked_next += 1;
        let id = self.asked_next;
        let shards: Vec<ShardId> = self.core.shards.links.iter().map(|link| link.shard).collect();
        for &shard in &shards {
            self.tell(shard, ToDriver::Control(FromControl::Stats { id }));
        }
        let shards = shards.into_iter().map(|shard| (shard, None)).collect();
        self.asked.push(Asked { id, deadline: self.now() + STATS_DEADLINE, shards, reply });
    }

    fn on_stats(&mut self, shard: ShardId, id: u64, stats: ShardStats) {
        if let Some(asked) = self.asked.iter_mut().find(|asked| asked.id == id)
            && let Some((_, place)) = asked.shards.iter_mut().find(|(of, _)| *of == shard)
        {
            *place = Some(stats);
        }
    }

    fn answer_snapshots(&mut self) {
        let now = self.now();
        let mut at = 0;
        while at < self.asked.len() {
            let asked = &self.asked[at];
            if asked.deadline > now && asked.shards.iter().any(|(_, stats)| stats.is_none()) {
                at += 1;
                continue;
            }
            let asked = self.asked.swap_remove(at);
            let ClusterView { forming, raft, net, gossip } = self.cluster.view();
            let snapshot = Snapshot {
                ready: self.core.control.is_ready(),
                image: Arc::new(self.core.control.image().clone()),
                control: self.core.control.stats(),
                control_loop: self.watch.stats(),
                raft,
                forming,
                net,
                gossip,
                shards: asked.shards,
            };
            // Who asked may have gone.
            let _ = asked.reply.send(snapshot);
        }
    }

    /// The shards have stopped: lets metadata log and store finish and gives the data directory back.
    async fn end(mut self, late: Vec<ShardId>, clean: Option<RegistrationEpoch>) -> Result<(), NodeError> {
        self.cluster.leave();
        self.cluster.shutdown().await;
        let ControlCore { mut store, identity, shards, data_dir, .. } = self.core;
        if !late.is_empty() {
            return Err(NodeError::Late(late));
        }
        for (shard, exit) in shards.join() {
            match exit {
                ShardExit::Stopped => {}
                ShardExit::Fatal(reason) => return Err(NodeError::Shard { shard, reason }),
                ShardExit::Panicked => return Err(NodeError::ShardPanicked { shard }),
            }
        }
        // The last word: everything that was acknowledged is on the disk.
        if clean.is_some() {
            store.keep_cluster(Identity { clean_stop: clean, ..identity });
        }
        drop(store);
        drop(data_dir);
        Ok(())
    }
}
