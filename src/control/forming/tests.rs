//! The rules of forming a cluster, one by one.

use super::*;
use crate::control::metadata::image::DiskId;

fn at(host: &str) -> Endpoint {
    Endpoint { host: host.into(), port: 9093 }
}

fn member(node: u32, disk: u128) -> Member {
    Member { node: NodeId(node), disk: DiskId(disk), at: at(&format!("n{node}")) }
}

fn seeds() -> Vec<Endpoint> {
    vec![at("n1"), at("n2"), at("n3")]
}

fn founders() -> Founders {
    Founders::new(vec![member(1, 1), member(2, 2), member(3, 3)]).unwrap()
}

fn fresh(member: Member, proposes: Option<Digest>) -> Heard {
    Heard::Who(Box::new(Who { member, seeds: seeds(), standing: Standing::Fresh { proposes } }))
}

fn formed(member: Member, founders: Founders) -> Heard {
    let standing = Standing::Formed { cluster: founders.cluster_id(), founders };
    Heard::Who(Box::new(Who { member, seeds: seeds(), standing }))
}

/// A node on whose timer nobody waits.
struct Rig {
    forming: Forming,
    now: Instant,
}

impl Rig {
    fn new(member: Member, seeds: Vec<Endpoint>) -> Self {
        Self { forming: Forming::new(FormingConfig { member, seeds, seed: 1 }), now: Instant::ZERO }
    }

    fn node1() -> Self {
        Self::new(member(1, 1), seeds())
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.forming.poll_output()).collect()
    }

    /// Lets the timer run out; whom the node asks then.
    fn wake(&mut self) -> Vec<(CallId, Endpoint)> {
        self.now = self.now.max(self.forming.poll_timeout().expect("it is under way"));
        self.forming.handle(self.now, Input::Timeout);
        let asked = self.outputs().into_iter().filter_map(|output| match output {
            Output::Ask { call, seed } => Some((call, seed)),
            _ => None,
        });
        asked.collect()
    }

    /// One round in which whoever is asked answers so.
    fn round(&mut self, answer: impl Fn(&Endpoint) -> Result<Vec<Heard>, String>) -> Vec<Output> {
        for (call, seed) in self.wake() {
            self.forming.handle(self.now, Input::Heard { call, from: answer(&seed) });
        }
        self.outputs()
    }

    fn rounds(&mut self, n: usize, answer: impl Fn(&Endpoint) -> Result<Vec<Heard>, String>) -> Vec<Output> {
        (0..n).flat_map(|_| self.round(&answer)).collect()
    }

    /// What it says that it waits for, when this goes on.
    fn complaint(&mut self, answer: impl Fn(&Endpoint) -> Result<Vec<Heard>, String>) -> String {
        let outputs = self.rounds(8, answer);
        match outputs.last() {
            Some(Output::Waiting(what)) => what.clone(),
            other => panic!("{other:?}"),
        }
    }
}

/// The other two of three fresh nodes, which propose this.
fn others(proposes: Option<Digest>) -> impl Fn(&Endpoint) -> Result<Vec<Heard>, String> {
    move |seed| match seed.host.as_str() {
        "n2" => Ok(vec![fresh(member(2, 2), proposes)]),
        "n3" => Ok(vec![fresh(member(3, 3), proposes)]),
        other => panic!("{other} was asked"),
    }
}

fn proposes(rig: &Rig) -> Option<Digest> {
    match rig.forming.who().standing {
        Standing::Fresh { proposes } => proposes,
        Standing::Formed { .. } => panic!("formed"),
    }
}

#[test]
fn seeds_found_when_all_propose_the_same_and_not_before() {
    let mut rig = Rig::node1();
    assert_eq!(proposes(&rig), None);
    assert_eq!(rig.round(others(None)), []);
    assert_eq!(proposes(&rig), Some(founders().digest()));
    assert_eq!(rig.round(others(None)), [], "they have not turned to it yet");
    let want = Output::Found { cluster: founders().cluster_id(), founders: founders() };
    assert_eq!(rig.round(others(Some(founders().digest()))), [want]);
    assert_eq!(rig.forming.poll_timeout(), None);
}

#[test]
fn agreement_counts_only_when_it_was_asked_for_after_this_node_turned_to_it() {
    let mut rig = Rig::node1();
    let agreed = Some(founders().digest());
    assert_eq!(rig.round(others(agreed)), [], "this node has just learnt whom it would found with");
    assert!(matches!(rig.round(others(agreed))[..], [Output::Found { .. }]));
}

#[test]
fn answers_to_an_earlier_round_do_not_count() {
    let mut rig = Rig::node1();
    let first = rig.wake();
    assert_eq!(rig.wake(), [], "the round ends by the timer");
    let second = rig.wake();
    for (call, seed) in first.iter().chain(&second[..1]) {
        rig.forming.handle(rig.now, Input::Heard { call: *call, from: others(None)(seed) });
    }
    assert_eq!((rig.outputs().len(), proposes(&rig)), (0, None), "one answer of this round is missing");
}

#[test]
fn a_disk_that_changes_makes_everybody_agree_anew() {
    let mut rig = Rig::node1();
    let old = Some(founders().digest());
    rig.round(others(None));
    let wiped = |seed: &Endpoint| match seed.host.as_str() {
        "n2" => Ok(vec![fresh(member(2, 2), old)]),
        _ => Ok(vec![fresh(member(3, 33), None)]),
    };
    assert_eq!(rig.rounds(2, wiped), []);
    assert_ne!(proposes(&rig), old);
}

#[test]
fn a_node_alone_founds_its_own_cluster() {
    let mut rig = Rig::new(member(1, 1), vec![at("n1")]);
    assert_eq!(rig.wake(), []);
    rig.now = rig.forming.poll_timeout().unwrap();
    rig.forming.handle(rig.now, Input::Timeout);
    assert!(
        matches!(&rig.outputs()[..], [Output::Found { founders, .. }] if founders.members() == [member(1, 1)])
    );
}

#[test]
fn a_missing_seed_is_named_and_nobody_founds() {
    let why = Rig::node1().complaint(|seed| match seed.host.as_str() {
        "n2" => Ok(vec![fresh(member(2, 2), None)]),
        _ => Err("the name cannot be resolved".into()),
    });
    assert_eq!(why, "2 of 3 seeds are ready to found the cluster; n3:9093: the name cannot be resolved");
    let why = Rig::node1().complaint(|_| Ok(vec![Heard::Failed("connection refused".into())]));
    assert!(
        why.starts_with("1 of 3 seeds") && why.contains("n2:9093: connection refused; n3:9093: conn"),
        "{why}"
    );
}

#[test]
fn pauses_grow_to_a_second_and_it_never_gives_up() {
    let mut rig = Rig::node1();
    let mut said = 0;
    let mut before = rig.now;
    for round in 0..1000 {
        let outputs = rig.round(|_| Err("no such name".into()));
        said += outputs.iter().filter(|output| matches!(output, Output::Waiting(_))).count();
        let pause = rig.forming.poll_timeout().expect("it goes on") - rig.now;
        assert!(pause <= PAUSE_MAX && (round < 5 || pause >= PAUSE_MAX / 2), "{pause:?}");
        before = rig.now;
    }
    let often = (before - Instant::ZERO).as_secs() / SAY_AGAIN.as_secs();
    assert!(said > 50 && said as u64 <= often + 1, "{said} in {before:?}");
}

#[test]
fn a_node_that_is_no_seed_never_founds() {
    let mut rig = Rig::new(member(4, 4), seeds());
    let why = rig.complaint(|seed| match seed.host.as_str() {
        "n1" => Ok(vec![fresh(member(1, 1), Some(founders().digest()))]),
        _ => others(Some(founders().digest()))(seed),
    });
    assert!(why.starts_with("no seed is in a cluster yet, and this node (n4:9093) is not among"), "{why}");
    assert_eq!(proposes(&rig), None);
}

#[test]
fn a_cluster_that_is_there_is_joined_through_any_of_its_nodes() {
    let mut rig = Rig::new(member(4, 4), seeds());
    let answer = |seed: &Endpoint| match seed.host.as_str() {
        "n1" => Err("down".into()),
        "n2" => Ok(vec![formed(member(2, 2), founders())]),
        _ => Ok(vec![formed(member(3, 3), founders())]),
    };
    let mut through = Vec::new();
    for _ in 0..20 {
        let outputs = rig.round(answer);
        let Some(Output::Join { call, node, cluster, .. }) = outputs.last().cloned() else {
            panic!("{outputs:?}")
        };
        assert_eq!(cluster, founders().cluster_id());
        through.push(node.0);
        let answer = Ok(JoinAnswer::NotNow("no leader".into()));
        rig.forming.handle(rig.now, Input::JoinAnswered { call, answer });
        rig.outputs();
    }
    assert!(through.contains(&2) && through.contains(&3), "{through:?}");
    let outputs = rig.round(answer);
    let Some(Output::Join { call, cluster, .. }) = outputs.last().cloned() else { panic!("{outputs:?}") };
    let welcome = JoinAnswer::Welcome { cluster, founders: founders() };
    rig.forming.handle(rig.now, Input::JoinAnswered { call, answer: Ok(welcome) });
    assert_eq!(rig.outputs(), [Output::Joined { cluster, founders: founders() }]);
}

#[test]
fn a_seed_whose_cluster_was_founded_with_it_founds_it_too() {
    let mut rig = Rig::node1();
    let outputs = rig.round(|seed| match seed.host.as_str() {
        "n2" => Ok(vec![formed(member(2, 2), founders())]),
        _ => Err("down".into()),
    });
    assert_eq!(outputs, [Output::Found { cluster: founders().cluster_id(), founders: founders() }]);
}

#[test]
fn a_seed_that_was_not_there_at_the_founding_joins() {
    let two = Founders::new(vec![member(2, 2), member(3, 3)]).unwrap();
    let outputs = Rig::node1().round(|seed| match seed.host.as_str() {
        "n2" => Ok(vec![formed(member(2, 2), two.clone())]),
        _ => Ok(vec![fresh(member(3, 3), None)]),
    });
    assert!(matches!(outputs[..], [Output::Join { node: NodeId(2), .. }]), "{outputs:?}");
}

#[test]
fn a_wiped_founder_is_refused_under_its_old_id() {
    let mut rig = Rig::new(member(1, 100), seeds());
    let outputs = rig.round(|seed| match seed.host.as_str() {
        "n2" => Ok(vec![formed(member(2, 2), founders())]),
        _ => Err("down".into()),
    });
    let [Output::Fatal(fatal)] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!(*fatal, Fatal::DiskReplaced { node: NodeId(1), cluster: founders().cluster_id() });
    assert!(fatal.to_string().contains("highwater cluster remove 1"), "{fatal}");
}

#[test]
fn two_wiped_seeds_of_three_found_nothing() {
    // Node 1 kept its disk but is not reached: 2 and 3 have only each other.
    let mut rig = Rig::new(member(2, 20), seeds());
    let why = rig.complaint(|seed| match seed.host.as_str() {
        "n3" => Ok(vec![fresh(member(3, 30), None)]),
        _ => Ok(vec![Heard::Failed("no answer in time".into())]),
    });
    assert!(why.starts_with("2 of 3 seeds are ready") && why.contains("n1:9093: no answer in time"), "{why}");
}

#[test]
fn the_words_of_the_cluster_about_a_join_are_final_only_when_they_say_so() {
    let why = Refused::DiskReplaced { node: NodeId(4), known: DiskId(1) };
    let cluster = founders().cluster_id();
    let other = JoinAnswer::Welcome { cluster: ClusterId(1), founders: Founders::default() };
    for (answer, fatal) in [
        (Err("no answer in time".to_owned()), None),
        (Ok(JoinAnswer::NotNow("no leader".into())), None),
        (Ok(other), None),
        (Ok(JoinAnswer::Refused(why.clone())), Some(Fatal::Refused { cluster, why })),
    ] {
        let mut rig = Rig::new(member(4, 4), seeds());
        let outputs = rig.round(|_| Ok(vec![formed(member(2, 2), founders())]));
        let [Output::Join { call, .. }] = outputs[..] else { panic!("{outputs:?}") };
        rig.forming
            .handle(rig.now, Input::JoinAnswered { call: CallId(999), answer: Err("of another".into()) });
        rig.forming.handle(rig.now, Input::JoinAnswered { call, answer });
        let outputs = rig.outputs();
        assert_eq!(outputs.last(), fatal.clone().map(Output::Fatal).as_ref());
        assert_eq!(rig.forming.poll_timeout().is_some(), fatal.is_none());
    }
}

#[test]
fn a_join_without_an_answer_is_given_up_and_tried_again() {
    let mut rig = Rig::new(member(4, 4), seeds());
    let answer = |_: &Endpoint| Ok(vec![formed(member(2, 2), founders())]);
    assert!(matches!(rig.round(answer)[..], [Output::Join { .. }]));
    assert_eq!(rig.wake(), []);
    assert!(matches!(rig.round(answer)[..], [Output::Join { .. }]));
}

#[test]
fn identities_that_cannot_be_right_end_the_node() {
    let one = |heard: Heard| {
        let outputs = Rig::node1().round(|seed| match seed.host.as_str() {
            "n2" => Ok(vec![heard.clone()]),
            _ => Err("down".into()),
        });
        match &outputs[..] {
            [Output::Fatal(fatal)] => fatal.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let mut twin = member(2, 2);
    twin.node = NodeId(1);
    assert!(one(fresh(twin.clone(), None)).contains("n2:9093 answers under the id of this node, 1"));
    assert!(one(formed(twin, founders())).contains("answers under the id of this node, 1"));
    assert!(one(fresh(member(2, 1), None)).contains("node 2 at n2:9093 has the same disk id"));
    assert!(
        one(Heard::Rejected(Rejection::SameNodeId)).contains("n2:9093 answers under the id of this node, 1")
    );
    assert!(one(Heard::Rejected(Rejection::DiskReplaced)).contains("n2:9093 knows node 1 with another disk"));
}

#[test]
fn seeds_of_two_clusters_end_the_node_and_are_named() {
    let other = Founders::new(vec![member(3, 3)]).unwrap();
    let outputs = Rig::node1().round(|seed| match seed.host.as_str() {
        "n2" => Ok(vec![formed(member(2, 2), Founders::new(vec![member(2, 2)]).unwrap())]),
        _ => Ok(vec![formed(member(3, 3), other.clone())]),
    });
    let [Output::Fatal(fatal @ Fatal::TwoClusters { .. })] = &outputs[..] else { panic!("{outputs:?}") };
    let words = fatal.to_string();
    assert!(
        words.contains("n2:9093 to") && words.contains(&format!("n3:9093 to {}", other.cluster_id())),
        "{words}"
    );
}

#[test]
fn two_other_seeds_with_one_id_keep_everybody_waiting_and_are_named() {
    let why = Rig::node1().complaint(|seed| {
        let mut member = member(2, if seed.host == "n2" { 2 } else { 3 });
        member.at = seed.clone();
        Ok(vec![fresh(member, None)])
    });
    assert!(why.contains("n2:9093 and n3:9093 both answer as node 2"), "{why}");
    let why = Rig::node1().complaint(|seed| match seed.host.as_str() {
        "n2" => Ok(vec![fresh(member(2, 2), None)]),
        _ => Ok(vec![fresh(member(3, 2), None)]),
    });
    assert!(why.contains("n2:9093 and n3:9093 have the same disk id"), "{why}");
}

#[test]
fn nodes_with_other_seeds_are_named_with_the_difference() {
    let why = Rig::node1().complaint(|seed| {
        let Heard::Who(mut who) = others(None)(seed).unwrap().remove(0) else { panic!() };
        if seed.host == "n3" {
            who.seeds = vec![at("n1"), at("n3"), at("n9")];
        }
        Ok(vec![Heard::Who(who)])
    });
    let want =
        "n3:9093 (node 3) has other `cluster.seeds`: it alone names n9:9093, this node alone names n2:9093";
    assert!(why.contains(want), "{why}");
}

#[test]
fn a_seed_under_another_name_than_its_node_advertises_founds_nothing() {
    let under = vec![at("alias"), at("n2"), at("n3")];
    let why = Rig::new(member(1, 1), under.clone()).complaint(|seed| match seed.host.as_str() {
        "alias" => Ok(vec![Heard::Myself]),
        _ => others(None)(seed),
    });
    assert!(why.contains("this node (n1:9093) is not among `cluster.seeds`"), "{why}");
    assert!(why.contains("alias:9093 is node 1, which advertises n1:9093: set its"), "{why}");
    let both = vec![at("alias"), at("n1")];
    let why = Rig::new(member(1, 1), both).complaint(|_| Ok(vec![fresh(member(1, 1), None)]));
    assert!(why.contains("alias:9093 is node 1, which advertises n1:9093"), "{why}");
}

#[test]
fn a_name_with_several_addresses_is_one_node_or_founds_nothing() {
    let several = |heard: Vec<Heard>| {
        move |seed: &Endpoint| match seed.host.as_str() {
            "n2" => Ok(heard.clone()),
            _ => others(None)(seed),
        }
    };
    let refused = Heard::Failed("connection refused".into());
    let both = vec![refused.clone(), fresh(member(2, 2), None), fresh(member(2, 2), None)];
    let mut rig = Rig::node1();
    rig.round(several(both));
    assert_eq!(proposes(&rig), Some(founders().digest()));
    let why = Rig::node1().complaint(several(vec![fresh(member(2, 2), None), fresh(member(5, 5), None)]));
    assert!(why.contains("n2:9093 leads to more than one node (n2:9093 and n5:9093)"), "{why}");
    let why = Rig::node1().complaint(several(vec![refused.clone(), refused]));
    assert!(why.contains("n2:9093: connection refused"), "{why}");
    let why = Rig::node1().complaint(several(vec![]));
    assert!(why.contains("n2:9093: the name has no address"), "{why}");
    // To join, any node behind the name will do.
    let outputs = Rig::new(member(4, 4), vec![at("all")])
        .round(|_| Ok(vec![fresh(member(5, 5), None), formed(member(2, 2), founders())]));
    assert!(matches!(outputs[..], [Output::Join { node: NodeId(2), .. }]), "{outputs:?}");
}

#[test]
fn an_operator_can_name_another_node_to_join_through() {
    let mut rig = Rig::new(member(4, 4), seeds());
    rig.round(|_| Err("down".into()));
    rig.forming.handle(rig.now, Input::JoinThrough(at("n8")));
    assert_eq!(rig.forming.poll_timeout(), Some(rig.now), "at once");
    let outputs = rig.round(|seed| match seed.host.as_str() {
        "n8" => Ok(vec![formed(member(8, 8), founders())]),
        _ => Err("down".into()),
    });
    assert!(matches!(outputs[..], [Output::Join { node: NodeId(8), .. }]), "{outputs:?}");
    // For founding it does not count.
    let mut rig = Rig::node1();
    rig.forming.handle(rig.now, Input::JoinThrough(at("n8")));
    let outputs = rig.rounds(2, |seed| match seed.host.as_str() {
        "n8" => Err("down".into()),
        _ => others(Some(founders().digest()))(seed),
    });
    assert!(matches!(outputs[..], [Output::Found { .. }]), "{outputs:?}");
}
