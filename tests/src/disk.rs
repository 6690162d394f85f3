//! A simulated disk: the files of one shard as sectors, each with what is durable and what is not yet.
//!
//! It promises exactly what `highwater_shards::log::disk` documents and nothing more. A write in flight or
//! unsynced is, sector by sector and independently, kept, lost or torn when the power goes. The model follows
//! TigerBeetle's simulated storage.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use highwater_shards::log::disk::{DiskError, DiskEvent, DiskOp, FileName, FileNo, OpNo, SECTOR};

use crate::rng::Rng;

/// How the disk behaves in one run.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    pub write: Range<Duration>,
    pub sync: Range<Duration>,
    pub read: Range<Duration>,
    pub prepare: Range<Duration>,
}

impl DiskConfig {
    /// The longest that a write and a sync take one after the other, on a disk slowed down by `factor`.
    pub fn flush_max(&self, factor: u32) -> Duration {
        (self.write.end + self.sync.end) * 10 * factor
    }
}

/// What a disk is told to do wrong from now on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiskFaults {
    /// A new file finds no room.
    pub full: bool,
    /// The next write or sync fails.
    pub fail_next_write: bool,
    /// The next read fails.
    pub fail_next_read: bool,
    /// Everything takes so many times longer; 0 and 1 mean the usual time.
    pub slow: u32,
}

/// What ended a process, as its disk sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// The process died: what the kernel took stays visible, though not durable.
    Kill,
    /// The power went: what was not synced is kept, lost or torn.
    Power,
}

/// A version of a sector that a power loss may take away.
#[derive(Debug)]
struct Version {
    number: u64,
    data: Bytes,
}

/// An empty [`Bytes`] stands for a sector of zeros.
#[derive(Debug, Default)]
struct File {
    durable: Vec<Bytes>,
    /// Versions newer than the durable one, in the order in which their writes completed.
    unsynced: BTreeMap<usize, Vec<Version>>,
}

#[derive(Debug)]
enum InFlight {
    List,
    Prepare { file: FileNo, size: u64 },
    Write { file: FileNo, first: usize, data: Bytes, sync: bool },
    Sync { file: FileNo, up_to: u64 },
    Read { file: FileNo, position: u64, len: u32 },
}

#[derive(Debug)]
pub struct SimDisk {
    config: DiskConfig,
    pub faults: DiskFaults,
    files: BTreeMap<FileNo, File>,
    in_flight: BTreeMap<OpNo, InFlight>,
    /// The number of the last version that any write made.
    version: u64,
    rng: Rng,
}

impl SimDisk {
    pub fn new(config: DiskConfig, rng: Rng) -> Self {
        Self {
            config,
            faults: DiskFaults::default(),
            files: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            version: 0,
            rng,
        }
    }

    /// Takes an operation and says after how long [`SimDisk::complete`] is to be called. An error is a breach of
    /// the contract by the caller.
    pub fn submit(&mut self, op: DiskOp) -> Result<(OpNo, Duration), String> {
        let (no, flying, usual) = match op {
            DiskOp::List { op } => (op, InFlight::List, self.config.read.clone()),
            DiskOp::Prepare { op, file, size } => {
                if size == 0 || !size.is_multiple_of(SECTOR as u64) {
                    return Err(format!("{file} is prepared with {size} bytes, no whole sectors"));
                }
                (op, InFlight::Prepare { file, size }, self.config.prepare.clone())
            }
            DiskOp::Write { op, file, position, parts, sync } => {
                let data = self.check_write(file, position, &parts)?;
                let first = sector(position);
                let usual = if sync { self.config.sync.clone() } else { self.config.write.clone() };
                (op, InFlight::Write { file, first, data, sync }, usual)
            }
            DiskOp::Sync { op, file: FileName::Journal(file) } => {
                self.known(file)?;
                (op, InFlight::Sync { file, up_to: self.version }, self.config.sync.clone())
            }
            DiskOp::Read { op, file: FileName::Journal(file), position, len } => {
                self.known(file)?;
                (op, InFlight::Read { file, position, len }, self.config.read.clone())
            }
            other => return Err(format!("nothing asks for {other:?}")),
        };
        if self.in_flight.insert(no, flying).is_some() {
            return Err(format!("{no:?} is given while an operation of that number is in flight"));
        }
        let factor = self.faults.slow.max(1);
        Ok((no, self.rng.tailed(&usual) * factor))
    }

    fn known(&self, file: FileNo) -> Result<&File, String> {
        self.files.get(&file).ok_or_else(|| format!("{file} does not exist"))
    }

    fn check_write(&self, file: FileNo, position: u64, parts: &[Bytes]) -> Result<Bytes, String> {
        let len: usize = parts.iter().map(Bytes::len).sum();
        if !position.is_multiple_of(SECTOR as u64) || !len.is_multiple_of(SECTOR) || len == 0 {
            return Err(format!("{file}: a write of {len} bytes at {position} is not in whole sectors"));
        }
        if sector(position) + len / SECTOR > self.known(file)?.durable.len() {
            return Err(format!("{file}: a write of {len} bytes at {position} passes the end of the file"));
        }
        let address = parts.iter().find(|p| !p.is_empty()).map_or(0, |p| p.as_ptr().addr());
        if !address.is_multiple_of(SECTOR) {
            return Err(format!(
                "{file}: a write at {position} from an address that is not a multiple of {SECTOR}"
            ));
        }
        let mut next = address;
        let mut data = BytesMut::with_capacity(len);
        for part in parts.iter().filter(|p| !p.is_empty()) {
            if part.as_ptr().addr() != next {
                return Err(format!("{file}: the parts of a write at {position} do not lie in one piece"));
            }
            next += part.len();
            data.extend_from_slice(part);
        }
        Ok(data.freeze())
    }

    /// Ends an operation that was submitted and not lost in a crash since.
    pub fn complete(&mut self, op: OpNo) -> DiskEvent {
        let flying = self.in_flight.remove(&op).expect("the world completes each operation once");
        match flying {
            InFlight::List => {
                let files = self.files.iter();
                let list = files.map(|(&no, f)| (no, (f.durable.len() * SECTOR) as u64)).collect();
                DiskEvent::Listed { op, result: Ok(list) }
            }
            InFlight::Prepare { file, size } => {
                let result = if self.faults.full {
                    Err(DiskError::NoSpace)
                } else {
                    self.create(file, size);
                    Ok(())
                };
                DiskEvent::Prepared { op, result }
            }
            InFlight::Write { file, first, data, sync } => {
                let failed = std::mem::take(&mut self.faults.fail_next_write);
                self.apply_write(file, first, &data, sync && !failed, failed);
                DiskEvent::Written { op, result: if failed { Err(DiskError::Io(5)) } else { Ok(()) } }
            }
            InFlight::Sync { file, up_to } => {
                if std::mem::take(&mut self.faults.fail_next_write) {
                    return DiskEvent::Synced { op, result: Err(DiskError::Io(5)) };
                }
                self.apply_sync(file, up_to);
                DiskEvent::Synced { op, result: Ok(()) }
            }
            InFlight::Read { file, position, len } => {
                let result = if std::mem::take(&mut self.faults.fail_next_read) {
                    Err(DiskError::Io(5))
                } else {
                    Ok(self.read(file, position, len))
                };
                DiskEvent::Read { op, result }
            }
        }
    }

    fn create(&mut self, file: FileNo, size: u64) {
        let durable = vec![Bytes::new(); sector(size)];
        self.files.insert(file, File { durable, unsynced: BTreeMap::new() });
    }

    fn apply_write(&mut self, file: FileNo, first: usize, data: &Bytes, durable: bool, torn: bool) {
        let f = self.files.get_mut(&file).expect("checked when the write was given");
        for i in 0..data.len() / SECTOR {
            let mut new = data.slice(i * SECTOR..(i + 1) * SECTOR);
            let at = first + i;
            if durable {
                f.durable[at] = new;
                f.unsynced.remove(&at);
                continue;
            }
            if torn {
                let old = visible(f, at).clone();
                new = tear(&mut self.rng, &old, &new);
            }
            self.version += 1;
            f.unsynced.entry(at).or_default().push(Version { number: self.version, data: new });
        }
    }

    fn apply_sync(&mut self, file: FileNo, up_to: u64) {
        let f = self.files.get_mut(&file).expect("checked when the sync was given");
        let durable = &mut f.durable;
        f.unsynced.retain(|&at, versions| {
            while versions.first().is_some_and(|v| v.number <= up_to) {
                durable[at] = versions.remove(0).data;
            }
            !versions.is_empty()
        });
    }

    fn read(&mut self, file: FileNo, position: u64, len: u32) -> Bytes {
        let f = &self.files[&file];
        let size = f.durable.len() * SECTOR;
        let start = usize::try_from(position).expect("a position in memory").min(size);
        let end = start.saturating_add(len as usize).min(size);
        let mut out = BytesMut::with_capacity(end - start);
        let mut at = start;
        while at < end {
            let (n, within) = (at / SECTOR, at % SECTOR);
            let take = (SECTOR - within).min(end - at);
            let data = visible(f, n);
            if data.is_empty() {
                out.resize(out.len() + take, 0);
            } else {
                out.extend_from_slice(&data[within..within + take]);
            }
            at += take;
        }
        out.freeze()
    }

    /// The process that used the disk is gone; what it had in flight comes to nothing or something.
    pub fn crash(&mut self, crash: Crash) {
        let mood = Mood::draw(&mut self.rng);
        for flying in std::mem::take(&mut self.in_flight).into_values() {
            match flying {
                InFlight::Prepare { file, size } if mood.keeps(&mut self.rng) && !self.faults.full => {
                    self.create(file, size);
                }
                InFlight::Write { file, first, data, .. } => self.half_apply(mood, file, first, &data),
                InFlight::List | InFlight::Prepare { .. } | InFlight::Sync { .. } | InFlight::Read { .. } => {
                }
            }
        }
        if crash == Crash::Power {
            self.lose_power(mood);
        }
    }

    /// A write that was in flight when its process ended: any of its sectors may have arrived.
    fn half_apply(&mut self, mood: Mood, file: FileNo, first: usize, data: &Bytes) {
        for i in 0..data.len() / SECTOR {
            let new = data.slice(i * SECTOR..(i + 1) * SECTOR);
            if mood.keeps(&mut self.rng) {
                self.apply_write(file, first + i, &new, false, false);
            } else if mood.tears(&mut self.rng) {
                self.apply_write(file, first + i, &new, false, true);
            }
        }
    }

    fn lose_power(&mut self, mood: Mood) {
        for f in self.files.values_mut() {
            for (at, versions) in std::mem::take(&mut f.unsynced) {
                // Any version since the durable one may be what the platter has.
                let chosen = &versions[self.rng.index(versions.len())].data;
                if mood.keeps(&mut self.rng) {
                    f.durable[at] = chosen.clone();
                } else if mood.tears(&mut self.rng) {
                    f.durable[at] = tear(&mut self.rng, &f.durable[at], chosen);
                }
            }
        }
    }

    /// Flips one bit of one sector that is not zeros; false when there is none.
    pub fn rot(&mut self) -> bool {
        let written = self.files.iter().flat_map(|(&no, f)| {
            f.durable.iter().enumerate().filter(|(_, s)| !s.is_empty()).map(move |(at, _)| (no, at))
        });
        let written: Vec<_> = written.collect();
        if written.is_empty() {
            return false;
        }
        let (file, at) = *self.rng.pick(&written);
        let sector = &mut self.files.get_mut(&file).expect("listed").durable[at];
        let mut bytes = BytesMut::from(&sector[..]);
        let bit = self.rng.index(SECTOR * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        *sector = bytes.freeze();
        true
    }
}

/// How kindly a crash treats what was not durable.
#[derive(Clone, Copy, Debug)]
struct Mood {
    keep: u32,
    tear: u32,
}

impl Mood {
    fn draw(rng: &mut Rng) -> Self {
        match rng.below(4) {
            0 => Self { keep: 0, tear: 0 },
            1 => Self { keep: 1000, tear: 0 },
            2 => Self { keep: 500, tear: 500 },
            _ => Self { keep: u32::try_from(rng.below(1001)).expect("small"), tear: 300 },
        }
    }

    fn keeps(self, rng: &mut Rng) -> bool {
        rng.chance(self.keep)
    }

    fn tears(self, rng: &mut Rng) -> bool {
        rng.chance(self.tear)
    }
}

fn visible(file: &File, at: usize) -> &Bytes {
    file.unsynced.get(&at).and_then(|v| v.last()).map_or(&file.durable[at], |v| &v.data)
}

/// A mixture of two contents of one sector: the head of one and the tail of the other, or by 512-byte pieces.
fn tear(rng: &mut Rng, old: &Bytes, new: &Bytes) -> Bytes {
    let zeros = [0; SECTOR];
    let old: &[u8] = if old.is_empty() { &zeros } else { old };
    let mut out = BytesMut::from(old);
    match rng.below(3) {
        0 => {
            let cut = rng.index(SECTOR);
            out[..cut].copy_from_slice(&new[..cut]);
        }
        1 => {
            let cut = rng.index(SECTOR);
            out[cut..].copy_from_slice(&new[cut..]);
        }
        _ => {
            let pieces = rng.draw();
            for piece in (0..SECTOR / 512).filter(|p| pieces >> p & 1 == 1) {
                let range = piece * 512..(piece + 1) * 512;
                out[range.clone()].copy_from_slice(&new[range]);
            }
        }
    }
    out.freeze()
}

fn sector(position: u64) -> usize {
    usize::try_from(position / SECTOR as u64).expect("a position in memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileNo = FileNo(3);

    fn disk(seed: u64) -> SimDisk {
        let range = Duration::from_micros(1)..Duration::from_micros(9);
        let config =
            DiskConfig { write: range.clone(), sync: range.clone(), read: range.clone(), prepare: range };
        let mut disk = SimDisk::new(config, Rng::new(seed, "disk", 0));
        finish(&mut disk, DiskOp::Prepare { op: OpNo(0), file: FILE, size: 4 * SECTOR as u64 });
        disk
    }

    /// One sector of `byte`, at an address that direct I/O takes.
    fn sector_of(byte: u8) -> Bytes {
        let buffer = Bytes::from(vec![byte; 2 * SECTOR]);
        let start = buffer.as_ptr().align_offset(SECTOR);
        buffer.slice(start..start + SECTOR)
    }

    fn write(op: u64, at: u64, byte: u8, sync: bool) -> DiskOp {
        let position = at * SECTOR as u64;
        DiskOp::Write { op: OpNo(op), file: FILE, position, parts: vec![sector_of(byte)], sync }
    }

    fn finish(disk: &mut SimDisk, op: DiskOp) -> DiskEvent {
        let (no, _) = disk.submit(op).unwrap();
        disk.complete(no)
    }

    fn first_byte(disk: &mut SimDisk, at: u64) -> u8 {
        let read = DiskOp::Read {
            op: OpNo(99),
            file: FileName::Journal(FILE),
            position: at * SECTOR as u64,
            len: 1,
        };
        match finish(disk, read) {
            DiskEvent::Read { result, .. } => result.unwrap()[0],
            other => panic!("{other:?}"),
        }
    }

    /// What a sector may be after a power loss, over many disks.
    fn outcomes(at: u64, crash: Crash, act: impl Fn(&mut SimDisk)) -> Vec<u8> {
        let mut seen: Vec<u8> = (0..200)
            .map(|seed| {
                let mut d = disk(seed);
                act(&mut d);
                d.crash(crash);
                first_byte(&mut d, at)
            })
            .collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    #[test]
    fn a_synced_write_survives_and_an_unsynced_one_may_not() {
        let seen = outcomes(0, Crash::Power, |d| drop(finish(d, write(1, 0, 7, true))));
        assert_eq!(seen, [7]);
        let seen = outcomes(0, Crash::Power, |d| drop(finish(d, write(1, 0, 7, false))));
        assert_eq!(seen, [0, 7]);
        let seen = outcomes(0, Crash::Kill, |d| drop(finish(d, write(1, 0, 7, false))));
        assert_eq!(seen, [7], "what the kernel took outlives the process");
    }

    #[test]
    fn a_synced_write_says_nothing_of_earlier_ones() {
        let seen = outcomes(0, Crash::Power, |d| {
            finish(d, write(1, 0, 7, false));
            finish(d, write(2, 1, 8, true));
        });
        assert_eq!(seen, [0, 7]);
    }

    #[test]
    fn a_sync_covers_what_was_done_when_it_was_asked_for_and_nothing_later() {
        let sync = |d: &mut SimDisk| {
            finish(d, write(1, 0, 7, false));
            let (flying, _) = d.submit(write(2, 1, 8, false)).unwrap();
            let (sync, _) = d.submit(DiskOp::Sync { op: OpNo(3), file: FileName::Journal(FILE) }).unwrap();
            d.complete(flying);
            d.complete(sync);
        };
        assert_eq!(outcomes(0, Crash::Power, sync), [7]);
        assert_eq!(outcomes(1, Crash::Power, sync), [0, 8]);
    }

    #[test]
    fn a_write_in_flight_is_kept_lost_or_torn_but_never_spreads() {
        let fly = |d: &mut SimDisk| {
            d.submit(write(1, 1, 7, true)).unwrap();
        };
        assert_eq!(outcomes(1, Crash::Power, fly), [0, 7]);
        assert_eq!(outcomes(0, Crash::Power, fly), [0]);
        assert_eq!(outcomes(2, Crash::Power, fly), [0]);
    }

    #[test]
    fn breaches_of_the_contract_are_refused() {
        let mut d = disk(1);
        let parts = vec![sector_of(1)];
        let unaligned =
            DiskOp::Write { op: OpNo(1), file: FILE, position: 1, parts: parts.clone(), sync: true };
        d.submit(unaligned).unwrap_err();
        d.submit(write(1, 4, 1, true)).unwrap_err();
        let apart = vec![sector_of(1), sector_of(2)];
        d.submit(DiskOp::Write { op: OpNo(1), file: FILE, position: 0, parts: apart, sync: true })
            .unwrap_err();
        let unknown = FileNo(9);
        d.submit(DiskOp::Write { op: OpNo(1), file: unknown, position: 0, parts, sync: true }).unwrap_err();
        d.submit(write(1, 0, 1, true)).unwrap();
        d.submit(write(1, 1, 1, true)).unwrap_err();
    }
}
