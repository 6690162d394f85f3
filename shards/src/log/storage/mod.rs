//! The log of one shard: all its partitions' batches, from the journal to their segments and back to readers.

mod api;

use std::time::Duration;

pub use api::{
    Found, FoundBatch, Noted, Owned, Start, StorageConfig, StorageEvent, StorageReport, StorageStats, Wanted,
};

use super::Slot;
use super::disk::{DiskEvent, DiskOp};
use super::journal::{AppendRefused, Marker, Urgency};
use crate::batch::BatchHeader;
use crate::ids::{LeaderEpoch, Offset, PartitionId};
use crate::mail::LogConfig;
use crate::time::Instant;

/// See the module's documentation.
#[derive(Debug)]
pub struct Storage {
    config: StorageConfig,
}

impl Storage {
    pub fn new(config: StorageConfig) -> Self {
        Self { config }
    }

    pub fn slot(&self, _partition: PartitionId) -> Option<Slot> {
        None
    }

    /// The log of the partition; an empty one is made if there is none.
    pub fn open(&mut self, _partition: PartitionId) -> Slot {
        Slot(0)
    }

    pub fn partition(&self, _slot: Slot) -> Option<PartitionId> {
        None
    }

    /// All logs, in the order in which they were opened.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        std::iter::empty()
    }

    pub fn configure(&mut self, _slot: Slot, _config: &LogConfig) {}

    /// Appends one whole batch that was validated, with `base` and `epoch` put into it.
    ///
    /// # Errors
    /// Nothing was appended; see [`AppendRefused`].
    #[expect(clippy::too_many_arguments, reason = "one append is one call")]
    pub fn append(
        &mut self,
        _now: Instant,
        _slot: Slot,
        _base: Offset,
        _epoch: LeaderEpoch,
        _header: &BatchHeader,
        _batch: &[u8],
        _urgency: Urgency,
    ) -> Result<Marker, AppendRefused> {
        Err(AppendRefused::NotReady)
    }

    /// Lets the log end at `end`, which is where a batch ends; what is behind is gone.
    pub fn truncate(&mut self, _now: Instant, _slot: Slot, _end: Offset) -> Result<Marker, AppendRefused> {
        Err(AppendRefused::NotReady)
    }

    /// Lets the log start at `start`; the records before are gone.
    pub fn advance_start(
        &mut self,
        _now: Instant,
        _slot: Slot,
        _start: Offset,
    ) -> Result<Marker, AppendRefused> {
        Err(AppendRefused::NotReady)
    }

    /// The log is gone, with its files. The slot finds nothing from here on.
    pub fn drop_log(&mut self, _now: Instant, _slot: Slot) -> Result<Marker, AppendRefused> {
        Err(AppendRefused::NotReady)
    }

    pub fn start(&self, _slot: Slot) -> Option<Offset> {
        None
    }

    pub fn end(&self, _slot: Slot) -> Option<Offset> {
        None
    }

    /// What is before it survives a crash. `start <= flushed_end <= end`.
    pub fn flushed_end(&self, _slot: Slot) -> Option<Offset> {
        None
    }

    pub fn read(&mut self, _now: Instant, _slot: Slot, _wanted: Wanted, _ticket: u64) -> Found {
        Found::Nothing
    }

    /// The first batch with a record at `timestamp_ms` or later, of those that end at or before `below`.
    pub fn find_timestamp(
        &mut self,
        _now: Instant,
        _slot: Slot,
        _timestamp_ms: i64,
        _below: Offset,
        _ticket: u64,
    ) -> FoundBatch {
        FoundBatch::Nothing
    }

    /// The largest timestamp of the batches that end at or before `below`, as far as is known without the disk: of
    /// a segment that reaches beyond `below`, that of the whole segment is taken.
    pub fn largest_timestamp(&self, _slot: Slot, _below: Offset) -> Option<i64> {
        None
    }

    /// How long producers should wait with their next request.
    pub fn throttle(&self) -> Duration {
        Duration::ZERO
    }

    /// Whether answers to lazy appends should wait for [`StorageEvent::BacklogCleared`].
    pub fn over_backlog(&self) -> bool {
        false
    }

    pub fn stats(&self) -> StorageStats {
        StorageStats::default()
    }

    /// Takes what became of an operation.
    pub fn handle(&mut self, _now: Instant, _event: DiskEvent) {}

    /// Takes note that the instant of `poll_timeout` came.
    pub fn handle_timeout(&mut self, _now: Instant) {}

    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    pub fn poll_event(&mut self) -> Option<StorageEvent> {
        None
    }

    /// The next operation for the disk. Drain events, then operations, after every batch of inputs, until there is
    /// neither.
    pub fn poll_op(&mut self, _now: Instant, _noted: &dyn Noted) -> Option<DiskOp> {
        let _ = &self.config;
        None
    }

    /// Takes no more entries, moves everything, makes it durable; [`StorageEvent::Stopped`] follows.
    pub fn stop(&mut self, _now: Instant) {}
}
