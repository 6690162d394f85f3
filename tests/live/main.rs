//! Live tests: the real binary as a child process, real sockets, real files, kill -9, a full disk.
//!
//! Everything a node promises to the outside is checked from the outside. A test never depends on how fast the
//! machine is: it polls for what it waits for, and the only deadline ([`node::PATIENCE`]) is there to fail a hang.
//! Unmodified clients of other languages are in `clients/`, run by `clients/run.sh`.

#![expect(
    clippy::disallowed_methods,
    reason = "a test of processes: it starts threads, sleeps and looks at the clock"
)]
#![expect(clippy::unwrap_used, reason = "a test: a failed call is a failed test")]

mod bad_input;
mod cluster;
mod disk;
mod failover;
mod idle;
mod kill;
mod members;
mod network;
mod node;
mod partitions;
mod rack;
mod reassign;
mod records;
mod rejoin;
mod replication;
mod restart;
mod rust_client;
mod start;
mod wire;
