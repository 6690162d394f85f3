//! Who waits at one partition: produces for the high watermark, fetches for something to read. Floor 1, pure.

use std::collections::VecDeque;

use crate::ids::Offset;
use crate::mail::{Appended, ReplyTo};
use crate::time::Instant;

/// A produce with `Acks::All` that is answered when the high watermark reaches `end`.
#[derive(Clone, Copy, Debug)]
pub struct Waiter {
    pub end: Offset,
    pub deadline: Instant,
    pub since: Instant,
    pub reply_to: ReplyTo,
    pub appended: Appended,
}

/// A fetch that is told once when the high watermark passes `offset`.
#[derive(Clone, Copy, Debug)]
struct Watch {
    offset: Offset,
    reply_to: ReplyTo,
}

#[derive(Debug, Default)]
pub struct Waiters {
    /// Ordered by `end`: appends come in order, and a repeated batch waits behind what was appended since.
    produces: VecDeque<Waiter>,
    /// When the timer of this partition fires; it is left to fire when those it was set for are gone.
    armed: Option<Instant>,
    watches: Vec<Watch>,
}

impl Waiters {
    /// Keeps `waiter`, and says when to call [`Waiters::expire`] if the timer must be set anew for it.
    pub fn wait(&mut self, waiter: Waiter) -> Option<Instant> {
        let at = self.produces.partition_point(|w| w.end <= waiter.end);
        self.produces.insert(at, waiter);
        if self.armed.is_some_and(|armed| armed <= waiter.deadline) {
            return None;
        }
        self.armed = Some(waiter.deadline);
        self.armed
    }

    /// The next produce that the high watermark has reached; call again until it says `None`.
    pub fn release(&mut self, high_watermark: Offset) -> Option<Waiter> {
        if self.produces.front()?.end > high_watermark {
            return None;
        }
        self.produces.pop_front()
    }

    /// Takes out the produces whose deadline is at or before `now`, and says when to look again.
    pub fn expire(&mut self, now: Instant, mut expired: impl FnMut(Waiter)) -> Option<Instant> {
        self.produces.retain(|w| {
            let keep = w.deadline > now;
            if !keep {
                expired(*w);
            }
            keep
        });
        self.armed = self.produces.iter().map(|w| w.deadline).min();
        self.armed
    }

    /// All waiting produces, which will not be released here any more.
    pub fn take_produces(&mut self) -> impl Iterator<Item = Waiter> + use<> {
        std::mem::take(&mut self.produces).into_iter()
    }

    pub fn watch(&mut self, offset: Offset, reply_to: ReplyTo) {
        self.watches.push(Watch { offset, reply_to });
    }

    pub fn unwatch(&mut self, reply_to: ReplyTo) {
        self.watches.retain(|w| w.reply_to != reply_to);
    }

    /// Takes out the watches that can read now: those whose offset lies below the high watermark.
    pub fn readable(&mut self, high_watermark: Offset, mut tell: impl FnMut(ReplyTo)) {
        self.watches.retain(|w| {
            let keep = w.offset >= high_watermark;
            if !keep {
                tell(w.reply_to);
            }
            keep
        });
    }

    /// All watches, which will see nothing here any more.
    pub fn take_watches(&mut self) -> impl Iterator<Item = ReplyTo> + use<> {
        std::mem::take(&mut self.watches).into_iter().map(|w| w.reply_to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ConnId, ShardId};
    use crate::mail::Token;

    fn to(token: u64) -> ReplyTo {
        ReplyTo { shard: ShardId(0), conn: ConnId(1), token: Token(token) }
    }

    fn waiter(end: u64, deadline: u64) -> Waiter {
        let appended =
            Appended { base_offset: Offset(0), log_start: Offset(0), throttle: std::time::Duration::ZERO };
        let deadline = Instant::from_nanos(deadline);
        Waiter { end: Offset(end), deadline, since: Instant::ZERO, reply_to: to(end), appended }
    }

    #[test]
    fn produces_are_released_up_to_the_high_watermark_in_order() {
        let mut w = Waiters::default();
        for end in [5, 9, 5, 12] {
            w.wait(waiter(end, 100));
        }
        let mut released = vec![];
        while let Some(x) = w.release(Offset(9)) {
            released.push(x.end.0);
        }
        assert_eq!(released, [5, 5, 9]);
        assert_eq!(w.take_produces().count(), 1);
    }

    #[test]
    fn only_produces_past_their_deadline_expire() {
        let mut w = Waiters::default();
        let at = |nanos| Some(Instant::from_nanos(nanos));
        assert_eq!(w.wait(waiter(1, 10)), at(10));
        assert_eq!(w.wait(waiter(2, 5)), at(5), "an earlier deadline sets the timer anew");
        assert_eq!(w.wait(waiter(3, 12)), None);
        let mut expired = vec![];
        let next = w.expire(Instant::from_nanos(7), |x| expired.push(x.end.0));
        assert_eq!((expired, next), (vec![2], at(10)));
    }

    #[test]
    fn a_watch_is_told_once_when_its_offset_can_be_read() {
        let mut w = Waiters::default();
        w.watch(Offset(4), to(1));
        w.watch(Offset(6), to(2));
        w.watch(Offset(4), to(3));
        w.unwatch(to(3));
        let mut told = vec![];
        w.readable(Offset(4), |r| told.push(r.token.0));
        assert!(told.is_empty());
        w.readable(Offset(5), |r| told.push(r.token.0));
        w.readable(Offset(5), |r| told.push(r.token.0));
        assert_eq!(told, [1]);
        assert_eq!(w.take_watches().count(), 1);
    }
}
