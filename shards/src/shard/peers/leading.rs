//! Being followed: subscriptions of other shards, and the records and ends that they are sent.
//!
//! A subscription is a place in a log. What is appended is pushed from there: in-sync followers first, each partition a
//! turn's worth, from memory while the journal is being written; who is behind has what they leave, at most half of the
//! credit, from segments as the reader brings them. A stream whose credit or whose unsent bytes are used up waits; its
//! followers fall behind and lose nothing.
//!
//! Offsets that compaction left without a batch are sent as batches without records, of the epochs that this log knows:
//! so followers' logs have no gaps, their journals may go on taking one for damage, and every replica tells the same ends
//! of epochs.

use std::collections::VecDeque;

use bytes::Bytes;

use super::super::{Shard, Stop, Timer};
use super::{Peers, Side};
use crate::batch::{self, FILLER_OFFSETS_MAX};
use crate::front::Front;
use crate::ids::{ConnId, LeaderEpoch, Map, Offset};
use crate::log::Slot;
use crate::log::storage::{Found, ReadFault, Wanted};
use crate::partition::isr::Ends;
use crate::partition::leader::Followed;
use crate::partition::{Member, Partition};
use crate::stream::{
    Ack, Ends as Told, FromFollower, FromLeader, Handle, Messages, Refusal, StreamError, Subscribe,
};
use crate::time::Instant;

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
}

impl Outflow {
    /// All subscriptions are over.
    pub fn leave(&mut self) -> Vec<Slot> {
        self.ready.clear();
        self.behind.clear();
        let mut slots: Vec<Slot> = self.subs.drain().map(|(_, sub)| sub.slot).collect();
        slots.sort_unstable();
        slots
    }

    /// The next subscription that may be served. In-sync followers come first.
    fn next(&mut self, may_catch_up: bool) -> Option<(Handle, bool)> {
        if self.credit <= 0 {
            return None;
        }
        if let Some(handle) = self.ready.pop_front() {
            return Some((handle, false));
        }
        if !may_catch_up || self.credit * 2 < self.window {
            return None;
        }
        self.behind.pop_front().map(|handle| (handle, true))
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

/// Batches without records from `from` up to `to`, of the epochs that the log knows.
fn fill(partition: &Partition, mut from: Offset, to: Offset, epoch: LeaderEpoch, parts: &mut Vec<Bytes>) {
    while from < to {
        let known = partition.epoch_of(from).unwrap_or(epoch);
        let end = partition.end_of_epoch(known).map_or(to, |known| known.end);
        let end = if end > from { end.min(to) } else { to };
        let offsets = (end.0 - from.0).min(FILLER_OFFSETS_MAX);
        parts.push(batch::filler(from, offsets, known));
        from = from.plus(offsets);
    }
}

/// The batches as a log without gaps has them from `next` on, and where they end. `None`: they are no stored batches.
fn without_gaps(
    partition: &Partition,
    mut next: Offset,
    batches: Vec<Bytes>,
) -> Option<(Vec<Bytes>, Offset)> {
    let mut parts = Vec::with_capacity(batches.len());
    for part in batches {
        let (mut kept, mut at) = (0, 0);
        while at < part.len() {
            let header = batch::parse_header(&part[at..]).ok()?;
            let base = header.base()?;
            if base > next {
                if at > kept {
                    parts.push(part.slice(kept..at));
                    kept = at;
                }
                let epoch = LeaderEpoch::from_wire(header.leader_epoch)?;
                fill(partition, next, base, epoch, &mut parts);
            }
            next = base.plus(header.offsets());
            at += header.len as usize;
        }
        parts.push(part.slice(kept..));
    }
    Some((parts, next))
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
                let sub = Sub { slot, epoch, next: asked.offset, told: ends, is_busy: false };
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
        let Some(sub) = self.peers.out(conn).and_then(|out| out.subs.remove(&handle)) else { return };
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
                out.subs.remove(&member.handle);
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
        if !is_in_sync {
            self.reconsider(sub.slot);
        }
        self.settle(sub.slot);
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
            let Some((handle, catches_up)) = out.next(may_catch_up && has_reads) else {
                if !may_catch_up && !out.behind.is_empty() {
                    self.timers.set(Timer::CatchUp, self.peers.catch_up_from);
                }
                return;
            };
            let Some(sub) = out.subs.get_mut(&handle) else { continue };
            sub.is_busy = false;
            let Some(partition) = self.partitions.get(sub.slot) else { continue };
            let credit = usize::try_from(out.credit).unwrap_or(0);
            let wanted = Wanted {
                from: sub.next,
                below: partition.log_end(),
                bytes_max: config.turn_bytes.min(credit),
                first_whole: true,
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
            stats.bytes_out_catch_up += bytes as u64;
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

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::batch::{BatchBuilder, parse_header, put_patched};
    use crate::ids::{NodeId, PartitionId};
    use crate::log::checkpoint::LogState;

    /// A batch of two records.
    fn stored(base: u64, epoch: u32) -> Bytes {
        let mut out = BytesMut::new();
        let batch = BatchBuilder::new().record(1, None, None).record(2, None, None).build();
        put_patched(&mut out, &batch, Offset(base), LeaderEpoch(epoch));
        out.freeze()
    }

    /// The bases, ends, epochs and numbers of records of batches.
    fn seen(parts: &[Bytes]) -> Vec<(u64, u64, i32, u32)> {
        let of = |part: &Bytes| {
            let header = parse_header(part).unwrap();
            assert!(batch::check_crc(&part[..header.len as usize]));
            let base = header.base().unwrap();
            (base.0, base.plus(header.offsets()).0, header.leader_epoch, header.records)
        };
        parts.iter().map(of).collect()
    }

    #[test]
    fn gaps_are_filled_with_batches_of_the_epochs_that_the_log_knows() {
        let mut partition = Partition::new(PartitionId::default(), NodeId(1));
        let state = LogState {
            partition: PartitionId::default(),
            moved: crate::log::Lsn::ZERO,
            noted: crate::log::Lsn::ZERO,
            start: Offset(0),
            end: Offset(60),
            high_watermark: Offset(60),
            cleaned: Offset(0),
            segments: Vec::new(),
            epochs: vec![
                (LeaderEpoch(1), Offset(0)),
                (LeaderEpoch(3), Offset(20)),
                (LeaderEpoch(4), Offset(30)),
            ],
            producers: Vec::new(),
        };
        partition.restore(Instant::ZERO, &state);
        let both = Bytes::from([stored(40, 4), stored(50, 4)].concat());
        let batches = vec![stored(10, 1), stored(12, 1), both];
        let (parts, next) = without_gaps(&partition, Offset(8), batches).unwrap();
        let expected = [
            (8, 10, 1, 0),
            (10, 12, 1, 2),
            (12, 14, 1, 2),
            (14, 20, 1, 0),
            (20, 30, 3, 0),
            (30, 40, 4, 0),
            (40, 42, 4, 2),
            (42, 50, 4, 0),
            (50, 52, 4, 2),
        ];
        assert_eq!((seen(&parts), next), (expected.to_vec(), Offset(52)));
    }

    #[test]
    fn batches_without_gaps_are_sent_as_they_lie() {
        let partition = Partition::new(PartitionId::default(), NodeId(1));
        let batches = vec![stored(10, 1), stored(12, 1)];
        let (parts, next) = without_gaps(&partition, Offset(11), batches.clone()).unwrap();
        assert_eq!(next, Offset(14));
        assert!(parts.iter().zip(&batches).all(|(part, batch)| part.as_ptr() == batch.as_ptr()));
        assert!(without_gaps(&partition, Offset(0), vec![Bytes::from_static(b"damage")]).is_none());
    }
}
