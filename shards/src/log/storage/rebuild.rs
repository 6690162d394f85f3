//! Logs put together from their segments, when there is no checkpoint. Floor 1.
//!
//! Folder by folder, segment by segment, every frame is checked. A segment ends where the first frame is missing or bad;
//! whether what is missing between two was needed is seen once the journal was read. A segment that was never compacted
//! ends where the next such one begins: that was begun there, and what lies behind in the first was never counted on.
//! Where two segments overlap otherwise, the one of the later generation covers the other; one without a whole header was
//! never finished.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::moves::SEEK_BYTES;
use super::recovery::Hole;
use super::{Storage, UnderWay};
use crate::batch::BatchHeader;
use crate::ids::{LeaderEpoch, Offset, PartitionId, ProducerId};
use crate::log::checkpoint::{LogState, ProducedBatch, ProducerState};
use crate::log::disk::{DiskEvent, DiskOp, FileName, SegmentName};
use crate::log::journal::JournalStart;
use crate::log::segment::SegmentMeta;
use crate::log::segment::format::{BadHeader, SEGMENT_HEADER_BYTES, Seed, SegmentHeader};
use crate::log::segment::index::NO_TIMESTAMP;
use crate::log::segment::scan::{Check, Order, Scanned, Scanner};
use crate::log::{FatalReason, Lsn};

/// Producers of one log that are remembered, as many as a partition keeps.
const PRODUCERS_MAX: usize = 10_000;
/// Batches of one producer that are remembered.
const BATCHES_MAX: usize = 5;

#[derive(Debug, Default)]
pub(super) struct Rebuild {
    is_listed: bool,
    is_waiting: bool,
    folders: VecDeque<PartitionId>,
    log: Option<Rebuilding>,
}

/// The log of the folder that is being read.
#[derive(Debug)]
struct Rebuilding {
    state: LogState,
    producers: BTreeMap<ProducerId, ProducerState>,
    /// Segments with their sizes, by base, of each the later generation first.
    files: VecDeque<(SegmentName, u64)>,
    segment: Option<Segment>,
    holes: Vec<Hole>,
}

/// The segment that is being read.
#[derive(Debug)]
struct Segment {
    name: SegmentName,
    file_bytes: u64,
    meta: SegmentMeta,
    order: Order,
    /// Where the next segment begins.
    limit: Option<Offset>,
    need: usize,
}

impl Rebuilding {
    fn new(partition: PartitionId, files: Vec<(FileName, u64)>) -> Self {
        let mut segments: Vec<(SegmentName, u64)> = files
            .into_iter()
            .filter_map(|(file, bytes)| match file {
                FileName::Segment(name) => Some((name, bytes)),
                _ => None,
            })
            .collect();
        segments.sort_unstable_by_key(|(name, _)| (name.base, u32::MAX - name.generation));
        let state = LogState {
            partition,
            moved: Lsn::ZERO,
            noted: Lsn::ZERO,
            start: Offset::ZERO,
            end: Offset::ZERO,
            high_watermark: Offset::ZERO,
            cleaned: Offset::ZERO,
            segments: Vec::new(),
            epochs: Vec::new(),
            producers: Vec::new(),
            superseded: Vec::new(),
        };
        Self { state, producers: BTreeMap::new(), files: segments.into(), segment: None, holes: Vec::new() }
    }

    /// Goes to the next segment that can follow. `None`: there is none.
    fn next_segment(&mut self) -> Option<(FileName, u64)> {
        while let Some((name, file_bytes)) = self.files.pop_front() {
            if self.state.segments.last().is_some_and(|last| name.base < last.end) {
                continue;
            }
            let meta = SegmentMeta {
                base: name.base,
                end: name.base,
                generation: name.generation,
                bytes: 0,
                max_timestamp_ms: NO_TIMESTAMP,
                begun_ms: 0,
            };
            let next = self.files.iter().find(|(next, _)| next.generation == 0 && next.base > name.base);
            let limit = next.map(|(next, _)| next.base).filter(|_| name.generation == 0);
            let order = Order::new(&name);
            self.segment = Some(Segment { name, file_bytes, meta, order, limit, need: 0 });
            return Some((FileName::Segment(name), 0));
        }
        None
    }

    fn take(&mut self, header: &BatchHeader, base: Offset, epoch: LeaderEpoch) {
        if self.state.epochs.last().is_none_or(|&(last, _)| last < epoch) {
            self.state.epochs.push((epoch, base));
        }
        let Some((producer, last)) = header.producer.zip(header.last_sequence()) else { return };
        if self.producers.len() >= PRODUCERS_MAX && !self.producers.contains_key(&producer.id) {
            return;
        }
        let known = self.producers.entry(producer.id).or_insert(ProducerState {
            id: producer.id,
            epoch: producer.epoch,
            batches: Vec::new(),
        });
        if known.epoch != producer.epoch {
            known.epoch = producer.epoch;
            known.batches.clear();
        }
        if known.batches.len() == BATCHES_MAX {
            known.batches.remove(0);
        }
        known.batches.push(ProducedBatch { first: producer.base_sequence, last, base });
    }

    /// Takes what was read of a segment. What is to be read next of it, if there is more.
    fn window(&mut self, window: &Bytes) -> Result<Option<(FileName, u64)>, (FileName, u32)> {
        let mut segment = self.segment.take().expect("a window belongs to a segment");
        let file = FileName::Segment(segment.name);
        let mut at = segment.meta.bytes;
        let mut frames = window.as_ref();
        if at == 0 {
            let header = match SegmentHeader::parse_of(&segment.name, window) {
                Ok(header) => header,
                Err(BadHeader::Version(version)) => return Err((file, version)),
                Err(bad) => {
                    tracing::warn!(%file, %bad, "no whole segment; it is left out");
                    return Ok(None);
                }
            };
            segment.meta.begun_ms = header.begun_ms;
            at = SEGMENT_HEADER_BYTES as u64;
            frames = &window[SEGMENT_HEADER_BYTES..];
        }
        let mut scanner =
            Scanner::new(Seed::of_segment(&segment.name), Check::All, frames, at, segment.file_bytes);
        let bad = loop {
            match scanner.scan() {
                Scanned::Frame(frame) if segment.limit.is_some_and(|limit| frame.base >= limit) => {
                    break None;
                }
                Scanned::Frame(frame) => match segment.order.check(&frame) {
                    Ok(()) => {
                        self.take(&frame.header, frame.base, frame.epoch);
                        segment.meta.bytes = frame.end_position();
                        segment.meta.end = frame.end();
                        let newest = segment.meta.max_timestamp_ms.max(frame.header.max_timestamp_ms);
                        segment.meta.max_timestamp_ms = newest;
                    }
                    Err(bad) => break Some(bad),
                },
                // The file is shorter than it was listed.
                Scanned::Incomplete { .. } if frames.len() < segment.need => break None,
                Scanned::Incomplete { need } => {
                    let position = scanner.position();
                    segment.meta.bytes = position;
                    segment.need = need;
                    self.segment = Some(segment);
                    return Ok(Some((file, position)));
                }
                Scanned::End => break None,
                Scanned::Bad(bad) => break Some(bad),
            }
        };
        segment.meta.bytes = segment.meta.bytes.max(SEGMENT_HEADER_BYTES as u64);
        if let Some(bad) = bad {
            let (position, offset) = (segment.meta.bytes, segment.meta.end);
            let partition = self.state.partition;
            tracing::warn!(%partition, %file, position, %offset, %bad, "the segment ends here");
        }
        if segment.meta.end > segment.meta.base {
            if let Some(last) = self.state.segments.last() {
                let is_compacted = segment.name.generation > 0 || last.generation > 0;
                if !is_compacted && last.end < segment.meta.base {
                    self.holes.push(Hole { end: last.end, next: segment.meta.base });
                }
            }
            self.state.segments.push(segment.meta);
        }
        Ok(None)
    }

    fn finish(mut self) -> Option<(LogState, Vec<Hole>)> {
        let first = self.state.segments.first()?;
        self.state.start = first.base;
        self.state.high_watermark = first.base;
        self.state.end = self.state.segments.last()?.end;
        self.state.producers = self.producers.into_values().collect();
        Some((self.state, self.holes))
    }
}

impl Storage {
    /// Asks for what comes next, unless something is under way or was found that is to be told first.
    pub(super) fn step_rebuild(&mut self) {
        while self.events.is_empty() && self.rebuild().is_some_and(|r| r.is_listed && !r.is_waiting) {
            self.step_one();
        }
    }

    fn step_one(&mut self) {
        let rebuild = self.rebuild().expect("the caller rebuilds");
        rebuild.is_waiting = true;
        if let Some(log) = &mut rebuild.log {
            match log.next_segment() {
                Some((file, position)) => self.read_segment(file, position),
                None => {
                    let log = rebuild.log.take().expect("it was just seen");
                    rebuild.is_waiting = false;
                    if let Some((state, holes)) = log.finish() {
                        self.is_rebuilt();
                        self.restore(state, holes);
                    }
                }
            }
            return;
        }
        match rebuild.folders.pop_front() {
            Some(partition) => {
                rebuild.log = Some(Rebuilding::new(partition, Vec::new()));
                self.ask(UnderWay::Recovery, |op| DiskOp::ListFolder { op, partition });
            }
            None => self.begin_journal(JournalStart::Begin),
        }
    }

    fn read_segment(&mut self, file: FileName, position: u64) {
        let rebuild = self.rebuild().expect("the caller rebuilds");
        let segment = rebuild.log.as_ref().and_then(|log| log.segment.as_ref());
        let segment = segment.expect("a segment is being read");
        let left = usize::try_from(segment.file_bytes.saturating_sub(position)).unwrap_or(usize::MAX);
        let len = u32::try_from((4 * SEEK_BYTES).max(segment.need).min(left)).unwrap_or(u32::MAX);
        self.ask(UnderWay::Recovery, |op| DiskOp::Read { op, file, position, len });
    }

    pub(super) fn on_rebuild_event(&mut self, event: DiskEvent) {
        let owned = self.config.owned.clone();
        let Some(rebuild) = self.rebuild() else { return };
        rebuild.is_waiting = false;
        match event {
            DiskEvent::FoldersListed { result: Ok(folders), .. } => {
                rebuild.is_listed = true;
                rebuild.folders = folders.into_iter().filter(|&folder| owned.owns(folder)).collect();
            }
            DiskEvent::FolderListed { result: Ok(files), .. } => {
                let log = rebuild.log.as_mut().expect("its folder was listed");
                *log = Rebuilding::new(log.state.partition, files);
            }
            DiskEvent::Read { result: Ok(window), .. } => {
                let log = rebuild.log.as_mut().expect("its segment was read");
                match log.window(&window) {
                    Ok(None) => {}
                    Ok(Some((file, position))) => {
                        rebuild.is_waiting = true;
                        self.read_segment(file, position);
                    }
                    Err((file, version)) => self.fail(FatalReason::SegmentFormat { file, version }),
                }
            }
            DiskEvent::FoldersListed { result: Err(error), .. }
            | DiskEvent::FolderListed { result: Err(error), .. }
            | DiskEvent::Read { result: Err(error), .. } => self.fail(FatalReason::RecoveryFailed { error }),
            other => unreachable!("{other:?} answers nothing of a rebuilding"),
        }
    }
}
