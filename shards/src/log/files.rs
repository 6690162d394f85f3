//! The files of a running journal: which of them are needed, which may be used again, which is made next.
//!
//! Floor 1, pure; owned by the writer. A file is *ready* (chunks may be written to it), then *begun* (it holds one),
//! then, when no recovery will begin before its end, *spare* until it gets a new number or is removed. Numbers only
//! grow, and only one file at a time is being made and one being removed.
//!
//! The header of each file names the oldest file that was needed when it was begun. Recovery without a checkpoint
//! begins there, so a spare is left alone until a header that does without it is durable: before that, a crash would
//! make it look as if a file of the log had been lost. A file that was removed may come back after a crash, and is a
//! spare again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::checkpoint::Resume;
use super::disk::{DiskError, DiskOp, FileName, FileNo, OpNo};
use super::journal::{JournalConfig, LogPosition, OpCounter};
use crate::time::Instant;

/// How long a file that could not be made is left alone.
const MAKE_RETRY: Duration = Duration::from_secs(1);

/// A file with a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Begun {
    pub file: FileNo,
    /// Of its first chunk.
    pub sequence: u64,
    /// What its header says; see [`super::chunk::FileHeader::oldest`].
    pub oldest: FileNo,
}

/// What recovery found of files.
#[derive(Debug)]
pub(super) struct FoundFiles {
    /// With their sizes, from `oldest` on. Some behind the log's end may not have the size that is configured.
    pub ready: BTreeMap<FileNo, u64>,
    /// Those of them with chunks of the log, by number.
    pub begun: Vec<Begun>,
    /// Before `oldest`.
    pub spares: BTreeMap<FileNo, u64>,
    pub oldest: FileNo,
}

#[derive(Debug)]
pub(super) struct Files {
    /// Of a new file.
    bytes: u64,
    spares_max: usize,
    /// Files that are there with all their blocks, and their sizes.
    ready: BTreeMap<FileNo, u64>,
    /// With their sizes.
    begun: VecDeque<(Begun, u64)>,
    /// Sizes of all but the last one begun.
    full_bytes: u64,
    /// Not released; no file before it is ready or begun.
    oldest: FileNo,
    spares: BTreeMap<FileNo, u64>,
    /// Those whose headers may not be durable.
    announced: VecDeque<Begun>,
    /// Spares before this one are named by no header that counts.
    free_below: FileNo,
    /// Numbers for which there is a file that cannot be used: only a new one takes its place.
    misfits: BTreeSet<FileNo>,
    making: Option<Making>,
    removing: Option<(OpNo, FileNo)>,
    /// After a failure; until one is made no new file is to be had.
    again_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Making {
    op: OpNo,
    file: FileNo,
    is_recycled: bool,
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Recycle(FileNo),
    Prepare,
}

impl Files {
    /// `end`: where the log goes on. `flushed`: everything that was found is durable up to this sequence.
    pub fn new(config: &JournalConfig, found: FoundFiles, end: LogPosition, flushed: u64) -> Self {
        let FoundFiles { mut ready, begun, spares, oldest } = found;
        // A file behind the end was made ahead and may hold chunks of earlier lives, which cannot come back. One of
        // another size than is configured now is made again.
        let misfits: BTreeSet<_> = ready
            .iter()
            .filter(|&(&file, &bytes)| file > end.file && bytes != config.file_bytes)
            .map(|(&file, _)| file)
            .collect();
        ready.retain(|file, _| !misfits.contains(file));
        let mut files = Self {
            bytes: config.file_bytes,
            spares_max: config.spare_files_max,
            ready,
            begun: VecDeque::new(),
            full_bytes: 0,
            oldest,
            spares,
            announced: VecDeque::new(),
            free_below: FileNo(0),
            misfits,
            making: None,
            removing: None,
            again_at: None,
        };
        for begun in begun {
            files.push_begun(begun);
        }
        files.on_flushed(flushed);
        files
    }

    pub fn is_ready(&self, file: FileNo) -> bool {
        self.ready.contains_key(&file)
    }

    /// Of a file that is there or will be made.
    pub fn size_of(&self, file: FileNo) -> u64 {
        self.ready.get(&file).copied().unwrap_or(self.bytes)
    }

    pub fn oldest(&self) -> FileNo {
        self.oldest
    }

    /// How many there are, spares and those behind the end with them.
    pub fn count(&self) -> u64 {
        (self.ready.len() + self.spares.len()) as u64
    }

    /// Takes note of a file's first chunk.
    pub fn begin(&mut self, file: FileNo, sequence: u64) {
        self.push_begun(Begun { file, sequence, oldest: self.oldest });
    }

    fn push_begun(&mut self, begun: Begun) {
        if let Some((last, bytes)) = self.begun.back() {
            assert!(last.file < begun.file, "files are begun in order");
            self.full_bytes += bytes;
        }
        self.announced.push_back(begun);
        self.begun.push_back((begun, self.size_of(begun.file)));
    }

    /// Everything up to this sequence is durable.
    pub fn on_flushed(&mut self, flushed: u64) {
        while let Some(begun) = self.announced.front()
            && begun.sequence <= flushed
        {
            self.free_below = self.free_below.max(begun.oldest);
            self.announced.pop_front();
        }
    }

    /// The last file that begins with this chunk or an earlier one; the oldest if there is none such, `None` if none
    /// is durable.
    pub fn resume_from(&self, sequence: u64, flushed: u64) -> Option<Resume> {
        let begins = |max: u64| self.begun.iter().rev().find(|(b, _)| b.sequence <= max);
        let oldest = || self.begun.front().filter(|(b, _)| b.sequence <= flushed);
        let (begun, _) = begins(sequence.min(flushed)).or_else(oldest)?;
        Some(Resume::From { file: begun.file, sequence: begun.sequence })
    }

    /// Files before `file` are not needed.
    pub fn release(&mut self, file: FileNo) {
        while let Some(&(begun, bytes)) = self.begun.front()
            && begun.file < file
        {
            self.begun.pop_front();
            self.full_bytes -= if self.begun.is_empty() { 0 } else { bytes };
        }
        let needed = self.ready.split_off(&file);
        self.spares.append(&mut self.ready);
        self.ready = needed;
        self.oldest = self.oldest.max(file);
    }

    /// From the beginning of the oldest file to `end`.
    pub fn live_bytes(&self, end: LogPosition) -> u64 {
        match self.begun.back() {
            Some((last, bytes)) if last.file < end.file => self.full_bytes + bytes + end.position,
            _ => self.full_bytes + end.position,
        }
    }

    /// What to ask of the disk to have `wanted`, and to be rid of what is too much.
    pub fn next_op(&mut self, now: Instant, wanted: Option<FileNo>, ops: &mut OpCounter) -> Option<DiskOp> {
        if let Some(file) = wanted
            && self.making.is_none()
            && self.again_at.is_none_or(|at| at <= now)
            && let Some(way) = self.way_to_make(file)
        {
            let op = ops.next();
            let is_recycled = matches!(way, Way::Recycle(_));
            self.making = Some(Making { op, file, is_recycled });
            return Some(match way {
                Way::Recycle(from) => {
                    self.spares.remove(&from);
                    DiskOp::Recycle { op, from, to: file }
                }
                Way::Prepare => DiskOp::Prepare { op, file, size: self.bytes },
            });
        }
        if self.removing.is_none()
            && let Some(file) = self.surplus()
        {
            self.spares.remove(&file);
            let op = ops.next();
            self.removing = Some((op, file));
            return Some(DiskOp::Remove { op, file: FileName::Journal(file) });
        }
        None
    }

    /// How `file` is made; `None` while a spare is about to become free, since zeroing a file takes longer.
    fn way_to_make(&self, file: FileNo) -> Option<Way> {
        if self.misfits.contains(&file) {
            return Some(Way::Prepare);
        }
        match self.free_spare(|bytes, full| bytes == full) {
            Some(from) => Some(Way::Recycle(from)),
            None => (!self.frees_soon(file)).then_some(Way::Prepare),
        }
    }

    /// The oldest spare that may be touched and whose size, beside that of a new file, suits.
    fn free_spare(&self, suits: impl Fn(u64, u64) -> bool) -> Option<FileNo> {
        let mut free = self.spares.range(..self.free_below);
        free.find(|&(_, &bytes)| suits(bytes, self.bytes)).map(|(&file, _)| file)
    }

    /// A spare to be removed.
    fn surplus(&self) -> Option<FileNo> {
        let misfit = self.free_spare(|bytes, full| bytes != full);
        let is_too_many = self.spares.len() > self.spares_max;
        misfit.or_else(|| self.free_spare(|_, _| is_too_many))
    }

    /// Whether a header on its way to the disk will free a spare. One of `wanted` itself, or of a file behind it, is not
    /// on its way.
    fn frees_soon(&self, wanted: FileNo) -> bool {
        let on_its_way = self.announced.iter().rev().find(|begun| begun.file < wanted);
        on_its_way
            .is_some_and(|begun| self.spares.range(..begun.oldest).any(|(_, &bytes)| bytes == self.bytes))
    }

    /// Whether a file that is not ready cannot be had now.
    pub fn cannot_be_made(&self) -> bool {
        self.again_at.is_some()
    }

    /// When to try again to make `wanted`.
    pub fn make_again_at(&self, wanted: FileNo) -> Option<Instant> {
        self.again_at.filter(|_| self.making.is_none() && self.way_to_make(wanted).is_some())
    }

    /// Takes the answer to a file that was made.
    pub fn on_made(&mut self, now: Instant, op: OpNo, result: Result<(), DiskError>) {
        let Making { op: making, file, is_recycled } =
            self.making.take().expect("each file is made once and answered once");
        assert_eq!(making, op, "one file at a time is made");
        match result {
            Ok(()) => {
                self.misfits.remove(&file);
                self.ready.insert(file, self.bytes);
                self.again_at = None;
            }
            Err(error) => {
                tracing::error!(%file, %error, "journal file could not be made; trying again every second");
                // Which of the two names is there now is not known.
                if is_recycled {
                    self.misfits.insert(file);
                }
                self.again_at = Some(now + MAKE_RETRY);
            }
        }
    }

    pub fn on_removed(&mut self, op: OpNo, result: Result<(), DiskError>) {
        let Some((_, file)) = self.removing.take_if(|(removing, _)| *removing == op) else {
            return;
        };
        if let Err(error) = result {
            tracing::warn!(%file, %error, "journal file that is no longer needed could not be removed");
        }
    }
}
