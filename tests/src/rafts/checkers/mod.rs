//! The checkers of the group, one file for each invariant. They see what travels between the nodes, what control loops
//! are told, and what disks hold at each start.

pub mod entries;
pub mod founding;
pub mod history;
pub mod leaders;
pub mod votes;

use highwater::raft::wire::{self, AppendEntriesRequest, VoteRequest};
use highwater::raft::{APPEND, SNAPSHOT_CHUNK, VOTE};

use super::net::{Call, Reply};
use crate::checkers::Verdict;

/// Everything that is checked.
#[derive(Debug, Default)]
pub struct Checkers {
    pub leaders: leaders::Leaders,
    pub votes: votes::Votes,
    pub entries: entries::Entries,
    pub founding: founding::Founding,
    pub history: history::History,
}

impl Checkers {
    /// A call arrives.
    pub fn on_call(&mut self, call: &Call) -> Verdict {
        match call.kind {
            APPEND => {
                let Ok(rpc) = wire::decode::<AppendEntriesRequest<_>>(call.kind, &call.body) else {
                    return Ok(());
                };
                self.leaders.acts(&rpc.vote)?;
                self.on_entries(rpc.prev_log_id, &rpc.entries)
            }
            SNAPSHOT_CHUNK => match wire::decode::<wire::Chunk>(call.kind, &call.body) {
                Ok(chunk) => self.leaders.acts(&chunk.vote),
                Err(_) => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Entries that stand in a log one after the other, and what stands before them if that is known.
    pub fn on_entries(
        &mut self,
        mut before: Option<highwater::raft::types::LogId>,
        entries: &[highwater::raft::types::LogEntry],
    ) -> Verdict {
        for entry in entries {
            self.founding.on_entry(entry)?;
            self.entries.on_entry(before, entry)?;
            before = Some(entry.log_id);
        }
        Ok(())
    }

    /// An answer arrives.
    pub fn on_reply(&mut self, reply: &Reply) -> Verdict {
        let (VOTE, Ok(bytes)) = (reply.call.kind, &reply.answer) else { return Ok(()) };
        let asked = wire::decode::<VoteRequest<_>>(VOTE, &reply.call.body);
        let answer = wire::decode_answer::<VoteRequest<_>>(VOTE, bytes);
        match (asked, answer) {
            (Ok(asked), Ok(answer)) if answer.vote_granted => self.votes.granted(reply.call.to, &asked.vote),
            _ => Ok(()),
        }
    }
}
