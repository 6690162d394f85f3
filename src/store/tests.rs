use std::io::ErrorKind;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use highwater_shards::ids::{PartitionIndex, RegistrationEpoch, TopicId};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};

use super::crash_disk::CrashDisk;
use super::thread::open_with;
use super::*;
use crate::control::metadata::image::Incarnation;
use crate::control::{Input, KeepId, Placements};
use crate::raft::DiskId;

const ME: NodeId = NodeId(1);
const DISK: DiskId = DiskId(9);

struct World {
    identity: Identity,
    placements: Vec<(PartitionId, ShardId)>,
    store: Store,
    events: Receiver<StoreEvent>,
    kept: u64,
}

fn config() -> StoreConfig {
    StoreConfig {
        data_dir: PathBuf::from("data"),
        node: ME,
        cluster_id: None,
        entropy: [7; 16],
        forms: false,
    }
}

fn find(disk: &CrashDisk, config: &StoreConfig) -> Result<Found, StoreError> {
    let disk = disk.clone();
    open_with(config, Box::new(move |builder: &redb::Builder| builder.create_with_backend(disk.clone())))
}

fn start_with(disk: &CrashDisk, config: &StoreConfig) -> Result<World, StoreError> {
    let (tell, events) = channel();
    let found = find(disk, config)?;
    let log_is_new = found.identity.is_none();
    let opened = found.begin(DISK, log_is_new, move |event| drop(tell.send(event)))?;
    let Opened { identity, placements, store } = opened;
    Ok(World { identity, placements, store, events, kept: 0 })
}

fn start(disk: &CrashDisk) -> World {
    start_with(disk, &config()).expect("the store opens")
}

fn partition(n: u32) -> PartitionId {
    PartitionId { topic: TopicId(7), index: PartitionIndex(n) }
}

impl World {
    fn event(&self) -> StoreEvent {
        self.events.recv_timeout(Duration::from_secs(30)).expect("the store answers")
    }

    /// Gives it to the store, and does not wait.
    fn give(&mut self, changes: Placements) -> KeepId {
        self.kept += 1;
        self.store.keep(KeepId(self.kept), changes);
        KeepId(self.kept)
    }

    fn keep(&mut self, changes: Placements) {
        let given = self.give(changes);
        match self.event() {
            StoreEvent::Input(Input::Kept { id }) => assert_eq!(id, given),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_was_kept_is_there_in_the_next_life() {
    let disk = CrashDisk::default();
    let mut first = start_with(&disk, &config()).unwrap();
    assert_eq!((first.identity.incarnation, first.identity.disk), (Incarnation(1), DISK));
    assert!(first.placements.is_empty());
    let (a, b) = (partition(1), partition(300));
    first.keep(vec![(a, Some(ShardId(3))), (b, Some(ShardId(9)))]);
    first.keep(vec![(a, None)]);
    drop(first.store);
    let second = start_with(&disk, &config()).unwrap();
    assert_eq!(second.identity.incarnation, Incarnation(2));
    assert_eq!(second.identity.cluster_id, first.identity.cluster_id);
    assert_eq!(second.placements, [(b, ShardId(9))]);
}

#[test]
fn a_life_that_ends_before_it_is_registered_leaves_the_clean_stop_of_the_one_before() {
    let disk = CrashDisk::default();
    let mut first = start(&disk);
    assert_eq!(first.identity.clean_stop, None);
    let clean_stop = Some(RegistrationEpoch(7));
    first.store.keep_cluster(Identity { clean_stop, ..first.identity });
    drop(first.store);
    let second = start(&disk);
    assert_eq!(second.identity.clean_stop, clean_stop);
    drop(second.store);
    assert_eq!(start(&disk).identity.clean_stop, clean_stop);
}

#[test]
fn crashes_at_any_moment_lose_nothing_that_was_kept() {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(3);
    let mut disk = CrashDisk::default();
    let mut kept = 0;
    for life in 1..40 {
        let mut world = start(&disk);
        assert_eq!(world.identity.incarnation, Incarnation(life), "no incarnation comes twice");
        let found = u32::try_from(world.placements.len()).unwrap();
        assert!((kept..=kept + 3).contains(&found), "life {life}: {found} of {kept}");
        kept = found;
        for _ in 0..random.next_u32() % 4 {
            world.keep(vec![(partition(kept), Some(ShardId(0)))]);
            kept += 1;
        }
        for n in 0..random.next_u32() % 4 {
            world.give(vec![(partition(kept + n), Some(ShardId(0)))]);
        }
        for _ in 0..random.next_u32() % 2000 {
            std::hint::spin_loop();
        }
        disk = disk.crash(&mut random);
    }
    assert!(kept > 30, "{kept}");
}

#[test]
fn a_full_disk_refuses_work_and_the_store_goes_on_when_there_is_space() {
    let disk = CrashDisk::default();
    let mut world = start(&disk);
    world.keep(vec![(partition(0), Some(ShardId(0)))]);
    disk.fail_writes(Some(ErrorKind::StorageFull));
    let refused = world.give(vec![(partition(1), Some(ShardId(0)))]);
    while disk.failures() == 0 {
        std::thread::yield_now();
    }
    disk.fail_writes(None);
    let StoreEvent::Input(Input::KeepFailed { id, reason }) = world.event() else { panic!("it is refused") };
    assert_eq!(id, refused);
    assert!(reason.contains("no space left"), "{reason}");
    world.keep(vec![(partition(1), Some(ShardId(2)))]);
    drop(world.store);
    assert_eq!(start(&disk).placements, [(partition(0), ShardId(0)), (partition(1), ShardId(2))]);
}

#[test]
fn a_write_that_failed_for_another_reason_is_the_end() {
    let disk = CrashDisk::default();
    let mut world = start(&disk);
    disk.fail_writes(Some(ErrorKind::PermissionDenied));
    world.give(vec![(partition(0), None)]);
    let StoreEvent::Failed(error @ StoreError::Io { .. }) = world.event() else { panic!("an end") };
    assert!(error.to_string().contains("metadata.redb"), "{error}");
    disk.fail_writes(None);
    world.give(vec![(partition(0), None)]);
    assert!(world.events.recv().is_err(), "nothing more is promised");
}

#[test]
fn a_store_and_a_log_that_do_not_belong_together_are_refused() {
    let disk = CrashDisk::default();
    let refused = |disk: &CrashDisk, id: DiskId, log_is_new: bool| {
        let opened = find(disk, &config()).unwrap().begin(id, log_is_new, drop);
        matches!(opened, Err(StoreError::OtherLog { .. }))
    };
    assert!(refused(&disk, DISK, false), "a log that has entries, and no store");
    drop(start(&disk).store);
    assert!(refused(&disk, DiskId(10), true), "a store, and a new log");
    assert!(!refused(&disk, DISK, true), "its own log, which has nothing yet");
    assert_eq!(start(&disk).identity.incarnation, Incarnation(3), "being refused is no life");
}

#[test]
fn a_store_of_an_earlier_version_is_refused_with_words() {
    let disk = CrashDisk::default();
    {
        let database = redb::Database::builder().create_with_backend(disk.clone()).unwrap();
        let txn = database.begin_write().unwrap();
        txn.open_table(redb::TableDefinition::<(), u32>::new("format")).unwrap().insert((), 1).unwrap();
        txn.commit().unwrap();
    }
    let words = find(&disk, &config()).err().expect("refused").to_string();
    assert!(words.contains("another version of Highwater (format 1; this one reads 2)"), "{words}");
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
    for n in 0..20 {
        world.keep(vec![(partition(n), Some(ShardId(1)))]);
    }
    drop(world.store);
    let whole = disk.bytes();
    let expected: Vec<_> = (0..20).map(|n| (partition(n), ShardId(1))).collect();
    let mut random = Xoshiro256PlusPlus::seed_from_u64(5);
    let mut refused = 0;
    for _ in 0..150 {
        let mut bytes = whole.clone();
        let at = usize::try_from(random.next_u64()).unwrap() % bytes.len();
        bytes[at] ^= 1 << (random.next_u32() % 8);
        match start_with(&CrashDisk::holding(bytes), &config()) {
            Ok(found) => assert_eq!(found.placements, expected, "byte {at} changed what is there"),
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
