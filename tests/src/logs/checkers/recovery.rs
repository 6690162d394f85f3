//! Recovery: everything that was flushed is there, and of the rest what a prefix of the journal holds, the same prefix
//! for all logs. What was truncated, dropped or deleted does not come back. What the shard noted, with what was
//! replayed to it behind, is the log's whole history, nothing twice and nothing left out.

use std::collections::BTreeSet;

use highwater_shards::ids::Offset;
use highwater_shards::log::storage::{Start, Storage};

use crate::checkers::{Violation, broken};
use crate::logs::world::Partition;

pub const NAME: &str = "recovery";

/// The places at which the journal may have been cut, so that the logs end and start as they do.
pub fn cuts(
    partitions: &[Partition],
    storage: &Storage,
    start: Start,
    is_known: bool,
    flushed: u64,
    before: Option<&[u64]>,
) -> Result<Vec<u64>, Violation> {
    let all: BTreeSet<u64> = match before {
        Some(before) => before.iter().copied().collect(),
        None => partitions.iter().flat_map(|p| p.history.markers()).chain([flushed]).collect(),
    };
    let fits = |p: &Partition, cut: u64| fit(p, storage, start, is_known, cut);
    let cuts: Vec<u64> =
        all.iter().copied().filter(|&cut| partitions.iter().all(|p| fits(p, cut).is_ok())).collect();
    if !cuts.is_empty() {
        return Ok(cuts);
    }
    for p in partitions {
        if all.iter().all(|&cut| fits(p, cut).is_err()) {
            let why: Vec<String> = all
                .iter()
                .map(|&cut| format!("cut at {cut}: {}", fits(p, cut).expect_err("none fits")))
                .collect();
            return Err(broken(NAME, format!("{} (flushed to {flushed}): {}", p.id, why.join("; "))));
        }
    }
    let each = partitions.iter().map(|p| {
        let fitting: Vec<u64> = all.iter().copied().filter(|&cut| fits(p, cut).is_ok()).collect();
        format!("{}: {fitting:?}", p.id)
    });
    let each: Vec<String> = each.collect();
    Err(broken(NAME, format!("the logs are not cut at one place: {}", each.join(", "))))
}

fn fit(p: &Partition, storage: &Storage, start: Start, is_known: bool, cut: u64) -> Result<(), String> {
    let slot = storage.slot(p.id);
    let o = p.history.outline(cut, slot.is_none());
    let retained = p.history.open_starts(o.drops);
    let starts: Vec<u64> = retained.map(|r| r.max(o.start)).chain([o.start]).collect();
    let most = starts.iter().copied().max().expect("one is there");
    let Some(slot) = slot else {
        // Without a checkpoint, a log is known by what it holds. Where in the journal a start stands that retention
        // announced is not known here, so the log may be empty by it: files only go once it is durable.
        let is_empty = o.end == 0 || start == Start::Rebuilt && most >= o.end;
        return if is_empty { Ok(()) } else { Err(format!("{o:?} is expected, nothing is there")) };
    };
    let (found, end) = (storage.start(slot), storage.end(slot));
    let (Some(Offset(found)), Some(Offset(end))) = (found, end) else {
        return Err("a log that is listed has no start or no end".into());
    };
    if start == Start::Rebuilt && most >= o.end && end == 0 {
        return Ok(());
    }
    if end != o.end {
        return Err(format!("{o:?} is expected, the log is {found}..{end}"));
    }
    // Without a checkpoint, deleted records may come back: what deleted them is known by nothing but the journal.
    // And what compaction left nothing of is not known of either: whether it may be gone is seen when it is read.
    let is_rebuilt = start == Start::Rebuilt || p.may_start_behind;
    let is_right = if is_rebuilt { found <= most || p.rules.compacted } else { starts.contains(&found) };
    if !is_right {
        return Err(format!("{o:?} or a start of {starts:?} is expected, the log is {found}..{end}"));
    }
    let heard = p.heard.known;
    if is_known && heard != o.known {
        return Err(format!("{o:?} is expected, noted and replayed was {heard:?}"));
    }
    let flushed = storage.flushed_end(slot);
    if flushed != Some(Offset(end)) {
        return Err(format!("the log ends at {end}, and after recovery is flushed up to {flushed:?}"));
    }
    Ok(())
}
