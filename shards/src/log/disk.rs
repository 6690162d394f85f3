//! Disk as data: what the log asks of a driver and what the driver tells it.
//!
//! Floor 1, pure. Operations of one shard may complete in any order; the log orders what must be ordered by
//! waiting for the event before it gives the next operation.

use std::fmt;

use bytes::Bytes;

/// Direct I/O: positions and lengths in a journal file are multiples of this, in bytes.
pub const SECTOR: usize = 4096;

/// A file of the shard's journal, by its number in the journal's sequence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileNo(pub u64);

impl fmt::Display for FileNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.journal", self.0)
    }
}

impl FileNo {
    /// Reads a file name as [`fmt::Display`] writes it.
    pub fn parse(name: &str) -> Option<Self> {
        let digits = name.strip_suffix(".journal")?;
        let well_formed =
            digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !well_formed {
            return None;
        }
        u64::from_str_radix(digits, 16).ok().map(Self)
    }
}

/// Chosen by the log for each operation; comes back with its event.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OpNo(pub u64);

/// What the log asks for. Each is answered by exactly one event with the same number.
#[derive(Clone, Debug)]
pub enum DiskOp {
    /// The journal's files, by number, with their sizes. Half-prepared files (another suffix) are deleted.
    List { op: OpNo },
    /// A new file of `size` bytes, all zeros, with its blocks allocated and written once; when the event comes, the
    /// file and its name are durable. It takes the place of a file of that number, if there is one, all at once. It is zeroed piece by piece, so that other operations pass in between.
    Prepare { op: OpNo, file: FileNo, size: u64 },
    /// Writes `parts` one after the other from `position` on. They lie one after the other in memory too, from an
    /// address that is a multiple of [`SECTOR`], and their lengths sum to a multiple of it.
    ///
    /// With `sync`, the event says that *these* bytes are durable (not those of earlier writes).
    Write { op: OpNo, file: FileNo, position: u64, parts: Vec<Bytes>, sync: bool },
    /// Makes every write to `file` durable whose event came before this was asked for.
    Sync { op: OpNo, file: FileNo },
    /// Reads `len` bytes from `position` on; fewer only at the end of the file. No alignment is asked of the caller.
    Read { op: OpNo, file: FileNo, position: u64, len: u32 },
}

/// What became of a [`DiskOp`].
#[derive(Clone, Debug)]
pub enum DiskEvent {
    Listed { op: OpNo, result: Result<Vec<(FileNo, u64)>, DiskError> },
    Prepared { op: OpNo, result: Result<(), DiskError> },
    Written { op: OpNo, result: Result<(), DiskError> },
    Synced { op: OpNo, result: Result<(), DiskError> },
    Read { op: OpNo, result: Result<Bytes, DiskError> },
}

/// The environment broke. After a failed write or sync nothing is known of the file's unsynced bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    #[error("no space left on the device, or over quota")]
    NoSpace,
    #[error("I/O error (errno {0})")]
    Io(i32),
}
