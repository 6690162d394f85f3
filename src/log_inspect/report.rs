//! What is printed: a line or an object for each file, for each thing in it if asked for, and for each finding.

use std::io::{self, Write};
use std::path::Path;

use highwater_shards::batch::{BatchHeader, Compression};
use serde_json::{Map, Value, json};

use crate::error::{ExitStatus, Failure};

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    /// What should be there, and good, is not.
    Damaged,
    /// What a crash may leave behind what was promised; cut off or built anew when the node starts.
    Torn,
    /// Good to know, and in order.
    Noted,
}

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Self::Damaged => "damaged",
            Self::Torn => "torn",
            Self::Noted => "noted",
        }
    }
}

/// Names and values, in order.
pub type Fields = Vec<(&'static str, Value)>;

pub struct Report<'a> {
    out: &'a mut dyn Write,
    json: bool,
    /// Whether the things in a file are listed.
    pub lists: bool,
    files: u64,
    damaged: u64,
    torn: u64,
    /// The reader has gone, as `head` does: nothing more is printed, and everything is still verified.
    is_closed: bool,
}

impl<'a> Report<'a> {
    pub fn new(out: &'a mut dyn Write, json: bool, lists: bool) -> Self {
        Self { out, json, lists, files: 0, damaged: 0, torn: 0, is_closed: false }
    }

    /// A file of this kind; what it holds is said when it was read.
    pub fn file(&mut self, kind: &'static str, path: &Path, fields: Fields) -> Result<(), Failure> {
        self.files += 1;
        self.line(kind, "", path, 0, fields)
    }

    /// Something in a file, if such are listed.
    pub fn item(&mut self, kind: &'static str, path: &Path, fields: Fields) -> Result<(), Failure> {
        if self.lists { self.line(kind, "  ", path, 1, fields) } else { Ok(()) }
    }

    pub fn finding(
        &mut self,
        path: &Path,
        position: u64,
        severity: Severity,
        reason: impl ToString,
    ) -> Result<(), Failure> {
        match severity {
            Severity::Damaged => self.damaged += 1,
            Severity::Torn => self.torn += 1,
            Severity::Noted => {}
        }
        let reason = reason.to_string();
        if self.json {
            let fields = vec![
                ("severity", json!(severity.name())),
                ("position", json!(position)),
                ("reason", json!(reason)),
            ];
            return self.line("finding", "", path, 0, fields);
        }
        let text = format!("  {}: {} at byte {position}: {reason}\n", severity.name(), path.display());
        self.print(&text)
    }

    /// A file that could not be read. One that has gone is no damage: a running node deletes files.
    pub fn unreadable(&mut self, path: &Path, position: u64, error: &io::Error) -> Result<(), Failure> {
        let is_gone = error.kind() == io::ErrorKind::NotFound;
        let severity = if is_gone { Severity::Noted } else { Severity::Damaged };
        self.finding(path, position, severity, format!("it cannot be read: {error}"))
    }

    /// The last line. An error if there was damage.
    pub fn finish(mut self) -> Result<(), Failure> {
        let (files, damaged, torn) = (self.files, self.damaged, self.torn);
        if self.json {
            let line = json!({"kind": "summary", "files": files, "damaged": damaged, "torn": torn});
            self.print(&format!("{line}\n"))?;
        } else {
            self.print(&format!("{files} files, {damaged} damaged places, {torn} torn tails\n"))?;
        }
        if damaged == 0 {
            return Ok(());
        }
        let message = format!("{damaged} damaged places were found in {files} files; each is named above");
        Err(Failure::new(ExitStatus::Damaged, message))
    }

    fn line(
        &mut self,
        kind: &'static str,
        indent: &str,
        path: &Path,
        depth: usize,
        fields: Fields,
    ) -> Result<(), Failure> {
        let text = if self.json {
            let mut object = Map::new();
            object.insert("kind".into(), json!(kind));
            object.insert("path".into(), json!(path.display().to_string()));
            object.extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
            format!("{}\n", Value::Object(object))
        } else {
            let mut text = format!("{indent}{kind}");
            if depth == 0 {
                text += &format!(" {}\n   ", path.display());
            }
            for (i, (name, value)) in fields.iter().filter(|(_, value)| !value.is_null()).enumerate() {
                let comma = if i == 0 { "" } else { "," };
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                text += &format!("{comma} {} {value}", name.replace('_', " "));
            }
            text + "\n"
        };
        self.print(&text)
    }

    fn print(&mut self, text: &str) -> Result<(), Failure> {
        if self.is_closed {
            return Ok(());
        }
        match self.out.write_all(text.as_bytes()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                self.is_closed = true;
                Ok(())
            }
            Err(e) => Err(Failure::new(ExitStatus::Environment, format!("cannot print: {e}"))),
            Ok(()) => Ok(()),
        }
    }
}

/// A batch, in a segment or in the journal.
pub fn batch_fields(header: &BatchHeader) -> Fields {
    let codec = match header.attributes.compression() {
        Some(Compression::None) => "none",
        Some(Compression::Gzip) => "gzip",
        Some(Compression::Snappy) => "snappy",
        Some(Compression::Lz4) => "lz4",
        Some(Compression::Zstd) => "zstd",
        None => "unknown",
    };
    let producer = header.producer;
    vec![
        ("base_offset", json!(header.base_offset)),
        ("last_offset", json!(header.base_offset.saturating_add(header.last_offset_delta.into()))),
        ("leader_epoch", json!(header.leader_epoch)),
        ("records", json!(header.records)),
        ("bytes", json!(header.len)),
        ("codec", json!(codec)),
        ("base_timestamp_ms", json!(header.base_timestamp_ms)),
        ("max_timestamp_ms", json!(header.max_timestamp_ms)),
        ("producer_id", json!(producer.map(|p| p.id.0))),
        ("producer_epoch", json!(producer.map(|p| p.epoch.0))),
        ("base_sequence", json!(producer.map(|p| p.base_sequence.0))),
    ]
}
