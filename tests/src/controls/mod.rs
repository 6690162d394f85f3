//! The world of several control planes: real [`highwater::control::Control`]s over an oracle of the metadata log, with
//! shards that only take in what they are told. Nodes are killed, fall behind and get snapshots, proposals are lost,
//! leaders of the log change.
//!
//! - [`oracle`] is the log: one order of entries, and who leads
//! - [`world`] drives the nodes; [`node`] is one of them, with what its disk holds
//! - [`checkers`] compare images, watch who leads partitions, and hold answers against the log

pub mod checkers;
pub mod node;
pub mod oracle;
pub mod world;

use std::time::Duration;

use crate::checkers::Violation;

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub hash: u64,
    pub counts: Counts,
    pub time: Duration,
    pub violation: Option<Violation>,
}

/// What happened in runs: so that one sees that each path was reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub entries: u64,
    pub lives: u64,
    pub snapshots: u64,
    pub leaders: u64,
    pub proposals_lost: u64,
    pub proposals_in_doubt: u64,
    pub done: u64,
    pub refused: u64,
    pub no_controller: u64,
    pub timed_out: u64,
    pub producer_ids: u64,
    pub staged: u64,
    pub fenced: u64,
    pub elections: u64,
}

impl Counts {
    pub fn named(&self) -> [(&'static str, u64); 14] {
        [
            ("entries", self.entries),
            ("lives", self.lives),
            ("snapshots", self.snapshots),
            ("leaders", self.leaders),
            ("proposals lost", self.proposals_lost),
            ("proposals in doubt", self.proposals_in_doubt),
            ("requests done", self.done),
            ("requests refused", self.refused),
            ("refused without a controller", self.no_controller),
            ("timed out", self.timed_out),
            ("producer ids", self.producer_ids),
            ("parts of large topics", self.staged),
            ("nodes fenced", self.fenced),
            ("elections", self.elections),
        ]
    }

    pub fn add(&mut self, other: &Self) {
        let Self { entries, lives, snapshots, leaders, proposals_lost, proposals_in_doubt, .. } = *other;
        let Self { done, refused, no_controller, timed_out, producer_ids, staged, fenced, elections, .. } =
            *other;
        self.entries += entries;
        self.lives += lives;
        self.snapshots += snapshots;
        self.leaders += leaders;
        self.proposals_lost += proposals_lost;
        self.proposals_in_doubt += proposals_in_doubt;
        self.done += done;
        self.refused += refused;
        self.no_controller += no_controller;
        self.timed_out += timed_out;
        self.producer_ids += producer_ids;
        self.staged += staged;
        self.fenced += fenced;
        self.elections += elections;
    }
}

/// Runs one seed. With `print`, every event is told.
pub fn run(seed: u64, print: bool) -> Outcome {
    world::World::new(seed, print).run()
}
