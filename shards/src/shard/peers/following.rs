//! Following: links to the leaders' shards, subscriptions, and what is taken over from them.
//!
//! A link is one stream to one shard of one leader node, for all partitions that are followed there. It is asked for when
//! there is something to follow and closed when there is nothing any more; one that breaks is made again, a little later
//! each time. Which shard leads a partition only the other node knows: a subscription goes to the shard that had it last, or
//! to the first one, which names the right one.
//!
//! What a leader sends belongs to a subscription by its handle, which is never used twice: what comes late, of an epoch or
//! of a place in the log that is over, is dropped (R22). A log that cannot take more for the moment stalls the stream, and
//! the credit that the leader has used is not given again until it does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::super::{Shard, Stop, Timer};
use super::{Frames, Side};
use crate::batch::{self, BatchError};
use crate::front::{CloseReason, Front};
use crate::ids::{ConnId, LeaderEpoch, Map, NodeId, Offset, ShardId};
use crate::log::Slot;
use crate::log::journal::Urgency;
use crate::mail::{Durability, ToControl};
use crate::partition::Partition;
use crate::partition::follower::{Follower, Mend, Misfit};
use crate::shard::Output;
use crate::stream::{
    Ack, Ends, FromFollower, FromLeader, Handle, Hello, Messages, Refusal, StreamError, Subscribe,
};
use crate::time::Instant;

/// The shard of a node at the other end.
pub(super) type LinkId = (NodeId, ShardId);

/// How long a log that took no more is left alone.
const STALL_WAIT: Duration = Duration::from_millis(10);

/// After so many corrections in a row that led to no subscription, the next one waits.
const MENDS_MAX: u32 = 64;

#[derive(Debug, Default)]
pub(super) struct Following {
    links: BTreeMap<LinkId, Link>,
    followed: Map<Slot, Followed>,
    by_handle: Map<Handle, Slot>,
    last_handle: u32,
    /// Partitions whose leader is to be told how far they have come.
    pub acks: Vec<Slot>,
    /// Links with something to do.
    busy: BTreeSet<LinkId>,
}

#[derive(Debug, Default)]
struct Link {
    state: LinkState,
    /// Attempts that failed since the last one that led to something.
    tries: u32,
    /// Followed over this link, without those in `later`: to be asked for when the link is open.
    wanting: BTreeSet<Slot>,
    /// To be asked for again at that time.
    later: BTreeSet<(Instant, Slot)>,
    /// With a subscription, or an answer still to come.
    asked: BTreeSet<Slot>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum LinkState {
    #[default]
    Idle,
    /// To be asked for again when its timer fires.
    Waiting,
    Dialing,
    Open(ConnId),
}

impl Link {
    fn is_needed(&self) -> bool {
        !(self.wanting.is_empty() && self.later.is_empty() && self.asked.is_empty())
    }

    fn conn(&self) -> Option<ConnId> {
        match self.state {
            LinkState::Open(conn) => Some(conn),
            _ => None,
        }
    }
}

/// A partition that is followed.
#[derive(Clone, Copy, Debug)]
struct Followed {
    link: LinkId,
    /// Of the subscription that was asked for last, until it is over.
    handle: Option<Handle>,
    is_accepted: bool,
    tries: u32,
    /// In `acks`.
    owes_ack: bool,
}

/// What came over one stream to a leader and is not worked off.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    pub frames: Frames,
    /// What is left of records that the log did not take.
    stalled: Option<Records>,
    /// Record bytes taken in since credit was given last.
    consumed: u32,
    pub late_acks: Vec<Slot>,
}

#[derive(Debug)]
struct Records {
    handle: Handle,
    epoch: LeaderEpoch,
    ends: Ends,
    batches: Bytes,
}

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

impl Following {
    pub fn is_quiet(&self) -> bool {
        self.acks.is_empty() && self.busy.is_empty()
    }
}

impl<F: Front> Shard<F> {
    /// Follows a partition in the epoch that it was assigned, from now on.
    pub(in super::super) fn follow(&mut self, slot: Slot) {
        let remembered = self.peers.following.followed.get(&slot).map(|followed| followed.link);
        self.unfollow(slot);
        let Some(&Follower { leader, .. }) = self.partitions.get(slot).and_then(Partition::follower) else {
            return;
        };
        if self.stop != Stop::No {
            return;
        }
        let link = remembered.filter(|(node, _)| *node == leader).unwrap_or((leader, ShardId(0)));
        self.follow_over(slot, link);
    }

    fn follow_over(&mut self, slot: Slot, link: LinkId) {
        let followed = Followed { link, handle: None, is_accepted: false, tries: 0, owes_ack: false };
        let following = &mut self.peers.following;
        following.followed.insert(slot, followed);
        following.links.entry(link).or_default().wanting.insert(slot);
        following.busy.insert(link);
    }

    /// Nothing is taken over for the partition any more.
    pub(in super::super) fn unfollow(&mut self, slot: Slot) {
        let following = &mut self.peers.following;
        let Some(followed) = following.followed.remove(&slot) else { return };
        let handle = followed.handle.inspect(|handle| {
            following.by_handle.remove(handle);
        });
        let Some(link) = following.links.get_mut(&followed.link) else { return };
        link.wanting.remove(&slot);
        link.later.retain(|&(_, later)| later != slot);
        link.asked.remove(&slot);
        following.busy.insert(followed.link);
        let conn = link.conn();
        if let (Some(conn), Some(handle)) = (conn, handle)
            && let Some(encoder) = self.peers.say(conn)
        {
            encoder.from_follower(FromFollower::Unsubscribe { handle });
        }
    }

    /// How long to wait after so many failures.
    fn backoff(&mut self, tries: u32) -> Duration {
        let config = &self.config.replication;
        let most = config.retry_min.saturating_mul(1 << tries.min(20)).min(config.retry_max);
        let nanos = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX).max(2);
        Duration::from_nanos(nanos - self.peers.random() % (nanos / 2))
    }

    /// The subscription is over; another one is asked for, at once or after a while.
    fn resubscribe(&mut self, slot: Slot, at_once: bool) {
        let following = &mut self.peers.following;
        let Some(followed) = following.followed.get_mut(&slot) else { return };
        if let Some(handle) = followed.handle.take() {
            following.by_handle.remove(&handle);
        }
        followed.is_accepted = false;
        followed.tries += 1;
        let (tries, id) = (followed.tries, followed.link);
        let wait = (!at_once || tries > MENDS_MAX).then(|| self.backoff(tries - 1));
        let following = &mut self.peers.following;
        let Some(link) = following.links.get_mut(&id) else { return };
        link.asked.remove(&slot);
        match wait {
            Some(wait) => {
                link.later.insert((self.now + wait, slot));
            }
            None => {
                link.wanting.insert(slot);
            }
        }
        following.busy.insert(id);
    }

    /// Dials, asks for subscriptions, closes what is not needed.
    pub(super) fn work_links(&mut self) {
        while let Some(id) = self.peers.following.busy.pop_first() {
            let Some(link) = self.peers.following.links.get_mut(&id) else { continue };
            if !link.is_needed() {
                // A connection that is being made is used if it is needed again until then, and closed otherwise.
                match link.state {
                    LinkState::Dialing => continue,
                    LinkState::Open(conn) => {
                        self.peers.following.links.remove(&id);
                        self.close_stream(conn, CloseReason::Superseded);
                    }
                    LinkState::Idle | LinkState::Waiting => {
                        self.peers.following.links.remove(&id);
                        self.timers.cancel(Timer::Link(id.0, id.1));
                    }
                }
                continue;
            }
            match link.state {
                LinkState::Idle => {
                    link.state = LinkState::Dialing;
                    self.peers.stats.dials += 1;
                    let (node, shard) = id;
                    self.outputs.push_back(Output::Control(ToControl::Dial { node, shard }));
                }
                LinkState::Open(conn) => {
                    let wanting = std::mem::take(&mut link.wanting);
                    if let Some(&(due, _)) = link.later.first() {
                        self.timers.set(Timer::Link(id.0, id.1), due);
                    }
                    for slot in wanting {
                        self.subscribe(id, conn, slot);
                    }
                }
                LinkState::Waiting | LinkState::Dialing => {}
            }
        }
    }

    fn subscribe(&mut self, id: LinkId, conn: ConnId, slot: Slot) {
        let Some(partition) = self.partitions.get(slot) else { return };
        let Some(follower) = partition.follower() else { return };
        let (offset, last_epoch) = partition.position();
        let (partition, leader_epoch) = (partition.id, follower.epoch);
        let following = &mut self.peers.following;
        following.last_handle = following.last_handle.checked_add(1).expect("fewer than 2^32 subscriptions");
        let handle = Handle(following.last_handle);
        let Some(followed) = following.followed.get_mut(&slot) else { return };
        followed.handle = Some(handle);
        following.by_handle.insert(handle, slot);
        if let Some(link) = following.links.get_mut(&id) {
            link.asked.insert(slot);
        }
        if let Some(encoder) = self.peers.say(conn) {
            let ask = Subscribe { handle, partition, leader_epoch, offset, last_epoch };
            encoder.from_follower(FromFollower::Subscribe(ask));
        }
        self.flush_when_full(conn);
    }

    pub(super) fn on_link_open(&mut self, id: LinkId, conn: ConnId, hello: Hello) {
        let is_needed = self.peers.following.links.get(&id).is_some_and(Link::is_needed);
        if !is_needed {
            self.peers.following.links.remove(&id);
            return self.close_stream(conn, CloseReason::Superseded);
        }
        let bytes = self.config.replication.stream_credit_bytes;
        if let Some(encoder) = self.peers.say(conn) {
            encoder.from_follower(FromFollower::Hello(hello));
            encoder.from_follower(FromFollower::Credit { bytes });
        }
        if let Some(link) = self.peers.following.links.get_mut(&id) {
            link.state = LinkState::Open(conn);
        }
        self.timers.cancel(Timer::Link(id.0, id.1));
        self.peers.following.busy.insert(id);
    }

    /// The link's stream is gone: what was asked for over it is asked for again over the next one.
    pub(super) fn on_link_lost(&mut self, id: LinkId, conn: ConnId) {
        let following = &mut self.peers.following;
        let Some(link) = following.links.get_mut(&id).filter(|link| link.conn() == Some(conn)) else {
            return;
        };
        let asked = std::mem::take(&mut link.asked);
        let later = std::mem::take(&mut link.later);
        for slot in asked.into_iter().chain(later.into_iter().map(|(_, slot)| slot)) {
            link.wanting.insert(slot);
            if let Some(followed) = following.followed.get_mut(&slot) {
                followed.is_accepted = false;
                // It may have waited with the stream.
                followed.owes_ack = false;
                if let Some(handle) = followed.handle.take() {
                    following.by_handle.remove(&handle);
                }
            }
        }
        link.state = LinkState::Dialing;
        self.dial_later(id);
    }

    pub(super) fn on_dial_failed(&mut self, id: LinkId) {
        self.peers.stats.dials_failed += 1;
        self.dial_later(id);
    }

    fn dial_later(&mut self, id: LinkId) {
        let Some(link) = self.peers.following.links.get_mut(&id) else { return };
        if link.state != LinkState::Dialing {
            return;
        }
        link.state = LinkState::Waiting;
        let tries = link.tries;
        link.tries = tries.saturating_add(1);
        let wait = self.backoff(tries);
        self.timers.set(Timer::Link(id.0, id.1), self.now + wait);
    }

    /// It is time to dial, or to ask for subscriptions again.
    pub(in super::super) fn on_link_due(&mut self, id: LinkId) {
        let now = self.now;
        let following = &mut self.peers.following;
        let Some(link) = following.links.get_mut(&id) else { return };
        if link.state == LinkState::Waiting {
            link.state = LinkState::Idle;
        }
        while let Some(&(due, slot)) = link.later.first()
            && due <= now
        {
            link.later.pop_first();
            link.wanting.insert(slot);
        }
        following.busy.insert(id);
    }

    /// Works on what came from a leader until the log takes no more.
    pub(super) fn on_leader_frames(&mut self, conn: ConnId) -> Result<(), StreamError> {
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
        self.give_credit(conn);
        let Some(stream) = self.peers.streams.get_mut(&conn) else { return };
        if std::mem::replace(&mut stream.receiving, false) {
            self.outputs.push_back(Output::Receive { conn, on: false });
        }
        self.timers.set(Timer::Stalled, self.now + STALL_WAIT);
    }

    /// The log may take more now.
    pub(in super::super) fn retry_stalled(&mut self) {
        for conn in self.peers.conns() {
            if self.inbox(conn).is_some_and(|inbox| inbox.stalled.is_some())
                && let Err(error) = self.on_leader_frames(conn)
            {
                self.on_bad_peer(conn, error);
            }
        }
    }

    /// Tells the leader of what was taken in, when that is worth a message.
    fn give_credit(&mut self, conn: ConnId) {
        let worth = self.config.replication.stream_credit_bytes / 4;
        let Some(inbox) = self.inbox(conn).filter(|inbox| inbox.consumed > worth) else { return };
        let bytes = std::mem::take(&mut inbox.consumed);
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
            Refusal::NotLeader
            | Refusal::FencedEpoch
            | Refusal::UnknownEpoch
            | Refusal::NotReplica
            | Refusal::Unavailable => self.resubscribe(slot, false),
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
        self.partitions.get_mut(slot).expect("the caller found it").cut(end);
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

    /// Appends the first batch of `bytes`. Its length; `None` when the log takes no more for now.
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
    pub(in super::super) fn owe_ack(&mut self, slot: Slot) {
        let following = &mut self.peers.following;
        if let Some(followed) = following.followed.get_mut(&slot)
            && followed.is_accepted
            && !std::mem::replace(&mut followed.owes_ack, true)
        {
            following.acks.push(slot);
        }
    }

    pub(super) fn send_acks(&mut self) {
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
