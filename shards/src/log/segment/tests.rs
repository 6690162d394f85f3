//! Segments and indexes: their bytes, every way to damage them, and random ones against a model.

use bytes::BytesMut;

use super::format::*;
use super::index::*;
use super::scan::*;
use crate::batch::{BatchBuilder, HEADER_BYTES, put_patched};
use crate::ids::{LeaderEpoch, Offset, PartitionId, PartitionIndex, TopicId};
use crate::log::disk::SegmentName;
use crate::log::random::Random;

fn name() -> SegmentName {
    let topic = TopicId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
    SegmentName {
        partition: PartitionId { topic, index: PartitionIndex(3) },
        base: Offset(70),
        generation: 0,
    }
}

/// A segment as it lies in its file, and what it must be read as.
struct File {
    name: SegmentName,
    bytes: Vec<u8>,
    frames: Vec<Frame>,
}

impl File {
    fn new(name: SegmentName) -> Self {
        let bytes = SegmentHeader { name, begun_ms: 1_700_000_000_000 }.to_bytes().to_vec();
        Self { name, bytes, frames: Vec::new() }
    }

    fn end(&self) -> Offset {
        self.frames.last().map_or(self.name.base, Frame::end)
    }

    fn push(&mut self, base: Offset, epoch: u32, records: usize, value: &[u8], timestamp_ms: i64) {
        let mut batch = BatchBuilder::new();
        for _ in 0..records {
            batch = batch.record(timestamp_ms, None, Some(value));
        }
        let mut stored = BytesMut::new();
        put_patched(&mut stored, &batch.build(), base, LeaderEpoch(epoch));
        let position = self.bytes.len();
        put_frame_header(&mut self.bytes, Seed::of_segment(&self.name), &stored);
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&stored);
        self.frames.push(Frame {
            position: position as u64,
            header: crate::batch::parse_header(&stored).unwrap(),
            base,
            epoch: LeaderEpoch(epoch),
            batch: at..self.bytes.len(),
        });
    }

    /// Three batches of three records.
    fn small(name: SegmentName) -> Self {
        let mut file = Self::new(name);
        for i in 0..3_u8 {
            file.push(file.end(), u32::from(i), 3, &[i; 5], 1_000 + i64::from(i));
        }
        file
    }

    fn scanner<'a>(&'a self, check: Check, position: u64) -> Scanner<'a> {
        let window = &self.bytes[position as usize..];
        Scanner::new(Seed::of_segment(&self.name), check, window, position, self.bytes.len() as u64)
    }
}

/// Reads a whole file as a rebuild does: its good frames, their places counted from the file's beginning, and what
/// ends them.
fn read_all(name: &SegmentName, bytes: &[u8], end: u64) -> (Vec<Frame>, Result<Scanned, BadHeader>) {
    let mut frames = Vec::new();
    if let Err(bad) = SegmentHeader::parse_of(name, bytes) {
        return (frames, Err(bad));
    }
    let window = &bytes[SEGMENT_HEADER_BYTES..];
    let mut scanner = Scanner::new(Seed::of_segment(name), Check::All, window, FIRST_FRAME, end);
    let mut order = Order::new(name);
    loop {
        match scanner.scan() {
            Scanned::Frame(mut frame) => {
                if let Err(bad) = order.check(&frame) {
                    return (frames, Ok(Scanned::Bad(bad)));
                }
                frame.batch =
                    frame.batch.start + SEGMENT_HEADER_BYTES..frame.batch.end + SEGMENT_HEADER_BYTES;
                frames.push(frame);
            }
            other => return (frames, Ok(other)),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_segment_has_these_bytes_in_format_1() {
    let mut file = File::new(name());
    file.push(Offset(70), 4, 1, b"v", 1_000);
    assert_eq!(hex(&file.bytes[..SEGMENT_HEADER_BYTES]), GOLDEN_HEADER);
    assert_eq!(hex(&file.bytes[SEGMENT_HEADER_BYTES..]), GOLDEN_FRAME);
}

#[test]
fn an_index_has_these_bytes_in_format_1() {
    let mut index = Index::default();
    index.push(IndexEntry { offset: Offset(90), position: 70_000, timestamp_before_ms: 1_000 });
    let mut out = Vec::new();
    index.put_file(&mut out, &name());
    assert_eq!(hex(&out[..INDEX_HEADER_BYTES]), GOLDEN_INDEX_HEADER);
    assert_eq!(hex(&out[INDEX_HEADER_BYTES..]), GOLDEN_INDEX_ENTRY);
}

const GOLDEN_HEADER: &str = "485753478907af3600000001000000030123456789abcdef0123456789abcdef00000000000000460000000000000000\
    0000018bcfe568000000000000000000";
const GOLDEN_FRAME: &str = "73a2c6bb000000450000000000000046000000390000000402ae59b08f00000000000000000000000003e80000000000\
    0003e8ffffffffffffffffffffffffffff000000010e00000001027600";
const GOLDEN_INDEX_HEADER: &str = "4857495806dfcea400000001000000030123456789abcdef0123456789abcdef00000000000000460000000000000000\
    00000000000000000000000000000000";
const GOLDEN_INDEX_ENTRY: &str = "baceb93b000000000000005a000000000001117000000000000003e8";

#[test]
fn frames_are_read_back_in_order_to_the_end() {
    let file = File::small(name());
    let (frames, end) = read_all(&file.name, &file.bytes, file.bytes.len() as u64);
    assert_eq!(frames, file.frames);
    assert_eq!(end, Ok(Scanned::End));
    assert_eq!(SegmentHeader::parse(&file.bytes).unwrap().begun_ms, 1_700_000_000_000);
}

#[test]
fn every_bit_flip_in_a_segment_is_noticed_and_what_comes_before_is_right() {
    let file = File::small(name());
    let end = file.bytes.len() as u64;
    for at in 0..file.bytes.len() {
        for bit in 0..8 {
            let mut bytes = file.bytes.clone();
            bytes[at] ^= 1 << bit;
            let (frames, ended) = read_all(&file.name, &bytes, end);
            let whole = file.frames.iter().take_while(|f| f.batch.end <= at).count();
            let whole = if at < SEGMENT_HEADER_BYTES { 0 } else { whole };
            assert_eq!(frames, file.frames[..whole], "byte {at}, bit {bit}");
            assert!(matches!(ended, Err(_) | Ok(Scanned::Bad(_))), "byte {at}, bit {bit}: {ended:?}");
        }
    }
}

#[test]
fn a_header_with_a_flipped_bit_never_passes_when_only_headers_are_checked() {
    let file = File::small(name());
    let frame = &file.frames[1];
    for at in frame.position as usize..frame.batch.start + HEADER_BYTES {
        for bit in 0..8 {
            let mut bytes = file.bytes.clone();
            bytes[at] ^= 1 << bit;
            let bad = File { bytes, name: file.name, frames: Vec::new() };
            let mut scanner = bad.scanner(Check::Headers, FIRST_FRAME);
            assert!(matches!(scanner.scan(), Scanned::Frame(_)));
            let found = scanner.scan();
            assert!(matches!(found, Scanned::Bad(_)), "byte {at}, bit {bit}: {found:?}");
            assert_eq!(scanner.position(), frame.position);
        }
    }
}

#[test]
fn records_with_a_flipped_bit_are_caught_when_they_are_served() {
    let file = File::small(name());
    for at in file.frames[0].batch.start + HEADER_BYTES..file.frames[0].batch.end {
        let mut bytes = file.bytes.clone();
        bytes[at] ^= 1;
        let bad = File { bytes, name: file.name, frames: Vec::new() };
        let mut scanner = bad.scanner(Check::Headers, FIRST_FRAME);
        let Scanned::Frame(frame) = scanner.scan() else { panic!("the header is whole") };
        let window = &bad.bytes[SEGMENT_HEADER_BYTES..];
        assert_eq!(frame.check_records(window), Err(BadFrame::Records));
        assert_eq!(bad.scanner(Check::All, FIRST_FRAME).scan(), Scanned::Bad(BadFrame::Records));
    }
}

#[test]
fn a_segment_cut_anywhere_lacks_exactly_what_was_cut() {
    let file = File::small(name());
    for len in 0..file.bytes.len() {
        let cut = &file.bytes[..len];
        let whole = file.frames.iter().take_while(|f| f.batch.end <= len).count();
        // The end is known from elsewhere: the window lacks bytes.
        let (frames, ended) = read_all(&file.name, cut, file.bytes.len() as u64);
        if len < SEGMENT_HEADER_BYTES {
            assert_eq!(ended, Err(BadHeader::Short));
            continue;
        }
        assert_eq!(frames, file.frames[..whole]);
        let Ok(Scanned::Incomplete { need }) = ended else { panic!("{len}: {ended:?}") };
        let next = &file.frames[whole];
        assert!(
            need > len - next.position as usize
                && need <= next.end_position() as usize - next.position as usize
        );
        // The file is all there is to go by: a cut between two frames is its end.
        let (frames, ended) = read_all(&file.name, cut, len as u64);
        assert_eq!(frames, file.frames[..whole]);
        let between = next.position == len as u64;
        let expected = if between { Scanned::End } else { Scanned::Bad(BadFrame::CutShort) };
        assert_eq!(ended, Ok(expected), "{len}");
    }
}

#[test]
fn frames_of_another_segment_or_generation_do_not_pass() {
    let file = File::small(name());
    let partition = PartitionId { index: PartitionIndex(4), ..name().partition };
    let others = [
        SegmentName { generation: 1, ..name() },
        SegmentName { base: Offset(69), ..name() },
        SegmentName { partition, ..name() },
    ];
    for other in others {
        let mut bytes = SegmentHeader { name: other, begun_ms: 0 }.to_bytes().to_vec();
        bytes.extend_from_slice(&file.bytes[SEGMENT_HEADER_BYTES..]);
        let (frames, ended) = read_all(&other, &bytes, bytes.len() as u64);
        assert_eq!((frames, ended), (Vec::new(), Ok(Scanned::Bad(BadFrame::Crc))));
        assert_eq!(SegmentHeader::parse_of(&other, &file.bytes), Err(BadHeader::OtherFile));
    }
}

#[test]
fn gaps_pass_in_compacted_segments_only_and_epochs_never_fall() {
    let compacted = SegmentName { generation: 1, ..name() };
    for (name, steps, expected) in [
        (name(), [(70, 1), (74, 1)], Some(BadFrame::Offset { expected: Offset(73), found: Offset(74) })),
        (name(), [(71, 1), (74, 1)], Some(BadFrame::Offset { expected: Offset(70), found: Offset(71) })),
        (compacted, [(72, 1), (90, 1)], None),
        (compacted, [(72, 1), (74, 1)], Some(BadFrame::Offset { expected: Offset(75), found: Offset(74) })),
        (compacted, [(69, 1), (72, 1)], Some(BadFrame::Offset { expected: Offset(70), found: Offset(69) })),
        (name(), [(70, 5), (73, 4)], Some(BadFrame::Epoch { last: LeaderEpoch(5), found: LeaderEpoch(4) })),
    ] {
        let mut file = File::new(name);
        for (base, epoch) in steps {
            file.push(Offset(base), epoch, 3, b"v", 0);
        }
        let (_, ended) = read_all(&name, &file.bytes, file.bytes.len() as u64);
        assert_eq!(ended, Ok(expected.map_or(Scanned::End, Scanned::Bad)), "{steps:?}");
    }
}

#[test]
fn zeros_behind_the_end_are_told_from_damage() {
    let mut file = File::small(name());
    file.bytes.resize(file.bytes.len() + 4096, 0);
    let (frames, ended) = read_all(&file.name, &file.bytes, file.bytes.len() as u64);
    assert_eq!(frames, file.frames);
    assert_eq!(ended, Ok(Scanned::Bad(BadFrame::Zeros)));
}

#[test]
fn a_frame_that_holds_no_stored_batch_is_refused_under_a_right_crc() {
    let batch = BatchBuilder::new().record(0, None, Some(b"v")).build();
    let seed = Seed::of_segment(&name());
    // As a producer sent it, without an epoch; and with a length that is not its own.
    let mut short = BytesMut::new();
    put_patched(&mut short, &batch, Offset(1), LeaderEpoch(1));
    short.truncate(short.len() - 1);
    let mut last = BytesMut::new();
    put_patched(&mut last, &batch, Offset(i64::MAX as u64), LeaderEpoch(1));
    for stored in [&batch[..], &short, &last] {
        let mut bytes = frame_header(seed, stored).to_vec();
        bytes.extend_from_slice(stored);
        let mut scanner = Scanner::new(seed, Check::Headers, &bytes, 64, 1000);
        assert_eq!(scanner.scan(), Scanned::Bad(BadFrame::Batch));
    }
}

#[test]
fn a_reader_passes_over_records_that_are_not_in_its_window() {
    let mut file = File::new(name());
    file.push(Offset(70), 1, 1, &[7; 10_000], 0);
    file.push(Offset(71), 1, 1, b"v", 0);
    let window = &file.bytes[SEGMENT_HEADER_BYTES..200];
    let end = file.bytes.len() as u64;
    let seed = Seed::of_segment(&file.name);
    let mut scanner = Scanner::new(seed, Check::Headers, window, FIRST_FRAME, end);
    assert_eq!(scanner.scan_to(Offset(71)), Scanned::Incomplete { need: FRAME_PREFIX_BYTES });
    assert_eq!(scanner.position(), file.frames[1].position);
    let mut scanner = Scanner::new(seed, Check::All, window, FIRST_FRAME, end);
    let need = (file.frames[0].end_position() - FIRST_FRAME) as usize;
    assert_eq!(scanner.scan_to(Offset(71)), Scanned::Incomplete { need });
    assert_eq!(scanner.position(), FIRST_FRAME);
}

/// A segment of batches of random sizes with gaps if it is compacted, and its index.
fn random_file(random: &mut Random) -> (File, Index) {
    let generation = random.below(2) as u32;
    let mut file = File::new(SegmentName { generation, ..name() });
    let (mut index, mut builder) = (Index::default(), IndexBuilder::new());
    let mut epoch = 0;
    for _ in 0..random.below(120) {
        let gap = if generation > 0 { random.below(4) as u64 } else { 0 };
        epoch += u32::from(random.below(10) == 0);
        let value = vec![random.next() as u8; random.below(8_000)];
        let timestamp_ms = random.below(1_000) as i64;
        file.push(file.end().plus(gap), epoch, 1 + random.below(4), &value, timestamp_ms);
        let frame = file.frames.last().unwrap();
        if let Some(entry) = builder.add(frame.base, frame.position, timestamp_ms) {
            index.push(entry);
        }
        if random.below(20) == 0 {
            let max_timestamp_ms = builder.max_timestamp_ms();
            builder = IndexBuilder::resume(&index, max_timestamp_ms);
        }
    }
    (file, index)
}

#[test]
fn every_offset_and_timestamp_is_found_through_the_index() {
    let mut entries = 0;
    for seed in 0..60 {
        let random = &mut Random(seed);
        let (file, index) = random_file(random);
        entries += index.entries().len();
        for _ in 0..40 {
            let offset = Offset(70 + random.below(file.end().0 as usize - 69) as u64);
            let from = index.position_for(offset);
            let mut scanner = file.scanner(Check::Headers, from);
            let expected = file.frames.iter().find(|f| f.end() > offset);
            let found = match scanner.scan_to(offset) {
                Scanned::Frame(frame) => Some(frame.position),
                other => {
                    assert_eq!(other, Scanned::End);
                    None
                }
            };
            assert_eq!(found, expected.map(|f| f.position), "seed {seed}, {offset}");
            if let Some(frame) = expected {
                assert!(frame.position - from < INTERVAL_BYTES + 40_000, "seed {seed}");
            }
            let timestamp_ms = random.below(1_000) as i64;
            let from = index.position_for_timestamp(timestamp_ms);
            let first = file.frames.iter().find(|f| f.header.max_timestamp_ms >= timestamp_ms);
            assert!(first.is_none_or(|f| f.position >= from), "seed {seed}, {timestamp_ms}");
            let last_before = index.entries().iter().rev().find(|e| e.timestamp_before_ms < timestamp_ms);
            assert_eq!(from, last_before.map_or(FIRST_FRAME, |e| e.position));
        }
    }
    assert!(entries > 100, "{entries}: the files were too small to mean something");
}

#[test]
fn scanning_in_windows_of_any_size_yields_the_same_frames() {
    for seed in 0..40 {
        let random = &mut Random(seed);
        let (file, _) = random_file(random);
        let end = file.bytes.len() as u64;
        let check = if seed % 2 == 0 { Check::All } else { Check::Headers };
        let (mut position, mut need) = (FIRST_FRAME, FRAME_PREFIX_BYTES);
        let mut found = Vec::new();
        'windows: loop {
            let from = position as usize;
            let upto = (from + need + random.below(20_000)).min(file.bytes.len());
            let window = &file.bytes[from..upto];
            let mut scanner = Scanner::new(Seed::of_segment(&file.name), check, window, position, end);
            loop {
                match scanner.scan() {
                    Scanned::Frame(frame) => found.push((frame.position, frame.base, frame.header)),
                    Scanned::Incomplete { need: n } => {
                        (position, need) = (scanner.position(), n);
                        continue 'windows;
                    }
                    Scanned::End => break 'windows,
                    Scanned::Bad(bad) => panic!("seed {seed}: {bad}"),
                }
            }
        }
        let expected: Vec<_> = file.frames.iter().map(|f| (f.position, f.base, f.header)).collect();
        assert_eq!(found, expected, "seed {seed}");
    }
}

fn small_index() -> (Index, Vec<u8>) {
    let mut index = Index::default();
    for i in 1..5 {
        let entry = IndexEntry {
            offset: Offset(70 + i * 10),
            position: i * 70_000,
            timestamp_before_ms: i as i64 / 2,
        };
        index.push(entry);
    }
    let mut bytes = Vec::new();
    index.put_file(&mut bytes, &name());
    assert_eq!(index.file_bytes(), bytes.len() as u64);
    (index, bytes)
}

const SEGMENT_BYTES: u64 = 1 << 20;

#[test]
fn an_index_is_read_back_as_it_was_written() {
    let (index, bytes) = small_index();
    let loaded = Index::load(&name(), &bytes, SEGMENT_BYTES);
    assert_eq!(loaded, LoadedIndex { index, good_bytes: bytes.len() as u64, bad: None });
}

#[test]
fn every_bit_flip_in_an_index_leaves_the_entries_before_it_and_is_reported() {
    let (index, bytes) = small_index();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            let loaded = Index::load(&name(), &flipped, SEGMENT_BYTES);
            let kept = at.checked_sub(INDEX_HEADER_BYTES).map_or(0, |at| at / INDEX_ENTRY_BYTES);
            assert_eq!(loaded.index.entries(), &index.entries()[..kept], "byte {at}, bit {bit}");
            assert!(loaded.bad.is_some(), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn an_index_cut_anywhere_leaves_its_whole_entries() {
    let (index, bytes) = small_index();
    for len in 0..bytes.len() {
        let loaded = Index::load(&name(), &bytes[..len], SEGMENT_BYTES);
        let kept = len.checked_sub(INDEX_HEADER_BYTES).map_or(0, |len| len / INDEX_ENTRY_BYTES);
        assert_eq!(loaded.index.entries(), &index.entries()[..kept], "{len}");
        let good = if len < INDEX_HEADER_BYTES { 0 } else { INDEX_HEADER_BYTES + kept * INDEX_ENTRY_BYTES };
        assert_eq!(loaded.good_bytes, good as u64);
        assert_eq!(loaded.bad.is_none(), good == len && len > 0, "{len}: {:?}", loaded.bad);
    }
}

#[test]
fn entries_of_another_file_and_behind_the_segment_do_not_pass() {
    let (index, bytes) = small_index();
    let newer = SegmentName { generation: 1, ..name() };
    assert_eq!(Index::load(&newer, &bytes, SEGMENT_BYTES).bad, Some(BadIndex::Header(BadHeader::OtherFile)));
    let mut mixed = index_header(&newer).to_vec();
    mixed.extend_from_slice(&bytes[INDEX_HEADER_BYTES..]);
    let loaded = Index::load(&newer, &mixed, SEGMENT_BYTES);
    assert_eq!((loaded.index.entries().len(), loaded.bad), (0, Some(BadIndex::Crc)));
    let loaded = Index::load(&name(), &bytes, 140_001);
    assert_eq!(loaded.index.entries(), &index.entries()[..2]);
    assert_eq!(loaded.bad, Some(BadIndex::Beyond));
    // The same entry again, right to the last bit.
    let mut twice = bytes.clone();
    twice.extend_from_slice(&bytes[bytes.len() - INDEX_ENTRY_BYTES..]);
    let loaded = Index::load(&name(), &twice, SEGMENT_BYTES);
    assert_eq!((loaded.index, loaded.bad), (index, Some(BadIndex::Order)));
}

#[test]
fn a_truncated_index_leads_to_nothing_behind_the_cut() {
    let (mut index, _) = small_index();
    index.truncate(140_000);
    assert_eq!(index.entries().len(), 1);
    assert_eq!(index.position_for(Offset(1_000)), 70_000);
    assert_eq!(index.bytes_behind(140_000), 70_000);
    index.truncate(0);
    assert_eq!(index.position_for(Offset(1_000)), FIRST_FRAME);
    assert_eq!(index.position_for_timestamp(i64::MAX), FIRST_FRAME);
}

#[test]
fn a_version_of_the_future_is_told_from_damage() {
    let mut h = SegmentHeader { name: name(), begun_ms: 5 }.to_bytes();
    h[11] = 2;
    assert_eq!(SegmentHeader::parse(&h), Err(BadHeader::Crc));
    h[4..8].fill(0);
    let crc = crc_fast::crc32_iscsi(&h);
    h[4..8].copy_from_slice(&crc.to_be_bytes());
    assert_eq!(SegmentHeader::parse(&h), Err(BadHeader::Version(2)));
    assert_eq!(parse_index_header(&h), Err(BadHeader::Magic));
}
