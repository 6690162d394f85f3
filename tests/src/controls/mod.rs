//! The world of several control planes: real [`highwater::control::Control`]s over an oracle of the metadata log, with
//! shards that only take in what they are told. Nodes are killed, fall behind and get snapshots, proposals are lost,
//! leaders of the log change.
//!
//! - [`oracle`] is the log: one order of entries, and who leads
//! - [`world`] drives the nodes; [`node`] is one of them, with what its disk holds
//! - [`partitions`] holds every entry against what may become of a partition
//! - [`checkers`] compare images, watch who leads partitions, and hold answers against the log

pub mod checkers;
pub mod node;
pub mod oracle;
pub mod partitions;
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
    pub stops: u64,
    pub isr_wishes: u64,
    pub isr_refused: u64,
    pub reassignments: u64,
    pub leaders_changed: u64,
}

impl Counts {
    pub fn named(&self) -> [(&'static str, u64); 19] {
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
            ("elections asked for", self.elections),
            ("stops", self.stops),
            ("wishes for other in-sync replicas", self.isr_wishes),
            ("members refused", self.isr_refused),
            ("reassignments", self.reassignments),
            ("leaders changed", self.leaders_changed),
        ]
    }

    pub fn add(&mut self, other: &Self) {
        let Self { entries, lives, snapshots, leaders, proposals_lost, proposals_in_doubt, .. } = *other;
        let Self { done, refused, no_controller, timed_out, producer_ids, staged, fenced, elections, .. } =
            *other;
        let Self { stops, isr_wishes, isr_refused, reassignments, leaders_changed, .. } = *other;
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
        self.stops += stops;
        self.isr_wishes += isr_wishes;
        self.isr_refused += isr_refused;
        self.reassignments += reassignments;
        self.leaders_changed += leaders_changed;
    }
}

/// Runs one seed. With `print`, every event is told.
pub fn run(seed: u64, print: bool) -> Outcome {
    world::World::new(seed, print).run()
}
