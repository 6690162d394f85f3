//! I2: the high watermark never regresses within a life of the node, and for an fsync topic never at all.
//!
//! Answers on different connections overtake each other, so what is compared is what real time orders: the answer
//! to a question is not below what anyone had heard before the question was sent.

use std::collections::BTreeMap;

use highwater_shards::ids::PartitionId;
use highwater_shards::mail::Durability;
use highwater_shards::time::Instant;

use super::{Verdict, broken};
use crate::shadow::Boot;

pub const NAME: &str = "I2 high watermark";

#[derive(Debug, Default)]
pub struct HighWatermarks {
    marks: BTreeMap<PartitionId, Mark>,
}

#[derive(Debug)]
struct Mark {
    fsync: bool,
    /// Heard in this life.
    boot: u64,
    /// Heard ever, of what no crash takes back.
    ever: u64,
    /// Not every replica that must have a record has it, so after a restart the high watermark is unknown.
    withheld: bool,
    /// When ends were first heard of in this life, both growing.
    heard: Vec<(u64, Instant)>,
}

/// What an answer to a question that is sent now must at least say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Floor(pub u64);

impl HighWatermarks {
    pub fn add(&mut self, partition: PartitionId, durability: Durability) {
        let fsync = durability == Durability::Fsync;
        self.marks.insert(partition, Mark { fsync, boot: 0, ever: 0, withheld: false, heard: Vec::new() });
    }

    pub fn floor(&self, partition: PartitionId) -> Floor {
        let m = &self.marks[&partition];
        Floor(if m.fsync && !m.withheld { m.boot.max(m.ever) } else { m.boot })
    }

    pub fn set_withheld(&mut self, partition: PartitionId, withheld: bool) {
        self.marks.get_mut(&partition).expect("added").withheld = withheld;
    }

    /// Everything below `end` was said to be below the high watermark.
    pub fn passed(&mut self, partition: PartitionId, end: u64, boot: Boot, present: Boot, now: Instant) {
        let m = self.marks.get_mut(&partition).expect("partitions are added when they are made");
        if m.fsync {
            m.ever = m.ever.max(end);
        }
        if boot == present && end > m.boot {
            m.boot = end;
            m.heard.push((end, now));
        }
    }

    /// When anyone first heard in this life that the high watermark is above `offset`.
    pub fn heard_above(&self, partition: PartitionId, offset: u64) -> Option<Instant> {
        let heard = &self.marks[&partition].heard;
        heard.get(heard.partition_point(|&(end, _)| end <= offset)).map(|&(_, at)| at)
    }

    /// An answer, whose question was sent when `floor` was known, named the high watermark.
    pub fn on_seen(
        &mut self,
        partition: PartitionId,
        high_watermark: u64,
        floor: Floor,
        boot: Boot,
        present: Boot,
        now: Instant,
    ) -> Verdict {
        // A question of an earlier life was answered by that life.
        if high_watermark < floor.0 {
            let what = format!("{partition}: {high_watermark} after {} had been heard", floor.0);
            return Err(broken(NAME, what));
        }
        self.passed(partition, high_watermark, boot, present, now);
        Ok(())
    }

    pub fn crash(&mut self) {
        for m in self.marks.values_mut() {
            m.boot = 0;
            m.heard.clear();
        }
    }
}
