//! `log inspect` over files of the real formats, whole and damaged.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::BytesMut;
use highwater_shards::batch::{BatchBuilder, put_patched};
use highwater_shards::ids::{LeaderEpoch, Offset, PartitionIndex, TopicId};
use highwater_shards::log::Note;
use highwater_shards::log::checkpoint::{Checkpoint, LogState, Resume};
use highwater_shards::log::disk::{DiskEvent, DiskOp, FileName, SECTOR};
use highwater_shards::log::journal::{Journal, JournalConfig, JournalEvent, JournalStart, Urgency};
use highwater_shards::log::segment::SegmentMeta;
use highwater_shards::log::segment::format::{Seed, SegmentHeader, put_frame_header};
use highwater_shards::log::segment::index::{Index, IndexBuilder};
use highwater_shards::time::Instant;
use serde_json::Value;

use super::*;

/// A data directory, deleted at the end.
struct Data(PathBuf);

impl Drop for Data {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn partition() -> PartitionId {
    PartitionId { topic: TopicId(0xabc << 70), index: PartitionIndex(2) }
}

fn segment_name() -> SegmentName {
    SegmentName { partition: partition(), base: Offset(100), generation: 0 }
}

fn stored(base: u64, value: &[u8]) -> BytesMut {
    let batch = BatchBuilder::new().record(1_000 + base as i64, None, Some(value)).build();
    let mut out = BytesMut::new();
    put_patched(&mut out, &batch, Offset(base), LeaderEpoch(3));
    out
}

/// Forty batches of 5,000 bytes, and the index of the file.
fn segment() -> (Vec<u8>, Index) {
    let name = segment_name();
    let mut bytes = SegmentHeader { name, begun_ms: 1_100 }.to_bytes().to_vec();
    let (mut index, mut builder) = (Index::default(), IndexBuilder::new());
    for base in 100..140 {
        let batch = stored(base, &[7; 5_000]);
        if let Some(entry) = builder.add(Offset(base), bytes.len() as u64, 1_000 + base as i64) {
            index.push(entry);
        }
        put_frame_header(&mut bytes, Seed::of_segment(&name), &batch);
        bytes.extend_from_slice(&batch);
    }
    (bytes, index)
}

/// Writes what `journal` asks for below `folder`, until it asks for nothing more.
fn carry_out(journal: &mut Journal, folder: &Path) -> Vec<JournalEvent> {
    let path = |file| folder.join(FileNo::to_string(&file));
    let no_of = |name| match name {
        FileName::Journal(file) => file,
        other => panic!("{other}"),
    };
    while let Some(op) = journal.poll_op(Instant::ZERO) {
        let event = match op {
            DiskOp::List { op } => DiskEvent::Listed { op, result: Ok(Vec::new()) },
            DiskOp::Prepare { op, file, size } => {
                fs::write(path(file), vec![0; size as usize]).unwrap();
                DiskEvent::Prepared { op, result: Ok(()) }
            }
            DiskOp::Write { op, file, position, parts, .. } => {
                let mut bytes = fs::read(path(file)).unwrap();
                let new = parts.concat();
                bytes[position as usize..position as usize + new.len()].copy_from_slice(&new);
                fs::write(path(file), bytes).unwrap();
                DiskEvent::Written { op, result: Ok(()) }
            }
            DiskOp::Sync { op, .. } => DiskEvent::Synced { op, result: Ok(()) },
            DiskOp::Read { op, file, position, len } => {
                let bytes = fs::read(path(no_of(file))).unwrap();
                let bytes = bytes[position as usize..position as usize + len as usize].to_vec();
                DiskEvent::Read { op, result: Ok(bytes.into()) }
            }
            other => panic!("{other:?}"),
        };
        journal.handle(Instant::ZERO, event);
    }
    std::iter::from_fn(|| journal.poll_event()).collect()
}

impl Data {
    /// A segment with its index, a checkpoint that names it, and a journal with four batches and a note.
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("highwater-inspect-{}-{number}", std::process::id()));
        let data = Self(root);
        fs::create_dir_all(data.folder()).unwrap();
        fs::create_dir_all(data.journal_folder()).unwrap();
        fs::write(data.0.join("LOCK"), "1").unwrap();
        let (segment, index) = segment();
        fs::write(data.segment(), &segment).unwrap();
        let mut bytes = Vec::new();
        index.put_file(&mut bytes, &segment_name());
        fs::write(data.index(), bytes).unwrap();
        data.write_checkpoint(segment.len() as u64);
        data.write_journal();
        data
    }

    fn folder(&self) -> PathBuf {
        self.0.join("partitions").join(FolderName(partition()).to_string())
    }

    fn journal_folder(&self) -> PathBuf {
        self.0.join("journal-0")
    }

    fn journal(&self) -> PathBuf {
        self.journal_folder().join(FileNo(0).to_string())
    }

    fn segment(&self) -> PathBuf {
        self.folder().join(format!("{}.log", segment_name()))
    }

    fn index(&self) -> PathBuf {
        self.folder().join(format!("{}.index", segment_name()))
    }

    fn checkpoint(&self) -> PathBuf {
        self.journal_folder().join("checkpoint")
    }

    fn write_checkpoint(&self, segment_bytes: u64) {
        let segment = SegmentMeta {
            base: Offset(100),
            end: Offset(140),
            generation: 0,
            bytes: segment_bytes,
            max_timestamp_ms: 1_139,
            begun_ms: 1_100,
        };
        let log = LogState {
            partition: partition(),
            moved: Lsn { chunk: 5, entry: 0 },
            noted: Lsn { chunk: 5, entry: 0 },
            start: Offset(100),
            end: Offset(140),
            high_watermark: Offset(140),
            cleaned: Offset(0),
            segments: vec![segment],
            epochs: vec![(LeaderEpoch(3), Offset(100))],
            producers: Vec::new(),
            superseded: Vec::new(),
        };
        let checkpoint = Checkpoint {
            shard: ShardId(0),
            journal: 77,
            incarnation: 1,
            resume: Resume::From { file: FileNo(0), sequence: 1 },
            logs: vec![log],
        };
        fs::write(self.checkpoint(), checkpoint.encode().concat()).unwrap();
    }

    /// Each entry is a chunk of its own, known to be durable by the next one.
    fn write_journal(&self) {
        let config = JournalConfig {
            file_bytes: 64 * SECTOR as u64,
            batch_bytes_max: 4 * SECTOR,
            chunk_bytes_max: 2 * SECTOR,
            ..JournalConfig::new(ShardId(0), 77)
        };
        let mut journal = Journal::new(config, JournalStart::Begin);
        let folder = self.journal_folder();
        carry_out(&mut journal, &folder);
        for base in 136..140 {
            let batch = BatchBuilder::new().record(1, None, Some(&[9; 300])).build();
            let epoch = LeaderEpoch(3);
            journal.append(Instant::ZERO, partition(), Offset(base), epoch, &batch, Urgency::Sync).unwrap();
            carry_out(&mut journal, &folder);
        }
        let note = Note::Started { start: Offset(100) };
        journal.note(Instant::ZERO, partition(), note, Urgency::Sync).unwrap();
        carry_out(&mut journal, &folder);
        journal.stop();
        let events = carry_out(&mut journal, &folder);
        assert!(matches!(events.last(), Some(JournalEvent::Stopped)), "{events:?}");
    }
}

/// What is printed as JSON, and whether damage was found.
fn inspected(path: &Path, batches: bool) -> (Vec<Value>, bool) {
    let mut out = Vec::new();
    let args = InspectArgs { path: path.to_owned(), batches, json: true };
    let done = inspect(&args, &mut out);
    let lines: Vec<Value> =
        String::from_utf8(out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let damaged = lines.last().unwrap()["damaged"].as_u64().unwrap() > 0;
    match done {
        Ok(()) => assert!(!damaged),
        Err(failure) => assert_eq!((failure.status, damaged), (ExitStatus::Damaged, true)),
    }
    (lines, damaged)
}

fn of_kind<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["kind"] == kind).collect()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_whole_data_directory_is_described_and_found_good() {
    let data = Data::new();
    let (lines, damaged) = inspected(&data.0, false);
    assert!(!damaged);
    assert_eq!(of_kind(&lines, "batch").len(), 0);
    let [segment] = of_kind(&lines, "segment")[..] else { panic!("{lines:?}") };
    assert_eq!(segment["batches"], 40);
    assert_eq!(segment["end_offset"], 140);
    assert_eq!(segment["checkpoint_bytes"], segment["file_bytes"]);
    assert_eq!(segment["path"], data.segment().display().to_string());
    assert_eq!(of_kind(&lines, "index")[0]["entries"], 3);
    assert_eq!(of_kind(&lines, "checkpoint")[0]["logs"], 1);
    let written: Vec<_> =
        of_kind(&lines, "journal").into_iter().filter(|line| line["file"].is_string()).collect();
    assert_eq!(written.len(), 1);
    assert_eq!((&written[0]["batches"], &written[0]["notes"]), (&4.into(), &1.into()));
    // Journal files that were prepared are good to know and no damage.
    assert!(of_kind(&lines, "finding").iter().all(|line| line["severity"] == "noted"), "{lines:?}");
}

#[test]
fn batches_notes_entries_and_logs_are_listed_when_asked_for() {
    let data = Data::new();
    let (lines, _) = inspected(&data.0, true);
    assert_eq!(of_kind(&lines, "batch").len(), 44);
    assert_eq!(of_kind(&lines, "entry").len(), 3);
    assert_eq!(of_kind(&lines, "log").len(), 1);
    let note = of_kind(&lines, "note")[0];
    assert_eq!((&note["note"], &note["offset"]), (&"started".into(), &100.into()));
    let batch = of_kind(&lines, "batch").into_iter().find(|line| line["position"] == 64).unwrap();
    assert_eq!((&batch["base_offset"], &batch["codec"]), (&100.into(), &"none".into()));
}

#[test]
fn text_names_the_file_the_place_and_the_reason() {
    let data = Data::new();
    flip(&data.segment(), 64 + 8 + 100);
    let mut out = Vec::new();
    let args = InspectArgs { path: data.0.clone(), batches: true, json: false };
    assert_eq!(inspect(&args, &mut out).unwrap_err().status, ExitStatus::Damaged);
    let text = String::from_utf8(out).unwrap();
    let expected = format!("damaged: {} at byte 64: the records are damaged", data.segment().display());
    assert!(text.contains(&expected), "{text}");
    assert!(text.contains("base offset 101"), "{text}");
    assert!(text.contains("note lsn"), "{text}");
}

#[test]
fn each_file_alone_is_told_by_what_it_begins_with() {
    let data = Data::new();
    for (path, kind) in [
        (data.segment(), "segment"),
        (data.index(), "index"),
        (data.checkpoint(), "checkpoint"),
        (data.journal(), "journal"),
    ] {
        let renamed = data.0.join("renamed");
        fs::copy(&path, &renamed).unwrap();
        for path in [path, renamed] {
            let (lines, damaged) = inspected(&path, false);
            assert_eq!((lines[0]["kind"].as_str(), damaged), (Some(kind), false), "{lines:?}");
        }
    }
    let args = InspectArgs { path: data.0.join("LOCK"), batches: false, json: false };
    assert_eq!(inspect(&args, &mut Vec::new()).unwrap_err().status, ExitStatus::Refused);
    let args = InspectArgs { path: data.0.join("none"), batches: false, json: false };
    assert_eq!(inspect(&args, &mut Vec::new()).unwrap_err().status, ExitStatus::Environment);
}

#[test]
fn a_flipped_bit_anywhere_in_any_file_is_found() {
    let data = Data::new();
    for path in [data.segment(), data.index(), data.checkpoint()] {
        let good = fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(if good.len() > 1_000 { 997 } else { 1 }) {
            flip(&path, at);
            // A damaged magic leaves the name to tell what the file is.
            let (lines, damaged) = inspected(&data.0, false);
            assert!(damaged, "{} byte {at}: {lines:?}", path.display());
            fs::write(&path, &good).unwrap();
        }
    }
}

#[test]
fn a_damaged_chunk_of_the_journal_is_found() {
    let data = Data::new();
    let good = fs::read(data.journal()).unwrap();
    // Header, and the first chunk, which the ones behind it say to have been flushed.
    for at in (0..64).chain(SECTOR..SECTOR + 64 + 300) {
        flip(&data.journal(), at);
        let (lines, damaged) = inspected(&data.0, false);
        assert!(damaged, "byte {at}: {lines:?}");
        fs::write(data.journal(), &good).unwrap();
    }
}

#[test]
fn what_a_checkpoint_promised_and_is_not_there_is_damage_and_what_lies_behind_is_torn() {
    let data = Data::new();
    let good = fs::read(data.segment()).unwrap();
    fs::write(data.segment(), &good[..good.len() - 1]).unwrap();
    assert!(inspected(&data.0, false).1);
    fs::remove_file(data.segment()).unwrap();
    assert!(inspected(&data.0, false).1);
    let mut longer = good.clone();
    longer.extend_from_slice(&[0; 500]);
    fs::write(data.segment(), &longer).unwrap();
    let (lines, damaged) = inspected(&data.0, false);
    assert!(!damaged && lines.last().unwrap()["torn"] == 1, "{lines:?}");
    // Alone, a file must be good as a whole.
    assert!(inspected(&data.segment(), false).1);
    // The journal says that the log was cut since.
    fs::write(data.segment(), &good[..200]).unwrap();
    let mut checkpoint = Checkpoint::parse(&fs::read(data.checkpoint()).unwrap()).unwrap();
    checkpoint.logs[0].moved = Lsn { chunk: 1, entry: 0 };
    fs::write(data.checkpoint(), checkpoint.encode().concat()).unwrap();
    let (lines, damaged) = inspected(&data.0, false);
    assert!(!damaged, "{lines:?}");
}

#[test]
fn an_index_that_leads_elsewhere_is_found() {
    let data = Data::new();
    let (_, index) = segment();
    let mut wrong = Index::default();
    for (i, entry) in index.entries().iter().enumerate() {
        let mut entry = *entry;
        entry.position += u64::from(i == 1);
        wrong.push(entry);
    }
    let mut bytes = Vec::new();
    wrong.put_file(&mut bytes, &segment_name());
    fs::write(data.index(), bytes).unwrap();
    let (lines, damaged) = inspected(&data.folder(), false);
    assert!(damaged);
    assert_eq!(of_kind(&lines, "finding").len(), 1);
}
