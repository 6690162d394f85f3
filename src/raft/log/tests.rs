//! The log on a disk that forgets what was not flushed, and openraft's own tests of a storage.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};
use tokio::task::LocalSet;

use super::super::host::{Backend, Threads};
use super::super::state::{Shared as StateShared, StateMachine};
use super::super::types::Payload;
use super::super::{Event, machine::Machine};
use super::*;
use crate::control::Input;
use crate::control::metadata::image::Image;
use crate::store::crash_disk::CrashDisk;
use crate::store::folder::Directory;

const DISK: DiskId = DiskId(7);
/// So little that the database has its turn again and again.
const JOURNAL_BYTES: u64 = 20 * 1024;

/// The disks of the database and of the journal.
#[derive(Clone, Default)]
struct Disks {
    database: CrashDisk,
    journal: CrashDisk,
}

impl Disks {
    fn syncs(&self) -> u64 {
        self.database.syncs() + self.journal.syncs()
    }

    fn fail_writes(&self, kind: Option<io::ErrorKind>) {
        self.database.fail_writes(kind);
        self.journal.fail_writes(kind);
    }

    /// The power goes. A round of the journal that the database has only seemed to take is not written over.
    fn crash(&self, random: &mut Xoshiro256PlusPlus) -> Self {
        Self { journal: self.journal.crash(random), database: self.database.crash(random) }
    }
}

fn open(disks: &Disks) -> OpenLog {
    let Disks { database, journal } = disks.clone();
    let opener = Box::new(move |builder: &redb::Builder| builder.create_with_backend(database.clone()));
    let journal = Backend(Box::new(journal));
    let place = Place { file: "log.redb".into(), opener, journal, journal_bytes: JOURNAL_BYTES };
    OpenLog::open(place, DISK).unwrap()
}

fn start(disk: &Disks) -> LogStore {
    open(disk).start(Counters::default(), &Threads).unwrap()
}

fn entry(term: u64, index: u64) -> LogEntry {
    let bytes = Bytes::from(format!("{term} {index}").repeat(20));
    let payload = openraft::EntryPayload::Normal(Payload::Probe(bytes));
    LogEntry { log_id: LogId::new_term_index(term, index), payload }
}

fn signal() -> (IOFlushed<TypeConfig>, oneshot::Receiver<io::Result<()>>) {
    let (sender, receiver) = <openraft_rt_tokio::TokioOneshot as openraft::async_runtime::Oneshot>::channel();
    (IOFlushed::signal(sender), receiver)
}

async fn append(log: &mut LogStore, entries: Vec<LogEntry>) -> oneshot::Receiver<io::Result<()>> {
    let (flushed, done) = signal();
    log.append(entries, flushed).await.unwrap();
    done
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

async fn all(log: &LogStore) -> Vec<LogEntry> {
    log.reader().try_get_log_entries(..).await.unwrap()
}

#[test]
fn entries_are_readable_before_they_are_durable() {
    run(async {
        let disk = Disks::default();
        let mut log = start(&disk);
        let (durable, entries) = (disk.syncs(), vec![entry(1, 0), entry(1, 1)]);
        let done = append(&mut log, entries.clone()).await;
        // The thread has not run yet when this one has not waited: what is read comes from memory.
        assert_eq!(all(&log).await, entries);
        done.await.unwrap().unwrap();
        assert!(disk.syncs() > durable);
    });
}

#[test]
fn a_new_life_goes_on_where_the_last_one_ended() {
    run(async {
        let disk = Disks::default();
        let vote = Vote::new_committed(3, 2);
        {
            let mut log = start(&disk);
            append(&mut log, (0..10).map(|index| entry(1, index)).collect()).await.await.unwrap().unwrap();
            log.save_vote(&vote).await.unwrap();
            log.truncate_after(Some(LogId::new_term_index(1, 7))).await.unwrap();
            append(&mut log, vec![entry(3, 8)]).await.await.unwrap().unwrap();
            log.purge(LogId::new_term_index(1, 2)).await.unwrap();
            log.save_committed(Some(LogId::new_term_index(1, 6))).await.unwrap();
        }
        let opened = open(&disk);
        assert_eq!(opened.disk(), DISK);
        assert_eq!(opened.committed(), Some(LogId::new_term_index(1, 6)));
        assert_eq!(opened.purged(), Some(LogId::new_term_index(1, 2)));
        assert!(!opened.is_new());
        let mut log = opened.start(Counters::default(), &Threads).unwrap();
        let expected: Vec<LogEntry> = (3..8).map(|index| entry(1, index)).chain([entry(3, 8)]).collect();
        assert_eq!(all(&log).await, expected);
        assert_eq!(log.reader().vote(), Some(vote));
        append(&mut log, vec![entry(3, 9)]).await.await.unwrap().unwrap();
        assert_eq!(log.reader().try_get_log_entries(8..=9).await.unwrap(), [entry(3, 8), entry(3, 9)]);
    });
}

/// What the log promised: entries by index, up to which all are durable, and the vote.
#[derive(Clone, Debug, Default)]
struct Promised {
    entries: Vec<LogEntry>,
    durable: usize,
    vote: Option<Vote>,
}

/// Random work on the log, and a crash at a random write of its thread; in the next life nothing that was promised
/// is missing or different, and a vote never goes back.
#[test]
fn a_crash_at_any_write_loses_nothing_that_was_flushed() {
    let mut lost_unflushed = 0;
    for seed in 0..60 {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut disk = Disks::default();
        let mut promised = Promised::default();
        let mut term = 1;
        for _ in 0..4 {
            run(async {
                let mut log = start(&disk);
                let found = all(&log).await;
                assert!(
                    found.len() >= promised.durable,
                    "seed {seed}: {} of {}",
                    found.len(),
                    promised.durable
                );
                assert_eq!(found[..promised.durable], promised.entries[..promised.durable], "seed {seed}");
                if found.len() < promised.entries.len() {
                    lost_unflushed += 1;
                }
                let vote = log.reader().vote();
                assert!(vote >= promised.vote, "seed {seed}: {vote:?} after {:?}", promised.vote);
                promised = Promised { durable: found.len(), entries: found, vote };
                term = term.max(vote.map_or(0, |vote| vote.leader_id.term)) + 1;
                let mut waiting = Vec::new();
                for _ in 0..random.next_u32() % 12 {
                    match random.next_u32() % 8 {
                        0 => {
                            let vote = Vote::new(term, 1);
                            log.save_vote(&vote).await.unwrap();
                            promised.vote = Some(vote);
                            term += 1;
                        }
                        1 if !promised.entries.is_empty() => {
                            let keep = (random.next_u64() % promised.entries.len() as u64) as usize;
                            let last = keep.checked_sub(1).map(|last| promised.entries[last].log_id);
                            log.truncate_after(last).await.unwrap();
                            promised.entries.truncate(keep);
                            promised.durable = promised.durable.min(keep);
                            waiting.clear();
                        }
                        _ => {
                            let first = promised.entries.len() as u64;
                            let count = 1 + u64::from(random.next_u32() % 20);
                            let new: Vec<LogEntry> = (first..first + count).map(|i| entry(term, i)).collect();
                            promised.entries.extend(new.iter().cloned());
                            waiting.push((promised.entries.len(), append(&mut log, new).await));
                        }
                    }
                    if random.next_u32() % 3 == 0 {
                        for (len, done) in waiting.drain(..) {
                            done.await.unwrap().unwrap();
                            promised.durable = len;
                        }
                    }
                }
                if random.next_u32() % 2 == 0 {
                    // Lets the thread come to any point of its work.
                    std::thread::yield_now();
                }
                let crashed = disk.crash(&mut random);
                // What came through between is promised as well, but the disk took nothing after the crash.
                disk = crashed;
            });
        }
    }
    assert!(lost_unflushed > 0, "some of the crashes come before a flush");
}

#[test]
fn a_full_disk_holds_writes_up_and_another_failure_ends_them() {
    run(async {
        let disk = Disks::default();
        let mut log = start(&disk);
        append(&mut log, vec![entry(1, 0)]).await.await.unwrap().unwrap();
        disk.fail_writes(Some(io::ErrorKind::StorageFull));
        let held = append(&mut log, vec![entry(1, 1)]).await;
        while !log.reader().is_full() {
            tokio::task::yield_now().await;
        }
        assert_eq!(all(&log).await, [entry(1, 0), entry(1, 1)], "reads go on");
        disk.fail_writes(None);
        held.await.unwrap().unwrap();
        assert!(!log.reader().is_full());
        disk.fail_writes(Some(io::ErrorKind::PermissionDenied));
        let failed = append(&mut log, vec![entry(1, 2)]).await.await.unwrap();
        assert!(failed.unwrap_err().to_string().contains("log.redb"));
        disk.fail_writes(None);
        assert!(append(&mut log, vec![entry(1, 3)]).await.await.unwrap().is_err(), "no promise after that");
        assert!(log.save_vote(&Vote::new(9, 1)).await.is_err());
        assert_eq!(log.reader().vote(), None);
    });
}

#[test]
fn reads_are_bounded_and_long_logs_leave_memory() {
    run(async {
        let disk = Disks::default();
        let mut log = start(&disk);
        let large = |index: u64| LogEntry {
            log_id: LogId::new_term_index(1, index),
            payload: openraft::EntryPayload::Normal(Payload::Probe(Bytes::from(vec![index as u8; 300_000]))),
        };
        for index in 0..100 {
            append(&mut log, vec![large(index)]).await.await.unwrap().unwrap();
        }
        let in_memory = log.reader.0.state.borrow().tail_bytes;
        assert!(in_memory <= TAIL_BYTES_MAX + 300_000, "{in_memory}");
        let start = log.reader.0.state.borrow().tail_start();
        assert!(start > 0, "some are read from the disk");
        for range in [0..100, start - 1..100, start..100, 99..100] {
            let some = log.reader().limited_get_log_entries(range.start, range.end).await.unwrap();
            assert_eq!(some.len() as u64, 3.min(range.end - range.start).min(some.len() as u64).max(1));
            assert!(some.len() <= 3 && some[0] == large(range.start));
        }
        let streamed: Vec<u64> = log
            .reader()
            .entries_stream(start - 5..)
            .await
            .map(|entry| entry.unwrap().log_id.index)
            .collect()
            .await;
        assert_eq!(streamed, (start - 5..100).collect::<Vec<_>>());
        assert_eq!(log.reader().try_get_log_entries(..).await.unwrap().len(), 100);
    });
}

#[test]
fn work_that_waits_together_is_flushed_together() {
    run(async {
        let disk = Disks::default();
        let counters = Counters::default();
        let mut log = open(&disk).start(counters.clone(), &Threads).unwrap();
        // The first one holds the thread up until the others wait behind it.
        disk.fail_writes(Some(io::ErrorKind::StorageFull));
        let mut waiting = vec![append(&mut log, vec![entry(1, 0)]).await];
        while !log.reader().is_full() {
            tokio::task::yield_now().await;
        }
        for index in 1..500 {
            waiting.push(append(&mut log, vec![entry(1, index)]).await);
        }
        disk.fail_writes(None);
        for done in waiting {
            done.await.unwrap().unwrap();
        }
        let stats = counters.stats();
        assert_eq!((stats.entries_written, stats.append_nanos.len()), (500, 500));
        assert_eq!(stats.flushes, 2);
    });
}

/// A control loop that only keeps the image.
async fn keep_image(mut events: mpsc::Receiver<Event>) {
    let mut image = Image::default();
    while let Some(event) = events.recv().await {
        match event {
            Event::Input(Input::Committed { revision, entry, .. }) => drop(image.apply(revision, &entry)),
            Event::Input(Input::Image(installed)) => image = *installed,
            Event::WantImage { reply, .. } => drop(reply.send(Box::new(image.clone()))),
            _ => {}
        }
    }
}

struct Folder(std::path::PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

#[derive(Default)]
struct Build(AtomicU64);

impl StoreBuilder<TypeConfig, LogStore, StateMachine, Folder> for Build {
    async fn build(&self) -> Result<(Folder, LogStore, StateMachine), StorageError<TypeConfig>> {
        let number = self.0.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("highwater-suite-{}-{number}", std::process::id()));
        // Left over by a test process of that number that was killed.
        let _ = std::fs::remove_dir_all(&folder);
        let directory = Arc::new(Directory::make(&folder).unwrap());
        let (events, inbox) = mpsc::channel(16);
        tokio::task::spawn_local(keep_image(inbox));
        let shared = StateShared::new(
            (directory, Rc::new(Threads)),
            events,
            Counters::default(),
            Machine::default(),
            None,
        );
        Ok((Folder(folder), start(&Disks::default()), StateMachine::new(Rc::new(shared))))
    }
}

#[test]
fn the_storage_passes_the_tests_of_openraft() {
    run(async {
        Suite::test_all(Build::default()).await.unwrap();
    });
}
