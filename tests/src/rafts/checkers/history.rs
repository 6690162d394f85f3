//! What is committed is committed for ever, everywhere, and once: all nodes apply the same entries, come to the same
//! images, and what a proposer is told holds.

use std::collections::{BTreeMap, BTreeSet};

use highwater::control::metadata::command::{Command, Entry};
use highwater::control::metadata::image::Image;
use highwater_shards::ids::{NodeId, Revision};

use crate::checkers::{Verdict, broken};

/// The number of a proposal, which its entry holds.
pub type Number = u32;

#[derive(Debug, Default)]
pub struct History {
    /// As the first node that applied them saw them.
    entries: BTreeMap<Revision, Entry>,
    images: BTreeMap<Revision, Image>,
    numbers: BTreeMap<Number, Revision>,
    failed: BTreeSet<Number>,
}

/// The entry of a proposal.
pub fn entry_of(node: NodeId, number: Number) -> Entry {
    Entry { commands: vec![Command::ReserveProducerIds { node, count: number }] }
}

fn number_of(entry: &Entry) -> Option<Number> {
    match &entry.commands[..] {
        [Command::ReserveProducerIds { count, .. }] => Some(*count),
        _ => None,
    }
}

impl History {
    /// A node has applied an entry, and has this image then.
    pub fn applied(&mut self, node: NodeId, revision: Revision, entry: &Entry, image: &Image) -> Verdict {
        match self.entries.get(&revision) {
            Some(first) if first == entry => {}
            Some(first) => {
                let what = format!("at {revision} node {node} applies {entry:?} where {first:?} was applied");
                return Err(broken("committed", what));
            }
            None => {
                self.entries.insert(revision, entry.clone());
                if let Some(number) = number_of(entry) {
                    self.on_number(number, revision)?;
                }
            }
        }
        self.image(node, image)
    }

    fn on_number(&mut self, number: Number, revision: Revision) -> Verdict {
        if let Some(first) = self.numbers.insert(number, revision) {
            let what = format!("proposal {number} is applied at {first} and at {revision}");
            return Err(broken("proposals", what));
        }
        match self.failed.contains(&number) {
            true => {
                Err(broken("proposals", format!("proposal {number} is applied and was told to have failed")))
            }
            false => Ok(()),
        }
    }

    /// A node has this image.
    pub fn image(&mut self, node: NodeId, image: &Image) -> Verdict {
        let first = self.images.entry(image.revision).or_insert_with(|| image.clone());
        match first == image {
            true => Ok(()),
            false => {
                let what = format!("node {node} has another image at {} than others", image.revision);
                Err(broken("images", what))
            }
        }
    }

    /// A proposer was told that its proposal is in the log.
    pub fn done(&self, number: Number) -> Verdict {
        match self.numbers.contains_key(&number) {
            true => Ok(()),
            false => Err(broken("proposals", format!("proposal {number} is told as applied and is not"))),
        }
    }

    /// A proposer was told that its proposal is in no log.
    pub fn failed(&mut self, number: Number) -> Verdict {
        self.failed.insert(number);
        match self.numbers.contains_key(&number) {
            true => Err(broken("proposals", format!("proposal {number} has failed and is applied"))),
            false => Ok(()),
        }
    }

    /// The last revision that any node came to.
    pub fn newest(&self) -> Revision {
        let last = |key: Option<&Revision>| key.copied().unwrap_or(Revision(0));
        last(self.entries.keys().next_back()).max(last(self.images.keys().next_back()))
    }

    pub fn count(&self) -> u64 {
        self.entries.len() as u64
    }
}
