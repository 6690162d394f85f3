//! A disk in memory, of files and folders, that forgets what was not synced.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::ids::PartitionId;
use crate::log::disk::{DiskError, DiskEvent, DiskOp, FileName, SECTOR};
use crate::log::random::Random;

#[derive(Clone, Default, Debug)]
pub struct File {
    /// What a sync has made durable.
    durable: Vec<u8>,
    pub content: Vec<u8>,
    /// Counts changes, so that a sync covers those before it was asked for only.
    version: u64,
    /// Contents since the last sync, by version.
    since: Vec<(u64, Vec<u8>)>,
    /// Whether the name survives.
    is_named: bool,
}

impl File {
    fn changed(&mut self, version: u64) {
        self.version = version;
        self.since.push((version, self.content.clone()));
    }

    fn synced(&mut self, upto: u64) {
        if let Some((_, content)) = self.since.iter().rev().find(|(version, _)| *version <= upto) {
            self.durable = content.clone();
        }
        self.since.retain(|(version, _)| *version > upto);
    }

    /// What a power loss leaves: of each sector what was durable or what was written since.
    fn torn(&self, random: &mut Random) -> Vec<u8> {
        if self.since.is_empty() {
            return self.durable.clone();
        }
        let pick = match random.below(3) {
            0 => return self.durable.clone(),
            1 => self.content.clone(),
            _ => {
                let (_, some) = &self.since[random.below(self.since.len())];
                some.clone()
            }
        };
        // Blocks of it never came: zeros, or what was there.
        let mut out = pick;
        if random.one_in(2) {
            for (at, block) in out.chunks_mut(512).enumerate() {
                if random.one_in(4) {
                    for (i, byte) in block.iter_mut().enumerate() {
                        *byte = self.durable.get(at * 512 + i).copied().unwrap_or(0);
                    }
                }
            }
        }
        // What was synced and not written since is there.
        for (at, byte) in self.durable.iter().enumerate() {
            let is_touched = self.since.iter().any(|(_, c)| c.get(at) != Some(byte));
            if !is_touched && at < out.len() {
                out[at] = *byte;
            }
        }
        out
    }
}

#[derive(Clone, Default, Debug)]
pub struct Disk {
    pub files: BTreeMap<FileName, File>,
    /// Removed, which no folder sync covers.
    ghosts: BTreeMap<FileName, File>,
    pub in_flight: Vec<(DiskOp, u64)>,
    version: u64,
    pub is_full: bool,
    /// Operations that ended.
    pub done: u64,
    /// Planted: syncs of segments do nothing.
    pub skips_segment_syncs: bool,
    /// Planted: syncs of folders do nothing.
    pub skips_folder_syncs: bool,
    /// Reads of segments so far.
    pub segment_reads: u64,
}

fn folder_of(file: FileName) -> Option<PartitionId> {
    match file {
        FileName::Segment(name) | FileName::Index(name) => Some(name.partition),
        _ => None,
    }
}

impl Disk {
    pub fn submit(&mut self, op: DiskOp) {
        match &op {
            DiskOp::Write { position, parts, .. } => {
                let len: usize = parts.iter().map(Bytes::len).sum();
                assert!(len > 0 && len.is_multiple_of(SECTOR) && position.is_multiple_of(SECTOR as u64));
            }
            DiskOp::Put { file, parts, .. } => {
                assert!(parts.len() <= crate::log::disk::PUT_PARTS_MAX, "{file}: {}", parts.len());
                assert!(parts.iter().map(Bytes::len).sum::<usize>() > 0);
                let other = self.in_flight.iter().any(
                    |(op, _)| matches!(op, DiskOp::Put { file: f, .. } | DiskOp::Cut { file: f, .. } if f == file),
                );
                assert!(!other, "{file}: one put at a time");
            }
            _ => {}
        }
        self.in_flight.push((op, self.version));
    }

    fn change(&mut self, file: FileName, change: impl FnOnce(&mut Vec<u8>)) {
        self.version += 1;
        let version = self.version;
        let f = self.files.entry(file).or_default();
        change(&mut f.content);
        f.changed(version);
    }

    fn put(&mut self, file: FileName, position: u64, bytes: &[u8]) {
        self.change(file, |content| {
            let at = position as usize;
            if content.len() < at + bytes.len() {
                content.resize(at + bytes.len(), 0);
            }
            content[at..at + bytes.len()].copy_from_slice(bytes);
        });
    }

    fn make_durable(&mut self, file: FileName) {
        let f = self.files.get_mut(&file).expect("it is there");
        f.durable = f.content.clone();
        f.since.clear();
        f.is_named = true;
    }

    fn remove(&mut self, file: FileName) {
        if let Some(f) = self.files.remove(&file)
            && f.is_named
        {
            self.ghosts.insert(file, f);
        }
    }

    fn files_of(&self, partition: PartitionId) -> Vec<FileName> {
        self.files.keys().copied().filter(|&f| folder_of(f) == Some(partition)).collect()
    }

    /// Ends one operation well, or for lack of room.
    pub fn complete(&mut self, index: usize) -> DiskEvent {
        let (op, covers) = self.in_flight.remove(index);
        self.done += 1;
        let full = self.is_full;
        match op {
            DiskOp::List { op } => {
                let journals = self.files.iter().filter_map(|(name, f)| match name {
                    FileName::Journal(no) => Some((*no, f.content.len() as u64)),
                    _ => None,
                });
                DiskEvent::Listed { op, result: Ok(journals.collect()) }
            }
            DiskOp::Prepare { op, .. } if full => DiskEvent::Prepared { op, result: Err(DiskError::NoSpace) },
            DiskOp::Prepare { op, file, size } => {
                let file = FileName::Journal(file);
                self.files.insert(file, File::default());
                self.put(file, 0, &vec![0; size as usize]);
                self.make_durable(file);
                DiskEvent::Prepared { op, result: Ok(()) }
            }
            DiskOp::Recycle { op, from, to } => {
                let f = self.files.remove(&FileName::Journal(from)).expect("it was there");
                assert!(self.files.insert(FileName::Journal(to), f).is_none());
                DiskEvent::Prepared { op, result: Ok(()) }
            }
            DiskOp::Write { op, file, position, parts, sync } => {
                let file = FileName::Journal(file);
                self.put(file, position, &parts.concat());
                if sync {
                    self.make_durable(file);
                }
                DiskEvent::Written { op, result: Ok(()) }
            }
            DiskOp::Put { op, .. } if full => DiskEvent::Written { op, result: Err(DiskError::NoSpace) },
            DiskOp::Put { op, file, position, parts } => {
                self.put(file, position, &parts.concat());
                DiskEvent::Written { op, result: Ok(()) }
            }
            DiskOp::Sync { op, file } => {
                let skips = self.skips_segment_syncs && folder_of(file).is_some();
                let result = match self.files.get_mut(&file) {
                    None => Err(DiskError::Missing),
                    Some(_) if skips => Ok(()),
                    Some(f) => {
                        f.synced(covers);
                        Ok(())
                    }
                };
                DiskEvent::Synced { op, result }
            }
            DiskOp::SyncFolder { op, partition } => {
                if !self.skips_folder_syncs {
                    for file in self.files_of(partition) {
                        self.files.get_mut(&file).expect("it was listed").is_named = true;
                    }
                    self.ghosts.retain(|&file, _| folder_of(file) != Some(partition));
                }
                DiskEvent::Synced { op, result: Ok(()) }
            }
            DiskOp::Read { op, file, position, len } => {
                self.segment_reads += u64::from(matches!(file, FileName::Segment(_)));
                let result = match self.files.get(&file) {
                    None => Err(DiskError::Missing),
                    Some(f) => {
                        let start = (position as usize).min(f.content.len());
                        let end = (start + len as usize).min(f.content.len());
                        Ok(Bytes::copy_from_slice(&f.content[start..end]))
                    }
                };
                DiskEvent::Read { op, result }
            }
            DiskOp::Replace { op, .. } if full => DiskEvent::Done { op, result: Err(DiskError::NoSpace) },
            DiskOp::Replace { op, file, parts } => {
                self.files.insert(file, File::default());
                self.put(file, 0, &parts.concat());
                self.make_durable(file);
                DiskEvent::Done { op, result: Ok(()) }
            }
            DiskOp::Load { op, file } => {
                let content = self.files.get(&file).map(|f| Bytes::copy_from_slice(&f.content));
                DiskEvent::Loaded { op, result: Ok(content) }
            }
            DiskOp::Cut { op, file, len } => {
                if self.files.get(&file).is_some_and(|f| f.content.len() as u64 > len) {
                    self.change(file, |content| content.truncate(len as usize));
                }
                DiskEvent::Done { op, result: Ok(()) }
            }
            DiskOp::Remove { op, file } => {
                self.remove(file);
                DiskEvent::Done { op, result: Ok(()) }
            }
            DiskOp::RemoveFolder { op, partition } => {
                for file in self.files_of(partition) {
                    self.remove(file);
                }
                DiskEvent::Done { op, result: Ok(()) }
            }
            DiskOp::ListFolder { op, partition } => {
                let files = self.files_of(partition).into_iter();
                let files = files.map(|f| (f, self.files[&f].content.len() as u64)).collect();
                DiskEvent::FolderListed { op, result: Ok(files) }
            }
            DiskOp::ListFolders { op } => {
                let folders: BTreeSet<PartitionId> =
                    self.files.keys().filter_map(|&f| folder_of(f)).collect();
                DiskEvent::FoldersListed { op, result: Ok(folders.into_iter().collect()) }
            }
        }
    }

    /// Ends one operation badly.
    pub fn fail(&mut self, index: usize, error: DiskError) -> DiskEvent {
        let (op, _) = self.in_flight.remove(index);
        match op {
            DiskOp::Put { op, .. } => DiskEvent::Written { op, result: Err(error) },
            DiskOp::Sync { op, .. } | DiskOp::SyncFolder { op, .. } => {
                DiskEvent::Synced { op, result: Err(error) }
            }
            DiskOp::Replace { op, .. } => DiskEvent::Done { op, result: Err(error) },
            other => panic!("{other:?} is not made to fail"),
        }
    }

    /// What was under way reaches the disk or not. Then power is lost, or only the process ends.
    pub fn crash(&mut self, random: &mut Random, with_power: bool) {
        while !self.in_flight.is_empty() {
            let index = random.below(self.in_flight.len());
            if random.one_in(2) {
                self.complete(index);
            } else {
                self.in_flight.remove(index);
            }
        }
        if !with_power {
            return;
        }
        for (file, f) in std::mem::take(&mut self.ghosts) {
            if random.one_in(2) {
                self.files.entry(file).or_insert(f);
            }
        }
        for (file, mut f) in std::mem::take(&mut self.files) {
            if !f.is_named && folder_of(file).is_some() && random.one_in(2) {
                continue;
            }
            f.content = f.torn(random);
            f.durable = f.content.clone();
            f.since.clear();
            f.is_named = true;
            self.files.insert(file, f);
        }
    }
}
