//! What one end of a connection has still to send: bodies by class, cut into chunks as room comes, the most urgent first.
//!
//! Pure. It holds at most what its bounds allow; a full one says so at once.

use std::collections::VecDeque;

use bytes::Bytes;

use super::Class;
use super::auth::session::FrameKey;
use super::frame::{self, CHUNK_MAX, FRAME_MAX, FRAME_OVERHEAD, Header, Type};

/// A chunk of a body that does not fit the room left is cut at least this large, or waits for the next round.
const CHUNK_MIN: usize = 4096;

/// What a body costs besides its bytes, so that empty ones are bounded too.
const COST_OF_ONE: usize = 64;

/// A body on its way out.
#[derive(Debug)]
pub struct Outgoing {
    pub what: Type,
    pub class: Class,
    pub kind: u16,
    pub call: u64,
    pub body: Bytes,
}

/// There is no room; nothing was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoRoom;

pub struct Outbox {
    queues: [VecDeque<(Outgoing, usize)>; 3],
    /// What whole bodies cost, by class; one that is half sent counts as a whole.
    bytes: [usize; 3],
    bytes_max: [usize; 3],
    ping: bool,
    pong: bool,
}

impl Outbox {
    /// `bytes_max` by class. A body that is larger finds room while its queue is empty.
    pub fn new(bytes_max: [usize; 3]) -> Self {
        Self { queues: Default::default(), bytes: [0; 3], bytes_max, ping: false, pong: false }
    }

    pub fn push(&mut self, outgoing: Outgoing) -> Result<(), NoRoom> {
        let class = outgoing.class as usize;
        let bytes = self.bytes[class] + cost(&outgoing);
        if bytes > self.bytes_max[class] && !self.queues[class].is_empty() {
            return Err(NoRoom);
        }
        self.bytes[class] = bytes;
        self.queues[class].push_back((outgoing, 0));
        Ok(())
    }

    /// Takes back a body of which nothing was sent yet; `false` when it is not there or on its way.
    pub fn cancel(&mut self, class: Class, call: u64) -> bool {
        let queue = &mut self.queues[class as usize];
        let Some(at) = queue.iter().position(|(o, sent)| o.call == call && *sent == 0) else { return false };
        let cancelled = queue.remove(at).map_or(0, |(o, _)| cost(&o));
        self.bytes[class as usize] -= cancelled;
        true
    }

    pub fn ping(&mut self) {
        self.ping = true;
    }

    pub fn pong(&mut self) {
        self.pong = true;
    }

    pub fn is_empty(&self) -> bool {
        !self.ping && !self.pong && self.queues.iter().all(VecDeque::is_empty)
    }

    pub fn clear(&mut self) {
        *self = Self::new(self.bytes_max);
    }

    /// Puts the next frames behind `out`, up to [`FRAME_MAX`] bytes in all: what is written in one go. Returns how many.
    /// A body that becomes urgent after that waits for these bytes and no others.
    pub fn fill(&mut self, key: &mut FrameKey, out: &mut Vec<u8>) -> u64 {
        let end = out.len() + FRAME_MAX;
        let mut frames = 0;
        for (flag, what) in [(&mut self.pong, Type::Pong), (&mut self.ping, Type::Ping)] {
            if std::mem::take(flag) {
                frame::seal(&Header::bare(what), &[], key, out);
                frames += 1;
            }
        }
        for class in Class::ALL {
            let queue = &mut self.queues[class as usize];
            while let Some((outgoing, sent)) = queue.front_mut() {
                let left = outgoing.body.len() - *sent;
                let Some(room) = (end - out.len()).checked_sub(FRAME_OVERHEAD) else { return frames };
                if left > room && room < CHUNK_MIN {
                    return frames;
                }
                let len = left.min(room).min(CHUNK_MAX);
                let header = Header {
                    chunk_len: len,
                    what: outgoing.what,
                    class,
                    kind: outgoing.kind,
                    call: outgoing.call,
                    body_len: outgoing.body.len(),
                    at: *sent,
                };
                frame::seal(&header, &outgoing.body[*sent..*sent + len], key, out);
                frames += 1;
                *sent += len;
                if *sent == outgoing.body.len() {
                    self.bytes[class as usize] -= cost(outgoing);
                    queue.pop_front();
                }
            }
        }
        frames
    }
}

fn cost(outgoing: &Outgoing) -> usize {
    outgoing.body.len() + COST_OF_ONE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::auth::session::tests::pair;
    use crate::net::frame::{Opened, open};

    const MIB: usize = 1 << 20;

    fn body(class: Class, call: u64, len: usize) -> Outgoing {
        Outgoing { what: Type::Call, class, kind: 1, call, body: Bytes::from(vec![0; len]) }
    }

    #[test]
    fn an_urgent_body_waits_for_one_write_of_a_chunk_and_no_more() {
        let (mut a, mut b) = pair();
        let mut outbox = Outbox::new([MIB, MIB, 65 * MIB]);
        for call in 0..8 {
            outbox.push(body(Class::Bulk, call, 8 * MIB)).unwrap();
        }
        let mut bytes = Vec::new();
        outbox.fill(&mut a.send, &mut bytes);
        assert_eq!(bytes.len(), FRAME_MAX, "one write");
        outbox.push(body(Class::Append, 100, 3 * CHUNK_MAX)).unwrap();
        outbox.fill(&mut a.send, &mut bytes);
        outbox.push(body(Class::Urgent, 101, 10)).unwrap();
        while !outbox.is_empty() {
            let before = bytes.len();
            outbox.fill(&mut a.send, &mut bytes);
            assert!(bytes.len() - before <= FRAME_MAX);
        }
        let mut order = Vec::new();
        let mut rest = &bytes[..];
        while let Some(Opened { header, used, .. }) = open(rest, &mut b.receive).unwrap() {
            if order.last() != Some(&header.call) {
                order.push(header.call);
            }
            rest = &rest[used..];
        }
        assert!(rest.is_empty());
        assert_eq!(order, [0, 100, 101, 100, 0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn a_full_class_has_no_room_and_leaves_the_others_theirs() {
        let mut outbox = Outbox::new([1000; 3]);
        outbox.push(body(Class::Append, 1, 5000)).unwrap();
        assert_eq!(outbox.push(body(Class::Append, 2, 0)), Err(NoRoom));
        outbox.push(body(Class::Urgent, 3, 900)).unwrap();
        let mut empty = 0;
        while outbox.push(body(Class::Bulk, 4, 0)).is_ok() {
            empty += 1;
        }
        assert_eq!(empty, 1000 / COST_OF_ONE, "empty bodies are bounded too");
        assert!(outbox.cancel(Class::Append, 1));
        outbox.push(body(Class::Append, 2, 0)).unwrap();
    }

    #[test]
    fn what_is_on_its_way_is_not_taken_back() {
        let (mut a, _) = pair();
        let mut outbox = Outbox::new([MIB; 3]);
        outbox.push(body(Class::Append, 1, 2 * CHUNK_MAX)).unwrap();
        outbox.push(body(Class::Append, 2, 10)).unwrap();
        outbox.fill(&mut a.send, &mut Vec::new());
        assert!(!outbox.cancel(Class::Append, 1));
        assert!(outbox.cancel(Class::Append, 2));
        assert!(!outbox.cancel(Class::Append, 2));
        outbox.fill(&mut a.send, &mut Vec::new());
        assert!(outbox.is_empty());
        assert_eq!(outbox.bytes, [0; 3]);
    }
}
