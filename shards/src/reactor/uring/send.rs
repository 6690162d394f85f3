//! What one connection has to send: parts in order, one operation in flight, its memory kept until it completed.
//!
//! Owned by one shard core. Parts go out as they are, scatter and gather, without a copy; only runs of small ones are
//! copied together: the kernel copies them anyway, and 512 parts of it cost more than one (0.49 against 0.32 us a message
//! for pipelined answers of 1 KiB, measured with `examples/echo.rs`).
//! Zero-copy sends are left out: over loopback the kernel copies such bytes after all when it delivers them, and each
//! send costs a second completion.

#![expect(unsafe_code, reason = "driver: message headers carry raw addresses")]

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd};

use bytes::{Buf, Bytes};
use io_uring::{opcode, types};

use super::ring::{Ring, Tag};

/// Parts of one operation: what the kernel takes at most (IOV_MAX).
const PARTS_MAX: usize = 1024;

/// Parts below this are copied together with their small neighbours, in bytes.
const SMALL: usize = 4096;

/// Bytes of small parts copied into one.
const RUN: usize = 64 * 1024;

#[derive(Default)]
pub(super) struct SendQueue {
    waiting: VecDeque<Bytes>,
    /// Of the operation in flight, or what a short one left over. Untouched while in flight.
    flying: VecDeque<Bytes>,
    in_flight: bool,
    /// Where the operation in flight describes its parts; allocated when first needed.
    header: Option<Box<Header>>,
}

struct Header {
    message: libc::msghdr,
    parts: Vec<libc::iovec>,
}

impl SendQueue {
    pub fn push(&mut self, parts: Vec<Bytes>) {
        self.waiting.extend(parts.into_iter().filter(|p| !p.is_empty()));
    }

    /// Nothing is left to send, nor in flight.
    pub fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.flying.is_empty() && !self.in_flight
    }

    /// The last operation was a short one.
    pub fn has_rest(&self) -> bool {
        !self.flying.is_empty()
    }

    /// Forgets what has not been handed to the kernel.
    pub fn clear(&mut self) {
        self.waiting.clear();
        if !self.in_flight {
            self.flying.clear();
        }
    }

    /// Starts the next operation unless one is in flight or there is nothing to send.
    /// Returns whether it did.
    pub fn start(&mut self, ring: &mut Ring, socket: BorrowedFd<'_>, tag: Tag) -> bool {
        if self.in_flight {
            return false;
        }
        if self.flying.is_empty() {
            self.load();
        }
        let Some(first) = self.flying.front() else { return false };
        let fd = types::Fd(socket.as_raw_fd());
        let entry = if self.flying.len() == 1 {
            let len = u32::try_from(first.len()).unwrap_or(u32::MAX);
            opcode::Send::new(fd, first.as_ptr(), len).flags(libc::MSG_NOSIGNAL).build()
        } else {
            let message = describe(&self.flying, &mut self.header);
            opcode::SendMsg::new(fd, message).flags(libc::MSG_NOSIGNAL.cast_unsigned()).build()
        };
        self.in_flight = true;
        // SAFETY: the parts stay in `flying` and the header in its box until `on_completion`; the connection that
        // holds this queue is kept until then.
        unsafe { ring.push(entry, tag) };
        true
    }

    /// Moves parts from `waiting` to `flying`, runs of small ones as one part.
    fn load(&mut self) {
        while self.flying.len() < PARTS_MAX
            && let Some(part) = self.waiting.pop_front()
        {
            let next_is_small = self.waiting.front().is_some_and(|next| next.len() < SMALL);
            if part.len() >= SMALL || !next_is_small {
                self.flying.push_back(part);
                continue;
            }
            let mut len = part.len();
            let mut more = 0;
            for next in self.waiting.iter().take_while(|next| next.len() < SMALL) {
                if len + next.len() > RUN {
                    break;
                }
                len += next.len();
                more += 1;
            }
            let mut run = Vec::with_capacity(len);
            run.extend_from_slice(&part);
            self.waiting.drain(..more).for_each(|next| run.extend_from_slice(&next));
            self.flying.push_back(Bytes::from(run));
        }
    }

    /// The operation in flight ended; the kernel took so many bytes.
    pub fn on_completion(&mut self, mut bytes: usize) {
        assert!(self.in_flight, "a send completes once");
        self.in_flight = false;
        while bytes > 0 {
            let part = self.flying.front_mut().expect("the kernel takes no more than it was given");
            if bytes < part.len() {
                part.advance(bytes);
                return;
            }
            bytes -= part.len();
            self.flying.pop_front();
        }
    }
}

fn describe(parts: &VecDeque<Bytes>, header: &mut Option<Box<Header>>) -> *const libc::msghdr {
    let header = header.get_or_insert_with(|| {
        // SAFETY: all zeros is a message header without address, parts and control data.
        let message = unsafe { std::mem::zeroed() };
        Box::new(Header { message, parts: Vec::new() })
    });
    header.parts.clear();
    header.parts.extend(
        parts.iter().map(|p| libc::iovec { iov_base: p.as_ptr().cast_mut().cast(), iov_len: p.len() }),
    );
    header.message.msg_iov = header.parts.as_mut_ptr();
    header.message.msg_iovlen = header.parts.len();
    &raw const header.message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(len: usize, byte: u8) -> Bytes {
        Bytes::from(vec![byte; len])
    }

    #[test]
    fn runs_of_small_parts_become_one_and_large_ones_stay_as_they_are() {
        let mut q = SendQueue::default();
        let large = part(SMALL, 3);
        q.push(vec![part(10, 1), part(20, 2), Bytes::new(), large.clone(), part(5, 4), large.clone()]);
        q.load();
        let lens: Vec<usize> = q.flying.iter().map(Bytes::len).collect();
        assert_eq!(lens, [30, SMALL, 5, SMALL]);
        assert_eq!(q.flying[1].as_ptr(), large.as_ptr(), "not copied");
        assert_eq!(&q.flying[0][8..12], [1, 1, 2, 2]);
    }

    #[test]
    fn a_run_ends_at_its_bound_and_an_operation_at_its_parts() {
        let mut q = SendQueue::default();
        q.push(vec![part(SMALL - 1, 1); 40]);
        q.load();
        assert!(q.flying.iter().all(|p| p.len() <= RUN));
        assert_eq!(q.flying.iter().map(Bytes::len).sum::<usize>(), 40 * (SMALL - 1));
        let mut q = SendQueue::default();
        q.push(vec![part(SMALL, 1); PARTS_MAX + 7]);
        q.load();
        assert_eq!((q.flying.len(), q.waiting.len()), (PARTS_MAX, 7));
    }

    #[test]
    fn a_short_send_leaves_the_rest_in_order() {
        let mut q = SendQueue::default();
        q.push(vec![part(SMALL, 1), part(SMALL, 2), part(SMALL, 3)]);
        q.load();
        q.in_flight = true;
        q.on_completion(SMALL + 1);
        assert!(!q.is_done());
        let left: Vec<usize> = q.flying.iter().map(Bytes::len).collect();
        assert_eq!(left, [SMALL - 1, SMALL]);
        q.in_flight = true;
        q.on_completion(2 * SMALL - 1);
        assert!(q.is_done());
    }
}
