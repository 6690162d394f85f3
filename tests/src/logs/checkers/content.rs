//! Content: a read gives the batches that were appended there, whole, in order, byte for byte, and none that was
//! truncated, dropped or deleted before the read was asked for.

use std::rc::Rc;

use bytes::Bytes;

use super::compaction;
use crate::checkers::{Verdict, broken};
use crate::logs::batches;
use crate::logs::history::{Batch, State};
use crate::logs::world::Partition;

pub const NAME: &str = "log content";

/// A read that was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub from: u64,
    pub below: u64,
    pub bytes_max: usize,
    pub first_whole: bool,
    /// The log's changes at that time: truncations, starts, drops.
    pub changes: u64,
}

/// What came of a read.
pub fn check(p: &Partition, asked: &Asked, read: &[Bytes], wall_ms: i64) -> Verdict {
    let fail = |what: String| Err(broken(NAME, format!("{}: {asked:?}: {what}", p.id)));
    let total: usize = read.iter().map(Bytes::len).sum();
    if total > asked.bytes_max && !(read.len() == 1 && asked.first_whole) {
        return fail(format!("{} batches of {total} bytes are more than were asked for", read.len()));
    }
    if p.changes != asked.changes {
        return check_loosely(p, asked, read);
    }
    let state = &p.history.now;
    if p.rules.compacted {
        return match compaction::check(p, asked.from, asked.below, read, false, wall_ms) {
            Ok(()) => Ok(()),
            Err(what) => fail(what),
        };
    }
    let first = state.find(asked.from);
    if read.is_empty() {
        return match state.batches.get(first) {
            Some(b) if b.end <= asked.below && (asked.first_whole || b.bytes.len() <= asked.bytes_max) => {
                fail(format!("nothing was read, though a batch is at {}..{}", b.base, b.end))
            }
            _ => Ok(()),
        };
    }
    match same(state, first, read) {
        Ok(end) if end <= asked.below => Ok(()),
        Ok(end) => fail(format!("it read up to {end}")),
        Err(what) => fail(what),
    }
}

/// Whether `read` is what `state` has from its batch number `first` on; where that ends.
pub fn same(state: &State, first: usize, read: &[Bytes]) -> Result<u64, String> {
    let mut end = 0;
    for (i, bytes) in read.iter().enumerate() {
        let Some(b) = state.batches.get(first + i) else {
            return Err(format!("batch {i} of the answer lies behind the log's end: {}", describe(bytes)));
        };
        if b.bytes != *bytes {
            return Err(format!("{}..{} was appended, {} was read", b.base, b.end, describe(bytes)));
        }
        end = b.end;
    }
    Ok(end)
}

/// The log changed while the read was under way: each batch was there at some time since, and they follow each other.
fn check_loosely(p: &Partition, asked: &Asked, read: &[Bytes]) -> Verdict {
    let fail = |what: String| Err(broken(NAME, format!("{}: {asked:?}, changed since: {what}", p.id)));
    let mut next = None;
    for bytes in read {
        let header = match batches::parse(bytes) {
            Ok(header) => header,
            Err(what) => return fail(what.to_owned()),
        };
        if next.is_none() && header.end <= asked.from {
            return fail(format!("the first batch ends at {}", header.end));
        }
        if next.is_some_and(|n| header.base < n || !p.rules.compacted && header.base != n) {
            return fail(format!("the batch at {} does not follow the one before", header.base));
        }
        next = Some(header.end);
        if p.rules.compacted {
            continue;
        }
        let is_it = |b: &Rc<Batch>| b.base == header.base && b.bytes == *bytes;
        let live = p.history.now.batches.iter().any(is_it);
        let lately = p.removed.iter().any(|(changes, b)| *changes > asked.changes && is_it(b));
        if !live && !lately {
            return fail(format!("{} was not there since the read was asked for", describe(bytes)));
        }
    }
    Ok(())
}

/// What bytes say of themselves.
pub fn describe(bytes: &[u8]) -> String {
    match batches::parse(bytes) {
        Ok(h) => format!("{}..{} of epoch {} with {} bytes", h.base, h.end, h.epoch, h.len),
        Err(what) => format!("{} bytes, which are no good batch: {what}", bytes.len()),
    }
}

/// The first batch with a record at a timestamp or later, of those that end at or before `below`.
pub fn check_found(p: &Partition, timestamp_ms: i64, asked: &Asked, found: Option<&Bytes>) -> Verdict {
    let fail = |what: String| Err(broken(NAME, format!("{}: from {timestamp_ms} ms on: {what}", p.id)));
    if let Some(bytes) = found {
        match batches::parse(bytes) {
            Ok(h) if h.end > asked.below => return fail(format!("{} ends too late", describe(bytes))),
            Ok(h) if h.max_ms < timestamp_ms => return fail(format!("{} is older", describe(bytes))),
            Ok(_) => {}
            Err(what) => return fail(what.to_owned()),
        }
    }
    if p.changes != asked.changes || p.rules.compacted {
        return Ok(());
    }
    let state = &p.history.now;
    let wanted = state.batches.iter().find(|b| b.max_ms >= timestamp_ms && b.end <= asked.below);
    match (wanted, found) {
        (None, None) => Ok(()),
        (Some(b), Some(bytes)) if b.bytes == *bytes => Ok(()),
        (wanted, found) => {
            let wanted = wanted.map(|b| (b.base, b.end, b.max_ms));
            fail(format!("{wanted:?} is the first, found was {:?}", found.map(|b| describe(b))))
        }
    }
}
