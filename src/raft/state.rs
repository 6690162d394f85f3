//! The state machine as openraft sees it: what is committed goes to the control loop as events, in order; snapshots
//! are asked of it and installed into it.
//!
//! Control core. The image itself belongs to the control loop; here is only what lies around it. A snapshot's image is
//! a clone that the control loop hands over when a request for it, ordered behind what was applied before, reaches it.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use tokio::sync::{Mutex, Notify, mpsc, oneshot};

use super::Event;
use super::host::{Folder, Workers, patiently};
use super::machine::{Applied, Machine};
use super::metrics::{Counters, record};
use super::snapshot::{self, Content, SnapshotFile};
use super::types::{LogId, SnapshotMeta, StoredMembership, Tag, TypeConfig};
use crate::control::metadata::image::Image;
use crate::control::{Input, ProposalId};

/// Bytes of applied entries that make a snapshot due before their number does.
const SNAPSHOT_BYTES: usize = 64 * 1024 * 1024;

pub(super) type WholeSnapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotFile>;

/// What the state machine shares with the rest of the driver, on the same thread.
pub(super) struct Shared {
    pub folder: Arc<dyn Folder>,
    pub workers: Rc<dyn Workers>,
    pub events: mpsc::Sender<Event>,
    pub counters: Counters,
    pub machine: RefCell<Machine>,
    /// The proposal of this node that is under way.
    pub own: RefCell<Option<Own>>,
    /// Told when `own` was applied.
    pub own_applied: Notify,
    /// Told when so much was applied that a snapshot is due.
    pub snapshot_due: Notify,
    /// The snapshot that is in its place. Held while one is put there.
    current: Mutex<Option<WholeSnapshot>>,
}

/// A proposal of this node.
pub(super) struct Own {
    pub tag: Tag,
    pub proposal: ProposalId,
    pub since: std::time::Instant,
}

impl Shared {
    pub fn new(
        (folder, workers): (Arc<dyn Folder>, Rc<dyn Workers>),
        events: mpsc::Sender<Event>,
        counters: Counters,
        machine: Machine,
        current: Option<WholeSnapshot>,
    ) -> Self {
        Self {
            folder,
            workers,
            events,
            counters,
            machine: RefCell::new(machine),
            own: RefCell::new(None),
            own_applied: Notify::new(),
            snapshot_due: Notify::new(),
            current: Mutex::new(current),
        }
    }

    async fn tell(&self, event: Event) -> io::Result<()> {
        self.events.send(event).await.map_err(|_| io::Error::other("the control loop has ended"))
    }

    /// Takes away the own proposal if this is it.
    fn take_own(&self, tag: Option<Tag>) -> Option<ProposalId> {
        let own = self.own.borrow_mut().take_if(|own| Some(own.tag) == tag)?;
        self.counters.count(|stats| record(&mut stats.proposal_nanos, own.since.elapsed()));
        self.own_applied.notify_one();
        Some(own.proposal)
    }

    /// Makes a snapshot that was built here the current one, unless a later one is.
    async fn put_built_in_place(&self, built: &WholeSnapshot) -> io::Result<()> {
        let mut current = self.current.lock().await;
        if current.as_ref().is_some_and(|current| current.meta.last_log_id > built.meta.last_log_id) {
            return Ok(());
        }
        let folder = Arc::clone(&self.folder);
        patiently(&self.workers, move || snapshot::put_in_place(&*folder, false)).await?;
        *current = Some(built.clone());
        Ok(())
    }
}

pub(super) struct StateMachine {
    shared: Rc<Shared>,
    /// Applied since the last snapshot was begun.
    bytes: usize,
}

impl StateMachine {
    pub fn new(shared: Rc<Shared>) -> Self {
        Self { shared, bytes: 0 }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let machine = self.shared.machine.borrow();
        Ok((machine.applied, machine.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin,
    {
        let (mut applied, mut duplicates) = (0, 0);
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            if let openraft::EntryPayload::Normal(payload) = &entry.payload {
                self.bytes += payload.bytes();
            }
            let outcome = self.shared.machine.borrow_mut().apply(&entry).map_err(io::Error::other)?;
            match outcome {
                Applied::Nothing => {}
                Applied::Duplicate => duplicates += 1,
                Applied::Change { revision, tag, entry } => {
                    let proposal = self.shared.take_own(tag);
                    self.shared.tell(Event::Input(Input::Committed { revision, proposal, entry })).await?;
                }
            }
            applied += 1;
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        self.shared.counters.count(|stats| {
            stats.applied += applied;
            stats.duplicates += duplicates;
        });
        if self.bytes > SNAPSHOT_BYTES {
            self.bytes = 0;
            self.shared.snapshot_due.notify_one();
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.bytes = 0;
        let machine = self.shared.machine.borrow().clone();
        let (reply, image) = oneshot::channel();
        // When the control loop has ended, the image does not come, which is where the builder says so.
        let _ = self.shared.tell(Event::WantImage { revision: machine.revision, reply }).await;
        Builder { shared: Rc::clone(&self.shared), machine, image: Some(image) }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, file: SnapshotFile) -> Result<(), io::Error> {
        let (folder, received) = (Arc::clone(&self.shared.folder), file.clone());
        let mut file = match &file.content {
            Some(_) => file,
            None => patiently(&self.shared.workers, move || received.receive_in(&*folder)).await?,
        };
        let content = file.content.take().expect("what was received was read");
        let Content { machine, image } = Arc::unwrap_or_clone(content);
        if machine.meta() != *meta {
            return Err(io::Error::other("a snapshot is of another place in the log than was said"));
        }
        {
            let mut current = self.shared.current.lock().await;
            let folder = Arc::clone(&self.shared.folder);
            patiently(&self.shared.workers, move || snapshot::put_in_place(&*folder, true)).await?;
            *current = Some(Snapshot { meta: meta.clone(), snapshot: file });
        }
        self.bytes = 0;
        let own = self.shared.own.borrow_mut().take_if(|own| machine.has_applied(own.tag));
        *self.shared.machine.borrow_mut() = machine;
        self.shared.counters.count(|stats| stats.snapshots_installed += 1);
        self.shared.tell(Event::Input(Input::Image(Box::new(image)))).await?;
        if let Some(own) = own {
            // Leaders take no proposals of a node that lags as far as this, so it is as good as never seen.
            let reason = "it was applied, but what came of it was passed over by a snapshot".to_owned();
            self.shared.tell(Event::Input(Input::ProposalFailed { proposal: own.proposal, reason })).await?;
            self.shared.own_applied.notify_one();
        }
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<WholeSnapshot>, io::Error> {
        Ok(self.shared.current.lock().await.clone())
    }
}

/// Builds one snapshot, of the state at the moment when it was made.
pub(super) struct Builder {
    shared: Rc<Shared>,
    machine: Machine,
    image: Option<oneshot::Receiver<Box<Image>>>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<WholeSnapshot, io::Error> {
        let image = self.image.take().expect("a builder builds once").await;
        let image = image.map_err(|_| io::Error::other("the control loop has ended"))?;
        if image.revision != self.machine.revision {
            let (found, wanted) = (image.revision, self.machine.revision);
            return Err(io::Error::other(format!("the image is at {found} when it should be at {wanted}")));
        }
        let (folder, machine) = (Arc::clone(&self.shared.folder), self.machine.clone());
        let build = move || snapshot::build(&*folder, &machine, &image);
        let file = patiently(&self.shared.workers, build).await?;
        let built = Snapshot { meta: self.machine.meta(), snapshot: file };
        self.shared.put_built_in_place(&built).await?;
        self.shared.counters.count(|stats| stats.snapshots_built += 1);
        Ok(built)
    }
}
