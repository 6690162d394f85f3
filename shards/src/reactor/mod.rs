//! The drivers: threads pinned to cores, the mailboxes between them, and the io_uring loop that drives one shard.
//!
//! Floor 3. A driver owns sockets, files, timers and rings and holds no rule of any protocol: what it does follows
//! from the outputs of the [`crate::shard::Machine`] that it drives.

mod bell;
#[cfg(test)]
mod bell_under_loom;
pub mod boot;
pub mod clock;
pub mod handover;
pub mod mailbox;
pub mod uring;

/// Where `bell.rs` takes its atomics from; its test under loom puts others in this place.
mod sync {
    pub use std::sync::atomic::{AtomicBool, Ordering, fence};
}
