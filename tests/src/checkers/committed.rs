//! I1, I4 and I10 of a cluster: what a producer was told by `acks=all`, and what any consumer was shown by any replica, is
//! committed. It stands at its offset for ever, once, on every later leader and on every replica; and so no two replicas
//! ever show different records at one offset, and nothing that was shown vanishes.

use std::collections::BTreeMap;

use highwater_shards::ids::{NodeId, PartitionId};

use super::{Verdict, broken};
use crate::records::Uid;

pub const NAME: &str = "I1 acked";
pub const AGREEMENT: &str = "I4 agreement";
pub const VANISHED: &str = "I10 visible";

#[derive(Debug, Default)]
pub struct Committed {
    logs: BTreeMap<PartitionId, BTreeMap<u64, Place>>,
    bases: BTreeMap<Uid, u64>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    uid: Uid,
    records: u64,
    /// By the batch's own stamp; known once it was read.
    epoch: Option<i32>,
    acked: bool,
    shown: bool,
}

/// Somebody was told, or shown, that a batch stands at an offset.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    pub partition: PartitionId,
    pub base: u64,
    pub uid: Uid,
    pub records: u64,
    /// `None`: a producer was told so.
    pub shown: Option<i32>,
}

impl Committed {
    pub fn learn(&mut self, told: &Told) -> Verdict {
        let log = self.logs.entry(told.partition).or_default();
        let end = told.base + told.records;
        let before = log.range(..told.base).next_back().filter(|(b, p)| **b + p.records > told.base);
        let there = before.or_else(|| log.range(told.base..end).next()).map(|(&base, &place)| (base, place));
        if let Some((base, place)) = there
            && (base, place.uid) != (told.base, told.uid)
        {
            let name = match (place.acked, place.shown && told.shown.is_some()) {
                (_, true) => AGREEMENT,
                (true, _) => NAME,
                (false, _) => VANISHED,
            };
            let what = format!(
                "{}: {:?} at {} speaks against {:?} at {base}, which {}",
                told.partition,
                told.uid,
                told.base,
                place.uid,
                place.promise()
            );
            return Err(broken(name, what));
        }
        if let Some(&base) = self.bases.get(&told.uid)
            && base != told.base
        {
            let what = format!("{}: {:?} stands at {base} and at {}", told.partition, told.uid, told.base);
            return Err(broken(NAME, what));
        }
        let place = log.entry(told.base).or_insert(Place {
            uid: told.uid,
            records: told.records,
            epoch: None,
            acked: false,
            shown: false,
        });
        self.bases.insert(told.uid, told.base);
        match told.shown {
            None => place.acked = true,
            Some(epoch) => {
                place.shown = true;
                if *place.epoch.get_or_insert(epoch) != epoch {
                    let what = format!(
                        "{}: {:?} at {} is of leader epoch {epoch} here and of {:?} elsewhere",
                        told.partition, told.uid, told.base, place.epoch
                    );
                    return Err(broken(AGREEMENT, what));
                }
            }
        }
        Ok(())
    }

    /// Whether anybody was told that the batch is there.
    pub fn is_known(&self, uid: Uid) -> bool {
        self.bases.contains_key(&uid)
    }

    /// The whole log of one replica was read, up to `end`, and every batch of it was told to [`Committed::learn`].
    pub fn audit(&self, partition: PartitionId, node: NodeId, seen: &[(u64, Uid)], end: u64) -> Verdict {
        let Some(log) = self.logs.get(&partition) else { return Ok(()) };
        let mut seen = seen.iter().peekable();
        for (&base, place) in log.range(..end) {
            while seen.next_if(|&&(b, _)| b < base).is_some() {}
            if seen.peek().is_none_or(|&&(b, uid)| b != base || uid != place.uid) {
                let what = format!(
                    "{partition}: {:?} at {base}, which {}, is not on node {node}, whose log ends at {end}",
                    place.uid,
                    place.promise()
                );
                return Err(broken(if place.acked { NAME } else { VANISHED }, what));
            }
        }
        if let Some((base, place)) = log.range(end..).next() {
            let what = format!(
                "{partition}: {:?} at {base}, which {}, is beyond the end {end} on node {node}",
                place.uid,
                place.promise()
            );
            return Err(broken(if place.acked { NAME } else { VANISHED }, what));
        }
        Ok(())
    }
}

impl Place {
    fn promise(&self) -> &'static str {
        if self.acked { "was acknowledged" } else { "a consumer had seen" }
    }
}
