//! A segment or an index of the simulated disk: bytes of any length in the page cache of a kernel.
//!
//! It keeps what a reader sees, and for each page that is not durable what it held before: a power loss goes back to
//! any of that. Bytes are copied once, when they are written; a page's older content only when there is one, which an
//! append has not.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::mood::{Mood, tear};
use crate::rng::Rng;

/// What a power loss keeps, loses or tears on its own.
pub(super) const PAGE: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct PageFile {
    /// What a reader sees.
    data: Vec<u8>,
    dirty: BTreeMap<usize, Dirty>,
    /// The lengths that the file had before the change of that number; the first is the durable one.
    lens: Vec<(u64, usize)>,
    /// The last change that a sync covers which was asked for.
    barrier: u64,
}

/// A page that is not durable as it is seen.
#[derive(Debug, Default)]
struct Dirty {
    /// What the page held before the change of that number; the first is what is durable. Bytes behind the end of the
    /// file are left out. Between two changes with no sync asked for between them only the first is kept.
    older: Vec<(u64, Bytes)>,
    /// A sync of it failed, after which the kernel takes the page for clean: only another write changes that.
    given_up: bool,
}

impl PageFile {
    pub(super) fn len(&self) -> usize {
        self.data.len()
    }

    pub(super) fn read(&self, position: u64, len: u32) -> Bytes {
        let start = usize::try_from(position).unwrap_or(usize::MAX).min(self.data.len());
        let end = start.saturating_add(len as usize).min(self.data.len());
        Bytes::copy_from_slice(&self.data[start..end])
    }

    /// Writes the first `take` bytes of `parts`, as the change `number`.
    pub(super) fn write(&mut self, position: usize, parts: &[Bytes], take: usize, number: u64) {
        if take == 0 {
            return;
        }
        let end = position + take;
        self.touch(position, end, number);
        if end > self.data.len() {
            self.lens.push((number, self.data.len()));
            self.data.resize(end, 0);
        }
        let mut at = position;
        for part in parts {
            let n = part.len().min(end - at);
            self.data[at..at + n].copy_from_slice(&part[..n]);
            at += n;
        }
        assert_eq!(at, end, "no more is taken than there is");
    }

    pub(super) fn cut(&mut self, len: usize, number: u64) {
        if len >= self.data.len() {
            return;
        }
        self.touch(len, self.data.len(), number);
        self.lens.push((number, self.data.len()));
        self.data.truncate(len);
    }

    /// Keeps what the pages of a range hold, which is about to change.
    fn touch(&mut self, start: usize, end: usize, number: u64) {
        for page in start / PAGE..end.div_ceil(PAGE) {
            let dirty = self.dirty.entry(page).or_default();
            dirty.given_up = false;
            if dirty.older.last().is_none_or(|&(last, _)| last <= self.barrier) {
                dirty.older.push((number, Bytes::copy_from_slice(of_page(&self.data, page))));
            }
        }
    }

    /// A sync was asked for when `number` was the last change.
    pub(super) fn ask_sync(&mut self, number: u64) {
        self.barrier = number;
    }

    pub(super) fn sync(&mut self, up_to: u64) {
        self.dirty.retain(|_, dirty| {
            if !dirty.given_up {
                dirty.older.retain(|&(number, _)| number > up_to);
            }
            !dirty.older.is_empty()
        });
        self.lens.retain(|&(number, _)| number > up_to);
    }

    pub(super) fn fail_sync(&mut self) {
        self.dirty.values_mut().for_each(|dirty| dirty.given_up = true);
    }

    pub(super) fn lose_power(&mut self, mood: Mood, rng: &mut Rng) {
        let seen = self.data.len();
        let lens = std::mem::take(&mut self.lens);
        if let Some(&(_, durable)) = lens.first()
            && !mood.keeps(rng)
        {
            let least = lens.iter().map(|l| l.1).min().expect("there is one").min(seen);
            let most = lens.iter().map(|l| l.1).max().expect("there is one").max(seen);
            let any = rng.range(least as u64..most as u64 + 1);
            let len = if mood.tears(rng) { usize::try_from(any).expect("between two") } else { durable };
            self.data.resize(len, 0);
        }
        for (page, dirty) in std::mem::take(&mut self.dirty) {
            if mood.keeps(rng) {
                continue;
            }
            let is_torn = mood.tears(rng);
            let which = if is_torn { rng.index(dirty.older.len()) } else { 0 };
            let start = (page * PAGE).min(self.data.len());
            let end = (start + PAGE).min(self.data.len());
            if start == end {
                continue;
            }
            let place = &mut self.data[start..end];
            let older = &dirty.older[which].1;
            let n = older.len().min(place.len());
            if is_torn && rng.flip() {
                let mut whole = [0; PAGE];
                whole[..n].copy_from_slice(&older[..n]);
                tear(rng, place, &whole[..end - start]);
            } else {
                place[..n].copy_from_slice(&older[..n]);
                place[n..].fill(0);
            }
        }
    }

    pub(super) fn flip(&mut self, at: usize, bit: usize) {
        self.data[at] ^= 1 << bit;
    }
}

fn of_page(data: &[u8], page: usize) -> &[u8] {
    let start = (page * PAGE).min(data.len());
    &data[start..(start + PAGE).min(data.len())]
}
