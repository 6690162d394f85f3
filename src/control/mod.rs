//! What the control core decides: topics, settings, producer ids, and which shard owns what.
//!
//! Control core, pure: it reads no clock, opens nothing, and what it wants durable it proposes.

mod core;
pub mod forming;
mod io;
pub mod lease;
mod limits;
pub mod liveness;
pub mod membership;
pub mod metadata;
pub mod placement;
mod plan;
mod producer_ids;
pub mod request;
mod review;
mod shard_load;
pub mod swim;

pub use self::core::{Control, ControlConfig, ControlStats};
pub use self::io::{ControlFatal, Input, KeepId, LocalId, Output, Placements, ProposalId};
