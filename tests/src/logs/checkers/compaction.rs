//! Compaction: of each key the newest record stays, offsets and order do not change, and what is gone had a reason.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::logs::batches::{self, HORIZON, Record};
use crate::logs::history::Batch;
use crate::logs::world::Partition;

/// The settings that a log had since it was made, as far as they bound what compaction may do.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// It was to be compacted at some time.
    pub compacted: bool,
    pub lag_ms_min: i64,
    pub tombstone_ms_min: i64,
}

impl Default for Rules {
    fn default() -> Self {
        Self { compacted: false, lag_ms_min: i64::MAX, tombstone_ms_min: i64::MAX }
    }
}

/// Checks what was read of a log that may have been compacted, from `from` on. With `whole`, it is all up to `below`.
pub fn check(
    p: &Partition,
    from: u64,
    below: u64,
    read: &[Bytes],
    whole: bool,
    wall_ms: i64,
) -> Result<(), String> {
    let state = &p.history.now;
    let mut there = Vec::new();
    let mut end = from;
    let first = state.find(from);
    for bytes in read {
        let header = batches::parse(bytes)?;
        let i = state.batches.partition_point(|b| b.base < header.base);
        let Some(b) = state.batches.get(i).filter(|b| b.base == header.base && b.end == header.end) else {
            return Err(format!("a batch at {}..{} was never appended", header.base, header.end));
        };
        let was = batches::parse(&b.bytes)?;
        if i < first || header.base < end && i > first {
            return Err(format!("the batch at {} is out of order", header.base));
        }
        if header.epoch != was.epoch || header.producer != was.producer {
            return Err(format!("the batch at {} has another epoch or producer", header.base));
        }
        if header.attributes & !HORIZON != was.attributes {
            return Err(format!("the batch at {} has other attributes", header.base));
        }
        end = header.end;
        if end > below {
            return Err(format!("it read up to {end}"));
        }
        there.extend(batches::records(bytes, &header)?);
    }
    let end = if whole { below } else { end };
    if read.is_empty() && !whole {
        return Ok(());
    }
    let mut left = there.iter().peekable();
    let mut missing: Vec<Record> = Vec::new();
    for b in state.batches.iter().skip(first).take_while(|b| b.end <= end) {
        if let Some(bytes) = read.iter().find(|r| **r == b.bytes) {
            let n = batches::parse(bytes)?.records;
            for _ in 0..n {
                left.next();
            }
            continue;
        }
        let header = batches::parse(&b.bytes)?;
        for record in batches::records(&b.bytes, &header)? {
            match left.next_if(|r| r.offset == record.offset) {
                Some(r) if *r == record => {}
                Some(r) => {
                    let ms = (record.timestamp_ms, r.timestamp_ms);
                    let lens = [&record, r]
                        .map(|r| (r.key.as_ref().map(Bytes::len), r.value.as_ref().map(Bytes::len)));
                    return Err(format!(
                        "the record at {} is not what was appended: {ms:?}, {lens:?}",
                        r.offset
                    ));
                }
                None => missing.push(record),
            }
        }
    }
    if let Some(extra) = left.next() {
        return Err(format!("the record at {} is twice there, or never was", extra.offset));
    }
    if missing.is_empty() { Ok(()) } else { may_be_gone(p, &missing, wall_ms) }
}

/// The largest timestamp of the records that compaction cannot have taken; `None` if it may have taken all.
pub fn least_max_ms(p: &Partition, batch: &Batch, wall_ms: i64) -> Option<i64> {
    if !p.rules.compacted {
        return Some(batch.max_ms);
    }
    let records = batches::parse(&batch.bytes).and_then(|header| batches::records(&batch.bytes, &header));
    let records = records.expect("the world makes good batches");
    let stays = |r: &&Record| may_be_gone(p, std::slice::from_ref(r), wall_ms).is_err();
    records.iter().filter(stays).map(|r| r.timestamp_ms).max()
}

/// A record may be gone if a newer one of its key could be seen by compaction, or as the old deletion of a key.
fn may_be_gone(p: &Partition, missing: &[Record], wall_ms: i64) -> Result<(), String> {
    let mut newest: BTreeMap<Bytes, u64> = BTreeMap::new();
    let mut when = BTreeMap::new();
    let stable = p.stable();
    for b in p.history.now.batches.iter().filter(|b| b.end <= stable) {
        let header = batches::parse(&b.bytes)?;
        // Without a lag, timestamps do not matter, not even those from the future.
        let lag_ms = p.rules.lag_ms_min;
        let is_old = lag_ms <= 0 || b.max_ms.saturating_add(lag_ms) <= wall_ms;
        for r in batches::records(&b.bytes, &header)? {
            when.insert(r.offset, b.wall_ms);
            if let Some(key) = r.key
                && is_old
            {
                newest.insert(key, r.offset);
            }
        }
    }
    for r in missing {
        let Some(key) = &r.key else {
            return Err(format!("the record at {} has no key and is gone", r.offset));
        };
        if newest.get(key).is_some_and(|n| *n > r.offset) {
            continue;
        }
        let appended = when.get(&r.offset).copied();
        let expires = appended.map(|at| at.saturating_add(p.rules.tombstone_ms_min));
        if r.value.is_none() && expires.is_some_and(|at| at <= wall_ms) {
            continue;
        }
        return Err(format!("the newest record of a key, at {}, is gone", r.offset));
    }
    Ok(())
}
