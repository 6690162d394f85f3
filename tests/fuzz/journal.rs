//! Journal files, through recovery. A file of the corpus is a whole journal: its files one behind the other, each of
//! [`FILE_BYTES`]; the zeros at the end are left out.

use std::collections::BTreeMap;

use bytes::Bytes;
use highwater_shards::batch::{BatchBuilder, HEADER_BYTES, OUTSIDE_CRC_BYTES};
use highwater_shards::ids::{LeaderEpoch, Offset, PartitionId, PartitionIndex, ShardId, TopicId};
use highwater_shards::log::checkpoint::Resume;
use highwater_shards::log::disk::{DiskEvent, DiskOp, FileName, FileNo, SECTOR};
use highwater_shards::log::inspect::JournalFile;
use highwater_shards::log::journal::{Journal, JournalConfig, JournalEvent, JournalStart, OnDamage, Urgency};
use highwater_shards::log::{FatalReason, Lsn, Note};
use highwater_shards::time::Instant;
use highwater_sim::rng::Rng;

use crate::target::{Target, hold, put_crc, u32_at};

const FILE_BYTES: usize = 8 * SECTOR;
/// Recovery asks for no more operations than this, however the files look.
const OPS_MAX: usize = 2_000;
/// Where an entry's body begins, and how much of an entry its CRC covers.
const ENTRY_HEADER_BYTES: usize = 32;
const NOTE_BYTES: usize = ENTRY_HEADER_BYTES + 8;
const CHUNK_HEADER_BYTES: usize = 64;

/// Recovery, with and without a checkpoint.
pub struct Recovered;

fn config(journal: u64, on_damage: OnDamage) -> JournalConfig {
    JournalConfig {
        file_bytes: FILE_BYTES as u64,
        batch_bytes_max: 3 * SECTOR,
        chunk_bytes_max: SECTOR,
        on_damage,
        ..JournalConfig::new(ShardId(3), journal)
    }
}

type Files = BTreeMap<FileNo, Vec<u8>>;

/// What was replayed.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Entry {
    Batch { partition: PartitionId, base: Offset, lsn: Lsn, bytes: Bytes },
    Note { partition: PartitionId, note: Note, lsn: Lsn },
}

impl Entry {
    fn lsn(&self) -> Lsn {
        match self {
            Self::Batch { lsn, .. } | Self::Note { lsn, .. } => *lsn,
        }
    }
}

/// Carries out one operation.
fn carry_out(files: &mut Files, op: DiskOp) -> DiskEvent {
    match op {
        DiskOp::List { op } => {
            let list = files.iter().map(|(&no, bytes)| (no, bytes.len() as u64)).collect();
            DiskEvent::Listed { op, result: Ok(list) }
        }
        DiskOp::Prepare { op, file, size } => {
            files.insert(file, vec![0; size as usize]);
            DiskEvent::Prepared { op, result: Ok(()) }
        }
        DiskOp::Recycle { op, from, to } => {
            let bytes = files.remove(&from).expect("recycled files are there");
            files.insert(to, bytes);
            DiskEvent::Prepared { op, result: Ok(()) }
        }
        DiskOp::Write { op, file, position, parts, .. } => {
            let new = parts.concat();
            let bytes = files.get_mut(&file).expect("written files are there");
            bytes[position as usize..position as usize + new.len()].copy_from_slice(&new);
            DiskEvent::Written { op, result: Ok(()) }
        }
        DiskOp::Sync { op, .. } => DiskEvent::Synced { op, result: Ok(()) },
        DiskOp::Remove { op, file: FileName::Journal(file) } => {
            files.remove(&file);
            DiskEvent::Done { op, result: Ok(()) }
        }
        DiskOp::Read { op, file: FileName::Journal(file), position, len } => {
            let bytes = &files[&file];
            let from = bytes.len().min(position as usize);
            let upto = bytes.len().min(from + len as usize);
            DiskEvent::Read { op, result: Ok(Bytes::copy_from_slice(&bytes[from..upto])) }
        }
        other => panic!("not an operation of a journal: {other:?}"),
    }
}

fn settle(journal: &mut Journal, files: &mut Files) {
    loop {
        // Replayed entries are taken before more is read.
        while let Some(event) = journal.poll_event() {
            assert!(!matches!(event, JournalEvent::Fatal(_)), "a journal of the corpus: {event:?}");
        }
        let Some(op) = journal.poll_op(Instant::ZERO) else { return };
        let event = carry_out(files, op);
        journal.handle(Instant::ZERO, event);
    }
}

/// A journal of some lives with so many appends each; with `released`, its oldest files were given up and used again.
fn make(id: u64, lives: u64, appends: u64, released: bool) -> Vec<u8> {
    let mut files = Files::new();
    let mut base = 0;
    for life in 0..lives {
        let mut journal = Journal::new(config(id, OnDamage::Refuse), JournalStart::Begin);
        settle(&mut journal, &mut files);
        for i in 0..appends {
            let partition = PartitionId { topic: TopicId(77), index: PartitionIndex((i % 3) as u32) };
            let value: Vec<u8> = (0..(i * 531) % 2_500).map(|at| (at + i + life) as u8).collect();
            let batch = BatchBuilder::new().record(5, None, Some(&value)).build();
            let epoch = LeaderEpoch(life as u32);
            let placed = journal.append(Instant::ZERO, partition, Offset(base), epoch, &batch, Urgency::Sync);
            let placed = placed.expect("there is room");
            base += 1;
            if i % 4 == 1 {
                let note = match i % 3 {
                    0 => Note::Dropped,
                    1 => Note::Truncated { end: Offset(base) },
                    _ => Note::Started { start: Offset(base) },
                };
                journal.note(Instant::ZERO, partition, note, Urgency::Sync).expect("there is room");
            }
            if i % 3 == 0 || i + 1 == appends {
                settle(&mut journal, &mut files);
            }
            if released
                && i % 5 == 4
                && let Some(resume) = journal.resume_from(placed.lsn)
            {
                journal.release(resume);
                settle(&mut journal, &mut files);
            }
        }
    }
    // A gap in the numbers would not be seen in what is stored.
    let numbers: Vec<u64> = files.keys().map(|no| no.0).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{numbers:?}");
    let mut all = files.into_values().collect::<Vec<_>>().concat();
    let used = all.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 1);
    all.truncate(used.next_multiple_of(512));
    all
}

/// The files of a journal whose first one has this number.
fn split(first: u64, bytes: &[u8]) -> Files {
    let mut files = Files::new();
    for (number, piece) in (first..).zip(bytes.chunks(FILE_BYTES)) {
        let mut piece = piece.to_vec();
        piece.resize(FILE_BYTES, 0);
        files.insert(FileNo(number), piece);
    }
    files
}

struct Outcome {
    entries: Vec<Entry>,
    fatal: Option<FatalReason>,
}

fn recover(files: &mut Files, start: JournalStart, on_damage: OnDamage) -> Result<Outcome, String> {
    let mut journal = Journal::new(config(0, on_damage), start);
    let mut entries = Vec::new();
    for _ in 0..OPS_MAX {
        while let Some(event) = journal.poll_event() {
            match event {
                JournalEvent::Replayed { partition, header, base, lsn, bytes, .. } => {
                    hold(header.len as usize == bytes.len(), || {
                        format!("{header:?} of {} bytes", bytes.len())
                    })?;
                    entries.push(Entry::Batch { partition, base, lsn, bytes });
                }
                JournalEvent::ReplayedNote { partition, note, lsn } => {
                    entries.push(Entry::Note { partition, note, lsn });
                }
                JournalEvent::Recovered(_) => {
                    return Ok(Outcome { entries, fatal: None });
                }
                JournalEvent::Fatal(reason) => {
                    return Ok(Outcome { entries, fatal: Some(reason) });
                }
                other => return Err(format!("recovery says {other:?}")),
            }
        }
        let op = journal.poll_op(Instant::ZERO).ok_or("recovery waits for nothing")?;
        journal.handle(Instant::ZERO, carry_out(files, op));
    }
    Err(format!("recovery does not end within {OPS_MAX} operations"))
}

/// The number of the first file, by its header: the corpus is good.
fn first_no(good: &[u8]) -> Result<u64, String> {
    let mut numbers = good.chunks(FILE_BYTES).enumerate().filter_map(|(i, file)| {
        let header = JournalFile::parse(file.get(..SECTOR)?).ok()?;
        header.file.0.checked_sub(i as u64)
    });
    // A recycled file that was not written to since has its old number still.
    numbers.clone().max().or(numbers.next()).ok_or_else(|| "the corpus is no good: no header".to_owned())
}

/// A start of each kind that makes sense for these files.
fn starts(good: &[u8]) -> Result<Vec<JournalStart>, String> {
    let first = first_no(good)?;
    let mut starts = vec![JournalStart::Begin];
    for (no, file) in (first..).zip(good.chunks(FILE_BYTES)) {
        let Some(Ok(header)) = file.get(..SECTOR).map(JournalFile::parse) else { continue };
        if header.file.0 == no {
            let resume = Resume::From { file: header.file, sequence: header.first };
            starts.push(JournalStart::At { resume, journal: header.journal, incarnation: 1 });
        }
    }
    Ok(starts)
}

impl Target for Recovered {
    fn name(&self) -> &'static str {
        "journal"
    }

    fn generate(&self) -> Vec<(&'static str, Vec<u8>)> {
        vec![
            ("one-life", make(11, 1, 9, false)),
            ("three-lives", make(12, 3, 8, false)),
            ("released", make(13, 2, 24, true)),
        ]
    }

    fn seal(&self, bytes: &mut [u8]) {
        for file in bytes.chunks_mut(FILE_BYTES) {
            if file.len() < SECTOR {
                return;
            }
            put_crc(&mut file[..64], 4, [0; 4]);
            let mut at = SECTOR;
            while at + CHUNK_HEADER_BYTES <= file.len() {
                if &file[at..at + 4] != b"HWJC" {
                    at += SECTOR;
                    continue;
                }
                let left = file.len() - at - CHUNK_HEADER_BYTES;
                let payload = u32_at(file, at + 8).min(left);
                let chunk = &mut file[at..at + CHUNK_HEADER_BYTES + payload];
                seal_chunk(chunk);
                at += (CHUNK_HEADER_BYTES + payload).next_multiple_of(SECTOR);
            }
        }
    }

    fn damaged(&self, rng: &mut Rng, good: &[u8], bytes: &[u8]) -> Result<(), String> {
        let journal_of = |bytes: &[u8]| {
            let headers =
                bytes.chunks(FILE_BYTES).filter_map(|file| JournalFile::parse(file.get(..SECTOR)?).ok());
            headers.map(|header| header.journal).next()
        };
        let start = *rng.pick(&starts(good)?);
        if start == JournalStart::Begin && journal_of(bytes).is_some_and(|id| Some(id) != journal_of(good)) {
            // Without a checkpoint nothing says which journal it was: one that was put in its place is as good.
            return Ok(());
        }
        let on_damage = if rng.flip() { OnDamage::Refuse } else { OnDamage::Truncate };
        let first = first_no(good)?;
        let before = recover(&mut split(first, good), start, OnDamage::Refuse)?;
        let after = recover(&mut split(first, bytes), start, on_damage)?;
        hold(before.fatal.is_none(), || format!("the corpus is no good: {:?}", before.fatal))?;
        // Nothing that was never written, and nothing out of its order; what is missing is missing at the end, or, when
        // files at the front are not what they say, in front of a file.
        let mut known = before.entries.iter();
        for entry in &after.entries {
            hold(known.any(|k| k == entry), || format!("replayed: {entry:?}"))?;
        }
        let gap = after.entries.windows(2).find(|pair| {
            let (a, b) = (pair[0].lsn(), pair[1].lsn());
            let next = before.entries.iter().find(|entry| entry.lsn() > a).map(Entry::lsn);
            next != Some(b)
        });
        hold(gap.is_none(), || format!("entries are missing in between: {gap:?}"))?;
        // Without a chunk behind it a missing one is not missed: what lies in its place may be what a file held before
        // it was used again. But nothing is lost of files that are as they were.
        hold(good != bytes || before.entries == after.entries, || {
            "a good journal was not replayed".to_owned()
        })
    }

    fn hostile(&self, rng: &mut Rng, bytes: &[u8]) -> Result<(), String> {
        let first = rng.below(3);
        let start = if rng.flip() {
            JournalStart::Begin
        } else {
            let file = FileNo(rng.below(6));
            let resume = if rng.flip() {
                Resume::From { file, sequence: rng.below(40) }
            } else {
                let position = rng.below(2 * FILE_BYTES as u64) / SECTOR as u64 * SECTOR as u64;
                let end = highwater_shards::log::journal::LogPosition { file, position };
                Resume::Clean { end, sequence: rng.below(40) }
            };
            JournalStart::At { resume, journal: 11 + rng.below(3), incarnation: rng.below(5) }
        };
        let on_damage = if rng.flip() { OnDamage::Refuse } else { OnDamage::Truncate };
        let outcome = recover(&mut split(first, bytes), start, on_damage)?;
        let ascends = outcome.entries.windows(2).all(|pair| pair[0].lsn() < pair[1].lsn());
        hold(ascends, || "entries are not replayed in their order".to_owned())
    }
}

/// Makes the CRCs of a chunk right: those of its entries, then that of its header.
fn seal_chunk(chunk: &mut [u8]) {
    let (header, mut left) = chunk.split_at_mut(CHUNK_HEADER_BYTES);
    let payload = left.len() as u32;
    let mut crc = crc_fast::crc32_iscsi(&header[32..48]).to_be_bytes();
    let mut entries = 0_u32;
    while left.len() >= NOTE_BYTES {
        let is_batch = left[4] == 1 && left.len() >= ENTRY_HEADER_BYTES + HEADER_BYTES;
        let rest = left.len() - ENTRY_HEADER_BYTES;
        let len = if is_batch { u32_at(left, 8).clamp(HEADER_BYTES, rest) } else { 8 };
        let (entry, after) = left.split_at_mut(ENTRY_HEADER_BYTES + len);
        entry[8..12].copy_from_slice(&(len as u32).to_be_bytes());
        let covered = if is_batch {
            let batch = &mut entry[ENTRY_HEADER_BYTES..];
            batch[8..12].copy_from_slice(&(len as u32 - 12).to_be_bytes());
            let batch_crc = crc_fast::crc32_iscsi(&batch[OUTSIDE_CRC_BYTES..]);
            batch[OUTSIDE_CRC_BYTES - 4..OUTSIDE_CRC_BYTES].copy_from_slice(&batch_crc.to_be_bytes());
            ENTRY_HEADER_BYTES + OUTSIDE_CRC_BYTES
        } else {
            NOTE_BYTES
        };
        crc = put_crc(&mut entry[..covered], 0, crc);
        entries += 1;
        left = after;
    }
    header[8..12].copy_from_slice(&payload.to_be_bytes());
    header[12..16].copy_from_slice(&entries.to_be_bytes());
    header[16..20].copy_from_slice(&crc);
    put_crc(header, 4, [0; 4]);
}
