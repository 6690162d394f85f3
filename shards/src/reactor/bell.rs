//! The sleep and wake protocol between cores: a wake-up is paid only when the receiver said that it sleeps.
//!
//! One bell belongs to each receiving core and is shared by all who send to it. The receiver sets `asleep`, fences,
//! looks into all its rings once more and only then parks; a sender pushes, fences, and wakes the receiver when it
//! finds `asleep` set, clearing it so that one sender pays for all. Of the two fences one comes first in their single
//! order, so either the receiver's second look finds the push or the sender finds the flag: no wake is lost.
//!
//! Tests compile this file a second time under loom (`bell_under_loom.rs`), which is why it takes its atomics from
//! `super::sync`.

use super::sync::{AtomicBool, Ordering, fence};

#[derive(Debug)]
pub struct Bell {
    asleep: AtomicBool,
}

impl Default for Bell {
    fn default() -> Self {
        Self::new()
    }
}

impl Bell {
    pub fn new() -> Self {
        Self { asleep: AtomicBool::new(false) }
    }

    /// Sender, after a batch of pushes: whether it has to wake the receiver now. True for one sender only.
    #[must_use = "a sleeping receiver has to be woken"]
    pub fn knock(&self) -> bool {
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed)
    }

    /// Receiver, before it parks: whether it may. `empty` looks into every ring that the receiver drains. Once this
    /// said true, every push ends in a wake-up until [`Self::up`].
    #[must_use = "parking without leave loses wake-ups"]
    pub fn may_sleep(&self, empty: impl FnOnce() -> bool) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if empty() {
            return true;
        }
        self.up();
        false
    }

    /// Receiver, after it parked and before it drains its rings: senders need not wake it any more. A wake-up that
    /// is on its way already comes in vain.
    pub fn up(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }
}
