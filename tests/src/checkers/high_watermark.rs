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
    /// How often that began.
    withholdings: u32,
    /// When ends were first heard of in this life, both growing.
    heard: Vec<(u64, Instant)>,
}

/// What had been heard when a question was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Floor {
    boot: u64,
    ever: u64,
    withheld: bool,
    withholdings: u32,
}

impl HighWatermarks {
    pub fn add(&mut self, partition: PartitionId, durability: Durability) {
        let fsync = durability == Durability::Fsync;
        self.marks.insert(
            partition,
            Mark { fsync, boot: 0, ever: 0, withheld: false, withholdings: 0, heard: Vec::new() },
        );
    }

    pub fn floor(&self, partition: PartitionId) -> Floor {
        let m = &self.marks[&partition];
        Floor { boot: m.boot, ever: m.ever, withheld: m.withheld, withholdings: m.withholdings }
    }

    /// What the answer must at least say.
    pub fn least(&self, partition: PartitionId, floor: Floor) -> u64 {
        let m = &self.marks[&partition];
        // Neither when it was asked nor at any time since.
        let known = m.fsync && !floor.withheld && m.withholdings == floor.withholdings;
        if known { floor.boot.max(floor.ever) } else { floor.boot }
    }

    pub fn set_withheld(&mut self, partition: PartitionId, withheld: bool) {
        let m = self.marks.get_mut(&partition).expect("partitions are added when they are made");
        m.withholdings += u32::from(withheld && !m.withheld);
        m.withheld = withheld;
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
        let least = self.least(partition, floor);
        if high_watermark < least {
            let what = format!("{partition}: {high_watermark} after {least} had been heard");
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
