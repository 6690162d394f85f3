//! An index file: its entries, each held against the segment beside it.

use std::path::Path;

use highwater_shards::log::segment::format::{FRAME_PREFIX_BYTES, Seed};
use highwater_shards::log::segment::index::{BadIndex, Index, IndexEntry, parse_index_header};
use highwater_shards::log::segment::scan::{Check, Scanned, Scanner};
use serde_json::json;

use super::file::Source;
use super::report::{Report, Severity};
use super::segment_of;
use crate::error::Failure;

pub fn inspect(path: &Path, report: &mut Report<'_>) -> Result<(), Failure> {
    let read = Source::open(path).and_then(|source| source.whole());
    let bytes = match read {
        Ok(bytes) => bytes,
        Err(e) => return report.unreadable(path, 0, &e),
    };
    let name = match parse_index_header(&bytes) {
        Ok(name) => name,
        Err(bad) => {
            report.file("index", path, vec![("file_bytes", json!(bytes.len()))])?;
            return report.finding(path, 0, Severity::Damaged, bad);
        }
    };
    let segment = Source::open(&path.with_extension("log")).ok();
    let segment_bytes = segment.as_ref().map_or(u64::MAX, |segment| segment.bytes);
    let loaded = Index::load(&name, &bytes, segment_bytes);
    report.file(
        "index",
        path,
        vec![
            ("topic_id", json!(name.partition.topic.to_string())),
            ("partition", json!(name.partition.index.0)),
            ("base_offset", json!(name.base.0)),
            ("generation", json!(name.generation)),
            ("entries", json!(loaded.index.entries().len())),
            ("last_offset", json!(loaded.index.entries().last().map(|e| e.offset.0))),
            ("last_position", json!(loaded.index.entries().last().map(|e| e.position))),
            ("file_bytes", json!(bytes.len())),
        ],
    )?;
    if segment_of(path, ".index").is_some_and(|by_name| by_name != name) {
        report.finding(
            path,
            0,
            Severity::Damaged,
            "the header is that of another index than the file's name",
        )?;
    }
    if segment.is_none() {
        report.finding(
            path,
            0,
            Severity::Noted,
            "its segment is not beside it: entries were not held against it",
        )?;
    }
    for entry in loaded.index.entries() {
        report.item(
            "entry",
            path,
            vec![
                ("offset", json!(entry.offset.0)),
                ("position", json!(entry.position)),
                ("timestamp_before_ms", json!(entry.timestamp_before_ms)),
            ],
        )?;
        if let Some(segment) = &segment {
            let wrong = match leads_to(&Seed::of_segment(&name), segment, entry) {
                Ok(None) => continue,
                Ok(Some(wrong)) => wrong,
                Err(e) => format!("its segment cannot be read there: {e}"),
            };
            let reason = format!("the entry for offset {} {wrong}", entry.offset);
            report.finding(path, entry.position, Severity::Damaged, reason)?;
        }
    }
    if let Some(bad) = loaded.bad {
        // An index is synced by nobody's promise; what lies behind its good part is built anew.
        let severity = match bad {
            BadIndex::CutShort | BadIndex::Beyond => Severity::Torn,
            _ => Severity::Damaged,
        };
        report.finding(path, loaded.good_bytes, severity, bad)?;
    }
    Ok(())
}

/// What is wrong with the place in the segment that an entry leads to.
fn leads_to(seed: &Seed, segment: &Source, entry: &IndexEntry) -> std::io::Result<Option<String>> {
    let prefix = segment.read(entry.position, FRAME_PREFIX_BYTES as u64)?;
    let mut scanner = Scanner::new(*seed, Check::Headers, &prefix, entry.position, segment.bytes);
    Ok(match scanner.scan() {
        Scanned::Frame(frame) if frame.base == entry.offset => None,
        Scanned::Frame(frame) => Some(format!("leads to the batch at offset {}", frame.base)),
        Scanned::Bad(bad) => Some(format!("leads to no frame: {bad}")),
        Scanned::End | Scanned::Incomplete { .. } => Some("leads behind the segment's end".to_owned()),
    })
}
