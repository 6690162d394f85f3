//! A folder with files: what databases and snapshots need of the file system.
//!
//! Driver. The simulator puts a disk of its own in its place.

use std::fmt::Debug;
use std::fs::{self, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend};

use super::ahead;
use super::direct::DirectFile;

/// What the database takes at once when its journal is full holds it up for a few milliseconds.
const JOURNAL_BYTES: u64 = 512 * 1024;

/// A folder. New, renamed and removed names are there after a crash once the folder was synced.
pub trait Folder: Debug + Send + Sync + 'static {
    /// For messages.
    fn path(&self) -> &Path;
    fn exists(&self, name: &str) -> io::Result<bool>;
    /// Opens a file for a database, or makes an empty one.
    fn backend(&self, name: &str) -> Result<Backend, DatabaseError>;
    /// Opens a file, or makes an empty one, of which every write is durable when it returns. Offsets, lengths and
    /// addresses of what is written are multiples of 4 KiB.
    fn direct(&self, name: &str) -> io::Result<Backend>;
    /// Bytes of flushes that go one behind the other before the database's own file is flushed.
    fn round_bytes(&self) -> u64 {
        ahead::ROUND_BYTES
    }
    /// Bytes of a new journal.
    fn journal_bytes(&self) -> u64 {
        JOURNAL_BYTES
    }
    /// Opens a file to read; `None` when there is none of that name.
    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn File>>>;
    /// A new file; one of that name goes, and stays readable for who has it open.
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>>;
    /// Removes a file if there is one.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Puts a file in the place of another, which stays readable for who has it open.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
}

/// A file in the folder.
pub trait File: Debug + Send + Sync + 'static {
    /// In bytes.
    fn size(&self) -> io::Result<u64>;
    /// Fills `bytes` with what stands at `offset`.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
}

/// A file of a database.
#[derive(Debug)]
pub struct Backend(pub Box<dyn StorageBackend>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}

/// A folder of the file system.
#[derive(Clone, Debug)]
pub(crate) struct Directory(PathBuf);

impl Directory {
    /// A folder that is there.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The folder, which is made if it is not there.
    pub fn make(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        Ok(Self::at(path))
    }

    /// Makes the folder's own name durable.
    pub fn sync_parent(&self) -> io::Result<()> {
        self.0.parent().map_or(Ok(()), |parent| fs::File::open(parent)?.sync_all())
    }
}

impl Folder for Directory {
    fn path(&self) -> &Path {
        &self.0
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.0.join(name).try_exists()
    }

    fn backend(&self, name: &str) -> Result<Backend, DatabaseError> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(self.0.join(name))?;
        Ok(Backend(Box::new(FileBackend::new(file)?)))
    }

    fn direct(&self, name: &str) -> io::Result<Backend> {
        Ok(Backend(Box::new(DirectFile::open(&self.0.join(name))?)))
    }

    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn File>>> {
        match fs::File::open(self.0.join(name)) {
            Ok(file) => Ok(Some(Arc::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.remove(name)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(self.0.join(name))?;
        Ok(Arc::new(file))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.0.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.0.join(from), self.0.join(to))
    }

    fn sync(&self) -> io::Result<()> {
        fs::File::open(&self.0)?.sync_all()
    }
}

impl File for fs::File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }
}
