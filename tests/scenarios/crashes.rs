//! Ends of the node at chosen moments.

use std::time::Duration;

use highwater_sim::config::{Config, Features};
use highwater_sim::disk::{Crash, DiskConfig};
use highwater_sim::faults::Fault;
use highwater_sim::node::ShardBuilder;
use highwater_sim::world::{Outcome, World};

/// Runs with more steps are not crashed after each of them.
const STEPS_MAX: u64 = 400;

/// A short run with nothing but what is asked for.
fn small(seed: u64, features: Features) -> Config {
    let us = Duration::from_micros;
    Config {
        shards: 1,
        topics: 1,
        producers: 2,
        consumers: 1,
        duration: Duration::from_millis(8),
        disk: DiskConfig {
            write: us(20)..us(100),
            sync: us(80)..us(300),
            read: us(10)..us(50),
            prepare: us(300)..us(900),
        },
        ..Config::with(seed, features)
    }
}

fn run(config: Config) -> Outcome {
    let seed = config.seed;
    let (features, crash_at) = (config.features.names(), config.crash_at);
    let outcome = World::new(config, ShardBuilder, false).run();
    assert_eq!(outcome.violation, None, "seed {seed}, crash at {crash_at:?}, {features:?}");
    outcome
}

/// Crashes one run after each of its inputs and outputs in turn, until its faults are over.
fn crash_at_every_step(seed: u64, features: Features, crash: Crash) {
    let crashed = |at: &u64| {
        let outcome = run(Config { crash_at: Some((*at, crash)), ..small(seed, features) });
        outcome.boots == 2
    };
    let steps = (1..STEPS_MAX).take_while(crashed).count();
    assert!(steps > 100, "a run of {steps} steps is too short to mean anything");
}

#[test]
fn crash_between_write_and_flush_loses_only_unacked() {
    crash_at_every_step(1, Features::default(), Crash::Power);
}

#[test]
fn a_killed_process_loses_nothing_acked_at_any_step() {
    crash_at_every_step(2, Features::default(), Crash::Kill);
}

#[test]
fn replicated_records_survive_a_crash_as_a_prefix_at_any_step() {
    let features = Features { replicated: true, acks_leader: true, small_files: true, ..Features::default() };
    crash_at_every_step(3, features, Crash::Power);
}

#[test]
fn idempotent_retries_after_a_crash_at_any_step_are_not_doubled() {
    let features = Features { idempotent: true, small_files: true, ..Features::default() };
    crash_at_every_step(4, features, Crash::Power);
}

/// Recovery trusts what a killed process left in the disk's cache only once it is durable: the second crash, a power
/// loss, takes away whatever was not.
#[test]
fn what_recovery_found_survives_the_power_loss_that_follows() {
    for seed in 0..40 {
        let at = |ms| Duration::from_millis(ms);
        let mut config = small(seed, Features::default());
        config.duration = at(120);
        config.batches = 1000;
        config.script = (0..8)
            .map(|i| (at(6 + 12 * i), Fault::Crash(if i % 2 == 0 { Crash::Kill } else { Crash::Power })))
            .collect();
        assert!(run(config).boots >= 3, "seed {seed}");
    }
}

#[test]
fn a_clean_stop_flushes_what_was_only_in_memory() {
    for seed in 0..40 {
        let features = Features { replicated: true, acks_leader: true, ..Features::default() };
        let mut config = small(seed, features);
        // Nothing is flushed for its age in such a run.
        config.flush_interval = Duration::from_secs(3600);
        config.duration = Duration::from_millis(60);
        config.script =
            vec![(Duration::from_millis(10), Fault::Stop), (Duration::from_millis(35), Fault::Stop)];
        assert!(run(config).boots >= 2, "seed {seed}");
    }
}

/// A flipped bit of the journal may cost records, and is then said so where it can be known; it is never served.
#[test]
fn a_flipped_bit_is_never_served() {
    let mut refused = 0;
    for seed in 0..100 {
        let mut config = small(seed, Features::default());
        config.rot = true;
        config.duration = Duration::from_millis(60);
        config.script = vec![(Duration::from_millis(20), Fault::Crash(Crash::Kill))];
        let outcome = World::new(config, ShardBuilder, false).run();
        refused += u64::from(outcome.records == 0 && outcome.violation.is_none());
        // A damaged last chunk looks like one that was never whole, so what it held is lost without a word.
        let lost = ["I1 acked", "I2 high watermark", "I10 visible", "I1 idempotence"];
        if let Some(v) = outcome.violation {
            assert!(lost.contains(&v.checker), "seed {seed}: {v}");
        }
    }
    assert!(refused > 20, "{refused} of 100 nodes refused a damaged journal");
}
