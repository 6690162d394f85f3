//! I7: a shard's revisions only grow, within one of its lives: what it confirms, and what its sessions show.

use std::collections::BTreeMap;

use highwater_shards::ids::{ConnId, Revision, ShardId};

use super::{Verdict, broken};

pub const NAME: &str = "I7 revisions";

#[derive(Debug, Default)]
pub struct Revisions {
    applied: BTreeMap<ShardId, Revision>,
    shown: BTreeMap<ConnId, Revision>,
}

impl Revisions {
    pub fn boot(&mut self) {
        self.applied.clear();
        self.shown.clear();
    }

    pub fn on_applied(&mut self, shard: ShardId, revision: Revision) -> Verdict {
        let before = self.applied.insert(shard, revision);
        match before.filter(|&b| b >= revision) {
            Some(b) => Err(broken(NAME, format!("shard {shard} applied {revision} after {b}"))),
            None => Ok(()),
        }
    }

    pub fn on_shown(&mut self, conn: ConnId, revision: Revision) -> Verdict {
        let before = self.shown.insert(conn, revision);
        match before.filter(|&b| b > revision) {
            Some(b) => Err(broken(NAME, format!("connection {conn} was shown {revision} after {b}"))),
            None => Ok(()),
        }
    }
}
