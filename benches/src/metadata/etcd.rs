//! etcd's Put over gRPC, as little of it as that needs: HTTP/2 (RFC 9113) with headers of the static table only
//! (RFC 7541), and a message of two fields.
//!
//! Each request is a stream, and streams end in any order: an answer counts when those before it have come too. It is
//! good when it has a message; a call that failed has only headers.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::load::{Answer, Arrival, Outbox, Reply, Ticket, Wire, WireError};

const VALUE_BYTES: usize = 200;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD_BYTES: usize = 9;
/// The server may send so much in all beyond the first 64 KiB; more than any run takes.
const WINDOW_BYTES: u32 = 1 << 30;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What came of an answer.
#[derive(Clone, Copy, Default)]
struct Stream {
    has_message: bool,
    has_ended: bool,
}

/// One connection that writes one key.
pub struct EtcdWire {
    address: SocketAddr,
    headers: Vec<u8>,
    message: Vec<u8>,
    next_stream: u32,
    streams: BTreeMap<i32, Stream>,
    /// Bytes at the start of what is unread that were looked at before.
    looked_at: usize,
    /// What goes out before the next request: the preface, and what the server wants acknowledged.
    due: Vec<u8>,
    nothing: Arc<[u8]>,
}

impl EtcdWire {
    pub fn new(address: SocketAddr, key: &str) -> EtcdWire {
        // POST and http.
        let mut headers = vec![0x83, 0x86];
        put_header(&mut headers, &[0x04], "/etcdserverpb.KV/Put");
        put_header(&mut headers, &[0x01], &address.to_string());
        // Number 31 of the table: content-type.
        put_header(&mut headers, &[0x0f, 16], "application/grpc");
        put_header(&mut headers, &[0x00, 2, b't', b'e'], "trailers");
        let mut put = Vec::new();
        put_field(&mut put, 1, key.as_bytes());
        put_field(&mut put, 2, &[b'v'; VALUE_BYTES]);
        let mut message = vec![0];
        message.extend_from_slice(&(put.len() as u32).to_be_bytes());
        message.extend_from_slice(&put);
        EtcdWire {
            address,
            headers,
            message,
            next_stream: 1,
            streams: BTreeMap::new(),
            looked_at: 0,
            due: Vec::new(),
            nothing: Arc::from([]),
        }
    }

    fn on_frame(&mut self, kind: u8, flags: u8, stream: i32, payload: &[u8]) -> Result<(), WireError> {
        match kind {
            SETTINGS if flags & ACK == 0 => put_frame(&mut self.due, SETTINGS, ACK, 0, &[]),
            PING if flags & ACK == 0 => put_frame(&mut self.due, PING, ACK, 0, payload),
            GOAWAY => return Err(WireError::Stopped("etcd closes the connection".into())),
            RST_STREAM => return Err(WireError::Stopped("etcd gave up a request".into())),
            DATA | HEADERS => {
                let seen = self.streams.entry(stream).or_default();
                seen.has_message |= kind == DATA && !payload.is_empty();
                seen.has_ended |= flags & END_STREAM != 0;
            }
            _ => {}
        }
        Ok(())
    }
}

fn put_header(out: &mut Vec<u8>, name: &[u8], value: &str) {
    assert!(value.len() < 127, "the length takes one byte");
    out.extend_from_slice(name);
    out.push(value.len() as u8);
    out.extend_from_slice(value.as_bytes());
}

/// A field of bytes, of protocol buffers.
fn put_field(out: &mut Vec<u8>, number: u8, value: &[u8]) {
    out.push(number << 3 | 2);
    let mut length = value.len();
    while length >= 128 {
        out.push((length & 127) as u8 | 128);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(value);
}

fn put_frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

impl Wire for EtcdWire {
    fn encode(&mut self, ticket: &mut Ticket, out: &mut Outbox) {
        let mut bytes = std::mem::take(&mut self.due);
        put_frame(&mut bytes, HEADERS, END_HEADERS, self.next_stream, &self.headers);
        put_frame(&mut bytes, DATA, END_STREAM, self.next_stream, &self.message);
        ticket.correlation = self.next_stream.cast_signed();
        self.next_stream += 2;
        out.push(&bytes, &self.nothing);
    }

    fn decode(
        &mut self,
        ticket: &Ticket,
        bytes: &[u8],
        _: &mut Vec<Arrival>,
    ) -> Result<Option<Reply>, WireError> {
        while let Some(head) = bytes[self.looked_at..].first_chunk::<HEAD_BYTES>() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let stream = i32::from_be_bytes([head[5] & 127, head[6], head[7], head[8]]);
            let begin = self.looked_at + HEAD_BYTES;
            let Some(payload) = bytes.get(begin..begin + length) else { break };
            self.looked_at = begin + length;
            self.on_frame(head[3], head[4], stream, payload)?;
        }
        let Some(Stream { has_message, has_ended: true }) = self.streams.get(&ticket.correlation).copied()
        else {
            return Ok(None);
        };
        self.streams.remove(&ticket.correlation);
        let answer = if has_message { Answer::Done } else { Answer::Refused { code: -1 } };
        let (records, bytes) = (u64::from(has_message), self.message.len() as u64);
        Ok(Some(Reply { consumed: std::mem::take(&mut self.looked_at), records, bytes, answer }))
    }

    fn locate(&mut self) -> io::Result<SocketAddr> {
        self.next_stream = 1;
        self.streams.clear();
        self.looked_at = 0;
        self.due = PREFACE.to_vec();
        put_frame(&mut self.due, SETTINGS, 0, 0, &[]);
        put_frame(&mut self.due, WINDOW_UPDATE, 0, 0, &WINDOW_BYTES.to_be_bytes());
        Ok(self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> (EtcdWire, Ticket) {
        let mut wire = EtcdWire::new(([127, 0, 0, 1], 2379).into(), "k");
        wire.locate().unwrap();
        let mut ticket = Ticket::new(1, 0, 0);
        wire.encode(&mut ticket, &mut Outbox::default());
        (wire, ticket)
    }

    #[test]
    fn an_answer_ends_with_its_stream_and_pings_are_answered_with_the_next_request() {
        let (mut wire, ticket) = wire();
        let mut bytes = Vec::new();
        put_frame(&mut bytes, SETTINGS, 0, 0, &[]);
        put_frame(&mut bytes, HEADERS, END_HEADERS, 1, &[0x88]);
        put_frame(&mut bytes, DATA, 0, 1, &[0, 0, 0, 0, 2, 10, 0]);
        put_frame(&mut bytes, PING, 0, 0, &[7; 8]);
        put_frame(&mut bytes, HEADERS, END_HEADERS | END_STREAM, 1, &[]);
        for cut in 0..bytes.len() {
            assert_eq!(wire.decode(&ticket, &bytes[..cut], &mut Vec::new()).unwrap(), None);
        }
        let reply = wire.decode(&ticket, &bytes, &mut Vec::new()).unwrap().unwrap();
        assert_eq!((reply.consumed, reply.answer), (bytes.len(), Answer::Done));
        let (mut next, mut out, mut sent) = (Ticket::new(2, 0, 0), Outbox::default(), Vec::new());
        wire.encode(&mut next, &mut out);
        out.write_to(&mut sent).unwrap();
        assert_eq!(next.correlation, 3);
        let mut acks = Vec::new();
        put_frame(&mut acks, SETTINGS, ACK, 0, &[]);
        put_frame(&mut acks, PING, ACK, 0, &[7; 8]);
        assert!(sent.starts_with(&acks));
    }

    #[test]
    fn streams_may_end_in_any_order() {
        let (mut wire, first) = wire();
        let mut second = Ticket::new(2, 0, 0);
        wire.encode(&mut second, &mut Outbox::default());
        let mut bytes = Vec::new();
        let mut end = |stream| {
            put_frame(&mut bytes, DATA, 0, stream, &[0, 0, 0, 0, 2, 10, 0]);
            put_frame(&mut bytes, HEADERS, END_HEADERS | END_STREAM, stream, &[]);
            bytes.clone()
        };
        let (one, both) = (end(3), end(1));
        let nothing = &mut Vec::new();
        assert_eq!(wire.decode(&first, &one, nothing).unwrap(), None);
        let reply = wire.decode(&first, &both, nothing).unwrap().unwrap();
        assert_eq!((reply.consumed, reply.answer), (both.len(), Answer::Done));
        let reply = wire.decode(&second, &[], nothing).unwrap().unwrap();
        assert_eq!((reply.consumed, reply.answer), (0, Answer::Done));
    }

    #[test]
    fn a_call_that_failed_has_no_message() {
        let (mut wire, ticket) = wire();
        let mut bytes = Vec::new();
        put_frame(&mut bytes, HEADERS, END_HEADERS | END_STREAM, 1, &[0x88]);
        let reply = wire.decode(&ticket, &bytes, &mut Vec::new()).unwrap().unwrap();
        assert_eq!(reply.answer, Answer::Refused { code: -1 });
        let mut bytes = Vec::new();
        put_frame(&mut bytes, GOAWAY, 0, 0, &[0; 8]);
        assert!(wire.decode(&ticket, &bytes, &mut Vec::new()).is_err());
    }
}
