//! One node of the group: its disk, which outlives its lives, and its present life: the real [`Raft`], and a control
//! loop that keeps an image and tells the world what it sees.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use highwater::control::metadata::command::{Command, Entry};
use highwater::control::metadata::image::Image;
use highwater::control::{Input, ProposalId};
use highwater::net::{CallError, Incoming};
use highwater::raft::types::LogEntry;
use highwater::raft::{self, APPEND, DiskId, Event, Member, Opened, Raft, RaftConfig, VOTE};
use highwater::store::StoreError;
use highwater_shards::ids::{NodeId, Revision};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::sleep;

use super::disk::{Disk, Lies};
use super::net::{Call, Hub, Line, Reply};
use super::saboteur::Sabotage;
use super::workers::Slow;
use crate::rng::Rng;

/// What the world asks of a life.
#[derive(Debug)]
pub enum Order {
    Propose { proposal: ProposalId, entry: Entry },
    Found(BTreeMap<NodeId, Member>),
    Transfer(NodeId),
    Learner(NodeId),
    Promote(NodeId),
    Demote(NodeId),
    Probe { entries: u64, bytes: usize },
}

/// What a life tells.
#[derive(Debug)]
pub enum Seen {
    /// It has begun, with this on its disk.
    Opened {
        image: Image,
        entries: Vec<LogEntry>,
    },
    Committed {
        revision: Revision,
        proposal: Option<ProposalId>,
        entry: Entry,
        image: Image,
    },
    Installed(Image),
    ProposalFailed {
        proposal: ProposalId,
        reason: String,
    },
    Leadership {
        term: u64,
        leader: Option<NodeId>,
    },
    /// A change of the members or the leader was carried out.
    Administered,
    /// It cannot start for want of space.
    NoSpace,
    /// It cannot start, or not go on.
    Ended(String),
}

impl Seen {
    pub fn words(&self) -> String {
        match self {
            Self::Opened { image, entries } => {
                format!("opens at {} with {} entries", image.revision, entries.len())
            }
            Self::Committed { revision, proposal, entry, .. } => format!("{revision} {proposal:?} {entry:?}"),
            Self::Installed(image) => format!("installs a snapshot at {}", image.revision),
            Self::ProposalFailed { proposal, reason } => format!("{proposal:?} failed: {reason}"),
            Self::Leadership { term, leader } => format!("in term {term} leads {leader:?}"),
            Self::Administered => "a change was carried out".to_owned(),
            Self::NoSpace => "finds no space to start".to_owned(),
            Self::Ended(why) => format!("ends: {why}"),
        }
    }
}

/// How the nodes of a run are.
#[derive(Clone, Debug)]
pub struct Setup {
    pub raft: RaftConfig,
    pub usual: Range<Duration>,
    /// Of 1000 answers to votes and to appends, after how many the power goes.
    pub ends_after_vote: u32,
    pub ends_after_append: u32,
    pub sabotage: Option<Sabotage>,
}

pub fn member(node: NodeId) -> Member {
    Member { disk: DiskId(u128::from(node.0)), cluster_addr: format!("node-{node}:9093") }
}

pub struct Node {
    pub id: NodeId,
    pub disk: Disk,
    pub lives: u64,
    pub life: Option<Life>,
}

/// A life. Dropping it ends it at once.
pub struct Life {
    pub disk: Disk,
    pub tasks: LocalSet,
    pub stalled: bool,
    pub orders: mpsc::UnboundedSender<Order>,
    pub calls: mpsc::UnboundedSender<Call>,
    pub seen: Rc<RefCell<Vec<Seen>>>,
    pub raft: Rc<OnceCell<Raft>>,
    /// Proposals that are not settled.
    pub proposals: u32,
    /// Of its image.
    pub revision: Rc<Cell<Revision>>,
    /// It ends by nothing that it does any more.
    pub calm: Rc<Cell<bool>>,
}

impl Node {
    pub fn new(id: NodeId, seed: u64) -> Self {
        Self { id, disk: Disk::new(Rng::new(seed, "raft disk", u64::from(id.0))), lives: 0, life: None }
    }

    pub fn start(&mut self, setup: &Setup, hub: &Rc<RefCell<Hub>>, rng: Rng) {
        self.lives += 1;
        let disk = self.disk.power_on();
        disk.set_lies(Lies { files: false, folder: setup.sabotage == Some(Sabotage::NoFolderSync) });
        let (orders, ordered) = mpsc::unbounded_channel();
        let (calls, called) = mpsc::unbounded_channel();
        let (seen, raft, revision, calm) = (Rc::default(), Rc::default(), Rc::default(), Rc::default());
        let body = Body {
            id: self.id,
            disk: disk.clone(),
            hub: Rc::clone(hub),
            seen: Rc::clone(&seen),
            raft: Rc::clone(&raft),
            setup: setup.clone(),
            rng: Rc::new(RefCell::new(rng)),
            image: Image::default(),
            revision: Rc::clone(&revision),
            calm: Rc::clone(&calm),
        };
        let tasks = LocalSet::new();
        tasks.spawn_local(body.live(ordered, called));
        self.life = Some(Life {
            disk,
            tasks,
            stalled: false,
            orders,
            calls,
            seen,
            raft,
            proposals: 0,
            revision,
            calm,
        });
    }
}

/// What a life consists of.
struct Body {
    id: NodeId,
    disk: Disk,
    hub: Rc<RefCell<Hub>>,
    seen: Rc<RefCell<Vec<Seen>>>,
    raft: Rc<OnceCell<Raft>>,
    setup: Setup,
    rng: Rc<RefCell<Rng>>,
    image: Image,
    revision: Rc<Cell<Revision>>,
    calm: Rc<Cell<bool>>,
}

impl Body {
    fn tell(&self, seen: Seen) {
        self.revision.set(self.image.revision);
        if self.disk.is_powered() {
            self.seen.borrow_mut().push(seen);
        }
    }

    async fn live(
        mut self,
        mut orders: mpsc::UnboundedReceiver<Order>,
        mut calls: mpsc::UnboundedReceiver<Call>,
    ) {
        let begun = self.begin().await;
        let (raft, mut events) = match begun {
            Ok(begun) => begun,
            Err(why) => return self.tell(why),
        };
        assert!(self.raft.set(raft.clone()).is_ok(), "a life begins once");
        loop {
            tokio::select! {
                biased;
                Some(call) = calls.recv() => self.on_call(&raft, call),
                event = events.recv() => match event {
                    Some(event) => self.on_event(event).await,
                    None => return self.tell(Seen::Ended("the events have ended".into())),
                },
                Some(order) = orders.recv() => self.obey(&raft, order),
            }
        }
    }

    async fn begin(&mut self) -> Result<(Raft, mpsc::Receiver<Event>), Seen> {
        let opened = raft::open_in(Arc::new(self.disk.clone()), member(self.id).disk);
        let Opened { storage, image } = opened.map_err(|error| match error {
            StoreError::Full { .. } => Seen::NoSpace,
            error => Seen::Ended(error.to_string()),
        })?;
        let entries = storage.entries().map_err(|error| Seen::Ended(error.to_string()))?;
        self.image = image.clone();
        self.tell(Seen::Opened { image, entries });
        let line = Line { me: self.id, disk: self.disk.clone(), hub: Rc::clone(&self.hub) };
        let workers = Slow {
            disk: self.disk.clone(),
            rng: Rc::clone(&self.rng),
            usual: self.setup.usual.clone(),
            sabotage: self.setup.sabotage,
        };
        let started = Raft::start_with(self.setup.raft.clone(), storage, line, Rc::new(workers)).await;
        started.map_err(|error| Seen::Ended(error.to_string()))
    }

    fn on_call(&self, raft: &Raft, call: Call) {
        let (incoming, answered) = Incoming::new(call.from, call.kind, call.body.clone());
        raft.on_call(incoming);
        let (disk, hub, rng) = (self.disk.clone(), Rc::clone(&self.hub), Rc::clone(&self.rng));
        let ends = match call.kind {
            _ if self.calm.get() => 0,
            VOTE => self.setup.ends_after_vote,
            APPEND => self.setup.ends_after_append,
            _ => 0,
        };
        tokio::task::spawn_local(async move {
            let answer = match answered.await {
                Ok(Ok(bytes)) => Ok(bytes),
                Ok(Err(why)) => Err(CallError::Refused(why)),
                Err(_) => Err(CallError::Refused("dropped".into())),
            };
            if disk.is_powered() {
                hub.borrow_mut().send_reply(Reply { call, answer });
                if ends > 0 && rng.borrow_mut().chance(ends) {
                    disk.crash();
                }
            }
        });
    }

    async fn on_event(&mut self, event: Event) {
        let pause = {
            let mut rng = self.rng.borrow_mut();
            rng.chance(20).then(|| rng.between(Duration::ZERO, Duration::from_millis(30)))
        };
        if let Some(pause) = pause {
            sleep(pause).await;
        }
        match event {
            Event::Input(Input::Committed { revision, proposal, entry }) => {
                self.image.apply(revision, &entry);
                if self.setup.sabotage == Some(Sabotage::AppliedTwice) && self.rng.borrow_mut().chance(5) {
                    self.image.apply(revision, &entry);
                }
                self.tell(Seen::Committed { revision, proposal, entry, image: self.image.clone() });
            }
            Event::Input(Input::Image(image)) => {
                self.image = *image;
                self.tell(Seen::Installed(self.image.clone()));
            }
            Event::Input(Input::ProposalFailed { proposal, reason }) => {
                self.tell(Seen::ProposalFailed { proposal, reason });
            }
            Event::Input(Input::Leadership { term, leader }) => {
                self.tell(Seen::Leadership { term, leader });
            }
            Event::WantImage { revision, reply } => {
                let mut image = self.image.clone();
                if self.setup.sabotage == Some(Sabotage::SnapshotSkips) {
                    // The last thousand producer ids were never given.
                    let entry =
                        Entry { commands: vec![Command::ReserveProducerIds { node: self.id, count: 1000 }] };
                    image.apply(revision, &entry);
                }
                // Who asked may have gone.
                let _ = reply.send(Box::new(image));
            }
            Event::Failed(error) => self.tell(Seen::Ended(error.to_string())),
            other => self.tell(Seen::Ended(format!("an unknown event: {other:?}"))),
        }
    }

    fn obey(&self, raft: &Raft, order: Order) {
        if let Order::Propose { proposal, entry } = &order {
            return raft.propose(*proposal, entry);
        }
        const TRANSFER: Duration = Duration::from_secs(2);
        let (raft, seen, disk) = (raft.clone(), Rc::clone(&self.seen), self.disk.clone());
        tokio::task::spawn_local(async move {
            let result = match order {
                Order::Propose { .. } => return,
                Order::Found(members) => {
                    // A log that has something needs no founding, and says so.
                    drop(raft.initialize(&members).await);
                    return;
                }
                Order::Transfer(to) => raft.transfer_leader(to, TRANSFER).await,
                Order::Learner(node) => raft.add_learner(node, member(node)).await,
                Order::Promote(node) => raft.promote(node).await,
                Order::Demote(node) => raft.demote(node).await,
                Order::Probe { entries, bytes } => {
                    let probes = (0..entries).map(|n| {
                        let raft = raft.clone();
                        let bytes = vec![u8::try_from(n % 251).expect("below 251"); bytes];
                        // Whatever comes of it: it only makes the log longer.
                        async move { drop(raft.probe(bytes.into()).await) }
                    });
                    for probe in probes {
                        tokio::task::spawn_local(probe);
                    }
                    return;
                }
            };
            if result.is_ok() && disk.is_powered() {
                seen.borrow_mut().push(Seen::Administered);
            }
        });
    }
}
