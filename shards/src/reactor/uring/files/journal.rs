//! The journal's directory and the writes into its files: direct I/O of whole sectors.
//!
//! A write with `sync` is a write and, once all of it is in the file, an fdatasync; not one write with RWF_DSYNC. On a
//! pre-written file of ext4 that is a little slower when the core is idle (p50 for 4 KiB, 64 KiB, 1 MiB: 106, 123,
//! 280 us against 96, 114, 271) and far faster when it is busy (4 KiB: 0.3-2.7 ms against 3.9-7.3 ms, with a thread that
//! keeps the core on a loaded host): the kernel finishes RWF_DSYNC by a worker of the core on which the disk's interrupt
//! came, which waits until the shard's own thread lets go of it, while io_uring's fdatasync runs on any free core. The
//! two are not linked: a link broken between two submissions would flush before the write.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use io_uring::{opcode, squeue, types};
use rustix::fs::{Mode, OFlags};
use tracing::warn;

use super::super::ring::is_transient;
use super::prepare::TEMPORARY;
use super::{FILE_MODE, Fd, TRANSFER_MAX, checked};
use crate::log::disk::{DiskError, FileName, FileNo, OpNo, SECTOR};
use crate::reactor::boot::StartError;

/// What the journal's directory allows, found out at start.
pub(in crate::reactor::uring) struct Journal {
    pub path: PathBuf,
    pub dir: OwnedFd,
    /// Whether the file system takes direct I/O.
    pub direct: bool,
}

impl Journal {
    /// Makes the directory if it is missing and tries whether it can be written, and how.
    ///
    /// # Errors
    ///
    /// When it cannot be made, opened or written.
    pub fn open(path: &Path) -> Result<Self, StartError> {
        let failed = |error: io::Error| StartError::JournalDir { path: path.to_owned(), error };
        std::fs::create_dir_all(path).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        let probe = format!("probe.{TEMPORARY}");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        rustix::fs::openat(&dir, &*probe, flags, Mode::from(FILE_MODE)).map_err(|e| failed(e.into()))?;
        let direct = match rustix::fs::openat(&dir, &*probe, flags | OFlags::DIRECT, Mode::from(FILE_MODE)) {
            Ok(_) => true,
            Err(rustix::io::Errno::INVAL) => {
                warn!(
                    dir = %path.display(),
                    "the file system has no direct I/O: the journal goes through the page cache and is slower; use ext4 or xfs"
                );
                false
            }
            Err(e) => return Err(failed(e.into())),
        };
        rustix::fs::unlinkat(&dir, &*probe, rustix::fs::AtFlags::empty()).map_err(|e| failed(e.into()))?;
        Ok(Self { path: path.to_owned(), dir, direct })
    }

    /// What to open a file of the journal with.
    pub fn flags(&self) -> OFlags {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        if self.direct { flags | OFlags::DIRECT } else { flags }
    }

    /// The whole of a file, if there is one. Asked at start: so it may block.
    pub fn load(&self, file: FileName) -> io::Result<Option<Bytes>> {
        match std::fs::read(self.path.join(file.to_string())) {
            Ok(content) => Ok(Some(content.into())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The files with their sizes; half-made ones are removed. Asked once, at start: so it may block.
    pub fn list(&self) -> io::Result<Vec<(FileNo, u64)>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if let Some(file) = FileNo::parse(name) {
                files.push((file, entry.metadata()?.len()));
            } else if name.strip_suffix(TEMPORARY).is_some_and(|stem| stem.ends_with('.')) {
                std::fs::remove_file(entry.path())?;
            }
        }
        files.sort_unstable();
        Ok(files)
    }
}

pub(super) struct Write {
    pub op: OpNo,
    pub fd: Fd,
    position: u64,
    /// One after the other in memory.
    parts: Vec<Bytes>,
    len: usize,
    done: usize,
    sync: bool,
    /// All bytes are written and are being flushed.
    pub flushing: bool,
}

impl Write {
    /// `len` is what [`check_parts`] says.
    pub fn new(op: OpNo, fd: Fd, position: u64, parts: Vec<Bytes>, len: usize, sync: bool) -> Self {
        Self { op, fd, position, parts, len, done: 0, sync, flushing: false }
    }

    pub fn entry(&mut self) -> squeue::Entry {
        if self.flushing {
            return opcode::Fsync::new(types::Fd(self.fd.as_raw_fd()))
                .flags(types::FsyncFlags::DATASYNC)
                .build();
        }
        // The parts were checked to lie one after the other.
        let start = self.parts[0].as_ptr().wrapping_add(self.done);
        let len = u32::try_from(self.len - self.done).expect("a write is at most TRANSFER_MAX");
        opcode::Write::new(types::Fd(self.fd.as_raw_fd()), start, len)
            .offset(self.position + self.done as u64)
            .build()
    }

    /// The outcome, or `None` while something is left to write or flush.
    pub fn on_result(&mut self, result: i32) -> Option<Result<(), DiskError>> {
        if self.flushing {
            return Some(checked(result).map(drop));
        }
        match checked(result) {
            Ok(0) => Some(Err(DiskError::Io(libc::EIO))),
            Ok(n) => {
                self.done += n;
                if self.done >= self.len {
                    self.flushing = self.sync;
                    return (!self.sync).then_some(Ok(()));
                }
                // Direct I/O goes on at a sector only.
                self.done -= self.done % SECTOR;
                None
            }
            Err(_) if is_transient(-result) => None,
            Err(e) => Some(Err(e)),
        }
    }
}

/// The length of a write's parts, which have to be what [`crate::log::disk::DiskOp::Write`] says.
pub(super) fn check_parts(parts: &[Bytes], position: u64) -> usize {
    assert!(
        position.is_multiple_of(SECTOR as u64),
        "a write begins at a sector of the file, not at {position}"
    );
    let Some(first) = parts.first() else { return 0 };
    let start = first.as_ptr() as usize;
    assert!(start.is_multiple_of(SECTOR), "a write begins at a multiple of SECTOR in memory");
    let mut end = start;
    for part in parts {
        assert!(part.as_ptr() as usize == end, "the parts of a write lie one after the other in memory");
        end += part.len();
    }
    let len = end - start;
    assert!(len.is_multiple_of(SECTOR), "a write is whole sectors, not {len} bytes");
    assert!(len <= TRANSFER_MAX, "a write is at most TRANSFER_MAX");
    len
}

#[cfg(test)]
mod tests {
    use super::super::super::buffers::AlignedBuf;
    use super::super::no_file;
    use super::*;

    #[test]
    fn a_short_write_goes_on_at_a_sector() {
        let mut w = Write {
            op: OpNo(1),
            fd: no_file(),
            position: 0,
            parts: vec![Bytes::new()],
            len: 4 * SECTOR,
            done: 0,
            sync: false,
            flushing: false,
        };
        assert_eq!(w.on_result(5000), None);
        assert_eq!(w.done, SECTOR);
        assert_eq!(w.on_result(-libc::EINTR), None);
        assert_eq!(w.on_result(3 * 4096), Some(Ok(())));
        assert_eq!(w.on_result(-libc::ENOSPC), Some(Err(DiskError::NoSpace)));
        assert_eq!(w.on_result(0), Some(Err(DiskError::Io(libc::EIO))));
    }

    #[test]
    fn a_durable_write_is_done_when_it_was_flushed() {
        let mut w = Write {
            op: OpNo(1),
            fd: no_file(),
            position: 0,
            parts: vec![Bytes::new()],
            len: SECTOR,
            done: 0,
            sync: true,
            flushing: false,
        };
        assert_eq!(w.on_result(4096), None);
        assert!(w.flushing);
        assert_eq!(
            w.on_result(-libc::EINTR),
            Some(Err(DiskError::Io(libc::EINTR))),
            "a flush is not tried again"
        );
        assert_eq!(w.on_result(0), Some(Ok(())));
    }

    #[test]
    #[should_panic(expected = "one after the other in memory")]
    fn parts_that_do_not_follow_each_other_are_a_bug() {
        let buffer = Bytes::from_owner(AlignedBuf::zeroed(2 * SECTOR));
        check_parts(&[buffer.slice(..SECTOR), buffer.slice(..SECTOR)], 0);
    }
}
