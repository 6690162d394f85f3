//! A machine that answers each frame with itself, and what tests need to run it.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use crate::front::{CloseReason, Cx, Front};
use crate::ids::{ConnId, NodeId, RegistrationEpoch, ShardId};
use crate::log::disk::{DiskEvent, DiskOp};
use crate::mail::{Answer, FromControl, ShardMail, ToControl, Token};
use crate::reactor::boot::{ControlLink, Listen, ShardExit, ShardSetup, Shards, start};
use crate::reactor::uring::{KernelUse, LinkConfig, Spin};
use crate::shard::{ClientInput, Input, Machine, Output, PeerInput};
use crate::stats::ShardStats;
use crate::time::Instant;

pub(super) struct NoFront;

impl Front for NoFront {
    type Session = ();
    type View = ();
    /// Something for a test's machine to say to the control core.
    type Request = String;
    /// A disk operation that the test asks for.
    type Reply = DiskOp;

    fn open(&mut self, _: &mut Cx<'_, Self>, _: SocketAddr) {}
    fn on_frame(&mut self, _: &mut Cx<'_, Self>, (): &mut (), _: Bytes) {}
    fn on_answer(&mut self, _: &mut Cx<'_, Self>, (): &mut (), _: Token, _: Answer) {}
    fn on_reply(&mut self, _: &mut Cx<'_, Self>, (): &mut (), _: Token, _: DiskOp) {}
    fn on_timeout(&mut self, _: &mut Cx<'_, Self>, (): &mut (), _: Token) {}
    fn on_closed(&mut self, _: &mut Cx<'_, Self>, (): &mut ()) {}
    fn in_flight(&self, (): &()) -> usize {
        0
    }
}

#[derive(Default)]
pub(super) struct Seen {
    pub opened: u64,
    pub closed: Vec<CloseReason>,
    /// Peers, as they were opened and closed.
    pub peers: Vec<PeerSeen>,
    pub peers_closed: Vec<CloseReason>,
    pub dials_failed: Vec<(NodeId, ShardId)>,
    pub frames: u64,
    pub disk: Vec<DiskEvent>,
    pub mail: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PeerSeen {
    pub node: NodeId,
    pub remote_shard: ShardId,
    pub epoch: RegistrationEpoch,
    pub dialed: bool,
}

struct Conn {
    is_peer: bool,
    /// Bytes handed to the driver and not reported as sent.
    unsent: usize,
    receiving: bool,
}

/// Answers each frame with itself. Stops receiving while more than `unsent_max` bytes are not out. A frame "close"
/// closes after its answer; "kill" closes at once.
pub(super) struct Echo {
    shard: ShardId,
    shards: u16,
    unsent_max: usize,
    conns: BTreeMap<ConnId, Conn>,
    outputs: VecDeque<Output<NoFront>>,
    seen: Arc<Mutex<Seen>>,
    deadline: Option<Instant>,
}

impl Echo {
    fn on_client(&mut self, input: ClientInput) {
        match input {
            ClientInput::Opened { conn, .. } => self.on_opened(conn, false),
            ClientInput::Frame { conn, frame } => self.on_frame(conn, frame, false),
            ClientInput::Sent { conn, bytes } => self.on_sent(conn, bytes, false),
            ClientInput::Closed { conn, reason } => {
                self.on_closed(conn, false);
                self.seen.lock().unwrap().closed.push(reason);
            }
        }
    }

    fn on_peer(&mut self, input: PeerInput) {
        match input {
            PeerInput::Opened { conn, node, remote_shard, epoch, dialed } => {
                self.on_opened(conn, true);
                let peer = PeerSeen { node, remote_shard, epoch, dialed };
                self.seen.lock().unwrap().peers.push(peer);
            }
            PeerInput::Frame { conn, frame } => self.on_frame(conn, frame, true),
            PeerInput::Sent { conn, bytes } => self.on_sent(conn, bytes, true),
            PeerInput::Closed { conn, reason } => {
                self.on_closed(conn, true);
                self.seen.lock().unwrap().peers_closed.push(reason);
            }
            PeerInput::DialFailed { node, shard } => {
                self.seen.lock().unwrap().dials_failed.push((node, shard));
            }
        }
    }

    fn on_opened(&mut self, conn: ConnId, is_peer: bool) {
        self.seen.lock().unwrap().opened += u64::from(!is_peer);
        let fresh = self.conns.insert(conn, Conn { is_peer, unsent: 0, receiving: true });
        assert!(fresh.is_none(), "a connection id is never used twice");
    }

    fn conn(&mut self, conn: ConnId, is_peer: bool) -> &mut Conn {
        let state = self.conns.get_mut(&conn).expect("events come between opened and closed");
        assert!(state.is_peer == is_peer, "clients stay clients");
        state
    }

    fn on_frame(&mut self, conn: ConnId, frame: Bytes, is_peer: bool) {
        self.seen.lock().unwrap().frames += 1;
        let unsent_max = self.unsent_max;
        let state = self.conn(conn, is_peer);
        let prefix = Bytes::copy_from_slice(&u32::try_from(frame.len()).unwrap().to_be_bytes());
        let close = match &frame[..] {
            b"close" => Some(true),
            b"kill" => Some(false),
            _ => None,
        };
        state.unsent += prefix.len() + frame.len();
        let pauses = state.unsent > unsent_max && std::mem::replace(&mut state.receiving, false);
        self.outputs.push_back(Output::Send { conn, parts: vec![prefix, frame] });
        if pauses {
            self.outputs.push_back(Output::Receive { conn, on: false });
        }
        if let Some(flush) = close {
            self.outputs.push_back(Output::Close { conn, flush, reason: CloseReason::Malformed });
        }
    }

    fn on_sent(&mut self, conn: ConnId, bytes: usize, is_peer: bool) {
        let unsent_max = self.unsent_max;
        let state = self.conn(conn, is_peer);
        state.unsent = state.unsent.checked_sub(bytes).expect("no more is sent than was handed over");
        if state.unsent <= unsent_max / 2 && !std::mem::replace(&mut state.receiving, true) {
            self.outputs.push_back(Output::Receive { conn, on: true });
        }
    }

    fn on_closed(&mut self, conn: ConnId, is_peer: bool) {
        let state = self.conns.remove(&conn).expect("a connection closes once");
        assert!(state.is_peer == is_peer, "clients stay clients");
    }
}

impl Machine for Echo {
    type Front = NoFront;

    fn handle(&mut self, now: Instant, input: Input<NoFront>) {
        match input {
            Input::Client(input) => self.on_client(input),
            Input::Peer(input) => self.on_peer(input),
            Input::Disk(event) => self.seen.lock().unwrap().disk.push(event),
            Input::Mail(mail) => {
                self.seen.lock().unwrap().mail += 1;
                if let ShardMail::Answer { conn: ConnId(left), token, answer } = mail
                    && left > 0
                {
                    // Goes round all shards until its number is used up.
                    let to = ShardId((self.shard.0 + 1) % self.shards);
                    let mail = ShardMail::Answer { conn: ConnId(left - 1), token, answer };
                    self.outputs.push_back(Output::Mail { to, mail });
                }
            }
            Input::Timeout => {
                assert!(self.deadline.take().is_some_and(|at| at <= now), "a timeout comes when it is due");
                self.outputs.push_back(Output::Control(ToControl::Request {
                    conn: ConnId(0),
                    token: Token(0),
                    request: "timeout".into(),
                }));
            }
            Input::Control(FromControl::Reply { reply, .. }) => self.outputs.push_back(Output::Disk(reply)),
            Input::Control(FromControl::Stats { id }) => {
                self.outputs.push_back(Output::Control(ToControl::Stats { id, stats: Box::default() }));
            }
            Input::Control(FromControl::Stop { deadline }) => {
                if deadline == Duration::from_nanos(1) {
                    let error = crate::log::disk::DiskError::Io(5);
                    self.outputs
                        .push_back(Output::Fatal(crate::shard::FatalReason::RecoveryFailed { error }));
                } else {
                    self.outputs.push_back(Output::Control(ToControl::Stopped));
                }
            }
            Input::Control(
                FromControl::Nodes(_) | FromControl::IsrRefused { .. } | FromControl::Lease { .. },
            ) => unreachable!("no test tells it so"),
            // The test's way to start a round of mail, or a timer.
            Input::Control(FromControl::Delta { revision, .. }) => {
                if revision.0 == 0 {
                    self.deadline = Some(now + Duration::from_millis(20));
                    return;
                }
                let to = ShardId((self.shard.0 + 1) % self.shards);
                for _ in 0..revision.0 >> 32 {
                    let conn = ConnId(revision.0 & 0xffff_ffff);
                    let mail = ShardMail::Answer { conn, token: Token(0), answer: Answer::Readable };
                    self.outputs.push_back(Output::Mail { to, mail });
                }
            }
        }
    }

    fn poll_output(&mut self) -> Option<Output<NoFront>> {
        self.outputs.pop_front()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }
}

/// A folder that is removed at the end.
pub(super) struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("highwater-uring-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[derive(Clone)]
pub(super) struct Options {
    pub shards: u16,
    pub link: LinkConfig,
    pub kernel_use: KernelUse,
    pub spin: Spin,
    pub unsent_max: usize,
    pub journal: Option<PathBuf>,
    pub open_files_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            shards: 1,
            link: LinkConfig::default(),
            kernel_use: KernelUse::Newest,
            spin: Spin::Auto,
            unsent_max: usize::MAX,
            journal: None,
            open_files_max: 64,
        }
    }
}

/// Running shards; stopped when dropped.
pub(super) struct Running {
    pub shards: Option<Shards<NoFront>>,
    pub seen: Vec<Arc<Mutex<Seen>>>,
    _dir: Option<TempDir>,
}

pub(super) fn run(options: &Options) -> Running {
    let dir = options.journal.is_none().then(TempDir::new);
    let root = options.journal.clone().unwrap_or_else(|| dir.as_ref().unwrap().0.clone());
    let seen: Vec<Arc<Mutex<Seen>>> = (0..options.shards).map(|_| Arc::default()).collect();
    let setups = (0..options.shards)
        .map(|k| {
            let (shards, unsent_max, seen) =
                (options.shards, options.unsent_max, Arc::clone(&seen[usize::from(k)]));
            ShardSetup {
                shard: ShardId(k),
                core: None,
                journal_dir: root.join(k.to_string()),
                partitions_dir: root.join("partitions"),
                open_files_max: options.open_files_max,
                listen: vec![
                    Listen::Shared("127.0.0.1:0".parse().unwrap()),
                    Listen::Own("127.0.0.1:0".parse().unwrap()),
                ],
                link: options.link,
                spin: options.spin,
                kernel_use: options.kernel_use,
                make: Box::new(move || Echo {
                    shard: ShardId(k),
                    shards,
                    unsent_max,
                    conns: BTreeMap::new(),
                    outputs: VecDeque::new(),
                    seen,
                    deadline: None,
                }),
            }
        })
        .collect();
    Running { shards: Some(start(setups).unwrap()), seen, _dir: dir }
}

impl Running {
    pub fn shards(&mut self) -> &mut Shards<NoFront> {
        self.shards.as_mut().unwrap()
    }

    pub fn link(&mut self, shard: usize) -> &mut ControlLink<NoFront> {
        &mut self.shards().links[shard]
    }

    /// Connects to the port of shard 0 alone.
    pub fn connect(&self) -> Client {
        Client::to(self.shards.as_ref().unwrap().addresses[0][1])
    }

    /// Waits until `done` says so; there is no other way to see another thread's progress.
    pub fn until(&self, what: &str, done: impl Fn(&Seen) -> bool) {
        for _ in 0..3000 {
            if done(&self.seen[0].lock().unwrap()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("waited in vain for: {what}");
    }

    /// The next message of a shard to the control core, which sleeps on its doorbell for it.
    pub fn recv(&mut self, shard: usize) -> ToControl<String> {
        loop {
            if let Some(message) = self.link(shard).recv() {
                return message;
            }
            if self.shards().may_sleep() {
                let doorbell = Arc::clone(&self.shards().doorbell);
                let mut polled = [rustix::event::PollFd::new(&*doorbell, rustix::event::PollFlags::IN)];
                let timeout = rustix::event::Timespec { tv_sec: 30, tv_nsec: 0 };
                let ready = rustix::event::poll(&mut polled, Some(&timeout)).unwrap();
                assert!(ready > 0, "the control core was not woken");
                doorbell.up();
                doorbell.drain();
            }
        }
    }

    pub fn stats(&mut self) -> ShardStats {
        self.link(0).send(FromControl::Stats { id: 7 }).unwrap();
        loop {
            if let ToControl::Stats { id: 7, stats } = self.recv(0) {
                return *stats;
            }
        }
    }

    pub fn counter(&mut self, name: &str) -> u64 {
        self.stats().driver.iter().find(|(n, _)| *n == name).expect("the counter exists").1
    }

    /// Stops all shards and says how they ended.
    pub fn stop(&mut self) -> Vec<ShardExit> {
        let Some(shards) = self.shards.take() else { return Vec::new() };
        for link in &shards.links {
            let _ = link.send(FromControl::Stop { deadline: Duration::ZERO });
        }
        shards.join().into_iter().map(|(_, exit)| exit).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let exits = self.stop();
        assert!(!exits.contains(&ShardExit::Panicked), "a shard panicked");
    }
}

/// A blocking client.
pub(super) struct Client(pub TcpStream);

/// Bytes of which any part tells where it belongs.
pub fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31) + i / 251 + seed) as u8).collect()
}

impl Client {
    pub fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self(stream)
    }

    pub fn send(&mut self, frame: &[u8]) {
        let mut out = u32::try_from(frame.len()).unwrap().to_be_bytes().to_vec();
        out.extend_from_slice(frame);
        self.0.write_all(&out).unwrap();
    }

    pub fn recv(&mut self) -> Vec<u8> {
        let mut prefix = [0; 4];
        self.0.read_exact(&mut prefix).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
        self.0.read_exact(&mut frame).unwrap();
        frame
    }

    pub fn echo(&mut self, frame: &[u8]) {
        self.send(frame);
        assert!(self.recv() == frame, "the answer is the frame");
    }

    /// The same for a frame that may be too long to be sent whole before any of it is read.
    pub fn echo_meanwhile(&mut self, frame: &[u8]) {
        let mut writer = Self(self.0.try_clone().unwrap());
        std::thread::scope(|s| {
            s.spawn(move || writer.send(frame));
            assert!(self.recv() == frame, "{} bytes", frame.len());
        });
    }

    /// Whether the other side has closed, waiting for it.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}
