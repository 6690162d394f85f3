//! The life of one shard's thread: pinned, set up, told to go, turned until it stops.
//!
//! Everything of the shard is made here, after pinning, so that its memory lies near its core.

use std::mem::ManuallyDrop;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::mpsc;

use tracing::info;

use super::driver::{Driver, Parts};
use super::files::{Journal, Partitions};
use super::links::LinkConfig;
use super::post::{Mailboxes, Post};
use super::ring::{KernelUse, Ring};
use super::spin::{Spin, Spinner};
use crate::ids::ShardId;
use crate::reactor::boot::{ExitReporter, StartError, pin};
use crate::shard::Machine;

/// What a shard's thread begins with.
pub(crate) struct Start<M: Machine> {
    pub shard: ShardId,
    pub core: Option<usize>,
    pub journal_dir: PathBuf,
    pub partitions_dir: PathBuf,
    pub open_files_max: usize,
    pub listeners: Vec<OwnedFd>,
    pub link: LinkConfig,
    pub spin: Spin,
    /// Whether there are more cores than shards.
    pub spare_core: bool,
    pub kernel_use: KernelUse,
    pub mail: Mailboxes<M::Front>,
    pub make: Box<dyn FnOnce() -> M + Send>,
    /// Says once whether the shard is set up, with the number of its ring.
    pub ready: mpsc::Sender<(ShardId, Result<RawFd, StartError>)>,
    /// The rings of all shards once all are set up; nothing when one of them failed.
    pub go: mpsc::Receiver<Vec<RawFd>>,
    pub exit: ExitReporter,
}

pub(crate) fn run<M: Machine>(start: Start<M>) {
    let shard = start.shard;
    let (ring, journal, partitions) = match set_up(&start) {
        Ok(made) => made,
        Err(error) => {
            // Nobody listens only when the starter has gone, and then nobody starts.
            let _ = start.ready.send((shard, Err(error)));
            return;
        }
    };
    let _ = start.ready.send((shard, Ok(ring.fd())));
    drop(start.ready);
    let Ok(rings) = start.go.recv() else { return };
    let exit = start.exit;
    let parts = Parts {
        shard,
        ring,
        link: start.link,
        listeners: start.listeners,
        journal,
        partitions,
        post: Post::new(start.mail, rings),
        spinner: Spinner::new(start.spin, start.spare_core),
    };
    // Dropped only when nothing is in flight any more: not after a panic either.
    let mut driver = ManuallyDrop::new(Driver::new(parts, (start.make)()));
    info!(%shard, core = start.core, "serving");
    if driver.run(|how| exit.report(how)) {
        drop(ManuallyDrop::into_inner(driver));
    }
}

fn set_up<M: Machine>(start: &Start<M>) -> Result<(Ring, Journal, Partitions), StartError> {
    if let Some(core) = start.core {
        pin(start.shard, core)?;
    }
    let ring = Ring::new(start.kernel_use)?;
    let journal = Journal::open(&start.journal_dir)?;
    Ok((ring, journal, Partitions::open(&start.partitions_dir, start.open_files_max)?))
}
