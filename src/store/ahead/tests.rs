//! Databases over disks that forget and tear what was not flushed.

use std::fs;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};
use redb::{ReadableDatabase, ReadableTable, TableDefinition};

use super::*;
use crate::store::crash_disk::CrashDisk;
use crate::store::folder::Directory;

const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("t");
/// Some rounds are over after few commits, and the first commit of a database does not fit into one.
const SMALL_ROUND: u64 = 256 * 1024;

#[derive(Clone)]
struct Disks {
    main: CrashDisk,
    records: CrashDisk,
}

impl Disks {
    fn new() -> Self {
        Self { main: CrashDisk::default(), records: CrashDisk::default() }
    }

    fn open(&self) -> Database {
        let mut builder = Database::builder();
        builder.set_check_integrity_on_open(true);
        let ahead = Ahead::open(self.main.clone(), self.records.clone(), SMALL_ROUND).unwrap();
        builder.create_with_backend(ahead).unwrap()
    }

    fn crash(&self, random: &mut Xoshiro256PlusPlus) -> Self {
        Self { main: self.main.crash(random), records: self.records.crash(random) }
    }
}

/// Puts `number` under its own key and under the key 0, beside something of random size.
fn put(database: &Database, number: u64, size: usize) {
    let txn = database.begin_write().unwrap();
    {
        let mut table = txn.open_table(TABLE).unwrap();
        table.insert(0, &*number.to_le_bytes().to_vec()).unwrap();
        table.insert(1 + number % 50, &*vec![number.to_le_bytes()[0]; size]).unwrap();
    }
    txn.commit().unwrap();
}

fn last(database: &Database) -> u64 {
    let txn = database.begin_read().unwrap();
    let Ok(table) = txn.open_table(TABLE) else { return 0 };
    let last = table.get(0).unwrap().map(|bytes| u64::from_le_bytes(bytes.value().try_into().unwrap()));
    // Every page is read and checked.
    assert!(table.iter().unwrap().all(|row| row.is_ok()));
    last.unwrap_or(0)
}

#[test]
fn what_was_committed_is_there_after_any_crash() {
    let (mut rounds, mut commits) = (0, 0);
    for seed in 0..40 {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut disks = Disks::new();
        let mut committed = 0;
        for _ in 0..5 {
            let database = disks.open();
            assert_eq!(last(&database), committed, "seed {seed}");
            let (synced, flushed) = (disks.main.syncs(), disks.records.syncs());
            for _ in 0..random.next_u32() % 40 {
                committed += 1;
                put(&database, committed, (random.next_u32() % 20_000) as usize);
            }
            rounds += disks.main.syncs() - synced;
            commits += disks.records.syncs() - flushed;
            disks = disks.crash(&mut random);
            // The process that lost its disk says so nowhere.
            std::mem::forget(database);
        }
        assert_eq!(last(&disks.open()), committed, "seed {seed}");
    }
    assert!(rounds > 50, "rounds come to their end: {rounds}");
    assert!(commits > 5 * rounds, "and most flushes are those of a record: {commits} in {rounds} rounds");
}

#[test]
fn a_file_that_was_never_flushed_comes_back_from_its_records() {
    const ROUND: u64 = 4 * 1024 * 1024;
    let (main, records) = (CrashDisk::default(), CrashDisk::default());
    let open = |main: &CrashDisk, records: &CrashDisk| {
        let ahead = Ahead::open(main.clone(), records.clone(), ROUND).unwrap();
        Database::builder().create_with_backend(ahead).unwrap()
    };
    let database = open(&main, &records);
    let synced = main.syncs();
    for number in 1..=20 {
        put(&database, number, 500);
    }
    assert_eq!(main.syncs(), synced, "the first round goes on");
    std::mem::forget(database);
    assert_eq!(last(&open(&CrashDisk::default(), &CrashDisk::holding(records.bytes()))), 20);
}

#[test]
fn a_database_whose_making_was_cut_short_is_made_anew() {
    const NAME: &str = "some.redb";
    let path = std::env::temp_dir().join(format!("highwater-ahead-{}", std::process::id()));
    // Left over by a test process of that number that was killed.
    let _ = fs::remove_dir_all(&path);
    let folder = Directory::make(&path).unwrap();
    fs::write(path.join(unfinished(NAME)), [0; 10_000]).unwrap();
    fs::write(path.join(beside(NAME)), [1; 10_000]).unwrap();
    let database = create(&Database::builder(), &folder, NAME).unwrap();
    put(&database, 1, 10);
    drop(database);
    assert!(!folder.exists(&unfinished(NAME)).unwrap());
    assert_eq!(last(&create(&Database::builder(), &folder, NAME).unwrap()), 1);
    fs::remove_dir_all(&path).unwrap();
}

#[test]
fn a_power_cut_amid_writes_leaves_a_commit_whole_or_out() {
    let mut torn = 0;
    for seed in 0..200 {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let disks = Disks::new();
        let database = disks.open();
        let before = 1 + u64::from(random.next_u32() % 30);
        for number in 1..=before {
            put(&database, number, (random.next_u32() % 9_000) as usize);
        }
        // The flush fails, so nothing of the commit is promised; all its writes may be there.
        disks.records.fail_writes(Some(io::ErrorKind::StorageFull));
        let txn = database.begin_write().unwrap();
        txn.open_table(TABLE).unwrap().insert(0, &*(before + 1).to_le_bytes().to_vec()).unwrap();
        assert!(txn.commit().is_err());
        let crashed = disks.crash(&mut random);
        std::mem::forget(database);
        let found = last(&crashed.open());
        assert!(found == before || found == before + 1, "seed {seed}: {found} after {before}");
        torn += u32::from(crashed.main.bytes() != disks.main.bytes());
        // The next life goes on, and a second crash finds what it did.
        let database = crashed.open();
        put(&database, found + 1, 100);
        let again = crashed.crash(&mut random);
        std::mem::forget(database);
        assert_eq!(last(&again.open()), found + 1, "seed {seed}");
    }
    assert!(torn > 100, "writes are lost by most of the crashes: {torn}");
}

#[test]
fn records_of_another_round_are_not_written_again() {
    let mut bytes = Vec::new();
    let mut state = State { record: vec![0; HEAD], round: 7, number: 0, at: 0, failed: false };
    for (round, offset) in [(7, 0), (7, 8), (6, 16), (7, 24)] {
        state.clear();
        state.round = round;
        state.put(offset, 8, &[1; 8]);
        state.seal();
        bytes.extend_from_slice(&state.record);
    }
    let main = CrashDisk::default();
    replay(&bytes, &main).unwrap();
    assert_eq!(main.bytes(), [1; 16]);
    // A bit that fell over ends the round.
    bytes[HEAD + 20] ^= 1;
    let main = CrashDisk::default();
    replay(&bytes, &main).unwrap();
    assert_eq!(main.bytes(), [0; 0]);
}
