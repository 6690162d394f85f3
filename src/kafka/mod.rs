//! The Kafka wire protocol as a [`highwater_shards::front::Front`]: one session per client connection, on the
//! shard core that the connection came to. Pure: no sockets, no clock, no threads.
//!
//! - [`wire`], [`api`], [`messages`]: bytes to messages and back, both sides of the protocol

pub mod api;
pub mod messages;
pub mod wire;
