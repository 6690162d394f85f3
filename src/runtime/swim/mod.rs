//! A member of a cluster over UDP: the state machine of [`crate::control::swim`] with a socket, a clock and names.
//!
//! Driver; control core, on a tokio `current_thread` runtime. It needs nothing of the rest of the engine, so a program
//! can use it on its own:
//!
//! ```
//! use highwater::config::HostPort;
//! use highwater::control::swim::{Event, Keyring, SwimConfig};
//! use highwater::runtime::swim::{Swim, bind};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let start = |name: &str, seeds: Vec<HostPort>| {
//!     let socket = bind("127.0.0.1:0".parse()?)?;
//!     // Where the others reach this member; on a host with one address, that address.
//!     let config = SwimConfig::new(name, socket.local_addr()?);
//!     let keys = Keyring::new("my-cluster", 1, b"a secret of 16 bytes or more")?;
//!     Ok::<_, Box<dyn std::error::Error>>(Swim::start(socket, config, keys, seeds)?)
//! };
//! let mut a = start("a", vec![])?;
//! let mut b = start("b", vec![HostPort { host: "localhost".into(), port: a.local_addr()?.port() }])?;
//!
//! // Nothing happens unless `next` is awaited: it receives, sends and keeps the time.
//! let (a_saw, b_saw) = tokio::join!(a.next(), b.next());
//! assert!(matches!(a_saw, Some(Event::Joined { name, .. }) if &*name == "b"));
//! assert!(matches!(b_saw, Some(Event::Joined { name, .. }) if &*name == "a"));
//!
//! b.leave();
//! while b.next().await.is_some() {}
//! assert!(matches!(a.next().await, Some(Event::Left { name, .. }) if &*name == "b"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! All input that waits goes in before any timer that is due, and whether input waits is asked of the kernel each time:
//! a process that was stopped or starved first learns what happened meanwhile, and only then judges others.

#![expect(clippy::disallowed_methods, reason = "driver: reads the clock")]

mod names;
mod socket;

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant as Clock};

use highwater_shards::time::Instant;

use self::socket::Socket;
use crate::config::HostPort;
use crate::control::swim::{
    ConfigError, DATAGRAM_BYTES_MAX, Entropy, Event, Input, Keyring, MemberView, Membership, Output,
    SwimConfig, SwimStats,
};

pub(in crate::runtime) use self::names::Names;
pub use self::socket::bind;

/// Datagrams that are taken in before timers get their turn all the same: more than a socket's buffer holds, so that
/// whatever waited when the turn began is among them.
const TURN_DATAGRAMS_MAX: usize = 8192;
/// Datagrams that are taken in before what they gave rise to is sent.
const BATCH_DATAGRAMS_MAX: usize = 64;

/// Why a member did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("the socket for gossip: {0}")]
    Socket(#[from] io::Error),
}

/// One member, alive while [`Swim::next`] is awaited.
pub struct Swim {
    membership: Membership,
    socket: Socket,
    seeds: Names,
    /// Zero of the member's clock.
    started: Clock,
    events: VecDeque<Event>,
    is_gone: bool,
    /// A turn ended at its bound: something may still wait in the socket.
    has_more: bool,
    send_failures: u64,
    /// One byte longer than any datagram, so that a longer one is seen to be longer.
    buffer: Box<[u8; DATAGRAM_BYTES_MAX + 1]>,
}

impl Swim {
    /// A member that talks through this socket and looks for others at `seeds`. To be called inside the runtime.
    ///
    /// # Errors
    /// When the configuration is refused, or the operating system gives no entropy or readiness.
    pub fn start(
        socket: UdpSocket,
        config: SwimConfig,
        keys: Keyring,
        seeds: Vec<HostPort>,
    ) -> Result<Self, StartError> {
        let mut bytes = [0; 32];
        let drawn = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
        if drawn.map_err(io::Error::from)? < bytes.len() {
            return Err(io::Error::other("too little entropy").into());
        }
        let mut seed = [0; 8];
        rustix::rand::getrandom(&mut seed[..], rustix::rand::GetRandomFlags::empty())
            .map_err(io::Error::from)?;
        let membership = Membership::new(config, keys, &Entropy(bytes), Instant::ZERO)?;
        let mut seeds = Names::new(seeds, u64::from_ne_bytes(seed));
        seeds.ask();
        Ok(Self {
            membership,
            socket: Socket::new(socket)?,
            seeds,
            started: Clock::now(),
            events: VecDeque::new(),
            is_gone: false,
            has_more: false,
            send_failures: 0,
            buffer: Box::new([0; DATAGRAM_BYTES_MAX + 1]),
        })
    }

    /// Receives, sends and keeps the time until a member's state changes; `None` once this member has left. May be
    /// dropped at any time and called again without a loss; but while nobody awaits it, this member is silent.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if self.is_gone {
                return None;
            }
            let until = self.membership.poll_timeout();
            let until = until.map(|at| self.started + Duration::from_nanos(at.as_nanos()));
            let timer = async {
                match until {
                    _ if self.has_more => tokio::task::yield_now().await,
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let found = tokio::select! {
                () = self.socket.readable() => None,
                () = timer => None,
                found = self.seeds.next() => Some(found),
            };
            self.take_turn();
            if let Some(seeds) = found {
                self.input(Input::Join { seeds });
            }
        }
    }

    /// Tells the others that this member goes. [`Self::next`] ends when they should know; the first of them were told
    /// when this returns.
    pub fn leave(&mut self) {
        self.input(Input::Leave);
    }

    /// Other seeds from now on, asked at once if there are new ones.
    pub fn set_seeds(&mut self, seeds: Vec<HostPort>) {
        if self.seeds.replace(seeds) {
            self.seeds.ask();
        }
    }

    /// New metadata of this member, at most 512 bytes; longer ones are ignored.
    pub fn set_metadata(&mut self, metadata: Vec<u8>) {
        self.input(Input::Metadata(metadata));
    }

    /// The keys, to be changed at run time.
    pub fn keyring(&mut self) -> &mut Keyring {
        self.membership.keyring()
    }

    /// The keys with the number of datagrams that arrived under each, the one in use first.
    pub fn keys(&self) -> impl Iterator<Item = (u8, u64)> + '_ {
        self.membership.keys()
    }

    /// All members that are known, this one first.
    pub fn members(&self) -> impl Iterator<Item = MemberView<'_>> {
        self.membership.members()
    }

    /// Live members, this one included.
    pub fn live_count(&self) -> usize {
        self.membership.live_count()
    }

    /// 0 is healthy, 8 is the worst.
    pub fn local_health(&self) -> u32 {
        self.membership.local_health()
    }

    pub fn stats(&self) -> &SwimStats {
        self.membership.stats()
    }

    /// Datagrams that the operating system did not take.
    pub fn send_failures(&self) -> u64 {
        self.send_failures
    }

    /// Where the socket is bound.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn input(&mut self, input: Input<'_>) {
        self.membership.handle(self.now(), input);
        self.drain();
    }

    /// First all that arrived, then what is due.
    fn take_turn(&mut self) {
        let mut taken = 0;
        self.has_more = true;
        while self.has_more && taken < TURN_DATAGRAMS_MAX {
            let now = self.now();
            for _ in 0..BATCH_DATAGRAMS_MAX {
                let Some((len, from)) = self.socket.receive(&mut self.buffer[..]) else {
                    self.has_more = false;
                    break;
                };
                taken += 1;
                self.membership.handle(now, Input::Datagram { from, bytes: &self.buffer[..len] });
            }
            self.drain();
        }
        let now = self.now();
        if self.membership.poll_timeout().is_some_and(|at| at <= now) {
            self.membership.handle(now, Input::Timeout);
            self.drain();
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.membership.poll_output() {
            match output {
                Output::Send { to, bytes } => {
                    self.send_failures += u64::from(!self.socket.send(to, bytes));
                }
                Output::Event(event) => self.events.push_back(event),
                Output::ResolveSeeds => self.seeds.ask(),
                Output::Gone => self.is_gone = true,
            }
        }
    }
}

#[cfg(test)]
mod tests;
