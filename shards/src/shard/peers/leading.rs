//! Being followed: subscriptions of other shards, and the records and ends that they are sent.
//!
//! A subscription is a place in a log. What is appended is pushed from there: in-sync followers first, each partition a
//! turn's worth, from memory while the journal is being written; who is behind has what they leave, from segments as the
//! reader brings them. Little of that is under way until it is acknowledged, since all that lies in the follower's journal
//! before a record that is waited for is written first; and the follower lets the leader wait with more while its own
//! log is busy (see [`super::following`]). A turn now and then is sent all the same, and who does not come closer to the
//! end is served with more urgency, whoever has to wait for it (see [`super::chase`]): nobody is left behind. A stream
//! whose credit or whose unsent bytes are used up waits; its followers fall behind and lose nothing.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::super::{Shard, Stop, Timer};
use super::chase::Chase;
use super::fill::without_gaps;
use super::{CATCH_UP_SHARE, Peers, Side};
use crate::front::Front;
use crate::ids::{ConnId, LeaderEpoch, Map, Offset};
use crate::log::Slot;
use crate::log::storage::{Found, ReadFault, Wanted};
use crate::mail::Durability;
use crate::partition::isr::Ends;
use crate::partition::leader::Followed;
use crate::partition::{Member, Partition};
use crate::stream::{
    Ack, Ends as Told, FromFollower, FromLeader, Handle, Messages, Refusal, StreamError, Subscribe,
};
use crate::time::Instant;

/// After so long, who is behind gets another turn although more than its share is under way.
const CATCH_UP_TURN: Duration = Duration::from_millis(50);

/// What one follower's shard gets over one stream.
#[derive(Debug, Default)]
pub(super) struct Outflow {
    /// By handle; at most one of each partition of this shard.
    subs: Map<Handle, Sub>,
    /// Record bytes that may still be sent. The last batch may go beyond.
    credit: i64,
    /// The credit that the follower gave first.
    window: i64,
    /// Subscriptions with something to send: of in-sync replicas, and of others. Each is in one of them, once.
    ready: VecDeque<Handle>,
    behind: VecDeque<Handle>,
    /// When one of the others had its turn last.
    caught_up_at: Instant,
    /// The sum of what `subs` have under way.
    catching_up: usize,
    /// Reads of segments under way.
    reads: usize,
}

#[derive(Clone, Copy, Debug)]
struct Sub {
    slot: Slot,
    epoch: LeaderEpoch,
    /// Everything before was sent.
    next: Offset,
    told: Told,
    /// In a queue, or being read for.
    is_busy: bool,
    /// Record bytes that it was sent while it was behind, and where the last of them end: under way until all of them
    /// are acknowledged.
    under_way: (usize, Offset),
    chase: Chase,
}

impl Outflow {
    /// All subscriptions are over.
    pub fn leave(&mut self) -> Vec<Slot> {
        self.ready.clear();
        self.behind.clear();
        self.catching_up = 0;
        let mut slots: Vec<Slot> = self.subs.drain().map(|(_, sub)| sub.slot).collect();
        slots.sort_unstable();
        slots
    }

    fn remove(&mut self, handle: Handle) -> Option<Sub> {
        let sub = self.subs.remove(&handle)?;
        self.catching_up -= sub.under_way.0;
        Some(sub)
    }

    /// Nothing that the subscription was sent is under way any more.
    fn arrived(&mut self, handle: Handle) {
        if let Some(sub) = self.subs.get_mut(&handle) {
            self.catching_up -= std::mem::take(&mut sub.under_way.0);
        }
    }

    /// The next subscription that may be served, and whether it is one that is behind. In-sync followers come first.
    fn next(&mut self, now: Instant, may_catch_up: bool, in_flight_max: usize) -> Option<(Handle, bool)> {
        if self.credit <= 0 {
            return None;
        }
        if let Some(handle) = self.ready.pop_front() {
            return Some((handle, false));
        }
        if !may_catch_up || self.catch_up_turn(in_flight_max)? > now {
            return None;
        }
        let handle = self.behind.pop_front()?;
        self.caught_up_at = now;
        Some((handle, true))
    }

    /// From when on the first of those who are behind may be served; `None`: credit or an acknowledgement comes first.
    fn catch_up_turn(&self, in_flight_max: usize) -> Option<Instant> {
        let front = self.behind.front()?;
        let chase = self.subs.get(front).map_or_else(Chase::default, |sub| sub.chase);
        if self.credit > 0 && self.has_room_to_catch_up(chase, in_flight_max) {
            return Some(self.caught_up_at);
        }
        (self.credit > 0 && self.credit * 2 >= self.window).then(|| self.caught_up_at + CATCH_UP_TURN)
    }

    fn has_room_to_catch_up(&self, chase: Chase, in_flight_max: usize) -> bool {
        let share = if chase.is_urgent() { 2 } else { CATCH_UP_SHARE };
        self.catching_up < chase.scale(in_flight_max)
            && self.window - self.credit < self.window / i64::from(share)
    }
}

/// A read of segments for a subscription.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct StreamRead {
    pub conn: ConnId,
    pub handle: Handle,
    from: Offset,
    catches_up: bool,
}

fn told(partition: &Partition) -> Told {
    let ends = partition.read_ends();
    Told { high_watermark: ends.high_watermark, log_start: ends.log_start }
}

impl<F: Front> Shard<F> {
    pub(super) fn on_follower_frame(&mut self, conn: ConnId, frame: &Bytes) -> Result<(), StreamError> {
        for message in Messages::<FromFollower>::new(frame) {
            let message = message?;
            if !self.is_greeted(conn) && !matches!(message, FromFollower::Hello(_)) {
                return Err(StreamError::NotAStream);
            }
            match message {
                FromFollower::Hello(hello) => self.greet(conn, hello)?,
                FromFollower::Subscribe(asked) => self.on_subscribe(conn, &asked)?,
                FromFollower::Unsubscribe { handle } => self.end_subscription(conn, handle),
                FromFollower::Ack(ack) => self.on_ack(conn, ack)?,
                FromFollower::Credit { bytes } => {
                    if let Some(out) = self.peers.out(conn) {
                        if out.window == 0 {
                            out.window = i64::from(bytes);
                        }
                        out.credit = (out.credit + i64::from(bytes)).min(out.window);
                        self.peers.active.insert(conn);
                    }
                }
            }
        }
        Ok(())
    }

    fn on_subscribe(&mut self, conn: ConnId, asked: &Subscribe) -> Result<(), StreamError> {
        let Some(stream) = self.peers.streams.get(&conn) else { return Ok(()) };
        let (node, registration) = (stream.node, stream.epoch);
        let Side::Out(out) = &stream.side else { return Ok(()) };
        if out.subs.contains_key(&asked.handle) {
            return Err(StreamError::Impossible("a handle that was used before"));
        }
        self.peers.stats.subscriptions += 1;
        let handle = asked.handle;
        let slot = self.storage.slot(asked.partition).filter(|&slot| self.partitions.get(slot).is_some());
        let Some(slot) = slot else {
            let owner = self.view.as_ref().and_then(|view| F::local_shard(view, asked.partition));
            let reason = match owner.filter(|&owner| owner != self.config.shard) {
                Some(shard) => Refusal::Moved { shard },
                None => Refusal::NotLeader,
            };
            self.refuse(conn, handle, reason);
            return Ok(());
        };
        if self.stop != Stop::No || self.is_lease_over() {
            self.refuse(conn, handle, Refusal::Unavailable);
            return Ok(());
        }
        let partition = self.partitions.get_mut(slot).expect("its slot was just found");
        match partition.follow(node, registration, asked) {
            Followed::Accepted { epoch } => {
                let ends = told(partition);
                let before = partition.audience.members.iter().find(|m| m.node == node).copied();
                if let Some(before) = before {
                    self.end_subscription(before.conn, before.handle);
                }
                let partition = self.partitions.get_mut(slot).expect("its slot was just found");
                partition.audience.members.push(Member { node, conn, handle });
                let next = asked.offset;
                let sub = Sub {
                    slot,
                    epoch,
                    next,
                    told: ends,
                    is_busy: false,
                    under_way: (0, next),
                    chase: Chase::default(),
                };
                if let Some(out) = self.peers.out(conn) {
                    out.subs.insert(handle, sub);
                }
                if let Some(encoder) = self.peers.say(conn) {
                    encoder.from_leader(FromLeader::Accepted { handle, leader_epoch: epoch, ends });
                }
                self.mark(slot);
            }
            Followed::Diverging { epoch, end } => {
                tracing::info!(partition = %asked.partition, %node, %epoch, %end, "a follower's log parts from ours");
                if let Some(encoder) = self.peers.say(conn) {
                    encoder.from_leader(FromLeader::Diverging { handle, epoch, end });
                }
            }
            Followed::Refused(reason) => self.refuse(conn, handle, reason),
        }
        Ok(())
    }

    fn refuse(&mut self, conn: ConnId, handle: Handle, reason: Refusal) {
        self.peers.stats.subscriptions_refused += 1;
        if let Some(encoder) = self.peers.say(conn) {
            encoder.from_leader(FromLeader::Refused { handle, reason });
        }
    }

    /// Ends a subscription without a word.
    fn end_subscription(&mut self, conn: ConnId, handle: Handle) {
        let Some(sub) = self.peers.out(conn).and_then(|out| out.remove(handle)) else { return };
        if let Some(partition) = self.partitions.get_mut(sub.slot) {
            partition.audience.members.retain(|m| (m.conn, m.handle) != (conn, handle));
        }
    }

    /// A stream is gone: its subscriptions with it.
    pub(super) fn leave_audiences(&mut self, conn: ConnId, slots: &[Slot]) {
        for &slot in slots {
            if let Some(partition) = self.partitions.get_mut(slot) {
                partition.audience.members.retain(|m| m.conn != conn);
            }
        }
    }

    /// All who follow are told that they do not any more.
    pub(in super::super) fn dismiss(&mut self, slot: Slot, reason: Refusal) {
        let Some(partition) = self.partitions.get_mut(slot) else { return };
        for member in std::mem::take(&mut partition.audience.members) {
            if let Some(out) = self.peers.out(member.conn) {
                out.remove(member.handle);
            }
            self.refuse(member.conn, member.handle, reason);
        }
    }

    /// After a change of the replicas: who is none any more does not follow.
    pub(in super::super) fn dismiss_strangers(&mut self, slot: Slot) {
        let Some(partition) = self.partitions.get(slot) else { return };
        let Some(in_sync) = partition.in_sync() else { return };
        let members = partition.audience.members.iter();
        let strangers: Vec<Member> = members.filter(|m| !in_sync.is_replica(m.node)).copied().collect();
        for Member { conn, handle, .. } in strangers {
            self.end_subscription(conn, handle);
            self.refuse(conn, handle, Refusal::NotReplica);
        }
    }

    fn on_ack(&mut self, conn: ConnId, ack: Ack) -> Result<(), StreamError> {
        let Some(stream) = self.peers.streams.get(&conn) else { return Ok(()) };
        let (node, registration) = (stream.node, stream.epoch);
        let Side::Out(out) = &stream.side else { return Ok(()) };
        // One of a subscription that is over: what it says is of another epoch, or of another place in the log.
        let Some(&sub) = out.subs.get(&ack.handle) else { return Ok(()) };
        if ack.log_end > sub.next {
            return Err(StreamError::Impossible("an acknowledgement of records that were not sent"));
        }
        let ends = Ends { log: ack.log_end, flushed: ack.flushed_end };
        let partition = self.partitions.get_mut(sub.slot).expect("a subscription ends with its partition");
        partition.on_follower_progress(self.now, node, registration, ends, ack.log_start);
        let is_in_sync = partition.in_sync().is_some_and(|in_sync| in_sync.counts(node));
        let waits_for_flushes = partition.durability() == Durability::Fsync;
        let safe = if waits_for_flushes { ack.flushed_end } else { ack.log_end };
        let (bytes, end) = sub.under_way;
        if bytes > 0
            && end <= safe
            && let Some(out) = self.peers.out(conn)
        {
            out.arrived(ack.handle);
            self.peers.active.insert(conn);
        }
        if !is_in_sync {
            self.reconsider(sub.slot);
        }
        self.settle(sub.slot);
        self.finish_deletions();
        Ok(())
    }

    /// The log or what is told of it has changed: its followers are told when outputs are polled.
    pub(in super::super) fn mark(&mut self, slot: Slot) {
        let Some(partition) = self.partitions.get_mut(slot) else { return };
        let audience = &mut partition.audience;
        if !audience.members.is_empty() && !audience.is_marked {
            audience.is_marked = true;
            self.peers.marked.push(slot);
        }
    }

    pub(super) fn tell_audiences(&mut self) {
        let mut marked = std::mem::take(&mut self.peers.marked);
        for slot in marked.drain(..) {
            let Some(partition) = self.partitions.get_mut(slot) else { continue };
            partition.audience.is_marked = false;
            let Some(in_sync) = partition.in_sync() else { continue };
            let (end, ends) = (partition.log_end(), told(partition));
            for &Member { node, conn, handle } in &partition.audience.members {
                let counts = in_sync.counts(node);
                let Some(out) = self.peers.out(conn) else { continue };
                let Some(sub) = out.subs.get_mut(&handle) else { continue };
                if sub.next < end {
                    if !std::mem::replace(&mut sub.is_busy, true) {
                        (if counts { &mut out.ready } else { &mut out.behind }).push_back(handle);
                    }
                    self.peers.active.insert(conn);
                } else if sub.told != ends {
                    if self.peers.news.is_empty() {
                        self.timers.set(Timer::News, self.now + self.config.replication.watermark_delay);
                    }
                    self.peers.news.insert(conn);
                }
            }
        }
        // Kept for its memory.
        self.peers.marked = marked;
    }

    /// The ends of logs have waited long enough for records to go with.
    pub(in super::super) fn tell_news(&mut self) {
        for conn in std::mem::take(&mut self.peers.news) {
            let Peers { streams, active, .. } = &mut self.peers;
            let Some(stream) = streams.get_mut(&conn) else { continue };
            let Side::Out(out) = &mut stream.side else { continue };
            let mut subs: Vec<(Handle, &mut Sub)> = out.subs.iter_mut().map(|(h, s)| (*h, s)).collect();
            subs.sort_unstable_by_key(|(handle, _)| *handle);
            for (handle, sub) in subs {
                let Some(partition) = self.partitions.get(sub.slot) else { continue };
                let ends = told(partition);
                if sub.told != ends && sub.next >= partition.log_end() {
                    sub.told = ends;
                    stream.encoder.from_leader(FromLeader::Watermark { handle, ends });
                }
            }
            active.insert(conn);
        }
    }

    /// Sends what a stream's followers lack, as far as its bounds allow.
    pub(super) fn pump(&mut self, conn: ConnId) {
        loop {
            let config = &self.config.replication;
            let may_catch_up = self.peers.catch_up_from <= self.now;
            let Some(stream) = self.peers.streams.get_mut(&conn) else { return };
            if stream.closing || stream.unsent_bytes + stream.encoder.len() > config.unsent_bytes_max {
                return;
            }
            let Side::Out(out) = &mut stream.side else { return };
            let has_reads = out.reads < config.reads_in_flight_max;
            let Some((handle, catches_up)) =
                out.next(self.now, may_catch_up && has_reads, config.catch_up_in_flight_max)
            else {
                if has_reads && let Some(turn) = out.catch_up_turn(config.catch_up_in_flight_max) {
                    // One timer for all streams: each that still has to wait then sets it anew.
                    self.timers.set_at_latest(Timer::CatchUp, turn.max(self.peers.catch_up_from));
                }
                return;
            };
            let Some(sub) = out.subs.get_mut(&handle) else { continue };
            sub.is_busy = false;
            let Some(partition) = self.partitions.get(sub.slot) else { continue };
            let credit = usize::try_from(out.credit).unwrap_or(0);
            let end = partition.log_end();
            let most = if catches_up {
                // A limit that somebody has set says what catching up may cost.
                if config.catch_up_bytes_per_second.is_none() {
                    sub.chase.look(self.now, sub.next, end);
                }
                (sub.chase.scale(config.catch_up_in_flight_max) / 4).max(1)
            } else {
                sub.chase = Chase::default();
                usize::MAX
            };
            let wanted = Wanted {
                from: sub.next,
                below: end,
                bytes_max: config.turn_bytes.min(most).min(credit),
                first_whole: true,
                is_urgent: sub.chase.is_urgent(),
            };
            let slot = sub.slot;
            match self.storage.read(self.now, slot, wanted, self.reads.next_ticket()) {
                Found::Nothing => {}
                Found::Memory(parts) => self.send_records(conn, handle, catches_up, parts),
                Found::Later => {
                    sub.is_busy = true;
                    out.reads += 1;
                    let read = StreamRead { conn, handle, from: wanted.from, catches_up };
                    self.reads.wait_for_stream(slot, read);
                }
            }
        }
    }

    fn send_records(&mut self, conn: ConnId, handle: Handle, catches_up: bool, batches: Vec<Bytes>) {
        let Peers { streams, stats, catch_up_from, .. } = &mut self.peers;
        let Some(stream) = streams.get_mut(&conn) else { return };
        let Side::Out(out) = &mut stream.side else { return };
        let Some(sub) = out.subs.get_mut(&handle) else { return };
        let Some(partition) = self.partitions.get(sub.slot) else { return };
        let Some((parts, next)) = without_gaps(partition, sub.next, batches) else {
            tracing::error!(partition = %partition.id, offset = %sub.next, "a read of the log gave no stored batches");
            return;
        };
        if parts.is_empty() {
            return;
        }
        let bytes: usize = parts.iter().map(Bytes::len).sum();
        let ends = told(partition);
        stream.encoder.records(handle, sub.epoch, ends, parts);
        sub.told = ends;
        sub.next = next;
        out.credit -= bytes as i64;
        stats.bytes_out += bytes as u64;
        if catches_up {
            sub.under_way = (sub.under_way.0 + bytes, next);
            if next >= partition.log_end() {
                sub.chase.reached_end();
            }
            out.catching_up += bytes;
            stats.bytes_out_catch_up += bytes as u64;
            stats.bytes_out_urgent += if sub.chase.is_urgent() { bytes as u64 } else { 0 };
            if let Some(rate) = self.config.replication.catch_up_bytes_per_second {
                *catch_up_from = after(self.now.max(*catch_up_from), bytes as u64, rate);
            }
        }
        let counts = partition.in_sync().is_some_and(|in_sync| in_sync.counts(stream.node));
        if next < partition.log_end() && !std::mem::replace(&mut sub.is_busy, true) {
            (if counts { &mut out.ready } else { &mut out.behind }).push_back(handle);
        }
        self.flush_when_full(conn);
    }

    /// Takes what was read from segments for a subscription.
    pub(in super::super) fn on_stream_read(
        &mut self,
        read: StreamRead,
        result: Result<Vec<Bytes>, ReadFault>,
    ) {
        let StreamRead { conn, handle, from, catches_up } = read;
        let Some(out) = self.peers.out(conn) else { return };
        out.reads -= 1;
        self.peers.active.insert(conn);
        let Some(out) = self.peers.out(conn) else { return };
        let Some(sub) = out.subs.get_mut(&handle).filter(|sub| sub.next == from) else { return };
        sub.is_busy = false;
        let slot = sub.slot;
        match result {
            Ok(batches) if !batches.is_empty() => self.send_records(conn, handle, catches_up, batches),
            // The follower comes again after a while, and finds out what there is then.
            nothing => {
                if let (Some(partition), Err(failed)) = (self.partitions.get(slot), &nothing) {
                    tracing::error!(partition = %partition.id, %failed, "the log could not be read for a follower");
                }
                self.end_subscription(conn, handle);
                self.refuse(conn, handle, Refusal::Unavailable);
            }
        }
    }

    /// Catch-up traffic may go on.
    pub(in super::super) fn go_on_catching_up(&mut self) {
        let conns = self.peers.conns();
        self.peers.active.extend(conns);
    }
}

/// When `bytes` are over at so many in a second.
fn after(from: Instant, bytes: u64, bytes_per_second: u64) -> Instant {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_second.max(1));
    from + std::time::Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
