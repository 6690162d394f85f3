//! The HdrHistogram interval log: one compressed histogram a second, in nanoseconds, for the standard tools.
//!
//! The run's headline latencies have no tag; in an end-to-end run the acknowledgements follow with `Tag=ack`. Format:
//! HdrHistogram's `HistogramLogWriter`, version 1.3, with `V2Deflate` histograms in base64.

use std::io::Write;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use crate::collect::Second;
use crate::load::recorder::{Interval, Phase};

/// The tools print interval maxima in this unit: milliseconds of nanoseconds.
const MAX_VALUE_DIVISOR: f64 = 1e6;

pub struct HistogramLog {
    sink: Box<dyn Write>,
    serializer: V2DeflateSerializer,
}

impl HistogramLog {
    /// `start`: the begin of the measured window, to which all times in the log are relative.
    pub fn begin(mut sink: Box<dyn Write>, title: &str, start: SystemTime) -> Result<HistogramLog> {
        let mut serializer = V2DeflateSerializer::new();
        IntervalLogWriterBuilder::new()
            .add_comment(&format!("[Logged with highwater-bench {}]", env!("CARGO_PKG_VERSION")))
            .add_comment("[Histogram log format version 1.3]")
            .add_comment(&format!("[{title}; values in nanoseconds, maxima in milliseconds]"))
            .with_start_time(start)
            .with_base_time(start)
            .begin_log_with(&mut sink, &mut serializer)
            .context("the histogram log")?;
        Ok(HistogramLog { sink, serializer })
    }

    pub fn write(&mut self, second: &Second) -> Result<()> {
        let (headline, acks) = match (&second.arrivals, &second.answers) {
            (Some(arrivals), answers) => (Some(arrivals), answers.as_ref()),
            (None, answers) => (answers.as_ref(), None),
        };
        for (interval, tag) in [(headline, None), (acks, Tag::new("ack"))] {
            // What came while draining belongs to the run; a drain without samples does not.
            if let Some(interval) = interval.filter(|i| i.phase == Phase::Measured || !i.latencies.is_empty())
            {
                self.write_interval(interval, second, tag)?;
            }
        }
        self.sink.flush().context("the histogram log")
    }

    fn write_interval(&mut self, interval: &Interval, second: &Second, tag: Option<Tag<'_>>) -> Result<()> {
        let mut line = Vec::new();
        IntervalLogWriterBuilder::new()
            .with_max_value_divisor(MAX_VALUE_DIVISOR)
            .begin_log_with(&mut line, &mut self.serializer)
            .and_then(|mut writer| {
                let start = Duration::from_secs_f64(second.at.max(0.0));
                let length = Duration::from_secs_f64(second.length.max(0.0));
                let written = writer.write_histogram(&interval.latencies, start, length, tag);
                written.map_err(|error| std::io::Error::other(error.to_string()))
            })
            .map_err(|error| anyhow!("a histogram could not be written: {error}"))?;
        // Each line comes from a writer of its own, which says the divisor every time; once is enough.
        let text_at = line.iter().position(|byte| *byte == b'\n').filter(|_| line.starts_with(b"#"));
        self.sink.write_all(&line[text_at.map_or(0, |at| at + 1)..]).context("the histogram log")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::recorder::{LATENCY_NS_MAX, Role, latency_histogram};
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
    use std::sync::mpsc::{Sender, channel};

    struct Pipe(Sender<Vec<u8>>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn second(at: f64, role: Role, values: &[u64]) -> Second {
        let mut interval = Interval::empty(role, Phase::Measured, 0, 1);
        for value in values {
            interval.latencies.saturating_record(*value);
        }
        let (answers, arrivals) = match role {
            Role::Answers => (Some(interval), None),
            Role::Arrivals => {
                let mut acks = Interval::empty(Role::Answers, Phase::Measured, 0, 1);
                acks.latencies.saturating_record(1_000);
                (Some(acks), Some(interval))
            }
        };
        Second { phase: Phase::Measured, at, length: 1.0, answers, arrivals }
    }

    #[test]
    fn what_is_logged_reads_back_equal() {
        let (to, from) = channel();
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let mut log = HistogramLog::begin(Box::new(Pipe(to)), "a test", start).unwrap();
        log.write(&second(0.0, Role::Answers, &[50_000, 60_000, LATENCY_NS_MAX * 2])).unwrap();
        log.write(&second(1.0, Role::Arrivals, &[70_000])).unwrap();
        drop(log);
        let bytes: Vec<u8> = from.iter().flatten().collect();

        let mut seen = Vec::new();
        for entry in IntervalLogIterator::new(&bytes) {
            match entry.unwrap() {
                LogEntry::StartTime(at) => assert_eq!(at.as_secs(), 1_700_000_000),
                LogEntry::BaseTime(at) => assert_eq!(at.as_secs(), 1_700_000_000),
                LogEntry::Interval(interval) => {
                    let raw = base64(interval.encoded_histogram());
                    let histogram: Histogram<u64> =
                        Deserializer::new().deserialize(&mut raw.as_slice()).unwrap();
                    seen.push((interval.tag().map(|t| t.as_str().to_owned()), interval.max(), histogram));
                }
            }
        }
        let mut first = latency_histogram();
        for value in [50_000, 60_000, LATENCY_NS_MAX] {
            first.record(value).unwrap();
        }
        assert_eq!(seen.len(), 3);
        assert!(seen[0].2 == first && seen[0].0.is_none());
        assert!((seen[0].1 - 60_000.0).abs() < 100.0, "maxima are in milliseconds: {}", seen[0].1);
        assert_eq!((seen[1].0.as_deref(), seen[1].2.len()), (None, 1));
        assert_eq!(seen[2].0.as_deref(), Some("ack"));
    }

    /// Standard base64, decoded plainly.
    fn base64(text: &str) -> Vec<u8> {
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let (mut bits, mut count, mut out) = (0u32, 0, Vec::new());
        for byte in text.bytes().filter(|b| *b != b'=') {
            bits = bits << 6 | alphabet.iter().position(|a| *a == byte).unwrap() as u32;
            count += 6;
            if count >= 8 {
                count -= 8;
                out.push((bits >> count) as u8);
            }
        }
        out
    }
}
