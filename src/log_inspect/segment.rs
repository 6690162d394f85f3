//! A segment file: its header, and every frame in it.

use std::path::Path;

use highwater_shards::log::segment::format::{SEGMENT_HEADER_BYTES, Seed, SegmentHeader};
use highwater_shards::log::segment::scan::{BadFrame, Check, FIRST_FRAME, Frame, Order, Scanned, Scanner};
use serde_json::json;

use super::file::Source;
use super::report::{Report, Severity, batch_fields};
use super::{Known, segment_of};
use crate::error::Failure;

/// How much is read at once, unless a batch is larger.
const READ_BYTES: u64 = 4 << 20;

pub fn inspect(path: &Path, report: &mut Report<'_>, known: &mut Known) -> Result<(), Failure> {
    let source = match Source::open(path) {
        Ok(source) => source,
        Err(e) => return report.unreadable(path, 0, &e),
    };
    let by_name = segment_of(path, ".log");
    known.seen.extend(by_name);
    let header = match source.read(0, SEGMENT_HEADER_BYTES as u64) {
        Ok(bytes) => SegmentHeader::parse(&bytes),
        Err(e) => return report.unreadable(path, 0, &e),
    };
    let promised = by_name.and_then(|name| known.promised(&name));
    let header = match header {
        Ok(header) => header,
        Err(bad) => {
            report.file("segment", path, vec![("file_bytes", json!(source.bytes))])?;
            // Nothing was promised of a file that no checkpoint names in a log that has one.
            let is_new = by_name.is_some() && !known.promised.is_empty() && promised.is_none();
            let severity = if is_new { Severity::Torn } else { Severity::Damaged };
            return report.finding(path, 0, severity, bad);
        }
    };
    let mut pass = Pass { path, source, header, promised: None, has_checkpoint: !known.promised.is_empty() };
    pass.promised = known.promised(&header.name);
    if by_name.is_some_and(|name| name != header.name) {
        report.finding(
            path,
            0,
            Severity::Damaged,
            "the header is that of another segment than the file's name",
        )?;
    }
    pass.run(report)
}

/// One pass over a segment.
struct Pass<'a> {
    path: &'a Path,
    source: Source,
    header: SegmentHeader,
    promised: Option<u64>,
    has_checkpoint: bool,
}

/// Findings of one file that are printed each.
const FINDINGS_MAX: usize = 1_000;

/// What is not right, and where.
#[derive(Default)]
struct Findings {
    first: Vec<(u64, String)>,
    more_from: Option<u64>,
}

impl Findings {
    fn add(&mut self, position: u64, reason: String) {
        if self.first.len() < FINDINGS_MAX {
            self.first.push((position, reason));
        } else {
            self.more_from.get_or_insert(position);
        }
    }
}

/// What was counted.
#[derive(Default)]
struct Counts {
    batches: u64,
    records: u64,
    bytes: u64,
    first: Option<Frame>,
    last: Option<Frame>,
    max_timestamp_ms: Option<i64>,
}

impl Counts {
    fn add(&mut self, frame: &Frame) {
        self.batches += 1;
        self.records += u64::from(frame.header.records);
        self.bytes += u64::from(frame.header.len);
        self.max_timestamp_ms = self.max_timestamp_ms.max(Some(frame.header.max_timestamp_ms));
        self.first.get_or_insert_with(|| frame.clone());
        self.last = Some(frame.clone());
    }
}

impl Pass<'_> {
    /// How bad it is that something is wrong here.
    fn severity(&self, position: u64) -> Severity {
        match self.promised {
            Some(bytes) if position >= bytes => Severity::Torn,
            None if self.has_checkpoint => Severity::Torn,
            _ => Severity::Damaged,
        }
    }

    fn run(&self, report: &mut Report<'_>) -> Result<(), Failure> {
        let name = self.header.name;
        // Frames are listed below their file, whose summary is known at their end: that takes a second pass.
        let mut findings = Findings::default();
        let counts = self.scan(&mut findings, &mut |_| Ok(()))?;
        report.file(
            "segment",
            self.path,
            vec![
                ("topic_id", json!(name.partition.topic.to_string())),
                ("partition", json!(name.partition.index.0)),
                ("base_offset", json!(name.base.0)),
                ("generation", json!(name.generation)),
                ("begun_ms", json!(self.header.begun_ms)),
                ("first_offset", json!(counts.first.as_ref().map(|f| f.base.0))),
                ("end_offset", json!(counts.last.as_ref().map_or(name.base.0, |f| f.end().0))),
                ("batches", json!(counts.batches)),
                ("records", json!(counts.records)),
                ("batch_bytes", json!(counts.bytes)),
                ("first_epoch", json!(counts.first.as_ref().map(|f| f.epoch.0))),
                ("last_epoch", json!(counts.last.as_ref().map(|f| f.epoch.0))),
                ("max_timestamp_ms", json!(counts.max_timestamp_ms)),
                ("file_bytes", json!(self.source.bytes)),
                ("checkpoint_bytes", json!(self.promised)),
            ],
        )?;
        if report.lists {
            self.scan(&mut Findings::default(), &mut |frame| {
                let mut fields = vec![("position", json!(frame.position))];
                fields.extend(batch_fields(&frame.header));
                report.item("batch", self.path, fields)
            })?;
        }
        for (position, reason) in findings.first {
            report.finding(self.path, position, self.severity(position), reason)?;
        }
        if let Some(position) = findings.more_from {
            report.finding(
                self.path,
                position,
                self.severity(position),
                "from here on more that is not listed",
            )?;
        }
        if let Some(bytes) = self.promised.filter(|bytes| *bytes > self.source.bytes) {
            let reason = format!("the file ends here; a checkpoint says that it has {bytes} bytes");
            report.finding(self.path, self.source.bytes, Severity::Damaged, reason)?;
        }
        Ok(())
    }

    /// Gives every good frame, and notes every finding.
    fn scan(
        &self,
        findings: &mut Findings,
        on_frame: &mut dyn FnMut(&Frame) -> Result<(), Failure>,
    ) -> Result<Counts, Failure> {
        let seed = Seed::of_segment(&self.header.name);
        let (mut order, mut counts) = (Order::new(&self.header.name), Counts::default());
        let (mut position, mut need) = (FIRST_FRAME, 0);
        loop {
            let window = match self.source.read(position, READ_BYTES.max(need)) {
                Ok(window) => window,
                Err(e) => {
                    findings.add(position, format!("it cannot be read: {e}"));
                    return Ok(counts);
                }
            };
            // With as many bytes as were lacking, the scanner comes further.
            if (window.len() as u64) < READ_BYTES.max(need).min(self.source.bytes - position) {
                findings.add(position, "the file became shorter while it was read".to_owned());
                return Ok(counts);
            }
            // Headers first: behind a batch whose records are damaged the segment goes on.
            let mut scanner = Scanner::new(seed, Check::Headers, &window, position, self.source.bytes);
            loop {
                position = scanner.position();
                match scanner.scan() {
                    Scanned::Frame(frame) if !frame.is_within(&window) => {
                        need = frame.end_position() - position;
                        break;
                    }
                    Scanned::Frame(frame) => {
                        let bad = order.check(&frame).and_then(|()| frame.check_records(&window));
                        match bad {
                            Ok(()) => {
                                counts.add(&frame);
                                on_frame(&frame)?;
                            }
                            Err(bad) => findings.add(position, bad.to_string()),
                        }
                    }
                    Scanned::Incomplete { need: n } => {
                        need = n as u64;
                        break;
                    }
                    Scanned::End => return Ok(counts),
                    Scanned::Bad(bad) => {
                        let left = self.source.bytes - position;
                        let rest = match bad {
                            BadFrame::CutShort => String::new(),
                            _ => format!("; the {left} bytes from here on cannot be read"),
                        };
                        findings.add(position, format!("{bad}{rest}"));
                        return Ok(counts);
                    }
                }
            }
        }
    }
}
