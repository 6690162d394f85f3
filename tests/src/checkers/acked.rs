//! I1: what was acknowledged is readable, exactly once, whatever crashed.
//!
//! For each partition the checker keeps where batches were seen to stand, and in which life of the node that was
//! last known. A place is *firm* once the node has promised it for ever: an `Acks::All` of an fsync topic, anything
//! that was read from one, anything that a clean stop flushed, and of a replicated topic what was told longer ago
//! than its flush interval when a crash came. Of the others a crash may take any that stand behind what it leaves:
//! the log that returns is a prefix of what it was.

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
    /// What stands before this was promised for ever.
    firm_end: u64,
    /// Up to where places were found again in which life.
    confirmed: (Boot, u64),
}

#[derive(Clone, Copy, Debug)]
struct Place {
    uid: Uid,
    records: u64,
    firm: bool,
    /// The last life in which it is known to have been there.
    boot: Boot,
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
        let log = Log { durability, places: BTreeMap::new(), firm_end: 0, confirmed: (0, 0) };
        self.logs.insert(partition, log);
    }

    pub fn is_fsync(&self, partition: PartitionId) -> bool {
        self.logs[&partition].durability == Durability::Fsync
    }

    pub fn learn(&mut self, shadow: &mut Shadow, told: &Told, present: Boot) -> Verdict {
        let log = self.logs.get_mut(&told.partition).expect("partitions are added when they are made");
        // What an earlier life said and may have lost since: it binds only where nothing newer speaks against it.
        let stale = told.boot < present && !told.durable;
        let sent = shadow.of(told.uid).clone();
        let records = u64::from(sent.records);
        if let Some(base) = sent.base {
            let place = log.places.get_mut(&base).expect("a base in the shadow has its place");
            if base == told.base {
                place.boot = place.boot.max(told.boot);
                log.follow(told, &sent);
                return Ok(());
            }
            if stale {
                return Ok(());
            }
            // It may have been sent again after a crash that took it away.
            if place.firm || place.boot >= sent.last_boot {
                let what = format!(
                    "{}: {:?} stands at {} and at {base}: it is there twice, or was moved",
                    told.partition, told.uid, told.base
                );
                return Err(broken(NAME, what));
            }
            log.places.remove(&base);
            log.cut(shadow, told, base)?;
        }
        let overlap = log.first_overlap(told.base, records);
        if stale && overlap.is_some() {
            return Ok(());
        }
        log.cut(shadow, told, overlap.unwrap_or(told.base))?;
        let place = Place { uid: told.uid, records, firm: false, boot: told.boot, since: told.now };
        log.places.insert(told.base, place);
        shadow.of_mut(told.uid).base = Some(told.base);
        log.follow(told, &sent);
        Ok(())
    }

    /// Where a read of so many bytes from `offset` on ends, if the log is known that far in the life `boot`.
    pub fn end_of_read(
        &self,
        shadow: &Shadow,
        partition: PartitionId,
        offset: u64,
        bytes: u32,
        boot: Boot,
    ) -> Option<u64> {
        let places = &self.logs[&partition].places;
        let (&first, _) = places.range(..=offset).next_back()?;
        let (mut next, mut found) = (first, 0);
        for (&base, place) in places.range(first..) {
            if base != next || place.boot < boot {
                return None;
            }
            next += place.records;
            // The batch that holds the offset counts; one that ends before it does not.
            found += if next > offset { shadow.of(place.uid).bytes } else { return None };
            if found >= bytes {
                return Some(next);
            }
        }
        None
    }

    /// A batch below `end` that speaks against the record at `offset` as the first with the largest timestamp, as far
    /// as the log is known in the life `boot`. All records of a batch have its timestamp, which grows with its number.
    pub fn is_not_largest(&self, partition: PartitionId, offset: u64, end: u64, boot: Boot) -> Option<Uid> {
        let places = &self.logs[&partition].places;
        let (&base, said) = places.range(..=offset).next_back()?;
        if said.boot < boot || base + said.records <= offset {
            return None;
        }
        if base < offset {
            return Some(said.uid);
        }
        let known = places.range(..end).filter(|(base, p)| p.boot >= boot && *base + p.records <= end);
        known.map(|(_, p)| p.uid).max().filter(|&uid| uid > said.uid)
    }

    /// The life `boot` ended.
    pub fn crash(&mut self, now: Instant, boot: Boot, flush_within: Duration) {
        for log in self.logs.values_mut().filter(|l| l.durability == Durability::Replicated) {
            let aged = |p: &Place| p.boot == boot && p.since + flush_within < now;
            let last = log.places.iter().rev().find(|(_, p)| aged(p)).map(|(&base, _)| base);
            if let Some(base) = last {
                log.firm_to(base, boot);
            }
        }
    }

    /// The node flushed everything and said so, at the end of its life `boot`.
    pub fn clean_stop(&mut self, boot: Boot) {
        for log in self.logs.values_mut() {
            let last = log.places.iter().rev().find(|(_, p)| p.boot == boot).map(|(&base, _)| base);
            if let Some(base) = last {
                log.firm_to(base, boot);
            }
        }
    }

    /// The whole log was read in the life `boot`, up to `end`; every batch in it was told to [`Acked::learn`].
    pub fn audit(&self, partition: PartitionId, seen: &[(u64, Uid)], end: u64, boot: Boot) -> Verdict {
        let log = &self.logs[&partition];
        let mut seen = seen.iter().peekable();
        for (&base, place) in &log.places {
            while seen.next_if(|&&(b, _)| b < base).is_some() {}
            let there = seen.peek().is_some_and(|&&(b, uid)| b == base && uid == place.uid);
            if !there && (place.firm || place.boot == boot) {
                let what = format!(
                    "{partition}: {:?} at {base} {} and is gone; the log ends at {end}",
                    place.uid,
                    place.promise()
                );
                return Err(broken(NAME, what));
            }
        }
        Ok(())
    }
}

impl Place {
    fn promise(&self) -> String {
        if self.firm {
            "was promised for ever".to_owned()
        } else {
            format!("was there in life {}", self.boot)
        }
    }
}

impl Log {
    /// What follows for other places from the one that was told.
    fn follow(&mut self, told: &Told, sent: &Sent) {
        // The log is a prefix of what it was: what survived confirms all that stood before it.
        let (boot, upto) = self.confirmed;
        let from = if boot == told.boot { upto } else { 0 };
        if sent.last_boot < told.boot && from < told.base {
            for (_, place) in self.places.range_mut(from..told.base) {
                if place.boot >= sent.last_boot {
                    place.boot = place.boot.max(told.boot);
                    place.firm |= place.boot == told.boot && told.base < self.firm_end;
                }
            }
            self.confirmed = (told.boot, told.base);
        }
        if told.durable {
            self.firm_to(told.base, told.boot);
        } else if told.base < self.firm_end
            && let Some(place) = self.places.get_mut(&told.base)
        {
            place.firm = true;
        }
    }

    /// In the life `boot` everything up to there was promised for ever.
    fn firm_to(&mut self, base: u64, boot: Boot) {
        for (_, place) in self.places.range_mut(self.firm_end.min(base)..=base) {
            place.firm |= place.boot >= boot;
        }
        self.firm_end = self.firm_end.max(base + 1);
    }

    fn first_overlap(&self, base: u64, records: u64) -> Option<u64> {
        let before = self.places.range(..base).next_back();
        let overlapping = before.filter(|(b, p)| *b + p.records > base).map(|(&b, _)| b);
        overlapping.or_else(|| self.places.range(base..base + records).next().map(|(&b, _)| b))
    }

    /// A crash cut the log at or before `from`, before the batch that was told came to stand there: what is known
    /// from earlier lives only is gone from there on, and nothing may be in its way.
    fn cut(&mut self, shadow: &mut Shadow, told: &Told, from: u64) -> Verdict {
        let sent = shadow.of(told.uid);
        let (end, first_boot) = (told.base + u64::from(sent.records), sent.first_boot);
        let mut gone = Vec::new();
        for (&base, place) in self.places.range(from..) {
            let in_the_way = base < end && base + place.records > told.base;
            if !in_the_way && place.boot >= first_boot {
                continue;
            }
            if place.firm || (in_the_way && place.boot >= told.boot) {
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
}

fn conflict(told: &Told, base: u64, place: &Place) -> Violation {
    let what = format!(
        "{}: {:?} at {} speaks against {:?} at {base}, which {}",
        told.partition,
        told.uid,
        told.base,
        place.uid,
        place.promise()
    );
    broken(NAME, what)
}
