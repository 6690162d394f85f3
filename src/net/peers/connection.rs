//! One proven connection: a reader that puts frames together and a writer that sends what the outbox holds, over any byte
//! stream. Who calls and who answers are its two [`Handler`]s.
//!
//! Runs on the control core's thread; after each chunk it lets others have their turn.

use std::cell::{Cell, RefCell};
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::net::auth::session::{FrameKey, Keys};
use crate::net::frame::{self, Assembler, FRAME_MAX, FrameError, Header, Message, Opened, Type};
use crate::net::outbox::Outbox;
use crate::net::stats::{PeerCounters, add};

/// The reader's buffer before a frame needs more, in bytes.
const BUFFER_MIN: usize = 8 * 1024;
/// After so many bytes in one go others have their turn.
const TURN: usize = FRAME_MAX / 2;

/// What one end of a connection has to send, and the bell that tells its writer.
pub(super) struct Pipe {
    pub outbox: RefCell<Outbox>,
    pub bell: Notify,
    /// The other end does not take what it asked for, and there is no room for more.
    pub overrun: Cell<bool>,
}

impl Pipe {
    pub fn new(bytes_max: [usize; 3]) -> Self {
        Self { outbox: RefCell::new(Outbox::new(bytes_max)), bell: Notify::new(), overrun: Cell::new(false) }
    }
}

/// What becomes of what the other end sends.
pub(super) trait Handler {
    /// Whether there is use and room for the body that begins with this frame.
    fn wanted(&mut self, header: &Header) -> bool;
    fn on_message(&mut self, message: Message) -> Result<(), FrameError>;
    /// Whether the connection is of no use any more.
    fn is_idle(&self) -> bool;
}

/// How the end tells that the other one is gone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Liveness {
    /// Sends a ping after so much silence; `None`: it waits for the other's pings.
    pub ping_after: Option<Duration>,
    /// Silence after which the connection is given up.
    pub silence_max: Duration,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("the peer closed the connection")]
    Closed,
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("the peer was silent for {0:?}")]
    Silent(Duration),
    #[error("nothing was to be sent for a while")]
    Idle,
    #[error("the peer does not take the answers to its calls")]
    Overrun,
    #[error("{0}")]
    Frame(#[from] FrameError),
}

/// Runs the connection until it ends.
pub(super) async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    keys: Keys,
    pipe: &Pipe,
    counters: &PeerCounters,
    liveness: Liveness,
    handler: &mut impl Handler,
) -> Ended {
    let (read, write) = tokio::io::split(stream);
    let ended = tokio::select! {
        biased;
        ended = receive(read, keys.receive, pipe, counters, liveness, handler) => ended,
        ended = send(write, keys.send, pipe, counters) => ended,
    };
    let Err(ended) = ended;
    ended
}

/// There is no end but an error.
enum Never {}

async fn send<S: AsyncWrite>(
    mut stream: WriteHalf<S>,
    mut key: FrameKey,
    pipe: &Pipe,
    counters: &PeerCounters,
) -> Result<Never, Ended> {
    let mut bytes = Vec::new();
    loop {
        if pipe.overrun.get() {
            return Err(Ended::Overrun);
        }
        bytes.clear();
        let frames = pipe.outbox.borrow_mut().fill(&mut key, &mut bytes);
        if frames == 0 {
            pipe.bell.notified().await;
            continue;
        }
        stream.write_all(&bytes).await?;
        stream.flush().await?;
        add(&counters.frames_out, frames);
        add(&counters.bytes_out, bytes.len() as u64);
        if bytes.len() >= TURN {
            tokio::task::yield_now().await;
        }
    }
}

async fn receive<S: AsyncRead>(
    mut stream: ReadHalf<S>,
    mut key: FrameKey,
    pipe: &Pipe,
    counters: &PeerCounters,
    liveness: Liveness,
    handler: &mut impl Handler,
) -> Result<Never, Ended> {
    let mut buffer = vec![0; BUFFER_MIN];
    let mut filled = 0;
    let mut assembler = Assembler::default();
    let mut heard = Instant::now();
    let mut pinged = false;
    loop {
        let wake_at = match liveness.ping_after {
            Some(ping_after) if !pinged => heard + ping_after,
            _ => heard + liveness.silence_max,
        };
        let Ok(read) = tokio::time::timeout_at(wake_at, stream.read(&mut buffer[filled..])).await else {
            if handler.is_idle() {
                return Err(Ended::Idle);
            }
            if heard.elapsed() >= liveness.silence_max {
                return Err(Ended::Silent(liveness.silence_max));
            }
            pinged = true;
            pipe.outbox.borrow_mut().ping();
            pipe.bell.notify_one();
            continue;
        };
        let len = read?;
        if len == 0 {
            return Err(Ended::Closed);
        }
        heard = Instant::now();
        pinged = false;
        filled += len;
        add(&counters.bytes_in, len as u64);
        let mut used = 0;
        while let Some(frame) = frame::open(&buffer[used..filled], &mut key)? {
            let Opened { header, chunk, used: len } = frame;
            used += len;
            add(&counters.frames_in, 1);
            if header.what == Type::Ping {
                pipe.outbox.borrow_mut().pong();
                pipe.bell.notify_one();
            } else if header.what != Type::Pong
                && let Some(message) = assembler.add(&header, chunk, |header| handler.wanted(header))?
            {
                handler.on_message(message)?;
            }
        }
        buffer.copy_within(used..filled, 0);
        filled -= used;
        if filled == buffer.len() {
            buffer.resize(FRAME_MAX, 0);
        }
        if pipe.overrun.get() {
            return Err(Ended::Overrun);
        }
        if len >= TURN {
            tokio::task::yield_now().await;
        }
    }
}
