//! A new journal file, step by step: made under a temporary name, its blocks allocated, written with zeros piece by
//! piece, flushed, renamed, and its directory flushed. Whoever finds the file under its own name finds it whole.
//!
//! Owned by one shard core. Every step that may block is an operation of the ring, so other operations pass in
//! between; a step that fails ends the preparation and removes what there is of it.

#![expect(unsafe_code, reason = "driver: an opened descriptor comes as a bare number")]

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::rc::{Rc, Weak};

use io_uring::{opcode, squeue, types};
use rustix::fs::OFlags;

use super::super::buffers::AlignedBuf;
use super::super::ring::is_transient;
use super::journal::Journal;
use super::{FILE_MODE, checked};
use crate::log::disk::{DiskError, FileNo, OpNo, SECTOR};

/// What the names of files that are not ready end with, after a dot.
pub(super) const TEMPORARY: &str = "preparing";

/// Bytes of one write.
const PIECE: usize = 1024 * 1024;

/// The zeros that all preparations write; there only while one is going on.
#[derive(Default)]
pub(super) struct Zeros(Weak<AlignedBuf>);

impl Zeros {
    pub fn get(&mut self) -> Rc<AlignedBuf> {
        self.0.upgrade().unwrap_or_else(|| {
            let zeros = Rc::new(AlignedBuf::zeroed(PIECE));
            self.0 = Rc::downgrade(&zeros);
            zeros
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Open,
    Allocate,
    Zero {
        done: u64,
    },
    Flush,
    Rename,
    FlushDir,
    /// After a failure.
    Unlink(DiskError),
}

pub(super) struct Prepare {
    pub op: OpNo,
    file: FileNo,
    size: u64,
    fd: Option<OwnedFd>,
    temporary: CString,
    name: CString,
    zeros: Rc<AlignedBuf>,
    step: Step,
}

impl Prepare {
    pub fn new(op: OpNo, file: FileNo, size: u64, zeros: Rc<AlignedBuf>) -> Self {
        assert!(size > 0 && size.is_multiple_of(SECTOR as u64), "a journal file is whole sectors");
        let c_string = |s: String| CString::new(s).expect("file names hold no zero byte");
        Self {
            op,
            file,
            size,
            fd: None,
            temporary: c_string(format!("{file}.{TEMPORARY}")),
            name: c_string(file.to_string()),
            zeros,
            step: Step::Open,
        }
    }

    /// The operation of this step; its memory is this preparation's own.
    pub fn entry(&mut self, journal: &Journal) -> squeue::Entry {
        let dir = types::Fd(journal.dir.as_raw_fd());
        let fd = types::Fd(self.fd.as_ref().map_or(-1, AsRawFd::as_raw_fd));
        match self.step {
            Step::Open => {
                let flags = journal.flags() | OFlags::CREATE | OFlags::TRUNC;
                opcode::OpenAt::new(dir, self.temporary.as_ptr())
                    .flags(flags.bits().cast_signed())
                    .mode(FILE_MODE)
                    .build()
            }
            Step::Allocate => opcode::Fallocate::new(fd, self.size).build(),
            Step::Zero { done } => {
                let len = u32::try_from((self.size - done).min(PIECE as u64)).expect("a piece is 1 MiB");
                opcode::Write::new(fd, self.zeros.as_ptr(), len).offset(done).build()
            }
            Step::Flush => opcode::Fsync::new(fd).build(),
            Step::Rename => {
                opcode::RenameAt::new(dir, self.temporary.as_ptr(), dir, self.name.as_ptr()).build()
            }
            Step::FlushDir => opcode::Fsync::new(dir).build(),
            Step::Unlink(_) => opcode::UnlinkAt::new(dir, self.temporary.as_ptr()).build(),
        }
    }

    /// Takes the result of this step. The outcome, or `None` when there is another step.
    pub fn on_result(&mut self, result: i32) -> Option<Result<(), DiskError>> {
        if result < 0 && is_transient(-result) {
            return None;
        }
        match (self.step, checked(result)) {
            // Whatever became of it, the first failure is what counts.
            (Step::Unlink(error), _) => return Some(Err(error)),
            (Step::Open, Ok(_)) => {
                // SAFETY: the kernel opened the descriptor for us just now, and nobody else knows its number.
                self.fd = Some(unsafe { OwnedFd::from_raw_fd(result) });
                self.step = Step::Allocate;
            }
            (Step::Open, Err(error)) => return Some(Err(error)),
            (Step::Allocate, Ok(_) | Err(DiskError::Io(libc::EOPNOTSUPP))) => {
                self.step = Step::Zero { done: 0 }
            }
            (Step::Zero { .. }, Ok(0)) => self.step = Step::Unlink(DiskError::Io(libc::EIO)),
            (Step::Zero { done }, Ok(n)) => {
                let done = done + n as u64;
                // Direct I/O goes on at a sector only.
                let whole = done - done % SECTOR as u64;
                self.step = if done >= self.size { Step::Flush } else { Step::Zero { done: whole } };
            }
            (Step::Flush, Ok(_)) => self.step = Step::Rename,
            (Step::Rename, Ok(_)) => self.step = Step::FlushDir,
            (Step::FlushDir, Ok(_)) => return Some(Ok(())),
            // The file has its name, and whether that lasts is not known: what is said is that it failed.
            (Step::FlushDir, Err(error)) => return Some(Err(error)),
            (_, Err(error)) => self.step = Step::Unlink(error),
        }
        None
    }

    /// The prepared file, open.
    pub fn into_file(self) -> (FileNo, OwnedFd) {
        (self.file, self.fd.expect("a prepared file is open"))
    }
}
