//! Compaction against a model: logs made at random, and what is decoded of them after each job.

mod directed;

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use super::*;
use crate::batch::{
    Attributes, BatchBuilder, BatchProducer, Compression, HEADER_BYTES, Records, check_crc, codec,
    parse_header, put_patched,
};
use crate::ids::{LeaderEpoch, PartitionIndex, ProducerEpoch, ProducerId, Sequence, TopicId};
use crate::log::checkpoint::ProducedBatch;
use crate::log::disk::{DiskEvent, DiskOp, OpNo};
use crate::log::segment::format::{SEGMENT_HEADER_BYTES, Seed, SegmentHeader, put_frame_header};
use crate::log::segment::index::Index;
use crate::log::segment::scan::{Check, FIRST_FRAME, Scanned, Scanner};

const PARTITION: PartitionId = PartitionId { topic: TopicId(77), index: PartitionIndex(3) };
const CODECS: [Compression; 5] =
    [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

struct Rng(u64);

impl Rng {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

/// Files, and what of them is durable.
#[derive(Clone, Default)]
struct Disk {
    files: BTreeMap<FileName, Vec<u8>>,
    synced: BTreeMap<FileName, Vec<u8>>,
}

impl Disk {
    fn apply(&mut self, op: DiskOp) -> DiskEvent {
        match op {
            DiskOp::Read { op, file, position, len } => {
                let result = self.files.get(&file).ok_or(DiskError::Missing).map(|bytes| {
                    let start = bytes.len().min(position as usize);
                    let end = bytes.len().min(start + len as usize);
                    Bytes::copy_from_slice(&bytes[start..end])
                });
                DiskEvent::Read { op, result }
            }
            DiskOp::Put { op, file, position, parts } => {
                let bytes = self.files.entry(file).or_default();
                let parts = parts.concat();
                let end = position as usize + parts.len();
                bytes.resize(bytes.len().max(end), 0);
                bytes[position as usize..end].copy_from_slice(&parts);
                DiskEvent::Written { op, result: Ok(()) }
            }
            DiskOp::Sync { op, file } => {
                self.synced.insert(file, self.files[&file].clone());
                DiskEvent::Synced { op, result: Ok(()) }
            }
            DiskOp::SyncFolder { op, partition } => {
                assert_eq!(partition, PARTITION);
                DiskEvent::Synced { op, result: Ok(()) }
            }
            DiskOp::Cut { op, file, len } => {
                if let Some(bytes) = self.files.get_mut(&file) {
                    bytes.truncate(len as usize);
                }
                DiskEvent::Done { op, result: Ok(()) }
            }
            DiskOp::Remove { op, file } => {
                self.files.remove(&file);
                DiskEvent::Done { op, result: Ok(()) }
            }
            other => panic!("{other:?}"),
        }
    }
}

fn failed(op: &DiskOp, error: DiskError) -> DiskEvent {
    match *op {
        DiskOp::Read { op, .. } => DiskEvent::Read { op, result: Err(error) },
        DiskOp::Put { op, .. } => DiskEvent::Written { op, result: Err(error) },
        DiskOp::Sync { op, .. } | DiskOp::SyncFolder { op, .. } => {
            DiskEvent::Synced { op, result: Err(error) }
        }
        DiskOp::Cut { op, .. } | DiskOp::Remove { op, .. } => DiskEvent::Done { op, result: Err(error) },
        ref other => panic!("{other:?}"),
    }
}

/// A record as it is decoded.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Rec {
    offset: u64,
    timestamp_ms: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    /// From the key's length on, so with all headers.
    fields: Vec<u8>,
}

/// A batch as it is decoded.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Bat {
    base: u64,
    end: u64,
    epoch: i32,
    codec: Compression,
    is_control: bool,
    producer: Option<BatchProducer>,
    horizon_ms: Option<i64>,
    max_timestamp_ms: i64,
    /// `None`: they cannot be read.
    records: Option<Vec<Rec>>,
    raw: Vec<u8>,
}

fn decode(batch: &[u8]) -> Bat {
    let header = parse_header(batch).unwrap();
    assert!(check_crc(batch));
    let codec = header.attributes.compression().unwrap();
    let mut body = Vec::new();
    let base = header.base().unwrap().0;
    let records = codec::decompress(codec, &batch[HEADER_BYTES..], 1 << 24, &mut body).ok().and_then(|()| {
        let mut records = Vec::new();
        for record in Records::new(&header, &body) {
            let record = record.ok()?;
            let mut anew = Vec::new();
            record.put_with_timestamp_delta(&mut anew, 0);
            records.push(Rec {
                offset: base + u64::from(record.offset_delta),
                timestamp_ms: header.base_timestamp_ms.wrapping_add(record.timestamp_delta_ms),
                key: record.key.map(<[u8]>::to_vec),
                value: record.value.map(<[u8]>::to_vec),
                fields: anew,
            });
        }
        Some(records)
    });
    Bat {
        base,
        end: base + header.offsets(),
        epoch: header.leader_epoch,
        codec,
        is_control: header.attributes.is_control(),
        producer: header.producer,
        horizon_ms: header.delete_horizon_ms(),
        max_timestamp_ms: header.max_timestamp_ms,
        records,
        raw: batch.to_vec(),
    }
}

fn name_of(segment: &SegmentMeta) -> SegmentName {
    SegmentName { partition: PARTITION, base: segment.base, generation: segment.generation }
}

/// A log on its disk, and what a storage knows of it.
#[derive(Clone, Default)]
struct Log {
    disk: Disk,
    segments: Vec<SegmentMeta>,
    cleaned: u64,
    producers: BTreeMap<u64, (u32, u64)>,
}

impl Log {
    fn end(&self) -> u64 {
        self.segments.last().map_or(0, |s| s.end.0)
    }

    /// Writes a segment of these batches, which begin at offset 0 as a producer makes them.
    fn add_segment(&mut self, batches: &[Bytes]) {
        let base = Offset(self.end());
        let name = SegmentName { partition: PARTITION, base, generation: 0 };
        let seed = Seed::of_segment(&name);
        let mut file = BytesMut::from(&SegmentHeader { name, begun_ms: 5 }.to_bytes()[..]);
        let mut end = base;
        let mut max_timestamp_ms = -1;
        for batch in batches {
            let mut stored = BytesMut::new();
            put_patched(&mut stored, batch, end, LeaderEpoch(1 + end.0 as u32 / 40));
            let header = parse_header(&stored).unwrap();
            if let Some(producer) = header.producer {
                self.producers.insert(producer.id.0, (producer.base_sequence.0, end.0));
            }
            max_timestamp_ms = max_timestamp_ms.max(header.max_timestamp_ms);
            end = end.plus(header.offsets());
            put_frame_header(&mut file, seed, &stored);
            file.put_slice(&stored);
        }
        let bytes = file.len() as u64;
        self.disk.files.insert(FileName::Segment(name), file.to_vec());
        self.segments.push(SegmentMeta { base, end, generation: 0, bytes, max_timestamp_ms, begun_ms: 5 });
    }

    fn batches(&self) -> Vec<Bat> {
        self.segments.iter().flat_map(|s| read_segment(&self.disk, s)).collect()
    }

    fn job(&self, now_ms: i64) -> Job {
        let producers = self.producers.iter().map(|(&id, &(sequence, base))| {
            let batch =
                ProducedBatch { first: Sequence(sequence), last: Sequence(sequence), base: Offset(base) };
            ProducerState { id: ProducerId(id), epoch: ProducerEpoch(0), batches: vec![batch] }
        });
        Job {
            partition: PARTITION,
            segments: self.segments.clone(),
            dirty_from: Offset(self.cleaned),
            upto: Offset(self.end()),
            producers: producers.collect(),
            tombstone_ms: 1000,
            now_ms,
            segment_bytes: 4000,
            seed: 9,
            limits: CleanerLimits { window_bytes: 512, ..CleanerLimits::default() },
        }
    }

    /// Swaps the segments as the storage does.
    fn take(&mut self, done: &Done) {
        let old: Vec<_> = self.segments.iter().take(done.replaced.len()).map(name_of).collect();
        assert_eq!(old, done.replaced);
        let (begin, end) = (self.segments[0].base, self.segments[old.len() - 1].end);
        assert_eq!((done.by[0].base, done.by.last().unwrap().end), (begin, end), "the same offsets");
        self.segments.splice(..old.len(), done.by.iter().copied());
        for name in old {
            self.disk.files.remove(&FileName::Segment(name));
            self.disk.files.remove(&FileName::Index(name));
        }
        self.cleaned = done.cleaned.0;
        assert!(self.segments.is_sorted_by(|a, b| a.end <= b.base));
    }
}

/// Checks every bit of a segment and its index, and decodes its batches.
fn read_segment(disk: &Disk, segment: &SegmentMeta) -> Vec<Bat> {
    let name = name_of(segment);
    let file = &disk.files[&FileName::Segment(name)];
    assert_eq!(file.len() as u64, segment.bytes);
    assert_eq!(SegmentHeader::parse_of(&name, file).unwrap().begun_ms, segment.begun_ms);
    let window = &file[SEGMENT_HEADER_BYTES..];
    let mut scanner = Scanner::new(Seed::of_segment(&name), Check::All, window, FIRST_FRAME, segment.bytes);
    let mut positions = BTreeMap::new();
    let mut found = Vec::new();
    loop {
        match scanner.scan() {
            Scanned::Frame(frame) => {
                positions.insert(frame.position, frame.base);
                found.push(decode(&window[frame.batch]));
            }
            Scanned::End => break,
            other => panic!("{other:?}"),
        }
    }
    let max_timestamp_ms = found.iter().map(|b| b.max_timestamp_ms).max().unwrap_or(-1);
    assert_eq!(
        (found.last().map(|b| b.end), max_timestamp_ms),
        (Some(segment.end.0), segment.max_timestamp_ms)
    );
    if segment.generation > 0 {
        let loaded = Index::load(&name, &disk.files[&FileName::Index(name)], segment.bytes);
        assert_eq!(loaded.bad, None);
        for entry in loaded.index.entries() {
            assert_eq!(positions.get(&entry.position), Some(&entry.offset));
        }
        for file in [FileName::Segment(name), FileName::Index(name)] {
            assert_eq!(disk.synced.get(&file), disk.files.get(&file), "durable when done");
        }
    }
    found
}

/// What befalls a job when it asks for its n-th operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mishap {
    None,
    Error(u64, DiskError),
    /// Given up after so many operations.
    Cancel(u64),
    /// Nothing happens any more.
    Crash(u64),
}

/// Runs a job; how it ended, if it did, and how many operations it took.
fn run(job: Job, disk: &mut Disk, mishap: Mishap) -> (Option<Outcome>, u64) {
    let window_bytes = job.limits.window_bytes as u64;
    let mut cleaning = Cleaning::new(job);
    let mut ops = 0_u64;
    loop {
        let op = cleaning.poll_op(&mut || OpNo(1000 + ops));
        let Some(op) = op else {
            if let Some(outcome) = cleaning.outcome() {
                assert!(!cleaning.wants_credit());
                return (Some(outcome.clone()), ops);
            }
            assert!(cleaning.wants_credit(), "it waits for something");
            cleaning.credit(window_bytes);
            continue;
        };
        assert!(cleaning.poll_op(&mut || panic!("one operation at a time")).is_none());
        if mishap == Mishap::Crash(ops) {
            return (None, ops);
        }
        let event = match mishap {
            Mishap::Error(at, error) if at == ops => failed(&op, error),
            _ => disk.apply(op),
        };
        if mishap == Mishap::Cancel(ops) {
            cleaning.cancel();
        }
        ops += 1;
        assert!(!cleaning.handle(&DiskEvent::Done { op: OpNo(5), result: Ok(()) }), "another's event");
        assert!(cleaning.handle(&event));
    }
}

fn done(outcome: Option<Outcome>) -> Done {
    match outcome {
        Some(Outcome::Done(done)) => done,
        other => panic!("{other:?}"),
    }
}

/// What a job makes of these batches whose map held all keys: by brute force, batch by batch.
fn expected(batches: &[Bat], job: &Job, cleaned: u64, keep_header: impl Fn(&Bat) -> bool) -> Vec<Bat> {
    let dirty = job.dirty_from.0..cleaned;
    let mut newest: BTreeMap<&[u8], u64> = BTreeMap::new();
    for batch in batches.iter().filter(|b| b.end > dirty.start && b.base < dirty.end && !b.is_control) {
        for record in batch.records.iter().flatten() {
            if let Some(key) = &record.key {
                newest.insert(key, record.offset);
            }
        }
    }
    let mut is_behind_whole = false;
    let mut left = Vec::new();
    for batch in batches {
        let Some(records) = &batch.records else {
            is_behind_whole |= batch.base < dirty.end;
            left.push(batch.clone());
            continue;
        };
        if batch.is_control || batch.base >= dirty.end {
            left.push(batch.clone());
            continue;
        }
        let is_dirty = batch.base >= dirty.start;
        let expired = batch.horizon_ms.is_some_and(|at| at <= job.now_ms) && !(is_dirty && is_behind_whole);
        let stays = |record: &&Rec| {
            let Some(key) = &record.key else { return true };
            let is_newest = newest.get(&key[..]).is_none_or(|&offset| offset == record.offset);
            is_newest && (record.value.is_some() || !expired)
        };
        let records: Vec<Rec> = records.iter().filter(stays).cloned().collect();
        let mut batch = batch.clone();
        let is_tombstone = |r: &Rec| r.key.is_some() && r.value.is_none();
        if records.is_empty() {
            if keep_header(&batch) {
                (batch.codec, batch.horizon_ms, batch.max_timestamp_ms) = (Compression::None, None, -1);
                batch.records = Some(records);
                left.push(batch);
            }
            continue;
        }
        if is_dirty && !is_behind_whole && batch.horizon_ms.is_none() && records.iter().any(is_tombstone) {
            batch.horizon_ms = Some(job.now_ms + job.tombstone_ms);
        }
        batch.max_timestamp_ms = records.iter().map(|r| r.timestamp_ms).max().unwrap();
        batch.records = Some(records);
        left.push(batch);
    }
    left
}

/// All but the bytes, which differ where a batch was written anew.
fn assert_same(found: &[Bat], want: &[Bat]) {
    for (found, want) in found.iter().zip(want) {
        assert_eq!(Bat { raw: Vec::new(), ..found.clone() }, Bat { raw: Vec::new(), ..want.clone() });
        let is_same = found.records.is_none() || found.is_control;
        assert!(!is_same || found.raw == want.raw, "copied as it is");
    }
    assert_eq!(found.len(), want.len());
}

fn random_batch(rng: &mut Rng, keys: u64, clock_ms: &mut i64, sequences: &mut [u32; 4]) -> Bytes {
    if rng.below(40) == 0 {
        // What no codec wrote: such a batch passes a broker unseen.
        return BatchBuilder::new().compressed(Compression::Zstd, *clock_ms, 3, b"garbage").build();
    }
    if rng.below(40) == 0 {
        // A record, and then none where the header promises another.
        let key = format!("key {}", rng.below(keys)).into_bytes();
        let good = BatchBuilder::new().record(*clock_ms, Some(&key), Some(b"v")).build();
        let body = [&good[HEADER_BYTES..], b"garbage"].concat();
        return BatchBuilder::new().compressed(Compression::None, *clock_ms, 2, &body).build();
    }
    let mut batch = BatchBuilder::new();
    if rng.below(60) == 0 {
        batch = batch.attributes(Attributes(0x20));
    }
    let records = 1 + rng.below(6) as u32;
    if rng.below(3) == 0 {
        let id = rng.below(4);
        let base_sequence = Sequence(sequences[id as usize]);
        sequences[id as usize] += records;
        batch = batch.producer(BatchProducer { id: ProducerId(id), epoch: ProducerEpoch(0), base_sequence });
    }
    for _ in 0..records {
        *clock_ms += rng.below(20) as i64 - 5;
        let key = format!("key {}", rng.below(keys)).into_bytes();
        let value = vec![b'a' + rng.below(26) as u8; rng.below(120) as usize];
        let key = (rng.below(30) > 0).then_some(&key[..]);
        let value = (rng.below(4) > 0).then_some(&value[..]);
        let headers: [(&[u8], Option<&[u8]>); 2] = [(b"trace", Some(b"\x01\x02")), (b"", None)];
        batch = batch.record_with_headers(*clock_ms, key, value, &headers[..rng.below(3) as usize]);
    }
    match CODECS[rng.below(5) as usize] {
        Compression::None => batch.build(),
        codec => batch.packed(codec).build(),
    }
}

fn grow(log: &mut Log, rng: &mut Rng, keys: u64, clock_ms: &mut i64, sequences: &mut [u32; 4]) {
    for _ in 0..1 + rng.below(5) {
        let batches: Vec<_> =
            (0..1 + rng.below(8)).map(|_| random_batch(rng, keys, clock_ms, sequences)).collect();
        log.add_segment(&batches);
    }
}

#[test]
fn jobs_leave_what_the_model_leaves() {
    let (mut dropped, mut horizons, mut expired, mut emptied, mut grouped) = (0, 0, 0, 0, 0);
    for seed in 1..=100 {
        let rng = &mut Rng::new(seed);
        let mut log = Log::default();
        let (mut clock_ms, mut sequences) = (1_000_000, [0; 4]);
        let keys = 1 + rng.below(60);
        for _ in 0..1 + rng.below(6) {
            grow(&mut log, rng, keys, &mut clock_ms, &mut sequences);
            clock_ms += rng.below(1500) as i64;
            if rng.below(4) == 0 {
                // What a storage without its checkpoint knows.
                log.cleaned = 0;
            }
            let before = log.batches();
            let mut job = log.job(clock_ms);
            job.segment_bytes = 500 + rng.below(8000);
            job.limits.window_bytes = 64 + rng.below(3000) as usize;
            if rng.below(3) == 0 {
                job.upto = Offset(rng.below(log.end() + 1));
            }
            let files = log.disk.files.clone();
            let (outcome, _) = run(job.clone(), &mut log.disk, Mishap::None);
            for (file, bytes) in files {
                assert_eq!(log.disk.files.get(&file), Some(&bytes), "the log's files are only read");
            }
            if outcome == Some(Outcome::Nothing) {
                assert!(log.segments.iter().all(|s| s.end > job.upto || s.end.0 <= log.cleaned));
                continue;
            }
            let done = done(outcome);
            let touched = log.segments[done.replaced.len() - 1].end;
            assert!(touched <= job.upto);
            assert_eq!(done.cleaned, touched, "the map had room for all");
            let behind: Vec<_> = log.segments[done.replaced.len()..].to_vec();
            log.take(&done);
            assert!(log.segments.ends_with(&behind));
            let ends: Vec<_> = done.by.iter().map(|s| s.end.0).collect();
            let newest_of = |producer: BatchProducer| {
                log.producers.get(&producer.id.0).map(|p| p.1).filter(|&base| base < job.upto.0)
            };
            let keep =
                |b: &Bat| ends.contains(&b.end) || b.producer.is_some_and(|p| newest_of(p) == Some(b.base));
            let after = log.batches();
            assert_same(&after, &expected(&before, &job, done.cleaned.0, keep));
            let count =
                |batches: &[Bat]| -> usize { batches.iter().flat_map(|b| &b.records).map(Vec::len).sum() };
            dropped += count(&before) - count(&after);
            let in_touched: u64 = done.records_in - done.records_out;
            assert_eq!(in_touched, (count(&before) - count(&after)) as u64);
            let with_horizon = |batches: &[Bat]| batches.iter().filter(|b| b.horizon_ms.is_some()).count();
            horizons += with_horizon(&after).saturating_sub(with_horizon(&before));
            expired += before.iter().filter(|b| b.horizon_ms.is_some_and(|at| at <= job.now_ms)).count();
            emptied += after.iter().filter(|b| b.records.as_ref().is_some_and(Vec::is_empty)).count();
            grouped += done.replaced.len() - done.by.len();
        }
    }
    assert!(
        dropped > 2000 && horizons > 200 && expired > 100 && emptied > 100 && grouped > 200,
        "{dropped} records dropped, {horizons} horizons set, {expired} passed, {emptied} headers, {grouped} grouped"
    );
}

#[test]
fn small_map_takes_several_jobs_and_loses_nothing() {
    let mut jobs = 0;
    for seed in 1..=60 {
        let rng = &mut Rng::new(seed);
        let mut log = Log::default();
        let (mut clock_ms, mut sequences) = (1_000_000, [0; 4]);
        for _ in 0..4 {
            grow(&mut log, rng, 40, &mut clock_ms, &mut sequences);
        }
        let newest = |log: &Log| {
            let mut newest: BTreeMap<Vec<u8>, Rec> = BTreeMap::new();
            for record in
                log.batches().iter().filter(|b| !b.is_control).flat_map(|b| b.records.iter().flatten())
            {
                if let Some(key) = &record.key {
                    newest.insert(key.clone(), record.clone());
                }
            }
            newest
        };
        let before = newest(&log);
        // Three quarters of its slots.
        let slots = 2 + rng.below(11) as usize;
        let keys_max = (slots / 4 * 3).max(1);
        while log.cleaned < log.end() {
            let mut job = log.job(clock_ms);
            job.limits.map_bytes_max = 24 * slots;
            let (outcome, _) = run(job, &mut log.disk, Mishap::None);
            let done = done(outcome);
            assert!(done.cleaned.0 > log.cleaned, "each job gets on");
            let behind: Vec<_> = log.batches().into_iter().filter(|b| b.base >= done.cleaned.0).collect();
            let was: Vec<Rec> =
                log.batches().iter().flat_map(|b| b.records.clone().unwrap_or_default()).collect();
            log.take(&done);
            let is: Vec<Rec> =
                log.batches().iter().flat_map(|b| b.records.clone().unwrap_or_default()).collect();
            let mut was = was.iter();
            assert!(is.iter().all(|r| was.any(|w| w == r)), "in order, and the same");
            assert!(log.batches().ends_with(&behind), "what no job has seen is copied as it is");
            jobs += 1;
        }
        assert_eq!(newest(&log), before);
        if keys_max >= 6 {
            // No batch has more keys, so the map was never too small for one.
            let left = log.batches();
            let keyed = left.iter().filter(|b| !b.is_control).flat_map(|b| b.records.iter().flatten());
            assert_eq!(keyed.filter(|r| r.key.is_some()).count(), before.len(), "one record of each key");
        }
    }
    assert!(jobs > 400, "{jobs}");
}

fn some_log(seed: u64) -> Log {
    let rng = &mut Rng::new(seed);
    let mut log = Log::default();
    let (mut clock_ms, mut sequences) = (1_000_000, [0; 4]);
    grow(&mut log, rng, 10, &mut clock_ms, &mut sequences);
    grow(&mut log, rng, 10, &mut clock_ms, &mut sequences);
    log
}

#[test]
fn failure_at_any_operation_leaves_the_log_as_it_was() {
    for seed in 1..=10 {
        let log = some_log(seed * 77);
        let job = log.job(2_000_000);
        let (outcome, ops) = run(job.clone(), &mut log.disk.clone(), Mishap::None);
        done(outcome);
        for at in 0..ops {
            for error in [DiskError::NoSpace, DiskError::Io(5), DiskError::Missing] {
                let mut disk = log.disk.clone();
                let (outcome, _) = run(job.clone(), &mut disk, Mishap::Error(at, error));
                let is_told = matches!(
                    outcome,
                    Some(Outcome::Failed(Failure::Disk { error: e, .. })) if e == error
                );
                assert!(is_told, "{outcome:?}");
                assert_eq!(disk.files, log.disk.files);
            }
            let mut disk = log.disk.clone();
            let (outcome, _) = run(job.clone(), &mut disk, Mishap::Cancel(at));
            assert_eq!(outcome, Some(Outcome::Failed(Failure::Cancelled)));
            assert_eq!(disk.files, log.disk.files);
        }
    }
}

#[test]
fn segment_with_a_header_is_whole_and_durable_at_every_crash() {
    let mut half_made = 0;
    for seed in 1..=10 {
        let log = some_log(seed * 77);
        let job = log.job(2_000_000);
        let mut whole = log.disk.clone();
        let (outcome, ops) = run(job.clone(), &mut whole, Mishap::None);
        let complete = done(outcome);
        for at in 0..ops {
            let mut disk = log.disk.clone();
            assert_eq!(run(job.clone(), &mut disk, Mishap::Crash(at)), (None, at));
            for segment in &complete.by {
                let name = name_of(segment);
                let Some(file) = disk.files.get(&FileName::Segment(name)) else { continue };
                if SegmentHeader::parse_of(&name, file).is_err() {
                    half_made += 1;
                    continue;
                }
                let durable = &disk.synced[&FileName::Segment(name)];
                let want = &whole.files[&FileName::Segment(name)];
                assert_eq!(durable[SEGMENT_HEADER_BYTES..], want[SEGMENT_HEADER_BYTES..]);
                let index = FileName::Index(name);
                assert_eq!(disk.synced[&index], whole.files[&index]);
            }
            for (file, bytes) in &log.disk.files {
                assert_eq!(&disk.files[file], bytes);
            }
            // The next life does the same job over what the crash left, which may be longer than what it writes.
            for (file, bytes) in &mut disk.files {
                if !log.disk.files.contains_key(file) {
                    bytes.resize(bytes.len() + 5000, 0xff);
                }
            }
            let (outcome, _) = run(job.clone(), &mut disk, Mishap::None);
            assert_eq!(done(outcome), complete);
            assert_eq!(disk.files, whole.files);
        }
    }
    assert!(half_made > 10, "{half_made}");
}

#[test]
fn every_flipped_bit_and_every_cut_is_reported_and_nothing_is_written() {
    let log = some_log(3);
    for segment in &log.segments {
        let file = FileName::Segment(name_of(segment));
        for at in 0..segment.bytes as usize {
            let mut disk = log.disk.clone();
            disk.files.get_mut(&file).unwrap()[at] ^= 1 << (at % 8);
            let damaged = disk.files.clone();
            let (outcome, _) = run(log.job(2_000_000), &mut disk, Mishap::None);
            let Some(Outcome::Failed(Failure::Damaged { file: told, position, .. })) = outcome else {
                panic!("byte {at} of {file}: {outcome:?}")
            };
            assert!(told == file && position <= at as u64, "byte {at} of {file}: told {position} of {told}");
            assert_eq!(disk.files, damaged);
            if at % 16 == 0 {
                let mut disk = log.disk.clone();
                disk.files.get_mut(&file).unwrap().truncate(at);
                let (outcome, _) = run(log.job(2_000_000), &mut disk, Mishap::None);
                assert!(
                    matches!(outcome, Some(Outcome::Failed(Failure::Damaged { what: Damage::Short, .. }))),
                    "cut at {at}: {outcome:?}"
                );
            }
        }
    }
}
