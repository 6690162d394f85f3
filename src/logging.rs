//! Driver: what the node prints about itself, on standard error.
//!
//! A core must not wait for a slow terminal or pipe, so lines go through a bounded queue to a thread of their own; when
//! the queue is full a line is dropped and the number of dropped lines is printed as soon as there is room.

use std::io::{self, IsTerminal as _, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{Log, LogFormat};
use crate::error::{ExitStatus, Failure};

/// Lines that wait for the terminal or pipe.
const LINES_MAX: usize = 4096;

enum Item {
    Line(Vec<u8>),
    Stop,
}

/// Keeps logging alive. Dropping it writes out what is queued, so drop it last.
#[derive(Debug)]
pub struct Logging {
    queue: SyncSender<Item>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Logging {
    fn drop(&mut self) {
        // Waits for room in the queue: nothing runs any more that must not wait.
        let stopped = self.queue.send(Item::Stop);
        if let (Ok(()), Some(thread)) = (stopped, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

/// Installs the process-wide logger. Call once, before any core starts.
pub fn init(log: &Log) -> Result<Logging, Failure> {
    let filter: Targets = log.level.parse().map_err(|e| {
        Failure::new(ExitStatus::Refused, format!("`log.level: {}` is not usable: {e}", log.level))
    })?;
    let filter = quiet_openraft(filter, &log.level);
    let (queue, lines) = sync_channel(LINES_MAX);
    let dropped = Arc::new(AtomicU64::new(0));
    let writer = Writer { queue: queue.clone(), dropped: Arc::clone(&dropped) };

    let colors =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colors);
    let layer = match log.format {
        LogFormat::Human => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_ansi(false).boxed(),
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init()
        .map_err(|e| Failure::new(ExitStatus::Refused, format!("logging was set up twice: {e}")))?;

    let thread = std::thread::Builder::new()
        .name("log".into())
        .spawn(move || write_out(&lines, &dropped, &mut io::stderr()))
        .map_err(|e| {
            Failure::new(ExitStatus::Environment, format!("no thread for the log could be started: {e}"))
        })?;
    Ok(Logging { queue, thread: Some(thread) })
}

/// openraft tells at level info what it does; only its warnings are for operators, unless they ask for more by name.
fn quiet_openraft(filter: Targets, level: &str) -> Targets {
    match filter.default_level() {
        Some(default) if default > LevelFilter::WARN && !level.contains("openraft") => {
            filter.with_target("openraft", LevelFilter::WARN)
        }
        _ => filter,
    }
}

fn write_out(lines: &Receiver<Item>, dropped: &AtomicU64, out: &mut impl Write) {
    for item in lines {
        let Item::Line(line) = item else { break };
        // Nobody reads standard error any more: then there is nobody to tell either.
        let _ = out.write_all(&line);
        match dropped.swap(0, Ordering::Relaxed) {
            0 => {}
            count => _ = writeln!(out, "(log: {count} lines dropped: standard error is read too slowly)"),
        }
    }
    let _ = out.flush();
}

/// Hands each formatted event, which arrives in one piece, to the log thread.
#[derive(Clone)]
struct Writer {
    queue: SyncSender<Item>,
    dropped: Arc<AtomicU64>,
}

impl Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Item::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Writer {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_drops_lines_and_says_how_many() {
        let (queue, lines) = sync_channel(2);
        let dropped = Arc::new(AtomicU64::new(0));
        let mut writer = Writer { queue: queue.clone(), dropped: Arc::clone(&dropped) };
        for line in ["a\n", "b\n", "c\n", "d\n"] {
            writer.write_all(line.as_bytes()).unwrap();
        }
        drop((queue, writer));
        let mut out = Vec::new();
        write_out(&lines, &dropped, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "a\n(log: 2 lines dropped: standard error is read too slowly)\nb\n");
    }

    #[test]
    fn every_level_that_the_configuration_takes_is_a_filter() {
        for level in ["info", "off", "WARN", "warn,highwater::kafka=debug", "highwater=trace"] {
            assert!(level.parse::<Targets>().is_ok(), "{level}");
        }
    }
}
