//! The control core with a store and shards that act when the test says so.

mod fencing;
mod lives;
mod load;
mod replication;
mod requests;

use std::collections::BTreeSet;
use std::sync::Arc;

use highwater_shards::ids::{LeaderEpoch, PartitionIndex, TopicId};
use highwater_shards::mail::{Assignment, IsrRefusal, PeerNode};
use rand_xoshiro::rand_core::RngCore;

use super::*;
use crate::control::io::{KeepId, Placements};
use crate::control::limits::{DELTAS_MAX, ENTRY_BYTES_MAX, GATHER_MAX, RETRY_MAX};
use crate::control::metadata::command::{Command, CreateTopic, Stage};
use crate::control::metadata::image::Incarnation;
use crate::control::request::{
    AlterConfig, ConfigChange, ConfigOp, ConfigResource, MorePartitions, NewTopic, NodeChange, TopicRef,
};

const ME: NodeId = NodeId(1);
const SECOND: Duration = Duration::from_secs(1);

/// What survives a restart: the log's image and the placements.
#[derive(Clone, Default)]
struct Disk {
    image: Image,
    lives: u64,
}

/// One life of a control core, with a store and shards that act when the test says so.
struct World {
    control: Control,
    disk: Disk,
    now: Instant,
    proposals: VecDeque<(ProposalId, Entry)>,
    keeps: VecDeque<(KeepId, Placements)>,
    shards: Vec<FakeShard>,
    local: Vec<(LocalId, Reply)>,
    ready: bool,
    /// The shards that were late, and whether the next life may count on this one's records.
    stopped: Option<(Vec<ShardId>, bool)>,
    fatal: Option<ControlFatal>,
}

#[derive(Default)]
struct FakeShard {
    told: VecDeque<FromControl<Arc<Image>, Reply>>,
    owned: BTreeMap<PartitionId, Assignment>,
    /// Taken away though it was never assigned: records that nobody wants.
    unassigned: Vec<PartitionId>,
    revision: Revision,
    view: Option<Arc<Image>>,
    replies: Vec<(ConnId, Token, Reply)>,
    nodes: Vec<PeerNode>,
    refused: Vec<(PartitionId, IsrRefusal)>,
    lease: Option<Instant>,
    stopping: bool,
}

impl World {
    /// A node that has started but whose store and shards have done nothing yet.
    fn start(shards: u16, disk: Disk) -> Self {
        Self::start_with(shards, disk, TopicDefaults::default())
    }

    fn start_with(shards: u16, mut disk: Disk, defaults: TopicDefaults) -> Self {
        disk.lives += 1;
        let config = ControlConfig {
            register: RegisterNode {
                node: ME,
                incarnation: Incarnation(disk.lives),
                ..RegisterNode::default()
            },
            shards,
            defaults,
            placement: Placement::default(),
            seed: [u8::try_from(disk.lives).unwrap(); 32],
        };
        let mut world = Self {
            control: Control::new(config, disk.image.clone()),
            disk,
            now: Instant::ZERO,
            proposals: VecDeque::new(),
            keeps: VecDeque::new(),
            shards: (0..shards).map(|_| FakeShard::default()).collect(),
            local: Vec::new(),
            ready: false,
            stopped: None,
            fatal: None,
        };
        world.input(Input::Leadership { term: 1, leader: Some(ME) });
        world
    }

    /// A node that serves.
    fn serving(shards: u16) -> Self {
        let mut world = Self::start(shards, Disk::default());
        world.recover_empty();
        world.run();
        assert!(world.ready);
        world
    }

    fn recover_empty(&mut self) {
        for shard in 0..self.shards.len() {
            self.shard_says(shard, ToControl::Recovered { partitions: Vec::new() });
        }
    }

    fn input(&mut self, input: Input) {
        self.control.handle(self.now, input);
        self.drain();
    }

    fn shard_says(&mut self, shard: usize, message: ToControl<Request>) {
        self.input(Input::FromShard { shard: ShardId(shard as u16), message });
    }

    fn drain(&mut self) {
        while let Some(output) = self.control.poll_output() {
            match output {
                Output::Propose { proposal, entry } => self.proposals.push_back((proposal, entry)),
                Output::Keep { id, changes } => self.keeps.push_back((id, changes)),
                Output::ToShard { shard, message } => {
                    if let FromControl::Delta { assign, .. } = &message {
                        let kept = |a: &Assignment| self.disk.image.local_shard(a.partition);
                        assert!(assign.iter().all(|a| kept(a) == Some(shard)), "told after it is kept");
                    }
                    self.shards[usize::from(shard.0)].told.push_back(message);
                }
                Output::LocalReply { id, reply } => self.local.push((id, reply)),
                Output::Ready => assert!(!std::mem::replace(&mut self.ready, true), "ready once"),
                Output::Stopped { late, clean } => self.stopped = Some((late, clean.is_some())),
                Output::Fatal(reason) => self.fatal = Some(reason),
            }
        }
    }

    fn commit(&mut self) -> bool {
        let Some((proposal, entry)) = self.proposals.pop_front() else { return false };
        let revision = Revision(self.disk.image.revision.0 + 1);
        self.disk.image.apply(revision, &entry);
        self.input(Input::Committed { revision, proposal: Some(proposal), entry });
        true
    }

    /// An entry of another node comes first.
    fn commit_of_another(&mut self, commands: Vec<Command>) {
        let revision = Revision(self.disk.image.revision.0 + 1);
        let entry = Entry { commands };
        self.disk.image.apply(revision, &entry);
        self.input(Input::Committed { revision, proposal: None, entry });
    }

    fn keep(&mut self) -> bool {
        let Some((id, changes)) = self.keeps.pop_front() else { return false };
        for (partition, shard) in changes {
            match shard {
                Some(shard) => self.disk.image.put_local_shard(partition, shard),
                None => self.disk.image.remove_local_shard(partition),
            }
        }
        self.input(Input::Kept { id });
        true
    }

    /// Lets a shard take the next message.
    fn step(&mut self, shard: usize) -> bool {
        let state = &mut self.shards[shard];
        let Some(message) = state.told.pop_front() else { return false };
        match message {
            FromControl::Delta { revision, view, assign, unassign } => {
                assert!(revision > state.revision, "revisions only grow");
                assert_eq!(view.revision, revision);
                let members = assign.iter().flat_map(|a| a.isr.iter().chain(a.leader.as_ref()));
                let known =
                    |node: &NodeId| state.nodes.iter().any(|peer| peer.node == *node && peer.eligible);
                let mut active = members.filter(|node| view.is_active(**node));
                assert!(active.all(known), "nodes are told before what names them");
                state.revision = revision;
                for partition in unassign {
                    if state.owned.remove(&partition).is_none() {
                        state.unassigned.push(partition);
                    }
                }
                for assignment in assign {
                    state.owned.insert(assignment.partition, assignment);
                }
                state.view = Some(view);
                self.shard_says(shard, ToControl::Applied { revision });
            }
            FromControl::Reply { conn, token, reply } => state.replies.push((conn, token, reply)),
            FromControl::Stop { .. } => state.stopping = true,
            FromControl::Nodes(nodes) => {
                assert_ne!(state.nodes, *nodes, "told only when something changed");
                state.nodes = nodes.to_vec();
            }
            FromControl::IsrRefused { partition, refusal, .. } => state.refused.push((partition, refusal)),
            FromControl::Lease { until } => state.lease = Some(until),
            FromControl::Stats { .. } => {}
        }
        true
    }

    /// Until nothing moves any more.
    fn run(&mut self) {
        loop {
            let mut moved = self.commit() | self.keep();
            for shard in 0..self.shards.len() {
                moved |= self.step(shard);
            }
            if !moved {
                return;
            }
        }
    }

    fn ask(&mut self, id: u64, request: Request) {
        self.input(Input::Local { id: LocalId(id), request });
    }

    fn reply(&mut self, id: u64) -> Option<Reply> {
        let at = self.local.iter().position(|(local, _)| *local == LocalId(id))?;
        Some(self.local.remove(at).1)
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        while self.control.poll_timeout().is_some_and(|at| at <= self.now) {
            self.input(Input::Timeout);
        }
    }

    fn owned(&self) -> Vec<usize> {
        self.shards.iter().map(|s| s.owned.len()).collect()
    }

    /// That every shard owns exactly what belongs to it, as the image has it.
    fn check_shards(&self) {
        let image = self.control.image();
        let defaults = TopicDefaults::default();
        let mut maker = publish::AssignmentMaker { image, defaults: &defaults, last: None };
        let mut owned = BTreeMap::new();
        for (shard, state) in (0..).map(ShardId).zip(&self.shards) {
            for (partition, assignment) in &state.owned {
                assert_eq!(image.local_shard(*partition), Some(shard));
                assert_eq!(owned.insert(*partition, ()), None, "one owner");
                assert_eq!(*assignment, maker.make(*partition));
            }
            assert_eq!(state.view.as_deref(), Some(image));
        }
        assert_eq!(owned.len(), image.partition_count());
        assert_eq!(*image, self.disk.image);
    }
}

fn create(names: &[&str], partitions: u32) -> Request {
    let topic =
        |name: &&str| NewTopic { name: (*name).into(), partitions: Some(partitions), ..NewTopic::default() };
    Request::CreateTopics {
        topics: names.iter().map(topic).collect(),
        validate_only: false,
        timeout: 10 * SECOND,
    }
}

fn delete(name: &str) -> Request {
    Request::DeleteTopics { topics: vec![TopicRef::Name(name.into())], timeout: 10 * SECOND }
}

fn alter(resource: ConfigResource, key: &str, op: ConfigOp) -> Request {
    let changes = vec![ConfigChange { key: key.into(), op }];
    Request::AlterConfigs { resources: vec![AlterConfig { resource, changes }], validate_only: false }
}

fn refusals(reply: &Reply) -> Vec<Option<Why>> {
    fn all<T>(slots: &[Result<T, Refusal>]) -> Vec<Option<Why>> {
        slots.iter().map(|slot| slot.as_ref().err().map(|r| r.why)).collect()
    }
    match reply {
        Reply::CreateTopics(slots) => all(slots),
        Reply::DeleteTopics(slots) => all(slots),
        Reply::CreatePartitions(slots) | Reply::AlterConfigs(slots) | Reply::Reassign(slots) => all(slots),
        Reply::ElectLeaders(slots) => match slots {
            Ok(slots) => all(&slots.iter().map(|(_, slot)| slot.clone()).collect::<Vec<_>>()),
            Err(refusal) => vec![Some(refusal.why)],
        },
        Reply::NewProducerId(slot) => all(std::slice::from_ref(slot)),
        Reply::ChangeNode(slot) | Reply::SetFeatureLevel(slot) => all(std::slice::from_ref(slot)),
    }
}
