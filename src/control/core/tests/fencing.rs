//! The controller and nodes that gossip calls dead.

use super::*;
use crate::control::liveness::{Heard, Hint, Sign};

pub(super) const OTHER: NodeId = NodeId(2);

impl World {
    /// A leader that serves, and a second node that does.
    pub(super) fn of_two() -> Self {
        let mut world = Self::serving(1);
        let node = RegisterNode { node: OTHER, incarnation: Incarnation(3), ..RegisterNode::default() };
        world.commit_elsewhere(vec![Command::RegisterNode(node)]);
        world.unfence_elsewhere();
        world
    }

    /// An entry that another node proposed.
    pub(super) fn commit_elsewhere(&mut self, commands: Vec<Command>) {
        let entry = Entry { commands };
        let revision = Revision(self.disk.image.revision.0 + 1);
        self.disk.image.apply(revision, &entry);
        self.input(Input::Committed { revision, proposal: None, entry });
        self.run();
    }

    pub(super) fn unfence_elsewhere(&mut self) {
        let epoch = self.control.image().nodes[&OTHER].epoch;
        self.commit_elsewhere(vec![Command::UnfenceNode { node: OTHER, epoch }]);
        assert!(self.control.image().serves(OTHER));
    }

    fn hint(&mut self, sign: Sign) {
        self.input(Input::Hint(Hint { node: OTHER, incarnation: Incarnation(3), sign }));
    }

    fn silent(&mut self, ms: u64) {
        let silent = vec![(ME, Duration::ZERO), (OTHER, Duration::from_millis(ms))];
        self.input(Input::Heard(Heard { patience: Duration::from_millis(300), silent }));
    }
}

#[test]
fn a_death_that_the_controller_also_sees_is_one_entry_that_fences_and_elects() {
    let mut world = World::of_two();
    let topic = CreateTopic {
        id: TopicId(7),
        name: "t".into(),
        replicas: vec![vec![OTHER], vec![ME]],
        ..CreateTopic::default()
    };
    world.commit_elsewhere(vec![Command::CreateTopics(vec![topic])]);
    world.hint(Sign::Died);
    assert!(world.proposals.is_empty(), "a hint decides nothing");
    world.silent(10);
    assert!(world.proposals.is_empty(), "the log hears it");
    world.silent(1900);
    let (_, entry) = world.proposals.back().expect("a proposal");
    assert!(matches!(&entry.commands[..], [Command::FenceNode { node: OTHER, .. }]), "{entry:?}");
    world.run();
    assert!(!world.control.image().serves(OTHER));
    assert_eq!(world.control.stats().fences, 1);
    let image = world.control.image();
    let leaders: Vec<_> = image.topics().flat_map(|t| &t.partitions).map(|p| p.leader).collect();
    assert_eq!(leaders, [None, Some(ME)]);
    // It comes back by itself, and the old hint does not chase it.
    world.unfence_elsewhere();
    world.silent(1900);
    assert!(world.proposals.is_empty());
}

#[test]
fn only_the_controller_fences() {
    let mut world = World::of_two();
    world.hint(Sign::Died);
    world.input(Input::Leadership { term: 2, leader: Some(OTHER) });
    world.silent(60_000);
    world.run();
    assert!(world.control.image().serves(OTHER));
    // What it heard as a follower counts once it leads.
    world.input(Input::Leadership { term: 3, leader: Some(ME) });
    world.run();
    world.silent(1900);
    world.run();
    assert!(!world.control.image().serves(OTHER));
}

#[test]
fn a_fence_that_did_not_get_into_the_log_is_proposed_again() {
    let mut world = World::of_two();
    world.hint(Sign::Left);
    world.silent(0);
    let (proposal, _) = world.proposals.pop_front().expect("a proposal");
    world.input(Input::ProposalFailed { proposal, reason: "lost".into() });
    world.pass(RETRY_MAX + RETRY_MAX);
    world.silent(0);
    world.run();
    assert!(!world.control.image().serves(OTHER));
}
