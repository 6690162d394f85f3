//! Windows of segment files: those in memory, within a budget, and those on their way. Floor 1, pure.
//!
//! A window begins where a frame begins. Windows that readers are through with make room first, then those that were
//! used longest ago. One that was fetched ahead and still waits for its reader is left alone for a while: when there
//! are more sequential readers than the budget has windows, some of them get none, rather than all of them windows
//! that are gone before they are used.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

use super::super::disk::SegmentName;
use super::job::JobId;
use crate::ids::PartitionId;

/// What a window costs at least, in bytes: windows at the growing end of a log are small.
const CHARGE_MIN: usize = 4096;
/// One log gets this part of the budget.
const LOG_SHARE: usize = 8;
/// For so many uses of windows, one that was fetched ahead is left for its reader.
const UNREAD_KEPT_USES: u64 = 1024;

/// The file and the position at which a window begins.
pub(super) type Place = (SegmentName, u64);

#[derive(Debug)]
enum Window {
    Coming(Coming),
    Here(Here),
}

impl Window {
    fn len(&self) -> u64 {
        match self {
            Self::Here(here) => here.bytes.len() as u64,
            Self::Coming(coming) => u64::from(coming.len),
        }
    }
}

#[derive(Debug)]
pub(super) struct Coming {
    pub serial: u64,
    pub len: u32,
    /// Nobody asked for it yet when it was asked of the disk; counted in the budget.
    pub is_ahead: bool,
    pub is_issued: bool,
    pub waiters: Vec<JobId>,
}

#[derive(Debug)]
struct Here {
    bytes: Bytes,
    age: Age,
    /// Fetched ahead, and no reader came yet.
    is_unread: bool,
}

/// What goes first when room is needed: `false` first, then the smaller use.
type Age = (bool, u64);

/// What there is for a reader.
#[derive(Debug)]
pub(super) enum Found {
    /// From this position on.
    Here(u64, Bytes),
    /// To be waited for.
    Coming(Place),
    Nothing,
}

#[derive(Debug)]
pub(super) struct Windows {
    all: BTreeMap<Place, Window>,
    by_age: BTreeMap<Age, Place>,
    /// Bytes of the windows that count, by log.
    per_log: BTreeMap<PartitionId, usize>,
    uses: u64,
    bytes: usize,
    bytes_max: usize,
    log_bytes_max: usize,
    pub ahead_hits: u64,
}

fn charge(len: usize) -> usize {
    len.max(CHARGE_MIN)
}

impl Windows {
    pub fn new(bytes_max: usize, window_bytes: usize) -> Self {
        // With a small budget still two windows: the one that is read, and the next.
        let log_bytes_max = (bytes_max / LOG_SHARE).max(2 * charge(window_bytes)).min(bytes_max);
        Self {
            all: BTreeMap::new(),
            by_age: BTreeMap::new(),
            per_log: BTreeMap::new(),
            uses: 0,
            bytes: 0,
            bytes_max,
            log_bytes_max,
            ahead_hits: 0,
        }
    }

    /// What holds `need` bytes of the file from `position` on.
    pub fn find(&mut self, (name, position): Place, need: usize) -> Found {
        let Some((&place, window)) = self.all.range_mut((name, 0)..=(name, position)).next_back() else {
            return Found::Nothing;
        };
        let need_end = position + need as u64;
        match window {
            Window::Here(here) if place.1 + here.bytes.len() as u64 >= need_end => {
                self.ahead_hits += u64::from(std::mem::take(&mut here.is_unread));
                let bytes = here.bytes.clone();
                self.touch(place, true);
                Found::Here(place.1, bytes)
            }
            // One that begins here is waited for even if it is too short: it is the key of what comes next.
            Window::Coming(coming) if place.1 == position || place.1 + u64::from(coming.len) >= need_end => {
                Found::Coming(place)
            }
            _ => Found::Nothing,
        }
    }

    /// Whether something begins at `place`, or holds bytes from there on; but for `through`, with which a reader is
    /// through.
    pub fn has(&self, (name, position): Place, through: Option<Place>) -> bool {
        let before = self.all.range((name, 0)..=(name, position)).next_back();
        before.is_some_and(|(place, window)| {
            let reaches_there = Some(*place) != through && place.1 + window.len() > position;
            place.1 == position || reaches_there
        })
    }

    /// A window that a job needs; what began there is too short.
    pub fn expect(&mut self, place: Place, serial: u64, len: u32, job: JobId) {
        self.remove(place);
        let coming = Coming { serial, len, is_ahead: false, is_issued: false, waiters: vec![job] };
        self.all.insert(place, Window::Coming(coming));
    }

    /// A window that nobody asked for yet, if there is room for it.
    pub fn expect_ahead(&mut self, place: Place, serial: u64, len: u32) -> bool {
        assert!(!self.all.contains_key(&place), "a window is fetched ahead only when it is not there");
        if !self.make_room(place.0.partition, len as usize) {
            return false;
        }
        self.count(place.0.partition, len as usize);
        let coming = Coming { serial, len, is_ahead: true, is_issued: false, waiters: Vec::new() };
        self.all.insert(place, Window::Coming(coming));
        true
    }

    /// The window on its way to `place`, if it is the one with this serial.
    pub fn coming(&mut self, place: Place, serial: u64) -> Option<&mut Coming> {
        match self.all.get_mut(&place)? {
            Window::Coming(coming) if coming.serial == serial => Some(coming),
            _ => None,
        }
    }

    /// Has a job wait for a window on its way; its serial and length if the disk has not been asked yet.
    pub fn wait(&mut self, place: Place, job: JobId) -> Option<(u64, u32)> {
        let Some(Window::Coming(coming)) = self.all.get_mut(&place) else {
            unreachable!("a job waits for what is on its way")
        };
        self.ahead_hits += u64::from(coming.is_ahead && coming.waiters.is_empty());
        coming.waiters.push(job);
        (!coming.is_issued).then_some((coming.serial, coming.len))
    }

    /// Takes the bytes of a window that was on its way, `None` if it failed, and keeps them if there is room. Who waited.
    pub fn arrive(&mut self, place: Place, bytes: Option<&Bytes>) -> Vec<JobId> {
        let Some(Window::Coming(coming)) = self.all.remove(&place) else {
            unreachable!("only what is on its way arrives")
        };
        if coming.is_ahead {
            self.uncount(place.0.partition, coming.len as usize);
        }
        let Some(bytes) = bytes else { return coming.waiters };
        if self.make_room(place.0.partition, bytes.len()) {
            self.count(place.0.partition, bytes.len());
            self.uses += 1;
            let age = (true, self.uses);
            self.by_age.insert(age, place);
            let is_unread = coming.is_ahead && coming.waiters.is_empty();
            self.all.insert(place, Window::Here(Here { bytes: bytes.clone(), age, is_unread }));
        }
        coming.waiters
    }

    /// A reader is through with the window that begins here.
    pub fn spend(&mut self, place: Place) {
        self.touch(place, false);
    }

    /// Forgets all of `name` that reaches behind `bytes`, also what is on its way.
    pub fn forget(&mut self, name: SegmentName, bytes: u64) {
        let places = self.all.range((name, 0)..=(name, u64::MAX));
        let places = places.filter(|(place, window)| place.1 + window.len() > bytes);
        let places: Vec<Place> = places.map(|(place, _)| *place).collect();
        for place in places {
            self.remove(place);
        }
    }

    /// Forgets all of one log, whose names lie in this range.
    pub fn forget_log(&mut self, within: Range<SegmentName>) {
        let range = (within.start, 0)..(within.end, 0);
        let places: Vec<Place> = self.all.range(range).map(|(place, _)| *place).collect();
        for place in places {
            self.remove(place);
        }
    }

    /// In use, as the budget counts.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn touch(&mut self, place: Place, is_wanted: bool) {
        let Some(Window::Here(here)) = self.all.get_mut(&place) else { return };
        self.by_age.remove(&here.age);
        self.uses += 1;
        here.age = (is_wanted, self.uses);
        self.by_age.insert(here.age, place);
    }

    fn remove(&mut self, place: Place) {
        match self.all.remove(&place) {
            Some(Window::Here(here)) => {
                self.by_age.remove(&here.age);
                self.uncount(place.0.partition, here.bytes.len());
            }
            Some(Window::Coming(coming)) if coming.is_ahead => {
                self.uncount(place.0.partition, coming.len as usize);
            }
            Some(Window::Coming(_)) | None => {}
        }
    }

    /// `false`: there is no room for so much, or only in place of what should stay.
    fn make_room(&mut self, partition: PartitionId, len: usize) -> bool {
        let len = charge(len);
        if len > self.log_bytes_max {
            return false;
        }
        while self.per_log.get(&partition).copied().unwrap_or(0) + len > self.log_bytes_max {
            let log = super::names_of(partition);
            let log = self.all.range((log.start, 0)..(log.end, 0));
            let oldest = log
                .filter_map(|(place, window)| match window {
                    Window::Here(here) => Some((here.age, *place)),
                    Window::Coming(_) => None,
                })
                .min();
            if !self.give_up(oldest) {
                return false;
            }
        }
        while self.bytes + len > self.bytes_max {
            let oldest = self.by_age.first_key_value().map(|(age, place)| (*age, *place));
            if !self.give_up(oldest) {
                return false;
            }
        }
        true
    }

    /// Drops a window to make room, unless it is to be left for its reader.
    fn give_up(&mut self, window: Option<(Age, Place)>) -> bool {
        let Some((age, place)) = window else { return false };
        let Some(Window::Here(here)) = self.all.get(&place) else {
            unreachable!("only windows that are here have an age")
        };
        if here.is_unread && self.uses - age.1 < UNREAD_KEPT_USES {
            return false;
        }
        self.remove(place);
        true
    }

    fn count(&mut self, partition: PartitionId, len: usize) {
        self.bytes += charge(len);
        *self.per_log.entry(partition).or_default() += charge(len);
    }

    fn uncount(&mut self, partition: PartitionId, len: usize) {
        self.bytes -= charge(len);
        let log = self.per_log.get_mut(&partition).expect("a log of which windows count is there");
        *log -= charge(len);
        if *log == 0 {
            self.per_log.remove(&partition);
        }
    }

    /// Bytes of the log's windows, counted anew; for tests.
    #[cfg(test)]
    pub fn check(&self) -> usize {
        let mut per_log: BTreeMap<PartitionId, usize> = BTreeMap::new();
        for (place, window) in &self.all {
            let len = match window {
                Window::Here(here) => {
                    assert_eq!(self.by_age.get(&here.age), Some(place));
                    here.bytes.len()
                }
                Window::Coming(coming) if coming.is_ahead => coming.len as usize,
                Window::Coming(_) => continue,
            };
            *per_log.entry(place.0.partition).or_default() += charge(len);
        }
        assert_eq!(per_log, self.per_log);
        assert_eq!(self.bytes, per_log.values().sum::<usize>());
        assert!(self.bytes <= self.bytes_max, "{} of {}", self.bytes, self.bytes_max);
        assert!(per_log.values().all(|&bytes| bytes <= self.log_bytes_max));
        self.all.len()
    }
}
