//! A YAML file as a small tree that remembers the line of every key and value.
//!
//! Runs once, before any core starts. The parser underneath only emits events; this file decides how many of them
//! a configuration may have, so a hostile file costs at most [`FILE_BYTES_MAX`] of reading. It never resolves anchors
//! (the source of exponential documents), never guesses types (a scalar stays text until a key's shape reads it), and
//! never opens a file.

use saphyr_parser::{Event, Parser, ScalarStyle};

/// The longest text that is looked at.
pub const FILE_BYTES_MAX: usize = 256 * 1024;
/// Sections and lists inside each other; the deepest real key needs four.
pub const DEPTH_MAX: usize = 8;
/// Keys and values together.
pub const NODES_MAX: usize = 4096;

/// One value and the line it starts on, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub line: usize,
    pub value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Nothing after the colon, `~` or `null`.
    Empty,
    /// Text as written, without quotes.
    Text(String),
    List(Vec<Node>),
    /// Entries in the order of the file; keys are unique.
    Section(Vec<Entry>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub line: usize,
    pub value: Node,
}

/// Why a text is not a configuration tree. `line` counts from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct YamlError {
    pub line: usize,
    pub what: String,
}

fn error(line: usize, what: impl Into<String>) -> YamlError {
    YamlError { line, what: what.into() }
}

/// Reads one document. An empty text is an empty section.
pub fn parse(text: &str) -> Result<Node, YamlError> {
    if text.len() > FILE_BYTES_MAX {
        return Err(error(
            1,
            format!(
                "the file has {} bytes; a configuration has at most {} KiB",
                text.len(),
                FILE_BYTES_MAX / 1024
            ),
        ));
    }
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| syntax_error(text, e.marker().line(), e.info()))?;
        builder.on_event(event, span.start.line().max(1))?;
    }
    Ok(builder.root.unwrap_or(Node { line: 1, value: Value::Section(Vec::new()) }))
}

/// The parser's own words, except for the one mistake that they place on an earlier line.
fn syntax_error(text: &str, line: usize, info: &str) -> YamlError {
    match text.lines().position(|line| line.starts_with('\t')) {
        Some(tabbed) if info.contains("tab") => {
            error(tabbed + 1, "YAML indents with spaces; this line starts with a tab")
        }
        _ => error(line.max(1), format!("not valid YAML: {info}")),
    }
}

/// A section or list whose end has not been seen.
enum Open {
    List { line: usize, items: Vec<Node> },
    Section { line: usize, entries: Vec<Entry>, key: Option<(String, usize)> },
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<Node>,
    nodes: usize,
}

impl Builder {
    fn on_event(&mut self, event: Event<'_>, line: usize) -> Result<(), YamlError> {
        match event {
            Event::Alias(_) => Err(error(line, "aliases (`*name`) are not accepted; write the value out")),
            Event::Scalar(_, _, anchor, _)
            | Event::SequenceStart(anchor, _)
            | Event::MappingStart(anchor, _)
                if anchor != 0 =>
            {
                Err(error(line, "anchors (`&name`) are not accepted; write the value out"))
            }
            Event::Scalar(_, _, _, Some(tag))
            | Event::SequenceStart(_, Some(tag))
            | Event::MappingStart(_, Some(tag)) => {
                Err(error(line, format!("the tag `{tag}` is not accepted; write the plain value")))
            }
            Event::Scalar(text, style, _, _) => self.on_scalar(text.into_owned(), style, line),
            Event::SequenceStart(..) => self.on_start(Open::List { line, items: Vec::new() }, line),
            Event::MappingStart(..) => {
                self.on_start(Open::Section { line, entries: Vec::new(), key: None }, line)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let closed = match self.open.pop().expect("the parser closes only what it opened") {
                    Open::List { line, items } => Node { line, value: Value::List(items) },
                    Open::Section { line, entries, .. } => Node { line, value: Value::Section(entries) },
                };
                self.on_node(closed)
            }
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(error(line, "a second YAML document (`---`); a configuration is one document"))
            }
            _ => Ok(()),
        }
    }

    fn count(&mut self, line: usize) -> Result<(), YamlError> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(error(line, format!("more than {NODES_MAX} keys and values")));
        }
        Ok(())
    }

    fn on_start(&mut self, open: Open, line: usize) -> Result<(), YamlError> {
        self.count(line)?;
        if self.open.len() == DEPTH_MAX {
            return Err(error(line, format!("sections and lists nest deeper than {DEPTH_MAX}")));
        }
        if let Some(Open::Section { key: None, .. }) = self.open.last() {
            return Err(error(line, "a key must be a plain word"));
        }
        self.open.push(open);
        Ok(())
    }

    fn on_scalar(&mut self, text: String, style: ScalarStyle, line: usize) -> Result<(), YamlError> {
        self.count(line)?;
        if let Some(Open::Section { entries, key: key @ None, .. }) = self.open.last_mut() {
            if let Some(first) = entries.iter().find(|e| e.key == text) {
                let first = first.line;
                return Err(error(
                    line,
                    format!("the key `{text}` stands here again; it was set on line {first}"),
                ));
            }
            *key = Some((text, line));
            return Ok(());
        }
        let empty = style == ScalarStyle::Plain && matches!(text.as_str(), "" | "~" | "null");
        let value = if empty { Value::Empty } else { Value::Text(text) };
        self.on_node(Node { line, value })
    }

    fn on_node(&mut self, node: Node) -> Result<(), YamlError> {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List { items, .. }) => items.push(node),
            Some(Open::Section { entries, key, .. }) => {
                let (key, line) =
                    key.take().expect("a value follows its key: on_start and on_scalar see to it");
                entries.push(Entry { key, line, value: node });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> (usize, String) {
        let e = parse(text).unwrap_err();
        (e.line, e.what)
    }

    #[test]
    fn every_key_and_value_knows_its_line() {
        let root = parse("# a comment\na: 1\n\nb:\n  c: [x, 'y z']\n  d:\n").unwrap();
        let Value::Section(entries) = root.value else { panic!("not a section") };
        assert_eq!((entries[0].key.as_str(), entries[0].line), ("a", 2));
        assert_eq!(entries[0].value, Node { line: 2, value: Value::Text("1".into()) });
        let Value::Section(b) = &entries[1].value.value else { panic!("not a section") };
        assert_eq!((b[0].key.as_str(), b[0].line), ("c", 5));
        let Value::List(items) = &b[0].value.value else { panic!("not a list") };
        assert_eq!(items[1].value, Value::Text("y z".into()));
        assert_eq!(b[1].value.value, Value::Empty);
    }

    #[test]
    fn an_empty_file_is_an_empty_section() {
        for text in ["", "\n\n", "# only a comment\n"] {
            assert_eq!(parse(text).unwrap().value, Value::Section(Vec::new()), "{text:?}");
        }
    }

    #[test]
    fn a_repeated_key_names_both_lines() {
        assert_eq!(
            refusal("a: 1\nb: 2\na: 3\n"),
            (3, "the key `a` stands here again; it was set on line 1".into())
        );
    }

    #[test]
    fn anchors_aliases_tags_and_second_documents_are_refused() {
        assert!(refusal("a: &x 1\n").1.contains("anchors"));
        assert!(refusal("a: !!str 1\n").1.contains("tag"));
        assert!(refusal("a: 1\n---\nb: 2\n").1.contains("second YAML document"));
        assert!(refusal("? [a]\n: 1\n").1.contains("plain word"));
    }

    #[test]
    fn a_billion_laughs_is_refused_at_its_first_anchor() {
        let mut text = String::from("a0: &a0 [ha]\n");
        for i in 1..30 {
            text.push_str(&format!("a{i}: &a{i} [*a{0}, *a{0}, *a{0}]\n", i - 1));
        }
        assert_eq!(refusal(&text).0, 1);
    }

    #[test]
    fn nesting_size_and_count_are_bounded() {
        for opening in ["[", "{a: ", "- "] {
            let deep = format!("k: {}", opening.repeat(FILE_BYTES_MAX / opening.len() - 3));
            let e = parse(&deep).unwrap_err();
            assert!(e.what.contains("nest deeper") || e.what.contains("not valid YAML"), "{opening}: {e}");
        }
        assert!(refusal(&"a".repeat(FILE_BYTES_MAX + 1)).1.contains("256 KiB"));
        let many = "- 1\n".repeat(NODES_MAX + 1);
        assert!(refusal(&many).1.contains("4096"));
    }

    #[test]
    fn broken_yaml_names_the_line() {
        let (line, what) = refusal("a: 1\nb: [1, 2\nc: 3\n");
        assert!(line >= 2 && what.starts_with("not valid YAML"), "line {line}: {what}");
        assert_eq!(
            refusal("a:\n  b: 1\n\tc: 2\n"),
            (3, "YAML indents with spaces; this line starts with a tab".into())
        );
    }

    #[test]
    fn garbage_bytes_never_panic() {
        // A fixed linear congruence: every run sees the same texts.
        let alphabet: Vec<char> = "ab:-[]{}&*!|>'\"#%@?, \n\t~\u{feff}\u{0}é".chars().collect();
        let mut state = 1u64;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..24 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                text.push(alphabet[(state >> 33) as usize % alphabet.len()]);
            }
            let _ = parse(&text);
        }
    }
}
