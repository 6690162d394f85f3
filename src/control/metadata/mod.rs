//! The cluster's metadata as commands, the image they make, and what changed.

pub mod apply;
pub mod command;
pub mod delta;
pub mod election;
pub mod envelope;
pub mod image;
pub mod node_config;
pub mod snapshot;
pub mod topic_config;
pub mod topic_name;
