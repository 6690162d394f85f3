//! Runs seeds, and says how to run a failing one again.

use std::fmt;

use crate::config::Config;
use crate::node::{KafkaBuilder, ShardBuilder};
use crate::toy::ToyBuilder;
use crate::world::{Builder, Outcome, World};

/// One seed and how it is to be run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Job {
    pub seed: u64,
    pub swarm: bool,
    pub node: Node,
}

/// What is under test.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Node {
    /// Real shards behind the simulator's own protocol.
    Sim,
    /// Real shards behind Kafka's protocol.
    Kafka,
    Toy,
}

impl Node {
    pub const ALL: [Self; 3] = [Self::Sim, Self::Kafka, Self::Toy];

    pub fn name(self) -> &'static str {
        match self {
            Self::Sim => "sim",
            Self::Kafka => "kafka",
            Self::Toy => "toy",
        }
    }
}

impl Job {
    /// What a seed stands for when nothing else is said: odd seeds are swarms, and of four seeds two speak Kafka.
    pub fn of_seed(seed: u64) -> Self {
        let node = if (seed / 2).is_multiple_of(2) { Node::Sim } else { Node::Kafka };
        Self { seed, swarm: seed % 2 == 1, node }
    }

    pub fn config(self) -> Config {
        if self.swarm { Config::swarm(self.seed) } else { Config::of_seed(self.seed) }
    }

    pub fn run(self, print: bool) -> Outcome {
        match self.node {
            Node::Sim => self.run_with(ShardBuilder, print),
            Node::Kafka => self.run_with(KafkaBuilder, print),
            Node::Toy => self.run_with(ToyBuilder::default(), print),
        }
    }

    /// Runs something else than `node`.
    pub fn run_with<B: Builder>(self, builder: B, print: bool) -> Outcome {
        World::new(self.config(), builder, print).run()
    }
}

impl fmt::Display for Job {
    /// The command that runs it again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let swarm = if self.swarm { "on" } else { "off" };
        let node = self.node.name();
        let seed = self.seed;
        write!(
            f,
            "cargo run --release --bin highwater-sim -- --seed {seed} --swarm {swarm} --node {node} --trace"
        )
    }
}
