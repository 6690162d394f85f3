//! The thread that writes the Raft log: takes all that waits, makes it durable with one flush, and says so.
//!
//! Driver. Votes and entries go through one queue, so that no entry is durable before the vote it relies on. What
//! nobody waits for (how far is committed, what may go) is written along with the next thing that somebody waits for.
//! When the disk is full, the thread tries again until there is space, and nothing is acked meanwhile; after any
//! other failed write nothing is known of the disk any more: everything that waits fails, and all that comes after.

#![expect(clippy::disallowed_methods, reason = "driver: measures flushes, waits for space on the disk")]

use std::cell::Cell;
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

pub(super) struct Writer {
    pub db: Arc<Db>,
    pub progress: Arc<Progress>,
    pub counters: Counters,
    /// How many writes the journal alone has.
    pub journaled: Cell<u64>,
}

impl Writer {
    /// Runs until the queue's other end is gone and everything in it is durable.
    pub fn run(self, mut queue: mpsc::Receiver<Write>) {
        let mut waiting = Vec::new();
        let mut failed: Option<String> = None;
        while let Some(first) = queue.blocking_recv() {
            let mut entries = first.entries();
            waiting.push(first);
            while entries < BATCH_ENTRIES_MAX
                && let Ok(more) = queue.try_recv()
            {
                entries += more.entries();
                waiting.push(more);
            }
            if let Some(why) = &failed {
                self.answer(std::mem::take(&mut waiting), Err(why));
            } else if waiting.len() >= LAZY_MAX || !waiting.iter().all(Write::is_lazy) {
                let batch = std::mem::take(&mut waiting);
                failed = self.write_and_answer(batch, &queue).err();
            }
        }
        if failed.is_none() && !waiting.is_empty() {
            // It is only worth less work at the next start: nobody waits for it, and nobody is left to tell.
            let _ = self.write_and_answer(waiting, &queue);
        }
        self.db.close();
    }

    fn write_and_answer(&self, batch: Vec<Write>, queue: &mpsc::Receiver<Write>) -> Result<(), String> {
        let begun = Instant::now();
        match self.write(&batch, queue) {
            Ok(stored) => {
                self.journaled.set(self.journaled.get() + batch.len() as u64);
                if stored == In::Database {
                    self.progress.written.fetch_add(self.journaled.take(), Ordering::Release);
                }
            }
            Err(error) => {
                let why = error.to_string();
                tracing::error!("{why}");
                self.answer(batch, Err(&why));
                return Err(why);
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
        Ok(())
    }

    /// Makes the batch durable, however long there is no space for it. Everything in it can be done twice.
    fn write(&self, batch: &[Write], queue: &mpsc::Receiver<Write>) -> Result<In, StoreError> {
        let mut result =
            self.db.write(batch.iter().map(Write::op)).map_err(|failure| failure.at(&self.db.file));
        while let Err(StoreError::Full { .. }) = &result {
            if !self.progress.full.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "{}: no space left: no change of the metadata until there is",
                    self.db.file.display()
                );
            }
            self.counters.count(|stats| stats.disk_full += 1);
            if queue.is_closed() {
                return result;
            }
            std::thread::sleep(RETRY_EVERY);
            let reopened = self.db.reopen();
            let again = reopened.and_then(|()| self.db.write(batch.iter().map(Write::op)));
            result = again.map_err(|failure| failure.at(&self.db.file));
        }
        if result.is_ok() && self.progress.full.swap(false, Ordering::Relaxed) {
            tracing::info!("{}: there is space again", self.db.file.display());
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
