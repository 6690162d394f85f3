//! The collector: puts the workers' intervals together second by second, prints progress, samples CPU at the edges of
//! the measured window, and tells consumers when the producers are through.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;

use crate::cpu::CpuReading;
use crate::load::SECOND;
use crate::load::recorder::{Interval, Note, Phase, Role, Troubles};
use crate::load::worker::{FinishLine, Plan};
use crate::report::{Files, progress_line};

/// CPU of the server and of this process around the measured window.
pub struct CpuProbe {
    server: Option<u32>,
    /// Share of one core that the idle server used, connections open.
    pub idle_cores: Option<f64>,
    begin: Option<Sample>,
    end: Option<Sample>,
}

struct Sample {
    at_ns: u64,
    server: Option<CpuReading>,
    client: CpuReading,
}

impl CpuProbe {
    /// Watches the idle server for `idle` first, if there is a server to watch.
    pub fn new(server: Option<u32>, idle: Duration) -> Result<CpuProbe> {
        let mut idle_cores = None;
        if let Some(pid) = server {
            let before = CpuReading::of(pid).with_context(|| format!("--server-pid {pid}"))?;
            if !idle.is_zero() {
                std::thread::sleep(idle);
                let used = CpuReading::of(pid)?.since(&before);
                idle_cores = Some(used as f64 / idle.as_nanos() as f64);
            }
        }
        Ok(CpuProbe { server, idle_cores, begin: None, end: None })
    }

    fn sample(&self, at_ns: u64) -> Option<Sample> {
        let server = self.server.and_then(|pid| CpuReading::of(pid).ok());
        Some(Sample { at_ns, server, client: CpuReading::of(std::process::id()).ok()? })
    }

    fn used(&self) -> Option<CpuUse> {
        let (begin, end) = (self.begin.as_ref()?, self.end.as_ref()?);
        let server_ns = match (&begin.server, &end.server) {
            (Some(begin), Some(end)) => Some(end.since(begin)),
            _ => None,
        };
        let wall_ns = end.at_ns.saturating_sub(begin.at_ns).max(1);
        Some(CpuUse {
            wall_ns,
            server_ns,
            client_ns: end.client.since(&begin.client),
            idle_cores: self.idle_cores,
        })
    }
}

#[derive(Clone, Copy, Debug)]
pub struct CpuUse {
    pub wall_ns: u64,
    pub server_ns: Option<u64>,
    pub client_ns: u64,
    pub idle_cores: Option<f64>,
}

/// One second of the run, both roles.
pub struct Second {
    pub phase: Phase,
    /// Relative to the start of the measured window; negative during warm-up. Seconds.
    pub at: f64,
    pub length: f64,
    pub answers: Option<Interval>,
    pub arrivals: Option<Interval>,
}

impl Second {
    /// The role whose latency the run is about.
    pub fn headline(&self) -> Option<&Interval> {
        self.arrivals.as_ref().or(self.answers.as_ref())
    }
}

/// A second in numbers, for the page and the summary.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    pub at: f64,
    pub length: f64,
    pub records: u64,
    pub bytes: u64,
    pub p50_ns: u64,
    pub p99_ns: u64,
    pub max_ns: u64,
    pub troubles: u64,
}

/// Everything that the workers reported.
pub struct Outcome {
    pub window_ns: u64,
    /// Of the measured window: counts in the window, latencies of all that was due in it.
    pub answers: Interval,
    pub arrivals: Option<Interval>,
    pub points: Vec<Point>,
    /// Records acknowledged (or handed to the kernel, with acks=0) in all phases.
    pub acked: u64,
    /// Records of this run that came back, in all phases. End to end only.
    pub received: Option<u64>,
    /// Of all phases and roles.
    pub troubles: Troubles,
    pub cpu: Option<CpuUse>,
    /// Why a worker stopped early.
    pub failure: Option<String>,
}

/// Adds up counts of measured intervals, and latencies of measured and drain intervals.
struct Total {
    interval: Interval,
}

impl Total {
    fn new(role: Role) -> Total {
        Total { interval: Interval::empty(role, Phase::Measured, 0, 0) }
    }

    fn add(&mut self, interval: &Interval) {
        match interval.phase {
            Phase::Warmup => {}
            Phase::Measured => self.interval.add(interval),
            Phase::Drain => {
                let into = &mut self.interval;
                into.latencies.add(&interval.latencies).expect("equal bounds");
                into.send_lag.add(&interval.send_lag).expect("equal bounds");
            }
        }
    }
}

/// Seconds that not every worker has reported yet.
struct Desk {
    /// By begin.
    open: BTreeMap<u64, Second>,
    /// Per worker: it has reported everything before this time.
    reported_until: Vec<u64>,
    start_ns: u64,
}

impl Desk {
    fn put(&mut self, worker: usize, interval: Interval) {
        self.reported_until[worker] = interval.end_ns;
        let start = self.start_ns as f64;
        let second = self.open.entry(interval.begin_ns).or_insert_with(|| Second {
            phase: interval.phase,
            at: (interval.begin_ns as f64 - start) / SECOND as f64,
            length: 0.0,
            answers: None,
            arrivals: None,
        });
        let length = (interval.end_ns - interval.begin_ns) as f64 / SECOND as f64;
        second.length = second.length.max(length);
        let slot = match interval.role {
            Role::Answers => &mut second.answers,
            Role::Arrivals => &mut second.arrivals,
        };
        match slot {
            Some(sum) => sum.add(&interval),
            None => *slot = Some(interval),
        }
    }

    fn take_complete(&mut self) -> Option<Second> {
        let begin = *self.open.keys().next()?;
        let is_complete = self.reported_until.iter().all(|until| *until > begin);
        if is_complete { self.open.remove(&begin) } else { None }
    }
}

pub fn collect(
    notes: &Receiver<Note>,
    roles: &[Role],
    plan: &Plan,
    finish_line: Option<&FinishLine>,
    probe: &mut CpuProbe,
    mut files: Files,
) -> Result<Outcome> {
    let window = plan.window;
    let mut desk =
        Desk { open: BTreeMap::new(), reported_until: vec![0; roles.len()], start_ns: window.start_ns };
    let mut answers = Total::new(Role::Answers);
    let mut arrivals = roles.contains(&Role::Arrivals).then(|| Total::new(Role::Arrivals));
    let mut log = files.begin_log()?;
    let mut points = Vec::new();
    let mut troubles = Troubles::default();
    let (mut acked, mut failure, mut stopped_ns) = (0, None, 0);
    let mut senders_left = roles.iter().filter(|role| **role == Role::Answers).count();
    let mut everyone_left = roles.len();

    while everyone_left > 0 {
        let now = plan.clock.now();
        if probe.begin.is_none() && now >= window.start_ns {
            probe.begin = probe.sample(now);
        }
        if probe.end.is_none() && now >= window.end_ns {
            probe.end = probe.sample(now);
        }
        let next_edge = if probe.begin.is_none() { window.start_ns } else { window.end_ns };
        let wait = if next_edge > now { next_edge - now } else { SECOND };
        match notes.recv_timeout(Duration::from_nanos(wait.min(SECOND))) {
            Ok(Note::Interval { worker, interval }) => {
                troubles.add(&interval.troubles);
                match interval.role {
                    Role::Answers => {
                        acked += interval.records;
                        answers.add(&interval);
                    }
                    Role::Arrivals => {
                        if let Some(total) = arrivals.as_mut() {
                            total.add(&interval);
                        }
                    }
                }
                desk.put(worker, *interval);
            }
            Ok(Note::Finished { worker, at_ns, result }) => {
                everyone_left -= 1;
                desk.reported_until[worker] = u64::MAX;
                if let Err(reason) = result {
                    failure.get_or_insert(reason);
                    plan.abort.store(true, Ordering::Relaxed);
                }
                if roles[worker] == Role::Answers {
                    senders_left -= 1;
                    stopped_ns = stopped_ns.max(at_ns);
                    if senders_left == 0 {
                        if probe.end.is_none() {
                            probe.end = probe.sample(plan.clock.now());
                        }
                        if let Some(line) = finish_line {
                            line.set(acked, plan.clock.now() + plan.drain_ns);
                        }
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        while let Some(second) = desk.take_complete() {
            if second.phase == Phase::Measured {
                points.extend(point_of(&second));
            }
            progress_line(&second);
            if second.phase != Phase::Warmup {
                log.write(&second)?;
            }
        }
    }
    // A run by count is over when its last answer came; one by time that ended early, when it did.
    let end_ns = window.end_ns.min(stopped_ns).max(window.start_ns + 1);
    Ok(Outcome {
        window_ns: end_ns - window.start_ns,
        answers: answers.interval,
        arrivals: arrivals.map(|total| total.interval),
        points,
        acked,
        received: finish_line.map(FinishLine::received),
        troubles,
        cpu: probe.used(),
        failure,
    })
}

fn point_of(second: &Second) -> Option<Point> {
    let headline = second.headline()?;
    let at_quantile = |q| headline.latencies.value_at_quantile(q);
    let others = [&second.answers, &second.arrivals].into_iter().flatten();
    Some(Point {
        at: second.at,
        length: second.length,
        records: headline.records,
        bytes: headline.bytes,
        p50_ns: at_quantile(0.5),
        p99_ns: at_quantile(0.99),
        max_ns: headline.latencies.max(),
        troubles: others.map(|i| i.troubles.errors.values().sum::<u64>() + i.troubles.connections_lost).sum(),
    })
}

impl Outcome {
    pub fn headline(&self) -> &Interval {
        self.arrivals.as_ref().unwrap_or(&self.answers)
    }

    pub fn latencies(&self) -> &Histogram<u64> {
        &self.headline().latencies
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_complete_when_every_worker_reported_it() {
        let mut desk = Desk { open: BTreeMap::new(), reported_until: vec![0; 2], start_ns: SECOND };
        let interval = |begin: u64, end: u64| {
            let mut interval = Interval::empty(Role::Answers, Phase::Measured, begin * SECOND, end * SECOND);
            interval.records = 10;
            interval
        };
        desk.put(0, interval(1, 2));
        assert!(desk.take_complete().is_none());
        desk.put(1, interval(1, 2));
        let second = desk.take_complete().unwrap();
        assert_eq!((second.at, second.answers.unwrap().records), (0.0, 20));
        desk.put(0, interval(2, 3));
        desk.reported_until[1] = u64::MAX;
        assert!(desk.take_complete().is_some(), "a finished worker holds nothing up");
    }

    #[test]
    fn drain_counts_in_latencies_only() {
        let mut total = Total::new(Role::Answers);
        for phase in [Phase::Warmup, Phase::Measured, Phase::Drain] {
            let mut interval = Interval::empty(Role::Answers, phase, 0, SECOND);
            interval.requests = 1;
            interval.latencies.saturating_record(5_000);
            total.add(&interval);
        }
        assert_eq!((total.interval.requests, total.interval.latencies.len()), (1, 2));
    }
}
