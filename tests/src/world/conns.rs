//! The world's part between clients and shards: frames one way, bytes the other, and how connections end.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use highwater_shards::front::CloseReason;
use highwater_shards::ids::ConnId;
use highwater_shards::shard::{ClientInput, Input};

use super::{Builder, Event, Item, World};
use crate::checkers::Verdict;
use crate::client::Act;
use crate::net::{Conn, Up};

impl<B: Builder> World<B> {
    pub(super) fn on_up(&mut self, id: ConnId, up: Up) {
        let (now_boot, node_up) = (self.boot, self.up);
        let c = self.conn(id);
        if c.closed || c.boot != now_boot || !node_up {
            return;
        }
        let shard = c.shard;
        let input = match up {
            Up::Open => {
                c.open = true;
                let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
                ClientInput::Opened { conn: id, peer }
            }
            Up::Frame(frame) => match c.frame(frame) {
                Some(frame) => ClientInput::Frame { conn: id, frame },
                None => return,
            },
            Up::Close => {
                c.open = false;
                c.closed = true;
                ClientInput::Closed { conn: id, reason: CloseReason::Peer }
            }
        };
        self.deliver(shard, Item::Input(Input::Client(input)));
    }

    /// Keeps the bytes of a connection moving.
    pub(super) fn pump(&mut self, id: ConnId) {
        let socket_bytes = self.config.socket_bytes;
        let c = self.conn(id);
        if !c.taking && c.open && c.can_take(socket_bytes) {
            c.taking = true;
            let delay = self.dice.net.between(Duration::ZERO, Duration::from_micros(5));
            self.after(delay, Event::Take(id));
        }
        let c = self.conn(id);
        if !c.arriving && c.has_arrivals() {
            c.arriving = true;
            let delay = self.dice.net.tailed(&self.config.net);
            self.after(delay, Event::Arrive(id));
        }
    }

    pub(super) fn on_take(&mut self, id: ConnId) {
        let socket_bytes = self.config.socket_bytes;
        let c = &mut self.conns[usize::try_from(id.0).expect("counted from 0")];
        c.taking = false;
        if !c.open || !c.can_take(socket_bytes) {
            return;
        }
        let bytes = c.take(socket_bytes, &mut self.dice.net);
        let (shard, reason) = (c.shard, c.is_flushed_for_close());
        self.deliver(shard, Item::Input(Input::Client(ClientInput::Sent { conn: id, bytes })));
        if let Some(reason) = reason {
            self.closed_by_shard(id, reason);
        }
        self.pump(id);
    }

    pub(super) fn closed_by_shard(&mut self, id: ConnId, reason: CloseReason) {
        let c = self.conn(id);
        c.open = false;
        c.closed = true;
        let shard = c.shard;
        self.deliver(shard, Item::Input(Input::Client(ClientInput::Closed { conn: id, reason })));
        self.pump(id);
    }

    pub(super) fn on_arrive(&mut self, id: ConnId) -> Verdict {
        let c = self.conn(id);
        c.arriving = false;
        if !c.has_arrivals() {
            return Ok(());
        }
        let (client, ended) = (c.client, c.closed);
        let bytes = c.arrivals();
        let current = self.clients[client].link.as_ref().is_some_and(|l| l.conn == id);
        if !current {
            return Ok(());
        }
        let answered = {
            let (clients, wire, mut scene) = self.scene();
            clients[client].receive(wire, &bytes, &mut scene)?
        };
        if ended {
            self.conn(id).abandoned = true;
            self.clients[client].disconnected();
        }
        if answered || ended {
            let appointment = self.appoint(client);
            self.after(Duration::ZERO, Event::Turn(client, appointment));
        }
        self.pump(id);
        Ok(())
    }

    pub(super) fn act(&mut self, client: usize, act: Act) {
        let link = self.clients[client].link.as_ref().map(|l| l.conn);
        match act {
            Act::Connect(shard) => {
                let id = ConnId(self.conns.len() as u64);
                self.conns.push(Conn::new(id, shard, client, self.boot));
                self.clients[client].connected(id, self.boot, self.now);
                self.send_up(id, Up::Open);
            }
            Act::Frame(frame) => {
                if let Some(id) = link {
                    self.send_up(id, Up::Frame(frame));
                }
            }
            Act::Disconnect => {
                if let Some(id) = link {
                    self.conn(id).abandoned = true;
                    self.send_up(id, Up::Close);
                    self.clients[client].disconnected();
                }
            }
            Act::Reading(on) => {
                if let Some(id) = link {
                    self.conn(id).reading = on;
                    self.pump(id);
                }
            }
        }
    }

    pub(super) fn send_up(&mut self, id: ConnId, up: Up) {
        let at = self.now + self.dice.net.tailed(&self.config.net);
        let at = self.conn(id).up.arrival(at);
        self.queue.push(at, Event::Up(id, up));
    }
}
