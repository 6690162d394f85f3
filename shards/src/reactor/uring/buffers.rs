//! Memory that the kernel writes into: aligned buffers for direct I/O, and the ring of buffers that receives share.
//!
//! Owned by one shard core and allocated on its thread. A received piece is copied out of its buffer when it is
//! reaped and the buffer goes back at once, so a few dozen serve any number of connections.

#![expect(unsafe_code, reason = "driver: memory shared with the kernel")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use super::ring::Ring;
use crate::log::disk::SECTOR;

/// Zeroed memory at an address that is a multiple of [`SECTOR`].
#[derive(Debug)]
pub(super) struct AlignedBuf {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is owned alone and has no tie to a thread.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access only reads.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    pub fn zeroed(len: usize) -> Self {
        assert!(len > 0, "an aligned buffer holds something");
        let layout = Self::layout(len);
        // SAFETY: the layout is not empty.
        let Some(start) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        Self { start, len }
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, SECTOR).expect("the length of a buffer is far below isize::MAX")
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the memory is ours, initialized, and nobody writes while it is borrowed: the owner of an operation
        // that lets the kernel write does not look before its completion.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with the same layout.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.len)) };
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

/// The one group of provided buffers of a ring.
pub(super) const GROUP: u16 = 0;

/// Buffers that the kernel picks from when bytes arrive on any connection.
pub(super) struct RecvBuffers {
    entries: AlignedBuf,
    data: AlignedBuf,
    count: u16,
    bytes_each: usize,
    tail: u16,
}

impl RecvBuffers {
    /// Registers `count` buffers (a power of two) with the ring.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; then receives have to bring buffers of their own.
    pub fn register(ring: &Ring, count: u16, bytes_each: usize) -> io::Result<Self> {
        assert!(count.is_power_of_two() && count <= 1 << 15, "the kernel takes a power of two up to 32768");
        let entries = AlignedBuf::zeroed(usize::from(count) * size_of::<BufRingEntry>());
        let data = AlignedBuf::zeroed(usize::from(count) * bytes_each);
        let mut buffers = Self { entries, data, count, bytes_each, tail: 0 };
        // SAFETY: the entries live until `unregister`, or for ever when the ring was not emptied.
        unsafe {
            ring.uring().submitter().register_buf_ring_with_flags(
                buffers.entries.as_ptr() as u64,
                count,
                GROUP,
                0,
            )?;
        }
        for id in 0..count {
            buffers.give_back(id);
        }
        Ok(buffers)
    }

    pub fn unregister(&self, ring: &Ring) {
        // It fails only when nothing is registered, which leaves nothing to do either.
        let _ = ring.uring().submitter().unregister_buf_ring(GROUP);
    }

    /// What was received into buffer `id`.
    pub fn bytes(&self, id: u16, len: usize) -> &[u8] {
        assert!(id < self.count && len <= self.bytes_each, "the kernel fills the buffers that it was given");
        let start = usize::from(id) * self.bytes_each;
        &self.data.as_slice()[start..start + len]
    }

    /// Lets the kernel use buffer `id` again.
    pub fn give_back(&mut self, id: u16) {
        assert!(id < self.count, "the buffer is one of this ring");
        let index = usize::from(self.tail & (self.count - 1));
        let base = self.entries.as_ptr().cast::<BufRingEntry>();
        // SAFETY: the index lies inside the ring, whose memory is ours; the kernel reads an entry only after the
        // tail has passed it.
        let entry = unsafe { &mut *base.add(index) };
        // SAFETY: the offset lies inside `data`.
        let start = unsafe { self.data.as_ptr().add(usize::from(id) * self.bytes_each) };
        entry.set_addr(start as u64);
        entry.set_len(u32::try_from(self.bytes_each).expect("a receive buffer is far below 4 GiB"));
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lies in the first entry's reserved field, aligned for u16, and only this thread writes it.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(base).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}
