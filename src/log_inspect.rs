//! `highwater log inspect PATH`: prints what the files of the log hold, and verifies every bit of it.
//!
//! A driver on the main thread of a process without shards. It only reads, takes no lock and asks nothing of a node, so
//! it may run beside one. Memory is bounded by one batch, one chunk of the journal, or one index or checkpoint file.
//! What kind a file is, its first bytes say; its name is asked only if they say nothing.

mod checkpoint;
mod file;
mod index;
mod journal;
mod report;
mod segment;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use highwater_shards::ids::{PartitionId, ShardId};
use highwater_shards::log::Lsn;
use highwater_shards::log::checkpoint::{CHECKPOINT_MAGIC, Resume};
use highwater_shards::log::disk::{FileNo, FolderName, SegmentName};
use highwater_shards::log::inspect::JOURNAL_MAGIC;
use highwater_shards::log::segment::format::SEGMENT_MAGIC;
use highwater_shards::log::segment::index::INDEX_MAGIC;

use crate::cli::{InspectArgs, LogCommand};
use crate::error::{ExitStatus, Failure};
use file::Source;
use report::{Report, Severity};

/// Folders below the one that was asked for: a data directory has two levels.
const DEPTH_MAX: usize = 3;

impl LogCommand {
    /// Carries the command out; `out` is standard output.
    pub fn run(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let Self::Inspect(args) = self;
        inspect(args, out)
    }
}

/// What is known of the log as a whole when its files are looked at one by one.
#[derive(Debug, Default)]
struct Known {
    /// How much of each segment a checkpoint says to be good. `None`: two checkpoints name it.
    promised: BTreeMap<SegmentName, Option<u64>>,
    /// Where each folder's checkpoint says that its journal is to be read from, which journal that is, and the life that
    /// said so.
    resume: BTreeMap<PathBuf, (Resume, u64, u64)>,
    /// What of each partition's entries in the journal its checkpoint has moved.
    moved: BTreeMap<PartitionId, Lsn>,
    /// Partitions of which the journal says that they were cut or dropped since: less may be there than was promised.
    noted: BTreeSet<PartitionId>,
    seen: BTreeSet<SegmentName>,
}

impl Known {
    /// How much of a segment must be there and good.
    fn promised(&self, name: &SegmentName) -> Option<u64> {
        if self.noted.contains(&name.partition) { None } else { *self.promised.get(name)? }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Journal,
    Segment,
    Index,
    Checkpoint,
}

fn inspect(args: &InspectArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let path = &args.path;
    let environment =
        |e: std::io::Error| Failure::new(ExitStatus::Environment, format!("{}: {e}", path.display()));
    let is_folder = std::fs::metadata(path).map_err(environment)?.is_dir();
    let mut report = Report::new(out, args.json, args.batches);
    let mut known = Known::default();
    if is_folder {
        let mut files = Vec::new();
        walk(path, DEPTH_MAX, &mut files).map_err(environment)?;
        // Checkpoints and journals first: they say what the segments must hold.
        files.sort_by_key(|(kind, path)| (order(*kind), path.clone()));
        let is_whole = path.join("partitions").is_dir();
        let mut journals: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
        for (_, path) in files.iter().filter(|(kind, _)| *kind == Kind::Journal) {
            journals.entry(path.parent().unwrap_or(path).to_owned()).or_default().push(path.clone());
        }
        for (_, path) in files.iter().filter(|(kind, _)| *kind == Kind::Checkpoint) {
            checkpoint::inspect(path, &mut report, &mut known)?;
        }
        for files in journals.into_values() {
            journal::inspect(&files, &mut report, &mut known)?;
        }
        for (kind, path) in &files {
            match kind {
                Kind::Segment => segment::inspect(path, &mut report, &mut known)?,
                Kind::Index => index::inspect(path, &mut report)?,
                Kind::Checkpoint | Kind::Journal => {}
            }
        }
        if is_whole {
            missing(path, &mut report, &known)?;
        }
    } else {
        match kind_of(path).map_err(environment)? {
            Some(Kind::Checkpoint) => checkpoint::inspect(path, &mut report, &mut known)?,
            Some(Kind::Journal) => journal::inspect(std::slice::from_ref(path), &mut report, &mut known)?,
            Some(Kind::Segment) => segment::inspect(path, &mut report, &mut known)?,
            Some(Kind::Index) => index::inspect(path, &mut report)?,
            None => {
                let message = format!("{}: neither a journal, segment, index nor checkpoint", path.display());
                return Err(Failure::new(ExitStatus::Refused, message));
            }
        }
    }
    report.finish()
}

fn order(kind: Kind) -> u8 {
    match kind {
        Kind::Checkpoint => 0,
        Kind::Journal => 1,
        Kind::Segment | Kind::Index => 2,
    }
}

/// Every file of the log below `folder`. Links are not followed.
fn walk(folder: &Path, depth: usize, found: &mut Vec<(Kind, PathBuf)>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() && depth > 0 {
            walk(&path, depth - 1, found)?;
        } else if kind.is_file() {
            match kind_of(&path) {
                Ok(Some(kind)) => found.push((kind, path)),
                Ok(None) => {}
                // A running node deletes files.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}

/// What kind of file this is. `None`: none of the log.
fn kind_of(path: &Path) -> std::io::Result<Option<Kind>> {
    let begin = Source::open(path)?.read(0, 4)?;
    let by_magic = match <[u8; 4]>::try_from(&begin[..]) {
        Ok(JOURNAL_MAGIC) => Some(Kind::Journal),
        Ok(SEGMENT_MAGIC) => Some(Kind::Segment),
        Ok(INDEX_MAGIC) => Some(Kind::Index),
        Ok(CHECKPOINT_MAGIC) => Some(Kind::Checkpoint),
        _ => None,
    };
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let by_name = || {
        if FileNo::parse(name).is_some() {
            Some(Kind::Journal)
        } else if segment_of(path, ".log").is_some() {
            Some(Kind::Segment)
        } else if segment_of(path, ".index").is_some() {
            Some(Kind::Index)
        } else {
            (name == "checkpoint").then_some(Kind::Checkpoint)
        }
    };
    Ok(by_magic.or_else(by_name))
}

/// The segment that a file is of by its name and that of its folder.
fn segment_of(path: &Path, suffix: &str) -> Option<SegmentName> {
    let folder = path.parent()?.canonicalize().ok()?;
    let partition = FolderName::parse(folder.file_name()?.to_str()?)?.0;
    SegmentName::parse(partition, path.file_name()?.to_str()?.strip_suffix(suffix)?)
}

/// The shard whose folder a journal file or a checkpoint lies in.
fn shard_of(path: &Path) -> Option<ShardId> {
    let folder = path.parent()?.canonicalize().ok()?;
    let number = folder.file_name()?.to_str()?.strip_prefix("journal-")?;
    number.parse().ok().map(ShardId)
}

/// Segments that a checkpoint names and that are not there.
fn missing(root: &Path, report: &mut Report<'_>, known: &Known) -> Result<(), Failure> {
    for name in known.promised.keys().filter(|name| !known.seen.contains(name)) {
        let path =
            root.join("partitions").join(FolderName(name.partition).to_string()).join(format!("{name}.log"));
        let promised = known.promised(name).is_some();
        let severity = if promised { Severity::Damaged } else { Severity::Noted };
        report.finding(&path, 0, severity, "a checkpoint names this segment, and it is not there")?;
    }
    Ok(())
}
