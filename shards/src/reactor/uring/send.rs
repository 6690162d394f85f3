//! What one connection has to send: parts in order, one operation in flight, its memory kept until it completed.
//!
//! Little, where few connections have something to send, goes out at once, by a system call that does not wait: whoever
//! it is for wakes before this turn goes on, and no completion costs this core a turn, of which a record that two
//! followers have to acknowledge took five and takes three (4 % of the leader's CPU, about 3 % of the p50). Much, what
//! comes with many others, which share such a turn, and what finds no room becomes an operation of the ring.
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

/// So many bytes are sent at once. With more, what a turn costs is little beside the copy, and sockets are full.
const AT_ONCE_MAX: usize = 16 * 1024;

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
    /// Whether the kernel has an operation of it.
    pub fn is_in_flight(&self) -> bool {
        self.in_flight
    }

    pub fn push(&mut self, parts: Vec<Bytes>) {
        self.waiting.extend(parts.into_iter().filter(|p| !p.is_empty()));
    }

    /// Nothing is left to send, nor in flight.
    pub fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.flying.is_empty() && !self.in_flight
    }

    /// Forgets what has not been handed to the kernel.
    pub fn clear(&mut self) {
        self.waiting.clear();
        if !self.in_flight {
            self.flying.clear();
        }
    }

    /// Sends what there is, unless an operation is in flight: by the ring, but for what the kernel takes of little at once
    /// if it may. Returns the bytes that were taken at once.
    pub fn start(&mut self, ring: &mut Ring, socket: BorrowedFd<'_>, tag: Tag, may_at_once: bool) -> usize {
        let mut taken = 0;
        while !self.in_flight {
            if self.flying.is_empty() {
                self.load();
            }
            if self.flying.is_empty() {
                break;
            }
            if may_at_once && self.flying.iter().map(Bytes::len).sum::<usize>() <= AT_ONCE_MAX {
                let bytes = self.send_now(socket);
                self.took(bytes);
                taken += bytes;
            }
            if !self.flying.is_empty() {
                self.submit(ring, socket, tag);
            }
        }
        taken
    }

    /// Bytes of `flying` that the kernel took. 0 also for an error, which the operation that follows reports.
    fn send_now(&mut self, socket: BorrowedFd<'_>) -> usize {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        let fd = socket.as_raw_fd();
        let sent = if let [part] = self.flying.make_contiguous() {
            // SAFETY: the part's memory is there while the call lasts.
            unsafe { libc::send(fd, part.as_ptr().cast(), part.len(), flags) }
        } else {
            let message = describe(&self.flying, &mut self.header);
            // SAFETY: the header and the parts that it describes are there while the call lasts.
            unsafe { libc::sendmsg(fd, message, flags) }
        };
        usize::try_from(sent).unwrap_or(0)
    }

    fn submit(&mut self, ring: &mut Ring, socket: BorrowedFd<'_>, tag: Tag) {
        let fd = types::Fd(socket.as_raw_fd());
        let entry = if let [part] = self.flying.make_contiguous() {
            let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
            opcode::Send::new(fd, part.as_ptr(), len).flags(libc::MSG_NOSIGNAL).build()
        } else {
            let message = describe(&self.flying, &mut self.header);
            opcode::SendMsg::new(fd, message).flags(libc::MSG_NOSIGNAL.cast_unsigned()).build()
        };
        self.in_flight = true;
        // SAFETY: the parts stay in `flying` and the header in its box until `on_completion`; the connection that
        // holds this queue is kept until then.
        unsafe { ring.push(entry, tag) };
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
    pub fn on_completion(&mut self, bytes: usize) {
        assert!(self.in_flight, "a send completes once");
        self.in_flight = false;
        self.took(bytes);
    }

    fn took(&mut self, mut bytes: usize) {
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
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::UnixStream;

    use super::super::ring::{KernelUse, Kind, Wait};
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

    const TAG: Tag = Tag { kind: Kind::Send, slot: 7, generation: 3 };

    struct Wire {
        ring: Ring,
        near: OwnedFd,
        far: OwnedFd,
        queue: SendQueue,
    }

    impl Wire {
        /// Within the host, where a socket takes all of a small send or nothing.
        fn unix() -> Self {
            let (near, far) = UnixStream::pair().unwrap();
            Self::of(near.into(), far.into())
        }

        /// A socket that may take a part, as Linux's does when it is nearly full.
        fn tcp() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            Self::of(near.into(), listener.accept().unwrap().0.into())
        }

        fn of(near: OwnedFd, far: OwnedFd) -> Self {
            let ring = Ring::new(KernelUse::Newest).unwrap();
            Self { ring, near, far, queue: SendQueue::default() }
        }

        fn start(&mut self) -> usize {
            self.queue.start(&mut self.ring, self.near.as_fd(), TAG, true)
        }

        fn read(&self, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            let mut read = 0;
            while read < len {
                read += rustix::io::read(&self.far, &mut bytes[read..]).unwrap();
            }
            bytes
        }

        /// Waits for the operation in flight. Returns what it says.
        fn complete(&mut self) -> i32 {
            let mut completions = Vec::new();
            while completions.is_empty() {
                self.ring.enter(Wait::Forever);
                self.ring.reap(&mut completions);
            }
            assert_eq!((completions.len(), completions[0].tag), (1, TAG));
            let result = completions[0].result;
            self.queue.on_completion(usize::try_from(result).unwrap_or(0));
            result
        }
    }

    #[test]
    fn little_is_sent_at_once_and_much_by_the_ring() {
        let mut wire = Wire::unix();
        wire.queue.push(vec![part(10, 1), part(SMALL, 2), part(20, 3)]);
        assert_eq!(wire.start(), SMALL + 30);
        assert!(wire.queue.is_done());
        assert!(!wire.ring.has_submissions(), "nothing is left to the ring");
        assert_eq!(wire.read(SMALL + 30), [vec![1; 10], vec![2; SMALL], vec![3; 20]].concat());
        wire.queue.push(vec![part(AT_ONCE_MAX, 4), part(1, 5)]);
        assert_eq!(wire.start(), 0);
        assert!(wire.queue.is_in_flight());
        assert_eq!(wire.start(), 0, "one operation at a time");
        assert_eq!(wire.complete(), AT_ONCE_MAX as i32 + 1);
        assert!(wire.queue.is_done());
        wire.queue.push(vec![part(10, 6)]);
        assert_eq!(wire.queue.start(&mut wire.ring, wire.near.as_fd(), TAG, false), 0, "one of many");
        assert_eq!(wire.complete(), 10);
    }

    #[test]
    fn what_finds_no_room_follows_in_order() {
        let mut wire = Wire::tcp();
        let mut sent = 0;
        while !wire.queue.is_in_flight() {
            wire.queue.push((0..4).map(|i| part(4000 + i, (sent + i) as u8)).collect());
            sent += 4;
            wire.start();
        }
        wire.queue.push(vec![part(100, 250)]);
        assert_eq!(wire.start(), 0, "nothing overtakes what waits");
        let expected: Vec<u8> =
            (0..sent).flat_map(|i| vec![i as u8; 4000 + i % 4]).chain(vec![250; 100]).collect();
        let (far, len) = (wire.far.try_clone().unwrap(), expected.len());
        std::thread::scope(|s| {
            let reader = s.spawn(move || {
                let mut bytes = Vec::new();
                std::fs::File::from(far).take(len as u64).read_to_end(&mut bytes).unwrap();
                bytes
            });
            while !wire.queue.is_done() {
                if wire.queue.is_in_flight() {
                    assert!(wire.complete() > 0);
                }
                wire.start();
            }
            rustix::net::shutdown(&wire.near, rustix::net::Shutdown::Write).unwrap();
            assert!(reader.join().unwrap() == expected);
        });
    }

    #[test]
    fn a_broken_socket_is_reported_by_the_ring() {
        let mut wire = Wire::unix();
        rustix::net::shutdown(&wire.far, rustix::net::Shutdown::Both).unwrap();
        wire.queue.push(vec![part(10, 1)]);
        assert_eq!(wire.start(), 0);
        assert_eq!(wire.complete(), -libc::EPIPE);
        assert!(!wire.queue.is_done(), "it was not sent");
    }
}
