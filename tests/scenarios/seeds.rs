//! Random runs: a short slice of what the binary runs by the thousand.

use highwater_sim::run::{Job, Node};

#[test]
fn a_seed_is_one_run() {
    for seed in 0..16 {
        let job = Job::of_seed(seed);
        let (first, second) = (job.run(false), job.run(false));
        assert_eq!((first.hash, first.events), (second.hash, second.events), "{job}");
        assert_ne!(first.hash, Job { seed: seed + 16, ..job }.run(false).hash);
    }
}

fn keeps_every_invariant(node: Node, seeds: u64) {
    for seed in 0..seeds {
        let job = Job { node, ..Job::of_seed(seed) };
        let outcome = job.run(false);
        assert_eq!(outcome.violation, None, "{job}");
        assert!(outcome.records > 0, "{job}: nothing was audited");
    }
}

#[test]
fn shards_keep_every_invariant() {
    keeps_every_invariant(Node::Sim, 100);
}

#[test]
fn shards_behind_kafka_keep_every_invariant() {
    keeps_every_invariant(Node::Kafka, 100);
}

#[test]
fn the_toy_keeps_every_invariant() {
    keeps_every_invariant(Node::Toy, 50);
}
