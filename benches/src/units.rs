//! Human forms of sizes, durations and rates, read from the command line and written to the terminal.
//!
//! Times are nanoseconds in `u64` everywhere in this package; this is where they get their units.

use std::time::Duration;

/// Reads `1024`, `64k`, `1KiB`, `1MiB`: a suffix is always a power of 1024. Bytes.
pub fn parse_size(text: &str) -> Result<usize, String> {
    let (digits, suffix) = split_number(text);
    let number: f64 = digits.parse().map_err(|_| format!("`{text}` is no size: try 1024, 16KiB or 1MiB"))?;
    let factor: u64 = match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        other => return Err(format!("`{other}` is no unit of size: use B, KiB, MiB or GiB")),
    };
    let bytes = number * factor as f64;
    if !(0.0..=(1u64 << 40) as f64).contains(&bytes) {
        return Err(format!("`{text}` is out of range"));
    }
    Ok(bytes as usize)
}

/// Reads `10s`, `500ms`, `2m`, or a bare number of seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (digits, suffix) = split_number(text);
    let number: f64 = digits.parse().map_err(|_| format!("`{text}` is no duration: try 10s, 500ms or 2m"))?;
    let seconds = match suffix {
        "" | "s" => number,
        "ms" => number / 1e3,
        "us" => number / 1e6,
        "m" | "min" => number * 60.0,
        "h" => number * 3600.0,
        other => return Err(format!("`{other}` is no unit of time: use us, ms, s, m or h")),
    };
    if !(0.0..=1e7).contains(&seconds) {
        return Err(format!("`{text}` is out of range"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Reads a count with an optional decimal suffix: `50000`, `50k`, `1.5M`.
pub fn parse_count(text: &str) -> Result<f64, String> {
    let (digits, suffix) = split_number(text);
    let number: f64 = digits.parse().map_err(|_| format!("`{text}` is no number: try 50000, 50k or 1.5M"))?;
    let factor = match suffix {
        "" => 1.0,
        "k" | "K" => 1e3,
        "m" | "M" => 1e6,
        other => return Err(format!("`{other}` is no suffix of a count: use k or M")),
    };
    let count = number * factor;
    if !(count > 0.0 && count <= 1e15) {
        return Err(format!("`{text}` is out of range"));
    }
    Ok(count)
}

/// Reads `KEY=VALUE`.
pub fn parse_key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not of the form KEY=VALUE")),
    }
}

fn split_number(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

/// `12.3 us`, `1.234 ms`, `2.50 s`: three or four significant digits.
pub fn nanos(ns: u64) -> String {
    let ns = ns as f64;
    if ns < 1e6 {
        format!("{:.1} us", ns / 1e3)
    } else if ns < 1e7 {
        format!("{:.2} ms", ns / 1e6)
    } else if ns < 1e9 {
        format!("{:.1} ms", ns / 1e6)
    } else {
        format!("{:.2} s", ns / 1e9)
    }
}

/// `1,234,567`.
pub fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.max(0.0));
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// `1.21 GB/s`, decimal units as disks and networks are sold.
pub fn byte_rate(bytes_per_second: f64) -> String {
    if bytes_per_second >= 1e9 {
        format!("{:.2} GB/s", bytes_per_second / 1e9)
    } else if bytes_per_second >= 1e6 {
        format!("{:.1} MB/s", bytes_per_second / 1e6)
    } else {
        format!("{:.1} kB/s", bytes_per_second / 1e3)
    }
}

/// `1 KiB`, `100 B`, `1.5 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    for (unit, name) in UNITS {
        if bytes >= unit {
            let whole = bytes as f64 / unit as f64;
            return if bytes.is_multiple_of(unit) {
                format!("{whole:.0} {name}")
            } else {
                format!("{whole:.1} {name}")
            };
        }
    }
    format!("{bytes} B")
}

/// UTC date and time of a Unix time: `(year, month, day, hour, minute, second)`.
///
/// Days to civil date after Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
pub fn civil(unix_seconds: u64) -> (u64, u64, u64, u64, u64, u64) {
    let (days, in_day) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day, in_day / 3600, in_day / 60 % 60, in_day % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_durations_and_counts_take_suffixes() {
        assert_eq!(parse_size("1KiB").unwrap(), 1024);
        assert_eq!(parse_size("1.5m").unwrap(), 1536 * 1024);
        assert_eq!(parse_duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(parse_duration("10").unwrap(), Duration::from_secs(10));
        assert_eq!(parse_count("1.5M").unwrap(), 1_500_000.0);
        assert!(parse_size("ten").is_err());
        assert!(parse_duration("3 parsecs").is_err());
        assert!(parse_count("0").is_err());
        assert!(parse_key_value("=x").is_err());
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(grouped(1_234_567.0), "1,234,567");
        assert_eq!(grouped(12.0), "12");
        assert_eq!(nanos(62_300), "62.3 us");
        assert_eq!(nanos(1_234_000), "1.23 ms");
        assert_eq!(byte_rate(1.206e9), "1.21 GB/s");
        assert_eq!(size(1024), "1 KiB");
        assert_eq!(civil(951_827_696), (2000, 2, 29, 12, 34, 56));
        assert_eq!(civil(1_798_761_599), (2026, 12, 31, 23, 59, 59));
        assert_eq!(size(1_572_864), "1.5 MiB");
    }
}
