//! I1: what was acknowledged is readable, exactly once, whatever crashed.
//!
//! For each partition the checker keeps where batches were seen to stand. A place is *firm* once the node has
//! promised it for ever: an `Acks::All` of an fsync topic, anything that was read from one, anything that a clean
//! stop flushed, and of a replicated topic what was told longer ago than its flush interval when a crash came.
//! Other places turn *suspect* at a crash: the log that returns is a prefix of what it was, so they are either
//! confirmed, with all before them, or give way to something new, with all behind them.

use std::collections::BTreeMap;
use std::time::Duration;

use highwater_shards::ids::PartitionId;
use highwater_shards::mail::Durability;
use highwater_shards::time::Instant;

use super::{Verdict, Violation, broken};
use crate::records::Uid;
use crate::shadow::{Boot, Sent, Shadow};

pub const NAME: &str = "I1 acked";

#[derive(Debug, Default)]
pub struct Acked {
    logs: BTreeMap<PartitionId, Log>,
}

#[derive(Debug)]
struct Log {
    durability: Durability,
    /// By base offset; they never overlap.
    places: BTreeMap<u64, Place>,
    /// What stands before this was promised for ever; places there are firm unless suspect.
    firm_end: u64,
    /// There may be suspect places.
    suspects: bool,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    uid: Uid,
    records: u64,
    firm: bool,
    suspect: bool,
    since: Instant,
}

/// The node said, by an answer or by a read, that a batch stands at an offset.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    pub partition: PartitionId,
    pub base: u64,
    pub uid: Uid,
    /// The life of the node that said so.
    pub boot: Boot,
    pub now: Instant,
    /// It thereby promised it for ever.
    pub durable: bool,
}

impl Acked {
    pub fn add(&mut self, partition: PartitionId, durability: Durability) {
        self.logs.insert(partition, Log { durability, places: BTreeMap::new(), firm_end: 0, suspects: false });
    }

    pub fn is_fsync(&self, partition: PartitionId) -> bool {
        self.logs[&partition].durability == Durability::Fsync
    }

    pub fn learn(&mut self, shadow: &mut Shadow, told: &Told, present: Boot) -> Verdict {
        let log = self.logs.get_mut(&told.partition).expect("partitions are added when they are made");
        // What an earlier life said and may have lost since: it binds only where nothing newer speaks against it.
        let stale = told.boot < present && !told.durable;
        let sent = shadow.of(told.uid);
        let records = u64::from(sent.records);
        match sent.base {
            Some(base) if base == told.base => {
                let place = log.places.get_mut(&base).expect("a base in the shadow has its place");
                place.suspect &= told.boot < present;
                place.firm |= told.durable || (!place.suspect && base < log.firm_end);
                log.follow(told, sent.last_boot, present);
                return Ok(());
            }
            Some(base) => {
                let place = log.places[&base];
                // A producer sent it again since the crash that took it away.
                let may_have_moved = place.suspect && !place.firm && sent.last_boot == present;
                if stale {
                    return Ok(());
                }
                if !may_have_moved {
                    let what = format!(
                        "{}: {:?} stands at {} and at {base}: it is there twice, or was moved",
                        told.partition, told.uid, told.base
                    );
                    return Err(broken(NAME, what));
                }
                log.cut(shadow, told, base)?;
            }
            None => {}
        }
        let Sent { first_boot, last_boot, .. } = *shadow.of(told.uid);
        if let Some(base) = log.first_overlap(told.base, records) {
            if stale {
                return Ok(());
            }
            log.cut(shadow, told, base)?;
        } else if first_boot == present {
            // It was appended in this life, so whatever older life had written behind it is gone.
            log.cut_suspects(shadow, told)?;
        }
        let suspect = told.boot < present;
        let firm = told.durable || (!suspect && told.base < log.firm_end);
        let place = Place { uid: told.uid, records, firm, suspect, since: told.now };
        log.suspects |= suspect;
        log.places.insert(told.base, place);
        shadow.of_mut(told.uid).base = Some(told.base);
        log.follow(told, last_boot, present);
        Ok(())
    }

    pub fn crash(&mut self, now: Instant, flush_within: Option<Duration>) {
        for log in self.logs.values_mut() {
            let replicated = log.durability == Durability::Replicated;
            if let Some(within) = flush_within.filter(|_| replicated) {
                let aged = log.places.iter().rev().find(|(_, p)| !p.suspect && p.since + within < now);
                if let Some((&base, _)) = aged {
                    log.firm_to(base);
                }
            }
            log.places.values_mut().for_each(|p| p.suspect = true);
            log.suspects = !log.places.is_empty();
        }
    }

    /// The node flushed everything and said so.
    pub fn clean_stop(&mut self) {
        for log in self.logs.values_mut() {
            let confirmed = log.places.iter().rev().find(|(_, p)| !p.suspect).map(|(&base, _)| base);
            if let Some(base) = confirmed {
                log.firm_to(base);
            }
        }
    }

    /// The whole log was read, up to `end`; every batch in it was told to [`Acked::learn`].
    pub fn audit(&self, partition: PartitionId, seen: &[(u64, Uid)], end: u64) -> Verdict {
        let log = &self.logs[&partition];
        let mut seen = seen.iter().peekable();
        for (&base, place) in &log.places {
            while seen.next_if(|&&(b, _)| b < base).is_some() {}
            let there = seen.peek().is_some_and(|&&(b, uid)| b == base && uid == place.uid);
            if !there && (place.firm || !place.suspect) {
                let promise = if place.firm { "promised for ever" } else { "acknowledged in this life" };
                let what = format!(
                    "{partition}: {:?} at {base} was {promise} and is gone; the log ends at {end}",
                    place.uid
                );
                return Err(broken(NAME, what));
            }
        }
        Ok(())
    }
}

impl Log {
    /// What follows for the places before the one that was told.
    fn follow(&mut self, told: &Told, last_sent: Boot, present: Boot) {
        // The log is a prefix of what it was: what was not sent in this life and is there confirms all before it.
        if last_sent < present && told.boot == present && self.suspects {
            for (&base, place) in self.places.range_mut(..told.base) {
                place.suspect = false;
                place.firm |= base < self.firm_end;
            }
            self.suspects = self.places.range(told.base..).any(|(_, p)| p.suspect);
        }
        if told.durable {
            self.firm_to(told.base);
        }
    }

    /// Everything up to there is firm, but for what may have given way unnoticed.
    fn firm_to(&mut self, base: u64) {
        for (_, place) in self.places.range_mut(self.firm_end..=base.max(self.firm_end)) {
            place.firm |= !place.suspect;
        }
        self.firm_end = self.firm_end.max(base + 1);
    }

    fn first_overlap(&self, base: u64, records: u64) -> Option<u64> {
        let before = self.places.range(..base).next_back();
        let overlapping = before.filter(|(b, p)| *b + p.records > base).map(|(&b, _)| b);
        overlapping.or_else(|| self.places.range(base..base + records).next().map(|(&b, _)| b))
    }

    /// The crash cut the log at or before `from`, or else nothing could stand where `told` says.
    fn cut(&mut self, shadow: &mut Shadow, told: &Told, from: u64) -> Verdict {
        let end = told.base + u64::from(shadow.of(told.uid).records);
        let mut gone = Vec::new();
        for (&base, place) in self.places.range(from..) {
            // What this life appended behind it may stay, unless it is in the way.
            if !place.suspect && base >= end {
                continue;
            }
            if place.firm || !place.suspect {
                return Err(conflict(told, base, place));
            }
            gone.push(base);
        }
        for base in gone {
            if let Some(place) = self.places.remove(&base) {
                shadow.of_mut(place.uid).base = None;
            }
        }
        Ok(())
    }

    fn cut_suspects(&mut self, shadow: &mut Shadow, told: &Told) -> Verdict {
        let behind = self.places.range(told.base..).find(|(_, p)| p.suspect).map(|(&b, _)| b);
        behind.map_or(Ok(()), |base| self.cut(shadow, told, base))
    }
}

fn conflict(told: &Told, base: u64, place: &Place) -> Violation {
    let promise = if place.firm { "promised for ever" } else { "told in this life" };
    let what = format!(
        "{}: {:?} at {} speaks against {:?} at {base}, which was {promise}",
        told.partition, told.uid, told.base, place.uid
    );
    broken(NAME, what)
}
