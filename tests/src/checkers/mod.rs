//! The checkers, one file for each invariant. Each is told what happened and says when its invariant is broken.
//!
//! They know only what clients and the control core can see, and the times of crashes; nothing of a shard's inside.

pub mod acked;
pub mod agreement;
pub mod answered;
pub mod committed;
pub mod content;
pub mod high_watermark;
pub mod leaders;
pub mod liveness;
pub mod maximal_isr;
pub mod order;
pub mod revisions;
pub mod truncation;
pub mod visible;
pub mod watermarks;

use std::time::Duration;

use highwater_shards::ids::PartitionId;
use highwater_shards::mail::Durability;
use highwater_shards::time::Instant;

use crate::records::{self, Batch, Uid};
use crate::shadow::{Boot, Shadow};
use crate::wire::ReadSaid;

/// A broken invariant.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{checker}: {what}")]
pub struct Violation {
    /// As named in the design, such as `I1`, with the name of the checker.
    pub checker: &'static str,
    pub what: String,
}

pub type Verdict = Result<(), Violation>;

pub fn broken(checker: &'static str, what: impl Into<String>) -> Violation {
    Violation { checker, what: what.into() }
}

/// Everything that is checked, and the shadow that it is checked against.
#[derive(Debug, Default)]
pub struct Checkers {
    pub shadow: Shadow,
    pub acked: acked::Acked,
    pub high_watermark: high_watermark::HighWatermarks,
    pub revisions: revisions::Revisions,
    pub visible: visible::Visible,
    /// The present life of the node, or the next one while it is down: what the last one said and is heard only
    /// now is news of the past.
    pub boot: Boot,
    /// What clients heard, in words; kept only where somebody wants to read it.
    pub story: Option<Vec<String>>,
}

/// A read that was answered, and what was known when it was sent.
#[derive(Clone, Copy, Debug)]
pub struct ReadSeen {
    pub partition: PartitionId,
    pub offset: u64,
    /// The life of the node that answered.
    pub boot: Boot,
    pub floor: high_watermark::Floor,
    pub now: Instant,
}

impl Checkers {
    /// Adds to the story.
    pub fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(line());
        }
    }

    pub fn add_partition(&mut self, partition: PartitionId, durability: Durability) {
        self.acked.add(partition, durability);
        self.high_watermark.add(partition, durability);
        self.visible.add(partition);
    }

    /// A producer was told that its batch stands at `base`.
    pub fn on_acked(&mut self, uid: Uid, base: u64, acks_all: bool, boot: Boot, now: Instant) -> Verdict {
        let partition = self.shadow.of(uid).partition;
        let durable = acks_all && self.acked.is_fsync(partition);
        let told = acked::Told { partition, base, uid, boot, now, durable };
        self.acked.learn(&mut self.shadow, &told, self.boot)?;
        if acks_all {
            let end = base + u64::from(self.shadow.of(uid).records);
            self.high_watermark.passed(partition, end, boot, self.boot, now);
        }
        Ok(())
    }

    /// A consumer got an answer; returns the batches and the offset to read next.
    pub fn on_read(&mut self, seen: &ReadSeen, said: &ReadSaid) -> Result<(Vec<Batch>, u64), Violation> {
        let hw = said.high_watermark.0;
        self.high_watermark.on_seen(seen.partition, hw, seen.floor, seen.boot, self.boot, seen.now)?;
        let mut batches = Vec::new();
        let mut rest = &said.records[..];
        while !rest.is_empty() {
            let batch = records::parse(rest).map_err(|e| {
                broken(content::NAME, format!("{}: a read at {}: {e}", seen.partition, seen.offset))
            })?;
            rest = &rest[batch.len..];
            batches.push(batch);
        }
        visible::check_shape(seen, said, &batches)?;
        let durable = self.acked.is_fsync(seen.partition);
        for batch in &batches {
            content::check(&self.shadow, seen.partition, batch)?;
            self.visible.check(&self.shadow, seen.partition, batch)?;
            let told = acked::Told {
                partition: seen.partition,
                base: batch.base_offset,
                uid: batch.uid,
                boot: seen.boot,
                now: seen.now,
                durable,
            };
            self.acked.learn(&mut self.shadow, &told, self.boot)?;
        }
        let next = batches.last().map_or(seen.offset, |b| b.base_offset + u64::from(b.records));
        Ok((batches, next))
    }

    /// The node's life ended without a clean stop. Records of a replicated topic that were told of at least
    /// `flush_within` before are safe all the same, if that is promised.
    pub fn on_crash(&mut self, now: Instant, flush_within: Option<Duration>) {
        if let Some(within) = flush_within {
            self.acked.crash(now, self.boot, within);
        }
        self.on_end();
    }

    /// The node's life ended after it had flushed everything.
    pub fn on_clean_stop(&mut self) {
        self.acked.clean_stop(self.boot);
        self.on_end();
    }

    fn on_end(&mut self) {
        self.high_watermark.crash();
        self.boot += 1;
    }

    pub fn on_boot(&mut self, boot: Boot) {
        assert!(boot == self.boot.max(1), "a life begins where the last one ended");
        self.boot = boot;
        self.revisions.boot();
    }
}
