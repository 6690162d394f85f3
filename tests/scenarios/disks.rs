//! Disks that fail, fill up or crawl.

use std::time::Duration;

use highwater_shards::ids::ShardId;
use highwater_sim::config::{Config, Features};
use highwater_sim::faults::Fault;
use highwater_sim::node::ShardBuilder;
use highwater_sim::world::{Outcome, World};

fn run(config: Config) -> Outcome {
    let seed = config.seed;
    let outcome = World::new(config, ShardBuilder, false).run();
    assert_eq!(outcome.violation, None, "seed {seed}");
    outcome
}

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn a_failed_flush_ends_the_node_and_loses_nothing_acked() {
    for seed in 0..40 {
        let mut config = Config::with(seed, Features { idempotent: true, ..Features::default() });
        config.duration = at(100);
        config.script = (1..4).map(|i| (at(20 * i), Fault::FailWrite(ShardId(0)))).collect();
        run(config);
    }
}

#[test]
fn a_failed_read_is_an_error_for_its_reader_only() {
    for seed in 0..40 {
        let mut config = Config::with(seed, Features::default());
        config.duration = at(100);
        config.script = (1..8).map(|i| (at(10 * i), Fault::FailRead(ShardId(0)))).collect();
        run(config);
    }
}

#[test]
fn a_full_disk_refuses_records_until_there_is_room() {
    for seed in 0..40 {
        let features =
            Features { small_files: true, idempotent: true, multi_batches: true, ..Features::default() };
        let mut config = Config::with(seed, features);
        config.value_max = 6000;
        config.duration = at(200);
        config.script = (0..5).map(|i| (at(3 + 40 * i), Fault::FullDisk)).collect();
        run(config);
    }
}

#[test]
fn a_slow_disk_answers_late_and_loses_nothing() {
    for seed in 0..20 {
        let mut config = Config::with(seed, Features { power_loss: true, ..Features::default() });
        config.slow_factor = 50;
        config.script = (0..10).map(|i| (at(5 + 50 * i), Fault::SlowDisk)).collect();
        run(config);
    }
}
