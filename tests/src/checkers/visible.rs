//! I10: a record is never visible to a consumer before the high watermark passes it; and a read has the shape that
//! was asked for.
//!
//! While too few replicas are in sync the high watermark stands still: what was sent after that began must stay
//! hidden until it ends.

use std::collections::BTreeMap;

use highwater_shards::ids::PartitionId;

use super::{ReadSeen, Verdict, broken};
use crate::records::Batch;
use crate::shadow::Shadow;
use crate::wire::ReadSaid;

pub const NAME: &str = "I10 visible";

#[derive(Debug, Default)]
pub struct Visible {
    freezes: BTreeMap<PartitionId, Freeze>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Freeze {
    count: u32,
    on: bool,
}

impl Visible {
    pub fn add(&mut self, partition: PartitionId) {
        self.freezes.insert(partition, Freeze::default());
    }

    /// The shard has applied that the high watermark must stand still.
    pub fn begin_freeze(&mut self, partition: PartitionId) {
        let f = self.freezes.get_mut(&partition).expect("partitions are added when they are made");
        f.count += u32::from(!f.on);
        f.on = true;
    }

    /// The shard is about to be told that it may move again.
    pub fn end_freeze(&mut self, partition: PartitionId) {
        self.freezes.get_mut(&partition).expect("partitions are added when they are made").on = false;
    }

    /// Which freeze a batch that is sent now falls into.
    pub fn freeze(&self, partition: PartitionId) -> Option<u32> {
        let f = self.freezes[&partition];
        f.on.then_some(f.count)
    }

    pub fn check(&self, shadow: &Shadow, partition: PartitionId, batch: &Batch) -> Verdict {
        let now = self.freeze(partition);
        if now.is_some() && shadow.of(batch.uid).frozen == now {
            let (uid, at) = (batch.uid, batch.base_offset);
            let what =
                format!("{partition}: {uid:?} at {at} is visible though the high watermark stands still");
            return Err(broken(NAME, what));
        }
        Ok(())
    }
}

/// Whole batches, from the one that holds the offset on, without gaps, below the high watermark, in the order of
/// their leader epochs; and at least one when there is one.
pub fn check_shape(seen: &ReadSeen, said: &ReadSaid, batches: &[Batch]) -> Verdict {
    let (partition, offset, hw) = (seen.partition, seen.offset, said.high_watermark.0);
    let wrong = |what: String| Err(broken(NAME, format!("{partition}: a read at {offset}: {what}")));
    let Some(first) = batches.first() else {
        if offset < hw {
            return wrong(format!("nothing, though the high watermark is {hw}"));
        }
        return Ok(());
    };
    if !(first.base_offset..first.base_offset + u64::from(first.records)).contains(&offset) {
        return wrong(format!("the first batch is at {}", first.base_offset));
    }
    let mut next = first.base_offset;
    let mut epoch = -1;
    for batch in batches {
        if batch.base_offset != next {
            return wrong(format!("a batch at {} where {next} follows", batch.base_offset));
        }
        if batch.leader_epoch < epoch {
            return wrong(format!("leader epoch {} after {epoch} at {next}", batch.leader_epoch));
        }
        epoch = batch.leader_epoch;
        next += u64::from(batch.records);
    }
    if next > hw {
        return wrong(format!("records up to {next}, though the high watermark is {hw}"));
    }
    Ok(())
}
