//! For machines that serve no client protocol.

use std::net::SocketAddr;

use bytes::Bytes;
use highwater_shards::front::{Cx, Front};
use highwater_shards::mail::{Answer, Token};

pub struct NoFront;

impl Front for NoFront {
    type Session = ();
    type View = ();
    type Request = ();
    type Reply = ();

    fn open(&mut self, _: &mut Cx<'_, Self>, _: SocketAddr) {}
    fn on_frame(&mut self, _: &mut Cx<'_, Self>, (): &mut (), _: Bytes) {}
    fn on_answer(&mut self, _: &mut Cx<'_, Self>, (): &mut (), _: Token, _: Answer) {}
    fn on_reply(&mut self, _: &mut Cx<'_, Self>, (): &mut (), _: Token, (): ()) {}
    fn on_timeout(&mut self, _: &mut Cx<'_, Self>, (): &mut (), _: Token) {}
    fn on_closed(&mut self, _: &mut Cx<'_, Self>, (): &mut ()) {}
    fn in_flight(&self, (): &()) -> usize {
        0
    }
}
