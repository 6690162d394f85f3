//! The Raft group of the metadata: openraft on redb, behind proposals in and committed entries out.
//!
//! Driver.

mod log;
mod metrics;
pub mod types;
