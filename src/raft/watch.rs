//! A watched value: openraft's watch channel.
//!
//! Driver; control core and the log's writer. Who waits is woken in the order in which it began to: tokio's own watch
//! wakes its receivers in an order drawn by lot, which no seed of ours reaches.

#![expect(
    clippy::disallowed_types,
    reason = "driver: the log's writer tells the control core what is durable"
)]

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use openraft::async_runtime::watch::{RecvError, SendError, Watch, WatchReceiver, WatchSender};
use tokio::sync::Notify;

/// See the module.
#[derive(Debug)]
pub struct FairWatch;

#[derive(Debug)]
struct Shared<T> {
    value: RwLock<T>,
    /// How often it changed. Grows while the value is locked.
    version: AtomicU64,
    senders: AtomicUsize,
    receivers: AtomicUsize,
    changed: Notify,
}

impl<T> Shared<T> {
    fn read(&self) -> RwLockReadGuard<'_, T> {
        self.value.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the value if `change` says that it did.
    fn modify(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let mut value = self.value.write().unwrap_or_else(PoisonError::into_inner);
        if !change(&mut value) {
            return false;
        }
        self.version.fetch_add(1, Ordering::AcqRel);
        drop(value);
        self.changed.notify_waiters();
        true
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }
}

/// Changes the value.
#[derive(Debug)]
pub struct Sender<T>(Arc<Shared<T>>);

/// Sees changes of the value.
#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    /// The last version that it saw.
    seen: u64,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.senders.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}

impl<T> Receiver<T> {
    fn of(shared: &Arc<Shared<T>>, seen: u64) -> Self {
        shared.receivers.fetch_add(1, Ordering::AcqRel);
        Self { shared: Arc::clone(shared), seen }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self::of(&self.shared, self.seen)
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.receivers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Watch for FairWatch {
    type Sender<T> = Sender<T>;
    type Receiver<T> = Receiver<T>;
    type Ref<'a, T: 'a> = RwLockReadGuard<'a, T>;

    fn channel<T>(init: T) -> (Sender<T>, Receiver<T>) {
        let shared = Arc::new(Shared {
            value: RwLock::new(init),
            version: AtomicU64::new(0),
            senders: AtomicUsize::new(1),
            receivers: AtomicUsize::new(0),
            changed: Notify::new(),
        });
        let receiver = Receiver::of(&shared, 0);
        (Sender(shared), receiver)
    }
}

impl<T> WatchSender<FairWatch, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        if self.0.receivers.load(Ordering::Acquire) == 0 {
            return Err(SendError(value));
        }
        self.0.modify(|old| {
            *old = value;
            true
        });
        Ok(())
    }

    fn send_if_modified<F: FnOnce(&mut T) -> bool>(&self, modify: F) -> bool {
        self.0.modify(modify)
    }

    fn borrow_watched(&self) -> RwLockReadGuard<'_, T> {
        self.0.read()
    }

    fn subscribe(&self) -> Receiver<T> {
        Receiver::of(&self.0, self.0.version())
    }
}

impl<T> WatchReceiver<FairWatch, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        loop {
            // Made before the look, so that no change falls between the two.
            let told = self.shared.changed.notified();
            // The last change comes before the end.
            let ended = self.shared.senders.load(Ordering::Acquire) == 0;
            let version = self.shared.version();
            if version != self.seen {
                self.seen = version;
                return Ok(());
            }
            if ended {
                return Err(RecvError(()));
            }
            told.await;
        }
    }

    fn borrow_watched(&self) -> RwLockReadGuard<'_, T> {
        self.shared.read()
    }

    fn borrow_and_update(&mut self) -> RwLockReadGuard<'_, T> {
        let value = self.shared.read();
        self.seen = self.shared.version();
        value
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_change_is_seen_once_and_the_end_after_it() {
        let (sender, mut receiver) = FairWatch::channel(1);
        let mut late = sender.subscribe();
        assert!(receiver.changed().now_or_never().is_none());
        sender.send(2).unwrap();
        assert_eq!(receiver.changed().now_or_never(), Some(Ok(())));
        assert_eq!(*receiver.borrow_watched(), 2);
        assert!(receiver.changed().now_or_never().is_none());
        assert!(!sender.send_if_different(2) && sender.send_if_greater(3));
        assert_eq!(*late.borrow_and_update(), 3);
        assert!(late.changed().now_or_never().is_none(), "it saw that");
        let other = sender.clone();
        drop(sender);
        assert_eq!(receiver.changed().now_or_never(), Some(Ok(())));
        assert!(receiver.changed().now_or_never().is_none(), "there is another sender");
        drop(other);
        assert_eq!(receiver.changed().now_or_never(), Some(Err(RecvError(()))));
    }

    #[test]
    fn who_waits_is_woken_by_a_change_and_by_the_end() {
        let (sender, mut receiver) = FairWatch::channel(1);
        {
            let mut waiting = std::pin::pin!(receiver.changed());
            assert!(waiting.as_mut().now_or_never().is_none());
            sender.send(2).unwrap();
            assert_eq!(waiting.now_or_never(), Some(Ok(())));
        }
        let mut waiting = std::pin::pin!(receiver.changed());
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(sender);
        assert_eq!(waiting.now_or_never(), Some(Err(RecvError(()))));
    }

    #[test]
    fn nobody_is_told_where_nobody_watches() {
        let (sender, receiver) = FairWatch::channel(1);
        drop(receiver);
        assert_eq!(sender.send(2), Err(SendError(2)));
        assert_eq!(*sender.borrow_watched(), 1);
    }
}
