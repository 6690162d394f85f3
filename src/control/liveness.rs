//! Which nodes the controller takes for dead: what the membership protocol says, held against what the leader of the
//! metadata log hears itself.
//!
//! Control core of the node that leads the metadata log; pure. Both witnesses only give hints: what counts is the
//! committed entry that fences a node, and a node that is fenced and lives unfences itself.
//!
//! 1. A node that the log's leader has not heard for [`SILENCE_MAX`] is fenced, whatever gossip says.
//! 2. One that gossip calls dead is fenced as soon as the log's leader has not heard it either, for as long as a follower
//!    waits for its leader. One that the log hears is not dead, whatever gossip says: the way of gossip may be blocked.
//!    Its lease may not have run out by then: see [`super::lease`] why nothing is lost by that.
//! 3. One that says itself that it leaves is fenced at once.
//! 4. A hint is about one life of a node: a life that has registered since is not touched.
//! 5. A node that came back in the same life was no dead one. Each time, gossip alone counts for less: the silence that
//!    rule 2 asks for doubles, up to that of rule 1, and halves again with each [`CALM`] without a fence.
//! 6. No node is fenced twice within [`FENCE_AGAIN`], so that its return and its fencing never chase each other.

use std::collections::BTreeMap;
use std::time::Duration;

use highwater_shards::ids::NodeId;
use highwater_shards::time::Instant;

use super::metadata::image::{Image, Incarnation};

/// Silence towards the log's leader after which a node is fenced, also when nothing else is known of it.
pub const SILENCE_MAX: Duration = Duration::from_secs(6);
/// Silence is never less than so many times the time that a follower waits for its leader, when that is long.
const SILENCE_FACTOR: u32 = 4;
/// Before a node that was to be fenced is fenced again.
pub const FENCE_AGAIN: Duration = Duration::from_secs(5);
/// After so long without being fenced, one return of a node is forgotten.
pub const CALM: Duration = Duration::from_secs(60);
/// Nodes that are remembered; more are not heard of by gossip either.
const NODES_MAX: usize = super::swim::MEMBERS_MAX;

/// What the membership protocol says of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hint {
    pub node: NodeId,
    /// The life of the node that this is about.
    pub incarnation: Incarnation,
    pub sign: Sign,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sign {
    Joined,
    Suspected,
    /// It objected to a suspicion.
    Alive,
    /// It said itself that it goes.
    Left,
    Died,
    /// It says something else of itself than before.
    Changed,
}

/// What the leader of the metadata log hears, told regularly and soon after a hint of a death.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heard {
    /// How long a follower waits for its leader, at least, before it stands for election.
    pub patience: Duration,
    /// Since when the leader has not heard each other member of the log.
    pub silent: Vec<(NodeId, Duration)>,
}

/// Why a node is to be fenced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    Silent(Duration),
    Died(Duration),
    Left,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Silent(time) => write!(f, "was not heard for {} ms", time.as_millis()),
            Self::Died(time) => {
                write!(f, "is dead as other nodes see it, and was not heard for {} ms", time.as_millis())
            }
            Self::Left => f.write_str("says that it stops"),
        }
    }
}

/// What is known of the nodes' lives. Hints are taken in on every node, so that whoever comes to lead knows them.
#[derive(Debug, Default)]
pub struct Liveness {
    nodes: BTreeMap<NodeId, Known>,
    /// To be fenced with the next proposal.
    decided: Vec<(NodeId, Reason)>,
}

#[derive(Debug, Default)]
struct Known {
    incarnation: Incarnation,
    gone: Option<Gone>,
    /// When it was last to be fenced, and how often it was by a hint in this life, less what was forgotten until then.
    fenced_at: Option<Instant>,
    returns: u32,
    /// Not to be fenced again before, unless that came to nothing.
    not_before: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Gone {
    Died,
    Left,
}

impl Liveness {
    pub fn on_hint(&mut self, hint: Hint) {
        if self.nodes.len() >= NODES_MAX && !self.nodes.contains_key(&hint.node) {
            return;
        }
        let known = self.nodes.entry(hint.node).or_default();
        if hint.incarnation < known.incarnation {
            return;
        }
        if hint.incarnation > known.incarnation {
            *known = Known { incarnation: hint.incarnation, ..Known::default() };
        }
        known.gone = match hint.sign {
            Sign::Joined | Sign::Alive => None,
            Sign::Died => Some(Gone::Died),
            Sign::Left => Some(Gone::Left),
            Sign::Suspected | Sign::Changed => known.gone,
        };
    }

    /// Decides anew, as the leader, whom to fence. `me` is never among them.
    pub fn on_heard(&mut self, now: Instant, heard: &Heard, image: &Image, me: NodeId) {
        self.decided.clear();
        self.nodes.retain(|node, known| image.nodes.contains_key(node) || known.gone.is_none());
        for &(node, silent) in heard.silent.iter().filter(|(node, _)| *node != me) {
            let Some(info) = image.nodes.get(&node).filter(|info| !info.fenced) else { continue };
            let known = self.nodes.entry(node).or_default();
            if known.not_before.is_some_and(|at| now < at) {
                continue;
            }
            if let Some(reason) = known.reason(now, info.incarnation, silent, heard.patience) {
                self.decided.push((node, reason));
            }
        }
    }

    /// The nodes to fence, each told once. Until then each look decides anew: what it decided before had to wait for its
    /// turn.
    pub fn take_decided(&mut self, now: Instant) -> Vec<(NodeId, Reason)> {
        for (node, reason) in &self.decided {
            let known = self.nodes.get_mut(node).expect("who is decided on is known");
            known.returns = match reason {
                Reason::Died(_) => known.returns_at(now).saturating_add(1),
                Reason::Silent(_) | Reason::Left => known.returns_at(now),
            };
            known.fenced_at = Some(now);
            known.not_before = Some(now + FENCE_AGAIN);
        }
        std::mem::take(&mut self.decided)
    }

    /// Whether the node is to be fenced with the next proposal.
    pub fn is_decided(&self, node: NodeId) -> bool {
        self.decided.iter().any(|(decided, _)| *decided == node)
    }

    /// What was decided did not come about: it may be decided again at once.
    pub fn on_failed(&mut self) {
        self.nodes.values_mut().for_each(|known| known.not_before = None);
    }

    /// This node does not lead (any more): what it decided is void.
    pub fn stop_deciding(&mut self) {
        self.decided.clear();
        self.on_failed();
    }
}

impl Known {
    fn reason(
        &self,
        now: Instant,
        registered: Incarnation,
        silent: Duration,
        patience: Duration,
    ) -> Option<Reason> {
        let silence_max = SILENCE_MAX.max(patience.saturating_mul(SILENCE_FACTOR));
        if silent >= silence_max {
            return Some(Reason::Silent(silent));
        }
        // A hint about a life that has not registered yet says that the registered one has ended.
        match self.gone.filter(|_| self.incarnation >= registered)? {
            Gone::Left => Some(Reason::Left),
            Gone::Died => {
                let asked = patience.saturating_mul(1 << self.returns_at(now).min(16)).min(silence_max);
                (silent >= asked).then_some(Reason::Died(silent))
            }
        }
    }

    /// How often it came back, as far as that still counts.
    fn returns_at(&self, now: Instant) -> u32 {
        let Some(at) = self.fenced_at else { return self.returns };
        let calm = now.since(at).as_nanos() / CALM.as_nanos();
        self.returns.saturating_sub(u32::try_from(calm).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::control::metadata::image::NodeInfo;

    const ME: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);
    const PATIENCE: Duration = Duration::from_millis(300);

    /// A leader with one other node that serves, in its fourth life.
    struct World {
        liveness: Liveness,
        image: Image,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            let mut image = Image::default();
            for id in [ME, OTHER] {
                let info = NodeInfo { id, incarnation: Incarnation(4), ..NodeInfo::default() };
                image.nodes.insert(id, Arc::new(info));
            }
            Self { liveness: Liveness::default(), image, now: Instant::ZERO + SILENCE_MAX }
        }

        fn hint(&mut self, incarnation: u64, sign: Sign) {
            let incarnation = Incarnation(incarnation);
            self.liveness.on_hint(Hint { node: OTHER, incarnation, sign });
        }

        fn silent(&mut self, ms: u64) -> Option<Reason> {
            let silent = Duration::from_millis(ms);
            let heard = Heard { patience: PATIENCE, silent: vec![(ME, Duration::MAX), (OTHER, silent)] };
            self.liveness.on_heard(self.now, &heard, &self.image, ME);
            let decided = self.liveness.take_decided(self.now);
            assert!(decided.iter().all(|(node, _)| *node == OTHER), "{decided:?}");
            assert!(self.liveness.take_decided(self.now).is_empty(), "told once");
            decided.first().map(|(_, reason)| *reason)
        }

        fn pass(&mut self, time: Duration) {
            self.now = self.now + time;
        }
    }

    #[test]
    fn a_node_that_gossip_calls_dead_is_fenced_once_the_log_does_not_hear_it_either() {
        let mut world = World::new();
        world.hint(4, Sign::Joined);
        assert_eq!(world.silent(5999), None, "silence alone takes longer");
        world.hint(4, Sign::Suspected);
        assert_eq!(world.silent(5999), None, "a suspicion is not yet a death");
        world.hint(4, Sign::Died);
        assert_eq!(world.silent(299), None, "the log hears it: the way of gossip may be blocked");
        assert_eq!(world.silent(300), Some(Reason::Died(PATIENCE)));
    }

    #[test]
    fn a_node_that_is_silent_for_long_is_fenced_without_any_gossip() {
        let mut world = World::new();
        assert_eq!(world.silent(5999), None);
        assert_eq!(world.silent(6000), Some(Reason::Silent(SILENCE_MAX)));
    }

    #[test]
    fn who_says_that_it_goes_is_fenced_although_it_is_heard() {
        let mut world = World::new();
        world.hint(4, Sign::Left);
        assert_eq!(world.silent(0), Some(Reason::Left));
    }

    #[test]
    fn a_hint_about_an_earlier_life_does_not_touch_the_one_that_registered_since() {
        for sign in [Sign::Died, Sign::Left] {
            let mut world = World::new();
            world.hint(3, sign);
            assert_eq!(world.silent(5000), None);
            world.hint(5, sign);
            assert!(world.silent(5000).is_some(), "the registered life has ended, and the next one too");
            let mut world = World::new();
            world.hint(5, Sign::Joined);
            world.hint(4, sign);
            assert_eq!(world.silent(5000), None, "a later life is there already");
        }
    }

    #[test]
    fn a_suspect_that_objects_or_comes_back_is_dead_no_more() {
        for sign in [Sign::Alive, Sign::Joined] {
            let mut world = World::new();
            world.hint(4, Sign::Died);
            world.hint(4, sign);
            assert_eq!(world.silent(5999), None);
        }
    }

    #[test]
    fn a_node_that_comes_back_each_time_is_fenced_later_each_time_and_in_calm_sooner_again() {
        let mut world = World::new();
        world.hint(4, Sign::Joined);
        let mut asked = Vec::new();
        for _ in 0..7 {
            // It died as gossip sees it, and comes back by itself a little later.
            world.hint(4, Sign::Died);
            let ms = (0..=6000).step_by(100).find(|ms| world.silent(*ms).is_some()).unwrap();
            asked.push(ms);
            world.hint(4, Sign::Joined);
            world.pass(FENCE_AGAIN);
        }
        assert_eq!(asked, [300, 600, 1200, 2400, 4800, 6000, 6000]);
        // Five returns count: after them, silence alone was enough.
        world.pass(CALM * 4);
        world.hint(4, Sign::Died);
        assert!(world.silent(599).is_none() && world.silent(600).is_some(), "one return is still remembered");
        // Another life begins with a clean sheet.
        let info = NodeInfo { id: OTHER, incarnation: Incarnation(5), ..NodeInfo::default() };
        world.image.nodes.insert(OTHER, Arc::new(info));
        world.hint(5, Sign::Joined);
        world.hint(5, Sign::Died);
        assert!(world.silent(300).is_some());
    }

    #[test]
    fn no_node_is_fenced_twice_in_a_row() {
        let mut world = World::new();
        world.hint(4, Sign::Died);
        assert!(world.silent(6000).is_some());
        // It unfenced itself, for a moment.
        world.pass(FENCE_AGAIN - Duration::from_millis(1));
        assert_eq!(world.silent(10_000), None);
        world.pass(Duration::from_millis(1));
        assert!(world.silent(10_000).is_some());
    }

    #[test]
    fn what_did_not_come_about_may_be_decided_again_at_once() {
        let mut world = World::new();
        assert!(world.silent(6000).is_some());
        world.liveness.on_failed();
        assert!(world.silent(6000).is_some());
    }

    #[test]
    fn a_decision_that_waits_for_its_turn_outlasts_another_look() {
        let mut world = World::new();
        world.hint(4, Sign::Died);
        let look = |world: &mut World, ms| {
            let heard = Heard { patience: PATIENCE, silent: vec![(OTHER, Duration::from_millis(ms))] };
            world.liveness.on_heard(world.now, &heard, &world.image, ME);
        };
        look(&mut world, 300);
        world.pass(Duration::from_millis(1));
        look(&mut world, 301);
        assert!(world.liveness.is_decided(OTHER));
        assert_eq!(world.liveness.take_decided(world.now).len(), 1);
        // It returned once only, however often it was looked at.
        world.pass(FENCE_AGAIN);
        assert_eq!(world.silent(599), None);
        look(&mut world, 600);
        look(&mut world, 0);
        assert!(!world.liveness.is_decided(OTHER), "it was heard meanwhile");
        assert!(world.silent(600).is_some(), "and that it nearly was fenced does not count");
    }

    #[test]
    fn fenced_and_unknown_nodes_are_left_alone() {
        let mut world = World::new();
        world.hint(4, Sign::Died);
        let info = NodeInfo { id: OTHER, incarnation: Incarnation(4), fenced: true, ..NodeInfo::default() };
        world.image.nodes.insert(OTHER, Arc::new(info));
        assert_eq!(world.silent(60_000), None);
        world.image.nodes.remove(&OTHER);
        assert_eq!(world.silent(60_000), None);
    }

    #[test]
    fn a_cluster_with_slow_heartbeats_is_patient() {
        let mut world = World::new();
        let heard = |ms| Heard {
            patience: Duration::from_secs(30),
            silent: vec![(OTHER, Duration::from_millis(ms))],
        };
        world.hint(4, Sign::Died);
        for (ms, want) in [(29_999, 0), (30_000, 1)] {
            world.liveness.on_heard(world.now, &heard(ms), &world.image, ME);
            assert_eq!(world.liveness.take_decided(world.now).len(), want, "{ms}");
        }
    }
}
