//! The cluster's metadata as commands, the image they make, and what changed.

pub mod image;
