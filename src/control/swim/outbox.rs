//! Datagrams and events that wait to be drained.
//!
//! Control core, pure. The bytes of all datagrams stand in one buffer that is used again once it was drained.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::OUTBOX_DATAGRAMS_MAX;
use super::events::{Event, Output};

#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    datagrams: VecDeque<(SocketAddr, usize, usize)>,
    notices: VecDeque<Notice>,
}

#[derive(Debug)]
pub(super) enum Notice {
    Event(Event),
    ResolveSeeds,
    Gone,
}

impl Outbox {
    /// False when there is no room: then the datagram is lost, as on a network.
    pub(super) fn send(&mut self, to: SocketAddr, datagram: &[u8]) -> bool {
        if self.datagrams.len() >= OUTBOX_DATAGRAMS_MAX {
            return false;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(datagram);
        self.datagrams.push_back((to, start, self.bytes.len()));
        true
    }

    pub(super) fn notify(&mut self, notice: Notice) {
        self.notices.push_back(notice);
    }

    pub(super) fn poll(&mut self) -> Option<Output<'_>> {
        if let Some(notice) = self.notices.pop_front() {
            return Some(match notice {
                Notice::Event(event) => Output::Event(event),
                Notice::ResolveSeeds => Output::ResolveSeeds,
                Notice::Gone => Output::Gone,
            });
        }
        match self.datagrams.pop_front() {
            Some((to, start, end)) => Some(Output::Send { to, bytes: &self.bytes[start..end] }),
            None => {
                self.bytes.clear();
                None
            }
        }
    }
}
