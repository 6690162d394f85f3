//! The world's part in the lives of nodes: the turns of their shards, what these put out, how lives begin and end.

use std::time::Duration;

use highwater_shards::ids::{ConnId, ShardId};
use highwater_shards::log::journal::JournalConfig;
use highwater_shards::log::storage::StorageConfig;
use highwater_shards::mail::ToControl;
use highwater_shards::shard::{Machine, Output, ReplicationConfig, Shard, ShardConfig};
use highwater_shards::time::Instant;

use super::faults::Kind;
use super::{Event, Host, Item, Phase, Place, World};
use crate::checkers::{Verdict, broken};
use crate::cluster::config::Config;
use crate::cluster::node_id;
use crate::disk::Crash;
use crate::front::SimFront;
use crate::rng::Rng;
use crate::turn;

impl World {
    pub(super) fn deliver(&mut self, node: usize, shard: ShardId, item: Item) {
        self.host(node, shard).inbox.push_back(item);
        self.schedule_wake(node, shard);
    }

    pub(super) fn schedule_wake(&mut self, node: usize, shard: ShardId) {
        let delay = self.dice.wake.tailed(&self.config.wake);
        let (now, life) = (self.now, self.net.node(node).life);
        let paused_until = self.net.node(node).paused_until;
        let host = self.host(node, shard);
        if !std::mem::replace(&mut host.waking, true) {
            let at = (now + delay).max(host.stalled_until).max(paused_until);
            self.queue.push(at, Event::Wake(node, shard, life));
        }
    }

    /// One turn of a shard's loop: a batch of inputs, then all outputs.
    pub(super) fn wake(&mut self, node: usize, shard: ShardId) -> Verdict {
        let clock = self.net.clock(node, self.now);
        self.trace.at_node(node_id(node).0);
        let host = &mut self.nodes[node].hosts[usize::from(shard.0)];
        host.waking = false;
        if !self.net.runs(node, self.now) || host.stalled_until > self.now {
            self.schedule_wake(node, shard);
            return Ok(());
        }
        let machine = host.machine.as_mut().expect("the node is up");
        let (trace, now) = (&mut self.trace, self.now);
        turn::take(machine, &mut host.disk, &mut host.inbox, clock, &mut self.dice.wake, |input| {
            trace.input(now, shard, input);
        });
        self.look(node, shard)?;
        self.drain(node, shard)?;
        if self.net.node(node).up && !self.is_doomed(node) {
            self.look(node, shard)?;
            self.after_drain(node, shard, clock);
        }
        Ok(())
    }

    /// Holds what the shard's replicas are against the invariants.
    fn look(&mut self, node: usize, shard: ShardId) -> Verdict {
        let life = self.net.node(node).life;
        let machine = self.nodes[node].hosts[usize::from(shard.0)].machine.as_ref();
        let machine = machine.expect("the node is up");
        for &partition in &self.partitions {
            if let Some(look) = machine.look(partition) {
                self.judge.on_look(node, life, partition, &look, |at| machine.epoch_of(partition, at))?;
            }
        }
        Ok(())
    }

    fn drain(&mut self, node: usize, shard: ShardId) -> Verdict {
        loop {
            // The power may go between two outputs: those behind never leave the core.
            if self.is_doomed(node) {
                return Ok(());
            }
            let machine = self.host(node, shard).machine.as_mut();
            let Some(output) = machine.expect("the node is up").poll_output() else { return Ok(()) };
            self.trace.output(self.now, shard, &output);
            self.on_output(node, shard, output)?;
            if !self.net.node(node).up {
                return Ok(());
            }
        }
    }

    fn after_drain(&mut self, node: usize, shard: ShardId, clock: Instant) {
        let (now, life) = (self.now, self.net.node(node).life);
        let host = self.host(node, shard);
        let wanted = host.machine.as_ref().expect("the node is up").poll_timeout();
        let more = !host.inbox.is_empty();
        if wanted != host.timeout {
            host.timeout = wanted;
            host.timeout_number += 1;
            let number = host.timeout_number;
            if let Some(at) = wanted {
                self.queue.push(now + at.since(clock), Event::Timeout(node, shard, life, number));
            }
        }
        if more {
            self.schedule_wake(node, shard);
        }
    }

    fn on_output(&mut self, node: usize, shard: ShardId, output: Output<SimFront>) -> Verdict {
        let life = self.net.node(node).life;
        match output {
            Output::Control(message) => {
                let at = self.now + self.dice.plane.tailed(&self.config.mail);
                let host = self.host(node, shard);
                host.saying.push_back(message);
                let at = host.said.arrival(at);
                self.queue.push(at, Event::Said(node, shard, life));
            }
            Output::Mail { to, mail } => {
                let at = self.now + self.dice.mail.tailed(&self.config.mail);
                let at = self.host(node, shard).mail[usize::from(to.0)].arrival(at);
                self.queue.push(at, Event::Mail(node, to, life, mail));
            }
            Output::Send { conn, parts } => match self.place(conn) {
                Place::Client(c) => {
                    if c.conn.open {
                        c.conn.send(parts);
                        self.pump(conn);
                    }
                }
                &mut Place::Peer(link, side) => self.link_send(link, side, parts),
            },
            Output::Receive { conn, on } => match self.place(conn) {
                Place::Client(_) => self.receive(conn, on),
                &mut Place::Peer(link, side) => self.link_receive(link, side, on),
            },
            Output::Close { conn, flush, reason } => match self.place(conn) {
                Place::Client(c) => {
                    if c.conn.open
                        && let Some(reason) = c.conn.close(flush, reason)
                    {
                        self.closed_by_shard(conn, reason);
                    }
                }
                &mut Place::Peer(link, side) => self.link_close(link, side, flush, reason),
            },
            Output::Disk(op) => {
                let submitted = self.host(node, shard).disk.submit(op);
                let (op, latency) = submitted.map_err(|e| broken("disk contract", e))?;
                self.after(latency, Event::Disk(node, shard, life, op));
            }
            Output::Fatal(reason) => {
                if !self.nodes[node].fatal_expected {
                    let what =
                        format!("shard {shard} of node {} gave up without a fault: {reason}", node_id(node));
                    return Err(broken("fatal", what));
                }
                self.trace.note(self.now, &format!("node {} ends itself", node_id(node)));
                self.crash(node, Crash::Kill);
            }
        }
        Ok(())
    }

    pub(super) fn on_said(&mut self, node: usize, shard: ShardId) -> Verdict {
        let life = self.net.node(node).life;
        let pause = self.net.pause_left(node, self.now);
        if !pause.is_zero() {
            self.after(pause, Event::Said(node, shard, life));
            return Ok(());
        }
        let said = self.host(node, shard).saying.pop_front().expect("each was announced by an event");
        match &said {
            &ToControl::Dial { node: to, shard: to_shard } => {
                let to = crate::cluster::index_of(to);
                let delay = self.dice.net.tailed(&self.config.net);
                self.after(delay, Event::Dial { node, shard, life, to, to_shard });
            }
            &ToControl::Applied { revision } => self.judge.on_applied(node, life, shard, revision)?,
            ToControl::AlterIsr { changes } => {
                let who = node_id(node);
                self.judge.tell(|| format!("node {who} wishes {changes:?}"));
            }
            _ => {}
        }
        self.with_plane(|plane, cx| plane.on_said(node, shard, said, cx))
    }

    /// A node that was stopped ends.
    pub(super) fn stopped(&mut self, node: usize) {
        self.trace.note(self.now, &format!("node {} has stopped", node_id(node)));
        self.counts.stops += 1;
        let crash = if self.dice.crash.flip() { Crash::Power } else { Crash::Kill };
        self.node_down(node, crash, Kind::Stop);
    }

    pub(super) fn restart(&mut self, node: usize) -> Verdict {
        if self.net.node(node).up {
            return Ok(());
        }
        let standing = self.net.node_mut(node);
        standing.up = true;
        standing.life += 1;
        standing.born = self.now;
        standing.paused_until = self.now;
        self.nodes[node].hosts.iter_mut().for_each(|host| host.saying.clear());
        let life = standing.life;
        self.counts.lives += 1;
        self.trace.note(self.now, &format!("node {} starts, life {life}", node_id(node)));
        self.judge.on_start(node, life);
        for shard in (0..self.config.shards[node]).map(ShardId) {
            let seed = self.dice.machine.draw();
            let config = shard_config(&self.config, node, shard, seed);
            *self.host(node, shard) = Host {
                machine: Some(Shard::new(config, SimFront)),
                ..std::mem::replace(self.host(node, shard), Host::empty())
            };
            self.schedule_wake(node, shard);
        }
        self.with_plane(|plane, cx| plane.start(node, cx))?;
        if self.config.features.clean_stop && self.phase == Phase::Faults && self.dice.crash.chance(80) {
            // While it still recovers, mostly.
            let soon = self.dice.crash.between(Duration::ZERO, Duration::from_millis(4));
            self.after(soon, Event::Stop(node, life));
        }
        Ok(())
    }

    /// The node ends without a word.
    pub(super) fn crash(&mut self, node: usize, crash: Crash) {
        let what = match crash {
            Crash::Power => "loses power",
            Crash::Kill => "is killed",
        };
        self.trace.note(self.now, &format!("node {} {what}", node_id(node)));
        let kind = match crash {
            Crash::Power => {
                self.counts.power_losses += 1;
                Kind::Power
            }
            Crash::Kill => {
                self.counts.kills += 1;
                Kind::Kill
            }
        };
        self.node_down(node, crash, kind);
    }

    fn node_down(&mut self, node: usize, crash: Crash, kind: Kind) {
        self.net.node_mut(node).up = false;
        self.nodes[node].doom = None;
        self.nodes[node].fatal_expected = false;
        self.plane.down(node);
        for host in &mut self.nodes[node].hosts {
            host.machine = None;
            host.inbox.clear();
            host.waking = false;
            host.timeout = None;
            host.timeout_number += 1;
            host.stalled_until = Instant::ZERO;
            host.disk.faults.fail_next_write = false;
            host.disk.faults.fail_next_read = false;
            host.disk.crash(crash);
        }
        for i in 0..self.places.len() {
            if let Place::Client(c) = &mut self.places[i]
                && c.node == node
                && !c.conn.closed
            {
                c.conn.cut_off(&mut self.dice.crash);
                self.pump(ConnId(i as u64));
            }
        }
        self.links_of_dead(node, crash);
        let lasts = &self.config.fault_lasts;
        // Some come back before anybody has noticed.
        let pause = if self.dice.crash.chance(300) {
            self.dice.crash.between(Duration::from_millis(1), Duration::from_millis(8))
        } else {
            self.dice.crash.between(lasts.start, lasts.end * 2)
        };
        self.goes_on(kind, pause);
        self.after(pause, Event::Restart(node));
    }
}

impl Host {
    fn empty() -> Self {
        Self {
            machine: None,
            disk: crate::disk::SimDisk::new(
                crate::disk::DiskConfig {
                    write: Duration::ZERO..Duration::ZERO,
                    sync: Duration::ZERO..Duration::ZERO,
                    read: Duration::ZERO..Duration::ZERO,
                    prepare: Duration::ZERO..Duration::ZERO,
                },
                Rng::new(0, "none", 0),
            ),
            inbox: std::collections::VecDeque::new(),
            waking: false,
            timeout: None,
            timeout_number: 0,
            stalled_until: Instant::ZERO,
            told: crate::queue::Lane::default(),
            said: crate::queue::Lane::default(),
            saying: std::collections::VecDeque::new(),
            mail: Vec::new(),
        }
    }
}

/// Bounds small enough to be met in a run; the same for all shards of a run.
fn shard_config(config: &Config, node: usize, shard: ShardId, seed: u64) -> ShardConfig {
    let mut r = Rng::new(config.seed, "shard config", 0);
    let batch_bytes_max = config.batch_bytes_max as usize;
    let small = config.features.small_windows;
    let ms = Duration::from_millis;
    ShardConfig {
        node: node_id(node),
        shard,
        storage: StorageConfig {
            tail_bytes_max: *r.pick(&[0, 10_000, 100_000, 100_000_000]),
            ..StorageConfig::new(JournalConfig {
                file_bytes: config.file_bytes,
                batch_bytes_max,
                chunk_bytes_max: *r.pick(&[4, 16, 64, 1024]) * 1024,
                flush_interval: config.flush_interval,
                writes_in_flight_max: 1 + r.index(4),
                backlog_bytes_max: batch_bytes_max * *r.pick(&[1, 4, 64]),
                ..JournalConfig::new(shard, seed)
            })
        },
        unsent_bytes_max: *r.pick(&[10_000, 1_000_000]),
        in_flight_max: *r.pick(&[1, 2, 100]),
        remote_ops_max: *r.pick(&[4, 1000]),
        replication: ReplicationConfig {
            lag_max: config.lag_max,
            stream_credit_bytes: if small { *r.pick(&[1, 1000, 50_000]) } else { 16 << 20 },
            unsent_bytes_max: if small { *r.pick(&[1, 5000]) } else { 4 << 20 },
            turn_bytes: if small { *r.pick(&[1, 2000]) } else { 512 << 10 },
            catch_up_in_flight_max: if small { *r.pick(&[1, 4000]) } else { 512 << 10 },
            reads_in_flight_max: 1 + r.index(4),
            catch_up_bytes_per_second: r.chance(200).then_some(2_000_000),
            watermark_delay: *r.pick(&[Duration::from_micros(100), ms(5)]),
            retry_min: ms(1 + r.below(5)),
            retry_max: ms(20 + r.below(60)),
            seed,
        },
    }
}
