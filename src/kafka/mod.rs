//! The Kafka wire protocol as a [`highwater_shards::front::Front`]: one session per client connection, on the
//! shard core that the connection came to. Pure: no sockets, no clock, no threads.
//!
//! - [`wire`], [`api`], [`messages`]: bytes to messages and back, both sides of the protocol
//! - [`errors`]: the one place where the node's errors become Kafka's codes
//! - [`session`]: the order of requests and answers; one file per API family does the work

mod admin;
pub mod api;
mod asking;
mod changes;
mod configs;
mod coordinator;
pub mod errors;
mod fetch;
mod gather;
pub mod messages;
mod metadata;
mod offsets;
mod produce;
mod producer_ids;
mod replicas;
mod route;
mod session;
mod stats;
#[cfg(test)]
mod tests;
pub mod wire;

pub use session::{Kafka, KafkaConfig, Session};
