//! Whether the next entry waits a moment for more requests. An entry costs much the same however much is in it: three
//! logs are flushed for it, and three nodes woken up. Those who were just answered are often about to ask again; when
//! their requests come while the entry of the others is under way, two entries in turns do the work of one.
//!
//! Control core, pure. What was answered last and what waits already says how much is expected. Where nobody comes back,
//! the wait was in vain, and there is none for a number of entries, which doubles each time.

use crate::control::limits::{GATHER_ENOUGH, GATHER_MIN, GATHER_SKIPS_MAX};

#[derive(Debug, Default)]
pub(super) struct Gather {
    /// Requests that make it worth proposing, while the next entry waits for them.
    wanted: usize,
    /// Entries that do not wait.
    skips: u32,
    /// The last times that were in vain.
    in_vain: u32,
}

impl Gather {
    /// An entry answers `answered` requests, and `waiting` came meanwhile.
    pub fn on_answered(&mut self, answered: usize, waiting: usize) {
        self.wanted = 0;
        if self.skips > 0 {
            self.skips -= 1;
        } else if answered >= GATHER_MIN && waiting > 0 {
            self.wanted = GATHER_ENOUGH.min((answered + waiting) * 3 / 4);
        }
    }

    /// Whether so many are too few to be proposed yet.
    pub fn waits(&mut self, waiting: usize) -> bool {
        if waiting < self.wanted {
            return true;
        }
        if self.wanted > 0 {
            self.in_vain = 0;
        }
        self.wanted = 0;
        false
    }

    /// They did not come.
    pub fn on_timeout(&mut self) {
        self.wanted = 0;
        self.skips = (1 << self.in_vain).min(GATHER_SKIPS_MAX);
        self.in_vain = (self.in_vain + 1).min(GATHER_SKIPS_MAX.ilog2());
    }
}
