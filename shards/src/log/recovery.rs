//! Finds the end of the journal and replays what lies before it.
//!
//! Floor 1, pure. Memory is bounded by one read of [`READ_BYTES`], or by one chunk when that is larger.
//!
//! The log is the longest run of whole chunks with consecutive sequences and never falling incarnations, from where
//! it begins on. It goes from one file to the next when the next one begins with the chunk that is expected. It ends
//! where that fails, and the chunk there is dropped as a whole: it had not been reported flushed.
//!
//! Where it begins:
//! - without a checkpoint, in the newest of the files that any file's header names as the oldest that was needed when
//!   it was begun; with the chunk that the header there names as its first. What a header says stays true, and that
//!   file is there: no life gives it up before a header that does without it is durable;
//! - with [`Resume::From`], with the first chunk of a file, which was durable when the checkpoint was made;
//! - with [`Resume::Clean`], where the log of that checkpoint ended. If nothing of a later life is there, nothing else
//!   is read: see below.
//!
//! Files before that are spares. They are not read, and not needed by anyone.
//!
//! A file that was a spare before holds old bytes behind what was written to it since. Chunks among them name another
//! file, as numbers only grow and a file gets each number once: they are *leftovers*, part of no log and evidence of
//! nothing. Where a leftover chunk or zeros follow, the log ends without any doubt. Any other bytes there may be the
//! middle of a leftover as well as a torn or damaged chunk: the end is looked at as if it were one, and reported.
//!
//! What lies behind the end and names its own file is left as it is and must never come back. Three rules see to it,
//! for which it makes no difference whether zeros, leftovers or earlier lives' chunks lie between:
//! - everything behind the end is read once more for chunk headers that name their file, and this life takes an
//!   incarnation above all that were seen, above those that a file header names, and above the checkpoint's;
//! - this life first writes an empty chunk at the end (the barrier) and waits until it is durable before it writes
//!   anything else. What it writes after that is followed by nothing older: an older chunk has a lower incarnation
//!   than that, which ends the log, even one that was torn and is made whole by later bytes that happen to be the same.
//!   It is always written, since bytes that are neither zeros nor a chunk do not tell what they are; only a journal
//!   without any file does without;
//! - a chunk behind a gap does not have the sequence that is expected.
//!
//! A torn write of a new chunk cannot make a leftover one of this file either: the file's number, the incarnation and
//! the sequence lie under the CRC of the chunk's header, and its entries' CRCs begin with the latter two.
//!
//! Behind a clean end nothing has to be read. The life that left the mark had all its chunks durable before it, and
//! every chunk then in these files was of it or of a life before it, so the incarnation of the checkpoint is above
//! or equal to all of them. A life after it begins with its barrier exactly there; without the barrier it has written
//! nothing else, and a barrier that was torn is written again, bit for bit the same. Where something lies that is
//! neither zeros, a leftover, nor that barrier, the barrier may be damaged: then all behind it is looked at as usual.
//! A life that ends in order writes zeros behind its last chunk, so this is the exception.
//!
//! Recovery itself writes nothing, so a crash in it, or before the barrier is durable, changes nothing.
//!
//! Damage: a chunk behind the end that names its file, of the last good chunk's incarnation or a later one, that was
//! written when the missing chunk was known to be durable, proves that flushed bytes were lost. (One of an earlier
//! life proves nothing: what it promised was cut off by a recovery before the chunks that are there now.) That the
//! chunk is missing with which the log of a checkpoint begins, or its file, proves it too.
//!
//! After damage under [`OnDamage::Truncate`] the sequences of lost chunks are used again, and the checkpoint names
//! what is not there: its maker has to replace it before anything new is acknowledged.
//!
//! The chunks at the end may never have been synced, if only the process ended. They are replayed, so their files
//! are synced before anything is said to be recovered.

use std::collections::VecDeque;

use bytes::Bytes;

use super::checkpoint::Resume;
use super::chunk::{BadFileHeader, Body, ChunkHeader, Entry, FileHeader, read_entries};
use super::disk::{DiskError, DiskEvent, DiskOp, FileName, FileNo, OpNo, SECTOR};
use super::files::{Begun, FoundFiles};
use super::journal::{
    CUT_SHORT, Cut, CutReason, JournalConfig, JournalEvent, JournalStart, LogPosition, OnDamage, OpCounter,
    RecoveryReport,
};
use super::{FatalReason, Lsn};

/// How much is read at once.
const READ_BYTES: u64 = 1024 * 1024;
/// How much is read to look at one place: a file's header and that of its first chunk.
const PEEK_BYTES: u64 = 2 * SECTOR as u64;
/// No chunk is longer; the configuration is checked against it.
pub(super) const CHUNK_BYTES_MAX: u64 = i32::MAX as u64;

/// What a recovered journal goes on from.
#[derive(Debug)]
pub(super) struct Recovered {
    pub journal: u64,
    /// Of this life.
    pub incarnation: u64,
    pub next_sequence: u64,
    pub files: FoundFiles,
    /// Where the next chunk goes.
    pub end: LogPosition,
    /// Whether the last chunks with entries are not said to be durable by a chunk behind them.
    pub unconfirmed: bool,
    /// Whether this life must not write anything before an empty chunk is durable.
    pub needs_barrier: bool,
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
    start: JournalStart,
    /// By number, from the one with which the log begins on.
    files: Vec<(FileNo, u64)>,
    /// Those before.
    spares: Vec<(FileNo, u64)>,
    /// The file with which the log begins, which may not be there.
    first: FileNo,
    /// Files with a chunk of the log.
    begun: Vec<Begun>,
    /// The header of the last file that was entered.
    entered: Option<FileHeader>,
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
    /// Behind the log's end: bytes of chunks that name their file, and up to where the last of them goes there.
    bytes_after: u64,
    after: Place,
    /// The least that is read at once.
    read_bytes: u64,
    damaged: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Listing,
    /// Without a checkpoint: reading the headers of the files before this place in `files`, last to first.
    Headers(usize),
    /// With a clean end: at the beginning of the first file, before looking at that end.
    Front(LogPosition),
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

    /// Every chunk up to this one is durable, as later ones say.
    pub fn confirmed(&self) -> u64 {
        self.confirmed
    }

    pub fn new(config: &JournalConfig, start: JournalStart) -> Self {
        let nowhere = Place { index: 0, position: 0 };
        Self {
            config: *config,
            start,
            files: Vec::new(),
            spares: Vec::new(),
            first: FileNo(0),
            begun: Vec::new(),
            entered: None,
            state: State::Listing,
            wanted: Some(Wanted::List),
            asked: None,
            window: Window { at: nowhere, len: 0, bytes: Bytes::new() },
            entries: Vec::new(),
            journal: None,
            last: Last::default(),
            tail: None,
            incarnation_seen: 0,
            confirmed: 0,
            filled: 0,
            unsynced: VecDeque::new(),
            report: RecoveryReport::default(),
            bytes_after: 0,
            after: nowhere,
            read_bytes: PEEK_BYTES,
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
                self.begin()?;
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
            State::Headers(above) => self.read_headers(above)?,
            State::Front(end) => self.read_front(end)?,
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
        let read = self.read_bytes.max(len as u64).min(left);
        let read = u32::try_from(read).expect("longer chunks are refused by their header");
        self.wanted = Some(Wanted::Read(at, read));
        None
    }

    /// The files are listed: where does the log begin?
    fn begin(&mut self) -> Result<(), FatalReason> {
        match self.start {
            JournalStart::Begin => self.state = State::Headers(self.files.len()),
            JournalStart::At { resume, journal, incarnation } => {
                self.journal = Some(journal);
                self.incarnation_seen = incarnation;
                match resume {
                    Resume::From { file, sequence } => {
                        self.last = Last { incarnation: 0, sequence: sequence.saturating_sub(1) };
                        self.read_bytes = READ_BYTES;
                        if !self.begin_with(file) {
                            return self.begin_is_lost();
                        }
                        self.state = State::File(0);
                    }
                    Resume::Clean { end, sequence } => {
                        self.last = Last { incarnation, sequence: sequence.saturating_sub(1) };
                        self.confirmed = self.last.sequence;
                        let is_there = self.begin_with(end.file);
                        let is_new = end.position == 0 && self.files.is_empty();
                        if !end.position.is_multiple_of(SECTOR as u64) || !(is_there || is_new) {
                            return self.begin_is_lost();
                        }
                        // A file without chunks is begun anew.
                        self.state = if is_new {
                            let place = Place { index: 0, position: 0 };
                            State::Syncing(End { place, reason: None })
                        } else if end.position <= SECTOR as u64 {
                            State::File(0)
                        } else {
                            State::Front(end)
                        };
                    }
                }
            }
        }
        Ok(())
    }

    /// Puts those before `file` aside. Whether it is there.
    fn begin_with(&mut self, file: FileNo) -> bool {
        self.first = file;
        let before = self.files.partition_point(|&(f, _)| f < file);
        self.spares = self.files.drain(..before).collect();
        self.files.first().is_some_and(|&(f, _)| f == file)
    }

    /// What the checkpoint names is not there. If that is to be accepted, the log goes on behind all files.
    fn begin_is_lost(&mut self) -> Result<(), FatalReason> {
        self.damaged = true;
        let end = End {
            place: Place { index: self.files.len(), position: 0 },
            reason: Some(CutReason::FileHeader),
        };
        if self.config.on_damage == OnDamage::Refuse {
            return self.judge(end);
        }
        self.read_bytes = READ_BYTES;
        self.state = State::Behind(Place { index: 0, position: 0 }, end);
        Ok(())
    }

    /// Reads the header of the file before `above`: with which file does the log begin?
    fn read_headers(&mut self, above: usize) -> Result<(), FatalReason> {
        let Some(index) = above.checked_sub(1) else {
            return self.begin_without_checkpoint();
        };
        if self.size(index) >= SECTOR as u64 {
            let Some(sector) = self.bytes(Place { index, position: 0 }, SECTOR) else {
                return Ok(());
            };
            let file = self.files[index].0;
            match FileHeader::parse(&sector) {
                Ok(header) if self.is_own(&header, index) => {
                    self.journal = Some(header.journal);
                    self.first = self.first.max(header.oldest.min(file));
                }
                Err(BadFileHeader::Version(version)) => {
                    return Err(FatalReason::JournalFormat { file, version });
                }
                Ok(_) | Err(BadFileHeader::Damaged) => {}
            }
        }
        self.state = State::Headers(index);
        Ok(())
    }

    fn begin_without_checkpoint(&mut self) -> Result<(), FatalReason> {
        let oldest_there = self.files.first().map_or(FileNo(0), |&(file, _)| file);
        // Without any header, there may still be chunks.
        let first = if self.journal.is_some() { self.first } else { oldest_there };
        let is_there = self.begin_with(first);
        // Files are counted from here on.
        self.window.bytes = Bytes::new();
        self.read_bytes = READ_BYTES;
        if self.files.is_empty() {
            self.state = State::Syncing(End { place: Place { index: 0, position: 0 }, reason: None });
            return Ok(());
        }
        self.state = State::File(0);
        if !is_there {
            self.damage(FatalReason::JournalDamaged { file: first, position: 0, sequence: 0 })?;
        }
        Ok(())
    }

    /// Learns with which chunk the file begins in which the log ended, then goes to that end.
    fn read_front(&mut self, end: LogPosition) -> Result<(), FatalReason> {
        let start = Place { index: 0, position: 0 };
        if self.size(0) < PEEK_BYTES {
            return self.begin_is_lost();
        }
        let Some(bytes) = self.bytes(start, PEEK_BYTES as usize) else {
            return Ok(());
        };
        let first = Place { position: SECTOR as u64, ..start };
        let file = FileHeader::parse(&bytes).ok().filter(|h| self.is_own(h, 0));
        let chunk = ChunkHeader::parse(&bytes[SECTOR..]).filter(|h| self.belongs_here(h, first));
        let begun = match (file, chunk) {
            (Some(h), _) => Begun { file: h.file, sequence: h.first, oldest: h.oldest },
            (None, Some(h)) => Begun { file: h.file, sequence: h.sequence, oldest: FileNo(0) },
            (None, None) => return self.begin_is_lost(),
        };
        self.begun.push(begun);
        self.state = State::Chunk(Place { index: 0, position: end.position });
        Ok(())
    }

    /// Whether a file header is that of the file in which it lies.
    fn is_own(&self, header: &FileHeader, index: usize) -> bool {
        header.file == self.files[index].0
            && header.shard == self.config.shard
            && self.journal.is_none_or(|journal| journal == header.journal)
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
            Ok(header) if self.is_own(&header, index) => {
                self.journal = Some(header.journal);
                self.incarnation_seen = self.incarnation_seen.max(header.incarnation);
                if self.start == JournalStart::Begin && self.report.chunks == 0 && index == 0 {
                    let sequence = header.first.saturating_sub(1);
                    self.last = Last { incarnation: header.incarnation, sequence };
                }
                self.entered = Some(header);
                self.state = State::Chunk(Place { index, position: SECTOR as u64 });
            }
            Ok(header) if self.journal == Some(header.journal) && header.file < file => {
                self.ends_at(start, None);
            }
            Ok(_) | Err(BadFileHeader::Damaged) => self.ends_at(start, Some(CutReason::FileHeader)),
        }
        Ok(())
    }

    fn read_chunk(&mut self, at: Place, events: &mut VecDeque<JournalEvent>) {
        let left = self.size(at.index).saturating_sub(at.position);
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
        if self.journal == Some(header.journal) && header.file < self.files[at.index].0 {
            // A leftover.
            self.ends_at(at, None);
            return;
        }
        let reason = if !self.belongs_here(&header, at) || header.len() as u64 > left.min(CHUNK_BYTES_MAX) {
            Some(CutReason::Misplaced)
        } else if at.position == SECTOR as u64 && !self.begins_file(&header) {
            Some(CutReason::FileHeader)
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

    /// Whether a file's first chunk was written together with the header before it, as it is of an earlier life where
    /// that write was torn.
    fn begins_file(&self, header: &ChunkHeader) -> bool {
        let file = self.entered.expect("a file is entered by its header");
        (file.first, file.incarnation) == (header.sequence, header.incarnation)
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
        if at.position == SECTOR as u64 {
            let file = self.entered.expect("a file is entered by its header");
            let begun = Begun { file: header.file, sequence: header.sequence, oldest: file.oldest };
            self.begun.push(begun);
        }
        self.read_bytes = READ_BYTES;
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
                    JournalEvent::Replayed { partition, header: batch, base, lsn, bytes }
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
        if self.report.chunks == 0
            && let JournalStart::At { resume, .. } = self.start
        {
            let is_full = self.size(place.index).saturating_sub(place.position) < SECTOR as u64;
            // At the end of a file, the beginning of the next one was looked at too.
            let is_sure = self.tail.map_or(!is_full, |tail| tail.reason.is_none());
            match resume {
                Resume::From { .. } => self.damaged = true,
                // No later life has written anything.
                Resume::Clean { .. } if reason.is_none() && is_sure => {
                    self.state = State::Syncing(self.tail.take().unwrap_or(here));
                    return;
                }
                Resume::Clean { .. } => {}
            }
        }
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
        self.read_bytes = READ_BYTES;
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
            if let Some(header) = ChunkHeader::parse(&sector).filter(|h| self.belongs_here(h, at)) {
                self.incarnation_seen = self.incarnation_seen.max(header.incarnation);
                self.damaged |=
                    header.incarnation >= self.last.incarnation && header.flushed > self.last.sequence;
                self.after = Place { position: at.position + header.len() as u64, ..at };
            }
            if self.after.index == at.index && at.position < self.after.position {
                self.bytes_after += SECTOR as u64;
            }
        }
        self.state = State::Behind(Place { position: at.position + SECTOR as u64, ..at }, end);
        Ok(())
    }

    /// Everything was read: was what is missing promised?
    fn judge(&mut self, end: End) -> Result<(), FatalReason> {
        let at = self.position(end.place);
        // Whatever is neither zeros nor a leftover is told of, though most often it is no more than a torn write or the
        // middle of a leftover: nothing tells those from a damaged chunk whose header is gone.
        if end.reason.is_some() || self.bytes_after > 0 || self.damaged {
            let cut = Cut {
                file: at.file,
                position: at.position,
                reason: end.reason.unwrap_or(CutReason::Missing),
                bytes_after: self.bytes_after,
                damaged: self.damaged,
            };
            tracing::warn!(shard = %self.config.shard, ?cut, "the journal ends here; what follows is a torn write or damage");
            self.report.cut = Some(cut);
        }
        if self.damaged {
            // What is named is what should be there.
            let file = if self.report.chunks == 0 { self.first } else { at.file };
            let position = if file == at.file { at.position } else { 0 };
            let sequence = self.last.sequence + 1;
            self.damage(FatalReason::JournalDamaged { file, position, sequence })?;
        }
        self.state = State::Syncing(end);
        Ok(())
    }

    fn damage(&mut self, damage: FatalReason) -> Result<(), FatalReason> {
        self.damaged = true;
        match self.config.on_damage {
            OnDamage::Refuse => return Err(damage),
            OnDamage::Truncate => {
                tracing::error!(%damage, "going on without the lost records, as configured")
            }
        }
        Ok(())
    }

    /// Where a place is; behind all files, the beginning of a new one.
    fn position(&self, place: Place) -> LogPosition {
        let new = || self.files.last().map_or(self.first, |&(last, _)| FileNo(last.0 + 1));
        let file = self.files.get(place.index).map_or_else(new, |&(file, _)| file);
        LogPosition { file, position: place.position }
    }

    fn finish(&mut self, end: End) -> Recovered {
        let mut at = self.position(end.place);
        // Without a chunk behind it the file's header may not be durable: it is written again with the first one.
        if at.position == SECTOR as u64 {
            at.position = 0;
        }
        let is_new = self.start == JournalStart::Begin && self.report.files == 0;
        let begun = std::mem::take(&mut self.begun);
        let oldest = begun.first().map_or(at.file, |begun| begun.file);
        let size = |&(file, bytes): &(FileNo, u64)| (file, bytes / SECTOR as u64 * SECTOR as u64);
        let all = self.spares.iter().chain(&self.files).map(size);
        let (spares, ready) = all.partition(|&(file, _)| file < oldest);
        Recovered {
            journal: self.journal.unwrap_or(self.config.new_journal),
            incarnation: self.incarnation_seen + 1,
            next_sequence: self.last.sequence + 1,
            files: FoundFiles { ready, begun, spares, oldest },
            end: at,
            unconfirmed: self.filled > self.confirmed,
            needs_barrier: !is_new,
            report: self.report,
        }
    }
}

fn is_zero(sector: &[u8]) -> bool {
    sector.iter().all(|&byte| byte == 0)
}
