//! Each promise of the disk in both directions: what may happen does for some seed, what may not never does.

use highwater_shards::ids::{Offset, PartitionIndex, TopicId};
use highwater_shards::log::disk::SegmentName;

use super::*;

const FILE: FileNo = FileNo(3);

fn disk(seed: u64) -> SimDisk {
    let range = Duration::from_micros(1)..Duration::from_micros(9);
    let config =
        DiskConfig { write: range.clone(), sync: range.clone(), read: range.clone(), prepare: range };
    let mut disk = SimDisk::new(config, Rng::new(seed, "disk", 0));
    finish(&mut disk, DiskOp::Prepare { op: OpNo(0), file: FILE, size: 4 * SECTOR as u64 });
    disk
}

/// One sector of `byte`, at an address that direct I/O takes.
fn sector_of(byte: u8) -> Bytes {
    let buffer = Bytes::from(vec![byte; 2 * SECTOR]);
    let start = buffer.as_ptr().align_offset(SECTOR);
    buffer.slice(start..start + SECTOR)
}

fn write(op: u64, at: u64, byte: u8, sync: bool) -> DiskOp {
    let position = at * SECTOR as u64;
    DiskOp::Write { op: OpNo(op), file: FILE, position, parts: vec![sector_of(byte)], sync }
}

fn finish(disk: &mut SimDisk, op: DiskOp) -> DiskEvent {
    let (no, _) = disk.submit(op).unwrap();
    disk.complete(no)
}

fn first_byte(disk: &mut SimDisk, at: u64) -> u8 {
    let read =
        DiskOp::Read { op: OpNo(99), file: FileName::Journal(FILE), position: at * SECTOR as u64, len: 1 };
    match finish(disk, read) {
        DiskEvent::Read { result, .. } => result.unwrap()[0],
        other => panic!("{other:?}"),
    }
}

/// What a sector may be after a power loss, over many disks.
fn outcomes(at: u64, crash: Crash, act: impl Fn(&mut SimDisk)) -> Vec<u8> {
    let mut seen: Vec<u8> = (0..200)
        .map(|seed| {
            let mut d = disk(seed);
            act(&mut d);
            d.crash(crash);
            first_byte(&mut d, at)
        })
        .collect();
    seen.sort_unstable();
    seen.dedup();
    seen
}

#[test]
fn a_synced_write_survives_and_an_unsynced_one_may_not() {
    let seen = outcomes(0, Crash::Power, |d| drop(finish(d, write(1, 0, 7, true))));
    assert_eq!(seen, [7]);
    let seen = outcomes(0, Crash::Power, |d| drop(finish(d, write(1, 0, 7, false))));
    assert_eq!(seen, [0, 7]);
    let seen = outcomes(0, Crash::Kill, |d| drop(finish(d, write(1, 0, 7, false))));
    assert_eq!(seen, [7], "what the kernel took outlives the process");
}

#[test]
fn a_synced_write_says_nothing_of_earlier_ones() {
    let seen = outcomes(0, Crash::Power, |d| {
        finish(d, write(1, 0, 7, false));
        finish(d, write(2, 1, 8, true));
    });
    assert_eq!(seen, [0, 7]);
}

#[test]
fn a_sync_covers_what_was_done_when_it_was_asked_for_and_nothing_later() {
    let sync = |d: &mut SimDisk| {
        finish(d, write(1, 0, 7, false));
        let (flying, _) = d.submit(write(2, 1, 8, false)).unwrap();
        let (sync, _) = d.submit(DiskOp::Sync { op: OpNo(3), file: FileName::Journal(FILE) }).unwrap();
        d.complete(flying);
        d.complete(sync);
    };
    assert_eq!(outcomes(0, Crash::Power, sync), [7]);
    assert_eq!(outcomes(1, Crash::Power, sync), [0, 8]);
}

#[test]
fn a_write_in_flight_is_kept_lost_or_torn_but_never_spreads() {
    let fly = |d: &mut SimDisk| {
        d.submit(write(1, 1, 7, true)).unwrap();
    };
    assert_eq!(outcomes(1, Crash::Power, fly), [0, 7]);
    assert_eq!(outcomes(0, Crash::Power, fly), [0]);
    assert_eq!(outcomes(2, Crash::Power, fly), [0]);
}

#[test]
fn breaches_of_the_contract_are_refused() {
    let mut d = disk(1);
    let parts = vec![sector_of(1)];
    let unaligned = DiskOp::Write { op: OpNo(1), file: FILE, position: 1, parts: parts.clone(), sync: true };
    d.submit(unaligned).unwrap_err();
    d.submit(write(1, 4, 1, true)).unwrap_err();
    let apart = vec![sector_of(1), sector_of(2)];
    d.submit(DiskOp::Write { op: OpNo(1), file: FILE, position: 0, parts: apart, sync: true }).unwrap_err();
    let unknown = FileNo(9);
    d.submit(DiskOp::Write { op: OpNo(1), file: unknown, position: 0, parts, sync: true }).unwrap_err();
    d.submit(write(1, 0, 1, true)).unwrap();
    d.submit(write(1, 1, 1, true)).unwrap_err();
}

const PAGE: usize = pages::PAGE;

fn partition(n: u128) -> PartitionId {
    PartitionId { topic: TopicId(n), index: PartitionIndex(0) }
}

fn name(base: u64) -> SegmentName {
    SegmentName { partition: partition(1), base: Offset(base), generation: 0 }
}

const OP: OpNo = OpNo(50);

fn seg(base: u64) -> FileName {
    FileName::Segment(name(base))
}

fn put(op: u64, base: u64, position: usize, len: usize, byte: u8) -> DiskOp {
    let parts = vec![Bytes::from(vec![byte; len / 3]), Bytes::from(vec![byte; len - len / 3])];
    DiskOp::Put { op: OpNo(op), file: seg(base), position: position as u64, parts }
}

fn sync_file(d: &mut SimDisk, base: u64) {
    let event = finish(d, DiskOp::Sync { op: OP, file: seg(base) });
    assert!(matches!(event, DiskEvent::Synced { result: Ok(()), .. }), "{event:?}");
}

fn sync_folder(d: &mut SimDisk) {
    let event = finish(d, DiskOp::SyncFolder { op: OP, partition: partition(1) });
    assert!(matches!(event, DiskEvent::Synced { result: Ok(()), .. }), "{event:?}");
}

fn durable(d: &mut SimDisk, base: u64, len: usize, byte: u8) {
    finish(d, put(1, base, 0, len, byte));
    sync_file(d, base);
    sync_folder(d);
}

fn cut(base: u64, len: usize) -> DiskOp {
    DiskOp::Cut { op: OP, file: seg(base), len: len as u64 }
}

fn remove(base: u64) -> DiskOp {
    DiskOp::Remove { op: OP, file: seg(base) }
}

/// The whole of a file, if it is there.
fn content(d: &mut SimDisk, base: u64) -> Option<Bytes> {
    match finish(d, DiskOp::Read { op: OP, file: seg(base), position: 0, len: u32::MAX }) {
        DiskEvent::Read { result: Ok(bytes), .. } => Some(bytes),
        DiskEvent::Read { result: Err(DiskError::Missing), .. } => None,
        other => panic!("{other:?}"),
    }
}

fn folders(d: &mut SimDisk) -> Vec<PartitionId> {
    match finish(d, DiskOp::ListFolders { op: OP }) {
        DiskEvent::FoldersListed { result, .. } => result.unwrap(),
        other => panic!("{other:?}"),
    }
}

fn files(d: &mut SimDisk) -> Vec<(FileName, u64)> {
    match finish(d, DiskOp::ListFolder { op: OP, partition: partition(1) }) {
        DiskEvent::FolderListed { result, .. } => result.unwrap(),
        other => panic!("{other:?}"),
    }
}

fn load(d: &mut SimDisk) -> Option<Bytes> {
    match finish(d, DiskOp::Load { op: OP, file: FileName::Checkpoint }) {
        DiskEvent::Loaded { result, .. } => result.unwrap(),
        other => panic!("{other:?}"),
    }
}

fn replace(op: u64, with: &'static [u8]) -> DiskOp {
    let (head, tail) = with.split_at(1);
    DiskOp::Replace { op: OpNo(op), file: FileName::Checkpoint, parts: vec![head.into(), tail.into()] }
}

fn journals(d: &mut SimDisk) -> Vec<u64> {
    match finish(d, DiskOp::List { op: OP }) {
        DiskEvent::Listed { result, .. } => result.unwrap().into_iter().map(|(no, _)| no.0).collect(),
        other => panic!("{other:?}"),
    }
}

/// What `look` sees after a crash, over many disks.
fn seen<T: Ord>(crash: Crash, act: impl Fn(&mut SimDisk), look: impl Fn(&mut SimDisk) -> T) -> Vec<T> {
    let mut all: Vec<T> = (0..400)
        .map(|seed| {
            let mut d = disk(seed);
            act(&mut d);
            d.crash(crash);
            look(&mut d)
        })
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The distinct bytes in a range of the file 0, behind its end as none.
fn bytes_at(range: Range<usize>) -> impl Fn(&mut SimDisk) -> Vec<u8> {
    move |d| {
        let all = content(d, 0).expect("its name is durable");
        let mut bytes = all[range.start.min(all.len())..range.end.min(all.len())].to_vec();
        bytes.sort_unstable();
        bytes.dedup();
        bytes
    }
}

fn len_of(d: &mut SimDisk) -> usize {
    content(d, 0).expect("its name is durable").len()
}

#[test]
fn a_put_is_read_back_with_zeros_in_the_gap_before_it() {
    let mut d = disk(1);
    assert_eq!(content(&mut d, 0), None);
    finish(&mut d, put(1, 0, 10, 100, 7));
    finish(&mut d, put(1, 0, 5000, 3, 9));
    let all = content(&mut d, 0).unwrap();
    assert_eq!(all.len(), 5003);
    assert!(all[..10].iter().chain(&all[110..5000]).all(|b| *b == 0));
    assert!(all[10..110].iter().all(|b| *b == 7) && all[5000..].iter().all(|b| *b == 9));
    let read = DiskOp::Read { op: OP, file: seg(0), position: 4999, len: 2 };
    assert!(
        matches!(finish(&mut d, read), DiskEvent::Read { result: Ok(b), .. } if b[..] == [0, 9]),
        "a part of it"
    );
    assert_eq!(files(&mut d), [(seg(0), 5003)]);
    let index = FileName::Index(name(0));
    finish(&mut d, DiskOp::Put { op: OP, file: index, position: 0, parts: vec![] });
    assert_eq!(files(&mut d), [(seg(0), 5003), (index, 0)]);
    assert_eq!(d.usage(), (4 * SECTOR as u64, 5003));
    assert_eq!(folders(&mut d), [partition(1)]);
}

#[test]
fn a_synced_put_survives_and_an_unsynced_one_is_kept_lost_or_torn_by_the_page() {
    let synced = |d: &mut SimDisk| durable(d, 0, 3 * PAGE, 1);
    assert_eq!(seen(Crash::Power, synced, bytes_at(0..4 * PAGE)), [[1]]);
    let over = |d: &mut SimDisk| {
        durable(d, 0, 3 * PAGE, 1);
        drop(finish(d, put(1, 0, PAGE, 2 * PAGE, 2)));
    };
    let look = |d: &mut SimDisk| (bytes_at(PAGE..2 * PAGE)(d), bytes_at(2 * PAGE..3 * PAGE)(d));
    let both = seen(Crash::Power, over, look);
    for one in [vec![1], vec![2], vec![1, 2]] {
        for other in [vec![1], vec![2], vec![1, 2]] {
            assert!(both.contains(&(one.clone(), other.clone())), "{one:?} {other:?} in {both:?}");
        }
    }
    assert_eq!(both.len(), 9, "{both:?}");
    assert_eq!(seen(Crash::Power, over, bytes_at(0..PAGE)), [[1]], "no other page is touched");
    assert_eq!(seen(Crash::Power, over, len_of), [3 * PAGE]);
    assert_eq!(
        seen(Crash::Kill, over, look),
        [(vec![2], vec![2])],
        "what the kernel took outlives the process"
    );
}

#[test]
fn an_append_never_harms_what_was_durable_in_its_page() {
    let act = |d: &mut SimDisk| {
        durable(d, 0, 1000, 1);
        drop(finish(d, put(1, 0, 1000, 9000, 2)));
        drop(finish(d, put(1, 0, 10_000, 100, 3)));
    };
    assert_eq!(seen(Crash::Power, act, bytes_at(0..1000)), [[1]]);
    let lens = seen(Crash::Power, act, len_of);
    assert_eq!((lens[0], *lens.last().unwrap()), (1000, 10_100));
    assert!(lens.len() > 10, "any length between the durable and the newest: {lens:?}");
    let kept = seen(Crash::Power, act, bytes_at(4096..8192));
    for bytes in [vec![], vec![0], vec![2], vec![0, 2]] {
        assert!(kept.contains(&bytes), "{bytes:?} in {kept:?}");
    }
    assert_eq!(kept.len(), 4, "nothing that was never written: {kept:?}");
}

#[test]
fn a_sync_covers_the_puts_done_when_it_was_asked_for_and_their_length() {
    let act = |d: &mut SimDisk| {
        finish(d, put(1, 0, 0, 100, 1));
        sync_folder(d);
        d.submit(put(1, 0, 100, 100, 2)).unwrap();
        d.submit(DiskOp::Sync { op: OpNo(2), file: seg(0) }).unwrap();
        d.complete(OpNo(1));
        d.complete(OpNo(2));
    };
    assert_eq!(seen(Crash::Power, act, bytes_at(0..100)), [[1]]);
    let tail = seen(Crash::Power, act, bytes_at(100..200));
    assert!(tail.contains(&vec![]) && tail.contains(&vec![2]), "{tail:?}");
    // A second sync covers the rest, whichever of two ends first.
    let two = |d: &mut SimDisk| {
        finish(d, put(1, 0, 0, 100, 1));
        sync_folder(d);
        d.submit(DiskOp::Sync { op: OpNo(2), file: seg(0) }).unwrap();
        finish(d, put(1, 0, 50, 100, 2));
        d.submit(DiskOp::Sync { op: OpNo(3), file: seg(0) }).unwrap();
        finish(d, put(1, 0, 100, 100, 3));
        d.complete(OpNo(3));
        d.complete(OpNo(2));
    };
    assert_eq!(seen(Crash::Power, two, bytes_at(0..100)), [[1, 2]]);
    let middle = seen(Crash::Power, two, bytes_at(100..150));
    assert!(middle.contains(&vec![2]) && middle.contains(&vec![3]), "{middle:?}");
    assert!(middle.iter().all(|b| *b != [0] && !b.is_empty()), "{middle:?}");
}

#[test]
fn a_failed_sync_is_not_made_good_by_the_next_one_unless_the_page_is_written_again() {
    let failed = |d: &mut SimDisk| {
        finish(d, put(1, 0, 0, 100, 1));
        sync_folder(d);
        d.faults.fail_next_sync = true;
        let event = finish(d, DiskOp::Sync { op: OP, file: seg(0) });
        assert!(matches!(event, DiskEvent::Synced { result: Err(DiskError::Io(_)), .. }));
        sync_file(d, 0);
    };
    let seen_bytes = seen(Crash::Power, failed, bytes_at(0..100));
    assert!(seen_bytes.contains(&vec![0]) && seen_bytes.contains(&vec![1]), "{seen_bytes:?}");
    let again = |d: &mut SimDisk| {
        failed(d);
        finish(d, put(1, 0, 50, 1, 1));
        sync_file(d, 0);
    };
    assert_eq!(seen(Crash::Power, again, bytes_at(0..100)), [[1]]);
}

#[test]
fn a_put_in_flight_comes_to_any_part_of_it() {
    let act = |d: &mut SimDisk| {
        durable(d, 0, 10, 1);
        d.submit(put(1, 0, 10, 10, 2)).unwrap();
    };
    let lens = seen(Crash::Kill, act, len_of);
    assert_eq!((lens[0], *lens.last().unwrap()), (10, 20));
    assert!(lens.len() > 5, "{lens:?}");
    assert_eq!(seen(Crash::Kill, act, bytes_at(0..10)), [[1]]);
}

#[test]
fn names_are_kept_or_lost_one_by_one_until_the_folder_is_synced() {
    let three = |d: &mut SimDisk| {
        durable(d, 0, 10, 1);
        finish(d, put(1, 1, 0, 10, 1));
        finish(d, put(1, 2, 0, 10, 2));
        sync_file(d, 1);
        sync_file(d, 2);
    };
    let look = |d: &mut SimDisk| (content(d, 0).is_some(), content(d, 1).is_some(), content(d, 2).is_some());
    let all = [(true, false, false), (true, false, true), (true, true, false), (true, true, true)];
    assert_eq!(seen(Crash::Power, three, look), all, "a synced file with a lost name is gone");
    assert_eq!(seen(Crash::Kill, three, look), [(true, true, true)]);
    let synced = |d: &mut SimDisk| {
        three(d);
        sync_folder(d);
    };
    assert_eq!(seen(Crash::Power, synced, look), [(true, true, true)]);
    let removed = |d: &mut SimDisk| {
        synced(d);
        finish(d, remove(0));
        finish(d, remove(1));
        assert_eq!(content(d, 0), None);
    };
    assert_eq!(
        seen(Crash::Power, removed, look),
        [(false, false, true), (false, true, true), (true, false, true), (true, true, true)]
    );
    assert_eq!(seen(Crash::Kill, removed, look), [(false, false, true)]);
    let back = |d: &mut SimDisk| content(d, 0).unwrap_or_default();
    assert_eq!(
        seen(Crash::Power, removed, back),
        [Bytes::new(), Bytes::from(vec![1; 10])],
        "a file that comes back has its bytes"
    );
    let gone = |d: &mut SimDisk| {
        removed(d);
        sync_folder(d);
    };
    assert_eq!(seen(Crash::Power, gone, look), [(false, false, true)]);
}

#[test]
fn a_folder_sync_covers_the_names_there_when_it_was_asked_for() {
    let act = |d: &mut SimDisk| {
        finish(d, put(1, 0, 0, 10, 1));
        d.submit(DiskOp::SyncFolder { op: OpNo(2), partition: partition(1) }).unwrap();
        finish(d, put(1, 1, 0, 10, 1));
        d.complete(OpNo(2));
    };
    let look = |d: &mut SimDisk| (content(d, 0).is_some(), content(d, 1).is_some());
    assert_eq!(seen(Crash::Power, act, look), [(true, false), (true, true)]);
}

#[test]
fn an_unsynced_folder_may_vanish_with_all_in_it() {
    let act = |d: &mut SimDisk| {
        finish(d, put(1, 0, 0, 10, 1));
        sync_file(d, 0);
    };
    let look = |d: &mut SimDisk| (folders(d).len(), content(d, 0).is_some());
    assert_eq!(seen(Crash::Power, act, look), [(0, false), (1, false), (1, true)]);
    assert_eq!(seen(Crash::Kill, act, look), [(1, true)]);
    let removed = |d: &mut SimDisk| {
        durable(d, 0, 10, 1);
        durable(d, 1, 10, 1);
        finish(d, DiskOp::RemoveFolder { op: OP, partition: partition(1) });
        assert_eq!(look(d), (0, false));
    };
    let after = seen(Crash::Power, removed, |d| (folders(d).len(), files(d).len()));
    assert_eq!(after, [(0, 0), (1, 0), (1, 1), (1, 2)]);
    let gone = |d: &mut SimDisk| {
        removed(d);
        sync_folder(d);
    };
    assert_eq!(seen(Crash::Power, gone, look), [(0, false)]);
    let flying = |d: &mut SimDisk| {
        durable(d, 0, 10, 1);
        d.submit(DiskOp::RemoveFolder { op: OP, partition: partition(1) }).unwrap();
    };
    assert_eq!(seen(Crash::Kill, flying, look), [(0, false), (1, false), (1, true)]);
}

#[test]
fn a_cut_is_as_open_as_a_write_until_it_is_synced() {
    let act = |d: &mut SimDisk| {
        durable(d, 0, 3 * PAGE, 1);
        finish(d, cut(0, PAGE + 10));
        assert_eq!(len_of(d), PAGE + 10);
        finish(d, cut(0, 2 * PAGE));
        assert_eq!(len_of(d), PAGE + 10, "a shorter file stays as it is");
    };
    let lens = seen(Crash::Power, act, len_of);
    assert_eq!((lens[0], *lens.last().unwrap()), (PAGE + 10, 3 * PAGE));
    assert_eq!(seen(Crash::Power, act, bytes_at(0..PAGE + 10)), [[1]]);
    let behind = seen(Crash::Power, act, bytes_at(2 * PAGE..3 * PAGE));
    assert!(behind.contains(&vec![]) && behind.contains(&vec![1]), "{behind:?}");
    let synced = |d: &mut SimDisk| {
        act(d);
        sync_file(d, 0);
    };
    assert_eq!(seen(Crash::Power, synced, len_of), [PAGE + 10]);
    let then_put = |d: &mut SimDisk| {
        synced(d);
        finish(d, put(1, 0, PAGE + 10, 10, 2));
        sync_file(d, 0);
    };
    assert_eq!(seen(Crash::Power, then_put, len_of), [PAGE + 20]);
    assert_eq!(seen(Crash::Power, then_put, bytes_at(PAGE + 10..3 * PAGE)), [[2]]);
    let mut d = disk(1);
    assert!(matches!(finish(&mut d, cut(9, 0)), DiskEvent::Done { result: Ok(()), .. }), "none is there");
}

#[test]
fn a_replaced_checkpoint_is_the_old_or_the_new_one_and_durable_when_it_is_done() {
    assert_eq!(load(&mut disk(1)), None);
    let done = |d: &mut SimDisk| {
        finish(d, replace(1, b"one"));
        finish(d, replace(1, b"two"));
    };
    assert_eq!(seen(Crash::Power, done, load), [Some(Bytes::from_static(b"two"))]);
    let flying = |d: &mut SimDisk| {
        finish(d, replace(1, b"one"));
        d.submit(replace(1, b"two")).unwrap();
    };
    let either = [Some(Bytes::from_static(b"one")), Some(Bytes::from_static(b"two"))];
    assert_eq!(seen(Crash::Power, flying, load), either);
    assert_eq!(seen(Crash::Kill, flying, load), either);
    let mut d = disk(1);
    d.faults.full = true;
    let event = finish(&mut d, replace(1, b"one"));
    assert!(matches!(event, DiskEvent::Done { result: Err(DiskError::NoSpace), .. }));
    assert_eq!(load(&mut d), None);
}

#[test]
fn a_recycled_journal_file_has_its_new_number_for_good() {
    let recycle = || DiskOp::Recycle { op: OpNo(7), from: FILE, to: FileNo(5) };
    let done = |d: &mut SimDisk| {
        finish(d, write(1, 0, 7, true));
        let event = finish(d, recycle());
        assert!(matches!(event, DiskEvent::Prepared { result: Ok(()), .. }));
    };
    assert_eq!(seen(Crash::Power, done, journals), [[5]]);
    let flying = |d: &mut SimDisk| assert_eq!(d.submit(recycle()).unwrap().0, OpNo(7));
    assert_eq!(seen(Crash::Power, flying, journals), [[3], [5]]);
    let mut d = disk(1);
    done(&mut d);
    let read = DiskOp::Read { op: OP, file: FileName::Journal(FileNo(5)), position: 0, len: 1 };
    assert!(
        matches!(finish(&mut d, read), DiskEvent::Read { result: Ok(b), .. } if b[..] == [7]),
        "its bytes come along"
    );
    finish(&mut d, DiskOp::Prepare { op: OP, file: FILE, size: SECTOR as u64 });
    d.submit(recycle()).unwrap_err();
    d.submit(DiskOp::Recycle { op: OP, from: FileNo(8), to: FileNo(9) }).unwrap_err();
    d.submit(write(1, 0, 7, true)).unwrap();
    d.submit(DiskOp::Recycle { op: OP, from: FILE, to: FileNo(9) }).unwrap_err();
}

#[test]
fn a_removed_journal_file_may_come_back_until_its_folder_is_synced() {
    let removed = |d: &mut SimDisk| {
        finish(d, DiskOp::Remove { op: OP, file: FileName::Journal(FILE) });
        assert_eq!(journals(d), [0; 0]);
    };
    assert_eq!(seen(Crash::Power, removed, journals), [vec![], vec![3]]);
    assert_eq!(seen(Crash::Kill, removed, journals), [[0; 0]]);
    let then_replaced = |d: &mut SimDisk| {
        removed(d);
        finish(d, replace(1, b"one"));
    };
    assert_eq!(seen(Crash::Power, then_replaced, journals), [[0; 0]]);
}

#[test]
fn what_fails_says_so_and_leaves_any_part_of_it() {
    let mut lens: Vec<usize> = (0..200)
        .map(|seed| {
            let mut d = disk(seed);
            durable(&mut d, 0, 10, 1);
            d.faults.full = true;
            let event = finish(&mut d, put(1, 0, 10, 10, 2));
            assert!(matches!(event, DiskEvent::Written { result: Err(DiskError::NoSpace), .. }));
            d.faults.full = false;
            d.faults.fail_next_write = true;
            let event = finish(&mut d, put(1, 0, 10, 10, 2));
            assert!(matches!(event, DiskEvent::Written { result: Err(DiskError::Io(_)), .. }));
            len_of(&mut d)
        })
        .collect();
    lens.sort_unstable();
    assert_eq!((lens[0], lens[199]), (10, 20));
    let mut d = disk(1);
    for op in [
        DiskOp::Sync { op: OP, file: seg(0) },
        DiskOp::SyncFolder { op: OP, partition: partition(1) },
        write(50, 0, 1, true),
    ] {
        durable(&mut d, 0, 10, 1);
        d.faults.fail_next_sync = true;
        let event = finish(&mut d, op);
        let (DiskEvent::Synced { result, .. } | DiskEvent::Written { result, .. }) = event else {
            panic!("{event:?}")
        };
        assert_eq!(result, Err(DiskError::Io(5)));
    }
    d.faults.fail_next_read = true;
    let read = DiskOp::Read { op: OP, file: seg(0), position: 0, len: 1 };
    assert!(matches!(finish(&mut d, read), DiskEvent::Read { result: Err(DiskError::Io(5)), .. }));
    d.faults.fail_next_read = true;
    let event = finish(&mut d, DiskOp::Load { op: OP, file: FileName::Checkpoint });
    assert!(matches!(event, DiskEvent::Loaded { result: Err(DiskError::Io(5)), .. }));
    let event = finish(&mut d, DiskOp::Sync { op: OP, file: seg(9) });
    assert!(matches!(event, DiskEvent::Synced { result: Err(DiskError::Missing), .. }));
}

#[test]
fn a_file_that_was_removed_serves_what_was_asked_of_it_before() {
    let mut d = disk(1);
    finish(&mut d, put(1, 0, 0, 10, 4));
    d.submit(DiskOp::Read { op: OpNo(2), file: seg(0), position: 0, len: 10 }).unwrap();
    finish(&mut d, remove(0));
    assert!(matches!(d.complete(OpNo(2)), DiskEvent::Read { result: Ok(b), .. } if b[..] == [4; 10]));
    assert_eq!(content(&mut d, 0), None);
    finish(&mut d, put(1, 0, 0, 5, 6));
    assert_eq!(content(&mut d, 0).unwrap(), [6; 5][..], "a new file of the name begins empty");
}

#[test]
fn breaches_of_the_contract_of_segments_are_refused() {
    let mut d = disk(1);
    let parts = vec![Bytes::from_static(b"x"); PUT_PARTS_MAX + 1];
    d.submit(DiskOp::Put { op: OP, file: seg(0), position: 0, parts }).unwrap_err();
    d.submit(DiskOp::Put { op: OP, file: FileName::Checkpoint, position: 0, parts: vec![] }).unwrap_err();
    d.submit(DiskOp::Replace { op: OP, file: seg(0), parts: vec![] }).unwrap_err();
    d.submit(DiskOp::Remove { op: OP, file: FileName::Checkpoint }).unwrap_err();
    d.submit(put(1, 0, 0, 10, 1)).unwrap();
    d.submit(put(2, 0, 9, 10, 1)).unwrap_err();
    d.submit(put(2, 1, 9, 10, 1)).unwrap();
    d.submit(put(3, 0, 10, 10, 1)).unwrap();
    d.submit(cut(0, 15)).unwrap_err();
    d.submit(cut(0, 20)).unwrap();
    d.submit(put(4, 0, 30, 10, 1)).unwrap_err();
    d.submit(DiskOp::Remove { op: OpNo(5), file: seg(2) }).unwrap();
    d.submit(put(6, 2, 0, 10, 1)).unwrap_err();
    d.submit(DiskOp::RemoveFolder { op: OpNo(7), partition: partition(1) }).unwrap();
    d.submit(put(8, 3, 0, 10, 1)).unwrap_err();
    d.submit(replace(9, b"one")).unwrap();
    d.submit(replace(10, b"two")).unwrap_err();
}

#[test]
fn rot_flips_one_bit_of_a_file_that_is_asked_for() {
    let mut d = disk(1);
    assert_eq!(d.rot_file(|_| true), None);
    assert!(!d.rot_checkpoint());
    finish(&mut d, put(1, 0, 0, 100, 0));
    finish(&mut d, put(1, 1, 0, 100, 0));
    let (file, at) = d.rot_file(|f| f == seg(1)).unwrap();
    assert_eq!(file, seg(1));
    let bytes = content(&mut d, 1).unwrap();
    assert_eq!(bytes.iter().map(|b| b.count_ones()).sum::<u32>(), 1);
    assert_ne!(bytes[usize::try_from(at).unwrap()], 0);
    assert!(content(&mut d, 0).unwrap().iter().all(|b| *b == 0));
    finish(&mut d, replace(1, b"one"));
    assert!(d.rot_checkpoint());
    assert_ne!(load(&mut d).unwrap(), b"one"[..]);
}
