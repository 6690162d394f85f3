//! The data plane of Highwater: what one pinned core owns and does.
//!
//! Floors, each importing only lower ones:
//! - 0, vocabulary: [`ids`], [`time`], [`batch`], [`frame`], [`mail`]
//! - 1, pure: [`partition`] (roles, ends, fencing, producers, waiters) and [`log`] (journal and recovery as data)
//!   and [`stream`] (what shards of different nodes say to each other)
//! - 2, pure: [`front`] (the seam for a client protocol) and [`shard`] (one core's whole state machine)
//! - 3, drivers: `reactor` (threads, mailboxes, io_uring), behind the feature `uring`

pub mod batch;
pub mod frame;
pub mod front;
pub mod ids;
pub mod log;
pub mod mail;
pub mod partition;
#[cfg(feature = "uring")]
pub mod reactor;
pub mod shard;
pub mod stats;
pub mod stream;
pub mod time;
