//! Until when a node may lead partitions without hearing more, and how long its silence has to last before others may
//! lead in its place.
//!
//! Pure; control core. A node asks whoever leads the metadata log, again and again, whether it is still counted on, and
//! what it is told holds for [`LEASE`] from the moment at which it *asked*. Why no two nodes act as leaders of one
//! partition, a late entry of the log included:
//!
//! - Node N asks at `s` and the controller C answers at `h >= s`. N acts until `s + LEASE` at the latest, so not longer
//!   than `h + LEASE`, however long the answer was under way.
//! - C fences N for its silence no sooner than [`SILENCE_MIN`] after it last answered, and answers only for a life of N
//!   that is registered, not fenced, and whose fencing it has not begun. So under one controller nobody is elected in
//!   N's place before its lease is over.
//! - Under another: a new controller D is elected at `e` by a majority of voters. C answers only while a majority
//!   acknowledged something that it sent no longer than [`QUORUM_AGE_MAX`] ago. A voter that acknowledged C and then
//!   voted for D voted later, so C answered for the last time before `e + QUORUM_AGE_MAX`. D fences nobody before
//!   `e + SILENCE_MIN`: it counts silence from when it began to lead. And D answers only once its own [`TakeControl`]
//!   is applied at home, so it knows of everything that earlier controllers fenced.
//! - The node that leads the log needs nobody's answer: it counts on itself for [`LEASE`] from when what a majority
//!   acknowledged was sent, which is before the next leader's `e`.
//! - Hence `LEASE + QUORUM_AGE_MAX` and what clocks drift apart meanwhile have to be less than `SILENCE_MIN`.
//!
//! Clocks are only compared with themselves; they may run up to one part in [`DRIFT_PARTS`] apart. What an operator
//! fences by hand is fenced at once: then the log alone parts the leaders, by their epochs. So does a node's own stop.
//!
//! [`TakeControl`]: super::metadata::command::Command::TakeControl

use std::time::Duration;

use highwater_shards::ids::{NodeId, RegistrationEpoch};
use highwater_shards::time::Instant;
use serde::{Deserialize, Serialize};

use super::metadata::envelope::{EnvelopeError, Schema, open, seal};
use super::metadata::image::Image;

/// How long a node acts on what it was told, from when it asked.
pub const LEASE: Duration = Duration::from_millis(1500);
/// How often a node asks.
pub const ASK_EVERY: Duration = Duration::from_millis(300);
/// How old the word of a majority may be on which the controller answers.
pub const QUORUM_AGE_MAX: Duration = Duration::from_millis(500);
/// For so long at least the controller has not answered a node, and has led, before it fences it for its silence.
pub const SILENCE_MIN: Duration = Duration::from_millis(2100);
/// Clocks run at most one part in so many apart.
pub const DRIFT_PARTS: u32 = 50;

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
}

/// Whether the controller may say that it counts on this life of the node. `is_being_fenced`: it has begun to fence it.
pub fn may_grant(image: &Image, controller: Standing, asking: Asking, is_being_fenced: bool) -> bool {
    let has_taken_control =
        image.controller == Some(controller.node) && image.controller_term == controller.term;
    let is_counted_on =
        image.nodes.get(&asking.node).is_some_and(|info| info.epoch == asking.epoch && !info.fenced);
    has_taken_control && controller.quorum_age <= QUORUM_AGE_MAX && is_counted_on && !is_being_fenced
}

/// Until when a node may act that asked at `asked` and was told yes.
pub fn lease_of(asked: Instant) -> Instant {
    asked + LEASE
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::control::metadata::image::NodeInfo;

    #[test]
    fn a_lease_is_over_before_anybody_is_elected_in_its_place_however_clocks_drift() {
        let longest = LEASE + QUORUM_AGE_MAX;
        assert!(longest + longest / DRIFT_PARTS < SILENCE_MIN);
        assert!(ASK_EVERY * 3 < LEASE, "one answer may be lost, and the next one late");
    }

    #[test]
    fn only_a_controller_that_a_majority_heard_lately_counts_on_a_node_and_only_on_its_present_life() {
        let (node, epoch) = (NodeId(2), RegistrationEpoch(7));
        let mut image = Image::default();
        (image.controller, image.controller_term) = (Some(NodeId(1)), 4);
        let info = NodeInfo { id: node, epoch, ..NodeInfo::default() };
        image.nodes.insert(node, Arc::new(info.clone()));
        let here = Standing { node: NodeId(1), term: 4, quorum_age: QUORUM_AGE_MAX };
        let asking = Asking { node, epoch };
        assert!(may_grant(&image, here, asking, false));
        assert!(!may_grant(&image, here, asking, true), "it is being fenced");
        assert!(
            !may_grant(&image, Standing { term: 5, ..here }, asking, false),
            "it has not taken control yet"
        );
        assert!(!may_grant(&image, Standing { node: NodeId(3), ..here }, asking, false));
        let late = QUORUM_AGE_MAX + Duration::from_millis(1);
        assert!(
            !may_grant(&image, Standing { quorum_age: late, ..here }, asking, false),
            "it may be deposed"
        );
        let earlier = Asking { epoch: RegistrationEpoch(6), ..asking };
        assert!(!may_grant(&image, here, earlier, false), "an earlier life");
        image.nodes.insert(node, Arc::new(NodeInfo { fenced: true, ..info }));
        assert!(!may_grant(&image, here, asking, false), "it is fenced");
        assert_eq!(decode_asking(&encode_asking(&asking)), Ok(asking));
    }
}
