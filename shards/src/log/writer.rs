//! The running journal: places batches in chunks, writes the chunks, commits them in groups, keeps a file ahead.
//!
//! Floor 1. A chunk goes open -> sealed -> writing -> written -> syncing -> durable; a synced write goes from
//! writing to durable at once. Chunks become durable in any order and are reported in order of their sequence.
//!
//! Group commit: when something must become durable (`wanted`) and no group is on its way, the open chunk is sealed
//! and all chunks so far are the next group (`group`). What is appended meanwhile gathers for the group after it, so
//! groups grow with the load and none waits for ever. A group's only unwritten chunk is written with sync; several
//! are written plainly and then synced together, as are chunks that were written before the group was formed.
//!
//! The first chunk of a life is empty, and nothing is written before it is durable (`barrier`); `recovery.rs` says
//! what for. It is written with the first entry: a life that appends nothing writes nothing.
//!
//! Lazy bytes are written, not synced, when there are [`LAZY_WRITE_BYTES`] of them; they become wanted when the
//! oldest is `flush_interval` old, or when there are more than the backlog may have.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

use super::block::Blocks;
use super::checkpoint::Resume;
use super::chunk::{
    CHUNK_HEADER_BYTES, ChunkHeader, ENTRY_HEADER_BYTES, FileHeader, NOTE_BYTES, close_batch,
    put_batch_header, put_note, sectors,
};
use super::disk::{DiskError, DiskEvent, DiskOp, FileName, FileNo, OpNo, SECTOR};
use super::files::Files;
use super::journal::{
    AppendRefused, JournalConfig, JournalEvent, LogPosition, Marker, Noted, OVERLOAD_FACTOR, OpCounter,
    Placed, Urgency,
};
use super::recovery::Recovered;
use super::{FatalReason, Lsn, Note};
use crate::batch;
use crate::ids::{LeaderEpoch, Offset, PartitionId};
use crate::stats::JournalStats;
use crate::time::Instant;

/// So many lazy bytes are worth a write of their own.
const LAZY_WRITE_BYTES: usize = 256 * 1024;

#[derive(Debug)]
pub(super) struct Writer {
    config: JournalConfig,
    journal: u64,
    incarnation: u64,
    files: Files,
    /// Where recovery begins while no file of this life is durable in part: a place, and the sequence of the chunk there.
    begins: (LogPosition, u64),
    /// Where the next chunk goes, if it fits there. Position 0: the file's header is still to be written.
    next: LogPosition,
    /// Sequence of the next chunk to be opened.
    sequence: u64,
    blocks: Blocks,
    open: Option<Open>,
    /// Sealed chunks that are not reported durable, by consecutive sequences.
    chunks: VecDeque<Chunk>,
    /// How many chunks at the front of `chunks` the disk was given; the others wait.
    issued: usize,
    /// Writes that the disk was given, with their chunk's sequence.
    writing: Vec<(OpNo, u64)>,
    syncing: Option<(OpNo, FileNo)>,
    /// All chunks up to this sequence are durable. flushed <= group <= wanted <= last appended.
    flushed: u64,
    /// The group commit on its way: up to this sequence.
    group: Option<u64>,
    /// What must become durable without delay: up to this sequence.
    wanted: u64,
    unflushed_bytes: usize,
    over_backlog: bool,
    refused_as_full: bool,
    stop: Stop,
    /// Whether there are chunks with entries that no chunk on disk says to be durable.
    unconfirmed: bool,
    /// Whether the chunk that this life begins with is still to be opened.
    barrier_due: bool,
    /// Chunks after this one are not written before it is durable.
    barrier: u64,
    stats: JournalStats,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stop {
    No,
    /// What was appended becomes durable.
    Draining,
    /// An empty chunk is written that says so, for recovery to know what had been flushed.
    Closing,
    Done,
}

/// The chunk that batches are added to.
#[derive(Debug)]
struct Open {
    sequence: u64,
    /// Of the chunk's header.
    at: LogPosition,
    /// Bytes from the chunk's header on, and how many there may be.
    len: usize,
    len_max: usize,
    header: BytesMut,
    /// File header if the chunk is the file's first, room for the header, entries.
    parts: Vec<Bytes>,
    entries: u32,
    last_crc: u32,
    /// Zeros that are written behind it, in bytes.
    zeros: usize,
    since: Instant,
}

#[derive(Debug)]
struct Chunk {
    sequence: u64,
    file: FileNo,
    /// Of the write: that of the chunk, or 0 for the first chunk of a file.
    position: u64,
    /// Of its entries.
    bytes: usize,
    len: usize,
    since: Instant,
    state: State,
}

#[derive(Debug)]
enum State {
    Sealed { parts: Vec<Bytes>, sync: bool },
    Writing { sync: bool },
    Written,
    Syncing,
    Durable,
}

impl Writer {
    pub fn new(config: JournalConfig, recovered: Recovered) -> Self {
        let flushed = recovered.next_sequence - 1;
        Self {
            config,
            journal: recovered.journal,
            incarnation: recovered.incarnation,
            files: Files::new(&config, recovered.files, recovered.end, flushed),
            begins: (recovered.end, recovered.next_sequence),
            next: recovered.end,
            sequence: recovered.next_sequence,
            blocks: Blocks::default(),
            open: None,
            chunks: VecDeque::new(),
            issued: 0,
            writing: Vec::new(),
            syncing: None,
            flushed,
            group: None,
            wanted: flushed,
            unflushed_bytes: 0,
            over_backlog: false,
            refused_as_full: false,
            stop: Stop::No,
            unconfirmed: recovered.unconfirmed,
            barrier_due: recovered.needs_barrier,
            barrier: flushed,
            stats: JournalStats::default(),
        }
    }

    pub fn append(
        &mut self,
        now: Instant,
        partition: PartitionId,
        base: Offset,
        epoch: LeaderEpoch,
        batch: &[u8],
        urgency: Urgency,
    ) -> Result<Placed, AppendRefused> {
        let need = ENTRY_HEADER_BYTES + batch.len();
        let before = self.open_for(now, need)?;
        let block = self.blocks.current();
        let len = u32::try_from(batch.len()).expect("a batch fits a file, whose sectors fit 32 bits");
        put_batch_header(block, before, partition, len);
        batch::put_patched(block, batch, base, epoch);
        let crc = close_batch(block);
        let entry = block.split().freeze();
        let bytes = entry.slice(ENTRY_HEADER_BYTES..);
        let lsn = self.add(entry, crc, urgency);
        Ok(Placed { bytes, marker: Marker(lsn.chunk), lsn })
    }

    pub fn note(
        &mut self,
        now: Instant,
        partition: PartitionId,
        note: Note,
        urgency: Urgency,
    ) -> Result<Noted, AppendRefused> {
        let before = self.open_for(now, NOTE_BYTES)?;
        let block = self.blocks.current();
        let crc = put_note(block, before, partition, note);
        let entry = block.split().freeze();
        let lsn = self.add(entry, crc, urgency);
        Ok(Noted { marker: Marker(lsn.chunk), lsn })
    }

    /// Sees to it that an entry of `need` bytes may be appended and fits the open chunk. Says the CRC of the entry
    /// before.
    fn open_for(&mut self, now: Instant, need: usize) -> Result<u32, AppendRefused> {
        if self.stop != Stop::No {
            return Err(AppendRefused::NotReady);
        }
        let bytes_max = self.config.backlog_bytes_max.saturating_mul(OVERLOAD_FACTOR);
        if self.unflushed_bytes > 0 && self.unflushed_bytes + need > bytes_max {
            return Err(AppendRefused::Overloaded);
        }
        self.make_room(now, need)?;
        Ok(self.open.as_ref().expect("room was made in it").last_crc)
    }

    /// Takes an entry that was written behind the others into the open chunk.
    fn add(&mut self, entry: Bytes, crc: u32, urgency: Urgency) -> Lsn {
        let open = self.open.as_mut().expect("room was made in it");
        let need = entry.len();
        let lsn = Lsn { chunk: open.sequence, entry: open.entries };
        open.parts.push(entry);
        open.last_crc = crc;
        open.len += need;
        open.entries += 1;
        self.unflushed_bytes += need;
        self.over_backlog |= self.unflushed_bytes > self.config.backlog_bytes_max;
        if urgency == Urgency::Sync || self.over_backlog {
            self.wanted = lsn.chunk;
        }
        lsn
    }

    /// Sees to it that `need` more bytes fit the open chunk.
    fn make_room(&mut self, now: Instant, need: usize) -> Result<(), AppendRefused> {
        let fits = self.open.as_ref().is_some_and(|open| open.len + need <= open.len_max);
        let file = match &self.open {
            Some(open) if fits => open.at.file,
            _ => self.place(CHUNK_HEADER_BYTES + need).file,
        };
        // A file that is only late is waited for; one that cannot be had is not.
        if self.files.cannot_be_made() && !self.files.is_ready(file) {
            self.refused_as_full = true;
            return Err(AppendRefused::Full);
        }
        if !fits {
            self.seal();
            if std::mem::take(&mut self.barrier_due) {
                self.barrier = self.sequence;
                self.wanted = self.sequence;
                self.open_chunk(now, 0);
                self.seal();
            }
            self.open_chunk(now, need);
        }
        Ok(())
    }

    /// Where a chunk of `len` bytes would be written, with the file header that goes before it if it is the first:
    /// behind the open chunk, in its file if it fits there, otherwise in the next.
    fn place(&self, len: usize) -> LogPosition {
        let mut at = self.next;
        if let Some(open) = &self.open {
            at = LogPosition { file: open.at.file, position: open.at.position + sectors(open.len) as u64 };
        }
        let lead = if at.position == 0 { SECTOR } else { 0 };
        if at.position + (lead + sectors(len)) as u64 > self.files.size_of(at.file) {
            at = LogPosition { file: FileNo(at.file.0 + 1), position: 0 };
        }
        at
    }

    /// Opens a chunk with room for `need` bytes of entries.
    fn open_chunk(&mut self, now: Instant, need: usize) {
        assert!(self.open.is_none(), "the chunk before was sealed");
        let place = self.place(CHUNK_HEADER_BYTES + need);
        let lead = if place.position == 0 { SECTOR } else { 0 };
        let at = LogPosition { file: place.file, position: place.position + lead as u64 };
        let len_min = sectors(CHUNK_HEADER_BYTES + need);
        let left = usize::try_from(self.files.size_of(at.file) - at.position).unwrap_or(usize::MAX);
        assert!(len_min <= left, "a chunk of the largest batch fits a file");
        let len_max = self.config.chunk_bytes_max.max(len_min).min(left / SECTOR * SECTOR);
        let len_max = self.blocks.begin(lead + len_min, lead + len_max) - lead;
        let block = self.blocks.current();
        let mut parts = Vec::new();
        if lead > 0 {
            let header = FileHeader {
                shard: self.config.shard,
                journal: self.journal,
                file: at.file,
                oldest: self.files.oldest(),
                first: self.sequence,
                incarnation: self.incarnation,
            };
            self.files.begin(at.file, self.sequence);
            header.put(block);
            parts.push(block.split().freeze());
        }
        block.put_bytes(0, CHUNK_HEADER_BYTES);
        let header = block.split();
        parts.push(Bytes::new());
        self.open = Some(Open {
            sequence: self.sequence,
            at,
            len: CHUNK_HEADER_BYTES,
            len_max,
            header,
            parts,
            entries: 0,
            last_crc: ChunkHeader::seed(self.incarnation, self.sequence),
            zeros: 0,
            since: now,
        });
        self.next = at;
        self.sequence += 1;
    }

    /// Closes the open chunk, if there is one, and queues it for writing.
    fn seal(&mut self) {
        let Some(mut open) = self.open.take() else {
            return;
        };
        let payload = open.len - CHUNK_HEADER_BYTES;
        let header = ChunkHeader {
            payload_len: u32::try_from(payload).expect("a chunk fits a file, whose sectors fit 32 bits"),
            entries: open.entries,
            last_crc: open.last_crc,
            position: open.at.position,
            journal: self.journal,
            incarnation: self.incarnation,
            sequence: open.sequence,
            flushed: self.flushed,
            file: open.at.file,
        };
        header.write(open.header.first_chunk_mut().expect("it was split off at this length"));
        let header_part = usize::from(open.parts.len() > 1 + open.entries as usize);
        open.parts[header_part] = open.header.freeze();
        let padding = sectors(open.len) - open.len + open.zeros;
        if padding > 0 {
            let block = self.blocks.current();
            block.put_bytes(0, padding);
            open.parts.push(block.split().freeze());
        }
        let lead = if header_part > 0 { SECTOR } else { 0 };
        self.next = LogPosition { file: open.at.file, position: open.at.position + sectors(open.len) as u64 };
        self.chunks.push_back(Chunk {
            sequence: open.sequence,
            file: open.at.file,
            position: open.at.position - lead as u64,
            bytes: payload,
            len: lead + sectors(open.len) + open.zeros,
            since: open.since,
            state: State::Sealed { parts: open.parts, sync: false },
        });
        let confirms_all = self.flushed + 1 == open.sequence;
        self.unconfirmed = open.entries > 0 || (self.unconfirmed && !confirms_all);
    }

    pub fn poll_op(&mut self, now: Instant, ops: &mut OpCounter) -> Option<DiskOp> {
        self.handle_timeout(now);
        self.form_group();
        self.seal_lazy();
        self.next_write(ops)
            .or_else(|| self.next_sync(ops))
            .or_else(|| self.files.next_op(now, self.missing_file(), ops))
    }

    fn form_group(&mut self) {
        if self.group.is_some() || self.wanted <= self.flushed {
            return;
        }
        // What is held back by the barrier cannot be in one group with it.
        let group = if self.flushed < self.barrier { self.barrier } else { self.wanted };
        if self.open.as_ref().is_some_and(|open| open.sequence <= group) {
            self.seal();
        }
        self.group = Some(group);
        let mut unwritten = self.chunks.iter_mut().skip(self.issued).take_while(|c| c.sequence <= group);
        if let (Some(Chunk { state: State::Sealed { sync, .. }, .. }), None) =
            (unwritten.next(), unwritten.next())
        {
            *sync = true;
        }
    }

    fn seal_lazy(&mut self) {
        let is_worth_it = self
            .open
            .as_ref()
            .is_some_and(|open| open.sequence > self.wanted && open.len >= LAZY_WRITE_BYTES);
        let is_free =
            self.issued == self.chunks.len() && self.writing.len() < self.config.writes_in_flight_max;
        if is_worth_it && is_free {
            self.seal();
        }
    }

    fn next_write(&mut self, ops: &mut OpCounter) -> Option<DiskOp> {
        if self.writing.len() >= self.config.writes_in_flight_max {
            return None;
        }
        let chunk = self.chunks.get_mut(self.issued)?;
        let is_held = chunk.sequence > self.barrier && self.flushed < self.barrier;
        if is_held || !self.files.is_ready(chunk.file) {
            return None;
        }
        let State::Sealed { parts, sync } = &mut chunk.state else {
            unreachable!("chunks are given to the disk in order");
        };
        let (parts, sync) = (std::mem::take(parts), *sync);
        chunk.state = State::Writing { sync };
        let op = ops.next();
        self.writing.push((op, chunk.sequence));
        self.issued += 1;
        Some(DiskOp::Write { op, file: chunk.file, position: chunk.position, parts, sync })
    }

    /// Syncs the oldest file in which chunks of the group are written and not durable, once none of the group is
    /// still being written there.
    fn next_sync(&mut self, ops: &mut OpCounter) -> Option<DiskOp> {
        let group = self.group?;
        if self.syncing.is_some() {
            return None;
        }
        let of_group = || self.chunks.iter().take_while(|c| c.sequence <= group);
        let file = of_group().find(|c| matches!(c.state, State::Written))?.file;
        let is_incomplete = of_group()
            .filter(|c| c.file == file)
            .any(|c| matches!(c.state, State::Sealed { sync: false, .. } | State::Writing { sync: false }));
        if is_incomplete {
            return None;
        }
        for chunk in self.chunks.iter_mut().filter(|c| c.file == file && matches!(c.state, State::Written)) {
            chunk.state = State::Syncing;
        }
        let op = ops.next();
        self.syncing = Some((op, file));
        Some(DiskOp::Sync { op, file: FileName::Journal(file) })
    }

    /// The next file to make: that of a waiting chunk, the current one, or one more.
    fn missing_file(&self) -> Option<FileNo> {
        let waiting = self.chunks.get(self.issued).map(|c| c.file);
        let first = waiting.unwrap_or(self.next.file).0;
        let last = match self.stop {
            Stop::No => self.next.file.0 + 1,
            // Only what is needed to make durable what was appended.
            _ => waiting?.0,
        };
        (first..=last).map(FileNo).find(|&file| !self.files.is_ready(file))
    }

    pub fn handle(
        &mut self,
        now: Instant,
        event: DiskEvent,
        events: &mut VecDeque<JournalEvent>,
    ) -> Result<(), FatalReason> {
        match event {
            DiskEvent::Written { op, result } => self.on_written(op, result, events),
            DiskEvent::Synced { op, result } => self.on_synced(op, result, events),
            DiskEvent::Prepared { op, result } => {
                self.on_prepared(now, op, result, events);
                Ok(())
            }
            DiskEvent::Done { op, result } => {
                self.files.on_removed(op, result);
                Ok(())
            }
            // Of recovery, or of a read that no one waits for.
            _ => Ok(()),
        }
    }

    fn on_written(
        &mut self,
        op: OpNo,
        result: Result<(), DiskError>,
        events: &mut VecDeque<JournalEvent>,
    ) -> Result<(), FatalReason> {
        let at =
            self.writing.iter().position(|&(writing, _)| writing == op).expect("each write is answered once");
        let (_, sequence) = self.writing.swap_remove(at);
        let first = self.chunks.front().expect("a chunk that is being written is kept").sequence;
        let chunk = usize::try_from(sequence - first).ok().and_then(|i| self.chunks.get_mut(i));
        let chunk = chunk.expect("a chunk that is being written is kept");
        result.map_err(|error| FatalReason::FlushFailed { file: chunk.file, error })?;
        self.stats.chunks_written += 1;
        self.stats.bytes_written += chunk.len as u64;
        let State::Writing { sync } = chunk.state else {
            unreachable!("a chunk is written once");
        };
        if sync {
            self.stats.syncs += 1;
            chunk.state = State::Durable;
            self.advance(events);
        } else {
            chunk.state = State::Written;
        }
        Ok(())
    }

    fn on_synced(
        &mut self,
        op: OpNo,
        result: Result<(), DiskError>,
        events: &mut VecDeque<JournalEvent>,
    ) -> Result<(), FatalReason> {
        let (syncing, file) = self.syncing.take().expect("each sync is answered once");
        assert_eq!(syncing, op, "one sync at a time");
        result.map_err(|error| FatalReason::FlushFailed { file, error })?;
        self.stats.syncs += 1;
        for chunk in self.chunks.iter_mut().filter(|c| matches!(c.state, State::Syncing)) {
            chunk.state = State::Durable;
        }
        self.advance(events);
        Ok(())
    }

    /// Reports what has become durable without a gap.
    fn advance(&mut self, events: &mut VecDeque<JournalEvent>) {
        let before = self.flushed;
        while self.chunks.front().is_some_and(|c| matches!(c.state, State::Durable)) {
            let chunk = self.chunks.pop_front().expect("one is there");
            assert_eq!(chunk.sequence, self.flushed + 1, "chunks become durable without a gap");
            self.flushed = chunk.sequence;
            self.unflushed_bytes -= chunk.bytes;
            self.issued -= 1;
        }
        if self.flushed == before {
            return;
        }
        self.files.on_flushed(self.flushed);
        events.push_back(JournalEvent::Flushed { upto: Marker(self.flushed) });
        self.group = self.group.filter(|&group| group > self.flushed);
        // Half, so that answers are not held and let go in turns at the bound.
        if self.over_backlog && self.unflushed_bytes <= self.config.backlog_bytes_max / 2 {
            self.over_backlog = false;
            if !self.waits_for_file() {
                events.push_back(JournalEvent::BacklogCleared);
            }
        }
        self.go_on_stopping();
    }

    fn on_prepared(
        &mut self,
        now: Instant,
        op: OpNo,
        result: Result<(), DiskError>,
        events: &mut VecDeque<JournalEvent>,
    ) {
        let waited = self.waits_for_file();
        let made = result.is_ok();
        self.files.on_made(now, op, result);
        if !made {
            return;
        }
        if waited && !self.over_backlog() {
            events.push_back(JournalEvent::BacklogCleared);
        }
        if std::mem::take(&mut self.refused_as_full) {
            events.push_back(JournalEvent::Room);
        }
    }

    /// When the bytes that wait longest must begin to be flushed.
    fn flush_at(&self) -> Option<Instant> {
        let (sequence, since) = match (self.chunks.front(), &self.open) {
            (Some(chunk), _) => (chunk.sequence, chunk.since),
            (None, Some(open)) => (open.sequence, open.since),
            (None, None) => return None,
        };
        (sequence > self.wanted).then(|| since + self.config.flush_interval)
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let make_at = self.missing_file().and_then(|file| self.files.make_again_at(file));
        [self.flush_at(), make_at].into_iter().flatten().min()
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if self.flush_at().is_some_and(|at| at <= now) {
            self.wanted = self.sequence - 1;
        }
    }

    pub fn stop(&mut self) {
        if self.stop == Stop::No {
            self.stop = Stop::Draining;
            self.wanted = self.sequence - 1;
            self.go_on_stopping();
        }
    }

    fn go_on_stopping(&mut self) {
        if !self.is_drained() {
            return;
        }
        match self.stop {
            Stop::Draining => {
                // Not worth waiting for a file: without it, only the end of the log cannot be told from a torn one.
                let place = self.place(CHUNK_HEADER_BYTES);
                if self.unconfirmed && self.files.is_ready(place.file) {
                    // Nothing of this life follows it, so it need not wait for another empty one. A recovery that
                    // trusts a clean mark looks for a chunk behind it, and is done at once where it finds zeros.
                    self.barrier_due = false;
                    let has_room = self.place(CHUNK_HEADER_BYTES + SECTOR) == place;
                    let zeros = if has_room { SECTOR } else { 0 };
                    self.open_chunk(Instant::ZERO, zeros);
                    self.open.as_mut().expect("it was opened").zeros = zeros;
                    self.wanted = self.sequence - 1;
                    self.stop = Stop::Closing;
                } else {
                    self.stop = Stop::Done;
                }
            }
            Stop::Closing => self.stop = Stop::Done,
            Stop::No | Stop::Done => {}
        }
    }

    pub fn resume_from(&self, lsn: Lsn) -> Resume {
        let (end, sequence) = self.begins;
        self.files.resume_from(lsn.chunk, self.flushed).unwrap_or(Resume::Clean { end, sequence })
    }

    pub fn end(&self) -> Option<(LogPosition, u64)> {
        // The chunk with which the next life begins goes exactly there; one of this life might not fit there.
        self.is_stopped().then_some((self.next, self.sequence))
    }

    fn is_drained(&self) -> bool {
        self.open.is_none() && self.chunks.is_empty()
    }

    pub fn release(&mut self, resume: Resume) {
        let file = match resume {
            Resume::From { file, .. } => file,
            Resume::Clean { end, sequence } => {
                self.begins = (end, sequence);
                end.file
            }
        };
        let first = self.chunks.front().map_or(self.next.file, |chunk| chunk.file);
        assert!(file <= first, "{file} is released, {first} is not durable");
        self.files.release(file);
    }

    pub fn live_bytes(&self) -> u64 {
        let end = match &self.open {
            Some(open) => LogPosition { position: open.at.position + open.len as u64, ..open.at },
            None => self.next,
        };
        self.files.live_bytes(end)
    }

    pub fn last_lsn(&self) -> Lsn {
        match &self.open {
            Some(open) if open.entries > 0 => Lsn { chunk: open.sequence, entry: open.entries - 1 },
            Some(open) => Lsn { chunk: open.sequence - 1, entry: u32::MAX },
            None => Lsn { chunk: self.sequence - 1, entry: u32::MAX },
        }
    }

    pub fn journal_id(&self) -> u64 {
        self.journal
    }

    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    pub fn is_stopped(&self) -> bool {
        self.stop == Stop::Done
    }

    pub fn over_backlog(&self) -> bool {
        self.over_backlog || self.waits_for_file()
    }

    /// Whether there are bytes that cannot be written however much time passes, until a file is prepared.
    fn waits_for_file(&self) -> bool {
        let open = self.open.as_ref().map(|open| open.at.file);
        let unwritten = self.chunks.get(self.issued).map(|chunk| chunk.file);
        [open, unwritten].into_iter().flatten().any(|file| !self.files.is_ready(file))
    }

    pub fn stats(&self) -> JournalStats {
        JournalStats { files: self.files.count(), unflushed_bytes: self.unflushed_bytes as u64, ..self.stats }
    }
}
