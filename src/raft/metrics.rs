//! What the Raft group counts about itself.
//!
//! Driver. The log thread and the control core both write here, once per flush and once per proposal.

#![expect(
    clippy::disallowed_types,
    reason = "driver: the log thread and the control core count in one place"
)]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

/// The times that a histogram tells apart, in ns.
const NANOS_MIN: u64 = 1_000;
const NANOS_MAX: u64 = 60_000_000_000;
/// The largest batch that a histogram tells apart.
const BATCH_MAX: u64 = 1_000_000;

/// Counters and distributions since the start. Times are in ns.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RaftStats {
    pub proposals: u64,
    pub proposals_failed: u64,
    /// Attempts beyond the first of a proposal.
    pub proposals_repeated: u64,
    /// Proposals of other nodes that this one took in as leader.
    pub forwarded: u64,
    /// Entries that were applied a second time, and so had no effect.
    pub duplicates: u64,
    pub applied: u64,
    pub snapshots_built: u64,
    pub snapshots_installed: u64,
    pub snapshots_sent: u64,
    pub calls_refused: u64,
    pub entries_written: u64,
    /// Transactions, each with one flush.
    pub flushes: u64,
    /// Flushes that met a full disk and were done again.
    pub disk_full: u64,
    /// From a proposal to its entry in the hands of the control core.
    pub proposal_nanos: Histogram<u64>,
    /// From the append of entries to their being durable.
    pub append_nanos: Histogram<u64>,
    /// From a vote to its being durable.
    pub vote_nanos: Histogram<u64>,
    /// A transaction with its flush.
    pub flush_nanos: Histogram<u64>,
    /// Entries in a transaction.
    pub batch_entries: Histogram<u64>,
}

impl Default for RaftStats {
    fn default() -> Self {
        let nanos = || Histogram::new_with_bounds(NANOS_MIN, NANOS_MAX, 2).expect("the bounds are sound");
        Self {
            proposals: 0,
            proposals_failed: 0,
            proposals_repeated: 0,
            forwarded: 0,
            duplicates: 0,
            applied: 0,
            snapshots_built: 0,
            snapshots_installed: 0,
            snapshots_sent: 0,
            calls_refused: 0,
            entries_written: 0,
            flushes: 0,
            disk_full: 0,
            proposal_nanos: nanos(),
            append_nanos: nanos(),
            vote_nanos: nanos(),
            flush_nanos: nanos(),
            batch_entries: Histogram::new_with_max(BATCH_MAX, 2).expect("the bounds are sound"),
        }
    }
}

/// Adds a time to a histogram of ns.
pub(super) fn record(histogram: &mut Histogram<u64>, time: Duration) {
    histogram.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(NANOS_MAX));
}

/// Where both threads count.
#[derive(Clone, Debug, Default)]
pub(super) struct Counters(Arc<Mutex<RaftStats>>);

impl Counters {
    pub fn count(&self, f: impl FnOnce(&mut RaftStats)) {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub fn stats(&self) -> RaftStats {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
