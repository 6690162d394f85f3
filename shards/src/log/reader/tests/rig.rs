//! A reader over a few files in memory, and what is in them as a plain list.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use super::super::*;
use crate::batch::{self, BatchBuilder};
use crate::ids::{LeaderEpoch, PartitionIndex, TopicId};
pub use crate::log::random::Random;
use crate::log::segment::format::{FRAME_HEADER_BYTES, SegmentHeader, put_frame_header};
use crate::log::segment::format::{SEGMENT_HEADER_BYTES, Seed};
use crate::log::segment::index::IndexBuilder;

#[derive(Clone, Debug)]
pub struct Stored {
    pub base: Offset,
    pub end: Offset,
    pub timestamp_ms: i64,
    pub bytes: Bytes,
    pub segment: SegmentName,
    pub position: u64,
}

/// One log: its segments, and what is in them.
#[derive(Clone, Debug)]
pub struct Log {
    pub slot: Slot,
    pub partition: PartitionId,
    pub segments: Vec<SegmentMeta>,
    pub batches: Vec<Stored>,
    pub end: Offset,
}

pub fn a_batch(base: Offset, records: u64, timestamp_ms: i64, len: usize, fill: u8) -> Bytes {
    let mut builder = BatchBuilder::new();
    for i in 0..records {
        let value = vec![fill; if i == 0 { len } else { 0 }];
        builder = builder.record(timestamp_ms, None, Some(&value));
    }
    let mut out = BytesMut::new();
    batch::put_patched(&mut out, &builder.build(), base, LeaderEpoch(3));
    out.freeze()
}

impl Log {
    pub fn new(index: u32) -> Self {
        let partition = PartitionId { topic: TopicId(5), index: PartitionIndex(index) };
        Self { slot: Slot(index), partition, segments: Vec::new(), batches: Vec::new(), end: Offset(0) }
    }

    pub fn name(&self, segment: &SegmentMeta) -> SegmentName {
        SegmentName { partition: self.partition, base: segment.base, generation: segment.generation }
    }

    pub fn begin_segment(&mut self, files: &mut Files, generation: u32) -> SegmentName {
        let meta = SegmentMeta {
            base: self.end,
            end: self.end,
            generation,
            bytes: SEGMENT_HEADER_BYTES as u64,
            max_timestamp_ms: -1,
            begun_ms: 0,
        };
        let name = self.name(&meta);
        files.insert(FileName::Segment(name), SegmentHeader { name, begun_ms: 0 }.to_bytes().to_vec());
        self.segments.push(meta);
        name
    }

    /// Appends to the last segment, `gap` offsets behind the end.
    pub fn append(&mut self, files: &mut Files, gap: u64, records: u64, timestamp_ms: i64, len: usize) {
        let base = self.end.plus(gap);
        let bytes = a_batch(base, records, timestamp_ms, len, (base.0 % 251) as u8);
        let meta = *self.segments.last().unwrap();
        let segment = self.name(&meta);
        let file = files.get_mut(&FileName::Segment(segment)).unwrap();
        file.truncate(meta.bytes as usize);
        let mut frame = Vec::new();
        put_frame_header(&mut frame, Seed::of_segment(&segment), &bytes);
        file.put_slice(&frame);
        file.put_slice(&bytes);
        self.end = base.plus(records);
        let meta = self.segments.last_mut().unwrap();
        let position = meta.bytes;
        meta.bytes += (FRAME_HEADER_BYTES + bytes.len()) as u64;
        meta.end = self.end;
        meta.max_timestamp_ms = meta.max_timestamp_ms.max(timestamp_ms);
        self.batches.push(Stored { base, end: self.end, timestamp_ms, bytes, segment, position });
    }

    /// The index of a segment as its mover would have made it.
    pub fn index_of(&self, name: SegmentName) -> Index {
        let mut builder = IndexBuilder::new();
        let mut index = Index::default();
        for b in self.batches.iter().filter(|b| b.segment == name) {
            if let Some(entry) = builder.add(b.base, b.position, b.timestamp_ms) {
                index.push(entry);
            }
        }
        index
    }

    pub fn put_index(&self, files: &mut Files, name: SegmentName) {
        let mut file = Vec::new();
        self.index_of(name).put_file(&mut file, &name);
        files.insert(FileName::Index(name), file);
    }

    /// A log of one segment with so many batches of one record and `len` bytes each, indexed.
    pub fn simple(files: &mut Files, index: u32, batches: usize, len: usize) -> Self {
        let mut log = Self::new(index);
        let name = log.begin_segment(files, 0);
        for i in 0..batches {
            log.append(files, 0, 1, i as i64, len);
        }
        log.put_index(files, name);
        log
    }

    /// Cuts the log at a batch of its last segment.
    pub fn cut(&mut self, batch: usize) -> (SegmentName, u64) {
        let at = self.batches[batch].clone();
        let before = batch.checked_sub(1).map(|i| self.batches[i].clone());
        self.batches.truncate(batch);
        let meta = self.segments.last_mut().unwrap();
        meta.bytes = at.position;
        meta.end = before.map_or(meta.base, |b| if b.segment == at.segment { b.end } else { meta.base });
        self.end = meta.end;
        (at.segment, at.position)
    }
}

pub type Files = BTreeMap<FileName, Vec<u8>>;

pub struct Rig {
    pub reader: Reader,
    pub files: Files,
    pub in_flight: Vec<DiskOp>,
    pub ops: u64,
    pub tickets: u64,
    pub done: BTreeMap<u64, Result<Stretch, ReadFault>>,
    /// In the order in which they ended.
    pub order: Vec<u64>,
    /// What those of `in_flight` with an odd number found when they were asked for; the others find what is there when
    /// they complete.
    pub found: BTreeMap<OpNo, Result<Bytes, DiskError>>,
    /// What was handed to the reader.
    pub given: Vec<Bytes>,
    pub broken: Option<DiskError>,
    pub now: Instant,
}

pub fn small() -> ReaderConfig {
    ReaderConfig {
        read_bytes: 8192,
        read_bytes_beside_writes: 4096,
        bulk_bytes_min: 4096,
        ahead_bytes_max: 256 * 1024,
        index_bytes_max: 64 * 1024,
        reads_in_flight_max: 4,
        waiting_max: 1000,
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub from: u64,
    pub below: u64,
    pub bytes_max: usize,
    pub first_whole: bool,
    pub is_urgent: bool,
}

impl Rig {
    pub fn new(config: ReaderConfig, files: Files) -> Self {
        Self {
            reader: Reader::new(config),
            files,
            in_flight: Vec::new(),
            ops: 0,
            tickets: 0,
            done: BTreeMap::new(),
            order: Vec::new(),
            found: BTreeMap::new(),
            given: Vec::new(),
            broken: None,
            now: Instant::ZERO,
        }
    }

    pub fn begin(&mut self, log: &Log, ask: Ask) -> u64 {
        self.tickets += 1;
        self.reader.read(SegmentRead {
            ticket: self.tickets,
            slot: log.slot,
            partition: log.partition,
            from: Offset(ask.from),
            below: Offset(ask.below),
            bytes_max: ask.bytes_max,
            first_whole: ask.first_whole,
            is_urgent: ask.is_urgent,
            segments: &log.segments,
        });
        self.poll();
        self.tickets
    }

    pub fn begin_search(&mut self, log: &Log, timestamp_ms: i64, from: u64, below: u64) -> u64 {
        self.tickets += 1;
        self.reader.find_timestamp(TimestampRead {
            ticket: self.tickets,
            slot: log.slot,
            partition: log.partition,
            timestamp_ms,
            from: Offset(from),
            below: Offset(below),
            segments: &log.segments,
        });
        self.poll();
        self.tickets
    }

    /// Takes what the reader has to say and to ask.
    pub fn poll(&mut self) {
        while let Some(op) = self.reader.poll_op(self.now, || {
            self.ops += 1;
            OpNo(self.ops)
        }) {
            if let DiskOp::Read { op: number, .. } = op
                && number.0 % 2 == 1
            {
                let found = self.look(&op);
                self.found.insert(number, found);
            }
            self.in_flight.push(op);
        }
        while let Some(done) = self.reader.poll_done() {
            self.order.push(done.ticket);
            assert!(self.done.insert(done.ticket, done.result).is_none(), "a read ends once");
        }
        assert!(self.in_flight.len() <= self.reader.config.reads_in_flight_max);
        self.reader.known.windows.check();
        self.reader.known.cursors.len();
    }

    fn look(&self, op: &DiskOp) -> Result<Bytes, DiskError> {
        let DiskOp::Read { file, position, len, .. } = op else { panic!("it reads only") };
        if let Some(error) = self.broken {
            return Err(error);
        }
        let bytes = self.files.get(file).ok_or(DiskError::Missing)?;
        let from = bytes.len().min(*position as usize);
        Ok(Bytes::copy_from_slice(&bytes[from..bytes.len().min(from + *len as usize)]))
    }

    pub fn complete(&mut self, index: usize) {
        let asked = self.in_flight.remove(index);
        let DiskOp::Read { op, .. } = asked else { panic!("it reads only") };
        let result = self.found.remove(&op).unwrap_or_else(|| self.look(&asked));
        if let Ok(bytes) = &result {
            self.given.push(bytes.clone());
        }
        assert!(self.reader.handle(self.now, &DiskEvent::Read { op, result }));
        self.poll();
    }

    pub fn run(&mut self) {
        let mut steps = 0;
        while !self.in_flight.is_empty() {
            self.complete(0);
            steps += 1;
            assert!(steps < 100_000, "it comes to an end");
        }
        assert!(self.reader.is_idle());
        assert_eq!(self.reader.active, 0);
    }

    pub fn read(&mut self, log: &Log, ask: Ask) -> Result<Stretch, ReadFault> {
        let ticket = self.begin(log, ask);
        self.run();
        self.done.remove(&ticket).expect("every read ends")
    }

    pub fn search(
        &mut self,
        log: &Log,
        timestamp_ms: i64,
        from: u64,
        below: u64,
    ) -> Result<Stretch, ReadFault> {
        let ticket = self.begin_search(log, timestamp_ms, from, below);
        self.run();
        self.done.remove(&ticket).expect("every search ends")
    }
}

/// Whether an answer is one that the log allows.
pub fn check_answer(log: &Log, ask: Ask, stretch: &Stretch) {
    let first = log.batches.partition_point(|b| b.end.0 <= ask.from);
    let expected = &log.batches[first..];
    let mut bytes = 0;
    assert!(stretch.batches.len() <= expected.len(), "{ask:?}");
    for (i, (batch, stored)) in stretch.batches.iter().zip(expected).enumerate() {
        assert!(*batch == stored.bytes, "batch {i} of {ask:?} is the one at {}", stored.base);
        assert!(stored.end.0 <= ask.below, "{ask:?}");
        bytes += batch.len();
        assert!(bytes <= ask.bytes_max || (i == 0 && ask.first_whole), "{ask:?}");
    }
    match stretch.batches.len() {
        0 => {
            let next = expected.first();
            assert!(
                next.is_none_or(|b| stretch.next <= b.base || stretch.next.0 == ask.from),
                "{ask:?} {stretch:?}"
            );
            assert!(stretch.next.0 >= ask.from);
            let could_be_had = next
                .is_some_and(|b| b.end.0 <= ask.below && (b.bytes.len() <= ask.bytes_max || ask.first_whole));
            assert!(!could_be_had || stretch.next.0 > ask.from, "{ask:?} makes progress");
        }
        n => assert_eq!(stretch.next, expected[n - 1].end),
    }
}
