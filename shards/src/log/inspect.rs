//! What a tool may know of the journal's files that stays inside otherwise. Floor 1, pure.
//!
//! The chunks and entries are not here: who wants them gives the files to a [`super::journal::Journal`] and is told
//! what recovery finds, by the very rules of a start.

use super::chunk::{BadFileHeader, FILE_MAGIC, FileHeader};
use super::disk::FileNo;
use crate::ids::ShardId;

/// The first bytes of a journal file in which something was written.
pub const JOURNAL_MAGIC: [u8; 4] = FILE_MAGIC.to_be_bytes();

/// What a journal file says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JournalFile {
    pub shard: ShardId,
    /// Drawn once when the journal was begun.
    pub journal: u64,
    /// Another one than that of its name in a file that was given a new number and not written to since: what it holds
    /// is left over.
    pub file: FileNo,
    /// Files before it were not needed any more when this one was begun.
    pub oldest: FileNo,
    /// Sequence of the file's first chunk.
    pub first: u64,
}

/// Why a sector is not the first one of a journal file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadJournalFile {
    #[error("nothing was written to the file yet")]
    Empty,
    #[error("the header is damaged, or none of a journal file")]
    Damaged,
    #[error(
        "written in format {0}, which this release does not read; use the release that wrote it or a newer one"
    )]
    Version(u32),
}

impl JournalFile {
    /// Reads the file's first sector.
    pub fn parse(sector: &[u8]) -> Result<Self, BadJournalFile> {
        if sector.iter().all(|&byte| byte == 0) {
            return Err(BadJournalFile::Empty);
        }
        match FileHeader::parse(sector) {
            Ok(FileHeader { shard, journal, file, oldest, first, .. }) => {
                Ok(Self { shard, journal, file, oldest, first })
            }
            Err(BadFileHeader::Damaged) => Err(BadJournalFile::Damaged),
            Err(BadFileHeader::Version(version)) => Err(BadJournalFile::Version(version)),
        }
    }
}
