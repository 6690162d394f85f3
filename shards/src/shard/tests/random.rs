//! Three shards under random faults: what was acknowledged stays, logs agree below high watermarks, which only grow, and
//! when all is well again everything comes together.
//!
//! The controller of this test elects out of the in-sync replicas, takes wishes as they are when it gets to them, and takes a
//! node that restarts out of the sets, as the real one does.

use std::collections::BTreeMap;

use super::cluster::*;
use super::*;
use crate::mail::IsrRefusal;

/// A small generator, so that a failure repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % n
    }

    fn node(&mut self) -> NodeId {
        [A, B, C][self.below(3)]
    }
}

struct Run {
    random: Random,
    cluster: Cluster,
    leader: NodeId,
    epoch: u32,
    isr: Vec<NodeId>,
    config: PartitionConfig,
    values: u32,
    /// By token at its node.
    waiting: BTreeMap<(NodeId, u64), String>,
    /// By offset.
    acked: BTreeMap<u64, String>,
    /// Of each node, in its life and as follower or leader of the epoch.
    watermarks: BTreeMap<NodeId, u64>,
    dead: BTreeMap<NodeId, BTreeMap<FileName, Vec<u8>>>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 77);
        let replication = ReplicationConfig {
            lag_max: Duration::from_secs(2),
            stream_credit_bytes: [300, 3000, 1 << 20][random.below(3)],
            unsent_bytes_max: [1000, 1 << 20][random.below(2)],
            turn_bytes: [100, 1 << 20][random.below(2)],
            catch_up_in_flight_max: [1, 3000, 1 << 20][random.below(3)],
            seed,
            ..Default::default()
        };
        let tail_bytes_max = [0, 2000, u64::MAX][random.below(3)];
        let mut config = PartitionConfig { isr_min: 2, ..PartitionConfig::default() };
        config.log.segment_bytes = 2000;
        let mut cluster = Cluster::with(replication, tail_bytes_max);
        cluster.assign(0, A, 1, &[A, B, C], config);
        Self {
            random,
            cluster,
            leader: A,
            epoch: 1,
            isr: vec![A, B, C],
            config,
            values: 0,
            waiting: BTreeMap::new(),
            acked: BTreeMap::new(),
            watermarks: BTreeMap::new(),
            dead: BTreeMap::new(),
        }
    }

    fn step(&mut self) {
        match self.random.below(40) {
            0..14 => self.append(),
            14..17 => drop(self.cluster.held.insert((self.random.node(), self.random.node()))),
            17..20 => self.cluster.held.clear(),
            20 => self.cluster.break_streams(self.random.node()),
            21 => drop(self.cluster.slow_disks.insert(self.random.node())),
            22 => self.cluster.slow_disks.clear(),
            23 => self.cluster.cut_off(self.random.node()),
            24 | 25 => self.cluster.cut_off.clear(),
            26 => drop(self.cluster.stuck.insert(self.random.node())),
            27 | 28 => self.kill(),
            29..32 => self.restart(),
            32 | 33 => self.elect(),
            34 => self.cluster.fenced.clear(),
            _ => self.wishes(),
        }
        let wait = [1, 20, 300, 1500][self.random.below(4)];
        let now = self.cluster.now() + Duration::from_millis(wait);
        self.cluster.at(now);
        self.check();
    }

    fn append(&mut self) {
        if self.dead.contains_key(&self.leader) {
            return;
        }
        for _ in 0..self.random.below(3) + 1 {
            self.values += 1;
            let value = format!("<{}{}>", self.values, "x".repeat(self.random.below(400)));
            let token = self.cluster.rig(self.leader).append(0, Acks::All, batch(&value));
            self.waiting.insert((self.leader, token), value);
        }
        if self.random.below(2) == 0 {
            self.cluster.run();
        }
    }

    fn commit(&mut self, to: &[NodeId]) {
        let (leader, epoch, isr) = (self.leader, self.epoch, self.isr.clone());
        self.cluster.assign_only(0, leader, epoch, &isr, self.config, to);
        self.cluster.run();
    }

    /// Takes a node out, and elects another leader if it was that.
    fn take_out(&mut self, node: NodeId) {
        if self.isr.len() > 1 {
            self.isr.retain(|&member| member != node);
        }
        if self.leader == node {
            self.leader = self.isr[self.random.below(self.isr.len())];
            self.epoch += 1;
        }
    }

    fn kill(&mut self) {
        let node = self.random.node();
        if !self.dead.is_empty() || self.isr == [node] {
            return;
        }
        let files = self.cluster.kill(node);
        self.dead.insert(node, files);
        self.waiting.retain(|&(at, _), _| at != node);
        self.watermarks.remove(&node);
        self.cluster.stuck.remove(&node);
        self.take_out(node);
        self.commit(&[A, B, C]);
    }

    fn restart(&mut self) {
        let Some((node, files)) = self.dead.pop_first() else { return };
        self.cluster.slow_disks.remove(&node);
        self.cluster.restart(node, files);
        self.cluster.tell(0, node);
        self.cluster.run();
    }

    fn elect(&mut self) {
        let node = self.isr[self.random.below(self.isr.len())];
        if self.dead.contains_key(&node) {
            return;
        }
        let old = std::mem::replace(&mut self.leader, node);
        self.epoch += 1;
        // Some hear of it late.
        let late = self.random.node();
        let now: Vec<NodeId> = [A, B, C].into_iter().filter(|&n| n != late).collect();
        self.commit(&now);
        self.check();
        if self.random.below(2) == 0
            && !self.dead.contains_key(&old)
            && self.cluster.rigs.contains_key(&on(old))
        {
            self.values += 1;
            let value = format!("<{}>", self.values);
            let token = self.cluster.rig(old).append(0, Acks::All, batch(&value));
            self.waiting.insert((old, token), value);
        }
        self.cluster.run();
        self.check();
        self.cluster.tell(0, late);
    }

    fn wishes(&mut self) {
        for (node, wish) in std::mem::take(&mut self.cluster.wishes) {
            let known = self.cluster.committed(0);
            let is_current = (Some(node), wish.leader_epoch, wish.partition_epoch)
                == (known.leader, known.leader_epoch, known.partition_epoch);
            if !is_current || self.dead.contains_key(&node) {
                continue;
            }
            let eligible = |&(node, epoch): &(NodeId, RegistrationEpoch)| {
                self.cluster.lives[&node] == epoch && !self.dead.contains_key(&node)
            };
            if wish.isr.iter().all(eligible) && self.random.below(4) > 0 {
                self.isr = wish.isr.iter().map(|&(node, _)| node).collect();
                self.commit(&[A, B, C]);
            } else {
                let refused = FromControl::IsrRefused {
                    partition: wish.partition,
                    partition_epoch: wish.partition_epoch,
                    refusal: IsrRefusal::Ineligible,
                };
                self.cluster.rig(node).handle(Input::Control(refused));
            }
        }
    }

    fn check(&mut self) {
        let waiting: Vec<(NodeId, u64)> = self.waiting.keys().copied().collect();
        for (node, token) in waiting {
            let Some(answer) = self.cluster.rig(node).answer(token) else { continue };
            let value = self.waiting.remove(&(node, token)).expect("it waits");
            if let Answer::Appended(Ok(appended)) = answer {
                let before = self.acked.insert(appended.base_offset.0, value);
                assert_eq!(before, None, "an offset was given twice");
            }
        }
        for node in [A, B, C] {
            if self.dead.contains_key(&node) || !self.cluster.knows(node, 0) {
                continue;
            }
            let (_, high_watermark, end) = self.cluster.ends(node, 0);
            assert!(high_watermark <= end);
            let before = self.watermarks.insert(node, high_watermark).unwrap_or(0);
            assert!(before <= high_watermark, "the high watermark of {node} went back from {before}");
            let stats = self.cluster.stats(node);
            assert_eq!((stats.truncations_below_high_watermark, stats.misfits), (0, 0), "{node}");
        }
    }

    /// All is well from now on.
    fn heal(&mut self) {
        self.cluster.held.clear();
        self.cluster.cut_off.clear();
        self.cluster.slow_disks.clear();
        while !self.dead.is_empty() {
            self.restart();
        }
        // Sockets that took nothing are gone.
        for node in std::mem::take(&mut self.cluster.stuck) {
            self.cluster.break_streams(node);
        }
        self.commit(&[A, B, C]);
        for _ in 0..20 {
            self.cluster.settle();
            self.wishes();
            self.check();
        }
        let token = self.cluster.append(self.leader, 0, "<last>");
        self.waiting.insert((self.leader, token), "<last>".into());
        self.cluster.settle();
        self.check();
        assert!(self.waiting.is_empty(), "all were answered: {:?}", self.waiting.len());
        assert_eq!(self.isr.len(), 3, "all are in sync again");
        let logs = [A, B, C].map(|node| self.cluster.whole_log(node, 0));
        assert!(logs[0] == logs[1] && logs[1] == logs[2], "the logs are the same");
        let [(_, high_watermark, end), ..] = [A, B, C].map(|node| self.cluster.ends(node, 0));
        assert_eq!(high_watermark, end);
        for (offset, value) in &self.acked {
            let found = logs[0].get(usize::try_from(*offset).unwrap());
            assert!(found.is_some_and(|batch| contains(batch, value)), "offset {offset} lost {value}");
        }
        assert!(self.acked.values().any(|value| value == "<last>"));
    }
}

fn contains(batch: &[u8], value: &str) -> bool {
    batch.windows(value.len()).any(|window| window == value.as_bytes())
}

fn run(seed: u64) -> usize {
    let mut run = Run::new(seed);
    for _ in 0..120 {
        run.step();
    }
    run.heal();
    run.acked.len()
}

#[test]
fn nothing_acknowledged_is_lost_and_all_comes_together_whatever_fails_on_the_way() {
    let mut acked = 0;
    for seed in 0..60 {
        let result = std::panic::catch_unwind(|| run(seed));
        acked += result.unwrap_or_else(|_| panic!("seed {seed}"));
    }
    assert!(acked > 60 * 20, "{acked} records were acknowledged: the runs do something");
}
