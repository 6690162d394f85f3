//! Old segments go: by the age of their newest record, and by the size of the log. Floor 1.
//!
//! Whole segments only, oldest first, and nothing from the high watermark on. The journal is told first; the files
//! follow when the note is flushed. Logs are found by an ordered set of the times at which their first segments expire,
//! so a log in which nothing expires costs nothing.

use std::time::Duration;

use super::log::Log;
use super::{Noted, Stop, Storage, StorageEvent};
use crate::ids::Offset;
use crate::log::journal::Urgency;
use crate::log::segment::SegmentMeta;
use crate::log::segment::format::SEGMENT_HEADER_BYTES;
use crate::log::{Note, Slot};
use crate::time::Instant;

/// When a log is looked at again whose segment could not go although it is old.
const AGAIN_MS: i64 = 10_000;

/// The age of a segment counts from here: its newest record, or its first append if records have no timestamps.
fn newest_ms(segment: &SegmentMeta) -> i64 {
    if segment.max_timestamp_ms < 0 { segment.begun_ms } else { segment.max_timestamp_ms }
}

/// Where the log starts once everything that is too old or too much is gone.
fn new_start(log: &Log, now_ms: i64, below: Offset) -> Offset {
    let config = &log.config;
    let is_old = |segment: &SegmentMeta| {
        config.retention_ms.is_some_and(|ms| newest_ms(segment).saturating_add(ms) <= now_ms)
    };
    // Without the headers of the files. What stands before each batch is counted with it.
    let size = |segment: &SegmentMeta| segment.bytes.saturating_sub(SEGMENT_HEADER_BYTES as u64);
    let mut left: u64 = log.segments.iter().map(size).sum();
    let mut start = log.start;
    for (at, segment) in log.segments.iter().enumerate() {
        let is_last = at + 1 == log.segments.len();
        let is_too_much =
            !is_last && config.retention_bytes.is_some_and(|max| left.saturating_sub(size(segment)) >= max);
        let next = if is_last { log.moved.end } else { log.segments[at + 1].base };
        if !config.delete || next > below || !(is_old(segment) || is_too_much) {
            break;
        }
        left -= size(segment);
        start = start.max(next);
    }
    start
}

impl Storage {
    /// Notes when the log's first segment expires, or its first batch while it has no segment.
    pub(super) fn note_expiry(&mut self, slot: Slot) {
        self.forget_expiry(slot);
        let wall_ms = self.wall_ms();
        let Some(log) = self.log_mut(slot) else { return };
        let first = match (log.segments.first(), log.tail.get(log.tail_moved)) {
            (Some(segment), _) => newest_ms(segment),
            (None, Some(batch)) if batch.timestamp_ms < 0 => wall_ms,
            (None, Some(batch)) => batch.timestamp_ms,
            (None, None) => return,
        };
        let at = match (log.config.delete, log.config.retention_ms) {
            (true, Some(ms)) if log.dropped.is_none() => first.saturating_add(ms),
            _ => return,
        };
        log.expiry_ms = Some(at);
        self.expiries.insert((at, slot));
    }

    pub(super) fn forget_expiry(&mut self, slot: Slot) {
        if let Some(at) = self.log_mut(slot).and_then(|log| log.expiry_ms.take()) {
            self.expiries.remove(&(at, slot));
        }
    }

    pub(super) fn retention_due(&self) -> Option<Instant> {
        if !self.is_running() || self.stop != Stop::No {
            return None;
        }
        let &(at, _) = self.expiries.first()?;
        let ms = u64::try_from(at.saturating_sub(self.config.wall_ms_at_zero)).unwrap_or(0);
        Some(Instant::ZERO + Duration::from_millis(ms))
    }

    /// Moves the start of logs whose oldest segments are too old, or too much.
    pub(super) fn retain(&mut self, noted: &dyn Noted) {
        if self.stop != Stop::No {
            return;
        }
        let now_ms = self.wall_ms();
        while let Some(&(at, slot)) = self.expiries.first()
            && at <= now_ms
        {
            self.forget_expiry(slot);
            if !self.retire(slot, now_ms, noted.high_watermark(slot)) {
                self.look_again(slot, now_ms);
            }
        }
        while let Some(slot) = self.oversized.pop_front() {
            self.retire(slot, now_ms, noted.high_watermark(slot));
        }
    }

    /// `false`: something is there that should go and cannot yet.
    fn retire(&mut self, slot: Slot, now_ms: i64, below: Offset) -> bool {
        let Some(log) = self.live(slot) else { return true };
        // What its segments will be is known once the notes took effect; then it is looked at again.
        if !log.notes.is_empty() {
            return true;
        }
        // Only segments are judged: what expires in memory becomes one first.
        if log.segments.is_empty() && log.tail_moved < log.tail.len() && !log.is_ripe {
            self.ripen(slot);
            return false;
        }
        let start = new_start(log, now_ms, below);
        if start <= log.start {
            // Either it is gone but for the files, or the high watermark is in the way.
            return log.start > log.moved.start;
        }
        let partition = log.partition;
        let now = self.now;
        let Some(journal) = self.journal.as_mut() else { return false };
        let Ok(written) = journal.note(now, partition, Note::Started { start }, Urgency::Lazy) else {
            return false;
        };
        tracing::debug!(%partition, %start, "retention: the log starts here now");
        self.take_note(slot, written.lsn, Note::Started { start });
        self.events.push_back(StorageEvent::Started { slot, start });
        true
    }

    /// Has the log moved as soon as what it holds is durable.
    fn ripen(&mut self, slot: Slot) {
        let Some(log) = self.log_mut(slot) else { return };
        if let Some(last) = log.tail.back() {
            let chunk = last.lsn.chunk;
            log.is_ripe = true;
            self.ripe.push_back((chunk, slot));
        }
    }

    fn look_again(&mut self, slot: Slot, now_ms: i64) {
        let at = now_ms.saturating_add(AGAIN_MS);
        if let Some(log) = self.log_mut(slot) {
            log.expiry_ms = Some(at);
            self.expiries.insert((at, slot));
        }
    }
}
