//! The lives of one log: how each begins and is compared with what must be there, how it ends, and the last one.

use std::time::Duration;

use bytes::Bytes;
use highwater_shards::ids::Offset;
use highwater_shards::log::disk::FileName;
use highwater_shards::log::storage::{Start, Storage};

use super::{LIVENESS, Lost, PATIENCE, Partition, Phase, World};
use crate::checkers::{Verdict, broken};
use crate::disk::Crash;
use crate::logs::batches;
use crate::logs::checkers::{bounds, compaction, content, recovery};
use crate::logs::history::State;
use crate::logs::shard::{Heard, check_rebuilt};

impl World {
    pub(super) fn live(&mut self) -> Verdict {
        for life in 0..self.config.lives {
            // Short lives end during recovery, long ones by a stop or with their last action.
            let steps = match self.dice.crash.below(6) {
                0 => 1 + self.dice.crash.below(60),
                1 | 2 => 1 + self.dice.crash.below(600),
                _ => 1 + self.dice.crash.below(4000),
            };
            let crash = self.draw_crash();
            self.crash_at = Some((self.counts.steps + steps, crash));
            self.start(life)?;
            self.recover()?;
            for _ in 0..self.config.actions {
                if !self.is_alive() {
                    break;
                }
                self.act()?;
            }
            if self.is_alive() && self.dice.crash.chance(self.config.stops) {
                self.heal();
                self.stop()?;
            }
            if self.is_alive() {
                let crash = self.draw_crash();
                self.die(crash);
            }
        }
        self.finish()
    }

    /// No more faults: everything is done in bounded time, a stop ends, and a start from it finds everything.
    fn finish(&mut self) -> Verdict {
        self.crash_at = None;
        self.start(self.config.lives)?;
        self.recover()?;
        for _ in 0..20 {
            self.revive()?;
            self.act()?;
        }
        self.heal();
        self.config.wrong_reads = 0;
        self.revive()?;
        self.idle()?;
        self.revive()?;
        self.take_one_each()?;
        self.revive()?;
        if self.config.fills {
            self.fill()?;
            self.revive()?;
        }
        if self.config.rots {
            return self.rot();
        }
        self.stop()?;
        let crash = self.draw_crash();
        self.die(crash);
        self.start(self.config.lives)?;
        self.recover()
    }

    /// Starts the log again if a fault of the disk ended it.
    fn revive(&mut self) -> Verdict {
        if self.is_alive() {
            return Ok(());
        }
        self.start(self.config.lives)?;
        self.recover()
    }

    /// Time without work: everything is flushed, moved and released that need not wait for more.
    fn idle(&mut self) -> Verdict {
        for p in &mut self.partitions {
            p.high_watermark = p.high_watermark.max(p.history.flushed_end());
        }
        self.pump(self.now + Duration::from_secs(20))?;
        if !self.is_alive() {
            return Ok(());
        }
        let pending = self.partitions.iter().flat_map(|p| p.history.markers()).max();
        if pending.is_some_and(|m| m > self.flushed) {
            return Err(broken(LIVENESS, format!("{pending:?} is not flushed, only {}", self.flushed)));
        }
        if let Some(reading) = self.readings.values().next() {
            return Err(broken(LIVENESS, format!("a read is not answered: {reading:?}")));
        }
        let storage = self.storage.as_ref().expect("alive");
        let live_bytes = storage.journal_stats().live_bytes;
        bounds::check_idle(&self.storage_config, &storage.stats(), self.config.partitions, live_bytes)?;
        if storage.over_backlog() {
            return Err(broken(LIVENESS, "it is over its backlog with nothing to do"));
        }
        Ok(())
    }

    pub(super) fn draw_crash(&mut self) -> Crash {
        if self.dice.crash.chance(self.config.power) { Crash::Power } else { Crash::Kill }
    }

    fn start(&mut self, life: u32) -> Verdict {
        self.counts.lives += 1;
        self.storage_config = self.config.storage(life);
        // A power loss may bring back files that were removed.
        let bound = self.storage_config.journal_bytes_max.max(self.disk.usage().0);
        self.journal_bytes_max = self.journal_bytes_max.max(bound);
        if self.dice.crash.chance(self.config.lost_checkpoints) {
            let how = if self.dice.crash.flip() { Lost::Missing } else { Lost::Damaged };
            self.lost_checkpoint.get_or_insert(how);
        }
        self.mark(&format!("life {life} begins, checkpoint lost: {:?}", self.lost_checkpoint));
        for p in &mut self.partitions {
            p.heard = Heard::default();
        }
        self.slots_used.clear();
        self.report = None;
        self.segment_reads = 0;
        self.is_checkpoint_read = false;
        self.is_over_debt = false;
        self.compactions = 0;
        self.phase = Phase::Recovering;
        self.storage = Some(Storage::new(self.storage_config.clone()));
        self.drain()
    }

    /// Waits for the end of recovery and compares what it left.
    fn recover(&mut self) -> Verdict {
        let began = self.now;
        while self.is_alive() && self.report.is_none() {
            if self.now.since(began) > PATIENCE || !self.pump_once(began + PATIENCE)? {
                return Err(broken(LIVENESS, "recovery does not end"));
            }
        }
        let Some(report) = self.report.filter(|_| self.is_alive()) else {
            self.counts.crashes_in_recovery += 1;
            // It may have made a checkpoint of its own.
            self.was_stopped &= self.report.is_none();
            return Ok(());
        };
        match report.start {
            Start::New => {}
            Start::Clean => self.counts.clean_starts += 1,
            Start::Checkpoint => self.counts.checkpoint_starts += 1,
            Start::Rebuilt => self.counts.rebuilds += 1,
        }
        self.phase = Phase::Comparing;
        if report.start == Start::Rebuilt {
            self.partitions.iter_mut().for_each(|p| p.may_start_behind = true);
        }
        self.is_known &= match report.start {
            Start::New => !self.was_rebuilt && self.lost_checkpoint.is_none(),
            Start::Clean | Start::Checkpoint => true,
            Start::Rebuilt => false,
        };
        if self.rotten {
            return self.compare_rotten();
        }
        if report.damaged_logs > 0 {
            return Err(broken(recovery::NAME, format!("damage is reported: {report:?}")));
        }
        if self.was_stopped && self.lost_checkpoint.is_none() {
            let is_clean = report.start == Start::Clean || report.start == Start::New;
            if !is_clean || report.entries > 0 {
                return Err(broken(recovery::NAME, format!("after a stop: {report:?}")));
            }
        }
        if report.start == Start::Clean && self.segment_reads > 0 {
            return Err(broken(recovery::NAME, "segments were read at a clean start"));
        }
        self.was_stopped = false;
        let storage = self.storage.as_ref().expect("alive");
        let before = self.cuts.as_deref();
        let cuts =
            recovery::cuts(&self.partitions, storage, report.start, self.is_known, self.flushed, before)?;
        self.cuts = Some(cuts);
        self.compare(report.start)
    }

    /// Reads everything and finds out where the journal was cut.
    fn compare(&mut self, start: Start) -> Verdict {
        let mut cuts = self.cuts.clone().expect("found before");
        let mut why = String::new();
        for i in 0..self.partitions.len() {
            let Some(slot) = self.storage.as_ref().and_then(|s| s.slot(self.partitions[i].id)) else {
                continue;
            };
            let starts: Vec<u64> =
                cuts.iter().map(|&cut| self.partitions[i].history.outline(cut, false).start).collect();
            let least = starts.iter().copied().min().unwrap_or(0);
            let storage = self.storage.as_ref().expect("alive");
            let from = storage.start(slot).map_or(0, |s| s.0).max(least);
            let end = storage.end(slot).map_or(0, |s| s.0);
            let Some(read) = self.read_all(slot, from, end)? else { return Ok(()) };
            self.counts.batches_verified += read.len() as u64;
            let wall_ms = self.wall_ms();
            let p = &mut self.partitions[i];
            cuts.retain(|&cut| {
                let state = p.history.state_at(cut, false);
                match compare_one(p, state, from, end, &read, wall_ms) {
                    Ok(()) => true,
                    Err(what) => {
                        why = format!("{}, cut at {cut}: {what}", p.id);
                        false
                    }
                }
            });
            if cuts.is_empty() {
                return Err(broken(recovery::NAME, why));
            }
        }
        // Where several would do, the first: none of the later entries has left a trace.
        let cut = *cuts.first().expect("checked");
        self.settle(cut, start)
    }

    fn settle(&mut self, cut: u64, start: Start) -> Verdict {
        self.cuts = None;
        self.flushed = self.flushed.max(cut);
        self.last_marker = self.flushed;
        let storage = self.storage.as_mut().expect("alive");
        for p in &mut self.partitions {
            p.slot = storage.slot(p.id);
            // Without a checkpoint, and where the note was replayed, it was the journal that told.
            let is_checkpoint_told = start != Start::Rebuilt && !p.heard.is_dropped;
            if p.slot.is_none() && is_checkpoint_told && p.history.settle_dropped(cut) {
                p.changes += 1;
                p.high_watermark = 0;
                p.configured = None;
                (p.is_start_behind, p.may_start_behind) = (false, false);
                continue;
            }
            let mut state = p.history.state_at(cut, p.slot.is_none());
            self.slots_used.extend(p.slot);
            state.known = p.heard.known;
            let begins_anew = |slot| storage.end(slot) == Some(Offset(0));
            if p.slot.is_some_and(begins_anew) {
                // It was empty, and without a checkpoint nothing told where it ended.
                state = State { drops: state.drops, ..State::default() };
            } else if let Some(slot) = p.slot {
                let found = storage.start(slot).expect("a log has a start").0;
                p.is_start_behind = found < state.start;
                p.may_start_behind = p.is_start_behind;
                state.begin_at(found);
            } else {
                state = State { drops: state.drops, ..State::default() };
            }
            p.changes += 1;
            let end = state.end;
            p.history.settle(state);
            p.high_watermark = p.stable().min(end);
            p.dropped.clear();
            p.configured = None;
        }
        self.is_known = true;
        self.phase = Phase::Running;
        if start == Start::Rebuilt {
            self.was_rebuilt = true;
            self.partitions.iter().try_for_each(check_rebuilt)?;
        }
        for i in 0..self.partitions.len() {
            self.configure(i);
        }
        self.drain()
    }

    /// After a bit flipped: what is served was appended once, to this log, and came back whole.
    fn compare_rotten(&mut self) -> Verdict {
        for i in 0..self.partitions.len() {
            let Some(slot) = self.storage.as_ref().and_then(|s| s.slot(self.partitions[i].id)) else {
                continue;
            };
            let storage = self.storage.as_ref().expect("alive");
            let (start, end) = (storage.start(slot), storage.end(slot));
            let (Some(Offset(mut from)), Some(Offset(end))) = (start, end) else { continue };
            while from < end && self.is_alive() {
                let Some(read) = self.read_once(slot, from, end)? else { break };
                let p = &self.partitions[i];
                for bytes in &read {
                    check_rotten(p, bytes)?;
                    from = batches::parse(bytes).expect("checked").end;
                }
                if read.is_empty() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// One bit of what is durable flips, and the log starts again.
    fn rot(&mut self) -> Verdict {
        let crash = self.draw_crash();
        self.die(crash);
        let what = match self.dice.fault.below(4) {
            0 => format!("the journal: {}", self.disk.rot()),
            1 => format!("the checkpoint: {}", self.disk.rot_checkpoint()),
            2 => format!("{:?}", self.disk.rot_file(|f| matches!(f, FileName::Index(_)))),
            _ => format!("{:?}", self.disk.rot_file(|f| matches!(f, FileName::Segment(_)))),
        };
        self.counts.rots += 1;
        self.mark(&format!("a bit flips in {what}"));
        self.rotten = true;
        self.may_be_fatal = true;
        self.may_fail_reads = true;
        self.start(self.config.lives)?;
        self.recover()
    }

    fn stop(&mut self) -> Verdict {
        self.mark("stop");
        self.phase = Phase::Stopping;
        self.counts.stops += 1;
        let now = self.now;
        self.storage.as_mut().expect("alive").stop(now);
        self.drain()?;
        let began = self.now;
        while self.is_alive() && self.phase == Phase::Stopping {
            if self.now.since(began) > PATIENCE || !self.pump_once(began + PATIENCE)? {
                return Err(broken(LIVENESS, "a stop does not end"));
            }
        }
        if self.is_alive() {
            // A drop that a full journal could not take is lost with the stop.
            let upto = if self.was_full { self.last_marker } else { u64::MAX };
            self.partitions.iter_mut().for_each(|p| p.history.flushed(upto));
            self.flushed = self.flushed.max(self.last_marker);
            // With no room on the disk a stop leaves to the journal what is not moved.
            self.was_stopped = !self.was_full;
        }
        Ok(())
    }
}

fn compare_one(
    p: &mut Partition,
    state: State,
    from: u64,
    end: u64,
    read: &[Bytes],
    wall_ms: i64,
) -> Result<(), String> {
    if state.end != end && !(end == 0 && state.start == state.end) {
        return Err(format!("it ends at {end}, not {}", state.end));
    }
    let mut from = from.max(state.start);
    let skip = read.iter().take_while(|b| batches::parse(b).is_ok_and(|h| h.end <= from)).count();
    let read = &read[skip..];
    if p.rules.compacted {
        // A rebuilt log starts where its first batch does. What was before it must be gone for a reason.
        let starts = p.history.open_starts(state.drops).chain([state.start]);
        from = starts.filter(|start| *start <= from).max().unwrap_or(from);
        let now = std::mem::replace(&mut p.history.now, state);
        let result = compaction::check(p, from, end, read, true, wall_ms);
        p.history.now = now;
        return result;
    }
    let first = state.find(from);
    content::same(&state, first, read)?;
    let expected = state.batches.len() - first;
    if read.len() < expected {
        Err(format!("{} batches of {expected} are there", read.len()))
    } else {
        Ok(())
    }
}

fn check_rotten(p: &Partition, bytes: &Bytes) -> Verdict {
    let header = batches::parse(bytes)
        .map_err(|what| broken(content::NAME, format!("{}: served after a bit flipped: {what}", p.id)))?;
    let mut same = p.ever.iter().filter(|b| b.base == header.base && b.end == header.end);
    let is_there = if p.rules.compacted { same.next().is_some() } else { same.any(|b| b.bytes == *bytes) };
    if is_there {
        return Ok(());
    }
    let what = content::describe(bytes);
    Err(broken(
        content::NAME,
        format!("{}: served after a bit flipped: {what}, which was never appended", p.id),
    ))
}
