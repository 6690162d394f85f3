//! A database file whose flush is one write: what would be flushed all over the file goes, as one record, to the end of
//! a small file of records beside it, and is flushed there.
//!
//! Driver; the thread of the database. The pages themselves are written to the database's file as well and left to the
//! kernel. When the records have filled their file, the database's file is flushed once and the records begin anew.
//! Opening writes all records of the last round to the database again, which brings back what was flushed; of what was
//! not, some may be there and some not, as after any crash. The two files belong together.
//!
//! A record begins on a block and is `[magic u32][crc u32][round u64][number u64][bytes u64]`, then parts: `[offset
//! u64][length u64]` and as many bytes, or the new length of the file and [`SET_LEN`]. Little endian; CRC-32C of all
//! that follows it.

#![expect(clippy::disallowed_types, reason = "driver: the log thread writes while the control core reads")]

use std::io;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crc_fast::{CrcAlgorithm, checksum};
use redb::{BackendError, Database, DatabaseError, StorageBackend};

use super::folder::Folder;

const MAGIC: u32 = 0x4857_4131;
const BLOCK: usize = 4096;
const HEAD: usize = 32;
/// Instead of a part's length: the part says how long the file is.
const SET_LEN: u64 = u64::MAX;
/// Bytes of records before the database's file is flushed; opening reads as many.
pub const ROUND_BYTES: u64 = 16 * 1024 * 1024;

/// The file of records beside a database's file.
fn beside(name: &str) -> String {
    format!("{name}-ahead")
}

/// The file of a database that is being made.
fn unfinished(name: &str) -> String {
    format!("{name}.new")
}

/// Opens a database of the folder, or makes one. No other process may have it open.
///
/// A file of that name is always a whole database: it gets its name when it is one, and what is left of a making that
/// was cut short goes. Both names are durable before the first record is, without which the file may be anything.
///
/// # Errors
/// When a file cannot be read or written, or the database is damaged.
pub fn create(builder: &redb::Builder, folder: &dyn Folder, name: &str) -> Result<Database, DatabaseError> {
    let records = beside(name);
    if !folder.exists(name)? {
        let new = unfinished(name);
        folder.remove(&new)?;
        folder.remove(&records)?;
        drop(builder.create_with_backend(folder.backend(&new)?)?);
        folder.rename(&new, name)?;
    }
    let (main, records) = (folder.backend(name)?, folder.backend(&records)?);
    folder.sync()?;
    builder.create_with_backend(Ahead::open(main, records, folder.round_bytes())?)
}

/// The database's file and its records.
#[derive(Debug)]
pub struct Ahead<B> {
    main: B,
    records: B,
    round_bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The record in the making, with room for its head.
    record: Vec<u8>,
    round: u64,
    /// Of the next record.
    number: u64,
    /// Where the next record goes.
    at: u64,
    /// A write failed: what the files hold is only known after they are opened again.
    failed: bool,
}

impl State {
    /// Closes the record in the making.
    fn seal(&mut self) {
        let bytes = self.record.len() - HEAD;
        self.record.resize(self.record.len().next_multiple_of(BLOCK), 0);
        self.record[..4].copy_from_slice(&MAGIC.to_le_bytes());
        for (at, value) in [(8, self.round), (16, self.number), (24, bytes as u64)] {
            self.record[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let crc = crc(&self.record[8..HEAD + bytes]);
        self.record[4..8].copy_from_slice(&crc.to_le_bytes());
        self.number += 1;
    }

    fn put(&mut self, first: u64, second: u64, bytes: &[u8]) {
        self.record.extend_from_slice(&first.to_le_bytes());
        self.record.extend_from_slice(&second.to_le_bytes());
        self.record.extend_from_slice(bytes);
    }

    fn clear(&mut self) {
        self.record.clear();
        self.record.resize(HEAD, 0);
    }
}

fn crc(bytes: &[u8]) -> u32 {
    u32::try_from(checksum(CrcAlgorithm::Crc32Iscsi, bytes)).expect("it has 32 bits")
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The round, number and parts of the record that begins here, if one does.
fn record_at(bytes: &[u8]) -> Option<(u64, u64, &[u8])> {
    let is_one = bytes.first_chunk() == Some(&MAGIC.to_le_bytes());
    let (round, number) = (u64_at(bytes, 8)?, u64_at(bytes, 16)?);
    let end = usize::try_from(u64_at(bytes, 24)?).ok()?.checked_add(HEAD)?;
    let covered = bytes.get(8..end).filter(|_| is_one)?;
    (crc(covered).to_le_bytes() == bytes[4..8]).then_some((round, number, &bytes[HEAD..end]))
}

impl<B: StorageBackend> Ahead<B> {
    /// Brings back what was flushed.
    fn open(main: B, records: B, round_bytes: u64) -> io::Result<Self> {
        let round_bytes = round_bytes.next_multiple_of(BLOCK as u64);
        let mut bytes = vec![0; usize::try_from(records.len()?.min(round_bytes)).expect("a round fits")];
        records.read(0, &mut bytes)?;
        // Of a file that was never flushed not even its length is there, and all of it is in the records.
        replay(&bytes, &main)?;
        main.sync_data()?;
        let rounds =
            bytes.chunks(BLOCK).enumerate().filter(|(_, block)| block.starts_with(&MAGIC.to_le_bytes()));
        // Whatever lies there from earlier rounds must not look like one of the next.
        let last = rounds.filter_map(|(_, block)| u64_at(block, 8)).max().unwrap_or(0);
        if records.len()? < round_bytes {
            // A flush of blocks that were never written costs more: the file system has to find them a place.
            records.set_len(round_bytes)?;
            let zeros = vec![0; 1024 * 1024];
            for at in (0..round_bytes).step_by(zeros.len()) {
                let len = zeros.len().min(usize::try_from(round_bytes - at).expect("a round fits"));
                records.write(at, &zeros[..len])?;
            }
        }
        let state = State { record: vec![0; HEAD], round: last, number: 0, at: 0, failed: false };
        let ahead = Self { main, records, round_bytes, state: Mutex::new(state) };
        ahead.begin_round(&mut ahead.lock())?;
        Ok(ahead)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything is durable in the database's file: what the records say is over.
    fn begin_round(&self, state: &mut State) -> io::Result<()> {
        // A number that no process can have reached makes rounds that were cut off unlike this one.
        state.round = state.round.wrapping_add(1);
        (state.number, state.at) = (0, 0);
        state.clear();
        self.append(state)
    }

    fn append(&self, state: &mut State) -> io::Result<()> {
        state.seal();
        self.records.write(state.at, &state.record)?;
        self.records.sync_data()?;
        state.at += state.record.len() as u64;
        state.clear();
        Ok(())
    }

    fn flush(&self, state: &mut State) -> io::Result<()> {
        if state.record.len() == HEAD {
            return Ok(());
        }
        if state.at + state.record.len().next_multiple_of(BLOCK) as u64 > self.round_bytes {
            self.main.sync_data()?;
            return self.begin_round(state);
        }
        self.append(state)
    }
}

/// Writes what the records of one round say.
fn replay(bytes: &[u8], main: &impl StorageBackend) -> io::Result<()> {
    let (mut at, mut next) = (0, None);
    while let Some((round, number, mut parts)) = record_at(&bytes[at..]) {
        if (round, number) != next.unwrap_or((round, 0)) {
            break;
        }
        at += (HEAD + parts.len()).next_multiple_of(BLOCK);
        next = Some((round, number + 1));
        while let (Some(first), Some(second)) = (u64_at(parts, 0), u64_at(parts, 8)) {
            parts = &parts[16..];
            if second == SET_LEN {
                main.set_len(first)?;
                continue;
            }
            let cut = || io::Error::new(io::ErrorKind::InvalidData, "a record of the database is cut off");
            let len = usize::try_from(second).map_err(|_| cut())?;
            let (data, rest) = parts.split_at_checked(len).ok_or_else(cut)?;
            main.write(first, data)?;
            parts = rest;
        }
        if at >= bytes.len() {
            break;
        }
    }
    Ok(())
}

impl<B: StorageBackend> StorageBackend for Ahead<B> {
    fn len(&self) -> io::Result<u64> {
        self.main.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.main.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.lock();
        self.main.set_len(len)?;
        state.put(len, SET_LEN, &[]);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.lock();
        if state.failed {
            return Err(io::Error::other("an earlier flush failed: the database has to be opened again"));
        }
        let flushed = self.flush(&mut state);
        state.failed = flushed.is_err();
        flushed
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        self.main.write(offset, data)?;
        state.put(offset, data.len() as u64, data);
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.main.close()?;
        self.records.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.main.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.main.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.main.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.main.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.main.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.main.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests;
