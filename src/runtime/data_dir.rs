//! The data directory: made if it is missing, and held by one process at a time.
//!
//! Driver; used once at start.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use highwater_shards::ids::ShardId;
use rustix::fs::{FlockOperation, flock};

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataDirError {
    #[error("the data directory {} is in use by process {pid}: stop it, or choose another `storage.data_dir`", path.display())]
    InUse { path: PathBuf, pid: String },
    #[error("the data directory {} cannot be used: {error}; it has to be a writable directory", path.display())]
    Unusable { path: PathBuf, error: io::Error },
}

/// Holds the directory as long as it lives; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// # Errors
    /// When another process holds it, or it cannot be made or written.
    pub fn hold(path: &Path) -> Result<Self, DataDirError> {
        let unusable = |error| DataDirError::Unusable { path: path.to_owned(), error };
        std::fs::create_dir_all(path).map_err(unusable)?;
        let name = path.join("LOCK");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(name)
            .map_err(unusable)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                // The number is a courtesy: without it the message still says what to do.
                let _ = lock.read_to_string(&mut pid);
                let pid = pid.trim().to_owned();
                return Err(DataDirError::InUse { path: path.to_owned(), pid });
            }
            Err(error) => return Err(unusable(error.into())),
        }
        lock.set_len(0).map_err(unusable)?;
        write!(lock, "{}", std::process::id()).map_err(unusable)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name of a shard's own folder.
    pub fn journal_name(shard: ShardId) -> String {
        format!("journal-{shard}")
    }

    pub fn journal_of(&self, shard: ShardId) -> PathBuf {
        self.path.join(Self::journal_name(shard))
    }

    /// How many shards the directory was written with: one more than the highest of their folders.
    pub fn journals(&self) -> io::Result<u16> {
        let mut count = 0;
        for entry in std::fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("journal-"));
            if let Some(number) = number.and_then(|number| number.parse::<u16>().ok()) {
                count = count.max(number + 1);
            }
        }
        Ok(count)
    }

    /// Whether there are logs of partitions in it.
    pub fn has_logs(&self) -> io::Result<bool> {
        match std::fs::read_dir(self.partitions()) {
            Ok(mut entries) => Ok(entries.next().is_some()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The folder of all partitions' folders.
    pub fn partitions(&self) -> PathBuf {
        self.path.join("partitions")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_held_once_and_free_again_when_let_go() {
        let path = std::env::temp_dir().join(format!("highwater-data-dir-{}", std::process::id()));
        let held = DataDir::hold(&path).unwrap();
        let second = DataDir::hold(&path);
        let pid = std::process::id().to_string();
        assert!(matches!(&second, Err(DataDirError::InUse { pid: p, .. }) if *p == pid), "{second:?}");
        drop(held);
        DataDir::hold(&path).unwrap();
        std::fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn a_file_in_its_place_is_refused() {
        let path = std::env::temp_dir().join(format!("highwater-no-dir-{}", std::process::id()));
        std::fs::write(&path, "x").unwrap();
        assert!(matches!(DataDir::hold(&path), Err(DataDirError::Unusable { .. })));
        std::fs::remove_file(&path).unwrap();
    }
}
