//! The disk of one node of the group: a folder with the database of the log and the files of snapshots.
//!
//! The power can go at any operation. What was synced is there afterwards; of what was not, some sectors are and others
//! are not, and of the names that changed since the folder was synced the first few. A life of the node has a handle of
//! its own, which does nothing any more once the power has gone.

#![expect(clippy::disallowed_types, reason = "a file of redb has to be shareable between threads")]

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use highwater::raft::host::{Backend, File, Folder};
use redb::{BackendError, DatabaseError, StorageBackend};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::rng::Rng;

const SECTOR: usize = 512;
/// Small, so that many rounds are in a run.
const ROUND_BYTES: u64 = 256 * 1024;
const JOURNAL_BYTES: u64 = 8 * BLOCK as u64;
/// What is written directly lies on multiples of this.
const BLOCK: usize = 4096;

/// What the disk claims to have done and has not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lies {
    /// Syncs of files, until the next honest one.
    pub files: bool,
    /// Syncs of the folder.
    pub folder: bool,
}

/// A handle to the disk, for one life of its node.
#[derive(Clone)]
pub struct Disk {
    state: Arc<Mutex<State>>,
    life: u64,
}

struct State {
    /// The life whose handles work.
    life: u64,
    powered: bool,
    files: BTreeMap<u64, Data>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    /// Since the folder was synced.
    renamings: Vec<Naming>,
    next_file: u64,
    ops: u64,
    /// The power goes at this operation.
    ends_at: Option<u64>,
    full: bool,
    lies: Lies,
    rng: Rng,
    hash: u64,
    crashes: u64,
    lost_writes: u64,
}

#[derive(Clone)]
enum Naming {
    Put { name: String, file: u64 },
    Remove { name: String },
    Rename { from: String, to: String },
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Put { name, file } => {
                names.insert(name.clone(), *file);
            }
            Self::Remove { name } => {
                names.remove(name);
            }
            Self::Rename { from, to } => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
        }
    }
}

#[derive(Default)]
struct Data {
    synced: Vec<u8>,
    /// As reads see it.
    current: Vec<u8>,
    unsynced: Vec<Change>,
}

enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Size(usize),
}

impl Change {
    fn apply(&self, data: &mut Vec<u8>) {
        match self {
            Self::Write { at, bytes } => {
                if data.len() < at + bytes.len() {
                    data.resize(at + bytes.len(), 0);
                }
                data[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            Self::Size(size) => data.resize(*size, 0),
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("the power is gone")
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).expect("a simulated file is small")
}

impl State {
    /// What holds after the power went.
    fn crash(&mut self) {
        self.powered = false;
        self.ends_at = None;
        self.lies = Lies::default();
        self.crashes += 1;
        let kept = self.rng.index(self.renamings.len() + 1);
        for naming in self.renamings.drain(..).take(kept) {
            naming.apply(&mut self.durable_names);
        }
        self.names.clone_from(&self.durable_names);
        let names = &self.names;
        self.files.retain(|file, _| names.values().any(|named| named == file));
        for data in self.files.values_mut() {
            // Some crashes lose all of it, some nothing.
            let kept_per_mille = *self.rng.pick(&[0, 200, 500, 800, 1000]);
            for change in data.unsynced.drain(..) {
                match &change {
                    Change::Size(_) => change.apply(&mut data.synced),
                    Change::Write { at, bytes } => {
                        for (n, sector) in bytes.chunks(SECTOR).enumerate() {
                            if self.rng.chance(kept_per_mille) {
                                let at = at + n * SECTOR;
                                Change::Write { at, bytes: sector.to_vec() }.apply(&mut data.synced);
                            } else {
                                self.lost_writes += 1;
                            }
                        }
                    }
                }
            }
            data.current.clone_from(&data.synced);
        }
    }

    fn note(&mut self, what: &str, numbers: [u64; 2], bytes: &[u8]) {
        self.hash = xxh3_64_with_seed(what.as_bytes(), self.hash ^ numbers[0].rotate_left(32) ^ numbers[1]);
        self.hash = xxh3_64_with_seed(bytes, self.hash);
    }
}

impl Disk {
    pub fn new(rng: Rng) -> Self {
        let state = State {
            life: 0,
            powered: false,
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            renamings: Vec::new(),
            next_file: 0,
            ops: 0,
            ends_at: None,
            full: false,
            lies: Lies::default(),
            rng,
            hash: 0,
            crashes: 0,
            lost_writes: 0,
        };
        Self { state: Arc::new(Mutex::new(state)), life: 0 }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the disk")
    }

    /// The disk for the next life of its node.
    pub fn power_on(&self) -> Self {
        let mut state = self.state();
        assert!(!state.powered, "the last life has ended");
        state.powered = true;
        state.life += 1;
        Self { state: Arc::clone(&self.state), life: state.life }
    }

    /// The power goes, if it has not.
    pub fn crash(&self) {
        let mut state = self.state();
        if state.powered && state.life == self.life {
            state.crash();
        }
    }

    /// The power goes at the operation after so many more.
    pub fn crash_after(&self, ops: u64) {
        let mut state = self.state();
        state.ends_at = Some(state.ops + ops);
    }

    /// The power stays.
    pub fn crash_never(&self) {
        self.state().ends_at = None;
    }

    /// Whether this life goes on.
    pub fn is_powered(&self) -> bool {
        let state = self.state();
        state.powered && state.life == self.life
    }

    pub fn set_full(&self, full: bool) {
        self.state().full = full;
    }

    pub fn is_full(&self) -> bool {
        self.state().full
    }

    pub fn set_lies(&self, lies: Lies) {
        self.state().lies = lies;
    }

    /// Over all operations so far.
    pub fn hash(&self) -> u64 {
        self.state().hash
    }

    /// Operations, crashes, and sectors that crashes took.
    pub fn counts(&self) -> [u64; 3] {
        let state = self.state();
        [state.ops, state.crashes, state.lost_writes]
    }

    /// One operation, unless the power is gone or goes just now. One that changes something may still be done in part.
    fn op<T>(
        &self,
        what: &str,
        numbers: [u64; 2],
        bytes: &[u8],
        f: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = self.state();
        if !state.powered || state.life != self.life {
            return Err(gone());
        }
        state.ops += 1;
        state.note(what, numbers, bytes);
        if state.ends_at.is_some_and(|end| state.ops >= end) {
            if state.rng.flip() {
                // Whatever came of it, nobody is left to tell.
                let _ = f(&mut state);
            }
            state.crash();
            return Err(gone());
        }
        f(&mut state)
    }

    fn change(&self, file: u64, what: &str, change: Change) -> io::Result<()> {
        let (numbers, bytes) = match &change {
            Change::Write { at, bytes } => ([file, *at as u64], bytes.clone()),
            Change::Size(size) => ([file, *size as u64], Vec::new()),
        };
        self.op(what, numbers, &bytes, |state| {
            if state.full {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let Some(data) = state.files.get_mut(&file) else { return Err(gone()) };
            change.apply(&mut data.current);
            data.unsynced.push(change);
            Ok(())
        })
    }

    fn sync_file(&self, file: u64) -> io::Result<()> {
        self.op("sync", [file, 0], &[], |state| {
            if state.full {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let lies = state.lies.files;
            let Some(data) = state.files.get_mut(&file) else { return Err(gone()) };
            if !lies {
                for change in data.unsynced.drain(..) {
                    change.apply(&mut data.synced);
                }
            }
            Ok(())
        })
    }

    fn read_file(&self, file: u64, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        if !state.powered || state.life != self.life {
            return Err(gone());
        }
        let data = state.files.get(&file).ok_or_else(gone)?;
        let at = place(offset);
        let bytes = data.current.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn size_of(&self, file: u64) -> io::Result<u64> {
        let state = self.state();
        if !state.powered || state.life != self.life {
            return Err(gone());
        }
        Ok(state.files.get(&file).ok_or_else(gone)?.current.len() as u64)
    }

    fn make(&self, name: &str) -> io::Result<Opened> {
        let file = self.op("create", [0, 0], name.as_bytes(), |state| {
            if state.full {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let file = state.next_file;
            state.next_file += 1;
            state.files.insert(file, Data::default());
            state.rename(Naming::Put { name: name.to_owned(), file });
            Ok(file)
        })?;
        Ok(Opened { disk: self.clone(), file })
    }

    fn find_or_make(&self, name: &str) -> io::Result<Opened> {
        match self.find(name)? {
            Some(file) => Ok(file),
            None => self.make(name),
        }
    }

    fn find(&self, name: &str) -> io::Result<Option<Opened>> {
        let state = self.state();
        if !state.powered || state.life != self.life {
            return Err(gone());
        }
        let file = state.names.get(name).copied();
        Ok(file.map(|file| Opened { disk: self.clone(), file }))
    }
}

impl State {
    fn rename(&mut self, naming: Naming) {
        naming.apply(&mut self.names);
        self.renamings.push(naming);
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("life", &self.life).finish_non_exhaustive()
    }
}

/// An open file.
#[derive(Debug)]
struct Opened {
    disk: Disk,
    file: u64,
}

impl Folder for Disk {
    fn path(&self) -> &Path {
        Path::new("raft")
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        Ok(self.find(name)?.is_some())
    }

    fn backend(&self, name: &str) -> Result<Backend, DatabaseError> {
        Ok(Backend(Box::new(self.find_or_make(name)?)))
    }

    fn direct(&self, name: &str) -> io::Result<Backend> {
        Ok(Backend(Box::new(Direct(self.find_or_make(name)?))))
    }

    fn round_bytes(&self) -> u64 {
        ROUND_BYTES
    }

    fn journal_bytes(&self) -> u64 {
        JOURNAL_BYTES
    }

    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn File>>> {
        Ok(self.find(name)?.map(|file| Arc::new(file) as Arc<dyn File>))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(self.make(name)?))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.op("remove", [0, 0], name.as_bytes(), |state| {
            if state.names.contains_key(name) {
                state.rename(Naming::Remove { name: name.to_owned() });
            }
            Ok(())
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.op("rename", [0, 0], from.as_bytes(), |state| {
            if !state.names.contains_key(from) {
                return Err(io::ErrorKind::NotFound.into());
            }
            state.rename(Naming::Rename { from: from.to_owned(), to: to.to_owned() });
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.op("sync folder", [0, 0], &[], |state| {
            if !state.lies.folder {
                state.renamings.clear();
                state.durable_names = state.names.clone();
            }
            Ok(())
        })
    }
}

impl File for Opened {
    fn size(&self) -> io::Result<u64> {
        self.disk.size_of(self.file)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.read_file(self.file, offset, bytes)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let change = Change::Write { at: place(offset), bytes: bytes.to_vec() };
        self.disk.change(self.file, "write", change)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.sync_file(self.file)
    }
}

impl StorageBackend for Opened {
    fn len(&self) -> io::Result<u64> {
        self.disk.size_of(self.file)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read_file(self.file, offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.change(self.file, "size", Change::Size(place(len)))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.sync_file(self.file)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        File::write_at(self, data, offset)
    }

    fn try_lock_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<bool, BackendError> {
        Err(BackendError::Unsupported)
    }
}

/// A file of which every write is durable when it returns; while it does not, the power may leave a part of it.
#[derive(Debug)]
struct Direct(Opened);

impl StorageBackend for Direct {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)?;
        self.0.sync_data()
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        assert!(place(offset).is_multiple_of(BLOCK), "direct writes begin on blocks");
        assert!(data.len().is_multiple_of(BLOCK), "direct writes are whole blocks");
        assert!(data.as_ptr().addr().is_multiple_of(BLOCK), "direct writes come from aligned memory");
        StorageBackend::write(&self.0, offset, data)?;
        self.0.sync_data()
    }
}
