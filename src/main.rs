//! The `highwater` program: carries out a command line.
//!
//! The main thread starts the node and then only waits for a signal, or for the node's end.

use std::io::Write as _;
use std::process::ExitCode;

use highwater::api::Engine;
use highwater::cli::{Cli, Command, DevCommand, ServeArgs};
use highwater::error::{ExitStatus, Failure};
use highwater::logging;
use highwater::runtime::boot::Addresses;
use tokio::signal::unix::{SignalKind, signal};

/// Answers of a batch of pipelined requests are all allocated before the first of them is freed. glibc's per-thread
/// cache is too small for that, which costs half as much again of a shard's time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let done = match Cli::parse() {
        Command::Serve(args) => serve(&args),
        Command::Config(command) => command.run().and_then(|text| print(&text)),
        Command::Topic(command) => command.run(&mut std::io::stdout().lock()),
        Command::Cluster(command) => command.run(&mut std::io::stdout().lock()),
        Command::Members(args) => args.run(&mut std::io::stdout().lock()),
        Command::Dev(DevCommand::Cluster(args)) => args.run(),
        Command::Log(command) => command.run(&mut std::io::stdout().lock()),
    };
    match done {
        Ok(()) => ExitStatus::Ok.into(),
        Err(failure) => {
            eprintln!("highwater: {failure}");
            failure.status.into()
        }
    }
}

/// Prints `text`; a reader that has gone, as `head` does, is no error.
fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(ExitStatus::Environment, format!("cannot print: {e}")))
        }
        _ => Ok(()),
    }
}

/// Runs a node until a signal ends it, or until it cannot go on.
fn serve(args: &ServeArgs) -> Result<(), Failure> {
    let loaded = args.load()?;
    let _logging = logging::init(&loaded.config.log)?;
    // The kernel zeroes a huge page when its first byte is touched, while the shard that did so waits: with memory that
    // grows, as when replicas are moved here, that was most of a shard's time.
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::warn!(%error, "huge pages stay on for this process; requests may take longer while memory grows");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(|e| Failure::new(ExitStatus::Environment, format!("no runtime for signals: {e}")))?;
    let entered = runtime.enter();
    let no_signals = |e| Failure::new(ExitStatus::Environment, format!("signals cannot be handled: {e}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    drop(entered);
    let engine = Engine::launch(&loaded)?;
    let (ready, ended) = (engine.ready(), engine.ended());
    let greet = async {
        if ready.await {
            // Nobody reads it, perhaps; the node serves all the same.
            let _ = print(&greeting(engine.addresses()));
        }
        std::future::pending::<()>().await;
    };
    let asked_to_stop = runtime.block_on(async {
        tokio::select! {
            _ = terminate.recv() => true,
            _ = interrupt.recv() => true,
            () = ended => false,
            () = greet => false,
        }
    });
    if asked_to_stop {
        tracing::info!("stopping: flushing what was taken in, then closing connections");
    }
    engine.stop()?;
    tracing::info!("stopped");
    Ok(())
}

/// A line for each listener, and what to try first.
fn greeting(addresses: &Addresses) -> String {
    let mut text = String::new();
    if let Some(clients) = addresses.clients {
        text += &format!("Kafka clients on {clients}\n");
    }
    for (shard, address) in addresses.shards.iter().enumerate() {
        text += &format!("Kafka clients of shard {shard} on {address}\n");
    }
    if let Some(peers) = addresses.peers {
        text += &format!("other nodes on {peers}\n");
    }
    if let Some(admin) = addresses.admin {
        text += &format!("metrics and health on http://{admin}/metrics, /healthz, /readyz\n");
    }
    if let Some(clients) = addresses.clients {
        text += &format!(
            "ready; try:  echo hello | kcat -b {clients} -t greetings -P  &&  kcat -b {clients} -t greetings -C -e\n"
        );
    }
    text
}
