//! The deterministic simulator of Highwater: a world with virtual time in which the pure cores run unchanged, and
//! checkers that watch what clients see. One seed is one run; the same seed is the same run.
//!
//! - [`world`] drives the machines under test; [`disk`], [`net`], [`control`] and [`faults`] are its parts
//! - [`client`] with [`producer`], [`consumer`] and [`auditor`] is the workload, over any protocol ([`wire`])
//! - [`cluster`] is a world of whole clusters; what it shares with the first is in [`turn`], [`track`] and the parts above
//! - [`kafka`] speaks the real protocol, [`front`] the simulator's own; [`records`] is its own reading of record batches
//! - [`checkers`] are told what happened, and compare it with the [`shadow`]
//! - worlds of their own: [`logs`] for the log of one shard alone, [`controls`] for several control planes, [`rafts`] for
//!   the Raft group
//! - [`args`] reads what the simulator and the fuzzer are told to run
//! - [`toy`] is a small machine with planted bugs, by which the checkers are checked

pub mod args;
pub mod auditor;
pub mod checkers;
pub mod client;
pub mod cluster;
pub mod config;
pub mod consumer;
pub mod control;
pub mod controls;
mod counts;
pub mod disk;
pub mod faults;
mod features;
pub mod front;
pub mod kafka;
pub mod logs;
pub mod net;
pub mod node;
pub mod producer;
pub mod queue;
pub mod rafts;
pub mod records;
pub mod rng;
pub mod run;
pub mod saboteur;
pub mod shadow;
pub mod toy;
pub mod trace;
pub mod track;
pub mod turn;
pub mod wire;
pub mod world;
