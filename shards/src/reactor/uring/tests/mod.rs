//! Live tests of the loop: real threads, loopback sockets and files, driven by small machines.

#![expect(clippy::disallowed_methods, reason = "these tests are drivers themselves")]
#![expect(clippy::disallowed_types, reason = "what a machine saw is looked at by another thread")]

mod echo;
mod files;
mod links;
mod mail;
mod peers;
mod segments;
