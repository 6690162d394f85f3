//! The least that a request and its answer can cost: two processes, blocking sockets, TCP_NODELAY, no protocol.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{FloorRow, Peer, listen};
use crate::load::recorder::latency_histogram;
use crate::units::size;

const WARMUP: Duration = Duration::from_millis(300);
const MESSAGE_BYTES_MAX: usize = 16 << 20;

pub fn measure(bytes: usize, reply_bytes: usize, duration: Duration) -> Result<FloorRow> {
    if !(1..=MESSAGE_BYTES_MAX).contains(&bytes) || !(1..=MESSAGE_BYTES_MAX).contains(&reply_bytes) {
        bail!("messages must be 1 to {MESSAGE_BYTES_MAX} bytes");
    }
    let peer = Peer::start(&["ping-pong".into(), bytes.to_string(), reply_bytes.to_string()])?;
    let mut stream = peer.connect()?;
    let message = vec![0x5A; bytes];
    let mut reply = vec![0; reply_bytes];
    let mut latencies = latency_histogram();
    let mut begin = Instant::now();
    let mut is_warm = false;
    let mut count = 0u64;
    let mut start = begin;
    loop {
        stream.write_all(&message).context("the peer went away")?;
        stream.read_exact(&mut reply).context("the peer went away")?;
        let end = Instant::now();
        latencies.saturating_record(end.duration_since(start).as_nanos() as u64);
        count += 1;
        start = end;
        if !is_warm && end.duration_since(begin) >= WARMUP {
            (is_warm, begin, count) = (true, end, 0);
            latencies.reset();
        } else if is_warm && end.duration_since(begin) >= duration {
            break;
        }
    }
    let rate = count as f64 / start.duration_since(begin).as_secs_f64();
    let name = match bytes == reply_bytes {
        true => format!("TCP ping-pong, {}", size(bytes as u64)),
        false => format!("TCP ping-pong, {} and {} back", size(bytes as u64), size(reply_bytes as u64)),
    };
    Ok(FloorRow::new(name, rate, rate * bytes as f64).with_latency(&latencies))
}

/// The peer process.
pub fn serve(bytes: usize, reply_bytes: usize) -> Result<()> {
    let (mut stream, _) = listen()?.accept()?;
    stream.set_nodelay(true)?;
    let mut message = vec![0; bytes];
    let reply = vec![0x5A; reply_bytes];
    // The end of the connection is the end of the measurement.
    while stream.read_exact(&mut message).is_ok() && stream.write_all(&reply).is_ok() {}
    Ok(())
}
