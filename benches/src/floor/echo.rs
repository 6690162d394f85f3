//! A tokio current_thread echo server in a process of its own, under the same client as the broker: what a socket server
//! pays per message when it does nothing else.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{FloorRow, Peer, listen};
use crate::cli::EchoShape;
use crate::cpu::CpuReading;
use crate::load::lane::Lane;
use crate::load::recorder::{Interval, Note, Phase, Recorder, Role, Window};
use crate::load::schedule::Pace;
use crate::load::worker::{Plan, Worker};
use crate::load::{Answer, Arrival, Outbox, Reply, RunClock, Ticket, Wire, WireError};
use crate::units::size;

const WARMUP: Duration = Duration::from_millis(500);
const READ_BYTES: usize = 64 << 10;
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// The echo's protocol: the answer is as long as the request.
pub struct EchoWire {
    pub address: SocketAddr,
    pub message: Arc<[u8]>,
}

impl Wire for EchoWire {
    fn encode(&mut self, _: &mut Ticket, out: &mut Outbox) {
        out.push(&[], &self.message);
    }

    fn decode(&mut self, _: &Ticket, bytes: &[u8], _: &mut Vec<Arrival>) -> Result<Option<Reply>, WireError> {
        let consumed = self.message.len();
        let reply = Reply { consumed, records: 1, bytes: consumed as u64, answer: Answer::Done };
        Ok((bytes.len() >= consumed).then_some(reply))
    }

    fn locate(&mut self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

struct Shape {
    name: String,
    bytes: usize,
    connections: usize,
    in_flight: usize,
}

fn shape_of(shape: EchoShape, window: usize, bytes: Option<usize>) -> Shape {
    let (default_bytes, connections, in_flight) = match shape {
        EchoShape::PingPong => (100, 1, 1),
        EchoShape::Pipelined => (100, 1, window),
        EchoShape::Pipelined1k => (1024, 1, window),
        EchoShape::Conns64 => (100, 64, 1),
    };
    let bytes = bytes.unwrap_or(default_bytes);
    let what = match (connections, in_flight) {
        (1, 1) => "ping-pong".to_owned(),
        (1, n) => format!("{n} in flight"),
        (n, _) => format!("{n} connections"),
    };
    Shape { name: format!("tokio echo, {what}, {}", size(bytes as u64)), bytes, connections, in_flight }
}

pub fn measure(
    shape: EchoShape,
    window: usize,
    bytes: Option<usize>,
    duration: Duration,
) -> Result<FloorRow> {
    let shape = shape_of(shape, window, bytes);
    if !(1..=MESSAGE_BYTES_MAX).contains(&shape.bytes) || shape.in_flight == 0 {
        bail!("messages must be 1 to {MESSAGE_BYTES_MAX} bytes, and --window at least 1");
    }
    let peer = Peer::start(&["echo".into()])?;
    let message: Arc<[u8]> = vec![0x5A; shape.bytes].into();
    let mut lanes = Vec::new();
    for index in 0..shape.connections {
        let wire = EchoWire { address: peer.address, message: Arc::clone(&message) };
        lanes.push(Lane::new(index, wire, peer.connect()?, shape.in_flight, READ_BYTES.max(shape.bytes * 2)));
    }
    let start_ns = WARMUP.as_nanos() as u64;
    let window = Window { start_ns, end_ns: start_ns + duration.as_nanos() as u64 };
    let plan = Plan {
        clock: RunClock::start(),
        window,
        drain_ns: 1_000_000_000,
        timeout_ns: 30_000_000_000,
        pace: Pace::Closed,
        quota: None,
        records_max: None,
        records_per_request: 1,
        bytes_per_request: shape.bytes as u64,
        finish_line: None,
        abort: Arc::default(),
        spin_ns: 0,
    };
    let clock = plan.clock;
    let (notes, seen) = channel();
    let worker = Worker::new(plan, lanes, Recorder::new(0, Role::Answers, window, notes));
    let thread = std::thread::spawn(move || worker.run(shape.in_flight));
    std::thread::sleep(Duration::from_nanos(start_ns.saturating_sub(clock.now())));
    let before = CpuReading::of(peer.pid())?;
    let begin_ns = clock.now();
    std::thread::sleep(Duration::from_nanos(window.end_ns.saturating_sub(clock.now())));
    let after = CpuReading::of(peer.pid())?;
    let end_ns = clock.now();
    let mut total = Interval::empty(Role::Answers, Phase::Measured, 0, 0);
    for note in seen.iter() {
        match note {
            Note::Interval { interval, .. } if interval.phase == Phase::Measured => total.add(&interval),
            Note::Finished { result: Err(reason), .. } => bail!("the echo run stopped: {reason}"),
            _ => {}
        }
    }
    thread.join().expect("the worker thread panicked");
    let rate = total.requests as f64 / duration.as_secs_f64();
    let watched_seconds = (end_ns - begin_ns) as f64 / 1e9;
    let mut row = FloorRow::new(shape.name, rate, rate * shape.bytes as f64).with_latency(&total.latencies);
    row.server_cpu_us = Some(after.since(&before) as f64 / 1e3 / (rate * watched_seconds).max(1.0));
    Ok(row)
}

/// The peer process: echoes until it is killed.
pub fn serve() -> Result<()> {
    let listener = listen()?;
    listener.set_nonblocking(true)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().context("the tokio runtime")?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(echo(stream));
        }
    })
}

async fn echo(mut stream: tokio::net::TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..read]).await?;
    }
}
