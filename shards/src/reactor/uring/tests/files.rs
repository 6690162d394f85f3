//! Files.

use std::path::Path;
use std::process::Command;

use bytes::Bytes;

use super::echo::{Options, Running, TempDir, run};
use crate::ids::ConnId;
use crate::log::disk::{DiskError, DiskEvent, DiskOp, FileName, FileNo, OpNo, SECTOR};
use crate::mail::{FromControl, Token};
use crate::reactor::boot::ShardExit;
use crate::reactor::uring::buffers::AlignedBuf;

const MIB: u64 = 1024 * 1024;

pub(super) fn journal_at(dir: &Path) -> Running {
    run(&Options { journal: Some(dir.to_owned()), ..Options::default() })
}

/// Asks for operations and waits for as many events.
pub(super) fn disk(running: &mut Running, ops: Vec<DiskOp>) -> Vec<DiskEvent> {
    let count = ops.len();
    for op in ops {
        running.link(0).send(FromControl::Reply { conn: ConnId(0), token: Token(0), reply: op }).unwrap();
    }
    running.until("disk events", |seen| seen.disk.len() == count);
    std::mem::take(&mut running.seen[0].lock().unwrap().disk)
}

/// Sectors of this byte, in parts that lie one after the other.
pub(super) fn sectors(n: usize, byte: u8) -> Vec<Bytes> {
    let whole = Bytes::from_owner(Filled::new(n * SECTOR, byte));
    let cut = whole.len() / 3;
    vec![whole.slice(..cut), whole.slice(cut..cut), whole.slice(cut..)]
}

struct Filled(AlignedBuf, Vec<u8>);

impl Filled {
    /// A copy at an aligned address inside a larger vector, so that the test needs no unsafe code.
    fn new(len: usize, byte: u8) -> Self {
        Self(AlignedBuf::zeroed(SECTOR), vec![byte; len + SECTOR])
    }
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        let skip = self.1.as_ptr().align_offset(self.0.len());
        &self.1[skip..skip + self.1.len() - SECTOR]
    }
}

pub(super) fn prepare(op: u64, file: u64, size: u64) -> DiskOp {
    DiskOp::Prepare { op: OpNo(op), file: FileNo(file), size }
}

pub(super) fn read(running: &mut Running, file: u64, position: u64, len: u32) -> Bytes {
    let ops = vec![DiskOp::Read { op: OpNo(9), file: FileName::Journal(FileNo(file)), position, len }];
    match disk(running, ops).remove(0) {
        DiskEvent::Read { op: OpNo(9), result } => result.unwrap(),
        other => panic!("{other:?}"),
    }
}

pub(super) fn list(running: &mut Running) -> Vec<(FileNo, u64)> {
    match disk(running, vec![DiskOp::List { op: OpNo(8) }]).remove(0) {
        DiskEvent::Listed { op: OpNo(8), result } => result.unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_prepared_and_written_is_there_after_a_restart() {
    let dir = TempDir::new();
    let mut running = journal_at(&dir.0);
    assert_eq!(list(&mut running), []);
    let events = disk(&mut running, vec![prepare(1, 3, 5 * MIB + 4096), prepare(2, 1, MIB)]);
    assert!(events.iter().all(|e| matches!(e, DiskEvent::Prepared { result: Ok(()), .. })), "{events:?}");
    let write =
        |op, position, parts, sync| DiskOp::Write { op: OpNo(op), file: FileNo(3), position, parts, sync };
    let mut ops: Vec<DiskOp> = (0..64_u64)
        .map(|i| write(10 + i, i * 8192, sectors(2, u8::try_from(i).unwrap() + 1), i % 2 == 0))
        .collect();
    ops.push(write(100, 4 * MIB, sectors(256, 200), true));
    ops.push(write(101, 0, Vec::new(), true));
    let events = disk(&mut running, ops);
    assert!(events.iter().all(|e| matches!(e, DiskEvent::Written { result: Ok(()), .. })), "{events:?}");
    let events = disk(&mut running, vec![DiskOp::Sync { op: OpNo(5), file: FileName::Journal(FileNo(3)) }]);
    assert!(matches!(events[..], [DiskEvent::Synced { op: OpNo(5), result: Ok(()) }]), "{events:?}");
    assert_eq!(running.stop(), [ShardExit::Stopped]);

    std::fs::write(dir.0.join("0/0000000000000007.journal.preparing"), b"half").unwrap();
    std::fs::write(dir.0.join("0/unrelated"), b"kept").unwrap();
    let mut running = journal_at(&dir.0);
    assert_eq!(list(&mut running), [(FileNo(1), MIB), (FileNo(3), 5 * MIB + 4096)]);
    assert!(!dir.0.join("0/0000000000000007.journal.preparing").exists(), "half-made files are removed");
    assert!(dir.0.join("0/unrelated").exists());
    let bytes = read(&mut running, 3, 8192 * 7 + 8000, 400);
    assert_eq!(bytes.len(), 400);
    assert!(bytes[..192].iter().all(|b| *b == 8) && bytes[192..].iter().all(|b| *b == 9), "{bytes:?}");
    assert!(read(&mut running, 3, 4 * MIB + 1, MIB as u32 - 1).iter().all(|b| *b == 200));
    assert!(read(&mut running, 1, 0, MIB as u32).iter().all(|b| *b == 0), "prepared files are zeros");
    // The end of the file cuts, and behind it there is nothing.
    assert_eq!(read(&mut running, 1, MIB - 10, 100).len(), 10);
    assert_eq!(read(&mut running, 1, MIB + 5000, 100).len(), 0);
    assert_eq!(read(&mut running, 1, 5, 0).len(), 0);
}

#[test]
fn a_missing_file_is_an_error_of_the_operation() {
    let dir = TempDir::new();
    let mut running = journal_at(&dir.0);
    let file = FileNo(77);
    let events = disk(
        &mut running,
        vec![
            DiskOp::Read { op: OpNo(1), file: FileName::Journal(file), position: 0, len: 10 },
            DiskOp::Write { op: OpNo(2), file, position: 0, parts: sectors(1, 1), sync: true },
            DiskOp::Sync { op: OpNo(3), file: FileName::Journal(file) },
        ],
    );
    let missing = DiskError::Missing;
    assert!(
        matches!(&events[0], DiskEvent::Read { op: OpNo(1), result: Err(e) } if *e == missing),
        "{events:?}"
    );
    assert!(matches!(&events[1], DiskEvent::Written { op: OpNo(2), result: Err(e) } if *e == missing));
    assert!(matches!(&events[2], DiskEvent::Synced { op: OpNo(3), result: Err(e) } if *e == missing));
}

/// A small file system of its own, if this user may mount one.
struct Small(TempDir);

impl Small {
    fn mount(megabytes: u32) -> Option<Self> {
        let dir = TempDir::new();
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&dir.0).output();
        match mounted {
            Ok(out) if out.status.success() => Some(Self(dir)),
            other => {
                eprintln!("skipped: no file system could be mounted ({other:?})");
                None
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0.0).output();
    }
}

#[test]
fn a_file_that_does_not_fit_leaves_nothing_behind_and_the_others_work() {
    let Some(small) = Small::mount(4) else { return };
    let dir = small.0.0.clone();
    let mut running = journal_at(&dir);
    let events = disk(&mut running, vec![prepare(1, 1, MIB)]);
    assert!(matches!(events[..], [DiskEvent::Prepared { op: OpNo(1), result: Ok(()) }]), "{events:?}");
    let events = disk(&mut running, vec![prepare(2, 2, 16 * MIB)]);
    let no_space = DiskError::NoSpace;
    assert!(
        matches!(&events[..], [DiskEvent::Prepared { op: OpNo(2), result: Err(e) }] if *e == no_space),
        "{events:?}"
    );
    let left: Vec<_> = std::fs::read_dir(dir.join("0")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["0000000000000001.journal"]);
    // The space came back: a file that fits can be made.
    let events = disk(&mut running, vec![prepare(3, 2, 2 * MIB)]);
    assert!(matches!(events[..], [DiskEvent::Prepared { op: OpNo(3), result: Ok(()) }]), "{events:?}");
    assert_eq!(list(&mut running), [(FileNo(1), MIB), (FileNo(2), 2 * MIB)]);
    assert_eq!(running.stop(), [ShardExit::Stopped]);
}

#[test]
fn stopping_while_a_file_is_prepared_waits_for_the_step_and_leaves_no_named_file() {
    let dir = TempDir::new();
    let mut running = journal_at(&dir.0);
    let op = prepare(1, 1, 256 * MIB);
    running.link(0).send(FromControl::Reply { conn: ConnId(0), token: Token(0), reply: op }).unwrap();
    assert_eq!(running.stop(), [ShardExit::Stopped]);
    let mut running = journal_at(&dir.0);
    let files = list(&mut running);
    assert!(files.is_empty() || files == [(FileNo(1), 256 * MIB)], "{files:?}");
}
