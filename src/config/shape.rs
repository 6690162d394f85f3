//! Shapes: how the text of one key becomes a value, and how the value is written again.
//!
//! Each shape knows its bounds and can say in words what it expects, so every refusal has the same form: "must be
//! EXPECTED, found FOUND". Pure text work, done once at start.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::cores::CoreId;

/// A value before a shape has read it, from a file, a variable or a flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Raw {
    Empty,
    Text(String),
    /// A list of plain values, as written.
    List(Vec<String>),
    /// A section, or a list that holds more than plain values; the word says which.
    Nested(&'static str),
}

impl Raw {
    /// What was found, for a message. Long values are cut: a message is one line.
    pub fn describe(&self) -> String {
        match self {
            Self::Empty => "nothing".into(),
            Self::Text(text) => format!("`{}`", shorten(text)),
            Self::List(items) => format!("the list [{}]", shorten(&items.join(", "))),
            Self::Nested(what) => (*what).into(),
        }
    }

    /// The same for a value that nobody may read.
    pub fn describe_secret(&self) -> String {
        match self {
            Self::Text(text) => format!("{} bytes", text.trim().len()),
            Self::List(_) => "a list".into(),
            Self::Empty | Self::Nested(_) => self.describe(),
        }
    }

    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text.trim()),
            _ => None,
        }
    }

    /// The items of a list, or of a text such as `[a, b]` or `a,b`; none for an empty list.
    pub fn items(&self) -> Option<Vec<&str>> {
        match self {
            Self::List(items) => Some(items.iter().map(|item| item.trim()).collect()),
            Self::Text(text) => {
                let text = text.trim();
                let list = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
                // `[::1]:1` and `[::1]:1,[::1]:2` begin with a bracket too, but end with a port.
                let inner = list.unwrap_or(text).trim();
                Some(if inner.is_empty() { Vec::new() } else { inner.split(',').map(str::trim).collect() })
            }
            Self::Empty | Self::Nested(_) => None,
        }
    }
}

/// At most 60 characters of `text`, on one line.
pub fn shorten(text: &str) -> String {
    let mut out: String = text.chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(60).is_some() {
        out.push('…');
    }
    out
}

pub trait Shape {
    type Value;
    /// The words after "must be".
    fn expected(&self) -> String;
    /// `None` when `raw` is not of this shape or out of its bounds.
    fn read(&self, raw: &Raw) -> Option<Self::Value>;
    /// The value as YAML on one line; [`Shape::read`] takes it back.
    fn show(&self, value: &Self::Value) -> String;
}

/// `true` or `false`.
pub struct Flag;

impl Shape for Flag {
    type Value = bool;

    fn expected(&self) -> String {
        "true or false".into()
    }

    fn read(&self, raw: &Raw) -> Option<bool> {
        raw.text()?.parse().ok()
    }

    fn show(&self, value: &bool) -> String {
        value.to_string()
    }
}

/// A whole number within bounds, both included.
pub struct Count {
    pub what: &'static str,
    pub min: u32,
    pub max: u32,
}

impl Shape for Count {
    type Value = u32;

    fn expected(&self) -> String {
        format!("{} from {} to {}", self.what, self.min, self.max)
    }

    fn read(&self, raw: &Raw) -> Option<u32> {
        let value = raw.text()?.replace('_', "").parse().ok()?;
        (self.min..=self.max).contains(&value).then_some(value)
    }

    fn show(&self, value: &u32) -> String {
        value.to_string()
    }
}

const SIZE_UNITS: [(&str, u64); 8] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("KB", 1_000),
    ("B", 1),
];

/// A number of bytes within bounds and divisible by `step`; with or without a unit.
pub struct Size {
    pub min: u64,
    pub max: u64,
    pub step: u64,
}

impl Shape for Size {
    type Value = u64;

    fn expected(&self) -> String {
        let step = if self.step > 1 {
            format!(" and a multiple of {}", show_size(self.step))
        } else {
            String::new()
        };
        format!("a size such as 64MiB, from {} to {}{step}", show_size(self.min), show_size(self.max))
    }

    fn read(&self, raw: &Raw) -> Option<u64> {
        let value = read_scaled(raw.text()?, &SIZE_UNITS, 1)?;
        ((self.min..=self.max).contains(&value) && value.is_multiple_of(self.step)).then_some(value)
    }

    fn show(&self, value: &u64) -> String {
        show_size(*value)
    }
}

/// The largest binary unit that divides `bytes`, or the bare number.
pub fn show_size(bytes: u64) -> String {
    for (unit, scale) in &SIZE_UNITS[..3] {
        if bytes >= *scale && bytes.is_multiple_of(*scale) {
            return format!("{}{unit}", bytes / scale);
        }
    }
    bytes.to_string()
}

const TIME_UNITS: [(&str, u64); 7] = [
    ("us", 1),
    ("ms", 1_000),
    ("min", 60_000_000),
    ("sec", 1_000_000),
    ("s", 1_000_000),
    ("h", 3_600_000_000),
    ("d", 86_400_000_000),
];

/// A duration whose bare number counts milliseconds or microseconds, as the key's name ends in `_ms` or `_us`.
pub struct Time {
    pub unit: TimeUnit,
    pub min: Duration,
    pub max: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TimeUnit {
    Ms,
    Us,
}

impl TimeUnit {
    fn micros(self) -> u64 {
        match self {
            Self::Ms => 1_000,
            Self::Us => 1,
        }
    }

    fn count(self, time: Duration) -> u64 {
        u64::try_from(time.as_micros()).unwrap_or(u64::MAX) / self.micros()
    }
}

impl Shape for Time {
    type Value = Duration;

    fn expected(&self) -> String {
        let (name, with_unit) = match self.unit {
            TimeUnit::Ms => ("milliseconds", "5s"),
            TimeUnit::Us => ("microseconds", "20us"),
        };
        let (min, max) = (self.unit.count(self.min), self.unit.count(self.max));
        format!("{name} from {min} to {max} (or with a unit, such as {with_unit})")
    }

    fn read(&self, raw: &Raw) -> Option<Duration> {
        let micros = read_scaled(raw.text()?, &TIME_UNITS, self.unit.micros())?;
        let time = Duration::from_micros(micros);
        let whole = micros.is_multiple_of(self.unit.micros());
        (whole && (self.min..=self.max).contains(&time)).then_some(time)
    }

    fn show(&self, value: &Duration) -> String {
        self.unit.count(*value).to_string()
    }
}

/// `12`, `12MiB`, `1.5 GiB`, `1_000`: a number times its unit, or times `bare` without one. `None` on overflow, and when
/// a fraction does not come out whole.
fn read_scaled(text: &str, units: &[(&str, u64)], bare: u64) -> Option<u64> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '_' || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit.trim() {
        "" => bare,
        unit => units.iter().find(|(name, _)| *name == unit)?.1,
    };
    let number = number.replace('_', "");
    let (whole, fraction) = number.split_once('.').unwrap_or((&number, ""));
    if whole.is_empty() || fraction.len() > 6 || (number.contains('.') && fraction.is_empty()) {
        return None;
    }
    let mut value = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    if !fraction.is_empty() {
        let denominator = 10u64.pow(u32::try_from(fraction.len()).ok()?);
        let part = fraction.parse::<u64>().ok()?.checked_mul(scale)?;
        if part % denominator != 0 {
            return None;
        }
        value = value.checked_add(part / denominator)?;
    }
    Some(value)
}

/// An enum whose values are words.
pub trait Words: Copy + PartialEq + 'static {
    const ALL: &'static [(&'static str, Self)];

    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(_, value)| *value == self).map_or("?", |(word, _)| word)
    }
}

/// One word of an enum's.
pub struct OneOf<T>(pub std::marker::PhantomData<T>);

impl<T: Words> Shape for OneOf<T> {
    type Value = T;

    fn expected(&self) -> String {
        let words: Vec<String> = T::ALL.iter().map(|(word, _)| format!("`{word}`")).collect();
        words.join(" or ")
    }

    fn read(&self, raw: &Raw) -> Option<T> {
        let text = raw.text()?;
        T::ALL.iter().find(|(word, _)| *word == text).map(|(_, value)| *value)
    }

    fn show(&self, value: &T) -> String {
        value.word().into()
    }
}

/// The IP address and port that a listener binds. Names are not accepted: nothing is resolved before the node starts.
pub struct Addr;

impl Shape for Addr {
    type Value = SocketAddr;

    fn expected(&self) -> String {
        "an IP address and port such as 127.0.0.1:9092".into()
    }

    fn read(&self, raw: &Raw) -> Option<SocketAddr> {
        raw.text()?.parse().ok().filter(|addr: &SocketAddr| addr.port() != 0)
    }

    fn show(&self, value: &SocketAddr) -> String {
        quote(&value.to_string())
    }
}

/// A host name or IP address and a port, as clients are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    pub host: String,
    pub port: u16,
}

impl Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl HostPort {
    /// Reads `host:port`, `1.2.3.4:port` or `[v6]:port`; `None` without a port or with characters no host name has.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let port: u16 = port.parse().ok().filter(|port| *port != 0)?;
        let host = match host.strip_prefix('[') {
            Some(v6) => v6.strip_suffix(']').filter(|v6| v6.parse::<std::net::Ipv6Addr>().is_ok())?,
            None => {
                let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
                (!host.is_empty() && host.len() <= 253 && host.chars().all(plain)).then_some(host)?
            }
        };
        Some(Self { host: host.into(), port })
    }
}

pub struct Advertised;

impl Shape for Advertised {
    type Value = HostPort;

    fn expected(&self) -> String {
        "a host and port such as broker1.example:9092".into()
    }

    fn read(&self, raw: &Raw) -> Option<HostPort> {
        HostPort::parse(raw.text()?)
    }

    fn show(&self, value: &HostPort) -> String {
        quote(&value.to_string())
    }
}

/// Hosts with ports, each once; as a list, or as text with commas. May be empty.
pub struct HostPorts {
    pub what: &'static str,
    pub count_max: usize,
}

impl Shape for HostPorts {
    type Value = Vec<HostPort>;

    fn expected(&self) -> String {
        format!(
            "a list of up to {} different {} such as [n1.example:9093, 10.0.0.2:9093]",
            self.count_max, self.what
        )
    }

    fn read(&self, raw: &Raw) -> Option<Vec<HostPort>> {
        let items = raw.items()?;
        if items.len() > self.count_max {
            return None;
        }
        let mut hosts: Vec<HostPort> = Vec::with_capacity(items.len());
        for item in items {
            let host = HostPort::parse(&item.to_ascii_lowercase())?;
            if hosts.contains(&host) {
                return None;
            }
            hosts.push(host);
        }
        Some(hosts)
    }

    fn show(&self, value: &Vec<HostPort>) -> String {
        // Quoted, as a bracket of an IPv6 address would open a list.
        let hosts: Vec<String> = value.iter().map(|host| quote(&host.to_string())).collect();
        format!("[{}]", hosts.join(", "))
    }
}

/// A path of the file system. Relative ones are relative to the folder the process starts in.
pub struct FilePath;

impl Shape for FilePath {
    type Value = PathBuf;

    fn expected(&self) -> String {
        "a path".into()
    }

    fn read(&self, raw: &Raw) -> Option<PathBuf> {
        raw.text().filter(|text| !text.is_empty() && !text.contains('\0')).map(PathBuf::from)
    }

    fn show(&self, value: &PathBuf) -> String {
        quote(&value.to_string_lossy())
    }
}

/// A text of bounded length without control characters.
pub struct Text {
    pub what: &'static str,
    pub len_max: usize,
}

impl Shape for Text {
    type Value = String;

    fn expected(&self) -> String {
        format!("{} of 1 to {} bytes", self.what, self.len_max)
    }

    fn read(&self, raw: &Raw) -> Option<String> {
        let text = raw.text()?;
        let fits = !text.is_empty() && text.len() <= self.len_max && !text.chars().any(char::is_control);
        fits.then(|| text.to_owned())
    }

    fn show(&self, value: &String) -> String {
        quote(value)
    }
}

/// A shape, or one word that stands for `None`. An empty value means the word.
pub struct Or<S>(pub &'static str, pub S);

impl<S: Shape> Shape for Or<S> {
    type Value = Option<S::Value>;

    fn expected(&self) -> String {
        format!("`{}` or {}", self.0, self.1.expected())
    }

    fn read(&self, raw: &Raw) -> Option<Option<S::Value>> {
        if *raw == Raw::Empty || raw.text() == Some(self.0) {
            return Some(None);
        }
        self.1.read(raw).map(Some)
    }

    fn show(&self, value: &Option<S::Value>) -> String {
        value.as_ref().map_or_else(|| self.0.into(), |value| self.1.show(value))
    }
}

/// CPU cores in the order given: `[1, 2]`, or as text `1,2` or `1-3,6`. At least one, each at most [`CoreId::MAX`].
pub struct CoreList;

impl Shape for CoreList {
    type Value = Vec<CoreId>;

    fn expected(&self) -> String {
        "a list of core numbers such as [1, 2]".into()
    }

    fn read(&self, raw: &Raw) -> Option<Vec<CoreId>> {
        let cores = match raw {
            Raw::List(items) => super::cores::parse_cores(&items.join(","))?,
            Raw::Text(text) => {
                let text = text.trim();
                let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
                super::cores::parse_cores(inner)?
            }
            Raw::Empty | Raw::Nested(_) => return None,
        };
        (!cores.is_empty()).then_some(cores)
    }

    fn show(&self, value: &Vec<CoreId>) -> String {
        let cores: Vec<String> = value.iter().map(ToString::to_string).collect();
        format!("[{}]", cores.join(", "))
    }
}

/// One CPU core.
pub struct OneCore;

impl Shape for OneCore {
    type Value = CoreId;

    fn expected(&self) -> String {
        "a core number".into()
    }

    fn read(&self, raw: &Raw) -> Option<CoreId> {
        raw.text()?.parse().ok().filter(|core| *core <= CoreId::MAX.0).map(CoreId)
    }

    fn show(&self, value: &CoreId) -> String {
        value.to_string()
    }
}

/// `text` as a YAML scalar: bare when no reader could take it for anything else.
pub fn quote(text: &str) -> String {
    let bare =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '/' | '_' | '-' | '+' | '=' | ':' | ',');
    let starts_plainly =
        text.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '/' | '_'));
    if starts_plainly && text.chars().all(bare) && !text.ends_with(':') && text != "null" {
        return text.into();
    }
    if !text.chars().any(char::is_control) {
        return format!("'{}'", text.replace('\'', "''"));
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Raw {
        Raw::Text(text.into())
    }

    #[test]
    fn sizes_take_units_and_keep_their_bounds() {
        let size = Size { min: 4096, max: 1 << 40, step: 4096 };
        assert_eq!(size.read(&text("64MiB")), Some(64 << 20));
        assert_eq!(size.read(&text("1.5 GiB")), Some(3 << 29));
        assert_eq!(size.read(&text("8192")), Some(8192));
        assert_eq!(size.read(&text("1_048_576")), Some(1 << 20));
        for bad in
            ["4095", "5000", "64mib", "MiB", "-1", "1e6", "1..5MiB", "5.", "99999999999999GiB", "", "0.3KiB"]
        {
            assert_eq!(size.read(&text(bad)), None, "{bad:?}");
        }
        assert_eq!(size.show(&(64 << 20)), "64MiB");
        assert_eq!(size.show(&5000), "5000");
    }

    #[test]
    fn times_count_in_the_unit_of_their_key() {
        let time = Time { unit: TimeUnit::Ms, min: Duration::from_millis(1), max: Duration::from_secs(3600) };
        assert_eq!(time.read(&text("250")), Some(Duration::from_millis(250)));
        assert_eq!(time.read(&text("1.5s")), Some(Duration::from_millis(1500)));
        assert_eq!(time.read(&text("10min")), Some(Duration::from_secs(600)));
        assert_eq!(time.read(&text("0")), None);
        assert_eq!(time.read(&text("100us")), None, "a fraction of a millisecond cannot be kept");
        assert_eq!(time.read(&text("2h")), None);
        assert_eq!(time.show(&Duration::from_secs(2)), "2000");
    }

    #[test]
    fn core_lists_take_lists_ranges_and_brackets() {
        let want = vec![CoreId(1), CoreId(2), CoreId(3)];
        for raw in [
            Raw::List(vec!["1".into(), "2".into(), "3".into()]),
            text("1,2,3"),
            text("1-3"),
            text("[1, 2, 3]"),
        ] {
            assert_eq!(CoreList.read(&raw), Some(want.clone()), "{raw:?}");
        }
        for bad in ["", "a", "3-1", "1-", "-1", "1,,2", "0-4294967295", "99999", "[1"] {
            assert_eq!(CoreList.read(&text(bad)), None, "{bad:?}");
        }
        assert_eq!(CoreList.read(&Raw::List(vec![])), None);
    }

    #[test]
    fn hosts_are_names_or_addresses_with_a_port() {
        for (input, host) in [("a.b-c:1", "a.b-c"), ("10.0.0.1:9092", "10.0.0.1"), ("[::1]:9092", "::1")] {
            let parsed = HostPort::parse(input).unwrap();
            assert_eq!((parsed.host.as_str(), parsed.to_string().as_str()), (host, input));
        }
        for bad in ["a", "a:", ":1", "a:0", "a:70000", "a b:1", "::1:9092", "[x]:1", "http://a:1"] {
            assert_eq!(HostPort::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn quoted_text_comes_back_from_yaml() {
        for original in [
            "plain",
            "./a/b",
            "a: b",
            "it's",
            "# no",
            "null",
            "tab\there",
            "",
            "-",
            "- x",
            "[a",
            "127.0.0.1:1",
            "x:",
        ] {
            let node = crate::config::yaml::parse(&format!("k: {}\n", quote(original))).unwrap();
            let crate::config::yaml::Value::Section(entries) = node.value else { panic!("{original:?}") };
            let value = &entries[0].value.value;
            assert_eq!(*value, crate::config::yaml::Value::Text(original.into()), "{original:?}");
        }
    }

    #[test]
    fn messages_are_cut_to_one_line() {
        assert_eq!(shorten(&"x".repeat(100)).chars().count(), 61);
        assert_eq!(shorten("a\nb"), "a b");
    }
}
