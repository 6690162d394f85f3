//! A configuration as YAML: the effective one with the origin of each value, and the reference with documentation.
//!
//! Both follow the table of keys, so neither can miss a key; what they print, `load` reads back to the same values.

use std::fmt::Write as _;

use super::Config;
use super::keys::{KEYS, Key, SECTIONS};
use super::layers::{Loaded, env_name};

/// Columns before the comment of [`render_effective`], as far as the values allow.
const COMMENT_COLUMN: usize = 44;

/// Every key with its value, and where the value came from as a comment.
pub fn render_effective(loaded: &Loaded) -> String {
    let mut out = String::new();
    each_key(&mut out, |out, key, index, indent| {
        let line = format!("{indent}{}: {}", key.name(), (key.show)(&loaded.config));
        let _ = writeln!(out, "{line:<COMMENT_COLUMN$}  # {}", loaded.origins[index]);
    });
    out
}

/// The commented reference: every key at its default.
pub fn render_reference() -> String {
    let defaults = Config::default();
    let mut out = format!(
        "# The configuration of a Highwater node: every key, at its default.\n\
         #\n\
         # A file needs only the keys it changes; an unknown key is an error. Later layers win: defaults, the profile,\n\
         # this file, environment variables, flags. Each key has a variable ({}) and a flag\n\
         # (--set cluster.node_id=2). Sizes take units (64MiB), durations too (10min).\n",
        env_name("cluster.node_id")
    );
    let mut section = None;
    for key in KEYS {
        let parent = key.path.rsplit_once('.').map(|(parent, _)| parent);
        let indent = "  ".repeat(key.path.matches('.').count());
        if parent != section {
            section = parent;
            let parent = parent.unwrap_or_default();
            let outer = "  ".repeat(parent.matches('.').count());
            let about = SECTIONS.iter().find(|(name, _)| *name == parent).map_or("", |(_, about)| about);
            let name = parent.rsplit('.').next().unwrap_or(parent);
            let _ = writeln!(out, "\n{outer}# {about}\n{outer}{name}:");
        } else if parent.is_none() {
            out.push('\n');
        }
        for line in key.doc {
            let _ = writeln!(out, "{indent}# {line}");
        }
        let _ = writeln!(out, "{indent}{}: {}", key.name(), (key.show)(&defaults));
    }
    out
}

/// Calls `line` for every key in order, after writing the headings of the sections that begin with it.
fn each_key(out: &mut String, line: impl Fn(&mut String, &Key, usize, &str)) {
    let mut section = "";
    for (index, key) in KEYS.iter().enumerate() {
        let parent = key.path.rsplit_once('.').map_or("", |(parent, _)| parent);
        let depth = key.path.matches('.').count();
        if parent != section {
            section = parent;
            let name = parent.rsplit('.').next().unwrap_or(parent);
            let _ = writeln!(out, "{}{name}:", "  ".repeat(depth - 1));
        }
        line(out, key, index, &"  ".repeat(depth));
    }
}
