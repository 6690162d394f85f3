//! What makes the Raft log durable: records in a small file before the database, one write for each batch.
//!
//! Driver; the log thread. A record is durable when its write has returned, and the database takes what the records of a
//! round say in one transaction when the file is full. That transaction also says which round comes next, so a round is
//! over the moment the database has it. Opening gives what the records of the last round say.
//!
//! A record begins on a block; little endian:
//!
//! | bytes | |
//! |---|---|
//! | 0..4 | magic, `HWRJ` |
//! | 4..8 | CRC-32C of what follows, to the end of the changes |
//! | 8..24 | the disk id of the log |
//! | 24..32 | the round |
//! | 32..40 | number within the round, from 0 |
//! | 40..44 | bytes of changes |
//! | 44.. | changes, then zeros up to a block |
//!
//! A record that the power cut off ends the round. One with a later number behind it was whole once: that is damage, and
//! is refused.

use std::io;

use crc_fast::{CrcAlgorithm, checksum};
use redb::StorageBackend;

use super::super::types::DiskId;
use crate::store::direct::{BLOCK, Block};
use crate::store::error::Failure;
use crate::store::folder::Backend;

const MAGIC: &[u8; 4] = b"HWRJ";
const HEAD: usize = 44;

pub(super) struct Journal {
    file: Backend,
    len: usize,
    disk: DiskId,
    round: u64,
    /// Of the next record.
    number: u64,
    /// Where the next record goes.
    at: usize,
    record: Block,
    /// What the records of this round say, then what is about to be written.
    changes: Vec<u8>,
    /// Bytes of `changes` that the records say.
    recorded: usize,
}

struct Record<'a> {
    round: u64,
    number: u64,
    changes: &'a [u8],
}

fn crc(bytes: &[u8]) -> u32 {
    u32::try_from(checksum(CrcAlgorithm::Crc32Iscsi, bytes)).expect("it has 32 bits")
}

/// The record of this log that begins here, if one does.
fn record_at(bytes: &[u8], disk: DiskId) -> Option<Record<'_>> {
    let head = bytes.get(..HEAD)?;
    let u64_at = |at: usize| u64::from_le_bytes(*head[at..].first_chunk().expect("within the head"));
    let u32_at = |at: usize| u32::from_le_bytes(*head[at..].first_chunk().expect("within the head"));
    let is_ours = head.starts_with(MAGIC) && head[8..24] == disk.0.to_le_bytes();
    let end = HEAD.checked_add(usize::try_from(u32_at(40)).ok()?)?;
    let covered = bytes.get(8..end).filter(|_| is_ours)?;
    let changes = &bytes[HEAD..end];
    (crc(covered) == u32_at(4)).then(|| Record { round: u64_at(24), number: u64_at(32), changes })
}

/// Bytes that a record with so many bytes of changes takes in the file.
fn taken(changes: usize) -> usize {
    (HEAD + changes).next_multiple_of(BLOCK)
}

/// Makes the file of a new log, of so many bytes. Flushes of blocks that were never written would cost more: the file
/// system has to find them a place.
pub(super) fn make(file: &impl StorageBackend, bytes: u64) -> io::Result<()> {
    if file.len()? != bytes {
        file.set_len(bytes)?;
    }
    let len = usize::try_from(bytes).map_err(io::Error::other)?;
    file.write(0, Block::new(len).first(len))?;
    file.sync_data()
}

impl Journal {
    /// Opens the journal of a log whose database waits for this round. [`Self::changes`] is what its records say.
    pub fn open(file: Backend, disk: DiskId, round: u64) -> Result<Self, Failure> {
        let io = |error| Failure::Redb(redb::Error::Io(error));
        let len = usize::try_from(file.len().map_err(io)?).unwrap_or(0) / BLOCK * BLOCK;
        if len == 0 {
            return Err(Failure::Damaged("the journal beside it is missing".into()));
        }
        let mut bytes = vec![0; len];
        file.read(0, &mut bytes).map_err(io)?;
        let (mut at, mut number, mut changes) = (0, 0, Vec::new());
        while let Some(record) = bytes.get(at..).and_then(|bytes| record_at(bytes, disk))
            && (record.round, record.number) == (round, number)
        {
            changes.extend_from_slice(record.changes);
            at += taken(record.changes.len());
            number += 1;
        }
        let behind = (at..len).step_by(BLOCK).filter_map(|at| record_at(&bytes[at..], disk));
        let mut later = behind.filter(|record| record.round == round && record.number > number);
        if let Some(later) = later.next() {
            return Err(Failure::Damaged(format!(
                "record {number} of the journal beside it is unreadable, and {} was written after it",
                later.number
            )));
        }
        let recorded = changes.len();
        Ok(Self { file, len, disk, round, number, at, record: Block::new(len), changes, recorded })
    }

    pub fn round(&self) -> u64 {
        self.round
    }

    /// What the records of this round say and what was added since, in order.
    pub fn changes(&self) -> &[u8] {
        &self.changes
    }

    /// Where to add changes, to be written next. What was added before and not written is gone.
    pub fn begin(&mut self) -> &mut Vec<u8> {
        self.changes.truncate(self.recorded);
        &mut self.changes
    }

    /// Whether a record of what was added has room in this round.
    pub fn has_room(&self) -> bool {
        taken(self.changes.len() - self.recorded) <= self.len - self.at
    }

    /// Makes durable what was added. When this fails, nothing is known of it, and it can be added and written again.
    pub fn write(&mut self) -> io::Result<()> {
        let changes = &self.changes[self.recorded..];
        let len = taken(changes.len());
        let record = self.record.first(len);
        record[..4].copy_from_slice(MAGIC);
        record[8..24].copy_from_slice(&self.disk.0.to_le_bytes());
        record[24..32].copy_from_slice(&self.round.to_le_bytes());
        record[32..40].copy_from_slice(&self.number.to_le_bytes());
        let bytes = u32::try_from(changes.len()).expect("a record is smaller than its file");
        record[40..44].copy_from_slice(&bytes.to_le_bytes());
        let (covered, rest) = record.split_at_mut(HEAD + changes.len());
        covered[HEAD..].copy_from_slice(changes);
        rest.fill(0);
        let crc = crc(&covered[8..]);
        covered[4..8].copy_from_slice(&crc.to_le_bytes());
        self.file.write(self.at as u64, record)?;
        self.file.sync_data()?;
        self.recorded = self.changes.len();
        self.at += len;
        self.number += 1;
        Ok(())
    }

    /// The database has everything, and says so.
    pub fn begin_round(&mut self) {
        self.round += 1;
        (self.number, self.at, self.recorded) = (0, 0, 0);
        self.changes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::crash_disk::CrashDisk;

    const DISK: DiskId = DiskId(7);
    const BLOCKS: usize = 8;

    fn new() -> CrashDisk {
        let file = CrashDisk::holding(vec![0xee; BLOCKS * BLOCK]);
        make(&file, (BLOCKS * BLOCK) as u64).unwrap();
        file
    }

    fn open(file: &CrashDisk, round: u64) -> Result<Journal, String> {
        Journal::open(Backend(Box::new(file.clone())), DISK, round).map_err(|failure| format!("{failure:?}"))
    }

    fn append(journal: &mut Journal, changes: &[u8]) {
        journal.begin().extend_from_slice(changes);
        assert!(journal.has_room());
        journal.write().unwrap();
    }

    fn changes(file: &CrashDisk, round: u64) -> Vec<u8> {
        open(file, round).unwrap().changes().to_vec()
    }

    #[test]
    fn records_of_the_round_that_the_database_waits_for_are_given_back() {
        let file = new();
        let mut journal = open(&file, 0).unwrap();
        for some in [&b"one"[..], &[2; 5000], b"three"] {
            append(&mut journal, some);
        }
        let all = [&b"one"[..], &[2; 5000], b"three"].concat();
        assert_eq!(journal.changes(), all);
        assert_eq!(changes(&file, 0), all);
        assert_eq!(changes(&file, 1), b"", "the database has them");
        journal.begin_round();
        assert_eq!(journal.round(), 1);
        append(&mut journal, b"next");
        assert_eq!(changes(&file, 1), b"next");
        let mut again = open(&file, 1).unwrap();
        append(&mut again, b" one");
        assert_eq!(changes(&file, 1), b"next one");
    }

    #[test]
    fn a_record_has_room_or_is_not_begun() {
        let mut journal = open(&new(), 0).unwrap();
        let has_room = |journal: &mut Journal, len: usize| {
            journal.begin().extend(std::iter::repeat_n(1, len));
            journal.has_room()
        };
        assert!(has_room(&mut journal, BLOCKS * BLOCK - HEAD));
        assert!(!has_room(&mut journal, BLOCKS * BLOCK - HEAD + 1));
        append(&mut journal, &[1; BLOCK]);
        assert!(has_room(&mut journal, (BLOCKS - 2) * BLOCK - HEAD));
        assert!(!has_room(&mut journal, (BLOCKS - 2) * BLOCK - HEAD + 1));
    }

    #[test]
    fn a_record_that_is_cut_off_or_altered_anywhere_is_none_and_ends_the_round() {
        let file = new();
        let mut journal = open(&file, 0).unwrap();
        append(&mut journal, b"whole");
        append(&mut journal, &[9; 600]);
        let bytes = file.bytes();
        for at in (BLOCK..BLOCK + HEAD + 600).filter(|at| *at % 7 == 0 || *at < BLOCK + HEAD) {
            let mut altered = bytes.clone();
            altered[at] ^= 0x10;
            assert_eq!(changes(&CrashDisk::holding(altered), 0), b"whole", "{at}");
            let mut cut = bytes.clone();
            cut[at..2 * BLOCK].fill(0);
            assert_eq!(changes(&CrashDisk::holding(cut), 0), b"whole", "{at}");
        }
    }

    #[test]
    fn damage_before_another_record_is_refused() {
        let file = new();
        let mut journal = open(&file, 0).unwrap();
        for some in [b"one", b"two", b"sea"] {
            append(&mut journal, some);
        }
        for at in [3, 20, HEAD, BLOCK, BLOCK + HEAD + 2] {
            let mut bytes = file.bytes();
            bytes[at] ^= 1;
            let refused = open(&CrashDisk::holding(bytes), 0).err().expect("refused");
            assert!(refused.contains("was written after it"), "{at}: {refused}");
        }
        let missing = open(&CrashDisk::default(), 0).err().expect("refused");
        assert!(missing.contains("missing"), "{missing}");
    }

    #[test]
    fn the_journal_of_another_log_says_nothing() {
        let file = new();
        append(&mut open(&file, 0).unwrap(), b"of the disk before");
        let other = Journal::open(Backend(Box::new(file)), DiskId(8), 0).map_err(|_| "refused").unwrap();
        assert_eq!(other.changes(), b"");
    }
}
