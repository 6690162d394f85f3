//! The log against a disk that forgets, and against a model of what was appended.

mod compaction;
mod drops;
mod model;
mod random;
mod rig;
mod rules;
