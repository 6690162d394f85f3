//! The connections between clients and shards, with the kernel's buffers between them.
//!
//! A connection carries whole frames towards the shard, as a driver cuts them, and bytes towards the client, in
//! pieces that have nothing to do with the frames.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use highwater_shards::front::CloseReason;
use highwater_shards::ids::{ConnId, ShardId};

use crate::queue::Lane;
use crate::rng::Rng;
use crate::shadow::Boot;

/// From the client to the shard.
#[derive(Debug)]
pub enum Up {
    Open,
    Frame(Bytes),
    Close,
}

#[derive(Debug)]
pub struct Conn {
    pub id: ConnId,
    pub shard: ShardId,
    pub client: usize,
    pub boot: Boot,
    pub up: Lane,
    /// The shard took notice of it and has not yet been told that it is gone.
    pub open: bool,
    /// The client has gone away.
    pub abandoned: bool,
    /// The shard's end is closed; what is in `kernel` may still arrive.
    pub closed: bool,
    receiving: bool,
    /// Frames that are delivered though the shard does not want any more.
    cut_already: u64,
    held: VecDeque<Bytes>,
    unsent: VecDeque<Bytes>,
    unsent_bytes: usize,
    closing: Option<CloseReason>,
    /// Taken by the kernel and not yet by the client.
    kernel: BytesMut,
    pub reading: bool,
    pub taking: bool,
    pub arriving: bool,
}

impl Conn {
    pub fn new(id: ConnId, shard: ShardId, client: usize, boot: Boot) -> Self {
        Self {
            id,
            shard,
            client,
            boot,
            up: Lane::default(),
            open: false,
            abandoned: false,
            closed: false,
            receiving: true,
            cut_already: 0,
            held: VecDeque::new(),
            unsent: VecDeque::new(),
            unsent_bytes: 0,
            closing: None,
            kernel: BytesMut::new(),
            reading: true,
            taking: false,
            arriving: false,
        }
    }

    /// A frame reached the shard's end; returns it if the driver delivers it now.
    pub fn frame(&mut self, frame: Bytes) -> Option<Bytes> {
        if self.receiving {
            return Some(frame);
        }
        if self.held.is_empty() && self.cut_already > 0 {
            self.cut_already -= 1;
            return Some(frame);
        }
        self.held.push_back(frame);
        None
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

    pub fn send(&mut self, parts: Vec<Bytes>) {
        if self.closing.is_some() {
            return;
        }
        self.unsent_bytes += parts.iter().map(Bytes::len).sum::<usize>();
        self.unsent.extend(parts);
    }

    /// The shard closes; returns the reason once everything is out that is to go out.
    pub fn close(&mut self, flush: bool, reason: CloseReason) -> Option<CloseReason> {
        if !flush {
            self.unsent.clear();
            self.unsent_bytes = 0;
        }
        self.closing = Some(reason);
        self.closing.filter(|_| self.unsent_bytes == 0)
    }

    pub fn is_flushed_for_close(&self) -> Option<CloseReason> {
        self.closing.filter(|_| self.unsent_bytes == 0)
    }

    /// The kernel has room for some of what the shard sent.
    pub fn can_take(&self, socket_bytes: usize) -> bool {
        self.unsent_bytes > 0 && self.kernel.len() < socket_bytes
    }

    /// The kernel takes a piece; returns its length.
    pub fn take(&mut self, socket_bytes: usize, rng: &mut Rng) -> usize {
        let most = self.unsent_bytes.min(socket_bytes.saturating_sub(self.kernel.len()));
        // Mostly all that fits, now and then any part of it.
        let piece = if rng.chance(800) { most } else { 1 + rng.index(most.max(1)) }.min(most);
        let mut left = piece;
        while left > 0 {
            let part = self.unsent.front_mut().expect("unsent_bytes counts them");
            let n = left.min(part.len());
            self.kernel.extend_from_slice(&part.split_to(n));
            left -= n;
            if part.is_empty() {
                self.unsent.pop_front();
            }
        }
        self.unsent_bytes -= piece;
        piece
    }

    pub fn has_arrivals(&self) -> bool {
        !self.abandoned && ((self.reading && !self.kernel.is_empty()) || self.closed)
    }

    /// What the client reads now.
    pub fn arrivals(&mut self) -> BytesMut {
        std::mem::take(&mut self.kernel)
    }

    /// The node is gone; what the kernel had may be gone with it.
    pub fn cut_off(&mut self, rng: &mut Rng) {
        self.closed = true;
        self.open = false;
        self.unsent.clear();
        self.unsent_bytes = 0;
        if rng.flip() {
            self.kernel.clear();
        }
    }
}
