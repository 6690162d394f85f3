//! The journal of one shard: one sequence of chunks for all its partitions, in files that are written ahead of time.
//!
//! Floor 1, pure; owned by its shard. It opens no file and reads no clock: it says what the disk shall do
//! ([`DiskOp`]) and is told what became of it ([`DiskEvent`]). It never says that something is flushed before the
//! disk said so, and after a failed write or sync it says nothing more but [`JournalEvent::Fatal`].
//!
//! Ordering: `flushed <= sealed <= appended`, counted in chunks ([`Marker`]). Appended batches gather in the open
//! chunk; `poll_op` is the group commit point, where it is sealed and written as `writer.rs` says. Bytes are laid
//! out as `chunk.rs` says, recovered as `recovery.rs` says.
//!
//! A chunk is on disk wholly or it is not there: recovery keeps no part of a torn chunk, which loses nothing, since
//! a chunk is reported flushed only when all of it is.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::checkpoint::Resume;
use super::chunk::{CHUNK_HEADER_BYTES, ENTRY_HEADER_BYTES, sectors};
use super::disk::{DiskError, DiskEvent, DiskOp, FileNo, OpNo, SECTOR};
use super::recovery::{CHUNK_BYTES_MAX, Recovery, Step};
use super::writer::Writer;
use super::{FatalReason, Lsn, Note};
use crate::batch::BatchHeader;
use crate::ids::{LeaderEpoch, Offset, PartitionId, ShardId};
use crate::stats::JournalStats;
use crate::time::Instant;

/// What recovery does when bytes are damaged that had been flushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnDamage {
    /// [`FatalReason::JournalDamaged`].
    #[default]
    Refuse,
    /// Goes on without them and what follows; the [`RecoveryReport`] tells.
    Truncate,
}

#[derive(Clone, Copy, Debug)]
pub struct JournalConfig {
    pub shard: ShardId,
    /// Any number that clients cannot guess, drawn by the driver: the id of this journal if it is a new one.
    /// It keeps record bytes that imitate a chunk, and files of another journal, from being taken for its own.
    pub new_journal: u64,
    /// Size of a file: a multiple of [`SECTOR`].
    pub file_bytes: u64,
    /// The largest batch that will be appended; it fits a file.
    pub batch_bytes_max: usize,
    /// A chunk is closed at this size, unless one batch alone is larger. A multiple of [`SECTOR`].
    pub chunk_bytes_max: usize,
    /// How long a lazily appended batch waits for its flush to begin.
    pub flush_interval: Duration,
    pub writes_in_flight_max: usize,
    /// From so many bytes not yet durable on, the journal is over its backlog and flushes; at
    /// [`OVERLOAD_FACTOR`] times as many, appends are refused.
    pub backlog_bytes_max: usize,
    /// So many files that are no longer needed are kept, to be used again in place of new ones.
    pub spare_files_max: usize,
    pub on_damage: OnDamage,
}

/// See [`JournalConfig::backlog_bytes_max`].
pub const OVERLOAD_FACTOR: usize = 2;

impl JournalConfig {
    pub fn new(shard: ShardId, new_journal: u64) -> Self {
        Self {
            shard,
            new_journal,
            file_bytes: 64 * 1024 * 1024,
            batch_bytes_max: 16 * 1024 * 1024,
            chunk_bytes_max: 1024 * 1024,
            flush_interval: Duration::from_millis(50),
            writes_in_flight_max: 4,
            backlog_bytes_max: 64 * 1024 * 1024,
            spare_files_max: 4,
            on_damage: OnDamage::Refuse,
        }
    }

    fn check(&self) {
        let sector = SECTOR as u64;
        assert!(self.file_bytes.is_multiple_of(sector), "a journal file is whole sectors");
        assert!(self.file_bytes / sector <= u64::from(u32::MAX), "sectors are counted in 32 bits");
        assert!(self.chunk_bytes_max.is_multiple_of(SECTOR), "a chunk is whole sectors");
        assert!(self.chunk_bytes_max > 0 && self.writes_in_flight_max > 0, "a bound of 0 lets nothing pass");
        assert!(
            (self.chunk_bytes_max + self.batch_bytes_max) as u64 <= CHUNK_BYTES_MAX / 2,
            "the length of a chunk fits 31 bits"
        );
        let largest = CHUNK_HEADER_BYTES + ENTRY_HEADER_BYTES + self.batch_bytes_max;
        assert!(
            (SECTOR + sectors(largest)) as u64 <= self.file_bytes,
            "the largest batch fits a journal file"
        );
    }
}

/// What a journal is recovered from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JournalStart {
    /// There is no checkpoint: everything that the files hold is replayed.
    Begin,
    /// A checkpoint of this journal says where to begin; `incarnation` is the life that wrote it.
    At { resume: Resume, journal: u64, incarnation: u64 },
}

/// How soon an appended entry must be durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Urgency {
    /// With the next group commit: someone waits for it.
    Sync,
    /// Within `flush_interval`.
    Lazy,
}

/// A place in the journal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LogPosition {
    pub file: FileNo,
    pub position: u64,
}

/// How far the journal has come: the sequence number of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Marker(pub u64);

/// An appended batch.
#[derive(Clone, Debug)]
pub struct Placed {
    /// The batch with its base offset and leader epoch; shares the memory that is written to disk.
    pub bytes: Bytes,
    /// It is durable when [`JournalEvent::Flushed`] says this or a larger one.
    pub marker: Marker,
    pub lsn: Lsn,
}

/// An appended note.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Noted {
    /// See [`Placed::marker`].
    pub marker: Marker,
    pub lsn: Lsn,
}

/// Why nothing was appended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendRefused {
    #[error("the disk has no room for the next journal file")]
    Full,
    #[error("too many bytes wait to become durable")]
    Overloaded,
    #[error("the journal is not recovered yet, or stopping, or failed")]
    NotReady,
}

#[derive(Clone, Debug)]
pub enum JournalEvent {
    /// A batch of an earlier life, in the order of appending.
    Replayed { partition: PartitionId, header: BatchHeader, base: Offset, lsn: Lsn, bytes: Bytes },
    /// A note of an earlier life, in the order of appending.
    ReplayedNote { partition: PartitionId, note: Note, lsn: Lsn },
    /// All that was replayed is durable; entries can be appended.
    Recovered(RecoveryReport),
    /// Every chunk up to this one is durable.
    Flushed { upto: Marker },
    /// [`Journal::over_backlog`] became false.
    BacklogCleared,
    /// Appends were refused as `Full`; there is room again.
    Room,
    /// All is durable after [`Journal::stop`].
    Stopped,
    /// The journal cannot go on; nothing follows.
    Fatal(FatalReason),
}

/// What recovery found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RecoveryReport {
    pub files: u64,
    pub chunks: u64,
    pub batches: u64,
    /// Of the replayed batches.
    pub bytes: u64,
    pub notes: u64,
    pub cut: Option<Cut>,
}

/// Where the log was cut off, because something lies there that does not belong to it. After a crash that is most often
/// the torn end of a write that was never reported flushed, or what a file held in an earlier use; damage to the last
/// chunk looks the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cut {
    pub file: FileNo,
    pub position: u64,
    pub reason: CutReason,
    /// Bytes of chunks behind the cut that name their file, as far as they can be told; none if their headers are gone.
    pub bytes_after: u64,
    /// Whether acknowledged batches were lost with it (only under [`OnDamage::Truncate`]).
    pub damaged: bool,
}

/// Why a chunk, or what lies in its place, does not belong to the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CutReason {
    /// Nothing was written here, but something behind it.
    Missing,
    /// The file's header is damaged, that of another file, or of another life than the file's first chunk.
    FileHeader,
    /// No whole chunk header: one that was torn or damaged, or the middle of what the file held in an earlier use.
    ChunkHeader,
    /// The chunk says that it belongs elsewhere.
    Misplaced,
    /// Not the chunk that follows the one before.
    Sequence,
    /// Left over from an earlier life that was cut off here or before.
    EarlierLife,
    /// An entry of the chunk is damaged.
    Entry,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Journal {
    config: JournalConfig,
    phase: Phase,
    /// There once it is recovered, also after its end: the disk and readers of its state are not done with it then.
    writer: Option<Box<Writer>>,
    is_replay_paused: bool,
    events: VecDeque<JournalEvent>,
    ops: OpCounter,
}

#[derive(Debug)]
enum Phase {
    Recovering(Box<Recovery>),
    Running,
    Stopped,
    Failed,
}

/// The operations of a journal are numbered from here on: whose they are can be told from the number.
pub const OPS_FROM: OpNo = OpNo(1 << 63);

/// Numbers the operations of one journal.
#[derive(Debug)]
pub(super) struct OpCounter(u64);

impl Default for OpCounter {
    fn default() -> Self {
        Self(OPS_FROM.0)
    }
}

impl OpCounter {
    pub fn next(&mut self) -> OpNo {
        self.0 += 1;
        OpNo(self.0)
    }
}

/// EIO: what a file that ends too early amounts to.
pub(super) const CUT_SHORT: DiskError = DiskError::Io(5);

impl Journal {
    /// Begins recovery: the first operation lists the files.
    ///
    /// # Panics
    /// If the sizes of `config` do not fit each other; what a user may configure is checked before.
    pub fn new(config: JournalConfig, start: JournalStart) -> Self {
        config.check();
        Self {
            config,
            phase: Phase::Recovering(Box::new(Recovery::new(&config, start))),
            writer: None,
            is_replay_paused: false,
            events: VecDeque::new(),
            ops: OpCounter::default(),
        }
    }

    /// The writer while the journal runs.
    fn running(&mut self) -> Option<&mut Writer> {
        match self.phase {
            Phase::Running => self.writer.as_deref_mut(),
            _ => None,
        }
    }

    /// Takes what became of an operation.
    pub fn handle(&mut self, now: Instant, event: DiskEvent) {
        match &mut self.phase {
            Phase::Recovering(recovery) => match recovery.handle(event, &mut self.events) {
                Ok(Step::GoOn) => {}
                Ok(Step::Recovered(recovered)) => {
                    self.events.push_back(JournalEvent::Recovered(recovered.report));
                    self.writer = Some(Box::new(Writer::new(self.config, *recovered)));
                    self.phase = Phase::Running;
                }
                Err(reason) => self.fail(reason),
            },
            Phase::Running => {
                let writer = self.writer.as_deref_mut().expect("a running journal has a writer");
                if let Err(reason) = writer.handle(now, event, &mut self.events) {
                    self.fail(reason);
                }
                self.settle();
            }
            // Late answers to operations that no longer matter.
            Phase::Stopped | Phase::Failed => {}
        }
    }

    fn fail(&mut self, reason: FatalReason) {
        tracing::error!(%reason, "journal failed");
        self.phase = Phase::Failed;
        self.events.push_back(JournalEvent::Fatal(reason));
    }

    /// Moves on to the end of a stop.
    fn settle(&mut self) {
        if self.running().is_some_and(|writer| writer.is_stopped()) {
            self.phase = Phase::Stopped;
            self.events.push_back(JournalEvent::Stopped);
        }
    }

    /// Takes note that the instant of `poll_timeout` came; what follows from it comes out of `poll_op`.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(writer) = self.running() {
            writer.handle_timeout(now);
        }
    }

    /// When `handle_timeout` is wanted; ask again after `poll_op` was drained.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match (&self.phase, &self.writer) {
            (Phase::Running, Some(writer)) => writer.poll_timeout(),
            _ => None,
        }
    }

    /// In recovery: every chunk up to this one is known to be durable. What was replayed behind it may be lost with the
    /// power until recovery ends.
    pub fn replayed_durably(&self) -> u64 {
        match &self.phase {
            Phase::Recovering(recovery) => recovery.confirmed(),
            Phase::Running | Phase::Stopped | Phase::Failed => 0,
        }
    }

    /// While true, recovery asks the disk for nothing more: what was replayed can be worked off first.
    pub fn pause_replay(&mut self, pause: bool) {
        self.is_replay_paused = pause;
    }

    /// The next operation for the disk. Drain events, then operations, after every batch of inputs: this is the
    /// group commit point. During recovery there is none while events wait, which bounds their number.
    pub fn poll_op(&mut self, now: Instant) -> Option<DiskOp> {
        match &mut self.phase {
            Phase::Recovering(recovery) if self.events.is_empty() && !self.is_replay_paused => {
                recovery.poll_op(&mut self.ops)
            }
            Phase::Running => {
                let writer = self.writer.as_deref_mut().expect("a running journal has a writer");
                writer.poll_op(now, &mut self.ops)
            }
            Phase::Recovering(_) | Phase::Stopped | Phase::Failed => None,
        }
    }

    /// What happened, in order.
    pub fn poll_event(&mut self) -> Option<JournalEvent> {
        self.events.pop_front()
    }

    /// Appends one whole batch that was validated, with `base` and `epoch` put into it. Its bytes are copied once,
    /// here.
    ///
    /// # Errors
    /// Nothing was appended, and nothing else will follow from the call; see [`AppendRefused`].
    ///
    /// # Panics
    /// If `batch` is longer than `batch_bytes_max` or shorter than a batch's header.
    pub fn append(
        &mut self,
        now: Instant,
        partition: PartitionId,
        base: Offset,
        epoch: LeaderEpoch,
        batch: &[u8],
        urgency: Urgency,
    ) -> Result<Placed, AppendRefused> {
        assert!(batch.len() <= self.config.batch_bytes_max, "the largest batch was configured");
        match self.running() {
            Some(writer) => writer.append(now, partition, base, epoch, batch, urgency),
            None => Err(AppendRefused::NotReady),
        }
    }

    /// Appends a note about a log.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub fn note(
        &mut self,
        now: Instant,
        partition: PartitionId,
        note: Note,
        urgency: Urgency,
    ) -> Result<Noted, AppendRefused> {
        match self.running() {
            Some(writer) => writer.note(now, partition, note, urgency),
            None => Err(AppendRefused::NotReady),
        }
    }

    /// Where recovery would have to begin to replay `lsn` and what follows it: in the file that holds it, or in the
    /// last one that is durable in part. `None` before the journal is recovered.
    pub fn resume_from(&self, lsn: Lsn) -> Option<Resume> {
        Some(self.writer.as_ref()?.resume_from(lsn))
    }

    /// Where the next life begins, and the sequence of its first chunk, for [`Resume::Clean`]. `None` until the journal
    /// has stopped.
    pub fn end(&self) -> Option<(LogPosition, u64)> {
        self.writer.as_ref()?.end()
    }

    /// Recovery will not begin before `resume`, of [`Journal::resume_from`] or a clean end, since a checkpoint that
    /// says so is durable: files before it may be used again.
    pub fn release(&mut self, resume: Resume) {
        if let Some(writer) = &mut self.writer {
            writer.release(resume);
        }
    }

    /// From the beginning of the oldest file that was not released to where the next entry goes, in bytes.
    pub fn live_bytes(&self) -> u64 {
        self.writer.as_ref().map_or(0, |writer| writer.live_bytes())
    }

    /// No entry has a larger one, and every later entry will. [`Lsn::ZERO`] until recovery knows more.
    pub fn last_lsn(&self) -> Lsn {
        match (&self.phase, &self.writer) {
            (Phase::Recovering(recovery), _) => recovery.last_lsn(),
            (_, Some(writer)) => writer.last_lsn(),
            _ => Lsn::ZERO,
        }
    }

    /// The number that was drawn when the journal was begun; 0 until it is recovered.
    pub fn journal_id(&self) -> u64 {
        self.writer.as_ref().map_or(0, |writer| writer.journal_id())
    }

    /// Which life of the journal this is, larger than all before; 0 until it is recovered.
    pub fn incarnation(&self) -> u64 {
        self.writer.as_ref().map_or(0, |writer| writer.incarnation())
    }

    pub fn stats(&self) -> JournalStats {
        self.writer.as_ref().map_or_else(JournalStats::default, |writer| writer.stats())
    }

    /// Whether so many bytes wait to become durable, or some for a file that is not there yet, that answers to lazy
    /// appends should wait for [`JournalEvent::BacklogCleared`].
    pub fn over_backlog(&self) -> bool {
        match (&self.phase, &self.writer) {
            (Phase::Running, Some(writer)) => writer.over_backlog(),
            _ => false,
        }
    }

    /// Takes no more entries and makes those that there are durable; [`JournalEvent::Stopped`] follows.
    pub fn stop(&mut self) {
        match &self.phase {
            Phase::Recovering(_) => {
                self.phase = Phase::Stopped;
                self.events.push_back(JournalEvent::Stopped);
            }
            Phase::Running => {
                self.writer.as_deref_mut().expect("a running journal has a writer").stop();
                self.settle();
            }
            Phase::Stopped | Phase::Failed => {}
        }
    }
}

#[cfg(test)]
mod tests;
