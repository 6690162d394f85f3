//! The operations of the log in words, in the hash of a run, and in its counts.

use highwater_shards::log::disk::{DiskEvent, DiskOp, FileName};
use xxhash_rust::xxh3::xxh3_64;

use super::counts::Counts;

/// An operation without its bytes.
pub fn op_in_words(op: &DiskOp) -> String {
    let len = |parts: &[bytes::Bytes]| parts.iter().map(bytes::Bytes::len).sum::<usize>();
    match op {
        DiskOp::Write { op, file, position, parts, sync } => {
            format!("{op:?} Write {file} at {position}: {} bytes, sync {sync}", len(parts))
        }
        DiskOp::Put { op, file, position, parts } => {
            format!("{op:?} Put {file} at {position}: {} bytes", len(parts))
        }
        DiskOp::Replace { op, file, parts } => format!("{op:?} Replace {file}: {} bytes", len(parts)),
        DiskOp::Read { op, file, position, len } => format!("{op:?} Read {file} at {position}: {len}"),
        DiskOp::Sync { op, file } => format!("{op:?} Sync {file}"),
        DiskOp::Cut { op, file, len } => format!("{op:?} Cut {file} to {len}"),
        DiskOp::Remove { op, file } => format!("{op:?} Remove {file}"),
        other => format!("{other:?}"),
    }
}

/// An event without its bytes.
pub fn event_in_words(event: &DiskEvent) -> String {
    match event {
        DiskEvent::Read { op, result: Ok(bytes) } => format!("{op:?} Read {} bytes", bytes.len()),
        DiskEvent::Loaded { op, result: Ok(Some(bytes)) } => format!("{op:?} Loaded {} bytes", bytes.len()),
        other => format!("{other:?}"),
    }
}

/// What makes two operations differ.
pub fn op_in_numbers(op: &DiskOp) -> u64 {
    let hash = |parts: &[bytes::Bytes]| parts.iter().fold(0_u64, |h, p| h.rotate_left(7) ^ xxh3_64(p));
    match op {
        DiskOp::Write { op, position, parts, .. } | DiskOp::Put { op, position, parts, .. } => {
            op.0 ^ position.rotate_left(20) ^ hash(parts)
        }
        DiskOp::Replace { op, parts, .. } => op.0 ^ hash(parts),
        DiskOp::Read { op, position, len, .. } => {
            op.0 ^ position.rotate_left(20) ^ u64::from(*len).rotate_left(40)
        }
        other => xxh3_64(op_in_words(other).as_bytes()),
    }
}

pub fn count(op: &DiskOp, counts: &mut Counts) {
    match op {
        DiskOp::Put { file: FileName::Segment(name), position, .. } => {
            counts.moves += 1;
            counts.segments_begun += u64::from(*position == 0 && name.generation == 0);
        }
        DiskOp::Put { file: FileName::Index(_), .. } => counts.indexes_written += 1,
        DiskOp::Remove { file: FileName::Segment(_), .. } => counts.segments_removed += 1,
        DiskOp::Remove { file: FileName::Journal(_), .. } => counts.files_removed += 1,
        DiskOp::Cut { file: FileName::Segment(_), .. } => counts.cuts += 1,
        DiskOp::RemoveFolder { .. } => counts.folders_removed += 1,
        DiskOp::Prepare { .. } => counts.files_prepared += 1,
        DiskOp::Recycle { .. } => counts.files_recycled += 1,
        DiskOp::Replace { .. } => counts.checkpoints += 1,
        _ => {}
    }
}
