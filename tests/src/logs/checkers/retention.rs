//! Retention: what it deletes had expired, or lay before as many bytes as are to be kept; never what is above the high
//! watermark, and never without being told to.

use highwater_shards::mail::LogConfig;

use crate::checkers::{Verdict, broken};
use crate::logs::checkers::compaction;
use crate::logs::world::Partition;

pub const NAME: &str = "retention";

/// What a segment adds to its batches at most, and to each of them.
const SEGMENT: u64 = 64;
const FRAME: u64 = 8;

pub fn check(p: &Partition, start: u64, wall_ms: i64) -> Verdict {
    let fail = |what: String| Err(broken(NAME, format!("{}: the log starts at {start}: {what}", p.id)));
    let state = &p.history.now;
    let Some(config) = p.configured.filter(|c| c.delete) else {
        return fail("nobody asked for it".into());
    };
    if start <= state.start {
        return fail(format!("it started at {} before", state.start));
    }
    if start > p.high_watermark {
        return fail(format!("the high watermark is {}", p.high_watermark));
    }
    if !p.rules.compacted && state.boundary(start) != start {
        return fail("a batch lies across".into());
    }
    let mut kept: u64 = state.batches.iter().filter(|b| b.end > start).map(|b| size(b.bytes.len())).sum();
    for b in state.batches.iter().rev().filter(|b| b.end <= start) {
        // What compaction may have taken may also be there still.
        if let Some(max_ms) = compaction::least_max_ms(p, b, wall_ms)
            && !has_expired(&config, max_ms, wall_ms)
            && config.retention_bytes.is_none_or(|bytes| kept < bytes)
        {
            return fail(format!(
                "the batch at {} of {max_ms} ms is gone at {wall_ms} ms, {kept} bytes behind it: {config:?}",
                b.base
            ));
        }
        kept += size(b.bytes.len());
    }
    Ok(())
}

fn size(len: usize) -> u64 {
    len as u64 + FRAME + SEGMENT
}

fn has_expired(config: &LogConfig, max_ms: i64, wall_ms: i64) -> bool {
    config.retention_ms.is_some_and(|ms| max_ms.saturating_add(ms) <= wall_ms)
}
