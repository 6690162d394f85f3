//! Client connections of one shard: bytes in, frames up; parts down, bytes out; and their end.
//!
//! Owned by one shard core. A connection has at most one receive and one send in flight and leaves its slot only when
//! both have completed, so an operation never outlives the memory that it works on. Receiving takes one of three
//! forms: a multishot operation that picks buffers from the shard's ring, the usual one; a single one straight into
//! the body of a big frame, when much of it is missing; and a single one into a plain buffer, where the kernel has no
//! multishot form and between big frames, so that a stream of them does not pay for cancelling each time.
//!
//! It never looks into a frame, and sends nothing that the machine did not ask for.

#![expect(unsafe_code, reason = "driver: the kernel writes into receive buffers")]

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use bytes::Bytes;
use io_uring::{opcode, types};
use tracing::debug;

use super::buffers::{GROUP, RecvBuffers};
use super::ring::{Completion, Kind, Ring, SLOT_BITS, Tag, is_transient};
use super::send::SendQueue;
use crate::frame::{Body, FrameAssembler};
use crate::front::CloseReason;
use crate::ids::ConnId;
use crate::shard::ClientInput;
use crate::time::{Instant, TimerTable};

/// Limits of one shard's client connections.
#[derive(Clone, Copy, Debug)]
pub struct LinkConfig {
    pub frame_bytes_max: u32,
    /// Beyond it, new connections are closed at once. At most 2^24.
    pub connections_max: u32,
    /// A connection on which no byte moved for so long, in either direction, is closed.
    pub connection_idle: Duration,
    /// Buffers that all receives of the shard share; a power of two, up to 32768.
    pub recv_buffers: u16,
    pub recv_buffer_bytes: u32,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            frame_bytes_max: 100 * 1024 * 1024,
            connections_max: 10_000,
            connection_idle: Duration::from_secs(600),
            recv_buffers: 64,
            recv_buffer_bytes: 16 * 1024,
        }
    }
}

/// When so much of a frame is missing, its body is received into directly.
const BULK: usize = 64 * 1024;

/// Plain receive buffers that are kept for the next use.
const SPARE_MAX: usize = 64;

enum Recv {
    /// Nothing in flight.
    None,
    Multi,
    Single(Box<[u8]>),
    Bulk(Body),
}

struct Conn {
    id: ConnId,
    socket: OwnedFd,
    frames: FrameAssembler,
    recv: Recv,
    /// The receive in flight was asked to end.
    cancelled: bool,
    /// What the machine said last.
    receive_on: bool,
    /// The last frame was a big one, and the next will be.
    bulky: bool,
    send: SendQueue,
    closing: Option<Closing>,
    /// On the list of those that `flush` looks at.
    dirty: bool,
    moved_at: Instant,
}

#[derive(Clone, Copy)]
struct Closing {
    reason: CloseReason,
    /// Once all that was sent is out.
    flush: bool,
}

struct Slot {
    generation: u64,
    conn: Option<Box<Conn>>,
}

#[derive(Clone, Copy, Default, Debug)]
pub(super) struct LinkCounters {
    /// Closed at once because of the bound on connections.
    pub refused: u64,
    /// Receives that found no buffer free.
    pub no_buffers: u64,
    /// Receives straight into a frame's body.
    pub bulk: u64,
    pub sends: u64,
    /// Sends that the kernel took only a part of.
    pub short_sends: u64,
}

pub(super) struct Links {
    config: LinkConfig,
    slots: Vec<Slot>,
    free: Vec<u32>,
    buffers: Option<RecvBuffers>,
    spare: Vec<Box<[u8]>>,
    idle: TimerTable<u32>,
    dirty: Vec<u32>,
    /// For the machine, in order.
    pub events: Vec<ClientInput>,
    pub counters: LinkCounters,
}

impl Links {
    pub fn new(config: LinkConfig, ring: &mut Ring) -> Self {
        assert!(config.connections_max <= 1 << SLOT_BITS, "a shard has at most 2^24 connections");
        let mut buffers = None;
        if ring.kernel.recv_multi {
            match RecvBuffers::register(ring, config.recv_buffers, config.recv_buffer_bytes as usize) {
                Ok(registered) => buffers = Some(registered),
                Err(error) => debug!(%error, "no buffer ring: receiving one piece at a time"),
            }
        }
        Self {
            config,
            slots: Vec::new(),
            free: Vec::new(),
            buffers,
            spare: Vec::new(),
            idle: TimerTable::default(),
            dirty: Vec::new(),
            events: Vec::new(),
            counters: LinkCounters::default(),
        }
    }

    /// Connections that are there, closing ones included.
    pub fn open(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// When [`Self::on_time`] has something to do.
    pub fn next(&self) -> Option<Instant> {
        self.idle.next()
    }

    pub fn on_accepted(&mut self, now: Instant, socket: OwnedFd, peer: SocketAddr) {
        if self.open() >= self.config.connections_max as usize {
            self.counters.refused += 1;
            return;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, conn: None });
            u32::try_from(self.slots.len() - 1).expect("connections are bounded below 2^24")
        });
        let place = &mut self.slots[slot as usize];
        // 40 bits of generation outlast the shard, however fast connections come and go.
        place.generation += 1;
        let id = ConnId(place.generation << SLOT_BITS | u64::from(slot));
        place.conn = Some(Box::new(Conn {
            id,
            socket,
            frames: FrameAssembler::new(self.config.frame_bytes_max),
            recv: Recv::None,
            cancelled: false,
            receive_on: true,
            bulky: false,
            send: SendQueue::default(),
            closing: None,
            dirty: false,
            moved_at: now,
        }));
        self.idle.set(slot, now + self.config.connection_idle);
        self.events.push(ClientInput::Opened { conn: id, peer });
        self.mark(slot);
    }

    pub fn send(&mut self, id: ConnId, parts: Vec<Bytes>) {
        if let Some((slot, conn)) = self.find(id)
            && conn.closing.is_none()
        {
            conn.send.push(parts);
            self.mark(slot);
        }
    }

    pub fn receive(&mut self, ring: &mut Ring, id: ConnId, on: bool) {
        let Some((slot, conn)) = self.find(id) else { return };
        conn.receive_on = on;
        if !on {
            conn.stop_receiving(ring);
        }
        self.mark(slot);
    }

    pub fn close(&mut self, ring: &mut Ring, id: ConnId, flush: bool, reason: CloseReason) {
        if let Some((slot, _)) = self.find(id) {
            self.begin_close(ring, slot, Closing { reason, flush });
        }
    }

    /// Ends every connection at once; [`Self::open`] falls to 0 as their operations complete.
    pub fn close_all(&mut self, ring: &mut Ring, reason: CloseReason) {
        for slot in 0..u32::try_from(self.slots.len()).expect("connections are bounded below 2^24") {
            if self.slots[slot as usize].conn.is_some() {
                self.begin_close(ring, slot, Closing { reason, flush: false });
            }
        }
    }

    /// After the last operation completed.
    pub fn unregister(&self, ring: &Ring) {
        if let Some(buffers) = &self.buffers {
            buffers.unregister(ring);
        }
    }

    /// Closes what was idle for too long. A deadline moves only when it comes, so that bytes cost no timer.
    pub fn on_time(&mut self, ring: &mut Ring, now: Instant) {
        while let Some(slot) = self.idle.pop_due(now) {
            let conn = self.slots[slot as usize].conn.as_ref().expect("a free slot has no deadline");
            let deadline = conn.moved_at + self.config.connection_idle;
            if deadline > now {
                self.idle.set(slot, deadline);
            } else {
                self.begin_close(ring, slot, Closing { reason: CloseReason::Idle, flush: false });
            }
        }
    }

    pub fn on_recv(&mut self, ring: &mut Ring, now: Instant, c: &Completion) {
        let slot = c.tag.slot;
        let conn = conn_of(&mut self.slots, c.tag);
        let came = usize::try_from(c.result).unwrap_or(0);
        let mut reason = None;
        if came > 0 {
            conn.moved_at = now;
        }
        if let Some(id) = c.buffer() {
            let buffers = self.buffers.as_mut().expect("a buffer comes from the ring of buffers");
            reason = conn.take_in(buffers.bytes(id, came), &mut self.events);
            buffers.give_back(id);
        }
        if !c.more() {
            conn.cancelled = false;
            match std::mem::replace(&mut conn.recv, Recv::None) {
                Recv::None => unreachable!("a receive completes once"),
                Recv::Multi => {}
                Recv::Single(buffer) => {
                    reason = conn.take_in(&buffer[..came], &mut self.events);
                    conn.bulky &= conn.frames.missing() > 0;
                    if self.spare.len() < SPARE_MAX {
                        self.spare.push(buffer);
                    }
                }
                Recv::Bulk(body) => conn.take_in_bulk(body, came, &mut self.events),
            }
        }
        match -c.result {
            ..0 | libc::ECANCELED => {}
            // The stream ended while answers go out: those who can still be told are told.
            0 if conn.closing.is_some() => {}
            libc::ENOBUFS => self.counters.no_buffers += 1,
            errno if errno > 0 && is_transient(errno) => {}
            // The end of the stream, or a broken connection.
            _ => reason = reason.or(Some(CloseReason::Peer)),
        }
        if let Some(reason) = reason {
            self.begin_close(ring, slot, Closing { reason, flush: false });
        } else if matches!(conn.recv, Recv::Multi) && conn.frames.missing() >= BULK {
            conn.stop_receiving(ring);
        }
        self.mark(slot);
    }

    pub fn on_send(&mut self, ring: &mut Ring, now: Instant, c: &Completion) {
        let slot = c.tag.slot;
        let conn = conn_of(&mut self.slots, c.tag);
        let taken = usize::try_from(c.result).unwrap_or(0);
        conn.send.on_completion(taken);
        if taken > 0 {
            conn.moved_at = now;
            self.events.push(ClientInput::Sent { conn: conn.id, bytes: taken });
            if conn.send.has_rest() {
                self.counters.short_sends += 1;
            }
        } else if !is_transient(-c.result) {
            self.begin_close(ring, slot, Closing { reason: CloseReason::Peer, flush: false });
        }
        self.mark(slot);
    }

    /// Starts what can be started on every connection that something happened to, and ends those that are done.
    pub fn flush(&mut self, ring: &mut Ring) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for slot in dirty.drain(..) {
            let place = &mut self.slots[slot as usize];
            let Some(conn) = &mut place.conn else { continue };
            conn.dirty = false;
            if conn.closing.is_some_and(|c| !c.flush) {
                conn.send.clear();
            }
            let tag = |kind| Tag { kind, slot, generation: lower_half(place.generation) };
            let started = conn.send.start(ring, conn.socket.as_fd(), tag(Kind::Send));
            self.counters.sends += u64::from(started);
            if let Some(Closing { reason, .. }) = conn.closing {
                if conn.send.is_done() && matches!(conn.recv, Recv::None) {
                    self.events.push(ClientInput::Closed { conn: conn.id, reason });
                    place.conn = None;
                    self.idle.cancel(slot);
                    self.free.push(slot);
                }
            } else if conn.receive_on && matches!(conn.recv, Recv::None) {
                start_receive(conn, ring, tag(Kind::Recv), self.buffers.is_some(), &mut self.spare, || {
                    vec![0; self.config.recv_buffer_bytes as usize].into_boxed_slice()
                });
                self.counters.bulk += u64::from(matches!(conn.recv, Recv::Bulk(_)));
            }
        }
        assert!(self.dirty.is_empty(), "flushing one connection touches no other");
        self.dirty = dirty;
    }

    fn find(&mut self, id: ConnId) -> Option<(u32, &mut Conn)> {
        let slot = (id.0 & ((1 << SLOT_BITS) - 1)) as u32;
        let conn = self.slots.get_mut(slot as usize)?.conn.as_deref_mut()?;
        (conn.id == id).then_some((slot, conn))
    }

    fn mark(&mut self, slot: u32) {
        if let Some(conn) = &mut self.slots[slot as usize].conn
            && !std::mem::replace(&mut conn.dirty, true)
        {
            self.dirty.push(slot);
        }
    }

    /// The first reason stays; a later order may only make it quicker.
    fn begin_close(&mut self, ring: &mut Ring, slot: u32, closing: Closing) {
        let conn = self.slots[slot as usize].conn.as_mut().expect("only a connection is closed");
        match &mut conn.closing {
            None => conn.closing = Some(closing),
            Some(earlier) if earlier.flush && !closing.flush => earlier.flush = false,
            Some(_) => return,
        }
        if closing.flush {
            conn.stop_receiving(ring);
        } else {
            // Ends the operations in flight: receives find the end of the stream, sends a closed one.
            let _ = rustix::net::shutdown(&conn.socket, rustix::net::Shutdown::Both);
        }
        self.mark(slot);
    }
}

impl Conn {
    fn tag(&self, kind: Kind) -> Tag {
        let slot = (self.id.0 & ((1 << SLOT_BITS) - 1)) as u32;
        Tag { kind, slot, generation: lower_half(self.id.0 >> SLOT_BITS) }
    }

    /// Asks the receive in flight to end. What it brings until then is taken in.
    fn stop_receiving(&mut self, ring: &mut Ring) {
        if !matches!(self.recv, Recv::None) && !std::mem::replace(&mut self.cancelled, true) {
            ring.cancel(self.tag(Kind::Recv));
        }
    }

    /// Cuts what came into frames. Returns why the connection has to be closed, if it has to.
    fn take_in(&mut self, bytes: &[u8], events: &mut Vec<ClientInput>) -> Option<CloseReason> {
        if self.closing.is_some() {
            return None;
        }
        let conn = self.id;
        let fed = self.frames.feed(bytes, |frame| events.push(ClientInput::Frame { conn, frame }));
        let error = fed.err()?;
        debug!(%conn, %error, "closing a connection");
        Some(CloseReason::FrameTooLarge)
    }

    fn take_in_bulk(&mut self, mut body: Body, came: usize, events: &mut Vec<ClientInput>) {
        assert!(
            came <= body.bytes.capacity() - body.bytes.len(),
            "the kernel fills the room that it was given"
        );
        // SAFETY: the kernel has written `came` bytes behind the length, within the capacity.
        unsafe { body.bytes.set_len(body.bytes.len() + came) };
        if let Some(frame) = self.frames.put_body(body) {
            self.bulky = frame.len() >= BULK;
            if self.closing.is_none() {
                events.push(ClientInput::Frame { conn: self.id, frame });
            }
        }
    }
}

fn start_receive(
    conn: &mut Conn,
    ring: &mut Ring,
    tag: Tag,
    multi: bool,
    spare: &mut Vec<Box<[u8]>>,
    new_buffer: impl FnOnce() -> Box<[u8]>,
) {
    let fd = types::Fd(conn.socket.as_raw_fd());
    let missing = conn.frames.missing();
    let entry = if missing >= BULK || (conn.bulky && missing > 0) {
        let mut body = conn.frames.take_body().expect("bytes are missing of a body");
        let missing = body.missing();
        let room = body.bytes.spare_capacity_mut();
        let len = u32::try_from(room.len().min(missing)).expect("a frame is below 4 GiB");
        let entry = opcode::Recv::new(fd, room.as_mut_ptr().cast(), len).build();
        conn.recv = Recv::Bulk(body);
        entry
    } else if multi && !conn.bulky {
        conn.recv = Recv::Multi;
        opcode::RecvMulti::new(fd, GROUP).build()
    } else {
        let mut buffer = spare.pop().unwrap_or_else(new_buffer);
        let len = u32::try_from(buffer.len()).expect("a receive buffer is far below 4 GiB");
        let entry = opcode::Recv::new(fd, buffer.as_mut_ptr(), len).build();
        conn.recv = Recv::Single(buffer);
        entry
    };
    // SAFETY: the memory is on the heap, owned by `conn.recv` and untouched until the operation completed; the
    // connection is kept until then.
    unsafe { ring.push(entry, tag) };
}

fn conn_of(slots: &mut [Slot], tag: Tag) -> &mut Conn {
    let slot = &mut slots[tag.slot as usize];
    assert!(
        lower_half(slot.generation) == tag.generation,
        "a slot is free only when its operations completed"
    );
    slot.conn.as_mut().expect("a connection is kept until its operations completed")
}

fn lower_half(generation: u64) -> u32 {
    generation as u32
}
