//! Following: links to the leaders' shards, subscriptions, and what is taken over from them.
//!
//! A link is one stream to one shard of one leader node, for all partitions that are followed there. It is asked for when
//! there is something to follow and closed when there is nothing any more; one that breaks is made again, a little later
//! each time. Which shard leads a partition only the other node knows: a subscription goes to the shard that had it last, or
//! to the first one, which names the right one.
//!
//! What a leader sends belongs to a subscription by its handle, which is never used twice: what comes late, of an epoch or
//! of a place in the log that is over, is dropped (R22). A log that cannot take more for the moment stalls the stream, and
//! the credit that the leader has used is not given again until it does. A log that has enough to do keeps a part of the
//! credit back, so that leaders send less to replicas that are not in sync, which nobody waits for.

mod taking;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::super::{Shard, Stop, Timer};
use super::Frames;
use crate::front::{CloseReason, Front};
use crate::ids::{ConnId, LeaderEpoch, Map, NodeId, ShardId};
use crate::log::Slot;
use crate::mail::ToControl;
use crate::partition::Partition;
use crate::partition::follower::Follower;
use crate::shard::Output;
use crate::stream::{Ends, FromFollower, Handle, Hello, Subscribe};
use crate::time::Instant;

/// The shard of a node at the other end.
pub(super) type LinkId = (NodeId, ShardId);

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
        if self.stop != Stop::No {
            self.peers.following.busy.clear();
        }
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
}
