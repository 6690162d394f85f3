//! What one partition's log must be: everything that was asked of it, in order, and what of that a crash may take.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::batches::Header;
use crate::records::Stamp;

/// A batch that was appended.
#[derive(Debug)]
pub struct Batch {
    pub base: u64,
    pub end: u64,
    pub epoch: u32,
    /// As it is to be read.
    pub bytes: Bytes,
    pub max_ms: i64,
    /// The wall clock when it was appended.
    pub wall_ms: i64,
    pub stamp: Option<Stamp>,
}

/// One entry of the log's history.
#[derive(Clone, Debug)]
pub enum What {
    Batch(Rc<Batch>),
    Truncated { end: u64 },
    Started { start: u64 },
    Dropped,
}

#[derive(Clone, Debug)]
struct Entry {
    /// It is in the journal at one of these, durable once the second was said to be flushed. Of a drop only the
    /// entries around it are known.
    marker: u64,
    marker_max: Option<u64>,
    what: What,
}

/// How much of a log's history somebody knows: every batch and truncation since the log was made, as a count and a
/// running hash. Starts are left out, since retention makes some without being asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Known {
    pub count: u32,
    pub hash: u64,
}

impl Known {
    pub fn batch(&mut self, base: u64, len: usize, epoch: u32, records: u32, base_ms: i64) {
        self.mix([1, base, len as u64, u64::from(epoch), u64::from(records), base_ms.cast_unsigned()]);
    }

    pub fn stored(&mut self, batch: &Batch) {
        let h = super::batches::parse(&batch.bytes).expect("the world makes good batches");
        let Header { base, len, epoch, records, base_ms, .. } = h;
        self.batch(base, len, epoch, records, base_ms);
    }

    pub fn truncated(&mut self, end: u64) {
        if end == 0 {
            // As good as a new log, of which no checkpoint need speak.
            *self = Self::default();
        } else {
            self.mix([2, end, 0, 0, 0, 0]);
        }
    }

    fn mix(&mut self, words: [u64; 6]) {
        let mut bytes = [0; 48];
        for (to, word) in bytes.chunks_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        self.count += 1;
        // Offsets are 63 bits in a checkpoint, which is where this is kept.
        self.hash = xxh3_64_with_seed(&bytes, self.hash) >> 2;
    }
}

/// Each producer with its epoch and its last batches: first and last sequence, base.
pub type Producers = BTreeMap<u64, (u16, Vec<(u32, u32, u64)>)>;

/// A log at one moment.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Something was put into it since it was made.
    pub exists: bool,
    /// `start <= end`.
    pub start: u64,
    pub end: u64,
    /// Those that hold an offset from `start` on.
    pub batches: VecDeque<Rc<Batch>>,
    pub known: Known,
    /// How often the partition's log was dropped before.
    pub drops: u32,
    /// Each epoch with the offset at which it began.
    pub epochs: Vec<(u32, u64)>,
}

impl State {
    fn apply(&mut self, what: &What) {
        match what {
            What::Batch(batch) => {
                self.exists = true;
                if self.epochs.last().is_none_or(|e| e.0 < batch.epoch) {
                    self.epochs.push((batch.epoch, batch.base));
                }
                self.known.stored(batch);
                self.end = batch.end;
                self.batches.push_back(Rc::clone(batch));
            }
            What::Truncated { end } => {
                self.exists = true;
                self.known.truncated(*end);
                self.end = self.end.min(*end);
                self.epochs.retain(|e| e.1 < *end);
                while self.batches.back().is_some_and(|b| b.base >= *end) {
                    self.batches.pop_back();
                }
            }
            What::Started { start } => {
                self.exists = true;
                self.begin_at(*start);
            }
            What::Dropped => *self = Self { drops: self.drops + 1, ..Self::default() },
        }
    }

    pub fn begin_at(&mut self, start: u64) {
        self.start = self.start.max(start);
        while self.batches.front().is_some_and(|b| b.end <= self.start) {
            self.batches.pop_front();
        }
    }

    /// The place in `batches` of the one that holds an offset, or of the first behind it.
    pub fn find(&self, offset: u64) -> usize {
        self.batches.partition_point(|b| b.end <= offset)
    }

    /// Where a batch ends at or before `offset`, or the log starts.
    pub fn boundary(&self, offset: u64) -> u64 {
        let i = self.batches.partition_point(|b| b.end <= offset);
        if i == 0 { self.start } else { self.batches[i - 1].end }
    }

    /// Each producer with the last five batches that it sent: epoch, then first and last sequence and base.
    pub fn producers(&self) -> Producers {
        let mut all: Producers = BTreeMap::new();
        for batch in &self.batches {
            if let Some(s) = batch.stamp {
                let last = s.sequence + u32::try_from(batch.end - batch.base - 1).expect("small");
                let known = all.entry(s.producer).or_default();
                if known.0 != s.epoch {
                    *known = (s.epoch, Vec::new());
                }
                known.1.push((s.sequence, last, batch.base));
                if known.1.len() > 5 {
                    known.1.remove(0);
                }
            }
        }
        all
    }
}

/// What a log amounts to after a crash, without its content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outline {
    pub exists: bool,
    pub start: u64,
    pub end: u64,
    pub known: Known,
    pub drops: u32,
}

/// A start that retention announced. Its place in the journal lies before the entry that came next.
#[derive(Clone, Copy, Debug)]
struct Retained {
    start: u64,
    marker: Option<u64>,
    /// Of which log of the partition.
    drops: u32,
}

#[derive(Debug, Default)]
pub struct History {
    /// What no crash can take.
    settled: State,
    /// What a crash may take, from the back.
    pending: VecDeque<Entry>,
    retained: VecDeque<Retained>,
    /// After all entries.
    pub now: State,
}

impl History {
    /// An entry was accepted. Markers only grow.
    pub fn push(&mut self, marker: u64, what: What) {
        self.now.apply(&what);
        self.pending.push_back(Entry { marker, marker_max: Some(marker), what });
    }

    /// The log was dropped, somewhere behind the entry `after` of any log, and before the next one.
    pub fn drop_after(&mut self, after: u64) {
        self.now.apply(&What::Dropped);
        self.pending.push_back(Entry { marker: after, marker_max: None, what: What::Dropped });
    }

    /// Retention moved the start.
    pub fn retained(&mut self, start: u64) {
        self.now.exists = true;
        self.now.begin_at(start);
        self.retained.push_back(Retained { start, marker: None, drops: self.now.drops });
    }

    /// An entry of some log was accepted: what retention or a drop did before is durable no later than it.
    pub fn bound(&mut self, marker: u64) {
        for entry in self.pending.iter_mut().rev() {
            if entry.marker_max.is_some() {
                break;
            }
            entry.marker_max = Some(marker);
        }
        for r in self.retained.iter_mut().rev() {
            if r.marker.is_some() {
                break;
            }
            r.marker = Some(marker);
        }
    }

    /// Everything up to `marker` is durable.
    pub fn flushed(&mut self, marker: u64) {
        while self.pending.front().is_some_and(|e| e.marker_max.unwrap_or(u64::MAX) <= marker) {
            let entry = self.pending.pop_front().expect("one is there");
            self.settled.apply(&entry.what);
        }
        while self.retained.front().is_some_and(|r| r.marker.is_some_and(|m| m <= marker)) {
            let r = self.retained.pop_front().expect("one is there");
            if r.drops == self.settled.drops {
                self.settled.exists = true;
                self.settled.begin_at(r.start);
            }
        }
    }

    /// Where the first batch begins that a crash may take.
    pub fn flushed_end(&self) -> u64 {
        let first = self.pending.iter().find_map(|e| match &e.what {
            What::Batch(b) if self.is_live(b) => Some(b.base),
            _ => None,
        });
        first.unwrap_or(self.now.end)
    }

    fn is_live(&self, batch: &Rc<Batch>) -> bool {
        let i = self.now.batches.partition_point(|b| b.base < batch.base);
        self.now.batches.get(i).is_some_and(|b| Rc::ptr_eq(b, batch))
    }

    /// The markers at which something of this log is not durable yet.
    pub fn markers(&self) -> impl Iterator<Item = u64> {
        self.pending.iter().flat_map(|e| e.marker_max.into_iter().chain([e.marker]))
    }

    /// What a crash keeps if it keeps everything up to `cut`; of a drop about which this says nothing, `with_drop` does.
    fn kept(&self, cut: u64, with_drop: bool) -> impl Iterator<Item = &Entry> {
        self.pending
            .iter()
            .take_while(move |e| e.marker_max.is_some_and(|m| m <= cut) || with_drop && e.marker <= cut)
    }

    /// What the log is after a crash that kept everything up to `cut`.
    pub fn outline(&self, cut: u64, with_drop: bool) -> Outline {
        let s = &self.settled;
        let mut o = Outline { exists: s.exists, start: s.start, end: s.end, known: s.known, drops: s.drops };
        for entry in self.kept(cut, with_drop) {
            o.exists = true;
            match &entry.what {
                What::Batch(b) => {
                    o.end = b.end;
                    o.known.stored(b);
                }
                What::Truncated { end } => {
                    o.end = o.end.min(*end);
                    o.known.truncated(*end);
                }
                What::Started { start } => o.start = o.start.max(*start),
                What::Dropped => {
                    let drops = o.drops + 1;
                    o = Outline { exists: false, start: 0, end: 0, known: Known::default(), drops };
                }
            }
        }
        o
    }

    /// The starts that retention announced and that a crash may take or keep, of one of the partition's logs.
    pub fn open_starts(&self, drops: u32) -> impl Iterator<Item = u64> {
        self.retained.iter().filter(move |r| r.drops == drops).map(|r| r.start)
    }

    pub fn state_at(&self, cut: u64, with_drop: bool) -> State {
        let mut state = self.settled.clone();
        for entry in self.kept(cut, with_drop) {
            state.apply(&entry.what);
        }
        state
    }

    /// A crash left no log, and of a drop no entry is known to follow: nothing but a checkpoint may tell of it so far. The
    /// journal is told before it takes anything else, and until that is durable the drop is lost with the checkpoint:
    /// then the log is as it was. So it stays open. `false`: there is no such drop.
    pub fn settle_dropped(&mut self, cut: u64) -> bool {
        let told = self.kept(cut, false).count();
        let open: VecDeque<Entry> = self.kept(cut, true).skip(told).cloned().collect();
        // An entry that was accepted behind it tells that the journal has it.
        if open.is_empty() || open.iter().any(|e| e.marker_max.is_some()) {
            return false;
        }
        let (before, now) = (self.state_at(cut, false), self.state_at(cut, true));
        self.settle(before);
        self.now = now;
        self.pending = open.into_iter().map(|e| Entry { marker: cut, marker_max: None, ..e }).collect();
        true
    }

    /// This is what a crash left.
    pub fn settle(&mut self, state: State) {
        self.now = state.clone();
        self.settled = state;
        self.pending.clear();
        self.retained.clear();
    }
}
