//! What drives the log: events of the journal taken in, operations given out, timeouts, and the stop. Floor 1.

use super::{Noted, Phase, Stop, Storage, StorageEvent, UnderWay};
use crate::log::disk::{DiskEvent, DiskOp};
use crate::log::journal::{AppendRefused, JournalEvent};
use crate::time::Instant;

impl Storage {
    /// The next operation for the disk. Drain events, then operations, after every batch of inputs, until there is
    /// neither: this is the journal's group commit point.
    pub fn poll_op(&mut self, now: Instant, noted: &dyn Noted) -> Option<DiskOp> {
        let op = self.poll_any_op(now, noted);
        if let Some(op) = &op
            && !matches!(op, DiskOp::Read { .. })
        {
            self.reader.on_write(now);
        }
        op
    }

    fn poll_any_op(&mut self, now: Instant, noted: &dyn Noted) -> Option<DiskOp> {
        self.now = now;
        if self.is_over() {
            return None;
        }
        self.pump();
        if let Some(op) = self.ops.pop_front() {
            return Some(op);
        }
        self.step_recovery();
        self.step_compaction(noted);
        self.begin_works();
        if self.has_new_looks() {
            // A note took effect without the disk.
            self.step_compaction(noted);
        }
        if self.is_running() {
            self.retain(noted);
            self.step_checkpoint(noted);
            if self.checkpoints.target().is_some() {
                // It may have begun without an event that another turn would follow.
                self.begin_works();
                self.step_checkpoint(noted);
            }
        }
        self.settle_stop();
        if self.is_over() {
            return None;
        }
        // A restored log is told before anything of it is read.
        if matches!(self.phase, Phase::Recovering(_)) && !self.events.is_empty() {
            return self.ops.pop_front();
        }
        self.poll_journal_op(now).or_else(|| self.ops.pop_front()).or_else(|| self.poll_reader_op())
    }

    fn poll_journal_op(&mut self, now: Instant) -> Option<DiskOp> {
        let is_behind = !self.is_running() && self.unmoved_bytes > self.config.unmoved_bytes_max;
        let is_moving = self.works > 0;
        let journal = self.journal.as_mut()?;
        journal.pause_replay(is_behind && is_moving);
        journal.poll_op(now)
    }

    fn poll_reader_op(&mut self) -> Option<DiskOp> {
        self.reader.note_behind(self.unmoved_bytes > self.config.unmoved_bytes_soft);
        let next = &mut self.last_op;
        let op = self.reader.poll_op(self.now, || {
            *next += 1;
            crate::log::disk::OpNo(*next)
        });
        self.drain_reader();
        op
    }

    /// When `handle_timeout` is wanted; ask again after `poll_op` was drained.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.is_over() {
            return None;
        }
        let journal = self.journal.as_ref().and_then(|journal| journal.poll_timeout());
        // The rest of the logs is encoded in turns, so that what came meanwhile is not held up.
        let turn = self.checkpoint_has_turn().then_some(self.now);
        let reads = self.reader.poll_timeout(self.now);
        let others = [reads, self.retention_due(), self.compaction_due(), self.checkpoint_due()];
        [journal, self.no_space_until, turn].into_iter().chain(others).flatten().min()
    }

    /// Takes in what happened since.
    pub(super) fn go_on(&mut self) {
        if self.no_space_until.is_some_and(|at| at <= self.now) {
            self.no_space_until = None;
        }
        self.compactions.begin_turn();
        self.pump();
        self.drain_reader();
        // What it has no room for is told by the checkpoint.
        if self.stop == Stop::Dropping
            && self.is_running()
            && self.write_drops() != Err(AppendRefused::Overloaded)
        {
            self.stop = Stop::Flushing;
            self.journal.as_mut().expect("the log runs").stop();
            self.pump();
        }
    }

    /// Takes the journal's events.
    pub(super) fn pump(&mut self) {
        while let Some(event) = self.journal.as_mut().and_then(|journal| journal.poll_event()) {
            match event {
                JournalEvent::Replayed { partition, header, base, lsn, bytes } => {
                    self.replay_batch(partition, &header, base, lsn, bytes);
                }
                JournalEvent::ReplayedNote { partition, note, lsn } => {
                    self.replay_note(partition, note, lsn);
                }
                JournalEvent::Recovered(report) => self.on_journal_recovered(report),
                JournalEvent::Flushed { upto } => {
                    self.flushed = upto.0;
                    self.events.push_back(StorageEvent::Flushed { upto });
                }
                JournalEvent::BacklogCleared => self.events.push_back(StorageEvent::BacklogCleared),
                JournalEvent::Room => self.on_room(),
                JournalEvent::Stopped => self.on_journal_stopped(),
                JournalEvent::Fatal(reason) => {
                    self.fail(reason);
                    return;
                }
            }
        }
    }

    fn on_room(&mut self) {
        let _ = self.write_drops();
        self.refused_as_full = false;
        self.events.push_back(StorageEvent::Room);
    }

    /// Tells the journal of the logs that were dropped while it had no room. Refused as long as it does not know of all.
    pub(super) fn write_drops(&mut self) -> Result<(), AppendRefused> {
        while let Some(&slot) = self.undropped.front() {
            let Some(log) = self.log_mut(slot) else {
                self.undropped.pop_front();
                continue;
            };
            let partition = log.partition;
            let note = crate::log::Note::Dropped;
            let now = self.now;
            let journal = self.journal.as_mut().expect("only a running log drops one");
            match journal.note(now, partition, note, crate::log::journal::Urgency::Sync) {
                Ok(noted) => {
                    self.undropped.pop_front();
                    self.take_note(slot, noted.lsn, note);
                }
                Err(refused) => return Err(refused),
            }
        }
        Ok(())
    }

    /// Dispatches what became of an operation of this log's own.
    pub(super) fn on_done(&mut self, what: UnderWay, event: DiskEvent) {
        match what {
            UnderWay::Recovery => self.on_recovery_event(event),
            UnderWay::SyncFile(..) | UnderWay::SyncFolder(..) | UnderWay::Replace => {
                self.on_checkpoint_event(what, event);
            }
            UnderWay::RemoveGhost(partition) => {
                self.log_failure(&event, "a folder that no log has was not removed");
                self.ask(UnderWay::SyncGhost(partition), |op| DiskOp::SyncFolder { op, partition });
            }
            UnderWay::SyncGhost(partition) => self.folder_removed(partition),
            UnderWay::RemoveOld(name) => {
                self.log_failure(&event, "a file that no log has was not removed");
                self.on_old_removed(name);
            }
            _ => self.on_work_event(what, event),
        }
    }

    pub(super) fn log_failure(&self, event: &DiskEvent, what: &'static str) {
        if let DiskEvent::Done { result: Err(error), .. } = event {
            tracing::warn!(shard = %self.config.journal.shard, %error, "{what}; it is left where it is");
        }
    }

    /// Takes no more entries, makes everything durable, moves it, and checkpoints that, so that the next start reads
    /// nothing else; [`StorageEvent::Stopped`] follows.
    pub fn stop(&mut self, now: Instant) {
        self.now = now;
        match &self.phase {
            Phase::Recovering(_) => {
                self.phase = Phase::Stopped;
                self.ops.clear();
                self.events.push_back(StorageEvent::Stopped);
            }
            Phase::Running if self.stop == Stop::No => {
                self.stop = Stop::Dropping;
                self.cancel_compaction();
                self.go_on();
            }
            Phase::Running | Phase::Stopped | Phase::Failed => {}
        }
    }

    fn on_journal_stopped(&mut self) {
        if self.stop == Stop::Flushing {
            self.stop = Stop::Settling;
        }
    }

    /// Ends a stop once the clean checkpoint is there, or cannot be.
    fn settle_stop(&mut self) {
        if self.stop != Stop::Settling || !self.is_running() || self.compactions.is_busy() {
            return;
        }
        // The journal has everything: the next start reads it.
        let gives_up = self.no_space_until.is_some();
        if gives_up || self.checkpoints.is_clean() {
            self.phase = Phase::Stopped;
            self.events.push_back(StorageEvent::Stopped);
        }
    }
}
