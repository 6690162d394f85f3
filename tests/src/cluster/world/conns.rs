//! The world's part between clients and nodes: frames one way, bytes the other, and how connections end.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use highwater_shards::front::CloseReason;
use highwater_shards::ids::{ConnId, ShardId};
use highwater_shards::shard::{ClientInput, Input};

use super::{ClientConn, Event, Item, Place, World};
use crate::checkers::Verdict;
use crate::cluster::client::Act;
use crate::net::{Conn, Up};

impl World {
    fn client_conn(&mut self, id: ConnId) -> &mut ClientConn {
        match self.place(id) {
            Place::Client(c) => c,
            Place::Peer(..) => unreachable!("a client's connection is none between nodes"),
        }
    }

    pub(super) fn on_up(&mut self, id: ConnId, up: Up) {
        let c = self.client_conn(id);
        let (node, shard, life, closed) = (c.node, c.conn.shard, c.conn.boot, c.conn.closed);
        if closed || !self.net.is_life(node, life) {
            return;
        }
        let conn = &mut self.client_conn(id).conn;
        let input = match up {
            Up::Open => {
                conn.open = true;
                ClientInput::Opened { conn: id, peer: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)) }
            }
            Up::Frame(frame) => match conn.frame(frame) {
                Some(frame) => ClientInput::Frame { conn: id, frame },
                None => return,
            },
            Up::Close => {
                (conn.open, conn.closed) = (false, true);
                ClientInput::Closed { conn: id, reason: CloseReason::Peer }
            }
        };
        self.deliver(node, shard, Item::Input(Input::Client(input)));
    }

    pub(super) fn receive(&mut self, id: ConnId, on: bool) {
        let Some(Place::Client(c)) = self.places.get_mut(usize::try_from(id.0).expect("few")) else { return };
        let (node, shard) = (c.node, c.conn.shard);
        if c.conn.open {
            for frame in c.conn.receive(on, &mut self.dice.net) {
                let input = ClientInput::Frame { conn: id, frame };
                self.deliver(node, shard, Item::Input(Input::Client(input)));
            }
        }
    }

    /// Keeps the bytes of a connection moving.
    pub(super) fn pump(&mut self, id: ConnId) {
        let socket_bytes = self.config.socket_bytes;
        let c = &mut self.client_conn(id).conn;
        let take = !c.taking && c.open && c.can_take(socket_bytes);
        c.taking |= take;
        let arrive = !c.arriving && c.has_arrivals();
        c.arriving |= arrive;
        if take {
            let delay = self.dice.net.between(Duration::ZERO, Duration::from_micros(5));
            self.after(delay, Event::Take(id));
        }
        if arrive {
            let delay = self.dice.net.tailed(&self.config.net);
            self.after(delay, Event::Arrive(id));
        }
    }

    pub(super) fn on_take(&mut self, id: ConnId) {
        let socket_bytes = self.config.socket_bytes;
        let Some(Place::Client(c)) = self.places.get_mut(usize::try_from(id.0).expect("few")) else { return };
        c.conn.taking = false;
        if !c.conn.open || !c.conn.can_take(socket_bytes) {
            return;
        }
        let bytes = c.conn.take(socket_bytes, &mut self.dice.net);
        let (node, shard, reason) = (c.node, c.conn.shard, c.conn.is_flushed_for_close());
        self.deliver(node, shard, Item::Input(Input::Client(ClientInput::Sent { conn: id, bytes })));
        if let Some(reason) = reason {
            self.closed_by_shard(id, reason);
        }
        self.pump(id);
    }

    pub(super) fn closed_by_shard(&mut self, id: ConnId, reason: CloseReason) {
        let c = self.client_conn(id);
        (c.conn.open, c.conn.closed) = (false, true);
        let (node, shard) = (c.node, c.conn.shard);
        self.deliver(node, shard, Item::Input(Input::Client(ClientInput::Closed { conn: id, reason })));
        self.pump(id);
    }

    pub(super) fn on_arrive(&mut self, id: ConnId) -> Verdict {
        let c = self.client_conn(id);
        c.conn.arriving = false;
        if !c.conn.has_arrivals() {
            return Ok(());
        }
        let (node, client, ended) = (c.node, c.conn.client, c.conn.closed);
        let bytes = c.conn.arrivals();
        if !self.clients[client].has(node, id) {
            return Ok(());
        }
        let answered = {
            let (clients, mut scene) = self.scene();
            clients[client].receive(node, &bytes, &mut scene)?
        };
        if ended {
            self.client_conn(id).conn.abandoned = true;
            self.clients[client].disconnected(node);
        }
        if answered || ended {
            let appointment = self.appoint(client);
            self.after(Duration::ZERO, Event::Turn(client, appointment));
        }
        self.pump(id);
        Ok(())
    }

    pub(super) fn act(&mut self, client: usize, act: Act) {
        match act {
            Act::Connect(node, shard) => {
                let shard = ShardId(shard % self.config.shards[node]);
                let id = ConnId(self.places.len() as u64);
                let conn = Conn::new(id, shard, client, self.net.node(node).life);
                self.places.push(Place::Client(ClientConn { node, conn }));
                self.clients[client].connected(node, id, self.now);
                self.send_up(id, Up::Open);
            }
            Act::Frame(node, frame) => {
                if let Some(id) = self.clients[client].conn(node) {
                    self.send_up(id, Up::Frame(frame));
                }
            }
            Act::Disconnect(node) => {
                if let Some(id) = self.clients[client].conn(node) {
                    self.client_conn(id).conn.abandoned = true;
                    self.send_up(id, Up::Close);
                    self.clients[client].disconnected(node);
                }
            }
        }
    }

    fn send_up(&mut self, id: ConnId, up: Up) {
        let at = self.now + self.dice.net.tailed(&self.config.net);
        let at = self.client_conn(id).conn.up.arrival(at);
        self.queue.push(at, Event::Up(id, up));
    }
}
