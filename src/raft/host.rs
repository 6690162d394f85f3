//! What the group needs of the machine it runs on: a folder for its files, and somebody who waits for the disk.
//!
//! Driver. The simulator puts a disk and workers of its own in their place.

use std::any::Any;
use std::fmt::Debug;
use std::fs::{self, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use redb::backends::FileBackend;
use redb::{BackendError, Builder, Database, DatabaseError, StorageBackend};
use tokio::sync::oneshot;

pub use super::log::LogWriter;
use crate::store::ahead::{self, Ahead};

/// Between attempts on a full disk.
const SPACE_EVERY: Duration = Duration::from_millis(500);

/// The folder of the group. New, renamed and removed names are there after a crash once the folder was synced.
pub trait Folder: Debug + Send + Sync + 'static {
    /// For messages.
    fn path(&self) -> &Path;
    /// Opens a file for a database, or makes an empty one.
    fn backend(&self, name: &str) -> Result<Backend, DatabaseError>;
    /// Bytes of flushes that go one behind the other before the database's own file is flushed.
    fn round_bytes(&self) -> u64 {
        ahead::ROUND_BYTES
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

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }
}

/// Opens a database of the folder, or makes an empty one.
pub(super) fn database(
    folder: &dyn Folder,
    name: &str,
    builder: &Builder,
) -> Result<Database, DatabaseError> {
    let main = folder.backend(name)?;
    let records = folder.backend(&format!("{name}-ahead"))?;
    builder.create_with_backend(Ahead::open(main, records, folder.round_bytes())?)
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

/// Something that waits for the disk.
pub type Work = Box<dyn FnOnce() + Send>;

/// Those who wait for the disk, so that the control core does not.
pub trait Workers: 'static {
    /// Runs the writer of the log. What is returned waits for its end when it is dropped, which is after the
    /// writer's queue is closed.
    fn start_log(&self, writer: LogWriter) -> io::Result<Box<dyn Any>>;
    /// Runs something. Several may run at once.
    fn run(&self, work: Work);
}

/// Runs what waits for the disk elsewhere, and waits for what comes of it.
pub(super) async fn blocking<T: Send + 'static>(
    workers: &Rc<dyn Workers>,
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    // Who asked may have been dropped.
    workers.run(Box::new(move || drop(done.send(f()))));
    result.await.map_err(|_| io::Error::other("what waited for the disk has panicked"))?
}

/// As [`blocking`], again and again for as long as there is no space for it.
pub(super) async fn patiently<T: Send + 'static>(
    workers: &Rc<dyn Workers>,
    f: impl Fn() -> io::Result<T> + Clone + Send + 'static,
) -> io::Result<T> {
    let mut waits = false;
    loop {
        let result = blocking(workers, f.clone()).await;
        let full = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        };
        if !result.as_ref().is_err_and(full) {
            return result;
        }
        if !waits {
            tracing::warn!("no space left for a snapshot of the metadata: it waits until there is");
            waits = true;
        }
        tokio::time::sleep(SPACE_EVERY).await;
    }
}

/// A folder of the file system.
#[derive(Debug)]
pub(super) struct Directory(PathBuf);

impl Directory {
    /// The folder, which is made if it is not there.
    pub fn make(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        Ok(Self(path.to_owned()))
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

    fn backend(&self, name: &str) -> Result<Backend, DatabaseError> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(self.0.join(name))?;
        Ok(Backend(Box::new(FileBackend::new(file)?)))
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

/// A thread for the log, and those of the runtime for the rest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Threads;

impl Workers for Threads {
    fn start_log(&self, writer: LogWriter) -> io::Result<Box<dyn Any>> {
        let thread = std::thread::Builder::new().name("hw-raft-log".into()).spawn(move || writer.run())?;
        Ok(Box::new(LogThread(Some(thread))))
    }

    fn run(&self, work: Work) {
        drop(tokio::task::spawn_blocking(work));
    }
}

/// Waits for the thread when it is dropped.
struct LogThread(Option<std::thread::JoinHandle<()>>);

impl Drop for LogThread {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // A thread that panicked has ended too, and said why.
            let _ = thread.join();
        }
    }
}
