//! Finds the end of the journal and replays what lies before it.
//!
//! Floor 1, pure. Memory is bounded by one read of [`READ_BYTES`], or by one chunk when that is larger.
//!
//! The log is the longest run of whole chunks with consecutive sequences and never falling incarnations, from the
//! first file on. It goes from one file to the next when the next one begins with the chunk that is expected. It
//! ends where that fails, and the chunk there is dropped as a whole: it had not been reported flushed.
//!
//! What lies behind the end is left as it is and must never come back. Three rules see to it:
//! - everything behind the end is read once more for chunk headers, and this life takes an incarnation above all
//!   that were seen anywhere;
//! - if anything lies there, this life first writes an empty chunk at the end and waits until it is durable. What
//!   it writes after that is followed by nothing older: an older chunk has a lower incarnation than that, which ends
//!   the log, even one that was torn and is made whole by later bytes that happen to be the same;
//! - a chunk behind a gap does not have the sequence that is expected.
//!
//! Recovery itself writes nothing, so a crash in it, or before that empty chunk is durable, changes nothing.
//!
//! Damage: a chunk behind the end, of the last good chunk's incarnation or a later one, that was written when the
//! missing chunk was known to be durable, proves that flushed bytes were lost. (One of an earlier life proves
//! nothing: what it promised was cut off by a recovery before the chunks that are there now.)
//!
//! The chunks at the end may never have been synced, if only the process ended. They are replayed, so their files
//! are synced before anything is said to be recovered.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::chunk::{BadFileHeader, Body, ChunkHeader, Entry, FileHeader, read_entries};
use super::disk::{DiskError, DiskEvent, DiskOp, FileName, FileNo, OpNo, SECTOR};
use super::journal::{
    CUT_SHORT, Cut, CutReason, JournalConfig, JournalEvent, JournalStart, LogPosition, OnDamage, OpCounter,
    RecoveryReport,
};
use super::{FatalReason, Lsn};

/// How much is read at once.
const READ_BYTES: u64 = 1024 * 1024;
/// No chunk is longer; the configuration is checked against it.
pub(super) const CHUNK_BYTES_MAX: u64 = i32::MAX as u64;

/// What a recovered journal goes on from.
#[derive(Debug)]
pub(super) struct Recovered {
    pub journal: u64,
    /// Of this life.
    pub incarnation: u64,
    pub next_sequence: u64,
    /// Files that are there and can be written, and their sizes.
    pub files: BTreeMap<FileNo, u64>,
    /// Where the next chunk goes.
    pub end: LogPosition,
    /// Whether the last chunks with entries are not said to be durable by a chunk behind them.
    pub unconfirmed: bool,
    pub report: RecoveryReport,
}

#[derive(Debug)]
pub(super) enum Step {
    /// Ask for the next operation.
    GoOn,
    Recovered(Box<Recovered>),
}

#[derive(Debug)]
pub(super) struct Recovery {
    config: JournalConfig,
    /// By number.
    files: Vec<(FileNo, u64)>,
    state: State,
    /// The operation that `state` waits for, until it is asked for.
    wanted: Option<Wanted>,
    asked: Option<OpNo>,
    window: Window,
    /// Of the chunk at hand; kept for its memory.
    entries: Vec<Entry>,
    journal: Option<u64>,
    last: Last,
    /// The end of the file before, while the next one is tried.
    tail: Option<End>,
    /// Highest incarnation seen, in the log or behind it.
    incarnation_seen: u64,
    /// Highest sequence that a chunk of the log says to be durable.
    confirmed: u64,
    /// The last chunk with entries.
    filled: u64,
    /// Files with chunks of the log that may not be durable, with the last such chunk.
    unsynced: VecDeque<(FileNo, u64)>,
    report: RecoveryReport,
    nonzero_bytes_after: u64,
    damaged: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Listing,
    /// At the beginning of a file, by its place in `files`.
    File(usize),
    /// At a chunk.
    Chunk(Place),
    /// Behind the end, looking for evidence of damage and for incarnations.
    Behind(Place, End),
    Syncing(End),
}

/// A position in a file, by the file's place in `files`.
#[derive(Clone, Copy, Debug)]
struct Place {
    index: usize,
    position: u64,
}

/// Where the log ends, and why there if something lies behind it.
#[derive(Clone, Copy, Debug)]
struct End {
    place: Place,
    reason: Option<CutReason>,
}

/// The last good chunk.
#[derive(Clone, Copy, Default, Debug)]
struct Last {
    incarnation: u64,
    sequence: u64,
}

#[derive(Clone, Copy, Debug)]
enum Wanted {
    List,
    Read(Place, u32),
    Sync(FileNo),
}

/// The bytes of the last read.
#[derive(Debug)]
struct Window {
    at: Place,
    /// What was asked for.
    len: u32,
    /// Empty until it is there.
    bytes: Bytes,
}

impl Recovery {
    pub fn last_lsn(&self) -> Lsn {
        Lsn { chunk: self.last.sequence, entry: u32::MAX }
    }

    pub fn new(config: &JournalConfig, _start: JournalStart) -> Self {
        Self {
            config: *config,
            files: Vec::new(),
            state: State::Listing,
            wanted: Some(Wanted::List),
            asked: None,
            window: Window { at: Place { index: 0, position: 0 }, len: 0, bytes: Bytes::new() },
            entries: Vec::new(),
            journal: None,
            last: Last::default(),
            tail: None,
            incarnation_seen: 0,
            confirmed: 0,
            filled: 0,
            unsynced: VecDeque::new(),
            report: RecoveryReport::default(),
            nonzero_bytes_after: 0,
            damaged: false,
        }
    }

    pub fn poll_op(&mut self, ops: &mut OpCounter) -> Option<DiskOp> {
        let wanted = self.wanted.take()?;
        let op = ops.next();
        self.asked = Some(op);
        Some(match wanted {
            Wanted::List => DiskOp::List { op },
            Wanted::Read(at, len) => {
                self.window = Window { at, len, bytes: Bytes::new() };
                DiskOp::Read {
                    op,
                    file: FileName::Journal(self.files[at.index].0),
                    position: at.position,
                    len,
                }
            }
            Wanted::Sync(file) => DiskOp::Sync { op, file: FileName::Journal(file) },
        })
    }

    pub fn handle(
        &mut self,
        event: DiskEvent,
        events: &mut VecDeque<JournalEvent>,
    ) -> Result<Step, FatalReason> {
        let failed = |error: DiskError| FatalReason::RecoveryFailed { error };
        match event {
            DiskEvent::Listed { op, result } if self.asked == Some(op) => {
                self.files = result.map_err(failed)?;
                self.files.sort_unstable();
                self.report.files = self.files.len() as u64;
                self.state = State::File(0);
            }
            DiskEvent::Read { op, result } if self.asked == Some(op) => {
                let bytes = result.map_err(failed)?;
                // Reads stay within the size that was listed.
                if bytes.len() != self.window.len as usize {
                    return Err(failed(CUT_SHORT));
                }
                self.window.bytes = bytes;
            }
            DiskEvent::Synced { op, result } if self.asked == Some(op) => {
                let (file, _) = self.unsynced.pop_front().expect("the first of them was synced");
                result.map_err(|error| FatalReason::FlushFailed { file, error })?;
            }
            // Nothing else was asked for.
            _ => return Ok(Step::GoOn),
        }
        self.asked = None;
        while self.wanted.is_none() {
            if let Some(recovered) = self.advance(events)? {
                return Ok(Step::Recovered(Box::new(recovered)));
            }
        }
        Ok(Step::GoOn)
    }

    /// Goes as far as the bytes that are there allow, one step: moves `state` on, or sets `wanted`.
    fn advance(&mut self, events: &mut VecDeque<JournalEvent>) -> Result<Option<Recovered>, FatalReason> {
        match self.state {
            State::Listing => unreachable!("left with the first event"),
            State::File(index) => self.enter_file(index)?,
            State::Chunk(at) => self.read_chunk(at, events),
            State::Behind(at, end) => self.look_behind(at, end)?,
            State::Syncing(end) => match self.unsynced.front() {
                Some(&(file, _)) => self.wanted = Some(Wanted::Sync(file)),
                None => return Ok(Some(self.finish(end))),
            },
        }
        Ok(None)
    }

    /// Size of a file in bytes, whole sectors.
    fn size(&self, index: usize) -> u64 {
        self.files.get(index).map_or(0, |&(_, size)| size / SECTOR as u64 * SECTOR as u64)
    }

    /// `len` bytes at a place, which lie within its file. `None`: they are asked for.
    fn bytes(&mut self, at: Place, len: usize) -> Option<Bytes> {
        let Window { at: from, bytes, .. } = &self.window;
        if from.index == at.index && at.position >= from.position {
            let start = usize::try_from(at.position - from.position).unwrap_or(usize::MAX);
            if start.saturating_add(len) <= bytes.len() {
                return Some(bytes.slice(start..start + len));
            }
        }
        let left = self.size(at.index) - at.position;
        let read = READ_BYTES.max(len as u64).min(left);
        let read = u32::try_from(read).expect("longer chunks are refused by their header");
        self.wanted = Some(Wanted::Read(at, read));
        None
    }

    fn enter_file(&mut self, index: usize) -> Result<(), FatalReason> {
        let start = Place { index, position: 0 };
        if self.size(index) < SECTOR as u64 {
            self.ends_at(start, None);
            return Ok(());
        }
        let Some(sector) = self.bytes(start, SECTOR) else {
            return Ok(());
        };
        if is_zero(&sector) {
            self.ends_at(start, None);
            return Ok(());
        }
        let file = self.files[index].0;
        match FileHeader::parse(&sector) {
            Err(BadFileHeader::Version(version)) => return Err(FatalReason::JournalFormat { file, version }),
            Ok(header)
                if header.file == file
                    && header.shard == self.config.shard
                    && self.journal.is_none_or(|journal| journal == header.journal) =>
            {
                self.journal = Some(header.journal);
                self.state = State::Chunk(Place { index, position: SECTOR as u64 });
            }
            Ok(_) | Err(BadFileHeader::Damaged) => self.ends_at(start, Some(CutReason::FileHeader)),
        }
        Ok(())
    }

    fn read_chunk(&mut self, at: Place, events: &mut VecDeque<JournalEvent>) {
        let left = self.size(at.index) - at.position;
        if left < SECTOR as u64 {
            self.ends_at(at, None);
            return;
        }
        let Some(sector) = self.bytes(at, SECTOR) else {
            return;
        };
        if is_zero(&sector) {
            self.ends_at(at, None);
            return;
        }
        let Some(header) = ChunkHeader::parse(&sector) else {
            self.ends_at(at, Some(CutReason::ChunkHeader));
            return;
        };
        let reason = if !self.belongs_here(&header, at) || header.len() as u64 > left.min(CHUNK_BYTES_MAX) {
            Some(CutReason::Misplaced)
        } else if header.incarnation < self.last.incarnation {
            Some(CutReason::EarlierLife)
        } else if header.sequence != self.last.sequence + 1 {
            Some(CutReason::Sequence)
        } else {
            None
        };
        if reason.is_some() {
            self.ends_at(at, reason);
            return;
        }
        let Some(chunk) = self.bytes(at, header.len()) else {
            return;
        };
        let mut entries = std::mem::take(&mut self.entries);
        if read_entries(&header, &chunk, &mut entries) {
            self.replay(at, &header, &chunk, &entries, events);
        } else {
            self.ends_at(at, Some(CutReason::Entry));
        }
        self.entries = entries;
    }

    /// Whether a chunk header stands where it says.
    fn belongs_here(&self, header: &ChunkHeader, at: Place) -> bool {
        header.file == self.files[at.index].0
            && header.position == at.position
            && self.journal.is_none_or(|journal| journal == header.journal)
    }

    fn replay(
        &mut self,
        at: Place,
        header: &ChunkHeader,
        chunk: &Bytes,
        entries: &[Entry],
        events: &mut VecDeque<JournalEvent>,
    ) {
        self.tail = None;
        self.last = Last { incarnation: header.incarnation, sequence: header.sequence };
        self.incarnation_seen = self.incarnation_seen.max(header.incarnation);
        self.confirmed = self.confirmed.max(header.flushed);
        if !entries.is_empty() {
            self.filled = header.sequence;
        }
        match self.unsynced.back_mut() {
            Some((file, last)) if *file == header.file => *last = header.sequence,
            _ => self.unsynced.push_back((header.file, header.sequence)),
        }
        while self.unsynced.front().is_some_and(|&(_, last)| last <= self.confirmed) {
            self.unsynced.pop_front();
        }
        self.report.chunks += 1;
        for (&Entry { partition, body }, number) in entries.iter().zip(0..) {
            let lsn = Lsn { chunk: header.sequence, entry: number };
            events.push_back(match body {
                Body::Batch { header: batch, at: batch_at } => {
                    let bytes = chunk.slice(batch_at..batch_at + batch.len as usize);
                    self.report.batches += 1;
                    self.report.bytes += bytes.len() as u64;
                    let base = batch.base().expect("a negative offset does not pass as an entry");
                    let at = LogPosition { file: header.file, position: at.position + batch_at as u64 };
                    JournalEvent::Replayed { partition, header: batch, base, lsn, at, bytes }
                }
                Body::Note(note) => {
                    self.report.notes += 1;
                    JournalEvent::ReplayedNote { partition, note, lsn }
                }
            });
        }
        self.state = State::Chunk(Place { position: at.position + header.len() as u64, ..at });
    }

    /// The log does not go on at `place`: it goes on in the next file, or it ended where this file was left for it.
    fn ends_at(&mut self, place: Place, reason: Option<CutReason>) {
        let here = End { place, reason };
        let next = place.index + 1;
        let follows =
            self.files.get(next).is_some_and(|&(file, _)| file.0 == self.files[place.index].0.0 + 1);
        let end = match self.tail.take() {
            None if follows => {
                self.tail = Some(here);
                self.state = State::File(next);
                return;
            }
            None => here,
            Some(tail) => End { place: tail.place, reason: tail.reason.or(reason) },
        };
        self.state = State::Behind(end.place, end);
    }

    fn look_behind(&mut self, at: Place, end: End) -> Result<(), FatalReason> {
        if at.index >= self.files.len() {
            return self.judge(end);
        }
        let left = self.size(at.index).saturating_sub(at.position);
        if left < SECTOR as u64 {
            self.state = State::Behind(Place { index: at.index + 1, position: 0 }, end);
            return Ok(());
        }
        let Some(sector) = self.bytes(at, SECTOR) else {
            return Ok(());
        };
        if !is_zero(&sector) {
            self.nonzero_bytes_after += SECTOR as u64;
            if let Some(header) = ChunkHeader::parse(&sector).filter(|h| self.belongs_here(h, at)) {
                self.incarnation_seen = self.incarnation_seen.max(header.incarnation);
                self.damaged |=
                    header.incarnation >= self.last.incarnation && header.flushed > self.last.sequence;
            }
        }
        self.state = State::Behind(Place { position: at.position + SECTOR as u64, ..at }, end);
        Ok(())
    }

    /// Everything was read: was what is missing promised?
    fn judge(&mut self, end: End) -> Result<(), FatalReason> {
        let at = self.position(end.place);
        if self.nonzero_bytes_after > 0 {
            self.report.cut = Some(Cut {
                file: at.file,
                position: at.position,
                reason: end.reason.unwrap_or(CutReason::Missing),
                bytes_after: self.nonzero_bytes_after,
                damaged: self.damaged,
            });
        }
        if self.damaged {
            let sequence = self.last.sequence + 1;
            let damage = FatalReason::JournalDamaged { file: at.file, position: at.position, sequence };
            match self.config.on_damage {
                OnDamage::Refuse => return Err(damage),
                OnDamage::Truncate => {
                    tracing::error!(%damage, "going on without the lost records, as configured")
                }
            }
        }
        self.state = State::Syncing(end);
        Ok(())
    }

    fn position(&self, place: Place) -> LogPosition {
        let file = self.files.get(place.index).map_or(FileNo(0), |&(file, _)| file);
        LogPosition { file, position: place.position }
    }

    fn finish(&mut self, end: End) -> Recovered {
        let mut at = self.position(end.place);
        // Without a chunk behind it the file's header may not be durable: it is written again with the first one.
        if at.position == SECTOR as u64 {
            at.position = 0;
        }
        // A file behind the end was prepared and may hold chunks of earlier lives, which cannot come back. One of
        // another size than is configured now is prepared again.
        let files = (0..self.files.len())
            .map(|index| (self.files[index].0, self.size(index)))
            .filter(|&(file, size)| file <= at.file || size == self.config.file_bytes)
            .collect();
        Recovered {
            journal: self.journal.unwrap_or(self.config.new_journal),
            incarnation: self.incarnation_seen + 1,
            next_sequence: self.last.sequence + 1,
            files,
            end: at,
            unconfirmed: self.filled > self.confirmed,
            report: self.report,
        }
    }
}

fn is_zero(sector: &[u8]) -> bool {
    sector.iter().all(|&byte| byte == 0)
}
