//! A read of any file: whole sectors into memory of its own, from which what was asked for is cut.

use std::os::fd::RawFd;

use bytes::Bytes;
use io_uring::{opcode, squeue, types};

use super::super::buffers::AlignedBuf;
use super::super::ring::is_transient;
use super::{TRANSFER_MAX, checked};
use crate::log::disk::{DiskError, OpNo, SECTOR};

pub(super) struct Read {
    pub op: OpNo,
    buffer: AlignedBuf,
    /// Where the buffer begins in the file: the sector that holds the first byte asked for.
    position: u64,
    done: usize,
    /// What was asked for, as a place in the buffer.
    skip: usize,
    len: usize,
}

impl Read {
    pub fn new(op: OpNo, position: u64, len: usize) -> Self {
        assert!(len <= TRANSFER_MAX, "a read is at most TRANSFER_MAX");
        let skip = (position % SECTOR as u64) as usize;
        let buffer = AlignedBuf::zeroed((skip + len).next_multiple_of(SECTOR));
        Self { op, buffer, position: position - skip as u64, done: 0, skip, len }
    }

    pub fn entry(&mut self, fd: RawFd) -> squeue::Entry {
        let start = self.buffer.as_ptr().wrapping_add(self.done);
        let len = u32::try_from(self.buffer.len() - self.done).expect("a read is at most TRANSFER_MAX");
        opcode::Read::new(types::Fd(fd), start, len).offset(self.position + self.done as u64).build()
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
        assert_eq!((r.position, r.skip, r.buffer.len()), (4096, 904, 3 * SECTOR));
        assert_eq!(r.on_result(4096), None);
        assert_eq!(r.on_result(100), Some(Ok(())));
        assert_eq!(r.into_bytes().len(), 4196 - 904);
        let mut r = Read::new(OpNo(1), 5000, 10);
        assert_eq!(r.on_result(0), Some(Ok(())));
        assert!(r.into_bytes().is_empty());
    }
}
