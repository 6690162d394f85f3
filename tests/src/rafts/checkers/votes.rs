//! A node votes once in a term, whatever happens to it in between.

use std::collections::BTreeMap;

use highwater::raft::types::Vote;
use highwater_shards::ids::NodeId;

use crate::checkers::{Verdict, broken};

#[derive(Debug, Default)]
pub struct Votes(BTreeMap<(NodeId, u64), u64>);

impl Votes {
    pub fn granted(&mut self, voter: NodeId, vote: &Vote) -> Verdict {
        let (term, candidate) = (vote.leader_id.term, vote.leader_id.voted_for);
        let first = *self.0.entry((voter, term)).or_insert(candidate);
        match first == candidate {
            true => Ok(()),
            false => {
                let what =
                    format!("node {voter} votes for node {first} and for node {candidate} in term {term}");
                Err(broken("votes", what))
            }
        }
    }

    pub fn count(&self) -> u64 {
        self.0.len() as u64
    }
}
