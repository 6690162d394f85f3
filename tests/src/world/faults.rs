//! The world's part in the script of faults: what each fault does, and how it is undone.

use std::time::Duration;

use highwater_shards::ids::{ConnId, PartitionId};
use highwater_shards::mail::Durability;

use super::{Builder, Event, Phase, World};
use crate::checkers::liveness;
use crate::config::STALL_MAX;
use crate::control::{Change, NewTopic};
use crate::disk::DiskFaults;
use crate::faults::Fault;

impl<B: Builder> World<B> {
    pub(super) fn create_topic(&mut self) {
        let rng = &mut self.dice.fault;
        let replicated = self.config.features.replicated && rng.flip();
        let new = NewTopic {
            partitions: self.config.partitions_per_topic,
            durability: if replicated { Durability::Replicated } else { Durability::Fsync },
            batch_bytes_max: self.config.batch_bytes_max,
        };
        self.control.create_topic(&self.wire, new, rng, &mut self.checkers, &mut self.tells);
        self.tell();
    }

    pub(super) fn on_fault(&mut self) {
        if self.phase != Phase::Faults {
            return;
        }
        let next = self.dice.fault.between(self.config.fault_every.start, self.config.fault_every.end);
        self.after(next, Event::Fault);
        if !self.up {
            return;
        }
        if let Some(fault) = self.script.draw(&self.config, &mut self.dice.fault, &self.partitions) {
            self.trace.note(self.now, &format!("fault: {fault:?}"));
            self.inflict(fault);
        }
    }

    pub(super) fn inflict(&mut self, fault: Fault) {
        let rng = &mut self.dice.fault;
        let undo_after = rng.between(Duration::from_micros(100), STALL_MAX);
        match fault {
            Fault::Crash(crash) => {
                let soon = rng.below(100);
                self.script.crash_after(self.trace.events() + soon, crash);
            }
            Fault::Stop => {
                if self.control.all_ready() {
                    let deadline = Duration::from_secs(5);
                    self.control.stop::<B::Wire>(deadline, &mut self.tells);
                    self.tell();
                    self.after(deadline + liveness::STOP_BOUND, Event::StopOverdue(self.boot));
                }
            }
            Fault::SlowDisk => {
                let factor = self.config.slow_factor;
                self.hosts.iter_mut().for_each(|h| h.disk.faults.slow = factor);
                self.script.slow_since(self.now);
                self.after(undo_after, Event::Undo(fault));
            }
            Fault::FullDisk => {
                self.hosts.iter_mut().for_each(|h| h.disk.faults.full = true);
                self.script.full(true);
                self.after(undo_after, Event::Undo(fault));
            }
            Fault::FailWrite(shard) => {
                self.script.expect_fatal();
                self.host(shard).disk.faults.fail_next_write = true;
            }
            Fault::FailRead(shard) => {
                self.script.expect_fatal();
                self.host(shard).disk.faults.fail_next_read = true;
            }
            Fault::CreateTopic => self.create_topic(),
            Fault::DeleteTopic(topic) => {
                self.control.delete_topic(&self.wire, topic, &mut self.tells);
                self.tell();
            }
            Fault::Change(partition, change) => {
                if self.partitions.contains(&partition) {
                    let checkers = &mut self.checkers;
                    self.control.change(&self.wire, partition, change, checkers, &mut self.tells);
                    self.tell();
                    self.after(undo_after, Event::Undo(fault));
                }
            }
            Fault::StaleDelta => {
                self.control.repeat_old(&self.wire, rng, &mut self.tells);
                self.tell();
            }
            Fault::Stall(shard) => {
                let until = self.now + undo_after;
                self.host(shard).stalled_until = until;
            }
        }
    }

    pub(super) fn undo(&mut self, fault: Fault) {
        match fault {
            Fault::SlowDisk => {
                self.hosts.iter_mut().for_each(|h| h.disk.faults.slow = 1);
                self.script.slow_until(self.now);
            }
            Fault::FullDisk => {
                self.hosts.iter_mut().for_each(|h| h.disk.faults.full = false);
                self.script.full(false);
            }
            Fault::Change(partition, _) => self.heal_partition(partition),
            _ => {}
        }
    }

    pub(super) fn heal_partition(&mut self, partition: PartitionId) {
        if self.partitions.contains(&partition) {
            let change = Change::Heal;
            self.control.change(&self.wire, partition, change, &mut self.checkers, &mut self.tells);
            self.tell();
        }
    }

    /// The faults are over.
    pub(super) fn heal(&mut self) {
        self.trace.note(self.now, "the faults are over");
        self.phase = Phase::Healing;
        self.script.heal();
        for host in &mut self.hosts {
            host.disk.faults = DiskFaults::default();
        }
        for partition in self.partitions.clone() {
            self.heal_partition(partition);
        }
        for i in 0..self.conns.len() {
            self.pump(ConnId(i as u64));
        }
    }
}
