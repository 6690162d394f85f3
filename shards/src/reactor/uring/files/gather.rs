//! Bytes that lie anywhere in memory, written one after the other into a file: as many at once as one vectored write
//! takes, and on from where a short write stopped.

use std::os::fd::RawFd;

use bytes::Bytes;
use io_uring::{opcode, squeue, types};

use super::super::ring::is_transient;
use super::{TRANSFER_MAX, checked};
use crate::log::disk::{DiskError, PUT_PARTS_MAX};

/// From so many bytes on a write leaves nothing in the page cache (RWF_DONTCACHE, Linux 6.14): what is moved in bulk is
/// still in the log's own memory, and filling the page cache with it costs a fresh page for each of its pages. Appends
/// of 1 MiB batches to one log went from 346 to 631 MB/s with it, on a host that was busy with other things.
pub(super) const DONT_CACHE_BYTES_MIN: usize = 256 * 1024;
pub(super) const RWF_DONTCACHE: i32 = 0x80;

pub(super) struct Gather {
    position: u64,
    /// None of them empty.
    parts: Vec<Bytes>,
    /// The part that comes next, and how much of it is written.
    next: usize,
    within: usize,
    /// What the kernel was given last; as long as the operation is in flight it stays as it is.
    vectors: Vec<libc::iovec>,
    done: u64,
    flags: i32,
}

impl Gather {
    pub fn new(position: u64, mut parts: Vec<Bytes>) -> Self {
        parts.retain(|part| !part.is_empty());
        assert!(parts.iter().all(|part| part.len() <= TRANSFER_MAX), "a part is at most TRANSFER_MAX");
        let is_bulk = parts.iter().map(Bytes::len).sum::<usize>() >= DONT_CACHE_BYTES_MIN;
        let flags = if is_bulk { RWF_DONTCACHE } else { 0 };
        Self { position, parts, next: 0, within: 0, vectors: Vec::new(), done: 0, flags }
    }

    /// Whether nothing is left to write.
    pub fn is_done(&self) -> bool {
        self.next == self.parts.len()
    }

    /// Bytes written so far.
    pub fn done(&self) -> u64 {
        self.done
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn entry(&mut self, fd: RawFd) -> squeue::Entry {
        self.vectors.clear();
        let (mut within, mut room) = (self.within, TRANSFER_MAX);
        for part in self.parts[self.next..].iter().take(PUT_PARTS_MAX) {
            let len = (part.len() - within).min(room);
            let start = part.as_ptr().wrapping_add(within).cast_mut().cast();
            self.vectors.push(libc::iovec { iov_base: start, iov_len: len });
            room -= len;
            within = 0;
            if room == 0 {
                break;
            }
        }
        let count = u32::try_from(self.vectors.len()).expect("at most PUT_PARTS_MAX");
        opcode::Writev::new(types::Fd(fd), self.vectors.as_ptr(), count)
            .offset(self.position + self.done)
            .rw_flags(self.flags)
            .build()
    }

    /// The outcome, or `None` while something is left to write.
    pub fn on_result(&mut self, result: i32) -> Option<Result<(), DiskError>> {
        match checked(result) {
            Ok(0) => Some(Err(DiskError::Io(libc::EIO))),
            Ok(n) => {
                self.advance(n);
                self.is_done().then_some(Ok(()))
            }
            Err(_) if is_transient(-result) => None,
            // An older kernel, or a file system that cannot: through the page cache then.
            Err(DiskError::Io(libc::EOPNOTSUPP | libc::EINVAL)) if self.flags != 0 => {
                self.flags = 0;
                None
            }
            Err(e) => Some(Err(e)),
        }
    }

    fn advance(&mut self, mut n: usize) {
        self.done += n as u64;
        while n > 0 {
            let left = self.parts[self.next].len() - self.within;
            let take = left.min(n);
            n -= take;
            self.within += take;
            if take == left {
                self.next += 1;
                self.within = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_write_goes_on_within_a_part_and_behind_the_vector_limit() {
        let mut parts: Vec<Bytes> = vec![Bytes::from_static(b"12345678"), Bytes::new()];
        parts.extend(std::iter::repeat_n(Bytes::from_static(b"xy"), PUT_PARTS_MAX));
        let mut g = Gather::new(100, parts);
        let _ = g.entry(0);
        assert_eq!(g.vectors.len(), PUT_PARTS_MAX);
        assert_eq!(g.on_result(5), None);
        assert_eq!(g.on_result(-libc::EINTR), None);
        let _ = g.entry(0);
        assert_eq!((g.vectors[0].iov_len, g.vectors[1].iov_len), (3, 2), "the empty part is left out");
        assert_eq!(g.on_result(3 + 2 * (PUT_PARTS_MAX as i32 - 1)), None);
        let _ = g.entry(0);
        assert_eq!(g.vectors.len(), 1);
        assert_eq!(g.on_result(2), Some(Ok(())));
        assert_eq!(g.done(), 8 + 2 * PUT_PARTS_MAX as u64);
        assert_eq!(g.on_result(0), Some(Err(DiskError::Io(libc::EIO))));
        assert_eq!(g.on_result(-libc::ENOSPC), Some(Err(DiskError::NoSpace)));
    }
}
