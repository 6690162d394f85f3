//! Mail of one shard: the rings to and from the other cores, what found a ring full, and whom to wake.
//!
//! Owned by one shard core. A batch of messages to one core costs one wake-up at most, by an operation of this core's
//! own io_uring where the kernel has it, by the other's eventfd elsewhere. What finds a ring full waits in order and is
//! tried again each turn. It cannot grow without bound: shards and the control core bound the operations that they
//! have outstanding toward each other, and each of those is one message; [`OVERFLOW_MAX`] is far above and catches
//! the bug that would break this.

#![expect(unsafe_code, reason = "driver: operations of the ring")]

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use io_uring::{opcode, types};

use super::ring::{Completion, Kind, Ring, Tag};
use crate::front::Front;
use crate::ids::ShardId;
use crate::mail::{ShardMail, ToControl};
use crate::reactor::handover::ToDriver;
use crate::reactor::mailbox::{Doorbell, Full, Receiver, Sender};

/// Messages that wait for room toward one core.
const OVERFLOW_MAX: usize = 1 << 20;

/// How long a core with such messages sleeps at most: the receiver does not say when it made room.
const RETRY: Duration = Duration::from_micros(200);

struct Outbox<T> {
    ring: Sender<T>,
    overflow: VecDeque<T>,
    /// Something was pushed since the receiver was last told.
    pushed: bool,
}

impl<T> Outbox<T> {
    fn new(ring: Sender<T>) -> Self {
        Self { ring, overflow: VecDeque::new(), pushed: false }
    }

    fn send(&mut self, message: T) {
        if self.overflow.is_empty() {
            match self.ring.push(message) {
                Ok(()) => self.pushed = true,
                Err(Full(message)) => self.overflow.push_back(message),
            }
        } else {
            assert!(
                self.overflow.len() < OVERFLOW_MAX,
                "a core has a bounded number of operations outstanding"
            );
            self.overflow.push_back(message);
        }
    }

    /// Moves what waits. Whether the receiver has to be woken.
    fn flush(&mut self) -> bool {
        while let Some(message) = self.overflow.pop_front() {
            match self.ring.push(message) {
                Ok(()) => self.pushed = true,
                Err(Full(message)) => {
                    self.overflow.push_front(message);
                    break;
                }
            }
        }
        std::mem::replace(&mut self.pushed, false) && self.ring.doorbell().knock()
    }
}

/// One shard's ends of all mailboxes.
pub(crate) struct Mailboxes<F: Front> {
    /// By shard; none toward itself.
    pub to_shards: Vec<Option<Sender<ShardMail>>>,
    pub from_shards: Vec<Receiver<ShardMail>>,
    pub to_control: Sender<ToControl<F::Request>>,
    pub from_control: Receiver<ToDriver<F>>,
    /// What this shard sleeps on.
    pub doorbell: Arc<Doorbell>,
}

/// What came from another core.
pub(super) enum Came<F: Front> {
    FromShard(ShardMail),
    FromControl(ToDriver<F>),
}

#[derive(Clone, Copy, Default, Debug)]
pub(super) struct PostCounters {
    pub wakes: u64,
    /// Messages that found a ring full.
    pub overflowed: u64,
}

pub(super) struct Post<F: Front> {
    to_shards: Vec<Option<Outbox<ShardMail>>>,
    from_shards: Vec<Receiver<ShardMail>>,
    to_control: Outbox<ToControl<F::Request>>,
    from_control: Receiver<ToDriver<F>>,
    doorbell: Arc<Doorbell>,
    /// The io_uring of each shard.
    rings: Vec<RawFd>,
    pub counters: PostCounters,
}

impl<F: Front> Post<F> {
    pub fn new(mail: Mailboxes<F>, rings: Vec<RawFd>) -> Self {
        assert_eq!(mail.to_shards.len(), rings.len(), "every shard has a ring");
        Self {
            to_shards: mail.to_shards.into_iter().map(|ring| ring.map(Outbox::new)).collect(),
            from_shards: mail.from_shards,
            to_control: Outbox::new(mail.to_control),
            from_control: mail.from_control,
            doorbell: mail.doorbell,
            rings,
            counters: PostCounters::default(),
        }
    }

    pub fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    pub fn send_to_shard(&mut self, to: ShardId, mail: ShardMail) {
        let outbox = self.to_shards[usize::from(to.0)].as_mut().expect("a shard sends no mail to itself");
        outbox.send(mail);
        self.counters.overflowed += u64::from(!outbox.overflow.is_empty());
    }

    pub fn send_to_control(&mut self, message: ToControl<F::Request>) {
        self.to_control.send(message);
        self.counters.overflowed += u64::from(!self.to_control.overflow.is_empty());
    }

    /// Hands what came to `each`: of every ring at most as much as it holds, so that one busy sender cannot keep
    /// this core from its other work.
    pub fn drain(&self, mut each: impl FnMut(Came<F>)) {
        for ring in &self.from_shards {
            for mail in std::iter::from_fn(|| ring.pop()).take(ring.slots()) {
                each(Came::FromShard(mail));
            }
        }
        let ring = &self.from_control;
        for message in std::iter::from_fn(|| ring.pop()).take(ring.slots()) {
            each(Came::FromControl(message));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.from_control.is_empty() && self.from_shards.iter().all(Receiver::is_empty)
    }

    /// Wakes who got something and sleeps.
    pub fn flush(&mut self, ring: &mut Ring) {
        for (to, outbox) in (0..).zip(&mut self.to_shards) {
            let Some(outbox) = outbox else { continue };
            if !outbox.flush() {
                continue;
            }
            self.counters.wakes += 1;
            if ring.kernel.msg_ring {
                let fd = types::Fd(self.rings[to as usize]);
                let entry = opcode::MsgRingData::new(fd, 0, Tag::WOKEN.to_bits(), None).build();
                // SAFETY: the operation points to no memory.
                unsafe { ring.push(entry, Tag::slot(Kind::Wake, to)) };
            } else {
                outbox.ring.doorbell().wake();
            }
        }
        if self.to_control.flush() {
            self.counters.wakes += 1;
            self.to_control.ring.doorbell().wake();
        }
    }

    /// A wake-up that the ring could not deliver (the other's ring is gone, or full on an old kernel) goes by eventfd.
    pub fn on_wake_completion(&self, c: &Completion) {
        if c.result < 0
            && let Some(Some(outbox)) = self.to_shards.get(c.tag.slot as usize)
        {
            outbox.ring.doorbell().wake();
        }
    }

    /// How long this core may sleep, when messages wait for room.
    pub fn retry(&self) -> Option<Duration> {
        let waits = !self.to_control.overflow.is_empty()
            || self.to_shards.iter().flatten().any(|o| !o.overflow.is_empty());
        waits.then_some(RETRY)
    }
}
