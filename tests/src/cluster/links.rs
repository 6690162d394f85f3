//! A connection between two shards of different nodes: two directions of bytes, each with what the sender's kernel has not
//! taken yet, what is under way, and what the receiver has not made a frame of yet.
//!
//! Pure data; [`super::world`] says when bytes move and when the ends learn that it is over.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use highwater_shards::front::CloseReason;
use highwater_shards::ids::{ConnId, ShardId};
use highwater_shards::time::Instant;

use crate::queue::Lane;
use crate::rng::Rng;

/// One of the two ends: the one that dialed is 0.
pub type Side = usize;

#[derive(Debug)]
pub struct Link {
    pub ends: [End; 2],
}

#[derive(Debug)]
pub struct End {
    pub node: usize,
    pub shard: ShardId,
    pub life: u32,
    pub conn: ConnId,
    /// The shard was told of it and not yet that it is over.
    pub open: bool,
    /// This end is over, whether or not the other one knows.
    pub closed: bool,
    unsent: VecDeque<Bytes>,
    unsent_bytes: usize,
    closing: Option<CloseReason>,
    /// Taken by the kernel and not known to have arrived.
    unconfirmed: usize,
    /// Under way to the other end, with the earliest time of arrival.
    pipe: VecDeque<(Instant, Bytes)>,
    lane: Lane,
    /// Nothing that is sent from now on arrives.
    severed: bool,
    pub taking: bool,
    pub moving: bool,
    /// Arrived here, and no whole frame yet.
    received: BytesMut,
    receiving: bool,
    /// Frames that are delivered though the shard does not want any more.
    cut_already: u64,
    held: VecDeque<Bytes>,
    /// Nothing was heard from the other end although something was to be, since then.
    pub silent_since: Option<Instant>,
}

impl End {
    pub fn new(node: usize, shard: ShardId, life: u32, conn: ConnId) -> Self {
        Self {
            node,
            shard,
            life,
            conn,
            open: false,
            closed: false,
            unsent: VecDeque::new(),
            unsent_bytes: 0,
            closing: None,
            unconfirmed: 0,
            pipe: VecDeque::new(),
            lane: Lane::default(),
            severed: false,
            taking: false,
            moving: false,
            received: BytesMut::new(),
            receiving: true,
            cut_already: 0,
            held: VecDeque::new(),
            silent_since: None,
        }
    }

    pub fn send(&mut self, parts: Vec<Bytes>) {
        if self.closing.is_none() {
            self.unsent_bytes += parts.iter().map(Bytes::len).sum::<usize>();
            self.unsent.extend(parts);
        }
    }

    /// The shard closes; returns the reason once everything is out that is to go out.
    pub fn close(&mut self, flush: bool, reason: CloseReason) -> Option<CloseReason> {
        if !flush {
            self.unsent.clear();
            self.unsent_bytes = 0;
        }
        self.closing.get_or_insert(reason);
        self.flushed_for_close()
    }

    pub fn flushed_for_close(&self) -> Option<CloseReason> {
        self.closing.filter(|_| self.unsent_bytes == 0)
    }

    pub fn can_take(&self, socket_bytes: usize) -> bool {
        self.unsent_bytes > 0 && self.unconfirmed < socket_bytes
    }

    /// The kernel takes a piece; returns its length. It arrives at `at` or later.
    pub fn take(&mut self, socket_bytes: usize, at: Instant, rng: &mut Rng) -> usize {
        let most = self.unsent_bytes.min(socket_bytes.saturating_sub(self.unconfirmed));
        let piece = if rng.chance(800) { most } else { 1 + rng.index(most.max(1)) }.min(most);
        let mut bytes = BytesMut::with_capacity(piece);
        while bytes.len() < piece {
            let part = self.unsent.front_mut().expect("unsent_bytes counts them");
            let n = (piece - bytes.len()).min(part.len());
            bytes.extend_from_slice(&part.split_to(n));
            if part.is_empty() {
                self.unsent.pop_front();
            }
        }
        self.unsent_bytes -= piece;
        self.unconfirmed += piece;
        if !self.severed {
            let at = self.lane.arrival(at);
            self.pipe.push_back((at, bytes.freeze()));
        }
        piece
    }

    /// Whether something is under way, and when the first of it arrives.
    pub fn next_arrival(&self) -> Option<Instant> {
        self.pipe.front().map(|p| p.0)
    }

    pub fn arrive(&mut self, now: Instant) -> Option<Bytes> {
        self.pipe.front().is_some_and(|p| p.0 <= now).then(|| self.pipe.pop_front().expect("just seen").1)
    }

    pub fn confirmed(&mut self, bytes: usize) {
        self.unconfirmed -= bytes;
    }

    /// What has arrived is known to have arrived, at last.
    pub fn confirm_arrived(&mut self) {
        self.unconfirmed = self.pipe.iter().map(|p| p.1.len()).sum();
    }

    /// Bytes came in; the frames that the driver cuts of them and delivers now.
    pub fn receive_bytes(&mut self, bytes: &[u8]) -> Vec<Bytes> {
        self.received.extend_from_slice(bytes);
        let mut frames = Vec::new();
        while let Some(prefix) = self.received.first_chunk::<4>() {
            let len = u32::from_be_bytes(*prefix) as usize;
            if self.received.len() < 4 + len {
                break;
            }
            self.received.advance(4);
            let frame = self.received.split_to(len).freeze();
            if self.receiving {
                frames.push(frame);
            } else if self.held.is_empty() && self.cut_already > 0 {
                self.cut_already -= 1;
                frames.push(frame);
            } else {
                self.held.push_back(frame);
            }
        }
        frames
    }

    /// The shard said whether it wants frames; returns those that were held up.
    pub fn receive(&mut self, on: bool, rng: &mut Rng) -> VecDeque<Bytes> {
        self.receiving = on;
        if on {
            return std::mem::take(&mut self.held);
        }
        self.cut_already = rng.below(4);
        VecDeque::new()
    }

    /// Of what is under way only a part will arrive, and nothing after it.
    pub fn lose_some(&mut self, rng: &mut Rng) {
        self.severed = true;
        let kept = rng.index(self.pipe.len() + 1);
        self.pipe.truncate(kept);
    }
}
