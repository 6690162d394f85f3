//! Properties over seeded random clusters. Each failure names its case, which is its seed.

use std::collections::BTreeSet;

use highwater_shards::ids::{NodeId, PartitionId, PartitionIndex, TopicId};

use super::*;

const STRATEGIES: [Strategy; 3] = [Strategy::RoundRobin, Strategy::ConsistentHash, Strategy::LeastLoaded];

struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 = mix(self.0);
        usize::try_from(self.0 % n as u64).unwrap()
    }

    fn within(&mut self, from: usize, to: usize) -> usize {
        from + self.below(to - from + 1)
    }
}

fn with(strategy: Strategy) -> Placement {
    Placement { strategy, ..Placement::default() }
}

fn plain(count: usize) -> Vec<NodeView> {
    (1..=count).map(|id| NodeView::new(NodeId(id as u32))).collect()
}

fn node(id: usize, rack: &str) -> NodeView {
    NodeView { rack: Some(rack.into()), ..NodeView::new(NodeId(id as u32)) }
}

/// Nodes in racks of any sizes, some in none, with gaps between their ids.
fn racked(draw: &mut Draw, count: usize) -> Vec<NodeView> {
    let racks = draw.within(1, 6);
    let mut id = 0;
    (0..count)
        .map(|_| {
            id += draw.within(1, 9);
            match draw.below(racks + 1) {
                0 if racks > 2 => NodeView::new(NodeId(id as u32)),
                rack => node(id, &format!("r{rack}")),
            }
        })
        .collect()
}

fn new(topic: u128, count: usize, factor: usize) -> NewPartitions {
    NewPartitions { topic: TopicId(topic), first: PartitionIndex(0), count, factor }
}

fn placed(topic: u128, sets: Vec<Vec<NodeId>>) -> Vec<Placed> {
    let id = |index| PartitionId { topic: TopicId(topic), index: PartitionIndex(index) };
    (0..).map(id).zip(sets).map(Placed::from).collect()
}

/// Some topics, one after another, each over the load of those before.
fn topics(placement: &Placement, nodes: &[NodeView], sizes: &[usize], factor: usize) -> Vec<Placed> {
    let mut load = Load::default();
    let mut all = Vec::new();
    for (topic, count) in (1..).zip(sizes) {
        let sets = placement.place(nodes, &load, &new(topic, *count, factor)).unwrap();
        sets.iter().for_each(|set| load.add(set));
        all.extend(placed(topic, sets));
    }
    all
}

fn load_of(partitions: &[Placed]) -> Load {
    partitions.iter().map(|p| &p.replicas[..]).collect()
}

fn carried_out(partitions: &[Placed], plan: &MovePlan) -> Vec<Placed> {
    let mut after: BTreeMap<PartitionId, Vec<NodeId>> =
        partitions.iter().map(|p| (p.partition, p.replicas.clone())).collect();
    for change in &plan.partitions {
        let before = after.insert(change.partition, change.after.clone());
        assert_eq!(before.as_ref(), Some(&change.before), "a plan starts from what is");
    }
    after.into_iter().map(Placed::from).collect()
}

/// How many replicas stand in each rack that has any, most first.
fn spread(nodes: &[NodeView], set: &[NodeId]) -> Vec<usize> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for id in set {
        let view = nodes.iter().find(|node| node.id == *id).expect("a known node");
        let rack = view.rack.clone().unwrap_or_else(|| format!("alone {id}"));
        *counts.entry(rack).or_default() += 1;
    }
    let mut counts: Vec<usize> = counts.into_values().collect();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    counts
}

/// The best that [`spread`] can be: replicas poured into racks, always into the emptiest that has another node.
fn best_spread(nodes: &[NodeView], factor: usize) -> Vec<usize> {
    let all: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
    let sizes = spread(nodes, &all);
    let mut used = vec![0; sizes.len()];
    for _ in 0..factor {
        let rack = (0..sizes.len()).filter(|r| used[*r] < sizes[*r]).min_by_key(|r| used[*r]).unwrap();
        used[rack] += 1;
    }
    used.retain(|n| *n > 0);
    used.sort_unstable_by(|a, b| b.cmp(a));
    used
}

fn assert_distinct(case: u64, sets: &[Placed]) {
    for placed in sets {
        let nodes: BTreeSet<_> = placed.replicas.iter().collect();
        assert_eq!(nodes.len(), placed.replicas.len(), "case {case}: {placed:?}");
    }
}

/// How far from the mean the node that is furthest from it is, in thousandths of the mean.
fn imbalance_permille(nodes: &[NodeView], partitions: &[Placed]) -> u64 {
    let load = load_of(partitions);
    let loads: Vec<u64> = nodes.iter().map(|node| u64::from(load.of(node.id).replicas)).collect();
    let (total, count) = (loads.iter().sum::<u64>(), loads.len() as u64);
    loads.iter().map(|load| (load * count).abs_diff(total) * 1000 / total).max().unwrap()
}

#[test]
fn replicas_stand_on_distinct_nodes_and_racks_are_spread_as_well_as_can_be() {
    for case in 0..600 {
        let mut draw = Draw(case);
        let count = draw.within(1, 24);
        let nodes = racked(&mut draw, count);
        let factor = draw.within(1, count.min(6));
        let sizes: Vec<usize> = (0..draw.within(1, 4)).map(|_| draw.within(1, 40)).collect();
        for strategy in STRATEGIES {
            let all = topics(&with(strategy), &nodes, &sizes, factor);
            assert_distinct(case, &all);
            let best = best_spread(&nodes, factor);
            for placed in &all {
                assert_eq!(placed.replicas.len(), factor);
                assert_eq!(spread(&nodes, &placed.replicas), best, "case {case}, {strategy:?}");
            }
        }
    }
}

#[test]
fn capacity_is_used_up_before_a_request_is_refused_and_never_exceeded() {
    let (mut tight, mut refused) = (0, 0);
    for case in 0..1500 {
        let mut draw = Draw(case);
        let count = draw.within(2, 8);
        let mut nodes = racked(&mut draw, count);
        for node in &mut nodes {
            node.replicas_max = (draw.below(4) > 0).then(|| draw.below(30) as u32);
        }
        let factor = draw.within(1, count.min(4));
        let wanted = draw.within(1, 25);
        let fits = |units: &[u64]| {
            let usable: u64 = units.iter().map(|room| (*room).min(wanted as u64)).sum();
            usable >= (wanted * factor) as u64
        };
        let room: Vec<u64> = nodes.iter().map(|n| u64::from(n.replicas_max.unwrap_or(u32::MAX))).collect();
        let mut racks: BTreeMap<String, u64> = BTreeMap::new();
        for (view, room) in nodes.iter().zip(&room) {
            let rack = view.rack.clone().unwrap_or_else(|| format!("alone {}", view.id));
            *racks.entry(rack).or_default() += room;
        }
        let by_rack: Vec<u64> = racks.into_values().collect();
        for strategy in STRATEGIES {
            match with(strategy).place(&nodes, &Load::default(), &new(1, wanted, factor)) {
                Ok(sets) => {
                    assert!(fits(&room), "case {case}");
                    let sets = placed(1, sets);
                    assert_distinct(case, &sets);
                    let load = load_of(&sets);
                    for view in &nodes {
                        let most = view.replicas_max.unwrap_or(u32::MAX);
                        assert!(load.of(view.id).replicas <= most, "case {case}: {view:?}");
                    }
                    if fits(&by_rack) {
                        tight += 1;
                        for placed in &sets {
                            let spread = spread(&nodes, &placed.replicas);
                            assert_eq!(spread, vec![1; factor], "case {case}, {strategy:?}");
                        }
                    }
                }
                Err(PlacementError::NoRoom { .. }) => {
                    refused += 1;
                    assert!(!fits(&room), "case {case}, {strategy:?}: refused what fits");
                }
                Err(other) => panic!("case {case}: {other}"),
            }
        }
    }
    assert!(tight > 500 && refused > 500, "the cases do not meet the bound: {tight} and {refused}");
}

#[test]
fn consistent_hash_stays_within_15_percent_of_the_mean_from_its_boundary_on() {
    let placement = with(Strategy::ConsistentHash);
    for count in [2, 3, 4, 5, 7, 10, 16, 25, 50, 64] {
        let nodes = plain(count);
        for factor in 1..=count.min(4) {
            let boundary = (EVEN_FROM_REPLICAS_PER_NODE * count).div_ceil(factor);
            for topic in 0..3 {
                for partitions in [boundary, boundary + 1, boundary * 5 / 2] {
                    let sets = placement.place(&nodes, &Load::default(), &new(topic, partitions, factor));
                    let off = imbalance_permille(&nodes, &placed(topic, sets.unwrap()));
                    assert!(off <= 150, "{count} nodes, {partitions} x {factor}: {off} permille");
                }
            }
            let sizes = vec![7; boundary.div_ceil(7)];
            let off = imbalance_permille(&nodes, &topics(&placement, &nodes, &sizes, factor));
            assert!(off <= 150, "{count} nodes, many small topics x {factor}: {off} permille");
        }
    }
}

#[test]
fn round_robin_evens_out_each_topic_and_least_loaded_the_cluster() {
    let mut draw = Draw(5);
    for _ in 0..100 {
        let count = draw.within(1, 20);
        let nodes = plain(count);
        let factor = draw.within(1, count.min(4));
        let mut load = Load::default();
        load.add(&[NodeId(1)]);
        (0..draw.below(30)).for_each(|_| load.add(&[NodeId(1)]));
        let sets = |strategy| with(strategy).place(&nodes, &load, &new(9, count * 12, factor)).unwrap();
        let even = |values: Vec<u32>| values.iter().max().unwrap() - values.iter().min().unwrap() <= 1;
        let own = load_of(&placed(9, sets(Strategy::RoundRobin)));
        assert!(even(nodes.iter().map(|n| own.of(n.id).replicas).collect()), "{own:?}");
        assert!(even(nodes.iter().map(|n| own.of(n.id).leaders).collect()), "{own:?}");
        let mut all = load.clone();
        sets(Strategy::LeastLoaded).iter().for_each(|set| all.add(set));
        if factor < count || count == 1 {
            let highest = nodes.iter().skip(1).map(|n| all.of(n.id).replicas).max();
            let full = highest.is_none_or(|highest| load.of(NodeId(1)).replicas >= highest);
            assert!(full || even(nodes.iter().map(|n| all.of(n.id).replicas).collect()), "{all:?}");
        }
    }
}

#[test]
fn leaders_are_even_within_one_where_sets_leave_the_choice() {
    for case in 0..200 {
        let mut draw = Draw(case);
        let count = draw.within(2, 20);
        let factor = draw.within(2, count.min(4));
        let partitions = draw.within(count * 2, count * 30);
        for strategy in STRATEGIES {
            let all = topics(&with(strategy), &plain(count), &[partitions], factor);
            let load = load_of(&all);
            let leads: Vec<u32> = (1..=count).map(|id| load.of(NodeId(id as u32)).leaders).collect();
            let (least, most) = (leads.iter().min().unwrap(), leads.iter().max().unwrap());
            assert!(most - least <= 1, "case {case}, {strategy:?}: {leads:?}");
        }
    }
}

/// Joins and leaves one after another, with what must hold after each.
fn churn(case: u64, strategy: Strategy, racks: bool) {
    let mut draw = Draw(case);
    let placement = with(strategy);
    let count = draw.within(4, 16);
    let mut nodes = if racks { racked(&mut draw, count) } else { plain(count) };
    let factor = draw.within(1, 3);
    let sizes: Vec<usize> = (0..draw.within(1, 5)).map(|_| draw.within(1, 4) * count * 6).collect();
    let mut all = topics(&placement, &nodes, &sizes, factor);
    let replicas = all.iter().map(|p| p.replicas.len()).sum::<usize>();
    let mut next_id = 1000;
    for step in 0..6 {
        let words = format!("case {case}, {strategy:?}, racks {racks}, step {step}");
        let change = if draw.below(2) == 0 || nodes.len() <= factor + 1 {
            next_id += 1;
            let rack = nodes[draw.below(nodes.len())].rack.clone();
            nodes.push(NodeView { rack, ..NodeView::new(NodeId(next_id)) });
            Change::Join(vec![NodeId(next_id)])
        } else {
            let gone = nodes.swap_remove(draw.below(nodes.len()));
            Change::Leave(vec![gone.id])
        };
        let load = load_of(&all);
        let plan = placement.plan(&nodes, &all, &change).unwrap();
        let share = match &change {
            Change::Join(_) => replicas.div_ceil(nodes.len()),
            Change::Leave(ids) => load.of(ids[0]).replicas as usize,
            Change::Replace { .. } => unreachable!("not drawn"),
        };
        assert!(plan.moves() * 100 <= share * 105, "{words}: {} moves for {share}", plan.moves());
        let after = carried_out(&all, &plan);
        assert_distinct(case, &after);
        assert_eq!(plan.shortfall, 0, "{words}");
        for (before, placed) in all.iter().zip(&after) {
            assert_eq!(placed.replicas.len(), factor, "{words}");
            if let Change::Leave(ids) = &change {
                assert!(!placed.replicas.contains(&ids[0]), "{words}");
                if racks && before.replicas.contains(&ids[0]) {
                    // The one new replica stands as well as it can beside the others.
                    let others: Vec<NodeId> =
                        placed.replicas.iter().copied().filter(|n| before.replicas.contains(n)).collect();
                    let choices = nodes.iter().filter(|n| !others.contains(&n.id));
                    let best = choices.map(|n| spread(&nodes, &[&others[..], &[n.id]].concat())[0]).min();
                    assert_eq!(Some(spread(&nodes, &placed.replicas)[0]), best, "{words}");
                }
            } else if racks {
                let (now, was) = (spread(&nodes, &placed.replicas), spread(&nodes, &before.replicas));
                assert!(now.len() >= was.len() && now[0] <= was[0], "{words}: a spread got worse");
            }
        }
        let shown = load_of(&after);
        for node in &plan.nodes {
            let (was, is) = (load.of(node.node), shown.of(node.node));
            assert_eq!((node.replicas_before, node.leaders_before), (was.replicas, was.leaders), "{words}");
            assert_eq!((node.replicas_after, node.leaders_after), (is.replicas, is.leaders), "{words}");
        }
        if !racks {
            if let Change::Join(ids) = &change {
                assert!(shown.of(ids[0]).replicas as usize + 1 >= replicas / nodes.len(), "{words}");
            }
            let per_node = replicas / nodes.len();
            if strategy == Strategy::ConsistentHash && per_node >= EVEN_FROM_REPLICAS_PER_NODE {
                let off = imbalance_permille(&nodes, &after);
                assert!(off <= 150, "{words}: {off} permille off");
            }
            if factor > 1 {
                let leads: Vec<u32> = nodes.iter().map(|n| shown.of(n.id).leaders).collect();
                let (least, most) = (leads.iter().min().unwrap(), leads.iter().max().unwrap());
                assert!(most - least <= 1, "{words}: {leads:?}");
            }
        }
        all = after;
    }
}

#[test]
fn no_more_than_the_moved_share_moves_when_nodes_join_and_leave() {
    for case in 0..40 {
        for strategy in STRATEGIES {
            churn(case, strategy, false);
            churn(case, strategy, true);
        }
    }
}

#[test]
fn a_plan_keeps_capacities_and_counts_what_fits_nowhere() {
    let mut short = 0;
    for case in 0..300 {
        let mut draw = Draw(case);
        let count = draw.within(3, 10);
        let factor = draw.within(1, 2);
        for strategy in STRATEGIES {
            let placement = with(strategy);
            let mut nodes = plain(count);
            let all = topics(&placement, &nodes, &[count * 6], factor);
            let load = load_of(&all);
            for node in &mut nodes {
                node.replicas_max = Some(load.of(node.id).replicas + draw.below(4) as u32);
            }
            let gone = nodes.pop().unwrap();
            let plan = placement.plan(&nodes, &all, &Change::Leave(vec![gone.id])).unwrap();
            assert_eq!(plan.moves() as u64 + plan.shortfall, u64::from(load.of(gone.id).replicas));
            short += plan.shortfall;
            let mut now = load.clone();
            for change in plan.batches(3).flatten() {
                now.add(&change.after);
                for id in change.after.iter().filter(|id| !change.before.contains(id)) {
                    let view = nodes.iter().find(|n| n.id == *id).unwrap();
                    let gained = plan.nodes.iter().find(|n| n.node == *id).unwrap().replicas_after;
                    assert!(gained <= view.replicas_max.unwrap(), "case {case}, {strategy:?}");
                }
            }
        }
    }
    assert!(short > 0, "no case met the bound");
}

#[test]
fn a_substitute_takes_the_place_of_a_dead_node() {
    for strategy in STRATEGIES {
        let placement = with(strategy);
        let all = topics(&placement, &plain(5), &[40, 3], 3);
        let dead = NodeId(2);
        let mut nodes = plain(6);
        nodes.remove(1);
        let plan = placement.plan(&nodes, &all, &Change::Replace { dead, with: NodeId(6) }).unwrap();
        let load = load_of(&all);
        assert_eq!(plan.moves(), load.of(dead).replicas as usize);
        let after = load_of(&carried_out(&all, &plan));
        assert_eq!(after.of(NodeId(6)).replicas, load.of(dead).replicas);
        assert_eq!(after.of(dead), NodeLoad::default());
    }
}

#[test]
fn a_substitute_that_is_full_leaves_the_rest_to_the_strategy() {
    let placement = with(Strategy::LeastLoaded);
    let all = topics(&placement, &plain(5), &[40], 3);
    let mut nodes = plain(6);
    nodes.remove(1);
    nodes[4].replicas_max = Some(5);
    let change = Change::Replace { dead: NodeId(2), with: NodeId(6) };
    let plan = placement.plan(&nodes, &all, &change).unwrap();
    let after = load_of(&carried_out(&all, &plan));
    assert_eq!((plan.shortfall, plan.moves(), after.of(NodeId(6)).replicas), (0, 24, 5));
}

#[test]
fn the_same_input_gives_the_same_output_in_whatever_order_nodes_are_named() {
    for strategy in STRATEGIES {
        let placement = with(strategy);
        let mut draw = Draw(3);
        let mut nodes = racked(&mut draw, 11);
        let all = topics(&placement, &nodes, &[60, 9], 3);
        let gone = nodes.remove(4);
        let plan = placement.plan(&nodes, &all, &Change::Leave(vec![gone.id]));
        nodes.reverse();
        assert_eq!(plan, placement.plan(&nodes, &all, &Change::Leave(vec![gone.id])));
        nodes.insert(2, gone);
        assert_eq!(all, topics(&placement, &nodes, &[60, 9], 3));
    }
}

#[test]
fn a_bounded_plan_is_the_whole_plan_in_steps() {
    let placement = Placement::default();
    let all = topics(&placement, &plain(6), &[50], 3);
    let mut nodes = plain(6);
    nodes.truncate(4);
    let plan = placement.plan(&nodes, &all, &Change::Leave(vec![NodeId(5), NodeId(6)])).unwrap();
    for most in [1, 2, 7, 1000] {
        let steps: Vec<_> = plan.batches(most).collect();
        for step in &steps {
            let moves: usize = step.iter().map(PartitionChange::moves).sum();
            assert!(moves <= most || step.len() == 1, "{moves} copies in a step of {most}");
        }
        assert_eq!(steps.concat(), plan.partitions);
    }
}

#[test]
fn a_plan_is_shown_and_survives_its_bytes() {
    let placement = Placement::default();
    let all = topics(&placement, &plain(2), &[2], 2);
    let plan = placement.plan(&plain(3), &all, &Change::Join(vec![NodeId(3)])).unwrap();
    assert_eq!(
        plan.to_string(),
        "node 3 joins: 1 of 4 replicas move (25.0 %), 1 partitions change their leader\n\
         \u{20}     node                replicas                 leaders\n\
         \u{20}        1             2 -> 1 (-1)             1 -> 0 (-1)\n\
         \u{20}        2             2 -> 2 (+0)             1 -> 1 (+0)\n\
         \u{20}        3             0 -> 1 (+1)             0 -> 1 (+1)\n\
         \u{20} 00000000-0000-0000-0000-000000000001/0  [1,2] -> [3,2]\n"
    );
    let bytes = postcard::to_allocvec(&plan).unwrap();
    assert_eq!(postcard::from_bytes::<MovePlan>(&bytes).unwrap(), plan);
}

#[test]
fn what_cannot_be_is_refused_with_its_reason() {
    let placement = Placement::default();
    let place = |nodes: &[NodeView], count, factor| {
        placement.place(nodes, &Load::default(), &new(1, count, factor)).map(|_| ())
    };
    let (none, nodes) = (PlacementError::TooFewNodes { factor: 1, nodes: 0 }, plain(2));
    assert_eq!(place(&[], 1, 1), Err(none));
    assert_eq!(place(&nodes, 1, 0), Err(PlacementError::NoReplicas));
    assert_eq!(place(&nodes, 1, 3), Err(PlacementError::TooFewNodes { factor: 3, nodes: 2 }));
    assert_eq!(place(&[plain(1), plain(1)].concat(), 1, 1), Err(PlacementError::NodeTwice(NodeId(1))));
    assert_eq!(place(&plain(NODES_MAX + 1), 1, 1), Err(PlacementError::TooManyNodes));
    let no_points = Placement { virtual_nodes: 0, ..placement };
    let refused = no_points.place(&nodes, &Load::default(), &new(1, 1, 1));
    assert_eq!(refused, Err(PlacementError::VirtualNodes(0)));
    let plan = |partitions: &[Placed], change| placement.plan(&nodes, partitions, &change).map(|_| ());
    let stranger = Change::Join(vec![NodeId(9)]);
    assert_eq!(plan(&[], stranger), Err(PlacementError::UnknownNode(NodeId(9))));
    assert_eq!(plan(&[], Change::Leave(vec![NodeId(1)])), Err(PlacementError::StillThere(NodeId(1))));
    let twice = placed(1, vec![vec![NodeId(1), NodeId(1)]]);
    let id = twice[0].partition;
    assert_eq!(
        plan(&twice, Change::Leave(vec![NodeId(9)])),
        Err(PlacementError::ReplicaTwice(id, NodeId(1)))
    );
}
