//! Opens the store, and the thread that writes it.
//!
//! Driver. Work comes through a bounded channel; the thread takes all that waits, makes it durable with one flush, and
//! tells what became of each item. When the disk is full, work fails and the node goes on; after any other failed
//! write nothing is known of the disk any more, and the node stops.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use highwater_shards::ids::Revision;

use super::db::{Changes, Db, FORMAT, Opener};
use super::error::StoreError;
use super::identity::{Identity, cluster_id};
use super::{LocalStore, MetadataLog, Opened, StoreConfig, file_in};
use crate::control::metadata::command::Entry;
use crate::control::metadata::image::{Image, Incarnation};
use crate::control::{Input, KeepId, Placements, ProposalId};

/// Work that waits for the thread at most. The control core has one proposal, one placement and one snapshot under way.
const WORK_MAX: usize = 16;
/// Entries behind a snapshot that make the next one due.
const SNAPSHOT_EVERY: u64 = 1000;
/// Between attempts to open the database again on a full disk.
const REOPEN_EVERY: Duration = Duration::from_secs(1);

/// What the store tells the control core.
#[derive(Debug)]
pub enum StoreEvent {
    /// What became of a proposal or a placement.
    Input(Input),
    /// A snapshot up to this revision is durable.
    Snapshotted(Revision),
    /// Nothing is known of the disk any more: the node has to stop.
    Failed(StoreError),
}

#[derive(Debug)]
enum Work {
    Propose { proposal: ProposalId, entry: Entry },
    Keep { id: KeepId, changes: Placements },
    Snapshot { image: Image },
}

/// The handle to the thread. Dropping it lets the thread finish what it has, then ends it.
#[derive(Debug)]
pub struct Store {
    work: Option<SyncSender<Work>>,
    thread: Option<JoinHandle<()>>,
    /// Entries proposed since the last snapshot was asked for.
    behind: u64,
}

/// Opens or makes the store in the data directory, which has to exist. Events go to `events`, from the store's thread.
///
/// # Errors
///
/// When the store is damaged, in use, or of another node, cluster or version.
pub fn open(
    config: &StoreConfig,
    events: impl FnMut(StoreEvent) + Send + 'static,
) -> Result<Opened, StoreError> {
    let file = config.file();
    let opener = {
        let file = file.clone();
        Box::new(move |builder: &redb::Builder| builder.create(&file))
    };
    let opened = open_with(config, opener, Box::new(events))?;
    // A new file is only there after a crash once its name is durable.
    let folder = File::open(&config.data_dir).and_then(|folder| folder.sync_all());
    folder.map_err(|error| io_error(&file, &error))?;
    Ok(opened)
}

fn io_error(file: &Path, error: &io::Error) -> StoreError {
    StoreError::Io { file: file.to_owned(), reason: error.to_string() }
}

pub(super) fn open_with(
    config: &StoreConfig,
    mut opener: Opener,
    events: Box<dyn FnMut(StoreEvent) + Send>,
) -> Result<Opened, StoreError> {
    let file = file_in(&config.data_dir);
    let at = |failure: super::error::Failure| failure.at(&file);
    let db = Db::open(&mut opener).map_err(at)?;
    let found = match db.format().map_err(at)? {
        None => None,
        Some(FORMAT) => Some(db.read().map_err(at)?),
        Some(found) => return Err(StoreError::Format { file, found, known: FORMAT }),
    };
    let (known, mut image, snapshot) = match found {
        Some(content) => (content.identity, content.image, content.snapshot),
        None => (None, Image::default(), Revision(0)),
    };
    let identity = next_life(config, known, &file)?;
    if image.cluster_id.is_empty() {
        image.cluster_id = identity.cluster_id.as_str().into();
    } else if *image.cluster_id != *identity.cluster_id {
        let reason =
            format!("its snapshot is of cluster {}, not of {}", image.cluster_id, identity.cluster_id);
        return Err(StoreError::Damaged { file, reason });
    }
    db.write_identity(&identity).map_err(at)?;

    let (work, inbox) = sync_channel(WORK_MAX);
    let behind = image.revision.0 - snapshot.0;
    let writer = Writer { db, opener, file: file.clone(), events, last: image.revision };
    let thread = std::thread::Builder::new().name("hw-store".into()).spawn(move || writer.run(&inbox));
    let thread = thread.map_err(|error| io_error(&file, &error))?;
    let store = Store { work: Some(work), thread: Some(thread), behind };
    Ok(Opened { identity, image, store })
}

/// Who the node is in this life, or why it may not have one here.
fn next_life(config: &StoreConfig, known: Option<Identity>, file: &Path) -> Result<Identity, StoreError> {
    let file = file.to_owned();
    let Some(known) = known else {
        let cluster_id = config.cluster_id.clone().unwrap_or_else(|| cluster_id(config.entropy));
        return Ok(Identity { cluster_id, node: config.node, incarnation: Incarnation(1) });
    };
    if known.node != config.node {
        return Err(StoreError::OtherNode { file, found: known.node, configured: config.node });
    }
    if let Some(configured) = config.cluster_id.as_ref().filter(|id| **id != known.cluster_id) {
        let configured = configured.clone();
        return Err(StoreError::OtherCluster { file, found: known.cluster_id, configured });
    }
    Ok(Identity { incarnation: Incarnation(known.incarnation.0 + 1), ..known })
}

impl Store {
    fn send(&self, work: Work) {
        let sender = self.work.as_ref().expect("it is taken away only when the store is dropped");
        match sender.try_send(work) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                unreachable!("the control core has one item of each kind under way")
            }
            // The thread has told of its end by an event already.
            Err(TrySendError::Disconnected(_)) => {}
        }
    }
}

impl MetadataLog for Store {
    fn propose(&mut self, proposal: ProposalId, entry: Entry) {
        self.behind += 1;
        self.send(Work::Propose { proposal, entry });
    }

    fn wants_snapshot(&self) -> bool {
        self.behind >= SNAPSHOT_EVERY
    }

    fn snapshot(&mut self, image: Image) {
        self.behind = 0;
        self.send(Work::Snapshot { image });
    }
}

impl LocalStore for Store {
    fn keep(&mut self, id: KeepId, changes: Placements) {
        self.send(Work::Keep { id, changes });
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
    /// The last revision that is durable.
    last: Revision,
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
        let mut last = self.last;
        let mut changes = Changes::default();
        for work in &batch {
            match work {
                Work::Propose { entry, .. } => {
                    last.0 += 1;
                    changes.entries.push((last, entry));
                }
                Work::Keep { changes: placements, .. } => changes.placements.push(placements),
                Work::Snapshot { image } => changes.snapshot = Some(image),
            }
        }
        let error = match self.db.write(&changes).map_err(|failure| failure.at(&self.file)) {
            Ok(()) => {
                self.tell_written(batch);
                return Ok(());
            }
            Err(error @ StoreError::Full { .. }) => error,
            Err(error) => return Err(End::Failed(error)),
        };
        // The database takes no more until it is opened again, and only then it shows whether the write counts.
        let found = self.reopen(inbox)?;
        if found == last && last > self.last {
            self.tell_written(batch);
        } else if found == self.last {
            self.tell_failed(batch, &error.to_string());
        } else {
            let reason = format!("it ends with entry {found} after a failed write of {last}");
            return Err(End::Failed(StoreError::Damaged { file: self.file.clone(), reason }));
        }
        Ok(())
    }

    /// Opens the database again, however long there is no space for that, and says what its last revision is. Work
    /// that comes meanwhile is refused.
    fn reopen(&mut self, inbox: &Receiver<Work>) -> Result<Revision, End> {
        loop {
            let file = &self.file;
            let opened = self.db.reopen(&mut self.opener).and_then(|()| self.db.last_revision());
            let error = match opened.map_err(|failure| failure.at(file)) {
                Ok(found) => return Ok(found),
                Err(error @ StoreError::Full { .. }) => error,
                Err(error) => return Err(End::Failed(error)),
            };
            match inbox.recv_timeout(REOPEN_EVERY) {
                Ok(work) => self.tell_failed(vec![work], &error.to_string()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(End::Dropped),
            }
        }
    }

    fn tell_written(&mut self, batch: Vec<Work>) {
        for work in batch {
            let event = match work {
                Work::Propose { proposal, entry } => {
                    self.last.0 += 1;
                    let proposal = Some(proposal);
                    StoreEvent::Input(Input::Committed { revision: self.last, proposal, entry })
                }
                Work::Keep { id, .. } => StoreEvent::Input(Input::Kept { id }),
                Work::Snapshot { image } => StoreEvent::Snapshotted(image.revision),
            };
            (self.events)(event);
        }
    }

    fn tell_failed(&mut self, batch: Vec<Work>, reason: &str) {
        for work in batch {
            let reason = reason.to_owned();
            match work {
                Work::Propose { proposal, .. } => {
                    (self.events)(StoreEvent::Input(Input::ProposalFailed { proposal, reason }));
                }
                Work::Keep { id, .. } => (self.events)(StoreEvent::Input(Input::KeepFailed { id, reason })),
                Work::Snapshot { image } => {
                    tracing::warn!("no snapshot of the metadata at {}: {reason}", image.revision);
                }
            }
        }
    }
}
