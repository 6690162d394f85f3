//! The world's part between shards of different nodes: connections are made, bytes move or do not, ends learn late or never
//! that a connection is over.

use std::time::Duration;

use bytes::Bytes;
use highwater_shards::front::CloseReason;
use highwater_shards::ids::{ConnId, ShardId};
use highwater_shards::shard::{Input, PeerInput};
use highwater_shards::time::Instant;

use super::{Event, Item, Place, World};
use crate::cluster::links::{End, Link, Side};
use crate::cluster::node_id;
use crate::disk::Crash;

/// Before a kernel tries once more what did not get through.
const RESEND: Duration = Duration::from_millis(3);

impl World {
    pub(super) fn place(&mut self, conn: ConnId) -> &mut Place {
        &mut self.places[usize::try_from(conn.0).expect("connections are counted from 0")]
    }

    fn new_conn(&mut self, place: Place) -> ConnId {
        self.places.push(place);
        ConnId(self.places.len() as u64 - 1)
    }

    fn both_ways(&self, a: usize, b: usize) -> bool {
        self.net.is_open(a, b) && self.net.is_open(b, a)
    }

    pub(super) fn on_dial(&mut self, node: usize, shard: ShardId, life: u32, to: usize, to_shard: ShardId) {
        let failed = Event::DialFailed { node, shard, life, to, to_shard };
        let is_there = self.net.node(to).up && to_shard.0 < self.config.shards[to];
        let known = self.plane.registration(node).is_some() && self.plane.registration(to).is_some();
        if !self.both_ways(node, to) || (!self.net.node(to).up && self.dice.net.flip()) {
            // Nobody says no, so it is only given up after a while.
            let (least, most) = (self.config.silence.start, self.config.silence.end);
            let delay = self.dice.net.between(least, most);
            self.after(delay, failed);
            return;
        }
        let there = self.dice.net.tailed(&self.config.net);
        let back = self.dice.net.tailed(&self.config.net);
        if !is_there || !known || !self.net.is_life(node, life) {
            self.after(there + back, failed);
            return;
        }
        self.counts.links += 1;
        let at = self.links.len();
        let ends = [(node, shard), (to, to_shard)];
        let mut side = 0;
        let ends = ends.map(|(node, shard)| {
            let conn = self.new_conn(Place::Peer(at, side));
            side += 1;
            End::new(node, shard, self.net.node(node).life, conn)
        });
        self.links.push(Link { ends });
        // The one that was dialed knows of it first.
        self.after(there, Event::Opened(at, 1));
        self.after(there + back, Event::Opened(at, 0));
    }

    pub(super) fn on_dial_failed(
        &mut self,
        node: usize,
        shard: ShardId,
        life: u32,
        to: usize,
        to_shard: ShardId,
    ) {
        if self.net.is_life(node, life) {
            self.counts.dials_failed += 1;
            let input = PeerInput::DialFailed { node: node_id(to), shard: to_shard };
            self.deliver(node, shard, Item::Input(Input::Peer(input)));
        }
    }

    pub(super) fn on_link_opened(&mut self, link: usize, side: Side) {
        let [dialer, dialed] = &self.links[link].ends;
        let (dialer, dialed) = (dialer.node, dialed.node);
        let other = &self.links[link].ends[1 - side];
        let (remote_shard, other_closed) = (other.shard, other.closed);
        let (other_life, other_node) = (other.life, other.node);
        let end = &mut self.links[link].ends[side];
        let (node, shard, life, conn) = (end.node, end.shard, end.life, end.conn);
        if !self.net.is_life(node, life) || end.closed {
            end.closed = true;
            return;
        }
        // As the two proved it to each other when the connection was made.
        let epoch = self.plane.registration(if side == 0 { dialed } else { dialer });
        let is_gone = other_closed || !self.net.is_life(other_node, other_life);
        let Some(epoch) = epoch.filter(|_| !is_gone) else {
            self.links[link].ends[side].closed = true;
            if side == 0 {
                self.on_dial_failed(node, shard, life, dialed, remote_shard);
            } else {
                self.links[link].ends[0].closed = true;
                let end = &self.links[link].ends[0];
                let (node, shard, life, to_shard) =
                    (end.node, end.shard, end.life, self.links[link].ends[1].shard);
                self.on_dial_failed(node, shard, life, dialed, to_shard);
            }
            return;
        };
        self.links[link].ends[side].open = true;
        let input =
            PeerInput::Opened { conn, node: node_id(other_node), remote_shard, epoch, dialed: side == 0 };
        self.deliver(node, shard, Item::Input(Input::Peer(input)));
        self.link_pump(link, 1 - side);
    }

    pub(super) fn link_send(&mut self, link: usize, side: Side, parts: Vec<Bytes>) {
        let end = &mut self.links[link].ends[side];
        if end.open {
            end.send(parts);
            self.link_pump(link, side);
        }
    }

    pub(super) fn link_receive(&mut self, link: usize, side: Side, on: bool) {
        let end = &mut self.links[link].ends[side];
        let (node, shard, conn) = (end.node, end.shard, end.conn);
        if end.open {
            for frame in end.receive(on, &mut self.dice.net) {
                let input = PeerInput::Frame { conn, frame };
                self.deliver(node, shard, Item::Input(Input::Peer(input)));
            }
        }
    }

    pub(super) fn link_close(&mut self, link: usize, side: Side, flush: bool, reason: CloseReason) {
        let end = &mut self.links[link].ends[side];
        if end.open
            && let Some(reason) = end.close(flush, reason)
        {
            self.end_over(link, side, reason);
        }
    }

    /// Keeps the bytes that `side` sends moving.
    fn link_pump(&mut self, link: usize, side: Side) {
        let socket_bytes = self.config.socket_bytes;
        let end = &mut self.links[link].ends[side];
        if !end.taking && end.open && end.can_take(socket_bytes) {
            end.taking = true;
            let delay = self.dice.net.between(Duration::ZERO, Duration::from_micros(5));
            self.after(delay, Event::LinkTake(link, side));
        }
        let end = &mut self.links[link].ends[side];
        if let Some(at) = end.next_arrival().filter(|_| !end.moving) {
            end.moving = true;
            self.queue.push(at.max(self.now), Event::LinkMove(link, side));
        }
    }

    pub(super) fn on_link_take(&mut self, link: usize, side: Side) {
        let socket_bytes = self.config.socket_bytes;
        let (from, to) = (self.links[link].ends[side].node, self.links[link].ends[1 - side].node);
        let arrives = self.now + self.dice.net.tailed(&self.config.streams) + self.net.lag(from, to);
        let end = &mut self.links[link].ends[side];
        end.taking = false;
        if !end.open || !end.can_take(socket_bytes) {
            return;
        }
        let bytes = end.take(socket_bytes, arrives, &mut self.dice.net);
        let (node, shard, conn, reason) = (end.node, end.shard, end.conn, end.flushed_for_close());
        self.deliver(node, shard, Item::Input(Input::Peer(PeerInput::Sent { conn, bytes })));
        if let Some(reason) = reason {
            self.end_over(link, side, reason);
        }
        self.link_pump(link, side);
    }

    /// What `side` sent comes to the other end.
    pub(super) fn on_link_move(&mut self, link: usize, side: Side) {
        let (from, to) = (self.links[link].ends[side].node, self.links[link].ends[1 - side].node);
        let to_life = self.links[link].ends[1 - side].life;
        self.links[link].ends[side].moving = false;
        if !self.net.is_open(from, to) {
            self.falls_silent(link, side);
            return self.move_later(link, side);
        }
        if !self.net.is_life(to, to_life) || self.links[link].ends[1 - side].closed {
            // A kernel that knows nothing of the connection says so; one that is down says nothing.
            if self.net.node(to).up && self.net.is_open(to, from) {
                let delay = self.dice.net.tailed(&self.config.net);
                self.after(delay, Event::LinkOver(link, side));
            } else {
                self.falls_silent(link, side);
                self.move_later(link, side);
            }
            return;
        }
        if !self.links[link].ends[1 - side].open {
            // Not taken up by that shard yet.
            return self.move_later(link, side);
        }
        if let Some(bytes) = self.links[link].ends[side].arrive(self.now) {
            let end = &mut self.links[link].ends[1 - side];
            let (node, shard, conn) = (end.node, end.shard, end.conn);
            for frame in end.receive_bytes(&bytes) {
                let input = PeerInput::Frame { conn, frame };
                self.deliver(node, shard, Item::Input(Input::Peer(input)));
            }
            if self.net.is_open(to, from) {
                self.links[link].ends[side].silent_since = None;
                self.links[link].ends[side].confirmed(bytes.len());
            } else {
                // It has arrived and the sender does not learn of it. Its room stays taken.
                self.falls_silent(link, side);
            }
        }
        self.link_pump(link, side);
    }

    fn move_later(&mut self, link: usize, side: Side) {
        let end = &mut self.links[link].ends[side];
        if !end.closed && !end.moving && self.net.is_life(end.node, end.life) {
            end.moving = true;
            self.after(RESEND, Event::LinkMove(link, side));
        }
    }

    /// From now on `side` waits for news, for so long and no longer.
    fn falls_silent(&mut self, link: usize, side: Side) {
        let now = self.now;
        let patience = self.dice.net.between(self.config.silence.start, self.config.silence.end);
        let end = &mut self.links[link].ends[side];
        if end.silent_since.is_none() && !end.closed {
            end.silent_since = Some(now);
            self.after(patience, Event::LinkSilent(link, side, now));
        }
    }

    pub(super) fn on_link_silent(&mut self, link: usize, side: Side, since: Instant) {
        if self.links[link].ends[side].silent_since == Some(since) {
            self.link_over(link, side);
        }
    }

    /// An end learns that the connection is over.
    pub(super) fn link_over(&mut self, link: usize, side: Side) {
        let end = &self.links[link].ends[side];
        if end.open {
            self.end_over(link, side, CloseReason::Peer);
        } else if !end.closed && side == 0 {
            // It was never more than a wish.
            self.links[link].ends[0].closed = true;
            let (end, to) = (&self.links[link].ends[0], &self.links[link].ends[1]);
            let (node, shard, life, to, to_shard) = (end.node, end.shard, end.life, to.node, to.shard);
            self.on_dial_failed(node, shard, life, to, to_shard);
        }
    }

    /// One end is over; the other one learns of it if it can.
    fn end_over(&mut self, link: usize, side: Side, reason: CloseReason) {
        let end = &mut self.links[link].ends[side];
        (end.open, end.closed) = (false, true);
        let (node, shard, conn) = (end.node, end.shard, end.conn);
        self.deliver(node, shard, Item::Input(Input::Peer(PeerInput::Closed { conn, reason })));
        self.farewell(link, side);
    }

    /// The news that an end is over is on its way to the other one.
    fn farewell(&mut self, link: usize, side: Side) {
        let (from, to) = (self.links[link].ends[side].node, self.links[link].ends[1 - side].node);
        if self.net.is_open(from, to) {
            // Behind what is under way.
            let last = self.links[link].ends[side].next_arrival().unwrap_or(self.now);
            let delay = self.dice.net.tailed(&self.config.net) + last.since(self.now);
            self.after(delay, Event::LinkOver(link, 1 - side));
        } else {
            self.falls_silent(link, 1 - side);
        }
    }

    /// A node is gone. Its kernel says so when only the process died; nobody says so when the power went.
    pub(super) fn links_of_dead(&mut self, node: usize, crash: Crash) {
        for link in 0..self.links.len() {
            for side in 0..2 {
                let end = &mut self.links[link].ends[side];
                if end.node != node || end.closed {
                    continue;
                }
                end.lose_some(&mut self.dice.crash);
                (end.open, end.closed) = (false, true);
                if self.links[link].ends[1 - side].closed {
                    continue;
                }
                match crash {
                    Crash::Kill => self.farewell(link, side),
                    Crash::Power => self.falls_silent(link, 1 - side),
                }
            }
        }
    }

    /// Connections between two nodes break, at each end at another time.
    pub(super) fn break_links(&mut self, a: usize, b: usize) {
        for link in 0..self.links.len() {
            let [x, y] = &self.links[link].ends;
            let between = (x.node, y.node) == (a, b) || (x.node, y.node) == (b, a);
            if !between || (x.closed && y.closed) {
                continue;
            }
            self.counts.broken_links += 1;
            for side in 0..2 {
                self.links[link].ends[side].lose_some(&mut self.dice.net);
                let late = self.dice.net.flip();
                let delay = if late {
                    self.dice.net.between(Duration::ZERO, self.config.silence.end)
                } else {
                    self.dice.net.tailed(&self.config.net)
                };
                self.after(delay, Event::LinkOver(link, side));
            }
        }
    }

    /// Where a way is cut, those who have something under way will notice at last; and so will those who have not, by the
    /// signs of life that kernels exchange.
    pub(super) fn links_fall_silent(&mut self, from: usize, to: usize) {
        for link in 0..self.links.len() {
            for side in 0..2 {
                let (end, other) = (&self.links[link].ends[side], &self.links[link].ends[1 - side]);
                let on_the_way = (end.node, other.node) == (from, to) || (end.node, other.node) == (to, from);
                if on_the_way && end.open {
                    self.falls_silent(link, side);
                }
            }
        }
    }

    /// Nothing is in the way any more: whoever waited in vain hears again, unless the connection is gone.
    pub(super) fn links_speak(&mut self) {
        for link in 0..self.links.len() {
            for side in 0..2 {
                let (end, other) = (&self.links[link].ends[side], &self.links[link].ends[1 - side]);
                let (a, b, live) = (end.node, other.node, self.net.is_life(other.node, other.life));
                if end.closed || !self.both_ways(a, b) {
                    continue;
                }
                if live && !other.closed {
                    let end = &mut self.links[link].ends[side];
                    end.silent_since = None;
                    end.confirm_arrived();
                    self.link_pump(link, side);
                } else if self.net.node(b).up {
                    let delay = self.dice.net.tailed(&self.config.net);
                    self.after(delay, Event::LinkOver(link, side));
                }
            }
        }
    }
}
