//! The table of allowed imports, and the test that holds it.
//!
//! A module imports lower floors and its own folder only; pure modules touch no socket, file, thread or clock; `unsafe`
//! stands only in the driver files named here. The scanner reads the sources as text: it sees `use` trees and paths in
//! any other position alike, and neither comments nor strings.

#![expect(clippy::unwrap_used, reason = "a test: a failed call is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// One package: the folder of its sources, and its modules from the lowest floor up.
struct Package {
    sources: &'static str,
    /// Each module with its floor. `lib.rs` and `main.rs` tie modules together and are on no floor.
    modules: &'static [(&'static str, Floor)],
    /// Imports within one floor that are allowed all the same: the module may import what this path leads to.
    siblings: &'static [(&'static str, &'static [&'static str])],
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Floor {
    /// Pure, at this height. Modules of floor 0 are one vocabulary and may use each other.
    Pure(u8),
    /// Owns sockets, files, threads or clocks, and may import everything below and beside it.
    Driver,
}

use Floor::{Driver, Pure};

const PACKAGES: [Package; 2] = [
    Package {
        sources: "shards/src",
        modules: &[
            ("ids", Pure(0)),
            ("time", Pure(0)),
            ("batch", Pure(0)),
            ("frame", Pure(0)),
            ("stream", Pure(0)),
            ("mail", Pure(0)),
            ("stats", Pure(0)),
            ("partition", Pure(1)),
            ("fetcher", Pure(1)),
            ("log", Pure(1)),
            ("front", Pure(2)),
            ("shard", Pure(2)),
            ("reactor", Driver),
        ],
        // A shard is generic over its front. A partition says what a checkpoint keeps of it: it names that vocabulary,
        // and calls nothing of the log.
        siblings: &[
            ("shard", &["front"]),
            ("partition", &["log", "checkpoint"]),
            ("partition", &["log", "Lsn"]),
        ],
    },
    Package {
        sources: "src",
        modules: &[
            ("control", Pure(0)),
            ("kafka", Pure(1)),
            ("config", Driver),
            ("error", Driver),
            ("log_inspect", Driver),
            ("logging", Driver),
            ("cli", Driver),
            ("topic_commands", Driver),
            ("cluster_commands", Driver),
            ("store", Driver),
            ("raft", Driver),
            ("net", Driver),
            ("http", Driver),
            ("runtime", Driver),
            ("api", Driver),
        ],
        siblings: &[],
    },
];

/// What no pure module names, from another crate or the standard library. Addresses are data, so `std::net::SocketAddr`
/// is none of them.
const IMPURE: [&[&str]; 19] = [
    &["tokio"],
    &["redb"],
    &["openraft"],
    &["io_uring"],
    &["glommio"],
    &["libc"],
    &["rustix"],
    &["rand"],
    &["getrandom"],
    &["std", "fs"],
    &["std", "thread"],
    &["std", "process"],
    &["std", "env"],
    &["std", "os"],
    &["std", "net", "TcpStream"],
    &["std", "net", "TcpListener"],
    &["std", "net", "UdpSocket"],
    &["std", "time", "Instant"],
    &["std", "time", "SystemTime"],
];

/// The only files that may contain `unsafe`.
const UNSAFE_FILES: [&str; 12] = [
    "shards/src/reactor/uring/accept.rs",
    "shards/src/reactor/uring/buffers.rs",
    "shards/src/reactor/uring/driver.rs",
    "shards/src/reactor/uring/files/dir_job.rs",
    "shards/src/reactor/uring/files/file_job.rs",
    "shards/src/reactor/uring/files/mod.rs",
    "shards/src/reactor/uring/files/prepare.rs",
    "shards/src/reactor/uring/conn.rs",
    "shards/src/reactor/uring/post.rs",
    "shards/src/reactor/uring/ring.rs",
    "shards/src/reactor/uring/send.rs",
    "src/runtime/bell.rs",
];

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A path as written, from its first segment; `*` for a glob.
type Segments = Vec<String>;

/// Splits source text into identifiers and punctuation, without comments, strings, characters and lifetimes.
fn tokens(source: &str) -> Vec<String> {
    let text: Vec<char> = source.chars().collect();
    let at = |i: usize| text.get(i).copied().unwrap_or('\0');
    let name = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = Vec::new();
    let mut i = 0;
    while i < text.len() {
        let c = text[i];
        if c == '/' && at(i + 1) == '/' {
            while i < text.len() && text[i] != '\n' {
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            loop {
                if at(i) == '/' && at(i + 1) == '*' {
                    depth += 1;
                    i += 2;
                } else if at(i) == '*' && at(i + 1) == '/' {
                    depth -= 1;
                    i += 2;
                } else {
                    i += 1;
                }
                if depth == 0 || i >= text.len() {
                    break;
                }
            }
        } else if c == '"' {
            i = end_of_string(&text, i);
        } else if c == '\'' {
            // A character, or a lifetime, which has no closing quote after its first letter.
            if at(i + 1) == '\\' {
                i += 3;
                while i < text.len() && text[i] != '\'' {
                    i += 1;
                }
                i += 1;
            } else if at(i + 2) == '\'' {
                i += 3;
            } else {
                i += 1;
                while name(at(i)) {
                    i += 1;
                }
            }
        } else if name(c) {
            let start = i;
            while name(at(i)) {
                i += 1;
            }
            let word: String = text[start..i].iter().collect();
            let raw = matches!(word.as_str(), "r" | "br" | "cr") && matches!(at(i), '"' | '#');
            let hashes = (i..text.len()).take_while(|j| text[*j] == '#').count();
            if raw && at(i + hashes) == '"' {
                i = end_of_raw_string(&text, i + hashes + 1, hashes);
            } else if raw && word == "r" {
                // A raw identifier: `r#type`.
                i += 1;
            } else if !(matches!(word.as_str(), "b" | "c") && matches!(at(i), '"' | '\'')) {
                out.push(word);
            }
        } else if c == ':' && at(i + 1) == ':' {
            out.push("::".into());
            i += 2;
        } else {
            if !c.is_whitespace() {
                out.push(c.into());
            }
            i += 1;
        }
    }
    out
}

fn end_of_string(text: &[char], open: usize) -> usize {
    let mut i = open + 1;
    while i < text.len() && text[i] != '"' {
        i += if text[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

fn end_of_raw_string(text: &[char], mut i: usize, hashes: usize) -> usize {
    while i < text.len() {
        if text[i] == '"' && (1..=hashes).all(|n| text.get(i + n) == Some(&'#')) {
            return i + 1 + hashes;
        }
        i += 1;
    }
    i
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Every path of two segments or more, with the groups of `use` trees spread out, and what `use` names alone. Each
/// comes with the inline modules (`mod tests { … }`) that it stands in.
fn paths(tokens: &[String]) -> Vec<(Segments, Segments)> {
    let mut found = Vec::new();
    // One entry for each open brace: the module that it opened, if it did.
    let mut open: Vec<Option<String>> = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        let starts_use = tokens[i] == "use" && tokens.get(i + 1).is_some_and(|next| next != "<");
        let starts_path = is_name(&tokens[i]) && tokens.get(i + 1).is_some_and(|next| next == "::");
        if starts_use || starts_path {
            let mut here = Vec::new();
            i = tree(tokens, if starts_use { i + 1 } else { i }, &mut Vec::new(), &mut here);
            let inline: Segments = open.iter().flatten().cloned().collect();
            found.extend(here.into_iter().map(|path| (inline.clone(), path)));
            continue;
        }
        match tokens[i].as_str() {
            "{" => open.push((i >= 2 && tokens[i - 2] == "mod").then(|| tokens[i - 1].clone())),
            "}" => drop(open.pop()),
            _ => {}
        }
        i += 1;
    }
    found
}

/// Reads one tree (`a::b`, `a::{b, c::*}`) from `i` on; the index after it.
fn tree(tokens: &[String], mut i: usize, prefix: &mut Segments, found: &mut Vec<Segments>) -> usize {
    let depth = prefix.len();
    let token = |i: usize| tokens.get(i).map_or("", String::as_str);
    if token(i) == "::" {
        i += 1;
    }
    loop {
        match token(i) {
            "{" => {
                i += 1;
                while !matches!(token(i), "}" | "") {
                    i = tree(tokens, i, prefix, found);
                    while token(i) == "as" {
                        i += 2;
                    }
                    if token(i) == "," {
                        i += 1;
                    }
                }
                i += 1;
                break;
            }
            "*" => {
                prefix.push("*".into());
                found.push(prefix.clone());
                i += 1;
                break;
            }
            name if is_name(name) => {
                prefix.push(name.into());
                i += 1;
                let goes_on =
                    token(i) == "::" && (is_name(token(i + 1)) || matches!(token(i + 1), "{" | "*"));
                if !goes_on {
                    found.push(prefix.clone());
                    break;
                }
                i += 1;
            }
            _ => {
                i += 1;
                break;
            }
        }
    }
    prefix.truncate(depth);
    i
}

/// The module path of a source file: `a/b.rs` and `a/b/mod.rs` are `[a, b]`.
fn module_of(file: &Path) -> Segments {
    let mut path: Segments = file
        .with_extension("")
        .components()
        .map(|part| part.as_os_str().to_str().unwrap().to_owned())
        .collect();
    if path.last().is_some_and(|last| matches!(last.as_str(), "mod" | "lib" | "main")) {
        path.pop();
    }
    path
}

/// A path as seen from the root of its package: `crate` and `super` resolved, first segment a module or a crate.
/// `None` for a path within the module itself.
fn resolve(module: &[String], path: &[String]) -> Option<(bool, Segments)> {
    let ups = path.iter().take_while(|segment| *segment == "super").count();
    match path[0].as_str() {
        "crate" => Some((true, path[1..].to_vec())),
        "super" => {
            let base = module.len().saturating_sub(ups);
            Some((true, [&module[..base], &path[ups..]].concat()))
        }
        "self" => None,
        _ => Some((false, path.to_vec())),
    }
}

/// What is wrong with the source text of one file of a package, if anything.
fn violations(package: &Package, file: &Path, source: &str) -> Vec<String> {
    let module = module_of(file);
    let Some(own) = module.first() else { return Vec::new() };
    let floors: BTreeMap<&str, Floor> = package.modules.iter().copied().collect();
    let Some(floor) = floors.get(own.as_str()).copied() else {
        return vec![format!("module `{own}` is on no floor: add it to the table")];
    };
    let mut wrong = Vec::new();
    for (inline, path) in paths(&tokens(source)) {
        let Some((inside, target)) = resolve(&[&module[..], &inline].concat(), &path) else { continue };
        let written = path.join("::");
        if inside {
            let Some(other) = target.first().filter(|other| *other != own) else { continue };
            if other == "*" {
                wrong.push(format!("`{written}`: a glob of the whole package hides what is imported"));
            }
            let Some(other_floor) = floors.get(other.as_str()).copied() else { continue };
            let leads_to =
                |path: &[&str]| path.iter().zip(&target).filter(|(a, b)| a == b).count() == path.len();
            let sibling = package.siblings.iter().any(|(module, path)| module == own && leads_to(path));
            let allowed = other_floor < floor
                || floor == Driver
                || (floor == Pure(0) && other_floor == Pure(0))
                || sibling;
            if !allowed {
                wrong.push(format!(
                    "`{written}`: `{own}` ({floor:?}) must not import `{other}` ({other_floor:?})"
                ));
            }
        } else if floor != Driver {
            // Importing a whole module (`std::net`, `std::net::*`) counts as importing everything in it.
            let whole = matches!(target.last().map(String::as_str), Some("*" | "self"));
            let named = &target[..target.len() - usize::from(whole)];
            // A test takes its seed from there.
            let seed = module.iter().any(|part| part == "tests")
                && named.starts_with(&["std", "env"].map(String::from));
            if !seed && IMPURE.iter().any(|impure| impure.iter().zip(named).all(|(a, b)| a == b)) {
                wrong.push(format!("`{written}`: `{own}` ({floor:?}) is pure"));
            }
        }
    }
    wrong
}

/// Every Rust source below `folder`, relative to the repository, except build output.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return found };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && name != "target" && !name.starts_with('.') && name != "node_modules" {
            found.extend(sources(&path));
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn modules_import_lower_floors_and_their_own_folder_only() {
    let mut wrong = Vec::new();
    for package in &PACKAGES {
        let root = Path::new(ROOT).join(package.sources);
        let files = sources(&root);
        assert!(files.len() > 3, "{} holds no sources", root.display());
        for file in files {
            let source = fs::read_to_string(&file).unwrap();
            let relative = file.strip_prefix(&root).unwrap();
            for what in violations(package, relative, &source) {
                wrong.push(format!("{}/{}: {what}", package.sources, relative.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_stands_only_in_the_named_driver_files() {
    let mut with_unsafe = BTreeSet::new();
    for folder in ["shards", "src", "tests", "benches"] {
        for file in sources(&Path::new(ROOT).join(folder)) {
            if tokens(&fs::read_to_string(&file).unwrap()).iter().any(|token| token == "unsafe") {
                with_unsafe.insert(file.strip_prefix(ROOT).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    let named: BTreeSet<String> = UNSAFE_FILES.iter().map(|file| (*file).to_owned()).collect();
    assert_eq!(with_unsafe, named, "left: files with `unsafe`; right: files that may have it");
}

#[test]
fn the_scanner_sees_every_form_of_a_forbidden_import() {
    let shards = &PACKAGES[0];
    let caught = [
        "use crate::reactor::Reactor;",
        "use crate::{ids::Offset, reactor};",
        "use crate::{ids::{Offset, NodeId}, shard::{self, Shard}};",
        "use super::super::reactor::Reactor;",
        "use super::super::{ids, front::Front};",
        "fn f() { let x = crate::reactor::start(); }",
        "type T = Vec<crate::shard::Shard<()>>;",
        "pub use crate::log as other;",
        "use crate::log::journal::{self, LogPosition};",
        "use crate::log::journal::Journal;",
        "use crate::*;",
        "use std::fs;",
        "use std::{fmt, fs::File};",
        "use std::{net::{SocketAddr, TcpStream}};",
        "use std::net::*;",
        "use std::net;",
        "use std::{net::{self, SocketAddr}};",
        "fn f() { std::thread::spawn(g); }",
        "fn f() -> std::time::Instant { std::time::Instant::now() }",
        "use tokio::sync::mpsc;",
        "use ::redb::Database;",
        "use std as s;",
        "mod tests { use super::*; fn f() { if x { y() } } use super::super::super::reactor::X; }",
        "fn f<'a>(x: &'a u8) -> char { '\\'' } use std::fs;",
        "const S: &str = r#\"a \"quoted\" text\"#; use std::fs;",
    ];
    for source in caught {
        let found = violations(shards, Path::new("partition/isr.rs"), source);
        assert!(!found.is_empty(), "{source}");
    }
    let allowed = [
        "use crate::ids::{Offset, NodeId}; use crate::partition::leader; use super::epochs; use self::inner::X;",
        "use std::{collections::BTreeMap, net::SocketAddr, time::Duration, io};",
        "// use crate::reactor::X;\n/* std::fs /* nested */ tokio::spawn */ fn f() {}",
        "const S: &str = \"crate::reactor \\\" std::fs\"; const R: &str = r#\"crate::shard\"#; const B: &[u8] = b\"tokio::x\";",
        "fn f<'a>(x: &'a str) -> Vec<Option<&'a str>> { x.split(':').map(Some).collect::<Vec<_>>() }",
        "use tokio_like::x; use crate::batch;",
        "use crate::log::{checkpoint::LogState, checkpoint::ProducerState}; fn f() -> crate::log::checkpoint::LogState { todo() }",
        "fn f() { match x { A::B { c } => d::<e>(), _ => {} } } mod tests { use super::*; use super::super::leader; }",
    ];
    for source in allowed {
        let found = violations(shards, Path::new("partition/isr.rs"), source);
        assert!(found.is_empty(), "{source}: {found:?}");
    }
    assert_eq!(violations(shards, Path::new("surprise.rs"), "").len(), 1, "a new module needs its floor");
    assert!(violations(shards, Path::new("log/tests/random.rs"), "use std::env;").is_empty());
    assert_eq!(violations(shards, Path::new("log/random.rs"), "use std::env;").len(), 1);
    assert!(violations(shards, Path::new("shard/mod.rs"), "use crate::front::Front;").is_empty());
    assert_eq!(violations(shards, Path::new("front.rs"), "use crate::shard::Shard;").len(), 1);
    assert!(
        violations(shards, Path::new("reactor/uring.rs"), "use crate::shard::Shard; use std::fs;").is_empty()
    );
    assert!(violations(&PACKAGES[1], Path::new("kafka/mod.rs"), "use crate::control::Image;").is_empty());
    assert_eq!(violations(&PACKAGES[1], Path::new("control/mod.rs"), "use crate::kafka::Session;").len(), 1);
    assert_eq!(violations(&PACKAGES[1], Path::new("kafka/mod.rs"), "use crate::runtime::boot;").len(), 1);
}
