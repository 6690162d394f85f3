//! The journal's files of one shard: [`DiskOp`]s as io_uring operations, [`DiskEvent`]s as their completions.
//!
//! Owned by one shard core. Files are opened for direct I/O where the file system has it, when they are first needed,
//! and stay open. An operation owns its memory until it completed. Short writes and reads go on where they stopped;
//! errors are reported once and nothing is tried again, least of all a failed flush.
//!
//! A write with `sync` is a write and, once all of it is in the file, an fdatasync; not one write with RWF_DSYNC. On a
//! pre-written file of ext4 that is a little slower when the core is idle (p50 for 4 KiB, 64 KiB, 1 MiB: 106, 123,
//! 280 us against 96, 114, 271) and far faster when it is busy (4 KiB: 0.3-2.7 ms against 3.9-7.3 ms, with a thread that
//! keeps the core on a loaded host): the kernel finishes RWF_DSYNC by a worker of the core on which the disk's interrupt
//! came, which waits until the shard's own thread lets go of it, while io_uring's fdatasync runs on any free core. The
//! two are not linked: a link broken between two submissions would flush before the write.

#![expect(unsafe_code, reason = "driver: file operations carry raw addresses")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use io_uring::{opcode, types};
use rustix::fs::{Mode, OFlags};
use tracing::warn;

use super::buffers::AlignedBuf;
use super::prepare::{Prepare, TEMPORARY, Zeros};
use super::ring::{Completion, Kind, Ring, Tag, is_transient};
use crate::ids::Map;
use crate::log::disk::{DiskError, DiskEvent, DiskOp, FileName, FileNo, OpNo, SECTOR};
use crate::reactor::boot::StartError;

/// Bytes of one write or read; more would be a bug of the log.
const TRANSFER_MAX: usize = 1 << 30;

/// What the journal's directory allows, found out at start.
pub(super) struct Journal {
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
}

pub(super) const FILE_MODE: u32 = 0o644;

enum Op {
    Write(Write),
    Sync { op: OpNo },
    Read(Read),
    Prepare(Box<Prepare>),
}

struct Write {
    op: OpNo,
    fd: RawFd,
    position: u64,
    /// One after the other in memory.
    parts: Vec<Bytes>,
    len: usize,
    done: usize,
    sync: bool,
    /// All bytes are written and are being flushed.
    flushing: bool,
}

struct Read {
    op: OpNo,
    fd: RawFd,
    buffer: AlignedBuf,
    /// Where the buffer begins in the file: the sector that holds the first byte asked for.
    position: u64,
    done: usize,
    /// What was asked for, as a place in the buffer.
    skip: usize,
    len: usize,
}

#[derive(Clone, Copy, Default, Debug)]
pub(super) struct FileCounters {
    pub writes: u64,
    pub syncs: u64,
    pub reads: u64,
    pub prepared: u64,
    /// Writes and reads that the kernel did in more than one piece.
    pub continued: u64,
}

pub(super) struct Files {
    journal: Journal,
    zeros: Zeros,
    open: Map<FileNo, OwnedFd>,
    ops: Vec<Option<Op>>,
    free: Vec<u32>,
    stopping: bool,
    /// For the machine, in the order of completion.
    pub events: Vec<DiskEvent>,
    pub counters: FileCounters,
    #[cfg(feature = "fault-injection")]
    syncs_until_failure: Option<u64>,
}

impl Files {
    pub fn new(journal: Journal) -> Self {
        Self {
            journal,
            zeros: Zeros::default(),
            open: Map::default(),
            ops: Vec::new(),
            free: Vec::new(),
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

    /// Preparations end with the step that they are in.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Starts an operation; its event comes in `events`, at once when there is nothing to wait for.
    pub fn start(&mut self, ring: &mut Ring, disk_op: DiskOp) {
        match disk_op {
            DiskOp::List { op } => {
                let result = self.list().map_err(|e| disk_error(e.raw_os_error().unwrap_or(libc::EIO)));
                self.events.push(DiskEvent::Listed { op, result });
            }
            DiskOp::Prepare { op, file, size } => {
                assert!(!self.open.contains_key(&file), "a file is prepared once");
                let prepare = Prepare::new(op, file, size, self.zeros.get());
                self.submit(ring, Op::Prepare(Box::new(prepare)));
            }
            DiskOp::Write { op, file, position, parts, sync } => {
                let len = check_parts(&parts, position);
                self.counters.writes += 1;
                match self.fd(file) {
                    _ if len == 0 => self.events.push(DiskEvent::Written { op, result: Ok(()) }),
                    Ok(fd) => {
                        self.submit(
                            ring,
                            Op::Write(Write { op, fd, position, parts, len, done: 0, sync, flushing: false }),
                        );
                    }
                    Err(e) => self.events.push(DiskEvent::Written { op, result: Err(e) }),
                }
            }
            DiskOp::Sync { op, file: FileName::Journal(file) } => {
                self.counters.syncs += 1;
                match self.fd(file) {
                    Ok(fd) => {
                        let entry =
                            opcode::Fsync::new(types::Fd(fd)).flags(types::FsyncFlags::DATASYNC).build();
                        let tag = self.keep(Op::Sync { op });
                        // SAFETY: the operation points to no memory.
                        unsafe { ring.push(entry, tag) };
                    }
                    Err(e) => self.events.push(DiskEvent::Synced { op, result: Err(e) }),
                }
            }
            DiskOp::Read { op, file: FileName::Journal(file), position, len } => {
                self.counters.reads += 1;
                match self.fd(file) {
                    _ if len == 0 => self.events.push(DiskEvent::Read { op, result: Ok(Bytes::new()) }),
                    Ok(fd) => self.submit(ring, Op::Read(Read::new(op, fd, position, len as usize))),
                    Err(e) => self.events.push(DiskEvent::Read { op, result: Err(e) }),
                }
            }
            other => unreachable!("nothing asks for {other:?}"),
        }
    }

    /// Goes on with the operation that `c` belongs to, or ends it.
    pub fn on_completion(&mut self, ring: &mut Ring, c: &Completion) {
        let mut op = self.ops[c.tag.slot as usize].take().expect("an operation completes once");
        let result = self.after_faults(&op, c.result);
        let outcome = match &mut op {
            Op::Write(write) => write.on_result(result),
            Op::Sync { .. } => Some(checked(result).map(drop)),
            Op::Read(read) => read.on_result(result),
            Op::Prepare(prepare) => prepare.on_result(result),
        };
        let Some(result) = outcome else {
            if self.stopping && matches!(op, Op::Prepare(_)) {
                // What there is of it has a temporary name and is removed at the next start.
                self.free.push(c.tag.slot);
                return;
            }
            match &op {
                Op::Write(Write { flushing: true, .. }) => self.counters.syncs += 1,
                Op::Write(_) | Op::Read(_) => self.counters.continued += 1,
                Op::Sync { .. } | Op::Prepare(_) => {}
            }
            self.ops[c.tag.slot as usize] = Some(op);
            self.push(ring, c.tag);
            return;
        };
        self.free.push(c.tag.slot);
        self.events.push(match op {
            Op::Write(write) => DiskEvent::Written { op: write.op, result },
            Op::Sync { op } => DiskEvent::Synced { op, result },
            Op::Read(read) => DiskEvent::Read { op: read.op, result: result.map(|()| read.into_bytes()) },
            Op::Prepare(prepare) => {
                let op = prepare.op;
                if result.is_ok() {
                    let (file, fd) = prepare.into_file();
                    self.open.insert(file, fd);
                    self.counters.prepared += 1;
                }
                DiskEvent::Prepared { op, result }
            }
        });
    }

    fn keep(&mut self, op: Op) -> Tag {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.ops.push(None);
            u32::try_from(self.ops.len() - 1).expect("the log bounds its outstanding operations")
        });
        self.ops[slot as usize] = Some(op);
        Tag::slot(Kind::Disk, slot)
    }

    fn submit(&mut self, ring: &mut Ring, op: Op) {
        let tag = self.keep(op);
        self.push(ring, tag);
    }

    /// Submits the next step of the operation in the tag's slot.
    fn push(&mut self, ring: &mut Ring, tag: Tag) {
        let entry = match self.ops[tag.slot as usize].as_mut().expect("the operation was put there") {
            Op::Write(write) => write.entry(),
            Op::Read(read) => read.entry(),
            Op::Prepare(prepare) => prepare.entry(&self.journal),
            Op::Sync { .. } => unreachable!("a flush is one step"),
        };
        // SAFETY: the operation in its slot owns the memory and is taken out only by its completion; shared memory
        // (zeros) is counted.
        unsafe { ring.push(entry, tag) };
    }

    fn fd(&mut self, file: FileNo) -> Result<RawFd, DiskError> {
        if let Some(fd) = self.open.get(&file) {
            return Ok(fd.as_raw_fd());
        }
        let opened =
            rustix::fs::openat(&self.journal.dir, file.to_string(), self.journal.flags(), Mode::empty())
                .map_err(|e| disk_error(e.raw_os_error()))?;
        let fd = opened.as_raw_fd();
        self.open.insert(file, opened);
        Ok(fd)
    }

    /// Asked once, at start: so it may block.
    fn list(&self) -> io::Result<Vec<(FileNo, u64)>> {
        assert!(
            !self.ops.iter().flatten().any(|op| matches!(op, Op::Prepare(_))),
            "files are listed before any is prepared"
        );
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.journal.path)? {
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

    #[cfg(feature = "fault-injection")]
    fn after_faults(&mut self, op: &Op, result: i32) -> i32 {
        let syncs = matches!(op, Op::Sync { .. } | Op::Write(Write { flushing: true, .. }));
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

impl Write {
    fn entry(&mut self) -> io_uring::squeue::Entry {
        if self.flushing {
            return opcode::Fsync::new(types::Fd(self.fd)).flags(types::FsyncFlags::DATASYNC).build();
        }
        // The parts were checked to lie one after the other.
        let start = self.parts[0].as_ptr().wrapping_add(self.done);
        let len = u32::try_from(self.len - self.done).expect("a write is at most TRANSFER_MAX");
        opcode::Write::new(types::Fd(self.fd), start, len).offset(self.position + self.done as u64).build()
    }

    /// The outcome, or `None` while something is left to write or flush.
    fn on_result(&mut self, result: i32) -> Option<Result<(), DiskError>> {
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

impl Read {
    fn new(op: OpNo, fd: RawFd, position: u64, len: usize) -> Self {
        assert!(len <= TRANSFER_MAX, "a read is at most TRANSFER_MAX");
        let skip = (position % SECTOR as u64) as usize;
        let buffer = AlignedBuf::zeroed((skip + len).next_multiple_of(SECTOR));
        Self { op, fd, buffer, position: position - skip as u64, done: 0, skip, len }
    }

    fn entry(&mut self) -> io_uring::squeue::Entry {
        let start = self.buffer.as_ptr().wrapping_add(self.done);
        let len = u32::try_from(self.buffer.len() - self.done).expect("a read is at most TRANSFER_MAX");
        opcode::Read::new(types::Fd(self.fd), start, len).offset(self.position + self.done as u64).build()
    }

    /// The outcome, or `None` while something is left to read.
    fn on_result(&mut self, result: i32) -> Option<Result<(), DiskError>> {
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

    fn into_bytes(self) -> Bytes {
        let end = self.done.min(self.skip + self.len);
        if end <= self.skip {
            return Bytes::new();
        }
        Bytes::from_owner(self.buffer).slice(self.skip..end)
    }
}

/// What was written or read, or the error.
pub(super) fn checked(result: i32) -> Result<usize, DiskError> {
    usize::try_from(result).map_err(|_| disk_error(-result))
}

pub(super) fn disk_error(errno: i32) -> DiskError {
    match errno {
        libc::ENOSPC | libc::EDQUOT => DiskError::NoSpace,
        errno => DiskError::Io(errno),
    }
}

/// The length of a write's parts, which have to be what [`DiskOp::Write`] says.
fn check_parts(parts: &[Bytes], position: u64) -> usize {
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
    use super::*;

    #[test]
    fn a_short_write_goes_on_at_a_sector() {
        let mut w = Write {
            op: OpNo(1),
            fd: -1,
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
            fd: -1,
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
    fn a_read_ends_at_the_end_of_the_file() {
        let mut r = Read::new(OpNo(1), -1, 5000, 10_000);
        assert_eq!((r.position, r.skip, r.buffer.len()), (4096, 904, 3 * SECTOR));
        assert_eq!(r.on_result(4096), None);
        assert_eq!(r.on_result(100), Some(Ok(())));
        assert_eq!(r.into_bytes().len(), 4196 - 904);
        let mut r = Read::new(OpNo(1), -1, 5000, 10);
        assert_eq!(r.on_result(0), Some(Ok(())));
        assert!(r.into_bytes().is_empty());
    }

    #[test]
    #[should_panic(expected = "one after the other in memory")]
    fn parts_that_do_not_follow_each_other_are_a_bug() {
        let buffer = Bytes::from_owner(AlignedBuf::zeroed(2 * SECTOR));
        check_parts(&[buffer.slice(..SECTOR), buffer.slice(..SECTOR)], 0);
    }
}
