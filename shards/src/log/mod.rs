//! The log of a shard as a state machine over [`disk`] operations: floor 1, pure.

pub mod disk;
