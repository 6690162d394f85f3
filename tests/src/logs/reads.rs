//! Reads of the log: asked at random places, and through a whole log to compare it.

use bytes::Bytes;
use highwater_shards::ids::Offset;
use highwater_shards::log::Slot;
use highwater_shards::log::reader::ReadFault;
use highwater_shards::log::storage::{Found, FoundBatch, Wanted};

use super::batches;
use super::checkers::content::{self, Asked};
use super::world::{LIVENESS, Phase, World};
use crate::checkers::{Verdict, Violation, broken};

/// A read that waits for the disk.
#[derive(Clone, Debug)]
pub enum Reading {
    Batches {
        partition: usize,
        asked: Asked,
    },
    Timestamp {
        partition: usize,
        timestamp_ms: i64,
        asked: Asked,
    },
    /// Of the world itself, with the answer.
    Whole {
        answer: Option<Result<Vec<Bytes>, ReadFault>>,
    },
}

impl World {
    fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    /// Reads somewhere in a log.
    pub fn read(&mut self, i: usize) -> Verdict {
        let Some(slot) = self.partitions[i].slot else { return Ok(()) };
        let p = &mut self.partitions[i];
        let now = &p.history.now;
        if p.is_start_behind || now.start > now.end {
            return Ok(());
        }
        let r = &mut self.dice.read;
        let is_sequential = r.chance(400);
        let from = match r.below(4) {
            _ if is_sequential && (now.start..=now.end).contains(&p.cursor) => p.cursor,
            0 => now.start,
            1 => now.end.saturating_sub(r.below(4)).max(now.start),
            _ => r.range(now.start..now.end + 1),
        };
        let below = match r.below(4) {
            0 => now.boundary(r.range(now.start..now.end + 1)),
            1 => p.high_watermark.max(now.start),
            2 => r.range(now.start..now.end + 1),
            _ => now.end,
        };
        let bytes_max = *r.pick(&[1, 400, 4000, 100_000]);
        let asked = Asked { from, below, bytes_max, first_whole: r.chance(700), changes: p.changes };
        let wanted = Wanted {
            from: Offset(from),
            below: Offset(below),
            bytes_max,
            first_whole: asked.first_whole,
            is_urgent: r.chance(200),
        };
        let ticket = self.ticket();
        self.counts.reads += 1;
        self.tell(|| format!("** read {ticket} of {i}: {asked:?}"));
        let now = self.now;
        match self.storage.as_mut().expect("alive").read(now, slot, wanted, ticket) {
            Found::Memory(read) => self.on_batches(i, &asked, &read),
            Found::Nothing => self.on_batches(i, &asked, &[]),
            Found::Later => {
                self.counts.later_reads += 1;
                self.readings.insert(ticket, Reading::Batches { partition: i, asked });
                Ok(())
            }
        }
    }

    fn on_batches(&mut self, i: usize, asked: &Asked, read: &[Bytes]) -> Verdict {
        let wall_ms = self.wall_ms();
        let p = &mut self.partitions[i];
        self.counts.compacted_reads += u64::from(p.rules.compacted);
        content::check(p, asked, read, wall_ms)?;
        if let Some(last) = read.last() {
            p.cursor = batches::parse(last).map_or(0, |h| h.end);
        }
        Ok(())
    }

    /// Looks for a timestamp.
    pub fn find(&mut self, i: usize) -> Verdict {
        let Some(slot) = self.partitions[i].slot else { return Ok(()) };
        let p = &self.partitions[i];
        let now = &p.history.now;
        if p.is_start_behind || now.batches.is_empty() {
            return Ok(());
        }
        let r = &mut self.dice.read;
        let near = now.batches[r.index(now.batches.len())].max_ms;
        let timestamp_ms = near + *r.pick(&[-1, 0, 0, 1]);
        let below = if r.flip() { now.end } else { now.boundary(r.range(now.start..now.end + 1)) };
        let asked = Asked { from: now.start, below, bytes_max: 0, first_whole: true, changes: p.changes };
        let largest = now.batches.iter().filter(|b| b.end <= below).map(|b| b.max_ms).max();
        let ticket = self.ticket();
        self.tell(|| format!("** find {ticket} in {i}: {timestamp_ms} ms, {asked:?}"));
        let time = self.now;
        let storage = self.storage.as_mut().expect("alive");
        let said = storage.largest_timestamp(slot, Offset(below));
        if largest > said && !self.partitions[i].rules.compacted {
            let id = self.partitions[i].id;
            return Err(broken(
                content::NAME,
                format!("{id}: the largest timestamp below {below} is {largest:?}, not {said:?}"),
            ));
        }
        match storage.find_timestamp(time, slot, timestamp_ms, Offset(below), ticket) {
            FoundBatch::Memory(found) => {
                content::check_found(&self.partitions[i], timestamp_ms, &asked, Some(&found))
            }
            FoundBatch::Nothing => content::check_found(&self.partitions[i], timestamp_ms, &asked, None),
            FoundBatch::Later => {
                self.readings.insert(ticket, Reading::Timestamp { partition: i, timestamp_ms, asked });
                Ok(())
            }
        }
    }

    pub fn on_read(&mut self, ticket: u64, result: Result<Vec<Bytes>, ReadFault>) -> Verdict {
        match self.readings.remove(&ticket) {
            Some(Reading::Whole { .. }) => {
                self.readings.insert(ticket, Reading::Whole { answer: Some(result) });
                Ok(())
            }
            Some(Reading::Batches { partition, asked }) => match result {
                Ok(read) => self.on_batches(partition, &asked, &read),
                Err(fault) => self.on_fault(partition, &asked, &fault),
            },
            other => Err(broken(content::NAME, format!("read {ticket} is answered: {other:?}"))),
        }
    }

    pub fn on_found(&mut self, ticket: u64, result: Result<Option<Bytes>, ReadFault>) -> Verdict {
        let Some(Reading::Timestamp { partition, timestamp_ms, asked }) = self.readings.remove(&ticket)
        else {
            return Err(broken(content::NAME, format!("search {ticket} is answered")));
        };
        self.counts.found += 1;
        match result {
            Ok(found) => {
                content::check_found(&self.partitions[partition], timestamp_ms, &asked, found.as_ref())
            }
            Err(fault) => self.on_fault(partition, &asked, &fault),
        }
    }

    /// A read that failed must have a reason that the world knows.
    fn on_fault(&mut self, i: usize, asked: &Asked, fault: &ReadFault) -> Verdict {
        let p = &self.partitions[i];
        let is_explained = match fault {
            ReadFault::Gone => {
                self.counts.gone += 1;
                p.changes != asked.changes || p.rules.compacted
            }
            ReadFault::Overloaded => {
                self.counts.overloaded += 1;
                self.readings.len() >= self.storage_config.reader.waiting_max
            }
            ReadFault::Damaged { .. } | ReadFault::Failed { .. } => {
                self.counts.damaged_reads += 1;
                self.may_fail_reads
            }
            _ => false,
        };
        if is_explained {
            Ok(())
        } else {
            Err(broken(content::NAME, format!("{}: {asked:?}: {fault}", p.id)))
        }
    }

    /// Reads once and waits for the answer; nothing if the log died meanwhile, or if the read failed where it may.
    pub fn read_once(&mut self, slot: Slot, from: u64, end: u64) -> Result<Option<Vec<Bytes>>, Violation> {
        let bytes_max = *self.dice.read.pick(&[1, 3000, 30_000, 1_000_000]);
        let wanted =
            Wanted { from: Offset(from), below: Offset(end), bytes_max, first_whole: true, is_urgent: false };
        let ticket = self.ticket();
        let now = self.now;
        let Some(storage) = &mut self.storage else { return Ok(None) };
        match storage.read(now, slot, wanted, ticket) {
            Found::Memory(read) => return Ok(Some(read)),
            Found::Nothing => return Ok(Some(Vec::new())),
            Found::Later => {}
        }
        self.readings.insert(ticket, Reading::Whole { answer: None });
        self.drain()?;
        let patience = self.now + std::time::Duration::from_secs(60);
        loop {
            match self.readings.get_mut(&ticket) {
                Some(Reading::Whole { answer }) => {
                    if let Some(answer) = answer.take() {
                        self.readings.remove(&ticket);
                        return match answer {
                            Ok(read) => Ok(Some(read)),
                            Err(_) if self.may_fail_reads => {
                                self.counts.damaged_reads += 1;
                                Ok(None)
                            }
                            Err(fault) => Err(broken(content::NAME, format!("a read at {from}: {fault}"))),
                        };
                    }
                }
                _ => return Ok(None),
            }
            if !self.pump_once(patience)? && self.is_alive() {
                return Err(broken(LIVENESS, format!("a read at {from} is not answered")));
            }
        }
    }

    /// Reads a log from one end to the other; nothing if it died meanwhile.
    pub fn read_all(&mut self, slot: Slot, from: u64, end: u64) -> Result<Option<Vec<Bytes>>, Violation> {
        assert_eq!(self.phase, Phase::Comparing, "nothing else reads now");
        let mut all = Vec::new();
        let mut next = from;
        while next < end {
            let Some(read) = self.read_once(slot, next, end)? else { return Ok(None) };
            if read.is_empty() {
                break;
            }
            for bytes in &read {
                let header = batches::parse(bytes)
                    .map_err(|what| broken(content::NAME, format!("a read at {next}: {what}")))?;
                if header.end <= next {
                    return Err(broken(
                        content::NAME,
                        format!("a read at {next} gave {}", content::describe(bytes)),
                    ));
                }
                next = header.end;
            }
            all.extend(read);
        }
        Ok(Some(all))
    }
}
