//! I1, order: the batches of one lane stand in the log in the order in which they were made.

use std::collections::BTreeMap;

use highwater_shards::ids::PartitionId;

use super::{Verdict, broken};
use crate::records::Uid;
use crate::shadow::{Lane, Shadow};

pub const NAME: &str = "I1 order";

/// `log` is a whole log, by offset.
pub fn audit(shadow: &Shadow, partition: PartitionId, log: &[(u64, Uid)]) -> Verdict {
    let mut last: BTreeMap<Lane, Uid> = BTreeMap::new();
    for &(at, uid) in log {
        let before = last.insert(shadow.of(uid).lane, uid);
        if let Some(before) = before.filter(|&b| b >= uid) {
            return Err(broken(NAME, format!("{partition} at {at}: {uid:?} stands behind {before:?}")));
        }
    }
    Ok(())
}
