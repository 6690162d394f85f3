//! The load engine: connections, schedule, bookkeeping of requests in flight. It knows no protocol: a [`Wire`] encodes
//! requests and decodes answers, so that a Kafka produce, a Kafka fetch and a bare echo are measured by the same client.

pub mod io;
pub mod lane;
pub mod recorder;
pub mod schedule;
pub mod worker;

use std::io::Error as IoError;
use std::net::SocketAddr;
use std::time::Instant;

pub use io::Outbox;

/// One second, in the nanoseconds that all times here are counted in.
pub const SECOND: u64 = 1_000_000_000;

/// Nanoseconds since the run's start, the same for all threads of the process.
#[derive(Clone, Copy, Debug)]
pub struct RunClock(Instant);

impl RunClock {
    pub fn start() -> RunClock {
        RunClock(Instant::now())
    }

    pub fn now(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// A request from the moment it is due until it is answered; it keeps its due time through retries.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// Its place in the order of first sending on its connection.
    pub serial: u64,
    /// When the schedule wanted it sent (open loop), or when it was sent (closed loop). Latency counts from here.
    pub due_ns: u64,
    /// due_ns <= first_sent_ns
    pub first_sent_ns: u64,
    pub attempts: u32,
    /// Set by the wire, to match the answer.
    pub correlation: i32,
    /// Which of the wire's partitions it goes to.
    pub slot: u32,
    /// Base sequence of an idempotent batch; a retry keeps it.
    pub sequence: i32,
}

impl Ticket {
    pub fn new(serial: u64, due_ns: u64, first_sent_ns: u64) -> Ticket {
        Ticket { serial, due_ns, first_sent_ns, attempts: 0, correlation: 0, slot: 0, sequence: 0 }
    }
}

/// What the server said to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    /// Worth another try; `moved`: somebody else leads the partition now.
    Retry {
        code: i16,
        moved: bool,
    },
    Refused {
        code: i16,
    },
}

#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// Bytes of the answer, its length prefix included.
    pub consumed: usize,
    /// What it brought or took; an answer of several partitions may do so and still ask for another try.
    pub records: u64,
    pub bytes: u64,
    pub answer: Answer,
}

/// A record batch that came back to us, with the due time that its producer stamped on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub due_ns: u64,
    pub records: u64,
    /// Not written by this run, so its due time says nothing.
    pub is_foreign: bool,
}

/// The server broke the protocol, or cannot be used for this run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    #[error("the server answered with correlation id {got} where {expected} was due")]
    Correlation { expected: i32, got: i32 },
    #[error("the server's answer does not parse: {0}")]
    Malformed(&'static str),
    #[error("an answer of {0} bytes is beyond this client's limit of {limit} bytes", limit = io::INBOX_BYTES_MAX)]
    TooLarge(usize),
    #[error("{0}")]
    Stopped(String),
}

/// One connection's protocol: turns tickets into bytes and bytes into answers, which come in the order of the requests.
pub trait Wire {
    /// Appends the ticket's request to `out`, which has said that it accepts one.
    fn encode(&mut self, ticket: &mut Ticket, out: &mut Outbox);

    /// Looks for the ticket's whole answer at the start of `bytes`; `None` asks for more bytes.
    fn decode(
        &mut self,
        ticket: &Ticket,
        bytes: &[u8],
        arrivals: &mut Vec<Arrival>,
    ) -> Result<Option<Reply>, WireError>;

    /// Where to connect (again); may ask the cluster, and blocks for at most about a second.
    fn locate(&mut self) -> Result<SocketAddr, IoError>;

    /// False when requests are never answered (acks=0): they are done once the kernel took them.
    fn is_answered(&self) -> bool {
        true
    }

    /// True when there is nothing left to ask for.
    fn is_exhausted(&self) -> bool {
        false
    }

    /// A batch of an idempotent producer failed for good, so every later sequence would be refused.
    fn must_not_fail(&self) -> bool {
        false
    }
}
