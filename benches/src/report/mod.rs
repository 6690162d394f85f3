//! What a run leaves behind: progress lines, a summary, a histogram log, a page.

pub mod hlog;
pub mod html;
pub mod plot;
pub mod summary;

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use crate::cli::OutputArgs;
use crate::collect::Second;
use crate::load::recorder::Phase;
use crate::units::{byte_rate, civil, grouped, nanos};
use hlog::HistogramLog;
use summary::{RunConfig, Summary};

/// Says something to the person at the terminal, out of the way of the results.
pub fn note(text: &str) {
    eprintln!("note: {text}");
}

/// One line per second while the run goes on.
pub fn progress_line(second: &Second) {
    let Some(headline) = second.headline() else { return };
    // The drain has no rate of its own worth a line, unless something still comes.
    if second.phase == Phase::Drain && headline.requests == 0 && headline.records == 0 {
        return;
    }
    let is_drain = second.phase == Phase::Drain;
    let phase = match second.phase {
        Phase::Warmup => "warm-up",
        Phase::Measured => "",
        Phase::Drain => "drain",
    };
    // The drain is shorter than a second, so what came in it is a count.
    let rate = |count: u64| match is_drain {
        true => format!("{:>10} records", grouped(count as f64)),
        false => format!("{:>10} rec/s", grouped(count as f64 / second.length.max(1e-3))),
    };
    let mut line = format!("{:>5.0} s {phase:<7} ", second.at + second.length);
    if let (Some(answers), Some(_)) = (&second.answers, &second.arrivals) {
        line += &format!("sent {}  received ", rate(answers.records));
    }
    line += &rate(headline.records);
    if !is_drain {
        line += &format!(" {:>11}", byte_rate(headline.bytes as f64 / second.length.max(1e-3)));
    }
    if !headline.latencies.is_empty() {
        let at = |q| nanos(headline.latencies.value_at_quantile(q));
        line += &format!(
            "   p50 {:>8}   p99 {:>8}   max {:>8}",
            at(0.5),
            at(0.99),
            nanos(headline.latencies.max())
        );
    }
    let parts = [&second.answers, &second.arrivals];
    let errors: u64 = parts.into_iter().flatten().flat_map(|i| i.troubles.errors.values()).sum();
    let lost: u64 = parts.into_iter().flatten().map(|i| i.troubles.connections_lost).sum();
    if errors > 0 {
        line += &format!("   errors {}", grouped(errors as f64));
    }
    if lost > 0 {
        line += &format!("   connections lost {lost}");
    }
    if second.phase != Phase::Measured && io::stderr().is_terminal() {
        line = format!("\x1b[2m{line}\x1b[0m");
    }
    eprintln!("{line}");
}

/// The folder of a run's files, if it has one.
pub struct Files {
    folder: Option<PathBuf>,
    starts_in: Duration,
    title: String,
}

impl Files {
    /// Where the files of a run go.
    pub fn folder_of(output: &OutputArgs, config: &RunConfig) -> Option<PathBuf> {
        if output.no_files {
            return None;
        }
        output.out.clone().or_else(|| {
            let (year, month, day, hour, minute, second) = civil(config.started_unix_ms / 1000);
            let name =
                format!("{year}{month:02}{day:02}-{hour:02}{minute:02}{second:02}-{}", config.mode.name());
            Some(Path::new("bench-results").join(name))
        })
    }

    /// Makes the folder before the run, so that a run is not lost for want of one.
    pub fn open(output: &OutputArgs, config: &RunConfig) -> Result<Files> {
        let folder = Files::folder_of(output, config);
        if let Some(folder) = &folder {
            fs::create_dir_all(folder)
                .with_context(|| format!("the folder {} for results", folder.display()))?;
        }
        Ok(Files { folder, starts_in: Duration::from_secs_f64(config.warmup_s), title: config.title() })
    }

    /// The histogram log, which is written while the run goes on.
    pub fn begin_log(&mut self) -> Result<HistogramLog> {
        let sink: Box<dyn Write> = match &self.folder {
            Some(folder) => {
                let path = folder.join("latency.hlog");
                let file = File::create(&path).with_context(|| path.display().to_string())?;
                Box::new(BufWriter::new(file))
            }
            None => Box::new(io::sink()),
        };
        HistogramLog::begin(sink, &self.title, SystemTime::now() + self.starts_in)
    }

    /// Writes summary and page; returns where.
    pub fn finish(folder: &Path, summary: &Summary) -> Result<()> {
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| path.display().to_string())
        };
        write("summary.json", serde_json::to_string_pretty(summary)? + "\n")?;
        write("report.html", html::page(&[summary]))
    }
}
