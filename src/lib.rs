//! Highwater: a thread-per-core coordination and replication engine for brokers.
//!
//! Pure: [`control`] (metadata, the control core's state machine) and [`kafka`] (the wire protocol as a
//! [`highwater_shards::front::Front`]). Drivers are behind the feature `engine`.

#[cfg(feature = "engine")]
pub mod api;
#[cfg(feature = "engine")]
pub mod cli;
#[cfg(feature = "engine")]
pub mod cluster_commands;
pub mod config;
pub mod control;
pub mod error;
pub mod kafka;
#[cfg(feature = "engine")]
pub mod log_inspect;
#[cfg(feature = "engine")]
pub mod logging;
#[cfg(feature = "engine")]
pub mod net;
#[cfg(feature = "engine")]
pub mod raft;
#[cfg(feature = "engine")]
pub mod runtime;
#[cfg(feature = "engine")]
pub mod store;
#[cfg(feature = "engine")]
pub mod topic_commands;
