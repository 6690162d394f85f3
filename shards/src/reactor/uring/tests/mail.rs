//! Mail between cores, waking, timers, and how shards start and end.

use std::net::TcpListener;
use std::time::Duration;

use super::echo::{Echo, Options, TempDir, run};
use crate::ids::{Revision, ShardId};
use crate::mail::{FromControl, ToControl};
use crate::reactor::boot::{Listen, ShardExit, ShardSetup, StartError, start};
use crate::reactor::uring::{KernelUse, LinkConfig, Spin};

fn delta(revision: u64) -> FromControl<(), crate::log::disk::DiskOp> {
    FromControl::Delta { revision: Revision(revision), view: (), assign: Vec::new(), unassign: Vec::new() }
}

fn mail_goes_round(options: &Options, letters: u64, hops: u64) {
    let mut running = run(options);
    running.link(0).send(delta(letters << 32 | hops)).unwrap();
    for _ in 0..3000 {
        let seen: u64 = running.seen.iter().map(|s| s.lock().unwrap().mail).sum();
        if seen == letters * (hops + 1) {
            assert_eq!(running.stop(), vec![ShardExit::Stopped; usize::from(options.shards)]);
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("mail was lost or a wake-up was");
}

#[test]
fn one_letter_at_a_time_wakes_each_shard_in_turn() {
    mail_goes_round(&Options { shards: 3, ..Options::default() }, 1, 5000);
}

#[test]
fn one_letter_at_a_time_wakes_each_shard_in_turn_on_the_oldest_kernel() {
    mail_goes_round(&Options { shards: 3, kernel_use: KernelUse::Oldest, ..Options::default() }, 1, 5000);
}

#[test]
fn more_letters_than_the_rings_hold_all_arrive() {
    mail_goes_round(&Options { shards: 2, ..Options::default() }, 20_000, 9);
}

#[test]
fn an_idle_shard_does_not_turn() {
    let mut running = run(&Options::default());
    let clients: Vec<_> = (0..10).map(|_| running.connect()).collect();
    running.until("the clients", |seen| seen.opened == 10);
    std::thread::sleep(Duration::from_millis(200));
    let before = running.counter("loop_turns");
    std::thread::sleep(Duration::from_millis(1000));
    let after = running.counter("loop_turns");
    // Each asking costs a turn or two.
    assert!(after - before <= 3, "{} turns in a second of idling", after - before);
    drop(clients);
}

#[test]
fn a_timeout_comes_when_it_is_due() {
    let mut running = run(&Options::default());
    running.link(0).send(delta(0)).unwrap();
    assert!(matches!(running.recv(0), ToControl::Request { request, .. } if request == "timeout"));
}

#[test]
fn a_machine_that_cannot_go_on_ends_its_shard_and_says_so() {
    let mut running = run(&Options { shards: 2, ..Options::default() });
    running.link(1).send(FromControl::Stop { deadline: Duration::from_nanos(1) }).unwrap();
    let mut exit = None;
    for _ in 0..1000 {
        exit = exit.or(running.shards().try_exit());
        std::thread::sleep(Duration::from_millis(5));
        if exit.is_some() {
            break;
        }
    }
    let (shard, exit) = exit.unwrap();
    assert_eq!(shard, ShardId(1));
    assert!(matches!(exit, ShardExit::Fatal(_)), "{exit:?}");
    assert_eq!(running.stop(), [ShardExit::Stopped]);
}

fn setup(k: u16, dir: &TempDir) -> ShardSetup<Echo> {
    ShardSetup {
        shard: ShardId(k),
        core: None,
        journal_dir: dir.0.join(k.to_string()),
        partitions_dir: dir.0.join("partitions"),
        open_files_max: 16,
        listen: Vec::new(),
        link: LinkConfig::default(),
        spin: Spin::Auto,
        kernel_use: KernelUse::Newest,
        make: Box::new(|| panic!("a shard that was not started makes no machine")),
    }
}

#[test]
fn an_address_in_use_is_named_even_if_its_user_shares_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for listen in [Listen::Own(address), Listen::Shared(address)] {
        let dir = TempDir::new();
        let error = start(vec![ShardSetup { listen: vec![listen], ..setup(0, &dir) }]).err().unwrap();
        assert!(matches!(error, StartError::AddressInUse { address: a } if a == address), "{error}");
    }
    let running = run(&Options::default());
    let shared = running.shards.as_ref().unwrap().addresses[0][0];
    let dir = TempDir::new();
    let error =
        start(vec![ShardSetup { listen: vec![Listen::Shared(shared)], ..setup(0, &dir) }]).err().unwrap();
    assert!(matches!(error, StartError::AddressInUse { .. }), "{error}");
}

#[test]
fn a_core_that_is_not_ours_is_named_and_the_other_shards_end() {
    let dir = TempDir::new();
    let error = start(vec![setup(0, &dir), ShardSetup { core: Some(1000), ..setup(1, &dir) }]).err().unwrap();
    assert!(matches!(error, StartError::CoreNotAllowed { shard: ShardId(1), core: 1000, .. }), "{error}");
}

#[test]
fn a_journal_directory_that_is_none_is_named() {
    let dir = TempDir::new();
    std::fs::write(dir.0.join("0"), b"a file").unwrap();
    let error = start(vec![setup(0, &dir)]).err().unwrap();
    assert!(matches!(error, StartError::JournalDir { .. }), "{error}");
    assert!(error.to_string().contains(dir.0.to_str().unwrap()), "{error}");
}
