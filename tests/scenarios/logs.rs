//! The log of one shard alone: a slice of its seeds, and planted bugs between it and its disk.

use highwater_sim::logs;
use highwater_sim::logs::counts::Counts;
use highwater_sim::logs::saboteur::Sabotage;

/// Seeds within which each planted bug must be found.
const SEEDS: u64 = 1000;

#[test]
fn a_seed_of_the_log_is_one_run() {
    for seed in 0..32 {
        let (first, second) = (logs::run(seed, None, false), logs::run(seed, None, false));
        assert_eq!((first.hash, first.counts), (second.hash, second.counts), "seed {seed}");
        assert_ne!(first.hash, logs::run(seed + 32, None, false).hash);
    }
}

#[test]
fn logs_keep_every_rule_and_every_path_is_reached() {
    let mut counts = Counts::default();
    for seed in 0..400 {
        let outcome = logs::run(seed, None, false);
        assert_eq!(outcome.violation, None, "seed {seed}");
        counts.add(&outcome.counts);
    }
    for (name, count) in counts.named() {
        // Few reads wait at a time in so small a world.
        assert!(count > 0 || name == "overloaded", "nothing is counted as {name}");
    }
}

#[test]
fn every_sabotage_of_a_logs_disk_is_caught() {
    for sabotage in Sabotage::ALL {
        let caught = (0..SEEDS).find(|&seed| logs::run(seed, Some(sabotage), false).violation.is_some());
        assert!(caught.is_some(), "{sabotage:?}");
    }
}
