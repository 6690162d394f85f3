//! The tables of the Raft log, and what is done to them. A batch of changes goes to the [`Journal`] first, which makes it
//! durable; the tables take the journal's changes in one transaction when it is full, and at the end.
//!
//! | table | key | value |
//! |---|---|---|
//! | `format` | () | the version of this layout |
//! | `marks` | `disk`, `vote`, `committed`, `purged` | an envelope |
//! | `marks` | `round` | the round of the journal that is not in the tables, u64 little endian |
//! | `entries` | index | an envelope with the term and the payload |
//!
//! In the journal a change is `[what u8][index u64][length u32]`, little endian, and as many bytes: what then stands in the
//! table. Changes can be made twice, as long as their order is kept.
//!
//! Every commit is flushed before it returns. Opening checks the checksum of every page. The log thread writes, the
//! control core reads entries that are no longer in memory; redb lets both go on at once.

#![expect(
    clippy::disallowed_types,
    reason = "driver: two threads hold the database, only to open it again is it taken away"
)]

use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::types::{DiskId, LogEntry, LogId, Payload, TypeConfig, Vote};
use super::journal::{self, Journal};
use crate::control::metadata::envelope::{self, Schema};
use crate::store::error::{Failure, StoreError};
use crate::store::folder::Backend;

/// Format 1 had no journal.
const FORMAT: u32 = 2;
const FORMAT_TABLE: TableDefinition<'_, (), u32> = TableDefinition::new("format");
const MARKS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("marks");
const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");

const DISK: Schema = Schema { name: "disk id", kind: 16, schema: 1 };
const VOTE: Schema = Schema { name: "vote", kind: 17, schema: 1 };
const LOG_ID: Schema = Schema { name: "place in the metadata log", kind: 18, schema: 1 };
const ENTRY: Schema = Schema { name: "entry of the metadata log", kind: 19, schema: 1 };

/// What was appended last is in memory anyway.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// How a database is opened; tests put a disk of their own in place of the file.
pub type Opener = Box<dyn FnMut(&redb::Builder) -> Result<Database, redb::DatabaseError> + Send>;

/// Where a log lies.
pub struct Place {
    /// For messages.
    pub file: PathBuf,
    pub opener: Opener,
    pub journal: Backend,
    /// Of a new journal.
    pub journal_bytes: u64,
}

type EntryPayload = openraft::type_config::alias::PayloadOf<TypeConfig>;

#[derive(Serialize)]
struct StoredRef<'a> {
    term: u64,
    payload: &'a EntryPayload,
}

#[derive(Deserialize)]
struct Stored {
    term: u64,
    payload: EntryPayload,
}

const ROUND: &str = "round";
/// Before the bytes of a change in the journal.
const CHANGE_HEAD: usize = 13;

/// One change of the log. A batch of them is durable as a whole, or not at all.
#[derive(Debug)]
pub(super) enum Op<'a> {
    Append(&'a [LogEntry]),
    /// Everything from this index on.
    TruncateFrom(u64),
    /// Everything up to this one.
    Purge(LogId),
    Vote(Vote),
    Committed(Option<LogId>),
}

/// What a log holds besides its entries.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    pub disk: DiskId,
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    /// Entries up to this one are gone.
    pub purged: Option<LogId>,
    /// The first entry's index, or that of the next one when there is none.
    pub first: u64,
    /// The last entry, or the last purged one.
    pub last: Option<LogId>,
}

pub(super) struct Db {
    pub file: PathBuf,
    opener: Mutex<Opener>,
    /// Absent while it is opened again after a failed write, and when it is closed.
    database: RwLock<Option<Database>>,
    /// The log thread's; absent when the log is closed.
    journal: Mutex<Option<Journal>>,
    closed: AtomicBool,
}

/// Where a batch is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum In {
    Journal,
    /// And everything before it too.
    Database,
}

impl Db {
    /// Opens the log, or makes one for `disk`.
    pub fn open(place: Place, disk: DiskId) -> Result<(Arc<Self>, Marks), StoreError> {
        let Place { file, mut opener, journal, journal_bytes } = place;
        let at = |failure: Failure| failure.at(&file);
        let database = open(&mut opener).map_err(at)?;
        let is_new = match format_of(&database).map_err(at)? {
            Some(FORMAT) => false,
            Some(found) => {
                return Err(StoreError::Format { file, found, known: FORMAT });
            }
            None => true,
        };
        if is_new {
            // The journal's file is there before the database asks for it.
            journal::make(&journal, journal_bytes)
                .map_err(|error| at(Failure::Redb(redb::Error::Io(error))))?;
            found_new(&database, disk).map_err(at)?;
        }
        let (disk, round) = read_owner(&database).map_err(at)?;
        let mut journal = Journal::open(journal, disk, round).map_err(at)?;
        if !journal.changes().is_empty() {
            store(&database, journal.changes(), round + 1).map_err(at)?;
            journal.begin_round();
        }
        let marks = read_marks(&database, disk).map_err(at)?;
        let db = Self {
            file,
            opener: Mutex::new(opener),
            database: RwLock::new(Some(database)),
            journal: Mutex::new(Some(journal)),
            closed: AtomicBool::new(false),
        };
        Ok((Arc::new(db), marks))
    }

    /// Calls `f` unless the database is being opened again.
    fn with<T>(&self, f: impl FnOnce(&Database) -> T) -> Option<T> {
        let database = self.database.try_read().ok()?;
        database.as_ref().map(f)
    }

    fn required<T>(&self, f: impl FnOnce(&Database) -> Result<T, Failure>) -> Result<T, Failure> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        f(database
            .as_ref()
            .expect("only the log thread takes it away, and it puts one back before it goes on"))
    }

    /// Makes all of it durable, in this order, or none.
    pub fn write<'a>(&self, ops: impl Iterator<Item = Op<'a>>) -> Result<In, Failure> {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let journal = journal.as_mut().ok_or_else(|| Failure::Damaged("it is closed".into()))?;
        let changes = journal.begin();
        ops.for_each(|op| op.encode(changes));
        if journal.has_room() {
            journal.write().map_err(|error| Failure::Redb(redb::Error::Io(error)))?;
            return Ok(In::Journal);
        }
        self.required(|database| store(database, journal.changes(), journal.round() + 1))?;
        journal.begin_round();
        Ok(In::Database)
    }

    /// Closes and opens it, which also ends the state that a failed write leaves it in. When this fails, do it again
    /// before anything is written.
    pub fn reopen(&self) -> Result<(), Failure> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        *database = None;
        let mut opener = self.opener.lock().unwrap_or_else(PoisonError::into_inner);
        *database = Some(open(&mut opener)?);
        Ok(())
    }

    /// Lets go of the files, which the next start reads from where they are. Nothing is written or read after that.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        *self.journal.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Entries of the range, as many as take `bytes_max` and at least one; `None` while it is being opened again.
    ///
    /// # Errors
    /// When one is missing or damaged, or the log is closed.
    pub fn read(&self, range: Range<u64>, bytes_max: usize) -> Option<Result<Vec<LogEntry>, StoreError>> {
        let Some(found) = self.with(|database| read(database, range, bytes_max)) else {
            let reason = || "the metadata log is closed".to_owned();
            let closed = self.closed.load(Ordering::Acquire);
            return closed.then(|| Err(StoreError::Io { file: self.file.clone(), reason: reason() }));
        };
        Some(found.map_err(|failure| failure.at(&self.file)))
    }
}

fn open(opener: &mut Opener) -> Result<Database, Failure> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    Ok(opener(&builder)?)
}

fn format_of(database: &Database) -> Result<Option<u32>, Failure> {
    let txn = database.begin_read()?;
    match txn.open_table(FORMAT_TABLE) {
        Ok(table) => Ok(table.get(())?.map(|version| version.value())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn found_new(database: &Database, disk: DiskId) -> Result<(), Failure> {
    let txn = database.begin_write()?;
    txn.open_table(FORMAT_TABLE)?.insert((), FORMAT)?;
    {
        let mut marks = txn.open_table(MARKS)?;
        marks.insert("disk", &*envelope::seal(DISK, &disk))?;
        marks.insert(ROUND, &0u64.to_le_bytes()[..])?;
    }
    txn.open_table(ENTRIES)?;
    Ok(txn.commit()?)
}

/// Whose log it is, and which round of the journal is not in the tables.
fn read_owner(database: &Database) -> Result<(DiskId, u64), Failure> {
    let marks = database.begin_read()?.open_table(MARKS)?;
    let disk = mark(&marks, "disk", DISK)?.ok_or_else(|| Failure::Damaged("it has no disk id".into()))?;
    let round = marks.get(ROUND)?.and_then(|bytes| Some(u64::from_le_bytes(*bytes.value().first_chunk()?)));
    Ok((disk, round.ok_or_else(|| Failure::Damaged("it does not say how far its journal is".into()))?))
}

fn mark<T: DeserializeOwned>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
    schema: Schema,
) -> Result<Option<T>, Failure> {
    Ok(table.get(key)?.map(|bytes| envelope::open(schema, bytes.value())).transpose()?)
}

fn read_marks(database: &Database, disk: DiskId) -> Result<Marks, Failure> {
    let txn = database.begin_read()?;
    let marks = txn.open_table(MARKS)?;
    let purged: Option<LogId> = mark(&marks, "purged", LOG_ID)?;
    let entries = txn.open_table(ENTRIES)?;
    let last = match entries.last()? {
        Some((index, bytes)) => {
            let entry: Stored = envelope::open(ENTRY, bytes.value())?;
            Some(LogId::new_term_index(entry.term, index.value()))
        }
        None => purged,
    };
    let first = match entries.first()? {
        Some((index, _)) => index.value(),
        None => last.map_or(0, |last| last.index + 1),
    };
    let (vote, committed) = (mark(&marks, "vote", VOTE)?, mark(&marks, "committed", LOG_ID)?);
    Ok(Marks { disk, vote, committed, purged, first, last })
}

impl Op<'_> {
    fn encode(self, out: &mut Vec<u8>) {
        match self {
            Op::Append(entries) => {
                for entry in entries {
                    let stored = StoredRef { term: entry.log_id.leader_id.term, payload: &entry.payload };
                    put_change(out, What::Entry, entry.log_id.index, &envelope::seal(ENTRY, &stored));
                }
            }
            Op::TruncateFrom(first) => put_change(out, What::TruncateFrom, first, &[]),
            Op::Purge(upto) => put_change(out, What::Purge, upto.index, &envelope::seal(LOG_ID, &upto)),
            Op::Vote(vote) => put_change(out, What::Vote, 0, &envelope::seal(VOTE, &vote)),
            Op::Committed(Some(upto)) => {
                put_change(out, What::Committed, upto.index, &envelope::seal(LOG_ID, &upto));
            }
            Op::Committed(None) => put_change(out, What::Committed, 0, &[]),
        }
    }
}

/// The first byte of a change in the journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum What {
    Entry = 1,
    TruncateFrom,
    Purge,
    Vote,
    Committed,
}

impl What {
    fn of(byte: u8) -> Option<Self> {
        [Self::Entry, Self::TruncateFrom, Self::Purge, Self::Vote, Self::Committed]
            .into_iter()
            .find(|what| *what as u8 == byte)
    }
}

fn put_change(out: &mut Vec<u8>, what: What, index: u64, bytes: &[u8]) {
    out.push(what as u8);
    out.extend_from_slice(&index.to_le_bytes());
    out.extend_from_slice(&u32::try_from(bytes.len()).expect("an entry has a bound far below").to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Takes the first change off.
fn take_change<'a>(changes: &mut &'a [u8]) -> Option<(What, u64, &'a [u8])> {
    let (head, rest) = changes.split_at_checked(CHANGE_HEAD)?;
    let index = u64::from_le_bytes(*head[1..].first_chunk()?);
    let len = u32::from_le_bytes(*head[9..].first_chunk()?);
    let (bytes, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    *changes = rest;
    Some((What::of(head[0])?, index, bytes))
}

/// Makes these changes in the tables, after which the journal's next round is this one.
fn store(database: &Database, mut changes: &[u8], round: u64) -> Result<(), Failure> {
    let txn = database.begin_write()?;
    {
        let mut entries = txn.open_table(ENTRIES)?;
        let mut marks = txn.open_table(MARKS)?;
        while !changes.is_empty() {
            let Some((what, index, bytes)) = take_change(&mut changes) else {
                return Err(Failure::Damaged("the journal beside it holds no changes of a log".into()));
            };
            match what {
                What::Entry => drop(entries.insert(index, bytes)?),
                What::TruncateFrom => entries.retain_in(index.., |_, _| false)?,
                What::Purge => {
                    entries.retain_in(..=index, |_, _| false)?;
                    marks.insert("purged", bytes)?;
                }
                What::Vote => drop(marks.insert("vote", bytes)?),
                What::Committed if bytes.is_empty() => drop(marks.remove("committed")?),
                What::Committed => drop(marks.insert("committed", bytes)?),
            }
        }
        marks.insert(ROUND, &round.to_le_bytes()[..])?;
    }
    Ok(txn.commit()?)
}

fn read(database: &Database, range: Range<u64>, bytes_max: usize) -> Result<Vec<LogEntry>, Failure> {
    let txn = database.begin_read()?;
    let table = txn.open_table(ENTRIES)?;
    let (mut found, mut bytes, mut next) = (Vec::new(), 0, range.start);
    for row in table.range(range.clone())? {
        let (index, stored) = row?;
        let index = index.value();
        if index != next {
            break;
        }
        bytes += stored.value().len();
        if bytes > bytes_max && !found.is_empty() {
            return Ok(found);
        }
        let Stored { term, payload } = envelope::open(ENTRY, stored.value())?;
        found.push(LogEntry { log_id: LogId::new_term_index(term, index), payload });
        next += 1;
    }
    if next < range.end {
        return Err(Failure::Damaged(format!("entry {next} of the metadata log is missing")));
    }
    Ok(found)
}

/// What an entry takes in memory and on the wire, roughly.
pub(super) fn weight(entry: &LogEntry) -> usize {
    const FRAME: usize = 32;
    FRAME
        + match &entry.payload {
            openraft::EntryPayload::Blank => 0,
            openraft::EntryPayload::Normal(payload) => Payload::bytes(payload),
            openraft::EntryPayload::Membership(membership) => 64 * (1 + membership.nodes().count()),
        }
}
