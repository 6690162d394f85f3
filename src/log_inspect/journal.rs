//! The journal files of one folder, as a start would find them: recovery itself runs over
//! them. Its reads are carried
//! out, its syncs are said to be done, and it is left before it would write.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use highwater_shards::log::checkpoint::Resume;
use highwater_shards::log::disk::{DiskError, DiskEvent, DiskOp, FileName, FileNo, SECTOR};
use highwater_shards::log::inspect::{BadJournalFile, JournalFile};
use highwater_shards::log::journal::{
    CutReason, Journal, JournalConfig, JournalEvent, JournalStart, OnDamage, RecoveryReport,
};
use highwater_shards::log::{FatalReason, Lsn, Note};
use highwater_shards::time::Instant;
use serde_json::{Value, json};

use super::Known;
use super::file::Source;
use super::report::{Fields, Report, Severity, batch_fields};
use crate::error::Failure;

/// One file of the journal.
struct File<'a> {
    path: &'a Path,
    source: Source,
    header: Result<JournalFile, BadJournalFile>,
    counts: Counts,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    batches: u64,
    batch_bytes: u64,
    notes: u64,
    first: Option<Lsn>,
    last: Option<Lsn>,
}

impl Counts {
    fn add(&mut self, lsn: Lsn) {
        self.first.get_or_insert(lsn);
        self.last = Some(lsn);
    }
}

/// `paths` are all files of the journal, or some that follow each other.
pub fn inspect(paths: &[PathBuf], report: &mut Report<'_>, known: &mut Known) -> Result<(), Failure> {
    let mut files = BTreeMap::new();
    for path in paths {
        let read = Source::open(path).and_then(|source| Ok((source.read(0, SECTOR as u64)?, source)));
        let (sector, source) = match read {
            Ok(read) => read,
            Err(e) => {
                report.unreadable(path, 0, &e)?;
                continue;
            }
        };
        let header = JournalFile::parse(&sector);
        let by_name = path.file_name().and_then(|name| FileNo::parse(name.to_str()?));
        match by_name.or(header.ok().map(|header| header.file)) {
            Some(file) => {
                files.insert(file, File { path, source, header, counts: Counts::default() });
            }
            None => {
                report.file("journal", path, vec![("file_bytes", json!(source.bytes))])?;
                report.finding(
                    path,
                    0,
                    Severity::Damaged,
                    "neither its name nor its header says which file it is",
                )?;
            }
        }
    }
    let Some(first) = files.values().next() else { return Ok(()) };
    let folder = first.path.parent().unwrap_or(first.path).to_owned();
    let mut pass = Pass { start: start(&folder, &files, known), folder, files };
    pass.run(report, known)
}

/// Where recovery begins.
fn start(folder: &Path, files: &BTreeMap<FileNo, File<'_>>, known: &Known) -> JournalStart {
    // After a clean stop a start reads nothing, but here everything is to be verified.
    if let Some(&(resume @ Resume::From { .. }, journal, incarnation)) = known.resume.get(folder) {
        return JournalStart::At { resume, journal, incarnation };
    }
    // A file alone may be one out of the middle.
    match files.values().next().map(|file| file.header) {
        Some(Ok(JournalFile { file, first, journal, .. })) if files.len() == 1 => {
            let resume = Resume::From { file, sequence: first };
            JournalStart::At { resume, journal, incarnation: 0 }
        }
        _ => JournalStart::Begin,
    }
}

/// What a run of recovery ended with.
enum Ended {
    Recovered(RecoveryReport),
    Fatal(FatalReason),
}

struct Pass<'a> {
    folder: PathBuf,
    start: JournalStart,
    files: BTreeMap<FileNo, File<'a>>,
}

impl Pass<'_> {
    fn run(&mut self, report: &mut Report<'_>, known: &mut Known) -> Result<(), Failure> {
        // A file's summary stands before what is in it, so that listing takes a second run.
        let mut counts: BTreeMap<FileNo, Counts> = BTreeMap::new();
        let ended = self.recover(&mut |event| {
            match event {
                JournalEvent::Replayed { lsn, bytes, .. } => {
                    let count = counts.entry(self.file_of(*lsn)).or_default();
                    count.add(*lsn);
                    count.batches += 1;
                    count.batch_bytes += bytes.len() as u64;
                }
                JournalEvent::ReplayedNote { partition, lsn, .. } => {
                    let count = counts.entry(self.file_of(*lsn)).or_default();
                    count.add(*lsn);
                    count.notes += 1;
                    if known.moved.get(partition).is_none_or(|moved| lsn > moved) {
                        known.noted.insert(*partition);
                    }
                }
                _ => {}
            }
            Ok(())
        })?;
        for (file, count) in counts {
            self.files.get_mut(&file).expect("entries lie in files that are there").counts = count;
        }
        for (&no, file) in &self.files {
            report.file("journal", file.path, file_fields(file))?;
            match file.header {
                Ok(header) if header.file != no => {
                    let reason = format!("left over from {}, to be written anew", header.file);
                    report.finding(file.path, 0, Severity::Noted, reason)?;
                }
                Ok(_) => {}
                Err(bad @ BadJournalFile::Empty) => report.finding(file.path, 0, Severity::Noted, bad)?,
                Err(bad @ BadJournalFile::Version(_)) => {
                    report.finding(file.path, 0, Severity::Damaged, bad)?
                }
                // Whether something was lost with it, recovery says.
                Err(bad) => report.finding(file.path, 0, Severity::Torn, bad)?,
            }
        }
        if report.lists {
            let files = &*self;
            self.recover(&mut |event| files.list(event, report))?;
        }
        match ended {
            Ended::Recovered(recovered) => self.report_cut(&recovered, report),
            Ended::Fatal(reason) => report.finding(&self.folder, 0, Severity::Damaged, reason),
        }
    }

    /// The file that an entry lies in.
    fn file_of(&self, lsn: Lsn) -> FileNo {
        let begun = |file: &File<'_>| file.header.is_ok_and(|header| header.first <= lsn.chunk);
        let mut files = self.files.iter().rev();
        // A leftover names a file that was begun before all others.
        files
            .find(|(no, file)| begun(file) && file.header.is_ok_and(|header| header.file == **no))
            .map_or(FileNo(0), |(&no, _)| no)
    }

    fn list(&self, event: &JournalEvent, report: &mut Report<'_>) -> Result<(), Failure> {
        let path = |lsn| self.files.get(&self.file_of(lsn)).map_or(&*self.folder, |file| file.path);
        let fields = |lsn: Lsn, partition: highwater_shards::ids::PartitionId| -> Fields {
            vec![
                ("lsn", json!(lsn_text(lsn))),
                ("topic_id", json!(partition.topic.to_string())),
                ("partition", json!(partition.index.0)),
            ]
        };
        match event {
            JournalEvent::Replayed { partition, header, lsn, .. } => {
                let mut fields = fields(*lsn, *partition);
                fields.extend(batch_fields(header));
                report.item("batch", path(*lsn), fields)
            }
            JournalEvent::ReplayedNote { partition, note, lsn } => {
                let mut fields = fields(*lsn, *partition);
                fields.extend(match note {
                    Note::Truncated { end } => [("note", json!("truncated")), ("offset", json!(end.0))],
                    Note::Started { start } => [("note", json!("started")), ("offset", json!(start.0))],
                    Note::Dropped => [("note", json!("dropped")), ("offset", Value::Null)],
                });
                report.item("note", path(*lsn), fields)
            }
            _ => Ok(()),
        }
    }

    fn report_cut(&self, recovered: &RecoveryReport, report: &mut Report<'_>) -> Result<(), Failure> {
        let Some(cut) = recovered.cut else { return Ok(()) };
        let path = self.files.get(&cut.file).map_or(&*self.folder, |file| file.path);
        let why = match cut.reason {
            CutReason::Missing => "nothing was written here, but something behind it",
            CutReason::FileHeader => "the file's header is damaged, or that of another file",
            CutReason::ChunkHeader => "no whole chunk header",
            CutReason::Misplaced => "a chunk that says that it belongs elsewhere",
            CutReason::Sequence => "not the chunk that follows the one before",
            CutReason::EarlierLife => "a chunk of an earlier life that was cut off",
            CutReason::Entry => "an entry of the chunk is damaged",
        };
        let (severity, lost) = if cut.damaged {
            (Severity::Damaged, "flushed records are lost")
        } else {
            (Severity::Torn, "nothing proves that it had been flushed")
        };
        let reason = format!("the journal ends here: {why}; {} bytes lie behind; {lost}", cut.bytes_after);
        report.finding(path, cut.position, severity, reason)
    }

    /// Runs recovery over the files, without a checkpoint.
    fn recover(
        &self,
        on_event: &mut dyn FnMut(&JournalEvent) -> Result<(), Failure>,
    ) -> Result<Ended, Failure> {
        let header = self.files.values().find_map(|file| file.header.ok());
        // Without one header nothing is found whatever the journal's name.
        let (shard, id) = header.map_or_else(Default::default, |header| (header.shard, header.journal));
        let config = JournalConfig { on_damage: OnDamage::Truncate, ..JournalConfig::new(shard, id) };
        let mut journal = Journal::new(config, self.start);
        loop {
            while let Some(event) = journal.poll_event() {
                match event {
                    JournalEvent::Recovered(report) => return Ok(Ended::Recovered(report)),
                    JournalEvent::Fatal(reason) => return Ok(Ended::Fatal(reason)),
                    event => on_event(&event)?,
                }
            }
            let op = journal.poll_op(Instant::ZERO).expect("recovery asks until it ends");
            journal.handle(Instant::ZERO, self.answer(op));
        }
    }

    fn answer(&self, op: DiskOp) -> DiskEvent {
        match op {
            DiskOp::List { op } => {
                let files = self.files.iter().map(|(&file, f)| (file, f.source.bytes)).collect();
                DiskEvent::Listed { op, result: Ok(files) }
            }
            DiskOp::Read { op, file: FileName::Journal(file), position, len } => {
                let source = &self.files[&file].source;
                let read = source.read(position, len.into());
                DiskEvent::Read { op, result: read.map(Into::into).map_err(|e| disk_error(&e)) }
            }
            DiskOp::Sync { op, .. } => DiskEvent::Synced { op, result: Ok(()) },
            other => unreachable!("recovery writes nothing: {other:?}"),
        }
    }
}

fn disk_error(error: &io::Error) -> DiskError {
    DiskError::Io(error.raw_os_error().unwrap_or(0))
}

fn lsn_text(lsn: Lsn) -> String {
    format!("{}.{}", lsn.chunk, lsn.entry)
}

fn file_fields(file: &File<'_>) -> Fields {
    let header = file.header.ok();
    let counts = file.counts;
    vec![
        ("shard", json!(header.map(|h| h.shard.0))),
        ("journal", json!(header.map(|h| format!("{:016x}", h.journal)))),
        ("file", json!(header.map(|h| h.file.to_string()))),
        ("oldest_file", json!(header.map(|h| h.oldest.to_string()))),
        ("first_sequence", json!(header.map(|h| h.first))),
        ("batches", json!(counts.batches)),
        ("batch_bytes", json!(counts.batch_bytes)),
        ("notes", json!(counts.notes)),
        ("first_lsn", json!(counts.first.map(lsn_text))),
        ("last_lsn", json!(counts.last.map(lsn_text))),
        ("file_bytes", json!(file.source.bytes)),
    ]
}
