//! One connection and its requests: in flight, owed by the schedule, waiting for another try.
//!
//! A request is never dropped silently: it is answered, refused (counted by error code), or unanswered at the end.

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::time::Duration;

use super::io::{Inbox, Outbox, ReadState};
use super::recorder::Recorder;
use super::{Answer, Arrival, Ticket, Wire, WireError};

/// A pause before a request that was turned down goes out again, so that a broker in trouble is not hammered.
const RETRY_PAUSE_NS: u64 = 20_000_000;
/// A pause before a lost connection is opened again.
const RECONNECT_PAUSE_NS: u64 = 50_000_000;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The kernel holds a blocking read for at most this long, so that the worker sees the end of the run.
pub const READ_TIMEOUT: Duration = Duration::from_millis(100);

/// Where the next fresh request of a lane comes from.
pub trait Supply {
    /// The due time of the next request, if one may be sent at `now_ns`.
    fn next_due(&mut self, lane: usize, now_ns: u64) -> Option<u64>;
}

pub struct Lane<W> {
    index: usize,
    pub wire: W,
    stream: Option<TcpStream>,
    is_blocking: bool,
    inbox: Inbox,
    outbox: Outbox,
    /// Sent, in the order in which the answers come. At most `in_flight_max`.
    pending: VecDeque<Ticket>,
    /// Waiting for another try, oldest first. At most `in_flight_max`.
    retries: VecDeque<Ticket>,
    in_flight_max: usize,
    /// Nothing is sent before this time.
    resume_ns: u64,
    /// When the connection was lost, if it is down.
    down_since_ns: Option<u64>,
    /// When a slot in flight last became free.
    free_since_ns: u64,
    next_serial: u64,
    arrivals: Vec<Arrival>,
    /// For the worker: whether the present socket is in its epoll set.
    pub is_registered: bool,
}

impl<W: Wire> Lane<W> {
    pub fn new(
        index: usize,
        wire: W,
        stream: TcpStream,
        in_flight_max: usize,
        inbox_bytes: usize,
    ) -> Lane<W> {
        Lane {
            index,
            wire,
            stream: Some(stream),
            is_blocking: true,
            inbox: Inbox::with_capacity(inbox_bytes),
            outbox: Outbox::default(),
            pending: VecDeque::with_capacity(in_flight_max),
            retries: VecDeque::new(),
            in_flight_max,
            resume_ns: 0,
            down_since_ns: None,
            free_since_ns: 0,
            next_serial: 0,
            arrivals: Vec::new(),
            is_registered: false,
        }
    }

    pub fn set_blocking(&mut self, is_blocking: bool) -> io::Result<()> {
        self.is_blocking = is_blocking;
        match &self.stream {
            Some(stream) => configure(stream, is_blocking),
            None => Ok(()),
        }
    }

    pub fn stream(&self) -> Option<&TcpStream> {
        self.stream.as_ref()
    }

    pub fn into_stream(self) -> Option<TcpStream> {
        self.stream
    }

    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.retries.is_empty()
    }

    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// When this lane wants to be looked at although no event came for it.
    pub fn wake_ns(&self) -> Option<u64> {
        (self.stream.is_none() || !self.retries.is_empty()).then_some(self.resume_ns)
    }

    /// Sends what may be sent now. Returns true when it could go on at once (requests without answers).
    pub fn send(&mut self, now_ns: u64, supply: &mut impl Supply, recorder: &mut Recorder) -> bool {
        loop {
            let Some(stream) = self.stream.as_mut() else { return false };
            while self.pending.len() < self.in_flight_max && self.outbox.accepts() && now_ns >= self.resume_ns
            {
                let Some(mut ticket) = self.retries.pop_front().or_else(|| {
                    if self.wire.is_exhausted() {
                        return None;
                    }
                    let due_ns = supply.next_due(self.index, now_ns)?;
                    self.next_serial += 1;
                    Some(Ticket::new(self.next_serial, due_ns, now_ns))
                }) else {
                    break;
                };
                self.wire.encode(&mut ticket, &mut self.outbox);
                if ticket.attempts == 0 {
                    recorder.on_sent(&ticket, self.free_since_ns, now_ns);
                }
                ticket.attempts += 1;
                self.pending.push_back(ticket);
            }
            if self.outbox.is_empty() {
                return false;
            }
            match self.outbox.write_to(stream) {
                Ok(true) if !self.wire.is_answered() => return true,
                Ok(true) => {}
                Ok(false) => return false,
                Err(_) => {
                    self.lose_connection(now_ns, recorder);
                    return false;
                }
            }
        }
    }

    /// Requests without answers are done when the kernel has taken all of them.
    pub fn complete_unanswered(&mut self, now_ns: u64, records: u64, bytes: u64, recorder: &mut Recorder) {
        for ticket in self.pending.drain(..) {
            recorder.on_done(&ticket, now_ns, records, bytes);
        }
        self.free_since_ns = now_ns;
    }

    /// One read from the socket.
    pub fn read(&mut self) -> io::Result<ReadState> {
        match self.stream.as_mut() {
            Some(stream) => self.inbox.read_from(stream),
            None => Ok(ReadState::Nothing),
        }
    }

    /// Parses the answers that were read, all of them as of `now_ns`.
    pub fn take_answers(&mut self, now_ns: u64, recorder: &mut Recorder) -> Result<(), WireError> {
        if !self.wire.is_answered() {
            // Some servers answer acks=0 all the same; nobody waits for it.
            self.inbox.clear();
        }
        let mut moved = false;
        while let Some(ticket) = self.pending.front() {
            let Some(reply) = self.wire.decode(ticket, self.inbox.unread(), &mut self.arrivals)? else {
                break;
            };
            self.inbox.consume(reply.consumed);
            let ticket = self.pending.pop_front().expect("its front was just looked at");
            self.free_since_ns = now_ns;
            match reply.answer {
                Answer::Done => recorder.on_done(&ticket, now_ns, reply.records, reply.bytes),
                Answer::Retry { code, moved: to_another } => {
                    recorder.on_records(reply.records, reply.bytes);
                    recorder.on_error(code);
                    recorder.on_retry();
                    self.retry(ticket);
                    self.resume_ns = now_ns + RETRY_PAUSE_NS;
                    moved |= to_another;
                }
                Answer::Refused { code } => {
                    recorder.on_error(code);
                    recorder.on_failed();
                    if self.wire.must_not_fail() {
                        return Err(WireError::Stopped(format!(
                            "an idempotent batch was refused ({}), so its successors would be too",
                            crate::kafka::error_name(code)
                        )));
                    }
                }
            }
        }
        if self.pending.is_empty() && !self.inbox.unread().is_empty() {
            return Err(WireError::Malformed("bytes came that no request asked for"));
        }
        for arrival in self.arrivals.drain(..) {
            if arrival.is_foreign {
                recorder.on_foreign(arrival.records);
            } else {
                recorder.on_arrival(arrival.due_ns, arrival.records, now_ns);
            }
        }
        if moved {
            self.drop_connection(now_ns);
        }
        Ok(())
    }

    /// The connection broke: everything in flight is tried again after reconnecting.
    pub fn lose_connection(&mut self, now_ns: u64, recorder: &mut Recorder) {
        recorder.on_connection_lost();
        for _ in 0..self.pending.len() {
            recorder.on_retry();
        }
        self.drop_connection(now_ns);
    }

    /// Retries go out in the order of their first sending, as the sequences of an idempotent producer demand.
    fn retry(&mut self, ticket: Ticket) {
        let place = self.retries.partition_point(|waiting| waiting.serial < ticket.serial);
        self.retries.insert(place, ticket);
    }

    fn drop_connection(&mut self, now_ns: u64) {
        self.stream = None;
        self.inbox.clear();
        self.outbox.clear();
        while let Some(ticket) = self.pending.pop_front() {
            self.retry(ticket);
        }
        self.down_since_ns.get_or_insert(now_ns);
        self.resume_ns = now_ns + RECONNECT_PAUSE_NS;
    }

    /// Opens a lost connection again. `Ok(true)` when it did.
    pub fn reconnect(&mut self, now_ns: u64, give_up_after_ns: u64) -> Result<bool, WireError> {
        if self.stream.is_some() || now_ns < self.resume_ns {
            return Ok(false);
        }
        let opened = self.wire.locate().and_then(|address| {
            let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
            configure(&stream, self.is_blocking)?;
            Ok(stream)
        });
        match opened {
            Ok(stream) => {
                self.stream = Some(stream);
                self.is_registered = false;
                self.down_since_ns = None;
                Ok(true)
            }
            Err(error) => {
                let since = *self.down_since_ns.get_or_insert(now_ns);
                if now_ns.saturating_sub(since) > give_up_after_ns {
                    return Err(WireError::Stopped(format!(
                        "no connection to a leader for too long: {error}"
                    )));
                }
                self.resume_ns = now_ns + RECONNECT_PAUSE_NS;
                Ok(false)
            }
        }
    }

    /// Gives up requests that were first sent more than `timeout_ns` ago; a connection that sits on one is closed.
    pub fn expire(&mut self, now_ns: u64, timeout_ns: u64, recorder: &mut Recorder) -> Result<(), WireError> {
        let is_old = |ticket: &Ticket| now_ns.saturating_sub(ticket.first_sent_ns) > timeout_ns;
        if self.pending.front().is_some_and(is_old) {
            self.lose_connection(now_ns, recorder);
        }
        while self.retries.front().is_some_and(is_old) {
            let ticket = self.retries.pop_front().expect("its front was just looked at");
            recorder.on_unanswered(ticket.due_ns, now_ns);
            if self.wire.must_not_fail() {
                return Err(WireError::Stopped("an idempotent batch was not answered in time".to_owned()));
            }
        }
        Ok(())
    }

    /// At the end of the run: what was sent and never answered.
    pub fn abandon(&mut self, now_ns: u64, recorder: &mut Recorder) {
        for ticket in self.pending.drain(..).chain(self.retries.drain(..)) {
            recorder.on_unanswered(ticket.due_ns, now_ns);
        }
    }
}

fn configure(stream: &TcpStream, is_blocking: bool) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(!is_blocking)?;
    if is_blocking {
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
    }
    Ok(())
}
