//! Asks the leader of the metadata log whether it counts on this node, and passes on what others ask.
//!
//! Driver; control core. What may be answered and how long an answer holds is [`crate::control::lease`]'s.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use highwater_shards::ids::NodeId;
use highwater_shards::time::Instant;

use super::{Cluster, Effect, Running, Slots, State, Told};
use crate::control;
use crate::control::lease::{Asking, CALL_LEASE, Standing, Times, decode_asking, encode_asking};
use crate::control::metadata::image::Image;
use crate::net::{Class, Incoming, Network as _};
use crate::raft::Status;

/// Questions whose answers have not come yet, at most: the next one is asked when the last one may be lost.
const ASKED_MAX: usize = 4;

pub(super) struct Leases {
    pub times: Times,
    asked: Slots,
}

impl Leases {
    /// `patience`: how long a follower waits for its leader, at least.
    pub fn new(patience: Duration) -> Self {
        Self { times: Times::of(patience), asked: Slots::default() }
    }
}

impl Cluster {
    /// Asks for the next lease; to be called every [`super::LOOK_EVERY`].
    pub(super) fn renew_lease(&self, now: Instant, image: &Image) -> Option<Effect> {
        let State::Running(running) = &self.state else { return None };
        let Some(peers) = &self.peers else {
            // Nobody is there who could lead in its place.
            return Some(Effect::Input(control::Input::Lease { until: Instant::from_nanos(u64::MAX) }));
        };
        let me = self.member.node;
        let info = image.nodes.get(&me).filter(|info| !info.fenced)?;
        let asking = Asking { node: me, epoch: info.epoch };
        let status = running.raft.status();
        let leader = status.leader?;
        if leader == me {
            let standing = standing(&status, &BTreeMap::from([(me, Duration::ZERO)]), me)?;
            let times = running.leases.times;
            return Some(Effect::LeaseOfLeader { asking, standing, times, now });
        }
        let slot = running.leases.asked.take(ASKED_MAX)?;
        let (peers, tell, lease) = (peers.clone(), self.tell.clone(), running.leases.times.lease);
        tokio::task::spawn_local(async move {
            let body = Bytes::from(encode_asking(&asking));
            let answer = peers.call(leader, Class::Urgent, CALL_LEASE, body, lease).await;
            drop(slot);
            // No answer and a no are alike: the last lease runs out.
            if answer.is_ok_and(|bytes| bytes.as_ref() == [1]) {
                let _ = tell.send(Told::Leased { asked: now }).await;
            }
        });
        None
    }

    /// A lease from the question that was asked then.
    pub(super) fn on_leased(&self, asked: Instant) -> Option<Effect> {
        let State::Running(running) = &self.state else { return None };
        let until = running.leases.times.lease_of(asked);
        Some(Effect::Input(control::Input::Lease { until }))
    }
}

/// Another node asks this one.
pub(super) fn on_asking(running: &Running, call: Incoming) -> Vec<Effect> {
    let asking = match decode_asking(&call.body) {
        Ok(asking) if asking.node == call.from => asking,
        Ok(_) => {
            call.refuse("the caller asks for another node");
            return Vec::new();
        }
        Err(error) => {
            call.refuse(&error.to_string());
            return Vec::new();
        }
    };
    let status = running.raft.status();
    match standing(&status, &status.silent, asking.node).filter(|_| status.leader == Some(status.node)) {
        Some(standing) => vec![Effect::Lease { call, asking, standing, times: running.leases.times }],
        None => {
            call.answer(Bytes::from_static(&[0]));
            Vec::new()
        }
    }
}

/// `None` when a majority, or the node that asks, has not been heard in this term.
fn standing(status: &Status, heard: &BTreeMap<NodeId, Duration>, asking: NodeId) -> Option<Standing> {
    let is_sole_voter = status.voters.iter().eq([&status.node]);
    let quorum_age = if is_sole_voter { Duration::ZERO } else { status.quorum_age? };
    let heard_age = *heard.get(&asking)?;
    Some(Standing { node: status.node, term: status.term, quorum_age, heard_age })
}
