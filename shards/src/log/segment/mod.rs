//! The segments of a log: files of its batches, one behind the other, with sparse indexes beside them. Floor 1, pure.

pub mod format;
pub mod index;
pub mod scan;
#[cfg(test)]
mod tests;

use crate::ids::Offset;

/// What is known of one segment without reading it.
///
/// The segments of a log are ordered by `base`; each ends where the next begins, or before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentMeta {
    /// The offset from which on it may hold records; its file is named after it.
    pub base: Offset,
    /// One past its last record: `base` without records.
    pub end: Offset,
    /// See [`super::disk::SegmentName`].
    pub generation: u32,
    /// How much of the file belongs to the log, from its header on. What lies behind is not.
    pub bytes: u64,
    /// The largest timestamp of its records, in ms since the epoch.
    pub max_timestamp_ms: i64,
    /// When its first batch was appended, in ms since the epoch.
    pub begun_ms: i64,
}
