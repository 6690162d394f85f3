//! Content: what is read is what a producer sent to this partition, byte for byte, and nothing that the node said
//! it had refused.

use highwater_shards::ids::PartitionId;

use super::{Verdict, broken};
use crate::records::Batch;
use crate::shadow::Shadow;

pub const NAME: &str = "content";

pub fn check(shadow: &Shadow, partition: PartitionId, batch: &Batch) -> Verdict {
    let at = batch.base_offset;
    let Some(sent) = shadow.get(batch.uid) else {
        return Err(broken(NAME, format!("{partition} at {at}: nobody sent {:?}", batch.uid)));
    };
    let uid = batch.uid;
    if sent.partition != partition {
        let meant = sent.partition;
        return Err(broken(NAME, format!("{partition} at {at}: {uid:?} was sent to {meant}")));
    }
    if sent.hash != batch.hash || sent.records != batch.records {
        return Err(broken(NAME, format!("{partition} at {at}: {uid:?} is not what was sent")));
    }
    if sent.refused {
        return Err(broken(NAME, format!("{partition} at {at}: {uid:?} was refused and is there")));
    }
    Ok(())
}
