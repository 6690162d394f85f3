//! A read of any file: whole sectors into memory of its own, from which what was asked for is cut.
//!
//! Large reads are windows of segments, which the log keeps as long as they are wanted: they leave nothing in the page
//! cache, and their memory is used again, since a fresh page costs more than the copy into it.

use std::cell::RefCell;
use std::os::fd::RawFd;

use bytes::Bytes;
use io_uring::{opcode, squeue, types};

use super::super::buffers::AlignedBuf;
use super::super::ring::is_transient;
use super::gather::{DONT_CACHE_BYTES_MIN, RWF_DONTCACHE};
use super::{TRANSFER_MAX, checked};
use crate::log::disk::{DiskError, OpNo, SECTOR};

/// Buffers of a thread that are kept to be used again.
const SPARE_MAX: usize = 64;

thread_local! {
    static SPARE: RefCell<Vec<AlignedBuf>> = const { RefCell::new(Vec::new()) };
}

/// Memory of a read; that of a large one is kept for the next.
struct Buffer(Option<AlignedBuf>);

impl Buffer {
    fn new(len: usize) -> Self {
        if len < DONT_CACHE_BYTES_MIN {
            return Self(Some(AlignedBuf::zeroed(len)));
        }
        let len = len.next_multiple_of(DONT_CACHE_BYTES_MIN);
        let kept = SPARE.with_borrow_mut(|spare| {
            let at = spare.iter().rposition(|buffer| buffer.len() == len)?;
            Some(spare.swap_remove(at))
        });
        Self(Some(kept.unwrap_or_else(|| AlignedBuf::zeroed(len))))
    }

    fn get(&self) -> &AlignedBuf {
        self.0.as_ref().expect("taken only when dropped")
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.get().as_slice()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(buffer) = self.0.take().filter(|buffer| buffer.len() >= DONT_CACHE_BYTES_MIN) else {
            return;
        };
        // The last one may go when the thread has ended already: then nothing is kept.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() == SPARE_MAX {
                spare.swap_remove(0);
            }
            spare.push(buffer);
        });
    }
}

pub(super) struct Read {
    pub op: OpNo,
    buffer: Buffer,
    /// Whole sectors of the buffer that are read.
    room: usize,
    /// Where the buffer begins in the file: the sector that holds the first byte asked for.
    position: u64,
    done: usize,
    /// What was asked for, as a place in the buffer.
    skip: usize,
    len: usize,
    flags: i32,
}

impl Read {
    pub fn new(op: OpNo, position: u64, len: usize) -> Self {
        assert!(len <= TRANSFER_MAX, "a read is at most TRANSFER_MAX");
        let skip = (position % SECTOR as u64) as usize;
        let room = (skip + len).next_multiple_of(SECTOR);
        let flags = if room >= DONT_CACHE_BYTES_MIN { RWF_DONTCACHE } else { 0 };
        let position = position - skip as u64;
        Self { op, buffer: Buffer::new(room), room, position, done: 0, skip, len, flags }
    }

    pub fn entry(&mut self, fd: RawFd) -> squeue::Entry {
        let start = self.buffer.get().as_ptr().wrapping_add(self.done);
        let len = u32::try_from(self.room - self.done).expect("a read is at most TRANSFER_MAX");
        opcode::Read::new(types::Fd(fd), start, len)
            .offset(self.position + self.done as u64)
            .rw_flags(self.flags)
            .build()
    }

    /// The outcome, or `None` while something is left to read.
    pub fn on_result(&mut self, result: i32) -> Option<Result<(), DiskError>> {
        match checked(result) {
            Ok(n) => {
                self.done += n;
                // The end of the file lies inside a sector, or the kernel found nothing more.
                let at_end = n == 0 || !self.done.is_multiple_of(SECTOR);
                (at_end || self.done >= self.skip + self.len).then_some(Ok(()))
            }
            Err(_) if is_transient(-result) => None,
            // An older kernel, or a file system that cannot.
            Err(DiskError::Io(libc::EOPNOTSUPP | libc::EINVAL)) if self.flags != 0 => {
                self.flags = 0;
                None
            }
            Err(e) => Some(Err(e)),
        }
    }

    pub fn into_bytes(self) -> Bytes {
        let end = self.done.min(self.skip + self.len);
        if end <= self.skip {
            return Bytes::new();
        }
        Bytes::from_owner(self.buffer).slice(self.skip..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_ends_at_the_end_of_the_file() {
        let mut r = Read::new(OpNo(1), 5000, 10_000);
        assert_eq!((r.position, r.skip, r.room), (4096, 904, 3 * SECTOR));
        assert_eq!(r.on_result(4096), None);
        assert_eq!(r.on_result(100), Some(Ok(())));
        assert_eq!(r.into_bytes().len(), 4196 - 904);
        let mut r = Read::new(OpNo(1), 5000, 10);
        assert_eq!(r.on_result(0), Some(Ok(())));
        assert!(r.into_bytes().is_empty());
    }
}
