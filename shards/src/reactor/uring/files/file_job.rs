//! One operation on a segment or an index: the file is opened if it is not, made if it is missing and may be, and
//! then written, read, flushed or cut.
//!
//! Owned by one shard core. Files are opened by the ring, since finding a name that is not in memory blocks; a file
//! that stays open costs nothing of this.

#![expect(unsafe_code, reason = "driver: an opened descriptor comes as a bare number")]

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;

use bytes::Bytes;
use io_uring::{opcode, squeue, types};
use rustix::fs::OFlags;

use super::super::ring::is_transient;
use super::gather::Gather;
use super::partitions::Partitions;
use super::read::Read;
use super::{FILE_MODE, FOLDER_MODE, Fd, c_string, checked, disk_error};
use crate::log::disk::{DiskError, DiskEvent, FileName, FolderName, OpNo};

pub(super) enum Act {
    Put(Gather),
    Read(Read),
    Sync,
    Cut { len: u64 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Open,
    MakeFolder,
    Act,
}

pub(super) struct FileJob {
    pub op: OpNo,
    pub file: FileName,
    pub act: Act,
    stage: Stage,
    fd: Option<Fd>,
    /// What is opened or made; the kernel reads it while the operation is in flight.
    path: CString,
    folder_made: bool,
    /// Of [`Partitions::removals`], when this began to open the file.
    removals: u64,
}

impl FileJob {
    pub fn new(op: OpNo, file: FileName, act: Act, partitions: &mut Partitions) -> Self {
        let fd = partitions.find(file);
        let path = if fd.is_some() { CString::default() } else { c_string(file.to_string()) };
        let stage = if fd.is_some() { Stage::Act } else { Stage::Open };
        Self { op, file, act, stage, fd, path, folder_made: false, removals: partitions.removals }
    }

    /// Whether it waits for the disk or takes a thread of the kernel's: all but a read.
    pub fn is_slow(&self) -> bool {
        !matches!(self.act, Act::Read(_))
    }

    /// Whether it is in the step that flushes.
    #[cfg(feature = "fault-injection")]
    pub fn flushes(&self) -> bool {
        self.stage == Stage::Act && matches!(self.act, Act::Sync)
    }

    /// What is to be done with an open file and needs no operation of the ring, with its outcome.
    pub fn at_once(&mut self) -> Option<Result<(), DiskError>> {
        let fd = self.fd.as_ref().filter(|_| self.stage == Stage::Act)?;
        match &self.act {
            Act::Put(gather) if gather.is_done() => Some(Ok(())),
            // Rare, and the kernel frees what was cut off when it writes its own log.
            Act::Cut { len } => Some(cut(fd, *len)),
            _ => None,
        }
    }

    /// The operation of this step; its memory is this job's own.
    pub fn entry(&mut self, partitions: &Partitions) -> squeue::Entry {
        let dir = types::Fd(partitions.dir.as_raw_fd());
        let fd = self.fd.as_ref().map_or(-1, |fd| fd.as_raw_fd());
        match (self.stage, &mut self.act) {
            (Stage::Open, act) => {
                let create = if matches!(act, Act::Put(_)) { OFlags::CREATE } else { OFlags::empty() };
                let flags = OFlags::RDWR | OFlags::CLOEXEC | create;
                opcode::OpenAt::new(dir, self.path.as_ptr())
                    .flags(flags.bits().cast_signed())
                    .mode(FILE_MODE)
                    .build()
            }
            (Stage::MakeFolder, _) => opcode::MkDirAt::new(dir, self.path.as_ptr()).mode(FOLDER_MODE).build(),
            (Stage::Act, Act::Put(gather)) => gather.entry(fd),
            (Stage::Act, Act::Read(read)) => read.entry(fd),
            (Stage::Act, Act::Sync) => opcode::Fsync::new(types::Fd(fd)).build(),
            (Stage::Act, Act::Cut { .. }) => unreachable!("a cut is done at once"),
        }
    }

    /// Takes the result of this step. The outcome, or `None` when there is another step.
    pub fn on_result(&mut self, result: i32, partitions: &mut Partitions) -> Option<Result<(), DiskError>> {
        match self.stage {
            Stage::Open => self.on_opened(result, partitions),
            Stage::MakeFolder => {
                if result == 0 || result == -libc::EEXIST {
                    if result == 0
                        && let FileName::Segment(name) | FileName::Index(name) = self.file
                    {
                        partitions.lasting.remove(&name.partition);
                    }
                    self.path = c_string(self.file.to_string());
                    self.stage = Stage::Open;
                    return None;
                }
                (!is_transient(-result)).then(|| Err(disk_error(-result)))
            }
            Stage::Act => match &mut self.act {
                Act::Put(gather) => gather.on_result(result),
                Act::Read(read) => read.on_result(result),
                // A flush is not tried again, whatever it says.
                Act::Sync => Some(checked(result).map(drop)),
                Act::Cut { .. } => unreachable!("a cut is done at once"),
            },
        }
    }

    fn on_opened(&mut self, result: i32, partitions: &mut Partitions) -> Option<Result<(), DiskError>> {
        match checked(result) {
            Ok(_) => {
                // SAFETY: the kernel opened the descriptor for us just now, and nobody else knows its number.
                let opened = unsafe { OwnedFd::from_raw_fd(result) };
                if matches!(self.file, FileName::Segment(_)) {
                    // The log reads ahead by itself. The kernel would read as much again beside the journal's writes,
                    // some of it to be dropped unread; a refusal costs no more than that.
                    let _ = rustix::fs::fadvise(&opened, 0, None, rustix::fs::Advice::Random);
                }
                self.fd = Some(partitions.opened(self.file, Rc::new(opened), self.removals));
                self.stage = Stage::Act;
                self.at_once()
            }
            Err(DiskError::Missing) => match (&self.act, self.file) {
                (Act::Put(_), FileName::Segment(name) | FileName::Index(name)) if !self.folder_made => {
                    self.folder_made = true;
                    self.path = c_string(FolderName(name.partition).to_string());
                    self.stage = Stage::MakeFolder;
                    None
                }
                (Act::Cut { .. }, _) => Some(Ok(())),
                _ => Some(Err(DiskError::Missing)),
            },
            Err(_) if is_transient(-result) => None,
            Err(e) => Some(Err(e)),
        }
    }

    /// The event that tells of the outcome, and the file if this had it open.
    pub fn finish(self, result: Result<(), DiskError>) -> (DiskEvent, Option<Fd>) {
        let op = self.op;
        let event = match self.act {
            Act::Put(_) => DiskEvent::Written { op, result },
            Act::Sync => DiskEvent::Synced { op, result },
            Act::Cut { .. } => DiskEvent::Done { op, result },
            Act::Read(read) => {
                let result: Result<Bytes, _> = result.map(|()| read.into_bytes());
                DiskEvent::Read { op, result }
            }
        };
        (event, self.fd)
    }
}

fn cut(fd: &Fd, len: u64) -> Result<(), DiskError> {
    let failed = |e: rustix::io::Errno| disk_error(e.raw_os_error());
    let size = rustix::fs::fstat(fd).map_err(failed)?.st_size;
    if u64::try_from(size).is_ok_and(|size| size > len) {
        rustix::fs::ftruncate(fd, len).map_err(failed)?;
    }
    Ok(())
}
