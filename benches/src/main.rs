//! `highwater-bench`: a load generator for any broker that speaks the Kafka protocol, and the floors of the machine that
//! it runs on.
//!
//! ```text
//! # How fast is one record at a time, durable?  Closed loop: one connection, one request in flight.
//! highwater-bench produce --brokers 127.0.0.1:9092 --topic bench --acks all --record-size 1KiB
//!
//! # 64 clients at once, 16 partitions; the broker's CPU per request beside it.
//! highwater-bench produce -c 64 -p 16 --server-pid $(pidof highwater)
//!
//! # Bulk: batches of 1000 records, four requests in flight.
//! highwater-bench produce --batch 1000 --in-flight 4
//!
//! # Latency under a given load.  Open loop: requests are due on a schedule that waits for nobody, and latency counts
//! # from the moment at which each was due, so a stall of the broker shows in full.
//! highwater-bench produce --rate 50k --connections 16 --in-flight 64 --duration 60s
//!
//! # From a producer's intended send time to the consumer's hands.
//! highwater-bench e2e --rate 20k --partitions 4 --connections 4 --in-flight 32
//!
//! # Read back everything that is there.
//! highwater-bench consume --topic bench
//!
//! # A topic with other settings; they go into CreateTopics.
//! highwater-bench produce --topic mem --topic-config highwater.durability=replicated --acks 1
//!
//! # Changes of metadata, about 200 B each in the replicated log: one client, then 64 at once; and an etcd beside it.
//! highwater-bench metadata --brokers 127.0.0.1:9092,127.0.0.1:9102,127.0.0.1:9112
//! highwater-bench metadata --connections 64
//! highwater-bench metadata --etcd 127.0.0.1:2379 --connections 64
//!
//! # What the machine can do without a broker.
//! highwater-bench floor disk --dir ./data      # 4 KiB write + fdatasync
//! highwater-bench floor tcp --size 1KiB        # bare ping-pong of two processes
//! highwater-bench floor stream                 # one-way loopback rate
//! highwater-bench floor echo                   # a tokio echo server: rate, latency, CPU per message
//!
//! # Several runs on one page.
//! highwater-bench compare a/summary.json b/summary.json --out compare.html
//! ```
//!
//! A run prints a line each second and its result at the end, and writes into `--out` (by default
//! `bench-results/<time>-<mode>`): `latency.hlog` (HdrHistogram interval log, nanoseconds), `summary.json`, and
//! `report.html`, a page without external resources.
//!
//! What is counted, and how:
//! - A request carries one batch of one partition. Latencies of produce runs are per request, of end-to-end runs per
//!   record, of consume runs per fetch that brought records.
//! - Throughput counts what was answered inside the measured window. Latencies count everything that was due inside it,
//!   however late its answer came; what was never answered is in them with the age it had reached.
//! - Errors are counted by code. Retriable ones are tried again, after the leader has been looked up again if it moved;
//!   the latency goes on counting. With `acks=0` a request is done when the kernel has taken it.
//! - After a produce run the log's ends are compared with what was acknowledged.
//! - The exit status is 0 for a clean run, 1 for a run with lost, refused or unanswered requests, 2 for no run.

#![forbid(unsafe_code)]
#![expect(clippy::disallowed_methods, reason = "driver: a load generator reads clocks and starts threads")]

mod cli;
mod collect;
mod cpu;
mod floor;
mod kafka;
mod load;
mod metadata;
mod report;
mod run;
mod units;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use cli::{Cli, Command, CompareArgs, Floor, OutputArgs, Peer};
use report::Files;
use report::summary::{Mode, Summary};

fn main() -> ExitCode {
    match execute(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn execute(command: Command) -> Result<bool> {
    match command {
        Command::Produce(args) => conclude(&run::produce(&args, Mode::Produce)?, &args.output),
        Command::E2e(args) => conclude(&run::produce(&args, Mode::EndToEnd)?, &args.output),
        Command::Consume(args) => conclude(&run::consume(&args)?, &args.output),
        Command::Metadata(args) => {
            floor::print(&[metadata::measure(&args)?], "change", args.json).map(|()| true)
        }
        Command::Floor(floor) => measure_floor(floor).map(|()| true),
        Command::Compare(args) => compare(&args).map(|()| true),
        Command::Peer(peer) => serve_peer(&peer).map(|()| true),
    }
}

/// Prints and files the result of a run; true when it was clean.
fn conclude(summary: &Summary, output: &OutputArgs) -> Result<bool> {
    let folder = Files::folder_of(output, &summary.config);
    if let Some(folder) = &folder {
        Files::finish(folder, summary)?;
    }
    let mut text = summary.text();
    if let Some(folder) = folder {
        text += &format!("\nfiles       {}/{{report.html, summary.json, latency.hlog}}", folder.display());
    }
    if output.json {
        eprintln!("{text}");
        println!("{}", serde_json::to_string_pretty(summary)?);
    } else {
        println!("{text}");
    }
    Ok(summary.is_clean())
}

fn measure_floor(floor: Floor) -> Result<()> {
    match floor {
        Floor::Disk { dir, size, file_size, duration, json } => {
            floor::print(&floor::disk::measure(&dir, size, file_size, duration)?, "write", json)
        }
        Floor::Tcp { size, reply_size, duration, json } => {
            let row = floor::tcp::measure(size, reply_size.unwrap_or(size), duration)?;
            floor::print(&[row], "round trip", json)
        }
        Floor::Stream { write_size, duration, json } => {
            let rows: Result<Vec<_>> =
                write_size.iter().map(|bytes| floor::stream::measure(*bytes, duration)).collect();
            floor::print(&rows?, "write", json)
        }
        Floor::Echo { shape, window, size, duration, json } => {
            let rows: Result<Vec<_>> =
                shape.iter().map(|shape| floor::echo::measure(*shape, window, size, duration)).collect();
            floor::print(&rows?, "msg", json)
        }
    }
}

fn compare(args: &CompareArgs) -> Result<()> {
    let read = |path: &std::path::PathBuf| -> Result<Summary> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text).with_context(|| format!("{} is no summary of this tool", path.display()))
    };
    let summaries = args.summaries.iter().map(read).collect::<Result<Vec<Summary>>>()?;
    let page = report::html::page(&summaries.iter().collect::<Vec<_>>());
    std::fs::write(&args.out, page).with_context(|| args.out.display().to_string())?;
    println!("wrote {}", args.out.display());
    Ok(())
}

fn serve_peer(peer: &Peer) -> Result<()> {
    match *peer {
        Peer::PingPong { size, reply_size } => floor::tcp::serve(size, reply_size),
        Peer::Sink => floor::stream::serve(),
        Peer::Echo => floor::echo::serve(),
    }
}
