//! Fuzzes what reads the log's files, the datagrams of gossip and the frames between shards: damaged ones, made from a corpus by seed.
//!
//! Each target takes a good file of the corpus and what became of it, and holds what the decoder makes of the two
//! against each other (`targets.rs`). A run is a function of its seed alone. Two kinds of damage: as it happens, where
//! nothing wrong may pass for right; and with the CRCs made right again, so that what lies behind them is reached too,
//! where nothing may panic, hang or allocate without bound, and what is read must be what would be written.

#![expect(
    clippy::disallowed_methods,
    reason = "driver: a deadline for the whole, and a thread that notices a run that hangs"
)]

mod checkpoint;
mod journal;
mod mutate;
mod segment;
mod stream;
mod swim;
mod target;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use highwater_sim::args::{self, Words};
use highwater_sim::rng::Rng;
use target::{Target, targets};

const USAGE: &str = "\
Fuzzes the decoders of the log's files, of gossip and of replication. Every failure names the seed and the command that runs it again.

  --target NAME   journal, segment, index, checkpoint, swim or stream (default: all of them)
  --seed N        the first seed (default: 0)
  --runs N        so many seeds of each target (default: 10000; with --seed: 1)
  --seconds N     ends after so long, whatever is left of the runs (without --runs: goes on that long)
  --write-corpus  writes tests/fuzz/corpus/<target>/ anew, from what the formats write now
";

/// A run that takes longer hangs.
const RUN_MAX: Duration = Duration::from_secs(60);
/// What a decoder may allocate at once, beside [`ALLOCATION_FACTOR`] times its input.
const ALLOCATION_BYTES: u64 = 4 << 20;
const ALLOCATION_FACTOR: u64 = 32;

#[derive(Debug)]
struct Args {
    target: Option<String>,
    seed: u64,
    runs: u64,
    seconds: Option<u64>,
    write_corpus: bool,
}

fn parse() -> Result<Args, String> {
    let (mut target, mut seed, mut runs, mut seconds, mut write_corpus) = (None, None, None, None, false);
    let mut words = Words::new(std::env::args().skip(1));
    while let Some(option) = words.option() {
        match option {
            "--target" => target = Some(words.value()?),
            "--seed" => seed = Some(words.number()?),
            "--runs" => runs = Some(words.number()?),
            "--seconds" => seconds = Some(words.number()?),
            "--write-corpus" => write_corpus = true,
            _ => return words.unknown(),
        }
    }
    let usual = if seconds.is_some() {
        u64::MAX
    } else if seed.is_some() {
        1
    } else {
        10_000
    };
    Ok(Args { target, seed: seed.unwrap_or(0), runs: runs.unwrap_or(usual), seconds, write_corpus })
}

fn corpus_folder(target: &dyn Target) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name())
}

/// The files in the repository, by name.
fn corpus(target: &dyn Target) -> Result<Vec<(String, Vec<u8>)>, String> {
    let folder = corpus_folder(target);
    let failed = |e: std::io::Error| format!("{}: {e}", folder.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push((name, fs::read(&path).map_err(failed)?));
    }
    files.sort();
    if files.is_empty() { Err(format!("{} is empty", folder.display())) } else { Ok(files) }
}

fn write_corpus(target: &dyn Target) -> Result<(), String> {
    let folder = corpus_folder(target);
    let failed = |e: std::io::Error| format!("{}: {e}", folder.display());
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(failed)?;
    }
    fs::create_dir_all(&folder).map_err(failed)?;
    for (name, bytes) in target.generate() {
        fs::write(folder.join(name), bytes).map_err(failed)?;
    }
    Ok(())
}

/// One run.
fn run(target: &dyn Target, corpus: &[(String, Vec<u8>)], seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed, target.name(), 0);
    let (_, good) = rng.pick(corpus);
    let (_, other) = rng.pick(corpus);
    let mut bytes = good.clone();
    mutate::mutate(&mut rng, &mut bytes, other);
    if bytes != *good && corpus.iter().any(|(_, whole)| *whole == bytes) {
        // Another file as a whole is no damage.
        return Ok(());
    }
    let is_sealed = rng.chance(400);
    if is_sealed {
        target.seal(&mut bytes);
    }
    let mut outcome = Ok(());
    let cost = allocation_counter::measure(|| {
        outcome =
            if is_sealed { target.hostile(&mut rng, &bytes) } else { target.damaged(&mut rng, good, &bytes) };
    });
    outcome?;
    let allocated_max = ALLOCATION_BYTES + ALLOCATION_FACTOR * (bytes.len() + good.len()) as u64;
    if cost.bytes_max > allocated_max {
        return Err(format!("{} bytes allocated at once for a file of {}", cost.bytes_max, bytes.len()));
    }
    Ok(())
}

thread_local! {
    static RUNNING: Cell<(&'static str, u64)> = const { Cell::new(("", 0)) };
}

fn again(name: &str, seed: u64) -> String {
    format!("cargo run --release --bin highwater-fuzz -- --target {name} --seed {seed}")
}

/// Counts runs, so that the watch sees that they go on.
static RUNS: AtomicU64 = AtomicU64::new(0);

/// Ends the process when a run hangs.
fn watch() {
    std::thread::spawn(|| {
        let mut last = RUNS.load(Ordering::Relaxed);
        loop {
            std::thread::sleep(RUN_MAX);
            let runs = RUNS.load(Ordering::Relaxed);
            if runs == last {
                eprintln!("FAILED: run {runs} of this call takes longer than {RUN_MAX:?}");
                std::process::exit(1);
            }
            last = runs;
        }
    });
}

fn main() -> ExitCode {
    let args = match parse() {
        Ok(args) => args,
        Err(e) => return args::refuse(&e, USAGE),
    };
    // A panic ends the process before anything could be said, so its seed is said first.
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let (name, seed) = RUNNING.get();
        eprintln!("FAILED {name}, seed {seed}: a panic\n  run it again: {}", again(name, seed));
        usual(panic);
    }));
    match fuzz(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            println!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn fuzz(args: &Args) -> Result<(), String> {
    let targets = targets();
    let chosen: Vec<_> =
        targets.iter().filter(|t| args.target.as_deref().is_none_or(|name| name == t.name())).collect();
    if chosen.is_empty() {
        return Err(format!("no such target\n\n{USAGE}"));
    }
    if args.write_corpus {
        return chosen.iter().try_for_each(|target| write_corpus(target.as_ref()));
    }
    let corpora = chosen.iter().map(|target| corpus(target.as_ref())).collect::<Result<Vec<_>, _>>()?;
    let began = Instant::now();
    let limit = args.seconds.map(Duration::from_secs);
    watch();
    for seed in args.seed..args.seed.saturating_add(args.runs) {
        if limit.is_some_and(|limit| began.elapsed() >= limit) {
            break;
        }
        for (target, corpus) in chosen.iter().zip(&corpora) {
            RUNNING.set((target.name(), seed));
            RUNS.fetch_add(1, Ordering::Relaxed);
            run(target.as_ref(), corpus, seed).map_err(|e| {
                let name = target.name();
                format!("FAILED {name}, seed {seed}: {e}\n  run it again: {}", again(name, seed))
            })?;
        }
    }
    let runs = RUNS.load(Ordering::Relaxed);
    println!("{runs} runs of {} targets in {:.1} s", chosen.len(), began.elapsed().as_secs_f64());
    Ok(())
}
