mod fencing;

use std::collections::BTreeSet;
use std::sync::Arc;

use highwater_shards::ids::{LeaderEpoch, PartitionIndex, TopicId};
use highwater_shards::mail::Assignment;
use rand_xoshiro::rand_core::RngCore;

use super::*;
use crate::control::io::{KeepId, Placements};
use crate::control::limits::{DELTAS_MAX, ENTRY_BYTES_MAX, RETRY_MAX};
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
    stopped: Option<Vec<ShardId>>,
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
    stopping: bool,
}

impl World {
    /// A node that has started but whose store and shards have done nothing yet.
    fn start(shards: u16, mut disk: Disk) -> Self {
        disk.lives += 1;
        let config = ControlConfig {
            register: RegisterNode {
                node: ME,
                incarnation: Incarnation(disk.lives),
                ..RegisterNode::default()
            },
            shards,
            defaults: TopicDefaults::default(),
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
                Output::Stopped { late } => self.stopped = Some(late),
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
            FromControl::Stats { .. }
            | FromControl::Nodes(_)
            | FromControl::IsrRefused { .. }
            | FromControl::Lease { .. } => {}
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
        Reply::CreatePartitions(slots) | Reply::AlterConfigs(slots) => all(slots),
        Reply::NewProducerId(slot) => all(std::slice::from_ref(slot)),
        Reply::ChangeNode(slot) | Reply::SetFeatureLevel(slot) => all(std::slice::from_ref(slot)),
    }
}

#[test]
fn shards_hear_of_partitions_once_the_node_is_registered_and_all_have_recovered() {
    let mut world = World::start(2, Disk::default());
    world.shard_says(0, ToControl::Recovered { partitions: Vec::new() });
    world.commit();
    assert!(world.shards.iter().all(|s| s.told.is_empty()), "one shard has not recovered");
    world.shard_says(1, ToControl::Recovered { partitions: Vec::new() });
    assert!(world.shards.iter().all(|s| s.told.len() == 1));
    assert!(world.step(0));
    assert!(!world.ready, "one shard has not applied");
    assert!(world.step(1));
    assert!(!world.ready && world.control.image().nodes[&ME].fenced, "the node is still fenced");
    world.run();
    assert!(world.ready && world.control.is_ready());
    world.check_shards();
}

#[test]
fn a_request_is_answered_once_every_shard_has_applied_it() {
    let mut world = World::serving(2);
    world.shard_says(0, ToControl::Request { conn: ConnId(5), token: Token(6), request: create(&["a"], 3) });
    world.commit();
    assert!(world.shards.iter().all(|s| s.told.is_empty()), "the placement is not kept yet");
    world.keep();
    world.step(0);
    assert!(world.shards[0].told.is_empty(), "shard 1 has not applied");
    world.step(1);
    world.step(0);
    let [(conn, token, Reply::CreateTopics(slots))] = &world.shards[0].replies[..] else {
        panic!("one reply of that kind")
    };
    assert_eq!((*conn, *token), (ConnId(5), Token(6)));
    assert_eq!(slots[0].as_ref().map(|t| t.partitions), Ok(3));
    world.check_shards();
    assert_eq!(world.owned(), [2, 1]);
}

#[test]
fn what_is_asked_during_a_proposal_shares_the_next_one() {
    let mut world = World::serving(1);
    for id in 0..10 {
        world.ask(id, create(&[&format!("t{id}")], 1));
    }
    assert_eq!(world.proposals.len(), 1);
    world.commit();
    assert_eq!(world.proposals.len(), 1);
    assert_eq!(world.proposals[0].1.commands.len(), 9);
    world.run();
    assert_eq!(world.local.len(), 10);
    assert_eq!(world.control.image().topic_count(), 10);
}

#[test]
fn requests_in_one_entry_see_each_other() {
    let mut world = World::serving(1);
    world.ask(0, create(&["first"], 1));
    world.ask(1, create(&["a"], 1));
    world.ask(2, create(&["a"], 1));
    world.ask(3, delete("a"));
    world.run();
    let mut why = |id| refusals(&world.reply(id).expect("answered"));
    assert_eq!(why(1), [None]);
    assert_eq!(why(2), [Some(Why::TopicExists)]);
    assert_eq!(why(3), [None]);
    world.check_shards();
}

#[test]
fn refused_and_validated_requests_never_reach_the_log() {
    let mut world = World::serving(1);
    let validate = Request::CreateTopics {
        topics: vec![
            NewTopic { name: "good".into(), ..NewTopic::default() },
            NewTopic { name: "bad name".into(), ..NewTopic::default() },
        ],
        validate_only: true,
        timeout: SECOND,
    };
    world.ask(1, validate);
    world.ask(2, delete("nope"));
    world.ask(3, alter(ConfigResource::Node(ME), "retention.ms", ConfigOp::Delete));
    assert!(world.proposals.is_empty());
    assert_eq!(refusals(&world.reply(1).unwrap()), [None, Some(Why::InvalidTopicName)]);
    assert_eq!(refusals(&world.reply(2).unwrap()), [Some(Why::UnknownTopic)]);
    assert_eq!(refusals(&world.reply(3).unwrap()), [Some(Why::InvalidConfig)]);
    assert_eq!(world.control.image().topic_count(), 0);
}

#[test]
fn an_automatic_creation_waits_until_the_one_under_way_is_applied() {
    let mut world = World::serving(1);
    let automatic = || Request::CreateTopics {
        topics: vec![NewTopic { name: "a".into(), automatic: true, ..NewTopic::default() }],
        validate_only: false,
        timeout: SECOND,
    };
    world.ask(1, automatic());
    world.ask(2, automatic());
    world.commit();
    world.keep();
    assert!(world.proposals.is_empty(), "the second one changes nothing");
    assert!(world.local.is_empty());
    world.run();
    let Some(Reply::CreateTopics(first)) = world.reply(1) else { panic!("answered") };
    let Some(Reply::CreateTopics(second)) = world.reply(2) else { panic!("answered") };
    assert_eq!(first, second);
    assert_eq!(first[0].as_ref().map(|t| t.partitions), Ok(4));
}

#[test]
fn requests_that_break_a_rule_are_refused_with_its_kind() {
    let mut world = World::serving(1);
    let mut why = |topic: NewTopic| {
        let topics = vec![topic];
        world.ask(1, Request::CreateTopics { topics, validate_only: false, timeout: SECOND });
        refusals(&world.reply(1).expect("answered at once"))[0]
    };
    let topic = || NewTopic { name: "a".into(), ..NewTopic::default() };
    assert_eq!(why(NewTopic { partitions: Some(0), ..topic() }), Some(Why::InvalidPartitions));
    assert_eq!(why(NewTopic { partitions: Some(u32::MAX), ..topic() }), Some(Why::LimitReached));
    assert_eq!(why(NewTopic { replication_factor: Some(2), ..topic() }), Some(Why::InvalidReplicationFactor));
    assert_eq!(why(NewTopic { replication_factor: Some(0), ..topic() }), Some(Why::InvalidReplicationFactor));
    assert_eq!(
        why(NewTopic { config: vec![("retention.ms".into(), None)], ..topic() }),
        Some(Why::InvalidConfig)
    );
    let assigned = |sets: &[(u32, &[u32])]| NewTopic {
        assignment: sets
            .iter()
            .map(|(index, set)| (PartitionIndex(*index), set.iter().map(|&n| NodeId(n)).collect()))
            .collect(),
        ..topic()
    };
    assert_eq!(why(assigned(&[(0, &[1]), (0, &[1])])), Some(Why::InvalidAssignment));
    assert_eq!(why(assigned(&[(0, &[1]), (2, &[1])])), Some(Why::InvalidAssignment));
    assert_eq!(why(assigned(&[(0, &[7])])), Some(Why::InvalidAssignment));
    assert_eq!(why(assigned(&[(0, &[1]), (1, &[1, 1])])), Some(Why::InvalidAssignment));
    assert_eq!(why(assigned(&[(0, &[])])), Some(Why::InvalidAssignment));
    let contradicting = NewTopic { partitions: Some(2), ..assigned(&[(0, &[1])]) };
    assert_eq!(why(contradicting), Some(Why::InvalidRequest));
}

#[test]
fn what_stands_twice_in_a_request_is_refused_both_times() {
    let mut world = World::serving(1);
    world.ask(1, create(&["a", "b", "a"], 1));
    world.run();
    let twice = Some(Why::InvalidRequest);
    assert_eq!(refusals(&world.reply(1).unwrap()), [twice, None, twice]);
    let id = world.control.image().topic("b").unwrap().id;
    let topics = vec![TopicRef::Id(id), TopicRef::Name("b".into()), TopicRef::Id(TopicId(9))];
    world.ask(2, Request::DeleteTopics { topics, timeout: SECOND });
    assert_eq!(refusals(&world.reply(2).unwrap()), [twice, twice, Some(Why::UnknownTopicId)]);
}

#[test]
fn partitions_are_added_and_placed_beside_the_old_ones() {
    let mut world = World::serving(2);
    world.ask(1, create(&["a"], 1));
    world.run();
    let mut grow = |total| {
        let more = MorePartitions { topic: "a".into(), total, assignment: Vec::new() };
        let request = Request::CreatePartitions { topics: vec![more], validate_only: false, timeout: SECOND };
        world.ask(2, request);
        world.run();
        world.check_shards();
        (refusals(&world.reply(2).unwrap())[0], world.owned())
    };
    assert_eq!(grow(4), (None, vec![2, 2]));
    assert_eq!(grow(4), (Some(Why::InvalidPartitions), vec![2, 2]));
    assert_eq!(grow(u32::MAX), (Some(Why::LimitReached), vec![2, 2]));
}

#[test]
fn deleted_topics_leave_their_shards_and_the_store() {
    let mut world = World::serving(2);
    world.ask(1, create(&["a", "b"], 3));
    world.run();
    world.ask(2, delete("a"));
    world.run();
    assert_eq!(refusals(&world.reply(2).unwrap()), [None]);
    world.check_shards();
    assert_eq!(world.disk.image.local_shards().count(), 3);
}

#[test]
fn a_cluster_setting_reaches_the_partitions_that_have_no_own_one() {
    let mut world = World::serving(1);
    world.ask(1, create(&["own", "inherits"], 1));
    world.run();
    world
        .ask(2, alter(ConfigResource::Topic("own".into()), "min.insync.replicas", ConfigOp::Set("7".into())));
    world.run();
    world.ask(3, alter(ConfigResource::Cluster, "min.insync.replicas", ConfigOp::Set("3".into())));
    world.commit();
    let Some(FromControl::Delta { assign, .. }) = world.shards[0].told.front() else { panic!("a delta") };
    assert_eq!(assign.len(), 1, "only what changes is told");
    world.run();
    world.check_shards();
    let mut isr_min: Vec<u32> = world.shards[0].owned.values().map(|a| a.config.isr_min).collect();
    isr_min.sort_unstable();
    assert_eq!(isr_min, [3, 7]);
}

#[test]
fn both_kinds_of_resources_can_be_altered_in_one_request() {
    let mut world = World::serving(1);
    world.ask(1, create(&["a"], 1));
    world.run();
    let resource = |resource, key: &str| AlterConfig {
        resource,
        changes: vec![ConfigChange { key: key.into(), op: ConfigOp::Set("5".into()) }],
    };
    let resources = vec![
        resource(ConfigResource::Cluster, "retention.ms"),
        resource(ConfigResource::Topic("a".into()), "retention.ms"),
        resource(ConfigResource::Topic("b".into()), "retention.ms"),
    ];
    world.ask(2, Request::AlterConfigs { resources, validate_only: false });
    world.run();
    assert_eq!(refusals(&world.reply(2).unwrap()), [None, None, Some(Why::UnknownTopic)]);
    world.ask(3, alter(ConfigResource::Cluster, "segment.ms", ConfigOp::Set("0".into())));
    world.run();
    assert_eq!(refusals(&world.reply(3).unwrap()), [Some(Why::InvalidConfig)]);
}

#[test]
fn a_request_whose_time_is_up_is_answered_once_with_that() {
    let mut world = World::serving(1);
    world.ask(1, create(&["a"], 1));
    world.ask(2, create(&["b"], 1));
    world.pass(9 * SECOND);
    assert!(world.local.is_empty());
    world.pass(2 * SECOND);
    assert_eq!(refusals(&world.reply(1).unwrap()), [Some(Why::TimedOut)]);
    assert_eq!(refusals(&world.reply(2).unwrap()), [Some(Why::TimedOut)]);
    world.run();
    assert!(world.local.is_empty(), "no second answer");
    assert_eq!(world.control.image().topic_count(), 1, "what was proposed still comes about");
    assert_eq!(world.control.poll_timeout(), None);
}

#[test]
fn requests_beyond_the_bound_are_refused_at_once() {
    let mut world = World::serving(1);
    for id in 0..=REQUESTS_MAX as u64 {
        world.ask(id, delete("nope"));
        world.local.clear();
        world.ask(id, create(&[&format!("t{id}")], 1));
    }
    assert_eq!(world.control.stats().requests_waiting, REQUESTS_MAX as u64);
    assert_eq!(refusals(&world.reply(REQUESTS_MAX as u64).unwrap()), [Some(Why::TimedOut)]);
    world.run();
    assert_eq!(world.local.len(), REQUESTS_MAX);
    world.check_shards();
}

#[test]
fn a_failed_proposal_refuses_its_requests_and_the_next_one_goes_on() {
    let mut world = World::serving(1);
    world.ask(1, create(&["a"], 1));
    let (proposal, _) = world.proposals.pop_front().unwrap();
    world.ask(2, create(&["b"], 1));
    world.input(Input::ProposalFailed { proposal, reason: "disk full".into() });
    assert_eq!(refusals(&world.reply(1).unwrap()), [Some(Why::StorageFailed)]);
    world.run();
    assert_eq!(refusals(&world.reply(2).unwrap()), [None]);
    world.check_shards();
}

#[test]
fn a_placement_that_could_not_be_kept_is_kept_later() {
    let mut world = World::serving(1);
    world.ask(1, create(&["a"], 1));
    world.commit();
    let (id, _) = world.keeps.pop_front().unwrap();
    world.input(Input::KeepFailed { id, reason: "disk full".into() });
    world.ask(2, alter(ConfigResource::Topic("a".into()), "retention.ms", ConfigOp::Set("5".into())));
    world.commit();
    assert!(world.shards[0].told.is_empty(), "later changes do not overtake");
    world.pass(SECOND);
    world.run();
    assert_eq!(refusals(&world.reply(1).unwrap()), [None]);
    world.check_shards();
}

#[test]
fn producer_ids_are_never_given_twice_across_restarts_and_failures() {
    let mut disk = Disk::default();
    let mut seen = BTreeSet::new();
    for life in 0..4 {
        let mut world = World::start(1, disk);
        world.recover_empty();
        world.run();
        for id in 0..700 {
            world.ask(id, Request::NewProducerId);
            if id % 300 == 0 && world.reply(id).is_none() {
                let (proposal, _) = world.proposals.pop_front().unwrap();
                world.input(Input::ProposalFailed { proposal, reason: "disk full".into() });
            }
            if id % 350 == 0 {
                world.run();
            }
        }
        world.run();
        for (_, reply) in world.local.drain(..) {
            match reply {
                Reply::NewProducerId(Ok((id, epoch))) => {
                    assert_eq!(epoch, ProducerEpoch(0));
                    assert!(seen.insert(id), "life {life}: {id} was given before");
                }
                Reply::NewProducerId(Err(refusal)) => assert_eq!(refusal.why, Why::StorageFailed),
                other => panic!("{other:?}"),
            }
        }
        disk = world.disk;
    }
    assert!(seen.len() > 2000, "{}", seen.len());
}

#[test]
fn a_restart_keeps_placements_and_begins_a_new_epoch() {
    let mut world = World::serving(2);
    world.ask(1, create(&["a"], 5));
    world.run();
    let before: Vec<_> = world.disk.image.local_shards().collect();
    let mut world = World::start(3, world.disk);
    let held = before.iter().filter(|(_, s)| *s == ShardId(1)).map(|(p, _)| *p).collect();
    world.shard_says(0, ToControl::Recovered { partitions: Vec::new() });
    world.shard_says(1, ToControl::Recovered { partitions: held });
    world.shard_says(2, ToControl::Recovered { partitions: Vec::new() });
    world.run();
    assert!(world.ready);
    world.check_shards();
    assert_eq!(world.disk.image.local_shards().collect::<Vec<_>>(), before);
    assert!(world.shards.iter().flat_map(|s| s.owned.values()).all(|a| {
        // It lost the lead with its last life, and was elected again.
        (a.leader, a.leader_epoch) == (Some(ME), LeaderEpoch(2))
    }));
    assert_eq!(world.owned(), [3, 2, 0]);
}

#[test]
fn records_in_a_journal_decide_where_a_partition_without_placement_belongs() {
    let mut world = World::serving(2);
    world.ask(1, create(&["a"], 2));
    world.commit();
    let disk = world.disk.clone();
    assert_eq!(disk.image.local_shards().count(), 0, "it stopped before placements were kept");
    let id = disk.image.topic("a").unwrap().id;
    let partition = |index| PartitionId { topic: id, index: PartitionIndex(index) };
    let stray = PartitionId { topic: TopicId(99), index: PartitionIndex(0) };
    let mut world = World::start(2, disk);
    world.shard_says(0, ToControl::Recovered { partitions: vec![stray] });
    world.shard_says(1, ToControl::Recovered { partitions: vec![partition(0)] });
    world.run();
    assert!(world.ready);
    world.check_shards();
    assert_eq!(world.disk.image.local_shard(partition(0)), Some(ShardId(1)));
    assert_eq!(world.disk.image.local_shard(partition(1)), Some(ShardId(0)));
    assert_eq!(world.disk.image.local_shard(stray), None);
    assert_eq!(world.shards[0].unassigned, [stray], "the records of a deleted topic are given up");
}

#[test]
fn records_of_one_partition_on_two_shards_stop_the_node() {
    let mut world = World::serving(2);
    world.ask(1, create(&["a"], 1));
    world.run();
    let (partition, _) = world.disk.image.local_shards().next().unwrap();
    let mut other = World::start(2, world.disk);
    other.shard_says(0, ToControl::Recovered { partitions: vec![partition] });
    other.shard_says(1, ToControl::Recovered { partitions: vec![partition] });
    other.run();
    let twice = ControlFatal::HeldTwice { partition, first: ShardId(0), second: ShardId(1) };
    assert_eq!(other.fatal, Some(twice));
    assert!(!other.ready);
}

#[test]
fn with_another_number_of_shards_partitions_belong_where_their_records_went() {
    let mut world = World::serving(3);
    world.ask(1, create(&["a"], 6));
    world.run();
    let all: Vec<_> = world.disk.image.local_shards().map(|(id, _)| id).collect();
    // Five of them have records, which went to other shards; the sixth has none.
    let mut world = World::start(2, world.disk);
    world.shard_says(0, ToControl::Recovered { partitions: all[..2].to_vec() });
    world.shard_says(1, ToControl::Recovered { partitions: all[2..5].to_vec() });
    world.run();
    assert!(world.ready);
    world.check_shards();
    let owner = |world: &World, i: usize| world.disk.image.local_shard(all[i]).unwrap().0;
    assert_eq!((0..5).map(|i| owner(&world, i)).collect::<Vec<_>>(), [0, 0, 1, 1, 1]);
    assert!(owner(&world, 5) < 2);
}

#[test]
fn a_second_process_as_this_node_is_refused() {
    let mut world = World::serving(1);
    world.disk.lives = 0;
    let mut world = World::start(1, world.disk);
    world.recover_empty();
    world.run();
    assert!(matches!(world.fatal, Some(ControlFatal::RegistrationRefused(_))), "{:?}", world.fatal);
}

#[test]
fn stopping_waits_for_every_shard_and_names_the_late_ones() {
    let mut world = World::serving(2);
    world.input(Input::Stop { deadline: SECOND });
    world.ask(1, create(&["a"], 1));
    assert_eq!(refusals(&world.reply(1).unwrap()), [Some(Why::TimedOut)]);
    world.run();
    assert!(world.shards.iter().all(|s| s.stopping));
    world.shard_says(0, ToControl::Stopped);
    assert_eq!(world.stopped, None);
    world.shard_says(1, ToControl::Stopped);
    assert_eq!(world.stopped, Some(vec![]));

    let mut world = World::serving(2);
    world.input(Input::Stop { deadline: SECOND });
    world.shard_says(0, ToControl::Stopped);
    world.pass(SECOND + STOP_GRACE);
    assert_eq!(world.stopped, Some(vec![ShardId(1)]));
}

#[test]
fn without_a_leader_requests_are_refused_in_time_and_served_again_with_one() {
    let mut world = World::serving(1);
    world.input(Input::Leadership { term: 2, leader: None });
    world.ask(1, create(&["a"], 1));
    assert!(world.proposals.is_empty() && world.local.is_empty(), "an election may end soon");
    world.pass(LEADER_WAIT);
    assert_eq!(refusals(&world.reply(1).unwrap()), [Some(Why::NoController)]);
    world.ask(2, create(&["a"], 1));
    assert_eq!(refusals(&world.reply(2).unwrap()), [Some(Why::NoController)], "at once by now");
    world.input(Input::Leadership { term: 3, leader: Some(NodeId(2)) });
    world.ask(3, create(&["a"], 1));
    world.run();
    assert_eq!(refusals(&world.reply(3).unwrap()), [None]);
    assert_eq!(world.control.image().controller, Some(ME), "2 did not say yet that it leads");
    let (proposal, _) = {
        world.ask(4, create(&["b"], 1));
        world.proposals.pop_front().unwrap()
    };
    world.input(Input::ProposalFailed { proposal, reason: "the leader is gone".into() });
    assert_eq!(refusals(&world.reply(4).unwrap()), [Some(Why::NoController)]);
}

#[test]
fn a_registration_that_failed_is_tried_again_with_growing_pauses() {
    let mut world = World::start(1, Disk::default());
    world.recover_empty();
    for _ in 0..8 {
        let (proposal, entry) = world.proposals.pop_front().unwrap();
        assert!(matches!(entry.commands[0], Command::RegisterNode(_)));
        world.input(Input::ProposalFailed { proposal, reason: "no leader".into() });
        assert!(world.proposals.is_empty(), "not at once");
        world.pass(RETRY_MAX + RETRY_MAX);
    }
    world.run();
    assert!(world.ready && world.fatal.is_none());
}

#[test]
fn a_fenced_node_comes_back_by_itself_and_a_removed_one_ends() {
    let mut world = World::serving(1);
    world.ask(1, create(&["a"], 2));
    world.run();
    let fence = Request::ChangeNode { node: ME, change: NodeChange::Fence, timeout: SECOND };
    world.ask(2, fence);
    world.commit();
    assert!(world.control.image().nodes[&ME].fenced);
    assert_eq!(world.control.image().leaderless_count(), 2, "its leaderships ended with the same entry");
    world.run();
    assert_eq!(refusals(&world.reply(2).unwrap()), [None]);
    assert!(world.control.image().serves(ME));
    assert_eq!(world.control.image().leaderless_count(), 0);
    world.check_shards();

    let remove = || Request::ChangeNode { node: ME, change: NodeChange::Remove, timeout: SECOND };
    world.ask(3, remove());
    assert_eq!(refusals(&world.reply(3).unwrap()), [Some(Why::NodeInUse)]);
    world.ask(4, delete("a"));
    world.run();
    world.ask(5, remove());
    world.run();
    assert_eq!(world.fatal, Some(ControlFatal::Removed));
}

#[test]
fn an_installed_image_is_told_as_a_whole_and_leaves_what_is_not_known_open() {
    let mut world = World::serving(2);
    world.ask(1, create(&["gone", "stays"], 4));
    world.run();
    world.ask(2, create(&["asked"], 1));
    let (proposal, _) = world.proposals.pop_front().unwrap();
    let mut image = world.disk.image.clone();
    image.clear_local_shards();
    let gone = image.topic("gone").unwrap().id;
    let more = CreateTopic {
        id: TopicId(77),
        name: "new".into(),
        replicas: vec![vec![ME], vec![NodeId(2)]],
        ..CreateTopic::default()
    };
    let node = RegisterNode { node: NodeId(2), incarnation: Incarnation(1), ..RegisterNode::default() };
    let commands = vec![
        Command::DeleteTopics(vec![gone]),
        Command::RegisterNode(node),
        Command::CreateTopics(vec![more]),
    ];
    for _ in 0..3 {
        image.apply(Revision(image.revision.0 + 1), &Entry::default());
    }
    image.apply(Revision(image.revision.0 + 1), &Entry { commands });
    let placed: Vec<_> = world.disk.image.local_shards().collect();
    world.disk.image = image.clone();
    for (partition, shard) in placed {
        world.disk.image.put_local_shard(partition, shard);
    }
    world.input(Input::Image(Box::new(image)));
    world.input(Input::ProposalFailed { proposal, reason: "covered by a snapshot".into() });
    assert_eq!(refusals(&world.reply(2).unwrap()), [Some(Why::TimedOut)], "it may have come about");
    world.run();
    assert_eq!(world.owned().iter().sum::<usize>(), 5, "four that stay, one that is new");
    for (shard, state) in (0..).map(ShardId).zip(&world.shards) {
        assert_eq!(state.view.as_deref(), Some(world.control.image()));
        assert!(state.owned.keys().all(|id| world.control.image().local_shard(*id) == Some(shard)));
    }
}

#[test]
fn what_a_slow_shard_has_not_applied_is_gathered_into_one_change() {
    let mut world = World::serving(1);
    for id in 0..100 {
        world.ask(id, create(&[&format!("t{id}")], 1));
        while world.commit() | world.keep() {}
    }
    assert!(world.shards[0].told.len() <= DELTAS_MAX, "{}", world.shards[0].told.len());
    world.run();
    assert_eq!(world.local.len(), 100);
    world.check_shards();
}

#[test]
fn a_large_topic_whose_part_is_refused_is_answered_once_and_not_begun_anew() {
    let mut world = World::serving(1);
    world.ask(1, create(&["large"], 3000));
    world.commit();
    assert_eq!(world.proposals.len(), 1, "the second part is under way");
    let other = Stage { by: ME, topic: TopicId(5), at: 0, replicas: vec![vec![ME]] };
    let entry = Entry { commands: vec![Command::Stage(other)] };
    let revision = Revision(world.disk.image.revision.0 + 1);
    world.disk.image.apply(revision, &entry);
    world.input(Input::Committed { revision, proposal: None, entry });
    world.run();
    assert_eq!(refusals(&world.reply(1).unwrap()), [Some(Why::Conflict)]);
    assert!(world.local.is_empty() && world.proposals.is_empty());
    assert_eq!(world.control.image().topic_count(), 0);
    world.ask(2, create(&["large"], 3000));
    world.run();
    assert_eq!(refusals(&world.reply(2).unwrap()), [None]);
    world.check_shards();
}

#[test]
fn a_hundred_thousand_partitions_come_in_small_entries_and_each_topic_at_once() {
    let mut world = World::serving(4);
    let first = world.disk.image.revision;
    for id in 0..10 {
        match id % 2 {
            // One topic that is too large for an entry, or many small ones.
            0 => world.ask(id, create(&[&format!("large{id}")], 10_000)),
            _ => {
                let names: Vec<String> = (0..2500).map(|at| format!("small{id}-{at}")).collect();
                world.ask(id, create(&names.iter().map(String::as_str).collect::<Vec<_>>(), 4));
            }
        }
        while let Some((_, entry)) = world.proposals.front() {
            assert!(entry.encode().len() <= ENTRY_BYTES_MAX + 16, "{} bytes", entry.encode().len());
            let weight: usize = entry.commands.iter().map(Command::weight).sum();
            assert!(weight <= ENTRY_BYTES_MAX, "{weight}");
            world.commit();
            let large = world.control.image().topic(&format!("large{id}"));
            assert!(large.is_none_or(|t| t.partitions.len() == 10_000), "half of a topic can be seen");
        }
        world.run();
        let reply = world.reply(id).expect("answered");
        assert!(refusals(&reply).iter().all(Option::is_none));
    }
    assert_eq!(world.control.image().partition_count(), 100_000);
    let entries = world.disk.image.revision.0 - first.0;
    assert!((100..150).contains(&entries), "{entries} entries of at most 1000 partitions");
    world.check_shards();
    let owned = world.owned();
    assert_eq!(owned, [25_000; 4]);
}

#[test]
fn random_schedules_with_restarts_answer_each_request_once_and_converge() {
    for seed in 0..60 {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut below = |n: u32| random.next_u32() % n;
        let mut disk = Disk::default();
        for _ in 0..3 {
            let mut world = World::start(3, disk);
            let (mut asked, mut answered) = (0_u64, BTreeSet::new());
            for shard in 0..3 {
                let placed = world.disk.image.local_shards().filter(|(_, s)| s.0 == shard);
                let partitions = placed.map(|(p, _)| p).collect();
                world.shard_says(usize::from(shard), ToControl::Recovered { partitions });
            }
            for _ in 0..400 {
                let name = format!("t{}", below(8));
                match below(12) {
                    0..=2 => world.ask(asked, create(&[&name], 1 + below(5))),
                    3 => world.ask(asked, delete(&name)),
                    4 => world.ask(asked, Request::NewProducerId),
                    5 => {
                        let op = ConfigOp::Set((1 + below(3)).to_string());
                        let resource = match below(2) {
                            0 => ConfigResource::Cluster,
                            _ => ConfigResource::Topic(name),
                        };
                        world.ask(asked, alter(resource, "min.insync.replicas", op));
                    }
                    6 | 7 => drop(world.commit()),
                    8 => drop(world.keep()),
                    9 if below(4) == 0 => {
                        if let Some((id, _)) = world.keeps.pop_front() {
                            world.input(Input::KeepFailed { id, reason: "disk full".into() });
                        } else if world.ready
                            && let Some((proposal, _)) = world.proposals.pop_front()
                        {
                            world.input(Input::ProposalFailed { proposal, reason: "disk full".into() });
                        }
                    }
                    9 => world.pass(Duration::from_millis(u64::from(below(900)))),
                    _ => drop(world.step(below(3) as usize)),
                }
                // Only the arms that ask use up the number: an unused one is not expected to be answered.
                if world.control.stats().requests > asked {
                    asked += 1;
                }
                for (id, _) in world.local.drain(..) {
                    assert!(answered.insert(id), "seed {seed}: answered twice");
                }
            }
            if below(2) == 0 {
                for _ in 0..20 {
                    world.run();
                    world.pass(2 * SECOND);
                }
                assert!(world.ready, "seed {seed}");
                world.check_shards();
                for (id, _) in world.local.drain(..) {
                    assert!(answered.insert(id), "seed {seed}: answered twice");
                }
                assert_eq!(answered.len() as u64, asked, "seed {seed}: each request is answered");
            }
            disk = world.disk;
        }
    }
}
