//! Segments, indexes, the checkpoint, and journal files that are used again.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::echo::{Options, Running, TempDir, run};
use super::files::{disk, journal_at, list, prepare, read, sectors};
use crate::ids::{Offset, PartitionId, PartitionIndex, TopicId};
use crate::log::disk::{
    DiskError, DiskEvent, DiskOp, FileName, FileNo, FolderName, OpNo, PUT_PARTS_MAX, SegmentName,
};
use crate::reactor::boot::ShardExit;
use crate::reactor::uring::KernelUse;

const OP: OpNo = OpNo(1);
const MIB: u64 = 1024 * 1024;

fn partition(n: u32) -> PartitionId {
    PartitionId { topic: TopicId(7), index: PartitionIndex(n) }
}

fn name(n: u32, base: u64) -> SegmentName {
    SegmentName { partition: partition(n), base: Offset(base), generation: 0 }
}

fn seg(n: u32, base: u64) -> FileName {
    FileName::Segment(name(n, base))
}

fn put(file: FileName, position: u64, parts: Vec<Bytes>) -> DiskOp {
    DiskOp::Put { op: OP, file, position, parts }
}

fn of(text: &'static str) -> Vec<Bytes> {
    vec![Bytes::from_static(text.as_bytes())]
}

fn get(running: &mut Running, file: FileName, position: u64, len: u32) -> Result<Bytes, DiskError> {
    match disk(running, vec![DiskOp::Read { op: OP, file, position, len }]).remove(0) {
        DiskEvent::Read { op: OP, result } => result,
        other => panic!("{other:?}"),
    }
}

/// Does them all at once, and each has to work.
fn all_work(running: &mut Running, ops: Vec<DiskOp>) {
    for event in disk(running, ops) {
        let (DiskEvent::Written { result, .. }
        | DiskEvent::Synced { result, .. }
        | DiskEvent::Prepared { result, .. }
        | DiskEvent::Done { result, .. }) = event
        else {
            panic!("{event:?}")
        };
        assert_eq!(result, Ok(()));
    }
}

fn files(running: &mut Running, n: u32) -> Vec<(FileName, u64)> {
    match disk(running, vec![DiskOp::ListFolder { op: OP, partition: partition(n) }]).remove(0) {
        DiskEvent::FolderListed { op: OP, result } => result.unwrap(),
        other => panic!("{other:?}"),
    }
}

fn folders(running: &mut Running) -> Vec<PartitionId> {
    match disk(running, vec![DiskOp::ListFolders { op: OP }]).remove(0) {
        DiskEvent::FoldersListed { op: OP, result } => result.unwrap(),
        other => panic!("{other:?}"),
    }
}

fn load(running: &mut Running) -> Option<Bytes> {
    match disk(running, vec![DiskOp::Load { op: OP, file: FileName::Checkpoint }]).remove(0) {
        DiskEvent::Loaded { op: OP, result } => result.unwrap(),
        other => panic!("{other:?}"),
    }
}

fn path(dir: &Path, file: FileName) -> PathBuf {
    dir.join("partitions").join(file.to_string())
}

/// How many descriptors of this process lie under a folder.
fn open_under(dir: &Path) -> usize {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    fds.filter(|fd| std::fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|to| to.starts_with(dir)))
        .count()
}

#[test]
fn what_was_put_is_read_back_and_there_after_a_restart() {
    for kernel_use in [KernelUse::Newest, KernelUse::Oldest] {
        let dir = TempDir::new();
        let options = Options { journal: Some(dir.0.clone()), kernel_use, ..Options::default() };
        let mut running = run(&options);
        let (file, index) = (seg(1, 0), FileName::Index(name(1, 0)));
        let ops = vec![
            put(file, 0, of("hello, ")),
            put(file, 7, of("world")),
            put(index, 3, of("x")),
            put(seg(2, 5), 0, Vec::new()),
        ];
        all_work(&mut running, ops);
        assert_eq!(get(&mut running, file, 0, 100).unwrap(), "hello, world");
        assert_eq!(get(&mut running, file, 7, 3).unwrap(), "wor");
        assert_eq!(get(&mut running, file, 12, 3).unwrap(), "");
        assert_eq!(get(&mut running, index, 0, 100).unwrap(), "\0\0\0x");
        let many: Vec<Bytes> = (0..PUT_PARTS_MAX).map(|i| Bytes::from(vec![i as u8; i % 9 * 1000])).collect();
        let whole = many.concat();
        all_work(&mut running, vec![put(file, 12, many)]);
        assert_eq!(get(&mut running, file, 12, u32::try_from(whole.len()).unwrap()).unwrap(), whole);
        all_work(
            &mut running,
            vec![
                DiskOp::Sync { op: OP, file },
                DiskOp::Sync { op: OP, file: index },
                DiskOp::SyncFolder { op: OP, partition: partition(1) },
                DiskOp::SyncFolder { op: OP, partition: partition(2) },
                DiskOp::SyncFolder { op: OP, partition: partition(3) },
            ],
        );
        assert!(
            running.counter("disk_write_backs") > 0,
            "so much was written that it begins to be written out"
        );
        assert_eq!(running.counter("disk_file_syncs"), 2);
        assert_eq!(running.stop(), [ShardExit::Stopped]);
        let mut running = run(&options);
        assert_eq!(folders(&mut running), [partition(1), partition(2)]);
        assert_eq!(files(&mut running, 1), [(file, 12 + whole.len() as u64), (index, 4)]);
        assert_eq!(files(&mut running, 2), [(seg(2, 5), 0)]);
        assert_eq!(files(&mut running, 3), []);
        assert_eq!(get(&mut running, file, 0, 5).unwrap(), "hello");
    }
}

#[test]
fn what_is_missing_is_said_to_be_missing() {
    let dir = TempDir::new();
    let mut running = journal_at(&dir.0);
    assert_eq!(get(&mut running, seg(1, 0), 0, 10), Err(DiskError::Missing));
    let events = disk(&mut running, vec![DiskOp::Sync { op: OP, file: seg(1, 0) }]);
    assert!(matches!(events[..], [DiskEvent::Synced { result: Err(DiskError::Missing), .. }]), "{events:?}");
    all_work(
        &mut running,
        vec![
            DiskOp::Cut { op: OP, file: seg(1, 0), len: 5 },
            DiskOp::Remove { op: OP, file: seg(1, 0) },
            DiskOp::RemoveFolder { op: OP, partition: partition(1) },
            DiskOp::SyncFolder { op: OP, partition: partition(1) },
        ],
    );
    assert_eq!(folders(&mut running), []);
}

#[test]
fn files_of_other_names_in_a_folder_are_deleted_and_other_folders_left_alone() {
    let dir = TempDir::new();
    let mut running = journal_at(&dir.0);
    all_work(&mut running, vec![put(seg(1, 0), 0, of("x"))]);
    let folder = dir.0.join("partitions").join(FolderName(partition(1)).to_string());
    std::fs::write(folder.join("half.made"), b"x").unwrap();
    std::fs::write(folder.join("00000000000000000001-000000.tmp"), b"x").unwrap();
    std::fs::create_dir(dir.0.join("partitions/unrelated")).unwrap();
    assert_eq!(files(&mut running, 1), [(seg(1, 0), 1)]);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    assert_eq!(folders(&mut running), [partition(1)]);
    assert!(dir.0.join("partitions/unrelated").exists());
}

#[test]
fn a_bounded_number_of_hundreds_of_files_is_open() {
    let dir = TempDir::new();
    let options = Options { journal: Some(dir.0.clone()), open_files_max: 20, ..Options::default() };
    let mut running = run(&options);
    let file = |i: u32| seg(i % 30, u64::from(i));
    let bytes = |i: u32| Bytes::from(i.to_le_bytes().to_vec());
    // All at once: what is in flight is never closed, so more than the bound are open for a moment.
    all_work(&mut running, (0..300).map(|i| put(file(i), 0, vec![bytes(i)])).collect());
    all_work(&mut running, (0..300).map(|i| put(file(i), 4, vec![bytes(i)])).collect());
    // One by one: the bound holds.
    for i in 0..60 {
        assert_eq!(get(&mut running, file(i), 0, 10).unwrap(), [bytes(i), bytes(i)].concat());
    }
    assert!(open_under(&dir.0.join("partitions")) <= 21, "{}", open_under(&dir.0.join("partitions")));
    let evicted = running.counter("disk_files_evicted");
    assert!(evicted >= 300, "{evicted}");
    // What was used last is still open.
    assert_eq!(get(&mut running, file(59), 0, 4).unwrap(), bytes(59));
    assert_eq!(running.counter("disk_files_evicted"), evicted);
}

#[test]
fn a_cut_file_goes_on_where_it_was_cut() {
    let dir = TempDir::new();
    let mut running = journal_at(&dir.0);
    let file = seg(1, 0);
    all_work(&mut running, vec![put(file, 0, of("0123456789"))]);
    all_work(&mut running, vec![DiskOp::Cut { op: OP, file, len: 4 }]);
    assert_eq!(get(&mut running, file, 0, 100).unwrap(), "0123");
    all_work(&mut running, vec![DiskOp::Cut { op: OP, file, len: 9 }]);
    assert_eq!(files(&mut running, 1), [(file, 4)], "a shorter file stays as it is");
    all_work(&mut running, vec![put(file, 6, of("x"))]);
    assert_eq!(get(&mut running, file, 0, 100).unwrap(), "0123\0\0x");
    assert_eq!(running.stop(), [ShardExit::Stopped]);
    let mut running = journal_at(&dir.0);
    all_work(&mut running, vec![DiskOp::Cut { op: OP, file, len: 1 }]);
    assert_eq!(get(&mut running, file, 0, 100).unwrap(), "0", "a file that was not open");
}

#[test]
fn a_file_removed_while_it_is_read_serves_the_reads_and_its_name_begins_anew() {
    let dir = TempDir::new();
    let mut running = journal_at(&dir.0);
    let file = seg(1, 0);
    for round in 0..20_u8 {
        let content = vec![Bytes::from(vec![round + 1; 4 * MIB as usize])];
        all_work(&mut running, vec![put(file, 0, content)]);
        let reading = (0..8).map(|i| DiskOp::Read { op: OpNo(i), file, position: i * 4096, len: MIB as u32 });
        let mut ops: Vec<DiskOp> = reading.collect();
        ops.push(DiskOp::Remove { op: OpNo(100), file });
        for event in disk(&mut running, ops) {
            match event {
                DiskEvent::Read { result, .. } => {
                    let bytes = result.unwrap();
                    assert_eq!(bytes.len() as u64, MIB);
                    assert!(bytes.iter().all(|b| *b == round + 1));
                }
                DiskEvent::Done { op: OpNo(100), result } => result.unwrap(),
                other => panic!("{other:?}"),
            }
        }
        assert!(!path(&dir.0, file).exists());
        assert_eq!(get(&mut running, file, 0, 1), Err(DiskError::Missing));
        all_work(&mut running, vec![put(file, 0, of("new"))]);
        assert_eq!(std::fs::read(path(&dir.0, file)).unwrap(), b"new", "it is under its name");
        all_work(&mut running, vec![DiskOp::RemoveFolder { op: OP, partition: partition(1) }]);
        assert_eq!(folders(&mut running), []);
    }
    // What the last users of removed files closed has come to its end.
    assert_eq!(open_under(&dir.0.join("partitions")), 1, "the directory itself");
}

#[test]
fn a_folder_is_removed_with_all_in_it_and_made_again() {
    let dir = TempDir::new();
    let mut running = journal_at(&dir.0);
    let ops = (0..50).map(|i| put(seg(1, i), 0, of("old"))).chain([put(seg(2, 0), 0, of("other"))]);
    all_work(&mut running, ops.collect());
    all_work(&mut running, vec![DiskOp::RemoveFolder { op: OP, partition: partition(1) }]);
    assert_eq!(folders(&mut running), [partition(2)]);
    all_work(&mut running, vec![DiskOp::SyncFolder { op: OP, partition: partition(1) }]);
    all_work(&mut running, vec![put(seg(1, 0), 1, of("new"))]);
    assert_eq!(get(&mut running, seg(1, 0), 0, 10).unwrap(), "\0new");
    assert_eq!(files(&mut running, 1), [(seg(1, 0), 4)]);
    assert_eq!(get(&mut running, seg(2, 0), 0, 10).unwrap(), "other");
    all_work(&mut running, vec![DiskOp::SyncFolder { op: OP, partition: partition(1) }]);
    let syncs = running.counter("disk_folder_syncs");
    all_work(&mut running, vec![DiskOp::SyncFolder { op: OP, partition: partition(1) }]);
    assert_eq!(
        running.counter("disk_folder_syncs"),
        syncs + 1,
        "the one above is synced once for a new folder"
    );
}

#[test]
fn many_new_folders_share_the_syncs_of_the_one_above() {
    let dir = TempDir::new();
    let mut running = journal_at(&dir.0);
    all_work(&mut running, (0..200).map(|n| put(seg(n, 0), 0, of("x"))).collect());
    let syncs = |n| DiskOp::SyncFolder { op: OpNo(u64::from(n)), partition: partition(n) };
    all_work(&mut running, (0..200).map(syncs).collect());
    let syncs = running.counter("disk_folder_syncs");
    assert!((201..400).contains(&syncs), "{syncs}");
}

#[test]
fn a_checkpoint_is_replaced_as_a_whole_and_loaded() {
    let dir = TempDir::new();
    let mut running = journal_at(&dir.0);
    assert_eq!(load(&mut running), None);
    let replace = |parts| DiskOp::Replace { op: OP, file: FileName::Checkpoint, parts };
    all_work(&mut running, vec![replace(vec![Bytes::from_static(b"on"), Bytes::from_static(b"e")])]);
    assert_eq!(load(&mut running).unwrap(), "one");
    let many: Vec<Bytes> = (0..5000).map(|i| Bytes::from(vec![i as u8; 700])).collect();
    all_work(&mut running, vec![replace(many.clone())]);
    assert_eq!(load(&mut running).unwrap(), many.concat());
    assert_eq!(running.stop(), [ShardExit::Stopped]);
    std::fs::write(dir.0.join("0/checkpoint.preparing"), b"half").unwrap();
    let mut running = journal_at(&dir.0);
    assert_eq!(list(&mut running), []);
    assert!(!dir.0.join("0/checkpoint.preparing").exists());
    assert_eq!(load(&mut running).unwrap().len(), 700 * 5000);
    all_work(&mut running, vec![replace(Vec::new())]);
    assert_eq!(load(&mut running).unwrap(), "");
}

#[test]
fn a_recycled_journal_file_is_written_and_read_under_its_new_number() {
    let dir = TempDir::new();
    let mut running = journal_at(&dir.0);
    let write = |file, position, byte| DiskOp::Write {
        op: OP,
        file: FileNo(file),
        position,
        parts: sectors(1, byte),
        sync: true,
    };
    all_work(&mut running, vec![prepare(1, 1, MIB), prepare(2, 2, MIB)]);
    all_work(&mut running, vec![write(1, 0, 1), write(1, 4096, 1), write(2, 0, 2)]);
    let recycle = |from, to| DiskOp::Recycle { op: OP, from: FileNo(from), to: FileNo(to) };
    all_work(&mut running, vec![recycle(1, 3)]);
    assert_eq!(list(&mut running), [(FileNo(2), MIB), (FileNo(3), MIB)]);
    all_work(&mut running, vec![write(3, 0, 3)]);
    assert_eq!(read(&mut running, 3, 0, 1)[..], [3]);
    assert_eq!(read(&mut running, 3, 4096, 1)[..], [1], "what it holds comes along");
    let events = disk(&mut running, vec![write(1, 0, 9)]);
    assert!(matches!(events[..], [DiskEvent::Written { result: Err(DiskError::Missing), .. }]), "{events:?}");
    let events = disk(&mut running, vec![recycle(7, 8)]);
    assert!(
        matches!(events[..], [DiskEvent::Prepared { result: Err(DiskError::Missing), .. }]),
        "{events:?}"
    );
    assert_eq!(running.stop(), [ShardExit::Stopped]);
    let mut running = journal_at(&dir.0);
    // A file that was not open yet, over a number that was used before; then both go.
    all_work(&mut running, vec![recycle(3, 1)]);
    assert_eq!(read(&mut running, 1, 0, 1)[..], [3]);
    let remove = |file| DiskOp::Remove { op: OP, file: FileName::Journal(FileNo(file)) };
    let mut ops: Vec<DiskOp> = (0..8).map(|i| write(1, i * 4096, 5)).collect();
    ops.extend([remove(1), remove(2)]);
    all_work(&mut running, ops);
    assert_eq!(list(&mut running), []);
    all_work(&mut running, vec![prepare(1, 1, MIB)]);
    assert_eq!(read(&mut running, 1, 0, 1)[..], [0]);
}

#[test]
fn stopping_with_much_under_way_ends_soon() {
    let dir = TempDir::new();
    let mut running = journal_at(&dir.0);
    let chunk = Bytes::from(vec![1; 64 * 1024]);
    for n in 0..500 {
        for op in
            [put(seg(n, 0), 0, vec![chunk.clone()]), DiskOp::SyncFolder { op: OP, partition: partition(n) }]
        {
            let reply = crate::mail::FromControl::Reply {
                conn: crate::ids::ConnId(0),
                token: crate::mail::Token(0),
                reply: op,
            };
            while running.link(0).send(reply.clone()).is_err() {}
        }
    }
    assert_eq!(running.stop(), [ShardExit::Stopped]);
    let left = open_under(&dir.0);
    assert_eq!(left, 0, "nothing stays open");
}
