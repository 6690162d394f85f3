//! Clusters of nodes that replicate: a slice of their seeds.

use highwater_sim::cluster::{self, Counts};

#[test]
fn a_seed_of_a_cluster_is_one_run() {
    for seed in 0..6 {
        let (first, second) = (cluster::run(seed, false), cluster::run(seed, false));
        assert_eq!((first.hash, first.counts), (second.hash, second.counts), "seed {seed}");
        assert_ne!(first.hash, cluster::run(seed + 6, false).hash);
    }
}

/// The node with all the records stops cleanly, and is told to stop once more before its next life is registered. The
/// other one lost what it had not flushed: it must not lead because the first counts as crashed.
#[test]
fn a_clean_stop_counts_after_a_life_that_was_not_registered() {
    assert_eq!(cluster::run(100_010, false).violation, None);
}

#[test]
fn clusters_keep_every_invariant_and_every_path_is_reached() {
    let mut counts = Counts::default();
    for seed in 0..60 {
        let outcome = cluster::run(seed, false);
        assert_eq!(outcome.violation, None, "seed {seed}");
        counts.add(&outcome.counts);
    }
    for (name, count) in counts.named() {
        assert!(count > 0, "nothing is counted as {name}");
    }
    let many = counts.seeds_with_three_faults_at_once;
    assert!(many * 10 >= counts.seeds, "a tenth of the seeds has three kinds of faults at once, not {many}");
}
