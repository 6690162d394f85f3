//! A disk in memory that forgets, keeps or tears what was not synced.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use crate::log::disk::{DiskError, DiskEvent, DiskOp, FileName, FileNo, OpNo, SECTOR};
use crate::log::random::Random;

/// Written, and durable if it says so. Later layers lie above earlier ones.
#[derive(Clone, Debug)]
struct Layer {
    no: u64,
    position: usize,
    bytes: Bytes,
    durable: bool,
}

#[derive(Clone, Default, Debug)]
pub struct File {
    /// Durable.
    base: Vec<u8>,
    layers: Vec<Layer>,
}

impl File {
    fn put(bytes: &mut [u8], layer: &Layer) {
        bytes[layer.position..layer.position + layer.bytes.len()].copy_from_slice(&layer.bytes);
    }

    /// As a read sees it.
    pub fn content(&self) -> Vec<u8> {
        let mut all = self.base.clone();
        for layer in &self.layers {
            Self::put(&mut all, layer);
        }
        all
    }
}

/// What the disk is doing.
#[derive(Clone, Debug)]
pub struct InFlight {
    pub op: DiskOp,
    /// Of a sync: the layers up to this number become durable.
    covers: u64,
}

#[derive(Clone, Default, Debug)]
pub struct Disk {
    pub files: BTreeMap<FileNo, File>,
    /// Removed, but nothing has made that durable yet.
    removed: BTreeMap<FileNo, File>,
    /// How often a file was given a new number.
    pub recycled: usize,
    pub in_flight: Vec<InFlight>,
    layers: u64,
    pub is_full: bool,
}

pub fn op_no(op: &DiskOp) -> OpNo {
    match op {
        DiskOp::List { op }
        | DiskOp::Prepare { op, .. }
        | DiskOp::Recycle { op, .. }
        | DiskOp::Remove { op, .. }
        | DiskOp::Write { op, .. }
        | DiskOp::Sync { op, .. }
        | DiskOp::Read { op, .. } => *op,
        other => panic!("not an operation of a journal: {other:?}"),
    }
}

fn journal_file(file: FileName) -> FileNo {
    match file {
        FileName::Journal(file) => file,
        other => panic!("not a file of a journal: {other}"),
    }
}

impl Disk {
    pub fn submit(&mut self, op: DiskOp) {
        if let DiskOp::Write { file, position, parts, .. } = &op {
            let len: usize = parts.iter().map(Bytes::len).sum();
            assert!(len > 0 && len.is_multiple_of(SECTOR) && position.is_multiple_of(SECTOR as u64));
            assert_eq!(parts[0].as_ptr().align_offset(SECTOR), 0, "direct I/O needs an aligned address");
            for pair in parts.windows(2) {
                assert_eq!(pair[0].as_ptr_range().end, pair[1].as_ptr(), "one stretch of memory");
            }
            let size = self.files.get(file).expect("only prepared files are written").base.len();
            let range = *position as usize..*position as usize + len;
            assert!(range.end <= size, "{file} has {size} bytes, write to {range:?}");
            for other in &self.in_flight {
                if let DiskOp::Write { file: f, position: p, parts, .. } = &other.op {
                    let p = *p as usize;
                    let end = p + parts.iter().map(Bytes::len).sum::<usize>();
                    assert!(f != file || end <= range.start || range.end <= p, "writes overlap");
                }
            }
        }
        self.in_flight.push(InFlight { op, covers: self.layers });
    }

    fn put_layer(&mut self, file: FileNo, position: usize, bytes: Bytes, durable: bool) {
        self.layers += 1;
        let layer = Layer { no: self.layers, position, bytes, durable };
        self.files.get_mut(&file).expect("written files exist").layers.push(layer);
    }

    /// Ends one operation well, or for lack of room.
    pub fn complete(&mut self, index: usize) -> DiskEvent {
        let InFlight { op, covers } = self.in_flight.swap_remove(index);
        match op {
            DiskOp::List { op } => {
                let list = self.files.iter().map(|(&no, f)| (no, f.base.len() as u64)).collect();
                DiskEvent::Listed { op, result: Ok(list) }
            }
            DiskOp::Prepare { op, file, size } => {
                if self.is_full {
                    return DiskEvent::Prepared { op, result: Err(DiskError::NoSpace) };
                }
                self.files.insert(file, File { base: vec![0; size as usize], layers: Vec::new() });
                self.removed.clear();
                DiskEvent::Prepared { op, result: Ok(()) }
            }
            DiskOp::Recycle { op, from, to } => {
                let file = self.files.remove(&from).expect("a file that is recycled is there");
                let before = self.files.insert(to, file);
                assert!(before.is_none(), "{to} was there when {from} was to become it");
                self.removed.clear();
                self.recycled += 1;
                DiskEvent::Prepared { op, result: Ok(()) }
            }
            DiskOp::Remove { op, file } => {
                let file = journal_file(file);
                let removed = self.files.remove(&file).expect("a file is removed once");
                self.removed.insert(file, removed);
                DiskEvent::Done { op, result: Ok(()) }
            }
            DiskOp::Write { op, file, position, parts, sync } => {
                self.put_layer(file, position as usize, parts.concat().into(), sync);
                DiskEvent::Written { op, result: Ok(()) }
            }
            DiskOp::Sync { op, file } => {
                let f = self.files.get_mut(&journal_file(file)).expect("synced files exist");
                for layer in f.layers.iter_mut().filter(|l| l.no <= covers) {
                    layer.durable = true;
                }
                while f.layers.first().is_some_and(|l| l.durable) {
                    let layer = f.layers.remove(0);
                    File::put(&mut f.base, &layer);
                }
                DiskEvent::Synced { op, result: Ok(()) }
            }
            DiskOp::Read { op, file, position, len } => {
                let all = self.files[&journal_file(file)].content();
                let start = (position as usize).min(all.len());
                let end = (start + len as usize).min(all.len());
                DiskEvent::Read { op, result: Ok(Bytes::copy_from_slice(&all[start..end])) }
            }
            other => panic!("not an operation of a journal: {other:?}"),
        }
    }

    pub fn fail(&mut self, index: usize, error: DiskError) -> DiskEvent {
        let op = self.in_flight.swap_remove(index).op;
        match op {
            DiskOp::List { op } => DiskEvent::Listed { op, result: Err(error) },
            DiskOp::Prepare { op, .. } | DiskOp::Recycle { op, .. } => {
                DiskEvent::Prepared { op, result: Err(error) }
            }
            DiskOp::Remove { op, .. } => DiskEvent::Done { op, result: Err(error) },
            DiskOp::Write { op, .. } => DiskEvent::Written { op, result: Err(error) },
            DiskOp::Sync { op, .. } => DiskEvent::Synced { op, result: Err(error) },
            DiskOp::Read { op, .. } => DiskEvent::Read { op, result: Err(error) },
            other => panic!("not an operation of a journal: {other:?}"),
        }
    }

    /// Which sectors of an unsynced write survive, the last one perhaps in part.
    fn torn(random: &mut Random, below: &[u8], bytes: &Bytes) -> Option<Bytes> {
        match random.below(4) {
            0 => None,
            1 => Some(bytes.clone()),
            _ => {
                let mut out = BytesMut::from(below);
                for (at, sector) in bytes.chunks(SECTOR).enumerate() {
                    let at = at * SECTOR;
                    let kept = match random.below(8) {
                        0..=3 => SECTOR,
                        4 => random.below(SECTOR),
                        _ => 0,
                    };
                    out[at..at + kept].copy_from_slice(&sector[..kept]);
                }
                Some(out.freeze())
            }
        }
    }

    /// What was under way reaches the disk or not, or in part.
    fn end_in_flight(&mut self, random: &mut Random) {
        while !self.in_flight.is_empty() {
            let index = random.below(self.in_flight.len());
            match self.in_flight[index].op.clone() {
                DiskOp::Write { file, position, parts, .. } => {
                    self.in_flight.swap_remove(index);
                    let position = position as usize;
                    let bytes = Bytes::from(parts.concat());
                    let below = self.files[&file].content()[position..position + bytes.len()].to_vec();
                    if let Some(bytes) = Self::torn(random, &below, &bytes) {
                        self.put_layer(file, position, bytes, false);
                    }
                }
                DiskOp::Prepare { .. }
                | DiskOp::Recycle { .. }
                | DiskOp::Remove { .. }
                | DiskOp::Sync { .. }
                    if random.one_in(2) =>
                {
                    self.complete(index);
                }
                _ => {
                    self.in_flight.swap_remove(index);
                }
            }
        }
    }

    /// The process ends; the machine runs on.
    pub fn kill(&mut self, random: &mut Random) {
        self.end_in_flight(random);
    }

    /// The machine stops too: unsynced writes are lost, kept or torn, and removed files may come back.
    pub fn lose_power(&mut self, random: &mut Random) {
        self.end_in_flight(random);
        for (no, file) in std::mem::take(&mut self.removed) {
            if random.one_in(2) {
                self.files.insert(no, file);
            }
        }
        for f in self.files.values_mut() {
            for layer in std::mem::take(&mut f.layers) {
                let range = layer.position..layer.position + layer.bytes.len();
                let bytes = if layer.durable {
                    Some(layer.bytes.clone())
                } else {
                    Self::torn(random, &f.base[range.clone()], &layer.bytes)
                };
                if let Some(bytes) = bytes {
                    f.base[range].copy_from_slice(&bytes);
                }
            }
        }
    }

    /// Everything that was written is on the platter.
    pub fn settle(&mut self) {
        for f in self.files.values_mut() {
            f.base = f.content();
            f.layers.clear();
        }
    }

    /// The bytes of a file, to be damaged. Only when everything is durable.
    pub fn raw(&mut self, file: u64) -> &mut Vec<u8> {
        self.settle();
        &mut self.files.get_mut(&FileNo(file)).expect("the file exists").base
    }
}
