//! The loopback's one-way rate: one process writes, another reads; the reader says how much came.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{FloorRow, Peer, listen};
use crate::units::size;

const READ_BYTES: usize = 1 << 20;
const WRITE_BYTES_MAX: usize = 64 << 20;

pub fn measure(write_bytes: usize, duration: Duration) -> Result<FloorRow> {
    if !(1..=WRITE_BYTES_MAX).contains(&write_bytes) {
        bail!("--write-size must be 1 to {WRITE_BYTES_MAX} bytes");
    }
    let peer = Peer::start(&["sink".into()])?;
    let mut stream = peer.connect()?;
    let chunk = vec![0x5A; write_bytes];
    let begin = Instant::now();
    while begin.elapsed() < duration {
        stream.write_all(&chunk).context("the peer went away")?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut counted = [0; 8];
    stream.read_exact(&mut counted).context("the peer did not say what it received")?;
    let seconds = begin.elapsed().as_secs_f64();
    let bytes = u64::from_be_bytes(counted) as f64;
    let name = format!("TCP stream, writes of {}", size(write_bytes as u64));
    Ok(FloorRow::new(name, bytes / write_bytes as f64 / seconds, bytes / seconds))
}

/// The peer process.
pub fn serve() -> Result<()> {
    let (mut stream, _) = listen()?.accept()?;
    let mut buffer = vec![0; READ_BYTES];
    let mut bytes = 0u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            read => bytes += read as u64,
        }
    }
    stream.write_all(&bytes.to_be_bytes())?;
    Ok(())
}
