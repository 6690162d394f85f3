//! A disk for tests: it forgets what was not synced when the power goes, and fails when it is told to.

#![expect(clippy::disallowed_types, reason = "a test's disk is shared with the store's thread")]

use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex};

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::RngCore;
use redb::{BackendError, StorageBackend};

const SECTOR: usize = 512;

/// One life of the disk, until the power goes.
#[derive(Clone, Debug, Default)]
pub(crate) struct CrashDisk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    synced: Vec<u8>,
    /// As reads see it.
    current: Vec<u8>,
    /// Since the last sync.
    unsynced: Vec<Write>,
    dead: bool,
    fail_writes: Option<io::ErrorKind>,
    failures: u64,
    syncs: u64,
}

#[derive(Debug)]
enum Write {
    Data { at: usize, data: Vec<u8> },
    Len(usize),
}

impl Write {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Data { at, data } => {
                if bytes.len() < at + data.len() {
                    bytes.resize(at + data.len(), 0);
                }
                bytes[*at..at + data.len()].copy_from_slice(data);
            }
            Self::Len(len) => bytes.resize(*len, 0),
        }
    }
}

impl CrashDisk {
    /// The disk after the power went now: what was synced, and of the rest some sectors and not others.
    pub fn crash(&self, random: &mut Xoshiro256PlusPlus) -> Self {
        let mut state = self.0.lock().unwrap();
        state.dead = true;
        let mut bytes = state.synced.clone();
        if random.next_u32().is_multiple_of(8) {
            // Nothing of it, not even how long the file had become.
            return Self::holding(bytes);
        }
        for write in &state.unsynced {
            match write {
                Write::Len(_) => write.apply(&mut bytes),
                Write::Data { at, data } => {
                    for (n, sector) in data.chunks(SECTOR).enumerate() {
                        if random.next_u32().is_multiple_of(2) {
                            let at = at + n * SECTOR;
                            Write::Data { at, data: sector.to_vec() }.apply(&mut bytes);
                        }
                    }
                }
            }
        }
        Self::holding(bytes)
    }

    pub fn holding(bytes: Vec<u8>) -> Self {
        let state = State { synced: bytes.clone(), current: bytes, ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().current.clone()
    }

    pub fn syncs(&self) -> u64 {
        self.0.lock().unwrap().syncs
    }

    /// Writes and syncs that failed.
    pub fn failures(&self) -> u64 {
        self.0.lock().unwrap().failures
    }

    pub fn fail_writes(&self, kind: Option<io::ErrorKind>) {
        self.0.lock().unwrap().fail_writes = kind;
    }

    fn write(&self, write: Write) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if let Some(kind) = state.fail_writes {
            state.failures += 1;
            return Err(kind.into());
        }
        if !state.dead {
            write.apply(&mut state.current);
            state.unsynced.push(write);
        }
        Ok(())
    }
}

impl StorageBackend for CrashDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        let state = self.0.lock().unwrap();
        let bytes = state.current.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.write(Write::Len(usize::try_from(len).unwrap()))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if let Some(kind) = state.fail_writes {
            state.failures += 1;
            return Err(kind.into());
        }
        if !state.dead {
            state.synced = state.current.clone();
            state.unsynced.clear();
            state.syncs += 1;
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        CrashDisk::write(self, Write::Data { at: usize::try_from(offset).unwrap(), data: data.to_vec() })
    }

    fn try_lock_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<bool, BackendError> {
        Err(BackendError::Unsupported)
    }
}
