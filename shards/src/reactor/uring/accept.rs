//! Listening sockets of one shard and what they accept. Owned by one shard core.
//!
//! One multishot operation per listener where the kernel has it, one accept after the other elsewhere. When the
//! process runs out of file descriptors, or accepting fails for another lasting reason, the listener pauses: the
//! connection stays in the kernel's queue, so trying again at once would only spin.

#![expect(unsafe_code, reason = "driver: an accepted descriptor comes as a bare number")]

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use io_uring::{opcode, types};
use tracing::warn;

use super::ring::{Completion, Kind, Ring, Tag, error_of};
use crate::time::Instant;

/// Without accepting after descriptors or memory ran out.
const PAUSE: Duration = Duration::from_millis(100);

struct Listener {
    socket: OwnedFd,
    armed: bool,
    paused_until: Option<Instant>,
}

pub(super) struct Listeners {
    listeners: Vec<Listener>,
    stopped: bool,
    /// How often a listener paused.
    pub pauses: u64,
}

impl Listeners {
    pub fn new(sockets: Vec<OwnedFd>) -> Self {
        let listeners =
            sockets.into_iter().map(|socket| Listener { socket, armed: false, paused_until: None }).collect();
        Self { listeners, stopped: false, pauses: 0 }
    }

    /// Starts accepting wherever it is neither going on nor paused.
    pub fn arm(&mut self, ring: &mut Ring, now: Instant) {
        if self.stopped {
            return;
        }
        for (slot, listener) in (0..).zip(&mut self.listeners) {
            if listener.armed || listener.paused_until.is_some_and(|until| until > now) {
                continue;
            }
            listener.armed = true;
            listener.paused_until = None;
            let fd = types::Fd(listener.socket.as_raw_fd());
            let entry = if ring.kernel.accept_multi {
                opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build()
            } else {
                let none = std::ptr::null_mut();
                opcode::Accept::new(fd, none, none.cast()).flags(libc::SOCK_CLOEXEC).build()
            };
            // SAFETY: the operation asks for no address and so points to no memory.
            unsafe { ring.push(entry, Tag::slot(Kind::Accept, slot)) };
        }
    }

    /// When [`Self::arm`] has something to do again by itself.
    pub fn next(&self) -> Option<Instant> {
        self.listeners.iter().filter(|l| !l.armed).filter_map(|l| l.paused_until).min()
    }

    /// The accepted connection and its peer, unless there is none after all.
    pub fn on_completion(&mut self, now: Instant, c: &Completion) -> Option<(OwnedFd, SocketAddr)> {
        let listener = &mut self.listeners[c.tag.slot as usize];
        if !c.more() {
            listener.armed = false;
        }
        if c.result < 0 {
            // These concern one connection that went away while it waited, or end the operation by our own wish.
            let passing = [libc::ECONNABORTED, libc::EPROTO, libc::EINTR, libc::EAGAIN, libc::ECANCELED];
            if !self.stopped && !passing.contains(&-c.result) {
                self.pauses += 1;
                listener.paused_until = Some(now + PAUSE);
                warn!(
                    error = %error_of(c.result),
                    "cannot accept connections for {PAUSE:?}; if descriptors ran out, raise the limit on open files \
                     (ulimit -n) or lower the bound on connections"
                );
            }
            return None;
        }
        // SAFETY: the kernel made the descriptor for us just now, and nobody else knows its number.
        let socket = unsafe { OwnedFd::from_raw_fd(c.result) };
        if self.stopped {
            return None;
        }
        // A connection that was reset while it waited has no peer any more.
        let peer = rustix::net::getpeername(&socket).ok().flatten()?;
        Some((socket, SocketAddr::try_from(peer).ok()?))
    }

    /// Accepts no more. The sockets stay open, with nobody to accept, until the operations on them ended.
    pub fn stop(&mut self, ring: &mut Ring) {
        if std::mem::replace(&mut self.stopped, true) {
            return;
        }
        for (slot, listener) in (0..).zip(&self.listeners) {
            // New connections are refused from here on instead of waiting in a queue that nobody empties.
            let _ = rustix::net::shutdown(&listener.socket, rustix::net::Shutdown::Both);
            if listener.armed {
                ring.cancel(Tag::slot(Kind::Accept, slot));
            }
        }
    }

    pub fn in_flight(&self) -> bool {
        self.listeners.iter().any(|l| l.armed)
    }
}
