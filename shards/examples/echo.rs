//! An echo of frames on a shard's loop beside the same on tokio (`current_thread`): throughput and server CPU a message.
//!
//! `cargo run --release -p highwater-shards --example echo [seconds per row] [part of a shape's name]`. The server runs on core 0 and the clients
//! on the others. CPU is what the kernel accounts to the server's thread, system calls and all.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock and starts threads")]

mod no_front;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use highwater_shards::ids::ShardId;
use highwater_shards::mail::{FromControl, ToControl};
use highwater_shards::reactor::boot::{Listen, OPEN_FILES_MAX, ShardSetup, start};
use highwater_shards::reactor::uring::{KernelUse, LinkConfig, Spin};
use highwater_shards::shard::{ClientInput, Input, Machine, Output};
use no_front::NoFront;

/// What both servers do with a frame: the answer in parts, as a session makes it.
fn answer(frame: Bytes) -> Vec<Bytes> {
    vec![Bytes::copy_from_slice(&(frame.len() as u32).to_be_bytes()), frame]
}

#[derive(Default)]
struct Echo(VecDeque<Output<NoFront>>);

impl Machine for Echo {
    type Front = NoFront;

    fn handle(&mut self, _: highwater_shards::time::Instant, input: Input<NoFront>) {
        match input {
            Input::Client(ClientInput::Frame { conn, frame }) => {
                self.0.push_back(Output::Send { conn, parts: answer(frame) });
            }
            Input::Control(FromControl::Stop { .. }) => self.0.push_back(Output::Control(ToControl::Stopped)),
            _ => {}
        }
    }

    fn poll_output(&mut self) -> Option<Output<NoFront>> {
        self.0.pop_front()
    }

    fn poll_timeout(&self) -> Option<highwater_shards::time::Instant> {
        None
    }
}

const CORE: usize = 0;

/// The cores of the clients: all others. Set back before a server starts, which looks how many there are.
fn clients_on_other_cores(yes: bool) {
    pin(&(usize::from(yes)..CORES.with(|cores| *cores).max(2)).collect::<Vec<_>>());
}

thread_local! {
    static CORES: usize = std::thread::available_parallelism().map_or(1, usize::from);
}

/// Runs `load` against a shard.
fn on_shard(spin: Spin, load: impl FnOnce(SocketAddr)) {
    let dir = std::env::temp_dir().join(format!("highwater-echo-{}", std::process::id()));
    let setup = ShardSetup {
        shard: ShardId(0),
        core: Some(CORE),
        journal_dir: dir.join("journal"),
        partitions_dir: dir.join("partitions"),
        open_files_max: OPEN_FILES_MAX,
        listen: vec![Listen::Own("127.0.0.1:0".parse().expect("an address"))],
        link: LinkConfig::default(),
        spin,
        kernel_use: KernelUse::Newest,
        make: Box::new(Echo::default),
    };
    clients_on_other_cores(false);
    let shards = start(vec![setup]).unwrap_or_else(|e| panic!("{e}"));
    clients_on_other_cores(true);
    load(shards.addresses[0][0]);
    let stop = FromControl::Stop { deadline: Duration::ZERO };
    shards.links[0].send(stop).unwrap_or_else(|e| panic!("{e}"));
    shards.join();
    let _ = std::fs::remove_dir_all(dir);
}

async fn serve(socket: tokio::net::TcpStream) -> std::io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    socket.set_nodelay(true)?;
    let (mut from, mut to) = socket.into_split();
    let mut input = BytesMut::with_capacity(64 * 1024);
    let mut output = BytesMut::new();
    loop {
        input.reserve(16 * 1024);
        if from.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
        while input.len() >= 4 {
            let len = u32::from_be_bytes([input[0], input[1], input[2], input[3]]) as usize;
            if input.len() < 4 + len {
                input.reserve(4 + len - input.len());
                break;
            }
            input.advance(4);
            for part in answer(input.split_to(len).freeze()) {
                if part.len() < 16 * 1024 {
                    output.extend_from_slice(&part);
                } else {
                    to.write_all(&output).await?;
                    output.clear();
                    to.write_all(&part).await?;
                }
            }
        }
        to.write_all(&output).await?;
        output.clear();
    }
}

/// Runs `load` against tokio.
fn on_tokio(load: impl FnOnce(SocketAddr)) {
    let (address_to, address) = std::sync::mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = std::thread::Builder::new().name("tokio-echo".into()).spawn(move || {
        pin(&[CORE]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            address_to.send(listener.local_addr().expect("bound")).expect("somebody waits");
            tokio::spawn(async move {
                while let Ok((socket, _)) = listener.accept().await {
                    tokio::spawn(serve(socket));
                }
            });
            let _ = stopped.await;
        });
    });
    let address = address.recv().expect("the server started");
    clients_on_other_cores(true);
    load(address);
    let _ = stop.send(());
    server.expect("a thread").join().expect("the server ended");
}

fn pin(cores: &[usize]) {
    let mut set = rustix::thread::CpuSet::new();
    cores.iter().for_each(|core| set.set(*core));
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

/// CPU time of the server's thread so far.
fn cpu() -> Duration {
    let mut nanos = 0;
    for task in std::fs::read_dir("/proc/self/task").expect("procfs").flatten() {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if name.starts_with("shard-0") || name.starts_with("tokio-echo") {
            let stat = std::fs::read_to_string(task.path().join("schedstat")).expect("schedstat");
            nanos += stat.split(' ').next().and_then(|n| n.parse::<u64>().ok()).expect("a number");
        }
    }
    Duration::from_nanos(nanos)
}

#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    bytes: usize,
    connections: usize,
    /// Frames in flight on each connection.
    window: usize,
}

const SHAPES: [Shape; 7] = [
    Shape { name: "ping-pong 100 B", bytes: 100, connections: 1, window: 1 },
    Shape { name: "ping-pong 1 KiB", bytes: 1024, connections: 1, window: 1 },
    Shape { name: "pipelined 100 B x 256", bytes: 100, connections: 1, window: 256 },
    Shape { name: "pipelined 1 KiB x 256", bytes: 1024, connections: 1, window: 256 },
    Shape { name: "64 connections 100 B", bytes: 100, connections: 64, window: 1 },
    Shape { name: "stream 64 KiB", bytes: 64 * 1024, connections: 1, window: 8 },
    Shape { name: "stream 1 MiB", bytes: 1024 * 1024, connections: 1, window: 4 },
];

struct Row {
    rate: f64,
    cpu_us: f64,
    p50_us: f64,
}

impl Row {
    /// On a machine that does other things too, the best of several rounds says most about the program.
    fn keep_best_of(&mut self, other: &Row) {
        self.rate = self.rate.max(other.rate);
        self.cpu_us = self.cpu_us.min(other.cpu_us);
        self.p50_us = self.p50_us.min(other.p50_us);
    }
}

/// Each row is the best of so many, taken in turns with the other servers.
const ROUNDS: u32 = 8;

fn load(shape: Shape, address: SocketAddr, time: Duration) -> Row {
    let mut frame = (shape.bytes as u32).to_be_bytes().to_vec();
    frame.resize(4 + shape.bytes, 7);
    let burst = frame.repeat(shape.window);
    let mut sockets: Vec<TcpStream> =
        (0..shape.connections).map(|_| TcpStream::connect(address).expect("connected")).collect();
    sockets.iter().for_each(|s| s.set_nodelay(true).expect("nodelay"));
    let mut answer = vec![0; burst.len()];
    let mut rounds = Vec::new();
    let done = AtomicBool::new(false);
    let (mut began, mut cpu_began) = (Instant::now(), cpu());
    let warm = time / 5;
    let mut warming = true;
    let mut messages = 0_u64;
    if shape.bytes >= 64 * 1024 {
        // A window that slides: one thread writes while this one reads.
        let mut writer = sockets[0].try_clone().expect("a clone");
        std::thread::scope(|s| {
            s.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    if writer.write_all(&frame).is_err() {
                        break;
                    }
                }
            });
            loop {
                sockets[0].read_exact(&mut answer[..frame.len()]).expect("an answer");
                messages += 1;
                if warming && began.elapsed() >= warm {
                    (warming, messages, began, cpu_began) = (false, 0, Instant::now(), cpu());
                } else if !warming && began.elapsed() >= time {
                    break;
                }
            }
            done.store(true, Ordering::Relaxed);
            let _ = sockets[0].shutdown(std::net::Shutdown::Both);
        });
    } else {
        loop {
            let round = Instant::now();
            sockets.iter_mut().for_each(|s| s.write_all(&burst).expect("written"));
            sockets.iter_mut().for_each(|s| s.read_exact(&mut answer).expect("an answer"));
            messages += (shape.window * shape.connections) as u64;
            rounds.push(round.elapsed());
            if warming && began.elapsed() >= warm {
                (warming, messages, began, cpu_began) = (false, 0, Instant::now(), cpu());
                rounds.clear();
            } else if !warming && began.elapsed() >= time {
                break;
            }
        }
    }
    let elapsed = began.elapsed();
    let spent = cpu() - cpu_began;
    rounds.sort_unstable();
    Row {
        rate: messages as f64 / elapsed.as_secs_f64(),
        cpu_us: spent.as_secs_f64() * 1e6 / messages as f64,
        p50_us: rounds.get(rounds.len() / 2).map_or(0.0, |r| r.as_secs_f64() * 1e6),
    }
}

fn main() {
    CORES.with(|_| ());
    let seconds = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(2.0);
    let only = std::env::args().nth(2).unwrap_or_default();
    let time = Duration::from_secs_f64(seconds);
    println!(
        "{:<24} {:<12} {:>12} {:>10} {:>10} {:>8}",
        "shape", "server", "messages/s", "p50 us", "CPU us", "ratio"
    );
    for shape in SHAPES.into_iter().filter(|shape| shape.name.contains(&only)) {
        let mut best: [Option<Row>; 3] = [None, None, None];
        for _ in 0..ROUNDS {
            let mut keep = |server: usize, row: Row| match &mut best[server] {
                Some(kept) => kept.keep_best_of(&row),
                none => *none = Some(row),
            };
            on_tokio(|address| keep(0, load(shape, address, time / ROUNDS)));
            on_shard(Spin::Micros(0), |address| keep(1, load(shape, address, time / ROUNDS)));
            on_shard(Spin::Auto, |address| keep(2, load(shape, address, time / ROUNDS)));
        }
        let base = best[0].as_ref().map_or(0.0, |row| row.cpu_us);
        for (server, row) in ["tokio", "shard", "shard, spin"].into_iter().zip(best.iter().flatten()) {
            let Row { rate, p50_us, cpu_us } = row;
            let ratio = cpu_us / base;
            println!(
                "{:<24} {server:<12} {rate:>12.0} {p50_us:>10.1} {cpu_us:>10.2} {ratio:>8.2}",
                shape.name
            );
        }
    }
}
