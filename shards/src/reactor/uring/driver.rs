//! The loop of one shard core: completions in, the machine, operations out, one system call.
//!
//! It runs on the thread that made it and owns all that the shard has of the outside world. A turn reads the clock
//! once, reaps what completed, hands the machine all of it, drains the machine's outputs, and enters the kernel once
//! to submit what they ask for and to wait for what comes next; only a few small sends go out before. It holds no rule
//! of any protocol; the two messages that it looks at are `Stop`, at which it ends accepting, and `Stopped`, after
//! which it ends.

#![expect(unsafe_code, reason = "driver: the kernel writes the eventfd's count into this loop's memory")]

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use io_uring::{opcode, types};
use tracing::{error, info};

use super::accept::Listeners;
use super::files::{Files, Journal, Partitions};
use super::links::{LinkConfig, Links};
use super::post::{Came, Post};
use super::ring::{Completion, Kind, Ring, Tag, Wait};
use super::spin::Spinner;
use crate::front::CloseReason;
use crate::ids::ShardId;
use crate::mail::{FromControl, ToControl};
use crate::reactor::boot::ShardExit;
use crate::reactor::clock;
use crate::reactor::handover::ToDriver;
use crate::shard::{Input, Machine, Output, PeerInput};
use crate::time::Instant;

/// How long the end waits for operations in flight.
const TEARDOWN_MAX: Duration = Duration::from_secs(5);

/// How often a turn hands the machine what came. Most sends end at once: the second time the machine hears of those of
/// the first, and may send more. A reader that keeps pace must not keep a core in one turn.
const ROUNDS: usize = 2;

#[derive(Clone, Copy, Default, Debug)]
struct LoopCounters {
    turns: u64,
    parks: u64,
    timeouts: u64,
}

/// What a driver is made of, besides the machine.
pub(super) struct Parts<M: Machine> {
    pub shard: ShardId,
    pub ring: Ring,
    pub link: LinkConfig,
    pub listeners: Vec<OwnedFd>,
    pub journal: Journal,
    pub partitions: Partitions,
    pub post: Post<M::Front>,
    pub spinner: Spinner,
}

pub(super) struct Driver<M: Machine> {
    shard: ShardId,
    machine: M,
    links: Links,
    listeners: Listeners,
    files: Files,
    post: Post<M::Front>,
    spinner: Spinner,
    completions: Vec<Completion>,
    /// Where the kernel writes the eventfd's count.
    eventfd_count: Box<u64>,
    eventfd_armed: bool,
    exit: Option<ShardExit>,
    counters: LoopCounters,
    /// Last, so that memory it was given goes after it.
    ring: Ring,
}

impl<M: Machine> Driver<M> {
    pub fn new(parts: Parts<M>, machine: M) -> Self {
        let mut ring = parts.ring;
        Self {
            shard: parts.shard,
            machine,
            links: Links::new(parts.link, &mut ring),
            listeners: Listeners::new(parts.listeners),
            files: Files::new(parts.journal, parts.partitions),
            post: parts.post,
            spinner: parts.spinner,
            completions: Vec::new(),
            eventfd_count: Box::new(0),
            eventfd_armed: false,
            exit: None,
            counters: LoopCounters::default(),
            ring,
        }
    }

    /// Turns until the machine stopped or failed, and tells `report` which; of a failure before it ends what is in
    /// flight. Returns whether all of that ended: if not, the kernel still has some of this driver's memory, and it
    /// must not be dropped.
    pub fn run(&mut self, report: impl FnOnce(ShardExit)) -> bool {
        let mut now = clock::now();
        let exit = loop {
            self.turn(now);
            if let Some(exit) = self.exit.take() {
                break exit;
            }
            now = self.wait();
        };
        match exit {
            ShardExit::Stopped => {
                let clean = self.tear_down();
                report(exit);
                clean
            }
            ShardExit::Fatal(_) | ShardExit::Panicked => {
                report(exit);
                self.tear_down()
            }
        }
    }

    fn turn(&mut self, now: Instant) {
        self.counters.turns += 1;
        self.reap(now);
        self.links.on_time(&mut self.ring, now);
        for _ in 0..ROUNDS {
            self.feed(now);
            while let Some(output) = self.machine.poll_output() {
                self.carry_out(output);
            }
            self.links.flush(&mut self.ring, now);
            if self.links.events.is_empty() {
                break;
            }
        }
        self.listeners.arm(&mut self.ring, now);
        self.post.flush(&mut self.ring);
        self.arm_eventfd();
    }

    fn reap(&mut self, now: Instant) {
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.reap(&mut completions);
        for c in completions.drain(..) {
            match c.tag.kind {
                Kind::Recv => self.links.on_recv(&mut self.ring, now, &c),
                Kind::Send => self.links.on_send(&mut self.ring, now, &c),
                Kind::Disk => self.files.on_completion(&mut self.ring, &c),
                Kind::Accept => {
                    if let Some((socket, peer)) = self.listeners.on_completion(now, &c) {
                        self.links.on_accepted(now, socket, peer);
                    }
                }
                Kind::Wake => self.post.on_wake_completion(&c),
                Kind::Eventfd => self.eventfd_armed = false,
                // A wake-up has done its work by waking.
                Kind::Woken | Kind::Ignored => {}
            }
        }
        self.completions = completions;
    }

    /// Hands the machine what came, a whole batch before its outputs are asked for.
    fn feed(&mut self, now: Instant) {
        for event in self.files.events.drain(..) {
            self.machine.handle(now, Input::Disk(event));
        }
        let mut stop = false;
        self.post.drain(|came| {
            let input = match came {
                Came::FromShard(mail) => Input::Mail(mail),
                Came::FromControl(ToDriver::Control(message)) => {
                    stop |= matches!(message, FromControl::Stop { .. });
                    Input::Control(message)
                }
                Came::FromControl(ToDriver::DialFailed { node, shard }) => {
                    Input::Peer(PeerInput::DialFailed { node, shard })
                }
                Came::FromControl(ToDriver::Adopt(adopted)) => return self.links.adopt(now, adopted),
            };
            self.machine.handle(now, input);
        });
        if stop {
            self.listeners.stop(&mut self.ring);
        }
        for event in self.links.events.drain(..) {
            self.machine.handle(now, event.into_input());
        }
        if self.machine.poll_timeout().is_some_and(|at| at <= now) {
            self.counters.timeouts += 1;
            self.machine.handle(now, Input::Timeout);
        }
    }

    fn carry_out(&mut self, output: Output<M::Front>) {
        match output {
            Output::Send { conn, parts } => self.links.send(conn, parts),
            Output::Disk(op) => self.files.start(&mut self.ring, op),
            Output::Mail { to, mail } => self.post.send_to_shard(to, mail),
            Output::Receive { conn, on } => self.links.receive(&mut self.ring, conn, on),
            Output::Close { conn, flush, reason } => self.links.close(&mut self.ring, conn, flush, reason),
            Output::Control(mut message) => {
                if let ToControl::Stats { stats, .. } = &mut message {
                    stats.driver = self.stats();
                }
                if matches!(message, ToControl::Stopped) {
                    self.exit.get_or_insert(ShardExit::Stopped);
                }
                self.post.send_to_control(message);
            }
            Output::Fatal(reason) => {
                error!(shard = %self.shard, "{reason}");
                self.exit.get_or_insert(ShardExit::Fatal(reason));
            }
        }
    }

    /// Enters the kernel, after a spin where that pays, and sleeps there when nothing is to be done. Returns the
    /// time at which the next turn begins.
    fn wait(&mut self) -> Instant {
        let now = clock::now();
        let deadline = [self.machine.poll_timeout(), self.links.next(), self.listeners.next()]
            .into_iter()
            .flatten()
            .min();
        let events = !self.links.events.is_empty() || !self.files.events.is_empty();
        if events || deadline.is_some_and(|at| at <= now) || self.spin(now) || !self.may_sleep() {
            self.ring.enter(Wait::No);
            return clock::now();
        }
        let wait = match [deadline.map(|at| at - now), self.post.retry()].into_iter().flatten().min() {
            Some(time) => Wait::AtMost(time),
            None => Wait::Forever,
        };
        self.counters.parks += 1;
        self.ring.enter(wait);
        self.post.doorbell().up();
        let woken = clock::now();
        self.spinner.parked(woken - now);
        woken
    }

    /// Whether spinning found something to do.
    fn spin(&mut self, now: Instant) -> bool {
        let budget = self.spinner.budget(now);
        if budget == Duration::ZERO {
            return false;
        }
        if self.ring.has_submissions() {
            self.ring.enter(Wait::No);
        }
        let (ring, post) = (&mut self.ring, &self.post);
        self.spinner.spin(budget, clock::now, || ring.has_completions() || !post.is_empty())
    }

    fn may_sleep(&self) -> bool {
        self.post.doorbell().may_sleep(|| self.post.is_empty())
    }

    fn arm_eventfd(&mut self) {
        if std::mem::replace(&mut self.eventfd_armed, true) {
            return;
        }
        let fd = types::Fd(self.post.doorbell().as_raw_fd());
        let count = (&raw mut *self.eventfd_count).cast();
        // SAFETY: the count is in a box that lives as long as this loop, which is not dropped before the operation
        // completed.
        unsafe { self.ring.push(opcode::Read::new(fd, count, 8).build(), Tag::EVENTFD) };
    }

    /// Ends every operation in flight and waits for it, since each has memory of ours. Whether all ended.
    fn tear_down(&mut self) -> bool {
        let deadline = clock::now() + TEARDOWN_MAX;
        self.listeners.stop(&mut self.ring);
        self.links.close_all(&mut self.ring, CloseReason::Stopping);
        self.files.stop();
        self.ring.cancel(Tag::EVENTFD);
        loop {
            self.links.flush(&mut self.ring, clock::now());
            self.post.flush(&mut self.ring);
            self.links.events.clear();
            self.files.events.clear();
            let open = (self.links.open(), self.files.in_flight());
            let done = open == (0, 0) && !self.eventfd_armed && !self.listeners.in_flight();
            let now = clock::now();
            if done && self.post.retry().is_none() {
                // The last wake-ups have to be submitted.
                self.ring.enter(Wait::No);
                self.links.unregister(&self.ring);
                info!(shard = %self.shard, "stopped");
                return true;
            }
            if now >= deadline {
                error!(
                    shard = %self.shard,
                    connections = open.0,
                    disk_operations = open.1,
                    "operations did not end within {TEARDOWN_MAX:?} of stopping; leaving them to the kernel"
                );
                return done;
            }
            self.ring.enter(Wait::AtMost(self.post.retry().unwrap_or(deadline - now)));
            self.reap(now);
        }
    }

    fn stats(&self) -> Vec<(&'static str, u64)> {
        let (ring, links, files) = (&self.ring.counters, &self.links.counters, &self.files.counters);
        vec![
            ("loop_turns", self.counters.turns),
            ("loop_parks", self.counters.parks),
            ("loop_timeouts", self.counters.timeouts),
            ("loop_spins", self.spinner.spins),
            ("loop_spins_found_work", self.spinner.found),
            ("ring_enters", ring.enters),
            ("ring_submitted", ring.submitted),
            ("ring_completions", ring.completions),
            ("ring_completion_overflows", ring.overflows),
            ("mail_wakes", self.post.counters.wakes),
            ("mail_overflowed", self.post.counters.overflowed),
            ("accept_pauses", self.listeners.pauses),
            ("connections_refused", links.refused),
            ("peers_opened", links.peers_opened),
            ("peers_closed", links.peers_closed),
            ("peers_refused", links.peers_refused),
            ("peer_bytes_received", links.peer_bytes_received),
            ("peer_bytes_sent", links.peer_bytes_sent),
            ("receives_without_buffer", links.no_buffers),
            ("receives_bulk", links.bulk),
            ("sends", links.sends),
            ("sends_by_ring", links.ring_sends),
            ("disk_writes", files.writes),
            ("disk_syncs", files.syncs),
            ("disk_reads", files.reads),
            ("disk_files_prepared", files.prepared),
            ("disk_continued", files.continued),
            ("disk_files_recycled", files.recycled),
            ("disk_files_removed", files.removed),
            ("disk_puts", files.puts),
            ("disk_put_bytes", files.put_bytes),
            ("disk_file_syncs", files.file_syncs),
            ("disk_folder_syncs", files.folder_syncs),
            ("disk_write_backs", files.write_backs),
            ("disk_checkpoints", files.replaced),
            ("disk_files_evicted", self.files.evicted()),
        ]
    }
}
