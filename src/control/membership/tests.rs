//! Single decisions, and random clusters in which nodes die, return, join and leave.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore as _, SeedableRng as _};

use super::*;

const DEAD: Duration = Duration::from_secs(60);

fn at(node: u32) -> Endpoint {
    Endpoint { host: format!("n{node}"), port: 9093 }
}

fn node(id: u32, votes: bool) -> Node {
    Node {
        disk: DiskId(u128::from(id)),
        at: at(id),
        rack: None,
        votes,
        may_vote: true,
        behind: Some(0),
        silent: Duration::ZERO,
    }
}

/// A cluster with these voters and these others; the first voter leads.
fn view(voters: &[u32], others: &[u32]) -> View {
    let nodes = voters.iter().map(|id| (NodeId(*id), node(*id, true)));
    let nodes = nodes.chain(others.iter().map(|id| (NodeId(*id), node(*id, false)))).collect();
    View {
        leader: NodeId(voters[0]),
        nodes,
        is_changing: false,
        is_joint: false,
        voters: None,
        leaving: BTreeSet::new(),
    }
}

impl View {
    fn dead(mut self, ids: &[u32]) -> Self {
        ids.iter().for_each(|id| self.nodes.get_mut(&NodeId(*id)).unwrap().silent = DEAD);
        self
    }

    fn leave(mut self, id: u32) -> Self {
        self.leaving.insert(NodeId(id));
        self
    }

    fn goal_of(mut self, voters: u32) -> Self {
        self.voters = Some(voters);
        self
    }

    fn with(mut self, id: u32, change: impl Fn(&mut Node)) -> Self {
        change(self.nodes.get_mut(&NodeId(id)).unwrap());
        self
    }
}

fn set(ids: &[u32]) -> Option<Step> {
    Some(Step::SetVoters(ids.iter().map(|id| NodeId(*id)).collect()))
}

#[test]
fn votes_are_given_to_odd_numbers_of_nodes() {
    assert_eq!(next(&view(&[1], &[])), None);
    assert_eq!(next(&view(&[1], &[2])), None, "two would tolerate no failure either");
    assert_eq!(next(&view(&[1], &[2, 3])), set(&[1, 2, 3]));
    assert_eq!(next(&view(&[1, 2], &[])), None, "two founded it: everything is kept twice");
    assert_eq!(next(&view(&[1, 2], &[3])), set(&[1, 2, 3]));
    assert_eq!(next(&view(&[1, 2, 3], &[4])), None);
    assert_eq!(next(&view(&[1, 2, 3], &[4, 5])), set(&[1, 2, 3, 4, 5]));
    assert_eq!(next(&view(&[1, 2, 3, 4], &[])), set(&[1, 2, 3]));
    assert_eq!(next(&view(&[1, 2, 3], &[4, 5, 6]).goal_of(3)), None);
    assert_eq!(next(&view(&[3, 1, 2], &[]).goal_of(1)), set(&[3]), "the leader keeps its vote");
    assert_eq!(next(&view(&[1], &[2, 3, 4]).goal_of(4)), set(&[1, 2, 3]));
}

#[test]
fn only_nodes_that_keep_up_and_may_vote_are_promoted() {
    let wanted = || view(&[1], &[2, 3]);
    assert_eq!(next(&wanted().with(3, |n| n.behind = Some(BEHIND_MAX))), set(&[1, 2, 3]));
    assert_eq!(next(&wanted().with(3, |n| n.behind = Some(BEHIND_MAX + 1))), None);
    assert_eq!(next(&wanted().with(3, |n| n.behind = None)), None);
    assert_eq!(next(&wanted().with(3, |n| n.may_vote = false)), None);
    assert_eq!(next(&wanted().with(3, |n| n.silent = HEARD_WITHIN)), None);
}

#[test]
fn racks_without_a_voter_come_first() {
    let racks = |ids: &[(u32, &str)], view: View| {
        ids.iter().fold(view, |view, (id, rack)| view.with(*id, |n| n.rack = Some((*rack).into())))
    };
    let view = racks(&[(1, "a"), (2, "a"), (3, "b"), (4, "c")], view(&[1], &[2, 3, 4]));
    assert_eq!(next(&view), set(&[1, 3, 4]));
}

#[test]
fn a_dead_voter_is_replaced_when_somebody_can_take_its_place() {
    assert_eq!(next(&view(&[1, 2, 3], &[4]).dead(&[3])), set(&[1, 2, 4]));
    assert_eq!(next(&view(&[1, 2, 3], &[]).dead(&[3])), None, "two of three are as good as two of two");
    assert_eq!(next(&view(&[1, 2, 3, 4, 5], &[]).dead(&[4, 5])), set(&[1, 2, 3]), "one more may fail then");
    assert_eq!(next(&view(&[1, 2, 3, 4, 5], &[]).dead(&[5])), None);
    assert_eq!(next(&view(&[1, 2, 3], &[4, 5]).dead(&[4])), None);
    assert_eq!(
        next(&view(&[1, 2, 3], &[4]).dead(&[2, 3])),
        None,
        "nothing can be decided without a majority"
    );
    assert_eq!(
        next(&view(&[1, 2, 3], &[4]).with(3, |n| n.silent = DEAD_AFTER / 2)),
        None,
        "it may come back"
    );
}

#[test]
fn whoever_is_asked_to_leave_leaves_step_by_step() {
    assert_eq!(next(&view(&[1, 2, 3], &[4]).leave(4)), Some(Step::Remove(NodeId(4))));
    let replaced = view(&[1, 2, 3], &[4]).leave(3);
    assert_eq!(next(&replaced), set(&[1, 2, 4]));
    assert_eq!(next(&view(&[1, 2, 4], &[3]).leave(3)), Some(Step::Remove(NodeId(3))));
    assert_eq!(next(&view(&[1, 2, 3], &[]).leave(3)), set(&[1, 2]));
    assert_eq!(next(&view(&[1, 2, 3], &[]).dead(&[3]).leave(3)), set(&[1, 2]));
    assert_eq!(next(&view(&[1, 2, 3], &[]).leave(1)), Some(Step::TransferLeader(NodeId(2))));
    assert_eq!(next(&view(&[1], &[2]).leave(1)), set(&[1, 2]), "somebody else has to be able to lead");
    let mut changing = replaced;
    changing.is_changing = true;
    assert_eq!(next(&changing), None, "one change at a time");
    let mut left = view(&[1, 2, 3], &[]);
    left.is_joint = true;
    assert_eq!(next(&left), set(&[1, 2, 3]), "what an earlier leader began is ended");
}

#[test]
fn removals_and_transfers_that_cannot_work_are_refused_with_words() {
    let check = |view: View, id: u32| view.check_removal(NodeId(id)).map_err(|why| why.to_string());
    assert_eq!(check(view(&[1, 2, 3], &[]), 3), Ok(()));
    assert_eq!(check(view(&[1, 2], &[]), 1), Ok(()));
    assert!(check(view(&[1, 2, 3], &[]), 9).unwrap_err().contains("not in the cluster"));
    assert!(check(view(&[1], &[]), 1).unwrap_err().contains("only one that may vote"));
    assert!(check(view(&[1, 2, 3], &[]).dead(&[2, 3]), 3).unwrap_err().contains("too few of the voters"));
    let transfer = |view: View, id: u32| view.check_transfer(NodeId(id));
    assert_eq!(transfer(view(&[1, 2, 3], &[4]), 2), Ok(()));
    assert_eq!(transfer(view(&[1, 2, 3], &[4]), 4), Err(Obstacle::NoVoter(NodeId(4))));
    assert_eq!(transfer(view(&[1, 2, 3], &[4]).dead(&[3]), 3), Err(Obstacle::Silent(NodeId(3))));
    assert_eq!(transfer(view(&[1, 2, 3], &[4]), 7), Err(Obstacle::NotAMember(NodeId(7))));
    assert_eq!(view(&[1, 2, 3], &[4]).with(2, |n| n.behind = Some(3)).successor(), Some(NodeId(3)));
}

#[test]
fn members_are_admitted_by_node_and_disk_together() {
    let members = view(&[1, 2], &[3]).nodes;
    let ours = ClusterId(77);
    let joining = |id: u32, disk: u128, host: u32, cluster| Joining {
        member: Member { node: NodeId(id), disk: DiskId(disk), at: at(host) },
        voter: true,
        cluster,
    };
    let answer = |joining: &Joining| admit(ours, &members, |id| id == NodeId(8), joining);
    assert_eq!(answer(&joining(3, 3, 3, None)), Admission::Known);
    assert_eq!(answer(&joining(3, 3, 3, Some(ours))), Admission::Known);
    let moved = joining(3, 3, 30, Some(ours));
    assert_eq!(answer(&moved), Admission::Move(moved.member.clone()));
    let new = joining(4, 4, 4, None);
    assert_eq!(answer(&new), Admission::Add(new.member.clone()));
    let gone = joining(5, 5, 5, Some(ours));
    assert_eq!(answer(&gone), Admission::Refuse(Refused::Removed { node: NodeId(5) }), "it was here before");
    let replaced = Refused::DiskReplaced { node: NodeId(3), known: DiskId(3) };
    assert_eq!(answer(&joining(3, 33, 3, None)), Admission::Refuse(replaced));
    assert_eq!(answer(&joining(8, 8, 8, None)), Admission::Refuse(Refused::Removed { node: NodeId(8) }));
    let theirs = ClusterId(78);
    let other = Refused::OtherCluster { ours, theirs };
    assert_eq!(answer(&joining(3, 3, 3, Some(theirs))), Admission::Refuse(other));
    let full = (0..1024).map(|id| (NodeId(id), node(id, false))).collect();
    let refused = admit(ours, &full, |_| false, &joining(5000, 1, 1, None));
    assert_eq!(refused, Admission::Refuse(Refused::Full { max: NODES_MAX }));
}

/// Makes the step as the log would, after checking what must hold of it.
fn take(view: &mut View, step: &Step) {
    let before = view.voters();
    assert!(view.has_majority(&before), "a step that cannot be committed: {step:?} of {view:?}");
    match step {
        Step::SetVoters(voters) => {
            assert!(!voters.is_empty() && view.has_majority(voters), "{step:?} of {view:?}");
            assert!(voters.contains(&view.leader) || !before.contains(&view.leader), "{step:?} of {view:?}");
            for id in voters.difference(&before) {
                let node = &view.nodes[id];
                assert!(node.can_be_promoted() && !view.leaving.contains(id), "{step:?} of {view:?}");
            }
            for id in before.difference(voters) {
                // A live voter loses its vote only when it leaves, or when they are too many or an even number.
                let excused = view.leaving.contains(id)
                    || !view.nodes[id].is_alive()
                    || before.len() > view.goal()
                    || voters.len() % 2 == 1;
                assert!(excused, "{id} lost its vote: {step:?} of {view:?}");
            }
            for (id, node) in &mut view.nodes {
                node.votes = voters.contains(id);
            }
            view.is_joint = false;
        }
        Step::TransferLeader(id) => {
            assert!(view.nodes[id].votes && view.nodes[id].is_alive() && view.leaving.contains(&view.leader));
            view.leader = *id;
        }
        Step::Remove(id) => {
            let gone = view.nodes.remove(id).unwrap();
            assert!(!gone.votes && view.leaving.remove(id) && *id != view.leader, "{step:?}");
        }
    }
}

/// Steps until there are none; the cluster must come to rest.
fn settle(view: &mut View) {
    for _ in 0..20 {
        match next(view) {
            Some(step) => take(view, &step),
            None => return,
        }
    }
    panic!("it never rests: {view:?}");
}

fn check_rest(view: &View) {
    let voters = view.voters();
    if !view.has_majority(&voters) {
        return;
    }
    let can = view
        .nodes
        .values()
        .filter(|node| node.may_vote && (node.votes && node.is_alive() || node.can_be_promoted()));
    let can = can.count();
    assert!(voters.len() <= view.goal() || view.leaving.contains(&view.leader), "{view:?}");
    assert!(voters.len() % 2 == 1 || voters.len() == 2, "an even number: {view:?}");
    if can >= view.goal() && view.goal() % 2 == 1 && view.leaving.is_empty() {
        assert_eq!(voters.len(), view.goal(), "{view:?}");
        assert!(voters.iter().all(|id| view.nodes[id].is_alive()), "a dead one votes: {view:?}");
    }
    for id in &view.leaving {
        assert!(view.check_removal(*id).is_err() || *id == view.leader, "{id} could have left: {view:?}");
    }
}

#[test]
fn random_clusters_come_to_rest_with_a_live_majority() {
    for seed in 0..20_000 {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut pick = |n: u64| u32::try_from(rng.next_u64() % n).unwrap();
        let founders: Vec<u32> = (1..=1 + pick(5)).collect();
        let mut view = view(&founders, &[]);
        view.voters = [None, None, Some(1), Some(3), Some(4), Some(5), Some(7)][pick(7) as usize];
        let mut next_id = 10;
        for _ in 0..12 {
            let ids: Vec<NodeId> = view.nodes.keys().copied().collect();
            let some = ids[pick(ids.len() as u64) as usize];
            match pick(6) {
                0 | 1 => {
                    let mut new = node(next_id, false);
                    new.may_vote = pick(5) > 0;
                    new.behind = [None, Some(5), Some(5), Some(5_000)][pick(4) as usize];
                    new.rack = [None, Some("a".into()), Some("b".into())][pick(3) as usize].clone();
                    view.nodes.insert(NodeId(next_id), new);
                    next_id += 1;
                }
                2 if some != view.leader => view.nodes.get_mut(&some).unwrap().silent = DEAD,
                3 => {
                    let node = view.nodes.get_mut(&some).unwrap();
                    (node.silent, node.behind) = (Duration::ZERO, Some(0));
                }
                4 if view.check_removal(some).is_ok() => _ = view.leaving.insert(some),
                _ => {}
            }
            settle(&mut view);
            check_rest(&view);
        }
    }
}
