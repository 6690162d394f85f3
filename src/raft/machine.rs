//! What applying the log makes, besides the image: how far it went, who is in the group, and whose proposals were
//! applied.
//!
//! Control core, pure. The same on every node at the same place in the log.

use std::collections::BTreeMap;

use highwater_shards::ids::{NodeId, Revision};
use serde::{Deserialize, Serialize};

use super::types::{LogEntry, LogId, Payload, SnapshotMeta, StoredMembership, Tag};
use crate::control::metadata::command::Entry;
use crate::control::metadata::envelope::EnvelopeError;

/// The last proposal of a node that was applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Session {
    pub incarnation: u64,
    pub sequence: u64,
}

/// A part of each snapshot: a file format.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Machine {
    pub applied: Option<LogId>,
    pub membership: StoredMembership,
    /// How many changes of the metadata were applied: the image's revision. Blank entries, changes of the membership
    /// and repeated proposals are none, so it is not the index.
    pub revision: Revision,
    pub sessions: BTreeMap<NodeId, Session>,
}

/// What an entry of the log came to.
#[derive(Debug)]
pub(super) enum Applied {
    Nothing,
    /// It was applied before.
    Duplicate,
    Change {
        revision: Revision,
        tag: Option<Tag>,
        entry: Entry,
    },
}

impl Machine {
    pub fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() }
    }

    /// The next entry of the log.
    ///
    /// # Errors
    /// When it cannot be read: the node must not go on, it would come to another image than others.
    pub fn apply(&mut self, entry: &LogEntry) -> Result<Applied, EnvelopeError> {
        let applied = match &entry.payload {
            openraft::EntryPayload::Blank | openraft::EntryPayload::Normal(Payload::Probe(_)) => {
                Applied::Nothing
            }
            openraft::EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                Applied::Nothing
            }
            openraft::EntryPayload::Normal(Payload::Entry { tag: Some(tag), .. })
                if self.has_applied(*tag) =>
            {
                Applied::Duplicate
            }
            openraft::EntryPayload::Normal(Payload::Entry { tag, body }) => {
                let entry = Entry::decode(body)?;
                if let Some(tag) = tag {
                    let session = Session { incarnation: tag.incarnation, sequence: tag.sequence };
                    self.sessions.insert(tag.node, session);
                }
                self.revision.0 += 1;
                Applied::Change { revision: self.revision, tag: *tag, entry }
            }
        };
        self.applied = Some(entry.log_id);
        Ok(applied)
    }

    /// Whether this proposal, a later one or one of a later life was applied. A proposer sends the next one only
    /// when it knows what became of the last one, so what is older than the newest is a repetition.
    pub fn has_applied(&self, tag: Tag) -> bool {
        self.sessions
            .get(&tag.node)
            .is_some_and(|last| (last.incarnation, last.sequence) >= (tag.incarnation, tag.sequence))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn entry(index: u64, incarnation: u64, sequence: u64) -> LogEntry {
        let tag = Some(Tag { node: NodeId(1), incarnation, sequence });
        let payload = Payload::Entry { tag, body: Bytes::from(Entry::default().encode()) };
        LogEntry { log_id: LogId::new_term_index(1, index), payload: openraft::EntryPayload::Normal(payload) }
    }

    #[test]
    fn a_repeated_proposal_and_one_of_an_earlier_life_have_no_effect() {
        let mut machine = Machine::default();
        let tags = [(1, 1), (1, 1), (1, 2), (1, 1), (2, 1), (1, 3), (2, 2)];
        let effects: Vec<bool> = (0..)
            .zip(tags)
            .map(|(index, (life, sequence))| {
                matches!(machine.apply(&entry(index, life, sequence)).unwrap(), Applied::Change { .. })
            })
            .collect();
        assert_eq!(effects, [true, false, true, false, true, false, true]);
        assert_eq!(machine.revision, Revision(4));
        assert_eq!(machine.applied, Some(LogId::new_term_index(1, 6)));
    }

    #[test]
    fn what_cannot_be_read_is_not_skipped() {
        let mut machine = Machine::default();
        let payload = Payload::Entry { tag: None, body: Bytes::from_static(b"something newer") };
        let entry = LogEntry {
            log_id: LogId::new_term_index(1, 0),
            payload: openraft::EntryPayload::Normal(payload),
        };
        assert!(machine.apply(&entry).is_err());
        assert_eq!(machine, Machine::default());
    }
}
