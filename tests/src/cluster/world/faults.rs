//! The script of faults: what happens from outside, to whom, and how it is undone.

use std::time::Duration;

use highwater_shards::ids::{ConnId, Offset, PartitionId, ShardId};

use super::{Event, Phase, Place, World};
use crate::checkers::Verdict;
use crate::cluster::config::Config;
use crate::cluster::{index_of, node_id};
use crate::disk::{Crash, DiskFaults};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    Crash(usize, Crash),
    Blackout,
    Stop(usize),
    Pause(usize),
    Stall(usize, ShardId),
    /// From one to the other; either may be the controller.
    Cut(usize, usize),
    CutBoth(usize, usize),
    /// Whether nobody hears the node, and whether it hears nobody.
    Isolate {
        node: usize,
        unheard: bool,
        deaf: bool,
    },
    BreakLinks(usize, usize),
    /// What a node sends to another one, or to all others, takes long. What it leads may be led by others meanwhile.
    SlowLinks(usize, Option<usize>),
    /// What nodes send to each other takes long, on each way its own time. Partitions with records under way may be handed
    /// over meanwhile: then these come to followers of another leader, by streams that go on for other partitions.
    SlowNetwork,
    SlowDisk(usize),
    FullDisk(usize),
    FailWrite(usize, ShardId),
    FailRead(usize, ShardId),
    Disturb,
    Operate,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    Kill,
    Power,
    Blackout,
    Stop,
    Pause,
    Stall,
    Cut,
    CutBoth,
    Isolate,
    CutControl,
    BreakLinks,
    SlowLinks,
    SlowNetwork,
    SlowDisk,
    FullDisk,
    DiskError,
    Disturb,
    Operate,
}

fn kinds(config: &Config) -> Vec<Kind> {
    let f = &config.features;
    let all = [
        (f.kill, Kind::Kill),
        (f.kill, Kind::Kill),
        (f.power_loss, Kind::Power),
        (f.power_loss, Kind::Power),
        (f.blackout && !config.is_frugal(), Kind::Blackout),
        (f.clean_stop, Kind::Stop),
        (f.pause, Kind::Pause),
        (f.stall, Kind::Stall),
        (f.cut_one_way, Kind::Cut),
        (f.cut_both_ways, Kind::CutBoth),
        (f.isolate, Kind::Isolate),
        (f.cut_control, Kind::CutControl),
        (f.broken_links, Kind::BreakLinks),
        (f.slow_links, Kind::SlowLinks),
        (f.slow_links, Kind::SlowLinks),
        (f.slow_links, Kind::SlowNetwork),
        (f.slow_disk, Kind::SlowDisk),
        (f.full_disk, Kind::FullDisk),
        (f.disk_errors, Kind::DiskError),
        (f.controllers, Kind::Disturb),
        (f.controllers, Kind::Disturb),
        (f.moves, Kind::Operate),
        (f.moves, Kind::Operate),
    ];
    all.into_iter().filter(|k| k.0).map(|k| k.1).collect()
}

impl World {
    pub(super) fn on_fault(&mut self) -> Verdict {
        if self.phase != Phase::Faults {
            return Ok(());
        }
        let next = self.dice.fault.between(self.config.fault_every.start, self.config.fault_every.end);
        let mut kinds = kinds(&self.config);
        let count = if self.config.storm { 3 + self.dice.fault.index(3) } else { 1 };
        // After a storm there is more time, or nothing would ever come to rest.
        let rest = u32::try_from(count).expect("few");
        self.after(next * rest, Event::Fault);
        for _ in 0..count {
            if kinds.is_empty() {
                return Ok(());
            }
            let kind = *self.dice.fault.pick(&kinds);
            kinds.retain(|&k| k != kind);
            let fault = self.draw(kind);
            self.trace.note(self.now, &format!("fault: {fault:?}"));
            self.inflict(fault)?;
        }
        Ok(())
    }

    fn draw(&mut self, kind: Kind) -> Fault {
        let rng = &mut self.dice.fault;
        let nodes = self.config.nodes;
        let node = rng.index(nodes);
        let other = (node + 1 + rng.index(nodes - 1)) % nodes;
        let shard =
            ShardId(u16::try_from(rng.below(u64::from(self.config.shards[node]))).expect("few shards"));
        let controller = self.net.controller();
        match kind {
            Kind::Kill => Fault::Crash(node, Crash::Kill),
            Kind::Power => Fault::Crash(node, Crash::Power),
            Kind::Blackout => Fault::Blackout,
            Kind::Stop => Fault::Stop(node),
            Kind::Pause => Fault::Pause(node),
            Kind::Stall => Fault::Stall(node, shard),
            Kind::Cut => Fault::Cut(node, other),
            Kind::CutBoth => Fault::CutBoth(node, other),
            Kind::Isolate => {
                let how = rng.below(3);
                Fault::Isolate { node, unheard: how != 0, deaf: how != 1 }
            }
            Kind::CutControl => match rng.below(3) {
                0 => Fault::Cut(node, controller),
                1 => Fault::Cut(controller, node),
                _ => Fault::CutBoth(node, controller),
            },
            Kind::BreakLinks => Fault::BreakLinks(node, other),
            Kind::SlowLinks => Fault::SlowLinks(node, rng.flip().then_some(other)),
            Kind::SlowNetwork => Fault::SlowNetwork,
            Kind::SlowDisk => Fault::SlowDisk(node),
            Kind::FullDisk => Fault::FullDisk(node),
            Kind::DiskError if rng.flip() => Fault::FailWrite(node, shard),
            Kind::DiskError => Fault::FailRead(node, shard),
            Kind::Disturb => Fault::Disturb,
            Kind::Operate => Fault::Operate,
        }
    }

    /// Whether a node may lose what it has in memory now: always, unless topics rest on that.
    fn may_lose_memory(&self) -> bool {
        !self.config.is_frugal()
            || (self.plane.unrest().is_none()
                && (0..self.config.nodes).all(|n| {
                    self.net.node(n).up
                        && self.plane.is_serving(n)
                        && self.nodes[n].doom.is_none()
                        && !self.nodes[n].fatal_expected
                }))
    }

    fn inflict(&mut self, fault: Fault) -> Verdict {
        let lasts = self.config.fault_lasts.clone();
        let lasts = self.dice.fault.between(lasts.start, lasts.end);
        let soon = self.trace.events() + self.dice.fault.below(100);
        match fault {
            Fault::Crash(node, crash) => {
                if self.net.node(node).up && self.may_lose_memory() {
                    self.nodes[node].doom.get_or_insert((soon, crash));
                }
            }
            Fault::Blackout => {
                for node in 0..self.config.nodes {
                    if self.net.node(node).up && self.dice.fault.chance(900) {
                        self.crash(node, Crash::Power);
                    }
                }
            }
            Fault::Stop(node) => {
                if self.net.runs(node, self.now) {
                    self.stop(node)?;
                }
            }
            Fault::Pause(node) => {
                self.counts.pauses += 1;
                self.goes_on(Kind::Pause, lasts);
                let until = self.now + lasts;
                let standing = self.net.node_mut(node);
                standing.paused_until = standing.paused_until.max(until);
            }
            Fault::Stall(node, shard) => {
                self.goes_on(Kind::Stall, lasts / 4);
                let until = self.now + lasts / 4;
                self.host(node, shard).stalled_until = until;
            }
            Fault::Cut(..) | Fault::CutBoth(..) | Fault::Isolate { .. } => {
                self.counts.cuts += 1;
                self.goes_on(Kind::Cut, lasts);
                for (from, to) in self.ways(fault) {
                    self.net.cut(from, to);
                    self.links_fall_silent(from, to);
                }
                self.after(lasts, Event::Undo(fault));
            }
            Fault::BreakLinks(a, b) => {
                self.goes_on(Kind::BreakLinks, Duration::ZERO);
                self.break_links(a, b);
            }
            Fault::SlowLinks(from, to) => {
                self.counts.slow_links += 1;
                self.goes_on(Kind::SlowLinks, lasts);
                let lag = self.dice.fault.between(Duration::from_millis(2), self.config.lag_max / 2);
                for to in (0..self.config.nodes).filter(|&n| to.is_none_or(|to| n == to)) {
                    self.net.set_lag(from, to, lag);
                }
                self.after(lasts, Event::Undo(fault));
                if self.config.features.moves && self.dice.fault.flip() {
                    let soon = self.dice.fault.between(Duration::ZERO, lasts);
                    self.after(soon, Event::Relieve(from));
                }
            }
            Fault::SlowNetwork => {
                self.counts.slow_networks += 1;
                // Less would be over before anything late came.
                let lasts = lasts.max(self.config.lag_max * 2);
                self.goes_on(Kind::SlowNetwork, lasts);
                let nodes = self.config.nodes;
                let most = self.dice.fault.between(Duration::from_millis(4), self.config.lag_max / 2);
                for (from, to) in (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to))) {
                    let lag = self.dice.fault.between(Duration::ZERO, most);
                    self.net.set_lag(from, to, lag);
                }
                self.after(lasts, Event::Undo(fault));
                if self.config.features.moves {
                    self.after(Duration::ZERO, Event::HandOver);
                }
            }
            Fault::SlowDisk(node) => {
                self.counts.bad_disks += 1;
                self.goes_on(Kind::SlowDisk, lasts);
                let factor = self.config.slow_factor;
                self.nodes[node].hosts.iter_mut().for_each(|h| h.disk.faults.slow = factor);
                self.after(lasts, Event::Undo(fault));
            }
            Fault::FullDisk(node) => {
                self.counts.bad_disks += 1;
                self.goes_on(Kind::FullDisk, lasts);
                self.nodes[node].hosts.iter_mut().for_each(|h| h.disk.faults.full = true);
                self.after(lasts, Event::Undo(fault));
            }
            Fault::FailWrite(node, shard) => {
                if self.net.node(node).up && self.may_lose_memory() {
                    self.counts.bad_disks += 1;
                    self.nodes[node].fatal_expected = true;
                    self.host(node, shard).disk.faults.fail_next_write = true;
                }
            }
            Fault::FailRead(node, shard) => {
                if self.net.node(node).up && self.may_lose_memory() {
                    self.counts.bad_disks += 1;
                    self.nodes[node].fatal_expected = true;
                    self.host(node, shard).disk.faults.fail_next_read = true;
                }
            }
            Fault::Disturb => {
                self.counts.disturbances += 1;
                self.goes_on(Kind::Disturb, Duration::ZERO);
                self.with_plane(|plane, cx| plane.disturb(cx))?;
            }
            Fault::Operate => {
                self.counts.moves += 1;
                self.with_plane(|plane, cx| {
                    plane.operate(cx);
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// A fault of this kind goes on for so long. All cuts are one kind.
    pub(super) fn goes_on(&mut self, kind: Kind, lasts: Duration) {
        let until = self.now + lasts;
        let known = self.going_on.entry(kind).or_insert(until);
        *known = until.max(*known);
        let at_once = self.going_on.values().filter(|&&until| until >= self.now).count();
        if at_once >= 3 {
            self.counts.seeds_with_three_faults_at_once = 1;
        }
    }

    /// An operator stops the node, whatever it does just now.
    pub(super) fn stop(&mut self, node: usize) -> Verdict {
        if !self.plane.is_stopping(node) {
            let life = self.net.node(node).life;
            self.with_plane(|plane, cx| plane.stop(node, cx))?;
            self.after(Duration::from_secs(25), Event::StopOverdue(node, life));
        }
        Ok(())
    }

    pub(super) fn relieve(&mut self, node: usize) -> Verdict {
        self.counts.moves += 1;
        self.with_plane(|plane, cx| {
            plane.relieve(node, cx);
            Ok(())
        })
    }

    pub(super) fn relieve_any(&mut self) -> Verdict {
        let Some(every) = self.config.relieve_every.clone().filter(|_| self.phase == Phase::Faults) else {
            return Ok(());
        };
        let next = self.dice.fault.between(every.start, every.end);
        self.after(next, Event::RelieveAny);
        let node = self.dice.fault.index(self.config.nodes);
        self.relieve(node)
    }

    /// As long as the network is slow, partitions go to those in sync that have the least of them, so that what others have
    /// or get still is of the past.
    pub(super) fn hand_over(&mut self) -> Verdict {
        let is_slow = self.going_on.get(&Kind::SlowNetwork).is_some_and(|&until| until > self.now);
        if self.phase != Phase::Faults || !is_slow {
            return Ok(());
        }
        let next = self.dice.fault.between(Duration::from_millis(1), self.config.lag_max / 8);
        self.after(next, Event::HandOver);
        let mut next = Vec::new();
        for (&id, now) in self.plane.truth() {
            let ends = now.isr.iter().filter_map(|&n| Some((self.log_end(index_of(n), id)?, n)));
            let (least, most) = (ends.clone().min(), ends.max());
            if let (Some((least, node)), Some((most, _))) = (least, most)
                && least < most
                && self.dice.fault.chance(700)
            {
                next.push((id, node));
            }
        }
        self.counts.moves += next.len() as u64;
        self.with_plane(|plane, cx| {
            plane.hand_over(&next, cx);
            Ok(())
        })
    }

    fn log_end(&self, node: usize, partition: PartitionId) -> Option<Offset> {
        let machines = self.nodes[node].hosts.iter().filter_map(|host| host.machine.as_ref());
        machines.filter_map(|machine| machine.look(partition)).map(|look| look.log_end).next()
    }

    /// The ways that a cut closes.
    fn ways(&self, fault: Fault) -> Vec<(usize, usize)> {
        match fault {
            Fault::Cut(a, b) => vec![(a, b)],
            Fault::CutBoth(a, b) => vec![(a, b), (b, a)],
            Fault::Isolate { node, unheard, deaf } => {
                let others = (0..=self.config.nodes).filter(|&n| n != node);
                let mut ways = Vec::new();
                for other in others {
                    ways.extend(unheard.then_some((node, other)));
                    ways.extend(deaf.then_some((other, node)));
                }
                ways
            }
            _ => Vec::new(),
        }
    }

    pub(super) fn undo(&mut self, fault: Fault) {
        if self.phase != Phase::Faults {
            return;
        }
        match fault {
            Fault::SlowDisk(node) => self.nodes[node].hosts.iter_mut().for_each(|h| h.disk.faults.slow = 1),
            Fault::SlowLinks(from, _) => {
                (0..self.config.nodes).for_each(|to| self.net.set_lag(from, to, Duration::ZERO));
            }
            Fault::SlowNetwork => self.net.end_lags(),
            Fault::FullDisk(node) => {
                self.nodes[node].hosts.iter_mut().for_each(|h| h.disk.faults.full = false);
            }
            Fault::Cut(..) | Fault::CutBoth(..) | Fault::Isolate { .. } => {
                for (from, to) in self.ways(fault) {
                    self.net.mend(from, to);
                }
                self.links_speak();
            }
            _ => {}
        }
    }

    /// The faults are over.
    pub(super) fn heal(&mut self) {
        self.trace.note(self.now, "the faults are over");
        self.phase = Phase::Healing;
        self.healed_at = self.now;
        self.net.mend_all();
        // A network that lets a few KiB through at a time, each after a long way, is a fault too: whole logs may have to be
        // sent again now.
        self.config.socket_bytes = self.config.socket_bytes.max(64 * 1024);
        self.config.streams.end = self.config.streams.end.min(Duration::from_millis(1));
        for node in 0..self.config.nodes {
            self.nodes[node].doom = None;
            for host in &mut self.nodes[node].hosts {
                host.disk.faults = DiskFaults::default();
            }
            if self.net.node(node).up {
                self.trace.note(self.now, &format!("node {} is well", node_id(node)));
            }
        }
        self.links_speak();
        for i in 0..self.places.len() {
            if matches!(self.places[i], Place::Client(_)) {
                self.pump(ConnId(i as u64));
            }
        }
    }
}
