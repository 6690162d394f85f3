//! What writes the Raft log: takes all that waits, makes it durable with one flush, and says so.
//!
//! Driver; a thread of its own, but for the simulator. Votes and entries go through one queue, so that no entry is
//! durable before the vote it relies on. What nobody waits for (how far is committed, what may go) is written along with
//! the next thing that somebody waits for. When the disk is full, it tries again until there is space, and nothing is
//! acked meanwhile; after any other failed write nothing is known of the disk any more: everything that waits fails, and
//! all that comes after.

#![expect(clippy::disallowed_methods, reason = "driver: measures flushes, waits for space on the disk")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use openraft::storage::IOFlushed;
use tokio::sync::{mpsc, oneshot};

use super::super::metrics::{Counters, record};
use super::super::types::{LogEntry, LogId, TypeConfig, Vote};
use super::db::{Db, In, Op};
use crate::store::StoreError;

/// Entries in one transaction at most, but for those of a single append.
const BATCH_ENTRIES_MAX: usize = 4096;
/// Writes that nobody waits for and that wait for others at most.
const LAZY_MAX: usize = 256;
/// Between attempts on a full disk.
const RETRY_EVERY: Duration = Duration::from_millis(500);

/// One thing to write.
pub(super) enum Write {
    Append { entries: Vec<LogEntry>, flushed: IOFlushed<TypeConfig>, at: Instant },
    Vote { vote: Vote, done: oneshot::Sender<io::Result<()>>, at: Instant },
    TruncateFrom { first: u64, done: oneshot::Sender<io::Result<()>> },
    Purge(LogId),
    Committed(Option<LogId>),
}

impl Write {
    fn op(&self) -> Op<'_> {
        match self {
            Self::Append { entries, .. } => Op::Append(entries),
            Self::Vote { vote, .. } => Op::Vote(*vote),
            Self::TruncateFrom { first, .. } => Op::TruncateFrom(*first),
            Self::Purge(upto) => Op::Purge(*upto),
            Self::Committed(upto) => Op::Committed(*upto),
        }
    }

    fn entries(&self) -> usize {
        match self {
            Self::Append { entries, .. } => entries.len(),
            _ => 0,
        }
    }

    /// Whether it can wait for something else to be flushed along with.
    fn is_lazy(&self) -> bool {
        matches!(self, Self::Purge(_) | Self::Committed(_))
    }
}

/// What the thread tells the control core without being asked.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// How many writes the database has; those after them are durable in the journal alone, or not yet.
    pub written: AtomicU64,
    /// How many writes somebody waits for.
    pub waiting: AtomicU64,
    /// The last attempt met a full disk.
    pub full: AtomicBool,
}

/// The writer of a log: either [`LogWriter::run`], or the steps that this consists of.
pub struct LogWriter {
    pub(super) db: Arc<Db>,
    pub(super) progress: Arc<Progress>,
    pub(super) counters: Counters,
    pub(super) queue: mpsc::Receiver<Write>,
    /// What was taken off the queue and is not answered.
    pub(super) batch: Vec<Write>,
    /// How many writes the journal alone has.
    pub(super) journaled: u64,
    pub(super) failed: Option<String>,
}

/// What a batch is about to make durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Contents {
    pub votes: usize,
    pub entries: usize,
}

impl LogWriter {
    /// Runs until the queue's other end is gone and everything in it is durable.
    pub fn run(mut self) {
        while let Some(first) = self.queue.blocking_recv() {
            self.take(first);
            while let Some(pause) = self.write() {
                std::thread::sleep(pause);
            }
        }
        self.end();
    }

    /// Waits for something to write, and takes all that waits; false when the queue's other end is gone.
    pub async fn next(&mut self) -> bool {
        let Some(first) = self.queue.recv().await else { return false };
        self.take(first);
        true
    }

    fn take(&mut self, first: Write) {
        let mut entries = first.entries();
        self.batch.push(first);
        while entries < BATCH_ENTRIES_MAX
            && let Ok(more) = self.queue.try_recv()
        {
            entries += more.entries();
            self.batch.push(more);
        }
    }

    /// What was taken and is not written.
    pub fn contents(&self) -> Contents {
        let votes = self.batch.iter().filter(|write| matches!(write, Write::Vote { .. })).count();
        Contents { votes, entries: self.batch.iter().map(Write::entries).sum() }
    }

    /// Writes what was taken and answers it, unless nobody waits for it yet. On a full disk: when to try again.
    pub fn write(&mut self) -> Option<Duration> {
        if self.failed.is_none() && self.batch.len() < LAZY_MAX && self.batch.iter().all(Write::is_lazy) {
            return None;
        }
        self.write_and_answer()
    }

    /// The queue's other end is gone: writes what nobody waits for, and closes the log.
    pub fn end(mut self) {
        if self.failed.is_none() && !self.batch.is_empty() {
            // It is only worth less work at the next start: nobody waits for it, and nobody is left to tell.
            let _ = self.write_and_answer();
        }
        self.db.close();
    }

    fn write_and_answer(&mut self) -> Option<Duration> {
        let begun = Instant::now();
        let written = match &self.failed {
            Some(why) => Err(why.clone()),
            None => match self.attempt() {
                Ok(stored) => Ok(stored),
                Err(StoreError::Full { .. }) if !self.queue.is_closed() => return Some(RETRY_EVERY),
                Err(error) => {
                    tracing::error!("{error}");
                    Err(error.to_string())
                }
            },
        };
        let batch = std::mem::take(&mut self.batch);
        match written {
            Ok(stored) => {
                self.journaled += batch.len() as u64;
                if stored == In::Database {
                    self.progress.written.fetch_add(self.journaled, Ordering::Release);
                    self.journaled = 0;
                }
            }
            Err(why) => {
                self.answer(batch, Err(&why));
                self.failed = Some(why);
                return None;
            }
        }
        let entries = batch.iter().map(Write::entries).sum::<usize>() as u64;
        self.counters.count(|stats| {
            stats.flushes += 1;
            stats.entries_written += entries;
            record(&mut stats.flush_nanos, begun.elapsed());
            stats.batch_entries.saturating_record(entries);
        });
        self.answer(batch, Ok(()));
        None
    }

    /// Makes the batch durable. Everything in it can be done twice, as it is when there was no space the last time.
    fn attempt(&self) -> Result<In, StoreError> {
        let was_full = self.progress.full.load(Ordering::Relaxed);
        // A failed write leaves the database in a state in which it takes no more.
        let opened = if was_full { self.db.reopen() } else { Ok(()) };
        let written = opened.and_then(|()| self.db.write(self.batch.iter().map(Write::op)));
        let result = written.map_err(|failure| failure.at(&self.db.file));
        let is_full = matches!(result, Err(StoreError::Full { .. }));
        match (was_full, is_full) {
            (false, true) => tracing::warn!(
                "{}: no space left: no change of the metadata until there is",
                self.db.file.display()
            ),
            (true, false) if result.is_ok() => {
                tracing::info!("{}: there is space again", self.db.file.display());
            }
            _ => {}
        }
        if is_full {
            self.counters.count(|stats| stats.disk_full += 1);
        }
        if was_full != is_full && (is_full || result.is_ok()) {
            self.progress.full.store(is_full, Ordering::Relaxed);
        }
        result
    }

    /// Tells everybody who waits for a write of the batch. Nobody may be left out: openraft would wait forever.
    fn answer(&self, batch: Vec<Write>, result: Result<(), &String>) {
        let waited = batch.iter().filter(|write| !write.is_lazy()).count() as u64;
        self.counters.count(|stats| {
            for write in &batch {
                match write {
                    Write::Append { at, .. } => record(&mut stats.append_nanos, at.elapsed()),
                    Write::Vote { at, .. } => record(&mut stats.vote_nanos, at.elapsed()),
                    _ => {}
                }
            }
        });
        let error = || result.map_err(|why| io::Error::other(why.clone()));
        for write in batch {
            match write {
                Write::Append { flushed, .. } => flushed.io_completed(error()),
                // Who asked may have been dropped.
                Write::Vote { done, .. } | Write::TruncateFrom { done, .. } => drop(done.send(error())),
                Write::Purge(_) | Write::Committed(_) => {}
            }
        }
        self.progress.waiting.fetch_sub(waited, Ordering::Release);
    }
}
