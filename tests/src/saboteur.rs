//! A machine around a machine that breaks what goes in and out of it: planted bugs for the real shard, by which the
//! checkers are checked once more.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use highwater_shards::log::disk::{DiskEvent, DiskOp, OpNo};
use highwater_shards::mail::{Answer, FromControl, ShardMail};
use highwater_shards::shard::{Input, Machine, Output};
use highwater_shards::time::Instant;

use crate::config::Config;
use crate::world::{Builder, FrontOf, Plan};

/// What is broken on the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sabotage {
    /// A write is reported before the disk has it.
    EarlyWrites,
    /// A sync is reported and never done.
    NoSyncs,
    /// One write in some is reported and never done.
    LostWrites,
    LostSends,
    /// A byte of what is read from the disk is wrong, now and then.
    WrongReads,
    /// One mail in some is lost on its way to another shard.
    LostMail,
    /// Answers between shards overtake each other.
    ReorderedMail,
    /// The shard never hears that it shall stop.
    LostStop,
    /// An answer to an append names another offset, now and then.
    WrongOffsets,
}

impl Sabotage {
    pub const ALL: [Self; 9] = [
        Self::EarlyWrites,
        Self::NoSyncs,
        Self::LostWrites,
        Self::LostSends,
        Self::WrongReads,
        Self::LostMail,
        Self::ReorderedMail,
        Self::LostStop,
        Self::WrongOffsets,
    ];
}

/// Builds sabotaged nodes.
#[derive(Clone, Copy, Debug)]
pub struct SaboteurBuilder<B> {
    pub inner: B,
    pub sabotage: Sabotage,
}

impl<B: Builder> Builder for SaboteurBuilder<B> {
    type Wire = B::Wire;
    type Machine = Saboteur<B::Machine>;

    fn wire(&self, config: &Config) -> B::Wire {
        self.inner.wire(config)
    }

    fn build(&mut self, plan: Plan<'_, FrontOf<B>>) -> Saboteur<B::Machine> {
        let inner = self.inner.build(plan);
        Saboteur {
            inner,
            sabotage: self.sabotage,
            now: Instant::ZERO,
            told: Vec::new(),
            count: 0,
            late: VecDeque::new(),
        }
    }
}

pub struct Saboteur<M: Machine> {
    inner: M,
    sabotage: Sabotage,
    now: Instant,
    /// Operations whose end was reported already.
    told: Vec<OpNo>,
    count: u64,
    /// Outputs held back to come after the next one.
    late: VecDeque<Output<M::Front>>,
}

impl<M: Machine> Saboteur<M> {
    fn every(&mut self, n: u64) -> bool {
        self.count += 1;
        self.count.is_multiple_of(n)
    }

    /// Lies to the machine about an operation, and says what still becomes of it.
    fn disk(&mut self, op: DiskOp) -> Option<DiskOp> {
        let (no, event, is_write) = match &op {
            DiskOp::Write { op, .. } => (*op, DiskEvent::Written { op: *op, result: Ok(()) }, true),
            DiskOp::Sync { op, .. } => (*op, DiskEvent::Synced { op: *op, result: Ok(()) }, false),
            _ => return Some(op),
        };
        let sabotage = self.sabotage;
        match sabotage {
            Sabotage::EarlyWrites if is_write => {
                self.told.push(no);
                self.inner.handle(self.now, Input::Disk(event));
                Some(op)
            }
            Sabotage::NoSyncs if is_write => Some(match op {
                DiskOp::Write { op, file, position, parts, .. } => {
                    DiskOp::Write { op, file, position, parts, sync: false }
                }
                other => other,
            }),
            Sabotage::NoSyncs => {
                self.inner.handle(self.now, Input::Disk(event));
                None
            }
            Sabotage::LostWrites if is_write && self.every(7) => {
                self.inner.handle(self.now, Input::Disk(event));
                None
            }
            _ => Some(op),
        }
    }

    fn spoil(&mut self, bytes: Bytes) -> Bytes {
        if bytes.len() < 200 || !self.every(5) {
            return bytes;
        }
        let mut wrong = BytesMut::from(&bytes[..]);
        let middle = wrong.len() / 2;
        wrong[middle] ^= 1;
        wrong.freeze()
    }
}

impl<M: Machine> Machine for Saboteur<M> {
    type Front = M::Front;

    fn handle(&mut self, now: Instant, mut input: Input<M::Front>) {
        self.now = now;
        match &mut input {
            Input::Disk(DiskEvent::Written { op, .. }) if self.told.contains(op) => {
                self.told.retain(|o| o != op);
                return;
            }
            Input::Disk(DiskEvent::Read { result: Ok(bytes), .. })
                if self.sabotage == Sabotage::WrongReads =>
            {
                *bytes = self.spoil(bytes.clone());
            }
            Input::Control(FromControl::Stop { .. }) if self.sabotage == Sabotage::LostStop => return,
            Input::Mail(ShardMail::Answer { answer: Answer::Appended(Ok(a)), .. })
                if self.sabotage == Sabotage::WrongOffsets && a.base_offset.0 % 5 == 3 =>
            {
                a.base_offset.0 += 1;
            }
            _ => {}
        }
        self.inner.handle(now, input);
    }

    fn poll_output(&mut self) -> Option<Output<M::Front>> {
        loop {
            let Some(output) = self.inner.poll_output() else { return self.late.pop_front() };
            match output {
                Output::Disk(op) => {
                    if let Some(op) = self.disk(op) {
                        return Some(Output::Disk(op));
                    }
                }
                Output::Send { .. } if self.sabotage == Sabotage::LostSends && self.every(30) => {}
                Output::Mail { .. } if self.sabotage == Sabotage::LostMail && self.every(30) => {}
                output @ Output::Mail { .. } if self.sabotage == Sabotage::ReorderedMail && self.every(3) => {
                    self.late.push_back(output);
                }
                output => return Some(output),
            }
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.inner.poll_timeout()
    }
}
