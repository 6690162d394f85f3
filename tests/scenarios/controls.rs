//! Several control planes over an oracle of the metadata log: a slice of their seeds.

use highwater_sim::controls::{self, Counts};

#[test]
fn a_seed_of_the_control_planes_is_one_run() {
    for seed in 0..4 {
        let (first, second) = (controls::run(seed, false), controls::run(seed, false));
        assert_eq!((first.hash, first.counts), (second.hash, second.counts), "seed {seed}");
        assert_ne!(first.hash, controls::run(seed + 4, false).hash);
    }
}

#[test]
fn control_planes_agree_and_keep_their_word_and_every_path_is_reached() {
    let mut counts = Counts::default();
    for seed in 0..40 {
        let outcome = controls::run(seed, false);
        assert_eq!(outcome.violation, None, "seed {seed}");
        counts.add(&outcome.counts);
    }
    for (name, count) in counts.named() {
        assert!(count > 0, "nothing is counted as {name}");
    }
}
