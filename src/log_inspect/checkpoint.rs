//! A checkpoint file.

use std::path::Path;

use highwater_shards::log::checkpoint::{BadCheckpoint, Checkpoint, LogState, Resume};
use highwater_shards::log::disk::SegmentName;
use serde_json::{Value, json};

use super::file::Source;
use super::report::{Report, Severity};
use super::{Known, shard_of};
use crate::error::Failure;

pub fn inspect(path: &Path, report: &mut Report<'_>, known: &mut Known) -> Result<(), Failure> {
    let read = Source::open(path).and_then(|source| source.whole());
    let bytes = match read {
        Ok(bytes) => bytes,
        Err(e) => return report.unreadable(path, 0, &e),
    };
    let checkpoint = match Checkpoint::parse(&bytes) {
        Ok(checkpoint) => checkpoint,
        Err(bad) => {
            report.file("checkpoint", path, vec![("file_bytes", json!(bytes.len()))])?;
            let position = match bad {
                BadCheckpoint::Crc(position) | BadCheckpoint::Value { position, .. } => position,
                _ => 0,
            };
            return report.finding(path, position, Severity::Damaged, bad);
        }
    };
    let (kind, file, position, sequence) = match checkpoint.resume {
        Resume::From { file, sequence } => ("from", file, None, sequence),
        Resume::Clean { end, sequence } => ("clean", end.file, Some(end.position), sequence),
    };
    report.file(
        "checkpoint",
        path,
        vec![
            ("shard", json!(checkpoint.shard.0)),
            ("journal", json!(format!("{:016x}", checkpoint.journal))),
            ("incarnation", json!(checkpoint.incarnation)),
            ("resume", json!(kind)),
            ("resume_file", json!(file.to_string())),
            ("resume_position", json!(position)),
            ("resume_sequence", json!(sequence)),
            ("logs", json!(checkpoint.logs.len())),
            ("segments", json!(checkpoint.logs.iter().map(|log| log.segments.len()).sum::<usize>())),
            ("file_bytes", json!(bytes.len())),
        ],
    )?;
    if shard_of(path).is_some_and(|shard| shard != checkpoint.shard) {
        report.finding(
            path,
            0,
            Severity::Damaged,
            "it is the checkpoint of another shard than its folder's",
        )?;
    }
    if let Some(folder) = path.parent() {
        let resume = (checkpoint.resume, checkpoint.journal, checkpoint.incarnation);
        known.resume.insert(folder.to_owned(), resume);
    }
    for log in &checkpoint.logs {
        report.item("log", path, log_fields(log))?;
        known.moved.insert(log.partition, log.moved);
        for segment in &log.segments {
            let name =
                SegmentName { partition: log.partition, base: segment.base, generation: segment.generation };
            // Of a partition that moved between shards two checkpoints may speak, and one of them is old.
            known.promised.entry(name).and_modify(|bytes| *bytes = None).or_insert(Some(segment.bytes));
        }
    }
    Ok(())
}

fn log_fields(log: &LogState) -> Vec<(&'static str, Value)> {
    let segments = log.segments.iter().map(|s| {
        json!({
            "base_offset": s.base.0, "end_offset": s.end.0, "generation": s.generation, "bytes": s.bytes,
            "max_timestamp_ms": s.max_timestamp_ms, "begun_ms": s.begun_ms,
        })
    });
    let epochs = log.epochs.iter().map(|(epoch, start)| json!({"epoch": epoch.0, "start_offset": start.0}));
    vec![
        ("topic_id", json!(log.partition.topic.to_string())),
        ("partition", json!(log.partition.index.0)),
        ("moved", json!(format!("{}.{}", log.moved.chunk, log.moved.entry))),
        ("noted", json!(format!("{}.{}", log.noted.chunk, log.noted.entry))),
        ("start_offset", json!(log.start.0)),
        ("end_offset", json!(log.end.0)),
        ("high_watermark", json!(log.high_watermark.0)),
        ("cleaned", json!(log.cleaned.0)),
        ("producers", json!(log.producers.len())),
        ("segments", segments.collect()),
        ("epochs", epochs.collect()),
    ]
}
