//! The world of one shard's log: [`highwater_shards::log::storage::Storage`] alone on a simulated disk, under random
//! work, crashes and faults, against a model of what each log must be.
//!
//! - [`world`] drives it, life by life; [`actions`] and [`reads`] are what is asked of it
//! - [`history`] is the model of one log; [`checkers`] compare the log with it
//! - [`saboteur`] plants bugs between the log and its disk, by which the checkers are checked

pub mod actions;
pub mod batches;
pub mod checkers;
pub mod config;
pub mod counts;
pub mod disks;
pub mod history;
pub mod reads;
pub mod saboteur;
pub mod shard;
pub mod world;

use std::time::Duration;

use crate::checkers::Violation;
use counts::Counts;
use saboteur::Sabotage;

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub hash: u64,
    pub counts: Counts,
    pub time: Duration,
    pub violation: Option<Violation>,
}

/// Runs one seed. With `print`, every event is told.
pub fn run(seed: u64, sabotage: Option<Sabotage>, print: bool) -> Outcome {
    let mut config = config::Config::of_seed(seed);
    if sabotage == Some(Sabotage::LostCuts) {
        // What was not cut is seen by those only who know nothing but the files.
        config.lost_checkpoints = 500;
        config.weights.truncate = 30;
    }
    world::World::new(config, sabotage, print).run()
}
