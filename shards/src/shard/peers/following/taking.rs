//! What comes from leaders: records into the log, ends, corrections; and what they are told of it.

use std::time::Duration;

use super::super::{CATCH_UP_SHARE, Side};
use super::{Followed, Inbox, Link, Records};
use crate::batch::{self, BatchError};
use crate::front::Front;
use crate::ids::{ConnId, LeaderEpoch, Offset};
use crate::log::Slot;
use crate::log::journal::Urgency;
use crate::mail::Durability;
use crate::partition::follower::{Mend, Misfit};
use crate::shard::{Output, Shard, Timer};
use crate::stream::{Ack, Ends, FromFollower, FromLeader, Handle, Messages, Refusal, StreamError};

/// How long a log that took no more is left alone.
const STALL_WAIT: Duration = Duration::from_millis(10);

/// A leader that cannot serve is asked again as seldom as after so many refusals.
const UNAVAILABLE_TRIES: u32 = 8;

/// The log takes no more for the moment.
struct Stalled;

/// Why a leader's batch is not taken.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum Unfit {
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error(transparent)]
    Misfit(#[from] Misfit),
}

impl<F: Front> Shard<F> {
    /// Works on what came from a leader until the log takes no more.
    pub(in crate::shard::peers) fn on_leader_frames(&mut self, conn: ConnId) -> Result<(), StreamError> {
        while let Some(inbox) = self.inbox(conn) {
            if let Some(records) = inbox.stalled.take()
                && self.take_records(conn, records).is_err()
            {
                self.stall(conn);
                return Ok(());
            }
            let Some((frame, at)) = self.inbox(conn).and_then(|inbox| inbox.frames.pop_front()) else {
                break;
            };
            let mut messages = Messages::<FromLeader>::from(&frame, at);
            while let Some(message) = messages.next() {
                if self.on_leader_message(conn, message?)?.is_err() {
                    if let Some(inbox) = self.inbox(conn) {
                        inbox.frames.push_front((frame.clone(), messages.position()));
                    }
                    self.stall(conn);
                    return Ok(());
                }
            }
        }
        self.give_credit(conn);
        let Some(stream) = self.peers.streams.get_mut(&conn) else { return Ok(()) };
        if !stream.closing && !std::mem::replace(&mut stream.receiving, true) {
            self.outputs.push_back(Output::Receive { conn, on: true });
        }
        Ok(())
    }

    fn inbox(&mut self, conn: ConnId) -> Option<&mut Inbox> {
        let stream = self.peers.streams.get_mut(&conn).filter(|stream| !stream.closing)?;
        match &mut stream.side {
            Side::In(inbox) => Some(inbox),
            Side::Out(_) => None,
        }
    }

    /// Nothing more is received until the log takes what came.
    fn stall(&mut self, conn: ConnId) {
        let Some(stream) = self.peers.streams.get_mut(&conn) else { return };
        if std::mem::replace(&mut stream.receiving, false) {
            self.outputs.push_back(Output::Receive { conn, on: false });
        }
        self.timers.set(Timer::Stalled, self.now + STALL_WAIT);
    }

    /// The log may take more now.
    pub(in crate::shard) fn retry_stalled(&mut self) {
        for conn in self.peers.conns() {
            let Some(inbox) = self.inbox(conn) else { continue };
            if inbox.stalled.is_none() {
                self.give_credit(conn);
            } else if let Err(error) = self.on_leader_frames(conn) {
                self.on_bad_peer(conn, error);
            }
        }
    }

    /// Tells the leader of what was taken in, when that is worth a message. While the log is busy it is not told of as
    /// much as may be under way to followers that are behind: the leader then waits with these, and with no others.
    fn give_credit(&mut self, conn: ConnId) {
        let window = self.config.replication.stream_credit_bytes;
        let worth = window / CATCH_UP_SHARE / 4;
        if self.inbox(conn).is_none_or(|inbox| inbox.consumed <= worth) {
            return;
        }
        let mut kept = 0;
        if !self.storage.has_slack() {
            kept = window.div_ceil(CATCH_UP_SHARE);
            self.timers.set(Timer::Stalled, self.now + STALL_WAIT);
        }
        let Some(inbox) = self.inbox(conn) else { return };
        let bytes = inbox.consumed.saturating_sub(kept);
        if bytes <= worth {
            return;
        }
        inbox.consumed -= bytes;
        if let Some(encoder) = self.peers.say(conn) {
            encoder.from_follower(FromFollower::Credit { bytes });
        }
    }

    fn on_leader_message(
        &mut self,
        conn: ConnId,
        message: FromLeader,
    ) -> Result<Result<(), Stalled>, StreamError> {
        if !self.is_greeted(conn) && !matches!(message, FromLeader::Hello(_)) {
            return Err(StreamError::NotAStream);
        }
        match message {
            FromLeader::Hello(hello) => self.greet(conn, hello)?,
            FromLeader::Accepted { handle, leader_epoch, ends } => {
                if let Some(slot) = self.subscribed(conn, handle, leader_epoch) {
                    self.on_accepted(slot);
                    self.learn(slot, leader_epoch, ends);
                }
            }
            FromLeader::Watermark { handle, ends } => {
                let epoch = self.epoch_of_handle(handle);
                if let Some(slot) = epoch.and_then(|epoch| self.subscribed(conn, handle, epoch)) {
                    self.learn(slot, epoch.unwrap_or_default(), ends);
                }
            }
            FromLeader::Diverging { handle, epoch, end } => {
                if let Some(slot) = self.asked(conn, handle) {
                    let partition = self.partitions.get(slot).expect("what is followed is there");
                    let mend = partition.mend_diverging(epoch, end);
                    self.mend(slot, mend);
                }
            }
            FromLeader::Refused { handle, reason } => {
                if let Some(slot) = self.asked(conn, handle) {
                    self.on_refused(slot, reason);
                }
            }
            FromLeader::Records { handle, leader_epoch, ends, batches } => {
                let bytes = u32::try_from(batches.len()).unwrap_or(u32::MAX);
                if let Some(inbox) = self.inbox(conn) {
                    inbox.consumed = inbox.consumed.saturating_add(bytes);
                }
                return Ok(self.take_records(conn, Records { handle, epoch: leader_epoch, ends, batches }));
            }
        }
        Ok(Ok(()))
    }

    /// The partition that a handle of this stream stands for, if the subscription is not over.
    fn asked(&self, conn: ConnId, handle: Handle) -> Option<Slot> {
        let following = &self.peers.following;
        let &slot = following.by_handle.get(&handle)?;
        let link = following.links.get(&following.followed.get(&slot)?.link)?;
        (link.conn() == Some(conn)).then_some(slot)
    }

    fn epoch_of_handle(&self, handle: Handle) -> Option<LeaderEpoch> {
        let &slot = self.peers.following.by_handle.get(&handle)?;
        Some(self.partitions.get(slot)?.follower()?.epoch)
    }

    /// Likewise, if it is of this leader epoch.
    fn subscribed(&self, conn: ConnId, handle: Handle, epoch: LeaderEpoch) -> Option<Slot> {
        let slot = self.asked(conn, handle)?;
        let follower = self.partitions.get(slot)?.follower()?;
        (follower.epoch == epoch).then_some(slot)
    }

    fn on_accepted(&mut self, slot: Slot) {
        let following = &mut self.peers.following;
        let Some(followed) = following.followed.get_mut(&slot) else { return };
        followed.is_accepted = true;
        followed.tries = 0;
        if let Some(link) = following.links.get_mut(&followed.link) {
            link.tries = 0;
        }
        self.owe_ack(slot);
    }

    fn on_refused(&mut self, slot: Slot, reason: Refusal) {
        match reason {
            Refusal::Moved { shard } => {
                let Some(followed) = self.peers.following.followed.get(&slot).copied() else { return };
                if followed.link.1 == shard {
                    return self.resubscribe(slot, false);
                }
                self.resubscribe(slot, true);
                let following = &mut self.peers.following;
                if let Some(link) = following.links.get_mut(&followed.link) {
                    link.wanting.remove(&slot);
                    link.later.retain(|&(_, later)| later != slot);
                }
                let next = (followed.link.0, shard);
                following.followed.insert(
                    slot,
                    Followed { link: next, handle: None, tries: followed.tries + 1, ..followed },
                );
                let link = following.links.entry(next).or_default();
                // Two shards that name each other are asked ever later.
                if followed.tries == 0 {
                    link.wanting.insert(slot);
                } else {
                    let wait = self.backoff(followed.tries);
                    let due = self.now + wait;
                    if let Some(link) = self.peers.following.links.get_mut(&next) {
                        link.later.insert((due, slot));
                    }
                }
                self.peers.following.busy.insert(next);
            }
            Refusal::OutOfRange { start, end } => {
                let partition = self.partitions.get(slot).expect("what is followed is there");
                let mend = partition.mend_out_of_range(start, end);
                self.mend(slot, mend);
            }
            Refusal::Unavailable => {
                // It was accepted before, or soon will be; what keeps it from being served does not pass in a moment.
                if let Some(followed) = self.peers.following.followed.get_mut(&slot) {
                    followed.tries = followed.tries.max(UNAVAILABLE_TRIES);
                }
                self.resubscribe(slot, false);
            }
            Refusal::NotLeader | Refusal::FencedEpoch | Refusal::UnknownEpoch | Refusal::NotReplica => {
                self.resubscribe(slot, false)
            }
        }
    }

    /// Makes the log meet the leader's, and asks again.
    fn mend(&mut self, slot: Slot, mend: Mend) {
        let partition = self.partitions.get(slot).expect("what is followed is there");
        let (end, high_watermark) = (partition.log_end(), partition.high_watermark());
        let is_in_sync = partition.follower().is_some_and(|follower| follower.in_sync);
        tracing::info!(partition = %partition.id, ?mend, log_end = %end, %high_watermark, "the log is made to meet its leader's");
        let done = match mend {
            Mend::Cut { end: cut } if cut < end => {
                self.peers.stats.truncations += 1;
                if cut < high_watermark {
                    self.peers.stats.truncations_below_high_watermark += 1;
                    tracing::error!(
                        partition = %partition.id, %cut, %high_watermark, is_in_sync,
                        "records that an earlier leader had committed are cut off, because this leader does not have them"
                    );
                }
                self.cut(slot, cut)
            }
            // The leader's answer changes nothing here: asked at once, it would be the same.
            Mend::Cut { .. } => false,
            Mend::Anew { start } => self.begin_anew(slot, start),
        };
        self.resubscribe(slot, done);
    }

    /// The log ends at `end` from now on. Whether the journal took it.
    fn cut(&mut self, slot: Slot, end: Offset) -> bool {
        if self.storage.truncate(self.now, slot, end).is_err() {
            return false;
        }
        self.partitions.forget_flushing(slot, end);
        let partition = self.partitions.get_mut(slot).expect("the caller found it");
        partition.cut(end);
        true
    }

    /// The log is empty from now on and begins at `start`, or where it begins already if that is behind.
    fn begin_anew(&mut self, slot: Slot, start: Offset) -> bool {
        let partition = self.partitions.get(slot).expect("the caller found it");
        let (log_start, end) = (partition.log_start(), partition.log_end());
        if start > log_start {
            if self.storage.advance_start(self.now, slot, start).is_err() {
                return false;
            }
            self.partitions.get_mut(slot).expect("it was just found").start_at(start);
        }
        if end > start {
            return self.cut(slot, start);
        }
        // What is known of epochs is of records that are gone.
        self.partitions.get_mut(slot).expect("it was just found").cut(start);
        start > log_start || end < start
    }

    /// Takes over a leader's ends (R17, R24).
    fn learn(&mut self, slot: Slot, epoch: LeaderEpoch, ends: Ends) {
        let Some(partition) = self.partitions.get_mut(slot) else { return };
        let learnt = partition.learn(epoch, ends);
        if let Some(start) = learnt.start
            && self.storage.advance_start(self.now, slot, start).is_ok()
        {
            self.partitions.get_mut(slot).expect("it was just found").start_at(start);
            self.owe_ack(slot);
        }
        if learnt.moved {
            self.settle(slot);
        }
    }

    /// Appends a leader's batches. On `Err`, what is left was put aside.
    fn take_records(&mut self, conn: ConnId, records: Records) -> Result<(), Stalled> {
        let Records { handle, epoch, ends, batches } = records;
        let Some(slot) = self.subscribed(conn, handle, epoch) else { return Ok(()) };
        let mut at = 0;
        while at < batches.len() {
            match self.take_batch(slot, epoch, &batches[at..]) {
                Ok(Some(len)) => at += len,
                Ok(None) => {
                    if let Some(inbox) = self.inbox(conn) {
                        inbox.stalled = Some(Records { handle, epoch, ends, batches: batches.slice(at..) });
                    }
                    return Err(Stalled);
                }
                Err(error) => {
                    self.peers.stats.misfits += 1;
                    let partition = self.partitions.get(slot).map(|p| p.id).unwrap_or_default();
                    tracing::warn!(%partition, %error, "records of the leader do not fit; it is asked anew");
                    self.unsubscribe(conn, handle);
                    self.resubscribe(slot, false);
                    return Ok(());
                }
            }
        }
        self.learn(slot, epoch, ends);
        if self.partitions.get(slot).is_some_and(|p| p.durability() == Durability::Replicated) {
            self.owe_ack(slot);
        }
        Ok(())
    }

    fn unsubscribe(&mut self, conn: ConnId, handle: Handle) {
        if let Some(encoder) = self.peers.say(conn) {
            encoder.from_follower(FromFollower::Unsubscribe { handle });
        }
    }

    /// Appends the first batch of `bytes`. Its length; `None` when the log takes no more until it has room again.
    fn take_batch(&mut self, slot: Slot, epoch: LeaderEpoch, bytes: &[u8]) -> Result<Option<usize>, Unfit> {
        let header = batch::parse_header(bytes)?;
        let len = header.len as usize;
        let batch = bytes.get(..len).ok_or(BatchError::Corrupt)?;
        if !batch::check_crc(batch) {
            return Err(BatchError::Corrupt.into());
        }
        if header.len > self.config.batch_bytes_max() {
            let limit = self.config.batch_bytes_max();
            return Err(BatchError::TooLarge { len: header.len, limit }.into());
        }
        let partition = self.partitions.get(slot).expect("what is followed is there");
        let (base, batch_epoch) = partition.fits(epoch, &header)?;
        if base < partition.log_end() && !self.cut(slot, base) {
            return Ok(None);
        }
        let partition = self.partitions.get_mut(slot).expect("it was just found");
        let urgency = match partition.durability() {
            Durability::Fsync => Urgency::Sync,
            Durability::Replicated => Urgency::Lazy,
        };
        let Ok(marker) = self.storage.append(self.now, slot, base, batch_epoch, &header, batch, urgency)
        else {
            return Ok(None);
        };
        partition.replicated(self.now, &header, base, batch_epoch);
        if header.producer.is_some()
            && let Some(at) = partition.arm_producers(self.now)
        {
            self.timers.set(Timer::Producers(slot), at);
        }
        let end = partition.log_end();
        self.partitions.note_flushing(marker, slot, end);
        self.peers.stats.bytes_in += len as u64;
        Ok(Some(len))
    }

    /// The leader is told with the next frame how far the partition has come.
    pub(in crate::shard) fn owe_ack(&mut self, slot: Slot) {
        let following = &mut self.peers.following;
        if let Some(followed) = following.followed.get_mut(&slot)
            && followed.is_accepted
            && !std::mem::replace(&mut followed.owes_ack, true)
        {
            following.acks.push(slot);
        }
    }

    pub(in crate::shard::peers) fn send_acks(&mut self) {
        let mut acks = std::mem::take(&mut self.peers.following.acks);
        for slot in acks.drain(..) {
            let following = &mut self.peers.following;
            let Some(followed) = following.followed.get_mut(&slot) else { continue };
            let conn = following.links.get(&followed.link).and_then(Link::conn);
            let (Some(conn), Some(handle), true) = (conn, followed.handle, followed.is_accepted) else {
                followed.owes_ack = false;
                continue;
            };
            let unsent_bytes_max = self.config.replication.unsent_bytes_max;
            if let Some(stream) = self.peers.streams.get_mut(&conn)
                && stream.unsent_bytes > unsent_bytes_max
                && let Side::In(inbox) = &mut stream.side
            {
                inbox.late_acks.push(slot);
                continue;
            }
            followed.owes_ack = false;
            let Some(partition) = self.partitions.get(slot) else { continue };
            let (ends, log_start) = (partition.ends(), partition.log_start());
            if let Some(encoder) = self.peers.say(conn) {
                let ack = Ack { handle, log_start, log_end: ends.log, flushed_end: ends.flushed };
                encoder.from_follower(FromFollower::Ack(ack));
            }
            self.flush_when_full(conn);
        }
        // Kept for its memory.
        acks.append(&mut self.peers.following.acks);
        self.peers.following.acks = acks;
    }
}
