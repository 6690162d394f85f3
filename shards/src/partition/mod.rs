//! Partitions as state machines: floor 1, pure.

pub mod producers;
