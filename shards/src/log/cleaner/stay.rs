//! What stays of one batch.

use super::super::segment::scan::Frame;
use super::keys::KeyMap;
use crate::batch::codec::{self, CodecError};
use crate::batch::{
    BatchError, BatchHeader, Compression, HEADER_BYTES, Rebuilt, Records, TimestampType, plain_records,
    put_rebuilt,
};
use crate::ids::Offset;

/// What decides about records.
#[derive(Debug)]
pub(super) struct Rule {
    pub keys: KeyMap,
    /// The dirty part; the map has seen it.
    pub dirty: std::ops::Range<Offset>,
    pub now_ms: i64,
    pub tombstone_ms: i64,
    pub decompressed_bytes_max: usize,
    pub batch_bytes_max: usize,
}

/// What becomes of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    AsItIs,
    /// [`Scratch::batch`] takes its place, with so many records.
    Anew {
        records: u32,
    },
    Gone,
    /// Stays as it is, though perhaps it should not: its records cannot be read, or it would grow too large.
    Whole,
}

/// Memory that is used again for each batch.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    unpacked: Vec<u8>,
    stays: Vec<bool>,
    body: Vec<u8>,
    packed: Vec<u8>,
    pub batch: Vec<u8>,
}

/// What is larger goes back between batches: one huge batch does not make a job hold its memory to the end.
const SCRATCH_BYTES_KEPT: usize = 2 * 1024 * 1024;

impl Scratch {
    /// How much was unpacked of the last batch.
    pub fn unpacked_bytes(&self) -> usize {
        self.unpacked.len()
    }

    pub fn unpacked_mut(&mut self) -> &mut Vec<u8> {
        &mut self.unpacked
    }

    pub fn clear(&mut self) {
        for buffer in [&mut self.unpacked, &mut self.body, &mut self.packed, &mut self.batch] {
            buffer.clear();
            buffer.shrink_to(SCRATCH_BYTES_KEPT);
        }
        self.stays.clear();
        self.stays.shrink_to(SCRATCH_BYTES_KEPT);
    }
}

/// Why the records of a batch are not looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Unreadable;

impl From<CodecError> for Unreadable {
    fn from(_: CodecError) -> Self {
        Self
    }
}

impl From<BatchError> for Unreadable {
    fn from(_: BatchError) -> Self {
        Self
    }
}

/// The records of the batch, unpacked into `unpacked` if they are compressed.
pub(super) fn records<'a>(
    header: &BatchHeader,
    batch: &'a [u8],
    bytes_max: usize,
    unpacked: &'a mut Vec<u8>,
) -> Result<Records<'a>, Unreadable> {
    Ok(Records::new(header, plain_records(header, batch, bytes_max, unpacked)?))
}

impl Rule {
    /// Decides about the batch in `frame`. `header_stays`: at least its header is to stay. `is_behind_whole`: a batch
    /// before it stays though it may hold older values of any key.
    pub fn fate(
        &self,
        frame: &Frame,
        batch: &[u8],
        header_stays: bool,
        is_behind_whole: bool,
        scratch: &mut Scratch,
    ) -> Fate {
        scratch.clear();
        let header = &frame.header;
        if frame.base >= self.dirty.end || header.attributes.is_control() {
            return Fate::AsItIs;
        }
        if header.records == 0 && batch.len() == HEADER_BYTES {
            return if header_stays { Fate::AsItIs } else { Fate::Gone };
        }
        self.try_fate(frame, batch, header_stays, is_behind_whole, scratch).unwrap_or(Fate::Whole)
    }

    fn try_fate(
        &self,
        frame: &Frame,
        batch: &[u8],
        header_stays: bool,
        is_behind_whole: bool,
        scratch: &mut Scratch,
    ) -> Result<Fate, Unreadable> {
        let Scratch { unpacked, stays, body, packed, batch: out } = scratch;
        let header = &frame.header;
        let records = records(header, batch, self.decompressed_bytes_max, unpacked)?;
        let horizon_ms = header.delete_horizon_ms();
        let mut tombstones = 0_u32;
        let mut all_settled = true;
        for record in records.clone() {
            let record = record?;
            let offset = frame.base.plus(u64::from(record.offset_delta));
            let stay = match record.key {
                None => true,
                Some(key) => {
                    let newest = self.keys.newest(key);
                    let is_newest = newest.is_none_or(|newest| newest <= offset);
                    if is_newest && record.value.is_none() {
                        // Whether no older value of the key is left, once this job is done: an earlier job saw the
                        // deletion, or this one has it in the map.
                        let is_settled =
                            offset < self.dirty.start || (newest == Some(offset) && !is_behind_whole);
                        let goes = is_settled && horizon_ms.is_some_and(|at| at <= self.now_ms);
                        tombstones += u32::from(!goes);
                        // An earlier job that set no horizon had its reasons, and they are not known any more.
                        all_settled &= is_settled && offset >= self.dirty.start;
                        !goes
                    } else {
                        is_newest
                    }
                }
            };
            stays.push(stay);
        }
        let left =
            u32::try_from(stays.iter().filter(|&&stay| stay).count()).expect("at most the header's number");
        let new_horizon_ms = (horizon_ms.is_none() && tombstones > 0 && all_settled)
            .then(|| self.now_ms.saturating_add(self.tombstone_ms));
        if left == header.records && new_horizon_ms.is_none() {
            return Ok(Fate::AsItIs);
        }
        if left == 0 {
            if !header_stays {
                return Ok(Fate::Gone);
            }
            let attributes = header.attributes.without_records();
            let new =
                Rebuilt { attributes, base_timestamp_ms: -1, max_timestamp_ms: -1, records: 0, body: &[] };
            put_rebuilt(out, batch, new);
            return Ok(Fate::Anew { records: 0 });
        }
        let base_timestamp_ms = new_horizon_ms.unwrap_or(header.base_timestamp_ms);
        let mut max_timestamp_ms = -1;
        for (record, _) in records.zip(&*stays).filter(|(_, stay)| **stay) {
            let record = record?;
            let timestamp_ms = header.base_timestamp_ms.wrapping_add(record.timestamp_delta_ms);
            max_timestamp_ms = max_timestamp_ms.max(timestamp_ms);
            if new_horizon_ms.is_some() {
                record.put_with_timestamp_delta(body, timestamp_ms.wrapping_sub(base_timestamp_ms));
            } else {
                body.extend_from_slice(record.bytes);
            }
        }
        if header.attributes.timestamp_type() == TimestampType::LogAppend {
            max_timestamp_ms = header.max_timestamp_ms;
        }
        let attributes = header.attributes;
        let codec = attributes.compression().ok_or(Unreadable)?;
        let body = if codec == Compression::None {
            body
        } else {
            codec::compress(codec, body, packed)?;
            packed
        };
        if HEADER_BYTES + body.len() > batch.len().max(self.batch_bytes_max) {
            return Err(Unreadable);
        }
        let attributes = if new_horizon_ms.is_some() { attributes.with_delete_horizon() } else { attributes };
        let new = Rebuilt { attributes, base_timestamp_ms, max_timestamp_ms, records: left, body };
        put_rebuilt(out, batch, new);
        Ok(Fate::Anew { records: left })
    }
}
