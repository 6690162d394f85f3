use std::io::ErrorKind;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use highwater_shards::ids::{PartitionId, PartitionIndex, ProducerId, Revision, ShardId, TopicId};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};

use super::crash_disk::CrashDisk;
use super::thread::open_with;
use super::*;
use crate::control::Input;
use crate::control::metadata::command::{Command, CreateTopic, RegisterNode};
use crate::control::metadata::image::Incarnation;

const ME: NodeId = NodeId(1);

struct World {
    identity: Identity,
    image: Image,
    store: Store,
    events: Receiver<StoreEvent>,
    proposals: u64,
}

fn config() -> StoreConfig {
    StoreConfig { data_dir: PathBuf::from("data"), node: ME, cluster_id: None, entropy: [7; 16] }
}

fn start_with(disk: &CrashDisk, config: &StoreConfig) -> Result<World, StoreError> {
    let disk = disk.clone();
    let (tell, events) = channel();
    let opener = Box::new(move |builder: &redb::Builder| builder.create_with_backend(disk.clone()));
    let send = Box::new(move |event| drop(tell.send(event)));
    let Opened { identity, image, store } = open_with(config, opener, send)?;
    Ok(World { identity, image, store, events, proposals: 0 })
}

fn start(disk: &CrashDisk) -> World {
    start_with(disk, &config()).expect("the store opens")
}

fn entry(n: u64) -> Entry {
    let register = RegisterNode { node: ME, incarnation: Incarnation(n), ..RegisterNode::default() };
    let topic = CreateTopic {
        id: TopicId(u128::from(n)),
        name: format!("t{n}"),
        replicas: vec![vec![ME]; 3],
        ..CreateTopic::default()
    };
    let reserve = Command::ReserveProducerIds { node: ME, count: 1 };
    Entry { commands: vec![Command::RegisterNode(register), Command::CreateTopics(vec![topic]), reserve] }
}

fn partition(n: u32) -> PartitionId {
    PartitionId { topic: TopicId(7), index: PartitionIndex(n) }
}

impl World {
    fn propose(&mut self) -> ProposalId {
        let id = ProposalId(self.proposals);
        self.proposals += 1;
        self.store.propose(id, entry(self.image.revision.0 + self.proposals));
        id
    }

    fn event(&self) -> StoreEvent {
        self.events.recv_timeout(Duration::from_secs(30)).expect("the store answers")
    }

    /// Proposes one and waits until it is committed.
    fn commit(&mut self) -> Revision {
        let id = self.propose();
        match self.event() {
            StoreEvent::Input(Input::Committed { revision, proposal, .. }) => {
                assert_eq!(proposal, Some(id));
                self.proposals = 0;
                self.image.apply(revision, &entry(revision.0));
                revision
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_was_committed_and_kept_is_there_in_the_next_life() {
    let disk = CrashDisk::default();
    let mut first = start_with(&disk, &config()).unwrap();
    assert_eq!(first.identity.incarnation, Incarnation(1));
    assert_eq!(*first.image.cluster_id, *first.identity.cluster_id);
    assert_eq!((first.commit(), first.commit()), (Revision(1), Revision(2)));
    let (a, b) = (partition(1), partition(300));
    first.store.keep(KeepId(5), vec![(a, Some(ShardId(3))), (b, Some(ShardId(9)))]);
    assert!(matches!(first.event(), StoreEvent::Input(Input::Kept { id: KeepId(5) })));
    first.store.keep(KeepId(6), vec![(a, None)]);
    assert!(matches!(first.event(), StoreEvent::Input(Input::Kept { id: KeepId(6) })));
    drop(first.store);
    let second = start_with(&disk, &config()).unwrap();
    assert_eq!(second.identity.incarnation, Incarnation(2));
    assert_eq!(second.identity.cluster_id, first.identity.cluster_id);
    first.image.put_local_shard(b, ShardId(9));
    assert_eq!(second.image, first.image);
    assert_eq!(second.image.topic("t2").unwrap().partitions.len(), 3);
}

#[test]
fn a_commit_that_nobody_was_told_of_counts_after_a_crash() {
    let disk = CrashDisk::default();
    let mut first = start(&disk);
    let syncs = disk.syncs();
    first.propose();
    while disk.syncs() == syncs {
        std::thread::yield_now();
    }
    // The flush is done; whether the event was sent does not matter.
    let second = start(&disk.crash(&mut Xoshiro256PlusPlus::seed_from_u64(1)));
    assert_eq!(second.image.revision, Revision(1));
    assert!(second.image.topic("t1").is_some());
}

#[test]
fn crashes_at_any_moment_lose_nothing_that_was_committed() {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(3);
    let mut disk = CrashDisk::default();
    let mut committed = Revision(0);
    for life in 1..40 {
        let mut world = start(&disk);
        assert_eq!(world.identity.incarnation, Incarnation(life), "no incarnation comes twice");
        assert!(world.image.revision >= committed, "life {life}");
        assert!(world.image.revision.0 <= committed.0 + 3, "only what was proposed can be there");
        assert_eq!(world.image.producer_id_next, ProducerId(world.image.revision.0));
        for _ in 0..random.next_u32() % 4 {
            world.commit();
        }
        committed = world.image.revision;
        if random.next_u32().is_multiple_of(3) {
            world.store.snapshot(world.image.clone());
        }
        for _ in 0..random.next_u32() % 4 {
            world.propose();
        }
        for _ in 0..random.next_u32() % 2000 {
            std::hint::spin_loop();
        }
        disk = disk.crash(&mut random);
    }
    assert!(committed.0 > 30, "{committed}");
}

#[test]
fn a_snapshot_takes_the_place_of_the_entries_before_it() {
    let disk = CrashDisk::default();
    let mut first = start(&disk);
    assert!(!first.store.wants_snapshot());
    for _ in 0..1000 {
        first.commit();
    }
    assert!(first.store.wants_snapshot());
    first.store.snapshot(first.image.clone());
    assert!(matches!(first.event(), StoreEvent::Snapshotted(Revision(1000))));
    assert!(!first.store.wants_snapshot());
    assert_eq!(first.commit(), Revision(1001));
    drop(first.store);
    let second = start(&disk);
    assert_eq!(second.image, first.image);
    assert!(!second.store.wants_snapshot(), "one entry is behind the snapshot");
}

#[test]
fn a_full_disk_refuses_work_and_the_store_goes_on_when_there_is_space() {
    let disk = CrashDisk::default();
    let mut world = start(&disk);
    world.commit();
    disk.fail_writes(Some(ErrorKind::StorageFull));
    let id = world.propose();
    while disk.failures() == 0 {
        std::thread::yield_now();
    }
    // Whether this one meets a full disk still is left open; it is answered in any case.
    world.store.keep(KeepId(1), vec![(partition(0), Some(ShardId(0)))]);
    disk.fail_writes(None);
    let mut refused = None;
    for _ in 0..2 {
        match world.event() {
            StoreEvent::Input(Input::ProposalFailed { proposal, reason }) => {
                refused = Some((proposal, reason))
            }
            StoreEvent::Input(Input::Kept { id: KeepId(1) } | Input::KeepFailed { id: KeepId(1), .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    let (proposal, reason) = refused.expect("the proposal met a full disk");
    assert_eq!(proposal, id);
    assert!(reason.contains("no space left"), "{reason}");
    world.proposals = 0;
    assert_eq!(world.commit(), Revision(2), "a refused entry leaves no gap");
    drop(world.store);
    assert_eq!(start(&disk).image.revision, Revision(2));
}

#[test]
fn a_write_that_failed_for_another_reason_is_the_end() {
    let disk = CrashDisk::default();
    let mut world = start(&disk);
    disk.fail_writes(Some(ErrorKind::PermissionDenied));
    world.propose();
    let StoreEvent::Failed(error @ StoreError::Io { .. }) = world.event() else { panic!("an end") };
    assert!(error.to_string().contains("metadata.redb"), "{error}");
    disk.fail_writes(None);
    world.propose();
    assert!(world.events.recv().is_err(), "nothing more is promised");
}

#[test]
fn a_store_of_somebody_else_is_refused_with_words() {
    let disk = CrashDisk::default();
    drop(start_with(&disk, &config()).unwrap());
    let refused = |config: &StoreConfig| start_with(&disk, config).err().expect("refused").to_string();
    let words = refused(&StoreConfig { node: NodeId(2), ..config() });
    assert!(words.contains("belongs to node 1") && words.contains("says node 2"), "{words}");
    let words = refused(&StoreConfig { cluster_id: Some("other".into()), ..config() });
    assert!(words.contains("belongs to cluster BwcHBwcHBwcHBwcHBwcHBw, not to other"), "{words}");
}

#[test]
fn a_changed_byte_is_reported_and_never_believed() {
    let disk = CrashDisk::default();
    let mut world = start(&disk);
    for _ in 0..20 {
        world.commit();
    }
    drop(world.store);
    let whole = disk.bytes();
    let mut random = Xoshiro256PlusPlus::seed_from_u64(5);
    let mut refused = 0;
    for _ in 0..150 {
        let mut bytes = whole.clone();
        let at = usize::try_from(random.next_u64()).unwrap() % bytes.len();
        bytes[at] ^= 1 << (random.next_u32() % 8);
        match start_with(&CrashDisk::holding(bytes), &config()) {
            Ok(found) => assert_eq!(found.image, world.image, "byte {at} changed what is there"),
            Err(error) => {
                assert!(error.to_string().contains("metadata.redb"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "some of the bytes matter");
}

#[test]
fn a_file_that_is_no_store_is_refused_and_left_as_it_is() {
    let disk = CrashDisk::holding(b"dear diary".repeat(1000));
    let before = disk.bytes();
    let error = start_with(&disk, &config()).err().expect("refused");
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    assert_eq!(disk.bytes(), before);
}
