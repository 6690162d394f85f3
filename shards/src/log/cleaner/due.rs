//! Whether a log is to be compacted now, and what of it.

use super::super::segment::SegmentMeta;
use crate::ids::Offset;
use crate::mail::LogConfig;

/// What is known of a log when the question is asked.
#[derive(Clone, Copy, Debug)]
pub struct Sealed<'a> {
    /// The segments that are not written to any more, oldest first.
    pub segments: &'a [SegmentMeta],
    /// Compaction has seen everything before this.
    pub cleaned: Offset,
    /// Nothing at or behind it is compacted, since it may still be truncated: the high watermark.
    pub stable: Offset,
}

/// The part of a log that is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Due {
    /// So many of the segments, from the first on, are the job's.
    pub segments: usize,
    pub dirty_from: Offset,
    /// The end of the last of them.
    pub upto: Offset,
    /// The dirty part of their bytes, in thousandths: the log with the most goes first.
    pub dirty_permille: u32,
}

/// Whether the log is due: it is to be compacted, and of the bytes that may be, so many are dirty as the configuration
/// says. A segment counts as dirty as a whole if a part of it is.
///
/// What may be compacted ends before the first segment that is not wholly stable, or that has a record younger than
/// the least lag. A record from the future, by its timestamp, is young: it holds back what is behind it, as in Kafka.
pub fn due(log: Sealed<'_>, config: &LogConfig, now_ms: i64) -> Option<Due> {
    if !config.compact {
        return None;
    }
    let young_ms = now_ms.saturating_sub(config.compaction_lag_ms);
    let is_free = |s: &&SegmentMeta| {
        s.end <= log.stable && (config.compaction_lag_ms <= 0 || s.max_timestamp_ms <= young_ms)
    };
    let free = &log.segments[..log.segments.iter().take_while(is_free).count()];
    let last = free.last()?;
    let bytes_of = |s: &SegmentMeta| u128::from(s.bytes);
    let all: u128 = free.iter().map(bytes_of).sum();
    let dirty: u128 = free.iter().filter(|s| s.end > log.cleaned).map(bytes_of).sum();
    if dirty == 0 {
        return None;
    }
    let dirty_permille =
        u32::try_from(dirty * 1000 / all.max(1)).expect("a part of a whole is at most a thousand of it");
    (dirty_permille >= config.dirty_permille).then_some(Due {
        segments: free.len(),
        dirty_from: log.cleaned,
        upto: last.end,
        dirty_permille,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(base: u64, end: u64, bytes: u64, max_timestamp_ms: i64) -> SegmentMeta {
        SegmentMeta {
            base: Offset(base),
            end: Offset(end),
            generation: 0,
            bytes,
            max_timestamp_ms,
            begun_ms: 0,
        }
    }

    fn of(segments: &[SegmentMeta], cleaned: u64, stable: u64) -> Sealed<'_> {
        Sealed { segments, cleaned: Offset(cleaned), stable: Offset(stable) }
    }

    const COMPACTED: fn() -> LogConfig = || LogConfig { compact: true, ..LogConfig::default() };

    #[test]
    fn log_is_due_when_half_of_it_is_dirty() {
        let segments = [segment(0, 10, 1000, 5), segment(10, 20, 998, 6), segment(20, 30, 2, 7)];
        assert_eq!(due(of(&segments, 10, 30), &LogConfig::default(), 99), None, "not a compacted log");
        let found = due(of(&segments, 10, 30), &COMPACTED(), 99);
        let want = Due { segments: 3, dirty_from: Offset(10), upto: Offset(30), dirty_permille: 500 };
        assert_eq!(found, Some(want));
        assert_eq!(
            due(of(&segments, 10, 29), &COMPACTED(), 99),
            None,
            "the last one is not stable: 499 of 1000"
        );
        assert_eq!(due(of(&segments, 30, 30), &COMPACTED(), 99), None, "all clean");
        let eager = LogConfig { dirty_permille: 0, ..COMPACTED() };
        assert_eq!(due(of(&segments, 30, 30), &eager, 99), None, "all clean, even if any dirt is enough");
        assert_eq!(due(of(&segments, 29, 30), &eager, 99).map(|d| d.dirty_permille), Some(1));
        assert_eq!(due(of(&[], 0, 0), &eager, 99), None);
    }

    #[test]
    fn young_records_hold_back_what_is_behind_them() {
        let segments = [segment(0, 10, 100, 50), segment(10, 20, 100, 91), segment(20, 30, 100, 0)];
        let lagging = LogConfig { compaction_lag_ms: 10, ..COMPACTED() };
        let upto = |now| due(of(&segments, 0, 30), &lagging, now).map(|d| (d.segments, d.upto.0));
        assert_eq!(upto(59), None);
        assert_eq!(upto(60), Some((1, 10)));
        assert_eq!(upto(100), Some((1, 10)));
        assert_eq!(upto(101), Some((3, 30)));
    }
}
