//! Disk as data: what the log asks of a driver and what the driver tells it.
//!
//! Floor 1, pure. Operations of one shard may complete in any order; the log orders what must be ordered by
//! waiting for the event before it gives the next operation.
//!
//! A shard has two places on disk. Its own folder holds its journal files, which are written ahead of time and go
//! through direct I/O in whole sectors, and its checkpoint. The node's `partitions` folder, shared by all shards, holds
//! a folder for each partition with its segments and their indexes, which grow by buffered writes of any length:
//!
//! ```text
//! journal-<shard>/0000000000000001.journal
//! journal-<shard>/checkpoint
//! partitions/<topic id>-<partition index>/<base offset>-<generation>.log
//! partitions/<topic id>-<partition index>/<base offset>-<generation>.index
//! ```

use std::fmt;

use bytes::Bytes;

use crate::ids::{Offset, PartitionId, PartitionIndex, TopicId};

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

/// A segment of one partition: which batches it holds, and how often they were compacted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SegmentName {
    pub partition: PartitionId,
    /// The offset from which on it may hold records.
    pub base: Offset,
    /// 0 as the log was written; each compaction writes the next one.
    pub generation: u32,
}

impl SegmentName {
    /// Reads what stands in a file name before its suffix, as [`fmt::Display`] writes it.
    pub fn parse(partition: PartitionId, stem: &str) -> Option<Self> {
        let (base, generation) = stem.split_once('-')?;
        let is_number = |s: &str, digits: usize| s.len() == digits && s.bytes().all(|b| b.is_ascii_digit());
        if !is_number(base, 20) || !is_number(generation, 6) {
            return None;
        }
        Some(Self { partition, base: Offset(base.parse().ok()?), generation: generation.parse().ok()? })
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:020}-{:06}", self.base.0, self.generation)
    }
}

/// The name of a partition's folder.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FolderName(pub PartitionId);

impl FolderName {
    /// Reads a folder's name as [`fmt::Display`] writes it.
    pub fn parse(name: &str) -> Option<Self> {
        let (topic, index) = name.rsplit_once('-')?;
        let index = index.parse().ok()?;
        let groups: Vec<&str> = topic.split('-').collect();
        let lens: Vec<usize> = groups.iter().map(|g| g.len()).collect();
        if lens != [8, 4, 4, 4, 12] {
            return None;
        }
        let topic = TopicId(u128::from_str_radix(&groups.concat(), 16).ok()?);
        let folder = Self(PartitionId { topic, index: PartitionIndex(index) });
        (folder.to_string() == name).then_some(folder)
    }
}

impl fmt::Display for FolderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.topic, self.0.index)
    }
}

/// Any file of the log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FileName {
    Journal(FileNo),
    /// The shard's checkpoint: replaced as a whole.
    Checkpoint,
    Segment(SegmentName),
    Index(SegmentName),
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Journal(file) => write!(f, "{file}"),
            Self::Checkpoint => f.write_str("checkpoint"),
            Self::Segment(name) => write!(f, "{}/{name}.log", FolderName(name.partition)),
            Self::Index(name) => write!(f, "{}/{name}.index", FolderName(name.partition)),
        }
    }
}

/// Chosen by the log for each operation; comes back with its event.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OpNo(pub u64);

/// What the log asks for. Each is answered by exactly one event with the same number.
#[derive(Clone, Debug)]
pub enum DiskOp {
    /// The journal's files, by number, with their sizes. Half-made files (another suffix) are deleted.
    List { op: OpNo },
    /// A new journal file of `size` bytes, all zeros, with its blocks allocated and written once; when the event comes,
    /// the file and its name are durable. It takes the place of a file of that number, if there is one, all at once. It
    /// is zeroed piece by piece, so that other operations pass in between.
    Prepare { op: OpNo, file: FileNo, size: u64 },
    /// Gives a journal file that is no longer needed the next number, with the bytes that it holds. When the event
    /// ([`DiskEvent::Prepared`]) comes, the new name is durable. There is no file of the new number.
    Recycle { op: OpNo, from: FileNo, to: FileNo },
    /// Writes `parts` one after the other into a journal file from `position` on. They lie one after the other in
    /// memory too, from an address that is a multiple of [`SECTOR`], and their lengths sum to a multiple of it.
    ///
    /// With `sync`, the event says that *these* bytes are durable (not those of earlier writes).
    Write { op: OpNo, file: FileNo, position: u64, parts: Vec<Bytes>, sync: bool },
    /// Writes `parts` one after the other into a segment or an index from `position` on, through the page cache;
    /// nothing is asked of their addresses and lengths, and there are at most [`PUT_PARTS_MAX`]. A file that is missing
    /// is made, and so is its folder. Neither its bytes nor its name are durable when the event
    /// ([`DiskEvent::Written`]) comes. A position behind the file's end leaves zeros in between.
    Put { op: OpNo, file: FileName, position: u64, parts: Vec<Bytes> },
    /// Makes every write to `file` durable whose event came before this was asked for; of a file that grew, its length
    /// too, but not its name.
    Sync { op: OpNo, file: FileName },
    /// Makes durable which files the partition's folder has, and that there is this folder.
    SyncFolder { op: OpNo, partition: PartitionId },
    /// Reads `len` bytes from `position` on; fewer only at the end of the file. No alignment is asked of the caller.
    Read { op: OpNo, file: FileName, position: u64, len: u32 },
    /// Puts a file with these bytes in the place of the checkpoint, all at once; durable when the event comes
    /// ([`DiskEvent::Done`]).
    Replace { op: OpNo, file: FileName, parts: Vec<Bytes> },
    /// The whole content of a file that was written by `Replace`; `None` if there is none.
    Load { op: OpNo, file: FileName },
    /// Shortens a segment or an index to `len` bytes; answered by [`DiskEvent::Done`]. One that is missing or shorter
    /// stays as it is.
    Cut { op: OpNo, file: FileName, len: u64 },
    /// Deletes a file; it is no error if it is missing. Whether it comes back after a crash is open until the folder is
    /// synced. Operations on it that are under way go on. Answered by [`DiskEvent::Done`].
    Remove { op: OpNo, file: FileName },
    /// Deletes a partition's folder with all that is in it; like `Remove`.
    RemoveFolder { op: OpNo, partition: PartitionId },
    /// The partition's segments and indexes with their sizes, none if it has no folder. Files of other names are
    /// deleted.
    ListFolder { op: OpNo, partition: PartitionId },
    /// The partitions that have a folder, of all shards of the node.
    ListFolders { op: OpNo },
}

/// Parts of one [`DiskOp::Put`]: what one vectored write takes.
pub const PUT_PARTS_MAX: usize = 1024;

/// What became of a [`DiskOp`].
#[derive(Clone, Debug)]
pub enum DiskEvent {
    Listed { op: OpNo, result: Result<Vec<(FileNo, u64)>, DiskError> },
    Prepared { op: OpNo, result: Result<(), DiskError> },
    Written { op: OpNo, result: Result<(), DiskError> },
    Synced { op: OpNo, result: Result<(), DiskError> },
    Read { op: OpNo, result: Result<Bytes, DiskError> },
    Loaded { op: OpNo, result: Result<Option<Bytes>, DiskError> },
    Done { op: OpNo, result: Result<(), DiskError> },
    FolderListed { op: OpNo, result: Result<Vec<(FileName, u64)>, DiskError> },
    FoldersListed { op: OpNo, result: Result<Vec<PartitionId>, DiskError> },
}

impl DiskEvent {
    pub fn op(&self) -> OpNo {
        match self {
            Self::Listed { op, .. }
            | Self::Prepared { op, .. }
            | Self::Written { op, .. }
            | Self::Synced { op, .. }
            | Self::Read { op, .. }
            | Self::Loaded { op, .. }
            | Self::Done { op, .. }
            | Self::FolderListed { op, .. }
            | Self::FoldersListed { op, .. } => *op,
        }
    }
}

/// The environment broke. After a failed write or sync nothing is known of the file's unsynced bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    #[error("no space left on the device, or over quota")]
    NoSpace,
    #[error("there is no such file")]
    Missing,
    #[error("I/O error (errno {0})")]
    Io(i32),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let partition = PartitionId { topic: TopicId(0xdead << 90 | 7), index: PartitionIndex(12) };
        let folder = FolderName(partition);
        assert_eq!(FolderName::parse(&folder.to_string()), Some(folder));
        assert_eq!(FolderName::parse("x"), None);
        assert_eq!(FolderName::parse(&format!("{folder}0x")), None);
        assert_eq!(FolderName::parse(&folder.to_string().replace("-12", "-012")), None);
        let name = SegmentName { partition, base: Offset(77), generation: 3 };
        assert_eq!(name.to_string(), "00000000000000000077-000003");
        assert_eq!(SegmentName::parse(partition, &name.to_string()), Some(name));
        assert_eq!(SegmentName::parse(partition, "77-3"), None);
        assert_eq!(FileNo::parse(&FileNo(0xab).to_string()), Some(FileNo(0xab)));
    }
}
