//! Floors: what the disk and the loopback of this machine can do without a broker, measured beside it.

pub mod disk;
pub mod echo;
pub mod stream;
pub mod tcp;

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::units::nanos;

/// One line of a floor measurement.
#[derive(Clone, Debug, Serialize)]
pub struct FloorRow {
    pub name: String,
    pub per_second: f64,
    pub bytes_per_second: f64,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub max_us: Option<f64>,
    /// Of the server process, per message.
    pub server_cpu_us: Option<f64>,
}

impl FloorRow {
    pub fn new(name: String, per_second: f64, bytes_per_second: f64) -> FloorRow {
        FloorRow {
            name,
            per_second,
            bytes_per_second,
            p50_us: None,
            p99_us: None,
            max_us: None,
            server_cpu_us: None,
        }
    }

    pub fn with_latency(mut self, latencies: &Histogram<u64>) -> FloorRow {
        let us = |ns: u64| Some(ns as f64 / 1e3);
        self.p50_us = us(latencies.value_at_quantile(0.5));
        self.p99_us = us(latencies.value_at_quantile(0.99));
        self.max_us = us(latencies.max());
        self
    }

    fn latency_text(&self) -> String {
        let of = |us: f64| nanos((us * 1e3) as u64);
        match (self.p50_us, self.p99_us, self.max_us) {
            (Some(p50), Some(p99), Some(max)) => {
                format!("   p50 {:>8}   p99 {:>8}   max {:>8}", of(p50), of(p99), of(max))
            }
            _ => String::new(),
        }
    }

    /// `unit`: what `per_second` counts.
    pub fn text(&self, unit: &str) -> String {
        let cpu = self.server_cpu_us.map_or(String::new(), |us| format!("   server CPU {us:.2} us each"));
        format!(
            "{:<34} {:>11} {unit}/s {:>11}{}{cpu}",
            self.name,
            crate::units::grouped(self.per_second),
            crate::units::byte_rate(self.bytes_per_second),
            self.latency_text()
        )
    }
}

/// Prints the rows, as text or as JSON.
pub fn print(rows: &[FloorRow], unit: &str, is_json: bool) -> Result<()> {
    if is_json {
        println!("{}", serde_json::to_string_pretty(rows)?);
    } else {
        for row in rows {
            println!("{}", row.text(unit));
        }
    }
    Ok(())
}

/// The other process of a measurement: this program again, listening on a loopback port that it prints first. It ends
/// by itself when its connections end, and is killed when this value goes.
pub struct Peer {
    child: Child,
    pub address: SocketAddr,
}

impl Peer {
    pub fn start(arguments: &[String]) -> Result<Peer> {
        let program = std::env::current_exe().context("this program's own path")?;
        let mut child = Command::new(program)
            .arg("peer")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("the peer process could not be started")?;
        let stdout = child.stdout.take().expect("the peer's output is a pipe");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).context("the peer process said nothing")?;
        match line.trim().parse() {
            Ok(address) => Ok(Peer { child, address }),
            Err(_) => {
                let _ = child.kill();
                bail!("the peer process did not say where it listens: `{}`", line.trim());
            }
        }
    }

    pub fn connect(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect(self.address).context("the peer process does not accept")?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In the peer process: listens, and says where.
fn listen() -> Result<TcpListener> {
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    println!("{}", listener.local_addr()?);
    Ok(listener)
}
