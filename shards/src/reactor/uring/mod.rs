//! The io_uring driver of a shard core: one loop over one ring, and no executor.
//!
//! `driver` is the loop; `ring` gets operations into the kernel and completions out; `accept`, `links`, `conn`
//! and `send` are the sockets of clients and of other nodes' shards; `files` the journal's files and the segments; `post` the mail between cores; `spin` decides when
//! to spin before sleeping; `buffers` is memory shared with the kernel. Sockets and files are not registered with the
//! ring: a multishot operation looks its socket up once anyway, and reading a peer's name needs a descriptor.

mod accept;
mod buffers;
mod conn;
mod driver;
mod files;
mod links;
mod post;
mod ring;
mod send;
mod spin;
#[cfg(test)]
mod tests;
mod thread;

pub use links::LinkConfig;
pub use ring::KernelUse;
pub use spin::Spin;

pub(super) use post::Mailboxes;
pub(super) use thread::{Start, run};
