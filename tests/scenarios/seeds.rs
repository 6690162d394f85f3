//! Random runs: a short slice of what the binary runs by the thousand.

use highwater_sim::node::ShardBuilder;
use highwater_sim::run::Job;
use highwater_sim::toy::ToyBuilder;

#[test]
fn a_seed_is_one_run() {
    for seed in 0..5 {
        for swarm in [false, true] {
            let job = Job { seed, swarm };
            let (first, second) =
                (job.run(ToyBuilder::default(), false), job.run(ToyBuilder::default(), false));
            assert_eq!((first.hash, first.events), (second.hash, second.events), "{job}");
            assert_ne!(first.hash, Job { seed: seed + 1, swarm }.run(ToyBuilder::default(), false).hash);
        }
    }
}

#[test]
fn the_shard_keeps_every_invariant() {
    for seed in 0..200 {
        let job = Job { seed, swarm: seed % 2 == 1 };
        let outcome = job.run(ShardBuilder, false);
        assert_eq!(outcome.violation, None, "{job}");
        assert!(outcome.records > 0, "{job}: nothing was audited");
    }
}

#[test]
fn the_toy_keeps_every_invariant() {
    for seed in 0..100 {
        let job = Job { seed, swarm: seed % 2 == 1 };
        let outcome = job.run(ToyBuilder::default(), false);
        assert_eq!(outcome.violation, None, "{job}");
        assert!(outcome.records > 0, "{job}: nothing was audited");
    }
}
