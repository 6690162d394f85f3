//! Opens the store, and the thread that writes it.
//!
//! Driver. Work comes through a bounded channel; the thread takes all that waits, makes it durable with one flush, and
//! tells what became of each item. When the disk is full, work fails and the node goes on; after any other failed
//! write nothing is known of the disk any more, and the node stops.

#![expect(clippy::disallowed_methods, reason = "driver: waits for space on the disk")]

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::ahead;
use super::db::{Db, FORMAT, Opener};
use super::error::StoreError;
use super::folder::{Directory, Folder as _};
use super::identity::{Identity, cluster_id};
use super::{FILE_NAME, Opened, StoreConfig, file_in};
use crate::control::forming::Founders;
use crate::control::metadata::image::Incarnation;
use crate::control::{Input, KeepId, Placements};
use crate::raft::DiskId;

/// Work that waits for the thread at most. The control core has one placement under way.
const WORK_MAX: usize = 16;
/// Between attempts to open the database again on a full disk.
const REOPEN_EVERY: Duration = Duration::from_secs(1);

/// What the store tells the control core.
#[derive(Debug)]
pub enum StoreEvent {
    /// What became of a placement.
    Input(Input),
    /// The cluster that the node is in is durable.
    ClusterKept,
    /// Nothing is known of the disk any more: the node has to stop.
    Failed(StoreError),
}

#[derive(Debug)]
enum Work {
    Placements { id: KeepId, changes: Placements },
    Cluster(Box<Identity>),
}

/// The handle to the thread. Dropping it lets the thread finish what it has, then ends it.
#[derive(Debug)]
pub struct Store {
    work: Option<SyncSender<Work>>,
    thread: Option<JoinHandle<()>>,
}

/// A store that is open, before this life of the node is written into it.
pub struct Found {
    config: StoreConfig,
    db: Db,
    opener: Opener,
    /// Who the node was in its last life; `None` in a new store.
    pub identity: Option<Identity>,
}

/// Opens or makes the store in the data directory, which has to exist.
///
/// # Errors
///
/// When the store is damaged, in use, or of another node, cluster or version.
pub fn open(config: &StoreConfig) -> Result<Found, StoreError> {
    let folder = Directory::at(&config.data_dir);
    let opener = {
        let folder = folder.clone();
        Box::new(move |builder: &redb::Builder| ahead::create(builder, &folder, FILE_NAME))
    };
    let found = open_with(config, opener)?;
    // A new file is only there after a crash once its name is durable.
    folder.sync().map_err(|error| io_error(&config.file(), &error))?;
    Ok(found)
}

fn io_error(file: &Path, error: &io::Error) -> StoreError {
    StoreError::Io { file: file.to_owned(), reason: error.to_string() }
}

pub(super) fn open_with(config: &StoreConfig, mut opener: Opener) -> Result<Found, StoreError> {
    let file = file_in(&config.data_dir);
    let at = |failure: super::error::Failure| failure.at(&file);
    let db = Db::open(&mut opener).map_err(at)?;
    let identity = match db.format().map_err(at)? {
        None => None,
        Some(FORMAT) => db.identity().map_err(at)?,
        Some(found) => return Err(StoreError::Format { file, found, known: FORMAT }),
    };
    if let Some(known) = &identity {
        check_identity(config, known, &file)?;
    }
    Ok(Found { config: config.clone(), db, opener, identity })
}

/// Whether the configuration speaks of the node that the store belongs to.
fn check_identity(config: &StoreConfig, known: &Identity, file: &Path) -> Result<(), StoreError> {
    let file = file.to_owned();
    if known.node != config.node {
        return Err(StoreError::OtherNode { file, found: known.node, configured: config.node });
    }
    if let Some(configured) = config.cluster_id.as_ref().filter(|id| **id != known.cluster_id) {
        let (found, configured) = (known.cluster_id.clone(), configured.clone());
        return Err(StoreError::OtherCluster { file, found, configured });
    }
    Ok(())
}

impl Found {
    /// Begins this life of the node: with the next incarnation, on the disk that its Raft log was made for. Events
    /// go to `events`, from the store's thread.
    ///
    /// # Errors
    ///
    /// When store and Raft log do not belong together, or the store cannot be written. `log_is_new` says that there
    /// is nothing in the log.
    pub fn begin(
        self,
        disk: DiskId,
        log_is_new: bool,
        events: impl FnMut(StoreEvent) + Send + 'static,
    ) -> Result<Opened, StoreError> {
        let file = self.config.file();
        let at = |failure: super::error::Failure| failure.at(&file);
        let identity = match self.identity {
            Some(known) if known.disk == disk => {
                Identity { incarnation: Incarnation(known.incarnation.0 + 1), ..known }
            }
            None if log_is_new => Identity {
                cluster_id: self.config.cluster_id.clone().unwrap_or_default(),
                node: self.config.node,
                incarnation: Incarnation(1),
                disk,
                founders: Founders::default(),
                clean_stop: None,
            },
            _ => return Err(StoreError::OtherLog { file }),
        };
        let identity = match identity.cluster_id.is_empty() && !self.config.forms {
            true => Identity { cluster_id: cluster_id(self.config.entropy), ..identity },
            false => identity,
        };
        self.db.write_identity(&identity).map_err(at)?;
        let placements = self.db.placements().map_err(at)?;
        let (work, inbox) = sync_channel(WORK_MAX);
        let writer =
            Writer { db: self.db, opener: self.opener, file: file.clone(), events: Box::new(events) };
        let thread = std::thread::Builder::new().name("hw-store".into()).spawn(move || writer.run(&inbox));
        let thread = thread.map_err(|error| io_error(&file, &error))?;
        let store = Store { work: Some(work), thread: Some(thread) };
        Ok(Opened { identity, placements, store })
    }
}

impl Store {
    /// Makes the placements durable, all or nothing; exactly one event tells what became of it.
    pub fn keep(&mut self, id: KeepId, changes: Placements) {
        self.send(Work::Placements { id, changes });
    }

    /// Makes durable which cluster the node is in, once in its life, and at the end of it that it stopped cleanly;
    /// [`StoreEvent::ClusterKept`] tells when, and so does dropping the store.
    pub fn keep_cluster(&mut self, identity: Identity) {
        self.send(Work::Cluster(Box::new(identity)));
    }

    fn send(&mut self, work: Work) {
        let sender = self.work.as_ref().expect("it is taken away only when the store is dropped");
        match sender.try_send(work) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => unreachable!("the control core has one placement under way"),
            // The thread has told of its end by an event already.
            Err(TrySendError::Disconnected(_)) => {}
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.work = None;
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has ended too, and said why.
            let _ = thread.join();
        }
    }
}

struct Writer {
    db: Db,
    opener: Opener,
    file: PathBuf,
    events: Box<dyn FnMut(StoreEvent) + Send>,
}

/// Why the thread ends.
enum End {
    Dropped,
    Failed(StoreError),
}

impl Writer {
    fn run(mut self, inbox: &Receiver<Work>) {
        while let Ok(first) = inbox.recv() {
            let mut batch = vec![first];
            while batch.len() < WORK_MAX
                && let Ok(more) = inbox.try_recv()
            {
                batch.push(more);
            }
            match self.write(batch, inbox) {
                Ok(()) => {}
                Err(End::Dropped) => return,
                Err(End::Failed(error)) => return (self.events)(StoreEvent::Failed(error)),
            }
        }
    }

    /// Makes the batch durable and tells what became of it.
    fn write(&mut self, batch: Vec<Work>, inbox: &Receiver<Work>) -> Result<(), End> {
        let (mut placements, mut clusters) = (Vec::new(), Vec::new());
        for work in batch {
            match work {
                Work::Placements { id, changes } => placements.push((id, changes)),
                Work::Cluster(identity) => clusters.push(identity),
            }
        }
        for identity in clusters {
            self.write_cluster(&identity, inbox)?;
        }
        if placements.is_empty() {
            return Ok(());
        }
        let changes = placements.iter().map(|(_, changes)| changes);
        match self.db.write(changes).map_err(|failure| failure.at(&self.file)) {
            Ok(()) => {
                placements
                    .into_iter()
                    .for_each(|(id, _)| (self.events)(StoreEvent::Input(Input::Kept { id })));
                Ok(())
            }
            Err(error @ StoreError::Full { .. }) => {
                // The database takes no more until it is opened again. Whether the write counts after all does not
                // matter: the same placements are kept again, or others in their place.
                self.reopen(inbox)?;
                placements.into_iter().for_each(|(id, _)| self.tell_failed(id, &error.to_string()));
                Ok(())
            }
            Err(error) => Err(End::Failed(error)),
        }
    }

    /// Tries until there is space for it: without it the node is nothing.
    fn write_cluster(&mut self, identity: &Identity, inbox: &Receiver<Work>) -> Result<(), End> {
        loop {
            match self.db.write_identity(identity).map_err(|failure| failure.at(&self.file)) {
                Ok(()) => {
                    (self.events)(StoreEvent::ClusterKept);
                    return Ok(());
                }
                Err(StoreError::Full { .. }) => {
                    tracing::warn!("no space left to write down which cluster this node is in");
                    self.reopen(inbox)?;
                    std::thread::sleep(REOPEN_EVERY);
                }
                Err(error) => return Err(End::Failed(error)),
            }
        }
    }

    /// Opens the database again, however long there is no space for that. Work that comes meanwhile is refused.
    fn reopen(&mut self, inbox: &Receiver<Work>) -> Result<(), End> {
        loop {
            let file = &self.file;
            let error = match self.db.reopen(&mut self.opener).map_err(|failure| failure.at(file)) {
                Ok(()) => return Ok(()),
                Err(error @ StoreError::Full { .. }) => error,
                Err(error) => return Err(End::Failed(error)),
            };
            match inbox.recv_timeout(REOPEN_EVERY) {
                Ok(Work::Placements { id, .. }) => self.tell_failed(id, &error.to_string()),
                // Only the word that the node stopped cleanly can come now: without space it did not.
                Ok(Work::Cluster(_)) => {}
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(End::Dropped),
            }
        }
    }

    fn tell_failed(&mut self, id: KeepId, reason: &str) {
        (self.events)(StoreEvent::Input(Input::KeepFailed { id, reason: reason.to_owned() }));
    }
}
