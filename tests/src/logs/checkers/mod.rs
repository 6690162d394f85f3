//! What must hold of one shard's log, one file for each.

pub mod bounds;
pub mod compaction;
pub mod content;
pub mod recovery;
pub mod retention;
