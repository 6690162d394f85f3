//! Starting the shards of a process: sockets bound, threads pinned, mailboxes between all cores, and what the control
//! core holds of it.
//!
//! [`start`] returns when every shard is set up and serving, or says which one failed and why; then none is left
//! running. The control core may be any thread: it sleeps on [`Shards::doorbell`], an eventfd.

#![expect(clippy::disallowed_methods, reason = "driver: waits for a port that is being given back")]

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::CpuSet;

use super::handover::{ToDriver, ToShard};
use super::mailbox::{Doorbell, Full, Receiver, Sender, mailbox};
use super::uring::{self, KernelUse, LinkConfig, Mailboxes, Spin, Start};
use crate::front::Front;
use crate::ids::ShardId;
use crate::mail::{ShardMail, ToControl};
use crate::shard::{FatalReason, Machine};

/// Connections that wait to be accepted on one listener; the kernel's `somaxconn` may be less.
const BACKLOG: i32 = 4096;

/// After a process was killed, the kernel gives back its listeners only when it has ended what its rings had in flight.
const PORT_TRIES: u32 = 100;
const PORT_RETRY: Duration = Duration::from_millis(30);

/// Messages in the rings between a shard and the control core, each way.
const CONTROL_SLOTS: usize = 1024;

/// Segments and indexes that a shard keeps open, unless it is told otherwise.
pub const OPEN_FILES_MAX: usize = 512;

/// What to start one shard with.
pub struct ShardSetup<M> {
    /// Counted from 0, in the order of the setups.
    pub shard: ShardId,
    /// The core to pin the thread to.
    pub core: Option<usize>,
    /// Made if it is missing.
    pub journal_dir: PathBuf,
    /// The folders of all partitions of the node, the same for all shards. Made if it is missing.
    pub partitions_dir: PathBuf,
    /// Segments and indexes that stay open, see [`OPEN_FILES_MAX`]; fewer if the process may not open as many.
    pub open_files_max: usize,
    pub listen: Vec<Listen>,
    pub link: LinkConfig,
    pub spin: Spin,
    pub kernel_use: KernelUse,
    /// Called on the shard's thread.
    pub make: Box<dyn FnOnce() -> M + Send>,
}

/// Where a shard takes connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Listen {
    /// All shards that name this address share it, and the kernel spreads connections over them. Port 0 is the same
    /// free port for all.
    Shared(SocketAddr),
    /// The shard alone. Port 0 is a free port of its own.
    Own(SocketAddr),
}

/// Why the shards could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    #[error("kernel {release} is too old: Linux 5.15 or later is needed (6.1 or later to be fast)")]
    KernelTooOld { release: String },
    #[error(
        "io_uring is denied on this host ({error}): set the sysctl kernel.io_uring_disabled to 0, and in a \
         container allow the io_uring_setup, io_uring_enter and io_uring_register calls in its seccomp profile"
    )]
    Denied { error: io::Error },
    #[error("io_uring could not be set up: {error}; check the memory limits (ulimit -l, cgroup)")]
    Ring { error: io::Error },
    #[error("{address} is in use: another process listens there; stop it, or choose another address or port")]
    AddressInUse { address: SocketAddr },
    #[error("cannot listen on {address}: {error}; the address has to be one of this host's")]
    Listen { address: SocketAddr, error: io::Error },
    #[error(
        "shard {shard} cannot be pinned to core {core}: this process may use the cores {allowed:?}; change `cores` \
         or the CPU set it is started in"
    )]
    CoreNotAllowed { shard: ShardId, core: usize, allowed: Vec<usize> },
    #[error("the journal directory {} cannot be used: {error}; it has to be a writable directory", path.display())]
    JournalDir { path: PathBuf, error: io::Error },
    #[error("the directory of the partitions {} cannot be used: {error}; it has to be a writable directory", path.display())]
    PartitionsDir { path: PathBuf, error: io::Error },
    #[error("the process is out of threads or file descriptors: {error}; raise its limits (ulimit -n, -u)")]
    Resources { error: io::Error },
}

/// How a shard's thread ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ShardExit {
    /// As it was told to.
    Stopped,
    /// It cannot go on; the process has to end. What it has in flight is still being ended.
    Fatal(FatalReason),
    /// A bug. Release builds end the process instead.
    Panicked,
}

/// All shards of this process, as the control core holds them.
pub struct Shards<F: Front> {
    /// By shard.
    pub links: Vec<ControlLink<F>>,
    /// By shard, where it listens, in the order of its [`ShardSetup::listen`], with real ports.
    pub addresses: Vec<Vec<SocketAddr>>,
    /// What the control core sleeps on. When it becomes readable: `up` and `drain` it, then look into all links and
    /// [`Self::try_exit`]. Before sleeping again: [`Self::may_sleep`].
    pub doorbell: Arc<Doorbell>,
    exits: mpsc::Receiver<(ShardId, ShardExit)>,
    threads: Vec<JoinHandle<()>>,
}

/// The control core's two rings with one shard.
pub struct ControlLink<F: Front> {
    pub shard: ShardId,
    to: Sender<ToDriver<F>>,
    from: Receiver<ToControl<F::Request>>,
}

impl<F: Front> ControlLink<F> {
    /// Tells the shard something, and wakes it if it sleeps.
    ///
    /// # Errors
    ///
    /// When the ring is full; the message comes back.
    pub fn send(&self, message: ToShard<F>) -> Result<(), Full<ToDriver<F>>> {
        self.hand_over(ToDriver::Control(message))
    }

    /// Tells the shard, or its driver, something, and wakes it if it sleeps.
    ///
    /// # Errors
    ///
    /// When the ring is full; the message comes back.
    pub fn hand_over(&self, message: ToDriver<F>) -> Result<(), Full<ToDriver<F>>> {
        self.to.push(message)?;
        self.to.doorbell().ring();
        Ok(())
    }

    pub fn recv(&mut self) -> Option<ToControl<F::Request>> {
        self.from.pop()
    }

    pub fn is_empty(&self) -> bool {
        self.from.is_empty()
    }
}

impl<F: Front> Shards<F> {
    /// Whether the control core may sleep on the doorbell. When false, a link has something; look again.
    #[must_use = "sleeping without leave loses wake-ups"]
    pub fn may_sleep(&self) -> bool {
        self.doorbell.may_sleep(|| self.links.iter().all(ControlLink::is_empty))
    }

    /// A shard that ended, if one did. The doorbell rings for it.
    pub fn try_exit(&mut self) -> Option<(ShardId, ShardExit)> {
        self.exits.try_recv().ok()
    }

    /// Waits until all shards ended, and says how those did that [`Self::try_exit`] did not tell of.
    pub fn join(self) -> Vec<(ShardId, ShardExit)> {
        for thread in self.threads {
            // A panic was reported as the exit.
            let _ = thread.join();
        }
        self.exits.try_iter().collect()
    }
}

/// Tells the control core how a shard ended, a panic included.
pub(super) struct ExitReporter {
    shard: ShardId,
    exits: mpsc::Sender<(ShardId, ShardExit)>,
    control: Arc<Doorbell>,
}

impl ExitReporter {
    pub(super) fn report(&self, exit: ShardExit) {
        // Nobody listens any more when the control core has gone, and then there is nobody to tell.
        let _ = self.exits.send((self.shard, exit));
        self.control.wake();
    }
}

impl Drop for ExitReporter {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.report(ShardExit::Panicked);
        }
    }
}

/// Starts all shards of the process. A shard that is not pinned to a core may use those that the calling thread may,
/// so call this before pinning that one.
///
/// # Errors
///
/// The first thing that failed; no shard is left running.
pub fn start<M: Machine + 'static>(setups: Vec<ShardSetup<M>>) -> Result<Shards<M::Front>, StartError> {
    assert!(!setups.is_empty(), "a process has a shard at least");
    assert!(
        (0..).zip(&setups).all(|(k, s)| s.shard == ShardId(k)),
        "shards are numbered from 0 in their order"
    );
    let count = setups.len();
    let spare_core = std::thread::available_parallelism().is_ok_and(|cores| cores.get() > count);
    let open_files_max = open_files_max(count);
    let (sockets, addresses) = bind_all(&setups)?;
    let resources = |error| StartError::Resources { error };
    let control = Arc::new(Doorbell::new().map_err(resources)?);
    let doorbells: Vec<_> =
        (0..count).map(|_| Doorbell::new().map(Arc::new)).collect::<io::Result<_>>().map_err(resources)?;
    let (mails, links) = connect::<M::Front>(&doorbells, &control);
    let (ready, all_ready) = mpsc::channel();
    let (exits_sender, exits) = mpsc::channel();
    let mut threads = Vec::with_capacity(count);
    let mut goes = Vec::with_capacity(count);
    for ((setup, listeners), mail) in setups.into_iter().zip(sockets).zip(mails) {
        let (go_sender, go) = mpsc::channel();
        let start = Start {
            shard: setup.shard,
            core: setup.core,
            journal_dir: setup.journal_dir,
            partitions_dir: setup.partitions_dir,
            open_files_max: setup.open_files_max.min(open_files_max),
            listeners,
            link: setup.link,
            spin: setup.spin,
            spare_core,
            kernel_use: setup.kernel_use,
            mail,
            make: setup.make,
            ready: ready.clone(),
            go,
            exit: ExitReporter {
                shard: setup.shard,
                exits: exits_sender.clone(),
                control: Arc::clone(&control),
            },
        };
        let name = format!("shard-{}", start.shard);
        let thread =
            std::thread::Builder::new().name(name).spawn(move || uring::run(start)).map_err(resources)?;
        threads.push(thread);
        goes.push(go_sender);
    }
    drop((ready, exits_sender));
    let mut rings = vec![0; count];
    for _ in 0..count {
        // Every thread says so once, and a thread that died without a word is a bug of ours.
        let (shard, set_up) = all_ready.recv().expect("a shard's thread says whether it is set up");
        // Those that are set up end when their word to go does not come.
        rings[usize::from(shard.0)] = set_up?;
    }
    for go in goes {
        go.send(rings.clone()).expect("a shard that is set up waits for the word to go");
    }
    Ok(Shards { links, addresses, doorbell: control, exits, threads })
}

/// Lets the process open as many files as the host allows it at all, and says how many segments and indexes each shard
/// may keep open: half of that is for connections.
fn open_files_max(shards: usize) -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum || (limit.maximum.is_none() && limit.current.is_some()) {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            limit = raised;
        }
    }
    let files = limit.current.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    (files / 2 / shards).max(16)
}

type Ends<F> = (Vec<Mailboxes<F>>, Vec<ControlLink<F>>);

/// Makes the rings of all ordered pairs of cores.
fn connect<F: Front>(doorbells: &[Arc<Doorbell>], control: &Arc<Doorbell>) -> Ends<F> {
    let count = doorbells.len();
    let mut to: Vec<Vec<Option<Sender<ShardMail>>>> = Vec::new();
    let mut from: Vec<Vec<Receiver<ShardMail>>> = (0..count).map(|_| Vec::new()).collect();
    for sender in 0..count {
        let row = (0..count).map(|receiver| {
            (receiver != sender).then(|| {
                let (tx, rx) = mailbox(mail_slots(count), &doorbells[receiver]);
                from[receiver].push(rx);
                tx
            })
        });
        to.push(row.collect());
    }
    let mut links = Vec::new();
    let mut mails = Vec::new();
    for (((shard, doorbell), to_shards), from_shards) in (0..).zip(doorbells).zip(to).zip(from) {
        let (to_control, from_shard) = mailbox(CONTROL_SLOTS, control);
        let (to_shard, from_control) = mailbox(CONTROL_SLOTS, doorbell);
        links.push(ControlLink { shard: ShardId(shard), to: to_shard, from: from_shard });
        let doorbell = Arc::clone(doorbell);
        mails.push(Mailboxes { to_shards, from_shards, to_control, from_control, doorbell });
    }
    (mails, links)
}

/// Messages in the ring of an ordered pair of shards. There are as many rings as pairs, so with many shards each is
/// smaller; what finds it full waits with the sender.
fn mail_slots(shards: usize) -> usize {
    (4096 / shards).clamp(64, 1024)
}

type Bound = (Vec<Vec<OwnedFd>>, Vec<Vec<SocketAddr>>);

fn bind_all<M>(setups: &[ShardSetup<M>]) -> Result<Bound, StartError> {
    // What a shared address was bound to first: port 0 becomes the same port for all.
    let mut shared: Vec<(SocketAddr, SocketAddr)> = Vec::new();
    let mut sockets = Vec::new();
    let mut addresses = Vec::new();
    for setup in setups {
        let mut own_sockets = Vec::new();
        let mut own_addresses = Vec::new();
        for listen in &setup.listen {
            let (socket, bound) = match *listen {
                Listen::Own(address) => bind(address, Share::Alone)?,
                Listen::Shared(address) => match shared.iter().find(|(asked, _)| *asked == address) {
                    Some(&(_, bound)) => bind(bound, Share::Next)?,
                    None => {
                        let (socket, bound) = bind(address, Share::First)?;
                        shared.push((address, bound));
                        (socket, bound)
                    }
                },
            };
            own_sockets.push(socket);
            own_addresses.push(bound);
        }
        sockets.push(own_sockets);
        addresses.push(own_addresses);
    }
    Ok((sockets, addresses))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Share {
    Alone,
    /// The first of this process on an address that others of it will share.
    First,
    Next,
}

fn bind(address: SocketAddr, share: Share) -> Result<(OwnedFd, SocketAddr), StartError> {
    if share == Share::First && address.port() != 0 {
        // A socket that shares its port would also share it with another process that does; one that does not share
        // finds out whether somebody is there.
        let mut tries = 0;
        while let Err(error) = bind(address, Share::Alone) {
            tries += 1;
            if tries == PORT_TRIES || !matches!(error, StartError::AddressInUse { .. }) {
                return Err(error);
            }
            std::thread::sleep(PORT_RETRY);
        }
    }
    let failed = |e: rustix::io::Errno| match e {
        rustix::io::Errno::ADDRINUSE => StartError::AddressInUse { address },
        e => StartError::Listen { address, error: e.into() },
    };
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket =
        rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(failed)?;
    sockopt::set_socket_reuseaddr(&socket, true).map_err(failed)?;
    if share != Share::Alone {
        sockopt::set_socket_reuseport(&socket, true).map_err(failed)?;
    }
    // Accepted sockets inherit it.
    sockopt::set_tcp_nodelay(&socket, true).map_err(failed)?;
    rustix::net::bind(&socket, &address).map_err(failed)?;
    rustix::net::listen(&socket, BACKLOG).map_err(failed)?;
    let bound = rustix::net::getsockname(&socket).and_then(SocketAddr::try_from).map_err(failed)?;
    Ok((socket, bound))
}

/// Pins the calling thread, a shard's, to a core. What the thread that started it was pinned to does not matter: only
/// the process's CPU set does.
pub(super) fn pin(shard: ShardId, core: usize) -> Result<(), StartError> {
    let mut wanted = CpuSet::new();
    if core < CpuSet::MAX_CPU {
        wanted.set(core);
        if rustix::thread::sched_setaffinity(None, &wanted).is_ok() {
            return Ok(());
        }
    }
    let allowed = rustix::thread::sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    let allowed = (0..CpuSet::MAX_CPU).filter(|&c| allowed.is_set(c)).collect();
    Err(StartError::CoreNotAllowed { shard, core, allowed })
}
