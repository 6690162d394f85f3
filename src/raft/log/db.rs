//! The tables of the Raft log, and what is done to them, one transaction for each batch.
//!
//! | table | key | value |
//! |---|---|---|
//! | `format` | () | the version of this layout |
//! | `marks` | `disk`, `vote`, `committed`, `purged` | an envelope |
//! | `entries` | index | an envelope with the term and the payload |
//!
//! Every commit is flushed before it returns. Opening checks the checksum of every page. The log thread writes, the
//! control core reads entries that are no longer in memory; redb lets both go on at once.

#![expect(
    clippy::disallowed_types,
    reason = "driver: two threads hold the database, only to open it again is it taken away"
)]

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::types::{DiskId, LogEntry, LogId, Payload, TypeConfig, Vote};
use crate::control::metadata::envelope::{self, Schema};
use crate::store::error::{Failure, StoreError};

const FORMAT: u32 = 1;
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
    closed: AtomicBool,
}

impl Db {
    /// Opens the log, or makes one for `disk`.
    pub fn open(file: &Path, mut opener: Opener, disk: DiskId) -> Result<(Arc<Self>, Marks), StoreError> {
        let database = open(&mut opener).map_err(|failure| failure.at(file))?;
        let db = Self {
            file: file.to_owned(),
            opener: Mutex::new(opener),
            database: RwLock::new(Some(database)),
            closed: AtomicBool::new(false),
        };
        match db.required(format_of).map_err(|failure| failure.at(file))? {
            Some(FORMAT) => {}
            Some(found) => {
                return Err(StoreError::Format { file: file.to_owned(), found, known: FORMAT });
            }
            None => db.required(|database| found_new(database, disk)).map_err(|failure| failure.at(file))?,
        }
        let marks = db.required(read_marks).map_err(|failure| failure.at(file))?;
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
    pub fn write<'a>(&self, ops: impl Iterator<Item = Op<'a>>) -> Result<(), Failure> {
        self.required(|database| write(database, ops))
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

    /// Lets go of the file. Nothing is written or read after that.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
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
    txn.open_table(MARKS)?.insert("disk", &*envelope::seal(DISK, &disk))?;
    txn.open_table(ENTRIES)?;
    Ok(txn.commit()?)
}

fn read_marks(database: &Database) -> Result<Marks, Failure> {
    fn mark<T: DeserializeOwned>(
        table: &impl ReadableTable<&'static str, &'static [u8]>,
        key: &str,
        schema: Schema,
    ) -> Result<Option<T>, Failure> {
        Ok(table.get(key)?.map(|bytes| envelope::open(schema, bytes.value())).transpose()?)
    }
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
    let disk = mark(&marks, "disk", DISK)?.ok_or_else(|| Failure::Damaged("it has no disk id".into()))?;
    let (vote, committed) = (mark(&marks, "vote", VOTE)?, mark(&marks, "committed", LOG_ID)?);
    Ok(Marks { disk, vote, committed, purged, first, last })
}

fn write<'a>(database: &Database, ops: impl Iterator<Item = Op<'a>>) -> Result<(), Failure> {
    let txn = database.begin_write()?;
    {
        let mut entries = txn.open_table(ENTRIES)?;
        let mut marks = txn.open_table(MARKS)?;
        for op in ops {
            match op {
                Op::Append(appended) => {
                    for entry in appended {
                        let stored = StoredRef { term: entry.log_id.leader_id.term, payload: &entry.payload };
                        entries.insert(entry.log_id.index, &*envelope::seal(ENTRY, &stored))?;
                    }
                }
                Op::TruncateFrom(first) => entries.retain_in(first.., |_, _| false)?,
                Op::Purge(upto) => {
                    entries.retain_in(..=upto.index, |_, _| false)?;
                    marks.insert("purged", &*envelope::seal(LOG_ID, &upto))?;
                }
                Op::Vote(vote) => {
                    marks.insert("vote", &*envelope::seal(VOTE, &vote))?;
                }
                Op::Committed(Some(upto)) => {
                    marks.insert("committed", &*envelope::seal(LOG_ID, &upto))?;
                }
                Op::Committed(None) => {
                    marks.remove("committed")?;
                }
            }
        }
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
