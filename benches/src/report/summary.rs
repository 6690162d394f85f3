//! The result of a run: the JSON summary, and the same in text for the terminal.

use std::time::SystemTime;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::cli::{ConsumeArgs, ProduceArgs, RunArgs, TargetArgs};
use crate::collect::Outcome;
use crate::cpu::Host;
use crate::kafka::error_name;
use crate::load::SECOND;
use crate::load::recorder::Troubles;
use crate::units::{byte_rate, grouped, nanos, size};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    Produce,
    Consume,
    EndToEnd,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Mode::Produce => "produce",
            Mode::Consume => "consume",
            Mode::EndToEnd => "end-to-end",
        }
    }
}

/// What was asked for, and what the broker made of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunConfig {
    pub mode: Mode,
    pub label: Option<String>,
    pub started_unix_ms: u64,
    pub brokers: Vec<String>,
    pub topic: String,
    pub topic_config: Vec<(String, String)>,
    pub partitions: usize,
    pub connections: usize,
    pub threads: usize,
    /// Open loop: records per second asked for. `None` is closed loop.
    pub rate: Option<f64>,
    pub record_bytes: usize,
    pub batch: usize,
    pub in_flight: usize,
    pub acks: String,
    pub idempotent: bool,
    pub fetch_bytes: usize,
    /// Of Produce, or of Fetch when nothing is produced.
    pub api_version: i16,
    pub warmup_s: f64,
    pub duration_s: Option<f64>,
    pub records: Option<f64>,
}

impl RunConfig {
    fn common(mode: Mode, target: &TargetArgs, run: &RunArgs, label: Option<String>) -> RunConfig {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        RunConfig {
            mode,
            label,
            started_unix_ms: since_epoch.as_millis() as u64,
            brokers: target.brokers.clone(),
            topic: target.topic.clone(),
            topic_config: target.topic_config.clone(),
            partitions: 0,
            connections: run.connections,
            threads: run.threads,
            rate: None,
            record_bytes: 0,
            batch: 0,
            in_flight: 1,
            acks: String::new(),
            idempotent: false,
            fetch_bytes: 0,
            api_version: 0,
            warmup_s: run.warmup.as_secs_f64(),
            duration_s: run.duration.map(|duration| duration.as_secs_f64()),
            records: run.records,
        }
    }

    pub fn of_produce(args: &ProduceArgs, mode: Mode, api_version: i16, partitions: usize) -> RunConfig {
        RunConfig {
            partitions,
            rate: args.rate,
            record_bytes: args.record_size,
            batch: args.batch,
            in_flight: args.in_flight,
            acks: args.acks.name().to_owned(),
            idempotent: args.idempotent,
            fetch_bytes: if mode == Mode::EndToEnd { args.fetch_size } else { 0 },
            api_version,
            ..RunConfig::common(mode, &args.target, &args.run, args.output.label.clone())
        }
    }

    pub fn of_consume(args: &ConsumeArgs, api_version: i16, partitions: usize) -> RunConfig {
        RunConfig {
            partitions,
            fetch_bytes: args.fetch_size,
            api_version,
            ..RunConfig::common(Mode::Consume, &args.target, &args.run, args.output.label.clone())
        }
    }

    /// One line that says what was run.
    pub fn title(&self) -> String {
        let connections = match self.connections {
            1 => "1 connection".to_owned(),
            n => format!("{n} connections"),
        };
        let partitions = match self.partitions {
            1 => "1 partition".to_owned(),
            n => format!("{n} partitions"),
        };
        if self.mode == Mode::Consume {
            return format!(
                "consume: {connections}, {partitions}, fetches of {}",
                size(self.fetch_bytes as u64)
            );
        }
        let pace = match self.rate {
            Some(rate) => format!("open loop at {} records/s", grouped(rate)),
            None => "closed loop".to_owned(),
        };
        format!(
            "{}: {pace}, {connections} with {} in flight, {partitions}, acks={}{}, batches of {} x {}",
            self.mode.name(),
            self.in_flight,
            self.acks,
            if self.idempotent { " idempotent" } else { "" },
            self.batch,
            size(self.record_bytes as u64)
        )
    }

    /// What the latency of this run is the latency of.
    pub fn latency_meaning(&self) -> &'static str {
        match (self.mode, self.rate.is_some(), self.acks.as_str()) {
            (Mode::Consume, ..) => "from fetch to its answer, fetches that brought records",
            (Mode::EndToEnd, true, _) => {
                "from the record's intended send time to its arrival at the consumer"
            }
            (Mode::EndToEnd, false, _) => "from the record's send time to its arrival at the consumer",
            (Mode::Produce, true, "0") => "from a request's intended send time until the kernel took it",
            (Mode::Produce, false, "0") => "from a request's send time until the kernel took it",
            (Mode::Produce, true, _) => "from a request's intended send time to its acknowledgement",
            (Mode::Produce, false, _) => "from a request's send time to its acknowledgement",
        }
    }
}

/// Microseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    pub count: u64,
    pub min_us: f64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p99_9_us: f64,
    pub p99_99_us: f64,
    pub max_us: f64,
    /// (quantile, microseconds), for the percentile plot.
    pub curve: Vec<(f64, f64)>,
}

impl Latency {
    pub fn of(histogram: &Histogram<u64>) -> Latency {
        if histogram.is_empty() {
            return Latency::default();
        }
        let us = |ns: u64| ns as f64 / 1e3;
        let at = |q: f64| us(histogram.value_at_quantile(q));
        let mut curve: Vec<(f64, f64)> = histogram
            .iter_quantiles(8)
            .map(|step| (step.quantile_iterated_to(), us(step.value_iterated_to())))
            .collect();
        curve.dedup();
        Latency {
            count: histogram.len(),
            min_us: us(histogram.min()),
            mean_us: histogram.mean() / 1e3,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p99_9_us: at(0.999),
            p99_99_us: at(0.9999),
            max_us: us(histogram.max()),
            curve,
        }
    }

    pub fn rows(&self) -> [(&'static str, f64); 6] {
        [
            ("p50", self.p50_us),
            ("p90", self.p90_us),
            ("p99", self.p99_us),
            ("p99.9", self.p99_9_us),
            ("p99.99", self.p99_99_us),
            ("max", self.max_us),
        ]
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Throughput {
    /// Seconds of the measured window.
    pub window_s: f64,
    pub requests: u64,
    pub records: u64,
    pub requests_per_s: f64,
    pub records_per_s: f64,
    /// Of values when producing, of whole batches when consuming.
    pub bytes_per_s: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorCount {
    pub code: i16,
    pub name: String,
    pub count: u64,
}

/// Everything but plain successes, of the whole run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TroubleReport {
    pub errors: Vec<ErrorCount>,
    pub retried: u64,
    pub failed: u64,
    pub unanswered: u64,
    pub connections_lost: u64,
    pub foreign_records: u64,
    /// End to end: acknowledged and not seen by the consumer.
    pub missing_records: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CpuReport {
    pub client_us_per_request: f64,
    pub client_cores: f64,
    pub server: Option<ServerCpu>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerCpu {
    pub us_per_request: f64,
    pub us_per_record: f64,
    /// Cores busy during the window: 1.0 is one whole core.
    pub cores: f64,
    /// The same before the load.
    pub idle_cores: Option<f64>,
}

/// By how much the log's end moved, beside what was acknowledged; retries without idempotence can add to it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct LogGrowth {
    pub records: i64,
    pub acked: u64,
}

/// One second of the run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct SecondReport {
    /// End of the second, from the start of the window.
    pub at_s: f64,
    pub records_per_s: f64,
    pub bytes_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
    pub errors: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    pub tool: String,
    pub host: Host,
    pub config: RunConfig,
    pub throughput: Throughput,
    pub latency: Latency,
    /// End to end: from the same start to the acknowledgement.
    pub ack_latency: Option<Latency>,
    /// Open loop: how late this client sent what nothing held up. Large values mean that the client is the bottleneck.
    pub send_lag: Option<Latency>,
    pub troubles: TroubleReport,
    pub cpu: Option<CpuReport>,
    pub log_growth: Option<LogGrowth>,
    pub failure: Option<String>,
    pub seconds: Vec<SecondReport>,
}

impl Summary {
    pub fn new(config: RunConfig, outcome: &mut Outcome, log_growth: Option<LogGrowth>) -> Summary {
        let seconds_of = outcome.window_ns as f64 / SECOND as f64;
        let headline = outcome.headline();
        let throughput = Throughput {
            window_s: seconds_of,
            requests: headline.requests,
            records: headline.records,
            requests_per_s: headline.requests as f64 / seconds_of,
            records_per_s: headline.records as f64 / seconds_of,
            bytes_per_s: headline.bytes as f64 / seconds_of,
        };
        let cpu = outcome.cpu.map(|used| {
            let requests = outcome.answers.requests.max(1) as f64;
            let records = outcome.answers.records.max(1) as f64;
            let server = used.server_ns.map(|ns| ServerCpu {
                us_per_request: ns as f64 / 1e3 / requests,
                us_per_record: ns as f64 / 1e3 / records,
                cores: ns as f64 / used.wall_ns as f64,
                idle_cores: used.idle_cores,
            });
            CpuReport {
                client_us_per_request: used.client_ns as f64 / 1e3 / requests,
                client_cores: used.client_ns as f64 / used.wall_ns as f64,
                server,
            }
        });
        let seconds = outcome
            .points
            .iter()
            .filter(|point| point.length >= 0.05)
            .map(|point| SecondReport {
                at_s: point.at + point.length,
                records_per_s: point.records as f64 / point.length,
                bytes_per_s: point.bytes as f64 / point.length,
                p50_us: point.p50_ns as f64 / 1e3,
                p99_us: point.p99_ns as f64 / 1e3,
                max_us: point.max_ns as f64 / 1e3,
                errors: point.troubles,
            })
            .collect();
        let is_open = config.rate.is_some();
        Summary {
            tool: format!("highwater-bench {}", env!("CARGO_PKG_VERSION")),
            host: Host::here(),
            throughput,
            latency: Latency::of(outcome.latencies()),
            ack_latency: outcome.arrivals.is_some().then(|| Latency::of(&outcome.answers.latencies)),
            send_lag: is_open.then(|| Latency::of(&outcome.answers.send_lag)),
            troubles: trouble_report(
                &outcome.troubles,
                outcome.received.map(|got| outcome.acked.saturating_sub(got)),
            ),
            cpu,
            log_growth,
            failure: outcome.failure.clone(),
            seconds,
            config,
        }
    }

    pub fn label(&self) -> String {
        self.config.label.clone().unwrap_or_else(|| self.config.mode.name().to_owned())
    }

    /// True when every request was answered well, and what was acknowledged is in the log.
    pub fn is_clean(&self) -> bool {
        let troubles = &self.troubles;
        let is_whole = self.log_growth.is_none_or(|growth| growth.records >= growth.acked as i64);
        self.failure.is_none()
            && troubles.failed == 0
            && troubles.unanswered == 0
            && troubles.missing_records == 0
            && is_whole
    }

    /// The block at the end of a run.
    pub fn text(&self) -> String {
        let mut lines = vec![String::new(), self.config.title()];
        if let Some(label) = &self.config.label {
            lines[1] = format!("{label}: {}", lines[1]);
        }
        let through = &self.throughput;
        lines.push(format!(
            "throughput  {} records/s   {}   {} {}/s   over {}",
            grouped(through.records_per_s),
            byte_rate(through.bytes_per_s),
            grouped(through.requests_per_s),
            if self.config.mode == Mode::Produce { "requests" } else { "fetches" },
            us(through.window_s * 1e6)
        ));
        lines.push(format!("latency     {}   ({})", row(&self.latency), self.config.latency_meaning()));
        if let Some(acks) = &self.ack_latency {
            lines.push(format!("  to ack    {}", row(acks)));
        }
        if let Some(lag) = self.send_lag.as_ref().filter(|lag| lag.count > 0) {
            lines.push(format!(
                "send lag    p50 {}   p99 {}   max {}   (this client's own lateness)",
                us(lag.p50_us),
                us(lag.p99_us),
                us(lag.max_us)
            ));
        }
        if let Some(cpu) = &self.cpu {
            if let Some(server) = &cpu.server {
                let idle = server
                    .idle_cores
                    .map_or(String::new(), |idle| format!("; idle before {:.2} %", idle * 100.0));
                lines.push(format!(
                    "server CPU  {:.2} us/request   {:.3} us/record   {:.0} % of a core{idle}",
                    server.us_per_request,
                    server.us_per_record,
                    server.cores * 100.0
                ));
            }
            lines.push(format!(
                "client CPU  {:.2} us/request   {:.0} % of a core",
                cpu.client_us_per_request,
                cpu.client_cores * 100.0
            ));
        }
        if let Some(growth) = self.log_growth {
            lines.push(format!(
                "log         grew by {} records, {} of this run {}",
                grouped(growth.records as f64),
                grouped(growth.acked as f64),
                if self.config.acks == "0" { "sent" } else { "acknowledged" }
            ));
        }
        lines.push(format!("troubles    {}", self.troubles.line()));
        if let Some(failure) = &self.failure {
            lines.push(format!("STOPPED     {failure}"));
        }
        lines.join("\n")
    }
}

fn us(us: f64) -> String {
    nanos((us * 1e3) as u64)
}

fn row(latency: &Latency) -> String {
    if latency.count == 0 {
        return "no samples".to_owned();
    }
    latency.rows().map(|(name, value)| format!("{name} {}", us(value))).join("   ")
}

fn trouble_report(troubles: &Troubles, missing: Option<u64>) -> TroubleReport {
    let errors = troubles.errors.iter();
    TroubleReport {
        errors: errors
            .map(|(code, count)| ErrorCount { code: *code, name: error_name(*code), count: *count })
            .collect(),
        retried: troubles.retried,
        failed: troubles.failed,
        unanswered: troubles.unanswered,
        connections_lost: troubles.connections_lost,
        foreign_records: troubles.foreign,
        missing_records: missing.unwrap_or(0),
    }
}

impl TroubleReport {
    pub fn line(&self) -> String {
        let mut parts: Vec<String> = self
            .errors
            .iter()
            .map(|error| format!("{} x {}", grouped(error.count as f64), error.name))
            .collect();
        for (count, what) in [
            (self.retried, "retried"),
            (self.failed, "refused for good"),
            (self.unanswered, "not answered in time (in the latencies with their age)"),
            (self.connections_lost, "connections lost"),
            (self.foreign_records, "records of others on the topic"),
            (self.missing_records, "records acknowledged but not received"),
        ] {
            if count > 0 {
                parts.push(format!("{} {what}", grouped(count as f64)));
            }
        }
        if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
    }
}
