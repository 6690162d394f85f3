//! What is asked of the log: appends, truncations, starts, drops, settings, faults and time.

use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use highwater_shards::batch::parse_header;
use highwater_shards::ids::{LeaderEpoch, Offset};
use highwater_shards::log::Slot;
use highwater_shards::log::journal::{AppendRefused, Marker, Urgency};

use super::batches::{self, Draft, Recipe};
use super::history::{Batch, What};
use super::world::{LIVENESS, World};
use crate::checkers::{Verdict, Violation, broken};
use crate::records::Stamp;

impl World {
    /// One action, after a while.
    pub fn act(&mut self) -> Verdict {
        let w = self.config.weights;
        let mut n = u32::try_from(self.dice.act.below(u64::from(w.sum()))).expect("small");
        let i = self.dice.act.index(self.partitions.len());
        let mut is = |weight: u32| {
            let chosen = n < weight;
            n = n.wrapping_sub(weight);
            chosen
        };
        if is(w.append) {
            // Several in one turn share a chunk.
            for _ in 0..*self.dice.act.pick(&[1, 1, 2, 6]) {
                let i =
                    if self.dice.act.chance(600) { i } else { self.dice.act.index(self.partitions.len()) };
                self.append(i)?;
            }
        } else if is(w.truncate) {
            self.truncate(i)?;
        } else if is(w.start) {
            self.advance(i)?;
        } else if is(w.drop_log) {
            self.drop_log(i)?;
        } else if is(w.configure) {
            self.partitions[i].settings = self.config.log(&mut self.dice.act);
            self.configure(i);
        } else if is(w.read) {
            for _ in 0..*self.dice.act.pick(&[1, 1, 3]) {
                self.read(i)?;
            }
        } else if is(w.find) {
            self.find(i)?;
        } else if is(w.high_watermark) {
            for p in &mut self.partitions {
                let most = p.history.flushed_end();
                if p.high_watermark < most {
                    let lag =
                        if self.dice.act.flip() { 0 } else { self.dice.act.below(most - p.high_watermark) };
                    p.high_watermark = most - lag;
                }
            }
        } else if is(w.jump) {
            let jump = self.config.jump;
            let far = self.dice.act.between(Duration::ZERO, jump);
            self.drain()?;
            self.pump(self.now + far)?;
        } else {
            self.fault();
        }
        self.drain()?;
        if self.full_until.is_some_and(|t| t <= self.now) {
            self.full_until = None;
            self.disk.faults.full = false;
        }
        if self.slow_until.is_some_and(|t| t <= self.now) {
            self.slow_until = None;
            self.disk.faults.slow = 0;
        }
        if self.is_alive() && self.dice.act.chance(700) {
            let throttle = self.storage.as_ref().expect("alive").throttle();
            self.counts.throttled += u64::from(!throttle.is_zero());
            if throttle > Duration::from_secs(1) {
                return Err(broken(super::checkers::bounds::NAME, format!("a throttle of {throttle:?}")));
            }
            let pause = self.dice.act.between(Duration::ZERO, self.config.pause);
            // Some producers do as they are told.
            let wait = if self.dice.act.flip() { throttle } else { Duration::ZERO };
            self.pump(self.now + pause + wait)?;
        }
        Ok(())
    }

    /// The log of a partition, which is made if there is none.
    fn open(&mut self, i: usize) -> Result<Slot, Violation> {
        if let Some(slot) = self.partitions[i].slot {
            return Ok(slot);
        }
        let storage = self.storage.as_mut().expect("alive");
        let slot = storage.open(self.partitions[i].id);
        if !self.slots_used.insert(slot) {
            return Err(broken(LIVENESS, format!("{slot:?} is used again")));
        }
        self.partitions[i].slot = Some(slot);
        self.configure(i);
        Ok(slot)
    }

    pub fn configure(&mut self, i: usize) {
        let p = &mut self.partitions[i];
        let Some(slot) = p.slot else { return };
        let settings = p.settings;
        if settings.compact {
            p.rules.compacted = true;
            p.rules.lag_ms_min = p.rules.lag_ms_min.min(settings.compaction_lag_ms);
            p.rules.tombstone_ms_min = p.rules.tombstone_ms_min.min(settings.tombstone_ms);
        }
        p.configured = Some(settings);
        self.tell(|| format!("** configure {i}: {settings:?}"));
        self.storage.as_mut().expect("alive").configure(slot, &settings);
    }

    fn recipe(&mut self, i: usize) -> Recipe {
        let wall_ms = self.wall_ms();
        let r = &mut self.dice.batch;
        let p = &mut self.partitions[i];
        let count = if self.is_tiny { 1 } else { *r.pick(&[1, 1, 2, 5]) };
        let is_large = !self.is_tiny && r.chance(30);
        let least = 61 + 40 * count;
        let value_max = if self.is_tiny {
            8
        } else if is_large {
            (self.config.batch_bytes_max - least) / count
        } else {
            self.config.value_max.min((self.config.batch_bytes_max - least) / count)
        };
        let at_ms = match r.below(20) {
            0 => wall_ms - i64::try_from(r.below(10_000_000)).expect("small"),
            1 => wall_ms + i64::try_from(r.below(1000)).expect("small"),
            _ => wall_ms,
        };
        let records = (0..count)
            .map(|_| Draft {
                timestamp_ms: at_ms + i64::try_from(r.below(3)).expect("small"),
                key: (!r.chance(50))
                    .then(|| u32::try_from(r.below(u64::from(self.config.keys))).expect("small")),
                value_len: (!r.chance(150)).then(|| {
                    if is_large {
                        value_max
                    } else {
                        u32::try_from(r.below(u64::from(value_max) + 1)).expect("small")
                    }
                }),
            })
            .collect();
        let stamp = r.chance(400).then(|| {
            let producer = 7 + r.below(3);
            let next = p.producers.entry(producer).or_default();
            if r.chance(50) {
                *next = (next.0 + 1, 0);
            }
            Stamp { producer, epoch: next.0, sequence: next.1 }
        });
        Recipe { base: p.history.now.end, epoch: p.epoch, stamp, records }
    }

    /// With nothing wrong and nothing to do, every log takes a batch.
    pub fn take_one_each(&mut self) -> Verdict {
        for i in 0..self.partitions.len() {
            let before = self.counts.refused;
            self.append(i)?;
            if self.counts.refused > before {
                return Err(broken(LIVENESS, "a batch is refused with nothing to do"));
            }
            self.drain()?;
            self.pump(self.now + Duration::from_secs(2))?;
            if !self.is_alive() {
                break;
            }
        }
        Ok(())
    }

    /// Small batches, each in a chunk of its own, more than the journal may hold: none is refused for long.
    pub fn fill(&mut self) -> Verdict {
        let chunks = self.storage_config.journal_bytes_max / 4096 * 2;
        let mut waits = 0;
        self.mark("fill the journal");
        self.is_tiny = true;
        for _ in 0..chunks {
            loop {
                let before = self.counts.refused;
                let i = self.dice.act.index(self.partitions.len());
                self.append(i)?;
                self.drain()?;
                let is_refused = self.counts.refused > before;
                let wait = if is_refused { Duration::from_millis(100) } else { Duration::from_millis(1) };
                self.pump(self.now + wait)?;
                if !self.is_alive() {
                    return Ok(());
                }
                if !is_refused {
                    waits = 0;
                    break;
                }
                waits += 1;
                if waits > 600 {
                    return Err(broken(LIVENESS, "batches are refused for a minute with nothing wrong"));
                }
            }
        }
        Ok(())
    }

    fn append(&mut self, i: usize) -> Verdict {
        if !self.is_alive() {
            return Ok(());
        }
        // It may have been rebuilt without anything that tells of the log.
        let slot = self.open(i)?;
        if self.partitions[i].is_start_behind && !self.catch_up_start(i)? {
            return Ok(());
        }
        let recipe = self.recipe(i);
        let stored = batches::build(&recipe, &mut self.dice.batch);
        let urgency = if self.dice.act.chance(700) { Urgency::Sync } else { Urgency::Lazy };
        // As a producer sends it, or as a follower gets it.
        let mut sent = BytesMut::from(&stored[..]);
        if self.dice.act.flip() {
            sent[..8].fill(0);
            sent[12..16].fill(0xff);
        }
        let header = parse_header(&sent).expect("the world makes good batches");
        let parsed = batches::parse(&stored).expect("the world makes good batches");
        self.tell(|| {
            format!("** append to {i}: {}..{}, {} bytes, {urgency:?}", parsed.base, parsed.end, parsed.len)
        });
        let (now, wall_ms) = (self.now, self.wall_ms());
        let storage = self.storage.as_mut().expect("alive");
        let (base, epoch) = (Offset(recipe.base), LeaderEpoch(recipe.epoch));
        let said = storage.append(now, slot, base, epoch, &header, &sent, urgency);
        let Some(marker) = self.accepted(said)? else { return Ok(()) };
        self.counts.appends += 1;
        let p = &mut self.partitions[i];
        if let Some(s) = recipe.stamp {
            let count = u32::try_from(recipe.records.len()).expect("small");
            p.producers.insert(s.producer, (s.epoch, s.sequence + count));
        }
        let batch = Rc::new(Batch {
            base: parsed.base,
            end: parsed.end,
            epoch: recipe.epoch,
            bytes: stored,
            max_ms: parsed.max_ms,
            wall_ms,
            stamp: recipe.stamp,
        });
        if self.config.rots {
            p.ever.push(Rc::clone(&batch));
        }
        p.history.push(marker, What::Batch(batch));
        Ok(())
    }

    /// Takes note of an entry that was accepted; nothing if it was refused for a good reason.
    fn accepted(&mut self, said: Result<Marker, AppendRefused>) -> Result<Option<u64>, Violation> {
        let fail = |what: String| Err(broken("append", what));
        match said {
            Ok(Marker(marker)) => {
                if marker <= self.flushed || marker < self.last_marker {
                    let (flushed, last) = (self.flushed, self.last_marker);
                    return fail(format!("marker {marker} is given after {last}, flushed up to {flushed}"));
                }
                self.last_marker = marker;
                self.partitions.iter_mut().for_each(|p| p.history.bound(marker));
                Ok(Some(marker))
            }
            Err(refused) => {
                self.counts.refused += 1;
                self.tell(|| format!("   refused: {refused}"));
                match refused {
                    AppendRefused::Full if !self.was_full => fail("refused as full; the disk was not".into()),
                    AppendRefused::NotReady => fail("refused as not ready".into()),
                    _ => Ok(None),
                }
            }
        }
    }

    /// What a follower does before it takes over a newer leader's records.
    fn truncate(&mut self, i: usize) -> Verdict {
        let p = &self.partitions[i];
        let Some(slot) = p.slot.filter(|_| !p.is_start_behind) else { return Ok(()) };
        let state = &p.history.now;
        let least = p.high_watermark.max(state.start);
        if least > state.end {
            return Ok(());
        }
        let wanted = self.dice.act.range(least..state.end + 1);
        let mut end = state.boundary(wanted);
        if end < least {
            // The high watermark lies within a batch, or the start does.
            end = state.batches.iter().map(|b| b.end).find(|e| *e >= least).unwrap_or(state.end);
        }
        if let Some(first) = state.batches.front().filter(|b| b.base < end && end < b.end) {
            // The log starts within this batch.
            end = first.end;
        }
        let is_moved = end < p.history.flushed_end();
        self.tell(|| format!("** truncate {i} to {end}"));
        let now = self.now;
        let said = self.storage.as_mut().expect("alive").truncate(now, slot, Offset(end));
        let Some(marker) = self.accepted(said)? else { return Ok(()) };
        self.counts.truncations += 1;
        self.counts.truncations_of_moved += u64::from(is_moved);
        let p = &mut self.partitions[i];
        p.lose(0, end);
        p.history.push(marker, What::Truncated { end });
        p.epoch += 1;
        p.cursor = p.cursor.min(end);
        Ok(())
    }

    /// DeleteRecords.
    fn advance(&mut self, i: usize) -> Verdict {
        let p = &self.partitions[i];
        let state = &p.history.now;
        if p.slot.is_none() || p.is_start_behind || p.high_watermark <= state.start {
            return Ok(());
        }
        let start = if self.dice.act.chance(200) {
            p.high_watermark
        } else {
            self.dice.act.range(state.start + 1..p.high_watermark + 1)
        };
        self.advance_to(i, start).map(drop)
    }

    fn advance_to(&mut self, i: usize, start: u64) -> Result<bool, Violation> {
        let slot = self.partitions[i].slot.expect("it has a log");
        self.tell(|| format!("** start {i} at {start}"));
        let now = self.now;
        let said = self.storage.as_mut().expect("alive").advance_start(now, slot, Offset(start));
        let Some(marker) = self.accepted(said)? else { return Ok(false) };
        self.counts.starts += 1;
        let p = &mut self.partitions[i];
        p.lose(start, u64::MAX);
        p.history.push(marker, What::Started { start });
        Ok(true)
    }

    /// A rebuilt log that starts too early is told where to start.
    fn catch_up_start(&mut self, i: usize) -> Result<bool, Violation> {
        let start = self.partitions[i].history.now.start;
        let is_done = self.advance_to(i, start)?;
        self.partitions[i].is_start_behind = !is_done;
        Ok(is_done)
    }

    fn drop_log(&mut self, i: usize) -> Verdict {
        let Some(slot) = self.partitions[i].slot else { return Ok(()) };
        self.tell(|| format!("** drop {i}"));
        let now = self.now;
        let said = self.storage.as_mut().expect("alive").drop_log(now, slot);
        if let Err(refused) = said {
            return Err(broken("append", format!("a drop is refused: {refused}")));
        }
        self.counts.drops += 1;
        let p = &mut self.partitions[i];
        p.lose(u64::MAX, 0);
        p.dropped.insert(p.history.now.drops, p.high_watermark);
        p.history.drop_after(self.last_marker);
        p.slot = None;
        p.high_watermark = 0;
        p.cursor = 0;
        p.is_start_behind = false;
        p.configured = None;
        let storage = self.storage.as_ref().expect("alive");
        if storage.slot(p.id).is_some() || storage.end(slot).is_some() {
            return Err(broken("append", format!("{} was dropped and is there", p.id)));
        }
        Ok(())
    }

    fn fault(&mut self) {
        self.counts.faults += 1;
        let r = &mut self.dice.fault;
        let most = Duration::from_millis(*r.pick(&[1, 20, 500]));
        let until = self.now + r.between(Duration::ZERO, most);
        let what = r.below(8);
        match what {
            0..=2 => {
                self.disk.faults.full = true;
                self.was_full = true;
                self.full_until = Some(until);
            }
            3 | 4 => {
                self.disk.faults.slow = 20;
                self.slow_until = Some(until);
            }
            5 => {
                self.disk.faults.fail_next_write = true;
                self.may_be_fatal = true;
            }
            6 => {
                self.disk.faults.fail_next_sync = true;
                self.may_be_fatal = true;
            }
            _ => {
                self.disk.faults.fail_next_read = true;
                self.may_be_fatal = true;
                self.may_fail_reads = true;
            }
        }
        self.mark(&format!("fault {what} until {until:?}"));
    }
}
