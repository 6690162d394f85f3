//! One new segment as it grows: its frames, its index, and in what order they become durable.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

use super::super::disk::{DiskOp, FileName, OpNo, SegmentName};
use super::super::segment::SegmentMeta;
use super::super::segment::format::{Seed, SegmentHeader, put_frame_header};
use super::super::segment::index::{IndexBuilder, IndexSeed, index_header};
use super::super::segment::scan::FIRST_FRAME;
use crate::ids::{Offset, PartitionId};

/// An operation without its number.
#[derive(Clone, Debug)]
pub(super) enum Todo {
    Read { file: FileName, position: u64, len: u32 },
    Put { file: FileName, position: u64, bytes: Bytes },
    Sync(FileName),
    SyncFolder(PartitionId),
    Empty(FileName),
    Remove(FileName),
}

impl Todo {
    pub fn file(&self) -> Option<FileName> {
        match self {
            Self::Read { file, .. } | Self::Put { file, .. } => Some(*file),
            Self::Sync(file) | Self::Empty(file) | Self::Remove(file) => Some(*file),
            Self::SyncFolder(_) => None,
        }
    }

    /// What it costs of the credit.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Read { len, .. } => u64::from(*len),
            Self::Put { bytes, .. } => bytes.len() as u64,
            _ => 0,
        }
    }

    pub fn into_op(self, op: OpNo) -> DiskOp {
        match self {
            Self::Read { file, position, len } => DiskOp::Read { op, file, position, len },
            Self::Put { file, position, bytes } => DiskOp::Put { op, file, position, parts: vec![bytes] },
            Self::Sync(file) => DiskOp::Sync { op, file },
            Self::SyncFolder(partition) => DiskOp::SyncFolder { op, partition },
            Self::Empty(file) => DiskOp::Cut { op, file, len: 0 },
            Self::Remove(file) => DiskOp::Remove { op, file },
        }
    }
}

/// A segment that is being written.
#[derive(Debug)]
pub(super) struct Output {
    name: SegmentName,
    begun_ms: i64,
    seed: Seed,
    /// Frames that were not handed to the disk yet; the first goes to `written`.
    buffer: BytesMut,
    written: u64,
    end: Offset,
    builder: IndexBuilder,
    index_seed: IndexSeed,
    /// The index file so far.
    index: BytesMut,
}

impl Output {
    /// Begins the segment; files of its name that a crash left are emptied first.
    pub fn new(name: SegmentName, begun_ms: i64, todo: &mut VecDeque<Todo>) -> Self {
        todo.push_back(Todo::Empty(FileName::Segment(name)));
        todo.push_back(Todo::Empty(FileName::Index(name)));
        Self {
            name,
            begun_ms,
            seed: Seed::of_segment(&name),
            buffer: BytesMut::new(),
            written: FIRST_FRAME,
            end: name.base,
            builder: IndexBuilder::new(),
            index_seed: IndexSeed::of(&name),
            index: BytesMut::from(&index_header(&name)[..]),
        }
    }

    pub fn buffered_bytes(&self) -> usize {
        self.buffer.len()
    }

    fn position(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Takes the next batch, which takes up offsets from `base` to before `end`.
    pub fn add(&mut self, batch: &[u8], base: Offset, end: Offset, max_timestamp_ms: i64) {
        assert!(base >= self.end, "batches come in order");
        if let Some(entry) = self.builder.add(base, self.position(), max_timestamp_ms) {
            entry.put(&mut self.index, self.index_seed);
        }
        put_frame_header(&mut self.buffer, self.seed, batch);
        self.buffer.put_slice(batch);
        self.end = end;
    }

    /// Hands the frames so far to the disk.
    pub fn flush(&mut self, todo: &mut VecDeque<Todo>) {
        if self.buffer.is_empty() {
            return;
        }
        let position = self.written;
        self.written = self.position();
        let bytes = self.buffer.split().freeze();
        todo.push_back(Todo::Put { file: FileName::Segment(self.name), position, bytes });
    }

    /// Completes the segment. Its header goes last: where it is, all else is durable.
    pub fn close(mut self, todo: &mut VecDeque<Todo>) -> SegmentMeta {
        self.flush(todo);
        let (log, index) = (FileName::Segment(self.name), FileName::Index(self.name));
        let header = SegmentHeader { name: self.name, begun_ms: self.begun_ms }.to_bytes();
        todo.extend([
            Todo::Put { file: index, position: 0, bytes: self.index.freeze() },
            Todo::Sync(index),
            Todo::Sync(log),
            Todo::Put { file: log, position: 0, bytes: Bytes::copy_from_slice(&header) },
            Todo::Sync(log),
        ]);
        SegmentMeta {
            base: self.name.base,
            end: self.end,
            generation: self.name.generation,
            bytes: self.written,
            max_timestamp_ms: self.builder.max_timestamp_ms(),
            begun_ms: self.begun_ms,
        }
    }
}
