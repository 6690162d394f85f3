//! One direction between two cores: a bounded lock-free ring, the receiver's bell, and the eventfd that wakes it.
//!
//! A push that finds the ring full hands the message back; it never waits. Each ordered pair of cores has a ring of
//! its own, so a slow receiver fills only its own rings. Draining is the receiver's business alone.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::bell::Bell;

/// The ring has no room; the message comes back.
#[derive(Debug, thiserror::Error)]
#[error("the mailbox is full: its core does not keep up; try again later")]
pub struct Full<T>(pub T);

/// What a receiving core sleeps on: its bell, and an eventfd for who wakes it by a system call.
#[derive(Debug)]
pub struct Doorbell {
    bell: Bell,
    eventfd: OwnedFd,
}

impl Doorbell {
    /// # Errors
    ///
    /// When the process has no file descriptors left.
    pub fn new() -> io::Result<Self> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { bell: Bell::new(), eventfd })
    }

    /// Sender, after its pushes: wakes the receiver if it sleeps.
    pub fn ring(&self) {
        if self.bell.knock() {
            self.wake();
        }
    }

    /// Sender, after its pushes: whether the receiver sleeps and this caller has to wake it in its own way.
    #[must_use = "a sleeping receiver has to be woken"]
    pub fn knock(&self) -> bool {
        self.bell.knock()
    }

    /// Wakes the receiver, whether it sleeps or not.
    pub fn wake(&self) {
        match rustix::io::write(&self.eventfd, &1_u64.to_ne_bytes()) {
            // The counter is full only when it has been readable for long.
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(e) => unreachable!("an eventfd takes 8 bytes: {e}"),
        }
    }

    /// Receiver: makes the eventfd unreadable until the next wake-up.
    pub fn drain(&self) {
        let mut count = [0; 8];
        match rustix::io::read(&self.eventfd, &mut count) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(e) => unreachable!("an eventfd gives 8 bytes: {e}"),
        }
    }

    /// Receiver: see [`Bell::may_sleep`].
    #[must_use = "parking without leave loses wake-ups"]
    pub fn may_sleep(&self, empty: impl FnOnce() -> bool) -> bool {
        self.bell.may_sleep(empty)
    }

    /// Receiver: see [`Bell::up`].
    pub fn up(&self) {
        self.bell.up();
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}

impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.eventfd.as_raw_fd()
    }
}

/// The sending end of one direction between two cores.
#[derive(Debug)]
pub struct Sender<T> {
    ring: Arc<ArrayQueue<T>>,
    doorbell: Arc<Doorbell>,
}

/// The receiving end of one direction between two cores.
#[derive(Debug)]
pub struct Receiver<T> {
    ring: Arc<ArrayQueue<T>>,
}

/// A ring of `slots` places toward the core that sleeps on `doorbell`.
pub fn mailbox<T: Send>(slots: usize, doorbell: &Arc<Doorbell>) -> (Sender<T>, Receiver<T>) {
    let ring = Arc::new(ArrayQueue::new(slots));
    (Sender { ring: Arc::clone(&ring), doorbell: Arc::clone(doorbell) }, Receiver { ring })
}

impl<T> Sender<T> {
    /// Puts a message into the ring and wakes nobody; [`Self::doorbell`] is rung once after a batch of pushes.
    ///
    /// # Errors
    ///
    /// When the ring is full.
    pub fn push(&self, message: T) -> Result<(), Full<T>> {
        self.ring.push(message).map_err(Full)
    }

    pub fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }
}

impl<T> Receiver<T> {
    pub fn pop(&self) -> Option<T> {
        self.ring.pop()
    }

    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// Messages that the ring holds at most; also the bound of one batch.
    pub fn slots(&self) -> usize {
        self.ring.capacity()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "a test of threads starts them")]

    use super::*;

    #[test]
    fn a_full_ring_hands_the_message_back() {
        let doorbell = Arc::new(Doorbell::new().unwrap());
        let (tx, rx) = mailbox(2, &doorbell);
        tx.push("a").unwrap();
        tx.push("b").unwrap();
        assert_eq!(tx.push("c").unwrap_err().0, "c");
        assert_eq!(rx.pop(), Some("a"));
        tx.push("c").unwrap();
        assert_eq!((rx.pop(), rx.pop(), rx.pop()), (Some("b"), Some("c"), None));
    }

    #[test]
    fn a_sleeping_thread_gets_every_message() {
        const MESSAGES: u64 = 100_000;
        let doorbell = Arc::new(Doorbell::new().unwrap());
        let (tx, rx) = mailbox(64, &doorbell);
        let sender = std::thread::spawn(move || {
            for n in 0..MESSAGES {
                let mut message = n;
                while let Err(Full(back)) = tx.push(message) {
                    message = back;
                    std::thread::yield_now();
                }
                tx.doorbell().ring();
            }
        });
        let mut expected = 0;
        while expected < MESSAGES {
            while let Some(n) = rx.pop() {
                assert_eq!(n, expected);
                expected += 1;
            }
            if expected < MESSAGES && doorbell.may_sleep(|| rx.is_empty()) {
                let mut polled = [rustix::event::PollFd::new(&*doorbell, rustix::event::PollFlags::IN)];
                rustix::event::poll(&mut polled, None).unwrap();
                doorbell.up();
                doorbell.drain();
            }
        }
        sender.join().unwrap();
    }

    #[test]
    fn an_awake_receiver_is_not_woken() {
        let doorbell = Doorbell::new().unwrap();
        assert!(!doorbell.knock());
        assert!(doorbell.may_sleep(|| true));
        assert!(doorbell.knock(), "the first sender wakes");
        assert!(!doorbell.knock(), "the second need not");
        assert!(!doorbell.may_sleep(|| false));
        assert!(!doorbell.knock(), "a receiver that stayed up is not woken");
    }
}
