//! Until when a node may act as a leader of partitions without hearing more.
//!
//! Pure; control core. A node asks whoever leads the metadata log, again and again, whether it is still counted on, and
//! what it is told holds from the moment at which it *asked*. Once nothing holds any more it refuses what only a leader
//! may answer, so a node that was cut off from the rest sends its clients away instead of keeping them.
//!
//! The lease does not keep two nodes from acting as leaders of one partition for a while, and nothing that is promised
//! needs it to: a node that is dead in the eyes of gossip and of the log is replaced at once, without waiting for the
//! lease to run out. What parts the two is the leader epoch. The earlier leader cannot acknowledge with `acks=all` nor
//! raise its high watermark, since one of the in-sync replicas, the new leader, has left its epoch; what it still shows
//! lies below a high watermark that the new leader's log contains; and `acks=1` promises nothing beyond its leader. If
//! it was the only in-sync replica, nobody was elected in its place.
//!
//! How long a stale leader acts at most:
//!
//! - Node N asks at `s` and the controller C answers at `h >= s`. N acts until `s + lease` at the latest.
//! - C answers only while N acknowledged something of the log that C sent no longer than `word_age_max` before, only for
//!   a life of N that is registered, not fenced, and whose fencing it has not begun, and only while a majority
//!   acknowledged something as young as that. So a deposed C answers nobody for longer than `word_age_max`, and N acts
//!   no longer than `lease + word_age_max` after either was cut off.
//! - A controller answers only once its own [`TakeControl`] is applied at home, so it knows of everything that earlier
//!   controllers fenced.
//! - The node that leads the log needs nobody's answer: it counts on itself for `lease` from when it sent what a majority
//!   acknowledged.
//!
//! [`TakeControl`]: super::metadata::command::Command::TakeControl

use std::time::Duration;

use highwater_shards::ids::{NodeId, RegistrationEpoch};
use highwater_shards::time::Instant;
use serde::{Deserialize, Serialize};

use super::metadata::envelope::{EnvelopeError, Schema, open, seal};
use super::metadata::image::Image;

/// The lease in elections: whoever leads the log is replaced, and asked, before leases run out.
const LEASE_FACTOR: u32 = 5;

/// The times of leases; they follow from those of the metadata log, which are alike on all nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Times {
    /// How long a node acts on a yes, from when it asked.
    pub lease: Duration,
    /// How old a word of the log may be on which the controller answers.
    pub word_age_max: Duration,
}

impl Times {
    /// `patience`: how long a follower waits for its leader, at least.
    pub fn of(patience: Duration) -> Self {
        Self { lease: patience.saturating_mul(LEASE_FACTOR), word_age_max: patience }
    }

    /// Until when a node may act that asked at `asked` and was told yes.
    pub fn lease_of(&self, asked: Instant) -> Instant {
        asked + self.lease
    }
}

/// A node asks whoever leads the metadata log whether it is counted on; answered with one byte, 1 for yes.
pub const CALL_LEASE: u16 = 0x0304;

const ASKING: Schema = Schema { name: "request for a lease", kind: CALL_LEASE, schema: 1 };

/// Which life of a node asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Asking {
    pub node: NodeId,
    pub epoch: RegistrationEpoch,
}

pub fn encode_asking(asking: &Asking) -> Vec<u8> {
    seal(ASKING, asking)
}

/// # Errors
/// When the bytes are no such request.
pub fn decode_asking(bytes: &[u8]) -> Result<Asking, EnvelopeError> {
    open(ASKING, bytes)
}

/// What the controller knows when it is asked.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    pub node: NodeId,
    /// The term of the metadata log in which it leads.
    pub term: u64,
    /// Since the sending of what a majority of voters acknowledged last; zero when it is the only voter.
    pub quorum_age: Duration,
    /// Since the sending of what the node that asks acknowledged last; zero when that is itself.
    pub heard_age: Duration,
}

/// Whether the controller may say that it counts on this life of the node. `is_being_fenced`: it has begun to fence it.
pub fn may_grant(
    image: &Image,
    times: Times,
    controller: Standing,
    asking: Asking,
    is_being_fenced: bool,
) -> bool {
    let has_taken_control =
        image.controller == Some(controller.node) && image.controller_term == controller.term;
    let is_counted_on =
        image.nodes.get(&asking.node).is_some_and(|info| info.epoch == asking.epoch && !info.fenced);
    let is_heard = controller.quorum_age.max(controller.heard_age) <= times.word_age_max;
    has_taken_control && is_heard && is_counted_on && !is_being_fenced
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::control::metadata::image::NodeInfo;

    const TIMES: Duration = Duration::from_millis(300);

    #[test]
    fn a_lease_outlasts_an_election_and_a_question_to_whoever_was_elected() {
        for patience in [1, 300, 5000].map(Duration::from_millis) {
            assert!(Times::of(patience).lease >= 4 * patience);
        }
    }

    #[test]
    fn only_a_controller_that_a_majority_heard_lately_counts_on_a_node_and_only_on_its_present_life() {
        let (node, epoch) = (NodeId(2), RegistrationEpoch(7));
        let times = Times::of(TIMES);
        let mut image = Image::default();
        (image.controller, image.controller_term) = (Some(NodeId(1)), 4);
        let info = NodeInfo { id: node, epoch, ..NodeInfo::default() };
        image.nodes.insert(node, Arc::new(info.clone()));
        let here = Standing { node: NodeId(1), term: 4, quorum_age: TIMES, heard_age: TIMES };
        let asking = Asking { node, epoch };
        let grants = |image: &Image, standing, asking| may_grant(image, times, standing, asking, false);
        assert!(grants(&image, here, asking));
        assert!(!may_grant(&image, times, here, asking, true), "it is being fenced");
        assert!(!grants(&image, Standing { term: 5, ..here }, asking), "it has not taken control yet");
        assert!(!grants(&image, Standing { node: NodeId(3), ..here }, asking));
        let late = TIMES + Duration::from_millis(1);
        assert!(!grants(&image, Standing { quorum_age: late, ..here }, asking), "it may be deposed");
        assert!(!grants(&image, Standing { heard_age: late, ..here }, asking), "its silence began before");
        let earlier = Asking { epoch: RegistrationEpoch(6), ..asking };
        assert!(!grants(&image, here, earlier), "an earlier life");
        image.nodes.insert(node, Arc::new(NodeInfo { fenced: true, ..info }));
        assert!(!grants(&image, here, asking), "it is fenced");
        assert_eq!(decode_asking(&encode_asking(&asking)), Ok(asking));
    }
}
