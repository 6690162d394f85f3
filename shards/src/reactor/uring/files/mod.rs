//! The files of one shard: [`DiskOp`]s as io_uring operations, [`DiskEvent`]s as their completions.
//!
//! Owned by one shard core. Journal files are opened for direct I/O where the file system has it, when they are first
//! needed, and stay open; segments and indexes go through the page cache, and a bounded number of them is open. An
//! operation owns its memory and its file until it completed. Short writes and reads go on where they stopped; errors
//! are reported once and nothing is tried again, least of all a failed flush.
//!
//! The kernel does what may block with a bounded number of threads for each ring. What the journal waits for and what
//! a reader waits for goes to them at once; the work of moving, which comes in hundreds, at most [`SLOW_MAX`] at a time,
//! and the rest waits here, in order.

#![expect(unsafe_code, reason = "driver: file operations carry raw addresses")]

mod dir_job;
mod file_job;
mod gather;
mod journal;
mod partitions;
mod prepare;
mod read;

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::rc::Rc;

use bytes::Bytes;
use io_uring::{opcode, squeue, types};
use rustix::fs::Mode;

use super::ring::{Completion, Kind, Ring, Tag};
use crate::ids::Map;
use crate::log::disk::{DiskError, DiskEvent, DiskOp, FileName, FileNo, OpNo, PUT_PARTS_MAX};
use dir_job::{DirJob, Next, Task};
use file_job::{Act, FileJob};
use gather::Gather;
pub(super) use journal::Journal;
use journal::{Write, check_parts};
pub(super) use partitions::Partitions;
use prepare::{Prepare, Zeros};
use read::Read;

/// Bytes of one write or read; more would be a bug of the log.
const TRANSFER_MAX: usize = 1 << 30;

/// Operations of moving that the kernel has at a time: fewer than [`super::ring::WORKERS_MAX`], so that a flush of the
/// journal always finds a thread.
const SLOW_MAX: usize = 48;

const FILE_MODE: u32 = 0o644;
const FOLDER_MODE: u32 = 0o755;

/// An open file, as long as someone uses it.
type Fd = Rc<OwnedFd>;

enum Op {
    Write(Write),
    SyncJournal {
        op: OpNo,
        fd: Fd,
    },
    Read {
        fd: Fd,
        read: Read,
    },
    Prepare(Box<Prepare>),
    File(Box<FileJob>),
    Dir(Box<DirJob>),
    /// The `partitions` directory is flushed for the jobs in `above_now`.
    FlushAbove,
    /// The kernel begins to write out a part of a file; nobody waits for it.
    WriteBack(partitions::WriteBack),
    /// A file that was removed while it was used: the last who has it frees its blocks, which takes long.
    Close(i32),
}

#[derive(Clone, Copy, Default, Debug)]
pub(super) struct FileCounters {
    pub writes: u64,
    /// Of the journal.
    pub syncs: u64,
    pub reads: u64,
    pub prepared: u64,
    pub recycled: u64,
    pub removed: u64,
    /// Writes and reads that the kernel did in more than one piece.
    pub continued: u64,
    pub puts: u64,
    pub put_bytes: u64,
    /// Of segments and indexes.
    pub file_syncs: u64,
    /// Of partitions' folders, and of the directory above.
    pub folder_syncs: u64,
    pub write_backs: u64,
    pub replaced: u64,
}

pub(super) struct Files {
    journal: Journal,
    partitions: Partitions,
    zeros: Zeros,
    /// The journal's files that are open.
    open: Map<FileNo, Fd>,
    ops: Vec<Option<Op>>,
    free: Vec<u32>,
    /// Slots whose next step waits for room among the slow ones.
    slow: VecDeque<u32>,
    slow_in_flight: usize,
    /// Jobs that the flush of the `partitions` directory under way covers, and those that came later.
    above_now: Vec<u32>,
    above_next: Vec<u32>,
    stopping: bool,
    /// For the machine, in the order of completion.
    pub events: Vec<DiskEvent>,
    pub counters: FileCounters,
    #[cfg(feature = "fault-injection")]
    syncs_until_failure: Option<u64>,
}

impl Files {
    pub fn new(journal: Journal, partitions: Partitions) -> Self {
        Self {
            journal,
            partitions,
            zeros: Zeros::default(),
            open: Map::default(),
            ops: Vec::new(),
            free: Vec::new(),
            slow: VecDeque::new(),
            slow_in_flight: 0,
            above_now: Vec::new(),
            above_next: Vec::new(),
            stopping: false,
            events: Vec::new(),
            counters: FileCounters::default(),
            #[cfg(feature = "fault-injection")]
            syncs_until_failure: std::env::var("HIGHWATER_FAULT_SYNCS").ok().and_then(|n| n.parse().ok()),
        }
    }

    /// Operations that have not completed.
    pub fn in_flight(&self) -> usize {
        self.ops.len() - self.free.len()
    }

    /// How often a file was closed to make room for another.
    pub fn evicted(&self) -> u64 {
        self.partitions.evicted
    }

    /// Whatever has several steps ends with the one that it is in, and what waits is not begun: nobody is there any
    /// more to hear of it.
    pub fn stop(&mut self) {
        self.stopping = true;
        let waiting = self.slow.drain(..).chain(self.above_next.drain(..)).collect::<Vec<_>>();
        for slot in waiting {
            self.ops[slot as usize] = None;
            self.free.push(slot);
        }
    }

    /// Starts an operation; its event comes in `events`, at once when there is nothing to wait for.
    pub fn start(&mut self, ring: &mut Ring, disk_op: DiskOp) {
        match disk_op {
            DiskOp::List { op } => {
                let preparing = self.ops.iter().flatten().any(|op| matches!(op, Op::Prepare(_)));
                assert!(!preparing, "files are listed before any is prepared");
                let result = self.journal.list().map_err(|e| io_error(&e));
                self.events.push(DiskEvent::Listed { op, result });
            }
            DiskOp::Prepare { op, file, size } => {
                assert!(!self.open.contains_key(&file), "a file is prepared once");
                let prepare = Prepare::new(op, file, size, self.zeros.get());
                self.submit(ring, Op::Prepare(Box::new(prepare)));
            }
            DiskOp::Recycle { op, from, to } => {
                assert!(!self.open.contains_key(&to), "there is no file of the new number");
                self.submit(ring, Op::Dir(Box::new(DirJob::recycle(op, from, to))));
            }
            DiskOp::Write { op, file, position, parts, sync } => {
                let len = check_parts(&parts, position);
                self.counters.writes += 1;
                match self.journal_file(file) {
                    _ if len == 0 => self.events.push(DiskEvent::Written { op, result: Ok(()) }),
                    Ok(fd) => self.submit(ring, Op::Write(Write::new(op, fd, position, parts, len, sync))),
                    Err(e) => self.events.push(DiskEvent::Written { op, result: Err(e) }),
                }
            }
            DiskOp::Sync { op, file: FileName::Journal(file) } => {
                self.counters.syncs += 1;
                match self.journal_file(file) {
                    Ok(fd) => self.submit(ring, Op::SyncJournal { op, fd }),
                    Err(e) => self.events.push(DiskEvent::Synced { op, result: Err(e) }),
                }
            }
            DiskOp::Read { op, file: FileName::Journal(file), position, len } => {
                self.counters.reads += 1;
                match self.journal_file(file) {
                    _ if len == 0 => self.events.push(DiskEvent::Read { op, result: Ok(Bytes::new()) }),
                    Ok(fd) => {
                        self.submit(ring, Op::Read { fd, read: Read::new(op, position, len as usize) });
                    }
                    Err(e) => self.events.push(DiskEvent::Read { op, result: Err(e) }),
                }
            }
            DiskOp::Put { op, file, position, parts } => {
                assert!(parts.len() <= PUT_PARTS_MAX, "a put has at most PUT_PARTS_MAX parts");
                self.counters.puts += 1;
                self.counters.put_bytes += parts.iter().map(|part| part.len() as u64).sum::<u64>();
                self.on_file(ring, op, file, Act::Put(Gather::new(position, parts)));
            }
            DiskOp::Sync { op, file } => {
                self.counters.file_syncs += 1;
                self.partitions.synced(file);
                self.on_file(ring, op, file, Act::Sync);
            }
            DiskOp::Read { op, file, position, len } => {
                self.counters.reads += 1;
                if len == 0 {
                    self.events.push(DiskEvent::Read { op, result: Ok(Bytes::new()) });
                    return;
                }
                self.on_file(ring, op, file, Act::Read(Read::new(op, position, len as usize)));
            }
            DiskOp::Cut { op, file, len } => self.on_file(ring, op, file, Act::Cut { len }),
            DiskOp::SyncFolder { op, partition } => {
                self.counters.folder_syncs += 1;
                let job = DirJob::sync_folder(op, partition, &self.partitions);
                self.submit(ring, Op::Dir(Box::new(job)));
            }
            DiskOp::Replace { op, file, parts } => {
                self.submit(ring, Op::Dir(Box::new(DirJob::replace(op, file, parts))));
            }
            DiskOp::Load { op, file } => {
                assert!(file == FileName::Checkpoint, "only the checkpoint is loaded");
                let result = self.journal.load(file).map_err(|e| io_error(&e));
                self.events.push(DiskEvent::Loaded { op, result });
            }
            DiskOp::Remove { op, file } => {
                self.forget(ring, file);
                self.submit(ring, Op::Dir(Box::new(DirJob::remove(op, file))));
            }
            DiskOp::RemoveFolder { op, partition } => {
                self.partitions.forget_folder(partition);
                match self.partitions.names(partition) {
                    Ok(names) => {
                        let job = DirJob::remove_folder(op, partition, names);
                        self.submit(ring, Op::Dir(Box::new(job)));
                    }
                    Err(e) => self.events.push(DiskEvent::Done { op, result: Err(io_error(&e)) }),
                }
            }
            DiskOp::ListFolder { op, partition } => {
                let result = self.partitions.list_folder(partition).map_err(|e| io_error(&e));
                self.events.push(DiskEvent::FolderListed { op, result });
            }
            DiskOp::ListFolders { op } => {
                let result = self.partitions.list().map_err(|e| io_error(&e));
                self.events.push(DiskEvent::FoldersListed { op, result });
            }
        }
    }

    /// Goes on with the operation that `c` belongs to, or ends it.
    pub fn on_completion(&mut self, ring: &mut Ring, c: &Completion) {
        let mut op = self.ops[c.tag.slot as usize].take().expect("an operation completes once");
        let result = self.after_faults(&op, c.result);
        self.slow_in_flight -= usize::from(op.is_slow());
        let outcome = match &mut op {
            Op::Write(write) => write.on_result(result),
            Op::SyncJournal { .. } => Some(checked(result).map(drop)),
            Op::Read { read, .. } => read.on_result(result),
            Op::Prepare(prepare) => prepare.on_result(result),
            Op::File(job) => job.on_result(result, &mut self.partitions),
            Op::Dir(job) => match job.on_result(result, &mut self.partitions) {
                Next::Step => None,
                Next::Done(result) => Some(result),
                Next::FlushAbove => {
                    self.ops[c.tag.slot as usize] = Some(op);
                    self.above_next.push(c.tag.slot);
                    self.flush_above(ring);
                    return self.begin_slow(ring);
                }
            },
            Op::FlushAbove | Op::WriteBack(_) | Op::Close(_) => Some(Ok(())),
        };
        match outcome {
            Some(outcome) => {
                self.free.push(c.tag.slot);
                self.end(ring, op, result, outcome);
            }
            // What there is of it has a temporary name and is removed at the next start, or is as after a crash.
            None if self.stopping && op.has_steps() => self.free.push(c.tag.slot),
            None => {
                match &op {
                    Op::Write(Write { flushing: true, .. }) => self.counters.syncs += 1,
                    Op::Write(_) | Op::Read { .. } => self.counters.continued += 1,
                    _ => {}
                }
                self.ops[c.tag.slot as usize] = Some(op);
                self.push(ring, c.tag.slot);
            }
        }
        self.begin_slow(ring);
    }

    /// The operation is done, with this outcome; `result` is what its last step said.
    fn end(&mut self, ring: &mut Ring, op: Op, result: i32, outcome: Result<(), DiskError>) {
        match op {
            Op::Write(write) => {
                self.events.push(DiskEvent::Written { op: write.op, result: outcome });
                self.let_go(ring, write.fd);
            }
            Op::SyncJournal { op, fd } => {
                self.events.push(DiskEvent::Synced { op, result: outcome });
                self.let_go(ring, fd);
            }
            Op::Read { fd, read } => {
                let op = read.op;
                self.events.push(DiskEvent::Read { op, result: outcome.map(|()| read.into_bytes()) });
                self.let_go(ring, fd);
            }
            Op::Prepare(prepare) => {
                let op = prepare.op;
                if outcome.is_ok() {
                    let (file, fd) = prepare.into_file();
                    self.open.insert(file, Rc::new(fd));
                    self.counters.prepared += 1;
                }
                self.events.push(DiskEvent::Prepared { op, result: outcome });
            }
            Op::File(job) => self.end_file_job(ring, *job, outcome),
            Op::Dir(job) => self.end_dir_job(ring, &job, outcome),
            Op::FlushAbove => self.on_flushed_above(ring, result),
            Op::WriteBack(back) => self.let_go(ring, back.fd),
            Op::Close(_) => {}
        }
    }

    fn end_file_job(&mut self, ring: &mut Ring, job: FileJob, outcome: Result<(), DiskError>) {
        if let Act::Put(gather) = &job.act
            && let Some(back) = self.partitions.written(job.file, gather.position(), gather.done())
        {
            self.counters.write_backs += 1;
            self.submit(ring, Op::WriteBack(back));
        }
        let (event, fd) = job.finish(outcome);
        self.events.push(event);
        if let Some(fd) = fd {
            self.let_go(ring, fd);
        }
    }

    fn end_dir_job(&mut self, ring: &mut Ring, job: &DirJob, outcome: Result<(), DiskError>) {
        match &job.task {
            Task::SyncFolder { .. } => {}
            Task::Replace { .. } => self.counters.replaced += 1,
            Task::Recycle { from, to, .. } => {
                if outcome.is_ok()
                    && let Some(fd) = self.open.remove(from)
                {
                    self.open.insert(*to, fd);
                }
                self.counters.recycled += 1;
            }
            Task::Remove { file } => {
                self.counters.removed += 1;
                self.forget(ring, *file);
            }
            Task::RemoveFolder { partition, .. } => {
                self.counters.removed += 1;
                self.partitions.forget_folder(*partition);
            }
        }
        self.events.push(job.event(outcome));
    }

    /// Starts an operation on a segment or an index.
    fn on_file(&mut self, ring: &mut Ring, op: OpNo, file: FileName, act: Act) {
        let is_theirs = matches!(file, FileName::Segment(_) | FileName::Index(_));
        assert!(is_theirs, "{file} is neither a segment nor an index");
        let mut job = FileJob::new(op, file, act, &mut self.partitions);
        match job.at_once() {
            Some(outcome) => self.end_file_job(ring, job, outcome),
            None => self.submit(ring, Op::File(Box::new(job))),
        }
    }

    /// Begins to flush the `partitions` directory for all who wait for it, unless that is under way.
    fn flush_above(&mut self, ring: &mut Ring) {
        if !self.above_now.is_empty() || self.above_next.is_empty() {
            return;
        }
        std::mem::swap(&mut self.above_now, &mut self.above_next);
        self.counters.folder_syncs += 1;
        self.submit(ring, Op::FlushAbove);
    }

    fn on_flushed_above(&mut self, ring: &mut Ring, result: i32) {
        for slot in std::mem::take(&mut self.above_now) {
            let op = self.ops[slot as usize].take();
            self.free.push(slot);
            let Some(Op::Dir(mut job)) = op else { unreachable!("only a folder waits for the one above") };
            let Next::Done(outcome) = job.on_result(result, &mut self.partitions) else {
                unreachable!("this was its last step")
            };
            self.events.push(job.event(outcome));
        }
        if self.stopping {
            return self.stop();
        }
        self.flush_above(ring);
    }

    /// The name goes, or has gone: nobody finds its file any more.
    fn forget(&mut self, ring: &mut Ring, file: FileName) {
        let FileName::Journal(no) = file else { return self.partitions.forget(file) };
        if let Some(fd) = self.open.remove(&no) {
            self.let_go(ring, fd);
        }
    }

    /// Closes a file that nobody has any more, by a thread of the kernel's: it may have no name and much to free.
    fn let_go(&mut self, ring: &mut Ring, fd: Fd) {
        if let Ok(fd) = Rc::try_unwrap(fd) {
            self.submit(ring, Op::Close(fd.into_raw_fd()));
        }
    }

    fn submit(&mut self, ring: &mut Ring, op: Op) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.ops.push(None);
            u32::try_from(self.ops.len() - 1).expect("the log bounds its outstanding operations")
        });
        self.ops[slot as usize] = Some(op);
        self.push(ring, slot);
    }

    /// Submits the next step of the operation in a slot, or lets it wait for room.
    fn push(&mut self, ring: &mut Ring, slot: u32) {
        let op = self.ops[slot as usize].as_mut().expect("the operation was put there");
        if op.is_slow() {
            if self.slow_in_flight == SLOW_MAX {
                self.slow.push_back(slot);
                return;
            }
            self.slow_in_flight += 1;
        }
        let entry = op.entry(&self.journal, &self.partitions);
        // SAFETY: the operation in its slot owns the memory and is taken out only by its completion; shared memory
        // (zeros) is counted.
        unsafe { ring.push(entry, Tag::slot(Kind::Disk, slot)) };
    }

    fn begin_slow(&mut self, ring: &mut Ring) {
        while self.slow_in_flight < SLOW_MAX {
            let Some(slot) = self.slow.pop_front() else { return };
            self.push(ring, slot);
        }
    }

    fn journal_file(&mut self, file: FileNo) -> Result<Fd, DiskError> {
        if let Some(fd) = self.open.get(&file) {
            return Ok(Rc::clone(fd));
        }
        let opened =
            rustix::fs::openat(&self.journal.dir, file.to_string(), self.journal.flags(), Mode::empty())
                .map_err(|e| disk_error(e.raw_os_error()))?;
        let fd = Rc::new(opened);
        self.open.insert(file, Rc::clone(&fd));
        Ok(fd)
    }

    #[cfg(feature = "fault-injection")]
    fn after_faults(&mut self, op: &Op, result: i32) -> i32 {
        let syncs = match op {
            Op::SyncJournal { .. } | Op::Write(Write { flushing: true, .. }) | Op::FlushAbove => true,
            Op::File(job) => job.flushes(),
            Op::Dir(job) => job.flushes(),
            _ => false,
        };
        match &mut self.syncs_until_failure {
            Some(0) if syncs => -libc::EIO,
            Some(n) if syncs => {
                *n -= 1;
                result
            }
            _ => result,
        }
    }

    #[cfg(not(feature = "fault-injection"))]
    fn after_faults(&mut self, _: &Op, result: i32) -> i32 {
        result
    }
}

impl Op {
    /// Whether it is work of moving, of which the kernel has a bounded number at a time.
    fn is_slow(&self) -> bool {
        match self {
            Self::File(job) => job.is_slow(),
            Self::Dir(job) => job.is_slow(),
            Self::WriteBack(_) => true,
            _ => false,
        }
    }

    fn has_steps(&self) -> bool {
        matches!(self, Self::Prepare(_) | Self::File(_) | Self::Dir(_))
    }

    /// The operation of its next step.
    fn entry(&mut self, journal: &Journal, partitions: &Partitions) -> squeue::Entry {
        match self {
            Self::Write(write) => write.entry(),
            Self::SyncJournal { fd, .. } => {
                let fd = types::Fd(fd.as_raw_fd());
                opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build()
            }
            Self::Read { fd, read } => read.entry(fd.as_raw_fd()),
            Self::Prepare(prepare) => prepare.entry(journal),
            Self::File(job) => job.entry(partitions),
            Self::Dir(job) => job.entry(journal, partitions),
            Self::FlushAbove => opcode::Fsync::new(types::Fd(partitions.dir.as_raw_fd())).build(),
            Self::WriteBack(back) => opcode::SyncFileRange::new(types::Fd(back.fd.as_raw_fd()), back.len)
                .offset(back.position)
                .flags(libc::SYNC_FILE_RANGE_WRITE)
                .build(),
            Self::Close(fd) => opcode::Close::new(types::Fd(*fd)).build().flags(squeue::Flags::ASYNC),
        }
    }
}

/// What was written or read, or the error.
fn checked(result: i32) -> Result<usize, DiskError> {
    usize::try_from(result).map_err(|_| disk_error(-result))
}

fn disk_error(errno: i32) -> DiskError {
    match errno {
        libc::ENOSPC | libc::EDQUOT => DiskError::NoSpace,
        libc::ENOENT => DiskError::Missing,
        errno => DiskError::Io(errno),
    }
}

fn io_error(error: &std::io::Error) -> DiskError {
    disk_error(error.raw_os_error().unwrap_or(libc::EIO))
}

fn c_string(name: String) -> CString {
    CString::new(name).expect("file names hold no zero byte")
}

/// A descriptor for tests that never use it.
#[cfg(test)]
fn no_file() -> Fd {
    Rc::new(rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap())
}
