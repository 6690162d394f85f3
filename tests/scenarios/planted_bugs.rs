//! Every checker is shown to fail: a toy shard with one planted bug, or a real one whose disk, mail or answers are
//! tampered with, is caught, and by a checker that is meant to catch it.

use highwater_sim::node::ShardBuilder;
use highwater_sim::run::Job;
use highwater_sim::saboteur::{Sabotage, SaboteurBuilder};
use highwater_sim::toy::{Bug, ToyBuilder};
use highwater_sim::world::Builder;

/// Seeds within which each bug must be found.
const SEEDS: u64 = 300;

/// Whether one of the checkers that are meant to catches it; what others say is as it may be.
fn is_caught<B: Builder>(expected: &[&str], builder: impl Fn() -> B) -> bool {
    (0..SEEDS).any(|seed| {
        let outcome = Job::of_seed(seed).run_with(builder(), false);
        outcome.violation.is_some_and(|v| expected.contains(&v.checker))
    })
}

#[test]
fn every_bug_of_a_toy_is_caught() {
    for bug in Bug::ALL {
        let expected: &[&str] = match bug {
            Bug::AcksBeforeFlush | Bug::ServesBeyondHighWatermark => &["I1 acked", "I2 high watermark"],
            Bug::DropsBatches | Bug::ForgetsProducers => &["I1 acked", "I1 order", "I1 idempotence"],
            Bug::ReversesBatches => &["I1 acked", "I1 order"],
            Bug::AnswersTwice | Bug::ForgetsToAnswer => &["I9 answered"],
            Bug::RegressesHighWatermark => &["I2 high watermark"],
            Bug::TakesStaleRevisions => &["I7 revisions"],
            Bug::RecoversWithoutSync | Bug::NeverFlushesReplicated => &["I1 acked", "I2 high watermark"],
            Bug::RecoversWithoutCrc | Bug::ReadsWrongBytes | Bug::AcceptsDamagedBatches => &["content"],
            Bug::IgnoresIsr => &["I10 visible"],
            Bug::StaysLeaderless => &["I11 liveness"],
            Bug::TakesLastForLargest => &["locate"],
        };
        assert!(is_caught(expected, || ToyBuilder { bug: Some(bug) }), "{bug:?}");
    }
}

#[test]
fn every_sabotage_of_a_real_shard_is_caught() {
    for sabotage in Sabotage::ALL {
        let expected: &[&str] = match sabotage {
            // The shard itself finds that what had been flushed is not there.
            Sabotage::EarlyWrites | Sabotage::NoSyncs | Sabotage::LostWrites => &["fatal", "I1 acked"],
            Sabotage::WrongReads => &["fatal", "content"],
            Sabotage::LostSends | Sabotage::LostMail => &["I9 answered"],
            Sabotage::ReorderedMail => &["I1 order", "I1 idempotence"],
            Sabotage::LostStop => &["I11 liveness"],
            Sabotage::WrongOffsets => &["I1 acked"],
        };
        let builder = || SaboteurBuilder { inner: ShardBuilder, sabotage };
        assert!(is_caught(expected, builder), "{sabotage:?}");
    }
}
