//! One connection of a shard: its socket, how bytes come in and are cut into frames, what is sent and how it ends.
//!
//! Owned by one shard core, kept in a slot of [`super::links`]. Receiving takes one of three forms: a multishot operation
//! that picks buffers from the shard's ring, the usual one; a single one straight into the body of a big frame, when much
//! of it is missing; and a single one into a plain buffer, where the kernel has no multishot form and between big frames,
//! so that a stream of them does not pay for cancelling each time.

#![expect(unsafe_code, reason = "driver: the kernel writes into receive buffers")]

use std::os::fd::{AsRawFd, OwnedFd};

use bytes::Bytes;
use io_uring::{opcode, types};
use tracing::debug;

use super::buffers::GROUP;
use super::ring::{Kind, Ring, SLOT_BITS, Tag};
use super::send::SendQueue;
use crate::frame::{Body, FrameAssembler};
use crate::front::{CloseReason, Front};
use crate::ids::ConnId;
use crate::shard::{ClientInput, Input, PeerInput};
use crate::time::Instant;

/// When so much of a frame is missing, its body is received into directly.
const BULK: usize = 64 * 1024;

/// What a machine is told of a connection.
pub(super) enum Event {
    Client(ClientInput),
    Peer(PeerInput),
}

impl Event {
    pub fn into_input<F: Front>(self) -> Input<F> {
        match self {
            Self::Client(input) => Input::Client(input),
            Self::Peer(input) => Input::Peer(input),
        }
    }
}

/// Who is at the other end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Whose {
    Client,
    /// A shard of another node.
    Peer,
}

impl Whose {
    pub fn frame(self, conn: ConnId, frame: Bytes) -> Event {
        match self {
            Self::Client => Event::Client(ClientInput::Frame { conn, frame }),
            Self::Peer => Event::Peer(PeerInput::Frame { conn, frame }),
        }
    }

    pub fn sent(self, conn: ConnId, bytes: usize) -> Event {
        match self {
            Self::Client => Event::Client(ClientInput::Sent { conn, bytes }),
            Self::Peer => Event::Peer(PeerInput::Sent { conn, bytes }),
        }
    }

    pub fn closed(self, conn: ConnId, reason: CloseReason) -> Event {
        match self {
            Self::Client => Event::Client(ClientInput::Closed { conn, reason }),
            Self::Peer => Event::Peer(PeerInput::Closed { conn, reason }),
        }
    }
}

pub(super) enum Recv {
    /// Nothing in flight.
    None,
    Multi,
    Single(Box<[u8]>),
    Bulk(Body),
}

/// The memory that a receive may be started with.
pub(super) struct RecvWith<'a> {
    /// Whether the multishot form is there.
    pub multi: bool,
    pub spare: &'a mut Vec<Box<[u8]>>,
    /// Bytes of a plain buffer, when there is no spare one.
    pub buffer_bytes: usize,
}

pub(super) struct Conn {
    pub id: ConnId,
    pub whose: Whose,
    pub socket: OwnedFd,
    pub frames: FrameAssembler,
    pub recv: Recv,
    /// The receive in flight was asked to end.
    pub cancelled: bool,
    /// What the machine said last.
    pub receive_on: bool,
    /// The last frame was a big one, and the next will be.
    pub bulky: bool,
    pub send: SendQueue,
    pub closing: Option<Closing>,
    /// On the list of those that `flush` looks at.
    pub dirty: bool,
    pub moved_at: Instant,
}

#[derive(Clone, Copy)]
pub(super) struct Closing {
    pub reason: CloseReason,
    /// Once all that was sent is out.
    pub flush: bool,
}

impl Conn {
    fn tag(&self, kind: Kind) -> Tag {
        let slot = (self.id.0 & ((1 << SLOT_BITS) - 1)) as u32;
        Tag { kind, slot, generation: (self.id.0 >> SLOT_BITS) as u32 }
    }

    /// Asks the receive in flight to end. What it brings until then is taken in.
    pub fn stop_receiving(&mut self, ring: &mut Ring) {
        if !matches!(self.recv, Recv::None) && !std::mem::replace(&mut self.cancelled, true) {
            ring.cancel(self.tag(Kind::Recv));
        }
    }

    /// Lets the multishot receive end where the rest of a big frame can be received into its body.
    pub fn make_way_for_bulk(&mut self, ring: &mut Ring) {
        if matches!(self.recv, Recv::Multi) && self.frames.missing() >= BULK {
            self.stop_receiving(ring);
        }
    }

    /// Cuts what came into frames. Returns why the connection has to be closed, if it has to.
    pub fn take_in(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Option<CloseReason> {
        if self.closing.is_some() {
            return None;
        }
        let (conn, whose) = (self.id, self.whose);
        let fed = self.frames.feed(bytes, |frame| events.push(whose.frame(conn, frame)));
        let error = fed.err()?;
        debug!(%conn, ?whose, %error, "closing a connection");
        Some(CloseReason::FrameTooLarge)
    }

    pub fn take_in_bulk(&mut self, mut body: Body, came: usize, events: &mut Vec<Event>) {
        assert!(
            came <= body.bytes.capacity() - body.bytes.len(),
            "the kernel fills the room that it was given"
        );
        // SAFETY: the kernel has written `came` bytes behind the length, within the capacity.
        unsafe { body.bytes.set_len(body.bytes.len() + came) };
        if let Some(frame) = self.frames.put_body(body) {
            self.bulky = frame.len() >= BULK;
            if self.closing.is_none() {
                events.push(self.whose.frame(self.id, frame));
            }
        }
    }

    /// Starts a receive in the form that fits what is to come; none is in flight.
    pub fn start_receive(&mut self, ring: &mut Ring, with: RecvWith<'_>) {
        let fd = types::Fd(self.socket.as_raw_fd());
        let missing = self.frames.missing();
        let entry = if missing >= BULK || (self.bulky && missing > 0) {
            let mut body = self.frames.take_body().expect("bytes are missing of a body");
            let missing = body.missing();
            let room = body.bytes.spare_capacity_mut();
            let len = u32::try_from(room.len().min(missing)).expect("a frame is below 4 GiB");
            let entry = opcode::Recv::new(fd, room.as_mut_ptr().cast(), len).build();
            self.recv = Recv::Bulk(body);
            entry
        } else if with.multi && !self.bulky {
            self.recv = Recv::Multi;
            opcode::RecvMulti::new(fd, GROUP).build()
        } else {
            let new_buffer = || vec![0; with.buffer_bytes].into_boxed_slice();
            let mut buffer = with.spare.pop().unwrap_or_else(new_buffer);
            let len = u32::try_from(buffer.len()).expect("a receive buffer is far below 4 GiB");
            let entry = opcode::Recv::new(fd, buffer.as_mut_ptr(), len).build();
            self.recv = Recv::Single(buffer);
            entry
        };
        // SAFETY: the memory is on the heap, owned by `self.recv` and untouched until the operation completed; the
        // connection is kept until then.
        unsafe { ring.push(entry, self.tag(Kind::Recv)) };
    }

    /// Sends what there is, unless a send is in flight. Returns the bytes that the kernel took at once.
    pub fn start_send(&mut self, ring: &mut Ring, may_at_once: bool) -> usize {
        let tag = self.tag(Kind::Send);
        self.send.start(ring, std::os::fd::AsFd::as_fd(&self.socket), tag, may_at_once)
    }

    /// The kernel took bytes of what there was to send.
    pub fn sent(&mut self, now: Instant, bytes: usize, events: &mut Vec<Event>) {
        self.moved_at = now;
        events.push(self.whose.sent(self.id, bytes));
    }
}
