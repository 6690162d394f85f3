//! The world of the Raft group: the real [`highwater::raft`] with openraft and redb, on simulated disks, a simulated
//! network and virtual time, in one thread. Power goes at any operation of a disk, calls and answers are lost, late and
//! out of order, links are cut in one or both directions, nodes stall, clocks go at different speeds, disks are full.
//!
//! - [`node`] is one node, with the control loop that later the real control planes take the place of
//! - [`disk`], [`workers`] and [`net`] are what the group runs on
//! - [`world`] drives all of them; [`checkers`] look at what travels, what is told and what disks hold
//! - [`saboteur`] plants bugs

pub mod checkers;
pub mod disk;
pub mod net;
pub mod node;
pub mod saboteur;
pub mod workers;
pub mod world;

use std::time::Duration;

use self::saboteur::Sabotage;
use crate::checkers::Violation;

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub hash: u64,
    pub counts: Counts,
    pub time: Duration,
    pub violation: Option<Violation>,
}

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident: $words:literal,)*) => {
        /// What happened in runs: so that one sees that each path was reached.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counts {
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$(($words, self.$name),)*]
            }

            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

counts! {
    lives: "lives",
    crashes: "crashes",
    stalls: "stalls",
    full_disks: "full disks",
    disk_operations: "operations of disks",
    /// By crashes, before they were synced.
    sectors_lost: "sectors lost",
    calls: "calls",
    messages_lost: "calls and answers lost",
    /// With a leader.
    terms: "terms",
    votes: "votes",
    administered: "changes of leaders and members",
    log_entries: "log entries",
    committed: "revisions",
    /// On all nodes together.
    applied: "entries applied",
    snapshots_installed: "snapshots installed",
    proposals_done: "proposals done",
    proposals_failed: "proposals failed",
    /// Applied, and known by a snapshot only.
    proposals_passed_over: "proposals passed over",
}

/// Runs one seed. With `print`, every event is told.
pub fn run(seed: u64, sabotage: Option<Sabotage>, print: bool) -> Outcome {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().expect("it needs nothing of the system");
    runtime.block_on(async { world::World::new(seed, sabotage, print).run().await })
}
