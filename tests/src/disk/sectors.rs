//! A journal file of the simulated disk: sectors, each with what is durable and what is not yet.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use highwater_shards::log::disk::SECTOR;

use super::mood::{Mood, tear};
use crate::rng::Rng;

/// A version of a sector that a power loss may take away.
#[derive(Debug)]
struct Version {
    number: u64,
    data: Bytes,
}

/// An empty [`Bytes`] stands for a sector of zeros.
#[derive(Debug)]
pub(super) struct SectorFile {
    durable: Vec<Bytes>,
    /// Versions newer than the durable one, in the order in which their writes completed.
    unsynced: BTreeMap<usize, Vec<Version>>,
}

impl SectorFile {
    pub(super) fn zeros(size: u64) -> Self {
        Self { durable: vec![Bytes::new(); sector(size)], unsynced: BTreeMap::new() }
    }

    pub(super) fn sectors(&self) -> usize {
        self.durable.len()
    }

    pub(super) fn len(&self) -> u64 {
        (self.durable.len() * SECTOR) as u64
    }

    /// Puts `new` in the place of a sector, durably.
    pub(super) fn write_durably(&mut self, at: usize, new: Bytes) {
        self.durable[at] = new;
        self.unsynced.remove(&at);
    }

    /// Puts `new` in the place of a sector until the power goes, as version `number`.
    pub(super) fn write(&mut self, at: usize, new: Bytes, number: u64) {
        self.unsynced.entry(at).or_default().push(Version { number, data: new });
    }

    /// As [`Self::write`] with a mixture of what is there and `new`.
    pub(super) fn write_torn(&mut self, at: usize, new: &Bytes, number: u64, rng: &mut Rng) {
        let torn = torn(rng, self.visible(at), new);
        self.write(at, torn, number);
    }

    pub(super) fn sync(&mut self, up_to: u64) {
        let durable = &mut self.durable;
        self.unsynced.retain(|&at, versions| {
            let covered = versions.partition_point(|v| v.number <= up_to);
            if let Some(newest) = versions.drain(..covered).last() {
                durable[at] = newest.data;
            }
            !versions.is_empty()
        });
    }

    pub(super) fn read(&self, position: u64, len: u32) -> Bytes {
        let size = self.durable.len() * SECTOR;
        let start = usize::try_from(position).expect("a position in memory").min(size);
        let end = start.saturating_add(len as usize).min(size);
        let mut out = BytesMut::with_capacity(end - start);
        let mut at = start;
        while at < end {
            let (n, within) = (at / SECTOR, at % SECTOR);
            let take = (SECTOR - within).min(end - at);
            let data = self.visible(n);
            if data.is_empty() {
                out.resize(out.len() + take, 0);
            } else {
                out.extend_from_slice(&data[within..within + take]);
            }
            at += take;
        }
        out.freeze()
    }

    pub(super) fn lose_power(&mut self, mood: Mood, rng: &mut Rng) {
        for (at, versions) in std::mem::take(&mut self.unsynced) {
            // Any version since the durable one may be what the platter has.
            let chosen = &versions[rng.index(versions.len())].data;
            if mood.keeps(rng) {
                self.durable[at] = chosen.clone();
            } else if mood.tears(rng) {
                self.durable[at] = torn(rng, &self.durable[at], chosen);
            }
        }
    }

    /// The sectors that are not zeros.
    pub(super) fn written(&self) -> impl Iterator<Item = usize> {
        self.durable.iter().enumerate().filter(|(_, s)| !s.is_empty()).map(|(at, _)| at)
    }

    /// Flips a bit of a durable sector.
    pub(super) fn flip(&mut self, at: usize, bit: usize) {
        let mut bytes = BytesMut::from(&self.durable[at][..]);
        bytes[bit / 8] ^= 1 << (bit % 8);
        self.durable[at] = bytes.freeze();
    }

    fn visible(&self, at: usize) -> &Bytes {
        self.unsynced.get(&at).and_then(|v| v.last()).map_or(&self.durable[at], |v| &v.data)
    }
}

fn torn(rng: &mut Rng, old: &Bytes, new: &Bytes) -> Bytes {
    let zeros = [0; SECTOR];
    let mut out = BytesMut::from(if old.is_empty() { &zeros } else { &old[..] });
    tear(rng, &mut out, if new.is_empty() { &zeros } else { new });
    out.freeze()
}

/// The sector that holds a position.
pub(super) fn sector(position: u64) -> usize {
    usize::try_from(position / SECTOR as u64).expect("a position in memory")
}
