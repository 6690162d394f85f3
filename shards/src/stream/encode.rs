//! Messages to bytes: one frame at a time, record bytes as parts of their own.

use bytes::{BufMut, Bytes, BytesMut};

use super::{Ack, Ends, FromFollower, FromLeader, Handle, Hello, MAGIC, Refusal, Subscribe};
use crate::frame::PREFIX;
use crate::ids::{LeaderEpoch, ShardId};

/// Gathers messages into frames. Record bytes are not copied.
#[derive(Debug, Default)]
pub struct Encoder {
    /// The parts before `open`.
    parts: Vec<Bytes>,
    /// The first part, once something follows it: its prefix is filled in at the end.
    first: Option<BytesMut>,
    open: BytesMut,
    /// Bytes of the frame's body so far.
    len: usize,
}

impl Encoder {
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of the frame's body so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// What was put since the last call as one frame with its prefix; nothing without a message.
    pub fn take(&mut self) -> Option<Vec<Bytes>> {
        if self.is_empty() {
            return None;
        }
        let len = u32::try_from(self.len).expect("a frame is closed before it has 4 GiB");
        let mut parts = std::mem::take(&mut self.parts);
        match self.first.take() {
            Some(mut first) => {
                first[..PREFIX].copy_from_slice(&len.to_be_bytes());
                parts[0] = first.freeze();
                if !self.open.is_empty() {
                    parts.push(self.open.split().freeze());
                }
            }
            None => {
                self.open[..PREFIX].copy_from_slice(&len.to_be_bytes());
                parts.push(self.open.split().freeze());
            }
        }
        self.len = 0;
        Some(parts)
    }

    /// Lets `put` add one message.
    fn put(&mut self, kind: u8, put: impl FnOnce(&mut BytesMut)) {
        if self.len == 0 {
            self.open.put_bytes(0, PREFIX);
        }
        let before = self.open.len();
        self.open.put_u8(kind);
        put(&mut self.open);
        self.len += self.open.len() - before;
    }

    /// Adds bytes as a part that is not copied.
    fn put_part(&mut self, part: Bytes) {
        self.len += part.len();
        let open = self.open.split();
        if self.first.is_none() {
            self.parts.push(Bytes::new());
            self.first = Some(open);
        } else if !open.is_empty() {
            self.parts.push(open.freeze());
        }
        self.parts.push(part);
    }

    fn hello(&mut self, hello: Hello) {
        self.put(0, |out| {
            out.put_u32(MAGIC);
            out.put_u16(hello.version);
            out.put_u32(hello.batch_bytes_max);
        });
    }

    pub fn from_follower(&mut self, message: FromFollower) {
        match message {
            FromFollower::Hello(hello) => self.hello(hello),
            FromFollower::Subscribe(Subscribe { handle, partition, leader_epoch, offset, last_epoch }) => {
                self.put(1, |out| {
                    out.put_u32(handle.0);
                    out.put_u128(partition.topic.0);
                    out.put_u32(partition.index.0);
                    out.put_u32(leader_epoch.0);
                    out.put_u64(offset.0);
                    out.put_i32(last_epoch.map_or(-1, LeaderEpoch::wire));
                });
            }
            FromFollower::Unsubscribe { handle } => self.put(2, |out| out.put_u32(handle.0)),
            FromFollower::Ack(Ack { handle, log_start, log_end, flushed_end }) => self.put(3, |out| {
                out.put_u32(handle.0);
                out.put_u64(log_start.0);
                out.put_u64(log_end.0);
                out.put_u64(flushed_end.0);
            }),
            FromFollower::Credit { bytes } => self.put(4, |out| out.put_u32(bytes)),
        }
    }

    pub fn from_leader(&mut self, message: FromLeader) {
        match message {
            FromLeader::Hello(hello) => self.hello(hello),
            FromLeader::Accepted { handle, leader_epoch, ends } => self.put(16, |out| {
                out.put_u32(handle.0);
                out.put_u32(leader_epoch.0);
                put_ends(out, ends);
            }),
            FromLeader::Diverging { handle, epoch, end } => self.put(17, |out| {
                out.put_u32(handle.0);
                out.put_u32(epoch.0);
                out.put_u64(end.0);
            }),
            FromLeader::Refused { handle, reason } => self.put(18, |out| {
                out.put_u32(handle.0);
                let (code, a, b) = match reason {
                    Refusal::NotLeader => (1, 0, 0),
                    Refusal::FencedEpoch => (2, 0, 0),
                    Refusal::UnknownEpoch => (3, 0, 0),
                    Refusal::NotReplica => (4, 0, 0),
                    Refusal::Moved { shard: ShardId(shard) } => (5, u64::from(shard), 0),
                    Refusal::OutOfRange { start, end } => (6, start.0, end.0),
                    Refusal::Unavailable => (7, 0, 0),
                };
                out.put_u8(code);
                out.put_u64(a);
                out.put_u64(b);
            }),
            FromLeader::Records { handle, leader_epoch, ends, batches } => {
                self.records(handle, leader_epoch, ends, vec![batches]);
            }
            FromLeader::Watermark { handle, ends } => self.put(20, |out| {
                out.put_u32(handle.0);
                put_ends(out, ends);
            }),
        }
    }

    /// [`FromLeader::Records`] with batches that lie in several places.
    pub fn records(&mut self, handle: Handle, leader_epoch: LeaderEpoch, ends: Ends, batches: Vec<Bytes>) {
        let len: usize = batches.iter().map(Bytes::len).sum();
        let len = u32::try_from(len).expect("a frame is closed before it has 4 GiB");
        self.put(19, |out| {
            out.put_u32(handle.0);
            out.put_u32(leader_epoch.0);
            put_ends(out, ends);
            out.put_u32(len);
        });
        for part in batches {
            self.put_part(part);
        }
    }
}

fn put_ends(out: &mut BytesMut, ends: Ends) {
    out.put_u64(ends.high_watermark.0);
    out.put_u64(ends.log_start.0);
}
