//! The worker against servers that stall, hang up or never answer.

use super::*;
use crate::floor::echo::EchoWire;
use crate::load::recorder::{Interval, Note, Phase, Role};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

const MESSAGE_BYTES: usize = 16;
const STALL: Duration = Duration::from_millis(300);

/// Echoes; stalls once after `stall_after` messages of a connection, and hangs up on the first connection that has
/// echoed `hang_up_after`.
fn server(stall_after: u64, hang_up_after: u64) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let hung_up = Arc::new(AtomicBool::new(false));
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let hung_up = hung_up.clone();
            std::thread::spawn(move || {
                let mut message = [0; MESSAGE_BYTES];
                let mut count = 0;
                while stream.read_exact(&mut message).is_ok() && stream.write_all(&message).is_ok() {
                    count += 1;
                    if count == stall_after {
                        std::thread::sleep(STALL);
                    }
                    if count == hang_up_after && !hung_up.swap(true, Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
    });
    address
}

struct Case {
    pace: Pace,
    connections: usize,
    in_flight: usize,
    duration_ms: u64,
    quota: Option<u64>,
}

fn run(address: std::net::SocketAddr, case: &Case) -> Interval {
    let end_ns = if case.quota.is_some() { u64::MAX } else { case.duration_ms * 1_000_000 };
    let window = Window { start_ns: 0, end_ns };
    let plan = Plan {
        clock: RunClock::start(),
        window,
        drain_ns: 20 * SECOND,
        timeout_ns: 30 * SECOND,
        pace: case.pace,
        quota: case.quota,
        records_max: None,
        records_per_request: 1,
        bytes_per_request: MESSAGE_BYTES as u64,
        finish_line: None,
        abort: Arc::default(),
        spin_ns: 0,
    };
    let lane = |index| {
        let wire = EchoWire { address, message: vec![1; MESSAGE_BYTES].into() };
        let stream = TcpStream::connect(address).unwrap();
        Lane::new(index, wire, stream, case.in_flight, 4096)
    };
    let lanes = (0..case.connections).map(lane).collect();
    let (notes, seen) = channel();
    Worker::new(plan, lanes, Recorder::new(0, Role::Answers, window, notes)).run(case.in_flight);
    let mut total = Interval::empty(Role::Answers, Phase::Measured, 0, 0);
    for note in seen.iter() {
        match note {
            Note::Interval { interval, .. } => total.add(&interval),
            Note::Finished { result, .. } => result.unwrap(),
        }
    }
    total
}

fn slower_than(interval: &Interval, limit: Duration) -> u64 {
    let all = interval.latencies.len();
    all - interval.latencies.count_between(0, limit.as_nanos() as u64)
}

#[test]
fn a_stalled_server_shows_in_every_request_that_was_due_meanwhile() {
    // 1000 requests a second and a stall of 300 ms: those due in its first 250 ms wait at least 50 ms, whether or
    // not they could be sent. Nothing here fails on a slow machine, which only makes requests later.
    let address = server(200, u64::MAX);
    let pace = Pace::Open(Schedule::new(1000.0, 1, 1, 0));
    let case = Case { pace, connections: 1, in_flight: 1, duration_ms: 1000, quota: None };
    let total = run(address, &case);
    assert_eq!(total.latencies.len(), 1000, "every request of the schedule has a latency");
    assert_eq!(total.requests, 1000);
    let slow = slower_than(&total, Duration::from_millis(50));
    assert!(slow >= 240, "only {slow} requests felt the stall");
    assert!(total.latencies.max() >= STALL.as_nanos() as u64 * 95 / 100);
}

#[test]
fn a_closed_loop_sees_the_stall_once_per_request_in_flight() {
    let total = run(
        server(50, u64::MAX),
        &Case { pace: Pace::Closed, connections: 1, in_flight: 1, duration_ms: 0, quota: Some(200) },
    );
    assert_eq!((total.requests, total.latencies.len()), (200, 200));
    assert!(slower_than(&total, STALL * 9 / 10) >= 1);
}

#[test]
fn requests_on_a_lost_connection_are_sent_again_and_none_is_lost() {
    // However the connections share 500 requests, one of them answers at least 100.
    for (connections, in_flight) in [(1, 1), (1, 8), (3, 4)] {
        let case = Case { pace: Pace::Closed, connections, in_flight, duration_ms: 0, quota: Some(500) };
        let total = run(server(u64::MAX, 100), &case);
        assert_eq!(total.requests, 500, "{connections} connections");
        assert_eq!(total.troubles.connections_lost, 1);
        assert!(total.troubles.failed == 0 && total.troubles.unanswered == 0);
    }
}

#[test]
fn what_is_never_answered_is_counted_with_its_age() {
    // Accepts and never answers.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let window = Window { start_ns: 0, end_ns: 100_000_000 };
    let (notes, seen) = channel();
    let plan = Plan {
        clock: RunClock::start(),
        window,
        drain_ns: 100_000_000,
        timeout_ns: 30 * SECOND,
        pace: Pace::Open(Schedule::new(1000.0, 1, 1, 0)),
        quota: None,
        records_max: None,
        records_per_request: 1,
        bytes_per_request: 1,
        finish_line: None,
        abort: Arc::default(),
        spin_ns: 0,
    };
    let wire = EchoWire { address, message: vec![1; MESSAGE_BYTES].into() };
    let lane = Lane::new(0, wire, TcpStream::connect(address).unwrap(), 4, 4096);
    Worker::new(plan, vec![lane], Recorder::new(0, Role::Answers, window, notes)).run(4);
    let mut total = Interval::empty(Role::Answers, Phase::Measured, 0, 0);
    for note in seen.iter() {
        if let Note::Interval { interval, .. } = note {
            total.add(&interval);
        }
    }
    assert_eq!((total.requests, total.troubles.unanswered, total.latencies.len()), (0, 100, 100));
    assert!(total.latencies.min() >= 99_000_000, "each waited for at least the drain time");
}
