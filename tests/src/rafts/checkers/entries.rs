//! Log matching: two entries of one term and index, in whatever logs, are the same entry and follow the same one.

use std::collections::BTreeMap;

use highwater::raft::types::{LogEntry, LogId, Payload};
use xxhash_rust::xxh3::xxh3_64;

use crate::checkers::{Verdict, broken};

#[derive(Debug, Default)]
pub struct Entries(BTreeMap<(u64, u64), Known>);

#[derive(Debug)]
struct Known {
    content: u64,
    /// The term of the entry before it, once that was seen.
    before: Option<u64>,
}

impl Entries {
    pub fn on_entry(&mut self, before: Option<LogId>, entry: &LogEntry) -> Verdict {
        let id = entry.log_id;
        let (term, index) = (id.leader_id.term, id.index);
        let (content, before) = (content(entry), before.map(|before| before.leader_id.term));
        let known = self.0.entry((term, index)).or_insert(Known { content, before });
        if known.content != content {
            let what = format!("entry {index} of term {term} is not the same everywhere");
            return Err(broken("log matching", what));
        }
        match (known.before, before) {
            (Some(one), Some(other)) if one != other => {
                let what =
                    format!("entry {index} of term {term} follows one of term {one} and one of term {other}");
                Err(broken("log matching", what))
            }
            (None, Some(_)) => {
                known.before = before;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub fn count(&self) -> u64 {
        self.0.len() as u64
    }
}

/// A hash of what an entry says.
pub(super) fn content(entry: &LogEntry) -> u64 {
    match payload(entry) {
        Some(Payload::Entry { tag, body }) => xxh3_64(format!("{tag:?} {body:?}").as_bytes()),
        Some(Payload::Probe(bytes)) => xxh3_64(bytes) ^ 1,
        None => xxh3_64(entry.payload.to_string().as_bytes()),
    }
}

fn payload(entry: &LogEntry) -> Option<&Payload> {
    match &entry.payload {
        highwater::raft::types::EntryPayload::Normal(payload) => Some(payload),
        _ => None,
    }
}
