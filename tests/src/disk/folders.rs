//! The `partitions` folder of the simulated disk: which names there are, and which of them the power may take away.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use highwater_shards::ids::{Offset, PartitionId};
use highwater_shards::log::disk::{FileName, SegmentName};

use super::mood::Mood;
use super::pages::PageFile;
use crate::rng::Rng;

/// A file lives as long as a name, or an operation in flight, has it.
pub(super) type Inode = Rc<RefCell<PageFile>>;

/// Something with what it was before each unsynced change; the first of those is durable.
#[derive(Debug)]
struct Unsynced<T> {
    now: T,
    older: Vec<(u64, T)>,
}

impl<T: Clone> Unsynced<T> {
    fn new(now: T) -> Self {
        Self { now, older: Vec::new() }
    }

    fn set(&mut self, to: T, number: u64) {
        let before = std::mem::replace(&mut self.now, to);
        self.older.push((number, before));
    }

    fn sync(&mut self, up_to: u64) {
        self.older.retain(|&(number, _)| number > up_to);
    }

    fn lose_power(&mut self, mood: Mood, rng: &mut Rng) {
        let mut older = std::mem::take(&mut self.older);
        if older.is_empty() || mood.keeps(rng) {
            return;
        }
        let which = if mood.tears(rng) { rng.index(older.len()) } else { 0 };
        self.now = older.swap_remove(which).1;
    }
}

#[derive(Debug, Default)]
pub(super) struct Folders {
    folders: BTreeMap<PartitionId, Unsynced<bool>>,
    names: BTreeMap<FileName, Unsynced<Option<Inode>>>,
}

impl Folders {
    pub(super) fn find(&self, file: FileName) -> Option<&Inode> {
        self.names.get(&file)?.now.as_ref()
    }

    /// The file of that name, made if it is missing, and its folder too.
    pub(super) fn make(&mut self, file: FileName, partition: PartitionId, number: u64) -> Inode {
        let folder = self.folders.entry(partition).or_insert_with(|| Unsynced::new(false));
        if !folder.now {
            folder.set(true, number);
        }
        let name = self.names.entry(file).or_insert_with(|| Unsynced::new(None));
        if let Some(inode) = &name.now {
            return Rc::clone(inode);
        }
        let inode = Inode::default();
        name.set(Some(Rc::clone(&inode)), number);
        inode
    }

    pub(super) fn remove(&mut self, file: FileName, number: u64) {
        if let Some(name) = self.names.get_mut(&file)
            && name.now.is_some()
        {
            name.set(None, number);
        }
    }

    pub(super) fn remove_folder(&mut self, partition: PartitionId, number: u64) {
        for file in self.files_of(partition) {
            self.remove(file, number);
        }
        if let Some(folder) = self.folders.get_mut(&partition)
            && folder.now
        {
            folder.set(false, number);
        }
    }

    pub(super) fn sync(&mut self, partition: PartitionId, up_to: u64) {
        for range in ranges(partition) {
            for (_, name) in self.names.range_mut(range) {
                name.sync(up_to);
            }
        }
        if let Some(folder) = self.folders.get_mut(&partition) {
            folder.sync(up_to);
        }
        self.forget(partition);
    }

    /// The partition's files as they are seen.
    pub(super) fn files_of(&self, partition: PartitionId) -> Vec<FileName> {
        let all = ranges(partition).into_iter().flat_map(|range| self.names.range(range));
        all.filter(|(_, name)| name.now.is_some()).map(|(&file, _)| file).collect()
    }

    pub(super) fn partitions(&self) -> Vec<PartitionId> {
        self.folders.iter().filter(|(_, folder)| folder.now).map(|(&p, _)| p).collect()
    }

    pub(super) fn files(&self) -> impl Iterator<Item = (FileName, &Inode)> {
        self.names.iter().filter_map(|(&file, name)| Some((file, name.now.as_ref()?)))
    }

    pub(super) fn lose_power(&mut self, mood: Mood, rng: &mut Rng) {
        for folder in self.folders.values_mut() {
            folder.lose_power(mood, rng);
        }
        self.folders.retain(|_, folder| folder.now);
        let folders = &self.folders;
        self.names.retain(|&file, name| {
            name.lose_power(mood, rng);
            let partition = partition_of(file).expect("the names here are those of segments and indexes");
            if let Some(inode) = &name.now
                && folders.contains_key(&partition)
            {
                inode.borrow_mut().lose_power(mood, rng);
                return true;
            }
            false
        });
    }

    /// Drops what is gone for good.
    fn forget(&mut self, partition: PartitionId) {
        let gone: Vec<FileName> = ranges(partition)
            .into_iter()
            .flat_map(|range| self.names.range(range))
            .filter(|(_, name)| name.now.is_none() && name.older.is_empty())
            .map(|(&file, _)| file)
            .collect();
        for file in gone {
            self.names.remove(&file);
        }
        if self.folders.get(&partition).is_some_and(|f| !f.now && f.older.is_empty()) {
            self.folders.remove(&partition);
        }
    }
}

/// The partition that a segment or an index belongs to.
pub(super) fn partition_of(file: FileName) -> Option<PartitionId> {
    match file {
        FileName::Segment(name) | FileName::Index(name) => Some(name.partition),
        FileName::Journal(_) | FileName::Checkpoint => None,
    }
}

/// The names that a partition's segments and indexes may have.
fn ranges(partition: PartitionId) -> [std::ops::RangeInclusive<FileName>; 2] {
    let first = SegmentName { partition, base: Offset(0), generation: 0 };
    let last = SegmentName { partition, base: Offset(u64::MAX), generation: u32::MAX };
    [FileName::Segment(first)..=FileName::Segment(last), FileName::Index(first)..=FileName::Index(last)]
}
