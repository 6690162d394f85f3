//! A disk that fills up and a disk that dies, on a small file system of their own.
//!
//! A produce then fails with a Kafka error, or the node stops with a message; nothing acked is ever lost. Mounting
//! needs rights that not every machine gives; without them the test says why it did not run.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use crate::node::{Home, Node, wait_for};
use crate::records::{Producer, batch};
use crate::wire::{Conn, NONE};

/// The exit status of a node whose storage failed, as `highwater --help` lists it.
const STORAGE: i32 = 5;

/// An ext4 file system in a file, mounted; unmounted at the end.
struct SmallDisk {
    image: PathBuf,
    folder: PathBuf,
}

impl SmallDisk {
    /// `Err` says why this machine does not let us.
    fn mount(home: &Home, size: u64) -> Result<Self, String> {
        let disk = Self { image: home.root.join("disk.image"), folder: home.root.join("disk") };
        fs::create_dir_all(&disk.folder).unwrap();
        File::create(&disk.image).unwrap().set_len(size).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-b", "4096"]).arg(&disk.image))?;
        disk.mount_again()?;
        Ok(disk)
    }

    fn mount_again(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.folder))
    }

    /// The kernel may hold files of a process that has ended for a little longer than the process lives.
    fn unmount(&self) {
        wait_for("the disk to be let go", || run(Command::new("umount").arg(&self.folder)).ok());
    }

    /// From now on every write and flush fails with an I/O error, as on a disk that is gone. What was flushed before
    /// is there after the next mount.
    fn die(&self) -> Result<(), String> {
        // EXT4_IOC_SHUTDOWN without flushing the file system's log.
        let script = "import fcntl, os, struct, sys\n\
                      fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack('I', 2))";
        run(Command::new("python3").args(["-c", script]).arg(&self.folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.folder).output();
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {}", said.trim())) }
}

/// A disk, or `None` after saying why there is none. In CI (`HIGHWATER_NO_SKIP=1`) there must be one.
fn small_disk(home: &Home, size: u64) -> Option<SmallDisk> {
    match SmallDisk::mount(home, size) {
        Ok(disk) => Some(disk),
        Err(why) => {
            assert!(
                std::env::var_os("HIGHWATER_NO_SKIP").is_none(),
                "this machine must allow a mount: {why}"
            );
            // Straight to the stream: what a passing test prints is not shown.
            let line = format!("SKIPPED, no file system of our own: {why}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            None
        }
    }
}

fn value(n: i64) -> Vec<u8> {
    n.to_be_bytes().iter().copied().cycle().take(200_000).collect()
}

/// Produces record number `n`; what the node answers.
fn produce(conn: &mut Conn, n: i64) -> std::io::Result<(i16, i64)> {
    conn.produce("t", 0, &batch(1_700_000_000_000 + n, Producer::NOBODY, &[(None, Some(&value(n)))]))
}

/// Produces until something fails; the number of acked records, and the Kafka error, if the node still gave one.
fn produce_until_it_fails(node: &Node, mut acked: i64, most: i64) -> (i64, Option<i16>) {
    let Ok(mut conn) = Conn::open(node.client) else { return (acked, None) };
    while acked < most {
        match produce(&mut conn, acked) {
            Ok((NONE, offset)) => assert_eq!(offset, acked),
            Ok((error, _)) => return (acked, Some(error)),
            Err(_) => return (acked, None),
        }
        acked += 1;
    }
    panic!("{most} records fit on a disk that is smaller than them");
}

/// Everything acked is there, in order and whole; how many records are held.
fn check_held(node: &Node, acked: i64) -> i64 {
    let records = Conn::open(node.client).unwrap().read_all("t", 0, 0);
    assert!(records.len() >= usize::try_from(acked).unwrap(), "{acked} acked, {} held", records.len());
    for (n, record) in (0..).zip(&records) {
        assert!(record.offset == n && record.value.as_deref() == Some(&value(n)[..]), "record {n}");
    }
    i64::try_from(records.len()).unwrap()
}

/// The node gave a Kafka error and goes on, or ended by itself with a message that has one of `words`.
fn goes_on_or_says(node: &mut Node, error: Option<i16>, words: &[&str]) {
    match error {
        // KAFKA_STORAGE_ERROR, the one that clients retry; or the general one.
        Some(error) => assert!(error == 56 || error == -1, "produce on a full disk: error {error}"),
        None => {
            let status = node.wait_exit();
            let log = node.log_text();
            assert_eq!(status.code(), Some(STORAGE), "{status}\n{log}");
            assert!(words.iter().any(|word| log.contains(word)), "it must say why it ended:\n{log}");
        }
    }
}

#[test]
fn a_full_disk_refuses_produces_and_loses_nothing_acked() {
    let home = Home::new("full").small_journal();
    let Some(disk) = small_disk(&home, 192 << 20) else { return };
    let ballast = disk.folder.join("ballast");
    let home = home.data_in(&disk.folder);
    let mut node = home.start();
    Conn::open(node.client).unwrap().create_topic("t", 1, &[]);
    run(Command::new("fallocate").args(["-l", "100MiB"]).arg(&ballast)).unwrap();

    let (acked, error) = produce_until_it_fails(&node, 0, 1000);
    assert!(acked > 0);
    goes_on_or_says(&mut node, error, &["space"]);
    if node.is_running() {
        assert_eq!(check_held(&node, acked), acked, "what was refused is not there");
        // Others are still read, and refused again rather than left hanging.
        let (still, error) = produce_until_it_fails(&node, acked, 1000);
        goes_on_or_says(&mut node, error, &["space"]);
        assert_eq!(still, acked);
    }
    // A crash and a start while the disk is still full: it reads what it has, or says why not.
    drop(node);
    let mut full = home.spawn();
    let served = crate::node::wait_for("ready or gone", || {
        let ready = matches!(crate::node::http_get(full.admin, "/readyz"), Ok((200, _)));
        (ready || !full.is_running()).then_some(ready)
    });
    if served {
        check_held(&full, acked);
    } else {
        assert!(full.log_text().contains("space"), "{}", full.log_text());
    }
    drop(full);

    fs::remove_file(&ballast).unwrap();
    let node = home.start();
    let mut next = check_held(&node, acked);
    let mut conn = Conn::open(node.client).unwrap();
    for _ in 0..50 {
        assert_eq!(produce(&mut conn, next).unwrap(), (NONE, next), "space is back");
        next += 1;
    }
    assert!(node.stop().success());
    let node = home.start();
    assert_eq!(check_held(&node, next), next);
    assert!(node.stop().success());
    disk.unmount();
}

#[test]
fn a_running_node_takes_produces_again_when_space_returns() {
    let home = Home::new("space").small_journal();
    let Some(disk) = small_disk(&home, 192 << 20) else { return };
    let ballast = disk.folder.join("ballast");
    let home = home.data_in(&disk.folder);
    let mut node = home.start();
    Conn::open(node.client).unwrap().create_topic("t", 1, &[]);
    run(Command::new("fallocate").args(["-l", "100MiB"]).arg(&ballast)).unwrap();
    let (acked, error) = produce_until_it_fails(&node, 0, 1000);
    goes_on_or_says(&mut node, error, &["space"]);
    fs::remove_file(&ballast).unwrap();
    if !node.is_running() {
        node = home.start();
    }
    let held = check_held(&node, acked);
    let mut conn = Conn::open(node.client).unwrap();
    crate::node::wait_for("a produce that works again", || {
        (produce(&mut conn, held).unwrap() == (NONE, held)).then_some(())
    });
    check_held(&node, held + 1);
    drop(node);
    check_held(&home.start(), held + 1);
}

#[test]
fn a_dying_disk_stops_the_node_with_a_message_and_loses_nothing_acked() {
    let home = Home::new("dying").small_journal();
    let Some(disk) = small_disk(&home, 1 << 30) else { return };
    let home = home.data_in(&disk.folder);
    let mut node = home.start();
    Conn::open(node.client).unwrap().create_topic("t", 1, &[]);

    let (acked, error) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| produce_until_it_fails(&node, 0, 100_000));
        let mut conn = Conn::open(node.client).unwrap();
        crate::node::wait_for("records before the disk dies", || {
            (conn.list_offset("t", 0, crate::wire::LATEST).unwrap().1 >= 20).then_some(())
        });
        disk.die().unwrap();
        writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    assert!(acked >= 20);
    assert_ne!(error, Some(NONE));
    // Nothing can be promised on this disk any more, so the node must not go on as if nothing had happened.
    let status = node.wait_exit();
    let log = node.log_text();
    assert_eq!(status.code(), Some(STORAGE), "{status}\n{log}");
    assert!(log.contains("I/O error") || log.contains("read-only") || log.contains("Input/output"), "{log}");
    drop(node);

    disk.unmount();
    disk.mount_again().unwrap();
    let node = home.start();
    check_held(&node, acked);
    assert!(node.stop().success());
    disk.unmount();
}
