//! The protocol of `bell.rs` under loom, which tries every order of the cores' steps that the memory model allows.
//!
//! A slot is written with Release and read with Acquire, as the slots of a ring are and no stronger.

mod sync {
    pub use loom::sync::atomic::{AtomicBool, Ordering, fence};
}

#[path = "bell.rs"]
#[expect(clippy::duplicate_mod, reason = "with other atomics")]
mod bell;

use bell::Bell;
use loom::sync::Arc;
use loom::sync::atomic::AtomicUsize;
use loom::thread;
use sync::Ordering;

struct Core {
    bell: Bell,
    slots: [AtomicUsize; 2],
    wakes: AtomicUsize,
}

impl Core {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            bell: Bell::new(),
            slots: [AtomicUsize::new(0), AtomicUsize::new(0)],
            wakes: AtomicUsize::new(0),
        })
    }

    fn send(&self, slot: usize) {
        self.slots[slot].store(1, Ordering::Release);
        if self.bell.knock() {
            self.wakes.fetch_add(1, Ordering::Release);
        }
    }

    /// How many messages the receiver sees. Slots are written once, as positions in a ring only grow: loom does not
    /// order a plain store after an exchange that came before it.
    fn came(&self) -> usize {
        self.slots.iter().map(|s| s.load(Ordering::Acquire)).sum()
    }
}

#[test]
fn a_push_is_seen_before_sleeping_or_wakes_the_sleeper() {
    loom::model(|| {
        let core = Core::new();
        let sender = Arc::clone(&core);
        let other = thread::spawn(move || sender.send(0));
        let seen = core.came();
        let parked = core.bell.may_sleep(|| core.came() == seen);
        other.join().unwrap();
        if parked && seen == 0 {
            assert_eq!(core.wakes.load(Ordering::Acquire), 1, "the receiver sleeps on a message");
        }
    });
}

#[test]
fn of_two_senders_one_at_most_pays_for_the_wake_up() {
    // Three threads have many orders; those with up to three preemptions find what there is to find.
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let core = Core::new();
        let [a, b] = [0, 1].map(|slot| {
            let sender = Arc::clone(&core);
            thread::spawn(move || sender.send(slot))
        });
        let seen = core.came();
        let parked = core.bell.may_sleep(|| core.came() == seen);
        a.join().unwrap();
        b.join().unwrap();
        let wakes = core.wakes.load(Ordering::Acquire);
        if parked {
            assert!(wakes == 1 || seen == 2, "{wakes} wake-ups, {seen} seen");
        }
        assert!(wakes <= 1, "{wakes} wake-ups");
    });
}
