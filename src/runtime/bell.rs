//! The doorbell of the control core as something that tokio waits for. Driver.

#![expect(
    unsafe_code,
    reason = "tokio cannot know by itself that a descriptor stays open while it watches it"
)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use highwater_shards::reactor::mailbox::Doorbell;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// See the module's header.
pub(super) struct Bell {
    watched: AsyncFd<Rung>,
}

struct Rung(Arc<Doorbell>);

impl AsRawFd for Rung {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Bell {
    /// # Errors
    /// When the runtime's poll has no room for it.
    pub fn new(doorbell: Arc<Doorbell>) -> io::Result<Self> {
        // SAFETY: the eventfd belongs to the doorbell, which the `Arc` within the `AsyncFd` keeps alive; nothing
        // replaces or closes it before.
        let watched = unsafe { AsyncFd::register_with_interest(Rung(doorbell), Interest::READABLE) };
        Ok(Self { watched: watched.map_err(|error| io::Error::other(error.to_string()))? })
    }

    /// Waits until it rang, and makes it silent.
    pub async fn rung(&self) {
        if let Ok(mut guard) = self.watched.readable().await {
            guard.clear_ready();
        }
        self.watched.get_ref().0.drain();
    }
}
