//! Who of a partition's replicas leads it, so that leaders are even over nodes.
//!
//! Control core, pure. A set's first node is its leader.

use std::collections::{BTreeMap, VecDeque};

/// A leader for each new set: the node that leads the fewest so far. `leads` counts by node.
pub(super) fn choose(sets: &mut [Vec<usize>], leads: &mut [u32]) {
    for set in sets {
        let slots = 0..set.len();
        if let Some(slot) = slots.min_by_key(|slot| (leads[set[*slot]], *slot)) {
            set[..=slot].rotate_right(1);
            leads[set[0]] += 1;
        }
    }
}

/// Hands leaderships over until no chain of them makes the counts more even; then they are as even as the sets
/// allow (a balanced orientation by augmenting paths). A chain hands one leadership on from each of its nodes to the
/// next, so that only the counts at its ends change.
pub(super) fn even_out(sets: &mut [Vec<usize>], leads: &mut [u32]) {
    let mut offers = Offers::new(sets, leads.len());
    // Nodes from which no chain leads further. They stay so: whatever they reach leads at least as many as they, less
    // one, and later chains begin at nodes that lead no more than they do, so none of them ends there.
    let mut stuck = vec![false; leads.len()];
    loop {
        let sources = (0..leads.len()).filter(|node| !stuck[*node]);
        let Some(source) = sources.max_by_key(|node| (leads[*node], usize::MAX - node)) else { return };
        match offers.chain(source, sets, leads) {
            Some(chain) => {
                for pair in chain.windows(2) {
                    offers.hand_over(pair[0], pair[1], sets);
                }
                leads[source] -= 1;
                leads[chain[chain.len() - 1]] += 1;
            }
            None => stuck[source] = true,
        }
    }
}

/// By leader and other replica: the partitions between them. An entry is void when its partition got another leader.
struct Offers {
    by_leader: Vec<BTreeMap<usize, Vec<u32>>>,
}

impl Offers {
    fn new(sets: &[Vec<usize>], nodes: usize) -> Self {
        let mut offers = Self { by_leader: vec![BTreeMap::new(); nodes] };
        for (partition, set) in (0..).zip(sets) {
            offers.add(partition, set);
        }
        offers
    }

    fn add(&mut self, partition: u32, set: &[usize]) {
        if let Some((leader, others)) = set.split_first() {
            for other in others {
                self.by_leader[*leader].entry(*other).or_default().push(partition);
            }
        }
    }

    /// The shortest chain from `source` to a node that leads at least two fewer.
    fn chain(&mut self, source: usize, sets: &[Vec<usize>], leads: &[u32]) -> Option<Vec<usize>> {
        let mut from = vec![usize::MAX; leads.len()];
        from[source] = source;
        let mut queue = VecDeque::from([source]);
        while let Some(node) = queue.pop_front() {
            if leads[node] + 2 <= leads[source] {
                let mut chain = vec![node];
                let mut at = node;
                while at != source {
                    at = from[at];
                    chain.push(at);
                }
                chain.reverse();
                return Some(chain);
            }
            for (other, partitions) in &mut self.by_leader[node] {
                if from[*other] != usize::MAX {
                    continue;
                }
                while partitions.last().is_some_and(|p| sets[*p as usize][0] != node) {
                    partitions.pop();
                }
                if !partitions.is_empty() {
                    from[*other] = node;
                    queue.push_back(*other);
                }
            }
        }
        None
    }

    fn hand_over(&mut self, from: usize, to: usize, sets: &mut [Vec<usize>]) {
        let partitions = self.by_leader[from].get_mut(&to).expect("the chain goes along offers");
        let partition = partitions.pop().expect("the chain goes along offers that are not void");
        let set = &mut sets[partition as usize];
        let slot = set.iter().position(|node| *node == to).expect("an offer is to a replica");
        set.swap(0, slot);
        self.add(partition, &sets[partition as usize]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_evens_out_what_no_single_handover_can() {
        // Node 0 leads two that only node 1 can take, and node 1 leads one that only node 2 can take.
        let mut sets = vec![vec![0, 1], vec![0, 1], vec![1, 2]];
        let mut leads = vec![2, 1, 0];
        even_out(&mut sets, &mut leads);
        assert_eq!(leads, [1, 1, 1]);
        let mut counted = [0; 3];
        sets.iter().for_each(|set| counted[set[0]] += 1);
        assert_eq!(counted, [1, 1, 1]);
    }

    #[test]
    fn the_outcome_is_the_best_that_any_choice_of_leaders_gives() {
        // All choices of leaders for a few small sets, against the sum of squares that is left.
        for case in 0_u64..60 {
            let mut draw = case;
            let mut next = |n: u64| {
                draw = super::super::ring::mix(draw);
                usize::try_from(draw % n).unwrap()
            };
            let nodes = 2 + next(3);
            let sets: Vec<Vec<usize>> = (0..1 + next(7))
                .map(|_| {
                    let mut all: Vec<usize> = (0..nodes).collect();
                    let first = next(nodes as u64);
                    all.rotate_left(first);
                    all.truncate(1 + next(2).min(nodes - 1));
                    all
                })
                .collect();
            let cost = |leads: &[u32]| leads.iter().map(|n| n * n).sum::<u32>();
            let mut best = u32::MAX;
            let choices: usize = sets.iter().map(Vec::len).product();
            for mut choice in 0..choices {
                let mut leads = vec![0; nodes];
                for set in &sets {
                    leads[set[choice % set.len()]] += 1;
                    choice /= set.len();
                }
                best = best.min(cost(&leads));
            }
            let (mut sets, mut leads) = (sets, vec![0; nodes]);
            choose(&mut sets, &mut leads);
            even_out(&mut sets, &mut leads);
            assert_eq!(cost(&leads), best, "case {case}: {sets:?}");
        }
    }
}
