//! The page of one run, or of several beside each other: one file, no external resources, readable without scripts.

use std::fmt::Write;

use super::plot::{Chart, Scale, Series, Tick, escape, micros, nice_step, si};
use super::summary::{Latency, Mode, Summary};
use crate::units::{byte_rate, civil, grouped, size};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// Colors of the palette; more runs than that repeat them.
const COLORS: usize = 6;

/// One run gets tiles, several a table; the charts are the same.
pub fn page(runs: &[&Summary]) -> String {
    let title = match runs {
        [run] => run.config.label.clone().unwrap_or_else(|| run.config.title()),
        runs => format!("{} runs compared", runs.len()),
    };
    let mut body = String::new();
    let mut charts = Vec::new();
    match runs {
        [run] => single_head(&mut body, run, &title),
        runs => compare_head(&mut body, runs, &title),
    }
    percentile_section(&mut body, &mut charts, runs);
    over_time_sections(&mut body, &mut charts, runs);
    for run in runs {
        detail_section(&mut body, run, runs.len() > 1);
    }
    let data = serde_json::Value::from(charts.iter().map(Chart::script_data).collect::<Vec<_>>());
    // A label could close the script element.
    let data = data.to_string().replace('<', "\\u003c");
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n<div id=\"tip\"></div>\n\
         <script type=\"application/json\" id=\"data\">{data}</script>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        escape(&title)
    )
}

fn started(run: &Summary) -> String {
    let (year, month, day, hour, minute, second) = civil(run.config.started_unix_ms / 1000);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

fn single_head(body: &mut String, run: &Summary, title: &str) {
    let subtitle = if run.config.label.is_some() { run.config.title() + " · " } else { String::new() };
    let _ = writeln!(
        body,
        "<header><div class=\"brand\">{}</div><h1>{}</h1><p>{}{} · {} · {} cores · Linux {}</p></header>",
        escape(&run.tool),
        escape(title),
        escape(&subtitle),
        started(run),
        escape(&run.host.cpu),
        run.host.cores,
        escape(&run.host.kernel)
    );
    banner(body, run);
    let through = &run.throughput;
    let per_request = match run.config.mode {
        Mode::Produce => "requests/s",
        Mode::Consume | Mode::EndToEnd => "fetches/s",
    };
    body.push_str("<div class=\"tiles\">\n");
    let more = format!("{} {per_request}", grouped(through.requests_per_s));
    tile(body, "Throughput", &grouped(through.records_per_s), "records/s", &more);
    let bytes = byte_rate(through.bytes_per_s);
    let (number, unit) = bytes.split_once(' ').unwrap_or((&bytes, ""));
    tile(body, "Data", number, unit, &format!("over {:.1} s", through.window_s));
    if let Some(cpu) = &run.cpu {
        if let Some(server) = &cpu.server {
            let more = format!(
                "{:.3} µs per record · {:.0} % of a core",
                server.us_per_record,
                server.cores * 100.0
            );
            tile(body, "Server CPU per request", &format!("{:.1}", server.us_per_request), "µs", &more);
        }
        let more = format!("{:.0} % of a core", cpu.client_cores * 100.0);
        tile(body, "Client CPU per request", &format!("{:.1}", cpu.client_us_per_request), "µs", &more);
    }
    body.push_str("</div>\n<div class=\"tiles\">\n");
    for (name, value) in run.latency.rows() {
        let text = micros(value);
        let (number, unit) = text.split_once(' ').unwrap_or((&text, ""));
        tile(body, &format!("Latency {name}"), number, unit, "");
    }
    body.push_str("</div>\n");
}

fn tile(body: &mut String, name: &str, value: &str, unit: &str, more: &str) {
    let _ = writeln!(
        body,
        "<div class=\"tile\"><div class=\"name\">{}</div><div class=\"value\">{} <small>{}</small></div>{}</div>",
        escape(name),
        escape(value),
        escape(unit),
        if more.is_empty() { String::new() } else { format!("<div class=\"more\">{}</div>", escape(more)) }
    );
}

fn banner(body: &mut String, run: &Summary) {
    let mut lines = Vec::new();
    if let Some(failure) = &run.failure {
        lines.push(format!("The run stopped early: {failure}"));
    }
    if run.troubles.line() != "none" {
        lines.push(format!("Not everything went well: {}", run.troubles.line()));
    }
    if let Some(growth) = run.log_growth.filter(|growth| growth.records < growth.acked as i64) {
        lines.push(format!(
            "The log grew by {} records, but {} were acknowledged",
            grouped(growth.records as f64),
            grouped(growth.acked as f64)
        ));
    }
    if let Some(lag) =
        run.send_lag.as_ref().filter(|lag| lag.p99_us > 0.5 * run.latency.p99_us && lag.count > 0)
    {
        lines.push(format!(
            "The client itself sent late (p99 {}): a good part of these latencies is the client's",
            micros(lag.p99_us)
        ));
    }
    if !lines.is_empty() {
        let text: String = lines.iter().map(|line| format!("<div>{}</div>", escape(line))).collect();
        let _ = writeln!(body, "<section class=\"banner\">{text}</section>");
    }
}

fn compare_head(body: &mut String, runs: &[&Summary], title: &str) {
    let tool = runs.first().map_or("", |run| &run.tool);
    let _ = writeln!(
        body,
        "<header><div class=\"brand\">{}</div><h1>{}</h1></header>",
        escape(tool),
        escape(title)
    );
    body.push_str("<section><div class=\"scroll\"><table><tr><th>Run</th><th>Records/s</th><th>Bytes</th>");
    for name in ["p50", "p90", "p99", "p99.9", "p99.99", "max"] {
        let _ = write!(body, "<th>{name}</th>");
    }
    body.push_str("<th>Server CPU</th></tr>\n");
    for (i, run) in runs.iter().enumerate() {
        let _ = write!(
            body,
            "<tr><td><span class=\"legend\" style=\"margin:0\"><span><i class=\"c{}\"></i>{}</span></span></td><td>{}</td><td>{}</td>",
            i % COLORS,
            escape(&run.label()),
            grouped(run.throughput.records_per_s),
            byte_rate(run.throughput.bytes_per_s)
        );
        for (_, value) in run.latency.rows() {
            let _ = write!(body, "<td>{}</td>", micros(value));
        }
        let server = run.cpu.as_ref().and_then(|cpu| cpu.server.as_ref());
        let cpu = server.map_or("–".to_owned(), |server| format!("{:.1} µs/req", server.us_per_request));
        let _ = writeln!(body, "<td>{cpu}</td></tr>");
    }
    body.push_str("</table></div></section>\n");
}

/// Places a quantile on the axis: every nine more is one unit.
fn nines(quantile: f64, count: u64) -> f64 {
    // The last sample of n stands for the quantile 1 - 1/n.
    let rest = (1.0 - quantile).max(1.0 / count.max(1) as f64);
    -rest.log10()
}

fn curve(latency: &Latency) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> =
        latency.curve.iter().map(|(q, us)| (nines(*q, latency.count), *us)).collect();
    // Several quantiles fall on the last sample; the largest value is the one that counts.
    points.dedup_by(|later, earlier| {
        let is_same = (later.0 - earlier.0).abs() < 1e-6;
        if is_same {
            earlier.1 = earlier.1.max(later.1);
        }
        is_same
    });
    points
}

fn percentile_section(body: &mut String, charts: &mut Vec<Chart>, runs: &[&Summary]) {
    let mut lines = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        let class = format!("c{}", i % COLORS);
        let name = if runs.len() > 1 { run.label() } else { headline_name(run).to_owned() };
        lines.push((name, class, curve(&run.latency), false));
        if let (1, Some(acks)) = (runs.len(), &run.ack_latency) {
            lines.push(("acknowledgement".to_owned(), "c1".to_owned(), curve(acks), true));
        }
        if let (1, Some(lag)) = (runs.len(), run.send_lag.as_ref().filter(|lag| lag.count > 0)) {
            lines.push(("this client's own lateness".to_owned(), "c3".to_owned(), curve(lag), true));
        }
    }
    let largest = lines.iter().flat_map(|line| &line.2).map(|point| point.0).fold(1.0, f64::max);
    let meaning = runs.first().map_or("", |run| run.config.latency_meaning());
    let _ = write!(
        body,
        "<section><input class=\"scale\" type=\"radio\" name=\"scale\" id=\"log-scale\" checked><input class=\"scale\" type=\"radio\" name=\"scale\" id=\"linear-scale\">\
         <div class=\"switch\"><label for=\"log-scale\">log</label><label for=\"linear-scale\">linear</label></div>\
         <h2>Latency by percentile</h2><p class=\"sub\">{}</p>",
        escape(&(meaning[..1].to_uppercase() + &meaning[1..]))
    );
    legend(body, lines.iter().map(|(name, class, _, is_dashed)| (name.as_str(), class.as_str(), *is_dashed)));
    for (id, scale) in [("log", Scale::Log), ("linear", Scale::Linear)] {
        let labels = ["0", "90", "99", "99.9", "99.99", "99.999", "99.9999", "99.99999", "99.999999"];
        let mut ticks: Vec<Tick> = labels
            .iter()
            .enumerate()
            .filter(|(i, _)| *i as f64 <= largest + 0.02)
            .map(|(i, label)| Tick { at: i as f64, label: format!("{label} %") })
            .collect();
        ticks.push(Tick { at: nines(0.5, u64::MAX), label: "50 %".to_owned() });
        let series = lines.iter().map(|(name, class, points, is_dashed)| Series {
            name: name.clone(),
            class: class.clone(),
            points: points.clone(),
            is_dashed: *is_dashed,
            is_area: false,
        });
        let chart = Chart {
            id: format!("percentiles-{id}"),
            width: 1040.0,
            height: 430.0,
            x_title: "percentile".to_owned(),
            x_ticks: ticks,
            x_range: (0.0, largest),
            y_title: "latency".to_owned(),
            y_scale: scale,
            y_unit: "us",
            x_unit: "quantile",
            series: series.collect(),
        };
        let _ = write!(body, "<div class=\"{id}\">{}</div>", chart.svg());
        charts.push(chart);
    }
    body.push_str("</section>\n");
}

fn headline_name(run: &Summary) -> &'static str {
    match run.config.mode {
        Mode::Produce => "acknowledgement",
        Mode::Consume => "fetch",
        Mode::EndToEnd => "end to end",
    }
}

fn legend<'a>(body: &mut String, entries: impl Iterator<Item = (&'a str, &'a str, bool)>) {
    body.push_str("<div class=\"legend\">");
    for (name, class, is_dashed) in entries {
        let dashed = if is_dashed { " dashed" } else { "" };
        let _ = write!(body, "<span><i class=\"{class}{dashed}\"></i>{}</span>", escape(name));
    }
    body.push_str("</div>");
}

fn over_time_sections(body: &mut String, charts: &mut Vec<Chart>, runs: &[&Summary]) {
    let last = runs.iter().flat_map(|run| &run.seconds).map(|second| second.at_s).fold(0.0, f64::max);
    if last <= 0.0 {
        return;
    }
    // A value stands at the end of its second, so the first stands at 1 s, unless the run is shorter than that.
    let first = if last >= 3.0 { 1.0 } else { 0.0 };
    let is_single = runs.len() == 1;
    let mut rates = Vec::new();
    let mut latencies = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        let class = format!("c{}", i % COLORS);
        let line = |name: String, class: String, is_dashed, is_area, of: &dyn Fn(usize) -> f64| Series {
            name,
            class,
            points: run.seconds.iter().enumerate().map(|(i, second)| (second.at_s, of(i))).collect(),
            is_dashed,
            is_area,
        };
        let of_run = |what: &str| if is_single { what.to_owned() } else { format!("{} {what}", run.label()) };
        let rate = |i: usize| run.seconds[i].records_per_s;
        rates.push(line(of_run("records/s"), class.clone(), false, is_single, &rate));
        latencies.push(line(of_run("p50"), class.clone(), false, false, &|i| run.seconds[i].p50_us));
        latencies.push(line(of_run("p99"), class.clone(), true, false, &|i| run.seconds[i].p99_us));
        if is_single {
            latencies.push(line("max".to_owned(), "c1".to_owned(), true, false, &|i| run.seconds[i].max_us));
        }
    }
    // Seconds without an answer have no latency.
    for series in &mut latencies {
        series.points.retain(|point| point.1 > 0.0);
    }
    body.push_str("<div class=\"pair\">\n");
    let per_record = runs.first().map_or(0, |run| run.config.record_bytes as u64);
    let note = match is_single && per_record > 0 {
        true => format!("Records per second; {} each", size(per_record)),
        false => "Records per second".to_owned(),
    };
    let widest = if last <= 1.0 { nice_step(last / 5.0) } else { nice_step(last / 6.0).max(1.0) };
    let time_ticks = || {
        (0..=(last / widest * 1.001) as usize)
            .map(|i| i as f64 * widest)
            .filter(|at| *at >= first)
            .map(|at| Tick { at, label: format!("{} s", si(at).trim_end()) })
            .collect::<Vec<_>>()
    };
    let mut section =
        |title: &str, note: &str, id: &str, unit: &'static str, scale: Scale, series: Vec<Series>| {
            let chart = Chart {
                id: id.to_owned(),
                width: 520.0,
                height: 290.0,
                x_title: String::new(),
                x_ticks: time_ticks(),
                x_range: (first, last),
                y_title: title.to_owned(),
                y_scale: scale,
                y_unit: unit,
                x_unit: "seconds",
                series,
            };
            let _ = write!(body, "<section><h2>{title}</h2><p class=\"sub\">{}</p>", escape(note));
            if chart.series.len() > 1 {
                legend(body, chart.series.iter().map(|s| (s.name.as_str(), s.class.as_str(), s.is_dashed)));
            }
            let _ = writeln!(body, "{}</section>", chart.svg());
            charts.push(chart);
        };
    section("Throughput over time", &note, "rates", "count", Scale::Linear, rates);
    section(
        "Latency over time",
        "Of what was answered in each second",
        "latencies",
        "us",
        Scale::Log,
        latencies,
    );
    body.push_str("</div>\n");
}

fn detail_section(body: &mut String, run: &Summary, is_named: bool) {
    let config = &run.config;
    let heading = if is_named { run.label() } else { "This run".to_owned() };
    let _ = write!(
        body,
        "<section><h2>{}</h2><p class=\"sub\">{}</p><dl class=\"facts\">",
        escape(&heading),
        escape(&config.title())
    );
    let mut fact = |name: &str, value: String| {
        if !value.is_empty() {
            let _ = write!(body, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(&value));
        }
    };
    fact("brokers", config.brokers.join(", "));
    fact("topic", format!("{}, {} partitions", config.topic, config.partitions));
    fact(
        "topic settings",
        config
            .topic_config
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
            .join(", "),
    );
    let threads = if config.threads == 1 {
        "1 client thread".to_owned()
    } else {
        format!("{} client threads", config.threads)
    };
    fact("connections", format!("{}, {threads}", config.connections));
    fact("samples", grouped(run.latency.count as f64));
    if config.mode != Mode::Consume {
        fact(
            "load",
            config
                .rate
                .map_or("closed loop".to_owned(), |rate| format!("open loop, {} records/s", grouped(rate))),
        );
        fact("batch", format!("{} x {}", config.batch, size(config.record_bytes as u64)));
        fact("in flight", format!("{} per connection", config.in_flight));
        fact("acks", format!("{}{}", config.acks, if config.idempotent { ", idempotent" } else { "" }));
    }
    if config.fetch_bytes > 0 {
        fact("fetch size", size(config.fetch_bytes as u64));
    }
    fact("window", format!("{:.2} s after {} s of warm-up", run.throughput.window_s, config.warmup_s));
    fact("API version", config.api_version.to_string());
    fact("mean", micros(run.latency.mean_us));
    fact("min", micros(run.latency.min_us));
    if let Some(acks) = &run.ack_latency {
        fact("to acknowledgement p50 / p99", format!("{} / {}", micros(acks.p50_us), micros(acks.p99_us)));
    }
    if let Some(lag) = run.send_lag.as_ref().filter(|lag| lag.count > 0) {
        fact("client's send lag p50 / p99", format!("{} / {}", micros(lag.p50_us), micros(lag.p99_us)));
    }
    if let Some(cpu) = &run.cpu {
        if let Some(server) = &cpu.server {
            fact(
                "server CPU",
                format!("{:.2} µs/request, {:.3} µs/record", server.us_per_request, server.us_per_record),
            );
            fact("server cores", format!("{:.2} busy", server.cores));
            if let Some(idle) = server.idle_cores {
                fact("server idle before", format!("{:.2} % of a core", idle * 100.0));
            }
        }
        fact(
            "client CPU",
            format!(
                "{:.2} µs/request, {:.0} % of a core",
                cpu.client_us_per_request,
                cpu.client_cores * 100.0
            ),
        );
    }
    if let Some(growth) = run.log_growth {
        fact("log grew by", format!("{} records", grouped(growth.records as f64)));
        fact("acknowledged", format!("{} records", grouped(growth.acked as f64)));
    }
    fact("troubles", run.troubles.line());
    body.push_str("</dl></section>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collect::{Outcome, Point};
    use crate::load::recorder::{Interval, Phase, Role, Troubles};
    use crate::report::summary::RunConfig;

    fn summary(label: &str) -> Summary {
        let mut answers = Interval::empty(Role::Answers, Phase::Measured, 0, 1);
        for i in 0..100_000u64 {
            answers.latencies.saturating_record(50_000 + i * i % 900_000);
        }
        (answers.requests, answers.records, answers.bytes) = (100_000, 100_000, 100_000 << 10);
        let point = |at: f64| Point {
            at,
            length: 1.0,
            records: 10_000,
            bytes: 1,
            p50_ns: 60_000,
            p99_ns: 90_000,
            max_ns: 900_000,
            troubles: 0,
        };
        let mut outcome = Outcome {
            window_ns: 10_000_000_000,
            answers,
            arrivals: None,
            points: (0..10).map(|at| point(f64::from(at))).collect(),
            acked: 100_000,
            received: None,
            troubles: Troubles::default(),
            cpu: None,
            failure: Some("a <b>bold</b> reason".into()),
        };
        let config = RunConfig {
            mode: Mode::Produce,
            label: Some(label.to_owned()),
            started_unix_ms: 1_800_000_000_000,
            brokers: vec!["localhost:9092".into()],
            topic: "t".into(),
            topic_config: Vec::new(),
            partitions: 1,
            connections: 1,
            threads: 1,
            rate: Some(10_000.0),
            record_bytes: 1024,
            batch: 1,
            in_flight: 1,
            acks: "all".into(),
            idempotent: false,
            fetch_bytes: 0,
            api_version: 7,
            warmup_s: 1.0,
            duration_s: Some(10.0),
            records: None,
        };
        Summary::new(config, &mut outcome, None)
    }

    #[test]
    fn a_page_loads_nothing_from_outside() {
        let one = summary("one");
        for page in [page(&[&one]), page(&[&one, &summary("two")])] {
            for word in [
                "src=",
                "href=",
                "@import",
                "url(",
                "<link",
                "<iframe",
                "<img",
                "fetch(",
                "XMLHttpRequest",
                "import(",
            ] {
                assert!(!page.contains(word), "the page contains {word}");
            }
            // The only addresses are names of XML namespaces, which nothing loads.
            for (at, _) in page.match_indices("://") {
                let around = &page[at.saturating_sub(5)..(at + 20).min(page.len())];
                assert!(around.contains("http://www.w3.org/2000"), "the page contains {around}");
            }
            assert!(page.contains("<svg") && page.contains("percentiles-log") && !page.contains("NaN"));
        }
    }

    #[test]
    fn labels_and_reasons_cannot_become_markup() {
        let page = page(&[&summary("</script><script>alert(1)</script>")]);
        assert!(!page.contains("<script>alert") && !page.contains("<b>bold"));
        assert_eq!(page.matches("</script>").count(), 2);
    }

    #[test]
    fn every_nine_is_one_step_and_the_maximum_stands_at_its_own_rank() {
        assert!((nines(0.999, 1_000_000) - 3.0).abs() < 1e-9);
        assert!((nines(1.0, 1_000) - 3.0).abs() < 1e-9);
        let run = summary("x");
        let points = curve(&run.latency);
        assert!(points.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 <= w[1].1), "the curve only rises");
        assert!((points.last().unwrap().1 - run.latency.max_us).abs() < 1.0);
    }

    #[test]
    fn a_summary_survives_json() {
        let run = summary("x");
        let text = serde_json::to_string(&run).unwrap();
        let back: Summary = serde_json::from_str(&text).unwrap();
        assert_eq!(page(&[&back]), page(&[&run]));
    }
}
