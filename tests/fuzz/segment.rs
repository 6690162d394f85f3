//! Segment and index files.

use bytes::BytesMut;
use highwater_shards::batch::{
    BatchBuilder, BatchProducer, Compression, HEADER_BYTES, OUTSIDE_CRC_BYTES, put_patched,
};
use highwater_shards::ids::{
    LeaderEpoch, Offset, PartitionId, PartitionIndex, ProducerEpoch, ProducerId, Sequence, TopicId,
};
use highwater_shards::log::disk::SegmentName;
use highwater_shards::log::segment::format::{
    FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES, Seed, SegmentHeader, frame_header, put_frame_header,
};
use highwater_shards::log::segment::index::{
    INDEX_ENTRY_BYTES, INDEX_HEADER_BYTES, Index, IndexBuilder, IndexEntry, IndexSeed, parse_index_header,
};
use highwater_shards::log::segment::scan::{Check, FIRST_FRAME, Frame, Order, Scanned as Found, Scanner};
use highwater_sim::rng::Rng;

use crate::target::{Target, hold, put_crc, u32_at};

/// [`Scanner`], sequentially as a rebuild does and from a place as a reader does.
pub struct Scanned;

/// Each file of the corpus is another partition's, so that what came from another file must not pass.
fn name(index: u32, generation: u32) -> SegmentName {
    let partition = PartitionId { topic: TopicId(0xabc << 66), index: PartitionIndex(index) };
    SegmentName { partition, base: Offset(50), generation }
}

/// So many batches with values of this size, and the segment's index.
pub fn file(index: u32, generation: u32, batches: u64, value: usize) -> (Vec<u8>, Index) {
    let name = name(index, generation);
    let mut bytes = SegmentHeader { name, begun_ms: 1_700_000_000_000 }.to_bytes().to_vec();
    let (mut entries, mut builder) = (Index::default(), IndexBuilder::new());
    let mut base = 50;
    for i in 0..batches {
        let value: Vec<u8> = (0..value).map(|at| (at as u64 * 7 + i) as u8).collect();
        let timestamp_ms = 1_000 + i as i64;
        let mut batch = BatchBuilder::new();
        match i % 3 {
            0 => {
                batch =
                    batch.record(timestamp_ms, Some(b"key"), Some(&value)).record(timestamp_ms, None, None)
            }
            1 => batch = batch.compressed(Compression::Zstd, timestamp_ms, 2, &value),
            _ => {
                let producer = BatchProducer {
                    id: ProducerId(4),
                    epoch: ProducerEpoch(0),
                    base_sequence: Sequence(i as u32),
                };
                batch = batch.producer(producer).record(timestamp_ms, None, Some(&value)).record(
                    timestamp_ms,
                    None,
                    None,
                );
            }
        }
        let mut stored = BytesMut::new();
        put_patched(&mut stored, &batch.build(), Offset(base), LeaderEpoch(1 + i as u32 / 4));
        if let Some(entry) = builder.add(Offset(base), bytes.len() as u64, timestamp_ms) {
            entries.push(entry);
        }
        put_frame_header(&mut bytes, Seed::of_segment(&name), &stored);
        bytes.extend_from_slice(&stored);
        base += 2 + u64::from(generation) * (i % 3);
    }
    (bytes, entries)
}

/// Every frame that a rebuild takes, with its batch.
fn rebuild<'a>(name: &SegmentName, bytes: &'a [u8]) -> Vec<(Frame, &'a [u8])> {
    let mut frames = Vec::new();
    if SegmentHeader::parse_of(name, bytes).is_err() {
        return frames;
    }
    let window = &bytes[SEGMENT_HEADER_BYTES..];
    let mut scanner =
        Scanner::new(Seed::of_segment(name), Check::All, window, FIRST_FRAME, bytes.len() as u64);
    let mut order = Order::new(name);
    while let Found::Frame(frame) = scanner.scan() {
        if order.check(&frame).is_err() {
            break;
        }
        let batch = &window[frame.batch.clone()];
        frames.push((frame, batch));
    }
    frames
}

impl Scanned {
    /// Reads from a random place, with a random window, as an index that is wrong may make a reader do.
    fn read<'a>(
        rng: &mut Rng,
        name: &SegmentName,
        bytes: &'a [u8],
        starts: &[u64],
    ) -> Option<(Frame, &'a [u8])> {
        let from = if starts.is_empty() || rng.chance(300) {
            rng.below(bytes.len() as u64 + 10)
        } else {
            *rng.pick(starts)
        };
        let window = bytes.get(usize::try_from(from).ok()?..)?;
        let window = &window[..rng.index(window.len() + 1)];
        let check = if rng.flip() { Check::All } else { Check::Headers };
        let mut scanner = Scanner::new(Seed::of_segment(name), check, window, from, bytes.len() as u64);
        match scanner.scan_to(Offset(rng.range(40..120))) {
            Found::Frame(frame) => {
                frame.check_records(window).ok()?;
                let batch = &window[frame.batch.clone()];
                Some((frame, batch))
            }
            Found::Incomplete { need } => {
                // What it lacks it finds in the file.
                let left = bytes.len() as u64 - scanner.position();
                assert!(need as u64 <= left, "{need} bytes are lacking of {left}");
                None
            }
            _ => None,
        }
    }
}

impl Target for Scanned {
    fn name(&self) -> &'static str {
        "segment"
    }

    fn generate(&self) -> Vec<(&'static str, Vec<u8>)> {
        vec![
            ("empty", file(0, 0, 0, 0).0),
            ("small", file(1, 0, 6, 10).0),
            ("compacted", file(2, 1, 6, 10).0),
            ("sectors", file(3, 0, 8, 3_000).0),
        ]
    }

    fn seal(&self, bytes: &mut [u8]) {
        let Some(header) = bytes.get_mut(..SEGMENT_HEADER_BYTES) else { return };
        put_crc(header, 4, [0; 4]);
        let Ok(header) = SegmentHeader::parse(bytes) else { return };
        let seed = Seed::of_segment(&header.name);
        let mut at = SEGMENT_HEADER_BYTES;
        while let Some(frame) =
            bytes.get_mut(at..).filter(|left| left.len() >= FRAME_HEADER_BYTES + HEADER_BYTES)
        {
            let len = u32_at(frame, 4).clamp(HEADER_BYTES, frame.len() - FRAME_HEADER_BYTES);
            let (head, batch) = frame[..FRAME_HEADER_BYTES + len].split_at_mut(FRAME_HEADER_BYTES);
            batch[8..12].copy_from_slice(&(len as u32 - 12).to_be_bytes());
            let crc = crc_fast::crc32_iscsi(&batch[OUTSIDE_CRC_BYTES..]);
            batch[OUTSIDE_CRC_BYTES - 4..OUTSIDE_CRC_BYTES].copy_from_slice(&crc.to_be_bytes());
            head.copy_from_slice(&frame_header(seed, batch));
            at += FRAME_HEADER_BYTES + len;
        }
    }

    fn damaged(&self, rng: &mut Rng, good: &[u8], bytes: &[u8]) -> Result<(), String> {
        let name = SegmentHeader::parse(good).map_err(|e| format!("the corpus is no good: {e}"))?.name;
        let (before, after) = (rebuild(&name, good), rebuild(&name, bytes));
        let known = |frame: &Frame, batch: &[u8]| {
            before.iter().any(|(f, b)| f.base == frame.base && f.header == frame.header && *b == batch)
        };
        for (i, (frame, batch)) in after.iter().enumerate() {
            // In a log without gaps each batch stands in its place; from a compacted one, whole ones may be missing.
            let in_place =
                name.generation > 0 || before.get(i).is_some_and(|(f, _)| f.position == frame.position);
            hold(in_place && known(frame, batch), || format!("passed: {frame:?}"))?;
        }
        if good == bytes {
            hold(before == after, || "a good segment was not read".to_owned())?;
        }
        let starts: Vec<u64> = before.iter().chain(&after).map(|(frame, _)| frame.position).collect();
        for _ in 0..4 {
            if let Some((frame, batch)) = Self::read(rng, &name, bytes, &starts) {
                hold(known(&frame, batch), || format!("served: {frame:?}"))?;
            }
        }
        Ok(())
    }

    fn hostile(&self, rng: &mut Rng, bytes: &[u8]) -> Result<(), String> {
        let Ok(header) = SegmentHeader::parse(bytes) else { return Ok(()) };
        let frames = rebuild(&header.name, bytes);
        let (mut end, mut position) = (header.name.base, FIRST_FRAME);
        for (frame, batch) in &frames {
            let sound =
                frame.base >= end && frame.position == position && batch.len() == frame.header.len as usize;
            hold(sound, || format!("{frame:?} behind {end}, at {position}"))?;
            (end, position) = (frame.end(), frame.end_position());
        }
        let starts: Vec<u64> = frames.iter().map(|(frame, _)| frame.position).collect();
        for _ in 0..4 {
            Self::read(rng, &header.name, bytes, &starts);
        }
        Ok(())
    }
}

/// [`Index::load`].
pub struct Indexed;

const SEGMENT_BYTES: u64 = 1 << 30;

impl Indexed {
    fn load(name: &SegmentName, bytes: &[u8]) -> Result<Index, String> {
        let loaded = Index::load(name, bytes, SEGMENT_BYTES);
        let good = loaded.good_bytes as usize;
        hold(good <= bytes.len(), || "more is good than there is".to_owned())?;
        hold(loaded.bad.is_some() || good == bytes.len(), || "something was dropped in silence".to_owned())?;
        let mut written = Vec::new();
        if good > 0 {
            loaded.index.put_file(&mut written, name);
        }
        hold(written == bytes[..good], || "what was read is not what would be written".to_owned())?;
        for pair in loaded.index.entries().windows(2) {
            let [a, b] = pair else { continue };
            let ascends = a.offset < b.offset && a.position < b.position && b.position < SEGMENT_BYTES;
            hold(ascends, || format!("{a:?} before {b:?}"))?;
        }
        Ok(loaded.index)
    }
}

impl Target for Indexed {
    fn name(&self) -> &'static str {
        "index"
    }

    fn generate(&self) -> Vec<(&'static str, Vec<u8>)> {
        let of = |partition, generation, batches, value| {
            let mut out = Vec::new();
            file(partition, generation, batches, value).1.put_file(&mut out, &name(partition, generation));
            out
        };
        vec![("empty", of(0, 0, 0, 0)), ("small", of(1, 0, 30, 20_000)), ("compacted", of(2, 1, 60, 20_000))]
    }

    fn seal(&self, bytes: &mut [u8]) {
        let Some(header) = bytes.get_mut(..INDEX_HEADER_BYTES) else { return };
        put_crc(header, 4, [0; 4]);
        let Ok(name) = parse_index_header(bytes) else { return };
        let seed = IndexSeed::of(&name);
        for entry in bytes[INDEX_HEADER_BYTES..].as_chunks_mut::<INDEX_ENTRY_BYTES>().0 {
            let long = |at: usize| <[u8; 8]>::try_from(&entry[at..at + 8]).expect("eight bytes");
            let sealed = IndexEntry {
                offset: Offset(u64::from_be_bytes(long(4))),
                position: u64::from_be_bytes(long(12)),
                timestamp_before_ms: i64::from_be_bytes(long(20)),
            };
            *entry = sealed.to_bytes(seed);
        }
    }

    fn damaged(&self, _rng: &mut Rng, good: &[u8], bytes: &[u8]) -> Result<(), String> {
        let name = parse_index_header(good).map_err(|e| format!("the corpus is no good: {e}"))?;
        let before = Self::load(&name, good)?;
        let after = Self::load(&name, bytes)?;
        for entry in after.entries() {
            hold(before.entries().contains(entry), || format!("passed: {entry:?}"))?;
        }
        hold(good != bytes || before == after, || "a good index was not read".to_owned())
    }

    fn hostile(&self, rng: &mut Rng, bytes: &[u8]) -> Result<(), String> {
        let Ok(name) = parse_index_header(bytes) else { return Ok(()) };
        let mut index = Self::load(&name, bytes)?;
        for _ in 0..4 {
            let offset = Offset(rng.draw() >> rng.below(64));
            let position = index.position_for(offset);
            let wrong = index.entries().iter().find(|e| e.position == position && e.offset > offset);
            hold(wrong.is_none(), || format!("{wrong:?} for {offset}"))?;
            index.position_for_timestamp(rng.draw().cast_signed());
        }
        index.truncate(rng.draw() >> rng.below(64));
        IndexBuilder::resume(&index, 0).add(Offset(u64::MAX), u64::MAX, i64::MAX);
        Ok(())
    }
}
