//! A simulated disk: what one shard has on it, with what is durable and what is not yet.
//!
//! It promises exactly what `highwater_shards::log::disk` documents and nothing more. What was written and not synced
//! is, piece by piece and independently, kept, lost or torn when the power goes; a file's length, and whether a name
//! is there, are as open until they are synced. A sync that failed leaves its pages clean and not durable, as Linux
//! does. The model follows TigerBeetle's simulated storage.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use highwater_shards::ids::PartitionId;
use highwater_shards::log::disk::{
    DiskError, DiskEvent, DiskOp, FileName, FileNo, OpNo, PUT_PARTS_MAX, SECTOR,
};

use crate::rng::Rng;

mod folders;
mod mood;
mod pages;
mod sectors;
#[cfg(test)]
mod tests;

use folders::{Folders, Inode, partition_of};
use mood::Mood;
use sectors::{SectorFile, sector};

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
    /// What a new file, a put or a checkpoint needs finds no room.
    pub full: bool,
    /// The next write or sync of any kind fails, and so may a cut.
    pub fail_next_write: bool,
    /// The next sync of a file or a folder fails, or the next write that asks for one.
    pub fail_next_sync: bool,
    /// The next read, load or list of folders fails.
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

#[derive(Debug)]
enum InFlight {
    List,
    Prepare {
        file: FileNo,
        size: u64,
        asked: u64,
    },
    Recycle {
        from: FileNo,
        to: FileNo,
        asked: u64,
    },
    Write {
        file: FileNo,
        first: usize,
        data: Bytes,
        sync: bool,
    },
    SyncJournal {
        file: FileNo,
        asked: u64,
    },
    ReadJournal {
        file: FileNo,
        position: u64,
        len: u32,
    },
    Put {
        inode: Inode,
        position: usize,
        parts: Vec<Bytes>,
        len: usize,
    },
    Sync {
        inode: Inode,
        asked: u64,
    },
    Read {
        inode: Inode,
        position: u64,
        len: u32,
    },
    /// Of a segment or an index that is not there.
    Missing {
        is_sync: bool,
    },
    Cut {
        inode: Option<Inode>,
        len: usize,
    },
    SyncFolder {
        partition: PartitionId,
        asked: u64,
    },
    Replace {
        content: Bytes,
        asked: u64,
    },
    Load,
    Remove {
        file: FileName,
    },
    RemoveFolder {
        partition: PartitionId,
    },
    ListFolder {
        partition: PartitionId,
    },
    ListFolders,
}

#[derive(Debug)]
pub struct SimDisk {
    config: DiskConfig,
    pub faults: DiskFaults,
    journals: BTreeMap<FileNo, SectorFile>,
    /// Journal files that were removed, by the number of that change, until their folder is synced.
    removed: BTreeMap<FileNo, (u64, SectorFile)>,
    checkpoint: Option<Bytes>,
    folders: Folders,
    in_flight: BTreeMap<OpNo, InFlight>,
    /// The number of the last change to anything.
    changes: u64,
    rng: Rng,
}

impl SimDisk {
    pub fn new(config: DiskConfig, rng: Rng) -> Self {
        Self {
            config,
            faults: DiskFaults::default(),
            journals: BTreeMap::new(),
            removed: BTreeMap::new(),
            checkpoint: None,
            folders: Folders::default(),
            in_flight: BTreeMap::new(),
            changes: 0,
            rng,
        }
    }

    /// Takes an operation and says after how long [`SimDisk::complete`] is to be called.
    ///
    /// # Errors
    ///
    /// What the caller did that the contract forbids.
    pub fn submit(&mut self, op: DiskOp) -> Result<(OpNo, Duration), String> {
        let asked = self.changes;
        let (write, sync, read) = (&self.config.write, &self.config.sync, &self.config.read);
        let (no, usual) = match &op {
            DiskOp::Write { op, sync: false, .. } | DiskOp::Put { op, .. } => (*op, write.clone()),
            DiskOp::Write { op, .. }
            | DiskOp::Sync { op, .. }
            | DiskOp::SyncFolder { op, .. }
            | DiskOp::Recycle { op, .. }
            | DiskOp::Replace { op, .. }
            | DiskOp::Cut { op, .. }
            | DiskOp::Remove { op, .. }
            | DiskOp::RemoveFolder { op, .. } => (*op, sync.clone()),
            DiskOp::List { op }
            | DiskOp::Read { op, .. }
            | DiskOp::Load { op, .. }
            | DiskOp::ListFolder { op, .. }
            | DiskOp::ListFolders { op } => (*op, read.clone()),
            DiskOp::Prepare { op, .. } => (*op, self.config.prepare.clone()),
        };
        if self.in_flight.contains_key(&no) {
            return Err(format!("{no:?} is given while an operation of that number is in flight"));
        }
        let flying = match op {
            DiskOp::List { .. } => InFlight::List,
            DiskOp::Prepare { file, size, .. } => {
                if size == 0 || !size.is_multiple_of(SECTOR as u64) {
                    return Err(format!("{file} is prepared with {size} bytes, no whole sectors"));
                }
                InFlight::Prepare { file, size, asked }
            }
            DiskOp::Recycle { from, to, .. } => {
                self.check_recycle(from, to)?;
                InFlight::Recycle { from, to, asked }
            }
            DiskOp::Write { file, position, parts, sync, .. } => {
                let data = self.check_write(file, position, &parts)?;
                InFlight::Write { file, first: sector(position), data, sync }
            }
            DiskOp::Put { file, position, parts, .. } => self.put(file, position, parts)?,
            DiskOp::Sync { file: FileName::Journal(file), .. } => {
                self.journal(file)?;
                InFlight::SyncJournal { file, asked }
            }
            DiskOp::Sync { file, .. } => {
                in_folder(file)?;
                match self.folders.find(file) {
                    Some(inode) => {
                        inode.borrow_mut().ask_sync(asked);
                        InFlight::Sync { inode: Rc::clone(inode), asked }
                    }
                    None => InFlight::Missing { is_sync: true },
                }
            }
            DiskOp::SyncFolder { partition, .. } => InFlight::SyncFolder { partition, asked },
            DiskOp::Read { file: FileName::Journal(file), position, len, .. } => {
                self.journal(file)?;
                InFlight::ReadJournal { file, position, len }
            }
            DiskOp::Read { file, position, len, .. } => {
                in_folder(file)?;
                match self.folders.find(file) {
                    Some(inode) => InFlight::Read { inode: Rc::clone(inode), position, len },
                    None => InFlight::Missing { is_sync: false },
                }
            }
            DiskOp::Replace { file, parts, .. } => {
                is_checkpoint(file)?;
                if self.in_flight.values().any(|f| matches!(f, InFlight::Replace { .. })) {
                    return Err("the checkpoint is replaced while it is being replaced".into());
                }
                InFlight::Replace { content: parts.concat().into(), asked }
            }
            DiskOp::Load { file, .. } => {
                is_checkpoint(file)?;
                InFlight::Load
            }
            DiskOp::Cut { file, len, .. } => self.cut(file, len)?,
            DiskOp::Remove { file, .. } => {
                if file == FileName::Checkpoint {
                    return Err("the checkpoint is replaced, never removed".into());
                }
                InFlight::Remove { file }
            }
            DiskOp::RemoveFolder { partition, .. } => InFlight::RemoveFolder { partition },
            DiskOp::ListFolder { partition, .. } => InFlight::ListFolder { partition },
            DiskOp::ListFolders { .. } => InFlight::ListFolders,
        };
        self.in_flight.insert(no, flying);
        let factor = self.faults.slow.max(1);
        Ok((no, self.rng.tailed(&usual) * factor))
    }

    fn journal(&self, file: FileNo) -> Result<&SectorFile, String> {
        self.journals.get(&file).ok_or_else(|| format!("{file} does not exist"))
    }

    fn check_recycle(&self, from: FileNo, to: FileNo) -> Result<(), String> {
        self.journal(from)?;
        let makes_to = |f: &InFlight| match f {
            InFlight::Prepare { file, .. } => *file == to,
            InFlight::Recycle { to: other, .. } => *other == to,
            _ => false,
        };
        if self.journals.contains_key(&to) || self.in_flight.values().any(makes_to) {
            return Err(format!("{from} is to become {to}, which exists"));
        }
        let uses_from = |f: &InFlight| match f {
            InFlight::Write { file, .. }
            | InFlight::SyncJournal { file, .. }
            | InFlight::ReadJournal { file, .. }
            | InFlight::Remove { file: FileName::Journal(file) }
            | InFlight::Recycle { from: file, .. } => *file == from,
            _ => false,
        };
        if self.in_flight.values().any(uses_from) {
            return Err(format!("{from} is recycled while it is used"));
        }
        Ok(())
    }

    fn check_write(&self, file: FileNo, position: u64, parts: &[Bytes]) -> Result<Bytes, String> {
        let len: usize = parts.iter().map(Bytes::len).sum();
        if !position.is_multiple_of(SECTOR as u64) || !len.is_multiple_of(SECTOR) || len == 0 {
            return Err(format!("{file}: a write of {len} bytes at {position} is not in whole sectors"));
        }
        if sector(position) + len / SECTOR > self.journal(file)?.sectors() {
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

    /// Takes a put, and makes its file if it is missing, as the kernel does when it is opened.
    fn put(&mut self, file: FileName, position: u64, parts: Vec<Bytes>) -> Result<InFlight, String> {
        let partition = in_folder(file)?;
        if parts.len() > PUT_PARTS_MAX {
            return Err(format!("{file}: a put of {} parts", parts.len()));
        }
        self.check_not_removed(file, partition)?;
        let len = parts.iter().map(Bytes::len).sum();
        let position = usize::try_from(position).map_err(|_| format!("{file}: a put at {position}"))?;
        let end = position.checked_add(len).ok_or_else(|| format!("{file}: a put at {position}"))?;
        self.changes += 1;
        let inode = self.folders.make(file, partition, self.changes);
        for flying in self.in_flight.values() {
            match flying {
                InFlight::Put { inode: other, position: p, len: l, .. }
                    if Rc::ptr_eq(other, &inode) && *p < end && position < p + l =>
                {
                    return Err(format!("{file}: a put at {position} lies over another one at {p}"));
                }
                InFlight::Cut { inode: Some(other), len: l } if Rc::ptr_eq(other, &inode) && *l < end => {
                    return Err(format!("{file}: a put at {position} while it is cut to {l}"));
                }
                _ => {}
            }
        }
        Ok(InFlight::Put { inode, position, parts, len })
    }

    fn cut(&mut self, file: FileName, len: u64) -> Result<InFlight, String> {
        let partition = in_folder(file)?;
        self.check_not_removed(file, partition)?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let inode = self.folders.find(file).map(Rc::clone);
        let put_behind = |f: &InFlight| match (f, &inode) {
            (InFlight::Put { inode: other, position, len: l, .. }, Some(inode)) => {
                Rc::ptr_eq(other, inode) && position + l > len
            }
            _ => false,
        };
        if self.in_flight.values().any(put_behind) {
            return Err(format!("{file}: it is cut to {len} while a put behind that is in flight"));
        }
        Ok(InFlight::Cut { inode, len })
    }

    fn check_not_removed(&self, file: FileName, partition: PartitionId) -> Result<(), String> {
        let removes = |f: &InFlight| match f {
            InFlight::Remove { file: other } => *other == file,
            InFlight::RemoveFolder { partition: other } => *other == partition,
            _ => false,
        };
        if self.in_flight.values().any(removes) {
            return Err(format!("{file} is written while it is being removed"));
        }
        Ok(())
    }

    /// Ends an operation that was submitted and not lost in a crash since.
    pub fn complete(&mut self, op: OpNo) -> DiskEvent {
        let flying = self.in_flight.remove(&op).expect("the world completes each operation once");
        match flying {
            InFlight::List => {
                let list = self.journals.iter().map(|(&no, f)| (no, f.len())).collect();
                DiskEvent::Listed { op, result: Ok(list) }
            }
            InFlight::Prepare { file, size, asked } => {
                let result = self.room().map(|()| self.create(file, size, asked));
                DiskEvent::Prepared { op, result }
            }
            InFlight::Recycle { from, to, asked } => {
                self.rename(from, to, asked);
                DiskEvent::Prepared { op, result: Ok(()) }
            }
            InFlight::Write { file, first, data, sync } => {
                let result = if sync { self.sync_works() } else { self.write_works() };
                self.write(file, first, &data, sync && result.is_ok(), result.is_err());
                DiskEvent::Written { op, result }
            }
            InFlight::SyncJournal { file, asked } => {
                let result = self.sync_works();
                if result.is_ok()
                    && let Some(f) = self.journals.get_mut(&file)
                {
                    f.sync(asked);
                }
                DiskEvent::Synced { op, result }
            }
            InFlight::ReadJournal { file, position, len } => {
                let result = self.read_works().and_then(|()| match self.journals.get(&file) {
                    Some(f) => Ok(f.read(position, len)),
                    None => Err(DiskError::Missing),
                });
                DiskEvent::Read { op, result }
            }
            InFlight::Put { inode, position, parts, len } => {
                let result = self.room().and_then(|()| self.write_works());
                let take = if result.is_ok() { len } else { self.rng.index(len + 1) };
                self.changes += 1;
                inode.borrow_mut().write(position, &parts, take, self.changes);
                DiskEvent::Written { op, result }
            }
            InFlight::Sync { inode, asked } => {
                let result = self.sync_works();
                match result {
                    Ok(()) => inode.borrow_mut().sync(asked),
                    Err(_) => inode.borrow_mut().fail_sync(),
                }
                DiskEvent::Synced { op, result }
            }
            InFlight::Read { inode, position, len } => {
                let result = self.read_works().map(|()| inode.borrow().read(position, len));
                DiskEvent::Read { op, result }
            }
            InFlight::Missing { is_sync: true } => DiskEvent::Synced { op, result: Err(DiskError::Missing) },
            InFlight::Missing { is_sync: false } => DiskEvent::Read { op, result: Err(DiskError::Missing) },
            InFlight::Cut { inode, len } => {
                let result = self.write_works();
                if let (Ok(()), Some(inode)) = (result, inode) {
                    self.changes += 1;
                    inode.borrow_mut().cut(len, self.changes);
                }
                DiskEvent::Done { op, result }
            }
            InFlight::SyncFolder { partition, asked } => {
                let result = self.sync_works().map(|()| self.folders.sync(partition, asked));
                DiskEvent::Synced { op, result }
            }
            InFlight::Replace { content, asked } => {
                let result = self.room().and_then(|()| self.sync_works());
                if result.is_ok() {
                    self.replace(content, asked);
                }
                DiskEvent::Done { op, result }
            }
            InFlight::Load => {
                let result = self.read_works().map(|()| self.checkpoint.clone());
                DiskEvent::Loaded { op, result }
            }
            InFlight::Remove { file } => {
                self.remove(file);
                DiskEvent::Done { op, result: Ok(()) }
            }
            InFlight::RemoveFolder { partition } => {
                self.changes += 1;
                self.folders.remove_folder(partition, self.changes);
                DiskEvent::Done { op, result: Ok(()) }
            }
            InFlight::ListFolder { partition } => {
                let result = self.read_works().map(|()| {
                    let files = self.folders.files_of(partition).into_iter();
                    let size = |file| self.folders.find(file).expect("listed").borrow().len() as u64;
                    files.map(|file| (file, size(file))).collect()
                });
                DiskEvent::FolderListed { op, result }
            }
            InFlight::ListFolders => {
                let result = self.read_works().map(|()| self.folders.partitions());
                DiskEvent::FoldersListed { op, result }
            }
        }
    }

    fn room(&self) -> Result<(), DiskError> {
        if self.faults.full { Err(DiskError::NoSpace) } else { Ok(()) }
    }

    fn write_works(&mut self) -> Result<(), DiskError> {
        works(&mut self.faults.fail_next_write)
    }

    fn sync_works(&mut self) -> Result<(), DiskError> {
        works(&mut self.faults.fail_next_sync).and_then(|()| self.write_works())
    }

    fn read_works(&mut self) -> Result<(), DiskError> {
        works(&mut self.faults.fail_next_read)
    }

    fn create(&mut self, file: FileNo, size: u64, asked: u64) {
        self.journals.insert(file, SectorFile::zeros(size));
        self.sync_journals(file, asked);
    }

    fn rename(&mut self, from: FileNo, to: FileNo, asked: u64) {
        let f = self.journals.remove(&from).expect("checked when it was given");
        self.journals.insert(to, f);
        self.sync_journals(to, asked);
    }

    fn replace(&mut self, content: Bytes, asked: u64) {
        self.checkpoint = Some(content);
        self.removed.retain(|_, (number, _)| *number > asked);
    }

    /// The folder of the journal was synced, in which `file` is new.
    fn sync_journals(&mut self, file: FileNo, asked: u64) {
        self.removed.retain(|&no, (number, _)| *number > asked && no != file);
    }

    fn remove(&mut self, file: FileName) {
        self.changes += 1;
        if let FileName::Journal(no) = file {
            if let Some(f) = self.journals.remove(&no) {
                self.removed.insert(no, (self.changes, f));
            }
        } else {
            self.folders.remove(file, self.changes);
        }
    }

    fn write(&mut self, file: FileNo, first: usize, data: &Bytes, durable: bool, torn: bool) {
        let Some(f) = self.journals.get_mut(&file) else { return };
        for i in 0..data.len() / SECTOR {
            let new = data.slice(i * SECTOR..(i + 1) * SECTOR);
            self.changes += 1;
            if durable {
                f.write_durably(first + i, new);
            } else if torn {
                f.write_torn(first + i, &new, self.changes, &mut self.rng);
            } else {
                f.write(first + i, new, self.changes);
            }
        }
    }

    /// The process that used the disk is gone; what it had in flight comes to nothing or something.
    pub fn crash(&mut self, crash: Crash) {
        let mood = Mood::draw(&mut self.rng);
        for flying in std::mem::take(&mut self.in_flight).into_values() {
            self.half_do(mood, flying);
        }
        if crash == Crash::Power {
            for f in self.journals.values_mut() {
                f.lose_power(mood, &mut self.rng);
            }
            for (no, (_, mut f)) in std::mem::take(&mut self.removed) {
                // A number that was used again has the newer file.
                if !mood.keeps(&mut self.rng) && !self.journals.contains_key(&no) {
                    f.lose_power(mood, &mut self.rng);
                    self.journals.insert(no, f);
                }
            }
            self.folders.lose_power(mood, &mut self.rng);
        }
    }

    /// An operation that was in flight when its process ended.
    fn half_do(&mut self, mood: Mood, flying: InFlight) {
        match flying {
            InFlight::Write { file, first, data, .. } => self.half_write(mood, file, first, &data),
            InFlight::Put { inode, position, parts, len } => {
                let take = if mood.keeps(&mut self.rng) {
                    len
                } else if mood.tears(&mut self.rng) {
                    self.rng.index(len + 1)
                } else {
                    0
                };
                self.changes += 1;
                inode.borrow_mut().write(position, &parts, take, self.changes);
            }
            InFlight::RemoveFolder { partition } => {
                for file in self.folders.files_of(partition) {
                    if mood.keeps(&mut self.rng) {
                        self.remove(file);
                    }
                }
                if self.folders.files_of(partition).is_empty() && mood.keeps(&mut self.rng) {
                    self.changes += 1;
                    self.folders.remove_folder(partition, self.changes);
                }
            }
            InFlight::Prepare { .. } | InFlight::Replace { .. } if self.faults.full => {}
            InFlight::Prepare { file, size, asked } if mood.keeps(&mut self.rng) => {
                self.create(file, size, asked);
            }
            InFlight::Recycle { from, to, asked } if mood.keeps(&mut self.rng) => {
                self.rename(from, to, asked);
            }
            InFlight::Replace { content, asked } if mood.keeps(&mut self.rng) => {
                self.replace(content, asked);
            }
            InFlight::Cut { inode: Some(inode), len } if mood.keeps(&mut self.rng) => {
                self.changes += 1;
                inode.borrow_mut().cut(len, self.changes);
            }
            InFlight::Remove { file } if mood.keeps(&mut self.rng) => self.remove(file),
            _ => {}
        }
    }

    /// A write to a journal file: any of its sectors may have arrived.
    fn half_write(&mut self, mood: Mood, file: FileNo, first: usize, data: &Bytes) {
        for i in 0..data.len() / SECTOR {
            let new = data.slice(i * SECTOR..(i + 1) * SECTOR);
            if mood.keeps(&mut self.rng) {
                self.write(file, first + i, &new, false, false);
            } else if mood.tears(&mut self.rng) {
                self.write(file, first + i, &new, false, true);
            }
        }
    }

    /// Flips one bit of one sector of the journal that is not zeros; false when there is none.
    pub fn rot(&mut self) -> bool {
        let written = self.journals.iter().flat_map(|(&no, f)| f.written().map(move |at| (no, at)));
        let written: Vec<_> = written.collect();
        if written.is_empty() {
            return false;
        }
        let (file, at) = *self.rng.pick(&written);
        let bit = self.rng.index(SECTOR * 8);
        self.journals.get_mut(&file).expect("listed").flip(at, bit);
        true
    }

    /// Flips one bit of one of the segments and indexes that `which` names, and says where; nothing when all are empty.
    pub fn rot_file(&mut self, which: impl Fn(FileName) -> bool) -> Option<(FileName, u64)> {
        let files = self.folders.files().filter(|(file, inode)| which(*file) && inode.borrow().len() > 0);
        let files: Vec<FileName> = files.map(|(file, _)| file).collect();
        if files.is_empty() {
            return None;
        }
        let file = *self.rng.pick(&files);
        let mut inode = self.folders.find(file).expect("listed").borrow_mut();
        let at = self.rng.index(inode.len());
        inode.flip(at, self.rng.index(8));
        Some((file, at as u64))
    }

    /// Flips one bit of the checkpoint; false when there is none.
    pub fn rot_checkpoint(&mut self) -> bool {
        let Some(content) = self.checkpoint.as_ref().filter(|c| !c.is_empty()) else { return false };
        let mut bytes = BytesMut::from(&content[..]);
        let bit = self.rng.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        self.checkpoint = Some(bytes.freeze());
        true
    }

    /// Bytes of all files as they are seen: journal, and segments with their indexes.
    pub fn usage(&self) -> (u64, u64) {
        let journal = self.journals.values().map(SectorFile::len).sum();
        (journal, self.folders.files().map(|(_, inode)| inode.borrow().len() as u64).sum())
    }

    /// Operations that were submitted and not completed.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }
}

fn works(fails: &mut bool) -> Result<(), DiskError> {
    if std::mem::take(fails) { Err(DiskError::Io(5)) } else { Ok(()) }
}

fn in_folder(file: FileName) -> Result<PartitionId, String> {
    partition_of(file).ok_or_else(|| format!("{file} is neither a segment nor an index"))
}

fn is_checkpoint(file: FileName) -> Result<(), String> {
    if file == FileName::Checkpoint { Ok(()) } else { Err(format!("{file} is not the checkpoint")) }
}
