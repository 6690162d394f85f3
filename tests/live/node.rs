//! A node of the real binary: started on free loopback ports, killed, stopped, restarted, and always cleaned up.
//!
//! A [`Home`] is what outlives the process (data directory, ports, flags, log); a [`Node`] is one life of it.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take before it counts as hanging. Far beyond what a slow machine needs.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Calls `look` until it gives something; panics with `what` when [`PATIENCE`] is over.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A port that nobody listens on, below the range from which the kernel takes ports of outgoing connections, so that
/// none of those can take it before the node binds it. Tests that run side by side never get the same one.
pub fn free_port() -> u16 {
    free_ports(1)
}

/// What the developer has set in the shell must not reach the node under test.
pub fn without_own_settings(command: &mut Command) {
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("HIGHWATER_") {
            command.env_remove(key);
        }
    }
}

/// The first of so many such ports in a row.
pub fn free_ports(count: u16) -> u16 {
    const FIRST: u32 = 15_000;
    const ALL: u32 = 16_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Nodes take the UDP port of the same number too.
    let is_free = |port| {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
            && UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
    };
    for _ in 0..ALL {
        let step = NEXT.fetch_add(u32::from(count), Ordering::Relaxed);
        let first = FIRST + (std::process::id().wrapping_mul(97).wrapping_add(step)) % ALL;
        let first = u16::try_from(first).expect("below 31,000");
        if (first..first + count).all(is_free) {
            return first;
        }
    }
    panic!("no {count} free ports in a row from {FIRST} on");
}

/// The data directory, ports, flags and log of a node; removed at the end unless the test fails.
pub struct Home {
    pub root: PathBuf,
    pub data: PathBuf,
    pub log: PathBuf,
    pub client: SocketAddr,
    pub admin: SocketAddr,
    flags: Vec<String>,
}

impl Home {
    /// A home on the disk that the build uses, which takes direct I/O where a temporary folder in memory may not.
    pub fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("live-{name}-{}-{number}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self {
            data: root.join("data"),
            log: root.join("node.log"),
            client: local(free_port()),
            admin: local(free_port()),
            flags: Vec::new(),
            root,
        }
    }

    /// Adds `--set key=value` to every later start.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.flags.extend(["--set".into(), format!("{key}={value}")]);
        self
    }

    /// Journal files so small that a test crosses from one to the next.
    pub fn small_journal(self) -> Self {
        self.set("storage.journal_file_bytes", "8MiB")
    }

    /// Two shards also where `auto` gives one, so that requests cross from core to core.
    pub fn two_shards(self) -> Self {
        self.set("cores.shard_count", "2")
    }

    /// Puts the data directory somewhere else, such as on a small file system.
    pub fn data_in(mut self, folder: &Path) -> Self {
        self.data = folder.join("data");
        self
    }

    /// The command that starts this node, without its output redirected. Records are kept for ever unless a test says
    /// otherwise: their timestamps are years old.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_highwater"));
        command.arg("serve").arg("--data-dir").arg(&self.data);
        command.args(["--listen", &self.client.to_string(), "--admin", &self.admin.to_string()]);
        command.args(["--set", "cluster.topic_defaults.retention_ms=none"]);
        command.args(&self.flags).current_dir(&self.root).stdin(Stdio::null());
        without_own_settings(&mut command);
        command
    }

    /// Starts the process and does not wait for anything.
    pub fn spawn(&self) -> Node {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = self.command();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap();
        Node { child, client: self.client, admin: self.admin, log: self.log.clone() }
    }

    /// Starts the process and waits until it is ready to serve.
    pub fn start(&self) -> Node {
        let mut node = self.spawn();
        node.wait_ready();
        node
    }

    /// Starts a node that must refuse to run; its exit status and everything it said.
    pub fn start_refused(&self) -> (ExitStatus, String) {
        let mut node = self.spawn();
        let status = node.wait_exit();
        (status, node.log_text())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("left for you to look at: {}", self.root.display());
        } else {
            // What cannot be removed is under the target folder and harms nobody.
            let _ = fs::remove_dir_all(&self.root);
        }
    }
}

/// One life of a node. Dropping it kills the process.
pub struct Node {
    child: Child,
    pub client: SocketAddr,
    pub admin: SocketAddr,
    log: PathBuf,
}

impl Node {
    pub fn wait_ready(&mut self) {
        let (admin, client) = (self.admin, self.client);
        wait_for("the node to be ready", || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the node ended with {status} instead of getting ready:\n{}", self.log_text());
            }
            matches!(http_get(admin, "/readyz"), Ok((200, _))).then_some(())
        });
        TcpStream::connect(client).unwrap_or_else(|e| panic!("ready, but {client} refuses: {e}"));
    }

    /// kill -9, and waits until the process is gone.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks the process to end and waits for it.
    pub fn stop(mut self) -> ExitStatus {
        self.terminate();
        self.wait_exit()
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub fn wait_exit(&mut self) -> ExitStatus {
        wait_for("the node to end", || self.child.try_wait().unwrap())
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn log_text(&self) -> String {
        fs::read(&self.log).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// Resident memory, in bytes.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a live process has VmRSS");
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().unwrap();
        kib * 1024
    }

    /// Processor time used so far, in clock ticks (100 a second on Linux).
    pub fn cpu_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let after_name = stat.rsplit_once(')').expect("stat names the process in brackets").1;
        let field = |n: usize| after_name.split_whitespace().nth(n).unwrap().parse::<u64>().unwrap();
        field(11) + field(12)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log_text();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- the node's last lines");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
            eprintln!("---");
        }
    }
}

/// The status and body that `path` answers.
pub fn http_get(addr: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other(format!("not an HTTP answer: {answer:?}")))?;
    Ok((status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
}

/// Raises this process's bound on open files to what the system allows; nodes started later inherit it.
pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
}
