//! Counts and latencies of one worker thread, cut into intervals of a second and sent to the collector.
//!
//! A sample belongs to the interval in which its answer came. It is measured when it was *due* in the measured window:
//! an answer that comes in the drain phase still counts in the latencies (leaving it out would hide the slowest ones) but
//! not in the throughput.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;

use hdrhistogram::Histogram;

use super::{SECOND, Ticket};

/// Latencies are kept from 64 ns to 60 s with three significant digits; longer ones count as 60 s.
pub const LATENCY_NS_MAX: u64 = 60 * SECOND;

pub fn latency_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(64, LATENCY_NS_MAX, 3).expect("constant bounds are valid")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Warmup,
    Measured,
    Drain,
}

/// Which stream of samples: a run with producers and consumers has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Requests and their answers.
    Answers,
    /// From a record's due time to its arrival at the consumer.
    Arrivals,
}

/// The run's phases: `0 <= start_ns <= end_ns`, warm-up before, drain after. `end_ns` is `u64::MAX` when the run ends by
/// count.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub start_ns: u64,
    pub end_ns: u64,
}

impl Window {
    fn phase(&self, at_ns: u64) -> Phase {
        match at_ns {
            at if at < self.start_ns => Phase::Warmup,
            at if at < self.end_ns => Phase::Measured,
            _ => Phase::Drain,
        }
    }

    /// Intervals are cut at whole seconds from the window's start, and at its end.
    fn next_cut(&self, after_ns: u64) -> u64 {
        let offset = self.start_ns % SECOND;
        let second =
            if after_ns < offset { offset } else { ((after_ns - offset) / SECOND + 1) * SECOND + offset };
        if after_ns < self.end_ns { second.min(self.end_ns) } else { second }
    }
}

/// One interval of one worker.
#[derive(Clone, Debug)]
pub struct Interval {
    pub role: Role,
    pub phase: Phase,
    /// begin_ns < end_ns
    pub begin_ns: u64,
    pub end_ns: u64,
    pub latencies: Histogram<u64>,
    /// How late this client sent what it was free to send: its own fault, not the server's. Open loop only.
    pub send_lag: Histogram<u64>,
    pub requests: u64,
    pub records: u64,
    pub bytes: u64,
    pub troubles: Troubles,
}

/// Everything that is not a plain success.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// Answers with an error, by Kafka error code; retried ones included.
    pub errors: BTreeMap<i16, u64>,
    pub retried: u64,
    /// Requests given up: refused for good.
    pub failed: u64,
    /// Requests whose answer did not come in time; in the latencies with the age they had reached.
    pub unanswered: u64,
    pub connections_lost: u64,
    /// Records on the topic that this run did not write (end to end).
    pub foreign: u64,
}

impl Troubles {
    pub fn add(&mut self, other: &Troubles) {
        for (code, count) in &other.errors {
            *self.errors.entry(*code).or_default() += count;
        }
        self.retried += other.retried;
        self.failed += other.failed;
        self.unanswered += other.unanswered;
        self.connections_lost += other.connections_lost;
        self.foreign += other.foreign;
    }
}

impl Interval {
    pub fn empty(role: Role, phase: Phase, begin_ns: u64, end_ns: u64) -> Interval {
        Interval {
            role,
            phase,
            begin_ns,
            end_ns,
            latencies: latency_histogram(),
            send_lag: latency_histogram(),
            requests: 0,
            records: 0,
            bytes: 0,
            troubles: Troubles::default(),
        }
    }

    pub fn add(&mut self, other: &Interval) {
        self.latencies.add(&other.latencies).expect("equal bounds");
        self.send_lag.add(&other.send_lag).expect("equal bounds");
        self.requests += other.requests;
        self.records += other.records;
        self.bytes += other.bytes;
        self.end_ns = self.end_ns.max(other.end_ns);
        self.troubles.add(&other.troubles);
    }
}

/// What workers tell the collector.
pub enum Note {
    Interval {
        worker: usize,
        interval: Box<Interval>,
    },
    /// The worker is through; `Err` says why it had to stop early.
    Finished {
        worker: usize,
        at_ns: u64,
        result: Result<(), String>,
    },
}

pub struct Recorder {
    worker: usize,
    role: Role,
    window: Window,
    notes: Sender<Note>,
    current: Interval,
    /// Totals over all phases, for those who wait for a count.
    pub records_done: u64,
}

impl Recorder {
    pub fn new(worker: usize, role: Role, window: Window, notes: Sender<Note>) -> Recorder {
        let current = Interval::empty(role, window.phase(0), 0, window.next_cut(0));
        Recorder { worker, role, window, notes, current, records_done: 0 }
    }

    /// Closes the intervals that ended by `now_ns`. Called before anything is recorded at that time.
    pub fn roll(&mut self, now_ns: u64) {
        while now_ns >= self.current.end_ns {
            let begin = self.current.end_ns;
            self.send(Interval::empty(
                self.role,
                self.window.phase(begin),
                begin,
                self.window.next_cut(begin),
            ));
        }
    }

    fn send(&mut self, next: Interval) {
        let done = std::mem::replace(&mut self.current, next);
        // The collector outlives the workers unless the run is being torn down.
        let _ = self.notes.send(Note::Interval { worker: self.worker, interval: Box::new(done) });
    }

    pub fn on_sent(&mut self, ticket: &Ticket, free_since_ns: u64, now_ns: u64) {
        if self.is_measured(ticket.due_ns) {
            let lag = now_ns.saturating_sub(ticket.due_ns.max(free_since_ns));
            self.current.send_lag.saturating_record(lag);
        }
    }

    /// A request was answered (or, with acks=0, handed to the kernel).
    pub fn on_done(&mut self, ticket: &Ticket, now_ns: u64, records: u64, bytes: u64) {
        self.current.requests += 1;
        self.on_records(records, bytes);
        // An empty fetch waited for data, which says nothing about the server.
        if self.role == Role::Answers && records > 0 {
            self.record(ticket.due_ns, now_ns, 1);
        }
    }

    pub fn on_records(&mut self, records: u64, bytes: u64) {
        self.current.records += records;
        self.current.bytes += bytes;
        self.records_done += records;
    }

    pub fn on_arrival(&mut self, due_ns: u64, records: u64, now_ns: u64) {
        if self.role == Role::Arrivals {
            self.record(due_ns, now_ns, records);
        }
    }

    fn record(&mut self, due_ns: u64, now_ns: u64, count: u64) {
        if self.is_measured(due_ns) || self.current.phase == Phase::Warmup {
            self.current.latencies.saturating_record_n(now_ns.saturating_sub(due_ns), count);
        }
    }

    fn is_measured(&self, due_ns: u64) -> bool {
        due_ns >= self.window.start_ns
    }

    pub fn on_error(&mut self, code: i16) {
        *self.current.troubles.errors.entry(code).or_default() += 1;
    }

    pub fn on_retry(&mut self) {
        self.current.troubles.retried += 1;
    }

    pub fn on_failed(&mut self) {
        self.current.troubles.failed += 1;
    }

    pub fn on_connection_lost(&mut self) {
        self.current.troubles.connections_lost += 1;
    }

    pub fn on_foreign(&mut self, records: u64) {
        self.current.troubles.foreign += records;
    }

    /// Its answer never came: its age so far is the least that its latency can be.
    pub fn on_unanswered(&mut self, due_ns: u64, now_ns: u64) {
        self.current.troubles.unanswered += 1;
        if self.role == Role::Answers {
            self.record(due_ns, now_ns, 1);
        }
    }

    pub fn finish(mut self, now_ns: u64, result: Result<(), String>) {
        self.roll(now_ns);
        let next = Interval::empty(self.role, Phase::Drain, now_ns, u64::MAX);
        self.current.end_ns = now_ns.max(self.current.begin_ns + 1);
        self.send(next);
        let _ = self.notes.send(Note::Finished { worker: self.worker, at_ns: now_ns, result });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_cut_at_seconds_from_the_start_and_at_the_end() {
        let window = Window { start_ns: 1_500_000_000, end_ns: 3_700_000_000 };
        let mut cuts = vec![0];
        while cuts.len() < 7 {
            cuts.push(window.next_cut(*cuts.last().unwrap()));
        }
        let millis: Vec<u64> = cuts.iter().map(|ns| ns / 1_000_000).collect();
        assert_eq!(millis, [0, 500, 1500, 2500, 3500, 3700, 4500]);
        assert_eq!(window.phase(1_499_999_999), Phase::Warmup);
        assert_eq!(window.phase(3_700_000_000), Phase::Drain);
    }

    #[test]
    fn a_late_answer_counts_in_the_latencies_and_not_in_the_throughput() {
        let (notes, seen) = std::sync::mpsc::channel();
        let window = Window { start_ns: SECOND, end_ns: 2 * SECOND };
        let mut recorder = Recorder::new(0, Role::Answers, window, notes);
        let ticket = Ticket::new(1, SECOND + 1, SECOND + 1);
        recorder.roll(2 * SECOND + 5);
        recorder.on_done(&ticket, 2 * SECOND + 5, 1, 100);
        recorder.finish(2 * SECOND + 6, Ok(()));
        let (mut measured, mut drained, mut samples) = (0, 0, 0);
        for note in seen.iter() {
            if let Note::Interval { interval, .. } = note {
                samples += interval.latencies.len();
                match interval.phase {
                    Phase::Measured => measured += interval.requests,
                    Phase::Drain => drained += interval.requests,
                    Phase::Warmup => {}
                }
            }
        }
        assert_eq!((measured, drained, samples), (0, 1, 1));
    }
}
