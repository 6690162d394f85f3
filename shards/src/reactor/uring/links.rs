//! All connections of one shard, those of clients and those of other nodes' shards: bytes in, frames up; parts down,
//! bytes out; and their end.
//!
//! Owned by one shard core. A connection has at most one receive and one send in flight and leaves its slot only when
//! both have completed, so an operation never outlives the memory that it works on. Clients come by the listeners; shards
//! of other nodes come as sockets that the control core has dialed or accepted and authenticated
//! ([`crate::reactor::handover`]). They have a bound and a frame limit of their own, and no idle timeout: how long a
//! silent one is kept is between the shards, and a dead host is TCP's to notice.
//!
//! It never looks into a frame, and sends nothing that the machine did not ask for.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use tracing::{debug, warn};

use super::buffers::RecvBuffers;
use super::conn::{Closing, Conn, Event, Recv, RecvWith, Whose};
use super::ring::{Completion, Ring, SLOT_BITS, Tag, is_transient};
use super::send::SendQueue;
use crate::frame::FrameAssembler;
use crate::front::CloseReason;
use crate::ids::ConnId;
use crate::reactor::handover::Adopted;
use crate::shard::{ClientInput, PeerInput};
use crate::stream;
use crate::time::{Instant, TimerTable};

/// Limits of one shard's connections.
#[derive(Clone, Copy, Debug)]
pub struct LinkConfig {
    /// Of clients.
    pub frame_bytes_max: u32,
    /// Of clients; beyond it, new ones are closed at once. At most 2^24.
    pub connections_max: u32,
    /// A client's connection on which no byte moved for so long, in either direction, is closed.
    pub connection_idle: Duration,
    /// To shards of other nodes; beyond it, new ones are closed at once. A cluster needs two for each of their shards.
    pub peers_max: u32,
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
            peers_max: 8192,
            recv_buffers: 64,
            recv_buffer_bytes: 16 * 1024,
        }
    }
}

/// Plain receive buffers that are kept for the next use.
const SPARE_MAX: usize = 64;

/// With so many connections to look at, each sends by a system call of its own. With more, the ring takes the sends of
/// all in one: 64 clients that each wait for an answer cost 5 to 10 % less so.
const AT_ONCE_CONNECTIONS: usize = 4;

struct Slot {
    generation: u64,
    conn: Option<Box<Conn>>,
}

#[derive(Clone, Copy, Default, Debug)]
pub(super) struct LinkCounters {
    /// Closed at once because of the bound on connections of clients,
    pub refused: u64,
    /// and of peers.
    pub peers_refused: u64,
    pub peers_opened: u64,
    pub peers_closed: u64,
    pub peer_bytes_received: u64,
    pub peer_bytes_sent: u64,
    /// Receives that found no buffer free.
    pub no_buffers: u64,
    /// Receives straight into a frame's body.
    pub bulk: u64,
    /// Sends of which the kernel took something.
    pub sends: u64,
    /// Sends that became operations of the ring.
    pub ring_sends: u64,
}

impl LinkCounters {
    fn sent(&mut self, conn: &Conn, bytes: usize) {
        self.sends += 1;
        if conn.whose == Whose::Peer {
            self.peer_bytes_sent += bytes as u64;
        }
    }
}

pub(super) struct Links {
    config: LinkConfig,
    slots: Vec<Slot>,
    free: Vec<u32>,
    buffers: Option<RecvBuffers>,
    spare: Vec<Box<[u8]>>,
    /// Of clients.
    idle: TimerTable<u32>,
    dirty: Vec<u32>,
    /// For the machine, in order.
    pub events: Vec<Event>,
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

    /// Connections to shards of other nodes, closing ones included.
    fn peers(&self) -> usize {
        let open = self.counters.peers_opened - self.counters.peers_closed;
        usize::try_from(open).expect("connections are bounded below 2^24")
    }

    pub fn on_accepted(&mut self, now: Instant, socket: OwnedFd, peer: SocketAddr) {
        let clients = self.open() - self.peers();
        if clients >= self.config.connections_max as usize || self.open() >= 1 << SLOT_BITS {
            self.counters.refused += 1;
            return;
        }
        let (slot, conn) = self.put(now, socket, Whose::Client, self.config.frame_bytes_max);
        self.idle.set(slot, now + self.config.connection_idle);
        self.events.push(Event::Client(ClientInput::Opened { conn, peer }));
    }

    /// Takes a connection that the control core has made. When it cannot be taken it is closed, which the other end
    /// notices; this shard is told if it waits for it.
    pub fn adopt(&mut self, now: Instant, adopted: Adopted) {
        let Adopted { socket, node, remote_shard, epoch, dialed } = adopted;
        let room = self.peers() < self.config.peers_max as usize && self.open() < 1 << SLOT_BITS;
        // An operation on a socket that does not block would end at once instead of waiting for its bytes.
        let waits = rustix::io::ioctl_fionbio(&socket, false);
        if !room || waits.is_err() {
            self.counters.peers_refused += 1;
            warn!(
                %node, shard = %remote_shard,
                "a connection to a shard of another node is not taken: {}",
                if room { "its socket is of no use" } else { "there are too many" }
            );
            if dialed {
                let failed = PeerInput::DialFailed { node, shard: remote_shard };
                self.events.push(Event::Peer(failed));
            }
            return;
        }
        self.counters.peers_opened += 1;
        let (_, conn) = self.put(now, socket, Whose::Peer, stream::FRAME_BYTES_MAX);
        self.events.push(Event::Peer(PeerInput::Opened { conn, node, remote_shard, epoch, dialed }));
    }

    fn put(&mut self, now: Instant, socket: OwnedFd, whose: Whose, frame_bytes_max: u32) -> (u32, ConnId) {
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
            whose,
            socket,
            frames: FrameAssembler::new(frame_bytes_max),
            recv: Recv::None,
            cancelled: false,
            receive_on: true,
            bulky: false,
            send: SendQueue::default(),
            closing: None,
            dirty: false,
            moved_at: now,
        }));
        self.mark(slot);
        (slot, id)
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
            if conn.whose == Whose::Peer {
                self.counters.peer_bytes_received += came as u64;
            }
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
        } else {
            conn.make_way_for_bulk(ring);
        }
        self.mark(slot);
    }

    pub fn on_send(&mut self, ring: &mut Ring, now: Instant, c: &Completion) {
        let slot = c.tag.slot;
        let conn = conn_of(&mut self.slots, c.tag);
        let taken = usize::try_from(c.result).unwrap_or(0);
        conn.send.on_completion(taken);
        if taken > 0 {
            conn.sent(now, taken, &mut self.events);
            self.counters.sent(conn, taken);
        } else if !is_transient(-c.result) {
            self.begin_close(ring, slot, Closing { reason: CloseReason::Peer, flush: false });
        }
        self.mark(slot);
    }

    /// Starts what can be started on every connection that something happened to, and ends those that are done.
    pub fn flush(&mut self, ring: &mut Ring, now: Instant) {
        let mut dirty = std::mem::take(&mut self.dirty);
        let are_few = dirty.len() <= AT_ONCE_CONNECTIONS;
        for slot in dirty.drain(..) {
            let place = &mut self.slots[slot as usize];
            let Some(conn) = &mut place.conn else { continue };
            conn.dirty = false;
            if conn.closing.is_some_and(|c| !c.flush) {
                conn.send.clear();
            }
            let was_in_flight = conn.send.is_in_flight();
            let taken = conn.start_send(ring, are_few);
            if taken > 0 {
                conn.sent(now, taken, &mut self.events);
                self.counters.sent(conn, taken);
            }
            self.counters.ring_sends += u64::from(!was_in_flight && conn.send.is_in_flight());
            if let Some(Closing { reason, .. }) = conn.closing {
                if conn.send.is_done() && matches!(conn.recv, Recv::None) {
                    self.events.push(conn.whose.closed(conn.id, reason));
                    self.counters.peers_closed += u64::from(conn.whose == Whose::Peer);
                    place.conn = None;
                    self.idle.cancel(slot);
                    self.free.push(slot);
                }
            } else if conn.receive_on && matches!(conn.recv, Recv::None) {
                let with = RecvWith {
                    multi: self.buffers.is_some(),
                    spare: &mut self.spare,
                    buffer_bytes: self.config.recv_buffer_bytes as usize,
                };
                conn.start_receive(ring, with);
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
