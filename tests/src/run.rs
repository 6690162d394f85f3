//! Runs seeds, and says how to run a failing one again.

use std::fmt;

use crate::config::Config;
use crate::world::{Builder, Outcome, World};

/// One seed and how it is to be run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Job {
    pub seed: u64,
    pub swarm: bool,
}

impl Job {
    pub fn config(self) -> Config {
        if self.swarm { Config::swarm(self.seed) } else { Config::of_seed(self.seed) }
    }

    pub fn run<B: Builder>(self, builder: B, print: bool) -> Outcome {
        World::new(self.config(), builder, print).run()
    }
}

impl fmt::Display for Job {
    /// The command that runs it again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let swarm = if self.swarm { " --swarm" } else { "" };
        write!(f, "cargo run -p highwater-sim -- --seed {}{swarm} --trace", self.seed)
    }
}
