//! One core's whole state machine: its partitions, their logs, its client connections. Floor 2, pure.
//!
//! The shard owns all of it outright; nothing here is locked or shared. Inputs are taken one by one, outputs are
//! drained after a batch of them, and asking the log for its operations at the end of the drain is what makes
//! one flush serve every append of the batch.

mod clients;
mod config;
mod deletions;
mod io;
mod look;
mod partitions;
mod peers;
mod reads;
mod search;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

pub use config::ReplicationConfig;
pub use io::{ClientInput, FatalReason, Input, Output, PeerInput};
pub use look::ReplicaLook;

use crate::front::Front;
use crate::ids::{ConnId, Map, NodeId, PartitionId, Revision, ShardId};
use crate::log::Slot;
use crate::log::disk::{DiskEvent, DiskOp, FileName, OpNo};
use crate::log::journal::{Cut, RecoveryReport};
use crate::log::storage::{Storage, StorageConfig, StorageEvent, StorageReport};
use crate::mail::{Answer, FromControl, PartitionError, ReplyTo, ShardMail, ToControl, Token};
use crate::stats::ShardStats;
use crate::time::{Instant, TimerTable};

use clients::Clients;
use partitions::Partitions;
use peers::Peers;
use reads::Reads;

/// What a driver drives: a state machine that takes inputs and is drained for outputs.
///
/// A driver hands over a batch of inputs, then drains the outputs, then waits for the next completion or for
/// `poll_timeout`, whichever is first. [`Shard`] is the one that serves; tests of drivers use smaller ones.
pub trait Machine {
    type Front: Front;

    /// Takes one input. Does no I/O and never blocks.
    fn handle(&mut self, now: Instant, input: Input<Self::Front>);

    /// The next output. Drain to `None` after every batch of inputs.
    fn poll_output(&mut self) -> Option<Output<Self::Front>>;

    /// When `handle` wants an [`Input::Timeout`]; ask again after every drain.
    fn poll_timeout(&self) -> Option<Instant>;
}

#[derive(Clone, Debug)]
pub struct ShardConfig {
    pub node: NodeId,
    pub shard: ShardId,
    pub storage: StorageConfig,
    /// Bytes sent to one client and not yet taken by it, beyond which its requests wait.
    pub unsent_bytes_max: usize,
    /// Requests of one connection that are worked on at once; further ones wait.
    pub in_flight_max: usize,
    /// Operations at other shards that are not answered yet; further ones are refused as overload.
    pub remote_ops_max: usize,
    pub replication: ReplicationConfig,
}

impl ShardConfig {
    /// The largest batch that any topic may allow.
    fn batch_bytes_max(&self) -> u32 {
        u32::try_from(self.storage.journal.batch_bytes_max).unwrap_or(u32::MAX)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Timer {
    Session(ConnId, Token),
    /// The earliest deadline of the produces that wait at a partition.
    Waiters(Slot),
    /// When the longest idle producer of a partition may be forgotten.
    Producers(Slot),
    /// The earliest deadline of the answers that are held back.
    Held,
    /// The earliest deadline of the deletions of records that wait for their flush.
    Deletions,
    /// A link to a shard of another node is to be tried again, or a subscription over it.
    Link(NodeId, ShardId),
    /// Records of leaders wait until the log takes more.
    Stalled,
    /// High watermarks that no records went with.
    News,
    /// Followers that are not in sync may have more records.
    CatchUp,
    /// Followers that lag are looked for.
    Lag,
    /// The lease on leading is over.
    Lease,
    /// Connections that are still open when a stop has waited long enough are closed.
    Stop,
}

/// One core's state machine. See the module's header.
pub struct Shard<F: Front> {
    config: ShardConfig,
    now: Instant,
    front: F,
    view: Option<F::View>,
    revision: Option<Revision>,
    clients: Clients<F>,
    partitions: Partitions,
    peers: Peers,
    /// Until when partitions may be led; `None`: as long as nothing else is said.
    lease: Option<Instant>,
    storage: Storage,
    reads: Reads,
    timers: TimerTable<Timer>,
    /// Answers to sessions of this shard that were not delivered yet.
    answers: VecDeque<(ConnId, Token, Answer)>,
    /// Flushes that the disk was given, and when.
    flushes: Map<OpNo, Instant>,
    /// Answers held back while the disk is behind: the bound on what a crash can take from `Replicated`.
    held: VecDeque<Held>,
    /// The earliest deadline in `held`.
    held_due: Option<Instant>,
    deletions: VecDeque<deletions::Deletion>,
    remote_ops: usize,
    outputs: VecDeque<Output<F>>,
    stop: Stop,
    stats: ShardStats,
}

/// An answer to an append that waits for the disk to catch up.
#[derive(Debug)]
struct Held {
    to: ReplyTo,
    answer: Answer,
    deadline: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stop {
    No,
    /// Everything appended is being flushed; no new requests are taken.
    Flushing,
    /// Everything is on disk; connections are closing.
    Closing,
    Done,
}

impl<F: Front> Shard<F> {
    /// A shard that begins with the recovery of its logs and then waits for its first assignments.
    pub fn new(config: ShardConfig, front: F) -> Self {
        Self {
            now: Instant::ZERO,
            front,
            view: None,
            revision: None,
            clients: Clients::default(),
            partitions: Partitions::new(config.node),
            peers: Peers::new(config.replication.seed),
            lease: None,
            storage: Storage::new(config.storage.clone()),
            reads: Reads::default(),
            timers: TimerTable::default(),
            answers: VecDeque::new(),
            flushes: Map::default(),
            held: VecDeque::new(),
            held_due: None,
            deletions: VecDeque::new(),
            remote_ops: 0,
            outputs: VecDeque::new(),
            stop: Stop::No,
            stats: new_stats(),
            config,
        }
    }

    fn on_control(&mut self, message: FromControl<F::View, F::Reply>) {
        match message {
            FromControl::Delta { revision, view, assign, unassign } => {
                // I7: what a shard was told only grows.
                if self.revision.is_some_and(|known| revision <= known) {
                    return;
                }
                self.revision = Some(revision);
                self.view = Some(view);
                for assignment in &assign {
                    self.assign(assignment);
                }
                for partition in unassign {
                    self.unassign(partition);
                }
                self.outputs.push_back(Output::Control(ToControl::Applied { revision }));
                self.wake_waiting_clients();
            }
            FromControl::Reply { conn, token, reply } => self.on_reply(conn, token, reply),
            FromControl::Stats { id } => {
                let stats = Box::new(self.snapshot());
                self.outputs.push_back(Output::Control(ToControl::Stats { id, stats }));
            }
            FromControl::Stop { deadline } => self.begin_stop(deadline),
            FromControl::Nodes(nodes) => self.on_nodes(&nodes),
            FromControl::IsrRefused { partition, partition_epoch, refusal } => {
                self.on_isr_refused(partition, partition_epoch, refusal);
            }
            FromControl::Lease { until } => self.on_lease(until),
        }
    }

    fn on_mail(&mut self, mail: ShardMail) {
        match mail {
            ShardMail::Op { reply_to, partition, op } => self.run_op(reply_to, partition, op),
            ShardMail::Answer { conn, token, answer } => {
                // A watch answers twice; only the first answer is the operation's.
                if !matches!(answer, Answer::Readable) {
                    self.remote_ops -= 1;
                }
                self.answers.push_back((conn, token, answer));
            }
        }
    }

    fn on_timeout(&mut self) {
        while let Some(timer) = self.timers.pop_due(self.now) {
            match timer {
                Timer::Session(conn, token) => self.on_session_timeout(conn, token),
                Timer::Waiters(slot) => self.expire_waiters(slot),
                Timer::Producers(slot) => self.expire_producers(slot),
                Timer::Held => self.expire_held(),
                Timer::Deletions => self.expire_deletions(),
                Timer::Link(node, shard) => self.on_link_due((node, shard)),
                Timer::Stalled => self.retry_stalled(),
                Timer::News => self.tell_news(),
                Timer::CatchUp => self.go_on_catching_up(),
                Timer::Lag => self.check_lag(),
                Timer::Lease => self.on_lease_over(),
                Timer::Stop => {
                    self.close_all(false);
                    self.close_all_streams();
                }
            }
        }
        if self.storage.poll_timeout().is_some_and(|at| at <= self.now) {
            self.storage.handle_timeout(self.now);
        }
    }

    /// Whether there was an event.
    fn drain_storage(&mut self) -> bool {
        let mut is_any = false;
        while let Some(event) = self.storage.poll_event() {
            is_any = true;
            match event {
                StorageEvent::Restored { slot, state } => self.restore(slot, &state),
                StorageEvent::ReplayedBatch { slot, header, base, is_noted } => {
                    self.replay(slot, &header, base, is_noted);
                }
                StorageEvent::ReplayedNote { slot, note, is_noted } => self.replay_note(slot, note, is_noted),
                StorageEvent::Recovered(report) => {
                    log_recovery(self.config.shard, &report);
                    self.on_recovered();
                    let partitions = self.partitions.ids();
                    self.outputs.push_back(Output::Control(ToControl::Recovered { partitions }));
                }
                StorageEvent::Flushed { upto } => self.on_flushed(upto),
                StorageEvent::BacklogCleared => self.release_held(),
                StorageEvent::Room => tracing::info!(shard = %self.config.shard, "the disk has room again"),
                StorageEvent::Started { slot, start } => {
                    if let Some(partition) = self.partitions.get_mut(slot) {
                        partition.start_at(start);
                    }
                    self.mark(slot);
                    // A leader that believes the old start would go on sending readers here.
                    self.owe_ack(slot);
                }
                StorageEvent::Read { ticket, result } => self.on_read(ticket, result),
                StorageEvent::FoundBatch { ticket, result } => {
                    self.on_read(ticket, result.map(|batch| batch.into_iter().collect()));
                }
                StorageEvent::Stopped => self.on_storage_stopped(),
                StorageEvent::Fatal(reason) => self.outputs.push_back(Output::Fatal(reason)),
            }
        }
        is_any
    }

    /// Gives an answer to whoever asked, here or on another shard.
    fn answer(&mut self, to: ReplyTo, answer: Answer) {
        if to.shard == self.config.shard {
            self.answers.push_back((to.conn, to.token, answer));
        } else {
            self.stats.mail_sent += 1;
            let mail = ShardMail::Answer { conn: to.conn, token: to.token, answer };
            self.outputs.push_back(Output::Mail { to: to.shard, mail });
        }
    }

    fn release_held(&mut self) {
        self.timers.cancel(Timer::Held);
        self.held_due = None;
        while let Some(held) = self.held.pop_front() {
            self.answer(held.to, held.answer);
        }
    }

    /// Keeps an answer until the disk has caught up, or its deadline has passed.
    fn hold(&mut self, held: Held) {
        if self.held_due.is_none_or(|due| held.deadline < due) {
            self.held_due = Some(held.deadline);
            self.timers.set(Timer::Held, held.deadline);
        }
        self.held.push_back(held);
    }

    fn expire_held(&mut self) {
        let now = self.now;
        let (expired, held) =
            std::mem::take(&mut self.held).into_iter().partition(|h: &Held| h.deadline <= now);
        self.held = held;
        self.held_due = self.held.iter().map(|h| h.deadline).min();
        if let Some(due) = self.held_due {
            self.timers.set(Timer::Held, due);
        }
        let expired: VecDeque<Held> = expired;
        for held in expired {
            self.answer(held.to, Answer::Appended(Err(PartitionError::TimedOut)));
        }
    }

    /// Until when this node may lead: past it, what it takes and says may be another leader's affair.
    fn on_lease(&mut self, until: Instant) {
        self.lease = Some(until);
        self.timers.set(Timer::Lease, until);
    }

    fn is_lease_over(&self) -> bool {
        self.lease.is_some_and(|until| until <= self.now)
    }

    /// Who waits for this leader is sent to look for the one that there is now.
    fn on_lease_over(&mut self) {
        tracing::warn!(shard = %self.config.shard, "nothing was heard of the controller for too long: leading is suspended");
        self.refuse_all_waiters(PartitionError::NotLeader);
        self.wake_all_watchers();
    }

    /// No new requests; everything appended is flushed, then what waits is answered, then connections close.
    fn begin_stop(&mut self, deadline: Duration) {
        if self.stop != Stop::No {
            return;
        }
        self.stop = Stop::Flushing;
        self.timers.set(Timer::Stop, self.now + deadline);
        self.pause_all_clients();
        self.stop_following();
        self.storage.stop(self.now);
    }

    fn on_storage_stopped(&mut self) {
        self.release_held();
        self.refuse_all_waiters(PartitionError::NotLeader);
        self.deliver();
        self.stop = Stop::Closing;
        self.close_all(true);
        self.close_all_streams();
        self.finish_stop();
    }

    fn finish_stop(&mut self) {
        if self.stop == Stop::Closing && self.clients.is_empty() && self.peers.is_empty() {
            self.stop = Stop::Done;
            self.outputs.push_back(Output::Control(ToControl::Stopped));
        }
    }

    fn time_flush(&mut self, event: &DiskEvent) {
        let (DiskEvent::Written { op, .. } | DiskEvent::Synced { op, .. }) = event else { return };
        if let Some(since) = self.flushes.remove(op)
            && let Some(histogram) = &mut self.stats.flush_latency
        {
            histogram.saturating_record(u64::try_from((self.now - since).as_nanos()).unwrap_or(u64::MAX));
        }
    }

    fn snapshot(&self) -> ShardStats {
        let mut stats = self.stats.clone();
        stats.connections = self.clients.len() as u64;
        stats.connections_closed = self.clients.closed_by_reason();
        stats.journal = self.storage.journal_stats();
        stats.storage = self.storage.stats();
        stats.replication = self.replication_stats();
        stats.front = self.front.stats();
        stats.partitions_total = self.partitions.len() as u64;
        stats.partitions = self.partitions.stats();
        stats
    }
}

impl<F: Front> Machine for Shard<F> {
    type Front = F;

    fn handle(&mut self, now: Instant, input: Input<F>) {
        assert!(now >= self.now, "time does not go back");
        self.now = now;
        match input {
            Input::Timeout => self.on_timeout(),
            Input::Control(message) => self.on_control(message),
            Input::Mail(mail) => self.on_mail(mail),
            Input::Client(input) => self.on_client(input),
            Input::Disk(event) => {
                self.time_flush(&event);
                self.storage.handle(now, event);
            }
            Input::Peer(input) => self.on_peer(input),
        }
        self.drain_storage();
        self.deliver();
    }

    fn poll_output(&mut self) -> Option<Output<F>> {
        loop {
            if let Some(output) = self.outputs.pop_front() {
                return Some(output);
            }
            // Before the disk: records are on their way to followers while the journal is written.
            if self.work_peers() {
                continue;
            }
            if let Some(op) = self.storage.poll_op(self.now, &self.partitions) {
                if let DiskOp::Write { op, sync: true, .. }
                | DiskOp::Sync { op, file: FileName::Journal(_) } = op
                {
                    self.flushes.insert(op, self.now);
                }
                return Some(Output::Disk(op));
            }
            // The end of recovery and the like, which no event of the disk announces. It may make the log go on.
            let is_any = self.drain_storage();
            self.deliver();
            if !is_any && self.outputs.is_empty() {
                return None;
            }
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        [self.timers.next(), self.storage.poll_timeout()].into_iter().flatten().min()
    }
}

fn new_stats() -> ShardStats {
    let histogram = || hdrhistogram::Histogram::new_with_bounds(100, 60_000_000_000, 2).ok();
    ShardStats { append_latency: histogram(), flush_latency: histogram(), ..ShardStats::default() }
}

fn log_recovery(shard: ShardId, report: &StorageReport) {
    let StorageReport { start, logs, segments, entries, damaged_logs, journal } = *report;
    let RecoveryReport { files, chunks, bytes, cut, .. } = journal;
    tracing::info!(%shard, ?start, logs, segments, entries, files, chunks, bytes, "logs recovered");
    if damaged_logs > 0 {
        tracing::error!(%shard, damaged_logs, "acknowledged records were lost, as `storage.recovery: truncate` allows");
    }
    if let Some(Cut { file, position, reason, bytes_after, damaged }) = cut {
        let loss = if damaged {
            "acknowledged records were lost with it, as `storage.recovery: truncate` allows"
        } else {
            "nothing acknowledged was in it"
        };
        tracing::warn!(%shard, %file, position, ?reason, bytes_after, "the end of the journal was cut off: {loss}");
    }
}

/// A partition named in an error log.
fn describe(partition: PartitionId, node: NodeId) -> String {
    format!("partition {partition} on node {node}")
}
