//! The Raft log: votes and entries, durable in the order in which they came.
//!
//! Control core, with a thread of its own that writes and flushes. Entries are readable as soon as `append` returns,
//! from the tail in memory; what has left the tail is durable and read from the database, in short transactions. The
//! tail keeps what is not durable yet, and beyond that as much as [`TAIL_BYTES_MAX`] allows.

mod db;
mod journal;
mod thread;

#[cfg(test)]
mod tests;

use std::any::Any;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::Stream;
use futures_util::stream::{self, StreamExt as _};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use tokio::sync::{mpsc, oneshot};

pub use self::db::Place;
use self::db::{Db, Marks, weight};
pub use self::thread::{Contents, LogWriter};
use self::thread::{Progress, Write};
use super::host::Workers;
use super::metrics::Counters;
use super::types::{DiskId, LogEntry, LogId, TypeConfig, Vote};
use crate::store::StoreError;

/// The file within the Raft folder.
pub const FILE_NAME: &str = "log.redb";
/// The file of records beside it.
pub const JOURNAL_NAME: &str = "log.journal";

/// Writes that wait for the thread at most; one more waits in the Raft core.
const QUEUE_MAX: usize = 1024;
/// Bytes that one read returns at most, but for a single entry that is larger. Bounds what is sent at a time too.
const READ_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of durable entries that stay in memory.
const TAIL_BYTES_MAX: usize = 16 * 1024 * 1024;
/// While the database is opened again on a full disk, readers look again this often.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A log that is open and whose thread does not run yet.
pub(super) struct OpenLog {
    db: Arc<Db>,
    marks: Marks,
}

impl OpenLog {
    /// Opens the log, or makes one for `disk`.
    pub fn open(place: Place, disk: DiskId) -> Result<Self, StoreError> {
        let (db, marks) = Db::open(place, disk)?;
        Ok(Self { db, marks })
    }

    /// Whose log it is: the disk that it was made for.
    pub fn disk(&self) -> DiskId {
        self.marks.disk
    }

    /// Whether nothing was ever written to it.
    pub fn is_new(&self) -> bool {
        self.marks.vote.is_none() && self.marks.last.is_none()
    }

    pub fn purged(&self) -> Option<LogId> {
        self.marks.purged
    }

    /// The last entry that is known to be committed, and in the log.
    pub fn committed(&self) -> Option<LogId> {
        self.marks.committed.min(self.marks.last)
    }

    /// The indexes of its entries.
    pub fn range(&self) -> Range<u64> {
        self.marks.first..next(self.marks.last)
    }

    /// Entries that are in the log, before its writer runs; as many as one read returns.
    pub fn read(&self, range: Range<u64>) -> Result<Vec<LogEntry>, StoreError> {
        self.db.read(range, READ_BYTES_MAX).expect("only its thread takes the database away")
    }

    /// Starts the writer.
    pub fn start(self, counters: Counters, workers: &dyn Workers) -> io::Result<LogStore> {
        let (queue, inbox) = mpsc::channel(QUEUE_MAX);
        let progress = Arc::new(Progress::default());
        let (db, told) = (Arc::clone(&self.db), Arc::clone(&progress));
        let writer = LogWriter {
            db,
            progress: told,
            counters,
            queue: inbox,
            batch: Vec::new(),
            journaled: 0,
            failed: None,
        };
        let writer = workers.start_log(writer)?;
        let Marks { vote, committed, purged, first, last, .. } = self.marks;
        let state =
            State { vote, committed, purged, first, last, tail: VecDeque::new(), tail_bytes: 0, writes: 0 };
        let shared = Shared { db: self.db, progress, state: RefCell::new(state) };
        Ok(LogStore { reader: LogReader(Rc::new(shared)), queue, writer })
    }
}

/// The writing end. Dropping it waits until everything is durable.
pub struct LogStore {
    reader: LogReader,
    // The order of these two counts: the writer ends when the queue is gone.
    queue: mpsc::Sender<Write>,
    #[expect(dead_code, reason = "its drop waits for the writer")]
    writer: Box<dyn Any>,
}

/// The reading end.
#[derive(Clone)]
pub struct LogReader(Rc<Shared>);

struct Shared {
    db: Arc<Db>,
    progress: Arc<Progress>,
    state: RefCell<State>,
}

struct State {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// The first entry's index, or that of the next one when there is none. purged < first <= last + 1
    first: u64,
    /// The last entry, or the last purged one. purged <= last
    last: Option<LogId>,
    /// Ends with `last`, without gaps.
    tail: VecDeque<Kept>,
    tail_bytes: usize,
    /// Writes given to the thread so far.
    writes: u64,
}

/// An entry in memory.
struct Kept {
    entry: LogEntry,
    bytes: usize,
    /// The database has it once it has as many writes.
    write: u64,
}

impl State {
    /// The first index that is in memory.
    fn tail_start(&self) -> u64 {
        match self.tail.front() {
            Some(kept) => kept.entry.log_id.index,
            None => next(self.last),
        }
    }

    fn push(&mut self, entries: &[LogEntry], written: u64) {
        self.writes += 1;
        for entry in entries {
            let bytes = weight(entry);
            match self.last {
                Some(last) => assert_eq!(entry.log_id.index, last.index + 1, "the log has no gaps"),
                None => self.first = entry.log_id.index,
            }
            self.last = Some(entry.log_id);
            self.tail_bytes += bytes;
            self.tail.push_back(Kept { entry: entry.clone(), bytes, write: self.writes });
        }
        while self.tail_bytes > TAIL_BYTES_MAX && self.drop_first(|kept| kept.write <= written) {}
    }

    /// Drops the first entry in memory if it is one of these.
    fn drop_first(&mut self, is_one: impl Fn(&Kept) -> bool) -> bool {
        let Some(bytes) = self.tail.front().filter(|kept| is_one(kept)).map(|kept| kept.bytes) else {
            return false;
        };
        self.tail_bytes -= bytes;
        self.tail.pop_front();
        true
    }

    fn truncate(&mut self, last: Option<LogId>) {
        self.writes += 1;
        while let Some(kept) = self.tail.back()
            && kept.entry.log_id.index >= next(last)
        {
            self.tail_bytes -= kept.bytes;
            self.tail.pop_back();
        }
        self.last = last.min(self.last).max(self.purged);
        self.first = self.first.min(next(self.last));
    }

    fn purge(&mut self, upto: LogId) {
        self.writes += 1;
        while self.drop_first(|kept| kept.entry.log_id.index <= upto.index) {}
        self.purged = Some(upto);
        self.first = self.first.max(upto.index + 1);
        if next(self.last) <= upto.index + 1 {
            self.last = Some(upto);
        }
    }
}

fn next(id: Option<LogId>) -> u64 {
    id.map_or(0, |id| id.index + 1)
}

impl LogReader {
    /// Entries of the range that the log holds, from its start, as many as `bytes_max` allows and at least one.
    async fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<LogEntry>> {
        loop {
            let stored = {
                let state = self.0.state.borrow();
                let range = range.start.max(state.first)..range.end.min(next(state.last));
                if range.is_empty() {
                    return Ok(Vec::new());
                }
                let tail_start = state.tail_start();
                if range.start >= tail_start {
                    return Ok(read_tail(&state.tail, tail_start, range, bytes_max));
                }
                range.start..range.end.min(tail_start)
            };
            match self.0.db.read(stored, bytes_max) {
                Some(found) => return found.map_err(io::Error::other),
                None => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// The vote as it was saved last.
    pub fn vote(&self) -> Option<Vote> {
        self.0.state.borrow().vote
    }

    /// Whether somebody waits for a write.
    #[cfg(test)]
    pub fn is_writing(&self) -> bool {
        self.0.progress.waiting.load(Ordering::Acquire) > 0
    }

    /// Whether the disk has no space for the log.
    pub fn is_full(&self) -> bool {
        self.0.progress.full.load(Ordering::Relaxed)
    }
}

fn read_tail(tail: &VecDeque<Kept>, start: u64, range: Range<u64>, bytes_max: usize) -> Vec<LogEntry> {
    let at = |index: u64| usize::try_from(index - start).expect("the tail is in memory");
    let mut bytes = 0;
    let within = |kept: &&Kept| {
        let first = bytes == 0;
        bytes += kept.bytes;
        first || bytes <= bytes_max
    };
    tail.range(at(range.start)..at(range.end)).take_while(within).map(|kept| kept.entry.clone()).collect()
}

fn bounds(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<LogEntry, io::Error>>
    where
        RB: RangeBounds<u64> + Clone + Debug,
    {
        // In pieces: applying a long log does not need all of it in memory.
        let pieces = stream::unfold(Some((self.clone(), bounds(&range))), async |state| {
            let (reader, mut range) = state?;
            match reader.read(range.clone(), READ_BYTES_MAX).await {
                Ok(entries) => {
                    let last = entries.last()?.log_id;
                    range.start = last.index + 1;
                    Some((
                        stream::iter(entries.into_iter().map(Ok).collect::<Vec<_>>()),
                        Some((reader, range)),
                    ))
                }
                Err(error) => Some((stream::iter(vec![Err(error)]), None)),
            }
        });
        Box::pin(pieces.flatten())
    }

    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug>(
        &mut self,
        range: RB,
    ) -> Result<Vec<LogEntry>, io::Error> {
        let mut range = bounds(&range);
        let mut found = Vec::new();
        loop {
            let more = self.read(range.clone(), usize::MAX).await?;
            let Some(last) = more.last() else { return Ok(found) };
            range.start = last.log_id.index + 1;
            found.extend(more);
        }
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.vote())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<LogEntry>, io::Error> {
        self.read(start..end, READ_BYTES_MAX).await
    }
}

impl LogStore {
    /// A place in the queue, for what changes the state and goes to the thread in one step.
    async fn place(&self) -> io::Result<mpsc::Permit<'_, Write>> {
        self.queue.reserve().await.map_err(|_| io::Error::other("the thread of the metadata log has ended"))
    }

    /// Somebody will wait for what is sent next.
    fn wait(&self) {
        self.reader.0.progress.waiting.fetch_add(1, Ordering::Release);
    }

    /// The reading end.
    pub fn reader(&self) -> LogReader {
        self.reader.clone()
    }
}

#[expect(clippy::disallowed_methods, reason = "driver: measures how long writes wait")]
fn clock() -> Instant {
    Instant::now()
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.reader.0.state.borrow();
        Ok(LogState { last_purged_log_id: state.purged, last_log_id: state.last })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        self.reader()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, durable) = oneshot::channel();
        let place = self.place().await?;
        self.reader.0.state.borrow_mut().writes += 1;
        self.wait();
        place.send(Write::Vote { vote: *vote, done, at: clock() });
        durable.await.map_err(io::Error::other)??;
        self.reader.0.state.borrow_mut().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let place = self.place().await?;
        let mut state = self.reader.0.state.borrow_mut();
        state.writes += 1;
        state.committed = committed;
        place.send(Write::Committed(committed));
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.reader.0.state.borrow().committed)
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = LogEntry>,
    {
        let entries: Vec<LogEntry> = entries.into_iter().collect();
        let place = match self.place().await {
            Ok(place) => place,
            Err(error) => {
                // Dropped without a word, it would keep the Raft core waiting.
                flushed.io_completed(Err(io::Error::other(error.to_string())));
                return Err(error);
            }
        };
        let written = self.reader.0.progress.written.load(Ordering::Acquire);
        self.reader.0.state.borrow_mut().push(&entries, written);
        self.wait();
        place.send(Write::Append { entries, flushed, at: clock() });
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let place = self.place().await?;
        self.reader.0.state.borrow_mut().truncate(last);
        let (done, durable) = oneshot::channel();
        self.wait();
        place.send(Write::TruncateFrom { first: next(last), done });
        // A snapshot may be put in its place next, which entries that it contradicts must not survive.
        durable.await.map_err(io::Error::other)?
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let place = self.place().await?;
        self.reader.0.state.borrow_mut().purge(upto);
        place.send(Write::Purge(upto));
        Ok(())
    }
}
