//! Reads of what has left memory, from segment files.
//!
//! Floor 1, pure; one [`Reader`] for each shard, owned by its storage. A read is a small walk: the segment's sparse
//! index says where to begin, or a *cursor* does, which remembers where an earlier answer ended; then the file is read
//! in *windows* of up to a MiB, whose frames are checked one by one. Answers share the memory of their windows.
//! A reader that goes on where it ended gets the next window fetched before it asks. Windows keep a pace beside writes
//! (`pace.rs`) unless they are urgent; what is small passes them, and those who wait for one get it in the order in
//! which they came to wait.
//!
//! It never writes, never serves a byte that its checksums do not vouch for, never answers from a file that was
//! forgotten or from behind the end that it was told, and never holds more windows and indexes than its budgets.

mod cursors;
mod indexes;
mod job;
mod pace;
#[cfg(test)]
mod tests;
mod turns;
mod windows;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use bytes::Bytes;

use self::cursors::Cursors;
use self::indexes::Indexes;
use self::job::{Goal, Job, JobId, Known, Walk};
use self::pace::Pace;
use self::turns::Turns;
use self::windows::{Place, Windows};
use super::Slot;
use super::disk::{DiskError, DiskEvent, DiskOp, FileName, OpNo, SegmentName};
use super::segment::SegmentMeta;
use super::segment::index::{INDEX_ENTRY_BYTES, INDEX_HEADER_BYTES, INTERVAL_BYTES, Index, IndexEntry};
use crate::ids::{Map, Offset, PartitionId};
use crate::time::Instant;

/// The bounds of a shard's reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReaderConfig {
    /// Bytes of one read of a sequential reader. A batch that is larger is read as a whole.
    pub read_bytes: u32,
    /// The same while the shard writes, but for urgent reads: a write waits behind as much at the disk.
    pub read_bytes_beside_writes: u32,
    /// From so many bytes on a read gives way to writes.
    pub bulk_bytes_min: u32,
    /// Bytes of windows that are kept or fetched ahead of their reader; one log gets up to an eighth of it. 0: none.
    pub ahead_bytes_max: usize,
    /// Bytes of indexes that are kept.
    pub index_bytes_max: usize,
    /// Reads of callers that are served at a time. Each holds up to one window, or one batch if that is larger.
    pub reads_in_flight_max: usize,
    /// Reads that wait for their turn; more are answered with [`ReadFault::Overloaded`].
    pub waiting_max: usize,
}

impl Default for ReaderConfig {
    fn default() -> Self {
        Self {
            read_bytes: 1024 * 1024,
            read_bytes_beside_writes: 256 * 1024,
            bulk_bytes_min: 128 * 1024,
            ahead_bytes_max: 64 * 1024 * 1024,
            index_bytes_max: 16 * 1024 * 1024,
            reads_in_flight_max: 64,
            waiting_max: 64 * 1024,
        }
    }
}

/// A read of batches.
#[derive(Clone, Copy, Debug)]
pub struct SegmentRead<'a> {
    /// Comes back with the answer.
    pub ticket: u64,
    pub slot: Slot,
    pub partition: PartitionId,
    /// The first batch is the one that holds this offset, or else the first one behind it.
    pub from: Offset,
    /// Batches that do not end at or before this are not seen.
    pub below: Offset,
    pub bytes_max: usize,
    /// Take the first batch even if it alone is larger than `bytes_max`.
    pub first_whole: bool,
    /// It does not give way to writes.
    pub is_urgent: bool,
    /// The log's segments, by base.
    pub segments: &'a [SegmentMeta],
}

/// A search for the first batch with a record at `timestamp_ms` or later.
#[derive(Clone, Copy, Debug)]
pub struct TimestampRead<'a> {
    /// Comes back with the answer.
    pub ticket: u64,
    pub slot: Slot,
    pub partition: PartitionId,
    pub timestamp_ms: i64,
    /// Batches that end at or before this are not seen: the log's start.
    pub from: Offset,
    /// Batches that do not end at or before this are not seen.
    pub below: Offset,
    /// The log's segments, by base.
    pub segments: &'a [SegmentMeta],
}

/// What a read found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stretch {
    /// Whole checked batches in order, perhaps fewer than could be had. A search by timestamp finds at most one.
    pub batches: Vec<Bytes>,
    /// Where to go on: one past the last of `batches`. Without batches, nothing that is sought lies in the segments from
    /// `from` up to here: at `below`, nothing at all; at `from` itself, the next batch does not fit `below` or
    /// `bytes_max`; in between, ask again from here.
    pub next: Offset,
}

/// Why a read has no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadFault {
    /// A file that the read needed was removed, cut or replaced meanwhile: ask again with the segments as they are now.
    #[error("a segment of the read was removed, cut or replaced meanwhile")]
    Gone,
    #[error("too many reads wait for the disk")]
    Overloaded,
    #[error(
        "{partition}: damaged batch at or behind offset {offset}, in {file}.log at byte {position}. Other replicas \
         have a good copy: remove this one's log and let it be filled again, or restore the file"
    )]
    Damaged { partition: PartitionId, offset: Offset, file: SegmentName, position: u64 },
    #[error("{}: {file}.log could not be read: {error}. Check the disk", .file.partition)]
    Failed { file: SegmentName, error: DiskError },
}

/// The end of a read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Done {
    pub ticket: u64,
    pub result: Result<Stretch, ReadFault>,
}

/// What a reader counts since its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReaderStats {
    /// Reads and searches that were asked for.
    pub reads: u64,
    /// Those of them that did not give way to writes.
    pub urgent_reads: u64,
    /// Bytes of batches that were answered.
    pub bytes: u64,
    /// Reads of segments that the disk was asked for, and the bytes that came.
    pub disk_reads: u64,
    pub disk_bytes: u64,
    /// Windows that were there, or on their way, when their reader came.
    pub window_hits: u64,
    /// Windows that were asked for before their reader came, and those of them that a reader came to.
    pub ahead_reads: u64,
    pub ahead_hits: u64,
    /// Reads that went on where an earlier one had ended.
    pub cursor_hits: u64,
    pub index_loads: u64,
    /// Indexes that were missing or wrong, at least from some place on.
    pub index_rebuilds: u64,
    pub damaged_batches: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Reader {
    config: ReaderConfig,
    known: Known,
    jobs: BTreeMap<JobId, Job>,
    last_job: u64,
    /// Jobs without a turn.
    turns: Turns,
    /// Jobs that have their turn; at most `reads_in_flight_max`.
    active: usize,
    /// To be asked of the disk, for jobs with a turn, and ahead of urgent ones. What nobody waits for any more is passed
    /// over.
    asked: VecDeque<Fetch>,
    /// Likewise, what gives way to writes.
    asked_bulk: VecDeque<Fetch>,
    pace: Pace,
    /// To be asked of the disk ahead of a reader, within the budget of windows.
    asked_ahead: VecDeque<Fetch>,
    /// At most `reads_in_flight_max`.
    in_flight: Map<OpNo, Fetch>,
    ahead_in_flight: usize,
    last_serial: u64,
    done: VecDeque<Done>,
}

/// What is read from the disk. The serial tells one from a later one of the same place.
#[derive(Clone, Copy, Debug)]
struct Fetch {
    what: What,
    serial: u64,
    is_ahead: bool,
    /// It gives way to writes.
    is_bulk: bool,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Window(Place),
    /// With the bytes of the segment that it goes with.
    Index(SegmentName, u64),
}

/// The names of all segments that a partition can have.
fn names_of(partition: PartitionId) -> Range<SegmentName> {
    let name = |base, generation| SegmentName { partition, base, generation };
    name(Offset(0), 0)..name(Offset(u64::MAX), u32::MAX)
}

impl Reader {
    /// # Panics
    /// If `config` allows no read at all.
    pub fn new(config: ReaderConfig) -> Self {
        assert!(
            config.read_bytes.min(config.read_bytes_beside_writes) > 0 && config.reads_in_flight_max > 0,
            "a reader reads something: {config:?}"
        );
        Self {
            config,
            known: Known {
                read_bytes: config.read_bytes,
                urgent_read_bytes: config.read_bytes,
                windows: Windows::new(config.ahead_bytes_max, config.read_bytes as usize),
                indexes: Indexes::new(config.index_bytes_max),
                cursors: Cursors::default(),
                stats: ReaderStats::default(),
            },
            jobs: BTreeMap::new(),
            last_job: 0,
            turns: Turns::default(),
            active: 0,
            asked: VecDeque::new(),
            asked_bulk: VecDeque::new(),
            pace: Pace::default(),
            asked_ahead: VecDeque::new(),
            in_flight: Map::default(),
            ahead_in_flight: 0,
            last_serial: 0,
            done: VecDeque::new(),
        }
    }

    /// Begins a read; its end comes with [`Self::poll_done`], perhaps at once.
    pub fn read(&mut self, read: SegmentRead<'_>) {
        let goal = Goal::Read {
            bytes_max: read.bytes_max,
            first_whole: read.first_whole,
            is_urgent: read.is_urgent,
        };
        let who = (read.ticket, read.slot, read.partition);
        self.begin(Job::new(who, goal, read.from, read.below, read.segments));
    }

    /// Begins a search; like [`Self::read`].
    pub fn find_timestamp(&mut self, read: TimestampRead<'_>) {
        let goal = Goal::Timestamp(read.timestamp_ms);
        let who = (read.ticket, read.slot, read.partition);
        self.begin(Job::new(who, goal, read.from, read.below, read.segments));
    }

    /// The mover wrote frames into this part of the file: the entries of its index that it made for them, and the
    /// largest timestamp of the segment. Of use if the index is in memory; free otherwise.
    pub fn note_moved(
        &mut self,
        name: SegmentName,
        part: Range<u64>,
        max_timestamp_ms: i64,
        entries: &[IndexEntry],
    ) {
        self.known.indexes.note_moved(name, part, max_timestamp_ms, entries);
    }

    /// The file is gone, or holds something else now: what is known of it is dropped, and reads that need it end with
    /// [`ReadFault::Gone`].
    pub fn forget(&mut self, name: SegmentName) {
        self.end_where(|job| job.needs(name));
        self.known.windows.forget(name, 0);
        self.known.cursors.forget(name, 0);
        self.known.indexes.forget(name);
        self.give_turns();
    }

    /// The file ends at `bytes` now, and may grow again from there: to be told before it does. What is known from
    /// behind is dropped, and reads that need the file end with [`ReadFault::Gone`].
    pub fn cut(&mut self, name: SegmentName, bytes: u64) {
        self.end_where(|job| job.needs(name));
        self.known.windows.forget(name, bytes);
        self.known.cursors.forget(name, bytes);
        if self.known.indexes.get(name).is_some() {
            self.known.indexes.truncate(name, bytes);
        } else {
            // One that is being loaded may know of more.
            self.known.indexes.forget(name);
        }
        self.give_turns();
    }

    /// [`Self::forget`] for all segments of a log.
    pub fn forget_log(&mut self, partition: PartitionId) {
        self.end_where(|job| job.partition == partition);
        self.known.windows.forget_log(names_of(partition));
        self.known.cursors.forget_log(partition);
        for name in self.known.indexes.of_log(names_of(partition)) {
            self.known.indexes.forget(name);
        }
        self.give_turns();
    }

    /// Takes what became of an operation. `true`: it was one of this reader.
    pub fn handle(&mut self, now: Instant, event: &DiskEvent) -> bool {
        let DiskEvent::Read { op, result } = event else { return false };
        let Some(fetch) = self.in_flight.remove(op) else { return false };
        self.size_reads(now);
        self.ahead_in_flight -= usize::from(fetch.is_ahead);
        if fetch.is_bulk {
            self.pace.on_read_done(now);
        }
        if let Ok(bytes) = result {
            self.known.stats.disk_bytes += bytes.len() as u64;
        }
        match fetch.what {
            What::Window(place) => self.on_window(place, fetch.serial, result),
            What::Index(name, segment_bytes) => self.on_index(name, fetch.serial, segment_bytes, result),
        }
        self.give_turns();
        true
    }

    /// The next operation for the disk, numbered by `number`.
    pub fn poll_op(&mut self, now: Instant, number: impl FnOnce() -> OpNo) -> Option<DiskOp> {
        self.size_reads(now);
        let (fetch, file, position, len) = self.next_fetch(now)?;
        let op = number();
        let before = self.in_flight.insert(op, fetch);
        assert!(before.is_none(), "each operation has its own number");
        self.ahead_in_flight += usize::from(fetch.is_ahead);
        if fetch.is_bulk {
            self.pace.on_read(now);
        }
        self.known.stats.disk_reads += 1;
        Some(DiskOp::Read { op, file, position, len })
    }

    /// The end of a read. Each one that was begun ends once.
    pub fn poll_done(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    pub fn stats(&self) -> ReaderStats {
        ReaderStats { ahead_hits: self.known.windows.ahead_hits, ..self.known.stats }
    }

    /// Bytes of memory that the budgets count: windows and indexes.
    pub fn bytes_kept(&self) -> usize {
        self.known.windows.bytes() + self.known.indexes.bytes()
    }

    /// Whether no read is under way or waits. The disk may still be reading ahead.
    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    fn size_reads(&mut self, now: Instant) {
        let alone = self.config.read_bytes;
        let beside_writes = self.config.read_bytes_beside_writes.min(alone);
        self.known.read_bytes = if self.pace.is_writing(now) { beside_writes } else { alone };
    }

    fn begin(&mut self, mut job: Job) {
        self.known.stats.reads += 1;
        self.known.stats.urgent_reads += u64::from(job.is_urgent());
        let walk = job.walk(&mut self.known);
        if let Walk::Done(result) = walk {
            self.finish(&job, result);
            return;
        }
        if self.turns.len() >= self.config.waiting_max && self.active >= self.config.reads_in_flight_max {
            self.done.push_back(Done { ticket: job.ticket, result: Err(ReadFault::Overloaded) });
            return;
        }
        self.last_job += 1;
        let id = JobId(self.last_job);
        job.rest();
        self.turns.push(job.slot, id);
        self.jobs.insert(id, job);
        self.give_turns();
    }

    fn give_turns(&mut self) {
        while self.active < self.config.reads_in_flight_max
            && let Some(id) = self.turns.pop()
        {
            self.jobs.get_mut(&id).expect("a job that waits is there").is_active = true;
            self.active += 1;
            self.advance(id);
        }
    }

    /// Lets a job with its turn go on.
    fn advance(&mut self, id: JobId) {
        let job = self.jobs.get_mut(&id).expect("the caller looked it up");
        let is_urgent = job.is_urgent();
        match job.walk(&mut self.known) {
            Walk::Done(result) => {
                let job = self.jobs.remove(&id).expect("it was there just now");
                self.active -= 1;
                self.finish(&job, result);
            }
            Walk::Coming(place) => {
                // It may have been asked for ahead, and wait behind others for that.
                if let Some((serial, len)) = self.known.windows.wait(place, id) {
                    self.ask(What::Window(place), serial, u64::from(len), is_urgent);
                }
            }
            Walk::Window(place, len) => {
                self.last_serial += 1;
                let serial = self.last_serial;
                self.known.windows.expect(place, serial, len, id);
                self.ask(What::Window(place), serial, u64::from(len), is_urgent);
            }
            Walk::Index(name) => {
                let segment_bytes = job.segment_bytes(name);
                self.last_serial += 1;
                let serial = self.last_serial;
                if self.known.indexes.wait(name, serial, id) {
                    self.ask(
                        What::Index(name, segment_bytes),
                        serial,
                        index_bytes_max(segment_bytes),
                        is_urgent,
                    );
                }
            }
        }
    }

    fn finish(&mut self, job: &Job, result: Result<Stretch, ReadFault>) {
        if result.is_ok()
            && let Some((place, len)) = job.ahead(&mut self.known)
        {
            self.last_serial += 1;
            let serial = self.last_serial;
            if self.known.windows.expect_ahead(place, serial, len) {
                self.known.stats.ahead_reads += 1;
                let is_bulk = len >= self.config.bulk_bytes_min && !job.is_urgent();
                let fetch = Fetch { what: What::Window(place), serial, is_ahead: true, is_bulk };
                let queue = if job.is_urgent() { &mut self.asked } else { &mut self.asked_ahead };
                queue.push_back(fetch);
            }
        }
        self.done.push_back(Done { ticket: job.ticket, result });
    }

    /// Ends jobs whose files changed.
    fn end_where(&mut self, is: impl Fn(&Job) -> bool) {
        let gone: Vec<JobId> = self.jobs.iter().filter(|(_, job)| is(job)).map(|(id, _)| *id).collect();
        for id in gone {
            self.fail(id, ReadFault::Gone);
        }
    }

    fn fail(&mut self, id: JobId, fault: ReadFault) {
        let Some(job) = self.jobs.remove(&id) else { return };
        if job.is_active {
            self.active -= 1;
        } else {
            self.turns.remove(job.slot, id);
        }
        self.done.push_back(Done { ticket: job.ticket, result: Err(fault) });
    }

    fn on_window(&mut self, place: Place, serial: u64, result: &Result<Bytes, DiskError>) {
        let Some(coming) = self.known.windows.coming(place, serial) else { return };
        let len = coming.len as usize;
        match result {
            Ok(bytes) => {
                let is_short = bytes.len() < len;
                let kept = bytes.slice(..bytes.len().min(len));
                let waiters = self.known.windows.arrive(place, (!is_short).then_some(&kept));
                for id in waiters {
                    if let Some(job) = self.jobs.get_mut(&id) {
                        job.take(place, kept.clone(), is_short);
                        self.advance(id);
                    }
                }
            }
            Err(error) => {
                let file = place.0;
                let waiters = self.known.windows.arrive(place, None);
                let fault = match error {
                    DiskError::Missing => ReadFault::Gone,
                    &error => {
                        tracing::error!(partition = %file.partition, segment = %file, %error, "a segment could not be read");
                        ReadFault::Failed { file, error }
                    }
                };
                for id in waiters {
                    self.fail(id, fault.clone());
                }
            }
        }
    }

    fn on_index(
        &mut self,
        name: SegmentName,
        serial: u64,
        segment_bytes: u64,
        result: &Result<Bytes, DiskError>,
    ) {
        if !self.known.indexes.is_loading(name, serial) {
            return;
        }
        self.known.stats.index_loads += 1;
        // Without its file an index is made as reads go over the segment.
        let (index, bad) = match result {
            Ok(bytes) => {
                let loaded = Index::load(&name, bytes, segment_bytes);
                (loaded.index, loaded.bad.map(|bad| bad.to_string()))
            }
            Err(error) => (Index::default(), Some(error.to_string())),
        };
        if let Some(bad) = bad {
            self.known.stats.index_rebuilds += 1;
            let entries = index.entries().len();
            tracing::warn!(partition = %name.partition, index = %name, entries, bad, "the rest of an index is built anew");
        }
        for id in self.known.indexes.insert(name, index) {
            if self.jobs.contains_key(&id) {
                self.advance(id);
            }
        }
    }

    /// Queues what a job with its turn waits for.
    fn ask(&mut self, what: What, serial: u64, len: u64, is_urgent: bool) {
        let is_bulk = len >= u64::from(self.config.bulk_bytes_min) && !is_urgent;
        let queue = if is_bulk { &mut self.asked_bulk } else { &mut self.asked };
        queue.push_back(Fetch { what, serial, is_ahead: false, is_bulk });
    }

    fn next_fetch(&mut self, now: Instant) -> Option<(Fetch, FileName, u64, u32)> {
        if self.in_flight.len() >= self.config.reads_in_flight_max {
            return None;
        }
        // What is read ahead leaves half of the disk's turns to those who wait.
        let ahead_max = self.config.reads_in_flight_max.div_ceil(2);
        let may_read_bulk = self.pace.may_read(now);
        loop {
            let queues = [&mut self.asked, &mut self.asked_bulk, &mut self.asked_ahead];
            let allowed = [true, may_read_bulk, may_read_bulk && self.ahead_in_flight < ahead_max];
            let fetch = queues
                .into_iter()
                .zip(allowed)
                .find_map(|(queue, is_allowed)| if is_allowed { queue.pop_front() } else { None })?;
            match fetch.what {
                What::Window(place) => {
                    if let Some(coming) = self.known.windows.coming(place, fetch.serial)
                        && !std::mem::replace(&mut coming.is_issued, true)
                    {
                        return Some((fetch, FileName::Segment(place.0), place.1, coming.len));
                    }
                }
                What::Index(name, segment_bytes) => {
                    if self.known.indexes.is_loading(name, fetch.serial) {
                        let len = u32::try_from(index_bytes_max(segment_bytes)).unwrap_or(u32::MAX);
                        return Some((fetch, FileName::Index(name), 0, len));
                    }
                }
            }
        }
    }

    /// When bulk reads that wait may go on.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let waits = !self.asked_bulk.is_empty() || !self.asked_ahead.is_empty();
        if waits { self.pace.due(now) } else { None }
    }

    /// The shard asks the disk for something that is no read.
    pub fn on_write(&mut self, now: Instant) {
        self.pace.on_write(now);
        self.size_reads(now);
    }

    /// An operation of [`Self::on_write`] ended.
    pub fn on_written(&mut self, now: Instant) {
        self.pace.on_written(now);
    }

    /// Whether what was written to the journal waits too long to be moved.
    pub fn note_behind(&mut self, is_behind: bool) {
        self.pace.note_behind(is_behind);
    }
}

/// The longest that the index of a segment with so many bytes can be.
fn index_bytes_max(segment_bytes: u64) -> u64 {
    INDEX_HEADER_BYTES as u64 + (segment_bytes / INTERVAL_BYTES + 1) * INDEX_ENTRY_BYTES as u64
}
