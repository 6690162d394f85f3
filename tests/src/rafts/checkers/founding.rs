//! The cluster is founded once: every log that reaches back so far begins with the same members.

use highwater::raft::types::LogEntry;

use crate::checkers::{Verdict, broken};

#[derive(Debug, Default)]
pub struct Founding(Option<(u64, String)>);

impl Founding {
    pub fn on_entry(&mut self, entry: &LogEntry) -> Verdict {
        if entry.log_id.index > 0 {
            return Ok(());
        }
        let term = entry.log_id.leader_id.term;
        let (first_term, first) = self.0.get_or_insert_with(|| (term, entry.payload.to_string()));
        if *first_term == term && *first == entry.payload.to_string() {
            return Ok(());
        }
        let what =
            format!("one log begins with {first} in term {first_term}, and one with {}", entry.payload);
        Err(broken("founding", what))
    }

    pub fn is_founded(&self) -> bool {
        self.0.is_some()
    }
}
