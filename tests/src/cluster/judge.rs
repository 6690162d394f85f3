//! Holds what clients of a cluster heard, and what its replicas are, against the invariants: one checker each, in
//! [`crate::checkers`].

use highwater_shards::ids::{LeaderEpoch, NodeId, Offset, PartitionId, Revision, ShardId};
use highwater_shards::mail::{Assignment, FromControl, PartitionError};
use highwater_shards::shard::ReplicaLook;
use highwater_shards::time::Instant;

use super::Counts;
use super::client::Open;
use super::node_id;
use super::plane::{Told, Truth};
use crate::checkers::agreement::Agreement;
use crate::checkers::committed::{self, Committed};
use crate::checkers::high_watermark::Floor;
use crate::checkers::leaders::Leaders;
use crate::checkers::maximal_isr::MaximalIsr;
use crate::checkers::revisions::Revisions;
use crate::checkers::truncation::{Seen, Truncations};
use crate::checkers::watermarks::Watermarks;
use crate::checkers::{ReadSeen, Verdict, Violation, broken, content, order, visible};
use crate::records::{self, Batch, Uid};
use crate::shadow::Shadow;
use crate::wire::{Call, ReadCall, ReadSaid};

#[derive(Debug, Default)]
pub struct Judge {
    pub shadow: Shadow,
    /// What sessions were shown.
    pub revisions: Revisions,
    committed: Committed,
    watermarks: Watermarks,
    maximal_isr: MaximalIsr,
    agreement: Agreement,
    leaders: Leaders,
    truncations: Truncations,
    /// What is committed of partitions.
    truth: Truth,
    /// What shards of each node applied.
    applied: Vec<Revisions>,
    shrinks: u64,
    expansions: u64,
    pub appends: u64,
    pub refused: u64,
    acked: u64,
    read: u64,
    follower_reads: u64,
    /// What clients heard, in words; kept only where somebody wants to read it.
    pub story: Option<Vec<String>>,
}

impl Judge {
    pub fn new(print: bool) -> Self {
        Self { story: print.then(Vec::new), ..Self::default() }
    }

    /// Adds to the story.
    pub fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(line());
        }
    }

    pub fn count(&self, counts: &mut Counts) {
        counts.leaderships = self.leaders.len() as u64;
        counts.truncations = self.truncations.count;
        counts.shrinks = self.shrinks;
        counts.expansions = self.expansions;
        counts.batches = self.shadow.len() as u64;
        counts.acked_batches = self.acked;
        counts.refused_appends = self.refused;
        counts.records_read = self.read;
        counts.follower_reads = self.follower_reads;
    }

    pub fn on_truth(&mut self, truth: &Truth) -> Verdict {
        for (id, now) in truth {
            let known = self.truth.get(id);
            if known.is_some_and(|k| k.partition_epoch == now.partition_epoch) {
                continue;
            }
            for &gone in known.iter().flat_map(|k| &k.replicas).filter(|n| !now.replicas.contains(n)) {
                self.truncations.on_left(*id, gone);
                self.maximal_isr.on_left(*id, gone);
            }
            self.maximal_isr.check(now, self.watermarks.committed(*id))?;
            let before = known.map_or(now.isr.len(), |k| k.isr.len());
            self.shrinks += u64::from(now.isr.len() < before);
            self.expansions += u64::from(now.isr.len() > before);
            self.truth.insert(*id, now.clone());
            self.tell(|| {
                let Assignment { leader, leader_epoch, partition_epoch, isr, .. } = now;
                let leader = leader.map_or("nobody".to_owned(), |l| format!("node {l}"));
                format!("{id} is led by {leader} in epoch {leader_epoch}, version {partition_epoch}, in sync are {isr:?}")
            });
        }
        Ok(())
    }

    pub fn on_start(&mut self, node: usize, _: u32) {
        if self.applied.len() <= node {
            self.applied.resize_with(node + 1, Revisions::default);
        }
        self.applied[node].boot();
    }

    pub fn on_applied(&mut self, node: usize, _: u32, shard: ShardId, revision: Revision) -> Verdict {
        self.applied[node].on_applied(shard, revision)
    }

    /// A shard is told something.
    pub fn on_told(&mut self, node: usize, life: u32, told: &Told) -> Verdict {
        if let FromControl::Delta { assign, .. } = told {
            let node = node_id(node);
            for a in assign.iter().filter(|a| a.leader == Some(node)) {
                self.leaders.on_leader(a.partition, a.leader_epoch, node, life)?;
            }
        }
        Ok(())
    }

    /// A replica as it is now.
    pub fn on_look(
        &mut self,
        node: usize,
        life: u32,
        partition: PartitionId,
        look: &ReplicaLook,
        epoch_of: impl Fn(Offset) -> Option<LeaderEpoch>,
    ) -> Verdict {
        let node = node_id(node);
        let Some(truth) = self.truth.get(&partition) else { return Ok(()) };
        let ReplicaLook { leads, log_start, high_watermark, log_end, flushed_end } = *look;
        let committed = self.watermarks.committed(partition);
        let seen = Seen { node, life, log_end, flushed_end };
        self.truncations.on_seen(truth, committed, &seen)?;
        self.maximal_isr.on_ends(truth, node, log_end, flushed_end);
        if let Some(epoch) = leads {
            self.leaders.on_leader(partition, epoch, node, life)?;
            self.watermarks.on_leader(partition, node, epoch, high_watermark)?;
            if high_watermark > log_start
                && let Some(epoch) = epoch_of(Offset(high_watermark.0 - 1))
            {
                self.agreement.on_committed(partition, high_watermark, epoch);
            }
        }
        self.maximal_isr.check(truth, self.watermarks.committed(partition))?;
        match self.agreement.end(partition).filter(|end| *end > log_start) {
            Some(end) => self.agreement.check(truth, node, epoch_of(Offset(end.0 - 1))),
            None => Ok(()),
        }
    }

    /// Whether the node that was asked leads what it was asked for.
    pub fn leads(&self, open: &Open) -> bool {
        let Call::Append { partition, .. } = &open.call else { return false };
        self.truth.get(partition).is_some_and(|a| a.leader == Some(node_id(open.node)))
    }

    pub fn floor(&self, partition: PartitionId) -> u64 {
        self.watermarks.floor(partition)
    }

    /// A producer was told that its batch stands at `base`; by `acks=1` that is no promise.
    pub fn on_acked(&mut self, uid: Uid, base: u64, acks_all: bool) -> Verdict {
        self.acked += 1;
        if !acks_all {
            return Ok(());
        }
        let sent = self.shadow.of(uid);
        let (partition, records) = (sent.partition, u64::from(sent.records));
        self.committed.learn(&committed::Told { partition, base, uid, records, shown: None })?;
        self.watermarks.heard(partition, base + records);
        Ok(())
    }

    /// A producer was told that its batch is not in the log and never will be.
    pub fn on_refused(&mut self, uid: Uid, error: PartitionError) -> Verdict {
        if self.committed.is_known(uid) {
            return Err(broken(content::NAME, format!("{uid:?} is in the log and was refused: {error}")));
        }
        self.shadow.of_mut(uid).refused = true;
        Ok(())
    }

    pub fn on_latest(&mut self, partition: PartitionId, offset: u64, floor: u64) -> Verdict {
        self.watermarks.on_latest(partition, offset, floor)
    }

    /// A consumer got records; returns the batches and the offset to read next.
    pub fn on_read(
        &mut self,
        open: &Open,
        read: &ReadCall,
        said: &ReadSaid,
        now: Instant,
    ) -> Result<(Vec<Batch>, u64), Violation> {
        let (partition, offset) = (read.partition, read.offset.0);
        let mut batches = Vec::new();
        let mut rest = &said.records[..];
        while !rest.is_empty() {
            let batch = records::parse(rest)
                .map_err(|e| broken(content::NAME, format!("{partition}: a read at {offset}: {e}")))?;
            rest = &rest[batch.len..];
            batches.push(batch);
        }
        let seen = ReadSeen { partition, offset, boot: 1, floor: Floor::default(), now };
        visible::check_shape(&seen, said, &batches)?;
        for batch in &batches {
            content::check(&self.shadow, partition, batch)?;
            self.committed.learn(&committed::Told {
                partition,
                base: batch.base_offset,
                uid: batch.uid,
                records: u64::from(batch.records),
                shown: Some(batch.leader_epoch),
            })?;
            self.read += u64::from(batch.records);
        }
        self.follower_reads += u64::from(open.is_of_follower(&self.truth));
        let next = batches.last().map_or(offset, |b| b.base_offset + u64::from(b.records));
        self.watermarks.heard(partition, said.high_watermark.0.max(next));
        Ok((batches, next))
    }

    /// The whole log of one replica was read.
    pub fn audit(&self, partition: PartitionId, node: NodeId, log: &[(u64, Uid)], end: u64) -> Verdict {
        self.committed.audit(partition, node, log, end)?;
        order::audit(&self.shadow, partition, log)
    }
}
