//! One client thread and its connections, from the first request to the last answer.
//!
//! A single closed-loop connection is served with blocking reads and writes: two system calls a round trip, as in a bare
//! ping-pong. Everything else runs on one edge-triggered epoll, whose nanosecond timeout keeps the open-loop schedule.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use super::io::ReadState;
use super::lane::{Lane, Supply};
use super::recorder::{Recorder, Window};
use super::schedule::{Pace, Schedule};
use super::{RunClock, SECOND, Wire, WireError};

/// How often lanes are looked at for lost connections and overdue answers.
const HOUSEKEEPING_NS: u64 = 50_000_000;
/// Above this many requests in flight a blocking client could fill both socket buffers and wait for itself.
const BLOCKING_IN_FLIGHT_MAX: usize = 512;
const EVENTS_MAX: usize = 256;

/// Producers say here how many records were acked, and consumers stop when they have seen that many.
#[derive(Debug)]
pub struct FinishLine {
    /// `u64::MAX` until the producers are through.
    expected: AtomicU64,
    received: AtomicU64,
    /// Consumers stop here in any case. `u64::MAX` until the producers are through.
    deadline_ns: AtomicU64,
}

impl Default for FinishLine {
    fn default() -> FinishLine {
        FinishLine {
            expected: AtomicU64::new(u64::MAX),
            received: AtomicU64::new(0),
            deadline_ns: AtomicU64::new(u64::MAX),
        }
    }
}

impl FinishLine {
    pub fn set(&self, expected: u64, deadline_ns: u64) {
        self.expected.store(expected, Ordering::Release);
        self.deadline_ns.store(deadline_ns, Ordering::Release);
    }

    fn is_reached(&self, now_ns: u64) -> bool {
        self.received.load(Ordering::Acquire) >= self.expected.load(Ordering::Acquire)
            || now_ns >= self.deadline_ns.load(Ordering::Acquire)
    }

    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }
}

/// What a worker is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    pub clock: RunClock,
    pub window: Window,
    /// How long after the window's end answers are waited for.
    pub drain_ns: u64,
    /// The life of one request, retries included.
    pub timeout_ns: u64,
    pub pace: Pace,
    /// Requests to send in the measured window, when the run ends by count.
    pub quota: Option<u64>,
    /// Records after which a consumer stops.
    pub records_max: Option<u64>,
    /// What one request carries; for requests without answers, which cannot tell.
    pub records_per_request: u64,
    pub bytes_per_request: u64,
    pub finish_line: Option<Arc<FinishLine>>,
    /// Set when some worker had to stop, so that the others do not measure half a run.
    pub abort: Arc<AtomicBool>,
    /// Open loop: poll instead of sleeping when the next request is due within this time.
    pub spin_ns: u64,
}

/// Fresh requests: the schedule's debt per lane, or as many as fit in flight.
struct Source {
    pace: Pace,
    window: Window,
    /// No fresh request from here on: the window's end, or never for one that waits for the finish line.
    stop_ns: u64,
    quota_left: Option<u64>,
    lanes: u64,
    /// Open loop: requests of the schedule that became due so far.
    released: u64,
    /// Open loop, per lane: requests handed out.
    taken: Vec<u64>,
    is_stopped: bool,
}

impl Source {
    /// Open loop: the time at which the next request becomes due.
    fn next_release_ns(&self) -> Option<u64> {
        match self.pace {
            Pace::Open(schedule) if !self.is_over() => {
                Some(schedule.due_ns(self.released)).filter(|due| *due < self.stop_ns)
            }
            _ => None,
        }
    }

    /// Lane of a request that is due by now.
    fn release(&mut self, now_ns: u64) -> Option<usize> {
        let due = self.next_release_ns()?;
        if due > now_ns {
            return None;
        }
        if due >= self.window.start_ns
            && let Some(left) = self.quota_left.as_mut()
        {
            *left -= 1;
        }
        let lane = self.released % self.lanes;
        self.released += 1;
        Some(lane as usize)
    }

    fn is_over(&self) -> bool {
        self.is_stopped || self.quota_left == Some(0)
    }

    /// Requests that are due and not handed out, of all lanes.
    fn owed(&self) -> u64 {
        match self.pace {
            Pace::Closed => 0,
            Pace::Open(_) => self.released - self.taken.iter().sum::<u64>(),
        }
    }

    fn owed_to(&self, lane: usize) -> Option<(Schedule, u64)> {
        let Pace::Open(schedule) = self.pace else { return None };
        let n = self.taken[lane] * self.lanes + lane as u64;
        (n < self.released).then_some((schedule, n))
    }
}

impl Supply for Source {
    fn next_due(&mut self, lane: usize, now_ns: u64) -> Option<u64> {
        match self.pace {
            Pace::Closed => {
                if self.is_over() || now_ns >= self.stop_ns {
                    return None;
                }
                if now_ns >= self.window.start_ns
                    && let Some(left) = self.quota_left.as_mut()
                {
                    *left -= 1;
                }
                Some(now_ns)
            }
            Pace::Open(_) => {
                let (schedule, n) = self.owed_to(lane)?;
                self.taken[lane] += 1;
                Some(schedule.due_ns(n))
            }
        }
    }
}

pub struct Worker<W> {
    plan: Plan,
    lanes: Vec<Lane<W>>,
    source: Source,
    recorder: Recorder,
    next_housekeeping_ns: u64,
}

impl<W: Wire> Worker<W> {
    pub fn new(plan: Plan, lanes: Vec<Lane<W>>, recorder: Recorder) -> Worker<W> {
        assert!(!lanes.is_empty());
        let source = Source {
            pace: plan.pace,
            window: plan.window,
            stop_ns: if plan.finish_line.is_some() { u64::MAX } else { plan.window.end_ns },
            quota_left: plan.quota,
            lanes: lanes.len() as u64,
            released: 0,
            taken: vec![0; lanes.len()],
            is_stopped: false,
        };
        Worker { plan, lanes, source, recorder, next_housekeeping_ns: 0 }
    }

    /// Runs to the end and reports it. `in_flight` is what each lane was built with. Returns the open connections: the
    /// server may still read from them what was sent without waiting for answers.
    pub fn run(mut self, in_flight: usize) -> Vec<TcpStream> {
        let is_blocking = self.lanes.len() == 1
            && matches!(self.plan.pace, Pace::Closed)
            && in_flight <= BLOCKING_IN_FLIGHT_MAX;
        let result = if is_blocking { self.run_blocking() } else { self.run_epoll() };
        let now = self.plan.clock.now();
        self.recorder.roll(now);
        if self.plan.finish_line.is_none() {
            for lane in &mut self.lanes {
                lane.abandon(now, &mut self.recorder);
            }
            // Requests that were due and could not even be sent, because too many were in flight.
            for lane in 0..self.lanes.len() {
                while let Some(due) = self.source.owed_to(lane).map(|(schedule, n)| schedule.due_ns(n)) {
                    self.source.taken[lane] += 1;
                    self.recorder.on_unanswered(due, now);
                }
            }
        }
        self.recorder.finish(now, result.map_err(|error| error.to_string()));
        self.lanes.into_iter().filter_map(Lane::into_stream).collect()
    }

    fn is_finished(&mut self, now_ns: u64) -> bool {
        if self.plan.abort.load(Ordering::Relaxed) {
            return true;
        }
        if let Some(line) = &self.plan.finish_line {
            return line.is_reached(now_ns);
        }
        let has_enough = self.plan.records_max.is_some_and(|max| self.recorder.records_done >= max);
        if has_enough || self.lanes.iter().all(|lane| lane.wire.is_exhausted()) {
            self.source.is_stopped = true;
        }
        let is_over = self.source.is_over() || now_ns >= self.plan.window.end_ns;
        if !is_over {
            return false;
        }
        let is_idle = self.source.owed() == 0 && self.lanes.iter().all(Lane::is_idle);
        is_idle || now_ns >= self.plan.window.end_ns.saturating_add(self.plan.drain_ns)
    }

    fn publish_progress(&mut self) {
        if let Some(line) = &self.plan.finish_line {
            let done = std::mem::take(&mut self.recorder.records_done);
            if done > 0 {
                line.received.fetch_add(done, Ordering::AcqRel);
            }
        }
    }

    fn send(&mut self, lane: usize, now_ns: u64) -> bool {
        let is_hot = self.lanes[lane].send(now_ns, &mut self.source, &mut self.recorder);
        if is_hot {
            let now = self.plan.clock.now();
            self.recorder.roll(now);
            let (records, bytes) = (self.plan.records_per_request, self.plan.bytes_per_request);
            self.lanes[lane].complete_unanswered(now, records, bytes, &mut self.recorder);
        }
        is_hot
    }

    fn run_blocking(&mut self) -> Result<(), WireError> {
        self.lanes[0].set_blocking(true).map_err(|error| WireError::Stopped(error.to_string()))?;
        loop {
            let now = self.plan.clock.now();
            self.recorder.roll(now);
            if self.is_finished(now) {
                return Ok(());
            }
            self.keep_house(now)?;
            if self.send(0, now) {
                continue;
            }
            if !self.lanes[0].has_pending() {
                // Paused, down or exhausted.
                std::thread::sleep(std::time::Duration::from_millis(1));
                continue;
            }
            let state = self.lanes[0].read();
            self.on_read(0, state)?;
        }
    }

    /// Returns true when the socket may hold more.
    fn on_read(&mut self, lane: usize, state: std::io::Result<ReadState>) -> Result<bool, WireError> {
        let now = self.plan.clock.now();
        self.recorder.roll(now);
        match state {
            Ok(ReadState::Nothing) => Ok(false),
            Ok(read @ (ReadState::More | ReadState::Drained)) => {
                self.lanes[lane].take_answers(now, &mut self.recorder)?;
                self.publish_progress();
                Ok(read == ReadState::More)
            }
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                Err(WireError::TooLarge(super::io::INBOX_BYTES_MAX))
            }
            Ok(ReadState::Closed) | Err(_) => {
                self.lanes[lane].lose_connection(now, &mut self.recorder);
                Ok(false)
            }
        }
    }

    /// Lost connections and overdue answers; returns true when a connection came back.
    fn keep_house(&mut self, now_ns: u64) -> Result<bool, WireError> {
        if now_ns < self.next_housekeeping_ns {
            return Ok(false);
        }
        self.next_housekeeping_ns = now_ns + HOUSEKEEPING_NS;
        let mut is_any_back = false;
        for lane in &mut self.lanes {
            lane.expire(now_ns, self.plan.timeout_ns, &mut self.recorder)?;
            is_any_back |= lane.reconnect(now_ns, self.plan.timeout_ns)?;
        }
        Ok(is_any_back)
    }

    fn run_epoll(&mut self) -> Result<(), WireError> {
        let stopped = |error: rustix::io::Errno| WireError::Stopped(format!("epoll failed: {error}"));
        // The default slack of 50 us would be added to every open-loop send time.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        let poller = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(stopped)?;
        for lane in &mut self.lanes {
            lane.set_blocking(false).map_err(|error| WireError::Stopped(error.to_string()))?;
        }
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_MAX);
        let mut is_hot = false;
        loop {
            let now = self.plan.clock.now();
            self.recorder.roll(now);
            if self.is_finished(now) {
                return Ok(());
            }
            while let Some(lane) = self.source.release(now) {
                is_hot |= self.send(lane, now);
            }
            if now >= self.next_housekeeping_ns || is_hot {
                self.keep_house(now)?;
                self.register(&poller).map_err(stopped)?;
                is_hot = false;
                for lane in 0..self.lanes.len() {
                    is_hot |= self.send(lane, now);
                }
            }
            let wait_ns = if is_hot { 0 } else { self.sleep_until(now).saturating_sub(now) };
            let timeout = Timespec { tv_sec: (wait_ns / SECOND) as i64, tv_nsec: (wait_ns % SECOND) as _ };
            events.clear();
            match epoll::wait(&poller, spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(stopped(error)),
            }
            for event in &events {
                let lane = event.data.u64() as usize;
                let flags = event.flags;
                if flags.intersects(
                    epoll::EventFlags::IN
                        | epoll::EventFlags::RDHUP
                        | epoll::EventFlags::HUP
                        | epoll::EventFlags::ERR,
                ) {
                    // A short read empties the socket, except when the end of the stream lies behind it.
                    let to_the_end =
                        !flags.difference(epoll::EventFlags::IN | epoll::EventFlags::OUT).is_empty();
                    loop {
                        let state = self.lanes[lane].read();
                        let is_nothing = matches!(state, Ok(ReadState::Nothing | ReadState::Closed) | Err(_));
                        let is_more = self.on_read(lane, state)?;
                        if is_nothing || !(is_more || to_the_end) {
                            break;
                        }
                    }
                }
                let now = self.plan.clock.now();
                is_hot |= self.send(lane, now);
            }
        }
    }

    /// Puts new sockets into the epoll set; a closed one leaves it by itself.
    fn register(&mut self, poller: &OwnedFd) -> Result<(), rustix::io::Errno> {
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            if let (Some(stream), false) = (lane.stream(), lane.is_registered) {
                let interest = epoll::EventFlags::IN
                    | epoll::EventFlags::OUT
                    | epoll::EventFlags::RDHUP
                    | epoll::EventFlags::ET;
                epoll::add(poller, stream, epoll::EventData::new_u64(index as u64), interest)?;
                lane.is_registered = true;
            }
        }
        Ok(())
    }

    fn sleep_until(&self, now_ns: u64) -> u64 {
        let mut until = self.next_housekeeping_ns.min(now_ns + HOUSEKEEPING_NS);
        if let Some(due) = self.source.next_release_ns() {
            until = until.min(due.saturating_sub(self.plan.spin_ns));
        }
        for lane in &self.lanes {
            if let Some(wake) = lane.wake_ns() {
                until = until.min(wake.max(now_ns + 1_000_000));
            }
        }
        until
    }
}

#[cfg(test)]
mod tests;
