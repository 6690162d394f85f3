//! The Raft group of the metadata, with openraft and redb on simulated disks: a slice of its seeds, and planted bugs.

use std::panic::catch_unwind;

use highwater_sim::rafts::saboteur::Sabotage;
use highwater_sim::rafts::{self, Counts};

/// Seeds within which each planted bug must be found.
const SEEDS: u64 = 300;
/// Of the engine or of openraft, which may see what is wrong before any checker looks.
const ASSERTION: &str = "an assertion";

#[test]
fn a_seed_of_the_raft_group_is_one_run() {
    for seed in 0..6 {
        let (first, second) = (rafts::run(seed, None, false), rafts::run(seed, None, false));
        assert_eq!((first.hash, first.counts), (second.hash, second.counts), "seed {seed}");
        assert_ne!(first.hash, rafts::run(seed + 6, None, false).hash);
    }
}

#[test]
fn the_raft_group_keeps_every_rule_and_every_path_is_reached() {
    let mut counts = Counts::default();
    for seed in 0..40 {
        let outcome = rafts::run(seed, None, false);
        assert_eq!(outcome.violation, None, "seed {seed}");
        counts.add(&outcome.counts);
    }
    for (name, count) in counts.named() {
        assert!(count > 0, "nothing is counted as {name}");
    }
}

/// By a checker that is meant to catch it; what others say is as it may be.
#[test]
fn every_sabotage_of_the_raft_group_is_caught() {
    for sabotage in Sabotage::ALL {
        let checker = |seed| match catch_unwind(|| rafts::run(seed, Some(sabotage), false)) {
            Ok(outcome) => outcome.violation.map(|violation| violation.checker),
            Err(_) => Some(ASSERTION),
        };
        let expected = sabotage.caught_by();
        let mut found = (0..SEEDS).filter_map(|seed| Some((seed, checker(seed)?)));
        let Some((seed, checker)) = found.find(|(_, by)| expected.contains(by) || *by == ASSERTION) else {
            panic!("{sabotage:?} is not found by {expected:?} within {SEEDS} seeds")
        };
        println!("{sabotage:?} is found by seed {seed}: {checker}");
    }
}
