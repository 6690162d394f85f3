//! One operation on names: a folder flushed, a file replaced, renumbered or removed, a folder removed.
//!
//! Owned by one shard core. Each step is an operation of the ring: flushing waits for the disk, and unlinking a large
//! file takes milliseconds.

#![expect(unsafe_code, reason = "driver: an opened descriptor comes as a bare number")]

use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use bytes::Bytes;
use io_uring::{opcode, squeue, types};
use rustix::fs::OFlags;

use super::super::ring::is_transient;
use super::gather::Gather;
use super::journal::Journal;
use super::partitions::Partitions;
use super::prepare::TEMPORARY;
use super::{FILE_MODE, c_string, checked};
use crate::ids::PartitionId;
use crate::log::disk::{DiskError, DiskEvent, FileName, FileNo, FolderName, OpNo};

/// What to do, step by step; each kind goes through its fields' stages in their order.
pub(super) enum Task {
    SyncFolder { partition: PartitionId, stage: FolderStage, dir: Option<OwnedFd>, removals: u64 },
    Replace { content: Gather, stage: ReplaceStage, fd: Option<OwnedFd>, temporary: CString },
    Recycle { from: FileNo, to: FileNo, new_name: CString, renamed: bool },
    Remove { file: FileName },
    RemoveFolder { partition: PartitionId, left: VecDeque<CString> },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FolderStage {
    Open,
    Flush,
    /// The directory above has to be flushed too, by an operation that serves many.
    Above,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ReplaceStage {
    Open,
    Write,
    Flush,
    Rename,
    FlushDir,
    /// After a failure.
    Unlink(DiskError),
}

pub(super) struct DirJob {
    pub op: OpNo,
    pub task: Task,
    /// What the task is about, relative to its directory.
    name: CString,
}

/// What follows a step.
pub(super) enum Next {
    Step,
    /// Wait until the `partitions` directory was flushed.
    FlushAbove,
    Done(Result<(), DiskError>),
}

impl DirJob {
    pub fn sync_folder(op: OpNo, partition: PartitionId, partitions: &Partitions) -> Self {
        let removals = partitions.removals;
        let task = Task::SyncFolder { partition, stage: FolderStage::Open, dir: None, removals };
        Self { op, task, name: c_string(FolderName(partition).to_string()) }
    }

    pub fn replace(op: OpNo, file: FileName, parts: Vec<Bytes>) -> Self {
        assert!(file == FileName::Checkpoint, "only the checkpoint is replaced");
        let temporary = c_string(format!("{file}.{TEMPORARY}"));
        let content = Gather::new(0, parts);
        let task = Task::Replace { content, stage: ReplaceStage::Open, fd: None, temporary };
        Self { op, task, name: c_string(file.to_string()) }
    }

    pub fn recycle(op: OpNo, from: FileNo, to: FileNo) -> Self {
        let new_name = c_string(to.to_string());
        Self {
            op,
            task: Task::Recycle { from, to, new_name, renamed: false },
            name: c_string(from.to_string()),
        }
    }

    pub fn remove(op: OpNo, file: FileName) -> Self {
        Self { op, task: Task::Remove { file }, name: c_string(file.to_string()) }
    }

    /// `names` are those in the folder.
    pub fn remove_folder(op: OpNo, partition: PartitionId, names: Vec<String>) -> Self {
        let folder = FolderName(partition).to_string();
        let left = names.into_iter().map(|name| c_string(format!("{folder}/{name}"))).collect();
        Self { op, task: Task::RemoveFolder { partition, left }, name: c_string(folder) }
    }

    /// Whether it may wait for others of its kind: what the journal goes on with may not.
    pub fn is_slow(&self) -> bool {
        matches!(self.task, Task::SyncFolder { .. } | Task::Remove { .. } | Task::RemoveFolder { .. })
    }

    /// Whether it is in a step that flushes.
    #[cfg(feature = "fault-injection")]
    pub fn flushes(&self) -> bool {
        match &self.task {
            Task::SyncFolder { stage, .. } => *stage == FolderStage::Flush,
            Task::Replace { stage, .. } => matches!(stage, ReplaceStage::Flush | ReplaceStage::FlushDir),
            Task::Recycle { renamed, .. } => *renamed,
            Task::Remove { .. } | Task::RemoveFolder { .. } => false,
        }
    }

    /// The operation of this step; its memory is this job's own.
    pub fn entry(&mut self, journal: &Journal, partitions: &Partitions) -> squeue::Entry {
        let (own, all) = (journal.dir.as_raw_fd(), partitions.dir.as_raw_fd());
        let name = self.name.as_c_str();
        match &mut self.task {
            Task::SyncFolder { stage: FolderStage::Open, .. } => {
                open(all, name, OFlags::RDONLY | OFlags::DIRECTORY)
            }
            Task::SyncFolder { dir, .. } => flush(raw(dir)),
            Task::Replace { content, stage, fd, temporary } => match stage {
                ReplaceStage::Open => open(own, temporary, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC),
                ReplaceStage::Write => content.entry(raw(fd)),
                ReplaceStage::Flush => flush(raw(fd)),
                ReplaceStage::Rename => rename(own, temporary, name),
                ReplaceStage::FlushDir => flush(own),
                ReplaceStage::Unlink(_) => unlink(own, temporary, 0),
            },
            Task::Recycle { renamed: true, .. } => flush(own),
            Task::Recycle { new_name, .. } => rename(own, name, new_name),
            Task::Remove { file: FileName::Journal(_) | FileName::Checkpoint } => unlink(own, name, 0),
            Task::Remove { .. } => unlink(all, name, 0),
            Task::RemoveFolder { left, .. } => match left.front() {
                Some(file) => unlink(all, file, 0),
                None => unlink(all, name, libc::AT_REMOVEDIR),
            },
        }
    }

    /// Takes the result of this step.
    pub fn on_result(&mut self, result: i32, partitions: &mut Partitions) -> Next {
        if result < 0 && is_transient(-result) && !self.is_flushing() {
            return Next::Step;
        }
        let outcome = checked(result);
        match &mut self.task {
            Task::SyncFolder { partition, stage, dir, removals } => match (*stage, outcome) {
                (FolderStage::Open, Ok(_)) => {
                    // SAFETY: the kernel opened the descriptor for us just now, and nobody else knows its number.
                    *dir = Some(unsafe { OwnedFd::from_raw_fd(result) });
                    *stage = FolderStage::Flush;
                    Next::Step
                }
                // That it is gone is what has to last.
                (FolderStage::Open, Err(DiskError::Missing)) => {
                    *removals = u64::MAX;
                    *stage = FolderStage::Above;
                    Next::FlushAbove
                }
                (FolderStage::Flush, Ok(_)) if !partitions.lasting.contains(partition) => {
                    *stage = FolderStage::Above;
                    Next::FlushAbove
                }
                (FolderStage::Above, Ok(_)) => {
                    if *removals == partitions.removals {
                        partitions.lasting.insert(*partition);
                    }
                    Next::Done(Ok(()))
                }
                (_, outcome) => Next::Done(outcome.map(drop)),
            },
            Task::Replace { content, stage, fd, .. } => {
                match (*stage, outcome) {
                    (ReplaceStage::Unlink(error), _) => return Next::Done(Err(error)),
                    (ReplaceStage::FlushDir, outcome) => return Next::Done(outcome.map(drop)),
                    (ReplaceStage::Open, Err(error)) => return Next::Done(Err(error)),
                    (_, Err(error)) => *stage = ReplaceStage::Unlink(error),
                    (ReplaceStage::Open, Ok(_)) => {
                        // SAFETY: as above.
                        *fd = Some(unsafe { OwnedFd::from_raw_fd(result) });
                        let empty = content.is_done();
                        *stage = if empty { ReplaceStage::Flush } else { ReplaceStage::Write };
                    }
                    (ReplaceStage::Write, Ok(_)) => match content.on_result(result) {
                        None => {}
                        Some(Ok(())) => *stage = ReplaceStage::Flush,
                        Some(Err(error)) => *stage = ReplaceStage::Unlink(error),
                    },
                    (ReplaceStage::Flush, Ok(_)) => *stage = ReplaceStage::Rename,
                    (ReplaceStage::Rename, Ok(_)) => *stage = ReplaceStage::FlushDir,
                }
                Next::Step
            }
            Task::Recycle { renamed, .. } => {
                if outcome.is_ok() && !std::mem::replace(renamed, true) {
                    return Next::Step;
                }
                Next::Done(outcome.map(drop))
            }
            Task::Remove { .. } => Next::Done(unless_missing(outcome)),
            Task::RemoveFolder { left, .. } => match unless_missing(outcome) {
                Ok(()) if left.pop_front().is_some() => Next::Step,
                outcome => Next::Done(outcome),
            },
        }
    }

    /// A flush is not tried again, whatever it says.
    fn is_flushing(&self) -> bool {
        match &self.task {
            Task::SyncFolder { stage, .. } => *stage != FolderStage::Open,
            Task::Replace { stage, .. } => matches!(stage, ReplaceStage::Flush | ReplaceStage::FlushDir),
            Task::Recycle { renamed, .. } => *renamed,
            Task::Remove { .. } | Task::RemoveFolder { .. } => false,
        }
    }

    pub fn event(&self, result: Result<(), DiskError>) -> DiskEvent {
        let op = self.op;
        match self.task {
            Task::SyncFolder { .. } => DiskEvent::Synced { op, result },
            Task::Recycle { .. } => DiskEvent::Prepared { op, result },
            Task::Replace { .. } | Task::Remove { .. } | Task::RemoveFolder { .. } => {
                DiskEvent::Done { op, result }
            }
        }
    }
}

fn raw(fd: &Option<OwnedFd>) -> RawFd {
    fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)
}

fn open(dir: RawFd, name: &CStr, flags: OFlags) -> squeue::Entry {
    let flags = (flags | OFlags::CLOEXEC).bits().cast_signed();
    opcode::OpenAt::new(types::Fd(dir), name.as_ptr()).flags(flags).mode(FILE_MODE).build()
}

fn flush(fd: RawFd) -> squeue::Entry {
    opcode::Fsync::new(types::Fd(fd)).build()
}

fn rename(dir: RawFd, from: &CStr, to: &CStr) -> squeue::Entry {
    opcode::RenameAt::new(types::Fd(dir), from.as_ptr(), types::Fd(dir), to.as_ptr()).build()
}

fn unlink(dir: RawFd, name: &CStr, flags: i32) -> squeue::Entry {
    opcode::UnlinkAt::new(types::Fd(dir), name.as_ptr()).flags(flags).build()
}

fn unless_missing(outcome: Result<usize, DiskError>) -> Result<(), DiskError> {
    match outcome {
        Ok(_) | Err(DiskError::Missing) => Ok(()),
        Err(e) => Err(e),
    }
}
