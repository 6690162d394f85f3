//! Tests of the group as a whole; see [`world`]. The simulator runs it with faults of every kind.

mod members;
mod network;
mod world;
