//! One leader in each term.

use std::collections::BTreeMap;

use highwater::raft::types::Vote;
use highwater_shards::ids::NodeId;

use crate::checkers::{Verdict, broken};

#[derive(Debug, Default)]
pub struct Leaders(BTreeMap<u64, u64>);

impl Leaders {
    /// Somebody sends what only the leader of a term sends.
    pub fn acts(&mut self, vote: &Vote) -> Verdict {
        self.leads(vote.leader_id.term, vote.leader_id.voted_for)
    }

    /// A node says who leads.
    pub fn told(&mut self, term: u64, leader: NodeId) -> Verdict {
        self.leads(term, u64::from(leader.0))
    }

    fn leads(&mut self, term: u64, node: u64) -> Verdict {
        let first = *self.0.entry(term).or_insert(node);
        match first == node {
            true => Ok(()),
            false => Err(broken("leaders", format!("nodes {first} and {node} both lead in term {term}"))),
        }
    }

    /// How many terms had a leader.
    pub fn terms(&self) -> u64 {
        self.0.len() as u64
    }
}
