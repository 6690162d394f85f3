//! The `partitions` directory as one shard has it: which of its files are open, and which of its folders are known to
//! last.
//!
//! Owned by one shard core. An open file is shared by the cache and the operations that use it; what no operation uses
//! may be closed for another, the least recently used first. A name that was removed has no descriptor here: one that
//! was opened while a name was being removed serves its operation alone, since nobody knows which file it found.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::{fs, io};

use rustix::fs::{Mode, OFlags};

use super::Fd;
use crate::ids::{Map, PartitionId};
use crate::log::disk::{FileName, FolderName, SegmentName};
use crate::reactor::boot::StartError;

/// Bytes written to one file after which the kernel is asked to begin writing them out. On a shared host with 286 MiB/s
/// of puts the slowest flush of the journal took 22 and 32 ms with it, 218 and 249 ms without (p50 and p99 alike), and a
/// sync after 64 MiB 1-5 ms instead of 360-400.
const WRITE_BACK_BYTES: u64 = 1024 * 1024;

pub(in crate::reactor::uring) struct Partitions {
    path: PathBuf,
    pub dir: OwnedFd,
    open: Map<FileName, Open>,
    /// The open files by their last use.
    by_use: BTreeMap<u64, FileName>,
    uses: u64,
    open_max: usize,
    /// Counts what was removed, at the beginning and at the end of each removal.
    pub removals: u64,
    /// Folders whose own names were made durable in this life.
    pub lasting: BTreeSet<PartitionId>,
    pub evicted: u64,
}

struct Open {
    fd: Fd,
    last_use: u64,
    /// What was written since the last writing out began, as a range.
    unwritten: Option<(u64, u64)>,
}

/// A range of a file that the kernel should begin to write out.
pub(super) struct WriteBack {
    pub fd: Fd,
    pub position: u64,
    pub len: u32,
}

impl Partitions {
    /// Makes the directory if it is missing. At most `open_max` files stay open that nothing uses.
    ///
    /// # Errors
    ///
    /// When it cannot be made or opened.
    pub fn open(path: &Path, open_max: usize) -> Result<Self, StartError> {
        let failed = |error: io::Error| StartError::PartitionsDir { path: path.to_owned(), error };
        fs::create_dir_all(path).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        Ok(Self {
            path: path.to_owned(),
            dir,
            open: Map::default(),
            by_use: BTreeMap::new(),
            uses: 0,
            open_max,
            removals: 0,
            lasting: BTreeSet::new(),
            evicted: 0,
        })
    }

    /// The file, if it is open.
    pub fn find(&mut self, file: FileName) -> Option<Fd> {
        let open = self.open.get_mut(&file)?;
        self.by_use.remove(&open.last_use);
        self.uses += 1;
        open.last_use = self.uses;
        self.by_use.insert(self.uses, file);
        Some(Rc::clone(&open.fd))
    }

    /// A file was opened for an operation that began when `removals` was as given. Returns what the operation shall
    /// use: another one may have opened it meanwhile.
    pub fn opened(&mut self, file: FileName, fd: Fd, removals: u64) -> Fd {
        if let Some(open) = self.find(file) {
            return open;
        }
        if removals != self.removals {
            return fd;
        }
        self.make_room();
        self.uses += 1;
        self.by_use.insert(self.uses, file);
        self.open.insert(file, Open { fd: Rc::clone(&fd), last_use: self.uses, unwritten: None });
        fd
    }

    fn make_room(&mut self) {
        while self.open.len() >= self.open_max {
            let unused = |file: &FileName| Rc::strong_count(&self.open[file].fd) == 1;
            let Some((&last_use, &file)) = self.by_use.iter().find(|(_, file)| unused(file)) else { return };
            self.by_use.remove(&last_use);
            self.open.remove(&file);
            self.evicted += 1;
        }
    }

    /// The name goes, or has gone.
    pub fn forget(&mut self, file: FileName) {
        self.removals += 1;
        if let Some(open) = self.open.remove(&file) {
            self.by_use.remove(&open.last_use);
        }
    }

    /// The folder goes, or has gone.
    pub fn forget_folder(&mut self, partition: PartitionId) {
        self.removals += 1;
        self.lasting.remove(&partition);
        let of_folder = |file: &FileName| match file {
            FileName::Segment(name) | FileName::Index(name) => name.partition == partition,
            FileName::Journal(_) | FileName::Checkpoint => false,
        };
        let gone: Vec<FileName> = self.open.keys().copied().filter(of_folder).collect();
        gone.into_iter().for_each(|file| self.forget(file));
    }

    /// So many bytes were written. Says what to write out, now and then.
    pub(super) fn written(&mut self, file: FileName, position: u64, len: u64) -> Option<WriteBack> {
        let open = self.open.get_mut(&file)?;
        let (start, end) = open.unwritten.unwrap_or((position, position));
        let (start, end) = (start.min(position), end.max(position + len));
        if end - start < WRITE_BACK_BYTES {
            open.unwritten = Some((start, end));
            return None;
        }
        open.unwritten = None;
        let len = u32::try_from(end - start).unwrap_or(u32::MAX);
        Some(WriteBack { fd: Rc::clone(&open.fd), position: start, len })
    }

    /// The file's bytes were written out.
    pub fn synced(&mut self, file: FileName) {
        if let Some(open) = self.open.get_mut(&file) {
            open.unwritten = None;
        }
    }

    /// The names in a folder, none if it is missing. Blocks.
    pub fn names(&self, partition: PartitionId) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.folder(partition)) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// The partition's files with their sizes; others in its folder are deleted. Blocks.
    pub fn list_folder(&self, partition: PartitionId) -> io::Result<Vec<(FileName, u64)>> {
        let folder = self.folder(partition);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            match name.to_str().and_then(|name| parse(partition, name)) {
                Some(file) => files.push((file, entry.metadata()?.len())),
                None if entry.file_type()?.is_dir() => {}
                None => fs::remove_file(entry.path())?,
            }
        }
        files.sort_unstable();
        Ok(files)
    }

    /// The partitions that have a folder. Blocks.
    pub fn list(&self) -> io::Result<Vec<PartitionId>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            found.extend(name.to_str().and_then(FolderName::parse).map(|folder| folder.0));
        }
        found.sort_unstable();
        Ok(found)
    }

    fn folder(&self, partition: PartitionId) -> PathBuf {
        self.path.join(FolderName(partition).to_string())
    }
}

fn parse(partition: PartitionId, name: &str) -> Option<FileName> {
    let (stem, suffix) = name.rsplit_once('.')?;
    let segment = SegmentName::parse(partition, stem)?;
    match suffix {
        "log" => Some(FileName::Segment(segment)),
        "index" => Some(FileName::Index(segment)),
        _ => None,
    }
}
